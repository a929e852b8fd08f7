"""The log: quiet by default, one logger a module, fields for pipelines, no secrets."""

from __future__ import annotations

import ast
import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import shmcache
from shmcache import ApiError, ListWatch, Poller, Reflector, Store
from shmcache._logging import get_logger
from shmcache.sources.memory import MemorySource
from tests.procs.control import until

PACKAGE = Path(shmcache.__file__).parent
LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}


def log_calls(path: Path) -> list[ast.Call]:
    """The calls of a module that log something."""
    return [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in LEVELS
        and ast.unparse(node.func.value) in {"_log", "self._log", "log"}
    ]


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if "demo" not in path.parts]


def test_nothing_is_formatted_that_is_not_logged() -> None:
    """Every message is a constant with its values beside it, put together only for a handler."""
    calls = [(path, call) for path in modules() for call in log_calls(path)]
    assert len(calls) > 15
    for path, call in calls:
        assert isinstance(call.func, ast.Attribute)
        message = call.args[1 if call.func.attr == "log" else 0]
        assert isinstance(message, ast.Constant), f"{path}:{call.lineno}"
        count = str(message.value).replace("%%", "").count("%")
        rest = len(call.args) - call.args.index(message) - 1
        assert count == rest, f"{path}:{call.lineno}"


def test_every_logger_is_that_of_its_module() -> None:
    """A module that logs does so below its own name, by way of _logging."""
    found = 0
    for path in modules():
        text = path.read_text()
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        for node in ast.walk(ast.parse(text)):
            if not (isinstance(node, ast.Call) and "get" in ast.unparse(node.func)):
                continue
            called = ast.unparse(node.func)
            if called == "logging.getLogger":
                # What the library logs by, and what a command configures.
                assert name in ("shmcache._logging", "shmcache.cli._log")
            if called == "get_logger":
                found += 1
                assert ast.unparse(node.args[0]) in {"__name__", repr(name)}, path
    assert found >= 5


def test_nothing_is_printed_by_default() -> None:
    """A warning of any module goes nowhere in a program that configures no logging."""
    code = (
        "from shmcache._logging import get_logger\n"
        "for name in ('shmcache.reflector', 'shmcache.sources.directory', 'shmcache.new'):\n"
        "    get_logger(name).warning('hidden')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_fields_of_the_logger_and_of_the_call(caplog: pytest.LogCaptureFixture) -> None:
    """A record has the fields of its logger and those of the call, and the call's win."""
    log = get_logger("shmcache.test", arena="a", resource="r")
    log.warning("one %d", 1, extra={"status": 410, "arena": "b"})
    log.warning("two")
    first, second = caplog.records
    assert (first.arena, first.resource, first.status) == ("b", "r", 410)  # type: ignore[attr-defined]
    assert (second.arena, second.resource) == ("a", "r")  # type: ignore[attr-defined]
    assert (first.getMessage(), first.funcName) == (
        "one 1",
        "test_fields_of_the_logger_and_of_the_call",
    )


def fields(record: logging.LogRecord) -> tuple[Any, ...]:
    return tuple(
        record.__dict__.get(name) for name in ("levelname", "arena", "resource", "status", "error")
    )


def run_reflector(store: Store, listed: Callable[[Any], Any]) -> None:
    """A reflector until its first error has been counted."""
    reflector: Reflector

    def wait(_: float) -> bool:
        reflector._stopping.set()
        return True

    source = ListWatch(listed, lambda _: [])
    reflector = Reflector(source, "v1/Pod", store, name="pods", _wait=wait)
    reflector.run()


@pytest.mark.parametrize(
    ("error", "level", "status"),
    [
        (ApiError(403, "forbidden"), "WARNING", 403),
        (shmcache.ExpiredError(), "INFO", 410),
        (OSError("unplugged"), "WARNING", 0),
    ],
)
def test_a_failed_list(
    store: Store, caplog: pytest.LogCaptureFixture, error: Exception, level: str, status: int
) -> None:
    """The record of a failed list says whose it was, and the HTTP status where there was one."""

    def listed(_: Any) -> Any:
        raise error

    with caplog.at_level(logging.INFO, "shmcache"):
        run_reflector(store, listed)
    record = caplog.records[-1]
    assert record.name == "shmcache.reflector"
    assert fields(record) == (level, store.name, "v1/Pod", status, type(error).__name__)
    assert record.getMessage().startswith("pods: ")
    store.unlink()


def test_a_dropped_object(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """What is turned away is a record with the arena, and without the content."""
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "s", "resourceVersion": "1"},
        "data": "hush",
    }
    with caplog.at_level(logging.INFO, "shmcache"):
        run_reflector(store, lambda _: {"metadata": {"resourceVersion": "1"}, "items": [secret]})
    record = caplog.records[0]
    assert fields(record)[:3] == ("WARNING", store.name, "v1/Pod")
    assert "hush" not in caplog.text
    store.unlink()


def test_lists_and_watches_at_debug(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """At DEBUG each list and each watch is one record; no event is."""
    source = MemorySource()
    with (
        caplog.at_level(logging.DEBUG, "shmcache"),
        Reflector(source, None, store, name="pods") as reflector,
    ):
        assert store.wait_for_sync(30)
        for i in range(20):
            source.add({"metadata": {"name": f"pod-{i}"}})
        until(lambda: len(store) == 20 and reflector.stats().events >= 20)
    messages = [record.getMessage() for record in caplog.records]
    assert len([m for m in messages if "objects at version" in m]) == 1
    assert len([m for m in messages if "watching from version" in m]) == 1
    assert not [m for m in messages if "pod-1" in m]
    store.unlink()


def test_a_takeover(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """A standby that takes over says so at INFO."""
    with (
        caplog.at_level(logging.INFO, "shmcache"),
        Reflector(MemorySource(), None, store, name="pods", standby=True),
    ):
        assert store.wait_for_sync(30)
    assert [fields(r)[:2] for r in caplog.records] == [("INFO", store.name)]
    assert "taking over" in caplog.text
    store.unlink()


def test_a_poller(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """The record of a failed round has the arena, the function and the error."""

    def fetch() -> Any:
        poller.stop()
        raise OSError("down")

    poller = Poller(fetch, 7.0, store)
    poller.run()
    assert [fields(r) for r in caplog.records] == [
        ("WARNING", store.name, "fetch", None, "OSError")
    ]
    store.unlink()
