"""Steps on a GPU, replayed from CUDA graphs: a small network's step is hundreds of kernels that take less time to run
than to launch one by one.

Only what takes most launches is recorded, the forward and the backward pass; what changes from step to step by a number
of Python (the learning rate, the random seed) stays outside. The same kernels run in the same order, so that weights
are the same to the bit with graphs or without, and no key names them.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ticketry.errors import TaskError
from ticketry.lab.training.supervised import SupervisedSession
from ticketry.lab.training.variant import Variant
from ticketry.tasks.task import Session, Task
from ticketry.tasks.user_task import OwnTask

WARM_UP = 3
"""Steps with a shape of batch before it is recorded: in them libraries make their plans, and constants their place."""

MOST = 8
"""Shapes of batches that are recorded; each takes memory of its own. Usually there are two: whole and last ones."""

Shape = tuple[tuple[torch.Size, torch.dtype], ...]
Replay = Callable[[], object]
Recorder = Callable[[Callable[[], Tensor]], tuple[Tensor, Replay]]
"""Runs a call in recording, and gives what it returned and what writes that anew."""


def are_alike(task: Task, session: Session, model: nn.Module, variants: Sequence[Variant]) -> bool:
    """Whether steps do the same with other numbers, whatever step it is, so that one stands for all of its shape.

    Code of ticketry and torch is known to; a task of somebody's own says so of itself and its model, see
    `Task.replayable`.
    """
    if type(session) is not SupervisedSession or not all(one.replayable for one in variants):
        return False
    kind = type(task.inner if isinstance(task, OwnTask) else task)
    if not vars(kind).get("replayable", False):  # not inherited: a subclass may do something else
        return False
    return not _known(kind) or all(map(_plain, model.modules()))


def _known(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in ("torch", "ticketry")


def _plain(module: nn.Module) -> bool:
    """Whether a layer is of known code, with nobody's hooks on it."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return _known(type(module)) and not any(hooks)


@dataclass(frozen=True)
class _Recorded:
    """A step with batches of one shape: where it reads its batch, and where it writes loss and gradients."""

    batch: Sequence[Tensor]
    loss: Tensor
    gradients: Sequence[Tensor | None]
    replay: Replay


class Replays:
    """The loss of a batch, whose gradients the parameters have then; recorded once for each shape of batch.

    Args:
        parameters: those of the network, which stay where they are in memory.
        differentiated: batch -> loss, with gradients in new tensors.
        record: see `Recorder`.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        differentiated: Callable[[Any], Tensor],
        record: Recorder | None = None,
    ) -> None:
        self._parameters, self._differentiated = parameters, differentiated
        self._record = record or CudaGraphs()
        self._seen: Counter[Shape] = Counter()
        self._recorded: dict[Shape, _Recorded] = {}
        self._refused = False

    def __call__(self, batch: Sequence[Tensor]) -> Tensor:
        shape = tuple((tensor.shape, tensor.dtype) for tensor in batch)
        if shape not in self._recorded and (self._refused or not self._recording(shape, batch)):
            self._seen[shape] += 1
            return self._differentiated(batch)
        found = self._recorded[shape]
        torch._foreach_copy_(list(found.batch), list(batch))
        found.replay()
        for parameter, gradient in zip(self._parameters, found.gradients, strict=True):
            parameter.grad = gradient  # there may be another, of a batch of another shape
        return found.loss

    def _recording(self, shape: Shape, batch: Sequence[Tensor]) -> bool:
        """Whether a batch's shape came often enough, and its step was recorded, which trains nothing."""
        if self._seen[shape] < WARM_UP or len(self._recorded) == MOST:
            return False
        held = [tensor.clone() for tensor in batch]
        self._forget_gradients()
        try:
            loss, replay = self._record(lambda: self._differentiated(held))
        except (RuntimeError, TaskError) as error:  # its first steps have gone well
            self._refused = True
            self._forget_gradients()
            why = str(error.__cause__ or error).splitlines()[0]
            warnings.warn(
                f"a training step cannot be recorded as a CUDA graph ({why}): steps are launched kernel by kernel, with"
                " the same result",
                stacklevel=2,
            )
            return False
        gradients = [parameter.grad for parameter in self._parameters]
        self._recorded[shape] = _Recorded(held, loss.detach(), gradients, replay)
        return True

    def _forget_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None


class CudaGraphs:
    """Records calls as CUDA graphs, which share the memory for what is needed in between."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, call: Callable[[], Tensor]) -> tuple[Tensor, Replay]:
        """Raises RuntimeError for a call that cannot be recorded, such as one that waits for a number."""
        graph = torch.cuda.CUDAGraph()
        recording = torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local")  # others pin memory
        # The outer block puts the stream back where recording ends with an error.
        with torch.cuda.stream(torch.cuda.current_stream()), recording:
            made = call()
        self._pool = graph.pool()
        return made, graph.replay
