"""List the runs of a store with size, age and state; remove a run; find damaged records and tickets."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ticketry.choices import list_choices
from ticketry.core.ticket.ticket import Ticket
from ticketry.errors import StoreError, TicketError
from ticketry.files import content_of, delete_tree, iterate_files, list_entries
from ticketry.lab.store.files import InaccessibleError, explain_os_errors, has_canonical_bytes, path_exists, read_sealed
from ticketry.lab.store.locks import is_running
from ticketry.lab.store.maintenance import Usage, collect_garbage, describe_activity
from ticketry.lab.store.paths import display_address
from ticketry.lab.store.store import Store, open_store
from ticketry.records.campaign import read_campaign_record
from ticketry.records.evidence import read_evidence
from ticketry.records.run import RunRecord, read_run
from ticketry.report.writing import is_undamaged

State = Literal["done", "half", "running"]


@dataclass(frozen=True)
class StoredRun:
    """State, size and age of a run in a store."""

    name: str
    state: State
    """half: the run was interrupted before its record was written; the same command continues it."""
    bytes: int
    """Size of the run's folder and of all results and weights that the run needs, also those that other runs need."""
    own_bytes: int
    """Size of the files that no other run needs: removing the run frees these bytes."""
    changed: float
    """When the run's folder last changed, in seconds since 1970."""

    @property
    def age_seconds(self) -> float:
        """Seconds since the last change."""
        return max(0.0, time.time() - self.changed)


def stored_runs(root: Path) -> list[StoredRun]:
    """Return the runs of a store, the oldest first.

    Raises:
        StoreError: if a record is damaged.
    """
    store = open_store(root)
    store.fetch(results=True)
    usage, named = Usage(store, damaged=True), _records_by_run(store)
    reached = {name: usage.files_of(records) for name, records in named.items()}
    times = Counter(path for files in reached.values() for path in files)
    found = []
    for name in (name for name in named if name):
        folder = store.paths.run(name)
        alone = [path for path in reached[name] if times[path] == 1]
        own = usage.files_below(folder)
        state: State = "running" if is_running(folder) else "done" if path_exists(folder / "run.json") else "half"
        found.append(
            StoredRun(
                name,
                state,
                usage.bytes_of({*own, *reached[name]}),
                usage.bytes_of({*own, *alone}),
                _last_change(folder, shared=store.mirror is not None),
            )
        )
    return sorted(found, key=lambda one: one.changed)


def _last_change(folder: Path, *, shared: bool) -> float:
    """Return when a run's folder or its files (only these if `shared`) last changed, in seconds since 1970."""
    with explain_os_errors(folder, "read"):
        paths = [*([] if shared else [folder]), *iterate_files(folder)]
        return max((path.stat().st_mtime for path in paths), default=0.0)


def _records_by_run(store: Store) -> dict[str, list[Mapping[str, Any]]]:
    """Return, by run name, a run's record and the evidence about this run alone; other records have the key ""."""
    with explain_os_errors(store.paths.runs, "read"):
        found: dict[str, list[Mapping[str, Any]]] = {
            one.name: [] for one in list_entries(store.paths.runs) if one.is_dir()
        }
    found[""] = []
    for path in store.paths.run_records():
        found.setdefault(path.parent.name, []).append(read_sealed(path) or {})
    for path in [*store.paths.evidence_records(), *store.paths.campaign_records()]:
        values = read_sealed(path) or {}
        run = values.get("run")
        found[run if isinstance(run, str) and run in found and "runs" not in values else ""].append(values)
    return found


@dataclass(frozen=True)
class Removed:
    """A removed run, with number and bytes of the deleted files."""

    run: str
    files: int
    bytes: int


def remove_run(root: Path, name: str, *, dry_run: bool = False) -> Removed:
    """Delete a run: its folder, the evidence about it, and the results and weights that no other run needs.

    If the run has no record, its trainings are not deleted, since other runs may need them.

    Raises:
        StoreError: if there is no such run, or a run of the store is still training.
    """
    store = open_store(root)
    store.fetch(results=True)
    named = _records_by_run(store)
    known = [one for one in named if one]
    if name not in known:
        raise StoreError(
            f"there is no run {name!r} in {display_address(root)}: it has {list_choices(name, known) or 'none'}"
        )
    if what := describe_activity(store):
        raise StoreError(f"{what}: remove runs when it has ended")
    usage = Usage(store)
    others = set[Path]().union(*(usage.files_of(records) for other, records in named.items() if other != name))
    folder = store.paths.run(name)
    evidence = [path for path in store.paths.evidence_records() if (read_sealed(path) or {}).get("run") == name]
    pages = [page for path in evidence if path_exists(page := path.with_suffix(".html"))]
    inside = set(usage.files_below(folder))
    doomed = {*inside, *evidence, *pages, *(usage.files_of(named[name]) - others)}
    size = usage.bytes_of(doomed)
    if dry_run:
        return Removed(name, len(doomed), size)
    # Results before the weights that they refer to, so that the store is sound after an interruption; the record last,
    # so that the same command continues.
    outside = sorted(doomed - inside, key=lambda path: (path.is_relative_to(store.paths.blobs), path))
    if what := describe_activity(store):  # begun meanwhile
        raise StoreError(f"{what}: remove runs when it has ended")
    if store.mirror:
        ordered = [*outside, *sorted(inside, key=lambda path: path.name == "run.json")]
        store.mirror.delete(map(store.paths.object_name, ordered))
    for path in outside:
        with explain_os_errors(path, "delete"):
            path.unlink(missing_ok=True)
    with explain_os_errors(folder, "delete"):
        delete_tree(folder)
    files, freed = collect_garbage(store)
    return Removed(name, len(doomed) + files, size + freed)


def disk_usage(root: Path) -> list[dict[str, Any]]:
    """Return, for each kind of files in a store, a dict with their number and size in bytes."""
    store = open_store(root)
    paths = store.paths
    kinds = {
        "weights and masks": paths.blobs,
        "results": paths.results,
        "checkpoints of trainings that are under way": paths.partial,
        "remembered answers": paths.memo,
        "runs, with their tickets": paths.runs,
        "evidence": paths.evidences,
        "campaigns": paths.campaigns,
        "set aside as damaged": paths.root / "damaged",
    }
    usage = Usage(store)
    found = {
        what: files for what, folder in kinds.items() if (files := usage.files_below(folder)) or path_exists(folder)
    }
    counted = {path for files in found.values() for path in files}
    if rest := [path for path in usage.files_below(paths.root) if path not in counted]:
        found["other files"] = rest
    return [{"what": what, "files": len(files), "bytes": usage.bytes_of(files)} for what, files in found.items()]


def find_damaged_files(store: Store) -> Iterator[Path]:
    """Yield the paths of damaged records, run files, tickets and pages.

    Raises:
        InaccessibleError: if a file cannot be read.
    """
    for path in store.paths.run_records():
        record = _read_run(path)
        if record is None:
            yield path
        elif not _has_config(path.with_name("run.toml"), record.config):
            yield path.with_name("run.toml")
    for path in store.paths.evidence_records():
        if not _is_evidence(path):
            yield path
    for path in store.paths.campaign_records():
        if not _is_campaign(path):
            yield path
    for path in store.paths.tickets():
        if not path.name.startswith(".") and not _is_ticket(path):
            yield path
    yield from (path for path in store.paths.pages() if not is_undamaged(path))


def _read_run(path: Path) -> RunRecord | None:
    try:
        values = read_sealed(path)
        record = read_run(values, str(path))
        return record if record.name == path.parent.name and has_canonical_bytes(path) else None
    except InaccessibleError:
        raise
    except StoreError:
        return None


def _has_config(file: Path, config: str) -> bool:
    """Return whether a run file has the text `config`; a missing file counts as a match."""
    try:
        with explain_os_errors(file, "read"):
            return content_of(file) == config.encode()
    except InaccessibleError:
        raise
    except StoreError as error:
        return isinstance(error.__cause__, FileNotFoundError)


def _is_evidence(path: Path) -> bool:
    try:
        read_evidence(read_sealed(path) or {})
        return has_canonical_bytes(path)
    except InaccessibleError:
        raise
    except StoreError:
        return False


def _is_campaign(path: Path) -> bool:
    try:
        record = read_campaign_record(read_sealed(path) or {})
        return record.name == path.stem and has_canonical_bytes(path)
    except InaccessibleError:
        raise
    except StoreError:
        return False


def _is_ticket(path: Path) -> bool:
    try:
        return Ticket.load(path).is_as_written(path)
    except TicketError as error:
        if isinstance(error.__cause__, OSError):
            with explain_os_errors(path, "read"):
                raise error.__cause__ from None
        return False
