"""How the inverse temperature of a round grows, and how far a round has come."""

from __future__ import annotations

from ticketry.errors import UsageError

LARGEST = 1e12
"""No larger inverse temperature is accepted: far above what rounds a float32 sigmoid to 0 or 1, far below overflow."""


def inverse_temperature(progress: float, final: float) -> float:
    """beta = final ** progress: 1 at the start of a round, `final` at its end (Savarese et al. 2020, section 4).

    Args:
        progress: share of the round that is done, 0 <= progress <= 1.
        final: beta_T, at least 1.

    Raises:
        UsageError: for numbers outside these ranges.
    """
    if not 0 <= progress <= 1:
        raise UsageError(f"progress is a share of the round that is done, from 0 to 1, not {progress!r}")
    return float(check_final(final) ** progress)


def check_final(final: float) -> float:
    """`final` itself; `UsageError` if it is no inverse temperature to end at."""
    if not 1 <= final <= LARGEST:
        raise UsageError(f"the final inverse temperature is a number from 1 to {LARGEST:g}, not {final!r}")
    return final


def by_step(step: int, steps: int) -> float:
    """The progress after `step` of a round's `steps` updates: the temperature falls with every update (the paper)."""
    _check(step, steps, "step")
    return step / steps


def by_epoch(epoch: int, epochs: int) -> float:
    """The progress in epoch 0, 1, … of `epochs`: 0 all through the first, 1 all through the last (the official code).

    A round of a single epoch has no first epoch that is not the last: its progress is 1.
    """
    _check(epoch, epochs - 1, "epoch")
    return epoch / (epochs - 1) if epochs > 1 else 1.0


def _check(done: int, last: int, what: str) -> None:
    if not 0 <= done <= last:
        raise UsageError(f"{what} {done!r} is not one of a round's, which go from 0 to {last!r}")
