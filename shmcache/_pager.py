"""Reads a whole list, in the pages that the server makes of it.

After client-go's ``tools/pager``. May import: ``_errors``, ``_types``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from shmcache._errors import ExpiredError
from shmcache._types import ListOptions, ListResult

__all__ = ["list_pages"]


def list_pages(
    list_func: Callable[[ListOptions], ListResult[Any]],
    version: str,
    limit: int,
    admit: Callable[[Iterable[Any]], list[Any]],
    is_over: Callable[[], bool],
) -> tuple[list[Any], str, bool]:
    """Return what ``admit`` makes of all items, the list's version, and whether it was paged.

    A continue token that expires between pages leads to one list without limit at ``version``.
    Once ``is_over()``, no further page is asked for, and the items are only part of the list.
    """

    def one(options: ListOptions) -> tuple[list[Any], str, str]:
        # A frame of its own, so that a page as it came is gone before the next one comes.
        page = list_func(options)
        return admit(page.items), page.resource_version, page.continue_token

    items, listed_version, token = one(ListOptions(version, limit))
    paged = token != ""
    while token and not is_over():
        try:
            # The token holds the version of the first page, which makes the list one.
            more, _, token = one(ListOptions("", limit, token))
        except ExpiredError:
            items.clear()  # memory for the whole list, which comes now
            items, listed_version, _ = one(ListOptions(version, 0))
            break
        items += more
    return items, listed_version, paged
