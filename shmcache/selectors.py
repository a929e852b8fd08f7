"""Label and field selectors: Kubernetes syntax, parsed into small frozen objects.

A *label selector* filters by the labels of an object (``app in (web, api), tier!=db``), a
*field selector* by a few of its fields (``spec.nodeName=,status.phase!=Failed``). Syntax and
meaning are those of today's API server: ``in`` and ``=`` need the label to be there, ``notin``
and ``!=`` also hold without it; a missing field equals ``""``.

May import: ``_errors``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn, Protocol, TypeAlias, runtime_checkable

from shmcache._errors import SelectorError

__all__ = [
    "FieldSelector",
    "FieldTerm",
    "LabelRequirement",
    "LabelSelector",
    "Selector",
    "SelectorLike",
]


@runtime_checkable
class Selector(Protocol):
    """Anything that says whether the labels (or the fields) of an object are wanted."""

    def matches(self, values: Mapping[str, str] | None, /) -> bool: ...


SelectorLike: TypeAlias = "str | Mapping[str, str] | Selector | None"
"""How a selector may be given: its text, a dict of equalities, a parsed one, None for all."""


@dataclass(frozen=True, slots=True)
class LabelRequirement:
    """One term of a label selector.

    ``operator`` is ``"in"``, ``"notin"``, ``"exists"``, ``"!"``, ``">"`` or ``"<"``; ``a=b`` is
    ``in`` with one value, ``a!=b`` is ``notin`` with one.
    """

    key: str
    operator: str
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Return whether ``labels`` fulfil this term.

        >>> LabelRequirement("tier", "notin", frozenset({"db"})).matches({})
        True
        """
        value = labels.get(self.key)
        match self.operator:
            case "in":
                return value in self.values
            case "notin":
                return value not in self.values
            case "exists":
                return value is not None
            case "!":
                return value is None
        number = _int64(value)
        if number is None:
            return False
        (bound,) = map(int, self.values)
        return number > bound if self.operator == ">" else number < bound

    def __str__(self) -> str:
        match self.operator:
            case "exists":
                return self.key
            case "!":
                return f"!{self.key}"
            case "in" | "notin" if len(self.values) == 1:
                (value,) = self.values
                return f"{self.key}{'=' if self.operator == 'in' else '!='}{value}"
            case "in" | "notin":
                return f"{self.key} {self.operator} ({','.join(sorted(self.values))})"
        (value,) = self.values
        return f"{self.key}{self.operator}{value}"


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """All of ``requirements`` must hold; without any, everything matches."""

    requirements: tuple[LabelRequirement, ...] = ()

    @classmethod
    def parse(cls, text: str) -> LabelSelector:
        """Parse the Kubernetes syntax.

        Terms are separated by commas: ``a=b``, ``a==b``, ``a!=b``, ``a in (x, y)``,
        ``a notin (x)``, ``a`` (there), ``!a`` (not there), ``a>1``, ``a<2`` (integers).
        Raises :class:`SelectorError`.

        >>> str(LabelSelector.parse("tier notin (db), app == web"))
        'app=web,tier!=db'
        """
        requirements = _LabelParser(text).requirements()
        # Sorted by key, as the server shows them; equal selectors then compare equal.
        return cls(tuple(sorted(requirements, key=lambda term: (term.key, str(term)))))

    @classmethod
    def from_dict(cls, labels: Mapping[str, str]) -> LabelSelector:
        """Make the selector that wants each of ``labels`` with its value.

        >>> str(LabelSelector.from_dict({"app": "web", "tier": "front"}))
        'app=web,tier=front'
        """
        return cls(
            tuple(
                LabelRequirement(key, "in", frozenset((value,)))
                for key, value in sorted(labels.items())
            )
        )

    @staticmethod
    def of(selector: SelectorLike) -> Selector:
        """Return the selector that any accepted spelling means: text, dict, parsed, None (all).

        Raises :class:`SelectorError` for bad text and ``TypeError`` for anything else.

        >>> LabelSelector.of({"app": "web"}).matches({"app": "web", "tier": "front"})
        True
        """
        if selector is None:
            return LabelSelector()
        if isinstance(selector, str):
            return LabelSelector.parse(selector)
        if isinstance(selector, Mapping):
            return LabelSelector.from_dict(selector)
        if isinstance(selector, Selector) and not isinstance(selector, FieldSelector):
            return selector
        raise TypeError(f"not a label selector: {type(selector).__name__}")

    def matches(self, values: Mapping[str, str] | None, /) -> bool:
        """Return whether the labels fulfil every requirement; None is no labels.

        >>> LabelSelector.parse("app,!legacy").matches({"app": "web"})
        True
        """
        labels = {} if values is None else values
        return all(term.matches(labels) for term in self.requirements)

    def __str__(self) -> str:
        return ",".join(map(str, self.requirements))


@dataclass(frozen=True, slots=True)
class FieldTerm:
    """One term of a field selector: ``field`` equals ``value``, or with ``negated`` does not."""

    field: str
    value: str
    negated: bool = False

    def __str__(self) -> str:
        value = re.sub(r"([\\,=])", r"\\\1", self.value)
        return f"{self.field}{'!=' if self.negated else '='}{value}"


@dataclass(frozen=True, slots=True)
class FieldSelector:
    """All of ``terms`` must hold; without any, everything matches."""

    terms: tuple[FieldTerm, ...] = ()

    @classmethod
    def parse(cls, text: str) -> FieldSelector:
        r"""Parse ``field=value``, ``field==value`` and ``field!=value``, separated by commas.

        In a value, ``\,``, ``\=`` and ``\\`` stand for the character after the backslash.
        Raises :class:`SelectorError`.

        >>> str(FieldSelector.parse(r"spec.nodeName!=,metadata.name==a\,b"))
        'metadata.name=a\\,b,spec.nodeName!='
        """
        terms = _field_terms(text)
        return cls(tuple(sorted(terms, key=lambda t: (t.field, t.negated, t.value))))

    @classmethod
    def from_dict(cls, fields: Mapping[str, str]) -> FieldSelector:
        """Make the selector that wants each of ``fields`` to have its value.

        >>> str(FieldSelector.from_dict({"spec.nodeName": ""}))
        'spec.nodeName='
        """
        return cls(tuple(FieldTerm(field, value) for field, value in sorted(fields.items())))

    def matches(self, values: Mapping[str, str] | None, /) -> bool:
        """Return whether the fields (dotted path to value) fulfil every term.

        >>> FieldSelector.parse("spec.nodeName=").matches({"metadata.name": "web-0"})
        True
        """
        fields = {} if values is None else values
        return all((fields.get(t.field, "") == t.value) is not t.negated for t in self.terms)

    def __str__(self) -> str:
        return ",".join(map(str, self.terms))


def _int64(value: str | None) -> int | None:
    """Read what the server's 64-bit ParseInt reads; ``int()`` also takes spaces and ``1_0``."""
    if value is None or not re.fullmatch(r"[+-]?[0-9]+", value):
        return None
    number = int(value)
    return number if -(2**63) <= number < 2**63 else None


# Label selectors. One regular expression makes the tokens; the parser below reads them with one
# token of look-ahead. "in" and "notin" are ordinary words that only an operator place gives
# meaning, so that a label may have such a name.

_TOKEN = re.compile(r"[ \t\r\n]*(==|!=|[=!<>(),]|[^ \t\r\n=!<>(),]+|$)")
_NAME = r"[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?"
_DNS_LABEL = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?"
_PREFIX = re.compile(rf"{_DNS_LABEL}(?:\.{_DNS_LABEL})*")
_SYMBOLS = frozenset({"==", "!=", "=", "!", "<", ">", "(", ")", ",", ""})
_OPERATORS = frozenset({"=", "==", "!=", "in", "notin", "<", ">"})


class _LabelParser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = [(match[1], match.start(1)) for match in _TOKEN.finditer(text)]
        self.at = 0

    def requirements(self) -> Iterator[LabelRequirement]:
        if self.peek() == "":
            return
        yield self.requirement()
        while self.peek() != "":
            self.expect(",")
            yield self.requirement()

    def requirement(self) -> LabelRequirement:
        negated = self.peek() == "!"
        if negated:
            self.at += 1
        key = self.key()
        if negated:
            return LabelRequirement(key, "!")
        operator = self.peek()
        if operator in ("", ","):
            return LabelRequirement(key, "exists")
        if operator not in _OPERATORS:
            self.fail("expected an operator: = == != in notin < > or ','")
        self.at += 1
        if operator in ("in", "notin"):
            return LabelRequirement(key, operator, frozenset(self.value_list()))
        value = self.value()
        if operator in ("<", ">"):
            if _int64(value) is None:
                self.at -= bool(value)
                self.fail(f"expected an integer after '{operator}'")
            return LabelRequirement(key, operator, frozenset((value,)))
        return LabelRequirement(key, "notin" if operator == "!=" else "in", frozenset((value,)))

    def key(self) -> str:
        key = self.peek()
        if key in _SYMBOLS:
            self.fail("expected a label name")
        prefix, slash, name = key.rpartition("/")
        if slash and not (len(prefix) <= 253 and _PREFIX.fullmatch(prefix)):
            self.fail(f"the prefix of label name {key!r} is not a lower-case DNS name")
        if not (len(name) <= 63 and re.fullmatch(_NAME, name)):
            self.fail(
                f"bad label name {key!r}: at most 63 letters, digits, '-', '_' or '.', "
                "a letter or digit first and last"
            )
        self.at += 1
        return key

    def value(self) -> str:
        value = self.peek()
        if value in ("", ",", ")"):  # the empty value, as in "a=" or "a in (x,)"
            return ""
        if value in _SYMBOLS:
            self.fail("expected a value")
        if not (len(value) <= 63 and re.fullmatch(_NAME, value)):
            self.fail(
                f"bad label value {value!r}: at most 63 letters, digits, '-', '_' or '.', "
                "a letter or digit first and last"
            )
        self.at += 1
        return value

    def value_list(self) -> Iterator[str]:
        self.expect("(")
        if self.peek() == ")":
            self.fail("expected a value: the list is empty")
        yield self.value()
        while self.peek() != ")":
            self.expect(",", "expected ',' or ')'")
            yield self.value()
        self.at += 1

    def peek(self) -> str:
        return self.tokens[self.at][0]

    def expect(self, token: str, message: str = "") -> None:
        if self.peek() != token:
            self.fail(message or f"expected '{token}'")
        self.at += 1

    def fail(self, message: str) -> NoReturn:
        raise SelectorError(message, self.text, self.tokens[self.at][1])


# Field selectors. A term ends at a comma that no backslash escapes.

_FIELD_TERM = re.compile(r"(?:[^\\,]|\\.|\\$)+", re.DOTALL)
_FIELD_OPERATOR = re.compile(r"!=|==|=")


def _field_terms(text: str) -> Iterator[FieldTerm]:
    for match in _FIELD_TERM.finditer(text):
        term, start = match[0], match.start()
        operator = _FIELD_OPERATOR.search(term)
        if operator is None:
            raise SelectorError("expected '=', '==' or '!='", text, match.end())
        field = term[: operator.start()]
        bad = re.search(r"[^\w./\[\]'-]", field)
        if not field or bad:
            at = start + (bad.start() if bad else 0)
            raise SelectorError("expected a field name like metadata.name", text, at)
        value = _unescape(term[operator.end() :], text, start + operator.end())
        yield FieldTerm(field, value, operator[0] == "!=")


def _unescape(value: str, text: str, start: int) -> str:
    for match in re.finditer(r"\\[\\,=]|[\\=]", value):
        if match[0] == "=":
            raise SelectorError(r"write '\=' for a '=' in a value", text, start + match.start())
        if match[0] == "\\":
            at = start + match.start()
            raise SelectorError(r"only '\,', '\=' and '\\' are escapes", text, at)
    return re.sub(r"\\(.)", r"\1", value)
