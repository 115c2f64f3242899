"""The perplexity of the dense LSTM of `--preset ptb-lstm-short` beside that of PyTorch's example word_language_model.

The example (https://github.com/pytorch/examples, BSD-3-Clause) is not part of this repository: give a clone of it, or a
bare one, with --examples, or set $PYTORCH_EXAMPLES. Its `main.py` runs unchanged in this process, with a corpus in
place of its `data.py` that has the tokens of ours: the same first part of Penn Treebank, and the same 10,000 words.
Sizes, tied weights, dropout, batch, pieces, clipping, learning rate and epochs are the same. What differs is how the
learning rate falls (theirs by 4 where the validation loss does not, ours along a cosine), that they keep the best epoch
by validation, and that our rows begin elsewhere in each epoch.
"""

from __future__ import annotations

import argparse
import os
import re
import runpy
import sys
import tempfile
import time
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import Row, main, one_thread, parser, quartiles
from peers import as_script, unpacked

import ticketry as tk
from ticketry.tasks import catalogue
from ticketry.tasks.catalogue import EXPERIMENTS
from ticketry.tasks.language.task import Language

PRESET, SEEDS, WITHIN = "ptb-lstm-short", 3, 1.03
QUICK = 5_000
"""Tokens, and one epoch of them, that show that it works."""
_FILES = tuple(f"word_language_model/{name}.py" for name in ("main", "model"))


def rows(arguments: argparse.Namespace) -> list[Row]:
    """Our test perplexity / theirs, seed by seed."""
    if not arguments.examples:
        print("the examples are not given (--examples, $PYTORCH_EXAMPLES): nothing to compare with", file=sys.stderr)
        return []
    one_thread()
    task = _task(quick=arguments.quick)
    found: dict[str, list[float]] = {"ours": [], "theirs": [], "our_seconds": [], "their_seconds": []}
    for seed in range(1 if arguments.quick else SEEDS):
        for name, train in (("our", ours), ("their", theirs)):
            began = time.process_time()
            found[f"{name}s"].append(train(task, seed, arguments))
            found[f"{name}_seconds"].append(time.process_time() - began)
    ratios = [one / other for one, other in zip(found["ours"], found["theirs"], strict=True)]
    low, middle, high = quartiles(ratios)
    what = f"our test perplexity / word_language_model's, dense: {task.model}, ptb"
    how = f"{task.train:,} tokens, {task.recipe.length}, {len(ratios)} seeds, one thread, fp32"
    return [Row(what, middle, low=low, high=high, target=WITHIN, how=how, details=found)]


def _task(*, quick: bool) -> Language:
    preset = EXPERIMENTS[PRESET]
    task = catalogue.get(
        preset.task, model=preset.model, options={**preset.options, **({"train": str(QUICK)} if quick else {})}
    )
    assert isinstance(task, Language)
    return replace(task, recipe=preset.recipe.changed(length="1ep") if quick else preset.recipe)


def ours(task: Language, seed: int, arguments: argparse.Namespace) -> float:
    """Test perplexity at the end of the recipe."""
    with tempfile.TemporaryDirectory() as folder, tk.Lab(folder, workers=0, data=arguments.data) as lab:
        segment = lab.segment(task, start=seed, order_seed=seed, recipe=task.recipe)
        return float(lab.train_many([segment])[0].metrics["test"]["perplexity"])


def theirs(task: Language, seed: int, arguments: argparse.Namespace) -> float:
    """Test perplexity of the best epoch by validation, as their script prints it."""
    recipe, width = task.recipe, task.build().encoder.embedding_dim  # type: ignore[union-attr]
    words = ["--emsize", str(width), "--nhid", str(width), "--tied", "--dropout", str(task.dropout)]
    words += ["--lr", str(recipe.lr), "--clip", str(recipe.clip), "--batch_size", str(recipe.batch)]
    words += ["--bptt", str(task.time), "--epochs", recipe.length.removesuffix("ep"), "--seed", str(seed)]
    with tempfile.TemporaryDirectory() as folder:
        script = unpacked(arguments.examples, _FILES, Path(folder))
        with as_script(script, words, script.parent, {"data": _same_tokens(task, arguments.data)}) as printed:
            runpy.run_path(str(script), run_name="__main__")
    found = re.search(r"test ppl +([\d.]+)", printed.getvalue())
    assert found, printed.getvalue()
    return float(found[1])


def _same_tokens(task: Language, data: Path | None) -> types.ModuleType:
    """In place of their `data.py`: our tokens, under their names."""
    corpus = task.course(data).corpus  # type: ignore[attr-defined]
    theirs: Any = types.ModuleType("data")

    class Corpus:
        def __init__(self, _: str) -> None:
            self.dictionary = range(corpus.vocabulary)
            parts = corpus.train, corpus.validation, corpus.test
            self.train, self.valid, self.test = (part.tokens.long() for part in parts)

    theirs.Corpus = Corpus
    return theirs  # type: ignore[no-any-return]


if __name__ == "__main__":
    options = parser(__doc__)
    clone = os.environ.get("PYTORCH_EXAMPLES")
    options.add_argument("--examples", type=Path, default=clone, metavar="DIR", help="a clone, or $PYTORCH_EXAMPLES")
    main("domains_language", rows, options)
