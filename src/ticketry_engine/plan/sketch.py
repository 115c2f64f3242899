"""A region before its memory is laid out: which operations it has, on which values, lying how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np
from torch import Tensor

from ticketry_engine.ir import Graph, Node
from ticketry_engine.plan import value_axes as forms
from ticketry_engine.plan.rearrangement import Rearranged, in_planes, rearranged, table_of, whole
from ticketry_engine.plan.storage import Storages
from ticketry_engine.plan.value_axes import Planned, UnsupportedError, ValueForm
from ticketry_engine.support.row_groups import row_groups

Like = tuple[str, Sequence[int], tuple[int, int]]


@dataclass(frozen=True, eq=False)
class RegionTask:
    """One operation of a region: a node, or the load ("load") or store ("store") of a value."""

    kind: str
    label: str
    inputs: tuple[ValueForm, ...]
    output: ValueForm
    """For a store: the stored value."""
    node: Node
    number: int = 0
    """For a load or store: the number of the region's input or output."""
    where: Planned | None = None
    """For a gather, [channels, positions]: the source of each element, as in `Rearranged.where`."""


@dataclass
class Sketch:
    """A region as operations whose values have axes of channels and positions, but no memory yet."""

    graph: Graph
    storages: Storages = field(default_factory=Storages)
    tasks: list[RegionTask] = field(default_factory=list)
    forms: dict[str, ValueForm | Rearranged] = field(default_factory=dict)
    """Storage of each value; a rearranged value is copied when an operation computes with it."""
    _constants: dict[tuple[str, str, tuple[int, int]], ValueForm] = field(default_factory=dict)
    _groups: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    _laid: dict[tuple[int, str, tuple[int, int]], tuple[Rearranged, ValueForm]] = field(default_factory=dict)
    """Copies of rearranged values, by the value's id; the value is stored, too, so that its id is not reused."""

    def load(self, name: str, number: int) -> ValueForm:
        """Add the load of a value from a tensor."""
        shape = self.graph.values[name].shape
        if shape is None or shape[0] is not None or self.graph.values[name].dtype != "float32":
            raise UnsupportedError("a value that is not float32 with the batch first")
        blank = forms.loaded(shape, 0)
        form = forms.loaded(shape, self.storages.add(blank.channels, blank.pixels, len(self.tasks)))
        self.storages.pin(form)
        self.tasks.append(RegionTask("load", "load", (), form, Node("load", (), name), number))
        self.forms[name] = form
        return form

    def store(self, name: str, number: int) -> None:
        """Add the store of a value to a tensor."""
        form = self.forms[name]
        if isinstance(form, Rearranged):
            form = self.laid(Node("store", (name,), ""), form, ("c" * (len(form.axes) - 2) + "pp")[-len(form.axes) :])
        self.storages.read(form, len(self.tasks))
        self.storages.pin(form)
        self.tasks.append(RegionTask("store", "store", (form,), form, Node("store", (name,), ""), number))

    def constant(self, node: Node, role: str, like: ValueForm, channels: Sequence[int]) -> ValueForm:
        """Return a weight as a value with the positions of another value and `channels` in their original order."""
        key = (node.weights[role], f"{like.labels} {list(channels)}", like.pixels)
        if key not in self._constants:
            held = Node("constant", (), node.weights[role], {}, {"constant": node.weights[role]})
            self._constants[key] = self.make(held, [], (like.labels, channels, like.pixels))
            self.storages.pin(self._constants[key])
        self.storages.alike([like, self._constants[key]])
        return self._constants[key]

    def weight(self, node: Node, role: str = "weight") -> Tensor:
        return self.graph.tensors[node.weights[role]]

    def groups(self, node: Node) -> list[tuple[int, int]]:
        """Return rows and columns of each group of rows with equal columns; computed once per weight."""
        name = node.weights["weight"]
        if name not in self._groups:
            self._groups[name] = [(len(one.rows), one.width) for one in row_groups(self.graph.tensors[name])]
        return self._groups[name]

    def products(self) -> list[tuple[RegionTask, Node]]:
        """Return the convolutions and linear layers."""
        return [(task, task.node) for task in self.tasks if task.kind in ("conv2d", "linear")]

    def make(self, node: Node, inputs: Sequence[ValueForm], like: Like, kind: str = "") -> ValueForm:
        """Add a task with a new output of labels, channel axes and pixels. The kind defaults to the node's."""
        labels, channels, pixels = like
        storage = self.storages.add(prod(channels), pixels, len(self.tasks))
        output = forms.fresh(labels, channels, pixels, storage)
        self.tasks.append(RegionTask(kind or node.op, node.output, tuple(inputs), output, node))
        return output

    def run(self, node: Node, form: ValueForm) -> ValueForm:
        """Return a value with consecutive positions: itself, or a copy if other readers need a halo between rows."""
        if form.pixels[0] == 1:
            return form
        self.reads(form)
        self.storages.pin(form)
        output = self.make(node, [form], (form.labels, form.planes.shape[:-1], form.pixels), "copy")
        self.storages.pin(output)
        return output

    def laid(
        self, node: Node, value: ValueForm | Rearranged, labels: str, pixels: tuple[int, int] | None = None
    ) -> ValueForm:
        """Return a value as planes with these labels and pixels: itself, or a copy.

        Raises:
            UnsupportedError: if it cannot be stored this way.
        """
        if isinstance(value, ValueForm) and value.labels == labels and pixels in (None, value.pixels):
            return value
        table = rearranged(value, self.storages)
        if len(labels) != len(table.axes):
            raise UnsupportedError(f"a value of {len(table.axes) + 1} axes")
        found = in_planes(table, labels, self.storages)
        if found is not None and pixels in (None, found.pixels):
            self.storages.pin(found)
            return found
        where, channels, size = table_of(table, labels)
        size = size if pixels is None else pixels
        if prod(size) != where.shape[1]:
            raise UnsupportedError("two values that lie differently")
        key = (id(value), labels, size)
        if isinstance(value, Rearranged) and key in self._laid:
            return self._laid[key][1]
        made = self._gathered(node, table, where, (labels, channels, size))
        if isinstance(value, Rearranged):
            self._laid[key] = (value, made)
        return made

    def _gathered(self, node: Node, table: Rearranged, where: Planned, like: Like) -> ValueForm:
        sources = [whole(number, self.storages) for number in table.sources]
        for source in sources:
            self.reads(source)
        made = self.make(node, sources, like, "gather")
        self.tasks[-1] = replace(self.tasks[-1], where=where)
        channels = where // prod(sources[0].pixels)
        same = len(sources) == 1 and made.channels == sources[0].channels
        if same and bool(((channels == np.arange(len(where))[:, None]) | (where < 0)).all()):
            self.storages.one_order(sources[0], made)
            return made
        for form in (*sources, made):
            self.storages.pin(form)
        return made

    def reads(self, form: ValueForm, halo: int = 0, halo_of_few: int | None = None) -> None:
        """Record that the next task reads a value."""
        self.storages.read(form, len(self.tasks), halo, halo_of_few)
