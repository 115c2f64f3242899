"""Groups of coupled channels: against groups written down by hand, and against Torch-Pruning's dependency graph."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ticketry as tk
from ticketry.core.structure import ChannelGroup
from ticketry.errors import StructureError
from ticketry.tasks.models import networks

sys.path.insert(0, str(Path(__file__).parent))
from small_networks import Attention, Norms, build, vectors


def groups(model: nn.Module, x: Any) -> dict[str, ChannelGroup]:
    return {group.name: group for group in tk.structure.channel_groups(model, x) if group.prunable}


def places(group: ChannelGroup, channel: int) -> set[tuple[str, int, int]]:
    return {(m.name, m.dim, index) for m in group.members for index in m.indices[channel]}


# -- by hand -----------------------------------------------------------------------------------------------------------


def test_flattening() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 5), nn.Linear(5, 2))
    found = groups(model, torch.randn(2, 2, 4, 4))
    assert places(found["0"], 1) == {
        ("0.weight", 0, 1),
        ("0.bias", 0, 1),
        *(("1." + part, 0, 1) for part in ("weight", "bias", "running_mean", "running_var")),
        *(("3.weight", 1, 4 + pixel) for pixel in range(4)),
    }
    assert places(found["3"], 4) == {("3.weight", 0, 4), ("3.bias", 0, 4), ("4.weight", 1, 4)}
    assert set(found) == {"0", "3"}


def test_residual_streams() -> None:
    torch.manual_seed(0)
    model = networks.build("resnet-20-8", shape=(3, 8, 8), classes=5)
    found = groups(model, torch.randn(2, 3, 8, 8))
    stream = {(m.name, m.dim) for m in found["conv"].parameters}
    first = [f"blocks.{i}." for i in range(3)]
    assert stream == {
        *(("conv.weight", 0), ("bn.weight", 0), ("bn.bias", 0), ("blocks.3.conv1.weight", 1)),
        ("blocks.3.shortcut.0.weight", 1),
        *((f"{block}conv1.weight", 1) for block in first),
        *((f"{block}conv2.weight", 0) for block in first),
        *((f"{block}bn2.{part}", 0) for block in first for part in ("weight", "bias")),
    }
    assert len(found) == 3 + 9  # three streams, nine blocks


def test_concatenation_shifts_indices() -> None:
    model, x = build("dense")
    found = groups(model, x)
    assert ("layers.2.2.weight", 0, 1) in places(found["layers.2.2"], 1)
    assert ("fc.weight", 1, 15) in places(found["layers.2.2"], 1)
    assert ("fc.weight", 1, 7) in places(found["layers.0.2"], 1)
    assert [group.size for group in found.values()] == [6, 4, 4, 4]


def test_units_of_recurrent_layers() -> None:
    model, x = build("lstm")
    (unit,) = (group for name, group in groups(model, x).items() if name == "rnn")
    gates = {10 * gate + 3 for gate in range(4)}
    wanted = {("mlp.weight", 1, 3), ("rnn.weight_ih_l1", 1, 3)}
    for layer in "01":
        wanted |= {(f"rnn.weight_hh_l{layer}", 1, 3)}
        wanted |= {
            (f"rnn.{kind}_l{layer}", 0, i) for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh") for i in gates
        }
    assert places(unit, 3) == wanted


def test_groups_of_norms_and_convolutions_go_as_a_whole() -> None:
    model, x = build("norms")
    assert places(groups(model, x)["a"], 2) >= {("a.weight", 0, 4), ("a.weight", 0, 5), ("group.bias", 0, 5)}
    model, x = build("grouped-8")
    unit = places(groups(model, x)["a"], 7)
    assert unit >= {
        ("a.weight", 0, 14),
        ("a.weight", 0, 15),
        ("g.weight", 0, 21),
        ("g.weight", 0, 23),
        ("b.weight", 1, 23),
    }
    model, x = build("grouped-2")
    assert {(n, d, i) for n, d, i in places(groups(model, x)["a"], 7) if n == "g.weight"} == {("g.weight", 1, 7)}


@pytest.mark.parametrize(
    ("name", "layer", "reason"),
    [
        ("encoder", "place", "nn.MultiheadAttention has one width .*layers.layers.0.self_attn"),
        ("encoder", "head", "output of the model"),
        ("grouped-2", "fc", "output of the model"),
        ("lstm", "embed", "entries of an embedding are looked up"),
        ("padded", "b", "it meets a channel that stays"),
    ],
)
def test_what_stays_says_why(name: str, layer: str, reason: str) -> None:
    model, x = build(name)
    staying = [g for g in tk.structure.channel_groups(model, x) if g.name == layer and not g.prunable]
    assert any(re.search(reason, group.reason) for group in staying)


def test_heads_of_attention() -> None:
    """The code says the width of a head, 4: whole heads go, from query, key and value, and from what reads them."""
    model, x = build("heads")
    unit = places(groups(model, x)["q"], 1)
    rows = {(f"{layer}.{part}", 0, i) for layer in "qkv" for part in ("weight", "bias") for i in range(4, 8)}
    assert unit == rows | {("out.weight", 1, i) for i in range(4, 8)}
    model, x = build("shared-keys")
    assert set(groups(model, x)) == {"mlp.0"}


def test_numbers_in_the_code_are_found_on_trial() -> None:
    """Two models that differ in one number: the width of a head, written out or not."""
    x = vectors(3, 4, 5)
    torch.manual_seed(0)
    assert "qkv" in groups(Attention(written_out=False).double(), x)
    (qkv,) = (g for g in tk.structure.channel_groups(Attention(written_out=True).double(), x) if g.name == "qkv")
    assert "not the same without its channels" in qkv.reason
    assert "shape" in qkv.reason


class _Opaque(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.cumsum(x, 1)


class Unknown(nn.Module):
    """An operation without a rule between two layers, the second of which is used again."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(torch.relu(_Opaque.apply(self.a(x))))))


def test_an_unknown_operation_stays() -> None:
    found = tk.structure.channel_groups(Unknown(), torch.randn(3, 4))
    reasons = {group.name: group.reason for group in found}
    assert "aten.cumsum.default cannot be followed" in reasons["a"]
    assert reasons["b"] == ""


class AuxiliaryHead(nn.Module):
    """A second reader of the hidden layer, in training mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.out, self.extra = nn.Linear(4, 6), nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        x = torch.relu(self.a(x))
        return (self.out(x), self.extra(x)) if self.training else self.out(x)


def test_training_mode_counts() -> None:
    model = AuxiliaryHead()
    assert ("extra.weight", 1, 5) in places(groups(model, torch.randn(3, 4))["a"], 5)
    assert model.training


def test_unused_layers_stay() -> None:
    class Spare(AuxiliaryHead):
        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.relu(self.a(x)))

    found = {group.name: group for group in tk.structure.channel_groups(Spare(), torch.randn(3, 4))}
    assert "does not use" in found["extra"].reason
    assert found["a"].prunable


def test_inputs_that_do_not_fit() -> None:
    with pytest.raises(StructureError, match="Norms does not run on the example inputs in evaluation mode"):
        tk.structure.channel_groups(Norms(affine=True), torch.randn(2, 4, 8, 8))


def test_a_tuple_of_inputs_and_no_trace_left() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, one: Tensor, other: Tensor) -> dict[str, Tensor]:
            return {"out": self.c(torch.relu(self.a(one) * self.b(other)))}

    model = Two()
    before, state = torch.get_rng_state(), {key: value.clone() for key, value in model.state_dict().items()}
    found = groups(model, (torch.randn(2, 4), torch.randn(2, 3)))
    torch.set_rng_state(before)
    assert {(m.name, m.dim) for m in found["a"].members} >= {("a.weight", 0), ("b.weight", 0), ("c.weight", 1)}
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert model.a.weight.dtype == torch.float32


# -- a peer ------------------------------------------------------------------------------------------------------------


def peer_units(model: nn.Module, x: Tensor) -> set[frozenset[tuple[str, int, int]]]:
    """What Torch-Pruning removes together with each output channel of each layer: (parameter, dimension, index)."""
    pruning = pytest.importorskip("torch_pruning")
    graph = pruning.DependencyGraph().build_dependency(model, x, verbose=False)
    names = {id(module): name for name, module in model.named_modules()}
    units = set()
    for module in model.modules():
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            continue
        pruner = graph.get_pruner_of_module(module)
        for channel in range(pruner.get_out_channels(module)):
            unit = set()
            for dependency, indices in graph.get_pruning_group(module, pruner.prune_out_channels, [channel]):
                layer, name = dependency.target.module, names.get(id(dependency.target.module))
                if name is None or not any(True for _ in layer.parameters(recurse=False)):
                    continue
                if graph.is_out_channel_pruning_fn(dependency.handler):
                    parts = [local for local, _ in layer.named_parameters(recurse=False)]
                    unit |= {(f"{name}.{local}", 0, index) for local in parts for index in indices}
                else:
                    unit |= {(f"{name}.weight", 1, index) for index in indices}
            units.add(frozenset(unit))
    return units


@pytest.mark.parametrize("name", ["lenet-5@0.2", "conv-4@0.1", "resnet-20-8", "wrn-16-8@0.1", "dense"])
def test_against_torch_pruning(name: str) -> None:
    shape = (1, 20, 20) if "lenet" in name else (3, 8, 8)
    if name == "dense":
        model, x = build(name)
    else:
        torch.manual_seed(0)
        model, x = networks.build(name, shape=shape, classes=5), torch.randn(2, *shape)
    mine = set()
    for group in groups(model, x).values():
        for channel in range(group.size):
            parts = {(m.name, m.dim, index) for m in group.parameters for index in m.indices[channel]}
            mine.add(frozenset(parts))
    theirs = peer_units(model.eval(), x)
    assert mine <= theirs
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    assert len(theirs - mine) == last.out_features  # it does not know that outputs stay
