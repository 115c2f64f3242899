"""Controls of a ticket: their names, how their masks and weights are made, and for how long they can be trained.

A ticket claims that *these* connections with *these* early weights matter; each control replaces the connections or the
weights. This module imports torch only when it is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ticketry.choices import check_choice, list_choices
from ticketry.core.structure.pattern import UNSTRUCTURED, Structuring
from ticketry.errors import UsageError
from ticketry.lab.search_result import DYNAMIC, FROM_REWOUND, Found, trained_steps
from ticketry.records.network import is_matched_dense
from ticketry.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ticketry.budgets.cost_model import Prices
    from ticketry.core.mask import Mask
    from ticketry.core.structure.coupling import Structure


@dataclass(frozen=True)
class MaskForm:
    """Structure of a ticket's mask, which the masks of its controls must also have."""

    kind: str = "weights"
    """Kind of structure: weights, channels, rows (groups of rows that retain the same columns), n:m or pattern."""
    m: int = 0
    """Group size M, for kind n:m."""
    pattern: str = ""
    """Pattern of the mask, for kind pattern; see `core.structure.pattern`."""
    aim: str = ""
    """Text that identifies the mask's cost budget, for kind weights. If given, controls have the same cost instead of
    the same density."""

    @classmethod
    def from_structure(cls, structure: str, *, shrunk: bool, pattern: str = UNSTRUCTURED, aim: str = "") -> MaskForm:
        """Return the structure of a ticket's mask.

        Args:
            structure: kind of the `Structuring` that was applied after the search; empty if none was applied.
            pattern: pattern in which the search chose the mask.
            shrunk: whether pruned channels are physically removed before training.
            aim: text that identifies the cost budget; empty without a budget.
        """
        if shrunk:
            return cls("channels")
        if not structure:
            return cls(aim=aim) if pattern == UNSTRUCTURED else cls("pattern", pattern=pattern)
        n_of_m = Structuring(kind=structure).n_of_m
        return cls("n:m", n_of_m[1]) if n_of_m else cls("rows")

    @classmethod
    def from_found(cls, found: Found) -> MaskForm:
        """Return the structure of the mask of a ticket that a search found."""
        kind, shrunk = found.structured.by.kind if found.structured else "", found.result.segment.whole_channels
        return cls.from_structure(kind, shrunk=shrunk, pattern=found.pattern, aim=found.aim)

    def cache_key(self) -> dict[str, Any]:
        """Return JSON values for cache keys that distinguish control masks of this structure from others."""
        if self.kind == "channels":
            return {"channels": True}  # key of masks stored before other forms existed
        more = {"m": self.m, "pattern": self.pattern, "budget": self.aim}
        return {"form": self.kind, **{name: value for name, value in more.items() if value}}


WEIGHTS = MaskForm()


@dataclass(frozen=True)
class Drawing:
    """Arguments of `Control.mask`: the seed, the required structure, and the network if that structure needs it."""

    seed: int
    form: MaskForm = WEIGHTS
    """Structure of the ticket's mask, which the control's mask must also have."""
    model: Callable[[], nn.Module] | None = None
    """Function that builds the task's network. For masks of single weights, `model` and `structure` are None."""
    structure: Callable[[], Structure] | None = None
    """Function that finds the network's coupled channels."""
    prices: Prices | None = None
    """Costs of weights, for a ticket with a cost budget; its control may not cost more. Else None."""


class Control:
    """A network as sparse as a ticket and trained for as long, but without one property of the ticket.

    A subclass overrides `mask` or `weights`, whose results must depend only on their arguments, or sets `fresh` to
    start from a new initialisation. ``ticketry list controls`` shows the docstring of the subclass.

    Examples:
        >>> class SameSigns(tk.evidence.Control):
        ...     def weights(self, weights, ticket, seed):
        ...         return {name: value.sign() for name, value in weights.items() if name in ticket}
        >>> control = SameSigns()
        >>> control.changes_weights, control.changes_mask, control.remakes_weights
        (True, False, True)
        >>> control.weights({"weight": torch.tensor([2.0, -3.0])}, tk.Mask.ones({"weight": (2,)}), seed=0)
        {'weight': tensor([ 1., -1.])}
        >>> mask = tk.Mask.ones({"weight": (2,)})
        >>> control.mask(mask, None) == mask
        True
    """

    forms: ClassVar[tuple[str, ...]] = ("weights",)
    """Kinds of `MaskForm` that the control supports."""
    fresh: ClassVar[bool] = False
    """Whether the control starts from a fresh initialisation, trained densely up to the step from which the ticket
    starts."""
    searched: ClassVar[bool] = True
    """Whether the control uses a result of the search, so that the search counts as part of its cost."""
    drawn_as: ClassVar[str] = ""
    """Name of another control that draws the same masks, or empty."""

    def mask(self, ticket: Mask, drawing: Drawing) -> Mask:
        """Return the control's mask, which must cover the same parameters and retain as many weights as the ticket's.

        Args:
            ticket: the ticket's mask.
            drawing: the seed and the required structure.
        """
        return ticket

    def weights(self, weights: Mapping[str, Tensor], ticket: Mask, seed: int) -> Mapping[str, Tensor]:
        """Return initial weights and buffers that replace the ticket's, by normalised name; they are masked afterwards.

        Args:
            weights: weights and buffers with which the ticket's training starts.
            ticket: the ticket's mask.
            seed: seed of random values.
        """
        return weights

    @property
    def changes_mask(self) -> bool:
        """Whether the control's mask differs from the ticket's."""
        return type(self).mask is not Control.mask

    @property
    def changes_weights(self) -> bool:
        """Whether the control starts from other weights than the ticket."""
        return self.fresh or self.remakes_weights

    @property
    def remakes_weights(self) -> bool:
        """Whether the control's initial weights are computed from the ticket's."""
        return type(self).weights is not Control.weights


_FORMS = ("weights", "channels", "rows", "n:m", "pattern")


class RandomReinit(Control):
    """The ticket's mask on a fresh initialisation, trained densely up to the step from which the ticket starts."""

    fresh = True


class Shuffled(Control):
    """The ticket's weights under its mask, shuffled within each layer.

    Structured masks keep their structure: what is shuffled is whole channels within each coupled group, groups of rows
    (which keep their numbers of rows and columns), weights within every M inputs of N:M, or blocks of a pattern. Under
    a latency budget groups of rows stay together, because single weights would cost more.
    """

    forms = _FORMS

    def mask(self, ticket: Mask, drawing: Drawing) -> Mask:
        from ticketry.core.mask import shuffled
        from ticketry.core.structure import controls, shuffled_structure

        form, seed = drawing.form, drawing.seed
        if form.kind == "weights":
            return _shuffle_row_groups(ticket, shuffled(ticket, seed), drawing)
        assert drawing.model is not None
        assert drawing.structure is not None
        if form.kind == "channels":
            return controls.shuffled_channels(drawing.model(), drawing.structure(), ticket, seed)
        if form.kind == "rows":
            return shuffled_structure(ticket, seed, model=drawing.model())
        if form.kind == "n:m":
            return controls.shuffled_n_m(drawing.model(), ticket, form.m, seed)
        return controls.shuffled_blocks(drawing.model(), ticket, form.pattern, seed)


def _shuffle_row_groups(ticket: Mask, single: Mask, drawing: Drawing) -> Mask:
    """Return the mask `single`, with groups of rows of `ticket` shuffled whole in layers whose cost depends on them."""
    from ticketry.budgets.cost_model import CostModel
    from ticketry.budgets.units import FINEST
    from ticketry.core.mask import Mask
    from ticketry.core.structure import shuffled_structure

    costs = drawing.prices
    if not isinstance(costs, CostModel):
        return single
    grouped = {name for name in ticket if costs.granularity(name, ticket) != FINEST}
    if not grouped:
        return single
    groups = shuffled_structure(ticket, drawing.seed, model=drawing.model() if drawing.model else None)
    return Mask({name: groups[name] if name in grouped else kept for name, kept in single.items()})


class RandomPrune(Control):
    """The ticket's weights under a random mask over all layers, of the same density, or of the same cost.

    If the ticket's mask has a structure, the random mask consists of random channels of all layers (as near to the
    density as possible), random columns of groups of rows, or random blocks of a pattern.
    """

    forms = _FORMS
    searched = False

    def mask(self, ticket: Mask, drawing: Drawing) -> Mask:
        from ticketry.budgets.pruner import random_mask_of_equal_cost
        from ticketry.core.structure import controls

        form, seed = drawing.form, drawing.seed
        if form.kind == "weights":
            if drawing.prices is not None:
                return random_mask_of_equal_cost(ticket, drawing.prices, seed)
            return controls.random_mask(ticket, seed)
        assert drawing.model is not None
        assert drawing.structure is not None
        if form.kind == "channels":
            return controls.random_channels(drawing.model(), drawing.structure(), ticket, seed)
        if form.kind == "rows":
            return controls.random_structure(drawing.model(), ticket, seed)
        if form.kind == "n:m":
            return controls.shuffled_n_m(drawing.model(), ticket, form.m, seed)
        return controls.random_blocks(drawing.model(), ticket, form.pattern, seed)


class Cyclic(Control):
    """The ticket itself, trained repeatedly from its last weights for as many steps as its whole search."""


class CyclicRandom(Shuffled):
    """Like the control cyclic, but under the mask of the control shuffled."""

    drawn_as = "shuffled"


def _make_control(name: str, found: Any) -> Control:
    if not (isinstance(found, type) and issubclass(found, Control)):
        raise UsageError(f"{found!r} is not a class derived from ticketry.evidence.Control")
    control = found()
    if control.fresh and control.remakes_weights:
        raise UsageError(
            "a control starts from fresh weights (fresh) or from the ticket's, changed by weights(), not both"
        )
    return control


_HERE = "ticketry.evidence.control"

CONTROLS: Registry[Control] = Registry(
    "control",
    "ticketry.controls",
    {
        "random_reinit": f"{_HERE}:RandomReinit",
        "shuffled": f"{_HERE}:Shuffled",
        "random_prune": f"{_HERE}:RandomPrune",
        "cyclic": f"{_HERE}:Cyclic",
        "cyclic_random": f"{_HERE}:CyclicRandom",
    },
    make=_make_control,
)
"""Registry of the subclasses of `Control`; `get` returns an instance. Other packages add theirs by entry points."""

LONGER_CONTROLS = ("cyclic", "cyclic_random")
"""Controls that are trained for longer than the ticket; they are shown with a verdict but do not affect it. All other
controls have the ticket's number of training steps."""


def check_controls(names: tuple[str, ...]) -> None:
    """Raise `UsageError` if a name of a control is unknown."""
    for name in names:
        if is_matched_dense(name):
            _check_dense_rival(name)
        else:
            CONTROLS.get(name)


def _check_dense_rival(name: str) -> None:
    _, at, width = name.partition("@")
    if at:
        raise UsageError(f"{name}: the width follows from the ticket's cost: remove @{width}")


SMALL_DENSE = "small_dense"
"""Name of a control: a narrower dense network with no more parameters than the ticket, if the task defines one."""
RIVALS = (*(name for name in CONTROLS.built_in if name not in LONGER_CONTROLS), SMALL_DENSE)
"""Controls that a ticket is compared with by default in a verification."""
STATIC_MASKS = ("uniform", "erk")
"""Controls of a procedure with a random mask that needs no search and is fixed from the initialisation on. All layers
have the same density (uniform), or densities by Erdos-Renyi-Kernel (erk; Evci et al. 2020, RigL, section 3)."""
PROCEDURE_RIVALS = ("shuffled", *STATIC_MASKS)
"""Controls that a procedure is compared with by default: its tickets with shuffled masks, and random masks that need no
search (Liu et al., "The Unreasonable Effectiveness of Random Pruning", 2022)."""
STRUCTURED_RIVALS = ("shuffled", "random_prune")
"""Default controls of a procedure whose masks have a structure, which masks of `STATIC_MASKS` lack."""


def check_rivals(names: tuple[str, ...], known: tuple[str, ...] = RIVALS) -> None:
    """Raise `UsageError` if a name is neither in `known` nor a control with the ticket's number of steps."""
    for name in names:
        if is_matched_dense(name):
            _check_dense_rival(name)
            continue
        if name in known:
            continue
        if name in LONGER_CONTROLS or (name not in CONTROLS and ":" not in name):
            longer = (
                " has more training steps than a ticket, see `search --controls`" if name in LONGER_CONTROLS else ""
            )
            of_procedures = " is a control of procedures (--about procedure)" if name in STATIC_MASKS else ""
            raise UsageError(
                f"control {name!r}{longer or of_procedures or ' is not known'}: {list_choices(name, known)}"
            )
        CONTROLS.get(name)


MORE_CONTROLS = {
    "dense_of_flops": "The narrowest dense network with no fewer multiplications than the ticket (another kind of"
    " network: dense_of_flops:NETWORK)",
    "dense_of_time": "The narrowest dense network whose measured call takes no less time, of tickets found by --time"
    " (or dense_of_time:NETWORK)",
    SMALL_DENSE: "Of ticketry verify: a narrower dense network with no more parameters than the ticket",
    "uniform": "Of verify --about procedure: a random mask, all layers equally dense, from the initialisation on",
    "erk": "Of verify --about procedure: the same with the layers' densities of Erdos-Renyi-Kernel",
}
"""Name that ``--controls`` accepts besides those in `CONTROLS` -> description."""

SPLITS = ("train", "validation", "test")


def check_barrier_settings(points: int, split: str, recalibrate: int) -> None:
    """Raise `UsageError` if a setting of an error barrier is invalid."""
    if points < 3:
        raise UsageError(f"a barrier needs points between the two ends: points must be at least 3, not {points}")
    check_choice("split", split, SPLITS)
    if recalibrate < 0:
        raise UsageError(f"recalibrate is a number of training batches, at least 0, not {recalibrate}")


def steps_before_control(found: Found) -> int | None:
    """Return for how many steps a control's initial weights are trained; None if no control can match the ticket.

    Controls of a rewound ticket start at the rewind step. If a ticket continues from final weights, its controls start
    from the dense network, and then train once or more. A control matches if it can have the ticket's total number of
    steps.
    """
    own, steps = found.result.segment, trained_steps(found)
    if found.retrain in FROM_REWOUND:
        begun = found.rewound.segment.last
        return begun if begun + (own.total if found.retrain == DYNAMIC else own.steps) == steps else None
    for begun in (found.dense.segment.last, own.total):
        if begun + own.steps == steps or 0 < own.steps < steps - begun:
            return begun
    return None


def explain_undefined_control(control: str, found: Found) -> str:
    """Return why a control is undefined for a ticket, as text for messages; empty if it is defined."""
    if is_matched_dense(control):
        return ""
    from ticketry.lab.training.variant import explain_mask_dependence

    if CONTROLS.get(control).changes_mask and (why := explain_mask_dependence(found.result.segment.variants)):
        return why
    if control in LONGER_CONTROLS or steps_before_control(found) is not None:
        return ""
    begun = (found.rewound if found.retrain in FROM_REWOUND else found.dense).segment.last
    own = found.result.segment.steps
    return f"trained like a ticket, {own:,} steps after {begun:,}, it never reaches a ticket's {trained_steps(found):,}"
