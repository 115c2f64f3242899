"""A campaign as tables of words: its claims, its runs, and all methods side by side."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

from ticketry.records.campaign import BlockProvenance, CampaignRecord, CampaignRun, Claim, MethodRow, Side
from ticketry.records.network import DENSE
from ticketry.report.tables.results import Summary
from ticketry.report.wording import NONE, Style, aligned, amount, duration, percent, role_name, short_count, short_p

CLAIMS = (
    *("claim", "verdict", "A minus B", "bound", "interval", "n", "sd", "sd of A, of B", "A/A", "p", "more needed"),
    "training",
)
TURNED = "Differences are turned so that above 0 A is the better one, as where its perplexity is lower"
LEFT_OUT = ("sd of A, of B", "sd", "training", "A/A", "bound", "p", "more needed", "interval")
"""Of these, what a table that is too wide does without, in this order."""
METHODS = ("run", "network", "weights kept, %", "test", "95 % interval", "n", "steps", "FLOPs", "seconds")
RUNS = ("run", "method", "task", "network", "replicates", "planned here", "took here", "searches took", "trained in")

_LEAST = 2
"""Values that have a spread."""


def side_name(side: Side) -> str:
    """What one side of a claim is, in words."""
    if not side.run:
        return f"the number {side.values[0]:g}" if side.values else role_name(side.role)
    return f"{role_name(side.role)} of {side.run}" + (f", level {side.level}" if side.level else "")


def style_of(claim: Claim) -> Style:
    """How a claim's numbers are written."""
    return Style.fitting([Summary(claim.difference or 0.0, claim.sd, claim.n)], claim.unit)


def claim_cells(claim: Claim) -> list[str]:
    """A row of `CLAIMS`."""
    style = style_of(claim)
    p = claim.p_refuted if claim.found == "refuted" else claim.p_confirmed
    return [
        claim.name,
        claim.found,
        NONE if claim.difference is None else style.number(claim.difference, sign=True),
        f"above {style.number(claim.above)}",
        style.interval(claim.interval),
        f"{claim.n} of {claim.limit}",
        NONE if claim.sd is None else style.number(claim.sd),
        seeds_told(claim, style),
        noise_told(claim, style),
        short_p(p) if claim.n else NONE,
        more_needed(claim),
        duration(claim.seconds) if claim.seconds else NONE,
    ]


def claims_table(claims: Sequence[Claim], width: int | None = None) -> tuple[list[list[str]], list[str]]:
    """Claims with a head, as rows of cells; and the columns that are left out so that lines are no wider than `width`,
    if they can be."""
    rows, gone = [list(CLAIMS), *map(claim_cells, claims)], list[str]()
    for name in LEFT_OUT:
        if width is None or max(map(len, aligned(rows))) <= width:
            break
        gone.append(name)
        at = rows[0].index(name)
        rows = [[*row[:at], *row[at + 1 :]] for row in rows]
    return rows, gone


def more_needed(claim: Claim) -> str:
    """How many more replicates would likely decide a claim; nothing is known of that before any were judged, nor where
    the next cannot be.

    At its limit it gets no more: then how many fresh ones would decide a claim that asks it again.
    """
    if claim.found != "undecided":
        return "none"
    if not claim.n or claim.unknown:
        return NONE
    if claim.more is None:
        return "too many"
    return f"about {claim.more}" if claim.n < claim.limit else f"about {claim.n + claim.more} fresh"


def seeds_told(claim: Claim, style: Style) -> str:
    """The spread of seeds: the standard deviation of each side's values."""
    if claim.n < _LEAST:
        return NONE
    return ", ".join(style.number(stdev(side.values)) if side.run else NONE for side in (claim.a, claim.b))


def noise_told(claim: Claim, style: Style) -> str:
    """The mean and standard deviation of the differences that one network has with itself, trained in two orders."""
    if len(claim.noise) < _LEAST:
        return "not trained yet" if claim.noise_missing else NONE
    return f"{style.number(fmean(claim.noise), sign=True)} ± {style.number(stdev(claim.noise))}"


def method_rows(record: CampaignRecord) -> list[list[str]]:
    """Rows of `METHODS`: dense networks first, then by density."""
    rows = sorted(record.table, key=lambda row: (row.role != DENSE, -row.density))
    style = Style.fitting([Summary(row.mean, row.sd, row.n) for row in rows], "")
    return [_method_cells(row, style) for row in rows]


def run_rows(record: CampaignRecord) -> list[list[str]]:
    """Rows of `RUNS`."""
    return [
        [
            run.name,
            run.method,
            run.task,
            run.model,
            str(run.replicates),
            NONE if run.planned_seconds is None else duration(run.planned_seconds),
            NONE if run.planned_took is None else duration(run.planned_took),
            duration(run.seconds),
            trained_in(run),
        ]
        for run in record.runs
    ]


def trained_in(run: CampaignRun) -> str:
    """The precision and kernels of a run's networks: with the replicates, where they are not those of all."""
    blocks: dict[str, list[BlockProvenance]] = {}
    for one in run.blocks:
        blocks.setdefault(" + ".join(filter(None, (one.precision, *one.kernels))), []).append(one)
    if len(blocks) <= 1:
        return "".join(blocks) or NONE
    told = []
    for name, those in blocks.items():
        counts = ", ".join(f"{one.first + 1} to {one.last}" for one in those)
        told.append(f"{name} (replicates {counts})")
    return "; ".join(told)


def facts(record: CampaignRecord) -> list[str]:
    """The whole in a few sentences."""
    found = {
        word: sum(claim.found == word for claim in record.claims) for word in ("confirmed", "refuted", "undecided")
    }
    told = [f"{count} {word}" for word, count in found.items() if count]
    share = record.segments_trained / max(record.segments_asked, 1)
    lines = [
        f"{record.decided} of {len(record.claims)} claims decided: {', '.join(told)}.{_asked_again(record)}",
        f"{record.segments_trained} trainings of {record.segments_asked} asked for ({share:.2f}); searches took"
        f" {duration(record.seconds)} in all.",
    ]
    if record.planned_took:
        times = f"planned {duration(record.planned_seconds)}, took {duration(record.planned_took)}"
        if record.planned_took_processor:
            planned, took = record.planned_processor, record.planned_took_processor
            times += f"; of processors' time, which others' work is not in, {duration(planned)} and {duration(took)}"
        lines.append(f"Trained in this store: {times}.")
    if record.steps_alone:
        lines.append(
            f"{short_count(record.steps_trained)} steps were trained; claims would have taken"
            f" {short_count(record.steps_alone)} each by itself ({record.steps_trained / record.steps_alone:.2f})."
        )
    first, *later = record.files
    early = [one for run in record.runs for one in run.blocks if one.date and one.date < first.since]
    if early:
        count = sum(one.last - one.first for one in early)
        when = f"was first seen on {first.since}, after {count} replicates of its runs were trained"
    else:
        when = f"was fixed on {first.since}, before its runs"
    lines.append(f"The campaign's file {when}: SHA-256 {first.sha256}.")
    lines += [f"It was changed after that, seen on {one.since}: SHA-256 {one.sha256}." for one in later]
    lines += [f"The run {run.name} could not go on: {run.failed}." for run in record.runs if run.failed]
    lines += [f"No more replicates decide {one.name}: {one.unknown}." for one in record.claims if one.unknown]
    return lines


def _asked_again(record: CampaignRecord) -> str:
    """What is decided where a claim and the one that asks it again count once, and how often that errs; nothing where
    none asks again."""
    decided, questions = record.hypotheses
    count = len(record.claims) - questions
    if not count:
        return ""
    asks = "One asks another" if count == 1 else f"{count} ask others"
    return (
        f" {asks} again, on fresh replicates: of {questions} questions {decided} are decided. Each asking is a test of"
        f" its own, so that a question that is asked k times (here up to {record.max_tests_per_hypothesis}) errs with"
        " at most k times"
        " alpha, for confirmed and for refuted."
    )


def _method_cells(row: MethodRow, style: Style) -> list[str]:
    return [
        row.run,
        role_name(row.role),
        percent(row.density),
        style.summary(Summary(row.mean, row.sd, row.n)),
        NONE if row.interval is None else " to ".join(style.number(end) for end in row.interval),
        str(row.n),
        *(_cost(value, what) for value, what in ((row.steps, "steps"), (row.flops, "flops"), (row.seconds, "seconds"))),
    ]


def _cost(value: float | None, what: str) -> str:
    if value is None:
        return NONE
    return short_count(value) if what == "steps" else amount(value, what)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table as Markdown; what would end a cell is written as a letter."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines]
