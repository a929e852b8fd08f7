"""A scheduler made of several processes that share one cache and one queue.

::

    API server ──watch──▶ mirror ──▶ nodes, bound pods (Store), unbound pods (FIFO)
        ▲                                  │
        └──────────── bind ──────── worker 1 … N

One process watches; the workers read its Stores and pop from its FIFO in shared memory. A
generator creates the load. The supervisor, in this file, starts all of them, starts again what
dies, puts pods back that were popped and never bound, and checks the outcome against the
server's own list.

May import: the public surface, ``demo``.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from typing import Any

from shmcache import FIFO, ApiError, Store
from shmcache.demo._api import Api, Endpoint
from shmcache.demo._display import Display, Progress
from shmcache.demo._messages import Message
from shmcache.demo._mirror import Arenas, mirror
from shmcache.demo._report import Ledger, Report
from shmcache.demo._worker import work
from shmcache.demo._workload import RUN_LABEL, generate
from shmcache.demo.apiserver import ApiServer

__all__ = ["DemoError", "DemoOptions", "run_demo"]

_TICK = 0.05
"""Seconds between two looks at what the children have said."""

_START_SECONDS = 60.0
_IDLE_SECONDS = 1.0
"""Without any message for this long, the supervisor asks the server what is still unbound."""
_STALL_SECONDS = 60.0
"""Without any message for this long, the run is given up."""
_MOST_RESTARTS = 20


class DemoError(Exception):
    """The demo cannot go on: its processes keep dying, or do not start."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What to run: numbers of ``pods``, ``nodes`` and ``workers``, each at least 1.

    ``kubeconfig``: path of a file that names the cluster to use, ``""`` for the embedded
    server. ``namespace``: for the pods, ``""`` for one of the run's own.
    """

    pods: int
    nodes: int
    workers: int
    kubeconfig: str = ""
    namespace: str = ""


def run_demo(options: DemoOptions, display: Display) -> Report:
    """Run the demo from start to end and return its report.

    All processes, arenas and objects in the cluster that it made are gone afterwards, also
    when it raises: :class:`DemoError`, ``KeyboardInterrupt``, or what the client raises when
    the cluster cannot be reached.
    """
    run = f"{RUN_LABEL}-{uuid.uuid4().hex[:8]}"
    with contextlib.ExitStack() as stack:
        # Entered first, so left last: what is cleaned up inside is cleaned up undisturbed.
        stack.enter_context(_restored_interrupt())
        if options.kubeconfig:
            endpoint = Endpoint(kubeconfig=options.kubeconfig)
        else:
            endpoint = Endpoint(url=stack.enter_context(ApiServer()).url)
        api = endpoint.connect()
        namespace = stack.enter_context(_namespace(api, options.namespace, run))
        arenas = Arenas(*(f"{run}-{part}" for part in ("nodes", "bound", "queue")))
        capacity = _capacity()
        nodes = stack.enter_context(_unlinked(Store.create(arenas.nodes, capacity=capacity)))
        bound = stack.enter_context(_unlinked(Store.create(arenas.bound, capacity=capacity)))
        queue = stack.enter_context(_unlinked(FIFO.create(arenas.queue, capacity=capacity)))
        supervisor = _Supervisor(display, queue, Ledger(options.pods, options.workers))
        stack.callback(supervisor.stop)
        stack.callback(signal.signal, signal.SIGINT, signal.SIG_IGN)

        display.note(f"run {run}")
        supervisor.start("mirror", mirror, endpoint, namespace, run, arenas)
        supervisor.wait_until(
            lambda: nodes.has_synced and bound.has_synced,
            "the mirror has not listed the cluster",
        )
        for number in range(options.workers):
            supervisor.start(f"worker {number}", work, endpoint, arenas, number=number)
        supervisor.wait_until(
            lambda: len(supervisor.ready) == options.workers, "the workers have not started"
        )
        supervisor.start(
            "generator", generate, endpoint, namespace, run, options.pods, options.nodes
        )
        selection = {"namespace": namespace, "label_selector": f"{RUN_LABEL}={run}"}
        supervisor.watch_over(bound, lambda: api.list_all("pods", **selection))

        arena_stats = [store.stats() for store in (nodes, bound, queue)]
        return supervisor.ledger.report(
            api.list_all("pods", **selection),
            api.list_all("nodes", label_selector=selection["label_selector"]),
            restarts=supervisor.restarts,
            arena_bytes=sum(stats.committed_bytes for stats in arena_stats),
            arena_used_bytes=sum(stats.used_bytes for stats in arena_stats),
            api_server="kubeconfig" if options.kubeconfig else "embedded",
        )


@dataclass(eq=False, slots=True)
class _Child:
    """A running process, how to start it again, and the pipe that it reports through."""

    name: str
    main: Callable[..., None]
    arguments: tuple[Any, ...]
    number: int
    process: Any
    receiver: connection.Connection


def _capacity() -> int:
    """Of each arena: 1 GiB, or a quarter of /dev/shm where that is less (Docker has 64 MB)."""
    vfs = os.statvfs("/dev/shm")
    return min(1 << 30, (vfs.f_blocks * vfs.f_frsize or 4 << 30) // 4)


class _Supervisor:
    """Starts the processes, hears their reports, and replaces those that die."""

    def __init__(self, display: Display, queue: FIFO, ledger: Ledger) -> None:
        self.ledger = ledger
        self.restarts = 0
        self.ready: set[int] = set()
        """Numbers of the workers that pop."""
        self._display = display
        self._queue = queue
        self._children: list[_Child] = []
        # A fork server imports the client once for all workers, and unlike a plain fork it
        # holds no thread and no lock of this process.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(
            ["shmcache.demo._mirror", "shmcache.demo._worker", "kubernetes.client.api_client"]
        )

    def start(
        self, name: str, main: Callable[..., None], *arguments: Any, number: int = -1
    ) -> None:
        """Start a process; all but the mirror get the pipe to report through."""
        receiver, sender = self._context.Pipe(duplex=False)
        given = arguments if main is mirror else (*arguments, sender)
        process = self._context.Process(target=main, args=given, name=name, daemon=True)
        # Ctrl-C reaches every process of the terminal, and only this one shall act on it: the
        # fork server, which the first child brings up, and all its children inherit the block.
        resource_tracker.ensure_running()  # it would lift the block while it starts
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
            # Before the block is lifted: an interrupt must find the child to end it.
            self._children.append(_Child(name, main, arguments, number, process, receiver))
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        sender.close()
        self._display.note(f"{name}: pid {process.pid}")

    def wait_until(self, condition: Callable[[], bool], complaint: str) -> None:
        """Look after the children until ``condition`` holds; :class:`DemoError` if it does not."""
        deadline = time.monotonic() + _START_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise DemoError(f"{complaint} after {_START_SECONDS:.0f} s")
            self._listen()

    def watch_over(self, bound: Store, list_pods: Callable[[], list[Any]]) -> None:
        """Return when every pod is bound, or when nothing has moved for too long."""
        events, moved, looked = self.ledger.events, time.monotonic(), time.monotonic()
        while True:
            self._listen()
            self._show(bound)
            now = time.monotonic()
            if self.ledger.events != events:
                events, moved, looked = self.ledger.events, now, now
            elif now - moved > _STALL_SECONDS:
                self._display.note(f"nothing has moved for {_STALL_SECONDS:.0f} s: giving up")
                return
            elif now - looked > _IDLE_SECONDS:
                looked = now
                if not self._queue.qsize() and self._all_bound(list_pods):
                    return
            if self.ledger.bound.total() >= self.ledger.pods:
                # The last binding is on its way to the Store; the figures are to include it.
                if len(bound) >= self.ledger.pods:
                    return
                bound.wait_for_change(bound.version, timeout=_TICK)

    def _all_bound(self, list_pods: Callable[[], list[Any]]) -> bool:
        """Queue again what nobody works on; return whether every pod has its node.

        Called when no worker reports anything and the queue is empty: a pod that is unbound
        then was popped by a process that died, or its creation has not been seen yet.
        """
        try:
            pods = list_pods()
        except ApiError as error:
            self._display.note(f"cannot list the pods, trying again: {error}")
            return False
        unbound = [pod for pod in pods if not pod["spec"].get("nodeName")]
        added = [pod for pod in unbound if self._queue.add_if_not_present(pod)]
        if added:
            self.ledger.note_put_back(added)
            self._display.note(f"put back {len(added)} pods that nobody works on")
        return not unbound and len(pods) == self.ledger.pods

    def _listen(self) -> None:
        """Wait for a tick or a death; take in what the children say and replace the dead.

        A tick gathers many messages: waking up for each would cost as much as a worker.
        """
        ended = connection.wait([child.process.sentinel for child in self._children], _TICK)
        for child in self._children:
            self._receive(child)
        for child in [child for child in self._children if child.process.sentinel in ended]:
            self._replace(child)

    def _receive(self, child: _Child) -> None:
        try:
            while not child.receiver.closed and child.receiver.poll():
                message: Message = child.receiver.recv()
                if message.kind == "ready":
                    self.ready.add(child.number)
                self.ledger.record(message, child.number)
        except (EOFError, OSError):  # it ended, perhaps in the middle of a message
            child.receiver.close()

    def _replace(self, child: _Child) -> None:
        self._receive(child)
        child.receiver.close()
        child.process.join()
        self._children.remove(child)
        if child.main is generate and child.process.exitcode == 0:
            return
        self.restarts += 1
        if self.restarts > _MOST_RESTARTS:
            raise DemoError(f"processes keep dying, last {child.name}")
        if child.main is mirror:
            self.ledger.relists += 1
        self._display.note(
            f"{child.name} died (exit code {child.process.exitcode}): starting it again"
        )
        self.start(child.name, child.main, *child.arguments, number=child.number)

    def _show(self, bound: Store) -> None:
        self._display.update(
            Progress(
                pods=self.ledger.pods,
                created=self.ledger.created,
                queued=self._queue.qsize(),
                bound=len(bound),
                per_worker=tuple(
                    self.ledger.per_worker[number] for number in range(self.ledger.workers)
                ),
            )
        )

    def stop(self) -> None:
        """End every process; the arenas need no farewell."""
        for child in self._children:
            child.process.terminate()
        for child in self._children:
            child.process.join(timeout=5)
            if child.process.is_alive():
                child.process.kill()
                child.process.join()
            child.receiver.close()


@contextlib.contextmanager
def _restored_interrupt() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def _unlinked(arena: Any) -> Iterator[Any]:
    try:
        yield arena
    finally:
        arena.unlink()
        arena.close()


@contextlib.contextmanager
def _namespace(api: Api, name: str, run: str) -> Iterator[str]:
    """Make the namespace for the pods, and delete afterwards what the run has made.

    A namespace that was there before stays, and so does everything in it without our label.
    """
    namespace = name or run
    made = True
    try:
        api.post("/api/v1/namespaces", {"metadata": {"name": namespace}})
    except ApiError as error:
        if error.status != 409:
            raise
        made = False
    try:
        yield namespace
    finally:
        label = f"{RUN_LABEL}={run}"
        pods = f"/api/v1/namespaces/{namespace}/pods"
        api.delete(pods, labelSelector=label, gracePeriodSeconds="0")
        api.delete("/api/v1/nodes", labelSelector=label)
        if made:
            api.delete(f"/api/v1/namespaces/{namespace}")
