"""Pruning once, at a step of the dense training that goes on afterwards: what early and one-shot pruning share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from ticketry.lab.found import GRADUAL, Found, Moment, Seeds
from ticketry.search._budget import stretched
from ticketry.search._scope import is_structured, pruned

if TYPE_CHECKING:
    from ticketry.core.scope import Scope
    from ticketry.lab.lab import Lab
    from ticketry.lab.segment import Segment
    from ticketry.search._scope import Pruning


def pruned_once(
    lab: Lab,
    whole: Segment,
    scope: Scope,
    steps: Mapping[float, int],
    settings: Pruning,
    seeds: Seeds,
    *,
    moments: Mapping[float, Moment] | None = None,
    **cuts: Any,
) -> Iterator[Found]:
    """The dense network `whole`, then for each density one that is pruned at its step and trained on, state and all.

    Args:
        steps: density -> the step at which it is cut, the densest first.
        moments: density -> how that step was found, if it was.
        cuts: how a mask is made, besides what the settings say, see `Lab.prune`.
    """
    from ticketry.lab.retrain import retraining

    dense = lab.train(whole, keep=tuple(sorted(set(steps.values()))), label="dense")
    yield Found(0, None, lab.at(dense, max(steps.values())), dense, GRADUAL, dense)

    def member(level: int, density: float) -> Found:
        state, step = lab.at(dense, steps[density]), steps[density]
        mask = pruned(lab, whole.task, state, scope, None, density, settings, seeds, **cuts)
        segment = retraining(
            lab,
            whole.task,
            whole.recipe,
            retrain=GRADUAL,
            mask=mask,
            rewound=state,
            trained=state,
            order_seed=seeds.order,
            shrunk=is_structured(settings),
        )
        segment = stretched(lab, segment, [state], settings.budget)
        result = lab.train(segment, label=f"density {density:g} from step {step}")
        moment = (moments or {}).get(density)
        return Found(level, mask, state, dense, GRADUAL, result, searched=(state,), behind=step, moment=moment)

    yield from lab.gather([partial(member, level, each) for level, each in enumerate(steps, start=1)])
