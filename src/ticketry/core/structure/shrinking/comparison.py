"""Two models compared: one with zeros in place of some channels, and the smaller one without them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ticketry.core.structure.dependencies.model_copies import (
    Arguments,
    EagerMode,
    arguments_of,
    failing_module,
    first_line,
    fresh,
    natural_dtype,
    plain_operations,
    run_model,
    sharing,
    twin_of,
)
from ticketry.errors import StructureError
from ticketry_engine.support.seeds import seed_torch

TOLERANCE = 1e-6
"""Of the largest output, in float64. Far above what float64 leaves, far below what a wrong channel does; some models
cast to float32 in between."""

CLOSE = 1e-5
"""The same in float32; what is further apart is run in float64."""

NEAR = 1e-3
"""The same in float32, for models that do not run in float64."""

ROUGH = 3e-2
"""The same in training mode, where norms of few examples make small differences large."""


@dataclass(frozen=True)
class Problem:
    """Why a model is not the same without some channels."""

    text: str
    where: str = ""
    """Name of the module whose code failed."""
    ran: bool = True
    """Whether both models ran, and only their outputs differ."""


def compare(masked: nn.Module, small: nn.Module, arguments: Arguments, *, training: bool = False) -> Problem | None:
    """How the outputs of a smaller model differ from those of the masked one; None if they do not.

    Both are of one type of float; what differs in float32 by more than that leaves is run again in float64.

    Args:
        training: in training mode, with all that is drawn at random in the middle of its range. Then it is also None
            where the masked model does not run (a norm of a single example), or is another from run to run.
    """
    try:
        wanted = _outputs(masked, arguments, training)
    except StructureError as error:
        return None if training else _failed(masked, error, training)
    try:
        found = _outputs(small, arguments, training)
    except StructureError as error:
        return _failed(small, error, training)
    problem = _apart(masked, small, arguments, wanted, found, training)
    if problem and training and _distances(wanted, _outputs(masked, arguments, training, seed=1)) != 0:
        return None
    return problem


def _failed(model: nn.Module, error: StructureError, training: bool) -> Problem:
    cause = error.__cause__
    where = failing_module(model, cause) if cause else ""
    text = first_line(cause) if cause and str(cause) else str(error)
    return Problem(f"in training mode, {text}" if training else text, where, ran=False)


def _apart(
    masked: nn.Module,
    small: nn.Module,
    arguments: Arguments,
    wanted: list[Tensor],
    found: list[Tensor],
    training: bool,
) -> Problem | None:
    mode = " in training mode" if training else ""
    if [tensor.shape for tensor in wanted] != [tensor.shape for tensor in found]:
        return Problem(f"its outputs have other shapes{mode}")
    worst, double = _distances(wanted, found), natural_dtype(masked) == torch.float64
    if not double and (worst > CLOSE or not all(bool(tensor.isfinite().all()) for tensor in wanted)):
        worst, double = _distances_in_double(masked, small, arguments, worst, training)
    most = TOLERANCE if double else ROUGH if training else NEAR
    return None if worst <= most else Problem(f"its outputs{mode} differ by {worst:.2g} of the largest")


def _distances_in_double(
    masked: nn.Module, small: nn.Module, arguments: Arguments, worst: float, training: bool
) -> tuple[float, bool]:
    """The largest difference in float64, and True; the one given, and False, where the models only run in float32."""
    exact = arguments_of(arguments, torch.float64)
    try:
        wanted, found = (_outputs(twin_of(model, torch.float64), exact, training) for model in (masked, small))
        return _distances(wanted, found), True
    except StructureError:
        return worst, False


def _outputs(model: nn.Module, arguments: Arguments, training: bool, seed: int = 0) -> list[Tensor]:
    if not training:
        with plain_operations(model):
            return run_model(model, fresh(arguments))
    learning = sharing(model).train()  # statistics that move are its own
    with plain_operations(learning), _WithoutChance():  # type: ignore[no-untyped-call]
        seed_torch(seed)
        return run_model(learning, fresh(arguments))


def _distances(wanted: list[Tensor], found: list[Tensor]) -> float:
    """The largest difference, of the largest output; infinite where shapes differ."""
    if [tensor.shape for tensor in wanted] != [tensor.shape for tensor in found]:
        return float("inf")
    return max((_distance(*pair) for pair in zip(wanted, found, strict=True)), default=0.0)


def _distance(one: Tensor, other: Tensor) -> float:
    if not one.numel():
        return 0.0
    same = (one == other) | (one.isnan() & other.isnan())
    apart = torch.where(same, 0.0, (one.double() - other.double()).abs())
    finite = one.double().nan_to_num(0.0, 0.0, 0.0).abs().max()
    return float(apart.max() / torch.clamp(finite, min=1e-12)) if bool(apart.isfinite().all()) else float("inf")


# -- without chance ---------------------------------------------------------------------------------------------------


class _WithoutChance(EagerMode):  # type: ignore[no-untyped-call]
    """Dropout keeps all, and noise is the middle of its range: tensors of two shapes would be drawn differently."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        steady = _STEADY.get(func._schema.name.removeprefix("aten::"))
        named = dict(kwargs or {})
        if steady is None:
            return func(*args, **named)
        named.pop("generator", None)
        return steady(*args, **named)


def _made(value: float) -> Callable[..., Tensor]:
    return lambda size, **named: torch.full(size, value, **named)


def _like(value: float) -> Callable[..., Tensor]:
    return lambda other, **named: torch.full_like(other, value, **named)


_STEADY: dict[str, Callable[..., Any]] = {
    "bernoulli": lambda share, *_, **__: torch.ones_like(share),
    "bernoulli_": lambda tensor, *_, **__: tensor.fill_(1),
    "native_dropout": lambda tensor, *_: (tensor.clone(), torch.ones_like(tensor, dtype=torch.bool)),
    "rand": _made(0.5),
    "randn": _made(0.0),
    "rand_like": _like(0.5),
    "randn_like": _like(0.0),
    "uniform_": lambda tensor, low=0.0, high=1.0: tensor.fill_((low + high) / 2),
    "normal_": lambda tensor, mean=0.0, std=1.0: tensor.fill_(mean),
    "exponential_": lambda tensor, rate=1.0: tensor.fill_(1 / rate),
}
"""In place of what draws: by the operation's name, with its arguments."""
