"""Describe the means of a run in one or two sentences (the observation), without statistical tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ticketry.records.network import TICKET
from ticketry.records.run import RunRecord
from ticketry.records.verdict import VERDICTS
from ticketry.report.tables.frontier import TIME, measure_limited_by_budget, relative_call_cost
from ticketry.report.tables.results import Group, Results, margin_and_text
from ticketry.report.wording import Style, factor_text, percent, printable, role_name

CAVEAT = "These are means over replicates, not yet a statistical verdict."
ALONE = "There is one replicate only, which shows no spread: this is not yet evidence."


@dataclass(frozen=True)
class Observation:
    """A description, in words, of the level that the report highlights."""

    finding: str
    """A sentence with the numbers at this level."""
    remark: str = ""
    """Sentences that interpret the numbers, with caveats."""
    level: int | None = None
    """The sparsest level whose tickets match the dense network and beat every control; None if no level does."""

    @property
    def text(self) -> str:
        return f"{self.finding} {self.remark}".strip()


def describe_highlighted_level(results: Results) -> Observation:
    """Describe the sparsest level at which tickets match the dense network; if there is none, the tickets' best level.

    Tickets match if, in the mean of paired differences, they are at most the margin worse than the dense network and
    better than each finished control with the same budget. A run with controls needs at least one finished control. The
    margin is 0.5 points for a metric in %, otherwise 1 % of the dense network's mean.
    """
    style = Style.for_results(results)
    dense, tickets = results.dense, results.groups_of_role(TICKET)
    if dense is None:
        return Observation("No dense network has finished yet, so there is nothing to compare with.")
    if not tickets:
        text = f"Only the dense network has finished so far: {style.format_with_count(dense.metric())} on the test set."
        return Observation(text)
    margin, margin_text = margin_and_text(results, dense)
    matching = [group for group in tickets if _tickets_match_dense(results, group, dense, margin)]
    if matching:
        shown = min(matching, key=lambda group: group.density)
        worse = f"It is the sparsest level at which the tickets' mean is no more than {margin_text} worse than dense"
        controls = " and better than every control at that level." if results.equal_budget_controls else ""
        remark = f"{worse}{controls or '; no controls were trained.'}"
    else:
        shown = tickets_with_best_mean(results) or tickets[0]
        remark = (
            f"This is the tickets' best level: at no level is their mean within {margin_text} of the dense network's"
            f"{' and better than every control at that level' if results.equal_budget_controls else ''}."
        )
    caveat = verdict_sentence(results.run) or (CAVEAT if results.replicates > 1 else ALONE)
    return Observation(
        _level_sentence(results, style, shown, dense), f"{remark} {caveat}", shown.level if matching else None
    )


def tickets_with_best_mean(results: Results) -> Group | None:
    """Return the tickets of the level with the best mean on the test split; None without tickets."""
    return max(results.groups_of_role(TICKET), key=_metric_sort_key(results), default=None)


def verdict_sentence(run: RunRecord) -> str:
    """Return a sentence on how many levels have each verdict, and on the sparsest level that supports the claim."""
    if not run.verdicts:
        return ""
    total = len(run.verdicts)
    found = [(name, [one for one in run.verdicts if one.verdict == name]) for name in VERDICTS]
    first, *others = (f"{name} at {len(those)}" for name, those in found if those)
    counts = ", ".join([f"{first} of them" if total > 1 else first.removesuffix(" at 1"), *others])
    shown = [one for one in run.verdicts if one.verdict == one.claim]
    text = (
        f"Paired by replicate and corrected for {total} level{'s' if total > 1 else ''}, the tickets' verdict: {counts}"
    )
    if shown:
        sparsest = min(shown, key=lambda one: one.density)
        text += f"; the sparsest that {sparsest.verdict} keeps {percent(sparsest.density)} %"
    return f"{text}."


def equal_budget_controls_at(results: Results, level: int) -> list[Group]:
    """Return the groups of the controls of a level that were trained for as many steps as the tickets."""
    return [group for role in results.equal_budget_controls if (group := results.group(level, role))]


def _tickets_match_dense(results: Results, group: Group, dense: Group, margin: float) -> bool:
    sign = results.run.task.metric.sign
    to_dense = group.paired_difference(dense)
    to_controls = [group.paired_difference(control) for control in equal_budget_controls_at(results, group.level)]
    return (
        to_dense is not None
        and sign * to_dense.mean >= -margin
        and (bool(to_controls) or not results.equal_budget_controls)
        and all(difference is not None and sign * difference.mean > 0 for difference in to_controls)
    )


def _metric_sort_key(results: Results) -> Callable[[Group], float]:
    sign = results.run.task.metric.sign
    return lambda group: sign * group.metric().mean


def _level_sentence(results: Results, style: Style, shown: Group, dense: Group) -> str:
    """Return a sentence about a level: ``At 5.5 % of the prunable weights (1 in 18) the tickets reach …``."""
    share = f" (1 in {factor_text(1 / shown.density)})" if shown.density <= 0.5 else ""
    place = f"{percent(shown.density)} % of the prunable weights{share}"
    measure = measure_limited_by_budget(results)
    if measure is not None and (cost := relative_call_cost(results, shown, measure)) is not None:
        of = "dense network's time" if measure is TIME else "MACs"
        place = f"{percent(cost)} % of the {of} ({percent(shown.density)} % of the prunable weights)"
    parts = [
        f"At {place} the tickets reach "
        f"a test {printable(results.run.task.metric.words)} of {style.format_with_count(shown.metric())}",
        f"the dense network reaches {style.format_with_count(dense.metric())}",
    ]
    controls = equal_budget_controls_at(results, shown.level)
    if controls:
        best = max(controls, key=_metric_sort_key(results))
        parts.append(
            f"the {'best ' if len(controls) > 1 else ''}control, {role_name(best.role)}, "
            f"reaches {style.format_with_count(best.metric())}"
        )
    return "; ".join(parts) + "."
