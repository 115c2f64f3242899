"""Searches for tickets, one published method per file.

A method is a module with a docstring, `Settings` (a frozen dataclass), ``plan(settings)``, and ``search(lab, task,
recipe, settings, seeds)``. Its `search` yields a `Found` for each network of one replicate, see `Method.of`. The
command line, campaigns, the report, controls and contract tests (`ticketry.testing.check_search`) need nothing else.
Methods of other packages are found by entry points of the group ``ticketry.methods``; a user's own are named
``package.module``, ``package.module:object``, or ``mine`` for ``mine.py`` in the current directory, see
`ticketry.registry`.

No module here imports torch when it is imported, so that ``ticketry --help`` answers at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, make_dataclass, replace
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, get_type_hints

from ticketry.errors import UsageError
from ticketry.lab.search_result import Found, Seeds
from ticketry.registry import Registry
from ticketry.search.common.method import Method
from ticketry.search.common.plan import Training
from ticketry.search.common.settings import COUNTED, NONE

if TYPE_CHECKING:
    from ticketry.search.acdc import Settings as _AcdcSettings
    from ticketry.search.concrete import Settings as _ConcreteSettings
    from ticketry.search.continuous import Settings as _ContinuousSettings
    from ticketry.search.decorators import Settings as _DecoratorsSettings
    from ticketry.search.dynamic import Settings as _DynamicSettings
    from ticketry.search.early import Settings as _EarlySettings
    from ticketry.search.gradual import Settings as _GradualSettings
    from ticketry.search.iterative import Settings as _IterativeSettings
    from ticketry.search.l0 import Settings as _L0Settings
    from ticketry.search.oneshot import Settings as _OneshotSettings
    from ticketry.search.regularised import Settings as _RegularisedSettings
    from ticketry.search.stochastic import Settings as _StochasticSettings


__all__ = [
    "ALIASES",
    "METHODS",
    "Found",
    "Method",
    "Seeds",
    "Training",
    "acdc",
    "concrete",
    "continuous",
    "decorators",
    "dynamic",
    "early",
    "gradual",
    "iterative",
    "l0",
    "method",
    "methods",
    "oneshot",
    "regularised",
    "stochastic",
]


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
    def command_line_words(self) -> str:
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


def method_name_for_lists(method: str, alias: str, settings: object) -> str:
    """Return a search's name for lists and figures: `alias` if `settings` still match it, else `method`."""
    return alias if alias and ALIASES[alias].method == method and ALIASES[alias].matches(settings) else method


METHODS: Registry[Method[Any]] = Registry(
    "search method",
    "ticketry.methods",
    {module.name: f"{__name__}.{module.name}" for module in iter_modules(__path__) if not module.ispkg},
    make=Method.of,
    aliases={name: alias.method for name, alias in ALIASES.items()},
    modules=True,
)
"""Registry of all methods. Each module of this folder is a built-in method; its subpackages hold shared code."""

# So that `tk.search.iterative(lab, task)` searches, with types; each replaces its module as an attribute.
acdc: Method[_AcdcSettings] = METHODS.get("acdc")
concrete: Method[_ConcreteSettings] = METHODS.get("concrete")
continuous: Method[_ContinuousSettings] = METHODS.get("continuous")
decorators: Method[_DecoratorsSettings] = METHODS.get("decorators")
dynamic: Method[_DynamicSettings] = METHODS.get("dynamic")
early: Method[_EarlySettings] = METHODS.get("early")
gradual: Method[_GradualSettings] = METHODS.get("gradual")
iterative: Method[_IterativeSettings] = METHODS.get("iterative")
l0: Method[_L0Settings] = METHODS.get("l0")
oneshot: Method[_OneshotSettings] = METHODS.get("oneshot")
regularised: Method[_RegularisedSettings] = METHODS.get("regularised")
stochastic: Method[_StochasticSettings] = METHODS.get("stochastic")


def methods() -> dict[str, Method[Any]]:
    """Return every search method by name; log a warning for each installed package that cannot be imported.

    Examples:
        >>> tk.search.methods()["l0"].about.paper
        'Louizos et al. 2018'
    """
    return METHODS.load_usable_objects()


def method(name: str) -> Method[Any]:
    """Return the method with this name or alias, built-in or a user's own; raise `UsageError` if it is unknown.

    An alias, such as ``imp``, is a paper's name for a method with certain default settings, see `ALIASES`.

    Args:
        name: name such as ``iterative``. A user's own method is named ``mine`` (for ``mine.py`` in the current
            directory), ``package.module`` or ``package.module:object``.

    Examples:
        >>> tk.search.method("imp").name
        'iterative'
        >>> snip = tk.search.method("snip")
        >>> snip.name, snip.alias, snip.Settings().score, snip.Settings().when
        ('early', 'snip', 'snip', '0')
        >>> tk.search.method("oneshoot")
        Traceback (most recent call last):
            ...
        ticketry.errors.UsageError: search method 'oneshoot' is not known: acdc, concrete, continuous, ...
    """
    found = METHODS.get(name)
    if (alias := ALIASES.get(name)) is None:
        return found
    kind = found.Settings
    if alias.settings:
        hints = get_type_hints(kind, include_extras=True)
        own = [(setting, hints[setting], field(default=value)) for setting, value in alias.settings.items()]
        space = {"__doc__": kind.__doc__, "__module__": kind.__module__}
        kind = make_dataclass(kind.__name__, own, bases=(kind,), frozen=True, kw_only=True, namespace=space)
    return replace(found, alias=name, title=f"{alias.stands_for}: {alias.command_line_words}", Settings=kind)


def check_named_settings(chosen: Method[Any], names: Iterable[str]) -> None:
    """Raise `UsageError` if the user gave settings that would have no effect.

    For example, the method has no cost budget, or ``density`` replaces ``levels`` (see `Settings.instead_of`).
    """
    given = set(names)
    for name, others in getattr(chosen.Settings, "instead_of", {}).items():
        if name in given and (twice := [other for other in others if other in given]):
            raise UsageError(f"{name} stands in place of {' and '.join(twice)}: give one of them")

    def has_setting(method: Method[Any], name: str) -> bool:
        return any(field.name == name and field.init for field in fields(method.Settings))

    if missing := [name for name in COUNTED if name in given and not has_setting(chosen, name)]:
        able = [name for name in METHODS.built_in if has_setting(METHODS.get(name), missing[0])]
        raise UsageError(
            f"{chosen.name} cannot aim at {COUNTED[missing[0]]} (--{missing[0]}): its masks do not come"
            f" from scores of weights at the end; these methods can: {', '.join(able)}"
        )
