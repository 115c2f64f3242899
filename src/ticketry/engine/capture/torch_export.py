"""torch.export around a model: examples of two or more, one dynamic batch, an understandable error; and its program
without in-place operations.

Most of them, as ``relu_``, change a tensor whose memory nobody else reads afterwards by another name. Then the changed
tensor takes the place of the old one in all that follows. Else torch functionalises the whole program: that is slow.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten, tree_map

from ticketry.core.process_state import ONE_AT_A_TIME
from ticketry.engine.capture.program import Constant, Multiple, Program
from ticketry.engine.graph.aten import is_function
from ticketry.engine.graph.memory import plain as plain_tensor
from ticketry.errors import CaptureError

_REASON_LINES = 6


@dataclass(frozen=True)
class Arguments:
    """What a model is called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, example_inputs: Any) -> Arguments:
        """From a tensor, a tuple of arguments, or a dict of arguments by name; tensors on the CPU."""
        if isinstance(example_inputs, Mapping):
            found = cls((), dict(example_inputs))
        else:
            found = cls(tuple(example_inputs) if isinstance(example_inputs, (tuple, list)) else (example_inputs,), {})
        tensors = [leaf for leaf in tree_flatten((found.args, found.kwargs))[0] if isinstance(leaf, Tensor)]
        if not tensors:
            raise CaptureError("example_inputs hold no tensor: give a tensor, a tuple of arguments, or a dict of them")
        return found.map(_on_cpu)

    def map(self, change: Any) -> Arguments:
        """The arguments with every tensor changed."""

        def each(leaf: Any) -> Any:
            return change(leaf) if isinstance(leaf, Tensor) else leaf

        args, kwargs = tree_map(each, (self.args, self.kwargs))
        return Arguments(args, kwargs)

    @property
    def examples(self) -> int | None:
        """The leading size of the first tensor that has one."""
        for leaf in tree_flatten((self.args, self.kwargs))[0]:
            if isinstance(leaf, Tensor) and leaf.dim():
                return int(leaf.shape[0])
        return None


def _on_cpu(tensor: Tensor) -> Tensor:
    return plain_tensor(tensor if tensor.device.type in ("cpu", "meta") else tensor.cpu(), "an example input").detach()


@dataclass(frozen=True)
class Exported:
    """A model as torch.export gives it."""

    program: torch.export.ExportedProgram
    fixed: str
    """Why the number of examples is fixed; "" if it is not."""


def export(model: nn.Module, arguments: Arguments, *, dynamic_batch: bool) -> Exported:
    """Export `model`, with any number of examples if it takes that.

    Raises:
        CaptureError: if torch.export does not take the model.
    """
    if not dynamic_batch:
        return Exported(_export(model, arguments, None), "it was asked for")
    examples = arguments.examples
    if examples is None:
        return Exported(_export(model, arguments, None), "the inputs have no leading axis")
    several = _two_or_more(arguments, examples)
    reason = ""
    for strict in (False, True):  # the strict way is slower, but sees through `len(x)`
        try:
            return Exported(_export(model, several, several.examples, strict=strict), "")
        except CaptureError as error:
            reason = reason or _lines(error.__cause__ or error, 3)
    return Exported(_export(model, arguments, None), reason)


def _two_or_more(arguments: Arguments, examples: int) -> Arguments:
    """torch.export takes a size of 0 or 1 for fixed: such examples are repeated."""
    if examples > 1:
        return arguments

    def repeat(tensor: Tensor) -> Tensor:
        if not tensor.dim() or tensor.shape[0] != examples:
            return tensor
        return torch.cat([tensor, tensor]) if examples else tensor.new_zeros((2, *tensor.shape[1:]))

    return arguments.map(repeat)


def _export(
    model: nn.Module, arguments: Arguments, batch: int | None, *, strict: bool = False
) -> torch.export.ExportedProgram:
    shapes: Any = None
    if batch is not None:
        shapes = _by_name(model, arguments, *dynamic_shapes((arguments.args, arguments.kwargs), batch))
    try:
        with ONE_AT_A_TIME, quiet(), plain():
            return torch.export.export(
                model, arguments.args, arguments.kwargs or None, dynamic_shapes=shapes, strict=strict
            )
    except Exception as error:  # a model may fail in any way
        raise CaptureError(
            f"torch.export does not take {type(model).__name__}: {_lines(error, _REASON_LINES)}\n"
            "Look whether model(*example_inputs) runs in evaluation mode, and whether its forward decides by the values"
            " of tensors (`if x.sum() > 0`, `.item()`): such parts have to be rewritten, or left out."
        ) from error


def dynamic_shapes(inputs: Any, batch: int) -> Any:
    """For each leaf of the inputs: its first size is free where it is the batch."""
    dimension = torch.export.Dim("batch")

    def leading(leaf: Any) -> Any:
        return {0: dimension} if isinstance(leaf, Tensor) and leaf.dim() and leaf.shape[0] == batch else None

    return tree_map(leading, inputs)


def _by_name(model: nn.Module, arguments: Arguments, args: Any, kwargs: Any) -> Any:
    """Dynamic shapes as torch.export wants them: a tuple of those of positional arguments, or by name if any is."""
    if not arguments.kwargs:
        return args
    names = list(inspect.signature(model.forward).parameters)
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _lines(error: BaseException, count: int) -> str:
    lines = [line.partition("For more information, run with")[0].strip() for line in str(error).splitlines()]
    return f"{type(error).__name__}: " + "\n".join(line[:300] for line in [line for line in lines if line][:count])


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """No gradients and no fused transformer layers, which are one operation that nobody can look into."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextlib.contextmanager
def quiet(*loggers: str, level: int = logging.CRITICAL) -> Iterator[None]:
    """Nothing of what exporters warn of, nor of what they log below a level: these loggers, torch's unless given."""
    found = [logging.getLogger(name) for name in loggers or ("torch",)]
    levels = [logger.level for logger in found]
    for logger in found:
        logger.setLevel(level)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, before in zip(found, levels, strict=True):
            logger.setLevel(before)


_DROPOUTS = frozenset({"dropout", "feature_dropout", "alpha_dropout"})
"""Operations that give their argument itself back in evaluation mode, though their schema does not say so."""


def functional(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program without operations that write to their arguments."""
    if without_writes(program.graph):
        return program
    with quiet(), plain():
        changed: torch.export.ExportedProgram = program.run_decompositions({})
    return changed


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


def check_buffers(program: torch.export.ExportedProgram) -> list[str]:
    """Names of the inputs that the model writes to.

    Raises:
        CaptureError: if it writes to a parameter or a buffer, so that its next call would differ.
    """
    kinds = torch.export.graph_signature.OutputKind
    changed = []
    for spec in program.graph_signature.output_specs:
        if spec.kind in (kinds.BUFFER_MUTATION, kinds.PARAMETER_MUTATION):
            raise CaptureError(
                f"the model writes to {spec.target!r} in evaluation mode, and so has a memory of earlier calls:"
                " the engine takes networks whose outputs depend on their inputs alone"
            )
        if spec.kind == kinds.USER_INPUT_MUTATION:
            changed.append(str(spec.target))
    return changed


def program_of(exported: torch.export.ExportedProgram, notes: Sequence[str]) -> Program:
    """The same, in the form that all captures have.

    Raises:
        CaptureError: if it holds an object that a graph cannot, or a block that is run under autocast.
    """
    inline(exported)
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
            weights[name] = (str(one.target), _number_of(exported, str(one.target)))
        else:
            raise CaptureError(f"the model uses an object of its own ({one.target}) that a graph cannot hold")
    assert spec.in_spec is not None
    assert spec.out_spec is not None
    batch = _batch(exported)
    return Program(
        graph=exported.graph,
        inputs=[
            given if isinstance(given, str) and given in placeholders and given not in constants else Constant(given)
            for given in signature.user_inputs
        ],
        weights=weights,
        outputs=_outputs(exported),
        in_spec=spec.in_spec,
        out_spec=spec.out_spec,
        sizes=lambda node: tuple(_size(size, batch) for size in node.meta["val"].shape),
        constants=constants,
        notes=notes,
    )


def _number_of(exported: torch.export.ExportedProgram, target: str) -> Tensor:
    state = exported.state_dict
    tensor = state[target] if target in state else exported.constants[target]
    if not isinstance(tensor, Tensor):
        raise CaptureError(f"the model uses an object of its own ({target}) that a graph cannot hold")
    return tensor


def _outputs(exported: torch.export.ExportedProgram) -> list[fx.Node | Constant]:
    """The leaves that a call returns, without what torch returns besides of what is written to."""
    kinds = torch.export.graph_signature.OutputKind
    given: Any = exported.graph.output_node().args[0]  # names of nodes change, those in the signature do not
    pairs = zip(exported.graph_signature.output_specs, given, strict=True)
    return [one if isinstance(one, fx.Node) else Constant(one) for spec, one in pairs if spec.kind == kinds.USER_OUTPUT]


def _batch(exported: torch.export.ExportedProgram) -> Any:
    """The symbol of the number of examples, or None."""
    names = set(exported.graph_signature.user_inputs)
    for one in exported.graph.nodes:
        value = one.meta.get("val")
        if one.op == "placeholder" and one.name in names and isinstance(value, Tensor):
            for size in value.shape[:1]:
                symbol: Any = getattr(size, "node", None)  # none of a plain number
                if symbol is not None and not symbol.expr.is_Integer:
                    return symbol.expr
    return None


def _size(size: Any, batch: Any) -> int | Multiple | None:
    if isinstance(size, int):
        return size
    expression = size.node.expr
    if expression.is_Integer:
        return int(expression)
    factor = expression / batch if batch is not None else None
    return Multiple(int(factor)) if factor is not None and factor.is_Integer else None


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


_ARGUMENTS_BEFORE = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}
"""Name of the operation -> number of arguments before the block."""


def inline(program: torch.export.ExportedProgram) -> None:
    """Replace every such block by its operations, in place.

    Raises:
        CaptureError: if a block runs under an enabled autocast, whose types are chosen while it runs.
    """
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
        _give(graph, one, made)
        for inner, outer in mapping.items():
            if isinstance(outer, fx.Node) and "val" not in outer.meta:
                outer.meta["val"] = inner.meta.get("val")


def _give(graph: fx.Graph, one: fx.Node, made: Any) -> None:
    """Put the block's outputs in the place of the node that ran it, which made a tuple of them."""
    parts = list(made) if isinstance(made, (tuple, list)) else [made]
    for user in list(one.users):
        if user.op != "call_function" or getattr(user.target, "__name__", "") != "getitem":
            raise CaptureError("a block under torch.no_grad or torch.autocast cannot be taken apart")
        user.replace_all_uses_with(parts[user.args[1]])  # type: ignore[index]
        graph.erase_node(user)
    graph.erase_node(one)
