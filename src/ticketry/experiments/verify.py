"""A verification: of a saved ticket, or of a run's sparsest ticket that looks like a winner; with its record."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from msgspec import convert

from ticketry.core.ticket.ticket import Ticket
from ticketry.evidence.asked_task import made_task
from ticketry.evidence.comparison_names import LONGER
from ticketry.evidence.level_verdicts import default_margin, resolution
from ticketry.evidence.settings import VerifySettings
from ticketry.evidence.verdict import Verdict
from ticketry.evidence.verification import verify as verified
from ticketry.experiments.keywords import settings_of
from ticketry.experiments.options import LabOptions, opened
from ticketry.experiments.record_files import environment_told, run_of, task_told, written
from ticketry.experiments.request import named_task
from ticketry.lab.lab import Lab
from ticketry.lab.runners.runner import OnEvent
from ticketry.lab.store.store import digest_of
from ticketry.records.evidence import VerifyRecord
from ticketry.records.network import Cost, Point
from ticketry.records.run import RunRecord
from ticketry.tasks.task import Task

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ticketry.experiments.keyword_types import VerifyKeywords


def verify(
    ticket: str | PathLike[str],
    *,
    task: str | Task | None = None,
    trust: bool = False,
    **options: Unpack[VerifyKeywords],
) -> VerifyRecord:
    """Does a ticket win? Trained anew from fresh seeds, against dense and controls: what ``ticketry verify`` does.

    Args:
        ticket: its folder, or one of a run's tickets.
        task: only for a ticket whose task cannot be made by the name that is written in it.
        trust: use whatever task and network the ticket names: code of that name is imported and run.
        options: the fields of `VerifySettings` (``margin``, ``interim``, ``controls`` …) and of `LabOptions`
            (``store``, ``workers`` …).

    Raises:
        UsageError: for an argument that is not known, or cannot be.
        TicketError: for a ticket that cannot be trained anew.
        TrustError: if it names a task or network that is not built in, or a place of this machine.
    """
    settings, lab = settings_of(options, VerifySettings, LabOptions, what="verify(…)")
    return verify_ticket(ticket, settings, lab, task=task_of(ticket, task or "", trust=trust))


def task_of(ticket: str | PathLike[str], task: str | Task = "", *, trust: bool = False) -> Task | None:
    """The task that a user names, or that the ticket names if they trust it; None leaves it to what is granted."""
    if task:
        return named_task(task)
    return made_task(Ticket.load(Path(ticket), trained=False), trust=True) if trust else None


def verify_ticket(
    ticket: str | PathLike[str],
    settings: VerifySettings,
    options: LabOptions,
    *,
    task: Task | None = None,
    command: str = "",
    on_event: OnEvent | None = None,
    on_interim: Callable[[Verdict], None] | None = None,
) -> VerifyRecord:
    """Verify a ticket in the lab that the options ask for: see `execute_verify`."""
    with opened(options, task, on_event) as lab:
        return execute_verify(lab, Path(ticket), settings, task=task, command=command, on_interim=on_interim)


def execute_verify(
    lab: Lab,
    path: str | Path,
    settings: VerifySettings,
    *,
    task: Task | None = None,
    command: str = "",
    on_interim: Callable[[Verdict], None] | None = None,
) -> VerifyRecord:
    """Verify the ticket at `path`; write the record into the store's folder `evidence`, and return it."""
    began, ledger = time.monotonic(), lab.ledger.copy()
    ticket = Ticket.load(path, trained=False)
    made = verified(lab, ticket, settings, task=task, on_interim=on_interim)
    done = lab.ledger.since(ledger)
    described = {"ticket": made.subject.info["segment"], **vars(settings)}
    name = f"verify-{digest_of(json.loads(json.dumps(described)))[:8]}"
    about, info, root = made.subject, made.subject.info, lab.store.paths.root
    metric = about.task.metric
    record = VerifyRecord(
        name=name,
        ticket=str(path),
        run=run_of(root, Path(path)),
        method=info.get("method", ""),
        replicate=info.get("replicate", 0),
        level=info.get("level", 0),
        density=about.mask.density,
        kept=about.mask.kept,
        task=task_told(about.task, parameters=about.parameters, prunable=about.mask.total),
        resolution=resolution(metric.unit, about.lab.sizes(about.task)["test"]),
        interim=() if settings.seeds is not None else settings.interim,
        **made.told(),
        cost=convert({**done.counts(), "wall_seconds": round(time.monotonic() - began, 3)}, Cost),
        environment=environment_told(lab, lab.arithmetic(about.task)),
        command=command,
        store=str(root),
    )
    return written(lab.store.paths.evidence(name), record, done, told_by="networks")


def sparsest_winner(record: RunRecord) -> Point | None:
    """A run's ticket that is worth verifying: of the first replicate, at the sparsest level that wins.

    A level wins here if its mean over replicates on the *validation* split is no worse than the dense network's by
    the default margin and better than each control's of its own budget: a choice, not a verdict. None if no level does.
    """
    metric = record.task.metric
    rows: dict[tuple[int, str], list[Point]] = {}
    for point in record.points:
        rows.setdefault((point.level, point.role), []).append(point)
    means = {
        key: metric.sign * fmean(row.metric(metric.name, "validation") for row in found) for key, found in rows.items()
    }
    margin = default_margin(metric.unit, [means[0, "dense"]])
    winning = [
        level
        for level, role in rows
        if role == "ticket"
        and means[level, role] >= means[0, "dense"] - margin
        and all(
            means[level, role] > mean
            for (at, other), mean in means.items()
            if at == level and other not in (role, *LONGER)
        )
    ]
    return min(rows[max(winning), "ticket"], key=lambda row: row.replicate) if winning else None
