"""Gate Decorators as a search: gates built in and masks in bare PyTorch, when and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk
from norms_task import NormsTask
from search.bare import BATCH, SEED, Training
from ticketry.errors import TicketryError
from ticketry.lab.search_result import GRADUAL, trained_steps
from ticketry.lab.training.variants import Penalty
from ticketry.search.decorators import Settings, channel_importance
from ticketry.search.gating.tick import Tick

METHOD = tk.search.decorators
TOTAL = 40
SGD = tk.Recipe(length=f"{TOTAL}it", batch=BATCH, optimizer="sgd", lr=0.05, momentum=0.9, weight_decay=1e-3)
POINTS: dict[str, Any] = {"begin": "10it", "end": "30it", "tick": "4it", "rounds": 3, "tick_lr": 0.01, "strength": 0.01}
CUTS = (14, 22, 30)


def found_by(lab: tk.Lab, **settings: Any) -> list[tk.search.Found]:
    chosen = Settings(**{"density": (0.3,), **POINTS, **settings})
    return METHOD(lab, NormsTask(), chosen, recipe=SGD, seeds=tk.search.Seeds.of(SEED))[0]


class Gate(nn.Module):
    """A norm's output, phi (x + r), and the worth of phi."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.bare = nn.BatchNorm2d(norm.num_features, affine=False)
        self.bare.load_state_dict({k: v for k, v in norm.state_dict().items() if k not in ("weight", "bias")})
        scale = norm.weight.detach().clone()
        self.r = torch.where(scale == 0, 0.0, norm.bias.detach() / scale).view(1, -1, 1, 1)
        self.phi, self.worth = nn.Parameter(scale), torch.zeros(len(scale), dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.phi.view(1, -1, 1, 1) * (self.bare(x) + self.r)

    @torch.no_grad()
    def back(self, norm: nn.BatchNorm2d) -> None:
        state = {**self.bare.state_dict(), "weight": self.phi, "bias": self.phi * self.r.flatten()}
        norm.load_state_dict(state)


class ByHand(Training):
    """One training with ticks and tocks: a masked network of full size, with gates that are built in for each tick."""

    def __init__(self) -> None:
        super().__init__(NormsTask(), SGD)
        self.alive = [torch.ones(8), torch.ones(12)]
        self.worths: list[list[Tensor]] = []

    def train(self, first: int, last: int, strength: float) -> None:
        for step in range(first, last):
            penalty = self.model[1].weight.abs().sum() + self.model[4].weight.abs().sum()
            self.step(step, self.loss(step) + strength * penalty)

    def tick(self, first: int, last: int) -> None:
        norms = {i: self.model[i] for i in (1, 4)}
        gates = {i: Gate(norm) for i, norm in norms.items()}
        for i, gate in gates.items():
            self.model[i] = gate
        trained = [*(gate.phi for gate in gates.values()), self.model[8].weight, self.model[8].bias]
        optimizer = torch.optim.SGD(trained, lr=0.01, momentum=0.9)
        for step in range(first, last):
            self.model.zero_grad()
            self.loss(step).backward()
            for gate, alive in zip(gates.values(), self.alive, strict=True):
                gate.worth += (gate.phi * gate.phi.grad).detach().abs()
                gate.phi.grad *= alive
            self.model[8].weight.grad *= self.alive[1]
            optimizer.step()
        for i, gate in gates.items():
            gate.back(norms[i])
            self.model[i] = norms[i]
        self.worths.append([gate.worth for gate in gates.values()])

    def prune(self, density: float) -> None:
        def count() -> float:
            one, two = (float(alive.sum()) for alive in self.alive)
            return one * 9 + 2 * one + one * two * 9 + 3 * two + two * 10

        target = density * (8 * 9 + 16 + 8 * 12 * 9 + 36 + 120)
        ranked = sorted((float(v), i, j) for i, worth in enumerate(self.worths[-1]) for j, v in enumerate(worth))
        for _, group, channel in ranked:
            before = count()
            if not self.alive[group][channel] or self.alive[group].sum() == 1:
                continue
            if before <= target:
                break
            self.alive[group][channel] = 0
            if target - count() > before - target:
                self.alive[group][channel] = 1
                break
        self.cut(self.keep())

    def keep(self) -> dict[str, Tensor]:
        one, two = (alive.bool() for alive in self.alive)
        return {
            "0.weight": one.view(-1, 1, 1, 1).expand(8, 1, 3, 3),
            **{f"1.{name}": one for name in ("weight", "bias")},
            "3.weight": two.view(-1, 1, 1, 1) & one.view(1, -1, 1, 1).expand(12, 8, 3, 3),
            **dict.fromkeys(("3.bias", "4.weight", "4.bias"), two),
            "8.weight": two.expand(10, 12),
        }


def test_ticks_and_tocks_as_by_hand(tmp_path: Path) -> None:
    hand = ByHand()
    hand.train(0, 10, 0.0)
    masks = []
    for number, (cut, after) in enumerate(zip(CUTS, (18, 26, TOTAL), strict=True), start=1):
        hand.tick(cut - 4, cut)
        hand.prune(0.3 ** (number / 3))
        masks.append(hand.keep())
        hand.train(cut, after, 0.01 if after < TOTAL else 0.0)
    with tk.Lab(tmp_path, precision="fp32") as lab:
        _, ticket = found_by(lab)
        ticks = [each for each in ticket.searched if each.segment.variant(Tick)]
        for tick, worth, keep in zip(ticks, hand.worths, [None, *masks[:-1]], strict=True):
            mine = channel_importance(lab, tick)
            for name, value in zip(("1.weight", "4.weight"), worth, strict=True):
                assert torch.allclose(mine[name], value, rtol=2e-2, atol=1e-4)
                assert keep is None or not mine[name][~keep[name]].any()
        held = [each.segment.mask for each in ticket.searched[2::2]] + [ticket.mask]
        for mask, keep in zip(map(lab.store.get_mask, held), masks, strict=True):
            assert {name: value.tolist() for name, value in mask.items()} == {n: keep[n].tolist() for n in mask}
        state = lab.state(ticket.result)
        for name, value in hand.model.named_parameters():
            assert torch.allclose(state[name], value.detach(), rtol=2e-2, atol=2e-3), name


@pytest.mark.slow
def test_what_is_trained_when(tmp_path: Path) -> None:
    with tk.Lab(tmp_path) as lab:
        dense, *tickets = found_by(lab, density=(0.6, 0.3))
        steps = [(0, 10), (10, 14), (14, 18), (18, 22), (22, 26), (26, 30), (30, 40)]
        for ticket in tickets:
            segments = [each.segment for each in (*ticket.searched, ticket.result)]
            assert [(each.first, each.last) for each in segments] == steps
            assert [each.variant(Tick) is not None for each in segments] == [False, True] * 3 + [False]
            assert [each.first for each in segments if each.variant(Penalty)] == [14, 22]
            assert [each.whole_channels for each in segments] == [False, False] + [True] * 5
            assert (ticket.retrain, ticket.behind, trained_steps(ticket)) == (GRADUAL, 30, TOTAL)
            assert ticket.rewound.model == lab.at(dense.result, 30).model
        assert tickets[0].searched[:2] == tickets[1].searched[:2]  # no mask yet: one tick for all densities
        assert lab.ledger.steps_trained == TOTAL + 4 + 2 * 26


def test_networks_without_norms(tmp_path: Path) -> None:
    with tk.Lab(tmp_path) as lab, pytest.raises(TicketryError, match="no norm with a scale"):
        METHOD(lab, tk.task("digits"), Settings(**POINTS), recipe=SGD)
    assert lab.ledger.segments_trained == 0


def test_a_single_round_ticks_before_the_end(tmp_path: Path) -> None:
    with tk.Lab(tmp_path) as lab:
        ticket = found_by(lab, rounds=1)[1]
        assert [(each.segment.first, each.segment.last) for each in ticket.searched] == [(0, 26), (26, 30)]
