"""Which of two resource versions of a Kubernetes API server is the later one.

By the rules that the server documents (API concepts, "Resource versions"; KEP-5504) and client-go
has as ``CompareResourceVersion``: versions of objects of one resource are decimal integers of any
length, without leading zeros. Other text may only be compared for equality: who sees it cannot
tell whether what it waits for is still to come.

May import: nothing of shmcache.
"""

from __future__ import annotations

__all__ = ["at_least", "is_comparable"]


def is_comparable(version: str) -> bool:
    """Whether ``version`` can be ordered.

    >>> [is_comparable(version) for version in ("42", "9" * 40, "", "0", "07", "a1-42", "\\u0664")]
    [True, True, False, False, False, False, False]
    """
    return version.isascii() and version.isdigit() and not version.startswith("0")


def at_least(version: str, wanted: str) -> bool:
    """Whether ``version`` is ``wanted`` or later; both must be comparable.

    >>> at_least("10", "9"), at_least("9", "10"), at_least("9", "9")
    (True, False, True)
    """
    return (len(version), version) >= (len(wanted), wanted)
