"""Run a model's calls in kernels as far as possible: the whole model at once, or its modules separately.

A call is traced with `torch.fx` when a call of the same form was not traced before. If a module's code cannot be
traced, the code runs unchanged, and the modules that it calls are traced instead.
"""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx._symbolic_trace import PH
from torch.fx.passes.shape_prop import ShapeProp, _extract_tensor_metadata
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from ticketry_engine.errors import CaptureError
from ticketry_engine.kernels.jit import Library
from ticketry_engine.kernels.window import Array
from ticketry_engine.support.entry_points import copy_inference_tensors, plain_torch_state
from ticketry_engine.support.process_state import ONE_AT_A_TIME, private_random_state
from ticketry_engine.training.capture import (
    LIMIT,
    LIMITS,
    CapturedCall,
    FoundRegion,
    capture,
    module_class_without_wrappers,
)
from ticketry_engine.training.kept_weights import PackedWeights
from ticketry_engine.training.plan import LAYERS as LAYER_OPS
from ticketry_engine.training.plan import layer_name
from ticketry_engine.training.region_step import RegionStep

LAYERS = (nn.Conv2d, nn.Linear)
"""Classes of modules whose weights kernels can use."""

_T = TypeVar("_T")

NOT_COMPILED = "sparse training runs kernels of its own, which torch.compile can neither read nor make faster"
"""Reason given to torch.compile, which prints it with ``fullgraph=True``."""

_FORMS = 16
"""Maximum number of forms of calls for which a module is traced; calls of further forms run in torch."""


@dataclass
class TrainingContext:
    """State that the substitutes (`Unit`) of all modules of a model share, such as masks and compiled kernels.

    Layers are named by their names in the model.
    """

    library: Library
    kept: Mapping[str, Array] = field(default_factory=dict)
    """Layer under the mask -> its retained weights."""
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    """Layer under the mask -> its tensor of the mask."""
    recurrent: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """LSTM under the mask -> its tensors of the mask, by parameter name."""
    rows: Mapping[str, nn.Parameter] = field(default_factory=dict)
    """Layer -> the packed vector of its retained weights; empty if `weights` is None."""
    weights: PackedWeights | None = None
    """Synchronises the packed vectors with the model's tensors; None if the dense tensors are trained."""
    half: bool = False
    """Whether modules compute as under autocast to bfloat16."""
    walking: bool = False
    """Whether a layer is being called as a node of a graph; its module then runs unchanged."""

    def update_before_read(self, tensors: Iterable[Tensor]) -> None:
        """Before torch reads the `tensors`, update those whose retained weights were changed in a packed vector."""
        if self.weights is not None:
            self.weights.update_tensors(tensors)


@dataclass
class _CallForm:
    """The traced graph of a module's calls with the same argument structure, or the reason why tracing failed.

    It also holds the regions: groups of the graph's nodes that run in kernels.
    """

    traced: Traced | None
    why: str = ""
    wholes: tuple[str, ...] = ()
    """Names of the modules that are single nodes of the graph and contain layers under the mask."""
    captured: CapturedCall | None = None
    steps: dict[int, RegionStep] = field(default_factory=dict)
    direct: bool = False
    """Whether the call runs at least one region in kernels and calls no modules otherwise."""


class Substitute:
    """Base class of objects that replace a module's `forward` while sparse training runs.

    Args:
        name: the module's name in the model.
    """

    def __init__(self, name: str, module: nn.Module, context: TrainingContext) -> None:
        self.name, self.module, self.context = name, module, context
        self._eager = torch.compiler.disable(self._forward, reason=NOT_COMPILED)  # type: ignore[no-untyped-call]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._eager(*args, **kwargs)

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


class Unit(Substitute):
    """Substitute for a module's `forward` that runs calls in kernels as far as possible."""

    def __init__(self, name: str, module: nn.Module, context: TrainingContext) -> None:
        super().__init__(name, module, context)
        self._forms: dict[tuple[Any, ...], _CallForm] = {}
        self.last: _CallForm | None = None
        """The form of the previous call."""

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.context.half and self.module.training and not torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", torch.bfloat16):
                made = self._forward(*args, **kwargs)
            return tree_map(_to_float32, made)
        if self.module.training and not self.context.walking:
            form, leaves = self.find_traced_form(args, kwargs)
            # With a mask, other units in the module run its layers one by one.
            innermost = not self.context.kept or isinstance(self.module, LAYERS)
            if form.traced is not None and (form.steps or not innermost):
                return _CapturedRun(self, form, leaves).result()
        self.context.update_before_read(self.module.parameters())
        return type(self.module).forward(self.module, *args, **kwargs)

    def find_direct_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Callable[[], Any] | None:
        """Return a function that runs the call without calling any module; None if modules must be called."""
        # It bypasses `nn.Module.__call__`, which takes a tenth of a small network's step.
        module, context = self.module, self.context
        plain = type(module).__call__ is nn.Module.__call__ and module._compiled_call_impl is None
        if not plain or not module.training or context.half or context.walking or "forward" in module.__dict__:
            return None
        if has_hooks(module) or _has_any_global_hook():  # type: ignore[no-untyped-call]
            return None
        form, leaves = self.find_traced_form(args, kwargs)
        return _CapturedRun(self, form, leaves).result if form.direct else None

    def find_traced_form(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, twin: nn.Module | None = None
    ) -> tuple[_CallForm, list[Any]]:
        """Return the traced graph for calls with this argument structure, and the leaves of the call's arguments.

        The graph is divided into regions, which run in kernels, and nodes that run in torch.

        `twin` is a copy of the module that is traced instead of the module.
        """
        leaves, spec = tree_flatten((args, dict(kwargs)))
        module = twin or self.module
        if any(isinstance(leaf, Tensor) and not leaf.numel() for leaf in leaves):
            return _CallForm(None, "a tensor that it is called with is empty"), leaves
        try:
            key = call_key(module, leaves, spec)
        except Untraceable as why:
            self.last = _CallForm(None, str(why))
            return self.last, leaves
        if key not in self._forms:
            with plain_torch_state(autocast=True):
                self._forms[key] = self._trace_form(module, copy_inference_tensors(leaves), spec)
        self.last = form = self._forms[key]
        if form.traced is not None and form.captured is None:
            self._capture_form(form, form.traced)
        return form, leaves

    def _trace_form(self, module: nn.Module, leaves: Sequence[Any], spec: Any) -> _CallForm:
        if len(self._forms) >= _FORMS:
            return _CallForm(None, f"it is called in more than {_FORMS} forms")
        try:
            found = (trace_layer if isinstance(module, LAYERS) else trace_call)(module, leaves, spec)
            return _CallForm(found, wholes=tuple(self._modules_with_retained_layers(found)))
        except Untraceable as why:
            return _CallForm(None, str(why))

    def _modules_with_retained_layers(self, found: Traced) -> Iterator[str]:
        for node in found.graph.nodes:
            inside = f"{self.name_in_model(str(node.target))}."
            if node.op == "call_module" and any(name.startswith(inside) for name in self.context.kept):
                yield str(node.target)

    def _entries_in_this_module(self, some: Mapping[str, _T]) -> dict[str, _T]:
        """Return the entries of `some` for layers in this unit's module; the keys become the layers' names in it."""
        prefix = f"{self.name}." if self.name else ""
        return {
            name[len(prefix) :] if name != self.name else "": one
            for name, one in some.items()
            if name == self.name or name.startswith(prefix)
        }

    def _capture_form(self, form: _CallForm, found: Traced) -> None:
        context = self.context
        kept = self._entries_in_this_module(context.kept)
        masks, rows = self._entries_in_this_module(context.masks), self._entries_in_this_module(context.rows)
        modules = dict(self.module.named_modules())
        half, target = self.context.half, self.context.library.target
        # Dense layers are slower with few registers. In bfloat16, ResNet-18 without a mask took 1.02.
        dense, limit = target.registers >= 32 and not half, LIMIT if half else LIMITS.get(target.name, LIMIT)
        form.captured = capture(self.module, kept, found.graph, dense=dense, limit=limit, half=half)
        for name in form.captured.dense:  # their gradients are dense: mask enforcement masks them
            for pruned in kept, masks, rows:
                pruned.pop(name, None)
        form.steps = {
            id(step): RegionStep(step.to_training_region(), modules, kept, self.context.library, masks, rows, half=half)
            for step in form.captured.order
            if isinstance(step, FoundRegion)
        }
        others = [step for step in form.captured.order if not isinstance(step, FoundRegion)]
        form.direct = bool(form.steps) and not any(step.op == "call_module" for step in others)

    def drop_regions(self) -> None:
        """Discard all kernel plans, because the mask has changed; traced graphs are kept."""
        for form in self._forms.values():
            form.captured, form.steps, form.direct = None, {}, False

    # -- report --------------------------------------------------------------------------------------------------------

    @property
    def steps(self) -> list[RegionStep]:
        """Return the functions that run parts of the graph in kernels, for the graph that the last call used."""
        return [] if self.last is None else list(self.last.steps.values())

    def layers_in_kernels(self) -> set[str]:
        """Return the layers that run in kernels, by their names in the model."""
        nodes = [node for step in self.steps for node in step.region.nodes]
        return {self.name_in_model(layer_name(node)) for node in nodes if node.op in LAYER_OPS}

    def dense_layers(self) -> set[str]:
        """Return the layers that run in kernels without sparsity, which compute with pruned weights as zeros."""
        captured = None if self.last is None else self.last.captured
        return set() if captured is None else {self.name_in_model(name) for name in captured.dense}

    def layer_seconds(self) -> dict[str, float]:
        """Return the seconds of layers and of other operations in kernels.

        Keys are names of layers in the model, or names of operations.
        """
        inside, found = self.layers_in_kernels(), dict[str, float]()
        for step in self.steps:
            for label, seconds in (step.seconds or {}).items():
                name = self.name_in_model(label)
                name = name if name in inside else label
                found[name] = found.get(name, 0.0) + seconds
        return found

    def reasons_for_torch(self) -> dict[str, str]:
        """Return why layers run in torch, by the layers' names in the model."""
        captured = None if self.last is None else self.last.captured
        return {} if captured is None else {self.name_in_model(name): why for name, why in captured.reasons.items()}

    def name_in_model(self, name: str) -> str:
        """Return the name in the whole model of the submodule `name` of this unit's module."""
        return ".".join(part for part in (self.name, name) if part)


def _to_float32(value: Any) -> Any:
    """Return `value` converted to float32 if it is a bfloat16 tensor, because the caller did not enable autocast."""
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value


def build_units(model: nn.Module, context: TrainingContext) -> list[Unit]:
    """Return a `Unit`, which replaces `forward`, for the model and for each module with layers under the mask."""
    return [
        Unit(name, module, context)
        for name, module in model.named_modules()
        if not name or any(one == name or one.startswith(f"{name}.") for one in context.kept)
    ]


def is_within(name: str, modules: Sequence[str]) -> bool:
    """Return whether the module `name` is inside one of `modules`, by their names."""
    return any(name.startswith(f"{module}.") or not module for module in modules)


@contextmanager
def replace_forwards(units: Sequence[Substitute]) -> Iterator[None]:
    """Within the block, replace the `forward` of each unit's module by the unit."""
    # Modules whose code is already replaced are left alone.
    mine = [unit for unit in units if "forward" not in unit.module.__dict__]
    for unit in mine:
        unit.module.__dict__["forward"] = unit
    try:
        yield
    finally:
        for unit in mine:
            unit.module.__dict__.pop("forward", None)  # a model that is an LSTM has two units


class _CapturedRun:
    """Runs a captured call once: parts of the model's graph in kernels, and other nodes in torch."""

    def __init__(self, unit: Unit, form: _CallForm, leaves: Sequence[Any]) -> None:
        assert form.traced is not None
        assert form.captured is not None
        self._unit, self._steps, self._captured, self._traced = unit, form.steps, form.captured, form.traced
        places = [node for node in form.traced.graph.nodes if node.op == "placeholder"]
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        self._values: dict[fx.Node, Any] = dict(zip(places, tensors, strict=True))

    def result(self) -> Any:
        """Run all steps, and return the module's output."""
        for step in self._captured.order:
            if isinstance(step, FoundRegion):
                self._run_region(step)
            elif step.op == "output":
                leaves: Any = fx.node.map_arg(step.args[0], self._values.__getitem__)
                return tree_unflatten(leaves, self._traced.output)
            elif step.op != "placeholder":
                self._values[step] = self._run_node(step)
        raise AssertionError("a graph ends with its output")

    def _run_region(self, region: FoundRegion) -> None:
        step, inputs = self._steps[id(region)], [self._values[node] for node in region.inputs]
        if not step.accepts_inputs(inputs):
            for node in self._captured.graph.nodes:
                if node in region.members:
                    self._values[node] = self._run_node(node)
            return
        self._unit.context.update_before_read(step.dense_parameters())
        made = step(inputs)
        named = dict(zip(step.region.outputs, made, strict=True))
        for node in region.outputs:
            value: Tensor = named[region.members[node]]
            flat = len(node.meta["tensor_meta"].shape) == 2 and value.dim() == 4
            self._values[node] = value.flatten(1) if flat else value

    def _run_node(self, node: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._values.__getitem__)
        if node.op == "call_module":
            return self._call_module(self._unit.module.get_submodule(str(node.target)), args, kwargs)
        if node.op == "call_function":
            assert not isinstance(node.target, str)
            return node.target(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert node.op == "get_attr"
        name = str(node.target)
        if name in self._traced.constants:
            return self._traced.constants[name]
        found = attrgetter(name)(self._unit.module)
        self._unit.context.update_before_read([found])
        return found

    def _call_module(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Call a module that is a single node of the graph; its submodules may run in kernels."""
        context = self._unit.context
        if not isinstance(module.__dict__.get("forward"), Unit):  # units call `update_before_read` themselves
            context.update_before_read(module.parameters())
        before, context.walking = context.walking, isinstance(module, LAYERS)
        try:
            return module(*args, **kwargs)
        finally:
            context.walking = before


# -- traces of calls --------------------------------------------------------------------------------------------------

# Symbolic tracing runs a module's code once. Whatever the code decides or draws at random during that run stays fixed
# in the graph. A trace is therefore used only if the code changes neither the module nor the state of random numbers,
# and if the graph returns the same outputs as the code.


_IN_PLACE = ("setitem", "iadd", "isub", "imul", "itruediv", "iand", "ior", "ipow", "imatmul")
"""Names of the functions in `operator` that change their first argument."""

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Untraceable(Exception):
    """Error that is raised if a call cannot be traced to a graph; the message is the reason."""


@dataclass(frozen=True)
class Traced:
    """The traced graph of a call, with shapes; its inputs are the tensors among the call's arguments, in order."""

    graph: fx.Graph
    constants: Mapping[str, Tensor]
    """Name in the graph -> tensor that the code created without inputs, such as a range."""
    output: TreeSpec
    """Structure of the call's output, whose leaves the graph returns as a list."""


def call_key(module: nn.Module, leaves: Sequence[Any], spec: TreeSpec) -> tuple[Any, ...]:
    """Return a key of a call's argument structure and the module's settings; equal keys mean equal graphs."""
    given: list[Any] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            given.append((leaf.dtype, tuple(size == 1 for size in leaf.shape)))
        elif isinstance(leaf, PLAIN):
            given.append((type(leaf), leaf))
        else:
            raise Untraceable(f"it is called with a {type(leaf).__name__}")
    seen: dict[int, int] = {}
    return spec, tuple(given), tuple([describe_settings_and_hooks(one, seen) for one in module.modules()])


def describe_settings_and_hooks(module: nn.Module, seen: dict[int, int]) -> tuple[Any, ...]:
    # Gates replace parameters by products. A graph would hold the product of one step, and kernels read parameters.
    if hidden := module.__dict__.keys() & module._parameters.keys():
        raise Untraceable(f"something else stands in for its parameter {min(hidden)}")
    return has_hooks(module), *module_settings(module, seen)


def has_hooks(module: nn.Module) -> bool:
    """Return whether a module has hooks, which run in addition to the module's own code."""
    return any(map(module.__dict__.get, _HOOKS))


def trace_call(module: nn.Module, leaves: Sequence[Any], spec: TreeSpec) -> Traced:
    """Return the graph of a call; `leaves` and `spec` are the call's arguments, flattened by torch's pytree.

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
    check_graph_against_module(whole, graph, tensors)
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


def check_graph_against_module(whole: _CallModule, graph: fx.Graph, tensors: Sequence[Tensor]) -> None:
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
    """Return a copy of a module without hooks, whose calls run only the module's own code."""
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
    """Return the state that a traced module must not change: random numbers, settings and buffers."""
    drawn = np.random.get_state()  # noqa: NPY002
    found: list[Any] = [bytes(torch.get_rng_state().numpy()), random.getstate(), repr(drawn)]
    seen: dict[int, int] = {}
    for one in module.modules():
        found.append((has_hooks(one), module_settings(one, seen)))
        found += [(name, id(value)) for name, value in one.__dict__.items() if not name.startswith("_")]
        found += [(name, None if value is None else value._version) for name, value in one._buffers.items()]
    return found


def trace_layer(module: nn.Module, leaves: Sequence[Any], spec: TreeSpec) -> Traced:
    """Return the graph of a call of a single layer, which is a node with the target ``""``."""
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
    """A module that repeats a given call, and takes as arguments only the tensors among the call's arguments."""

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
    """Tracer that ignores calls in other threads, and records a module with hooks as a single node."""

    proxy_buffer_attributes = True

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._thread = threading.get_ident()
        self._hooked = {name for name, one in module.named_modules() if has_hooks(one)}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = module_qualified_name in self._hooked or module_class_without_wrappers(m) in LAYERS
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
    """A dict key for an object and a version; it equals only keys of the same object and the same version.

    It keeps a reference to the object, so that no other object gets the same address.
    """

    def __init__(self, thing: Any, version: int = 0) -> None:
        self.thing, self.version = thing, version

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.thing is other.thing and self.version == other.version

    def __hash__(self) -> int:
        return hash((id(self.thing), self.version))


def module_settings(module: nn.Module, seen: dict[int, int]) -> tuple[Any, ...]:
    """Return a module's settings as hashable values: numbers and texts in attributes, containers and objects.

    `seen` numbers the objects described so far, by address; this call adds entries.
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
