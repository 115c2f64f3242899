"""Define the interface of variants: changes to a training, such as an enforced mask, soft masks or a penalty.

A `Variant` consists of plain values, which are part of a segment's key; it also says with which variants it conflicts.
Its method `effect` returns an `Effect`, whose methods the training loop calls at fixed places. A user-defined variant
subclasses both classes, in any package:

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
from ticketry.lab.training.state import Trainable, TrainingState
from ticketry.registry import hash_imported_modules
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Course, Session, Task

Metrics = dict[str, dict[str, Any]]
"""Value of each metric, by split and metric."""
Own = TypeVar("Own", bound="Variant")


@dataclass(frozen=True)
class Surroundings:
    """Holds what a variant may know about its training: the task with its data, the steps, and the store with masks."""

    store: Store
    course: Course
    task: Task
    recipe: Recipe
    first: int
    last: int
    total: int
    per_epoch: int
    mask_digest: str | None
    """Digest of the mask that removes weights; None for a dense network."""

    @cached_property
    def mask(self) -> Mask | None:
        """The mask that removes weights; None for a dense network."""
        return None if self.mask_digest is None else self.store.get_mask(self.mask_digest)


class InTraining(Protocol):
    """Lists the attributes and methods of the training loop that an effect may use."""

    step: int
    model: nn.Module
    session: Session
    optimizer: Optimizer

    def check_losses(self) -> None:
        """Raise `TrainingError` if the loss of a step since the last check is not finite."""

    def average_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Average the gradients of `parameters`, which do not belong to the network, over all training processes."""


_KNOWN: dict[str, type[Variant]] = {}
"""Variant classes that have been imported, by their names and, for user-defined classes, their modules."""


class Variant:
    """Describes a change to a training; subclasses are frozen, keyword-only dataclasses with plain values as fields."""

    name: ClassVar[str]
    """Name of the variant in keys and stored states; for user-defined classes, keys also contain the module."""
    outermost: ClassVar[bool] = False
    """Whether the variant starts before all other variants and changes gradients after them, as masks do."""
    computes_removed: ClassVar[bool] = False
    """Whether every step computes with the weights that a mask removes."""
    sparse_kernels: ClassVar[bool] = False
    """Whether steps may run in sparse kernels, which compute only with retained weights of the unchanged model."""

    @property
    def several_ranks(self) -> bool:
        """Whether several processes may train together with this variant; its effect is then equal in all of them."""
        return False

    replayable: ClassVar[bool] = False
    """Whether steps can be replayed from a CUDA graph: all steps run the same operations, and parameters stay in the
    same memory, see `replays`."""
    in_parts: ClassVar[bool] = False
    """Whether the variant supports sharded parameters (`fully_shard`)."""
    whole_channels: ClassVar[bool] = False
    """Whether the channels that the mask removes are taken out of the network for training."""

    def __init_subclass__(cls, **others: Any) -> None:
        super().__init_subclass__(**others)
        if not (isinstance(getattr(cls, "name", None), str) and cls.name.isidentifier()):
            raise UsageError(f"{cls.__qualname__} is no variant of training: its name is no identifier")
        _KNOWN[json.dumps([cls.name, *_module_and_class_name(cls)])] = cls

    # -- as values -----------------------------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Return the fields as JSON values for keys, without default values; so new fields do not change old keys."""
        defaults = {field.name: field.default for field in fields(self)}  # type: ignore[arg-type]
        values: dict[str, Any] = asdict(self)  # type: ignore[call-overload]
        return {name: value for name, value in values.items() if value != defaults[name]}

    @classmethod
    def from_description(cls: type[Own], values: Mapping[str, Any]) -> Own:
        """Return the variant for JSON values that `describe` returned."""
        return cls(**values)

    @classmethod
    def identity(cls) -> dict[str, str]:
        """Return the variant's name for keys; for a user-defined class also its module and a digest of its source."""
        found = {"variant": cls.name}
        for place in _module_and_class_name(cls):
            whole = hash_imported_modules(hashlib.sha256(_read_source(cast(Hashable, cls))), [cls.__module__])
            found |= {"place": place, "source": whole.hexdigest()}
        return found

    def masked_by(self) -> str | None:
        """Return the digest of the stored mask with which the variant removes weights; None if it removes none."""
        return None

    def blobs(self) -> tuple[str, ...]:
        """Return the digests of the stored tensors that the variant needs, such as a mask."""
        mask = self.masked_by()
        return () if mask is None else (mask,)

    def conflict(self, other: Variant) -> str | None:
        """Return why this variant cannot be combined with `other`, or None; `other.conflict(self)` is called too."""
        return None

    def under(self: Own, mask: str, *, instead_of: str) -> Own:
        """Return a copy of the variant for another mask, such as for a control with a shuffled mask.

        Args:
            mask: digest of the new mask.
            instead_of: digest of the old mask; it is replaced in all fields.

        Raises:
            UsageError: if the variant depends on the old mask in another way. A subclass can then override this method.
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
        """Return the object that applies this variant to one training."""
        raise NotImplementedError

    def first_state(self, around: Surroundings, model: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the variant's state (`Effect.state`) at the start of a segment; `model` has the initial weights."""
        return {}

    # -- fields of records ---------------------------------------------------------------------------------------------

    def ticket_fields(self) -> dict[str, Any]:
        """Return entries for a ticket's record (`records.network.Point`), if this variant found the ticket's mask."""
        return {}

    def round_fields(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Return entries for the `records.run.Round` of a pruning round from a training's `record`; else empty."""
        return {}

    # -- costs ---------------------------------------------------------------------------------------------------------

    def without_history(self: Own) -> Own:
        """Return a copy without references to earlier trainings, for measuring the cost of a step."""
        return self

    def flops_key(self) -> object:
        """Return a JSON value that determines how the variant changes the FLOPs of a step; None if it does not."""
        return None

    def memory_key(self) -> object:
        """Return a JSON value that determines how the variant changes the memory of a step; None if it does not."""
        return self.name


class Effect:
    """Carries out a variant in one training; the training loop calls the methods in the order of definition.

    A segment may have several effects. They start in the order of `Segment.variants`, and change gradients in the
    reverse order.
    """

    def __init__(self, around: Surroundings) -> None:
        self.around = around

    # -- once, before the first step -----------------------------------------------------------------------------------

    def convert_loaded_state(self, state: TrainingState) -> TrainingState:
        """Convert a stored state to the shapes of the network that is trained, which may be smaller."""
        return state

    def recipe(self, recipe: Recipe) -> Recipe:
        """Return the recipe with which the weights are trained, which is `recipe` or a changed copy."""
        return recipe

    def build(self, model: nn.Module) -> nn.Module:
        """Return the network to train: the task's network `model`, changed or replaced."""
        return model

    def trained(self, model: nn.Module) -> Trainable | None:
        """Return an object with the parameters that the optimiser updates; None for all parameters of `model`."""
        return None

    def begin(self, training: InTraining, carried: Mapping[str, Tensor]) -> None:
        """Start the effect; `carried` is its stored state or, in a new training, that of `Variant.first_state`."""

    def convert_loaded_session(self, entries: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Convert `entries`, the stored state of the task's `Session`, to the shapes of the network that is trained."""
        return entries

    # -- each step -----------------------------------------------------------------------------------------------------

    def before_step(self) -> None:
        """Do what the variant requires before the forward pass of a step, such as to set gates."""

    def loss(self, batch: Any, inner: Callable[[], Tensor]) -> Tensor:
        """Return the loss of a batch; a call of `inner` returns the loss without this effect."""
        return inner()

    def after_backward(self) -> None:
        """Change the gradients of the loss, before they are clipped."""

    def after_step(self) -> None:
        """Do what the variant requires after the optimiser's step, such as to change the mask."""

    # -- between steps -------------------------------------------------------------------------------------------------

    def stopped(self) -> None:
        """Do what the variant requires when training pauses, for example because a state is stored."""

    def check(self) -> None:
        """Raise an error of `ticketry.errors` if a condition that the effect guarantees does not hold."""

    def state(self) -> dict[str, Tensor]:
        """Return a copy of the effect's state on the CPU."""
        return {}

    def lasting(self, name: str) -> bool:
        """Return whether the entry `name` of the state belongs to the result, not only to a resumable state."""
        return False

    def convert_state_for_store(self, state: TrainingState) -> TrainingState:
        """Convert the state of the network that is trained to the shapes of the task's network, for the store."""
        return state

    def convert_session_for_store(self, entries: dict[str, Tensor]) -> dict[str, Tensor]:
        """Convert `entries`, the state of the task's `Session`, to the shapes of the task's network, for the store."""
        return entries

    def facts(self) -> dict[str, Any]:
        """Return entries for the result's record, as JSON values."""
        return {}

    def measured(self, measure: Callable[[], Metrics]) -> dict[str, Metrics]:
        """Return metrics for the result's record, by entry; `measure` returns the metrics of the trained network."""
        return {"metrics": measure()}

    def tensors(self) -> object:
        """Return all tensors that the effect holds before the first step, for measuring memory."""
        return []


def order_variants(variants: tuple[Variant, ...]) -> tuple[Variant, ...]:
    """Return the variants in the order in which they start; `UsageError` if two are of one class or conflict."""
    found = tuple(sorted(variants, key=lambda one: (not one.outermost, one.name)))
    for number, one in enumerate(found):
        for other in found[:number]:
            if one.name == other.name:
                raise UsageError(f"a segment has at most one variant of training called {one.name!r}")
            if reason := one.conflict(other) or other.conflict(one):
                raise UsageError(reason)
    return found


def with_other_mask(variants: Iterable[Variant], mask: str) -> tuple[Variant, ...]:
    """Return the variants with another mask in place of the mask that removes weights."""
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
"""Digest of a mask that does not exist."""


def variant_from_description(described: Mapping[str, Any]) -> Variant:
    """Build a variant from the JSON values of `Variant.identity` and `Variant.describe`."""
    values = dict(described)
    source = values.get("source")
    found = _KNOWN.get(_registry_key_of_variant(described))
    name, *place = [values.pop(key) for key in ("variant", "place") if key in values]
    if found is None:
        where = f" of {place[0]}" if place else ""
        raise UsageError(
            f"the variant of training {name!r}{where} is not known here: import the module that defines it"
        )
    if place:
        values.pop("source", None)  # not a field, unless the class is built in
    made = found.from_description(values)
    if {**made.identity(), **made.describe()}.get("source") != source:
        raise UsageError(
            f"the source of the variant of training {name!r} is no longer that of this segment: run it anew"
        )
    return made


def is_known(described: Mapping[str, Any]) -> bool:
    """Return whether the class of the variant that `described` describes has been imported."""
    return _registry_key_of_variant(described) in _KNOWN


@cache
def _read_source(cls: Hashable) -> bytes:
    """Return the source of the module that defines a class; read it once, so that later edits do not matter."""
    assert isinstance(cls, type)
    try:
        return inspect.getsource(inspect.getmodule(cls) or cls).encode()
    except (OSError, TypeError):  # defined at a prompt or in a notebook
        raise UsageError(
            f"{cls.__module__}:{cls.__qualname__} has no source file, without which its results have no key: define it"
            " in a module of your own, and import it"
        ) from None


def _registry_key_of_variant(described: Mapping[str, Any]) -> str:
    return json.dumps([described[key] for key in ("variant", "place") if key in described])


def _module_and_class_name(cls: type) -> list[str]:
    """Return a list with ``module:name`` of a class; an empty list for a class of ticketry."""
    inside = cls.__module__.partition(".")[0] == "ticketry"
    return [] if inside else [f"{cls.__module__}:{cls.__qualname__}"]
