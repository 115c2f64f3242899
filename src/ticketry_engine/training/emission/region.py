"""A region laid out for a batch: the operations of its nodes, forward and backward, added to a plan."""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch

import numpy as np
import torch

from ticketry_engine.kernels.jit import Library
from ticketry_engine.kernels.training import pools
from ticketry_engine.kernels.training.by_channel import (
    Activated,
    ActivationGradient,
    Add,
    Scale,
    Total,
    numbers_of,
    operations,
    sums_of,
)
from ticketry_engine.kernels.training.convolution import forward, input_gradient, product_tables, weight_gradient
from ticketry_engine.kernels.training.layer import Gathered, MaskedLayer
from ticketry_engine.kernels.training.layout import Batch
from ticketry_engine.kernels.window import Array, Window
from ticketry_engine.training.call import Call
from ticketry_engine.training.emission import norms, tokens
from ticketry_engine.training.gradients import Gradients
from ticketry_engine.training.lifetimes import lifetimes, read_back
from ticketry_engine.training.nodes import Act, Conv, LayerNorm, Node, Norm, Pool, Region, Relu, Shape, Sum
from ticketry_engine.training.plan import Plan

MOVES = "load and store"
"""Label of what brings values into the kernels' layout and out of it."""

_KINDS: dict[type, str] = {
    Norm: "batch norms",
    LayerNorm: "layer norms",
    Relu: "activations",
    Act: "activations",
    Sum: "sums of values",
    Pool: "pools",
}


def planned(
    region: Region,
    shapes: Mapping[str, Shape],
    kept: Mapping[str, Array],
    live: int,
    wanted: frozenset[str],
    library: Library,
    threads: int,
    rows: frozenset[str],
    item: int,
) -> Plan:
    """A region laid out for a batch, with all its operations. Arguments and errors as of `Plan`."""
    plan = Plan(region, shapes, kept, live, wanted, library, threads, rows, item)
    plan.label = MOVES
    lives = lifetimes(region)
    plan.passing = {name for name, reader in lives.passing.items() if plan.by_block(name, reader.y)}
    for name in region.inputs:
        plan.move(f"load {name}", plan.make(name), out=False)
    for node, over in zip(region.nodes, lives.after_forward, strict=True):
        plan.label = _label(node)
        _forward(node, plan)
        for name in over:
            plan.drop(name)
    plan.finish("forward")
    plan.label = MOVES
    for name in region.outputs:
        plan.move(f"store {name}", plan.values[name], out=True)
    for name in lives.after_outputs:
        plan.drop(name)
    plan.finish("forward")
    gradients = Gradients(plan)
    for name in region.outputs:
        gradients.of[name] = plan.gradient_memory(name)
        plan.move(f"load gradient {name}", gradients.of[name], out=False)
    for node, over in zip(reversed(region.nodes), reversed(lives.after_backward), strict=True):
        if node.y in gradients.of:
            plan.label = _KINDS[Norm]
            for name in read_back(node):
                passing = name in plan.passing and _by_block(node, plan, gradients)
                norms.again(name, lives.again, plan, passing=passing)
            plan.label = _label(node)
            _backward(node, plan, gradients)
        for name in over:
            plan.drop(name)
    plan.finish("backward")
    plan.label = MOVES
    for name in region.inputs:
        if name in wanted and name in gradients.of:
            plan.move(f"store gradient {name}", gradients.of[name], out=True)
    plan.link()
    return plan


def _label(node: Node) -> str:
    """A layer's module; of others what they are, all of a kind together."""
    return node.module if isinstance(node, Conv) else _KINDS[type(node)]


@singledispatch
def _forward(node: Node, plan: Plan) -> None:
    raise AssertionError(f"no operations for {node}")


@singledispatch
def _backward(node: Node, plan: Plan, gradients: Gradients) -> None:
    raise AssertionError(f"no operations for {node}")


# -- convolutions ------------------------------------------------------------------------------------------------------


def _layer(node: Conv, plan: Plan) -> MaskedLayer:
    kept = plan.kept.get(node.module)
    if kept is None:  # not under the mask
        kept = np.ones((node.outputs, node.inputs // node.groups, *node.window.size), dtype=bool)
    return MaskedLayer(kept, node.window, node.groups, plan.threads, node.module in plan.rows)


@_forward.register
def _(node: Conv, plan: Plan) -> None:
    x, y = plan.values[node.x], plan.make(node.y)
    found = forward(x, y, _layer(node, plan), plan.target)[0]
    slot = plan.add("forward", found.ops)
    plan.gather(found.gather(), (node.module, "weight"))
    plan.packed[node.module] = found
    rows = found.rows // y.geometry.bytes

    def fill(call: Call) -> None:
        bias = call.parameters[node.module, "bias"].detach().numpy()
        plan.table(slot.number, 0)[:, -rows.shape[1] :] = bias[rows].view(np.int32)

    if node.bias:
        plan.prepare["forward"].append(fill)


@_backward.register
def _(node: Conv, plan: Plan, gradients: Gradients) -> None:
    x, dy, layer = plan.values[node.x], gradients.take(node.y), _layer(node, plan)
    if node.bias:
        _bias_gradient(node, plan, dy)
    _weight_gradient(node, plan, x, dy, layer)
    if node.x in gradients.needed:
        there = gradients.of.get(node.x)
        dx = there or plan.gradient_memory(node.x)
        _gathered(plan, node, input_gradient(dy, dx, layer, plan.target, there))
        gradients.of[node.x] = dx
    plan.release(dy)


def _gathered(plan: Plan, node: Conv, found: list[Gathered]) -> None:
    """Operations whose weights are gathered, at the beginning of the way back, from those of the way there."""
    for each in found:
        plan.add("backward", each.ops)
        if len(each.index):
            plan.gather(each.gather(plan.packed[node.module]))


def _weight_gradient(node: Conv, plan: Plan, x: Batch, dy: Batch, layer: MaskedLayer) -> None:
    if not layer.count:

        def nothing(call: Call) -> None:
            call.gradients[node.module, "weight"] = torch.zeros_like(call.parameters[node.module, "weight"])

        plan.then("backward", nothing)
        return
    made = weight_gradient(x, dy, layer, plan.target, plan.reserve_scratch, plan.tables.pop(node.module, None))
    plan.add("backward", made.ops, made.begin)
    if x.passing:
        plan.drop(node.x)
    ends = [plan.alone(op) for op in made.end]

    def totals(call: Call) -> None:
        packed = torch.empty(made.packed, dtype=torch.float32, device="cpu")
        gradient = call.memory.empty(node.module, call.parameters[node.module, "weight"].shape)
        call.session.run(ends[0].number, ends[-1].number + 1, [packed.data_ptr(), gradient.data_ptr()])
        call.gradients[node.module, "weight"] = gradient

    plan.later(totals)


def _by_block(node: Node, plan: Plan, gradients: Gradients) -> bool:
    """Whether a convolution's weight gradient, which comes next, goes block by block; its tables are kept for it."""
    assert isinstance(node, Conv)
    layer = _layer(node, plan)
    if not layer.count:
        return False
    tables = product_tables(plan.layout(node.x), gradients.of[node.y], layer, plan.target)
    plan.tables[node.module] = tables
    if tables.by_block:
        plan.free_scratch()  # else it would end what waits between the value and the one who reads it
    return tables.by_block


def _bias_gradient(node: Conv, plan: Plan, dy: Batch) -> None:
    slot = plan.add("backward", operations(Total, [dy], plan.live, plan.target))

    def total(call: Call) -> None:
        sums = sums_of(plan.program.ops[slot.number], plan.target)[:, 0]
        call.gradients[node.module, "bias"] = torch.from_numpy(sums.astype(np.float32))

    plan.last(total)


# -- norms -------------------------------------------------------------------------------------------------------------


@_forward.register
def _(node: Norm, plan: Plan) -> None:
    norms.forward(node, plan)


@_backward.register
def _(node: Norm, plan: Plan, gradients: Gradients) -> None:
    norms.backward(node, plan, gradients)


@_forward.register
def _(node: LayerNorm, plan: Plan) -> None:
    plan.known[node.y] = tokens.forward(node, plan)


@_backward.register
def _(node: LayerNorm, plan: Plan, gradients: Gradients) -> None:
    dy, dx = gradients.take(node.y), plan.gradient_memory(node.x)
    tokens.backward(node, plan, dy, dx, plan.known[node.y])
    gradients.give(node.x, dx)
    plan.release(dy)


# -- the rest ----------------------------------------------------------------------------------------------------------


@_forward.register
def _(node: Relu, plan: Plan) -> None:
    x, y = plan.values[node.x], plan.make(node.y)
    ops = operations(Scale, [x, y], plan.live, plan.target, relu=True, residual=False)
    numbers_of(ops[0])[:] = 1, 0
    plan.add("forward", ops)


@_backward.register
def _(node: Relu, plan: Plan, gradients: Gradients) -> None:
    dy, y = gradients.take(node.y), plan.values[node.y]
    if node.x in gradients.needed:
        dx = plan.gradient_memory(node.x)
        plan.add("backward", operations(Add, [dy, y, dx], plan.live, plan.target, relu=True, residual=False))
        gradients.give(node.x, dx)
    plan.release(dy)


@_forward.register
def _(node: Act, plan: Plan) -> None:
    plan.add(
        "forward", operations(Activated, [plan.values[node.x], plan.make(node.y)], plan.live, plan.target, act=node.act)
    )


@_backward.register
def _(node: Act, plan: Plan, gradients: Gradients) -> None:
    dy = gradients.take(node.y)
    if node.x in gradients.needed:
        dx = plan.gradient_memory(node.x)
        values = [dy, plan.values[node.x], dx]
        plan.add("backward", operations(ActivationGradient, values, plan.live, plan.target, act=node.act))
        gradients.give(node.x, dx)
    plan.release(dy)


@_forward.register
def _(node: Sum, plan: Plan) -> None:
    values = [plan.values[node.x], plan.make(node.y), plan.values[node.other]]
    plan.add("forward", operations(Add, values, plan.live, plan.target, relu=False, residual=True))


@_backward.register
def _(node: Sum, plan: Plan, gradients: Gradients) -> None:
    dy = gradients.take(node.y)
    if node.x in gradients.needed:
        copy = plan.gradient_memory(node.x)
        plan.add("backward", operations(Add, [dy, copy], plan.live, plan.target, relu=False, residual=False))
        gradients.give(node.x, copy)
    gradients.pass_on(node.other, dy)


@_forward.register
def _(node: Pool, plan: Plan) -> None:
    x, y = plan.values[node.x], plan.make(node.y)
    if node.stride is not None:
        plan.add("forward", [pools.overlapping_forward(x, y, _windows(node))])
        return
    plan.add("forward", [pools.pool_forward(x, y, node.size or plan.shapes[node.x][1:], largest=node.largest)])


def _windows(node: Pool) -> Window:
    assert node.size is not None
    assert node.stride is not None
    return Window(node.size, node.stride, node.padding)


@_backward.register
def _(node: Pool, plan: Plan, gradients: Gradients) -> None:
    dy, x = gradients.take(node.y), plan.values[node.x]
    if node.x in gradients.needed:
        size = node.size or plan.shapes[node.x][1:]
        dx = plan.gradient_memory(node.x)
        covered = plan.shapes[node.y][1] * size[0], plan.shapes[node.y][2] * size[1]
        if node.stride is not None or covered != plan.shapes[node.x][1:]:
            plan.zero(dx)
        if node.stride is None:
            plan.add("backward", [pools.pool_backward(dy, dx, x, size, largest=node.largest)])
        else:
            plan.add("backward", [pools.overlapping_backward(dy, dx, x, _windows(node))])
        gradients.give(node.x, dx)
    plan.release(dy)
