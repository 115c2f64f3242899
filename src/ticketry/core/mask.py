"""A mask is data: parameter name -> boolean tensor, True = kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from ticketry.choices import describe_name_difference, require_name
from ticketry.core.computed_weights import require_removed
from ticketry.core.devices.parts import part, part_like, put_back
from ticketry.core.html_tables import html_table
from ticketry.core.layer_density import LayerDensity, LayerTable
from ticketry.core.scope import Scope, matching_parameters, normal_name
from ticketry.errors import MaskError, ScopeError, UsageError
from ticketry_engine.support.entry_points import ARGUMENT_CHECKS, BY_NAME, Need, entry_point, writing_to
from ticketry_engine.support.seeds import generator


class Mask(Mapping[str, Tensor]):
    """A read-only mapping from parameter names to boolean tensors of the parameters' shapes, True = kept.

    Masks of the same tensors combine with ``&``, ``|``, ``^`` and ``~`` and compare with ``==``. Names are
    normalised, so that a mask made on a compiled or data-parallel model fits the plain one.

    Args:
        tensors: bool, or numbers 0 and 1.
        copy: whether the mask gets tensors of its own, so that it stays as it is when something is written to these.
            Without, boolean ones are taken as they are: for those that nobody else has.

    Raises:
        MaskError: if a tensor holds anything but 0 and 1, a name is no string or empty, or two names are one after
            normalising.

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
            short = normal_name(require_name(name, "the mask", MaskError))
            if short in checked:
                raise MaskError(f"two tensors of the mask are called {short!r}")
            with torch.inference_mode(False):  # a mask outlives the caller's mode
                checked[short] = _boolean(short, tensor, copy)
        if not checked:
            raise MaskError("a mask needs at least one tensor")
        if not sum(tensor.numel() for tensor in checked.values()):
            raise MaskError("a mask needs at least one element")
        self._tensors = MappingProxyType(checked)
        self._digest: str | None = None
        self._kept: int | None = None

    # -- made from a model ---------------------------------------------------------------------------------------

    @classmethod
    def ones(cls, shapes: Scope | Mapping[str, tuple[int, ...]]) -> Mask:
        """The mask that keeps everything in a scope (or in a mapping name -> shape).

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
        """name -> shape"""
        return {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}

    # -- counts --------------------------------------------------------------------------------------------------

    @property
    def kept(self) -> int:
        """Elements kept."""
        if self._kept is None:
            self._kept = sum(int(tensor.sum()) for tensor in self._tensors.values())
        return self._kept

    @property
    def total(self) -> int:
        """Elements in scope, the denominator of `density`."""
        return sum(tensor.numel() for tensor in self._tensors.values())

    @property
    def density(self) -> float:
        """Share of the scope that is kept."""
        return self.kept / self.total

    @property
    def sparsity(self) -> float:
        """Share of the scope that is removed."""
        return 1 - self.density

    def table(self) -> LayerTable:
        """Kept and total elements of each tensor, in order: values, which print as a table.

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
            LayerDensity(name, int(tensor.sum()), tensor.numel(), tuple(tensor.shape))
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
        """Whether everything that this mask keeps is kept by the other too."""
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
        """Share of the elements kept by this mask that the other keeps too; 0 if this mask keeps nothing."""
        kept = self.kept
        return (self & other).kept / kept if kept else 0.0

    def to(self, device: torch.device | str) -> Mask:
        """The mask with its tensors on `device`.

        Examples:
            >>> mask = tk.Mask.ones({"weight": (2, 3)}).to("cpu")
            >>> mask["weight"].device, mask.digest == tk.Mask.ones({"weight": (2, 3)}).digest
            (device(type='cpu'), True)
        """
        return Mask({name: tensor.to(device) for name, tensor in self._tensors.items()}, copy=False)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of names, shapes and bits: equal masks have equal digests, on any device."""
        if self._digest is None:
            bits, layout = pack(dict(sorted(self._tensors.items())))  # == does not ask for the order either
            self._digest = hashlib.sha256(layout.encode() + b"\0" + bits.numpy().tobytes()).hexdigest()
        return self._digest

    # -- a model's weights ---------------------------------------------------------------------------------------

    @entry_point(Need(python=False, floats=False))
    def apply_(self, model: nn.Module) -> nn.Module:
        """Set the removed weights of `model` to exactly 0, in place, and return it.

        Raises:
            MaskError: if the mask names a parameter that the model lacks or has in another shape, or one behind a
                computed weight (weight_norm, a parametrisation) that would not become 0.
        """
        put_back(model)
        parameters = self.parameters(model)
        require_removed(model, parameters, self)
        for name, parameter in parameters.items():
            own = part(parameter)
            with writing_to(own):
                own.masked_fill_(~part_like(self._tensors[name], parameter).to(own.device), 0)
        return model

    @entry_point(BY_NAME)
    def parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The masked parameters of `model`, by name; raises `MaskError` if the mask does not fit.

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
    """The mask with its elements permuted at random within each tensor: a control that keeps each layer's count.

    Every tensor gets a permutation of its own, drawn from a generator seeded by (seed, position of the tensor), so
    that two layers of one shape differ.
    """
    permuted = {}
    for index, (name, tensor) in enumerate(mask.items()):
        order = torch.randperm(tensor.numel(), generator=generator(seed, "shuffled", index))
        permuted[name] = tensor.cpu().flatten()[order].reshape(tensor.shape)
    return Mask(permuted, copy=False)


def require_mask(mask: object, name: str = "mask") -> None:
    """Make sure that what is given as the argument `name` is a mask; `UsageError` says how to make one."""
    if not isinstance(mask, Mask):
        raise UsageError(
            f"{name}= is a tk.Mask, not a {type(mask).__name__}: tk.prune(model, density=0.1) makes one, and"
            " tk.Mask({name: tensor, …}) makes one of tensors of 0 and 1 by the names of the model's parameters"
        )


def _check_mask(value: Mask, name: str, model: object) -> Mask:
    require_mask(value, name)
    return value


ARGUMENT_CHECKS.update(dict.fromkeys(("mask", "within", "at", "structured"), _check_mask))


def pack(tensors: Mapping[str, Tensor]) -> tuple[Tensor, str]:
    """Boolean tensors as (bits, layout): uint8 [ceil(total / 8)], the first in the lowest bit; JSON name -> shape."""
    flat = torch.cat([tensor.cpu().flatten() for tensor in tensors.values()])
    bits = torch.from_numpy(np.packbits(flat.numpy(), bitorder="little"))
    return bits, json.dumps({name: list(tensor.shape) for name, tensor in tensors.items()}, separators=(",", ":"))


def _boolean(name: str, tensor: Tensor, copy: bool) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise MaskError(f"mask {name!r}: a tensor is needed, not {type(tensor).__name__}")
    if tensor.dtype == torch.bool:
        return tensor.detach().clone() if copy or tensor.is_inference() else tensor.detach()
    as_bool = tensor.detach() == 1
    if not bool(torch.logical_or(as_bool, tensor.detach() == 0).all()):
        raise MaskError(f"mask {name!r} holds values other than 0 and 1")
    return as_bool
