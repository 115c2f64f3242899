"""Derive structured masks from unstructured masks: N:M masks (such as 2:4), or any kind that `Structuring` names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ticketry.core import scope as scopes
from ticketry.core.computed_weights import effective_weights
from ticketry.core.mask import Mask
from ticketry.core.scope import Patterns
from ticketry.core.score import Loss, about, split_control
from ticketry.core.structure.channel_masks import channels
from ticketry.core.structure.channel_scores import CHANNEL_ONLY, check_channel_score
from ticketry.core.structure.coupling import Structure
from ticketry.core.structure.group_masks import regroup
from ticketry.core.structure.layout import layouts, mark_best_n_of_m
from ticketry.core.structure.model_copies import Inputs
from ticketry.core.structure.pattern import Structuring
from ticketry.core.structure.refill_masks import check_refill_score, refill
from ticketry.errors import MaskError, StructureError, UsageError
from ticketry_engine.support.entry_points import entry_point


@entry_point()
def n_m(model: nn.Module, mask: Mask, n: int = 2, m: int = 4, *, fill: bool = True, spare: Patterns = ()) -> Mask:
    """Return an N:M mask derived from an unstructured mask: of every m consecutive inputs, n are retained.

    A run of m inputs consists of consecutive inputs of the same output. In linear and recurrent weights, runs are along
    dimension 1, as `torch.sparse.to_sparse_semi_structured` requires. In convolutions, runs are along the input
    channels at each kernel position. If the last run is shorter than m, n inputs of this run are retained too.

    Each run retains first the largest weights that `mask` retains, then (with `fill`) the largest of the others. Of
    equal magnitudes, the earlier position is retained.

    Args:
        model: the model, with the weights trained under `mask`.
        mask: unstructured mask of any of the model's parameters; vectors, such as biases, are unchanged.
        n: number of weights retained in a run, 1 <= n < m.
        m: number of inputs in a run.
        fill: whether runs in which `mask` retains fewer than n weights are filled up with removed weights. Then every
            run retains exactly n, and the density is n/m (slightly more with shorter last runs).
        spare: names or patterns, as in `ticketry.scope`, of layers whose mask is unchanged.

    Returns:
        A mask of the same tensors as `mask`.

    Raises:
        UsageError: if `mask` is not a mask, if 1 <= n < m does not hold, or if a pattern of `spare` matches nothing.
        MaskError: if the mask does not fit the model, or a weight is NaN.
        StructureError: if the mask has weights of a layer whose inputs are unknown, such as an embedding.

    Examples:
        >>> model = nn.Linear(8, 2)
        >>> model.weight.data = torch.tensor([[8.0, 7, 6, 5, 4, 3, 2, 1], [1.0, 2, 3, 4, 5, 6, 7, 8]])
        >>> tk.structure.n_m(model, tk.Mask.ones(tk.scope(model)))["weight"].int()
        tensor([[1, 1, 0, 0, 1, 1, 0, 0],
                [0, 0, 1, 1, 0, 0, 1, 1]], dtype=torch.int32)
    """
    if not 1 <= n < m:
        raise UsageError(f"{n}:{m} is no structure: of m inputs n are kept, 1 <= n < m, as in 2:4")
    spared = scopes.match_spared_parameters(model, spare)
    parameters = mask.parameters(model)
    known = scopes.first_names_of_tied(model, parameters)
    of_layers = scopes.filter_default_scope(model, set(known.values()) - spared)
    chosen = [name for name, one in parameters.items() if one.dim() > 1 and known[name] in of_layers]
    where, weights = layouts(model, chosen), effective_weights(model, parameters)
    found = {}
    for name, parameter in parameters.items():
        if known[name] in spared or parameter.dim() < 2:
            found[name] = mask[name]
        elif known[name] not in of_layers:
            raise StructureError(
                f"{name!r} is of no layer whose inputs are known (linear, convolution, recurrent, attention): leave it"
                f" as the mask has it with spare={name!r}"
            )
        else:
            size, layout = weights[name].abs(), where[name]
            if not bool(size.isfinite().all()):
                raise MaskError(f"{name!r} has weights that are no finite numbers: they cannot be compared")
            best = mark_best_n_of_m(size, n, m, layout, among=mask[name].to(size.device))
            found[name] = mark_best_n_of_m(size.masked_fill(best, torch.inf), n, m, layout) if fill else best
    return Mask(found)


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
    """Return the structured mask that a `Structuring` derives from an unstructured mask, see `ticketry.structure`.

    The model must have the weights by which `mask` was chosen. Without its channel `structure`, this structure is
    found, which takes seconds.
    """
    seen: dict[str, Any] = {"batches": batches, "loss": loss, "seed": seed, "spare": by.spare}
    if by.kind == "channels":
        density = mask.density if by.density is None else by.density
        scope = scopes.scope_of_shapes(model, mask.shapes)
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
    """Raise `UsageError` if `by` removes whole channels by an unknown score."""
    if by.whole_channels:
        (check_channel_score if by.kind == "channels" else check_refill_score)(by.score)


def channel_score_needs_data(by: Structuring) -> bool:
    """Return whether `by` removes whole channels by a score that needs batches."""
    plain = split_control(by.score)[1]
    plain = "activation" if plain == "activation_l1" else plain
    if not by.whole_channels or plain == "remaining":
        return False
    return (CHANNEL_ONLY[plain].about if plain in CHANNEL_ONLY else about(plain)).data != "no"
