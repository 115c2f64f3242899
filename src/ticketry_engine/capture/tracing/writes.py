"""A graph of torch's operations without those that write to their arguments.

Most of them, as ``relu_``, change a tensor whose memory nobody else reads afterwards by another name. Then the changed
tensor takes the place of the old one in all that follows. Else torch functionalises the whole program: that is slow.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from ticketry_engine.errors import CaptureError
from ticketry_engine.ir.aten import is_function

_DROPOUTS = frozenset({"dropout", "feature_dropout", "alpha_dropout"})
"""Operations that give their argument itself back in evaluation mode, though their schema does not say so."""


def without_writes(graph: fx.Graph) -> bool:
    """Replace operations that write to their arguments, in place; False if somebody would notice, and all is left."""
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
