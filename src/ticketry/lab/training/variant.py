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
    """Context in which a variant acts: the task with its data, the place in the schedule, and the store of masks."""

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
        """Return the mask by which a variant removes weights, or None."""
        return None if self.mask_digest is None else self.store.get_mask(self.mask_digest)


class InTraining(Protocol):
    """The members of the training loop that an effect may use."""

    step: int
    model: nn.Module
    session: Session
    optimizer: Optimizer

    def check_losses(self) -> None:
        """Raise `TrainingError` if a loss since the last check is not finite."""

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average the gradients of parameters outside of the network over all ranks."""


_KNOWN: dict[str, type[Variant]] = {}
"""Imported variant classes, by name and defining module."""


class Variant:
    """A change to a training. Subclasses are frozen, keyword-only dataclasses whose fields are plain values."""

    name: ClassVar[str]
    """Name in keys and stored states, unique within the library; keys of other classes add the module."""
    outermost: ClassVar[bool] = False
    """Whether it starts before all other variants and acts on gradients after them, as masks do."""
    computes_removed: ClassVar[bool] = False
    """Whether every step computes with the weights that a mask removes."""
    sparse_kernels: ClassVar[bool] = False
    """Whether steps may run in sparse kernels, which compute only with retained weights of the unchanged model."""

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
        """Return its fields as JSON values for keys. Defaults are omitted, so that keys stay valid when fields are
        added.
        """
        defaults = {field.name: field.default for field in fields(self)}  # type: ignore[arg-type]
        values: dict[str, Any] = asdict(self)  # type: ignore[call-overload]
        return {name: value for name, value in values.items() if value != defaults[name]}

    @classmethod
    def from_description(cls: type[Own], values: Mapping[str, Any]) -> Own:
        """Return the variant for a JSON value of `describe`."""
        return cls(**values)

    @classmethod
    def identity(cls) -> dict[str, str]:
        """Return its name for keys; for a class outside of the library also its module and the digest of its source."""
        found = {"variant": cls.name}
        for place in _place(cls):
            whole = add_reached_modules(hashlib.sha256(_source(cast(Hashable, cls))), [cls.__module__])
            found |= {"place": place, "source": whole.hexdigest()}
        return found

    def masked_by(self) -> str | None:
        """Return the digest of the stored mask by which it removes weights, if any."""
        return None

    def blobs(self) -> tuple[str, ...]:
        """Return the digests of all stored tensors that it needs."""
        mask = self.masked_by()
        return () if mask is None else (mask,)

    def conflict(self, other: Variant) -> str | None:
        """Return why it cannot be combined with another variant, or None. The other variant's method is called too."""
        return None

    def under(self: Own, mask: str, *, instead_of: str) -> Own:
        """Return the variant for another stored mask, as a ticket's control needs it; the digest is replaced in all
        fields.

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
        """Return its effect in one training."""
        raise NotImplementedError

    def first_state(self, around: Surroundings, model: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return its state at the start of a segment that begins with the weights and buffers `model`, see
        `Effect.state`.
        """
        return {}

    # -- fields of records ---------------------------------------------------------------------------------------------

    def ticket_fields(self) -> dict[str, Any]:
        """Return fields of `records.network.Point` for a ticket whose mask was found by a training with this
        variant.
        """
        return {}

    def round_fields(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return fields of `records.run.Round` for a training with this variant, from its result's record
        (`Effect.facts`, `Effect.measured`); empty if its trainings are not rounds of a search.
        """
        return {}

    # -- costs ---------------------------------------------------------------------------------------------------------

    def without_history(self: Own) -> Own:
        """Return the variant without references to earlier trainings, for measuring the cost of a step."""
        return self

    def flops_key(self) -> object:
        """Return a JSON value on which the FLOPs of a step depend; None if they do not depend on the variant."""
        return None

    def memory_key(self) -> object:
        """Return a JSON value on which the memory of a step depends; None if it does not depend on the variant."""
        return self.name


class Effect:
    """The action of a variant in one training. The loop calls the methods that a subclass overrides, in the order
    below.

    Effects start in the order of `Segment.variants`, and act on gradients in the reverse order.
    """

    def __init__(self, around: Surroundings) -> None:
        self.around = around

    # -- once, before the first step -----------------------------------------------------------------------------------

    def convert_loaded_state(self, state: TrainingState) -> TrainingState:
        """Convert a stored state from which training resumes to the network that is trained."""
        return state

    def recipe(self, recipe: Recipe) -> Recipe:
        """Return the recipe for the optimiser of the weights, possibly changed."""
        return recipe

    def build(self, model: nn.Module) -> nn.Module:
        """Return the network to train instead of the task's."""
        return model

    def trained(self, model: nn.Module) -> Trainable | None:
        """Return the parameters that the optimiser updates; None for all."""
        return None

    def begin(self, training: InTraining, carried: Mapping[str, Tensor]) -> None:
        """Start the effect; `carried` is its stored `state`, or `Variant.first_state`."""

    def convert_loaded_session(self, entries: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Convert the stored entries of a session to the network that is trained."""
        return entries

    # -- each step -----------------------------------------------------------------------------------------------------

    def before_step(self) -> None:
        """Act before the forward pass."""

    def loss(self, batch: Any, inner: Callable[[], Tensor]) -> Tensor:
        """Return the loss of a batch; `inner` computes it without this effect."""
        return inner()

    def after_backward(self) -> None:
        """Act on the gradients of the loss before they are clipped."""

    def after_step(self) -> None:
        """Act after the optimiser has updated the parameters."""

    # -- between steps -------------------------------------------------------------------------------------------------

    def stopped(self) -> None:
        """Act when training pauses, for example because a state is stored."""

    def check(self) -> None:
        """Raise an error of `ticketry.errors` if the effect's invariant is violated."""

    def state(self) -> dict[str, Tensor]:
        """Return a copy of the effect's state on the CPU."""
        return {}

    def lasting(self, name: str) -> bool:
        """Return whether an entry of `state` is part of the result; other entries are only for resuming."""
        return False

    def convert_state_for_store(self, state: TrainingState) -> TrainingState:
        """Convert the state of the trained network to the shapes of the task's network, for the store."""
        return state

    def convert_session_for_store(self, entries: dict[str, Tensor]) -> dict[str, Tensor]:
        """Convert a session's entries for the store; the inverse of `convert_loaded_session`."""
        return entries

    def facts(self) -> dict[str, Any]:
        """Return entries for the result's record, as JSON values."""
        return {}

    def measured(self, measure: Callable[[], Metrics]) -> dict[str, Metrics]:
        """Return the network's metrics as entries of the record; the entry ``metrics`` is the one that searches use."""
        return {"metrics": measure()}

    def tensors(self) -> object:
        """Return all tensors that the effect holds before the first step, for measuring memory."""
        return []


def order_variants(variants: tuple[Variant, ...]) -> tuple[Variant, ...]:
    """Return the variants in the order in which they start.

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


def with_other_mask(variants: Iterable[Variant], mask: str) -> tuple[Variant, ...]:
    """Return the variants for another stored mask in place of the one by which they remove weights.

    Raises:
        UsageError: see `Variant.under`.
    """
    known = tuple(variants)
    before = next((digest for one in known if (digest := one.masked_by()) is not None), None)
    return known if before in (None, mask) else tuple(one.under(mask, instead_of=before) for one in known)


def explain_mask_dependence(variants: Iterable[Variant]) -> str:
    """Return why these variants cannot train a network with another mask; empty if they can."""
    try:
        with_other_mask(variants, _NO_MASK)
    except UsageError as error:
        return str(error)
    return ""


_NO_MASK = "0" * 64
"""Digest that stands for no mask."""


def variant_from(described: Mapping[str, Any]) -> Variant:
    """Build a variant from the JSON values of `Variant.identity` and `describe`. Its class must be imported.

    Raises:
        UsageError: if the class is unknown, or its source has changed.
    """
    values = dict(described)
    source = values.get("source")
    found = _KNOWN.get(_registry_key(described))
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
    return _registry_key(described) in _KNOWN


@cache
def _source(cls: Hashable) -> bytes:
    """Return the source of the module of a class; it is read once, since later edits do not change an imported
    class.
    """
    assert isinstance(cls, type)
    try:
        return inspect.getsource(inspect.getmodule(cls) or cls).encode()
    except (OSError, TypeError):  # defined at a prompt or in a notebook
        raise UsageError(
            f"{cls.__module__}:{cls.__qualname__} has no source file, without which its results have no key: define it"
            " in a module of your own, and import it"
        ) from None


def _registry_key(described: Mapping[str, Any]) -> str:
    return json.dumps([described[key] for key in ("variant", "place") if key in described])


def _place(cls: type) -> list[str]:
    """Return the module and name of a class outside of the library."""
    inside = cls.__module__.partition(".")[0] == "ticketry"
    return [] if inside else [f"{cls.__module__}:{cls.__qualname__}"]
