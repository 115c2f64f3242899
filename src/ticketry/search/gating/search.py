"""Ticket search by gates: rounds of training with a soft mask, and a ticket after each.

A gate's parameter is s, and s0 is the initial value of all s. Density rises with s0 (Savarese et al. 2020), but how
fast depends on task, recipe and round. If a density D is requested after R rounds, each round aims at a density such
that the remaining rounds reach D in equal ratios; the first round begins with the given s0. How far each s moved in a
round shows which s0 would have left the wanted share, and the gates of the next round start at that s0. The last round
is repeated until its density is within 10 % of D. The second try is a guess of the same kind. Further tries are
extrapolated in log density from two tries, interpolated between the nearest s0 on either side of D, or placed in the
middle after two tries on one side. An earlier round is repeated only if it leaves less than D, because a later round
can only remove weights.

Gates without a gradient from the loss (of inputs that are always 0) all switch at the same s0, about the threshold of
their kind (0 for most). Density jumps there, and no s0 leads to a density inside the jump. After 10 tries of a round
the nearest try is used. If this is the last round, the ticket's mask is pruned to D by the values of its gates, and the
record says so.

Under a budget (`--flops`, `--time`, `--bytes`) the share of its costs that hard gates leave replaces the density; the
last ticket then spends the budget, see `search.gating.gating.budget_mask`.

This departs from the paper, where one s0 holds in all rounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from typing_extensions import Self

from ticketry.choices import format_value
from ticketry.core.structure.pattern import UNSTRUCTURED
from ticketry.errors import UsageError
from ticketry.lab.search_result import REWINDING, Found, Retrain, check_schedule_suits_retrain, choose_retrain
from ticketry.search.common.method import Replicate, search_by_replicate
from ticketry.search.common.plan import Training, ticket_training_span
from ticketry.search.common.pruning import compress_to_steps, prunable_scope, ticket_training_steps
from ticketry.search.common.settings import Family, PruningSettings, Shares, requested_densities
from ticketry.search.gating import LearningRates, Reset
from ticketry.tasks.recipe import Optimizer

if TYPE_CHECKING:
    import torch

    from ticketry.lab.lab import Lab
    from ticketry.lab.training.segment import Result, Segment
    from ticketry.search.gating.gating import Gating

_MOST_ROUNDS = 50
TOLERANCE = 0.1
"""Largest relative deviation from the requested density that is accepted."""
_MOST_TRIES = 10
_LEAST_STEP = 1e-4
_MOST_SHARE = 0.99
_LEAST_SHARE = 1e-9
_MOST_TYPICAL = 0.1
_FARTHEST = 50.0


@dataclass(frozen=True, kw_only=True)
class GateSettings(PruningSettings):
    """Settings of all searches whose masks come from trained gates."""

    structures: ClassVar[tuple[Family, ...]] = ("blocks",)
    structure: str = "none"
    """Which weights share a gate: none (each weight has its own), rows:4, rows:16 (so many neighbouring rows, at one
    column) or filters (whole rows of one layer)."""
    rewind: str = "2ep"
    """The step of the first round whose weights tickets start from, such as 2ep, 500it, 3%; 0 is the initialisation."""
    rounds: int = 5
    """Number of trainings of the whole recipe with gates; each gives a ticket."""
    init: tuple[float, ...] = (0.0,)
    """s0, the initial value of gates: the larger, the denser the tickets. Several values (-0.2 -0.1 0 0.1) are searched
    side by side, each with its own rounds and tickets."""
    density: Shares = None
    """Fraction of weights retained by the last ticket, to within 10 %; the search then finds s0 round by round,
    beginning with init. Several values (0.2,0.1) are separate searches."""
    sparsity: Shares = None
    """Fraction removed by the last ticket, instead of density."""
    penalty: tuple[float, ...] = (1e-8,)
    """lambda, the coefficient of the sum of all gates in the loss. Several values are searched side by side, each with
    every init."""
    reset: Reset = "paper"
    """How gates are reset between rounds: paper (s = min(beta_T s, s0)) or code (s = min(s, s0), the official code)."""
    weights_between: Literal["continue", "rewind"] = "continue"
    """Initial weights of a further round: continue (the last weights of the round before) or rewind (the weights of the
    rewind step)."""
    gate_lr: float = 0.1
    """Learning rate of the gates."""
    gate_lr_schedule: LearningRates = "recipe"
    """Schedule of the gates' learning rate: recipe (rises and falls with that of the weights) or constant."""
    gate_optimizer: Optimizer = "sgd"
    """Optimiser of the gates: sgd, adam or adamw."""
    gate_momentum: float = 0.9
    """Momentum of the gates' SGD; beta1 of Adam and AdamW."""
    gate_nesterov: bool = False
    """Use Nesterov momentum for the gates."""
    gate_weight_decay: float = 0.0
    """Weight decay of the gates; the papers have none."""
    retrain: Retrain = ""
    """How a ticket is trained: continue (from the rewind step k, steps k..T of the schedule; the default), restart (the
    whole schedule again, as the official code does); or, to prune while training, weights of the round with hard gates:
    rewind_lr, finetune (the default with rewind end) or none (no training)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = self.budget.kind if self.budget else "density"
        if self.budget and len(self.targets) > 1:
            raise UsageError(f"gates find their s0 for one budget: give one {kind}, and search for each separately")
        if self.equal_cost and self.targets:
            raise UsageError(
                f"with {kind} the number of rounds is not known beforehand: give init for an equal_cost of steps"
            )
        choose_retrain(self.rewind, self.retrain)
        if not 0 < self.rounds <= _MOST_ROUNDS:
            raise UsageError(f"rounds must lie in 1 … {_MOST_ROUNDS}, not {format_value(self.rounds)}")
        if not self.init or len(set(self.init)) < len(self.init):
            raise UsageError("init names the values of s0 to search with: at least one, and each once")
        if not self.penalty or len(set(self.penalty)) < len(self.penalty):
            raise UsageError("penalty names the values of lambda to search with: at least one, and each once")
        if self.targets and len(self.inits_and_penalties) > 1:
            raise UsageError(f"{kind} finds s0 itself: give one init at most, where it begins, and one penalty")

    @property
    def finds_ticket_in_one_training(self) -> bool:
        return False

    @property
    def inits_and_penalties(self) -> tuple[tuple[float, float], ...]:
        """Pairs (initial gate logit s0, penalty), one for each independent search; the densest tickets come first."""
        return tuple(product(sorted(self.init, reverse=True), sorted(self.penalty)))

    @property
    def target(self) -> float | None:
        """The requested density, or share of the dense cost; None if none or several are requested."""
        return self.targets[0] if len(self.targets) == 1 else None

    @property
    def targets(self) -> tuple[float, ...]:
        """The requested densities, or the share of the dense cost, densest first; empty if `init` decides instead."""
        return self.budget.shares if self.budget else requested_densities(self.density, self.sparsity)

    def split_by_density(self) -> tuple[Self, ...]:
        """Return one copy of the settings for each requested density; only `self` if at most one is requested."""
        if len(self.targets) < 2:
            return (self,)
        return tuple(replace(self, density=density, sparsity=None) for density in self.targets)

    def for_level(self, level: int) -> tuple[Self, int | None]:
        """Return settings of a search for the ticket of `level`, and its level there (None: the last level)."""
        return (self.split_by_density()[(level - 1) // self.rounds], None) if self.targets else (self, level)

    def shared_gating_arguments(self) -> dict[str, Any]:
        """Return the arguments of `Gating` that are the same in all rounds."""
        of_gates = [each.name for each in fields(self) if each.name.startswith("gate_")]
        own = {name.removeprefix("gate_"): getattr(self, name) for name in of_gates}
        return own | {"pattern": self.parsed_structure.pattern}


def plan_by_gates(settings: GateSettings) -> list[Training]:
    """Plan, for every (density, initial gate logit, penalty) and round, a training of gates and one of the ticket."""
    span = ticket_training_span(choose_retrain(settings.rewind, settings.retrain), settings.rewind)
    planned: list[Training] = []
    for alone in settings.split_by_density():
        for number in [*range(1, settings.rounds + 1)] * len(alone.inits_and_penalties):
            is_last = number == settings.rounds
            ticket = Training(
                level=len(planned) // 2 + 1,
                density=alone.target if is_last and not settings.budget else None,
                has_controls=is_last or settings.target is None,
                **span,
            )
            planned += [Training(), ticket]
    return planned


@search_by_replicate
def search_by_gates(replicate: Replicate, settings: GateSettings) -> Iterator[Found]:
    """Yield the dense network, then a ticket per round for every (density, initial gate logit, penalty)."""
    alone = settings.split_by_density()
    if len(alone) == 1:
        yield from _search_one_density(replicate, settings)
        return
    yield next(_search_one_density(replicate, alone[0]))

    def search_density(position: int, one: GateSettings) -> Iterator[Found]:
        for found in _search_one_density(replicate, one):
            if found.level:
                yield replace(found, level=position * one.rounds + found.level)

    yield from replicate.find_all(partial(search_density, *each) for each in enumerate(alone))


def _search_one_density(replicate: Replicate, settings: GateSettings) -> Iterator[Found]:
    """Search one replicate with settings that request at most one density; yield its networks."""
    retrain = choose_retrain(settings.rewind, settings.retrain)
    check_schedule_suits_retrain(retrain, replicate.recipe.schedule)
    step = replicate.dense_training.at(settings.rewind, "rewind")

    def steps_needed(whole: Segment, settings: GateSettings) -> int:
        return settings.rounds * whole.total + ticket_training_steps(
            retrain, whole.at(settings.rewind, "rewind"), whole.total
        )

    rounds = Rounds(*compress_to_steps(replicate, settings, steps_needed, ("rewind",)))
    dense = replicate.train_dense(step, retrain=retrain)
    yield dense

    if settings.target is not None:
        for number, (chain, searched) in enumerate(train_rounds_towards_density(rounds, settings.target), start=1):
            yield _train_ticket(rounds, number, chain, searched, dense)
        return

    def run_rounds(position: int, init: float, penalty: float) -> Iterator[Found]:
        chain: list[Result] = []
        for number in range(1, settings.rounds + 1):
            chain = [*chain, rounds.train_next_round(init, penalty, chain)]
            yield _train_ticket(rounds, position * settings.rounds + number, chain, chain, dense)

    yield from replicate.find_all(
        partial(run_rounds, position, *knobs) for position, knobs in enumerate(settings.inits_and_penalties)
    )


def _train_ticket(rounds: Rounds, level: int, chain: list[Result], searched: list[Result], dense: Found) -> Found:
    from ticketry.search.gating.gating import (
        mask_of_largest_gates,
        mask_of_open_gates,
        mask_within_budget,
        weights_times_hard_gates,
    )

    lab, last, retrain, settings = rounds.lab, chain[-1], dense.retrain, rounds.settings
    target, cut_to = settings.target if level == settings.rounds else None, None
    if settings.budget and target is not None:
        mask = mask_within_budget(lab, last, settings, target)
    elif target is not None and not is_near_density(rounds, last, target):
        mask, cut_to = mask_of_largest_gates(lab, last, target), target
    else:
        mask = mask_of_open_gates(lab, last)
    rewound, trained, behind = rounds.rewound_state(chain), last, None
    if retrain not in REWINDING:
        trained = replace(last, model=weights_times_hard_gates(lab, last))
        steps, rewound_between = last.segment.steps, last.segment.start.state == rewound.model
        behind = steps + (rewound.segment.last if rewound_between else (len(chain) - 1) * steps)
    segment = rounds.replicate.ticket_training(mask, retrain=retrain, rewound=rewound, trained=trained)
    return replace(
        dense,
        level=level,
        mask=mask,
        rewound=rewound,
        result=lab.train(segment, label=f"level {level} ticket"),
        searched=tuple(searched),
        behind=behind,
        pattern=settings.parsed_structure.pattern,
        aim=settings.budget_cache_key,
        cut_to=cut_to,
    )


# -- rounds ------------------------------------------------------------------------------------------------------------


class Rounds:
    """Train the rounds of one replicate: weights and gates together, starting from the previous round's gates."""

    def __init__(self, replicate: Replicate, settings: GateSettings) -> None:
        from ticketry.search.gating.gating import Gating, gate_prices

        self.replicate, self.lab, self.settings = replicate, replicate.lab, settings
        self.step = replicate.dense_training.at(settings.rewind, "rewind")
        scope = prunable_scope(replicate, settings)
        self._gating = Gating(
            scope=tuple(scope), **gate_prices(replicate, settings, scope), **settings.shared_gating_arguments()
        )
        if settings.rounds > 1 and not self._gating.make_kind().rounds:
            raise UsageError(f"gates of kind {self._gating.kind!r} have no rule for a further round: give rounds 1")
        for init, penalty in settings.inits_and_penalties:
            for earlier in (None, "a digest"):  # wrong values raise before anything is trained
                self._make_gating(init, penalty, 1, earlier)

    def train_next_round(self, init: float, penalty: float, chain: Sequence[Result]) -> Result:
        """Train the round that follows the rounds in `chain`, which may be empty.

        Each round has a new optimiser and its own data order.
        """
        number = len(chain) + 1
        gates = self._make_gating(init, penalty, number, chain[-1].variants[self._gating.name] if chain else None)
        if not chain:
            segment = self.replicate.from_initialisation(variants=[gates])
        else:
            weights = self.rewound_state(chain) if self.settings.weights_between == "rewind" else chain[-1]
            segment = self.replicate.with_other_data_order("round", number).continue_from(weights, 0, variants=[gates])
        keep = () if chain else (self.step,)
        label = f"s0 {init:.4g}" + (f" penalty {penalty:.4g}" if len(self.settings.penalty) > 1 else "")
        return self.lab.train(segment, keep=keep, label=f"{label} round {number}")

    def remaining_share(self, result: Result) -> float:
        """Return the share of weights with open gates after a round; under a budget, their share of the dense cost."""
        if self.settings.budget:
            from ticketry.lab.masks import remaining_cost_share
            from ticketry.search.gating.gating import load_gates

            weights = load_gates(self.lab, result).kept()
            return remaining_cost_share(self.lab, result.segment.task, weights, self.settings.budget.cache_key)
        return float(result.record["gating"]["density"])

    def rewound_state(self, chain: Sequence[Result]) -> Result:
        """Return the network at the rewind step of the first round in `chain`."""
        return self.lab.at(chain[0], self.step)

    def _make_gating(self, init: float, penalty: float, number: int, earlier: str | None) -> Gating:
        from ticketry_engine.support.seeds import mix_seeds

        seed = mix_seeds(self.replicate.seeds.mask, "gates", number) if self._gating.make_kind().draws else 0
        reset = self.settings.reset if earlier else None
        return replace(self._gating, init=init, penalty=penalty, seed=seed, earlier=earlier, reset=reset)


def is_near_density(rounds: Rounds, result: Result, density: float) -> bool:
    """Return whether the density after a round deviates from `density` by at most the relative `TOLERANCE`."""
    return abs(rounds.remaining_share(result) / density - 1) <= TOLERANCE


def train_rounds_towards_density(rounds: Rounds, density: float) -> Iterator[tuple[list[Result], list[Result]]]:
    """Train rounds of gates until the last round reaches `density`; yield two lists of trainings after each round.

    The first list has the rounds so far. The second list also has the discarded tries, which had other initial gate
    logits. If no try of a round is near enough to the wanted density, the nearest try is used.
    """
    count, (init, _) = rounds.settings.rounds, rounds.settings.inits_and_penalties[0]
    chain: list[Result] = []
    searched: list[Result] = []
    for number in range(1, count + 1):
        before = chain[-1] if chain else None
        had = rounds.remaining_share(before) if before else 1.0
        aim = had * (density / had) ** (1 / (count - number + 1))
        if before is not None:
            init = _GateMovement(rounds.lab, before, chain[-2] if len(chain) > 1 else None).init_for_share(aim / had)
        *others, used = _try_inits_until_near_density(rounds, chain, init, aim, density)
        searched += [*others, used]
        chain = [*chain, used]
        yield chain, list(searched)


def _try_inits_until_near_density(
    rounds: Rounds, chain: list[Result], init: float, aim: float, density: float
) -> list[Result]:
    """Train the round after `chain` with several initial gate logits, first `init`, until its density is near enough.

    The wanted densities are `aim` after this round and `density` after the last round. Return all tries in the order of
    training, but the try to use comes last.
    """
    before, number = chain[-1] if chain else None, len(chain) + 1
    last = number == rounds.settings.rounds
    had = rounds.remaining_share(before) if before else 1.0
    low: tuple[float, float] | None = None  # (s0, density) that is too sparse
    high: tuple[float, float] | None = None
    side: bool | None = None  # whether the last try was too sparse
    tried: list[tuple[float, float]] = []
    results: list[Result] = []
    for _ in range(_MOST_TRIES):
        result = rounds.train_next_round(init, rounds.settings.penalty[0], chain)
        results.append(result)
        found = rounds.remaining_share(result)
        if is_near_density(rounds, result, density) if last else found >= density:
            return results
        stuck, side = side == (found < aim), found < aim
        if side:
            low = (init, found)
        else:
            high = (init, found)
        tried.append((init, found))
        if low and high:
            init = (low[0] + high[0]) / 2 if stuck else _interpolate_init(low, high, aim)
        elif len(tried) > 1:
            init = _extrapolate_init(tried[-2], tried[-1], aim)
        else:
            moves = _GateMovement(rounds.lab, result, before)
            reach = 2 * max(abs(init), min(moves.median_distance, _MOST_TYPICAL))  # guesses from afar are wild
            way = min(max(abs(moves.init_for_share(aim / had) - init), reach / 8), reach)
            init += way if found < aim else -way
        init = min(max(init, -_FARTHEST), _FARTHEST)
    distances = [abs(math.log(max(left, _LEAST_SHARE) / aim)) for _, left in tried]
    nearest = results.pop(distances.index(min(distances)))
    return [*results, nearest]


def _extrapolate_init(first: tuple[float, float], second: tuple[float, float], aim: float) -> float:
    """Extrapolate the initial gate logit s0 from two tries, both too sparse or both too dense, linearly in log density.

    A try is (s0, density), and `aim` is the wanted density. The step beyond the second try is half to four times the
    distance of the two tries.
    """
    step = second[0] - first[0]
    gained, missing = math.log(max(second[1], 1e-9) / max(first[1], 1e-9)), math.log(aim / max(second[1], 1e-9))
    times = missing / gained if gained else math.inf
    return second[0] + step * (min(max(times, 0.5), 4.0) if times > 0 else 4.0)


def _interpolate_init(low: tuple[float, float], high: tuple[float, float], aim: float) -> float:
    """Interpolate s0, the initial gate logit, between two tries (s0, density), linearly in log density.

    The result stays away from both tries.
    """
    (left, sparse), (right, dense) = low, high
    below, above = math.log(aim / max(sparse, aim / 4)), math.log(min(dense, 4 * aim) / aim)
    share = below / (below + above) if below + above else 0.5
    return left + (right - left) * min(max(share, 0.15), 0.85)


class _GateMovement:
    """Distances by which gate logits moved in a round, for the gates that were on before the round."""

    def __init__(self, lab: Lab, result: Result, before: Result | None) -> None:
        import torch

        from ticketry.search.gating.gating import get_gating

        gating = get_gating(result.segment)
        ends, self._threshold = _load_gate_values(lab, result), gating.make_kind().threshold
        began = torch.ones_like(ends, dtype=torch.bool)
        if before is not None:
            began = _load_gate_values(lab, before) > self._threshold
        self._moves = torch.sort(ends[began] - gating.init, descending=True).values
        self._returned = int((ends[~began] > self._threshold).sum())

    @property
    def median_distance(self) -> float:
        """The median of the absolute distances by which gates moved."""
        return max(float(self._moves.abs().median()), _LEAST_STEP)

    def init_for_share(self, share: float) -> float:
        """Return the initial gate logit with which `share` of the open gates would stay open, if all moved as before.

        Gates that were off before the round and on after it are assumed to open again.
        """
        wanted = round(min(share, _MOST_SHARE) * len(self._moves)) - self._returned
        return self._threshold - float(self._moves[min(max(wanted, 1), len(self._moves)) - 1])


def _load_gate_values(lab: Lab, result: Result) -> torch.Tensor:
    import torch

    from ticketry.search.gating.gating import get_gating, load_gates

    gating = get_gating(result.segment)
    if gating.pattern != UNSTRUCTURED:  # one logit for each weight, because densities count weights
        return torch.cat([s.flatten() for s in load_gates(lab, result).by_weight().values()])
    tensors = lab.store.get_tensors(result.variants[gating.name])
    return torch.cat([value.flatten() for name, value in sorted(tensors.items()) if name.startswith("s/")])
