"""What a smaller model keeps of a model, as data: applied to any model of the same shapes, saved without pickle."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save
from torch import Tensor, nn

from ticketry.choices import did_you_mean
from ticketry.core.mask import read_metadata
from ticketry.core.scope import normal_name, unwrapped
from ticketry.core.structure.dependencies.model_copies import copied
from ticketry.errors import StructureError, UsageError
from ticketry.files import content_of, parse_json, write_atomically
from ticketry_engine.support.entry_points import Need, entry_point
from ticketry_engine.support.sealed_files import sealed, unsealed

FORMAT = "ticketry.shrink.1"

_ATTRIBUTE = re.compile(r"[A-Za-z]\w*(\.\d+)?")
"""An attribute of a module that a plan may set: a number, or `name.i`, one of several in a list or tuple."""

Kept = dict[str, dict[int, tuple[int, ...]]]


@dataclass(frozen=True)
class ShrinkPlan:
    """Which indices of which dimensions of which tensors stay.

    Attributes:
        shapes: name of each parameter and buffer that gets smaller -> its shape before.
        kept: name -> dimension -> indices that stay, ascending.
        attributes: name of a module -> attribute that counts channels, `name.i` for entry i of one -> its value
            afterwards.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> mask = tk.structure.channels(model, torch.randn(2, 4), density=0.5)
        >>> plan = tk.structure.shrink_plan(model, mask, torch.randn(2, 4))
        >>> plan.shapes["0.weight"], plan.shape("0.weight"), plan.removed
        ((8, 4), (4, 4), 28)
        >>> part = plan.cut("0.weight", model[0].weight.detach())
        >>> plan.expand("0.weight", part, into=torch.zeros(8, 4)).count_nonzero()
        tensor(16)
        >>> again = tk.structure.ShrinkPlan.load(plan.save("plan.safetensors"))
        >>> again == plan, tk.structure.ShrinkPlan.from_bytes(plan.to_bytes()) == plan
        (True, True)
    """

    shapes: Mapping[str, tuple[int, ...]]
    kept: Mapping[str, Mapping[int, tuple[int, ...]]]
    attributes: Mapping[str, Mapping[str, int]]

    def cut(self, name: str, tensor: Tensor) -> Tensor:
        """The part that stays of a tensor shaped like the parameter or buffer called `name`."""
        for dim, indices in self.kept.get(name, {}).items():
            tensor = tensor.index_select(dim, torch.tensor(indices, device=tensor.device))
        return tensor.contiguous()

    def expand(self, name: str, part: Tensor, into: Tensor) -> Tensor:
        """The inverse of `cut`: a copy of `into`, in the shape before, with `part` in the places that stay.

        Args:
            into: on the device of `part`; what it has in the places that go is kept.
        """
        return _put(into, part, list(self.kept.get(name, {}).items()))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape afterwards."""
        kept = self.kept.get(name, {})
        return tuple(len(kept[dim]) if dim in kept else size for dim, size in enumerate(self.shapes[name]))

    @property
    def removed(self) -> int:
        """Elements of parameters and buffers that go."""
        return sum(prod(shape) - prod(self.shape(name)) for name, shape in self.shapes.items())

    # -- a file --------------------------------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """One safetensors file: the indices as tensors, the rest as JSON in its header."""
        tensors = {
            f"{name}:{dim}": torch.tensor(indices, dtype=torch.int64)
            for name, dims in self.kept.items()
            for dim, indices in dims.items()
        }
        text = json.dumps({"shapes": self.shapes, "attributes": self.attributes}, sort_keys=True)
        return bytes(safetensors_save(tensors, metadata={FORMAT: text}))

    @classmethod
    def from_bytes(cls, data: bytes, where: object = "this") -> ShrinkPlan:
        """The inverse of `to_bytes`; no pickle is involved.

        Args:
            data: what `to_bytes` gave.
            where: what it is called in errors.

        Raises:
            StructureError: if it is damaged or no plan, named as `where`.
        """
        try:
            tensors = safetensors_load(data)
            text = parse_json(read_metadata(data)[FORMAT])
            shapes = {str(name): tuple(map(_count, shape)) for name, shape in text["shapes"].items()}
            attributes = {
                str(module): {_attribute(name): _count(value) for name, value in values.items()}
                for module, values in text["attributes"].items()
            }
            kept: Kept = {}
            for key, indices in tensors.items():
                name, _, dim = key.rpartition(":")
                kept.setdefault(name, {})[int(dim)] = _indices(indices, shapes[name][int(dim)])
        except (SafetensorError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise StructureError(f"{where} is no plan of the format {FORMAT}: {str(error)[:120]}") from None
        return cls(shapes, {name: dict(sorted(dims.items())) for name, dims in sorted(kept.items())}, attributes)

    def save(self, path: str | Path) -> Path:
        """Write the plan to a file, see `to_bytes`.

        Args:
            path: the file; it is replaced if it is there.

        Raises:
            StructureError: if it cannot be written.
        """
        path = Path(path)
        try:
            write_atomically(path, sealed(self.to_bytes()), parents=False)
        except OSError as error:
            raise StructureError(f"the plan cannot be written to {path}: {error.strerror}") from None
        return path

    @classmethod
    def load(cls, path: str | Path) -> ShrinkPlan:
        """Read a plan that `save` wrote; no pickle is involved.

        Args:
            path: the file.

        Raises:
            StructureError: if the file is absent, damaged or no plan.
        """
        try:
            data = content_of(Path(path))
        except OSError as error:
            raise StructureError(f"the plan {path} cannot be read: {error.strerror}") from None
        try:
            return cls.from_bytes(unsealed(data, required=False), path)
        except (ValueError, AttributeError, RecursionError) as error:
            raise StructureError(f"{path} is no plan of the format {FORMAT}: {str(error)[:120]}") from None


def _put(into: Tensor, part: Tensor, places: list[tuple[int, tuple[int, ...]]]) -> Tensor:
    if not places:
        return part.clone()
    (dim, indices), *others = places
    index = torch.tensor(indices, device=into.device)
    return into.index_copy(dim, index, _put(into.index_select(dim, index), part, others))


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no number of channels")
    return value


def _attribute(name: str) -> str:
    if not _ATTRIBUTE.fullmatch(name):
        raise ValueError(f"{name!r} is no attribute that a plan may set")
    return name


def _indices(tensor: Tensor, size: int) -> tuple[int, ...]:
    if tensor.dtype != torch.int64 or tensor.dim() != 1 or not len(tensor):
        raise ValueError("indices must be whole numbers in a row")
    values = tensor.tolist()
    rising = all(one < other for one, other in pairwise(values))
    if not rising or not 0 <= values[0] <= values[-1] < size:
        raise ValueError("indices must be rising and within the tensor")
    return tuple(values)


# -- applied ----------------------------------------------------------------------------------------------------------


@entry_point(Need(values=False))
def rebuild(model: nn.Module, plan: ShrinkPlan) -> nn.Module:
    """A copy of `model` with only what the plan keeps: parameters, buffers, and the sizes that modules know.

    Parameters keep their type, device, `requires_grad` and ties; gradients are left behind. `model` is not changed. A
    new model of the same class will do as well, if the weights of the smaller one are loaded afterwards.

    Args:
        model: that the plan was made of, or another of its class.
        plan: of `shrink_plan`.

    Raises:
        UsageError: if `plan` is no plan.
        StructureError: if `model` lacks a tensor of the plan, or has it in another shape.

    Examples:
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> mask = tk.structure.channels(model, torch.randn(2, 4), density=0.5)
        >>> plan = tk.structure.shrink_plan(model, mask, torch.randn(2, 4))
        >>> tk.structure.rebuild(model, plan)
        Sequential(
          (0): Linear(in_features=4, out_features=4, bias=True)
          (1): ReLU()
          (2): Linear(in_features=4, out_features=2, bias=True)
        )
    """
    require_plan(plan)
    inner = unwrapped(model)
    return resized(copied(inner, cut_tensors(inner, plan)), plan)


def require_plan(plan: object) -> None:
    """Make sure that what is given as a plan is one; `UsageError` says how to make one."""
    if not isinstance(plan, ShrinkPlan):
        raise UsageError(
            f"plan= is a tk.structure.ShrinkPlan, not a {type(plan).__name__}: tk.structure.shrink_plan(model, mask,"
            " example_inputs) makes one"
        )


def cut_tensors(model: nn.Module, plan: ShrinkPlan) -> dict[int, Tensor]:
    """`id` of each parameter and buffer that gets smaller -> what the plan keeps of it."""
    places = list(_places(model))
    tensors = dict(places)
    for name, shape in plan.shapes.items():
        if name not in tensors or tuple(tensors[name].shape) != tuple(shape):
            has = tuple(tensors[name].shape) if name in tensors else "none"
            question = did_you_mean(name, tensors).strip() if name not in tensors else ""
            raise StructureError(
                f"the plan is another model's: its {name!r} has the shape {shape}, the model's {has}"
                + (f"; {question}" if question else "")
            )
    first_name: dict[int, str] = {}
    for name, tensor in places:
        first_name.setdefault(id(tensor), name)
    return {id(tensors[name]): _cut(plan, name, tensors[name]) for name in first_name.values() if name in plan.kept}


def resized(small: nn.Module, plan: ShrinkPlan) -> nn.Module:
    """Tell the modules of a model whose tensors are cut of their new sizes."""
    modules = {module_name(name): module for name, module in small.named_modules(remove_duplicate=False)}
    for name, values in plan.attributes.items():
        if name not in modules:
            raise StructureError(f"the plan is another model's: it has the module {name!r}")
        for attribute, value in values.items():
            _set_number(name, modules[name], attribute, value)
    for module in small.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
    return small


def read_number(module: nn.Module, attribute: str) -> int | None:
    """The number that a module has as an attribute, or as an entry of one: `name.i`. None if that is no number."""
    name, _, index = attribute.partition(".")
    value: Any = getattr(module, name, None)
    if index:
        several = value if type(value) in (list, tuple) else ()
        value = several[int(index)] if int(index) < len(several) else None
    return value if type(value) is int else None


def _set_number(where: str, module: nn.Module, attribute: str, number: int) -> None:
    if read_number(module, attribute) is None:
        raise StructureError(f"the plan is another model's: it has a number {attribute!r} of the module {where!r}")
    name, _, index = attribute.partition(".")
    if not index:
        setattr(module, name, number)
        return
    several = list(getattr(module, name))
    several[int(index)] = number
    setattr(module, name, type(getattr(module, name))(several))


def _places(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every parameter and buffer, a shared one at each of its places."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        for local, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                yield normal_name(f"{prefix}.{local}" if prefix else local), tensor


def module_name(name: str) -> str:
    """A module's name without what wrappers add."""
    return normal_name(f"{name}.weight")[: -len(".weight")] if name else ""


def _cut(plan: ShrinkPlan, name: str, tensor: Tensor) -> Tensor:
    part = plan.cut(name, tensor.detach())
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous():
        part = part.contiguous(memory_format=torch.channels_last)
    return part
