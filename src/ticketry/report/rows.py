"""The data behind the page as flat rows with plain column names: for CSV files and the links beside figures."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence

from ticketry.report.aggregate import Results, layer_profiles
from ticketry.report.evidence_record import StabilityStudy, Verify
from ticketry.report.figures.cost import cost_points
from ticketry.report.figures.forest import differences
from ticketry.report.figures.known import known_points
from ticketry.report.matched import matches
from ticketry.report.phases import PHASES
from ticketry.report.record import TICKET, Point, Run
from ticketry.report.speed_record import Speed
from ticketry.report.spent import ENERGY, MEASURES, relative, spent, spent_points
from ticketry.report.subject import Subject, rewind_of

Cell = str | int | float | None
Rows = list[dict[str, Cell]]


def csv_text(rows: Sequence[Mapping[str, Cell]]) -> str:
    """The rows as CSV with a header; floats in full, so that they read back the same; None is empty."""
    if not rows:
        return ""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def point_rows(runs: Sequence[Results]) -> Rows:
    """Every trained network of every run."""
    return [
        {
            "run": results.run.name,
            "method": results.run.method,
            "task": results.run.task.name,
            "rewind": rewind_of(results),
            "replicate": point.replicate,
            "level": point.level,
            "role": point.role,
            "density": point.density,
            "metric": results.run.task.metric.name,
            "unit": results.run.task.metric.unit,
            "validation": point.validation,
            "test": point.test,
            "steps": point.steps,
            "budget": point.budget,
            "seconds": point.seconds,
            "key": point.key,
            **_phase_cells(results.run, point),
            **_moment_cells(point),
        }
        for results in runs
        for point in results.run.points
    ]


def _phase_cells(run: Run, point: Point) -> dict[str, Cell]:
    """Steps, FLOPs, seconds and bytes of each phase, and the network's share of the run's energy."""
    phases = point.phases.each if point.phases else {}
    cells: dict[str, Cell] = {}
    for name in PHASES:
        for part in ("steps", "flops", "seconds", "memory"):
            cells[f"phase_{name}_{part}"] = getattr(phases[name], part) if name in phases else None
    return {**cells, "energy_wh": spent(run, point, ENERGY)}


def _moment_cells(point: Point) -> dict[str, Cell]:
    moment = point.moment
    return {
        "pruned_at_step": moment.step if moment else None,
        "pruned_detected": int(moment.detected) if moment else None,
        "pruned_detector": moment.detector if moment else None,
        "pruned_threshold": moment.threshold if moment else None,
    }


def look_rows(runs: Sequence[Results]) -> Rows:
    """Every look of every detector: what it saw, and what it compared with the threshold."""
    return [
        {
            "run": results.run.name,
            "replicate": point.replicate,
            "level": point.level,
            "density": point.density,
            "detector": point.moment.detector,
            "step": step,
            "value": value,
            "compared": compared,
            "threshold": point.moment.threshold,
            "pruned": int(step == point.moment.step),
        }
        for results in runs
        for point in results.run.points
        if point.role == TICKET and point.moment
        for (step, value), (_, compared) in zip(point.moment.looks, point.moment.compared, strict=True)
    ]


def spent_rows(runs: Sequence[Results]) -> Rows:
    """The whole training of each level as a multiple of the dense network's, mean over replicates."""
    return [
        {
            "run": results.run.name,
            "level": point.level,
            "density": point.density,
            "n": len(point.values),
            "test": point.metric,
            "least": min(point.values),
            "largest": max(point.values),
            **{f"{measure.lower()}_times_dense": point.times_dense.get(measure) for measure in MEASURES},
            "energy_wh": point.watt_hours,
        }
        for results in runs
        for point in spent_points(results)
    ]


def method_rows(subject: Subject) -> Rows:
    """The tables by method: runs at one density, see `matched`."""
    rows: Rows = []
    for task, indices in subject.by_task.items():
        for match in matches([subject.runs[index] for index in indices]):
            for place, group in match.members:
                results = subject.runs[indices[place]]
                summary, dense = group.metric(), results.dense
                difference = group.minus(dense) if dense else None
                ratios = {name: relative(results, group, name) for name in MEASURES}
                rows.append(
                    {
                        "task": task.name,
                        "model": task.model,
                        "density_asked": match.density,
                        "run": results.run.name,
                        "label": subject.labels[indices[place]],
                        "method": results.run.method,
                        "level": group.level,
                        "density": group.density,
                        "mean": summary.mean,
                        "sd": summary.sd,
                        "n": summary.n,
                        "minus_dense": difference.mean if difference else None,
                        **{f"{name.lower()}_times_dense": one.mean if one else None for name, one in ratios.items()},
                    }
                )
    return rows


def summary_rows(runs: Sequence[Results]) -> Rows:
    """Mean, spread and 95 % interval of the test metric of every role at every level."""
    rows: Rows = []
    for results in runs:
        for group in (group for role in results.roles for group in results.of_role(role)):
            summary = group.metric()
            low, high = summary.interval or (None, None)
            rows.append(
                {
                    "run": results.run.name,
                    "role": group.role,
                    "level": group.level,
                    "density": group.density,
                    "n": summary.n,
                    "statistic": group.summary,
                    "mean": summary.mean,
                    "sd": summary.sd,
                    "low": low,
                    "high": high,
                }
            )
    return rows


def layer_rows(results: Results) -> Rows:
    """The density of each layer at each level, mean over replicates."""
    return [
        {
            "run": results.run.name,
            "level": profile.level,
            "density": profile.density,
            "layer": name,
            "kept_share": share,
        }
        for profile in layer_profiles(results)
        for name, share in profile.layers.items()
    ]


def round_rows(runs: Sequence[Results]) -> Rows:
    """Every training with gates."""
    return [
        {
            "run": results.run.name,
            "replicate": one.replicate,
            "level": one.level,
            "used": int(one.used),
            "round": one.number,
            "init": one.init,
            "penalty": one.penalty,
            "steps": one.steps,
            "density": one.density,
            "validation_hard": one.hard,
            "validation_soft": one.soft,
            **{f"gates_{number + 1}_of_{len(one.histogram)}": count for number, count in enumerate(one.histogram)},
        }
        for results in runs
        for one in results.run.rounds
    ]


def path_rows(results: Results) -> Rows:
    """The density of the gates on the way, in every round."""
    return [
        {
            "run": results.run.name,
            "replicate": one.replicate,
            "level": one.level,
            "round": one.number,
            "init": one.init,
            "step": step,
            "density": share,
        }
        for one in results.run.rounds
        for step, share in one.path
    ]


def known_rows(runs: Sequence[Results]) -> Rows:
    """The training until the mask of each level was known, mean over replicates."""
    return [
        {"run": results.run.name, "level": point.level, "density": point.density, "steps": point.steps, "n": point.n}
        for results in runs
        for point in known_points(results)
    ]


def cost_rows(runs: Sequence[Results]) -> Rows:
    """The training of the search up to each level, mean over replicates."""
    return [
        {
            "run": results.run.name,
            "level": point.level,
            "density": point.density,
            "test": point.metric,
            "search_steps": point.steps,
            "search_seconds": point.seconds,
            "n": point.n,
        }
        for results in runs
        for point in cost_points(results)
    ]


def verdict_rows(runs: Sequence[Results]) -> Rows:
    """The verdict of every level of every run."""
    rows: Rows = []
    for results in runs:
        for one in results.run.verdicts:
            judged = one.judgement
            low, high = judged.interval or (None, None)
            rows.append(
                {
                    "run": results.run.name,
                    "level": one.level,
                    "density": one.density,
                    "verdict": judged.verdict,
                    "claim": judged.claim,
                    "margin": judged.margin,
                    "confidence": judged.confidence,
                    "n": judged.n,
                    "difference": judged.difference,
                    "low": low,
                    "high": high,
                    "p": judged.p,
                    "p_holm": judged.p_holm,
                    "more_seeds": judged.more_seeds,
                    "reasons": "; ".join(judged.reasons),
                }
            )
    return rows


def verify_rows(verifications: Sequence[Verify]) -> Rows:
    """Every difference of every verification: ticket minus the network named in `role`."""
    return [
        {
            "verify": verify.name,
            "run": verify.run,
            "replicate": verify.replicate,
            "level": verify.level,
            "density": verify.density,
            "verdict": verify.judgement.verdict,
            "claim": verify.judgement.claim,
            "margin": verify.judgement.margin,
            "confidence": verify.judgement.confidence,
            "n": verify.judgement.n,
            "role": row.role,
            "mean": row.mean,
            "low": row.low,
            "high": row.high,
            "p": row.p,
        }
        for verify in verifications
        for row in differences(verify)
    ]


def seed_rows(verifications: Sequence[Verify]) -> Rows:
    """The test metric of every seed of every network of every verification."""
    return [
        {"verify": verify.name, "role": role, "seed": seed, "steps": steps, "test": value}
        for verify in verifications
        for role, steps, values in (
            *((one.role, one.budget, one.values) for one in verify.networks),
            *((one.role, one.steps, one.values) for one in verify.references),
        )
        for seed, value in enumerate(values)
    ]


def stability_rows(studies: Sequence[StabilityStudy]) -> Rows:
    """Every network of every study, with its distances."""
    return [
        {
            "stability": study.name,
            "replicate": row.replicate,
            "step": row.step,
            "level": row.level,
            "density": row.density,
            "role": row.role,
            "test": row.value,
            "pruning_l2": row.pruning.l2 if row.pruning else None,
            "pruning_angle": row.pruning.angle if row.pruning else None,
            "data_order_l2": row.data_order.l2 if row.data_order else None,
            "data_order_angle": row.data_order.angle if row.data_order else None,
        }
        for study in studies
        for row in study.rows
    ]


def barrier_rows(studies: Sequence[StabilityStudy]) -> Rows:
    """Every point of every barrier's line."""
    return [
        {
            "stability": study.name,
            "replicate": row.replicate,
            "step": row.step,
            "level": row.level,
            "density": row.density,
            "role": row.role,
            "split": curve.split,
            "recalibrated": curve.recalibrated,
            "height": curve.height,
            "alpha": alpha,
            "error": error,
        }
        for study in studies
        for row in study.rows
        for curve in row.barriers
        for alpha, error in zip(curve.alphas, curve.errors, strict=True)
    ]


def speed_rows(speeds: Sequence[Speed]) -> Rows:
    """Every engine at every batch size, with what it saves if it is a sparse one."""
    found: Rows = []
    for speed in speeds:
        for timed in speed.comparisons:
            saved = {one.engine: one for one in timed.saved}
            for row in timed.times:
                one = saved.get(row.engine)
                found.append(
                    {
                        "record": speed.name,
                        "ticket": speed.ticket,
                        "density": speed.density,
                        "batch": timed.batch,
                        "precision": timed.precision,
                        "threads": timed.threads,
                        "caches": "cold" if timed.cold else "hot",
                        "engine": row.engine,
                        "seconds": row.seconds,
                        "first_quartile": row.low,
                        "third_quartile": row.high,
                        "saved": one.saved if one else None,
                        "saved_low": one.low if one else None,
                        "saved_high": one.high if one else None,
                        "against": one.against if one else "",
                        "not_timed": row.why,
                    }
                )
    return found


def curve_rows(speeds: Sequence[Speed]) -> Rows:
    """Time against density."""
    return [
        {
            "record": speed.name,
            "pattern": curve.pattern,
            "batch": curve.timed.batch,
            "precision": curve.timed.precision,
            "threads": curve.timed.threads,
            "density": point.density,
            "seconds": point.seconds,
            "first_quartile": point.low,
            "third_quartile": point.high,
            "ideal_seconds": point.ideal,
            "saved": point.saved,
            "against": curve.timed.fastest,
        }
        for speed in speeds
        for curve in speed.curves
        for point in curve.points
    ]
