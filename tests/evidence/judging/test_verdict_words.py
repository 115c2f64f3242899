"""The words of verdicts, whole: every line that stands there and no other, its numbers reckoned apart from the code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from scipy import stats

from slow_p_values import slow_p
from ticketry.evidence.comparison import MOST_SEEDS, seeds_needed
from ticketry.evidence.verdict import InterimAnalyses, verdict

DENSE = [88.3, 87.8, 88.7, 88.1, 88.4, 88.2, 88.0, 88.5]
SETTLED = "their number was fixed beforehand: repeated verdicts as seeds are added err more often"
NEAR = [88.4, 88.0, 88.6, 88.2, 88.5, 88.3, 88.2, 88.4]
FAR = [86.9, 86.6, 87.2, 86.7, 87.3, 86.8, 87.0, 86.5]
SCATTERED = [88.9, 87.3, 88.5, 88.0]
BOTH = "as good as dense: yes; better than every control: yes"


def line(name: str, ticket: Sequence[float], other: Sequence[float], over: str, margin: float = 0.5) -> str:
    """What is told of one comparison: SciPy's interval, and the slow p-value with the margin as the least spread."""
    gaps = np.subtract(ticket, other)
    low, high = stats.ttest_1samp(gaps, 0).confidence_interval(0.95)
    p = slow_p(gaps, -margin if name == "dense" else 0.0, margin)[0] if len(gaps) > 2 else 1.0
    wanted = f"within {margin:g} of" if name == "dense" else "above"
    return f"ticket - {name}: {gaps.mean():+.2f} [{low:+.2f}, {high:+.2f}] over {over}; {wanted} it with p = {p:.2g}"


# -- why ---------------------------------------------------------------------------------------------------------------


def test_a_win_gives_its_answers_and_a_line_for_each_comparison() -> None:
    found = verdict(NEAR, DENSE, {"shuffled": FAR, "random_prune": FAR[1:] + FAR[:1]})
    assert found.reasons == (
        BOTH,
        line("dense", NEAR, DENSE, "8 seeds"),
        line("shuffled", NEAR, FAR, "8 seeds"),
        line("random_prune", NEAR, FAR[1:] + FAR[:1], "8 seeds"),
    )


def test_numbers_as_they_are_read() -> None:
    """By hand: differences 0.1, 0.2, -0.1, 0.1, 0.1, 0.1, 0.2, -0.1 have the mean 0.075 and the deviation 0.1165, so
    that the interval is 0.075 ± 2.3646 · 0.1165 / √8, and t = 0.575 / (0.5 / √8) = 3.25 at 7 degrees of freedom."""
    assert verdict(NEAR, DENSE, claim="matches").reasons[1] == (
        "ticket - dense: +0.08 [-0.02, +0.17] over 8 seeds; within 0.5 of it with p = 0.007"
    )


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (1.0, "+0.08 [-0.02, +0.17] over 8 seeds; within 0.5 of it"),
        (0.02, "+0.00 [-0.00, +0.00] over 8 seeds; within 0.01 of it"),  # two decimals can tell such a margin
        (0.001, "+0.00008 [-0.00002, +0.00017] over 8 seeds; within 0.0005 of it"),
        (1e-7, "+7.5e-9 [-2.2e-9, +1.7e-8] over 8 seeds; within 5e-08 of it"),
    ],
)
def test_a_margin_finer_than_two_decimals_is_told_with_more(size: float, told: str) -> None:
    near, dense = ([size * value for value in values] for values in (NEAR, DENSE))
    found = verdict(near, dense, claim="matches", margin=0.5 * size, unit="mm")
    assert f"ticket - dense: {told} with p = 0.007" in found.reasons


def test_controls_that_are_not_beaten_are_named_with_the_answers() -> None:
    found = verdict(NEAR, DENSE, {"shuffled": NEAR[1:] + NEAR[:1]}, claim="matches")
    assert found.reasons[0] == (
        "as good as dense: yes; better than every control: undecided (not shown to beat shuffled)"
    )
    assert verdict(NEAR, DENSE, claim="matches").reasons == (
        "as good as dense: yes",
        line("dense", NEAR, DENSE, "8 seeds"),
    )


def test_what_a_comparison_has_to_remark_follows_its_line() -> None:
    """A note on the spread and what the differences show, of dense and of controls alike."""
    flat = [value - 1.25 for value in NEAR]
    far = [*FAR[:6], 60.0, FAR[7]]
    found = verdict(NEAR, [value + 0.25 for value in NEAR], {"flat": flat, "far": far}, resolution=0.01)
    heads = [reason.split(":")[0] for reason in found.reasons]
    compared = ["ticket - dense", "dense", "ticket - flat", "flat", "ticket - far", "far", "far"]
    assert heads == ["as good as dense", *compared, "likely to decide"]
    equal = "all differences are equal; a spread of 0.01, the resolution, is taken instead"
    assert (found.reasons[2], found.reasons[4]) == (f"dense: {equal}", f"flat: {equal}")
    assert found.reasons[6] == "far: seed number 7 is far above the others: do some seeds collapse here?"
    assert found.reasons[7].startswith("far: differences are skewed (+2.8), so that their mean is less certain")


def test_seeds_of_parents_are_told_apart_from_seeds() -> None:
    parents = ["a", "b", "c", "d"] * 2
    found = verdict(NEAR, DENSE, {"shuffled": FAR}, parents=parents)
    means = [[(one[k] + one[k + 4]) / 2 for k in range(4)] for one in (NEAR, DENSE, FAR)]
    assert found.reasons[1:3] == (
        line("dense", means[0], means[1], "4 parents"),
        line("shuffled", means[0], means[2], "4 parents"),
    )
    told = "the 8 seeds come from 4 parents; those of one parent count as one"
    assert found.reasons[3] == told
    assert found.assumptions[0] == "4 parents share no randomness"


@pytest.mark.parametrize(
    ("parents", "told"),
    [
        ([1, 2, 3, 3], "the 4 seeds come from 3 parents; those of one parent count as one"),
        (
            [1, 2, 2, 1],
            "the 4 seeds come from 2 parents; those of one parent count as one: fewer than 3 decide nothing",
        ),
        ([1, 1, 1, 1], "the 4 seeds come from 1 parent; those of one parent count as one: fewer than 3 decide nothing"),
    ],
)
def test_too_few_parents_decide_nothing(parents: list[int], told: str) -> None:
    reasons = verdict(NEAR[:4], DENSE[:4], {"shuffled": FAR[:4]}, parents=parents).reasons
    assert [reason for reason in reasons if "come from" in reason] == [told]
    assert not any(reason.startswith("fewer than") for reason in reasons)


@pytest.mark.parametrize(("n", "told"), [(1, 0), (2, 1), (3, 0)])
def test_two_seeds_are_said_to_decide_nothing(n: int, told: int) -> None:
    """Of one seed it is said already that it has no spread."""
    reasons = verdict(SCATTERED[:n], DENSE[:n], {"shuffled": FAR[:n]}).reasons
    assert reasons.count("fewer than 3 seeds decide nothing") == told
    assert not any("decide nothing" in reason for reason in reasons if reason != "fewer than 3 seeds decide nothing")


# -- what next ---------------------------------------------------------------------------------------------------------


def next_steps(reasons: Sequence[str], controls: Mapping[str, object]) -> tuple[str, ...]:
    """The lines after the answers and the comparisons."""
    return tuple(reasons[2 + len(controls) :])


def test_a_single_seed_says_what_it_assumes() -> None:
    found = verdict([88.9], [88.2], {"shuffled": [87.0]}, interim=InterimAnalyses((2, 40)))
    assert (seeds_needed(0.5, 0.4, 0.05 * (1 - (2 / 40) ** 3), least_spread=0.5) or 41) < 40  # between two analyses
    assert found.reasons == (
        "as good as dense: undecided; better than every control: undecided (not shown to beat shuffled)",
        "ticket - dense: +0.70 over 1 seed; within 0.5 of it with p = 1",
        "dense: one seed has no spread, so nothing can be decided",
        "ticket - shuffled: +1.90 over 1 seed; above it with p = 1",
        "shuffled: one seed has no spread, so nothing can be decided",
        "no decision is planned at 1 seed",
        "next interim analysis at 2 seeds",
        "likely to decide: about 39 more seeds, for a true difference of 0 to dense and a spread of 0.4 (assumed)",
    )


def test_the_spread_that_is_assumed_goes_with_the_margin() -> None:
    reasons = verdict([88.9], [88.2], {"shuffled": [87.0]}, margin=0.25).reasons
    assert "a spread of 0.2 (assumed)" in reasons[-1]


@pytest.mark.parametrize("flat", ["dense", "shuffled"])
def test_equal_differences_are_said_and_no_spread_is_assumed(flat: str) -> None:
    others = {"dense": DENSE[:4], "shuffled": FAR[:4]} | {flat: [value - 0.25 for value in SCATTERED]}
    reasons = verdict(SCATTERED, others["dense"], {"shuffled": others["shuffled"]}).reasons
    told = "all differences are equal, which is no proof of certainty (do the seeds take effect?): no interval; tested"
    assert f"{flat}: {told} as if they spread by 0.5" in reasons
    assert not any("assumed" in reason for reason in reasons)


def test_an_estimate_from_spreads_that_are_known_assumes_nothing() -> None:
    ticket, dense, control = SCATTERED, DENSE[:4], [87.5, 88.8, 88.1, 87.6]
    found = verdict(ticket, dense, {"shuffled": control})
    parts = [
        seeds_needed(float(np.mean(gap)) + shift, float(np.std(gap, ddof=1)), 0.05, least_spread=0.5)
        for gap, shift in ((np.subtract(ticket, dense), 0.5), (np.subtract(ticket, control), 0.0))
    ]
    more = max(part for part in parts if part is not None) - 4
    assert next_steps(found.reasons, {"shuffled": control}) == (f"likely to decide: about {more} more seeds",)


def test_one_seed_is_one_seed() -> None:
    """At the next analysis a plan may decide: one seed more, whatever the estimate's own number."""
    found = verdict(NEAR[:6], DENSE[:6], {"shuffled": FAR[:6]}, interim=InterimAnalyses((3, 7)))
    assert found.reasons[-3:] == (
        "no decision is planned at 6 seeds",
        "next interim analysis at 7 seeds",
        "likely to decide: about 1 more seed",
    )


def test_more_seeds_than_a_plan_has_take_a_new_one() -> None:
    ticket, dense, control = SCATTERED[:3], DENSE[:3], [87.9, 86.9, 87.1]
    beyond, within = (
        verdict(ticket, dense, {"shuffled": control}, interim=InterimAnalyses(at)) for at in ((3, 4), (3, 900))
    )
    assert beyond.more_seeds is not None
    assert beyond.more_seeds > 1
    assert next_steps(beyond.reasons, {"shuffled": control}) == (
        "next interim analysis at 4 seeds",
        f"likely to decide: about {beyond.more_seeds} more seeds, beyond the plan's 4: that takes a new plan of"
        f" {3 + beyond.more_seeds} fresh seeds",
    )
    assert next_steps(within.reasons, {"shuffled": control}) == (
        "next interim analysis at 900 seeds",
        "likely to decide: about 897 more seeds",  # the plan's end, and not beyond it
    )


def test_what_no_number_of_seeds_would_decide() -> None:
    reasons = verdict(
        [88.0, 88.4, 88.2, 88.2],
        [88.1, 88.3, 88.1, 88.3],
        {"shuffled": [88.2, 88.2, 88.3, 88.1]},
        interim=InterimAnalyses((3, 8)),
    ).reasons
    assert reasons[-3:] == (
        "no decision is planned at 4 seeds",
        "next interim analysis at 8 seeds",
        f"even {MOST_SEEDS} seeds would not be likely to decide at these means",
    )


def test_at_an_analysis_of_the_plan_nothing_is_said_of_a_missing_one() -> None:
    reasons = verdict(SCATTERED[:3], DENSE[:3], {"shuffled": FAR[:3]}, interim=InterimAnalyses()).reasons
    assert not any("no decision is planned" in reason for reason in reasons)
    assert "next interim analysis at 5 seeds" in reasons


# -- what it rests on --------------------------------------------------------------------------------------------------


def test_what_a_verdict_assumes() -> None:
    """1 - 0.05^(1/8) = 31.2 %: the rate of collapses that eight seeds without one do not exclude."""
    assert verdict(NEAR, DENSE, claim="matches", margin=0.25).assumptions == (
        "seeds share no randomness",
        "the standard deviation of seeds is taken to be at least 0.25",
        "up to 5 % of seeds may fall 1.25 below the others undetected",
        "none of 8 collapsed: a rate of up to 31 % is not excluded (at 95 %)",
        SETTLED,
    )


def test_only_a_plan_allows_for_seeds_that_are_added() -> None:
    assert SETTLED not in verdict(NEAR[:5], DENSE[:5], claim="matches", interim=InterimAnalyses((5, 8))).assumptions


def test_seeds_that_collapsed_are_counted() -> None:
    """One of eight: Clopper and Pearson's upper bound is 47 %."""
    bound = stats.binomtest(1, 8).proportion_ci(0.9).high
    assert verdict([*NEAR[:7], 60.0], DENSE, claim="matches").assumptions[3] == (
        f"1 of 8 collapsed: a rate of up to {100 * bound:.0f} % is not excluded (at 95 %)"
    )


def test_a_rate_is_told_in_whole_per_cent() -> None:
    """1 - 0.05^(1/4) = 52.7 %."""
    told = verdict(NEAR[:4], DENSE[:4], claim="matches").assumptions[3]
    assert told == "none of 4 collapsed: a rate of up to 53 % is not excluded (at 95 %)"


def test_two_seeds_tell_of_no_collapse() -> None:
    assert verdict(NEAR[:2], DENSE[:2], claim="matches").assumptions == (
        "seeds share no randomness",
        "the standard deviation of seeds is taken to be at least 0.5",
        "up to 5 % of seeds may fall 2.5 below the others undetected",
        SETTLED,
    )
