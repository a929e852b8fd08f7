"""Store: one live cache of objects, shared by all processes of a machine.

A handle is cheap to read through from any thread and any process: it pickles (and attaches again
where it is unpickled) and survives ``fork``. The work is done by the core (``_core``); here are
keys, codecs and the shapes that Python expects. It is one class with one job, and long because
of its docstrings. May import: ``_arena``, ``_core``, ``_errors``, ``_handle``, ``_objects``,
``_ports``, ``_resource_version``, ``_sleeper``, ``_types``, ``changes``, ``codecs``, ``keys``.
"""

from __future__ import annotations

import builtins
import contextlib
import time
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from typing import Any, ClassVar, Self

from shmcache import _arena, _objects
from shmcache._core import MAX_KEY_SIZE, Arena
from shmcache._errors import CodecError, KeyFuncError
from shmcache._handle import _FOREVER, Handle, _at_least_zero, _checked
from shmcache._ports import Codec, KeyFunc, PriorityFunc
from shmcache._resource_version import at_least, is_comparable
from shmcache._sleeper import Sleeper
from shmcache._types import REFLECTOR_STATES, ReflectorStats, ReflectorStatus
from shmcache.changes import Watch
from shmcache.codecs.msgpack import MsgpackCodec
from shmcache.keys import meta_namespace_key_func

__all__ = ["Store"]

# By their number in the segment.
_REFLECTOR_STATES = ("", *REFLECTOR_STATES)

# A sleep on the version is in slices, the first so long and each twice as long as the one before:
# of a bookmark, and of a replace whose writer has died, the version does not tell.
_FIRST_LOOK_SECONDS = 0.001
_LOOK_SECONDS = 0.5


class Store(Handle, Mapping[str, Any]):
    """A keyed store in shared memory: written by few, read by any number of processes.

    Make one with :meth:`create`, :meth:`attach` or :meth:`open`. As a mapping it maps keys to
    objects, for reading; every iteration, ``list``, ``keys``, ``values`` and ``items`` is over a
    consistent snapshot. Reads take no lock and wait for nobody; they see each write whole or not
    at all, and a ``replace`` all at once.

    What a read returns is shared by all readers of this process and read-only; see
    :func:`shmcache.thaw`. An entry that has not changed is not decoded again, and of one that has,
    only what differs is made anew (with the default codec).

    Beside what is said of each method, reads and writes raise :class:`~shmcache.ClosedError` once
    the handle is closed, and :class:`~shmcache.CorruptArenaError` where something else has written
    into the segment. What gives objects raises :class:`~shmcache.CodecError` for bytes that the
    codec cannot decode. What writes raises :class:`~shmcache.ReadOnlyError` through a read-only
    handle, :class:`~shmcache.LockTimeoutError`, and :class:`~shmcache.CapacityError` if it needs
    room that is not there; nothing is then changed.

    Solves: many processes need the same live objects and one of them (usually a
    :class:`~shmcache.Reflector`) knows them. Not for one process (use a dict), and not across
    machines.

    >>> with Store.create(capacity="1MiB") as store:
    ...     store.add({"metadata": {"name": "node-1"}, "ready": True})
    ...     store.get_by_key("node-1")["ready"]
    ...     store.unlink()
    True
    """

    _kind: ClassVar[str] = "Store"

    _codec: Codec
    _key_func: KeyFunc
    _reflector_name = ""
    _sleeper: Sleeper  # of its watches and consumers in event loops

    # --- life cycle -----------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        name: str | None = None,
        *,
        key_func: KeyFunc = meta_namespace_key_func,
        codec: Codec | None = None,
        capacity: int | str = "1GiB",
        cache: int | str = "64MiB",
        lock_timeout: float = 10.0,
        mode: int = 0o600,
    ) -> Self:
        """Make a new arena and return a writable handle of it.

        ``name``: letters, digits, ``.``, ``_``, ``-``; None makes a unique one. ``key_func``
        gives the key of an object. ``codec`` turns objects into bytes, default
        :class:`~shmcache.MsgpackCodec`. ``capacity``: the most bytes of memory that the arena may
        ever take, an int or like ``"64MiB"``; memory is taken as it is needed, and
        used again but not given back. ``cache``: how many payload bytes worth of decoded objects
        this handle keeps. ``lock_timeout``: seconds that a write waits for a living process that
        holds the lock. ``mode``: 0o600, or 0o660 to share with the group of this process.

        Raises :class:`~shmcache.ArenaExistsError` if the name is taken,
        :class:`~shmcache.CapacityError` if the capacity is too small or /dev/shm too full,
        :class:`~shmcache.InvalidNameError`.
        """
        self = cls._prepare(True, key_func, codec, cache, lock_timeout, mode=mode)
        self._create(name, capacity)
        return self

    @classmethod
    def attach(
        cls,
        name: str,
        *,
        writable: bool = False,
        timeout: float = 0.0,
        key_func: KeyFunc = meta_namespace_key_func,
        codec: Codec | None = None,
        cache: int | str = "64MiB",
        lock_timeout: float = 10.0,
        owner: int | str | None = None,
    ) -> Self:
        """Return a handle of an existing arena, waiting up to ``timeout`` seconds for it.

        Read-only unless ``writable``; the memory of the entries is then mapped read-only too.
        ``key_func``, ``codec``, ``cache`` and ``lock_timeout`` are as for :meth:`create`, and of
        this handle: the codec must be that of the arena. ``owner``: the user, by name or number,
        whose arena is accepted beside those of our own user and of root (who may read what we
        write, and make us read anything).

        Raises :class:`~shmcache.ArenaNotFoundError`, :class:`~shmcache.IncompatibleArenaError`
        (another kind, codec or layout, or not an arena), :class:`~shmcache.ArenaPermissionError`.
        """
        self = cls._prepare(writable, key_func, codec, cache, lock_timeout, owner=owner)
        self._attach(name, writable, timeout)
        return self

    def _use(self, core: Arena, name: str) -> None:
        super()._use(core, name)
        self._sleeper = Sleeper()
        if type(self).get_by_key is Store.get_by_key:
            # The native method stands in for ours: it spares the hottest read a Python frame.
            self.__dict__["get_by_key"] = core.get

    @classmethod
    def open(
        cls,
        name: str,
        *,
        key_func: KeyFunc = meta_namespace_key_func,
        codec: Codec | None = None,
        capacity: int | str = "1GiB",
        cache: int | str = "64MiB",
        lock_timeout: float = 10.0,
        mode: int = 0o600,
        owner: int | str | None = None,
    ) -> Self:
        """Attach writable, or create if there is none: any number of processes may race.

        The arguments and errors are those of :meth:`create` and :meth:`attach`. ``capacity`` and
        ``mode`` count if it creates: an arena that is there keeps its own.
        """
        self = cls._prepare(True, key_func, codec, cache, lock_timeout, mode=mode, owner=owner)
        self._open(name, capacity)
        return self

    @classmethod
    def _prepare(
        cls,
        writable: bool,
        key_func: KeyFunc,
        codec: Codec | None,
        cache: int | str,
        lock_timeout: float,
        *,
        mode: int = 0o600,
        owner: int | str | None = None,
        indexes: Sequence[str] = (),
        max_attempts: int = 0,
        priority_func: PriorityFunc | None = None,
    ) -> Self:
        self = cls.__new__(cls)
        self._codec = codec = MsgpackCodec() if codec is None else codec
        if isinstance(codec, type) or not isinstance(codec, Codec):
            raise TypeError(f"codec must be a codec like MsgpackCodec(), not {codec!r}")
        if not callable(key_func):
            raise TypeError(f"key_func must be callable, not {key_func!r}")
        cache_bytes = _arena.parse_size(cache)
        if cache_bytes < 0:
            raise ValueError(f"cache must not be negative, and it is {cache!r}")
        if not isinstance(codec.name, str):
            raise TypeError(f"the name of a codec is a str, not {codec.name!r}")
        if not (codec.name.isascii() and codec.name.isprintable() and 1 <= len(codec.name) <= 31):
            raise ValueError(
                f"the name of a codec is 1 to 31 printable ASCII characters, not {codec.name!r}"
            )
        self._key_func = key_func
        self._options = {
            "writable": writable,
            "key_func": key_func,
            "codec": codec,
            "cache": cache,
            "lock_timeout": lock_timeout,
            "owner": owner,
        }
        if priority_func is not None:  # which only a FIFO takes
            self._options["priority_func"] = priority_func
        self._opening = _arena.Opening(
            cls._kind,
            codec.name,
            _shared_decoder(codec),
            cache_bytes,
            _at_least_zero(lock_timeout, "lock_timeout"),
            mode=mode,
            owner=owner,
            indexes=indexes,
            max_attempts=max_attempts,
            priority_func=priority_func,
        )
        return self

    # A handle is itself, not its content: comparing two means asking whether they are the same.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    # --- writing --------------------------------------------------------------------------------

    def add(self, obj: Any) -> None:
        """Insert ``obj``, or replace the entry of its key.

        Raises :class:`~shmcache.KeyFuncError`, :class:`~shmcache.CodecError`,
        :class:`~shmcache.CapacityError`, :class:`~shmcache.ReadOnlyError`,
        :class:`~shmcache.LockTimeoutError`; nothing is then changed.
        """
        self._core.add(self._key(obj), self._encode(obj))

    def update(self, obj: Any) -> None:
        """The same as :meth:`add`."""
        self._core.add(self._key(obj), self._encode(obj))

    def add_many(self, objs: Iterable[Any]) -> None:
        """:meth:`add` for each of ``objs``, under one lock: all, or none and an exception.

        Readers may see the first before the last, and a writer that is killed in the middle
        leaves the first ones: where that matters, use :meth:`replace`.
        """
        objs = builtins.list(objs)
        with self._blaming(objs):
            self._core.add_many(self._pairs(objs))

    def add_raw(self, key: str, data: bytes | bytearray | memoryview) -> None:
        """Store the payload ``data`` under ``key``, past codec and key function."""
        self._core.add(key, data if type(data) is bytes else as_payload(data))

    def delete(self, obj: Any) -> None:
        """Remove the entry with the key of ``obj``; an unknown key is no error."""
        self._core.delete(self._key(obj))

    def delete_by_key(self, key: str) -> None:
        """Remove the entry of ``key``; an unknown key is no error."""
        self._core.delete(key)

    def replace(self, objs: Iterable[Any], resource_version: str = "") -> None:
        """Make ``objs`` the whole content, at one instant for every reader, or not at all.

        Of duplicates the last wins. Entries whose bytes did not change stay as they are: readers
        keep their decoded objects. ``resource_version`` (at most 240 bytes) is what
        :attr:`resource_version` then says. The first ``replace`` sets :attr:`has_synced`. Old and
        new content need room at the same time.
        """
        objs, version = builtins.list(objs), as_version(resource_version)
        with self._blaming(objs):
            self._core.replace(self._pairs(objs), version)

    def bookmark(self, resource_version: str) -> None:
        """Say that the content is that of ``resource_version`` (at most 240 bytes).

        What a :class:`~shmcache.Reflector` does after each event, so that who takes over from it
        knows where to go on. The content stays, and so does :attr:`version`.
        """
        self._core.bookmark(as_version(resource_version))

    # --- reading --------------------------------------------------------------------------------

    def get(self, obj: Any, default: Any = None) -> Any:
        """The stored object with the key of ``obj``, or ``default``.

        Raises :class:`~shmcache.KeyFuncError` if ``obj`` has no key.
        """
        return self._core.get(self._key(obj), default)

    def get_by_key(self, key: str, default: Any = None) -> Any:
        """The object of ``key``, or ``default``. Shared in this process, and read-only."""
        return self._core.get(key, default)

    def get_raw(self, key: str) -> bytes | None:
        """The payload bytes of ``key``, or None."""
        return self._core.get_raw(key)

    def list(self) -> builtins.list[Any]:
        """All objects at one instant, in no particular order. Costs what changed since the last."""
        return self._core.values()

    def list_keys(self) -> builtins.list[str]:
        """All keys at one instant, in no particular order."""
        return self._core.keys()

    def __getitem__(self, key: str) -> Any:
        obj = self._core.get(key, _MISSING)
        if obj is _MISSING:
            raise KeyError(key)
        return obj

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._core.contains(key)

    def __len__(self) -> int:
        return self._core.size()

    def __iter__(self) -> Iterator[str]:
        return iter(self._core.keys())

    def items(self) -> ItemsView[str, Any]:
        """A view; each iteration over it is a snapshot of (key, object)."""
        return _Items(self)

    def values(self) -> ValuesView[Any]:
        """A view; each iteration over it is a snapshot of the objects."""
        return _Values(self)

    # --- waiting --------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """A 64-bit count that grows with every change, the same for every process."""
        return self._core.version()

    @property
    def resource_version(self) -> str:
        """What the last :meth:`replace` or :meth:`bookmark` was given, ``""`` before the first."""
        return self._core.resource_version()

    @property
    def has_synced(self) -> bool:
        """Whether the content has been complete once: after the first :meth:`replace`."""
        return self._core.has_synced()

    def wait_for_change(self, version: int, timeout: float | None = None) -> int:
        """Sleep until :attr:`version` is not ``version``, or ``timeout`` seconds; return it.

        >>> store = Store.create(capacity="1MiB")
        >>> store.unlink()
        >>> seen = store.version
        >>> store.add_raw("a", b"1")
        >>> store.wait_for_change(seen) > seen
        True
        """
        if not isinstance(version, int):
            raise TypeError(f"version is an int that Store.version gave, not {version!r}")
        if not 0 <= version < 1 << 64:
            raise ValueError(f"version is an int that Store.version gave, and {version} is not")
        return self._core.wait_change(version, _checked(timeout))

    def wait_for_sync(self, timeout: float | None = None) -> bool:
        """Sleep until :attr:`has_synced`, at most ``timeout`` seconds; return it."""
        return self._wait_until(self._core.has_synced, timeout)

    def wait_for_version(self, resource_version: str, timeout: float | None = None) -> bool:
        """Sleep until the content is that of ``resource_version`` or later; whether it is.

        ``resource_version``: a decimal integer of any length, as text, that an API server gave for
        this resource; :attr:`resource_version` is compared with it as a number, as client-go does
        (``CompareResourceVersion``, KEP-5504). ``timeout``: the most seconds to sleep, None for no
        limit.

        ``ValueError`` if one of the two is other text: nobody could tell which is the later, and a
        wait for just that one would miss it. A source of such versions is
        :class:`~shmcache.sources.directory.DirectorySource`.

        >>> store = Store.create(capacity="1MiB")
        >>> store.unlink()
        >>> store.replace([], "1000")
        >>> store.wait_for_version("999"), store.wait_for_version("1001", timeout=0)
        (True, False)
        """
        wanted = as_version(resource_version)
        if not is_comparable(wanted):
            raise ValueError(f"resource_version is {_A_VERSION}, and not {wanted!r}")
        return self._wait_until(lambda: self._is_at(wanted), timeout)

    def expect(self, obj: Any, timeout: float | None = None) -> bool:
        """Sleep until reads see ``obj``, which an API server has just returned, or what came after
        it: read your own writes. Whether they do.

        They do when the entry with the key of ``obj`` has its ``metadata.resourceVersion`` or a
        later one, or when :attr:`resource_version` is that or later: then it was deleted since, or
        the reflector's source leaves it out. ``obj`` and the entries may be mappings, or objects
        with attributes (``obj.metadata.resource_version``). Of entries that do not have the field
        :attr:`resource_version` tells.

        ``timeout``: the most seconds to sleep, None for no limit; give one. Of an object that the
        source leaves out (by a selector or a namespace) nothing is heard before the next event of
        another one, or the next bookmark, about one a minute. For what a *delete* returned this is
        no help: its version, if it has one, is from before the deletion.

        Of a :class:`~shmcache.FIFO` it says that the item has been queued; it may have been popped
        or claimed since.

        Raises ``ValueError`` if ``obj`` has no resource version, or one that cannot be ordered (see
        :meth:`wait_for_version`), and :class:`~shmcache.KeyFuncError`.

        >>> store = Store.create(capacity="1MiB")
        >>> store.unlink()
        >>> old = {"metadata": {"name": "web-0", "resourceVersion": "998"}}
        >>> new = {"metadata": {"name": "web-0", "resourceVersion": "1000"}}
        >>> store.add(old)
        >>> store.expect(new, timeout=0)
        False
        >>> store.add(new)
        >>> store.expect(new), store.expect(old)
        (True, True)
        """
        key, wanted = self._key(obj), _objects.resource_version(obj)
        if not wanted:
            raise ValueError(
                f"the object of {key!r} has no metadata.resourceVersion, so nobody can tell "
                "whether the store has it: expect() takes what an API server returned"
            )
        if not is_comparable(wanted):
            raise ValueError(f"metadata.resourceVersion of {key!r} is {wanted!r}, not {_A_VERSION}")

        def is_seen() -> bool:
            found = _objects.resource_version(self._core.get(key, None)) or ""
            if is_comparable(found) and at_least(found, wanted):
                return True  # also where nobody knows the version of the content
            return self._is_at(wanted)

        return self._wait_until(is_seen, timeout)

    def _is_at(self, wanted: str) -> bool:
        """Whether the content is that of a resource version or later."""
        version = self._core.resource_version()
        if version == "":  # before the first list
            return False
        if not is_comparable(version):
            raise ValueError(
                f"the content of arena {self._name!r} is at resource version {version!r}, not "
                f"{_A_VERSION}, so nobody can tell whether that is later than {wanted!r}"
            )
        return at_least(version, wanted)

    def _wait_until(self, holds: Callable[[], bool], timeout: float | None) -> bool:
        deadline = time.monotonic() + (_FOREVER if timeout is None else _at_least_zero(timeout))
        look = _FIRST_LOOK_SECONDS
        while True:
            version = self._core.version()
            if holds():
                return True
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return False
            moved = self._core.wait_change(version, min(remaining, look)) != version
            look = _FIRST_LOOK_SECONDS if moved else min(2 * look, _LOOK_SECONDS)

    def watch(self, *, timeout: float | None = None, initial: bool = True) -> Watch[Any]:
        """The content as ``ADDED`` changes, and then what changes, for as long as you iterate.

        ``timeout``: an iteration ends after so many seconds without a change, and goes on there
        when you iterate again; None for never. ``initial``: False leaves out what is there at the
        time of this call. See :class:`~shmcache.Watch` for what is promised, and for asyncio
        (``async for change in store.watch()``).

        Raises :class:`TypeError` for a FIFO, which keeps no record of its changes, and
        :class:`~shmcache.ClosedError`.

        >>> store = Store.create(capacity="1MiB")
        >>> store.unlink()
        >>> store.add({"metadata": {"name": "web-0"}})
        >>> watch = store.watch(timeout=0)
        >>> [(change.type, change.key) for change in watch]
        [('ADDED', 'web-0')]
        >>> store.delete_by_key("web-0")
        >>> next(watch).type
        'DELETED'
        """
        return Watch(self._core, self._sleeper, _checked(timeout), initial)

    # --- the reflector's place ------------------------------------------------------------------

    def reflector_status(self) -> ReflectorStatus:
        """How the :class:`~shmcache.Reflector` that fills this arena is doing, from any process.

        So a reader can tell how fresh its data is: ``alive`` comes from the kernel,
        ``heartbeat_age`` grows when the reflector's process is stopped or swapped out, and
        ``contact_age`` when its source is silent.

        >>> store = Store.create(capacity="1MiB")
        >>> store.unlink()
        >>> store.reflector_status().alive
        False
        """
        said = self._core.report()
        state = _REFLECTOR_STATES[said.pop("state") % len(_REFLECTOR_STATES)]
        return ReflectorStatus(state=state, resource_version=self._core.resource_version(), **said)

    def claim_reflector(self, name: str) -> bool:
        """Take the place of the one reflector that fills this arena; False if it is taken.

        It is free again after :meth:`release_reflector`, when this handle is closed, and when
        this process ends, however it ends. A :class:`~shmcache.Reflector` does this by itself.
        """
        if not self._core.claim_reflector():
            return False
        self._reflector_name = name
        return True

    def release_reflector(self) -> None:
        """Give the place back, if this handle has it."""
        self._core.release_reflector()

    def report_reflector(self, state: str, stats: ReflectorStats) -> None:
        """Publish how the reflector is doing; nothing happens if this handle has not the place."""
        self._core.set_report(
            self._reflector_name,
            _REFLECTOR_STATES.index(state),
            (
                _nanoseconds(stats.last_contact_monotonic),
                _nanoseconds(stats.last_event_monotonic),
                _nanoseconds(stats.last_error_monotonic),
            ),
            (stats.lists, stats.watches, stats.events, stats.dropped, stats.errors),
            stats.last_error,
        )

    # --- keys and bytes -------------------------------------------------------------------------

    def _key(self, obj: Any) -> str:
        try:
            key = self._key_func(obj)
        except KeyFuncError:
            raise
        except Exception as cause:
            raise _key_failed(obj, cause) from cause
        if not isinstance(key, str):
            raise _not_a_key(obj, key)
        return key

    @contextlib.contextmanager
    def _blaming(self, objs: Iterable[Any]) -> Iterator[None]:
        """Of a key that the core refuses, the error says whose of ``objs`` it is."""
        try:
            yield
        except KeyFuncError as error:
            if error.obj is None:
                error.obj = next((obj for obj in objs if not _is_key(self._key(obj))), None)
            raise

    def _encode(self, obj: Any) -> bytes:
        try:
            data = self._codec.encode(obj)
        except Exception as cause:
            raise self._encode_failed(obj, cause) from cause
        if not isinstance(data, bytes):
            raise self._not_bytes(obj, data)
        return data

    def _pairs(self, objs: Iterable[Any]) -> builtins.list[tuple[str, bytes]]:
        # _key and _encode of each, without their frames: those cost more than the core does.
        key_func, encode = self._key_func, self._codec.encode
        pairs = []
        for obj in objs:
            try:
                key = key_func(obj)
            except KeyFuncError:
                raise
            except Exception as cause:
                raise _key_failed(obj, cause) from cause
            if not isinstance(key, str):
                raise _not_a_key(obj, key)
            try:
                data = encode(obj)
            except Exception as cause:
                raise self._encode_failed(obj, cause) from cause
            if not isinstance(data, bytes):
                raise self._not_bytes(obj, data)
            pairs.append((key, data))
        return pairs

    def _encode_failed(self, obj: Any, cause: Exception) -> CodecError:
        return CodecError(
            f"codec {self._codec.name!r} cannot encode an object of type "
            f"{type(obj).__name__}: {cause!r}",
            obj,
        )

    def _not_bytes(self, obj: Any, data: Any) -> CodecError:
        return CodecError(
            f"codec {self._codec.name!r} must encode to bytes, not {type(data).__name__}", obj
        )


class _Items(ItemsView[str, Any]):
    _mapping: Store

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(self._mapping._core.items())


class _Values(ValuesView[Any]):
    _mapping: Store

    def __iter__(self) -> Iterator[Any]:
        return iter(self._mapping.list())


_MISSING = object()

_A_VERSION = "a decimal integer above 0, as API servers number their changes"


def _key_failed(obj: Any, cause: Exception) -> KeyFuncError:
    return KeyFuncError(
        f"the key function failed on an object of type {type(obj).__name__}: {cause!r}", obj
    )


def _not_a_key(obj: Any, key: Any) -> KeyFuncError:
    return KeyFuncError(f"the key function must return a str, not {type(key).__name__}", obj)


def _is_key(key: str) -> bool:
    try:
        return 1 <= len(key.encode()) <= MAX_KEY_SIZE
    except UnicodeEncodeError:
        return False


def as_payload(data: bytes | bytearray | memoryview) -> bytes:
    """``data`` as bytes; :class:`TypeError` if it is no bytes-like object."""
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"a payload is bytes, not {type(data).__name__}")
    return bytes(data)


def as_version(resource_version: str) -> str:
    """``resource_version``, if it is text that can be stored."""
    if not isinstance(resource_version, str):
        raise TypeError(f"resource_version is a str, not {resource_version!r}")
    try:
        resource_version.encode()
    except UnicodeEncodeError as cause:
        raise ValueError(f"resource_version is not valid Unicode: {cause}") from cause
    return resource_version


def _shared_decoder(codec: Codec) -> Any:
    """The function that gives objects for all readers; None if the bytes are the objects."""
    decode = getattr(codec, "decode_shared", lambda data, _: codec.decode(data))
    if decode is None:
        return None

    def decode_shared(data: bytes, key: str, previous: Any) -> Any:
        try:
            return decode(data, previous)
        except Exception as cause:
            try:  # once more: was it the codec, or a signal handler that ran meanwhile?
                decode(data, previous)
            except Exception:
                pass
            else:
                raise
            raise CodecError(
                f"codec {codec.name!r} cannot decode the {len(data)} bytes of {key!r}: {cause!r}",
                data,
            ) from cause

    return decode_shared


def _nanoseconds(seconds: float | None) -> int:
    return 0 if seconds is None else max(int(seconds * 1e9), 1)
