"""Trace a module's call with `torch.fx`, and check that the graph computes what the call computes.

Symbolic tracing runs a module's code once. Whatever the code decides or draws at random during that run stays fixed in
the graph. A trace is therefore used only if the code changes neither the module nor the state of random numbers, and if
the graph returns the same outputs as the code.
"""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx._symbolic_trace import PH
from torch.fx.passes.shape_prop import ShapeProp, _extract_tensor_metadata
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from ticketry_engine.errors import CaptureError
from ticketry_engine.support.process_state import ONE_AT_A_TIME, private_random_state
from ticketry_engine.training.capture import kind_of

LAYERS = (nn.Conv2d, nn.Linear)
"""Classes of modules whose weights kernels can use."""

_IN_PLACE = ("setitem", "iadd", "isub", "imul", "itruediv", "iand", "ior", "ipow", "imatmul")
"""Names of the functions in `operator` that change their first argument."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Substitute:
    """Base class of objects that replace a module's `forward`."""

    @property
    def module(self) -> nn.Module:
        """The module whose `forward` is replaced."""
        raise NotImplementedError


class Untraceable(Exception):
    """Raised if a call has no graph; the message is the reason."""


@dataclass(frozen=True)
class Traced:
    """The graph of a call; its placeholders are the tensors among the call's arguments, in order.

    The `meta` of each node has the shape of the node's value.
    """

    graph: fx.Graph
    constants: Mapping[str, Tensor]
    """Name in the graph -> tensor that the code created without inputs, such as a range."""
    output: TreeSpec
    """Structure of the call's output, whose leaves the graph returns as a list."""


def call_key(module: nn.Module, leaves: Sequence[Any], spec: TreeSpec) -> tuple[Any, ...]:
    """Return a key of the conditions under which a graph is valid: the form of the call and the module's settings.

    Args:
        leaves, spec: the call's arguments and keywords, flattened.

    Raises:
        Untraceable: if an argument is neither a tensor nor a constant, or an attribute hides a parameter.
    """
    given: list[Any] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            given.append((leaf.dtype, tuple(size == 1 for size in leaf.shape)))
        elif isinstance(leaf, PLAIN):
            given.append((type(leaf), leaf))
        else:
            raise Untraceable(f"it is called with a {type(leaf).__name__}")
    seen: dict[int, int] = {}
    return spec, tuple(given), tuple([_own_settings(one, seen) for one in module.modules()])


def _own_settings(module: nn.Module, seen: dict[int, int]) -> tuple[Any, ...]:
    # Gates replace parameters by products. A graph would hold the product of one step, and kernels read parameters.
    if hidden := module.__dict__.keys() & module._parameters.keys():
        raise Untraceable(f"something else stands in for its parameter {min(hidden)}")
    return has_hooks(module), *module_settings(module, seen)


def has_hooks(module: nn.Module) -> bool:
    """Return whether a module has hooks, so that a call runs more than the module's own code."""
    return any(map(module.__dict__.get, _HOOKS))


def trace_call(module: nn.Module, leaves: Sequence[Any], spec: TreeSpec) -> Traced:
    """Return the graph of a call.

    Args:
        leaves, spec: the call's arguments and keywords, flattened.

    Raises:
        Untraceable: if the call has no graph, or the graph does not compute what the call computes.
    """
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    if not tensors:
        raise Untraceable("it is called without tensors")
    twin = copy_without_hooks(module)
    whole = _CallModule(twin, leaves, spec)
    before = _collect_state(twin)
    try:
        with ONE_AT_A_TIME:
            graph = _Tracer(module).trace(whole, {"tensors": (PH,) * len(tensors)})
    except Exception as error:
        raise Untraceable(f"its control flow depends on its data ({_first_line(error)})") from error
    if _collect_state(twin) != before:
        raise Untraceable("its code changes it, or draws random numbers, apart from its tensors")
    known = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    constants = {
        str(node.target): getattr(whole, str(node.target))
        for node in graph.nodes
        if node.op == "get_attr" and node.target not in known and isinstance(getattr(whole, node.target, None), Tensor)
    }
    output = graph._codegen.pytree_info.out_spec  # type: ignore[attr-defined]
    _check_changes(graph, dict(twin.named_modules()))
    _check_against_code(whole, graph, tensors)
    graph.owning_module = None  # it refers to the copy with all its weights
    return Traced(graph, constants, output)


def _check_changes(graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
    """Raise Untraceable if a node changes an argument, a constant, or a value that a later node reads."""
    order = {node: number for number, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if not _works_in_place(node, modules) or not node.all_input_nodes:
            continue
        value = node.all_input_nodes[0]
        if value.op in ("placeholder", "get_attr") or any(order[user] > order[node] for user in value.users):
            raise Untraceable(f"{node.target} changes a value in place that others may read")


def _works_in_place(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    if node.op == "call_module":
        return bool(getattr(modules[str(node.target)], "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    name = getattr(node.target, "__name__", "")
    return node.op == "call_function" and (
        name in _IN_PLACE or bool(node.kwargs.get("inplace")) or (name.endswith("_") and not name.endswith("__"))
    )


def _check_against_code(whole: _CallModule, graph: fx.Graph, tensors: Sequence[Tensor]) -> None:
    """Record the shape of each value in the graph; raise Untraceable if graph and code return different outputs."""
    found: list[Any] = []
    prop = ShapeProp(fx.GraphModule(whole, graph))
    # The code runs first: if it fails, a failing graph would print its traceback.
    for run in (lambda some: tree_flatten(whole(some))[0], lambda some: prop.run(*some, enable_io_processing=False)):
        with private_random_state([]), torch.no_grad():
            try:
                found.append(run([tensor.detach().clone() for tensor in tensors]))
            except Exception as error:
                raise Untraceable(f"its graph does not run ({_first_line(error)})") from error
    one, other = found
    if len(one) != len(other) or not all(_are_equal(*pair) for pair in zip(one, other, strict=True)):
        raise Untraceable("its graph returns something else than its code")


def _are_equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.allclose(one.double(), other.double(), 1e-4, 1e-6, equal_nan=True)
    return type(one) is type(other) and bool(one == other)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def copy_without_hooks(module: nn.Module) -> nn.Module:
    """Return a copy of a module whose calls run the module's own code and no hooks.

    Raises CaptureError if the module cannot be copied.
    """
    held = [one for one in module.modules() if isinstance(one.__dict__.get("forward"), Substitute)]
    forwards = [one.__dict__.pop("forward") for one in held]
    try:
        made = copy.deepcopy(module)
    except Exception as error:  # a user's model may hold anything
        raise CaptureError(
            f"{type(module).__name__} cannot be copied ({type(error).__name__}: {str(error)[:120]}): its attributes"
            " have to support copy.deepcopy; replace weights that hooks compute (weight_norm of torch.nn.utils,"
            " torch.nn.utils.prune) by parametrisations, or remove those hooks"
        ) from error
    finally:
        for one, forward in zip(held, forwards, strict=True):
            one.__dict__["forward"] = forward
    for one in made.modules():
        for hooks in _HOOKS:
            one.__dict__[hooks].clear()
    return made


def _collect_state(module: nn.Module) -> list[Any]:
    """Return the state that a module's code must not change, for comparison: random numbers, settings, buffers."""
    drawn = np.random.get_state()  # noqa: NPY002
    found: list[Any] = [bytes(torch.get_rng_state().numpy()), random.getstate(), repr(drawn)]
    seen: dict[int, int] = {}
    for one in module.modules():
        found.append((has_hooks(one), module_settings(one, seen)))
        found += [(name, id(value)) for name, value in one.__dict__.items() if not name.startswith("_")]
        found += [(name, None if value is None else value._version) for name, value in one._buffers.items()]
    return found


def trace_layer(module: nn.Module, leaves: Sequence[Any], spec: TreeSpec) -> Traced:
    """Return the graph of a single layer's call, in which the layer is named ``""``.

    Args:
        leaves, spec: the call's arguments and keywords, flattened.

    Raises:
        Untraceable: if the call has any other arguments than one tensor.
    """
    if len(leaves) != 1 or not isinstance(leaves[0], Tensor):
        raise Untraceable("it is called with more than one tensor")
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.create_node("call_module", "", (x,), name="layer")
    graph.output([y])
    with torch.no_grad():
        made = type(module).forward(module, leaves[0])
    for node, tensor in ((x, leaves[0]), (y, made)):
        node.meta["tensor_meta"] = _extract_tensor_metadata(tensor)
    return Traced(graph, {}, tree_flatten(made)[1])


class _CallModule(nn.Module):
    """A call as a module whose only arguments are the call's tensors.

    It shares the parameters, buffers and submodules of the called module.
    """

    def __init__(self, module: nn.Module, leaves: Sequence[Any], spec: TreeSpec) -> None:
        super().__init__()
        self._parameters, self._buffers, self._modules = module._parameters, module._buffers, module._modules
        self.training = module.training
        self.call = (module, tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves), spec)
        self.places = tuple(place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor))

    def forward(self, tensors: Sequence[Tensor]) -> Any:
        module, leaves, spec = self.call
        given: list[Any] = list(leaves)
        for place, tensor in zip(self.places, tensors, strict=True):
            given[place] = tensor
        args, kwargs = tree_unflatten(given, spec)
        return module.forward(*args, **kwargs)


class _Tracer(fx.Tracer):
    """Tracer that ignores calls in other threads, and keeps modules with hooks as single nodes.

    Args:
        module: the original module, which has the hooks; the tracer runs on a copy.
    """

    proxy_buffer_attributes = True

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._thread = threading.get_ident()
        self._hooked = {name for name, one in module.named_modules() if has_hooks(one)}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = module_qualified_name in self._hooked or kind_of(m) in LAYERS
        return whole or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


# -- settings ----------------------------------------------------------------------------------------------------------


PLAIN = (type(None), bool, int, float, str, torch.dtype, torch.device)
"""Types whose objects are compared by value."""

_PLAIN = frozenset(PLAIN)
_MODULE_ATTRIBUTES = frozenset(vars(nn.Module())) - {"training"}

_SMALL = 16
"""Maximum number of elements of a tensor compared by value; larger tensors are compared by identity and version."""


class _Identity:
    """Key that equals only keys of the same object and version; its reference keeps the address from being reused."""

    def __init__(self, thing: Any, version: int = 0) -> None:
        self.thing, self.version = thing, version

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.thing is other.thing and self.version == other.version

    def __hash__(self) -> int:
        return hash((id(self.thing), self.version))


def module_settings(module: nn.Module, seen: dict[int, int]) -> tuple[Any, ...]:
    """Return a module's settings as hashable values.

    Settings are numbers and texts among the attributes, also in containers and Python objects.

    Args:
        seen: address -> number of each object described so far; this call adds entries.
    """
    return tuple(
        [
            value if type(value) in _PLAIN else _describe_value(value, seen)
            for name, value in vars(module).items()
            if name not in _MODULE_ATTRIBUTES and name != "forward"
        ]
    )


def _describe_value(value: Any, seen: dict[int, int]) -> Any:
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is tuple and all(type(part) in _PLAIN for part in value):
        return value
    if isinstance(value, Tensor):
        return _describe_tensor(value)
    if isinstance(value, (nn.Module, type)) or callable(value):
        return _Identity(value)
    number = seen.get(id(value))
    if number is not None:
        return "seen", number
    seen[id(value)] = len(seen)
    parts: list[Any] = [kind]
    if isinstance(value, Mapping):
        parts += [(_describe_value(key, seen), _describe_value(part, seen)) for key, part in value.items()]
    elif isinstance(value, (tuple, list)):
        parts += [_describe_value(part, seen) for part in value]
    elif isinstance(value, (set, frozenset)):
        parts.append(frozenset(_describe_value(part, seen) for part in value))
    elif not hasattr(value, "__dict__"):
        return _Identity(value)
    parts += [(name, _describe_value(part, seen)) for name, part in getattr(value, "__dict__", {}).items()]
    return tuple(parts)


def _describe_tensor(tensor: Tensor) -> Any:
    if tensor.grad_fn is not None:  # computed from parameters by a hook, at each call
        return None
    if tensor.numel() <= _SMALL and tensor.device.type == "cpu" and tensor.layout == torch.strided:
        return tensor.dtype, tuple(tensor.shape), repr(tensor.tolist())
    return _Identity(tensor, tensor._version)
