"""A training segment: a pure function from a start to a checkpoint, named by its key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

from ticketry.errors import TaskError, UsageError
from ticketry.lab.gating import Gating, gating_from
from ticketry.lab.penalty import Penalty, penalty_from
from ticketry.lab.precision import Arithmetic
from ticketry.lab.ticking import Ticking, ticking_from
from ticketry.step import Step
from ticketry.tasks.base import Task
from ticketry.tasks.recipe import Recipe, recipe_from

NUMERICS = 1
"""Version of whatever in this library decides the numbers of a segment; a change of it makes old results unfound."""


@dataclass(frozen=True)
class Start:
    """Where a segment's weights come from: a fresh initialisation, or a stored state."""

    seed: int | None = None
    """Initialisation seed."""
    state: str | None = None
    """Digest of stored weights and buffers."""
    optimizer: str | None = None
    """Digest of a stored optimiser state; without it the optimiser starts afresh, as it does from a ticket's file."""
    gates: str | None = None
    """Digest of the stored gates of an earlier round, if the segment has gates and goes on from there."""

    def __post_init__(self) -> None:
        if (self.seed is None) == (self.state is None):
            raise UsageError("a segment starts either from an initialisation seed or from a stored state")


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Start from this state, hold this mask, follow this recipe from step `first` to step `last`.

    Two segments that differ in `last` alone are parts of one trajectory: a stored state of the shorter one is where
    the longer one goes on.
    """

    task: Task
    """Its `key` is what tells its numbers from another's."""
    recipe: Recipe
    start: Start
    mask: str | None
    """Digest of the stored mask that is held, or None for a dense network."""
    first: int
    """The schedule's iteration at which it starts; the data order is entered there too."""
    last: int
    """The iteration at which it ends (not itself trained): last - first iterations in all."""
    total: int
    """Iterations of the whole schedule."""
    per_epoch: int
    """Iterations of an epoch."""
    order_seed: int
    """Of data order, augmentation and dropout."""
    arithmetic: Arithmetic
    gates: Gating | None = None
    """Soft masks that are trained with the weights, or None."""
    shrunk: bool = False
    """Whether the network is trained without the channels that its mask removes, see `lab.shrunk`; stored states have
    their full shapes all the same. Equal to training it with the mask within float error."""
    penalty: Penalty | None = None
    """What is added to the task's loss, or None. Losses and metrics are the task's all the same."""
    tick: Ticking | None = None
    """Gates on norms that are trained alone, and scored, or None: then all parameters are trained."""

    def __post_init__(self) -> None:
        if not 0 <= self.first <= self.last:
            raise UsageError(f"a segment goes from a step to a later one, not from {self.first} to {self.last}")
        if (self.start.gates is None) != (self.gates is None or self.gates.reset is None):
            raise UsageError("a segment that starts with gates of an earlier round says how they are reset, no other")
        if self.gates is not None and self.gates.structured and self.mask is not None:
            raise UsageError("gates on channels are trained in a network that is whole: this segment has a mask")
        if self.gates is not None and self.arithmetic.stacked:
            raise UsageError(
                "networks with gates are trained one by one: their temperatures and draws are not stacked. Leave"
                " --stack away (stack=0)"
            )
        if self.tick is not None and (self.penalty is not None or self.gates is not None or self.arithmetic.stacked):
            raise UsageError(
                "a tick trains the gates of one network and nothing else: without a penalty, without gates on weights,"
                " and not in a stack (leave --stack away, stack=0)"
            )
        if self.penalty is not None and (self.gates is not None or self.arithmetic.stacked):
            raise UsageError(
                "a penalty is on the weights of one network without gates: networks with a penalty are not stacked"
                " (leave --stack away, stack=0), and gates have a penalty of their own"
            )

        if self.shrunk:
            self._check_shrunk()

    def _check_shrunk(self) -> None:
        if self.mask is None:
            raise UsageError("a network is trained shrunk by a mask of whole channels, and this segment has no mask")
        if self.gates is not None:
            raise UsageError("networks with gates are trained whole: soft masks remove no channels before they end")
        if self.arithmetic.stacked:
            raise UsageError("shrunk networks differ in their shapes: each is trained alone, not stacked")

    @property
    def steps(self) -> int:
        """Iterations trained."""
        return self.last - self.first

    def at(self, step: str) -> int:
        """The iteration of a point in the schedule such as 2ep, 500it or 3%.

        Raises:
            UsageError: if it is no such point.
        """
        return Step.parse(step).at(total=self.total, per_epoch=self.per_epoch)

    @property
    def progress(self) -> float:
        """Of the gates' round, at step `last`."""
        assert self.gates is not None
        return self.gates.progress(self.last, total=self.total, per_epoch=self.per_epoch)

    @cached_property
    def trajectory(self) -> str:
        """SHA-256 (hex) of all but `last`."""
        described = self.describe()
        del described["last"]
        return digest_of({"numerics": NUMERICS, **described})

    @property
    def key(self) -> str:
        """Content key: equal keys, equal results."""
        return f"{self.trajectory}@{self.last}"

    def until(self, last: int) -> Segment:
        """The part, or the continuation, of the same trajectory that ends at `last`."""
        return replace(self, last=last)

    def describe(self) -> dict[str, Any]:
        """All of it as JSON values."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["task"] = dict(self.task.key())
        for name in ("recipe", "start"):
            values[name] = asdict(values[name])
        values["arithmetic"] = self.arithmetic.describe()
        # Left out where there are none: keys are older than gates and penalties.
        if self.start.gates is None:
            del values["start"]["gates"]
        if self.gates is None:
            del values["gates"]
        else:
            values["gates"] = self.gates.describe()
        if not self.shrunk:
            del values["shrunk"]
        if self.penalty is None:
            del values["penalty"]
        else:
            values["penalty"] = self.penalty.describe()
        if self.tick is None:
            del values["tick"]
        else:
            values["tick"] = self.tick.describe()
        described: dict[str, Any] = json.loads(json.dumps(values))
        return described

    @classmethod
    def from_description(cls, described: Mapping[str, Any], task: Task) -> Segment:
        """The inverse of `describe`.

        Raises:
            TaskError: if `task` is not the one described, as when its source changed meanwhile.
        """
        values = dict(described)
        if json.loads(json.dumps(dict(task.key()))) != values.pop("task"):
            raise TaskError(f"the task {task.name!r} is no longer the one that this segment is of: run it anew")
        values["recipe"] = recipe_from(values["recipe"])
        values["start"] = Start(**values["start"])
        values["arithmetic"] = Arithmetic(**values["arithmetic"])
        if "gates" in values:
            values["gates"] = gating_from(values["gates"])
        if "penalty" in values:
            values["penalty"] = penalty_from(values["penalty"])
        if "tick" in values:
            values["tick"] = ticking_from(values["tick"])
        return cls(task=task, **values)


def digest_of(value: object) -> str:
    """SHA-256 (hex) of a JSON value in its canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
