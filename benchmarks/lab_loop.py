"""Steps of the lab's own loop, to be timed beside a bare one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from common import timed

import ticketry as tk
from ticketry.lab.loop import Loop, TrainingState, initial_state
from ticketry.lab.precision import Arithmetic
from ticketry.lab.segment import Segment, Start
from ticketry.tasks.course import Course


class _Enough(Exception):
    """Raised from the loop's tick: it leaves `train_until` between two steps, before the check at a segment's end."""


def lab_samples(
    task: tk.Task, course: Course, mask: tk.Mask | None, steps: int, arithmetic: Arithmetic
) -> Callable[[], float]:
    """Samples of so many steps, over a segment of the task's own recipe that is longer than the benchmark."""
    per_epoch = task.steps_per_epoch(course.sizes()["train"], task.recipe)
    segment = Segment(
        task=task,
        recipe=task.recipe,
        start=Start(seed=0),
        mask=None,  # the loop is given the mask itself
        first=0,
        last=100 * per_epoch,
        total=100 * per_epoch,
        per_epoch=per_epoch,
        order_seed=0,
        arithmetic=arithmetic,
    )
    loop = Loop(course, segment, TrainingState(0, initial_state(task, 0), {}, torch.zeros(0)), mask)

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
