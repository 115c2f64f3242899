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

from collections.abc import Iterable
from dataclasses import fields
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any

from ticketry.errors import UsageError
from ticketry.lab.search_result import Found, Seeds
from ticketry.registry import Registry
from ticketry.search.common.aliases import ALIASES, with_alias_defaults
from ticketry.search.common.method import Method
from ticketry.search.common.plan import Training
from ticketry.search.common.settings import COUNTED

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
    return METHODS.load_usable()


def method(name: str) -> Method[Any]:
    """Return the method with this name or alias, built-in or a user's own; raise `UsageError` if it is unknown.

    An alias, such as ``imp``, is a paper's name for a method with certain default settings, see `common.aliases`.

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
    return with_alias_defaults(found, name) if name in ALIASES else found


def check_named_settings(chosen: Method[Any], names: Iterable[str]) -> None:
    """Raise `UsageError` if the user gave settings that would have no effect.

    Examples are a cost budget for a method that has none, and ``levels`` together with ``density``, which overrides
    levels (`Settings.instead_of`).

    Args:
        chosen: the method.
        names: names of the settings that the user gave.
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
