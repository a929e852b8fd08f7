"""The C++ harness of the core, built with sanitizers: each of its cases is run here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(sys.executable).parent


def tool(name: str) -> str:
    found = shutil.which(name, path=f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)


# Single-stepping an instrumented program takes for ever, and shows nothing more.
STEPPED = {"every_crash_image", "every_crash_image_of_repair", "crash_images_show_planted_faults"}
# Children that a TSan process forks are out of its sight; these are about threads.
THREADS = {
    "readers_never_miss_or_tear", "replace_is_one_instant", "one_delivery", "store_like_a_map",
    "fifo_like_a_deque", "ten_thousand_repairs_hide_nothing", "counts_come_round",
    "one_item_wakes_no_herd", "readers_of_an_index_see_one_instant",
}  # fmt: skip
# Many operations, which say more in a build as users have it.
LONG = {"a_million_entries", "ten_million_changes_stay_in_bounds"}
# By hand: build/core-none/core_tests every_pair_of_crashes
BY_HAND = {"every_pair_of_crashes"}


@pytest.mark.xdist_group("core")
@pytest.mark.parametrize("sanitizers", ["none", "address,undefined", "thread"])
def test_the_core_by_itself(
    sanitizers: str, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """Every case of the C++ harness passes: crash images as built for users, the others under
    ASan with UBSan, and those about threads under TSan."""
    flag = [] if sanitizers == "none" else [f"-fsanitize={sanitizers}"]
    compiler = os.environ.get("CXX", "c++")
    probe = run(
        compiler, *flag, "-x", "c++", "-o", str(tmp_path / "probe"),
        str(ROOT / "tests/core/probe.cc"),
    )  # fmt: skip
    if probe.returncode != 0:
        pytest.skip(f"{compiler} cannot link with {flag}: {probe.stderr[-300:]}")
    # Kept between runs, so that a second one compiles only what has changed.
    build = ROOT / "build" / f"core-{sanitizers.replace(',', '-')}"
    for command in (
        (
            tool("cmake"), "-S", str(ROOT / "shmcache/_native"), "-B", str(build), "-G", "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", "-DSHMCACHE_CORE_TESTS=ON",
            f"-DSHMCACHE_SANITIZE={sanitizers if flag else ''}",
            "-DCMAKE_BUILD_TYPE=RelWithDebInfo",
        ),
        (tool("ninja"), "-C", str(build)),
    ):  # fmt: skip
        done = run(*command)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    program = str(build / "core_tests")
    cases = {line.split("\t")[0] for line in run(program, "--list").stdout.splitlines()}
    assert cases > STEPPED | THREADS | LONG | BY_HAND
    match sanitizers:
        case "none":
            cases = STEPPED | LONG
        case "thread":
            cases = THREADS
        case _:
            cases -= STEPPED | LONG | BY_HAND
    done = run(program, *sorted(cases))
    record_property("figures", done.stdout)  # how many images of which operation
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(cases)} passed, 0 failed" in done.stdout
