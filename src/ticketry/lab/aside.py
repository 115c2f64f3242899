"""Training by a lab's workers in another store, such as one that is thrown away: to see how long it takes."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Sequence
from dataclasses import replace

from ticketry.lab.lab import Lab
from ticketry.lab.runners.runner import Event, raise_cause
from ticketry.lab.runners.stopping import heeded
from ticketry.lab.training.job import Work
from ticketry.lab.training.segment import Segment


def trained_aside(lab: Lab, segments: Sequence[Segment], address: str, *, measure: bool) -> list[Work]:
    """Train segments side by side; tells what each has taken. The lab counts none of it.

    Args:
        lab: whose workers train; all have to see the other store.
        address: of that store.
        measure: whether metrics are measured at the end.

    Raises:
        TicketryError: see `Lab.train`.
    """
    order = replace(lab._order, store=address, measure=measure)
    lab._labels |= dict.fromkeys([one.key for one in segments], "to measure a step")
    with heeded():
        futures = [lab._running().submit(order, one, ()) for one in segments]
        raise_cause(concurrent.futures.wait(futures).done)
    for one in segments:
        lab._emit(Event("aside", one.key, one.first, one.last, one.last))
    return [future.result() for future in futures]
