"""Searches by gates, Continuous Sparsification and ISS: rounds, members side by side, what they cost."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import ticketry as tk
from samples import sample
from ticketry.errors import LayerCollapseError
from ticketry.lab.search_result import trained_steps
from ticketry.search import continuous, stochastic
from ticketry.search.gating import search as rounds
from ticketry.search.gating.gating import Gating, load_gates, weights_times_hard_gates

CONTINUOUS, STOCHASTIC = tk.search.continuous, tk.search.stochastic
TOTAL = 50


def found_by(lab: tk.Lab, method: Any = CONTINUOUS, task: Any = None, length: str = f"{TOTAL}it", **settings: Any):
    task = task or tk.task("digits")
    chosen = method.Settings(**{"rewind": "10%", "rounds": 2, "gate_lr": 10.0, **settings})
    return method(lab, task, chosen, recipe=task.recipe.changed(length=length))[0]


def test_members_are_every_s0_with_every_penalty() -> None:
    settings = continuous.Settings(init=(-0.1, 0.2), penalty=(1e-7, 1e-8))
    assert settings.inits_and_penalties == ((0.2, 1e-8), (0.2, 1e-7), (-0.1, 1e-8), (-0.1, 1e-7))
    assert len(CONTINUOUS.tickets(settings)) == 4 * 5


def test_a_ticket_has_the_early_weights_of_the_first_round(shared_store: Path) -> None:
    with tk.Lab(shared_store) as lab:
        found = found_by(lab, rewind="10%", rounds=2)
        for item in found[1:]:
            first = item.searched[0]
            assert item.rewound.model == lab.at(first, TOTAL // 10).model
            assert item.result.segment.start.state == item.rewound.model
            assert (item.result.segment.first, item.result.segment.last) == (TOTAL // 10, TOTAL)
        assert found[0].rewound.model != found[1].rewound.model  # gates have moved by then
        at_start = found_by(lab, rewind="0", rounds=1)
    assert at_start[0].rewound.model == at_start[1].rewound.model


def test_fine_tuning_begins_with_the_hard_network(shared_store: Path) -> None:
    """Weights at the end of the round times hard gates: it measures what the round's result says."""
    task = tk.task("digits")
    with tk.Lab(shared_store) as lab:
        found = found_by(lab, rounds=1, retrain="finetune", task=task)[1]
        round_ = found.searched[-1]
        assert found.result.segment.start.state == weights_times_hard_gates(lab, round_)
        state = lab.store.get_tensors(found.result.segment.start.state)
    for name, kept in lab.store.get_mask(found.mask).items():
        assert not state[name][~kept].any()
    model = task.build().eval()
    model.load_state_dict(state)
    validation = task.load().validation
    right = (model(task.prepare(validation.inputs)).argmax(1) == validation.targets).double().mean()
    assert 100 * float(right) == pytest.approx(round_.metrics["validation"]["accuracy"], abs=1e-6)
    assert trained_steps(found) == TOTAL + found.result.segment.steps
    with tk.Lab(shared_store) as lab:
        bare = found_by(lab, rounds=1, retrain="none")[1]
    assert (bare.result.segment.steps, bare.result.segment.start) == (0, found.result.segment.start)
    assert bare.result.metrics == bare.searched[-1].metrics


def test_weights_between_rounds(shared_store: Path) -> None:
    with tk.Lab(shared_store) as lab:
        on = found_by(lab, retrain="none")
        back = found_by(lab, retrain="none", weights_between="rewind")
        first, second = back[-1].searched
        assert on[-1].searched[0].segment == first.segment
        assert on[-1].searched[1].segment.start.state == first.model
        assert second.segment.start.state == lab.at(first, TOTAL // 10).model
        assert second.segment.variant(Gating).earlier == first.variants["gates"]
        assert on[-1].mask != back[-1].mask
    assert [trained_steps(item) for item in on[1:]] == [TOTAL, 2 * TOTAL]
    assert [trained_steps(item) for item in back[1:]] == [TOTAL, TOTAL // 10 + TOTAL]


def test_search_steps_and_longer_searches_that_go_on_from_shorter_ones(tmp_path: Path) -> None:
    with tk.Lab(tmp_path) as lab:
        found_by(lab, rounds=1)
        assert lab.ledger.steps_trained == TOTAL + TOTAL + TOTAL - TOTAL // 10
        found = found_by(lab, rounds=2)
        assert lab.ledger.steps_trained == TOTAL + 2 * TOTAL + 2 * (TOTAL - TOTAL // 10)
    assert [item.search_steps for item in found] == [0, TOTAL, 2 * TOTAL]
    assert [trained_steps(item) for item in found] == [TOTAL] * 3


def test_continuous_gates_do_not_ask_for_the_seed_of_masks(shared_store: Path) -> None:
    with tk.Lab(shared_store) as lab:
        task = tk.task("digits")
        settings = continuous.Settings(rewind="0", rounds=1, gate_lr=10.0)
        seeds = [tk.search.Seeds(mask=number) for number in (0, 1)]
        recipe = task.recipe.changed(length="40it")
        one, other = (CONTINUOUS(lab, task, settings, recipe=recipe, seeds=each)[0] for each in seeds)
        assert one[1].result.model == other[1].result.model
        settings = stochastic.Settings(rewind="0", rounds=1, gate_lr=10.0)
        one, other = (STOCHASTIC(lab, task, settings, recipe=recipe, seeds=each)[0] for each in seeds)
        assert one[1].mask != other[1].mask


@pytest.mark.parametrize("method", sample([CONTINUOUS, STOCHASTIC], 1, ids=["continuous", "stochastic"]))
@pytest.mark.parametrize("density", sample([0.1, 0.5, 0.03], 1))
def test_a_density_is_hit(tmp_path: Path, method: Any, density: float) -> None:
    with tk.Lab(tmp_path) as lab:
        found = found_by(lab, method, rounds=2, density=density)
        masks = [lab.store.get_mask(item.mask) for item in found[1:]]
        assert lab.ledger.steps_trained == (
            TOTAL + found[-1].search_steps + sum(item.result.segment.steps for item in found[1:])
        )
        again = lab.ledger.steps_trained
        found_by(lab, method, rounds=2, density=density)
        assert lab.ledger.steps_trained == again
    assert masks[-1].density == pytest.approx(density, rel=0.1)
    assert all(mask.density >= 0.9 * density for mask in masks)
    assert len(masks) == 2


@pytest.mark.parametrize("rewind", ["10%"])
def test_where_no_s0_leads_to_a_density_the_nearest_gates_are_cut_by_their_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rewind: str
) -> None:
    """The mask is that of the largest s of the nearest of all tries, chosen here by a sort of its own."""
    monkeypatch.setattr(rounds, "_MOST_TRIES", 2)
    monkeypatch.setattr(rounds, "TOLERANCE", 1e-6)
    with tk.Lab(tmp_path) as lab:
        (_, ticket) = found_by(lab, density=0.2, rounds=1, rewind=rewind, length="40it")
        tries = [float(one.record["gating"]["density"]) for one in ticket.searched]
        mask = lab.store.get_mask(ticket.mask)
        logits = {name: s.detach() for name, s in load_gates(lab, ticket.searched[-1]).by_weight().items()}
    assert len(tries) == 2
    assert abs(math.log(tries[-1] / 0.2)) <= abs(math.log(tries[0] / 0.2))
    every = torch.cat([logits[name].flatten() for name in mask])
    kept = torch.zeros(len(every), dtype=torch.bool)
    kept[torch.sort(every, descending=True, stable=True).indices[: round(0.2 * len(every))]] = True
    assert torch.equal(torch.cat([mask[name].flatten() for name in mask]), kept)
    assert ticket.cut_to == 0.2


def test_a_penalty_that_empties_a_layer_is_told_with_when(tmp_path: Path) -> None:
    with tk.Lab(tmp_path) as lab, pytest.raises(LayerCollapseError) as caught:
        found_by(lab, rounds=1, penalty=(1.0,), rewind="0")
    told = str(caught.value)
    assert "layer collapse" in told
    assert "smaller penalty" in told
    assert "'fc1.weight' has been empty from step " in told
    assert f" of {TOTAL} (epoch " in told
    assert "of round 1 on" in told
