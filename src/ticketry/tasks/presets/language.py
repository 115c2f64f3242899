"""Searches on language models by name, and short forms for two cores. All of it is our own choice. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping

from ticketry.tasks.language.facts import GPT, LSTM, POINTER
from ticketry.tasks.presets.experiment import Experiment
from ticketry.tasks.recipe import Recipe

_DENSITIES = [0.5, 0.3, 0.1, 0.05]
_REWIND = "3%"
_SOURCE = "our own choice: models and recipes as docs/domains.md tells them"


def _search(title: str, task: str, model: str, recipe: Recipe, options: Mapping[str, str] | None = None) -> Experiment:
    return Experiment(
        title=title,
        source=_SOURCE,
        method="iterative",
        task=task,
        model=model,
        recipe=recipe,
        settings={"rewind": _REWIND, "densities": _DENSITIES},
        options=options or {},
    )


def _short(title: str, task: str, model: str, recipe: Recipe, tokens: int) -> Experiment:
    made = f"{title}, shortened: narrower, {tokens:,} tokens, {recipe.length.removesuffix('ep')} epochs"
    return _search(made, task, model, recipe, {"train": str(tokens)})


LANGUAGE_PRESETS = {
    "ptb-lstm": _search("LSTM on Penn Treebank", "ptb", "lstm-tied", LSTM),
    "ptb-pointer-lstm": _search("Pointer sentinel LSTM on Penn Treebank", "ptb", "pointer-lstm", POINTER),
    "wikitext-2-gpt": _search("GPT on WikiText-2", "wikitext-2", "gpt", GPT),
    "ptb-lstm-short": _short("LSTM on Penn Treebank", "ptb", "lstm-tied@0.5", LSTM.changed(length="8ep"), 200_000),
    "ptb-pointer-lstm-short": _short(
        "Pointer sentinel LSTM on Penn Treebank",
        "ptb",
        "pointer-lstm@0.5",
        LSTM.changed(length="8ep"),  # 4 epochs of 100,000 tokens: 469 on the validation text, by Adam 623
        200_000,
    ),
    "wikitext-2-gpt-short": _short(
        "GPT on WikiText-2", "wikitext-2", "gpt@0.5", GPT.changed(length="4ep", batch=16, lr=2e-3), 200_000
    ),
}
"""By the name that `--preset` takes."""
