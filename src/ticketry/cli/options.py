"""What several commands take besides `experiments.options`, and what they tell while they work."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from ticketry.errors import UsageError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Printing:
    """In which form a command prints."""

    json: bool = False
    """Print the result as one JSON object on standard output, and nothing else there."""


def output_file(given: Path | None, ticket: Path, ending: str) -> Path:
    """The file that a command writes: the one that is named, else the ticket's name with an ending, in this folder."""
    output = given or Path(f"{ticket.resolve().name}.{ending}")
    if output.is_dir():
        raise UsageError(f"{output} is a folder: name the file to write")
    return output


@contextlib.contextmanager
def saying(title: str) -> Iterator[Callable[[str], None]]:
    """Tells on standard error what is done now: on a terminal in one line that changes, elsewhere not at all."""
    from rich.console import Console

    console = Console(stderr=True)
    if not (console.is_terminal and sys.stderr.isatty()):
        yield lambda _: None
        return
    with console.status(title) as status:
        yield lambda text: status.update(f"{title}: {text}")


def size(count: float) -> str:
    """Bytes in the unit that suits them: 812 bytes, 12.3 MB."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count:.0f} bytes"
