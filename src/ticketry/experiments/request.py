"""Describe a requested search (method, task, settings, recipe, replicates, seeds, controls), and name its run."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ticketry import search
from ticketry.budgets.units import ENGINE, NONE
from ticketry.choices import check_bounds, check_storable_numbers
from ticketry.core.structure.pattern import check_density, parse_share
from ticketry.errors import UsageError
from ticketry.evidence.control import CONTROLS, check_controls
from ticketry.experiments.options import USUAL_CONTROLS, LabOptions
from ticketry.experiments.record_files import has_arithmetic, read_earlier_record
from ticketry.lab.search_result import Seeds
from ticketry.lab.store.store import digest_of
from ticketry.records.network import LATENCY_MATCHED, is_matched_dense
from ticketry.records.run import RunRecord
from ticketry.records.settings import FORMAT_1_DEFAULTS
from ticketry.search import METHODS, Method, Training, method_name_for_lists
from ticketry.search.common.method import user_source_digests
from ticketry.search.common.plan import ticket_trainings
from ticketry.search.common.settings import budget_of, parsed_structure_of
from ticketry.tasks import catalogue
from ticketry.tasks.recipe import Recipe, recipe_from_dict
from ticketry.tasks.task import Task

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from pathlib import Path

    from ticketry.lab.lab import Lab
    from ticketry.lab.store.paths import Paths

LATER_SETTINGS = {
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
"""Later settings of format 1, with their defaults; a setting with this default does not change a run's name."""


TOLERANCE = 0.02
"""Largest relative difference between a requested density and the density of a ticket."""


@dataclass(frozen=True)
class SearchRequest:
    """A requested search: method, task, settings, recipe, replicates, seeds, controls and arithmetic."""

    method: Method
    task: Task
    settings: Any
    recipe: Recipe
    replicates: int = 5
    seeds: Seeds = field(default_factory=Seeds)
    controls: tuple[str, ...] = ()
    control_densities: tuple[float, ...] = ()
    """Densities of the tickets that have controls; empty if all tickets have controls."""
    arithmetic: Mapping[str, Any] = field(default_factory=dict)
    """Non-default arithmetic of the lab, see `for_lab`; it changes results bit for bit, and so affects the name."""
    label: str = ""
    stored_name: str = ""
    """Name of the run in a store, if it is not `default_name`. See `with_new_name`."""

    def __post_init__(self) -> None:
        check_bounds("replicates", self.replicates)
        if is_dataclass(self.settings):
            check_storable_numbers(self.settings)
        check_controls(self.controls)
        if self.label and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,79}", self.label):
            raise UsageError(
                f"the name {self.label!r:.100} cannot be a folder's name on every system: use up to 80 letters, digits"
                " and . _ + -, beginning with a letter or digit"
            )
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
                level_for_density(density, planned, "the search")

    def for_lab(self, lab: Lab) -> SearchRequest:
        """Return the request with the lab's arithmetic, and with the name that the run has in the lab's store."""
        chosen = lab.non_default_settings(self.task)
        return (self if chosen == self.arithmetic else replace(self, arithmetic=chosen)).with_stored_name(
            lab.store.paths
        )

    def with_stored_name(self, paths: Paths) -> SearchRequest:
        """Return the request with the name of its run in a store; in old stores the name ignores the arithmetic."""
        if not self.arithmetic or self.label or self.stored_name:
            return self
        plain = replace(self, arithmetic={})
        return plain if has_arithmetic(paths.run(plain.name) / "run.json", self.arithmetic) else self

    def controls_for(self, level: int | None, density: float) -> tuple[str, ...]:
        """Return the names of the controls to train for a ticket.

        Args:
            level: level of the ticket; if the level has a planned density, this density decides.
            density: actual density of the ticket; it decides if no density is planned.
        """
        asked, planned = self.control_densities, self.planned_densities
        if not asked:
            ticket = next((one for one in self.tickets if one.level == level), None)
            return self.controls if ticket is None or ticket.has_controls else ()
        if planned:
            beside = level in {level_for_density(one, planned, "the search") for one in asked}
        else:
            beside = any(_is_density_close(density, one) for one in asked)
        return self.controls if beside else ()

    def task_of(self, replicate: int) -> Task:
        """Return the task of a replicate; some tasks split the data differently in each replicate."""
        return catalogue.of_replicate(self.task, replicate)

    def count_controls(self, ticket: Training) -> int:
        """Return the number of controls (networks that should lose) that are trained beside a planned ticket."""
        if self.control_densities and not self.planned_densities:
            return len(self.controls) if ticket.level <= len(self.control_densities) else 0
        return len(self.controls_for(ticket.level, ticket.density or 1.0))

    @cached_property
    def plan(self) -> list[Training]:
        """Trainings of one replicate, without dense network and controls; empty if the method cannot plan them."""
        return self.method.plan(self.settings) if self.method.plan else []

    @cached_property
    def tickets(self) -> list[Training]:
        """Planned trainings that produce tickets, the densest ticket first."""
        return ticket_trainings(self.plan)

    @property
    def planned_densities(self) -> dict[float, int]:
        """Level (number of the pruning step) of each density; empty if densities are not known before the search."""
        return {one.density: one.level for one in self.tickets if one.density is not None}

    @property
    def expected_network_count(self) -> int:
        """Number of dense networks, tickets and controls of all replicates; 0 if not known before the search."""
        if not self.plan:
            return 0
        beside = sum(1 + self.count_controls(one) for one in self.tickets)
        return self.replicates * (1 + beside)

    @property
    def stored_settings(self) -> dict[str, Any]:
        """Settings for run files, records and tickets, without fields that the method does not let users choose."""
        values = asdict(self.settings)
        return {one.name: values[one.name] for one in fields(self.settings) if one.init}

    @cached_property
    def source_digests(self) -> dict[str, str]:
        """Digests of the user code that the search uses, without controls."""
        return user_source_digests(self.method, self.settings)

    @cached_property
    def sources(self) -> dict[str, str]:
        """Digests of all user code that the search uses, including controls."""
        controls = [name for name in self.controls if not is_matched_dense(name)]  # its colon precedes a network
        outside = {f"control {name}": CONTROLS.digest_source(name) for name in controls if CONTROLS.is_external(name)}
        return {**self.source_digests, **outside}

    @property
    def name(self) -> str:
        """Name of the run and of its folder in the store; equal requests have equal names."""
        return self.label or self.stored_name or self.default_name

    @property
    def default_name(self) -> str:
        """Name built from method, task and a digest of `identity`."""
        return f"{_to_folder_name(self.method.name)}-{_to_folder_name(self.task.name)}-{digest_of(self.identity())[:8]}"

    @property
    def title(self) -> str:
        """Title of the method; if the settings are those of a named variant (alias), the title of the variant."""
        holds = not self.method.alias or self.display_name == self.method.alias
        return self.method.title if holds else search.method(self.method.name).title

    @property
    def display_name(self) -> str:
        """Name of the method; if the settings are those of a named variant (alias), the name of the variant."""
        return method_name_for_lists(self.method.name, self.method.alias, self.settings)

    def with_new_name(self, paths: Paths) -> SearchRequest:
        """Return the request with the name for a new run, which contains the method's variant or non-default score.

        A run that is stored under its default name keeps this name. Campaigns always use `default_name`.
        """
        if self.label:
            self._check_same_search(paths.run(self.label) / "run.json")
            return self
        if self.stored_name or paths.run(self.name).exists():
            return self
        if (head := self.display_name) == self.method.name:
            if not self.non_default_score:
                return self
            head = f"{head}-{self.non_default_score}"
        digest = digest_of(self.identity())[:8]
        return replace(self, stored_name=f"{_to_folder_name(head)}-{_to_folder_name(self.task.name)}-{digest}")

    @property
    def non_default_score(self) -> str:
        """Name of the pruning score in the settings; empty for the default score, or if the method has no score."""
        score = getattr(self.settings, "score", None)
        kind = search.method(self.method.name).Settings if self.method.alias else self.settings
        usual = {each.name: each.default for each in fields(kind)}.get("score")
        return score if isinstance(score, str) and score != usual else ""

    def _check_same_search(self, file: Path) -> None:
        """Raise `UsageError` if the record in `file` belongs to another search."""
        from ticketry.experiments.run_file import format_run_file

        earlier = read_earlier_record(file, RunRecord)
        if earlier is None:
            return
        then, now = (tomllib.loads(text) for text in (earlier.config, format_run_file(self.describe(), self.task.spec)))
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
        """Return the values from which the digest in the run's name is computed."""
        values = (
            self.settings.values_for_run_name()
            if hasattr(self.settings, "values_for_run_name")
            else asdict(self.settings)
        )
        settings = {name: value for name, value in values.items() if (name, value) not in LATER_SETTINGS.items()}
        chosen = {"arithmetic": dict(self.arithmetic)} if self.arithmetic else {}
        return self.describe() | {"settings": settings} | chosen

    def describe(self) -> dict[str, Any]:
        """Return the search as JSON values; empty control densities and source digests are omitted."""
        beside = {"control_densities": list(self.control_densities)} if self.control_densities else {}
        return {
            "method": self.method.name,
            "task": dict(self.task.key()),
            "settings": self.stored_settings,
            "recipe": asdict(self.recipe),
            "replicates": self.replicates,
            "seeds": asdict(self.seeds),
            "controls": list(self.controls),
            **beside,
            **({"sources": dict(self.sources)} if self.sources else {}),
        }


def with_measured_costs(
    request: SearchRequest, options: LabOptions, say: Callable[[str], None] = lambda _: None
) -> SearchRequest:
    """Return the request; if its budget needs layer costs, measure them and enter the path of their file."""
    settings = request.settings
    if not (budget := budget_of(settings)) or not budget.needs_measurement:
        return request
    from ticketry.lab.task_costs import CostOptions, find_or_measure_costs

    if budget.kind == "time":
        asked = CostOptions(
            structure=parsed_structure_of(settings).granularity or NONE, base=budget.base_for_run_name or ENGINE
        )
    else:
        asked = CostOptions(unit="bytes")
    file = find_or_measure_costs(request.task, asked, options.store, data=options.data, say=say)
    return replace(request, settings=replace(settings, profile=str(file)))


def level_for_density(density: float, planned: Mapping[float, int], what: str) -> int:
    """Return the level for which about `density` is planned; raise `UsageError` if there is no such level."""
    nearest = min(planned, key=lambda one: abs(one / density - 1), default=0.0)
    if _is_density_close(nearest, density):
        return planned[nearest]
    if not planned:
        raise UsageError(
            f"{what} has no tickets of density {density:g}: it has none that is known beforehand. Name a level on"
            " each side of a claim (level = 1), or let the method's `plan` have the densities of its tickets"
        )
    known = ", ".join(f"{one:g}" for one in planned)
    raise UsageError(f"{what} has no tickets of density {density:g}: it has {known}")


def _is_density_close(density: float, asked: float) -> bool:
    return abs(density / asked - 1) <= TOLERANCE


def _to_folder_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name).strip("-")


def build_request(
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
    """Build a request from the arguments of `run`.

    Args:
        model: network to use instead of the task's own; the task must be given by name.
        controls: name of a control, or several names; ``none`` or an empty sequence for no controls.
        control_densities: densities of the tickets that have controls; by default all tickets have controls.
        seeds: seeds of the first replicate; a number sets all three seeds.
        recipe: a recipe, or the entries that differ from the task's recipe.
    """
    task = resolve_task(task, model)
    named = (controls,) if isinstance(controls, str) else tuple(controls)
    return SearchRequest(
        method=resolve_method(method),
        task=task,
        settings=settings,
        recipe=recipe if isinstance(recipe, Recipe) else recipe_from_dict({**asdict(task.recipe), **(recipe or {})}),
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


def resolve_method(method: str | Method) -> Method:
    """Return the method that a name stands for, or `method` itself; raise `UsageError` for an unknown name."""
    return search.method(method) if isinstance(method, str) else method


def resolve_task(task: str | Task, model: str | None = None) -> Task:
    """Return the task that a name stands for, with the network `model` if it is given; or return `task` itself."""
    if model is None:
        return catalogue.resolve_task(task)
    if isinstance(task, str):
        return catalogue.get(task, model=model)
    raise UsageError(f"model={model!r} stands in place of the network of a task by name; {task.name} is made already")
