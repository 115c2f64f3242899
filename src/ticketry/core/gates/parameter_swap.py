"""Substitute other tensors for parameters of a model while the model runs."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from ticketry.errors import UsageError

Products = Callable[[Sequence[int], Sequence[Tensor], bool], Sequence[Tensor]]
"""A function that returns the tensors to substitute. Its arguments are the indices of parameters, the parameters, and
whether these are all parameters.
"""


@dataclass(frozen=True)
class ParameterLocation:
    """The location of a parameter in a model: the attribute `local` of `module`."""

    module: nn.Module
    local: str

    def parameter(self) -> Tensor:
        found = self.module._parameters.get(self.local)
        if found is None:
            raise UsageError(
                f"{type(self.module).__name__} has lost its parameter {self.local!r} since gates were put on it: detach"
                " gates before a module is rebuilt, pruned or parametrised"
            )
        return found


class ParameterSwap:
    """Substitutes products (weight * gate) for some parameters while `model` or one of its modules runs.

    A product is stored in the instance dictionary of the parameter's module, where Python looks before it looks among
    the parameters. The parameters themselves never change: even during a forward pass, the state dict,
    `named_parameters()` and optimisers see only the weights, and an interrupted pass leaves nothing behind that could
    be saved or trained.

    When a module is called that is not inside another running module, the products of all its parameters are computed
    at once, and its submodules use them. This holds for the model, and for a part that is called alone
    (`model.encoder(x)`, or by activation checkpointing in the backward pass).
    """

    def __init__(self, model: nn.Module, places: Sequence[Sequence[ParameterLocation]], products: Products) -> None:
        """Register hooks on `model`; `places` has all locations of each parameter, several for a tied weight."""
        self._model, self._places, self._products = model, places, products
        self._placed: set[int] = set()
        self._stack: list[_RunningModule] = []
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        for module in model.modules():
            inside = set(module.modules())
            numbers = tuple(i for i, several in enumerate(places) if any(place.module in inside for place in several))
            if numbers:
                hooked = _HookedModule(self, module, numbers)
                enter, leave = _Hook(hooked, ParameterSwap.enter_module), _Hook(hooked, ParameterSwap.leave_module)
                self._handles.append(module.register_forward_pre_hook(enter, prepend=True))
                self._handles.append(module.register_forward_hook(leave, always_call=True))
        _reset_torch_compile()

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters that are replaced by products while the model runs, in order."""
        return [places[0].parameter() for places in self._places]

    def remove(self) -> None:
        """Remove the hooks from the model."""
        self.clean_up_interrupted_call()
        if self._stack:
            raise UsageError("gates cannot be detached while the model runs")
        for handle in self._handles:
            handle.remove()
        self._handles = []
        _reset_torch_compile()

    def clean_up_interrupted_call(self) -> None:
        """Undo the substitutions of a call that was interrupted (Ctrl-C) before the hooks could undo them."""
        if self._stack and not _is_forward_running(self._stack[0].hooked.module, entered=0):
            self._undo_all_substitutions()

    # -- around a module's call --------------------------------------------------------------------------------------

    def enter_module(self, hooked: _HookedModule, module: nn.Module) -> None:
        if module is not hooked.module:
            raise UsageError(
                f"a shallow copy of {type(module).__name__} was called (by nn.DataParallel, copy.copy, …) whose gates"
                " belong to the original: use DistributedDataParallel, or copy.deepcopy, which leaves the gates behind"
            )
        if self._stack and hooked.module in (self._model, self._stack[0].hooked.module):
            bottom = self._stack[0].hooked.module
            if not _is_forward_running(bottom, entered=int(hooked.module is bottom)):
                self._undo_all_substitutions()
        if len(self._placed) == len(self._places):
            self._stack.append(_RunningModule(hooked))
            return
        numbers = [number for number in hooked.numbers if number not in self._placed]
        call = _RunningModule(hooked, numbers)
        if numbers:
            tensors = [self._places[number][0].parameter() for number in numbers]
            # Checkpointing counts saved tensors, and would count those of the products again when it recomputes the
            # module. Only the innermost hooks are called, so these hide the products from it.
            hidden: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
            if not torch._C._are_functorch_transforms_active():
                hidden = torch.autograd.graph.saved_tensors_hooks(_return_unchanged, _return_unchanged)
            with hidden:
                products = self._products(numbers, tensors, len(numbers) == len(self._places))
            self._substitute_products(call, products)
        self._stack.append(call)

    def leave_module(self, hooked: _HookedModule, module: nn.Module) -> None:
        # torch runs this even if `enter_module`, or another hook before it, raised.
        if self._stack and self._stack[-1].hooked is hooked and module is hooked.module:
            self._undo_substitution(self._stack.pop())

    def _substitute_products(self, call: _RunningModule, products: Sequence[Tensor]) -> None:
        for number, product in zip(call.numbers, products, strict=True):
            self._placed.add(number)
            for place in self._places[number]:
                own = place.module.__dict__
                if isinstance(place.module, nn.RNNBase) and place.module not in [module for module, _ in call.flat]:
                    # It refreshes its list of weights when it finds others, but not when the originals are back.
                    flat = {name: own[name] for name in ("_flat_weights", "_flat_weight_refs")}
                    call.flat.append((place.module, flat))
                own[place.local] = product

    def _undo_substitution(self, call: _RunningModule) -> None:
        for number in call.numbers:
            self._placed.discard(number)
            for place in self._places[number]:
                place.module.__dict__.pop(place.local, None)
        for module, weights in call.flat:
            module.__dict__.update(weights)

    def _undo_all_substitutions(self) -> None:
        while self._stack:
            self._undo_substitution(self._stack.pop())


class _RunningModule:
    """A module while it runs, and the substitutions made when it was called."""

    __slots__ = ("flat", "hooked", "numbers")

    def __init__(self, hooked: _HookedModule, numbers: Sequence[int] = ()) -> None:
        self.hooked, self.numbers = hooked, numbers
        self.flat: list[tuple[nn.Module, dict[str, Any]]] = []


@dataclass(frozen=True, eq=False)
class _HookedModule:
    """A module with hooks, and the indices of the parameters inside it that are substituted."""

    swap: ParameterSwap
    module: nn.Module
    numbers: tuple[int, ...]


class _Hook:
    """A hook that calls the `ParameterSwap` before or after a module runs; in a copy of the model it does nothing."""

    def __init__(self, hooked: _HookedModule, act: Callable[[ParameterSwap, _HookedModule, nn.Module], None]) -> None:
        self.hooked, self._act = hooked, act

    def __call__(self, module: nn.Module, *args: object) -> None:
        if torch.compiler.is_compiling():
            self._act_uncompiled(module)
        else:
            self._act(self.hooked.swap, self.hooked, module)

    @_disable_dynamo
    def _act_uncompiled(self, module: nn.Module) -> None:
        self._act(self.hooked.swap, self.hooked, module)

    def __reduce__(self) -> tuple[type[_Inert], tuple[()]]:
        return _Inert, ()


class _Inert:
    """A hook that does nothing; copies of a model have it instead of `_Hook`."""

    def __call__(self, *args: object) -> None:
        return None


def find_parameter_locations(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> list[list[ParameterLocation]]:
    """Return, for each parameter, all its locations in `model`."""
    numbers = {id(parameter): number for number, parameter in enumerate(parameters.values())}
    places: list[list[ParameterLocation]] = [[] for _ in parameters]
    for module in model.modules():
        for local, parameter in module._parameters.items():
            if id(parameter) in numbers:
                places[numbers[id(parameter)]].append(ParameterLocation(module, local))
    return places


def find_gated_parameters(model: nn.Module) -> set[int]:
    """Return the ids of the parameters of `model` that already have gates."""
    return {
        id(place.parameter())
        for module in model.modules()
        for hook in module._forward_pre_hooks.values()
        if isinstance(hook, _Hook)
        for number in hook.hooked.numbers
        for place in hook.hooked.swap._places[number]
    }


def _return_unchanged(tensor: Tensor) -> Tensor:
    return tensor


_CALL = nn.Module._call_impl.__code__


def _is_forward_running(module: nn.Module, entered: int) -> bool:
    """Return whether more than `entered` calls of `module` are on Python's call stack."""
    calls = 0
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        calls += frame.f_code is _CALL and frame.f_locals.get("self") is module
        frame = frame.f_back
    return calls > entered


def _reset_torch_compile() -> None:
    # torch.compile does not notice hooks added after it compiled a module (skip_nnmodule_hook_guards).
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
