"""Continuous Sparsification's experiments as facts, and a short form for two cores. No torch.

Savarese, Silva and Maire 2020 (arXiv 1912.04427). What is known for certain is the training of the official code, for
ResNet-20: 85 epochs a round in batches of 128, SGD with Nesterov momentum 0.9 at learning rate 0.1 for weights and
gates alike, divided by 10 at epochs 56 and 71, weight decay 1e-4 on the weights and none on the gates, lambda 1e-8,
beta up to 200 with every epoch, s0 = 0, three rounds, tickets from epoch 2 trained for the whole schedule; no gates on
the shortcuts, the norms and the classifier. The code's gates are reset by s = min(s, s0), without the factor beta of
the paper: `--reset code` does that; the presets have the paper's rule.

The paper has VGG-16, Conv-6 and ResNet-50 as well; their presets name what they take from where.
"""

from __future__ import annotations

from typing import Any

from ticketry.tasks.images.facts import CONV6, IMAGENET, RESIDUAL
from ticketry.tasks.presets.experiment import Experiment
from ticketry.tasks.recipe import Recipe

_CODE = RESIDUAL.changed(length="85ep", batch=128, nesterov=True, milestones=("56ep", "71ep"))

_OFFICIAL = "the official code of Savarese et al. 2020 (arXiv 1912.04427)"


def _cs(title: str, source: str, model: str, recipe: Recipe, *, task: str = "cifar10", **settings: Any) -> Experiment:
    options = settings.pop("options", {})
    return Experiment(
        title=f"Continuous Sparsification, {title}",
        source=source,
        method="continuous",
        task=task,
        model=model,
        recipe=recipe,
        settings=settings,
        options=options,
    )


_GATES: dict[str, Any] = {
    "rounds": 3,
    "rewind": "2ep",
    "retrain": "restart",
    "temperature": "epoch",
    "gate_nesterov": True,
}

CS_PRESETS = {
    "cs-resnet-20": _cs(
        "ResNet-20 on CIFAR-10, three rounds", _OFFICIAL, "resnet-20", _CODE, spare_output=True, **_GATES
    ),
    "cs-vgg-16": _cs(
        "VGG-16 on CIFAR-10, three rounds",
        f"the training that {_OFFICIAL} has for ResNet-20",
        "vgg-16",
        _CODE,
        spare_output=True,
        **_GATES,
    ),
    "cs-conv-6": _cs(
        "Conv-6 on CIFAR-10, three rounds",
        f"Conv-6 and its training as in Frankle and Carbin 2019 (figure 2), its gates as in {_OFFICIAL}",
        "conv-6",
        CONV6,
        **_GATES,
    ),
    "cs-resnet-50": _cs(
        "ResNet-50 on ImageNet, one round, to prune",
        f"our own choice: the usual training of 90 epochs, with the gates of {_OFFICIAL}; the paper's own is not known"
        " to us",
        "resnet-50-imagenet",
        IMAGENET.changed(augment=("resized_crop", "flip")),
        task="imagefolder",
        **{**_GATES, "rounds": 1, "rewind": "end", "retrain": "none"},
        spare_output=True,
    ),
    "cs-resnet-20-short": _cs(
        "ResNet-20 on CIFAR-10, shortened: narrower, 10,000 images, a few epochs",
        "our own choice after cs-resnet-20: the shares of training at which the learning rate drops; gates learn"
        " faster, because a short training leaves them little time to move",
        "resnet-20@0.5",
        _CODE.changed(length="6ep", batch=64, milestones=("4ep", "5ep")),
        options={"train": "10000"},
        spare_output=True,
        gate_lr=1.0,
        **{**_GATES, "rewind": "50it", "temperature": "step"},
    ),
}
"""By the name that `--preset` takes."""
