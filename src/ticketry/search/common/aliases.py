"""Aliases: names of methods in papers, such as ``imp``. An alias is a method with some settings fixed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, make_dataclass
from typing import TYPE_CHECKING, Any, get_type_hints

from ticketry.errors import UsageError
from ticketry.search.common.structure_option import NONE

if TYPE_CHECKING:
    from ticketry.search.common.method import Method


@dataclass(frozen=True)
class Alias:
    """A paper's name for a search method with some settings."""

    method: str
    """Name of the method here."""
    stands_for: str
    """The paper's name, with the citation."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings that it fixes; all others have the method's defaults."""

    def matches(self, settings: object) -> bool:
        """Return whether settings have all values that this alias fixes."""

        def has_value(value: object, wanted: object, name: str) -> bool:
            return value == wanted or (name == "structure" and str(value).startswith(f"{wanted}:"))  # channels:16

        return all(has_value(getattr(settings, name, None), wanted, name) for name, wanted in self.settings.items())

    @property
    def words(self) -> str:
        """The command-line words that it abbreviates: a method and options."""
        flags = [f"--{name.replace('_', '-')} {value}" for name, value in self.settings.items() if value != NONE]
        return " ".join([self.method, *flags])


_AT_INITIALISATION = {"when": "0", "iterations": 1, "structure": NONE}

ALIASES: Mapping[str, Alias] = {
    "imp": Alias("iterative", "IMP: iterative magnitude pruning with rewinding (Frankle et al. 2019)"),
    "lth": Alias("iterative", "The lottery ticket hypothesis: IMP to step 0 (Frankle & Carbin 2019)", {"rewind": "0"}),
    "omp": Alias("oneshot", "OMP: one-shot magnitude pruning (Han et al. 2015)"),
    "gmp": Alias("gradual", "GMP: gradual magnitude pruning (Zhu & Gupta 2017)"),
    "rigl": Alias("dynamic", "RigL (Evci et al. 2020)", {"grow": "gradient"}),
    "set": Alias("dynamic", "SET: sparse evolutionary training (Mocanu et al. 2018)", {"grow": "random"}),
    "cs": Alias("continuous", "CS: Continuous Sparsification (Savarese et al. 2020)"),
    "snip": Alias("early", "SNIP (Lee et al. 2019)", {**_AT_INITIALISATION, "score": "snip"}),
    "snap": Alias(
        "early",
        "SNAP: SNIP of whole channels (Verdenius et al. 2020)",
        {**_AT_INITIALISATION, "score": "snip", "structure": "channels"},
    ),
    "grasp": Alias("early", "GraSP (Wang et al. 2020)", {**_AT_INITIALISATION, "score": "grasp"}),
    "synflow": Alias(
        "early",
        "SynFlow, in 100 steps (Tanaka et al. 2020)",
        {**_AT_INITIALISATION, "score": "synflow", "iterations": 100, "schedule": "exponential"},
    ),
    "crop": Alias("early", "CroP (Rachwan et al. 2022)", {**_AT_INITIALISATION, "score": "crop"}),
    "cropit": Alias(
        "early",
        "CroPit: CroP in 7 steps (Rachwan et al. 2022)",
        {**_AT_INITIALISATION, "score": "crop", "iterations": 7},
    ),
    "earlycrop": Alias("early", "EarlyCroP (Rachwan et al. 2022)", {"when": "detect", "score": "crop"}),
    "earlybird": Alias(
        "early",
        "Early-Bird tickets (You et al. 2020)",
        {"when": "detect", "detector": "masks", "score": "slimming", "structure": "channels"},
    ),
    "random": Alias("early", "Random pruning at initialisation", {**_AT_INITIALISATION, "score": "random"}),
}


def with_alias_defaults(found: Method[Any], name: str) -> Method[Any]:
    """Return a copy of a method whose defaults are the settings of the alias `name`."""
    from dataclasses import replace

    alias = ALIASES[name]
    kind = _with_defaults(found.Settings, alias.settings) if alias.settings else found.Settings
    return replace(found, alias=name, title=f"{alias.stands_for}: {alias.words}", Settings=kind)


def listed_name(method: str, alias: str, settings: object) -> str:
    """Return a search's name in lists and figures: its alias if the settings still match that, else the method."""
    return alias if alias and ALIASES[alias].method == method and ALIASES[alias].matches(settings) else method


def _with_defaults(kind: type[Any], values: Mapping[str, Any]) -> type[Any]:
    """Return a subclass of a settings class with other default values."""
    hints = get_type_hints(kind, include_extras=True)
    if missing := values.keys() - hints.keys():
        raise UsageError(f"{kind.__module__} has no setting {', '.join(sorted(missing))}")
    own = [(name, hints[name], field(default=value)) for name, value in values.items()]
    space = {"__doc__": kind.__doc__, "__module__": kind.__module__}
    return make_dataclass(kind.__name__, own, bases=(kind,), frozen=True, kw_only=True, namespace=space)
