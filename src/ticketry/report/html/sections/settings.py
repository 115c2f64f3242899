"""How to repeat a run, everything that decided its numbers, and what the words on the page mean."""

from __future__ import annotations

from collections.abc import Sequence

from ticketry.records.network import DENSE, TICKET
from ticketry.records.schema import as_json
from ticketry.report.html.blocks import Code, Folded, Notes, Place, Section, pairs
from ticketry.report.tables.results import Results
from ticketry.report.wording import role_name

_STEPS = {"total": "steps in all", "per_epoch": "steps an epoch", "rewind": "rewound to step"}


def repeat_section(results: Results, place: Place) -> Section | None:
    """The command and the run file; None where the record has neither."""
    run = results.run
    if not (run.command or run.config):
        return None
    command = Code(run.command, "command") if run.command else None
    config = Folded("Run file (TOML)", [Code(run.config)]) if run.config else None
    return Section(place.id("repeat"), "How to repeat it", [command, config], name="Repeat")


def settings_section(results: Results, place: Place) -> Section:
    """Settings of the method, recipe of training, task and environment, as they were recorded."""
    run, task = results.run, results.run.task
    of_task = {
        "task": task.name,
        "model": task.model,
        "metric": task.metric.name,
        "parameters": task.parameters,
        "prunable": task.prunable,
    }
    steps = {_STEPS.get(name, name): number for name, number in as_json(run.steps).items()}
    tables = pairs(
        (f"Method: {run.method}{f' ({run.alias})' if run.alias else ''}", run.effective_settings),
        ("Recipe", {**run.recipe, **steps}),
        ("Task", of_task),
        ("Environment", run.environment),
    )
    return Section(place.id("settings"), "Settings", [tables])


# -- what the words mean -----------------------------------------------------------------------------------------------

_ROLES = {
    DENSE: "All weights, the whole schedule: what tickets are compared with.",
    TICKET: "The masks that the search found, on weights of the same replicate.",
    "random_reinit": "The tickets' masks on freshly drawn weights: does the start matter, or the mask alone?",
    "shuffled": "The tickets' masks shuffled within each layer: do positions matter, or each layer's density alone?",
    "random_prune": "A random mask of the tickets' density over the whole scope: does the search matter at all?",
    "cyclic": "The tickets trained again and again from where they ended, for as many steps as their whole search: "
    "how much of a gain over the rounds is due to training for longer? They have more steps than the tickets, so no "
    "verdict rests on them.",
    "cyclic_random": "The same with the masks shuffled within each layer.",
}
_RETRAIN = {
    "continue": "from the weights of the rewind step k, for steps k to T of the schedule",
    "restart": "from the weights of the rewind step, for the whole schedule again",
    "rewind_lr": "from the final weights, with the learning rates of steps k to T",
    "finetune": "from the final weights, at the last learning rate",
    "none": "not at all: they have the final weights",
    "gradual": "on from the last cut at step k, optimiser's state included, for steps k to T of the schedule",
    "dynamic": "once, sparse from step 0 on: the tickets while their masks moved (steps and time of their own are "
    "those after the last move), the controls with one mask for the whole schedule",
}


def notes_section(runs: Sequence[Results]) -> Section:
    """Roles that the runs have, the way their tickets were trained, and how to read the numbers."""
    roles = dict.fromkeys(role for results in runs for role in results.roles)
    entries = [(role_name(role), _ROLES.get(role, "A control of the method's own.")) for role in roles]
    modes = [results.run.settings.get("retrain") for results in runs]
    for mode in dict.fromkeys(mode for mode in modes if isinstance(mode, str) and mode):
        entries.append((f"retrain: {mode}", _retrain_text(mode)))
    entries += [
        (
            "level, replicate",
            "A level is a round of pruning; level 0 is dense. A replicate is the whole run under a seed of its own, "
            "from the draw of the weights on.",
        ),
        *_spreads(runs),
    ]
    return Section("notes", "Notes", [Notes([(name, text, "") for name, text in entries])])


def _spreads(runs: Sequence[Results]) -> list[tuple[str, str]]:
    """What the numbers beside means, and the bands around them, are."""
    kinds = {results.run.task.metric.summary for results in runs}
    entries = []
    if "mean" in kinds:
        entries += [
            (
                "±",
                "The sample standard deviation over replicates (divided by n − 1): how much networks differ, not how "
                "well the mean is known.",
            ),
            (
                "bands",
                "In figures over density: the two-sided 95 % Student t interval of the mean over replicates, "
                "mean ± t × sd / √n. With two or three replicates t is large (12.7, 4.3), so bands are "
                "wide and may leave the panel.",
            ),
        ]
    if "iqm" in kinds:
        entries.append(
            (
                "interquartile mean [ , ]",
                "The mean of the replicates' values without the lowest and the highest quarter, and the 95 % interval "
                "of it by the percentile bootstrap over replicates (10,000 draws), which is the band in figures over "
                "density: values that differ widely between seeds are summed up so. Of two or three replicates "
                "nothing is left out, and the interval is Student's. With four to seven the bootstrap's is too "
                "narrow: in simulations it held the truth 80 to 94 % of the time. Differences to dense, and verdicts, "
                "are of plain means.",
            )
        )
    return entries


def _retrain_text(mode: str) -> str:
    this = f"Tickets and controls were trained {_RETRAIN[mode]}. " if mode in _RETRAIN else ""
    others = "; ".join(f"{name}, {text}" for name, text in _RETRAIN.items() if name != mode)
    return f"{this}The choice moves results, so compare like with like. Other choices: {others}. T is the last step."
