"""An LSTM layer over a whole text: laid out for its shape, with all operations of all words in one program.

Products with the inputs are one operation over all words. Those with the states go word by word, as they must, with the
same tables for each word. Values have a plane of sixteen examples for each unit, the blocks of a word one behind the
other, word after word: so what one word reads is a value of its own, and the gradients of weights are sums over all.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from ticketry_engine.errors import EngineError
from ticketry_engine.kernels.jit import Library
from ticketry_engine.kernels.program import Op, Program, Session
from ticketry_engine.kernels.training.by_channel import Total, operations, sums_of
from ticketry_engine.kernels.training.convolution import forward, input_gradient, weight_gradient
from ticketry_engine.kernels.training.gates import GATES, Gates, GatesGradient
from ticketry_engine.kernels.training.layer import MaskedLayer
from ticketry_engine.kernels.training.layout import IMAGES, Batch
from ticketry_engine.kernels.window import Array, Window
from ticketry_engine.training.one_pass import OnePass

INPUTS, STATES = "weight_ih_l0", "weight_hh_l0"
"""The weights, as `nn.LSTM` names them."""

_LARGEST = (1 << 31) - (1 << 24)
"""Bytes of working memory that tables of 32 bits reach."""

_TILES = 5
"""Arguments of sums before those of their tiles, of which each has three."""


@dataclass(frozen=True)
class Text:
    """The shape of what comes in: examples side by side, words one after the other."""

    words: int
    batch: int
    inputs: int
    units: int

    @property
    def blocks(self) -> int:
        """Of one word."""
        return -(-self.batch // IMAGES)


@dataclass
class Reading(OnePass):
    """What a call holds between its forward and its backward pass."""

    session: Session
    number: int = field(default_factory=itertools.count().__next__)


class Recurrence:
    """Args:
    text: its shape.
    kept: which weights are kept, by `INPUTS` and `STATES`: bool [4 units, inputs or units].
    library: where kernels are compiled.
    threads: that share each operation.

    Raises:
        EngineError: it needs more memory than kernels reach.
    """

    def __init__(self, text: Text, kept: Mapping[str, Array], library: Library, threads: int = 1) -> None:
        self.text, self.threads, self._library, self._target = text, threads, library, library.target
        self._layers = {
            name: MaskedLayer(each[:, :, None, None], Window((1, 1), (1, 1), (0, 0), (1, 1)), threads=threads)
            for name, each in kept.items()
        }
        self._size, self._ops = 0, list[Op]()
        words, blocks = text.words, text.blocks
        self.x, self.dx = (self._lies(text.inputs, words * blocks) for _ in range(2))
        self.gates = self._lies(GATES * text.units, words * blocks)
        # One more: what comes in before the first word.
        self.states, self.cells, self.gradients = (self._lies(text.units, (words + 1) * blocks) for _ in range(3))
        self.carried = self._lies(text.units, blocks)
        self._forth()
        self._back()
        self._ends()
        if self._size > _LARGEST:
            raise EngineError(
                f"{words} words of {text.batch} examples need {self._size >> 20} MiB of working memory in an LSTM of"
                f" {text.units} units, kernels reach {_LARGEST >> 20}: train with shorter pieces or smaller batches"
            )
        self.program = Program(self._ops, IMAGES * words * blocks, self._size, library, split="parts")
        self._filled = -1

    # -- operations --------------------------------------------------------------------------------------------------

    def _lies(self, channels: int, blocks: int) -> Batch:
        made = Batch.of(channels, (1, 1), 0, blocks, self._size)
        self._size += made.bytes
        return made

    def _reserve(self, size: int) -> int:
        begin, self._size = self._size, self._size + -(-size // 64) * 64
        return begin

    def _at(self, value: Batch, word: int, words: int = 1) -> Batch:
        """What a value has of some words."""
        blocks = self.text.blocks
        return replace(value, blocks=words * blocks, offset=value.offset + word * blocks * value.block_bytes)

    def _add(self, ops: list[Op]) -> range:
        """Their numbers."""
        self._ops += ops
        return range(len(self._ops) - len(ops), len(self._ops))

    def _word(self, op: Op, word: int, *values: Batch) -> Op:
        """An operation of the first word for another one, with the same tables."""
        moved = np.array([self.text.blocks * word * value.block_bytes for value in values], dtype=np.int32)
        args = list(op.args)
        for number in range(_TILES, len(args), 3):
            args[number] = args[number] + moved
        return replace(op, args=tuple(args))

    def _forth(self) -> None:
        text, first = self.text, self._at(self.gates, 0)
        self._products = forward(self.x, self.gates, self._layers[INPUTS], self._target)[0]
        self._recurrent = forward(self._at(self.states, 0), first, self._layers[STATES], self._target, first)[0]
        ops = list(self._products.ops)
        for word in range(text.words):
            ops += [self._word(op, word, self.states, self.gates, self.gates) for op in self._recurrent.ops]
            places = (self._at(self.gates, word), self._at(self.cells, word), self._at(self.cells, word + 1))
            ops.append(self._gates(Gates(), *places, self._at(self.states, word + 1)))
        self.forth = self._add(ops)

    def _gates(self, kernel: Gates | GatesGradient, *values: Batch) -> Op:
        return Op(kernel, (self.text.units, self.text.blocks, *(value.offset for value in values)))

    def _back(self) -> None:
        text, first = self.text, self._at(self.gradients, 0)
        made = input_gradient(self._at(self.gates, 0), first, self._layers[STATES], self._target, first)
        self._transposed, ops = made, list[Op]()
        for word in reversed(range(text.words)):
            places = (self._at(self.gates, word), self._at(self.cells, word), self._at(self.cells, word + 1))
            ops.append(self._gates(GatesGradient(), *places, self._at(self.gradients, word + 1), self.carried))
            for each in made:
                ops += [self._word(op, word, self.gates, self.gradients, self.gradients) for op in each.ops]
        self.back = self._add(ops)

    def _ends(self) -> None:
        """What is summed over all words on the way back, and tables."""
        target, words = self._target, self.text.words
        self._to_inputs = input_gradient(self.gates, self.dx, self._layers[INPUTS], target)
        self.to_inputs = self._add([op for each in self._to_inputs for op in each.ops])
        self.to_bias = self._add(operations(Total, [self.gates], IMAGES * self.gates.blocks, target))
        self.to_weights, self._ends_of, self._packed = {}, dict[str, range](), dict[str, int]()
        for name, read in ((INPUTS, self.x), (STATES, self._at(self.states, 0, words))):
            if self._layers[name].count:
                made = weight_gradient(read, self.gates, self._layers[name], target, self._reserve)
                self.to_weights[name] = self._add([*made.begin, *made.ops])
                self._ends_of[name], self._packed[name] = self._add(made.end), made.packed
        self._gathers = {
            name: self._add([of.gather()])[0] for name, of in ((INPUTS, self._products), (STATES, self._recurrent))
        }
        self._later = self._add(
            [
                each.gather(source)
                for found, source in ((self._transposed, self._recurrent), (self._to_inputs, self._products))
                for each in found
                if len(each.index)
            ]
        )

    # -- calls -------------------------------------------------------------------------------------------------------

    def read(
        self,
        x: Tensor,
        past: tuple[Tensor, Tensor],
        weights: Mapping[str, Tensor],
        bias: Tensor,
        seconds: dict[str, float] | None = None,
    ) -> Reading:
        """A pass forth, and what is held for the way back.

        Args:
            x: words x examples x inputs, float32.
            past: state and cell before the first word: examples x units.
            bias: of each gate; those that torch has twice added up.
            seconds: of operations, where they are asked for, see `Session.seconds`.
        """
        reading = Reading(self.program.session(self.threads))
        reading.session.seconds = seconds
        self._fill(reading, weights)
        rows = self._products.rows // self.gates.geometry.bytes
        table = self.program.ops[self.forth.start].args[0]
        assert isinstance(table, np.ndarray)
        table[:, -rows.shape[1] :] = bias.numpy()[rows].view(np.int32)
        self._put(reading, self.x, x)
        for value, before in zip((self.states, self.cells), past, strict=True):
            self._put(reading, self._at(value, 0), before[None])
        self._run(reading, self.forth)
        return reading

    def _fill(self, reading: Reading, weights: Mapping[str, Tensor]) -> None:
        for name, number in self._gathers.items():
            reading.session.run(number, number + 1, [weights[name].detach().contiguous().data_ptr()])
        self._filled = reading.number

    def _run(self, reading: Reading, ops: range) -> None:
        if len(ops):
            reading.session.run(ops.start, ops.stop, shared=True)

    def outputs(self, reading: Reading) -> tuple[Tensor, Tensor, Tensor]:
        """States of all words, words x examples x units; state and cell behind the last one."""
        words = self.text.words
        states = self._take(reading, self._at(self.states, 1, words))
        return states, states[-1].clone(), self._take(reading, self._at(self.cells, words))[0]

    def gradients_of(
        self, reading: Reading, given: tuple[Tensor, Tensor, Tensor], weights: Mapping[str, Tensor], *, inputs: bool
    ) -> dict[str, Tensor]:
        """A pass back: gradients of both weights, by their names, of ``bias``, ``h`` and ``c``, and ``x``.

        Args:
            given: gradients of what `outputs` gives.
            inputs: whether that of ``x`` is asked for.
        """
        words, session = self.text.words, reading.session
        if self._filled != reading.number:  # another call, with other weights, was between
            self._fill(reading, weights)
        if len(self._later):
            session.run(self._later.start, self._later.stop)
        self._put(reading, self._at(self.gradients, 1, words), given[0])
        last = self._view(reading, self._at(self.gradients, words))
        more = torch.empty_like(last)
        _spread(more, given[1][None])
        last += more
        self._view(reading, self._at(self.gradients, 0)).zero_()
        self._put(reading, self.carried, given[2][None])
        self._run(reading, self.back)
        found = {
            "h": self._take(reading, self._at(self.gradients, 0))[0],
            "c": self._take(reading, self.carried)[0],
        }
        for name in (INPUTS, STATES):
            found[name] = (
                torch.zeros_like(weights[name]) if name not in self.to_weights else self._weight(reading, name)
            )
        self._run(reading, self.to_bias)
        total = sums_of(self.program.ops[self.to_bias.start], self._target)[:, 0]
        found["bias"] = torch.from_numpy(total.astype(np.float32))
        if inputs:
            self._run(reading, self.to_inputs)
            found["x"] = self._take(reading, self.dx)
        return found

    def _weight(self, reading: Reading, name: str) -> Tensor:
        self._run(reading, self.to_weights[name])
        packed = torch.empty(self._packed[name], dtype=torch.float32, device="cpu")
        ends = self._ends_of[name]
        gradient = torch.empty(self._layers[name].kept.shape[:2], dtype=torch.float32, device="cpu")
        reading.session.run(ends.start, ends.stop, [packed.data_ptr(), gradient.data_ptr()])
        return gradient

    # -- to and from tensors -----------------------------------------------------------------------------------------

    def _view(self, reading: Reading, value: Batch) -> Tensor:
        """A value where it lies: words x blocks x channels x 16."""
        memory = reading.session.arena[value.offset : value.offset + value.bytes].view(np.float32)
        return torch.from_numpy(memory).view(-1, self.text.blocks, value.channels, IMAGES)

    def _put(self, reading: Reading, value: Batch, tensor: Tensor) -> None:
        _spread(self._view(reading, value), tensor.detach())

    def _take(self, reading: Reading, value: Batch) -> Tensor:
        """A value as words x examples x channels."""
        lies = self._view(reading, value).transpose(2, 3)
        return lies.reshape(len(lies), -1, value.channels)[:, : self.text.batch].contiguous()


def _spread(lies: Tensor, tensor: Tensor) -> None:
    """Words x examples x channels to words x blocks x channels x 16, with zeros where there are no more examples."""
    batch = tensor.shape[1]
    whole = batch // IMAGES
    if whole:
        full = tensor[:, : whole * IMAGES]
        lies[:, :whole].copy_(full.reshape(len(full), whole, IMAGES, -1).transpose(2, 3))
    if rest := batch - whole * IMAGES:
        lies[:, whole, :, :rest].copy_(tensor[:, whole * IMAGES :].transpose(1, 2))
        lies[:, whole, :, rest:].zero_()
