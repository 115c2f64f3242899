"""A verification: of a saved ticket, or of a run's sparsest ticket that looks like a winner; with its record."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ticketry.core.ticket import Ticket
from ticketry.evidence.judge import default_margin, resolution
from ticketry.evidence.names import LONGER
from ticketry.evidence.settings import VerifySettings
from ticketry.evidence.verdict import Looks, Verdict
from ticketry.evidence.verification import Verification, verify
from ticketry.lab.execute import environment
from ticketry.lab.files import read_json, write_json
from ticketry.lab.lab import Lab
from ticketry.lab.ledger import Ledger
from ticketry.lab.segment import digest_of
from ticketry.tasks.base import Task

FORMAT = 1


def execute_verify(
    lab: Lab,
    path: str | Path,
    settings: VerifySettings,
    *,
    task: Task | None = None,
    command: str = "",
    on_look: Callable[[Verdict], None] | None = None,
) -> dict[str, Any]:
    """Verify the ticket at `path`; write the record into the store's folder `evidence`, and return it."""
    began, ledger = time.monotonic(), lab.ledger.copy()
    ticket = Ticket.load(path, trained=False)
    made = verify(
        lab,
        ticket,
        task=task,
        controls=settings.rivals,
        claim=settings.what_is_claimed,
        margin=settings.margin,
        confidence=settings.confidence,
        looks=None if settings.seeds is not None else Looks(settings.looks),
        seeds=settings.seeds,
        noise=settings.noise,
        with_references=settings.references,
        on_look=on_look,
    )
    done = lab.ledger.since(ledger)
    described = {"ticket": made.subject.info["segment"], **vars(settings)}
    name = f"verify-{digest_of(json.loads(json.dumps(described)))[:8]}"
    record: dict[str, Any] = {
        "format": FORMAT,
        "kind": "verify",
        "name": name,
        "ticket": str(path),
        "run": _run_of(lab, Path(path)),
        **_about(made),
        "looks": [] if settings.seeds is not None else list(settings.looks),
        **made.describe(),
        "cost": {
            **done.counts(),
            "wall_seconds": round(time.monotonic() - began, 3),
        },
        "environment": _environment(lab, made),
        "command": command,
        "store": str(lab.store.paths.root),
    }
    record = json.loads(json.dumps(record))
    return written(lab.store.paths.evidence(name), record, done, told_by="networks")


def written(file: Path, record: dict[str, Any], done: Ledger, *, told_by: str) -> dict[str, Any]:
    """The record, written to `file`; or the one that is there, if nothing was trained and its `told_by` is the same.

    What a result has cost, and when, is told by the record of when it was trained.
    """
    earlier = read_json(file)
    if earlier and done.segments_trained == 0 and earlier.get(told_by) == record[told_by]:
        return earlier
    write_json(file, record)
    return record


def sparsest_winner(record: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The row of a run's ticket that is worth verifying: of the first replicate, at the sparsest level that wins.

    A level wins here if its mean over replicates on the *validation* split is no worse than the dense network's by
    the default margin and better than each control's of its own budget: a choice, not a verdict. None if no level does.
    """
    metric = record["task"]["metric"]
    sign = 1 if metric["higher_is_better"] else -1
    rows: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for point in record["points"]:
        rows.setdefault((point["level"], point["role"]), []).append(point)
    means = {key: sign * _mean([row["validation"][metric["name"]] for row in found]) for key, found in rows.items()}
    margin = default_margin(metric["unit"], [means[0, "dense"]])
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
    return min(rows[max(winning), "ticket"], key=lambda row: row["replicate"]) if winning else None


def _about(made: Verification) -> dict[str, Any]:
    """What the ticket is."""
    about, info = made.subject, made.subject.info
    return {
        "method": info.get("method", ""),
        "replicate": info.get("replicate", 0),
        "level": info.get("level", 0),
        "density": about.mask.density,
        "kept": about.mask.kept,
        "task": {
            "name": about.task.name,
            "model": str(about.task.key().get("model", "")),
            "metric": vars(about.task.metric),
            "parameters": about.parameters,
            "prunable": about.mask.total,
        },
        "resolution": resolution(about.task.metric.unit, about.lab.sizes(about.task)["test"]),
    }


def _environment(lab: Lab, made: Verification) -> dict[str, Any]:
    arithmetic = lab.arithmetic(made.subject.task)
    return {
        **environment(),
        "device": arithmetic.device,
        "precision": arithmetic.precision,
        "threads_per_segment": arithmetic.threads,
        "workers": lab.workers,
        **({"stack": lab.stack} if lab.stack else {}),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _run_of(lab: Lab, path: Path) -> str:
    """The run of this store that saved the ticket, by where it is; an empty text for a ticket from elsewhere."""
    try:
        inside = path.resolve().relative_to(lab.store.paths.runs.resolve())
    except ValueError:
        return ""
    return inside.parts[0] if inside.parts else ""


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
