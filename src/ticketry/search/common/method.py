"""What a search method is, and one replicate of it: what that trains with, and the steps that most methods share."""

from __future__ import annotations

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
from ticketry.lab.search_result import GRADUAL, Found, Seeds
from ticketry.search.common.found_checks import checked
from ticketry.search.common.plan import Training, tickets_in

if TYPE_CHECKING:
    from ticketry.lab.lab import Lab
    from ticketry.lab.training.segment import Result, Segment, Start
    from ticketry.lab.training.variant import Variant
    from ticketry.tasks.recipe import Recipe
    from ticketry.tasks.task import Task

S = TypeVar("S", default=Any)
"""Settings of a method."""
T = TypeVar("T")

CANNOT_GO_ON = (LayerCollapseError, TrainingError)
"""Errors of one replicate, behind which it finds nothing more; what it has found stands, and others go on."""


@dataclass(frozen=True)
class Replicate:
    """Where, what, how and with which seeds one replicate trains."""

    lab: Lab
    task: Task
    recipe: Recipe
    seeds: Seeds

    @cached_property
    def whole(self) -> Segment:
        """The dense training by the recipe."""
        return self.begun()

    def begun(self, mask: str | None = None, variants: Sequence[Variant] = ()) -> Segment:
        """Training by the recipe from the initialisation to the end, with a mask, or with what `variants` do to it.

        Not `whole` with others put into it: what acts on a network decides in which kernels it can be trained.
        """
        return self._segment(self.seeds.initialisation, mask=mask, variants=variants)

    def dense(self, *keep: int, retrain: str = GRADUAL) -> Found:
        """The dense network, level 0.

        Args:
            keep: rising steps whose states are needed; what is found begins with that of the last, see `Found.rewound`.
            retrain: how its tickets are trained.
        """
        dense = self.lab.train(self.whole, keep=keep, label="dense")
        return Found(0, None, self.lab.at(dense, keep[-1]), dense, retrain, dense)

    def onward(self, weights: Result, first: int, *, optimizer: Result | None = None, **more: Any) -> Segment:
        """Training that goes on from stored weights at step `first`, to the end unless `more` says otherwise.

        Args:
            optimizer: whose optimiser's state goes on too; with None it begins afresh.
            more: of `Lab.segment`.
        """
        from ticketry.lab.training.segment import Start

        start = Start(state=weights.model, optimizer=optimizer.training if optimizer else None)
        return self._segment(start, first=first, **more)

    def _segment(self, start: Start | int, **more: Any) -> Segment:
        return self.lab.segment(self.task, start=start, order_seed=self.seeds.order, recipe=self.recipe, **more)

    def reordered(self, *parts: str | int) -> Replicate:
        """The same with an order of the data of its own, for trainings that `parts` name."""
        from ticketry_engine.support.seeds import mix

        return replace(self, seeds=replace(self.seeds, order=mix(self.seeds.order, *parts)))

    def retrained(
        self, mask: str, *, retrain: str = GRADUAL, rewound: Result, trained: Result, shrunk: bool = False
    ) -> Segment:
        """The training of a ticket, see `lab.retrain`."""
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

    def side_by_side(self, member: Callable[[int, T], Found], pieces: Iterable[T]) -> Iterator[Found]:
        """What `member(level, piece)` finds for each piece, with levels from 1 on; see `together`."""

        def alone(level: int, piece: T) -> Iterator[Found]:
            yield member(level, piece)

        return self.together([partial(alone, level, piece) for level, piece in enumerate(pieces, start=1)])

    def together(self, members: Iterable[Callable[[], Iterable[Found]]]) -> Iterator[Found]:
        """What each member finds, side by side where the lab has workers, in their order.

        Raises:
            LayerCollapseError, TrainingError: of the first member that cannot go on, after what all have found: one
                density that empties a layer takes no other's ticket away.
            NotStoredError: the same where nothing may be trained: of the others is told what is stored.
        """
        ended: list[tuple[int, TicketryError]] = []

        def one(number: int, member: Callable[[], Iterable[Found]]) -> list[Found]:
            found = []
            try:
                for item in member():
                    found.append(item)
            except (*CANNOT_GO_ON, NotStoredError) as error:
                ended.append((number, error))
            return found

        for found in self.lab.gather([partial(one, *member) for member in enumerate(members)]):
            yield from found
        if ended:
            raise min(ended, key=lambda member: member[0])[1]


def on_replicate(
    found: Callable[[Replicate, S], Iterator[Found]],
) -> Callable[[Lab, Task, Recipe, S, Seeds], Iterator[Found]]:
    """A method's ``search(lab, task, recipe, settings, seeds)``, written as a function of (replicate, settings)."""

    @wraps(found)
    def search(lab: Lab, task: Task, recipe: Recipe, settings: S, seeds: Seeds) -> Iterator[Found]:
        return found(Replicate(lab, task, recipe, seeds), settings)

    return search


def check_replicates(replicates: int) -> None:
    """Raises `UsageError` for a number of replicates by which nothing would be searched."""
    check_bounds("replicates", replicates)


NOT_SAID = "not said"


@dataclass(frozen=True)
class About:
    """Facts of a method: where it is from, when it prunes, what it costs. A method that has none may leave it out."""

    paper: str = NOT_SAID
    """A short citation."""
    prunes: str = NOT_SAID
    """When, relative to training: before, early in, during or after it."""
    costs: str = NOT_SAID
    """Trainings of the recipe that its tickets take, the search included and the dense network to compare with not."""
    score: str = ""
    """What decides on the score that it takes by default, if that is left open."""
    removes: str = ""
    """weights, channels or both; empty where settings tell: both if one is called structured, else weights."""


class Search(Protocol):
    """One replicate of a method: yields the dense network, then each ticket as it is trained."""

    def __call__(self, lab: Lab, task: Task, recipe: Recipe, settings: Any, seeds: Seeds, /) -> Iterator[Found]: ...


@dataclass(frozen=True)
class Method(Generic[S]):
    """A search method: its name, what it is, its settings and its function.

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
    """As commands have it."""
    title: str
    """A line."""
    description: str
    """What it does, with its papers."""
    Settings: type[S]
    """A frozen dataclass."""
    search: Search
    """One replicate: yields each network as it is trained."""
    plan: Callable[[S], list[Training]] | None = None
    """Returns what a replicate trains with given settings, beside the dense network; None if it cannot be told."""
    about: About = field(default_factory=About)
    """Facts for lists."""
    alias: str = ""
    """The name by which it was requested, where that is an alias: see `common.aliases`."""
    module: str = ""
    """That has its parts; empty for one that was put together otherwise."""

    @property
    def scores(self) -> str:
        """What decides which weights are kept: the score that it takes by default, or an empty string if none."""
        default = self._default("score")
        return self.about.score if default == "" else str(default or "")

    @property
    def structured(self) -> bool:
        """Whether it can remove whole channels."""
        return self.removes != "weights"

    @property
    def removes(self) -> str:
        """weights, channels or both."""
        return self.about.removes or ("both" if self._default("structured") is not None else "weights")

    def tickets(self, settings: S) -> list[Training]:
        """Return the tickets that a replicate will find, by level; none if the method has no plan."""
        return tickets_in(self.plan(settings)) if self.plan else []

    def _default(self, setting: str) -> Any:
        settings: Any = self.Settings
        return {each.name: each.default for each in fields(settings)}.get(setting)

    @classmethod
    def of(cls, name: str, found: object) -> Method[Any]:
        """The method that an object is, under a name: a module, or a class, with a docstring, `Settings` and `search`.

        The docstring's first line is the title, the rest the description. A function is the `search` of its module,
        which has the others. `plan` and `ABOUT` may be there.

        Args:
            name: that it will have.
            found: a module, a class or a function.

        Raises:
            UsageError: if it lacks a part of a method, its settings are no dataclass or one has no default, or its
                search takes other arguments.
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
            raise UsageError(f"{what} is no search method: its Settings are no dataclass")
        if bare := [one.name for one in fields(settings) if one.init and one.default is one.default_factory is MISSING]:
            raise UsageError(f"{what} is no search method: its setting {bare[0]!r} has no default")
        search: Any = found if isinstance(found, FunctionType) else getattr(module, "search")  # noqa: B009
        _check_call(search, what)
        told = getattr(module, "ABOUT", None)
        title, _, description = inspect.cleandoc(module.__doc__ or what).partition("\n")
        return cls(
            name,
            title.rstrip("."),
            description.strip(),
            cast(type[Any], settings),
            search,
            getattr(module, "plan", None),
            told if isinstance(told, About) else About(),
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
        """Search. Everything already in the lab's store is taken from there.

        Args:
            lab: where to train.
            task: what to train, or its name.
            settings: the method's `Settings`; its defaults if left out.
            recipe: the task's own if left out.
            replicates: how many times, with other seeds, and other data where a task has several splits.
            seeds: of the first replicate.
            on_found: called with (replicate, found) as each network is trained; it may come from several threads.
            on_ended: called, after all replicates, with why some cannot go on; without it that is raised.

        Returns:
            For each replicate what it found, the dense network first.

        Raises:
            UsageError: for less than one replicate, or a method that does not yield what a search does.
            LayerCollapseError, TrainingError: if a replicate cannot go on; after the others have ended too.
        """
        from ticketry.tasks.catalogue import asked, of_replicate

        check_replicates(replicates)
        task = asked(task)
        first = seeds or Seeds()
        settings = self.Settings() if settings is None else settings
        tasks = [of_replicate(task, number) for number in range(replicates)]
        ended: dict[int, TicketryError] = {}

        def one(number: int) -> list[Found]:
            found = []
            with lab.telling(f"replicate {number} "):
                networks = self.search(lab, tasks[number], recipe or task.recipe, settings, first.replicate(number))
                for item in _as_far_as_it_goes(checked(self.name, networks), number, ended):
                    found.append(item)
                    if on_found:
                        on_found(number, item)
            return found

        all_found = lab.gather([partial(one, number) for number in range(replicates)])
        if ended:
            error = _ended(ended, replicates)
            if on_ended is None:
                raise error
            on_ended(error)
        return all_found


def _check_call(search: Any, what: str) -> None:
    """Refuse a search that does not take what it is called with, before anything is trained."""
    given = ("lab", "task", "recipe", "settings", "seeds")
    try:
        inspect.signature(search, follow_wrapped=False).bind(*given)
    except TypeError as error:
        raise UsageError(
            f"{what} is no search method: its search is called as search({', '.join(given)}): {error}"
        ) from None
    except ValueError:  # of what is not written in Python nobody knows before it is called
        return


def _as_far_as_it_goes(
    networks: Iterator[Found], number: int, ended: MutableMapping[int, TicketryError]
) -> Iterator[Found]:
    """What replicate `number` finds; into `ended` goes why it cannot go on. Errors of whoever is told are not its."""
    try:
        yield from networks
    except CANNOT_GO_ON as error:
        ended[number] = error


def _ended(ended: Mapping[int, TicketryError], replicates: int) -> TicketryError:
    """The error of the first of the replicates that cannot go on, which names all of them where there are several."""
    *others, last = map(str, sorted(ended))
    error = ended[min(ended)]
    if replicates == 1:
        return error
    which = f"replicates {', '.join(others)} and {last}" if others else f"replicate {last}"
    where = f"{which} cannot go on"
    return error.with_prefix(where) if isinstance(error, LayerCollapseError) else type(error)(f"{where}: {error}")
