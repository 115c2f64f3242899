"""Tables for a terminal: times of engines, times of layers, and how well a structure fits each layer's mask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ticketry.cli.arguments import format_bytes

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.table import Table


_MINIMUM_WIDTH = 100
"""Minimum width, in characters, of a table that is written to a file or a pipe."""


def make_console() -> Console:
    """Return a console for standard output, as wide as the terminal; for a file or pipe, wide enough for the tables."""
    from rich.console import Console

    made = Console()
    return made if made.is_terminal else Console(width=max(made.width, _MINIMUM_WIDTH))


def engines_table(comparisons: Sequence[Mapping[str, Any]]) -> Group:
    """Return a table of latencies in ms: one row for each engine, one column for each batch size."""
    from rich.text import Text

    table = _make_batch_table(comparisons)
    names = list(dict.fromkeys(row["engine"] for one in comparisons for row in one["times"]))
    for name in names:
        cells = [_format_time(one, name) for one in comparisons]
        sparse = any(row["sparse"] for one in comparisons for row in one["times"] if row["engine"] == name)
        table.add_row(Text(name, style="green" if sparse else ""), *cells)
    return _with_title("time of a call, ms: median (quartiles over rounds); the fastest dense engine in bold", table)


def time_saved_table(comparisons: Sequence[Mapping[str, Any]]) -> Group:
    """Return a table of the time in % that each sparse engine saves, with intervals; one column for each batch size."""
    from rich.text import Text

    table = _make_batch_table(comparisons)
    for name in dict.fromkeys(saved["engine"] for one in comparisons for saved in one["saved"]):
        table.add_row(Text(name, style="green"), *(_format_time_saved(one, name) for one in comparisons))
    against = [next((saved["against"] for saved in one["saved"]), "") for one in comparisons]
    table.add_row(Text("against", style="dim"), *(Text(name, style="dim") for name in against))
    sure = min((saved["confidence"] for one in comparisons for saved in one["saved"]), default=0)
    title = f"time saved against the fastest dense engine, %: median of the rounds [{100 * sure:.0f} % interval]"
    return _with_title(title, table)


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
    """Return the time in % that pruning a layer saves in the same engine; empty if it was not measured."""
    dense = layer.get("dense_seconds")
    return f"{100 * (1 - layer['seconds'] / dense):.0f} %" if dense and layer["seconds"] is not None else ""


def structure_fit_table(layers: Sequence[Mapping[str, Any]]) -> Group:
    """Return a table of how well a structured mask fits the original mask, by layer, and for all layers in the end."""
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
    return _with_title(
        "before, after: density; coverage of the kept magnitude, beside chance; fill: added. In %", table
    )


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
    return _with_title(title, table)


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
    """Return an empty table with the columns `words`, `numbers` (right-aligned), `more`; ``_`` in a name is a space."""
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


def _with_title(title: str, table: Table) -> Group:
    from rich.console import Group
    from rich.text import Text

    return Group(Text(title), table)


def print_timing(record: Mapping[str, Any], *, layers: bool = True) -> None:
    """Print the tables of a timing record; with `layers`, also the table of layers."""
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
