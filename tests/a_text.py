"""A small text that can be learnt: sentences of a made-up grammar."""

from __future__ import annotations

import random
from pathlib import Path

_WHO = ("the old ticket", "a sparse net", "my cat", "the dense one", "a mask")
_DOES = ("wins", "loses", "prunes", "finds", "trains")
_WHAT = ("a lottery", "the weights", "no prize", "its own tail", "a seed")


def text(sentences: int, seed: int = 0) -> str:
    """So many lines of 20 to 40 letters."""
    draw = random.Random(seed)
    return "".join(f"{draw.choice(_WHO)} {draw.choice(_DOES)} {draw.choice(_WHAT)} .\n" for _ in range(sentences))


def write_text_file(folder: Path, sentences: int = 300) -> Path:
    """A file with such a text."""
    file = folder / "a_text.txt"
    file.write_text(text(sentences))
    return file
