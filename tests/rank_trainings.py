"""Segments of tasks that other processes can make, trained by real ranks over gloo."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ticketry.core.prune import prune
from ticketry.lab.lab import Lab
from ticketry.lab.store.store import Store
from ticketry.lab.training.execute import execute
from ticketry.lab.training.job import Watch
from ticketry.lab.training.precision import SYNCHRONISED
from ticketry.lab.training.segment import Segment
from ticketry.tasks import catalogue
from ticketry.tasks.task import Task


def task_of(name: str = "Pictures", **options: object) -> Task:
    return catalogue.get(f"ranks_task:{name}", options={key: str(value) for key, value in options.items()})


def described(
    store: Store,
    task: Task,
    ranks: int,
    *,
    norms: str = SYNCHRONISED,
    masked: bool = True,
    parallel: str = "",
    **more: Any,
):
    """A segment of a task under a mask of half of its weights, by so many ranks, however many cores there are."""
    with Lab(store.paths.root, device="cpu", precision="fp32") as lab:
        mask = prune(lab.model(task), 0.5, score="random") if masked else None
        segment = lab.segment(task, start=3, order_seed=4, mask=mask, **more)
    norms = norms if ranks > 1 else ""
    several = {"ranks": ranks, "norms": norms, "parallel": parallel}
    several |= {"channels_last": False} if parallel else {}
    return replace(segment, arithmetic=replace(segment.arithmetic, **several))


def trained(store: Store, segment: Segment, keep: tuple[int, ...] = (), watch: Watch | None = None) -> dict[str, Any]:
    """The record of a segment that was executed."""
    execute(store, None, segment, keep, watch or Watch())
    record = store.load_result(segment.trajectory, segment.last)
    assert record is not None
    return record


def deciding(record: dict[str, Any]) -> dict[str, Any]:
    """All of a record that a segment decides: digests of tensors, losses and metrics."""
    return {name: record[name] for name in ("model", "training", "metrics", "loss", "step")}


def largest_difference(store: Store, one: str, other: str) -> float:
    """The largest difference of two stored states."""
    first, second = store.get_tensors(one), store.get_tensors(other)
    assert first.keys() == second.keys()
    return max(
        float((first[name].double() - second[name].double()).abs().max()) for name in first if first[name].numel()
    )
