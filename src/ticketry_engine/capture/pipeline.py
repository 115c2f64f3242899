"""Captures a model as a graph: traces the model, converts the trace to nodes, and applies passes to the graph."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from ticketry_engine.capture.batch_axis import move_batch_first
from ticketry_engine.capture.convert import convert
from ticketry_engine.capture.eager_checks import (
    check_calls_are_independent,
    copy_model,
    copy_sharing_parameters,
    matches_model_for_one_example,
    with_argument_defaults,
    with_unshared_outputs,
)
from ticketry_engine.capture.editor import (
    Editor,
    Lowering,
    aten_name,
    bind_arguments,
    rewrite_nodes,
    unused_name,
    with_replaced_values,
    without_unused_nodes,
)
from ticketry_engine.capture.lower_layers import RULES as LAYER_RULES
from ticketry_engine.capture.lower_layers import lower_resize, lower_transposed_convolutions
from ticketry_engine.capture.lower_moves import RULES as MOVE_RULES
from ticketry_engine.capture.lower_moves import TIDY, lower_constant_operand, lower_move, without_negative_zeros
from ticketry_engine.capture.lower_statistics import lower_image_statistics
from ticketry_engine.capture.patterns import FORMULAS, FUSIONS, recognise_l2_normalisation, recognise_masked_attention
from ticketry_engine.capture.program import (
    FEWEST,
    ONE_DIFFERS,
    Arguments,
    NotRecordedError,
    Sizes,
    TracedProgram,
    export,
    fixed_batch_note,
)
from ticketry_engine.capture.record import FixedSizeError, record
from ticketry_engine.capture.recurrences import recognise_recurrences
from ticketry_engine.capture.same_rows import replace_equal_rows
from ticketry_engine.capture.side_effects import as_functional_program, refuse_writes, to_traced_program
from ticketry_engine.ir import DTYPES, Graph, Node, aten
from ticketry_engine.ir.binding import readable_tensor
from ticketry_engine.ir.graph import COMPUTED
from ticketry_engine.ir.native import dtype_name
from ticketry_engine.support.modules import apply_mask, unwrapped

_log = logging.getLogger(__name__)


def capture(
    model: nn.Module,
    mask: Mapping[str, Tensor] | None = None,
    example_inputs: Any = None,
    *,
    for_kernels: bool = True,
) -> Graph:
    """Return the graph of a model in evaluation mode, with masked weights; do not change the model.

    The number of examples is the size of axis 0 of the first input tensor, and may differ from call to call. If the
    model works for one number only, the graph takes that number, and `Graph.notes` say why. If the model behaves
    differently for one example, the graph takes one example if the example inputs contain one, else two or more.

    Args:
        mask: mask of the weights to keep, by parameter name; pruned weights are exactly 0 in the graph. None: no mask.
        example_inputs: a tensor, a tuple of arguments, or a dict of arguments by name; only shapes and dtypes matter.
        for_kernels: whether group norms, transposed convolutions, interpolations and the like become convolutions and
            other operations of the CPU kernels; sparse kernels skip the zeros of these convolutions. If the batch size
            is fixed, no kernels run, and these layers stay as they are.

    Raises:
        CaptureError: if torch.export cannot trace the model, if the model writes to its parameters, buffers or inputs,
            or if its outputs depend on earlier calls.
        MaskError: if the mask does not fit the model.
    """
    given = Arguments.from_examples(example_inputs)
    model = unwrapped(model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.device.type in ("cpu", "meta"):
            readable_tensor(tensor, f"the weight {name!r}")  # copying reads it
    twin = copy_model(model)
    if mask is not None:
        apply_mask(twin, mask)
    return lower_to_native(*_capture_torch_graph(twin, given), for_kernels=for_kernels).validate(trusted=True)


def _capture_torch_graph(model: nn.Module, arguments: Arguments) -> tuple[Graph, dict[str, Sizes]]:
    """Return the model as a graph of torch operations, and the sizes of its values by name."""
    try:
        graph, sizes, for_one = _capture_by_recording(model, arguments)
    except NotRecordedError as reason:
        _log.info("%s is captured by torch.export: %s", type(model).__name__, reason)
        graph, sizes, for_one = _capture_by_export(model, arguments)
    graph = with_argument_defaults(graph, model)
    if not for_one:
        graph = replace(graph, signature={**graph.signature, "fewest": FEWEST})
    return graph, sizes


_Found = tuple[Graph, dict[str, Sizes], bool]
"""(graph, sizes of its values by name, whether the graph is also valid for one example)."""


def _capture_by_recording(model: nn.Module, arguments: Arguments) -> _Found:
    try:
        program = record(model, arguments, dynamic_batch=True)
    except FixedSizeError as reason:
        why = f"{reason}; it takes {arguments.examples} alone there. The batch has to be on axis 0 to be of any size"
        notes = fixed_batch_note(str(reason) if arguments.examples is None else why)
        program = replace(record(model, arguments, dynamic_batch=False), notes=notes)
    if not program.for_one and arguments.examples == 1:
        program = replace(record(model, arguments, dynamic_batch=False), notes=fixed_batch_note(ONE_DIFFERS))
    return *convert(program, model), program.for_one


def _capture_by_export(model: nn.Module, arguments: Arguments) -> _Found:
    fresh = copy_sharing_parameters(model)
    notes = check_calls_are_independent(fresh, arguments)
    graph, sizes = convert(_export_program(model, arguments, True, notes=notes), model)
    if not graph.accepts_any_batch or matches_model_for_one_example(graph, fresh, arguments):
        return graph, sizes, True
    if arguments.examples != 1:
        return graph, sizes, False
    return *convert(_export_program(model, arguments, False, ONE_DIFFERS, notes), model), True


def _export_program(
    model: nn.Module, arguments: Arguments, dynamic_batch: bool, why_fixed: str = "", notes: Sequence[str] = ()
) -> TracedProgram:
    exported, fixed = export(model, arguments, dynamic_batch=dynamic_batch)
    program = as_functional_program(exported)
    refuse_writes(program)
    return to_traced_program(program, [*fixed_batch_note(why_fixed or fixed), *notes])


def lower_to_native(graph: Graph, sizes: Mapping[str, Sizes], *, for_kernels: bool = True) -> Graph:
    """Return the graph with torch operations replaced by the engine's own, and norms combined with layers.

    `sizes` are the sizes of the values by name. `for_kernels` means the same as in `capture`.
    """
    captured = graph
    graph = replace_equal_rows(compute_constants(without_unused_nodes(graph)))
    for rule in (recognise_l2_normalisation, _lower_node, move_batch_first):
        graph = rewrite_nodes(graph, rule, sizes)
    graph = reduce(rewrite_nodes, FORMULAS, graph)
    if for_kernels and graph.accepts_any_batch:  # torch runs all layers of a model with a fixed batch
        steps = (lower_resize, lower_image_statistics)
        graph = reduce(rewrite_nodes, steps, lower_transposed_convolutions(graph))
    graph = recognise_recurrences(
        reduce(rewrite_nodes, (lower_constant_operand, *TIDY, recognise_masked_attention), graph)
    )
    graph = reduce(rewrite_nodes, (lower_move, *TIDY, *FUSIONS), graph)
    return with_unshared_outputs(without_negative_zeros(graph, captured), captured)


_RULES: Mapping[str, Lowering] = {**LAYER_RULES, **MOVE_RULES}
"""Name of an ATen operation, or "getitem" -> the rule that lowers this operation."""


def _lower_node(editor: Editor, node: Node) -> list[Node] | str | None:
    if node.native or not node.op.startswith(("aten.", "operator.getitem")):
        return None
    rule = _RULES.get(aten_name(node))
    return rule(editor, node, bind_arguments(node)) if rule is not None else None


# -- what depends on weights alone is computed once --------------------------------------------------------------------

_LARGEST = 1 << 20
"""Number of elements by which a computed constant may exceed the weights that it is computed from."""


def compute_constants(graph: Graph) -> Graph:
    """Return the graph with constants in place of operations that depend only on weights and numbers."""
    constants: dict[str, Any] = {}
    names: dict[str, str] = {}
    tensors = dict(graph.tensors)
    nodes: list[Node] = []
    kept = set(graph.output_names)
    for old in graph.nodes:
        known = {
            name: {"tensor": names[name]} if name in names else constants[name]
            for name in old.inputs
            if name in constants
        }
        one = _without_input_of_new_tensor(graph, with_replaced_values(old, known) if known else old)
        if one.inputs or not _is_function_of_weights(one):
            nodes.append(one)
            continue
        with torch.no_grad():
            made = aten.bind_torch_node(one, tensors, "cpu")()
        size = sum(tensors[name].numel() for name in one.weights)
        if one.output in kept or not _can_be_constant(made, size + _LARGEST):
            nodes.append(one)
            continue
        constants[one.output] = made
        if isinstance(made, Tensor):
            names[one.output] = _name_for_constant(one, made, tensors)
            tensors[names[one.output]] = made.contiguous() if made.numel() else made
        elif isinstance(made, (tuple, list)):
            nodes.append(one)  # its entries are taken by later nodes
            del constants[one.output]
    return without_unused_nodes(replace(graph, tensors=tensors).with_nodes(nodes, tensors=tensors))


def _name_for_constant(node: Node, made: Tensor, tensors: Mapping[str, Tensor]) -> str:
    """Return a name for the constant `made`, which `node` computes.

    It is a new name made from that of the weight with as many elements that the node reads, or else that of the node's
    output.
    """
    like = next((name for name in node.weights.values() if tensors[name].shape == made.shape), None)
    if like is None and len(node.weights) == 1 and (only := next(iter(node.weights.values()))):
        like = only if tensors[only].numel() == made.numel() else None
    return node.output if like is None else unused_name(f"{like}{COMPUTED}", tensors)


_NEW = {"new_zeros": "zeros", "new_ones": "ones", "new_full": "full"}


def _without_input_of_new_tensor(graph: Graph, node: Node) -> Node:
    """Return `node` as a node that reads no tensor if it is `new_zeros`, `new_ones` or `new_full`; else unchanged."""
    op = _NEW.get(aten_name(node))
    if op is None:
        return node
    found = bind_arguments(node)
    if not all(type(size) is int for size in found["size"]):
        return node
    args = [found["size"], *([found["fill_value"]] if op == "full" else [])]
    kwargs = {"dtype": {"dtype": graph.values[node.output].dtype}}
    return with_replaced_values(Node(f"aten.{op}.default", (), node.output, {"args": args, "kwargs": kwargs}, {}), {})


def _is_function_of_weights(node: Node) -> bool:
    """Return whether a node without inputs computes the same result in every call, and is a torch operation."""
    if node.native:
        return False
    if node.op.startswith("operator."):
        return True
    return torch.Tag.nondeterministic_seeded not in aten.find_operation(node.op, trusted=True).tags


def _can_be_constant(made: Any, most_elements: int) -> bool:
    """Return whether a result is a number, a list, or a tensor with at most `most_elements` elements."""
    if isinstance(made, Tensor):
        return made.numel() <= most_elements and dtype_name(made.dtype) in DTYPES
    return isinstance(made, (bool, int, float, tuple, list))
