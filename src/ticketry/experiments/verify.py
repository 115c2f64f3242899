"""Verify a saved ticket, or the search procedure that found it; choose the ticket of a run to verify."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from os import PathLike
from pathlib import Path
from statistics import fmean
from typing import Any

from msgspec import convert, structs

from ticketry.core.structure.pattern import check_density
from ticketry.core.ticket.ticket import Ticket
from ticketry.errors import TicketError, UsageError
from ticketry.evidence.control import LONGER_CONTROLS, RIVALS
from ticketry.evidence.level_verdicts import metric_resolution
from ticketry.evidence.rivals import (
    Procedure,
    ProcedureRivals,
    Rivals,
    build_task,
    import_variants,
    require_same_task,
    ticket_name_for_errors,
    trains_after_pruning_only,
)
from ticketry.evidence.settings import VerifySettings
from ticketry.evidence.verdict import Verdict
from ticketry.evidence.verification import verify as verified
from ticketry.evidence.verification import verify_procedure
from ticketry.experiments.decoding import decode_settings
from ticketry.experiments.options import LabOptions, open_lab, ticket_path
from ticketry.experiments.record_files import (
    describe_environment,
    describe_task,
    find_run_folder,
    find_run_name,
    write_record,
)
from ticketry.experiments.request import SearchRequest, resolve_task
from ticketry.experiments.run_file import require_trust, upgrade_stored_settings
from ticketry.experiments.run_record import log_verification
from ticketry.lab.lab import Lab
from ticketry.lab.runners.runner import OnEvent
from ticketry.lab.search_result import Seeds
from ticketry.lab.store.files import path_exists, read_with_digest
from ticketry.lab.store.paths import display_address, shared_url, ticket_folder
from ticketry.lab.store.store import digest_of, open_existing_store, open_store
from ticketry.records.evidence import VerifyRecord
from ticketry.records.network import TICKET, Cost, Point
from ticketry.records.run import RunRecord, read_run
from ticketry.records.settings import upgrade_settings
from ticketry.records.ticket import RetrainingInfo, SearchInfo, read_ticket_info
from ticketry.records.verdict import About, default_margin
from ticketry.search import METHODS
from ticketry.search import method as method_called
from ticketry.tasks.catalogue import of_replicate
from ticketry.tasks.file_requests import untrusted_request_error
from ticketry.tasks.recipe import recipe_from_dict
from ticketry.tasks.task import Task

DENSITY_TOLERANCE = 0.1
"""Largest relative difference between a requested density and the density of tickets."""


def verify(
    ticket: str | PathLike[str] | Ticket,
    *,
    density: float | str | None = None,
    task: str | Task | None = None,
    trust: bool = False,
    **options: Any,
) -> VerifyRecord:
    """Verify that a ticket, or the procedure that found it, is as good as the dense network and beats its controls.

    To verify a ticket, train it again from its start with fresh seeds, beside the dense network and controls. To verify
    the procedure, repeat the whole search from fresh seeds. The procedure is verified if ``about="procedure"``, or if
    the ticket keeps weights of its search.

    Args:
        ticket: a ticket (its folder, a ticket of a run, or a loaded `Ticket`), or a run (its folder, or its name in the
        store).
        density: density of a run's ticket; by default the sparsest level that looks like a winner, or the only one.
        task: the task, for a ticket that does not name its task.
        trust: whether to import and run user code (task, method, network) that the ticket names.
        options: the fields of `VerifySettings` (``about``, ``margin``, ``interim``, ``controls`` …) and of `LabOptions`
            (``store``, ``workers`` …).

    Raises:
        UsageError: for a wrong argument, or a run without a level that looks like a winner.
        TicketError: for a ticket that cannot be trained again, or that does not describe its search where it is needed.
        TrustError: if the ticket names a task, method or network that is not built in, or a path on this machine.

    Examples:
        >>> run = tk.run("iterative", levels=2, replicates=1, controls=(), recipe={"length": "20it"}, workers=0)
        >>> record = tk.verify(run.best(), seeds=3, controls=["shuffled"], noise=False, references=False, workers=0)
        >>> [(network.role, len(network.values)) for network in record.networks]
        [('ticket', 3), ('dense', 3), ('shuffled', 3)]
    """
    settings, lab = decode_settings(options, VerifySettings, LabOptions, what="verify(…)")
    folder = find_ticket(ticket_path(ticket), lab.store, density)
    return verify_ticket(folder, settings, lab, task=resolve_task(task) if task else None, trust=trust)


def find_ticket(named: str | PathLike[str], store: Path, density: float | str | None = None) -> Path:
    """Return the folder of the ticket `named`: its own folder, or the folder or name of its run."""
    path = Path(named)
    if shared_url(store):
        open_existing_store(store)
    folder = find_run_folder(path, store)
    if folder is None:
        if density is not None:
            raise UsageError(f"density needs a run, got {path}: name the run of the ticket")
        return path
    record = read_run(read_with_digest(folder / "run.json"), str(folder / "run.json"))
    chosen = choose_ticket(record, density)
    if chosen is None:
        raise UsageError(
            f"no level of the run {record.name} looks like a winner on the validation split: name one with --density;"
            f" there are {_list_densities(record)}"
        )
    chosen_folder = ticket_folder(folder, chosen.replicate, chosen.level)
    if shared_url(store):
        open_store(store).fetch_folder(chosen_folder)
    if not path_exists(chosen_folder):
        raise TicketError(
            f"there is no ticket at {chosen_folder}: it was left out of a bundle, or removed; `ticketry search --config"
            f" {folder / 'run.toml'} --store {store}` makes the run's tickets again"
        )
    return chosen_folder


def verify_ticket(
    ticket: str | PathLike[str],
    settings: VerifySettings,
    options: LabOptions,
    *,
    task: Task | None = None,
    search: SearchRequest | None = None,
    trust: bool = False,
    command: str = "",
    on_event: OnEvent | None = None,
    on_interim: Callable[[Verdict], None] | None = None,
) -> VerifyRecord:
    """Verify a ticket, training with `options`, and return the record; see `execute_verify`."""
    if trust and task is None:
        task = build_task(Ticket.load(Path(ticket), trained=False), trust=True)
    with open_lab(options, task or (search.task if search else None), on_event) as lab:
        return execute_verify(
            lab, Path(ticket), settings, task=task, search=search, trust=trust, command=command, on_interim=on_interim
        )


def execute_verify(
    lab: Lab,
    path: str | Path,
    settings: VerifySettings,
    *,
    task: Task | None = None,
    search: SearchRequest | None = None,
    trust: bool = False,
    command: str = "",
    on_interim: Callable[[Verdict], None] | None = None,
) -> VerifyRecord:
    """Verify the ticket at `path`, or the procedure that found it; write and return the record.

    Args:
        task: the task, for a ticket that does not name its task.
        search: the search that found the ticket; by default it is read from the ticket.
        trust: whether to import the search and the variants of training that the ticket names.
    """
    began, ledger = time.monotonic(), lab.ledger.copy()
    ticket = Ticket.load(path, trained=False)
    about = settings.about or ticket_or_procedure_to_verify(ticket)
    searched = (
        None if about == "ticket" else search or read_search(ticket, task, trust=trust, store=lab.store.paths.root)
    )
    level = int(ticket.info["level"]) if searched else 0
    if searched:
        searched = searched.for_lab(lab)
        name = _procedure_verification_name(searched, level, settings)
    else:
        if trust:
            import_variants(ticket)
        task = task or build_task(ticket)
        name = _ticket_verification_name(ticket.info, settings, lab.non_default_settings(task))
    config = {"about": about, "ticket": str(path), "settings": vars(settings)}
    with lab.dashboards.reporting(name, "verification", config, by_label=True) as run:
        if searched is None:
            made = verified(lab, ticket, settings, task=task, on_interim=on_interim)
            about_what = _describe_ticket(made.compared)
        else:
            made = verify_procedure(build_procedure(lab, searched, level), settings, on_interim=on_interim)
            about_what = _describe_procedure(made.compared, searched, level)
        done, root, metric = lab.ledger.since(ledger), lab.store.paths.root, made.compared.task.metric
        record = VerifyRecord(
            name=name,
            ticket=str(path),
            run=find_run_name(root, Path(path)),
            resolution=metric_resolution(metric.unit, lab.sizes(made.compared.task)["test"]),
            interim=() if settings.seeds is not None else settings.interim,
            after=settings.after,
            **about_what,
            **made.to_record(),
            cost=convert({**done.counts(), "wall_seconds": round(time.monotonic() - began, 3)}, Cost),
            environment=describe_environment(lab, lab.arithmetic(made.compared.task), made.trained),
            command=command,
            store=display_address(root),
        )
        file = lab.store.paths.evidence(name)
        record = write_record(file, record, done, unless_same="networks")
        log_verification(lab, run, record, file)
    return record


def ticket_or_procedure_to_verify(ticket: Ticket) -> About:
    """Return what to verify: ``ticket`` if the ticket is trained only after pruning, otherwise ``procedure``."""
    return (
        "ticket"
        if trains_after_pruning_only(read_ticket_info(RetrainingInfo, ticket.info, ticket_name_for_errors(ticket)))
        else "procedure"
    )


def _ticket_verification_name(info: Mapping[str, Any], settings: VerifySettings, arithmetic: Mapping[str, Any]) -> str:
    asked = {**_settings_for_record_name(settings), "controls": settings.controls or RIVALS}
    described = {name: value for name, value in asked.items() if name not in ("about", "dense_at")}
    chosen = {"arithmetic": dict(arithmetic)} if arithmetic else {}
    return _name_from_digest({"ticket": info.get("segment"), **described, **chosen})


def _describe_ticket(rivals: Rivals | ProcedureRivals) -> dict[str, Any]:
    """Return the fields of a verification record that describe the verified ticket."""
    assert isinstance(rivals, Rivals)
    about = rivals.subject
    return {
        "method": about.info.get("method", ""),
        "replicate": about.info.get("replicate", 0),
        "level": about.info.get("level", 0),
        "density": about.mask.density,
        "kept": about.mask.kept,
        "task": describe_task(about.task, about.lab, parameters=about.parameters, prunable=about.mask.total),
    }


def _procedure_verification_name(search: SearchRequest, level: int, settings: VerifySettings) -> str:
    described = {
        name: value
        for name, value in search.identity().items()
        if name not in ("replicates", "controls", "control_densities", "sources")
    }
    described |= {"sources": search.source_digests} if search.source_digests else {}
    return _name_from_digest({"procedure": described, "level": level, **_settings_for_record_name(settings)})


def _settings_for_record_name(settings: VerifySettings) -> dict[str, Any]:
    """Return the settings from which a record's name is computed; `after` is omitted if it is not set."""
    return {name: value for name, value in vars(settings).items() if name != "after" or value}


def _describe_procedure(rivals: Rivals | ProcedureRivals, search: SearchRequest, level: int) -> dict[str, Any]:
    """Return the fields of a verification record that describe the verified procedure."""
    assert isinstance(rivals, ProcedureRivals)
    return {
        "method": search.method.name,
        "settings": search.stored_settings,
        "recipe": asdict(search.recipe),
        "level": level,
        "density": rivals.kept_weights / rivals.weights_in_scope,
        "kept": rivals.kept_weights,
        "task": describe_task(
            search.task, rivals.lab, parameters=rivals.count_parameters("dense"), prunable=rivals.weights_in_scope
        ),
    }


def _name_from_digest(described: dict[str, Any]) -> str:
    return f"verify-{digest_of(json.loads(json.dumps(described)))[:8]}"


# -- which ticket of a run ---------------------------------------------------------------------------------------------


def choose_ticket(record: RunRecord, density: float | str | None = None) -> Point | None:
    """Return the ticket of a run to verify, from the first replicate that has one; None if no level is a winner.

    Args:
        density: choose the level with the nearest density; by default the level of `sparsest_winner`, or the only
            level.
    """
    tickets = [one for one in record.points if one.role == TICKET]
    if density is not None:
        level = nearest_level(record, density)
        tickets = [one for one in tickets if one.level == level]
    elif winner := sparsest_winner(record):
        return winner
    levels = {one.level for one in tickets}
    return min(tickets, key=lambda one: one.replicate) if len(levels) == 1 else None


def nearest_level(record: RunRecord, asked: float | str) -> int:
    """Return the level whose tickets have the density nearest to `asked`."""
    density = check_density(asked)
    tickets = [one for one in record.points if one.role == TICKET]
    nearest = min(tickets, key=lambda one: abs(one.density - density), default=None)
    if nearest is None or abs(nearest.density - density) > DENSITY_TOLERANCE * density:
        raise UsageError(
            f"the run {record.name} has no tickets of density {density:g}; there are {_list_densities(record)}"
        )
    return nearest.level


def _list_densities(record: RunRecord) -> str:
    found = sorted({one.density for one in record.points if one.role == TICKET}, reverse=True)
    return ", ".join(f"{one:.4g}" for one in found) or "none"


def sparsest_winner(record: RunRecord) -> Point | None:
    """Return the first replicate's ticket at the sparsest level that looks like a winner; None if no level does.

    A level looks like a winner if its mean on the *validation* split is better than that of every control with the same
    budget, and at most the default margin worse than the dense network. This rule only chooses a ticket; the
    verdict uses another rule.
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
            if at == level and other not in (role, *LONGER_CONTROLS)
        )
    ]
    return min(rows[max(winning), "ticket"], key=lambda row: row.replicate) if winning else None


_ENTRIES = ("task", "method", "settings", "recipe", "seeds", "level")


def read_search(
    ticket: Ticket, task: Task | None = None, *, trust: bool = False, store: Path | None = None
) -> SearchRequest:
    """Return the search that found a ticket, without the search's controls.

    Args:
        task: the task, for a ticket that does not name its task.
        trust: whether to use a method, settings and task of user code that the ticket names.
        store: a store; even without `trust`, the ticket may name files of layer costs in this store.
    """
    of = ticket_name_for_errors(ticket)
    if missing := [name for name in _ENTRIES if name not in ticket.info]:
        raise TicketError(f"{of} lacks its {', '.join(missing)}, so its search cannot be repeated")
    info = read_ticket_info(SearchInfo, ticket.info, of)
    if info.structure.of:
        raise UsageError(
            f"{of} was given its structure after its search, which a repeated search would not do: search with"
            " --structure, and verify that run"
        )
    if info.search is None and upgrade_settings(info.settings).get("equal_cost"):
        raise TicketError(
            f"{of} was saved by an older ticketry, and lacks the recipe that its budget has changed: repeat its run"
            " (ticketry search --config run.toml), which trains nothing again"
        )
    settings = upgrade_stored_settings(info.settings, info.method, store)
    if not trust:
        if METHODS.is_external(info.method):
            raise untrusted_request_error("search method", info.method, of)
        require_trust({"settings": settings}, None, of=of, store=store)
    method, searched = method_called(info.method), info.search
    fixed = {field.name: field.default for field in fields(method.Settings) if not field.init}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    settings = {name: value for name, value in given.items() if name not in fixed or value != fixed[name]}
    task = task or build_task(ticket, request=searched.task if searched else None, trust=trust)
    require_same_task(of_replicate(task, info.replicate), info.task)
    found = SearchRequest(
        method=method,
        task=task,
        settings=decode_settings(settings, method.Settings, what=f"the search of {of}")[0],
        recipe=recipe_from_dict((searched and searched.recipe) or info.recipe),
        replicates=searched.replicates if searched else info.replicate + 1,
        seeds=convert(structs.asdict(info.seeds), Seeds).replicate(-info.replicate),
    )
    _check_sources(found, searched.sources if searched else None, of)
    return found


def _check_sources(search: SearchRequest, recorded: Mapping[str, str] | None, of: str) -> None:
    """Raise `TicketError` if user code of a search has changed since the ticket was found.

    Code without a recorded digest is not checked.
    """
    now = search.source_digests
    changed = [name for name in sorted({*(recorded or {}), *now}) if recorded and recorded.get(name) != now.get(name)]
    if changed:
        words = {"method": search.method.name, "score": "its score", "kind": "its kind of gates"}
        what = words.get(changed[0], changed[0])
        raise TicketError(
            f"the source of {what} has changed since {of} was found, so that its search cannot be repeated:"
            " search again, and verify that run"
        )


def build_procedure(lab: Lab, search: SearchRequest, level: int) -> Procedure:
    """Return an object that repeats `search` with other seeds, to verify its tickets of one `level`.

    For data with several splits, the procedure uses splits that the original search did not use.
    """
    settings, wanted = search.settings, level
    if hasattr(settings, "for_level"):  # a shorter search that finds the ticket too
        settings, wanted = settings.for_level(level)
    return Procedure(
        lab=lab,
        search=search.method.search,
        task_of=lambda number: search.task_of(search.replicates + number),
        settings=settings,
        recipe=search.recipe,
        level=wanted,
        seeds=search.seeds,
        bounded=bool(getattr(settings, "equal_cost", "")),
    )
