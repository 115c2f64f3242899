"""Tables of engines, of layers and of how well structure fits them, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ticketry.cli.arguments import format_bytes

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.table import Table


_MINIMUM_WIDTH = 100
"""Of a table that goes into a file or a pipe."""


def console() -> Console:
    """Standard output: as wide as the terminal, or wide enough for the tables."""
    from rich.console import Console

    made = Console()
    return made if made.is_terminal else Console(width=max(made.width, _MINIMUM_WIDTH))


def engines_table(comparisons: Sequence[Mapping[str, Any]]) -> Group:
    """A row an engine, a column a batch: milliseconds of a call, and what is saved against the fastest dense one."""
    from rich.text import Text

    table = _batches_table(comparisons)
    names = list(dict.fromkeys(row["engine"] for one in comparisons for row in one["times"]))
    for name in names:
        cells = [_time_cell(one, name) for one in comparisons]
        sparse = any(row["sparse"] for one in comparisons for row in one["times"] if row["engine"] == name)
        table.add_row(Text(name, style="green" if sparse else ""), *cells)
    return _titled("time of a call, ms: median (quartiles over rounds); the fastest dense engine in bold", table)


def saved_table(comparisons: Sequence[Mapping[str, Any]]) -> Group:
    """Return a table of the time that each sparse engine saves, with its interval."""
    from rich.text import Text

    table = _batches_table(comparisons)
    for name in dict.fromkeys(saved["engine"] for one in comparisons for saved in one["saved"]):
        table.add_row(Text(name, style="green"), *(_saved_cell(one, name) for one in comparisons))
    against = [next((saved["against"] for saved in one["saved"]), "") for one in comparisons]
    table.add_row(Text("against", style="dim"), *(Text(name, style="dim") for name in against))
    sure = min((saved["confidence"] for one in comparisons for saved in one["saved"]), default=0)
    title = f"time saved against the fastest dense engine, %: median of the rounds [{100 * sure:.0f} % interval]"
    return _titled(title, table)


def layers_table(layers: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table of layers: kernel, density and time."""
    from rich.text import Text

    table = _table("layer kind kernel", "density rows ms share saved", "why")
    for layer in layers:
        cells = (
            layer["name"],
            layer["kind"],
            layer["kernel"] if layer["where"] == "engine" else "torch",
            "" if layer["density"] is None else f"{100 * layer['density']:.2f} %",
            layer["rows"],
            "" if layer["seconds"] is None else f"{1e3 * layer['seconds']:.3f}",
            "" if layer["share"] is None else f"{100 * layer['share']:.1f} %",
            _saved_of(layer),
            layer["why"],
        )
        table.add_row(*(Text(str(cell)) for cell in cells), style="" if layer["where"] == "engine" else "yellow")
    return table


def _saved_of(layer: Mapping[str, Any]) -> str:
    """Against the same engine where nothing is pruned, where that was measured."""
    dense = layer.get("dense_seconds")
    return f"{100 * (1 - layer['seconds'] / dense):.0f} %" if dense and layer["seconds"] is not None else ""


def fits_table(layers: Sequence[Mapping[str, Any]]) -> Group:
    """How well a structured mask fits the one it was made of: a row a layer, the last one of all together."""
    from rich.text import Text

    table = _table("layer", "rows_×_columns groups_×_rows before after coverage null random fill")
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
    return _titled("before, after: density; coverage of the kept magnitude, beside chance; fill: added. In %", table)


def curve_table(curve: Mapping[str, Any]) -> Group:
    """A row a density: time, the ideal, and what is saved."""
    table = _table("", "density ms ideal_ms saved,_% interval")
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
    return _titled(title, table)


def _time_cell(one: Mapping[str, Any], name: str) -> Any:
    from rich.text import Text

    row = next((row for row in one["times"] if row["engine"] == name), None)
    if row is None:
        return Text("")
    if row["seconds"] is None:
        return Text(row["why"], style="dim")
    text = f"{1e3 * row['seconds']:.3g} ({1e3 * row['low']:.3g} … {1e3 * row['high']:.3g})"
    return Text(text, style="bold" if name == one["fastest_dense"] else "")


def _saved_cell(one: Mapping[str, Any], name: str) -> Any:
    from rich.text import Text

    found = next((saved for saved in one["saved"] if saved["engine"] == name), None)
    if found is None:
        return Text("")
    low, high = 100 * found["low"], 100 * found["high"]
    style = "bold green" if low > 0 else "red" if high < 0 else ""
    return Text(f"{100 * found['saved']:.1f} [{low:.1f}, {high:.1f}]", style=style)


def _table(words: str, numbers: str = "", more: str = "") -> Table:
    """Columns of words, of numbers, and of words again, by their names; a ``_`` in a name is a space."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for names, right in ((words, False), (numbers, True), (more, False)):
        for name in names.split():
            table.add_column(name.replace("_", " "), justify="right" if right else "left", overflow="fold")
    return table


def _batches_table(comparisons: Sequence[Mapping[str, Any]]) -> Table:
    """A column a batch, beside the engines' names."""
    table = _table("engine", " ".join(f"batch_{one['batch']}" for one in comparisons))
    table.columns[0].no_wrap = True
    return table


def _titled(title: str, table: Table) -> Group:
    from rich.console import Group
    from rich.text import Text

    return Group(Text(title), table)


def show(record: Mapping[str, Any], *, layers: bool = True) -> None:
    """The tables of a record, on standard output."""
    out = console()
    curves = record.get("curves", [])
    comparisons = record.get("comparisons") or [curve["comparison"] for curve in curves]
    print("\n".join(_head(record, comparisons[0])))
    for curve in curves:
        out.print()
        out.print(curve_table(curve))
    if curves:
        return
    out.print()
    out.print(engines_table(comparisons))
    out.print()
    out.print(saved_table(comparisons))
    if layers:
        out.print()
        out.print(f"layers at batch {record['layers_batch']}, one thread")
        out.print(layers_table(record["layers"]))


def _head(record: Mapping[str, Any], one: Mapping[str, Any]) -> list[str]:
    machine = one["machine"]
    cores = "" if one["cores"] is None else f" (core{'s' if len(one['cores']) > 1 else ''} {_listed(one['cores'])})"
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
        batches = f"batches of {_listed(record['table_batches'])}"
        tables, dense = (format_bytes(record[name]) for name in ("weight_bytes", "dense_bytes"))
        weights = f"{tables} of tables for {batches}; dense weights {dense}"
        lines.append(f"engine   compiled in {record['compile_seconds']:.2f} s; {weights}")
    return lines


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
