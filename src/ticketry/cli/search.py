"""ticketry search METHOD: find tickets, train their controls, write a report."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from ticketry.cli.arguments import parse, values_of
from ticketry.cli.lab_options import LabOptions, opened
from ticketry.cli.verify import told, verified
from ticketry.errors import UsageError
from ticketry.runfile import read_run_file
from ticketry.search import ALIASES, Method, method, methods
from ticketry.tasks.experiments import experiment
from ticketry.tasks.presets import PRESETS
from ticketry.tasks.recipe import Recipe, recipe_from

if TYPE_CHECKING:
    from ticketry.lab.found import Seeds
    from ticketry.lab.ledger import Ledger
    from ticketry.run import Run
    from ticketry.tasks.base import Task

SUMMARY = "find tickets by a published method"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Common(LabOptions):
    task: str = "digits"
    """What to train on: a name of `ticketry list tasks`, or your own as package.module:object."""
    model: str = ""
    """Another network than the task's own, see `ticketry list models`."""
    option: tuple[str, ...] = ()
    """Options of the task, as name=value: train=10000 for fewer training examples, or those of your own task."""
    target: str = ""
    """Of a task table:FILE: the column that is predicted."""
    replicates: int = 3
    """How many times, each with other seeds."""
    seed: int = 0
    """Of the first replicate; the next ones count up."""
    initialisation_seed: int | None = None
    """Seed of the weights, if it is to differ from seed."""
    order_seed: int | None = None
    """Seed of data order and augmentation, if it is to differ from seed."""
    mask_seed: int | None = None
    """Seed of whatever is random in masks, if it is to differ from seed."""
    controls: tuple[str, ...] = ("random_reinit", "shuffled", "random_prune")
    """Networks that should lose, trained beside each ticket: random_reinit, shuffled, random_prune, or none. cyclic and
    cyclic_random train one mask for as long as the whole search, and are no part of the verdict."""
    preset: str = ""
    """A published experiment (see `ticketry list presets`) to take all of this from; other words go before it."""
    config: Path | None = None
    """A run file (TOML) to take all of this from; words on the command line go before it."""
    verify: bool = False
    """Verify the sparsest ticket that looks like a winner, from fresh seeds (as `ticketry verify` does)."""
    bench: bool = False
    """Compile that ticket, and time it beside dense engines (as `ticketry bench` does)."""
    energy: Literal["meter", "estimate"] = "meter"
    """Of the run: meter (what the machine counts, or nothing is told) or estimate (where it has no meter, codecarbon's
    model of typical powers, which is called an estimate; extra energy)."""

    @property
    def seeds(self) -> Seeds:
        from ticketry.lab.found import Seeds

        parts = (self.initialisation_seed, self.order_seed, self.mask_seed)
        return Seeds(*(self.seed if part is None else part for part in parts))


def main(words: Sequence[str]) -> int:
    """Carry out the search that the words ask for."""
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0 if words else 2
    chosen, arguments = read_arguments(words, verb="search")
    return _search(chosen, arguments, shlex.join(["ticketry", "search", *words]))


def read_arguments(
    words: Sequence[str], *, verb: str, default: str = "", extra: Sequence[Any] = (), description: str = ""
) -> tuple[Method, Any]:
    """The method and all options of a verb that searches, from its words and its run file.

    Args:
        default: the method, if none is named.
        extra: further fields of the arguments, as `dataclasses.make_dataclass` takes them.
        description: what --help says, in place of the method's own.
    """
    rest = list(words)
    tables = _tables(_value(rest, "--config"), _value(rest, "--preset"))
    named = bool(rest) and not rest[0].startswith("-")
    name = rest.pop(0) if named else str(tables.get("method", default))
    if not name:
        raise UsageError(f"name a search method: ticketry {verb} {'|'.join(methods())} …")
    chosen = method(name)
    about = description or f"{chosen.title}.\n\n{chosen.description}"
    return chosen, _arguments(chosen, rest, tables, extra, f"ticketry {verb} {chosen.name}", about)


def _search(chosen: Method, arguments: Any, command: str) -> int:
    from ticketry.cli.live import Live
    from ticketry.report import write_report
    from ticketry.run import execute

    run = run_of(chosen, arguments)
    with Live(run) as live, opened(arguments, run.task, live.on_event) as lab:
        record = execute(lab, run, command=command, on_point=live.on_point, energy=arguments.energy)
    proof, why = _verified(arguments, run, record, command) if arguments.verify else (None, "")
    speed = _timed(arguments, run, record, command) if arguments.bench else None
    folder = lab.store.paths.run(run.name)
    found = {name: one for name, one in (("verification", proof), ("bench", speed)) if one}
    report = write_report(record, folder / "report.html", evidence=list(found.values()))
    if arguments.json:
        print(json.dumps({**_result(record, report, lab.ledger), **found}))
    else:
        _tell(record, folder, report)
        for line in told(proof) if proof else [why] if why else []:
            print(line)
        if arguments.bench:
            _tell_speed(speed)
    return 0


def _verified(arguments: Any, run: Run, record: Mapping[str, Any], command: str) -> tuple[dict[str, Any] | None, str]:
    """The record of the verification of the run's ticket, or why there is none."""
    from ticketry.evidence.names import LONGER, SMALL_DENSE
    from ticketry.evidence.settings import VerifySettings
    from ticketry.run_verify import sparsest_winner

    chosen = sparsest_winner(record)
    if chosen is None:
        return None, "verdict  no level looks like a winner on the validation split, so no ticket was verified"
    controls = tuple(name for name in run.controls if name not in LONGER)
    settings = VerifySettings(controls=(*controls, SMALL_DENSE) if controls else ("none",))
    task = run.task_of(chosen["replicate"])
    return verified(arguments, chosen["ticket"], settings, task=task, command=command), ""


def _timed(arguments: Any, run: Run, record: Mapping[str, Any], command: str) -> dict[str, Any] | None:
    """The record of the same ticket beside dense engines; None if no level looks like a winner."""
    from ticketry.cli.ticket_options import saying
    from ticketry.run_engine import BenchSettings, execute_bench, source_of
    from ticketry.run_verify import sparsest_winner

    chosen = sparsest_winner(record)
    if chosen is None:
        return None
    source = source_of(chosen["ticket"], task=run.task_of(chosen["replicate"]), data=arguments.data)
    with saying("timing") as say:
        return execute_bench(source, BenchSettings(), store=arguments.store, say=say, command=command)


def _tell_speed(speed: Mapping[str, Any] | None) -> None:
    from ticketry.cli.bench import show

    if speed is None:
        print("speed    no level looks like a winner on the validation split, so no ticket was timed")
    else:
        print()
        show(speed, layers=False)


def run_of(chosen: Method, arguments: Any) -> Run:
    """The run that the arguments describe."""
    from ticketry.run import Run

    return Run(
        method=chosen,
        task=_task(arguments.task, arguments.model, _options(arguments.option, arguments.target)),
        settings=arguments.settings,
        recipe=arguments.recipe,
        replicates=arguments.replicates,
        seeds=arguments.seeds,
        controls=() if arguments.controls == ("none",) else arguments.controls,
    )


def _options(given: Sequence[str], target: str) -> tuple[str, ...]:
    """The options of a task, --target among them."""
    return (*given, f"target={target}") if target else tuple(given)


def _task(name: str, model: str, options: Sequence[str]) -> Task:
    from ticketry.tasks import registry

    pairs = [option.partition("=") for option in options]
    if any(not separator for _, separator, _ in pairs):
        raise UsageError(f"an option of a task is written name=value, not {' '.join(options)}")
    return registry.get(name, model=model or None, options={key: value for key, _, value in pairs})


# -- arguments: the defaults come from the task and the run file, so that --help shows what holds ----------------------


def _tables(config: str, preset: str) -> dict[str, Any]:
    """What a run file or a preset says; empty if neither is named."""
    if config and preset:
        raise UsageError("a run file and a preset both name everything: give either --config or --preset")
    return read_run_file(Path(config)) if config else experiment(preset) if preset else {}


def _arguments(
    chosen: Method, words: Sequence[str], tables: Mapping[str, Any], extra: Sequence[Any], prog: str, about: str
) -> Any:
    common = _common_defaults(tables)
    task = _value(words, "--task") or common.task
    model = _value(words, "--model") or common.model
    options = _options((*common.option, *values_of(words, "--option")), _value(words, "--target"))
    settings, recipe = _settings(chosen, tables), _recipe(task, model, options, tables)
    flat: Any = tyro.conf.OmitArgPrefixes  # the method's settings are --rate, not --settings.rate
    fields: list[Any] = [
        *extra,
        ("settings", flat[chosen.Settings], dataclasses.field(default=settings)),
        ("recipe", Recipe, dataclasses.field(default=recipe)),
        *((f.name, f.type, dataclasses.field(default=getattr(common, f.name))) for f in _changed(common)),
    ]
    kind = dataclasses.make_dataclass("Search", fields, bases=(_Common,), frozen=True, kw_only=True)
    return parse(kind, words, prog=prog, description=about)


def _changed(common: _Common) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(common) if getattr(common, field.name) != field.default]


def _common_defaults(tables: Mapping[str, Any]) -> _Common:
    known = {field.name for field in dataclasses.fields(_Common)} - {
        "config",
        "preset",
        "json",
        "option",
        "target",
        "verify",
        "bench",
        "energy",
    }
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in tables.items()}
    others = {"method", "options", "seeds", "settings", "recipe"}
    unknown = sorted(set(values) - known - others)
    if unknown:
        raise UsageError(
            f"the run file has an unknown entry {unknown[0]!r}; known: {', '.join(sorted(known | others))}"
        )
    seeds = {f"{name}_seed": value for name, value in values.get("seeds", {}).items()}
    options = tuple(f"{name}={value}" for name, value in values.get("options", {}).items())
    if not seeds.keys() <= known:
        raise UsageError(f"the run file's seeds are initialisation, order and mask, not {', '.join(values['seeds'])}")
    return _Common(**{name: values[name] for name in known & set(values)}, **seeds, option=options)


def _settings(chosen: Method, tables: Mapping[str, Any]) -> Any:
    values = {name: tuple(v) if isinstance(v, list) else v for name, v in tables.get("settings", {}).items()}
    known = {field.name for field in dataclasses.fields(chosen.Settings)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise UsageError(f"the run file sets {unknown[0]!r}, which {chosen.name} does not have: {', '.join(known)}")
    return chosen.Settings(**values)


def _recipe(task: str, model: str, options: Sequence[str], tables: Mapping[str, Any]) -> Recipe:
    if "recipe" in tables:
        return recipe_from(tables["recipe"])
    if task in PRESETS:
        return PRESETS[task].recipe_of(model or PRESETS[task].model)
    return _task(task, model, options).recipe


def _value(words: Sequence[str], flag: str) -> str:
    """The value of a flag that has to be known before the rest is read; an empty string if it is not there."""
    for index, word in enumerate(words):
        if word == flag and index + 1 < len(words):
            return words[index + 1]
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return ""


# -- what is printed ---------------------------------------------------------------------------------------------------


def _result(record: Mapping[str, Any], report: Path, ledger: Ledger) -> dict[str, Any]:
    """The JSON of a search; `cost` is what the run cost when it was made, `now` what this command did."""
    from ticketry.report import relative_costs

    metric = record["task"]["metric"]["name"]
    dense = {point["replicate"]: point["test"][metric] for point in record["points"] if point["role"] == "dense"}
    costs = {(one.pop("replicate"), one.pop("level")): one for one in relative_costs(record)}
    tickets = [
        {
            "path": point["ticket"],
            "density": point["density"],
            "sparsity": 1 - point["density"],
            "kept": point["kept"],
            "level": point["level"],
            "replicate": point["replicate"],
            "metric": metric,
            "value": point["test"][metric],
            "dense_value": dense[point["replicate"]],
            "validation_value": point["validation"][metric],
            "steps": point["steps"],
            "retrain": record["settings"]["retrain"],
            "budget": record["settings"].get("budget", ""),
            "cost": point.get("cost"),
            "relative_cost": costs.get((point["replicate"], point["level"])),
            **({"structure": _structure(point["structure"])} if "structure" in point else {}),
        }
        for point in record["points"]
        if point["role"] == "ticket"
    ]
    keys = ("run", "method", "task", "cost", "store", "environment")
    now = {name: getattr(ledger, name) for name in ("segments_asked", "segments_trained", "steps_trained")}
    return {"tickets": tickets, **{key: record[key] for key in keys}, "now": now, "report": str(report)}


def _structure(told: Mapping[str, Any]) -> dict[str, Any]:
    """What a ticket's mask was turned into, and how well that fits; the layers are in the run's record."""
    whole = {name: told["layers"][-1][name] for name in ("coverage", "null_coverage", "random_coverage", "fill")}
    return {**{name: told[name] for name in told if name not in ("layers", "pictures")}, **whole}


def _tell(record: Mapping[str, Any], folder: Path, report: Path) -> None:
    from rich.console import Console

    from ticketry.report import cost_lines, moment_lines, summary_lines, summary_table, verdict_line

    console = Console()
    if console.is_terminal:
        console.print(summary_table(record))
        console.print(verdict_line(record), markup=False, highlight=False)
    else:  # rich would cut the table to 80 columns
        print("\n".join([*summary_lines(record), "", verdict_line(record)]))
    if costs := cost_lines(record):
        print("\n".join(["", *costs]))
    tickets = sorted(point["ticket"] for point in record["points"] if point["role"] == "ticket")
    lines = [
        "",
        *(f"pruned   {line}" for line in moment_lines(record)),
        f"tickets  {folder / 'tickets'} ({len(tickets)} folders)",
        f"report   {report}",
        f"again    ticketry search --config {folder / 'run.toml'} --store {record['store']}",
        "next     ticketry list tickets, or in Python:",
        f"         tk.Ticket.load({tickets[-1]!r}).apply(model, 'trained')" if tickets else "",
    ]
    print("\n".join(lines))
    sys.stdout.flush()


def _help() -> str:
    lines = [f"  {name:<12} {found.title}" for name, found in methods().items()]
    aliases = ", ".join(f"{alias} = {name}" for alias, name in ALIASES.items())
    return "\n".join(
        [
            "usage: ticketry search METHOD --task TASK [...]     (ticketry search METHOD --help shows all options)",
            "       ticketry search --config run.toml [...]      (a run again, or a variation of it)",
            "",
            "methods:",
            *lines,
            f"  ({aliases})",
            "",
            "examples:",
            "  ticketry search iterative --task digits --rewind 3% --density 0.05",
            "  ticketry search imp --task fashion-mnist --levels 14 --replicates 3 --recipe.length 10ep",
            "  ticketry search imp --task cifar10 --densities 0.5,0.2 --controls none --json",
            "  ticketry search imp --preset resnet-20-short --verify",
            "  ticketry search imp --task my_package.my_module:my_task --option width=64",
        ]
    )
