"""Parse names of networks: resnet-20, resnet-20@0.5 (half as wide), timm:resnet18; no torch needed.

NAME               a network of this package, see `ticketry.tasks.models`
mlp-50-50          a perceptron with hidden layers of these widths
NAME@W             the network NAME with other widths: each hidden layer has max(1, round(W * width)) units or filters
timm:NAME          an untrained network of timm
torchvision:NAME   an untrained classifier of torchvision
MODULE:OBJECT      a custom class or function of shape and classes (and of `scale`, to allow other widths)
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ticketry.choices import did_you_mean
from ticketry.errors import TaskError
from ticketry.registry import Registry, put_current_folder_on_path

if TYPE_CHECKING:
    from ticketry.tasks.models.image_models import Network

_IMAGE_NETWORKS = (
    *("lenet-300-100", "lenet-5", "conv-2", "conv-4", "conv-4-16", "conv-6"),
    *("resnet-20", "resnet-20-8", "resnet-32", "resnet-56", "resnet-18", "resnet-50"),
    *("resnet-18-imagenet", "resnet-50-imagenet", "wrn-16-8", "wrn-28-10", "wrn-40-2"),
    *("vgg-11", "vgg-13", "vgg-16", "vgg-19"),
)


def _to_network(name: str, found: object) -> Network:
    from ticketry.tasks.models.image_models import Network

    return Network.from_entry(name, found)


NETWORKS: Registry[Network] = Registry(
    "network",
    "ticketry.models",
    {name: f"ticketry.tasks.models.image_models:{name.upper().replace('-', '_')}" for name in _IMAGE_NETWORKS},
    make=_to_network,
    error=TaskError,
)

_LANGUAGE = {"lstm": "LSTM", "lstm-tied": "TiedLSTM", "pointer-lstm": "PointerLSTM", "gpt": "GPT"}
LANGUAGE_MODELS: Registry[Any] = Registry(
    "language model",
    "ticketry.language_models",
    {name: f"ticketry.tasks.models.language:{target}" for name, target in _LANGUAGE.items()},
    needs=("carries", "follows", "begin"),
    error=TaskError,
)
"""Language models by name: each is a subclass of `models.language.LanguageModel`."""

LIBRARIES = ("timm", "torchvision")
"""Libraries whose networks can be named LIBRARY:NAME."""

WIDEST = 4
"""Largest width factor W in NAME@W."""

_DECIMALS = 6
"""Largest number of decimals of W in NAME@W; enough for multiples of 1/64, which `models.narrower` tries."""


@dataclass(frozen=True)
class NetworkName:
    """A parsed name of a network; `str` gives the canonical name, under which results are stored."""

    base: str
    """The name without its width and without the library before the colon."""
    width: Fraction = Fraction(1)
    """Factor of all hidden widths, as an exact fraction, so that rounding is the same on every machine."""
    library: str = ""
    """One of `LIBRARIES`, or empty for networks of this package and custom networks."""

    @classmethod
    def parse(cls, text: str) -> NetworkName:
        """Parse a name in any of its forms, without checking that the network exists."""
        library, colon, rest = text.partition(":")
        if not colon or (library not in LIBRARIES and _is_importable_module(library)):
            base, at, width = text.partition("@")
            return cls(base, _parse_width(width, text)) if at else cls(base)
        if library not in LIBRARIES:
            raise TaskError(
                f"there is no network {text!r}: before the colon stands {' or '.join(LIBRARIES)}, or a module that can"
                " be imported"
            )
        if "@" in rest:
            raise TaskError(
                f"{text}: only this package's own networks have a width; leave @{rest.partition('@')[2]} out"
            )
        return cls(rest, library=library)

    @property
    def is_outside(self) -> bool:
        """Whether the network is custom or comes from an installed package, not from ticketry."""
        return ":" in self.base or (self.base not in NETWORKS.built_in and self.base in NETWORKS)

    def scaled(self, width: int) -> int:
        """Return a hidden width multiplied by the factor in the name: max(1, round(factor * width))."""
        return max(1, round(self.width * width))

    def __str__(self) -> str:
        if self.library:
            return f"{self.library}:{self.base}"
        if self.width == 1:
            return self.base
        decimals = f"{float(self.width):.{_DECIMALS}f}".rstrip("0").rstrip(".")
        return f"{self.base}@{decimals}"


def parse_hidden_widths(base: str) -> tuple[int, ...]:
    """Return the hidden widths in the name of a perceptron, such as mlp-50-50; empty for names of other networks."""
    is_perceptron = re.fullmatch(r"mlp(-[1-9][0-9]{0,5})+", base)
    return tuple(int(width) for width in base.split("-")[1:]) if is_perceptron else ()


def unknown_network_error(name: str, known: Iterable[str] | None = None) -> TaskError:
    """Return the error for the name of an unknown network; it suggests similar names from `known`."""
    names = list(NETWORKS.names() if known is None else known)
    base = name.partition("@")[0]
    return TaskError(
        f"there is no network {base!r}: {did_you_mean(base, names)}choose one of {', '.join(names)}; or with another "
        "width, such as resnet-20@0.5; or a perceptron, such as mlp-50-50; or another library's, such as timm:resnet18"
        " or torchvision:resnet18"
    )


def _is_importable_module(name: str) -> bool:
    """Return whether a Python module of this name can be found, without importing it."""
    put_current_folder_on_path()
    top = name.partition(".")[0]
    return top.isidentifier() and find_spec(top) is not None


def _parse_width(text: str, name: str) -> Fraction:
    width = Fraction(text) if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{0,18})?|\.[0-9]{1,18}", text) else Fraction(0)
    if not 0 < width <= WIDEST:
        raise TaskError(f"{name}: a width is a number above 0 and up to {WIDEST}, as in resnet-20@0.5, not {text!r}")
    if (width * 10**_DECIMALS).denominator != 1:
        raise TaskError(f"{name}: a width has at most {_DECIMALS} decimals")
    return width
