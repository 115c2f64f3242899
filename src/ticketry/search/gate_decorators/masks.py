"""From what a tick found channels to be worth to a mask."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ticketry.core.mask import Mask
from ticketry.core.scope import Scope
from ticketry.core.structure.channel_masks import channels
from ticketry.lab.lab import Lab
from ticketry.lab.training.segment import Result
from ticketry.search.gate_decorators.tick import Tick, worth_in


def worth_of(lab: Lab, result: Result) -> dict[str, Tensor]:
    """Name of each norm's scale -> what its channels were worth in a tick, float64."""
    tick = result.segment.variant(Tick)
    assert tick is not None
    return worth_in(lab.store.get_tensors(result.variants[Tick.name]), tick)


def ticked_mask(
    lab: Lab, result: Result, scope: Scope, density: float, *, within: str | None, keep_at_least: int
) -> str:
    """Digest of the stored mask of the channels that were worth most in a tick. Remembered.

    A channel that passes several norms, as on a shortcut, is worth the sum over them.

    Args:
        result: of a segment with a tick.
        within: digest of the mask that the tick was trained with; what it removes stays removed.
        keep_at_least: channels that each group keeps.
    """
    task = result.segment.task

    def made() -> Mask:
        worth = worth_of(lab, result)

        def score(*_: Any, **__: Any) -> dict[str, Tensor]:
            return worth

        return channels(
            lab.model(task, result),
            lambda: lab.structure(task),
            density,
            scope=scope,
            within=lab.store.get_mask(within) if within else None,
            score=score,
            reduce="sum",
            keep_at_least=keep_at_least,
        )

    described = {
        "worth": result.segment.key,
        "scope": list(scope),
        "density": density,
        "within": within,
        "keep_at_least": keep_at_least,
    }
    return lab.remembered_mask(described, made)
