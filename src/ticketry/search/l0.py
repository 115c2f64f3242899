"""L0 regularisation: gates that are exactly 0 at times, trained with the weights for as few as possible of them.

Every weight is multiplied by a hard-concrete gate, drawn anew at each step, and the loss has lambda times the expected
number of gates that are not 0. At a step the gates end: the weights whose gates are most probably open stay, down to
the density, times their gates without noise, and train on to the end of the same schedule, momentum included. Louizos,
Welling & Kingma, "Learning Sparse Neural Networks through L0 Regularization" (ICLR 2018, arXiv 1712.01312). Costs one
training with gates up to the cut, which all densities share, and the rest of one for each density.

With --structured there is one gate for each channel, which multiplies what all layers behind it read (section 4: an
input neuron, a filter), and counts in the penalty as many times as it multiplies weights. Whole coupled channels go,
and what is left trains on in a physically smaller network.

From the paper: the gates (temperature 2/3, stretched to -0.1 ... 1.1), the penalty, the gate without noise that weights
keep, and lambda as a number over the examples, 0.1 for its LeNet-300-100. Ours: gates on single weights without
--structured; one draw for the whole batch; a cut at half of the schedule to a density, where the paper lets lambda
decide and trains with gates to the end; Adam at 0.1 for gates whatever trains the weights (the paper: 0.001, for 200
epochs). The dense network is trained without gates, to compare with. Controls begin with the weights that the gates
have left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from ticketry.core.density import check_at_least
from ticketry.errors import UsageError
from ticketry.lab.found import GRADUAL, Found, Seeds
from ticketry.search import _densities
from ticketry.search._about import About
from ticketry.search._once import trained_on
from ticketry.search._scope import check_readers, prunable
from ticketry.step import Step

if TYPE_CHECKING:
    from ticketry.lab.gating import Gating
    from ticketry.lab.lab import Lab, Result
    from ticketry.tasks.base import Task
    from ticketry.tasks.recipe import Recipe

_COLLAPSE = ("raise", "keep")


ABOUT = About(
    paper="Louizos et al. 2018",
    prunes="during training",
    costs="1 a density",
)


@dataclass(frozen=True, kw_only=True)
class Settings(_densities.Densities):
    """Settings of L0 regularisation."""

    penalty: float = 0.1
    """lambda times the number of training examples: the coefficient in the loss is this over that number."""
    until: str = "50%"
    """The step up to which gates are trained, and at which it is cut."""
    init: float = 0.0
    """What every log alpha begins with; 0 is a gate that is open to one half."""
    gate_lr: float = 0.1
    """Learning rate of the gates, by Adam; it rises and falls with that of the weights."""
    collapse: str = "raise"
    """What to do where no gate of a layer is among the best: raise (an error), or keep its best weight in place of the
    worst one kept of the largest layer."""
    structured: bool = False
    """One gate for each coupled channel: remove whole channels, and train on in a physically smaller network. The
    density is of all weights, biases and norm parameters that can go."""
    keep_at_least: int = 0
    """With structured: channels that each group keeps at least, at least 1."""
    multiple: int = 1
    """With structured: channels go in blocks, so that each group that loses any keeps a multiple of this."""

    def __post_init__(self) -> None:
        super().__post_init__()
        Step.parse(self.until)
        if self.collapse not in _COLLAPSE:
            raise UsageError(f"collapse is raise or keep, not {self.collapse!r}")
        if not 0 <= self.penalty <= 1e6:
            raise UsageError(f"penalty is a number from 0 to 1e6, not {self.penalty}")
        check_at_least(self.keep_at_least)
        _densities.check_multiple(self.multiple, structured=self.structured)
        if self.keep_at_least and not self.structured:
            raise UsageError("keep_at_least is of whole channels here: add --structured, or take --collapse keep")
        if self.structured and self.collapse != "raise":
            raise UsageError("collapse is of single weights: with structured each group keeps keep_at_least channels")


levels = _densities.levels


def search(lab: Lab, task: Task, recipe: Recipe, settings: Settings, seeds: Seeds) -> Iterator[Found]:
    """One replicate: the dense network, then a pruned one for each density, the densest first."""
    from ticketry.lab.harden import hardened_weights

    whole = lab.segment(task, start=seeds.initialisation, order_seed=seeds.order, recipe=recipe)
    step = whole.at(settings.until)
    if not 0 < step < whole.total:
        raise UsageError(
            f"gates are trained until {settings.until}, step {step} of {whole.total}: there must be steps with them,"
            " and steps after them to train what is left"
        )
    soft = replace(whole, gates=_gating(lab, task, settings, seeds)).until(step)
    if settings.structured:
        check_readers(lab, task, prunable(lab, task, settings))
    dense = lab.train(whole, keep=(step,), label="dense")
    yield Found(0, None, lab.at(dense, step), dense, GRADUAL, dense)
    gated = lab.train(soft, label="with gates")
    state = replace(gated, model=hardened_weights(lab, gated))

    def member(level: int, density: float) -> Found:
        mask = _mask(lab, gated, density, settings)
        return trained_on(lab, dense, state, mask, settings, level=level, density=density, searched=gated)

    yield from lab.gather([partial(member, level, each) for level, each in enumerate(settings.targets, start=1)])


def _gating(lab: Lab, task: Task, settings: Settings, seeds: Seeds) -> Gating:
    from ticketry.core.gates import HardConcrete
    from ticketry.core.seeds import mix
    from ticketry.lab.gating import Gating

    return Gating(
        scope=tuple(prunable(lab, task, settings)),
        kind=HardConcrete.name,
        init=settings.init,
        penalty=settings.penalty / lab.sizes(task)["train"],
        optimizer="adam",
        lr=settings.gate_lr,
        seed=mix(seeds.mask, "l0"),
        structured=settings.structured,
    )


def _mask(lab: Lab, gated: Result, density: float, settings: Settings) -> str:
    from ticketry.lab.harden import allocated_mask, cut_mask

    if not settings.structured:
        return allocated_mask(lab, gated, density, settings.collapse)
    at_least = max(settings.keep_at_least, 1)
    return cut_mask(lab, gated, density, keep_at_least=at_least, multiple=settings.multiple)
