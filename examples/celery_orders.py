"""Celery workers that share a price list, a queue that keeps the newest, and their results.

    pip install 'celery[redis]' 'shmcache[directory]'
    cd examples && mkdir prices
    printf '{apiVersion: v1, kind: Price, metadata: {name: tea}, cents: 250}' > prices/tea.yaml
    celery -A celery_orders worker --pool prefork --concurrency 3     # until Ctrl-C
    python celery_orders.py --orders 20                               # in another terminal

The broker only says that there is work; the order itself waits in a FIFO, so one that changes
while it waits is billed once, with its newest content. It is popped at most once: a task that
fails puts it back, and what a killed process had in hand is gone (keep it in a Store as well).

Handles that were opened before a fork work after it too, but a reflector is a thread, which does
not survive a fork: start it in ``worker_process_init``, which runs first of all in each process of
the pool. Do not wait there: Celery kills a process that is not up in 4 seconds.

The default broker is a folder, to try it without a server. Use ``BROKER=redis://…`` for more: over
a broker without an event loop the pool itself hangs when an idle process of it is killed.
"""

from __future__ import annotations

import argparse
import contextlib
import operator
import os
import queue
from pathlib import Path
from typing import Any

from celery import Celery, signals

import shmcache
from shmcache.sources.directory import DirectorySource

PREFIX = os.environ.get("ARENAS", "celery-orders")

app = Celery("celery_orders", broker=os.environ.get("BROKER", "filesystem://"))
if "BROKER" not in os.environ:
    folder = Path(os.environ.get("BROKER_FOLDER", "broker"))
    folder.mkdir(exist_ok=True)
    options = dict.fromkeys(("data_folder_in", "data_folder_out", "control_folder"), str(folder))
    app.conf.broker_transport_options = options

prices: shmcache.SharedReflector  # of this worker process
orders: shmcache.FIFO
bills: shmcache.Store


def open_arenas() -> None:
    """Attach, or create: workers and clients may come in any order."""
    global orders, bills
    by_id = operator.itemgetter("id")
    orders = shmcache.FIFO.open(f"{PREFIX}-orders", key_func=by_id, capacity="16MiB")
    bills = shmcache.Store.open(f"{PREFIX}-bills", key_func=by_id, capacity="16MiB")


@signals.worker_process_init.connect
def start(**_: Any) -> None:
    global prices
    open_arenas()
    prices = shmcache.shared_reflector(
        f"{PREFIX}-prices",
        lambda: DirectorySource(os.environ.get("PRICES", "prices"), kind="Price"),
        store_options={"capacity": "16MiB"},
    )


@signals.worker_process_shutdown.connect
def end(**_: Any) -> None:
    """Let another process be elected at once. After a kill it takes a fraction of a second."""
    prices.close()


@signals.worker_shutdown.connect
def remove(**_: Any) -> None:
    """In the main process, at the very end. Leave it out to find all at the next start."""
    for name in ("prices", "orders", "bills"):
        with contextlib.suppress(shmcache.ArenaNotFoundError):
            shmcache.unlink(f"{PREFIX}-{name}")


@app.task(ignore_result=True)
def handle_order() -> None:
    """Bill the oldest order, if it was not billed together with an earlier version of it."""
    try:
        order = orders.pop(timeout=0)
    except queue.Empty:
        return
    try:
        prices.store.wait_for_sync(10)
        cents = prices.store[order["item"]]["cents"]
        bills.add({"id": order["id"], "cents": cents * order["count"], "pid": os.getpid()})
    except Exception:
        orders.add_if_not_present(order)  # unless a newer version of it waits already
        handle_order.apply_async(countdown=1)
        raise


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--orders", type=int, default=20)
    parser.add_argument("--item", default="tea")
    options = parser.parse_args()
    open_arenas()
    ids = [f"{os.getpid()}-{count}" for count in range(options.orders)]
    for count, order_id in enumerate(ids):
        orders.add({"id": order_id, "item": options.item, "count": count})
        handle_order.delay()
    version = bills.version
    while not bills.keys() >= set(ids):
        version = bills.wait_for_change(version, timeout=1.0)
    mine = [bills[order_id] for order_id in ids]
    pids = {bill["pid"] for bill in mine}
    print(f"{len(ids)} bills of {sum(b['cents'] for b in mine)} cents by {len(pids)} processes")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
