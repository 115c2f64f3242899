"""Run a search from Python, and use its results: tickets, verdicts, report, verification, timing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from msgspec.structs import replace

from ticketry.budgets.units import ENGINE
from ticketry.core.structure.pattern import parse_share
from ticketry.errors import TicketryError, UsageError
from ticketry.evidence.control import LONGER_CONTROLS, SMALL_DENSE
from ticketry.evidence.settings import VerifySettings
from ticketry.experiments.decoding import decode_settings
from ticketry.experiments.options import USUAL_CONTROLS, BenchOptions, LabOptions, open_lab
from ticketry.experiments.record_files import to_frame
from ticketry.experiments.request import SearchRequest, build_request, resolve_method, with_measured_costs
from ticketry.lab.search_result import Seeds
from ticketry.records.evidence import VerifyRecord
from ticketry.records.metric import Cell, build_html_table
from ticketry.records.network import DENSE, TICKET, Point, ratio_or_none
from ticketry.records.run import RunRecord
from ticketry.records.schema import as_json
from ticketry.records.settings import upgrade_settings
from ticketry.records.ticket import BenchRecord
from ticketry.records.verdict import LevelVerdict
from ticketry.report import relative_costs, verdict_line, write_report
from ticketry.search import Method, check_named_settings
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Task

if TYPE_CHECKING:
    import pandas

    from ticketry.core.ticket.ticket import Ticket
    from ticketry.evidence.verdict import Verdict
    from ticketry.experiments.bench import Say
    from ticketry.experiments.run_record import OnPoint
    from ticketry.lab.runners.runner import OnEvent


@dataclass(repr=False)
class Run:
    """The results of a finished search; a notebook shows a `Run` as a table.

    Examples:
        >>> from ticketry.experiments.options import BenchOptions
        >>> run = tk.run("iterative", levels=2, replicates=1, controls=(), recipe={"length": "20it"}, workers=0)
        >>> run.path.name == run.name, [round(ticket.density, 2) for ticket in run.tickets]
        (True, [0.8, 0.64])
        >>> run.best(density=0.8).path == run.tickets[0].path
        True
        >>> run.costs[0]["steps"]  # of the dense network's: its own training, and the one that its mask comes from
        2.0
        >>> [verdict.level for verdict in run.verdicts], sorted(run.as_json())[:3]
        ([1, 2], ['controls', 'cost', 'environment'])
        >>> settings = tk.evidence.VerifySettings(seeds=3, controls=("shuffled",), noise=False, references=False)
        >>> len(run.verify(settings, density=0.64).networks)
        3
        >>> timed = run.bench(BenchOptions(batch=(1,), against=("eager",), rounds=1)) if run.winner() else None
        >>> run.report().name
        'report.html'
    """

    request: SearchRequest
    """The requested search."""
    record: RunRecord
    """Record of the run, equal to ``run.json``."""
    options: LabOptions
    """Options of the lab that trained the run."""
    now: Mapping[str, int]
    """Numbers of requested segments, trained segments and trained steps of this call; segments in the store are not
    trained again."""
    command: str = ""
    """Command line that repeats the run; empty if it was started from Python."""
    logs: tuple[str, ...] = ()
    """A line for each logger that says where to view its logs."""
    verification: VerifyRecord | None = None
    """Result of `verify`: the verification of a ticket or of the procedure; None before the call."""
    timing: BenchRecord | None = None
    """Result of `bench`: the timing of a ticket; None before the call."""

    @property
    def name(self) -> str:
        """Name of the run, chosen by the user, or built from method, score, task and a digest of the request."""
        return self.record.name

    @property
    def path(self) -> Path:
        """Folder with the record, tickets, run file and report."""
        from ticketry.lab.store.paths import Paths

        return Paths(self.options.store).run(self.name)

    @cached_property
    def tickets(self) -> tuple[RunTicket, ...]:
        """All tickets, sorted by replicate and then by level (the densest first)."""
        metric = self.record.task.metric.name
        dense = {point.replicate: point for point in self.record.points if point.role == DENSE}
        return tuple(
            RunTicket(
                path=Path(point.ticket),
                density=point.density,
                level=point.level,
                replicate=point.replicate,
                metric=metric,
                value=point.metric(metric),
                validation_value=point.metric(metric, "validation"),
                dense_value=dense[point.replicate].metric(metric),
                time=point.timed.share if point.timed else None,
                multiplications=ratio_or_none(point.multiplications, dense[point.replicate].multiplications),
            )
            for point in self._points
        )

    @property
    def verdicts(self) -> tuple[LevelVerdict, ...]:
        """Verdict of each level (density): how its tickets compare with dense networks and controls.

        P-values are corrected with Holm's method.
        """
        return self.record.verdicts

    @property
    def costs(self) -> list[dict[str, Any]]:
        """Cost of finding and training each ticket, relative to the dense network's cost; see `relative_costs`."""
        return relative_costs(self.record)

    def best(
        self, density: float | str | None = None, *, time: float | str | None = None, flops: float | str | None = None
    ) -> RunTicket:
        """Return the ticket with the best metric on the validation split; its test metric is therefore unbiased.

        By default, choose from the sparsest level that looks like a winner (see `verify.sparsest_winner`). If no level
        does, choose from all tickets.

        Args:
            density: choose from the level with the nearest density.
            time: choose from tickets with at most this latency, as a fraction (0.3 or 30%) of the latency that the
            run's budget refers to. By default, this is the latency of the compiled network without pruning.
            flops: choose from tickets with at most this fraction of the dense network's MACs.

        Raises:
            UsageError: if there are no tickets, none of about this density, or none within this latency or MACs.
        """
        if sum(one is not None for one in (density, time, flops)) > 1:
            raise UsageError("density, time and flops exclude each other: give one of them")
        if not self.tickets:
            raise UsageError(f"the run {self.name} found no tickets")
        found = self.tickets
        if density is not None:
            from ticketry.experiments.verify import nearest_level

            level = nearest_level(self.record, density)
            found = tuple(one for one in found if one.level == level)
        elif time is not None:
            found = tickets_within_cost(
                found, "time", time, self.name, base=relative_base_latency(self.record.settings)
            )
        elif flops is not None:
            found = tickets_within_cost(found, "multiplications", flops, self.name)
        elif chosen := self.winner():
            found = tuple(one for one in found if one.level == chosen.level)
        return max(found, key=lambda one: self.record.task.metric.sign * one.validation_value)

    def frame(self) -> pandas.DataFrame:
        """Return a pandas table with a row for each trained network; raise `MissingExtraError` if pandas is missing."""
        from ticketry.report.tables.results import Results
        from ticketry.report.tables.rows import trained_network_rows

        return to_frame(trained_network_rows([Results(self.record)]))

    def report(self, path: str | Path | None = None) -> Path:
        """Write the HTML report of the run, with verification and timing if there are any, and return its path.

        Args:
            path: the file; by default ``report.html`` in the run's folder.
        """
        evidence = [one for one in (self.verification, self.timing) if one is not None]
        from ticketry.lab.store.store import publish_opened_stores

        written = write_report(self.record, Path(path or self.path / "report.html"), evidence=evidence)
        publish_opened_stores()
        return written

    def verify(
        self,
        settings: VerifySettings | None = None,
        *,
        density: float | str | None = None,
        on_event: OnEvent | None = None,
        on_interim: Callable[[Verdict], None] | None = None,
    ) -> VerifyRecord | None:
        """Verify the sparsest ticket that looks like a winner, or the procedure that found it, with fresh seeds.

        Return None if no ticket looks like a winner. A run with a single level is always verified.

        Args:
            settings: how to verify; by default, compare the ticket with the run's controls and a small dense network.
            density: choose the level with the nearest density instead of the sparsest winner.
            on_event: called with each event of training.
            on_interim: called with each interim verdict, before all seeds are trained.

        Raises:
            UsageError: if there are no tickets of about this density.
        """
        from ticketry.core.ticket.ticket import Ticket
        from ticketry.experiments.verify import choose_ticket, ticket_or_procedure_to_verify, verify_ticket

        chosen = choose_ticket(self.record, density)
        if chosen is None:
            return None
        if settings is None:
            controls: tuple[str, ...] = tuple(name for name in self.request.controls if name not in LONGER_CONTROLS)
            of_ticket = ticket_or_procedure_to_verify(Ticket.load(chosen.ticket, trained=False)) == "ticket"
            own = (*controls, SMALL_DENSE) if of_ticket else ()
            settings = VerifySettings(controls=own if controls else ("none",))
        self.verification = verify_ticket(
            chosen.ticket,
            settings,
            self.options,
            task=self.request.task_of(chosen.replicate),
            search=self.request,
            command=self.command,
            on_event=on_event,
            on_interim=on_interim,
        )
        return self.verification

    def bench(self, options: BenchOptions | None = None, *, say: Say = lambda _: None) -> BenchRecord | None:
        """Compile the sparsest ticket that looks like a winner, and time it beside dense engines.

        Return None if no ticket looks like a winner.

        Args:
            options: what to time; by default the defaults of `BenchOptions`.
            say: called with each line of progress.
        """
        from ticketry.experiments.bench import execute_bench
        from ticketry.experiments.ticket_model import load_ticket_model

        chosen = self.winner()
        if chosen is None:
            return None
        source = load_ticket_model(chosen.ticket, task=self.request.task_of(chosen.replicate), data=self.options.data)
        self.timing = execute_bench(
            source, options or BenchOptions(), store=self.options.store, say=say, command=self.command
        )
        return self.timing

    def push(self, repo_id: str, *, density: float | str | None = None, **options: Any) -> str:
        """Push the best ticket to the Hugging Face hub, with the run's verdict and figure on its card; return the URL.

        Args:
            repo_id: repository on the hub, as ``user/name``.
            density: choose the level with the nearest density, as in `best`.
            options: further arguments of `Ticket.push`: private, endpoint, token, message, model.

        Raises:
            UsageError: see `best`.
            MissingExtraError, TicketError: see `Ticket.push`.
        """
        from ticketry.report.figures import METRIC_BY_DENSITY, figure_png

        ticket = self.best(density).load()
        verdict = verdict_line(self.record)
        if self.verification is not None:
            found = self.verification
            verdict += f" Verified from fresh seeds, {found.claims_of}: {found.verdict}."
        return ticket.push(repo_id, verdict=verdict, figure=figure_png(self.record, METRIC_BY_DENSITY), **options)

    def as_json(self) -> dict[str, Any]:
        """Return the result as JSON values, as ``ticketry search --json`` prints it."""
        values = as_json(replace(self.record, points=()))
        keys = ("run", "method", "task", "cost", "store", "environment")
        judged = {"controls": self._controls_as_json(), "verdicts": values.get("verdicts", [])}
        said = {key: values[key] for key in ("verdict_error", "left_out", "ended") if values.get(key)}
        return {
            "tickets": self._tickets_as_json(),
            **judged,
            **{key: values[key] for key in keys},
            **said,
            "now": dict(self.now),
        }

    @property
    def _points(self) -> list[Point]:
        return [point for point in self.record.points if point.role == TICKET]

    def _tickets_as_json(self) -> list[dict[str, Any]]:
        keys, settings = ("replicate", "level"), self.record.settings
        relative = {
            (one["replicate"], one["level"]): {name: value for name, value in one.items() if name not in keys}
            for one in self.costs
        }
        found = []
        for point, one in zip(self._points, self.tickets, strict=True):
            values = {
                "path": point.ticket,
                "density": point.density,
                "sparsity": 1 - point.density,
                "kept": point.kept,
                "level": point.level,
                "replicate": point.replicate,
                "metric": one.metric,
                "value": one.value,
                "dense_value": one.dense_value,
                "validation_value": one.validation_value,
                "steps": point.steps,
                "retrain": settings["retrain"],
                "budget": upgrade_settings(settings).get("equal_cost", ""),
                "cost": as_json(point.phases) if point.phases else None,
                "relative_cost": relative.get((point.replicate, point.level)),
                **{name: share for name in RELATIVE_COSTS if (share := getattr(one, name)) is not None},
            }
            if point.structure:  # how the mask is structured, and how well the structure fits the original mask
                whole = point.structure.layers[-1]
                fits = ("coverage", "null_coverage", "random_coverage", "fill")
                values["structure"] = as_json(replace(point.structure, layers=(), pictures=()))
                values["structure"] |= {name: getattr(whole, name) for name in fits}
            found.append(values)
        return found

    def _controls_as_json(self) -> list[dict[str, Any]]:
        metric = self.record.task.metric.name
        return [
            {
                "role": point.role,
                "level": point.level,
                "replicate": point.replicate,
                "density": point.density,
                "metric": metric,
                "value": point.metric(metric),
                "validation_value": point.metric(metric, "validation"),
                "steps": point.steps,
                "budget": point.budget,
            }
            for point in self.record.points
            if point.role not in (DENSE, TICKET)
        ]

    def winner(self) -> Point | None:
        """Return the record row of the sparsest ticket that looks like a winner; see `verify.sparsest_winner`."""
        from ticketry.experiments.verify import sparsest_winner

        return sparsest_winner(self.record)

    def __repr__(self) -> str:
        return f"Run({self.name!r}: {len(self.tickets)} tickets in {str(self.path)!r})"

    def _repr_html_(self) -> str:
        from ticketry.report.tables.terminal import summary_cells

        title, header, rows = summary_cells(self.record)
        found = {str(one.level): one.verdict for one in self.verdicts}
        table: list[list[Cell]] = [[*row, found.get(row[0], "")] for row in rows]
        told = [verdict_line(self.record), f"{len(self.tickets)} tickets in {self.path}"]
        if self.verification is not None:
            answers = self.verification.answers
            of, verdict = self.verification.claims_of, self.verification.verdict
            told.append(f"verified from fresh seeds, {of}: {verdict}{answers and f' ({answers})'}")
        caption = f"{self.record.title} on {self.record.task.name}: {title}"
        return build_html_table(caption, [*header, "verdict"], table, told)


def run(
    method: str | Method,
    task: str | Task = "digits",
    *,
    model: str | None = None,
    replicates: int = 5,
    controls: str | Iterable[str] = USUAL_CONTROLS,
    control_densities: float | str | Iterable[float | str] = (),
    seeds: int | Seeds = 0,
    recipe: Recipe | Mapping[str, Any] | None = None,
    name: str = "",
    verify: bool = False,
    **options: Any,
) -> Run:
    """Search for tickets, train their controls and judge them, as ``ticketry search`` does.

    All trainings are stored. A repeated run takes its trainings from the store, and an interrupted run continues where
    it stopped.

    Args:
        method: a name from ``ticketry list methods``, or your own method: ``mine`` for mine.py in the current folder,
            package.module or package.module:object.
        task: a name from ``ticketry list tasks``, package.module:object, or a task.
        model: name of another network, from ``ticketry list models``, for a task given by name; by default the task's
            own network.
        replicates: how many times to search, each time with other seeds.
        controls: names of networks that should lose, trained beside each ticket; an empty list for no controls.
        control_densities: train controls only beside tickets of these densities; other tickets are only compared with
            the dense network.
        seeds: seeds of the first replicate; each further replicate has the next seeds.
        recipe: how to train: a recipe, or the entries that differ from the task's own recipe.
        name: name of the run, for lists, figures and its folder; by default it is built from method, score and task.
        verify: whether to call `Run.verify` after the search; the result is `Run.verification`.
        options: the fields of the method's `Settings` (``density=0.05``, ``rewind="3%"``) and of `LabOptions`
            (``store``, ``data``, ``workers``, ``device`` …), ``energy`` (meter or estimate), and ``bench=True`` to
            time the sparsest ticket that looks like a winner.

    Raises:
        UsageError: for an unknown argument, or an invalid value.
        LayerCollapseError, TrainingError: if a replicate failed; other replicates are finished, and the record is
            written, before the error is raised.
        TicketryError: if training is impossible.

    Examples:
        >>> run = tk.run("iterative", levels=2, replicates=1, controls=(), recipe={"length": "20it"}, workers=0)
        >>> [round(ticket.density, 2) for ticket in run.tickets]
        [0.8, 0.64]
        >>> run.best().load().mask.density == run.best().density
        True
    """
    method = resolve_method(method)
    what = f"run({method.name!r}, …)"
    check_named_settings(method, (name for name, value in options.items() if value is not None))
    settings, lab_options, more = decode_settings(options, method.Settings, LabOptions, _ExtraOptions, what=what)
    request = build_request(
        method,
        task,
        settings,
        model=model,
        replicates=replicates,
        controls=controls,
        control_densities=control_densities,
        seeds=seeds,
        recipe=recipe,
        name=name,
    )
    made = run_search(with_measured_costs(request, lab_options), lab_options, energy=more.energy)
    if verify:
        made.verify()
    if more.bench:
        made.bench()
    return made


@dataclass(frozen=True, kw_only=True)
class _ExtraOptions:
    """Options of the function `run` that are neither method settings nor lab options."""

    energy: Literal["meter", "estimate"] = "meter"
    bench: bool = False


def run_search(
    request: SearchRequest,
    options: LabOptions,
    *,
    command: str = "",
    energy: str = "meter",
    on_point: OnPoint | None = None,
    on_event: OnEvent | None = None,
    on_ended: Callable[[TicketryError], None] | None = None,
) -> Run:
    """Train the networks of the search `request` with `options`, and return the results; see `search.execute`."""
    from ticketry.experiments.search import execute

    with open_lab(options, request.task, on_event) as lab:
        request = request.for_lab(lab).with_new_name(lab.store.paths)
        record = execute(lab, request, command=command, on_point=on_point, energy=energy, on_ended=on_ended)
        done = {name: getattr(lab.ledger, name) for name in ("segments_asked", "segments_trained", "steps_trained")}
    return Run(request, record, options, done, command, tuple(lab.dashboards.describe_locations()))


RELATIVE_COSTS = ("time", "multiplications")
"""Fields of `RunTicket` that are costs relative to the dense network."""


@dataclass(frozen=True)
class RunTicket:
    """Describes a ticket that a run saved: its folder, density, metric and costs.

    Examples:
        >>> run = tk.run("iterative", levels=2, replicates=1, controls=(), recipe={"length": "20it"}, workers=0)
        >>> ticket = run.tickets[0]
        >>> ticket.level, ticket.metric, ticket.load().mask.density == ticket.density
        (1, 'accuracy', True)
    """

    path: Path
    """Folder of the ticket; the empty path if the run comes from a bundle without weights."""
    density: float
    """Fraction of the prunable weights that the ticket keeps."""
    level: int
    """Pruning round of the search; 1 is the densest."""
    replicate: int
    """Number of the replicate, from 0."""
    metric: str
    """Name of the metric that the values below belong to."""
    value: float
    """Value on the test split."""
    validation_value: float
    """Value on the validation split, which is used to choose tickets."""
    dense_value: float
    """Value of the dense network on the test split."""
    time: float | None = None
    """Measured latency relative to the dense network; None if the search measured no latency."""
    multiplications: float | None = None
    """MACs relative to the dense network; None if the search counted no MACs."""

    def __fspath__(self) -> str:
        """Return the path of the ticket's folder; raise `UsageError` if the ticket was saved without a folder."""
        if self.path == Path():
            raise UsageError(
                f"the ticket of replicate {self.replicate} at level {self.level} has no folder: a bundle left its"
                " weights out (ticketry store pack --weights packs them)"
            )
        return str(self.path)

    def load(self) -> Ticket:
        """Read the ticket from its folder.

        Raises:
            UsageError: if the ticket has no folder.
            TicketError: see `Ticket.load`.
        """
        from ticketry.core.ticket.ticket import Ticket

        return Ticket.load(fspath(self))


BUDGET_FACTOR = 1.02
"""A ticket meets a budget if its cost is at most this multiple of the budget."""


def tickets_within_cost(
    tickets: Sequence[RunTicket], what: str, asked: float | str, run: str, *, base: float = 1.0
) -> tuple[RunTicket, ...]:
    """Return the tickets whose cost is at most `asked` (a fraction such as 0.3 or 30%) times the cost `base`.

    Args:
        what: name of the cost, from `RELATIVE_COSTS`.
        base: a cost, relative to the dense network's cost.
    """
    limit = BUDGET_FACTOR * parse_share(asked) * base
    known = {one: share for one in tickets if (share := getattr(one, what)) is not None}
    found = tuple(one for one, share in known.items() if share <= limit)
    if not found:
        there = ", ".join(f"{share / base:.3g}" for share in sorted(set(known.values()))) or "none"
        raise UsageError(f"the run {run} has no ticket within {asked} of the {what}; there are: {there}")
    return found


def relative_base_latency(settings: Mapping[str, Any]) -> float:
    """Return the latency that a run's budgets refer to, divided by the latency of the compiled unpruned network."""
    from ticketry.budgets.cost_model import CostModel

    base = upgrade_settings(settings).get("base", ENGINE)
    if base == ENGINE or not settings.get("time"):
        return 1.0
    costs = CostModel.load(settings["profile"])
    return costs.base_seconds(base) / costs.dense
