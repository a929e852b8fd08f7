"""What users get when they install: extras, messages where something is missing, and versions.

That the wheel itself is whole and works is shown by scripts/try-wheel.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import shmcache

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(shmcache.__file__).parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PYPROJECT["project"]["optional-dependencies"]
# For those who work on shmcache; all the others are for its users.
OURS = {"all", "bench", "dev", "docs"}
OPTIONAL = (
    *("argcomplete", "kubernetes", "msgspec", "prometheus_client", "rich", "textual", "urllib3"),
    *("watchfiles", "yaml"),
)
# Without an extra: what asks for it, and what is said.
MISSING = {
    "shmcache.MsgspecCodec()": "MsgspecCodec needs msgspec: pip install 'shmcache[msgspec]'",
    "shmcache.list_watch_from_client(None, 'pods')": (
        "the Kubernetes source needs msgspec: pip install 'shmcache[kubernetes]'"
    ),
    "from shmcache.observe.prometheus import ShmCacheCollector": (
        "shmcache.observe.prometheus needs prometheus-client: pip install 'shmcache[metrics]'"
    ),
    "from shmcache.sources.directory import DirectorySource; DirectorySource('/tmp')": (
        "the directory source needs watchfiles: pip install 'shmcache[directory]'"
    ),
}
WITHOUT_THEM = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL}))\n"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-c", code, *arguments)


@pytest.mark.parametrize("code", MISSING)
def test_what_needs_an_extra_names_it(code: str) -> None:
    """Where its libraries are missing, a feature is an ImportError with the line that installs
    them, and the rest of the package works."""
    done = python(f"{WITHOUT_THEM}import shmcache\n{code}")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"ImportError: {MISSING[code]}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["completion", "bash"], "completion needs argcomplete: pip install 'shmcache[cli]'"),
        (["demo"], "demo needs kubernetes and msgspec: pip install 'shmcache[kubernetes]'"),
        (["metrics", "--once"], "metrics needs prometheus-client: pip install 'shmcache[metrics]'"),
    ],
)
def test_a_command_that_needs_an_extra_names_it(arguments: list[str], said: str) -> None:
    """Where its libraries are missing, a command is wrong usage, with the line that installs
    them."""
    done = python(f"{WITHOUT_THEM}from shmcache.cli import main; sys.exit(main())", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"shmcache {said}\n")


@pytest.mark.parametrize("arguments", [["--help"], ["ls", "-o", "json"], ["top", "--once"]])
def test_commands_work_without_extras(arguments: list[str]) -> None:
    """What needs no extra works where none is installed; there may be no arena to show."""
    done = python(f"{WITHOUT_THEM}from shmcache.cli import main; sys.exit(main())", *arguments)
    assert (done.returncode, "pip install" in done.stderr) == (0, False)


def test_extras_that_are_named_exist() -> None:
    """Every extra in an install line of the package or of a document is one of ours."""
    texts = [*PACKAGE.rglob("*.py"), *ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    named = set()
    for path in texts:
        for found in re.findall(r"pip install '(?:shmcache|\.)\[([\w,]+)\]'", path.read_text()):
            named |= set(found.split(","))
    assert {"directory", "kubernetes", "msgspec"} <= named <= EXTRAS.keys()


def test_all_has_every_extra_for_users() -> None:
    """The extra `all` is what users may want, and `dev` has it."""
    (everything,) = EXTRAS["all"]
    assert everything == f"shmcache[{','.join(sorted(EXTRAS.keys() - OURS))}]"
    assert "shmcache[all,docs]" in EXTRAS["dev"]


@pytest.mark.parametrize("extra", ["", *sorted(EXTRAS.keys() - OURS)])
def test_requirements_have_a_lower_bound_only(extra: str) -> None:
    """Each requirement of users names the oldest version that works, and forbids none to come."""
    for wanted in EXTRAS[extra] if extra else PYPROJECT["project"]["dependencies"]:
        assert re.fullmatch(r"[\w-]+>=[\d.]+", wanted)


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_are_told(system: str) -> None:
    """On another system the import fails with what shmcache needs, before anything else does."""
    done = python(f"import sys; sys.platform = {system!r}; import shmcache")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: shmcache runs on Linux only")
    assert last.endswith(f"which {system} does not have")


@pytest.mark.parametrize("system", ["Darwin", "Windows"])
def test_it_is_not_built_for_other_systems(system: str, tmp_path: Path) -> None:
    """A build for another system ends at once, before a compiler is looked for, and says why."""
    cmake = shutil.which("cmake") or shutil.which("cmake", path=Path(sys.executable).parent)
    if cmake is None:
        pytest.skip("cmake is not installed")
    done = run(
        *(cmake, "-S", str(ROOT / "shmcache/_native"), "-B", str(tmp_path)),
        *(f"-DCMAKE_SYSTEM_NAME={system}", "-DCMAKE_CXX_COMPILER=/none"),
    )
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert "shmcache runs on Linux only" in said
    assert f"which {system} does not have" in said
    assert "compiler" not in said


def test_a_package_without_its_core_says_so(tmp_path: Path) -> None:
    """Imported from a folder where it was not built, it names the folder and what to do."""
    shutil.copytree(
        PACKAGE,
        tmp_path / "shmcache",
        ignore=shutil.ignore_patterns("_core*", "_native", "__pycache__"),
    )
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import shmcache"
    # Without site, by which an editable install would find the core of the checkout.
    done = run(sys.executable, "-I", "-S", "-c", code)
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: the native core of shmcache is not built in")
    assert str(tmp_path / "shmcache") in last
    assert "scripts/setup" in last


def test_the_version_is_written_once() -> None:
    """The version that the build finds is that of the package, and the changelog begins with what
    is not released or with that version and its day."""
    assert PYPROJECT["project"]["dynamic"] == ["version"]
    source = ROOT / PYPROJECT["tool"]["scikit-build"]["metadata"]["version"]["input"]
    assert source.name == "__init__.py"
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", shmcache.__version__)
    newest = re.search(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert re.fullmatch(
        rf"Unreleased|{re.escape(shmcache.__version__)} - \d{{4}}-\d\d-\d\d", newest[1]
    )


def test_each_tested_python_has_its_wheel() -> None:
    """The classifiers, the wheels that are built for users, and the oldest Python agree."""
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PYPROJECT["project"]["classifiers"]))
    built = [name.removesuffix("-*") for name in PYPROJECT["tool"]["cibuildwheel"]["build"]]
    assert built == [f"cp{version.replace('.', '')}" for version in named]
    assert PYPROJECT["project"]["requires-python"] == f">={named[0]}"
