"""How to repeat the run, and everything that decided its numbers."""

from __future__ import annotations

from ticketry.report.aggregate import Results
from ticketry.report.markup import Html, el
from ticketry.report.sections.parts import Place, pairs

_STEPS = {"total": "steps in all", "per_epoch": "steps an epoch", "rewind": "rewound to step"}


def repeat_section(results: Results, place: Place) -> Html | None:
    """The command and the run file; None where the record has neither."""
    run = results.run
    if not (run.command or run.config):
        return None
    return el(
        "section",
        el("h2", "How to repeat it"),
        el("pre", el("code", run.command), class_="command", tabindex=0) if run.command else None,
        el(
            "details",
            el("summary", "Run file (TOML)"),
            el("pre", el("code", run.config), tabindex=0),
        )
        if run.config
        else None,
        id=place.id("repeat"),
    )


def settings_section(results: Results, place: Place) -> Html:
    """Settings of the method, recipe of training, task and environment, as they were recorded."""
    run, task = results.run, results.run.task
    of_task = {
        "task": task.name,
        "model": task.model,
        "metric": task.metric.name,
        "parameters": task.parameters,
        "prunable": task.prunable,
    }
    steps = {_STEPS.get(name, name): number for name, number in run.steps.items()}
    tables = (
        pairs(f"Method: {run.method}", run.settings),
        pairs("Recipe", {**run.recipe, **steps}),
        pairs("Task", of_task),
        pairs("Environment", run.environment),
    )
    return el("section", el("h2", "Settings"), el("div", *tables, class_="columns"), id=place.id("settings"))
