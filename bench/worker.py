"""Worker processes whose memory is measured: interpreters of their own, as a server would start.

`python -m bench.worker KIND ARGUMENTS` does what KIND says, prints a line and waits for the end of
its standard input.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["workers"]


def interpreter() -> object:
    """Nothing at all."""
    return None


def imported() -> object:
    import shmcache

    return shmcache


def attached(name: str, key: str) -> object:
    """A worker that waits for work: it has looked one entry up."""
    from shmcache import Store

    store = Store.attach(name)
    return store, store[key]


def read(name: str) -> object:
    """A worker that has read the bytes of every entry."""
    from shmcache import Store

    store = Store.attach(name)
    for key in store:
        store.get_raw(key)
    return store


def listed(name: str) -> object:
    """A worker that has all objects at once, decoded."""
    from shmcache import Store

    store = Store.attach(name)
    return store, store.list()


def informer(url: str, count: str) -> object:
    from bench.rivals.kubernetes import started_informer

    return started_informer(url, int(count))


KINDS: dict[str, Callable[..., Any]] = {
    kind.__name__: kind for kind in (interpreter, imported, attached, read, listed, informer)
}


@contextlib.contextmanager
def workers(number: int, kind: str, *arguments: str) -> Iterator[list[int]]:
    """The process ids of workers that are all ready, started at once."""
    command = [sys.executable, "-m", "bench.worker", kind, *arguments]
    with contextlib.ExitStack() as stack:
        processes = []
        for _ in range(number):
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            stack.enter_context(process)  # waits for it, after the next line has ended it
            stack.callback(process.kill)
            processes.append(process)
        for process in processes:
            assert process.stdout is not None
            if not process.stdout.readline():
                raise RuntimeError(f"a worker ({kind}) ended with {process.wait()}")
        yield [process.pid for process in processes]


def main() -> None:
    kept = KINDS[sys.argv[1]](*sys.argv[2:])
    print("ready", flush=True)
    sys.stdin.read()
    del kept


if __name__ == "__main__":
    main()
