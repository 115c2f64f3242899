"""Converts a program of torch.export to a `TracedProgram`: without writes to arguments and without nested graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ticketry_engine.capture.tracing.program import Constant, Multiple, TracedProgram
from ticketry_engine.capture.tracing.side_effects import without_writes, writes_to_input, writes_to_weight
from ticketry_engine.capture.tracing.torch_export import plain, quiet
from ticketry_engine.errors import CaptureError


def functional(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Return the program without operations that write to their arguments.

    Raises:
        CaptureError: if torch.export cannot determine what one of them writes to.
    """
    if without_writes(program.graph):
        return program
    try:
        with quiet(), plain():
            changed: torch.export.ExportedProgram = program.run_decompositions({})
    except Exception as error:  # of many kinds, by what the model writes to
        raise CaptureError(
            f"torch.export takes the model, but not what it writes to its own tensors ({type(error).__name__}:"
            f" {str(error)[:200]}): compute such values anew, `y = 2 * y` in the place of `y.data.mul_(2)`"
        ) from error
    return changed


def check_writes(program: torch.export.ExportedProgram) -> None:
    """Raise `CaptureError` if the program writes to a parameter, a buffer or an input."""
    kinds = torch.export.graph_signature.OutputKind
    for spec in program.graph_signature.output_specs:
        if spec.kind in (kinds.BUFFER_MUTATION, kinds.PARAMETER_MUTATION):
            raise writes_to_weight(str(spec.target))
        if spec.kind == kinds.USER_INPUT_MUTATION:
            raise writes_to_input(str(spec.target))


def program_of(exported: torch.export.ExportedProgram, notes: Sequence[str]) -> TracedProgram:
    """An exported program in the form that all captures have.

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
            weights[name] = (str(one.target), _tensor_of(exported, str(one.target)))
        else:
            raise CaptureError(f"the model uses an object of its own ({one.target}) that a graph cannot hold")
    assert spec.in_spec is not None
    assert spec.out_spec is not None
    batch = _batch(exported)
    return TracedProgram(
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


def _tensor_of(exported: torch.export.ExportedProgram, target: str) -> Tensor:
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


_ARGUMENTS_BEFORE = {"wrap_with_set_grad_enabled": 1, "wrap_with_autocast": 4}
"""Name of an operation that runs a block -> number of arguments before the block."""


def inline(program: torch.export.ExportedProgram) -> None:
    """Replace every block under torch.no_grad or torch.autocast by its operations, in place.

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
    """Replace the node that ran a block, which made a tuple, by the block's outputs."""
    parts = list(made) if isinstance(made, (tuple, list)) else [made]
    for user in list(one.users):
        if user.op != "call_function" or getattr(user.target, "__name__", "") != "getitem":
            raise CaptureError("a block under torch.no_grad or torch.autocast cannot be taken apart")
        user.replace_all_uses_with(parts[user.args[1]])  # type: ignore[index]
        graph.erase_node(user)
    graph.erase_node(one)
