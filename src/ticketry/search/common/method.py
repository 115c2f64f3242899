"""Search methods, and `Replicate`: one replicate of a search with the trainings that most methods need."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from functools import cached_property, partial, wraps
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Generic, Protocol, cast

from typing_extensions import TypeVar

from ticketry.choices import check_bounds
from ticketry.errors import LayerCollapseError, NotStoredError, TicketryError, TrainingError, UsageError
from ticketry.lab.search_result import GRADUAL, HOW_TRAINED, Found, Seeds
from ticketry.registry import digest_defining_source
from ticketry.search.common.plan import Training, ticket_trainings

if TYPE_CHECKING:
    from ticketry.lab.lab import Lab
    from ticketry.lab.training.segment import Result, Segment, Start
    from ticketry.lab.training.variant import Variant
    from ticketry.tasks.recipe import Recipe
    from ticketry.tasks.task import Task

S = TypeVar("S", default=Any)
"""Settings of a method."""
T = TypeVar("T")

REPLICATE_ENDING_ERRORS = (LayerCollapseError, TrainingError)
"""Errors that end only one replicate: its earlier tickets remain valid, and other replicates continue."""


@dataclass(frozen=True)
class Replicate:
    """One replicate of a search: a lab, task, recipe and seeds, and the trainings that most methods need."""

    lab: Lab
    task: Task
    recipe: Recipe
    seeds: Seeds

    @cached_property
    def dense_training(self) -> Segment:
        """The description of the dense training by the recipe; reading this property trains nothing."""
        return self.from_initialisation()

    def from_initialisation(self, mask: str | None = None, variants: Sequence[Variant] = ()) -> Segment:
        """Describe a training from the initialisation to the end of the recipe; `mask` is a stored mask's digest."""
        return self._make_segment(self.seeds.initialisation, mask=mask, variants=variants)

    def train_dense(self, *keep: int, retrain: str = GRADUAL) -> Found:
        """Train the dense network and return it as level 0 of a search.

        Its state is stored at the ascending steps `keep`; that at the last of these steps becomes `Found.rewound`.
        `retrain` names the way in which tickets will be trained.
        """
        dense = self.lab.train(self.dense_training, keep=keep, label="dense")
        return Found(0, None, self.lab.at(dense, keep[-1]), dense, retrain, dense)

    def continue_from(self, weights: Result, first: int, *, optimizer: Result | None = None, **more: Any) -> Segment:
        """Describe a training that continues from the weights of a result at step `first`, by default to the end.

        Args:
            optimizer: result whose optimiser state is continued; None starts a new optimiser.
            more: arguments of `Lab.segment`, such as a mask.
        """
        from ticketry.lab.training.segment import Start

        start = Start(state=weights.model, optimizer=optimizer.training if optimizer else None)
        return self._make_segment(start, first=first, **more)

    def _make_segment(self, start: Start | int, **more: Any) -> Segment:
        return self.lab.segment(self.task, start=start, order_seed=self.seeds.order, recipe=self.recipe, **more)

    def with_other_data_order(self, *parts: str | int) -> Replicate:
        """Return a copy of this replicate with another data order, whose seed is a hash of the old one and `parts`."""
        from ticketry_engine.support.seeds import mix_seeds

        return replace(self, seeds=replace(self.seeds, order=mix_seeds(self.seeds.order, *parts)))

    def ticket_training(
        self, mask: str, *, retrain: str = GRADUAL, rewound: Result, trained: Result, shrunk: bool = False
    ) -> Segment:
        """Describe the training of a ticket with a stored mask, whose digest is `mask`, after pruning.

        `retrain` names the way to train it, such as ``continue``, from `rewound`, the network at the rewind step, or
        from `trained`, the network that was pruned. If `shrunk`, pruned channels are removed from the network.
        """
        from ticketry.lab.retrain import retraining

        return retraining(
            self.lab,
            self.task,
            self.recipe,
            retrain=retrain,
            mask=mask,
            rewound=rewound,
            trained=trained,
            order_seed=self.seeds.order,
            shrunk=shrunk,
        )

    def find_each(self, find: Callable[[int, T], Found], items: Iterable[T]) -> Iterator[Found]:
        """Yield `find(level, item)` for each item, with levels 1, 2, …; if the lab has workers, calls are parallel."""

        def find_one(level: int, item: T) -> Iterator[Found]:
            yield find(level, item)

        return self.find_all([partial(find_one, level, item) for level, item in enumerate(items, start=1)])

    def find_all(self, searches: Iterable[Callable[[], Iterable[Found]]]) -> Iterator[Found]:
        """Run independent searches, in parallel if the lab has workers, and yield their networks in the given order.

        If a search fails, the others still run to their ends. All networks found are yielded before the error is
        raised.
        """
        errors: list[tuple[int, TicketryError]] = []

        def run_one(number: int, search: Callable[[], Iterable[Found]]) -> list[Found]:
            found = []
            try:
                for item in search():
                    found.append(item)
            except (*REPLICATE_ENDING_ERRORS, NotStoredError) as error:
                errors.append((number, error))
            return found

        for found in self.lab.gather([partial(run_one, *search) for search in enumerate(searches)]):
            yield from found
        if errors:
            raise min(errors, key=lambda error: error[0])[1]


def search_by_replicate(
    found: Callable[[Replicate, S], Iterator[Found]],
) -> Callable[[Lab, Task, Recipe, S, Seeds], Iterator[Found]]:
    """Convert a function of (replicate, settings) to a method's ``search(lab, task, recipe, settings, seeds)``."""

    @wraps(found)
    def search(lab: Lab, task: Task, recipe: Recipe, settings: S, seeds: Seeds) -> Iterator[Found]:
        return found(Replicate(lab, task, recipe, seeds), settings)

    return search


UNKNOWN = "not said"


@dataclass(frozen=True)
class About:
    """Description of a method that ``ticketry list methods`` shows. A method may omit every field."""

    paper: str = UNKNOWN
    """A short citation."""
    prunes: str = UNKNOWN
    """When weights are pruned, relative to training: before, early in, during or after it."""
    costs: str = UNKNOWN
    """How many trainings by the recipe a ticket takes, including the search, excluding the dense network."""
    score: str = ""
    """Description of the default score if the default of the setting `score` is empty, such as "by penalty"."""
    removes: str = ""
    """Removed parts: weights, channels or both. If empty, this follows from the structures that settings offer."""


class Search(Protocol):
    """Signature of a function that searches one replicate: it yields the dense network, then each trained ticket."""

    def __call__(self, lab: Lab, task: Task, recipe: Recipe, settings: Any, seeds: Seeds, /) -> Iterator[Found]: ...


@dataclass(frozen=True)
class Method(Generic[S]):
    """A search method with its name, description, settings, plan and search function.

    Examples:
        >>> iterative = tk.search.method("iterative")
        >>> iterative.name, iterative.scores, iterative.removes, iterative.structured
        ('iterative', 'magnitude', 'both', True)
        >>> len(iterative.tickets(iterative.Settings(density="5%")))
        14
        >>> tk.search.Method.of("mine", iterative).name
        'mine'
    """

    name: str
    """Name on the command line."""
    title: str
    """Description of the method in one line."""
    description: str
    """Longer description, which cites the papers."""
    Settings: type[S]
    """Frozen dataclass of the method's settings."""
    search: Search
    """Function that searches one replicate and yields each trained network."""
    plan: Callable[[S], list[Training]] | None = None
    """Function that returns a replicate's planned trainings for given settings, without the dense network's; None if
    the method does not plan."""
    about: About = field(default_factory=About)
    """Description for ``ticketry list methods``."""
    alias: str = ""
    """The alias by which the method was requested, see `search.ALIASES`; else empty."""
    module: str = ""
    """Name of the module that defines the method; empty if no module does."""

    @property
    def scores(self) -> str:
        """The default pruning score; empty if the method has none."""
        default = next((one.default for one in fields(cast(Any, self.Settings)) if one.name == "score"), None)
        return self.about.score if default == "" else str(default or "")

    @property
    def structured(self) -> bool:
        """Whether the method can remove whole channels."""
        return self.removes != "weights"

    @property
    def removes(self) -> str:
        """Parts that the method removes: weights, channels or both."""
        families = getattr(self.Settings, "structures", ())
        return self.about.removes or ("both" if "channels" in families else "weights")

    def tickets(self, settings: S) -> list[Training]:
        """Return the planned trainings of tickets, one for each level; an empty list if the method has no plan."""
        return ticket_trainings(self.plan(settings)) if self.plan else []

    @classmethod
    def of(cls, name: str, found: object) -> Method[Any]:
        """Return the method that a module or class with a docstring, `Settings` and `search` defines.

        The first line of the docstring is the title, the rest the description. `plan` and `ABOUT` are optional. `found`
        is the module or class, or the function `search` of a module; `name` is the name that the method gets.

        Raises:
            UsageError: if a required part is missing, `Settings` is not a dataclass with a default for every field, or
                `search` takes other arguments than (lab, task, recipe, settings, seeds).
        """
        if isinstance(found, Method):
            return replace(found, name=name)
        module = sys.modules[found.__module__] if isinstance(found, FunctionType) else found
        what = getattr(module, "__name__", type(module).__name__)
        for part in ("Settings", "search"):
            if not hasattr(module, part):
                raise UsageError(f"{what} is no search method: it has no {part}")
        settings: Any = getattr(module, "Settings")  # noqa: B009
        if not (inspect.isclass(settings) and is_dataclass(settings)):
            raise UsageError(f"{what} is no search method: its Settings are not a dataclass")
        if bare := [one.name for one in fields(settings) if one.init and one.default is one.default_factory is MISSING]:
            raise UsageError(f"{what} is no search method: its setting {bare[0]!r} has no default")
        search: Any = found if isinstance(found, FunctionType) else getattr(module, "search")  # noqa: B009
        _require_search_signature(search, what)
        about = getattr(module, "ABOUT", None)
        title, _, description = inspect.cleandoc(module.__doc__ or what).partition("\n")
        return cls(
            name,
            title.rstrip("."),
            description.strip(),
            cast(type[Any], settings),
            search,
            getattr(module, "plan", None),
            about if isinstance(about, About) else About(),
            "",
            module.__name__ if isinstance(module, ModuleType) else getattr(module, "__module__", ""),
        )

    def __call__(
        self,
        lab: Lab,
        task: str | Task,
        settings: S | None = None,
        *,
        recipe: Recipe | None = None,
        replicates: int = 1,
        seeds: Seeds | None = None,
        on_found: Callable[[int, Found], None] | None = None,
        on_ended: Callable[[TicketryError], None] | None = None,
    ) -> list[list[Found]]:
        """Search for tickets in one or more replicates, reusing trainings that the lab's store contains.

        Args:
            lab: lab that trains and stores the networks.
            task: the task, or its name.
            settings: the method's `Settings`; by default all defaults.
            recipe: recipe of all trainings; by default the task's.
            replicates: number of searches; each has its own seeds, and its own data if the task has several splits.
            seeds: seeds of the first replicate.
            on_found: called with (replicate, found) after each network is trained, possibly from several threads.
            on_ended: called at the end with the error of failed replicates, which is then not raised.

        Returns:
            For each replicate, the networks that it found, the dense network first.

        Raises:
            UsageError: for less than one replicate, or if the method's search yields invalid results.
            LayerCollapseError, TrainingError: if a replicate fails; raised after all other replicates have ended.
        """
        from ticketry.tasks.catalogue import of_replicate, resolve_task

        check_bounds("replicates", replicates)
        task = resolve_task(task)
        first = seeds or Seeds()
        settings = self.Settings() if settings is None else settings
        tasks = [of_replicate(task, number) for number in range(replicates)]
        ended: dict[int, TicketryError] = {}

        def search_replicate(number: int) -> list[Found]:
            found = []
            with lab.telling(f"replicate {number} "):
                networks = self.search(lab, tasks[number], recipe or task.recipe, settings, first.replicate(number))
                for item in _yield_until_error(check_networks(self.name, networks), number, ended):
                    found.append(item)
                    if on_found:
                        on_found(number, item)
            return found

        all_found = lab.gather([partial(search_replicate, number) for number in range(replicates)])
        if ended:
            error = _first_error_of_replicates(ended, replicates)
            if on_ended is None:
                raise error
            on_ended(error)
        return all_found


def _require_search_signature(search: Any, what: str) -> None:
    given = ("lab", "task", "recipe", "settings", "seeds")
    try:
        inspect.signature(search, follow_wrapped=False).bind(*given)
    except TypeError as error:
        raise UsageError(
            f"{what} is no search method: its search is called as search({', '.join(given)}): {error}"
        ) from None
    except ValueError:  # unknown for code that is not written in Python
        return


def _yield_until_error(
    networks: Iterator[Found], number: int, ended: MutableMapping[int, TicketryError]
) -> Iterator[Found]:
    """Yield the networks of replicate `number`; store a training or collapse error in `ended` instead of raising it."""
    try:
        yield from networks
    except REPLICATE_ENDING_ERRORS as error:
        ended[number] = error


def _first_error_of_replicates(ended: Mapping[int, TicketryError], replicates: int) -> TicketryError:
    """Return the first failed replicate's error, after adding the numbers of all failed replicates to its message."""
    *others, last = map(str, sorted(ended))
    error = ended[min(ended)]
    if replicates == 1:
        return error
    which = f"replicates {', '.join(others)} and {last}" if others else f"replicate {last}"
    where = f"{which} cannot go on"
    return error.with_prefix(where) if isinstance(error, LayerCollapseError) else type(error)(f"{where}: {error}")


# -- checks of what a method yields -----------------------------------------------------------------------------------


def check_networks(method: str, networks: object) -> Iterator[Found]:
    """Yield the networks that a method yields in one replicate, after checking each of them.

    Raise `UsageError` unless the dense network comes first, then tickets of rising level, each trained under its mask.
    """
    if not isinstance(networks, Iterable):
        raise UsageError(
            f"the search method {method} returns a {type(networks).__name__}: its search yields a Found for each"
            " network"
        )
    level = None
    for found in networks:
        if not isinstance(found, Found):
            raise UsageError(
                f"the search method {method} yields a {type(found).__name__}: it yields a ticketry.search.Found for"
                " each network"
            )
        if wrong := _describe_fault(found, level):
            raise UsageError(f"the search method {method} yields {wrong}")
        level = found.level
        yield found
    if level is None:
        raise UsageError(f"the search method {method} yields nothing: it yields the dense network, then its tickets")


def _describe_fault(found: Found, before: int | None) -> str:
    """Return what is wrong with a network, for a message; empty if nothing is.

    `before` is the level of the network that the search yielded before it; None if `found` is the first network.
    """
    mask: object = found.mask
    trained = found.result.segment.mask
    network, ticket = f"a network of level {found.level}", f"a ticket of level {found.level}"
    if before is None:
        if found.level != 0 or mask is not None or trained is not None:
            return (
                f"{network} before the dense network: Found(0, None, …), trained without a mask,"
                " comes first, for all others are compared with it"
            )
    elif found.level <= before:
        return f"{network} after one of level {before}: the levels of tickets rise from 1 on, one each"
    elif mask is None:
        return f"{ticket} without a mask: give what lab.store.put_mask(mask) returns"
    elif not isinstance(mask, str):
        return (
            f"{ticket} with a {type(mask).__name__} as its mask, which is the digest of"
            " one: give what lab.store.put_mask(mask) returns"
        )
    elif trained is None:
        return (
            f"{ticket} that was trained without a mask: its result is what"
            " ticketry.lab.retrain.retraining describes, by whatever retrain, or another segment with that mask"
        )
    elif trained != mask:
        return (
            f"{ticket} with the mask {mask[:12]} that was trained under another one,"
            f" {trained[:12]}: its mask and its result belong together"
        )
    if found.retrain not in HOW_TRAINED:
        return f"{network} with retrain {found.retrain!r}: it is {', '.join(HOW_TRAINED)}"
    return ""


def user_source_digests(method: Method[Any], settings: Any) -> dict[str, str]:
    """Return digests of the user's own source files that a search uses, by role: method, score, kind (of gates).

    Built-in code is omitted. So are methods defined at a prompt or in a notebook, because they have no file.
    """
    found = {"method": digest_defining_source(sys.modules.get(method.module), method.search, method.Settings)}
    for name in ("score", "kind"):
        value = getattr(settings, name, None)
        if isinstance(value, str):
            from ticketry.core.gates.kinds import KINDS  # these import torch
            from ticketry.core.score import source_of

            with contextlib.suppress(TicketryError):  # an unusable score raises where it is used
                if name == "score":
                    found[name] = source_of(value)
                elif KINDS.is_external(value):
                    found[name] = KINDS.digest_source(value)
    return {name: source for name, source in found.items() if source}
