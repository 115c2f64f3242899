"""Movement pruning: weights are kept that training moves away from 0.

Sanh, Wolf & Rush (2020, arXiv 2005.07683): a weight is worth minus the sum, over training, of weight times gradient.
Here those that move towards 0 fade meanwhile. Tickets have the early weights of the dense network.
"""

from dataclasses import dataclass, replace

from ticketry.search import Found, Training
from ticketry.search.common.method import About

ABOUT = About(paper="Sanh et al. 2020", prunes="after training", costs="1 + 1 a density")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of movement pruning."""

    density: tuple[float, ...] = (0.2,)
    """Fractions of weights kept, a ticket each."""
    rewind: str = "0"
    """Start of the tickets: a step of the dense training."""
    fade: float = 0.01
    """By how much weights that move towards 0 shrink at each step."""


def plan(settings):
    """Plan the training that measures movement, then a ticket for each density, the densest first."""
    densities = enumerate(sorted(settings.density, reverse=True), start=1)
    tickets = [Training(level=level, density=density, first=settings.rewind) for level, density in densities]
    return [Training(), *tickets]


def search(lab, task, recipe, settings, seeds):
    """One replicate: the dense network, then a ticket for each density, the densest first."""
    import ticketry as tk
    from lottery_extras.movement.variant import Movement
    from ticketry.lab.retrain import retraining

    whole = lab.segment(task, start=seeds.initialisation, order_seed=seeds.order, recipe=recipe)
    step = whole.at(settings.rewind)
    dense = lab.train(whole, keep=(step,), label="dense")
    early = lab.at(dense, step)
    yield Found(0, None, early, dense, "continue", dense)

    moved = lab.train(replace(whole, variants=(Movement(fade=settings.fade),)), label="movement")
    scores = lab.store.get_tensors(moved.variants["movement"])
    for level, density in enumerate(sorted(settings.density, reverse=True), start=1):
        mask = lab.store.put_mask(tk.allocate(scores, density))
        how = {"retrain": "continue", "rewound": early, "trained": moved, "order_seed": seeds.order}
        ticket = lab.train(retraining(lab, task, recipe, mask=mask, **how), label=f"density {density:g}")
        yield Found(level, mask, early, dense, "continue", ticket, searched=(moved,))
