"""shmcache: one live cache and one queue for all Python processes of a machine.

source (list, watch) → reflector → codec → arena → Store / FIFO → worker.
A source never sees a store. The reflector never sees bytes. The core never sees a Python object.
A worker never sees a source. This file only re-exports; everything else is private, except
``shmcache.sources``, ``shmcache.testing`` and ``shmcache.demo``.
"""

import importlib.util
import sys
from typing import TYPE_CHECKING, Any

if sys.platform != "linux":
    raise ImportError(
        "shmcache runs on Linux only: it is built on futexes, open file description locks and "
        f"/dev/shm, which {sys.platform} does not have"
    )

if importlib.util.find_spec("shmcache._core") is None:
    raise ImportError(
        f"the native core of shmcache is not built in {__path__[0]}: in a checkout run "
        "scripts/setup, or pip install it and run Python from another directory"
    )

from shmcache._arena import list_arenas, unlink
from shmcache._errors import (
    ApiError,
    ArenaExistsError,
    ArenaNotFoundError,
    ArenaPermissionError,
    CapacityError,
    ClaimLostError,
    ClosedError,
    CodecError,
    CorruptArenaError,
    ExpiredError,
    IncompatibleArenaError,
    IndexExistsError,
    IndexFuncError,
    IndexNotFoundError,
    InvalidNameError,
    KeyFuncError,
    LockTimeoutError,
    NotFoundError,
    PriorityFuncError,
    ReadOnlyError,
    ReflectorRunningError,
    SelectorError,
    ShmCacheError,
    ShutDown,
)
from shmcache._frozen import thaw
from shmcache._ports import (
    Codec,
    Enumerator,
    GetFunc,
    Index,
    Indexers,
    IndexFunc,
    Indices,
    KeyFunc,
    ListerStore,
    ListerWatcher,
    ListFunc,
    PriorityFunc,
    ReflectorSeat,
    ReflectorStore,
    WatchFunc,
)
from shmcache._types import (
    ArenaInfo,
    Change,
    DeadLetter,
    Delayed,
    Event,
    InFlight,
    ListOptions,
    ListResult,
    ReflectorStats,
    ReflectorStatus,
    Stats,
    WatchOptions,
    WorkerInfo,
)
from shmcache.changes import Watch
from shmcache.claims import Claim
from shmcache.codecs import MsgpackCodec, MsgspecCodec, RawCodec
from shmcache.fifo import FIFO
from shmcache.indexer import Indexer
from shmcache.keys import (
    meta_namespace_index_func,
    meta_namespace_key_func,
    split_meta_namespace_key,
)
from shmcache.store import Store

# What reads and pops is imported above. The rest is when it is asked for: of the memory and of
# the time that `import shmcache` takes in each of many workers, that saves a third or more.
if TYPE_CHECKING:
    from shmcache import sources as sources
    from shmcache._attach import attach
    from shmcache._backoff import Backoff
    from shmcache.informer import (
        HandlerRegistration,
        InformerStats,
        SharedInformer,
        wait_for_cache_sync,
    )
    from shmcache.listers import StoreToNodeLister, StoreToPodLister, StoreToServiceLister
    from shmcache.listwatch import ListWatch
    from shmcache.poller import Poller, PollerStats
    from shmcache.ratelimiters import (
        ExponentialBackoff,
        FastSlow,
        MaxOf,
        RateLimiter,
        TokenBucket,
    )
    from shmcache.reflector import Reflector
    from shmcache.selectors import FieldSelector, LabelSelector, Selector
    from shmcache.shared import SharedReflector, shared_reflector
    from shmcache.sources.kubernetes import list_watch_from_client
    from shmcache.undelta import UndeltaStore
    from shmcache.workqueue import WorkQueue
else:  # hidden from type checkers, for whom a module with __getattr__ has every name
    _LATER = {
        "Backoff": "_backoff",
        "ExponentialBackoff": "ratelimiters",
        "FastSlow": "ratelimiters",
        "FieldSelector": "selectors",
        "HandlerRegistration": "informer",
        "InformerStats": "informer",
        "LabelSelector": "selectors",
        "ListWatch": "listwatch",
        "MaxOf": "ratelimiters",
        "Poller": "poller",
        "PollerStats": "poller",
        "RateLimiter": "ratelimiters",
        "Reflector": "reflector",
        "Selector": "selectors",
        "SharedInformer": "informer",
        "SharedReflector": "shared",
        "StoreToNodeLister": "listers",
        "StoreToPodLister": "listers",
        "StoreToServiceLister": "listers",
        "TokenBucket": "ratelimiters",
        "UndeltaStore": "undelta",
        "WorkQueue": "workqueue",
        "attach": "_attach",
        "list_watch_from_client": "sources.kubernetes",
        "shared_reflector": "shared",
        "wait_for_cache_sync": "informer",
    }

    def __getattr__(name: str) -> Any:
        if name == "sources":
            return importlib.import_module("shmcache.sources")
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(
            importlib.import_module(f"{__name__}.{_LATER[name]}"), name
        )
        return value

    def __dir__() -> list[str]:
        return sorted(globals().keys() | _LATER.keys() | {"sources"})


__version__ = "0.1.0"

__all__ = [
    "FIFO",
    "ApiError",
    "ArenaExistsError",
    "ArenaInfo",
    "ArenaNotFoundError",
    "ArenaPermissionError",
    "Backoff",
    "CapacityError",
    "Change",
    "Claim",
    "ClaimLostError",
    "ClosedError",
    "Codec",
    "CodecError",
    "CorruptArenaError",
    "DeadLetter",
    "Delayed",
    "Enumerator",
    "Event",
    "ExpiredError",
    "ExponentialBackoff",
    "FastSlow",
    "FieldSelector",
    "GetFunc",
    "HandlerRegistration",
    "InFlight",
    "IncompatibleArenaError",
    "Index",
    "IndexExistsError",
    "IndexFunc",
    "IndexFuncError",
    "IndexNotFoundError",
    "Indexer",
    "Indexers",
    "Indices",
    "InformerStats",
    "InvalidNameError",
    "KeyFunc",
    "KeyFuncError",
    "LabelSelector",
    "ListFunc",
    "ListOptions",
    "ListResult",
    "ListWatch",
    "ListerStore",
    "ListerWatcher",
    "LockTimeoutError",
    "MaxOf",
    "MsgpackCodec",
    "MsgspecCodec",
    "NotFoundError",
    "Poller",
    "PollerStats",
    "PriorityFunc",
    "PriorityFuncError",
    "RateLimiter",
    "RawCodec",
    "ReadOnlyError",
    "Reflector",
    "ReflectorRunningError",
    "ReflectorSeat",
    "ReflectorStats",
    "ReflectorStatus",
    "ReflectorStore",
    "Selector",
    "SelectorError",
    "SharedInformer",
    "SharedReflector",
    "ShmCacheError",
    "ShutDown",
    "Stats",
    "Store",
    "StoreToNodeLister",
    "StoreToPodLister",
    "StoreToServiceLister",
    "TokenBucket",
    "UndeltaStore",
    "Watch",
    "WatchFunc",
    "WatchOptions",
    "WorkQueue",
    "WorkerInfo",
    "attach",
    "list_arenas",
    "list_watch_from_client",
    "meta_namespace_index_func",
    "meta_namespace_key_func",
    "shared_reflector",
    "split_meta_namespace_key",
    "thaw",
    "unlink",
    "wait_for_cache_sync",
]
