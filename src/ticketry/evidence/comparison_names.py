"""The names of what a ticket is compared with. Needs no torch."""

from __future__ import annotations

from typing import Any

from ticketry.choices import check_choice, list_choices
from ticketry.errors import UsageError
from ticketry.evidence.control import Control
from ticketry.records.network import is_matched_dense
from ticketry.registry import Registry


def _control(name: str, found: Any) -> Control:
    if not (isinstance(found, type) and issubclass(found, Control)):
        raise UsageError(f"{found!r} is no class derived from ticketry.evidence.Control")
    control = found()
    if control.fresh and control.remakes_weights:
        raise UsageError("it begins with fresh weights (fresh) or with others made of the ticket's (weights), not both")
    return control


_HERE = "ticketry.evidence.control"

CONTROLS: Registry[Control] = Registry(
    "control",
    "ticketry.controls",
    {
        "random_reinit": f"{_HERE}:RandomReinit",
        "shuffled": f"{_HERE}:Shuffled",
        "random_prune": f"{_HERE}:RandomPrune",
        "cyclic": f"{_HERE}:Cyclic",
        "cyclic_random": f"{_HERE}:CyclicRandom",
    },
    make=_control,
)
"""Classes derived from `Control`; `get` gives an instance. Other packages' are found by entry points."""

LONGER = ("cyclic", "cyclic_random")
"""Controls that are trained for longer than the ticket: shown beside a verdict, which they have no part in. There are
no others: whatever else is a control has the ticket's budget."""


def network_named(role: str) -> str:
    """The network that a dense rival names; empty for the ticket's own."""
    return role.partition(":")[2]


def check_controls(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names themselves; `UsageError` if one is not known, `PluginError` if a package's cannot be used."""
    for name in names:
        if is_matched_dense(name):
            _check_dense_rival(name)
        else:
            CONTROLS.get(name)
    return names


def _check_dense_rival(name: str) -> None:
    _, at, width = name.partition("@")
    if at:
        raise UsageError(f"{name}: the width is what is searched for, by the ticket's cost: leave @{width} away")


SMALL_DENSE = "small_dense"
"""A narrower dense network with no more parameters than the ticket, where the task defines one."""
RIVALS = (*(name for name in CONTROLS.built_in if name not in LONGER), SMALL_DENSE)
"""What a ticket should beat when it is verified."""
STATIC = ("uniform", "erk")
"""Of a procedure: random masks that nothing was searched for, held from the initialisation to the end. Their layers
have one density, or those of Erdos-Renyi-Kernel (Evci et al. 2020, RigL, section 3)."""
PROCEDURE_RIVALS = ("shuffled", *STATIC)
"""What a procedure should beat when it is verified: random masks with its layers' densities, trained as its tickets
are, and such as need no search at all (Liu et al., "The Unreasonable Effectiveness of Random Pruning", 2022)."""
STRUCTURED_RIVALS = ("shuffled", "random_prune")
"""Of a procedure whose masks have a structure, which `STATIC` masks do not have."""


def check_rivals(names: tuple[str, ...], known: tuple[str, ...] = RIVALS) -> None:
    """Raises `UsageError` for a name that is neither one of `known` nor another control with the ticket's budget."""
    for name in names:
        if is_matched_dense(name):
            _check_dense_rival(name)
            continue
        if name in known:
            continue
        if name in LONGER or (name not in CONTROLS and ":" not in name):
            longer = " has more training steps than a ticket, see `search --controls`" if name in LONGER else ""
            of_procedures = " is a control of procedures (--about procedure)" if name in STATIC else ""
            raise UsageError(
                f"control {name!r}{longer or of_procedures or ' is not known'}: {list_choices(name, known)}"
            )
        CONTROLS.get(name)


MORE_CONTROLS = {
    "dense_of_flops": "The narrowest dense network with no fewer multiplications than the ticket (another kind of"
    " network: dense_of_flops:NETWORK)",
    "dense_of_time": "The narrowest dense network whose measured call takes no less time, of tickets found by --time"
    " (or dense_of_time:NETWORK)",
    SMALL_DENSE: "Of ticketry verify: a narrower dense network with no more parameters than the ticket",
    "uniform": "Of verify --about procedure: a random mask, all layers equally dense, from the initialisation on",
    "erk": "Of verify --about procedure: the same with the layers' densities of Erdos-Renyi-Kernel",
}
"""What ``--controls`` can name besides `CONTROLS`, and what each is, for lists."""

SPLITS = ("train", "validation", "test")


def check_line(points: int, split: str, recalibrate: int) -> None:
    """Raises `UsageError` for what an error barrier cannot be measured with."""
    if points < 3:
        raise UsageError(f"a barrier needs points between the two ends: points must be at least 3, not {points}")
    check_choice("split", split, SPLITS)
    if recalibrate < 0:
        raise UsageError(f"recalibrate is a number of training batches, at least 0, not {recalibrate}")
