"""What a network is called: resnet-20, resnet-20@0.5 (half as wide), timm:resnet18 (another library's). Needs no torch.

NAME               one of this package's networks, see `ticketry.tasks.models`
mlp-50-50          a perceptron with hidden layers of these widths
NAME@W             the same with W times its width: every hidden layer has max(1, round(W * width)) units or filters
timm:NAME          a network of timm's, untrained
torchvision:NAME   a classifier of torchvision's, untrained
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from fractions import Fraction

from ticketry.errors import TaskError

LIBRARIES = ("timm", "torchvision")
"""Those whose networks can be named."""

WIDEST = 4
"""The largest width."""

_DECIMALS = 6
"""Of a width: enough for 1/64, with which `models.narrower` counts."""


@dataclass(frozen=True)
class NetworkName:
    """A network's name, taken apart. Its `str` is the one form under which results are stored."""

    base: str
    """Without width and library."""
    width: Fraction = Fraction(1)
    """Factor of all hidden widths; exact, so that 0.21 is 0.21 on every machine."""
    library: str = ""
    """One of `LIBRARIES`, or empty for this package's own."""

    @classmethod
    def parse(cls, text: str) -> NetworkName:
        """Read a name in any of its forms; whether there is such a network is not looked at.

        Raises:
            TaskError: for a library that is not one of `LIBRARIES`, or a width that is not in (0, 4].
        """
        library, colon, rest = text.partition(":")
        if not colon:
            base, at, width = text.partition("@")
            return cls(base, _width(width, text)) if at else cls(base)
        if library not in LIBRARIES:
            raise TaskError(f"there is no network {text!r}: before the colon stands {' or '.join(LIBRARIES)}")
        if "@" in rest:
            raise TaskError(
                f"{text}: only this package's own networks have a width; leave @{rest.partition('@')[2]} away"
            )
        return cls(rest, library=library)

    def scaled(self, width: int) -> int:
        """What is left of a hidden layer's units or filters: max(1, round(W * width)), halves to the even number."""
        return max(1, round(self.width * width))

    def __str__(self) -> str:
        if self.library:
            return f"{self.library}:{self.base}"
        if self.width == 1:
            return self.base
        decimals = f"{float(self.width):.{_DECIMALS}f}".rstrip("0").rstrip(".")
        return f"{self.base}@{decimals}"


def unknown(name: str, known: Iterable[str]) -> TaskError:
    """The error for a name that is none of this package's networks."""
    names = list(known)
    base = name.partition("@")[0]
    return TaskError(
        f"there is no network {base!r}: {did_you_mean(base, names)}choose one of {', '.join(names)}; or with another "
        "width, such as resnet-20@0.5; or a perceptron, such as mlp-50-50; or another library's, such as timm:resnet18"
        " or torchvision:resnet18"
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question with the nearest names, and a space after it; nothing if none is near."""
    near = get_close_matches(name.lower(), list(known), n=3, cutoff=0.75)
    return f"did you mean {' or '.join(near)}? " if near else ""


def _width(text: str, name: str) -> Fraction:
    width = Fraction(text) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{0,18})?|\.[0-9]{1,18}", text) else Fraction(0)
    if not 0 < width <= WIDEST:
        raise TaskError(f"{name}: a width is a number above 0 and up to {WIDEST}, as in resnet-20@0.5, not {text!r}")
    if (width * 10**_DECIMALS).denominator != 1:
        raise TaskError(f"{name}: a width has at most {_DECIMALS} decimals")
    return width
