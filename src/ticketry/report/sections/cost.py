"""What the run cost, in steps and in time, and what the store saved."""

from __future__ import annotations

from ticketry.report.aggregate import Results
from ticketry.report.figures import METRIC_BY_COST, Drawing
from ticketry.report.markup import Html, el, prose
from ticketry.report.rows import cost_rows
from ticketry.report.sections.parts import Place, fact
from ticketry.report.wording import duration, times


def cost_section(results: Results, drawings: dict[str, Drawing], place: Place) -> Html | None:
    """The search against one dense training, controls apart; None where the record tells no cost."""
    picture = None
    if METRIC_BY_COST in drawings:
        picture = place.figure(
            drawings[METRIC_BY_COST], METRIC_BY_COST, cost_caption(several=False), cost_rows([results])
        )
    facts = cost_facts(results)
    if not facts and picture is None:
        return None
    text = (
        "A step is one batch, forward and backward; a segment is a stretch of training between two checkpoints. "
        "The search is what it takes to find the tickets of one replicate, its dense training included; "
        "controls only serve the comparison."
    )
    if not _is_count(results.run.cost.get("energy_kwh")):
        text += " Energy: not measured on this machine."
    return el(
        "section",
        el("h2", "Cost"),
        el("dl", *facts, class_="facts") if facts else None,
        picture,
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


def cost_facts(results: Results) -> list[Html]:
    """Search, controls, store, time and energy, as far as the record tells."""
    cost = {name: item for name, item in results.run.cost.items() if _is_count(item)}
    facts = [item for item in (_search(cost), _controls(cost), _store(cost), _time(cost)) if item is not None]
    if "energy_kwh" in cost:
        facts.append(_energy(cost, results.run.cost.get("energy_by")))
    return facts


def _energy(cost: dict[str, float], by: object) -> Html:
    return fact("Energy", f"{cost['energy_kwh']:.3g} kWh", by if isinstance(by, str) else "")


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
