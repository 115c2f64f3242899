"""In-place operations: what the captured graph computes is what the model does, whoever sees the memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from interpreter import Program
from samples import sample
from ticketry.errors import CaptureError
from ticketry_engine.capture import capture
from ticketry_engine.capture.tracing.exported_program import functional
from ticketry_engine.capture.tracing.side_effects import is_in_place
from ticketry_engine.capture.tracing.torch_export import Arguments, export


class Of(nn.Module):
    """A model that is a function, with one weight."""

    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> object:
        return self.function(x * self.factor)


def plain(x: Tensor) -> Tensor:
    return x.relu_().add_(1) + x


def on_a_view(x: Tensor) -> Tensor:
    x[:, 1].mul_(3)
    return x + 1


def view_read_afterwards(x: Tensor) -> Tensor:
    seen = x[:, :2]
    x.add_(1)
    return seen * x[:, :2]


def base_read_no_more(x: Tensor) -> Tensor:
    part = x[:, :2]
    part += 1
    return part.relu_()


def through_dropout(x: Tensor) -> Tensor:
    same = nn.functional.dropout(x, 0.5, training=False)
    same.relu_()
    return x + same


def view_of_the_changed(x: Tensor) -> Tensor:
    x.relu_()
    y = x.view(-1)
    y.add_(1)
    return x + y.view_as(x)


def split_and_changed(x: Tensor) -> Tensor:
    one, other = x.chunk(2, 1)
    one.mul_(2)
    return torch.cat([one, other, x], 1)


def index_put(x: Tensor) -> Tensor:
    x[:, 0, 0] = 7
    x.fill_diagonal_(0) if x.dim() == 2 else None
    return x


def copied_into(x: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, 1:] = x[:, :-1]
    return out


CASES = [
    *(plain, on_a_view, view_read_afterwards, base_read_no_more, through_dropout, view_of_the_changed),
    *(split_and_changed, index_put, copied_into),
]


@pytest.mark.parametrize("function", sample(CASES, 4))
def test_in_place(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(3, 4, 5)
    model = Of(function)
    made = Program(capture(model, None, x))(torch.cat([x, x]))
    with torch.no_grad():
        assert torch.equal(made, model(torch.cat([x, x])))


@pytest.mark.parametrize("function", [plain, base_read_no_more])
def test_no_second_tracing_where_nobody_sees_the_memory(
    function: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = export(Of(function), Arguments.of(torch.randn(2, 4)), dynamic_batch=True).program
    assert any(is_in_place(one) for one in program.graph.nodes)
    monkeypatch.setattr(type(program), "run_decompositions", None)
    assert not any(is_in_place(one) for one in functional(program).graph.nodes)


def test_writes_past_autograd_are_refused_by_name():
    def function(x: Tensor) -> Tensor:
        y = x.relu()
        y.data.mul_(2.0)
        return y + x

    with pytest.raises(CaptureError, match=r"writes to its own tensors.*compute such values anew"):
        capture(Of(function), None, torch.randn(2, 4))


def test_a_model_that_changes_its_input_is_refused():
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu_() + 1

    with pytest.raises(CaptureError, match=r"changes its input 'x' in place.*x = x\.clone\(\)"):
        capture(Model(), None, torch.randn(2, 3))


def test_a_model_with_a_memory_is_refused():
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            return x * self.calls

    with pytest.raises(CaptureError, match="writes to 'calls'"):
        capture(Model(), None, torch.randn(2, 3))
