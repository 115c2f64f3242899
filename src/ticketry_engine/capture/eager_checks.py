"""What torch.export does not tell, found by calling the model: is one example like more, does it remember its calls."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ticketry_engine.capture.tracing.python_state import first_change, state_of
from ticketry_engine.capture.tracing.side_effects import Containers, writes_to_input, writes_to_weight
from ticketry_engine.capture.tracing.torch_export import Arguments, leads, plain
from ticketry_engine.errors import CaptureError, EngineError
from ticketry_engine.example_inputs import difference, outputs_of
from ticketry_engine.ir import Graph
from ticketry_engine.ir.binding import CallBinder
from ticketry_engine.ir.graph import leaves
from ticketry_engine.ir.reference import torch_step
from ticketry_engine.support.model_copies import copied
from ticketry_engine.support.process_state import private_random_state
from ticketry_engine.support.seeds import seed_torch

_TOLERANCE = 1e-3
"""Relative error of the same operations in torch: far above rounding, far below another way through the model."""


def own_copy(model: nn.Module) -> nn.Module:
    """A copy on the CPU, in evaluation mode and without gradients; `CaptureError` if there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # recurrent layers say that their weights are not in one piece
        try:
            return copied(model, {}).to("cpu").eval().requires_grad_(False)
        except Exception as error:  # a user's model may hold anything
            raise CaptureError(
                f"{type(model).__name__} cannot be copied ({type(error).__name__}: {str(error)[:120]}):"
                " make what it holds besides parameters and buffers fit for copy.deepcopy"
            ) from error


def copy_to_call(model: nn.Module) -> nn.Module:
    """A copy with the same parameters, and what it holds besides of its own: a call may change that."""
    return copy.deepcopy(model, {id(one): one for one in model.parameters()})


def holds_for_one(graph: Graph, model: nn.Module, given: Arguments) -> bool:
    """Whether a graph of torch's operations gives what the model gives for the first of its example inputs.

    Args:
        model: on the CPU, in evaluation mode.
        given: what it was captured with. Inputs without data tell nothing, and count as equal.
    """
    if not given.examples or not _can_run(model, given):
        return True
    one = given.map(lambda tensor: tensor[:1] if leads(tensor, given.examples) else tensor)
    try:
        wanted = _outputs(copy_to_call(model), one)
        return bool(
            difference(_outputs(lambda *args, **kwargs: _walked(graph, args, kwargs), one), wanted) <= _TOLERANCE
        )
    except Exception:  # a model may insist on several examples, and fail in any way
        return False


def check_calls(model: nn.Module, given: Arguments) -> list[str]:
    """Make sure that a model changes none of its inputs, and that its outputs do not depend on the calls before.

    Args:
        model: as it was before any call, on the CPU, in evaluation mode.
        given: example inputs; those without data tell nothing.

    Returns:
        Notes for the user: what the model changes of its own Python state.

    Raises:
        CaptureError: if it changes an input or remembers its calls.
    """
    if not _can_run(model, given):
        return []
    if given.examples:
        _check_memory(model, given)
    changed = _check_state(model, given)
    if changed is None:
        return []
    return [f"the model changes its own {changed!r} in each call, which the compiled one does not"]


def _check_state(model: nn.Module, given: Arguments) -> str | None:
    """Call a copy of the model twice; return the path of what the second call changes in its Python state, or None.

    Raises:
        CaptureError: if a call changes an input or a buffer, or counts calls.
    """
    called = copy_to_call(model)
    try:
        _check_inputs(called, given)
        before = state_of(called)
        _check_inputs(called, given)
    except CaptureError:
        raise
    except Exception:  # a model may fail in any way; the capture then says why
        return None
    after = state_of(called)
    counter = first_change(before, after, counters=True)
    if counter is not None:
        raise CaptureError(
            f"{type(model).__name__} has a memory of its calls: each of them changes its {counter!r}, and a graph has"
            " none. Make what it keeps an argument and an output of its forward, or leave it out"
        )
    return first_change(before, after)


def _check_inputs(model: nn.Module, given: Arguments) -> None:
    """Call the model, and raise `CaptureError` if it changes an input or a buffer."""
    own = given.map(torch.clone)
    containers = Containers(model, own)
    inputs = [(name, tensor, tensor.clone()) for name, tensor in containers.tensors()]
    buffers = [(name, tensor, tensor.clone()) for name, tensor in model.named_buffers()]
    _call(model, own)
    containers.check()
    for known, error in ((buffers, writes_to_weight), (inputs, writes_to_input)):
        for name, tensor, value in known:
            if tensor.shape != value.shape or not torch.equal(_bits(tensor), _bits(value)):
                raise error(name)


def _bits(tensor: Tensor) -> Tensor:
    """The bytes of a tensor's numbers, so that NaN equals itself."""
    return tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def _check_memory(model: nn.Module, given: Arguments) -> None:
    assert given.examples
    others = given.at_batch(given.examples, seed=1)
    used = copy_to_call(model)
    try:
        wanted = _outputs(copy_to_call(model), given)
        for _ in range(2):
            _outputs(used, others)
        found = _outputs(used, given)
    except Exception:  # a model may fail in any way: with other values for one
        return
    try:
        same = difference(found, wanted) <= _TOLERANCE
    except EngineError:  # other shapes
        same = False
    if not same:
        raise CaptureError(
            f"{type(model).__name__} remembers its calls: for the same inputs it gives other outputs when it has been"
            " called before, and a graph has no memory. Make what it keeps an argument and an output of its forward"
        )


def _can_run(model: nn.Module, given: Arguments) -> bool:
    tensors = [*model.parameters(), *model.buffers(), *outputs_of((given.args, given.kwargs))]
    return all(tensor.device.type == "cpu" for tensor in tensors)


def _outputs(call: Callable[..., Any], given: Arguments) -> list[Tensor]:
    """The tensors that a call gives, with the same random numbers each time."""
    made = outputs_of(_call(call, given.map(torch.clone)))
    return [tensor.nan_to_num() if tensor.is_floating_point() else tensor.clone() for tensor in made]


def _call(call: Callable[..., Any], given: Arguments) -> Any:
    with torch.no_grad(), plain(), private_random_state([]):
        seed_torch(0)
        return call(*given.args, **given.kwargs)


def _walked(graph: Graph, args: Any, kwargs: Any) -> list[Any]:
    values: dict[str, Any] = dict(zip(graph.inputs, CallBinder(graph).bind(args, kwargs), strict=True))
    for one in graph.nodes:
        values[one.output] = torch_step(graph, one)(*(values[name] for name in one.inputs))
    return [values[name] for name in leaves(graph.outputs)]
