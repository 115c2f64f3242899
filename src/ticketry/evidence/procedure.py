"""A procedure under test: method, settings and recipe, the whole search repeated from seeds that no run has used.

A verdict about a ticket takes its mask and its start as given. One about a procedure takes nothing as given: every
replicate has its own initialisation, order of the data and search, so that replicates share no randomness.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ticketry.errors import UsageError
from ticketry.evidence.mask_form import Form
from ticketry.lab.costs.phases import phases_of
from ticketry.lab.lab import Lab
from ticketry.lab.search_result import Found, Seeds, budget
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Task
from ticketry_engine.support.seeds import mix

Search = Callable[[Lab, Task, Recipe, Any, Seeds], Iterator[Found]]
"""One replicate of a method: yields the dense network, then each ticket."""


@dataclass(frozen=True)
class Replicate:
    """What a procedure found from one set of fresh seeds."""

    task: Task
    seeds: Seeds
    dense: Found
    ticket: Found
    cost: int
    """Training steps of everything that the ticket needed, see `lab.costs.phases`."""

    @property
    def budget(self) -> int:
        """Training steps that are in the ticket's weights."""
        return budget(self.ticket)

    @property
    def form(self) -> Form:
        return Form.of_found(self.ticket)


@dataclass(frozen=True)
class Procedure:
    """A search with all that decides what it finds.

    Examples:
        >>> iterative, task = tk.search.iterative, tk.task("digits")
        >>> what = {"settings": iterative.Settings(levels=1), "recipe": tk.Recipe(length="20it"), "level": 1}
        >>> what["seeds"] = tk.search.Seeds()
        >>> with tk.Lab() as lab:
        ...     procedure = tk.evidence.Procedure(lab, iterative.search, lambda _: task, **what)
        ...     found = procedure.replicate(0)
        >>> procedure.task.name, found.ticket.level, found.seeds == procedure.fresh_seeds(0)
        ('digits', 1, True)
    """

    lab: Lab
    """Where it is trained."""
    search: Search
    """The method's function."""
    task_of: Callable[[int], Task]
    """The task as a fresh replicate of this number has it."""
    settings: Any
    """Of the method."""
    recipe: Recipe
    """How networks are trained."""
    level: int | None
    """Of the ticket; None for the last one that is found."""
    seeds: Seeds
    """Of the run's first replicate, which fresh ones are made from."""
    bounded: bool = False
    """Whether the settings bound what the whole search may cost, to one dense training by the recipe."""
    after: int = 0
    """Fresh seeds that are passed over, see `VerifySettings.after`, which takes its place."""

    @property
    def task(self) -> Task:
        return self.task_of(0)

    def fresh_seeds(self, number: int) -> Seeds:
        """Seeds that no run has used. They do not depend on method or settings, whose dense networks are shared.

        Args:
            number: of the repetition, from 0.
        """
        own = self.seeds
        return Seeds.of(mix(own.initialisation, own.order, own.mask, "procedure", self.after + number))

    def replicate(self, number: int) -> Replicate:
        """Search from fresh seeds, no further than is needed.

        Args:
            number: of the repetition, from 0.

        Raises:
            UsageError: if there is no ticket of the level.
        """
        task, seeds, found = self.task_of(self.after + number), self.fresh_seeds(number), []
        for one in self.search(self.lab, task, self.recipe, self.settings, seeds):
            found.append(one)
            if one.level == self.level:
                break
        *before, ticket = found
        if ticket.mask is None or ticket.level != (self.level or ticket.level):
            raise UsageError(
                f"seed number {number + 1}: the search found {len(found) - 1} tickets and none of level {self.level},"
                " so that its procedure cannot be judged at that level"
            )
        return Replicate(task, seeds, found[0], ticket, phases_of(ticket, before).steps)
