"""Registries that other packages extend: families, methods, metrics, worlds, prompt sources and formats, trackers.

An installed package adds to a registry by an entry point of the registry's group; an entry is imported only when it is
asked for by name. See docs/plugins.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from rmd.common.errors import RMDError, one_of, shown

T = TypeVar("T")


class Registry(Generic[T]):
    """Entries of one kind by name: RMD's own, those registered in this process, and those of other packages.

    Args:
        group: the group of the entry points, such as `rmd.metrics`.
        kind: what error messages call an entry, such as "metric".
        own: RMD's own entries: the name of each, and where it is defined, as "module:attribute".
    """

    def __init__(self, group: str, kind: str, own: Mapping[str, str]) -> None:
        self.group, self.kind = group, kind
        self._own = dict(own)
        self._loaded: dict[str, T] = {}

    def names(self) -> tuple[str, ...]:
        """Return all names: RMD's own first, then those registered in this process, then those of other packages.

        Raises:
            RMDError: an installed package uses a name that another one has.
        """
        return tuple(dict.fromkeys([*self._own, *self._loaded, *self._installed]))

    def register(self, name: str, entry: T) -> None:
        """Add an entry in this process.

        A class of the same module and qualified name replaces the earlier one: a notebook's cell may run again.

        Raises:
            RMDError: the name is taken by another entry.
        """
        if name in self.names() and _identity(self._loaded.get(name)) != _identity(entry):
            raise RMDError(f"the name {shown(name)} belongs to another {self.kind}: register yours under another name")
        self._loaded[name] = entry

    def get(self, name: str) -> T:
        """Return the entry of a name, importing it on first use.

        Raises:
            RMDError: there is no entry of this name, or the package that provides it cannot be imported.
        """
        if name not in self._loaded:
            one_of(self.kind, name, self.names())
            self._loaded[name] = self._import(name)
        return self._loaded[name]

    def _import(self, name: str) -> T:
        if name in self._own:
            module, attribute = self._own[name].split(":")
            entry: T = getattr(import_module(module), attribute)
            return entry
        point = self._installed[name]
        try:
            entry = point.load()
        except Exception as error:  # a plug-in's module may raise anything while it is imported
            raise RMDError(
                f"the {self.kind} {shown(name)} of the package {_package(point)} cannot be imported "
                f"({type(error).__name__}: {error}): update or uninstall that package"
            ) from error
        return entry

    @cached_property
    def _installed(self) -> dict[str, EntryPoint]:
        points: dict[str, EntryPoint] = {}
        for each in sorted(entry_points(group=self.group), key=lambda each: each.name):
            other = points.get(each.name)
            if other is not None and other.value == each.value:
                continue  # the same package, which two folders of the path contain
            if each.name in self._own or other is not None:
                owner = "RMD itself" if other is None else f"the package {_package(other)}"
                raise RMDError(
                    f"the package {_package(each)} provides a {self.kind} {shown(each.name)}, a name that belongs to "
                    f"{owner}: uninstall one of them"
                )
            points[each.name] = each
        return points


def _identity(entry: object) -> object:
    """Return what makes two entries the same: the place where a class is defined, or the object itself."""
    return (entry.__module__, entry.__qualname__) if isinstance(entry, type) else id(entry)


def _package(entry: EntryPoint) -> str:
    return "(unknown)" if entry.dist is None else entry.dist.name
