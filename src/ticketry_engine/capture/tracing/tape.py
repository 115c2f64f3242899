"""One call of a model on the meta device, written down: which operations ran, with what, and of which sizes.

Operations are those that torch.export sees: before torch takes composed ones apart. They are caught where torch's own
tracer catches them, but nothing is symbolic and no compiler is loaded, which takes most of an export's time. What
cannot be written down this way raises, and the model is exported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ticketry_engine.capture.tracing.examples import NotRecordedError
from ticketry_engine.capture.tracing.meta_shapes import SHAPES

_META = torch.device("meta")
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Ref:
    """Stands for a tensor: how many were there before it."""

    index: int


@dataclass(frozen=True)
class Step:
    """An operation, its arguments with `Ref` in the place of tensors, and what it gives: one tensor or several."""

    op: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    made: Ref | tuple[Ref, ...] | None


class Tape:
    """Tensors of one call in the order in which they came, and the operations between them.

    Args:
        given: the meta tensors that are there before the call: weights, then inputs.
    """

    def __init__(self, given: Sequence[Tensor]) -> None:
        self.tensors: list[Tensor] = []  # held, so that no other tensor gets the same id
        self.shapes: list[tuple[int, ...]] = []
        self.steps: list[Step] = []
        self.written: set[int] = set()
        """Indices of the given tensors whose memory an operation has written to, also through a view."""
        self._adopted: list[Tensor] = []
        self._place: dict[int, Ref] = {}
        self._memory: dict[int, int] = {}
        for index, tensor in enumerate(given):
            self.add(tensor)
            self._memory[_memory_of(tensor)] = index

    def add(self, tensor: Tensor) -> Ref:
        """Another tensor; or the one that an operation has written to, which is another value from now on.

        Raises:
            NotRecordedError: if that operation has changed its shape.
        """
        before = self._place.get(id(tensor))
        if before is not None and self.shapes[before.index] != tuple(tensor.shape):
            raise NotRecordedError("a tensor whose shape is changed in place")
        ref = self._place[id(tensor)] = Ref(len(self.tensors))
        self.tensors.append(tensor)
        self.shapes.append(tuple(tensor.shape))
        return ref

    def note_write(self, tensor: Tensor) -> None:
        """Remember a write to a tensor, if its memory is that of a given one."""
        index = self._memory.get(_memory_of(tensor))
        if index is not None:
            self.written.add(index)

    def adopt(self, tensor: Tensor) -> None:
        """Know the copy that Python gets of a tensor which the last operation has made of nothing."""
        if id(tensor) in self._place or not self.steps:
            return
        last = self.steps[-1]
        if not isinstance(last.made, Ref) or _holds_ref(last.args):
            return
        made = self.tensors[last.made.index]
        if (made.shape, made.dtype, made.device) == (tensor.shape, tensor.dtype, tensor.device):
            self._place[id(tensor)] = last.made
            self._adopted.append(tensor)

    def find(self, tensor: Tensor) -> Ref:
        """What stands for a tensor.

        Raises:
            NotRecordedError: if it came from elsewhere.
        """
        try:
            return self._place[id(tensor)]
        except KeyError:
            raise NotRecordedError("a tensor that is neither a weight nor an input nor made of those") from None

    def find_all(self, given: Any) -> Any:
        """The same containers of lists, tuples and dicts, with `Ref` in the place of tensors."""
        if isinstance(given, Tensor):
            return self.find(given)
        if isinstance(given, (list, tuple)):
            return tuple(self.find_all(part) for part in given)
        if isinstance(given, dict):
            return {name: self.find_all(part) for name, part in given.items()}
        return given


def _memory_of(tensor: Tensor) -> int:
    """The identity of a tensor's memory, which its views share; meta tensors have one too."""
    return int(tensor.untyped_storage()._cdata)


_UPDATES_STATISTICS = frozenset(
    {torch.ops.aten.batch_norm.default, torch.ops.aten.instance_norm.default, torch.ops.aten.native_batch_norm.default}
)
"""Norms that write to running statistics, the arguments 3 and 4, if the argument 5 is true."""


@cache
def _written_arguments(op: torch._ops.OpOverload) -> tuple[tuple[int, str], ...]:
    """Position and name of each argument that an operation writes to."""
    arguments = enumerate(op._schema.arguments)
    return tuple(
        (index, one.name) for index, one in arguments if one.alias_info is not None and one.alias_info.is_write
    )


def _written(op: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """The tensors that a call of an operation writes to."""
    if op in _UPDATES_STATISTICS and args[5]:  # training: what its schema does not say
        yield from (each for each in args[3:5] if isinstance(each, Tensor))
    for index, name in _written_arguments(op):
        given = args[index] if index < len(args) else kwargs.get(name)
        for each in given if isinstance(given, (list, tuple)) else [given]:
            if isinstance(each, Tensor):
                yield each


def _holds_ref(given: Any) -> bool:
    if isinstance(given, tuple):
        return any(_holds_ref(part) for part in given)
    return isinstance(given, Ref)


class Recorder(ProxyTorchDispatchMode):
    """A mode of torch's in which every operation is run, on the meta device, and written to a tape.

    Torch lets only its own tracer see operations before they are taken apart, hence the base class; nothing of what
    that one does is used.
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
        found = self.tape.find_all(args), self.tape.find_all(kwargs)
        for tensor in _written(op, args, kwargs):
            self.tape.note_write(tensor)
        made = _run(op, args, kwargs)
        self.tape.steps.append(Step(op, *found, self._made(op, made)))
        return made

    def _made(self, op: torch._ops.OpOverload, made: Any) -> Ref | tuple[Ref, ...] | None:
        if made is None:
            return None
        parts = list(made) if isinstance(made, (list, tuple)) else [made]
        if not all(isinstance(part, Tensor) for part in parts):
            raise NotRecordedError(f"{op} gives something else than tensors")
        if any(part.device != _META for part in parts):
            raise NotRecordedError(f"{op} gives numbers that are known already")
        refs = tuple(self.tape.add(part) for part in parts)
        return refs if isinstance(made, (list, tuple)) else refs[0]


def _run(op: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an operation gives on the meta device, where all devices are that one."""
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


class Reads(TorchFunctionMode):
    """What the model's own code learns about tensors: that they lie in memory, and sizes that stand for any batch.

    Args:
        tape: where tensors are found.
        sizes: the shape of the tensor that a `Ref` stands for, with `Examples` in it; None: as they are.
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
                self.tape.adopt(made)
            return made
        if function in _OF_SIZES:
            return read(self._shape(args[0]), *args[1:], **kwargs) if self.sizes else function(*args, **kwargs)
        return read()

    def _shape(self, tensor: Tensor) -> torch.Size:
        assert self.sizes is not None
        shape = self.sizes(self.tape.find(tensor))
        if tuple(int.__index__(size) for size in shape) != tuple(tensor.shape):
            raise NotRecordedError("a size that depends on the number of examples in a way of its own")
        return torch.Size(shape)


_PLAIN = (Tensor, torch.nn.Parameter)


def _size(shape: torch.Size, dim: int | None = None) -> Any:
    return shape if dim is None else shape[dim]


_OF_SIZES: Mapping[Any, Callable[..., Any]] = {
    Tensor.shape.__get__: _size,  # type: ignore[attr-defined]
    Tensor.size: _size,
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
"""What the model's own code asks of a tensor -> the answer; of its shape where it depends on that"""
