"""Verdicts against SciPy's tests, published examples, closed forms and simulation."""

from __future__ import annotations

import math
import subprocess
import sys
from math import inf, nan
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ticketry.errors import UsageError
from ticketry.evidence.paired import MOST_SEEDS, check_budgets, compare, seeds_needed
from ticketry.evidence.verdict import Looks, decide_after, holm, holm_verdicts, verdict

SLEEP = (1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4)
"""Student (1908): hours of sleep gained under one drug more than under the other, of ten patients."""
ORDER = {"loses": 0, "undecided": 1, "wins": 2, "matches": 2}
PLANS = (None, Looks(), Looks((3, 4, 5, 6)), Looks((2, 8)))

values = st.floats(80, 95).map(lambda value: round(value, 2))


@st.composite
def pairs(draw: st.DrawFn, *, networks: int = 2, most: int = 6) -> list[list[float]]:
    """As many lists of equally many values as there are networks."""
    n = draw(st.integers(1, most))
    return [draw(st.lists(values, min_size=n, max_size=n)) for _ in range(networks)]


# -- comparing ---------------------------------------------------------------------------------------------------------


def test_students_sleep_data_give_the_published_interval() -> None:
    found = compare(SLEEP, [0.0] * 10, margin=0.5)
    assert found.mean == pytest.approx(1.58)
    assert found.sd == pytest.approx(1.229995, abs=1e-6)
    assert (found.low, found.high) == (pytest.approx(0.7001142, abs=1e-7), pytest.approx(2.4598858, abs=1e-7))
    assert found.p_superior == pytest.approx(0.002833 / 2, abs=5e-7)  # published two-sided, t = 4.0621


@given(pairs(), st.floats(0.01, 5), st.floats(0.6, 0.999))
@settings(deadline=None, max_examples=60)
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


def test_two_seeds_follow_the_cauchy_distribution() -> None:
    found = compare([1.0, 4.0], [0.0, 0.0], margin=1.0)  # t = 2.5 / 1.5, one degree of freedom
    assert found.p_superior == pytest.approx(0.5 - math.atan(2.5 / 1.5) / math.pi)


@given(pairs(), st.sampled_from([None, 0.01, 0.25]))
@settings(deadline=None, max_examples=60)
def test_a_metric_where_lower_is_better_mirrors_exactly(lists: list[list[float]], resolution: float | None) -> None:
    ticket, other = lists
    up = compare(ticket, other, resolution=resolution)
    mirrored = [[-value for value in one] for one in (ticket, other)]
    assert compare(*mirrored, higher_is_better=False, resolution=resolution) == up
    down = compare(other, ticket, resolution=resolution)
    assert compare(ticket, other, higher_is_better=False, resolution=resolution) == down
    assert down.mean == -up.mean
    assert down.p_superior == pytest.approx(up.p_worse)


def test_one_seed_says_nothing() -> None:
    found = compare([99.0], [1.0], resolution=0.01)
    assert (found.sd, found.spread, found.low, found.high) == (None, None, None, None)
    assert found.p_noninferior == found.p_superior == found.p_inferior == found.p_worse == 1
    assert "one seed" in found.note


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


def test_a_spread_below_the_resolution_is_raised_to_it_and_said() -> None:
    found = compare([97.5, 97.75, 97.5, 97.5], [97.5] * 4, resolution=0.25)
    assert found.sd == pytest.approx(0.125)
    assert found.spread == 0.25
    assert "below the metric's resolution" in found.note
    assert compare([97.0, 99.0, 98.0], [97.5] * 3, resolution=0.25).note == ""


# -- how many seeds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("alpha", "pairs_needed"), [(0.05, 27), (0.025, 34)])
def test_the_number_of_seeds_is_that_of_published_tables(alpha: float, pairs_needed: int) -> None:
    """Matched pairs, effect 0.5, power 0.8, one-sided (0.025: two-sided 0.05, its far side being negligible)."""
    assert seeds_needed(0.5, 1.0, alpha) == pairs_needed


def test_the_number_of_seeds_reaches_its_power_and_one_less_does_not() -> None:
    generator = np.random.default_rng(3)
    needed = seeds_needed(0.5, 0.5, 0.05)
    assert needed is not None
    for n, reached in ((needed, True), (needed - 1, False)):
        drawn = generator.normal(0.5, 0.5, (40_000, n))
        rejected = stats.ttest_1samp(drawn, 0, axis=1, alternative="greater").pvalue <= 0.05
        assert (rejected.mean() >= 0.8 - 0.005) == reached


def test_no_number_of_seeds_shows_what_is_not_there() -> None:
    assert seeds_needed(0.0, 1.0, 0.05) is None
    assert seeds_needed(-1.0, 1.0, 0.05) is None
    assert seeds_needed(1e-4, 1.0, 0.05) is None
    assert seeds_needed(1e4, 1.0, 0.05) == 2


# -- the plan ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(2, 40), min_size=1, unique=True).map(sorted), st.floats(0.001, 0.4))
def test_the_looks_levels_add_up_to_alpha(at: list[int], alpha: float) -> None:
    levels = Looks(tuple(at)).alphas(alpha)
    assert list(levels) == at
    assert min(levels.values()) > 0
    assert math.fsum(levels.values()) == pytest.approx(alpha)


def test_the_default_looks_levels_follow_their_formula() -> None:
    assert Looks().alphas(0.05) == pytest.approx({3: 0.00135, 5: 0.0049, 7: 0.0109, 10: 0.03285})


@pytest.mark.parametrize("at", [(), (1, 2), (3, 3), (5, 3)])
def test_looks_that_are_no_plan_are_refused(at: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match="rising numbers"):
        Looks(at)


# -- the verdict -------------------------------------------------------------------------------------------------------

DENSE = [88.3, 87.8, 88.7, 88.1, 88.4]
NEAR = [88.4, 88.0, 88.6, 88.2, 88.5]
FAR = [86.9, 86.6, 87.2, 86.7, 87.3]


@pytest.mark.parametrize(
    ("ticket", "controls", "claim", "outcome"),
    [
        (NEAR, {"shuffled": FAR}, "wins", "wins"),
        (NEAR, {"shuffled": FAR, "random_reinit": NEAR[1:] + NEAR[:1]}, "wins", "undecided"),
        (NEAR, {"shuffled": NEAR[1:] + NEAR[:1]}, "matches", "matches"),
        (NEAR, {}, "matches", "matches"),
        (FAR, {"shuffled": FAR[1:] + FAR[:1]}, "wins", "loses"),
        (FAR, {}, "matches", "loses"),
        (DENSE, {"shuffled": [value + 1 + index / 20 for index, value in enumerate(DENSE)]}, "wins", "loses"),
        (NEAR[:1], {"shuffled": FAR[:1]}, "wins", "undecided"),
    ],
)
def test_verdicts_that_anybody_would_give(ticket: Any, controls: Any, claim: Any, outcome: str) -> None:
    dense = [value - 0.02 * index for index, value in enumerate(DENSE)]
    found = verdict(ticket, dense[: len(ticket)], controls, claim=claim, resolution=0.01)
    assert found.outcome == outcome
    assert found.shown == (outcome == claim)
    assert (found.more_seeds == 0) == (outcome != "undecided")
    assert len(found.reasons) >= 1 + len(controls)


def test_the_claim_is_as_strong_as_its_weakest_part() -> None:
    controls = {"shuffled": FAR, "random_reinit": [88.1, 88.0, 88.2, 88.2, 88.1]}
    found = verdict(NEAR, DENSE, controls)
    parts = [stats.ttest_1samp(np.subtract(NEAR, DENSE), -0.5, alternative="greater").pvalue]
    parts += [stats.ttest_1samp(np.subtract(NEAR, one), 0, alternative="greater").pvalue for one in controls.values()]
    assert found.p == pytest.approx(max(parts))
    back = [stats.ttest_1samp(np.subtract(NEAR, DENSE), -0.5, alternative="less").pvalue]
    back += [stats.ttest_1samp(np.subtract(NEAR, one), 0, alternative="less").pvalue for one in controls.values()]
    assert found.p_loses == pytest.approx(min(1, 3 * min(back)))


@pytest.mark.parametrize("looks", PLANS)
@given(pairs(networks=3), st.floats(0.01, 3), st.floats(0, 3), st.sampled_from(["wins", "matches"]))
@settings(deadline=None, max_examples=30)
def test_a_larger_margin_never_hurts(
    looks: Looks | None, lists: list[list[float]], margin: float, more: float, claim: Any
) -> None:
    ticket, dense, control = lists
    one, other = (
        outcome(ticket, dense, control, looks, claim=claim, margin=size, resolution=0.01)
        for size in (margin, margin + more)
    )
    assert ORDER[other] >= ORDER[one]


@pytest.mark.parametrize("looks", PLANS)
@given(pairs(networks=3), st.floats(0, 3), st.sampled_from(["wins", "matches"]))
@settings(deadline=None, max_examples=30)
def test_a_better_ticket_never_hurts(looks: Looks | None, lists: list[list[float]], more: float, claim: Any) -> None:
    ticket, dense, control = lists
    better = [value + more for value in ticket]
    one, other = (
        outcome(each, dense, control, looks, claim=claim, margin=0.5, resolution=0.01) for each in (ticket, better)
    )
    assert ORDER[other] >= ORDER[one]


@given(pairs(networks=3), st.sampled_from(PLANS[1:3]))
@settings(deadline=None, max_examples=30)
def test_losses_are_judged_as_their_negatives(lists: list[list[float]], looks: Looks) -> None:
    ticket, dense, control = lists
    up = decide_after(ticket, dense, {"shuffled": control}, looks=looks)
    ticket, dense, control = ([-value for value in one] for one in lists)
    assert decide_after(ticket, dense, {"shuffled": control}, looks=looks, higher_is_better=False) == up


def outcome(ticket: list[float], dense: list[float], control: list[float], looks: Looks | None, **settings: Any) -> str:
    if looks is None:
        return verdict(ticket, dense, {"shuffled": control}, **settings).outcome
    return decide_after(ticket, dense, {"shuffled": control}, looks=looks, **settings).outcome


# -- what an undecided verdict asks for --------------------------------------------------------------------------------


def test_one_seed_is_undecided_and_says_how_many_more() -> None:
    found = verdict([88.9], [88.2], {"shuffled": [87.0]}, looks=Looks())
    needed = seeds_needed(0.5, 0.4, 0.03285)  # a spread of 0.8 margins, at the level of the last look
    assert needed is not None
    assert found.outcome == "undecided"
    assert found.more_seeds == needed - 1
    assert found.next_look == 3
    told = "\n".join(found.reasons)
    assert "one seed has no spread" in told
    assert f"about {needed - 1} more seeds, for a true difference of 0" in told
    assert "assumed" in told


def test_the_estimate_is_that_of_the_slowest_part() -> None:
    dense, control = [88.0, 88.4, 88.2, 87.9], [87.5, 88.8, 88.1, 87.6]
    ticket = [88.1, 88.1, 88.3, 88.2]
    found = verdict(ticket, dense, {"shuffled": control})
    assert found.outcome == "undecided"
    parts = [
        seeds_needed(np.mean(gap) + shift, np.std(gap, ddof=1), 0.05)
        for gap, shift in ((np.subtract(ticket, dense), 0.5), (np.subtract(ticket, control), 0.0))
    ]
    assert found.more_seeds == max(part for part in parts if part is not None) - 4


def test_the_estimate_is_not_below_the_next_look() -> None:
    found = verdict([88.9, 88.7, 88.8], [88.2, 88.4, 88.6], {"shuffled": [87.0, 87.9, 87.2]}, looks=Looks((3, 8)))
    assert (found.outcome, found.next_look, found.more_seeds) == ("undecided", 8, 5)


def test_a_tie_with_a_control_says_that_no_number_would_do() -> None:
    found = verdict([88.0, 88.4, 88.2, 88.2], [88.1, 88.3, 88.1, 88.3], {"shuffled": [88.2, 88.2, 88.3, 88.1]})
    assert (found.outcome, found.more_seeds) == ("undecided", None)
    assert f"even {MOST_SEEDS} seeds" in found.reasons[-1]


def test_between_two_looks_nothing_is_decided() -> None:
    found = verdict(NEAR[:4], DENSE[:4], {"shuffled": FAR[:4]}, looks=Looks())
    assert (found.outcome, found.p, found.next_look) == ("undecided", 1.0, 5)
    assert "no decision is planned at 4 seeds" in found.reasons
    assert verdict(NEAR, DENSE, {"shuffled": FAR}, looks=Looks()).outcome == "wins"


def test_a_decision_once_taken_stands() -> None:
    ticket = [*NEAR, 80.0, 80.0]
    dense, control = [*DENSE, 88.0, 88.1], [*FAR, 87.0, 86.9]
    found = decide_after(ticket, dense, {"shuffled": control}, looks=Looks())
    assert (found.outcome, found.n) == ("wins", 5)


# -- errors, by simulation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("true_dense", "true_control"), [(-0.5, 5.0), (0.0, 0.0), (5.0, 0.0)], ids=["dense", "control", "control-only"]
)
def test_looking_at_every_planned_number_keeps_false_wins_rare(true_dense: float, true_control: float) -> None:
    """400 verifications on the edge of a part of the claim; the outcome must also be that of SciPy's own tests."""
    runs, looks = 400, Looks()
    generator = np.random.default_rng(7)
    to_dense = generator.normal(true_dense, 0.4, (runs, looks.last))
    to_control = generator.normal(true_control, 0.4, (runs, looks.last))
    zeros = np.full((runs, looks.last), 50.0)
    won = [
        decide_after(zero, zero - dense, {"shuffled": zero - control}, looks=looks).outcome == "wins"
        for zero, dense, control in zip(zeros, to_dense, to_control, strict=True)
    ]
    assert won == expected_wins(to_dense, to_control, looks)
    upper = stats.binomtest(sum(won), runs).proportion_ci(0.99).high
    assert upper <= 0.05 + 0.03


def expected_wins(to_dense: np.ndarray, to_control: np.ndarray, looks: Looks) -> list[bool]:
    """The same by SciPy's t tests: the first look at which a side is shown."""
    won, lost = np.zeros(len(to_dense), bool), np.zeros(len(to_dense), bool)
    spent = 0.0
    for n in looks.at:
        level, spent = 0.05 * (n / looks.last) ** 3 - spent, 0.05 * (n / looks.last) ** 3
        above, below = (
            [
                stats.ttest_1samp(part[:, :n], null, axis=1, alternative=side).pvalue
                for part, null in ((to_dense, -0.5), (to_control, 0.0))
            ]
            for side in ("greater", "less")
        )
        open_still = ~(won | lost)
        won |= open_still & (np.maximum(*above) <= level)
        lost |= open_still & ~won & (2 * np.minimum(*below) <= level)
    return [bool(value) for value in won]


# -- several verdicts --------------------------------------------------------------------------------------------------


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
    weak = verdict(NEAR, DENSE, {"shuffled": [88.0, 87.95, 88.6, 87.7, 88.3]})
    assert 3 * strong.p < 0.05 < 2 * weak.p < 0.1
    assert holm_verdicts([weak])[0].outcome == "wins"
    first, *rest = holm_verdicts([strong, weak, weak])
    assert first.outcome == "wins"
    assert first.p == pytest.approx(3 * strong.p)
    assert [one.outcome for one in rest] == ["undecided", "undecided"]
    assert "Holm" in rest[0].reasons[-1]
    assert rest[0].more_seeds


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ticket": [88.0, nan, 88.1]}, "the metric of the ticket is nan at seed number 2"),
        ({"dense": [88.0, 88.0, inf]}, "the metric of dense is inf at seed number 3"),
        ({"controls": {"shuffled": [88.0, 87.0]}}, "3 values of the ticket and 2 of shuffled"),
        ({"controls": {}}, "'wins' needs a control"),
        ({"ticket": [], "dense": [], "controls": {"shuffled": []}}, "no values"),
        ({"claim": "best"}, "not known: wins, matches"),
        ({"margin": 0.0}, "must be above 0"),
        ({"margin": nan}, "must be above 0"),
        ({"confidence": 95}, "between 0.5 and 1"),
        ({"resolution": 0.0}, "a resolution of 0.0"),
        ({"looks": Looks((2,))}, "the plan ends at 2"),
        ({"steps": {"ticket": [100, 100], "dense": [100, 90]}}, "unequal budgets .ticket: 100 steps; dense: 90, 100"),
        ({"ticket": [0.8] * 3, "dense": [0.9] * 3, "controls": {"shuffled": [0.7] * 3}}, "give both in percent"),
    ],
)
def test_bad_input_is_refused_in_words(change: dict[str, Any], message: str) -> None:
    request = {"ticket": [88.0, 88.2, 88.1], "dense": [88.0, 88.3, 88.1], "controls": {"shuffled": [87.0, 87.1, 86.8]}}
    with pytest.raises(UsageError, match=message):
        verdict(**(request | change))


def test_equal_budgets_pass() -> None:
    check_budgets({"ticket": [100, 100], "dense": [100, 100], "shuffled": [100, 100]})
    check_budgets({})


@pytest.mark.parametrize("p", [-0.1, 1.1, nan])
def test_holm_refuses_what_is_no_p_value(p: float) -> None:
    with pytest.raises(UsageError, match="no p-value"):
        holm([0.1, p])


def test_the_verdict_is_imported_without_heavy_libraries_and_is_the_function() -> None:
    code = (
        "import sys, ticketry.evidence as e; import ticketry.evidence.verdict; assert callable(e.verdict);"
        "assert callable(e.compare) and callable(e.holm); assert 'scipy' not in sys.modules, 'scipy'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
