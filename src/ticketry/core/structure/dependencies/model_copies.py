"""Copies of a model to look into: in which type of float, sharing which weights, run on which inputs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from ticketry.errors import StructureError
from ticketry_engine.support.modules import copied as copied
from ticketry_engine.support.modules import parameters_and_buffers
from ticketry_engine.support.process_state import default_dtype, private_random_state
from ticketry_engine.support.seeds import seed_torch

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""Example inputs: the only argument, all of them, or by name."""

Arguments = tuple[Any, ...] | dict[str, Any]


def natural_dtype(model: nn.Module) -> torch.dtype:
    """The type in which a model is followed: its own, or float32 where that is narrower.

    Models hold constants of their own type that no conversion reaches, and convolutions in float64 are slow. Recurrent
    layers are followed in float64: in float32 processors have fused ones, whose weights lie in other orders.
    """
    double = any(parameter.dtype == torch.float64 for parameter in model.parameters())
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    return torch.float64 if double or recurrent else torch.float32


def twin_of(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of the model on the CPU, its floats of this type, without gradients.

    Raises:
        StructureError: if the model holds something that cannot be copied.
    """

    def convert(tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", _like(tensor, dtype), copy=True)

    plain = [tensor for tensor in parameters_and_buffers(model) if type(tensor) in (nn.Parameter, Tensor)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # recurrent layers say that their weights are not in one piece
        try:
            twin = copied(model, {id(tensor): convert(tensor) for tensor in plain})
            twin._apply(lambda tensor: tensor.to("cpu", _like(tensor, dtype)))  # type: ignore[no-untyped-call]
        except Exception as error:  # a user's model may hold anything
            raise StructureError(
                f"{type(model).__name__} cannot be copied ({type(error).__name__}: {str(error)[:120]}):"
                " make what it holds besides parameters and buffers fit for copy.deepcopy"
            ) from error
    return twin.requires_grad_(False)


def _like(tensor: Tensor, dtype: torch.dtype) -> torch.dtype | None:
    """Return the type for a tensor in a copy whose floats are `dtype`; complex numbers keep both their parts."""
    if tensor.is_complex():
        return dtype.to_complex()
    return dtype if tensor.is_floating_point() else None


def sharing(model: nn.Module, tensors: Mapping[int, Tensor] | None = None) -> nn.Module:
    """`copied` with all other parameters shared with `model`."""
    return copied(model, {**{id(parameter): parameter for parameter in model.parameters()}, **(tensors or {})})


def arguments_of(inputs: Inputs, dtype: torch.dtype) -> Arguments:
    """Example inputs as a tuple or dictionary of arguments: copies on the CPU, floats of a type."""

    def convert(value: object) -> object:
        if not isinstance(value, Tensor):
            return value
        return value.detach().to("cpu", _like(value, dtype), copy=True)

    if isinstance(inputs, Mapping):  # of a kind of its own, as tokenizers give, it would be a leaf
        converted: Arguments = tree_map(convert, dict(inputs))
    else:
        converted = tree_map(convert, inputs if isinstance(inputs, tuple) else (inputs,))
    return converted


def fresh(arguments: Arguments) -> Arguments:
    """The same arguments in tensors of their own, which a model may write to."""
    copies: Arguments = tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, arguments)
    return copies


@contextmanager
def plain_operations(twin: nn.Module | None = None) -> Iterator[None]:
    """No gradients, no fused transformer layers, and torch's random state as before.

    Args:
        twin: a copy in one type of float, see `twin_of`, in which its code then makes all floats.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    dtype = next((one.dtype for one in twin.parameters() if one.dtype in _FLOATS), None) if twin else None
    with torch.no_grad(), private_random_state([]), ExitStack() as exits:
        if dtype:
            exits.enter_context(default_dtype(dtype))
            exits.enter_context(_OneType(dtype))
        torch.backends.mha.set_fastpath_enabled(False)
        exits.callback(torch.backends.mha.set_fastpath_enabled, fast)
        seed_torch(0)
        yield


_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_COMPLEX = (torch.complex128, torch.complex64)


class EagerMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode in which a model runs uncompiled."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or else torch imports its compiler first, which takes many seconds


class _OneType(EagerMode):
    """Code that names a type of float, `.half()` or `dtype=torch.float32`, gets that of the copy that it runs in."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._dtype = dtype

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if kwargs and kwargs.get("dtype") in _FLOATS:
            return func(*args, **{**kwargs, "dtype": self._dtype})
        if kwargs and kwargs.get("dtype") in _COMPLEX:
            return func(*args, **{**kwargs, "dtype": self._dtype.to_complex()})
        return func(*args, **(kwargs or {}))


def run_model(model: nn.Module, arguments: Arguments) -> list[Tensor]:
    """All tensors in the model's outputs; `StructureError` if it does not run, or there is none."""
    try:
        outputs = model(**arguments) if isinstance(arguments, dict) else model(*arguments)
    except StructureError:
        raise
    except Exception as error:  # a user's model may fail in any way
        raise StructureError(
            f"{type(model).__name__} does not run on the example inputs in"
            f" {'training' if model.training else 'evaluation'} mode: {type(error).__name__}: {first_line(error)}"
            f"{in_module(model, error)}; give a tensor, a tuple or a dictionary of its arguments, two examples or more"
        ) from error
    found = list(_tensors_in(outputs, set()))
    if not found:  # nothing would be kept whole, nor compared
        raise StructureError(f"{type(model).__name__} returns no tensor on the example inputs but {outputs!r:.60}")
    return found


def _tensors_in(outputs: object, seen: set[int]) -> Iterator[Tensor]:
    """All tensors in what a model returns, also in objects that torch knows nothing of, such as a dataclass."""
    for value in tree_flatten(outputs)[0]:
        if isinstance(value, Tensor):
            yield value
        elif id(value) not in seen and not isinstance(value, (nn.Module, type)):
            seen.add(id(value))
            inside = value if isinstance(value, Mapping) else getattr(value, "__dict__", {})
            yield from (each for one in list(inside.values()) for each in _tensors_in(one, seen))


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]


def in_module(model: nn.Module, error: BaseException) -> str:
    name = failing_module(model, error)
    return f" (in {name})" if name else ""


def failing_module(model: nn.Module, error: BaseException) -> str:
    """Name of the innermost module of `model` in whose code an exception was raised; empty for the model itself."""
    names = {id(module): name for name, module in model.named_modules()}
    found, frame = "", error.__traceback__
    while frame is not None:
        found = names.get(id(frame.tb_frame.f_locals.get("self")), found)
        frame = frame.tb_next
    return found
