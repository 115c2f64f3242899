"""Three small networks that between them have what masks stumble over: residuals, norms, recurrence, tied weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        inner = functional.relu(self.bn1(self.conv1(inputs)))
        return functional.relu(self.bn2(self.conv2(inner)) + self.downsample(inputs))


class ResidualNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(6)
        self.blocks = nn.Sequential(Block(6, 6, 1), Block(6, 8, 2))
        self.fc = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = self.blocks(functional.relu(self.bn(self.conv(images))))
        return self.fc(features.mean(dim=(2, 3)))


class LanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Embedding(11, 8)
        self.lstm = nn.LSTM(8, 8, num_layers=2)
        self.decoder = nn.Linear(8, 11)
        self.decoder.weight = self.encoder.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.decoder(self.lstm(self.encoder(tokens))[0])


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.block(self.embed(tokens))))


MODELS: dict[str, type[nn.Module]] = {"resnet": ResidualNet, "lstm": LanguageModel, "transformer": Transformer}


@dataclass(frozen=True)
class Case:
    model: nn.Module
    batches: list[tuple[Tensor, Tensor]]

    @staticmethod
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        inputs, targets = batch
        return functional.cross_entropy(model(inputs).flatten(0, -2), targets.flatten())


def build_case(name: str, seed: int = 0) -> Case:
    torch.manual_seed(seed)
    model = MODELS[name]()
    draw = torch.Generator().manual_seed(seed + 1)
    if name == "resnet":
        batches = [(torch.randn(4, 3, 6, 6, generator=draw), torch.randint(5, (4,), generator=draw)) for _ in range(6)]
    else:
        batches = [
            (torch.randint(11, (3, 5), generator=draw), torch.randint(11, (3, 5), generator=draw)) for _ in range(6)
        ]
    return Case(model, batches)


@pytest.fixture(scope="session")
def build() -> Callable[..., Case]:
    """``build(name, seed=0) -> Case`` for the names resnet, lstm and transformer."""
    return build_case
