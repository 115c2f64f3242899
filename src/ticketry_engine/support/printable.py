"""Text from elsewhere made fit for a terminal."""

from __future__ import annotations


def one_line(text: str) -> str:
    """Return `text` with line breaks and control characters replaced: a mask or a ticket may come from anywhere."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
