"""The latency of a budget's base on this machine, timed in turns with the model compiled without pruning."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ticketry.core.costs.bases import ENGINE, Latencies, check_base
from ticketry.core.costs.words import share_or_amount
from ticketry.core.structure.dependencies.model_copies import copied
from ticketry.errors import EngineError
from ticketry_engine.bench.dense_engines import UnavailableError, rivals
from ticketry_engine.bench.timing import Case
from ticketry_engine.support.process_state import torch_threads

if TYPE_CHECKING:
    from ticketry.engine.cost.meter import Meter

_RIVAL = {"torch.compile": "compile"}
"""Base -> its name among the dense engines, where that is another."""

_ROUNDS = 5


def latencies(meter: Meter, budget: float | str, base: str) -> Latencies:
    """Time the base and the unpruned compiled model, and return both with what the budget requests.

    Args:
        meter: of the model.
        budget: a share of the base's latency (0.5, "50%") or an amount ("5ms").
        base: one of `BASES`.

    Raises:
        UsageError: for an unknown base, or a budget that is neither.
        EngineError: if the base is not installed or cannot run the model.
    """
    check_base(base)
    number, is_share = share_or_amount(budget, "seconds")
    unpruned = meter.dense_seconds
    now = unpruned if base == ENGINE else base_seconds(meter, base)
    return Latencies(base, now, unpruned, number * now if is_share else number)


def base_seconds(meter: Meter, base: str) -> float:
    """Return the latency of a base other than the engine; raises what `latencies` does."""
    with torch_threads(meter.threads):
        call = prepared(meter, base)
        return meter.ratio_to_dense(call, _ROUNDS).median * meter.dense_seconds


def prepared(meter: Meter, base: str) -> Callable[[], Any]:
    """Return a call of the model in a base; raises `EngineError` if the base is not installed or cannot run it."""
    model = copied(meter.model, {}).eval().requires_grad_(False)
    args, kwargs = meter.arguments
    case = Case(model, kwargs or args, meter.precision, meter.threads)
    (contender,) = rivals([_RIVAL.get(base, base)])
    try:
        call = contender.prepare(case)
        call(*args, **kwargs)
    except UnavailableError as error:
        raise EngineError(
            f"the base {base} cannot be timed here: {error}. Choose another base (eager, engine) or give an amount"
            " (time='5ms')"
        ) from None
    return lambda: call(*args, **kwargs)
