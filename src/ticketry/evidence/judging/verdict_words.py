"""A verdict in words: why it is as it is, what is missing, and what it assumes."""

from __future__ import annotations

from math import floor, log10

from ticketry.evidence.judging.guarded_tests import LEAST_SEEDS, UNSEEN_FALL, UNSEEN_RATE
from ticketry.evidence.judging.interim_analyses import InterimAnalyses
from ticketry.evidence.judging.more_seeds import ASSUMED_SPREAD
from ticketry.evidence.judging.one_verdict import Verdict
from ticketry.evidence.judging.paired_comparisons import MOST_SEEDS, Comparison
from ticketry.evidence.judging.pooled_tests import LOST, PooledSD
from ticketry.records.display import describe_answers, format_number
from ticketry.records.network import DENSE

_SETTLED = "their number was settled before they were seen: judged again whenever some are added, they err more often"
_FINER = 0.01
"""A margin below it is finer than two decimals, which is how points of accuracy are told."""


def reasons_of(made: Verdict, interim: InterimAnalyses | None) -> tuple[str, ...]:
    """The answers, a line a comparison, what is unusual, and what an undecided verdict asks for."""
    lines = [describe_answers(made.as_good_as_dense, made.better_than_controls, made.not_beaten, bool(made.controls))]
    for name, one in {DENSE: made.dense, **made.controls}.items():
        wanted = f"within {one.margin:g} of" if name == DENSE else "above"
        told = f"{_difference(one)} over {_over(made)}"
        lines.append(f"ticket - {name}: {told}; {wanted} it with p = {one.p_of(name):.2g}")
        lines += [one.note] if one.note else []
        lines += one.diagnosis.reasons if one.diagnosis else ()
    if made.groups < made.n:
        few = f": fewer than {LEAST_SEEDS} decide nothing" if made.groups < LEAST_SEEDS else ""
        lines.append(f"the {_seeds(made.n)} come from {_parents(made.groups)}; those of one parent count as one{few}")
    elif 1 < made.n < LEAST_SEEDS:
        lines.append(f"fewer than {LEAST_SEEDS} seeds decide nothing")
    return (*lines, *_what_next(made, interim))


def _difference(one: Comparison) -> str:
    """``+0.30 [+0.12, +0.48]``: the mean and its interval, if it has one."""
    decimals = 2 if one.margin >= _FINER else 1 - floor(log10(one.margin))

    def told(value: float) -> str:
        return format_number(value, decimals, sign=True)

    return told(one.mean) + ("" if one.low is None or one.high is None else f" [{told(one.low)}, {told(one.high)}]")


def assumptions_of(made: Verdict, interim: InterimAnalyses | None) -> tuple[str, ...]:
    """What the p-values rest on, and the rate of collapse that the seeds do not exclude."""
    least = made.dense.least_spread or 0.0
    own = "seeds share no randomness" if made.groups == made.n else f"{_parents(made.groups)} share no randomness"
    pooled = made.dense.pooled
    lines = [
        own,
        f"the spread of seeds is not believed to be below {least:g}",
        f"up to {100 * UNSEEN_RATE:g} % of seeds may fall {pooled.fall if pooled else UNSEEN_FALL * least:g} short of"
        " the others without having been seen",
    ]
    if pooled is not None:
        lines.append(_pooled(made, pooled))
    if found := made.dense.diagnosis:
        seen = f"{len(found.low)} of {made.groups}" if found.low else f"none of {made.groups}"
        lines.append(f"{seen} collapsed: a rate of up to {100 * found.collapse_rate:.0f} % is not excluded (at 95 %)")
    return (*lines, *([_SETTLED] if interim is None else []))


def _pooled(made: Verdict, pooled: PooledSD) -> str:
    """The standard deviation that the level was tested with."""
    levels = f"{pooled.levels} level{'' if pooled.levels == 1 else 's'} of this search"
    used = "" if made.dense.spread is None else f": {made.dense.spread:.2g} here"
    return (
        f"the standard deviation is the largest of the level's own and the pooled one of {levels}{used}, with"
        f" {pooled.freedom(made.groups)} degrees of freedom; levels whose median is more than {LOST * pooled.margin:g}"
        " from the other network's are not pooled"
    )


def _what_next(made: Verdict, interim: InterimAnalyses | None) -> list[str]:
    if made.decided:
        return []
    lines = []
    if interim is not None and made.n not in interim.at:
        lines.append(f"no decision is planned at {_seeds(made.n)}")
    if made.next_analysis is not None:
        lines.append(f"next interim analysis at {made.next_analysis} seeds")
    if made.more_seeds is None:
        return [*lines, f"even {MOST_SEEDS} seeds would not be likely to decide at these means"]
    guess = ""
    if made.dense.spread is None or any(one.spread is None for one in made.controls.values()):
        guess = f", for a true difference of 0 to dense and a spread of {ASSUMED_SPREAD * made.margin:g} (assumed)"
    beyond = interim is not None and made.n + made.more_seeds > interim.last
    fresh = f"a new plan of {made.n + made.more_seeds} fresh seeds"  # those that have been seen count no more
    limit = f", beyond the plan's {interim.last}: that takes {fresh}" if interim and beyond else ""
    return [*lines, f"likely to decide: about {_seeds(made.more_seeds, 'more ')}{guess}{limit}"]


def _over(made: Verdict) -> str:
    return _seeds(made.n) if made.groups == made.n else _parents(made.groups)


def _seeds(count: int, more: str = "") -> str:
    return f"{count} {more}seed{'' if count == 1 else 's'}"


def _parents(count: int) -> str:
    return f"{count} parent{'' if count == 1 else 's'}"
