"""The batch first, on axis 1, on several axes, or nowhere; models that treat one example otherwise than several."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk
from samples import sample
from ticketry.errors import EngineError
from ticketry_engine.capture import capture, pipeline


class Recurrent(nn.Module):
    """A recurrent layer and a linear one."""

    def __init__(self, kind: type[nn.RNNBase], **settings: Any) -> None:
        super().__init__()
        self.recurrent = kind(5, 8, **settings)
        width = 8 * (2 if settings.get("bidirectional") else 1)
        self.layer = nn.Linear(settings.get("proj_size") or width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.recurrent(x)[0])


RECURRENT = [
    (nn.GRU, {}),
    (nn.GRU, {"batch_first": True}),
    (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
    (nn.LSTM, {"proj_size": 3}),
    (nn.RNN, {"nonlinearity": "relu"}),
]


@pytest.fixture
def no_export(monkeypatch):
    """torch.export must not be needed."""
    monkeypatch.setattr(pipeline, "export", None)


def check(model: nn.Module, x: Tensor, *others: Tensor) -> None:
    mask = tk.prune(model, density=0.6, distribution="layerwise")
    fast = tk.compile(model, mask, x)
    mask.apply_(model)
    for given in (x, *others):
        with torch.no_grad():
            torch.testing.assert_close(fast(given), model(given), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("kind", "settings"), sample(RECURRENT, [RECURRENT[0], RECURRENT[2], RECURRENT[4]]))
def test_recurrent_layers_take_no_steps(kind: Any, settings: dict[str, Any], no_export):
    """For any number of steps, and no longer for thousands of them."""
    model = Recurrent(kind, **settings).eval()
    check(model, torch.randn(6, 3, 5), torch.randn(9, 3, 5))
    assert len(capture(model, None, torch.randn(6, 3, 5)).nodes) < 20


class Loop(nn.Module):
    """Steps over axis 0, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.layer = nn.GRUCell(5, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        state, found = x.new_zeros(x.shape[1], 8), []
        for step in range(x.shape[0]):
            state = self.cell(x[step], state)
            found.append(self.layer(state))
        return torch.stack(found)


def test_a_loop_over_axis_0_is_captured_for_its_length(no_export):
    model, x = Loop().eval(), torch.randn(6, 3, 5)
    with pytest.warns(UserWarning, match="does other operations for other sizes of axis 0"):
        check(model, x)


def test_no_batch_axis(no_export):
    image = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    with pytest.warns(UserWarning, match="fails for another size of axis 0"):
        check(image, torch.randn(3, 8, 8))
    vector = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    with pytest.warns(UserWarning, match="fails for another size of axis 0"):
        check(vector, torch.randn(6))


def test_several_batch_axes(no_export):
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6), nn.Softmax(0)).eval()
    check(model, torch.randn(4, 3, 2, 6), torch.randn(2, 3, 2, 6), torch.randn(1, 3, 2, 6))


@pytest.mark.parametrize("same", [True, False])
def test_a_transformer_with_the_batch_on_axis_1(same: bool, no_export):
    """Two lengths, equal or not in the example."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Transformer(8, 2, 1, 1, 16)

        def forward(self, both: list[Tensor]) -> Tensor:
            return self.body(*both)

    model = Both().eval()
    given = [torch.randn(4, 3, 8), torch.randn(4 if same else 5, 3, 8)]
    fast = tk.compile(model, None, (given,))
    for one in (given, [torch.randn(7, 3, 8), torch.randn(7 if same else 5, 3, 8)]):
        with torch.no_grad():
            torch.testing.assert_close(fast(one), model(one), atol=1e-4, rtol=1e-4)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)


class Centred(Base):
    def forward(self, x):
        y = self.layer(x)
        return y - y.mean(0) if len(x) > 1 else y


class Doubled(Base):
    def forward(self, x):
        y = self.layer(x)
        return y * 2 if x.shape[0] == 1 else y


class Squeezed(Base):
    def forward(self, x):
        return self.layer(x).squeeze()


class Insists(Base):
    def forward(self, x):
        if x.size(0) < 2:
            raise ValueError("give me more")
        return self.layer(x)


class Exported(Centred):
    """It is not recorded, since it keeps what it made last."""

    def forward(self, x):
        self.last = super().forward(x)
        return self.last


class OnlyKeeps(Base):
    """Not recorded either, but the same for one example."""

    def forward(self, x):
        self.last = self.layer(x)
        return self.last


def true(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).double()(x.double())


def close(found: Any, wanted: torch.Tensor) -> None:
    assert found.shape == wanted.shape
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [Centred, Doubled, Squeezed, Insists, Exported])
def test_one_example_is_refused_by_what_was_made_for_several(kind: type[nn.Module], tmp_path):
    model, x = kind().eval(), torch.randn(4, 8)
    made = tk.compile(model, None, x)
    for fast in (made, tk.engine.load(made.save(tmp_path / "model.tkm"))):
        for examples in (4, 2, 3):
            close(fast(x[:examples]), true(model, x[:examples]))
        with pytest.raises(EngineError, match="1 example, and the model does something else for one"):
            fast(x[:1])


@pytest.mark.parametrize("kind", [Centred, Doubled, Squeezed, Exported])
def test_made_with_one_example_it_is_for_one(kind: type[nn.Module]):
    model, x = kind().eval(), torch.randn(4, 8)
    fast = tk.compile(model, None, x[:1])
    close(fast(x[:1]), true(model, x[:1]))
    with pytest.raises(EngineError, match="captured for"):
        fast(x)
    assert "something else for one example" in capture(model, None, x[:1]).notes[0]


@pytest.mark.parametrize("given", [1, 4])
def test_where_one_is_like_more_any_number_is_taken(given: int):
    model, x = OnlyKeeps().eval(), torch.randn(4, 8)
    fast = tk.compile(model, None, x[:given])
    for examples in (1, 2, 4):
        close(fast(x[:examples]), true(model, x[:examples]))


def test_a_single_number(no_export):
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.expand(2, 4))

    with pytest.warns(UserWarning, match="no leading axis"):
        check(Single().eval(), torch.tensor(0.5), torch.tensor(-2.0))
