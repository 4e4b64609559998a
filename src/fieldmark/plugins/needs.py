"""What a run records of the plugins that it used, and the check that they are here again."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fieldmark.errors import RunError
from fieldmark.plugins.installed import Installed, installed, load, normal, owners
from fieldmark.plugins.plugin import KINDS

_PACKAGE = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]{0,63}")
_NAME = re.compile(r"[A-Za-z_][\w.-]{0,63}")


@dataclass(frozen=True)
class Need:
    """A plugin that a run used, and the names that it used of it."""

    package: str
    version: str
    plugin: str
    """The entry point's name."""
    names: tuple[tuple[str, str], ...]
    """(kind, name), sorted."""

    def __str__(self) -> str:
        used = ", ".join(f"{KINDS[kind]} {name}" for kind, name in self.names)
        return f"the plugin {self.package} {self.version} ({used})"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        kinds = dict.fromkeys(kind for kind, _ in self.names)
        return {
            "package": self.package,
            "version": self.version,
            "plugin": self.plugin,
            "names": {kind: [n for k, n in self.names if k == kind] for kind in kinds},
        }


def read_needs(value: object, *, where: str) -> tuple[Need, ...]:
    """Read a list of what :meth:`Need.to_json` gave.

    Raises:
        RunError: if it is something else.
    """
    try:
        return tuple(_read(each) for each in _checked(value, list))
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{where}: plugins is not what a run writes: {error}") from None


def _read(value: object) -> Need:
    each = _checked(value, dict)
    if set(each) != {"package", "version", "plugin", "names"}:
        raise ValueError(f"its keys are {', '.join(map(repr, each))}")
    names = tuple(
        sorted(
            (kind, _text(name, _NAME))
            for kind, listed in _checked(each["names"], dict).items()
            for name in _checked(listed, list)
        )
    )
    unknown = sorted({str(kind) for kind, _ in names} - set(KINDS))
    if unknown or not names:
        raise ValueError(f"no kind {unknown[0]!r}" if unknown else "no name is in it")
    package, version = _text(each["package"], _PACKAGE), _text(each["version"], _VERSION)
    return Need(normal(package), version, _text(each["plugin"], _NAME), names)


def _checked(value: object, kind: type) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _text(value: object, form: re.Pattern[str]) -> str:
    if not isinstance(value, str) or not form.fullmatch(value):
        raise ValueError(f"{value!r} is no name or version")
    return value


def needs_of(used: Iterable[tuple[str, str]]) -> tuple[Need, ...]:
    """The plugins that these names, by kind, belong to; names of none are left out."""
    found: dict[Installed, set[tuple[str, str]]] = {}
    for kind, name in used:
        for owner in owners(kind, name)[:1]:
            found.setdefault(owner.installed, set()).add((kind, name))
    return tuple(
        Need(each.package, each.version, each.name, tuple(sorted(found[each])))
        for each in installed()
        if each in found
    )


def only(needs: Sequence[Need], kinds: Iterable[str]) -> tuple[Need, ...]:
    """What is left of the needs if only names of these kinds count."""
    wanted = set(kinds)
    left = (
        (need, tuple((kind, name) for kind, name in need.names if kind in wanted)) for need in needs
    )
    return tuple(Need(n.package, n.version, n.plugin, names) for n, names in left if names)


def check_needs(needs: Sequence[Need], *, where: str, allow_version: bool = False) -> list[str]:
    """Make sure that what a run needs is installed; nothing else is imported.

    Args:
        needs: What the run records.
        where: The file that says so.
        allow_version: Take another version of a plugin than the run was made with.

    Returns:
        What to tell of versions that differ.

    Raises:
        RunError: naming package and version, and what to do.
    """
    told = []
    for need in needs:
        found = [i for i in installed() if (i.package, i.name) == (need.package, need.plugin)]
        if not found:
            raise RunError(
                f"{where} needs {need}, which is not installed: "
                f"pip install {need.package}=={need.version} (if you trust it: it is a program)"
            )
        there = found[0]
        if there.version != need.version:
            if not allow_version:
                raise RunError(
                    f"{where} needs {need}, but {there.version} is installed: "
                    f"pip install {need.package}=={need.version}, or take {there.version} with "
                    "--allow-plugin-version (allow_plugin_version=True in Python); its results "
                    "may then differ"
                )
            told.append(
                f"{where} was made with {need}; {there.version} is taken (--allow-plugin-version), "
                "with which results may differ"
            )
        _check_names(need, there, where)
    return told


def _check_names(need: Need, there: Installed, where: str) -> None:
    loaded = load(there)
    if loaded.trouble:
        raise RunError(f"{where} needs {need}, which cannot be loaded: {loaded.trouble}")
    for kind, name in need.names:
        if name not in loaded.plugin.table(kind):
            raise RunError(
                f"{where} needs {need}, but {there} has no {KINDS[kind]} {name!r}: "
                f"pip install {need.package}=={need.version}"
            )


def recorded(needs: Sequence[Need]) -> Mapping[str, set[str]]:
    """Names by kind."""
    found: dict[str, set[str]] = {}
    for need in needs:
        for kind, name in need.names:
            found.setdefault(kind, set()).add(name)
    return found
