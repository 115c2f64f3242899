"""Prepare verdicts, verifications and stability analyses for display."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

from msgspec import structs

from ticketry.records.evidence import Curve, StabilityRecord, StabilityRow, VerifyRecord
from ticketry.records.network import DENSE, TICKET
from ticketry.records.run import OmittedControlAtLevel, RunRecord
from ticketry.records.verdict import Difference, Judgement, LevelVerdict
from ticketry.report.tables.masks import pick_evenly_spaced
from ticketry.report.tables.results import CONTROLS, Summary, summarise
from ticketry.report.wording import (
    NONE,
    Style,
    difference_unit,
    format_p_value,
    percent,
    role_name,
    short_metric_label,
)

NOISE = "noise"
"""Role in differences that stands for the ticket itself, trained with other seeds."""
MOST_LEVELS = 4
"""Largest number of levels of a stability analysis that are drawn."""


def verify_differences(verify: VerifyRecord) -> list[Difference]:
    """Return the ticket's mean differences to the dense network, each control, and itself under other seeds."""
    found = {one.role: one for one in verify.comparisons}
    if DENSE not in found:
        low, high = verify.interval or (None, None)
        found = {DENSE: Difference(role=DENSE, mean=verify.difference, low=low, high=high, p=verify.p), **found}
    rows = [found.pop(DENSE), *found.values()]
    if verify.noise is not None:
        rows.append(Difference(role=NOISE, mean=verify.noise.mean, low=verify.noise.low, high=verify.noise.high))
    return rows


def style_of_seed_metrics(verify: VerifyRecord) -> Style:
    """Return a number format for a verification, with as many decimals as the spread over seeds justifies."""
    summaries: list[Summary] = [summarise(one.values) for one in verify.networks]
    return Style.for_summaries(summaries, verify.task.metric.unit)


def singular_role_name(role: str) -> str:
    """Return the name of a role for a single network: ``ticket`` instead of ``tickets``."""
    return "ticket" if role == TICKET else role_name(role)


def seeds_needed_text(judged: Judgement) -> str:
    """Return how many more seeds would likely decide a verdict, as text; ``none`` if the verdict is decided."""
    if judged.decided:
        return "none"
    return "too many" if judged.more_seeds is None else f"about {judged.more_seeds:,}"


def missing_controls(record: RunRecord | VerifyRecord) -> list[tuple[str, str, str]]:
    """Return rows of three cells for controls that were not trained: control, reason, and an empty cell."""
    levels = [f", level {one.level}" if isinstance(one, OmittedControlAtLevel) else "" for one in record.left_out]
    return [(f"{role_name(one.role)}{at}", one.why, "") for one, at in zip(record.left_out, levels, strict=True)]


def verdict_with_most_comparisons(run: RunRecord) -> LevelVerdict:
    """Return the run's level verdict that compares tickets with the most networks."""
    return max(run.verdicts, key=lambda one: len(one.comparisons) + len(one.beside))


def verdict_reasons(run: RunRecord) -> list[tuple[str, str, str]]:
    """Return level, reasons and verdict of each level whose verdict has reasons."""
    return [
        (f"level {one.level}, {percent(one.density)} %", "; ".join(one.reasons), one.verdict)
        for one in run.verdicts
        if one.reasons
    ]


def means_by_role(one: LevelVerdict) -> dict[str, float]:
    """Return, by role, the mean difference between the tickets and each network that they are compared with."""
    return {each.role: each.mean for each in (*one.comparisons, *one.beside)}


def answer_about_controls(judged: Judgement) -> str:
    """Return whether tickets are better than every control, and names of unbeaten controls; a dash without controls."""
    if judged.better_than_controls is None or len(judged.comparisons) < 2:
        return NONE
    names = ", ".join(role_name(role) for role in judged.not_beaten)
    return f"{judged.better_than_controls}: {names}" if names else judged.better_than_controls


def verify_sentence(verify: VerifyRecord, style: Style) -> str:
    """Return a sentence that states a verification's mean difference to the dense network."""
    metric = verify.task.metric
    interval = f" ({style.format_interval(verify.interval)})" if verify.interval else ""
    side = "better" if verify.difference >= 0 else "worse"
    whose = "the ticket's" if verify.about == "ticket" else "its tickets'"
    return (
        f"Over {verify.n} paired seeds {whose} test {metric.words} is "
        f"{style.format_number(abs(verify.difference))}{difference_unit(metric)} {side}"
        f" than the dense network's{interval}."
    )


def verification_table_rows(verify: VerifyRecord, style: Style) -> list[tuple[str, str, str]]:
    """Return name, number and remark of each fact about a verification: answers, claim, seeds and noise floor."""
    noise = verify.noise
    number, remark = NONE, "not measured"
    if noise is not None and noise.sd is None:
        number, remark = style.format_number(noise.mean, sign=True), "the same ticket, other seeds"
    elif noise is not None and noise.sd is not None:
        number = f"± {style.format_number(noise.sd)}{difference_unit(verify.task.metric)}"
        remark = f"the same ticket, other seeds; sd of {noise.n} differences"
    analyses = f"interim analyses planned at {', '.join(map(str, verify.interim))} seeds" if verify.interim else ""
    skipped = f"the first {verify.after} fresh ones skipped" if verify.after else ""
    beaten = ", ".join(role_name(role) for role in verify.not_beaten)
    controls = f"not shown to beat {beaten}" if beaten else "each separately"
    answers = [
        ("As good as dense", verify.as_good_as_dense, verify.p_as_good, "worse by less than the margin"),
        ("Better than every control", verify.better_than_controls, verify.p_better, controls),
    ]
    if len(verify.comparisons) < 2:
        answers.pop()
    return [
        *(
            (name, word, f"{format_p_value(p)}; {detail}" if p is not None else detail)
            for name, word, p, detail in answers
            if word is not None
        ),
        (f"Claim: {verify.claim}", format_p_value(verify.p), f"at {percent(verify.confidence, 0)} % confidence"),
        ("Seeds", str(verify.n), "; ".join(filter(None, (analyses, skipped)))),
        ("Likely more seeds", seeds_needed_text(verify), "to decide with a probability of 80 %"),
        *([("Noise floor (A/A)", number, remark)] if verify.about == "ticket" else []),
    ]


Budget = tuple[str, tuple[float, ...], "int | None", "int | None", str]


def verify_budgets(verify: VerifyRecord) -> list[Budget]:
    """Return role, values, steps, parameters and remark of each network and reference of a verification."""
    budgets = [(one.role, one.values, one.budget, one.parameters, one.model) for one in verify.networks]
    return [*budgets, *((one.role, one.values, one.steps, None, one.note) for one in verify.references)]


def has_equal_budgets(verify: VerifyRecord) -> bool:
    return len({one.budget for one in verify.networks}) == 1


def barrier_height(row: StabilityRow) -> float | None:
    """Return the height of a network's error barrier on the test split; None if it was not measured."""
    curve = row.barrier
    return None if curve is None or math.isnan(curve.height) else curve.height


def study_densities(study: StabilityRecord) -> list[float]:
    """Return the mean densities of at most four levels, evenly spread over the analysis, densest first."""
    levels = sorted({row.level for row in study.rows if row.role != DENSE})
    return [_mean_density_of_level(study, level) for level in pick_evenly_spaced(levels, MOST_LEVELS)]


def _mean_density_of_level(study: StabilityRecord, level: int) -> float:
    return statistics.fmean(row.density for row in study.rows if row.level == level)


def study_roles(study: StabilityRecord) -> list[str]:
    """Return all roles of an analysis in order: tickets, usual controls, dense network, then other roles by name."""
    found = {row.role for row in study.rows}
    return [role for role in (TICKET, *CONTROLS, DENSE) if role in found] + sorted(found - {TICKET, DENSE, *CONTROLS})


def rows_at_density(study: StabilityRecord, density: float) -> list[StabilityRow]:
    """Return the rows of the level whose mean density is nearest to `density`, and the rows of dense networks."""
    levels = {row.level for row in study.rows if row.role != DENSE}
    level = min(levels, key=lambda level: abs(_mean_density_of_level(study, level) - density), default=0)
    return [row for row in study.rows if row.level == level or row.role == DENSE]


def sparsest_level_study(study: StabilityRecord) -> StabilityRecord:
    """Return an analysis with only its sparsest level and the dense networks, and with at most one barrier per row."""
    levels = study_densities(study)
    rows = rows_at_density(study, levels[-1]) if levels else study.rows
    kept = [structs.replace(row, barriers=(curve,) if (curve := row.barrier) else ()) for row in rows]
    return structs.replace(study, rows=tuple(kept))


def first_barrier(study: StabilityRecord) -> Curve | None:
    """Return an analysis's first barrier, whose split and recalibration are those of all drawn barriers."""
    return next((found for row in study.rows if (found := row.barrier) is not None), None)


_SHADES = 6


@dataclass(frozen=True)
class Heat:
    """A cell of a table: a distance, and the shade that shows how large it is."""

    value: float
    shade: int


@dataclass(frozen=True)
class HeatTable:
    """A table of mean distances, with a row for each layer and a column for each rewind step."""

    id: str
    title: str
    steps: list[int]
    rows: dict[str, list[Heat | None]]


def layer_distances(study: StabilityRecord) -> list[HeatTable]:
    """Return mean L2 distances of the sparsest tickets by layer: a table for pruning, and one for data order."""
    levels = study_densities(study)
    rows = [row for row in rows_at_density(study, levels[-1]) if row.role == TICKET and row.layers] if levels else []
    steps, tables = sorted({row.step for row in rows}), []
    for kind, title in (("pruning", "under pruning"), ("data_order", "under another data order")):
        found: dict[str, dict[int, list[float]]] = {}
        for row in rows:
            for layer in row.layers:
                if (number := getattr(layer, kind)) is not None:
                    found.setdefault(layer.name, {}).setdefault(row.step, []).append(number)
        means = {name: {at: statistics.fmean(those) for at, those in each.items()} for name, each in found.items()}
        largest = max((max(each.values()) for each in means.values()), default=0.0) or 1.0
        cells: dict[str, list[Heat | None]] = {}
        for name, each in means.items():
            shades = {step: int(_SHADES * max(value, 0) / largest + 0.5) for step, value in each.items()}
            cells[name] = [Heat(each[step], min(_SHADES, shades[step])) if step in each else None for step in steps]
        if cells:
            tables.append(HeatTable(kind.removeprefix("data_"), title, steps, cells))
    return tables


Reader = Callable[[StabilityRow], "float | None"]


@dataclass(frozen=True)
class Quantity:
    """A measured quantity to draw as a column of panels, with a solid line and possibly a dashed line."""

    name: str
    solid: Reader
    dashed: Reader | None = None


def stability_quantities(study: StabilityRecord) -> list[Quantity]:
    """Return the quantities that a stability record has data for."""
    name = study.task.metric.name
    unit = f" ({study.task.metric.unit})" if study.task.metric.unit else ""
    every = (
        Quantity(f"test {short_metric_label(study.task.metric)}", lambda row: row.value),
        Quantity(
            "L2 distance",
            lambda row: row.pruning.l2 if row.pruning else None,
            lambda row: row.data_order.l2 if row.data_order else None,
        ),
        Quantity(
            "angle (°)",
            lambda row: row.pruning.angle if row.pruning else None,
            lambda row: row.data_order.angle if row.data_order else None,
        ),
        Quantity(f"error barrier{unit if name == 'accuracy' else ''}", barrier_height),
    )
    return [
        one
        for one in every
        if any(reader(row) is not None for reader in (one.solid, one.dashed) if reader for row in study.rows)
    ]
