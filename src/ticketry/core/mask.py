"""Masks (parameter name -> bool tensor, True = retained), and their file format with one bit per weight."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import prod
from types import MappingProxyType

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from safetensors.torch import save as safetensors_save
from torch import Tensor, nn

from ticketry.choices import describe_name_difference, require_name
from ticketry.core.computed_weights import require_computed_weights_are_removed
from ticketry.core.scope import Scope, matching_parameters, name_without_wrappers
from ticketry.core.sharding import local_shard, reshard, shard_like
from ticketry.core.tables import LayerDensity, LayerTable, html_table
from ticketry.errors import MaskError, ScopeError, UsageError
from ticketry.files import parse_json
from ticketry_engine.support.entry_points import ARGUMENT_CHECKS, BY_NAME, Need, allow_in_place_write, entry_point
from ticketry_engine.support.files import read_metadata as read_metadata
from ticketry_engine.support.seeds import generator


class Mask(Mapping[str, Tensor]):
    """A read-only mapping from parameter names to bool tensors in the parameters' shapes, True = retained.

    Masks of the same tensors are combined by ``&``, ``|``, ``^`` and ``~``, and compared by ``==`` and ``<=``. Names
    are normalised, so that a mask of a compiled or data-parallel model fits the original model.

    Args:
        tensors: parameter name -> tensor of bools, or of numbers 0 and 1.
        copy: whether to copy bool tensors, so that later writes to these tensors do not change the mask. Pass False
            only for tensors that are not used elsewhere.

    Raises:
        MaskError: if a tensor contains values other than 0 and 1, if a name is empty or not a string, or if two names
            are equal after normalising.

    Examples:
        >>> mask = tk.Mask({"weight": torch.tensor([[True, False, False, True], [True, True, False, False]])})
        >>> mask.kept, mask.total, mask.density, mask.sparsity
        (4, 8, 0.5, 0.5)
        >>> mask.shapes
        {'weight': (2, 4)}
        >>> (~mask)["weight"].int()
        tensor([[0, 1, 1, 0],
                [0, 0, 1, 1]], dtype=torch.int32)
        >>> mask.overlap(~mask), mask & mask == mask, mask <= mask | ~mask
        (0.0, True, True)
        >>> mask.apply_(nn.Linear(4, 2)).weight.count_nonzero()
        tensor(4)
    """

    __slots__ = ("_digest", "_kept", "_tensors")

    def __init__(self, tensors: Mapping[str, Tensor], *, copy: bool = True) -> None:
        checked: dict[str, Tensor] = {}
        if not isinstance(tensors, Mapping):
            raise MaskError(f"a mask is made of a mapping name -> tensor, not of a {type(tensors).__name__}")
        for name, tensor in tensors.items():
            short = name_without_wrappers(require_name(name, "the mask", MaskError))
            if short in checked:
                raise MaskError(f"two tensors of the mask are called {short!r}")
            with torch.inference_mode(False):  # a mask outlives the caller's mode
                checked[short] = _to_boolean(short, tensor, copy)
        if not checked:
            raise MaskError("a mask needs at least one tensor")
        if not sum(tensor.numel() for tensor in checked.values()):
            raise MaskError("a mask needs at least one element")
        self._tensors = MappingProxyType(checked)
        self._digest: str | None = None
        self._kept: int | None = None

    # -- constructors --------------------------------------------------------------------------------------------

    @classmethod
    def ones(cls, shapes: Scope | Mapping[str, tuple[int, ...]]) -> Mask:
        """Return the mask that retains every weight of a scope, or of the tensors in a mapping name -> shape.

        Examples:
            >>> mask = tk.Mask.ones({"weight": (2, 3)})
            >>> mask.density
            1.0
        """
        known = shapes.shapes if isinstance(shapes, Scope) else shapes
        return cls(
            {name: torch.ones(shape, dtype=torch.bool, device="cpu") for name, shape in known.items()}, copy=False
        )

    # -- a mapping -----------------------------------------------------------------------------------------------

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor, by parameter name."""
        return {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    # -- counts --------------------------------------------------------------------------------------------------

    @property
    def kept(self) -> int:
        """Number of retained elements."""
        if self._kept is None:
            self._kept = sum(int(tensor.sum()) for tensor in self._tensors.values())
        return self._kept

    @property
    def total(self) -> int:
        """Number of all elements, retained or removed; the denominator of `density`."""
        return sum(tensor.numel() for tensor in self._tensors.values())

    @property
    def density(self) -> float:
        """Fraction of all elements that the mask retains."""
        return self.kept / self.total

    @property
    def sparsity(self) -> float:
        """Fraction of all elements that the mask removes."""
        return 1 - self.density

    def table(self) -> LayerTable:
        """Return the numbers of retained elements and of all elements of each tensor; the result prints as a table.

        Examples:
            >>> mask = tk.Mask.ones({"0.weight": (4, 4), "1.weight": (1, 4)})
            >>> for layer in mask.table():
            ...     print(layer.name, layer.shape, layer.kept, layer.total)
            0.weight (4, 4) 16 16
            1.weight (1, 4) 4 4
            >>> print(mask.table())
            layer               shape        kept          of  density
            all layers                         20          20   1.0000
            0.weight              4x4          16          16   1.0000
            1.weight              1x4           4           4   1.0000
        """
        return LayerTable(
            LayerDensity(name, int(tensor.count_nonzero()), tensor.numel(), tuple(tensor.shape))
            for name, tensor in self._tensors.items()
        )

    # -- algebra -------------------------------------------------------------------------------------------------

    def __and__(self, other: Mask) -> Mask:
        return self._combine(other, torch.logical_and)

    def __or__(self, other: Mask) -> Mask:
        return self._combine(other, torch.logical_or)

    def __xor__(self, other: Mask) -> Mask:
        return self._combine(other, torch.logical_xor)

    def __invert__(self) -> Mask:
        return Mask({name: ~tensor for name, tensor in self._tensors.items()}, copy=False)

    def __le__(self, other: Mask) -> bool:
        """Return whether the mask `other` retains all elements that this mask retains."""
        return (self & ~other).kept == 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        return self.shapes == other.shapes and all(
            torch.equal(tensor.cpu(), other[name].cpu()) for name, tensor in self._tensors.items()
        )

    def __hash__(self) -> int:
        return hash(self.digest)

    def overlap(self, other: Mask) -> float:
        """Return the fraction of this mask's retained elements that `other` retains too; 0 for an empty mask."""
        kept = self.kept
        return (self & other).kept / kept if kept else 0.0

    def to(self, device: torch.device | str) -> Mask:
        """Return the mask with its tensors on `device`.

        Examples:
            >>> mask = tk.Mask.ones({"weight": (2, 3)}).to("cpu")
            >>> mask["weight"].device, mask.digest == tk.Mask.ones({"weight": (2, 3)}).digest
            (device(type='cpu'), True)
        """
        return Mask({name: tensor.to(device) for name, tensor in self._tensors.items()}, copy=False)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of names, shapes and bits; equal masks have equal digests, on any device."""
        if self._digest is None:
            bits, layout = pack_bits(dict(sorted(self._tensors.items())))  # == ignores the order too
            self._digest = hashlib.sha256(layout.encode() + b"\0" + bits.numpy().tobytes()).hexdigest()
        return self._digest

    # -- a model's weights ---------------------------------------------------------------------------------------

    @entry_point(Need(python=False, floats=False))
    def apply_(self, model: nn.Module) -> nn.Module:
        """Set the removed weights of `model` to exactly 0, in place, and return the model.

        Raises:
            MaskError: if the mask names a parameter that the model lacks or has in another shape, or if a weight
                computed from a masked parameter (weight_norm, a parametrisation) would not become 0.
        """
        reshard(model)
        parameters = self.parameters(model)
        require_computed_weights_are_removed(model, parameters, self)
        for name, parameter in parameters.items():
            own = local_shard(parameter)
            with allow_in_place_write(own):
                own.masked_fill_(~shard_like(self._tensors[name], parameter).to(own.device), 0)
        return model

    @entry_point(BY_NAME)
    def parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Return the parameters of `model` that the mask names, by name; raise `MaskError` if the mask does not fit.

        Examples:
            >>> model = nn.Linear(3, 2)
            >>> tk.prune(model, 0.5).parameters(model)["weight"] is model.weight
            True
        """
        try:
            return matching_parameters(model, self.shapes)
        except ScopeError as error:
            raise MaskError(f"the mask does not fit: {error}") from None

    def __repr__(self) -> str:
        return f"Mask({len(self)} tensors, {self.kept:,} of {self.total:,} kept, density {self.density:.4g})"

    def _repr_html_(self) -> str:
        rows = [(row.name, "x".join(map(str, row.shape)), row.kept, row.total, row.density) for row in self.table()]
        total = ("all layers", "", self.kept, self.total, self.density)
        return html_table("Mask", ("layer", "shape", "kept", "of", "density"), [total, *rows])

    def __reduce__(self) -> tuple[Callable[..., Mask], tuple[dict[str, Tensor]]]:
        return partial(Mask, copy=False), (dict(self._tensors),)

    def _combine(self, other: Mask, operation: Callable[[Tensor, Tensor], Tensor]) -> Mask:
        if not isinstance(other, Mask):
            return NotImplemented
        if self.shapes != other.shapes:
            different = sorted(set(self.shapes.items()) ^ set(other.shapes.items()))[0][0]
            names = describe_name_difference(other, self)
            more = f"; {names}" if names else ""
            raise MaskError(f"masks of different tensors cannot be combined: they differ in {different!r}{more}")
        combined = {name: operation(own, other[name].to(own.device)) for name, own in self._tensors.items()}
        return Mask(combined, copy=False)


def shuffled(mask: Mask, seed: int) -> Mask:
    """Return a mask whose elements are permuted at random within each tensor, so that each layer keeps its density.

    Each tensor has its own permutation, seeded by `seed` and the tensor's index, so that layers of equal shape differ.
    """
    permuted = {}
    for index, (name, tensor) in enumerate(mask.items()):
        order = torch.randperm(tensor.numel(), generator=generator(seed, "shuffled", index))
        permuted[name] = tensor.cpu().flatten()[order].reshape(tensor.shape)
    return Mask(permuted, copy=False)


def require_mask(mask: object, name: str = "mask") -> None:
    """Raise `UsageError` if `mask` is not a `Mask`; the message names the argument `name` and how to make a mask."""
    if not isinstance(mask, Mask):
        raise UsageError(
            f"{name}= is a tk.Mask, not a {type(mask).__name__}: tk.prune(model, density=0.1) makes one, and"
            " tk.Mask({name: tensor, …}) makes one of tensors of 0 and 1 by the names of the model's parameters"
        )


def _check_mask(value: Mask, name: str, model: object) -> Mask:
    require_mask(value, name)
    return value


ARGUMENT_CHECKS.update(dict.fromkeys(("mask", "within", "at", "structured"), _check_mask))


def pack_bits(tensors: Mapping[str, Tensor]) -> tuple[Tensor, str]:
    """Pack bool tensors into bits, and describe the tensors' shapes in JSON.

    Returns:
        A uint8 tensor [ceil(total / 8)] with the first element in the lowest bit, and a JSON object name -> shape.
    """
    flat = torch.cat([tensor.cpu().flatten() for tensor in tensors.values()])
    bits = torch.from_numpy(np.packbits(flat.numpy(), bitorder="little"))
    return bits, json.dumps({name: list(tensor.shape) for name, tensor in tensors.items()}, separators=(",", ":"))


def _to_boolean(name: str, tensor: Tensor, copy: bool) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise MaskError(f"mask {name!r}: a tensor is needed, not {type(tensor).__name__}")
    if tensor.dtype == torch.bool:
        return tensor.detach().clone() if copy or tensor.is_inference() else tensor.detach()
    as_bool = tensor.detach() == 1
    if not bool(torch.logical_or(as_bool, tensor.detach() == 0).all()):
        raise MaskError(f"mask {name!r} holds values other than 0 and 1")
    return as_bool


FORMAT = "ticketry.mask.1"
# Refuse a header that claims a tensor larger than any network's before memory is reserved for it.
_LARGEST = 1 << 40
_MOST_DIMENSIONS = 32


def unpack_bits(bits: Tensor, layout: str) -> Mask:
    """Return the mask, given the packed `bits` and the JSON text `layout` that `pack_bits` returned."""
    shapes = _parse_layout(layout)
    total = sum(prod(shape) for shape in shapes.values())
    if bits.dtype != torch.uint8 or bits.dim() != 1 or bits.numel() != (total + 7) // 8:
        raise MaskError(f"the mask's bits are {tuple(bits.shape)} {bits.dtype}, but its layout has {total} elements")
    flat = torch.from_numpy(np.unpackbits(bits.numpy(), count=total, bitorder="little").view(np.bool_))
    parts = torch.split(flat, [prod(shape) for shape in shapes.values()])
    tensors = {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
    return Mask(tensors, copy=False)


def to_bytes(mask: Mask) -> bytes:
    """Return the mask as the bytes of a safetensors file; equal masks give equal bytes."""
    bits, layout = pack_bits(mask)
    # A single metadata entry, because safetensors writes several in varying order.
    return bytes(safetensors_save({"bits": bits}, metadata={FORMAT: layout}))


def from_bytes(data: bytes) -> Mask:
    """Read a mask from the bytes of a safetensors file."""
    try:
        tensors = safetensors_load(data)
        metadata = read_metadata(data)
    except (SafetensorError, ValueError, TypeError, AttributeError, LookupError, RuntimeError) as error:
        raise MaskError(f"this is no mask file: {error}") from None
    if FORMAT not in metadata:
        raise MaskError(f"this is no mask file of the format {FORMAT}: its metadata has {sorted(metadata)[:4]}")
    if set(tensors) != {"bits"}:
        raise MaskError(f"a mask file holds one tensor, bits, not {sorted(tensors)}")
    return unpack_bits(tensors["bits"], metadata[FORMAT])


def _parse_layout(layout: str) -> dict[str, tuple[int, ...]]:
    try:
        shapes = parse_json(layout)
        found = {str(name): tuple(shape) for name, shape in shapes.items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise MaskError("the mask's layout is not a JSON object of shapes") from None
    for name, shape in found.items():
        sane = len(shape) <= _MOST_DIMENSIONS and all(type(size) is int and 0 <= size <= _LARGEST for size in shape)
        if not sane or prod(max(size, 1) for size in shape) > _LARGEST:
            raise MaskError(f"the mask's layout gives {name!r} the impossible shape {str(shape)[:80]}")
    return found
