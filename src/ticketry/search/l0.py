"""L0 regularisation: random gates that can be exactly 0 are trained with the weights, so that few stay open.

Every weight is multiplied by a hard-concrete gate, drawn at random in each step, and the loss has lambda times the
expected number of gates that are not 0. At the pruning step the weights whose gates are most probably open are
retained, multiplied by their gates without noise, and trained to the end of the same schedule, with momentum. Louizos,
Welling & Kingma, "Learning Sparse Neural Networks through L0 Regularization" (ICLR 2018, arXiv 1712.01312). Costs one
training with gates up to the pruning step, which all densities share, and for each density the rest of the schedule.

With --structure channels each coupled channel has one gate, which multiplies what all later layers read from the
channel (section 4: an input neuron, a filter). In the penalty, the gate counts once for each weight that it multiplies.
Whole coupled channels are removed, and training continues in a physically smaller network.

These parts are from the paper: the gates (temperature 2/3, stretched to -0.1 ... 1.1), the penalty, the multiplication
of retained weights by gates without noise, and lambda as a number divided by the number of examples, 0.1 for the
paper's LeNet-300-100. This implementation departs from the paper as follows. By default single weights have gates.
Gates are drawn once for the whole batch. The network is pruned to a density at half of the schedule; in the paper
lambda decides the density, and gates are trained to the end. Gates are trained by Adam at 0.1 with any weight optimiser
(the paper: 0.001, for 200 epochs). The dense network is trained without gates, only for comparison. Controls begin with
the weights after multiplication by the gates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from ticketry.core.structure.pattern import check_layer_minimum_option
from ticketry.errors import UsageError
from ticketry.lab.search_result import Found
from ticketry.search.common.method import About, Replicate, search_by_replicate
from ticketry.search.common.plan import Training
from ticketry.search.common.pruning import parse_pruning_step, prunable_scope, train_after_pruning
from ticketry.search.common.settings import Family, PruningSettings

if TYPE_CHECKING:
    from ticketry.core.scope import Scope
    from ticketry.search.gating.gating import Gating


ABOUT = About(paper="Louizos et al. 2018", prunes="during training", costs="1 a density")


@dataclass(frozen=True, kw_only=True)
class Settings(PruningSettings):
    """Settings of L0 regularisation.

    Examples:
        >>> run = tk.run("l0", density=0.2, replicates=1, controls=(), recipe={"length": "20it"}, workers=0)
        >>> [round(ticket.density, 2) for ticket in run.tickets]
        [0.2]
    """

    structures: ClassVar[tuple[Family, ...]] = ("channels",)
    points: ClassVar[tuple[str, ...]] = ("until",)
    structure: str = "none"
    """What has a gate: none (each weight), channels (each coupled channel; the network becomes physically smaller) or
    channels:16 (likewise; each group that loses any channel keeps a multiple of 16)."""
    until: str = "50%"
    """The step up to which the network is trained with gates, and at which it is pruned."""
    collapse: Literal["raise", "keep"] = "raise"
    """What to do if a layer would lose all weights: raise an error, or keep its best weight in exchange for the worst
    retained weight of the largest layer."""
    penalty: float = 0.1
    """lambda times the number of training examples; the coefficient in the loss is this value divided by that
    number."""
    init: float = 0.0
    """Initial value of every gate's parameter log alpha; 0 is a half-open gate."""
    gate_lr: float = 0.1
    """Learning rate of the gates (Adam), which rises and falls with the learning rate of the weights."""
    keep_at_least: int = 0
    """With structure channels: minimum number of channels that each group retains, at least 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.penalty <= 1e6:
            raise UsageError(f"penalty is a number from 0 to 1e6, not {self.penalty}")
        check_layer_minimum_option(self.keep_at_least)
        if self.keep_at_least and not self.parsed_structure.channels:
            raise UsageError("keep_at_least counts channels here: add --structure channels, or use --collapse keep")
        if self.parsed_structure.channels and self.collapse != "raise":
            raise UsageError("collapse is for single weights: with structure channels use keep_at_least")


def plan(settings: Settings) -> list[Training]:
    """Plan one training with gates that all densities share, then for each density the training after pruning."""
    return [Training(last=settings.until), *settings.plan_tickets(first=settings.until)]


@search_by_replicate
def search(replicate: Replicate, settings: Settings) -> Iterator[Found]:
    """Search one replicate: yield the dense network, then the ticket of each density, the densest first."""
    from ticketry.core.gates.attach import find_readers
    from ticketry.search.gating.gating import (
        mask_of_largest_channel_gates,
        mask_of_largest_gates,
        mask_within_budget,
        weights_times_hard_gates,
    )

    lab, task, scope = replicate.lab, replicate.task, prunable_scope(replicate, settings)
    step = parse_pruning_step(replicate.dense_training, settings.until, "gates are trained", "them")
    soft = replicate.from_initialisation(variants=[make_gating(replicate, scope, settings)]).shortened_to(step)
    if settings.parsed_structure.channels:
        find_readers(lab.model(task), lab.structure(task), scope)  # an error before the dense network is trained
    dense = replicate.train_dense(step)
    yield dense
    gated = lab.train(soft, label="with gates")
    state = replace(gated, model=weights_times_hard_gates(lab, gated))

    def find_ticket(level: int, density: float) -> Found:
        if settings.budget:
            mask = mask_within_budget(lab, gated, settings, density, settings.collapse)
        elif settings.parsed_structure.channels:
            least, multiple = max(settings.keep_at_least, 1), settings.parsed_structure.multiple
            mask = mask_of_largest_channel_gates(lab, gated, density, keep_at_least=least, multiple=multiple)
        else:
            mask = mask_of_largest_gates(lab, gated, density, settings.collapse)
        return train_after_pruning(
            replicate, dense.result, state, mask, settings, level=level, density=density, searched=gated
        )

    yield from replicate.find_each(find_ticket, settings.targets)


def make_gating(replicate: Replicate, scope: Scope, settings: Settings) -> Gating:
    """Describe the gates whose trained values choose the masks of all tickets of a replicate."""
    from ticketry.core.gates import HardConcrete
    from ticketry.search.gating.gating import Gating, gate_prices
    from ticketry_engine.support.seeds import mix_seeds

    return Gating(
        scope=tuple(scope),
        kind=HardConcrete.name,
        init=settings.init,
        penalty=settings.penalty / replicate.lab.sizes(replicate.task)["train"],
        optimizer="adam",
        lr=settings.gate_lr,
        seed=mix_seeds(replicate.seeds.mask, "l0"),
        structured=settings.parsed_structure.channels,
        **gate_prices(replicate, settings, scope),
    )
