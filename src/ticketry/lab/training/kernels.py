"""Choose between dense training in torch and training with sparse kernels, which skip removed weights.

The choice is part of a segment's key, and never depends on a timing. ``dense`` adds nothing to the key. ``sparse`` adds
what affects the bits of results: the kernels' version, the vector width, and ``bf16`` if kernels compute in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from ticketry.choices import check_choice
from ticketry.core.mask import Mask
from ticketry.core.scope import named_parameters, scope
from ticketry.errors import CaptureError, EngineError, MissingExtraError, UsageError
from ticketry.lab.costs.meters import forward_flops
from ticketry.lab.store.store import Store, digest_of
from ticketry.lab.training.precision import DENSE, Arithmetic
from ticketry.lab.training.state import initial_state, rebuild_model
from ticketry.lab.training.variant import Variant
from ticketry.tasks.task import Course, Task
from ticketry_engine import SparseTraining, examples_to_inspect, inspect, machine, train
from ticketry_engine.support.process_state import ONE_AT_A_TIME

KERNELS = ("auto", DENSE, "sparse")

LEAST = {"fp32": 0.4, "bf16": 0.5}
"""Share of all MACs (multiply-accumulates) that sparse kernels must skip to be used with ``auto``.

Measured in bfloat16 with half of the weights (AMD EPYC, Zen 4): ResNet-18 took 0.89 of torch's time, ResNet-20 0.61."""

LEAST_BESIDE_TILES = 0.85
"""Share as in `LEAST`, for bfloat16 on a processor with AMX. Torch uses AMX for dense steps, and sparse kernels use it
only if weights are retained in groups of sixteen rows.

Measured on Intel Granite Rapids with 20, 10 and 5 % of single weights, relative to torch: ResNet-18 1.14, 0.68 and
0.44, ResNet-20 0.76, 0.53 and 0.41. With 50 % in groups of sixteen rows, both took half of torch's time."""

NEARLY_ALL = 0.9
"""Share of all MACs that must be in layers for which there are kernels. With ``auto`` on `DENSE_PROCESSORS`, kernels
are then used even if they skip less than `LEAST`.
"""

PROCESSORS = ("avx512", "avx2")
"""Vector instructions of the processors on which ``auto`` may use sparse kernels."""

DENSE_PROCESSORS = ("avx512",)
"""Vector instructions of the processors on which ``auto`` may use the kernels even for dense networks.

Measured time of a step without a mask, relative to torch: ResNet-20 0.78, ResNet-18 0.84, VGG-16 0.90."""


class Kernels:
    """Chooses between dense and sparse kernels for the trainings of a lab."""

    def __init__(self, asked: str, store: Store, course: Callable[[Task], Course]) -> None:
        check_choice("kernels", asked, KERNELS)
        self.asked = asked
        self._store, self._course = store, course

    def arithmetic(self, task: Task, plain: Arithmetic, variants: Sequence[Variant], batch: int) -> Arithmetic:
        """Return the arithmetic (device, format, kernels) of a training: `plain`, or `plain` with sparse kernels.

        With ``sparse``, sparse kernels are chosen if they skip any MAC. With ``auto``, they are chosen if they skip at
        least the share `LEAST` of the MACs; in float32 on `DENSE_PROCESSORS`, also if the layers that can use them
        have at least the share `NEARLY_ALL` of the MACs. Sparse kernels are not chosen if a variant needs the removed
        weights (such as gates) or takes channels out of the network.
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
            self._check_kernels_usable(task, plain, batch)
        elif not self._can_run_here(plain):
            return plain
        if not all(one.sparse_kernels for one in variants):
            return plain
        mask = next((digest for one in variants if (digest := one.masked_by()) is not None), None)
        gains = self._is_kernel_use_worthwhile(task, mask, batch, plain.precision)
        return replace(plain, kernels=name_local_kernels(plain.precision)) if gains else plain

    def _is_kernel_use_worthwhile(self, task: Task, mask: str | None, batch: int, precision: str) -> bool:
        share = self._load_or_compute_mac_shares(task, mask, batch, precision)
        if self.asked == "sparse":
            return mask is not None and bool(share.get("left_out", 0.0) > 0)
        least = LEAST[precision]
        if precision != "fp32" and machine().tiles and 2 * share.get("by_sixteen", 0.0) < share.get("inside", 0.0):
            least = LEAST_BESIDE_TILES
        if share.get("left_out", 0.0) >= least:
            return True
        return precision == "fp32" and machine().kernels in DENSE_PROCESSORS and share.get("inside", 0.0) >= NEARLY_ALL

    def _check_kernels_usable(self, task: Task, plain: Arithmetic, batch: int) -> None:
        if plain.device != "cpu":
            raise UsageError(
                f"sparse kernels compute on the CPU, and {task.name} would be trained on {plain.device} here: choose"
                " --device cpu, or --kernels dense"
            )
        here = machine()  # raises an error without llvmlite
        if plain.precision != "fp32" and not here.bf16:
            raise UsageError(
                f"this processor does not multiply bfloat16, so sparse kernels compute in float32 here, and {task.name}"
                f" would be trained in {plain.precision}: choose --precision fp32, or --kernels dense"
            )
        if why := self._load_or_compute_mac_shares(task, None, batch, plain.precision).get("why"):
            raise CaptureError(f"{task.name} cannot be trained in sparse kernels: {why} (or choose --kernels dense)")

    def _can_run_here(self, plain: Arithmetic) -> bool:
        if plain.device != "cpu":
            return False
        try:
            here = machine()
            return here.kernels in PROCESSORS and (plain.precision == "fp32" or here.bf16)
        except MissingExtraError:
            return False

    def _load_or_compute_mac_shares(self, task: Task, mask: str | None, batch: int, precision: str) -> dict[str, Any]:
        """Return the stored or new result of `compute_mac_shares`, or an entry ``why`` if kernels are impossible."""
        examples = examples_to_inspect(batch, precision)
        described = {
            "kernels": machine().numerics,
            "tied": True,
            "task": dict(task.key()),
            "mask": mask,
            "examples": examples,
        }
        key = digest_of(described if precision == "fp32" else {**described, "precision": precision})

        def compute_shares_or_reason() -> dict[str, Any]:
            model = rebuild_model(task, initial_state(task, 0))
            kept = self._store.get_mask(mask) if mask else Mask.ones(scope(model))
            try:
                return compute_mac_shares(model, kept, self._course(task).inputs(examples), precision)
            except (CaptureError, EngineError) as error:
                return {"why": str(error)}

        with ONE_AT_A_TIME:
            return self._store.load_or_compute("kernels", key, compute_shares_or_reason)


def name_local_kernels(precision: str = "fp32") -> str:
    """Return the name, for keys, of this machine's sparse kernels; the name lists all that affects bits of results."""
    here = machine()
    half = "" if precision == "fp32" else f" {precision}" + (" amx" if here.tiles else "")
    return f"sparse {here.numerics} {here.kernels}{half}"


def compute_mac_shares(model: nn.Module, mask: Mask, inputs: Any, precision: str = "fp32") -> dict[str, float]:
    """Return shares of the MACs of a forward pass, to judge whether sparse kernels pay off.

    ``left_out`` is the share that kernels skip, ``inside`` the share in layers with kernels, skipped or not, and
    ``by_sixteen`` the share in layers with kernels whose weights are retained in groups of sixteen rows.
    """
    layers = inspect(model, mask, inputs, precision=precision)
    inside = dict.fromkeys((layer.parameter for layer in layers if layer.where == "engine"), 1.0)
    gone = {layer.parameter: layer.saved for layer in layers if layer.saved}
    sets = {layer.parameter: 1.0 for layer in layers if layer.where == "engine" and layer.in_sixteens}
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    found = forward_flops(named_parameters(model), lambda: model(*given))
    if not found.dense:
        return dict.fromkeys(("left_out", "inside", "by_sixteen"), 0.0)
    removed = {"left_out": gone, "inside": inside, "by_sixteen": sets}
    return {name: round(1 - found.left(one) / found.dense, 6) for name, one in removed.items()}


def prepare_sparse_kernels(model: nn.Module, mask: Mask | None, inputs: Any, arithmetic: Arithmetic) -> SparseTraining:
    """Prepare a model for training steps in sparse kernels; the caller must enforce the mask."""
    if arithmetic.kernels != (here := name_local_kernels(arithmetic.precision)):
        raise EngineError(
            f"this training began in the kernels {arithmetic.kernels!r}, and those of this machine are {here!r},"
            " which give other bits: go on where it began, or run it anew here"
        )
    return train(model, mask, inputs, precision=arithmetic.precision)
