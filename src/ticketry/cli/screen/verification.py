"""A verification in lines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ticketry.cli.screen.progress import Progress
    from ticketry.evidence.verdict import Verdict
    from ticketry.records.evidence import VerifyRecord


def interim_teller(progress: Progress) -> Callable[[Verdict], None]:
    """Tells the verdict of each interim analysis."""
    return lambda made: progress.say(f"{made.n} seeds: {made.reasons[0]}")


def summarise_verification(record: VerifyRecord) -> list[str]:
    """A verification in a few lines, in the decimals of its page: as many as the spread of the seeds asks for."""
    from ticketry.report.tables.evidence import seed_style
    from ticketry.report.wording import role_name

    style = seed_style(record)
    margin = f"{round(record.margin, style.decimals + 2):g}"
    metric, task = record.task.metric, record.task
    unit = metric.unit and f" {metric.unit}"
    points = " points" if metric.unit == "%" else unit
    seeds = f"{record.n} seed{'' if record.n == 1 else 's'}"
    budgets = {network.role: network.budget for network in record.networks}
    steps = f"{budgets['ticket']:,} steps for every network"
    if budgets["dense"] != budgets["ticket"]:
        steps += f", {budgets['dense']:,} for the dense one"
    first = f"ticket   {record.ticket}"
    if record.about == "procedure":
        first = f"procedure {record.method}, the whole search with every seed, as in {record.run or record.ticket}"
    lines = [
        first,
        f"         {task.title}, {100 * record.density:.2f} % of {task.prunable:,} prunable"
        f" weights ({record.kept:,} kept); {steps}",
        f"verdict  {record.verdict.upper()}  ({record.claims_of}; claim: {record.claim}; margin"
        f" {margin}{points}, confidence {100 * record.confidence:g} %, {seeds}; p = {record.p:.2g})",
    ]
    if record.answers:
        lines.append(f"         {record.answers}")
    values = {network.role: network.values for network in record.networks}

    def row(name: str, of: Sequence[float]) -> str:
        return f"  {name:<26} {style.number(_mean(of)):>8}{unit}"

    for compared in record.comparisons:
        role, interval = compared.role, ""
        if compared.low is not None and compared.high is not None:
            interval = f"  [{style.number(compared.low, sign=True)}, {style.number(compared.high, sign=True)}]"
        lines.append(
            f"{row(role_name(role), values[role])}   ticket {style.number(compared.mean, sign=True)}{interval}"
        )
    lines.append(row("ticket", values["ticket"]))
    if noise := record.noise:
        spread = "" if noise.sd is None else f", standard deviation {style.number(noise.sd)}"
        shown = f"ticket {style.number(noise.mean, sign=True)}{spread}"
        lines.append(f"{row('ticket, other seeds (A/A)', noise.values)}   {shown}")
    for reference in record.references:
        lines.append(f"{row(role_name(reference.role), reference.values)}   {reference.steps:,} steps, shown only")
    lines += [f"left out {one.role}: {one.why}" for one in record.left_out]
    if not record.decided:
        more = record.more_seeds
        lines.append("         " + (f"about {more} more seeds would likely decide" if more else record.reasons[-1]))
    cost = record.cost
    lines.append(f"cost     {cost.segments_trained} segments trained of {cost.segments_asked} asked for")
    return lines


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
