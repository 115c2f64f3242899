"""The tensors s (logits) of gates: made, checked, and turned into a mask."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ticketry.choices import describe_name_difference
from ticketry.core.gates.gate_kind import Kind, Moment
from ticketry.core.mask import Mask
from ticketry.core.structure.pattern import check_collapse
from ticketry.errors import LayerCollapseError, MaskError, TrainingError, UsageError
from ticketry_engine.support.seeds import generator


@dataclass(frozen=True)
class Sums:
    """What the gates of the last forward pass add up to, and when that was."""

    totals: list[Tensor]
    moment: Moment
    versions: tuple[int, ...]


def logits_like(parameter: nn.Parameter, init: float) -> nn.Parameter:
    """float32 at least: a bfloat16 s would not move by small steps, and a sigmoid of it would jump."""
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    return nn.Parameter(torch.full_like(parameter, init, dtype=dtype, requires_grad=False))


def kept_like(logits: Tensor, kept: Tensor) -> Tensor:
    """The mask as 0 and 1 in the type, layout and place of s."""
    return torch.empty_like(logits, requires_grad=False).copy_(kept)


def uniform_like(logits: Tensor, seed: int, step: int, number: int) -> Tensor:
    """Draws from (0, 1) for the gates of parameter `number` at a step: the same on any device and in any layout."""
    draws = torch.rand(logits.shape, dtype=logits.dtype, generator=generator(seed, "gates", step, number))
    return torch.empty_like(logits, requires_grad=False).copy_(draws.clamp_(min=torch.finfo(draws.dtype).eps))


def check_state(state: Mapping[str, Any], own: Mapping[str, Any], kind: Kind) -> None:
    """See that gates of this kind, with the state `own`, can go on from `state`.

    Raises:
        MaskError: if it is of gates of another kind, of other temperatures or of other weights.
    """
    if missing := own.keys() - state.keys():
        raise MaskError(f"this is no state of gates: it lacks {', '.join(sorted(missing))}")
    if state["kind"] != own["kind"]:
        raise MaskError(f"the state is of {state['kind']} gates, and these are {own['kind']}")
    if not math.isclose(state["beta"], beta := kind.inverse_temperature(state["progress"]), rel_tol=1e-6):
        raise MaskError(
            f"the state has the inverse temperature {state['beta']:g} at progress {state['progress']:g}, where these"
            f" gates have {beta:g}: attach them with the same settings of their kind (final)"
        )
    if _shapes(state) != _shapes(own):
        names = describe_name_difference(state["gates"], own["gates"])
        raise MaskError(
            "the state is of gates on other weights: attach them to the same model and scope"
            + (f"; {names}" if names else "")
        )


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


@contextmanager
def on_for_a_block(thing: object, flag: str) -> Iterator[None]:
    """An attribute that is True for the length of a block."""
    before = getattr(thing, flag)
    setattr(thing, flag, True)
    try:
        yield
    finally:
        setattr(thing, flag, before)


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


def hardened_mask(
    logits: Mapping[str, Tensor], kept: Sequence[Tensor | None], threshold: float, collapse: str, where: str
) -> Mask:
    """The mask of the gates whose s is above the threshold, within `kept`. See `Gates.harden`.

    Args:
        logits: parameter name -> s.
        kept: for each of them 0 and 1 in its shape, or None where all of it is kept.
        where: how far the search is, for the error's message.
    """
    check_collapse(collapse)
    on = {}
    for (name, s), mask in zip(logits.items(), kept, strict=True):
        within = torch.ones_like(s, dtype=torch.bool) if mask is None else mask
        on[name] = ((s.detach() > threshold) & (within != 0)).cpu().contiguous()
        if collapse == "keep" and bool(within.any()) and not bool(on[name].any()):
            best = s.detach().masked_fill(within == 0, -torch.inf).flatten().argmax()
            on[name].view(-1)[best] = True
    empty = [name for name, mask in on.items() if mask.numel() and not bool(mask.any())]
    if empty:
        raise LayerCollapseError(
            f"no gate of {', '.join(map(repr, empty))} is on (layer collapse) at {where}: choose a larger init (s0), a"
            " smaller penalty, spare the layer, or keep one weight of it (collapse='keep')"
        )
    return Mask(on)


@dataclass(frozen=True)
class Histogram:
    """Gates counted by how far they are open, from 0 (off) to 1.

    Examples:
        >>> gates = tk.gates.attach(nn.Linear(4, 3), init=2.0)
        >>> histogram = gates.histogram(bins=4)
        >>> histogram.edges, histogram.counts, histogram.total
        ((0.0, 0.25, 0.5, 0.75, 1.0), {'weight': (0, 0, 0, 12)}, (0, 0, 0, 12))
    """

    edges: tuple[float, ...]
    """n + 1 ascending numbers from 0 to 1; a bin has its lower edge, and the last its upper one too."""
    counts: Mapping[str, tuple[int, ...]]
    """parameter name -> gates in each of the n bins"""

    @property
    def total(self) -> tuple[int, ...]:
        """Gates of all parameters in each bin."""
        return tuple(map(sum, zip(*self.counts.values(), strict=True)))


def counted(opened: Mapping[str, Tensor], bins: int) -> Histogram:
    """Gates by how far each is open, in equal bins; raises `UsageError` for less than one."""
    if bins < 1:
        raise UsageError(f"a histogram has at least one bin, not {bins!r}")
    counts = {
        name: tuple(int(count) for count in torch.histc(each.double().cpu(), bins, 0, 1))
        for name, each in opened.items()
    }
    return Histogram(tuple(edge / bins for edge in range(bins + 1)), counts)
