"""LSTM layers in sparse kernels: outputs and gradients against float64 torch under the mask."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import ticketry as tk
from arenas import targets
from engine.training.test_region_step import library
from ticketry.core.prune import prune
from ticketry.errors import EngineError
from ticketry_engine.training import lstm
from ticketry_engine.training.lstm import INPUTS, STATES, LstmLayer, SequenceShape


def relative(one: Tensor, other: Tensor) -> float:
    return float((one.detach() - other.detach()).norm() / other.detach().norm().clamp_min(1e-12))


@settings(deadline=None, max_examples=4)
@given(
    where=st.sampled_from(targets()),
    words=st.integers(1, 6),
    batch=st.integers(1, 37),
    inputs=st.integers(1, 30),
    units=st.integers(1, 40),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    threads=st.sampled_from([1, 2]),
    seed=st.integers(0, 1000),
)
def test_a_layer(
    where: str, words: int, batch: int, inputs: int, units: int, density: float, threads: int, seed: int
) -> None:
    torch.manual_seed(seed)
    layer = nn.LSTM(inputs, units)
    kept = {name: torch.rand(4 * units, width) < density for name, width in ((INPUTS, inputs), (STATES, units))}
    with torch.no_grad():
        for name, one in kept.items():
            getattr(layer, name).mul_(one)
    x, h, c = torch.randn(words, batch, inputs), torch.randn(batch, units), torch.randn(batch, units)
    given = torch.randn(words, batch, units), torch.randn(batch, units), torch.randn(batch, units)
    weights = {name: getattr(layer, name).detach() for name in kept}
    bias = layer.bias_ih_l0.detach() + layer.bias_hh_l0.detach()

    exact = copy.deepcopy(layer).double()
    begin = [one.double().requires_grad_() for one in (x, h, c)]
    y, (last, cell) = exact(begin[0], (begin[1][None], begin[2][None]))
    torch.autograd.backward([y, last[0], cell[0]], [one.double() for one in given])

    masks = {name: one.numpy() for name, one in kept.items()}
    made = LstmLayer(SequenceShape(words, batch, inputs, units), masks, library(where), threads)
    state = made.forward(x, (h, c), weights, bias)
    for mine, wanted in zip(made.outputs(state), (y, last[0], cell[0]), strict=True):
        assert relative(mine, wanted) <= 1e-5
    found = made.backward(state, given, weights, inputs=True)
    state.close()
    truth = dict(zip("xhc", (one.grad for one in begin), strict=True)) | {"bias": exact.bias_ih_l0.grad}
    truth |= {name: getattr(exact, name).grad * kept[name] for name in kept}
    for name, wanted in truth.items():
        assert wanted is not None
        assert float((found[name] - wanted).norm()) <= 1e-5 * float(wanted.norm()) + 1e-6, name
        assert name not in kept or not found[name][~kept[name]].any()


class Model(nn.Module):
    """Two words of a sentence are told from the states behind them."""

    def __init__(self, **how: Any) -> None:
        super().__init__()
        self.lstm = nn.LSTM(48, 64, **how)
        self.last = nn.Linear(64 * (1 + self.lstm.bidirectional), 7)

    def forward(self, x: Tensor) -> Tensor:
        y, (h, c) = self.lstm(x)
        return self.last(y) + h.mean() + c.mean()


HOW = ({"batch_first": True}, {"num_layers": 2, "bidirectional": True})


def trained(density: float = 0.2, **how: Any) -> tuple[Model, tk.Mask, Tensor]:
    torch.manual_seed(0)
    model, x = Model(**how).train(), torch.randn(6, 5, 48)
    mask = prune(model, density, score="random", seed=1)
    mask.apply_(model)
    return model, mask, x


def step(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = model(x).square().mean()
    loss.backward()
    return loss, {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("how", HOW, ids=str)
def test_whole_modules(how: dict[str, Any]) -> None:
    model, mask, x = trained(**how)
    exact = copy.deepcopy(model).double()
    fast = tk.sparse_training(model, mask, x)
    loss, found = step(fast, x)
    wanted, truth = step(exact, x.double())
    assert relative(loss, wanted) <= 1e-5
    assert set(found) == set(truth)
    for name, one in truth.items():
        one = one * mask[name] if name in mask else one
        assert relative(found[name], one) <= 1e-4, name
    (row,) = (layer for layer in fast.layers() if layer.name == "lstm")
    assert (row.where, row.kind, row.why) == ("engine", "lstm", "")
    assert row.density == pytest.approx(sum(int(mask[n].sum()) for n in mask if "lstm" in n) / row_size(model))


def row_size(model: Model) -> int:
    return sum(one.numel() for one in model.lstm.parameters() if one.dim() == 2)


def test_masks_that_move_and_dropout_between_layers_which_is_torchs_own() -> None:
    model, mask, x = trained(num_layers=2, dropout=0.5)
    plain, other = copy.deepcopy(model), prune(model, 0.1, score="random", seed=2)
    fast = tk.sparse_training(model, mask, x)
    losses: list[list[float]] = [[], []]
    for number, one in enumerate((fast, plain)):
        optimizer = torch.optim.Adam(one.parameters(), lr=1e-2)
        held = tk.hold(plain, mask) if number else None
        torch.manual_seed(3)
        for turn in range(8):
            if turn == 4:
                if held is None:
                    fast.update(other)
                else:
                    held.release()
                    held = tk.hold(plain, other)
            optimizer.zero_grad()
            loss = F.mse_loss(one(x), torch.ones(6, 5, 7))
            loss.backward()
            optimizer.step()
            losses[number].append(loss.item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    assert losses[0][-1] < 0.8 * losses[0][0]
    for name, kept in other.items():
        assert not dict(model.named_parameters())[name][~kept].any()


@pytest.mark.parametrize(
    ("density", "x", "why"),
    [
        (0.5, torch.randn(6, 5, 48), "above 0.3"),
        (0.2, torch.randn(6, 3, 48), "3 examples"),
        (0.2, torch.randn(6, 48), "single one"),
    ],
    ids=["dense", "few", "single"],
)
def test_what_runs_in_torch(density: float, x: Tensor, why: str) -> None:
    model, mask, _ = trained(density)
    plain = copy.deepcopy(model)
    fast = tk.sparse_training(model, mask, x)
    loss, _ = step(fast, x)
    torch.testing.assert_close(loss, step(plain, x)[0], rtol=1e-6, atol=0)  # torch's own bits follow addresses
    (row,) = (layer for layer in fast.layers() if layer.name == "lstm")
    assert row.where == "torch"
    assert why in row.why


def test_small_ones_run_in_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, mask, x = trained()
    monkeypatch.setattr(lstm, "PRUNED", 1 << 20)
    assert any("small" in layer.why for layer in tk.sparse_training(model, mask, x).layers())


def test_two_calls_before_the_backward_pass_and_none_after_it() -> None:
    """Tables are shared, and the second call's weights are others."""
    model, mask, x = trained()
    exact = copy.deepcopy(model).double()
    fast = tk.sparse_training(model, mask, x)
    for one, text in ((fast, x), (exact, x.double())):
        one.zero_grad()
        loss = one(text).square().mean() + one(2 * text).square().mean()
        loss.backward(retain_graph=True)
        if one is fast:
            with pytest.raises(EngineError, match="second time"):
                loss.backward()
    for (name, mine), wanted in zip(model.named_parameters(), exact.parameters(), strict=True):
        assert mine.grad is not None
        assert wanted.grad is not None
        assert relative(mine.grad, wanted.grad * mask[name] if name in mask else wanted.grad) <= 1e-4
    (row,) = (layer for layer in fast.profile(x) if layer.name == "lstm")
    assert row.seconds
    assert row.seconds > 0
