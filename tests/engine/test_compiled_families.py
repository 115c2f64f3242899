"""Networks of many families, compiled with a random mask: equal to the masked model, for several numbers of
examples."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest
import torch
from torch import nn

from arenas import targets
from engine.families import FAMILIES, TIMM, TORCHVISION, image, shake, torchvision_size
from engine.test_families import call, doubled, other_batch, random_mask, tensors
from tasks.models.library_support import import_or_skip
from ticketry.tasks.models.networks import build, names
from ticketry_engine.capture import capture
from ticketry_engine.compiled import Compiled
from ticketry_engine.ir import Graph
from ticketry_engine.plan.region_programs import Native, Plan
from ticketry_engine.plan.value_axes import UnsupportedError


def compiled(
    model: nn.Module,
    example: Any,
    *,
    batches: tuple[int, ...] = (1, 3),
    bound: float = 1e-4,
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
    mha = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for batch in batches:
            inputs = other_batch(example, batch)
            wanted, found = tensors(call(exact, doubled(inputs))), tensors(call(fast, inputs))
            assert len(found) == len(wanted) > 0
            for made, right in zip(found, wanted, strict=True):
                assert made.shape == right.shape
                assert float((made.double() - right).abs().max()) <= bound * max(float(right.abs().max()), 1e-30)
    finally:
        torch.backends.mha.set_fastpath_enabled(mha)
    return fast


def runs(native: Native, layout: str) -> bool:
    """Whether a layout can run a region: concatenations leave pixels some that they cannot."""
    try:
        native._emission(Plan(layout, 1, "batch"))
    except UnsupportedError:
        return False
    return True


DECODERS = ("gpt2", "llama", "qwen3", "opt", "t5 encoder")
"""Of which nothing stays in torch but looking up embeddings."""

WAYS = [(target, layout) for target in targets() for layout in (None, "planes", "pixels")]
"""Targets that this processor runs, and layouts: None for the engine's choice."""


def everywhere(names: Iterable[str], quick: Collection[str] = (), once: Collection[str] = ()) -> pytest.MarkDecorator:
    """Each name in all ways. Without `slow`: the quick ones in all, some in the first, the others not at all."""
    marked = []
    for name in names:
        for way in WAYS:
            slow = name not in quick and (way != WAYS[0] or name not in once)
            marked.append(pytest.param(name, *way, marks=pytest.mark.slow if slow else ()))
    return pytest.mark.parametrize(("name", "target", "layout"), marked)


def in_engine(graph: Graph, fast: Compiled, *ops: str) -> bool:
    return not any(node.output in fast.reasons for node in graph.nodes if node.op in ops)


@everywhere(names(), quick=("lenet-5",), once=("resnet-20-8",))
def test_our_own_networks_run_in_the_engine_as_a_whole(name: str, target: str, layout: str | None) -> None:
    torch.manual_seed(0)
    shape = (1, 28, 28) if name.startswith("lenet") else (3, 32, 32)
    model = build(name, shape=shape, classes=10)
    fast = compiled(model, torch.randn(1, *shape), target=target, layout=layout)
    assert not fast.reasons


@everywhere(FAMILIES, once=("torch transformer", "lstm tagger", "u-net", "bert"))
def test_other_families(name: str, target: str, layout: str | None) -> None:
    torch.manual_seed(0)
    if name not in ("lstm tagger", "u-net", "torch transformer"):
        pytest.importorskip("transformers")
    fast = compiled(*FAMILIES[name](), target=target, layout=layout)
    assert in_engine(fast.graph, fast, "conv2d", "layer_norm")
    if name in DECODERS:
        assert {node.op.split(".")[1] for node in fast.graph.nodes if node.output in fast.reasons} == {"embedding"}


@pytest.mark.slow
@everywhere(TORCHVISION)
def test_networks_of_torchvision(name: str, target: str, layout: str | None) -> None:
    library = import_or_skip("torchvision")
    torch.manual_seed(0)
    more = {"aux_logits": False, "init_weights": False} if name in ("inception_v3", "googlenet") else {}
    model = library.models.get_model(name, weights=None, num_classes=5, **more)
    fast = compiled(model, image(1, torchvision_size(name)), target=target, layout=layout)
    assert in_engine(fast.graph, fast, "conv2d")


@pytest.mark.slow
@everywhere(TIMM)
def test_networks_of_timm(name: str, target: str, layout: str | None) -> None:
    library = import_or_skip("timm")
    torch.manual_seed(0)
    model = library.create_model(name, pretrained=False, num_classes=5)
    compiled(model, image(1, 224 if "224" in name else 64), target=target, layout=layout)
