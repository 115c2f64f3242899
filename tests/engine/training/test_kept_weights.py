"""Packed weights as parameters: the same trainings as with dense ones, bit for bit, whatever is loaded or replaced."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ticketry as tk
from samples import sample
from ticketry.core.mask import Mask
from ticketry.errors import EngineError
from ticketry_engine.training.sparse_training import SparseTraining


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(20, 3, 9, 9, generator=generator), torch.randint(0, 10, (20,), generator=generator)


def network() -> nn.Module:
    """With a layer that runs in torch under a mask of random weights: a linear layer with two fifths of its weights."""
    torch.manual_seed(3)
    return nn.Sequential(
        *(nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
        *(nn.Conv2d(12, 20, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(1)),
        *(nn.Tanhshrink(), nn.Linear(500, 10)),
    ).train()


def mask_of(model: nn.Module, density: float = 0.2, seed: int = 0) -> Mask:
    whole = tk.prune(model, density=density, score="random", seed=seed)
    linear = tk.prune(model, density=0.4, score="random", seed=seed)
    return Mask({name: linear[name] if name.startswith("7") else one for name, one in whole.items()})


OPTIMIZERS: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-3),
    "fused sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, fused=True),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
}


def trained(fast: SparseTraining, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for step in range(steps):
        x, y = data(step)
        optimizer.zero_grad()
        F.cross_entropy(fast(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize("which", sample(OPTIMIZERS, 2))
def test_trainings_are_the_same(which: str) -> None:
    """Packed, packed and written late, and dense; with a mask that moves, and a batch of another size."""
    models = []
    for how in ("packed", "late", "dense"):
        model = network()
        fast = tk.sparse_training(model, mask_of(model), data()[0])
        optimizer = OPTIMIZERS[which](list(fast.parameters()) if how == "dense" else fast.kept_parameters())
        with fast.writing_late() if how == "late" else contextlib.nullcontext():
            trained(fast, optimizer)
            fast.update(mask_of(model, 0.3, seed=5))
            trained(fast, optimizer, 2)
            F.cross_entropy(fast(torch.cat([data(7)[0], data(8)[0]])), torch.cat([data(7)[1], data(8)[1]])).backward()
            optimizer.step()
        models.append(model)
        assert [layer.where for layer in fast.layers()] == ["engine", "engine", "torch"]
    for one, other in ((models[0], models[1]), (models[0], models[2])):
        for (name, mine), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
            if which == "fused sgd" and other is models[2]:  # torch rounds the last few numbers of a tensor otherwise
                torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4, msg=name)
            else:
                assert torch.equal(mine, theirs), name


def test_sizes_are_those_of_what_is_kept() -> None:
    model = network()
    mask = mask_of(model)
    fast = tk.sparse_training(model, mask, data()[0])
    optimizer = OPTIMIZERS["adam"](fast.kept_parameters())
    trained(fast, optimizer)
    for name, parameter in fast.named_kept_parameters():
        dense = model.get_parameter(name)
        assert parameter.grad is not None
        if name in mask:
            assert parameter.shape == parameter.grad.shape == (int(mask[name].sum()),)
            assert optimizer.state[parameter]["exp_avg_sq"].shape == parameter.shape
            assert dense.grad is None
            assert torch.equal(dense[mask[name]], parameter)
            assert not dense[~mask[name]].any()
        else:
            assert parameter is dense


def test_gradients_are_those_of_dense_weights() -> None:
    """And are added up over calls."""
    model = network()
    twin, mask = copy.deepcopy(model).double(), mask_of(model)
    mask.apply_(twin)
    fast = tk.sparse_training(model, mask, data()[0])
    fast.kept_parameters()
    for seed in range(2):
        x, y = data(seed)
        F.cross_entropy(fast(x), y).backward()
        F.cross_entropy(twin(x.double()), y).backward()
    for name, parameter in fast.named_kept_parameters():
        truth = twin.get_parameter(name).grad
        assert truth is not None
        assert parameter.grad is not None
        wanted = truth[mask[name]] if name in mask else truth
        assert float((parameter.grad - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max()), name


def test_weights_that_lie_otherwise() -> None:
    """In channels_last a tensor's memory is in another order."""
    models = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model = network().to(memory_format=layout)
        fast = tk.sparse_training(model, mask_of(model), data()[0])
        trained(fast, OPTIMIZERS["sgd"](fast.kept_parameters()))
        models.append(model)
    for mine, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def tied() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1)).train()
    model[2].weight = model[0].weight
    return model


def test_a_weight_that_two_layers_have() -> None:
    model = tied()
    twin = copy.deepcopy(model)
    mask = tk.prune(model, density=0.3, score="random")
    x = torch.randn(20, 3, 8, 8)
    fast, plain = tk.sparse_training(model, mask, x), tk.sparse_training(twin, mask, x)
    rows = dict(fast.named_kept_parameters())
    assert [name for name in rows if name.endswith("weight")] == ["0.weight"]
    for each in (fast, plain):
        each(x).square().mean().backward()
    gradient = twin[0].weight.grad
    assert gradient is not None
    torch.testing.assert_close(rows["0.weight"].grad, gradient[mask["0.weight"]])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_tensors_that_are_written_late(layout: torch.memory_format) -> None:
    """They wait while steps go on, and whoever is to see them does."""
    model = network().to(memory_format=layout)
    mask = mask_of(model)
    x, _ = data()
    fast = tk.sparse_training(model, mask, x)
    rows = dict(fast.named_kept_parameters())
    optimizer = OPTIMIZERS["fused sgd"](list(rows.values()))
    name = "3.weight"

    def current() -> bool:
        return torch.equal(model.get_parameter(name)[mask[name]], rows[name])

    with fast.writing_late():
        with fast.writing_late():
            trained(fast, optimizer, 2)
        assert not current()
        for look in (model.state_dict, fast.state_dict):
            assert torch.equal(look()[name][mask[name]], rows[name])
            assert current()
            trained(fast, optimizer, 1)
            assert not current()
        evaluated = fast.eval()(x)
        assert current()
        torch.testing.assert_close(evaluated, model(x))
        fast.train()
        trained(fast, optimizer, 1)
        stored = {key: 2 * value for key, value in model.state_dict().items()}
        trained(fast, optimizer, 1)
        model.load_state_dict(stored)
        fast(x)
        assert torch.equal(rows[name], stored[name][mask[name]])
        trained(fast, optimizer, 1)
        assert not current()
    assert current()
    assert not model.get_parameter(name)[~mask[name]].any()
    trained(fast, optimizer, 1)
    assert current()
    rows["7.weight"].data.mul_(2)  # by hand
    fast.eval()(x)
    assert torch.equal(model.get_parameter("7.weight")[mask["7.weight"]], rows["7.weight"])
    fast.release()
    assert not model._state_dict_pre_hooks


def test_a_tied_weight_is_written_where_torch_reads_it() -> None:
    """An embedding before the kernels and a product by hand behind them read the tensor of a layer's row."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.encoder, self.decoder = nn.Embedding(40, 32), nn.Linear(32, 40, bias=False)
            self.decoder.weight = self.encoder.weight

        def forward(self, tokens: Tensor) -> Tensor:
            scores: Tensor = self.decoder(self.encoder(tokens))
            return scores + F.linear(self.encoder(tokens), self.decoder.weight).tanh()

    models = []
    for late in (True, False):
        model = Tied().train()
        mask = tk.prune(model, density=0.2, score="random")
        tokens = torch.arange(64).view(4, 16) % 40
        fast = tk.sparse_training(model, mask, tokens)
        optimizer = torch.optim.SGD(fast.kept_parameters(), lr=0.5, momentum=0.9)
        with fast.writing_late() if late else contextlib.nullcontext():
            for _ in range(4):
                optimizer.zero_grad()
                F.cross_entropy(fast(tokens).flatten(0, 1), tokens.flatten()).backward()
                optimizer.step()
        assert [layer.where for layer in fast.layers() if layer.name == "decoder"] == ["engine"]
        models.append(model)
    assert torch.equal(models[0].decoder.weight, models[1].decoder.weight)


def test_after_release_gradients_are_the_models_own() -> None:
    model = network()
    x, y = data()
    fast = tk.sparse_training(model, mask_of(model), x)
    optimizer = OPTIMIZERS["sgd"](fast.kept_parameters())
    trained(fast, optimizer, 1)
    fast.release()
    F.cross_entropy(model(x), y).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    weights = copy.deepcopy(model.state_dict())
    optimizer.step()
    assert torch.equal(model.get_parameter("3.weight"), weights["3.weight"])


def test_without_a_mask_there_are_none() -> None:
    fast = tk.sparse_training(network(), None, data()[0])
    with pytest.raises(EngineError, match=r"without a mask all weights are retained: train parameters\(\) instead"):
        fast.kept_parameters()
    with pytest.raises(EngineError, match="without a mask"), fast.writing_late():
        pass


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
    fast = tk.sparse_training(model, mask_of(model), data()[0])
    trained(fast, torch.optim.SGD(fast.kept_parameters(), lr=0.1), 1)
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
