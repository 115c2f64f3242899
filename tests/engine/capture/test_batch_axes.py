"""The batch first, on axis 1, on several axes, or nowhere; models that treat one example otherwise than several."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk
from engine.models import Of, assert_exact
from samples import sample
from ticketry.errors import EngineError
from ticketry_engine.capture import capture, pipeline


@pytest.fixture
def no_export(monkeypatch):
    """torch.export must not be needed."""
    monkeypatch.setattr(pipeline, "export", None)


def check(model: nn.Module, x: Tensor, *others: Tensor) -> None:
    mask = tk.prune(model, density=0.6, distribution="layerwise")
    fast = tk.compile(model, mask, x)
    assert_exact(fast, mask.apply_(model), x, *others, atol=1e-4)


RECURRENT = [
    (nn.GRU(5, 8), 8),
    (nn.GRU(5, 8, batch_first=True), 8),
    (nn.LSTM(5, 8, num_layers=2, bidirectional=True), 16),
    (nn.LSTM(5, 8, proj_size=3), 3),
    (nn.RNN(5, 8, nonlinearity="relu"), 8),
]


@pytest.mark.parametrize(("layer", "width"), sample(RECURRENT, [RECURRENT[0], RECURRENT[2], RECURRENT[4]]))
def test_recurrent_layers_take_no_steps(layer: nn.Module, width: int, no_export):
    """For any number of steps, and no longer for thousands of them."""
    model = Of(lambda m, x: m.last(m.layer(x)[0]), layer=layer, last=nn.Linear(width, 2)).eval()
    check(model, torch.randn(6, 3, 5), torch.randn(9, 3, 5))
    assert len(capture(model, None, torch.randn(6, 3, 5)).nodes) < 20


def test_a_loop_over_axis_0_is_captured_for_its_length(no_export):
    def loop(m: Of, x: Tensor) -> Tensor:
        state, found = x.new_zeros(x.shape[1], 8), []
        for step in range(x.shape[0]):
            state = m.cell(x[step], state)
            found.append(m.layer(state))
        return torch.stack(found)

    with pytest.warns(UserWarning, match="does other operations for other sizes of axis 0"):
        check(Of(loop, cell=nn.GRUCell(5, 8), layer=nn.Linear(8, 2)).eval(), torch.randn(6, 3, 5))


@pytest.mark.parametrize(
    ("first", "last", "shape"),
    [(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 3), (3, 8, 8)), (nn.Linear(6, 8), nn.Linear(8, 2), (6,))],
)
def test_no_batch_axis(first: nn.Module, last: nn.Module, shape: tuple[int, ...], no_export):
    with pytest.warns(UserWarning, match="fails for another size of axis 0"):
        check(nn.Sequential(first, nn.ReLU(), last).eval(), torch.randn(shape))


def test_a_single_number(no_export):
    with pytest.warns(UserWarning, match="no leading axis"):
        check(Of(lambda m, x: m.layer(x.expand(2, 4)), layer=nn.Linear(4, 3)), torch.tensor(0.5), torch.tensor(-2.0))


def test_several_batch_axes(no_export):
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6), nn.Softmax(0)).eval()
    check(model, torch.randn(4, 3, 2, 6), torch.randn(2, 3, 2, 6), torch.randn(1, 3, 2, 6))


@pytest.mark.parametrize("same", [True, False])
def test_a_transformer_with_the_batch_on_axis_1(same: bool, no_export):
    """Two lengths, equal or not in the example."""
    model = Of(lambda m, both: m.body(*both), body=nn.Transformer(8, 2, 1, 1, 16)).eval()
    given = [torch.randn(4, 3, 8), torch.randn(4 if same else 5, 3, 8)]
    fast = tk.compile(model, None, (given,))
    assert_exact(fast, model, given, [torch.randn(7, 3, 8), torch.randn(7 if same else 5, 3, 8)], atol=1e-4)


def centred(m: Of, x: Tensor) -> Tensor:
    y = m.layer(x)
    return y - y.mean(0) if len(x) > 1 else y


def insists(m: Of, x: Tensor) -> Tensor:
    if x.size(0) < 2:
        raise ValueError("give me more")
    return m.layer(x)


def exported(m: Of, x: Tensor) -> Tensor:
    """It is not recorded, since it keeps what it made last."""
    m.last = centred(m, x)
    return m.last


def only_keeps(m: Of, x: Tensor) -> Tensor:
    """Not recorded either, but the same for one example."""
    m.last = m.layer(x)
    return m.last


SEVERAL: dict[str, Any] = {
    "centred": centred,
    "doubled": lambda m, x: m.layer(x) * (2 if x.shape[0] == 1 else 1),
    "squeezed": lambda m, x: m.layer(x).squeeze(),
    "exported": exported,
}
"""Functions that do something else for one example."""


@pytest.mark.parametrize("function", [*SEVERAL.values(), insists], ids=[*SEVERAL, "insists"])
def test_one_example_is_refused_by_what_was_made_for_several(function: Any, tmp_path):
    model, x = Of(function, layer=nn.Linear(8, 8)).eval(), torch.randn(4, 8)
    made = tk.compile(model, None, x)
    for fast in (made, tk.engine.load(made.save(tmp_path / "model.tkm"))):
        assert_exact(fast, model, x, x[:2], x[:3], rtol=1e-5)
        with pytest.raises(EngineError, match="1 example, and the model does something else for one"):
            fast(x[:1])


@pytest.mark.parametrize("name", SEVERAL)
def test_made_with_one_example_it_is_for_one(name: str):
    model, x = Of(SEVERAL[name], layer=nn.Linear(8, 8)).eval(), torch.randn(4, 8)
    fast = tk.compile(model, None, x[:1])
    assert_exact(fast, model, x[:1], rtol=1e-5)
    with pytest.raises(EngineError, match="captured for"):
        fast(x)
    assert "something else for one example" in capture(model, None, x[:1]).notes[0]


@pytest.mark.parametrize("given", [1, 4])
def test_where_one_is_like_more_any_number_is_taken(given: int):
    model, x = Of(only_keeps, layer=nn.Linear(8, 8)).eval(), torch.randn(4, 8)
    assert_exact(tk.compile(model, None, x[:given]), model, x[:1], x[:2], x, rtol=1e-5)
