"""The example of a controller keeps its word on a real API server, whoever of it is killed."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shmcache
from tests.running import Program

kubernetes = pytest.importorskip("kubernetes", reason="needs the extra shmcache[kubernetes]")
pytest.importorskip("msgspec", reason="needs the extra shmcache[kubernetes]")

pytestmark = pytest.mark.xdist_group("kube")

DEADLINE = 180.0
POLL = 0.05
LABEL, SUFFIX = "shmcache.example/mirror", "-mirror"
SEED = 20
CONFIG_MAPS, CHANGES_OF_EACH = 60, 4
ROUND = 12  # changes, after which all must be right
KILLS = ("reflecting", "busy", "any")
LOOKS = 2000  # for one that is at work, before another is killed


class ConfigMaps:
    """Those of one namespace, as another client handles them; it knows what they should be."""

    def __init__(self, client: Any, namespace: str) -> None:
        self.core = kubernetes.client.CoreV1Api(client)
        self.namespace = namespace
        self.wanted: dict[str, dict[str, str]] = {}
        """The data of the labelled ones, by name."""
        self.core.create_namespace({"metadata": {"name": namespace}})

    def create(self, name: str, *, label: str = "true", **data: str) -> None:
        body = {"metadata": {"name": name, "labels": {LABEL: label}}, "data": data}
        self.core.create_namespaced_config_map(self.namespace, body)
        if label == "true":
            self.wanted[name] = data

    def patch(self, name: str, body: dict[str, Any]) -> None:
        self.core.patch_namespaced_config_map(name, self.namespace, body)

    def delete(self, name: str) -> None:
        self.core.delete_namespaced_config_map(name, self.namespace)
        self.wanted.pop(name, None)

    def change(self, name: str, value: str) -> None:
        self.patch(name, {"data": {"value": value}})
        self.wanted[name] = {"value": value}

    def unlabel(self, name: str) -> None:
        self.patch(name, {"metadata": {"labels": {LABEL: None}}})
        del self.wanted[name]

    def label(self, name: str, data: dict[str, str]) -> None:
        self.patch(name, {"metadata": {"labels": {LABEL: "true"}}})
        self.wanted[name] = data

    def faults(self, *foreign: str) -> list[str]:
        """What the server has that it should not have, in words; ``foreign`` copies are skipped."""
        listed = self.core.list_namespaced_config_map(self.namespace).items
        found = {item.metadata.name: item for item in listed}
        faults = []
        for name, data in self.wanted.items():
            copy = found.get(name + SUFFIX)
            if copy is None:
                faults.append(f"{name} has no copy")
            elif copy.data != data:
                faults.append(f"{name} is {data}, and its copy {copy.data}")
            elif [one.uid for one in copy.metadata.owner_references or ()] != [
                found[name].metadata.uid
            ]:
                faults.append(f"the copy of {name} is owned by {copy.metadata.owner_references}")
        for name in found:
            of = name.removesuffix(SUFFIX)
            if of != name and of not in self.wanted and name not in foreign:
                faults.append(f"{name} should not be there")
        return faults


@pytest.fixture
def config_maps(cluster: Any, request: pytest.FixtureRequest) -> Iterator[ConfigMaps]:
    """An empty namespace of the test's own."""
    name = request.node.name.replace("_", "-").lower()
    with contextlib.closing(cluster.client()) as client:
        yield ConfigMaps(client, name[:63].rstrip("-"))


class Controller:
    """The running program, and what it has in shared memory."""

    def __init__(self, program: Program, store: shmcache.Store, keys: shmcache.WorkQueue) -> None:
        self.program, self.store, self.keys = program, store, keys

    def unfinished(self) -> list[str]:
        """What is still to be done, or will never be, in words."""
        keys = self.keys
        return [
            *(f"{key} is queued" for key in keys.queued()),
            *(f"{one.key} is with process {one.pid}" for one in keys.in_flight()),
            *(f"{one.key} waits for {one.seconds:.1f} s" for one in keys.delayed()),
            *(f"{one.key} is dead" for one in keys.dead_letters()),
        ]

    def until_right(self, faults: Callable[[], list[str]]) -> None:
        """Wait until nothing is to be done, and what was done is right; else say what is wrong."""
        end = time.monotonic() + DEADLINE
        while wrong := [*self.unfinished(), *faults()]:
            if time.monotonic() > end or not self.program.alive:
                said = self.program.output[-5000:]
                pytest.fail(f"{len(wrong)} faults after {DEADLINE:g} s: {wrong}\n{said}")
            time.sleep(POLL)

    def victim(self, kind: str) -> int | None:
        """A worker of that kind, if there is one at this moment."""
        if kind == "reflecting":
            status = self.store.reflector_status()
            found = {status.pid} if status.alive else set()
        elif kind == "busy":
            found = {one.pid for one in self.keys.in_flight()}
        else:
            found = self.program.children()
        return min(found & self.program.children(), default=None) if found else None

    def kill(self, kind: str) -> str:
        """SIGKILL for a worker of that kind, or for any if none happens to be busy; its kind."""
        pid = None
        if kind == "busy":
            looks = (self.victim(kind) for _ in range(LOOKS))
            pid = next(filter(None, looks), None)
            kind = "busy" if pid else "any"
        if pid is None:
            pid = self.program.until(lambda: self.victim(kind), f"there is a worker: {kind}")
        os.kill(pid, signal.SIGKILL)
        # Not before it is gone: else it might be killed twice, and counted twice.
        self.program.until(lambda: pid not in self.program.children(), "a killed worker is gone")
        return kind

    def end(self) -> None:
        """As systemd would; nothing may be left."""
        arenas = self.program.arenas()
        self.program.terminate()
        assert self.program.wait() == 0, self.program.output
        assert "Traceback" not in self.program.output
        assert [path for path in arenas if os.path.exists(path)] == []


@pytest.fixture
def controller(kubeconfig: str, config_maps: ConfigMaps, tmp_path: Path) -> Iterator[Controller]:
    """The example at work, with four workers, in that namespace."""
    options = ("--kubeconfig", kubeconfig, "--namespace", config_maps.namespace, "--workers", "4")
    with contextlib.ExitStack() as stack:
        program = stack.enter_context(Program(tmp_path / "log", "controller.py", *options))
        program.until(lambda: len(program.children()) == 4, "four workers run")
        names = [os.path.basename(path).removeprefix("shmcache.") for path in program.arenas()]
        handles = [stack.enter_context(shmcache.attach(name)) for name in names]
        (keys,) = (one for one in handles if isinstance(one, shmcache.WorkQueue))
        (store,) = (one for one in handles if isinstance(one, shmcache.Store))
        yield Controller(program, store, keys)
    for name in names:  # of a program that had to be killed
        with contextlib.suppress(shmcache.ArenaNotFoundError):
            shmcache.unlink(name)


@contextlib.contextmanager
def no_matter_if_not_there() -> Iterator[None]:
    """The controller may not have made that copy yet."""
    try:
        yield
    except kubernetes.client.ApiException as error:
        if error.status != 404:
            raise


def changes(config_maps: ConfigMaps, rng: random.Random) -> Iterator[Callable[[], None]]:
    """What users do to some ConfigMaps and their copies, in a random order."""
    names = [f"settings-{number}" for number in range(CONFIG_MAPS)]
    steps = [name for name in names for _ in range(CHANGES_OF_EACH)]
    rng.shuffle(steps)
    data: dict[str, dict[str, str]] = {}  # of those that exist, labelled or not

    def step(number: int, name: str) -> None:
        value = {"value": str(number)}
        if name not in data:
            config_maps.create(name, **value)
            data[name] = value
        elif name not in config_maps.wanted:
            config_maps.label(name, data[name])
        else:
            match rng.choice(("change", "unlabel", "delete", "again", "spoil", "lose")):
                case "change":
                    config_maps.change(name, str(number))
                    data[name] = value
                case "unlabel":
                    config_maps.unlabel(name)
                case "delete":
                    config_maps.delete(name)
                    del data[name]
                case "again":
                    config_maps.delete(name)
                    config_maps.create(name, **data[name])  # for which the copy has the wrong owner
                case "spoil":
                    with no_matter_if_not_there():
                        config_maps.patch(name + SUFFIX, {"data": {"value": "?", "more": "?"}})
                case "lose":
                    with no_matter_if_not_there():
                        config_maps.delete(name + SUFFIX)

    for number, name in enumerate(steps):
        yield lambda number=number, name=name: step(number, name)  # type: ignore[misc]


def test_no_change_is_lost_with_killed_workers(
    controller: Controller, config_maps: ConfigMaps, record_property: Callable[[str, object], None]
) -> None:
    """Whatever is made, changed, unlabelled, spoiled and deleted while workers are killed, the
    reflecting one among them: then each labelled ConfigMap has its copy, and no other is there; no
    key is left with anybody, and the supervisor has replaced every worker."""
    began, rng = time.monotonic(), random.Random(SEED)
    kills: Counter[str] = Counter()
    for number, change in enumerate(changes(config_maps, rng), 1):
        change()
        if rng.random() < 0.25:
            kills[controller.kill(rng.choice(KILLS))] += 1
        if number % ROUND == 0:
            controller.until_right(config_maps.faults)
    assert kills.total() >= 15
    assert kills["reflecting"] >= 5
    program, reconciles = controller.program, controller.keys.stats().pops
    program.until(
        lambda: program.output.count("has ended with -9") == kills.total(),
        "each that was killed is replaced",
    )
    controller.end()
    assert config_maps.faults() == []
    said = program.output
    assert all(said.count(f" {what} ") >= 5 for what in ("created", "repaired", "deleted")), said
    seconds = time.monotonic() - began
    figures = f"{number} changes, {dict(kills)} killed, {reconciles} keys, {seconds:.1f} s"
    record_property("figures", figures)


def test_what_others_own_is_left_alone(controller: Controller, config_maps: ConfigMaps) -> None:
    """A ConfigMap that has the name of a copy and no owner is neither changed nor deleted; when it
    is gone, the copy takes its place."""
    for name in ("taken", "unlabelled", "gone"):
        config_maps.create(name + SUFFIX, label="no", value="mine")
    config_maps.create("taken", value="1")
    config_maps.create("unlabelled", label="false", value="1")
    config_maps.create("gone", value="1")
    config_maps.delete("gone")
    config_maps.create("witness", value="1")
    del config_maps.wanted["taken"]
    foreign = [name + SUFFIX for name in ("taken", "unlabelled", "gone")]
    controller.until_right(lambda: config_maps.faults(*foreign))
    for name in foreign:
        found = config_maps.core.read_namespaced_config_map(name, config_maps.namespace)
        assert found.data == {"value": "mine"}
    config_maps.delete("taken" + SUFFIX)
    config_maps.wanted["taken"] = {"value": "1"}
    controller.until_right(lambda: config_maps.faults(*foreign))
    controller.end()
