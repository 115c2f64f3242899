"""Measure the latency of a task's network, sparse or dense, once per store; choose masks by measured latency.

Seconds differ from run to run. So the key of a stored result contains no seconds, but the mask or network that was
timed. A cost model says which machine, batch size, threads and precision are timed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ticketry.budgets.cost_model import CostModel
from ticketry.core.mask import Mask
from ticketry.core.scope import scope as scope_of
from ticketry.errors import CostError
from ticketry.lab.lab import Lab
from ticketry.lab.store.store import digest_of
from ticketry.records.network import RelativeLatency
from ticketry.tasks.task import Task
from ticketry_engine.support.seeds import generator

if TYPE_CHECKING:
    from ticketry.budgets.timing import Meter
    from ticketry_engine.bench.timing import Interval

_TIMING = threading.Lock()
"""Lock that allows only one thread at a time to measure: the repetitions of a search run as threads of one process."""

_ROUNDS = 11
"""Number of timed rounds, as in `tk.cost.meet`."""


def check_measurable_here(costs: CostModel) -> None:
    """Raise `CostError` if `costs` are not in seconds, are of another machine, or of more threads than cores here."""
    from ticketry_engine.bench.machine import another_machine

    if costs.unit != "seconds":
        raise CostError(f"a latency is measured with costs in seconds, not in {costs.unit}")
    if other := another_machine(costs.about):
        raise CostError(
            f"the costs are of another machine ({other}): nothing can be timed for them here, leave out measured"
            " and dense_of_time, or search there"
        )
    threads, cores = int(costs.about.get("threads", 1)), os.cpu_count() or 1
    if threads > cores:
        raise CostError(
            f"the costs are of {threads} threads, and this machine has {cores} processors: measure costs again with"
            f" threads={cores} or fewer (tk.cost.model), or leave out measured and dense_of_time"
        )


def check_new_costs(lab: Lab, costs: CostModel) -> None:
    """Call `check_measurable_here` if the store does not contain these costs yet.

    Once costs are in the store, results measured with them can be read on any machine.
    """
    if lab.store.memo("costs", costs.digest) is None:
        check_measurable_here(costs)


def measure_masked_latency(lab: Lab, task: Task, mask: Mask, costs: CostModel) -> RelativeLatency:
    """Return the latency of the masked network as a share of the dense network's latency.

    The network is timed again: timings that were made to choose the mask are not used.
    """
    described = {"task": dict(task.key()), "mask": mask.digest, "costs": costs.digest}
    return _load_or_measure(lab, described, lambda: _build_meter(lab, task, costs).share_anew(mask, _ROUNDS))


def measure_dense_latency(lab: Lab, rival: Task, task: Task, costs: CostModel) -> RelativeLatency:
    """Return the latency of the dense network of `rival` as a share of the latency of the dense network of `task`."""
    described = {"task": dict(task.key()), "network": dict(rival.key()), "costs": costs.digest}

    def measure() -> Interval:
        meter, other = _build_meter(lab, task, costs), _build_meter(lab, rival, costs)
        return meter.share(other.compiled(), _ROUNDS)

    return _load_or_measure(lab, described, measure)


def prune_to_latency(lab: Lab, task: Task, costs: CostModel, share: float, prune: Callable[[float], Mask]) -> Mask:
    """Prune to several densities, time each mask, and return the mask whose latency is nearest to the aim `share`.

    Args:
        lab, task: the store and the network.
        costs: cost model that estimates the latency of the first mask.
        share: latency to aim at, as a share of the dense network's latency.
        prune: returns the mask for an estimated latency, given as a share of the dense network's latency.
    """
    from ticketry.budgets.approach import meet_share

    with _TIMING:
        return meet_share(
            _build_meter(lab, task, costs), costs, share, lambda budget: prune(min(1.0, budget / costs.dense))
        ).mask


def _load_or_measure(lab: Lab, described: dict[str, Any], measure: Callable[[], Interval]) -> RelativeLatency:
    def record() -> dict[str, Any]:
        with _TIMING:
            found = measure()
        return {"share": found.median, "low": found.low, "high": found.high}

    return RelativeLatency(**lab.store.load_or_compute("times", digest_of(described), record))


def _build_meter(lab: Lab, task: Task, costs: CostModel) -> Meter:
    from ticketry.budgets.timing import Meter
    from ticketry_engine.example_inputs import batch_of

    check_measurable_here(costs)
    batch = int(costs.about.get("batch", 1))
    inputs = lab.course(task).inputs(batch)
    if (examples := batch_of(inputs)) < batch:
        raise CostError(f"the costs are of batches of {batch}, and {task.name} has {examples} training examples")
    model = fill_zero_parameters(lab.model(task))
    threads, precision = int(costs.about.get("threads", 1)), str(costs.about.get("precision", "fp32"))
    return Meter(model, inputs, threads, precision, scope_of(model))


def fill_zero_parameters(model: nn.Module) -> nn.Module:
    """Fill parameters that contain a zero with small random values, so that no kernel skips them; return the model.

    The model is switched to evaluation mode.
    """
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            if not bool(parameter.all()):
                parameter.copy_(torch.empty(parameter.shape).uniform_(0.01, 0.1, generator=generator(0, "time", index)))
    return model.eval()
