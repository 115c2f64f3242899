"""Copy models, converted to a single float type and sharing unchanged parts, and compare the outputs of the copies."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from ticketry.core.model_calls import without_fused_layers
from ticketry.errors import StructureError
from ticketry_engine.support.modules import copy_module as copy_module
from ticketry_engine.support.modules import parameters_and_buffers
from ticketry_engine.support.process_state import default_dtype, private_random_state
from ticketry_engine.support.seeds import seed_torch

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""Example inputs of a model: a single tensor, a tuple of all arguments, or a mapping from names to arguments."""

Arguments = tuple[Any, ...] | dict[str, Any]


def choose_tracing_dtype(model: nn.Module) -> torch.dtype:
    """Return the float type in which to trace a model.

    It is float64 if the model has float64 parameters or recurrent layers, else float32. Recurrent layers need float64,
    because fused float32 kernels store their weights in another order. Other models stay in float32, because some have
    constants that cannot be converted, and convolutions in float64 are slow.
    """
    double = any(parameter.dtype == torch.float64 for parameter in model.parameters())
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    return torch.float64 if double or recurrent else torch.float32


def copy_in_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return a copy of the model on the CPU, with all floats converted to `dtype` and without gradients."""

    def convert_dtype(tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", _converted_dtype(tensor, dtype), copy=True)

    plain = [tensor for tensor in parameters_and_buffers(model) if type(tensor) in (nn.Parameter, Tensor)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # recurrent layers warn of weights that are not contiguous
        try:
            model_copy = copy_module(model, {id(tensor): convert_dtype(tensor) for tensor in plain})
            model_copy._apply(lambda tensor: tensor.to("cpu", _converted_dtype(tensor, dtype)))  # type: ignore[no-untyped-call]
        except Exception as error:  # a user's model may contain anything
            raise StructureError(
                f"{type(model).__name__} cannot be copied ({type(error).__name__}: {str(error)[:120]}):"
                " make what it holds besides parameters and buffers fit for copy.deepcopy"
            ) from error
    return model_copy.requires_grad_(False)


def _converted_dtype(tensor: Tensor, dtype: torch.dtype) -> torch.dtype | None:
    """Return the type of a tensor after floats are converted to `dtype`; None for tensors that are no floats."""
    if tensor.is_complex():
        return dtype.to_complex()
    return dtype if tensor.is_floating_point() else None


def copy_sharing_parameters(model: nn.Module, tensors: Mapping[int, Tensor] | None = None) -> nn.Module:
    """Return a copy of `model` that shares its parameters; those whose `id` is in `tensors` are replaced."""
    return copy_module(model, {**{id(parameter): parameter for parameter in model.parameters()}, **(tensors or {})})


def copy_arguments(inputs: Inputs, dtype: torch.dtype) -> Arguments:
    """Return example inputs as a tuple or dict of arguments, copied to the CPU, with floats converted to `dtype`."""

    def convert_dtype(value: object) -> object:
        if not isinstance(value, Tensor):
            return value
        return value.detach().to("cpu", _converted_dtype(value, dtype), copy=True)

    if isinstance(inputs, Mapping):  # a tokenizer's own mapping type would be a leaf
        converted: Arguments = tree_map(convert_dtype, dict(inputs))
    else:
        converted = tree_map(convert_dtype, inputs if isinstance(inputs, tuple) else (inputs,))
    return converted


def clone_arguments(arguments: Arguments) -> Arguments:
    """Return arguments with all tensors copied, so that a model may write to them."""
    copies: Arguments = tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, arguments)
    return copies


@contextmanager
def traceable_operations(model_copy: nn.Module | None = None) -> Iterator[None]:
    """Within the block, disable gradients and fused transformer layers; afterwards restore torch's random state.

    The code of `model_copy`, whose floats have a single type (see `copy_in_dtype`), creates floats of this type too.
    """
    dtype = next((one.dtype for one in model_copy.parameters() if one.dtype in _FLOATS), None) if model_copy else None
    with torch.no_grad(), private_random_state([]), without_fused_layers(), ExitStack() as exits:
        if dtype:
            exits.enter_context(default_dtype(dtype))
            exits.enter_context(_FloatTypeMode(dtype))
        seed_torch(0)
        yield


_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_COMPLEX = (torch.complex128, torch.complex64)


class EagerMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Base class of dispatch modes in which a model runs uncompiled."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, which takes seconds


class _FloatTypeMode(EagerMode):
    """A dispatch mode that replaces float types in a model's code, such as `dtype=torch.float32`, by a given type."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._dtype = dtype

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if named.get("dtype") in _FLOATS:
            named["dtype"] = self._dtype
        elif named.get("dtype") in _COMPLEX:
            named["dtype"] = self._dtype.to_complex()
        return func(*args, **named)


def run_model(model: nn.Module, arguments: Arguments) -> list[Tensor]:
    """Run a model and return all tensors in its outputs."""
    try:
        outputs = model(**arguments) if isinstance(arguments, dict) else model(*arguments)
    except StructureError:
        raise
    except Exception as error:  # a user's model may fail in any way
        where = find_failing_module(model, error)
        raise StructureError(
            f"{type(model).__name__} does not run on the example inputs in"
            f" {'training' if model.training else 'evaluation'} mode: {type(error).__name__}: {first_line(error)}"
            f"{where and f' (in {where})'}; give a tensor, a tuple or a dictionary of its arguments, two"
            " examples or more"
        ) from error
    found = list(_iterate_tensors(outputs, set()))
    if not found:  # nothing to compare
        raise StructureError(f"{type(model).__name__} returns no tensor on the example inputs but {outputs!r:.60}")
    return found


def _iterate_tensors(outputs: object, seen: set[int]) -> Iterator[Tensor]:
    """Yield all tensors in a model's outputs, including tensors in objects such as dataclasses."""
    for value in tree_flatten(outputs)[0]:
        if isinstance(value, Tensor):
            yield value
        elif id(value) not in seen and not isinstance(value, (nn.Module, type)):
            seen.add(id(value))
            inside = value if isinstance(value, Mapping) else getattr(value, "__dict__", {})
            yield from (each for one in list(inside.values()) for each in _iterate_tensors(one, seen))


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]


def find_failing_module(model: nn.Module, error: BaseException) -> str:
    """Return the name of the innermost module whose code raised `error`; "" for the model itself."""
    names = {id(module): name for name, module in model.named_modules()}
    found, frame = "", error.__traceback__
    while frame is not None:
        found = names.get(id(frame.tb_frame.f_locals.get("self")), found)
        frame = frame.tb_next
    return found


class PartialCopies:
    """Creates many copies of a model that share all modules in which nothing changes.

    Modules are shared only if no module of the model stores anything during a run, such as a width or a result, and
    none refers to a module that is not its child. Otherwise all modules are copied.
    """

    def __init__(self, model: nn.Module, arguments: Arguments) -> None:
        self._model = model
        self._parameters: dict[int, Tensor] = {id(parameter): parameter for parameter in model.parameters()}
        self._owners: dict[int, list[nn.Module]] = {}
        for module in model.modules():
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None:
                    self._owners.setdefault(id(tensor), []).append(module)
        self._can_share = not any(
            _refers_to_other_modules(module) for module in model.modules()
        ) and _stores_nothing_in_run(model, arguments)

    def copy(self, tensors: Mapping[int, Tensor], modules: Iterable[nn.Module] = ()) -> nn.Module:
        """Return a copy in which `tensors` replace the parameters and buffers with these `id`s."""
        shared: dict[int, nn.Module] = {}
        if self._can_share:
            changed = {id(module) for module in modules}
            changed |= {id(owner) for tensor in tensors for owner in self._owners[tensor]}
            _collect_unchanged_modules(self._model, changed, shared, {})
        return copy_module(self._model, {**self._parameters, **tensors}, shared)


def _collect_unchanged_modules(
    module: nn.Module, changed: set[int], shared: dict[int, nn.Module], known: dict[int, bool]
) -> bool:
    """Add to `shared` each module, in `module` and below, that is unchanged with all its children.

    Return whether `module` is unchanged. `changed` contains ids of changed modules; `known` stores results by id.
    """
    if id(module) not in known:
        same = [_collect_unchanged_modules(child, changed, shared, known) for child in module.children()]
        known[id(module)] = all(same) and id(module) not in changed
        if known[id(module)]:
            shared[id(module)] = module
    return known[id(module)]


def _refers_to_other_modules(module: nn.Module) -> bool:
    """Return whether an attribute of a module refers to a module other than its children, or to a method of one."""
    held = (value for name, value in vars(module).items() if name != "_modules")
    found = (getattr(part, "__self__", part) for value in held for part in _iterate_nested_values(value))
    return any(isinstance(part, nn.Module) and part is not module for part in found)


def _stores_nothing_in_run(model: nn.Module, arguments: Arguments) -> bool:
    """Return whether the attributes of all modules stay the same when the model runs."""
    model_copy = copy_sharing_parameters(model).eval()
    before = list(_iterate_stored_values(model_copy))
    try:
        with traceable_operations(model_copy):
            run_model(model_copy, clone_arguments(arguments))
    except StructureError:  # reported by the trial
        return False
    after = list(_iterate_stored_values(model_copy))
    return len(before) == len(after) and all(
        one is other and version == later for (one, version), (other, later) in zip(before, after, strict=True)
    )


def _iterate_stored_values(model: nn.Module) -> Iterator[tuple[Any, int]]:
    """Yield (value, version) for all values stored in modules; in-place changes of a tensor raise its version."""
    for module in model.modules():
        for name, value in vars(module).items():
            for part in (name, *_iterate_nested_values(value)):
                yield part, part._version if isinstance(part, Tensor) else 0


def _iterate_nested_values(value: object) -> Iterator[object]:
    """Yield a value and, if it is a container, all values in it at any depth."""
    yield value
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple, set, frozenset)):
        for part in value:
            yield from _iterate_nested_values(part)


FLOAT64_TOLERANCE = 1e-6
"""Largest allowed difference in float64, relative to the largest output; permits casts to float32 in models."""

RETRY_IN_FLOAT64 = 1e-5
"""Relative difference in float32 above which the outputs are computed and compared again in float64."""

FLOAT32_TOLERANCE = 1e-3
"""Largest allowed relative difference in float32, for models that do not run in float64."""

TRAINING_TOLERANCE = 3e-2
"""Largest allowed relative difference in training mode, where norms over few examples amplify errors."""


@dataclass(frozen=True)
class Problem:
    """Describes how a model without some channels differs from the masked model, or why it fails."""

    text: str
    where: str = ""
    """Name of the module whose code failed; empty if unknown."""
    ran: bool = True
    """Whether both models ran, so that only their outputs differ."""


def compare_models(
    masked: nn.Module, small: nn.Module, arguments: Arguments, *, training: bool = False
) -> Problem | None:
    """Return how the outputs of a smaller model differ from the outputs of the masked model; None if they are equal.

    If outputs differ in float32, both models are run again in float64.

    Args:
        masked: the model in which the removed channels are zeros.
        small: the smaller model without these channels, in the same float type.
        training: whether to compare in training mode, with random numbers replaced by the middle of their range. In
            training mode the result is also None if the masked model does not run (for example because a norm sees one
            example) or is not deterministic.
    """
    try:
        wanted = _run_for_outputs(masked, arguments, training)
    except StructureError as error:
        return None if training else _describe_failure(masked, error, training)
    try:
        found = _run_for_outputs(small, arguments, training)
    except StructureError as error:
        return _describe_failure(small, error, training)
    problem = _compare_outputs(masked, small, arguments, wanted, found, training)
    if problem and training and _largest_difference(wanted, _run_for_outputs(masked, arguments, training, seed=1)) != 0:
        return None
    return problem


def _describe_failure(model: nn.Module, error: StructureError, training: bool) -> Problem:
    cause = error.__cause__
    where = find_failing_module(model, cause) if cause else ""
    text = first_line(cause) if cause and str(cause) else str(error)
    return Problem(f"in training mode, {text}" if training else text, where, ran=False)


def _compare_outputs(
    masked: nn.Module, small: nn.Module, arguments: Arguments, wanted: list[Tensor], found: list[Tensor], training: bool
) -> Problem | None:
    mode = " in training mode" if training else ""
    if [tensor.shape for tensor in wanted] != [tensor.shape for tensor in found]:
        return Problem(f"its outputs have other shapes{mode}")
    worst, double = _largest_difference(wanted, found), choose_tracing_dtype(masked) == torch.float64
    if not double and (worst > RETRY_IN_FLOAT64 or not all(bool(tensor.isfinite().all()) for tensor in wanted)):
        exact = copy_arguments(arguments, torch.float64)
        with suppress(StructureError):  # some models do not run in float64
            pair = [_run_for_outputs(copy_in_dtype(one, torch.float64), exact, training) for one in (masked, small)]
            worst, double = _largest_difference(*pair), True
    most = FLOAT64_TOLERANCE if double else TRAINING_TOLERANCE if training else FLOAT32_TOLERANCE
    return None if worst <= most else Problem(f"its outputs{mode} differ by {worst:.2g} of the largest")


def _run_for_outputs(model: nn.Module, arguments: Arguments, training: bool, seed: int = 0) -> list[Tensor]:
    if not training:
        with traceable_operations(model):
            return run_model(model, clone_arguments(arguments))
    learning = copy_sharing_parameters(model).train()  # running statistics are not shared
    with traceable_operations(learning), _ConstantDrawsMode():  # type: ignore[no-untyped-call]
        seed_torch(seed)
        return run_model(learning, clone_arguments(arguments))


def _largest_difference(wanted: list[Tensor], found: list[Tensor]) -> float:
    """Return the largest difference of outputs, relative to the largest output; infinity if shapes differ."""
    if [tensor.shape for tensor in wanted] != [tensor.shape for tensor in found]:
        return float("inf")
    return max((_relative_difference(*pair) for pair in zip(wanted, found, strict=True)), default=0.0)


def _relative_difference(one: Tensor, other: Tensor) -> float:
    if not one.numel():
        return 0.0
    same = (one == other) | (one.isnan() & other.isnan())
    apart = torch.where(same, 0.0, (one.double() - other.double()).abs())
    finite = one.double().nan_to_num(0.0, 0.0, 0.0).abs().max()
    return float(apart.max() / torch.clamp(finite, min=1e-12)) if bool(apart.isfinite().all()) else float("inf")


# -- without chance ---------------------------------------------------------------------------------------------------


class _ConstantDrawsMode(EagerMode):  # type: ignore[no-untyped-call]
    """A dispatch mode that replaces random numbers by constants.

    Without it, the masked and the smaller model would draw different numbers, because their tensors differ in shape.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        steady = _CONSTANT_DRAWS.get(func._schema.name.removeprefix("aten::"))
        named = dict(kwargs or {})
        if steady is None:
            return func(*args, **named)
        named.pop("generator", None)
        return steady(*args, **named)


_CONSTANT_DRAWS: dict[str, Callable[..., Any]] = {
    "bernoulli": lambda share, *_, **__: torch.ones_like(share),
    "bernoulli_": lambda tensor, *_, **__: tensor.fill_(1),
    "native_dropout": lambda tensor, *_: (tensor.clone(), torch.ones_like(tensor, dtype=torch.bool)),
    "rand": lambda size, **named: torch.full(size, 0.5, **named),
    "randn": lambda size, **named: torch.zeros(size, **named),
    "rand_like": lambda other, **named: torch.full_like(other, 0.5, **named),
    "randn_like": lambda other, **named: torch.zeros_like(other, **named),
    "uniform_": lambda tensor, low=0.0, high=1.0: tensor.fill_((low + high) / 2),
    "normal_": lambda tensor, mean=0.0, std=1.0: tensor.fill_(mean),
    "exponential_": lambda tensor, rate=1.0: tensor.fill_(1 / rate),
}
"""Name of a random operation -> function with the same arguments that returns constants instead."""
