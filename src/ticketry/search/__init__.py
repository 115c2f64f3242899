"""Searches for tickets, one published method a file.

What has a docstring, `Settings` (a frozen dataclass) and ``search(lab, task, recipe, settings, seeds)``, which yields a
`Found` for each network of one replicate, is a method, see `Method.of`: the command line, the report, the controls and
the contract tests (`ticketry.testing.check_search`) take it from there. Those of other packages are found by entry
points of the group ``ticketry.methods``, one's own as ``package.module``, ``package.module:object``, or ``mine`` for
``mine.py`` in the current directory, see `ticketry.registry`.
Nothing here imports torch when it is imported, so that ``ticketry --help`` answers at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ticketry.errors import UsageError
from ticketry.lab.search_result import Found, Seeds
from ticketry.registry import Registry
from ticketry.search.common.aims import COUNTED, Aimed
from ticketry.search.common.aliases import ALIASES, under_alias
from ticketry.search.common.method import Method
from ticketry.search.common.plan import Training

if TYPE_CHECKING:
    from ticketry.search.acdc import Settings as _AcdcSettings
    from ticketry.search.concrete import Settings as _ConcreteSettings
    from ticketry.search.continuous import Settings as _ContinuousSettings
    from ticketry.search.dynamic import Settings as _DynamicSettings
    from ticketry.search.early import Settings as _EarlySettings
    from ticketry.search.gate_decorators.search import Settings as _DecoratorsSettings
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

_IN_FOLDERS = {"decorators": "gate_decorators.search"}

METHODS: Registry[Method[Any]] = Registry(
    "search method",
    "ticketry.methods",
    {
        name: f"{__name__}.{_IN_FOLDERS.get(name, name)}"
        for name in (
            *("acdc", "concrete", "continuous", "decorators", "dynamic", "early", "gradual", "iterative", "l0"),
            *("oneshot", "regularised", "stochastic"),
        )
    },
    make=Method.of,
    aliases={name: alias.method for name, alias in ALIASES.items()},
    modules=True,
)

# `tk.search.iterative(lab, task)` is the search: each stands in the place of its module.
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
    """Every method by name; of packages whose methods cannot be used a warning tells.

    Examples:
        >>> tk.search.methods()["l0"].about.paper
        'Louizos et al. 2018'
    """
    return METHODS.load_usable()


def method(name: str) -> Method[Any]:
    """Return the method of this name or alias, or one's own; `UsageError` if there is none.

    An alias is the name by which a paper calls a method with some of its settings, see `common.aliases`.

    Args:
        name: such as ``iterative``; ``mine`` for ``mine.py`` in the current directory, ``package.module`` or
            ``package.module:object``.

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
    return under_alias(found, name) if name in ALIASES else found


def check_aims(chosen: Method[Any], said: Iterable[str]) -> None:
    """Raises `UsageError` for settings that somebody gave and that would be taken no notice of.

    That is a budget asked of a method that has none (it says which methods can), and how far a search goes said twice,
    such as levels beside the density of the last one: `Settings.instead_of`, if a method has it.

    Args:
        chosen: the method.
        said: names of the settings that were given, with whatever value.
    """
    names = set(said)
    for name, others in getattr(chosen.Settings, "instead_of", {}).items():
        if name in names and (twice := [other for other in others if other in names]):
            raise UsageError(f"{name} stands in place of {' and '.join(twice)}: give one of them")
    known = {field.name for field in fields(chosen.Settings)}
    if missing := [name for name in COUNTED if name in names and name not in known]:
        able = [name for name in METHODS.built_in if issubclass(METHODS.get(name).Settings, Aimed)]
        raise UsageError(
            f"{chosen.name} cannot aim at {COUNTED[missing[0]]} (--{missing[0]}): its masks do not come"
            f" from scores of weights at the end; these methods can: {', '.join(able)}"
        )
