"""The parameters that the settings of a search let a mask touch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ticketry.core.scope import Scope
    from ticketry.lab.lab import Lab
    from ticketry.tasks.base import Task


class Sparing(Protocol):
    """Settings that spare layers."""

    @property
    def spare(self) -> tuple[str, ...]: ...

    @property
    def spare_output(self) -> bool: ...

    @property
    def spare_first_conv(self) -> bool: ...


def prunable(lab: Lab, task: Task, settings: Sparing) -> Scope:
    """The parameters that the settings let a mask touch."""
    from ticketry.core.scope import scope

    return scope(
        lab.model(task),
        spare=settings.spare,
        output=not settings.spare_output,
        first_conv=not settings.spare_first_conv,
    )
