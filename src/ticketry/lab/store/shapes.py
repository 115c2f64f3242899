"""What results and remembered answers hold, so that one that was forged, or is of another version, is told."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

Digest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_Count = Annotated[int, Meta(ge=0, le=2**62)]
_Share = Annotated[float, Meta(ge=0, le=1)]


class _Cost(msgspec.Struct):
    train_seconds: float


class Trained(msgspec.Struct):
    """A result, as far as it is gone by."""

    step: _Count
    model: Digest
    training: Digest | None
    variants: dict[str, Digest]
    metrics: dict[str, dict[str, float | None]] | None
    cost: _Cost


class _Mask(msgspec.Struct):
    mask: str


class _Plan(msgspec.Struct):
    plan: str
    mask: str


class _Sizes(msgspec.Struct):
    train: Annotated[int, Meta(ge=1, le=2**62)]
    validation: _Count
    test: _Count


class _Shares(msgspec.Struct):
    shares: dict[str, _Share]


class _Distance(msgspec.Struct):
    distance: float


class _Errors(msgspec.Struct):
    errors: Annotated[list[float], Meta(min_length=2)]
    recalibrated: _Count


class _Layers(msgspec.Struct):
    layers: list[dict[str, Any]]


class _LeftOut(msgspec.Struct):
    """Of weights that a bundle left out: the training that gives them, if it is known."""

    trajectory: Digest | None
    step: _Count


class _Again(msgspec.Struct):
    """Of weights that were trained again: what came out."""

    model: Digest


class _Bytes(msgspec.Struct):
    bytes: _Count


class _Flops(msgspec.Struct):
    """Of a network by its weights, or of a score by its examples."""

    dense: float | None = None
    products: list[tuple[list[str], float]] = []
    examples: Annotated[int, Meta(ge=1)] | None = None
    first: float | None = None
    others: float | None = None
    fixed: float | None = None

    def __post_init__(self) -> None:
        if self.dense is None and None in (self.first, self.others, self.fixed):
            raise ValueError("it tells no FLOPs")


class _Kernels(msgspec.Struct):
    """What kernels do and leave out of a network's multiplications, or why there are none for it."""

    left_out: _Share | None = None
    inside: _Share | None = None
    by_sixteen: _Share | None = None
    why: str | None = None

    def __post_init__(self) -> None:
        if (self.left_out is None) == (self.why is None):
            raise ValueError("it tells a share or a reason")


_Weight = tuple[Annotated[int, Meta(ge=1)], _Count]


class _Prices(msgspec.Struct):
    """What one weight of each layer costs, and how many it has."""

    layers: dict[str, _Weight]


ANSWERS: dict[str, Any] = {
    "masks": _Mask,
    "plans": _Plan,
    "sizes": _Sizes,
    "removed": _Shares,
    "distances": _Distance,
    "barriers": _Errors,
    "coverage": _Layers,
    "memory": _Bytes,
    "flops": _Flops,
    "left-out": _LeftOut,
    "again": _Again,
    "kernels": _Kernels,
    "prices": _Prices,
}
"""Kind of answer -> what it holds; others may hold anything."""


def fault(kind: Any, value: object) -> str:
    """Why a value is not of a kind; empty if it is."""
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        return str(error)
    return ""
