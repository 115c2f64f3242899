"""Tasks by name: the built-in ones, and a user's own as module:object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ticketry.errors import TaskError
from ticketry.tasks.presets import PRESETS

if TYPE_CHECKING:
    from ticketry.tasks.base import Spec, Task


FOLDER = "imagefolder"
"""The task whose data are the user's: see `folder`."""

_FOLDER_LINE = (
    "Your own images, read from disk: --option path=DIR with train/<class>/* and val/<class>/*, "
    "224x224 by default (--option size=64); resnet-18-imagenet by default"
)


def names() -> tuple[str, ...]:
    """The built-in tasks."""
    return (*PRESETS, FOLDER)


def describe(name: str) -> str:
    """A built-in task in one line.

    Raises:
        TaskError: for another name.
    """
    if name not in names():
        raise TaskError(_unknown(name))
    return _FOLDER_LINE if name == FOLDER else str(PRESETS[name])


def get(name: str, *, model: str | None = None, options: Mapping[str, str] | None = None) -> Task:
    """The task of that name: a built-in one, or module:object, see `own.load`.

    `model` chooses another network than the task's own. `options` go to a user's own task; a built-in one has
    ``train``, for fewer training examples, and imagefolder those of `folder.make`.

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
    from ticketry.tasks.vision import ImageClassification

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
