"""The search behind a ticket, as it can be repeated: from what the ticket tells, within what its user trusts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from msgspec import convert, structs

from ticketry.core.ticket.ticket import Ticket
from ticketry.errors import TicketError, UsageError
from ticketry.evidence.asked_task import made_task, name_of
from ticketry.evidence.procedure import Procedure
from ticketry.evidence.ticket_under_test import check_task
from ticketry.experiments.keywords import settings_of
from ticketry.experiments.request import SearchRequest
from ticketry.experiments.run_file import check_trust, with_kept_costs
from ticketry.lab.lab import Lab
from ticketry.lab.search_result import Seeds
from ticketry.records.ticket import SearchInfo, read_info
from ticketry.search import METHODS
from ticketry.search import method as method_called
from ticketry.search.common.densities import Targets
from ticketry.search.gating.settings import GateSettings
from ticketry.tasks.catalogue import of_replicate
from ticketry.tasks.file_requests import refused
from ticketry.tasks.recipe import recipe_from
from ticketry.tasks.task import Task

_ENTRIES = ("task", "method", "settings", "recipe", "seeds", "level")


def search_of(
    ticket: Ticket, task: Task | None = None, *, trust: bool = False, store: Path | None = None
) -> SearchRequest:
    """The search that found a ticket, without its controls.

    Args:
        task: of the ticket, where it cannot be made by the name that is written in it.
        trust: whether a user has allowed whatever the ticket names: its method, settings and task.
        store: whose own costs it may name all the same.

    Raises:
        TicketError: if the ticket does not tell its search, is of another task, or was found by a method, score or kind
            of gates whose source has changed since.
        TrustError: if it names what is not built in.
        UsageError: if a repeated search would not make it: its mask was given a structure afterwards.
    """
    of = name_of(ticket)
    if missing := [name for name in _ENTRIES if name not in ticket.info]:
        raise TicketError(f"{of} does not tell its {', '.join(missing)}, so that its search cannot be repeated")
    told = read_info(SearchInfo, ticket.info, of)
    if told.structure.of:
        raise UsageError(
            f"{of} was given its structure after its search, which a repeated search would not do: search with"
            " --structure, and verify that run"
        )
    if told.search is None and told.settings.get("budget"):
        raise TicketError(
            f"{of} was saved by an older ticketry, and does not tell the recipe that its budget has changed: carry its"
            " run out again (ticketry search --config run.toml), which trains nothing anew"
        )
    settings = with_kept_costs(told.settings, store)
    if not trust:
        if METHODS.is_outside(told.method):
            raise refused("search method", told.method, of)
        check_trust({"settings": settings}, None, of=of, store=store)
    method, searched = method_called(told.method), told.search
    task = task or made_task(ticket, request=searched.task if searched else None, trust=trust)
    check_task(of_replicate(task, told.replicate), told.task)
    found = SearchRequest(
        method=method,
        task=task,
        settings=settings_of(settings, method.Settings, what=f"the search of {of}")[0],
        recipe=recipe_from((searched and searched.recipe) or told.recipe),
        replicates=searched.replicates if searched else told.replicate + 1,
        seeds=convert(structs.asdict(told.seeds), Seeds).replicate(-told.replicate),
    )
    _check_sources(found, searched.sources if searched else None, of)
    return found


def _check_sources(search: SearchRequest, told: Mapping[str, str] | None, of: str) -> None:
    """Refuse a search whose source is no longer that by which a ticket was found; older tickets do not tell it."""
    now = search.procedure_sources
    changed = [name for name in sorted({*(told or {}), *now}) if told and told.get(name) != now.get(name)]
    if changed:
        words = {"method": search.method.name, "score": "its score", "kind": "its kind of gates"}
        what = words.get(changed[0], changed[0])
        raise TicketError(
            f"the source of {what} has changed since {of} was found, so that its search cannot be repeated:"
            " search again, and verify that run"
        )


def procedure_of(lab: Lab, search: SearchRequest, level: int) -> Procedure:
    """A search as a procedure under test, which finds the tickets of a level.

    Of data with several splits its replicates have those that the run has not had.
    """
    settings = search.settings
    wanted: int | None = level
    if isinstance(settings, Targets):
        settings, wanted = settings.only(level), 1
    elif isinstance(settings, GateSettings) and settings.requested:
        settings = settings.each_alone()[(level - 1) // settings.rounds]
        wanted = None  # as many rounds as it takes to come to the density
    return Procedure(
        lab=lab,
        search=search.method.search,
        task_of=lambda number: search.task_of(search.replicates + number),
        settings=settings,
        recipe=search.recipe,
        level=wanted,
        seeds=search.seeds,
        bounded=bool(getattr(settings, "budget", "")),
    )
