"""The request of a search: method, task, settings, recipe, replicates, seeds and controls; and the run's name."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ticketry import search
from ticketry.budgets.granularity import NONE
from ticketry.budgets.units import ENGINE
from ticketry.choices import check_bounds, check_storable_numbers
from ticketry.core.structure.pattern import check_density, parse_share
from ticketry.errors import UsageError
from ticketry.evidence.control import CONTROLS, check_controls
from ticketry.experiments.options import USUAL_CONTROLS, LabOptions
from ticketry.experiments.record_files import earlier_record, is_trained_in
from ticketry.lab.search_result import Seeds
from ticketry.lab.store.store import digest_of
from ticketry.records.network import LATENCY_MATCHED, is_matched_dense
from ticketry.records.run import RunRecord
from ticketry.records.settings import FORMAT_1_DEFAULTS
from ticketry.search import METHODS, Method, Training
from ticketry.search.common.aliases import known_as
from ticketry.search.common.method import procedure_sources
from ticketry.search.common.plan import tickets_in
from ticketry.search.common.settings import budget_of
from ticketry.search.common.shape import shape_of
from ticketry.tasks import catalogue
from ticketry.tasks.recipe import Recipe, recipe_from
from ticketry.tasks.task import Task

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from pathlib import Path

    from ticketry.lab.lab import Lab
    from ticketry.lab.store.paths import Paths

LATER = {
    "keep_at_least": 0,
    "when": "end",
    "budget": "",
    "embeddings": False,
    "kind": "continuous",
    "structured_levels": 0,
    **dict.fromkeys(("flops", "time", "bytes"), ()),
    "profile": "",
    **dict.fromkeys(("measured", "unweighed"), False),
    "structure": "none",
    **FORMAT_1_DEFAULTS,
}
"""Settings of format 1 that are younger than the first runs, with the default that is left out of a run's name."""


TOLERANCE = 0.02
"""Relative tolerance between a ticket's density and a requested one."""


@dataclass(frozen=True)
class SearchRequest:
    """A search: everything in a run file."""

    method: Method
    task: Task
    settings: Any
    recipe: Recipe
    replicates: int = 5
    seeds: Seeds = field(default_factory=Seeds)
    controls: tuple[str, ...] = ()
    control_densities: tuple[float, ...] = ()
    """Densities of the tickets with controls; empty if all have controls."""
    arithmetic: Mapping[str, Any] = field(default_factory=dict)
    """Unusual arithmetic of the lab, see `in_lab`: a run with other bits has another name."""
    label: str = ""
    """Name given by the user, instead of the default name."""
    stored_name: str = ""
    """Name of the run in a store, if it is not `default_name`. See `named_in`."""

    def __post_init__(self) -> None:
        check_bounds("replicates", self.replicates)
        if is_dataclass(self.settings):
            check_storable_numbers(self.settings)
        check_controls(self.controls)
        check_label(self.label)
        object.__setattr__(self, "controls", tuple(dict.fromkeys(self.controls)))
        budget = budget_of(self.settings)
        if not (budget and budget.kind == "time") and (
            odd := [one for one in self.controls if one.startswith(LATENCY_MATCHED)]
        ):
            raise UsageError(f"{odd[0]} needs tickets with a latency budget: search with --time, or use dense_of_flops")
        if self.control_densities and not self.controls:
            raise UsageError("control_densities needs controls, got none")
        if self.control_densities and budget:
            raise UsageError(f"control_densities needs a search by density, got one by {budget.kind}")
        planned = self.planned_densities
        for density in self.control_densities:
            check_density(density)
            if planned:
                level_of(density, planned, "the search")

    def in_lab(self, lab: Lab) -> SearchRequest:
        """Return the request with the lab's arithmetic, and with its name in the lab's store."""
        chosen = lab.unusual(self.task)
        return (self if chosen == self.arithmetic else replace(self, arithmetic=chosen)).as_stored(lab.store.paths)

    def as_stored(self, paths: Paths) -> SearchRequest:
        """Return the request with its name in a store; names of older versions do not depend on the arithmetic."""
        if not self.arithmetic or self.label or self.stored_name:
            return self
        plain = replace(self, arithmetic={})
        return plain if is_trained_in(paths.run(plain.name) / "run.json", self.arithmetic) else self

    def controls_beside(self, level: int | None, density: float) -> tuple[str, ...]:
        """The controls that are trained beside tickets of a level, by which they are known where it is planned: its
        structure may give a ticket another density."""
        asked, planned = self.control_densities, self.planned_densities
        if not asked:
            ticket = next((one for one in self.tickets if one.level == level), None)
            return self.controls if ticket is None or ticket.has_controls else ()
        if planned:
            beside = level in {level_of(one, planned, "the search") for one in asked}
        else:
            beside = any(_same(density, one) for one in asked)
        return self.controls if beside else ()

    def task_of(self, replicate: int) -> Task:
        """The task as that replicate has it: of data with several splits each may have its own."""
        return catalogue.of_replicate(self.task, replicate)

    def count_controls(self, ticket: Training) -> int:
        """Return the number of controls trained beside a planned ticket.

        If densities are known only after the search, the first tickets count as those with controls.
        """
        if self.control_densities and not self.planned_densities:
            return len(self.controls) if ticket.level <= len(self.control_densities) else 0
        return len(self.controls_beside(ticket.level, ticket.density or 1.0))

    @cached_property
    def plan(self) -> list[Training]:
        """Trainings of a replicate beside the dense network and controls; empty if the method has no plan."""
        return self.method.plan(self.settings) if self.method.plan else []

    @cached_property
    def tickets(self) -> list[Training]:
        """The tickets in the plan, by level."""
        return tickets_in(self.plan)

    @property
    def planned_densities(self) -> dict[float, int]:
        """Level of each ticket whose density is known before the search."""
        return {one.density: one.level for one in self.tickets if one.density is not None}

    @property
    def expected(self) -> int:
        """Number of networks that all replicates train: dense ones, tickets, controls; 0 without a plan."""
        if not self.plan:
            return 0
        beside = sum(1 + self.count_controls(one) for one in self.tickets)
        return self.replicates * (1 + beside)

    @cached_property
    def procedure_sources(self) -> dict[str, str]:
        """Digests of user code in the search, without controls.

        They are computed once, since a file may change after it was imported.
        """
        return procedure_sources(self.method, self.settings)

    @cached_property
    def sources(self) -> dict[str, str]:
        """Digests of all user code, controls included."""
        controls = [name for name in self.controls if not is_matched_dense(name)]  # its colon precedes a network
        outside = {f"control {name}": CONTROLS.digest_source(name) for name in controls if CONTROLS.is_outside(name)}
        return {**self.procedure_sources, **outside}

    @property
    def name(self) -> str:
        """The folder of the run in its store: the same run has the same name."""
        return self.label or self.stored_name or self.default_name

    @property
    def default_name(self) -> str:
        """Method, task and a digest of everything that matters."""
        return f"{_in_a_path(self.method.name)}-{_in_a_path(self.task.name)}-{digest_of(self.identity())[:8]}"

    @property
    def title(self) -> str:
        """The method's title; that of an alias only while the settings are those of the alias."""
        holds = not self.method.alias or self.known_as == self.method.alias
        return self.method.title if holds else search.method(self.method.name).title

    @property
    def known_as(self) -> str:
        """The method's name, or the alias by which it was requested: `search.common.aliases.known_as`."""
        return known_as(self.method.name, self.method.alias, self.settings)

    def named_in(self, paths: Paths) -> SearchRequest:
        """The request with the name that a new run gets: the paper's name of the method, if it was requested by that.

        Else the score is part of it, if that is not the method's own.

        A run that the store has under its default name keeps that. Campaigns name their runs by `default_name`.

        Raises:
            UsageError: if the user's name is that of a run of something else.
        """
        if self.label:
            self._check_same(paths.run(self.label) / "run.json")
            return self
        if self.stored_name or paths.run(self.name).exists():
            return self
        if (head := self.known_as) == self.method.name:
            if not self.unusual_score:
                return self
            head = f"{head}-{self.unusual_score}"
        digest = digest_of(self.identity())[:8]
        return replace(self, stored_name=f"{_in_a_path(head)}-{_in_a_path(self.task.name)}-{digest}")

    @property
    def unusual_score(self) -> str:
        """The score in the settings; empty if the method has none, or if it is the one that it has by default."""
        score = getattr(self.settings, "score", None)
        kind = search.method(self.method.name).Settings if self.method.alias else self.settings
        usual = {each.name: each.default for each in fields(kind)}.get("score")
        return score if isinstance(score, str) and score != usual else ""

    def _check_same(self, file: Path) -> None:
        """Raise `UsageError` if the record in a file is of another search than this one."""
        from ticketry.experiments.run_file import run_file

        earlier = earlier_record(file, RunRecord)
        if earlier is None:
            return
        then, now = (tomllib.loads(text) for text in (earlier.config, run_file(self.describe(), self.task.spec)))
        for table in ("options", "seeds", "settings", "recipe"):
            then |= {f"{table}.{name}": value for name, value in then.pop(table, {}).items()}
            now |= {f"{table}.{name}": value for name, value in now.pop(table, {}).items()}
        then["method"] = METHODS.aliases.get(then.get("method", ""), then.get("method"))
        if changed := [name for name, value in now.items() if name in then and then[name] != value]:
            was, is_now = then[changed[0]], now[changed[0]]
            raise UsageError(
                f"the store has another run called {self.label!r} ({changed[0]} {was}, not {is_now}): give this one"
                f" another --name, or remove that with ticketry rm {self.label}"
            )

    def identity(self) -> dict[str, Any]:
        """Return what names are digests of: the description, with settings as format 1 has them.

        Younger settings are left out where they have their default, so that stored runs keep their names.
        """
        values = self.settings.in_format_1() if hasattr(self.settings, "in_format_1") else asdict(self.settings)
        settings = {name: value for name, value in values.items() if (name, value) not in LATER.items()}
        chosen = {"arithmetic": dict(self.arithmetic)} if self.arithmetic else {}
        return self.describe() | {"settings": settings} | chosen

    def describe(self) -> dict[str, Any]:
        """Return JSON values; densities of controls and sources are omitted if empty."""
        beside = {"control_densities": list(self.control_densities)} if self.control_densities else {}
        return {
            "method": self.method.name,
            "task": dict(self.task.key()),
            "settings": _chosen_settings(self.settings),
            "recipe": asdict(self.recipe),
            "replicates": self.replicates,
            "seeds": asdict(self.seeds),
            "controls": list(self.controls),
            **beside,
            **({"sources": dict(self.sources)} if self.sources else {}),
        }


def _chosen_settings(settings: Any) -> dict[str, Any]:
    """Return the settings that a user can choose, by name."""
    values = asdict(settings)
    return {one.name: values[one.name] for one in fields(settings) if one.init}


def with_profile(
    request: SearchRequest, options: LabOptions, say: Callable[[str], None] = lambda _: None
) -> SearchRequest:
    """Measure this machine's costs for a budget of latency or bytes without a profile; return the completed request.

    The file of costs is stored by network and processor, so that the same search finds it again.

    Args:
        request: the search.
        options: store and data.
        say: called with a line of progress.
    """
    settings = request.settings
    if not (budget := budget_of(settings)) or not budget.unmeasured:
        return request
    from ticketry.lab.task_costs import CostOptions, kept_costs

    if budget.kind == "time":
        asked = CostOptions(structure=shape_of(settings).granularity or NONE, base=budget.named_base or ENGINE)
    else:
        asked = CostOptions(unit="bytes")
    file = kept_costs(request.task, asked, options.store, data=options.data, say=say)
    return replace(request, settings=replace(settings, profile=str(file)))


def level_of(density: float, planned: Mapping[float, int], what: str) -> int:
    """Return the level of a requested density.

    Args:
        density: the request.
        planned: level of each planned density.
        what: subject of the error message.

    Raises:
        UsageError: if no planned density is within the tolerance.
    """
    nearest = min(planned, key=lambda one: abs(one / density - 1), default=0.0)
    if _same(nearest, density):
        return planned[nearest]
    if not planned:
        raise UsageError(
            f"{what} has no tickets of density {density:g}: it has none that is known beforehand. Name a level on"
            " each side of a claim (level = 1), or let the method's `plan` have the densities of its tickets"
        )
    known = ", ".join(f"{one:g}" for one in planned)
    raise UsageError(f"{what} has no tickets of density {density:g}: it has {known}")


def _same(density: float, asked: float) -> bool:
    return abs(density / asked - 1) <= TOLERANCE


def check_label(label: str) -> None:
    """Raise `UsageError` for a name that cannot be a run's folder."""
    if label and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,79}", label):
        raise UsageError(
            f"the name {label!r:.100} cannot be a folder's name on every system: use up to 80 letters, digits and"
            " . _ + -, beginning with a letter or digit"
        )


def _in_a_path(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name).strip("-")


def request_of(
    method: str | Method,
    task: str | Task,
    settings: Any,
    *,
    model: str | None = None,
    replicates: int = 5,
    controls: str | Iterable[str] = USUAL_CONTROLS,
    control_densities: float | str | Iterable[float | str] = (),
    seeds: int | Seeds = 0,
    recipe: Recipe | Mapping[str, Any] | None = None,
    name: str = "",
) -> SearchRequest:
    """A request in the words of the command line.

    Args:
        name: of the run; by default one made of method, score and task.
        model: another network than that of the task, which is a name then.
        controls: one or several; none, or nothing, for none.
        control_densities: of the tickets that have controls; all have if nothing is given.
        seeds: of the first replicate; one number for all three.
        recipe: what differs from the task's own, by name; or a whole recipe.
    """
    task = named_task(task, model)
    named = (controls,) if isinstance(controls, str) else tuple(controls)
    return SearchRequest(
        method=named_method(method),
        task=task,
        settings=settings,
        recipe=recipe if isinstance(recipe, Recipe) else recipe_from({**asdict(task.recipe), **(recipe or {})}),
        replicates=replicates,
        seeds=seeds if isinstance(seeds, Seeds) else Seeds.of(seeds),
        controls=() if named == ("none",) else named,
        control_densities=(
            (parse_share(control_densities),)
            if isinstance(control_densities, int | float | str)
            else tuple(float(parse_share(one)) for one in control_densities)
        ),
        label=name,
    )


def named_method(method: str | Method) -> Method:
    """The method that is meant; `UsageError` for a name that is not known."""
    return search.method(method) if isinstance(method, str) else method


def named_task(task: str | Task, model: str | None = None) -> Task:
    """The task that is meant, with another network if one is named.

    Raises:
        TaskError: for a name that is not known, see `catalogue.resolve_task`.
        UsageError: for another network than that of a task which is an object, and has its own.
    """
    if model is None:
        return catalogue.resolve_task(task)
    if isinstance(task, str):
        return catalogue.get(task, model=model)
    raise UsageError(f"model={model!r} stands in place of the network of a task by name; {task.name} is made already")
