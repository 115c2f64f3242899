"""Many copies of one model, each with a few tensors of its own: only the modules around these are copied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from ticketry.core.structure.dependencies.model_copies import (
    Arguments,
    copied,
    fresh,
    plain_operations,
    run_model,
    sharing,
)
from ticketry.errors import StructureError


class PartialCopies:
    """Copies of a model that share with it, and with one another, all that they do not change.

    A module is shared if nothing in it changes. That is only safe where modules keep nothing of a run, such as a width
    or a result for the next one, and know of no module that is not within them: otherwise all modules are copied.
    """

    def __init__(self, model: nn.Module, arguments: Arguments) -> None:
        self._model = model
        self._parameters: dict[int, Tensor] = {id(parameter): parameter for parameter in model.parameters()}
        self._owners: dict[int, list[nn.Module]] = {}
        for module in model.modules():
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None:
                    self._owners.setdefault(id(tensor), []).append(module)
        self._apart = not any(_knows_others(module) for module in model.modules()) and _keeps_nothing(model, arguments)

    def copy(self, tensors: Mapping[int, Tensor], modules: Iterable[nn.Module] = ()) -> nn.Module:
        """A copy in which some parameters and buffers (by `id`) are others, and these modules may be changed too."""
        shared: dict[int, nn.Module] = {}
        if self._apart:
            changed = {id(module) for module in modules}
            changed |= {id(owner) for tensor in tensors for owner in self._owners[tensor]}
            _share(self._model, changed, shared, {})
        return copied(self._model, {**self._parameters, **tensors}, shared)


def _share(module: nn.Module, changed: set[int], shared: dict[int, nn.Module], known: dict[int, bool]) -> bool:
    """Put into `shared` what lies under a module without changes; returns whether it has none itself."""
    if id(module) not in known:
        same = [_share(child, changed, shared, known) for child in module.children()]
        known[id(module)] = all(same) and id(module) not in changed
        if known[id(module)]:
            shared[id(module)] = module
    return known[id(module)]


def _knows_others(module: nn.Module) -> bool:
    """Whether a module holds another one, or a method of one, elsewhere than among its children."""
    held = (value for name, value in vars(module).items() if name != "_modules")
    found = (getattr(part, "__self__", part) for value in held for part in _parts(value))
    return any(isinstance(part, nn.Module) and part is not module for part in found)


def _keeps_nothing(model: nn.Module, arguments: Arguments) -> bool:
    """Whether no module is other after a run than before."""
    twin = sharing(model).eval()
    before = list(_state(twin))
    try:
        with plain_operations(twin):
            run_model(twin, fresh(arguments))
    except StructureError:  # told where the model is tried
        return False
    after = list(_state(twin))
    return len(before) == len(after) and all(
        one is other and version == later for (one, version), (other, later) in zip(before, after, strict=True)
    )


def _state(model: nn.Module) -> Iterator[tuple[Any, int]]:
    """All values that modules hold, with how often each tensor has been written to."""
    for module in model.modules():
        for name, value in vars(module).items():
            for part in (name, *_parts(value)):
                yield part, part._version if isinstance(part, Tensor) else 0


def _parts(value: object) -> Iterator[object]:
    """A value, and all that lies in it if it is a list, tuple, set or dictionary."""
    yield value
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, (list, tuple, set, frozenset)):
        for part in value:
            yield from _parts(part)
