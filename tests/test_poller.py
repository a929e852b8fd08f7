"""The poller's rules, one test a rule, against a scripted get_func.

Most tests run the poller in their own thread: the script stops it when it is used up, and pauses
are recorded instead of waited for.
"""

from __future__ import annotations

import functools
import logging
import multiprocessing
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from shmcache import FIFO, KeyFuncError, Poller, PollerStats, Store

DEADLINE = 30.0

pytestmark = pytest.mark.usefixtures("no_thread_left")


def nodes(*names: str, **fields: Any) -> list[dict[str, Any]]:
    return [{"metadata": {"name": name}, **fields} for name in names]


def content(store: Store) -> dict[str, Any]:
    return dict(store.items())


class Run:
    """A poller that ran through the answers of a get_func, and all that it did."""

    def __init__(self, answers: Sequence[Any], store: Any, period: float = 7.0) -> None:
        self.answers = list(answers)
        self.pauses: list[float] = []
        self.contents: list[dict[str, Any]] = []  # of the store, at each pause
        self.store = store
        self.poller = Poller(self.get, period, store, _wait=self.pause)
        self.poller.run()
        self.stats = self.poller.stats()

    def get(self) -> Any:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def pause(self, seconds: float) -> bool:
        self.pauses.append(seconds)
        self.contents.append(content(self.store))
        if not self.answers:
            self.poller.stop()
        return False


def test_the_store_equals_each_list(store: Store) -> None:
    """Five successive lists, each with other names and values: the store equals each, exactly."""
    lists = [
        nodes("a", "b", "c", "d", n=1),
        nodes("b", "c", "e", n=2),
        nodes("b", "c", "e", n=3),
        nodes("f"),
        nodes("f", n=4),
    ]
    run = Run(lists, store)
    expected = [{obj["metadata"]["name"]: obj for obj in objs} for objs in lists]
    assert run.contents == expected
    assert run.stats == PollerStats(polls=5)


def test_first_round_at_once_then_fixed_pauses(store: Store) -> None:
    """The first round comes before any pause, and each pause is the period, after errors too."""
    run = Run([nodes("a"), OSError("down"), nodes("b")], store, period=2.5)
    assert run.pauses == [2.5, 2.5, 2.5]
    assert run.contents[0] == {"a": nodes("a")[0]}


def test_a_failing_get_leaves_the_store_alone(store: Store) -> None:
    """Rounds that raise change nothing, not even the version; the next good one counts again."""
    store.replace(nodes("old"), "41")
    version = store.version
    run = Run([OSError("down"), TimeoutError("slow")] * 5, store)
    assert (content(store), store.version) == ({"old": nodes("old")[0]}, version)
    assert run.stats == PollerStats(0, 10, "TimeoutError: slow")
    assert Run([OSError("down"), nodes("new")], store).contents[-1] == {"new": nodes("new")[0]}


def test_nothing_listed_is_an_empty_store(store: Store) -> None:
    """An empty list is an answer: it empties the store, which has then synced."""
    run = Run([[]], store)
    assert run.stats == PollerStats(polls=1)
    assert store.has_synced
    assert content(store) == {}


def test_alternating_errors_and_empty_lists(store: Store) -> None:
    """A poller goes on through any number of errors, and counts what was good."""
    run = Run([OSError("down"), []] * 6, store)
    assert run.stats == PollerStats(6, 6, "OSError: down")
    assert content(store) == {}


def test_a_failing_replace_is_counted(store: Store) -> None:
    """Objects that the store refuses leave it as it was, all of it, and the poller goes on."""
    run = Run([nodes("a"), [*nodes("b"), {"no": "metadata"}], nodes("c")], store)
    assert run.contents == [{"a": nodes("a")[0]}, {"a": nodes("a")[0]}, {"c": nodes("c")[0]}]
    assert (run.stats.polls, run.stats.errors) == (2, 1)
    assert run.stats.last_error.startswith(f"{KeyFuncError.__name__}: ")


def test_of_duplicates_the_last_wins(store: Store) -> None:
    """Two objects of one key are one entry, the later one."""
    assert Run([nodes("a", n=1) + nodes("a", n=2)], store).contents == [
        {"a": nodes("a", n=2)[0]},
    ]


def test_any_iterable_is_enumerated(store: Store) -> None:
    """Tuples and generators will do; a generator that fails half-way stores nothing."""

    def failing() -> Iterator[Any]:
        yield nodes("half")[0]
        raise OSError("cut")

    run = Run([tuple(nodes("a")), (obj for obj in nodes("b")), failing()], store)
    assert run.contents == [{"a": nodes("a")[0]}, {"b": nodes("b")[0]}, {"b": nodes("b")[0]}]
    assert run.stats == PollerStats(2, 1, "OSError: cut")


@pytest.mark.parametrize("answer", [None, 7, "", "text", b"", {}, {"items": []}], ids=repr)
def test_no_iterable_of_objects_is_an_error(store: Store, answer: Any) -> None:
    """What cannot be a list of objects does not empty the store, and is named by its type."""
    store.replace(nodes("old"))
    run = Run([answer], store)
    assert content(store) == {"old": nodes("old")[0]}
    kind = type(answer).__name__
    assert run.stats == PollerStats(
        errors=1, last_error=f"TypeError: get_func must return an iterable of objects, not {kind}"
    )


def test_a_fifo_may_be_filled(fifo: FIFO) -> None:
    """Any store with replace will do: a queue becomes the list, in its order."""
    assert Run([nodes("b", "a")], fifo).stats == PollerStats(polls=1)
    assert fifo.pop_many(9) == nodes("b", "a")


def test_log_is_quiet_by_default_and_names_the_poller(
    store: Store, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Errors go to the logger shmcache.poller, and to stderr only if somebody asked."""
    with caplog.at_level(logging.INFO, "shmcache.poller"):
        Run([OSError("down"), nodes("a")], store)
    assert [(record.name, record.levelname) for record in caplog.records] == [
        ("shmcache.poller", "WARNING")
    ]
    assert "get: OSError: down; next try in 7 s" in caplog.text
    assert capfd.readouterr().err == ""


# -- life cycle, with threads -----------------------------------------------------------------


class Pausing(Poller):
    """A poller that has stored one node, and waits out a pause that is longer than any test."""

    def __init__(self, store: Store) -> None:
        super().__init__(lambda: nodes("a"), 100 * DEADLINE, store, name="nodes")


def test_stop_ends_a_pause(store: Store) -> None:
    """stop() wakes the pause, waits for the thread, and may be called again."""
    poller = Pausing(store)
    poller.start()
    assert store.wait_for_sync(DEADLINE)
    assert "shmcache-poller-nodes" in [thread.name for thread in threading.enumerate()]
    assert poller.stop(DEADLINE)
    assert poller.stop()
    assert poller.stats() == PollerStats(polls=1)


@pytest.mark.parametrize("by_event", [True, False])
def test_a_run_in_the_callers_thread_ends(store: Store, by_event: bool) -> None:
    """run() returns after stop() or the caller's event, which stays the caller's."""
    poller, stop = Pausing(store), threading.Event()
    thread = threading.Thread(target=poller.run, args=(stop,))
    thread.start()
    assert store.wait_for_sync(DEADLINE)
    if by_event:
        stop.set()
    else:
        assert poller.stop(DEADLINE)
        assert not stop.is_set()
    thread.join(DEADLINE)
    assert not thread.is_alive()


def test_stop_before_start_calls_nothing(store: Store) -> None:
    """A poller that was stopped first never calls get_func."""
    for by_event in (False, True):
        poller, stop = Pausing(store), threading.Event()
        if by_event:
            stop.set()
        else:
            assert poller.stop()
        poller.run(stop)
        assert poller.stats() == PollerStats()
    assert not store.has_synced


def test_what_comes_after_stop_is_not_stored(store: Store) -> None:
    """stop() waits for a get_func that is under way, and its objects are left out."""
    asked, proceed = threading.Event(), threading.Event()

    def get() -> list[Any]:
        asked.set()
        assert proceed.wait(DEADLINE)
        return nodes("late")

    poller = Poller(get, 0, store)
    poller.start()
    assert asked.wait(DEADLINE)
    assert not poller.stop(0)
    proceed.set()
    assert poller.stop(DEADLINE)
    assert not store.has_synced


def test_get_func_may_stop_its_poller(store: Store) -> None:
    """stop() in the poller's own thread does not wait for itself."""
    stopped: list[bool] = []

    def get() -> list[Any]:
        stopped.append(poller.stop())
        return []

    poller = Poller(get, 0, store)
    poller.run()
    assert stopped == [False]
    assert poller.stopped
    assert poller.stop()


def test_a_round_cut_by_ctrl_c_ends_the_poller(store: Store) -> None:
    """KeyboardInterrupt is no error of a source: it leaves run(), and stop() knows of the end."""

    def get() -> list[Any]:
        raise KeyboardInterrupt

    poller = Poller(get, 0, store)
    with pytest.raises(KeyboardInterrupt):
        poller.run(threading.Event())
    assert poller.stop(0)


def test_context_manager_runs_once(store: Store) -> None:
    """The poller runs inside the with block, has ended after it, and cannot be run again."""
    poller = Pausing(store)
    assert not poller.stopped
    with poller:
        assert store.wait_for_sync(DEADLINE)
        assert not poller.stopped
        with pytest.raises(RuntimeError, match="'nodes' runs once"):
            poller.start()
    assert poller.stopped
    assert poller.stop(0)
    with pytest.raises(RuntimeError, match="runs once"):
        poller.run()


def test_run_needs_an_event(store: Store) -> None:
    """What is no event is refused before anything runs: the poller can still be run."""
    poller = Pausing(store)
    with pytest.raises(TypeError, match=r"stop_event must be a threading\.Event or None, not 3"):
        poller.run(3)  # type: ignore[arg-type]
    with poller:
        assert store.wait_for_sync(DEADLINE)


@pytest.mark.parametrize("period", [-1, float("nan"), float("inf"), 1e30])
def test_period_is_checked(store: Store, period: float) -> None:
    """A period that no clock can wait for is refused when the poller is made."""
    with pytest.raises(ValueError, match="period must be"):
        Poller(list, period, store)


def test_get_func_is_checked_and_gives_the_name(store: Store) -> None:
    """A get_func must be callable; a poller without a name is called after it."""
    not_callable: Any = []
    with pytest.raises(TypeError, match="get_func must be callable"):
        Poller(not_callable, 1, store)
    unfit: Any = "5"
    with pytest.raises(TypeError, match="period must be a number of seconds, not '5'"):
        Poller(nodes, unfit, store)
    with pytest.raises(TypeError, match=r"store must be a Store.*not '5'"):
        Poller(nodes, 1, unfit)
    assert Poller(nodes, 1, store).name == "nodes"
    assert Poller(functools.partial(nodes, "a"), 1, store).name == "partial"
    assert Poller(nodes, 1, store, name="mine").name == "mine"


# -- several processes ------------------------------------------------------------------------

ROUNDS = 200


def poll(store: Store) -> None:
    def get() -> list[dict[str, Any]]:
        nonlocal generation
        generation += 1
        if generation > ROUNDS:
            poller.stop()
            return []  # after stop, so not stored
        if generation % 3 == 0:
            raise OSError("down")
        return nodes(*(f"node-{i}" for i in range(1 + generation % 5)), generation=generation)

    generation = 0
    poller = Poller(get, 0, store)
    poller.run()
    assert poller.stats().errors == ROUNDS // 3


def read(name: str) -> None:
    with Store.attach(name) as store:
        assert store.wait_for_sync(DEADLINE)
        seen = 0
        while seen < ROUNDS:
            version = store.version
            objs = store.list()
            (generation,) = {obj["generation"] for obj in objs}
            assert len(objs) == 1 + generation % 5
            assert generation >= seen
            seen = generation
            if seen < ROUNDS:
                assert store.wait_for_change(version, DEADLINE) > version


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_one_process_polls_and_others_read(
    store: Store, method: str, run_all: Callable[[list[Any]], None]
) -> None:
    """Readers in two other processes see whole lists only, never an older after a newer one."""
    context = multiprocessing.get_context(method)
    readers = [context.Process(target=read, args=(store.name,)) for _ in range(2)]
    run_all([context.Process(target=poll, args=(store,)), *readers])
    assert {obj["generation"] for obj in store.list()} == {ROUNDS}
