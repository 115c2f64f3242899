"""Variants of training: one interface for masks, soft masks, penalties and others that act on a network in training.

A `Variant` consists of plain values: it is part of a segment's key, and declares conflicts and costs. Its `effect` acts
in one training: the loop calls the methods of an `Effect` at fixed places. A user-defined variant subclasses both, in
any package:

>>> @dataclass(frozen=True, kw_only=True)                              # doctest: +SKIP
... class Noise(Variant):
...     name = "noise"
...     scale: float = 0.01
...     def effect(self, around):
...         return NoiseEffect(self, around)
>>> lab.train(lab.segment(task, start=0, variants=(Noise(scale=0.1),)))  # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, cached_property
from typing import Any, ClassVar, Protocol, TypeVar, cast

from torch import Tensor, nn
from torch.optim import Optimizer

from ticketry.core.mask import Mask
from ticketry.errors import UsageError
from ticketry.lab.store.store import Store
from ticketry.lab.training.optimizer import Trainable
from ticketry.lab.training.state import TrainingState
from ticketry.registry.sources import add_reached_modules
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Course, Session, Task

Metrics = dict[str, dict[str, Any]]
"""Split -> metric -> value."""
Own = TypeVar("Own", bound="Variant")


@dataclass(frozen=True)
class Surroundings:
    """Context of a training: its task with the data, its place in the schedule, and the store of masks."""

    store: Store
    course: Course
    task: Task
    recipe: Recipe
    first: int
    last: int
    total: int
    per_epoch: int
    mask_digest: str | None
    """Digest of the mask by which a variant removes weights."""

    @cached_property
    def mask(self) -> Mask | None:
        """The mask by which a variant removes weights."""
        return None if self.mask_digest is None else self.store.get_mask(self.mask_digest)


class InTraining(Protocol):
    """The part of the training loop that an effect may use."""

    step: int
    model: nn.Module
    session: Session
    optimizer: Optimizer

    def look_at_losses(self) -> None:
        """Raise `TrainingError` if a loss since the last check is not finite."""

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average gradients of parameters outside the network over the ranks that train it together."""


_KNOWN: dict[str, type[Variant]] = {}
"""Imported classes of variants, by name and place."""


class Variant:
    """One way to act on a network in training. Subclasses are frozen, keyword-only dataclasses of plain values."""

    name: ClassVar[str]
    """Name in keys and stored states, unique within the library; for other classes the key adds their place."""
    outermost: ClassVar[bool] = False
    """Whether it starts before all others and acts on gradients after them, as masks do."""
    computes_removed: ClassVar[bool] = False
    """Whether a step always computes with the weights that a mask removes."""
    sparse_kernels: ClassVar[bool] = False
    """Whether a step may run in sparse kernels, which compute only with retained weights of the unchanged model."""

    @property
    def several_ranks(self) -> bool:
        """Whether several ranks may train with it: its effect on weights and gradients is equal in all of them, and it
        uses neither batches nor random numbers."""
        return False

    replayable: ClassVar[bool] = False
    """Whether all steps run the same operations and parameters keep their memory, so that a CUDA graph can replay a
    step, see `replays`."""
    in_parts: ClassVar[bool] = False
    """Whether it supports sharded parameters (`fully_shard`)."""
    whole_channels: ClassVar[bool] = False
    """Whether the trained network lacks the channels that its mask removes."""

    def __init_subclass__(cls, **others: Any) -> None:
        super().__init_subclass__(**others)
        if not (isinstance(getattr(cls, "name", None), str) and cls.name.isidentifier()):
            raise UsageError(f"{cls.__qualname__} is no variant of training: its name is no identifier")
        _KNOWN[json.dumps([cls.name, *_place(cls)])] = cls

    # -- as values -----------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Return its fields as JSON values, for keys. Defaults are left out, so that keys survive new fields."""
        defaults = {field.name: field.default for field in fields(self)}  # type: ignore[arg-type]
        values: dict[str, Any] = asdict(self)  # type: ignore[call-overload]
        return {name: value for name, value in values.items() if value != defaults[name]}

    @classmethod
    def from_description(cls: type[Own], values: Mapping[str, Any]) -> Own:
        """Build it from the values of `describe`, after JSON."""
        return cls(**values)

    @classmethod
    def identity(cls) -> dict[str, str]:
        """Return its name for keys; for a class outside the library also its place and the digest of its source."""
        found = {"variant": cls.name}
        for place in _place(cls):
            whole = add_reached_modules(hashlib.sha256(_source(cast(Hashable, cls))), [cls.__module__])
            found |= {"place": place, "source": whole.hexdigest()}
        return found

    def masked_by(self) -> str | None:
        """Return the digest of the stored mask by which it removes weights, if any."""
        return None

    def blobs(self) -> tuple[str, ...]:
        """Return the digests of everything it needs from the store."""
        mask = self.masked_by()
        return () if mask is None else (mask,)

    def conflict(self, other: Variant) -> str | None:
        """Return why it cannot be combined with another variant, or None. The other variant is asked too."""
        return None

    def under(self: Own, mask: str, *, instead_of: str) -> Own:
        """Return the variant for another stored mask, as the control of a ticket needs it: its digest replaces the old
        one in all fields.

        Raises:
            UsageError: if the variant depends on the mask in another way. Such a subclass overrides this method.
        """
        names = [each.name for each in fields(self)]  # type: ignore[arg-type]
        held = {name: mask for name in names if getattr(self, name) == instead_of}
        made = replace(self, **held) if held else self  # type: ignore[type-var]
        if instead_of in made.blobs():
            raise UsageError(
                f"the variant of training {self.name!r} needs the mask {instead_of[:12]} that it was made for, and no"
                " field of it is that mask's digest alone: let its method `under` say what it is under another mask"
            )
        return made

    # -- in a training -------------------------------------------------------------------------------------------------

    def effect(self, around: Surroundings) -> Effect:
        """Build its effect in one training."""
        raise NotImplementedError

    def first_state(self, around: Surroundings, model: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return its state at the start of a segment with the weights and buffers `model`; see `Effect.state`."""
        return {}

    # -- fields of records ---------------------------------------------------------------------------------------------

    def ticket_fields(self) -> dict[str, Any]:
        """Return fields of `records.network.Point` for a ticket whose mask comes from a training with it."""
        return {}

    def round_fields(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return fields of `records.run.Round` for a training with it, from the record of its result (`Effect.facts`,
        `Effect.measured`); empty if its trainings are not rounds of a search."""
        return {}

    # -- costs ---------------------------------------------------------------------------------------------------------

    def afresh(self: Own) -> Own:
        """Return it as it would be without an earlier training, for measuring the cost of a step."""
        return self

    def decides_flops(self) -> object:
        """Return the JSON value that decides the FLOPs of a forward and a backward pass; None if it does not matter."""
        return None

    def decides_memory(self) -> object:
        """Return the JSON value that decides the memory of a step; None if it does not matter."""
        return self.name


class Effect:
    """A variant in one training. The loop calls the methods that a subclass overrides, in the order defined here.

    Effects start in the order of `Segment.variants`, and act on gradients in the reverse order.
    """

    def __init__(self, around: Surroundings) -> None:
        self.around = around

    # -- once, before the first step -----------------------------------------------------------------------------------

    def entering(self, state: TrainingState) -> TrainingState:
        """Convert the state from which training resumes to this network."""
        return state

    def recipe(self, recipe: Recipe) -> Recipe:
        """Return the recipe for the optimiser of the weights."""
        return recipe

    def build(self, model: nn.Module) -> nn.Module:
        """Return the network to train instead of the task's."""
        return model

    def trained(self, model: nn.Module) -> Trainable | None:
        """Return the parameters that the optimiser updates; None for all."""
        return None

    def begin(self, training: InTraining, carried: Mapping[str, Tensor]) -> None:
        """Start; `carried` is the value of `state`, or of `Variant.first_state`."""

    def entering_session(self, entries: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Convert the entries of a stored session to this network."""
        return entries

    # -- each step -----------------------------------------------------------------------------------------------------

    def before_step(self) -> None:
        """Act before the forward pass."""

    def loss(self, batch: Any, inner: Callable[[], Tensor]) -> Tensor:
        """Return the loss of a batch; `inner` computes it without this effect."""
        return inner()

    def after_backward(self) -> None:
        """Act on the gradients of the loss, before they are clipped."""

    def after_step(self) -> None:
        """Act after the optimiser has updated the parameters."""

    # -- between steps -------------------------------------------------------------------------------------------------

    def stopped(self) -> None:
        """Act when training pauses, at least for a state to be stored."""

    def check(self) -> None:
        """Raise an error of `ticketry.errors` if its invariant does not hold."""

    def state(self) -> dict[str, Tensor]:
        """Return a copy of its state on the CPU."""
        return {}

    def lasting(self, name: str) -> bool:
        """Return whether an entry of `state` is part of the result; other entries are only needed to resume."""
        return False

    def leaving(self, state: TrainingState) -> TrainingState:
        """Convert the state for the store: it has the full shapes of the task's network."""
        return state

    def leaving_session(self, entries: dict[str, Tensor]) -> dict[str, Tensor]:
        """Invert `entering_session`."""
        return entries

    def facts(self) -> dict[str, Any]:
        """Return entries of the result's record, as JSON values."""
        return {}

    def measured(self, measure: Callable[[], Metrics]) -> dict[str, Metrics]:
        """Return the quality of the network as entries of the record; ``metrics`` is the one that counts."""
        return {"metrics": measure()}

    def tensors(self) -> object:
        """Return all tensors that it holds before the first step, for measuring memory."""
        return []


def ordered(variants: tuple[Variant, ...]) -> tuple[Variant, ...]:
    """Sort variants into the order in which they start.

    Raises:
        UsageError: for two variants of one class, or two that conflict.
    """
    found = tuple(sorted(variants, key=lambda one: (not one.outermost, one.name)))
    for number, one in enumerate(found):
        for other in found[:number]:
            if one.name == other.name:
                raise UsageError(f"a segment has at most one variant of training called {one.name!r}")
            if reason := one.conflict(other) or other.conflict(one):
                raise UsageError(reason)
    return found


def under_mask(variants: Iterable[Variant], mask: str) -> tuple[Variant, ...]:
    """Return the variants for another stored mask instead of the one by which they remove weights.

    Raises:
        UsageError: see `Variant.under`.
    """
    known = tuple(variants)
    before = next((digest for one in known if (digest := one.masked_by()) is not None), None)
    return known if before in (None, mask) else tuple(one.under(mask, instead_of=before) for one in known)


def bound_to_mask(variants: Iterable[Variant]) -> str:
    """Return why these variants cannot train a network with another mask; empty if they can."""
    try:
        under_mask(variants, _NO_MASK)
    except UsageError as error:
        return str(error)
    return ""


_NO_MASK = "0" * 64
"""Digest of no mask."""


def variant_from(described: Mapping[str, Any]) -> Variant:
    """Build a variant from `Variant.identity` and `describe`, after JSON; its class must be imported.

    Raises:
        UsageError: if the class is unknown, or its source has changed.
    """
    values = dict(described)
    source = values.get("source")
    found = _KNOWN.get(_known_as(described))
    name, *place = [values.pop(key) for key in ("variant", "place") if key in values]
    if found is None:
        where = f" of {place[0]}" if place else ""
        raise UsageError(
            f"the variant of training {name!r}{where} is not known here: import the module that defines it"
        )
    if place:
        values.pop("source", None)  # the class's own; a built-in class may have a field of this name
    made = found.from_description(values)
    if {**made.identity(), **made.describe()}.get("source") != source:
        raise UsageError(
            f"the source of the variant of training {name!r} is no longer that of this segment: run it anew"
        )
    return made


def is_known(described: Mapping[str, Any]) -> bool:
    """Return whether the class of a described variant is imported."""
    return _known_as(described) in _KNOWN


@cache
def _source(cls: Hashable) -> bytes:
    """Return the source of the class's module, read once: later edits do not change an imported class."""
    assert isinstance(cls, type)
    try:
        return inspect.getsource(inspect.getmodule(cls) or cls).encode()
    except (OSError, TypeError):  # defined at a prompt or in a notebook
        raise UsageError(
            f"{cls.__module__}:{cls.__qualname__} has no source file, without which its results have no key: define it"
            " in a module of your own, and import it"
        ) from None


def _known_as(described: Mapping[str, Any]) -> str:
    return json.dumps([described[key] for key in ("variant", "place") if key in described])


def _place(cls: type) -> list[str]:
    """Return where a class outside the library is defined."""
    inside = cls.__module__.partition(".")[0] == "ticketry"
    return [] if inside else [f"{cls.__module__}:{cls.__qualname__}"]
