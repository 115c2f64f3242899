"""A ticket that gets a structure after it was found: its mask made anew, its start as it was; with its record."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from ticketry.core.mask import Mask
from ticketry.core.structure import coverage, together
from ticketry.core.structuring import Structuring
from ticketry.core.ticket import Ticket
from ticketry.lab.sample import Sample
from ticketry.lab.supervised import course_of
from ticketry.run_engine import Source

FORMAT = 1
_OF_THE_OLD = ("value", "dense_value", "metrics", "level", "search_steps", "trained_state")
"""Facts of the ticket that was structured, which are not those of the one that is made of it."""


def execute_structure(
    source: Source,
    by: Structuring,
    output: Path,
    *,
    null: bool = True,
    seed: int = 0,
    data: Path | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Give a ticket's mask a structure, save the ticket that results, and return the record.

    The new ticket starts where the old one did, also in positions that are filled back. It has not been trained: what
    is filled back has no trained weights. `ticketry verify` trains it, with the ticket's own recipe.

    Args:
        source: the ticket, with the weights that magnitudes are of: trained, or those of its start.
        output: the folder of the new ticket.
        null: whether to measure what a mask without structure by construction would reach.
        seed: of what is drawn at random.
        data: folder of data sets, for a score that looks at examples.

    Raises:
        StructureError, MaskError, LayerCollapseError, UsageError: see `structure.refill`, `regroup`, `n_m`, `channels`.
    """
    by.check_score()
    began = time.perf_counter()
    made = structured(source, by, seed=seed, data=data)
    seconds = time.perf_counter() - began
    before = source.mask
    fits = coverage(source.model, before, made, null=null and by.has_null, seed=seed)
    told = {
        **by.describe(),
        "name": str(by),
        "density_before": before.density,
        "layers": [one.as_json() for one in (*fits.values(), together(fits))],
    }
    written = Ticket(made, source.ticket.start, _info(source.ticket, made, by, told)).save(output)
    record = {
        "format": FORMAT,
        "kind": "structure",
        **source.about(),
        "density": made.density,
        "kept": made.kept,
        "prunable": made.total,
        "path": str(written),
        "seconds": seconds,
        "structure": told,
        "command": command,
    }
    found: dict[str, Any] = json.loads(json.dumps(record))
    return found


def structured(source: Source, by: Structuring, *, seed: int = 0, data: Path | None = None) -> Mask:
    """The structured mask of a ticket."""
    model = source.ticket.apply(source.task.build(), source.weights)
    seen: dict[str, Any] = {}
    if by.needs_data:
        course = course_of(source.task, data)
        seen = {"batches": Sample(seed=seed).drawn(course, model), "loss": course.loss}
    return by.apply(model, source.mask, source.inputs, seed=seed, **seen)


def _info(ticket: Ticket, made: Mask, by: Structuring, told: dict[str, Any]) -> dict[str, Any]:
    info = {name: value for name, value in ticket.info.items() if name not in _OF_THE_OLD}
    info["structure"] = {**told, "of": ticket.mask.digest}
    if isinstance(info.get("segment"), dict):  # what a search has written: how to train it
        segment = {name: value for name, value in info["segment"].items() if name != "shrunk"}
        info["segment"] = {**segment, "mask": made.digest, **({"shrunk": True} if by.whole_channels else {})}
    return info
