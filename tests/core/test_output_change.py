"""Change of the outputs without single weights, against models without them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ticketry as tk
from ticketry.budgets.request import score_finder
from ticketry.core.output_change import output_change
from ticketry.core.score import ScoreInputs
from ticketry.errors import UsageError


def removed(model: nn.Module, x: torch.Tensor, name: str, index: tuple[int, ...]) -> float:
    """Return the change of the outputs when a weight is set to 0, as a share of their energy."""
    with torch.no_grad():
        whole, weight = model(x), model.get_parameter(name)
        kept = weight[index].clone()
        weight[index] = 0
        thinner = model(x)
        weight[index] = kept
    return float((whole - thinner).square().sum() / whole.square().sum())


def random_places(shape: torch.Size, count: int) -> list[tuple[int, ...]]:
    drawn = torch.Generator().manual_seed(1)
    return [tuple(int(torch.randint(size, (), generator=drawn)) for size in shape) for _ in range(count)]


@pytest.mark.parametrize("kind", ["linear", "groups", "strided", "twice"])
def test_output_change_is_that_without_a_weight(kind: str) -> None:
    """The estimate is exact up to sampling if the model is linear and its inputs are uncorrelated."""
    torch.manual_seed(0)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = nn.Linear(6, 6, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.shared(x[:, :6]), self.shared(x[:, 6:])], 1)

    model: nn.Module = {
        "linear": lambda: nn.Sequential(nn.Linear(6, 5, bias=False), nn.Linear(5, 8, bias=False)),
        "groups": lambda: nn.Sequential(nn.Conv2d(4, 6, 3, groups=2, bias=False), nn.Conv2d(6, 4, 1, bias=False)),
        "strided": lambda: nn.Sequential(nn.Conv2d(3, 4, 2, stride=2, bias=False), nn.Flatten(), nn.Linear(16, 5)),
        "twice": Twice,
    }[kind]().double()
    shapes = {"linear": (6,), "groups": (4, 8, 8), "strided": (3, 4, 4), "twice": (12,)}
    x = torch.randn(8000 if kind in ("linear", "twice") else 1500, *shapes[kind]).double()
    scale = torch.linspace(0.3, 2, x.shape[1]).view(-1, *[1] * (x.dim() - 2))
    x = x * scale if kind != "twice" else x
    change = output_change(model, tk.scope(model), x)
    for name, found in change.items():
        assert found.shape == model.get_parameter(name).shape
        if name == "1.weight" or (kind == "strided" and name == "2.weight"):
            continue  # their inputs are correlated
        for place in random_places(found.shape, 12):
            assert float(found[place]) == pytest.approx(removed(model, x, name, place), rel=0.15)


def test_layers_with_more_effect_have_a_larger_change() -> None:
    torch.manual_seed(0)

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.much, self.little = nn.Linear(20, 20, bias=False), nn.Linear(20, 20, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.much(input=x) + 0.1 * self.little(x)

    model = Branches()
    change = output_change(model, tk.scope(model), torch.randn(200, 20))
    assert float(change["much.weight"].sum() / change["little.weight"].sum()) == pytest.approx(100, rel=0.2)


def test_all_outputs_have_equal_weight() -> None:
    torch.manual_seed(0)

    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(8, 30, bias=False), nn.Linear(8, 30, bias=False)

        def forward(self, x: torch.Tensor) -> dict[str, object]:
            return {"one": self.one(x), "other": (1e6 * self.other(x), x.argmax(1))}

    model = Heads()
    change = output_change(model, tk.scope(model), torch.randn(300, 8))
    assert float(change["one.weight"].sum() / change["other.weight"].sum()) == pytest.approx(1, rel=0.2)


def test_the_model_is_not_changed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(), nn.ReLU(inplace=True), nn.Flatten())
    model.append(nn.Linear(24, 3)).train()
    model[1].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, state = torch.randn(2, 3, 4, 4), torch.random.get_rng_state()
    with torch.inference_mode():
        once = output_change(model, tk.scope(model), x.clone())
    again = output_change(model, tk.scope(model), x)
    assert all(torch.equal(once[name], value) for name, value in again.items())
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert {name for name, value in model.named_parameters() if not value.requires_grad} == {"1.weight"}
    assert all(value.grad is None for value in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_inputs_of_zeros_and_single_examples() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten(1), nn.Linear(24, 3))
    blind = output_change(model, tk.scope(model), torch.zeros(2, 4, 4, 4))
    assert float(blind["0.weight"].min()) > 0
    alone = output_change(nn.Sequential(*model[:1]), tk.scope(model[:1]), torch.randn(4, 4, 4))
    assert alone["0.weight"].shape == (6, 4, 3, 3)


class Recurrent(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.inner, self.last = getattr(nn, kind)(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.inner(x)[0])


class Looked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.last = nn.Embedding(6, 5), nn.LayerNorm(5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.norm(self.table(x))))


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.last = nn.Parameter(torch.randn(2, 5, 3)), nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(torch.einsum("bi,eoi->bo", x, self.up)))


def computed() -> nn.Module:
    model = nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2))
    model(torch.randn(2, 3))
    return model.eval()


STEPS, ROWS = torch.randn(3, 4, 3), torch.randn(5, 3)
OTHERS = {
    "LSTM": (lambda: Recurrent("LSTM"), STEPS, {}),
    "GRU": (lambda: Recurrent("GRU"), STEPS, {}),
    "embedding and norm": (Looked, torch.randint(0, 6, (4, 3)), {"embeddings": True, "norms": True, "biases": True}),
    "experts": (Experts, ROWS, {"include": ["up"]}),
    "computed": (computed, ROWS, {}),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_weights_use_their_own_gradients(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the Jacobian of all outputs, whose sum of squares random projections estimate."""
    monkeypatch.setattr("ticketry.core.output_change._DRAWS", 500)
    torch.manual_seed(0)
    make, x, choice = OTHERS[kind]
    model = make()
    change = output_change(model, tk.scope(model, **choice), x)
    outputs = model(x)
    rows = [torch.autograd.grad(one, list(model.parameters()), retain_graph=True, allow_unused=True)
            for one in outputs.flatten()]  # fmt: skip
    for number, (name, parameter) in enumerate(model.named_parameters()):
        if name not in change or name == "last.weight" or (kind == "computed" and name == "2.weight"):
            continue  # products assume uncorrelated inputs and gradients
        squared = sum(row[number].double().square() for row in rows if row[number] is not None)
        expected = squared * parameter.detach().double().square() / outputs.detach().double().square().sum()
        torch.testing.assert_close(change[name], expected, rtol=0.35, atol=1e-12)
    assert all(value.requires_grad for value in model.parameters())
    assert list(change) == list(tk.scope(model, **choice))


@pytest.mark.parametrize("kind", OTHERS)
def test_every_budget_has_a_default_importance(kind: str) -> None:
    torch.manual_seed(0)
    make, x, choice = OTHERS[kind]
    model = make()
    scope = tk.scope(model, **choice)
    batches = ScoreInputs([x], lambda model, batch: model(batch).square().mean())
    for inputs in (ScoreInputs(), batches):
        scores = score_finder(None, model, scope, None, inputs, "weights", x)()
        assert {name: tuple(values.shape) for name, values in scores.items()} == dict(scope.shapes)
        assert all(bool(values.any()) for name, values in scores.items() if "bias" not in name)


def test_a_linear_layer_of_transformers_counts_as_one() -> None:
    class Conv1D(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.nf, self.weight = outputs, nn.Parameter(torch.randn(inputs, outputs))
            self.bias = nn.Parameter(torch.zeros(outputs))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], self.nf)

    torch.manual_seed(0)
    model, x = nn.Sequential(Conv1D(6, 5), nn.Tanh(), Conv1D(5, 4)), torch.randn(7, 3, 6)
    plain = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4))
    for number in (0, 2):
        plain[number].load_state_dict({"weight": model[number].weight.t(), "bias": model[number].bias})
    found, expected = (output_change(each, tk.scope(each), x) for each in (model, plain))
    for name, values in found.items():
        torch.testing.assert_close(values, expected[name].t())
    assert 0 < tk.prune(model, flops=0.6, example_inputs=x).density <= 0.6
    assert tk.prune(model, flops=0.6, example_inputs=x).kept == tk.prune(plain, flops=0.6, example_inputs=x).kept


def test_weights_without_effect_on_outputs_are_named() -> None:
    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen, self.cut = nn.Linear(3, 4), nn.Linear(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.seen(x) + self.cut(x).detach()

    model = Chosen()
    with pytest.raises(UsageError, match=r"what cut\.weight does to the model's outputs is not known: no gradient"):
        output_change(model, tk.scope(model), torch.randn(2, 3))
    assert all(value.requires_grad for value in model.parameters())
