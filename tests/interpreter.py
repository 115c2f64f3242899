"""An interpreter for whole graphs in plain torch: the truth that compiled ones are tested against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ticketry_engine.ir import Graph, Node, last_uses
from ticketry_engine.ir.binding import CallBinder, build_object
from ticketry_engine.ir.native import Function
from ticketry_engine.ir.reference import Cast, bind_node, with_output_check


def reference(node: Node, tensors: Mapping[str, Tensor], inputs: Sequence[Any]) -> Any:
    """Compute a node from its inputs."""
    with torch.no_grad():
        return bind_node(node, tensors)(*inputs)


class Program:
    """A graph ready to be run by torch, one operation after the other.

    Args:
        graph: a valid graph; it is not validated here.
        precision: "float64", "bfloat16", ...: weights, inputs and all that is computed in the graph's own floating
            point type are of this type instead; None leaves them.
    """

    def __init__(
        self, graph: Graph, *, precision: str | None = None, device: str | torch.device = "cpu", check: bool = True
    ) -> None:
        self.graph = graph
        self._call = CallBinder(graph)
        self._cast = Cast(graph, precision)
        slots = {name: index for index, name in enumerate(graph.values)}
        tensors = {name: self._cast(tensor).to(device) for name, tensor in graph.tensors.items()}
        done = last_uses([(node.inputs, (node.output,)) for node in graph.nodes], graph.output_names)
        self._steps: list[tuple[Function, tuple[int, ...], int, tuple[int, ...]]] = []
        for node, free in zip(graph.nodes, done, strict=True):
            function = bind_node(self._cast.convert_node(node), tensors, device=device)
            if check and not node.native:
                function = with_output_check(function, self._cast.convert_value(graph.values[node.output]), node)
            inputs = tuple(slots[name] for name in node.inputs)
            self._steps.append((function, inputs, slots[node.output], tuple(slots[name] for name in free)))
        self._inputs = tuple(slots[name] for name in graph.inputs)
        self._count = len(slots)
        self._slots = slots

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the network as the model was called."""
        found = self.values(self._call.bind(args, kwargs))
        return build_object(self.graph.outputs, found)

    def values(self, inputs: Sequence[Tensor]) -> dict[str, Any]:
        """Value -> tensor of every output of the graph, of inputs in the graph's order."""
        held: list[Any] = [None] * self._count
        with torch.no_grad():
            for slot, tensor in zip(self._inputs, inputs, strict=True):
                held[slot] = self._cast(tensor)
            for function, arguments, slot, done in self._steps:
                held[slot] = function(*[held[argument] for argument in arguments])
                for old in done:
                    held[old] = None
        return {name: held[self._slots[name]] for name in self.graph.output_names}


def run(graph: Graph, *args: Any, precision: str | None = None, **kwargs: Any) -> Any:
    """Call a graph once. For many calls make a `Program` and keep it."""
    return Program(graph, precision=precision)(*args, **kwargs)
