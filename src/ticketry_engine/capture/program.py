"""Defines a traced model (an fx graph of its operations) and the arguments of its calls; runs torch.export."""

from __future__ import annotations

import contextlib
import inspect
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map

from ticketry_engine.errors import CaptureError, UsageError
from ticketry_engine.example_inputs import resize_batch
from ticketry_engine.ir.binding import readable_tensor
from ticketry_engine.support.process_state import ONE_AT_A_TIME


@dataclass(frozen=True)
class Multiple:
    """A tensor size that is `of_batch` times the number of examples."""

    of_batch: int


Sizes: TypeAlias = "tuple[int | Multiple | None, ...]"
"""A shape whose sizes may depend on the batch; None is a size that is no multiple of the number of examples."""


@dataclass(frozen=True)
class Constant:
    """An input or output that is not a tensor, and its value."""

    value: object


@dataclass(frozen=True)
class TracedProgram:
    """A traced model: a graph of torch operations that write to no argument, with its inputs, weights and outputs."""

    graph: fx.Graph
    """Graph of placeholders, operations and the output; `meta["val"]` of a node is its result in the traced call."""
    inputs: Sequence[str | Constant]
    """Leaves of the model's argument containers, in order: names of placeholders, or constants."""
    weights: Mapping[str, tuple[str, Tensor]]
    """Name of a placeholder -> (name of a parameter, buffer or constant in the model, its tensor)."""
    outputs: Sequence[fx.Node | Constant]
    """Leaves of the containers that the model returns, in order."""
    in_spec: TreeSpec
    out_spec: TreeSpec
    sizes: Callable[[fx.Node], Sizes]
    """Function that returns the sizes of a node's tensor."""
    constants: Mapping[str, object] = field(default_factory=dict)
    """Name of a placeholder that is not a tensor -> its value."""
    notes: Sequence[str] = ()
    for_one: bool = True
    """Whether the program is also valid for one example, not only for two or more."""


ONE_DIFFERS = "the model does something else for one example than for more"
"""Reason in a note for the user: the number of examples is fixed to one, because the model treats one differently."""


def fixed_batch_note(reason: str) -> tuple[str, ...]:
    """Return a tuple with one message: the graph accepts only one number of examples, because of `reason`.

    Return () if `reason` is empty.
    """
    return (f"the number of examples is fixed: {reason}",) if reason else ()


# -- numbers of examples -----------------------------------------------------------------------------------------------


FEWEST = 2
"""Smallest number of examples for which a trace is valid, because torch broadcasts a size of 1, as in torch.export."""


class NotRecordedError(BaseException):
    """Error if a call cannot be recorded; no `Exception`, so that `except Exception` in a model does not catch it."""


class Examples(int):
    """A size ``per_example * examples + more``, for any number of examples, which code can use like an integer.

    Sums, multiples and exact quotients are `Examples` again. A comparison succeeds if its result is the same for every
    number of examples >= `FEWEST`. Any other operation raises `NotRecordedError`.

    Args:
        per_example: the factor by which the number of examples is multiplied, not 0.
        more: the summand that does not depend on the number of examples.
        traced: the number of examples in the traced call.
    """

    per_example: int
    more: int
    traced: int

    def __new__(cls, per_example: int, more: int, traced: int) -> Examples:
        self = int.__new__(cls, per_example * traced + more)
        self.per_example, self.more, self.traced = per_example, more, traced
        return self

    def _with_coefficients(self, per_example: int, more: int) -> int:
        return Examples(per_example, more, self.traced) if per_example else more

    def __add__(self, other: object) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        return self._with_coefficients(
            self.per_example + _per_example_factor(other), self.more + _value_at_more_examples(other)
        )

    __radd__ = __add__

    def __neg__(self) -> int:
        return self._with_coefficients(-self.per_example, -self.more)

    def __sub__(self, other: object) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        return self._with_coefficients(
            self.per_example - _per_example_factor(other), self.more - _value_at_more_examples(other)
        )

    def __rsub__(self, other: object) -> Any:
        return NotImplemented if not isinstance(other, int) else (-self) + other

    def __mul__(self, other: object) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        if isinstance(other, Examples):
            _refuse_to_record("a product of two sizes that depend on the number of examples")
        return self._with_coefficients(self.per_example * other, self.more * other)

    __rmul__ = __mul__

    def __floordiv__(self, other: object) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        if isinstance(other, Examples) and other.per_example * self.more == self.per_example * other.more:
            return self.per_example // other.per_example  # for all numbers the same
        if isinstance(other, Examples) or not other or self.per_example % other:
            _refuse_to_record("a part of the number of examples")
        return self._with_coefficients(self.per_example // other, self.more // other)

    def __mod__(self, other: object) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        if isinstance(other, Examples) or not other or self.per_example % other:
            _refuse_to_record("a remainder of the number of examples")
        return self.more % other

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (int, float)):
            return False
        slope, more = self.per_example - _per_example_factor(other), self.more - _value_at_more_examples(other)
        if not slope:
            return bool(more == 0)
        root = -more / slope
        if root >= FEWEST and root == int(root):
            _refuse_to_record(f"whether the number of examples is {int(root)}")
        return False

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __lt__(self, other: object) -> bool:
        return self._is_below(other, or_equal=False)

    def __le__(self, other: object) -> bool:
        return self._is_below(other, or_equal=True)

    def __gt__(self, other: object) -> bool:
        return not self._is_below(other, or_equal=True)

    def __ge__(self, other: object) -> bool:
        return not self._is_below(other, or_equal=False)

    def _is_below(self, other: object, *, or_equal: bool) -> bool:
        if not isinstance(other, (int, float)):
            raise TypeError(f"a size cannot be compared with {type(other).__name__}")
        slope, more = self.per_example - _per_example_factor(other), self.more - _value_at_more_examples(other)
        first = slope * FEWEST + more  # an integer on a line keeps its sign unless the line crosses zero
        holds = bool(first <= 0 if or_equal else first < 0)
        if slope and (slope > 0) == holds:
            _refuse_to_record(f"whether the number of examples is below about {-more / slope:g}")
        return holds

    def __bool__(self) -> bool:
        return self != 0

    def __hash__(self) -> int:
        """Raise `NotRecordedError`, because a dict or set would use the hash of a single number of examples."""
        _refuse_to_record("an entry of a table for the number of examples")

    def _refuse_operation(self, *_: object, **__: object) -> Any:
        _refuse_to_record("the number of examples as a plain number")

    __int__ = __float__ = __truediv__ = __rtruediv__ = __rfloordiv__ = __rmod__ = _refuse_operation
    __divmod__ = __rdivmod__ = __pow__ = __rpow__ = __round__ = __trunc__ = __floor__ = __ceil__ = _refuse_operation
    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = __invert__ = _refuse_operation
    __lshift__ = __rlshift__ = __rshift__ = __rrshift__ = __abs__ = _refuse_operation


def _per_example_factor(number: float) -> int:
    return number.per_example if isinstance(number, Examples) else 0


def _value_at_more_examples(number: float) -> Any:
    return number.more if isinstance(number, Examples) else number


def _refuse_to_record(what: str) -> NoReturn:
    raise NotRecordedError(f"the model asks for {what}")


# -- torch.export with at least two examples and a dynamic batch size --------------------------------------------------


_REASON_LINES = 6


@dataclass(frozen=True)
class Arguments:
    """Positional and keyword arguments for a call of a model."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def from_examples(cls, example_inputs: Any) -> Arguments:
        """Return `example_inputs` (a tensor, a tuple, or a dict by name) as arguments, with tensors on the CPU."""
        if isinstance(example_inputs, Mapping):
            found = cls((), dict(example_inputs))
        else:
            found = cls(tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,), {})
        tensors = [leaf for leaf in tree_flatten((found.args, found.kwargs))[0] if isinstance(leaf, Tensor)]
        if not tensors:
            raise CaptureError("example_inputs hold no tensor: give a tensor, a tuple of arguments, or a dict of them")
        return found.map_tensors(
            lambda one: readable_tensor(
                one if one.device.type in ("cpu", "meta") else one.cpu(), "an example input"
            ).detach()
        )

    def map_tensors(self, change: Any) -> Arguments:
        """Return the arguments with the function `change` applied to every tensor."""

        def change_if_tensor(leaf: Any) -> Any:
            return change(leaf) if isinstance(leaf, Tensor) else leaf

        args, kwargs = tree_map(change_if_tensor, (self.args, self.kwargs))
        return Arguments(args, kwargs)

    def with_batch_size(self, batch: int, seed: int) -> Arguments:
        """Return arguments resized to `batch` examples by `example_inputs.with_batch_size`."""
        return Arguments(*resize_batch((self.args, self.kwargs), batch, seed))

    @property
    def examples(self) -> int | None:
        """Return the number of examples, size 0 of the first tensor that has an axis; None without such a tensor."""
        for leaf in tree_flatten((self.args, self.kwargs))[0]:
            if isinstance(leaf, Tensor) and leaf.dim():
                return int(leaf.shape[0])
        return None


def export(model: nn.Module, arguments: Arguments, *, dynamic_batch: bool) -> tuple[torch.export.ExportedProgram, str]:
    """Return (exported program, reason why its batch size is fixed).

    The reason is "" if the batch size is variable, as `dynamic_batch` requests, or if `dynamic_batch` is False.
    """
    if not dynamic_batch:
        return _export(model, arguments, None), ""
    examples = arguments.examples
    if examples is None:
        return _export(model, arguments, None), "the inputs have no leading axis"
    several = _with_two_examples(arguments, examples)
    reason = ""
    for strict in (False, True):  # the strict way is slower, but sees through `len(x)`
        try:
            return _export(model, several, several.examples, strict=strict), ""
        except CaptureError as error:
            reason = reason or _first_lines_of_error(error.__cause__ or error, 3)
    return _export(model, arguments, None), reason


def _with_two_examples(arguments: Arguments, examples: int) -> Arguments:
    """Return arguments with at least two examples; torch.export cannot make the sizes 0 and 1 dynamic.

    `examples` is their present number.
    """
    if examples > 1:
        return arguments

    def repeat_examples(tensor: Tensor) -> Tensor:
        if not has_batch_first(tensor, examples):
            return tensor
        return torch.cat([tensor, tensor]) if examples else tensor.new_zeros((2, *tensor.shape[1:]))

    return arguments.map_tensors(repeat_examples)


def _export(
    model: nn.Module, arguments: Arguments, batch: int | None, *, strict: bool = False
) -> torch.export.ExportedProgram:
    shapes: Any = None
    if batch is not None:
        shapes = dynamic_shapes_of_call(model, arguments.args, arguments.kwargs, batch)
    try:
        with ONE_AT_A_TIME, silence_loggers(), traceable_torch():
            return torch.export.export(
                model, arguments.args, arguments.kwargs or None, dynamic_shapes=shapes, strict=strict
            )
    except Exception as error:  # a model may fail in any way
        if told := advice_on_returned_object(error):
            raise CaptureError(f"torch.export does not take {type(model).__name__}: {told}") from error
        raise CaptureError(
            f"torch.export does not take {type(model).__name__}: {_first_lines_of_error(error, _REASON_LINES)}\n"
            "Look whether model(*example_inputs) runs in evaluation mode, and whether its forward decides by the values"
            " of tensors (`if x.sum() > 0`, `.item()`): such parts have to be rewritten, or left out."
        ) from error


def advice_on_returned_object(error: BaseException) -> str:
    """Return advice for the user if torch.export failed because the model returns a custom object, else ""."""
    found = re.search(r"Found <class '(?:[\w.]*\.)?(\w+)'> in output", f"{error} {error.__cause__}")
    if found is None:
        return ""
    return (
        f"it returns a {found[1]}, which torch cannot look into: have it return tensors, in tuples, lists or dicts"
        " (models of Transformers do with use_cache=False among the example inputs)"
    )


def dynamic_shapes(inputs: Any, batch: int) -> Any:
    """Return the argument `dynamic_shapes` of torch.export: size 0 of an input is variable if it equals `batch`.

    `inputs` is a tensor or nested containers of tensors.
    """
    dimension = torch.export.Dim("batch")

    def dynamic_sizes(leaf: Any) -> Any:
        return {0: dimension} if has_batch_first(leaf, batch) else None

    return tree_map(dynamic_sizes, inputs)


def has_batch_first(leaf: Any, examples: int | None) -> bool:
    """Return whether `leaf` is a tensor with `examples` as its size 0."""
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == examples


def dynamic_shapes_of_call(model: nn.Module, args: Any, kwargs: Any, batch: int) -> Any:
    """Return `dynamic_shapes` as torch.export expects them: a tuple for positional arguments, else a dict."""
    args, kwargs = dynamic_shapes((args, kwargs), batch)
    signature = inspect.signature(model.forward)
    if not kwargs and all(one.kind is not one.VAR_POSITIONAL for one in signature.parameters.values()):
        return args
    try:
        return dict(signature.bind(*args, **kwargs).arguments)
    except TypeError as error:
        raise UsageError(
            f"example_inputs= are no arguments of {type(model).__name__}.forward{signature}: {error}; give a tensor, a"
            " tuple of its arguments, or a dict of them by name"
        ) from None


def _first_lines_of_error(error: BaseException, count: int) -> str:
    lines = [line.partition("For more information, run with")[0].strip() for line in str(error).splitlines()]
    return f"{type(error).__name__}: " + "\n".join(line[:300] for line in [line for line in lines if line][:count])


@contextlib.contextmanager
def traceable_torch() -> Iterator[None]:
    """Disable gradients and torch's fused transformer layers inside a `with` block; torch cannot trace fused layers."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextlib.contextmanager
def silence_loggers(*loggers: str, level: int = logging.CRITICAL) -> Iterator[None]:
    """Suppress warnings, and messages of `loggers` (default: torch) below `level`, inside a `with` block."""
    found = [logging.getLogger(name) for name in loggers or ("torch",)]
    levels = [logger.level for logger in found]
    for logger in found:
        logger.setLevel(level)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, before in zip(found, levels, strict=True):
            logger.setLevel(before)
