"""ticketry search METHOD: find tickets, train their controls, write a report."""

from __future__ import annotations

import dataclasses
import json
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

import tyro

from ticketry.choices import list_choices
from ticketry.cli.arguments import HELP_ALL, options_said, parse, values_of
from ticketry.cli.options import Printing, saying
from ticketry.cli.screen.search_end import tell, tell_more
from ticketry.cli.screen.verification import interim_teller
from ticketry.core.pattern import check_share
from ticketry.errors import TicketryError, UsageError
from ticketry.experiments.keywords import settings_of
from ticketry.experiments.options import LabOptions
from ticketry.experiments.run_file import check_trust, read_run_file, with_kept_costs
from ticketry.lab.remote.address import place_of
from ticketry.records.schema import as_json
from ticketry.search import ALIASES, Method, check_aims, method, methods
from ticketry.tasks.images.facts import DATA_SETS
from ticketry.tasks.presets import experiment
from ticketry.tasks.recipe import Recipe, recipe_from

if TYPE_CHECKING:
    from ticketry.experiments.request import SearchRequest
    from ticketry.experiments.run import Run
    from ticketry.lab.search_result import Seeds
    from ticketry.tasks.task import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Common(Printing, LabOptions):
    task: str = "digits"
    """What to train on: a name of `ticketry list tasks`, or your own as package.module:object."""
    model: str = ""
    """Another network than the task's own, see `ticketry list models`."""
    option: tuple[str, ...] = ()
    """Options of the task, as name=value: train=10000 for fewer training examples, or those of your own task."""
    target: str = ""
    """Of a task table:FILE: the column that is predicted."""
    name: str = ""
    """Of the run, for lists and figures; by default one made of method, score and task."""
    replicates: int = 5
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
    """Networks that should lose, trained beside each ticket: random_reinit, shuffled, random_prune, others of
    `ticketry list controls`, or none. cyclic and cyclic_random train one mask for as long as the whole search, and are
    no part of the verdict."""
    control_densities: tuple[float, ...] = ()
    """Train controls beside tickets of these densities alone; the others are judged beside the dense network only.
    By default beside all."""
    preset: str = ""
    """A published experiment (see `ticketry list presets`) to take all of this from; other options override it."""
    config: Path | None = None
    """A run file (TOML) to take all of this from; options on the command line override it."""
    trust: bool = False
    """Use whatever the run file names: code of that name is imported and run, files and folders are opened."""
    verify: bool = False
    """Verify the sparsest ticket that looks like a winner (or the only one), or its procedure, from fresh seeds, as
    `ticketry verify` does."""
    bench: bool = False
    """Compile that ticket, and time it beside dense engines (as `ticketry bench` does)."""
    energy: Literal["meter", "estimate"] = "meter"
    """Of the run: meter (what the machine counts, or nothing is told) or estimate (where it has no meter, codecarbon's
    model of typical powers, which is called an estimate; extra energy)."""

    @property
    def seeds(self) -> Seeds:
        from ticketry.lab.search_result import Seeds

        parts = (self.initialisation_seed, self.order_seed, self.mask_seed)
        return Seeds(*(self.seed if part is None else part for part in parts))


def main(words: Sequence[str]) -> int:
    """Carry out the search that the words ask for."""
    if not words or words[0] in ("-h", "--help", HELP_ALL):
        print(_help())
        return 0 if words else 2
    chosen, arguments = read_arguments(words, command="search")
    if len(words) == 1 and not words[0].startswith("-"):  # nobody means a search of minutes by a method's name alone
        raise UsageError(
            f"name what to train on: ticketry search {words[0]} --task digits, or another of `ticketry list tasks`"
            f" (ticketry search {words[0]} --help shows all options)"
        )
    return _search(chosen, arguments, shlex.join(["ticketry", "search", *words]))


def read_arguments(
    words: Sequence[str], *, command: str, default: str = "", extra: Sequence[Any] = (), description: str = ""
) -> tuple[Method, Any]:
    """The method and all options of a command that searches, from its words and its run file.

    Args:
        default: the method, if none is named.
        extra: further fields of the arguments, as `dataclasses.make_dataclass` takes them.
        description: what --help says, in place of the method's own.
    """
    rest = list(words)
    tables = _tables(_value(rest, "--config"), _value(rest, "--preset"))
    named = bool(rest) and not rest[0].startswith("-")
    if config := _value(rest, "--config"):
        store = _value(rest, "--store") or LabOptions.store
        tables = {**tables, "settings": with_kept_costs(tables.get("settings", {}), store)}
        if "--trust" not in rest:
            said = {*options_said(rest), *(["method"] if named else [])}
            check_trust(tables, said, of=config, store=store)
    name = rest.pop(0) if named else str(tables.get("method", default))
    if not name:
        raise UsageError(f"name a search method: ticketry {command} {'|'.join(methods())} …")
    chosen = method(name)
    said_here = options_said(rest)
    check_aims(chosen, said_here)
    tables = _without_what_is_said(tables, said_here)
    about = description or f"{chosen.title}."
    if not description and HELP_ALL in rest:
        about += f"\n\n{chosen.description}"
    return chosen, _arguments(chosen, rest, tables, extra, f"ticketry {command} {chosen.alias or chosen.name}", about)


_HOW_FAR = frozenset(("levels", "density", "sparsity", "densities", "flops", "time", "bytes"))
"""Settings of which each says in its way how far a search goes."""


def _without_what_is_said(tables: dict[str, Any], said: set[str]) -> dict[str, Any]:
    """A run file's or preset's tables without what says in another way what the command line says."""
    if not _HOW_FAR & said or "settings" not in tables:
        return tables
    kept = {name: value for name, value in tables["settings"].items() if name not in _HOW_FAR}
    return {**tables, "settings": kept}


def _search(chosen: Method, arguments: Any, command: str) -> int:
    from ticketry.cli.screen.live import Live
    from ticketry.experiments.request import with_profile
    from ticketry.experiments.run import carry_out

    request = request_by(chosen, arguments)
    with saying(f"what {arguments.task} costs here") as say:
        request = with_profile(request, arguments, say)
    ended: list[TicketryError] = []
    with Live(request) as live:
        run = carry_out(
            request,
            arguments,
            command=command,
            energy=arguments.energy,
            on_point=live.on_point,
            on_event=live.on_event,
            on_ended=ended.append,
        )
    if arguments.verify and not ended:
        _verify(run)
    if arguments.bench and not ended:
        with saying("timing") as say:
            run.bench(say=say)
    report = run.report()
    if arguments.json:
        found = {"verification": run.verification, "bench": run.timing}
        more = {name: as_json(one) for name, one in found.items() if one}
        print(json.dumps({**run.as_json(), "report": str(report), **more}), flush=True)
    else:
        tell(run, report)
    if ended:  # the last word is why there is no more
        raise ended[0]
    if not arguments.json:
        tell_more(run, verified=arguments.verify, timed=arguments.bench)
    return 0


def _verify(run: Run) -> None:
    from ticketry.cli.screen.progress import Progress

    with Progress(f"verifying {run.name}") as progress:
        run.verify(on_event=progress.on_event, on_interim=interim_teller(progress))


def request_by(chosen: Method, arguments: Any) -> SearchRequest:
    """The search that the arguments describe."""
    from ticketry.experiments.request import request_of

    return request_of(
        chosen,
        task_by(arguments.task, arguments.model, _options(arguments.option, arguments.target)),
        arguments.settings,
        replicates=arguments.replicates,
        controls=arguments.controls,
        control_densities=arguments.control_densities,
        seeds=arguments.seeds,
        recipe=arguments.recipe,
        name=arguments.name,
    )


def _options(given: Sequence[str], target: str) -> tuple[str, ...]:
    """The options of a task, --target among them."""
    return (*given, f"target={target}") if target else tuple(given)


def task_by(name: str, model: str, options: Sequence[str]) -> Task:
    """The task of these words."""
    from ticketry.tasks import catalogue

    pairs = [option.partition("=") for option in options]
    if any(not separator for _, separator, _ in pairs):
        raise UsageError(f"an option of a task is written name=value, not {' '.join(options)}")
    return catalogue.get(name, model=model or None, options={key: value for key, _, value in pairs})


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
    hints = get_type_hints(_Common, include_extras=True)
    fields: list[Any] = [
        *extra,
        ("settings", flat[chosen.Settings], dataclasses.field(default=settings)),
        ("recipe", Recipe, dataclasses.field(default=recipe)),
        *((name, hints[name], dataclasses.field(default=getattr(common, name))) for name in _changed(common)),
    ]
    kind = dataclasses.make_dataclass("Search", fields, bases=(_Common,), frozen=True, kw_only=True)
    return parse(kind, words, prog=prog, description=about)


def _changed(common: _Common) -> list[str]:
    return [field.name for field in dataclasses.fields(common) if getattr(common, field.name) != field.default]


def _common_defaults(tables: Mapping[str, Any]) -> _Common:
    known = {field.name for field in dataclasses.fields(_Common)} - {
        "config",
        "preset",
        "trust",
        "json",
        "option",
        "target",
        "verify",
        "bench",
        "energy",
    }
    values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in tables.items()}
    if isinstance(values.get("store"), str):
        values["store"] = place_of(values["store"])
    for name in ("controls", "control_densities"):
        if name in values and not isinstance(values[name], tuple):
            values[name] = (values[name],)
    if "control_densities" in values:
        values["control_densities"] = tuple(
            check_share("control_densities", one) for one in values["control_densities"]
        )
    others = {"method", "options", "seeds", "settings", "recipe"}
    unknown = sorted(set(values) - known - others)
    if unknown:
        raise UsageError(
            f"the run file has an unknown entry {unknown[0]!r}; known: "
            f"{list_choices(unknown[0], sorted(known | others))}"
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
        raise UsageError(
            f"the run file sets {unknown[0]!r}, which {chosen.name} does not have: "
            f"{list_choices(unknown[0], sorted(known))}"
        )
    return settings_of(values, chosen.Settings, what="the run file's [settings]")[0]


def _recipe(task: str, model: str, options: Sequence[str], tables: Mapping[str, Any]) -> Recipe:
    if "recipe" in tables:
        return recipe_from(tables["recipe"])
    if task in DATA_SETS.built_in:  # without torch, for --help
        data = DATA_SETS.get(task)
        return data.recipe_of(model or data.model)
    return task_by(task, model, options).recipe


def _value(words: Sequence[str], flag: str) -> str:
    """The value of a flag that has to be known before the rest is read; an empty string if it is not there."""
    for index, word in enumerate(words):
        if word == flag and index + 1 < len(words):
            return words[index + 1]
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return ""


def _help() -> str:
    lines = [f"  {name:<12} {found.title}" for name, found in methods().items()]
    aliases = textwrap.fill(
        f"also as papers call them: {', '.join(ALIASES)} (`ticketry list methods`)",
        80,
        initial_indent="  ",
        subsequent_indent="  ",
    )
    return "\n".join(
        [
            "usage: ticketry search METHOD --task TASK [...]     (ticketry search METHOD --help shows all options)",
            "       ticketry search --config run.toml [...]      (a run again, or a variation of it)",
            "",
            "methods:",
            *lines,
            "",
            aliases,
            "",
            "examples:",
            "  ticketry search iterative --task digits --rewind 3% --density 0.05",
            "  ticketry search imp --task fashion-mnist --levels 14 --recipe.length 10ep",
            "  ticketry search imp --task cifar10 --densities 0.5,0.2 --controls none --json",
            "  ticketry search imp --preset resnet-20-short --verify",
            "  ticketry search imp --task my_package.my_module:my_task --option width=64",
        ]
    )
