"""How the fuzzers change a good file: hostile values in JSON, entries taken away or repeated, and damaged bytes."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

from ticketry.lab.store.files import digest_of

Place = tuple[Any, ...]
"""The keys on the way to a part of a JSON value."""

RUN_FILE: dict[str, Any] = {
    "method": "iterative",
    "task": "digits",
    "replicates": 2,
    "controls": ["shuffled"],
    "settings": {"rate": 0.2, "rewind": "3%", "levels": 2, "score": "magnitude"},
    "recipe": {"length": "10ep", "lr": 0.1, "batch": 64, "milestones": ["50%"]},
    "seeds": {"initialisation": 0, "order": 1, "mask": 2},
    "options": {"train": 100},
}
"""Content of a valid run file."""


def _nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


HOSTILE: list[Any] = [
    *(None, True, False, 0, -1, 1, 2, 1 << 31, 1 << 53, 1 << 64, -(1 << 63), 10**300, 0.5, -0.0, 1e300, 1e-320),
    *(float("nan"), float("inf"), _nested(40), _nested(300), "\ud800", "0" * 64),
    *("", "x", "../../evil", "/etc/passwd", "os:system", "a\0b", "\x1b[2J", "=1+1", "<b>", "9" * 500, "é" * 300, "end"),
    *([], {}, [[]], [None], {"": 0}, [0] * 50, {"a": {"b": {"c": 1}}}, "digits", "2:4", "1e5", "nan", "0it", "100%"),
]


def places(value: Any, place: Place = ()) -> Iterator[Place]:
    """The place of everything in a JSON value."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in entries:
        yield (*place, key)
        yield from places(part, (*place, key))


def changed(value: Any, draw: Random, known: Sequence[Place] | None = None) -> Any:
    """Return a copy of a JSON value with up to three changes.

    Args:
        known: the value's `places`, if they are known: to look for them takes longer than to change one.
    """
    known = known or list(places(value))
    for _ in range(draw.randint(1, 3)):
        value = _changed_at(value, draw.choice(known), draw) if known else draw.choice(HOSTILE)
    return value


def _changed_at(value: Any, place: Place, draw: Random) -> Any:
    key, rest = place[0], place[1:]
    if isinstance(key, int):
        there = isinstance(value, list) and key < len(value)
    else:
        there = isinstance(value, dict) and key in value
    if not there:  # an earlier change took it away
        return value
    value = copy.copy(value)
    if rest:
        value[key] = _changed_at(value[key], rest, draw)
        return value
    how = draw.randrange(6)
    if how < 3:
        value[key] = draw.choice(HOSTILE)
    elif how == 3:
        del value[key]
    elif how == 4:
        value[key] = [value[key]] * draw.choice((1, 2, 3 if isinstance(value[key], dict | list) else 40))
    elif isinstance(value, dict):
        value[draw.choice(("x", "", f"{key}x"))] = value.pop(key)
    return value


def damaged_bytes(data: bytes, draw: Random) -> bytes:
    """Bytes flipped, cut, repeated or put in."""
    made_of = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(made_of) + 1)
        how = draw.randrange(5)
        if how == 0 and at < len(made_of):
            made_of[at] ^= 1 << draw.randrange(8)
        elif how == 1:
            del made_of[at:]
        elif how == 2:
            made_of[at:at] = made_of[at : at + draw.randrange(64)]
        elif how == 3:
            del made_of[at : at + draw.randrange(64)]
        else:
            made_of[at:at] = draw.randbytes(draw.randrange(16))
    return bytes(made_of)


def changed_header(data: bytes, draw: Random) -> bytes:
    """A safetensors file with changes in its header, or in the JSON that is a text of its metadata."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    texts = header.get("__metadata__", {})
    inner_json = [name for name, text in sorted(texts.items()) if text.startswith("{")]
    if inner_json and draw.random() < 0.6:
        name = draw.choice(inner_json)
        inner = json.dumps(changed(json.loads(texts[name]), draw))
        header = {**header, "__metadata__": {**texts, name: inner}}
    else:
        header = changed(header, draw)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def sealed_values(values: dict[str, Any]) -> bytes:
    """JSON with a digest that is right."""
    return json.dumps({**values, "sha256": digest_of(values)}).encode()


def toml(values: dict[str, Any]) -> str:
    """Write the values as inline TOML, without those that TOML cannot express."""

    def word(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{json.dumps(k)} = {word(v)}" for k, v in value.items() if v is not None) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(word(v) for v in value if v is not None) + "]"
        return {"NaN": "nan", "Infinity": "inf"}.get(json.dumps(value), json.dumps(value))

    return "\n".join(f"{json.dumps(key)} = {word(value)}" for key, value in values.items() if value is not None)
