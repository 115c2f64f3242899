"""Print the results of searches, verifications, timings and structures; suggest the next verification."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ticketry.cli.arguments import format_bytes
from ticketry.errors import TrustError
from ticketry.evidence.verdict import seeds_for_verification
from ticketry.experiments.options import LabOptions
from ticketry.experiments.run_file import read_run_file, require_trust
from ticketry.records.network import TICKET
from ticketry.records.run import RunRecord
from ticketry.records.schema import as_json
from ticketry.records.verdict import LevelVerdict

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.table import Table

    from ticketry.cli.progress import Progress
    from ticketry.evidence.verdict import Verdict
    from ticketry.experiments.run import Run
    from ticketry.records.evidence import VerifyRecord


def make_interim_printer(progress: Progress) -> Callable[[Verdict], None]:
    """Return a function that prints an interim verdict (before all seeds are trained) above the progress bars."""
    return lambda made: progress.say(f"{made.n} seeds: {made.reasons[0]}")


def summarise_verification(record: VerifyRecord) -> list[str]:
    """Return a verification's result as lines of text, with as many decimals as the spread over seeds justifies."""
    from ticketry.report.tables.evidence import style_of_seed_metrics
    from ticketry.report.wording import role_name

    style = style_of_seed_metrics(record)
    margin = f"{round(record.margin, style.decimals + 2):g}"
    metric, task = record.task.metric, record.task
    unit = metric.unit and f" {metric.unit}"
    points = " points" if metric.unit == "%" else unit
    seeds = f"{record.n} seed{'' if record.n == 1 else 's'}"
    budgets = {network.role: network.budget for network in record.networks}
    steps = f"{budgets['ticket']:,} steps for every network"
    if budgets["dense"] != budgets["ticket"]:
        steps += f", {budgets['dense']:,} for the dense one"
    first = f"ticket   {record.ticket}"
    if record.about == "procedure":
        first = f"procedure {record.method}, the whole search with every seed, as in {record.run or record.ticket}"
    lines = [
        first,
        f"         {task.title}, {100 * record.density:.2f} % of {task.prunable:,} prunable"
        f" weights ({record.kept:,} kept); {steps}",
        f"verdict  {record.verdict.upper()}  ({record.claims_of}; claim: {record.claim}; margin"
        f" {margin}{points}, confidence {100 * record.confidence:g} %, {seeds}; p = {record.p:.2g})",
    ]
    if record.answers:
        lines.append(f"         {record.answers}")
    values = {network.role: network.values for network in record.networks}

    def format_row(name: str, of: Sequence[float]) -> str:
        return f"  {name:<26} {style.format_number(fmean(of)):>8}{unit}"

    for compared in record.comparisons:
        role, interval = compared.role, ""
        if compared.low is not None and compared.high is not None:
            interval = (
                f"  [{style.format_number(compared.low, sign=True)}, {style.format_number(compared.high, sign=True)}]"
            )
        shown = f"ticket {style.format_number(compared.mean, sign=True)}{interval}"
        lines.append(f"{format_row(role_name(role), values[role])}   {shown}")
    lines.append(format_row("ticket", values["ticket"]))
    if noise := record.noise:
        spread = "" if noise.sd is None else f", standard deviation {style.format_number(noise.sd)}"
        shown = f"ticket {style.format_number(noise.mean, sign=True)}{spread}"
        lines.append(f"{format_row('ticket, other seeds (A/A)', noise.values)}   {shown}")
    for reference in record.references:
        lines.append(
            f"{format_row(role_name(reference.role), reference.values)}   {reference.steps:,} steps, shown only"
        )
    lines += [f"left out {one.role}: {one.why}" for one in record.left_out]
    if not record.decided:
        more = record.more_seeds
        lines.append("         " + (f"about {more} more seeds would likely decide" if more else record.reasons[-1]))
    cost = record.cost
    lines.append(f"cost     {cost.segments_trained} segments trained of {cost.segments_asked} asked for")
    return lines


_PASSED_ON = ("data", "workers", "on", "precision", "devices", "parallel", "norms")
"""Options that a verification takes from the command line in a search's record, as the record lacks them."""


def suggestion_lines(record: RunRecord, run_file: Path) -> list[str]:
    """Return lines that suggest verifying an undecided level (tickets of one density); empty if all are decided.

    The suggested level is the sparsest one whose mean is at most the margin worse than the dense mean. If no level is
    that good, the level with the best mean is suggested.

    Args:
        record: record of the run, with the verdicts of its levels.
        run_file: run file of the run, which shows whether the command needs ``--trust``.
    """
    undecided = [one for one in record.verdicts if not one.decided]
    if not undecided:
        return []
    close = [one for one in undecided if one.difference >= -one.margin]
    level = min(close, key=lambda one: one.density) if close else max(undecided, key=lambda one: one.difference)
    seeds = seeds_for_verification(level)
    at = f"level {level.level} ({100 * level.density:.3g} % of the weights)"
    first = f"undecided at {len(undecided)} of {len(record.verdicts)} levels"
    if seeds is None:
        return [f"decide   {first}; at {at} no number of seeds up to 1,000 is likely to decide"]
    return [
        f"decide   {first}; about {seeds} fresh seeds are likely to decide {at}:",
        f"         {_verify_command(record, level, seeds, run_file)}",
    ]


def _verify_command(record: RunRecord, level: LevelVerdict, seeds: int, run_file: Path) -> str:
    from ticketry.evidence.comparison import INTERIM

    words = ["ticketry", "verify", record.name, "--density", f"{level.density:.4g}", "--about", "procedure"]
    if level.claim == "matches":
        words += ["--claim", "matches", "--controls", "none"]
    if seeds > INTERIM[-1]:
        words += ["--interim", f"{-(-seeds // 2)},{seeds}"]
    if record.store and record.store != str(LabOptions.store):
        words += ["--store", record.store]
    words += recorded_lab_options(record)
    return shlex.join([*words, *(["--trust"] if needs_trust(run_file, record.store) else [])])


def recorded_lab_options(record: RunRecord) -> list[str]:
    """Return the command-line options, except ``--store``, that reproduce a run's trainings bit for bit."""
    environment = record.environment
    usual = {"device": ("cpu", None), "kernels": ("dense", None), "threads": (1, None)}
    found = {name: environment.get("threads_per_segment" if name == "threads" else name) for name in usual}
    words = [word for name, value in found.items() if value not in usual[name] for word in (f"--{name}", str(value))]
    try:
        said = shlex.split(record.command)
    except ValueError:  # not a command line: written by hand
        said = []
    for name in _PASSED_ON:
        flag = f"--{name}"
        for index, word in enumerate(said):
            if word == flag and index + 1 < len(said):
                words += [flag, said[index + 1]]
            elif word.startswith(f"{flag}="):
                words.append(word)
    return words


def needs_trust(run_file: Path, store: str) -> bool:
    """Return whether a run file names user code or files, so that repeating the run needs ``--trust``."""
    try:
        require_trust(read_run_file(run_file), (), of=str(run_file), store=store)
    except TrustError:
        return True
    return False


_NO_WINNER = "{}  no level looks like a winner on the validation split, so no ticket was {}"
_NAME_ONE = "; ticketry verify {} --density D{} does it for one that you name"


def print_run(run: Run, report: Path) -> None:
    """Print results per density, verdict and costs of a run, and suggest the next commands."""
    from rich.console import Console

    from ticketry.report import (
        cost_lines,
        pruning_moment_lines,
        summary_lines,
        summary_table,
        verdict_line,
        verdict_lines,
    )

    console, record, folder = Console(), run.record, run.path
    if console.is_terminal:
        console.print(summary_table(record, console.width))
        console.print(verdict_line(record), markup=False, highlight=False)
    else:  # rich would cut the table to 80 columns
        print("\n".join([*summary_lines(record), "", verdict_line(record)]))
    if verdicts := verdict_lines(record):
        print("\n".join(["", *verdicts]))
    if costs := cost_lines(record):
        print("\n".join(["", *costs]))
    tickets, where = _describe_ticket_folders(run)
    lines = [
        "",
        *(f"left out {one.role} at level {one.level}: {one.why}" for one in record.left_out),
        *(f"pruned   {line}" for line in pruning_moment_lines(record)),
        *(f"cut      {line}" for line in _pruned_gate_lines(record)),
        f"tickets  {where}",
        f"report   {report}",
        *(f"log      {line}" for line in run.logs),
        f"again    {_format_repeat_command(folder / 'run.toml', record)}",
        *suggestion_lines(record, folder / "run.toml"),
        f"next     ticketry list tickets{_store_option(record.store)}" + (", or in Python:" if tickets else ""),
        *(f"         tk.Ticket.load({path!r}).apply(model, 'trained')" for path in tickets[-1:]),
    ]
    print("\n".join(lines))
    sys.stdout.flush()


def print_evidence(run: Run, *, verified: bool, timed: bool) -> None:
    """Print the results of a run's verification if `verified`, and of its timing if `timed`."""
    if verified:
        none = _NO_WINNER.format("verdict", "verified") + _NAME_ONE.format(run.name, _store_option(run.record.store))
        print("\n".join(summarise_verification(run.verification) if run.verification else [none]))
    if timed and run.timing:
        print()
        print_timing(as_json(run.timing), layers=False)
    elif timed:
        print(_NO_WINNER.format("speed  ", "timed"))


def _pruned_gate_lines(record: RunRecord) -> list[str]:
    """Return a line for each ticket whose trained gates (soft masks) kept too many weights and were pruned further."""
    return [
        f"replicate {one.replicate} level {one.level}: no s0 leaves {100 * one.cut_to:.3g} %; the nearest leaves"
        f" {100 * one.density:.3g} %, and the gates with the largest values were kept"
        for one in record.rounds
        if one.cut_to is not None
    ]


def _describe_ticket_folders(run: Run) -> tuple[list[str], str]:
    """Return the folders of a run's tickets, and a text for the user that describes them."""
    found = sorted(str(point.ticket) for point in run.record.points if point.role == TICKET and point.ticket)
    folders = f"{len(found)} folder{'' if len(found) == 1 else 's'}"
    missing = len(run.tickets) - len(found)
    if not missing:
        return found, f"{run.path / 'tickets'} ({folders})"
    why = f"{missing} without weights, which a bundle left out: ticketry store pack --weights packs them"
    return found, f"{run.path / 'tickets'} ({folders}; {why})" if found else f"none in a folder ({why})"


def _store_option(store: str) -> str:
    """Return the option ``--store`` for a store; empty for the default store."""
    return "" if store == str(LabOptions.store) else f" --store {shlex.quote(store)}"


def _format_repeat_command(file: Path, record: RunRecord) -> str:
    """Return the command that repeats a run from its run file `file`."""
    arithmetic = {name: record.environment.get(name) for name in ("kernels", "precision", "device")}
    arithmetic["threads"] = record.environment.get("threads_per_segment")
    left_out = {"device": "cpu", "threads": 1}  # also omitted in a run file
    said = read_run_file(file)  # one of an older version lacks them
    chosen = "".join(
        f" --{name} {word}"
        for name, word in arithmetic.items()
        if word and name not in said and word != left_out.get(name)
    )
    place, named = shlex.quote(record.store), shlex.quote(str(file))
    trust = " --trust" if needs_trust(file, record.store) else ""
    return f"ticketry search --config {named} --store {place}{chosen}{trust}"


_MINIMUM_WIDTH = 100
"""Minimum width, in characters, of a table that is written to a file or a pipe."""


def make_console() -> Console:
    """Return a console for standard output, as wide as the terminal; for a file or pipe, wide enough for the tables."""
    from rich.console import Console

    made = Console()
    return made if made.is_terminal else Console(width=max(made.width, _MINIMUM_WIDTH))


def engines_table(comparisons: Sequence[Mapping[str, Any]]) -> Group:
    """Return a table of latencies in ms, with a row for each engine and a column for each batch size."""
    from rich.text import Text

    table = _make_batch_table(comparisons)
    names = list(dict.fromkeys(row["engine"] for one in comparisons for row in one["times"]))
    for name in names:
        cells = [_format_time(one, name) for one in comparisons]
        sparse = any(row["sparse"] for one in comparisons for row in one["times"] if row["engine"] == name)
        table.add_row(Text(name, style="green" if sparse else ""), *cells)
    return _add_title("time of a call, ms: median (quartiles over rounds); the fastest dense engine in bold", table)


def time_saved_table(comparisons: Sequence[Mapping[str, Any]]) -> Group:
    """Return a table of the time in % that each sparse engine saves against dense, with a column per batch size."""
    from rich.text import Text

    table = _make_batch_table(comparisons)
    for name in dict.fromkeys(saved["engine"] for one in comparisons for saved in one["saved"]):
        table.add_row(Text(name, style="green"), *(_format_time_saved(one, name) for one in comparisons))
    against = [next((saved["against"] for saved in one["saved"]), "") for one in comparisons]
    table.add_row(Text("against", style="dim"), *(Text(name, style="dim") for name in against))
    sure = min((saved["confidence"] for one in comparisons for saved in one["saved"]), default=0)
    title = f"time saved against the fastest dense engine, %: median of the rounds [{100 * sure:.0f} % interval]"
    return _add_title(title, table)


def layers_table(layers: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table with a row for each layer: its kernel, density and time."""
    from rich.text import Text

    table = _make_table("layer kind kernel", "density rows ms share saved", "why")
    for layer in layers:
        cells = (
            layer["name"],
            layer["kind"],
            layer["kernel"] if layer["where"] == "engine" else "torch",
            "" if layer["density"] is None else f"{100 * layer['density']:.2f} %",
            layer["rows"],
            "" if layer["seconds"] is None else f"{1e3 * layer['seconds']:.3f}",
            "" if layer["share"] is None else f"{100 * layer['share']:.1f} %",
            _format_layer_saving(layer),
            layer["why"],
        )
        table.add_row(*(Text(str(cell)) for cell in cells), style="" if layer["where"] == "engine" else "yellow")
    return table


def _format_layer_saving(layer: Mapping[str, Any]) -> str:
    """Return the time in % that pruning saves in a layer; empty if the layer was not timed without pruning."""
    dense = layer.get("dense_seconds")
    return f"{100 * (1 - layer['seconds'] / dense):.0f} %" if dense and layer["seconds"] is not None else ""


def structure_fit_table(layers: Sequence[Mapping[str, Any]]) -> Group:
    """Return a table of how well a structured mask fits the original mask; the last row is for all layers together."""
    from rich.text import Text

    table = _make_table("layer", "rows_×_columns groups_×_rows before after coverage null random fill")
    for number, layer in enumerate(layers, start=1):
        last = number == len(layers)
        shares = ("density_before", "density_after", "coverage", "null_coverage", "random_coverage", "fill")
        cells = [
            "" if last else f"{layer['rows']} × {layer['columns']}",
            "" if last else f"{layer['groups']} × {layer['rows_per_group']}",
            *("" if layer[name] is None else f"{100 * layer[name]:.1f}" for name in shares),
        ]
        if last:
            table.add_section()
        table.add_row(Text(layer["name"].removesuffix(".weight")), *map(Text, cells))
    return _add_title("before, after: density; coverage of the kept magnitude, beside chance; fill: added. In %", table)


def density_curve_table(curve: Mapping[str, Any]) -> Group:
    """Return a table with a row for each density: measured latency, ideal latency, and time saved."""
    table = _make_table("", "density ms ideal_ms saved,_% interval")
    for point in curve["points"]:
        table.add_row(
            f"{100 * point['density']:.1f} %",
            f"{1e3 * point['seconds']:.3f}",
            f"{1e3 * point['ideal']:.3f}",
            f"{100 * point['saved']:.1f}",
            f"[{100 * point['saved_low']:.1f}, {100 * point['saved_high']:.1f}]",
        )
    one = curve["comparison"]
    title = f"batch {one['batch']}, masks {curve['pattern']}; ideal: density times that of {one['fastest_dense']}"
    return _add_title(title, table)


def _format_time(one: Mapping[str, Any], name: str) -> Any:
    from rich.text import Text

    row = next((row for row in one["times"] if row["engine"] == name), None)
    if row is None:
        return Text("")
    if row["seconds"] is None:
        return Text(row["why"], style="dim")
    text = f"{1e3 * row['seconds']:.3g} ({1e3 * row['low']:.3g} … {1e3 * row['high']:.3g})"
    return Text(text, style="bold" if name == one["fastest_dense"] else "")


def _format_time_saved(one: Mapping[str, Any], name: str) -> Any:
    from rich.text import Text

    found = next((saved for saved in one["saved"] if saved["engine"] == name), None)
    if found is None:
        return Text("")
    low, high = 100 * found["low"], 100 * found["high"]
    style = "bold green" if low > 0 else "red" if high < 0 else ""
    return Text(f"{100 * found['saved']:.1f} [{low:.1f}, {high:.1f}]", style=style)


def _make_table(words: str, numbers: str = "", more: str = "") -> Table:
    """Return a table without rows; its columns are named by `words`, `numbers` (right-aligned) and `more`.

    Each argument lists names, separated by spaces; ``_`` stands for a space inside a name.
    """
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for names, right in ((words, False), (numbers, True), (more, False)):
        for name in names.split():
            table.add_column(name.replace("_", " "), justify="right" if right else "left", overflow="fold")
    return table


def _make_batch_table(comparisons: Sequence[Mapping[str, Any]]) -> Table:
    """Return an empty table with a column for the engines' names and a column for each batch size."""
    table = _make_table("engine", " ".join(f"batch_{one['batch']}" for one in comparisons))
    table.columns[0].no_wrap = True
    return table


def _add_title(title: str, table: Table) -> Group:
    from rich.console import Group
    from rich.text import Text

    return Group(Text(title), table)


def print_timing(record: Mapping[str, Any], *, layers: bool = True) -> None:
    """Print the tables of a timing record; if `layers`, also print the table of layers."""
    out = make_console()
    curves = record.get("curves", [])
    comparisons = record.get("comparisons") or [curve["comparison"] for curve in curves]
    print("\n".join(_header_lines(record, comparisons[0])))
    for curve in curves:
        out.print()
        out.print(density_curve_table(curve))
    if curves:
        return
    out.print()
    out.print(engines_table(comparisons))
    out.print()
    out.print(time_saved_table(comparisons))
    if layers:
        out.print()
        out.print(f"layers at batch {record['layers_batch']}, one thread")
        out.print(layers_table(record["layers"]))


def _header_lines(record: Mapping[str, Any], one: Mapping[str, Any]) -> list[str]:
    machine = one["machine"]
    cores = (
        "" if one["cores"] is None else f" (core{'s' if len(one['cores']) > 1 else ''} {_join_numbers(one['cores'])})"
    )
    threads = f"{one['threads']} thread{'s' if one['threads'] > 1 else ''}{cores}"
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        f"ticket   {record['ticket']}",
        f"         {record['model']} on {record['task']}, {100 * record['density']:.2f} % of {record['prunable']:,}"
        f" prunable weights kept",
        f"timed    {one['precision']}, {threads}, {'cold' if one['cold'] else 'hot'} caches, {one['rounds']} rounds,"
        f" {one['clock']} time",
        f"machine  {machine['processor']}, {machine['cores']} cores, load {machine['load']}; {versions}",
    ]
    if "weight_bytes" in record:
        batches = f"batches of {_join_numbers(record['table_batches'])}"
        tables, dense = (format_bytes(record[name]) for name in ("weight_bytes", "dense_bytes"))
        weights = f"{tables} of tables for {batches}; dense weights {dense}"
        lines.append(f"engine   compiled in {record['compile_seconds']:.2f} s; {weights}")
    return lines


def _join_numbers(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
