"""Steps of the lab's own loop, to be timed beside a bare one."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable

import torch
from common import timed

import ticketry as tk
from ticketry.lab.store.store import Store
from ticketry.lab.training.loop import Loop
from ticketry.lab.training.precision import Arithmetic
from ticketry.lab.training.segment import Segment, Start
from ticketry.lab.training.state import TrainingState, initial_state
from ticketry.lab.training.variants import HeldMask
from ticketry.tasks.task import Course


class _Enough(Exception):
    """Raised from the loop's tick: it leaves `train_until` between two steps, before the check at a segment's end."""


def start_loop(segment: Segment, course: Course, store: Store | None = None) -> Loop:
    """The lab's loop of a segment, from its initialisation."""
    assert segment.start.seed is not None
    start = TrainingState(0, initial_state(segment.task, segment.start.seed), {}, torch.zeros(0))
    return Loop(store or Store(tempfile.mkdtemp()), course, segment, start)


def lab_samples(
    task: tk.Task, course: Course, mask: tk.Mask | None, steps: int, arithmetic: Arithmetic
) -> Callable[[], float]:
    """Samples of so many steps, over a segment of the task's own recipe that is longer than the benchmark."""
    per_epoch = task.steps_per_epoch(course.sizes()["train"], task.recipe)
    store = Store(tempfile.mkdtemp())
    segment = Segment(
        task=task,
        recipe=task.recipe,
        start=Start(seed=0),
        variants=() if mask is None else (HeldMask(mask=store.put_mask(mask)),),
        first=0,
        last=100 * per_epoch,
        total=100 * per_epoch,
        per_epoch=per_epoch,
        order_seed=0,
        arithmetic=arithmetic,
    )
    loop = start_loop(segment, course, store)

    def train(count: int) -> None:
        stop = loop.step + count

        def tick() -> None:
            if loop.step == stop:
                raise _Enough

        with contextlib.suppress(_Enough):
            loop.train_until(segment.last, tick)

    def sample() -> float:
        train(1)
        return timed(lambda: train(steps))

    return sample
