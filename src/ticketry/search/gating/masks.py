"""What trained gates become: a mask, and the weights of the hard network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ticketry.core.gates import Gates
from ticketry.core.mask import Mask
from ticketry.core.structure.channel_masks import cut_channels
from ticketry.errors import LayerCollapseError
from ticketry.lab.lab import Lab
from ticketry.lab.training.segment import Result
from ticketry.lab.training.state import rebuild_model, state_of
from ticketry.search.gating.gating import Gating, attached, gating_of, scope_of_names


def hardened_mask(lab: Lab, result: Result) -> str:
    """Digest of the stored mask of a result's gates, 1[s > 0]. Remembered.

    Raises:
        LayerCollapseError: if a parameter has no gate that is on, with since when.
    """

    def made() -> Mask:
        try:
            return gates_of(lab, result).harden()
        except LayerCollapseError as error:
            raise LayerCollapseError(f"{error}. {_since(result)}") from None

    return _remembered(lab, result, {}, made)


def allocated_mask(lab: Lab, result: Result, density: float, collapse: str = "raise") -> str:
    """Digest of the stored mask of the gates with the largest s, of `density`; ties by position. Remembered.

    Args:
        collapse: what to do with a parameter that has none of them, see `core.allocate`: ``raise`` or ``keep``.

    Raises:
        LayerCollapseError: naming such parameters.
    """

    def made() -> Mask:
        gates = gates_of(lab, result)
        try:
            return gates.allocate(density, collapse=collapse)
        except LayerCollapseError as error:
            raise LayerCollapseError(
                f"{error.what} after {result.segment.steps} steps of mask training",
                "choose a higher density, spare the layer, train masks for longer",
                keep="keep one weight of it",
                by="collapse keep",
            ) from None

    return _remembered(lab, result, {"density": density, "collapse": collapse}, made)


def cut_mask(lab: Lab, result: Result, density: float, *, keep_at_least: int = 1, multiple: int = 1) -> str:
    """Digest of the stored mask of the channels whose gates have the largest s, near `density`. Remembered.

    Args:
        keep_at_least, multiple: see `structure.channels`.

    Raises:
        LayerCollapseError: if it cannot be reached.
    """
    task, gating = result.segment.task, gating_of(result.segment)

    def made() -> Mask:
        model = rebuild_model(task, lab.state(result))
        scores = [s.detach() for s in gates_of(lab, result, model).parameters()]
        chosen = scope_of_names(model, gating.scope)
        return cut_channels(
            model,
            lab.structure(task),
            scores,
            density,
            scope=chosen,
            keep_at_least=keep_at_least,
            multiple=multiple,
        )

    described = {"density": density, "structured": True, "keep_at_least": keep_at_least, "multiple": multiple}
    return _remembered(lab, result, described, made)


def _remembered(lab: Lab, result: Result, described: Mapping[str, Any], made: Callable[[], Mask]) -> str:
    return lab.remembered_mask({"gates": result.variants[Gating.name], "of": result.segment.key, **described}, made)


def hardened_weights(lab: Lab, result: Result) -> str:
    """Digest of the stored state of the hard network: weights times hard gates, what `Result.metrics` are of."""
    model = rebuild_model(result.segment.task, lab.state(result))
    gates = gates_of(lab, result, model)
    gates.detach(apply=True)
    return lab.store.put_tensors(state_of(model))


def gates_of(lab: Lab, result: Result, model: nn.Module | None = None) -> Gates:
    """The gates of a result, on a model of its task with its weights."""
    segment, gating = result.segment, gating_of(result.segment)
    model = model or rebuild_model(segment.task, lab.state(result))
    mask = lab.store.get_mask(segment.mask) if segment.mask else None
    tensors = lab.store.get_tensors(result.variants[Gating.name])
    gates = attached(gating, model, mask, tensors, lambda: lab.structure(segment.task))
    gates.anneal(gating.progress(segment.last, total=segment.total, per_epoch=segment.per_epoch))
    return gates


def _since(result: Result) -> str:
    """From which step on each empty parameter has been so, as far as it was looked at."""
    segment, told = result.segment, result.record["gating"]
    parts = []
    for column, name in enumerate(told["names"], start=1):
        counts = [(row[0], row[column]) for row in told["kept"]]
        if not counts or counts[-1][1]:
            continue
        alive = [step for step, count in counts if count]
        since = next(step for step, _ in counts if not alive or step > alive[-1])
        parts.append(
            f"{name!r} has been empty from step {since} of {segment.total} (epoch {since / segment.per_epoch:.2f})"
            f" of round {told['round']} on"
        )
    return "; ".join(parts)
