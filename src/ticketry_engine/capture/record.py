"""Records a model by calling it on the meta device with 2, 3 and 8191 examples, and then with one example.

A number that is equal in the first three calls is a constant. An integer that is linear in the number of examples
becomes a `LinearSize`. In the third call, sizes that depend on the batch are `Examples` objects, which raise an
error if the model branches on the number of examples. The fourth call checks that the graph also holds for one
example. If anything is uncertain, the capture uses torch.export, which proves validity but takes a second longer.
"""

from __future__ import annotations

import copy
import inspect
import math
import operator
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import GetAttrKey, MappingKey, SequenceKey, tree_flatten, tree_flatten_with_path

from ticketry_engine.capture.meta_shapes import SHAPES
from ticketry_engine.capture.program import (
    Arguments,
    Constant,
    Examples,
    Multiple,
    NotRecordedError,
    TracedProgram,
    has_batch_first,
    silence_loggers,
    traceable_torch,
)
from ticketry_engine.capture.side_effects import (
    ArgumentContainers,
    first_change,
    input_write_error,
    model_state,
    replace_writes,
    weight_write_error,
)
from ticketry_engine.errors import CaptureError
from ticketry_engine.support.process_state import ONE_AT_A_TIME

_EXAMPLES = (2, 3, 8191)
"""Numbers of examples of the recorded calls.

The last number is larger than the bounds at which models slice the batch (`x[:100]`, `x.split(64)`).
"""


def record(model: nn.Module, arguments: Arguments, *, dynamic_batch: bool) -> TracedProgram:
    """Return the operations of a model in evaluation mode, as torch.export would return them.

    `model` must be on the CPU. The function calls a copy without data, and does not change `model`. Of the tensors in
    `arguments`, only shapes and dtypes matter. If `dynamic_batch`, the result is valid for two or more examples, else
    only for the number in `arguments`.

    Raise `CaptureError` if the model writes to an input, a parameter or a buffer; `FixedSizeError` if its operations
    are not valid for other sizes of axis 0; and `NotRecordedError` if the validity is uncertain, or if the model does
    not run.
    """
    examples = arguments.examples
    if dynamic_batch and examples is None:
        raise FixedSizeError("the inputs have no leading axis")
    try:
        with ONE_AT_A_TIME, silence_loggers(), traceable_torch():
            return _record_calls(model, arguments, examples if dynamic_batch else None)
    except CaptureError:
        raise
    except Exception as error:  # a model may fail in any way
        raise NotRecordedError(f"{type(error).__name__}: {str(error)[:200]}") from error


def _record_calls(model: nn.Module, arguments: Arguments, examples: int | None) -> TracedProgram:
    twin = _MetaCopy(model)
    calls = [_RecordedCall(twin, arguments)] if examples is None else _record_three_calls(twin, arguments, examples)
    first = calls[0]
    steps = [_merge_recorded_ops(several) for several in zip(*(call.tape.steps for call in calls), strict=True)]
    outputs = _merge_containers_of_calls([call.outputs for call in calls])
    if any(call.out_spec != first.out_spec for call in calls):
        raise NotRecordedError("other containers for other numbers of examples")
    shapes = [_merge_shapes(calls, index) for index in range(len(first.tape.tensors))]
    program = _GraphWriter(twin.weights, first, shapes).write_program(steps, outputs)
    if examples is None:
        return program
    try:
        one = _RecordedCall(twin, arguments, examples, 1)
    except (Exception, NotRecordedError):  # it insists on several
        return replace(program, for_one=False)
    same = one.out_spec == first.out_spec and matches_call((steps, outputs), (one.tape.steps, one.outputs), 1)
    same = same and all(matches_shape(*pair, 1) for pair in zip(shapes, one.tape.shapes, strict=True))
    return replace(program, for_one=same)


def _record_three_calls(twin: _MetaCopy, arguments: Arguments, examples: int) -> list[_RecordedCall]:
    try:
        calls = [_RecordedCall(twin, arguments, examples, number) for number in _EXAMPLES[:2]]
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        if isinstance(error, NotImplementedError):  # an operation that has no rule for shapes
            raise
        raise FixedSizeError(f"the model fails for another size of axis 0 ({str(error)[:100]})") from error
    if [step.op for step in calls[0].tape.steps] != [step.op for step in calls[1].tape.steps]:
        raise FixedSizeError("the model does other operations for other sizes of axis 0")
    number = _EXAMPLES[2]

    def sizes_for_code(ref: Ref) -> list[int]:
        if ref.index >= len(calls[0].tape.tensors):
            raise NotRecordedError("other operations for other numbers of examples")
        return [_size_seen_by_code(size, number) for size in _merge_shapes(calls, ref.index)]

    return [*calls, _RecordedCall(twin, arguments, examples, number, sizes_for_code)]


def _size_seen_by_code(size: int | LinearSize | None, examples: int) -> int:
    if size is None:
        raise NotRecordedError("a size that depends on the number of examples in a way of its own")
    return Examples(*size, examples) if isinstance(size, LinearSize) else size


# -- one call ----------------------------------------------------------------------------------------------------------


class FixedSizeError(NotRecordedError):
    """Error if a model's operations depend on the number of examples, so that a graph fits only one number."""


class _MetaCopy:
    """A copy of a model with its weights on the meta device (without data), which is called in place of the model."""

    def __init__(self, model: nn.Module) -> None:
        self.weights: list[tuple[str, Tensor, Tensor]] = []
        """(Name of a weight, tensor of the model, meta tensor of the copy) for each weight."""
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
        self._state = model_state(self.model)

    def check_unchanged(self, tape: Tape, inputs: Sequence[str]) -> None:
        """Raise an error if the recorded call changed weights, attributes or inputs; `inputs` are names of tensors."""
        names = [name for name, _, _ in self.weights]
        if tape.written:
            first = min(tape.written)
            if first < len(names):
                raise weight_write_error(names[first])
            raise input_write_error(inputs[first - len(names)])
        changed = first_change(self._state, model_state(self.model))
        if changed is not None:
            raise NotRecordedError(f"a model that changes {changed!r} when it is called")


class _RecordedCall:
    """The recorded operations and outputs of one call of the model's copy on the meta device.

    Args:
        twin: the copy of the model.
        arguments: the example inputs, whose shapes and dtypes are used.
        examples: size of axis 0 that marks the batch of an input; None: the inputs keep their sizes.
        number: number of examples of this call, which replaces `examples`.
        sizes: function from a `Ref` to the sizes that the model's code sees, as in `SizeQueries`.
    """

    def __init__(
        self,
        twin: _MetaCopy,
        arguments: Arguments,
        examples: int | None = None,
        number: int | None = None,
        sizes: Callable[[Ref], Sequence[int]] | None = None,
    ) -> None:
        self.examples = number
        meta = arguments.map_tensors(lambda tensor: _meta_tensor(tensor, examples, number))
        self.leaves, self.in_spec = tree_flatten((meta.args, meta.kwargs))
        self.names = _leaf_names(twin.model, meta)
        inputs = [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]
        self.tape = Tape([*(stand_in for _, _, stand_in in twin.weights), *inputs])
        containers = ArgumentContainers(twin.model, meta)
        tracing = torch._C._EnablePythonDispatcher(), torch._C._EnablePreDispatch()
        with tracing[0], tracing[1], Recorder(self.tape), SizeQueries(self.tape, sizes):
            made = twin.model(*meta.args, **meta.kwargs)
        names = zip(self.names, self.leaves, strict=True)
        twin.check_unchanged(self.tape, [name for name, leaf in names if isinstance(leaf, Tensor)])
        containers.check()
        leaves, self.out_spec = tree_flatten(made)
        self.outputs = [self.tape.refs_in(leaf) for leaf in leaves]


def _meta_tensor(tensor: Tensor, examples: int | None, number: int | None) -> Tensor:
    if number is not None and has_batch_first(tensor, examples):
        return torch.empty((number, *tensor.shape[1:]), dtype=tensor.dtype, device="meta")
    return torch.empty_like(tensor, device="meta")


def _leaf_names(model: nn.Module, arguments: Arguments) -> list[str]:
    """Return the name that torch.export would give to each tensor or constant in the arguments."""
    bound = inspect.signature(model.forward).bind(*arguments.args, **arguments.kwargs).arguments
    found = []
    for path, _ in tree_flatten_with_path(bound)[0]:
        found.append("_".join(_key_name(part) for part in path).lower())
    return found


def _key_name(part: Any) -> str:
    if isinstance(part, MappingKey):
        return re.sub(r"[^a-zA-Z0-9]", "_", str(part.key))
    if isinstance(part, SequenceKey):
        return str(part.idx)
    if isinstance(part, GetAttrKey):
        return str(part.name)
    raise NotRecordedError(f"an input in a container of {type(part).__name__}")


# -- what several calls have in common ---------------------------------------------------------------------------------


def _merge_recorded_ops(several: Sequence[RecordedOp]) -> RecordedOp:
    first = several[0]
    if any(step.op is not first.op or step.made != first.made for step in several):
        raise NotRecordedError("other operations for other numbers of examples")
    return RecordedOp(
        first.op,
        _merge_containers_of_calls([step.args for step in several]),
        _merge_containers_of_calls([step.kwargs for step in several]),
        first.made,
    )


def _merge_containers_of_calls(several: Sequence[Any]) -> Any:
    """Return one container for the equal containers of several calls, which had different numbers of examples.

    An integer that differs between the calls becomes a `LinearSize`, a function of the number of examples.
    """
    first = several[0]
    if any(type(each) is not type(first) for each in several):
        raise NotRecordedError("other arguments for other numbers of examples")
    if isinstance(first, (list, tuple)):
        if any(len(each) != len(first) for each in several):
            raise NotRecordedError("other arguments for other numbers of examples")
        return tuple(_merge_containers_of_calls(parts) for parts in zip(*several, strict=True))
    if isinstance(first, dict):
        return {name: _merge_containers_of_calls([each[name] for each in several]) for name in first}
    if all(each is first or each == first for each in several):
        return first
    line = _fit_linear_size(several) if type(first) is int else None
    if line is None:
        raise NotRecordedError(f"{first} for two examples and {several[1]} for three")
    return line


def _fit_linear_size(numbers: Sequence[int]) -> LinearSize | None:
    """Return the linear function of the number of examples that gives `numbers`, or None if there is none.

    `numbers` are the values for the numbers of examples in `_EXAMPLES`.
    """
    step, left = divmod(numbers[1] - numbers[0], _EXAMPLES[1] - _EXAMPLES[0])
    line = LinearSize(step, numbers[0] - step * _EXAMPLES[0])
    fits = not left and all(
        line.evaluate(examples) == number for examples, number in zip(_EXAMPLES, numbers, strict=False)
    )
    return line if fits else None


def _merge_shapes(calls: Sequence[_RecordedCall], index: int) -> list[int | LinearSize | None]:
    """Return the sizes of the tensor that has the number `index` in each of the calls.

    A size that varies with the number of examples is a `LinearSize`, or None if it is not linear.
    """
    shapes = [call.tape.shapes[index] for call in calls]
    if any(len(shape) != len(shapes[0]) for shape in shapes):
        raise NotRecordedError("other shapes for other numbers of examples")
    return [sizes[0] if len(set(sizes)) == 1 else _fit_linear_size(sizes) for sizes in zip(*shapes, strict=True)]


# -- the graph ---------------------------------------------------------------------------------------------------------


class _GraphWriter:
    """Writes recorded operations as a torch.fx graph, in which sizes may depend on the number of examples."""

    def __init__(
        self,
        weights: Sequence[tuple[str, Tensor, Tensor]],
        call: _RecordedCall,
        shapes: Sequence[Sequence[int | LinearSize | None]],
    ) -> None:
        self.call = call
        self.shapes = shapes
        self.graph = fx.Graph()
        self.nodes: dict[int, fx.Node] = {}
        self.weights: dict[str, tuple[str, Tensor]] = {}
        self.inputs: list[str | Constant] = []
        self._numbers: dict[LinearSize, fx.Node] = {}
        self._batch: tuple[fx.Node, int] | None = None
        self._add_placeholders(weights)

    def _add_placeholders(self, weights: Sequence[tuple[str, Tensor, Tensor]]) -> None:
        index = len(weights)
        for name, leaf in zip(self.call.names, self.call.leaves, strict=True):
            if not isinstance(leaf, Tensor):
                self.inputs.append(Constant(leaf))
                continue
            node = self._register_node(index, self.graph.placeholder(name))
            if name not in self.inputs:
                node.name = name  # fx keeps names of Python's own, as `input`, from being used
            self.inputs.append(node.name)
            if self._batch is None and self.shapes[index] and self.shapes[index][0] == LinearSize(1, 0):
                self._batch = (node, 0)
            index += 1
        for index, (name, tensor, _) in enumerate(weights):
            node = self._register_node(index, self.graph.placeholder("p_" + re.sub(r"[^a-zA-Z0-9]", "_", name).lower()))
            self.weights[node.name] = (name, tensor)

    def _register_node(self, index: int, node: fx.Node) -> fx.Node:
        node.meta["val"] = self.call.tape.tensors[index]
        node.meta["sizes"] = tuple(_size_for_batch(size) for size in self.shapes[index])
        self.nodes[index] = node
        return node

    def write_program(self, steps: Iterable[RecordedOp], outputs: Sequence[Any]) -> TracedProgram:
        if self._batch is not None:
            self._fetch_size_node(LinearSize(1, 0))
        for step in steps:
            self._add_op(step)
        found = [self._convert_argument(leaf) if isinstance(leaf, (Ref, LinearSize)) else leaf for leaf in outputs]
        self.graph.output(tuple(found))
        if not replace_writes(self.graph):
            raise NotRecordedError("a tensor that is written to while others read its memory")
        written: Any = self.graph.output_node().args[0]
        return TracedProgram(
            graph=self.graph,
            inputs=self.inputs,
            weights=self.weights,
            outputs=[one if isinstance(one, fx.Node) else Constant(one) for one in written],
            in_spec=self.call.in_spec,
            out_spec=self.call.out_spec,
            sizes=lambda node: node.meta["sizes"],
        )

    def _add_op(self, step: RecordedOp) -> None:
        args, kwargs = self._convert_argument(step.args), self._convert_argument(step.kwargs)
        name = step.op._schema.name.partition("::")[2]
        node = self.graph.create_node("call_function", step.op, args, kwargs, name=name)
        if isinstance(step.made, Ref):
            self._register_node(step.made.index, node)
        elif step.made is not None:
            node.meta["val"] = tuple(self.call.tape.tensors[ref.index] for ref in step.made)
            for place, ref in enumerate(step.made):
                self._register_node(ref.index, self.graph.call_function(operator.getitem, (node, place)))

    def _convert_argument(self, given: Any) -> Any:
        if isinstance(given, Ref):
            return self.nodes[given.index]
        if isinstance(given, LinearSize):
            return self._fetch_size_node(given)
        if isinstance(given, tuple):
            return tuple(self._convert_argument(part) for part in given)
        if isinstance(given, dict):
            return {name: self._convert_argument(part) for name, part in given.items()}
        return given

    def _fetch_size_node(self, line: LinearSize) -> fx.Node:
        """Return the node that computes the integer `line` from the number of examples, and add it on first use."""
        found = self._numbers.get(line)
        if found is None:
            found = self._numbers[line] = self._add_size_node(line)
            assert self.call.examples is not None
            found.meta["val"] = line.evaluate(self.call.examples)
        return found

    def _add_size_node(self, line: LinearSize) -> fx.Node:
        if line == LinearSize(1, 0):
            if self._batch is None:
                raise NotRecordedError("no input has the number of examples as its size")
            return self.graph.create_node(
                "call_function", torch.ops.aten.sym_size.int, self._batch, name="sym_size_int"
            )
        if line.more:
            return self.graph.call_function(
                operator.add, (self._fetch_size_node(LinearSize(line.per_example, 0)), line.more)
            )
        return self.graph.call_function(operator.mul, (self._fetch_size_node(LinearSize(1, 0)), line.per_example))


def _size_for_batch(size: int | LinearSize | None) -> int | Multiple | None:
    if isinstance(size, LinearSize):
        return Multiple(size.per_example) if not size.more else None
    return size


# -- tape --------------------------------------------------------------------------------------------------------------

# The recorded operations are those that torch.export sees, before torch decomposes composite operations. They are
# intercepted at the same place as by torch's tracer, but no size is symbolic and torch's compiler is not loaded, which
# takes most of the time of an export. If something cannot be recorded, an error is raised and torch.export is used.


_META = torch.device("meta")
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Ref:
    """Stands for a recorded tensor: `index` is the tensor's number in the order in which tensors were created."""

    index: int


@dataclass(frozen=True)
class RecordedOp:
    """A recorded operation with its arguments and results, where a `Ref` stands for each tensor."""

    op: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    made: Ref | tuple[Ref, ...] | None


class Tape:
    """Records the tensors of one call in order of creation, and the operations that compute them."""

    def __init__(self, given: Sequence[Tensor]) -> None:
        self.tensors: list[Tensor] = []  # held, so that no other tensor gets the same id
        self.shapes: list[tuple[int, ...]] = []
        self.steps: list[RecordedOp] = []
        self.written: set[int] = set()
        """Indices of those weights and inputs whose memory an operation wrote to, directly or through a view."""
        self._adopted: list[Tensor] = []
        self._place: dict[int, Ref] = {}
        self._memory: dict[int, int] = {}
        for index, tensor in enumerate(given):
            self.add_tensor(tensor)
            self._memory[_memory_id(tensor)] = index

    def add_tensor(self, tensor: Tensor) -> Ref:
        """Give a number to a tensor, and return it as a `Ref`; a tensor that was changed in place gets a new number."""
        before = self._place.get(id(tensor))
        if before is not None and self.shapes[before.index] != tuple(tensor.shape):
            raise NotRecordedError("a tensor whose shape is changed in place")
        ref = self._place[id(tensor)] = Ref(len(self.tensors))
        self.tensors.append(tensor)
        self.shapes.append(tuple(tensor.shape))
        return ref

    def record_write(self, tensor: Tensor) -> None:
        """Record in `written` that an operation wrote to `tensor`, if a weight or input has the same memory."""
        index = self._memory.get(_memory_id(tensor))
        if index is not None:
            self.written.add(index)

    def alias_last_result(self, tensor: Tensor) -> None:
        """Record that `tensor` is the result of the last operation, which torch returned as another Python object."""
        if id(tensor) in self._place or not self.steps:
            return
        last = self.steps[-1]
        if not isinstance(last.made, Ref) or _contains_ref(last.args):
            return
        made = self.tensors[last.made.index]
        if (made.shape, made.dtype, made.device) == (tensor.shape, tensor.dtype, tensor.device):
            self._place[id(tensor)] = last.made
            self._adopted.append(tensor)

    def find_ref(self, tensor: Tensor) -> Ref:
        """Return the `Ref` that stands for a tensor; raise `NotRecordedError` if the tensor was not recorded."""
        try:
            return self._place[id(tensor)]
        except KeyError:
            raise NotRecordedError("a tensor that is neither a weight nor an input nor made of those") from None

    def refs_in(self, given: Any) -> Any:
        """Return the containers `given` with a `Ref` in place of each tensor; lists become tuples."""
        if isinstance(given, Tensor):
            return self.find_ref(given)
        if isinstance(given, (list, tuple)):
            return tuple(self.refs_in(part) for part in given)
        if isinstance(given, dict):
            return {name: self.refs_in(part) for name, part in given.items()}
        return given


def _memory_id(tensor: Tensor) -> int:
    """Return a number that identifies a tensor's memory; a tensor and its views have the same number."""
    return int(tensor.untyped_storage()._cdata)


_UPDATES_STATISTICS = frozenset(
    {torch.ops.aten.batch_norm.default, torch.ops.aten.instance_norm.default, torch.ops.aten.native_batch_norm.default}
)
"""Norms that write to their running statistics (arguments 3 and 4) if argument 5 (training) is true."""


@cache
def _written_arguments(op: torch._ops.OpOverload) -> tuple[tuple[int, str], ...]:
    """Return (position, name) of each argument that an operation writes to."""
    arguments = enumerate(op._schema.arguments)
    return tuple(
        (index, one.name) for index, one in arguments if one.alias_info is not None and one.alias_info.is_write
    )


def _written_tensors(op: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    if op in _UPDATES_STATISTICS and args[5]:  # training: what its schema does not say
        yield from (each for each in args[3:5] if isinstance(each, Tensor))
    for index, name in _written_arguments(op):
        given = args[index] if index < len(args) else kwargs.get(name)
        for each in given if isinstance(given, (list, tuple)) else [given]:
            if isinstance(each, Tensor):
                yield each


def _contains_ref(given: Any) -> bool:
    if isinstance(given, tuple):
        return any(_contains_ref(part) for part in given)
    return isinstance(given, Ref)


class Recorder(ProxyTorchDispatchMode):
    """Torch mode that runs every operation on the meta device (without data) and records it on a `Tape`.

    The base class is torch's tracer, because torch passes operations to other modes only after decomposing them.
    """

    def __init__(self, tape: Tape) -> None:
        TorchDispatchMode.__init__(self, torch._C.DispatchKey.PreDispatch)  # type: ignore[no-untyped-call]
        self.tape = tape

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch loads its compiler in order to keep it out

    def __enter__(self) -> Any:
        return TorchDispatchMode.__enter__(self)  # type: ignore[no-untyped-call]

    def __exit__(self, *error: object) -> Any:
        return TorchDispatchMode.__exit__(self, *error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not isinstance(op, torch._ops.OpOverload):
            raise NotRecordedError(f"{op}, which runs a block of its own")
        if torch.is_autocast_enabled("cpu"):
            raise NotRecordedError("torch.autocast in the model")
        found = self.tape.refs_in(args), self.tape.refs_in(kwargs)
        for tensor in _written_tensors(op, args, kwargs):
            self.tape.record_write(tensor)
        made = _run_on_meta(op, args, kwargs)
        self.tape.steps.append(RecordedOp(op, *found, self._record_result(op, made)))
        return made

    def _record_result(self, op: torch._ops.OpOverload, made: Any) -> Ref | tuple[Ref, ...] | None:
        if made is None:
            return None
        parts = list(made) if isinstance(made, (list, tuple)) else [made]
        if not all(isinstance(part, Tensor) for part in parts):
            raise NotRecordedError(f"{op} gives something else than tensors")
        if any(part.device != _META for part in parts):
            raise NotRecordedError(f"{op} gives numbers that are known already")
        refs = tuple(self.tape.add_tensor(part) for part in parts)
        return refs if isinstance(made, (list, tuple)) else refs[0]


def _run_on_meta(op: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation on the meta device, also if its arguments name another device, and return the result."""
    with torch._C._DisablePythonDispatcher():
        rule = None if kwargs else SHAPES.get(op)
        made = None if rule is None else rule(*args)
        if made is not None:
            return made
        args = tuple(_META if isinstance(part, torch.device) else part for part in args)
        kwargs = {name: _META if isinstance(part, torch.device) else part for name, part in kwargs.items()}
        of_nothing = not any(isinstance(part, Tensor) for part in args)
        if of_nothing and any(known.name == "device" for known in op._schema.arguments):
            kwargs["device"] = _META
        return op(*args, **kwargs)


class SizeQueries(TorchFunctionMode):
    """Torch mode that reports to the model's code the device "cpu", and tensor sizes that are valid for any batch.

    The function `sizes` takes a `Ref` and returns the sizes to report: `Examples` where a size depends on the batch. If
    `sizes` is None, the code sees the actual sizes.
    """

    def __init__(self, tape: Tape, sizes: Callable[[Ref], Sequence[int]] | None = None) -> None:
        super().__init__()
        self.tape = tape
        self.sizes = sizes

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        read = _READS.get(function)
        if read is None or type(args[0]) not in _PLAIN or args[0].device != _META:
            made = function(*args, **kwargs)
            if type(made) is Tensor:
                self.tape.alias_last_result(made)
            return made
        if function in _OF_SIZES:
            return read(self._shape_for_code(args[0]), *args[1:], **kwargs) if self.sizes else function(*args, **kwargs)
        return read()

    def _shape_for_code(self, tensor: Tensor) -> torch.Size:
        assert self.sizes is not None
        shape = self.sizes(self.tape.find_ref(tensor))
        if tuple(int.__index__(size) for size in shape) != tuple(tensor.shape):
            raise NotRecordedError("a size that depends on the number of examples in a way of its own")
        return torch.Size(shape)


_PLAIN = (Tensor, torch.nn.Parameter)


def _shape_or_size(shape: torch.Size, dim: int | None = None) -> Any:
    return shape if dim is None else shape[dim]


_OF_SIZES: Mapping[Any, Callable[..., Any]] = {
    Tensor.shape.__get__: _shape_or_size,  # type: ignore[attr-defined]
    Tensor.size: _shape_or_size,
    Tensor.__len__: lambda shape: shape[0],
    Tensor.numel: math.prod,
    Tensor.nelement: math.prod,
    torch.numel: math.prod,
}
_READS: Mapping[Any, Callable[..., Any]] = {
    **_OF_SIZES,
    Tensor.device.__get__: lambda: _CPU,
    Tensor.is_meta.__get__: lambda: False,  # type: ignore[attr-defined]
    Tensor.is_cpu.__get__: lambda: True,  # type: ignore[attr-defined]
}
"""Attribute or method of a tensor -> function that returns the answer for the model's code."""


class LinearSize(NamedTuple):
    """An integer that is linear in the number of examples: ``per_example * examples + more``."""

    per_example: int
    more: int

    def evaluate(self, examples: int) -> int:
        return self.per_example * examples + self.more


def matches_call(said: Any, found: Any, examples: int) -> bool:
    """Return whether recorded arguments are right for a call with `examples` examples.

    `said` are the recorded arguments, with a `LinearSize` where a number depends on the examples, and `found` those of
    the call.
    """
    if isinstance(said, LinearSize):
        return bool(said.evaluate(examples) == found)
    if isinstance(said, RecordedOp):
        same = said.op is found.op and said.made == found.made
        return same and matches_call((said.args, said.kwargs), (found.args, found.kwargs), examples)
    if isinstance(said, (list, tuple)):
        several = isinstance(found, (list, tuple)) and len(said) == len(found)
        return several and all(matches_call(*pair, examples) for pair in zip(said, found, strict=True))
    if isinstance(said, dict):
        same = isinstance(found, dict) and said.keys() == found.keys()
        return same and all(matches_call(part, found[name], examples) for name, part in said.items())
    return said is found or bool(said == found)


def matches_shape(said: Sequence[int | LinearSize | None], found: Sequence[int], examples: int) -> bool:
    """Return whether the recorded sizes `said` give the shape `found` for `examples` examples; None fits any size.

    A recorded size may be a function of the number of examples.
    """
    known = [(size, other) for size, other in zip(said, found, strict=False) if size is not None]
    return len(said) == len(found) and all(matches_call(*pair, examples) for pair in known)
