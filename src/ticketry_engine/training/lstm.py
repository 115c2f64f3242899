"""LSTM layers in sparse kernels: all operations of all words in one program, and the unit that replaces `nn.LSTM`.

A word is a time step of the sequence. The products of the weights with the inputs are one operation over all words.
Products with the states run word by word, with the same tables. Values have a plane of sixteen examples for each LSTM
unit. The blocks of a word are contiguous, and words follow one another. Therefore the states of a word form a value.
Gradients of weights are sums over all blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ticketry_engine.errors import EngineError
from ticketry_engine.kernels.jit import Library
from ticketry_engine.kernels.program import Op, Program
from ticketry_engine.kernels.training.by_channel import (
    GATES,
    LstmGates,
    LstmGatesGradient,
    Total,
    build_channel_ops,
    read_sums,
)
from ticketry_engine.kernels.training.convolution import build_forward, build_input_gradient, build_weight_gradient
from ticketry_engine.kernels.training.layer import IMAGES, Batch, MaskedLayer
from ticketry_engine.kernels.window import Array, Window
from ticketry_engine.plan.storage import LARGEST_ARENA, BufferAllocator
from ticketry_engine.support.training_hooks import first_derivative_only, mark_masked
from ticketry_engine.training.plan import PassState
from ticketry_engine.training.region_step import MOST_THREADS
from ticketry_engine.training.units import Substitute, TrainingContext

INPUTS, STATES = "weight_ih_l0", "weight_hh_l0"
"""Names of the weights for inputs and for states in the first layer of an `nn.LSTM`."""

_TILES = 5
"""Number of arguments of a sum kernel before the arguments of its tiles, of which each tile shape has three."""


@dataclass(frozen=True)
class SequenceShape:
    """The sizes of an LSTM layer: number of words (time steps), examples, input features and LSTM units."""

    words: int
    batch: int
    inputs: int
    units: int

    @property
    def blocks(self) -> int:
        """Number of blocks of sixteen examples for each word (time step)."""
        return -(-self.batch // IMAGES)


class LstmLayer:
    """Runs one LSTM layer in one direction, forward and backward, for one shape of the input.

    Args:
        kept: `INPUTS` -> bool array [4 * units, inputs] and `STATES` -> [4 * units, units], True where a weight is
            retained.
        threads: number of threads that share each operation.
    """

    def __init__(self, text: SequenceShape, kept: Mapping[str, Array], library: Library, threads: int = 1) -> None:
        self.text, self.threads, self._library, self._target = text, threads, library, library.target
        self._layers = {
            name: MaskedLayer(each[:, :, None, None], Window((1, 1), (1, 1), (0, 0), (1, 1)), threads=threads)
            for name, each in kept.items()
        }
        self._memory, self._ops = BufferAllocator(), list[Op]()
        words, blocks = text.words, text.blocks
        self.x, self.dx = (self._allocate_value(text.inputs, words * blocks) for _ in range(2))
        self.gates = self._allocate_value(GATES * text.units, words * blocks)
        # One more word: the state before the first one.
        self.states, self.cells, self.gradients = (
            self._allocate_value(text.units, (words + 1) * blocks) for _ in range(3)
        )
        self.carried = self._allocate_value(text.units, blocks)
        self._add_forward_ops()
        self._add_backward_ops()
        self._add_sums_over_words()
        if self._memory.size > LARGEST_ARENA:
            raise EngineError(
                f"{words} words of {text.batch} examples need {self._memory.size >> 20} MiB of working memory in an"
                f" LSTM of {text.units} units, kernels reach {LARGEST_ARENA >> 20}: train with shorter pieces or"
                " smaller batches"
            )
        self.program = Program(self._ops, IMAGES * words * blocks, self._memory.size, library, split="parts")
        self._filled = -1

    # -- operations ----------------------------------------------------------------------------------------------------

    def _allocate_value(self, channels: int, blocks: int) -> Batch:
        """Allocate memory for a value until the end of the call, and return the value's memory layout."""
        value = Batch.build(channels, (1, 1), 0, blocks)
        return replace(value, offset=self._reserve_bytes(value.bytes))

    def _reserve_bytes(self, size: int) -> int:
        return self._memory.allocate(-(-size // 64) * 64, None)[0].begin

    def _time_steps_of(self, value: Batch, word: int, words: int = 1) -> Batch:
        """Return the memory layout of `words` consecutive time steps of `value`, starting at time step `word`."""
        blocks = self.text.blocks
        return replace(value, blocks=words * blocks, offset=value.offset + word * blocks * value.block_bytes)

    def _add_ops(self, ops: list[Op]) -> range:
        """Add operations to the program, and return their indices in the program."""
        self._ops += ops
        return range(len(self._ops) - len(ops), len(self._ops))

    def _op_for_time_step(self, op: Op, word: int, *values: Batch) -> Op:
        """Return a copy of `op` that processes time step `word`; `op` processes `values` of the first time step."""
        moved = np.array([self.text.blocks * word * value.block_bytes for value in values], dtype=np.int32)
        args = list(op.args)
        for number in range(_TILES, len(args), 3):
            args[number] = args[number] + moved
        return replace(op, args=tuple(args))

    def _add_forward_ops(self) -> None:
        text, first = self.text, self._time_steps_of(self.gates, 0)
        self._products = build_forward(self.x, self.gates, self._layers[INPUTS], self._target)[0]
        self._recurrent = build_forward(
            self._time_steps_of(self.states, 0), first, self._layers[STATES], self._target, first
        )[0]
        ops = list(self._products.ops)
        for word in range(text.words):
            ops += [self._op_for_time_step(op, word, self.states, self.gates, self.gates) for op in self._recurrent.ops]
            ops.append(self._build_gates_op(LstmGates(), word, self._time_steps_of(self.states, word + 1)))
        self.forward_ops = self._add_ops(ops)

    def _build_gates_op(self, kernel: LstmGates | LstmGatesGradient, word: int, *others: Batch) -> Op:
        cells = (self._time_steps_of(self.cells, word + further) for further in range(2))
        values = (self._time_steps_of(self.gates, word), *cells, *others)
        return Op(kernel, (self.text.units, self.text.blocks, *(value.offset for value in values)))

    def _add_backward_ops(self) -> None:
        text, first = self.text, self._time_steps_of(self.gradients, 0)
        made = build_input_gradient(
            self._time_steps_of(self.gates, 0), first, self._layers[STATES], self._target, first
        )
        self._transposed, ops = made, list[Op]()
        for word in reversed(range(text.words)):
            after = self._time_steps_of(self.gradients, word + 1)
            ops.append(self._build_gates_op(LstmGatesGradient(), word, after, self.carried))
            for each in made:
                ops += [self._op_for_time_step(op, word, self.gates, self.gradients, self.gradients) for op in each.ops]
        self.backward_ops = self._add_ops(ops)

    def _add_sums_over_words(self) -> None:
        """Add the backward pass's operations on all time steps at once, and the operations that fill tables."""
        target, words = self._target, self.text.words
        self._to_inputs = build_input_gradient(self.gates, self.dx, self._layers[INPUTS], target)
        self.to_inputs = self._add_ops([op for each in self._to_inputs for op in each.ops])
        self.to_bias = self._add_ops(build_channel_ops(Total, [self.gates], IMAGES * self.gates.blocks, target))
        self.to_weights, self._ends_of, self._packed = {}, dict[str, range](), dict[str, int]()
        for name, read in ((INPUTS, self.x), (STATES, self._time_steps_of(self.states, 0, words))):
            if self._layers[name].count:
                made = build_weight_gradient(read, self.gates, self._layers[name], target, self._reserve_bytes)
                self.to_weights[name] = self._add_ops([*made.begin, *made.ops])
                self._ends_of[name], self._packed[name] = self._add_ops(made.end), made.packed
        self._gathers = {
            name: self._add_ops([of.build_gather_op()])[0]
            for name, of in ((INPUTS, self._products), (STATES, self._recurrent))
        }
        pairs = ((self._transposed, self._recurrent), (self._to_inputs, self._products))
        self._later = self._add_ops(
            [each.build_gather_op(source) for found, source in pairs for each in found if len(each.index)]
        )

    # -- calls ---------------------------------------------------------------------------------------------------------

    def forward(
        self,
        x: Tensor,
        past: tuple[Tensor, Tensor],
        weights: Mapping[str, Tensor],
        bias: Tensor,
        seconds: dict[str, float] | None = None,
    ) -> PassState:
        """Run a forward pass, and return the state that the backward pass needs.

        Args:
            x: float32 [words, examples, inputs], where words are time steps.
            past: state and cell before the first word, each [examples, units].
            bias: the sum of torch's two biases of each gate.
            seconds: dict to which the seconds of operations are added, by label.
        """
        state = PassState(self.program.open_session(self.threads))
        state.session.seconds = seconds
        self._fill_tables(state, weights)
        rows = self._products.rows // self.gates.geometry.bytes
        table = self.program.ops[self.forward_ops.start].args[0]
        assert isinstance(table, np.ndarray)
        table[:, -rows.shape[1] :] = bias.numpy()[rows].view(np.int32)
        self._copy_to_memory(state, self.x, x)
        for value, before in zip((self.states, self.cells), past, strict=True):
            self._copy_to_memory(state, self._time_steps_of(value, 0), before[None])
        self._run(state, self.forward_ops)
        return state

    def _fill_tables(self, state: PassState, weights: Mapping[str, Tensor]) -> None:
        for name, number in self._gathers.items():
            state.session.run(number, number + 1, [weights[name].detach().contiguous().data_ptr()])
        self._filled = state.number

    def _run(self, state: PassState, ops: range) -> None:
        if len(ops):
            state.session.run(ops.start, ops.stop, shared=True)

    def outputs(self, state: PassState) -> tuple[Tensor, Tensor, Tensor]:
        """Return the states of all time steps, [words, examples, units], and the state and the cell after the last."""
        words = self.text.words
        states = self._copy_from_memory(state, self._time_steps_of(self.states, 1, words))
        return states, states[-1].clone(), self._copy_from_memory(state, self._time_steps_of(self.cells, words))[0]

    def backward(
        self, state: PassState, given: tuple[Tensor, Tensor, Tensor], weights: Mapping[str, Tensor], *, inputs: bool
    ) -> dict[str, Tensor]:
        """Run a backward pass; return gradients under the names `INPUTS`, `STATES`, ``bias``, ``h``, ``c`` and ``x``.

        ``h`` and ``c`` are the state and the cell before the first word (time step). `given` has the gradients of the
        layer's outputs. The gradient of ``x`` is computed only if `inputs`.
        """
        words, session = self.text.words, state.session
        if self._filled != state.number:  # another call may have filled the tables with other weights
            self._fill_tables(state, weights)
        if len(self._later):
            session.run(self._later.start, self._later.stop)
        self._copy_to_memory(state, self._time_steps_of(self.gradients, 1, words), given[0])
        last = self._memory_view(state, self._time_steps_of(self.gradients, words))
        more = torch.empty_like(last)
        _copy_to_blocks(more, given[1][None])
        last += more
        self._memory_view(state, self._time_steps_of(self.gradients, 0)).zero_()
        self._copy_to_memory(state, self.carried, given[2][None])
        self._run(state, self.backward_ops)
        found = {
            "h": self._copy_from_memory(state, self._time_steps_of(self.gradients, 0))[0],
            "c": self._copy_from_memory(state, self.carried)[0],
        }
        for name in (INPUTS, STATES):
            if name not in self.to_weights:
                found[name] = torch.zeros_like(weights[name])
                continue
            self._run(state, self.to_weights[name])
            packed = torch.empty(self._packed[name], dtype=torch.float32, device="cpu")
            found[name] = torch.empty(self._layers[name].kept.shape[:2], dtype=torch.float32, device="cpu")
            ends = self._ends_of[name]
            session.run(ends.start, ends.stop, [packed.data_ptr(), found[name].data_ptr()])
        self._run(state, self.to_bias)
        total = read_sums(self.program.ops[self.to_bias.start], self._target)[:, 0]
        found["bias"] = torch.from_numpy(total.astype(np.float32))
        if inputs:
            self._run(state, self.to_inputs)
            found["x"] = self._copy_from_memory(state, self.dx)
        return found

    # -- to and from tensors -------------------------------------------------------------------------------------------

    def _memory_view(self, state: PassState, value: Batch) -> Tensor:
        """Return a view [words, blocks, channels, 16] of a value in working memory."""
        memory = state.session.arena[value.offset : value.offset + value.bytes].view(np.float32)
        return torch.from_numpy(memory).view(-1, self.text.blocks, value.channels, IMAGES)

    def _copy_to_memory(self, state: PassState, value: Batch, tensor: Tensor) -> None:
        _copy_to_blocks(self._memory_view(state, value), tensor.detach())

    def _copy_from_memory(self, state: PassState, value: Batch) -> Tensor:
        """Copy a value from working memory to a new tensor [words, examples, channels], and return the tensor."""
        view = self._memory_view(state, value).transpose(2, 3)
        return view.reshape(len(view), -1, value.channels)[:, : self.text.batch].contiguous()


def _copy_to_blocks(blocks: Tensor, tensor: Tensor) -> None:
    """Copy `tensor` [words, examples, channels] to `blocks` [words, blocks, channels, 16]; pad with zeros."""
    batch = tensor.shape[1]
    whole = batch // IMAGES
    if whole:
        full = tensor[:, : whole * IMAGES]
        blocks[:, :whole].copy_(full.reshape(len(full), whole, IMAGES, -1).transpose(2, 3))
    if rest := batch - whole * IMAGES:
        blocks[:, whole, :, :rest].copy_(tensor[:, whole * IMAGES :].transpose(1, 2))
        blocks[:, whole, :, rest:].zero_()


# -- lstm unit ---------------------------------------------------------------------------------------------------------


LIMIT = 0.3
"""Density, over all weights of an LSTM, above which the LSTM runs in torch.

Measured (200 units, 35 words, 20 examples, AVX-512): 0.34, 0.43, 0.53, 0.72, 0.78 and 1.25 of torch's time at 5, 10,
20, 25, 30 and 50 %.
"""

FEWEST = 4
"""Minimum number of examples; with fewer, most lanes of the vectors are empty.

Measured (200 units, 10 %): 1.38, 0.98, 0.58 and 0.48 of torch's time with 1, 2, 4 and 8 examples.
"""

PRUNED = 1 << 14
"""Minimum number of pruned weights; with fewer, fixed costs exceed the savings.

Measured: 64 units at 10 % (29,500 pruned weights) took 0.71 of torch's time.
"""

_SHAPES = 8
"""Maximum number of input shapes for which a layer's operations are kept."""


class LstmUnit(Substitute):
    """Substitute for the `forward` of an `nn.LSTM`, which runs calls in kernels."""

    module: nn.LSTM
    last = None
    """Always None, because an LSTM has no traced form (see `Unit.last`)."""

    def __init__(self, name: str, module: nn.LSTM, context: TrainingContext) -> None:
        super().__init__(name, module, context)
        self.seconds: dict[str, float] | None = None
        """If not None, collects the seconds of a pass."""
        self._layers: dict[Any, LstmLayer] = {}
        self._unfit_call = ""

    def _forward(self, input: Any, hx: tuple[Tensor, Tensor] | None = None) -> Any:
        module = self.module
        if module.training:
            self._unfit_call = _why_unsupported(module, input)
            if not self.reason_for_torch:
                return self._run(input, hx)
        return nn.LSTM.forward(module, input, hx)

    def _run(self, given: Tensor, hx: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
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
                y, h, c = self._run_layer(x, (hx[0][place], hx[1][place]), layer, reverse=bool(direction))
                made.append(y)
                states.append(h)
                cells.append(c)
            x = made[0] if directions == 1 else torch.cat(made, 2)
            if module.dropout and layer + 1 < module.num_layers:
                x = F.dropout(x, module.dropout)
        return x.transpose(0, 1) if module.batch_first else x, (torch.stack(states), torch.stack(cells))

    def _run_layer(self, x: Tensor, past: tuple[Tensor, Tensor], layer: int, *, reverse: bool) -> tuple[Tensor, ...]:
        """Run a layer in one direction; return all states [words, examples, units], last state and last cell."""
        end = f"_l{layer}" + ("_reverse" if reverse else "")
        names = {of: of.removesuffix("_l0") + end for of in (INPUTS, STATES)}
        weights = [getattr(self.module, names[of]) for of in (INPUTS, STATES)]
        biases = [getattr(self.module, name.replace("weight", "bias")) for name in names.values()]
        shape = SequenceShape(x.shape[0], x.shape[1], x.shape[2], self.module.hidden_size)
        threads = min(torch.get_num_threads(), MOST_THREADS)
        key = shape, layer, reverse, threads
        if key not in self._layers:
            if len(self._layers) >= _SHAPES * self.module.num_layers * (1 + self.module.bidirectional):
                del self._layers[next(iter(self._layers))]
            masks = self._masks
            kept = {
                of: (masks[name] if name in masks else torch.ones_like(weight, dtype=torch.bool)).numpy()
                for (of, name), weight in zip(names.items(), weights, strict=True)
            }
            self._layers[key] = LstmLayer(shape, kept, self.context.library, threads)
        found: tuple[Tensor, ...] = _LstmFunction.apply(  # type: ignore[no-untyped-call]
            self, self._layers[key], names, x.flip(0) if reverse else x, *past, *weights, *biases
        )
        return (found[0].flip(0), *found[1:]) if reverse else found

    @property
    def _masks(self) -> Mapping[str, Tensor]:
        return self.context.recurrent.get(self.name, {})

    def drop_regions(self) -> None:
        """Discard all operations and tables, because the mask has changed."""
        self._layers = {}

    # -- report --------------------------------------------------------------------------------------------------------

    @property
    def density(self) -> float:
        """Share of retained weights in the LSTM; weights without a mask count as retained."""
        return self.count / max(1, _count_weights(self.module))

    @property
    def count(self) -> int:
        """Number of retained weights in the LSTM; weights without a mask count as retained."""
        return _count_weights(self.module) - sum(int((~mask).sum()) for mask in self._masks.values())

    @property
    def reason_for_torch(self) -> str:
        """The reason why the LSTM runs in torch; "" if it runs in kernels."""
        module = self.module
        if module.proj_size or not module.bias or not all(isinstance(p, nn.Parameter) for p in module._flat_weights):
            return "no kernels for an LSTM with projections, without biases, or of computed weights"
        if self.context.half:
            return "no kernels in bfloat16 for an LSTM"
        if self.density > LIMIT:
            return f"density {self.density:.2f}: above {LIMIT} faster dense"
        if _count_weights(module) - self.count < PRUNED:
            return "a small layer: faster dense"
        return self._unfit_call

    @property
    def steps(self) -> list[LstmUnit]:
        """Return a list of the objects that record the seconds of kernels; it contains only this object."""
        return [self]

    def layer_seconds(self) -> dict[str, float]:
        """Return {name of the LSTM: seconds of its kernels}, or {} if the LSTM runs in torch."""
        return {} if self.reason_for_torch else {self.name: sum((self.seconds or {}).values())}


def lstm_units(model: nn.Module, context: TrainingContext) -> list[LstmUnit]:
    """Return, for each LSTM under the mask, an object that replaces the LSTM's `forward`."""
    modules = ((name, model.get_submodule(name)) for name in context.recurrent)
    return [LstmUnit(name, module, context) for name, module in modules if isinstance(module, nn.LSTM)]


def masks_of_lstms(model: nn.Module, masks: Mapping[int, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return LSTM name -> parameter name -> mask; `masks` maps the ``id`` of a parameter to its mask."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.LSTM) and type(module).forward is nn.LSTM.forward:
            mine = {own: masks[id(one)] for own, one in module.named_parameters(recurse=False) if id(one) in masks}
            if mine:
                found[name] = mine
    return found


def _count_weights(module: nn.LSTM) -> int:
    return sum(one.numel() for one in module.parameters(recurse=False) if one.dim() == 2)


def _why_unsupported(module: nn.LSTM, given: Any) -> str:
    """Return the reason why kernels cannot run a call with the input `given`; "" if they can."""
    if not isinstance(given, Tensor) or given.dim() != 3:
        return "called with a packed sequence, or with a single one"
    if given.dtype != torch.float32 or given.device.type != "cpu":
        return f"called with {given.dtype} on {given.device}"
    examples = given.shape[0 if module.batch_first else 1]
    if examples < FEWEST or not given.shape[1 if module.batch_first else 0]:
        return f"called with {examples} examples: at least {FEWEST} are needed to fill vectors"
    return ""


class _LstmFunction(torch.autograd.Function):
    """Autograd function that runs an LSTM layer; its tensor arguments are input, state, cell, weights and biases."""

    @staticmethod
    def forward(
        ctx: Any,
        unit: LstmUnit,
        layer: LstmLayer,
        names: Mapping[str, str],
        x: Tensor,
        h: Tensor,
        c: Tensor,
        *parameters: Tensor,
    ) -> tuple[Tensor, ...]:
        weights, (one, other) = dict(zip((INPUTS, STATES), parameters, strict=False)), parameters[2:]
        state = layer.forward(x, (h, c), weights, one.detach() + other.detach(), unit.seconds)
        outputs = layer.outputs(state)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(*parameters[:2])
            ctx.unit, ctx.layer, ctx.names, ctx.state = unit, layer, names, state
        else:
            state.close()
        return outputs

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        state = ctx.state
        state.require_open("an LSTM")
        weights = dict(zip((INPUTS, STATES), ctx.saved_tensors, strict=True))
        made = ctx.layer.backward(state, given, weights, inputs=ctx.needs_input_grad[3])
        state.close()
        for of, name in ctx.names.items():
            if name in ctx.unit._masks:
                mark_masked(made[of], ctx.unit._masks[name])
        found = [made.get("x"), made["h"], made["c"], made[INPUTS], made[STATES], made["bias"], made["bias"].clone()]
        needed = ctx.needs_input_grad[3:]
        return None, None, None, *(one if need else None for one, need in zip(found, needed, strict=True))
