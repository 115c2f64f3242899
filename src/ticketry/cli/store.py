"""ticketry store check|gc|du|mv|copy|pack|unpack: look for damage, free space, move a store or its results."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from ticketry.cli.arguments import parse
from ticketry.errors import StoreError
from ticketry.lab.remote.address import address_of, shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Check:
    store: Path = Path(".ticketry")
    """The store's folder."""
    repair: bool = False
    """Move damaged files, and the results that need them, into the folder `damaged`; the next run makes them again."""
    json: bool = False
    """Print the result as one JSON object."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Collect:
    store: Path = Path(".ticketry")
    """The store's folder."""
    dry_run: bool = False
    """Only say what would be freed."""
    grace_seconds: float = 3600.0
    """Leave alone what is younger: it may belong to a search that runs now."""
    json: bool = False
    """Print the result as one JSON object."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pack:
    runs: tyro.conf.Positional[tuple[str, ...]] = ()
    """Names of runs (`ticketry list runs`), or of a campaign with its scale (stabilizing-cpu) for all of its runs; by
    default all that is in the store."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("results.tkz")
    """The bundle."""
    weights: bool = False
    """Pack the weights too: then nothing is trained again where it is unpacked."""
    masks: bool = True
    """Pack the masks. Without them the records alone tell of networks that were trained under one: verdicts and pages
    are the same, and tickets are trained again. For methods that cut dozens of times, whose masks take the most."""
    store: Path = Path(".ticketry")
    """The store's folder."""
    json: bool = False
    """Print the result as one JSON object."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Unpack:
    bundle: tyro.conf.Positional[Path]
    """A file that `ticketry store pack` wrote."""
    store: Path = Path(".ticketry")
    """The store's folder; made if absent. What is in it stays as it is; of two records of a campaign that stays which
    tells of more replicates."""
    json: bool = False
    """Print the result as one JSON object."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Usage:
    store: Path = Path(".ticketry")
    """The store's folder."""
    json: bool = False
    """Print the result as one JSON object."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Move:
    to: tyro.conf.Positional[Path]
    """The new folder, which is not there yet."""
    store: Path = Path(".ticketry")
    """The store's folder."""
    json: bool = False
    """Print the result as one JSON object."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Copy:
    origin: tyro.conf.Positional[str]
    """A store: its folder, or the URL of a shared one."""
    target: tyro.conf.Positional[str]
    """Where to; made if absent. What is in it stays as it is."""
    json: bool = False
    """Print the result as one JSON object."""


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
    | Annotated[_Usage, tyro.conf.subcommand("du", description="How much lies in it, by kind and by run.")]
    | Annotated[_Move, tyro.conf.subcommand("mv", description="Move it; its records name the new place.")]
    | Annotated[_Copy, tyro.conf.subcommand("copy", description="Copy what another store lacks; folders or URLs.")]
    | Annotated[_Pack, tyro.conf.subcommand("pack", description="Write masks, records and metrics as one file.")]
    | Annotated[_Unpack, tyro.conf.subcommand("unpack", description="Check such a file, and add it to a store.")]
)


def main(words: Sequence[str]) -> int:
    """Check, collect, measure, move, pack or unpack."""
    arguments: Any = parse(_Command, words, prog="ticketry store", description=_DESCRIPTION)
    done: dict[type, Callable[[Any], int]] = {
        _Check: _check,
        _Collect: _collect,
        _Usage: _usage,
        _Move: _move,
        _Copy: _copy,
        _Pack: _pack,
        _Unpack: _unpack,
    }
    return done[type(arguments)](arguments)


def existing(folder: Path) -> Path:
    """The folder itself, if there is a store in it; a command that only looks should not make one.

    The records of a shared store, whose mirror it is, are fetched.
    """
    if address_of(folder):
        from ticketry.lab.store.opening import existing_store

        there = existing_store(folder) is not None
    else:
        from ticketry.lab.store.files import is_there

        there = is_there(folder / "store.json")
    if not there:
        raise StoreError(f"there is no store in {shown(folder)}: name another with --store, or run a search first")
    return folder


def _check(arguments: _Check) -> int:
    from ticketry.experiments.stored_runs import damaged
    from ticketry.lab.store.maintenance import check, mend_format
    from ticketry.lab.store.opening import open_store

    folder = existing(arguments.store)
    mended = mend_format(folder) if arguments.repair else []
    store = open_store(folder)
    health = check(store, repair=arguments.repair, more=damaged(store))
    health.damaged += mended
    if arguments.json:
        values = {
            name: [str(path) for path in value] if isinstance(value, list) else value
            for name, value in vars(health).items()
        }
        print(json.dumps({"sound": health.sound, **values}))
    else:
        for title, paths in (("damaged", health.damaged), ("needs what is damaged or gone", health.missing)):
            for path in paths:
                print(f"{title}: {_printable(path)}")
        print(f"{health.blobs} files of tensors and {health.results} results: {_verdict(health.sound, arguments)}")
        if health.leftover:
            print(
                f"{len(health.leftover)} leftovers of interrupted writes (harmless; `ticketry store gc` removes them)"
            )
    return 0 if health.sound or arguments.repair else 1


def _printable(path: Path) -> str:
    """A name of which nothing can steer a terminal: who made the store may have named it."""
    return str(path) if str(path).isprintable() else ascii(str(path))


def _verdict(sound: bool, arguments: _Check) -> str:
    if sound:
        return "all sound"
    if arguments.repair:
        return f"what is damaged was set aside in {shown(arguments.store / 'damaged')}; the next run makes it again"
    return "damaged; `ticketry store check --repair` sets it aside, and the next run makes it again"


def _collect(arguments: _Collect) -> int:
    from ticketry.lab.store.maintenance import collect
    from ticketry.lab.store.opening import open_store

    store = open_store(existing(arguments.store))
    files, size = collect(store, grace_seconds=arguments.grace_seconds, dry_run=arguments.dry_run)
    if arguments.json:
        print(json.dumps({"files": files, "bytes": size, "dry_run": arguments.dry_run}))
    else:
        print(f"{'would free' if arguments.dry_run else 'freed'} {size / 1e6:.1f} MB in {files} files")
    return 0


def _usage(arguments: _Usage) -> int:
    from ticketry.experiments.stored_runs import stored_runs, usage_of
    from ticketry.report.wording import aligned

    folder = existing(arguments.store)
    kinds, runs = usage_of(folder), stored_runs(folder)
    total = sum(kind["bytes"] for kind in kinds)
    if arguments.json:
        of_runs = [{"run": one.name, "bytes": one.bytes, "own_bytes": one.own_bytes} for one in runs]
        print(json.dumps({"bytes": total, "kinds": kinds, "runs": of_runs}))
        return 0
    rows = [(kind["what"], f"{kind['files']:,} files", megabytes(kind["bytes"])) for kind in kinds]
    print("\n".join(aligned([*rows, ("together", "", megabytes(total))])))
    if runs:
        of_run = [(one.name, megabytes(one.bytes), megabytes(one.own_bytes)) for one in runs]
        print("\n".join(["", *aligned([("run", "stands on", "its own"), *of_run])]))
    return 0


def _move(arguments: _Move) -> int:
    from ticketry.experiments.store_transfer import move_store

    target = move_store(arguments.store, arguments.to)
    print(json.dumps({"store": str(target)}) if arguments.json else f"moved to {target}: name it with --store")
    return 0


def _copy(arguments: _Copy) -> int:
    from ticketry.experiments.store_transfer import copy_store

    done = copy_store(arguments.origin, arguments.target)
    if arguments.json:
        print(json.dumps(dataclasses.asdict(done)))
    else:
        print(f"copied {done.files} files, {megabytes(done.bytes)}; {done.known} were there")
    return 0


def megabytes(size: int) -> str:
    """Bytes as MB."""
    return f"{size / 1e6:,.1f} MB"


def _pack(arguments: _Pack) -> int:
    from ticketry.experiments.bundles import pack

    packed = pack(
        arguments.runs,
        arguments.output,
        store=existing(arguments.store),
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


def _unpack(arguments: _Unpack) -> int:
    from ticketry.experiments.bundles import unpack

    done = unpack(arguments.bundle, store=arguments.store)
    if arguments.json:
        paths = {name: [str(path) for path in getattr(done, name)] for name in ("differing", "renewed")}
        values = {**vars(done), "runs": list(done.runs), "apart": list(done.apart), **paths}
        print(json.dumps(values))
        return 0
    print(f"unpacked {done.new} files into {shown(arguments.store)}; {done.known} were there")
    if done.differing:
        print(_differing(done.differing))
    for name in done.apart:
        campaign, _, scale = name.rpartition("-")
        print(
            f"of the campaign {name} the store and the bundle each told of replicates that the other did not:"
            f" `ticketry reproduce {campaign} --scale {scale} --plan` tells of all"
        )
    if done.left_out:
        print(f"the weights of {done.left_out} states are not in it: they are trained again when they are needed")
    return 0


def _differing(paths: Sequence[Path]) -> str:
    """What stays as it is though the bundle tells other numbers, in words."""
    records = sorted({path.parent.name if path.name == "run.json" else path.stem for path in paths if _is_record(path)})
    others = len(paths) - sum(map(_is_record, paths))
    told = [", ".join(records)] if records else []
    told += [f"{others} result{'s' * (others > 1)} or answer{'s' * (others > 1)}"] if others else []
    return f"{' and '.join(told)}: the bundle tells other numbers (of another kind of machine?), those here were kept"


def _is_record(path: Path) -> bool:
    return path.name == "run.json" or path.parent.name in ("evidence", "campaigns")
