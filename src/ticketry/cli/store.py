"""ticketry store check|gc|du|mv|copy|pack|unpack: check a store, free space, move or copy a store or its results."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from ticketry.cli.arguments import OutputOptions, parse
from ticketry.errors import StoreError, UsageError
from ticketry.lab.store.paths import display_address, shared_url


@dataclasses.dataclass(frozen=True, kw_only=True)
class _StoreOptions(OutputOptions):
    store: Path = Path(".ticketry")
    """The store's folder."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Check(_StoreOptions):
    repair: bool = False
    """Move damaged files, and results that need them, into the folder `damaged`; the next run makes them again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Collect(_StoreOptions):
    dry_run: bool = False
    """Only print what would be freed."""
    grace_seconds: float = 3600.0
    """Files younger than this many seconds are kept, since a running search may need them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pack(_StoreOptions):
    runs: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names of runs (`ticketry list runs`), or of a campaign with its scale (stabilizing-cpu) for all of its runs; by
    default everything in the store is packed."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("results.tkz")
    """File of the bundle to write."""
    weights: bool = False
    """Pack the weights too, so that nothing has to be trained again."""
    masks: bool = True
    """Pack the masks. Without masks, verdicts and pages are the same, but tickets must be trained again. This saves
    most space for methods with dozens of pruning steps."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Unpack(OutputOptions):
    bundle: tyro.conf.Positional[Path]
    """A file that `ticketry store pack` wrote."""
    store: Path = Path(".ticketry")
    """The store's folder, created if absent. Its contents are not changed, with one exception: a campaign's record is
    replaced if the bundle's record has more replicates."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Usage(_StoreOptions):
    """Arguments of `ticketry store du`, which prints how many bytes a store takes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Move(_StoreOptions):
    to: tyro.conf.Positional[Path]
    """The new folder, which must not exist."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Copy(OutputOptions):
    origin: tyro.conf.Positional[str]
    """The store to copy: its folder, or the URL of a shared store."""
    target: tyro.conf.Positional[str]
    """The other store, created if absent; the files that it has are not changed."""


_DESCRIPTION = """\
Look for damage in a store, free space in it, or move results from one machine to another.

examples:
  ticketry store check --repair
  ticketry store gc --dry-run
  ticketry store du
  ticketry store mv /data/tickets
  ticketry store copy .ticketry s3://bucket/tickets
  ticketry store pack iterative-cifar10-0123abcd -o results.tkz
  ticketry store pack stabilizing-cpu -o stabilizing.tkz
  ticketry store unpack results.tkz --store elsewhere"""

_Command = (
    Annotated[_Check, tyro.conf.subcommand("check", description="Read every file and compare it with its digest.")]
    | Annotated[_Collect, tyro.conf.subcommand("gc", description="Delete what no result refers to.")]
    | Annotated[_Usage, tyro.conf.subcommand("du", description="Disk use by kind of file and by run.")]
    | Annotated[_Move, tyro.conf.subcommand("mv", description="Move it, and update the paths in its records.")]
    | Annotated[_Copy, tyro.conf.subcommand("copy", description="Copy what another store lacks; folders or URLs.")]
    | Annotated[_Pack, tyro.conf.subcommand("pack", description="Write masks, records and metrics as one file.")]
    | Annotated[_Unpack, tyro.conf.subcommand("unpack", description="Check such a file, and add it to a store.")]
)


def main(words: Sequence[str]) -> int:
    """Run a sub-command of `ticketry store` and return its exit code."""
    arguments: Any = parse(_Command, words, prog="ticketry store", description=_DESCRIPTION)
    done: dict[type, Callable[[Any], int]] = {
        _Check: _check_store,
        _Collect: _collect_garbage,
        _Usage: _print_usage,
        _Move: _move_store,
        _Copy: _copy_store,
        _Pack: _pack_bundle,
        _Unpack: _unpack_bundle,
    }
    return done[type(arguments)](arguments)


def store_exists(folder: Path) -> bool:
    """Return whether a folder contains a store; for a shared store, first download its records."""
    if not shared_url(folder):
        from ticketry.lab.store.files import path_exists

        return path_exists(folder / "store.json")
    from ticketry.lab.store.store import open_existing_store

    return open_existing_store(folder) is not None


def require_store(folder: Path) -> Path:
    """Return `folder` if it contains a store, after downloading a shared store's records; else raise `StoreError`."""
    if not store_exists(folder):
        raise StoreError(
            f"there is no store in {display_address(folder)}: name another with --store, or run a search first"
        )
    return folder


def _check_store(arguments: _Check) -> int:
    from ticketry.experiments.stores import find_damaged_files
    from ticketry.lab.store.maintenance import check, repair_format
    from ticketry.lab.store.store import open_store

    folder = require_store(arguments.store)
    mended = repair_format(folder) if arguments.repair else []
    store = open_store(folder)
    health = check(store, repair=arguments.repair, more=find_damaged_files(store))
    health.damaged += mended
    if arguments.json:
        values = {
            name: [str(path) for path in value] if isinstance(value, list) else value
            for name, value in vars(health).items()
        }
        print(json.dumps({"sound": health.is_undamaged, **values}))
    else:
        for title, paths in (("damaged", health.damaged), ("needs what is damaged or gone", health.missing)):
            for path in paths:
                print(f"{title}: {path if str(path).isprintable() else ascii(str(path))}")
        print(
            f"{health.blobs} files of tensors and {health.results} results:"
            f" {_describe_health(health.is_undamaged, arguments)}"
        )
        if health.leftover:
            print(
                f"{len(health.leftover)} leftovers of interrupted writes (harmless; `ticketry store gc` removes them)"
            )
    return 0 if health.is_undamaged or arguments.repair else 1


def _describe_health(sound: bool, arguments: _Check) -> str:
    if sound:
        return "all sound"
    if arguments.repair:
        place = display_address(arguments.store / "damaged")
        return f"damaged files were set aside in {place}; the next run makes them again"
    return "damaged; `ticketry store check --repair` sets it aside, and the next run makes it again"


def _collect_garbage(arguments: _Collect) -> int:
    from ticketry.lab.store.maintenance import collect_garbage
    from ticketry.lab.store.store import open_store

    store = open_store(require_store(arguments.store))
    files, size = collect_garbage(store, grace_seconds=arguments.grace_seconds, dry_run=arguments.dry_run)
    if arguments.json:
        print(json.dumps({"files": files, "bytes": size, "dry_run": arguments.dry_run}))
    else:
        print(f"{'would free' if arguments.dry_run else 'freed'} {size / 1e6:.1f} MB in {files} files")
    return 0


def _print_usage(arguments: _Usage) -> int:
    from ticketry.experiments.stores import disk_usage, stored_runs
    from ticketry.report.wording import align_columns

    folder = require_store(arguments.store)
    kinds, runs = disk_usage(folder), stored_runs(folder)
    total = sum(kind["bytes"] for kind in kinds)
    if arguments.json:
        of_runs = [{"run": one.name, "bytes": one.bytes, "own_bytes": one.own_bytes} for one in runs]
        print(json.dumps({"bytes": total, "kinds": kinds, "runs": of_runs}))
        return 0
    rows = [(kind["what"], f"{kind['files']:,} files", format_megabytes(kind["bytes"])) for kind in kinds]
    print("\n".join(align_columns([*rows, ("together", "", format_megabytes(total))])))
    if runs:
        of_run = [(one.name, format_megabytes(one.bytes), format_megabytes(one.own_bytes)) for one in runs]
        print("\n".join(["", *align_columns([("run", "stands on", "its own"), *of_run])]))
    return 0


def _move_store(arguments: _Move) -> int:
    from ticketry.experiments.stores import move_store

    target = move_store(arguments.store, arguments.to)
    print(json.dumps({"store": str(target)}) if arguments.json else f"moved to {target}: name it with --store")
    return 0


def _copy_store(arguments: _Copy) -> int:
    from ticketry.experiments.stores import copy_store

    done = copy_store(arguments.origin, arguments.target)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(done)))
    else:
        print(f"copied {done.files} files, {format_megabytes(done.bytes)}; {done.known} were there")
    return 0


def format_megabytes(size: int) -> str:
    """Return a number of bytes as text in MB."""
    return f"{size / 1e6:,.1f} MB"


def _pack_bundle(arguments: _Pack) -> int:
    from ticketry.experiments.bundles import pack

    packed = pack(
        arguments.runs,
        arguments.output,
        store=require_store(arguments.store),
        weights=arguments.weights,
        masks=arguments.masks,
    )
    if arguments.json:
        print(json.dumps(packed.as_json()))
    else:
        left_out = "without weights" if packed.masks else "without masks and weights"
        what = "with their weights" if packed.weights else left_out
        runs = f"{packed.runs} run{'s' if packed.runs > 1 else ''}"
        print(f"packed {runs}, {packed.results} results {what}: {packed.path}, {packed.bytes / 1e6:.2f} MB")
    return 0


def _unpack_bundle(arguments: _Unpack) -> int:
    from ticketry.experiments.bundles import unpack

    done = unpack(arguments.bundle, store=arguments.store)
    if arguments.json:
        paths = {name: [str(path) for path in getattr(done, name)] for name in ("differing", "renewed")}
        values = {**vars(done), "runs": list(done.runs), "apart": list(done.apart), **paths}
        print(json.dumps(values))
        return 0
    print(f"unpacked {done.new} files into {display_address(arguments.store)}; {done.known} were there")
    if done.differing:
        print(_differing_records_warning(done.differing))
    for name in done.apart:
        campaign, _, scale = name.rpartition("-")
        print(
            f"the store and the bundle have different replicates of the campaign {name}:"
            f" `ticketry reproduce {campaign} --scale {scale} --plan` tells of all"
        )
    if done.left_out:
        print(f"the weights of {done.left_out} states are not in it: they are trained again when they are needed")
    return 0


def _differing_records_warning(paths: Sequence[Path]) -> str:
    """Return a warning that the stored records in `paths` differ from the unpacked ones and were not replaced."""
    records = sorted({path.parent.name if path.name == "run.json" else path.stem for path in paths if _is_record(path)})
    others = len(paths) - sum(map(_is_record, paths))
    parts = [", ".join(records)] if records else []
    parts += [f"{others} result{'s' * (others > 1)} or answer{'s' * (others > 1)}"] if others else []
    return f"{' and '.join(parts)}: the bundle has other numbers (of another kind of machine?); the store keeps its own"


def _is_record(path: Path) -> bool:
    return path.name == "run.json" or path.parent.name in ("evidence", "campaigns")


_REMOVE = """\
Delete a run: its folder with tickets and report, the evidence about it, and the results and weights that no other run,
evidence or campaign stands on. What others share stays.

examples:
  ticketry rm iterative-cifar10-0123abcd --dry-run
  ticketry rm iterative-cifar10-0123abcd --yes"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Remove(OutputOptions):
    run: tyro.conf.Positional[str]
    """Name of the run (`ticketry list runs`)."""
    store: Path = Path(".ticketry")
    """The store's folder."""
    yes: bool = False
    """Delete without asking."""
    dry_run: bool = False
    """Only print what would be freed."""


def remove(words: Sequence[str]) -> int:
    """Run `ticketry rm`: ask for confirmation, delete a run, and return the exit code."""
    arguments: _Remove = parse(_Remove, words, prog="ticketry rm", description=_REMOVE)
    from ticketry.experiments.stores import remove_run

    store = require_store(arguments.store)
    found = remove_run(store, arguments.run, dry_run=True)
    size = f"{format_megabytes(found.bytes)} in {found.files} files"
    if not arguments.dry_run:
        if not arguments.yes:
            if not sys.stdin.isatty():
                raise UsageError("nobody can be asked here whether to delete it: say so with --yes")
            print(f"delete the run {arguments.run}, {size}? [y/N] ", end="", file=sys.stderr, flush=True)
            if sys.stdin.readline().strip().lower() not in ("y", "yes"):
                print("nothing was deleted", file=sys.stderr)
                return 1
        found = remove_run(store, arguments.run)
        size = f"{format_megabytes(found.bytes)} in {found.files} files"
    if arguments.json:
        print(json.dumps({**dataclasses.asdict(found), "dry_run": arguments.dry_run}))
    else:
        print(f"{'would free' if arguments.dry_run else 'freed'} {size}")
    return 0
