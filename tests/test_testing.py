"""The fixtures of shmcache.testing, in test sessions of users."""

from __future__ import annotations

import re

import pytest

from shmcache import list_arenas
from tests.running import ROOT

pytest_plugins = ["pytester"]

CONFTEST = 'pytest_plugins = ["shmcache.testing"]'


@pytest.fixture(autouse=True)
def user(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A user's folder of tests, which has asked for the fixtures."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeconftest(CONFTEST)
    return pytester


def run(user: pytest.Pytester, code: str, *options: str) -> pytest.RunResult:
    user.makepyfile(code)
    return user.runpytest_subprocess("-W", "error", "-p", "no:cacheprovider", *options)


def names(result: pytest.RunResult) -> list[str]:
    """The names that the tests have printed."""
    return re.findall(r"^name=(\S+)$", result.stdout.str(), re.MULTILINE)


def arenas() -> set[str]:
    return {arena.name for arena in list_arenas()}


def test_a_mirror_has_what_the_source_has(user: pytest.Pytester) -> None:
    """What the test does to the source is in the store once it has settled, also after the source
    has failed, and the reflector is a running one."""
    result = run(
        user,
        """
        import shmcache

        def pod(name, **fields):
            return {"metadata": {"name": name, "namespace": "default"}, **fields}

        def test_mirror(shmcache_mirror, shmcache_store, shmcache_source):
            assert shmcache_mirror.store is shmcache_store
            assert shmcache_mirror.source is shmcache_source
            assert shmcache_store.has_synced
            assert shmcache_store.reflector_status().alive
            shmcache_source.add(pod("a", n=1))
            shmcache_source.add(pod("b"))
            shmcache_mirror.settle()
            assert sorted(shmcache_store) == ["default/a", "default/b"]
            shmcache_source.disconnect()
            shmcache_source.update(pod("a", n=2))
            shmcache_source.delete("default/b")
            shmcache_mirror.settle()
            assert [obj["n"] for obj in shmcache_store.list()] == [2]
            shmcache_source.fail(shmcache.ApiError(500, "down"), on="watch")
            shmcache_source.expire()
            shmcache_source.add(pod("c"))
            shmcache_mirror.settle()
            assert sorted(shmcache_store) == ["default/a", "default/c"]

        def test_each_test_has_its_own(shmcache_mirror, shmcache_fifo, shmcache_workqueue):
            assert len(shmcache_mirror.store) == 0
            shmcache_workqueue.add("a")
            assert shmcache_workqueue.get(0) == "a"
            shmcache_fifo.add(pod("a"))
            assert shmcache_fifo.pop(0) == pod("a")
        """,
    )
    result.assert_outcomes(passed=2)


def test_what_does_not_settle_says_why(user: pytest.Pytester) -> None:
    """When the time is up the error names the keys that differ, and what the reflector is doing."""
    result = run(
        user,
        """
        def test_paused(shmcache_mirror):
            shmcache_mirror.source.pause()
            shmcache_mirror.source.add({"metadata": {"name": "web-0"}})
            try:
                shmcache_mirror.settle(timeout=0.01)
            finally:
                shmcache_mirror.source.resume()
        """,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*TimeoutError: after 0.01 s*differs*'web-0'*the reflector is watching*"]
    )


def test_fixtures_are_replaced_as_pytest_does(user: pytest.Pytester) -> None:
    """A store and a source of the user's own, under the same names, are what is mirrored."""
    result = run(
        user,
        """
        import pytest
        import shmcache
        from shmcache.sources.memory import MemorySource

        @pytest.fixture
        def shmcache_store(shmcache_name):
            by_node = {"node": lambda pod: [pod["node"]]}
            with shmcache.Indexer.create(shmcache_name("pods"), indexers=by_node) as store:
                yield store

        @pytest.fixture
        def shmcache_source():
            return MemorySource([{"metadata": {"name": "a"}, "node": "n1"}])

        def test_indexer(shmcache_mirror):
            assert shmcache_mirror.store.index_keys("node", "n1") == ["a"]
        """,
    )
    result.assert_outcomes(passed=1)


def test_names_are_unique_and_removed(user: pytest.Pytester) -> None:
    """No two names are equal; what has one is removed at the end, also what a process made that
    was killed, what was unlinked already, and what was never made."""
    result = run(
        user,
        """
        import multiprocessing, os, signal
        import pytest
        import shmcache

        def make(name):
            shmcache.Store.open(name, capacity="1MiB").add_raw("a", b"1")
            os.kill(os.getpid(), signal.SIGKILL)

        @pytest.mark.parametrize("again", range(2))
        def test_names(shmcache_name, again):
            killed, unlinked, never = map(shmcache_name, ["x", "x-y", "z"])
            child = multiprocessing.get_context("spawn").Process(target=make, args=(killed,))
            child.start()
            child.join()
            with shmcache.Store.attach(killed) as store:
                assert store.get_raw("a") == b"1"
            with shmcache.FIFO.create(unlinked, capacity="1MiB") as fifo:
                fifo.unlink()
            print()
            for name in (killed, unlinked, never):
                print(f"name={name}")
        """,
        "-s",
    )
    result.assert_outcomes(passed=2)
    assert len(set(names(result))) == 6
    assert arenas().isdisjoint(names(result))


LEAK = """
    import pytest
    import shmcache

    @pytest.fixture(scope="module")
    def kept():
        with shmcache.Store.create(capacity="1MiB") as store:
            yield store
            store.unlink()

    def test_leak(kept):
        with shmcache.Store.create(capacity="1MiB") as store:
            print(f"\\nname={store.name}")

    def test_whole(kept):
        kept.add_raw("a", b"1")
        with shmcache.Store.create(capacity="1MiB") as store:
            store.unlink()
"""


def test_an_arena_that_is_left_is_an_error(user: pytest.Pytester) -> None:
    """A test that leaves an arena has an error that names it, and it is removed; arenas of fixtures
    of the module, and of tests that unlink, are none."""
    result = run(user, LEAK, "-s")
    result.assert_outcomes(passed=2, errors=1)
    (name,) = names(result)
    result.stdout.fnmatch_lines([f"*this test left in /dev/shm: {name} (removed now)*"])
    result.stdout.fnmatch_lines(["ERROR *::test_leak*"])
    assert name not in arenas()


def test_fixtures_of_a_session_are_checked_at_its_end(user: pytest.Pytester) -> None:
    """An arena that a fixture of a wider scope leaves is an error at the end of the session."""
    result = run(
        user,
        """
        import pytest
        import shmcache

        @pytest.fixture(scope="session")
        def left():
            with shmcache.Store.create(capacity="1MiB") as store:
                yield store

        def test_uses_it(left):
            print(f"\\nname={left.name}")
        """,
        "-s",
    )
    result.assert_outcomes(passed=1, errors=1)
    (name,) = names(result)
    result.stdout.fnmatch_lines([f"*fixtures of this session left in*{name}*"])
    assert name not in arenas()


def test_side_by_side(user: pytest.Pytester) -> None:
    """Under pytest-xdist no test process takes the arenas of another for its own."""
    pytest.importorskip("xdist", reason="needs pytest-xdist")
    result = run(
        user,
        """
        import pytest
        import shmcache

        @pytest.mark.parametrize("number", range(12))
        def test_mirror(shmcache_mirror, shmcache_fifo, number):
            shmcache_mirror.source.add({"metadata": {"name": f"pod-{number}"}})
            shmcache_mirror.settle()
            assert list(shmcache_mirror.store) == [f"pod-{number}"]
        """,
        "-n2",
    )
    result.assert_outcomes(passed=12)


def test_without_asking_nothing_is_there(user: pytest.Pytester) -> None:
    """Who has not asked for the fixtures has none of them, and nothing is looked for."""
    user.makeconftest("")
    result = run(user, "def test_it(shmcache_store): pass")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'shmcache_store' not found*"])
