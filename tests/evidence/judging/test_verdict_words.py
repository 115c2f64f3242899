"""The words of verdicts, whole: every line that stands there and no other, its numbers reckoned apart from the code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from slow_p_values import slow_p
from ticketry.evidence.comparison import seeds_needed
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
    assert found.reasons[7].startswith("far: differences are skewed (+2.8), so their mean is less certain")


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


def test_an_estimate_from_spreads_that_are_known_assumes_nothing() -> None:
    ticket, dense, control = SCATTERED, DENSE[:4], [87.5, 88.8, 88.1, 87.6]
    found = verdict(ticket, dense, {"shuffled": control})
    parts = [
        seeds_needed(float(np.mean(gap)) + shift, float(np.std(gap, ddof=1)), 0.05, least_spread=0.5)
        for gap, shift in ((np.subtract(ticket, dense), 0.5), (np.subtract(ticket, control), 0.0))
    ]
    more = max(part for part in parts if part is not None) - 4
    assert next_steps(found.reasons, {"shuffled": control}) == (f"likely to decide: about {more} more seeds",)


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


def test_seeds_that_collapsed_are_counted() -> None:
    """One of eight: Clopper and Pearson's upper bound is 47 %."""
    bound = stats.binomtest(1, 8).proportion_ci(0.9).high
    assert verdict([*NEAR[:7], 60.0], DENSE, claim="matches").assumptions[3] == (
        f"1 of 8 collapsed: a rate of up to {100 * bound:.0f} % is not excluded (at 95 %)"
    )
