"""The request for a training: what the user asks for, in one value."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fieldmark.errors import ConfigError
from fieldmark.settings.config import TrainConfig, check_names

MOST_MINUTES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """Pictures, settings and a folder for the run.

    Raises:
        ConfigError: if a setting does not exist, or if more than one of recipe, config and run is
            given.
    """

    data: str
    """``digits``, ``cifar10``, ``cifar100``, or a folder."""
    recipe: str = "auto"
    """Name of a recipe; ``auto`` picks one by the data."""
    base: TrainConfig | None = None
    """Settings to use in place of a recipe."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of :class:`TrainConfig` that replace those of the recipe or base."""
    from_run: Path | None = None
    """A run whose settings, weights and order of classes are taken in place of a recipe."""
    out: Path | None = None
    """The run directory; None is a new one under ``runs/``."""
    minutes: float | None = None
    """Wall time for everything; None for as long as it takes."""

    def __post_init__(self) -> None:
        if self.base is not None and self.recipe != "auto":
            raise ConfigError("a recipe and a config file were both given; choose one of them")
        if self.from_run is not None and (self.base is not None or self.recipe != "auto"):
            raise ConfigError(
                "a run to train further and a recipe or a config file were both given; its "
                "settings are taken, and single ones can be given beside it"
            )
        check_names(self.settings)
        minutes = self.minutes
        number = isinstance(minutes, int | float) and not isinstance(minutes, bool)
        if minutes is not None and not (number and 0 < minutes <= MOST_MINUTES):
            raise ConfigError(
                f"minutes is {minutes!r}; a number above 0 is accepted, up to {MOST_MINUTES:,}"
            )

    def before_recipe(self) -> TrainConfig:
        """Return the settings as far as they are known before a recipe is chosen."""
        return dataclasses.replace(self.base or TrainConfig(), **self.settings)
