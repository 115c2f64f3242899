"""Autograd functions for products of weights and gates, with few passes over memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ticketry.core.structure.layout import Blocks
from ticketry.errors import TrainingError


def apply_gate(weight: Tensor, gate: Tensor, kept: Tensor | None) -> Tensor:
    """Return weight * gate in the weight's dtype, computed in the gate's dtype.

    If `kept` (1 for weights that the initial mask retains, else 0) is not None, the result is multiplied by it.
    """
    if kept is not None:
        gate = gate * kept
    return (weight.to(gate.dtype) * gate).to(weight.dtype)


def sigmoid_product(
    weight: Tensor, logits: Tensor, kept: Tensor | None, beta: float, scale: float
) -> tuple[Tensor, Tensor]:
    """Return weight * sigmoid(beta * logits) * scale (* kept), and the sum of sigmoid(beta * logits) (* kept).

    For the product p, the sum t and sg = sigmoid(beta * logits), the gradients are

        dL/dweight = dL/dp * sg * scale
        dL/dlogits = beta * sg * (1 - sg) * (dL/dp * weight * scale + dL/dt)

    The backward pass recomputes the sigmoid instead of storing it. The inputs are not stored as saved tensors of
    autograd, since they are leaf tensors that outlive the backward pass. So activation checkpointing, which counts
    saved tensors, works; and the sum may be differentiated after the product has been.

    Args:
        kept: a mask of 0 and 1 in the same shape and dtype; None retains all weights.
    """
    product, total = _SigmoidProduct.apply(weight, logits, kept, beta, scale)  # type: ignore[no-untyped-call]
    return product, total


def weighted_sum(totals: Sequence[Tensor], coefficient: float) -> Tensor:
    """Return `coefficient` times the sum of the scalar tensors `totals`, by a single autograd function."""
    total: Tensor = _WeightedSum.apply(coefficient, *totals)  # type: ignore[no-untyped-call]
    return total


def block_product(weight: Tensor, gate: Tensor, blocks: Blocks) -> Tensor:
    """Return every weight times the gate of its block, in the weight's dtype, without a copy of the gate per weight."""
    if weight.dtype != gate.dtype or torch._C._are_functorch_transforms_active():
        return apply_gate(weight, blocks.expand_to_weights(gate), None)
    product: Tensor = _BlockProduct.apply(weight, gate, blocks)  # type: ignore[no-untyped-call]
    return product


_FEW_BLOCKS = 32_768
"""With fewer blocks than this, sums are computed by a single operation, because several would take longer."""


class _BlockProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, gate: Tensor, blocks: Blocks) -> Tensor:
        ctx.save_for_backward(weight, gate)
        ctx.blocks = blocks
        product = torch.empty_like(weight)
        views = zip(blocks.weight_views(weight), blocks.block_views(gate), blocks.weight_views(product), strict=True)
        for own, factor, place in views:
            torch.mul(own, factor, out=place)
        return product

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight, gate = ctx.saved_tensors
        need_weight, need_gate = ctx.needs_input_grad[:2]
        grad_weight = block_product(grad, gate, ctx.blocks) if need_weight else None
        return grad_weight, _block_sums_of_products(grad, weight, gate, ctx.blocks) if need_gate else None, None


def _block_sums_of_products(grad: Tensor, weight: Tensor, gate: Tensor, blocks: Blocks) -> Tensor:
    """Return, for each block, the sum of grad * weight over the block, in the shape `Blocks.shape` of `gate`."""
    small = blocks.count < _FEW_BLOCKS or blocks.whole_rows
    if small or torch.is_grad_enabled():  # differentiable again with create_graph=True
        return blocks.sum_by_block(grad * weight)
    # Row by row of the blocks, which is three times as fast as a sum along a middle dimension.
    found = torch.empty_like(gate)
    for one, other, place in zip(
        blocks.weight_views(grad), blocks.weight_views(weight), blocks.block_views(found), strict=True
    ):
        total = place.squeeze(2)
        torch.mul(one[:, :, 0], other[:, :, 0], out=total)
        for row in range(1, one.shape[2]):
            total.addcmul_(one[:, :, row], other[:, :, row])
    return found


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, coefficient: float, *totals: Tensor) -> Tensor:
        ctx.coefficient, ctx.devices = coefficient, [total.device for total in totals]
        return coefficient * torch.stack([total.to(ctx.devices[0]) for total in totals]).sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        each = grad * ctx.coefficient
        return None, *(each.to(device) for device in ctx.devices)


class _SigmoidProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, logits: Tensor, kept: Tensor | None, beta: float, scale: float
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.inputs = weight, logits, kept, beta, scale
        ctx.versions = weight._version, logits._version
        gate = _compute_gate(logits, kept, beta)
        total = gate.sum()
        return _multiply_in_place(gate, weight, scale), total

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_total: Tensor | None) -> tuple[Tensor | None, ...]:
        weight, logits, kept, beta, scale = ctx.inputs
        if (weight._version, logits._version) != ctx.versions:
            raise TrainingError(
                "weights or gates were changed between forward and backward: take the optimisers' steps after it"
            )
        if torch.is_grad_enabled():
            return *_differentiable_gradients(ctx, grad, grad_total), None, None, None
        need_weight, need_logits = ctx.needs_input_grad[:2]
        gate = _compute_gate(logits, kept, beta)
        grad_weight = grad_logits = None
        if need_logits:
            # In the weight's memory layout, `beta` times the gradient with respect to the gate.
            charge = weight.new_zeros(()) if grad_total is None else grad_total * beta
            if grad is None:
                grad_logits = torch.empty_like(weight).copy_(charge)
            else:
                grad_logits = torch.addcmul(charge, weight, grad, value=beta * scale)
            # Where `kept` is 0, the gate and this product are 0 too.
            torch.ops.aten.sigmoid_backward.grad_input(grad_logits, gate, grad_input=grad_logits)
        if need_weight and grad is not None:
            grad_weight = _multiply_in_place(gate, grad, scale)
        return grad_weight, grad_logits, None, None, None


def _compute_gate(logits: Tensor, kept: Tensor | None, beta: float) -> Tensor:
    gate = (logits * beta).sigmoid_()
    return gate if kept is None else gate.mul_(kept)


def _multiply_in_place(gate: Tensor, other: Tensor, scale: float) -> Tensor:
    """Overwrite `gate` with gate * other * scale, in one pass over memory, and return it."""
    return torch.addcmul(gate.new_zeros(()), gate, other, value=scale, out=gate)


def _differentiable_gradients(
    ctx: Any, grad: Tensor | None, grad_total: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of weight and logits; they can be differentiated again (create_graph=True)."""
    weight, logits, kept, beta, scale = ctx.inputs
    gate = torch.sigmoid(logits * beta)
    passes = 1 if kept is None else kept
    of_gate = torch.zeros_like(gate)
    if grad is not None:
        of_gate = of_gate + grad * weight * scale
    if grad_total is not None:
        of_gate = of_gate + grad_total
    of_weight = None if grad is None else grad * gate * scale * passes
    return of_weight, beta * gate * (1 - gate) * of_gate * passes
