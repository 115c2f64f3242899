"""Networks of the real timm and torchvision, where installed; test_other_libraries_stand_in.py always runs."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from tasks.models.library_support import import_or_skip
from ticketry.tasks import models

COLOUR = (3, 32, 32)


@pytest.fixture
def timm() -> ModuleType:
    return import_or_skip("timm")


@pytest.fixture
def torchvision() -> ModuleType:
    return import_or_skip("torchvision")


def weights(name: str, seed: int, shape: tuple[int, int, int] = COLOUR) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return models.build(name, shape=shape, classes=10).state_dict()


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


TIMM = ["timm:resnet18", "timm:vit_tiny_patch16_224", "timm:efficientnet_b0"]
TORCHVISION = ["torchvision:resnet18", "torchvision:shufflenet_v2_x0_5"]


@pytest.mark.parametrize("name", TIMM + TORCHVISION)
def test_the_seed_alone_decides_the_weights(timm: ModuleType, torchvision: ModuleType, name: str) -> None:
    first = weights(name, 1)
    torch.rand(5)
    assert same(weights(name, 1), first)
    assert not same(weights(name, 2), first)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("timm:resnet18", 11_689_512),
        ("timm:vit_tiny_patch16_224", 5_717_416),
        ("torchvision:resnet18", 11_689_512),
        ("torchvision:regnet_y_400mf", 4_344_144),
        ("torchvision:inception_v3", 27_161_264),
    ],
)
def test_parameters_are_those_published(timm: ModuleType, torchvision: ModuleType, name: str, published: int) -> None:
    """Those of the libraries' model tables for 1000 classes; Inception's is without its auxiliary classifier."""
    auxiliary = 3_326_696 if name.endswith("inception_v3") else 0
    assert models.parameters(name, shape=(3, 299, 299) if auxiliary else (3, 224, 224), classes=1000) + auxiliary == (
        published
    )


@pytest.mark.parametrize("name", ["timm:resnet18", "torchvision:resnet18"])
def test_outputs_are_those_of_the_library(timm: ModuleType, torchvision: ModuleType, name: str) -> None:
    own = timm if name.startswith("timm") else torchvision.models
    arguments = {"pretrained": False} if own is timm else {"weights": None}
    make = own.create_model if own is timm else own.get_model
    peer = make("resnet18", num_classes=10, **arguments).eval()
    model = models.build(name, shape=COLOUR, classes=10)
    assert all(module.training for module in model.modules())
    model.eval()
    peer.load_state_dict(model.state_dict())
    inputs = torch.randn(2, *COLOUR)
    with torch.no_grad():
        assert torch.equal(model(inputs), peer(inputs))


def test_timm_takes_any_channels_and_the_tasks_image_size(timm: ModuleType) -> None:
    for name in ("timm:resnet18", "timm:vit_tiny_patch16_224"):
        model = models.build(name, shape=(1, 48, 32), classes=5).eval()
        assert model(torch.randn(2, 1, 48, 32)).shape == (2, 5)


def test_torchvisions_transformers_take_the_tasks_image_size(torchvision: ModuleType) -> None:
    model = models.build("torchvision:vit_b_32", shape=(3, 64, 64), classes=5).eval()
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 5)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_one_output_in_training_too(torchvision: ModuleType, name: str) -> None:
    model = models.build(f"torchvision:{name}", shape=(3, 96, 96), classes=5).train()
    assert model(torch.randn(2, 3, 96, 96)).shape == (2, 5)
