"""Where a weight has its inputs is known from its layer's class or seen in a call; else patterns refuse it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import ticketry as tk
from composed import Composed
from ticketry.core.model_calls import count_multiplications, find_factor_uses, multiplications_per_weight
from ticketry.errors import StructureError, TicketryError

X = torch.randn(5, 16)
Use = Callable[[Tensor, Tensor], Tensor]


class Net(nn.Module):
    """A product of a bare parameter, of one use or several."""

    def __init__(self, shape: tuple[int, ...], *uses: Use) -> None:
        super().__init__()
        self.first, self.w, self.uses = nn.Linear(16, 16), nn.Parameter(torch.randn(shape)), uses

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.first(x)
        return [use(x, self.w) for use in self.uses]


def in_turn(x: Tensor, w: Tensor) -> Tensor:
    return torch.stack([F.linear(x, each) for each in w])


def in_turn_transposed(x: Tensor, w: Tensor) -> Tensor:
    return torch.stack([x @ each for each in w])


def chunks(x: Tensor, w: Tensor) -> Tensor:
    return torch.cat([F.linear(x, part) for part in w.chunk(2)], -1)


def grouped(x: Tensor, w: Tensor) -> Tensor:
    return torch._grouped_mm(x, w.transpose(1, 2), offs=torch.tensor([1, 2, 3, 5], dtype=torch.int32))


KNOWN: dict[str, tuple[tuple[int, ...], Use, int]] = {
    "linear": ((8, 16), F.linear, 1),
    "parts of its rows": ((8, 16), chunks, 1),
    "product": ((16, 8), lambda x, w: x @ w, 0),
    "product from the left": ((8, 16), lambda x, w: (w @ x.t()).t(), 1),
    "einsum": ((16, 8), lambda x, w: torch.einsum("bi,io->bo", x, w), 0),
    "einsum of rows": ((8, 16), lambda x, w: torch.einsum("bi,oi->bo", x, w), 1),
    "convolution": ((8, 16, 3), lambda x, w: F.conv1d(x[..., None], w, padding=1), 1),
    "transposed convolution": ((16, 8, 3), lambda x, w: F.conv_transpose1d(x[..., None], w), 0),
    "experts in turn": ((4, 8, 16), in_turn, 2),
    "experts in turn, transposed": ((4, 16, 8), in_turn_transposed, 1),
    "experts by bmm": ((4, 16, 8), lambda x, w: torch.bmm(x.expand(4, -1, -1), w), 1),
    "experts by grouped products": ((4, 8, 16), grouped, 2),
    "experts by einsum": ((4, 8, 16), lambda x, w: torch.einsum("bi,eoi->beo", x, w), 2),
}


def of(model: nn.Module) -> tk.Scope:
    return tk.scope(model, include=["w"], spare=["first"])


def at_most_two(kept: Tensor, axis: int) -> bool:
    return bool((kept.movedim(axis, -1).reshape(-1, 4).sum(-1) <= 2).all())


@pytest.mark.parametrize("name", KNOWN)
def test_the_inputs_are_seen_in_a_call(name: str) -> None:
    shape, use, axis = KNOWN[name]
    torch.manual_seed(0)
    model = Net(shape, use)
    kept = tk.prune(model, pattern="2:4", scope=of(model), example_inputs=X)["w"]
    assert [at_most_two(kept, each) for each in range(len(shape))] == [each == axis for each in range(len(shape))]
    assert int(kept.sum()) * 2 == kept.numel()


@pytest.mark.parametrize("name", [name for name in KNOWN if len(KNOWN[name][0]) == 3 and "experts" in name])
def test_channels_of_experts_are_their_outputs(name: str) -> None:
    shape, use, axis = KNOWN[name]
    torch.manual_seed(0)
    model = Net(shape, use)
    kept = tk.prune(model, 0.5, pattern="channel", scope=of(model), example_inputs=X)["w"]
    whole = kept.all(axis)
    assert torch.equal(whole, kept.any(axis))  # every output keeps all its inputs or none
    size = model.w.detach().abs().mean(axis)
    assert set(size[whole].tolist()) == set(size.flatten().topk(int(whole.sum())).values.tolist())
    blocks = tk.prune(model, 0.5, pattern="4x1", scope=of(model), example_inputs=X)["w"]
    rows = blocks.movedim(axis, -1).reshape(4, 2, 4, 16)
    assert torch.equal(rows.all(2), rows.any(2))


REFUSED: dict[str, tuple[tuple[int, ...], Sequence[Use]]] = {
    "unused": ((8, 16), []),
    "factor of each element": ((5, 16), [lambda x, w: x * w]),
    "computed before": ((8, 16), [lambda x, w: F.linear(x, w * 2)]),
    "two ways": ((16, 16), [F.linear, lambda x, w: x @ w]),
    "two dimensions summed": ((4, 4, 8), [lambda x, w: torch.einsum("bhd,hdo->bo", x.view(-1, 4, 4), w)]),
    "experts in the middle": ((8, 4, 16), [lambda x, w: torch.stack([F.linear(x, w[:, e]) for e in range(4)])]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_call_does_not_tell_is_refused(name: str) -> None:
    shape, uses = REFUSED[name]
    model = Net(shape, *uses)
    for pattern in ("2:4", "4x1", "channel"):
        with pytest.raises(StructureError, match=r"layout of 'w' .* is unknown: the call"):
            tk.prune(model, 0.5, pattern=pattern, scope=of(model), example_inputs=X)
    assert tk.prune(model, 0.5, scope=of(model)).density == pytest.approx(0.5, abs=0.01)


CALLS: dict[str, Callable[[nn.Module, tk.Scope], object]] = {
    "prune": lambda model, scope: tk.prune(model, pattern="2:4", scope=scope),
    "gradual": lambda model, scope: tk.gradual(model, 0.5, steps=10, pattern="channel", scope=scope),
    "gates": lambda model, scope: tk.gates.attach(model, pattern="4x1", scope=scope),
    "layouts": lambda model, scope: tk.structure.layouts(model, scope),
    "regroup": lambda model, scope: tk.structure.regroup(model, tk.Mask.ones(scope), 0.5, rows=4),
    "n_m": lambda model, scope: tk.structure.n_m(model, tk.Mask.ones(scope)),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("how", ["include", "types"])
def test_without_a_call_unknown_layouts_are_refused_with_advice(name: str, how: str) -> None:
    model = Net((4, 8, 16), in_turn)
    scope = tk.scope(model, include=["w"]) if how == "include" else tk.scope(model, types=(Net,))
    with pytest.raises(TicketryError, match="spare="):
        CALLS[name](model, scope)


def test_the_advice_can_be_followed() -> None:
    model = Net((4, 8, 16), in_turn)
    scope = tk.scope(model, include=["w"])
    with pytest.raises(StructureError, match=r"example_inputs=.*spare=\['w'\].*pattern='unstructured'"):
        tk.prune(model, pattern="2:4", scope=scope)
    tk.prune(model, pattern="2:4", scope=scope, example_inputs=X)
    tk.prune(model, pattern="2:4", scope=tk.scope(model, spare=["w"]))
    tk.prune(model, 0.5, pattern="unstructured", scope=scope, collapse="keep")
    known = tk.structure.layouts(model, scope, X)
    scores = tk.score.magnitude(model, scope)
    assert at_most_two(tk.allocate(scores, pattern="2:4", layouts=known)["w"], 2)


def test_a_layer_keeps_its_own_layout_where_something_else_reads_its_weight_too() -> None:
    inner = nn.Linear(16, 16, bias=False)
    also = Composed(lambda self, x: self.inner(x) @ self.inner.weight, inner=inner)
    instead = Composed(lambda self, x: x @ self.inner.weight, inner=inner)
    assert tk.structure.layouts(also, ["inner.weight"], X)["inner.weight"] == tk.structure.Layout()
    found = tk.structure.layouts(instead, ["inner.weight"], X)["inner.weight"]
    assert found == tk.structure.Layout(inputs_first=True)


def test_a_class_that_is_only_called_as_transformers_linear_layer() -> None:
    class Conv1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 16))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight)

    model = nn.Sequential(nn.Linear(16, 16), Conv1D())
    assert tk.scope(model).names == ("0.weight",)
    with pytest.raises(StructureError, match="layout"):
        tk.structure.layouts(model, ["1.weight"])
    assert tk.structure.layouts(model, ["1.weight"], X)["1.weight"] == tk.structure.Layout()


def test_vectors_and_numbers_need_no_layout() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.scale, self.factor = nn.Linear(4, 4), nn.Parameter(torch.ones(4)), nn.Parameter(X[0, 0])

    names = ["inner.bias", "scale", "factor"]
    assert set(tk.structure.layouts(Scaled(), names).values()) == {tk.structure.Layout()}


@pytest.mark.parametrize("inputs_first", [False, True])
def test_rows_of_stacked_matrices(inputs_first: bool) -> None:
    weight = torch.arange(24.0).reshape(2, 3, 4)
    layout = tk.structure.Layout(inputs_first=inputs_first, stacked=True)
    rows = layout.rows(weight)
    expected = torch.stack([each.t() if inputs_first else each for each in weight])
    assert torch.equal(rows, expected)
    assert torch.equal(layout.weight(rows, (2, 3, 4)), weight)


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)).train()
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    uses = find_factor_uses(model, dict(model.named_parameters()), X)
    assert [name for name, found in uses.items() if found] == ["0.weight"]
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


class TestExperts:
    def model(self, *, experts: int = 4) -> nn.Module:
        return Net((experts, 64, 16), in_turn)

    def test_are_told_of_where_the_scope_leaves_them_out(self) -> None:
        with pytest.warns(UserWarning, match=r"out of scope: w \[4, 64, 16\].*include=.*spare=") as caught:
            assert tk.scope(self.model()).names == ("first.weight",)
        assert caught[0].filename == __file__

    @pytest.mark.parametrize("choice", [{"include": ["w"]}, {"spare": ["w"]}, {"types": (Net,)}])
    def test_are_no_news_once_named(self, choice: dict[str, Sequence[object]]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tk.scope(self.model(), **choice)  # type: ignore[arg-type]

    def test_what_is_no_stack_of_matrices(self) -> None:
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.LayerNorm((8, 6, 6)), nn.Embedding(9, 8))
        model.register_parameter("places", nn.Parameter(torch.randn(1, 50, 20)))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert tk.scope(model).names == ("0.weight",)


def _total(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    parameters = {name: one for name, one in model.named_parameters() if one.dim() > 1}
    found = multiplications_per_weight(model, parameters, inputs)
    return sum(found[name] * one.numel() for name, one in parameters.items())


@pytest.mark.parametrize("words", [1, 4])
def test_queries_and_keys_that_read_parts_of_one_weight(words: int) -> None:
    """Queries are a third of the products: rounded down, a third of few words would be 0."""
    layer = nn.TransformerDecoderLayer(12, 3, 24, batch_first=True).eval()
    x = torch.randn(1, words, 12)
    assert _total(layer, (x, x.clone())) == words * sum(one.numel() for one in layer.parameters() if one.dim() > 1)


SLICED = {
    "linear": (lambda x, weight: F.linear(x, weight[:4]), (8, 6), (5, 6)),
    "convolution": (lambda x, weight: F.conv2d(x, weight[:4]), (8, 6, 3, 3), (2, 6, 5, 5)),
    "transposed": (lambda x, weight: F.conv_transpose2d(x, weight[:3]), (6, 8, 3, 3), (2, 3, 5, 5)),
}


@pytest.mark.parametrize("name", SLICED)
def test_a_part_of_a_weight(name: str) -> None:
    make, shape, size = SLICED[name]
    model = Composed(lambda self, x: make(x, self.weight), weight=nn.Parameter(torch.randn(shape)))
    x = torch.randn(size)
    with FlopCounterMode(display=False) as counter:
        model(x)
    uses = multiplications_per_weight(model, dict(model.named_parameters()), x)["weight"]
    assert uses == counter.get_total_flops() // 2 // model.weight.numel() > 0


def test_other_uses_of_a_weight_are_counted() -> None:
    """Each weight is used in its layer and once more in a function."""

    def forward(self: Any, x: Tensor, picture: Tensor) -> tuple[Tensor, Tensor]:
        shown = F.linear(torch.tanh(self.code(x)), self.code.weight.t())
        return shown, F.conv2d(self.small(picture), self.small.weight, padding=2, dilation=2)

    inputs = (torch.zeros(5, 8), torch.zeros(2, 3, 6, 6))
    model = Composed(forward, code=nn.Linear(8, 4), small=nn.Conv2d(3, 3, 3, padding=1)).train()
    # Five rows through 8 x 4 weights and back; two pictures of 36 places, twice.
    assert count_multiplications(model, tk.scope(model), inputs) == {"code.weight": 2 * 5, "small.weight": 2 * 2 * 36}
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    costs = tk.cost.model(model, inputs, unit="multiplications")
    assert costs.dense == 2 * 5 * 32 + 2 * 2 * 36 * 81


@pytest.mark.parametrize(
    ("layer", "x", "each"),
    [
        (nn.ConvTranspose2d(3, 5, 2, stride=2), torch.zeros(2, 3, 4, 4), 2 * 16),
        (nn.ConvTranspose1d(4, 6, 3, groups=2), torch.zeros(2, 4, 9), 2 * 9),
        (nn.Conv2d(4, 6, 3, groups=2), torch.zeros(2, 4, 5, 5), 2 * 9),
    ],
)
def test_transposed_and_grouped_convolutions(layer: nn.Module, x: Tensor, each: int) -> None:
    """A transposed convolution multiplies each weight once with every input position of its channel."""
    assert count_multiplications(layer, tk.scope(layer), x) == {"weight": each}


def test_a_fused_transformer_layer_is_counted_in_parts() -> None:
    """Torch's fast path runs the layer as one operation, which shows no products."""
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    names = ["self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight"]
    scope = tk.scope(layer, spare=["self_attn.in_proj_weight"])
    enabled = torch.backends.mha.get_fastpath_enabled()
    assert count_multiplications(layer, scope, torch.zeros(2, 10, 16)) == dict.fromkeys(names[1:], 20)
    assert torch.backends.mha.get_fastpath_enabled() == enabled


def test_parameters_that_share_one_allocation_are_counted_apart() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    flat = torch.cat([one.detach().flatten() for one in model.parameters()])
    place = 0
    for one in model.parameters():
        one.data = flat[place : place + one.numel()].view_as(one)
        place += one.numel()
    assert count_multiplications(model, tk.scope(model), torch.zeros(3, 4)) == {"0.weight": 3, "2.weight": 3}
