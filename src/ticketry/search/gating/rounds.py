"""Rounds of training with a soft mask: what is trained in each, and which s0 leads to the density asked for.

Density rises with s0 (Savarese et al. 2020), but how fast depends on task, recipe and round. Asked for density D after
R rounds, round r aims at the density that leads from that of the round before to D in equal ratios; the first round
begins with the s0 given. How far each s moved in a round tells which s0 would have left the share wanted: that is the
first guess for the next round, whose gates start at that s0. The last round is tried again until it is within 10 % of
D: the second try is a guess of the same kind, further ones are extrapolated in log density from two, or interpolated
between the nearest s0 on either side, or in the middle after two tries on one side. An earlier round is tried again
only if it leaves less than D: a large s0 keeps nearly all that it left.

Gates that get no gradient from the loss (of inputs that are always 0) all go on or off together at an s0 of about their
kind's threshold (0 of most), so that density jumps there, and no s0 leads to a density inside the jump. After 10 tries
of a round the nearest one is used. If this is the last round, the ticket's mask is cut to D by the values of its gates,
which the record says.

Under a budget of tickets (`--flops`, `--time`, `--bytes`) the same is done with the share of its costs that hard gates
leave in place of the density; the last ticket then spends the budget, see `search.gating.charging`.

This departs from the paper, where one s0 holds in all rounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ticketry.core.structure.pattern import UNSTRUCTURED
from ticketry.errors import UsageError
from ticketry.search.common.method import Replicate
from ticketry.search.common.scope import prunable
from ticketry.search.gating.charging import charged, left_of_budget
from ticketry.search.gating.settings import GateSettings

if TYPE_CHECKING:
    import torch

    from ticketry.lab.lab import Lab
    from ticketry.lab.training.segment import Result
    from ticketry.search.gating.gating import Gating

TOLERANCE = 0.1
"""Of the density asked for, relative."""
_TRIES = 10
_LEAST_STEP = 1e-4
_MOST_SHARE = 0.99
_LEAST_SHARE = 1e-9
_MOST_TYPICAL = 0.1
_FARTHEST = 50.0


class Rounds:
    """What all rounds of one replicate share."""

    def __init__(self, replicate: Replicate, settings: GateSettings) -> None:
        from ticketry.search.gating.gating import Gating

        self.replicate, self.lab, self.settings = replicate, replicate.lab, settings
        self.step = replicate.whole.at(settings.rewind, "rewind")
        scope = prunable(replicate, settings)
        self._gating = Gating(scope=tuple(scope), **charged(replicate, settings, scope), **settings.gating())
        if settings.rounds > 1 and not self._gating.make_kind().rounds:
            raise UsageError(f"gates of kind {self._gating.kind!r} have no rule for a further round: give rounds 1")
        for init, penalty in settings.members:
            for earlier in (None, "a digest"):  # a wrong number or word is told before anything is trained
                self._gates(init, penalty, 1, earlier)

    @property
    def first_gates(self) -> Gating:
        """Those of the first member's first round."""
        return self._gates(*self.settings.members[0], 1, None)

    def train(self, init: float, penalty: float, chain: Sequence[Result]) -> Result:
        """The round after those of `chain`, the first if there are none.

        Momentum belongs to the round before and is not taken along. Each round has its own order.
        """
        number = len(chain) + 1
        gates = self._gates(init, penalty, number, chain[-1].variants[self._gating.name] if chain else None)
        if not chain:
            segment = self.replicate.begun(variants=[gates])
        else:
            weights = self.rewound(chain) if self.settings.weights_between == "rewind" else chain[-1]
            segment = self.replicate.reordered("round", number).onward(weights, 0, variants=[gates])
        keep = () if chain else (self.step,)
        label = f"s0 {init:.4g}" + (f" penalty {penalty:.4g}" if len(self.settings.penalty) > 1 else "")
        return self.lab.train(segment, keep=keep, label=f"{label} round {number}")

    def left(self, result: Result) -> float:
        """What the gates of a round leave: the density; under a budget of tickets the share of its costs."""
        if self.settings.aim:
            return left_of_budget(self.lab, result, self.settings.terms)
        return float(result.record["gating"]["density"])

    def rewound(self, chain: Sequence[Result]) -> Result:
        """The state at the rewind step, in the first round."""
        return self.lab.at(chain[0], self.step)

    def _gates(self, init: float, penalty: float, number: int, earlier: str | None) -> Gating:
        from ticketry_engine.support.seeds import mix

        seed = mix(self.replicate.seeds.mask, "gates", number) if self._gating.make_kind().draws else 0
        reset = self.settings.reset if earlier else None
        return replace(self._gating, init=init, penalty=penalty, seed=seed, earlier=earlier, reset=reset)


def is_met(rounds: Rounds, result: Result, density: float) -> bool:
    """Whether the gates of the last round leave the density to within `TOLERANCE`."""
    return abs(rounds.left(result) / density - 1) <= TOLERANCE


def steered(rounds: Rounds, density: float) -> Iterator[tuple[list[Result], list[Result]]]:
    """Yield (the rounds that led here, all that were trained until now) after each round; the last is of the density.

    Where no try of a round is dense or near enough, its nearest one is used, see `is_met`.
    """
    count, (init, _) = rounds.settings.rounds, rounds.settings.members[0]
    chain: list[Result] = []
    searched: list[Result] = []
    for number in range(1, count + 1):
        before = chain[-1] if chain else None
        had = rounds.left(before) if before else 1.0
        aim = had * (density / had) ** (1 / (count - number + 1))
        if before is not None:
            init = _Moves(rounds.lab, before, chain[-2] if len(chain) > 1 else None).init_for(aim / had)
        *others, used = _tries(rounds, chain, init, aim, density)
        searched += [*others, used]
        chain = [*chain, used]
        yield chain, list(searched)


def _tries(rounds: Rounds, chain: list[Result], init: float, aim: float, density: float) -> list[Result]:
    """Train the round after `chain` with one s0 after another until its density will do.

    Returns:
        All tries in their order, but the one to use last.
    """
    before, number = chain[-1] if chain else None, len(chain) + 1
    last = number == rounds.settings.rounds
    had = rounds.left(before) if before else 1.0
    low: tuple[float, float] | None = None  # (s0, density) that is too sparse
    high: tuple[float, float] | None = None
    side: bool | None = None  # whether the last try was too sparse
    tried: list[tuple[float, float]] = []
    results: list[Result] = []
    for _ in range(_TRIES):
        result = rounds.train(init, rounds.settings.penalty[0], chain)
        results.append(result)
        found = rounds.left(result)
        if is_met(rounds, result, density) if last else found >= density:
            return results
        stuck, side = side == (found < aim), found < aim
        if side:
            low = (init, found)
        else:
            high = (init, found)
        tried.append((init, found))
        if low and high:
            init = (low[0] + high[0]) / 2 if stuck else _between(low, high, aim)
        elif len(tried) > 1:
            init = _beyond(tried[-2], tried[-1], aim)
        else:
            moves = _Moves(rounds.lab, result, before)
            reach = 2 * max(abs(init), min(moves.typical, _MOST_TYPICAL))  # guesses from afar are wild
            way = min(max(abs(moves.init_for(aim / had) - init), reach / 8), reach)
            init += way if found < aim else -way
        init = min(max(init, -_FARTHEST), _FARTHEST)
    distances = [abs(math.log(max(left, _LEAST_SHARE) / aim)) for _, left in tried]
    nearest = results.pop(distances.index(min(distances)))
    return [*results, nearest]


def _beyond(first: tuple[float, float], second: tuple[float, float], aim: float) -> float:
    """Linear in log density through two tries on the same side of the aim, by at least half and at most four times as
    far as from one to the other."""
    step = second[0] - first[0]
    gained, missing = math.log(max(second[1], 1e-9) / max(first[1], 1e-9)), math.log(aim / max(second[1], 1e-9))
    times = missing / gained if gained else math.inf
    return second[0] + step * (min(max(times, 0.5), 4.0) if times > 0 else 4.0)


def _between(low: tuple[float, float], high: tuple[float, float], aim: float) -> float:
    """Linear in log density, but well inside."""
    (left, sparse), (right, dense) = low, high
    below, above = math.log(aim / max(sparse, aim / 4)), math.log(min(dense, 4 * aim) / aim)
    share = below / (below + above) if below + above else 0.5
    return left + (right - left) * min(max(share, 0.15), 0.85)


class _Moves:
    """How far the gates that were on before a round moved in it."""

    def __init__(self, lab: Lab, result: Result, before: Result | None) -> None:
        import torch

        from ticketry.search.gating.gating import gating_of

        gating = gating_of(result.segment)
        ends, self._threshold = _logits(lab, result), gating.make_kind().threshold
        began = torch.ones_like(ends, dtype=torch.bool) if before is None else _logits(lab, before) > self._threshold
        self._moves = torch.sort(ends[began] - gating.init, descending=True).values
        self._returned = int((ends[~began] > self._threshold).sum())

    @property
    def typical(self) -> float:
        """The median distance."""
        return max(float(self._moves.abs().median()), _LEAST_STEP)

    def init_for(self, share: float) -> float:
        """The s0 from which as many gates would have ended on as are to be kept, had each moved as it did.

        Gates that were off before and came back would have come back all the same.

        Args:
            share: of those that were on before, how many are to be on after.
        """
        wanted = round(min(share, _MOST_SHARE) * len(self._moves)) - self._returned
        return self._threshold - float(self._moves[min(max(wanted, 1), len(self._moves)) - 1])


def _logits(lab: Lab, result: Result) -> torch.Tensor:
    import torch

    from ticketry.search.gating.gating import gating_of

    gating = gating_of(result.segment)
    if gating.pattern != UNSTRUCTURED:  # of each weight, as densities are of weights
        from ticketry.search.gating.masks import gates_of

        return torch.cat([s.flatten() for s in gates_of(lab, result).by_weight().values()])
    tensors = lab.store.get_tensors(result.variants[gating.name])
    return torch.cat([value.flatten() for name, value in sorted(tensors.items()) if name.startswith("s/")])
