"""How many more seeds are asked for: the slowest of the questions that are open, each by the power of its own test."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import numpy as np
import pytest

from ticketry.evidence.comparison import seeds_needed
from ticketry.evidence.significance import guarded
from ticketry.evidence.verdict import InterimAnalyses, verdict

TICKET = [88.1, 88.1, 88.3, 88.2, 88.6]
LEVEL = [88.2, 88.5, 88.2, 88.0, 88.8]
LOW = [87.5, 88.8, 88.1, 87.6, 88.2]


def needed(ticket: Sequence[float], other: Sequence[float], shift: float, sign: int = 1, alpha: float = 0.05) -> float:
    """Seeds until the mean difference as it is, plus `shift`, is shown to lie above 0 (sign -1: below)."""
    gap = np.subtract(ticket, other)
    distance = sign * (float(gap.mean()) + shift)
    found = seeds_needed(distance, float(gap.std(ddof=1)), alpha, least_spread=0.5)
    return inf if found is None else found


def test_a_second_question_is_asked_of_every_control_and_the_slowest_counts() -> None:
    slow = [value - 0.2 for value in LEVEL]
    made = verdict(TICKET, LEVEL, {"low": LOW, "slow": slow})
    parts = [needed(TICKET, LEVEL, 0.5), needed(TICKET, LOW, 0.0), needed(TICKET, slow, 0.0)]
    assert made.outcome == "undecided"
    assert made.more_seeds == max(parts) - 5
    assert parts[2] == max(parts)


def test_a_control_that_is_better_is_shown_so_at_its_share_of_the_level() -> None:
    """As good as dense already; of two controls one is above the ticket, which is shown by Bonferroni's half."""
    ticket = [88.5, 88.0, 88.9, 88.2, 88.6, 88.3, 88.7, 88.4, 88.1, 88.8]
    above = [
        value + gap for value, gap in zip(ticket, [0.1, 0.4, -0.2, 0.5, 0.0, 0.6, 0.2, -0.1, 0.4, 0.1], strict=True)
    ]
    level = [
        value + gap for value, gap in zip(ticket, [0.2, -0.2, 0.1, -0.1, 0.3, -0.3, 0.2, -0.2, 0.1, -0.1], strict=True)
    ]
    dense = [value - 0.6 + gap for value, gap in zip(ticket, [0.1, -0.1] * 5, strict=True)]
    made = verdict(ticket, dense, {"above": above, "level": level})
    assert (made.as_good_as_dense, made.better_than_controls) == ("yes", "undecided")
    refuted = needed(ticket, above, 0.0, sign=-1, alpha=0.025)
    assert made.more_seeds == refuted - 10
    assert needed(ticket, level, 0.0) == needed(ticket, level, 0.0, sign=-1, alpha=0.025) == inf


def test_a_ticket_that_is_shown_to_lose_needs_no_controls() -> None:
    """Far below dense: the loss is shown long before the control, with which it is level, is told apart."""
    dense = [value + gap for value, gap in zip(TICKET, [0.9, 1.1, 0.2, 1.6, 0.6], strict=True)]
    level = [value + gap for value, gap in zip(TICKET, [0.02, -0.01, 0.02, -0.02, 0.0], strict=True)]
    made = verdict(TICKET, dense, {"level": level})
    assert made.outcome == "undecided"
    assert made.more_seeds == needed(TICKET, dense, 0.5, sign=-1) - 5
    assert needed(TICKET, level, 0.0) > 500


@pytest.mark.parametrize("n", [3, 5, 7, 10])
def test_seeds_of_a_plan_are_counted_to_an_analysis_that_shows_it_by_its_own_share(n: int) -> None:
    """Drawn anew: in four of five samples that analysis rejects by itself, and none before it does."""
    plan = InterimAnalyses()
    gap = np.resize([0.4, -0.4, -0.9, 0.1], n)
    ticket = np.linspace(88, 89, n)
    made = verdict(ticket.tolist(), (ticket - gap).tolist(), claim="matches", interim=plan)
    assert (made.outcome, made.more_seeds is None) == ("undecided", False)
    at, shares = n + (made.more_seeds or 0), plan.alphas(0.05)
    assert at in plan.at or at > plan.last
    assert power_of(at, gap.mean() + 0.5, gap.std(ddof=1), shares.get(at, shares[plan.last])) > 0.78
    before = [one for one in plan.at if n < one < at]
    assert all(power_of(one, gap.mean() + 0.5, gap.std(ddof=1), shares[one]) < 0.82 for one in before)


def power_of(n: int, distance: float, spread: float, alpha: float) -> float:
    drawn = np.random.default_rng(1).normal(distance, spread, (5000, n))
    return float((guarded(drawn, 0.0, 0.5)[0] <= alpha).mean())


def test_seeds_that_hang_together_decide_nothing_where_as_many_others_would() -> None:
    """Differences that rise from seed to seed: their error is taken to be larger, the estimate is of what it would be
    without that. One more is the least that is asked for."""
    ticket, rising = np.linspace(88, 89, 12), np.linspace(-0.45, 0.35, 12)
    made = verdict(ticket.tolist(), (ticket - rising).tolist(), claim="matches", margin=0.4)
    assert (made.outcome, made.more_seeds) == ("undecided", 1)
    assert (seeds_needed(0.35, float(rising.std(ddof=1)), 0.05, least_spread=0.4) or 0) < 12
