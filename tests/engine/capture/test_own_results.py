"""Whoever calls a compiled model may write to what it gives, as with the model itself."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk
from engine.models import Of, ops
from ticketry.errors import CaptureError, EngineError
from ticketry_engine.capture import capture
from ticketry_engine.compiled import load


def net(function: Callable[[Tensor, Tensor], Any]) -> nn.Module:
    """A model that is a function of its input and of a layer's output."""
    torch.manual_seed(0)
    return Of(lambda m, x: function(x, m.layer(x)), layer=nn.Linear(8, 8)).eval()


RESULTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "zeros for each example": lambda x, y: (y, torch.zeros(x.shape[0], 4)),
    "positions": lambda x, y: (y, torch.arange(4).expand(x.shape[0], 4).clone()),
    "a copy of the input": lambda x, y: (x.clone(), x * 1),
    "a result and its copy": lambda x, y: {"y": y, "more": [y.clone(), y[:, :3] + 0]},
    "a copy of a part": lambda x, y: (y, y[:, 2:5].clone()),
    "a part of a copy": lambda x, y: (x, y, x.clone().view(-1, 2, 4)),
    "parts, which are views": lambda x, y: y.chunk(2, 1),
    "the input itself": lambda x, y: (x, y, y),
}


def tensors(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    return [leaf for part in (tree.values() if isinstance(tree, dict) else tree) for leaf in tensors(part)]


@pytest.mark.parametrize("name", RESULTS)
def test_writing_to_one_result_changes_what_it_changes_in_torch(name: str) -> None:
    model, x = net(RESULTS[name]), torch.randn(3, 8)
    fast = tk.compile(model, None, x)
    with torch.no_grad():
        for index in range(len(tensors(model(x)))):
            given = [x.clone() for _ in range(2)]
            found = [tensors(run(own)) for run, own in zip((model, fast), given, strict=True)]
            for made in found:
                made[index].add_(1)
            torch.testing.assert_close([given[1], *found[1]], [given[0], *found[0]])
            torch.testing.assert_close(tensors(fast(x)), tensors(model(x)))


class Both(NamedTuple):
    one: Tensor
    two: tuple[Tensor, int]


@pytest.mark.parametrize("name", ["NamedTuple", "max"])
def test_a_tuple_with_names_is_unpacked_and_read_by_name(name: str, tmp_path: Path) -> None:
    results = {"NamedTuple": lambda x, y: Both(y, (x, 3)), "max": lambda x, y: y.max(1)}
    model, x = net(results[name]), torch.randn(3, 8)
    fast = tk.compile(model, None, x)
    fast.save(tmp_path / "model.tk")
    with torch.no_grad():
        wanted = model(x)
    for made in (fast(x), load(tmp_path / "model.tk")(x), pickle.loads(pickle.dumps(fast(x)))):
        one, two = made
        torch.testing.assert_close((one, two), tuple(wanted))
        assert isinstance(made, tuple)
        for field, value in zip(getattr(wanted, "_fields", type(wanted).__match_args__), (one, two), strict=True):
            assert getattr(made, field) is value
        with pytest.raises(AttributeError, match="the output has no 'three'; it has"):
            _ = made.three


def test_dicts_of_whole_numbers_have_them_as_keys(tmp_path: Path) -> None:
    """Levels of a pyramid, layers of a probe: as arguments too, and after a file."""

    def levels(m: Of, given: dict[int, Tensor]) -> dict[int, Any]:
        return {4: m.layer(given[-1]), 0: {"0": given[2] + 1}}

    torch.manual_seed(0)
    model, x = Of(levels, layer=nn.Linear(8, 8)).eval(), {-1: torch.randn(3, 8), 2: torch.randn(3, 8)}
    fast = tk.compile(model, None, (x,))
    fast.save(tmp_path / "model.tk")
    with torch.no_grad():
        wanted = model(x)
    for made in (fast(x), load(tmp_path / "model.tk")(x)):
        assert list(made) == [4, 0]
        assert list(made[0]) == ["0"]
        torch.testing.assert_close(made, wanted)
    with pytest.raises(EngineError, match=r"not a mapping of \[-1, 2\] as when captured"):
        fast({"-1": x[-1], "2": x[2]})


def test_keys_of_several_kinds_are_refused() -> None:
    for keys in ((1, "1"), (("a", "b"),), (True,)):
        with pytest.raises(CaptureError, match="a dict of the inputs or outputs has the keys"):
            tk.compile(net(lambda x, y, keys=keys: dict.fromkeys(keys, y)), None, torch.randn(3, 8))


def test_what_is_its_own_is_not_copied() -> None:
    model = net(lambda x, y: (y.relu(), (y * 2).flatten(1), nn.functional.dropout(x, 0.1, False)))
    assert "clone" not in str(ops(capture(model, None, torch.randn(3, 8))))
