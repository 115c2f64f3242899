"""Training with a penalty as a search: bare PyTorch, what it costs, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk
from norms_task import NormsTask
from samples import sample
from search.bare import BATCH, SEED, Training
from ticketry.lab.search_result import search_cost, trained_steps
from ticketry.lab.training.variants import Penalty
from ticketry.search.regularised import Settings

METHOD = tk.search.regularised
TOTAL, CUT = 30, 14
SGD = tk.Recipe(length=f"{TOTAL}it", batch=BATCH, optimizer="sgd", lr=0.05, momentum=0.9, schedule="cosine")


def found_by(lab: tk.Lab, task: tk.Task, **settings: Any) -> list[tk.search.Found]:
    chosen = Settings(**{"until": f"{CUT}it", "density": (0.4,), **settings})
    return METHOD(lab, task, chosen, recipe=SGD, seeds=tk.search.Seeds.of(SEED))[0]


def defined(kind: str, model: nn.Module) -> Tensor:
    """The penalty as the papers write it, over the whole network."""
    if kind == "l1_scales":
        return model[1].weight.abs().sum() + model[4].weight.abs().sum()
    total = torch.zeros(())
    for w in (p for p in model.parameters() if p.dim() > 1):
        rows, columns = w.flatten(1), w.transpose(0, 1).flatten(1)
        sums = [w.abs().sum()] if kind == "hoyer_square" else [rows.norm(dim=1).sum(), columns.norm(dim=1).sum()]
        total = total + sum(one**2 for one in sums) / (w**2).sum()
    return total


def by_hand(task: tk.Task, kind: str, strength: float) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """State at the cut, final state of a masked network of full size, and what is kept."""
    training, at_cut = Training(task, SGD, TOTAL), {}
    for step in range(TOTAL):
        if step == CUT:
            at_cut = {name: value.clone() for name, value in training.model.state_dict().items()}
            training.cut({name: keep.bool() for name, keep in cut_by_hand(kind, at_cut).items()})
        loss = training.loss(step)
        training.step(step, loss + strength * defined(kind, training.model) if step < CUT else loss)
    return at_cut, training.model.state_dict(), dict(training.mask)


def cut_by_hand(kind: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What stays, as 0 and 1, at a density of 0.4."""
    if kind == "hoyer_square":
        names = ("0.weight", "3.weight", "8.weight")
        sizes = torch.cat([state[name].abs().flatten() for name in names])
        least = sizes.sort(descending=True).values[round(0.4 * len(sizes)) - 1]
        return {name: (state[name].abs() >= least).float() for name in names}
    if kind == "l1_scales":
        worth = [state["1.weight"].abs(), state["4.weight"].abs()]
    else:  # mean square of all weights of a channel
        a, b, c = state["0.weight"], state["3.weight"], state["8.weight"]
        first = (a.square().sum((1, 2, 3)) + b.square().sum((0, 2, 3))) / (9 + 9 * 12)
        second = (b.square().sum((1, 2, 3)) + c.square().sum(0)) / (9 * 8 + 10)
        worth = [first, second]
    alive = [torch.ones(8), torch.ones(12)]

    def count() -> float:
        one, two = alive[0].sum(), alive[1].sum()
        return float(one * 9 + 2 * one + one * two * 9 + 3 * two + two * 10)

    whole, ranked = count(), sorted((float(v), i, j) for i, group in enumerate(worth) for j, v in enumerate(group))
    for _, group, channel in ranked:
        before = count()
        if alive[group].sum() == 1 or before <= 0.4 * whole:
            continue
        alive[group][channel] = 0
        if 0.4 * whole - count() > before - 0.4 * whole:
            alive[group][channel] = 1
            break
    one, two = alive
    return {
        "0.weight": one.view(-1, 1, 1, 1).expand(8, 1, 3, 3),
        **{f"1.{name}": one for name in ("weight", "bias")},
        "3.weight": two.view(-1, 1, 1, 1) * one.view(1, -1, 1, 1).expand(12, 8, 3, 3),
        **dict.fromkeys(("3.bias", "4.weight", "4.bias"), two),
        "8.weight": two.expand(10, 12),
    }


@pytest.mark.parametrize("kind", sample(["l1_scales", "group_hoyer_square", "hoyer_square"], 2))
def test_as_in_a_bare_loop(tmp_path: Path, kind: str) -> None:
    task, strength = NormsTask(), 1e-2 if kind == "l1_scales" else 1e-3
    with tk.Lab(tmp_path, precision="fp32") as lab:
        dense, ticket = found_by(lab, task, penalty=kind, strength=strength)
        at_cut, final, keep = by_hand(task, kind, strength)
        state, mask = lab.state(ticket.rewound), lab.store.get_mask(ticket.mask)
        assert all(torch.allclose(state[name], value, rtol=1e-3, atol=1e-5) for name, value in at_cut.items())
        assert {name: value.tolist() for name, value in mask.items()} == {name: keep[name].tolist() for name in mask}
        assert mask.density == pytest.approx(0.4, abs=0.05)
        mine = lab.state(ticket.result)
        for name, parameter in task.build().named_parameters():
            assert torch.allclose(mine[name], final[name], rtol=2e-2, atol=2e-3), name
            assert mine[name].shape == parameter.shape
        assert ticket.result.segment.whole_channels == (kind != "hoyer_square")
        assert ticket.result.segment.variant(Penalty) is None
        assert dense.result.segment.variant(Penalty) is None
        assert lab.ledger.steps_trained == TOTAL + TOTAL
        assert (trained_steps(ticket), search_cost(ticket), ticket.behind) == (TOTAL, TOTAL, CUT)


def test_all_densities_share_the_training_with_the_penalty(tmp_path: Path) -> None:
    with tk.Lab(tmp_path) as lab:
        found = found_by(lab, tk.task("digits"), density=(0.3, 0.1))
        assert found[1].searched == found[2].searched
        assert lab.ledger.steps_trained == TOTAL + CUT + 2 * (TOTAL - CUT)
