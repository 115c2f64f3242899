"""Which dimensions of a layer's weight are its outputs and its inputs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.modules.conv import _ConvNd

from ticketry.core.scope import NORMS, named_parameters
from ticketry.core.structure.twin import unwrapped


@dataclass(frozen=True)
class Roles:
    """Sets of (parameter, dimension), and names of parameters."""

    outputs: frozenset[tuple[str, int]]
    """Dimensions of weights along which a layer's outputs lie."""
    inputs: frozenset[tuple[str, int]]
    """Those along which it takes its inputs. Both of a depthwise convolution are dimension 0."""
    scales: frozenset[str]
    """Scales of norms."""


def roles(model: nn.Module) -> Roles:
    """The roles of all parameters; of a parameter that no known layer has, every dimension is an output."""
    inner = unwrapped(model)
    names = {id(parameter): name for name, parameter in named_parameters(inner).items()}
    outputs: set[tuple[str, int]] = set()
    inputs: set[tuple[str, int]] = set()
    scales: set[str] = set()
    for module in inner.modules():
        for local, parameter in module.named_parameters(recurse=False):
            name = names[id(parameter)]
            if isinstance(module, NORMS):
                scales |= {name} if local == "weight" else set()
            elif parameter.dim() > 1:
                made, taken = _dimensions(module, local, parameter.dim())
                outputs |= {(name, dim) for dim in made}
                inputs |= {(name, dim) for dim in taken}
    return Roles(frozenset(outputs), frozenset(inputs), frozenset(scales))


def _dimensions(module: nn.Module, local: str, dimensions: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(outputs, inputs)"""
    if isinstance(module, _ConvNd):
        if module.groups > 1 and module.in_channels == module.groups:
            return (0, 1) if module.transposed else (0,), (0,)
        return ((1,), (0,)) if module.transposed else ((0,), (1,))
    if isinstance(module, (nn.Linear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)):
        return (0,), (1,)
    if isinstance(module, nn.Bilinear):
        return (0,), (1, 2)
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) or type(module).__name__ == "Conv1D":
        return (1,), (0,)
    return tuple(range(dimensions)), ()
