"""The verdict: does a ticket win, lose, or is it undecided?

Two claims can be tested, over paired seeds (`evidence.paired`):

- ``"wins"``: worse than the dense network by less than the margin, and better than every control. This is the lottery
  ticket hypothesis: *these* connections with *these* weights matter.
- ``"matches"``: worse than the dense network by less than the margin, whatever the controls do. At a density of 0.8
  controls match too, so that a true "wins" cannot be expected there.

A claim is shown if each of its parts is, at the full alpha = 1 - confidence: to claim all, each part's error alone must
be below alpha (intersection-union test: Berger, "Multiparameter hypothesis testing and acceptance sampling",
Technometrics 24, 1982). A ticket *loses* if it is shown to be worse than the dense network by more than the margin or,
under ``"wins"``, to be worse than some control. There, one error in any part is enough, hence Bonferroni's correction.

Nothing here imports SciPy, NumPy or torch when it is imported, for `ticketry.evidence` binds `verdict`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ticketry.errors import UsageError
from ticketry.evidence.paired import (
    MOST_SEEDS,
    Comparison,
    check_budgets,
    check_settings,
    compare,
    seeds_needed,
)

Claim = Literal["wins", "matches"]
Outcome = Literal["wins", "matches", "loses", "undecided"]

ASSUMED_SPREAD = 0.8
"""Standard deviation of paired differences, in margins, where no spread is known: 0.4 points at a margin of 0.5, as
seen with LeNet-300-100 on Fashion-MNIST (docs/results)."""


@dataclass(frozen=True)
class Looks:
    """At how many seeds a decision may be taken. Looking often without a plan finds wins that are not there.

    Look k may err with probability alpha_k, and the alpha_k add up to alpha: the errors of all looks together stay
    below it, however the looks depend on each other (union bound; conservative). They follow the spending function
    alpha * (n / last)^3 of Kim & DeMets (Biometrika 74, 1987), which keeps two thirds of alpha for the last of the
    default looks and still lets three seeds decide what is blatant. The closer the looks, the more the bound costs.
    """

    at: tuple[int, ...] = (3, 5, 7, 10)
    """Numbers of seeds, rising; the last is the limit."""

    def __post_init__(self) -> None:
        rising = all(one < two for one, two in zip(self.at, self.at[1:], strict=False))
        if not self.at or self.at[0] < 2 or not rising:
            raise UsageError(f"looks at {self.at} seeds: give rising numbers from 2 on, such as (3, 5, 7, 10)")

    @property
    def last(self) -> int:
        return self.at[-1]

    def alphas(self, alpha: float) -> dict[int, float]:
        """The level of each look, by its number of seeds; together alpha."""
        spent = [0.0, *(alpha * (n / self.last) ** 3 for n in self.at)]
        return {n: spent[look + 1] - spent[look] for look, n in enumerate(self.at)}

    def after(self, n: int) -> int | None:
        """The next look after n seeds; None if there is none."""
        return next((at for at in self.at if at > n), None)


@dataclass(frozen=True)
class Verdict:
    """What was shown, and by what."""

    outcome: Outcome
    """The claim if it is shown; "loses" if it is refuted; else "undecided"."""
    claim: Claim
    margin: float
    confidence: float
    n: int
    """Seeds."""
    dense: Comparison
    controls: Mapping[str, Comparison]
    p: float
    """Of the claim: small if it is shown. Already corrected for the looks, so compare it with 1 - confidence."""
    p_loses: float
    """The same of its refutation."""
    more_seeds: int | None
    """About how many more would decide with a probability of 80 %, if the means and spreads stay what they are; 0 if it
    is decided, None if more than `paired.MOST_SEEDS` would be needed in all."""
    next_look: int | None
    """At how many seeds to look again, where looks are planned."""
    reasons: tuple[str, ...]
    """Why, in words."""

    @property
    def shown(self) -> bool:
        """Whether the claim is shown."""
        return self.outcome == self.claim


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
    looks: Looks | None = None,
    steps: Mapping[str, Sequence[int]] | None = None,
) -> Verdict:
    """Judge a ticket by the values it and the others reached on the test split, one value a seed, paired by position.

    Args:
        ticket, dense, controls: values in the margin's unit: accuracies in %, not as fractions.
        claim: what is to be shown: "wins" needs at least one control, "matches" none.
        margin: see `compare`; also `higher_is_better` and `resolution`.
        confidence: 1 - the probability of a false claim (one-sided), and 1 - that of a false "loses".
        looks: the plan, if seeds are added until a decision is reached. `decide_after` then remembers earlier looks.
        steps: training steps of each seed by network, checked to be equal.

    Raises:
        UsageError: unequal numbers of values or of steps, values that are not finite, fractions with a margin in
            points, "wins" without controls, more seeds than the plan has, a setting out of its range.
    """
    controls = controls or {}
    check_settings(margin, confidence, resolution)
    _check_request(claim, controls, margin, [*ticket, *dense])
    check_budgets(steps or {})

    def against(name: str, other: Sequence[float]) -> Comparison:
        return compare(
            ticket,
            other,
            margin=margin,
            confidence=confidence,
            higher_is_better=higher_is_better,
            resolution=resolution,
            name=name,
        )

    to_dense = against("dense", dense)
    to_controls = {name: against(name, values) for name, values in controls.items()}
    n, alpha = to_dense.n, 1 - confidence
    if looks is not None and n > looks.last:
        raise UsageError(f"{n} seeds, but the plan ends at {looks.last}: judge the first {looks.last}, or plan anew")
    weight = 1.0 if looks is None else looks.alphas(1.0).get(n, 0.0)
    rivals = to_controls if claim == "wins" else {}
    p, p_loses = (min(1.0, value / weight) if weight else 1.0 for value in _p_values(to_dense, rivals))
    outcome: Outcome = claim if p <= alpha else "loses" if p_loses <= alpha else "undecided"
    level = alpha * (1.0 if looks is None else looks.alphas(1.0)[looks.last])
    following = looks.after(n) if looks is not None and outcome == "undecided" else None
    more = 0 if outcome != "undecided" else _more_seeds(to_dense, rivals, level)
    if more and following is not None:
        more = max(more, following - n)
    made = Verdict(
        outcome,
        claim,
        margin,
        confidence,
        n,
        to_dense,
        to_controls,
        p,
        p_loses,
        more,
        following,
        (),
    )
    return replace(made, reasons=(*_reasons(made), *_what_next(made, looks)))


def decide_after(
    ticket: Sequence[float],
    dense: Sequence[float],
    controls: Mapping[str, Sequence[float]] | None = None,
    *,
    looks: Looks,
    claim: Claim = "wins",
    margin: float = 0.5,
    confidence: float = 0.95,
    higher_is_better: bool = True,
    resolution: float | None = None,
) -> Verdict:
    """The verdict at the first planned look that decides, or at the number of seeds there are.

    Seeds are in the order in which they were trained. A decision once taken stands: seeds after it are left out.

    Raises:
        UsageError: as `verdict`.
    """
    n, controls = len(ticket), controls or {}
    for name, values in {"dense": dense, **controls}.items():
        if len(values) != n:
            raise UsageError(f"{n} values of the ticket and {len(values)} of {name}: train both with the same seeds")
    for count in (*(at for at in looks.at if at < n), n):
        made = verdict(
            ticket[:count],
            dense[:count],
            {name: values[:count] for name, values in controls.items()},
            claim=claim,
            margin=margin,
            confidence=confidence,
            higher_is_better=higher_is_better,
            resolution=resolution,
            looks=looks,
        )
        if made.outcome != "undecided":
            break
    return made


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, in their order: compare each with alpha.

    Holm, "A simple sequentially rejective multiple test procedure" (Scandinavian Journal of Statistics 6, 1979): valid
    however they depend on each other.

    Raises:
        UsageError: if one is not in 0 … 1.
    """
    for p in p_values:
        if not 0 <= p <= 1:
            raise UsageError(f"{p} is no p-value: it must lie between 0 and 1")
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def holm_verdicts(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """The verdicts of one report, of several densities say, corrected for their number by `holm`.

    A false claim anywhere in the report is then as unlikely as in a single verdict; so is a false "loses". What does
    not hold any more becomes undecided.
    """
    corrected = []
    shown, refuted = holm([one.p for one in verdicts]), holm([one.p_loses for one in verdicts])
    for one, p, p_loses in zip(verdicts, shown, refuted, strict=True):
        holds = min(p if one.shown else 1.0, p_loses if one.outcome == "loses" else 1.0) <= 1 - one.confidence
        made = replace(one, p=p, p_loses=p_loses)
        if one.outcome != "undecided" and not holds:
            why = f"{one.outcome!r} does not hold among {len(verdicts)} verdicts (Holm): train more seeds"
            rivals = one.controls if one.claim == "wins" else {}
            more = _more_seeds(one.dense, rivals, (1 - one.confidence) / len(verdicts))
            made = replace(made, outcome="undecided", more_seeds=more, reasons=(*one.reasons, why))
        corrected.append(made)
    return corrected


def _check_request(claim: str, controls: Mapping[str, Sequence[float]], margin: float, values: list[float]) -> None:
    if claim not in ("wins", "matches"):
        raise UsageError(f"claim {claim!r} is not known: wins, matches")
    if claim == "wins" and not controls:
        raise UsageError("'wins' needs a control to win against: train controls, or claim 'matches'")
    if margin >= 0.1 and values and all(0 <= value <= 1 for value in values):
        raise UsageError(f"a margin of {margin} for values between 0 and 1: give both in percent, or both as fractions")


def _p_values(dense: Comparison, rivals: Mapping[str, Comparison]) -> tuple[float, float]:
    """Of the claim: the largest of its parts. Of its refutation: the smallest, times their number."""
    shown = max(dense.p_noninferior, *(one.p_superior for one in rivals.values()), 0.0)
    refuted = min(dense.p_inferior, *(one.p_worse for one in rivals.values()), 1.0)
    return shown, min(1.0, refuted * (1 + len(rivals)))


def _more_seeds(dense: Comparison, rivals: Mapping[str, Comparison], alpha: float) -> int | None:
    """Seeds that are likely to be still missing for either decision, by a test at `alpha` at the end."""
    if dense.spread is None or any(one.spread is None for one in rivals.values()):
        planned = seeds_needed(dense.margin, ASSUMED_SPREAD * dense.margin, alpha)
        return None if planned is None else max(1, planned - dense.n)
    edges = [(dense.mean + dense.margin, dense.spread), *((one.mean, one.spread or 0.0) for one in rivals.values())]
    show = [seeds_needed(distance, spread, alpha) for distance, spread in edges]
    refute = [seeds_needed(-distance, spread, alpha / len(edges)) for distance, spread in edges]
    enough = [count for count in refute if count is not None]
    if None not in show:
        enough.append(max(count for count in show if count is not None))
    return max(1, min(enough) - dense.n) if enough else None


def _reasons(made: Verdict) -> list[str]:
    """One line a comparison."""
    lines = []
    for name, one in {"dense": made.dense, **made.controls}.items():
        interval = "" if one.low is None or one.high is None else f" [{one.low:+.2f}, {one.high:+.2f}]"
        p, wanted = (one.p_noninferior, f"within {one.margin:g} of") if name == "dense" else (one.p_superior, "above")
        lines.append(f"ticket - {name}: {one.mean:+.2f}{interval} over {_seeds(one.n)}; {wanted} it with p = {p:.2g}")
        lines += [one.note] if one.note else []
    return lines


def _what_next(made: Verdict, looks: Looks | None) -> list[str]:
    """What an undecided verdict asks for."""
    if made.outcome != "undecided":
        return []
    lines = []
    if looks is not None and made.n not in looks.at:
        lines.append(f"no decision is planned at {_seeds(made.n)}")
    if made.next_look is not None:
        lines.append(f"look again at {made.next_look} seeds")
    if made.more_seeds is None:
        return [*lines, f"even {MOST_SEEDS} seeds would not be likely to decide at these means"]
    guess = ""
    if made.dense.spread is None or any(one.spread is None for one in made.controls.values()):
        guess = f", for a true difference of 0 to dense and a spread of {ASSUMED_SPREAD * made.margin:g} (assumed)"
    beyond = looks is not None and made.n + made.more_seeds > looks.last
    limit = f", beyond the plan's {looks.last}: that takes a new plan and new seeds" if looks and beyond else ""
    return [*lines, f"likely to decide: about {_seeds(made.more_seeds, 'more ')}{guess}{limit}"]


def _seeds(count: int, more: str = "") -> str:
    return f"{count} {more}seed{'' if count == 1 else 's'}"
