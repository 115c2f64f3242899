"""Searches for every combination that a TOML file names; an interrupted command resumes. See sweep.toml."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import ticketry as tk

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib


def combinations(table: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Every choice of one value a name."""
    return [dict(zip(table, values, strict=True)) for values in itertools.product(*table.values())]


def main(file: Path) -> None:
    """Run all, and print the best ticket of each by the validation split."""
    sweep = tomllib.loads(file.read_text(encoding="utf-8"))
    rows = []
    for options in combinations(sweep["vary"]):
        for recipe in combinations(sweep.get("vary_recipe", {})):
            run = tk.run(sweep["method"], recipe=recipe, store=sweep["store"], **sweep["common"], **options)
            best = max(run.tickets, key=lambda one: one.validation_value)
            rows.append((best.validation_value, {**options, **recipe}, best))
    for validation, chosen, best in sorted(rows, key=lambda row: -row[0]):
        told = "  ".join(f"{name}={value}" for name, value in chosen.items())
        print(f"validation {validation:.2f}  test {best.value:.2f}  density {best.density:.2f}  {told}")
    print(f"all in one page: ticketry report --all --store {sweep['store']}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
