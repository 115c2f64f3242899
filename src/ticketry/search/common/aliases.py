"""Aliases: names of methods in papers, such as ``imp``, that stand for a method with certain settings."""

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
    """A paper's name, such as ``snip``, that stands for a search method with certain settings."""

    method: str
    """Name of the search method in ticketry, such as ``early``."""
    stands_for: str
    """The paper's full name of the method, with a citation; for lists."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings whose defaults the alias changes; all other settings keep the method's defaults."""

    def matches(self, settings: object) -> bool:
        """Return whether `settings` have every value that this alias sets."""

        def has_value(value: object, wanted: object, name: str) -> bool:
            return value == wanted or (name == "structure" and str(value).startswith(f"{wanted}:"))  # channels:16

        return all(has_value(getattr(settings, name, None), wanted, name) for name, wanted in self.settings.items())

    @property
    def words(self) -> str:
        """The command-line words that the alias abbreviates: the method's name and its options."""
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
    """Return a copy of a method whose default settings are those of the alias `name`."""
    from dataclasses import replace

    alias = ALIASES[name]
    kind = _with_defaults(found.Settings, alias.settings) if alias.settings else found.Settings
    return replace(found, alias=name, title=f"{alias.stands_for}: {alias.words}", Settings=kind)


def listed_name(method: str, alias: str, settings: object) -> str:
    """Return a search's name for lists and figures: `alias` if `settings` still match it, else `method`."""
    return alias if alias and ALIASES[alias].method == method and ALIASES[alias].matches(settings) else method


def _with_defaults(kind: type[Any], values: Mapping[str, Any]) -> type[Any]:
    """Return a subclass of the settings class `kind` whose fields named in `values` have these defaults."""
    hints = get_type_hints(kind, include_extras=True)
    if missing := values.keys() - hints.keys():
        raise UsageError(f"{kind.__module__} has no setting {', '.join(sorted(missing))}")
    own = [(name, hints[name], field(default=value)) for name, value in values.items()]
    space = {"__doc__": kind.__doc__, "__module__": kind.__module__}
    return make_dataclass(kind.__name__, own, bases=(kind,), frozen=True, kw_only=True, namespace=space)
