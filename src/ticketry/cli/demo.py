"""ticketry demo: a whole search on 1,797 real handwritten digits, with a verdict and times, in a minute or two."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ticketry.cli.arguments import parse
from ticketry.errors import needs

SEARCH = shlex.split("iterative --task digits --rewind 3% --density 0.05 --replicates 3 --verify --bench")

_NEEDED = ("matplotlib", "scipy", "sklearn", "llvmlite")
_DESCRIPTION = f"""\
A whole search on 1,797 real handwritten digits, in a minute or two: tickets, their controls, a verdict on the sparsest
promising one, its speed, and a report. It is `ticketry search {" ".join(SEARCH)}`.

examples:
  ticketry demo
  ticketry demo --store /tmp/demo --json"""


@dataclass(frozen=True, kw_only=True)
class _Arguments:
    store: Path = Path(".ticketry")
    """Where everything trained is kept."""
    json: bool = False
    """Print the result as one JSON object."""


def main(words: Sequence[str]) -> int:
    """Search as `SEARCH` says."""
    arguments: _Arguments = parse(_Arguments, words, prog="ticketry demo", description=_DESCRIPTION)
    for package in _NEEDED:  # now, and not at the step that asks for it
        needs(package, "demo", "the demo")
    from ticketry.cli import search

    return search.main([*SEARCH, "--store", str(arguments.store), *(["--json"] if arguments.json else [])])
