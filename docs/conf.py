"""The documentation site: `scripts/docs` builds it into build/docs, warnings being errors."""

from __future__ import annotations

import sys
from pathlib import Path

import shmcache

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "shmcache"
copyright = "the authors of shmcache, Apache-2.0"  # noqa: A001 (Sphinx calls it copyright)
release = version = shmcache.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton", "from_the_code"]
exclude_patterns = ["_extensions"]

html_theme = "furo"
html_title = f"shmcache {release}"
html_show_sourcelink = False
html_copy_source = False

myst_heading_anchors = 3
myst_links_external_new_tab = False
copybutton_prompt_text = r"\$ |> "
copybutton_prompt_is_regexp = True

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
autodoc_default_options = {"members": True, "show-inheritance": True}
add_module_names = False
