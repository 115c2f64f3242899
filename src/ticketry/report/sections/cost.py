"""What the run cost, in steps and in time, and what the store saved."""

from __future__ import annotations

from collections.abc import Sequence

from ticketry.report.aggregate import Results
from ticketry.report.figures import METRIC_BY_COST, METRIC_BY_SPENT, Drawing
from ticketry.report.markup import Html, el, prose
from ticketry.report.rows import cost_rows, spent_rows
from ticketry.report.sections.ledger import ledger_table
from ticketry.report.sections.parts import Place, fact
from ticketry.report.spent import ENERGY, power
from ticketry.report.wording import amount, duration, times


def cost_section(results: Results, drawings: dict[str, Drawing], place: Place) -> Html | None:
    """The search against one dense training, controls apart; None where the record tells no cost."""
    pictures = []
    if METRIC_BY_SPENT in drawings:
        caption = spent_caption([results])
        pictures.append(place.figure(drawings[METRIC_BY_SPENT], METRIC_BY_SPENT, caption, spent_rows([results])))
    if METRIC_BY_COST in drawings:
        caption = cost_caption(several=False)
        pictures.append(place.figure(drawings[METRIC_BY_COST], METRIC_BY_COST, caption, cost_rows([results])))
    facts, table = cost_facts(results), ledger_table(results, place)
    if not facts and not pictures:
        return None
    text = (
        "A step is one batch, forward and backward; a segment is a stretch of training between two checkpoints. "
        "The search is what it takes to find the tickets of one replicate, its dense training included; "
        "controls only serve the comparison."
    )
    if not _is_count(results.run.cost.get("energy_kwh")):
        text += " Energy: not measured on this machine."
    if table is None:
        text += " FLOPs, seconds and memory of each phase: not measured in this run."
    return el(
        "section",
        el("h2", "Cost"),
        el("dl", *facts, class_="facts") if facts else None,
        *pictures[:1],
        table,
        *pictures[1:],
        el("p", prose(text), class_="note"),
        id=place.id("cost"),
    )


def cost_caption(several: bool) -> Html:
    what = "each run's tickets" if several else "the tickets"
    return prose(
        f"Test metric of {what} against all the training of the search up to them (dense training, then every denser "
        "ticket), mean over replicates; square and horizontal line: the dense network. Seconds are those of the "
        "machine and the load at the time; controls are left out. "
    )


def spent_caption(runs: Sequence[Results]) -> Html:
    """Of the figure of whole trainings."""
    marks = "of each run; the smaller the mark, the fewer weights" if len(runs) > 1 else "of each density"
    measured = any(power(results.run) is not None for results in runs)
    energy = "energy (the run's, shared out by seconds)" if measured else "energy, which was not measured"
    return prose(
        f"Test metric of the tickets {marks}, against the cost of their whole training: FLOPs, seconds and the highest "
        "memory of its dense phase, search and sparse phase, as multiples of the dense network's in the same run, and "
        f"{energy}. Means over replicates; thin bars: from the least to the largest; square and grey lines: the dense "
        "network. FLOPs are as many as the weights that remain need; seconds are those of the machine at the time. "
    )


def cost_facts(results: Results) -> list[Html]:
    """Search, controls, store, time and energy, as far as the record tells."""
    cost = {name: item for name, item in results.run.cost.items() if _is_count(item)}
    facts = [item for item in (_search(cost), _controls(cost), _store(cost), _time(cost)) if item is not None]
    if "energy_kwh" in cost:
        facts.append(_energy(cost, results.run.cost.get("energy_by")))
    return facts


def _energy(cost: dict[str, float], by: object) -> Html:
    kwh = cost["energy_kwh"]
    return fact(
        "Energy", f"{kwh:.3g} kWh" if kwh >= 0.001 else amount(1000 * kwh, ENERGY), by if isinstance(by, str) else ""
    )


def _search(cost: dict[str, float]) -> Html | None:
    if "search_steps_per_replicate" not in cost:
        return None
    steps, dense = cost["search_steps_per_replicate"], cost.get("dense_steps", 0)
    if not dense:
        return fact("Search, per replicate", f"{steps:,.0f} steps")
    return fact("Search, per replicate", f"{times(steps / dense)} × dense", f"{steps:,.0f} steps; dense: {dense:,.0f}")


def _controls(cost: dict[str, float]) -> Html | None:
    if "control_steps" not in cost:
        return None
    return fact("Controls, all replicates", f"{cost['control_steps']:,.0f} steps", "not part of the search")


def _store(cost: dict[str, float]) -> Html | None:
    if not {"segments_asked", "segments_trained"} <= cost.keys():
        return None
    asked, trained = cost["segments_asked"], cost["segments_trained"]
    detail = f"{asked - trained:,.0f} came from the store"
    if {"steps_asked", "steps_trained"} <= cost.keys() and cost["steps_asked"]:
        saved = 1 - cost["steps_trained"] / cost["steps_asked"]
        detail += f": {100 * saved:.0f} % of {cost['steps_asked']:,.0f} steps"
    return fact("Segments trained", f"{trained:,.0f} of {asked:,.0f}", detail)


def _time(cost: dict[str, float]) -> Html | None:
    if "wall_seconds" not in cost:
        return None
    training = cost.get("train_seconds")
    detail = f"{duration(training)} of training, all processes together" if training is not None else ""
    return fact("Time", duration(cost["wall_seconds"]), detail)


def _is_count(item: object) -> bool:
    """A number that can be shown: costs are a courtesy, so a strange one is left out, not refused."""
    return isinstance(item, int | float) and not isinstance(item, bool) and 0 <= item < 1e15
