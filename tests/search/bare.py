"""A training in bare PyTorch, with the initialisation, data order and learning rates that a lab draws from a seed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

import ticketry as tk
from ticketry_engine.support.seeds import generator, mix_seeds

TOTAL, BATCH, SEED = 57, 64, 3
SGD = tk.Recipe(
    length=f"{TOTAL}it", batch=BATCH, optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=1e-3, schedule="cosine"
)
ADAMW = SGD.changed(optimizer="adamw", lr=1e-3, weight_decay=0.1, clip=1.0)


class Training:
    """A network, its optimiser and the mask under which it is trained."""

    def __init__(
        self, task: tk.Task, recipe: tk.Recipe = SGD, total: int = TOTAL, *, seed: int = SEED, order_seed: int = SEED
    ) -> None:
        self.task, self.recipe, self.total, self.order_seed = task, recipe, total, order_seed
        self.data = task.load().train
        self.images = task.prepare(self.data.inputs)
        torch.manual_seed(mix_seeds(seed, "initialisation"))
        self.model = task.build()
        self.parameters = dict(self.model.named_parameters())
        self.mask: Mapping[str, Tensor] = {}
        self.begin_optimizer()

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name: value.detach() for name, value in self.parameters.items() if value.dim() > 1}

    def begin_optimizer(self) -> None:
        recipe, kinds = self.recipe, {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        more = {"momentum": recipe.momentum} if recipe.optimizer == "sgd" else {}
        options: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay, "fused": True, **more}
        self.optimizer = kinds[recipe.optimizer](self.parameters.values(), **options)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        size = self.recipe.batch
        epoch, position = divmod(step, -(-len(self.data) // size))
        order = torch.randperm(len(self.data), generator=generator(self.order_seed, "order", epoch))
        rows = order[position * size : (position + 1) * size]
        return self.images[rows], self.data.targets[rows]

    def loss(self, step: int) -> Tensor:
        images, targets = self.batch(step)
        return cross_entropy(self.model(images), targets)

    def rate(self, step: int) -> float:
        """Share of the peak learning rate."""
        return (1 + np.cos(np.pi * step / self.total)) / 2 if self.recipe.schedule == "cosine" else 1.0

    def cut(self, mask: Mapping[str, Tensor]) -> None:
        """Set weights and optimiser state that the mask removes to 0, and hold the weights there."""
        self.mask = mask
        for name, kept in mask.items():
            self.parameters[name].data[~kept] = 0
            for value in self.optimizer.state[self.parameters[name]].values():
                if value.dim():
                    value[~kept] = 0

    def step(self, step: int, loss: Tensor | None = None) -> None:
        self.optimizer.zero_grad()
        (self.loss(step) if loss is None else loss).backward()
        for name, kept in self.mask.items():
            self.parameters[name].grad[~kept] = 0  # type: ignore[index]
        if self.recipe.clip:
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.recipe.clip)
        self.optimizer.param_groups[0]["lr"] = self.recipe.lr * self.rate(step)
        self.optimizer.step()


def largest(scores: Mapping[str, Tensor], count: int, among: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Mask of so many of the largest scores among the places named, the earlier of equal ones."""
    flat = np.concatenate([value.detach().numpy().ravel() for value in scores.values()])
    order = np.argsort(-flat, kind="stable")
    if among is not None:
        order = order[np.concatenate([kept.numpy().ravel() for kept in among.values()])[order]]
    chosen = torch.zeros(flat.size, dtype=torch.bool)
    chosen[order[:count].copy()] = True
    parts = chosen.split([value.numel() for value in scores.values()])
    return {name: part.view(value.shape) for (name, value), part in zip(scores.items(), parts, strict=True)}
