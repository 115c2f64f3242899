"""Whether a step under a mask computes with all weights, in torch, or with those that are kept, in sparse kernels.

What was decided is part of a segment's arithmetic, and so of its key: ``dense``, which adds nothing to it, or
``sparse`` with the version of the kernels' numbers and the class of processors (the width of its vectors), on which
bits depend. Nothing is ever timed for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from ticketry.choices import check_choice
from ticketry.core.mask import Mask
from ticketry.core.scope import named_parameters, scope
from ticketry.engine.cpu.target import target
from ticketry.engine.training.sparse_training import VERSION, SparseTraining
from ticketry.errors import CaptureError, EngineError, MissingExtraError, UsageError
from ticketry.lab.costs.meters.flops import forward_flops
from ticketry.lab.store import Store, digest_of
from ticketry.lab.training.precision import DENSE, Arithmetic
from ticketry.lab.training.state import initial_state, rebuilt
from ticketry.lab.training.variant import Variant
from ticketry.tasks.task import Course, Task

KERNELS = ("auto", DENSE, "sparse")

LEAST = 0.4
"""The share of all multiplications that kernels have to leave out for ``auto`` to use them."""

PROCESSORS = ("avx512", "avx2")
"""Where ``auto`` may use them: there steps were measured to be faster."""

FOLLOWED = 2
"""Examples that a network is followed on: it is their shape that matters."""


class Kernels:
    """Decides for a lab.

    Args:
        asked: auto, dense or sparse.
        store: remembers what masks leave to kernels.
        course: the course of a task, with the data.

    Raises:
        UsageError: for another word.
    """

    def __init__(self, asked: str, store: Store, course: Callable[[Task], Course]) -> None:
        check_choice("kernels", asked, KERNELS)
        self.asked = asked
        self._store, self._course = store, course
        self._alone = threading.Lock()

    def arithmetic(self, task: Task, plain: Arithmetic, variants: Sequence[Variant]) -> Arithmetic:
        """The arithmetic of a segment with these variants of training; `plain` is the one in torch.

        Dense networks train in torch, and so does what has to compute with removed weights (gates) or has none
        (networks that are physically smaller). Of the others, ``sparse`` takes all for which the kernels gain in some
        layer, ``auto`` those where they leave out `LEAST` of the multiplications.

        Raises:
            UsageError: ``sparse`` on a GPU or in bfloat16.
            CaptureError: ``sparse`` for a network that cannot be followed, or is not in float32.
            MissingExtraError: ``sparse`` without llvmlite.
        """
        if self.asked == DENSE:
            return plain
        if self.asked == "sparse":
            self._require(task, plain)
        elif not self._possible(plain):
            return plain
        mask = next((digest for one in variants if (digest := one.masked_by()) is not None), None)
        if mask is None or not all(one.sparse_kernels for one in variants):
            return plain
        left_out = self._known(task, mask).get("left_out", 0.0)
        enough = left_out > 0 if self.asked == "sparse" else left_out >= LEAST
        return replace(plain, kernels=kernels_here()) if enough else plain

    def _require(self, task: Task, plain: Arithmetic) -> None:
        if plain.device != "cpu":
            raise UsageError(
                f"sparse kernels compute on the CPU, and {task.name} would be trained on {plain.device} here: choose"
                " --device cpu, or --kernels dense"
            )
        if plain.precision != "fp32":
            raise UsageError(
                f"sparse kernels compute in float32, and {task.name} would be trained in {plain.precision} here: choose"
                " --precision fp32, or --kernels dense"
            )
        target()  # raises where llvmlite is missing
        if why := self._known(task, None).get("why"):
            raise CaptureError(f"{task.name} cannot be trained in sparse kernels: {why} (or choose --kernels dense)")

    def _possible(self, plain: Arithmetic) -> bool:
        if (plain.device, plain.precision) != ("cpu", "fp32"):
            return False
        try:
            return target().name in PROCESSORS
        except MissingExtraError:
            return False

    def _known(self, task: Task, mask: str | None) -> dict[str, Any]:
        """Of a task's network under a stored mask (None for one that keeps all): the share of multiplications that
        kernels leave out, or why there can be none. Remembered.
        """
        key = digest_of({"kernels": VERSION, "task": dict(task.key()), "mask": mask})

        def found() -> dict[str, Any]:
            model = rebuilt(task, initial_state(task, 0))
            kept = self._store.get_mask(mask) if mask else Mask.ones(scope(model))
            try:
                return {"left_out": left_out(model, kept, self._course(task).inputs(FOLLOWED))}
            except (CaptureError, EngineError) as error:
                return {"why": str(error)}

        with self._alone:
            return self._store.remembered("kernels", key, found)


def kernels_here() -> str:
    """The sparse kernels of this library on this processor, as keys name them."""
    return f"sparse {VERSION} {target().name}"


def left_out(model: nn.Module, mask: Mask, inputs: Any) -> float:
    """The share of a forward pass's multiplications that sparse kernels leave out. The model's weights are masked.

    Raises:
        CaptureError, EngineError: see `tk.sparse_training`.
    """
    fast = SparseTraining(model.train(), mask, inputs, hooks=False)
    gone = {f"{layer.name}.weight": 1 - (layer.density or 0.0) for layer in fast.layers() if layer.where == "engine"}
    of_mask = {name: share for name, share in gone.items() if name in mask}
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    found = forward_flops(named_parameters(model), lambda: model(*given))
    return round(1 - found.left(of_mask) / found.dense, 6) if found.dense else 0.0


def in_kernels(model: nn.Module, mask: Mask, inputs: Any, kernels: str) -> SparseTraining:
    """The model with its steps in sparse kernels: the same parameters, whose mask somebody else holds.

    Raises:
        EngineError: if those kernels are not the ones of this machine.
    """
    if kernels != (here := kernels_here()):
        raise EngineError(
            f"this training began in the kernels {kernels!r}, and those of this machine are {here!r}, which give other"
            " bits: go on where it began, or run it anew here"
        )
    return SparseTraining(model, mask, inputs, hooks=False)
