"""Controls of a ticket: their names, their masks and weights, and the training steps that they can have.

A ticket is a claim about *these* connections with *these* early weights; each control removes one of the two. Nothing
here imports torch when it is imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ticketry.choices import check_choice, list_choices
from ticketry.core.structure.pattern import UNSTRUCTURED
from ticketry.core.structure.structuring import Structuring
from ticketry.errors import UsageError
from ticketry.lab.search_result import DYNAMIC, FROM_REWOUND, Found, budget
from ticketry.records.network import is_matched_dense
from ticketry.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ticketry.budgets.cost_model import Prices
    from ticketry.core.mask import Mask
    from ticketry.core.structure.coupling import Structure


@dataclass(frozen=True)
class Form:
    """Structure that masks of controls share with the ticket's."""

    kind: str = "weights"
    """weights, channels, rows (groups of rows that retain the same columns), n:m or pattern."""
    m: int = 0
    """Group size, for n:m."""
    pattern: str = ""
    """The pattern of the mask, for pattern; see `core.structure.pattern`."""
    aim: str = ""
    """The mask's budget (flops), for weights; controls have the same budget instead of the same density."""

    @classmethod
    def from_structure(cls, structure: str, *, shrunk: bool, pattern: str = UNSTRUCTURED, aim: str = "") -> Form:
        """Return the form of a ticket's mask.

        Args:
            structure: the kind of its `Structuring`, or an empty text.
            pattern: the pattern in which it was chosen.
            shrunk: whether its network is trained without the removed channels.
            aim: its budget.
        """
        if shrunk:
            return cls("channels")
        if not structure:
            return cls(aim=aim) if pattern == UNSTRUCTURED else cls("pattern", pattern=pattern)
        n_of_m = Structuring(kind=structure).n_of_m
        return cls("n:m", n_of_m[1]) if n_of_m else cls("rows")

    @classmethod
    def of_found(cls, found: Found) -> Form:
        """Return the form of a found ticket's mask."""
        kind, shrunk = found.structured.by.kind if found.structured else "", found.result.segment.whole_channels
        return cls.from_structure(kind, shrunk=shrunk, pattern=found.pattern, aim=found.aim)

    def key(self) -> dict[str, Any]:
        """Return JSON values that distinguish a control's mask from those of other forms."""
        if self.kind == "channels":
            return {"channels": True}  # key of masks stored before other forms existed
        more = {"m": self.m, "pattern": self.pattern, "budget": self.aim}
        return {"form": self.kind, **{name: value for name, value in more.items() if value}}


WEIGHTS = Form()


@dataclass(frozen=True)
class Drawing:
    """Inputs for drawing a control's mask."""

    seed: int
    form: Form = WEIGHTS
    """Form of the ticket's mask, which the control shares."""
    model: Callable[[], nn.Module] | None = None
    """Builds a network of the task. None for masks of single weights, like `structure`."""
    structure: Callable[[], Structure] | None = None
    """Finds the network's coupled channels."""
    prices: Prices | None = None
    """Cost of a weight of each parameter, for a ticket with a budget. Its control costs no more."""


class Control:
    """A network as sparse as a ticket, trained for exactly as long, that lacks one property of the ticket.

    A subclass overrides `mask` or `weights`, which are pure functions of their arguments, or sets `fresh`. Lists show
    its docstring.

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
    """Kinds of `Form` that it supports."""
    fresh: ClassVar[bool] = False
    """Whether it starts from a fresh initialisation, trained densely up to the step of the ticket's start."""
    searched: ClassVar[bool] = True
    """Whether it uses a result of the search, and so has the search's cost."""
    drawn_as: ClassVar[str] = ""
    """The control whose masks it shares, if any."""

    def mask(self, ticket: Mask, drawing: Drawing) -> Mask:
        """Return the control's mask: same parameters, equally many retained weights.

        Args:
            ticket: the ticket's mask.
            drawing: a seed, and the form of the mask.
        """
        return ticket

    def weights(self, weights: Mapping[str, Tensor], ticket: Mask, seed: int) -> Mapping[str, Tensor]:
        """Return weights and buffers, by normalised name, that replace those of the ticket's start.

        They are masked afterwards. Tensors that are not named stay.

        Args:
            weights: weights and buffers of the ticket's start.
            ticket: its mask.
            seed: seed of random values.
        """
        return weights

    @property
    def changes_mask(self) -> bool:
        """Whether it has a different mask."""
        return type(self).mask is not Control.mask

    @property
    def changes_weights(self) -> bool:
        """Whether it starts from different weights."""
        return self.fresh or self.remakes_weights

    @property
    def remakes_weights(self) -> bool:
        """Whether its start is derived from the ticket's."""
        return type(self).weights is not Control.weights


_FORMS = ("weights", "channels", "rows", "n:m", "pattern")


class RandomReinit(Control):
    """The ticket's mask on a fresh initialisation (trained densely up to the step of the ticket's start)."""

    fresh = True


class Shuffled(Control):
    """The ticket's weights, its mask shuffled within each layer.

    Channels: equally many of each group. Groups of rows: equally many in each layer, with as many rows and columns.
    N:M: equally many weights of every M inputs. Patterns: equally many blocks of each layer. Under a latency budget,
    layers with row groups retain equally many groups, because single weights would cost more.
    """

    forms = _FORMS

    def mask(self, ticket: Mask, drawing: Drawing) -> Mask:
        from ticketry.core.mask import shuffled
        from ticketry.core.structure import controls, shuffled_structure

        form, seed = drawing.form, drawing.seed
        if form.kind == "weights":
            return _with_groups_shuffled(ticket, shuffled(ticket, seed), drawing)
        assert drawing.model is not None
        assert drawing.structure is not None
        if form.kind == "channels":
            return controls.shuffled_channels(drawing.model(), drawing.structure(), ticket, seed)
        if form.kind == "rows":
            return shuffled_structure(ticket, seed, model=drawing.model())
        if form.kind == "n:m":
            return controls.shuffled_n_m(drawing.model(), ticket, form.m, seed)
        return controls.shuffled_blocks(drawing.model(), ticket, form.pattern, seed)


def _with_groups_shuffled(ticket: Mask, single: Mask, drawing: Drawing) -> Mask:
    """Shuffle groups of rows in the layers whose cost is charged by groups, and use single weights elsewhere.

    Args:
        single: the ticket's mask with single weights shuffled in all layers.
    """
    from ticketry.budgets.cost_model import CostModel
    from ticketry.budgets.granularity import FINEST
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
    """The ticket's weights, a random mask of the same density over the whole scope, or of the same budget.

    Channels: random ones of all groups, at the ticket's density as closely as whole channels permit. Groups of rows:
    columns are drawn from all layers together. Patterns: random blocks of all layers.
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
    """The ticket itself, trained repeatedly from where it ended, for as many steps as its whole search."""


class CyclicRandom(Shuffled):
    """Cyclic training with the mask of shuffled."""

    drawn_as = "shuffled"


def _control(name: str, found: Any) -> Control:
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
    make=_control,
)
"""Classes derived from `Control`; `get` returns an instance. Entry points add those of other packages."""

LONGER = ("cyclic", "cyclic_random")
"""Controls that are trained for longer than the ticket: shown beside a verdict, but not part of it. All other controls
have the ticket's budget."""


def network_named(role: str) -> str:
    """Return the network that a dense rival names; empty for the ticket's own."""
    return role.partition(":")[2]


def check_controls(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names; raise `UsageError` for an unknown one, `PluginError` for an unusable plugin."""
    for name in names:
        if is_matched_dense(name):
            _check_dense_rival(name)
        else:
            CONTROLS.get(name)
    return names


def _check_dense_rival(name: str) -> None:
    _, at, width = name.partition("@")
    if at:
        raise UsageError(f"{name}: the width follows from the ticket's cost: remove @{width}")


SMALL_DENSE = "small_dense"
"""A narrower dense network with no more parameters than the ticket, if the task defines one."""
RIVALS = (*(name for name in CONTROLS.built_in if name not in LONGER), SMALL_DENSE)
"""Controls that a verified ticket should beat."""
STATIC = ("uniform", "erk")
"""Random masks of a procedure that need no search, fixed from the initialisation on. Their layers have one density, or
those of Erdos-Renyi-Kernel (Evci et al. 2020, RigL, section 3)."""
PROCEDURE_RIVALS = ("shuffled", *STATIC)
"""Controls that a verified procedure should beat: random masks with its layers' densities, trained as its tickets are,
and masks that need no search (Liu et al., "The Unreasonable Effectiveness of Random Pruning", 2022)."""
STRUCTURED_RIVALS = ("shuffled", "random_prune")
"""Controls that a verified procedure whose masks have a structure should beat; `STATIC` masks have none."""


def check_rivals(names: tuple[str, ...], known: tuple[str, ...] = RIVALS) -> None:
    """Raise `UsageError` for a name that is neither in `known` nor another control with the ticket's budget."""
    for name in names:
        if is_matched_dense(name):
            _check_dense_rival(name)
            continue
        if name in known:
            continue
        if name in LONGER or (name not in CONTROLS and ":" not in name):
            longer = " has more training steps than a ticket, see `search --controls`" if name in LONGER else ""
            of_procedures = " is a control of procedures (--about procedure)" if name in STATIC else ""
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
"""Names for ``--controls`` besides `CONTROLS`, with their descriptions."""

SPLITS = ("train", "validation", "test")


def check_line(points: int, split: str, recalibrate: int) -> None:
    """Raise `UsageError` for invalid settings of an error barrier."""
    if points < 3:
        raise UsageError(f"a barrier needs points between the two ends: points must be at least 3, not {points}")
    check_choice("split", split, SPLITS)
    if recalibrate < 0:
        raise UsageError(f"recalibrate is a number of training batches, at least 0, not {recalibrate}")


def begins_after(found: Found) -> int | None:
    """Return the training steps of a control's start; None if it cannot reach the ticket's total.

    They are those of the rewound weights. A ticket that keeps final weights starts from the dense network, after which
    its training fits once or more; if a budget gave the ticket a shorter schedule, from a dense network of that one.
    """
    own, steps = found.result.segment, budget(found)
    if found.retrain in FROM_REWOUND:
        begun = found.rewound.segment.last
        return begun if begun + (own.total if found.retrain == DYNAMIC else own.steps) == steps else None
    for begun in (found.dense.segment.last, own.total):
        if begun + own.steps == steps or 0 < own.steps < steps - begun:
            return begun
    return None


def obstacle(control: str, found: Found) -> str:
    """Return why a control cannot have a ticket's training and steps; empty if it can, or need not."""
    if is_matched_dense(control):
        return ""
    from ticketry.lab.training.variant import explain_mask_dependence

    if CONTROLS.get(control).changes_mask and (why := explain_mask_dependence(found.result.segment.variants)):
        return why
    if control in LONGER or begins_after(found) is not None:
        return ""
    begun = (found.rewound if found.retrain in FROM_REWOUND else found.dense).segment.last
    own = found.result.segment.steps
    return f"trained like a ticket, {own:,} steps after {begun:,}, it never reaches a ticket's {budget(found):,}"
