"""What a module of sparse training keeps beside the model: no second copy of weights, masks or tables."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

import ticketry as tk
from ticketry_engine.training.sparse_training import SparseTraining

SHAPE = (301, 417)  # of nothing else in this process


def _tensors() -> list[torch.Tensor]:
    gc.collect()
    return [one for one in gc.get_objects() if _is_one(one)]


def _is_one(thing: object) -> bool:
    return type(thing) in (torch.Tensor, nn.Parameter) and tuple(thing.shape) == SHAPE and thing.is_floating_point()


Made = tuple[nn.Module, SparseTraining, torch.Tensor]


@pytest.fixture
def made() -> Iterator[Made]:
    model = nn.Sequential(nn.Linear(SHAPE[1], SHAPE[0]), nn.ReLU(), nn.Linear(SHAPE[0], 900))
    x = torch.randn(32, SHAPE[1])
    fast = tk.sparse_training(model, tk.prune(model, density=0.1, distribution="uniform"), x)
    yield model, fast, x
    fast.release()


def test_the_weights_their_gradients_and_the_optimiser_s_state_are_all_that_stays(made: Made) -> None:
    model, fast, x = made
    assert [id(one) for one in _tensors()] == [id(model[0].weight)]
    assert fast.layers()[0].where == "engine"
    optimizer = torch.optim.SGD(fast.parameters(), lr=0.01, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        fast(x).square().mean().backward()
        optimizer.step()
    momentum = optimizer.state[model[0].weight]["momentum_buffer"]
    expected = {one.data_ptr() for one in (model[0].weight, model[0].weight.grad, momentum)}
    assert {one.data_ptr() for one in _tensors()} == expected, "a mask in the type of the weights is not needed"
    removed = ~fast.mask["0.weight"]
    assert not model[0].weight[removed].any()
    assert not momentum[removed].any()
    (plan,) = [plan for unit in fast._units for step in unit.steps for plan in step._plans.values()]
    tables = [arg for op in plan.program.ops for arg in op.args if isinstance(arg, np.ndarray) and arg.nbytes > 1000]
    assert tables
    assert all(not table.flags.owndata for table in tables), "views of the program's one memory"
    assert not plan.ops
    assert not plan.packed


def test_gradients_that_no_kernel_made_are_masked_all_the_same(made: Made) -> None:
    model, fast, x = made
    model(x).square().mean().backward()  # in torch
    assert model[0].weight.grad.count_nonzero() > 0
    assert not model[0].weight.grad[~fast.mask["0.weight"]].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_that_changes_its_type_while_it_is_held(dtype: torch.dtype) -> None:
    model = nn.Linear(40, 30)
    mask = tk.prune(model, density=0.3)
    with tk.hold(model, mask):
        model(torch.randn(4, 40)).sum().backward()
        model.zero_grad()
        model.to(dtype)
        model(torch.randn(4, 40, dtype=dtype)).sum().backward()
        assert model.weight.grad is not None
        assert model.weight.grad.dtype == dtype
        assert not model.weight.grad[~mask["weight"]].any()


def test_spectral_norms_do_no_step_where_no_training_is() -> None:
    """They change when a weight is read in training mode."""
    spectral = torch.nn.utils.parametrizations.spectral_norm
    model = nn.Sequential(spectral(nn.Conv2d(3, 8, 3)), nn.ReLU(), spectral(nn.Conv2d(8, 1, 3)))
    mask = tk.prune(model, density=0.4)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    fast = tk.sparse_training(model, mask, torch.randn(4, 3, 8, 8))
    fast.update(tk.prune(model, density=0.3))
    assert model.training
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
