"""Sparse training leaves the modes of the model's modules as they are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import ticketry as tk


def _distributed(model: nn.Module) -> nn.Module:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return nn.parallel.DistributedDataParallel(model)


@pytest.fixture(autouse=True)
def _end_process_group() -> Iterator[None]:
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda model: model,
    "data parallel": nn.DataParallel,
    "distributed": _distributed,
    "nested": nn.Sequential,
}


def _network() -> tuple[nn.Sequential, tk.Mask, Tensor]:
    torch.manual_seed(0)
    first = (nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.5))
    last = (nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, 4))
    model = nn.Sequential(*first, *last)
    return model, tk.prune(model, 0.3, distribution="layerwise"), torch.randn(8, 3, 8, 8) + 1


def _modes(model: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in model.named_modules()}


@pytest.mark.parametrize(("wrapper", "outer"), [*((name, True) for name in WRAPPERS), ("plain", False)])
def test_frozen_norms_stay_frozen(wrapper: str, outer: bool) -> None:
    """The first norm and the dropout differ from the outer module in mode, as of a fine-tuned network."""
    model, mask, x = _network()
    wrapped = WRAPPERS[wrapper](model)
    wrapped.train(outer)
    for module in (model[1], model[3]):
        module.train(not outer)
    if not outer:
        model[3].p = 0.0  # active, and yet the same in both
    mask.apply_(model)
    twin, modes = copy.deepcopy(model), _modes(wrapped)
    names = mask if wrapper != "nested" else tk.Mask({f"0.{name}": kept for name, kept in mask.items()})

    fast = tk.sparse_training(wrapped, names, x)
    assert _modes(wrapped) == modes
    assert fast.training is outer
    made, expected = fast(x), twin(x)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
    made.square().mean().backward()
    expected.square().mean().backward()
    assert _modes(wrapped) == modes
    for name, buffer in twin.named_buffers():
        torch.testing.assert_close(model.get_buffer(name), buffer, rtol=1e-4, atol=1e-5)
    for name, parameter in twin.named_parameters():
        kept = mask.get(name, torch.ones_like(parameter))
        torch.testing.assert_close(model.get_parameter(name).grad, parameter.grad * kept, rtol=1e-3, atol=1e-4)
    seen = int(model[1].num_batches_tracked), int(model[5].num_batches_tracked)
    assert seen == ((0, 1) if outer else (1, 0))
    for mode in (False, True):  # as of any module, they set every module of the model
        fast.train(mode)
        assert set(_modes(wrapped).values()) == {mode}
        assert fast.training is mode
