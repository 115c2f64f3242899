"""Run a model's calls in kernels as far as possible: the whole model at once, or its modules separately.

A call is traced when a call of the same form was not traced before. If a module's code cannot be traced, the code runs
unchanged, and the modules that it calls are traced instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from ticketry_engine.kernels.jit import Library
from ticketry_engine.kernels.window import Array
from ticketry_engine.support.entry_points import as_normal_tensors, plain_torch_state
from ticketry_engine.training.capture import LIMIT, LIMITS, CapturedCall, FoundRegion, capture
from ticketry_engine.training.kept_weights import PackedWeights
from ticketry_engine.training.region import LAYERS as LAYER_OPS
from ticketry_engine.training.region import layer_name
from ticketry_engine.training.region_step import RegionStep
from ticketry_engine.training.tracing import (
    LAYERS,
    Substitute,
    Traced,
    Untraceable,
    call_key,
    has_hooks,
    trace_call,
    trace_layer,
)

_T = TypeVar("_T")

NOT_COMPILED = "sparse training runs kernels of its own, which torch.compile can neither read nor make faster"
"""Reason given to torch.compile, which prints it with ``fullgraph=True``."""

_FORMS = 16
"""Maximum number of forms of calls for which a module is traced; calls of further forms run in torch."""


@dataclass
class TrainingContext:
    """State shared by all units of a model; layers have their names in the model."""

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
        """Write packed vectors to those of the model's `tensors` that are out of date, before the tensors are read."""
        if self.weights is not None:
            self.weights.update_tensors(tensors)


@dataclass
class _CallForm:
    """The graph of one form of calls, or the reason why there is no graph; and its regions under the current mask."""

    traced: Traced | None
    why: str = ""
    wholes: tuple[str, ...] = ()
    """Names of the modules that are single nodes of the graph and contain layers under the mask."""
    captured: CapturedCall | None = None
    steps: dict[int, RegionStep] = field(default_factory=dict)
    direct: bool = False
    """Whether the call runs at least one region in kernels and calls no modules otherwise."""


class Unit(Substitute):
    """Replaces a module's `forward` while sparse training runs.

    Args:
        name: the module's name in the model.
    """

    def __init__(self, name: str, module: nn.Module, context: TrainingContext) -> None:
        self.name, self.context = name, context
        self._call_module = (module,)
        self._forms: dict[tuple[Any, ...], _CallForm] = {}
        self.last: _CallForm | None = None
        """The form of the previous call."""
        self._eager = torch.compiler.disable(self._forward, reason=NOT_COMPILED)  # type: ignore[no-untyped-call]

    @property
    def module(self) -> nn.Module:
        return self._call_module[0]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._eager(*args, **kwargs)

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.context.half and self.module.training and not torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", torch.bfloat16):
                made = self._forward(*args, **kwargs)
            return tree_map(_to_float32, made)
        if self.module.training and not self.context.walking:
            form, leaves = self.find_form(args, kwargs)
            # With a mask, other units in the module run its layers one by one.
            innermost = not self.context.kept or isinstance(self.module, LAYERS)
            if form.traced is not None and (form.steps or not innermost):
                return _CapturedRun(
                    self, form, form.traced, [leaf for leaf in leaves if isinstance(leaf, Tensor)]
                ).result()
        self.context.update_before_read(self.module.parameters())
        return type(self.module).forward(self.module, *args, **kwargs)

    def direct_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Callable[[], Any] | None:
        """Return a function that runs the call, if the call consists only of kernels and functions; else None.

        The function bypasses `nn.Module.__call__`, which takes a tenth of a small network's step.
        """
        module, context = self.module, self.context
        plain = type(module).__call__ is nn.Module.__call__ and module._compiled_call_impl is None
        if not plain or not module.training or context.half or context.walking or "forward" in module.__dict__:
            return None
        if has_hooks(module) or _has_any_global_hook():  # type: ignore[no-untyped-call]
            return None
        form, leaves = self.find_form(args, kwargs)
        if form.traced is None or not form.direct:
            return None
        return _CapturedRun(self, form, form.traced, [leaf for leaf in leaves if isinstance(leaf, Tensor)]).result

    def find_form(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, twin: nn.Module | None = None
    ) -> tuple[_CallForm, list[Any]]:
        """Return the form of a call with its regions, and the leaves of the call's arguments.

        Args:
            twin: a copy of the module that is traced instead of the module.
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
                self._forms[key] = self._trace_form(module, as_normal_tensors(leaves), spec)
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

    def _in_this_module(self, some: Mapping[str, _T]) -> dict[str, _T]:
        """Return the entries whose names are in this unit's module, by their names in that module."""
        prefix = f"{self.name}." if self.name else ""
        return {
            name[len(prefix) :] if name != self.name else "": one
            for name, one in some.items()
            if name == self.name or name.startswith(prefix)
        }

    def _capture_form(self, form: _CallForm, found: Traced) -> None:
        context = self.context
        kept, masks, rows = (
            self._in_this_module(context.kept),
            self._in_this_module(context.masks),
            self._in_this_module(context.rows),
        )
        modules = dict(self.module.named_modules())
        half, target = self.context.half, self.context.library.target
        # Dense layers are slower with few registers. In bfloat16, ResNet-18 without a mask took 1.02.
        dense, limit = target.registers >= 32 and not half, LIMIT if half else LIMITS.get(target.name, LIMIT)
        form.captured = capture(self.module, kept, found.graph, dense=dense, limit=limit, half=half)
        for name in form.captured.dense:  # their gradients are dense: mask enforcement masks them
            for pruned in kept, masks, rows:
                pruned.pop(name, None)
        form.steps = {
            id(step): RegionStep(step.region(), modules, kept, self.context.library, masks, rows, half=half)
            for step in form.captured.order
            if isinstance(step, FoundRegion)
        }
        others = [step for step in form.captured.order if not isinstance(step, FoundRegion)]
        form.direct = bool(form.steps) and not any(step.op == "call_module" for step in others)

    def drop_regions(self) -> None:
        """Drop all regions, because the mask has changed; graphs are kept."""
        for form in self._forms.values():
            form.captured, form.steps, form.direct = None, {}, False

    # -- report --------------------------------------------------------------------------------------------------------

    @property
    def steps(self) -> list[RegionStep]:
        """The regions of the previous call's form."""
        return [] if self.last is None else list(self.last.steps.values())

    def layers_in_kernels(self) -> set[str]:
        """Return the layers that run in kernels, by their names in the model."""
        nodes = [node for step in self.steps for node in step.region.nodes]
        return {self.name_in_model(layer_name(node)) for node in nodes if node.op in LAYER_OPS}

    def dense_layers(self) -> set[str]:
        """Return the layers in kernels that compute with all their weights; their pruned weights are zeros."""
        captured = None if self.last is None else self.last.captured
        return set() if captured is None else {self.name_in_model(name) for name in captured.dense}

    def layer_seconds(self) -> dict[str, float]:
        """Return the seconds of each layer (by its name in the model), and of other operations in regions (by kind)."""
        inside, found = self.layers_in_kernels(), dict[str, float]()
        for step in self.steps:
            for label, seconds in (step.seconds or {}).items():
                name = self.name_in_model(label)
                name = name if name in inside else label
                found[name] = found.get(name, 0.0) + seconds
        return found

    def reasons(self) -> dict[str, str]:
        """Return the layers that run in torch, by their names in the model, and the reason for each."""
        captured = None if self.last is None else self.last.captured
        return {} if captured is None else {self.name_in_model(name): why for name, why in captured.reasons.items()}

    def name_in_model(self, name: str) -> str:
        """Return the name in the model of a module that has `name` in this unit's module."""
        return ".".join(part for part in (self.name, name) if part)


def _to_float32(value: Any) -> Any:
    """Return an output as float32 if it is bfloat16, because the caller did not enable autocast."""
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value


def build_units(model: nn.Module, context: TrainingContext) -> list[Unit]:
    """Return a unit, which replaces `forward`, for the model and for each of its modules with layers under the mask."""
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
    """A single run of a captured call, step by step."""

    def __init__(self, unit: Unit, form: _CallForm, found: Traced, tensors: Sequence[Tensor]) -> None:
        assert form.captured is not None
        self._unit, self._steps, self._captured, self._traced = unit, form.steps, form.captured, found
        places = [node for node in found.graph.nodes if node.op == "placeholder"]
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
        if not step.fits(inputs):
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
        found = _attribute(self._unit.module, name)
        self._unit.context.update_before_read([found])
        return found

    def _call_module(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Call a module that is a single node of the graph; its submodules may be replaced by units."""
        context = self._unit.context
        if not isinstance(module.__dict__.get("forward"), Unit):  # units call `update_before_read` themselves
            context.update_before_read(module.parameters())
        before, context.walking = context.walking, isinstance(module, LAYERS)
        try:
            return module(*args, **kwargs)
        finally:
            context.walking = before


def _attribute(module: nn.Module, name: str) -> Any:
    *path, last = name.split(".")
    return getattr(module.get_submodule(".".join(path)), last)
