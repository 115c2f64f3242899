"""The names of what a ticket is compared with. Needs no torch."""

from __future__ import annotations

from ticketry.errors import UsageError

CONTROLS = {
    "random_reinit": "the ticket's mask on a fresh initialisation (trained densely up to the step that the ticket's"
    " weights are from)",
    "shuffled": "the ticket's weights, its mask shuffled within each layer",
    "random_prune": "the ticket's weights, a random mask of the same density over the whole scope",
    "cyclic": "the ticket itself, trained again and again from where it ended, for as many steps as its whole search",
    "cyclic_random": "the same with the mask of shuffled",
}
LONGER = ("cyclic", "cyclic_random")
"""Controls that are trained for longer than the ticket: shown beside a verdict, which they have no part in."""


def check_controls(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names themselves; `UsageError` if one is not known."""
    for name in names:
        if name not in CONTROLS:
            raise UsageError(f"control {name!r} is not known: {', '.join(CONTROLS)}")
    return names


SMALL_DENSE = "small_dense"
RIVALS = {
    **{name: told for name, told in CONTROLS.items() if name not in LONGER},
    SMALL_DENSE: "a narrower dense network with no more parameters than the ticket, where the task defines one",
}
"""What a ticket should beat when it is verified, in words."""

SPLITS = ("train", "validation", "test")


def check_line(points: int, split: str, recalibrate: int) -> None:
    """Raises `UsageError` for what an error barrier cannot be measured with."""
    if points < 3:
        raise UsageError(f"a barrier needs points between the two ends: points must be at least 3, not {points}")
    if split not in SPLITS:
        raise UsageError(f"split {split!r} is not known: {', '.join(SPLITS)}")
    if recalibrate < 0:
        raise UsageError(f"recalibrate is a number of training batches, at least 0, not {recalibrate}")
