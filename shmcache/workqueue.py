"""WorkQueue: keys that something is to be done about, for the worker processes of one machine.

The keys, who works on which, what waits for its time, how often each has failed and the bucket of
tokens are in the segment; the delays are computed here. May import: ``_arena``, ``_core``,
``_errors``, ``_handle``, ``_ports``, ``_types``, ``claims``, ``ratelimiters``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import TracebackType
from typing import ClassVar, Self

from shmcache import _arena
from shmcache._core import Token
from shmcache._errors import ClaimLostError, LockTimeoutError
from shmcache._handle import _FOREVER, Handle, _at_least_zero, _attempts, _checked
from shmcache._ports import PriorityFunc
from shmcache._types import DeadLetter, Delayed, InFlight
from shmcache.claims import DONE, FAILED, RELEASED, checked_lease
from shmcache.ratelimiters import DEFAULT, RateLimiter

__all__ = ["WorkQueue"]

# Key, payload (empty), what the core knows the claim by, failures before: in a list that the frame
# of the caller owns, as in fifo.py.
_Claimed = tuple[str, bytes, Token, int]

_OPEN, _SHUT_DOWN = 0, 1  # of Arena.queue_state

# How often shutdown_with_drain looks for workers that have died.
_LOOK_SECONDS = 0.1


class WorkQueue(Handle):
    """A queue of keys for workers in any number of processes: one key, one worker at a time.

    A key says that something is to be done about an object, and not what: the worker looks up how
    things are (in a :class:`~shmcache.Store`, say). So however often it is added while it is
    queued, it is one piece of work. Added while a worker has it, it is handed out again after that
    worker's :meth:`done`, once. Keys come in the order in which they were queued, the urgent ones
    first if there are priorities.

    The loop of a worker is::

        while True:
            with queue.work() as key:
                reconcile(key)

    A worker that is killed, however that happens, gives back what it had, by the word of the kernel
    and without a timeout: somebody else gets it within some 100 ms, with one failure more
    (:meth:`num_requeues`). Delays, failures and the limiter's bucket are in the segment: they are
    those of all processes, and outlive every one of them. Delays are by the monotonic clock of the
    machine, to some milliseconds.

    It is client-go's ``TypedRateLimitingInterface`` (``util/workqueue``) with its methods, made for
    processes. Solves: controllers, which bring things into the state that they should have, again
    and again. Not for payloads: those are a :class:`~shmcache.FIFO`'s.

    >>> queue = WorkQueue.create()
    >>> queue.unlink()
    >>> [queue.add(key) for key in ("web-0", "web-1", "web-0")], len(queue)
    ([True, True, True], 2)
    >>> with queue.work() as key:
    ...     print(key, queue.add(key), len(queue))
    web-0 True 1
    >>> queue.get(), queue.get()
    ('web-1', 'web-0')
    >>> queue.done("web-0")
    """

    _kind: ClassVar[str] = "WorkQueue"

    _limiter: RateLimiter
    _taken: dict[str, Token]
    """What get gave out and done has not ended. With its last reference a claim is released."""

    # --- life cycle -----------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        name: str | None = None,
        *,
        rate_limiter: RateLimiter | None = None,
        priority_func: PriorityFunc | None = None,
        capacity: int | str = "64MiB",
        max_attempts: int = 0,
        lock_timeout: float = 10.0,
        mode: int = 0o600,
    ) -> Self:
        """Make a new arena and return a writable handle of it.

        ``rate_limiter`` says how long a failed key waits; None for what client-go does by default:
        5 ms, doubled by each failure up to 1000 s, and over all keys 10 failures a second after the
        first 100. ``priority_func`` gives the priority of a key that this handle adds, as for
        :meth:`FIFO.create <shmcache.FIFO.create>`; what is queued already becomes more urgent by
        it, never less. ``max_attempts``: after so many failures a key is a dead letter, by the end
        of :meth:`work` or the death of a worker, not by :meth:`add_rate_limited`; 0 for never; it
        belongs to the arena, whoever attaches. ``name``, ``capacity`` (some 250 bytes a key),
        ``lock_timeout`` and ``mode`` as for :meth:`Store.create <shmcache.Store.create>`, and so
        are the errors.
        """
        self = cls._prepare(
            True,
            rate_limiter,
            priority_func,
            lock_timeout,
            mode=mode,
            max_attempts=_attempts(max_attempts),
        )
        self._create(name, capacity)
        return self

    @classmethod
    def attach(
        cls,
        name: str,
        *,
        writable: bool = True,
        timeout: float = 0.0,
        rate_limiter: RateLimiter | None = None,
        priority_func: PriorityFunc | None = None,
        lock_timeout: float = 10.0,
        owner: int | str | None = None,
    ) -> Self:
        """Return a handle of an existing arena, waiting up to ``timeout`` seconds for it.

        As :meth:`Store.attach <shmcache.Store.attach>`, but writable unless said otherwise: to get
        is to write. ``rate_limiter`` and ``priority_func`` are those of this handle: give all
        processes the same.
        """
        self = cls._prepare(writable, rate_limiter, priority_func, lock_timeout, owner=owner)
        self._attach(name, writable, timeout)
        return self

    @classmethod
    def open(
        cls,
        name: str,
        *,
        rate_limiter: RateLimiter | None = None,
        priority_func: PriorityFunc | None = None,
        capacity: int | str = "64MiB",
        max_attempts: int = 0,
        lock_timeout: float = 10.0,
        mode: int = 0o600,
        owner: int | str | None = None,
    ) -> Self:
        """Attach writable, or create if there is none: any number of processes may race.

        The arguments and errors are those of :meth:`create` and :meth:`attach`. ``capacity``,
        ``max_attempts`` and ``mode`` count if it creates: an arena that is there keeps its own.
        """
        self = cls._prepare(
            True,
            rate_limiter,
            priority_func,
            lock_timeout,
            mode=mode,
            owner=owner,
            max_attempts=_attempts(max_attempts),
        )
        self._open(name, capacity)
        return self

    @classmethod
    def _prepare(
        cls,
        writable: bool,
        rate_limiter: RateLimiter | None,
        priority_func: PriorityFunc | None,
        lock_timeout: float,
        *,
        mode: int = 0o600,
        owner: int | str | None = None,
        max_attempts: int = 0,
    ) -> Self:
        self = cls.__new__(cls)
        self._limiter = DEFAULT if rate_limiter is None else rate_limiter
        if isinstance(self._limiter, type) or not isinstance(self._limiter, RateLimiter):
            raise TypeError(
                f"rate_limiter is a limiter like ExponentialBackoff(), not {rate_limiter!r}"
            )
        self._taken = {}
        self._options = {
            "writable": writable,
            "rate_limiter": rate_limiter,
            "priority_func": priority_func,
            "lock_timeout": lock_timeout,
            "owner": owner,
        }
        self._opening = _arena.Opening(
            cls._kind,
            "raw",
            None,
            0,
            _at_least_zero(lock_timeout, "lock_timeout"),
            mode=mode,
            owner=owner,
            max_attempts=max_attempts,
            priority_func=priority_func,
        )
        return self

    # --- producers ------------------------------------------------------------------------------

    def add(self, key: str) -> bool:
        """Queue ``key``, unless it is queued already.

        While a worker has it, it is queued when that is :meth:`done`, at the place of this add:
        before what was added since. False: the queue was shut down, and nothing happened. Raises
        :class:`~shmcache.KeyFuncError` for a key that is empty or too long,
        :class:`~shmcache.CapacityError`, :class:`~shmcache.ReadOnlyError`,
        :class:`~shmcache.LockTimeoutError`.
        """
        return self._core.enqueue(key, 0.0)

    def add_many(self, keys: Iterable[str]) -> bool:
        """:meth:`add` for each, one after the other. False: the queue was shut down meanwhile."""
        if isinstance(keys, str):  # an iterable too, of its letters
            raise TypeError(f"add_many takes several keys: for one, add({keys!r})")
        return all(self._core.enqueue(key, 0.0) for key in keys)

    def add_after(self, key: str, delay: float) -> bool:
        """Queue ``key`` in ``delay`` seconds, and never before; now if that is 0 or less.

        Of several delays of one key the one that ends first stands. Whether the key is queued, or a
        worker has it, is no matter. What waits is in :meth:`delayed`, and is not handed out after a
        shutdown. Returns and raises as :meth:`add`, and :class:`ValueError` for NaN.

        >>> with WorkQueue.create() as queue:
        ...     _ = queue.add_after("later", 3600), queue.add_after("soon", 60)
        ...     _ = queue.add_after("soon", 120)
        ...     [(one.key, one.seconds > 60) for one in queue.delayed()], len(queue)
        ...     queue.unlink()
        ([('soon', False), ('later', True)], 0)
        """
        return self._core.enqueue(key, _checked_delay(delay))

    def add_rate_limited(self, key: str) -> bool:
        """Count a failure of ``key``, and queue it again after as long as the limiter says.

        Returns and raises as :meth:`add`. What has failed and was not given out by :meth:`work`
        needs its :meth:`done` too.
        """
        failures = self._core.count_failure(key)
        return self.add_after(key, self._limiter.delay(failures, self._core.take_token))

    def forget(self, key: str) -> None:
        """Let ``key`` have failed 0 times: it has succeeded, or will not be tried again. Whether it
        is queued, waits for its time or is with a worker stays as it is. Until then the count is
        kept, some 130 bytes, also of a key that is in no list any more: its worker died once, say.
        """
        self._core.forget(key)

    def num_requeues(self, key: str) -> int:
        """How often ``key`` has failed since it was forgotten: the times that
        :meth:`add_rate_limited` counted, and workers that died, or lost it, with it."""
        return self._core.failures(key)

    # --- workers --------------------------------------------------------------------------------

    def work(self, timeout: float | None = None, lease: float | None = None) -> Work:
        """One step of a worker: a context manager that takes a key, and ends the work on it.

        =================================  =========================================================
        the block                          the key
        =================================  =========================================================
        ends                               is forgotten, and done
        raises an ``Exception``            has failed: :meth:`add_rate_limited`, and done, in one
                                           step that needs no memory; or, with the last of
                                           ``max_attempts``, is a dead letter
        raises another ``BaseException``   goes back as it was: Ctrl-C, ``SystemExit`` and a
                                           cancelled task are not its fault
        =================================  =========================================================

        The exception goes on, so that no failure goes unseen: a loop that is to go on catches and
        logs it. The key of a worker that dies in the block comes back, with one failure more.

        ``timeout`` and ``lease``, and what is raised if there is no key, are as for :meth:`get`.
        If the key was taken away meanwhile, since its lease is over or this is a forked child, the
        end of the block is a :class:`~shmcache.ClaimLostError`, and a failure does nothing.

        >>> with WorkQueue.create() as queue:
        ...     _ = queue.add("web-0")
        ...     try:
        ...         with queue.work() as key:
        ...             raise ConnectionError("the server is away")
        ...     except ConnectionError:
        ...         print(queue.num_requeues("web-0"), [one.key for one in queue.delayed()])
        ...     with queue.work() as key:  # 5 ms later
        ...         print(key, "once more")
        ...     queue.num_requeues("web-0"), queue.delayed(), queue.in_flight()
        ...     queue.unlink()
        1 ['web-0']
        web-0 once more
        (0, [], [])
        """
        return Work(self, _checked(timeout), checked_lease(lease))

    def get(self, timeout: float | None = None, lease: float | None = None) -> str:
        """Take the key that was queued first; nobody else gets it until :meth:`done`.

        For those to whom :meth:`work` does not fit. Blocks until there is one, at most ``timeout``
        seconds (0 does not wait), then :class:`queue.Empty`. Raises :class:`~shmcache.ShutDown`
        once the queue is shut down, empty, and nobody else has a key, which might come back: who
        gathers several keys before ending any needs a ``timeout``, or two such workers wait for
        each other. ``KeyboardInterrupt`` and other exceptions of signal handlers leave it at once,
        and a key that was already taken goes back to its place.

        ``lease``: seconds after which the key goes back, with one failure more, although this
        process lives; None for never. Threads that share a handle and give leases should use
        :meth:`work`, which knows one's own claim from a later one of another thread.
        """
        lease, timeout = checked_lease(lease), _checked(timeout)
        hand: list[_Claimed] = []
        try:
            self._core.claim(lease, timeout, hand)
            key, _, token, _ = hand[0]
            self._taken[key] = token
            return key
        except BaseException:
            if hand:
                self._taken.pop(hand[0][0], None)
                self._core.end_claim(hand[0][2], RELEASED)
            raise

    def done(self, key: str) -> None:
        """The work on ``key`` has ended, well or not. If it was added meanwhile, it is queued now.

        Raises :class:`~shmcache.ClaimLostError` if the key was taken away before, and
        :class:`ValueError` for one that :meth:`get` has not returned through this handle, or that
        is done already.
        """
        token = self._taken.pop(key, None)
        if token is None:
            raise ValueError(
                f"done({key!r}): this handle has no such key. get() has not returned it here, or "
                "it is done already; the key of work() is done as its block ends"
            )
        try:
            ours = self._core.end_claim(token, DONE)
        except LockTimeoutError:  # it can be tried again
            self._taken[key] = token
            raise
        if not ours:
            raise _lost(key)

    # --- shutdown -------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """End the queue for every process: adds do nothing any more, what waits for its time is not
        handed out, and once the queue is empty :meth:`get` raises :class:`~shmcache.ShutDown`.

        What is queued is still handed out, and what a worker has may come back. What fails from
        then on is not tried again: that would be an add. Does not wait; who waits in
        :meth:`shutdown_with_drain` is told to go. It cannot be undone: a queue whose content is to
        outlive its processes is closed, and not shut down.
        """
        self._core.shut_down(False)

    def shutdown_with_drain(self, timeout: float | None = None) -> bool:
        """As :meth:`shutdown`, and wait until nothing is queued and no worker has a key.

        A key that was added while a worker has it is queued, and worked on, first. Returns whether
        all was worked on, well or not; False after ``timeout`` seconds, and when anybody calls
        :meth:`shutdown` meanwhile. Without a worker it waits for ever if anything is queued.
        """
        deadline = time.monotonic() + (_FOREVER if timeout is None else _at_least_zero(timeout))
        self._core.drain()
        while True:
            version = self._core.version()
            if self._core.idle():
                return True
            remaining = deadline - time.monotonic()
            if remaining <= 0 or self._core.queue_state() == _SHUT_DOWN:
                return False
            self._core.wait_change(version, min(remaining, _LOOK_SECONDS))

    @property
    def shutting_down(self) -> bool:
        """Whether anybody has called :meth:`shutdown` or :meth:`shutdown_with_drain`."""
        return self._core.queue_state() != _OPEN

    # --- looking inside -------------------------------------------------------------------------

    def __len__(self) -> int:
        """How many keys :meth:`get` would hand out now."""
        return self._core.waiting()

    def _content(self) -> str:
        return f"{len(self)} queued"

    def queued(self) -> list[str]:
        """The keys that are to be handed out, the first one first; those that a worker has, and
        that were added meanwhile, too."""
        return self._core.keys()

    def delayed(self) -> list[Delayed]:
        """What waits for its time, the first that is due first."""
        return [Delayed(key, seconds, failures) for key, seconds, failures in self._core.delayed()]

    def in_flight(self) -> list[InFlight[str]]:
        """The keys that workers have, in the order in which they were taken. What a dead one had is
        gone back to the queue before, if this handle is writable."""
        return [
            InFlight(key, key, pid, failures + 1, lease, age)
            for key, _, failures, pid, lease, age in self._core.held(False)
        ]

    def dead_letters(self) -> list[DeadLetter[str]]:
        """The keys that have failed ``max_attempts`` times; they can be added all the same."""
        return [
            DeadLetter(key, key, failures, age)
            for key, _, failures, _, _, age in self._core.held(True)
        ]

    def retry(self, key: str) -> bool:
        """Queue a dead letter again, at the tail and with no failures, if it is not queued already;
        while a worker has the key, as :meth:`add` does. Whether there was one: False after a
        shutdown too, and then it stays."""
        found = self._core.settle_dead(key, False)
        if found:
            self._core.forget(key)
        return found

    def drop(self, key: str) -> bool:
        """Remove a dead letter. Whether there was one."""
        return self._core.settle_dead(key, True)


class Work:
    """What :meth:`WorkQueue.work` returns; it has the claim of one key while its block runs."""

    __slots__ = ("_key", "_lease", "_queue", "_timeout", "_token")

    _key: str
    _token: Token  # with its last reference a claim that has not ended is released

    def __init__(self, queue: WorkQueue, timeout: float | None, lease: float | None) -> None:
        self._queue, self._timeout, self._lease = queue, timeout, lease

    def __enter__(self) -> str:
        core = self._queue._core
        if hasattr(self, "_token") and not self._token.ended:
            raise RuntimeError(
                f"the block of this work() still has the key {self._key!r}: call queue.work() for "
                "each block"
            )
        hand: list[_Claimed] = []
        try:
            core.claim(self._lease, self._timeout, hand)
            self._key, _, self._token, _ = hand[0]
            return self._key
        except BaseException:
            if hand:
                core.end_claim(hand[0][2], RELEASED)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        core = self._queue._core
        try:
            if kind is not None and not issubclass(kind, Exception):
                core.end_claim(self._token, RELEASED)
            elif core.renew(self._token, None):  # it is ours, and stays so until here is its end
                self._failed() if kind else self._succeeded()
            elif kind is None:
                raise _lost(self._key)
        except ClaimLostError:
            raise
        except BaseException:  # struck by a signal handler, or by an error of the limiter
            if not self._token.ended:  # struck as end_claim returned: there is nothing to end
                core.end_claim(self._token, RELEASED)
            raise

    def _succeeded(self) -> None:
        self._queue.forget(self._key)
        self._queue._core.end_claim(self._token, DONE)

    def _failed(self) -> None:
        core, limiter = self._queue._core, self._queue._limiter
        failures = core.failures(self._key)
        if 0 < core.max_attempts <= failures + 1:
            core.end_claim(self._token, FAILED)  # which makes it a dead letter
        else:
            try:
                delay = _checked_delay(limiter.delay(failures, core.take_token))
            except Exception:  # no fault of the key, but it must not come again for ever
                core.end_claim(self._token, FAILED)
                raise
            core.retry_claim(self._token, delay)


def _checked_delay(delay: float) -> float:
    if not isinstance(delay, (int, float)):
        raise TypeError(f"delay is a number of seconds, not {delay!r}")
    if delay != delay:
        raise ValueError("delay is a number of seconds, not NaN")
    return min(max(delay, 0.0), _FOREVER)


def _lost(key: str) -> ClaimLostError:
    return ClaimLostError(
        f"the key {key!r} is not this process's any more: its lease has run out, or its handle was "
        "closed, or this is a forked child. It went back to the queue, so what was done may be "
        "done twice"
    )
