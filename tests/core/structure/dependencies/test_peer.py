"""Groups of coupled channels against those of Torch-Pruning's dependency graph, a peer that works by layers.

Where the two differ, channels are removed as each of them says: ours must leave the masked model, theirs does not.
Skipped where it is not installed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

import public_models
import small_networks
import ticketry as tk
from halving import without
from samples import sample
from ticketry.core.structure.layout import Roles, find_roles
from ticketry.tasks import models as networks

Parts = dict[tuple[str, str], set[int]]
"""(name of a layer, "outputs" or "inputs") -> channels"""

SAME = ("dense", "encoder", "attention", "heads", "lstm", "norms", "twice", "grouped-2", "resnet-20-8", "vgg-11@0.05")
"""Networks in which all groups agree."""

OTHERWISE = {
    "separable": "a convolution by depth with two outputs for each input is taken for a grouped one",
    "grouped-8": "one channel of a group cannot go alone: the group goes as a whole",
    "shuffle": "channels come out of a shuffle in another order than they went in",
    "mlp": "a gated unit has two inputs for each output",
    "padded": "channels that are padded are no longer at their places",
    "u-net": "a pixel shuffle makes one channel of four",
}
"""Networks in which some do not, and what theirs miss."""

PUBLIC = {
    **dict.fromkeys(("resnet18", "densenet121", "mobilenet_v2", "efficientnet_b0", "googlenet", "vit_b_16"), True),
    **dict.fromkeys(("resnext50_32x4d", "regnet_y_400mf"), False),
}
"""Networks of torchvision, and whether all groups agree: those with grouped convolutions do not."""


@pytest.fixture
def peer() -> ModuleType:
    return pytest.importorskip("torch_pruning", reason="torch-pruning is not installed: pip install 'ticketry[dev]'")


def case(name: str) -> tuple[nn.Module, Tensor]:
    if name in small_networks.NETWORKS:
        return small_networks.build(name)
    if name in PUBLIC:
        name = f"torchvision:{name}"
        return public_models.settled(public_models.build(name)), public_models.inputs(name)
    torch.manual_seed(0)
    model = networks.build(name, shape=(3, 16, 16), classes=5)
    return small_networks.settled(model), torch.randn(3, 3, 16, 16)


def ours(group: tk.structure.ChannelGroup, channel: int, parts: Roles) -> Parts:
    found: Parts = {}
    for member in group.parameters:
        layer, _, local = member.name.rpartition(".")
        place = member.name, member.dim
        if local == "weight":
            makes = place in parts.outputs or place not in parts.inputs
            found.setdefault((layer, "outputs" if makes else "inputs"), set()).update(member.indices[channel])
    return found


class Graph:
    """Torch-Pruning's dependencies of one model."""

    def __init__(self, library: ModuleType, model: nn.Module, x: Tensor) -> None:
        self.model, self.library = model.eval(), library
        self.modules = dict(model.named_modules())
        self.names = {module: name for name, module in self.modules.items()}
        self.graph = library.DependencyGraph().build_dependency(model, x)

    def group(self, layer: str, channels: Sequence[int]) -> Any:
        module = self.modules[layer]
        pruner = self.graph.get_pruner_of_module(module)
        return self.graph.get_pruning_group(module, pruner.prune_out_channels, list(channels))

    def parts(self, layer: str, channels: Sequence[int]) -> Parts:
        found: Parts = {}
        for dependency, indices in self.group(layer, channels):
            module = dependency.target.module
            if module in self.names and isinstance(getattr(module, "weight", None), nn.Parameter):
                kind = "outputs" if self.graph.is_out_channel_pruning_fn(dependency.handler) else "inputs"
                found.setdefault((self.names[module], kind), set()).update(self._in_group(module, kind, indices))
        return found

    @staticmethod
    def _in_group(module: nn.Module, kind: str, indices: Sequence[int]) -> set[int]:
        """Inputs of a grouped convolution as its weight has them: counted within their group."""
        grouped = isinstance(module, _ConvNd) and module.groups > 1 and kind == "inputs"
        return {i % (module.in_channels // module.groups) if grouped else i for i in indices}


def removal_is_exact(library: ModuleType, model: nn.Module, x: Tensor, layer: str, channels: Sequence[int]) -> bool:
    """Whether the peer's smaller model is the larger one with the same channels of all its tensors at 0."""
    small, masked = copy.deepcopy(model), copy.deepcopy(model)
    graph, large = Graph(library, small, x), dict(masked.named_modules())
    parts = graph.parts(layer, channels)
    try:
        graph.group(layer, channels).prune()
        with torch.no_grad():
            for (name, kind), indices in parts.items():
                module, gone = large[name], torch.tensor(sorted(indices))
                transposed = isinstance(module, _ConvNd) and module.transposed
                made = kind == "outputs"
                dim = 0 if module.weight.dim() == 1 or made != transposed else 1
                module.weight.index_fill_(dim, gone, 0)
                if made and module.bias is not None:
                    module.bias.index_fill_(0, gone, 0)
            found, wanted = small.eval()(x), masked.eval()(x)
    except (RuntimeError, IndexError, ZeroDivisionError, ValueError):
        return False
    return found.shape == wanted.shape and float((found - wanted).abs().max()) <= 1e-4 * float(wanted.abs().max())


def compared(library: ModuleType, name: str) -> Mapping[bool, list[tuple[str, list[int]]]]:
    """The channels of which both say the same (True) and not: the layer that makes them, and its outputs."""
    model, x = case(name)
    groups, parts = tk.structure.channel_groups(model, x), find_roles(model)
    model, x = model.float(), x.float() if x.is_floating_point() else x
    graph = Graph(library, model, x)
    found: dict[bool, list[tuple[str, list[int]]]] = {True: [], False: []}
    for group in groups:
        makers = [m for m in group.parameters if (m.name, m.dim) in parts.outputs and m.name.endswith(".weight")]
        if group.prunable and makers:
            layer = makers[0].name.rpartition(".")[0]
            for channel in {0, group.size // 2, group.size - 1}:
                outputs = list(makers[0].indices[channel])
                found[ours(group, channel, parts) == graph.parts(layer, outputs)].append((layer, outputs))
    return found


@pytest.mark.parametrize("name", sample(SAME, 5))
def test_the_same_groups(peer: ModuleType, name: str) -> None:
    found = compared(peer, name)
    assert len(found[True]) >= 3
    assert not found[False]


@pytest.mark.parametrize("name", sample(OTHERWISE, 3))
def test_where_groups_differ_ours_are_exact(peer: ModuleType, name: str) -> None:
    found = compared(peer, name)
    _, x = case(name)
    exact = [removal_is_exact(peer, case(name)[0].float(), x.float(), *place) for place in found[False]]
    assert exact.count(False) > exact.count(True)  # one that is padded may be at its place again when another goes
    for layer, outputs in found[True]:  # the check can pass
        assert removal_is_exact(peer, case(name)[0].float(), x.float(), layer, outputs)
    _ours_are_exact(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLIC)
def test_groups_of_public_networks(peer: ModuleType, name: str) -> None:
    found = compared(peer, name)
    assert len(found[True]) > len(found[False]) / 4
    assert bool(found[False]) != PUBLIC[name]
    for layer, outputs in found[False][:6]:
        model, x = case(name)
        assert not removal_is_exact(peer, model, x, layer, outputs)
    if not PUBLIC[name]:
        _ours_are_exact(name)


def _ours_are_exact(name: str) -> None:
    model, x = case(name)
    mask = without(model, tk.structure.channel_groups(model, x))
    small, masked = tk.shrink(model, mask, x).eval(), mask.apply_(copy.deepcopy(model)).eval()
    with torch.no_grad():
        assert torch.allclose(small.double()(x.double()), masked.double()(x.double()), rtol=1e-9, atol=1e-9)
