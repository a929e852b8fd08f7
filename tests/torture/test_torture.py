"""The torture itself: its judge finds what is planted, its driver ends well, shmcache passes."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

from shmcache import Store
from tests.torture import payload
from tests.torture.history import parse
from tests.torture.holder import LockWord
from tests.torture.judge import judge
from tests.torture.plan import plan
from tests.torture.verdict import Verdict

ROOT = Path(__file__).resolve().parents[2]
SHM = Path("/dev/shm")


def digest_of(content: dict[str, int]) -> int:
    return payload.digest(f"{key}:{version}" for key, version in content.items())


FIRST, SECOND = digest_of(payload.content(1)), digest_of(payload.content(2))

# A small epoch in which all went well: producer-0.1 is killed in an add of two, of which the first
# arrives; consumer-0.1 is killed in a pop, and p0.g goes down with it. claimer-0.1 is killed with
# k1.0:3 in its hands, whose newer version is handled then; j1.b fails three times; the lease of
# j1.d is over before its worker is, and that of j1.f before its worker knows that it has it.
CLEAN = {
    "producer-0.1": """\
> 1 10 add p0.a:1
< 1 12
> 2 14 add p0.b:2 p0.c:3
< 2 16
> 3 18 add h0.0:4
< 3 20
> 4 22 add h0.0:5
< 4 24
> 5 26 add p0.d:6
< 5 28
> 6 30 delete p0.d
< 6 32
> 7 34 put t0:7
< 7 36
> 8 38 put t0:8 t2:8
< 8 44
> 9 45 drop t0:9
< 9 47
> 10 48 add p0.e:10 p0.f:11
""",
    "producer-0.2": """\
> 1 60 add p0.g:1000001
< 1 62
> 2 64 add p0.h:1000002
< 2 66
""",
    "producer-1.1": """\
> 1 67 add p1.a:1
< 1 69
> 2 70 job j1.a:1 j1.b:2
< 2 71
> 3 72 job k1.0:3
< 3 73
> 4 74 job j1.c:4
< 4 75
> 5 80 job k1.0:5
< 5 81
> 6 82 unjob j1.c
< 6 83
> 7 84 job j1.d:6 j1.f:8
< 7 85
> 8 86 job j1.e:7
""",
    "claimer-0.1": """\
> 1 72 claim 0
< 1 74 j1.a:1 1
> 2 75 done
< 2 76 yes
> 3 77 claim 0
< 3 78 k1.0:3 1
""",
    "claimer-1.1": """\
> 1 72 claim 4
< 1 73 j1.b:2 1
> 2 84 fail
< 2 85
> 3 86 claim 0
< 3 87 j1.b:2 2
> 4 88 fail
< 4 89
> 5 9000150 claim 0
< 5 9000201 j1.d:6 2
> 6 9000210 done
< 6 9000211 yes
> 7 20000000 claim 4
< 7 26000000 j1.f:8 1
> 8 26000010 done
< 8 26000020 no
""",
    "claimer-2.1": """\
> 1 91 claim 0
< 1 94 j1.b:2 3
> 2 95 fail
< 2 96
> 3 97 claim 4
< 3 98 k1.0:5 2
> 4 99 renew 40
< 4 100 yes
> 5 101 done
< 5 102 yes
> 6 5000000 claim 4
< 6 5000001 j1.d:6 1
> 7 9000300 done
< 7 9000301 no
> 8 25000000 claim 0
< 8 25000010 j1.f:8 2
> 9 27000000 done
< 9 27000010 yes
""",
    "consumer-0.1": """\
> 1 13 pop 1
< 1 15 p0.a:1
> 2 29 pop 8
< 2 31 p0.b:2 p0.c:3 h0.0:5
> 3 70 pop 1
""",
    "consumer-1.1": """\
> 1 49 pop 1
< 1 54 p0.e:10
> 2 77 pop 1
< 2 78 p0.h:1000002
> 3 79 pop 1
< 3 80 p1.a:1
> 4 81 pop 8
< 4 90
""",
    "replacer-0.1": """\
> 1 10 replace 1
< 1 12
> 2 30 replace 2
< 2 32
""",
    "reader-0.1": f"""\
> 1 14 list
< 1 16 {FIRST} 0 1
> 2 17 queue
< 2 18 p0.b:2 p0.c:3
> 3 34 list
< 3 36 {SECOND} 0 2
> 4 37 get
< 4 39 t0:8
> 5 48 get
< 5 49 t0:absent
> 6 50 version
< 6 51 queue 7
> 7 52 version
< 7 53 queue 8
> 8 54 resource_version
< 8 55 2
> 9 56 table
< 9 57 t2:8
> 10 79 held
< 10 80 j1.b:2 k1.0:3
""",
    "reader-1.1": """\
> 1 41 get
< 1 42 t0:8
""",
    "inspector-0.1": f"""\
> 1 95 check queue
< 1 96
> 2 97 repairs queue
< 2 98 3
> 3 99 queue
< 3 100
> 4 101 list
< 4 102 {SECOND} 0 2
> 5 103 jobs
< 5 104
> 6 105 held
< 6 106
> 7 107 dead
< 7 108 j1.b:2
""",
    "driver": """\
> 1 50 kill producer-0.1
< 1 52
> 2 74 kill consumer-0.1
< 2 76
> 3 90 kill claimer-0.1
< 3 92
""",
}

# What is planted: whose history, the words that stand there, those that replace them; and what
# the judge must call it.
FAULTS = {
    "delivered twice": ("consumer-1.1", "p1.a:1", "p1.a:1 p0.a:1", "duplicate"),
    "lost": ("consumer-0.1", "p0.c:3 ", "", "loss"),
    "more lost than a killed pop takes": ("consumer-0.1", " h0.0:5", "", "loss"),
    "lost before any consumer was killed": ("consumer-0.1", "p0.a:1", "", "loss"),
    "the second of a cut off add without the first": (
        "consumer-1.1", "p0.e:10", "p0.f:11", "loss",
    ),
    "left in the queue": ("inspector-0.1", "< 3 100", "< 3 100 p0.h:1000002", "loss"),
    "delivered, and nobody added it": ("consumer-1.1", "p0.e:10", "p9.z:1", "unknown"),
    "delivered before it was added": ("consumer-0.1", "p0.a:1", "p0.a:1 p0.h:1000002", "unknown"),
    "delivered after its deletion": ("consumer-1.1", "p1.a:1", "p1.a:1 p0.d:6", "unknown"),
    "two of one pop reordered": ("consumer-0.1", "p0.b:2 p0.c:3", "p0.c:3 p0.b:2", "order"),
    "a delivery before those of earlier adds": (
        "consumer-0.1", "< 2 31 p0.b:2 p0.c:3 h0.0:5",
        "< 2 31 p0.c:3\n> 9 32 pop 8\n< 9 33 p0.b:2 h0.0:5", "order",
    ),
    "items of two producers reordered": (
        "consumer-1.1", "p0.h:1000002\n> 3 79 pop 1\n< 3 80 p1.a:1",
        "p1.a:1\n> 3 79 pop 1\n< 3 80 p0.h:1000002", "order",
    ),
    "an update that did not arrive": ("consumer-0.1", "h0.0:5", "h0.0:4", "stale"),
    "a torn delivery": ("consumer-1.1", "p0.e:10", "torn", "torn"),
    "a look at the queue in disorder": ("reader-0.1", "p0.b:2 p0.c:3", "p0.c:3 p0.b:2", "order"),
    "a look that misses an item": ("reader-0.1", "p0.b:2 p0.c:3", "p0.b:2", "stale"),
    "a look at what has gone": ("reader-0.1", "p0.b:2 ", "p0.a:1 p0.b:2 ", "stale"),
    "a look at what never was": ("reader-0.1", "p0.b:2 ", "p0.b:2 p9.z:1 ", "unknown"),
    "a torn read": ("reader-0.1", "< 4 39 t0:8", "< 4 39 torn", "torn"),
    "a stale read": ("reader-0.1", "t0:absent", "t0:8", "stale"),
    "a read of what is yet to be written": ("reader-1.1", "t0:8", "t0:absent", "stale"),
    "a read behind that of another reader": ("reader-1.1", "t0:8", "t0:7", "stale"),
    "a key missing from a list": ("reader-0.1", "< 9 57 t2:8", "< 9 57", "stale"),
    "a mixed replace": ("reader-0.1", f"{FIRST} 0 1", f"{FIRST} 0 1 2", "mixed"),
    "a content that never was": ("reader-0.1", f"{FIRST} 0 1", f"{FIRST + 1} 0 1", "mixed"),
    "a torn entry of a list": ("reader-0.1", f"{FIRST} 0 1", f"{FIRST} 1 1", "torn"),
    "a replace that is not seen": ("reader-0.1", f"{SECOND} 0 2", f"{FIRST} 0 1", "stale"),
    "a last write that is not there": (
        "inspector-0.1", f"{SECOND} 0 2", f"{FIRST} 0 1", "stale",
    ),
    "an old resource version": ("reader-0.1", "< 8 55 2", "< 8 55 1", "stale"),
    "a version that goes back": ("reader-0.1", "queue 8", "queue 6", "stale"),
    "a broken invariant": ("inspector-0.1", "< 1 96", "< 1 96 I4:_a_byte_of_two", "broken"),
    "a job with two workers": ("claimer-0.1", "< 3 78 k1.0:3", "< 3 78 j1.b:2", "shared"),
    "a key in two versions with two workers": (
        "claimer-1.1", "< 3 87 j1.b:2", "< 3 87 k1.0:5", "shared",
    ),
    "a key twice in flight": ("reader-0.1", "j1.b:2 k1.0:3", "k1.0:5 k1.0:3", "shared"),
    "a claim taken from who works": ("claimer-0.1", "< 2 76 yes", "< 2 76 no", "taken"),
    "a claim taken before its lease is over": (
        "claimer-2.1", "> 7 9000300 done\n< 7 9000301 no", "> 7 5000110 done\n< 7 5000111 no",
        "taken",
    ),
    "a claim taken although it was renewed": (
        "claimer-2.1", "> 5 101 done\n< 5 102 yes", "> 5 4500000 done\n< 5 4500002 no", "taken",
    ),
    "a job claimed again after it was done": (
        "claimer-2.1", "< 3 98 k1.0:5 2", "< 3 98 j1.a:1 2", "duplicate",
    ),
    "a job that is nowhere": ("inspector-0.1", "< 7 108 j1.b:2", "< 7 108", "loss"),
    "a newest version that nobody has done": (
        "claimer-2.1", "> 5 101 done\n< 5 102 yes", "> 5 101 fail\n< 5 102", "loss",
    ),
    "a job that went down with its worker": (
        "claimer-0.1", "> 2 75 done\n< 2 76 yes\n> 3 77 claim 0\n< 3 78 k1.0:3 1\n", "", "loss",
    ),
    "a job left in the queue": ("inspector-0.1", "< 5 104", "< 5 104 j1.d:6", "loss"),
    "a job left in flight": ("inspector-0.1", "< 6 106", "< 6 106 j1.d:6", "loss"),
    "a dead letter that hardly anybody has tried": (
        "inspector-0.1", "< 7 108 j1.b:2", "< 7 108 j1.b:2 j1.d:6", "loss",
    ),
    "a claim of what was deleted": (
        "claimer-2.1", "< 3 98 k1.0:5 2", "< 3 98 j1.c:4 1", "unknown",
    ),
    "a claim of what nobody added": (
        "claimer-2.1", "< 3 98 k1.0:5 2", "< 3 98 j9.z:1 1", "unknown",
    ),
    "a fourth attempt of three": ("claimer-2.1", "< 1 94 j1.b:2 3", "< 1 94 j1.b:2 4", "unknown"),
    "a claim of an old version": (
        "claimer-2.1", "< 3 98 k1.0:5 2", "< 3 98 k1.0:3 2", "stale",
    ),
    "a torn claim": ("claimer-0.1", "< 1 74 j1.a:1 1", "< 1 74 torn 1", "torn"),
    "an error": ("reader-1.1", "t0:8\n", "t0:8\n! 43 LockTimeoutError('...')\n", "error"),
    "a death that was no kill": ("driver", "kill producer-0.1", "died producer-0.1 -11", "error"),
}  # fmt: skip


def judge_texts(texts: dict[str, str]) -> Verdict:
    return judge([operation for who, text in texts.items() for operation in parse(who, text)])


def test_the_judge_finds_nothing_in_a_clean_history() -> None:
    """Of what went well nothing is a violation, and the one item that died with its consumer is
    named."""
    verdict = judge_texts(CLEAN)
    assert verdict.violations == []
    assert len(verdict.lost) == 1
    assert verdict.lost[0].startswith("p0.g:1000001 of producer-0, with consumer-0.1 ")
    assert (verdict.deliveries, verdict.repairs, verdict.cut_off) == (7, 3, 3)
    assert (verdict.claims, verdict.given_back, verdict.dead_letters) == (10, 6, 1)


@pytest.mark.parametrize("fault", FAULTS)
def test_the_judge_finds_what_is_planted(fault: str) -> None:
    """One fault in a clean history is found, and called by its name."""
    who, before, after, kind = FAULTS[fault]
    assert CLEAN[who].count(before) == 1
    verdict = judge_texts(CLEAN | {who: CLEAN[who].replace(before, after)})
    assert kind in {violation.kind for violation in verdict.violations}


def test_a_torn_last_record_is_dropped() -> None:
    """A history cut off at any byte gives its operations up to there, the last perhaps unended."""
    text = CLEAN["consumer-0.1"]
    whole = parse("consumer-0.1", text)
    for length in range(len(text)):
        for begun, operation in zip(parse("consumer-0.1", text[:length]), whole, strict=False):
            assert begun.start == operation.start
            assert begun.end in (operation.end, None)
            assert begun.end is None or begun.results == operation.results


def test_a_payload_that_is_not_whole_is_torn() -> None:
    """One changed bit anywhere in a payload, one lost byte, or another's tail makes it torn."""
    data, other = payload.make("p0.1:2", 17, 40), payload.make("p0.1:2", 18, 40)
    assert payload.name_of(data) == "p0.1:2:17"
    broken = [data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in range(len(data))]
    broken += [data[:at] for at in range(len(data))]
    broken += [data[:at] + other[at:] for at in range(1, len(data)) if data[at:] != other[at:]]
    assert {payload.name_of(wrong) for wrong in broken if wrong != other} == {"torn"}


def test_a_seed_gives_one_schedule() -> None:
    """The same seed gives the same blows, another gives others, and as many kill as were asked."""
    blows = list(plan("1/1", 50))
    assert blows == list(plan("1/1", 50))
    assert blows != list(plan("1/2", 50))
    assert sum(blow.kills for blow in blows) == 50


def replace_for_ever(name: str) -> None:
    with Store.attach(name, writable=True) as store:
        objects = [{"metadata": {"name": f"n{i}"}} for i in range(2000)]
        while True:
            store.replace(objects)


def test_who_holds_a_lock_is_seen_from_outside(store: Store) -> None:
    """The lock word names nobody while the lock is free, and its holder while it is held."""
    lock = LockWord(store.name)
    assert lock.holder() == 0
    writer = multiprocessing.get_context("fork").Process(
        target=replace_for_ever, args=(store.name,)
    )
    writer.start()
    try:
        deadline = time.monotonic() + 60
        while lock.holder() != writer.pid:
            assert time.monotonic() < deadline
    finally:
        writer.kill()
        writer.join()
        writer.close()
        lock.close()


# --- the driver -----------------------------------------------------------------------------------

driver = pytest.mark.xdist_group("torture")  # one at a time: each keeps all cores busy


def start(*options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.torture", *options],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Its status and output; it has left no process and no arena."""
    try:
        out, err = process.communicate(timeout=280)
    finally:
        process.kill()
    with pytest.raises(ProcessLookupError):  # its session has no process any more
        os.killpg(process.pid, 0)
    assert list(SHM.glob(f"shmcache.torture-{process.pid}-*")) == []
    return process.returncode, out, err


@driver
def test_kills_break_nothing() -> None:
    """300 kills of producers, consumers, claimers, readers and a replacer: no hang, no loss that
    the contract does not allow, no violation."""
    status, out, err = finish(start("--kills", "300", "--seed", "1"))
    assert status == 0, out + err
    assert "kills           300 " in out
    assert "hangs           0\n" in out
    assert "losses outside the contract  0\n" in out
    assert out.endswith("violations      0\n")


@driver
def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    """Ctrl-C ends a run with its summary and status 1; --resume goes on, and the totals add up."""
    file = tmp_path / "state.json"

    def state() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(file.read_text())
        return found

    status, out, err = finish(start("--kills", "5", "--seed", "7", "--resume", str(file)))
    assert status == 0, out + err
    first = state()
    assert (first["seed"], first["epochs"], sum(first["kills"].values())) == (7, 1, 5)

    process = start("--kills", "1000000", "--resume", str(file))
    deadline = time.monotonic() + 120
    while state()["epochs"] < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    status, out, err = finish(process)
    assert status == 1, out + err
    assert "interrupted\n" in out
    second = state()
    killed = sum(second["kills"].values())
    assert f"kills           {killed} " in out
    assert out.endswith("violations      0\n")

    status, out, err = finish(start("--kills", str(killed + 5), "--resume", str(file)))
    assert status == 0, out + err
    third = state()
    assert sum(third["kills"].values()) == killed + 5
    assert third["epochs"] == second["epochs"] + 1
    for totals in (first, second, third):
        ways = sum(count for way, count in totals["ways"].items() if way != "stop")
        assert ways == sum(totals["kills"].values())
    assert first["seconds"] < second["seconds"] < third["seconds"]
    # On a busy machine five kills may be over before anybody has done a thing.
    for figure in ("operations", "deliveries"):
        assert first[figure] <= second[figure] <= third[figure]
    assert second["operations"] > 0
    # What was asked for is there already: nothing is done.
    assert finish(start("--kills", str(killed), "--resume", str(file)))[0] == 0
    assert state() == third


@driver
def test_seconds_are_a_limit() -> None:
    """--seconds ends a run: well if that was all that was asked, with status 1 if kills are due."""
    status, out, err = finish(start("--seconds", "0.5"))
    assert status == 0, out + err
    status, out, err = finish(start("--seconds", "0.5", "--kills", "1000000"))
    assert status == 1, out + err
    assert out.endswith("violations      0\n")


@driver
def test_usage_errors(tmp_path: Path) -> None:
    """Options that make no sense end with status 2 and a sentence, before anything is started."""
    file = tmp_path / "state.json"
    file.write_text("[]")
    other = tmp_path / "other.json"
    other.write_text('{"seed": 1}')
    for options, said in (
        (("--kills", "0"), "0 is not above 0"),
        (("--kills", "x"), "'x'"),
        (("--seconds", "-1"), "--seconds"),
        (("--nonsense",), "--nonsense"),
        (("--resume", str(file)), "is not a state of the torture"),
        (("--resume", str(other), "--seed", "2"), "was begun with --seed 1"),
    ):
        status, out, err = finish(start(*options))
        assert (status, out) == (2, "")
        assert said in err


def planted(fault: str) -> str:
    """What an epoch of 5 kills says that runs on something other than shmcache and our roles."""
    program = f"""
import os, tempfile, time
from pathlib import Path
from shmcache import FIFO, Store
from tests.torture import roles
from tests.torture.epoch import Epoch

{textwrap.dedent(fault)}
with tempfile.TemporaryDirectory() as folder:
    outcome = Epoch("1", Path(folder), hang_seconds=2.0).run(5)
for violation in outcome.verdict.violations:
    print(violation.kind, violation.text)
"""
    process = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return process.stdout


@driver
def test_a_hang_is_a_verdict() -> None:
    """A process that makes no progress any more is named with its stack, and the driver ends."""
    said = planted("""
        def stuck(work):
            while True:
                time.sleep(1)
        roles.ROLES["reader"] = stuck
    """)
    assert said.startswith("hang reader-")
    assert "in stuck\n" in said
    assert "inspector" not in said


@driver
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("os.abort()", "ended by itself, with status -6"),
        ("raise TimeoutError('the lock')", "ended with TimeoutError('the lock')"),
        ("return", "ended by itself, with status 0"),
    ],
)
def test_an_end_that_was_no_kill_is_a_violation(body: str, said: str) -> None:
    """A process that aborts, raises, or ends too early is named."""
    fault = f"""
        def replacer(work):
            {body}
        roles.ROLES["replacer"] = replacer
    """
    assert f"error replacer-0.1 {said}" in planted(fault)


@driver
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (
            """
            pop_many = FIFO.pop_many
            FIFO.pop_many = lambda queue, most: pop_many(queue, most)[:-1] or pop_many(queue, 1)
            """,
            "loss",
        ),
        (
            """
            pop_many = FIFO.pop_many
            FIFO.pop_many = lambda queue, most: pop_many(queue, most) * 2
            """,
            "duplicate",
        ),
        (
            """
            pop_many = FIFO.pop_many
            FIFO.pop_many = lambda queue, most: pop_many(queue, most)[::-1]
            """,
            "order",
        ),
        (
            """
            get_raw, first = Store.get_raw, {}
            Store.get_raw = lambda store, key: first.setdefault(key, get_raw(store, key))
            """,
            "stale",
        ),
        (
            "Store.replace = lambda store, objects, version: store.add_many(objects)",
            "mixed",
        ),
        (
            """
            claim = FIFO.claim
            FIFO.claim = lambda queue, timeout, lease: claim(queue, timeout, 0.0001)
            """,
            "shared",
        ),
        (
            """
            from shmcache import Claim
            Claim.done = Claim.release
            """,
            "duplicate",
        ),
        (
            """
            from shmcache import Claim
            def popped(queue, timeout, lease):
                taken = claim(queue, timeout, lease)
                taken._core.end_claim(taken._token, 0)
                return taken
            claim, FIFO.claim = FIFO.claim, popped
            Claim.done = lambda claim: None
            """,
            "loss",
        ),
    ],
    ids=[
        *("loss", "duplicate", "order", "stale", "mixed"),
        *("claims that end", "done that does nothing", "claims that do not last"),
    ],
)
def test_a_faulty_arena_is_found_out(fault: str, kind: str) -> None:
    """An epoch on a queue that drops, repeats or reorders, a store that reads old values, a replace
    that leaves what was there, or claims that are taken away, come back when they were done, or
    lose what they took, says so."""
    assert f"{kind} " in planted(fault)
