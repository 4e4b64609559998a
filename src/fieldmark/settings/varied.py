"""Settings that a comparison or a search varies: which may be, and how their values are given.

On the command line a setting's name stands before its values: ``lr 0.01 0.001``, or joined to the
first one, ``lr=0.01 0.001``. A spec string is one value, whatever signs are in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fieldmark.errors import ConfigError
from fieldmark.settings.config import check_names

SPEED = ("device", "precision", "threads", "channels_last", "compile", "save_every")
"""Settings that decide how fast training is, and not what is learnt beyond rounding."""
PICTURES = ("split", "split_seed", "whole_batches", "on_bad", "fail_on_leak", "max_pixels")
"""Settings that decide which pictures there are, and which of them are scored."""
SHARED = ("memory_gb", "disk_gb")
"""Settings of the store of decoded pictures, which all runs share."""


def flag(name: str) -> str:
    """A setting's flag on the command line."""
    return "--" + name.replace("_", "-")


def grouped(
    groups: Iterable[Sequence[str]], read: Callable[[str, str], Any], *, by: str
) -> dict[str, list[Any]]:
    """Settings with their values, from the words of every use of a flag.

    Args:
        groups: The words of each use: a name and its values.
        read: Makes a value from a setting's name and a word, and refuses what the setting does not
            take.
        by: The flag, for messages.

    Raises:
        ConfigError: if there is no such setting, or it has no value, or comes twice.
    """
    found: dict[str, list[Any]] = {}
    for first, *rest in groups:
        given, joined, value = first.partition("=")
        name = given.strip().removeprefix("--").replace("-", "_")
        check_names([name])
        if name in found:
            raise ConfigError(
                f"{by} {name} is there twice; give all of its values after one of them"
            )
        words = [value, *rest] if joined else rest
        if not words:
            raise ConfigError(f"{by} {name} has no values; give them after it: {by} {name} A B")
        found[name] = [read(name, word) for word in words]
    return found


def listed(vary: Mapping[str, Sequence[Any]]) -> dict[str, tuple[Any, ...]]:
    """The values of each setting, as a Python program gave them.

    Raises:
        ConfigError: if they are not a list.
    """
    for name, values in vary.items():
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise ConfigError(
                f"vary {name!r} is {values!r}; a list of values is accepted, such as [0.01, 0.001]"
            )
    return {name: tuple(values) for name, values in vary.items()}


def check(vary: Mapping[str, Sequence[Any]], settings: Mapping[str, Any]) -> None:
    """Refuse settings that cannot be compared.

    Args:
        vary: The varied settings and their values.
        settings: What is given for all candidates.

    Raises:
        ConfigError: naming the setting, and what to do instead.
    """
    for name, values in vary.items():
        refuse(name, settings, _INSTEAD, be="varied")
        if len(values) < 2:
            raise ConfigError(
                f"{name} has {len(values)} value to compare; give at least two, such as "
                f"--vary {name} A B, or {flag(name)} for the same value in all"
            )


def refuse(name: str, settings: Mapping[str, Any], instead: Mapping[str, str], *, be: str) -> None:
    """Refuse a setting that must be the same for all.

    Args:
        name: The setting.
        settings: What is given for all.
        instead: Further settings that are refused, and what to do.
        be: What would be done with it: varied or searched.

    Raises:
        ConfigError: naming the setting, and what to do instead.
    """
    check_names([name])
    if name in instead:
        raise ConfigError(f"{name} cannot be {be}: {instead[name]}")
    if name in PICTURES:
        raise ConfigError(
            f"{name} cannot be {be}: it decides which pictures are used and scored, and only "
            f"scores of the same pictures can be compared; give it for all, with {flag(name)}"
        )
    if name in SHARED:
        raise ConfigError(
            f"{name} cannot be {be}: the pictures are read once for all runs, so it would "
            f"have no effect; give it for all, with {flag(name)}"
        )
    if name in settings:
        raise ConfigError(
            f"{name} is {be} and also given as {settings[name]!r} for all; leave one of them out"
        )


_INSTEAD = {
    "model": "name the networks with --models",
    "seed": "say how often each is trained with --seeds; the seeds are 0, 1, 2, ...",
}
