"""The result of tracing: a model's operations as an fx graph, and the meaning of its placeholders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import Tensor, fx
from torch.utils._pytree import TreeSpec


@dataclass(frozen=True)
class Multiple:
    """A size that is a multiple of the number of examples."""

    of_batch: int


Sizes: TypeAlias = "tuple[int | Multiple | None, ...]"
"""A shape in which the batch may be anywhere; None is a size that depends on it in another way."""


@dataclass(frozen=True)
class Constant:
    """An input or output that is no tensor."""

    value: object


@dataclass(frozen=True)
class TracedProgram:
    """A model as torch operations that do not write to their arguments."""

    graph: fx.Graph
    """Placeholders, then operations and the output; `meta["val"]` is what a node gives in the traced call."""
    inputs: Sequence[str | Constant]
    """The leaves of the model's arguments, in order: names of placeholders, or values that are not tensors."""
    weights: Mapping[str, tuple[str, Tensor]]
    """Name of a placeholder -> the model's name of the parameter, buffer or constant, and its numbers"""
    outputs: Sequence[fx.Node | Constant]
    """The leaves of what the model returns."""
    in_spec: TreeSpec
    """The containers of (args, kwargs)."""
    out_spec: TreeSpec
    sizes: Callable[[fx.Node], Sizes]
    """The shape of the tensor that a node gives."""
    constants: Mapping[str, object] = field(default_factory=dict)
    """Name of a placeholder that is no tensor -> its value"""
    notes: Sequence[str] = ()
    for_one: bool = True
    """Whether the program is known to be valid for one example; torch and models may treat a size of one
    differently."""


ASKED_FOR = "it was asked for"
"""Why the number of examples is fixed where the user said so."""

ONE_DIFFERS = "the model does something else for one example than for more"
"""Why it is fixed where the example inputs are one example."""


def fixed(reason: str) -> tuple[str, ...]:
    """The note of a program whose number of examples is fixed; none without a reason."""
    return (f"the number of examples is fixed: {reason}",) if reason else ()
