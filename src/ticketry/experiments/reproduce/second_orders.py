"""A/A comparison: train the dense network of each replicate again in a second data order.

The difference between both trainings is shown beside every claim, as the effect of chance alone. The second training
starts from the replicate's own initialisation, and uses the second data order of `evidence.stability`; a stability
analysis and the A/A comparison share this training.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace

from ticketry.experiments.reproduce.blocks import Block
from ticketry.experiments.reproduce.campaign_file import COSTS, DENSITY, STABILITY, Campaign, Hypothesis
from ticketry.experiments.reproduce.claims import Decision
from ticketry.experiments.reproduce.forecast import dense_segment
from ticketry.lab.lab import Lab
from ticketry.lab.store.references import find_second_order_result, second_order_seed
from ticketry.lab.store.store import digest_of
from ticketry.lab.training.precision import non_default_choices
from ticketry.lab.training.segment import Segment
from ticketry.records.campaign import SecondOrderRun
from ticketry.records.network import DENSE, Point
from ticketry.records.run import RunRecord


class SecondOrders:
    """Finds and trains the dense networks of a campaign in the second data order.

    Args:
        lab: where to train.
        campaign: the campaign.
        known: second-order trainings in the campaign's earlier record.
    """

    def __init__(self, lab: Lab, campaign: Campaign, known: Iterable[SecondOrderRun]) -> None:
        self._lab, self._campaign = lab, campaign
        self._of = {name: _dense_digest(campaign, name) for name in campaign.runs}
        self._found = {(one.of, one.replicate): one for one in known if one.of in self._of.values()}

    @property
    def rows(self) -> tuple[SecondOrderRun, ...]:
        """All known second-order trainings, as rows of the campaign record."""
        return tuple(self._found[key] for key in sorted(self._found))

    def merge(self, others: Iterable[SecondOrderRun]) -> None:
        """Add second-order trainings that another process has found or trained."""
        for one in others:
            mine = self._found.get((one.of, one.replicate))
            if one.of in self._of.values() and (mine is None or (one.trained and not mine.trained)):
                self._found[one.of, one.replicate] = one

    def find_stored(self, run: str, blocks: Sequence[RunRecord]) -> None:
        """Add second-order trainings for finished blocks that are already in the store."""
        metric = self._campaign.runs[run].task.metric.name
        for replicate, dense_one in enumerate(_dense_points(blocks)):
            if (self._of[run], replicate) in self._found or not dense_one.key:
                continue
            if (second := find_second_order_result(self._lab.store, dense_one.key)) is not None:
                key, result = second
                self._found[self._of[run], replicate] = SecondOrderRun(
                    of=self._of[run],
                    replicate=replicate,
                    value=float(result["metrics"]["test"][metric]),
                    key=key,
                    steps=result["cost"].get("steps", dense_one.steps or 0),
                    seconds=result["cost"]["train_seconds"],
                    trained=False,
                )

    def missing(self, block: Block) -> list[int]:
        """Return the replicates up to the block's end that lack a second-order training; equal runs share trainings."""
        return [one for one in range(block.last) if (self._of[block.run], one) not in self._found]

    def train(self, block: Block) -> None:
        """Train the missing second-order networks of `block` and of earlier blocks of its run."""
        unknown, run = self.missing(block), self._campaign.runs[block.run]
        began, of, metric = time.monotonic(), self._of[block.run], run.task.metric.name
        segments = [self._segment(block.run, replicate) for replicate in unknown]
        labels = [f"replicate {replicate} dense (second order)" for replicate in unknown]
        before = self._lab.ledger.segments_trained
        results = self._lab.train_many(segments, labels=labels)
        new = self._lab.ledger.segments_trained - before
        seconds = (time.monotonic() - began) / max(len(unknown), 1)
        for number, (replicate, result) in enumerate(zip(unknown, results, strict=True)):
            self._found[of, replicate] = SecondOrderRun(
                of=of,
                replicate=replicate,
                value=result.metrics["test"][metric],
                key=result.segment.key,
                steps=result.segment.steps,
                seconds=round(seconds, 3),
                trained=number < new,
            )

    def differences(self, decision: Decision, done: Mapping[str, Sequence[RunRecord]]) -> tuple[float, ...]:
        """Return each replicate's metric in the second minus the first order; empty for a claim on another quantity."""
        claim = decision.claim
        if not has_order_comparison(claim):
            return ()
        run = claim.runs[0]
        values = dense_values(done[run], claim.metric)[: decision.n]
        others = [self._found.get((self._of[run], replicate)) for replicate in range(len(values))]
        return tuple(one.value - value for one, value in zip(others, values, strict=True) if one is not None)

    def _segment(self, run: str, replicate: int) -> Segment:
        segment = dense_segment(self._lab, self._campaign.runs[run], replicate)
        return replace(segment, order_seed=second_order_seed(segment.order_seed))


def has_order_comparison(claim: Hypothesis) -> bool:
    """Return whether a claim is about the task's metric, so that the A/A comparison applies."""
    return claim.metric not in (*COSTS, *STABILITY, DENSITY)


def dense_values(blocks: Sequence[RunRecord], metric: str) -> list[float]:
    """Return the test metric of each replicate's dense network, in order of replicates."""
    return [one.metric(metric) for one in _dense_points(blocks)]


def _dense_points(blocks: Sequence[RunRecord]) -> list[Point]:
    """Return the record's row of each replicate's dense network, in order of replicates."""
    return [
        next(one for one in record.points if (one.replicate, one.role) == (replicate, DENSE))
        for record in blocks
        for replicate in range(record.replicates)
    ]


def _dense_digest(campaign: Campaign, run: str) -> str:
    """Return a digest of everything that determines a run's dense networks: task, recipe, seeds and arithmetic."""
    request = campaign.runs[run]
    precision, together = campaign.precisions[run], non_default_choices(precision="fp32", **campaign.together)
    parts = [dict(request.task.key()), asdict(request.recipe), asdict(request.seeds), precision]
    return digest_of([*parts, together] if together else parts)
