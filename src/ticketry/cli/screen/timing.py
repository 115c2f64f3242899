"""What an engine takes beside others, in tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ticketry.cli.arguments import format_bytes
from ticketry.cli.screen.engine_tables import console, curve_table, engines_table, layers_table, saved_table


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
