"""How long blocks of a campaign take here: by steps measured before anything was trained, then by blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ticketry.experiments.reproduce.campaign_file import Campaign
from ticketry.experiments.reproduce.pace import Elsewhere, Pace, first_gates, measured
from ticketry.experiments.reproduce.planning import Block
from ticketry.experiments.reproduce.stored import stored_work
from ticketry.experiments.reproduce.work import (
    NOTHING,
    Work,
    chain_of,
    dense,
    mean_density,
    plain,
    structured,
    work_of,
)
from ticketry.lab.lab import Lab
from ticketry.lab.store.second_orders import second_order
from ticketry.lab.store.store import digest_of
from ticketry.lab.training.segment import Segment
from ticketry.search.common.scope import is_structured


@dataclass(frozen=True)
class _Seen:
    """Of a run's block that was carried out."""

    step: float
    """Seconds a step that is no dense network's, with all that trainings take beside their steps."""
    processor: float | None
    """Seconds of processors' time a second."""


class Clock:
    """How long blocks take.

    Args:
        twins: up to a block's last replicate, those whose dense network is to be trained in a second order, see
            `twins`.
        elsewhere: opens a lab over another folder, to measure steps in; None where workers are on other machines.
    """

    def __init__(
        self,
        lab: Lab,
        campaign: Campaign,
        twins: Callable[[Block], Sequence[int]],
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self._lab, self._campaign, self._twins, self._elsewhere = lab, campaign, twins, elsewhere
        self._pace: dict[str, Pace] = {}
        self._seen: dict[str, _Seen] = {}
        self._there: dict[Block, tuple[Work, Work, dict[tuple[str, int], Work]]] = {}

    def took(self, block: Block, seconds: float, trained: Work, shared: Work, processor: float | None = None) -> None:
        """Take note of a block that was carried out just now.

        Args:
            trained: what was not in the store.
            shared: what `shared` said before.
            processor: seconds of processors' time a second.
        """
        own, seconds = trained.without(shared), seconds - self._seconds(block, shared, dense=True)
        if own.trainings and own.steps and seconds > 0:
            self._seen[block.run] = _Seen(seconds / own.steps, processor)

    def processor(self, block: Block, seconds: float) -> float | None:
        """Seconds of processors' time that a block takes which takes `seconds` by the clock, if that is known. What
        else the machine does is in the clock's, and not in these.
        """
        if seen := self._seen.get(block.run):
            return None if seen.processor is None else seconds * seen.processor
        share = self._measured(block.run).processor if seconds else 0.0
        return None if share is None else seconds * self._side_by_side(block.last - block.first) * share

    def estimate(self, block: Block, counted: set[str] | None = None) -> float:
        """Seconds of what the store lacks. Networks that are in `counted` take none; others are added to that."""
        request, count = block.request(self._campaign), block.last - block.first
        known = set[str]() if counted is None else counted
        every = work_of(self._lab, request, self._campaign.stability.get(block.run))
        chain = chain_of(self._lab, request)
        chain_there, there, again = self._stored(block)
        left = every.without(chain).times(count).without(there)
        if (name := self._chain_name(block)) not in known:
            left += chain.times(count).without(chain_there)
            known.add(name)
        for (trajectory, step), work in again.items():
            if (name := f"{trajectory}@{step} again") not in known and left.trainings:
                left += work
                known.add(name)
        return self._seconds(block, left) + self._seconds(block, self.shared(block, known), dense=True)

    def _chain_name(self, block: Block) -> str:
        """Of the tickets without structure: other runs of these replicates train the same."""
        settings = plain(block.request(self._campaign)).settings
        replicates = [one.key for one in self._whole(block)]
        return f"chain of {digest_of([replicates, repr(settings)])}"

    def _stored(self, block: Block) -> tuple[Work, Work, dict[tuple[str, int], Work]]:
        """What the store had of a block when it was first looked at, for to look takes seconds: of what `chain_of`
        counts, of the rest, and what has to be made again to go on from it."""
        if not self._begun(block):
            return NOTHING, NOTHING, {}
        if block not in self._there:
            request, count = block.request(self._campaign), block.last - block.first
            most, chain = chain_of(self._lab, request).times(count), NOTHING
            with self._campaign.training(self._lab, block.run):
                found = stored_work(self._lab, request)
                there, again = found.there, found.again
                if most.trainings:
                    found = stored_work(self._lab, plain(request))
                    chain, again = found.there, again | found.again
            if not structured(request):  # its own tickets are the chain
                there = there.without(chain)
            self._there[block] = chain.at_most(most), there, again
        return self._there[block]

    def _begun(self, block: Block) -> bool:
        """Whether some of its dense networks are there, without which nothing else is."""
        return len(self._left(self._whole(block))) < block.last - block.first

    def _whole(self, block: Block) -> list[Segment]:
        """Its dense networks, in the first order."""
        return self._dense(block.run, range(block.first, block.last))

    def _dense(self, run: str, replicates: Sequence[int]) -> list[Segment]:
        with self._campaign.training(self._lab, run):
            return [dense(self._lab, self._campaign.runs[run], replicate) for replicate in replicates]

    def _left(self, segments: Sequence[Segment]) -> list[Segment]:
        """Those that have still to be trained."""
        return [one for one in segments if self._lab.store.trained(one.trajectory, one.last) is None]

    def shared(self, block: Block, counted: set[str] | None = None) -> Work:
        """A block's dense networks, in both orders, that have still to be trained; of the second one those of earlier
        replicates too, which a bundle may lack."""
        whole, known = self._whole(block), set[str]() if counted is None else counted
        twins = [
            replace(one, order_seed=second_order(one.order_seed)) for one in self._dense(block.run, self._twins(block))
        ]
        left = {one.key for one in self._left([*whole, *twins])} - known
        known |= left
        return Work(len(left) * whole[0].total, len(left))

    def _seconds(self, block: Block, work: Work, *, dense: bool = False) -> float:
        if not work.trainings:
            return 0.0
        if not dense and (seen := self._seen.get(block.run)):
            return work.steps * seen.step  # of blocks side by side, as they were
        return self._measured(block.run).seconds(work) / self._side_by_side(block.last - block.first)

    def _side_by_side(self, replicates: int) -> int:
        """How many networks are trained at once."""
        return min(max(self._lab.workers, 1), replicates)

    def _measured(self, run: str) -> Pace:
        """By the first steps of the first dense networks; where masks train in sparse kernels, or without the channels
        that are gone, of masks as dense as the run's are in the mean too."""
        request, kernels = self._campaign.runs[run], self._campaign.kernels[run]
        (whole,) = self._dense(run, [0])
        smaller = is_structured(request.settings)
        density = mean_density(request, whole) if smaller or kernels != "dense" else None
        gates = first_gates(self._lab, request)
        key = digest_of([whole.describe(), kernels, gates and gates.describe(), density, smaller])
        if key not in self._pace:
            self._pace[key] = measured(
                self._lab,
                request,
                kernels,
                self._campaign.precisions[run],
                density,
                self._elsewhere,
                gates=gates,
                side_by_side=self._side_by_side(self._campaign.plans[run].at[0]),
            )
        return self._pace[key]
