"""Gates on blocks: against gates that are copied to every weight by hand, and finite differences, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import ticketry as tk
from slow_blocks import blocks_of
from ticketry.core import gates
from ticketry.core.gates import product
from ticketry.core.gates.attach import BlockGates
from ticketry.core.gates.product import block_product
from ticketry.core.structure.layout import Layout, layouts
from ticketry.core.structure.pattern import Pattern
from ticketry.errors import LayerCollapseError, MaskError, UsageError
from ticketry_engine.support.seeds import generator

PATTERNS = ("4x1", "16x1", "channel")
CASES = [("continuous", "4x1"), ("stochastic", "16x1"), ("hard-concrete", "channel"), ("binary-concrete", "4x1")]


class Mixed(nn.Sequential):
    """Rows that are no multiple of 4, groups, a transposed convolution."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(2, 6, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(6, 10, 3, groups=2, padding=1, bias=False),
            nn.Tanh(),
            nn.ConvTranspose2d(10, 6, 2, groups=2),
            nn.Flatten(),
            nn.Linear(6 * 5 * 5, 3),
        )


def made(pattern: str, kind: Any = "continuous", **more: Any) -> tuple[Mixed, BlockGates]:
    torch.manual_seed(0)
    model = Mixed().double()
    handle = gates.attach(model, pattern=pattern, kind=kind, seed=5, **more)
    assert isinstance(handle, BlockGates)
    with torch.no_grad():
        for s in handle.parameters():
            s.copy_(torch.randn(s.shape, dtype=s.dtype))
    return model, handle


def by_hand(model: nn.Module, pattern: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every weight's gate, written block by block; differentiable in the values (one a block, in order)."""
    parameters, known = dict(model.named_parameters()), layouts(model, values)
    found = {}
    for name, value in values.items():
        shape = tuple(parameters[name].shape)
        number_of = torch.zeros(shape, dtype=torch.int64)
        for number, members in enumerate(blocks_of(pattern, shape, known[name]).values()):
            for place in members:
                number_of[place] = number
        found[name] = value.flatten()[number_of]
    return found


def images() -> Tensor:
    return torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


# -- products ----------------------------------------------------------------------------------------------------------


@given(
    st.sampled_from(("2x1", "4x1", "channel")), st.integers(1, 5), st.integers(1, 3), st.integers(1, 2), st.booleans()
)
def test_derivatives_of_odd_shapes(text: str, rows: int, inputs: int, groups: int, inputs_first: bool) -> None:
    """First and second, against finite differences."""
    shape, layout = (rows * groups, inputs, 2), Layout(inputs_first, groups)
    blocks = Pattern.parse(text).blocks(shape, layout)
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    gate = torch.randn(blocks.shape, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(block_product(weight, gate, blocks), weight * blocks.expand_to_weights(gate))
    assert torch.autograd.gradcheck(lambda *both: block_product(*both, blocks), (weight, gate))
    assert torch.autograd.gradgradcheck(lambda *both: block_product(*both, blocks), (weight, gate))


def test_many_blocks() -> None:
    """Those of large weights are summed in another way."""
    for shape in ((70, 2000), (18, 900, 3, 3)):
        weight = torch.randn(shape, dtype=torch.float64)
        if len(shape) == 4:
            weight = weight.to(memory_format=torch.channels_last)
        blocks = Pattern.parse("4x1").blocks(shape)
        assert blocks.count > product._FEW_BLOCKS
        gate = torch.rand(blocks.shape, dtype=torch.float64, requires_grad=True)
        other = torch.randn(shape, dtype=torch.float64)
        (grad,) = torch.autograd.grad((block_product(weight, gate, blocks) * other).sum(), gate)
        torch.testing.assert_close(grad, blocks.sum_by_block(weight * other))


def test_products_keep_the_layout_of_memory() -> None:
    weight = torch.randn(10, 3, 2, 2).to(memory_format=torch.channels_last)
    blocks = Pattern.parse("4x1").blocks((10, 3, 2, 2))
    times = block_product(weight, torch.ones(blocks.shape), blocks)
    assert times.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(times, weight)
    model = nn.Conv2d(3, 10, 2).to(memory_format=torch.channels_last)
    (s,) = gates.attach(model, pattern="4x1").parameters()
    assert s.is_contiguous(memory_format=torch.channels_last)


# -- as gates on single weights that are tied --------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "pattern"), CASES)
def test_as_gates_copied_to_every_weight(kind: str, pattern: str) -> None:
    """Outputs, penalty, and the gradients of s and of all weights, in training; then eval mode and hard gates."""
    model, handle = made(pattern, kind)
    plain = Mixed().double()
    plain.load_state_dict(model.state_dict())
    values = {name: s.detach().clone().requires_grad_() for name, s in handle.named_parameters()}
    handle.set_step(7)
    handle.anneal(0.25)
    moment = gates.Moment(0.0, handle.beta)

    def gate(number: int, s: Tensor) -> Tensor:
        uniform = torch.rand(s.shape, dtype=s.dtype, generator=generator(5, "gates", 7, number))
        return handle.kind.gate(s, moment, uniform)

    factors = by_hand(plain, pattern, {name: gate(n, s) for n, (name, s) in enumerate(values.items())})
    weights = dict(plain.named_parameters())
    mine = model(images())
    wanted = functional_call(plain, {name: weights[name] * factor for name, factor in factors.items()}, (images(),))
    torch.testing.assert_close(mine, wanted, rtol=1e-12, atol=1e-12)
    opened = by_hand(plain, pattern, {name: handle.kind.open(s, moment) for name, s in values.items()})
    charge = sum(each.sum() for each in opened.values())
    torch.testing.assert_close(handle.penalty(0.01), 0.01 * charge)
    assert handle.soft_density() == pytest.approx(float(charge.detach()) / handle.weights)
    (mine.square().sum() + handle.penalty(0.01)).backward()
    (wanted.square().sum() + 0.01 * charge).backward()
    for name, s in handle.named_parameters():
        torch.testing.assert_close(s.grad, values[name].grad, rtol=1e-9, atol=1e-12)
    for (name, own), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-9, atol=1e-12, msg=name)
    model.eval()
    for hard, act in ((False, handle.kind.test_gate), (True, handle.kind.hard_gate)):
        handle.hard(hard)
        fixed = by_hand(plain, pattern, {name: act(s.detach(), moment) for name, s in values.items()})
        swapped = {name: weights[name] * factor for name, factor in fixed.items()}
        torch.testing.assert_close(model(images()), functional_call(plain, swapped, (images(),)))
    outputs = model(images())
    handle.detach(apply=True)
    torch.testing.assert_close(model(images()), outputs)


# -- masks and counts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "pattern"), CASES)
def test_masks_have_whole_blocks_and_counts_are_of_weights(kind: str, pattern: str) -> None:
    model, handle = made(pattern, kind)
    mask = handle.harden(collapse="keep")
    known = layouts(model, mask)
    for name, kept in mask.items():
        pool = Pattern.parse(pattern).blocks(tuple(kept.shape), known[name]).retained_blocks(kept, name)
        on = dict(handle.named_parameters())[name] > handle.kind.threshold
        assert torch.equal(pool, on) or int(on.sum()) == 0
    mask = handle.harden()
    assert handle.kept() == {row.name: row.kept for row in mask.table()}
    assert handle.density() == mask.density
    assert handle.weights == mask.total == tk.scope(model).total
    assert sum(handle.histogram(10).total) == sum(s.numel() for s in handle.parameters()) < handle.weights
    assert repr(handle).startswith(f"BlockGates({pattern}, {kind}, 4 tensors, ")


def test_a_density_of_ones_choice() -> None:
    model, handle = made("4x1")
    for density in (0.5, 0.2):
        mask = handle.allocate(density)
        assert mask.kept == pytest.approx(density * mask.total, abs=2)
        least = min(float(s[kept].min()) for s, kept in _by_block(model, handle, mask))
        assert all(bool((s[~kept] <= least).all()) for s, kept in _by_block(model, handle, mask))
    with torch.no_grad():
        handle.parameters()[0].fill_(-9.0)
    with pytest.raises(LayerCollapseError, match=r"0\.weight .* keep a block in each \(collapse=keep\)"):
        handle.allocate(0.5)
    assert handle.allocate(0.5, collapse="keep")["0.weight"].sum() == 4


def _by_block(model: nn.Module, handle: BlockGates, mask: tk.Mask) -> list[tuple[Tensor, Tensor]]:
    known = layouts(model, mask)
    return [
        (s.detach(), handle.pattern.blocks(tuple(mask[name].shape), known[name]).retained_blocks(mask[name], name))
        for name, s in handle.named_parameters()
    ]


def test_no_gate_of_a_layer_is_on() -> None:
    _, handle = made("4x1")
    with torch.no_grad():
        handle.parameters()[1].copy_(-1 - torch.rand(handle.parameters()[1].shape))
    with pytest.raises(LayerCollapseError, match=r"'2\.weight'"):
        handle.harden()
    best = handle.harden(collapse="keep")["2.weight"]
    assert best.sum() in (1, 4)  # a whole block: of five rows in each group, 4 and 1


@pytest.mark.parametrize("pattern", ["unstructured", "4x1"])
def test_the_best_is_kept_in_any_layout_of_memory(pattern: str) -> None:
    model = nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
    handle = gates.attach(model, pattern=pattern, init=-1.0)
    with torch.no_grad():
        handle.parameters()[0][1, 2, 0, 1] = -0.5
    mask = handle.harden(collapse="keep")["weight"]
    rows = slice(1, 2) if pattern == "unstructured" else slice(4, 8)
    assert mask[rows, 2, 0, 1].all()
    assert mask.sum() == mask[rows, 2, 0, 1].numel()


def test_within_a_mask() -> None:
    """Its blocks stay off; half ones are refused."""
    torch.manual_seed(0)
    model = Mixed().double()
    mask = tk.prune(model, 0.5, pattern="4x1", distribution="uniform")
    handle = gates.attach(model, pattern="4x1", within=mask, init=0.3)
    assert handle.harden() == mask
    assert handle.density() == mask.density
    for s in handle.parameters():
        s.data.fill_(-1.0)
    for s, kept in zip(handle.parameters(), handle._kept, strict=True):
        s.data.masked_fill_(kept == 0, 1.0)
    assert handle.allocate(mask.density) == mask
    for s in handle.parameters():
        s.data.fill_(0.3)
    model(images()).sum().backward()
    for name, s in handle.named_parameters():
        blocks = Pattern.parse("4x1").blocks(tuple(mask[name].shape), layouts(model, mask)[name])
        assert not s.grad[~blocks.retained_blocks(mask[name], name)].any()
    handle.detach()
    with pytest.raises(MaskError, match=r"parts of blocks of '0\.weight'"):
        gates.attach(model, pattern="4x1", within=tk.prune(model, 0.5))


def test_rounds_and_state() -> None:
    model, handle = made("4x1")
    handle.anneal(1.0)
    before = {name: s.detach().clone() for name, s in handle.named_parameters()}
    handle.next_round()
    for name, s in handle.named_parameters():
        assert torch.equal(s.detach(), torch.clamp(200 * before[name], max=0.0))
    other = Mixed().double()
    other.load_state_dict(model.state_dict())
    more = gates.attach(other, pattern="4x1")
    more.load_state_dict(handle.state_dict())
    assert torch.equal(model(images()), other(images()))
    with pytest.raises(MaskError, match="other weights"):
        gates.attach(Mixed(), pattern="16x1").load_state_dict(handle.state_dict())


def test_balance_is_of_weights() -> None:
    """Blocks of 3 and of 1 row: the expected number of weights is steered, not that of gates."""
    torch.manual_seed(0)
    handle = gates.attach(nn.Linear(6, 4, bias=False), pattern="3x1", kind="binary-concrete", init=2.0)
    optimizer = torch.optim.Adam(handle.parameters(), lr=0.05)
    balance = gates.Balance(handle, 0.3, headroom=1.0)
    for _ in range(600):
        optimizer.zero_grad()
        s = handle.parameters()[0]
        (-(s * torch.tensor([[0.01], [1.0]])).sum() * 0.01).backward()
        balance.add_gradients()
        optimizer.step()
    assert handle.soft_density() == pytest.approx(0.3, abs=0.05)


# -- what else calls a model -------------------------------------------------------------------------------------------


def test_half_precision_checkpointing_and_transforms() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).to(torch.bfloat16)
    handle = gates.attach(model, pattern="4x1", init=0.1)
    assert {s.dtype for s in handle.parameters()} == {torch.float32}
    x = torch.randn(4, 5, dtype=torch.bfloat16)
    assert model(x).dtype == torch.bfloat16
    model(x).float().sum().backward()
    assert all(s.grad is not None and s.grad.any() for s in handle.parameters())
    handle.detach()
    model.float()
    handle = gates.attach(model, pattern="4x1", init=0.1)
    direct = model(x.float())
    again = checkpoint(model, x.float(), use_reentrant=False)
    again.sum().backward()
    torch.testing.assert_close(again, direct)
    torch.testing.assert_close(torch.vmap(model)(x.float()), direct)


def test_refusals_and_defaults() -> None:
    model = Mixed()
    with pytest.raises(UsageError, match="gates need weights that go together, and of pattern 2:4"):
        gates.attach(model, pattern="2:4")
    with pytest.raises(UsageError, match="is not known: unstructured"):
        gates.attach(model, pattern="4by1")
    handle = gates.attach(model)
    assert type(handle) is gates.Gates
    assert handle.allocate(0.9) == tk.allocate(dict(handle.named_parameters()), 0.9)
    with pytest.raises(UsageError, match="detach them first"):
        gates.attach(model, pattern="4x1")
