"""A campaign as a page, and as Markdown for a folder of results."""

from __future__ import annotations

from pathlib import Path

from ticketry.records.campaign import CampaignRecord
from ticketry.report.tables.claims import (
    CLAIMS,
    METHODS,
    RUNS,
    TURNED,
    claim_cells,
    facts,
    markdown_table,
    method_rows,
    run_rows,
    side_name,
)
from ticketry.report.wording import percent, value
from ticketry.report.writing import write_page


def write_campaign_page(record: CampaignRecord, path: Path) -> Path:
    """Write the page of a campaign; the same record gives the same bytes.

    Raises:
        StoreError: if it cannot be written.
    """
    from ticketry.report.html.campaign_page import render_campaign  # with matplotlib, which takes long to come

    return write_page(path, render_campaign(record))


def markdown(record: CampaignRecord) -> str:
    """The same in Markdown: claims, all methods, runs, and what each claim says."""
    lines = [f"# {record.title}: {record.scale}", ""]
    lines += [f"{record.paper}."] if record.paper else []
    lines += ["", *(f"- {fact}" for fact in facts(record)), "", "## Claims", ""]
    lines += markdown_table(CLAIMS, [claim_cells(claim) for claim in record.claims])
    lines += ["", "A is better than B by more than the bound: corrected for interim analyses and within families."]
    lines += [f"{TURNED}.", ""]
    lines += [
        "sd: of the differences, and of each side over seeds. A/A: dense networks in a second order minus themselves.",
        "",
    ]
    for claim in record.claims:
        at = "" if claim.density is None else f" at {percent(claim.density)} %"
        of = f"A: {side_name(claim.a)}, B: {side_name(claim.b)}{at}."
        source = f" Source: {claim.source}." if claim.source else ""
        figure = f" There: {claim.figure}." if claim.figure else ""
        lines.append(f"- **{claim.name}** ({claim.found}): {claim.statement} {of}{source}{figure}")
    lines += ["", "## All methods", "", *markdown_table(METHODS, method_rows(record))]
    lines += ["", "## Runs", "", *markdown_table(RUNS, run_rows(record))]
    told = [f"{name}: {value(item)}" for name, item in record.environment.items()]
    lines += ["", "## How this was made", "", f"`{record.command}`", "", *(f"- {line}" for line in told), ""]
    return "\n".join(lines)
