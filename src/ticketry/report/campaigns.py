"""Show a campaign as text tables, Markdown and figure data: claims, runs, and all methods side by side."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev

from ticketry.records.campaign import BlockProvenance, CampaignRecord, CampaignRun, Claim, MethodRow, Side
from ticketry.records.network import DENSE
from ticketry.report.tables.results import Summary
from ticketry.report.wording import (
    NONE,
    Style,
    align_columns,
    bare_p_value,
    cost_text,
    format_duration,
    json_text,
    percent,
    role_name,
    short_count,
)

CLAIMS = (
    *("claim", "verdict", "A minus B", "bound", "interval", "n", "sd", "sd of A, of B", "A/A", "p", "more needed"),
    "training",
)
SIGN_NOTE = "The sign of differences is such that A is better above 0, for instance where its perplexity is lower"
OMITTED_FIRST = ("sd of A, of B", "sd", "training", "A/A", "bound", "p", "more needed", "interval")
"""Columns that are omitted, in this order, until a table fits into the given width."""
METHODS = ("run", "network", "weights retained, %", "test", "95 % interval", "n", "steps", "FLOPs", "seconds")
RUNS = ("run", "method", "task", "network", "replicates", "planned here", "took here", "searches took", "trained in")

FIGURE = "claims"
_VERDICTS = ("confirmed", "refuted", "undecided")
_FEWEST_VALUES = 2
"""Smallest number of values that have a standard deviation."""


def claim_side_name(side: Side) -> str:
    """Return the name of one side of a claim: a fixed number, or the role, run and level of its networks."""
    if not side.run:
        return f"the number {side.values[0]:g}" if side.values else role_name(side.role)
    return f"{role_name(side.role)} of {side.run}" + (f", level {side.level}" if side.level else "")


def claim_number_style(claim: Claim) -> Style:
    """Return the number format for the values of a claim."""
    return Style.for_summaries([Summary(claim.difference or 0.0, claim.sd, claim.n)], claim.unit)


def claim_table_cells(claim: Claim) -> list[str]:
    """Return the cells of a claim's row in the table of claims."""
    style = claim_number_style(claim)
    p = claim.p_refuted if claim.found == "refuted" else claim.p_confirmed
    return [
        claim.name,
        claim.found,
        NONE if claim.difference is None else style.format_number(claim.difference, sign=True),
        f"above {style.format_number(claim.above)}",
        style.format_interval(claim.interval),
        f"{claim.n} of {claim.limit}",
        NONE if claim.sd is None else style.format_number(claim.sd),
        seed_deviations_text(claim, style),
        data_order_noise_text(claim, style),
        bare_p_value(p) if claim.n else NONE,
        replicates_needed_text(claim),
        format_duration(claim.seconds) if claim.seconds else NONE,
    ]


def claims_table(claims: Sequence[Claim], width: int | None = None) -> tuple[list[list[str]], list[str]]:
    """Return the rows of a table of claims, first the header, and the names of columns that do not fit into `width`."""
    rows, omitted = [list(CLAIMS), *map(claim_table_cells, claims)], list[str]()
    for name in OMITTED_FIRST:
        if width is None or max(map(len, align_columns(rows))) <= width:
            break
        omitted.append(name)
        at = rows[0].index(name)
        rows = [[*row[:at], *row[at + 1 :]] for row in rows]
    return rows, omitted


def replicates_needed_text(claim: Claim) -> str:
    """Return how many more replicates would likely decide a claim, as text; a dash if no number is known.

    If the claim has all its planned replicates, return how many fresh replicates would likely decide a replication.
    """
    if claim.found != "undecided":
        return "none"
    if not claim.n or claim.unknown:
        return NONE
    if claim.more is None:
        return "too many"
    return f"about {claim.more}" if claim.n < claim.limit else f"about {claim.n + claim.more} fresh"


def seed_deviations_text(claim: Claim, style: Style) -> str:
    """Return the standard deviations of the values of side A and of side B, as text."""
    if claim.n < _FEWEST_VALUES:
        return NONE
    return ", ".join(style.format_number(stdev(side.values)) if side.run else NONE for side in (claim.a, claim.b))


def data_order_noise_text(claim: Claim, style: Style) -> str:
    """Return mean ± standard deviation of the metric's difference between dense networks trained in two data orders."""
    if len(claim.noise) < _FEWEST_VALUES:
        return "not trained yet" if claim.noise_missing else NONE
    return f"{style.format_number(fmean(claim.noise), sign=True)} ± {style.format_number(stdev(claim.noise))}"


def method_rows(record: CampaignRecord) -> list[list[str]]:
    """Return rows of the table that compares methods: dense networks first, then tickets and controls by density."""
    rows = sorted(record.table, key=lambda row: (row.role != DENSE, -row.density))
    style = Style.for_summaries([Summary(row.mean, row.sd, row.n) for row in rows], "")
    return [_method_cells(row, style) for row in rows]


def campaign_run_rows(record: CampaignRecord) -> list[list[str]]:
    """Return rows of the table of a campaign's runs, with a row for each run."""
    return [
        [
            run.name,
            run.method,
            run.task,
            run.model,
            str(run.replicates),
            NONE if run.planned_seconds is None else format_duration(run.planned_seconds),
            NONE if run.planned_took is None else format_duration(run.planned_took),
            format_duration(run.seconds),
            precision_and_kernels(run),
        ]
        for run in record.runs
    ]


def precision_and_kernels(run: CampaignRun) -> str:
    """Return precision and kernels of a run as text; if they differ between replicates, name the replicates."""
    blocks: dict[str, list[BlockProvenance]] = {}
    for one in run.blocks:
        blocks.setdefault(" + ".join(filter(None, (one.precision, *one.kernels))), []).append(one)
    if len(blocks) <= 1:
        return "".join(blocks) or NONE
    texts = []
    for name, those in blocks.items():
        counts = ", ".join(f"{one.first + 1} to {one.last}" for one in those)
        texts.append(f"{name} (replicates {counts})")
    return "; ".join(texts)


def campaign_sentences(record: CampaignRecord) -> list[str]:
    """Return sentences that summarise a campaign, for the top of its pages."""
    found = {word: sum(claim.found == word for claim in record.claims) for word in _VERDICTS}
    counts = ", ".join(f"{count} {word}" for word, count in found.items() if count)
    share = record.segments_trained / max(record.segments_asked, 1)
    lines = [
        f"{len(record.claims) - found['undecided']} of {len(record.claims)} claims decided: {counts}."
        f"{_replication_sentence(record)}",
        f"{record.segments_trained} trainings run out of {record.segments_asked} requested ({share:.2f}); searches took"
        f" {format_duration(record.seconds)} in total.",
    ]
    if record.planned_took:
        times = f"planned {format_duration(record.planned_seconds)}, took {format_duration(record.planned_took)}"
        lines.append(f"Trained in this store: {times}.")
    lines.append(f"{short_count(record.steps_trained)} steps were trained.")
    first, *later = record.files
    early = [one for run in record.runs for one in run.blocks if one.date and one.date < first.since]
    if early:
        count = sum(one.last - one.first for one in early)
        when = f"was first seen on {first.since}, after {count} replicates of its runs were trained"
    else:
        when = f"was fixed on {first.since}, before its runs"
    lines.append(f"The campaign's file {when}: SHA-256 {first.sha256}.")
    lines += [f"It was changed after that, seen on {one.since}: SHA-256 {one.sha256}." for one in later]
    lines += [f"The run {run.name} could not continue: {run.failed}." for run in record.runs if run.failed]
    lines += [f"No more replicates decide {one.name}: {one.unknown}." for one in record.claims if one.unknown]
    return lines


def _replication_sentence(record: CampaignRecord) -> str:
    """Return sentences about replications: how many hypotheses are decided, and a bound on their error probability.

    The text is empty if no claim is a replication.
    """
    decided, hypotheses = record.hypothesis_counts
    count = len(record.claims) - hypotheses
    if not count:
        return ""
    replicate = "One is a replication" if count == 1 else f"{count} are replications"
    return (
        f" {replicate} on fresh replicates: {decided} of {hypotheses} hypotheses are decided. Each is a separate test,"
        f" so a hypothesis that is tested k times (here up to {record.max_tests_per_hypothesis}) errs with at most"
        " k times alpha, for confirmed and for refuted."
    )


def _method_cells(row: MethodRow, style: Style) -> list[str]:
    return [
        row.run,
        role_name(row.role),
        percent(row.density),
        style.format_summary(Summary(row.mean, row.sd, row.n)),
        NONE if row.interval is None else " to ".join(style.format_number(end) for end in row.interval),
        str(row.n),
        NONE if row.steps is None else short_count(row.steps),
        *(
            NONE if value is None else cost_text(value, measure)
            for value, measure in ((row.flops, "flops"), (row.seconds, "seconds"))
        ),
    ]


def run_settings(record: CampaignRecord) -> list[tuple[str, dict[str, object]]]:
    """Return each run's name with a dict of the run's settings and recipe."""
    return [(run.name, {**run.settings, **run.recipe}) for run in record.runs]


def file_versions(record: CampaignRecord) -> list[str]:
    return [f"{one.since}: {one.sha256}" for one in record.files]


def claim_figure_rows(record: CampaignRecord) -> list[dict[str, str | float | None]]:
    """Return the data of the figure of claims: a row for each claim with a known difference."""
    return [
        {"claim": claim.name, "difference": claim.difference, "above": claim.above, "margin": claim.margin}
        for claim in record.claims
        if claim.difference is not None
    ]


def claim_notes(record: CampaignRecord) -> list[tuple[str, str, str]]:
    """Return name, description and verdict of each claim; the description names the source and any replication."""
    replications = {claim.again: claim for claim in record.claims if claim.again}
    return [(claim.name, _describe_claim(claim, replications.get(claim.name)), claim.found) for claim in record.claims]


def _describe_claim(claim: Claim, replication: Claim | None) -> str:
    at = "" if claim.density is None else f" at {percent(claim.density)} % of the weights"
    words = [
        claim.statement,
        f"A: {claim_side_name(claim.a)}; B: {claim_side_name(claim.b)}; {claim.metric}{at}; margin {claim.margin:g},"
        f" confidence {percent(claim.confidence, 0)} %, family {claim.family}.",
    ]
    words += [f"Source: {claim.source}."] if claim.source else []
    words += [f"Result there: {claim.figure}."] if claim.figure else []
    words += [f"A replication of {claim.again}, on fresh replicates."] if claim.again else []
    words += [f"Replicated on fresh replicates as {replication.name}: {replication.found}."] if replication else []
    return " ".join(words)


def markdown(record: CampaignRecord) -> str:
    """Return a campaign as Markdown: claims, all methods, runs, and a description of each claim."""
    lines = [f"# {record.title}: {record.scale}", ""]
    lines += [f"{record.paper}."] if record.paper else []
    lines += ["", *(f"- {fact}" for fact in campaign_sentences(record)), "", "## Claims", ""]
    lines += markdown_table(CLAIMS, [claim_table_cells(claim) for claim in record.claims])
    lines += ["", "A is better than B by more than the bound: corrected for interim analyses and within families."]
    lines += [f"{SIGN_NOTE}.", ""]
    lines += [
        "sd: of the differences, and of each side over seeds. A/A: dense networks in a second order minus themselves.",
        "",
    ]
    for claim in record.claims:
        at = "" if claim.density is None else f" at {percent(claim.density)} %"
        of = f"A: {claim_side_name(claim.a)}, B: {claim_side_name(claim.b)}{at}."
        source = f" Source: {claim.source}." if claim.source else ""
        figure = f" Result there: {claim.figure}." if claim.figure else ""
        lines.append(f"- **{claim.name}** ({claim.found}): {claim.statement} {of}{source}{figure}")
    lines += ["", "## All methods", "", *markdown_table(METHODS, method_rows(record))]
    lines += ["", "## Runs", "", *markdown_table(RUNS, campaign_run_rows(record))]
    environment = [f"{name}: {json_text(item)}" for name, item in record.environment.items()]
    lines += ["", "## How this was made", "", f"`{record.command}`", "", *(f"- {line}" for line in environment), ""]
    return "\n".join(lines)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; characters that would break a cell are escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines]
