"""What acts on a network while it trains: one protocol for masks, soft masks, penalties and whatever else there is.

A `Variant` is plain values: it is part of a segment's key, says beside which others it cannot be trained, and what it
costs. Its `effect` is the same at work in one training: the loop calls an `Effect` at fixed places and knows none by
name. A variant of one's own is a subclass of each, in any package:

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
    """What a training is of: its task with the data, where it is in the schedule, and where masks are stored."""

    store: Store
    course: Course
    task: Task
    recipe: Recipe
    first: int
    last: int
    total: int
    per_epoch: int
    mask_digest: str | None
    """Of the mask by which some variant removes weights."""

    @cached_property
    def mask(self) -> Mask | None:
        """That mask."""
        return None if self.mask_digest is None else self.store.get_mask(self.mask_digest)


class InTraining(Protocol):
    """What an effect sees of the loop that it is in."""

    step: int
    model: nn.Module
    session: Session
    optimizer: Optimizer

    def look_at_losses(self) -> None:
        """Raises `TrainingError` if a loss since the last look is not finite."""

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Of parameters that are not the network's: over the processes that train it together."""


_KNOWN: dict[str, type[Variant]] = {}
"""Every class of variants that was imported, by name and place."""


class Variant:
    """A way of acting on a network while it trains. Subclasses are frozen, keyword-only dataclasses of plain values."""

    name: ClassVar[str]
    """Its word in keys and stored states. Unique within the library; outside it the class's place is added to it."""
    outermost: ClassVar[bool] = False
    """Whether it begins before all others and acts on gradients after them, as masks do."""
    computes_removed: ClassVar[bool] = False
    """Whether a step computes with weights that a mask removes, also where that need not be."""
    sparse_kernels: ClassVar[bool] = False
    """Whether a step may compute with only what the mask keeps, in kernels that take the model as it is."""

    @property
    def several_ranks(self) -> bool:
        """Whether several processes may train with it together, each on its part of a batch: what its effect does to
        weights and gradients is the same in all of them, and it looks at no batch and draws nothing."""
        return False

    replayable: ClassVar[bool] = False
    """Whether the forward and the backward pass do the same at every step with it, and parameters stay where they are
    in memory, so that on a GPU one step can be recorded for all, see `replays`."""
    in_parts: ClassVar[bool] = False
    """Whether several processes may train with it of which each has a part of every parameter (`fully_shard`)."""
    whole_channels: ClassVar[bool] = False
    """Whether it trains the network without the channels that its mask removes."""

    def __init_subclass__(cls, **others: Any) -> None:
        super().__init_subclass__(**others)
        if not (isinstance(getattr(cls, "name", None), str) and cls.name.isidentifier()):
            raise UsageError(f"{cls.__qualname__} is no variant of training: its name is no identifier")
        _KNOWN[json.dumps([cls.name, *_place(cls)])] = cls

    # -- as values -----------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """All of it as JSON values, for keys; fields with their default are left out, so that new ones may come."""
        defaults = {field.name: field.default for field in fields(self)}  # type: ignore[arg-type]
        values: dict[str, Any] = asdict(self)  # type: ignore[call-overload]
        return {name: value for name, value in values.items() if value != defaults[name]}

    @classmethod
    def from_description(cls: type[Own], values: Mapping[str, Any]) -> Own:
        """The inverse of `describe`, after JSON."""
        return cls(**values)

    @classmethod
    def identity(cls) -> dict[str, str]:
        """What tells it from other variants in keys: outside the library its place and the digest of its source too."""
        told = {"variant": cls.name}
        for place in _place(cls):
            whole = add_reached_modules(hashlib.sha256(_source(cast(Hashable, cls))), [cls.__module__])
            told |= {"place": place, "source": whole.hexdigest()}
        return told

    def masked_by(self) -> str | None:
        """Digest of the stored mask by which it removes weights, if it does."""
        return None

    def blobs(self) -> tuple[str, ...]:
        """Digests of all that it needs from the store."""
        mask = self.masked_by()
        return () if mask is None else (mask,)

    def conflict(self, other: Variant) -> str | None:
        """Why it cannot be trained beside another, or None if it can. Asked of either."""
        return None

    def under(self: Own, mask: str, *, instead_of: str) -> Own:
        """What does the same to a network with another stored mask, as a control of a ticket is trained: the digest of
        the one stands in all fields that had the other's.

        Raises:
            UsageError: if it needs the mask in some other way. A subclass that does overrides this.
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

    # -- at work -------------------------------------------------------------------------------------------------------

    def effect(self, around: Surroundings) -> Effect:
        """Itself at work in one training."""
        raise NotImplementedError

    def first_state(self, around: Surroundings, model: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What it carries when the segment begins with the weights and buffers `model`; see `Effect.state`."""
        return {}

    # -- what the record of a run tells --------------------------------------------------------------------------------

    def told_of_ticket(self) -> dict[str, Any]:
        """What a ticket whose mask comes from a training with it is told with: fields of `records.network.Point`."""
        return {}

    def told_of_round(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """What is told of a training with it as a round of a search: fields of `records.run.Round`, from the record of
        its result (`Effect.facts`, `Effect.measured`). Empty where trainings with it are no rounds."""
        return {}

    # -- what it costs -------------------------------------------------------------------------------------------------

    def afresh(self: Own) -> Own:
        """As it would be without an earlier training, for measuring what a step costs."""
        return self

    def decides_flops(self) -> object:
        """What of it decides the FLOPs of a forward and a backward pass, as a JSON value; None if nothing."""
        return None

    def decides_memory(self) -> object:
        """What of it decides the memory of a step, as a JSON value; None if nothing."""
        return self.name


class Effect:
    """A variant at work in one training. The loop calls what a subclass overrides, in the order of the methods here.

    Effects begin in the order of `Segment.variants`, and act on gradients in the reverse order.
    """

    def __init__(self, around: Surroundings) -> None:
        self.around = around

    # -- once, before the first step -----------------------------------------------------------------------------------

    def entering(self, state: TrainingState) -> TrainingState:
        """The state that training goes on from, as this network has it."""
        return state

    def recipe(self, recipe: Recipe) -> Recipe:
        """The recipe of the optimiser of the weights."""
        return recipe

    def build(self, model: nn.Module) -> nn.Module:
        """The network that is trained in place of the task's."""
        return model

    def trained(self, model: nn.Module) -> Trainable | None:
        """What the optimiser moves; None for all parameters."""
        return None

    def begin(self, training: InTraining, carried: Mapping[str, Tensor]) -> None:
        """All is in place; `carried` is what `state` gave, or `Variant.first_state`."""

    def entering_session(self, entries: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Entries of a stored session, as this network has them."""
        return entries

    # -- each step -----------------------------------------------------------------------------------------------------

    def before_step(self) -> None:
        """Before the forward pass."""

    def loss(self, batch: Any, inner: Callable[[], Tensor]) -> Tensor:
        """The loss of a batch; `inner` computes it without this effect."""
        return inner()

    def after_backward(self) -> None:
        """The parameters have the gradients of the loss; they are not clipped yet."""

    def after_step(self) -> None:
        """The optimiser has moved the parameters."""

    # -- now and then --------------------------------------------------------------------------------------------------

    def stopped(self) -> None:
        """Training stops here, at least for a state to be stored."""

    def check(self) -> None:
        """Raises an error of `ticketry.errors` if what it promises does not hold."""

    def state(self) -> dict[str, Tensor]:
        """A copy of what it carries to the next step, on the CPU."""
        return {}

    def lasting(self, name: str) -> bool:
        """Whether an entry of `state` is part of the result, and not only needed to go on."""
        return False

    def leaving(self, state: TrainingState) -> TrainingState:
        """The state as it is stored: with the full shapes of the task's network."""
        return state

    def leaving_session(self, entries: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inverse of `entering_session`."""
        return entries

    def facts(self) -> dict[str, Any]:
        """What the record of a result tells of it, as JSON values."""
        return {}

    def measured(self, measure: Callable[[], Metrics]) -> dict[str, Metrics]:
        """The entries of the record that tell how good the network is; ``metrics`` is what counts."""
        return {"metrics": measure()}

    def tensors(self) -> object:
        """All tensors that it holds before the first step, for measuring memory."""
        return []


def ordered(variants: tuple[Variant, ...]) -> tuple[Variant, ...]:
    """The variants in the order in which they begin, whatever order they were named in.

    Raises:
        UsageError: if there are two of a kind, or two that cannot be trained together.
    """
    found = tuple(sorted(variants, key=lambda one: (not one.outermost, one.name)))
    for number, one in enumerate(found):
        for other in found[:number]:
            if one.name == other.name:
                raise UsageError(f"a segment has at most one variant of training called {one.name!r}")
            if told := one.conflict(other) or other.conflict(one):
                raise UsageError(told)
    return found


def under_mask(variants: Iterable[Variant], mask: str) -> tuple[Variant, ...]:
    """Variants of a training with another stored mask in place of the one by which they remove weights.

    Raises:
        UsageError: see `Variant.under`.
    """
    known = tuple(variants)
    before = next((digest for one in known if (digest := one.masked_by()) is not None), None)
    return known if before in (None, mask) else tuple(one.under(mask, instead_of=before) for one in known)


def bound_to_mask(variants: Iterable[Variant]) -> str:
    """Why no network with another mask can be trained with these variants; an empty text if one can."""
    try:
        under_mask(variants, _NO_MASK)
    except UsageError as error:
        return str(error)
    return ""


_NO_MASK = "0" * 64
"""A digest that no mask has."""


def variant_from(described: Mapping[str, Any]) -> Variant:
    """The inverse of `Variant.identity` and `describe` together, after JSON, for classes that are imported.

    Raises:
        UsageError: if there is none, or its source is not the one described.
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
        values.pop("source", None)  # the class's own; of a built-in one it is that of something it is made with
    made = found.from_description(values)
    if {**made.identity(), **made.describe()}.get("source") != source:
        raise UsageError(
            f"the source of the variant of training {name!r} is no longer that of this segment: run it anew"
        )
    return made


def is_known(described: Mapping[str, Any]) -> bool:
    """Whether the class of a variant that was described is imported here."""
    return _known_as(described) in _KNOWN


@cache
def _source(cls: Hashable) -> bytes:
    """Of the module that made the class: read once, for an edit of the file does not change a class that is there."""
    assert isinstance(cls, type)
    try:
        return inspect.getsource(inspect.getmodule(cls) or cls).encode()
    except (OSError, TypeError):  # of what was typed at a prompt or in a notebook
        raise UsageError(
            f"{cls.__module__}:{cls.__qualname__} has no source file, without which its results have no key: define it"
            " in a module of your own, and import it"
        ) from None


def _known_as(described: Mapping[str, Any]) -> str:
    return json.dumps([described[key] for key in ("variant", "place") if key in described])


def _place(cls: type) -> list[str]:
    """Where a class is defined, if that is not in the library."""
    inside = cls.__module__.partition(".")[0] == "ticketry"
    return [] if inside else [f"{cls.__module__}:{cls.__qualname__}"]
