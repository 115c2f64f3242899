"""Tensors of a graph are traced back to the parameters that masks are of, whatever form passes bring them into."""

from __future__ import annotations

from math import prod

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk
from ticketry_engine.capture import capture
from ticketry_engine.ir.graph import layer_name, tensor_origins

weight_norm = torch.nn.utils.parametrizations.weight_norm
spectral_norm = torch.nn.utils.parametrizations.spectral_norm


class Twice(nn.Module):
    """One convolution whose norm is folded into it at each of two calls."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) - self.body(2 * x)


class Tied(nn.Module):
    """A weight that another layer has turned."""

    def __init__(self) -> None:
        super().__init__()
        self.code = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(torch.tanh(self.code(x)), self.code.weight.t())


CASES = {
    "over one axis": (nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Conv1d(8, 4, 1)), (3, 8)),
    "weight norm": (nn.Sequential(weight_norm(nn.Conv2d(3, 8, 3)), nn.ReLU(), weight_norm(nn.Linear(6, 6))), (3, 8, 8)),
    "tied": (Tied(), (8,)),
    "twice": (Twice(), (3, 8, 8)),
}


@pytest.mark.parametrize("name", CASES)
def test_every_weight_is_found_and_masks_say_that_it_is_the_right_one(name: str) -> None:
    """A mask that keeps one weight of each row of a layer leaves as many in the tensors that are made of it alone."""
    model, shape = CASES[name]
    model.eval()
    x = torch.randn(2, *shape)
    scope = tk.scope(model)
    of = tensor_origins(capture(model, None, x), scope.shapes)
    assert set(of.values()) == set(scope.shapes)
    for parameter in scope.shapes:
        kept = {one: torch.ones(size, dtype=torch.bool) for one, size in scope.shapes.items()}
        kept[parameter].flatten(1)[:, 1:] = False
        graph = capture(model, tk.Mask(kept), x)
        for tensor, origin in of.items():
            shape = scope.shapes[origin]
            kept_there = graph.tensors[tensor].count_nonzero() if graph.tensors[tensor].numel() == prod(shape) else -1
            assert bool(kept_there == shape[0]) == (origin == parameter), tensor


def test_layers_are_called_as_their_modules() -> None:
    told = ["0.weight", "0.weight.2d", "a.parametrizations.weight.original1.computed", "a.in_proj_weight", "b.weight.1"]
    assert [layer_name(name) for name in told] == ["0", "0", "a", "a.in_proj_weight", "b.weight.1"]
