"""Shared by the examples: the handwritten digits of scikit-learn and a small convolutional network."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset


def data() -> tuple[TensorDataset, TensorDataset]:
    """1,400 images of 8 x 8 to train with, and 397 to test with."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    return TensorDataset(images[:1400], labels[:1400]), TensorDataset(images[1400:], labels[1400:])


def network() -> nn.Module:
    """Two convolutions and a linear layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.MaxPool2d(4), nn.Flatten(), nn.Linear(256, 10)),
    )


def train(model: nn.Module, epochs: int) -> None:
    """The plainest loop there is."""
    images, labels = data()[0].tensors
    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.05, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()


def accuracy(model: nn.Module) -> float:
    """How many per cent of the test images that it names rightly."""
    images, labels = data()[1].tensors
    with torch.no_grad():
        found: Tensor = model.eval()(images).argmax(1)
    return 100 * (found == labels).double().mean().item()
