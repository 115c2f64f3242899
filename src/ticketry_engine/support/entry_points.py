"""Defines the decorator of public functions, which checks common arguments and normalises the state of torch.

`entry_point` checks arguments that several public functions have, such as `model`. It runs the function in
`plain_torch_state`, so that a caller's inference mode, autocast, `no_grad`, default dtype or default device change no
result.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map

from ticketry_engine.errors import ScopeError, UsageError
from ticketry_engine.support.modules import require_model
from ticketry_engine.support.process_state import default_dtype

P = ParamSpec("P")
R = TypeVar("R")

Check = Callable[[Any, str, Any], Any]
"""Function from (value, name of the argument, model or None) to the value that the public function receives.

It raises `UsageError` if the value is wrong.
"""

ARGUMENT_CHECKS: dict[str, Check] = {}
"""Argument name -> the check of the argument; other modules add checks."""


class Need(NamedTuple):
    """Says which kinds of models a public function accepts, such as models on the meta device."""

    values: bool = True
    """Whether weights must have values, that is, must not be on the meta device."""
    python: bool = True
    """Whether layers must be Python modules, not TorchScript."""
    floats: bool = True
    """Whether layers must not be quantised; the weights of a quantised layer are no parameters and have no gradient."""
    training: bool = False
    """Whether parameters are changed or differentiated, and so must not have been created in inference mode."""


READS = Need()
CHANGES = Need(training=True)
BY_NAME = Need(values=False, python=False, floats=False)
"""Requirements of a function that only looks up parameters by name."""


def entry_point(need: Need = READS, *, autocast: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator for public functions that checks common arguments and resets torch's global state.

    During a call of the decorated function, gradients are enabled, autocast and inference mode are off, and new tensors
    are float32 on the CPU.

    `need` says which kinds of models the function accepts as its arguments `model` and `small`. If `autocast`, the
    caller's autocast stays on, for functions that time the caller's training step.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        parameters = inspect.signature(function).parameters
        names = list(parameters)
        optional = {name for name, one in parameters.items() if one.default is None or "None" in str(one.annotation)}

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            model = kwargs["model"] if "model" in kwargs else dict(zip(names, args, strict=False)).get("model")

            def check_argument(name: str, value: Any) -> Any:
                if value is None and (name in optional or name not in parameters):
                    return None
                if name in ("model", "small"):
                    check_model(value, need, name)
                check = ARGUMENT_CHECKS.get(name)
                return value if check is None else check(value, name, model)

            with plain_torch_state(autocast=autocast):
                positional: Any = [*map(check_argument, names, args), *args[len(names) :]]
                named: Any = {name: check_argument(name, value) for name, value in kwargs.items()}
                return function(*positional, **named)

        return checked

    return decorate


def check_model(model: object, need: Need = READS, name: str = "model") -> None:
    """Raise an error if `model` is no module, or does not meet the requirements `need`; the message says what to do.

    Raises:
        UsageError: if `model` is no module; or if it is in TorchScript, quantised, on the meta device or created in
            inference mode, and `need` excludes that.
        ScopeError: if the module has lazy layers, whose parameters have no shapes.
    """
    require_model(model)
    assert isinstance(model, nn.Module)
    kind = type(model).__name__
    for local, module in model.named_modules():
        if need.python and isinstance(module, torch.jit.ScriptModule):
            raise UsageError(
                f"{repr(local) if local else kind} is a TorchScript module, whose layers cannot be seen: use the Python"
                " module that it was made from, and script or trace that afterwards"
            )
        if need.floats and is_quantised(module):
            raise UsageError(
                f"{repr(local) if local else kind} is a quantised layer, whose weights are no parameters: use the model"
                " in floating point, and quantise what comes out"
            )
    for local, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ScopeError(f"{local!r} of {kind} has no shape yet (a lazy layer): call the model once on an example")
        if need.values and tensor.is_meta:
            raise UsageError(
                f"{local!r} is on the meta device and has no values: model.to_empty(device=...) and"
                " initialise or load the model first"
            )
        if need.training and tensor.is_inference():
            raise UsageError(
                f"{local!r} of {kind} was created in torch.inference_mode and can be neither changed nor trained:"
                " create the model outside, or take copy.deepcopy(model) there"
            )


def is_quantised(module: nn.Module) -> bool:
    """Return whether a module is a quantised torch layer, whose weight is no parameter."""
    return type(module).__module__.startswith(_QUANTISED)


_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse.quantized")


# -- the state of torch ------------------------------------------------------------------------------------------------


class _Defaults(NamedTuple):
    """The dtype and the device that torch gives to new tensors by default."""

    dtype: torch.dtype
    device: torch.device


_PLAIN = _Defaults(torch.float32, torch.device("cpu"))

_callers = threading.local()


@contextmanager
def plain_torch_state(*, autocast: bool = False) -> Iterator[None]:
    """Run a `with` block in the initial state of torch.

    In this state, gradients are enabled, inference mode and autocast are off, and new tensors are float32 on the CPU.
    If `autocast`, the caller's autocast stays on. Deterministic mode stays as the caller set it, because no result
    depends on it, and the model's code must obey it.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        for device in () if autocast else _AUTOCASTS:
            if torch.is_autocast_enabled(device):
                stack.callback(torch.clear_autocast_cache)  # its weights are unchanged
                stack.enter_context(torch.autocast(device, enabled=False))
        now = _Defaults(torch.get_default_dtype(), torch.get_default_device())
        if now != _PLAIN:
            stack.enter_context(_change_defaults(_PLAIN, now, callers=now))
        yield


_AUTOCASTS = ("cpu", "cuda", "mps", "xpu")


@contextmanager
def restore_callers_defaults() -> Iterator[None]:
    """Run a `with` block of the user's code, such as a loss, with the default dtype and device that the user set."""
    theirs: _Defaults | None = getattr(_callers, "defaults", None)
    now = _Defaults(torch.get_default_dtype(), torch.get_default_device())
    if theirs is None or theirs == now:
        yield
        return
    with _change_defaults(theirs, now, callers=None):
        yield


@contextmanager
def _change_defaults(wanted: _Defaults, now: _Defaults, *, callers: _Defaults | None) -> Iterator[None]:
    """Run a `with` block with the default dtype and device `wanted` instead of `now`.

    Within the block, `restore_callers_defaults` restores `callers`.
    """
    with ExitStack() as stack:
        stack.callback(setattr, _callers, "defaults", getattr(_callers, "defaults", None))
        _callers.defaults = callers
        if wanted.dtype != now.dtype:
            stack.enter_context(default_dtype(wanted.dtype))
        if wanted.device != now.device:
            stack.enter_context(wanted.device)
        yield


def copy_inference_tensors(values: Any) -> Any:
    """Return `values` (nested containers) with a copy in place of each tensor that was created in inference mode."""
    leaves = tree_leaves(list(values.values()) if isinstance(values, Mapping) else values)
    if not any(isinstance(leaf, Tensor) and leaf.is_inference() for leaf in leaves):
        return values
    if isinstance(values, Mapping):  # torch does not look into mappings of other kinds than dict
        return {key: copy_inference_tensors(value) for key, value in values.items()}
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf, values)


@contextmanager
def allow_in_place_write(tensor: Tensor) -> Iterator[None]:
    """Run a `with` block that changes `tensor` in place; enable inference mode if `tensor` was created in that mode."""
    with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
        yield


ARGUMENT_CHECKS["example_inputs"] = lambda value, name, model: copy_inference_tensors(value)
