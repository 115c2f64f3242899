"""The published experiments by the name that `--preset` takes. Needs no torch."""

from __future__ import annotations

from typing import Any

from ticketry.choices import did_you_mean
from ticketry.errors import UsageError
from ticketry.tasks.presets.continuous import CS_PRESETS
from ticketry.tasks.presets.iterative import IMP_PRESETS
from ticketry.tasks.presets.language import LANGUAGE_PRESETS

EXPERIMENTS = IMP_PRESETS | CS_PRESETS | LANGUAGE_PRESETS


def experiment(name: str) -> dict[str, Any]:
    """The tables of the experiment of that name: method, task, model, options, settings and recipe.

    Raises:
        UsageError: for a name that is not in `EXPERIMENTS`.
    """
    if name not in EXPERIMENTS:
        raise UsageError(
            f"there is no preset {name!r}: {did_you_mean(name, EXPERIMENTS)}choose one of {', '.join(EXPERIMENTS)}"
        )
    return EXPERIMENTS[name].tables()
