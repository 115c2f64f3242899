"""Define schemas of results and stored values, to detect forged files and files of other versions."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta

Digest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
_Count = Annotated[int, Meta(ge=0, le=2**62)]
_Positive = Annotated[int, Meta(ge=1, le=2**62)]
_Share = Annotated[float, Meta(ge=0, le=1)]


class _Cost(msgspec.Struct):
    train_seconds: float


class Trained(msgspec.Struct):
    """Schema of the entries that every stored result must have; results may have further entries."""

    step: _Count
    model: Digest
    training: Digest | None
    variants: dict[str, Digest]
    metrics: dict[str, dict[str, float | None]] | None
    cost: _Cost


class _Flops(msgspec.Struct):
    """Schema of stored FLOPs: of a network (`dense`, `products`), or of a score (`first`, `others`, `fixed`)."""

    dense: float | None = None
    products: list[tuple[list[str], float]] = []
    examples: _Positive | None = None
    first: float | None = None
    others: float | None = None
    fixed: float | None = None

    def __post_init__(self) -> None:
        if self.dense is None and None in (self.first, self.others, self.fixed):
            raise ValueError("it has no FLOPs")


class _Kernels(msgspec.Struct):
    """Schema of the share of MACs that sparse kernels skip, or of the reason why a network cannot use them."""

    left_out: _Share | None = None
    inside: _Share | None = None
    by_sixteen: _Share | None = None
    why: str | None = None

    def __post_init__(self) -> None:
        if (self.left_out is None) == (self.why is None):
            raise ValueError("it has both a share and a reason, or neither")


def _schema(**fields: Any) -> Any:
    return msgspec.defstruct("Memo", list(fields.items()))


MEMOS: dict[str, Any] = {
    "masks": _schema(mask=str),
    "plans": _schema(plan=str, mask=str),
    "sizes": _schema(train=_Positive, validation=_Count, test=_Count),
    "removed": _schema(shares=dict[str, _Share]),
    "distances": _schema(distance=float),
    "barriers": _schema(errors=Annotated[list[float], Meta(min_length=2)], recalibrated=_Count),
    "coverage": _schema(layers=list[dict[str, Any]]),
    "memory": _schema(bytes=_Count),
    "flops": _Flops,
    "left-out": _schema(trajectory=Digest | None, step=_Count),  # weights that a bundle left out, and what gives them
    "again": _schema(model=Digest),  # weights that were trained again, and what came out
    "kernels": _Kernels,
    "prices": _schema(layers=dict[str, tuple[_Positive, _Count]]),  # cost of one weight of a layer, number of weights
}
"""Schema of each kind of stored value; values of other kinds are not checked."""


def describe_mismatch(schema: Any, value: object) -> str:
    """Return why a value does not match a schema; empty if it does."""
    try:
        msgspec.convert(value, schema)
    except msgspec.ValidationError as error:
        return str(error)
    return ""
