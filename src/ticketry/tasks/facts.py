"""Facts about the built-in tasks: data sets, environments, sizes and default recipes; no torch needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

from ticketry.errors import TaskError
from ticketry.registry import Registry
from ticketry.tasks.network_name import NetworkName, parse_hidden_widths, unknown_network_error
from ticketry.tasks.recipe import Recipe

LENET = Recipe(length="10ep", batch=128, optimizer="adam", lr=1.2e-3)
"""Recipe of LeNet: optimiser and learning rate of Frankle et al. 2019 (arXiv 1903.01611, figure 2)."""

DIGITS = LENET.changed(length="20ep", batch=64)
"""Our own choice: test accuracy 98.2 %, with standard deviation 0.2 over 8 seeds, in 0.3 s on one core."""

CONV = Recipe(length="25000it", batch=60, optimizer="adam", lr=3e-4)
"""Recipe of Conv-4 in Frankle and Carbin 2019, Figure 2."""

CONV2 = CONV.changed(length="20000it", lr=2e-4)
"""Recipe of Conv-2 in Frankle and Carbin 2019, Figure 2."""

CONV6 = CONV.changed(length="30000it")
"""Recipe of Conv-6 in Frankle and Carbin 2019, Figure 2."""

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
"""Recipe of ResNet-20 and VGG-16 on CIFAR-10 in open_lth: the learning rate is divided by 10 at epochs 80 and 120.

We also use this recipe for the other ResNets and VGGs; Chen et al. 2022 (Table 1) use it for ResNet-18 on CIFAR-10.
"""

VGG19 = RESIDUAL.changed(batch=64, warmup="10000it")
"""Recipe of VGG-19 in Frankle et al. 2019 (arXiv 1903.01611, Figure 2), in the variant that needs no rewinding.

If training is shorter than the paper's 112,000 iterations, shorten the warm-up too.
"""

WIDE = RESIDUAL.changed(length="200ep", nesterov=True, weight_decay=5e-4, milestones=("30%", "60%", "80%"), gamma=0.2)
"""Recipe for CIFAR of Zagoruyko and Komodakis 2016, section 3: learning rate / 5 at epochs 60, 120 and 160."""

IMAGENET = RESIDUAL.changed(length="90ep", batch=1024, lr=0.4, warmup="5ep", milestones=("30ep", "60ep", "80ep"))
"""Recipe of ResNet-50 on ImageNet in Frankle et al. 2019 (arXiv 1903.01611, Figure 2), with another augmentation.

The paper crops images at random and resizes them to 224x224; this recipe shifts images by up to 4 pixels.
"""

_IMAGE_RECIPES = {
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
"""Smallest height and width, in pixels, at which networks of other libraries get the ImageNet recipe."""


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """Facts about an image data set, such as its size, and its default network and training recipe."""

    title: str
    shape: tuple[int, int, int]
    """Channels, height and width of an image."""
    classes: int
    examples: tuple[int, int, int]
    """Number of training, validation and test examples."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    largest: float = 255.0
    model: str
    """Name of the default network."""
    recipe: Recipe
    """Recipe of the default network."""
    read: str
    """module:function that reads `Splits`, given a tuple of `data.locate.Place`; the module is imported when needed."""
    augmented: bool = False
    """Whether the recipes of this data set mirror and shift images."""

    def recipe_of(self, model: str) -> Recipe:
        """Return the default training recipe on this data set for the network `model`, of any width.

        Networks of other libraries and packages, and custom networks, get the recipe of ResNets; for large images, they
        get the recipe of ResNet-50 on ImageNet.
        """
        name = NetworkName.parse(model)
        if name.base == self.model and not name.library:
            return self.recipe
        if name.library or name.is_outside:
            chosen = IMAGENET if min(self.shape[1:]) >= _LARGE else RESIDUAL
        elif name.base in _IMAGE_RECIPES:
            chosen = _IMAGE_RECIPES[name.base]
        elif parse_hidden_widths(name.base):
            chosen = LENET
        else:
            raise unknown_network_error(model)
        return chosen if self.augmented else chosen.changed(augment=())

    def __str__(self) -> str:
        channels, height, width = self.shape
        train, validation, test = (f"{count:,}" for count in self.examples)
        return (
            f"{self.title}: {height}x{width}x{channels}, {self.classes} classes, "
            f"{train} / {validation} / {test} examples; {self.model} by default"
        )


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
    read="ticketry.tasks.data.image_files:read_digits",
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
    read="ticketry.tasks.data.image_files:MNIST.read",
)

FASHION_MNIST = replace(
    MNIST,
    title="Fashion-MNIST, pictures of clothes",
    mean=(0.2860,),
    std=(0.3530,),
    read="ticketry.tasks.data.image_files:FASHION_MNIST.read",
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
    read="ticketry.tasks.data.image_files:CIFAR10.read",
)

CIFAR100 = replace(
    CIFAR10,
    title="CIFAR-100, photographs of objects",
    classes=100,
    mean=(0.5071, 0.4865, 0.4409),
    std=(0.2673, 0.2564, 0.2762),
    read="ticketry.tasks.data.image_files:CIFAR100.read",
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
    read="ticketry.tasks.data.image_files:WHOLE.read",
)

TINY_IMAGENET_20 = replace(
    TINY_IMAGENET,
    title="The first 20 classes of Tiny ImageNet",
    classes=20,
    examples=(9_000, 1_000, 1_000),
    read="ticketry.tasks.data.image_files:TWENTY.read",
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
"""Image data sets that fit into memory, by name; a task with the same name exists for each data set."""


@dataclass(frozen=True)
class Published:
    """Facts about a published text, which is split into words as tokens."""

    title: str
    words: int
    """Number of different words."""
    tokens: tuple[int, int, int]
    """Number of tokens of the training text, the validation text and the test text."""


PUBLISHED = {
    "ptb": Published("Penn Treebank (Mikolov 2010)", 10_000, (929_589, 73_760, 82_430)),
    "wikitext-2": Published("WikiText-2 (Merity et al. 2016)", 33_278, (2_088_628, 217_646, 245_569)),
}
TEXT = "text"
"""Prefix of the names of tasks on custom texts, text:PATH."""
MODELS = {"ptb": "lstm-tied", "wikitext-2": "gpt", TEXT: "lstm-tied"}
"""Name of the default model of each language modelling task."""

TIME, LONG_TIME = 35, 50
"""Number of tokens of a training sequence for recurrent models: of words, as in PyTorch's example, and of bytes."""
CONTEXT, LONG_CONTEXT = 64, 128
"""Number of tokens of a training sequence for the GPT: of words, and of bytes."""

LSTM = Recipe(length="40ep", batch=20, optimizer="sgd", lr=20.0, momentum=0.0, clip=0.25, schedule="cosine")
"""Recipe of LSTMs: batch, optimiser, learning rate, clipping and length of PyTorch's example word_language_model.

PyTorch's example divides the learning rate by 4 whenever the validation loss does not fall. In this recipe, it follows
a cosine, so that it does not depend on the validation loss.
"""

POINTER = Recipe(length="40ep", batch=20, optimizer="adam", lr=1e-3, clip=0.25, schedule="cosine")
"""Recipe of the pointer LSTM: our own choice, with the optimiser of EarlyCroP's public code for Penn Treebank."""

OWN = Recipe(length="10ep", batch=20, optimizer="adam", lr=4e-3, clip=1.0, schedule="cosine")
"""Recipe of recurrent models on a custom text: our own choice, with sequences of `LONG_TIME` bytes.

On 78 KB of WikiText-2 (one seed), it took 45 s and reached 2.72 bits per character. The same number of steps with
sequences of 100 bytes (20 epochs, learning rate 2e-3) took 83 s and reached 2.96. Larger texts were not tried.
"""

GPT = Recipe(
    length="10ep",
    batch=32,
    optimizer="adamw",
    lr=1e-3,
    beta2=0.95,
    weight_decay=0.1,
    clip=1.0,
    schedule="cosine",
    warmup="2%",
)
"""Recipe of the GPT: our own choice, after common practice for small transformers."""

_TEXT_RECIPES = {"lstm": LSTM, "lstm-tied": LSTM, "pointer-lstm": POINTER}


def describe(name: str) -> str:
    """Return a one-line description of a language modelling task."""
    if name == TEXT:
        return (
            "Your own text, --task text:PATH, a file or a folder: bytes, or --option vocabulary=tokenizer.json;"
            f" {MODELS[name]} by default"
        )
    about = PUBLISHED[name]
    train, validation, test = (f"{count:,}" for count in about.tokens)
    return f"{about.title}: {about.words:,} words, {train} / {validation} / {test} tokens; {MODELS[name]} by default"


class TextDefaults(NamedTuple):
    """Default settings of a language modelling task with a certain model."""

    recipe: Recipe
    time: int
    """Number of tokens of a training sequence."""
    dropout: float


def text_defaults(task: str, model: str) -> TextDefaults:
    """Return the default settings of a language modelling task; custom models get the recipe of the GPT.

    The dropout rate is 0.1 for the GPT, else 0.2 as in PyTorch's example word_language_model.
    """
    base = model.partition("@")[0]
    if base == "gpt":
        return TextDefaults(GPT, LONG_CONTEXT if task == TEXT else CONTEXT, 0.1)
    if task == TEXT:
        return TextDefaults(OWN, LONG_TIME, 0.2)
    return TextDefaults(_TEXT_RECIPES.get(base, GPT), TIME, 0.2)


MODEL = "mlp-50"
"""Default network of regression: the one of Hernández-Lobato & Adams (2015) and of papers that compare with them."""

RECIPE = Recipe(length="2000it", batch=64, optimizer="adam", lr=1e-2, schedule="cosine")
"""Recipe of regression, chosen by us for a low validation error on ten splits of five tables, see docs/domains.md."""

EACH = "each"
"""Value of the option ``split`` that makes replicate r of a search use split number r."""

OPTIONS = ("split", "validation")


@dataclass(frozen=True)
class TableFacts:
    """Facts about a published table for regression."""

    title: str
    rows: int
    features: int
    target: str

    def __str__(self) -> str:
        return (
            f"{self.title}: {self.target} from {self.features} numbers, {self.rows:,} rows, 20 splits, one a replicate "
            f"(--option split=0 for one alone); {MODEL} by default"
        )


UCI = {
    "uci-boston": TableFacts("Boston housing", 506, 13, "median house price in $1,000"),
    "uci-concrete": TableFacts("Concrete", 1_030, 8, "compressive strength in MPa"),
    "uci-energy": TableFacts("Energy efficiency", 768, 8, "heating load in kWh/m²"),
    "uci-power": TableFacts("Combined cycle power plant", 9_568, 4, "electrical output in MW"),
    "uci-wine": TableFacts("Red wine", 1_599, 11, "quality from 0 to 10"),
    "uci-yacht": TableFacts("Yacht hydrodynamics", 308, 6, "residuary resistance per unit weight"),
}

TABLE = "table:"
"""Prefix of the names of tasks on custom tables, table:FILE."""


@dataclass(frozen=True, kw_only=True)
class Learning:
    """Settings of deep Q-learning; a training step is an update of the network by a batch from the replay memory."""

    copies: int = 8
    """Number of environments that are stepped together."""
    moves: int = 1
    """Number of actions in each environment before an update of the network."""
    repeat: int = 1
    """Number of environment steps for which an action is repeated (frame skip), also in evaluation."""
    memory: int = 10_000
    """Number of transitions in the replay memory, a multiple of `copies`; new transitions replace the oldest."""
    warmup: int = 1_000
    """Number of transitions with random actions before the first update, a multiple of `copies`."""
    gamma: float = 0.99
    """Discount factor of future rewards."""
    explore: float = 0.05
    """Final share of random actions; the share falls linearly from 1 to this."""
    explore_for: float = 0.5
    """Share of the training, from its start, during which the share of random actions falls."""
    period: int = 100
    """Number of updates of the network from one update of the target network to the next."""
    blend: float = 1.0
    """How far an update moves the target network towards the network, from 0 to 1; 1 copies the network."""
    double: bool = False
    """Whether to use double Q-learning (van Hasselt et al. 2016): the network, not the target network, chooses the next
    action, and the target network gives the value of this action.
    """
    loss: str = "huber"
    """Loss of the difference d between value and target: ``huber`` (square for |d| < 1, else linear) or ``squared``."""

    def __post_init__(self) -> None:
        for name, low, high in _BOUNDS:
            value = getattr(self, name)
            if not low <= value <= high:
                raise TaskError(f"the option {name} lies in [{low:g}, {high:g}], not {value:g}")
        for name in ("memory", "warmup"):
            if (value := getattr(self, name)) % self.copies:
                raise TaskError(
                    f"the option {name} is a multiple of the number of copies, {self.copies}, not {value:,}"
                )
        if self.warmup > self.memory:
            raise TaskError(f"a warmup of {self.warmup:,} transitions does not fit into a memory of {self.memory:,}")
        if self.loss not in ("huber", "squared"):
            raise TaskError(f"the option loss is huber or squared, not {self.loss!r}")

    def changed(self, options: Mapping[str, str]) -> Learning:
        """Return a copy with the fields that `options` names changed; the values in `options` are text."""
        known = {field.name: field.type for field in fields(self)}
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, text in options.items():
            if name not in known:
                raise TaskError(f"there is no option {name}: choose from {', '.join(known)}")
            values[name] = _parse_option(name, text, str(known[name]))
        return Learning(**values)


_BOUNDS = (
    ("copies", 1, 1024),
    ("moves", 1, 10_000),
    ("repeat", 1, 1_000),
    ("memory", 1, 10_000_000),
    ("warmup", 1, 10_000_000),
    ("gamma", 0.0, 1.0),
    ("explore", 0.0, 1.0),
    ("explore_for", 0.0, 1.0),
    ("period", 1, 1_000_000),
    ("blend", 1e-6, 1.0),
)


def _parse_option(name: str, text: str, kind: str) -> Any:
    if kind == "str":
        return text
    if kind == "bool":
        if text.lower() not in ("true", "false"):
            raise TaskError(f"the option {name} is true or false, not {text!r}")
        return text.lower() == "true"
    try:
        return {"int": int, "float": float}[kind](text)
    except ValueError:
        raise TaskError(f"the option {name} is a {'whole ' * (kind == 'int')}number, not {text!r}") from None


@dataclass(frozen=True)
class EnvironmentFacts:
    """Facts about a reinforcement learning environment: name, default network and training settings."""

    title: str
    environment: str
    """Name of the environment in Gymnasium."""
    model: str
    recipe: Recipe
    learning: Learning = field(default_factory=Learning)

    def __str__(self) -> str:
        return f"{self.title}: {self.environment} of Gymnasium, by deep Q-learning; {self.model} by default"


_RECIPE = Recipe(length="20000it", batch=128, optimizer="adam", lr=1e-3, schedule="linear", clip=10.0)

# The hard part is a cart that drifts away over hundreds of steps: a discount of 200 steps makes such late ends count.
# Many environments and a short memory show recent behaviour. The squared loss weights the rare ends, without which
# training diverges at this target period. Every fifth action stays random, so that the memory always has some ends.
_POLE = Learning(
    copies=64,
    memory=10_240,
    warmup=1_024,
    gamma=0.995,
    explore=0.2,
    explore_for=0.4,
    period=10,
    double=True,
    loss="squared",
)
_POLE_RECIPE = _RECIPE.changed(length="6000it", batch=64, lr=4e-3, clip=0.0)

# With the Huber loss or a higher learning rate some trainings fail: no swing reaches the height in 500 steps.
_SWING = Learning(memory=20_000, explore_for=0.3, period=50, double=True, loss="squared")
_SWING_RECIPE = _RECIPE.changed(length="8000it", lr=5e-4)

# At 20 ms per decision the values of actions differ by less than noise, and the network learns to hover: actions are
# repeated for four steps.
_LAND = Learning(repeat=4, memory=50_000, warmup=2_000, gamma=0.98, explore_for=0.3, double=True, loss="squared")
_LAND_RECIPE = _RECIPE.changed(clip=0.0)

ENVIRONMENTS = {
    "cartpole": EnvironmentFacts("A pole is balanced on a cart", "CartPole-v1", "mlp-120-84", _POLE_RECIPE, _POLE),
    "acrobot": EnvironmentFacts(
        "A double pendulum swings itself up", "Acrobot-v1", "mlp-120-84", _SWING_RECIPE, _SWING
    ),
    "lunarlander": EnvironmentFacts("A spacecraft lands", "LunarLander-v3", "mlp-120-84", _LAND_RECIPE, _LAND),
}

GYM = "gym:"
"""Prefix of the names of tasks on other environments, gym:ENVIRONMENT."""
OTHER = EnvironmentFacts("", "", "mlp-120-84", _RECIPE)
EXTRA = "control"
"""Name of the extra of the package ticketry that reinforcement learning needs."""
EPISODES = 100
"""Number of episodes over which the return of a network is averaged."""
