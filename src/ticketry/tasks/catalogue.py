"""Look up tasks by name: built-in tasks, tasks of installed packages, and user-defined tasks as module:object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ticketry.errors import PluginError, TaskError
from ticketry.registry import BUILT_IN, Registry, resolve
from ticketry.tasks import facts as texts
from ticketry.tasks.facts import DATA_SETS, ENVIRONMENTS, MODEL, UCI
from ticketry.tasks.file_requests import check_request

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
        **dict.fromkeys(DATA_SETS.built_in, "ticketry.tasks.images.task:create_task"),
        "imagefolder": "ticketry.tasks.images.folder:create_folder_task",
        "imageshards": "ticketry.tasks.images.folder:create_shards_task",
        **dict.fromkeys(texts.MODELS, "ticketry.tasks.language.task:create_task"),
        **dict.fromkeys((*UCI, "table:FILE"), "ticketry.tasks.regression:create_task"),
        **dict.fromkeys((*ENVIRONMENTS, "gym:ENVIRONMENT"), "ticketry.tasks.reinforcement.task:create_task"),
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
    """Return the name of the package that a task comes from, or "built in"."""
    return (DATA_SETS if _is_data_set(name) else TASKS).find_origin(_registered_name(name))


def describe(name: str) -> str:
    """Return a one-line description of a task; for a broken task of an installed package, why it cannot be used.

    Raises:
        TaskError: for an unknown name.
    """
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
    """Return the task named `name`: built in, of an installed package, or module:object (see `user_task.load`).

    `model` is the name of a network that replaces the task's default network. `options` are options of the task: data
    sets in memory take ``train`` (fewer training examples) and ``size`` (fewer pixels); for other tasks see
    `images.folder.create_folder_task`, `regression.create_task` and similar functions. Values are text, as on a command
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
    """Return the task for a name or a task object; an object without a key gets a key from its class and options.

    Raises:
        TaskError: as `get`; or if the object cannot be created again from a name and options, see `user_task.recreate`.
    """
    from ticketry.tasks.user_task import recreate

    return get(task) if isinstance(task, str) else recreate(task, get)


def create_task(spec: Spec) -> Task:
    """Create the task that `spec`, a request of the user, names; the task's attribute `spec` is the request.

    Raises:
        TaskError, PluginError: as `get`.
    """
    return _create(spec)


def create_task_from_file(file: str, spec: Spec, *, trust: bool = False) -> Task:
    """Create the task of `spec`, a request that was read from a file; `file_requests` says which are allowed.

    Args:
        file: name of the file in error messages.
        spec: the request.
        trust: whether the user trusts the names in the file. Even then, a function that a name refers to is called only
            if the function's annotation says that it returns a task.

    Raises:
        TrustError: for a request that is not allowed.
        TaskError, PluginError: as `get`.
    """
    if not trust:
        check_request(spec.name, spec.model, spec.options, of=file)
    return _create(spec, annotated=True)


def _create(spec: Spec, *, annotated: bool = False) -> Task:
    # Importing torch takes a second, and `names` and `describe` do not need it.
    from ticketry.tasks import user_task
    from ticketry.tasks.images import task as images

    if _is_data_set(spec.name):
        return images.create_task(spec)
    entry = _registered_name(spec.name)
    if TASKS.find_origin(entry) != BUILT_IN:
        return user_task.load(spec, TASKS, annotated=annotated)
    task: Task = resolve(TASKS.find_target(entry))(spec)
    return task


def _registered_name(name: str) -> str:
    """Return the name under which a task is registered, such as table:FILE for table:houses.csv."""
    before, colon, _ = name.partition(":")
    return _PREFIXES.get(before, name) if colon else name


def _is_data_set(name: str) -> bool:
    return name in DATA_SETS and (name in DATA_SETS.built_in or name not in TASKS)


def of_replicate(task: Task, number: int) -> Task:
    """Return the task for replicate `number` of a search: `task`, or a copy with the options of `Task.of_replicate`.

    Raises:
        TaskError: if the task has fewer replicates, or if replicates differ and the task was not created by name.
    """
    return _add_options(task, task.of_replicate(number), "differs between replicates")


def untrained(task: Task) -> Task:
    """Return the task with randomly initialised networks: `task`, or a copy with the options of `Task.untrained`.

    Raises:
        TaskError: if the networks of `task` are pre-trained and the task was not created by name.
    """
    return _add_options(task, task.untrained(), "begins with trained weights")


def _add_options(task: Task, options: Mapping[str, str], why: str) -> Task:
    if not options:
        return task
    if task.spec is None:
        raise TaskError(f"the task {task.name} {why}: get it by its name, from ticketry.task")
    return create_task(replace(task.spec, options=tuple(sorted({**dict(task.spec.options), **options}.items()))))
