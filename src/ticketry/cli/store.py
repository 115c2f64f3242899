"""ticketry store check|gc: look for damage, free space."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from ticketry.cli.arguments import parse
from ticketry.errors import StoreError, UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Check:
    store: Path = Path(".ticketry")
    """The store's folder."""
    repair: bool = False
    """Move damaged files, and the results that need them, into the folder `damaged`; the next run trains them again."""
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


_HELP = """\
usage: ticketry store check [--repair] [--store DIR] [--json]
       ticketry store gc [--dry-run] [--grace-seconds S] [--store DIR] [--json]

check  reads every file and compares it with its digest; exit code 1 if something is damaged
gc     deletes tensors that no result refers to, and leftovers of killed processes

examples:
  ticketry store check --repair
  ticketry store gc --dry-run"""


def main(words: Sequence[str]) -> int:
    """Check or collect."""
    if not words or words[0] in ("-h", "--help"):
        print(_HELP)
        return 0 if words else 2
    if words[0] == "check":
        return _check(parse(_Check, words[1:], prog="ticketry store check", description="Look for damage in a store."))
    if words[0] == "gc":
        return _collect(parse(_Collect, words[1:], prog="ticketry store gc", description="Free space in a store."))
    raise UsageError(f"ticketry store does check or gc, not {words[0]!r}")


def existing(folder: Path) -> Path:
    """The folder itself, if there is a store in it; a verb that only looks should not make one."""
    if not (folder / "store.json").exists():
        raise StoreError(f"there is no store in {folder}: name another folder with --store, or run a search first")
    return folder


def _check(arguments: _Check) -> int:
    from ticketry.lab.store import Store
    from ticketry.lab.upkeep import check

    health = check(Store(existing(arguments.store)), repair=arguments.repair)
    if arguments.json:
        values = {
            name: [str(path) for path in value] if isinstance(value, list) else value
            for name, value in vars(health).items()
        }
        print(json.dumps({"sound": health.sound, **values}))
    else:
        for title, paths in (("damaged", health.damaged), ("needs what is damaged or gone", health.missing)):
            for path in paths:
                print(f"{title}: {path}")
        print(f"{health.blobs} files of tensors and {health.results} results: {_verdict(health.sound, arguments)}")
        if health.leftover:
            print(
                f"{len(health.leftover)} leftovers of interrupted writes (harmless; `ticketry store gc` removes them)"
            )
    return 0 if health.sound or arguments.repair else 1


def _verdict(sound: bool, arguments: _Check) -> str:
    if sound:
        return "all sound"
    if arguments.repair:
        return f"what is damaged was set aside in {arguments.store / 'damaged'}; the next run trains it again"
    return "damaged; `ticketry store check --repair` sets it aside, and the next run trains it again"


def _collect(arguments: _Collect) -> int:
    from ticketry.lab.store import Store
    from ticketry.lab.upkeep import collect

    store = Store(existing(arguments.store))
    files, size = collect(store, grace_seconds=arguments.grace_seconds, dry_run=arguments.dry_run)
    if arguments.json:
        print(json.dumps({"files": files, "bytes": size, "dry_run": arguments.dry_run}))
    else:
        print(f"{'would free' if arguments.dry_run else 'freed'} {size / 1e6:.1f} MB in {files} files")
    return 0
