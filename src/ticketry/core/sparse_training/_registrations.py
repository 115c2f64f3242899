"""Who wants to know what takes a place in a module, told by two hooks of torch that stay once they are there.

Torch goes through these hooks whenever any thread builds a module, and fails if one comes or goes meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from torch import nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

Told = Callable[[nn.Module, str, object], None]

_guard = threading.Lock()
_hooked: list[object] = []
_listening: tuple[Listening, ...] = ()
"""Never changed, but replaced: whoever goes through it needs no lock."""


class Listening:
    """Whoever is `told` of each parameter or module that takes a place in any module, until `remove`."""

    def __init__(self, told: Told) -> None:
        global _listening
        self.told = told
        with _guard:
            if not _hooked:
                _hooked.append(register_module_parameter_registration_hook(_registered))
                _hooked.append(register_module_module_registration_hook(_registered))
            _listening = (*_listening, self)

    def remove(self) -> None:
        """Hear no more; more than once is no error."""
        global _listening
        with _guard:
            _listening = tuple(one for one in _listening if one is not self)


def _registered(module: nn.Module, name: str, value: object) -> None:
    for one in _listening:
        one.told(module, name, value)
