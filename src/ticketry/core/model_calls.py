"""Call a model on example inputs without changing it, and find how the call uses its weights in products."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ticketry.core.scope import Scope
from ticketry.errors import UsageError
from ticketry_engine.support.entry_points import restore_callers_defaults
from ticketry_engine.support.process_state import private_random_state


@contextmanager
def without_parameter_gradients(model: nn.Module) -> Iterator[None]:
    """Within the block, compute no gradients of parameters, which saves time if only other gradients are needed."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def compilation_disabled(model: nn.Module) -> Iterator[None]:
    """Within the block, run compiled modules uncompiled, and recurrent modules without cuDNN.

    Compiled code has no second derivatives, and is compiled again after each change of mode; cuDNN has no gradients in
    evaluation mode.
    """
    with ExitStack() as stack:
        if any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in model.modules()):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if any(isinstance(module, nn.RNNBase) for module in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


def call_in_evaluation(model: nn.Module, example_inputs: Any, *, gradients: bool = False) -> Any:
    """Call a model in evaluation mode and return its output, which can be differentiated only with `gradients`."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with (
            torch.set_grad_enabled(gradients),
            private_random_state([]),
            restore_callers_defaults(),
            compilation_disabled(model),
        ):
            if isinstance(example_inputs, Mapping):
                return model(**example_inputs)
            return model(*(example_inputs if isinstance(example_inputs, (tuple, list)) else (example_inputs,)))
    except Exception as error:  # a user's model may fail in any way
        text = (str(error).splitlines() or [""])[0]
        raise UsageError(
            f"{type(model).__name__} does not run on the example inputs: {type(error).__name__}: {text}; give a tensor,"
            " a tuple or a dictionary of its arguments, in their types and on the model's device"
        ) from error
    finally:
        for module, mode in modes.items():
            module.training = mode


COUNTED_LAYERS = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
"""Linear layers and convolutions, whose number of multiplications follows from the size of their outputs."""

_GROUPED = "_grouped_mm"
_FACTOR_POSITIONS = {
    **dict.fromkeys(("mm", "bmm", "mv", _GROUPED), (0, 1)),
    **dict.fromkeys(("addmm", "baddbmm", "addmv"), (1, 2)),
}
"""Operation -> positions of the two factors among its arguments.

The operation sums over the last axis of the first factor, and over the last but one axis of the second factor.
"""


@dataclass(frozen=True)
class FactorUse:
    """States how a matrix product or convolution uses a parameter, or a part of a parameter."""

    summed: frozenset[int]
    """Dimensions of the parameter over which the product sums: the inputs."""
    rows: frozenset[int]
    """Dimensions of the parameter that become outputs; any further dimensions index separate products."""
    convolution: bool = False
    groups: int = 1


def find_factor_uses(
    model: nn.Module, parameters: Mapping[str, Tensor], example_inputs: Any
) -> dict[str, set[FactorUse]]:
    """Return, for each parameter, the ways in which products use it in a call of `model`; an empty set if none does.

    Parameters are recognised by their memory, so products with a tensor computed from a parameter do not count.
    """
    products = _ProductRecorder(parameters)
    with torch.inference_mode(False), without_fused_layers(), products:
        call_in_evaluation(model, example_inputs)
    return products.uses


def multiplications_per_weight(
    model: nn.Module, parameters: Mapping[str, Tensor], example_inputs: Any
) -> dict[str, int]:
    """Return, for each parameter, the number of multiplications by each of its weights in a call in evaluation mode.

    For layers in `COUNTED_LAYERS`, the number is computed from the size of their outputs, which works even if the model
    is sharded over several devices. Other uses, such as `linear(x, self.encoder.weight.t())`, are counted from the
    products that torch computes. If the two counts differ, the larger is returned.
    """
    by_layers = dict.fromkeys(parameters, 0)
    names = {id(parameter): name for name, parameter in parameters.items()}

    def count_uses_per_weight(name: str, module: nn.Module, inputs: Sequence[Any], output: Tensor) -> None:
        made = inputs[0] if getattr(module, "transposed", False) and inputs else output
        by_layers[name] += made.numel() // int(getattr(module, "weight").shape[0])  # noqa: B009

    handles, products = [], _ProductRecorder(parameters)
    for module in model.modules():
        name = names.get(id(module._parameters.get("weight")))
        if name is not None and isinstance(module, COUNTED_LAYERS):
            handles.append(module.register_forward_hook(partial(count_uses_per_weight, name)))
    try:
        with without_fused_layers(), products:
            call_in_evaluation(model, example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    sizes = {name: max(1, parameter.numel()) for name, parameter in parameters.items()}
    return {name: max(by_layers[name], products.multiplications[name] // sizes[name]) for name in parameters}


def count_multiplications(model: nn.Module, scope: Scope, example_inputs: Any) -> dict[str, int]:
    """Return, for each parameter in scope, the number of multiplications by each of its weights in a call of `model`.

    The model is called in evaluation mode. All calls of a layer and all other uses of its weight are counted. Padding
    counts like any other input. A parameter without any multiplication is an error.
    """
    parameters, known = scope.parameters(model), countable_parameters(model, scope)
    found = multiplications_per_weight(model, parameters, example_inputs)
    if unknown := [name for name in parameters if name not in known and not found[name]]:
        raise UsageError(
            f"multiplications are counted of linear and convolution layers and other products, not of"
            f" {', '.join(unknown)}: spare them in the scope, or ask for a density"
        )
    if idle := [name for name, times in found.items() if not times]:
        raise UsageError(f"a call with the example inputs does not use {', '.join(idle)}: spare them in the scope")
    return found


def countable_parameters(model: nn.Module, scope: Scope) -> list[str]:
    """Return the names of parameters in scope that are weights of linear or convolution layers."""
    weights = {
        id(weight)
        for module in model.modules()
        if isinstance(module, COUNTED_LAYERS) and (weight := module._parameters.get("weight")) is not None
    }
    return [name for name, parameter in scope.parameters(model).items() if id(parameter) in weights]


@contextmanager
def without_fused_layers() -> Iterator[None]:
    """Within the block, disable torch's fused transformer layers, because dispatch modes do not see their products."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


class _ProductRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode that records products in which a parameter, or a view of a parameter, is a factor.

    Views matter, because attention reads keys and values from one part of a weight and queries from another part.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.uses: dict[str, set[FactorUse]] = {name: set() for name in parameters}
        self.multiplications = dict.fromkeys(parameters, 0)
        self._parameters = parameters
        addresses = sorted((_data_address(one), one.nbytes, name) for name, one in parameters.items())
        self._addresses = [address for address in addresses if address[0]]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        operation = func.overloadpacket.__name__
        if operation == "convolution":
            self._record_convolution(args[0], args[1], output, transposed=bool(args[6]), groups=int(args[8]))
        elif operation in _FACTOR_POSITIONS:
            one, other = (args[position] for position in _FACTOR_POSITIONS[operation])
            multiplications = one.numel() * (int(other.shape[-1]) if other.dim() > 1 else 1)
            if operation == _GROUPED:  # multiplications of experts depend on the data
                multiplications = 0
            self._record_product(one, multiplications, summed=one.dim() - 1, row=one.dim() - 2)
            row = other.dim() - 1 if other.dim() > 1 else -1
            self._record_product(other, multiplications, summed=max(0, other.dim() - 2), row=row)
        return output

    def _record_convolution(self, x: Tensor, weight: Tensor, output: Tensor, *, transposed: bool, groups: int) -> None:
        name = self._find_parameter(weight)
        if not name:
            return
        self.multiplications[name] += (x if transposed else output).numel() * weight[0].numel()
        if weight.shape == self._parameters[name].shape:
            inputs, outputs = (0, 1) if transposed else (1, 0)
            self.uses[name].add(FactorUse(frozenset((inputs,)), frozenset((outputs,)), True, groups))

    def _record_product(self, factor: Tensor, multiplications: int, *, summed: int, row: int) -> None:
        name = self._find_parameter(factor)
        if not name:
            return
        self.multiplications[name] += multiplications
        parameter = self._parameters[name]
        rows = _covered_dimensions(parameter, factor, row) if row >= 0 else frozenset[int]()
        self.uses[name].add(FactorUse(_covered_dimensions(parameter, factor, summed), rows))

    def _find_parameter(self, tensor: Any) -> str | None:
        """Return the name of the parameter that `tensor` is a view of; None if there is no such parameter."""
        if not isinstance(tensor, Tensor) or not (address := _data_address(tensor)):
            return None
        before = bisect_right(self._addresses, address, key=itemgetter(0)) - 1
        begin, size, name = self._addresses[before] if before >= 0 else (0, 0, "")
        return name if address < begin + size else None


def _covered_dimensions(parameter: Tensor, view: Tensor, axis: int) -> frozenset[int]:
    """Return the dimensions of a parameter that the given axis of a view covers; several if the view merges them."""
    length, stride = view.shape[axis], view.stride(axis)
    found: set[int] = set()
    while length > 1:
        same = [
            dimension
            for dimension in range(parameter.dim())
            if parameter.stride(dimension) == stride and parameter.shape[dimension] > 1
        ]
        if not same or same[0] in found:
            break
        found.add(same[0])
        length = -(-length // parameter.shape[same[0]])
        stride *= parameter.shape[same[0]]
    return frozenset(found)


def _data_address(tensor: Tensor) -> int:
    try:
        return tensor.data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0
