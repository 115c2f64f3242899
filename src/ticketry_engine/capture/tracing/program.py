"""Defines the result of tracing a model: an fx graph of its operations, and the meaning of the graph's placeholders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

from torch import Tensor, fx
from torch.utils._pytree import TreeSpec


@dataclass(frozen=True)
class Multiple:
    """A tensor size that is `of_batch` times the number of examples."""

    of_batch: int


Sizes: TypeAlias = "tuple[int | Multiple | None, ...]"
"""A shape whose sizes may depend on the batch; None is a size that is no multiple of the number of examples."""


@dataclass(frozen=True)
class Constant:
    """The value of an input or output that is not a tensor."""

    value: object


@dataclass(frozen=True)
class TracedProgram:
    """A model as a graph of torch operations, none of which writes to its arguments."""

    graph: fx.Graph
    """Graph of placeholders, operations and the output; `meta["val"]` of a node is its result in the traced call."""
    inputs: Sequence[str | Constant]
    """Leaves of the model's argument containers, in order: names of placeholders, or constants."""
    weights: Mapping[str, tuple[str, Tensor]]
    """Name of a placeholder -> (name of a parameter, buffer or constant in the model, its tensor)."""
    outputs: Sequence[fx.Node | Constant]
    """Leaves of the containers that the model returns, in order."""
    in_spec: TreeSpec
    """Pytree spec of the containers in (args, kwargs)."""
    out_spec: TreeSpec
    sizes: Callable[[fx.Node], Sizes]
    """Function that returns the sizes of a node's tensor."""
    constants: Mapping[str, object] = field(default_factory=dict)
    """Name of a placeholder that is not a tensor -> its value."""
    notes: Sequence[str] = ()
    for_one: bool = True
    """Whether the program is also valid for one example, not only for two or more."""


ASKED_FOR = "it was asked for"
"""Reason in a note for the user: the user requested a fixed number of examples."""

ONE_DIFFERS = "the model does something else for one example than for more"
"""Reason in a note for the user: the number of examples is fixed to one, because the model treats one differently."""


def fixed_batch_note(reason: str) -> tuple[str, ...]:
    """Return a user's note with the reason why the number of examples is fixed; no note if `reason` is empty."""
    return (f"the number of examples is fixed: {reason}",) if reason else ()


# -- numbers of examples -----------------------------------------------------------------------------------------------


FEWEST = 2
"""Smallest number of examples for which a trace is valid, because torch broadcasts a size of 1, as in torch.export."""


class NotRecordedError(BaseException):
    """Error with the reason why a call cannot be recorded.

    The class derives from `BaseException`, so that a model that catches `Exception` does not catch this error.
    """


class Examples(int):
    """An integer ``per_example * examples + more``, where `examples` may be any number; torch accepts it as an int.

    Sums, multiples and exact quotients are `Examples` again. A comparison returns a result only if the result is the
    same for all numbers of examples from `FEWEST` on. Any other operation raises `NotRecordedError`.

    Args:
        per_example: the factor of the number of examples, not 0.
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

    def _linear(self, per_example: int, more: int) -> int:
        return Examples(per_example, more, self.traced) if per_example else more

    # -- arithmetic ----------------------------------------------------------------------------------------------------

    def __add__(self, other: object) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        return self._linear(self.per_example + _slope(other), self.more + _value_at_more_examples(other))

    __radd__ = __add__

    def __neg__(self) -> int:
        return self._linear(-self.per_example, -self.more)

    def __sub__(self, other: object) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        return self._linear(self.per_example - _slope(other), self.more - _value_at_more_examples(other))

    def __rsub__(self, other: object) -> Any:
        return NotImplemented if not isinstance(other, int) else (-self) + other

    def __mul__(self, other: object) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        if isinstance(other, Examples):
            _refuse("a product of two sizes that depend on the number of examples")
        return self._linear(self.per_example * other, self.more * other)

    __rmul__ = __mul__

    def __floordiv__(self, other: object) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        if isinstance(other, Examples) and other.per_example * self.more == self.per_example * other.more:
            return self.per_example // other.per_example  # for all numbers the same
        if isinstance(other, Examples) or not other or self.per_example % other:
            _refuse("a part of the number of examples")
        return self._linear(self.per_example // other, self.more // other)

    def __mod__(self, other: object) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        if isinstance(other, Examples) or not other or self.per_example % other:
            _refuse("a remainder of the number of examples")
        return self.more % other

    # -- comparisons ---------------------------------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, (int, float)):
            return False
        slope, more = self.per_example - _slope(other), self.more - _value_at_more_examples(other)
        if not slope:
            return bool(more == 0)
        root = -more / slope
        if root >= FEWEST and root == int(root):
            _refuse(f"whether the number of examples is {int(root)}")
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
        slope, more = self.per_example - _slope(other), self.more - _value_at_more_examples(other)
        first = slope * FEWEST + more  # an integer on a line keeps its sign unless the line crosses zero
        holds = bool(first <= 0 if or_equal else first < 0)
        if slope and (slope > 0) == holds:
            _refuse(f"whether the number of examples is below about {-more / slope:g}")
        return holds

    def __bool__(self) -> bool:
        return self != 0

    def __hash__(self) -> int:
        """Raise `NotRecordedError`, because a dict or set would use the hash of a single number of examples."""
        _refuse("an entry of a table for the number of examples")

    def _only_of_one_number(self, *_: object, **__: object) -> Any:
        _refuse("the number of examples as a plain number")

    __int__ = __float__ = __truediv__ = __rtruediv__ = __rfloordiv__ = __rmod__ = _only_of_one_number
    __divmod__ = __rdivmod__ = __pow__ = __rpow__ = __round__ = __trunc__ = __floor__ = __ceil__ = _only_of_one_number
    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = __invert__ = _only_of_one_number
    __lshift__ = __rlshift__ = __rshift__ = __rrshift__ = __abs__ = _only_of_one_number


def _slope(number: float) -> int:
    return number.per_example if isinstance(number, Examples) else 0


def _value_at_more_examples(number: float) -> Any:
    return number.more if isinstance(number, Examples) else number


def _refuse(what: str) -> NoReturn:
    raise NotRecordedError(f"the model asks for {what}")
