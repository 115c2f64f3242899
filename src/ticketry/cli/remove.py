"""ticketry rm RUN: delete a run, and what only it stands on."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import tyro

from ticketry.cli.arguments import parse
from ticketry.cli.store import existing, megabytes
from ticketry.errors import UsageError

_DESCRIPTION = """\
Delete a run: its folder with tickets and report, the evidence about it, and the results and weights that no other run,
evidence or campaign stands on. What others share stays.

examples:
  ticketry rm iterative-cifar10-0123abcd --dry-run
  ticketry rm iterative-cifar10-0123abcd --yes"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Arguments:
    run: tyro.conf.Positional[str]
    """Its name (`ticketry list runs`)."""
    store: Path = Path(".ticketry")
    """The store's folder."""
    yes: bool = False
    """Do not ask."""
    dry_run: bool = False
    """Only say what would be freed."""
    json: bool = False
    """Print the result as one JSON object."""


def main(words: Sequence[str]) -> int:
    """Delete a run, after asking."""
    arguments: _Arguments = parse(_Arguments, words, prog="ticketry rm", description=_DESCRIPTION)
    from ticketry.experiments.stored_runs import remove_run

    store = existing(arguments.store)
    found = remove_run(store, arguments.run, dry_run=True)
    size = f"{megabytes(found.bytes)} in {found.files} files"
    if not arguments.dry_run:
        if not arguments.yes and not _agreed(f"delete the run {arguments.run}, {size}? [y/N] "):
            print("nothing was deleted", file=sys.stderr)
            return 1
        found = remove_run(store, arguments.run)
        size = f"{megabytes(found.bytes)} in {found.files} files"
    if arguments.json:
        print(json.dumps({**dataclasses.asdict(found), "dry_run": arguments.dry_run}))
    else:
        print(f"{'would free' if arguments.dry_run else 'freed'} {size}")
    return 0


def _agreed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise UsageError("nobody can be asked here whether to delete it: say so with --yes")
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
