"""What shmcache tells of itself: metrics, logs, and what both cost.

**Metrics.** :class:`shmcache.observe.prometheus.ShmCacheCollector` exports every arena of the
machine from one process (extra ``metrics``); so does the command ``shmcache metrics``. Without
Prometheus, :meth:`Store.stats <shmcache.Store.stats>` and :meth:`Store.reflector_status
<shmcache.Store.reflector_status>` give the same figures.

**Logs.** Silent until the application configures ``logging``; one logger for each module that has
something to say, all below ``shmcache``::

    logging.basicConfig(level=logging.INFO)
    logging.getLogger("shmcache").setLevel(logging.DEBUG)      # all of it
    logging.getLogger("shmcache.sources").setLevel(logging.ERROR)  # or some of it

=========  ==================================================================================
level      what
=========  ==================================================================================
ERROR      a handler of an informer raised, with its traceback: the user's fault, to mend
WARNING    something was lost or failed, and is retried: a list, a watch, an object that was
           dropped, a write that the store refused, an arena that metrics cannot read
INFO       what goes another way than it began and is no fault: an expired version, a list in
           the place of a stream, a standby that takes over
DEBUG      each list and each watch, never each event
=========  ==================================================================================

Objects are named by type and key, never by content: they may be Secrets. Reads, writes and pops
log nothing; their errors are raised. Records have fields (``extra``) for pipelines that keep them,
as a JSON formatter does:

============  ================================================================================
field         what, and in which loggers
============  ================================================================================
``arena``     the name of the arena, ``""`` of a store that is none; reflector, poller, informer,
              metrics
``resource``  what is followed: the expected type (reflector), the function (poller), the path of
              the API or of the folder (sources), the name (informer)
``error``     the class of the exception, in records of one
``key``       of the object of a call that failed; informer
``status``    the HTTP status of a failed list or watch, 0 if the server gave none; reflector
============  ================================================================================

A formatter that prints them needs defaults for the records that have none: ``logging.Formatter(
"%(levelname)s %(arena)s %(message)s", defaults={"arena": "-"})``.

**Cost.** The counters are words of the segment that writers have in hand under the lock they
hold anyway, and that readers add to in their own process and report every so often; they are
counted whether somebody looks or not, so there is nothing to turn off. What a scrape adds can be
measured: run ``scripts/bench --quick`` alone and again beside ``while :; do shmcache metrics
--once >/dev/null; done``, and compare the ratios. A scrape takes no lock, so nobody waits for it.

Nothing of this is imported by ``import shmcache``. May import: nothing of shmcache.
"""
