"""Published texts as facts, and the recipes of language models. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

from ticketry.tasks.recipe import Recipe


@dataclass(frozen=True)
class Published:
    """A published text in words."""

    title: str
    words: int
    """How many different ones there are."""
    tokens: tuple[int, int, int]
    """In training, validation and test set."""


PUBLISHED = {
    "ptb": Published("Penn Treebank (Mikolov 2010)", 10_000, (929_589, 73_760, 82_430)),
    "wikitext-2": Published("WikiText-2 (Merity et al. 2016)", 33_278, (2_088_628, 217_646, 245_569)),
}
TEXT = "text"
"""The task of a text of one's own, text:PATH."""
MODELS = {"ptb": "lstm-tied", "wikitext-2": "gpt", TEXT: "lstm-tied"}
"""Task -> its own model."""

TIME, LONG_TIME = 35, 50
"""Tokens in a piece for models that carry a state: as in PyTorch's example word_language_model, and of bytes."""
CONTEXT, LONG_CONTEXT = 64, 128
"""For the GPT."""

LSTM = Recipe(length="40ep", batch=20, optimizer="sgd", lr=20.0, momentum=0.0, clip=0.25, schedule="cosine")
"""Batch, optimiser, learning rate, clipping and length of PyTorch's word_language_model.

That one divides the learning rate by 4 whenever the validation loss does not fall; ours falls along a cosine, so that
it does not depend on what was seen.
"""

POINTER = Recipe(length="40ep", batch=20, optimizer="adam", lr=1e-3, clip=0.25, schedule="cosine")
"""Our own choice; Adam and its learning rate as in the public code of EarlyCroP's experiment on Penn Treebank."""

OWN = Recipe(length="10ep", batch=20, optimizer="adam", lr=4e-3, clip=1.0, schedule="cosine")
"""Of models that carry a state, on a text of one's own: our own choice, with pieces of `LONG_TIME`.

Of 78 KB of WikiText-2 (one seed) it takes 45 s and reaches 2.72 bits per character; 20 epochs with 2e-3 and pieces of
100, as many steps, took 83 s and reached 2.96. Larger texts were not tried.
"""

GPT = Recipe(
    length="10ep",
    batch=32,
    optimizer="adamw",
    lr=1e-3,
    beta2=0.95,
    weight_decay=0.1,
    clip=1.0,
    schedule="cosine",
    warmup="2%",
)
"""Our own choice, after common practice for small transformers."""

_OF_MODEL = {"lstm": LSTM, "lstm-tied": LSTM, "pointer-lstm": POINTER, "gpt": GPT}
_DROPOUT = {"gpt": 0.1}


def describe(name: str) -> str:
    """A task in one line."""
    if name == TEXT:
        return (
            "Your own text, --task text:PATH, a file or a folder: bytes, or --option vocabulary=tokenizer.json;"
            f" {MODELS[name]} by default"
        )
    about = PUBLISHED[name]
    train, validation, test = (f"{count:,}" for count in about.tokens)
    return f"{about.title}: {about.words:,} words, {train} / {validation} / {test} tokens; {MODELS[name]} by default"


def recipe_of(task: str, model: str) -> Recipe:
    """The recipe of a model, at any width, on a task of `MODELS`; one from outside is trained as the GPT."""
    base = model.partition("@")[0]
    return OWN if task == TEXT and base != "gpt" else _OF_MODEL.get(base, GPT)


def time_of(task: str, model: str) -> int:
    """Tokens in a piece."""
    if model.partition("@")[0] == "gpt":
        return LONG_CONTEXT if task == TEXT else CONTEXT
    return LONG_TIME if task == TEXT else TIME


def dropout_of(model: str) -> float:
    """Share of activations dropped: 0.2, that of word_language_model, of a GPT 0.1."""
    return _DROPOUT.get(model.partition("@")[0], 0.2)
