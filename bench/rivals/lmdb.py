"""LMDB, the memory-mapped B+ tree, on /dev/shm: durable settings off, for it is not asked to be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb


class NewTransactions:
    """Each get in a read transaction of its own, which sees the last commit."""

    objects = False

    def __init__(self, env: Any) -> None:
        self.env = env

    def fill(self, pairs: Mapping[str, bytes]) -> None:
        with self.env.begin(write=True) as txn, txn.cursor() as cursor:
            cursor.putmulti((key.encode(), data) for key, data in sorted(pairs.items()))

    def rewrite(self, pairs: Mapping[str, bytes]) -> None:
        """All content anew in one transaction, atomic for readers."""
        with self.env.begin(write=True) as txn:
            txn.drop(self.env.open_db(None, txn), delete=False)
            with txn.cursor() as cursor:
                cursor.putmulti(
                    ((key.encode(), data) for key, data in sorted(pairs.items())), append=True
                )

    def put(self, pair: tuple[str, bytes]) -> None:
        with self.env.begin(write=True) as txn:
            txn.put(pair[0].encode(), pair[1])

    def get(self, key: str) -> bytes | None:
        with self.env.begin() as txn:
            data: bytes | None = txn.get(key.encode())
            return data


class HeldTransaction(NewTransactions):
    """All gets in one read transaction: nothing that is written later is seen."""

    def fill(self, pairs: Mapping[str, bytes]) -> None:
        super().fill(pairs)
        self._get = self.env.begin().get

    def get(self, key: str) -> bytes | None:
        data: bytes | None = self._get(key.encode())
        return data


@contextmanager
def _environment(where: Path) -> Iterator[Any]:
    env = lmdb.open(
        str(where / "lmdb"),
        map_size=8 << 30,
        sync=False,
        metasync=False,
        writemap=True,
        readahead=False,
        meminit=False,
        max_spare_txns=16,
    )
    try:
        yield env
    finally:
        env.close()


@contextmanager
def new_transactions(where: Path) -> Iterator[NewTransactions]:
    with _environment(where) as env:
        yield NewTransactions(env)


@contextmanager
def held_transaction(where: Path) -> Iterator[HeldTransaction]:
    with _environment(where) as env:
        yield HeldTransaction(env)
