"""The experiments of "Stabilizing the Lottery Ticket Hypothesis" as facts, and short forms for two cores. No torch.

Frankle, Dziugaite, Roy and Carbin 2019 (arXiv 1903.01611 v3). Figure 2 has the networks, batch sizes and learning
rates, figure 3 the share of weights that remains, sections 3 and 4 the steps after which a later rewinding gains no
more. Each level removes 20 % of the weights that remain, over all layers together.

Two cells of figure 2 are evidently swapped: it prints 30,000 iterations beside drops of the learning rate at 56,000 and
84,000, and 112,000 iterations beside drops at 20,000 and 25,000. A drop after the end is none, so the drops belong to
the other length. ResNet-20 gets 30,000 with 20,000 and 25,000, VGG-19 gets 112,000 with 56,000 and 84,000: with its
batches of 64 of the 45,000 images that are 160 epochs, with drops at 80 and 120, which is open_lth's training as well.

Momentum 0.9, weight decay 1e-4, flips and crops are open_lth's, not the figure's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ticketry.tasks.images.facts import IMAGENET, LENET, RESIDUAL
from ticketry.tasks.presets.experiment import Experiment
from ticketry.tasks.recipe import Recipe


@dataclass(frozen=True)
class _Network:
    """A network of figure 2 and how it is trained there."""

    title: str
    task: str
    model: str
    recipe: Recipe
    until: dict[str, float]
    """The levels after which the share of figure 3 remains, or the density."""


_LENET = _Network(
    "LeNet-300-100 on MNIST", "mnist", "lenet-300-100", LENET.changed(length="50000it", batch=60), {"levels": 10}
)
_RESNET = _Network(
    "ResNet-20 on CIFAR-10",
    "cifar10",
    "resnet-20",
    RESIDUAL.changed(length="30000it", batch=128, milestones=("20000it", "25000it")),
    {"levels": 8},
)
_VGG = _Network(
    "VGG-19 on CIFAR-10",
    "cifar10",
    "vgg-19",
    RESIDUAL.changed(length="112000it", batch=64, milestones=("56000it", "84000it")),
    {"levels": 17},
)
_IMAGENET = _Network(
    "ResNet-50 on ImageNet",
    "imagefolder",
    "resnet-50-imagenet",
    IMAGENET.changed(augment=("resized_crop", "flip")),  # as the task imagefolder trains it by default
    {"density": 0.2},
)


def _paper(
    network: _Network, what: str, rewind: str, *, figures: str = "figures 2 and 3", **changes: Any
) -> Experiment:
    return Experiment(
        title=f"{network.title}, {what}",
        source=f"Frankle et al. 2019 (arXiv 1903.01611 v3), {figures}",
        method="iterative",
        task=network.task,
        model=network.model,
        recipe=network.recipe.changed(**changes),
        settings={"rate": 0.2, "rewind": rewind, **network.until},
    )


def _saturates(network: _Network, step: int) -> Experiment:
    """From the step after which a later rewinding gains no more."""
    figures = f"figures 2 and 3, sections 3 and 4 (saturates at iteration {step})"
    return _paper(network, f"learning rate 0.1, rewound to iteration {step}", f"{step}it", figures=figures)


def _short(network: _Network, width: float, **changes: Any) -> Experiment:
    after = "batch, learning rate and the shares of training at which it drops"
    return Experiment(
        title=f"{network.title}, shortened: narrower, 10,000 images, a few epochs",
        source=f"our own choice after {network.model}: {after}",
        method="iterative",
        task=network.task,
        model=f"{network.model}@{width}",
        options={"train": "10000"},
        recipe=network.recipe.changed(**changes),
        settings={"rewind": "50it", "densities": [0.5, 0.2, 0.1, 0.05]},
    )


_LOW = "learning rate 0.01, rewound to step 0"

IMP_PRESETS = {
    "lenet": _paper(_LENET, "rewound to step 0", "0"),
    "resnet-20": _saturates(_RESNET, 500),
    "resnet-20-low": _paper(_RESNET, _LOW, "0", lr=0.01),
    "resnet-20-warmup": _paper(
        _RESNET, "20,000 iterations of warm-up to 0.03, rewound to step 0", "0", lr=0.03, warmup="20000it"
    ),
    "vgg-19": _saturates(_VGG, 100),
    "vgg-19-low": _paper(_VGG, _LOW, "0", lr=0.01),
    "vgg-19-warmup": _paper(_VGG, "10,000 iterations of warm-up to 0.1, rewound to step 0", "0", warmup="10000it"),
    "resnet-50": _paper(
        _IMAGENET,
        "rewound to epoch 6, down to 20 % of the weights",
        "6ep",
        figures="figure 2, and the iterative search on ImageNet",
    ),
    "resnet-50-imagenet": _paper(
        replace(_IMAGENET, title="ResNet-50 on ImageNet in shards", task="imageshards"),
        "rewound to epoch 6, down to 20 % of the weights",
        "6ep",
        figures="figure 2, and the iterative search on ImageNet",
    ),
    "resnet-20-short": _short(_RESNET, 0.5, length="9ep", milestones=("6ep", "7.5ep")),
    "vgg-19-short": _short(_VGG, 0.25, length="8ep", milestones=("4ep", "6ep")),
}
"""By the name that `--preset` takes."""
