"""Plugins that are installed: found by their entry points, imported when a name asks for them.

Installing a package is the user's word that its code may run. Nothing else is ever imported: not
what a run, a setting or a file names.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fieldmark.errors import ConfigError
from fieldmark.plugins import handed
from fieldmark.plugins.plugin import KINDS, Plugin, kind_of

if TYPE_CHECKING:
    from importlib import metadata

GROUP = "fieldmark.plugins"
"""The group of entry points."""


@dataclass(frozen=True)
class Installed:
    """A plugin's entry point, not imported."""

    package: str
    """The distribution that brings it."""
    version: str
    name: str
    """Name of the entry point."""
    point: metadata.EntryPoint

    def __str__(self) -> str:
        return f"{self.package} {self.version}"


@dataclass(frozen=True)
class Loaded:
    """A plugin after its import; with the reason in ``trouble`` if that failed."""

    installed: Installed
    plugin: Plugin = Plugin()  # noqa: RUF009 - frozen, and its mappings are never written to
    trouble: str = ""


def normal(package: str) -> str:
    """A package's name as all its spellings have it."""
    return re.sub(r"[-_.]+", "-", package).lower()


@functools.cache
def installed() -> tuple[Installed, ...]:
    """The plugins' entry points by package and name; looking takes tens of milliseconds."""
    from importlib import metadata

    found = [
        Installed(normal(point.dist.name), point.dist.version, point.name, point)
        for point in metadata.entry_points(group=GROUP)
        if point.dist is not None and point.dist.name  # half removed packages have none
    ]
    return tuple(sorted(found, key=lambda each: (each.package, each.name)))


@functools.cache
def load(each: Installed) -> Loaded:
    """Import a plugin; whatever its code raises becomes the reason why it cannot be used."""
    try:
        plugin = each.point.load()
    except (Exception, SystemExit) as error:
        first = (str(error).splitlines() or [""])[0][:200]
        return Loaded(each, trouble=f"{type(error).__name__}: {first}".removesuffix(": "))
    if not isinstance(plugin, Plugin):
        kind = type(plugin).__name__
        return Loaded(each, trouble=f"{each.point.value} is a {kind}, not a fieldmark Plugin")
    return Loaded(each, plugin)


def load_all() -> tuple[Loaded, ...]:
    """Import every installed plugin, in the order of :func:`installed`."""
    return tuple(load(each) for each in installed())


def any_loaded() -> bool:
    """Whether a plugin was imported already; if not, none can have been used."""
    return load.cache_info().currsize > 0


def forget() -> None:
    """Look for plugins anew when next asked; for a notebook in which one was just installed."""
    installed.cache_clear()
    load.cache_clear()


def owners(kind: str, name: str) -> list[Loaded]:
    """The plugins that have a name of a kind."""
    return [each for each in load_all() if name in each.plugin.table(kind)]


def find(what: str, name: str, *, built_in: Iterable[str]) -> Any:
    """What a plugin, or the caller in Python, has under a name that is not built in; else None.

    Args:
        what: A setting's word, such as ``model`` or ``augment``.
        name: The name.
        built_in: The names of the built-in table, which a plugin must not have, too.

    Raises:
        ConfigError: if two plugins have the name, or the one that has it hides built-in names.
    """
    kind = kind_of(what)
    if not kind:
        return None
    if handed.is_handed(name):
        return handed.find(kind, name)
    found = owners(kind, name)
    if not found:
        return None
    trouble = clash(kind, name, found) or hiding(kind, found[0], built_in)
    if trouble:
        raise ConfigError(trouble)
    return found[0].plugin.table(kind)[name]


def clash(kind: str, name: str, found: list[Loaded]) -> str:
    """What is wrong if several plugins have one name; empty if only one has it."""
    if len(found) < 2:
        return ""
    both = " and of ".join(str(each.installed) for each in found)
    return f"{KINDS[kind]} {name!r} is a name of {both}; uninstall one of them"


def hiding(kind: str, loaded: Loaded, built_in: Iterable[str]) -> str:
    """What is wrong if a plugin has names that are built in; empty if it has none."""
    hidden = sorted(set(built_in) & set(loaded.plugin.table(kind)))
    if not hidden:
        return ""
    return (
        f"the plugin {loaded.installed} gives the {KINDS[kind]} {hidden[0]!r} another meaning, "
        "which is fieldmark's own; its author has to give it another name"
    )


def entries(what: str) -> dict[str, Any]:
    """All names of a kind that plugins add, with what they stand for; imports every plugin."""
    found: dict[str, Any] = {}
    for each in load_all():
        for name, value in each.plugin.table(kind_of(what)).items():
            found.setdefault(name, value)
    return found


def names(what: str) -> list[str]:
    """The names of a kind that plugins add and callers handed over."""
    kind = kind_of(what)
    return [*entries(what), *handed.names(kind)] if kind else []


def troubles() -> str:
    """A part of a sentence about the plugins that could not be loaded; empty if all could."""
    broken = [each for each in load_all() if each.trouble]
    told = "; ".join(f"{each.installed}, {each.trouble}" for each in broken)
    return f"; not loaded: the plugin {told}" if broken else ""


def problems(tables: Mapping[str, Iterable[str]]) -> Iterator[tuple[Loaded, str]]:
    """Every plugin with what is wrong with it, empty if nothing; ``tables`` are the built-in ones.

    Args:
        tables: Built-in names by kind.
    """
    for each in load_all():
        found = [each.trouble]
        for kind in KINDS:
            found.append(hiding(kind, each, tables.get(kind, ())))
            found += [clash(kind, n, owners(kind, n)) for n in each.plugin.table(kind)]
        yield each, "; ".join(text for text in found if text)
