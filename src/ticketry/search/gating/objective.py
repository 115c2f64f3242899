"""What gates over frozen weights can be trained for besides the task's loss: outputs as without gates."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from ticketry.errors import TaskError
from ticketry.lab.store.store import digest_of
from ticketry.tasks.task import Task

if TYPE_CHECKING:
    from ticketry.lab.lab import Lab

_FEW = 8
"""Examples that tell what form outputs have."""


def divergence(outputs: Tensor, bare: Tensor, *, reverse: bool) -> Tensor:
    """The mean Kullback-Leibler divergence, in nats, of two sets of class scores [n, classes, ...] (logits).

    With p from `outputs` and q from `bare`: KL(p, q) = sum p log(p / q) if `reverse`, as in CTS-KL of Arora & Teuscher
    (2025), which is large where the sparse network is sure of what the dense one is not; else KL(q, p), as in
    distillation (Hinton et al. 2015), which is large where the sparse one misses a class.
    """
    p, q = F.log_softmax(outputs, 1), F.log_softmax(bare, 1)
    one, other = (p, q) if reverse else (q, p)
    return (one.exp() * (one - other)).sum(1).mean()


def check_scores(task: Task, outputs: Tensor, targets: Tensor) -> None:
    """Make sure that outputs are a score for each class, [n, classes, ...] beside integer targets [n, ...].

    Raises:
        TaskError: if they are not.
    """
    scores = outputs.dim() == targets.dim() + 1 and outputs.shape[2:] == targets.shape[1:] and outputs.shape[1] > 1
    if not scores or targets.is_floating_point():
        raise TaskError(
            f"a Kullback-Leibler divergence needs a score for each class, and the task {task.name!r} has outputs"
            f" {list(outputs.shape)} for {targets.dtype} targets {list(targets.shape)}: train the gates for the task's"
            " own loss (--objective loss)"
        )


def check_task(lab: Lab, task: Task) -> None:
    """`check_scores` of a few examples and a fresh network, before anything is trained. Remembered.

    Raises:
        TaskError: if the task's outputs are no scores of classes.
    """
    key = digest_of({"scores": 1, "task": dict(task.key())})
    if lab.store.memo("objectives", key) is not None:
        return
    arithmetic = lab.arithmetic(task)
    model = arithmetic.place(lab.model(task).eval())
    course = lab.course(task).few(_FEW)
    batch = min(_FEW, course.sizes()["train"])
    session = course.session(task.recipe.changed(batch=batch, augment=()), 0, arithmetic)
    with torch.no_grad(), contextlib.closing(session.batches(range(1))) as batches:
        outputs, targets = session.outputs(model, next(batches))
    check_scores(task, outputs, targets)
    lab.store.put_memo("objectives", key, {"scores": True})
