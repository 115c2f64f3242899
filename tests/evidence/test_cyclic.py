"""Cyclic training: each cycle written out, its budget, what is shared, and that no verdict rests on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ticketry as tk
from samples import sample
from ticketry.core.mask import Mask
from ticketry.errors import UsageError
from ticketry.evidence.connectivity import stability
from ticketry.evidence.control import LONGER_CONTROLS
from ticketry.evidence.controls import count_cycles, draw_control_mask, train_any_control, train_control
from ticketry.evidence.settings import StabilitySettings
from ticketry.experiments.request import SearchRequest
from ticketry.experiments.search import execute
from ticketry.lab.lab import Lab
from ticketry.lab.search_result import Found, Seeds, search_cost
from ticketry.lab.training.segment import Start
from ticketry.records.schema import as_json
from ticketry_engine.support.seeds import mix_seeds

SEEDS = Seeds(initialisation=1, order=2, mask=3)
K, T = 4, 16
TASK = tk.task("digits")
RECIPE = TASK.recipe.changed(length=f"{T}it", schedule="multistep", milestones=("50%",))


def found_by(lab: Lab, method: str = "iterative", **settings: Any) -> list[Found]:
    chosen: Any = tk.search.method(method)
    return list(chosen.search(lab, TASK, RECIPE, chosen.Settings(rewind=f"{K}it", **settings), SEEDS))


def imp(lab: Lab, **settings: Any) -> list[Found]:
    return found_by(lab, rate=0.5, levels=3, **settings)


def trainings(lab: Lab, control: str, ticket: Found) -> Any:
    return train_any_control(lab, TASK, control, ticket, SEEDS).trainings


@pytest.mark.parametrize("control", sample(LONGER_CONTROLS, 1))
def test_a_chain_is_the_same_training_again_and_again(tmp_path: Path, control: str) -> None:
    """One mask throughout, from the early weights, each cycle from where the one before ended; written out."""
    with tk.Lab(tmp_path / "one") as lab, tk.Lab(tmp_path / "other") as by_hand:
        ticket = imp(lab)[2]
        chain = trainings(lab, control, ticket)
        assert len(chain) == 3  # level 2: dense, and two tickets
        own = lab.store.get_mask(ticket.mask)
        mask: Mask = own if control == "cyclic" else draw_control_mask("shuffled", own, SEEDS)
        state = lab.state(ticket.rewound)
        for number, result in enumerate(chain):
            segment = by_hand.segment(
                TASK,
                start=Start(state=by_hand.store.put_tensors(state)),
                mask=mask,
                first=K,
                order_seed=SEEDS.order if number == 0 else mix_seeds(SEEDS.order, "cycle", number),
                recipe=RECIPE,
            )
            state = by_hand.state(by_hand.train(segment))
            mine = lab.state(result)
            assert all(torch.equal(mine[name], state[name]) for name in state)
            assert result.segment.start.optimizer is None
            for name, kept in mask.items():
                assert not mine[name][~kept].any()
        assert train_control(lab, TASK, RECIPE, control, ticket, SEEDS) == chain[-1]


def test_the_first_cycle_is_the_ticket_s_own_training(tmp_path: Path) -> None:
    """And that of the shuffled control: nothing is trained for it."""
    with tk.Lab(tmp_path) as lab:
        ticket = imp(lab)[2]
        shuffled = train_control(lab, TASK, RECIPE, "shuffled", ticket, SEEDS)
        before = lab.ledger.steps_trained
        assert trainings(lab, "cyclic", ticket)[0] == ticket.result
        assert trainings(lab, "cyclic_random", ticket)[0] == shuffled
        assert lab.ledger.steps_trained - before == 2 * 2 * (T - K)
        trainings(lab, "cyclic", ticket)
        assert lab.ledger.steps_trained - before == 2 * 2 * (T - K)


@pytest.mark.slow
def test_rounds_of_gates_and_masks_over_frozen_weights(tmp_path: Path) -> None:
    with tk.Lab(tmp_path) as lab:
        for ticket in found_by(lab, "continuous", rounds=2, gate_lr=10.0)[1:]:
            assert len(trainings(lab, "cyclic", ticket)) == ticket.level + 1
        for length, count in ((f"{T}it", 2), ("4it", 1)):
            ticket = found_by(lab, "concrete", mask_length=length)[1]
            assert search_cost(ticket) == T + ticket.searched[-1].segment.steps
            assert len(trainings(lab, "cyclic", ticket)) == count


def test_cycles_are_rounded_to_the_nearest(lab: Lab) -> None:
    ticket = imp(lab)[3]
    left = search_cost(ticket) - K
    assert [count_cycles(ticket, n) for n in (left, left // 2, 2 * left, 10 * left, left // 4)] == [1, 2, 1, 1, 4]


@pytest.fixture(scope="module")
def record(lab: Lab) -> dict[str, Any]:
    settings = tk.search.iterative.Settings(rewind=f"{K}it", levels=1)
    run = SearchRequest(
        tk.search.iterative, TASK, settings, RECIPE, replicates=2, controls=("shuffled", *LONGER_CONTROLS)
    )
    return as_json(execute(lab, run))


def test_no_verdict_rests_on_them(record: dict[str, Any]) -> None:
    assert "verdict_error" not in record
    for verdict in record["verdicts"]:
        assert [one["role"] for one in verdict["comparisons"]] == ["dense", "shuffled"]
        assert [one["role"] for one in verdict["beside"]] == list(LONGER_CONTROLS)
        tickets, cyclic = (
            [p["test"]["accuracy"] for p in record["points"] if (p["role"], p["level"]) == (role, verdict["level"])]
            for role in ("ticket", "cyclic")
        )
        beside = verdict["beside"][0]
        assert beside["mean"] == pytest.approx(sum(a - b for a, b in zip(tickets, cyclic, strict=True)) / 2)
        assert beside["steps"] == T + verdict["level"] * (T - K)


def test_a_verification_and_a_stability_analysis_refuse_them(lab: Lab) -> None:
    with pytest.raises(UsageError, match="cyclic is trained for longer"):
        stability(lab, TASK, RECIPE, imp(lab)[1], SEEDS, control="cyclic")
    settings = tk.search.iterative.Settings(rewind=f"{K}it", levels=1)
    request = SearchRequest(tk.search.iterative, TASK, settings, RECIPE, replicates=1, controls=())
    saved = tk.Ticket.load(next(point.ticket for point in execute(lab, request).points if point.role == "ticket"))
    with pytest.raises(UsageError, match="'cyclic' has more training steps than a ticket"):
        tk.evidence.verify(lab, saved, tk.evidence.VerifySettings(controls=("cyclic",)))
    with pytest.raises(UsageError, match="cyclic_random is trained for longer"):
        StabilitySettings(masks=("cyclic_random",))


@pytest.mark.slow
def test_a_ticket_of_final_weights_has_a_control_of_early_ones(tmp_path: Path) -> None:
    with tk.Lab(tmp_path) as lab:
        for settings, span in (({"retrain": "finetune"}, (K, T)), ({"retrain": "restart"}, (0, T))):
            ticket = imp(lab, **settings)[1]
            first, *_ = trainings(lab, "cyclic", ticket)
            assert first.segment.start == Start(state=ticket.rewound.model)
            assert (first.segment.first, first.segment.last) == span
        chosen = tk.search.method("iterative")
        at_end = chosen.Settings(rewind="end", levels=1)
        ticket = list(chosen.search(lab, TASK, RECIPE, at_end, SEEDS))[1]
        chain = trainings(lab, "cyclic", ticket)
        assert [(result.segment.first, result.segment.last) for result in chain] == [(0, T)]
        assert chain[0].segment.start == Start(state=ticket.dense.model)
