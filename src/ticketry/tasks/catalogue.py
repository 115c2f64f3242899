"""Look up tasks by name, and published experiments (the option --preset); no torch needed.

A task is built in, from an installed package, or user-defined as module:object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ticketry.choices import did_you_mean
from ticketry.errors import PluginError, TaskError, UsageError
from ticketry.registry import BUILT_IN, Registry, import_object
from ticketry.tasks import facts as texts
from ticketry.tasks.facts import (
    CONV6,
    DATA_SETS,
    ENVIRONMENTS,
    GPT,
    IMAGENET,
    LENET,
    LSTM,
    MODEL,
    POINTER,
    RESIDUAL,
    UCI,
)
from ticketry.tasks.file_requests import check_request
from ticketry.tasks.recipe import Recipe

if TYPE_CHECKING:
    from ticketry.tasks.task import Spec, Task


_LINES = {
    "imagefolder": (
        "Your own images, read from disk: --option path=DIR with train/<class>/* and val/<class>/*, 224x224 by default"
        " (--option size=64); resnet-18-imagenet by default"
    ),
    "imageshards": (
        "Your own images in shards (WebDataset's tar files), in a folder or at a URL: --option path=DIR, train-*.tar"
        " and val-*.tar; otherwise as imagefolder"
    ),
    "table:FILE": (
        "Your own table: a column (--target COLUMN) from the others of a CSV file, which is split at random, anew for"
        f" each replicate (--option split=0 for one split); {MODEL} by default"
    ),
    "gym:ENVIRONMENT": (
        "Any environment of Gymnasium with numbers to see and actions to choose from, by deep Q-learning; mlp-120-84 by"
        " default"
    ),
    "hf:FOLDER": (
        "Your own texts (--option texts=FILE) told into classes by a pre-trained network of Hugging Face's"
        " transformers: a folder with config.json, model.safetensors and a tokenizer, fine-tuned from its weights"
    ),
    **{name: texts.describe(name) for name in texts.MODELS},
    **{name: str(facts) for name, facts in (UCI | ENVIRONMENTS).items()},
}
"""One-line descriptions of the built-in tasks that are not data sets of `facts.DATA_SETS`."""

_PREFIXES = {name.partition(":")[0]: name for name in _LINES if ":" in name} | {texts.TEXT: texts.TEXT}
"""Registered names with a colon, such as table:FILE, by the prefix before the colon, such as table."""

TASKS: Registry[Any] = Registry(
    "task",
    "ticketry.tasks",
    {
        **dict.fromkeys(DATA_SETS.built_in, "ticketry.tasks.images:create_task"),
        "imagefolder": "ticketry.tasks.images:create_folder_task",
        "imageshards": "ticketry.tasks.images:create_shards_task",
        **dict.fromkeys(texts.MODELS, "ticketry.tasks.language.task:create_task"),
        **dict.fromkeys((*UCI, "table:FILE"), "ticketry.tasks.regression:create_task"),
        **dict.fromkeys((*ENVIRONMENTS, "gym:ENVIRONMENT"), "ticketry.tasks.reinforcement:create_task"),
        "hf:FOLDER": "ticketry.tasks.fine_tuning:create_task",
    },
    error=TaskError,
    unknown="there is no {kind} {name!r}: choose one of {names}",
)
"""All registered tasks by name: an entry is a `Task`, a subclass of `Task`, or a function that returns a task."""


def names() -> tuple[str, ...]:
    """Return the names of the built-in tasks and of the tasks and data sets of installed packages."""
    return (*TASKS.names(), *(name for name in DATA_SETS.names() if name not in TASKS))


def find_origin(name: str) -> str:
    """Return the name of the installed package that defines the task `name`, or "built in"."""
    return (DATA_SETS if _is_data_set(name) else TASKS).find_origin(_registered_name(name))


def describe(name: str) -> str:
    """Return a one-line description of a task; if the task cannot be used, return the reason instead."""
    if name in _LINES:
        return _LINES[name]
    try:
        if _is_data_set(name):
            return str(DATA_SETS.get(name))
        if name not in TASKS:
            raise TASKS.build_unknown_error(name)
        return (TASKS.get(name).__doc__ or name).strip().partition("\n")[0].rstrip(".")
    except PluginError as error:
        return str(error)


def get(name: str, *, model: str | None = None, options: Mapping[str, object] | None = None) -> Task:
    """Return the task named `name`: a built-in task, one of an installed package, or module:object.

    `model` is the name of a network that replaces the task's default network. `options` are options of the task: data
    sets in memory take ``train`` (fewer training examples) and ``size`` (fewer pixels); for other tasks see
    `images.create_folder_task`, `regression.create_task` and similar functions. Values are text, as on a command
    line; other values are converted to text.

    Raises:
        TaskError: for an unknown name, network or option, and errors of `user_task.load`.
        PluginError: if a task of an installed package cannot be used.

    Examples:
        >>> digits = tk.task("digits")
        >>> digits.name, digits.metric.name, digits.recipe.length
        ('digits', 'accuracy', '20ep')
        >>> tk.task("digits", options={"train": 500}).key()["train"]
        500
        >>> tk.task("digit")
        Traceback (most recent call last):
            ...
        ticketry.errors.TaskError: there is no task 'digit': choose one of digits, mnist, fashion-mnist, ...
    """
    from ticketry.tasks.task import Spec

    return create_task(Spec(name, model, tuple(sorted((key, str(value)) for key, value in (options or {}).items()))))


def resolve_task(task: str | Task) -> Task:
    """Return the task that a name stands for, or `task` itself; a task without a key gets one from its source code."""
    from ticketry.tasks.user_task import recreate

    return get(task) if isinstance(task, str) else recreate(task, get)


def create_task(spec: Spec, *, file: str = "", trust: bool = False) -> Task:
    """Create the task that `spec` requests (name, network, options), and set the task's `spec`.

    Args:
        file: name of the file that the request comes from; empty if the user makes it. A file may request only what
            `file_requests` allows.
        trust: whether the user trusts the names in the file. Even then, a function that a name refers to is called only
            if the function's annotation says that it returns a task.
    """
    # Importing torch takes a second, and `names` and `describe` do not need it.
    from ticketry.tasks import images, user_task

    if file and not trust:
        check_request(spec.name, spec.model, spec.options, of=file)
    if _is_data_set(spec.name):
        return images.create_task(spec)
    entry = _registered_name(spec.name)
    if TASKS.find_origin(entry) != BUILT_IN:
        return user_task.load(spec, TASKS, annotated=bool(file))
    task: Task = import_object(TASKS.find_target(entry))(spec)
    return task


def _registered_name(name: str) -> str:
    """Return the name under which a task is registered, such as table:FILE for table:houses.csv."""
    before, colon, _ = name.partition(":")
    return _PREFIXES.get(before, name) if colon else name


def _is_data_set(name: str) -> bool:
    return name in DATA_SETS and (name in DATA_SETS.built_in or name not in TASKS)


def of_replicate(task: Task, number: int) -> Task:
    """Return the task for replicate `number` of a search: a copy with the options of `Task.of_replicate`, if any."""
    return _add_options(task, task.of_replicate(number), "differs between replicates")


def with_random_weights(task: Task) -> Task:
    """Return the task with random instead of pre-trained weights: a copy with options `Task.untrained`, if any."""
    return _add_options(task, task.untrained(), "begins with trained weights")


def _add_options(task: Task, options: Mapping[str, str], why: str) -> Task:
    if not options:
        return task
    if task.spec is None:
        raise TaskError(f"the task {task.name} {why}: get it by its name, from ticketry.task")
    return create_task(replace(task.spec, options=tuple(sorted({**dict(task.spec.options), **options}.items()))))


@dataclass(frozen=True)
class Experiment:
    """A published experiment as a preset: method, task, network, training recipe and settings."""

    title: str
    source: str
    """The paper or code that the settings are from."""
    method: str
    """Name of the search method, see `ticketry list methods`."""
    task: str
    model: str
    recipe: Recipe
    settings: Mapping[str, Any]
    """Options of the method that differ from its defaults."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Options of the task."""


@dataclass(frozen=True)
class _Network:
    """A network of Frankle et al. 2019, figure 2, with the recipe of the paper."""

    title: str
    task: str
    model: str
    recipe: Recipe
    until: dict[str, float]
    """When the search ends: the number of levels or the final density, from figure 3 of the paper."""


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


def _make_paper_experiment(
    network: _Network, what: str, rewind: str, *, figures: str = "figures 2 and 3", **changes: Any
) -> Experiment:
    source = f"Frankle et al. 2019 (arXiv 1903.01611 v3), {figures}"
    recipe, settings = network.recipe.changed(**changes), {"rate": 0.2, "rewind": rewind, **network.until}
    return Experiment(f"{network.title}, {what}", source, "iterative", network.task, network.model, recipe, settings)


def _make_short_experiment(network: _Network, width: float, **changes: Any) -> Experiment:
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
_SATURATES = "figures 2 and 3, sections 3 and 4 (saturates at iteration {})"
"""Parts of the paper that show that rewinding to later steps gains nothing."""

IMP_PRESETS = {
    "lenet": _make_paper_experiment(_LENET, "rewound to step 0", "0"),
    "resnet-20": _make_paper_experiment(
        _RESNET, "learning rate 0.1, rewound to iteration 500", "500it", figures=_SATURATES.format(500)
    ),
    "resnet-20-low": _make_paper_experiment(_RESNET, _LOW, "0", lr=0.01),
    "resnet-20-warmup": _make_paper_experiment(
        _RESNET, "20,000 iterations of warm-up to 0.03, rewound to step 0", "0", lr=0.03, warmup="20000it"
    ),
    "vgg-19": _make_paper_experiment(
        _VGG, "learning rate 0.1, rewound to iteration 100", "100it", figures=_SATURATES.format(100)
    ),
    "vgg-19-low": _make_paper_experiment(_VGG, _LOW, "0", lr=0.01),
    "vgg-19-warmup": _make_paper_experiment(
        _VGG, "10,000 iterations of warm-up to 0.1, rewound to step 0", "0", warmup="10000it"
    ),
    "resnet-50": _make_paper_experiment(
        _IMAGENET,
        "rewound to epoch 6, down to 20 % of the weights",
        "6ep",
        figures="figure 2, and the iterative search on ImageNet",
    ),
    "resnet-50-imagenet": _make_paper_experiment(
        replace(_IMAGENET, title="ResNet-50 on ImageNet in shards", task="imageshards"),
        "rewound to epoch 6, down to 20 % of the weights",
        "6ep",
        figures="figure 2, and the iterative search on ImageNet",
    ),
    "resnet-20-short": _make_short_experiment(_RESNET, 0.5, length="9ep", milestones=("6ep", "7.5ep")),
    "vgg-19-short": _make_short_experiment(_VGG, 0.25, length="8ep", milestones=("4ep", "6ep")),
}
"""Experiments of iterative magnitude pruning, by preset name."""


_CODE = RESIDUAL.changed(length="85ep", batch=128, nesterov=True, milestones=("56ep", "71ep"))

_OFFICIAL = "the official code of Savarese et al. 2020 (arXiv 1912.04427)"


def _make_gated_experiment(
    title: str,
    source: str,
    model: str,
    recipe: Recipe,
    *,
    task: str = "cifar10",
    options: Mapping[str, str] | None = None,
    **settings: Any,
) -> Experiment:
    long_title = f"Continuous Sparsification, {title}"
    return Experiment(long_title, source, "continuous", task, model, recipe, settings, options or {})


_GATES: dict[str, Any] = {
    "rounds": 3,
    "rewind": "2ep",
    "retrain": "restart",
    "temperature": "epoch",
    "gate_nesterov": True,
}

CS_PRESETS = {
    "cs-resnet-20": _make_gated_experiment(
        "ResNet-20 on CIFAR-10, three rounds", _OFFICIAL, "resnet-20", _CODE, spare_output=True, **_GATES
    ),
    "cs-vgg-16": _make_gated_experiment(
        "VGG-16 on CIFAR-10, three rounds",
        f"the training that {_OFFICIAL} has for ResNet-20",
        "vgg-16",
        _CODE,
        spare_output=True,
        **_GATES,
    ),
    "cs-conv-6": _make_gated_experiment(
        "Conv-6 on CIFAR-10, three rounds",
        f"Conv-6 and its training as in Frankle and Carbin 2019 (figure 2), its gates as in {_OFFICIAL}",
        "conv-6",
        CONV6,
        **_GATES,
    ),
    "cs-resnet-50": _make_gated_experiment(
        "ResNet-50 on ImageNet, one round, to prune",
        f"our own choice: the usual training of 90 epochs, with the gates of {_OFFICIAL}; the paper's own is not known"
        " to us",
        "resnet-50-imagenet",
        IMAGENET.changed(augment=("resized_crop", "flip")),
        task="imagefolder",
        **{**_GATES, "rounds": 1, "rewind": "end", "retrain": "none"},
        spare_output=True,
    ),
    "cs-resnet-20-short": _make_gated_experiment(
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
"""Experiments of Continuous Sparsification, by preset name."""


_SOURCE = "our own choice: models and recipes as docs/domains.md lists them"


def _make_text_experiment(title: str, task: str, model: str, recipe: Recipe, *, tokens: int = 0) -> Experiment:
    """Return a preset that searches on a text; if `tokens` is not 0, only on the first `tokens` tokens."""
    if tokens:
        title += f", shortened: narrower, {tokens:,} tokens, {recipe.length.removesuffix('ep')} epochs"
    settings, options = {"rewind": "3%", "densities": [0.5, 0.3, 0.1, 0.05]}, {"train": str(tokens)} if tokens else {}
    return Experiment(title, _SOURCE, "iterative", task, model, recipe, settings, options)


LANGUAGE_PRESETS = {
    "ptb-lstm": _make_text_experiment("LSTM on Penn Treebank", "ptb", "lstm-tied", LSTM),
    "ptb-pointer-lstm": _make_text_experiment("Pointer sentinel LSTM on Penn Treebank", "ptb", "pointer-lstm", POINTER),
    "wikitext-2-gpt": _make_text_experiment("GPT on WikiText-2", "wikitext-2", "gpt", GPT),
    "ptb-lstm-short": _make_text_experiment(
        "LSTM on Penn Treebank", "ptb", "lstm-tied@0.5", LSTM.changed(length="8ep"), tokens=200_000
    ),
    "ptb-pointer-lstm-short": _make_text_experiment(
        "Pointer sentinel LSTM on Penn Treebank",
        "ptb",
        "pointer-lstm@0.5",
        LSTM.changed(length="8ep"),  # 4 epochs of 100,000 tokens: 469 on the validation text, by Adam 623
        tokens=200_000,
    ),
    "wikitext-2-gpt-short": _make_text_experiment(
        "GPT on WikiText-2", "wikitext-2", "gpt@0.5", GPT.changed(length="4ep", batch=16, lr=2e-3), tokens=200_000
    ),
}
"""Experiments on language models, by preset name."""


EXPERIMENTS = IMP_PRESETS | CS_PRESETS | LANGUAGE_PRESETS


def experiment(name: str) -> dict[str, Any]:
    """Return a preset in the form of a run file: method, task, model, and tables of options, settings and recipe."""
    if name not in EXPERIMENTS:
        raise UsageError(
            f"there is no preset {name!r}: {did_you_mean(name, EXPERIMENTS)}choose one of {', '.join(EXPERIMENTS)}"
        )
    chosen = EXPERIMENTS[name]
    found: dict[str, Any] = {"method": chosen.method, "task": chosen.task, "model": chosen.model}
    tables = {"options": chosen.options, "settings": chosen.settings, "recipe": asdict(chosen.recipe)}
    for table, values in tables.items():
        lists = {key: list(value) for key, value in values.items() if isinstance(value, list | tuple)}
        found[table] = {**values, **lists}
    return found
