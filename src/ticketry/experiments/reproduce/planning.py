"""What of a campaign is missing, what decides most claims first, and how long it takes, by steps measured here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ticketry.evidence.judging.interim_analyses import InterimAnalyses
from ticketry.evidence.settings import StabilitySettings
from ticketry.experiments.reproduce.campaign_file import Campaign
from ticketry.experiments.reproduce.deciding import Decision
from ticketry.experiments.request import SearchRequest
from ticketry.lab.lab import Lab
from ticketry.lab.store import digest_of
from ticketry.lab.training.segment import Segment

_WARM, _TIMED = 10, 50
"""Steps that are trained before those that are timed, and up to where."""


@dataclass(frozen=True)
class Block:
    """Replicates of a run that are searched together: from one planned analysis to the next."""

    run: str
    index: int
    first: int
    last: int
    """Of the replicates; the last is not among them."""

    def request(self, campaign: Campaign) -> SearchRequest:
        """What to search for: replicates with seeds of their own."""
        one = campaign.runs[self.run]
        return replace(one, replicates=self.last - self.first, seeds=one.seeds.replicate(self.first))


def blocks_of(run: str, plan: InterimAnalyses) -> list[Block]:
    """All blocks of a run, up to the limit."""
    ends = (0, *plan.at)
    return [Block(run, index, ends[index], ends[index + 1]) for index in range(len(plan.at))]


def missing(decisions: Sequence[Decision], done: Mapping[str, int]) -> dict[Block, tuple[str, ...]]:
    """The next blocks that undecided claims wait for, with the claims: what most of them need comes first.

    Args:
        done: blocks of each run that are done.
    """
    waiting: dict[Block, list[str]] = {}
    for one in decisions:
        if one.found != "undecided":
            continue
        runs = one.claim.runs
        plan = one.claim.plan
        behind = min(done.get(run, 0) for run in runs)
        for run in runs:
            if done.get(run, 0) == behind < len(plan.at):
                waiting.setdefault(blocks_of(run, plan)[behind], []).append(one.claim.name)
    ranked = sorted(waiting, key=lambda block: (-len(waiting[block]), block.index, block.run))
    return {block: tuple(waiting[block]) for block in ranked}


class Clock:
    """How long blocks take: by steps measured before anything of the kind was trained, then by blocks that are done."""

    def __init__(self, lab: Lab, campaign: Campaign) -> None:
        self._lab, self._campaign = lab, campaign
        self._step: dict[str, float] = {}
        self._seen: dict[str, list[float]] = {}
        """Of each run: seconds a replicate."""

    def took(self, block: Block, seconds: float) -> None:
        """Take note of a block that was trained whole just now."""
        self._seen.setdefault(block.run, []).append(seconds / (block.last - block.first))

    def estimate(self, block: Block) -> float:
        """Seconds; of a dense network that another run trains too they are counted for both."""
        count = block.last - block.first
        if seen := self._seen.get(block.run):
            return count * seen[-1]
        request = self._campaign.runs[block.run]
        steps = count * steps_of(self._lab, request, self._campaign.stability.get(block.run))
        return steps * self._seconds_a_step(request) / min(max(self._lab.workers, 1), count)

    def whole(self, blocks: Sequence[Block]) -> float:
        """Of several."""
        return sum(map(self.estimate, blocks))

    def _seconds_a_step(self, request: SearchRequest) -> float:
        whole = dense(self._lab, request)
        key = digest_of(whole.describe())
        if key not in self._step:
            timed = min(_TIMED, whole.last)
            warm = min(_WARM, timed - 1)
            result = self._lab.train(whole.until(timed), keep=(warm,), label="to measure a step", measure=False)
            before = self._lab.at(result, warm).train_seconds
            self._step[key] = max(result.train_seconds - before, 1e-4) / max(timed - warm, 1)
        return self._step[key]


def steps_of(lab: Lab, request: SearchRequest, stability: StabilitySettings | None = None) -> int:
    """About how many steps one replicate trains: the dense network, tickets and controls, rounds with gates, and what
    is trained once more in a second order of the data.
    """
    whole = dense(lab, request)
    settings = request.settings
    tickets = request.method.levels(settings) if request.method.levels else 1
    rounds = int(getattr(settings, "rounds", 0) or 0)
    own = whole.total - whole.at(getattr(settings, "rewind", "0")) if _rewinds(settings) else whole.total
    again = 0
    if stability is not None:
        # Of other masks both orders are its own, unless they are controls anyway.
        others = sum(2 - (role in request.controls) for role in stability.roles if role)
        again = (len(stability.at) or tickets) * (1 + others) * own + stability.dense * own
    return whole.total * (1 + rounds) + (tickets + request.controls_of(tickets)) * own + again


def _rewinds(settings: object) -> bool:
    return hasattr(settings, "rewind") and getattr(settings, "retrain", "") in ("", "continue", "rewind_lr")


def dense(lab: Lab, request: SearchRequest, replicate: int = 0) -> Segment:
    """The dense training of a replicate, which every method begins with."""
    seeds = request.seeds.replicate(replicate)
    return lab.segment(request.task, start=seeds.initialisation, order_seed=seeds.order, recipe=request.recipe)
