"""The protocol of lock, wake-up and repair, checked by spin in every interleaving, with deaths.

The models (``lock.pml``, ``queue.pml``) say at their top what they are smaller than. Each planted
fault is a bug that the protocol could have had, and must be found.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
NATIVE = HERE.parents[1] / "shmcache" / "_native"

# What is checked of which model. Without a slice (NO_SLICE) a wake-up that is lost is a sleep
# without end; with signals every sleep may be cut short, for ever.
CHECKS = {
    "killed while signals cut every sleep short": ("lock", "-DDEATHS=1 -DROUNDS=2 -DSIGNALS"),
    "killed, restarted, killed again": ("lock", "-DDEATHS=2"),
    "deadlines that run out": ("lock", "-DDEATHS=1 -DGIVE_UPS=1"),
    "three, without any death: no wait relies on its end": ("lock", "-DN=3 -DNO_SLICE"),
    "no wake-up for an item is lost": ("queue", "-DNO_SLICE"),
    "all are told of the shutdown": ("queue", "-DNO_SLICE -DSHUT_DOWN -DPOPS=1"),
}
# Planted faults, each with a check that finds it.
FAULTS = {
    "READER_DROPS_DIRTY": ("lock", "-DDEATHS=1 -DROUNDS=2"),
    "WAIT_WITHOUT_COMPARE": ("lock", "-DROUNDS=2 -DNO_SLICE"),
    "CLAIM_NAMED_SLOT": ("lock", "-DDEATHS=2 -DROUNDS=2"),
    "SILENCE_IS_DEATH": ("lock", "-DROUNDS=2"),
    "TAKEOVER_WITHOUT_COMPARE": ("lock", "-DDEATHS=1 -DROUNDS=2"),
    "SLEEPER_DROPS_WAITERS": ("lock", "-DN=3 -DNO_SLICE"),
    "UNLOCK_BY_LOAD_AND_STORE": ("lock", "-DROUNDS=2 -DNO_SLICE"),
    "UNLOCK_WITHOUT_WAKE": ("lock", "-DROUNDS=2 -DNO_SLICE"),
    "CLEAN_BEFORE_REPAIR_ENDS": ("lock", "-DDEATHS=2 -DROUNDS=2"),
    "WORD_NOT_MOVED": ("queue", "-DNO_SLICE"),
    "WAKE_ALL": ("queue", "-DNO_SLICE"),
    "NOTIFY_BEFORE_THE_ITEM": ("queue", "-DNO_SLICE"),
    "NO_BATON": ("queue", "-DNO_SLICE -DITEMS=2"),
    "WORD_AFTER_THE_LOOK": ("queue", "-DNO_SLICE"),
    "FLAG_AFTER_THE_LOOK": ("queue", "-DNO_SLICE"),
    "NO_FLAG_AFTER_THE_SLEEP": ("queue", "-DNO_SLICE -DITEMS=2"),
}
# Where the steps that a model names are in the code.
NAMED = {
    "lock": {
        "lock.cpp": ["try_lock", "lock", "unlock", "held_by"],
        "segment.cpp": ["claim_slot", "owner_alive"],
        "futex.hpp": ["futex_wait", "futex_wake"],
        "repair.cpp": ["repair_locked"],
        "arena.cpp": ["Guard", "upsert", "copy"],
    },
    "queue": {
        "arena.cpp": ["notify_ready", "wait_ready", "try_pop", "upsert", "shut_down", "Guard"],
        "bind.cpp": ["take"],
        "repair.cpp": ["repair_locked"],
    },
}


def verify(model: str, defines: str, folder: Path) -> str:
    """What the verifier says of the model with these macros."""
    spin, compiler = shutil.which("spin"), shutil.which("cc")
    if spin is None or compiler is None:
        pytest.skip("needs spin and a C compiler (Debian: apt-get install spin gcc)")
    shutil.copy(HERE / f"{model}.pml", folder)
    for command in (
        [spin, "-a", *defines.split(), f"{model}.pml"],
        [compiler, "-O2", "-w", "-DCOLLAPSE", "-DSAFETY", "-DNOCLAIM", "-o", "pan", "pan.c"],
    ):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    done = subprocess.run(
        ["./pan", "-m1000000"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert "max search depth too small" not in done.stdout
    assert "out of memory" not in done.stdout
    return done.stdout


@pytest.mark.parametrize("check", CHECKS)
def test_the_protocol_holds(check: str, tmp_path: Path, record_property: Any) -> None:
    """In every interleaving: one owner, none robbed, no state used that is half done, no sleep
    without end, no herd."""
    said = verify(*CHECKS[check], tmp_path)
    assert "errors: 0" in said, said
    states = re.search(r"(\d+) states, stored", said)
    assert states
    record_property("figures", f"{check}: {states[1]} states\n")


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_found(fault: str, tmp_path: Path) -> None:
    """Each fault that is planted in the protocol breaks one of these."""
    model, defines = FAULTS[fault]
    assert f"FAULT_{fault}" in (HERE / f"{model}.pml").read_text()
    assert "errors: 1" in verify(model, f"{defines} -DFAULT_{fault}", tmp_path)


@pytest.mark.parametrize("model", NAMED)
def test_the_names_are_those_of_the_code(model: str) -> None:
    """Each step of a model is called as the function that it models, and that function is there."""
    text = (HERE / f"{model}.pml").read_text()
    for file, names in NAMED[model].items():
        code = (NATIVE / file).read_text()
        for name in names:
            assert re.search(rf"(inline|proctype|define) {name}\b", text), name
            assert re.search(rf"\b{name}\(", code), f"{file}: {name}"
