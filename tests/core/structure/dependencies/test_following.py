"""Models that cannot be followed, or only in part: what is said, what is spared, and what follows all the same."""

from __future__ import annotations

import copy
import dataclasses
from collections import UserDict
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ticketry as tk
from halving import check, example, groups_of, without
from ticketry.errors import MaskError, StructureError, UsageError

# -- decisions by activations -----------------------------------------------------------------------------------------


class Gate(nn.Module):
    """Adds what it is given to its own, or leaves it alone, as the activations have it."""

    def __init__(self, looks: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.measurements = looks

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x if self.measurements(x) else self.inner(x)


class Gated(nn.Module):
    def __init__(self, looks: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.first, self.gate, self.second, self.last = nn.Linear(4, 8), Gate(looks), nn.Linear(8, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.second(self.gate(F.relu(self.first(x))))))


LOOKS = {
    "truth of a tensor": lambda x: bool(x.mean() > 0.3),
    "a number": lambda x: x.abs().sum().item() > 20,
    "any": lambda x: bool((x > 2).any()),
    "equality": lambda x: not torch.equal(x, x.clamp(max=1.5)),
}


@pytest.mark.parametrize("looks", LOOKS.values(), ids=LOOKS.keys())
def test_a_decision_by_activations_names_its_module(looks: Callable[[Tensor], bool]) -> None:
    model, x = Gated(looks), example(3, 4)
    mask = tk.prune(model, 0.9)
    for call in (
        lambda: tk.structure.channel_groups(model, x),
        lambda: tk.structure.channels(model, x, 0.5),
        lambda: tk.shrink(model, mask, x),
    ):
        with pytest.raises(StructureError, match=r"Gated looks at its activations .* in gate\).*spare=\('gate',\)"):
            call()


@pytest.mark.parametrize("pattern", ["gate", "ga*"])
def test_a_spared_module_keeps_all_that_enters_or_leaves_it(pattern: str) -> None:
    """So the smaller model is the masked one whichever way it goes."""
    torch.manual_seed(0)
    model, x = Gated(LOOKS["truth of a tensor"]), example(3, 4)
    groups = groups_of(model, x, spare=(pattern,))
    assert "gate is spared" in groups["first"].reason
    assert "gate is spared" in groups["gate.inner"].reason
    assert groups["second"].prunable
    mask = tk.structure.channels(model, x, 0.7, spare=(pattern,))
    assert not mask["second.bias"].all()
    small = tk.shrink(model, mask, x, spare=(pattern,))
    masked = mask.apply_(copy.deepcopy(model))
    ways = set()
    for factor in (0.01, 100.0):
        ways.add(model.gate.measurements(F.relu(model.first(factor * x))))
        assert torch.allclose(small(factor * x), masked(factor * x), rtol=1e-5)
    assert ways == {True, False}


@pytest.mark.parametrize("pattern", ["gate", "ga*"])
def test_refill_spares_such_a_module_with_its_layers(pattern: str) -> None:
    torch.manual_seed(0)
    model, x = Gated(LOOKS["any"]), example(3, 4)
    unstructured = tk.prune(model, 0.5)
    with pytest.raises(StructureError, match=r"in gate\).*spare=\('gate',\)"):
        tk.structure.refill(model, unstructured, x, spare="second")
    mask = tk.structure.refill(model, unstructured, x, spare=pattern)
    assert mask["first.weight"].all()
    assert mask["gate.inner.weight"].all()
    assert not mask["second.weight"].all()
    small = tk.shrink(model, mask, x, spare=(pattern,))
    assert torch.allclose(small(x), mask.apply_(copy.deepcopy(model))(x), rtol=1e-5)


def test_refill_follows_a_spared_layer_that_decides_nothing() -> None:
    torch.manual_seed(0)
    model, x = Gated(LOOKS["any"]), example(3, 4)
    other = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), model.gate.inner, nn.ReLU(), nn.Linear(8, 2))
    mask = tk.structure.refill(other, tk.prune(other, 0.4), x, spare="2")
    assert not mask["0.bias"].all(), "what enters it may go"
    assert mask["2.weight"].any(1).all(), "what leaves it stays"


def test_a_spared_module_without_parameters() -> None:
    class Router(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    model, x = nn.Sequential(nn.Linear(4, 8), Router(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)), example(3, 4)
    mask = tk.structure.refill(model, tk.prune(model, 0.5), x, spare="1")
    assert mask["0.weight"].all()
    assert not mask["2.weight"].all()


def test_a_decision_of_the_model_itself() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.a(x)
            return self.b(hidden if hidden.sum() > 0 else -hidden)

    model, x, message = Model(), example(3, 4), r"in Model\).*move that decision into a module of its own"
    with pytest.raises(StructureError, match=message):
        tk.structure.channels(model, x, 0.5)
    with pytest.raises(StructureError, match=message):
        tk.structure.refill(model, tk.prune(model, 0.5), x, spare="*")


def test_names_to_spare_are_of_modules() -> None:
    with pytest.raises(UsageError, match=r"spare='gates' is no module of Gated: its modules are first, gate"):
        tk.structure.channel_groups(Gated(LOOKS["any"]), example(3, 4), spare=("gates",))


def test_lengths_and_masks_may_be_looked_at() -> None:
    """Numbers that come with the inputs, and have been through no float, say nothing of channels."""

    class Lengths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.a, self.b = nn.Embedding(9, 4), nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
            hidden = F.relu(self.a(self.embed(tokens[:, : int(lengths.max())])))
            if (lengths == lengths[0]).all():
                hidden = hidden * 1.0
            return self.b(hidden.sum(1))

    inputs = torch.randint(9, (3, 5)), torch.tensor([3, 5, 4])
    assert groups_of(Lengths(), inputs)["a"].prunable
    assert groups_of(Lengths(), dict(zip(("tokens", "lengths"), inputs, strict=True)))["a"].prunable


# -- operations without a rule, code that breaks -----------------------------------------------------------------------


def test_an_operation_without_a_rule() -> None:
    class Spectrum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.rfft(x).abs()

    model = nn.Sequential(nn.Linear(4, 8), Spectrum(), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))
    groups = groups_of(model, example(3, 4))
    assert groups["0"].reason == "aten._fft_r2c.default cannot be followed (in 1)"
    assert groups["2"].prunable
    mask = without(model, groups.values())
    check(model, example(3, 4), mask)
    rows = {name: kept.clone() for name, kept in mask.items()}
    for name in ("0.weight", "0.bias"):
        rows[name][2] = False
    with pytest.raises(MaskError, match=r"channel 2 of 0 cannot be removed, for aten\._fft_r2c"):
        tk.shrink(model, tk.Mask(rows), example(3, 4))
    with pytest.raises(StructureError, match=r"no channels that can be removed; 0: aten\._fft_r2c.* \(in 1\)"):
        tk.structure.channels(nn.Sequential(*model[:2], nn.Linear(5, 2)), example(3, 4), 0.5)


class Folded(nn.Module):
    """A width written out; the module that fails is named."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix, self.width = nn.Linear(width, width), [[width]]

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x).reshape(x.shape[0], 2, self.width[0][0] // 2).flatten(1)


def test_a_module_that_breaks_without_its_channels_is_named() -> None:
    layers = [nn.Linear(4, 8), nn.ReLU(), Folded(8), nn.Linear(8, 6), nn.ReLU(), Folded(6), nn.Linear(6, 2)]
    model, x = nn.Sequential(*layers), example(3, 4)
    groups = groups_of(model, x)
    for name in ("2", "5"):
        assert f"(in {name})" in groups[f"{name}.mix"].reason
        assert "the model is not the same without its channels: shape" in groups[f"{name}.mix"].reason
    assert groups["0"].prunable
    assert groups["3"].prunable
    check(model, x, without(model, groups.values()))


def test_a_model_that_does_not_run_says_where() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.ReLU(), nn.Linear(7, 2)))
    with pytest.raises(StructureError, match=r"mat1 and mat2 .* \(in 1\.1\); give a tensor"):
        tk.structure.channel_groups(model, example(3, 4))


def test_example_inputs_are_left_alone() -> None:
    model, x = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), example(3, 4)
    before = x.clone()
    groups = groups_of(model, x)
    assert torch.equal(x, before)
    assert groups["1"].prunable


@dataclasses.dataclass
class Output:
    scores: Tensor
    more: object = None


class Returning(nn.Module):
    def __init__(self, pack: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.hidden, self.last, self.pack = nn.Linear(4, 8), nn.Linear(8, 10), pack

    def forward(self, x: Tensor) -> object:
        return self.pack(self.last(torch.relu(self.hidden(x))))


@pytest.mark.parametrize(
    "pack",
    [
        Output,
        lambda scores: Output(torch.zeros(()), more=[{"scores": scores}]),
        lambda scores: SimpleNamespace(scores=scores),
        lambda scores: UserDict(scores=scores),
        lambda scores: torch.distributions.Categorical(logits=scores, validate_args=False),
    ],
)
def test_outputs_in_objects_of_ones_own_are_left_whole(pack: Callable[[Tensor], object]) -> None:
    torch.manual_seed(0)
    model, x = Returning(pack), torch.randn(3, 4)
    mask = tk.structure.channels(model, x, 0.3)
    assert set(mask) == {"hidden.weight", "hidden.bias", "last.weight"}
    assert tk.shrink(model, mask, x).last.out_features == 10


def test_a_model_that_returns_no_tensor_is_told() -> None:
    with pytest.raises(StructureError, match=r"Returning returns no tensor on the example inputs but 'nothing'"):
        tk.structure.channels(Returning(lambda _: "nothing"), torch.randn(3, 4), 0.3)


def test_a_model_that_is_to_be_compiled_is_copied_as_it_is() -> None:
    """Before its first call, when torch has not yet replaced anything."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(3, 4)
    mask = tk.structure.channels(model, x, 0.5)
    plan = tk.structure.shrink_plan(model, mask, x)
    model.compile(backend="eager")
    small = tk.structure.rebuild(model, plan)
    small(x).sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())
