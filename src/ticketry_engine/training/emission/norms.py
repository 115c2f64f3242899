"""The operations of a batch norm, forward and backward, added to a plan; and what it made once more."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ticketry_engine.errors import EngineError
from ticketry_engine.kernels.training.by_channel import (
    Moments,
    NormGradient,
    NormSums,
    Scale,
    moments_of,
    numbers_of,
    operations,
    sums_of,
)
from ticketry_engine.kernels.training.layout import Batch, parts
from ticketry_engine.kernels.window import Array
from ticketry_engine.training.call import Call
from ticketry_engine.training.gradients import Gradients
from ticketry_engine.training.nodes import Norm
from ticketry_engine.training.plan import Plan


def _count(plan: Plan, value: Batch) -> int:
    return plan.live * value.geometry.height * value.geometry.width


def forward(node: Norm, plan: Plan) -> None:
    """The statistics of the batch, then all that is made of them."""
    x = plan.values[node.x]
    count = _count(plan, x)
    if count < 2:
        raise EngineError(
            f"{node.module}: a batch norm needs more than one value for each channel: train larger batches"
        )
    size = x.geometry.height, x.geometry.width
    ends = [min(plan.live, plan.images * part.stop) for part in parts(x.blocks, size)]
    counts = [(end - begin) * size[0] * size[1] for begin, end in itertools.pairwise([0, *ends])]
    moments = plan.add("forward", operations(Moments, [x], plan.live, plan.target))

    def statistics(call: Call) -> None:
        ops = plan.program.ops
        mean, variance = moments_of(ops[moments.number], counts, plan.target)
        module = call.modules[node.module]
        inverse = 1 / np.sqrt(variance + module.eps)
        _track(module, mean, variance * (count / (count - 1)))
        weight, bias = (call.parameters[node.module, name].detach().numpy() for name in ("weight", "bias"))
        numbers = numbers_of(ops[scale.number])
        numbers[:, 0] = weight * inverse
        numbers[:, 1] = bias - weight * inverse * mean
        call.saved[node.y] = mean, inverse, numbers.copy()

    plan.then("forward", statistics)
    values = [x, plan.make(node.y, passing=node.y in plan.passing)] + (
        [] if node.residual is None else [plan.values[node.residual]]
    )
    flags = {"relu": node.relu, "residual": node.residual is not None}
    scale = plan.add("forward", operations(Scale, values, plan.live, plan.target, **flags))


def again(name: str, makers: Mapping[str, Norm], plan: Plan, *, passing: bool = False) -> None:
    """A value on the way back that a norm made on the way there, if it was not kept."""
    if name in plan.present:
        return
    node = makers[name]
    again(node.x, makers, plan)
    values = [plan.values[node.x], plan.make(node.y, "backward", passing=passing)]
    slot = plan.add("backward", operations(Scale, values, plan.live, plan.target, relu=node.relu, residual=False))

    def fill(call: Call) -> None:
        numbers_of(plan.program.ops[slot.number])[:] = call.saved[node.y][2]

    plan.prepare["backward"].append(fill)


def _track(module: Any, mean: Array, variance: Array) -> None:
    """Running statistics, as torch's batch norm keeps them."""
    if not module.track_running_stats:
        return
    module.num_batches_tracked.add_(1)
    share = module.momentum
    if share is None:
        share = 1 / float(module.num_batches_tracked)
    for running, new in ((module.running_mean, mean), (module.running_var, variance)):
        # As torch does it, without a new version: autograd keeps these of calls of the same norm that ran in torch.
        running.data.lerp_(torch.from_numpy(new).to(running.dtype), share)


def backward(node: Norm, plan: Plan, gradients: Gradients) -> None:
    """The gradients of what came in, of scale and shift, and of what was added."""
    x, y, dy = plan.values[node.x], plan.values[node.y], gradients.take(node.y)
    residual = node.residual is not None
    values = [dy, x, y] if node.relu and residual else [dy, x]
    found = operations(NormSums, values, plan.live, plan.target, relu=node.relu, residual=residual)
    sums = plan.add("backward", found)
    count = _count(plan, x)

    def means(call: Call) -> None:
        mean, _, scale = call.saved[node.y]
        numbers = numbers_of(plan.program.ops[sums.number])
        numbers[:, 0], numbers[:, 1:] = mean, scale

    def norm(call: Call) -> None:
        mean, inverse, scale = call.saved[node.y]
        found = sums_of(plan.program.ops[sums.number], plan.target)
        call.gradients[node.module, "weight"] = torch.from_numpy((found[:, 1] * inverse).astype(np.float32))
        call.gradients[node.module, "bias"] = torch.from_numpy(found[:, 0].astype(np.float32))
        numbers = numbers_of(plan.program.ops[back.number])
        a = call.parameters[node.module, "weight"].detach().numpy() * inverse
        b = -a * inverse**2 * found[:, 1] / count
        numbers[:, 0], numbers[:, 1] = a, b
        numbers[:, 2] = -a * found[:, 0] / count - b * mean
        numbers[:, 3:] = scale

    plan.prepare["backward"].append(means)
    plan.then("backward", norm)
    over = not residual and plan.gradient_layout(node.x).geometry == dy.geometry
    dx = dy if over else plan.gradient_memory(node.x)
    relu = node.relu and not residual
    back = plan.add("backward", operations(NormGradient, [dy, x, dx], plan.live, plan.target, relu=relu))
    gradients.give(node.x, dx)
    if node.residual is not None:
        gradients.pass_on(node.residual, dy)
    elif not over:
        plan.release(dy)
