"""ticketry reproduce NAME: train the networks that decide the claims of a campaign."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ticketry.cli.arguments import OutputOptions, parse
from ticketry.errors import UsageError
from ticketry.experiments.options import LabOptions
from ticketry.records.schema import as_json

if TYPE_CHECKING:
    from ticketry.experiments.reproduce.campaign import Outcome
    from ticketry.experiments.reproduce.campaign_file import Campaign

_DESCRIPTION = """\
Decide what papers claim. A campaign is a file: runs, and claims that one network is better than another by more than a
bound. It is checked as a whole, then the searches that decide most claims an hour go first, and replicates are added
by planned interim analyses until each claim is confirmed, refuted, or undecided at the limit. What the store has is
not trained again. A page tells claim by claim what was found. Precision and kernels are those that the file says,
unless they are given here.

Replicates have seeds of their own, from 20,000 on, which no search has by default: a claim is never judged by the seeds
that its settings were tried with. What a search has trained is therefore not reused, and --seed 20000 would be.

examples:
  ticketry reproduce stabilizing
  ticketry reproduce all --scale demo
  ticketry reproduce stabilizing --scale cpu --plan
  ticketry reproduce early --scale cpu --budget 8h --only early-beats-start
  ticketry reproduce stabilizing --scale cpu --check 5 --draw 2026
  ticketry reproduce my-campaign.toml --scale cpu"""

_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Reproduce(OutputOptions, LabOptions):
    campaign: tyro.conf.Positional[str]
    """The name of a campaign, all of them (all), or a TOML file of your own."""
    scale: Literal["demo", "cpu", "paper"] = "demo"
    """demo (minutes, on digits), cpu (days, on two cores), paper (the papers' networks, data and lengths)."""
    only: tuple[str, ...] = ()
    """Names of claims; by default all."""
    budget: str = ""
    """Time budget: 30min, 8h, 2d. A search that is likely to end later is not begun."""
    plan: Annotated[bool, tyro.conf.arg(name="plan")] = False
    """Only check the file, and print what is missing and how long it takes."""
    check: int = 0
    """Number of finished rows to check: they are drawn at random, trained again in an empty store, and compared: bit by
    bit on the same kind of machine, otherwise with the prediction interval of one more replicate. Nothing else is
    trained."""
    draw: int = 0
    """Seed of the random draw of --check."""
    precision: Literal["", "fp32", "bf16"] = ""  # type: ignore[assignment]
    """fp32 or bf16, the same on all machines; by default what the file says."""
    kernels: Literal["", "auto", "dense", "sparse"] = ""  # type: ignore[assignment]
    """dense, sparse or auto: whether networks train in kernels that compute only what a mask keeps; by default what the
    file says."""
    trust: bool = False
    """Trust your file: import and run the code that it names, and open its files and folders."""


def main(words: Sequence[str]) -> int:
    """Run `ticketry reproduce` for one campaign or all; return 1 if a run failed that a claim needs."""
    arguments: Any = parse(_Reproduce, words, prog="ticketry reproduce", description=_DESCRIPTION)
    from ticketry.experiments.run_file import read_toml

    if Path(arguments.campaign).suffix == ".toml":
        read_toml(Path(arguments.campaign), "campaign")
    chosen: dict[str, Any] = {name: said for name in ("precision", "kernels") if (said := getattr(arguments, name))}
    arguments = dataclasses.replace(arguments, precision=LabOptions.precision, kernels=LabOptions.kernels)
    if arguments.check:
        return _retrain_and_compare_networks(arguments, chosen)
    outcomes = _run_campaigns(arguments, chosen, shlex.join(["ticketry", "reproduce", *words]))
    failed = int(any(one.failed for one in outcomes))
    if arguments.json:
        found = []
        for one in outcomes:
            planned = [dataclasses.asdict(block) for block in one.planned]
            found.append({**as_json(one.record), "page": str(one.page), "stopped": one.stopped, "planned": planned})
        print(json.dumps(found))
        return failed
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print("\n\n".join("\n".join(summarise_campaign(one, width)) for one in outcomes))
    return failed


def _retrain_and_compare_networks(arguments: Any, chosen: Mapping[str, Any]) -> int:
    """Train some networks of finished campaigns again, and return 1 if a metric differs too much from its record."""
    from ticketry.cli.progress import Progress
    from ticketry.experiments.reproduce.checking import ROWS, check
    from ticketry.report.wording import align_columns

    found = []
    for campaign in _read_campaigns(arguments):
        with Progress(f"{campaign.name}, {campaign.scale}: check") as progress:
            found += check(
                _with_arithmetic(campaign, chosen),
                arguments,
                arguments.check,
                draw=arguments.draw,
                say=progress.say,
                on_event=progress.on_event,
            )
    if arguments.json:
        print(json.dumps([one.as_json() for one in found]))
    else:
        print("\n".join(align_columns([list(ROWS), *(one.cells() for one in found)])))
    return int(any(one.found == "outside" for one in found))


def _read_campaigns(arguments: Any) -> list[Campaign]:
    """Read, check and return all campaigns that the arguments name."""
    from ticketry.experiments.reproduce.campaign_file import campaigns_at_scale, read_campaign

    names = campaigns_at_scale(arguments.scale) if arguments.campaign == "all" else [arguments.campaign]
    return [read_campaign(Path(name), arguments.scale, trust=arguments.trust) for name in names]


def _run_campaigns(arguments: Any, chosen: Mapping[str, Any], command: str) -> list[Outcome]:
    from ticketry.cli.progress import Progress
    from ticketry.experiments.reproduce.campaign import reproduce

    end, found = time.monotonic() + parse_budget_seconds(arguments.budget), []  # all of them have it together
    for campaign in _read_campaigns(arguments):
        with Progress(f"{campaign.name}, {campaign.scale}") as progress:
            outcome = reproduce(
                _with_arithmetic(campaign, chosen),
                arguments,
                only=arguments.only,
                budget=end - time.monotonic(),
                dry=arguments.plan,
                command=command,
                say=progress.say,
                on_event=progress.on_event,
            )
        found.append(outcome)
    return found


def _with_arithmetic(campaign: Campaign, chosen: Mapping[str, Any]) -> Campaign:
    """Return the campaign, with all its runs set to the precision and kernels in `chosen`."""
    if "kernels" in chosen:
        campaign = dataclasses.replace(campaign, kernels=dict.fromkeys(campaign.runs, chosen["kernels"]))
    if "precision" in chosen:
        campaign = dataclasses.replace(campaign, precisions=dict.fromkeys(campaign.runs, chosen["precision"]))
    return campaign


def parse_budget_seconds(text: str) -> float:
    """Return a time such as 90s, 30min, 8h or 2d in seconds; infinity for an empty text."""
    if not text:
        return math.inf
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*(s|min|h|d)", text.strip())
    if match is None or not float(match[1]) > 0:
        raise UsageError(f"budget must be a time such as 30min, 8h or 2d, got {text!r}")
    return float(match[1]) * _UNITS[match[2]]


def summarise_campaign(outcome: Outcome, width: int | None = None) -> list[str]:
    """Return lines of text about a campaign: a table of the requested claims, and the paths of the full report.

    Args:
        width: width of the terminal in characters; columns that do not fit are omitted. None for any width.
    """
    from ticketry.report.campaigns import campaign_sentences, claims_table
    from ticketry.report.wording import align_columns

    record = outcome.record
    rows, gone = claims_table([claim for claim in record.claims if claim.name in outcome.wanted], width)
    lines = [f"{record.title}, scale {record.scale}", "", *align_columns(rows), ""]
    if others := len(record.claims) - len(rows) + 1:
        lines.append("One other claim is on the page." if others == 1 else f"{others} other claims are on the page.")
    if gone:
        lines.append(f"Columns on the page alone: {'; '.join(gone)}.")
    lines += [*campaign_sentences(record)[:3], *_format_plan(outcome)]
    lines += [f"failed   {run}: {why}" for run, why in outcome.failed.items()]
    stuck = [claim for claim in record.claims if claim.unknown and claim.name in outcome.wanted]
    lines += [f"unknown  {claim.name}: {claim.unknown}; no more replicates decide it" for claim in stuck]
    if outcome.stopped:
        lines.append(f"stopped  {outcome.stopped}")
    return [*lines, f"page     {outcome.page}", f"text     {outcome.text}"]


def _format_plan(outcome: Outcome) -> list[str]:
    """Return a table of the planned trainings as lines of text; empty if nothing was planned."""
    from ticketry.report.wording import align_columns, format_duration

    if not outcome.planned:
        return []
    rows = [
        (
            one.run,
            f"{one.first + 1} to {one.last}" if one.last > one.first + 1 else str(one.last),
            format_duration(one.seconds),
            str(len(one.claims)),
        )
        for one in outcome.planned
    ]
    return ["", *align_columns([("next", "replicates", "takes about", "claims that wait for it"), *rows]), ""]
