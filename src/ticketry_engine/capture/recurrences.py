"""Replaces recurrences that are written step by step, such as selective scans, by one node for all steps.

A model that loops over its tokens is captured with a few small operations for each token. Calling such an operation
takes longer than its computation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ticketry_engine.capture.editor import (
    Editor,
    NoMatchError,
    Shape,
    aten_name,
    bind_arguments,
    require_match,
    rewrite_nodes,
    value_name,
    with_last_output,
)
from ticketry_engine.capture.lower_moves import reshape_node
from ticketry_engine.ir import Graph, Json, Node

_VIEWS = ("reshape", "flatten")


def recognise_recurrences(graph: Graph) -> Graph:
    """Return the graph with one node in place of each recurrence, and of each loop of matrix products.

    A recurrence computes ``state = decay[t] * state + added[t]`` for all t along an axis; its node has the operation
    ``scan``.
    """
    steps = dict(_find_recurrences(graph))
    if steps:
        graph = rewrite_nodes(graph, _ScanRule(steps))
    return rewrite_nodes(rewrite_nodes(graph, _recognise_repeated_product), _recognise_stack)


@dataclass(frozen=True)
class _Entry:
    """A slice of the value `source` at the position `index` along `axis`, possibly reshaped."""

    source: str
    axis: int
    index: int


def _match_single_slice(makers: Mapping[str, Node], name: str) -> _Entry:
    """Return the slice that the value `name` is; raise `NoMatchError` if it is no slice at a single position."""
    maker = makers.get(name)
    while maker is not None and maker.op in _VIEWS:
        maker = makers.get(maker.inputs[0])
    if maker is None or maker.op != "slice" or maker.attrs["stop"] != maker.attrs["start"] + 1:
        raise NoMatchError
    return _Entry(maker.inputs[0], int(maker.attrs["axis"]), int(maker.attrs["start"]))


# -- state = decay[t] * state + added[t] -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Step:
    """A step of a recurrence, ``output = decay * before + added``, where `before` is the previous step's output."""

    output: str
    decay: _Entry
    added: _Entry
    before: str
    """Name of the previous state's value; if `begins`, name of a weight, the state before the first step."""
    begins: bool = False

    @property
    def axis(self) -> int:
        return self.added.axis

    def follows(self, other: _Step) -> bool:
        """Return whether this step comes right after the step `other` of the same recurrence."""
        same = (self.decay.source, self.added.source) == (other.decay.source, other.added.source)
        return same and not self.begins and self.before == other.output and self.added.index == other.added.index + 1


@dataclass(frozen=True)
class _InChain:
    """The place of `step` in its recurrence, which has `count` steps and begins with the step `first`."""

    step: _Step
    first: _Step
    count: int


def _find_recurrences(graph: Graph) -> Iterator[tuple[str, _InChain]]:
    """Yield (name of a step's output, place of the step in its recurrence).

    Only recurrences over all positions of an axis are found.
    """
    makers = graph.node_by_output
    steps = [step for one in graph.nodes for step in _match_recurrence_steps(graph, makers, one)]
    behind: dict[str, list[_Step]] = {}
    for step in steps:
        behind.setdefault(step.before, []).append(step)
    for step in steps:
        if step.added.index:
            continue
        chain = [step]
        while following := [one for one in behind.get(chain[-1].output, ()) if one.follows(chain[-1])]:
            chain.append(following[0])
        if 1 < len(chain) == (graph.values[step.added.source].shape or ())[step.axis]:
            yield from ((one.output, _InChain(one, step, len(chain))) for one in chain)


def _match_recurrence_steps(graph: Graph, makers: Mapping[str, Node], node: Node) -> Iterator[_Step]:
    """Yield each way in which the sum `node` is ``decay * before + added``, a step of a recurrence.

    `makers` has the node that computes each value, by value name.
    """
    if node.op != "add" or node.attrs["act"] is not None:
        return
    for product, added in (node.inputs, node.inputs[::-1]):
        maker = makers.get(product)
        if maker is None or maker.op not in ("mul", "mul_constant") or maker.attrs["act"] is not None:
            continue
        begins = maker.op == "mul_constant"
        factors = (*maker.inputs, maker.weights["constant"]) if begins else maker.inputs
        for decay, before in (factors,) if begins else (factors, factors[::-1]):
            with contextlib.suppress(NoMatchError):
                step = _Step(
                    node.output, _match_single_slice(makers, decay), _match_single_slice(makers, added), before, begins
                )
                require_match((step.decay.axis, step.decay.index) == (step.added.axis, step.added.index))
                sources = [graph.values[entry.source] for entry in (step.decay, step.added)]
                states = [graph.values[name] for name in (decay, added, node.output, *(() if begins else (before,)))]
                require_match(len({value.dtype for value in (*sources, *states)}) == 1)
                require_match(sources[0].shape == sources[1].shape and sources[0].shape is not None)
                shape, axis = sources[0].shape or (), step.axis
                require_match({value.shape for value in states} == {(*shape[:axis], *shape[axis + 1 :])})
                yield step


class _ScanRule:
    """A function for `rewrite_nodes` that computes a recurrence in one ``scan`` node, and each state as its slice."""

    def __init__(self, places: Mapping[str, _InChain]) -> None:
        self._places = places
        self._states: dict[str, str] = {}

    def __call__(self, editor: Editor, node: Node) -> list[Node]:
        found = self._places.get(node.output)
        if found is None:
            raise NoMatchError
        first, nodes = found.first, []
        if found.step is first:
            sources = (first.decay.source, first.added.source)
            held = {"start": first.before} if first.begins else {}
            inputs = sources if held else (*sources, first.before)
            nodes = [editor.make_node("scan", inputs, node.output, held, axis=first.axis)]
            self._states[node.output] = nodes[0].output
        axis, index = found.step.axis, found.step.added.index
        part = editor.make_node(
            "slice", (self._states[first.output],), node.output, axis=axis, start=index, stop=index + 1
        )
        return [*nodes, part, reshape_node(editor, part.output, node.output)]


# -- stack([f(left[t], right[t]) for t in ...]) ------------------------------------------------------------------------


def _stacked_values(editor: Editor, node: Node) -> tuple[list[str], int]:
    """Return the names of the values that a node stacks, and the index of the new axis."""
    require_match(not node.native and aten_name(node) == "stack")
    found = bind_arguments(node)
    names = [value_name(arg) for arg in found["tensors"]]
    parts = [name for name in names if name is not None]
    require_match(1 < len(parts) == len(names) and editor.share_float_dtype(*parts, node.output))
    axis = int(found["dim"]) % len(editor.shape(node.output) or ())
    require_match(axis > 0)
    return parts, axis


def _match_slices_of_axis(editor: Editor, names: list[str]) -> tuple[str, int]:
    """Return (source, axis) if the values `names` are the slices of `source` at all positions of `axis`, in order."""
    entries = [_match_single_slice(editor.makers, name) for name in names]
    source, axis = entries[0].source, entries[0].axis
    require_match(entries == [_Entry(source, axis, index) for index in range(len(names))])
    require_match((editor.shape(source) or ())[axis] == len(names) and len({editor.shape(name) for name in names}) == 1)
    return source, axis


def _add_axis_moved_first(editor: Editor, source: str, axis: int, shape: Shape, nodes: list[Node]) -> str:
    """Append nodes that move `axis` of `source` to axis 1 and reshape its slices to `shape`; return the new name."""
    whole = editor.shape(source) or ()
    if axis != 1:
        axes = [0, axis, *(other for other in range(1, len(whole)) if other != axis)]
        nodes.append(editor.make_node("transpose", (source,), source, axes=axes))
        source = nodes[-1].output
    wanted: list[Json] = [shape[0], whole[axis], *shape[1:]]
    if list(editor.shape(source) or ()) != wanted:
        nodes.append(editor.make_node("reshape", (source,), source, shape=wanted))
        source = nodes[-1].output
    return source


def _add_axis_moved_back(editor: Editor, x: str, axis: int, nodes: list[Node]) -> str:
    """Append nodes that move axis 1 of the value `x` to `axis`, and return the name of the moved value."""
    if axis == 1:
        return x
    rank = len(editor.shape(x) or ())
    axes = [0, *range(2, axis + 1), 1, *range(axis + 1, rank)]
    nodes.append(editor.make_node("transpose", (x,), x, axes=axes))
    return nodes[-1].output


def _recognise_stack(editor: Editor, node: Node) -> list[Node] | str:
    """Replace a stack of all slices along an axis by the value that was sliced, with the axis moved."""
    parts, axis = _stacked_values(editor, node)
    nodes: list[Node] = []
    x = _add_axis_moved_first(editor, *_match_slices_of_axis(editor, parts), editor.shape(parts[0]) or (), nodes)
    return with_last_output(nodes, _add_axis_moved_back(editor, x, axis, nodes), node.output)


def _recognise_repeated_product(editor: Editor, node: Node) -> list[Node] | str:
    """Replace stack([view(left[t] @ right[t]) for t in ...]) by one batched matrix product over all t."""
    parts, axis = _stacked_values(editor, node)
    products = [_match_matrix_product(editor, name) for name in parts]
    shape = editor.shape(parts[0]) or ()
    require_match(
        len({editor.shape(name) for name in parts}) == 1 and shape and shape[0] == (editor.shape(node.output) or ())[0]
    )
    sides = [[value_name(bind_arguments(product)[role]) or "" for product in products] for role in ("self", "other")]
    nodes: list[Node] = []
    together = []
    for names in sides:
        side = editor.shape(names[0]) or ()
        require_match(len(side) >= 3)  # a vector has no batch axis
        together.append(_add_axis_moved_first(editor, *_match_slices_of_axis(editor, names), side, nodes))
    before = editor.shape(products[0].output) or ()
    steps = len(parts)
    whole = editor.add_value(node.output, (before[0], steps, *before[1:]))
    args = [{"value": name} for name in together]
    nodes.append(Node(products[0].op, tuple(together), whole, {"args": args, "kwargs": {}}, {}))
    viewed = [shape[0], steps, *shape[1:]]
    if list(editor.shape(whole) or ()) != viewed:
        nodes.append(editor.make_node("reshape", (whole,), whole, shape=viewed))
        whole = nodes[-1].output
    return with_last_output(nodes, _add_axis_moved_back(editor, whole, axis, nodes), node.output)


def _match_matrix_product(editor: Editor, name: str) -> Node:
    """Return the node of the matrix product whose result, possibly reshaped, is the value `name`."""
    maker = editor.makers.get(name)
    while maker is not None and maker.op in _VIEWS:
        maker = editor.makers.get(maker.inputs[0])
    if maker is None or maker.native or aten_name(maker) != "matmul" or len(set(maker.inputs)) != 2:
        raise NoMatchError
    ranks = {len(editor.shape(side) or ()) for side in maker.inputs}
    require_match(editor.share_float_dtype(*maker.inputs, maker.output) and len(ranks) == 1)
    return maker
