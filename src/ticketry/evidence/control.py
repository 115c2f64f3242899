"""What a control is, and those that are built in. Imports no torch until one is drawn.

A ticket is a claim about *these* connections with *these* early weights; each control takes one of the two away.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ticketry.evidence.mask_form import WEIGHTS, Form

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ticketry.core.budget import Prices
    from ticketry.core.mask import Mask
    from ticketry.core.structure.dependencies.channel_groups import Structure


@dataclass(frozen=True)
class Drawing:
    """What a control's mask is drawn with."""

    seed: int
    form: Form = WEIGHTS
    """Of the ticket's mask, and so of the control's: else it would lack the structure too."""
    model: Callable[[], nn.Module] | None = None
    """Makes a network of the task. Like `structure` not there where masks are of single weights."""
    structure: Callable[[], Structure] | None = None
    """Finds that network's coupled channels."""
    prices: Prices | None = None
    """Of a ticket with a budget: what a weight of each parameter costs. Its control costs no more."""


class Control:
    """A network as sparse as a ticket, trained for exactly as long, that lacks one thing that the ticket has.

    A subclass overrides `mask` or `weights`, which are pure functions of their arguments, or sets `fresh`. Its
    docstring is what lists show.

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
    """Kinds of `Form` in which it draws masks."""
    fresh: ClassVar[bool] = False
    """Whether it begins with another initialisation, trained densely up to the step that the ticket's weights are
    from."""
    searched: ClassVar[bool] = True
    """Whether there is anything in it of what the search found: then it cost what the search did."""
    drawn_as: ClassVar[str] = ""
    """The control whose masks it shares, if it does."""

    def mask(self, ticket: Mask, drawing: Drawing) -> Mask:
        """The mask in place of the ticket's: of the same parameters, with as many weights kept.

        Args:
            ticket: the ticket's mask.
            drawing: a seed, and what the mask is made of: single weights, blocks, groups of rows, channels.
        """
        return ticket

    def weights(self, weights: Mapping[str, Tensor], ticket: Mask, seed: int) -> Mapping[str, Tensor]:
        """The weights and buffers, by normalised name, in place of those that the ticket's training begins with.

        They are masked afterwards. What is not named stays.

        Args:
            weights: those that the ticket's training begins with.
            ticket: its mask.
            seed: of what is drawn.
        """
        return weights

    @property
    def changes_mask(self) -> bool:
        """Whether it holds another mask than the ticket's."""
        return type(self).mask is not Control.mask

    @property
    def changes_weights(self) -> bool:
        """Whether it begins with other weights than the ticket."""
        return self.fresh or self.remakes_weights

    @property
    def remakes_weights(self) -> bool:
        """Whether these are made of the ticket's."""
        return type(self).weights is not Control.weights


_FORMS = ("weights", "channels", "rows", "n:m", "pattern")


class RandomReinit(Control):
    """The ticket's mask on a fresh initialisation (trained densely up to the step that the ticket's weights are
    from)."""

    fresh = True


class Shuffled(Control):
    """The ticket's weights, its mask shuffled within each layer.

    Of channels as many of each group, in random places; of groups of rows as many in each layer, of as many rows and
    columns; of N:M as many weights of every M inputs; of a pattern as many blocks of each layer. Of a budget of time
    layers whose rows are in groups keep as many groups, which single weights in their place would be dearer than.
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
    """A mask whose weights are shuffled one by one, but for layers that costs charge as groups of rows.

    Args:
        single: the ticket's mask shuffled so in all layers.
    """
    from ticketry.core.costs.cost_model import CostModel
    from ticketry.core.costs.granularity import FINEST
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

    Of channels random ones of all groups, to the ticket's density as closely as whole channels permit; of groups of
    rows the columns are drawn from all layers together; of a pattern random blocks of all layers.
    """

    forms = _FORMS
    searched = False

    def mask(self, ticket: Mask, drawing: Drawing) -> Mask:
        from ticketry.core.budget import random_mask_of_equal_cost
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
    """The ticket itself, trained again and again from where it ended, for as many steps as its whole search."""


class CyclicRandom(Shuffled):
    """The same with the mask of shuffled."""

    drawn_as = "shuffled"
