"""What a search method is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from ticketry.errors import UsageError
from ticketry.lab.found import Found, Seeds
from ticketry.search._about import About

if TYPE_CHECKING:  # torch comes late: the command line's help needs no more than the settings
    from ticketry.lab.lab import Lab
    from ticketry.tasks.base import Task
    from ticketry.tasks.recipe import Recipe


class Search(Protocol):
    """One replicate of a method: yields the dense network, then each ticket as it is trained."""

    def __call__(self, lab: Lab, task: Task, recipe: Recipe, settings: Any, seeds: Seeds, /) -> Iterator[Found]: ...


@dataclass(frozen=True)
class Method:
    """A search method: its name, what it is, its settings and its function."""

    name: str
    title: str
    description: str
    Settings: type[Any]
    search: Search
    levels: Callable[[Any], int] | None = None
    """How many tickets a replicate will find with given settings, if the method can tell."""
    about: About = field(default_factory=About)

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

    def _default(self, setting: str) -> Any:
        return {each.name: each.default for each in fields(self.Settings)}.get(setting)

    @classmethod
    def of(cls, module: ModuleType) -> Method:
        """The method that a module holds.

        Raises:
            UsageError: if it lacks a part of one.
        """
        for part in ("Settings", "search"):
            if not hasattr(module, part):
                raise UsageError(f"{module.__name__} is no search method: it has no {part}")
        title, _, description = (module.__doc__ or module.__name__).strip().partition("\n")
        name = module.__name__.rpartition(".")[2]
        return cls(
            name,
            title.rstrip("."),
            description.strip(),
            module.Settings,
            module.search,
            getattr(module, "levels", None),
            getattr(module, "ABOUT", About()),
        )

    def __call__(
        self,
        lab: Lab,
        task: Task,
        settings: Any = None,
        *,
        recipe: Recipe | None = None,
        replicates: int = 1,
        seeds: Seeds | None = None,
        on_found: Callable[[int, Found], None] | None = None,
    ) -> list[list[Found]]:
        """Search. Everything already in the lab's store is taken from there.

        Args:
            lab: where to train.
            task: what to train.
            settings: the method's `Settings`; its defaults if left out.
            recipe: the task's own if left out.
            replicates: how many times, with other seeds, and other data where a task has several splits.
            seeds: of the first replicate.
            on_found: called with (replicate, found) as each network is trained; it may come from several threads.

        Returns:
            For each replicate what it found, the dense network first.
        """
        from ticketry.tasks.registry import of_replicate

        first = seeds or Seeds()
        settings = self.Settings() if settings is None else settings
        tasks = [of_replicate(task, number) for number in range(replicates)]

        def one(number: int) -> list[Found]:
            found = []
            with lab.telling(f"replicate {number} "):
                for item in self.search(lab, tasks[number], recipe or task.recipe, settings, first.replicate(number)):
                    found.append(item)
                    if on_found:
                        on_found(number, item)
            return found

        return lab.gather([partial(one, number) for number in range(replicates)])
