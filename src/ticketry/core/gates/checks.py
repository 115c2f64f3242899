"""What gates must be for training to go on: a state of the same gates, and numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ticketry.errors import MaskError, TrainingError, UsageError


def check_state(state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """See that gates with the state `own` can go on from `state`.

    Raises:
        MaskError: if it is of gates of another kind or of other weights.
    """
    if missing := own.keys() - state.keys():
        raise MaskError(f"this is no state of gates: it lacks {', '.join(sorted(missing))}")
    if state["kind"] != own["kind"]:
        raise MaskError(f"the state is of {state['kind']} gates, and these are {own['kind']}")
    if _shapes(state) != _shapes(own):
        raise MaskError("the state is of gates on other weights: attach them to the same model and scope")


def _shapes(state: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(logits.shape) for name, logits in state["gates"].items()}


def check_numbers(logits: Iterable[tuple[str, Tensor]], progress: float, rounds: int) -> None:
    """See that no s has become NaN.

    Raises:
        TrainingError: if one has.
    """
    for name, each in logits:
        if bool(torch.isnan(each.detach()).any()):
            raise TrainingError(
                f"gates of {name!r} are not numbers any more (NaN; progress {progress:g}, round {rounds}):"
                " choose a lower learning rate, or go back to the last checkpoint"
            )


def check_devices(logits: Sequence[tuple[str, Tensor]], weights: Sequence[Tensor]) -> None:
    """See that gates are where the weights are that they multiply.

    Raises:
        UsageError: naming a weight that is not.
    """
    for (name, each), weight in zip(logits, weights, strict=True):
        if weight.device != each.device:
            raise UsageError(
                f"{name!r} is on {weight.device} and its gates are on {each.device}: attach gates after the model is"
                " where it trains"
            )
