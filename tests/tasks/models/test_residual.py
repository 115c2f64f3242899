"""Residual networks against the same computation written with functions of tensors, from the state dict alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ticketry.tasks import models

State = dict[str, Tensor]


def unusual(name: str, shape: tuple[int, int, int]) -> tuple[nn.Module, State]:
    """A network in float64 whose batch norms all do something, and its state."""
    torch.manual_seed(1)
    model = models.build(name, shape=shape, classes=10).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 2.0)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_()
    return model, dict(model.state_dict())


def norm(state: State, name: str, x: Tensor) -> Tensor:
    mean, variance, scale, shift = (
        state[f"{name}.{part}"].view(-1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (variance + 1e-5).sqrt() * scale + shift


def conv(state: State, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = state[f"{name}.weight"]
    return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)


def logits(state: State, x: Tensor) -> Tensor:
    return x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


def check(model: nn.Module, x: Tensor, expected: Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)


def test_resnet_20_adds_each_block_to_its_shortcut() -> None:
    model, state = unusual("resnet-20-8", (3, 32, 32))
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    out = norm(state, "bn", conv(state, "conv", x)).relu()
    for block in range(9):
        name, stride = f"blocks.{block}", 2 if block in (3, 6) else 1
        carried = out
        if stride == 2:
            carried = norm(state, f"{name}.shortcut.1", conv(state, f"{name}.shortcut.0", out, stride))
        inner = norm(state, f"{name}.bn1", conv(state, f"{name}.conv1", out, stride)).relu()
        out = (norm(state, f"{name}.bn2", conv(state, f"{name}.conv2", inner)) + carried).relu()
    assert out.shape == (2, 32, 8, 8)
    check(model, x, logits(state, out))


def test_resnet_50_for_imagenet_has_bottlenecks_and_a_pooling_stem() -> None:
    model, state = unusual("resnet-50-imagenet", (3, 64, 96))
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    out = norm(state, "bn", conv(state, "conv", x, 2)).relu()
    assert state["conv.weight"].shape == (64, 3, 7, 7)
    out = F.max_pool2d(F.pad(out, (1, 1, 1, 1)), 3, 2)  # zeros change no maximum of rectified values
    assert out.shape == (2, 64, 16, 24)
    firsts = (0, 3, 7, 13)
    for block in range(16):
        name, stride = f"blocks.{block}", 2 if block in firsts[1:] else 1
        carried = out
        if block in firsts:
            carried = norm(state, f"{name}.shortcut.1", conv(state, f"{name}.shortcut.0", out, stride))
        inner = norm(state, f"{name}.bn1", conv(state, f"{name}.conv1", out)).relu()
        inner = norm(state, f"{name}.bn2", conv(state, f"{name}.conv2", inner, stride)).relu()
        out = (norm(state, f"{name}.bn3", conv(state, f"{name}.conv3", inner)) + carried).relu()
    assert out.shape == (2, 2048, 2, 3)
    check(model, x, logits(state, out))


def test_wide_resnet_normalises_and_rectifies_before_each_convolution() -> None:
    model, state = unusual("wrn-16-8", (3, 16, 16))
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    out = conv(state, "conv", x)
    for block in range(6):
        name, stride = f"blocks.{block}", 2 if block in (2, 4) else 1
        active = norm(state, f"{name}.bn1", out).relu()
        carried = conv(state, f"{name}.shortcut", active, stride) if block in (0, 2, 4) else out
        inner = norm(state, f"{name}.bn2", conv(state, f"{name}.conv1", active, stride)).relu()
        out = conv(state, f"{name}.conv2", inner) + carried
    assert out.shape == (2, 512, 4, 4)
    check(model, x, logits(state, norm(state, "bn", out).relu()))


@pytest.mark.parametrize(("name", "seen"), [("resnet-18", 32), ("resnet-18-imagenet", 8)])
def test_blocks_see_the_whole_image_or_its_quarter(name: str, seen: int) -> None:
    model, _ = unusual(name, (3, 32, 32))
    shapes = []
    model.get_submodule("blocks").register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
    model(torch.zeros(1, 3, 32, 32, dtype=torch.float64))
    assert shapes == [(1, 64, seen, seen)]


@pytest.mark.parametrize("name", ["resnet-18", "resnet-50"])
def test_small_and_large_form_differ_in_the_stem_alone(name: str) -> None:
    with torch.device("meta"):
        small, large = (models.build(form, shape=(3, 32, 32), classes=10) for form in (name, f"{name}-imagenet"))
    shapes = {key: tensor.shape for key, tensor in small.state_dict().items()}
    assert shapes.pop("conv.weight") == (64, 3, 3, 3)
    others = {key: tensor.shape for key, tensor in large.state_dict().items()}
    assert others.pop("conv.weight") == (64, 3, 7, 7)
    assert others == shapes
