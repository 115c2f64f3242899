"""ticketry search METHOD: find tickets, train their controls, write a report; ticketry demo: run a small search."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from ticketry.cli.arguments import HELP_ALL, OutputOptions, option_names, parse, show_status, split_list
from ticketry.cli.results import make_interim_printer, print_evidence, print_run
from ticketry.errors import TicketryError, UsageError, needs
from ticketry.experiments.decoding import decode_settings
from ticketry.experiments.options import LabOptions, SearchOptions
from ticketry.experiments.run_file import decode_search_options, read_run_file, require_trust, upgrade_stored_settings
from ticketry.records.schema import as_json
from ticketry.search import ALIASES, Method, check_named_settings, method, methods
from ticketry.tasks.catalogue import experiment
from ticketry.tasks.facts import DATA_SETS
from ticketry.tasks.recipe import Recipe, recipe_from_dict

if TYPE_CHECKING:
    from ticketry.experiments.request import SearchRequest
    from ticketry.tasks.task import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchArguments(OutputOptions, SearchOptions):
    """Command-line arguments that are common to all commands that search for tickets."""

    preset: str = ""
    """Published experiment, see `ticketry list presets`; other options override it."""
    config: Path | None = None
    """Run file (TOML) with all options; options on the command line override it."""
    trust: bool = False
    """Trust the run file: import and run the code that it names, and open its files and folders."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Arguments(SearchArguments):
    verify: bool = False
    """Verify the sparsest ticket that looks like a winner (or the only one), or its procedure, with fresh seeds, as
    `ticketry verify` does."""
    bench: bool = False
    """Compile the sparsest ticket that looks like a winner, and time it beside dense engines, as `ticketry bench`
    does."""
    energy: Literal["meter", "estimate"] = "meter"
    """Energy of the run: meter (measured by the machine, or not reported), or estimate (on a machine without a meter,
    estimated by codecarbon from typical powers; needs the extra energy)."""


def main(words: Sequence[str]) -> int:
    """Run `ticketry search` and return its exit code."""
    if not words or words[0] in ("-h", "--help", HELP_ALL):
        print(_build_help())
        return 0 if words else 2
    chosen, arguments = read_arguments(words, command="search")
    if len(words) == 1 and not words[0].startswith("-"):  # probably unfinished: a search takes minutes
        raise UsageError(
            f"name what to train on: ticketry search {words[0]} --task digits, or another of `ticketry list tasks`"
            f" (ticketry search {words[0]} --help shows all options)"
        )
    return _run_search(chosen, arguments, shlex.join(["ticketry", "search", *words]))


def read_arguments(
    words: Sequence[str],
    *,
    command: str,
    default: str = "",
    base: type[SearchArguments] = _Arguments,
    extra: Sequence[Any] = (),
    description: str = "",
) -> tuple[Method, Any]:
    """Parse the command line of a command that searches for tickets; return the method and all options.

    Args:
        default: name of the method, if neither the words nor a run file name a method.
        extra: further options of the command, in the form of fields for `dataclasses.make_dataclass`.
    """
    named = bool(words) and not words[0].startswith("-")
    rest = list(words[1:] if named else words)
    given, source = option_names(rest), _read_early_options(rest)
    tables: dict[str, Any] = {}
    if source.config and source.preset:
        raise UsageError("a run file and a preset both name everything: give either --config or --preset")
    if source.config:
        store = source.store or LabOptions.store
        tables = read_run_file(Path(source.config))
        tables["settings"] = upgrade_stored_settings(tables.get("settings", {}), tables.get("method"), store)
        if "trust" not in given:
            require_trust(tables, {*given, *(["method"] if named else [])}, of=source.config, store=store)
    elif source.preset:
        tables = experiment(source.preset)
    name = words[0] if named else str(tables.get("method", default))
    if not name:
        raise UsageError(f"name a search method: ticketry {command} {'|'.join(methods())} …")
    chosen = method(name)
    check_named_settings(chosen, given)
    if _END_SETTINGS & given and "settings" in tables:
        tables["settings"] = {name: one for name, one in tables["settings"].items() if name not in _END_SETTINGS}
    about = description or f"{chosen.title}."
    if not description and HELP_ALL in rest:
        about += f"\n\n{chosen.description}"
    # Defaults come from the run file and the task, so that help shows the values in effect.
    what = "the run file" if source.config else "the preset"
    options = decode_search_options(tables, what)
    (settings,) = decode_settings(tables.get("settings", {}), chosen.Settings, what=f"{what}'s [settings]")
    here = SearchOptions(
        task=source.task or options.task,
        model=source.model or options.model,
        option=(*options.option, *source.option),
        target=source.target,
    )
    flat: Any = tyro.conf.OmitArgPrefixes  # the method's settings are --rate, not --settings.rate
    fields = [*extra, ("settings", flat[chosen.Settings]), ("recipe", Recipe)]
    kind: Any = dataclasses.make_dataclass("Search", fields, bases=(base,), frozen=True, kw_only=True)
    default = kind(settings=settings, recipe=_default_recipe(here, tables), **vars(options))
    prog = f"ticketry {command} {chosen.alias or chosen.name}"
    return chosen, parse(kind, rest, prog=prog, description=about, default=default)


_END_SETTINGS = frozenset(("levels", "density", "sparsity", "densities", "flops", "time", "bytes"))
"""Settings that say when a search ends: one of them on the command line replaces all of them in a run file."""


def _read_early_options(words: Sequence[str]) -> argparse.Namespace:
    """Parse only the options that other options' defaults depend on: run file, preset, store and task."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in ("--config", "--preset", "--store", "--task", "--model", "--target"):
        early.add_argument(flag, default="", nargs="?", const="")
    early.add_argument("--option", default=[], nargs="*", action="extend")
    found = early.parse_known_args(words)[0]
    found.option = tuple(part for word in found.option for part in split_list(word))
    return found


def _default_recipe(options: SearchOptions, tables: Mapping[str, Any]) -> Recipe:
    """Return the recipe in `tables`, the entries of a run file; if they have no recipe, return the task's."""
    if "recipe" in tables:
        return recipe_from_dict(tables["recipe"])
    if options.task in DATA_SETS.built_in:  # without torch, for --help
        data = DATA_SETS.get(options.task)
        return data.recipe_of(options.model or data.model)
    return build_task(options.task, options.model, options.task_options).recipe


def _run_search(chosen: Method, arguments: Any, command: str) -> int:
    from ticketry.cli.progress import Progress, SearchProgress
    from ticketry.experiments.request import with_measured_costs
    from ticketry.experiments.run import run_search

    request = request_from_arguments(chosen, arguments)
    with show_status(f"what {arguments.task} costs here") as say:
        request = with_measured_costs(request, arguments, say)
    ended: list[TicketryError] = []
    with SearchProgress(request) as live:
        run = run_search(
            request,
            arguments,
            command=command,
            energy=arguments.energy,
            on_point=live.on_point,
            on_event=live.on_event,
            on_ended=ended.append,
        )
    if arguments.verify and not ended:
        with Progress(f"verifying {run.name}") as progress:
            run.verify(on_event=progress.on_event, on_interim=make_interim_printer(progress))
    if arguments.bench and not ended:
        with show_status("timing") as say:
            run.bench(say=say)
    report = run.report()
    if arguments.json:
        found = {"verification": run.verification, "bench": run.timing}
        more = {name: as_json(one) for name, one in found.items() if one}
        print(json.dumps({**run.as_json(), "report": str(report), **more}), flush=True)
    else:
        print_run(run, report)
    if ended:  # last, so that the reason is the last line
        raise ended[0]
    if not arguments.json:
        print_evidence(run, verified=arguments.verify, timed=arguments.bench)
    return 0


def request_from_arguments(chosen: Method, arguments: Any) -> SearchRequest:
    """Return the request for a search with the method `chosen` and the parsed arguments."""
    from ticketry.experiments.request import build_request

    return build_request(
        chosen,
        build_task(arguments.task, arguments.model, arguments.task_options),
        arguments.settings,
        replicates=arguments.replicates,
        controls=arguments.controls,
        control_densities=arguments.control_densities,
        seeds=arguments.seeds,
        recipe=arguments.recipe,
        name=arguments.name,
    )


def build_task(name: str, model: str, options: Sequence[str]) -> Task:
    """Return the task with this name, network and options."""
    from ticketry.tasks import catalogue

    pairs = [option.partition("=") for option in options]
    if any(not separator for _, separator, _ in pairs):
        raise UsageError(f"option must be name=value, got {' '.join(options)}")
    return catalogue.get(name, model=model or None, options={key: value for key, _, value in pairs})


def _build_help() -> str:
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


DEMO_SEARCH = shlex.split("iterative --task digits --rewind 3% --density 0.05 --replicates 3 --verify --bench")

_NEEDED = ("matplotlib", "scipy", "sklearn", "llvmlite")
_DEMO = f"""\
A whole search on 1,797 real handwritten digits, in a minute or two: tickets, their controls, a verdict on the sparsest
promising one, its speed, and a report. It is `ticketry search {" ".join(DEMO_SEARCH)}`.

examples:
  ticketry demo
  ticketry demo --store /tmp/demo --json"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Demo:
    store: Path = Path(".ticketry")
    """Folder of all trainings."""
    json: bool = False
    """Print the result as one JSON object."""


def demo(words: Sequence[str]) -> int:
    """Run `ticketry demo` and return its exit code."""
    arguments: _Demo = parse(_Demo, words, prog="ticketry demo", description=_DEMO)
    for package in _NEEDED:  # now, and not at the step that asks for it
        needs(package, "demo", "the demo")

    return main([*DEMO_SEARCH, "--store", str(arguments.store), *(["--json"] if arguments.json else [])])
