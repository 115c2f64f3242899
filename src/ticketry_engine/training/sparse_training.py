"""The module that `train` makes: the user's own parameters and modules, with masked layers in kernels."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import msgspec
import torch
from torch import Tensor, nn
from typing_extensions import Self

from ticketry_engine.errors import CaptureError, EngineError, UsageError
from ticketry_engine.example_inputs import as_arguments, outputs_of
from ticketry_engine.kernels.jit import Library
from ticketry_engine.kernels.target import target as find_target
from ticketry_engine.layers import median_seconds, table
from ticketry_engine.results import Layer
from ticketry_engine.support.entry_points import CHANGES, entry_point
from ticketry_engine.support.modules import apply_mask
from ticketry_engine.support.process_state import private_random_state
from ticketry_engine.training.kept_weights import KeptWeights
from ticketry_engine.training.layer_masks import by_parameter, kept_of, masks_of_layers
from ticketry_engine.training.layer_rows import rows_of
from ticketry_engine.training.lstm_unit import LstmUnit, lstm_units, masks_of_lstms
from ticketry_engine.training.tracing import copy_of
from ticketry_engine.training.units import NOT_COMPILED, Context, Unit, running, units_of, within

VERSION = 6
"""Of the kernels' numbers: raised whenever the same step would give other bits than before, for keys name it."""

PRECISIONS = ("fp32", "bf16")

OUTSIDE = "outside of kernels"


class Enforcement(Protocol):
    """Keeps the pruned weights of a model at 0."""

    def release(self) -> None:
        """Stop; the weights stay as they are."""


Enforce = Callable[[nn.Module, Mapping[str, Tensor]], Enforcement]


def train(
    model: nn.Module,
    keep: Mapping[str, Tensor] | None,
    example_inputs: Any,
    *,
    target: str = "host",
    precision: str = "fp32",
    enforce: Enforce | None = None,
) -> SparseTraining:
    """Return a module that trains like the model under a mask, with kernels that compute only what is retained.

    It has the model's own parameters, buffers and modules under their names: optimisers, state dicts, clipping and
    checkpoints work as with the model, and what it learns is in the model.

    In training mode, convolutions, linear layers and LSTMs under the mask (and batch norms, ReLUs, sums and pools
    around them) run in sparse kernels, forward and backward; everything else runs in torch. Layers that kernels would
    slow down, by a fixed rule of density and shape, run densely: ``print`` of the module tells. In evaluation mode the
    model itself runs in torch.

    Args:
        model: float32, on the CPU.
        keep: parameter name -> bool tensor, True = retained. None: nothing is pruned, and only consecutive convolutions
            that kernels compute as fast as torch run in them, on processors with AVX-512.
        example_inputs: a tensor, a tuple of arguments or a mapping of named ones, the batch first. Other batches may
            have other sizes.
        target: the processor that kernels are made for; ``"host"`` is this one.
        precision: ``"fp32"``, or ``"bf16"``: calls in training mode compute as under ``torch.autocast("cpu",
            torch.bfloat16)``. Values between layers and their gradients are bfloat16, parameters and their gradients
            float32.
        enforce: called with the model and the mask whenever the module gets a mask; what it returns keeps pruned
            weights at 0 outside of kernels, until its `release` is called. None: pruned weights are set to 0 once, and
            the caller keeps them there.

    Raises:
        MaskError: if the mask does not fit the model.
        CaptureError: if the example does not run through the model.
        EngineError: if the model is not in float32 on the CPU, or the processor does not multiply bfloat16.
        UsageError: for another precision.
        MissingExtraError: if llvmlite is not installed.

    Examples:
        >>> import ticketry_engine
        >>> model, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)), torch.randn(16, 64)
        >>> keep = {"0.weight": torch.rand(64, 64) < 0.1}
        >>> fast = ticketry_engine.train(model, keep, x)
        >>> fast(x).square().mean().backward()
        >>> bool((model[0].weight.grad[~keep["0.weight"]] == 0).all())
        True
    """
    return SparseTraining(model, keep, example_inputs, target=target, precision=precision, enforce=enforce)


class SparseTraining(nn.Module):
    """See `train`.

    Args:
        enforce: called with the model and the mask whenever it gets one; what it returns keeps pruned weights at 0
            outside of kernels, until its `release` is called. None: pruned weights are set to 0 once, and the caller
            keeps them there.

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
        # The very dictionaries of the model: what takes a place in one takes it in the other.
        self._parameters, self._buffers, self._modules = model._parameters, model._buffers, model._modules
        self._model = (model,)
        library = Library(find_target(target))
        if precision == "bf16" and not library.target.bf16:
            raise EngineError(
                f"kernels for {library.target.name} on this processor ({library.target.cpu}) do not multiply bfloat16,"
                " which takes AVX512-BF16: train with precision='fp32'"
            )
        self._context = Context(library, half=precision == "bf16")
        self._units: list[Unit] = []
        self._lstms: list[LstmUnit] = []
        self._seconds: dict[str, float] = {}
        self._hold: Enforcement | None = None
        self._released = False
        self._weights: KeptWeights | None = None
        self._eager = torch.compiler.disable(self._forward, reason=NOT_COMPILED)  # type: ignore[no-untyped-call]
        self.update(keep)
        named = dict(example_inputs) if isinstance(example_inputs, Mapping) else {}
        self._try(() if named else as_arguments(example_inputs), named)
        self.training = model.training  # and not train(), which would change the modes of the model's own modules

    def update(self, mask: Mapping[str, Tensor] | None) -> None:
        """Hold another mask from now on, or none.

        Tables are made anew at the next step, kernels only where shapes need others.

        Raises:
            MaskError: the mask does not fit the model.
        """
        model = self._model[0]
        if self._weights is not None:
            self._weights.settle()  # before the mask makes zeros in the model's tensors
        held = None
        if mask is not None and self._enforce is not None:
            held = self._enforce(model, mask)
        elif mask is not None:
            apply_mask(model, mask)
        if self._hold is not None:
            self._hold.release()
        self._hold, self._released, self.mask, self._modules_seen = held, False, mask, [*model.modules()]
        masks = {} if mask is None else masks_of_layers(model, mask)
        self._context.kept, self._context.masks = kept_of(masks), masks
        if self._weights is not None:
            self._weights.take(dict(model.named_modules()), masks)
            self._context.rows = {name: row for name, row in self._weights.parameters.items() if name in masks}
        before = {(unit.name, unit.module): unit for unit in self._units}
        self._units = [before.get((unit.name, unit.module), unit) for unit in units_of(model, self._context)]
        self._context.recurrent = {} if mask is None else masks_of_lstms(model, by_parameter(model, mask))
        self._lstms = lstm_units(model, self._context)
        self._seconds = {}
        self._forget()

    @property
    def _all(self) -> list[Unit | LstmUnit]:
        return [*self._units, *self._lstms]

    def _forget(self) -> None:
        for unit in self._all:
            unit.forget()

    def named_kept_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """`kept_parameters` with their names, those of the model's; `EngineError` without a mask."""
        if self.mask is None:
            raise EngineError("without a mask all weights are kept: train parameters() themselves")
        self._begin()
        if self._weights is None:
            masks, model = self._context.masks, self._model[0]
            self._weights = KeptWeights(dict(model.named_modules()), masks, self._context.library, stored=[self, model])
            self._context.rows, self._context.weights = self._weights.parameters, self._weights
            self._forget()
        rows = {id(row.dense): row.parameter for row in self._weights.rows.values()}
        for name, parameter in self._model[0].named_parameters():
            yield name, rows.get(id(parameter), parameter)

    def kept_parameters(self) -> list[nn.Parameter]:
        """The parameters, those of convolutions and linear layers under the mask without what it prunes.

        Of these each is a row of numbers, in the order of the weights that are kept. Given to an optimiser in the place
        of `parameters`, they make gradients, the optimiser's state and its steps as small as what is kept; optimisers
        that move every weight by itself (SGD, the Adam family) do what they do with dense ones. The model has their
        numbers after each step of any optimiser, and before each call; its own tensors get no gradients then. Clip
        them, not `parameters`. What takes the place of a tensor (a load with ``assign=True``, a rebuilt layer) has its
        row from the next call or step on. `update` lets them follow a mask.

        Raises:
            EngineError: there is no mask. At a call or a step: weights have another shape, type or device, or are tied
                otherwise than before; a hook waits for the gradient that a tensor of the model does not get.
        """
        return [parameter for _, parameter in self.named_kept_parameters()]

    @contextmanager
    def writing_late(self) -> Iterator[None]:
        """The model's tensors need not follow `kept_parameters` after each step meanwhile; at the end they have them.

        What kernels multiply comes from the rows, and most of what a step of large linear layers still does beside it
        is to write these into tensors. Calls of this module, in evaluation mode too, and state dicts, its own and the
        model's, are right meanwhile, for tensors follow where torch reads them. Whatever else reads the model's own
        tensors, such as a copy, an average, or a call of the model itself outside of `running`, finds weights of some
        earlier step.

            with fast.writing_late():
                for images, labels in loader: ...            # an epoch
            evaluate(model)

        Raises:
            EngineError: there is no mask.
        """
        self.kept_parameters()
        assert self._weights is not None
        with self._weights.written_late():
            yield

    def _try(self, example: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Capture what a call of the model calls, by a copy in training mode."""
        twin = copy_of(self._model[0]).train()
        root = next(unit for unit in self._units if not unit.name)
        form, _ = root.form(example, named, twin=twin)
        if form.traced is not None and not form.wholes:
            return
        calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

        def note(name: str) -> Callable[..., None]:
            return lambda module, args, kwargs: None if name in calls else calls.update({name: (args, kwargs)})

        handles = [
            twin.get_submodule(unit.name).register_forward_pre_hook(note(unit.name), with_kwargs=True)
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
            if name in calls and (not within(name, inside) or within(name, apart)):
                form, _ = unit.form(*calls[name], twin=twin.get_submodule(name))
                if form.traced is not None:
                    inside, apart = [*inside, name], [*apart, *(unit.named(whole) for whole in form.wholes)]

    def release(self) -> None:
        """Stop holding the mask; `kept_parameters` have nothing to do with the model any more."""
        weights, self._weights, self._context.weights, self._context.rows = self._weights, None, None, {}
        self._released = True
        if self._hold is not None:
            self._hold.release()
            self._hold = None
        if weights is not None:
            self._forget()
            try:
                weights.settle()
            finally:
                weights.release()

    def train(self, mode: bool = True) -> Self:
        self._model[0].train(mode)
        self.training = mode
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._eager(*args, **kwargs)

    def _begin(self) -> None:
        """Before a call: layers may have been rebuilt, and rows or tensors changed."""
        if not (self._released and self.mask is not None) and [*self._model[0].modules()] != self._modules_seen:
            self.update(self.mask)
        if self._weights is not None:
            self._weights.begin()

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        self._begin()
        if (call := self._units[0].direct(args, kwargs)) is not None:
            return call()
        with running(self._all):
            return self._model[0](*args, **kwargs)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Calls of the model itself, and of modules within it, run in kernels meanwhile: for methods beside `forward`.

        So `model.read(tokens)`, within `with fast.running():`, computes in kernels.
        """
        self._begin()
        with running(self._all):
            yield

    def profile(self, *args: Any, rounds: int = 3, **kwargs: Any) -> list[Layer]:
        """Seconds of each layer, forward and back, on one thread: `layers` and ``print`` tell them from then on.

        Operations are timed one by one. Of other rows, "outside of kernels" is what torch does, and what is done around
        kernels; medians of `rounds` calls. Gradients, statistics of norms and random numbers stay as they were.
        """
        model = self._model[0]
        gradients = [(one, one.grad) for one in model.parameters()]
        buffers = [(one, one.clone()) for one in model.buffers()]
        try:
            with private_random_state([]):
                self._pass(args, kwargs)  # makes plans and kernels
                self._seconds = median_seconds(lambda: self._timed(args, kwargs), rounds)
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)
        return self.layers()

    def _pass(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._model[0].zero_grad()  # or they would be added to
        made = [one for one in outputs_of(self(*args, **kwargs)) if one.requires_grad]
        torch.autograd.backward(made, [torch.ones_like(one) for one in made])

    def _timed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, float]:
        """Seconds of a pass forward and back: of layers, of what else is in kernels, and outside of them."""
        steps = [step for unit in self._all for step in unit.steps]
        for step in steps:
            step.seconds = {}
        began = time.perf_counter()
        try:
            self._pass(args, kwargs)
            whole, found = time.perf_counter() - began, dict[str, float]()
            for unit in self._all:
                for name, seconds in unit.spent().items():
                    found[name] = found.get(name, 0.0) + seconds
        finally:
            for step in steps:
                step.seconds = None
        return {**found, OUTSIDE: whole - sum(found.values())}

    def layers(self) -> list[Layer]:
        """A row for each layer with weights: where it runs, its density, and why it is in torch if it is.

        After `profile` also seconds, and rows for what else takes time.
        """
        rows = rows_of(self._model[0], self.mask, self._context.kept, self._units, self._lstms)
        seconds = self._seconds
        total, told = sum(seconds.values()), {row.name for row in rows}
        rows += [
            Layer(name, "", "torch" if name == OUTSIDE else "engine", "" if name == OUTSIDE else "passes")
            for name in seconds
            if name not in told
        ]
        times = [
            (seconds[row.name], seconds[row.name] / total) if row.name in seconds else (None, None) for row in rows
        ]
        return [
            msgspec.structs.replace(row, seconds=spent, share=share)
            for row, (spent, share) in zip(rows, times, strict=True)
        ]

    def untraced(self) -> dict[str, str]:
        """Modules of which only parts are in kernels, because they cannot be traced as wholes, and why."""
        lstms = {unit.name for unit in self._lstms}  # of which the model itself may be one
        return {
            unit.name: unit.last.why
            for unit in self._units
            if unit.last is not None and unit.last.why and unit.name not in lstms
        }

    def __repr__(self) -> str:
        rows, where = self.layers(), ", in bfloat16" if self._context.half else ""
        told = [table(rows, f"Sparse training for {self._context.library.target.name}{where}")]
        told += [f"{name or 'The model'} is not traced: {why}" for name, why in self.untraced().items()]
        if not any(row.where == "engine" for row in rows):
            told.append("Nothing runs in kernels.")
        return "\n".join(told)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        raise EngineError("a module of sparse training belongs to its model: copy the model, and make another of that")

    def __reduce__(self) -> Any:
        raise EngineError("a module of sparse training is not pickled: save its state_dict, or the model")
