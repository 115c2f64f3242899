"""Detects side effects of a model's calls, which a compiled model would not have, and replaces in-place operations."""

from __future__ import annotations

import inspect
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten

from ticketry_engine.capture.program import (
    Arguments,
    Constant,
    Multiple,
    TracedProgram,
    silence_loggers,
    traceable_torch,
)
from ticketry_engine.errors import CaptureError
from ticketry_engine.ir.aten import has_no_written_argument


def weight_write_error(name: str) -> CaptureError:
    """Return the error for a model that writes to the parameter or buffer `name`."""
    return CaptureError(
        f"the model writes to {name!r} in evaluation mode, and so has a memory of earlier calls: the engine takes"
        " networks whose outputs depend on their inputs alone. Make that state an argument and an output of its forward"
    )


def input_write_error(name: str) -> CaptureError:
    """Return the error for a model that changes its input `name` in place."""
    return CaptureError(
        f"the model changes its input {name!r} in place, and a compiled model leaves its inputs as they are: copy the"
        f" input first (`{name} = {name}.clone()`), and return the new value if the caller needs it"
    )


class ArgumentContainers:
    """A call's arguments with earlier copies of their lists and dicts, which show whether the call changes them."""

    def __init__(self, model: nn.Module, arguments: Arguments) -> None:
        bound = inspect.signature(model.forward).bind(*arguments.args, **arguments.kwargs)
        self._given = dict(bound.arguments)
        self._before = {name: tree_flatten(value) for name, value in self._given.items()}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensor arguments of the call with their names."""
        for name, (leaves, _) in self._before.items():
            yield from ((name, leaf) for leaf in leaves if isinstance(leaf, Tensor))

    def check(self) -> None:
        """Raise `CaptureError` if the call added, removed or replaced an entry of a container."""
        for name, value in self._given.items():
            (before, structure), (after, found) = self._before[name], tree_flatten(value)
            if structure != found or any(one is not other for one, other in zip(before, after, strict=True)):
                raise input_write_error(name)


# -- python state ------------------------------------------------------------------------------------------------------


_PLAIN = (str, bytes, int, float, complex, bool, type(None))
_LEAVES = frozenset({*_PLAIN, Tensor, nn.Parameter})
_CONTAINERS = frozenset({dict, OrderedDict, list, tuple, set, frozenset, deque})
"""Container classes that have no other attributes."""
_TORCH_OWN = frozenset({"_parameters", "_buffers", "_modules"})
"""Attributes of a module in which torch stores parameters, buffers and submodules."""
_DEEPEST = 8

State: TypeAlias = "dict[tuple[object, ...], Any]"
"""Path of an object in a model -> the object; the reference keeps the object alive, so that its id stays unique."""


def model_state(model: nn.Module) -> State:
    """Return, by path, all objects that a model's modules refer to, directly or through other objects."""
    found: State = {}
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for table in (module.__dict__, module._parameters, module._buffers, module._modules):
            for name, value in table.items():
                if table is module.__dict__ and name in _TORCH_OWN:
                    continue
                found[prefix, name] = value
                if not _has_no_parts(value):
                    _add_parts_to_state(found, (prefix, name), value, seen)
    return found


def first_change(before: State, after: State, *, counters: bool = False) -> str | None:
    """Return the path of the first object that differs between two states; None if all are equal.

    If `counters`, changes of objects other than numbers and texts are ignored.
    """
    for path in after if before.keys() == after.keys() else (*after, *before):
        if path not in before or path not in after:
            return _path_text(path)
        one, other = before[path], after[path]
        if one is other or (
            type(one) is type(other) and isinstance(one, _PLAIN) and (one == other or (one != one and other != other))
        ):
            continue
        if not counters or (isinstance(one, _PLAIN) and isinstance(other, _PLAIN)):
            return _path_text(path)
    return None


def _path_text(path: tuple[object, ...]) -> str:
    return ".".join(part if isinstance(part, str) else f"{part!r:.80}" for part in path if part != "")


def _has_no_parts(value: Any) -> bool:
    """Return whether an object has no parts that `model_state` must visit."""
    kind = type(value)
    if kind in _LEAVES or (kind in _CONTAINERS and not value):
        return True
    return isinstance(value, (*_PLAIN, Tensor, nn.Module, type))


def _add_parts_to_state(found: State, path: tuple[object, ...], value: Any, seen: set[int]) -> None:
    if len(path) > _DEEPEST or id(value) in seen:
        return
    seen.add(id(value))
    for name, part in _parts_of_object(value):
        place = (*path, name)
        found[place] = part
        if not _has_no_parts(part):
            _add_parts_to_state(found, place, part, seen)


def _parts_of_object(value: Any) -> Iterator[tuple[object, Any]]:
    """Yield (name, part) for the parts of an object: entries of a container, members of a set, or attributes."""
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


# -- in-place operations replaced by functional ones -------------------------------------------------------------------

# Most writing operations, such as ``relu_``, change a tensor that is not read later under another name. Then the
# changed tensor replaces the old one in all later operations. Otherwise torch functionalises the whole program, which
# is slow.


_DROPOUTS = frozenset({"dropout", "feature_dropout", "alpha_dropout"})
"""Operations that return their argument itself in evaluation mode although their schemas do not say so."""


def replace_writes(graph: fx.Graph) -> bool:
    """Replace in-place operations of the graph by functional ones; if this is impossible, return False."""
    for one in graph.nodes:
        overload = one.target if isinstance(one.target, torch._ops.OpOverload) else None
        if overload and overload._schema.name.partition("::")[2] in _DROPOUTS and one.args[2] is False:
            one.replace_all_uses_with(one.args[0])
    written = [one for one in graph.nodes if is_in_place(one)]
    if not written:
        return True
    family = _memory_families(graph)
    order = {one: index for index, one in enumerate(graph.nodes)}
    if any(
        _functional_op(one) is None or _is_read_through_alias(one, family[_written_argument(one)], order)
        for one in written
    ):
        return False
    for one in written:
        _replace_in_place(graph, one)
    return True


def is_in_place(node: fx.Node) -> bool:
    """Return whether a node's operation writes to one of its arguments."""
    return isinstance(node.target, torch._ops.OpOverload) and not has_no_written_argument(node.target)


def _written_argument(node: fx.Node) -> fx.Node:
    target = node.args[0] if node.args else None
    assert isinstance(target, fx.Node)
    return target


def _memory_families(graph: fx.Graph) -> dict[fx.Node, set[fx.Node]]:
    """Return, for each node, the set of all nodes that may share memory with the node, including the node itself."""
    family: dict[fx.Node, set[fx.Node]] = {}
    for one in graph.nodes:
        family[one] = {one}
        for other in _possible_aliases(one):
            joined = family[one] | family[other]
            for member in joined:
                family[member] = joined
    return family


def _is_read_through_alias(node: fx.Node, family: set[fx.Node], order: dict[fx.Node, int]) -> bool:
    """Return whether a later node reads what `node` writes, through another tensor with the same memory.

    `family` are the nodes whose results share the memory, and `order` is the position of each node in the graph.
    """
    others = [member for member in family if member is not _written_argument(node) and order[member] < order[node]]
    return any(
        member.op == "placeholder" or any(order[user] > order[node] for user in member.users) for member in others
    )


def _possible_aliases(node: fx.Node) -> list[fx.Node]:
    """Return the arguments whose memory the node's output may share."""
    if node.op != "call_function":
        return []
    if not isinstance(node.target, torch._ops.OpOverload):
        numbers = (int, float, torch.SymInt, torch.SymFloat, torch.SymBool)
        return [arg for arg in node.all_input_nodes if not isinstance(arg.meta.get("val"), numbers)]  # getitem of views
    arguments = zip(node.target._schema.arguments, node.args, strict=False)
    return [given for known, given in arguments if known.alias_info is not None and isinstance(given, fx.Node)]


def _functional_op(node: fx.Node) -> Any:
    """Return the out-of-place counterpart of an in-place operation (`relu` for `relu_`); None if there is none."""
    assert isinstance(node.target, torch._ops.OpOverload)
    namespace, _, name = node.target._schema.name.partition("::")
    writes = [arg for arg in node.target._schema.arguments if arg.alias_info is not None and arg.alias_info.is_write]
    if not name.endswith("_") or len(writes) != 1 or node.target._schema.arguments[0] is not writes[0]:
        return None
    if not node.args or not isinstance(node.args[0], fx.Node) or node.args[0].op == "placeholder":
        return None
    packet = getattr(getattr(torch.ops, namespace), name[:-1], None)
    found = getattr(packet, node.target._overloadname, None) if packet is not None else None
    return found if found is not None and has_no_written_argument(found) else None


def _replace_in_place(graph: fx.Graph, one: fx.Node) -> None:
    target, function = _written_argument(one), _functional_op(one)
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


# -- programs of torch.export as `TracedProgram` -----------------------------------------------------------------------


def as_functional_program(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Return the exported program with operations that write to arguments replaced by operations that do not."""
    if replace_writes(program.graph):
        return program
    try:
        with silence_loggers(), traceable_torch():
            changed: torch.export.ExportedProgram = program.run_decompositions({})
    except Exception as error:  # of many kinds, by what the model writes to
        raise CaptureError(
            f"torch.export takes the model, but not what it writes to its own tensors ({type(error).__name__}:"
            f" {str(error)[:200]}): compute such values anew, `y = 2 * y` in the place of `y.data.mul_(2)`"
        ) from error
    return changed


def refuse_writes(program: torch.export.ExportedProgram) -> None:
    """Raise `CaptureError` if the program writes to a parameter, a buffer or an input."""
    kinds = torch.export.graph_signature.OutputKind
    for spec in program.graph_signature.output_specs:
        if spec.kind in (kinds.BUFFER_MUTATION, kinds.PARAMETER_MUTATION):
            raise weight_write_error(str(spec.target))
        if spec.kind == kinds.USER_INPUT_MUTATION:
            raise input_write_error(str(spec.target))


def to_traced_program(exported: torch.export.ExportedProgram, notes: Sequence[str]) -> TracedProgram:
    """Return an exported program as a `TracedProgram`; raise `CaptureError` for objects that a graph cannot contain."""
    inline_blocks(exported)
    signature, spec = exported.graph_signature, exported.call_spec
    kinds = torch.export.graph_signature.InputKind
    weights: dict[str, tuple[str, Tensor]] = {}
    constants: dict[str, object] = {}
    placeholders = {one.name: one for one in exported.graph.nodes if one.op == "placeholder"}
    for one in signature.input_specs:
        name = getattr(one.arg, "name", "")
        if one.kind == kinds.USER_INPUT:
            value = placeholders[name].meta.get("val")
            if not isinstance(value, Tensor):
                constants[name] = getattr(one.arg, "value", value)
        elif one.kind in (kinds.PARAMETER, kinds.BUFFER, kinds.CONSTANT_TENSOR):
            target = str(one.target)
            state = exported.state_dict
            tensor = state[target] if target in state else exported.constants[target]
            if not isinstance(tensor, Tensor):
                raise CaptureError(f"the model uses an object of its own ({target}) that a graph cannot hold")
            weights[name] = (target, tensor)
        else:
            raise CaptureError(f"the model uses an object of its own ({one.target}) that a graph cannot hold")
    assert spec.in_spec is not None
    assert spec.out_spec is not None
    batch = _batch_symbol(exported)
    return TracedProgram(
        graph=exported.graph,
        inputs=[
            given if isinstance(given, str) and given in placeholders and given not in constants else Constant(given)
            for given in signature.user_inputs
        ],
        weights=weights,
        outputs=_program_outputs(exported),
        in_spec=spec.in_spec,
        out_spec=spec.out_spec,
        sizes=lambda node: tuple(_convert_size(size, batch) for size in node.meta["val"].shape),
        constants=constants,
        notes=notes,
    )


def _program_outputs(exported: torch.export.ExportedProgram) -> list[fx.Node | Constant]:
    """Return the tensors and constants that the model returns, without changed inputs that torch.export appends."""
    kinds = torch.export.graph_signature.OutputKind
    given: Any = exported.graph.output_node().args[0]  # names of nodes change, those in the signature do not
    pairs = zip(exported.graph_signature.output_specs, given, strict=True)
    return [one if isinstance(one, fx.Node) else Constant(one) for spec, one in pairs if spec.kind == kinds.USER_OUTPUT]


def _batch_symbol(exported: torch.export.ExportedProgram) -> Any:
    """Return torch's symbol for the number of examples; None if the program has a fixed number."""
    names = set(exported.graph_signature.user_inputs)
    for one in exported.graph.nodes:
        value = one.meta.get("val")
        if one.op == "placeholder" and one.name in names and isinstance(value, Tensor):
            for size in value.shape[:1]:
                symbol: Any = getattr(size, "node", None)  # none of a plain number
                if symbol is not None and not symbol.expr.is_Integer:
                    return symbol.expr
    return None


def _convert_size(size: Any, batch: Any) -> int | Multiple | None:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    if expression.is_Integer:
        return int(expression)
    factor = expression / batch if batch is not None else None
    return Multiple(int(factor)) if factor is not None and factor.is_Integer else None


_ARGUMENTS_BEFORE = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}
"""Name of an operation that runs a block of operations -> number of arguments before the block argument."""


def inline_blocks(program: torch.export.ExportedProgram) -> None:
    """Move the operations of each block under torch.no_grad or torch.autocast to the main graph of the program."""
    module, graph = program.graph_module, program.graph
    for one in list(graph.nodes):
        kind = getattr(one.target, "_name", getattr(one.target, "__name__", ""))
        if one.op != "call_function" or kind not in _ARGUMENTS_BEFORE:
            continue
        before = _ARGUMENTS_BEFORE[kind]
        if kind == "wrap_with_autocast" and one.args[2]:
            raise CaptureError(
                "the model opens torch.autocast in its forward: call it without, and choose the precision when it is"
                " compiled"
            )
        block = one.args[before]
        assert isinstance(block, fx.Node)
        body: Any = module.get_submodule(str(block.target))
        inner_names = [node for node in body.graph.nodes if node.op == "placeholder"]
        mapping = dict(zip(inner_names, one.args[before + 1 :], strict=True))
        with graph.inserting_before(one):
            made: Any = graph.graph_copy(body.graph, mapping)
        parts = list(made) if isinstance(made, (tuple, list)) else [made]
        for user in list(one.users):
            if user.op != "call_function" or getattr(user.target, "__name__", "") != "getitem":
                raise CaptureError("a block under torch.no_grad or torch.autocast cannot be taken apart")
            user.replace_all_uses_with(parts[user.args[1]])
            graph.erase_node(user)
        graph.erase_node(one)
        for inner, outer in mapping.items():
            if isinstance(outer, fx.Node) and "val" not in outer.meta:
                outer.meta["val"] = inner.meta.get("val")
