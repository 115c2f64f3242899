"""Plain JSON values: what a ticket may say about itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ticketry.errors import TicketError

_DEEPEST = 32
_LONGEST_INTEGER = 10**300  # beyond it Python's JSON writer may refuse what its reader took


def plain(value: object, where: str, depth: int = 0) -> Any:
    """A copy of `value` made of dict, list, str, int, float, bool and None only; tuples become lists, keys are sorted.

    Args:
        value: anything; mappings need strings as keys.
        where: the value's name in messages, such as ``info``.
        depth: how many levels above hold `value`.

    Raises:
        TicketError: naming the place of what JSON cannot say: a tensor, NaN or infinity, a key that is not text, text
            that is not Unicode, more than 32 levels (so also a structure that holds itself).
    """
    if depth > _DEEPEST:
        raise TicketError(f"{where:.80}… is nested more than {_DEEPEST} levels deep: make it flatter")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(value, where)
    if isinstance(value, int) and abs(value) < _LONGEST_INTEGER:
        return int(value)
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, Mapping):
        keys = sorted(_key(key, where) for key in value)
        return {key: plain(value[key], f"{where}.{key}", depth + 1) for key in keys}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
    if isinstance(value, (int, float)):
        raise TicketError(f"{where:.80} is not a number that JSON can hold (NaN, infinity or too long): use null")
    raise TicketError(f"{where:.80} is a {type(value).__name__}, which JSON cannot hold: give text or numbers")


def _key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise TicketError(f"{where:.80} has the key {key!r:.80}, which is not text")
    return _text(key, where)


def _text(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise TicketError(f"{where!r:.80} holds text that is not valid Unicode") from None
    return text
