"""The structured mask that a `Structuring` asks for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from ticketry.core.mask import Mask
from ticketry.core.scope import scope_of_shapes
from ticketry.core.score import Loss, about, split_control
from ticketry.core.structure.channel_wise.choose import channels
from ticketry.core.structure.channel_wise.refill import refill
from ticketry.core.structure.channel_wise.refill_scores import check_refill_score
from ticketry.core.structure.channel_wise.scores import CHANNEL_ONLY, check_channel_score
from ticketry.core.structure.dependencies.channel_groups import Structure
from ticketry.core.structure.dependencies.model_copies import Inputs
from ticketry.core.structure.group_wise.regroup import regroup
from ticketry.core.structure.n_of_m import n_m
from ticketry.core.structuring import Structuring


def apply_structuring(
    by: Structuring,
    model: nn.Module,
    mask: Mask,
    example_inputs: Inputs,
    *,
    batches: Iterable[object] | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    structure: Structure | None = None,
) -> Mask:
    """The structured mask made from an unstructured one, see `ticketry.structure`.

    Args:
        model: with the weights that the mask was chosen by.
        mask: unstructured, of single weights.
        example_inputs: a tensor, or a tuple of the model's arguments.
        batches, loss: what the score needs, if it needs any.
        structure: the model's coupled channels, if they are known: following them takes seconds.
    """
    seen: dict[str, Any] = {"batches": batches, "loss": loss, "seed": seed, "spare": by.spare}
    if by.kind == "channels":
        density = mask.density if by.density is None else by.density
        scope = scope_of_shapes(model, mask.shapes)
        return channels(model, example_inputs, density, score=by.score, scope=scope, **seen)
    if by.whole_channels:
        met = mask.density if by.match else by.density
        options: dict[str, Any] = {"coupled": by.coupled, "density": met, "structure": structure}
        return refill(model, mask, example_inputs, by.score, by.share, **options, **seen)
    if by.kind == "regroup":
        options = {"method": by.method, "collapse": by.collapse, "spare": by.spare}
        return regroup(model, mask, by.density, by.rows, **options, seed=seed)
    n, m = by.n_of_m or (0, 0)
    return n_m(model, mask, n, m, spare=by.spare)


def check_structure_score(by: Structuring) -> None:
    """Raises `UsageError` for a score of channels that is not known."""
    if by.whole_channels:
        (check_channel_score if by.kind == "channels" else check_refill_score)(by.score)


def needs_data(by: Structuring) -> bool:
    """Whether channels are ranked by what examples make of them."""
    plain = split_control(by.score)[1]
    plain = "activation" if plain == "activation_l1" else plain
    if not by.whole_channels or plain == "remaining":
        return False
    return (CHANNEL_ONLY[plain].about if plain in CHANNEL_ONLY else about(plain)).data != "no"
