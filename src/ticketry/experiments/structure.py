"""Change the mask of a ticket to a structure that hardware can use; the ticket's initial weights do not change."""

from __future__ import annotations

import time
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

from ticketry.core.mask import Mask
from ticketry.core.structure import coverage, together
from ticketry.core.structure.apply import apply_structuring, channel_score_needs_data, check_structure_score
from ticketry.core.structure.structuring import Structuring
from ticketry.core.ticket.ticket import Ticket
from ticketry.experiments.decoding import decode_settings
from ticketry.experiments.options import ModelOptions, StructureOptions, ticket_path
from ticketry.experiments.record_files import normalise_record
from ticketry.experiments.run_record import structure_record
from ticketry.experiments.ticket_model import TicketModel, load_source
from ticketry.lab.costs.ledger import Sample
from ticketry.lab.training.supervised import course_of
from ticketry.records.schema import as_json
from ticketry.records.structure import Structure, StructureRecord

_OUTDATED = ("value", "dense_value", "metrics", "level", "search_steps", "trained_state")
"""Entries of a ticket that become invalid when its mask is restructured."""


def restructure(
    ticket: str | PathLike[str] | Ticket,
    to: str,
    *,
    output: str | PathLike[str] | None = None,
    **options: Any,
) -> StructureRecord:
    """Give a ticket's mask a structure that hardware can use, as ``ticketry structure`` does.

    Args:
        ticket: folder of a ticket, a run's ticket, or a loaded `Ticket` (its folder is read again).
        to: refill, refill+, regroup, channels, 2:4 (or another N:M).
        output: the new ticket's folder; by default in the current folder, named after the ticket and the structure.
        options: the fields of `StructureOptions` (``rows``, ``density``, ``score`` …) and of `ModelOptions`.

    Returns:
        The record; the new ticket is at its ``path``.

    Raises:
        UsageError: for a wrong argument.
        StructureError, MaskError, LayerCollapseError: see `structure.refill`, `regroup`, `n_m`, `channels`.
        TicketError: if there is no such ticket, or it is damaged.
        TrustError: if the ticket names a task or network that is not built in, or a path on this machine.

    Examples:
        >>> run = tk.run("iterative", levels=2, replicates=1, controls=(), recipe={"length": "20it"}, workers=0)
        >>> record = tk.restructure(run.best(), "2:4", output="two-of-four")
        >>> tk.Ticket.load(record.path).density
        0.5
    """
    asked, model = decode_settings(options, StructureOptions, ModelOptions, what="restructure(…)")
    return restructure_ticket(ticket_path(ticket), to, asked, model, output=None if output is None else Path(output))


def restructure_ticket(
    ticket: Path,
    to: str,
    options: StructureOptions,
    model: ModelOptions,
    *,
    output: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
    command: str = "",
) -> StructureRecord:
    """Give a ticket's mask a structure, save the new ticket, and return the record: see `restructure`.

    The new ticket has the initial weights of the old ticket, also at positions where the structure adds weights. The
    new ticket is not trained: `ticketry verify` trains it with the ticket's recipe.
    """
    by = options.to_structuring(to)
    check_structure_score(by)
    say(str(by))
    source = load_source(model, ticket)
    began = time.perf_counter()
    made = _restructure_mask(source, by, options.seed, model.data)
    seconds = time.perf_counter() - began
    before = source.mask
    fits = coverage(source.model, before, made, null=options.null and by.has_null, seed=options.seed)
    structure = structure_record(by, before.density, [one.as_json() for one in (*fits.values(), together(fits))])
    folder = output or Path(f"{ticket.resolve().name}-{by.kind.replace(':', '-of-')}")
    written = Ticket(made, source.ticket.start, _ticket_info(source.ticket, made, by, structure)).save(folder)
    about = {**source.describe(), "density": made.density, "kept": made.kept, "prunable": made.total}
    return normalise_record(
        StructureRecord(**about, path=str(written), seconds=seconds, structure=structure, command=command)
    )


def _restructure_mask(source: TicketModel, by: Structuring, seed: int, data: Path | None) -> Mask:
    model = source.ticket.apply(source.task.build(), source.weights)
    examples: dict[str, Any] = {}
    if channel_score_needs_data(by):
        course = course_of(source.task, data)
        examples = {"batches": Sample(seed=seed).draw(course, model), "loss": course.loss}
    return apply_structuring(by, model, source.mask, source.inputs, seed=seed, **examples)


def _ticket_info(ticket: Ticket, made: Mask, by: Structuring, structure: Structure) -> dict[str, Any]:
    info = {name: value for name, value in ticket.info.items() if name not in _OUTDATED}
    info["structure"] = {**as_json(structure), "of": ticket.mask.digest}
    if isinstance(info.get("segment"), dict):  # how to train it, written by a search
        segment = {name: value for name, value in info["segment"].items() if name != "shrunk"}
        info["segment"] = {**segment, "mask": made.digest, **({"shrunk": True} if by.whole_channels else {})}
    return info
