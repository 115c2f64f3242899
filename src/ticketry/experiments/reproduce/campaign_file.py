"""Read campaign files, which list runs and claims as TOML; check the whole file before anything is trained."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta, Struct, ValidationError, convert

from ticketry.errors import TicketryError, TrustError, UsageError
from ticketry.evidence.comparison import INTERIM, InterimAnalyses, check_comparison_settings
from ticketry.evidence.settings import StabilitySettings
from ticketry.experiments.decoding import decode_settings
from ticketry.experiments.request import SearchRequest, build_request, level_for_density, resolve_method
from ticketry.experiments.run_file import read_toml, require_trust, upgrade_stored_settings
from ticketry.lab.lab import Lab
from ticketry.lab.search_result import Seeds
from ticketry.records.network import DENSE, TICKET
from ticketry.records.schema import Density, Number
from ticketry.tasks import catalogue

_STABILITY = {"masks": ["none"], "splits": ["test"], "dense": False, "layers": False}
_SEED = 20_000
"""Seed of the first replicate, far from seeds that are used to tune settings."""


@dataclass(frozen=True, kw_only=True)
class Campaign:
    """Runs and claims of a campaign file at one scale (one of the sizes of experiment that the file describes)."""

    name: str
    title: str
    paper: str
    scale: Scale
    text: str
    precisions: Mapping[str, Precision]
    """Precision of each run, never ``auto``, so that all machines use the same precision."""
    kernels: Mapping[str, str]
    """Option `kernels` of each run; which kernels ``auto`` means depends on the machine."""
    runs: Mapping[str, SearchRequest]
    """Search request of each run, for its first replicate."""
    plans: Mapping[str, InterimAnalyses]
    """Numbers of replicates at which the claims of each run are judged."""
    claims: tuple[Hypothesis, ...]
    stability: Mapping[str, StabilitySettings] = field(default_factory=dict)
    together: Mapping[str, Any] = field(default_factory=dict)
    """Threads and devices of the lab, see `LabOptions.lab_arguments`."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def with_arithmetic(self, lab: Lab, run: str) -> AbstractContextManager[None]:
        """Return a context manager in which `lab` trains with the kernels and precision of `run`."""
        return lab.training_in(self.kernels[run], self.precisions[run])


def built_in_campaigns() -> dict[str, Path]:
    """Return the paths of the library's campaign files, by name."""
    folder = Path(str(files("ticketry.experiments.reproduce"))) / "campaigns"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def campaigns_at_scale(scale: Scale) -> list[str]:
    """Return the names of the library's campaigns that can be run at this scale."""
    tables = {name: decode_file(read_toml(path, "campaign")[1], path) for name, path in built_in_campaigns().items()}
    return [name for name, table in tables.items() if scale in table.scales]


def read_campaign(path: Path, scale: Scale, *, trust: bool = False) -> Campaign:
    """Read the runs and claims for `scale` from a campaign file, and check that the runs suffice for the claims.

    Args:
        path: the file, or the name of one of the library's campaigns.
        trust: whether a user's file may name user code, see docs/reproducibility.md.
    """
    own = built_in_campaigns()
    place = own.get(str(path), path)
    if place is path and not path.exists() and path.suffix != ".toml":
        raise UsageError(f"there is no campaign {path}: choose one of {', '.join(own)}, or name a file")
    text, tables = read_toml(place, "campaign")
    made = _CampaignReader(place, decode_file(tables, place), scale, trust or place is not path)
    return Campaign(
        name=place.stem,
        title=made.file.title,
        paper=made.file.paper,
        scale=scale,
        text=text,
        precisions=made.precisions,
        kernels=made.kernels,
        runs=made.runs,
        plans=made.plans,
        stability=made.stability,
        claims=made.claims(),
    )


class _CampaignReader:
    """Builds the runs and claims of a campaign file at one scale, and checks them."""

    def __init__(self, path: Path, file: FileTable, scale: Scale, trust: bool) -> None:
        self.path, self.file, self._trust = path, file, trust
        if scale not in file.scales:
            raise self._error_with_place("scales", f"there is no {scale}: it has {', '.join(file.scales) or 'none'}")
        self._scale_name, self._scale = scale, file.scales[scale]
        self.base = self._scale.base
        if not self._scale.runs:
            raise self._error_with_place(f"scales.{scale}.runs", "it has no runs")
        self.runs = {name: self._read_run(name, run) for name, run in self._scale.runs.items()}
        self.stability = {
            name: found
            for name, run in self._scale.runs.items()
            if (found := self._read_stability(name, run)) is not None
        }
        own = self._read_interim_plan(f"scales.{scale}.interim", self._scale.interim)
        others = {
            name: self._read_interim_plan(f"scales.{scale}.bases.{name}.interim", base.interim) if base.interim else own
            for name, base in self._scale.bases.items()
        }
        self.plans = {name: others.get(run.base, own) for name, run in self._scale.runs.items()}
        bases = {name: self._scale.bases[run.base] if run.base else self.base for name, run in self._scale.runs.items()}
        self.kernels = {name: base.kernels or self.base.kernels for name, base in bases.items()}
        first = {name: base.after for name, base in bases.items()}
        self.replicates = {name: range(first[name], first[name] + self.plans[name].last) for name in bases}
        self.precisions = {name: base.precision or self.base.precision for name, base in bases.items()}

    # -- runs --------------------------------------------------------------------------------------------------------

    def _read_run(self, name: str, run: RunTable) -> SearchRequest:
        place = f"scales.{self._scale_name}.runs.{name}"
        base = self._find_base_table(run, place)
        method, task = run.method or base.method, run.task or base.task or "digits"
        model, options = run.model or base.model, {**base.options, **run.options}
        settings, recipe = {**base.settings, **run.settings}, {**base.recipe, **run.recipe}
        controls, beside = run.controls or base.controls, run.control_densities or base.control_densities
        masks = {**base.stability, **run.stability}.get("masks", [])  # controls too, whose names stand for code
        if not method:
            raise self._error_with_place(place, "method is missing")
        with self._add_place_to_errors(place):
            if not self._trust:
                code = [*controls, *(masks if isinstance(masks, list) else [masks])]
                named = {"method": method, "task": task, "model": model, "options": options, "settings": settings}
                require_trust({**named, "controls": code}, None, of=f"the campaign {self.path}: {place}")
            found = resolve_method(method)
            chosen = catalogue.get(task, model=model or None, options={key: str(one) for key, one in options.items()})
            if chosen.of_replicate(1):
                raise UsageError(f"the data of {task} differ from replicate to replicate: give its option split")
            (own,) = decode_settings(
                upgrade_stored_settings(settings, method), found.Settings, what=f"settings of {method}"
            )
            return build_request(
                found,
                chosen,
                own,
                replicates=1,
                controls=controls,
                control_densities=[self._resolve_density(one) or 0.0 for one in beside] if controls else (),
                seeds=Seeds.of(_SEED).replicate(base.after),
                recipe=recipe,
            )

    def _read_stability(self, name: str, run: RunTable) -> StabilitySettings | None:
        place = f"scales.{self._scale_name}.runs.{name}"
        asked = {**self._find_base_table(run, place).stability, **run.stability}
        if not asked:
            return None
        place, words = f"{place}.stability", dict[str, Any](vars(self.runs[name].settings))
        with self._add_place_to_errors(place):
            if "rewinds" in asked:
                raise UsageError("the rewind step is the run's own: leave rewinds away")
            if "rewind" not in words or words.get("retrain", "") not in ("", "continue") or words.get("equal_cost"):
                raise UsageError("it is of tickets that are rewound and trained on in the schedule (retrain continue)")
            planned = self.runs[name].planned_densities
            at = asked.get("at", [])
            named = [self._resolve_density(one) for one in (at if isinstance(at, list) else [at])]
            if wrong := [one for one in named if not isinstance(one, float) or not 0 < one <= 1]:
                raise UsageError(f"at must be densities in (0, 1], got {wrong[0]!r:.60}")
            levels = [level_for_density(one or 0.0, planned, f"the run {name}") for one in named]
            at = [one for one, level in planned.items() if level in levels]
            given = {**_STABILITY, **asked, "at": at, "rewinds": [words["rewind"]]}
            found: StabilitySettings = decode_settings(given, StabilitySettings, what=place)[0]
            return found

    def _find_base_table(self, run: RunTable, place: str) -> BaseTable | OtherBaseTable:
        if not run.base:
            return self.base
        if run.base not in self._scale.bases:
            known = ", ".join(self._scale.bases) or "none"
            raise self._error_with_place(
                place, f"base {run.base!r} is none of scales.{self._scale_name}.bases, which are {known}"
            )
        return self._scale.bases[run.base]

    def _read_interim_plan(self, place: str, at: tuple[int, ...]) -> InterimAnalyses:
        with self._add_place_to_errors(place):
            return InterimAnalyses(at)

    # -- claims ------------------------------------------------------------------------------------------------------

    def claims(self) -> tuple[Hypothesis, ...]:
        """Return the claims, one for each density; the field `again` of a replication names the repeated claim."""
        named = list(self._named_claims())
        made = [
            replace(one, again=self._find_original_claim(name, one, named)) if one.again else one for name, one in named
        ]
        for (name, _), one in zip(named, made, strict=True):
            with self._add_place_to_errors(f"claims.{name}"):
                check_replication(one, made, self.replicates)
        return tuple(made)

    def _named_claims(self) -> Iterator[tuple[str, Hypothesis]]:
        """Yield pairs of the name of a claim's table in the file and the claim, for each density of the claim."""
        wanted = {name: claim for name, claim in self.file.claims.items() if self._scale_name in claim.scales}
        if not wanted:
            raise self._error_with_place("claims", f"none is made at the scale {self._scale_name}")
        seen = set[str]()
        for name, claim in wanted.items():
            place = f"claims.{name}"
            asked = claim.density if isinstance(claim.density, tuple) else (claim.density,)
            for density in asked:
                with self._add_place_to_errors(place):
                    found = self._resolve_density(density)
                told = name if len(asked) == 1 else f"{name} at {100 * (found or 1):g} %"
                if told in seen:
                    raise self._error_with_place(place, f"there are two claims called {told!r}")
                seen.add(told)
                with self._add_place_to_errors(place):
                    made = self._read_claim(told, claim, found)
                yield name, made

    def _find_original_claim(self, name: str, claim: Hypothesis, claims: Sequence[tuple[str, Hypothesis]]) -> str:
        """Return the name of the claim that `claim` repeats: the candidate of equal density, or the only candidate."""
        place = f"claims.{name}"
        named = [one for table, one in claims if table == claim.again]
        found = [one for one in named if one.density == claim.density] or (named if len(named) == 1 else [])
        if len(found) != 1:
            known = ", ".join(one.name for one in named) or "there is none of that name"
            raise self._error_with_place(place, f"again names no one claim at its density: {claim.again!r} ({known})")
        if shared := set(found[0].runs) & set(claim.runs):
            raise self._error_with_place(place, f"it asks {found[0].name!r} again, of the same run {sorted(shared)[0]}")
        return found[0].name

    def _resolve_density(self, density: float | str | None) -> float | None:
        if not isinstance(density, str):
            return density
        if density not in self._scale.densities:
            known = ", ".join(self._scale.densities) or "none"
            raise UsageError(f"density {density!r} is none of scales.{self._scale_name}.densities, which are {known}")
        return self._scale.densities[density]

    def _read_claim(self, name: str, claim: ClaimTable, density: float | None) -> Hypothesis:
        sides = [self._read_side(side, density, claim.metric) for side in (claim.a, claim.b)]
        if sides[0] == sides[1]:
            raise UsageError(f"it compares {claim.a} with itself")
        runs = [side.run for side in sides if side.value is None]
        if not runs:
            raise UsageError("both sides are numbers: name a run on one of them")
        one, other = runs[0], runs[-1]
        metric = self.runs[one].task.metric
        if self.runs[one].task.key() != self.runs[other].task.key():
            raise UsageError(f"the runs {one} and {other} are of different tasks, and make no pairs")
        if self.precisions[one] != self.precisions[other]:
            told = f"{self.precisions[one]} and {self.precisions[other]}"
            raise UsageError(f"the runs {one} and {other} are trained in {told}, and make no pairs")
        if self.plans[one] != self.plans[other]:
            raise UsageError(
                f"the run {one} is judged at {self.plans[one].at} replicates and {other} at {self.plans[other].at}:"
                " give both one interim"
            )
        if self.runs[one].seeds != self.runs[other].seeds:
            raise UsageError(
                f"the runs {one} and {other} pass over other numbers of replicates (after), and make no pairs"
            )
        named = claim.metric or metric.name
        if named not in (metric.name, DENSITY, *COSTS, *STABILITY):
            known = f"{metric.name}, {DENSITY}, or of costs {', '.join(COSTS)}, or of stability {', '.join(STABILITY)}"
            raise UsageError(f"there is no metric {named!r}: {known}")
        check_comparison_settings(claim.margin, claim.confidence, None)
        units = {**COSTS, DENSITY: "", **dict.fromkeys(STABILITY, ""), "barrier": metric.unit}
        return Hypothesis(
            name=name,
            statement=claim.statement,
            source=claim.source,
            figure=claim.figure,
            a=sides[0],
            b=sides[1],
            density=density,
            metric=named,
            unit=units.get(named, metric.unit),
            higher_is_better=named not in units and metric.higher_is_better,
            above=claim.above,
            margin=claim.margin,
            confidence=claim.confidence,
            family=claim.family or self.path.stem,
            again=claim.again,
            plan=self.plans[one],
        )

    def _read_side(self, side: SideTable, density: float | None, metric: str) -> Side:
        if side.value is not None:
            if side.run or side.role != TICKET or side.density or side.level:
                raise UsageError(f"a side must be a run or a number, got {side.run or side.role} and {side.value:g}")
            return Side("", VALUE, None, side.value)
        if side.density is not None:
            density = self._resolve_density(side.density)
        if side.run not in self.runs:
            raise UsageError(f"there is no run {side.run!r}: there are {', '.join(self.runs)}")
        request, planned, of = self.runs[side.run], self.runs[side.run].planned_densities, f"the run {side.run}"
        self._check_side_is_measured(side, density, metric)
        if side.role == DENSE:
            return Side(side.run, DENSE, 0)
        if side.level is not None:
            levels = len(request.tickets) or 1
            level = side.level + levels + 1 if side.level < 0 else side.level
            if not 1 <= level <= levels or side.density is not None:
                raise UsageError(f"{of} has tickets of levels 1 to {levels}, and a side one or a density")
            density = next((one for one, at in planned.items() if at == level), 1.0)
        elif density is None:
            raise UsageError(f"{side.role} of {side.run} has several densities: say which, density = 0.1")
        else:
            level = level_for_density(density, planned, of)
        if metric in STABILITY:
            at = self.stability[side.run].at
            if at and level not in {level_for_density(one, planned, of) for one in at}:
                told = ", ".join(f"{one:g}" for one in at)
                raise UsageError(f"{metric} of {side.run} is not measured at density {density:g}, only at {told}")
        elif side.role != TICKET and side.role not in request.controls_for(level, density):
            told = ", ".join(f"{one:g}" for one in request.control_densities)
            raise UsageError(f"{of} has {side.role} beside tickets of density {told} alone")
        return Side(side.run, side.role, level)

    def _check_side_is_measured(self, side: SideTable, density: float | None, metric: str) -> None:
        """Raise `UsageError` if the run of `side` does not train networks of its role, or does not measure `metric`."""
        if metric not in STABILITY:
            roles = (TICKET, DENSE, *self.runs[side.run].controls)
            if side.role not in roles:
                raise UsageError(f"the run {side.run} has no {side.role!r}: it has {', '.join(roles)}")
            return
        if (asked := self.stability.get(side.run)) is None:
            raise UsageError(
                f"{metric} is not measured of {side.run}: give it stability = {{ at = [{density or 0.1:g}] }}"
            )
        measured = {role or TICKET for role in asked.analysed_roles} | ({DENSE} if asked.dense else set())
        if side.role not in measured:
            raise UsageError(
                f"{metric} is not measured of {side.role} of {side.run}: only of {', '.join(sorted(measured))}"
            )
        if metric == "barrier" and not asked.points:
            raise UsageError(f"barriers of {side.run} are left out: give its stability some points, such as 11")
        if side.role == DENSE and metric != "barrier":
            raise UsageError(f"the dense network has no {metric}: it is of tickets and other masks")

    # -- errors ------------------------------------------------------------------------------------------------------

    def _error_with_place(self, place: str, why: str) -> UsageError:
        return UsageError(f"the campaign {self.path}: {place}: {why}")

    @contextmanager
    def _add_place_to_errors(self, place: str) -> Iterator[None]:
        """Prefix errors in a `with` block with their `place` in the file; errors about trust already name it."""
        try:
            yield
        except TrustError:
            raise
        except TicketryError as error:
            raise self._error_with_place(place, str(error)) from None


Scale = Literal["demo", "cpu", "paper"]
Precision = Literal["fp32", "bf16"]
Kernels = Literal["auto", "dense", "sparse"]
SCALES: tuple[Scale, ...] = ("demo", "cpu", "paper")


class SideTable(Struct, forbid_unknown_fields=True):
    run: str = ""
    role: str = TICKET
    value: Number | None = None
    density: Density | str | None = None
    """Density of the tickets, if it differs from the claim's density."""
    level: int | None = None
    """Level of tickets whose density is not known before the search; -1 for the last."""

    def __str__(self) -> str:
        return f"{self.role} of {self.run}" if self.value is None else f"{self.value:g}"


class ClaimTable(Struct, forbid_unknown_fields=True):
    statement: str
    a: SideTable
    b: SideTable
    source: str = ""
    figure: str = ""
    density: Density | str | Annotated[tuple[Density | str, ...], Meta(min_length=1)] | None = None
    metric: str = ""
    above: Number = 0.0
    margin: Number = 0.5
    confidence: float = 0.95
    family: str = ""
    again: str = ""
    """Name of an earlier claim that this claim repeats on fresh replicates, at the same density."""
    scales: tuple[Scale, ...] = SCALES


class SearchTable(Struct, forbid_unknown_fields=True):
    method: str = ""
    task: str = ""
    model: str = ""
    options: dict[str, bool | int | float | str] = {}
    settings: dict[str, Any] = {}
    recipe: dict[str, Any] = {}
    controls: tuple[str, ...] = ()
    control_densities: tuple[Density | str, ...] = ()
    stability: dict[str, Any] = {}


class RunTable(SearchTable):
    base: str = ""


class BaseTable(SearchTable):
    precision: Precision = "fp32"
    kernels: Kernels = "dense"
    after: ClassVar[int] = 0


class OtherBaseTable(SearchTable):
    precision: Precision | None = None
    kernels: Kernels | None = None
    interim: tuple[int, ...] = ()
    after: Annotated[int, Meta(ge=0)] = 0
    """Number of replicates to skip, so that a replication uses other replicates than the original claim."""


class ScaleTable(Struct, forbid_unknown_fields=True):
    runs: dict[str, RunTable]
    base: BaseTable = msgspec.field(default_factory=BaseTable)
    bases: dict[str, OtherBaseTable] = {}
    """Alternative defaults by name, such as another network or data set; a run chooses one with its entry ``base``."""
    interim: tuple[int, ...] = INTERIM
    densities: dict[str, Density] = {}


class FileTable(Struct, forbid_unknown_fields=True):
    title: str
    scales: dict[Scale, ScaleTable]
    claims: dict[str, ClaimTable]
    paper: str = ""


_NAMED: dict[str, type[Struct]] = {
    "claims": ClaimTable,
    "scales": ScaleTable,
    "runs": RunTable,
    "bases": OtherBaseTable,
}
"""Tables whose keys are names chosen by the user, with the type of their values."""


def decode_file(tables: Mapping[str, Any], path: Path) -> FileTable:
    """Return the tables of a campaign file as dataclasses; raise `UsageError` for a value of a wrong type."""
    try:
        return convert(tables, FileTable)
    except ValidationError as error:
        place, why = _locate_error(tables, error)
        raise UsageError(f"the campaign {path}: {place or 'the file'} is wrong: {why}") from None


def _locate_error(tables: Mapping[str, Any], error: ValidationError) -> tuple[str, str]:
    """Return the key of the invalid value in `tables`, and the error message."""
    why, _, path = str(error).partition(" - at `")
    place = path.rstrip("`").removeprefix("key in ").removeprefix("$").removeprefix(".")
    named, _, _ = place.partition("[...]")
    for name, table in tables[named].items() if named in _NAMED and named != place else ():
        try:
            convert(table, _NAMED[named])
        except ValidationError as inner:
            within, why = _locate_error(table, inner)
            return f"{named}.{name}{within and '.'}{within}", why
    return place.replace("[...]", ""), why


COSTS = {"steps": "steps", "flops": "FLOPs", "seconds": "s", "memory": "B"}
"""Costs of a network that a claim may compare instead of the metric, with their units. Lower is better. Memory is the
peak over all phases of training."""
DENSITY = "density"
"""Name of the metric for claims that compare densities, for methods that choose the density; lower is better."""
STABILITY = ("barrier", "order-distance", "pruning-distance")
"""Quantities that a claim may compare for runs with ``stability``: the error barrier between two trainings with
different data orders, their L2 distance, and the L2 distance to the dense network pruned after training. Lower is
better."""
VALUE = "number"
"""Role of a side that is a fixed number."""


@dataclass(frozen=True)
class Side:
    """One side of a claim: tickets, dense networks or controls of a run, or a fixed number."""

    run: str
    role: str
    level: int | None
    """Level of the compared tickets; 0 for the dense network, None for the last level."""
    value: float | None = None
    """Fixed number to compare with, instead of a run."""


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """A claim that the metric of side `a` is better than that of side `b` by more than `above`."""

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
    """Numbers of replicates at which the hypothesis is judged."""
    again: str = ""

    @property
    def runs(self) -> tuple[str, ...]:
        """Names of the runs whose networks the claim compares."""
        return tuple(dict.fromkeys(side.run for side in (self.a, self.b) if side.value is None))


def check_replication(claim: Hypothesis, claims: Sequence[Hypothesis], replicates: Mapping[str, range]) -> None:
    """Raise `UsageError` if a replication repeats itself, or has replicates in common with a claim that it repeats."""
    named = {one.name: one for one in claims}
    own, earlier, seen = replicates[claim.runs[0]], claim, {claim.name}
    while earlier.again:
        earlier = named[earlier.again]
        if earlier.name in seen:
            raise UsageError(f"it leads back to itself, by {earlier.name!r}")
        seen.add(earlier.name)
        judged = replicates[earlier.runs[0]]
        if max(own.start, judged.start) < min(own.stop, judged.stop):
            raise UsageError(
                f"it repeats {earlier.name!r}, and is judged by replicates {_format_range(own)} as that is by"
                f" {_format_range(judged)}: give the base of its runs after = {judged.stop} or more"
            )


def _format_range(replicates: range) -> str:
    return f"{replicates.start + 1} to {replicates.stop}"
