"""List, check and remove the runs of a store; copy a store to another folder or URL, or move it."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

from ticketry.choices import list_choices
from ticketry.core.ticket.ticket import Ticket
from ticketry.errors import StoreError, TicketError
from ticketry.files import (
    delete_tree,
    file_digest,
    flush_to_disk,
    iterate_below,
    iterate_files,
    iterate_folders,
    list_entries,
    parse_json,
    read_bytes,
    replace_on_success,
)
from ticketry.lab.store.files import (
    InaccessibleError,
    bytes_with_digest,
    explain_os_errors,
    has_canonical_bytes,
    parse_canonical_record,
    path_exists,
    read_json,
    read_with_digest,
    write_json,
    write_with_digest,
)
from ticketry.lab.store.locks import is_running, is_running_mark, mark_in_use
from ticketry.lab.store.maintenance import Usage, collect_garbage, describe_activity
from ticketry.lab.store.mirror import replace_folder_in_paths
from ticketry.lab.store.objects import Listed, Objects, SharedFolder
from ticketry.lab.store.paths import Paths, canonical_url, display_address, is_url, shared_url
from ticketry.lab.store.store import FORMAT, Store, open_remote, open_store
from ticketry.records.campaign import read_campaign_record
from ticketry.records.evidence import read_evidence
from ticketry.records.run import read_run
from ticketry.report.writing import is_undamaged

State = Literal["done", "half", "running"]
T = TypeVar("T")


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
    """Return the runs of a store, the oldest first."""
    store = open_store(root)
    store.fetch(results=True)
    usage, named = Usage(store, damaged=True), _records_by_run(store)
    reached = {name: usage.find_referenced_files(records) for name, records in named.items()}
    times = Counter(path for files in reached.values() for path in files)
    found = []
    for name in (name for name in named if name):
        folder = store.paths.run(name)
        alone = [path for path in reached[name] if times[path] == 1]
        own = usage.files_below(folder)
        state: State = "running" if is_running(folder) else "done" if path_exists(folder / "run.json") else "half"
        with explain_os_errors(folder, "read"):  # a download changes the time of a shared store's folder
            paths = [*([] if store.mirror else [folder]), *iterate_files(folder)]
            changed = max((path.stat().st_mtime for path in paths), default=0.0)
        found.append(
            StoredRun(
                name,
                state,
                usage.bytes_of({*own, *reached[name]}),
                usage.bytes_of({*own, *alone}),
                changed,
            )
        )
    return sorted(found, key=lambda one: one.changed)


def _records_by_run(store: Store) -> dict[str, list[Mapping[str, Any]]]:
    """Return the records of a store by name of the run: its own record, and verifications and timings of it alone.

    All other records have the key "".
    """
    with explain_os_errors(store.paths.runs, "read"):
        found: dict[str, list[Mapping[str, Any]]] = {
            one.name: [] for one in list_entries(store.paths.runs) if one.is_dir()
        }
    found[""] = []
    for path in store.paths.run_records():
        found.setdefault(path.parent.name, []).append(read_with_digest(path) or {})
    for path in [*store.paths.evidence_records(), *store.paths.campaign_records()]:
        values = read_with_digest(path) or {}
        run = values.get("run")
        found[run if isinstance(run, str) and run in found and "runs" not in values else ""].append(values)
    return found


@dataclass(frozen=True)
class Removed:
    """Result of `remove_run`: name of the run, and the number and bytes of the deleted files."""

    run: str
    files: int
    bytes: int


def remove_run(root: Path, name: str, *, dry_run: bool = False) -> Removed:
    """Delete a run's folder, its verifications and timings, and the results and weights that no other run needs.

    If the run has no record, its results and weights are kept, since other runs may need them.
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
    others = set[Path]().union(
        *(usage.find_referenced_files(records) for other, records in named.items() if other != name)
    )
    folder = store.paths.run(name)
    evidence = [path for path in store.paths.evidence_records() if (read_with_digest(path) or {}).get("run") == name]
    pages = [page for path in evidence if path_exists(page := path.with_suffix(".html"))]
    inside = set(usage.files_below(folder))
    doomed = {*inside, *evidence, *pages, *(usage.find_referenced_files(named[name]) - others)}
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
    """Return, for each kind of file in a store, a dict with the number of files and their bytes."""
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
    """Yield the paths of damaged records, run files, tickets and pages."""
    for path in store.paths.run_records():
        run = _read_undamaged(read_run, path)
        if run is None or run.name != path.parent.name:
            yield path
        elif not _has_run_file_text(path.with_name("run.toml"), run.config):
            yield path.with_name("run.toml")
    yield from (path for path in store.paths.evidence_records() if _read_undamaged(read_evidence, path) is None)
    for path in store.paths.campaign_records():
        campaign = _read_undamaged(read_campaign_record, path)
        if campaign is None or campaign.name != path.stem:
            yield path
    for path in store.paths.tickets():
        if not path.name.startswith(".") and not _is_ticket(path):
            yield path
    yield from (path for path in store.paths.pages() if not is_undamaged(path))


def _read_undamaged(read: Callable[[object, str], T], path: Path) -> T | None:
    """Return the record in the file `path`; None if it is invalid, or if writing it again would give other bytes."""
    try:
        record = read(read_with_digest(path) or {}, str(path))
        return record if has_canonical_bytes(path) else None
    except InaccessibleError:
        raise
    except StoreError:
        return None


def _has_run_file_text(file: Path, config: str) -> bool:
    """Return whether a run file has the text `config`; a missing file counts as a match."""
    try:
        with explain_os_errors(file, "read"):
            return read_bytes(file) == config.encode()
    except InaccessibleError:
        raise
    except StoreError as error:
        return isinstance(error.__cause__, FileNotFoundError)


def _is_ticket(path: Path) -> bool:
    try:
        return Ticket.load(path).is_as_written(path)
    except TicketError as error:
        if isinstance(error.__cause__, OSError):
            with explain_os_errors(path, "read"):
                raise error.__cause__ from None
        return False


_ORDER = ("blobs", "memo", "results", "runs", "evidence", "campaigns")
"""Folders to copy, each before the folders that refer to it; leases, partial states and damaged files are omitted."""
_SEALED = ("memo", "results")


@dataclass(frozen=True)
class Copied:
    """Result of `copy_store`: number and bytes of copied files, and number of files that the target already had."""

    files: int
    bytes: int
    known: int
    """Number of skipped files: the target had them already, or has another run or record of the same name."""


def copy_store(origin: str, target: str) -> Copied:
    """Copy the files of a store that another store lacks; after an interruption, call the function again.

    Args:
        origin: folder or URL of the store to copy, see `open_store`.
        target: folder or URL of the other store, which is created if missing.
    """
    here, there = _open_objects(origin), _open_objects(target)
    if (described := here.get("store.json")) is None:
        raise StoreError(f"there is no store at {origin}")
    if (number := _parse_json_object(described).get("format")) != FORMAT:
        raise StoreError(
            f"the store at {origin} has the store format {str(number)[:20]!r}, this ticketry copies {FORMAT}: use the"
            " ticketry that made it, or, if its store.json is damaged, `ticketry store check --repair`"
        )
    if here.address == there.address:
        raise StoreError(f"{target} is the very store that is to be copied: name another")
    store = open_store(target)
    with mark_in_use(store.paths):  # so that nothing is deleted that the copied records refer to
        return _copy_missing_files(here, there, origin, target)


def _copy_missing_files(here: Objects, there: Objects, origin: str, target: str) -> Copied:
    known = {one.name: one for one in there.list()}
    files = size = skipped = 0
    wanted = list(_files_to_copy(here))
    others = {
        _record_name(one.name)
        for one in wanted
        if one.name in known
        and one.name.partition("/")[0] not in ("blobs", *_SEALED)
        and not one.name.endswith(".md")
        and there.get(one.name) != _read_for_target(here, one, origin, target)
    }
    for one in wanted:
        # Existing files stay. If a run or campaign differs from one of that name, none of its files are copied.
        if one.name in known or _record_name(one.name) in others:
            skipped += 1
            continue
        data = _read_for_target(here, one, origin, target)
        there.put(one.name, data)
        files, size = files + 1, size + len(data)
    return Copied(files, size, skipped)


def _read_for_target(here: Objects, one: Listed, origin: str, target: str) -> bytes:
    """Return a file's checked contents; in a record, the store's address `origin` is replaced by `target`."""
    data = _read_and_check_digest(here, one)
    if not _is_record(one.name):
        return data
    values, new = parse_canonical_record(data, one.name), canonical_url(target) if is_url(target) else target
    return bytes_with_digest(replace_store_path(values, () if values.get("store") else (origin,), new))


def _record_name(name: str) -> str:
    """Return the name of the JSON record to which the stored file `name` belongs."""
    parts = name.split("/")
    return f"runs/{parts[1]}/run.json" if parts[0] == "runs" else str(PurePosixPath(name).with_suffix(".json"))


def _open_objects(address: str) -> Objects:
    if is_url(address):
        return open_remote(canonical_url(address))
    return SharedFolder(f"file://{Path(address).absolute()}")


def _files_to_copy(here: Objects) -> Iterator[Listed]:
    """Yield a store's files, each after the files that it refers to; omit pages, which can be written again."""
    found = {folder: list(here.list(f"{folder}/")) for folder in _ORDER}
    for folder in _ORDER:
        for one in sorted(found[folder], key=lambda one: (_is_record(one.name), one.name)):
            parts = one.name.split("/")
            hidden = is_running_mark(parts[-1]) or any(part.startswith(".") for part in parts)
            if not hidden and not one.name.endswith(".html"):
                yield one


def _is_record(name: str) -> bool:
    return name.endswith("/run.json") or (name.count("/") == 1 and name.endswith(".json"))


def _read_and_check_digest(here: Objects, one: Listed) -> bytes:
    found = here.get(one.name)
    if found is None:
        raise StoreError(f"{here.address}/{one.name} disappeared while it was copied: run the same command again")
    folder = one.name.partition("/")[0]
    wanted = Path(one.name).stem if folder == "blobs" else _digest_stated_by_record(here, one.name)
    if wanted and hashlib.sha256(found).hexdigest() != wanted:
        raise StoreError(
            f"{here.address}/{one.name} is damaged: its contents do not match its digest. Run `ticketry store check"
            " --repair` there first"
        )
    if folder in _SEALED or _is_record(one.name):
        parse_canonical_record(found, f"{here.address}/{one.name}")
    return found


def _digest_stated_by_record(here: Objects, name: str) -> str | None:
    """Return the SHA-256 that a stored record states for the file `name`; None if no record states its digest."""
    if name.startswith("runs/") and name.endswith("/run.toml") and name.count("/") == 2:
        record = here.get(name.removesuffix("toml") + "json")
        config = _parse_json_object(record or b"").get("config")
        return hashlib.sha256(config.encode(errors="replace")).hexdigest() if isinstance(config, str) else None
    run, _, place = name.partition("/tickets/")
    ticket, _, file = place.partition("/")
    if not run.startswith("runs/") or file in ("", "ticket.json"):
        return None
    manifest = here.get(f"{run}/tickets/{ticket}/ticket.json")
    fact = _parse_json_object(_parse_json_object(manifest or b"").get("files")).get(file)
    digest = _parse_json_object(fact).get("sha256")
    return digest if isinstance(digest, str) else None


def _parse_json_object(value: object) -> dict[str, Any]:
    """Return `value` as a dict, parsed from JSON if it is bytes; any other value gives an empty dict."""
    try:
        found = parse_json(value) if isinstance(value, bytes) else value
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}


def replace_store_path(values: dict[str, Any], places: Iterable[str], new: str) -> dict[str, Any]:
    """Return a record in which `new` replaces the path of its store and the paths in `places`."""
    path = values.get("store")
    own = [path] if path and isinstance(path, str) else []
    moved = values
    for old in dict.fromkeys((*own, *places)):
        moved = replace_folder_in_paths(moved, old, new)
    return {**moved, "store": new} if own else moved


def move_store(root: Path, target: Path) -> Path:
    """Move a store to a new folder, and update the paths in its records; return the new folder."""
    if url := shared_url(root):
        raise StoreError(f"{url} is shared: copy it with `ticketry store copy {url} TO`, and delete it where it is")
    if root.is_symlink():
        raise StoreError(f"{root} is a link to {root.resolve()}: name that with --store, and make the link anew")
    source, begun = root.resolve(), Paths(target).moving
    goes_on = (read_json(begun) or {}).get("from") == str(source)
    if path_exists(Paths(root).format):
        store = Store(root)
        if what := describe_activity(store):
            raise StoreError(f"{what}: move the store when it has ended")
        for path in _record_files(store.paths):
            read_with_digest(path)
    elif not goes_on:
        raise StoreError(f"there is no store in {display_address(root)}: name another with --store")
    if os.path.lexists(target) and not goes_on:
        raise StoreError(f"{target} is there already: name a folder that is not")
    if target.resolve().is_relative_to(source):
        raise StoreError(f"{target} lies in the store itself: name a folder outside of it")
    if not goes_on and not _try_rename(root, target):
        write_json(begun, {"from": str(source)})
    copied = _copy_files(root, target) if path_exists(root) else {}
    _replace_paths_in_records(
        Paths(target), tuple(dict.fromkeys(map(str, (root, root.absolute(), source)))), str(target)
    )
    if path_exists(root):
        _delete_original(root, target, copied)
    with explain_os_errors(begun, "delete"):
        begun.unlink()
    return target


def _record_files(paths: Paths) -> Iterator[Path]:
    yield from paths.run_records()
    yield from paths.evidence_records()
    yield from paths.campaign_records()


def _try_rename(root: Path, target: Path) -> bool:
    """Rename `root` to `target`; return False if `target` is on another file system, where renaming is impossible."""
    mark = Paths(root).moving
    write_json(mark, {"from": str(root.resolve())})  # moves with the folder, whose records are not updated yet
    with explain_os_errors(target, "write"):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            root.rename(target)
        except OSError as error:
            mark.unlink()
            if error.errno != errno.EXDEV:
                raise
            return False
    return True


_Files = dict[Path, tuple[int, int]]


def _copy_files(root: Path, target: Path) -> _Files:
    """Copy all missing files except ``store.json``, whose presence marks a complete store; return all files."""
    files = _list_files(root)
    settled = path_exists(Paths(target).format)  # complete, and perhaps used since
    for path in files:
        place = target / path.relative_to(root)
        if not (path_exists(place) and (settled or _has_same_content(path, place))):
            _copy_file(path, place)
    return files


def _list_files(root: Path) -> _Files:
    own, found = Paths(root), _Files()
    with explain_os_errors(root, "read"):
        for path in iterate_below(root):
            about = os.lstat(path)
            if stat.S_ISDIR(about.st_mode):
                continue
            if not stat.S_ISREG(about.st_mode):
                raise StoreError(
                    f"{path} is no file, but a link or a pipe: delete it, it cannot be moved to another disk"
                )
            if path.name != "lock" and not path.name.endswith(".tmp") and path not in (own.format, own.moving):
                found[path] = about.st_size, about.st_mtime_ns
    return found


def _has_same_content(path: Path, other: Path) -> bool:
    with explain_os_errors(path, "compare"):
        return path.stat().st_size == other.stat().st_size and file_digest(path) == file_digest(other)


def _copy_file(path: Path, place: Path) -> None:
    with explain_os_errors(place, "write"), replace_on_success(place, durable=True) as temporary:
        shutil.copyfile(path, temporary)
        about = path.stat()
        os.utime(temporary, ns=(about.st_atime_ns, about.st_mtime_ns))  # `list runs` and `store gc` use the age
        if not _has_same_content(path, temporary):
            raise StoreError(f"{path} changed while it was moved: run the same command again to continue")


def _replace_paths_in_records(paths: Paths, origins: tuple[str, ...], new: str) -> None:
    for path in _record_files(paths):
        values = read_with_digest(path) or {}
        moved = replace_store_path(values, origins, new)
        if moved != values:
            write_with_digest(path, moved)


def _delete_original(root: Path, target: Path, copied: _Files) -> None:
    """Flush the copied files to the disk, copy ``store.json`` last, and delete the original."""
    own = Paths(root).format
    if path_exists(own) and (what := describe_activity(Store(root))):
        raise StoreError(f"{what}: move the store when it has ended, with the same command")
    if _list_files(root) != copied:
        raise StoreError(f"{root} changed while it was moved: run the same command again to continue")
    with explain_os_errors(target, "write"):
        for folder in (target, *iterate_folders(target)):
            flush_to_disk(folder)
    if path_exists(own):
        _copy_file(own, Paths(target).format)
    for path in sorted(root.iterdir(), key=lambda path: path == own):  # last, since a repeated command needs it
        with explain_os_errors(path, "delete"):
            delete_tree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    with explain_os_errors(root, "delete"):
        root.rmdir()
