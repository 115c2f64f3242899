"""Calls a model in eager mode to check a capture.

The checks find whether the graph also holds for one example, whether calls change inputs, and whether outputs depend
on earlier calls.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ticketry_engine.capture.editor import (
    aten_name,
    bind_arguments,
    name_without_overload,
    unused_name,
    value_name,
    weight_name,
)
from ticketry_engine.capture.program import Arguments, has_batch_first, traceable_torch
from ticketry_engine.capture.side_effects import (
    ArgumentContainers,
    first_change,
    input_write_error,
    model_state,
    weight_write_error,
)
from ticketry_engine.errors import CaptureError, EngineError
from ticketry_engine.example_inputs import output_tensors, relative_difference
from ticketry_engine.ir import Graph, Json, Node, aten, value_names, with_value_names
from ticketry_engine.ir.binding import CallBinder, equals_constant
from ticketry_engine.ir.reference import bind_checked_node
from ticketry_engine.support.modules import copy_module
from ticketry_engine.support.process_state import private_random_state
from ticketry_engine.support.seeds import seed_torch

_TOLERANCE = 1e-3
"""Maximum relative error of equal outputs; rounding errors are far smaller, and other computations differ far more."""


def copy_model(model: nn.Module) -> nn.Module:
    """Return a copy of the model on the CPU, in evaluation mode, without gradients; raise `CaptureError` on failure."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # recurrent layers say that their weights are not in one piece
        try:
            return copy_module(model, {}).to("cpu").eval().requires_grad_(False)
        except Exception as error:  # a user's model may hold anything
            raise CaptureError(
                f"{type(model).__name__} cannot be copied ({type(error).__name__}: {str(error)[:120]}):"
                " make what it holds besides parameters and buffers fit for copy.deepcopy"
            ) from error


def copy_sharing_parameters(model: nn.Module) -> nn.Module:
    """Return a copy of the model that shares its parameters, but has separate buffers and attributes."""
    return copy.deepcopy(model, {id(one): one for one in model.parameters()})


def matches_model_for_one_example(graph: Graph, model: nn.Module, arguments: Arguments) -> bool:
    """Return whether graph and model give equal outputs for the first example alone; True if inputs have no data."""
    if not arguments.examples or not _is_on_cpu(model, arguments):
        return True
    one = arguments.map_tensors(lambda tensor: tensor[:1] if has_batch_first(tensor, arguments.examples) else tensor)
    try:
        wanted = _outputs_of_seeded_call(copy_sharing_parameters(model), one)
        found = _outputs_of_seeded_call(lambda *args, **kwargs: _run_graph_in_torch(graph, args, kwargs), one)
        return bool(relative_difference(found, wanted) <= _TOLERANCE)
    except Exception:  # a model may insist on several examples, and fail in any way
        return False


def check_calls_are_independent(model: nn.Module, arguments: Arguments) -> list[str]:
    """Raise an error if `model` changes its inputs, or if its outputs depend on earlier calls.

    `model` must not have been called before. Inputs without data are not checked. If every call changes a Python
    attribute of the model, return a note with the attribute's name, else [].
    """
    if not _is_on_cpu(model, arguments):
        return []
    if arguments.examples:
        _check_outputs_repeat(model, arguments)
    changed = _find_changed_attribute(model, arguments)
    if changed is None:
        return []
    return [f"the model changes its own {changed!r} in each call, which the compiled one does not"]


def _find_changed_attribute(model: nn.Module, arguments: Arguments) -> str | None:
    """Return the path of a Python attribute that the second call of a copy of the model changes, or None."""
    called = copy_sharing_parameters(model)
    try:
        _check_inputs_unchanged(called, arguments)
        before = model_state(called)
        _check_inputs_unchanged(called, arguments)
    except CaptureError:
        raise
    except Exception:  # a model may fail in any way; the capture then says why
        return None
    after = model_state(called)
    counter = first_change(before, after, counters=True)
    if counter is not None:
        raise CaptureError(
            f"{type(model).__name__} has a memory of its calls: each of them changes its {counter!r}, and a graph has"
            " none. Make what it keeps an argument and an output of its forward, or leave it out"
        )
    return first_change(before, after)


def _check_inputs_unchanged(model: nn.Module, arguments: Arguments) -> None:
    """Call the model; raise `CaptureError` if the call changes an input or a buffer."""
    own = arguments.map_tensors(torch.clone)
    containers = ArgumentContainers(model, own)
    inputs = [(name, tensor, tensor.clone()) for name, tensor in containers.tensors()]
    buffers = [(name, tensor, tensor.clone()) for name, tensor in model.named_buffers()]
    _call_seeded(model, own)
    containers.check()
    for known, error in ((buffers, weight_write_error), (inputs, input_write_error)):
        for name, tensor, value in known:
            if tensor.shape != value.shape or not torch.equal(_raw_bytes(tensor), _raw_bytes(value)):
                raise error(name)


def _raw_bytes(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor's elements, so that a comparison finds NaN equal to NaN."""
    return tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def _check_outputs_repeat(model: nn.Module, arguments: Arguments) -> None:
    """Raise `CaptureError` if earlier calls change the outputs for the same inputs."""
    assert arguments.examples
    others = arguments.with_batch_size(arguments.examples, seed=1)
    used = copy_sharing_parameters(model)
    try:
        wanted = _outputs_of_seeded_call(copy_sharing_parameters(model), arguments)
        for _ in range(2):
            _outputs_of_seeded_call(used, others)
        found = _outputs_of_seeded_call(used, arguments)
    except Exception:  # a model may fail in any way: with other values for one
        return
    try:
        same = relative_difference(found, wanted) <= _TOLERANCE
    except EngineError:  # other shapes
        same = False
    if not same:
        raise CaptureError(
            f"{type(model).__name__} remembers its calls: for the same inputs it gives other outputs when it has been"
            " called before, and a graph has no memory. Make what it keeps an argument and an output of its forward"
        )


def _is_on_cpu(model: nn.Module, arguments: Arguments) -> bool:
    tensors = [*model.parameters(), *model.buffers(), *output_tensors((arguments.args, arguments.kwargs))]
    return all(tensor.device.type == "cpu" for tensor in tensors)


def _outputs_of_seeded_call(call: Callable[..., Any], arguments: Arguments) -> list[Tensor]:
    """Return the output tensors of a call with copies of the inputs, and with the same random seed in every call."""
    made = output_tensors(_call_seeded(call, arguments.map_tensors(torch.clone)))
    return [tensor.nan_to_num() if tensor.is_floating_point() else tensor.clone() for tensor in made]


def _call_seeded(call: Callable[..., Any], arguments: Arguments) -> Any:
    with torch.no_grad(), traceable_torch(), private_random_state([]):
        seed_torch(0)
        return call(*arguments.args, **arguments.kwargs)


def _run_graph_in_torch(graph: Graph, args: Any, kwargs: Any) -> list[Any]:
    values: dict[str, Any] = dict(zip(graph.inputs, CallBinder(graph).bind(args, kwargs), strict=True))
    for one in graph.nodes:
        values[one.output] = bind_checked_node(graph, one)(*(values[name] for name in one.inputs))
    return [values[name] for name in value_names(graph.outputs)]


# -- results that share no memory --------------------------------------------------------------------------------------


_Root: TypeAlias = "tuple[str, str]"
"""Owner of a value's memory: ("weight", name of a weight), or ("value", name of an input or a node's new result)."""

_VIEWS = ("reshape", "flatten", "slice", "transpose")
"""Native nodes whose result may share memory with their input."""

_GIVE_BACK = ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
"""Operations that return their input itself in evaluation mode although their schemas do not say so."""


def with_unshared_outputs(graph: Graph, captured: Graph) -> Graph:
    """Return the graph with copies of outputs that share memory with a weight, an input or another output.

    An output that also shares memory with an input or output in the graph `captured` is not copied, unless it shares
    memory with a weight.
    """
    before, after = _memory_owners(captured), _memory_owners(graph)
    known = {("value", name): ("value", name) for name in graph.inputs}
    """Owner of memory that an input or result uses -> owner of the same value's memory in the captured graph."""
    values, nodes, names = dict(graph.values), list(graph.nodes), []
    for old, name in zip(value_names(captured.outputs), value_names(graph.outputs), strict=True):
        root = after[name]
        if root[0] == "weight" or (root in known and known[root] != before[old]):
            copy = unused_name(f"{name}.own", values)
            values[copy] = replace(values[name], name=copy)
            args = {"args": [{"value": name}], "kwargs": {}}
            nodes.append(Node("aten.clone.default", (name,), copy, args, {}))
            name = copy
        else:
            known.setdefault(root, before[old])
        names.append(name)
    if len(nodes) == len(graph.nodes):
        return graph
    given = iter(names)
    outputs = with_value_names(graph.outputs, lambda _: next(given))
    return replace(graph, values=values, nodes=tuple(nodes), outputs=outputs)


def _memory_owners(graph: Graph) -> dict[str, _Root]:
    """Return, by value name, the kind ("weight" or "value") and name of the weight or value that owns its memory."""
    roots: dict[str, _Root] = {name: ("value", name) for name in graph.inputs}
    for one in graph.nodes:
        kind, source = _view_source(one)
        roots[one.output] = ("weight", source) if kind == "weight" else roots.get(source, ("value", one.output))
    return roots


def _view_source(node: Node) -> tuple[str, str]:
    """Return (kind, name) of the weight or value whose memory a node's result may share; ("value", "") if none.

    The kind is "weight" or "value".
    """
    if node.native:
        return "value", node.inputs[0] if node.op in _VIEWS else ""
    if node.op.startswith("operator."):
        return "value", node.inputs[0] if aten_name(node) == "getitem" and node.inputs else ""
    found = bind_arguments(node)
    for known in aten.find_operation(node.op, trusted=True)._schema.arguments:
        alias = known.alias_info
        if (alias is not None and not alias.is_write) or (
            name_without_overload(node) in _GIVE_BACK and known.name == "input"
        ):
            if (name := weight_name(found[known.name])) is not None:
                return "weight", name
            return "value", value_name(found[known.name]) or ""
    return "value", ""


def with_argument_defaults(graph: Graph, model: nn.Module) -> Graph:
    """Return the graph with the defaults of those arguments that the captured call gave with another value."""
    signature = graph.signature
    captured = {**dict(zip(signature["names"], signature["args"], strict=False)), **signature["kwargs"]}
    found: dict[str, Json] = {}
    for name, parameter in inspect.signature(model.forward).parameters.items():
        default = parameter.default
        if default is parameter.empty or _equals_default(captured.get(name, {"constant": None}), default):
            continue
        plain = default is None or isinstance(default, (bool, int, float, str))
        found[name] = {"constant": default} if plain else None
    return replace(graph, signature={**signature, "defaults": found}) if found else graph


def _equals_default(tree: Json, default: Any) -> bool:
    """Return whether an argument of the captured call equals `default`; False for a tensor.

    `tree` is the argument as JSON.
    """
    if isinstance(tree, str) or "constant" not in tree:
        return False
    return type(tree["constant"]) is type(default) and equals_constant(tree["constant"], default)
