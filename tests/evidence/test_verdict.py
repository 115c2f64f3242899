"""Verdicts against SciPy's tests, published examples, closed forms and simulation."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from math import inf, nan
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from scipy import stats

from samples import sample
from slow_p_values import slow_p
from ticketry.errors import UsageError
from ticketry.evidence.comparison import InterimAnalyses, compare, seeds_needed
from ticketry.evidence.significance import guarded_p_values
from ticketry.evidence.verdict import Verdict, decide_after, holm, holm_verdicts, verdict

SLEEP = (1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4)
"""Student (1908): hours of sleep gained under one drug more than under the other, of ten patients."""
ORDER = {"loses": 0, "undecided": 1, "matches": 2, "wins": 3}
ANSWERS = {"no": 0, "undecided": 1, "yes": 2}
PLANS = (None, InterimAnalyses())

values = st.floats(80, 95).map(lambda value: round(value, 2))


@st.composite
def pairs(draw: st.DrawFn, *, networks: int = 2, most: int = 6) -> list[list[float]]:
    """As many lists of equally many values as there are networks."""
    n = draw(st.integers(1, most))
    return [draw(st.lists(values, min_size=n, max_size=n)) for _ in range(networks)]


def test_students_sleep_data_give_the_published_interval() -> None:
    found = compare(SLEEP, [0.0] * 10, margin=0.5)
    assert found.mean == pytest.approx(1.58)
    assert found.sd == pytest.approx(1.229995, abs=1e-6)
    assert (found.low, found.high) == (pytest.approx(0.7001142, abs=1e-7), pytest.approx(2.4598858, abs=1e-7))
    assert found.p_superior == pytest.approx(0.002833 / 2, abs=5e-7)  # published two-sided, t = 4.0621


@given(pairs(), st.floats(0.01, 5), st.floats(0.6, 0.999))
@settings(deadline=None, max_examples=30)
def test_p_values_and_interval_are_those_of_scipys_t_test(
    lists: list[list[float]], margin: float, confidence: float
) -> None:
    ticket, other = lists
    differences = np.subtract(ticket, other)
    if len(ticket) < 2 or np.std(differences) < 1e-6:
        return
    found = compare(ticket, other, margin=margin, confidence=confidence)
    for got, null, side in (
        (found.p_noninferior, -margin, "greater"),
        (found.p_superior, 0, "greater"),
        (found.p_inferior, -margin, "less"),
        (found.p_worse, 0, "less"),
    ):
        assert got == pytest.approx(stats.ttest_1samp(differences, null, alternative=side).pvalue, rel=1e-6, abs=1e-12)
    interval = stats.ttest_1samp(differences, 0).confidence_interval(confidence)
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))


@given(pairs(), st.sampled_from([None, 0.01, 0.25]))
@settings(deadline=None, max_examples=30)
def test_a_metric_where_lower_is_better_mirrors_exactly(lists: list[list[float]], resolution: float | None) -> None:
    ticket, other = lists
    up = compare(ticket, other, resolution=resolution)
    mirrored = [[-value for value in one] for one in (ticket, other)]
    assert compare(*mirrored, higher_is_better=False, resolution=resolution) == up
    down = compare(other, ticket, resolution=resolution)
    assert compare(ticket, other, higher_is_better=False, resolution=resolution) == down
    assert down.mean == -up.mean
    assert down.p_superior == pytest.approx(up.p_worse)


def test_equal_differences_take_the_resolution_as_their_spread() -> None:
    ticket, other = [88.26, 87.77, 88.44], [88.01, 87.52, 88.19]  # 0.25 each, but for rounding
    found = compare(ticket, other, resolution=0.01)
    assert found.spread == 0.01
    assert found.p_superior == pytest.approx(stats.t.sf(0.25 / (0.01 / math.sqrt(3)), 2))
    assert "all differences are equal" in found.note
    unknown = compare(ticket, other)
    assert unknown.spread is None
    assert unknown.p_superior == unknown.p_inferior == 1
    assert "do the seeds take effect" in unknown.note


def test_equal_differences_without_a_resolution_are_tested_by_the_least_spread() -> None:
    """As differences whose spread goes towards 0 are; their interval would have no width, and is none."""
    ticket, other = [500.0] * 10, [500.0] * 10
    flat, nearly = (
        compare(values, other, margin=5.0, least_spread=5.0) for values in (ticket, [*ticket[1:], 500 - 1e-6])
    )
    assert flat.p_noninferior == pytest.approx(slow_p(np.zeros(10), -5.0, 5.0)[0])
    assert flat.p_noninferior == pytest.approx(nearly.p_noninferior, rel=1e-5)
    assert (flat.low, flat.high, flat.spread) == (None, None, 0.0)
    assert flat.p_superior == flat.p_worse == pytest.approx(nearly.p_superior, rel=1e-5)
    assert verdict([9.0] * 10, other, claim="matches", margin=5.0).outcome == "loses"
    assert verdict(ticket, other, {"shuffled": [480.0] * 10}, margin=5.0).outcome == "wins"
    assert decide_after([9.0] * 3, other[:3], interim=InterimAnalyses(), claim="matches", margin=5.0).outcome == "loses"
    assert compare(ticket, other, margin=5.0).p_noninferior == 1


@pytest.mark.parametrize(("alpha", "pairs_needed"), [(0.05, 27), (0.025, 34)])
def test_the_number_of_seeds_is_that_of_published_tables(alpha: float, pairs_needed: int) -> None:
    """Matched pairs, effect 0.5, power 0.8, one-sided (0.025: two-sided 0.05, its far side being negligible)."""
    assert seeds_needed(0.5, 1.0, alpha) == pairs_needed


@given(st.lists(st.integers(2, 40), min_size=1, unique=True).map(sorted), st.floats(0.001, 0.4))
def test_the_levels_of_interim_analyses_add_up_to_alpha(at: list[int], alpha: float) -> None:
    levels = InterimAnalyses(tuple(at)).alphas(alpha)
    assert list(levels) == at
    assert min(levels.values()) > 0
    assert math.fsum(levels.values()) == pytest.approx(alpha)


@pytest.mark.parametrize("at", [(), (1, 2), (3, 3), (5, 3)])
def test_interim_analyses_that_are_no_plan_are_refused(at: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="ascending numbers"):
        InterimAnalyses(at)


DENSE = [88.3, 87.8, 88.7, 88.1, 88.4, 88.2, 88.0, 88.5]
NEAR = [88.4, 88.0, 88.6, 88.2, 88.5, 88.3, 88.2, 88.4]
FAR = [86.9, 86.6, 87.2, 86.7, 87.3, 86.8, 87.0, 86.5]
BETTER = [value + 1 + index / 20 for index, value in enumerate(DENSE)]


@pytest.mark.parametrize(
    ("ticket", "controls", "claim", "outcome", "answers", "not_beaten"),
    [
        (NEAR, {"shuffled": FAR}, "wins", "wins", ("yes", "yes"), ()),
        (NEAR, {"a": FAR, "b": NEAR[1:] + NEAR[:1]}, "wins", "matches", ("yes", "undecided"), ("b",)),
        (NEAR, {"shuffled": NEAR[1:] + NEAR[:1]}, "matches", "matches", ("yes", "undecided"), ("shuffled",)),
        (NEAR, {}, "matches", "matches", ("yes", "undecided"), ()),
        (FAR, {"shuffled": FAR[1:] + FAR[:1]}, "wins", "loses", ("no", "undecided"), ("shuffled",)),
        # As good as dense and worse than its control: it does not win, and to say that it loses would be wrong.
        (DENSE, {"shuffled": BETTER}, "wins", "matches", ("yes", "no"), ("shuffled",)),
        (FAR, {"shuffled": [one - 2 for one in FAR]}, "wins", "loses", ("no", "yes"), ()),
        (NEAR[:2], {"shuffled": FAR[:2]}, "wins", "undecided", ("undecided", "undecided"), ("shuffled",)),
        (NEAR[:1], {"shuffled": FAR[:1]}, "wins", "undecided", ("undecided", "undecided"), ("shuffled",)),
    ],
)
def test_verdicts_that_anybody_would_give(
    ticket: Any, controls: Any, claim: Any, outcome: str, answers: Any, not_beaten: Any
) -> None:
    dense = [value - 0.02 * index for index, value in enumerate(DENSE)]
    found = verdict(ticket, dense[: len(ticket)], controls, claim=claim, resolution=0.01)
    assert (found.outcome, found.not_beaten) == (outcome, not_beaten)
    assert (found.as_good_as_dense, found.better_than_controls) == answers
    assert found.shown == (outcome == claim)
    assert (found.more_seeds == 0) == found.decided
    assert len(found.reasons) >= 1 + len(controls)


def test_the_claim_is_as_strong_as_its_weakest_part() -> None:
    """Symmetric differences of a spread above the least: where the claim is near, the tests are SciPy's t tests."""
    ticket, noise = np.linspace(88.0, 88.4, 5), np.array([-0.3, 0.4, 0.0, -0.4, 0.3])
    dense, controls = ticket + 0.2 - noise, {"a": ticket - 0.9 + noise, "b": ticket - 0.7 + noise[::-1]}
    found = verdict(ticket, dense, controls, least_spread=0.3)

    def t_test(other: Any, null: float) -> float:
        return float(stats.ttest_1samp(ticket - other, null, alternative="greater").pvalue)

    assert found.p_as_good == pytest.approx(t_test(dense, -0.5))
    assert found.p_better == pytest.approx(max(t_test(one, 0) for one in controls.values()))
    assert found.p == pytest.approx(max(found.p_as_good, found.p_better))
    assert found.p_loses == pytest.approx(slow_p(ticket - dense, -0.5, 0.3)[1])
    worse = min(slow_p(ticket - one, 0.0, 0.3)[1] for one in controls.values())
    assert found.p_not_better == pytest.approx(min(1, 2 * worse))


@pytest.mark.parametrize("interim", PLANS)
@pytest.mark.parametrize("larger", ["margin", "ticket"])
@given(pairs(networks=3), st.floats(0.01, 3), st.floats(0, 3), st.sampled_from(["wins", "matches"]))
@settings(deadline=None, max_examples=15)
def test_a_larger_margin_or_a_better_ticket_never_hurts(
    interim: InterimAnalyses | None, larger: str, lists: list[list[float]], margin: float, more: float, claim: Any
) -> None:
    """With the same least spread, which is the margin by default: it is part of what is assumed of seeds."""
    ticket, dense, control = lists
    changes = [(0.0, 0.0), (more, 0.0) if larger == "margin" else (0.0, more)]
    one, other = (
        judged(
            *([value + better for value in ticket], dense, control, interim),
            claim=claim,
            margin=margin + wider,
            resolution=0.01,
            least_spread=0.5,
        )
        for wider, better in changes
    )
    assert ORDER[other.outcome] >= ORDER[one.outcome]
    assert ANSWERS[other.as_good_as_dense] >= ANSWERS[one.as_good_as_dense]
    # Or else it may have ended before the controls were judged.
    if larger == "ticket" and one.as_good_as_dense != "no" and claim == "wins":
        assert ANSWERS[other.better_than_controls] >= ANSWERS[one.better_than_controls]


@given(pairs(networks=3), st.sampled_from(PLANS[1:]))
@settings(deadline=None, max_examples=15)
def test_losses_are_judged_as_their_negatives(lists: list[list[float]], interim: InterimAnalyses) -> None:
    ticket, dense, control = lists
    up = decide_after(ticket, dense, {"shuffled": control}, interim=interim)
    ticket, dense, control = ([-value for value in one] for one in lists)
    assert decide_after(ticket, dense, {"shuffled": control}, interim=interim, higher_is_better=False) == up


def judged(
    ticket: list[float], dense: list[float], control: list[float], interim: InterimAnalyses | None, **settings: Any
) -> Verdict:
    if interim is None:
        return verdict(ticket, dense, {"shuffled": control}, **settings)
    return decide_after(ticket, dense, {"shuffled": control}, interim=interim, **settings)


def test_the_estimate_is_of_a_refutation_where_that_is_nearer() -> None:
    dense, control = [89.0, 88.2, 89.6, 88.4], [88.1, 88.0, 88.4, 88.1]
    ticket = [87.9, 88.0, 88.0, 88.1]  # worse than dense by more than the margin, level with its control
    found = verdict(ticket, dense, {"shuffled": control})
    gap = np.subtract(dense, ticket)
    needed = seeds_needed(gap.mean() - 0.5, gap.std(ddof=1), 0.05, least_spread=0.5)
    assert needed is not None
    assert (found.outcome, found.more_seeds) == ("undecided", needed - 4)


def test_one_answer_stands_while_the_other_is_looked_for() -> None:
    ticket = [*NEAR[:7], 87.4, 87.6, 87.5]  # as good as dense at 7 seeds, and at 10 it would not be sure
    dense, control = [*DENSE[:7], 88.4, 88.6, 88.5], [*NEAR[1:7], NEAR[0], 87.5, 87.4, 87.6]
    plan = InterimAnalyses()
    assert verdict(ticket, dense, {"shuffled": control}, interim=plan).as_good_as_dense == "undecided"
    found = decide_after(ticket, dense, {"shuffled": control}, interim=plan)
    assert (found.n, found.outcome) == (10, "matches")
    assert (found.as_good_as_dense, found.better_than_controls) == ("yes", "undecided")
    assert found.p_as_good == verdict(ticket[:7], dense[:7], {"shuffled": control[:7]}, interim=plan).p_as_good


@pytest.mark.parametrize("n", [3, 7])
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
    return float((guarded_p_values(drawn, 0.0, 0.5)[0] <= alpha).mean())


def test_a_single_seed_is_estimated_with_the_assumed_spread_up_to_an_analysis_of_the_plan() -> None:
    plan = InterimAnalyses((2, 40))
    found = verdict([88.9], [88.2], {"shuffled": [87.0]}, interim=plan)
    alpha = 0.05 * (1 - (2 / 40) ** 3)
    assert (seeds_needed(0.5, 0.4, alpha, least_spread=0.5) or 41) < 40  # between two analyses
    assert (found.outcome, found.more_seeds, found.next_analysis) == ("undecided", 39, 2)
    assert "no decision is planned at 1 seed" in found.reasons


def test_more_seeds_than_a_plan_has_take_a_new_one() -> None:
    ticket, dense, control = [88.9, 87.3, 88.5], DENSE[:3], {"shuffled": [87.9, 86.9, 87.1]}
    beyond, within = (verdict(ticket, dense, control, interim=InterimAnalyses(at)) for at in ((3, 4), (3, 900)))
    assert beyond.more_seeds is not None
    assert beyond.more_seeds > 1
    assert f"beyond the plan's 4: that takes a new plan of {3 + beyond.more_seeds} fresh seeds" in beyond.reasons[-1]
    assert (within.more_seeds, within.next_analysis) == (897, 900)  # the plan's end, and not beyond it


def test_a_verdict_shows_its_comparisons() -> None:
    made = verdict(NEAR[:4], DENSE[:4], {"shuffled": FAR[:4]}, margin=0.75, confidence=0.9)
    page = made._repr_html_()
    assert f"{made.outcome} (claim: wins; margin 0.75, confidence 90 %, n = 4)" in page
    cells = re.findall(r"<td[^>]*>(.*?)</td>", page)
    rows = {cells[k]: cells[k + 1 : k + 5] for k in (0, 5)}
    dense, control = made.dense, made.controls["shuffled"]
    for name, one, p in (("dense", dense, dense.p_noninferior), ("shuffled", control, control.p_superior)):
        assert [float(cell) for cell in rows[name]] == pytest.approx([one.mean, one.low, one.high, p], rel=1e-3)
    assert dense.p_noninferior != pytest.approx(dense.p_superior, rel=0.01)
    for reason in made.reasons:
        assert reason in page


@pytest.fixture
def no_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many more seeds would do takes most of the time, and has tests of its own."""
    monkeypatch.setattr(sys.modules["ticketry.evidence.verdict"], "estimate_more_seeds", lambda *given: None)


@pytest.mark.usefixtures("no_estimates")
@pytest.mark.parametrize(
    ("true_dense", "true_control"),
    sample([(-0.5, 5.0), (0.0, 0.0), (5.0, 0.0)], 1, ids=["dense", "control", "control-only"]),
)
def test_judging_at_every_planned_number_keeps_false_wins_rare(true_dense: float, true_control: float) -> None:
    """60 verifications on the edge of a part of the claim; the first answers must also be those of the slow tests."""
    runs, interim = 60, InterimAnalyses()
    generator = np.random.default_rng(7)
    to_dense = generator.normal(true_dense, 0.4, (runs, interim.last))
    to_control = generator.normal(true_control, 0.4, (runs, interim.last))
    zero = np.full(interim.last, 50.0)
    found = [
        decide_after(zero, zero - dense, {"shuffled": zero - control}, interim=interim)
        for dense, control in zip(to_dense, to_control, strict=True)
    ]
    slow = [expected_answers(*pair, interim) for pair in zip(to_dense[:15], to_control[:15], strict=True)]
    assert [(one.as_good_as_dense, one.better_than_controls) for one in found[:15]] == slow
    lower = stats.binomtest(sum(one.outcome == "wins" for one in found), runs).proportion_ci(0.99).low
    assert lower <= 0.05


def expected_answers(dense: np.ndarray, control: np.ndarray, interim: InterimAnalyses) -> tuple[str, str]:
    """Both answers by the slow tests, each at the first analysis that gives it."""
    answers, spent = ["undecided", "undecided"], 0.0
    for n in interim.at:
        level, spent = 0.05 * (n / interim.last) ** 3 - spent, 0.05 * (n / interim.last) ** 3
        for question, (differences, null) in enumerate(((dense[:n], -0.5), (control[:n], 0.0))):
            above, below = slow_p(differences, null, 0.5)
            if answers[question] == "undecided":
                answers[question] = "yes" if above <= level else "no" if below <= level else "undecided"
        if answers[0] == "no" or "undecided" not in answers:
            break
    return answers[0], answers[1]


CELLS = {
    "log-normal": lambda generator, shape: 0.4 * (math.exp(0.5) - generator.lognormal(0, 1, shape)) / 2.1612,
    "exponential": lambda generator, shape: 0.4 * (1 - generator.exponential(1, shape)),
    "collapse": lambda generator, shape: generator.normal(0.15, 0.4, shape) - 3 * (generator.random(shape) < 0.05),
    "two modes": lambda generator, shape: generator.normal(0, 0.15, shape) + generator.choice((-0.37, 0.37), shape),
    "whole examples": lambda generator, shape: np.round(generator.normal(-0.5, 0.4, shape) / 0.25) * 0.25 + 0.5,
}


@pytest.mark.usefixtures("no_estimates")
@pytest.mark.parametrize("cell", sample(CELLS, ["collapse"]))
def test_false_wins_are_rare_where_students_t_errs(cell: str) -> None:
    """A sample of the cells of benchmarks/verdict_cells.py: mean exactly at the margin, spread about 0.4 points."""
    differences = CELLS[cell](np.random.default_rng(11), (150, 10)) - 0.5
    found = [decide_after(50 + one, [50.0] * 10, claim="matches", interim=InterimAnalyses()) for one in differences]
    for wrong in ("matches", "loses"):
        assert sum(one.outcome == wrong for one in found) <= 0.05 * 150


@pytest.mark.usefixtures("no_estimates")
def test_a_true_tie_is_found_with_ten_seeds() -> None:
    """Power of at least 80 % (here within what 150 runs show) at the spread that was seen, 0.4 points."""
    differences = np.random.default_rng(12).normal(0, 0.4, (150, 10))
    found = [decide_after(50 + one, [50.0] * 10, claim="matches", interim=InterimAnalyses()) for one in differences]
    assert stats.binomtest(sum(one.outcome == "matches" for one in found), 150).proportion_ci(0.99).high >= 0.8


def test_seeds_of_one_parent_count_as_one() -> None:
    parents = ["a", "b", "a", "c", "b", "c"]
    ticket, dense = [88.1, 88.4, 88.3, 87.9, 88.6, 88.1], [88.0, 88.2, 88.4, 88.2, 88.0, 88.3]
    found = verdict(ticket, dense, claim="matches", parents=parents)
    means = [[(one[i] + one[j]) / 2 for i, j in ((0, 2), (1, 4), (3, 5))] for one in (ticket, dense)]
    alone = verdict(*means, claim="matches")
    assert (found.n, found.groups, alone.n) == (6, 3, 3)
    assert found.p == pytest.approx(alone.p)
    assert "the 6 seeds come from 3 parents; those of one parent count as one" in found.reasons


def test_a_collapse_is_seen_and_the_rate_that_is_not_excluded_is_told() -> None:
    ticket = [*NEAR[:6], 80.0, NEAR[7]]
    found = verdict(ticket, DENSE, claim="matches")
    assert found.outcome == "undecided"
    assert found.dense.diagnosis is not None
    assert found.dense.diagnosis.low == (7,)
    assert found.dense.diagnosis.collapse_rate == pytest.approx(stats.binomtest(1, 8).proportion_ci(0.9).high)
    assert any("seed number 7 is far below the others" in reason for reason in found.reasons)


def test_holms_published_example() -> None:
    """The example of Wikipedia's "Holm-Bonferroni method": at 0.05, the first and the fourth are rejected."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8), st.floats(0.01, 0.5))
def test_holm_rejects_what_its_definition_rejects(p_values: list[float], alpha: float) -> None:
    """Step down: the smallest against alpha / m, the next against alpha / (m - 1), until one is not rejected."""
    rejected = [False] * len(p_values)
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        scaled = p_values[index] * (len(p_values) - rank)
        if scaled > alpha:
            break
        rejected[index] = True
    assert [p <= alpha for p in holm(p_values)] == rejected


def test_holm_takes_back_what_is_not_strong_enough_among_many() -> None:
    strong = verdict(NEAR, DENSE, {"shuffled": FAR})
    weak = verdict(NEAR, DENSE, {"shuffled": [value - 0.4 for value in NEAR[1:] + NEAR[:1]]})
    assert 3 * strong.p < 0.05 < 2 * weak.p < 0.1
    assert holm_verdicts([weak])[0].outcome == "wins"
    first, *rest = holm_verdicts([strong, weak, weak])
    assert first.outcome == "wins"
    assert first.p == pytest.approx(3 * strong.p)
    assert [(one.outcome, one.as_good_as_dense, one.better_than_controls) for one in rest] == [
        ("matches", "yes", "undecided")
    ] * 2
    assert "Holm" in rest[0].reasons[-1]
    assert rest[0].more_seeds
    assert rest[0].not_beaten == ("shuffled",)


def test_two_answers_that_hold_each_among_its_kind_do_not_make_a_win_that_does_not() -> None:
    """p of as good 0.04 and 0.001, of better the other way round: Holm leaves all four, but of the wins none."""
    good, better = (replace(verdict(NEAR, DENSE, {"shuffled": FAR}), p=0.04, **ps) for ps in (
        {"p_as_good": 0.04, "p_better": 0.001},
        {"p_as_good": 0.001, "p_better": 0.04},
    ))  # fmt: skip
    assert [(one.as_good_as_dense, one.better_than_controls) for one in holm_verdicts([good, better])] == [
        ("undecided", "yes"),
        ("yes", "undecided"),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ticket": [88.0, nan, 88.1]}, "the metric of the ticket is nan at seed number 2"),
        ({"dense": [88.0, 88.0, inf]}, "the metric of dense is inf at seed number 3"),
        ({"controls": {"shuffled": [88.0, 87.0]}}, "3 values of the ticket and 2 of shuffled"),
        ({"controls": {}}, "'wins' needs a control"),
        ({"claim": "best"}, "not known: wins, matches"),
        ({"margin": 0.0}, "must be above 0"),
        ({"confidence": 95}, "between 0.5 and 1"),
        ({"resolution": 0.0}, "a resolution of 0.0"),
        ({"parents": [1, 2]}, "2 parents of 3 seeds"),
        ({"interim": InterimAnalyses((2,))}, "the plan ends at 2"),
        ({"steps": {"ticket": [100, 100], "dense": [100, 90]}}, "unequal budgets .ticket: 100 steps; dense: 90, 100"),
        ({"ticket": [0.8] * 3, "dense": [0.9] * 3, "controls": {"shuffled": [0.7] * 3}}, "give both in percent"),
    ],
)
def test_bad_input_is_refused_in_words(change: dict[str, Any], message: str) -> None:
    request = {"ticket": [88.0, 88.2, 88.1], "dense": [88.0, 88.3, 88.1], "controls": {"shuffled": [87.0, 87.1, 86.8]}}
    with pytest.raises(UsageError, match=message):
        verdict(**(request | change))


@pytest.mark.parametrize("p", [-0.1, 1.1, nan])
def test_holm_refuses_what_is_no_p_value(p: float) -> None:
    with pytest.raises(UsageError, match="not a p-value"):
        holm([0.1, p])


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


def test_seeds_that_hang_together_decide_nothing_where_as_many_others_would() -> None:
    """Differences that rise from seed to seed: their error is taken to be larger, the estimate is of what it would be
    without that. One more is the least that is asked for."""
    ticket, rising = np.linspace(88, 89, 12), np.linspace(-0.45, 0.35, 12)
    made = verdict(ticket.tolist(), (ticket - rising).tolist(), claim="matches", margin=0.4)
    assert (made.outcome, made.more_seeds) == ("undecided", 1)
    assert (seeds_needed(0.35, float(rising.std(ddof=1)), 0.05, least_spread=0.4) or 0) < 12
