"""Masks in an order in which each is like the one before it, so that the difference between the two is short.

Levels of a search keep part of what the level before kept, masks that move change a few weights at a time: XOR of two
neighbours is mostly zeros, which compress to a third and less of what the masks take by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

_SEEN = 2048
"""Bytes of a mask, spread over all of it, by which it is compared."""
_TOGETHER = 1000
"""Masks that are put in order together: the time grows with its square."""

Bytes = NDArray[np.uint8]


def by_similarity(digests: Iterable[str], read: Callable[[str], bytes]) -> list[str]:
    """The digests of stored masks, those of one size together: the fullest first, then always the nearest that is left.

    Args:
        read: gives a mask's bytes; one is in memory at a time.
    """
    sizes: dict[int, list[tuple[str, Bytes]]] = {}
    for digest in sorted(digests):
        data = np.frombuffer(read(digest), np.uint8)
        seen = data[:: max(1, len(data) // _SEEN)][:_SEEN].copy()
        sizes.setdefault(len(data), []).append((digest, seen))
    return [digest for _, group in sorted(sizes.items()) for digest in _chained(group)]


def difference(data: bytes, other: bytes) -> bytes:
    """XOR of two of the same length: with the second one, each gives the other."""
    return (np.frombuffer(data, np.uint8) ^ np.frombuffer(other, np.uint8)).tobytes()


def _chained(group: list[tuple[str, Bytes]]) -> list[str]:
    bits = np.array([int(_bits(seen)) for _, seen in group])
    fullest = np.argsort(-bits, kind="stable")
    found: list[str] = []
    for start in range(0, len(group), _TOGETHER):
        chosen = fullest[start : start + _TOGETHER]
        seen = np.stack([group[index][1] for index in chosen])
        left, now = np.ones(len(chosen), bool), 0
        for _ in chosen:
            left[now] = False
            found.append(group[chosen[now]][0])
            now = int(np.where(left, _bits(seen ^ seen[now]), np.iinfo(np.int64).max).argmin())
    return found


_BITS = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)


def _bits(data: Bytes) -> NDArray[np.int64]:
    """How many bits are set, along the last axis."""
    counts: Bytes = np.bitwise_count(data) if hasattr(np, "bitwise_count") else _BITS[data]
    total: NDArray[np.int64] = counts.sum(-1, dtype=np.int64)
    return total
