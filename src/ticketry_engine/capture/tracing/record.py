"""A model captured by watching it run without data, for three numbers of examples and once more for one.

What is the same in all three is a constant; an integer that lies on one line over them is a multiple of the number of
examples and a rest. In the third call the model is shown sizes that know this (`Examples`), so that a decision by the
number of examples is noticed. All this is of two examples and more; a fourth call tells whether it holds for one too.
Whatever cannot be told for sure is left to torch.export, which proves it, and takes a second more.
"""

from __future__ import annotations

import copy
import inspect
import operator
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import (
    GetAttrKey,
    MappingKey,
    SequenceKey,
    tree_flatten,
    tree_flatten_with_path,
)

from ticketry_engine.capture.tracing.examples import Examples, NotRecordedError
from ticketry_engine.capture.tracing.lines import Line, is_as_said, is_of_shape
from ticketry_engine.capture.tracing.program import ASKED_FOR, Constant, Multiple, Program, fixed
from ticketry_engine.capture.tracing.python_state import first_change, state_of
from ticketry_engine.capture.tracing.side_effects import Containers, writes_to_input, writes_to_weight
from ticketry_engine.capture.tracing.tape import Reads, Recorder, Ref, Step, Tape
from ticketry_engine.capture.tracing.torch_export import Arguments, leads, plain, quiet
from ticketry_engine.capture.tracing.writes import without_writes
from ticketry_engine.errors import CaptureError
from ticketry_engine.support.process_state import ONE_AT_A_TIME

_EXAMPLES = (2, 3, 8191)
"""Of how many examples the calls are: few, and more than a model cuts off by a number of its own (`x[:100]`, `x[-12:]`,
`x.split(64)`); on no line with sizes that halves or roots of them have."""


def record(model: nn.Module, arguments: Arguments, *, dynamic_batch: bool) -> Program:
    """The operations of a model in evaluation mode, as torch.export would give them.

    Args:
        model: on the CPU. It is left as it is: copies of it without data are called.
        arguments: what it is called with; of tensors the shapes and types matter.
        dynamic_batch: for any number of examples from two on; else for that of the arguments.

    Raises:
        CaptureError: if it writes to an input, a parameter or a buffer.
        FixedSizeError: if it cannot hold for other sizes of the leading axis.
        NotRecordedError: if that cannot be had for sure: by what the model does, or since it does not run.
    """
    examples = arguments.examples
    if dynamic_batch and examples is None:
        raise FixedSizeError("the inputs have no leading axis")
    try:
        with ONE_AT_A_TIME, quiet(), plain():
            return _recorded(model, arguments, examples if dynamic_batch else None)
    except CaptureError:
        raise
    except Exception as error:  # a model may fail in any way
        raise NotRecordedError(f"{type(error).__name__}: {str(error)[:200]}") from error


def _recorded(model: nn.Module, arguments: Arguments, examples: int | None) -> Program:
    twin = _Twin(model)
    calls = [_Call(twin, arguments)] if examples is None else _three_calls(twin, arguments, examples)
    first = calls[0]
    steps = [_merged_step(several) for several in zip(*(call.tape.steps for call in calls), strict=True)]
    outputs = _merged([call.outputs for call in calls])
    if any(call.out_spec != first.out_spec for call in calls):
        raise NotRecordedError("other containers for other numbers of examples")
    shapes = [_shape(calls, index) for index in range(len(first.tape.tensors))]
    program = _Writer(twin.weights, first, shapes).program(steps, outputs)
    if examples is None:
        return program
    try:
        one = _Call(twin, arguments, examples, 1)
    except (Exception, NotRecordedError):  # it insists on several
        return replace(program, for_one=False)
    same = one.out_spec == first.out_spec and is_as_said((steps, outputs), (one.tape.steps, one.outputs), 1)
    same = same and all(is_of_shape(*pair, 1) for pair in zip(shapes, one.tape.shapes, strict=True))
    return replace(program, for_one=same)


def _three_calls(twin: _Twin, arguments: Arguments, examples: int) -> list[_Call]:
    try:
        calls = [_Call(twin, arguments, examples, number) for number in _EXAMPLES[:2]]
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        if isinstance(error, NotImplementedError):  # an operation that has no rule for shapes
            raise
        raise FixedSizeError(f"the model fails for another size of axis 0 ({str(error)[:100]})") from error
    if [step.op for step in calls[0].tape.steps] != [step.op for step in calls[1].tape.steps]:
        raise FixedSizeError("the model does other operations for other sizes of axis 0")
    number = _EXAMPLES[2]

    def sizes(ref: Ref) -> list[int]:
        if ref.index >= len(calls[0].tape.tensors):
            raise NotRecordedError("other operations for other numbers of examples")
        return [_stand_in(size, number) for size in _shape(calls, ref.index)]

    return [*calls, _Call(twin, arguments, examples, number, sizes)]


def _stand_in(size: int | Line | None, examples: int) -> int:
    if size is None:
        raise NotRecordedError("a size that depends on the number of examples in a way of its own")
    return Examples(*size, examples) if isinstance(size, Line) else size


# -- one call ----------------------------------------------------------------------------------------------------------


class FixedSizeError(NotRecordedError):
    """Why what a model does depends on the size of the leading axis, so that it is captured for one size."""


class _Twin:
    """A copy of a model whose weights have shapes alone, and which no call may change."""

    def __init__(self, model: nn.Module) -> None:
        self.weights: list[tuple[str, Tensor, Tensor]] = []
        """Name, the model's own, and what takes its place."""
        stands_for: dict[int, Any] = {}
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if type(tensor) not in (Tensor, nn.Parameter):
                raise NotRecordedError(f"a weight that is a {type(tensor).__name__}")
            if id(tensor) not in stands_for:
                meta: Tensor = torch.empty_like(tensor, device="meta")
                if isinstance(tensor, nn.Parameter):
                    meta = nn.Parameter(meta, requires_grad=False)
                stands_for[id(tensor)] = meta
                self.weights.append((name, tensor, meta))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # recurrent layers say that their weights are not in one piece
            self.model: nn.Module = copy.deepcopy(model, stands_for)
        self._state = state_of(self.model)

    def check(self, tape: Tape, inputs: Sequence[str]) -> None:
        """Make sure that a call has changed nothing that is left after it.

        Args:
            inputs: names of the tensors that the call was given, in the tape's order.

        Raises:
            CaptureError: if it has written to a weight or an input.
            NotRecordedError: if it has changed what the model holds besides.
        """
        names = [name for name, _, _ in self.weights]
        if tape.written:
            first = min(tape.written)
            if first < len(names):
                raise writes_to_weight(names[first])
            raise writes_to_input(inputs[first - len(names)])
        changed = first_change(self._state, state_of(self.model))
        if changed is not None:
            raise NotRecordedError(f"a model that changes {changed!r} when it is called")


class _Call:
    """One call of the twin, and what came of it.

    Args:
        examples: the size of leading axes that become `number`; None: all are left as they are.
        sizes: as `Reads` takes it.
    """

    def __init__(
        self,
        twin: _Twin,
        arguments: Arguments,
        examples: int | None = None,
        number: int | None = None,
        sizes: Callable[[Ref], Sequence[int]] | None = None,
    ) -> None:
        self.examples = number
        meta = arguments.map(lambda tensor: _resized(tensor, examples, number))
        self.leaves, self.in_spec = tree_flatten((meta.args, meta.kwargs))
        self.names = _names(twin.model, meta)
        inputs = [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]
        self.tape = Tape([*(stand_in for _, _, stand_in in twin.weights), *inputs])
        containers = Containers(twin.model, meta)
        tracing = torch._C._EnablePythonDispatcher(), torch._C._EnablePreDispatch()
        with tracing[0], tracing[1], Recorder(self.tape), Reads(self.tape, sizes):
            made = twin.model(*meta.args, **meta.kwargs)
        names = zip(self.names, self.leaves, strict=True)
        twin.check(self.tape, [name for name, leaf in names if isinstance(leaf, Tensor)])
        containers.check()
        leaves, self.out_spec = tree_flatten(made)
        self.outputs = [self.tape.find_all(leaf) for leaf in leaves]


def _resized(tensor: Tensor, examples: int | None, number: int | None) -> Tensor:
    if number is not None and leads(tensor, examples):
        return torch.empty((number, *tensor.shape[1:]), dtype=tensor.dtype, device="meta")
    return torch.empty_like(tensor, device="meta")


def _names(model: nn.Module, arguments: Arguments) -> list[str]:
    """What the leaves of the arguments are called, as torch.export has it: by parameter and place in containers."""
    bound = inspect.signature(model.forward).bind(*arguments.args, **arguments.kwargs).arguments
    found = []
    for path, _ in tree_flatten_with_path(bound)[0]:
        found.append("_".join(_key(part) for part in path).lower())
    return found


def _key(part: Any) -> str:
    if isinstance(part, MappingKey):
        return re.sub(r"[^a-zA-Z0-9]", "_", str(part.key))
    if isinstance(part, SequenceKey):
        return str(part.idx)
    if isinstance(part, GetAttrKey):
        return str(part.name)
    raise NotRecordedError(f"an input in a container of {type(part).__name__}")


# -- what several calls have in common ---------------------------------------------------------------------------------


def _merged_step(several: Sequence[Step]) -> Step:
    first = several[0]
    if any(step.op is not first.op or step.made != first.made for step in several):
        raise NotRecordedError("other operations for other numbers of examples")
    return Step(
        first.op, _merged([step.args for step in several]), _merged([step.kwargs for step in several]), first.made
    )


def _merged(several: Sequence[Any]) -> Any:
    """The same containers with `Line` in the place of integers that differ."""
    first = several[0]
    if any(type(each) is not type(first) for each in several):
        raise NotRecordedError("other arguments for other numbers of examples")
    if isinstance(first, (list, tuple)):
        if any(len(each) != len(first) for each in several):
            raise NotRecordedError("other arguments for other numbers of examples")
        return tuple(_merged(parts) for parts in zip(*several, strict=True))
    if isinstance(first, dict):
        return {name: _merged([each[name] for each in several]) for name in first}
    if all(each is first or each == first for each in several):
        return first
    line = _line(several) if type(first) is int else None
    if line is None:
        raise NotRecordedError(f"{first} for two examples and {several[1]} for three")
    return line


def _line(numbers: Sequence[int]) -> Line | None:
    """The line on which numbers of the first calls lie, if there is one."""
    step, left = divmod(numbers[1] - numbers[0], _EXAMPLES[1] - _EXAMPLES[0])
    line = Line(step, numbers[0] - step * _EXAMPLES[0])
    fits = not left and all(line.at(examples) == number for examples, number in zip(_EXAMPLES, numbers, strict=False))
    return line if fits else None


def _shape(calls: Sequence[_Call], index: int) -> list[int | Line | None]:
    """Sizes of a tensor for any number of examples; None is one that is on no line."""
    shapes = [call.tape.shapes[index] for call in calls]
    if any(len(shape) != len(shapes[0]) for shape in shapes):
        raise NotRecordedError("other shapes for other numbers of examples")
    return [sizes[0] if len(set(sizes)) == 1 else _line(sizes) for sizes in zip(*shapes, strict=True)]


# -- the graph ---------------------------------------------------------------------------------------------------------


class _Writer:
    """Writes merged steps as a graph of torch.fx."""

    def __init__(
        self, weights: Sequence[tuple[str, Tensor, Tensor]], call: _Call, shapes: Sequence[Sequence[int | Line | None]]
    ) -> None:
        self.call = call
        self.shapes = shapes
        self.graph = fx.Graph()
        self.nodes: dict[int, fx.Node] = {}
        self.weights: dict[str, tuple[str, Tensor]] = {}
        self.inputs: list[str | Constant] = []
        self._numbers: dict[Line, fx.Node] = {}
        self._batch: tuple[fx.Node, int] | None = None
        self._placeholders(weights)

    def _placeholders(self, weights: Sequence[tuple[str, Tensor, Tensor]]) -> None:
        index = len(weights)
        for name, leaf in zip(self.call.names, self.call.leaves, strict=True):
            if not isinstance(leaf, Tensor):
                self.inputs.append(Constant(leaf))
                continue
            node = self._hold(index, self.graph.placeholder(name))
            if name not in self.inputs:
                node.name = name  # fx keeps names of Python's own, as `input`, from being used
            self.inputs.append(node.name)
            if self._batch is None and self.shapes[index] and self.shapes[index][0] == Line(1, 0):
                self._batch = (node, 0)
            index += 1
        for index, (name, tensor, _) in enumerate(weights):
            node = self._hold(index, self.graph.placeholder("p_" + re.sub(r"[^a-zA-Z0-9]", "_", name).lower()))
            self.weights[node.name] = (name, tensor)

    def _hold(self, index: int, node: fx.Node) -> fx.Node:
        node.meta["val"] = self.call.tape.tensors[index]
        node.meta["sizes"] = tuple(_known(size) for size in self.shapes[index])
        self.nodes[index] = node
        return node

    def program(self, steps: Iterable[Step], outputs: Sequence[Any]) -> Program:
        if self._batch is not None:
            self._number(Line(1, 0))
        for step in steps:
            self._step(step)
        found = [self._argument(leaf) if isinstance(leaf, (Ref, Line)) else leaf for leaf in outputs]
        self.graph.output(tuple(found))
        if not without_writes(self.graph):
            raise NotRecordedError("a tensor that is written to while others read its memory")
        written: Any = self.graph.output_node().args[0]
        return Program(
            graph=self.graph,
            inputs=self.inputs,
            weights=self.weights,
            outputs=[one if isinstance(one, fx.Node) else Constant(one) for one in written],
            in_spec=self.call.in_spec,
            out_spec=self.call.out_spec,
            sizes=lambda node: node.meta["sizes"],
            notes=fixed("" if self.call.examples is not None else ASKED_FOR),
        )

    def _step(self, step: Step) -> None:
        args, kwargs = self._argument(step.args), self._argument(step.kwargs)
        name = step.op._schema.name.partition("::")[2]
        node = self.graph.create_node("call_function", step.op, args, kwargs, name=name)
        if isinstance(step.made, Ref):
            self._hold(step.made.index, node)
        elif step.made is not None:
            node.meta["val"] = tuple(self.call.tape.tensors[ref.index] for ref in step.made)
            for place, ref in enumerate(step.made):
                self._hold(ref.index, self.graph.call_function(operator.getitem, (node, place)))

    def _argument(self, given: Any) -> Any:
        if isinstance(given, Ref):
            return self.nodes[given.index]
        if isinstance(given, Line):
            return self._number(given)
        if isinstance(given, tuple):
            return tuple(self._argument(part) for part in given)
        if isinstance(given, dict):
            return {name: self._argument(part) for name, part in given.items()}
        return given

    def _number(self, line: Line) -> fx.Node:
        """An integer that depends on the number of examples, computed from the size of an input."""
        found = self._numbers.get(line)
        if found is None:
            found = self._numbers[line] = self._computed(line)
            assert self.call.examples is not None
            found.meta["val"] = line.at(self.call.examples)
        return found

    def _computed(self, line: Line) -> fx.Node:
        if line == Line(1, 0):
            if self._batch is None:
                raise NotRecordedError("no input has the number of examples as its size")
            return self.graph.create_node(
                "call_function", torch.ops.aten.sym_size.int, self._batch, name="sym_size_int"
            )
        if line.more:
            return self.graph.call_function(operator.add, (self._number(Line(line.per_example, 0)), line.more))
        return self.graph.call_function(operator.mul, (self._number(Line(1, 0)), line.per_example))


def _known(size: int | Line | None) -> int | Multiple | None:
    if isinstance(size, Line):
        return Multiple(size.per_example) if not size.more else None
    return size
