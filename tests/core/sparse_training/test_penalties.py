"""Penalties: values by hand, and gradients in closed form against autograd of the definitions, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ticketry.core.sparse_training.penalties import BLOCK_PENALTIES, PENALTIES, add_penalty_gradients_, penalty
from ticketry.core.structure.pattern import Pattern
from ticketry.errors import UsageError

OF_WEIGHTS = tuple(kind for kind in PENALTIES if kind != "group_lasso")


def defined(kind: str, w: Tensor) -> Tensor:
    """As the papers write it (and DeepHoyer's code for groups)."""
    if kind == "l1_scales":
        return w.abs().sum()
    if kind == "hoyer_square":
        return w.abs().sum() ** 2 / (w**2).sum()
    filters = sum(w[i].norm() for i in range(w.shape[0]))
    channels = sum(w[:, j].norm() for j in range(w.shape[1]))
    return (filters**2 + channels**2) / (w**2).sum()


def weights() -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(shape, dtype=torch.float64, generator=draw) for shape in ((4, 3), (5, 4, 3, 3), (2, 6, 3))]


@pytest.mark.parametrize("kind", OF_WEIGHTS)
def test_values_and_gradients(kind: str) -> None:
    """Both ways, the differentiable value and the closed form, against the definition."""
    ours, theirs, closed = ([w.clone().requires_grad_() for w in weights()] for _ in range(3))
    value = penalty(kind, ours)
    wanted = torch.stack([defined(kind, w) for w in theirs]).sum()
    assert torch.allclose(value, wanted, rtol=1e-13)
    value.backward()
    wanted.backward()
    for w in closed:
        w.grad = torch.ones_like(w)
    add_penalty_gradients_(kind, 0.25, closed)
    for one, other, third in zip(ours, theirs, closed, strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-11, atol=1e-14)
        assert torch.allclose(third.grad, 1 + 0.25 * other.grad, rtol=1e-11, atol=1e-14)


def test_by_hand() -> None:
    w = torch.tensor([[3.0, 0.0], [0.0, -4.0]], dtype=torch.float64)
    assert float(penalty("l1_scales", [w])) == 7
    assert float(penalty("hoyer_square", [w])) == pytest.approx(49 / 25)
    assert float(penalty("group_hoyer_square", [w])) == pytest.approx(2 * 49 / 25)
    add_penalty_gradients_("hoyer_square", 1.0, [w])  # 2 S/Q sign(w) - 2 S²/Q² w
    wanted = [[2 * 7 / 25 - 2 * 49 / 625 * 3, 0], [0, -2 * 7 / 25 + 2 * 49 / 625 * 4]]
    assert torch.allclose(w.grad, torch.tensor(wanted, dtype=torch.float64))


@pytest.mark.parametrize("kind", OF_WEIGHTS)
def test_what_is_zero_stays_zero(kind: str) -> None:
    """Removed filters and channels, and a layer of nothing else, get no gradient, and no NaN."""
    w, nothing = torch.randn(4, 3, 2, 2), torch.zeros(3, 2)
    w[1], w[:, 2] = 0, 0
    w.requires_grad_()
    nothing.requires_grad_()
    value = penalty(kind, [w, nothing])
    assert torch.equal(value.detach(), penalty(kind, [w]).detach())
    value.backward()
    assert not w.grad[1].any()
    assert bool(torch.isfinite(w.grad).all())
    w.grad = nothing.grad = None
    add_penalty_gradients_(kind, 1.0, [w, nothing])
    assert not w.grad[1].any()
    assert not w.grad[:, 2].any()
    assert not nothing.grad.any()
    assert bool(torch.isfinite(w.grad).all())
    assert w.grad.any()


def blocks_of(text: str, ws: list[Tensor]) -> list:
    return [Pattern.parse(text).blocks(tuple(w.shape)) for w in ws]


def in_blocks(kind: str, text: str, w: Tensor) -> Tensor:
    """As the papers write it, block by block."""
    if text == "channel":
        parts = [w[i].flatten() for i in range(len(w))]
    else:
        rows = w.flatten(1)
        size = int(text.removesuffix("x1"))
        parts = [rows[i : i + size, j] for i in range(0, len(w), size) for j in range(rows.shape[1])]
    norms = [part.norm() for part in parts]
    if kind == "group_lasso":
        return sum(len(part) ** 0.5 * norm for part, norm in zip(parts, norms, strict=True))
    return sum(norms) ** 2 / sum(norm**2 for norm in norms)


@pytest.mark.parametrize("text", ["2x1", "4x1", "channel"])
@pytest.mark.parametrize("kind", BLOCK_PENALTIES)
def test_values_and_gradients_of_blocks(kind: str, text: str) -> None:
    """Of 4, 5 and 2 rows: the last blocks are smaller. In both ways, against the definition."""
    ours, theirs, closed = ([w.clone().requires_grad_() for w in weights()] for _ in range(3))
    blocks = blocks_of(text, ours)
    value = penalty(kind, ours, blocks)
    wanted = torch.stack([in_blocks(kind, text, w) for w in theirs]).sum()
    assert torch.allclose(value, wanted, rtol=1e-13)
    value.backward()
    wanted.backward()
    for w in closed:
        w.grad = torch.ones_like(w)
    add_penalty_gradients_(kind, 0.25, closed, blocks)
    for one, other, third in zip(ours, theirs, closed, strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-11, atol=1e-14)
        assert torch.allclose(third.grad, 1 + 0.25 * other.grad, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("kind", BLOCK_PENALTIES)
def test_blocks_that_are_zero_stay_zero(kind: str) -> None:
    w, nothing = torch.randn(6, 3, 2, 2), torch.zeros(3, 2)
    w[:4, 1, 0, 0] = 0  # a block; and one of the last rows
    w[4:, 2, 1, 1] = 0
    both = [w.requires_grad_(), nothing.requires_grad_()]
    blocks = blocks_of("4x1", both)
    value = penalty(kind, both, blocks)
    assert torch.equal(value.detach(), penalty(kind, both[:1], blocks[:1]).detach())
    value.backward()
    gradients = [w.grad.clone()]
    for one in both:
        one.grad = None
    add_penalty_gradients_(kind, 1.0, both, blocks)
    for gradient in (*gradients, w.grad):
        assert not gradient[:4, 1, 0, 0].any()
        assert not gradient[4:, 2, 1, 1].any()
        assert bool(torch.isfinite(gradient).all())
        assert gradient[:4, 0].all()
    assert not nothing.grad.any()


def test_words_of_blocks() -> None:
    ws = [torch.ones(4, 2)]
    with pytest.raises(UsageError, match="say which, such as 4x1"):
        penalty("group_lasso", ws)
    with pytest.raises(UsageError, match="hoyer_square is not of blocks"):
        add_penalty_gradients_("hoyer_square", 1.0, ws, blocks_of("4x1", ws))


def test_bad_input() -> None:
    with pytest.raises(UsageError, match="l1_scales, hoyer_square"):
        penalty("l3", [torch.ones(2)])
    with pytest.raises(UsageError, match="rows and columns"):
        penalty("group_hoyer_square", [torch.ones(2)])
