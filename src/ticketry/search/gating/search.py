"""Ticket search by gates: rounds of training with a soft mask, and a ticket after each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ticketry.lab.search_result import REWINDING, Found, check_rates, retrain_after
from ticketry.search.common.aims import terms_of
from ticketry.search.common.budget import compressed, own_steps
from ticketry.search.common.method import Replicate, on_replicate
from ticketry.search.common.plan import Training, ticket_span
from ticketry.search.gating.rounds import Rounds, is_met, steered
from ticketry.search.gating.settings import GateSettings

if TYPE_CHECKING:
    from ticketry.lab.training.segment import Result, Segment
    from ticketry.search.gating.gating import Gating


def plan_by_gates(settings: GateSettings) -> list[Training]:
    """Plan a training with gates and a ticket for each round, of each density, s0 and penalty."""
    span = ticket_span(retrain_after(settings.rewind, settings.retrain), settings.rewind)
    planned: list[Training] = []
    for alone in settings.each_alone():

        def first_gates(replicate: Replicate, alone: GateSettings = alone) -> Gating:
            return Rounds(replicate, alone).first_gates

        for member in alone.members:
            for number in range(1, settings.rounds + 1):
                is_last, level = number == settings.rounds, sum(one.level > 0 for one in planned) + 1
                ticket = Training(
                    level=level,
                    density=alone.target if is_last and not settings.aim else None,
                    has_controls=is_last or settings.target is None,
                    line=f"density {alone.target} s0 and penalty {member}",
                    **span,
                )
                planned += [Training(gates=first_gates), ticket]
    return planned


@on_replicate
def search_by_gates(replicate: Replicate, settings: GateSettings) -> Iterator[Found]:
    """One replicate: the dense network, to compare with; then for each density, s0 and penalty a ticket a round."""
    alone = settings.each_alone()
    if len(alone) == 1:
        yield from _search(replicate, settings)
        return
    yield next(_search(replicate, alone[0]))

    def member(position: int, one: GateSettings) -> Iterator[Found]:
        for found in _search(replicate, one):
            if found.level:
                yield replace(found, level=position * one.rounds + found.level)

    yield from replicate.together(partial(member, *each) for each in enumerate(alone))


def _search(replicate: Replicate, settings: GateSettings) -> Iterator[Found]:
    """The same for one density at most."""
    retrain = retrain_after(settings.rewind, settings.retrain)
    check_rates(retrain, replicate.recipe.schedule)
    step = replicate.whole.at(settings.rewind, "rewind")

    def needed(whole: Segment, settings: GateSettings) -> int:
        return settings.rounds * whole.total + own_steps(retrain, whole.at(settings.rewind, "rewind"), whole.total)

    rounds = Rounds(*compressed(replicate, settings, needed, ("rewind",)))
    dense = replicate.dense(step, retrain=retrain)
    yield dense

    def ticket(level: int, chain: list[Result], searched: list[Result]) -> Found:
        return _ticket(rounds, level, chain, searched, dense)

    if settings.target is not None:
        for number, (chain, searched) in enumerate(steered(rounds, settings.target), start=1):
            yield ticket(number, chain, searched)
        return

    def member(position: int, init: float, penalty: float) -> Iterator[Found]:
        chain: list[Result] = []
        for number in range(1, settings.rounds + 1):
            chain = [*chain, rounds.train(init, penalty, chain)]
            yield ticket(position * settings.rounds + number, chain, chain)

    yield from replicate.together(partial(member, position, *knobs) for position, knobs in enumerate(settings.members))


def _ticket(rounds: Rounds, level: int, chain: list[Result], searched: list[Result], dense: Found) -> Found:
    from ticketry.search.gating.charging import paid_mask
    from ticketry.search.gating.masks import allocated_mask, hardened_mask, hardened_weights

    lab, last, retrain, settings = rounds.lab, chain[-1], dense.retrain, rounds.settings
    target, cut_to = settings.target if level == settings.rounds else None, None
    if settings.aim and target is not None:
        mask = paid_mask(lab, last, settings, target)
    elif target is not None and not is_met(rounds, last, target):
        mask, cut_to = allocated_mask(lab, last, target), target
    else:
        mask = hardened_mask(lab, last)
    rewound = rounds.rewound(chain)
    trained = last if retrain in REWINDING else replace(last, model=hardened_weights(lab, last))
    segment = rounds.replicate.retrained(mask, retrain=retrain, rewound=rewound, trained=trained)
    return replace(
        dense,
        level=level,
        mask=mask,
        rewound=rewound,
        result=lab.train(segment, label=f"level {level} ticket"),
        searched=tuple(searched),
        behind=None if retrain in REWINDING else _steps_in(chain, rewound),
        pattern=settings.pattern,
        aim=terms_of(settings),
        cut_to=cut_to,
    )


def _steps_in(chain: list[Result], rewound: Result) -> int:
    """Training steps since initialisation that are in the weights that a chain of rounds ends with."""
    last = chain[-1].segment
    if last.start.state == rewound.model:  # weights were rewound between rounds
        return rewound.segment.last + last.steps
    return len(chain) * last.steps
