"""LSTM layers in sparse kernels: what `nn.LSTM` computes in training mode, with the weights that a mask keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ticketry_engine.support.first_derivative import first_derivative_only
from ticketry_engine.support.masked_gradients import mark_masked
from ticketry_engine.training.recurrence import INPUTS, STATES, Reading, Recurrence, Text
from ticketry_engine.training.region_step import MOST_THREADS
from ticketry_engine.training.tracing import Substitute
from ticketry_engine.training.units import NOT_COMPILED, Context

LIMIT = 0.3
"""Density of all its weights above which a layer runs in torch. 200 units over 35 words of 20 examples took 0.34, 0.43,
0.53, 0.72, 0.78 and 1.25 of the time in torch with 5, 10, 20, 25, 30 and 50 % (AVX-512, a busy machine)."""

FEWEST = 4
"""Examples from which on vectors, which run over sixteen of them, are full enough: with 10 % of 200 units a layer took
1.38, 0.98, 0.58 and 0.48 of the time in torch with 1, 2, 4 and 8 examples."""

PRUNED = 1 << 14
"""Pruned weights from which on a layer takes part. 64 units (29,500 of them) took 0.71 with 10 %; with fewer, what a
call costs at any size is more than the products."""

_TEXTS = 8
"""Shapes that a layer is laid out for at a time."""


class LstmUnit(Substitute):
    """The `forward` of an `nn.LSTM` while sparse training runs.

    Args:
        name: of the module in the model.
    """

    last = None
    """It has no graph."""

    def __init__(self, name: str, module: nn.LSTM, context: Context) -> None:
        self.name, self.context, self._module = name, context, (module,)
        self.seconds: dict[str, float] | None = None
        """Of a pass, where they are asked for."""
        self._laid_out: dict[Any, Recurrence] = {}
        self._why_called = ""
        self._eager = torch.compiler.disable(self._called, reason=NOT_COMPILED)  # type: ignore[no-untyped-call]

    @property
    def module(self) -> nn.LSTM:
        return self._module[0]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._eager(*args, **kwargs)

    def _called(self, input: Any, hx: tuple[Tensor, Tensor] | None = None) -> Any:
        module = self.module
        if module.training:
            self._why_called = _unknown_call(module, input)
            if not self.why:
                return self._text(input, hx)
        return nn.LSTM.forward(module, input, hx)

    def _text(self, given: Tensor, hx: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        module = self.module
        x = given.transpose(0, 1) if module.batch_first else given
        directions = 1 + module.bidirectional
        if hx is None:
            hx = (x.new_zeros(module.num_layers * directions, x.shape[1], module.hidden_size),) * 2
        module.check_forward_args(given, hx, None)
        states, cells = list[Tensor](), list[Tensor]()
        for layer in range(module.num_layers):
            made = []
            for direction in range(directions):
                place = len(states)
                y, h, c = self._layer(x, (hx[0][place], hx[1][place]), layer, reverse=bool(direction))
                made.append(y)
                states.append(h)
                cells.append(c)
            x = made[0] if directions == 1 else torch.cat(made, 2)
            if module.dropout and layer + 1 < module.num_layers:
                x = F.dropout(x, module.dropout)
        return x.transpose(0, 1) if module.batch_first else x, (torch.stack(states), torch.stack(cells))

    def _layer(self, x: Tensor, past: tuple[Tensor, Tensor], layer: int, *, reverse: bool) -> tuple[Tensor, ...]:
        """Words x examples x units of one layer in one direction; state and cell at its end."""
        names = _names(layer, reverse=reverse)
        weights = [getattr(self.module, names[of]) for of in (INPUTS, STATES)]
        biases = [getattr(self.module, name.replace("weight", "bias")) for name in names.values()]
        text = Text(x.shape[0], x.shape[1], x.shape[2], self.module.hidden_size)
        threads = min(torch.get_num_threads(), MOST_THREADS)
        key = text, layer, reverse, threads
        if key not in self._laid_out:
            if len(self._laid_out) >= _TEXTS * self.module.num_layers * (1 + self.module.bidirectional):
                del self._laid_out[next(iter(self._laid_out))]
            masks = self._masks
            kept = {
                of: (masks[name] if name in masks else torch.ones_like(weight, dtype=torch.bool)).numpy()
                for (of, name), weight in zip(names.items(), weights, strict=True)
            }
            self._laid_out[key] = Recurrence(text, kept, self.context.library, threads)
        found: tuple[Tensor, ...] = _Function.apply(  # type: ignore[no-untyped-call]
            self, self._laid_out[key], names, x.flip(0) if reverse else x, *past, *weights, *biases
        )
        return (found[0].flip(0), *found[1:]) if reverse else found

    @property
    def _masks(self) -> Mapping[str, Tensor]:
        """Of its weights under the mask."""
        return self.context.recurrent.get(self.name, {})

    def forget(self) -> None:
        """Tables, because the mask is another."""
        self._laid_out = {}

    # -- what it says of itself --------------------------------------------------------------------------------------

    @property
    def density(self) -> float:
        """Of all its weights, those out of the mask too."""
        return self.count / max(1, _weights(self.module))

    @property
    def count(self) -> int:
        """Weights that are kept."""
        return _weights(self.module) - sum(int((~mask).sum()) for mask in self._masks.values())

    @property
    def why(self) -> str:
        """Why it runs in torch, if it does."""
        module = self.module
        if module.proj_size or not module.bias or not all(isinstance(p, nn.Parameter) for p in module._flat_weights):
            return "no kernels for an LSTM with projections, without biases, or of computed weights"
        if self.context.half:
            return "no kernels in bfloat16 for an LSTM"
        if self.density > LIMIT:
            return f"density {self.density:.2f}: above {LIMIT} faster dense"
        if _weights(module) - self.count < PRUNED:
            return "a small layer: faster dense"
        return self._why_called

    def inside(self) -> set[str]:
        """Its name, where it runs in kernels."""
        return set() if self.why else {self.name}

    def dense(self) -> set[str]:
        """It never computes with pruned weights."""
        return set()

    def reasons(self) -> dict[str, str]:
        """Why it runs in torch."""
        return {self.name: self.why} if self.why else {}

    @property
    def steps(self) -> list[LstmUnit]:
        """What is timed: itself."""
        return [self]

    def spent(self) -> dict[str, float]:
        """Seconds of its kernels."""
        return {} if self.why else {self.name: sum((self.seconds or {}).values())}


def lstm_units(model: nn.Module, context: Context) -> list[LstmUnit]:
    """Of all LSTM layers under the mask."""
    modules = ((name, model.get_submodule(name)) for name in context.recurrent)
    return [LstmUnit(name, module, context) for name, module in modules if isinstance(module, nn.LSTM)]


def masks_of_lstms(model: nn.Module, masks: Mapping[int, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Of each LSTM under the mask, by its name: its tensors of the mask, by names of its parameters.

    Args:
        masks: the mask's tensors by ``id`` of their parameters.
    """
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.LSTM) and type(module).forward is nn.LSTM.forward:
            mine = {own: masks[id(one)] for own, one in module.named_parameters(recurse=False) if id(one) in masks}
            if mine:
                found[name] = mine
    return found


def _names(layer: int, *, reverse: bool) -> dict[str, str]:
    """The names in a module of several layers of what the first one's weights are called."""
    end = f"_l{layer}" + ("_reverse" if reverse else "")
    return {of: of.removesuffix("_l0") + end for of in (INPUTS, STATES)}


def _weights(module: nn.LSTM) -> int:
    return sum(one.numel() for one in module.parameters(recurse=False) if one.dim() == 2)


def _unknown_call(module: nn.LSTM, given: Any) -> str:
    if not isinstance(given, Tensor) or given.dim() != 3:
        return "called with a packed sequence, or with a single one"
    if given.dtype != torch.float32 or given.device.type != "cpu":
        return f"called with {given.dtype} on {given.device}"
    examples = given.shape[0 if module.batch_first else 1]
    if examples < FEWEST or not given.shape[1 if module.batch_first else 0]:
        return f"called with {examples} examples: {FEWEST} fill vectors enough"
    return ""


class _Function(torch.autograd.Function):
    """Takes the unit, the layer's operations, names of its weights; what comes in, state, cell, weights, biases."""

    @staticmethod
    def forward(
        ctx: Any,
        unit: LstmUnit,
        layer: Recurrence,
        names: Mapping[str, str],
        x: Tensor,
        h: Tensor,
        c: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        weights, (one, other) = dict(zip((INPUTS, STATES), parameters, strict=False)), parameters[2:]
        reading: Reading = layer.read(x, (h, c), weights, one.detach() + other.detach(), unit.seconds)
        made = layer.outputs(reading)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(*parameters[:2])
            ctx.unit, ctx.layer, ctx.names, ctx.reading = unit, layer, names, reading
        else:
            reading.close()
        return made

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        reading = ctx.reading
        reading.require_open("an LSTM")
        weights = dict(zip((INPUTS, STATES), ctx.saved_tensors, strict=True))
        made = ctx.layer.gradients_of(reading, given, weights, inputs=ctx.needs_input_grad[3])
        reading.close()
        for of, name in ctx.names.items():
            if name in ctx.unit._masks:
                mark_masked(made[of], ctx.unit._masks[name])
        found = [made.get("x"), made["h"], made["c"], made[INPUTS], made[STATES], made["bias"], made["bias"].clone()]
        needed = ctx.needs_input_grad[3:]
        return None, None, None, *(one if need else None for one, need in zip(found, needed, strict=True))
