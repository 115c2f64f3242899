"""Who wants to know what takes a place in a module."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from ticketry_engine.support.listeners import Listeners

Told = Callable[[nn.Module, str, object], None]


class Listening:
    """Whoever is `told` of each parameter or module that takes a place in any module, until `remove`."""

    def __init__(self, told: Told) -> None:
        self.told = told
        _listening.add(self)

    def remove(self) -> None:
        """Hear no more; more than once is no error."""
        _listening.remove(self)


def _hook() -> None:
    register_module_parameter_registration_hook(_registered)
    register_module_module_registration_hook(_registered)


def _registered(module: nn.Module, name: str, value: object) -> None:
    for one in _listening.present:
        one.told(module, name, value)


_listening = Listeners[Listening](_hook)
