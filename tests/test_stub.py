"""The stub of the native core, beside the core.

mypy's stubtest sees no functions in nanobind's, and their own stub generator knows neither what
is in a list nor what an object is. So the stub is written by hand, and compared here with the
signatures that nanobind keeps.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest

import shmcache
from shmcache import _core

STUB = Path(shmcache.__file__).with_name("_core.pyi")


def parameters(function: ast.FunctionDef) -> list[tuple[str, bool]]:
    """Each parameter's name, and whether it has a default."""
    arguments = [*function.args.posonlyargs, *function.args.args]
    assert not function.args.kwonlyargs
    required = len(arguments) - len(function.args.defaults)
    return [(argument.arg, at >= required) for at, argument in enumerate(arguments)]


def result(function: ast.FunctionDef) -> str:
    """What it returns, without what is in it: ``list`` for ``list[str]``."""
    return ast.unparse(function.returns or ast.Constant(None)).split("[")[0]


def described(stub: str) -> dict[str, ast.FunctionDef | None]:
    """The functions, methods and values of a stub by dotted name; None for what is no function."""
    found: dict[str, ast.FunctionDef | None] = {}

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            match node:
                case ast.FunctionDef():
                    found[prefix + node.name] = node
                case ast.ClassDef():
                    found[prefix + node.name] = None
                    visit(node.body, f"{node.name}.")
                case ast.AnnAssign(target=ast.Name(id=name)):
                    found[prefix + name] = None

    visit(ast.parse(stub).body, "")
    return found


def native() -> dict[str, Any]:
    """The members of the core by dotted name, as they lie in their module or class."""
    found = {name: value for name, value in vars(_core).items() if not name.startswith("__")}
    for kind in [value for value in found.values() if inspect.isclass(value)]:
        for name, value in vars(kind).items():
            if not name.startswith("__") or type(value).__name__ == "nb_method":
                found[f"{kind.__name__}.{name}"] = value
    return found


def kind_said(function: ast.FunctionDef | None) -> str:
    """What a member is by the stub."""
    if function is None:
        return "value"
    decorators = {ast.unparse(decorator) for decorator in function.decorator_list}
    return "property" if "property" in decorators else "function"


def kind_of(value: object) -> str:
    """What a member is in the core."""
    if isinstance(value, property):
        return "property"
    return "function" if callable(value) and not inspect.isclass(value) else "value"


def differences(stub: str) -> list[str]:
    """Where a stub says something else than the core; a sentence each."""
    said, real = described(stub), native()
    found = [f"{name} is only in the stub" for name in said.keys() - real.keys()]
    found += [f"{name} is only in the core" for name in real.keys() - said.keys()]
    for name in said.keys() & real.keys():
        function, value = said[name], real[name]
        if kind_said(function) != kind_of(value):
            found.append(f"{name} is a {kind_said(function)} in the stub, a {kind_of(value)} there")
            continue
        kept = getattr(
            value.fget if isinstance(value, property) else value, "__nb_signature__", None
        )
        if function is None or kept is None:  # no function, or one past nanobind, for speed
            continue
        # nanobind writes "\3" where its default number 3 stands.
        text = re.sub(r"\\(\d+)", r"\1", kept[0][0]).replace("def (", "def _(")
        (its,) = ast.parse(f"{text}: ...").body
        assert isinstance(its, ast.FunctionDef)
        mine, theirs = parameters(function), parameters(its)
        if name.split(".")[-1].startswith("__"):  # arguments without names
            mine, theirs = mine[1:], theirs[1:]
            if len(mine) != len(theirs):
                found.append(f"{name} has another number of parameters")
        elif mine != theirs:
            found.append(f"{name} takes {mine} in the stub, {theirs} in the core")
        if result(its) not in {"object", result(function)}:
            found.append(
                f"{name} returns {result(function)} in the stub, {result(its)} in the core"
            )
    return sorted(found)


def test_the_stub_is_that_of_the_core() -> None:
    """Every member of the core is in its stub and the reverse, with the same parameters, defaults
    and kind of result."""
    assert differences(STUB.read_text()) == []


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("def size(self) -> int: ...", "", "Arena.size is only in the core"),
        ("def size(", "def sizes(", "Arena.sizes is only in the stub"),
        ("MAX_KEY_SIZE: int", "", "MAX_KEY_SIZE is only in the core"),
        (
            "MAX_KEY_SIZE: int",
            "def MAX_KEY_SIZE() -> int: ...",
            "MAX_KEY_SIZE is a function in the stub",
        ),
        ("(self, resource_version: str) -> None", "(self, version: str) -> None", "Arena.bookmark"),
        ("data: bytes, most: int)", "data: bytes, most: int = 0)", "nested_deeper takes"),
        ("def size(self) -> int", "def size(self) -> str", "Arena.size returns str"),
        (
            "    @property\n    def closed",
            "    def closed",
            "Arena.closed is a function in the stub",
        ),
    ],
)
def test_a_wrong_stub_is_found(old: str, new: str, found: str) -> None:
    """A stub that lacks a member, has one too many, or another signature, is told."""
    stub = STUB.read_text()
    assert old in stub
    assert any(found in difference for difference in differences(stub.replace(old, new, 1)))
