"""What of a search a store has already, so that a plan counts what is left."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from ticketry.errors import NotStoredError
from ticketry.evidence.controls import trained_control
from ticketry.experiments.request import SearchRequest
from ticketry.lab.lab import Lab
from ticketry.lab.search_result import Found
from ticketry.lab.training.segment import Segment


def stored_work(lab: Lab, request: SearchRequest) -> tuple[int, int]:
    """Steps of tickets and their controls that the store has, and trainings, over all replicates of a search.

    The search is carried out on what is there, up to the first network that would have to be trained; its masks are
    made, and kept, on the way. Dense networks and rounds with gates are not counted.
    """
    found = [
        _of_replicate(lab, replace(request, replicates=1, seeds=request.seeds.replicate(number)))
        for number in range(request.replicates)
    ]
    return sum(segment.steps for one in found for segment in one), sum(map(len, found))


def _of_replicate(lab: Lab, request: SearchRequest) -> list[Segment]:
    """The segments of tickets and controls that are there."""
    there: list[Segment] = []

    def found_one(_: int, found: Found) -> None:
        if found.mask is None:
            return
        there.append(found.result.segment)
        for control in request.controls_at(lab.store.get_mask(found.mask).density):
            try:
                made = trained_control(
                    lab, request.task, found.result.segment.recipe, control, found, request.seeds, label=control
                )
            except NotStoredError:
                continue
            there.extend(result.segment for result in made.trainings)

    with lab.training_nothing(), contextlib.suppress(NotStoredError):
        request.method(
            lab,
            request.task,
            request.settings,
            recipe=request.recipe,
            replicates=1,
            seeds=request.seeds,
            on_found=found_one,
        )
    return there
