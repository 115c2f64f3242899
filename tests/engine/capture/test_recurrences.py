"""Recurrences that a model writes step by step: one node where they are just that, and the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor, nn

from engine.models import Of, captured, ops
from samples import sample
from ticketry_engine.capture import capture
from ticketry_engine.compiled import Compiled

T, C, S = 4, 3, 2


def _states(decay: Tensor, added: Tensor, axis: int = 2, start: Tensor | None = None) -> list[Tensor]:
    state, states = torch.zeros_like(added.select(axis, 0)) if start is None else start, []
    for t in range(added.shape[axis]):
        state = decay.select(axis, t) * state + added.select(axis, t)
        states.append(state)
    return states


def _written_out(step: Callable[..., Tensor], order: Iterable[int] = range(T)) -> Callable[..., Tensor]:
    """States by another step, of the state before, the place, decay and what is added, or in another order."""

    def function(decay: Tensor, added: Tensor, read: Tensor) -> Tensor:
        state, states = torch.zeros_like(added[:, :, 0]), []
        for t in order:
            state = step(state, t, decay, added)
            states.append(state)
        return torch.stack(states, 1)

    return function


def _add(state: Tensor, t: int, decay: Tensor, added: Tensor) -> Tensor:
    return decay[:, :, t] * state + added[:, :, t]


def _from(start: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda decay, added, read: torch.stack(_states(decay, added, 2, start(added)), 1)


def _selective(decay: Tensor, added: Tensor, read: Tensor) -> Tensor:
    """Mamba's, as transformers writes it: [N, C, T, S] twice and [N, T, S] to [N, C, T]."""
    made = [torch.matmul(state, read[:, t].unsqueeze(-1))[:, :, 0] for t, state in enumerate(_states(decay, added))]
    return torch.stack(made, -1)


SCANS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], int]] = {
    "selective": (_selective, 1),
    "twice": (lambda a, b, c: _selective(a, b, c) + _selective(b, a, c), 2),
    "states behind the batch": (lambda a, b, c: torch.stack(_states(a, b), 1), 1),
    "states where they were": (lambda a, b, c: torch.stack(_states(a, b), 2), 1),
    "states at the end": (lambda a, b, c: torch.stack(_states(a, b), -1), 1),
    "along another axis": (lambda a, b, c: torch.stack(_states(a, b, 3), 1), 1),
    "from zeros of a size": (_from(lambda b: torch.zeros(len(b), C, S, dtype=b.dtype)), 1),
    "from a constant": (_from(lambda b: torch.linspace(0, 1, S, dtype=b.dtype).expand(len(b), C, S)), 1),
    "from a value": (_from(lambda b: b[:, :, 2] * 3), 1),
    "from an entry": (_from(lambda b: b[:, :, 0]), 1),
    "the last state": (lambda a, b, c: _states(a, b)[-1], 1),
    "read, and the last state": (lambda a, b, c: _selective(a, b, c) * _states(a, b)[-1].sum(-1)[..., None], 2),
    "the sum the other way round": (_written_out(lambda s, t, a, b: b[:, :, t] + s * a[:, :, t]), 1),
    "by a gate of their own": (lambda a, b, c: torch.stack(_states(b, b), 1), 1),
    "backwards": (_written_out(_add, order=range(T)[::-1]), 0),
    "a part of the axis": (_written_out(_add, order=range(1, T)), 0),
    "factors of the step before": (_written_out(lambda s, t, a, b: a[:, :, t - 1] * s + b[:, :, t]), 0),
}


def _made(m: Of, x: Tensor, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
    decay, added = (layer(x).view(-1, C, T, S) for layer in (m.decay, m.added))
    return function(decay.sigmoid(), added, m.read(x).view(-1, T, S))


def _model(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Of:
    sizes = {"decay": C * T * S, "added": C * T * S, "read": T * S}
    return Of(lambda m, x: _made(m, x, function), **{name: nn.Linear(6, size) for name, size in sizes.items()})


@pytest.mark.parametrize("name", sample(SCANS, [*SCANS][::2]))
def test_recurrences(name: str) -> None:
    function, count = SCANS[name]
    graph = captured(_model(function), torch.randn(2, 6))
    assert ops(graph).count("scan") == count
    if count:  # no step is left
        assert ops(graph).count("aten.matmul.default") <= count
        assert ops(graph).count("add") <= 1


def test_a_compiled_selective_scan():
    model, x = _model(_selective).eval(), torch.randn(7, 6)
    fast = Compiled(capture(model, None, x), threads=1)
    with torch.no_grad():
        assert torch.allclose(fast(x), model(x), rtol=1e-5, atol=1e-6)
    (scan,) = [layer for layer in fast.layers() if layer.kind == "scan"]
    assert (scan.where, scan.why) == ("torch", "no kernel for scan")


def test_infinite_states_are_those_of_torch():
    """0 * inf in the first step too: the state before it is part of it."""
    model, x = _model(lambda a, b, c: torch.stack(_states(a / (a - a), b), 1)).eval(), torch.randn(2, 6)
    fast = Compiled(capture(model, None, x), threads=1)
    with torch.no_grad():
        wanted = model(x)
        assert bool(wanted.isnan().all())
        assert bool(fast(x).isnan().all())


@pytest.mark.parametrize(("right_entry", "count"), [(lambda t: t, 1), (lambda t: T - 1 - t, T)])
def test_products_of_entries_in_one_order_are_one_product(right_entry: Callable[[int], int], count: int) -> None:
    def each(m: Of, x: Tensor) -> Tensor:
        left, right = m.left(x).view(-1, T, C, S), m.right(x).view(-1, T, S, 2)
        return torch.stack([left[:, t] @ right[:, right_entry(t)] for t in range(T)], 2)

    model = Of(each, left=nn.Linear(6, T * C * S), right=nn.Linear(6, T * S * 2))
    assert ops(captured(model, torch.randn(2, 6))).count("aten.matmul.default") == count
