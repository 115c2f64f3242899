"""Add the operations of a region's nodes, forward and backward, to a plan."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from ticketry_engine.errors import EngineError
from ticketry_engine.ir import Node
from ticketry_engine.kernels.training import pools
from ticketry_engine.kernels.training.by_channel import (
    Activated,
    ActivationGradient,
    Add,
    LayerNormGradient,
    Moments,
    NormGradient,
    NormSums,
    ScaleShift,
    TokenLayerNorm,
    TokenMoments,
    TokenSums,
    Total,
    build_channel_ops,
    build_token_ops,
    channel_number_table,
    feature_factor_table,
    read_moments,
    read_sums,
)
from ticketry_engine.kernels.training.convolution import (
    build_forward,
    build_input_gradient,
    build_product_tables,
    build_weight_gradient,
)
from ticketry_engine.kernels.training.layer import Batch, MaskedLayer, operation_blocks
from ticketry_engine.kernels.window import Array
from ticketry_engine.training.plan import (
    LAYERS,
    Gradients,
    RegionPass,
    TrainingPlan,
    compute_lifetimes,
    layer_name,
    values_read_in_backward,
)

MOVES = "load and store"
"""Label of the operations that convert between tensors and the kernels' memory layout."""

NORMS = "batch norms"

_POOLS = ("max_pool2d", "avg_pool2d", "global_avg_pool")

_LABELS = {
    "batch_norm": NORMS,
    "layer_norm": "layer norms",
    "act": "activations",
    "add": "sums of values",
    **dict.fromkeys(_POOLS, "pools"),
}


def emit_region(plan: TrainingPlan) -> None:
    """Add the operations of all nodes' forward and backward passes to a plan, and build the plan's program."""
    plan.label, region = MOVES, plan.region
    lives = compute_lifetimes(region)
    plan.passing = {name for name, reader in lives.passing.items() if plan.runs_by_block(name, reader.output)}
    for name in region.inputs:
        plan.add_tensor_copy(f"load {name}", plan.store_value(name), out=False)
    for node, over in zip(region.nodes, lives.after_forward, strict=True):
        plan.label = _layer_label(node)
        _FORWARD[node.op](node, plan)
        for name in over:
            plan.release_value(name)
    plan.append_collected_ops("forward")
    plan.label = MOVES
    for name in region.outputs:
        plan.add_tensor_copy(f"store {name}", plan.values[name], out=True)
    for name in lives.after_outputs:
        plan.release_value(name)
    plan.append_collected_ops("forward")
    gradients = Gradients(plan)
    for name in region.outputs:
        gradients.by_value[name] = plan.allocate_gradient_memory(name)
        plan.add_tensor_copy(f"load gradient {name}", gradients.by_value[name], out=False)
    for node, over in zip(reversed(region.nodes), reversed(lives.after_backward), strict=True):
        if node.output in gradients.by_value:
            plan.label = NORMS
            for name in values_read_in_backward(node):
                passing = name in plan.passing and _weight_gradient_runs_by_block(node, plan, gradients)
                _add_norm_recomputation(name, lives.recomputed, plan, passing=passing)
            plan.label = _layer_label(node)
            _BACKWARD[node.op](node, plan, gradients)
        for name in over:
            plan.release_value(name)
    plan.append_collected_ops("backward")
    plan.label = MOVES
    for name in region.inputs:
        if name in plan.wanted and name in gradients.by_value:
            plan.add_tensor_copy(f"store gradient {name}", gradients.by_value[name], out=True)
    plan.link()


def _layer_label(node: Node) -> str:
    """Return the label under which a node's operations are timed: a layer's module name, or the operation's name."""
    return layer_name(node) if node.op in LAYERS else _LABELS[node.op]


# -- convolutions and linear layers ------------------------------------------------------------------------------------


def _build_masked_layer(node: Node, plan: TrainingPlan) -> MaskedLayer:
    name, window, groups = layer_name(node), plan.region.window(node), node.attrs.get("groups", 1)
    kept = plan.kept.get(name)
    if kept is None:  # not under the mask
        kept = np.ones((*plan.region.weights[node.weights["weight"]][:2], *window.size), dtype=bool)
    return MaskedLayer(kept, window, groups, plan.threads, name in plan.rows)


def _emit_layer_forward(node: Node, plan: TrainingPlan) -> None:
    x, y = plan.values[node.inputs[0]], plan.store_value(node.output)
    found = build_forward(x, y, _build_masked_layer(node, plan), plan.target)[0]
    slot = plan.add_ops("forward", found.ops)
    plan.add_gather(found.build_gather_op(), node.weights["weight"])
    plan.packed[layer_name(node)] = found
    rows = found.rows // y.geometry.bytes

    def fill_biases(state: RegionPass) -> None:
        bias = state.parameters[node.weights["bias"]].detach().numpy()
        plan.argument_table(slot.number, 0)[:, -rows.shape[1] :] = bias[rows].view(np.int32)

    if "bias" in node.weights:
        plan.prepare["forward"].append(fill_biases)


def _emit_layer_backward(node: Node, plan: TrainingPlan, gradients: Gradients) -> None:
    (name,) = node.inputs
    x, dy, layer = plan.values[name], gradients.by_value.pop(node.output), _build_masked_layer(node, plan)
    if "bias" in node.weights:
        slot = plan.add_ops("backward", build_channel_ops(Total, [dy], plan.live, plan.target))

        def store_bias_gradient(state: RegionPass) -> None:
            sums = read_sums(plan.program.ops[slot.number], plan.target)[:, 0]
            state.gradients[node.weights["bias"]] = torch.from_numpy(sums.astype(np.float32))

        plan.add_final_stage(store_bias_gradient)
    _emit_weight_gradient(node, plan, x, dy, layer)
    if name in gradients.needed:
        before = gradients.by_value.get(name)
        dx = before or plan.allocate_gradient_memory(name)
        for found in build_input_gradient(dy, dx, layer, plan.target, before):
            plan.add_ops("backward", found.ops)
            if len(found.index):  # its weights come from the table of the forward pass
                plan.add_gather(found.build_gather_op(plan.packed[layer_name(node)]))
        gradients.by_value[name] = dx
    plan.release_memory(dy)


def _emit_weight_gradient(node: Node, plan: TrainingPlan, x: Batch, dy: Batch, layer: MaskedLayer) -> None:
    weight = node.weights["weight"]
    if not layer.count:

        def set_zero_gradient(state: RegionPass) -> None:
            state.gradients[weight] = torch.zeros_like(state.parameters[weight])

        plan.add_stage("backward", set_zero_gradient)
        return
    tables = plan.tables.pop(layer_name(node), None)
    found = build_weight_gradient(x, dy, layer, plan.target, plan.reserve_scratch, tables)
    plan.add_ops("backward", found.ops, found.begin)
    if x.passing:
        plan.release_value(node.inputs[0])
    ends = [plan.add_standalone(op) for op in found.end]

    def store_weight_gradient(state: RegionPass) -> None:
        packed = torch.empty(found.packed, dtype=torch.float32, device="cpu")
        gradient = state.memory.allocate(weight, state.parameters[weight].shape)
        state.session.run(ends[0].number, ends[-1].number + 1, [packed.data_ptr(), gradient.data_ptr()])
        state.gradients[weight] = gradient

    plan.add_stage_after_collected_ops(store_weight_gradient)


def _weight_gradient_runs_by_block(node: Node, plan: TrainingPlan, gradients: Gradients) -> bool:
    """Return whether the weight gradient of the layer `node` is computed for one block of images at a time.

    Also store the tables of the weight gradient in `plan`.
    """
    layer = _build_masked_layer(node, plan)
    if not layer.count:
        return False
    tables = build_product_tables(
        plan.value_layout(node.inputs[0]), gradients.by_value[node.output], layer, plan.target
    )
    plan.tables[layer_name(node)] = tables
    if tables.by_block:
        plan.free_scratch()  # reserved later, it would append the collected operations between the value and its reader
    return tables.by_block


# -- batch norms -------------------------------------------------------------------------------------------------------


def _count_elements(plan: TrainingPlan, value: Batch) -> int:
    return plan.live * value.geometry.height * value.geometry.width


def _emit_norm_forward(node: Node, plan: TrainingPlan) -> None:
    x = plan.values[node.inputs[0]]
    count = _count_elements(plan, x)
    if count < 2:
        raise EngineError(
            f"{layer_name(node)}: a batch norm needs more than one value for each channel: train larger batches"
        )
    size = x.geometry.height, x.geometry.width
    ends = [min(plan.live, plan.images * part.stop) for part in operation_blocks(x.blocks, size)]
    counts = [(end - begin) * size[0] * size[1] for begin, end in itertools.pairwise([0, *ends])]
    moments = plan.add_ops("forward", build_channel_ops(Moments, [x], plan.live, plan.target))

    def fill_scale_and_shift(state: RegionPass) -> None:
        ops = plan.program.ops
        mean, variance = read_moments(ops[moments.number], counts, plan.target)
        module = state.modules[layer_name(node)]
        inverse = 1 / np.sqrt(variance + module.eps)
        _update_running_statistics(module, mean, variance * (count / (count - 1)))
        weight, bias = (state.parameters[node.weights[role]].detach().numpy() for role in ("weight", "bias"))
        numbers = channel_number_table(ops[scale.number])
        numbers[:, 0] = weight * inverse
        numbers[:, 1] = bias - weight * inverse * mean
        state.saved[node.output] = mean, inverse, numbers.copy()

    plan.add_stage("forward", fill_scale_and_shift)
    y = plan.store_value(node.output, passing=node.output in plan.passing)
    values = [x, y, *(plan.values[name] for name in node.inputs[1:])]
    flags = {"relu": node.attrs["act"] is not None, "residual": len(node.inputs) > 1}
    scale = plan.add_ops("forward", build_channel_ops(ScaleShift, values, plan.live, plan.target, **flags))


def _add_norm_recomputation(
    name: str, makers: Mapping[str, Node], plan: TrainingPlan, *, passing: bool = False
) -> None:
    """Add operations that recompute a norm's output in the backward pass, if the value `name` is such an output.

    Nothing is added if the output is still stored.

    Args:
        makers: name of a value -> node of the norm that computes the value.
    """
    if name in plan.present:
        return
    node = makers[name]
    _add_norm_recomputation(node.inputs[0], makers, plan)
    values = [plan.values[node.inputs[0]], plan.store_value(name, "backward", passing=passing)]
    flags = {"relu": node.attrs["act"] is not None, "residual": False}
    slot = plan.add_ops("backward", build_channel_ops(ScaleShift, values, plan.live, plan.target, **flags))

    def restore_scale_and_shift(state: RegionPass) -> None:
        channel_number_table(plan.program.ops[slot.number])[:] = state.saved[name][2]

    plan.prepare["backward"].append(restore_scale_and_shift)


def _update_running_statistics(module: Any, mean: Array, variance: Array) -> None:
    if not module.track_running_stats:
        return
    module.num_batches_tracked.add_(1)
    share = module.momentum
    if share is None:
        share = 1 / float(module.num_batches_tracked)
    for running, new in ((module.running_mean, mean), (module.running_var, variance)):
        # Without a new version, as in torch: autograd saves these tensors for other calls of the norm.
        running.data.lerp_(torch.from_numpy(new).to(running.dtype), share)


def _emit_norm_backward(node: Node, plan: TrainingPlan, gradients: Gradients) -> None:
    x, y, dy = plan.values[node.inputs[0]], plan.values[node.output], gradients.by_value.pop(node.output)
    relu, residual = node.attrs["act"] is not None, len(node.inputs) > 1
    values = [dy, x, y] if relu and residual else [dy, x]
    ops = build_channel_ops(NormSums, values, plan.live, plan.target, relu=relu, residual=residual)
    sums = plan.add_ops("backward", ops)
    count = _count_elements(plan, x)

    def fill_means_and_scales(state: RegionPass) -> None:
        mean, _, scale = state.saved[node.output]
        numbers = channel_number_table(plan.program.ops[sums.number])
        numbers[:, 0], numbers[:, 1:] = mean, scale

    def norm(state: RegionPass) -> None:
        mean, inverse, scale = state.saved[node.output]
        found = read_sums(plan.program.ops[sums.number], plan.target)
        state.gradients[node.weights["weight"]] = torch.from_numpy((found[:, 1] * inverse).astype(np.float32))
        state.gradients[node.weights["bias"]] = torch.from_numpy(found[:, 0].astype(np.float32))
        numbers = channel_number_table(plan.program.ops[back.number])
        a = state.parameters[node.weights["weight"]].detach().numpy() * inverse
        b = -a * inverse**2 * found[:, 1] / count
        numbers[:, 0], numbers[:, 1] = a, b
        numbers[:, 2] = -a * found[:, 0] / count - b * mean
        numbers[:, 3:] = scale

    plan.prepare["backward"].append(fill_means_and_scales)
    plan.add_stage("backward", norm)
    over = not residual and plan.gradient_layout(node.inputs[0]).geometry == dy.geometry
    dx = dy if over else plan.allocate_gradient_memory(node.inputs[0])
    flags = {"relu": relu and not residual}
    back = plan.add_ops("backward", build_channel_ops(NormGradient, [dy, x, dx], plan.live, plan.target, **flags))
    gradients.add_gradient(node.inputs[0], dx)
    if residual:
        gradients.set_gradient_memory(node.inputs[1], dy)
    elif not over:
        plan.release_memory(dy)


# -- layer norms -------------------------------------------------------------------------------------------------------


def _emit_layer_norm_forward(node: Node, plan: TrainingPlan) -> None:
    x, y, epsilon = plan.values[node.inputs[0]], plan.store_value(node.output), node.attrs["eps"]
    statistics = [plan.allocate_token_memory(node.inputs[0], "forward") for _ in range(2)]
    plan.token_statistics[node.output] = statistics
    plan.add_ops("forward", build_token_ops(TokenMoments, [x, *statistics], epsilon, plan.target))
    slot = plan.add_ops("forward", build_channel_ops(TokenLayerNorm, [x, y, *statistics], plan.live, plan.target))

    def fill_scale_and_shift(state: RegionPass) -> None:
        numbers = channel_number_table(plan.program.ops[slot.number])
        numbers[:, 0] = _layer_norm_scale(node, state)
        bias = node.weights.get("bias")
        numbers[:, 1] = 0 if bias is None else state.parameters[bias].detach().numpy()

    plan.prepare["forward"].append(fill_scale_and_shift)


def _emit_layer_norm_backward(node: Node, plan: TrainingPlan, gradients: Gradients) -> None:
    dy, dx = gradients.by_value.pop(node.output), plan.allocate_gradient_memory(node.inputs[0])
    x, statistics = plan.values[node.inputs[0]], plan.token_statistics[node.output]
    means = [plan.allocate_token_memory(node.inputs[0], "backward") for _ in range(2)]
    values = [dy, x, *statistics, *means]
    sums = plan.add_ops("backward", build_token_ops(TokenSums, values, node.attrs["eps"], plan.target))
    values = [dy, x, dx, *statistics, *means]
    back = plan.add_ops("backward", build_channel_ops(LayerNormGradient, values, plan.live, plan.target))
    for memory in (*statistics, *means):
        plan.release_memory(memory)

    def fill_scale(state: RegionPass) -> None:
        scale = _layer_norm_scale(node, state)
        feature_factor_table(plan.program.ops[sums.number])[:] = scale
        channel_number_table(plan.program.ops[back.number])[:, 0] = scale

    def store_parameter_gradients(state: RegionPass) -> None:
        found = read_sums(plan.program.ops[back.number], plan.target).astype(np.float32)
        for column, role in enumerate(("weight", "bias")):
            if role in node.weights:
                state.gradients[node.weights[role]] = torch.from_numpy(found[:, column].copy())

    plan.prepare["backward"].append(fill_scale)
    plan.add_stage_after_collected_ops(store_parameter_gradients)
    gradients.add_gradient(node.inputs[0], dx)
    plan.release_memory(dy)


def _layer_norm_scale(node: Node, state: RegionPass) -> Array | float:
    name = node.weights.get("weight")
    return 1.0 if name is None else np.asarray(state.parameters[name].detach().numpy())


# -- activations and sums ----------------------------------------------------------------------------------------------


def _emit_act_forward(node: Node, plan: TrainingPlan) -> None:
    values, act = [plan.values[node.inputs[0]], plan.store_value(node.output)], node.attrs["act"]
    if act != "relu":
        plan.add_ops("forward", build_channel_ops(Activated, values, plan.live, plan.target, act=act))
        return
    ops = build_channel_ops(ScaleShift, values, plan.live, plan.target, relu=True, residual=False)
    channel_number_table(ops[0])[:] = 1, 0
    plan.add_ops("forward", ops)


def _emit_act_backward(node: Node, plan: TrainingPlan, gradients: Gradients) -> None:
    (name,), act, dy = node.inputs, node.attrs["act"], gradients.by_value.pop(node.output)
    if name in gradients.needed:
        dx = plan.allocate_gradient_memory(name)
        if act == "relu":
            values = [dy, plan.values[node.output], dx]
            ops = build_channel_ops(Add, values, plan.live, plan.target, relu=True, residual=False)
        else:
            ops = build_channel_ops(ActivationGradient, [dy, plan.values[name], dx], plan.live, plan.target, act=act)
        plan.add_ops("backward", ops)
        gradients.add_gradient(name, dx)
    plan.release_memory(dy)


def _emit_sum_forward(node: Node, plan: TrainingPlan) -> None:
    one, other = (plan.values[name] for name in node.inputs)
    values = [one, plan.store_value(node.output), other]
    plan.add_ops("forward", build_channel_ops(Add, values, plan.live, plan.target, relu=False, residual=True))


def _emit_sum_backward(node: Node, plan: TrainingPlan, gradients: Gradients) -> None:
    (one, other), dy = node.inputs, gradients.by_value.pop(node.output)
    if one in gradients.needed:
        copy = plan.allocate_gradient_memory(one)
        plan.copy_into(dy, copy)
        gradients.add_gradient(one, copy)
    gradients.set_gradient_memory(other, dy)


# -- pools -------------------------------------------------------------------------------------------------------------


def _windows_overlap(node: Node) -> bool:
    """Return whether a pooling layer has overlapping or padded windows, which need other kernels."""
    if node.op != "max_pool2d":
        return False
    attrs = node.attrs
    return bool(attrs["stride"] != attrs["kernel"] or any(attrs["padding"]) or attrs["ceil"])


def _emit_pool_forward(node: Node, plan: TrainingPlan) -> None:
    x, y = plan.values[node.inputs[0]], plan.store_value(node.output)
    if _windows_overlap(node):
        op = pools.build_overlapping_op(y, [x, x], plan.region.window(node), backward=False)
    else:
        size = tuple(node.attrs.get("kernel", plan.shapes[node.inputs[0]][1:]))
        op = pools.build_adjacent_op(y, x, x, size, largest=node.op == "max_pool2d", backward=False)
    plan.add_ops("forward", [op])


def _emit_pool_backward(node: Node, plan: TrainingPlan, gradients: Gradients) -> None:
    (name,), dy = node.inputs, gradients.by_value.pop(node.output)
    x = plan.values[name]
    if name in gradients.needed:
        size = tuple(node.attrs.get("kernel", plan.shapes[name][1:]))
        dx, overlap = plan.allocate_gradient_memory(name), _windows_overlap(node)
        covered = plan.shapes[node.output][1] * size[0], plan.shapes[node.output][2] * size[1]
        if overlap or covered != plan.shapes[name][1:]:
            plan.add_zeroing(dx)
        if overlap:
            op = pools.build_overlapping_op(dy, [dx, x], plan.region.window(node), backward=True)
        else:
            op = pools.build_adjacent_op(dy, dx, x, size, largest=node.op == "max_pool2d", backward=True)
        plan.add_ops("backward", [op])
        gradients.add_gradient(name, dx)
    plan.release_memory(dy)


_FORWARD: Mapping[str, Callable[[Node, TrainingPlan], None]] = {
    **dict.fromkeys(LAYERS, _emit_layer_forward),
    "batch_norm": _emit_norm_forward,
    "layer_norm": _emit_layer_norm_forward,
    "act": _emit_act_forward,
    "add": _emit_sum_forward,
    **dict.fromkeys(_POOLS, _emit_pool_forward),
}

_BACKWARD: Mapping[str, Callable[[Node, TrainingPlan, Gradients], None]] = {
    **dict.fromkeys(LAYERS, _emit_layer_backward),
    "batch_norm": _emit_norm_backward,
    "layer_norm": _emit_layer_norm_backward,
    "act": _emit_act_backward,
    "add": _emit_sum_backward,
    **dict.fromkeys(_POOLS, _emit_pool_backward),
}
