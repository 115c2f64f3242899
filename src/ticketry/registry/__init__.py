"""Registries map names to objects: methods, scores, gates, controls, tasks, models, data sets, runners and others.

Every name stands for an object in a module; the module is imported when the object is first requested. A name is

built in
    if the mapping with which the registry was created has it, with its ``module:object``;
from an installed package
    if the package has an entry point of this name, with its ``module:object``, in its pyproject.toml::

        [project.entry-points."ticketry.tasks"]
        moons = "my_package.tasks:Moons"
user-defined
    if it is itself written ``package.module:object``; the module may be in the current directory.

A registry whose objects can be modules also accepts a name without a colon: ``mine`` for ``mine.py`` in the current
directory, or ``package.module``. If an entry point of a package cannot be used, a warning names the package and all
other names keep working. A package cannot replace a built-in name.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar

from ticketry.choices import did_you_mean
from ticketry.errors import PluginError, TicketryError, UsageError
from ticketry.registry.loading import import_from_here, is_module, load, require_user_file, resolve
from ticketry.registry.sources import digest_defining_source, digest_source, find_reached_modules

__all__ = [
    "BUILT_IN",
    "Registry",
    "digest_defining_source",
    "digest_source",
    "find_reached_modules",
    "import_from_here",
    "is_offered",
    "load",
    "resolve",
]

T = TypeVar("T")

BUILT_IN = "built in"

_PREFIX = "ticketry."
GROUPS = {
    *("ticketry.methods", "ticketry.scores", "ticketry.gates", "ticketry.controls", "ticketry.tasks"),
    *("ticketry.models", "ticketry.language_models", "ticketry.data", "ticketry.runners", "ticketry.loggers"),
}
"""All groups of entry points that ticketry uses. They are listed here because most registries are created late."""
_log = logging.getLogger(__name__)


class Registry(Generic[T]):
    """Finds objects of one kind, such as tasks, by their names."""

    def __init__(
        self,
        kind: str,
        group: str,
        built_in: Mapping[str, str],
        *,
        needs: Sequence[str] = (),
        make: Callable[[str, Any], T] | None = None,
        aliases: Mapping[str, str] | None = None,
        modules: bool = False,
        error: type[TicketryError] = UsageError,
        unknown: str = "{kind} {name!r} is not known: {names}",
    ) -> None:
        """
        Args:
            kind: what the objects are, for messages, such as "task" or "search method".
            group: group of entry points in which packages offer objects, such as "ticketry.tasks".
            built_in: built-in names, in the order of lists for users, each with its ``module:object``.
            needs: names of attributes that every object must have.
            make: called with a name and the object found; `get` returns its result. By default `get` returns the
                object. `make` may raise a `TicketryError`.
            aliases: further names, each with the built-in name that it stands for.
            modules: whether objects can be modules, so that the name of a module is valid too.
            error: class of the error for an unknown name, or for a user-defined object that cannot be used.
            unknown: begin of the message for an unknown name. The message also says how to name an object of one's own,
                and which known name is nearest.
        """
        self.kind = kind
        self.group = group
        GROUPS.add(group)
        self.built_in = dict(built_in)
        self.aliases = dict(aliases or {})
        self._needs = tuple(needs)
        self._make = make
        self._modules = modules
        self._error = error
        self._unknown = unknown
        self._built: dict[str, T] = {}
        """Built-in objects that were requested before, by name."""
        self._shadowed: set[_EntryPoint] = set()

    def names(self) -> tuple[str, ...]:
        """Return the built-in names, then those of installed packages, without importing anything."""
        return (*self.built_in, *sorted(self._list_entry_points()))

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __contains__(self, name: str) -> bool:
        return self.aliases.get(name, name) in self.built_in or name in self._list_entry_points()

    def get(self, name: str) -> T:
        """Return the object with this name, after importing its module.

        Raises:
            PluginError: if two packages offer the name, or if the object of a package cannot be imported or lacks a
                needed attribute.
            TicketryError: the registry's `error` class, if the name is unknown, or if a user-defined object cannot be
                imported or lacks a needed attribute.
        """
        target, where = self.find_target(name), self.find_origin(name)
        if where == BUILT_IN:
            own = self.aliases.get(name, name)
            if own not in self._built:
                self._built[own] = self._check_kind_and_build(own, resolve(target))
            return self._built[own]
        offered = name in self._list_entry_points()
        if not offered:
            import_from_here()
        try:
            found = load(target)
            if not offered:
                require_user_file(name, found)
            return self._check_kind_and_build(name, found)
        except TicketryError as error:
            if offered:
                raise PluginError(f"the {self.kind} {name!r} of the package {where} cannot be used: {error}") from error
            raise self._error(f"{self.kind} {name!r} is not known: {error}") from error

    def find_origin(self, name: str) -> str:
        """Return where the object comes from: "built in", a package with its version, or the name of a module."""
        if self.aliases.get(name, name) in self.built_in:
            return BUILT_IN
        offers = self._list_entry_points().get(name)
        return " and ".join(offer.package for offer in offers) if offers else self.find_target(name).partition(":")[0]

    def find_target(self, name: str) -> str:
        """Return the ``module:object`` for a name without importing the module; raise the errors of `get`."""
        offers = self._list_entry_points().get(name, [])
        if len(offers) > 1:
            which = " and ".join(f"{offer.package} ({offer.target})" for offer in offers)
            raise PluginError(
                f"several packages offer a {self.kind} {name!r}: {which}; uninstall all but one, or name the one that"
                " you want as module:object"
            )
        if offers:
            return offers[0].target
        if self.aliases.get(name, name) in self.built_in:
            return self.built_in[self.aliases.get(name, name)]
        if not self._is_user_defined(name):
            raise self.build_unknown_error(name)
        return name

    def is_outside(self, name: str) -> bool:
        """Return whether a name stands for code outside ticketry: an object of another package, or a user's own."""
        return self.aliases.get(name, name) not in self.built_in and (
            self._is_user_defined(name) or name in self._list_entry_points()
        )

    def _is_user_defined(self, name: str) -> bool:
        """Return whether a name is user-defined: ``module:object``, or a module if objects can be modules."""
        return ":" in name or (self._modules and is_module(name))

    def digest_source(self, name: str) -> str:
        """Return a digest of the source code of the object `name`, for keys of results; "" for a built-in object."""
        return "" if self.find_origin(name) == BUILT_IN else digest_source(self.find_target(name), self.get(name))

    def load_usable(self) -> dict[str, T]:
        """Return all objects by name; omit an object of a package that cannot be used, with a warning in the log."""
        found = {}
        for name in self.names():
            try:
                found[name] = self.get(name)
            except PluginError as error:
                _log.warning("%s", error)
        return found

    def build_unknown_error(self, name: str) -> TicketryError:
        """Return the error for an unknown name; the message lists the known names and the most similar one."""
        names = (*self.names(), *self.aliases)
        text = self._unknown.format(kind=self.kind, name=name, names=", ".join(names))
        near = did_you_mean(name, names)
        own = "package.module or NAME for NAME.py in this folder" if self._modules else "package.module:object"
        error = self._error(f"{text}; or your own as {own}{f'; {near}' if near else ''}".rstrip())
        error.exit_code = UsageError.exit_code  # a mistyped word is wrong usage, whatever the error's class
        return error

    def _check_kind_and_build(self, name: str, found: Any) -> T:
        """Return what `make` returns for the object `found`; raise `UsageError` if it lacks a needed attribute.

        Args:
            name: name of the object.
            found: the object.
        """
        missing = [part for part in self._needs if not hasattr(found, part)]
        if missing:
            raise UsageError(f"it has no {missing[0]}, and a {self.kind} has {' and '.join(self._needs)}")
        try:
            made: T = self._make(name, found) if self._make else found
        except TicketryError:
            raise
        except (Exception, SystemExit) as error:  # other people's constructors may raise anything
            raise UsageError(f"it cannot be made: {type(error).__name__}: {error}") from error
        return made

    def _list_entry_points(self) -> dict[str, list[_EntryPoint]]:
        """Return, by name, the entry points of installed packages in this group; built-in names are left out."""
        found: dict[str, list[_EntryPoint]] = {}
        for offer in _find_entry_points(tuple(sys.path)):
            if offer.group != self.group:
                continue
            if self.aliases.get(offer.name, offer.name) not in self.built_in:
                found.setdefault(offer.name, []).append(offer)
            elif offer not in self._shadowed:
                self._shadowed.add(offer)
                _log.warning(
                    "the package %s offers a %s %r, which is the name of one that is built in; the built-in one is"
                    " used: name the other as %s",
                    *(offer.package, self.kind, offer.name, offer.target),
                )
        return found


def is_offered(name: str) -> bool:
    """Return whether an installed package has an entry point with this name, in any group of ticketry."""
    return any(offer.name == name for offer in _find_entry_points(tuple(sys.path)))


@dataclass(frozen=True, order=True)
class _EntryPoint:
    """Describes an entry point by which an installed package offers an object to a registry."""

    group: str
    name: str
    package: str
    """Name and version of the package."""
    target: str
    """The ``module:object`` that the name stands for."""


def _warn_unknown_groups(offers: Sequence[_EntryPoint]) -> None:
    """Log a warning for each group of entry points that no registry uses; such a group is probably mistyped."""
    for group in sorted({offer.group for offer in offers} - GROUPS):
        package = next(offer.package for offer in offers if offer.group == group)
        near = did_you_mean(group, sorted(GROUPS))
        _log.warning(
            "the package %s has entry points in the group %s, which ticketry does not have: they are ignored%s",
            *(package, group, f"; {near}" if near else ""),
        )


@lru_cache(maxsize=8)
def _find_entry_points(path: tuple[str, ...]) -> tuple[_EntryPoint, ...]:
    """Return all entry points in groups that begin with "ticketry.", of the packages in the folders `path`."""
    from importlib.metadata import distributions  # 20 ms, and not needed for help

    found: dict[str, list[_EntryPoint]] = {}
    for package in distributions(path=list(path)):
        name = "?"
        try:
            if _PREFIX not in (package.read_text("entry_points.txt") or ""):
                continue
            name = package.metadata["Name"]
            offers = [
                _EntryPoint(point.group, point.name, f"{name} {package.version}", point.value.partition("[")[0].strip())
                for point in package.entry_points
                if point.group.startswith(_PREFIX)
            ]
        except Exception as error:  # a damaged package must not break the others
            _log.warning("the entry points of the package %s cannot be read: %s: %s", name, type(error).__name__, error)
            continue
        if name.lower().replace("_", "-") not in found:
            _warn_unknown_groups(offers)
        found.setdefault(name.lower().replace("_", "-"), offers)  # the first along the path is the one imported
    return tuple(sorted(offer for offers in found.values() for offer in offers))
