"""What the verbs take that use a ticket's model: the ticket, its weights, and where its task is from."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ticketry.run_engine import Source


@dataclasses.dataclass(frozen=True, kw_only=True)
class TicketOptions:
    """Options of a ticket's model."""

    weights: Literal["trained", "start"] = "trained"
    """trained, or start: those that the ticket's training starts from."""
    task: str = ""
    """Only for a ticket whose task cannot be made by the name that is written in it."""
    data: Path | None = None
    """Folder of data sets, for a task of your own that takes its example inputs from them."""
    json: bool = False
    """Print the result as one JSON object on standard output, and nothing else there."""


def read_source(options: TicketOptions, ticket: Path) -> Source:
    """The ticket and its model."""
    from ticketry.run_engine import source_of
    from ticketry.tasks import registry

    task = registry.get(options.task) if options.task else None
    return source_of(ticket, task=task, weights=options.weights, data=options.data)


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
