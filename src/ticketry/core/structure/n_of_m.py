"""N:M: of every m consecutive inputs of an output at most n weights are kept, as sparse tensor cores want it (2:4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ticketry.core.computed_weights import weights_in_use
from ticketry.core.layout import Layout, best_of_m, layouts
from ticketry.core.mask import Mask
from ticketry.core.scope import Patterns, first_names, layer_weights_among, parameters_of
from ticketry.errors import MaskError, StructureError, UsageError
from ticketry_engine.support.entry_points import entry_point


@entry_point()
def n_m(model: nn.Module, mask: Mask, n: int = 2, m: int = 4, *, fill: bool = True, spare: Patterns = ()) -> Mask:
    """An N:M mask from an unstructured one: n of every m consecutive inputs.

    Blocks lie along a layer's inputs, from the first, separately for each output: of a linear layer along dimension 1
    of its weight [outputs, inputs], which is what `torch.sparse.to_sparse_semi_structured` asks of a 2:4 matrix; of a
    convolution along its input channels (those of its group) at one tap of the kernel, so that each tap's matrix
    [outputs, inputs] is N:M; of recurrent layers along dimension 1 of each matrix. A last block shorter than m keeps n
    too, or all if it has no more: it is as if the inputs were padded with zeros.

    In each block the n weights of largest magnitude stay, those that `mask` keeps first, ties by position.

    Args:
        model: with the weights whose magnitudes count: those trained with `mask`.
        mask: unstructured, of any of the model's parameters; vectors in it, such as biases, stay as they are.
        n: weights kept in a block, 1 <= n < m.
        m: inputs in a block.
        fill: whether weights that `mask` removes come back where it keeps fewer than n: every block then has exactly n
            (the density is n/m, but for short last blocks). Else such blocks keep fewer.
        spare: names or patterns, as in `ticketry.scope`, of layers that stay as `mask` has them.

    Returns:
        A mask of the tensors of `mask`.

    Raises:
        UsageError: if `mask` is no mask, not 1 <= n < m, or a pattern of `spare` matches nothing.
        MaskError: if the mask does not fit the model, or a weight is not a number.
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
    spared = parameters_of(model, spare, "spare")
    parameters = mask.parameters(model)
    known = first_names(model, parameters)
    of_layers = layer_weights_among(model, set(known.values()) - spared)
    chosen = [name for name, one in parameters.items() if one.dim() > 1 and known[name] in of_layers]
    where, weights = layouts(model, chosen), weights_in_use(model, parameters)
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
            found[name] = _largest(name, weights[name].abs(), mask[name], n, m, where[name], fill)
    return Mask(found)


def _largest(name: str, size: Tensor, kept: Tensor, n: int, m: int, layout: Layout, fill: bool) -> Tensor:
    if not bool(size.isfinite().all()):
        raise MaskError(f"{name!r} has weights that are no finite numbers: they cannot be compared")
    chosen = best_of_m(size, n, m, layout, among=kept.to(size.device))
    return best_of_m(size.masked_fill(chosen, torch.inf), n, m, layout) if fill else chosen
