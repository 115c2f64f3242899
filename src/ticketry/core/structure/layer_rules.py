"""Trace operations that compute: elementwise operations, reductions, products, convolutions, norms, attention.

Each function runs one operation and sets the labels of its outputs, see `trace`. If the result depends on all channels
of a dimension, the dimension is frozen: none of its channels can be removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_map

from ticketry.core.structure.trace import (
    NO_CHANNEL,
    Axes,
    Call,
    Ids,
    Rule,
    Trace,
    list_tensors,
    rule_on_first_tensor,
    run_without_labels,
    set_output_axes,
    unite_all_labels,
)
from ticketry_engine.support.process_state import private_random_state


def trace_pointwise(t: Trace, call: Call) -> Any:
    """Trace an elementwise operation: channels at the same index of all operands are removed together."""
    operands = [(tensor, t.book.get(tensor)) for tensor in call.tensors]
    if not any(ids is not None for _, axes in operands for ids in axes.labels):
        return run_without_labels(t, call)
    shape = np.broadcast_shapes(*(tuple(tensor.shape) for tensor, _ in operands))
    merged = Axes.unlabelled(len(shape))
    zeros: dict[int, tuple[int, ...]] = {}
    for dimension in range(-len(shape), 0):
        parts = [
            (index, axes.labels[dimension], axes.zero[dimension])
            for index, (tensor, axes) in enumerate(operands)
            if tensor.dim() >= -dimension and tensor.shape[dimension] == shape[dimension] > 1
        ]
        if call.name in ("add", "sub"):
            record_channel_sum(t, [(operands[index][0], ids) for index, ids, _ in parts])
        ids = unite_all_labels(t, [ids for _, ids, _ in parts])
        merged.labels[dimension] = ids
        if ids is not None:
            zeros[dimension] = tuple(index for index, _, zero in parts if zero)
    values = {choice: _evaluate_at_zero(call, choice) for choice in set(zeros.values())}
    for dimension, choice in zeros.items():
        merged.zero[dimension] = values[choice] == 0
        if values[choice] is None:
            t.freeze(merged.labels[dimension], f"{call.func} of a removed channel's zeros is not finite")
    result = call.run()
    if call.writes_in_place and not all(merged.zero[dimension] for dimension in zeros):
        for tensor in call.tensors[:1]:
            t.book.forget_zeros(tensor)
    for output in list_tensors(result):
        t.book.set(output, merged if tuple(output.shape) == tuple(shape) else Axes.unlabelled(output.dim()))
    return result


def record_channel_sum(t: Trace, parts: Iterable[tuple[Tensor, Ids | None]]) -> None:
    """Record that an addition adds up the channels of different layers, as in a residual stream."""
    met = [
        ids
        for tensor, ids in parts
        if ids is not None and tensor.untyped_storage().data_ptr() not in t.weight_addresses
    ]
    t.sums += [
        other[t.labels.find_roots(other) != t.labels.find_roots(one)]
        for one, other in pairwise(met)
        if len(one) == len(other)
    ]


def _evaluate_at_zero(call: Call, choice: tuple[int, ...]) -> float | None:
    """Return 0 if an operation yields 0 where the operands in `choice` are 0, 1 if it yields other finite values.

    The result is None if values are not finite. The operation is evaluated twice: with the other operands unchanged,
    and with random ones (boolean masks are negated).
    """
    if not choice:
        return 1
    found = []
    for scrambled in (False, True):
        numbers = count()

        def substitute_operand(value: object, scrambled: bool = scrambled, numbers: Iterator[int] = numbers) -> object:
            if not isinstance(value, Tensor):
                return value
            if next(numbers) in choice:
                only = len(choice) == len(call.tensors)
                return value.new_zeros((1,) * value.dim()) if only else torch.zeros_like(value)
            if scrambled and value.dtype == torch.bool:
                return ~value
            return torch.randn_like(value) if scrambled and value.is_floating_point() else value.clone()

        with private_random_state([]):
            arguments, options = tree_map(substitute_operand, (call.args, call.kwargs))
            found.append(list_tensors(call.func(*arguments, **options))[0])
    if not found[0].is_floating_point():
        return 1
    if not bool(torch.isfinite(found[0]).all()):
        return None
    return 0 if all(not bool(value.any()) for value in found) else 1


def trace_creation(t: Trace, call: Call) -> Any:
    """Trace the creation of a tensor during the run, such as an initial hidden state."""
    result = call.run()
    labels = [t.labels.create(size) if size > 1 else None for size in result.shape]
    for ids in labels:
        t.record_width_use(ids)
    t.book.set(result, Axes(labels, [call.name in ("zeros", "new_zeros")] * result.dim()))
    return result


@rule_on_first_tensor
def trace_creation_like(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    """Trace `zeros_like` and similar operations: the new tensor has the channels of the given tensor."""
    axes.zero = [call.name == "zeros_like"] * result.dim()
    return axes


def trace_overwriting(t: Trace, call: Call) -> Any:
    """Trace an operation that fills a tensor with random numbers or a constant; no part is then known to be 0."""
    result = call.run()
    t.book.forget_zeros(call.tensors[0])
    return result


@rule_on_first_tensor
def trace_reduction(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], *outputs: Tensor) -> list[Axes]:
    """Trace a reduction such as a sum or a maximum, and mark the channels of reduced dimensions as not removable.

    Only in sums and norms of dimensions whose removed channels are 0 can channels still be removed.
    """
    dim, count = call.argument("dim"), len(shape)
    listed = dim if isinstance(dim, (list, tuple)) else [] if dim is None else [dim]
    reduced = [int(d) % count for d in listed or range(count)] if count else []
    for dimension in reduced:
        if not (_is_sum_or_norm(call) and axes.zero[dimension]):
            t.freeze(axes.labels[dimension], f"{call.func} reduces it")
    found = []
    for output in outputs:
        order = [-1 if d in reduced else d for d in range(count) if output.dim() == count or d not in reduced]
        own = axes.reorder(order)
        if call.name not in ("sum", "mean", "amax", "amin", "var", "std", "linalg_vector_norm", "norm"):
            own.zero = [False] * len(order)
        found.append(own if len(order) == output.dim() else Axes.unlabelled(output.dim()))
    return found


def _is_sum_or_norm(call: Call) -> bool:
    power = {"linalg_vector_norm": call.argument("ord"), "norm": call.argument("p")}
    return call.name == "sum" or (call.name in power and float(2 if power[call.name] is None else power[call.name]) > 0)


@rule_on_first_tensor
def trace_softmax(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    """Trace a softmax, and mark the channels of its dimension as not removable.

    The zeros of a removed channel would still count in the normalisation.
    """
    dimension = int(call.argument("dim")) % max(len(shape), 1)
    t.freeze(axes.labels[dimension], f"{call.func} normalises over it")
    axes.labels[dimension] = None
    axes.zero = [False] * len(shape)
    return axes


_ELEMENTWISE: dict[str, Rule] = {
    **dict.fromkeys(("clone", "_to_copy", "detach", "alias", "copy", "_prelu_kernel"), trace_pointwise),
    **dict.fromkeys(("native_dropout", "hardswish", "hardsigmoid", "silu", "mish", "contiguous"), trace_pointwise),
    **dict.fromkeys(("zeros", "ones", "full", "empty", "rand", "randn"), trace_creation),
    **dict.fromkeys(("new_zeros", "new_ones", "new_full", "new_empty"), trace_creation),
    **dict.fromkeys(
        ("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"), trace_creation_like
    ),
    **dict.fromkeys(("bernoulli", "fill", "uniform", "normal", "zero"), trace_overwriting),
    **dict.fromkeys(
        ("sum", "mean", "amax", "amin", "var", "std", "max", "min", "logsumexp", "any", "all"), trace_reduction
    ),
    **dict.fromkeys(("argmax", "argmin", "var_mean", "linalg_vector_norm", "norm"), trace_reduction),
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax"), trace_softmax),
    **dict.fromkeys(("lift_fresh", "arange", "scalar_tensor", "linspace", "eye"), run_without_labels),
}


# -- products ---------------------------------------------------------------------------------------------------------


def unite_summed_dimensions(t: Trace, one: Axes, axis: int, other: Axes, other_axis: int) -> None:
    """Record that the channels of two dimensions, over which a product sums, must be removed together.

    If removed channels are 0 in neither factor, record that they cannot be removed.
    """
    ids = t.unite_axes(one.labels[axis], other.labels[other_axis])
    if not (one.zero[axis] or other.zero[other_axis]):
        t.freeze(ids, "it is summed over, and a removed channel of it is not 0 there")


def trace_product(t: Trace, call: Call) -> Any:
    """Trace a matrix product (mm, bmm, addmm, …): the summed dimensions of both factors must lose the same channels."""
    added, left, right = ([None] * (3 - len(call.tensors)) + call.tensors)[:3]
    assert left is not None
    assert right is not None
    one, other = t.book.get(left), t.book.get(right)
    if t.provenance.depend_on_inputs([left]):
        t.record_multiplication(right, other.labels[max(-2, -right.dim())])
    if t.provenance.depend_on_inputs([right]):
        t.record_multiplication(left, one.labels[-1])
    unite_summed_dimensions(t, one, -1, other, max(-2, -right.dim()))
    batch = [unite_all_labels(t, [one.labels[d], other.labels[d]]) for d in range(left.dim() - 2)]
    result = call.run()
    found = Axes.unlabelled(result.dim())
    for d, ids in enumerate(batch):
        found.labels[d], found.zero[d] = ids, one.zero[d] or other.zero[d]
    rest = [(one.labels[-2], one.zero[-2])] if left.dim() > 1 else []
    rest += [(other.labels[-1], other.zero[-1])] if right.dim() > 1 else []
    for d, (ids, zero) in enumerate(rest, start=len(batch)):
        found.labels[d], found.zero[d] = ids, zero
    if added is not None:
        axes = t.book.get(added)
        for d in range(-result.dim(), 0):
            covers = added.dim() >= -d and added.shape[d] == result.shape[d] and result.shape[d] > 1
            if covers:
                found.labels[d] = t.unite_axes(found.labels[d], axes.labels[d])
            found.zero[d] = found.zero[d] and covers and axes.zero[d]
    t.book.set(result, found)
    return result


def trace_convolution(t: Trace, call: Call) -> Any:
    inputs, weight, bias = (call.argument(name) for name in ("input", "weight", "bias"))
    transposed, groups = bool(call.argument("transposed")), int(call.argument("groups"))
    x, w = t.book.get(inputs), t.book.get(weight)
    t.freeze_axes(x, [0, *range(2, inputs.dim())], "a convolution runs over it")
    t.freeze_axes(w, range(2, weight.dim()), NO_CHANNEL)
    into, out_of = (0, 1) if transposed else (1, 0)
    if groups == 1 or not transposed:
        t.record_multiplication(weight, w.labels[into])
    if groups == 1:
        unite_summed_dimensions(t, x, 1, w, into)
        out, zero = w.labels[out_of], w.zero[out_of]
    else:
        out, zero = _unite_grouped_channels(t, x, w, weight, groups, transposed)
        if not zero:
            t.freeze(out, "the weight of a grouped convolution is computed")
    if bias is not None:
        b = t.book.get(bias)
        out, zero = t.unite_axes(out, b.labels[0]), zero and b.zero[0]
    result = call.run()
    found = Axes.unlabelled(result.dim())
    found.labels[1], found.zero[1] = out, zero
    t.book.set(result, found)
    return result


def _unite_grouped_channels(
    t: Trace, x: Axes, w: Axes, weight: Tensor, groups: int, transposed: bool
) -> tuple[Ids | None, bool]:
    """Unite labels of a grouped convolution, so that whole groups are removed, or the same channels of every group.

    Whole groups are removed if there are at least as many groups as inputs of a group. The module's `groups` then
    changes.

    Returns:
        The labels of the outputs, and whether a removed channel's outputs are 0.
    """
    inputs = weight.shape[0] // groups if transposed else weight.shape[1]
    outputs = weight.shape[1] if transposed else weight.shape[0] // groups
    whole = groups >= inputs
    ids = x.labels[1]
    if ids is None or w.labels[0] is None or (not whole and w.labels[1] is None):
        why = "a grouped convolution takes it, all of which stays"
        t.freeze(ids, why)
        t.freeze(w.labels[0], why)
        t.freeze(w.labels[1], why)
        return None, False
    stays = t.add_location("its group of the convolution stays")
    taken = ids.reshape(groups, inputs)
    if whole:
        t.labels.unite(np.repeat(taken[:, 0], inputs), ids, stays)
        t.labels.unite(np.repeat(taken[:, 0], weight.shape[0] // groups), w.labels[0], stays)
        t.freeze(w.labels[1], "groups of a convolution go as a whole")
        if isinstance(t.running_module, _ConvNd):
            t.record_unit_count("groups", taken[:, 0])
        else:
            t.record_width_use(taken[:, 0])
        return np.repeat(taken[:, 0], outputs), x.zero[1] or (w.zero[0] and w.zero[1])
    assert w.labels[1] is not None
    if transposed:  # [inputs of all groups, outputs of one]
        t.labels.unite(ids, w.labels[0], stays)
        t.labels.unite(np.tile(taken[0], groups), ids, stays)
        if not (x.zero[1] or w.zero[0]):
            t.freeze(ids, "the weight of a grouped convolution is computed")
        return np.tile(w.labels[1], groups), w.zero[1]
    t.labels.unite(np.tile(w.labels[1], groups), ids, stays)
    if not (x.zero[1] or w.zero[1]):
        t.freeze(ids, "the weight of a grouped convolution is computed")
    made = w.labels[0].reshape(groups, outputs)
    t.labels.unite(np.tile(made[0], groups), w.labels[0], stays)
    return w.labels[0], w.zero[0]


# -- norms ------------------------------------------------------------------------------------------------------------


@rule_on_first_tensor
def trace_batch_norm(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], *outputs: Tensor) -> list[Axes]:
    """Trace a batch or instance norm: a channel (dimension 1) is removed with its scale, shift and statistics."""
    t.freeze_axes(axes, [d for d in range(len(shape)) if d != 1], "a norm runs over it")
    vectors = [t.book.get(vector) for vector in call.tensors[1:] if vector.dim() == 1]
    ids = unite_all_labels(t, [axes.labels[1], *(vector.labels[0] for vector in vectors)])
    if ids is not None and isinstance(t.running_module, nn.modules.batchnorm._NormBase):
        t.record_unit_count(
            "num_features", ids[: t.running_module.num_features]
        )  # instance norms repeat their channels for each example
    found = Axes.unlabelled(len(shape))
    found.labels[1], found.zero[1] = ids, _is_zero_after_norm(t, call)
    statistics = [
        Axes([ids], [False]) if tuple(one.shape) == (shape[1],) else Axes.unlabelled(one.dim()) for one in outputs[1:]
    ]
    return [found, *statistics]


def _is_zero_after_norm(t: Trace, call: Call) -> bool:
    """Return whether a removed channel is 0 after the norm, as it is if the channel's scale and shift are 0."""
    pair = call.argument("weight"), call.argument("bias")
    return all(tensor is not None and t.book.get(tensor).zero[0] for tensor in pair)


@rule_on_first_tensor
def trace_group_norm(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], *outputs: Tensor) -> Axes:
    """Trace a group norm: the channels of a group can only be removed together; the module's `num_groups` changes."""
    t.freeze_axes(axes, [d for d in range(len(shape)) if d != 1], "a norm runs over it")
    vectors = [t.book.get(vector) for vector in call.tensors[1:]]
    ids = unite_all_labels(t, [axes.labels[1], *(vector.labels[0] for vector in vectors)])
    if ids is not None:
        groups = ids.reshape(int(call.argument("group")), -1)
        t.labels.unite(np.repeat(groups[:, 0], groups.shape[1]), ids, t.add_location("its group of the norm stays"))
        if isinstance(t.running_module, nn.GroupNorm):
            t.record_unit_count("num_groups", groups[:, 0])
            t.record_unit_count("num_channels", ids)
        elif not t.record_width_use(groups[:, 0]):
            t.freeze(ids, "the number of groups of a group norm stays")
    found = Axes.unlabelled(len(shape))
    found.labels[1], found.zero[1] = ids, _is_zero_after_norm(t, call)
    return found


@rule_on_first_tensor
def trace_layer_norm(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], *outputs: Tensor) -> Axes:
    """Trace a layer norm, and mark its features as not removable: zeros would change its mean and variance."""
    first = len(shape) - len(call.argument("normalized_shape"))
    why = "a layer norm takes its mean and variance over it"
    t.freeze_axes(axes, range(first, len(shape)), why)
    for vector in call.tensors[1:]:
        t.freeze_axes(t.book.get(vector), range(vector.dim()), why)
    found = axes.reorder([d if d < first else -1 for d in range(len(shape))])
    found.zero = [False] * len(shape)
    return found


@rule_on_first_tensor
def trace_weight_norm(t: Trace, call: Call, v: Axes, shape: tuple[int, ...], *outputs: Tensor) -> Axes:
    """Trace weight_norm, which computes a weight as g v / |v|, with one norm |v| for each index of a dimension.

    Channels of this dimension are marked as not removable, because their norm would be 0.
    """
    g = t.book.get(call.argument("g"))
    for d, ids in enumerate(v.labels):
        if d == call.argument("dim"):
            v.labels[d] = t.unite_axes(ids, g.labels[d])
            t.freeze(
                v.labels[d],
                "weight_norm divides by its norm, which is 0 without it: make the weight a parameter first"
                " (torch.nn.utils.parametrize.remove_parametrizations)",
            )
        elif not v.zero[d]:
            t.freeze(ids, f"{call.func} sums over it")
    return v


# -- pooling and resizing ---------------------------------------------------------------------------------------------


@rule_on_first_tensor
def trace_pooling(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], *outputs: Tensor) -> list[Axes]:
    """Trace pooling, resizing, or padding by reflection: the channels stay the same, but no position can be removed."""
    first = len(shape) - int("".join(c for c in call.name if c.isdigit())[:1] or 2)  # max_pool2d, upsample_linear1d, …
    t.freeze_axes(axes, range(max(first, 0), len(shape)), "pooling or resizing runs over it")
    found = axes.reorder([d if d < first else -1 for d in range(len(shape))])
    return [found, *(Axes(list(found.labels), [False] * len(shape)) for _ in outputs[1:])]


# -- attention and embeddings -----------------------------------------------------------------------------------------


def freeze_query_and_key_widths(t: Trace, *several: Axes) -> None:
    """Mark the last dimension of query and key as not removable: attention computes its scale from this width."""
    for axes in several:
        t.freeze(axes.labels[-1], "attention scales its scores by the width of query and key")


def trace_attention(t: Trace, call: Call) -> Any:
    """Trace attention over query, key and value [batch, heads, length, width].

    Unless the call gives a scale, the width of query and key is marked as not removable, because the default scale
    depends on this width.
    """
    q, k, v = (t.book.get(call.argument(name)) for name in ("query", "key", "value"))
    if call.argument("scale") is None:
        freeze_query_and_key_widths(t, q, k)
    unite_summed_dimensions(t, q, -1, k, -1)
    for axes in (q, k, v):
        t.freeze(axes.labels[-2], "attention runs over it")
    heads = unite_all_labels(t, [q.labels[-3], k.labels[-3], v.labels[-3]]) if len(q.labels) > 2 else None
    mask = call.argument("attn_mask")
    if isinstance(mask, Tensor):
        axes = t.book.get(mask)
        t.freeze_axes(axes, [d for d in range(-mask.dim(), 0) if d != -3], "it is a mask of attention")
        if mask.dim() > 2 and mask.shape[-3] > 1:
            heads = t.unite_axes(heads, axes.labels[-3])
    result = call.run()
    outputs = list_tensors(result)
    found = Axes.unlabelled(outputs[0].dim())
    if outputs[0].dim() > 2:
        found.labels[-3], found.zero[-3] = heads, v.zero[-3]
    found.labels[-1], found.zero[-1] = v.labels[-1], v.zero[-1]
    set_output_axes(t, outputs, found)
    return result


@rule_on_first_tensor
def trace_embedding(t: Trace, call: Call, axes: Axes, shape: tuple[int, ...], result: Tensor) -> Axes:
    t.record_multiplication(call.tensors[0], axes.labels[0])
    t.freeze(axes.labels[0], "entries of an embedding are looked up")
    found = Axes.unlabelled(result.dim())
    found.labels[-1], found.zero[-1] = axes.labels[1], axes.zero[1]
    return found


_LAYERS: dict[str, Rule] = {
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "addmm", "baddbmm", "addmv"), trace_product),
    **dict.fromkeys(("convolution", "_convolution"), trace_convolution),
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit"), trace_batch_norm),
    **dict.fromkeys(("_native_batch_norm_legit_no_training", "_batch_norm_with_update"), trace_batch_norm),
    **dict.fromkeys(("_batch_norm_no_update", "cudnn_batch_norm"), trace_batch_norm),
    **dict.fromkeys(
        (
            *(f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_max", "_adaptive_avg") for n in (1, 2, 3)),
            *(f"{kind}_pool{n}d_with_indices" for kind in ("max",) for n in (2, 3)),
            *(f"upsample_{kind}" for kind in ("nearest1d", "nearest2d", "nearest3d", "linear1d", "bilinear2d")),
            *(f"upsample_{kind}" for kind in ("bicubic2d", "trilinear3d")),
            *(f"_upsample_{kind}" for kind in ("nearest_exact1d", "nearest_exact2d", "nearest_exact3d")),
            *(f"_upsample_{kind}" for kind in ("bilinear2d_aa", "bicubic2d_aa")),
            *(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)),
        ),
        trace_pooling,
    ),
    **dict.fromkeys(
        (
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_attention_math",
            "_scaled_dot_product_fused_attention_overrideable",
        ),
        trace_attention,
    ),
    "native_group_norm": trace_group_norm,
    "native_layer_norm": trace_layer_norm,
    "_weight_norm_interface": trace_weight_norm,
    "embedding": trace_embedding,
}


RULES: dict[str, Rule] = {**_ELEMENTWISE, **_LAYERS}
