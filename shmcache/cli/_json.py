"""Objects of a store as JSON, as one line for people, and bytes as a dump.

May import: nothing of shmcache.
"""

from __future__ import annotations

import base64
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

__all__ = ["hex_dump", "preview", "to_json"]

_CONTROLS = re.compile("[\x7f-\x9f]")
_PREVIEW_BYTES = 32
# What says the same of each object of a store, or what its key says already.
_KNOWN = ("apiVersion", "kind", "metadata")


def to_json(value: Any, indent: int | None = None) -> str:
    """``value`` as JSON, in one line unless there is an ``indent``.

    What JSON has no form for: bytes become ``{"base64": "…"}``, datetimes ISO 8601, keys of maps
    that are no text their JSON, and floats that are no number null, as in JavaScript.

    >>> to_json({"data": b"ab", 1: float("nan")})
    '{"data":{"base64":"YWI="},"1":null}'
    """
    options: dict[str, Any] = {
        "default": _simpler,
        "indent": indent,
        "separators": (",", ": " if indent else ":"),
        "allow_nan": False,
        "ensure_ascii": (sys.stdout.encoding or "").lower() not in ("utf-8", "utf8"),
    }
    try:
        text = json.dumps(value, **options)
    except (TypeError, ValueError):
        text = json.dumps(_possible(value), **options)
    # JSON allows them in a text, and some terminals obey them.
    return _CONTROLS.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def preview(value: Any) -> str:
    """``value`` in one line for people: JSON without what the key or the kind of store says.

    >>> preview({"metadata": {"name": "web-0"}, "spec": {"nodeName": "n1"}})
    '{"spec":{"nodeName":"n1"}}'
    >>> preview(b"plain text"), preview(bytes(3))
    ('plain text', '000000 (3 bytes)')
    """
    if isinstance(value, bytes):
        return _preview_bytes(value)
    if isinstance(value, Mapping):
        telling = {key: value[key] for key in value if key not in _KNOWN}
        return to_json(telling or value)
    return to_json(value)


def hex_dump(data: bytes) -> Iterator[str]:
    """``data`` for people, 16 bytes a line: where they are, their digits, their characters.

    >>> list(hex_dump(b"GIF89a" + bytes(12)))[1]
    '00000010  00 00                                            ..'
    """
    for start in range(0, len(data), 16):
        row = data[start : start + 16]
        readable = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        yield f"{start:08x}  {row.hex(' '):<48} {readable}"


def _preview_bytes(data: bytes) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = "\0"
    if text.isprintable():
        return text
    shown = data[:_PREVIEW_BYTES].hex() + ("…" if len(data) > _PREVIEW_BYTES else "")
    return f"{shown} ({len(data)} byte{'s' if len(data) != 1 else ''})"


def _simpler(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"no JSON for a {type(value).__name__}")


def _possible(value: Any) -> Any:
    """``value`` with keys that are text, and with floats that are numbers."""
    if isinstance(value, Mapping):
        return {
            key if isinstance(key, str) else to_json(key): _possible(item)
            for key, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_possible(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
