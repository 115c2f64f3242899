"""Scores that look at data, of a model that two processes train: as one process with the batches of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import ticketry as tk
from gloo_processes import run_ranks
from ticketry.core.devices import synchronise_norms

FIRST_ORDER = ("snip", "taylor", "fisher", "kfac")
SECOND_ORDER = ("crop", "grasp")


def network(norms: bool = False) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6) if norms else nn.Identity()]
    return nn.Sequential(*layers, nn.Tanh(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(96, 4)).double()


def batches(rank: int | None = None) -> list[tuple[Tensor, Tensor]]:
    """Two of eight examples, or a rank's half of each."""
    draw = torch.Generator().manual_seed(1)
    whole = [(torch.randn(8, 2, 6, 6, generator=draw).double(), torch.arange(8) % 4) for _ in range(2)]
    return whole if rank is None else [(x[rank::2], y[rank::2]) for x, y in whole]


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def scores(model: nn.Module, names: tuple[str, ...], seen: list[tuple[Tensor, Tensor]]) -> dict[str, dict[str, Tensor]]:
    return {name: getattr(tk.score, name)(model, tk.scope(model), batches=seen, loss=loss) for name in names}


def in_two(rank: int, folder: Path) -> dict[str, Any]:
    plain = DistributedDataParallel(network())
    found: dict[str, Any] = {"plain": scores(plain, FIRST_ORDER + SECOND_ORDER, batches(rank))}
    normed = DistributedDataParallel(synchronise_norms(network(norms=True)))
    found["normed"] = scores(normed, ("snip",), batches(rank))
    found["masks"] = {
        name: dict(tk.prune(plain, 0.3, score=name, batches=batches(rank), loss=loss, iterations=2))
        for name in ("snip", "crop")
    }
    loss(plain, batches(rank)[0]).backward()  # it trains on as before
    found["gradient"] = plain.module[0].weight.grad
    return found


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max() / other[name].abs().max()) for name in other)


@pytest.mark.slow
def test_scores_are_those_of_all_batches(tmp_path):
    found = run_ranks(in_two, tmp_path)
    halves = [half for pair in zip(batches(0), batches(1), strict=True) for half in pair]
    plain, normed = network(), network(norms=True)
    for rank in found:
        for name in ("snip", *SECOND_ORDER):  # the mean gradient: that of the global batches
            assert apart(rank["plain"][name], scores(plain, (name,), batches())[name]) <= 1e-9, name
        # of each batch by itself, whose number is that of all processes
        for name in ("taylor", "fisher", "kfac"):
            assert apart(rank["plain"][name], scores(plain, (name,), halves)[name]) <= 1e-9, name
        assert apart(rank["normed"]["snip"], scores(normed, ("snip",), batches())["snip"]) <= 1e-9
        for name, mask in rank["masks"].items():
            expected = tk.prune(plain, 0.3, score=name, batches=batches(), loss=loss, iterations=2)
            assert all(torch.equal(mask[key], kept) for key, kept in expected.items())
        assert torch.equal(rank["gradient"], found[0]["gradient"])
        assert rank["gradient"].any()
