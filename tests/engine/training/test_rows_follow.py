"""Rows and the model's tensors are one: whatever is loaded, replaced or written, and whoever sees gradients."""

from __future__ import annotations

import contextlib
import copy
import io

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ticketry as tk
from engine.training.test_kept_weights import data, mask_of, network
from ticketry.errors import EngineError
from ticketry_engine.training.sparse_training import SparseTraining


def trained(fast: SparseTraining, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        x, y = data(step)
        optimizer.zero_grad()
        F.cross_entropy(fast(x), y).backward()
        optimizer.step()


def loaded(model: nn.Module, state: dict[str, Tensor], how: str) -> None:
    """Another state in the model, whose tensors are others then."""
    own = {name: value.clone() for name, value in state.items()}
    if how == "assign":
        model.load_state_dict(own, assign=True)
    elif how == "swap":
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            model.load_state_dict(own)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)
    else:
        for place in ("0", "3", "7"):
            layer = model.get_submodule(place)
            if how == "layers":
                layer = copy.deepcopy(layer)
                setattr(model, place, layer)
            layer.weight = nn.Parameter(own[f"{place}.weight"])


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("how", ["assign", "swap", "parameters", "layers"])
def test_tensors_that_take_the_place_of_others_are_trained(how: str, kept: bool) -> None:
    """As in torch from what was loaded; an optimiser that was made before goes on with rows."""
    model, other = network(), network()
    mask = mask_of(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.7)
    mask.apply_(other)  # a swap tells nobody: what the mask prunes is masked at the next step alone
    fast = tk.sparse_training(model, mask, data()[0])
    optimizer = torch.optim.SGD(fast.kept_parameters() if kept else list(fast.parameters()), lr=0.1)
    fast(data()[0])
    loaded(model, other.state_dict(), how)
    if not kept or how in ("assign", "layers"):  # biases, and dense weights, are others for it
        optimizer = torch.optim.SGD(fast.kept_parameters() if kept else list(fast.parameters()), lr=0.1)
    truth = copy.deepcopy(model)
    trained(fast, optimizer, 3)
    optimizer = torch.optim.SGD(truth.parameters(), lr=0.1)
    with tk.hold(truth, mask):
        for step in range(3):
            x, y = data(step)
            optimizer.zero_grad()
            F.cross_entropy(truth(x), y).backward()
            optimizer.step()
    for (name, mine), theirs in zip(model.state_dict().items(), truth.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5, msg=name)
    assert not torch.equal(model.get_parameter("3.weight"), other.get_parameter("3.weight"))


def test_what_rows_cannot_be_of_is_told() -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1)).train()
        model[2].weight = model[0].weight
        return model

    def untie(model: nn.Module) -> None:
        model.load_state_dict(model.state_dict(), assign=True)

    def widen(model: nn.Module) -> None:
        model.get_submodule("0").weight = nn.Parameter(torch.zeros(5, 3, 3, 3))

    def wait(model: nn.Module) -> None:
        model.get_parameter("0.weight").register_post_accumulate_grad_hook(lambda _: None)

    for change, told in (
        (untie, "tied are so no more"),
        (widen, r"0 has no weight of \(3, 3, 3, 3\)"),
        (lambda model: model.half(), "in float32 on the CPU any more"),
        (wait, "a hook waits until the weight of 0 has its gradient"),
    ):
        model, x = tied(), torch.randn(20, 3, 8, 8)
        fast = tk.sparse_training(model, tk.prune(model, density=0.3, score="random"), x)
        fast.kept_parameters()
        change(model)
        with pytest.raises(EngineError, match=told):
            fast(x)
        with pytest.raises(EngineError, match=told):
            fast.release()
        assert not model._state_dict_pre_hooks


@pytest.mark.parametrize("late", [True, False])
def test_rows_that_are_written_through_data(late: bool) -> None:
    """Averages that are swapped in for an evaluation, and steps by hand: torch's versions tell nothing of them."""
    model = network()
    mask, (x, y) = mask_of(model), data()
    fast = tk.sparse_training(model, mask, x)
    rows = fast.kept_parameters()
    averages = [parameter.detach().clone() for parameter in rows]
    wanted = copy.deepcopy(model).eval()(x)
    with fast.writing_late() if late else contextlib.nullcontext():
        for _ in range(3):
            for parameter in rows:
                parameter.grad = None
            F.cross_entropy(fast(x), y).backward()
            for parameter in rows:
                assert parameter.grad is not None
                parameter.data.sub_(0.1 * parameter.grad)
        state = copy.deepcopy(model.state_dict())
        for name, row in fast.named_kept_parameters():
            assert torch.equal(state[name][mask[name]] if name in mask else state[name], row), name
        assert not torch.equal(state["3.weight"], copy.deepcopy(network()).get_parameter("3.weight"))
        evaluated = fast.eval()(x)
        for row, average in zip(rows, averages, strict=True):
            row.data.copy_(average)
        for buffer, before in zip(model.buffers(), network().buffers(), strict=True):
            buffer.copy_(before)
        found = fast(x)
        torch.testing.assert_close(found, wanted)
        assert not torch.allclose(evaluated, wanted)
        rows[0].data.add_(1)
    fast.release()
    assert torch.equal(model.get_parameter("0.weight")[mask["0.weight"]], averages[0] + 1)


def test_tensors_whose_memory_is_another_are_read() -> None:
    """As `vector_to_parameters` leaves them, which sets ``.data``."""
    model = network()
    mask = mask_of(model)
    fast = tk.sparse_training(model, mask, data()[0])
    optimizer = torch.optim.SGD(fast.kept_parameters(), lr=0.1, momentum=0.9)
    for _ in range(3):
        trained(fast, optimizer, 1)
        vector = nn.utils.parameters_to_vector(model.parameters()).clamp(-0.05, 0.05)
        nn.utils.vector_to_parameters(vector, model.parameters())
        fast(data()[0])
        assert all(float(row.detach().abs().max()) <= 0.0501 for row in fast.kept_parameters())


def test_a_state_that_is_loaded_before_a_step_is_what_it_changes() -> None:
    model = network()
    mask, (x, y) = mask_of(model), data()
    fast = tk.sparse_training(model, mask, x)
    rows = dict(fast.named_kept_parameters())
    with torch.no_grad():
        rows["3.weight"].mul_(2)
    F.cross_entropy(fast(x), y).backward()
    stored = {name: 0.5 * value for name, value in model.state_dict().items()}
    model.load_state_dict(stored)
    torch.optim.SGD(fast.kept_parameters(), lr=0.1).step()
    gradient = rows["3.weight"].grad
    assert gradient is not None
    torch.testing.assert_close(rows["3.weight"], stored["3.weight"][mask["3.weight"]] - 0.1 * gradient)
    assert torch.equal(model.get_parameter("3.weight")[mask["3.weight"]], rows["3.weight"])


@pytest.mark.parametrize("on_rows", [True, False])
def test_hooks_on_gradients(on_rows: bool) -> None:
    """In kernels and in torch, on the model's tensors and on rows."""
    gradients = []
    for hooked in (True, False):
        model = network()
        fast = tk.sparse_training(model, mask_of(model), data()[0])
        rows, waited = dict(fast.named_kept_parameters()), list[str]()
        for name in ("3.weight", "7.weight") if hooked else ():
            parameter = rows[name] if on_rows else model.get_parameter(name)
            parameter.register_hook(lambda gradient: 3 * gradient)
            if on_rows:
                parameter.register_post_accumulate_grad_hook(lambda _, name=name, waited=waited: waited.append(name))
        for seed in range(2):
            F.cross_entropy(fast(data(seed)[0]), data(seed)[1]).backward()
        assert sorted(waited) == (["3.weight", "3.weight", "7.weight", "7.weight"] if hooked and on_rows else [])
        assert all(model.get_parameter(name).grad is None for name in ("0.weight", "3.weight", "7.weight"))
        gradients.append({name: row.grad for name, row in rows.items()})
    for name, mine in gradients[0].items():
        times = 3 if name in ("3.weight", "7.weight") else 1
        torch.testing.assert_close(mine, times * gradients[1][name])


def test_frozen_weights_and_copies_of_the_model() -> None:
    model = network()
    model.get_parameter("3.weight").requires_grad_(False)
    fast = tk.sparse_training(model, mask_of(model), data()[0])
    before = model.get_parameter("3.weight").clone()
    trained(fast, torch.optim.SGD(fast.kept_parameters(), lr=0.1, momentum=0.9), 2)
    assert torch.equal(model.get_parameter("3.weight"), before)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(model), torch.load(buffer, weights_only=False)):
        with torch.no_grad():
            twin.get_parameter("0.weight").zero_()
        assert not twin.state_dict()["0.weight"].any()
        twin.load_state_dict(model.state_dict())
        assert torch.equal(twin.get_parameter("0.weight"), model.get_parameter("0.weight"))
