"""Label and field selectors parse, print and match as the API server's do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmcache._errors import SelectorError, ShmCacheError
from shmcache.selectors import (
    FieldSelector,
    FieldTerm,
    LabelRequirement,
    LabelSelector,
    Selector,
)

NAMES = st.from_regex(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,8}[A-Za-z0-9])?", fullmatch=True)
VALUES = NAMES | st.just("")


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("", ""),
        ("  ", ""),
        ("a=b", "a=b"),
        ("a==b", "a=b"),
        (" a = b ", "a=b"),
        ("a!=b", "a!=b"),
        ("a=", "a="),
        ("a=,b", "a=,b"),
        ("a in (x,y)", "a in (x,y)"),
        ("a in ( y , x )", "a in (x,y)"),
        ("a in (x)", "a=x"),
        ("a notin (x)", "a!=x"),
        ("a notin (y,x)", "a notin (x,y)"),
        ("a in (x,)", "a in (,x)"),
        ("a in (,)", "a="),
        ("a", "a"),
        ("!a", "!a"),
        ("! a", "!a"),
        ("a>1", "a>1"),
        ("a<2", "a<2"),
        ("b,a", "a,b"),
        ("in in (in,notin)", "in in (in,notin)"),
        ("notin", "notin"),
        ("example.com/app=web", "example.com/app=web"),
        ("x in (a),y notin (b),z", "x=a,y!=b,z"),
    ],
)
def test_label_selector_prints_canonically_and_parses_again(text: str, canonical: str) -> None:
    """Every form has one canonical spelling, which parses to the same selector."""
    selector = LabelSelector.parse(text)
    assert str(selector) == canonical
    assert LabelSelector.parse(canonical) == selector


@pytest.mark.parametrize(
    ("text", "labels", "expected"),
    [
        ("", {}, True),
        ("a=b", {"a": "b"}, True),
        ("a=b", {"a": "c"}, False),
        ("a=b", {}, False),
        ("a=", {}, False),
        ("a=", {"a": ""}, True),
        ("a!=b", {}, True),
        ("a!=b", {"a": "b"}, False),
        ("a!=b", {"a": "c"}, True),
        ("a in (x,y)", {"a": "y"}, True),
        ("a in (x,y)", {}, False),
        ("a notin (x,y)", {}, True),
        ("a notin (x,y)", {"a": "x"}, False),
        ("a", {"a": ""}, True),
        ("a", {}, False),
        ("!a", {}, True),
        ("!a", {"a": ""}, False),
        ("a>1", {"a": "2"}, True),
        ("a>1", {"a": "1"}, False),
        ("a>1", {"a": "x"}, False),
        ("a>1", {"a": "1_0"}, False),
        ("a>1", {"a": "99999999999999999999"}, False),
        ("a>1", {}, False),
        ("a<1", {"a": "-5"}, True),
        ("a=b,c", {"a": "b", "c": "d"}, True),
        ("a=b,c", {"a": "b"}, False),
    ],
)
def test_label_selector_matches_as_the_server_does(
    text: str, labels: dict[str, str], expected: bool
) -> None:
    """in and = need the label, notin and != hold without it, > and < compare integers."""
    assert LabelSelector.parse(text).matches(labels) is expected


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("a=b=c", 3),
        ("a,,b", 2),
        ("a,", 2),
        (",a", 0),
        ("=b", 0),
        ("!a=b", 2),
        ("a in x", 5),
        ("a in ()", 6),
        ("a in (x", 7),
        ("a in (x y)", 8),
        ("a b", 2),
        ("a>x", 2),
        ("a<-2", 2),
        ("a>", 2),
        ("a=(", 2),
        ("-a", 0),
        ("a=b c=d", 4),
        ("a=-x", 2),
        ("a/b/c", 0),
        ("Upper.Case/x", 0),
        ("/x", 0),
        ("x/", 0),
        ("a=" + "x" * 64, 2),
        ("y" * 64, 0),
        ("a ! b", 2),
    ],
)
def test_label_syntax_error_points_at_the_place(text: str, position: int) -> None:
    """A syntax error carries the text and puts a caret under the offending token."""
    with pytest.raises(SelectorError) as caught:
        LabelSelector.parse(text)
    assert caught.value.position == position
    _, shown, caret = str(caught.value).split("\n")
    assert shown.strip() == text
    assert caret.index("^") - shown.index(text) == position


def test_selector_error_is_a_value_error_of_ours() -> None:
    """Both `except ShmCacheError` and `except ValueError` catch a bad selector."""
    assert issubclass(SelectorError, ShmCacheError)
    assert issubclass(SelectorError, ValueError)


def test_caret_lines_up_under_text_with_line_breaks() -> None:
    """The shown text is one line, so that the caret below it is at the right place."""
    with pytest.raises(SelectorError) as caught:
        LabelSelector.parse("a,\n=b")
    assert str(caught.value).split("\n")[1:] == ["    a, =b", "       ^"]


@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_label_dict_means_the_same_as_its_text(labels: dict[str, str]) -> None:
    """from_dict is the conjunction of equalities, and its text parses back to it."""
    selector = LabelSelector.from_dict(labels)
    assert selector.matches({**labels, "other-label-name": "x"})
    assert LabelSelector.parse(str(selector)) == selector


@given(st.text(alphabet="ab/-.,=!<>()in not\t1", max_size=20))
def test_any_label_text_parses_or_is_a_selector_error(text: str) -> None:
    """No text makes the parser fail in any way but SelectorError; what parses is canonical."""
    try:
        selector = LabelSelector.parse(text)
    except SelectorError:
        return
    assert LabelSelector.parse(str(selector)) == selector


def test_of_takes_every_spelling() -> None:
    """Text, dict, parsed selector, own selector class and None are all accepted."""

    class Everything:
        def matches(self, values: object, /) -> bool:
            return True

    parsed = LabelSelector.parse("a=b")
    mine = Everything()
    assert isinstance(parsed, Selector)
    assert LabelSelector.of("a=b") == LabelSelector.of({"a": "b"}) == LabelSelector.of(parsed)
    assert LabelSelector.of(None).matches(None)
    assert LabelSelector.of(mine) is mine
    with pytest.raises(TypeError, match="int"):
        LabelSelector.of(3)  # type: ignore[arg-type]


def test_selectors_are_frozen_and_hashable() -> None:
    """Parsed selectors can be dict keys and cannot be changed."""
    selector = LabelSelector.parse("a in (y,x)")
    assert {selector: 1}[LabelSelector.parse("a in (x,y)")] == 1
    assert selector.requirements == (LabelRequirement("a", "in", frozenset("xy")),)
    with pytest.raises(AttributeError):
        selector.requirements = ()  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("", ""),
        (",", ""),
        ("metadata.name=x", "metadata.name=x"),
        ("metadata.name==x", "metadata.name=x"),
        ("spec.nodeName!=,metadata.name=x", "metadata.name=x,spec.nodeName!="),
        (r"a=b\,c", r"a=b\,c"),
        (r"a=b\=c", r"a=b\=c"),
        (r"a=b\\", r"a=b\\"),
        ("a= b", "a= b"),
        ("a=x!y", "a=x!y"),
    ],
)
def test_field_selector_prints_canonically_and_parses_again(text: str, canonical: str) -> None:
    """Every form has one canonical spelling, which parses to the same selector."""
    selector = FieldSelector.parse(text)
    assert str(selector) == canonical
    assert FieldSelector.parse(canonical) == selector


@pytest.mark.parametrize(
    ("text", "fields", "expected"),
    [
        ("", {}, True),
        ("spec.nodeName=", {}, True),
        ("spec.nodeName=", {"spec.nodeName": "n1"}, False),
        ("spec.nodeName!=", {"spec.nodeName": "n1"}, True),
        ("spec.nodeName!=", {}, False),
        (r"metadata.name=a\,b", {"metadata.name": "a,b"}, True),
        ("a=1,b!=2", {"a": "1", "b": "3"}, True),
        ("a=1,b!=2", {"a": "1", "b": "2"}, False),
    ],
)
def test_field_selector_matches_as_the_server_does(
    text: str, fields: dict[str, str], expected: bool
) -> None:
    """All terms must hold, and a missing field equals the empty string."""
    assert FieldSelector.parse(text).matches(fields) is expected
    if not fields:
        assert FieldSelector.parse(text).matches(None) is expected


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("metadata.name", 13),
        ("a=1,b", 5),
        ("=x", 0),
        ("a=1,=2", 4),
        ("a=1, b=2", 4),
        ("a=b=c", 3),
        (r"a=\x", 2),
        ("a=b\\", 3),
        ("a in (b)", 8),
        ("a>1", 3),
    ],
)
def test_field_syntax_error_points_at_the_place(text: str, position: int) -> None:
    """A syntax error in a field selector puts its caret under the offending character."""
    with pytest.raises(SelectorError) as caught:
        FieldSelector.parse(text)
    assert caught.value.position == position


@given(st.dictionaries(st.sampled_from(["metadata.name", "spec.nodeName"]), st.text(max_size=9)))
def test_field_dict_means_the_same_as_its_text(fields: dict[str, str]) -> None:
    """from_dict escapes what needs it: any value survives print and parse."""
    selector = FieldSelector.from_dict(fields)
    assert selector.matches(fields)
    assert FieldSelector.parse(str(selector)) == selector
    assert selector.terms == tuple(FieldTerm(k, v) for k, v in sorted(fields.items()))
