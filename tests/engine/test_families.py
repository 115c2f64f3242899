"""Networks of many families: what is captured computes what the model does, for another number of examples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from engine.families import FAMILIES, TIMM, TORCHVISION, image, shake, torchvision_size
from interpreter import Program
from samples import sample
from tasks.models.library_support import import_or_skip
from ticketry.core.mask import Mask
from ticketry.core.scope import scope
from ticketry.tasks.models.networks import build, names
from ticketry_engine.capture import capture
from ticketry_engine.ir import Graph
from ticketry_engine.ir.model_file import dumps, loads


def random_mask(model: nn.Module, density: float = 0.5) -> Mask:
    generator = torch.Generator().manual_seed(1)
    shapes = scope(model).shapes
    return Mask({name: torch.rand(shape, generator=generator) < density for name, shape in shapes.items()})


def doubled(tree: Any) -> Any:
    return tree_map(lambda leaf: leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf, tree)


def other_batch(tree: Any, batch: int) -> Any:
    """Inputs like the example's, of other values and another number of examples."""

    def grow(leaf: Tensor) -> Tensor:
        repeated = torch.cat([leaf] * batch)[:batch]
        return torch.randn_like(repeated) if leaf.is_floating_point() else repeated

    return tree_map(grow, tree)


def call(function: Any, inputs: Any) -> Any:
    with torch.no_grad():
        return function(**inputs) if isinstance(inputs, dict) else function(inputs)


def tensors(outputs: Any) -> list[Tensor]:
    plain = dict(outputs) if isinstance(outputs, dict) else outputs
    return [leaf for leaf in tree_flatten(plain)[0] if isinstance(leaf, Tensor)]


def captured(model: nn.Module, example: Any, *, batch: int = 5) -> Graph:
    """Capture the masked model, compare with it in float64, and return the graph."""
    model = shake(model.eval().double())
    example = doubled(example)
    mask = random_mask(model)
    graph = capture(model, mask, example)
    assert not graph.notes
    mask.apply_(model)
    inputs = other_batch(example, batch)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the reference has to run the same formulas
    try:
        wanted = tensors(call(model, inputs))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    read, _ = loads(dumps(graph))
    for one in (graph, read):
        found = tensors(call(Program(one), inputs))
        assert len(found) == len(wanted) > 0
        for made, right in zip(found, wanted, strict=True):
            assert made.shape == right.shape
            assert float((made - right).abs().max()) <= 1e-9 * max(float(right.abs().max()), 1e-30)
    return graph


def torch_nodes(graph: Graph) -> set[str]:
    return {one.op.split(".")[1] for one in graph.nodes if not one.native}


@pytest.mark.parametrize("name", sample(names(), ("lenet-300-100", "resnet-20-8", "conv-4-16")))
def test_our_own_networks_become_native_as_a_whole(name: str) -> None:
    torch.manual_seed(0)
    shape = (1, 28, 28) if name.startswith("lenet") else (3, 32, 32)
    graph = captured(build(name, shape=shape, classes=10), torch.randn(1, *shape))
    assert not torch_nodes(graph)
    assert not {one.op for one in graph.nodes} & {"reshape", "transpose"}
    if "resnet" in name or "vgg" in name:  # conv - norm - relu throughout
        assert not {one.op for one in graph.nodes} & {"affine", "act", "add"}


SIZES = {"sym_size", "expand", "arange", "unsqueeze", "mul"}
EMBEDDING = {"embedding", "add", *SIZES}

LEFT = {
    "lstm tagger": {"embedding", "zeros", "lstm", "getitem", "sym_size"},
    "u-net": {"conv_transpose2d", "upsample_bilinear2d"},
    "torch transformer": set(),
    "bert": {*EMBEDDING, "scaled_dot_product_attention", "to", "index", "__and__"},
    "bert without mask": {"embedding"},
    **{name: {"embedding"} for name in ("gpt2", "opt")},
    # In float64, as here, norms go to float32 and back: all of it, or a part.
    **{name: {"embedding", "to"} for name in ("llama", "qwen3")},
    "t5 encoder": {"embedding", "to", "pow", "mean", "rsqrt", "mul"},
    "vit": {"expand", "add", "sym_size"},
    "swin": {
        *("pad", "reshape", "transpose", "scaled_dot_product_attention", "roll", "add", "adaptive_avg_pool1d"),
        *SIZES,
    },
    "convnext": set(),
    "regnet": set(),
    "resnet": set(),
    "mobilenet v2": set(),
    "mobilenet v1": set(),
    "efficientnet": set(),
}
"""What stays in torch. A linear layer or convolution never does."""


@pytest.mark.parametrize(
    "name", sample(FAMILIES, ("torch transformer", "bert", "resnet", "lstm tagger", "mobilenet v2"))
)
def test_other_families(name: str) -> None:
    torch.manual_seed(0)
    if name not in ("lstm tagger", "u-net", "torch transformer"):
        pytest.importorskip("transformers")
    graph = captured(*FAMILIES[name]())
    assert torch_nodes(graph) <= LEFT[name]


def test_every_family_is_accounted_for():
    assert set(LEFT) == set(FAMILIES)


@pytest.mark.slow
@pytest.mark.parametrize("name", TORCHVISION)
def test_networks_of_torchvision(name: str) -> None:
    library = import_or_skip("torchvision")
    torch.manual_seed(0)
    more = {"aux_logits": False, "init_weights": False} if name in ("inception_v3", "googlenet") else {}
    graph = captured(
        library.models.get_model(name, weights=None, num_classes=5, **more), image(1, torchvision_size(name))
    )
    assert not torch_nodes(graph) & {"linear", "addmm", "conv2d", "batch_norm", "layer_norm"}


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_networks_of_timm(name: str) -> None:
    library = import_or_skip("timm")
    torch.manual_seed(0)
    size = 224 if "224" in name else 64
    graph = captured(library.create_model(name, pretrained=False, num_classes=5), image(1, size))
    assert not torch_nodes(graph) & {"linear", "addmm", "conv2d", "batch_norm", "layer_norm"}
