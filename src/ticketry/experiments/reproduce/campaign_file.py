"""Campaign files: runs and claims as TOML, checked as a whole before anything is trained."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct, ValidationError, convert

from ticketry.errors import TicketryError, TrustError, UsageError
from ticketry.evidence.judging.interim_analyses import INTERIM, InterimAnalyses
from ticketry.evidence.paired_comparisons import check_settings
from ticketry.experiments.keywords import settings_of
from ticketry.experiments.request import SearchRequest, level_of, named_method, planned_densities, request_of
from ticketry.experiments.run_file import check_trust, toml_tables
from ticketry.lab.search_result import Seeds
from ticketry.records.network import DENSE, TICKET
from ticketry.tasks import catalogue

T = TypeVar("T")
Scale = Literal["demo", "cpu", "paper"]
Precision = Literal["fp32", "bf16"]
Kernels = Literal["auto", "dense", "sparse"]
SCALES: tuple[Scale, ...] = ("demo", "cpu", "paper")
COSTS = {"steps": "steps", "flops": "FLOPs", "seconds": "s"}
"""What a claim may compare besides the task's metric, of all that a network needed, and its unit: the less the
better."""
_SEED = 20_000
"""Of the first replicate: no seed that anybody tries settings with."""


@dataclass(frozen=True)
class Side:
    """One of the two that a claim compares: a run's tickets, its dense network, or a control."""

    run: str
    role: str
    level: int | None
    """Of the run's tickets; 0 for the dense network, None for the last that is found."""


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """A is better than B by more than `above`, see `records.campaign.Claim`."""

    name: str
    statement: str
    source: str
    figure: str
    a: Side
    b: Side
    density: float | None
    metric: str
    unit: str
    higher_is_better: bool
    above: float
    margin: float
    confidence: float
    family: str
    plan: InterimAnalyses
    """At how many replicates it is judged."""


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """A campaign file at one scale."""

    name: str
    title: str
    paper: str
    scale: Scale
    text: str
    """The file."""
    precision: Precision = "fp32"
    """Of all its runs, so that results of several machines are of one."""
    kernels: Mapping[str, str]
    """Of each run, the word; which ones they are follows from the machine."""
    runs: Mapping[str, SearchRequest]
    """Each as its first replicate."""
    plans: Mapping[str, InterimAnalyses]
    """Of each run: at how many replicates its claims are judged."""
    claims: tuple[Hypothesis, ...]

    @property
    def sha256(self) -> str:
        """Of the file."""
        return hashlib.sha256(self.text.encode()).hexdigest()


class _Side(Struct, forbid_unknown_fields=True):
    run: str
    role: str = TICKET


class _Claim(Struct, forbid_unknown_fields=True):
    statement: str
    a: _Side
    b: _Side
    source: str = ""
    figure: str = ""
    density: float | str | tuple[float | str, ...] | None = None
    metric: str = ""
    above: float = 0.0
    margin: float = 0.5
    confidence: float = 0.95
    family: str = ""
    scales: tuple[Scale, ...] = SCALES


class _Search(Struct, forbid_unknown_fields=True):
    method: str = ""
    task: str = ""
    model: str = ""
    options: dict[str, bool | int | float | str] = {}
    settings: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    controls: tuple[str, ...] = ()
    control_densities: tuple[float | str, ...] = ()


class _Run(_Search):
    base: str = ""


class _Base(_Search):
    precision: Precision = "fp32"
    kernels: Kernels = "dense"


class _OtherBase(_Search):
    kernels: Kernels | None = None
    interim: tuple[int, ...] = ()


class _Scale(Struct, forbid_unknown_fields=True):
    runs: dict[str, _Run]
    base: _Base = msgspec.field(default_factory=_Base)
    """What runs have that do not say otherwise; its precision is that of all runs."""
    bases: dict[str, _OtherBase] = {}
    """Others, that runs name in the place of that one: of another network or data set."""
    interim: tuple[int, ...] = INTERIM
    densities: dict[str, float] = {}


class _File(Struct, forbid_unknown_fields=True):
    title: str
    scales: dict[Scale, _Scale]
    claims: dict[str, _Claim]
    paper: str = ""


def built_in() -> dict[str, Path]:
    """The campaigns that come with the library, by name."""
    folder = Path(str(files("ticketry.experiments.reproduce"))) / "campaigns"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def read_campaign(path: Path, scale: Scale, *, trust: bool = False) -> Campaign:
    """A campaign at a scale. All of it is checked: every claim could be judged once its runs are done.

    Args:
        path: the file; a name without folder and ending is one that comes with the library.
        trust: whether a file of one's own may name code, see docs/security.md.

    Raises:
        UsageError: for whatever cannot be, with the file and the key.
        TrustError: for what a file may not name by itself.
    """
    own = built_in()
    place = own.get(str(path), path)
    if place is path and not path.exists() and path.suffix != ".toml":
        raise UsageError(f"there is no campaign {path}: choose one of {', '.join(own)}, or name a file")
    text, tables = toml_tables(place, "campaign")
    made = _Reading(place, _converted(tables, place), scale, trust or place is not path)
    return Campaign(
        name=place.stem,
        title=made.file.title,
        paper=made.file.paper,
        scale=scale,
        text=text,
        precision=made.base.precision,
        kernels=made.kernels,
        runs=made.runs,
        plans=made.plans,
        claims=tuple(made.claims()),
    )


def _converted(tables: Mapping[str, Any], path: Path) -> _File:
    try:
        return convert(tables, _File)
    except ValidationError as error:
        told, _, place = str(error).partition(" - at `")
        where = place.rstrip("`").removeprefix("key in ").removeprefix("$").removeprefix(".") or "the whole"
        raise UsageError(f"the campaign {path}: {where.replace('[...]', '')} cannot be what it is: {told}") from None


class _Reading:
    """What a file says at one scale, checked part by part."""

    def __init__(self, path: Path, file: _File, scale: Scale, trust: bool) -> None:
        self.path, self.file, self._trust = path, file, trust
        if scale not in file.scales:
            raise self._wrong("scales", f"there is no {scale}: it has {', '.join(file.scales) or 'none'}")
        self._scale_name, self._scale = scale, file.scales[scale]
        self.base = self._scale.base
        if not self._scale.runs:
            raise self._wrong(f"scales.{scale}.runs", "it has no runs")
        self.runs = {name: self._run(name, run) for name, run in self._scale.runs.items()}
        own = self._plan(f"scales.{scale}.interim", self._scale.interim)
        others = {
            name: self._plan(f"scales.{scale}.bases.{name}.interim", base.interim) if base.interim else own
            for name, base in self._scale.bases.items()
        }
        self.plans = {name: others.get(run.base, own) for name, run in self._scale.runs.items()}
        self.kernels = {name: self._kernels(run) for name, run in self._scale.runs.items()}

    # -- runs --------------------------------------------------------------------------------------------------------

    def _run(self, name: str, run: _Run) -> SearchRequest:
        place = f"scales.{self._scale_name}.runs.{name}"
        base = self._base_of(run, place)
        method, task = run.method or base.method, run.task or base.task or "digits"
        model, options = run.model or base.model, {**base.options, **run.options}
        settings, recipe = {**base.settings, **run.settings}, {**base.recipe, **run.recipe}
        controls, beside = run.controls or base.controls, run.control_densities or base.control_densities
        if not method:
            raise self._wrong(place, "method is missing")

        def made() -> SearchRequest:
            named = {"method": method, "task": task, "controls": list(controls), "options": options}
            if not self._trust:
                told = {"model": model} if model else {}
                check_trust({**named, **told, "settings": settings}, (), of=f"the campaign {self.path}: {place}")
            found = named_method(method)
            chosen = catalogue.get(task, model=model or None, options={key: str(one) for key, one in options.items()})
            if chosen.of_replicate(1):
                raise UsageError(f"the data of {task} differ from replicate to replicate: give its option split")
            (own,) = settings_of(settings, found.Settings, what=f"settings of {method}")
            return request_of(
                found,
                chosen,
                own,
                replicates=1,
                controls=controls,
                control_densities=[self._density(place, one) or 0.0 for one in beside] if controls else (),
                seeds=Seeds.of(_SEED),
                recipe=recipe,
            )

        return self._explained(place, made)

    def _base_of(self, run: _Run, place: str) -> _Base | _OtherBase:
        if not run.base:
            return self.base
        if run.base not in self._scale.bases:
            known = ", ".join(self._scale.bases) or "none"
            raise self._wrong(place, f"base {run.base!r} is none of scales.{self._scale_name}.bases, which are {known}")
        return self._scale.bases[run.base]

    def _plan(self, place: str, at: tuple[int, ...]) -> InterimAnalyses:
        return self._explained(place, lambda: InterimAnalyses(at))

    def _kernels(self, run: _Run) -> str:
        return (self._scale.bases[run.base].kernels if run.base else None) or self.base.kernels

    # -- claims ------------------------------------------------------------------------------------------------------

    def claims(self) -> Iterator[Hypothesis]:
        """Those of the scale; one for each density."""
        wanted = {name: claim for name, claim in self.file.claims.items() if self._scale_name in claim.scales}
        if not wanted:
            raise self._wrong("claims", f"none is made at the scale {self._scale_name}")
        seen = set[str]()
        for name, claim in wanted.items():
            place = f"claims.{name}"
            asked = claim.density if isinstance(claim.density, tuple) else (claim.density,)
            for density in asked:
                found = self._density(place, density)
                told = name if len(asked) == 1 else f"{name} at {100 * (found or 1):g} %"
                if told in seen:
                    raise self._wrong(place, f"there are two claims called {told!r}")
                seen.add(told)
                yield self._explained(place, partial(self._claim, told, claim, found))

    def _density(self, place: str, density: float | str | None) -> float | None:
        if not isinstance(density, str):
            return density
        if density not in self._scale.densities:
            known = ", ".join(self._scale.densities) or "none"
            raise self._wrong(
                place, f"density {density!r} is none of scales.{self._scale_name}.densities, which are {known}"
            )
        return self._scale.densities[density]

    def _claim(self, name: str, claim: _Claim, density: float | None) -> Hypothesis:
        sides = [self._side(side, density) for side in (claim.a, claim.b)]
        if sides[0] == sides[1]:
            raise UsageError(f"it compares {claim.a.role} of {claim.a.run} with itself")
        tasks = [self.runs[side.run].task for side in sides]
        if tasks[0].key() != tasks[1].key():
            raise UsageError(f"the runs {sides[0].run} and {sides[1].run} are of different tasks, and make no pairs")
        plans = [self.plans[side.run] for side in sides]
        if plans[0] != plans[1]:
            raise UsageError(
                f"the run {sides[0].run} is judged at {plans[0].at} replicates and {sides[1].run} at {plans[1].at}:"
                " give both one interim"
            )
        metric = tasks[0].metric
        named = claim.metric or metric.name
        if named not in (metric.name, *COSTS):
            raise UsageError(f"there is no metric {named!r}: {metric.name}, or of costs {', '.join(COSTS)}")
        check_settings(claim.margin, claim.confidence, None)
        of_costs = named in COSTS
        return Hypothesis(
            name=name,
            statement=claim.statement,
            source=claim.source,
            figure=claim.figure,
            a=sides[0],
            b=sides[1],
            density=density,
            metric=named,
            unit=COSTS[named] if of_costs else metric.unit,
            higher_is_better=not of_costs and metric.higher_is_better,
            above=claim.above,
            margin=claim.margin,
            confidence=claim.confidence,
            family=claim.family or self.path.stem,
            plan=plans[0],
        )

    def _side(self, side: _Side, density: float | None) -> Side:
        if side.run not in self.runs:
            raise UsageError(f"there is no run {side.run!r}: there are {', '.join(self.runs)}")
        request = self.runs[side.run]
        roles = (TICKET, DENSE, *request.controls)
        if side.role not in roles:
            raise UsageError(f"the run {side.run} has no {side.role!r}: it has {', '.join(roles)}")
        if side.role == DENSE:
            return Side(side.run, DENSE, 0)
        if density is None:
            raise UsageError(f"{side.role} of {side.run} has several densities: say which, density = 0.1")
        if side.role != TICKET and side.role not in request.controls_at(density):
            told = ", ".join(f"{one:g}" for one in request.control_densities)
            raise UsageError(f"the run {side.run} has {side.role} beside tickets of density {told} alone")
        return Side(side.run, side.role, level_of(density, planned_densities(request), f"the run {side.run}"))

    # -- errors ------------------------------------------------------------------------------------------------------

    def _wrong(self, place: str, why: str) -> UsageError:
        return UsageError(f"the campaign {self.path}: {place}: {why}")

    def _explained(self, place: str, make: Callable[[], T]) -> T:
        try:
            return make()
        except TrustError:
            raise
        except TicketryError as error:
            raise self._wrong(place, str(error)) from None
