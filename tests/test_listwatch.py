"""A source from two functions, and the reading of Kubernetes lists and statuses."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from shmcache._errors import ApiError, ExpiredError
from shmcache._ports import ListerWatcher
from shmcache._types import Event, ListOptions, ListResult, WatchOptions
from shmcache.listwatch import ListWatch, error_from_status, read_list


def test_calls_go_through_as_they_are() -> None:
    """Options and results pass through a ListWatch untouched, one call each."""
    seen: list[object] = []
    result: ListResult[Any] = ListResult([], "7")
    events = [Event("ADDED", {"a": 1})]

    def list_func(options: ListOptions) -> ListResult[Any]:
        seen.append(options)
        return result

    def watch_func(options: WatchOptions) -> list[Event[Any]]:
        seen.append(options)
        return events

    source = ListWatch(list_func, watch_func)
    assert isinstance(source, ListerWatcher)
    assert source.list(ListOptions("0", 500)) is result
    assert source.watch(WatchOptions("42", 300)) is events
    assert seen == [ListOptions("0", 500), WatchOptions("42", 300)]


def test_errors_go_through_as_they_are() -> None:
    """What a function raises reaches the caller as the same exception."""
    error = ExpiredError()

    def fail(options: object) -> Any:
        raise error

    source = ListWatch(fail, fail)
    for call in (lambda: source.list(ListOptions()), lambda: source.watch(WatchOptions())):
        with pytest.raises(ExpiredError) as caught:
            call()
        assert caught.value is error


@pytest.mark.parametrize("arguments", [(None, print), (print, None), (print, "watch")])
def test_a_missing_function_is_named(arguments: tuple[Any, Any]) -> None:
    """A function that cannot be called is a TypeError that says which one."""
    name = "list_func" if arguments[0] is None else "watch_func"
    with pytest.raises(TypeError, match=name):
        ListWatch(*arguments)


def test_what_else_a_source_can_do() -> None:
    """streams_lists is kept, false unless said; interrupt() calls its function if there is one."""
    calls: list[str] = []
    plain = ListWatch(lambda options: ListResult([]), lambda options: [])
    assert not plain.streams_lists
    plain.interrupt()
    able = ListWatch(
        plain.list, plain.watch, streams_lists=True, interrupt_func=lambda: calls.append("called")
    )
    assert able.streams_lists
    able.interrupt()
    assert calls == ["called"]
    with pytest.raises(TypeError, match="interrupt_func"):
        ListWatch(plain.list, plain.watch, interrupt_func="stop")  # type: ignore[arg-type]


def test_list_watch_is_frozen() -> None:
    """The functions of a ListWatch cannot be exchanged."""
    source = ListWatch(lambda options: ListResult([]), lambda options: [])
    with pytest.raises(dataclasses.FrozenInstanceError):
        source.list_func = source.list_func  # type: ignore[misc]


def test_list_result_is_taken_as_it_is() -> None:
    """A ListResult needs no reading."""
    result = ListResult([1, 2], "7", "token")
    assert read_list(result) is result


def test_items_get_the_kind_of_their_list() -> None:
    """Items of a PodList become v1 Pods, kind first, and the document is not changed."""
    item = {"metadata": {"name": "a"}}
    document = {
        "kind": "PodList",
        "apiVersion": "v1",
        "metadata": {"resourceVersion": "7", "continue": "next"},
        "items": [item],
    }
    result = read_list(document)
    assert result == ListResult(
        [{"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a"}}], "7", "next"
    )
    assert list(result.items[0]) == ["kind", "apiVersion", "metadata"]
    assert item == {"metadata": {"name": "a"}}


def test_items_that_name_their_kind_keep_it() -> None:
    """Custom resources and mixed lists carry apiVersion and kind in each item."""
    item = {"apiVersion": "example.org/v1", "kind": "Widget", "metadata": {}}
    for kind in ("WidgetList", "List"):
        document: dict[str, Any] = {
            "kind": kind,
            "apiVersion": "v1",
            "metadata": {},
            "items": [item],
        }
        assert read_list(document).items == [item]


def test_null_items_are_an_empty_list() -> None:
    """Go writes an empty slice as null."""
    document: dict[str, Any] = {"kind": "PodList", "apiVersion": "v1", "metadata": {}}
    document["items"] = None
    assert read_list(document) == ListResult([], "", "")


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {"items": []},
        {"metadata": {}},
        {"kind": "Table", "metadata": {}, "rows": []},
    ],
)
def test_what_is_no_list_is_refused(document: object) -> None:
    """Anything but a list with metadata is a TypeError."""
    with pytest.raises(TypeError, match="list"):
        read_list(document)


def test_status_410_is_expired() -> None:
    """The code, the reason Expired or Gone, or the HTTP status alone make an ExpiredError."""
    for status, code in [
        ({"code": 410, "message": "old"}, 0),
        ({"reason": "Expired", "message": "old"}, 0),
        ({"reason": "Gone", "message": "old"}, 0),
        ({"message": "old"}, 410),
    ]:
        error = error_from_status(status, code)
        assert isinstance(error, ExpiredError)
        assert error.message == "old"


def test_status_becomes_an_api_error() -> None:
    """Code, message, causes and the seconds to wait are all in the error."""
    error = error_from_status(
        {
            "code": 504,
            "message": "Timeout",
            "details": {
                "retryAfterSeconds": 3,
                "causes": [{"message": "Too large resource version"}, {"message": "Timeout"}, 7],
            },
        }
    )
    assert type(error) is ApiError
    assert (error.status, error.retry_after) == (504, 3.0)
    assert error.message == "Timeout (Too large resource version)"


def test_header_wins_over_the_status() -> None:
    """The HTTP status and the Retry-After header are nearer the truth than the body."""
    error = error_from_status({"code": 500, "details": {"retryAfterSeconds": 3}}, 429, 9.0)
    assert (error.status, error.message, error.retry_after) == (429, "no message", 9.0)


@pytest.mark.parametrize("status", [None, "boom", 7, []])
def test_what_is_no_status_still_is_an_error(status: object) -> None:
    """An ERROR event with any object is an ApiError that shows it."""
    error = error_from_status(status)
    assert error.status == 0
    assert "not a Status" in error.message
