"""Small texts that other processes can make, for trainings by several ranks: `ranks_texts:Words`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from ticketry.tasks.language.corpus import Corpus, Part
from ticketry.tasks.language.task import PERPLEXITY, TextCourse, steps_per_epoch
from ticketry.tasks.models.language import GPT, LSTM, PointerLSTM, TiedLSTM
from ticketry.tasks.recipe import Recipe
from ticketry.tasks.task import Course, Task

MODELS = {"lstm": LSTM, "tied": TiedLSTM, "pointer": PointerLSTM, "gpt": GPT}
VOCABULARY, TIME = 11, 5


class Words(Task):
    """Words that determine which two words may follow; rows of 7, which come out even on no number of ranks."""

    name, metric = "words", PERPLEXITY
    recipe = Recipe(length="25it", batch=7, optimizer="adam", lr=1e-2, clip=0.25)

    def __init__(self, model: str = "lstm", wide: str = "yes", batch: str = "7") -> None:
        self.model, self.wide = model, torch.float64 if wide == "yes" else torch.float32
        self.recipe = self.recipe.changed(batch=int(batch))

    def key(self) -> Mapping[str, object]:
        return {"name": self.name, "model": self.model}

    def build(self) -> nn.Module:
        small = {"scale": lambda size: max(size // 16, 2)}
        made: nn.Module = MODELS[self.model](VOCABULARY, context=TIME, dropout=0.3, **small)
        return made.to(self.wide)

    def course(self, data: Path | None = None) -> Course:
        parts = (_words(count, seed) for seed, count in enumerate((370, 150, 1700)))
        return TextCourse(Corpus(*parts, VOCABULARY), TIME, carries=self.model != "gpt")

    def steps_per_epoch(self, examples: int, recipe: Recipe) -> int:
        return steps_per_epoch(examples, recipe.batch, TIME, carries=self.model != "gpt")


def _words(count: int, seed: int) -> Part:
    draws = torch.randint(2, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    words = [0]
    for draw in draws[1:]:
        words.append((3 * words[-1] + 1 + 4 * draw) % VOCABULARY)
    return Part(torch.tensor(words, dtype=torch.int32))
