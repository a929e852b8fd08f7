"""A Kubernetes controller of several worker processes, any of which may be killed at any time.

    pip install 'shmcache[kubernetes]'
    python examples/controller.py                              # embedded API server, made-up load
    python examples/controller.py --kubeconfig ~/.kube/config  # your cluster, until Ctrl-C

For each ConfigMap with the label ``shmcache.example/mirror: "true"`` it keeps a copy NAME-mirror
with the same data. It repairs a copy that somebody has changed, and deletes one whose original is
gone or lost the label. A copy has its original as its owner; a ConfigMap of such a name that has
another owner, or none, is somebody else's and left alone.

All workers are alike: an informer that queues keys, and a loop that takes keys from the one queue.
One of them watches the API server and fills the store for all; the others stand by for that.

Each change is queued by *every* worker, and the queue makes one piece of work of it. Were it only
the worker that watches, a change would be lost with one that is killed after it was in the store
and before it was in the queue. Even if all die there, none is: an informer begins with all that
there is, so a new worker has everything looked at again, originals and copies. That is enough,
because what is to be done follows from what there is, and not from what happened: a deletion that
nobody saw shows in the copy that is still there.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkProcess
from queue import Empty
from typing import Any

from kubernetes import client, config
from urllib3.exceptions import HTTPError

from shmcache import SharedInformer, ShutDown, Store, WorkQueue, list_watch_from_client
from shmcache.demo.apiserver import ApiServer

LABEL, SUFFIX = "shmcache.example/mirror", "-mirror"
SECONDS = 10.0  # for an answer of the API server, and to see it in the store
SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGCHLD}


def reconcile(key: str, store: Store, core: Any) -> None:
    """Make the copy of one ConfigMap what it should be, whatever has happened to either.

    The store may be a little behind. So each write says what it was made of, and the server refuses
    it (409, or 404) if that has changed: an error, after which the key is tried again.
    """
    namespace, name = key.split("/")
    original, copy = store.get_by_key(key), store.get_by_key(key + SUFFIX)
    known: dict[str, Any] = copy["metadata"] if copy else {"name": name + SUFFIX}
    owners = known.get("ownerReferences", [])
    if copy and name not in [one["name"] for one in owners if one["kind"] == "ConfigMap"]:
        return
    if not original or original["metadata"].get("labels", {}).get(LABEL) != "true":
        if copy:
            seen = {"uid": known["uid"], "resourceVersion": known["resourceVersion"]}
            core.delete_namespaced_config_map(
                known["name"], namespace, body={"preconditions": seen}, _request_timeout=SECONDS
            )
            logging.info("deleted %s%s", key, SUFFIX)
        return
    owner = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "name": name,
        "uid": original["metadata"]["uid"],  # of an original that was made anew it is another
        "controller": True,
    }
    content = {field: original.get(field, {}) for field in ("data", "binaryData")}
    if copy and owners == [owner] and all(copy.get(f, {}) == content[f] for f in content):
        return
    body = {"metadata": {**known, "ownerReferences": [owner]}, **content}
    if copy:  # with its resourceVersion
        written = core.replace_namespaced_config_map(
            known["name"], namespace, body, _request_timeout=SECONDS
        )
    else:
        written = core.create_namespaced_config_map(namespace, body, _request_timeout=SECONDS)
    logging.info("%s %s%s", "repaired" if copy else "created", key, SUFFIX)
    store.expect(written, timeout=SECONDS)  # so that who gets the key next sees it


def work(core: Any, namespace: str, store: Store, keys: WorkQueue, supervisor: int) -> None:
    """Reconcile until the queue is shut down, or the supervisor is gone.

    An error of the server, or on the way to it, is for another try. Any other ends this worker: the
    supervisor starts another, and the key has failed all the same.
    """

    def look_at(*config_maps: Any) -> None:
        for metadata in (one["metadata"] for one in config_maps):
            key = f"{metadata['namespace']}/{metadata['name']}"
            keys.add_many({key, key.removesuffix(SUFFIX)})  # it may be an original, or a copy

    source = list_watch_from_client(core, "configmaps", namespace=namespace)
    informer = SharedInformer(source, store)
    informer.add_event_handler(look_at, look_at, look_at, resync_period=600.0)
    with informer:
        while not informer.wait_for_sync(1.0):  # in half a list, originals would seem to be gone
            if keys.shutting_down or os.getppid() != supervisor:
                return
        while os.getppid() == supervisor:
            try:
                with keys.work(timeout=1.0) as key:
                    reconcile(key, store, core)
            except Empty:
                continue
            except ShutDown:
                return
            except (client.ApiException, HTTPError) as error:
                logging.warning("%s, later again: %s", key, getattr(error, "reason", error))


def make_load(core: Any, namespace: str, store: Store, count: int, supervisor: int) -> None:
    """What users do, and the OOM killer; ends when all copies are as they should be."""
    names = [f"settings-{number}" for number in range(count)]

    def wait_for_copies_of(names: list[str]) -> None:
        wanted = {f"{namespace}/{name}{SUFFIX}": {"name": name} for name in names}
        while os.getppid() == supervisor:
            version = store.version
            if wanted == {k: v["data"] for k, v in store.items() if k.endswith(SUFFIX)}:
                return
            store.wait_for_change(version, timeout=1.0)

    for name in names:
        body = {"metadata": {"name": name, "labels": {LABEL: "true"}}, "data": {"name": name}}
        core.create_namespaced_config_map(namespace, body)
        if os.getppid() != supervisor:
            return
    wait_for_copies_of(names)
    os.kill(store.reflector_status().pid, signal.SIGKILL)
    spoiled, unlabelled, deleted = names[:3]
    core.patch_namespaced_config_map(spoiled + SUFFIX, namespace, {"data": {"name": "?"}})
    core.patch_namespaced_config_map(unlabelled, namespace, {"metadata": {"labels": {LABEL: "no"}}})
    core.delete_namespaced_config_map(deleted, namespace)
    wait_for_copies_of([spoiled, *names[3:]])
    logging.info("all %d copies are as they should be", count - 2)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kubeconfig", default="")
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--config-maps", type=int, default=20, help="to make without a cluster")
    options = parser.parse_args()
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(process)d: %(message)s")
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # sigwait takes them; children inherit this
    with contextlib.ExitStack() as stack:
        server = "" if options.kubeconfig else stack.enter_context(ApiServer()).url
        core = connect(server, options.kubeconfig)  # used after the fork only, by each for itself
        store = stack.enter_context(Store.create(capacity="256MiB"))
        stack.callback(store.unlink)
        keys = stack.enter_context(WorkQueue.create())
        stack.callback(keys.unlink)
        children: list[ForkProcess] = []
        stack.callback(end, children, keys)  # what is entered last is left first

        def start(function: Callable[..., None], argument: object) -> ForkProcess:
            arguments = (core, options.namespace, store, argument, os.getpid())
            child = multiprocessing.get_context("fork").Process(target=function, args=arguments)
            child.start()
            return child

        for _ in range(options.workers):
            children.append(start(work, keys))
        load = start(make_load, options.config_maps) if server else None
        if load:
            stack.callback(load.kill)
        ended = False
        while not ended:
            ended = load is not None and load.exitcode is not None
            for place, child in enumerate(children):
                if child.exitcode is not None:
                    logging.warning("%d has ended with %d", child.pid, child.exitcode)
                    children[place] = start(work, keys)
                    time.sleep(0.1)  # for the case that none can live
            ended = ended or signal.sigwait(SIGNALS) != signal.SIGCHLD


def connect(server: str, kubeconfig: str) -> Any:
    if kubeconfig:
        load: Any = config.new_client_from_config
        return client.CoreV1Api(load(config_file=kubeconfig))
    return client.CoreV1Api(client.ApiClient(client.Configuration(host=server)))


def end(workers: list[ForkProcess], keys: WorkQueue) -> None:
    """Let the workers do what is queued, and leave."""
    drained = keys.shutdown_with_drain(timeout=2 * SECONDS)
    for worker in workers:
        worker.join(SECONDS if drained else 0)
        worker.kill()
        worker.join()


if __name__ == "__main__":
    main()
