"""Search methods, and one replicate of a search with the steps that most methods share."""

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
"""Errors that end one replicate; its earlier tickets remain valid, and other replicates continue."""


@dataclass(frozen=True)
class Replicate:
    """One replicate of a search: where, what, how and with which seeds it trains."""

    lab: Lab
    task: Task
    recipe: Recipe
    seeds: Seeds

    @cached_property
    def whole(self) -> Segment:
        """The dense training by the recipe."""
        return self.from_initialisation()

    def from_initialisation(self, mask: str | None = None, variants: Sequence[Variant] = ()) -> Segment:
        """Return a training by the recipe from the initialisation to the end, with a mask or variants.

        It is not `whole` with other variants, because variants decide in which kernels a network can be trained.
        """
        return self._segment(self.seeds.initialisation, mask=mask, variants=variants)

    def dense(self, *keep: int, retrain: str = GRADUAL) -> Found:
        """Train the dense network, level 0.

        Args:
            keep: rising steps whose states are needed; the last of them is `Found.rewound`.
            retrain: how its tickets are trained.
        """
        dense = self.lab.train(self.whole, keep=keep, label="dense")
        return Found(0, None, self.lab.at(dense, keep[-1]), dense, retrain, dense)

    def onward(self, weights: Result, first: int, *, optimizer: Result | None = None, **more: Any) -> Segment:
        """Return a training that continues from stored weights at step `first`, by default to the end.

        Args:
            optimizer: result whose optimiser continues too; with None the optimiser is new.
            more: arguments of `Lab.segment`.
        """
        from ticketry.lab.training.segment import Start

        start = Start(state=weights.model, optimizer=optimizer.training if optimizer else None)
        return self._segment(start, first=first, **more)

    def _segment(self, start: Start | int, **more: Any) -> Segment:
        return self.lab.segment(self.task, start=start, order_seed=self.seeds.order, recipe=self.recipe, **more)

    def reordered(self, *parts: str | int) -> Replicate:
        """Return the replicate with another data order, for trainings that `parts` name."""
        from ticketry_engine.support.seeds import mix

        return replace(self, seeds=replace(self.seeds, order=mix(self.seeds.order, *parts)))

    def retrained(
        self, mask: str, *, retrain: str = GRADUAL, rewound: Result, trained: Result, shrunk: bool = False
    ) -> Segment:
        """Return the training of a ticket, see `lab.retrain`."""
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
        """Yield what `member(level, piece)` finds for each piece, with levels from 1 on; see `gather`."""

        def find_one(level: int, piece: T) -> Iterator[Found]:
            yield member(level, piece)

        return self.gather([partial(find_one, level, piece) for level, piece in enumerate(pieces, start=1)])

    def gather(self, members: Iterable[Callable[[], Iterable[Found]]]) -> Iterator[Found]:
        """Yield what each member finds, in their order; they run side by side where the lab has workers.

        Raises:
            LayerCollapseError, TrainingError: of the first member that fails, after everything that the others find:
                one density that empties a layer does not prevent another's ticket.
            NotStoredError: likewise, where nothing may be trained.
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


NOT_SAID = "not said"


@dataclass(frozen=True)
class About:
    """Facts about a method for lists: where it is from, when it prunes, what it costs. A method may omit them."""

    paper: str = NOT_SAID
    """A short citation."""
    prunes: str = NOT_SAID
    """When, relative to training: before, early in, during or after it."""
    costs: str = NOT_SAID
    """Trainings of the recipe that its tickets take, with the search but without the dense network to compare with."""
    score: str = ""
    """Description of the default score if the settings leave it open, such as "by penalty"."""
    removes: str = ""
    """weights, channels or both; if empty the structures that the settings offer decide."""


class Search(Protocol):
    """One replicate of a method: yields the dense network, then each trained ticket."""

    def __call__(self, lab: Lab, task: Task, recipe: Recipe, settings: Any, seeds: Seeds, /) -> Iterator[Found]: ...


@dataclass(frozen=True)
class Method(Generic[S]):
    """A search method: name, description, settings, plan and search.

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
    """One line that describes it."""
    description: str
    """Description with its papers."""
    Settings: type[S]
    """Frozen dataclass of its settings."""
    search: Search
    """Searches one replicate; yields each trained network."""
    plan: Callable[[S], list[Training]] | None = None
    """Returns what a replicate trains with given settings, beside the dense network; None if that is unknown."""
    about: About = field(default_factory=About)
    """Facts for lists."""
    alias: str = ""
    """The alias by which it was requested, see `common.aliases`; else empty."""
    module: str = ""
    """Module that defines it; empty for one built otherwise."""

    @property
    def scores(self) -> str:
        """The default score, by which weights are retained; empty without one."""
        default = self._default("score")
        return self.about.score if default == "" else str(default or "")

    @property
    def structured(self) -> bool:
        """Whether it can remove whole channels."""
        return self.removes != "weights"

    @property
    def removes(self) -> str:
        """weights, channels or both."""
        families = getattr(self.Settings, "structures", ())
        return self.about.removes or ("both" if "channels" in families else "weights")

    def tickets(self, settings: S) -> list[Training]:
        """Return the tickets that a replicate will find, by level; none if the method has no plan."""
        return tickets_in(self.plan(settings)) if self.plan else []

    def _default(self, setting: str) -> Any:
        settings: Any = self.Settings
        return {each.name: each.default for each in fields(settings)}.get(setting)

    @classmethod
    def of(cls, name: str, found: object) -> Method[Any]:
        """Return the method defined by a module, or by a class, with a docstring, `Settings` and `search`.

        The docstring's first line is the title, the rest the description. A function stands for the module that it is
        the `search` of. `plan` and `ABOUT` are optional.

        Args:
            name: name of the method.
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
            raise UsageError(f"{what} is no search method: its Settings are not a dataclass")
        if bare := [one.name for one in fields(settings) if one.init and one.default is one.default_factory is MISSING]:
            raise UsageError(f"{what} is no search method: its setting {bare[0]!r} has no default")
        search: Any = found if isinstance(found, FunctionType) else getattr(module, "search")  # noqa: B009
        _check_call(search, what)
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
        """Search. Trainings that are in the lab's store are reused.

        Args:
            lab: lab that trains.
            task: the task, or its name.
            settings: the method's `Settings`; by default its defaults.
            recipe: by default the task's own.
            replicates: number of searches, with other seeds, and other data where a task has several splits.
            seeds: seeds of the first replicate.
            on_found: called with (replicate, found) as each network is trained, possibly from several threads.
            on_ended: called after all replicates with the error of those that failed; without it that is raised.

        Returns:
            The networks that each replicate found, the dense network first.

        Raises:
            UsageError: for less than one replicate, or if the method does not yield what a search has to.
            LayerCollapseError, TrainingError: if a replicate fails; after the others have ended too.
        """
        from ticketry.tasks.catalogue import of_replicate, resolve_task

        check_bounds("replicates", replicates)
        task = resolve_task(task)
        first = seeds or Seeds()
        settings = self.Settings() if settings is None else settings
        tasks = [of_replicate(task, number) for number in range(replicates)]
        ended: dict[int, TicketryError] = {}

        def one(number: int) -> list[Found]:
            found = []
            with lab.telling(f"replicate {number} "):
                networks = self.search(lab, tasks[number], recipe or task.recipe, settings, first.replicate(number))
                for item in _until_it_fails(check_found(self.name, networks), number, ended):
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
    """Raise `UsageError` for a search that does not take the arguments that it is called with."""
    given = ("lab", "task", "recipe", "settings", "seeds")
    try:
        inspect.signature(search, follow_wrapped=False).bind(*given)
    except TypeError as error:
        raise UsageError(
            f"{what} is no search method: its search is called as search({', '.join(given)}): {error}"
        ) from None
    except ValueError:  # unknown for code that is not written in Python
        return


def _until_it_fails(
    networks: Iterator[Found], number: int, ended: MutableMapping[int, TicketryError]
) -> Iterator[Found]:
    """Yield what replicate `number` finds, and put the error that ends it into `ended`; other errors are raised."""
    try:
        yield from networks
    except CANNOT_GO_ON as error:
        ended[number] = error


def _ended(ended: Mapping[int, TicketryError], replicates: int) -> TicketryError:
    """Return the error of the first replicate that failed; it names all of them."""
    *others, last = map(str, sorted(ended))
    error = ended[min(ended)]
    if replicates == 1:
        return error
    which = f"replicates {', '.join(others)} and {last}" if others else f"replicate {last}"
    where = f"{which} cannot go on"
    return error.with_prefix(where) if isinstance(error, LayerCollapseError) else type(error)(f"{where}: {error}")


# -- checks of what a method yields -----------------------------------------------------------------------------------


def check_found(method: str, networks: object) -> Iterator[Found]:
    """Yield the networks of a replicate of a method, after checking each: methods are written by users too.

    Raises:
        UsageError: unless they are the dense network and then tickets of rising levels, each trained under its mask.
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
        if wrong := _wrong_dense(found) if level is None else _wrong_ticket(found, level):
            raise UsageError(f"the search method {method} yields {wrong}")
        level = found.level
        yield found
    if level is None:
        raise UsageError(f"the search method {method} yields nothing: it yields the dense network, then its tickets")


def _wrong_dense(found: Found) -> str:
    """Return what is wrong with the first network; empty if nothing is."""
    if found.level != 0 or found.mask is not None or found.result.segment.mask is not None:
        return (
            f"{_describe(found)} before the dense network: Found(0, None, …), trained without a mask, comes first,"
            " for all others are compared with it"
        )
    return _wrong_retrain(found)


def _wrong_ticket(found: Found, before: int) -> str:
    """Return what is wrong with a network after one of level `before`; empty if nothing is."""
    if found.level <= before:
        return f"{_describe(found)} after one of level {before}: the levels of tickets rise from 1 on, one each"
    mask: object = found.mask
    if mask is None:
        return f"a ticket of level {found.level} without a mask: give what lab.store.put_mask(mask) returns"
    if not isinstance(mask, str):
        return (
            f"a ticket of level {found.level} with a {type(mask).__name__} as its mask, which is the digest of"
            " one: give what lab.store.put_mask(mask) returns"
        )
    trained = found.result.segment.mask
    if trained is None:
        return (
            f"a ticket of level {found.level} that was trained without a mask: its result is what"
            " ticketry.lab.retrain.retraining describes, by whatever retrain, or another segment with that mask"
        )
    if trained != mask:
        return (
            f"a ticket of level {found.level} with the mask {mask[:12]} that was trained under another one,"
            f" {trained[:12]}: its mask and its result belong together"
        )
    return _wrong_retrain(found)


def _wrong_retrain(found: Found) -> str:
    if found.retrain in HOW_TRAINED:
        return ""
    return f"{_describe(found)} with retrain {found.retrain!r}: it is {', '.join(HOW_TRAINED)}"


def _describe(found: Found) -> str:
    return f"a network of level {found.level}"


def procedure_sources(method: Method[Any], settings: Any) -> dict[str, str]:
    """Return digests of the source of a method, and of the score and the kind of gates that its settings name.

    Built-in code has none, nor has a method defined at a prompt or in a notebook, where there is no file.

    Raises:
        UsageError: if a module has no source file.
    """
    defined = (sys.modules.get(method.module), method.search, method.Settings)
    found = {
        "method": digest_defining_source(*defined),
        **{name: _digest_setting(settings, name) for name in ("score", "kind")},
    }
    return {name: source for name, source in found.items() if source}


def _digest_setting(settings: Any, name: str) -> str:
    """Return the digest of what a setting names; "" for built-in code, or for another kind of setting of that name."""
    value = getattr(settings, name, None)
    if not isinstance(value, str):
        return ""
    from ticketry.core.gates.kinds import KINDS  # these import torch
    from ticketry.core.score import source_of

    with contextlib.suppress(TicketryError):  # an unusable score raises where it is used
        if name == "score":
            return source_of(value)
        return KINDS.digest_source(value) if KINDS.is_outside(value) else ""
    return ""
