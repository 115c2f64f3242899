"""What a mask is held on: places of a model, the parameters in them, and what an optimiser remembers of these."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from ticketry.core.devices.parts import is_spread, part, part_like
from ticketry.core.mask import Mask
from ticketry.core.scope import normal_name
from ticketry.errors import HoldError
from ticketry_engine.support.masked_gradients import is_masked

# State that scales steps and is never 0: Adamax's infinity norm, Rprop's step sizes.
_SCALES = ("exp_inf", "step_size")


class HeldParameter:
    """A parameter and the weights of it that are kept."""

    masks_gradients = True
    """Tells the engine that this hook changes nothing about a gradient that is masked already."""

    def __init__(self, parameter: nn.Parameter, mask: Tensor, hook: bool) -> None:
        self.parameter, self._mask = parameter, mask
        self._kept: Tensor | None = None
        self._content = _content(parameter)
        self._handle: torch.utils.hooks.RemovableHandle | None = None
        if hook:
            spread = is_spread(parameter)
            self._handle = _hooked(parameter, self._mask_accumulated if spread else self._masked, accumulated=spread)

    @property
    def kept(self) -> Tensor:
        """0 and 1 in the type, layout and place of the parameter; of one in parts, this process's part.

        Made when it is first needed: kernels give gradients that are masked already, and it is as large as the weights.
        """
        own = part(self.parameter.detach())
        if self._kept is None or self._kept.device != own.device or self._kept.dtype != own.dtype:  # it moved since
            with torch.inference_mode(False):  # it outlives the caller's mode
                self._kept = self._made(own)
        return self._kept

    def kept_like(self, tensor: Tensor, *, once: bool = False) -> Tensor:
        """What is kept, in the type and place of `tensor`: of the parameter itself, its gradient or its state.

        Of a parameter in parts it is this process's part, and so `tensor` has to be.

        Args:
            once: whether it is not asked for step by step: what is made for it is not kept.
        """
        own = part(self.parameter.detach())
        kept = self._made(own) if once and self._kept is None else self.kept
        return kept.to(device=tensor.device, dtype=tensor.dtype)

    def _made(self, own: Tensor) -> Tensor:
        # In the layout of the parameter: elementwise products of mixed layouts (channels_last) are slow.
        return torch.empty_like(own).copy_(part_like(self._mask, self.parameter))

    @property
    def gradient(self) -> Tensor | None:
        """The parameter's gradient; of one in parts, this process's part."""
        return None if self.parameter.grad is None else part(self.parameter.grad)

    def is_still(self, parameter: nn.Parameter | None) -> bool:
        """Whether `parameter` is the one that is held, with the hook that it got."""
        return parameter is self.parameter and _content(self.parameter) == self._content

    @torch.no_grad()
    def mask(self) -> None:
        """Set removed weights, and their gradients, to 0."""
        part(self.parameter).masked_fill_(self.kept_like(part(self.parameter), once=True) == 0, 0)
        if is_spread(self.parameter):
            self._mask_accumulated(self.parameter)
        elif self.parameter.grad is not None:
            self.parameter.grad = self._masked(self.parameter.grad)

    def let_go(self) -> None:
        """Take the hook off."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _masked(self, gradient: Tensor | None) -> Tensor | None:
        if gradient is None:  # of a function that has none for it
            return None
        return gradient if is_masked(gradient, self._mask) else gradient * self.kept_like(gradient)

    @torch.no_grad()
    def _mask_accumulated(self, parameter: Tensor) -> None:
        """What `fully_shard` calls when a gradient has been added up over all processes."""
        if parameter.grad is not None:
            gradient = part(parameter.grad)
            gradient.mul_(self.kept_like(gradient))


class Orphans:
    """Parameters that others took the names of, and whether an optimiser steps them instead of the model's own."""

    def __init__(self) -> None:
        self._lost: dict[str, weakref.ref[nn.Parameter]] = {}
        self._stepped = Counter[str]()

    def add(self, name: str, before: nn.Parameter, now: nn.Parameter | None) -> None:
        """`now` has taken the name of `before`."""
        if now is not before:  # torch.utils.swap_tensors keeps the object
            self._lost[name] = weakref.ref(before)

    def after_step(self, optimizer: Optimizer, held: Mapping[str, HeldParameter]) -> None:
        """Look at what an optimiser has stepped: parameters without a gradient are not meant to be trained."""
        if not self._lost:
            return
        stepped = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for name, lost in list(self._lost.items()):
            own = held[name].parameter if name in held else None
            if own is not None and id(own) in stepped:
                del self._lost[name]
                del self._stepped[name]
            elif id(lost()) in stepped and own is not None and own.grad is not None:
                self._stepped[name] += 1

    def require_none(self) -> None:
        """Raises `HoldError` where the model's own parameter was left out of more steps than the one it came in."""
        left_out = [name for name, steps in self._stepped.items() if steps > 1]
        if left_out:
            raise HoldError(
                f"the optimiser does not train {', '.join(map(repr, left_out))}: another parameter took the name while"
                " the mask was held (a load with assign=True, a layer that was rebuilt), and the optimiser still steps"
                " the one before: make the optimiser after that, or give it the new one (add_param_group)"
            )


class _Edge(NamedTuple):
    """A module, or a parameter, in a module: under `key` in one of its two dictionaries."""

    owner: nn.Module
    entries: Mapping[str, object]
    key: str
    value: object


class Places:
    """Where a model has the parameters of a mask: under all their names, if they are tied."""

    def __init__(self, model: nn.Module, mask: Mask) -> None:
        self.model = model
        self._shapes = mask.shapes
        masked = {id(parameter): name for name, parameter in mask.parameters(model).items()}
        everything = [(normal_name(name), one) for name, one in model.named_parameters(remove_duplicate=False)]
        self.masked_by = {name: masked[id(one)] for name, one in everything if id(one) in masked}
        """Name of a parameter -> name of its mask: another one for tied weights."""
        self.masked_by |= {name: name for name in mask}
        self.look()

    def look(self) -> dict[str, nn.Parameter]:
        """`parameters`; from here on `as_seen` and `is_on_the_way` speak of these."""
        found = self.parameters()
        self._edges: dict[tuple[int, str], _Edge] = {}
        for raw, _ in self.model.named_parameters(remove_duplicate=False):
            if normal_name(raw) in self.masked_by:
                self._remember_way_to(raw)
        return found

    def parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that have the names now, each once.

        Raises:
            HoldError: if one is gone, or has another shape.
        """
        found: dict[str, nn.Parameter] = {}
        for raw, parameter in self.model.named_parameters(remove_duplicate=False):
            name = normal_name(raw)
            if name in self.masked_by and (name in self._shapes or parameter.shape == self._shape(name)):
                found[name] = parameter
        for name in self._shapes:
            if name not in found or found[name].shape != self._shape(name):
                raise HoldError(
                    f"the mask cannot be held: {type(self.model).__name__} has"
                    f" {'lost' if name not in found else 'another shape of'} its parameter {name!r} since (a module was"
                    " rebuilt, parametrised or resized): leave the block or release() the mask before that, and hold a"
                    " mask of the new model"
                )
        tied = {name: name not in self._shapes and one is found[self.masked_by[name]] for name, one in found.items()}
        return {name: one for name, one in found.items() if not tied[name]}

    def as_seen(self, held: Mapping[str, HeldParameter]) -> bool:
        """Whether every module and parameter is where it was, and the parameters are those held."""
        return all(key in entries and entries[key] is value for _, entries, key, value in self._edges.values()) and all(
            _content(each.parameter) == each._content for each in held.values()
        )

    def has_parameter_of(self, optimizer: Optimizer) -> bool:
        """Return whether an optimiser steps any parameter that the model has now."""
        own = {id(parameter) for parameter in self.model.parameters()}
        return any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"])

    def is_on_the_way(self, module: nn.Module, key: str) -> bool:
        """Whether a masked parameter is reached through what the module calls `key`."""
        return (id(module), key) in self._edges

    def _shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[self.masked_by[name]]

    def _remember_way_to(self, name: str) -> None:
        module: nn.Module = self.model
        *path, local = name.split(".")
        for key in path:
            inner = module._modules[key]
            assert inner is not None
            self._edges[id(module), key] = _Edge(module, module._modules, key, inner)
            module = inner
        self._edges[id(module), local] = _Edge(module, module._parameters, local, module._parameters[local])


def states_of(optimizer: Optimizer, parameter: nn.Parameter) -> Iterator[Tensor]:
    """Every tensor of an optimiser's state that has an element for each weight and can move it; parts of such."""
    state: Mapping[str, object] = optimizer.state.get(parameter, {})
    for key, value in state.items():
        if key not in _SCALES:
            yield from (part(each) for each in _tensors(value) if each.shape == parameter.shape and each.dim())


@torch.no_grad()
def mask_history(optimizer: Optimizer, held: Mapping[str, HeldParameter]) -> None:
    """Clear L-BFGS's history, unless it is of the masked network.

    Its vectors go through all parameters, one after another.
    """
    if not isinstance(optimizer, LBFGS):
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    kept = {id(each.parameter): each.kept_like(each.parameter, once=True) for each in held.values()}
    removed = torch.cat([(kept.get(id(one), torch.ones_like(one)) == 0).flatten() for one in parameters])
    vectors = (each for state in optimizer.state.values() for each in _tensors(state) if each.shape == removed.shape)
    if any(vector[removed].any() for vector in vectors):
        optimizer.state.clear()


def _tensors(value: object) -> Iterator[Tensor]:
    """The tensors of real numbers in a value of an optimiser's state."""
    if isinstance(value, Tensor):
        if value.is_floating_point() or value.is_complex():
            yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _tensors(each)


def _content(parameter: nn.Parameter) -> int:
    """Another number once `torch.utils.swap_tensors` gave the object another tensor, which has no hooks."""
    content: int = parameter._cdata
    return content


def _hooked(parameter: nn.Parameter, masked: object, *, accumulated: bool = False) -> torch.utils.hooks.RemovableHandle:
    trainable = parameter.requires_grad
    parameter.requires_grad_(True)  # a frozen parameter takes no hook, but may be unfrozen while it is held
    hooks = parameter._backward_hooks
    if hooks is not None:  # of a tensor that was swapped in they are known by name, but not called
        parameter._backward_hooks = hooks or None
    # No gradient flows into a part: `fully_shard` puts it there, and calls these hooks alone.
    register = parameter.register_post_accumulate_grad_hook if accumulated else parameter.register_hook
    handle: torch.utils.hooks.RemovableHandle = register(masked)  # type: ignore[no-untyped-call]
    parameter.requires_grad_(trainable)
    return handle
