"""Bytes of a model file by parameter and number of retained weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ticketry_engine.costs.masked_model import MaskedModel
from ticketry_engine.ir import model_file

_SEAL_BYTES = 80
"""Bytes of the digest in a model file."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a model file that holds a parameter's weights, perhaps with zeros beside them."""

    numbers: int
    number_bytes: int
    head_bytes: int
    """Bytes of its entry in the head of the file."""

    @property
    def dense_bytes(self) -> int:
        """Bytes of its values when all are stored."""
        return self.numbers * self.number_bytes

    def packed_bytes(self, kept: int) -> float:
        """Return the bytes of head, positions and values if `kept` weights are retained."""
        return self.head_bytes + model_file.place_bytes(kept, self.numbers) + self.number_bytes * kept


def stored_tensors(
    network: MaskedModel, parameters: Mapping[str, Tensor]
) -> tuple[float, dict[str, list[StoredTensor]]]:
    """Return the bytes that no mask saves, and parameter -> the tensors that hold it in the model file.

    A parameter has several tensors if several norms are folded into it, and none if its values are not stored as such.
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
    """Return whether a tensor has each weight once, perhaps with zeros beside them."""
    return tensor.numel() == parameter.numel() or 0 < int(tensor.count_nonzero()) == int(parameter.count_nonzero())
