"""Small networks of many families, every layer that can be in the GPU's kernels: equal to the masked model."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map

from engine.families import FAMILIES, attention_by_formulas, shake
from engine.test_families import call, doubled, other_batch, tensors
from group_wise import grouped

pytest.importorskip("triton", reason="Triton is not installed: pip install 'ticketry[gpu]'")

from ticketry.core.mask import Mask
from ticketry.core.scope import scope
from ticketry_engine.gpu import compile_gpu

pytestmark = pytest.mark.slow


def group_mask(model: nn.Module) -> Mask:
    """Every weight in groups of 16 rows, anywhere, that keep a third of their columns."""
    shapes = scope(model).shapes.items()
    return Mask(
        {
            name: grouped(shape[0], torch.Size(shape[1:]).numel(), 16, 0.3, seed).view(shape) != 0
            for seed, (name, shape) in enumerate(shapes)
        }
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family(device: torch.device, name: str) -> None:
    torch.manual_seed(0)
    model, example = FAMILIES[name]()
    model = shake(model.eval())
    mask = group_mask(model)
    fast = compile_gpu(model, mask, example, precision="tf32", device=device, force=True)
    mask.apply_(model)
    inputs = other_batch(example, 3)
    with attention_by_formulas():
        wanted = tensors(call(model.double(), doubled(inputs)))
    found = tensors(call(fast, tree_map(lambda leaf: leaf.to(device), inputs)))
    assert "engine" in {layer.where for layer in fast.layers()}
    bound = 2e-2 if device.type == "cuda" else 1e-4
    assert len(found) == len(wanted) > 0
    for made, right in zip(found, wanted, strict=True):
        assert made.shape == right.shape
        assert float((made.cpu().double() - right).abs().max()) <= bound * max(float(right.abs().max()), 1e-30)
