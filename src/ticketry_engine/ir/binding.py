"""Binds a call's arguments to the inputs of a graph, checks tensors that kernels read, and builds a call's result."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import register_pytree_node

from ticketry_engine.errors import EngineError
from ticketry_engine.ir.graph import Graph
from ticketry_engine.ir.native import Json, dtype_name, short_repr
from ticketry_engine.support.process_state import ONE_AT_A_TIME


class OutputRecord(dict[str, Any]):
    """A dict with attribute access and indexing by position, returned in place of a model's own output class."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the output has no {name!r}; it has {list(self)}") from None

    def __getitem__(self, key: str | int | slice) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]


class Fields(tuple[Any, ...]):
    """A tuple with named entries, returned if the model returns a NamedTuple or a result such as `torch.max`."""

    _fields: tuple[str, ...]

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any]) -> Fields:
        made = cls(content.values())
        made._fields = tuple(content)
        return made

    def __getattr__(self, name: str) -> Any:
        fields = self.__dict__.get("_fields", ())
        if name not in fields:
            raise AttributeError(f"the output has no {name!r}; it has {list(fields)}")
        return self[fields.index(name)]

    def _asdict(self) -> dict[str, Any]:
        return dict(zip(self._fields, self, strict=True))

    def __reduce__(self) -> tuple[Any, ...]:
        return Fields.from_mapping, (self._asdict(),)


# Registered as pytrees, so that functions such as `tree_map` find the tensors in them.
register_pytree_node(
    OutputRecord,
    lambda made: (list(made.values()), list(made)),
    lambda values, names: OutputRecord(zip(names, values, strict=True)),
    serialized_type_name="ticketry.Record",
)
register_pytree_node(
    Fields,
    lambda made: (list(made), list(made._fields)),
    lambda values, names: Fields.from_mapping(dict(zip(names, values, strict=True))),
    serialized_type_name="ticketry.Fields",
)


def build_object(tree: Json, values: Mapping[str, Any]) -> Any:
    """Return the container that the JSON `tree` describes, with tensors from `values` by name.

    `tree` has the form of `Graph.outputs`: nested containers with names of tensors.
    """
    if isinstance(tree, str):
        return values[tree]
    ((kind, content),) = tree.items()
    if kind == "constant":
        return content
    if kind in ("tuple", "list"):
        parts = [build_object(part, values) for part in content]
        return parts if kind == "list" else tuple(parts)
    made = {key: build_object(part, values) for key, part in content.items()}
    if kind == "fields":
        return Fields.from_mapping(made)
    if kind == "numbered":
        return {int(key): part for key, part in made.items()}
    return made if kind == "dict" else OutputRecord(made)


class CallBinder:
    """Checks the arguments with which a graph is called, and returns them as tensors in the order of `Graph.inputs`."""

    def __init__(self, graph: Graph, device: str = "cpu") -> None:
        self._dispatch_keys = dense_dispatch_keys(device)
        self._inputs = graph.inputs
        inputs = [graph.values[name] for name in graph.inputs]
        self._checks = [
            (value.shape or (), getattr(torch, value.dtype), f"the input {value.name!r}") for value in inputs
        ]
        self._signature = graph.signature
        self._defaults = {} if graph.signature is None else graph.signature.get("defaults", {})
        self._fewest = 0 if graph.signature is None else graph.signature.get("fewest", 0)

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """Return the tensors for `Graph.inputs`, in order, from a call's positional and keyword arguments.

        Raise `EngineError` if arguments are missing or too many, if they differ in kind, shape or dtype from the
        captured ones, if batch sizes differ or are too small, or if torch.jit.trace is tracing the call.
        """
        if torch._C._get_tracing_state() is not None:
            raise EngineError("torch.jit.trace cannot see what a compiled model does: trace the model itself")
        found = self._tensors_by_name(args, kwargs)
        batch: int | None = None
        inputs = []
        for name, (shape, dtype, label) in zip(self._inputs, self._checks, strict=True):
            tensor = readable_tensor(found[name], label, self._dispatch_keys)
            given = tensor.shape
            dynamic = bool(shape) and shape[0] is None
            if len(given) != len(shape) or given[dynamic:] != shape[dynamic:] or tensor.dtype != dtype:
                raise EngineError(
                    f"{label} is {dtype_name(tensor.dtype)} {list(given)}, but the network was captured for"
                    f" {dtype_name(dtype)} {['batch' if size is None else size for size in shape]}: for others compile"
                    " the model with example inputs like them"
                )
            if dynamic:
                batch = given[0] if batch is None else batch
                if given[0] != batch:
                    raise EngineError(f"{label} has {given[0]} examples, another one {batch}")
                if batch < self._fewest:
                    raise EngineError(
                        f"{label} has {batch} example{'' if batch == 1 else 's'}, and the model does something else for"
                        f" one than for {self._fewest} and more, for which it was captured: capture it with example"
                        " inputs of one example for calls of one"
                    )
            inputs.append(tensor)
        return inputs

    def bind_examples(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
        """Check example inputs and return them as tensors in the order of `Graph.inputs`.

        The arguments are given as in a call of the model, or all in one tuple, list or dict, which is the only one in
        `args`.
        """
        given = args[0] if len(args) == 1 and not kwargs else None
        if isinstance(given, (tuple, list, Mapping)) and not self._resembles_first_argument(given):
            return self.bind((), given) if isinstance(given, Mapping) else self.bind(tuple(given), {})
        return self.bind(args, kwargs)

    def _resembles_first_argument(self, given: Any) -> bool:
        """Return whether the first argument of the captured call was a dict if `given` is one, else a sequence."""
        trees = [] if self._signature is None else self._signature["args"]
        kind = next(iter(trees[0])) if trees and isinstance(trees[0], dict) else ""
        return kind in (("dict", "record", "numbered") if isinstance(given, Mapping) else ("tuple", "list", "fields"))

    def _tensors_by_name(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        if self._signature is None:
            if kwargs or len(args) != len(self._inputs):
                raise EngineError(f"the network takes {len(self._inputs)} arguments by position")
            return dict(zip(self._inputs, args, strict=True))
        found: dict[str, Any] = {}
        trees, names = self._signature["args"], self._signature["names"]
        wanted = dict(self._signature["kwargs"])
        if len(args) > len(trees):
            raise EngineError(f"{len(args)} arguments by position are more than the {len(trees)} it was captured with")
        for tree, value in zip(trees, args, strict=False):
            _match_values_to_tree(tree, value, found)
        for name, tree in list(zip(names, trees, strict=False))[len(args) :]:
            wanted[name] = tree
        if len(args) < len(trees) and len(names) < len(trees):
            raise EngineError(f"{len(args)} arguments by position are fewer than the {len(trees)} it was captured with")
        for name, value in kwargs.items():
            if name not in wanted:
                self._check_default_argument(name, value)
                continue
            _match_values_to_tree(wanted.pop(name), value, found)
        for name, tree in wanted.items():
            if not (isinstance(tree, dict) and "constant" in tree):
                raise EngineError(
                    f"the argument {name!r} is missing: the model was captured with it; for calls without it compile"
                    " the model without it"
                )
            if name in self._defaults:
                raise EngineError(
                    f"the argument {name!r} is left out, but the model was captured with {tree['constant']!r}, which is"
                    " not its default: give it, or capture the model without it"
                )
        return found

    def _check_default_argument(self, name: str, value: Any) -> None:
        """Raise `EngineError` unless `value` is the default of the argument `name`, which the captured call omitted."""
        default = self._defaults.get(name, {"constant": None})
        if default is None or not equals_constant(default["constant"], value):
            raise EngineError(
                f"the argument {name!r} was not given when the model was captured: compile it with example inputs"
                f" that have it, tk.compile(model, mask, {{…, {name!r}: …}})"
            )


def equals_constant(constant: Any, value: Any) -> bool:
    """Return whether an argument equals a constant of a graph's signature; NaN counts as equal to NaN."""
    if isinstance(value, Tensor):
        return False
    both_nan = constant != constant and value != value
    return both_nan or value is constant or bool(value == constant)


def _match_values_to_tree(tree: Json, value: Any, found: dict[str, Any]) -> None:
    if isinstance(tree, str):
        found[tree] = value
        return
    ((kind, content),) = tree.items()
    if kind == "constant":
        if not equals_constant(content, value):
            raise EngineError(f"an argument is {short_repr(value)}, but the model was captured with {content!r}")
    elif kind in ("tuple", "list"):
        if not isinstance(value, (tuple, list)) or len(value) != len(content):
            raise EngineError(f"an argument is {type(value).__name__}, not {len(content)} values as when captured")
        for part, entry in zip(content, value, strict=True):
            _match_values_to_tree(part, entry, found)
    else:
        if kind == "fields" and isinstance(value, tuple):
            value = dict(zip(getattr(value, "_fields", ()), value, strict=False))
        if kind == "numbered":
            content = {int(key): part for key, part in content.items()}
        if not isinstance(value, Mapping) or set(value) != set(content):
            raise EngineError(
                f"an argument is {type(value).__name__}, not a mapping of {list(content)} as when captured"
            )
        for key, part in content.items():
            _match_values_to_tree(part, value[key], found)


# -- Checks that a tensor may be read by its address: dense, with its numbers in its own memory ------------------------

# A torch tensor may also be without data, on another device, sparse, a negated view, a wrapper of another tensor, or
# have freed memory. `readable_tensor` accepts tensors that kernels can read, and raises a specific error for others.
# Every address passed to a kernel comes from a tensor returned by `readable_tensor`, `require_float32` or `new_output`.


_TYPES = (Tensor, nn.Parameter)


def _dispatch_keys(tensor: Any) -> int:
    """Return the set of torch's dispatch keys of a tensor, as an integer with one bit per key."""
    return torch._C._dispatch_keys(tensor).raw_repr()


@functools.cache
def dense_dispatch_keys(device: str) -> frozenset[int]:
    """Return the dispatch keys of ordinary dense tensors on a device type, inside and outside inference mode."""
    found = []
    for inference in (False, True):
        with ONE_AT_A_TIME, torch.inference_mode(inference), _disable_current_modes():
            found.append(_dispatch_keys(torch.empty(0, dtype=torch.float32, device=device)))
    return frozenset(found)


_ON_CPU = dense_dispatch_keys("cpu")


def readable_tensor(value: object, name: str, keys: frozenset[int] = _ON_CPU) -> Tensor:
    """Return `value` as a tensor that kernels can read: itself, or a copy if it is a negated or conjugated view.

    Methods that a subclass of Tensor overrides are ignored. `name` names the object in error messages. `keys` are the
    accepted dispatch keys, from `dense_dispatch_keys`. Raise `EngineError` if kernels cannot read the tensor.
    """
    if type(value) not in _TYPES or _dispatch_keys(value) not in keys:
        value = _resolve_view(value, name, keys)
    tensor: Tensor = value  # type: ignore[assignment]
    _check_storage(tensor, name)
    return tensor if tensor.data_ptr() % tensor.itemsize == 0 else tensor.clone()


def require_float32(value: object, shape: Sequence[int], name: str) -> Tensor:
    """Return `value` as a tensor that kernels can read.

    Raise `EngineError` unless it is a float32 tensor on the CPU with the shape `shape`. `name` names it in messages.
    """
    tensor = readable_tensor(value, name)
    if tensor.dtype is not torch.float32 or tensor.shape != shape:
        raise EngineError(f"{name} is {tensor.dtype} {list(tensor.shape)}, but the kernels take float32 {list(shape)}")
    return tensor


def new_output(shape: Sequence[int]) -> Tensor:
    """Return a new float32 tensor on the CPU that kernels can write to, whatever torch's default dtype and device are.

    Raise `EngineError` if a torch mode such as FakeTensorMode is active, in which new tensors have no memory.
    """
    made = torch.empty(shape, dtype=torch.float32, device="cpu")
    if type(made) is not Tensor or _dispatch_keys(made) not in _ON_CPU:
        raise EngineError(
            "the engine cannot run in a mode of torch that makes other tensors than dense ones in the CPU's memory"
            " (FakeTensorMode, torch.func, functionalization): call it outside"
        )
    return made


def _resolve_view(value: object, name: str, keys: frozenset[int]) -> Tensor:
    if not isinstance(value, Tensor):
        raise EngineError(f"{name} has to be a tensor, not {type(value).__name__}")
    tensor = value
    with torch._C.DisableTorchFunctionSubclass():
        known = torch._C._dispatch_keys(tensor)
        if not known.has(torch._C.DispatchKey.Python):  # tensors implemented in Python have no data
            if type(tensor) not in _TYPES:
                tensor = tensor.as_subclass(Tensor)
            if known.has(torch._C.DispatchKey.Negative) or known.has(torch._C.DispatchKey.Conjugate):
                _check_storage(tensor, name)
                tensor = tensor.detach().resolve_neg().resolve_conj()
        if _dispatch_keys(tensor) in keys:
            return tensor
        raise EngineError(f"{name} {_describe_tensor(tensor)}: the engine reads dense tensors that lie in memory")


def _describe_tensor(tensor: Tensor) -> str:
    """Return the part of an error message that says why kernels cannot read a tensor."""
    if tensor.device.type == "meta":
        return "has no data (device meta)"
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        return "is wrapped by torch.func or torch.vmap"
    if tensor.is_nested:
        return "is nested (pad it)"
    if tensor.is_quantized:
        return "is quantized (.dequantize() it)"
    if tensor.layout is not torch.strided:
        return f"is of the layout {tensor.layout} (.to_dense() it)"
    if torch._C._dispatch_keys(tensor).has(torch._C.DispatchKey.Python):
        return f"is a {type(tensor).__name__}, which holds no numbers of its own"
    return f"is no plain tensor on {tensor.device}, or on another device than the model was compiled for"


def _check_storage(tensor: Tensor, name: str) -> None:
    """Raise `EngineError` unless the tensor's storage is large enough for the tensor's shape and strides."""
    count = tensor.numel()
    if not count:
        return
    if not tensor.is_contiguous():
        count = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    if (tensor.storage_offset() + count) * tensor.itemsize > tensor.untyped_storage().nbytes():
        raise EngineError(f"{name} has less memory than its shape says: its storage was freed or made smaller")
