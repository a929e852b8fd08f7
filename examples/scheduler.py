"""A Kubernetes scheduler of several processes that share one cache and one queue.

    pip install 'shmcache[kubernetes]'
    python examples/scheduler.py                              # embedded API server, made-up load
    python examples/scheduler.py --kubeconfig ~/.kube/config  # your cluster, until Ctrl-C

This process watches the API server and mirrors nodes and pods into shared memory; the workers
read them there and take unbound pods from one queue. In a cluster only pods with
``schedulerName: shmcache`` are touched. Change ``choose_node`` to schedule as you like.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import signal
from collections import Counter
from typing import Any

from kubernetes import client, config

from shmcache import FIFO, Reflector, ShutDown, Store, list_watch_from_client
from shmcache.demo.apiserver import ApiServer


def choose_node(pod: dict[str, Any], nodes: Store, pods_per_node: Counter[str]) -> str | None:
    """Return the node with the most room for further pods, None if all are full."""
    room = {
        node["metadata"]["name"]: int(node["status"]["allocatable"]["pods"])
        - pods_per_node[node["metadata"]["name"]]
        for node in nodes.list()
        if not node.get("spec", {}).get("unschedulable")
    }
    best = max(room, key=room.__getitem__, default="")
    return best if best and room[best] > 0 else None


def work(server: str, kubeconfig: str, nodes: Store, bound: Store, pods: FIFO) -> None:
    """Bind pods until the queue is shut down. The handles have attached again in this process."""
    core = connect(server, kubeconfig)
    assumed: dict[str, str] = {}  # bound by this worker, and not shown by the watch yet
    while True:
        try:
            pod = pods.pop()
        except ShutDown:
            return
        version = bound.version  # before the look: what changes after it ends the wait below
        placed = {key: item["spec"]["nodeName"] for key, item in bound.items()}
        assumed = {key: node for key, node in assumed.items() if key not in placed}
        node = choose_node(pod, nodes, Counter([*placed.values(), *assumed.values()]))
        if node is None:
            bound.wait_for_change(version, timeout=1.0)
            pods.add_if_not_present(pod)
            continue
        name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
        binding = {"metadata": {"name": name}, "target": {"kind": "Node", "name": node}}
        try:
            send(core.create_namespaced_pod_binding, name, namespace, binding)
        except client.ApiException as error:
            if error.status not in (404, 409):  # gone, or bound by somebody else
                pods.add_if_not_present(pod)
        else:
            assumed[f"{namespace}/{name}"] = node


def connect(server: str, kubeconfig: str) -> Any:
    if kubeconfig:
        load: Any = config.new_client_from_config
        return client.CoreV1Api(load(config_file=kubeconfig))
    return client.CoreV1Api(client.ApiClient(client.Configuration(host=server)))


def send(call: Any, *arguments: Any) -> None:
    call(*arguments, _preload_content=False).read()  # the answer is not worth decoding


def make_load(core: Any, pods: int) -> None:
    for number in range(4):
        status = {"allocatable": {"cpu": "8", "memory": "32Gi", "pods": str(pods)}}
        send(core.create_node, {"metadata": {"name": f"node-{number}"}, "status": status})
    spec = {"schedulerName": "shmcache", "containers": [{"name": "c", "image": "busybox"}]}
    for number in range(pods):
        pod = {"metadata": {"name": f"pod-{number}"}, "spec": spec}
        send(core.create_namespaced_pod, "default", pod)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kubeconfig", default="")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pods", type=int, default=200, help="to make without a cluster")
    options = parser.parse_args()
    logging.basicConfig()  # so that a server that cannot be reached is heard of
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        server = "" if options.kubeconfig else stack.enter_context(ApiServer()).url
        core = connect(server, options.kubeconfig)
        nodes, bound = Store.create(capacity="16MiB"), Store.create(capacity="16MiB")
        pods = FIFO.create(capacity="16MiB")
        for store, resource, selector in (
            (nodes, "nodes", None),
            (bound, "pods", "spec.nodeName!="),
            (pods, "pods", "spec.nodeName=,spec.schedulerName=shmcache"),
        ):
            stack.enter_context(store)
            stack.callback(store.unlink)
            source = list_watch_from_client(core, resource, field_selector=selector)
            stack.enter_context(Reflector(source, None, store))
        nodes.wait_for_sync()
        bound.wait_for_sync()
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # workers inherit this
        for _ in range(options.workers):
            arguments = (server, options.kubeconfig, nodes, bound, pods)
            worker = multiprocessing.get_context("spawn").Process(target=work, args=arguments)
            worker.start()
            stack.callback(worker.join)
        stack.callback(pods.shutdown)  # what is entered last is left first
        signal.signal(signal.SIGINT, interrupt)  # Ctrl-C ends us, and we end the workers
        print("scheduling", flush=True)
        if server:
            make_load(core, options.pods)
        version = bound.version
        while options.kubeconfig or len(bound) < options.pods:
            version = bound.wait_for_change(version, timeout=1.0)
        per_node = Counter(pod["spec"]["nodeName"] for pod in bound.values())
        print(f"{len(bound)} pods bound: {dict(per_node)}", flush=True)


if __name__ == "__main__":
    main()
