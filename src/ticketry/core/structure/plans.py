"""Plans, which list the indices that a smaller model retains of each tensor, and masks of channels."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ticketry.choices import did_you_mean
from ticketry.core.computed_weights import computed_weights
from ticketry.core.mask import Mask, read_metadata
from ticketry.core.scope import is_transposed_linear, name_without_wrappers, named_parameters, unwrapped
from ticketry.core.structure.coupling import ChannelGroup, Structure
from ticketry.core.structure.model_copies import copy_module
from ticketry.errors import StructureError, UsageError
from ticketry.files import parse_json, read_bytes, write_atomically
from ticketry_engine.support.entry_points import Need, entry_point
from ticketry_engine.support.files import append_digest, verify_and_strip_digest

FORMAT = "ticketry.shrink.1"

_ATTRIBUTE = re.compile(r"[A-Za-z]\w*(\.\d+)?")
"""Name of a module attribute that a plan may set: `name` for a number, `name.i` for entry i of a list or tuple."""

Kept = dict[str, dict[int, tuple[int, ...]]]


@dataclass(frozen=True)
class ShrinkPlan:
    """Lists the indices that a smaller model retains of each dimension of each tensor.

    Attributes:
        shapes: name of each parameter and buffer that becomes smaller -> its shape in the larger model.
        kept: name of the parameter or buffer -> dimension -> retained indices, ascending.
        attributes: name of a module -> attribute that counts channels -> value of the attribute in the smaller model.
            `name.i` stands for entry i of a list or tuple.

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
        """Return the part that the smaller model retains of `tensor`, which is shaped like the parameter `name`."""
        for dim, indices in self.kept.get(name, {}).items():
            tensor = tensor.index_select(dim, torch.tensor(indices, device=tensor.device))
        return tensor.contiguous()

    def expand(self, name: str, part: Tensor, into: Tensor) -> Tensor:
        """Return a copy of `into` with `part` written to the retained indices: the inverse of `cut`.

        Args:
            name: name of the parameter or buffer.
            part: the retained part of the tensor.
            into: tensor in the shape that the larger model has, on the device of `part`.
        """
        return _insert_part(into, part, list(self.kept.get(name, {}).items()))

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the parameter or buffer `name` in the smaller model."""
        kept = self.kept.get(name, {})
        return tuple(len(kept[dim]) if dim in kept else size for dim, size in enumerate(self.shapes[name]))

    @property
    def removed(self) -> int:
        """Number of elements that are removed from all parameters and buffers together."""
        return sum(prod(shape) - prod(self.shape(name)) for name, shape in self.shapes.items())

    # -- a file --------------------------------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """Return the plan as the bytes of a safetensors file: indices as tensors, the rest as JSON in the header."""
        tensors = {
            f"{name}:{dim}": torch.tensor(indices, dtype=torch.int64)
            for name, dims in self.kept.items()
            for dim, indices in dims.items()
        }
        text = json.dumps({"shapes": self.shapes, "attributes": self.attributes}, sort_keys=True)
        return bytes(safetensors_save(tensors, metadata={FORMAT: text}))

    @classmethod
    def from_bytes(cls, data: bytes, where: object = "this") -> ShrinkPlan:
        """Read a plan from the bytes that `to_bytes` returned; pickle is not used.

        Args:
            data: the bytes.
            where: what error messages call the data, such as a path.

        Raises:
            StructureError: if the data is damaged, or is not a plan.
        """
        try:
            tensors = safetensors_load(data)
            text = parse_json(read_metadata(data)[FORMAT])
            shapes = {str(name): tuple(map(_check_count, shape)) for name, shape in text["shapes"].items()}
            attributes = {
                str(module): {_check_attribute(name): _check_count(value) for name, value in values.items()}
                for module, values in text["attributes"].items()
            }
            kept: Kept = {}
            for key, indices in tensors.items():
                name, _, dim = key.rpartition(":")
                kept.setdefault(name, {})[int(dim)] = _check_indices(indices, shapes[name][int(dim)])
        except (SafetensorError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise StructureError(f"{where} is no plan of the format {FORMAT}: {str(error)[:120]}") from None
        return cls(shapes, {name: dict(sorted(dims.items())) for name, dims in sorted(kept.items())}, attributes)

    def save(self, path: str | Path) -> Path:
        """Write the plan to a file in the format of `to_bytes`, and return the path.

        Args:
            path: path of the file; an existing file is replaced.

        Raises:
            StructureError: if the file cannot be written.
        """
        path = Path(path)
        try:
            write_atomically(path, append_digest(self.to_bytes()), parents=False)
        except OSError as error:
            raise StructureError(f"the plan cannot be written to {path}: {error.strerror}") from None
        return path

    @classmethod
    def load(cls, path: str | Path) -> ShrinkPlan:
        """Read a plan from a file that `save` wrote; pickle is not used.

        Args:
            path: path of the file.

        Raises:
            StructureError: if the file is missing, is damaged or is not a plan.
        """
        try:
            data = read_bytes(Path(path))
        except OSError as error:
            raise StructureError(f"the plan {path} cannot be read: {error.strerror}") from None
        try:
            return cls.from_bytes(verify_and_strip_digest(data, required=False), path)
        except (ValueError, AttributeError, RecursionError) as error:
            raise StructureError(f"{path} is no plan of the format {FORMAT}: {str(error)[:120]}") from None


def _insert_part(into: Tensor, part: Tensor, places: list[tuple[int, tuple[int, ...]]]) -> Tensor:
    if not places:
        return part.clone()
    (dim, indices), *others = places
    index = torch.tensor(indices, device=into.device)
    return into.index_copy(dim, index, _insert_part(into.index_select(dim, index), part, others))


def _check_count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no number of channels")
    return value


def _check_attribute(name: str) -> str:
    if not _ATTRIBUTE.fullmatch(name):
        raise ValueError(f"{name!r} is no attribute that a plan may set")
    return name


def _check_indices(tensor: Tensor, size: int) -> tuple[int, ...]:
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
    """Return a smaller copy of `model` that has the tensor shapes and module sizes listed in a plan.

    Parameters keep their type, device, `requires_grad` and ties, but not their gradients. `model` is not changed. To
    load the saved weights of a smaller model, first rebuild a new model of the same class, then load them into the
    result.

    Args:
        model: the model that the plan was made for, or another model of the same class.
        plan: a plan from `shrink_plan`.

    Raises:
        UsageError: if `plan` is not a plan.
        StructureError: if `model` lacks a tensor that the plan names, or the tensor has another shape.

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
    return set_module_sizes(copy_module(inner, cut_model_tensors(inner, plan)), plan)


def require_plan(plan: object) -> None:
    if not isinstance(plan, ShrinkPlan):
        raise UsageError(
            f"plan= is a tk.structure.ShrinkPlan, not a {type(plan).__name__}: tk.structure.shrink_plan(model, mask,"
            " example_inputs) makes one"
        )


def cut_model_tensors(model: nn.Module, plan: ShrinkPlan) -> dict[int, Tensor]:
    """Return the retained part of each parameter and buffer that becomes smaller, by the `id` of the tensor."""
    places = [  # a shared tensor under each of its names
        (name_without_wrappers(f"{prefix}.{local}" if prefix else local), tensor)
        for prefix, module in model.named_modules(remove_duplicate=False)
        for local, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    ]
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
    found = {}
    for name in first_name.values():
        if name in plan.kept:
            whole, part = tensors[name], plan.cut(name, tensors[name].detach())
            if (
                whole.dim() == 4
                and whole.is_contiguous(memory_format=torch.channels_last)
                and not whole.is_contiguous()
            ):
                part = part.contiguous(memory_format=torch.channels_last)
            found[id(whole)] = part
    return found


def set_module_sizes(small: nn.Module, plan: ShrinkPlan) -> nn.Module:
    """Set the sizes that modules store, such as `out_features`, in a model with cut tensors; return the model."""
    modules = {normal_module_name(name): module for name, module in small.named_modules(remove_duplicate=False)}
    for name, values in plan.attributes.items():
        if name not in modules:
            raise StructureError(f"the plan is another model's: it has the module {name!r}")
        for attribute, value in values.items():
            _set_int_attribute(name, modules[name], attribute, value)
    for module in small.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
    return small


def get_int_attribute(module: nn.Module, attribute: str) -> int | None:
    """Return the value of a module attribute, or of entry i of a list (`name.i`); None if it is no integer."""
    name, _, index = attribute.partition(".")
    value: Any = getattr(module, name, None)
    if index:
        several = value if type(value) in (list, tuple) else ()
        value = several[int(index)] if int(index) < len(several) else None
    return value if type(value) is int else None


def _set_int_attribute(where: str, module: nn.Module, attribute: str, number: int) -> None:
    if get_int_attribute(module, attribute) is None:
        raise StructureError(f"the plan is another model's: it has a number {attribute!r} of the module {where!r}")
    name, _, index = attribute.partition(".")
    if not index:
        setattr(module, name, number)
        return
    several = list(getattr(module, name))
    several[int(index)] = number
    setattr(module, name, type(getattr(module, name))(several))


def normal_module_name(name: str) -> str:
    """Return the name of a module without the prefixes that wrappers such as `torch.compile` add."""
    return name_without_wrappers(f"{name}.weight")[: -len(".weight")] if name else ""


Flags = NDArray[np.bool_]

Removed = Mapping[int, Flags]
"""Index of a channel group -> whether each channel of the group is removed."""


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by normalised name; a shared tensor is contained under its first name only."""
    inner = unwrapped(model)
    buffers = {name_without_wrappers(name): buffer for name, buffer in inner.named_buffers()}
    return {**named_parameters(inner), **buffers}


def named_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}


def flag_retained_indices(
    structure: Structure, shapes: Mapping[str, tuple[int, ...]], removed: Removed
) -> dict[tuple[str, int], Flags]:
    """Return, by (parameter, dimension), which indices are retained, for all dimensions that lose an index."""
    kept: dict[tuple[str, int], Flags] = {}
    for position, flags in removed.items():
        for member in structure.groups[position].members if flags.any() else ():
            stays = kept.setdefault((member.name, member.dim), np.ones(shapes[member.name][member.dim], dtype=bool))
            stays[member.array[flags]] = False
    return kept


def build_channel_mask(
    names: Iterable[str], structure: Structure, shapes: Mapping[str, tuple[int, ...]], removed: Removed
) -> Mask:
    """Return the mask that removes all elements of the tensors `names` at indices of removed channels."""
    kept, tensors = flag_retained_indices(structure, shapes, removed), {}
    for name in names:
        mask = torch.ones(shapes[name], dtype=torch.bool)
        for dim in range(len(shapes[name])):
            if (name, dim) in kept:
                flags = torch.from_numpy(kept[name, dim])
                mask &= flags.reshape([-1 if d == dim else 1 for d in range(mask.dim())])
        tensors[name] = mask
    return Mask(tensors)


# -- sizes stored in modules -------------------------------------------------------------------------------------------


class ModelSizes:
    """A model's tensors and the modules that store their sizes, collected once for many plans."""

    def __init__(self, model: nn.Module) -> None:
        inner = unwrapped(model)
        self.tensors = named_tensors(inner)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        self.modules = list(inner.named_modules())
        self._first_names = {id(tensor): name for name, tensor in self.tensors.items()}
        self._behind: dict[tuple[int, str], Tensor] = {}
        """(`id` of a module, local name of a computed weight) -> the parameter that has the shape of this weight."""
        for computed in computed_weights(inner):
            like = [one for one in computed.originals if one.shape == computed.value().shape]
            self._behind |= {(id(computed.module), computed.local): one for one in like}

    def build_plan(self, structure: Structure, removed: Removed) -> ShrinkPlan:
        """Return the plan that removes the channels flagged in `removed`."""
        kept: Kept = {}
        for (name, dim), stay in sorted(flag_retained_indices(structure, self.shapes, removed).items()):
            kept.setdefault(name, {})[dim] = tuple(np.flatnonzero(stay).tolist())
        plan = ShrinkPlan({name: self.shapes[name] for name in kept}, kept, {})
        return ShrinkPlan(plan.shapes, kept, self._changed_attributes(structure, removed, plan))

    def _changed_attributes(
        self, structure: Structure, removed: Removed, plan: ShrinkPlan
    ) -> dict[str, dict[str, int]]:
        """Return the new values of all module attributes that change, by module name and attribute."""
        counted: dict[str, dict[str, int]] = {}
        for entry in structure.counted:
            stays = [unit is None or unit[0] not in removed or not removed[unit[0]][unit[1]] for unit in entry.units]
            counted.setdefault(entry.module, {})[entry.attribute] = sum(stays)
        changed: dict[str, dict[str, int]] = {}
        for name, module in self.modules:

            def shape_after_pruning(local: str, module: nn.Module = module) -> tuple[int, ...]:
                computed = self._behind.get((id(module), local), module._parameters.get(f"{local}_orig"))
                tensor: Tensor = getattr(module, local) if computed is None else computed
                first = self._first_names.get(id(tensor), "")
                return plan.shape(first) if first in plan.shapes else tuple(tensor.shape)

            values = _sizes_of_module(module, shape_after_pruning, counted.get(name, {}))
            new = {key: value for key, value in values.items() if get_int_attribute(module, key) not in (None, value)}
            if new:
                changed[normal_module_name(name)] = new
        return changed


def _sizes_of_module(
    module: nn.Module, shape: Callable[[str], tuple[int, ...]], counted: dict[str, int]
) -> dict[str, int]:
    if isinstance(module, _ConvNd):
        (rows, columns), groups = shape("weight")[:2], counted.get("groups", module.groups)
        inputs, outputs = (rows, columns * groups) if module.transposed else (columns * groups, rows)
        return {**counted, "in_channels": inputs, "out_channels": outputs}
    if isinstance(module, nn.Linear):
        outputs, inputs = shape("weight")
        return {"in_features": inputs, "out_features": outputs}
    if isinstance(module, nn.Bilinear):
        outputs, one, other = shape("weight")
        return {"in1_features": one, "in2_features": other, "out_features": outputs}
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return {"embedding_dim": shape("weight")[1]}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": shape("weight")[0]}
    if isinstance(module, nn.RNNBase):
        gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
        sizes = {"input_size": shape("weight_ih_l0")[1], "hidden_size": shape("weight_ih_l0")[0] // gates}
        return {**sizes, "proj_size": shape("weight_hr_l0")[0]} if module.proj_size else sizes
    if isinstance(module, nn.RNNCellBase):
        return {"input_size": shape("weight_ih")[1], "hidden_size": shape("weight_hh")[1]}
    if is_transposed_linear(module):
        return {"nx": shape("weight")[0], "nf": shape("weight")[1]}
    return counted


# -- from a mask ------------------------------------------------------------------------------------------------------


def flag_removed_channels(group: ChannelGroup, removed_indices: Mapping[tuple[str, int], Flags]) -> Flags:
    """Return, for each channel of a group, whether a mask removes the channel from every parameter."""
    gone = np.ones(group.size, dtype=bool)
    for member in group.parameters:
        flags = removed_indices.get((member.name, member.dim))
        gone &= False if flags is None else flags[member.array].all(axis=1)
    return gone


def flag_removed_indices(mask: Mapping[str, Tensor]) -> dict[tuple[str, int], Flags]:
    """Return, by (parameter, dimension), flags of the indices at which the mask removes all weights."""
    found = {}
    for name, tensor in mask.items():
        for dim in range(tensor.dim()):
            others = [d for d in range(tensor.dim()) if d != dim]
            alive = tensor.cpu().any(dim=others) if others else tensor.cpu()
            found[name, dim] = ~alive.numpy()
    return found
