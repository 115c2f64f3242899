"""Penalties: values by hand, and gradients in closed form against autograd of the definitions, in float64."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from ticketry.core.sparse_training.penalties import BLOCK_PENALTIES, PENALTIES, add_penalty_gradients_, penalty
from ticketry.core.structure.pattern import Pattern
from ticketry.errors import UsageError

OF_WEIGHTS = tuple(kind for kind in PENALTIES if kind != "group_lasso")


def defined(kind: str, w: Tensor, text: str = "") -> Tensor:
    """As the papers write it (and DeepHoyer's code for groups), for whole rows and columns or block by block."""
    if kind == "l1_scales":
        return w.abs().sum()
    if kind == "hoyer_square":
        return w.abs().sum() ** 2 / (w**2).sum()
    if text == "channel":
        parts = [w[i].flatten() for i in range(len(w))]
    elif text:
        rows = w.flatten(1)
        size = int(text.removesuffix("x1"))
        parts = [rows[i : i + size, j] for i in range(0, len(w), size) for j in range(rows.shape[1])]
    else:
        filters = sum(w[i].norm() for i in range(w.shape[0]))
        channels = sum(w[:, j].norm() for j in range(w.shape[1]))
        return (filters**2 + channels**2) / (w**2).sum()
    norms = [part.norm() for part in parts]
    if kind == "group_lasso":
        return sum(len(part) ** 0.5 * norm for part, norm in zip(parts, norms, strict=True))
    return sum(norms) ** 2 / sum(norm**2 for norm in norms)


def weights() -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(shape, dtype=torch.float64, generator=draw) for shape in ((4, 3), (5, 4, 3, 3), (2, 6, 3))]


@pytest.mark.parametrize(
    ("kind", "text"),
    [*product(OF_WEIGHTS, [""]), *product(BLOCK_PENALTIES, ["2x1", "4x1", "channel"])],
)
def test_values_and_gradients(kind: str, text: str) -> None:
    """Both ways, the differentiable value and the closed form, against the definition; some last blocks are smaller."""
    ours, theirs, closed = ([w.clone().requires_grad_() for w in weights()] for _ in range(3))
    blocks = blocks_of(text, ours) if text else None
    value = penalty(kind, ours, blocks)
    wanted = torch.stack([defined(kind, w, text) for w in theirs]).sum()
    assert torch.allclose(value, wanted, rtol=1e-13)
    value.backward()
    wanted.backward()
    for w in closed:
        w.grad = torch.ones_like(w)
    add_penalty_gradients_(kind, 0.25, closed, blocks)
    for one, other, third in zip(ours, theirs, closed, strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-11, atol=1e-14)
        assert torch.allclose(third.grad, 1 + 0.25 * other.grad, rtol=1e-11, atol=1e-14)


def blocks_of(text: str, ws: list[Tensor]) -> list:
    return [Pattern.parse(text).blocks(tuple(w.shape)) for w in ws]


@pytest.mark.parametrize(("kind", "text"), [*product(OF_WEIGHTS, [""]), *product(BLOCK_PENALTIES, ["4x1"])])
def test_what_is_zero_stays_zero(kind: str, text: str) -> None:
    """Removed filters, channels and blocks, and a layer of nothing else, get no gradient, and no NaN."""
    w, nothing, removed = torch.randn(6, 3, 2, 2), torch.zeros(3, 2), torch.zeros(6, 3, 2, 2, dtype=torch.bool)
    if text:
        removed[:4, 1, 0, 0] = removed[4:, 2, 1, 1] = True
    else:
        removed[1] = removed[:, 2] = True
    both = [w.masked_fill_(removed, 0).requires_grad_(), nothing.requires_grad_()]
    blocks = blocks_of(text, both) if text else None
    value = penalty(kind, both, blocks)
    assert torch.equal(value.detach(), penalty(kind, both[:1], blocks and blocks[:1]).detach())
    value.backward()
    gradients = [w.grad.clone()]
    for one in both:
        one.grad = None
    add_penalty_gradients_(kind, 1.0, both, blocks)
    for gradient in (*gradients, w.grad):
        assert not gradient[removed].any()
        assert bool(torch.isfinite(gradient).all())
        assert gradient[~removed].all()
    assert not nothing.grad.any()


def test_bad_input() -> None:
    with pytest.raises(UsageError, match="l1_scales, hoyer_square"):
        penalty("l3", [torch.ones(2)])
    with pytest.raises(UsageError, match="rows and columns"):
        penalty("group_hoyer_square", [torch.ones(2)])
    ws = [torch.ones(4, 2)]
    with pytest.raises(UsageError, match="say which, such as 4x1"):
        penalty("group_lasso", ws)
    with pytest.raises(UsageError, match="hoyer_square is not of blocks"):
        add_penalty_gradients_("hoyer_square", 1.0, ws, blocks_of("4x1", ws))
