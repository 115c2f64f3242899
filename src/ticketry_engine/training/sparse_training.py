"""`SparseTraining`: a module with the user's own parameters, whose layers under a mask run in sparse kernels."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import msgspec
import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self

from ticketry_engine.errors import CaptureError, EngineError, UsageError
from ticketry_engine.example_inputs import output_tensors, to_argument_tuple
from ticketry_engine.kernels.jit import Library
from ticketry_engine.kernels.target import target as find_target
from ticketry_engine.kernels.window import Array
from ticketry_engine.layers import layer_table, median_seconds
from ticketry_engine.results import Layer, Place
from ticketry_engine.support.entry_points import CHANGES, entry_point
from ticketry_engine.support.modules import apply_mask, masked_parameters
from ticketry_engine.support.process_state import private_random_state
from ticketry_engine.training.capture import module_class_without_wrappers
from ticketry_engine.training.kept_weights import PackedWeights
from ticketry_engine.training.lstm import LstmUnit, lstm_units, masks_of_lstms
from ticketry_engine.training.units import (
    LAYERS,
    NOT_COMPILED,
    TrainingContext,
    Unit,
    build_units,
    copy_without_hooks,
    is_within,
    replace_forwards,
)

VERSION = 6
"""Version of the kernels' arithmetic, part of `Machine`: raised whenever the same step would compute other bits."""

PRECISIONS = ("fp32", "bf16")

OUTSIDE = "outside of kernels"


class Enforcement(Protocol):
    """Interface of an object that keeps the pruned weights of a model at 0 until `release` is called."""

    def release(self) -> None:
        """Stop enforcing the mask."""


Enforce = Callable[[nn.Module, Mapping[str, Tensor]], Enforcement]


class SparseTraining(nn.Module):
    """A module that trains like the model under a mask, with kernels that compute only with retained weights.

    The module has the model's own parameters, buffers and submodules under their names. Therefore optimisers, state
    dicts, gradient clipping and checkpoints work as with the model, and training the module changes the model's
    weights.

    In training mode, convolutions, linear layers and LSTMs under the mask run in sparse kernels, forward and backward,
    together with batch norms, ReLUs, sums and pools around them. Everything else runs in torch. A layer whose density
    is too high for a speed-up, by thresholds that depend on the layer's shape, runs densely. ``print`` of the module
    shows where each layer runs. In evaluation mode the model itself runs in torch.

    Args:
        model: the model to train; float32, on the CPU.
        keep: parameter name -> bool tensor, True = retained. None: nothing is pruned, and kernels run only consecutive
            convolutions in which they are as fast as torch, on processors with AVX-512.
        example_inputs: a tensor, a tuple of arguments or a mapping of named arguments, with the batch first. Later
            calls may have other batch sizes.
        target: the processor to compile kernels for; ``"host"`` is the processor of this computer.
        precision: ``"fp32"`` or ``"bf16"``. With the latter, calls in training mode compute as under
            ``torch.autocast("cpu", torch.bfloat16)``: values between layers and their gradients are bfloat16,
            parameters and their gradients float32.
        enforce: function that is called with the model and the mask whenever the module gets a mask. It returns an
            object that keeps pruned weights at 0 outside of kernels until its `release` is called. None: pruned weights
            are set to 0 once, and the caller keeps them at 0.

    Raises:
        MaskError: if the mask does not fit the model.
        CaptureError: if the model cannot be called with the example inputs.
        EngineError: if the model is not in float32 on the CPU, or the processor cannot multiply bfloat16.
        UsageError: if `precision` is unknown.
        MissingExtraError: if llvmlite is not installed.

    Examples:
        >>> model, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)), torch.randn(16, 64)
        >>> fast = tk.sparse_training(model, tk.prune(model, 0.2, distribution="uniform"), x)
        >>> [layer.name for layer in fast.layers()], fast.untraced(), len(fast.profile(x, rounds=1))
        (['0', '2'], {}, 3)
        >>> fast.update(tk.prune(model, 0.1, distribution="uniform"))
        >>> dict(fast.named_kept_parameters())["0.weight"].numel(), len(fast.kept_parameters())
        (410, 4)
        >>> with fast.writing_late(), fast.running():
        ...     fast(x).sum().backward()
        >>> fast.release()
    """

    @entry_point(CHANGES)
    def __init__(
        self,
        model: nn.Module,
        keep: Mapping[str, Tensor] | None,
        example_inputs: Any,
        *,
        target: str = "host",
        precision: str = "fp32",
        enforce: Enforce | None = None,
    ) -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise UsageError(f"precision {precision!r} is not known: choose from {', '.join(PRECISIONS)}")
        self._enforce, self.precision = enforce, precision
        for name, parameter in model.named_parameters():
            if parameter.device.type != "cpu" or parameter.dtype != torch.float32:
                raise EngineError(
                    f"{name} is {parameter.dtype} on {parameter.device}: sparse training computes in float32 on the"
                    " CPU: move the model there, model.float().cpu(), before its optimiser is made"
                )
        # The model's own dictionaries: an assignment to one module changes the other, too.
        self._parameters, self._buffers, self._modules = model._parameters, model._buffers, model._modules
        self._model = (model,)
        library = Library(find_target(target))
        if precision == "bf16" and not library.target.bf16:
            raise EngineError(
                f"kernels for {library.target.name} on this processor ({library.target.cpu}) do not multiply bfloat16,"
                " which takes AVX512-BF16: train with precision='fp32'"
            )
        self._context = TrainingContext(library, half=precision == "bf16")
        self._units: list[Unit] = []
        self._lstms: list[LstmUnit] = []
        self._seconds: dict[str, float] = {}
        self._hold: Enforcement | None = None
        self._released = False
        self._weights: PackedWeights | None = None
        self._eager = torch.compiler.disable(self._forward, reason=NOT_COMPILED)  # type: ignore[no-untyped-call]
        self.update(keep)
        named = dict(example_inputs) if isinstance(example_inputs, Mapping) else {}
        self._capture_example(() if named else to_argument_tuple(example_inputs), named)
        self.training = model.training  # not train(), which would change the modes of the model's modules

    def update(self, mask: Mapping[str, Tensor] | None) -> None:
        """Use another mask from now on, or no mask if `mask` is None.

        Kernel tables are rebuilt at the next step; kernels are compiled only for shapes that are new.

        Raises:
            MaskError: if the mask does not fit the model.
        """
        model = self._model[0]
        if self._weights is not None:
            self._weights.synchronise()  # before the mask makes zeros in the model's tensors
        held = None
        if mask is not None and self._enforce is not None:
            held = self._enforce(model, mask)
        elif mask is not None:
            apply_mask(model, mask)
        if self._hold is not None:
            self._hold.release()
        self._hold, self._released, self.mask, self._modules_seen = held, False, mask, [*model.modules()]
        masks = {} if mask is None else masks_of_layers(model, mask)
        self._context.kept, self._context.masks = nonzero_mask_arrays(masks), masks
        if self._weights is not None:
            self._weights.adopt_mask(dict(model.named_modules()), masks)
            self._context.rows = {name: row for name, row in self._weights.parameters.items() if name in masks}
        before = {(unit.name, unit.module): unit for unit in self._units}
        self._units = [before.get((unit.name, unit.module), unit) for unit in build_units(model, self._context)]
        self._context.recurrent = {} if mask is None else masks_of_lstms(model, masks_by_parameter_id(model, mask))
        self._lstms = lstm_units(model, self._context)
        self._seconds = {}
        self._drop_regions()

    @property
    def _all_units(self) -> list[Unit | LstmUnit]:
        return [*self._units, *self._lstms]

    def _drop_regions(self) -> None:
        for unit in self._all_units:
            unit.drop_regions()

    def named_kept_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield (name in the model, parameter) for each parameter to train; weights under the mask are packed.

        A packed weight is a vector of the retained weights of a tensor, see `kept_parameters`.

        Raises EngineError if there is no mask.
        """
        if self.mask is None:
            raise EngineError("without a mask all weights are retained: train parameters() instead")
        self._prepare_call()
        if self._weights is None:
            masks, model = self._context.masks, self._model[0]
            self._weights = PackedWeights(
                dict(model.named_modules()), masks, self._context.library, stored=[self, model]
            )
            self._context.rows, self._context.weights = self._weights.parameters, self._weights
            self._drop_regions()
        rows = {id(row.dense): row.parameter for row in self._weights.rows.values()}
        for name, parameter in self._model[0].named_parameters():
            yield name, rows.get(id(parameter), parameter)

    def kept_parameters(self) -> list[nn.Parameter]:
        """Return the parameters to train, with convolutions and linear layers under the mask as packed weights.

        A packed weight is a vector of the retained weights of a tensor. If an optimiser gets these parameters instead
        of `parameters`, gradients, optimiser states and steps are as small as the mask. Optimisers that update each
        weight independently (SGD, the Adam family) compute the same as with dense weights.

        The model's tensors are updated after each step and before each call. They receive no gradients, so clip the
        gradients of the packed weights instead. If a tensor is replaced (by loading with ``assign=True``, or a rebuilt
        layer), the new tensor is used from the next call or step on. `update` converts packed weights to a new mask.

        Raises:
            EngineError: if there is no mask. At a later call or step: if a weight has another shape, dtype or device,
                if weights are tied differently, or if a hook is registered on the gradient of a tensor of the model.
        """
        return [parameter for _, parameter in self.named_kept_parameters()]

    @contextmanager
    def writing_late(self) -> Iterator[None]:
        """Within the block, do not write packed weights (`kept_parameters`) to the model's tensors after each step.

        Kernels read packed weights directly, and writing them to tensors takes much of the time of a step with large
        linear layers. Calls of this module (also in evaluation mode) and state dicts remain correct, because a tensor
        is updated before torch reads it there. Any other code that reads the model's tensors may find the weights of an
        earlier step: for example a copy, an average, or a call of the model outside of `running`.

            with fast.writing_late():
                for images, labels in loader: ...            # an epoch
            evaluate(model)

        Raises:
            EngineError: if there is no mask.
        """
        self.kept_parameters()
        assert self._weights is not None
        with self._weights.defer_tensor_writes():
            yield

    def _capture_example(self, example: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Capture the call with the example inputs, and the calls of modules in it, on a copy in training mode."""
        twin = copy_without_hooks(self._model[0]).train()
        root = next(unit for unit in self._units if not unit.name)
        form, _ = root.find_traced_form(example, named, twin=twin)
        if form.traced is not None and not form.wholes:
            return
        calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

        def make_call_recorder(name: str) -> Callable[..., None]:
            return lambda module, args, kwargs: None if name in calls else calls.update({name: (args, kwargs)})

        handles = [
            twin.get_submodule(unit.name).register_forward_pre_hook(make_call_recorder(unit.name), with_kwargs=True)
            for unit in self._units
            if unit.name
        ]
        try:
            with private_random_state([]), torch.no_grad():
                twin(*example, **named)
        except Exception as error:
            raise CaptureError(
                f"the example inputs do not run through {type(twin).__name__} in training mode: {error}"
            ) from error
        for handle in handles:
            handle.remove()
        inside, apart = ([""], [*form.wholes]) if form.traced is not None else ([], [])
        for unit in self._units:
            name = unit.name
            if name in calls and (not is_within(name, inside) or is_within(name, apart)):
                form, _ = unit.find_traced_form(*calls[name], twin=twin.get_submodule(name))
                if form.traced is not None:
                    inside, apart = [*inside, name], [*apart, *(unit.name_in_model(whole) for whole in form.wholes)]

    def release(self) -> None:
        """Stop enforcing the mask, and disconnect the parameters of `kept_parameters` from the model."""
        weights, self._weights, self._context.weights, self._context.rows = self._weights, None, None, {}
        self._released = True
        if self._hold is not None:
            self._hold.release()
            self._hold = None
        if weights is not None:
            self._drop_regions()
            try:
                weights.synchronise()
            finally:
                weights.release()

    def train(self, mode: bool = True) -> Self:
        self._model[0].train(mode)
        self.training = mode
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._eager(*args, **kwargs)

    def _prepare_call(self) -> None:
        """Before a call, take over what the user changed: rebuilt layers, packed weights and dense tensors."""
        if not (self._released and self.mask is not None) and [*self._model[0].modules()] != self._modules_seen:
            self.update(self.mask)
        if self._weights is not None:
            self._weights.prepare_call()

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        self._prepare_call()
        if (call := self._units[0].find_direct_call(args, kwargs)) is not None:
            return call()
        with replace_forwards(self._all_units):
            return self._model[0](*args, **kwargs)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Within the block, run calls of the model's modules in kernels, also calls from methods other than `forward`.

        For example, `model.read(tokens)` within `with fast.running():` computes in kernels.
        """
        self._prepare_call()
        with replace_forwards(self._all_units):
            yield

    def profile(self, *args: Any, rounds: int = 3, **kwargs: Any) -> list[Layer]:
        """Measure the seconds of each layer, forward and backward, on one thread; return a row for each layer.

        Rows have the same fields as those of `layers`.

        Seconds are medians of `rounds` calls; `layers` and ``print`` of the module show them from then on. Operations
        are timed one by one; the row "outside of kernels" is the time of torch and of Python. Gradients, running
        statistics and random numbers are restored.
        """
        model = self._model[0]
        gradients = [(one, one.grad) for one in model.parameters()]
        buffers = [(one, one.clone()) for one in model.buffers()]
        try:
            with private_random_state([]):
                self._run_pass(args, kwargs)  # creates plans and kernels
                self._seconds = median_seconds(lambda: self._time_pass(args, kwargs), rounds)
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
        return self.layers()

    def _run_pass(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._model[0].zero_grad()  # or they would be added to
        made = [one for one in output_tensors(self(*args, **kwargs)) if one.requires_grad]
        torch.autograd.backward(made, [torch.ones_like(one) for one in made])

    def _time_pass(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, float]:
        """Return the seconds of one forward and backward pass, by the name of a layer or of another operation."""
        steps = [step for unit in self._all_units for step in unit.steps]
        for step in steps:
            step.seconds = {}
        began = time.perf_counter()
        try:
            self._run_pass(args, kwargs)
            whole, found = time.perf_counter() - began, dict[str, float]()
            for unit in self._all_units:
                for name, seconds in unit.layer_seconds().items():
                    found[name] = found.get(name, 0.0) + seconds
        finally:
            for step in steps:
                step.seconds = None
        return {**found, OUTSIDE: whole - sum(found.values())}

    def layers(self) -> list[Layer]:
        """Return a row for each layer with weights: where the layer runs, its density, and why it runs in torch.

        The reason is empty if the layer runs in kernels. After `profile`, rows have seconds, and there are more rows
        for all other work that takes time.
        """
        rows = describe_layers(self._model[0], self.mask, self._context.kept, self._units, self._lstms)
        seconds = self._seconds
        total, described = sum(seconds.values()), {row.name for row in rows}
        rows += [
            Layer(name, "", "torch" if name == OUTSIDE else "engine", "" if name == OUTSIDE else "passes")
            for name in seconds
            if name not in described
        ]
        return [
            msgspec.structs.replace(row, seconds=seconds[row.name], share=seconds[row.name] / total)
            if row.name in seconds
            else row
            for row in rows
        ]

    def untraced(self) -> dict[str, str]:
        """Return why modules could not be traced, by module name; only parts of these modules run in kernels."""
        lstms = {unit.name for unit in self._lstms}  # the model itself may be an LSTM
        return {
            unit.name: unit.last.why
            for unit in self._units
            if unit.last is not None and unit.last.why and unit.name not in lstms
        }

    def __repr__(self) -> str:
        rows, where = self.layers(), ", in bfloat16" if self._context.half else ""
        lines = [layer_table(rows, f"Sparse training for {self._context.library.target.name}{where}")]
        lines += [f"{name or 'The model'} is not traced: {why}" for name, why in self.untraced().items()]
        if not any(row.where == "engine" for row in rows):
            lines.append("Nothing runs in kernels.")
        return "\n".join(lines)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        raise EngineError("a SparseTraining cannot be copied: copy the model, and call sparse_training with the copy")

    def __reduce__(self) -> Any:
        raise EngineError("a SparseTraining cannot be pickled: save its state_dict, or the model")


train = SparseTraining
"""The name under which `ticketry_engine` offers the class, as the counterpart of `compile`."""


# -- The tensors of a mask by layer ------------------------------------------------------------------------------------


def masks_by_parameter_id(model: nn.Module, mask: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """Return the tensors of the mask by the ``id`` of their parameters."""
    return {id(parameter): mask[name] for name, parameter in masked_parameters(model, mask).items()}


def masks_of_layers(model: nn.Module, mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the mask of each convolution and linear layer, by the layer's name."""
    found = masks_by_parameter_id(model, mask)
    # Not `module.weight`, which a spectral norm computes anew at each access.
    weights = (
        (name, id(one._parameters.get("weight"))) for name, one in model.named_modules() if isinstance(one, LAYERS)
    )
    return {name: found[weight] for name, weight in weights if weight in found}


def nonzero_mask_arrays(masks: Mapping[str, Tensor]) -> dict[str, Array]:
    """Return the mask of each layer, by the layer's name, as a bool array [O, I, kernel rows, kernel columns]."""
    kept = {name: tensor.numpy() for name, tensor in masks.items()}
    return {
        name: np.ascontiguousarray(each.reshape(*each.shape, 1, 1) if each.ndim == 2 else each)
        for name, each in kept.items()
    }


# -- layer rows --------------------------------------------------------------------------------------------------------


ALL_WEIGHTS = "all weights"
"""Kernel name of a layer that computes with all its weights; pruned weights are zeros."""


def describe_layers(
    model: nn.Module,
    mask: Collection[str] | None,
    kept: Mapping[str, Array],
    units: Sequence[Unit],
    lstms: Sequence[LstmUnit],
) -> list[Layer]:
    """Return a row, without times, for each layer that kernels can run, and for each other module under the mask."""
    inside = {name for unit in units for name in unit.layers_in_kernels()}
    dense = {name for unit in units for name in unit.dense_layers()}
    reasons = {name: why for unit in units for name, why in unit.reasons_for_torch().items()}
    held = {name.rpartition(".")[0] for name in mask or ()}
    recurrent = {unit.name: unit for unit in lstms}
    rows = []
    for name, module in model.named_modules():
        if not isinstance(module, LAYERS):
            if name in recurrent:
                unit = recurrent[name]
                how = "" if unit.reason_for_torch else "sums, products"
                place: Place = "torch" if unit.reason_for_torch else "engine"
                rows.append(Layer(name, "lstm", place, how, unit.density, unit.count, why=unit.reason_for_torch))
            elif name in held:
                kind = type(module).__name__
                rows.append(Layer(name, kind.lower(), "torch", why=f"no kernels for {kind}"))
            continue
        found = kept.get(name)
        density = None if found is None else float(found.mean())
        count = None if found is None else int(found.sum())
        kind = "linear" if isinstance(module, nn.Linear) else "conv2d"
        if name in inside:
            how = ALL_WEIGHTS if name in dense else "sums, products"
            rows.append(Layer(name, kind, "engine", how, density, count))
        else:
            plain = module_class_without_wrappers(module) in LAYERS
            why = reasons.get(name, "not called as a module" if plain else f"no kernels for {type(module).__name__}")
            rows.append(Layer(name, kind, "torch", "", density, count, why=why))
    return rows
