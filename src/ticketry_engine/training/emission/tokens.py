"""The operations of a layer norm, forward and backward, added to a plan."""

from __future__ import annotations

import numpy as np
import torch

from ticketry_engine.kernels.training.by_channel import numbers_of, operations, sums_of
from ticketry_engine.kernels.training.by_token import (
    LayerNormGradient,
    TokenLayerNorm,
    TokenMoments,
    TokenSums,
    factors_of,
    token_operations,
)
from ticketry_engine.kernels.training.layout import Batch
from ticketry_engine.kernels.window import Array
from ticketry_engine.training import nodes
from ticketry_engine.training.call import Call
from ticketry_engine.training.plan import Plan


def forward(node: nodes.LayerNorm, plan: Plan) -> list[Batch]:
    """The norm, and where it leaves the mean and 1 / deviation of each token for the way back."""
    x, y = plan.values[node.x], plan.make(node.y)
    known = [plan.token_memory(node.x, "forward") for _ in range(2)]
    plan.add("forward", token_operations(TokenMoments, [x, *known], node.epsilon, plan.target))
    slot = plan.add("forward", operations(TokenLayerNorm, [x, y, *known], plan.live, plan.target))

    def fill(call: Call) -> None:
        numbers = numbers_of(plan.program.ops[slot.number])
        numbers[:, 0] = _scale(node, call)
        numbers[:, 1] = call.parameters[node.module, "bias"].detach().numpy() if node.shift else 0

    plan.prepare["forward"].append(fill)
    return known


def backward(node: nodes.LayerNorm, plan: Plan, dy: Batch, dx: Batch, known: list[Batch]) -> None:
    """The gradients of what came in and of the parameters."""
    x, means = plan.values[node.x], [plan.token_memory(node.x, "backward") for _ in range(2)]
    sums = plan.add("backward", token_operations(TokenSums, [dy, x, *known, *means], node.epsilon, plan.target))
    values = [dy, x, dx, *known, *means]
    back = plan.add("backward", operations(LayerNormGradient, values, plan.live, plan.target))
    for memory in (*known, *means):
        plan.release(memory)

    def fill(call: Call) -> None:
        scale = _scale(node, call)
        factors_of(plan.program.ops[sums.number])[:] = scale
        numbers_of(plan.program.ops[back.number])[:, 0] = scale

    def totals(call: Call) -> None:
        found = sums_of(plan.program.ops[back.number], plan.target).astype(np.float32)
        for column, (name, there) in enumerate((("weight", node.scale), ("bias", node.shift))):
            if there:
                call.gradients[node.module, name] = torch.from_numpy(found[:, column].copy())

    plan.prepare["backward"].append(fill)
    plan.later(totals)


def _scale(node: nodes.LayerNorm, call: Call) -> Array | float:
    return np.asarray(call.parameters[node.module, "weight"].detach().numpy()) if node.scale else 1.0
