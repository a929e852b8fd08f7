"""The stock key functions: the key of an object, its namespace, and a key taken apart."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from shmcache import (
    KeyFuncError,
    meta_namespace_index_func,
    meta_namespace_key_func,
    split_meta_namespace_key,
)


def as_mapping(**metadata: Any) -> Any:
    return {"metadata": metadata}


def as_model(**metadata: Any) -> Any:
    return SimpleNamespace(metadata=SimpleNamespace(**metadata))


@pytest.mark.parametrize("make", [as_mapping, as_model])
@pytest.mark.parametrize(
    ("metadata", "key", "namespace"),
    [
        ({"namespace": "ns", "name": "a"}, "ns/a", "ns"),
        ({"namespace": "", "name": "a"}, "a", ""),
        ({"namespace": None, "name": "a"}, "a", ""),
        ({"name": "a"}, "a", ""),
    ],
)
def test_key_and_namespace(make: Any, metadata: dict[str, Any], key: str, namespace: str) -> None:
    """The key is namespace/name, the name alone without one; the namespace is a list of one."""
    assert meta_namespace_key_func(make(**metadata)) == key
    assert meta_namespace_index_func(make(**metadata)) == [namespace]
    assert split_meta_namespace_key(key) == (namespace, "a")


@pytest.mark.parametrize("make", [as_mapping, as_model])
@pytest.mark.parametrize(
    "metadata", [{}, {"name": ""}, {"name": None}, {"name": "", "namespace": "x"}]
)
def test_an_empty_name_is_no_key(make: Any, metadata: dict[str, Any]) -> None:
    """Objects without a name are refused: they would all be one entry."""
    obj = make(**metadata)
    with pytest.raises(KeyFuncError, match=r"empty metadata\.name") as caught:
        meta_namespace_key_func(obj)
    assert caught.value.obj is obj


@pytest.mark.parametrize(
    "obj", [None, 7, "text", {}, {"metadata": None}, SimpleNamespace()], ids=repr
)
def test_what_has_no_metadata_has_no_key(obj: Any) -> None:
    """An object without metadata has neither key nor namespace, and the error carries it."""
    for function in (meta_namespace_key_func, meta_namespace_index_func):
        with pytest.raises(KeyFuncError, match="no metadata") as caught:
            function(obj)
        assert caught.value.obj is obj


@pytest.mark.parametrize("metadata", [{"name": 7}, {"name": "a", "namespace": 7}])
def test_names_are_text(metadata: dict[str, Any]) -> None:
    """A name or namespace of another type is refused and not written as text."""
    with pytest.raises(KeyFuncError, match="must be a str, not int"):
        meta_namespace_key_func({"metadata": metadata})


def test_a_key_with_two_slashes_is_not_ours() -> None:
    """split_meta_namespace_key refuses what the key function cannot have made."""
    with pytest.raises(KeyFuncError, match="'a/b/c'"):
        split_meta_namespace_key("a/b/c")


@pytest.mark.parametrize("key", [3, None, b"a/b"])
def test_a_key_is_text(key: Any) -> None:
    """split_meta_namespace_key says what it got where that is no str."""
    with pytest.raises(TypeError, match=f"a key must be a str, not {key!r}"):
        split_meta_namespace_key(key)
