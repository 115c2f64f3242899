"""Replay GPU training steps from CUDA graphs; for a small network, launching kernels takes longer than running them.

Only the forward and the backward pass are recorded, not values that change in Python from step to step, such as the
learning rate. The same kernels run in the same order, so results have the same bits with and without graphs, and keys
do not mention graphs.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ticketry.errors import TaskError
from ticketry.lab.training.supervised import SupervisedSession
from ticketry.lab.training.variant import Variant
from ticketry.tasks.task import Session, Task
from ticketry.tasks.user_task import OwnTask

WARM_UP = 3
"""Number of steps with a batch shape before a step is recorded; in these, libraries choose algorithms."""

MOST = 8
"""Maximum number of batch shapes that are recorded; usually there are two, of whole batches and of last batches."""

Shape = tuple[tuple[torch.Size, torch.dtype], ...]
Replay = Callable[[], object]
Recorder = Callable[[Callable[[], Tensor]], tuple[Tensor, Replay]]
"""Calls a function and records the computation; returns the result, and a function that repeats the computation."""


def can_replay_steps(task: Task, session: Session, model: nn.Module, variants: Sequence[Variant]) -> bool:
    """Return whether a training step can be recorded once and replayed for all batches of the same shape.

    This holds if task and layers are those of ticketry and torch; a user's task declares it by `Task.replayable`.
    """
    if type(session) is not SupervisedSession or not all(one.replayable for one in variants):
        return False
    kind = type(task.inner if isinstance(task, OwnTask) else task)
    if not vars(kind).get("replayable", False):  # not inherited: a subclass may do something else
        return False
    return not _is_library_code(kind) or all(map(_has_no_user_code, model.modules()))


def _is_library_code(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in ("torch", "ticketry")


def _has_no_user_code(module: nn.Module) -> bool:
    """Return whether a layer is an instance of a class of torch or ticketry, and has no hooks."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return _is_library_code(type(module)) and not any(hooks)


class Replays:
    """Computes loss and gradients of a batch; for batch shapes that occur often, it replays a recorded computation.

    The parameters must stay in the same memory. `differentiated` computes new gradients for a batch and returns the
    loss. `record` records a computation, by default as a CUDA graph.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        differentiated: Callable[[Any], Tensor],
        record: Recorder | None = None,
    ) -> None:
        self._parameters, self._compute_loss_and_gradients = parameters, differentiated
        self._record = record or CudaGraphs()
        self._seen: Counter[Shape] = Counter()
        self._recorded: dict[Shape, tuple[list[Tensor], Tensor, list[Tensor | None], Replay]] = {}
        """Tensors of batch, loss and gradients of each recorded step, and the function that repeats the step."""
        self._refused = False

    def __call__(self, batch: Sequence[Tensor]) -> Tensor:
        shape = tuple((tensor.shape, tensor.dtype) for tensor in batch)
        if shape not in self._recorded and (self._refused or not self._try_to_record(shape, batch)):
            self._seen[shape] += 1
            return self._compute_loss_and_gradients(batch)
        held, loss, gradients, replay = self._recorded[shape]
        torch._foreach_copy_(held, list(batch))
        replay()
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient  # each batch shape has its own gradients
        return loss

    def _try_to_record(self, shape: Shape, batch: Sequence[Tensor]) -> bool:
        """Record a step with this batch shape if the shape has occurred often enough; return whether it is recorded."""
        if self._seen[shape] < WARM_UP or len(self._recorded) == MOST:
            return False
        held = [tensor.clone() for tensor in batch]
        self._drop_gradients()
        try:
            loss, replay = self._record(lambda: self._compute_loss_and_gradients(held))
        except (RuntimeError, TaskError) as error:  # the first steps without recording succeeded
            self._refused = True
            self._drop_gradients()
            why = str(error.__cause__ or error).splitlines()[0]
            warnings.warn(
                f"a training step cannot be recorded as a CUDA graph ({why}): steps are launched kernel by kernel, with"
                " the same result",
                stacklevel=2,
            )
            return False
        gradients = [parameter.grad for parameter in self._parameters]
        self._recorded[shape] = held, loss.detach(), gradients, replay
        return True

    def _drop_gradients(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None


class CudaGraphs:
    """Records function calls as CUDA graphs; all graphs share the memory for intermediate tensors."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, call: Callable[[], Tensor]) -> tuple[Tensor, Replay]:
        """Record a call; raise `RuntimeError` if that is impossible, such as if `call` copies a value from the GPU."""
        graph = torch.cuda.CUDAGraph()
        # Other threads pin memory.
        recording = torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local")
        # The outer block restores the stream if recording fails.
        with torch.cuda.stream(torch.cuda.current_stream()), recording:
            made = call()
        self._pool = graph.pool()
        return made, graph.replay
