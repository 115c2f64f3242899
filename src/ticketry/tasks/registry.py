"""Tasks by name: the built-in ones, and a user's own as module:object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from ticketry.errors import TaskError
from ticketry.tasks.control.facts import CONTROL, GYM, GYM_LINE, GYM_NAME
from ticketry.tasks.finetune.facts import HF, HF_LINE, HF_NAME
from ticketry.tasks.language import presets as texts
from ticketry.tasks.presets import PRESETS
from ticketry.tasks.regression.facts import TABLE, TABLE_LINE, TABLE_NAME, UCI

if TYPE_CHECKING:
    from ticketry.tasks.base import Spec, Task


FOLDER = "imagefolder"
"""The task whose data are the user's: see `folder`."""

_FOLDER_LINE = (
    "Your own images, read from disk: --option path=DIR with train/<class>/* and val/<class>/*, "
    "224x224 by default (--option size=64); resnet-18-imagenet by default"
)


TEXTS = tuple(texts.MODELS)
"""Tasks of language, see `language.task`; text is written text:PATH."""


def names() -> tuple[str, ...]:
    """The built-in tasks."""
    return (*PRESETS, FOLDER, *TEXTS, *UCI, TABLE_NAME, *CONTROL, GYM_NAME, HF_NAME)


def describe(name: str) -> str:
    """A built-in task in one line.

    Raises:
        TaskError: for another name.
    """
    if name not in names():
        raise TaskError(_unknown(name))
    if name in TEXTS:
        return texts.describe(name)
    named = {FOLDER: _FOLDER_LINE, TABLE_NAME: TABLE_LINE, GYM_NAME: GYM_LINE, HF_NAME: HF_LINE}
    return str({**PRESETS, **UCI, **CONTROL, **named}[name])


def get(name: str, *, model: str | None = None, options: Mapping[str, str] | None = None) -> Task:
    """The task of that name: a built-in one, or module:object, see `own.load`.

    `model` chooses another network than the task's own. `options` go to a user's own task; a built-in one has
    ``train``, for fewer training examples, imagefolder those of `folder.make`, and tables those of
    `regression.tables.make`.

    Raises:
        TaskError: for an unknown name, network or option, and whatever `own.load` raises.
    """
    from ticketry.tasks.base import Spec

    return make(Spec(name, model, tuple(sorted((options or {}).items()))))


def make(spec: Spec) -> Task:
    """The task that `get` made from the same request; its `spec` is this one.

    Raises:
        TaskError: as `get`.
    """
    # torch takes a second to import, and `names` and `describe` do without.
    from ticketry.tasks import folder, models, own
    from ticketry.tasks.control import task as control
    from ticketry.tasks.finetune import task as finetune
    from ticketry.tasks.language import task as language
    from ticketry.tasks.regression import tables
    from ticketry.tasks.vision import ImageClassification

    if spec.name.partition(":")[0] in TEXTS:
        return language.make(spec)
    if spec.name in UCI or spec.name.startswith(TABLE):
        return tables.make(spec)
    if spec.name in CONTROL or spec.name.startswith(GYM):
        return control.make(spec)
    if spec.name.startswith(HF):
        return finetune.make(spec)
    if ":" in spec.name:
        return own.load(spec)
    if spec.name == FOLDER:
        return folder.make(spec)
    if spec.name not in PRESETS:
        raise TaskError(_unknown(spec.name))
    preset = PRESETS[spec.name]
    network = spec.model or preset.model
    models.check(network, shape=preset.shape)
    return ImageClassification(
        name=spec.name,
        model=network,
        shape=preset.shape,
        classes=preset.classes,
        largest=preset.largest,
        mean=preset.mean,
        std=preset.std,
        recipe=preset.recipe_of(network),
        train=_train(spec),
        spec=spec,
    )


def of_replicate(task: Task, number: int) -> Task:
    """The task as a replicate of a search has it: `task` itself, or with the options of `Task.of_replicate`.

    Raises:
        TaskError: if there is no such replicate, or a task whose replicates differ was made by no request.
    """
    return _with(task, task.of_replicate(number), "differs between replicates")


def untrained(task: Task) -> Task:
    """The task whose networks begin with random weights: `task` itself, or with the options of `Task.untrained`.

    Raises:
        TaskError: if a task that begins with trained ones was made by no request.
    """
    return _with(task, task.untrained(), "begins with trained weights")


def _with(task: Task, options: Mapping[str, str], why: str) -> Task:
    if not options:
        return task
    if task.spec is None:
        raise TaskError(f"the task {task.name} {why}: get it by its name, from ticketry.task")
    return make(replace(task.spec, options=tuple(sorted({**dict(task.spec.options), **options}.items()))))


def _train(spec: Spec) -> int:
    """The option of the built-in tasks: how many training examples."""
    options = dict(spec.options)
    text = options.pop("train", "0")
    if options:
        raise TaskError(f"the task {spec.name} has no option {', '.join(options)}: it has train (a number of examples)")
    if not text.isdecimal():
        raise TaskError(f"the option train of {spec.name} is a number of training examples, not {text!r}")
    return int(text)


def _unknown(name: str) -> str:
    return f"there is no task {name!r}: choose one of {', '.join(names())}, or name your own as module:object"
