"""The verdict: is a ticket as good as the dense network, and is it better than every control?

Two questions over paired seeds (`evidence.judging.paired_comparisons`), each answered "yes", "no" or "undecided":

- *as good as dense*: worse than the dense network by less than the margin. "no" if it is shown to be worse by more;
- *better than every control*: "no" if it is shown to be worse than one. This is the lottery ticket hypothesis: *these*
  connections with *these* weights matter. At a density of 0.8 controls do as well, so that no "yes" can be expected.

A ticket *wins* if both are "yes", *matches* if it is as good as dense, and *loses* if it is not. Whoever claims
``"matches"`` does not wait for the controls.

Every test is at alpha = 1 - confidence. Better than *every* control needs each test's own error below alpha, and so
does "wins" (intersection-union test: Berger, "Multiparameter hypothesis testing and acceptance sampling", Technometrics
24, 1982). Worse than *some* control is shown wrongly if one test errs, hence Bonferroni's correction.

Nothing here imports SciPy, NumPy or torch when it is imported, for `ticketry.evidence` binds `verdict`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

from msgspec.structs import replace

from ticketry.choices import check_choice, describe_name_difference
from ticketry.errors import UsageError
from ticketry.evidence.judging.answers import answer, outcome
from ticketry.evidence.judging.guarded_tests import LEAST_SPREAD
from ticketry.evidence.judging.interim_analyses import INTERIM as INTERIM
from ticketry.evidence.judging.interim_analyses import InterimAnalyses as InterimAnalyses
from ticketry.evidence.judging.more_seeds import more_seeds
from ticketry.evidence.judging.one_verdict import Verdict as Verdict
from ticketry.evidence.judging.paired_comparisons import Comparison, check_budgets, compare, with_pooled_sd
from ticketry.evidence.judging.pooled_tests import PooledSD
from ticketry.evidence.judging.ranges import check_settings
from ticketry.evidence.judging.verdict_words import assumptions_of, reasons_of
from ticketry.records.network import DENSE
from ticketry.records.verdict import Claim


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
    """Judge a ticket by the values it and the others reached on the test split, one value a seed, paired by position.

    Args:
        ticket, dense, controls: values in the margin's unit: accuracies in %, not as fractions.
        claim: what is to be shown: "wins" needs at least one control, "matches" none.
        margin: see `compare`; also `higher_is_better` and `resolution`.
        confidence: 1 - the probability of a false "yes", and 1 - that of a false "no", to either question.
        least_spread: of seeds, in the margin's unit: none below it is believed (`guarded_tests`); by default the
            margin. Give your own where the margin is far from the spread of your networks.
        interim: the plan, if seeds are added until a decision is reached. `decide_after` then remembers
            earlier analyses.
        steps: training steps of each seed by network, checked to be equal.
        parents: for each seed, what it shares with others: a dense parent, an initialisation. Seeds with the same
            parent count as one, their mean. By default seeds share nothing.
        unit: of the values: "%", "s", …; where it is not known, or is "" and more is better, values between 0 and 1
            are taken for fractions if the margin is 0.1 or more.

    Raises:
        UsageError: unequal numbers of values, of steps or of parents, values that are not finite, fractions with a
            margin in points, "wins" without controls, more seeds than the plan has, a setting out of its range.

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
    _check_values("ticket", ticket)
    _check_values(DENSE, dense)
    _check_each("controls", {} if controls is None else controls)
    _check_each("steps", {} if steps is None else steps)
    check_budgets(steps or {})
    networks = ["ticket", DENSE, *(controls or {})]
    if unknown := [name for name in steps or {} if name not in networks]:
        raise UsageError(f"steps names a network without values: {describe_name_difference(unknown, networks)}")
    rules = _Rules(claim, margin, confidence, higher_is_better, resolution, least_spread, interim, unit)
    _check_planned(len(ticket), interim)
    return _worded(_analysis(rules, ticket, {DENSE: dense, **(controls or {})}, parents), interim)


def level_verdict(
    ticket: Sequence[float],
    dense: Sequence[float],
    controls: Mapping[str, Sequence[float]],
    *,
    pooled: Mapping[str, PooledSD],
    claim: Claim,
    margin: float,
    confidence: float = 0.95,
    higher_is_better: bool = True,
    resolution: float | None = None,
    steps: Mapping[str, Sequence[int]] | None = None,
    parents: Sequence[Hashable] | None = None,
    unit: str | None = None,
) -> Verdict:
    """Judge one level of a search by the tests of `judging.pooled_tests`. Arguments are those of `verdict`.

    Args:
        pooled: for the dense network and each control, the SD over the levels of the search.
    """
    check_budgets(steps or {})
    floor = next(iter(pooled.values())).floor
    rules = _Rules(claim, margin, confidence, higher_is_better, resolution, floor, None, unit, pooled)
    return _worded(_analysis(rules, ticket, {DENSE: dense, **controls}, parents), None)


def decide_after(
    ticket: Sequence[float],
    dense: Sequence[float],
    controls: Mapping[str, Sequence[float]] | None = None,
    *,
    interim: InterimAnalyses,
    claim: Claim = "wins",
    margin: float = 0.5,
    confidence: float = 0.95,
    higher_is_better: bool = True,
    resolution: float | None = None,
    least_spread: float | None = None,
    parents: Sequence[Hashable] | None = None,
    unit: str | None = None,
    stop: bool = True,
) -> Verdict:
    """The verdict at the first planned interim analysis that decides, or at the number of seeds there are.

    Seeds are in the order in which they were trained. An answer once given stands, and when nothing is left to decide,
    seeds after that are left out.

    Args:
        stop: False uses all seeds that there are, for a verdict that is corrected with others (`holm_verdicts`): what
            decides by itself may not decide among them, and then seeds that come later have to count. Its p-values
            are the smallest of all analyses, each divided by its share of alpha, and so hold whenever they are read
            (union bound).

    Raises:
        UsageError: as `verdict`.
    """
    rules = _Rules(claim, margin, confidence, higher_is_better, resolution, least_spread, interim, unit)
    n, others = len(ticket), {DENSE: dense, **(controls or {})}
    _check_planned(n, interim)
    made: Verdict | None = None
    for count in (*(at for at in interim.at if at < n), n):
        if count < n:  # or else unequal numbers of values would be told late
            _check_pairs(n, others)
        first = {name: values[:count] for name, values in others.items()}
        now = _analysis(rules, ticket[:count], first, None if parents is None else parents[:count])
        made = now if made is None else _answered(_standing(made, now, stop), interim)
        if made.decided and stop:
            break
    assert made is not None
    return _worded(made, interim)


def _check_planned(seeds: int, interim: InterimAnalyses | None) -> None:
    if interim is not None and seeds > interim.last:
        raise UsageError(
            f"{seeds} seeds, but the plan ends at {interim.last}: judge the first {interim.last}, or plan anew"
        )


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in their order: compare each with alpha.

    Holm, "A simple sequentially rejective multiple test procedure" (Scandinavian Journal of Statistics 6, 1979): valid
    however they depend on each other.

    Args:
        p_values: of as many tests, each in 0 … 1.

    Raises:
        UsageError: if one is not in 0 … 1.

    Examples:
        >>> tk.evidence.holm([0.25, 0.0625, 0.02])
        [0.25, 0.125, 0.06]
    """
    for p in p_values:
        if not 0 <= p <= 1:
            raise UsageError(f"{p} is no p-value: it must lie between 0 and 1")
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def holm_verdicts(
    verdicts: Sequence[Verdict],
    plans: Sequence[InterimAnalyses | None] | None = None,
    family: int | None = None,
) -> list[Verdict]:
    """The verdicts of one report, of several densities say, corrected for their number by `holm`.

    A false "yes" to one of the questions anywhere in the report is then as unlikely as in a single verdict; so is a
    false "no", and a false win. What does not hold any more becomes undecided.

    Args:
        plans: of each verdict the interim analyses that it was made by, if it was: how many seeds more it takes
            depends on what of alpha these leave for the last.
        family: the number of hypotheses to correct for, where it is larger than that of the verdicts.
    """
    total = max(len(verdicts), family or 0)
    padding = [1.0] * (total - len(verdicts))
    names = ("p", "p_as_good", "p_loses", "p_better", "p_not_better")
    lists = [holm([*(getattr(one, name) for one in verdicts), *padding])[: len(verdicts)] for name in names]
    corrected = []
    found = zip(verdicts, plans or [None] * len(verdicts), zip(*lists, strict=True), strict=True)
    for one, plan, (p, as_good, loses, better, not_better) in found:
        made = replace(one, p_as_good=as_good, p_loses=loses, p_better=better, p_not_better=not_better)
        made = _worded(_answered(made, plan, p, total), plan, total)
        if one.outcome != made.outcome:
            why = f"{one.outcome!r} does not hold among {total} verdicts (Holm): train more seeds"
            made = replace(made, reasons=(*made.reasons, why))
        corrected.append(made)
    return corrected


# -- one analysis ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rules:
    """By which seeds are judged: see `verdict`."""

    claim: Claim
    margin: float
    confidence: float
    higher_is_better: bool
    resolution: float | None
    least_spread: float | None
    interim: InterimAnalyses | None
    unit: str | None
    pooled: Mapping[str, PooledSD] | None = None
    """By network, the SD over the levels of a search; None for a verdict of a ticket alone."""

    @property
    def perhaps_fractions(self) -> bool:
        """Whether values between 0 and 1 may be fractions of what the margin has in %."""
        return self.margin >= 0.1 and (self.unit is None or (not self.unit and self.higher_is_better))

    def __post_init__(self) -> None:
        check_choice("claim", self.claim, get_args(Claim))
        check_settings(self.margin, self.confidence, self.resolution, self.least_spread)

    def compared(self, ticket: Sequence[float], other: Sequence[float], name: str) -> Comparison:
        found = compare(
            ticket,
            other,
            margin=self.margin,
            confidence=self.confidence,
            higher_is_better=self.higher_is_better,
            resolution=self.resolution,
            least_spread=LEAST_SPREAD * self.margin if self.least_spread is None else self.least_spread,
            name=name,
        )
        return found if self.pooled is None else with_pooled_sd(found, self.pooled[name], self.resolution)


def _analysis(
    rules: _Rules,
    ticket: Sequence[float],
    others: Mapping[str, Sequence[float]],
    parents: Sequence[Hashable] | None,
) -> Verdict:
    """The answers of these seeds by themselves, without words. `others`: dense, and every control."""
    n, claim, margin = len(ticket), rules.claim, rules.margin
    if claim == "wins" and len(others) == 1:
        raise UsageError("'wins' needs a control to win against: train controls, or claim 'matches'")
    seen = [*ticket, *others[DENSE]]
    if rules.perhaps_fractions and seen and all(0 <= value <= 1 for value in seen):
        raise UsageError(f"a margin of {margin} for values between 0 and 1: give both in percent, or both as fractions")
    _check_pairs(n, others)
    own = by_parent(ticket, parents)
    compared = {name: rules.compared(own, by_parent(values, parents), name) for name, values in others.items()}
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
    return _answered(made, rules.interim)


def _check_each(name: str, values: Mapping[str, Sequence[float]]) -> None:
    if not isinstance(values, Mapping):
        raise UsageError(f"{name}= is a mapping from names of networks to lists of numbers, not {values!r:.60}")
    for network, each in values.items():
        _check_values(f"{name}[{network!r}]", each)


def _check_values(name: str, values: Sequence[float]) -> None:
    try:
        wrong = isinstance(values, (str, bytes)) or any(isinstance(one, (str, bytes)) for one in values)
        for one in values:
            float(one)
    except (TypeError, ValueError):
        wrong = True
    if wrong:
        raise UsageError(f"{name}= is a list of numbers, one for each seed, not {values!r:.60}")


def _check_pairs(n: int, others: Mapping[str, Sequence[float]]) -> None:
    for name, values in others.items():
        if len(values) != n:
            raise UsageError(
                f"{n} values of the ticket and {len(values)} of {name}: seeds are compared in pairs,"
                " so train both with the same ones"
            )


def by_parent(values: Sequence[float], parents: Sequence[Hashable] | None) -> Sequence[float]:
    """The mean of each parent's seeds, parents in the order of their first seed."""
    if parents is None:
        return values
    if len(parents) != len(values):
        raise UsageError(f"{len(parents)} parents of {len(values)} seeds: give one for each seed")
    of: dict[Hashable, list[float]] = {}
    for parent, value in zip(parents, values, strict=True):
        of.setdefault(parent, []).append(float(value))
    return [sum(those) / len(those) for those in of.values()]


def _standing(before: Verdict, made: Verdict, stop: bool) -> Verdict:
    """The later analysis with the earlier: what was answered stands if that stops it, else the smallest p-value."""
    dense, controls = before.as_good_as_dense != "undecided", before.better_than_controls != "undecided"
    return replace(
        made,
        p_as_good=before.p_as_good if dense and stop else min(before.p_as_good, made.p_as_good),
        p_loses=before.p_loses if dense and stop else min(before.p_loses, made.p_loses),
        p_better=before.p_better if controls and stop else min(before.p_better, made.p_better),
        p_not_better=before.p_not_better if controls and stop else min(before.p_not_better, made.p_not_better),
    )


def _answered(
    made: Verdict, interim: InterimAnalyses | None, p_of_all: float | None = None, verdicts: int = 1
) -> Verdict:
    """The verdict with the answers that its p-values give.

    Args:
        p_of_all: of the claim, corrected for several verdicts; by default that of its weakest part.
    """
    alpha, claim = 1 - made.confidence, made.claim
    as_good = answer(made.p_as_good, made.p_loses, alpha)
    better = answer(made.p_better, made.p_not_better, alpha) if made.controls else "undecided"
    p = max(made.p_as_good, made.p_better) if claim == "wins" else made.p_as_good
    if p_of_all is not None:
        p = p_of_all
        if claim == "wins" and as_good == better == "yes" and p > alpha:
            # Each answer holds among its kind, but not both together: the weaker one is taken back.
            as_good, better = ("undecided", better) if made.p_as_good > made.p_better else (as_good, "undecided")
    weight = 1.0 if interim is None else interim.alphas(1.0).get(made.n, 0.0)
    return replace(
        made,
        outcome=outcome(claim, as_good, better),
        as_good_as_dense=as_good,
        better_than_controls=better,
        not_beaten=() if better == "yes" else _not_beaten(made.controls, alpha * weight / verdicts),
        p=p,
    )


def _not_beaten(controls: Mapping[str, Comparison], level: float) -> tuple[str, ...]:
    """Those that the ticket is not shown to be better than, or else the one of which that is least sure."""
    found = tuple(name for name, one in controls.items() if one.p_superior > level)
    return found or tuple(sorted(controls, key=lambda name: controls[name].p_superior)[-1:])


def _worded(made: Verdict, interim: InterimAnalyses | None, verdicts: int = 1) -> Verdict:
    """The verdict with what it asks for and with its words."""
    following = interim.after(made.n) if interim is not None and not made.decided else None
    more = 0 if made.decided else more_seeds(made, (1 - made.confidence) / verdicts, interim)
    made = replace(made, more_seeds=more, next_analysis=following)
    return replace(made, reasons=reasons_of(made, interim), assumptions=assumptions_of(made, interim))
