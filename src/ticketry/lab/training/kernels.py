"""Whether a step computes in torch, with all weights, or in the engine's kernels, with those that a mask keeps.

What was decided is part of a segment's arithmetic, and so of its key: ``dense``, which adds nothing to it, or
``sparse`` with the version of the kernels' numbers and the class of processors (the width of its vectors), on which
bits depend, and ``bf16`` where they compute as autocast does. Nothing is ever timed for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from ticketry.choices import check_choice
from ticketry.core.mask import Mask
from ticketry.core.scope import named_parameters, scope
from ticketry.errors import CaptureError, EngineError, MissingExtraError, UsageError
from ticketry.lab.costs.meters.flops import forward_flops
from ticketry.lab.store.store import Store, digest_of
from ticketry.lab.training.precision import DENSE, Arithmetic
from ticketry.lab.training.state import initial_state, rebuilt
from ticketry.lab.training.variant import Variant
from ticketry.tasks.task import Course, Task
from ticketry_engine import SparseTraining, examples_to_inspect, inspect, machine, train
from ticketry_engine.support.process_state import ONE_AT_A_TIME

KERNELS = ("auto", DENSE, "sparse")

LEAST = {"fp32": 0.4, "bf16": 0.5}
"""The share of all multiplications that kernels have to leave out for ``auto`` to use them. In bfloat16 ResNet-18 with
half of its weights took 0.89 of torch's time, ResNet-20 0.61 (AMD EPYC, Zen 4)."""

LEAST_BESIDE_TILES = 0.85
"""The same in bfloat16 on a processor with tiles (AMX), which dense steps use and kernels only where rows keep their
columns sixteen together: ResNet-18 with 20, 10 and 5 % of single weights took 1.14, 0.68 and 0.44 of torch's time
there, ResNet-20 0.76, 0.53 and 0.41; in groups of sixteen rows both took half with 50 % (Intel, Granite Rapids)."""

NEARLY_ALL = 0.9
"""The share of all multiplications that kernels have to do for ``auto`` to use them where they leave out less."""

PROCESSORS = ("avx512", "avx2")
"""Where ``auto`` may use them: there steps were measured to be faster."""

DENSE_PROCESSORS = ("avx512",)
"""Where ``auto`` may use them for what they do nearly all of: ResNet-20, ResNet-18 and VGG-16 without a mask took 0.78,
0.84 and 0.90 of torch's time there."""


@dataclass(frozen=True)
class Share:
    """Of the multiplications of a forward pass."""

    left_out: float
    """That kernels leave out."""
    inside: float
    """That are of layers in kernels, those left out too."""
    by_sixteen: float = 0.0
    """Of these, those of layers all of whose rows keep their columns in sets of sixteen."""


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

    def arithmetic(self, task: Task, plain: Arithmetic, variants: Sequence[Variant], batch: int) -> Arithmetic:
        """The arithmetic of a segment with these variants of training; `plain` is the one in torch.

        What has to compute with removed weights (gates), or has none (networks that are physically smaller), trains in
        torch. Of the others, ``sparse`` takes those under a mask for which the kernels gain in some layer, ``auto``
        those where they leave out `LEAST` of the multiplications, and dense or nearly dense networks where they do
        `NEARLY_ALL` of them, on `DENSE_PROCESSORS` in float32.

        Args:
            batch: examples of a step.

        Raises:
            UsageError: ``sparse`` on a GPU, on several devices, or in bfloat16 on a processor that does not multiply
                it.
            CaptureError: ``sparse`` for a network that cannot be followed, or is not in float32.
            MissingExtraError: ``sparse`` without llvmlite.
        """
        if self.asked == DENSE:
            return plain
        if plain.ranks > 1:
            if self.asked == "sparse":
                raise UsageError(
                    "sparse kernels train in one process: they write weights' gradients where several devices cannot"
                    " add them up while they come. Choose --kernels dense, or leave --devices away"
                )
            return plain
        if self.asked == "sparse":
            self._require(task, plain, batch)
        elif not self._possible(plain):
            return plain
        if not all(one.sparse_kernels for one in variants):
            return plain
        mask = next((digest for one in variants if (digest := one.masked_by()) is not None), None)
        gains = self._gains(task, mask, batch, plain.precision)
        return replace(plain, kernels=kernels_here(plain.precision)) if gains else plain

    def _gains(self, task: Task, mask: str | None, batch: int, precision: str) -> bool:
        known = self._known(task, mask, batch, precision)
        if self.asked == "sparse":
            return mask is not None and bool(known.get("left_out", 0.0) > 0)
        least = LEAST[precision]
        if precision != "fp32" and machine().tiles and 2 * known.get("by_sixteen", 0.0) < known.get("inside", 0.0):
            least = LEAST_BESIDE_TILES
        if known.get("left_out", 0.0) >= least:
            return True
        return precision == "fp32" and machine().kernels in DENSE_PROCESSORS and known.get("inside", 0.0) >= NEARLY_ALL

    def _require(self, task: Task, plain: Arithmetic, batch: int) -> None:
        if plain.device != "cpu":
            raise UsageError(
                f"sparse kernels compute on the CPU, and {task.name} would be trained on {plain.device} here: choose"
                " --device cpu, or --kernels dense"
            )
        here = machine()  # raises where llvmlite is missing
        if plain.precision != "fp32" and not here.bf16:
            raise UsageError(
                f"this processor does not multiply bfloat16, so sparse kernels compute in float32 here, and {task.name}"
                f" would be trained in {plain.precision}: choose --precision fp32, or --kernels dense"
            )
        if why := self._known(task, None, batch, plain.precision).get("why"):
            raise CaptureError(f"{task.name} cannot be trained in sparse kernels: {why} (or choose --kernels dense)")

    def _possible(self, plain: Arithmetic) -> bool:
        if plain.device != "cpu":
            return False
        try:
            here = machine()
            return here.kernels in PROCESSORS and (plain.precision == "fp32" or here.bf16)
        except MissingExtraError:
            return False

    def _known(self, task: Task, mask: str | None, batch: int, precision: str) -> dict[str, Any]:
        """Of a task's network under a stored mask (None for one that keeps all): the `Share` of kernels in it, or why
        there can be none. Remembered.
        """
        examples = examples_to_inspect(batch, precision)
        described = {
            "kernels": machine().numerics,
            "tied": True,
            "task": dict(task.key()),
            "mask": mask,
            "examples": examples,
        }
        key = digest_of(described if precision == "fp32" else {**described, "precision": precision})

        def found() -> dict[str, Any]:
            model = rebuilt(task, initial_state(task, 0))
            kept = self._store.get_mask(mask) if mask else Mask.ones(scope(model))
            try:
                return asdict(share_of(model, kept, self._course(task).inputs(examples), precision))
            except (CaptureError, EngineError) as error:
                return {"why": str(error)}

        with ONE_AT_A_TIME:
            return self._store.remembered("kernels", key, found)


def kernels_here(precision: str = "fp32") -> str:
    """The sparse kernels of this library on this processor, as keys name them. Tiles (AMX) add up in another order."""
    here = machine()
    half = "" if precision == "fp32" else f" {precision}" + (" amx" if here.tiles else "")
    return f"sparse {here.numerics} {here.kernels}{half}"


def share_of(model: nn.Module, mask: Mask, inputs: Any, precision: str = "fp32") -> Share:
    """What kernels have of a forward pass. The model's weights are masked.

    Raises:
        CaptureError, EngineError: see `tk.sparse_training`.
    """
    layers = inspect(model, mask, inputs, precision=precision)
    inside = dict.fromkeys((layer.parameter for layer in layers if layer.where == "engine"), 1.0)
    gone = {layer.parameter: layer.saved for layer in layers if layer.saved}
    sets = {layer.parameter: 1.0 for layer in layers if layer.where == "engine" and layer.in_sixteens}
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    found = forward_flops(named_parameters(model), lambda: model(*given))
    if not found.dense:
        return Share(0.0, 0.0)
    left = found.left(gone), found.left(inside), found.left(sets)
    return Share(*(round(1 - some / found.dense, 6) for some in left))


def in_kernels(model: nn.Module, mask: Mask | None, inputs: Any, arithmetic: Arithmetic) -> SparseTraining:
    """The model with its steps in sparse kernels: the same parameters, whose mask, if any, somebody else holds.

    Raises:
        EngineError: if those kernels are not the ones of this machine.
    """
    if arithmetic.kernels != (here := kernels_here(arithmetic.precision)):
        raise EngineError(
            f"this training began in the kernels {arithmetic.kernels!r}, and those of this machine are {here!r},"
            " which give other bits: go on where it began, or run it anew here"
        )
    return train(model, mask, inputs, precision=arithmetic.precision)
