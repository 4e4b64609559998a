"""The house's contracts as checks that a plugin's author can run; no test runner is needed.

    @pytest.mark.parametrize("check", fieldmark.testing.checks(plugin), ids=str)
    def test_contracts(check):
        check()

A check raises AssertionError with what was expected and what came. Our own tables pass the same
ones (``tests/plugins/test_testing.py``). Entries are checked with their arguments at default; give
``functools.partial(entry, argument=...)`` for others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from fieldmark.plugins import KINDS, Plugin
from fieldmark.testing.augmentations import check_augmentation, check_mix
from fieldmark.testing.fitting import (
    check_callback,
    check_loss,
    check_optimizer,
    check_recipe,
    check_schedule,
)
from fieldmark.testing.networks import check_network
from fieldmark.testing.promises import check_described
from fieldmark.testing.readers import check_reader
from fieldmark.testing.scores import check_metric

__all__ = [
    "Check",
    "check_augmentation",
    "check_callback",
    "check_loss",
    "check_metric",
    "check_mix",
    "check_network",
    "check_optimizer",
    "check_plugin",
    "check_reader",
    "check_recipe",
    "check_schedule",
    "checks",
]

CHECKS: dict[str, Callable[[Any], None]] = {
    "networks": check_network,
    "augmentations": check_augmentation,
    "mixes": check_mix,
    "recipes": check_recipe,
    "schedules": check_schedule,
    "optimizers": check_optimizer,
    "losses": check_loss,
    "callbacks": check_callback,
    "metrics": check_metric,
    "readers": partial(check_described, given=1),
    "exporters": partial(check_described, given=2),
}
"""What is checked of an entry of each kind. What a reader reads is :func:`check_reader`'s."""


@dataclass(frozen=True)
class Check:
    """One entry's contract, to be called."""

    kind: str
    name: str
    entry: Any

    def __str__(self) -> str:
        return f"{KINDS[self.kind]} {self.name}"

    def __call__(self) -> None:
        """Check the entry.

        Raises:
            AssertionError: with what was expected and what came.
        """
        try:
            CHECKS[self.kind](self.entry)
        except AssertionError as error:
            raise AssertionError(f"{self}: {error}") from error


def checks(plugin: Plugin) -> list[Check]:
    """A check for every name that a plugin adds."""
    return [Check(k, name, entry) for k in KINDS for name, entry in plugin.table(k).items()]


def check_plugin(plugin: Plugin) -> None:
    """Check every name that a plugin adds.

    Raises:
        AssertionError: at the first that keeps a contract not.
    """
    for check in checks(plugin):
        check()
