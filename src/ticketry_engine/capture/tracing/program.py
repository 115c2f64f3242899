"""The result of tracing: a model's operations as an fx graph, and the meaning of its placeholders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

from torch import Tensor, fx
from torch.utils._pytree import TreeSpec


@dataclass(frozen=True)
class Multiple:
    """A size that is a multiple of the number of examples."""

    of_batch: int


Sizes: TypeAlias = "tuple[int | Multiple | None, ...]"
"""A shape with the batch at any axis; None is a size that depends on the batch in another way."""


@dataclass(frozen=True)
class Constant:
    """An input or output that is not a tensor."""

    value: object


@dataclass(frozen=True)
class TracedProgram:
    """A model as torch operations that do not write to their arguments."""

    graph: fx.Graph
    """Placeholders, operations and the output; `meta["val"]` is a node's result in the traced call."""
    inputs: Sequence[str | Constant]
    """Leaves of the model's arguments, in order: names of placeholders, or constants."""
    weights: Mapping[str, tuple[str, Tensor]]
    """Placeholder -> the model's name of the parameter, buffer or constant, and its tensor."""
    outputs: Sequence[fx.Node | Constant]
    """Leaves of the model's return value."""
    in_spec: TreeSpec
    """Pytree spec of (args, kwargs)."""
    out_spec: TreeSpec
    sizes: Callable[[fx.Node], Sizes]
    """Function that returns the sizes of a node's tensor."""
    constants: Mapping[str, object] = field(default_factory=dict)
    """Placeholder that is not a tensor -> its value."""
    notes: Sequence[str] = ()
    for_one: bool = True
    """Whether the program is known to be valid for one example, too."""


ASKED_FOR = "it was asked for"
"""Reason for a fixed number of examples if the user requested it."""

ONE_DIFFERS = "the model does something else for one example than for more"
"""Reason for a fixed number of examples if the example inputs have one example."""


def fixed_batch_note(reason: str) -> tuple[str, ...]:
    """Return the note of a program with a fixed number of examples; empty without a reason."""
    return (f"the number of examples is fixed: {reason}",) if reason else ()


# -- a number of examples that is traced as one number and stands for all: it refuses questions with several ans -------


FEWEST = 2
"""Smallest number of examples for which a trace holds, as in torch.export: torch broadcasts a size of one."""


class NotRecordedError(BaseException):
    """Raised with the reason why a call cannot be recorded.

    Not an `Exception`, because a model that catches exceptions would continue as if its size had another value.
    """


class Examples(int):
    """An integer that is linear in the number of examples, ``per_example * examples + more``; torch takes it as an int.

    Sums, multiples and exact quotients are `Examples` again. A comparison has a result if it is the same for all
    numbers of examples from `FEWEST` on. Any other operation raises `NotRecordedError`.

    Args:
        per_example: an integer, not 0.
        more: an integer.
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
        """Raise `NotRecordedError`: a table would compare hashes before values."""
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
