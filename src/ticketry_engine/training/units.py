"""Modules whose calls run in kernels as far as these know them: the whole model, or parts of it by themselves.

Each call is traced when it comes in a new form. Where a module's code cannot be traced, it runs as it is, and the
modules that it calls are tried in its place.
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
from ticketry_engine.training.capture import LIMIT, LIMITS, Captured, Part, capture
from ticketry_engine.training.kept_weights import KeptWeights
from ticketry_engine.training.nodes import Conv
from ticketry_engine.training.region_step import RegionStep
from ticketry_engine.training.tracing import LAYERS, Substitute, Traced, Untraceable, alone, has_hooks, key_of, traced

_T = TypeVar("_T")

NOT_COMPILED = "sparse training runs kernels of its own, which torch.compile can neither read nor make faster"
"""Why torch.compile leaves it alone, as it says under ``fullgraph=True``."""

_FORMS = 16
"""Of calls that one module is traced for: what comes in more forms runs in torch."""


@dataclass
class Context:
    """What all units of a model share."""

    library: Library
    kept: Mapping[str, Array] = field(default_factory=dict)
    """Of each layer under the mask, by the name of its module in the model, which weights are kept."""
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    """The same as the mask's tensors."""
    recurrent: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """Of each LSTM under the mask, by its name, the mask's tensors by names of its parameters."""
    rows: Mapping[str, nn.Parameter] = field(default_factory=dict)
    """Of those whose kept weights are parameters of their own, these."""
    weights: KeptWeights | None = None
    """What keeps such rows and the model's tensors together, where there are rows."""
    half: bool = False
    """Whether modules compute as under autocast to bfloat16."""
    walking: bool = False
    """Whether a graph is being gone through, whose modules run as they are."""

    def reads(self, tensors: Iterable[Tensor]) -> None:
        """Something beside rows is about to be read: the model's tensors have to be as they should."""
        if self.weights is not None:
            self.weights.needed(tensors)


@dataclass
class _Form:
    """A form of calls: its graph, or why there is none; its regions under the mask at hand."""

    traced: Traced | None
    why: str = ""
    wholes: tuple[str, ...] = ()
    """Modules that the graph has as wholes, with layers under the mask in them."""
    captured: Captured | None = None
    steps: dict[int, RegionStep] = field(default_factory=dict)
    direct: bool = False
    """Whether some of it is in kernels, and no module is called beside them."""


class Unit(Substitute):
    """A module's `forward` while sparse training runs.

    Args:
        name: of the module in the model.
    """

    def __init__(self, name: str, module: nn.Module, context: Context) -> None:
        self.name, self.context = name, context
        self._module = (module,)
        self._forms: dict[tuple[Any, ...], _Form] = {}
        self.last: _Form | None = None
        """The form of the call before."""
        self._eager = torch.compiler.disable(self._called, reason=NOT_COMPILED)  # type: ignore[no-untyped-call]

    @property
    def module(self) -> nn.Module:
        return self._module[0]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._eager(*args, **kwargs)

    def _called(self, *args: Any, **kwargs: Any) -> Any:
        if self.context.half and self.module.training and not torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", torch.bfloat16):
                made = self._called(*args, **kwargs)
            return tree_map(_in_float32, made)
        if self.module.training and not self.context.walking:
            form, leaves = self.form(args, kwargs)
            # Without a mask there are no other units in it, which would run layers one by one.
            innermost = not self.context.kept or isinstance(self.module, LAYERS)
            if form.traced is not None and (form.steps or not innermost):
                return _Walk(self, form, form.traced, [leaf for leaf in leaves if isinstance(leaf, Tensor)]).result()
        self.context.reads(self.module.parameters())
        return type(self.module).forward(self.module, *args, **kwargs)

    def direct(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Callable[[], Any] | None:
        """The call where nothing is called but kernels and functions, so that no module needs a substitute.

        Nor does it go through torch's way of calling a module, which is a tenth of a small network's step.
        """
        module, context = self.module, self.context
        plain = type(module).__call__ is nn.Module.__call__ and module._compiled_call_impl is None
        if not plain or not module.training or context.half or context.walking or "forward" in module.__dict__:
            return None
        if has_hooks(module) or _has_any_global_hook():  # type: ignore[no-untyped-call]
            return None
        form, leaves = self.form(args, kwargs)
        if form.traced is None or not form.direct:
            return None
        return _Walk(self, form, form.traced, [leaf for leaf in leaves if isinstance(leaf, Tensor)]).result

    def form(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, twin: nn.Module | None = None
    ) -> tuple[_Form, list[Any]]:
        """The form of a call, captured, and the leaves of its arguments.

        Args:
            twin: a copy of the module that stands for it.
        """
        leaves, spec = tree_flatten((args, dict(kwargs)))
        module = twin or self.module
        if any(isinstance(leaf, Tensor) and not leaf.numel() for leaf in leaves):  # kernels have no places for nothing
            return _Form(None, "a tensor that it is called with is empty"), leaves
        try:
            key = key_of(module, leaves, spec)
        except Untraceable as why:
            self.last = _Form(None, str(why))
            return self.last, leaves
        if key not in self._forms:
            with plain_torch_state(autocast=True):
                self._forms[key] = self._new(module, as_normal_tensors(leaves), spec)
        self.last = form = self._forms[key]
        if form.traced is not None and form.captured is None:
            self._capture(form, form.traced)
        return form, leaves

    def _new(self, module: nn.Module, leaves: Sequence[Any], spec: Any) -> _Form:
        if len(self._forms) >= _FORMS:
            return _Form(None, f"it is called in more than {_FORMS} forms")
        try:
            found = (alone if isinstance(module, LAYERS) else traced)(module, leaves, spec)
            return _Form(found, wholes=tuple(self._wholes(found)))
        except Untraceable as why:
            return _Form(None, str(why))

    def _wholes(self, found: Traced) -> Iterator[str]:
        for node in found.graph.nodes:
            inside = f"{self.named(str(node.target))}."
            if node.op == "call_module" and any(name.startswith(inside) for name in self.context.kept):
                yield str(node.target)

    def _own(self, some: Mapping[str, _T]) -> dict[str, _T]:
        """Those of names in the model that are in the module, by their names in it."""
        prefix = f"{self.name}." if self.name else ""
        return {
            name[len(prefix) :] if name != self.name else "": one
            for name, one in some.items()
            if name == self.name or name.startswith(prefix)
        }

    def _capture(self, form: _Form, found: Traced) -> None:
        context = self.context
        kept, masks, rows = self._own(context.kept), self._own(context.masks), self._own(context.rows)
        modules = dict(self.module.named_modules())
        half, target = self.context.half, self.context.library.target
        # With few registers they are slower; in bfloat16 they gain nothing: ResNet-18 without a mask took 1.02.
        dense, limit = target.registers >= 32 and not half, LIMIT if half else LIMITS.get(target.name, LIMIT)
        form.captured = capture(self.module, kept, found.graph, dense=dense, limit=limit, half=half)
        for name in form.captured.dense:  # the kernels give whole gradients: who holds the mask masks them
            for pruned in kept, masks, rows:
                pruned.pop(name, None)
        form.steps = {
            id(step): RegionStep(step.region(), modules, kept, self.context.library, masks, rows, half=half)
            for step in form.captured.order
            if isinstance(step, Part)
        }
        others = [step for step in form.captured.order if not isinstance(step, Part)]
        form.direct = bool(form.steps) and not any(step.op == "call_module" for step in others)

    def forget(self) -> None:
        """Regions, because the mask is another; graphs stay."""
        for form in self._forms.values():
            form.captured, form.steps, form.direct = None, {}, False

    # -- what it says of itself --------------------------------------------------------------------------------------

    @property
    def steps(self) -> list[RegionStep]:
        """Regions of the form of the last call."""
        return [] if self.last is None else list(self.last.steps.values())

    def inside(self) -> set[str]:
        """Layers that run in kernels, by their names in the model."""
        return {self.named(node.module) for step in self.steps for node in step.region.nodes if isinstance(node, Conv)}

    def dense(self) -> set[str]:
        """Those of them that compute with all their weights, pruned ones as zeros."""
        captured = None if self.last is None else self.last.captured
        return set() if captured is None else {self.named(name) for name in captured.dense}

    def spent(self) -> dict[str, float]:
        """Seconds of layers, by their names in the model, and of what else is in regions."""
        inside, found = self.inside(), dict[str, float]()
        for step in self.steps:
            for label, seconds in (step.seconds or {}).items():
                name = self.named(label)
                name = name if name in inside else label
                found[name] = found.get(name, 0.0) + seconds
        return found

    def reasons(self) -> dict[str, str]:
        """Layers that run in torch, by their names in the model, and why."""
        captured = None if self.last is None else self.last.captured
        return {} if captured is None else {self.named(name): why for name, why in captured.reasons.items()}

    def named(self, name: str) -> str:
        """The name in the model of one of its modules."""
        return ".".join(part for part in (self.name, name) if part)


def _in_float32(value: Any) -> Any:
    """What comes out of autocast, for whoever did not ask for it."""
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value


def units_of(model: nn.Module, context: Context) -> list[Unit]:
    """Of a model and all its modules that have layers under the mask."""
    return [
        Unit(name, module, context)
        for name, module in model.named_modules()
        if not name or any(one == name or one.startswith(f"{name}.") for one in context.kept)
    ]


def within(name: str, modules: Sequence[str]) -> bool:
    """Whether a module is in one of these, by names."""
    return any(name.startswith(f"{module}.") or not module for module in modules)


@contextmanager
def running(units: Sequence[Substitute]) -> Iterator[None]:
    """Calls of the modules are calls of their units meanwhile."""
    # Not those that have something in the place of their code already.
    mine = [unit for unit in units if "forward" not in unit.module.__dict__]
    for unit in mine:
        unit.module.__dict__["forward"] = unit
    try:
        yield
    finally:
        for unit in mine:
            unit.module.__dict__.pop("forward", None)  # a model that is an LSTM has two units


class _Walk:
    """One call, step by step."""

    def __init__(self, unit: Unit, form: _Form, found: Traced, tensors: Sequence[Tensor]) -> None:
        assert form.captured is not None
        self._unit, self._steps, self._captured, self._traced = unit, form.steps, form.captured, found
        places = [node for node in found.graph.nodes if node.op == "placeholder"]
        self._values: dict[fx.Node, Any] = dict(zip(places, tensors, strict=True))

    def result(self) -> Any:
        """What the module returns."""
        for step in self._captured.order:
            if isinstance(step, Part):
                self._region(step)
            elif step.op == "output":
                leaves: Any = fx.node.map_arg(step.args[0], self._values.__getitem__)
                return tree_unflatten(leaves, self._traced.output)
            elif step.op != "placeholder":
                self._values[step] = self._node(step)
        raise AssertionError("a graph ends with its output")

    def _region(self, part: Part) -> None:
        step, inputs = self._steps[id(part)], [self._values[node] for node in part.inputs]
        if not step.fits(inputs):
            for node in self._captured.graph.nodes:
                if node in part.members:
                    self._values[node] = self._node(node)
            return
        self._unit.context.reads(step.dense_parameters())
        made = step(inputs)
        named = dict(zip(step.region.outputs, made, strict=True))
        for node in part.outputs:
            value: Tensor = named[part.members[node]]
            flat = len(node.meta["tensor_meta"].shape) == 2 and value.dim() == 4
            self._values[node] = value.flatten(1) if flat else value

    def _node(self, node: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._values.__getitem__)
        if node.op == "call_module":
            return self._module(self._unit.module.get_submodule(str(node.target)), args, kwargs)
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
        self._unit.context.reads([found])
        return found

    def _module(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """A module that the graph has as a whole: modules within it, of which the graph knows nothing, may be units."""
        context = self._unit.context
        if not isinstance(module.__dict__.get("forward"), Unit):  # which tell by themselves what they read
            context.reads(module.parameters())
        before, context.walking = context.walking, isinstance(module, LAYERS)
        try:
            return module(*args, **kwargs)
        finally:
            context.walking = before


def _attribute(module: nn.Module, name: str) -> Any:
    *path, last = name.split(".")
    return getattr(module.get_submodule(".".join(path)), last)
