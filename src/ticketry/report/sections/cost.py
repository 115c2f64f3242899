"""What the run cost, in steps and in time, and what the store saved."""

from __future__ import annotations

from ticketry.report.aggregate import Results
from ticketry.report.markup import Html, el, prose
from ticketry.report.wording import duration, times


def cost_section(results: Results) -> Html | None:
    """The search against one dense training, controls apart; None where the record tells no cost."""
    cost = {name: item for name, item in results.run.cost.items() if _is_count(item)}
    facts = [fact for fact in (_search(cost), _controls(cost), _store(cost), _time(cost)) if fact is not None]
    if not facts:
        return None
    text = (
        "A step is one batch, forward and backward; a segment is a stretch of training between two checkpoints. "
        "The search is what it takes to find the tickets of one replicate, its dense training included; "
        "controls only serve the comparison."
    )
    return el(
        "section", el("h2", "Cost"), el("dl", *facts, class_="facts"), el("p", prose(text), class_="note"), id="cost"
    )


def _search(cost: dict[str, float]) -> Html | None:
    if "search_steps_per_replicate" not in cost:
        return None
    steps, dense = cost["search_steps_per_replicate"], cost.get("dense_steps", 0)
    if not dense:
        return _fact("Search, per replicate", f"{steps:,.0f} steps", "")
    return _fact("Search, per replicate", f"{times(steps / dense)} × dense", f"{steps:,.0f} steps; dense: {dense:,.0f}")


def _controls(cost: dict[str, float]) -> Html | None:
    if "control_steps" not in cost:
        return None
    return _fact("Controls, all replicates", f"{cost['control_steps']:,.0f} steps", "not part of the search")


def _store(cost: dict[str, float]) -> Html | None:
    if not {"segments_asked", "segments_trained"} <= cost.keys():
        return None
    asked, trained = cost["segments_asked"], cost["segments_trained"]
    detail = f"{asked - trained:,.0f} came from the store"
    if {"steps_asked", "steps_trained"} <= cost.keys() and cost["steps_asked"]:
        saved = 1 - cost["steps_trained"] / cost["steps_asked"]
        detail += f": {100 * saved:.0f} % of {cost['steps_asked']:,.0f} steps"
    return _fact("Segments trained", f"{trained:,.0f} of {asked:,.0f}", detail)


def _time(cost: dict[str, float]) -> Html | None:
    if "wall_seconds" not in cost:
        return None
    training = cost.get("train_seconds")
    detail = f"{duration(training)} of training, all processes together" if training is not None else ""
    return _fact("Time", duration(cost["wall_seconds"]), detail)


def _fact(name: str, number: str, detail: str) -> Html:
    return el("div", el("dt", name), el("dd", prose(number), class_="number"), el("dd", prose(detail), class_="note"))


def _is_count(item: object) -> bool:
    """A number that can be shown: costs are a courtesy, so a strange one is left out, not refused."""
    return isinstance(item, int | float) and not isinstance(item, bool) and 0 <= item < 1e15
