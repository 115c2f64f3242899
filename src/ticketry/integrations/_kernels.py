"""Sparse kernels under a trainer's callbacks: calls of the model run in them from a step's beginning to its end."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from torch import nn

from ticketry.choices import check_choice
from ticketry.core.mask import Mask
from ticketry.errors import UsageError

if TYPE_CHECKING:
    from ticketry_engine import SparseTraining

KERNELS = ("dense", "sparse")
PRECISIONS = ("fp32", "bf16")


class Kernels:
    """
    Args:
        kernels: dense or sparse.
        example_inputs: as of `tk.sparse_training`; sparse kernels need them.
        precision: as of `tk.sparse_training`; bf16 is of sparse kernels alone.

    Raises:
        UsageError: for another word, or where one is given without what it needs.
    """

    def __init__(self, kernels: str, example_inputs: Any, precision: str = "fp32") -> None:
        check_choice("kernels", kernels, KERNELS)
        check_choice("precision", precision, PRECISIONS)
        if (kernels == "sparse") != (example_inputs is not None):
            raise UsageError(
                "sparse kernels follow the model on an example: give the callback kernels='sparse' and"
                " example_inputs=(a tensor, or a tuple of arguments, the batch first) together"
            )
        if precision != "fp32" and kernels == "dense":
            raise UsageError(
                "precision is that of sparse kernels, and the callback has kernels='dense': give the trainer its own"
                " precision, or the callback kernels='sparse' too"
            )
        self.sparse, self._example, self._precision = kernels == "sparse", example_inputs, precision
        self._fast: SparseTraining | None = None
        self._step = contextlib.ExitStack()

    def attach(self, model: nn.Module, mask: Mask) -> None:
        """Make kernels for a model whose mask somebody else holds; errors as of `tk.sparse_training`."""
        if self.sparse:
            # llvmlite is an extra, and only these kernels need it.
            from ticketry_engine import train

            self._fast = train(model, mask, self._example, precision=self._precision)

    def follow(self, mask: Mask) -> None:
        """The mask has moved, if it is another one."""
        if self._fast is not None and self._fast.mask is not mask:
            self._fast.update(mask)

    def enter(self) -> None:
        """A step begins."""
        self.leave()
        if self._fast is not None:
            self._step.enter_context(self._fast.running())

    def leave(self) -> None:
        """A step is over, or training broke off in it."""
        self._step.close()

    def release(self) -> None:
        """Take everything off the model."""
        self.leave()
        if self._fast is not None:
            self._fast.release()
            self._fast = None
