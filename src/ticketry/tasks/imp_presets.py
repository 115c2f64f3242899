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

from typing import Any

from ticketry.tasks.experiment import Experiment
from ticketry.tasks.presets import IMAGENET, LENET, RESIDUAL
from ticketry.tasks.recipe import Recipe

_LENET = LENET.changed(length="50000it", batch=60)
_RESNET = RESIDUAL.changed(length="30000it", batch=128, milestones=("20000it", "25000it"))
_VGG = RESIDUAL.changed(length="112000it", batch=64, milestones=("56000it", "84000it"))

_IMAGENET = IMAGENET.changed(augment=("resized_crop", "flip"))
"""As the task imagefolder trains it by default."""

_RATE = 0.2
_LEVELS = {"lenet": 10, "resnet-20": 8, "vgg-19": 17}
"""After which the share of figure 3 remains: 10.7, 16.7 and 2.2 %."""

_SHORT_LEVELS = [0.5, 0.2, 0.1, 0.05]


def _imp(**values: Any) -> Experiment:
    return Experiment(method="iterative", **values)


def _paper(title: str, task: str, model: str, recipe: Recipe, *, figures: str, **settings: Any) -> Experiment:
    source = f"Frankle et al. 2019 (arXiv 1903.01611 v3), {figures}"
    settings = {"rate": _RATE, **settings}
    return _imp(title=title, source=source, task=task, model=model, recipe=recipe, settings=settings)


def _short(title: str, model: str, recipe: Recipe, *, of: str) -> Experiment:
    return _imp(
        title=f"{title}, shortened: narrower, 10,000 images, a few epochs",
        source=f"our own choice after {of}: batch, learning rate and the shares of training at which it drops",
        task="cifar10",
        model=model,
        options={"train": "10000"},
        recipe=recipe,
        settings={"rewind": "50it", "densities": _SHORT_LEVELS},
    )


IMP_PRESETS = {
    "lenet": _paper(
        "LeNet-300-100 on MNIST, rewound to step 0",
        "mnist",
        "lenet-300-100",
        _LENET,
        figures="figures 2 and 3",
        rewind="0",
        levels=_LEVELS["lenet"],
    ),
    "resnet-20": _paper(
        "ResNet-20 on CIFAR-10, learning rate 0.1, rewound to iteration 500",
        "cifar10",
        "resnet-20",
        _RESNET,
        figures="figures 2 and 3, sections 3 and 4 (saturates at iteration 500)",
        rewind="500it",
        levels=_LEVELS["resnet-20"],
    ),
    "resnet-20-low": _paper(
        "ResNet-20 on CIFAR-10, learning rate 0.01, rewound to step 0",
        "cifar10",
        "resnet-20",
        _RESNET.changed(lr=0.01),
        figures="figures 2 and 3",
        rewind="0",
        levels=_LEVELS["resnet-20"],
    ),
    "resnet-20-warmup": _paper(
        "ResNet-20 on CIFAR-10, 20,000 iterations of warm-up to 0.03, rewound to step 0",
        "cifar10",
        "resnet-20",
        _RESNET.changed(lr=0.03, warmup="20000it"),
        figures="figures 2 and 3",
        rewind="0",
        levels=_LEVELS["resnet-20"],
    ),
    "vgg-19": _paper(
        "VGG-19 on CIFAR-10, learning rate 0.1, rewound to iteration 100",
        "cifar10",
        "vgg-19",
        _VGG,
        figures="figures 2 and 3, sections 3 and 4 (saturates at iteration 100)",
        rewind="100it",
        levels=_LEVELS["vgg-19"],
    ),
    "vgg-19-low": _paper(
        "VGG-19 on CIFAR-10, learning rate 0.01, rewound to step 0",
        "cifar10",
        "vgg-19",
        _VGG.changed(lr=0.01),
        figures="figures 2 and 3",
        rewind="0",
        levels=_LEVELS["vgg-19"],
    ),
    "vgg-19-warmup": _paper(
        "VGG-19 on CIFAR-10, 10,000 iterations of warm-up to 0.1, rewound to step 0",
        "cifar10",
        "vgg-19",
        _VGG.changed(warmup="10000it"),
        figures="figures 2 and 3",
        rewind="0",
        levels=_LEVELS["vgg-19"],
    ),
    "resnet-50": _paper(
        "ResNet-50 on ImageNet, rewound to epoch 6, down to 20 % of the weights",
        "imagefolder",
        "resnet-50-imagenet",
        _IMAGENET,
        figures="figure 2, and the iterative search on ImageNet",
        rewind="6ep",
        density=0.2,
    ),
    "resnet-20-short": _short(
        "ResNet-20 on CIFAR-10",
        "resnet-20@0.5",
        _RESNET.changed(length="9ep", milestones=("6ep", "7.5ep")),
        of="resnet-20",
    ),
    "vgg-19-short": _short(
        "VGG-19 on CIFAR-10",
        "vgg-19@0.25",
        _VGG.changed(length="8ep", milestones=("4ep", "6ep")),
        of="vgg-19",
    ),
}
"""By the name that `--preset` takes."""
