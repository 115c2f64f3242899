"""An argument that a call leaves out is what the model's own forward takes it for, or an error."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import ticketry as tk
from ticketry.errors import EngineError

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x, double=True, scale=3.0, *, limit=float("inf"), bias=None, names=("a",)):
        y = self.layer(x) * (2 if double else 1)
        y = y if scale is None else y * scale
        y = y if bias is None else y + bias
        return y.clamp(max=limit) * len(names or ())


def compiled(example: Any, tmp_path: Any = None) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = Scaled().eval()
    fast = tk.compile(model, None, example)
    return model, fast if tmp_path is None else tk.engine.load(fast.save(tmp_path / "model.tkm"))


def check(model: nn.Module, fast: Any, *args: Any, **kwargs: Any) -> None:
    with torch.no_grad():
        wanted = model.double()(*(one.double() if isinstance(one, torch.Tensor) else one for one in args), **kwargs)
    torch.testing.assert_close(fast(*args, **kwargs).double(), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("example", [(X, False), {"x": X, "double": False}])
def test_an_argument_that_the_example_gave_may_not_be_left_out(example: Any, tmp_path):
    model, fast = compiled(example, tmp_path)
    call = {"x": X} if isinstance(example, dict) else {}
    args = () if call else (X,)
    torch.testing.assert_close(
        fast(*args, **call, double=False).double(), model.double()(X.double(), double=False), atol=1e-5, rtol=1e-5
    )
    with pytest.raises(EngineError, match="'double' is left out, but the model was captured with False"):
        fast(*args, **call)


def test_an_argument_that_the_example_left_out_is_the_default(tmp_path):
    model, fast = compiled(X, tmp_path)
    check(model, fast, X)
    check(model, fast, X, scale=3.0, bias=None, limit=float("inf"), double=True)
    for name, value in {"scale": None, "bias": 1.0, "names": None}.items():
        with pytest.raises(EngineError, match=f"'{name}' was not given when the model was captured: compile it with"):
            fast(X, **{name: value})
    _, fast = compiled((X, True, 3.0))
    check(model, fast, X)
