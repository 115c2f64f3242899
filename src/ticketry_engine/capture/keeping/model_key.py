"""A digest of all that decides which graph a model is captured as, so that a kept graph may take a capture's place.

It covers the modules with their settings and the shapes of their tensors (not their values), the code that a call can
reach with the values it reads by name, and the inputs' shapes. Which code that is, is not known without running it; so
every method and global whose *name* occurs in code that is reached counts as reached. What cannot be told in this way
(`eval`, an object of another language, a hook) makes the model one without a key: it is captured anew each time.
"""

from __future__ import annotations

import builtins
import enum
import functools
import hashlib
import logging
import re
import sys
import types
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.utils._pytree import tree_flatten

from ticketry_engine.capture.keeping.known_code import is_known, occurs_in_file, replaced

_MOST = 20_000
"""Objects that are looked at: a model that reaches more is captured quicker than it is told apart."""

_LARGEST = 1 << 16
"""Elements of a tensor or array whose values count: one that is no weight, but a setting of a module."""

_PLAIN = (type(None), bool, int, str, bytes, complex, type(Ellipsis), type(NotImplemented))
_BY_REPR = (torch.dtype, torch.device, torch.memory_format, torch.layout, np.dtype, re.Pattern, range, slice)
_BY_NAME = (
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.GetSetDescriptorType,
)
_TYPING = (types.GenericAlias, types.UnionType)
_WRAPPED = (staticmethod, classmethod)
_UNREADABLE = frozenset(
    {
        *("eval", "exec", "globals", "locals", "vars", "__import__", "import_module", "environ", "getenv"),
        # Settings of torch beside those of `_state`: with another one a model may go another way.
        *("backends", "get_num_threads", "get_num_interop_threads", "get_float32_matmul_precision"),
    }
)
_BY_ANY_NAME = frozenset({"getattr", "hasattr", "attrgetter", "methodcaller", "__getattribute__"})
"""What code looks things up with by names that it may put together itself."""

_NOT_IN_A_CALL = frozenset(
    f"__{name}__"
    for name in (
        *(
            "init_subclass",
            "class_getitem",
            "repr",
            "str",
            "format",
            "setstate",
            "getstate",
            "reduce",
            "reduce_ex",
            "del",
        ),
        *("dir", "sizeof", "doc", "module", "dict", "weakref", "annotations", "slots", "qualname", "orig_bases"),
        *("firstlineno", "static_attributes", "abstractmethods", "parameters"),
    )
) | {"_abc_impl"}
_OWN_OF_MODULES = frozenset({"_parameters", "_buffers", "_modules"})


class UnknownError(Exception):
    """Something that a key cannot tell apart."""


def key_of(model: nn.Module, arguments: Any, *more: object) -> str:
    """The digest of a model's capture.

    Args:
        model: in the mode it is captured in.
        arguments: containers of tensors and plain values.
        more: plain values that the capture depends on besides.

    Raises:
        UnknownError: if the model holds or reaches what cannot be told apart.
    """
    if any(getattr(torch_module, name, None) for name in _GLOBAL_HOOKS):
        raise UnknownError("hooks on all modules")
    found = _Reader(model)
    leaves, tree = tree_flatten(arguments)
    here = [str(tree), *map(found.text, leaves), found.text(model), found.text(more), found.text(_state())]
    found.reach()
    whole = "\n".join([*here, *sorted(found.classes_told()), repr(sys.version_info), torch.__version__])
    return hashlib.blake2b(whole.encode(), digest_size=16).hexdigest()


_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_forward_hooks_always_called")


def _state() -> tuple[object, ...]:
    """What of torch's own state decides what a model does."""
    return (
        torch.get_default_dtype(),
        torch.is_autocast_enabled("cpu"),
        torch.are_deterministic_algorithms_enabled(),
        str(torch.get_default_device()),
        [replaced(one) for one in (torch, torch.nn.functional, Tensor)],
    )


class _Reader:
    """Reads objects as texts, the same for what is the same."""

    def __init__(self, model: nn.Module) -> None:
        self._weights = {id(one) for one in (*model.parameters(), *model.buffers())}
        self._numbers: dict[int, int] = {}
        self._alive: list[Any] = []
        """What has a number: an address must not be given again."""
        self._storages: dict[int, int] = {}
        self._names: set[str] = set()
        """Names that reached code looks up."""
        self._classes: dict[type, bool] = {}
        """Reached class -> whether instances of it are made."""
        self._members: dict[type, dict[str, str]] = {}

    # -- values --------------------------------------------------------------------------------------------------------

    def text(self, thing: Any) -> str:
        """What a thing is. Of an object that was read before, its number alone."""
        if type(thing) in _PLAIN:
            return f"{type(thing).__name__}:{thing!r}"
        if type(thing) is float:
            return f"float:{thing.hex()}"
        if isinstance(thing, _BY_REPR):
            return f"{type(thing).__name__}:{thing!r}"
        known = self._numbers.get(id(thing))
        if known is not None:
            return f"#{known}"
        if len(self._numbers) > _MOST:
            raise UnknownError("it reaches too much")
        self._numbers[id(thing)] = len(self._numbers)
        self._alive.append(thing)
        return self._object(thing)

    def _object(self, thing: Any) -> str:
        if isinstance(thing, Tensor):
            return self._tensor(thing)
        if isinstance(thing, nn.Module):
            return self._module(thing)
        if isinstance(thing, type):
            return self._class(thing, made=True)
        if type(thing).__module__ == "typing":
            return f"typing:{thing!r}"
        if isinstance(thing, types.ModuleType):
            return f"module:{thing.__name__}"
        for kinds, read in self._kinds():
            if isinstance(thing, kinds):
                return read(thing)
        return self._instance(thing)

    def _kinds(self) -> Iterator[tuple[tuple[type, ...], Callable[[Any], str]]]:
        yield (types.FunctionType,), self._function
        yield (enum.Enum,), self._member
        yield (types.MethodType,), lambda one: f"method:{self.text(one.__self__)}{self.text(one.__func__)}"
        yield _WRAPPED, lambda one: f"{type(one).__name__}:{self.text(one.__func__)}"
        yield (property,), lambda one: f"property:{self._parts([one.fget, one.fset])}"
        yield (functools.cached_property,), lambda one: f"cached:{self.text(one.func)}"
        yield (functools.partial,), lambda one: f"partial:{self._parts([one.func, one.args, one.keywords])}"
        yield (functools._lru_cache_wrapper,), lambda one: f"cached:{self.text(one.__wrapped__)}"
        yield (types.MemberDescriptorType,), lambda one: f"slot:{one.__name__}"
        yield _BY_NAME, self._built_in
        yield _TYPING, lambda one: f"typing:{one!r}"
        yield (torch._ops.OpOverload, torch._ops.OpOverloadPacket), lambda one: f"operation:{one}"
        yield (logging.Logger,), lambda one: f"logger:{one.name}"
        yield (np.ndarray, np.generic), self._array
        yield (weakref.ref,), lambda one: f"reference:{self.text(one())}"

    def _member(self, one: enum.Enum) -> str:
        """Of an enumeration. What it is made with, and what its class's `__init__` made of that."""
        self._reach_class(type(one), made=False)
        own = {name: value for name, value in vars(one).items() if name != "__objclass__"}
        return f"enum:{_title(type(one))}.{one.name}{{{self._attributes(own)}}}"

    def _built_in(self, one: Any) -> str:
        """A function in C, with the object that it is a method of."""
        bound = getattr(one, "__self__", None)
        return f"built in:{getattr(one, '__module__', '')}.{one.__qualname__}({self._setting(bound)})"

    def _parts(self, things: Any) -> str:
        return "(" + ",".join(self.text(one) for one in things) + ")"

    def _tensor(self, tensor: Tensor) -> str:
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
            raise UnknownError(f"a tensor of the type {type(tensor).__name__}")
        storage = tensor.untyped_storage().data_ptr() if tensor.device.type == "cpu" and tensor.numel() else 0
        place = self._storages.setdefault(storage, len(self._storages)) if storage else ""  # weights may share memory
        return f"tensor:{tensor.dtype}{tuple(tensor.shape)}{tensor.stride()}{tensor.device.type}@{place}"

    def _with_values(self, tensor: Tensor) -> str:
        """A tensor that is no weight: its values may be settings."""
        if tensor.device.type != "cpu" or tensor.numel() > _LARGEST:
            raise UnknownError("a large tensor that is no weight")
        content = tensor.detach().contiguous().flatten().view(torch.uint8) if tensor.numel() else tensor
        return self._tensor(tensor) + hashlib.blake2b(content.numpy().tobytes(), digest_size=16).hexdigest()

    def _array(self, array: Any) -> str:
        whole = np.asarray(array)
        if whole.dtype == object or whole.size > _LARGEST:
            raise UnknownError("a large array")
        digest = hashlib.blake2b(np.ascontiguousarray(whole).tobytes(), digest_size=16).hexdigest()
        return f"array:{whole.dtype}{whole.shape}{digest}"

    def _module(self, module: nn.Module) -> str:
        self._reach_class(type(module), made=False)
        rest = {name: value for name, value in vars(module).items() if name not in _OWN_OF_MODULES}
        for name, value in rest.items():
            if name.endswith("_hooks") and value and not name.startswith(("_state_dict", "_load_state_dict")):
                raise UnknownError(f"a hook of {type(module).__name__}")
        weights = [(name, one) for part in (module._parameters, module._buffers) for name, one in part.items()]
        told = [f"{name}={self.text(one)}" for name, one in weights]
        told += [f"{name}={self.text(one)}" for name, one in module._modules.items()]
        return f"{_title(type(module))}[{';'.join(told)}|{self._attributes(rest)}]"

    def _attributes(self, found: Mapping[str, Any]) -> str:
        return ";".join(f"{name}={self._setting(value)}" for name, value in sorted(found.items()))

    def _setting(self, value: Any) -> str:
        setting = isinstance(value, Tensor) and id(value) not in self._weights
        return self._with_values(value) if setting else self.text(value)

    def _instance(self, thing: Any) -> str:
        """A container, or an object of a class in Python."""
        kind = type(thing)
        told = [_title(kind)]
        if isinstance(thing, Mapping):
            told += [f"{self.text(key)}:{self._setting(value)}" for key, value in thing.items()]
        elif isinstance(thing, (tuple, list)):
            told += [self._setting(one) for one in thing]
        elif isinstance(thing, (set, frozenset)):
            told += sorted(self.text(one) for one in thing)
        elif isinstance(thing, (int, float, str)):
            told.append(repr(thing))
        elif not _is_readable(kind, thing):
            raise UnknownError(f"an object of the type {_title(kind)}")
        if not is_known(kind):
            self._reach_class(kind, made=False)
        slots = {name: getattr(thing, name) for one in kind.__mro__ for name in _slots(one) if hasattr(thing, name)}
        return f"{','.join(told)}{{{self._attributes({**slots, **getattr(thing, '__dict__', {})})}}}"

    # -- code ----------------------------------------------------------------------------------------------------------

    def _class(self, kind: type, *, made: bool) -> str:
        self._reach_class(kind, made=made)
        members = [*kind.__members__.values()] if issubclass(kind, enum.Enum) else []  # found by value, or by turns
        return f"class:{_title(kind)}{self._parts(members)}"

    def _reach_class(self, kind: type, *, made: bool) -> None:
        metaclass: type = type(kind)
        for one in kind.__mro__ + metaclass.__mro__:  # a class of classes may answer for what they lack
            if not is_known(one) or issubclass(one, nn.Module):
                self._classes[one] = self._classes.get(one, False) or made

    def _function(self, function: types.FunctionType) -> str:
        """Its code, unless a version stands for that, and all that it holds: a decorator of torch's holds a user's."""
        held = [self.text(function.__defaults__), self.text(function.__kwdefaults__)]
        for cell in function.__closure__ or ():
            try:
                held.append(self._setting(cell.cell_contents))
            except ValueError:  # empty
                held.append("empty")
        held.append(self._attributes(vars(function)))
        if is_known(function):
            return f"known:{function.__module__}.{function.__qualname__}({','.join(held)})"
        names = self._read_code(function.__code__)
        if unreadable := names & _UNREADABLE:
            raise UnknownError(f"{function.__qualname__} uses {sorted(unreadable)[0]}")
        self._names |= names
        told = [self._code(function.__code__), *held, *self._globals(function, names)]
        return f"function:{function.__qualname__}({','.join(told)})"

    def _globals(self, function: types.FunctionType, names: set[str]) -> Iterator[str]:
        for name in sorted(names):
            if name in function.__globals__:
                value = function.__globals__[name]
                yield f"{name}={self._setting(value)}"
                if isinstance(value, types.ModuleType):
                    if names & _BY_ANY_NAME and not is_known(value):
                        raise UnknownError(f"{function.__qualname__} may look up anything in {value.__name__}")
                    yield from self._of_module(value, names)
            elif name in sys.modules and not hasattr(builtins, name):  # imported inside the function
                yield from self._of_module(sys.modules[name], names)

    def _of_module(self, module: types.ModuleType, names: set[str]) -> Iterator[str]:
        """What the names may mean in a module; of Python's and torch's only what somebody has replaced."""
        known = is_known(module)
        for name in sorted(names & vars(module).keys()):
            value = vars(module)[name]
            if known and not (isinstance(value, types.FunctionType) and not is_known(value)):
                continue
            yield f"{module.__name__}.{name}={self._setting(value)}"
            if isinstance(value, types.ModuleType):
                yield from self._of_module(value, names - {name})

    def _read_code(self, code: types.CodeType) -> set[str]:
        names = {*code.co_names, *(part for name in code.co_names for part in name.split("."))}
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                names |= self._read_code(constant)
            elif isinstance(constant, str):
                names.add(constant)  # getattr(self, "name")
        return names

    def _code(self, code: types.CodeType) -> str:
        constants = [self._constant(one) for one in code.co_consts]
        digest = hashlib.blake2b(code.co_code, digest_size=16).hexdigest()
        return f"{digest}{code.co_names}{code.co_varnames}{code.co_freevars}{constants}"

    def _constant(self, one: Any) -> str:
        if isinstance(one, types.CodeType):
            return self._code(one)
        return f"{sorted(map(repr, one))}" if isinstance(one, frozenset) else repr(one)  # their order is any

    # -- what reached code may call ------------------------------------------------------------------------------------

    def reach(self) -> None:
        """Read members of reached classes by the names that reached code looks up, until no more are reached."""
        before = (-1, -1)
        while before != (len(self._names), len(self._classes)):
            before = (len(self._names), len(self._classes))
            dynamic = bool(_BY_ANY_NAME & self._names)
            for kind, made in list(self._classes.items()):
                for name, value in list(vars(kind).items()):
                    if name not in self._members.setdefault(kind, {}) and self._counts(
                        kind, name, value, made, dynamic
                    ):
                        self._members[kind][name] = ""
                        self._members[kind][name] = self._setting(value)

    def _counts(self, kind: type, name: str, value: Any, made: bool, dynamic: bool) -> bool:
        if name in _NOT_IN_A_CALL:
            return False
        if is_known(kind):  # of torch's modules only what somebody has replaced
            foreign = isinstance(value, types.FunctionType) and not is_known(value)
            return foreign and (name in self._names or occurs_in_file(name, kind.__module__))
        if name in ("__init__", "__new__", "__post_init__"):
            return made
        if name == "forward" or name in self._names:
            return True
        if name.startswith("_") and name.endswith("_"):  # Python's own, and those of enumerations
            return isinstance(value, (types.FunctionType, *_WRAPPED))
        return dynamic

    def classes_told(self) -> Iterator[str]:
        for kind, members in self._members.items():
            bases = ",".join(_title(one) for one in kind.__mro__)
            yield f"{bases}:{sorted(members.items())}"


def _title(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _is_readable(kind: type, thing: Any) -> bool:
    """Whether what an object does follows from its attributes: in Python's own modules many hide what they hold."""
    if is_known(kind) and kind.__module__.partition(".")[0] not in ("types", "collections", "torch"):
        return False
    return hasattr(thing, "__dict__") or hasattr(kind, "__slots__")


def _slots(kind: type) -> tuple[str, ...]:
    found = vars(kind).get("__slots__", ())
    return (found,) if isinstance(found, str) else tuple(found)
