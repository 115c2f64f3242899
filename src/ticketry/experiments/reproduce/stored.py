"""What of a search a store has already, and what it has to make again, so that a plan counts what is left."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace

from ticketry.errors import NotStoredError
from ticketry.evidence.control_steps import obstacle
from ticketry.evidence.controls import trained_control
from ticketry.experiments.reproduce.work import Work
from ticketry.experiments.request import SearchRequest
from ticketry.lab.lab import Lab
from ticketry.lab.runners.runner import Nothing
from ticketry.lab.search_result import Found
from ticketry.lab.store.store import Store
from ticketry.lab.training.job import nearest
from ticketry.lab.training.segment import Segment
from ticketry.search.gating.gating import Gating


@dataclass(frozen=True)
class Stored:
    """Of all replicates of a search."""

    there: Work
    """Tickets, their controls and trainings of gates that need no training."""
    again: dict[tuple[str, int], Work]
    """Trainings (trajectory and step) whose weights what is missing goes on from, and which a bundle left out or nobody
    asked for when they were trained."""


def stored_work(lab: Lab, request: SearchRequest) -> Stored:
    """The search is carried out on what is there, up to the first network that would have to be trained; its masks are
    made, and kept, on the way. Dense networks are not counted as there, nor gates of which no ticket is there yet.
    """
    there, gated, again = list[Segment](), dict[str, Segment](), dict[tuple[str, int], Work]()
    for number in range(request.replicates):
        alone = replace(request, replicates=1, seeds=request.seeds.replicate(number))
        found, nothing = _of_replicate(lab, alone)
        there += [one for one in found if one.variant(Gating) is None]
        gated |= {one.key: one for one in found if one.variant(Gating)}  # tickets have them in common
        for one in nothing.wanted:
            _make_again(lab.store, *one, again)
        for segment, keep in nothing.asked:
            again |= _kept_afterwards(lab.store, segment, keep)
    masked, soft = (sum(segment.steps for segment in some) for some in (there, gated.values()))
    return Stored(Work(masked + soft, len(there) + len(gated), masked, soft), again)


def _make_again(store: Store, trajectory: str, step: int, found: dict[tuple[str, int], Work]) -> None:
    """Add a training whose weights are to be made again, with whatever it starts from itself."""
    result = store.trained(trajectory, step)
    if result is None or (trajectory, step) in found:
        return
    segment = result["segment"]
    steps = step - int(segment["first"])
    masked = any("mask" in variant for variant in segment.get("variants", ()))
    found[trajectory, step] = Work(steps, 1, steps if masked else 0)
    start = (segment.get("start") or {}).get("state")
    if start and store.left_out(start) and (told := store.memo("left-out", start)) and told["trajectory"]:
        _make_again(store, told["trajectory"], told["step"], found)


def _kept_afterwards(store: Store, segment: Segment, keep: tuple[int, ...]) -> dict[tuple[str, int], Work]:
    """Of a training that is done, what is trained once more because states on its way were not kept."""
    missing = [step for step in keep if store.trained(segment.trajectory, step) is None]
    if not missing or store.trained(segment.trajectory, segment.last) is None:
        return {}
    before = nearest(store, segment.trajectory, min(missing))
    steps = max(missing) - (before["step"] if before else segment.first)
    return {(segment.trajectory, max(missing)): Work(steps, 1, unmeasured=1)}


def _of_replicate(lab: Lab, request: SearchRequest) -> tuple[list[Segment], Nothing]:
    """The segments that are there of tickets, controls and gates, and what would come next."""
    there: list[Segment] = []

    def found_one(_: int, found: Found) -> None:
        if found.mask is None:
            return
        there.append(found.result.segment)
        there.extend(result.segment for result in found.searched if result.segment.variant(Gating))
        for control in request.controls_beside(found.level, lab.store.get_mask(found.mask).density):
            if obstacle(control, found):
                continue
            try:
                made = trained_control(
                    lab, request.task, found.result.segment.recipe, control, found, request.seeds, label=control
                )
            except NotStoredError:
                continue
            there.extend(result.segment for result in made.trainings)

    with lab.training_nothing() as nothing, contextlib.suppress(NotStoredError):
        request.method(
            lab,
            request.task,
            request.settings,
            recipe=request.recipe,
            replicates=1,
            seeds=request.seeds,
            on_found=found_one,
        )
    return there, nothing
