"""The verdict: is a ticket as good as the dense network, and is it better than every control?

Two questions about paired seeds (`evidence.comparison`) are each answered "yes", "no" or "undecided":

- *as good as dense*: "yes" if the ticket is shown not to be worse than the dense network by the margin or more, "no" if
  it is shown to be worse by more than the margin;
- *better than every control*: "yes" if the ticket is shown to be better than each control, "no" if it is shown to be
  worse than one. This is the lottery ticket hypothesis: *these* connections with *these* weights matter. At a density
  of 0.8 controls do as well, so no "yes" can be expected.

A ticket *wins* if both are "yes", *matches* if it is as good as dense, and *loses* if it is not. The claim
``"matches"`` does not wait for the controls.

Every test is at alpha = 1 - confidence. "Better than *every* control" and "wins" hold only if every single test is
significant, so no correction is needed (intersection-union test: Berger, "Multiparameter hypothesis testing and
acceptance sampling", Technometrics 24, 1982). "Worse than *some* control" is wrong if any test errs, so Bonferroni's
correction applies.

Importing this module imports neither SciPy, NumPy nor torch.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, inf, log10
from typing import Any, NoReturn, get_args

from msgspec.structs import replace

from ticketry.choices import check_choice, describe_name_difference
from ticketry.errors import UsageError
from ticketry.evidence.comparison import (
    INTERIM,
    Comparison,
    InterimAnalyses,
    check_budgets,
    check_comparison_settings,
    compare,
    seeds_needed,
)
from ticketry.evidence.significance import (
    LEAST_SEEDS,
    LEAST_SPREAD,
    LOST,
    MOST_SEEDS,
    UNSEEN_FALL,
    UNSEEN_RATE,
    PooledSD,
    replicates_needed,
)
from ticketry.records.metric import format_number
from ticketry.records.network import DENSE
from ticketry.records.verdict import Answer, Claim, Difference, LevelVerdict, Outcome, VerdictAnswers, describe_answers


def decide_answer(p_yes: float, p_no: float, alpha: float) -> Answer:
    """Return the answer whose p-value is at most alpha: "yes" or "no"; "undecided" if there is none."""
    return "yes" if p_yes <= alpha else "no" if p_no <= alpha else "undecided"


class Verdict(VerdictAnswers[NoReturn], frozen=True, kw_only=True):
    """A verdict with its comparisons; p-values are corrected for interim analyses and compared with alpha."""

    outcome: Outcome
    """The strongest outcome that is shown."""
    dense: Comparison
    controls: Mapping[str, Comparison]
    next_analysis: int | None
    """Number of seeds of the next interim analysis; None if no further one is planned or needed."""

    @property
    def shown(self) -> bool:
        """Whether the outcome equals the claim."""
        return self.outcome == self.claim

    def _repr_html_(self) -> str:
        compared = {DENSE: self.dense, **self.controls}
        return self.to_html(
            self.outcome, [(name, one.mean, one.low, one.high, one.p_value_for(name)) for name, one in compared.items()]
        )


def verdict(
    ticket: Sequence[float],
    dense: Sequence[float],
    controls: Mapping[str, Sequence[float]] | None = None,
    *,
    claim: Claim = "wins",
    margin: float = 0.5,
    confidence: float = 0.95,
    higher_is_better: bool = True,
    resolution: float | None = None,
    least_spread: float | None = None,
    interim: InterimAnalyses | None = None,
    steps: Mapping[str, Sequence[int]] | None = None,
    parents: Sequence[Hashable] | None = None,
    unit: str | None = None,
) -> Verdict:
    """Judge a ticket by the metric on the test split of the ticket, the dense network and controls.

    Args:
        ticket, dense: the metric of both networks, one value for each seed, in the margin's unit (accuracies in %).
        controls: name of a control -> its metric, in the same order of seeds.
        claim: what is claimed: "wins" needs at least one control, "matches" needs none.
        margin: how much worse still counts as equally good, in the metric's unit.
        higher_is_better: False for a loss or an error.
        resolution: the metric's smallest possible change, see `compare`.
        confidence: 1 - the largest probability of a false "yes", and also 1 - the largest probability of a false "no".
        least_spread: SD floor in the margin's unit (`significance`); by default the margin. Set this if the margin is
            far from the SD of your networks.
        interim: plan of interim analyses, if seeds are added until a decision is reached; only the analysis after all
            given seeds is made. `decide_after` also makes the earlier ones.
        steps: network -> its training steps with each seed; all must be equal.
        parents: for each seed, a key of what it may share with other seeds, such as a dense network or an
            initialisation. Seeds with equal parents are averaged and count as one. By default seeds share nothing.
        unit: unit of the values: "%", "s", …. If the unit is None, or "" for a metric where higher is better, values
            between 0 and 1 count as fractions if the margin is 0.1 or more.

    Raises:
        UsageError: if numbers of values, steps or parents differ, a value is not finite, values are fractions but the
            margin is in points, "wins" is claimed without controls, there are more seeds than the plan has, or a
            setting is out of range.

    Examples:
        >>> ticket, dense = [97.9, 97.8, 98.1, 97.9, 97.6], [97.6, 97.5, 97.7, 97.6, 97.4]
        >>> random = [96.7, 96.5, 96.8, 96.6, 96.4]
        >>> found = tk.evidence.verdict(ticket, dense, {"random_reinit": random}, margin=0.5)
        >>> found.outcome, found.as_good_as_dense, found.better_than_controls
        ('wins', 'yes', 'yes')
        >>> round(found.dense.mean, 2), round(found.controls["random_reinit"].mean, 2)
        (0.3, 1.26)
        >>> print(found.reasons[0])
        as good as dense: yes; better than every control: yes
    """
    _check_metric_values("ticket", ticket)
    _check_metric_values(DENSE, dense)
    _check_values_by_network("controls", {} if controls is None else controls)
    _check_values_by_network("steps", {} if steps is None else steps)
    check_budgets(steps or {})
    networks = ["ticket", DENSE, *(controls or {})]
    if unknown := [name for name in steps or {} if name not in networks]:
        raise UsageError(f"steps names a network without values: {describe_name_difference(unknown, networks)}")
    rules = _Rules(
        claim=claim,
        margin=margin,
        confidence=confidence,
        higher_is_better=higher_is_better,
        resolution=resolution,
        least_spread=least_spread,
        interim=interim,
        unit=unit,
    )
    _check_plan_has_seeds(len(ticket), interim)
    return _add_reasons(_judge_with_given_seeds(rules, ticket, {DENSE: dense, **(controls or {})}, parents), interim)


def level_verdict(
    ticket: Sequence[float],
    dense: Sequence[float],
    controls: Mapping[str, Sequence[float]],
    *,
    pooled: Mapping[str, PooledSD],
    steps: Mapping[str, Sequence[int]] | None = None,
    parents: Sequence[Hashable] | None = None,
    **rules: Any,
) -> Verdict:
    """Judge one level of a search like `verdict`, but by the tests of `significance` that pool the SD over levels."""
    check_budgets(steps or {})
    chosen = _Rules(least_spread=next(iter(pooled.values())).sd_floor, pooled=pooled, **rules)
    return _add_reasons(_judge_with_given_seeds(chosen, ticket, {DENSE: dense, **controls}, parents), None)


def decide_after(
    ticket: Sequence[float],
    dense: Sequence[float],
    controls: Mapping[str, Sequence[float]] | None = None,
    *,
    interim: InterimAnalyses,
    parents: Sequence[Hashable] | None = None,
    stop: bool = True,
    **rules: Any,
) -> Verdict:
    """Return the verdict of the first interim analysis that decides, or of all seeds if none does.

    Seeds are in the order of their training. Answers are final: seeds after the decision are ignored.

    Args:
        stop: if False, all seeds are analysed. This is needed for verdicts that are corrected together
            (`holm_verdicts`), because a decision may not hold after the correction. Each p-value is then the smallest
            over all analyses, after division by the analysis's share of alpha (union bound).
        rules: further arguments of `verdict`.
    """
    chosen = _Rules(interim=interim, **rules)
    n, others = len(ticket), {DENSE: dense, **(controls or {})}
    _check_plan_has_seeds(n, interim)
    made: Verdict | None = None
    for count in (*(at for at in interim.at if at < n), n):
        if count < n:  # report unequal numbers of values early
            _check_equal_value_counts(n, others)
        first = {name: values[:count] for name, values in others.items()}
        now = _judge_with_given_seeds(chosen, ticket[:count], first, None if parents is None else parents[:count])
        made = now if made is None else _add_answers_and_outcome(_combine_analyses(made, now, stop), interim)
        if made.decided and stop:
            break
    assert made is not None
    return _add_reasons(made, interim)


def _check_plan_has_seeds(seeds: int, interim: InterimAnalyses | None) -> None:
    if interim is not None and seeds > interim.last:
        raise UsageError(
            f"{seeds} seeds, but the plan ends at {interim.last}: judge the first {interim.last}, or plan anew"
        )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values, corrected for multiple testing by Holm's procedure, in the same order.

    Compare the results with alpha. Holm, "A simple sequentially rejective multiple test procedure" (Scandinavian
    Journal of Statistics 6, 1979); valid under any dependence. Raise `UsageError` if one of `p_values` is not in 0 … 1.

    Examples:
        >>> tk.evidence.holm([0.25, 0.0625, 0.02])
        [0.25, 0.125, 0.06]
    """
    for p in p_values:
        if not 0 <= p <= 1:
            raise UsageError(f"{p} is not a p-value: it must be between 0 and 1")
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def holm_verdicts(
    verdicts: Sequence[Verdict], plans: Sequence[InterimAnalyses | None] | None = None, family: int | None = None
) -> list[Verdict]:
    """Correct all verdicts of one report, such as those of several densities, by `holm`; return them.

    The probability of any false "yes", "no" or "wins" in the report is then that of a single verdict. Answers that no
    longer hold become undecided.

    Args:
        plans: each verdict's plan of interim analyses or None, for estimates of how many more seeds are needed.
        family: number of hypotheses to correct for, if it is larger than the number of verdicts.
    """
    total = max(len(verdicts), family or 0)
    padding = [1.0] * (total - len(verdicts))
    names = ("p", "p_as_good", "p_loses", "p_better", "p_not_better")
    lists = [holm([*(getattr(one, name) for one in verdicts), *padding])[: len(verdicts)] for name in names]
    corrected = []
    found = zip(verdicts, plans or [None] * len(verdicts), zip(*lists, strict=True), strict=True)
    for one, plan, (p, as_good, loses, better, not_better) in found:
        made = replace(one, p_as_good=as_good, p_loses=loses, p_better=better, p_not_better=not_better)
        made = _add_reasons(_add_answers_and_outcome(made, plan, p, total), plan, total)
        if one.outcome != made.outcome:
            why = f"{one.outcome!r} does not hold among {total} verdicts (Holm): train more seeds"
            made = replace(made, reasons=(*made.reasons, why))
        corrected.append(made)
    return corrected


# -- one analysis ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Rules:
    """The arguments of `verdict` that set the rules: all except the networks' values, steps and parents."""

    claim: Claim = "wins"
    margin: float = 0.5
    confidence: float = 0.95
    higher_is_better: bool = True
    resolution: float | None = None
    least_spread: float | None = None
    interim: InterimAnalyses | None = None
    unit: str | None = None
    pooled: Mapping[str, PooledSD] | None = None
    """Pooled SD over the levels of a search, by network; None for a verdict of a single ticket."""

    def __post_init__(self) -> None:
        check_choice("claim", self.claim, get_args(Claim))
        check_comparison_settings(self.margin, self.confidence, self.resolution, self.least_spread)

    def compare_with(self, ticket: Sequence[float], other: Sequence[float], name: str) -> Comparison:
        return compare(
            ticket,
            other,
            margin=self.margin,
            confidence=self.confidence,
            higher_is_better=self.higher_is_better,
            resolution=self.resolution,
            least_spread=LEAST_SPREAD * self.margin if self.least_spread is None else self.least_spread,
            pooled=None if self.pooled is None else self.pooled[name],
            name=name,
        )


def _judge_with_given_seeds(
    rules: _Rules, ticket: Sequence[float], others: Mapping[str, Sequence[float]], parents: Sequence[Hashable] | None
) -> Verdict:
    """Test once, with all given seeds, whether the ticket is as good as dense and better than every control.

    `others` are the values of the dense network and of all controls.
    """
    n, claim, margin = len(ticket), rules.claim, rules.margin
    if claim == "wins" and len(others) == 1:
        raise UsageError("'wins' needs a control to win against: train controls, or claim 'matches'")
    seen = [*ticket, *others[DENSE]]
    may_be_fractions = margin >= 0.1 and (rules.unit is None or (not rules.unit and rules.higher_is_better))
    if may_be_fractions and seen and all(0 <= value <= 1 for value in seen):
        raise UsageError(f"a margin of {margin} for values between 0 and 1: give both in percent, or both as fractions")
    _check_equal_value_counts(n, others)
    own = average_by_parent(ticket, parents)
    compared = {
        name: rules.compare_with(own, average_by_parent(values, parents), name) for name, values in others.items()
    }
    dense = compared.pop(DENSE)
    weight = 1.0 if rules.interim is None else rules.interim.alphas(1.0).get(n, 0.0)
    better = max((one.p_superior for one in compared.values()), default=1.0)
    worse = min((one.p_worse for one in compared.values()), default=1.0) * len(compared)
    p_values = (dense.p_noninferior, dense.p_inferior, better, worse if compared else 1.0)
    as_good, loses, better, not_better = (min(1.0, p / weight) if weight else 1.0 for p in p_values)
    made = Verdict(
        outcome="undecided",
        as_good_as_dense="undecided",
        better_than_controls="undecided",
        not_beaten=tuple(compared),
        claim=claim,
        margin=margin,
        confidence=rules.confidence,
        n=n,
        groups=dense.n,
        dense=dense,
        controls=compared,
        p=1.0,
        p_as_good=as_good,
        p_loses=loses,
        p_better=better,
        p_not_better=not_better,
        more_seeds=None,
        next_analysis=None,
        reasons=(),
        assumptions=(),
    )
    return _add_answers_and_outcome(made, rules.interim)


def _check_values_by_network(name: str, values: Mapping[str, Sequence[float]]) -> None:
    if not isinstance(values, Mapping):
        raise UsageError(f"{name}= must be a mapping from names of networks to lists of numbers, not {values!r:.60}")
    for network, each in values.items():
        _check_metric_values(f"{name}[{network!r}]", each)


def _check_metric_values(name: str, values: Sequence[float]) -> None:
    try:
        wrong = isinstance(values, (str, bytes)) or any(isinstance(one, (str, bytes)) for one in values)
        for one in values:
            float(one)
    except (TypeError, ValueError):
        wrong = True
    if wrong:
        raise UsageError(f"{name}= must be a list of numbers, one for each seed, not {values!r:.60}")


def _check_equal_value_counts(n: int, others: Mapping[str, Sequence[float]]) -> None:
    for name, values in others.items():
        if len(values) != n:
            raise UsageError(
                f"{n} values of the ticket and {len(values)} of {name}: seeds are compared in pairs,"
                " so train both with the same ones"
            )


def average_by_parent(values: Sequence[float], parents: Sequence[Hashable] | None) -> Sequence[float]:
    """Average the values of seeds with equal `parents`; return one value per parent, ordered by its first seed."""
    if parents is None:
        return values
    if len(parents) != len(values):
        raise UsageError(f"{len(parents)} parents of {len(values)} seeds: give one for each seed")
    of: dict[Hashable, list[float]] = {}
    for parent, value in zip(parents, values, strict=True):
        of.setdefault(parent, []).append(float(value))
    return [sum(those) / len(those) for those in of.values()]


def _combine_analyses(before: Verdict, made: Verdict, stop: bool) -> Verdict:
    """Combine an earlier and a later analysis: keep earlier answers if `stop`, otherwise take the smaller p-values."""
    dense, controls = before.as_good_as_dense != "undecided", before.better_than_controls != "undecided"
    return replace(
        made,
        p_as_good=before.p_as_good if dense and stop else min(before.p_as_good, made.p_as_good),
        p_loses=before.p_loses if dense and stop else min(before.p_loses, made.p_loses),
        p_better=before.p_better if controls and stop else min(before.p_better, made.p_better),
        p_not_better=before.p_not_better if controls and stop else min(before.p_not_better, made.p_not_better),
    )


def _add_answers_and_outcome(
    made: Verdict, interim: InterimAnalyses | None, p_of_all: float | None = None, verdicts: int = 1
) -> Verdict:
    """Return the verdict with answers and outcome set according to its p-values.

    Args:
        p_of_all: p-value of the whole claim, if corrected for several verdicts; by default the largest p-value of its
            parts.
        verdicts: number of verdicts that are corrected together.
    """
    alpha, claim = 1 - made.confidence, made.claim
    as_good = decide_answer(made.p_as_good, made.p_loses, alpha)
    better = decide_answer(made.p_better, made.p_not_better, alpha) if made.controls else "undecided"
    p = max(made.p_as_good, made.p_better) if claim == "wins" else made.p_as_good
    if p_of_all is not None:
        p = p_of_all
        if claim == "wins" and as_good == better == "yes" and p > alpha:
            # Each answer holds among its kind, but not both together: revoke the weaker one.
            as_good, better = ("undecided", better) if made.p_as_good > made.p_better else (as_good, "undecided")
    outcome: Outcome = "loses" if as_good == "no" else "undecided"
    if as_good == "yes":
        outcome = "wins" if claim == "wins" and better == "yes" else "matches"
    not_beaten: tuple[str, ...] = ()
    if better != "yes":
        level = alpha * (1.0 if interim is None else interim.alphas(1.0).get(made.n, 0.0)) / verdicts
        p_superior = {name: one.p_superior for name, one in made.controls.items()}
        least_certain = sorted(p_superior, key=lambda name: p_superior[name])[-1:]
        not_beaten = tuple(name for name, p in p_superior.items() if p > level) or tuple(least_certain)
    return replace(
        made,
        outcome=outcome,
        as_good_as_dense=as_good,
        better_than_controls=better,
        not_beaten=not_beaten,
        p=p,
    )


def _add_reasons(made: Verdict, interim: InterimAnalyses | None, verdicts: int = 1) -> Verdict:
    """Return the verdict with its reasons, its assumptions and the estimated number of missing seeds added."""
    later = [] if interim is None or made.decided else [at for at in interim.at if at > made.n]
    more = 0 if made.decided else estimate_more_seeds(made, (1 - made.confidence) / verdicts, interim)
    made = replace(made, more_seeds=more, next_analysis=later[0] if later else None)
    return replace(made, reasons=explain_verdict(made, interim), assumptions=list_assumptions(made, interim))


ASSUMED_SPREAD = 0.8
"""SD of paired differences, in margins, that is assumed if the SD is unknown: 0.4 points at a margin of 0.5, as
measured with LeNet-300-100 on Fashion-MNIST."""


def estimate_more_seeds(made: Verdict, alpha: float, interim: InterimAnalyses | None) -> int | None:
    """Estimate how many more seeds will answer the undecided questions; None if they are too many.

    Args:
        alpha: sum of the error rates of all analyses.
        interim: plan of interim analyses, if any. Up to its last analysis, the estimate is the number of seeds of an
            analysis, tested with that analysis's share of alpha; beyond the plan, one test with the last share is
            assumed.
    """
    dense, rivals = made.dense, list(made.controls.values()) if made.claim == "wins" else []
    each, shares = (
        made.n / made.groups,
        {0: 1.0} if interim is None else interim.alphas(1.0),
    )  # number of seeds -> share
    ahead = {at: share for at, share in shares.items() if at > made.n or at == max(shares)}

    def seeds_to_show(one: Comparison, distance: float, spread: float | None = None, part: float = 1.0) -> float:
        spread = (one.spread or 0.0) if spread is None else spread
        seeds = inf
        for at, share in ahead.items():
            level = alpha * part * share
            if one.pooled is None:
                found = seeds_needed(distance, spread, level, least_spread=one.least_spread)
            else:
                found = replicates_needed(distance, max(spread, one.pooled.sd_floor), level, one.pooled)
            seeds = inf if found is None else round(found * each)
            if seeds <= at:
                return at
        return seeds

    if dense.spread is None or any(one.spread is None for one in rivals):
        enough = seeds_to_show(dense, dense.margin, ASSUMED_SPREAD * dense.margin)
    else:
        open_still, worse = made.as_good_as_dense == "undecided", seeds_to_show(dense, -dense.mean - dense.margin)
        parts = [min(seeds_to_show(dense, dense.mean + dense.margin), worse)] if open_still else []
        if rivals and made.better_than_controls == "undecided":
            refuted = min(seeds_to_show(one, -one.mean, part=1 / len(rivals)) for one in rivals)
            parts.append(min(max(seeds_to_show(one, one.mean) for one in rivals), refuted))
        enough = min(max(parts), worse if open_still else inf)
    return None if enough == inf else max(1, int(enough) - made.n)


def seeds_for_verification(level: LevelVerdict) -> int | None:
    """Estimate the number of seeds with which a verification decides with probability 80 %.

    The result is None if the number is above 1,000.

    The true differences and SDs are assumed to be those observed at this level. A verification uses the guarded tests,
    with a share of alpha for its last analysis.
    """
    last = InterimAnalyses(INTERIM).alphas(1.0)[INTERIM[-1]]
    alpha, margin = (1 - level.confidence) * last, level.margin

    def seeds_to_show(one: Difference, *distances: float) -> int | None:
        spread = ASSUMED_SPREAD * margin if one.sd is None else one.sd
        found = [seeds_needed(distance, spread, alpha, least_spread=LEAST_SPREAD * margin) for distance in distances]
        return min((count for count in found if count is not None), default=None)

    to_dense = next(one for one in level.comparisons if one.role == DENSE)
    open_hypotheses = []
    if level.as_good_as_dense == "undecided":
        mean = 0.0 if to_dense.sd is None else to_dense.mean
        open_hypotheses.append(seeds_to_show(to_dense, mean + margin, -mean - margin))
    if level.claim == "wins" and level.better_than_controls == "undecided":
        rivals = [one for one in level.comparisons if one.role in level.not_beaten]
        open_hypotheses += [seeds_to_show(one, one.mean, -one.mean) for one in rivals]
    counts = [count for count in open_hypotheses if count is not None]
    if not counts or len(counts) < len(open_hypotheses):
        return None
    enough = max(counts)
    return next((planned for planned in INTERIM if planned >= enough), enough)  # no decision in between


_SETTLED = "their number was fixed beforehand: repeated verdicts as seeds are added err more often"
_FINER = 0.01
"""Margin below which differences are written with more than two decimals."""


def explain_verdict(made: Verdict, interim: InterimAnalyses | None) -> tuple[str, ...]:
    """Explain a verdict in lines of text: answers, comparisons, unusual findings, and next steps if undecided."""
    lines = [describe_answers(made.as_good_as_dense, made.better_than_controls, made.not_beaten, bool(made.controls))]
    sample = _format_seed_count(made.n) if made.groups == made.n else _format_parent_count(made.groups)
    for name, one in {DENSE: made.dense, **made.controls}.items():
        wanted = f"within {one.margin:g} of" if name == DENSE else "above"
        found = f"{_format_mean_and_interval(one)} over {sample}"
        lines.append(f"ticket - {name}: {found}; {wanted} it with p = {one.p_value_for(name):.2g}")
        lines += [one.note] if one.note else []
        lines += one.diagnosis.reasons if one.diagnosis else ()
    if made.groups < made.n:
        few = f": fewer than {LEAST_SEEDS} decide nothing" if made.groups < LEAST_SEEDS else ""
        lines.append(
            f"the {_format_seed_count(made.n)} come from {_format_parent_count(made.groups)};"
            f" those of one parent count as one{few}"
        )
    elif 1 < made.n < LEAST_SEEDS:
        lines.append(f"fewer than {LEAST_SEEDS} seeds decide nothing")
    return (*lines, *_suggest_next_steps(made, interim))


def _format_mean_and_interval(one: Comparison) -> str:
    """Format a comparison's mean and its interval, if it has one, as ``+0.30 [+0.12, +0.48]``."""
    decimals = 2 if one.margin >= _FINER else 1 - floor(log10(one.margin))

    def format_value(value: float) -> str:
        return format_number(value, decimals, sign=True)

    return format_value(one.mean) + (
        "" if one.low is None or one.high is None else f" [{format_value(one.low)}, {format_value(one.high)}]"
    )


def list_assumptions(made: Verdict, interim: InterimAnalyses | None) -> tuple[str, ...]:
    """List the assumptions of the p-values, and the rate of collapses that the seeds cannot exclude."""
    least = made.dense.least_spread or 0.0
    own = (
        "seeds share no randomness"
        if made.groups == made.n
        else f"{_format_parent_count(made.groups)} share no randomness"
    )
    pooled = made.dense.pooled
    lines = [
        own,
        f"the standard deviation of seeds is taken to be at least {least:g}",
        f"up to {100 * UNSEEN_RATE:g} % of seeds may fall {pooled.collapse_depth if pooled else UNSEEN_FALL * least:g}"
        " below the others undetected",
    ]
    if pooled is not None:
        used = "" if made.dense.spread is None else f": {made.dense.spread:.2g} here"
        lines.append(
            "the standard deviation is the largest of the level's own and the pooled one of"
            f" {pooled.levels} level{'' if pooled.levels == 1 else 's'} of this search{used}, with"
            f" {pooled.degrees_of_freedom(made.groups)} degrees of freedom; levels whose median is more than"
            f" {LOST * pooled.margin:g} from the other network's are not pooled"
        )
    if found := made.dense.diagnosis:
        seen = f"{len(found.low)} of {made.groups}" if found.low else f"none of {made.groups}"
        lines.append(f"{seen} collapsed: a rate of up to {100 * found.collapse_rate:.0f} % is not excluded (at 95 %)")
    return (*lines, *([_SETTLED] if interim is None else []))


def _suggest_next_steps(made: Verdict, interim: InterimAnalyses | None) -> list[str]:
    if made.decided:
        return []
    lines = []
    if interim is not None and made.n not in interim.at:
        lines.append(f"no decision is planned at {_format_seed_count(made.n)}")
    if made.next_analysis is not None:
        lines.append(f"next interim analysis at {made.next_analysis} seeds")
    if made.more_seeds is None:
        return [*lines, f"even {MOST_SEEDS} seeds would not be likely to decide at these means"]
    guess = ""
    if made.dense.spread is None or any(one.spread is None for one in made.controls.values()):
        guess = f", for a true difference of 0 to dense and a spread of {ASSUMED_SPREAD * made.margin:g} (assumed)"
    beyond = interim is not None and made.n + made.more_seeds > interim.last
    fresh = f"a new plan of {made.n + made.more_seeds} fresh seeds"  # seeds that were analysed do not count
    limit = f", beyond the plan's {interim.last}: that takes {fresh}" if interim and beyond else ""
    return [*lines, f"likely to decide: about {_format_seed_count(made.more_seeds, 'more ')}{guess}{limit}"]


def _format_seed_count(count: int, more: str = "") -> str:
    return f"{count} {more}seed{'' if count == 1 else 's'}"


def _format_parent_count(count: int) -> str:
    return f"{count} parent{'' if count == 1 else 's'}"
