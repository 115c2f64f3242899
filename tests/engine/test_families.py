"""Networks of many families, masked: captured graphs in float64, files of them, and what is compiled of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from arenas import targets
from engine.families import FAMILIES, TIMM, TORCHVISION, attention_by_formulas, image, shake, torchvision_size
from interpreter import Program
from tasks.models.library_support import import_or_skip
from ticketry.core.mask import Mask
from ticketry.core.scope import scope
from ticketry.tasks.models import build, names
from ticketry_engine.capture import capture
from ticketry_engine.compiled import Compiled
from ticketry_engine.ir import Graph
from ticketry_engine.ir.model_file import dumps, loads
from ticketry_engine.plan.region_programs import Native, Plan
from ticketry_engine.plan.storage import UnsupportedError


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


def assert_outputs(function: Any, inputs: Any, model: nn.Module, exact_inputs: Any, bound: float) -> None:
    """The outputs of a function are the model's, relative to the largest value of each."""
    with attention_by_formulas():
        found, wanted = tensors(call(function, inputs)), tensors(call(model, exact_inputs))
    assert len(found) == len(wanted) > 0
    for made, right in zip(found, wanted, strict=True):
        assert made.shape == right.shape
        assert float((made.double() - right).abs().max()) <= bound * max(float(right.abs().max()), 1e-30)


def captured(model: nn.Module, example: Any, *, batch: int = 5) -> Graph:
    """Capture the masked model, compare with it in float64, and return the graph."""
    model = shake(model.eval().double())
    example = doubled(example)
    mask = random_mask(model)
    graph = capture(model, mask, example)
    assert not graph.notes
    mask.apply_(model)
    inputs = other_batch(example, batch)
    for one in (graph, loads(dumps(graph))[0]):
        assert_outputs(Program(one), inputs, model, inputs, 1e-9)
    return graph


def torch_nodes(graph: Graph) -> set[str]:
    return {one.op.split(".")[1] for one in graph.nodes if not one.native}


def compiled(
    model: nn.Module,
    example: Any,
    *,
    target: str = "host",
    layout: str | None = None,
) -> Compiled:
    """Compile the masked model and compare with it in double precision, relative to the largest value."""
    model = shake(model.eval())
    mask = random_mask(model, 0.3)
    fast = Compiled(capture(model, mask, example), threads=1, target=target)
    for native in fast._natives:
        native.layout = layout if layout is None or runs(native, layout) else None
    mask.apply_(model)
    exact = model.double()
    for batch in (3,) if (target, layout) == WAYS[0] else (1, 3):
        inputs = other_batch(example, batch)
        assert_outputs(fast, inputs, exact, doubled(inputs), 1e-4)
    return fast


def runs(native: Native, layout: str) -> bool:
    """Whether a layout can run a region: concatenations leave pixels some that they cannot."""
    try:
        native._emit_plan(Plan(layout, 1, "batch"))
    except UnsupportedError:
        return False
    return True


WAYS = [(target, layout) for target in targets() for layout in (None, "planes", "pixels")]
"""Targets that this processor runs, and layouts: None for the engine's choice."""


def everywhere(names: Iterable[str], once: Collection[str] = ()) -> pytest.MarkDecorator:
    """Each name in all ways, marked slow except some in the first way."""
    marked = []
    for name in names:
        for way in WAYS:
            slow = way != WAYS[0] or name not in once
            marked.append(pytest.param(name, *way, marks=pytest.mark.slow if slow else ()))
    return pytest.mark.parametrize(("name", "target", "layout"), marked)


def check(make: Any, target: str, layout: str | None) -> tuple[Graph | None, Compiled]:
    """The captured graph, compared in the first way only, and the compiled model."""
    torch.manual_seed(0)
    graph = captured(*make()) if (target, layout) == WAYS[0] else None
    return graph, compiled(*make(), target=target, layout=layout)


@everywhere(names(), once=("lenet-5", "resnet-20-8"))
def test_own_networks_run_in_the_engine_as_a_whole(name: str, target: str, layout: str | None) -> None:
    shape = (1, 28, 28) if name.startswith("lenet") else (3, 32, 32)
    graph, fast = check(
        lambda: (build(name, shape=shape, classes=10), torch.randn(1, *shape)), target=target, layout=layout
    )
    assert not fast.reasons
    if graph is not None:
        assert not torch_nodes(graph)
        fused = {"affine", "act", "add"} if "resnet" in name or "vgg" in name else set()
        assert not {one.op for one in graph.nodes} & {"reshape", "transpose", *fused}


SIZES = {"sym_size", "expand", "arange", "unsqueeze", "mul"}
EMBEDDING = {"embedding", "add", *SIZES}

LEFT = {
    "lstm tagger": {"embedding", "zeros", "lstm", "getitem", "sym_size"},
    "u-net": {"conv_transpose2d", "upsample_bilinear2d"},
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
}
"""What stays in torch, if anything. A linear layer or convolution never does."""


def has_no_layer_in_torch(graph: Graph) -> bool:
    return not torch_nodes(graph) & {"linear", "addmm", "conv2d", "batch_norm", "layer_norm"}


@everywhere(FAMILIES, once=("torch transformer", "lstm tagger", "u-net"))
def test_other_families(name: str, target: str, layout: str | None) -> None:
    graph, fast = check(FAMILIES[name], target, layout)
    assert graph is None or torch_nodes(graph) <= LEFT.get(name, set())
    in_torch = {node.op for node in fast.graph.nodes if node.output in fast.reasons}
    assert not in_torch & {"conv2d", "layer_norm"}
    if name in ("gpt2", "llama", "qwen3", "opt", "t5 encoder"):
        assert {op.split(".")[1] for op in in_torch} == {"embedding"}


def library_model(name: str) -> tuple[nn.Module, Tensor]:
    library, _, plain = name.partition(":")
    module = import_or_skip(library)
    if library == "timm":
        return module.create_model(plain, pretrained=False, num_classes=5), image(1, 224 if "224" in plain else 64)
    more = {"aux_logits": False, "init_weights": False} if plain in ("inception_v3", "googlenet") else {}
    return module.models.get_model(plain, weights=None, num_classes=5, **more), image(1, torchvision_size(plain))


@pytest.mark.slow
@everywhere([*(f"torchvision:{name}" for name in TORCHVISION), *(f"timm:{name}" for name in TIMM)])
def test_networks_of_libraries(name: str, target: str, layout: str | None) -> None:
    graph, fast = check(lambda: library_model(name), target, layout)
    assert graph is None or has_no_layer_in_torch(graph)
    in_torch = {node.op for node in fast.graph.nodes if node.output in fast.reasons}
    assert name.startswith("timm:") or "conv2d" not in in_torch
