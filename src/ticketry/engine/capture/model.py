"""A model as a graph: export, conversion, passes."""

from __future__ import annotations

import copy
import warnings
from typing import Any

from torch import nn

from ticketry.core.mask import Mask
from ticketry.core.structure.twin import unwrapped
from ticketry.engine.capture.convert import convert
from ticketry.engine.capture.exporting import Arguments, export
from ticketry.engine.capture.functional import check_buffers, functional
from ticketry.engine.capture.passes import simplify
from ticketry.engine.graph import Graph
from ticketry.errors import CaptureError


def capture(
    model: nn.Module, mask: Mask | None = None, example_inputs: Any = None, *, dynamic_batch: bool = True
) -> Graph:
    """The graph of a model in evaluation mode, its weights masked. The model itself is left as it is.

    Args:
        mask: weights that it does not keep are exactly 0 in the graph; None leaves all as they are.
        example_inputs: a tensor, a tuple of arguments, or a dict of arguments by name; values do not matter, shapes do.
        dynamic_batch: let all inputs that share the first tensor's leading size have any number of examples. A model
            that insists on its own number is captured with that, and `Graph.notes` say why.

    Raises:
        CaptureError: if torch.export does not take the model, or it writes to its own parameters or buffers.
        MaskError: if the mask does not fit the model.
    """
    arguments = Arguments.of(example_inputs)
    twin = _copy(unwrapped(model))
    if mask is not None:
        mask.apply_(twin)
    exported = export(twin, arguments, dynamic_batch=dynamic_batch)
    program = functional(exported.program)
    notes = [f"the number of examples is fixed: {exported.fixed}"] if exported.fixed else []
    for name in check_buffers(program):
        notes.append(f"the model writes to its input {name!r}; the compiled one leaves it as it is")
    return simplify(convert(program, twin, notes)).validate(trusted=True)


def _copy(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # recurrent layers say that their weights are not in one piece
        try:
            twin = copy.deepcopy(model).to("cpu")
        except Exception as error:  # a user's model may hold anything
            raise CaptureError(
                f"{type(model).__name__} cannot be copied ({type(error).__name__}: {str(error)[:120]}):"
                " make what it holds besides parameters and buffers fit for copy.deepcopy"
            ) from error
    return twin.eval().requires_grad_(False)
