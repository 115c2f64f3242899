"""The built-in tasks as facts: what the data are, which network and recipe go with them. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ticketry.errors import TaskError
from ticketry.registry import Registry
from ticketry.tasks.network_name import NetworkName, unknown
from ticketry.tasks.recipe import Recipe

LENET = Recipe(length="10ep", batch=128, optimizer="adam", lr=1.2e-3)
"""Optimiser and learning rate of Frankle et al. 2019 (arXiv 1903.01611, figure 2; 50,000 steps of 60 examples)."""

DIGITS = LENET.changed(length="20ep", batch=64)
"""Our own choice: 98.2 % of the test set, standard deviation 0.2 over 8 seeds, in 0.3 s on one core."""

CONV = Recipe(length="25000it", batch=60, optimizer="adam", lr=3e-4)
"""Conv-4 in Frankle and Carbin 2019, Figure 2."""

CONV2 = CONV.changed(length="20000it", lr=2e-4)
"""Conv-2, from the same table."""

CONV6 = CONV.changed(length="30000it")
"""Conv-6, from the same table."""

RESIDUAL = Recipe(
    length="160ep",
    batch=128,
    lr=0.1,
    momentum=0.9,
    weight_decay=1e-4,
    schedule="multistep",
    milestones=("50%", "75%"),
    augment=("flip", "crop"),
)
"""ResNet-20 and VGG-16 on CIFAR-10 in open_lth: learning rate divided by 10 at epochs 80 and 120.

Our choice for the other ResNets and VGGs too; Chen et al. 2022 (Table 1) train ResNet-18 on CIFAR-10 with it.
"""

VGG19 = RESIDUAL.changed(batch=64, warmup="10000it")
"""VGG-19 of Frankle et al. 2019 (arXiv 1903.01611, Figure 2) in the variant whose tickets win without rewinding.

For a training shorter than the paper's 112,000 iterations shorten the warm-up as well.
"""

WIDE = RESIDUAL.changed(length="200ep", nesterov=True, weight_decay=5e-4, milestones=("30%", "60%", "80%"), gamma=0.2)
"""CIFAR in Zagoruyko and Komodakis 2016, section 3: learning rate divided by 5 at epochs 60, 120 and 160."""

IMAGENET = RESIDUAL.changed(length="90ep", batch=1024, lr=0.4, warmup="5ep", milestones=("30ep", "60ep", "80ep"))
"""ResNet-50 on ImageNet in Frankle et al. 2019 (arXiv 1903.01611, Figure 2), but for the augmentation.

There an image is cropped at random and resized to 224x224; here it is shifted by up to 4 pixels.
"""

_OF_MODEL = {
    **dict.fromkeys(("lenet-300-100", "lenet-5"), LENET),
    "conv-2": CONV2,
    **dict.fromkeys(("conv-4", "conv-4-16"), CONV),
    "conv-6": CONV6,
    **dict.fromkeys(("resnet-20", "resnet-20-8", "resnet-32", "resnet-56", "resnet-18", "resnet-50"), RESIDUAL),
    **dict.fromkeys(("resnet-18-imagenet", "resnet-50-imagenet"), IMAGENET),
    **dict.fromkeys(("wrn-16-8", "wrn-28-10", "wrn-40-2"), WIDE),
    **dict.fromkeys(("vgg-11", "vgg-13", "vgg-16"), RESIDUAL),
    "vgg-19": VGG19,
}

_LARGE = 96
"""Height and width, in pixels, from which on another library's network is trained as on ImageNet."""


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """A data set of images, and how networks are trained on it."""

    title: str
    shape: tuple[int, int, int]
    """Channels, height, width."""
    classes: int
    examples: tuple[int, int, int]
    """In training, validation and test set."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    largest: float = 255.0
    model: str
    """The default network."""
    recipe: Recipe
    """That of the default network."""
    read: str
    """module:function, imported when it is needed: from places (`data.locate.Place`) to `Splits`."""
    augmented: bool = False
    """Whether mirrored and shifted images are still images of their class."""

    def recipe_of(self, model: str) -> Recipe:
        """The default recipe of a network on these data, at any width.

        Networks of other libraries, of packages and of one's own have that of ResNets, for large images that of
        ResNet-50 on ImageNet.

        Raises:
            TaskError: for an unknown network.
        """
        name = NetworkName.parse(model)
        if name.base == self.model and not name.library:
            return self.recipe
        if name.library or name.is_outside:
            chosen = IMAGENET if min(self.shape[1:]) >= _LARGE else RESIDUAL
        elif name.base in _OF_MODEL:
            chosen = _OF_MODEL[name.base]
        elif _is_perceptron(name.base):
            chosen = LENET
        else:
            raise unknown(model)
        return chosen if self.augmented else chosen.changed(augment=())

    def __str__(self) -> str:
        channels, height, width = self.shape
        train, validation, test = (f"{count:,}" for count in self.examples)
        return (
            f"{self.title}: {height}x{width}x{channels}, {self.classes} classes, "
            f"{train} / {validation} / {test} examples; {self.model} by default"
        )


def _is_perceptron(base: str) -> bool:
    from ticketry.tasks.models.mlp import hidden_widths  # with torch, which facts are told without

    return hidden_widths(base) is not None


DIGITS_DATA = ImageData(
    title="scikit-learn's handwritten digits",
    shape=(1, 8, 8),
    classes=10,
    examples=(1_197, 200, 400),
    mean=(0.3053,),
    std=(0.3761,),
    largest=16.0,
    model="lenet-300-100",
    recipe=DIGITS,
    read="ticketry.tasks.data.mnist:read_digits",
)

MNIST = ImageData(
    title="MNIST, handwritten digits",
    shape=(1, 28, 28),
    classes=10,
    examples=(55_000, 5_000, 10_000),
    mean=(0.1307,),
    std=(0.3081,),
    model="lenet-300-100",
    recipe=LENET,
    read="ticketry.tasks.data.mnist:MNIST.read",
)

FASHION_MNIST = replace(
    MNIST,
    title="Fashion-MNIST, pictures of clothes",
    mean=(0.2860,),
    std=(0.3530,),
    read="ticketry.tasks.data.mnist:FASHION_MNIST.read",
)

CIFAR10 = ImageData(
    title="CIFAR-10, photographs of objects",
    shape=(3, 32, 32),
    classes=10,
    examples=(45_000, 5_000, 10_000),
    mean=(0.49140, 0.48216, 0.44653),
    std=(0.24703, 0.24349, 0.26159),
    model="resnet-20",
    recipe=RESIDUAL,
    augmented=True,
    read="ticketry.tasks.data.cifar:CIFAR10.read",
)

CIFAR100 = replace(
    CIFAR10,
    title="CIFAR-100, photographs of objects",
    classes=100,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    read="ticketry.tasks.data.cifar:CIFAR100.read",
)

TINY_IMAGENET = ImageData(
    title="Tiny ImageNet, photographs of objects",
    shape=(3, 64, 64),
    classes=200,
    examples=(90_000, 10_000, 10_000),
    mean=(0.48754, 0.44252, 0.37323),  # measured on the training images of the first 20 classes
    std=(0.27292, 0.26566, 0.27592),
    model="resnet-18",
    recipe=RESIDUAL,
    augmented=True,
    read="ticketry.tasks.data.tiny_imagenet:WHOLE.read",
)

TINY_IMAGENET_20 = replace(
    TINY_IMAGENET,
    title="The first 20 classes of Tiny ImageNet",
    classes=20,
    examples=(9_000, 1_000, 1_000),
    read="ticketry.tasks.data.tiny_imagenet:TWENTY.read",
)

DATA_SETS: Registry[ImageData] = Registry(
    "data set",
    "ticketry.data",
    {
        "digits": f"{__name__}:DIGITS_DATA",
        "mnist": f"{__name__}:MNIST",
        "fashion-mnist": f"{__name__}:FASHION_MNIST",
        "cifar10": f"{__name__}:CIFAR10",
        "cifar100": f"{__name__}:CIFAR100",
        "tiny-imagenet": f"{__name__}:TINY_IMAGENET",
        "tiny-imagenet-20": f"{__name__}:TINY_IMAGENET_20",
    },
    needs=("read", "recipe_of"),
    error=TaskError,
    unknown="there is no {kind} {name!r}: choose one of {names}",
)
"""Images that are kept in memory; each is a task of its name."""
