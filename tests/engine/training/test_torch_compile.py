"""`torch.compile` around sparse training, or around a model that trains in it: kernels run as without it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk
from ticketry.core.mask import Mask
from ticketry_engine.training.region_step import RegionStep


@pytest.fixture(autouse=True)
def _no_graphs_of_other_tests() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Counted:
    """Counts the regions that run in kernels."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.regions = 0
        call = RegionStep.__call__

        def counting(step: RegionStep, inputs: list[Tensor]) -> tuple[Tensor, ...]:
            self.regions += 1
            return call(step, inputs)

        monkeypatch.setattr(RegionStep, "__call__", counting)


def network() -> tuple[nn.Module, Mask, Tensor]:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(8 * 6 * 6, 10)).train()
    mask = tk.prune(model, density=0.2, distribution="layerwise")
    return model, mask, torch.randn(16, 3, 8, 8)


def gradients(model: nn.Module, call: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """Of all parameters, by the sum of squares of what a call gives."""
    model.zero_grad()
    call(x).square().sum().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def test_kernels_run_under_torch_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    model, mask, x = network()
    twin = copy.deepcopy(model).double()
    mask.apply_(twin)
    counted = Counted(monkeypatch)
    before = torch.compile(model, backend="eager")
    before(x)  # compiled densely: that graph must not run in the place of kernels
    with tk.hold(twin, mask):
        expected = gradients(twin, twin, x.double())
    fast = tk.sparse_training(model, mask, x)
    assert counted.regions == 0

    def inside(x: Tensor) -> Tensor:
        with fast.running():
            return before(x)  # type: ignore[no-any-return]

    @torch.compile(backend="eager")
    def whole(x: Tensor) -> Tensor:
        return fast(x) * 1.0  # type: ignore[no-any-return]

    for number, call in enumerate((torch.compile(fast, backend="eager"), inside, whole), start=1):
        found = gradients(model, call, x)
        assert counted.regions == number
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert float((one - other).norm() / other.norm()) <= 1e-4
    before(x)
    assert counted.regions == 3, "outside of running(), the model is its own"


def test_a_compiled_model_trains_in_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    model, mask, x = network()
    fast = tk.sparse_training(copy.deepcopy(model), mask, x)
    expected = gradients(fast, fast, x)
    compiled = torch.compile(model, backend="eager")
    assert isinstance(compiled, nn.Module)
    counted = Counted(monkeypatch)
    found = gradients(compiled, tk.sparse_training(compiled, mask, x), x)
    assert counted.regions == 1
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_one_graph_is_asked_for_in_vain() -> None:
    model, mask, x = network()
    fast = tk.sparse_training(model, mask, x)
    with pytest.raises(Exception, match="sparse training runs kernels of its own"):
        torch.compile(fast, backend="eager", fullgraph=True)(x)
