"""Captures a model once, compiles it under many masks, and assigns the time of a call to the model's parameters."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from ticketry_engine.capture import capture
from ticketry_engine.capture.tracing.torch_export import Arguments
from ticketry_engine.compiled import Compiled
from ticketry_engine.example_inputs import batch_of
from ticketry_engine.ir import Graph, model_file
from ticketry_engine.ir.shape_claims import layer_name, origins, parameters_of
from ticketry_engine.plan.value_axes import UnsupportedError as UnsupportedError

PLANAR, CHANNELS_LAST = "planes", "pixels"
"""Memory layouts in which a whole network can be compiled."""


@dataclass
class CallSeconds:
    """Seconds of one call of a model, divided into layers and other operations."""

    layers: dict[str, float]
    """Parameter name -> seconds of the layers that use this parameter."""
    others: dict[str, float]
    """Name of an operation -> seconds of all such operations that use no parameter in `layers`."""
    torch: set[str]
    """Names of the parameters whose layers run in torch."""

    @property
    def total(self) -> float:
        """Return the seconds of the whole call."""
        return sum(self.layers.values()) + sum(self.others.values())


class MaskedModel:
    """A captured model that can be compiled under any number of masks."""

    def __init__(
        self, model: nn.Module, example_inputs: Any, parameters: Iterable[str], *, upsampling: bool = True
    ) -> None:
        """Capture a model.

        Args:
            model: the model, on the CPU.
            example_inputs: a tensor, a tuple of arguments, or a dict of arguments by name.
            parameters: names of the parameters to which time is assigned.
            upsampling: whether transposed convolutions and interpolations run in sparse kernels, as in `capture`.

        Raises:
            EngineError: if the model cannot be captured.
        """
        self.model, self.names = model, tuple(parameters)
        self._example_inputs, self._upsampling = example_inputs, upsampling
        self.graph = capture(model, None, example_inputs, upsampling=upsampling)
        call = Arguments.of(example_inputs)
        self.args, self.kwargs = call.args, call.kwargs
        self.batch = batch_of(tuple(tree_flatten((self.args, self.kwargs))[0]))

    def masked_graph(self, keep: Mapping[str, Tensor] | None) -> Graph:
        """Return the graph with the weights under the mask `keep` (None: no mask).

        The model is captured again only if a masked parameter is not in the graph with its own name and shape.
        """
        if keep is None:
            return self.graph
        tensors = self.graph.tensors
        if all(name in tensors and tensors[name].shape == kept.shape for name, kept in keep.items()):
            # Folding a norm into a weight scales its rows, so that zeros stay where they are.
            masked = {name: tensors[name] * kept for name, kept in keep.items()}
            return replace(self.graph, tensors={**tensors, **masked})
        return capture(self.model, keep, self._example_inputs, upsampling=self._upsampling)

    def compile(
        self, keep: Mapping[str, Tensor] | None, *, threads: int, precision: str, layout: str | None = None
    ) -> Compiled:
        """Return the model compiled under the mask `keep`; `layout` None is the layout that is estimated to be faster.

        `threads` and `precision` are those of `ticketry_engine.compile`.
        """
        made = Compiled(self.masked_graph(keep), threads=threads, precision=precision, layout=layout)
        made.clock = time.thread_time  # profiles run on one thread
        return made

    def call(self, compiled: Callable[..., Any]) -> Callable[[], Any]:
        """Return a function that calls `compiled` with the example inputs."""
        return lambda: compiled(*self.args, **self.kwargs)

    def profile(self, compiled: Compiled, rounds: int, whole: float) -> CallSeconds:
        """Return the seconds of each layer, as medians on one thread, scaled so that their sum is `whole`.

        Without scaling, the times would be too long, because a call that is not timed layer by layer reads no clock and
        uses caches better.

        Args:
            compiled: the result of `compile`.
            rounds: number of calls that are timed layer by layer.
            whole: seconds of a call that is not timed layer by layer.
        """
        samples: dict[str, list[float]] = {}
        rows: dict[str, tuple[str, str]] = {}
        for _ in range(rounds):
            for index, row in enumerate(compiled.profile(*self.args, rounds=1, **self.kwargs)):
                if row.seconds is not None:
                    key = f"{index} {row.name}"
                    samples.setdefault(key, []).append(row.seconds)
                    rows[key] = (row.name, row.kind if row.where == "engine" else f"{row.kind} in torch")
        medians = {key: median(several) for key, several in samples.items()}
        factor = whole / max(sum(medians.values()), 1e-300)
        found = CallSeconds(dict.fromkeys(self.names, 0.0), {}, set())
        for key, seconds in medians.items():
            name, kind = rows[key]
            parameter = self.parameter_of(name)
            if parameter is None:
                found.others[kind] = found.others.get(kind, 0.0) + factor * seconds
            else:
                found.layers[parameter] += factor * seconds
                if kind.endswith(" in torch"):
                    found.torch.add(parameter)
        native = [parameters_of(node, self.origins) for node in self.graph.nodes if node.output not in compiled.reasons]
        found.torch |= set(self.names).difference(*native)
        return found

    def parameter_of(self, layer: str) -> str | None:
        """Return the parameter name of a layer of `Compiled.layers`; None if the layer uses no parameter in `names`."""
        return self._parameters.get(layer)

    @cached_property
    def origins(self) -> dict[str, str]:
        """Return, for tensors of the graph, the name of the parameter that the tensor was computed from."""
        return origins(self.graph, self.names)

    @cached_property
    def _parameters(self) -> dict[str, str]:
        found = {layer_name(tensor): parameter for tensor, parameter in self.origins.items()}
        for node in self.graph.nodes:  # what runs in torch is named after its output
            for parameter in parameters_of(node, self.origins):
                found[node.output] = parameter
        return found


# -- bytes of a model file by parameter and number of retained weights -------------------------------------------------


_SEAL_BYTES = 80
"""Number of bytes of the digest in a model file."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a model file that stores a parameter's weights; some layers are stored with additional zeros.

    `numbers` is the number of elements, and `number_bytes` the bytes of an element.
    """

    numbers: int
    number_bytes: int
    head_bytes: int
    """Number of bytes of the tensor's entry in the header of the file."""

    @property
    def dense_bytes(self) -> int:
        """Return the bytes of the tensor if all elements are stored."""
        return self.numbers * self.number_bytes

    def packed_bytes(self, kept: int) -> float:
        """Return the bytes of header entry, positions and values if only the `kept` retained weights are stored."""
        return self.head_bytes + model_file.position_bytes(kept, self.numbers) + self.number_bytes * kept


def stored_tensors(
    network: MaskedModel, parameters: Mapping[str, Tensor]
) -> tuple[float, dict[str, list[StoredTensor]]]:
    """Return (bytes of a model file that no mask saves, tensors of the file that store each parameter, by name).

    A parameter has several tensors if several norms are folded into it, and none if the file does not store its values.

    Args:
        network: the captured model.
        parameters: the model's parameters by name.
    """
    graph = network.graph
    forms: dict[str, list[str]] = {name: [] for name in parameters}
    for name, parameter in network.origins.items():
        if _has_all(graph.tensors[name], parameters[parameter]):
            forms[parameter].append(name)
    full = {name: torch.ones_like(graph.tensors[name]) for found in forms.values() for name in found}
    dense = replace(graph, tensors={**graph.tensors, **full})
    whole = len(model_file.dumps(dense, {"precision": "fp32"})) + _SEAL_BYTES
    total = model_file.weight_bytes(graph)
    stored = {
        parameter: [
            StoredTensor(full[name].numel(), full[name].element_size(), model_file.head_bytes(name, total))
            for name in found
        ]
        for parameter, found in forms.items()
    }
    return float(whole - sum(one.nbytes for one in full.values())), stored


def _has_all(tensor: Tensor, parameter: Tensor) -> bool:
    """Return whether a stored tensor contains each weight of `parameter` once, and otherwise only zeros."""
    return tensor.numel() == parameter.numel() or 0 < int(tensor.count_nonzero()) == int(parameter.count_nonzero())
