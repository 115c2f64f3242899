"""Format numbers and names in the same way for figures, tables, sentences and the terminal."""

from __future__ import annotations

import json
import math
import statistics
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ticketry.records.metric import Metric, format_number
from ticketry.records.verdict import Task
from ticketry.report.tables.results import Results, Split, Summary

MINUS, NONE = "−", "–"
_UNPRINTABLE = frozenset(("Cc", "Cf", "Cs", "Cn", "Zl", "Zp"))
"""Unicode categories of characters that `printable` replaces: control characters, invisible formatting and the like."""
_ROLES = {
    "dense": "dense",
    "ticket": "tickets",
    "random_reinit": "random re-initialisation",
    "shuffled": "shuffled masks",
    "random_prune": "random pruning",
    "cyclic": "cyclic training",
    "cyclic_random": "cyclic training, random masks",
    "uniform": "random masks, uniform",
    "erk": "random masks, ERK",
    "small_dense": "small dense network",
    "dense_of_flops": "dense networks of equal cost",
    "dense_of_time": "dense networks of equal time",
    "dense_by_recipe": "dense, by the recipe",
    "dense_at_cost": "dense, at the whole cost",
    "dense_at_flops": "dense, at the same FLOPs",
}


@dataclass(frozen=True)
class Style:
    """Number format of a metric: its unit, and a fixed number of decimals for all numbers of a column."""

    decimals: int
    unit: str

    @classmethod
    def for_results(cls, results: Results, split: Split = "test") -> Style:
        """Return a style for a run's metric that shows two digits of the typical standard deviation."""
        summaries = [group.metric(split) for role in results.roles for group in results.groups_of_role(role)]
        return cls.for_summaries(summaries, results.run.task.metric.unit)

    @classmethod
    def for_summaries(cls, summaries: Sequence[Summary], unit: str) -> Style:
        """Return a style with as many decimals as the typical spread of `summaries` needs, at most seven digits."""
        spreads = [summary.sd for summary in summaries if summary.sd]
        largest = max((abs(summary.mean) for summary in summaries), default=1.0)
        digits, size = (2, statistics.median(spreads)) if spreads else (4, largest)
        decimals = digits - 1 - math.floor(math.log10(size)) if size > 0 else 2
        most = 6 - math.floor(math.log10(largest)) if 0 < largest < 1 else 6
        return cls(min(max(decimals, 0), most), unit)

    def format_number(self, value: float, sign: bool = False) -> str:
        """Format a number with the style's decimals and a true minus sign; if `sign`, positive numbers get a plus."""
        text = format_number(value, self.decimals, sign=sign)
        if float(text) == 0:
            text = text.lstrip("+-")
        return text.replace("-", MINUS)

    def format_summary(self, summary: Summary, sign: bool = False) -> str:
        """Format a mean with its spread: ``96.23 ± 0.41``, or ``483 [451, 498]`` for an interquartile mean."""
        return self.format_number(summary.mean, sign) + self.spread_text(summary)

    def spread_text(self, summary: Summary) -> str:
        """Format the spread that follows a mean: `` ± 0.41``, `` [451, 498]``, or the empty string if n is 1."""
        if summary.sd is None:
            return ""
        if summary.bounds is None:
            return f" ± {self.format_number(summary.sd)}"
        low, high = map(self.format_number, summary.bounds)
        return f" [{low}, {high}]"

    def format_interval(self, ends: tuple[float, float] | None) -> str:
        """Format an interval: ``+0.05 to +0.57``; a dash for None."""
        return (
            NONE
            if ends is None
            else f"{self.format_number(ends[0], sign=True)} to {self.format_number(ends[1], sign=True)}"
        )

    def format_with_count(self, summary: Summary) -> str:
        """Format a summary with unit and number of replicates: ``96.23 ± 0.41 % (n = 3)``."""
        unit = f" {printable(self.unit)}" if self.unit else ""
        return f"{self.format_summary(summary)}{unit} (n = {summary.n})"


def role_name(role: str) -> str:
    """Return the name of a role in plain words; for an unknown role, replace underscores by spaces."""
    kind, _, network = role.partition(":")
    if network and kind in _ROLES:  # a kind of dense networks, and its name
        return f"{_ROLES[kind]}: {network}"
    return _ROLES.get(role, role.replace("_", " "))


def metric_label(metric: Metric) -> str:
    """Return the name of a metric with its unit, such as ``accuracy (%)``."""
    return printable(f"{metric.words} ({metric.unit})" if metric.unit else metric.words)


def short_metric_label(metric: Metric) -> str:
    """Return the `metric_label` shortened to 40 letters, for the axes of figures."""
    return shorten_middle(metric_label(metric), 40)


def shorten_middle(name: str, most: int = 28) -> str:
    """Return a text on one line; if the text is longer than `most` letters, … replaces its middle."""
    name = printable(name).replace("\n", " ")
    return name if len(name) <= most else f"{name[: most // 2 - 4]}…{name[-most // 2 - 3 :]}"


def direction_text(metric: Metric) -> str:
    """Return a text that says in which direction a metric improves."""
    return "more is better" if metric.higher_is_better else "less is better"


def difference_unit(metric: Metric) -> str:
    """Return the unit of a difference in a metric: `` points`` if the metric is in per cent, otherwise empty."""
    return " points" if metric.unit == "%" else ""


def summary_label(metric: Metric) -> str:
    """Return the name of the statistic that summarises a metric over replicates."""
    if metric.summary == "iqm":
        return "interquartile mean [95 % interval]"
    return "mean ± standard deviation"


def percent(density: float, decimals: int | None = None) -> str:
    """Format a density in per cent, without the per cent sign: 100.0, 51.2, 6.9, 0.92, 0.018."""
    return f"{100 * density:.{density_decimals(density) if decimals is None else decimals}f}"


def removed_percent(density: float) -> str:
    """Format the removed share of weights in per cent; together with `percent`, the result adds up to 100."""
    decimals = density_decimals(density)
    return f"{max(0.0, 100 - float(percent(density, decimals))):.{decimals}f}"


def density_decimals(density: float) -> int:
    """Return the number of decimals of a density in per cent: one; below 1 %, as many as two digits need."""
    return 1 if density >= 0.01 or density == 0 else 1 - math.floor(math.log10(100 * density))


def factor_text(ratio: float) -> str:
    """Format a factor: 1.2, 18, 1,085."""
    return f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:,.0f}"


def format_p_value(p: float) -> str:
    """Format a p-value with its name: ``p = 0.031``, ``p < 0.0001``."""
    text = bare_p_value(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def bare_p_value(p: float | None) -> str:
    """Format a p-value without its name: ``0.031``, ``< 0.0001``; a dash for None."""
    if p is None:
        return NONE
    if p < 0.0001:
        return "< 0.0001"
    return f"{p:.4f}" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def probability_text(probability: float | None) -> str:
    """Format a probability: ``0.93``, ``> 0.999``, ``< 0.001``; a dash for None."""
    if probability is None:
        return NONE
    if probability > 0.999:
        return "> 0.999"
    if probability < 0.001:
        return "< 0.001"
    return f"{probability:.3f}" if probability > 0.99 or probability < 0.01 else f"{probability:.2f}"


def short_count(number: float) -> str:
    """Format a count with at most three digits: 430, 4.3k, 64k, 1.2M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"


def format_duration(seconds: float) -> str:
    """Format a time in seconds: ``42 s``, ``11 min 30 s``, ``3 h 05 min``."""
    whole = round(seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


def json_text(item: Any) -> str:
    """Format a JSON value on one line: text unchanged, a list with commas, an object as JSON."""
    if isinstance(item, str):
        return printable(item) or NONE
    if isinstance(item, bool) or item is None:
        return {True: "yes", False: "no", None: NONE}[item]
    if isinstance(item, list | tuple):
        return ", ".join(json_text(part) for part in item) or NONE
    if isinstance(item, Mapping):
        return printable(json.dumps(item, ensure_ascii=False, default=str))
    return f"{item:,}" if isinstance(item, int) else f"{item!r}"


def readable_text(item: Any) -> str:
    """Format a value of a record; a flat object becomes ``torch 2.13.0, openvino 2026.4.1`` instead of JSON."""
    if isinstance(item, Mapping) and not any(isinstance(part, Mapping | list | tuple) for part in item.values()):
        return ", ".join(f"{name} {json_text(part)}" for name, part in item.items()) or NONE
    return json_text(item)


def retained_percent(density: float | None) -> str:
    """Format a layer's density in per cent: ``51.2``, ``0`` for an empty layer, a dash for None."""
    return NONE if density is None else percent(density) if density > 0 else "0"


def share_percent(share: float | None) -> str:
    """Format a share in per cent with one decimal; a dash for None."""
    return NONE if share is None else f"{100 * share:.1f}"


def share_of_all_parameters(task: Task, density: float) -> str:
    """Format the retained share of all parameters in per cent; parameters that are never pruned count as retained."""
    if task.parameters == 0:
        return NONE
    return percent((density * task.prunable + task.parameters - task.prunable) / task.parameters)


def format_thousands(number: float | None) -> str:
    """Format a count with commas; a dash for None."""
    return NONE if number is None else f"{number:,}"


def printable(text: str) -> str:
    """Return a text in which characters that could control a terminal or break XML are replaced."""
    if text.isprintable():
        return text
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) in _UNPRINTABLE and c not in "\n\t" else c for c in text
    )


def align_columns(rows: Sequence[Sequence[str]], justify: Callable[[str, int], str] = str.ljust) -> list[str]:
    """Return the rows of a table as lines of text; `justify` pads each cell to the width of its column."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(justify, row, widths)).rstrip() for row in rows]


def cost_text(number: float, measure: str) -> str:
    """Format a cost with the unit of `measure`: ``1.24 TFLOP``, ``0.42 s``, ``3.1 MiB``, ``1.2 Wh``."""
    if measure == "seconds":
        return f"{number:,.2f} s" if number < 100 else f"{number:,.0f} s"
    if measure == "memory":
        return _format_with_largest_unit(number, 1024.0, ("B", "KiB", "MiB", "GiB", "TiB"))
    if measure == "energy":
        return _format_with_largest_unit(1e3 * number, 1e3, ("mWh", "Wh", "kWh"))
    return _format_with_largest_unit(number, 1e3, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP"))


def ratio_text(number: float) -> str:
    """Format a cost relative to the dense network: ``0.48``, ``1.00``, ``12.3``."""
    return f"{number:.2f}" if number < 9.995 else f"{number:,.1f}"


def _format_with_largest_unit(number: float, step: float, units: Sequence[str]) -> str:
    """Format a number with three digits in the largest fitting unit; each of `units` is `step` times the one before."""
    power = 0
    while number >= 0.9995 * step and power < len(units) - 1:
        number, power = number / step, power + 1
    return f"{number:.3g} {units[power]}" if number < 999.5 else f"{number:,.0f} {units[power]}"
