"""Side effects of a call that a compiled model would not have: writes to inputs and weights, changed containers."""

from __future__ import annotations

import inspect
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten

from ticketry_engine.capture.tracing.torch_export import Arguments
from ticketry_engine.errors import CaptureError
from ticketry_engine.ir.aten import is_function


def writes_to_weight(name: str) -> CaptureError:
    """Return the error for a model that writes to a parameter or buffer."""
    return CaptureError(
        f"the model writes to {name!r} in evaluation mode, and so has a memory of earlier calls: the engine takes"
        " networks whose outputs depend on their inputs alone. Make that state an argument and an output of its forward"
    )


def writes_to_input(name: str) -> CaptureError:
    """Return the error for a model that changes what it is called with."""
    return CaptureError(
        f"the model changes its input {name!r} in place, and a compiled model leaves its inputs as they are: copy the"
        f" input first (`{name} = {name}.clone()`), and return the new value if the caller needs it"
    )


class Containers:
    """The arguments of one call by name, and the entries of their lists and dicts before the call."""

    def __init__(self, model: nn.Module, arguments: Arguments) -> None:
        bound = inspect.signature(model.forward).bind(*arguments.args, **arguments.kwargs)
        self._given = dict(bound.arguments)
        self._before = {name: tree_flatten(value) for name, value in self._given.items()}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors that the call was given, each with the name of its argument."""
        for name, (leaves, _) in self._before.items():
            yield from ((name, leaf) for leaf in leaves if isinstance(leaf, Tensor))

    def check(self) -> None:
        """Raise `CaptureError` if the call has put something else into a container, or taken something out."""
        for name, value in self._given.items():
            (before, structure), (after, found) = self._before[name], tree_flatten(value)
            if structure != found or any(one is not other for one, other in zip(before, after, strict=True)):
                raise writes_to_input(name)


# -- python state ------------------------------------------------------------------------------------------------------


_PLAIN = (str, bytes, int, float, complex, bool, type(None))
_LEAVES = frozenset({*_PLAIN, Tensor, nn.Parameter})
_CONTAINERS = frozenset({dict, OrderedDict, list, tuple, set, frozenset, deque})
"""Classes whose empty objects hold nothing, attributes neither."""
_TORCH_OWN = frozenset({"_parameters", "_buffers", "_modules"})
"""Attributes of a module that are tables, whose entries are looked at by their own names."""
_DEEPEST = 8

State: TypeAlias = "dict[tuple[object, ...], Any]"
"""Path to an object -> the object itself, which is held so that no other one gets its identity."""


def state_of(model: nn.Module) -> State:
    """Everything that a model's modules hold, through containers and plain objects, by path."""
    found: State = {}
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for table in (module.__dict__, module._parameters, module._buffers, module._modules):
            for name, value in table.items():
                if table is module.__dict__ and name in _TORCH_OWN:
                    continue
                found[prefix, name] = value
                if not _is_leaf(value):
                    _add_parts(found, (prefix, name), value, seen)
    return found


def first_change(before: State, after: State, *, counters: bool = False) -> str | None:
    """The path of the first object that is another one, or a number or text of another value; None if all are equal.

    Args:
        counters: look only at numbers, texts and the number of entries.
    """
    for path in after if before.keys() == after.keys() else (*after, *before):
        if path not in before or path not in after:
            return _spelled(path)
        one, other = before[path], after[path]
        if one is other or _is_equal(one, other):
            continue
        if not counters or (isinstance(one, _PLAIN) and isinstance(other, _PLAIN)):
            return _spelled(path)
    return None


def _spelled(path: tuple[object, ...]) -> str:
    return ".".join(part if isinstance(part, str) else f"{part!r:.80}" for part in path if part != "")


def _is_equal(one: Any, other: Any) -> bool:
    return type(one) is type(other) and isinstance(one, _PLAIN) and (one == other or (one != one and other != other))


def _is_leaf(value: Any) -> bool:
    """Return whether an object contains nothing to traverse."""
    kind = type(value)
    if kind in _LEAVES or (kind in _CONTAINERS and not value):
        return True
    return isinstance(value, (*_PLAIN, Tensor, nn.Module, type))


def _add_parts(found: State, path: tuple[object, ...], value: Any, seen: set[int]) -> None:
    if len(path) > _DEEPEST or id(value) in seen:
        return
    seen.add(id(value))
    for name, part in _parts(value):
        place = (*path, name)
        found[place] = part
        if not _is_leaf(part):
            _add_parts(found, place, part, seen)


def _parts(value: Any) -> Iterator[tuple[object, Any]]:
    """Return the parts of an object: entries of containers, members of sets, attributes of plain objects."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield key if isinstance(key, (str, int)) else f"{key!r:.80}", part
    elif isinstance(value, (list, tuple, deque)):
        yield from enumerate(value)
    elif isinstance(value, (set, frozenset)):
        yield "members", str(sorted(map(id, value)))
        yield from enumerate(value)
    if type(value) in _CONTAINERS or callable(value):
        return
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict):
        yield from list(attributes.items())
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else tuple(slots):
            name = f"_{kind.__name__.lstrip('_')}{slot}" if slot.startswith("__") and not slot.endswith("__") else slot
            if slot not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield name, getattr(value, name)


# -- A graph of torch's operations without those that write to their arguments -----------------------------------------

# Most writing operations, such as ``relu_``, change a tensor that is not read later under another name. Then the
# changed tensor replaces the old one in all later operations. Otherwise torch functionalises the whole program, which
# is slow.


_DROPOUTS = frozenset({"dropout", "feature_dropout", "alpha_dropout"})
"""Operations that give their argument itself back in evaluation mode, though their schema does not say so."""


def without_writes(graph: fx.Graph) -> bool:
    """Replace operations that write to their arguments, in place; return False and change nothing if that is
    visible."""
    for one in graph.nodes:
        if _name(one) in _DROPOUTS and one.args[2] is False:
            one.replace_all_uses_with(one.args[0])
    written = [one for one in graph.nodes if is_in_place(one)]
    if not written:
        return True
    family = _families(graph)
    order = {one: index for index, one in enumerate(graph.nodes)}
    if any(_counterpart(one) is None or _seen_elsewhere(one, family[_target(one)], order) for one in written):
        return False
    for one in written:
        _replace(graph, one)
    return True


def is_in_place(one: fx.Node) -> bool:
    """Whether a node writes to an argument."""
    return isinstance(one.target, torch._ops.OpOverload) and not is_function(one.target)


def _name(one: fx.Node) -> str:
    return one.target._schema.name.partition("::")[2] if isinstance(one.target, torch._ops.OpOverload) else ""


def _target(one: fx.Node) -> fx.Node:
    target = one.args[0] if one.args else None
    assert isinstance(target, fx.Node)
    return target


def _families(graph: fx.Graph) -> dict[fx.Node, set[fx.Node]]:
    """Node -> itself and all whose memory may be the same."""
    family: dict[fx.Node, set[fx.Node]] = {}
    for one in graph.nodes:
        family[one] = {one}
        for other in _aliased(one):
            joined = family[one] | family[other]
            for member in joined:
                family[member] = joined
    return family


def _seen_elsewhere(one: fx.Node, family: set[fx.Node], order: dict[fx.Node, int]) -> bool:
    """Whether what a node writes in place is read afterwards through another tensor that was made before."""
    others = [member for member in family if member is not _target(one) and order[member] < order[one]]
    return any(
        member.op == "placeholder" or any(order[user] > order[one] for user in member.users) for member in others
    )


def _aliased(one: fx.Node) -> list[fx.Node]:
    """Arguments whose memory the node's output may share."""
    if one.op != "call_function":
        return []
    if not isinstance(one.target, torch._ops.OpOverload):
        return [arg for arg in one.all_input_nodes if _holds_tensors(arg)]  # getitem of a list of views
    arguments = zip(one.target._schema.arguments, one.args, strict=False)
    return [given for known, given in arguments if known.alias_info is not None and isinstance(given, fx.Node)]


def _holds_tensors(one: fx.Node) -> bool:
    return not isinstance(one.meta.get("val"), (int, float, torch.SymInt, torch.SymFloat, torch.SymBool))


def _counterpart(one: fx.Node) -> Any:
    """The function that computes what an in-place operation writes, or None."""
    assert isinstance(one.target, torch._ops.OpOverload)
    namespace, _, name = one.target._schema.name.partition("::")
    writes = [arg for arg in one.target._schema.arguments if arg.alias_info is not None and arg.alias_info.is_write]
    if not name.endswith("_") or len(writes) != 1 or one.target._schema.arguments[0] is not writes[0]:
        return None
    if not one.args or not isinstance(one.args[0], fx.Node) or one.args[0].op == "placeholder":
        return None
    packet = getattr(getattr(torch.ops, namespace), name[:-1], None)
    found = getattr(packet, one.target._overloadname, None) if packet is not None else None
    return found if found is not None and is_function(found) else None


def _replace(graph: fx.Graph, one: fx.Node) -> None:
    target, function = _target(one), _counterpart(one)
    old = target.meta["val"]
    made = one.meta["val"]
    if made.dtype != old.dtype or made.shape != old.shape:  # x_ += y keeps the type of x
        raise CaptureError(f"{one.target} changes the shape or data type of what it writes to")
    with graph.inserting_before(one):
        changed = graph.call_function(function, one.args, one.kwargs)
    changed.meta = dict(one.meta)
    order = {node: index for index, node in enumerate(graph.nodes)}
    one.replace_all_uses_with(changed)
    target.replace_all_uses_with(changed, delete_user_cb=lambda user: order[user] > order[one])
    graph.erase_node(one)
