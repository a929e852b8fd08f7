"""What a folder of manifests means: which files count, and what happens to them."""

from __future__ import annotations

import builtins
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmcache import Event, ExpiredError, ListOptions, WatchOptions

pytest.importorskip("watchfiles", reason="needs the extra shmcache[directory]")
pytest.importorskip("yaml", reason="needs the extra shmcache[directory]")

from shmcache.sources.directory import DirectorySource

DEADLINE = 60
LOG = "shmcache.sources.directory"


def manifest(name: str, value: object = 1, kind: str = "Job", namespace: str = "") -> str:
    """One object as YAML, for a file of its own or to be joined by ``---``."""
    where = f", namespace: {namespace}" if namespace else ""
    return (
        f"apiVersion: v1\nkind: {kind}\nmetadata: {{name: {name}{where}}}\nspec: {{n: {value}}}\n"
    )


def replace(path: Path, text: str) -> None:
    """Save as editors do: write another file, and rename it."""
    written = path.with_name(f"{path.name}.tmp")
    written.write_text(text)
    os.replace(written, path)


def content(source: DirectorySource) -> dict[str, Any]:
    items = source.list(ListOptions()).items
    return {item["metadata"]["name"]: item["spec"]["n"] for item in items}


@pytest.fixture
def follow() -> Iterator[Callable[[DirectorySource], Callable[[], tuple[str, str, Any]]]]:
    """Opens a watch that has begun to follow; gives the function that takes its next event."""
    watches = []

    def open_watch(source: DirectorySource) -> Callable[[], tuple[str, str, Any]]:
        version = source.list(ListOptions()).resource_version
        watch = source.watch(WatchOptions(version, DEADLINE))
        watches.append(watch)

        def take() -> tuple[str, str, Any]:
            event = next(watch)
            return event.type, event.object["metadata"]["name"], event.object["spec"]["n"]

        # The first is found by the first reading; what comes after it, by the changes of files.
        (Path(source._path) / "first.yaml").write_text(manifest("first"))
        assert take() == ("ADDED", "first", 1)
        return take

    yield open_watch
    for watch in watches:
        watch.close()


def test_which_files_count(tmp_path: Path) -> None:
    """YAML and JSON at any depth; no hidden file, no other ending, no empty document."""
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "a.yaml").write_text(manifest("a1") + "---\n---\n" + manifest("a2"))
    (tmp_path / "deep/er/b.YML").write_text(manifest("b"))
    (tmp_path / "c.json").write_text(
        json.dumps({"apiVersion": "v1", "kind": "J", "metadata": {"name": "c"}, "spec": {"n": 1}})
    )
    for ignored in (".hidden.yaml", ".git/x.yaml", "a.yaml~", ".a.yaml.swp", "readme.md", "4913"):
        (tmp_path / ignored).write_text(manifest("ignored"))
    source = DirectorySource(tmp_path)
    assert content(source) == dict.fromkeys(["a1", "a2", "b", "c"], 1)
    assert source.failures == 0


def test_kind_list(tmp_path: Path) -> None:
    """The items of a List are objects of their own."""
    items = "".join(f"- {json.dumps(_job(name))}\n" for name in "ab")
    (tmp_path / "all.yaml").write_text(f"apiVersion: v1\nkind: List\nitems:\n{items}")
    (tmp_path / "none.yaml").write_text("apiVersion: v1\nkind: List\nitems:\n")
    assert content(DirectorySource(tmp_path)) == {"a": 1, "b": 1}


def _job(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Job", "metadata": {"name": name}, "spec": {"n": 1}}


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"pattern": "*"}, ["top"]),
        ({"pattern": "sub/**/*.yaml"}, ["deep", "sub"]),
        ({"pattern": "**/d*.yaml"}, ["deep"]),
        ({"kind": "Job", "api_version": "v1"}, ["deep", "top"]),
        ({"api_version": "v2"}, []),
        ({"namespace": "ns"}, ["sub"]),
    ],
)
def test_filters(tmp_path: Path, options: dict[str, Any], names: list[str]) -> None:
    """Files are chosen by the pattern, objects by type and namespace."""
    (tmp_path / "sub/deep").mkdir(parents=True)
    (tmp_path / "top.yaml").write_text(manifest("top"))
    (tmp_path / "sub/sub.yaml").write_text(manifest("sub", kind="Pod", namespace="ns"))
    (tmp_path / "sub/deep/deep.yaml").write_text(manifest("deep"))
    assert sorted(content(DirectorySource(tmp_path, **options))) == names


def test_objects_are_json(tmp_path: Path) -> None:
    """Dates stay text, keys become text, and a version in the manifest is replaced by ours."""
    (tmp_path / "a.yaml").write_text(
        "apiVersion: v1\nkind: Job\nmetadata: {name: a, resourceVersion: '7'}\n"
        "spec: {n: 2024-01-31, 8080: web, t: 2024-01-31T10:00:00Z}\n"
    )
    result = DirectorySource(tmp_path).list(ListOptions())
    (item,) = result.items
    assert item["spec"] == {"n": "2024-01-31", "8080": "web", "t": "2024-01-31T10:00:00Z"}
    assert item["metadata"]["resourceVersion"] == result.resource_version


def test_changes_of_files(tmp_path: Path, follow: Any) -> None:
    """Written, saved by rename, edited in place, moved into a new folder, deleted."""
    take = follow(DirectorySource(tmp_path))
    (tmp_path / "a.yaml").write_text(manifest("a", 1))
    assert take() == ("ADDED", "a", 1)
    replace(tmp_path / "a.yaml", manifest("a", 2))
    assert take() == ("MODIFIED", "a", 2)
    with open(tmp_path / "a.yaml", "a") as file:
        file.write("---\n" + manifest("b", 1))
    assert take() == ("ADDED", "b", 1)
    (tmp_path / "sub").mkdir()
    os.replace(tmp_path / "a.yaml", tmp_path / "sub/moved.yaml")  # the same objects: no event
    (tmp_path / "sub/c.yaml").write_text(manifest("c", 1))
    assert take() == ("ADDED", "c", 1)
    (tmp_path / "sub/moved.yaml").unlink()
    assert [take(), take()] == [("DELETED", "a", 2), ("DELETED", "b", 1)]


def test_a_touched_or_reordered_file_is_no_change(tmp_path: Path, follow: Any) -> None:
    """Only content counts: no event for comments, field order or times."""
    (tmp_path / "a.yaml").write_text(manifest("a"))
    take = follow(DirectorySource(tmp_path))
    os.utime(tmp_path / "a.yaml")
    lines = manifest("a").splitlines()
    replace(tmp_path / "a.yaml", "# a comment\n" + "\n".join(reversed(lines)))
    (tmp_path / "end.yaml").write_text(manifest("end"))
    assert take() == ("ADDED", "end", 1)


def test_true_is_not_one(tmp_path: Path, follow: Any) -> None:
    """A change between values that Python calls equal is one."""
    (tmp_path / "a.yaml").write_text(manifest("a", 1))
    take = follow(DirectorySource(tmp_path))
    replace(tmp_path / "a.yaml", manifest("a", "true"))
    assert take() == ("MODIFIED", "a", True)


def test_deletions_come_first(tmp_path: Path, follow: Any) -> None:
    """An object that becomes one of another kind is DELETED before it is ADDED."""
    (tmp_path / "a.yaml").write_text(manifest("a", kind="Job"))
    take = follow(DirectorySource(tmp_path))
    replace(tmp_path / "a.yaml", manifest("a", kind="CronJob"))
    assert [take()[0], take()[0]] == ["DELETED", "ADDED"]


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"   \n",
        b"a: [1,\n",
        b"kind: Job\n",
        b"apiVersion: v1\nkind: Job\nmetadata: {name: 7}\n",
        b"- 1\n",
        b"\xff\xfe\xff",
        b"apiVersion: v1\nkind: Job\nmetadata: {name: a}\nspec: {n: .nan}\n",
        b"apiVersion: v1\nkind: Job\nmetadata: {name: a}\nspec: !!binary aGVsbG8=\n",
        b"apiVersion: v1\nkind: Job\nmetadata: {name: a}\nspec: &x {n: *x}\n",
        b"apiVersion: v1\nkind: Job\nmetadata: {name: a}\nspec: !!python/object:os.system {}\n",
        b"[" * 5000,
    ],
)
@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_a_bad_file_keeps_its_objects(
    tmp_path: Path, bad: bytes, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Half a file deletes nothing; it is logged and counted once, and counts again when whole."""
    path = tmp_path / f"a.{ending}"
    path.write_text(json.dumps(_job("a")))  # good as YAML too
    source = DirectorySource(tmp_path)
    assert content(source) == {"a": 1}
    path.write_bytes(bad)
    with caplog.at_level(logging.WARNING, LOG):
        assert content(source) == content(source) == {"a": 1}
    assert source.failures == 1
    assert [record.getMessage() for record in caplog.records if "last 1 objects" in record.message]
    path.write_text(json.dumps({**_job("a"), "spec": {"n": 2}}))
    assert content(source) == {"a": 2}


def test_a_bad_file_is_read_again_at_the_next_change(tmp_path: Path, follow: Any) -> None:
    """A watch goes on through a half-written file and sees what it becomes."""
    (tmp_path / "a.yaml").write_text(manifest("a", 1))
    source = DirectorySource(tmp_path)
    take = follow(source)
    (tmp_path / "a.yaml").write_text("a: [1,")
    (tmp_path / "b.yaml").write_text(manifest("b"))
    assert take() == ("ADDED", "b", 1)
    (tmp_path / "a.yaml").write_text(manifest("a", 2))
    assert take() == ("MODIFIED", "a", 2)
    assert source.failures >= 1  # more if it is read between the truncation and the writing


def test_the_log_tells_no_content(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A manifest may be a Secret: of a bad one only file and line are logged."""
    (tmp_path / "a.yaml").write_text("data:\n  password: hunter2\n broken: hunter2\n")
    (tmp_path / "b.json").write_text('{"password": hunter2}')
    with caplog.at_level(logging.DEBUG, LOG):
        DirectorySource(tmp_path).list(ListOptions())
    assert len(caplog.records) == 2
    assert "hunter2" not in caplog.text
    assert "a.yaml: not YAML in line 3" in caplog.text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_cannot_be_read_is_not_deleted(tmp_path: Path) -> None:
    """A file without permission keeps its objects; a folder without makes the list fail."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.yaml").write_text(manifest("a"))
    source = DirectorySource(tmp_path)
    assert content(source) == {"a": 1}
    (tmp_path / "sub/a.yaml").chmod(0)
    assert content(source) == {"a": 1}
    assert source.failures == 1
    (tmp_path / "sub").chmod(0)
    try:
        with pytest.raises(PermissionError):
            source.list(ListOptions())
    finally:
        (tmp_path / "sub").chmod(0o700)


def test_failing_reads_delete_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without descriptors to open files or folders with, nothing is deleted."""
    (tmp_path / "a.yaml").write_text(manifest("a"))
    source = DirectorySource(tmp_path)
    before = source.list(ListOptions())

    def refuse(*args: object) -> Any:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", refuse)
        assert source.list(ListOptions()) == before
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        with pytest.raises(OSError, match="Too many open files"):
            source.list(ListOptions())
    assert source.list(ListOptions()) == before
    assert source.failures == 1


@pytest.mark.parametrize(("old", "new"), [("z/a.yaml", "a.yaml"), ("a.yaml", "z/a.yaml")])
def test_a_rename_while_the_folder_is_read(
    tmp_path: Path, old: str, new: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that moves from where we have not looked to where we have is not missed."""
    (tmp_path / "z").mkdir()
    (tmp_path / old).write_text(manifest("a"))
    source = DirectorySource(tmp_path)
    before = source.list(ListOptions())
    walk = os.walk

    def moving(*args: Any, **options: Any) -> Iterator[Any]:
        for number, step in enumerate(walk(*args, **options)):
            yield step
            if number == (0 if old == "z/a.yaml" else 1) and (tmp_path / old).exists():
                os.replace(tmp_path / old, tmp_path / new)

    monkeypatch.setattr(os, "walk", moving)
    assert source.list(ListOptions()) == before
    assert (tmp_path / new).exists()


def test_one_key_in_two_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The last in the order of paths wins, it is logged once, and the other steps in."""
    (tmp_path / "a.yaml").write_text(manifest("same", 1))
    (tmp_path / "b.yaml").write_text(manifest("same", 2) + "---\n" + manifest("same", 3))
    source = DirectorySource(tmp_path)
    with caplog.at_level(logging.WARNING, LOG):
        assert content(source) == content(source) == {"same": 3}
    messages = [record.getMessage().partition(": ")[2] for record in caplog.records]
    assert messages == [
        "b.yaml: Job same twice; the last wins",
        "Job same is in a.yaml and in b.yaml; the last wins",
    ]
    (tmp_path / "b.yaml").unlink()
    assert content(source) == {"same": 1}


def test_a_mounted_config_map(tmp_path: Path, follow: Any) -> None:
    """The swap of ``..data`` changes all files at once, those in linked folders too."""

    def mount(number: int) -> None:
        data = tmp_path / f"..2024_{number}"
        (data / "sub").mkdir(parents=True)
        (data / "a.yaml").write_text(manifest("a", number))
        (data / "sub/b.yaml").write_text(manifest("b", number))
        (tmp_path / "..data_tmp").symlink_to(data.name)
        os.replace(tmp_path / "..data_tmp", tmp_path / "..data")

    mount(1)
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    (tmp_path / "sub").symlink_to("..data/sub")
    source = DirectorySource(tmp_path)
    assert content(source) == {"a": 1, "b": 1}
    take = follow(source)
    mount(2)
    assert [take(), take()] == [("MODIFIED", "a", 2), ("MODIFIED", "b", 2)]


def test_links_in_a_circle_and_to_nowhere(tmp_path: Path) -> None:
    """A link to a folder above is not followed, and one to nothing is no file."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/up").symlink_to("..")
    (tmp_path / "self").symlink_to(".")
    (tmp_path / "lost.yaml").symlink_to("nowhere.yaml")
    (tmp_path / "sub/a.yaml").write_text(manifest("a"))
    source = DirectorySource(tmp_path)
    assert content(source) == {"a": 1}
    assert source.failures == 0


def test_no_such_folder(tmp_path: Path) -> None:
    """A folder that is not there is an error, and does not mean that all is deleted."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.yaml").write_text(manifest("a"))
    source = DirectorySource(folder)
    version = source.list(ListOptions()).resource_version
    os.replace(folder, tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError):
        source.list(ListOptions())
    with pytest.raises(FileNotFoundError):
        next(source.watch(WatchOptions(version)))
    os.replace(tmp_path / "elsewhere", folder)
    assert content(source) == {"a": 1}
    assert source.list(ListOptions()).resource_version == version


def test_versions_of_another_source_have_expired(tmp_path: Path) -> None:
    """Versions mean something to the source that made them alone."""
    one, two = DirectorySource(tmp_path), DirectorySource(tmp_path)
    version = one.list(ListOptions()).resource_version
    for unknown in (version, "7", "x-y", version + "0"):
        with pytest.raises(ExpiredError):
            two.watch(WatchOptions(unknown))
    one.watch(WatchOptions(version)).close()


def test_history_bounds_what_a_watch_catches_up_on(tmp_path: Path) -> None:
    """From within the history a watch resumes, from before it its version has expired."""
    source = DirectorySource(tmp_path, history=2)
    versions = []
    for value in range(4):
        replace(tmp_path / "a.yaml", manifest("a", value))
        versions.append(source.list(ListOptions()).resource_version)
    watch = source.watch(WatchOptions(versions[1]))
    assert [next(watch).object["spec"]["n"] for _ in range(2)] == [2, 3]
    watch.close()
    with pytest.raises(ExpiredError):
        source.watch(WatchOptions(versions[0]))
    with pytest.raises(ValueError, match="at least 1"):
        DirectorySource(tmp_path, history=0)


def test_a_change_before_the_first_read_is_not_lost(tmp_path: Path) -> None:
    """What changes between the list and the watch's first look at the folder is seen."""
    source = DirectorySource(tmp_path)
    watch = source.watch(WatchOptions(source.list(ListOptions()).resource_version, DEADLINE))
    (tmp_path / "a.yaml").write_text(manifest("a"))
    assert next(watch).type == "ADDED"
    watch.close()


def test_timeout_by_the_clock(tmp_path: Path) -> None:
    """A watch ends by itself when its seconds have passed, after the changes so far."""
    ticks = iter([0.0, 299.0, 300.0])
    source = DirectorySource(tmp_path, _clock=lambda: next(ticks))
    version = source.list(ListOptions()).resource_version
    (tmp_path / "a.yaml").write_text(manifest("a"))
    events = list(source.watch(WatchOptions(version, timeout_seconds=300)))
    assert [event.type for event in events] == ["ADDED"]


def test_reading_is_no_change(tmp_path: Path) -> None:
    """What the source itself does in the folder does not wake its watch."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.yaml").write_text(manifest("a"))
    ticks = iter(range(8))
    source = DirectorySource(tmp_path, _clock=lambda: next(ticks))
    reads = 0
    refresh = source._refresh

    def counting() -> None:
        nonlocal reads
        reads += 1
        refresh()

    version = source.list(ListOptions()).resource_version
    source._refresh = counting  # type: ignore[method-assign]
    assert list(source.watch(WatchOptions(version, timeout_seconds=7))) == []
    assert reads == 1


def test_close_leaves_nothing_open(tmp_path: Path) -> None:
    """The descriptors of closed watches go away, whether the watches were read or not."""
    source = DirectorySource(tmp_path)
    version = source.list(ListOptions()).resource_version
    before = len(os.listdir("/proc/self/fd"))
    (tmp_path / "a.yaml").write_text(manifest("a"))
    watch = source.watch(WatchOptions(version, DEADLINE))
    assert isinstance(next(watch), Event)
    rest: list[Any] = []
    thread = threading.Thread(target=lambda: rest.extend(watch))
    thread.start()
    watch.close()
    thread.join()
    source.watch(WatchOptions(version)).close()
    assert rest == []
    deadline = time.monotonic() + DEADLINE
    while len(os.listdir("/proc/self/fd")) > before:  # watchfiles closes them in its own thread
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("library", ["watchfiles", "yaml"])
def test_a_missing_library_is_named(
    tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a library, making the source says what to install."""
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=rf"{library}: pip install 'shmcache\[directory\]'"):
        DirectorySource(tmp_path)
