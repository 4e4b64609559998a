"""Settings parsed once: every spec string of a :class:`TrainConfig` as a typed value.

A job keeps them, and what is built from a setting gets the value, not the text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fieldmark.errors import ConfigError
from fieldmark.settings.config import TrainConfig
from fieldmark.settings.spec import Spec, parse, parse_pipe
from fieldmark.settings.weights import WeightsFrom


@dataclass(frozen=True)
class Hardest:
    """Training on the pictures with the highest losses only."""

    share: float = 1.0
    """Share of the pictures that is used."""
    after: int = 0
    """Number of epochs before that, which train on all pictures."""

    def count(self, pictures: int, epoch: int) -> int:
        """Number of pictures, of all ``pictures``, in the epoch after ``epoch`` finished ones."""
        return pictures if epoch < self.after else math.ceil(self.share * pictures)


ALL_PICTURES = Hardest()


@dataclass(frozen=True)
class Stage:
    """A stage of training with smaller pictures."""

    until: float
    """The share of all steps at which the stage ends."""
    size: int
    """Height and width of the pictures in pixels."""


@dataclass(frozen=True)
class FreezeAfter:
    """A module of the network that stops training early."""

    part: str
    """Name of the module."""
    epochs: int
    """Number of epochs after which it is frozen."""


@dataclass(frozen=True)
class Landing:
    """A training that is shortened on its way."""

    step: int
    """The step from which on the rest of the schedule is gone through faster."""
    end: int
    """The step at which training ends."""

    def __str__(self) -> str:
        return f"{self.step}:{self.end}"


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """The parsed spec strings of a config."""

    config: TrainConfig
    model: Spec | None
    """None for ``auto``."""
    weights: WeightsFrom
    optimizer: Spec
    schedule: Spec
    augment: tuple[Spec, ...]
    mix: tuple[Spec, ...]
    callbacks: tuple[Spec, ...]
    loss: Spec
    metrics: tuple[Spec, ...]
    progressive: tuple[Stage, ...]
    hardest: Hardest
    freeze_after: tuple[FreezeAfter, ...]
    landing: tuple[Landing, ...]

    @classmethod
    def of(cls, config: TrainConfig, *, before: Resolved | None = None) -> Resolved:
        """Parse the spec strings of a config.

        Args:
            config: The settings.
            before: The result for earlier settings: what both have in common is not parsed again.

        Raises:
            ConfigError: if a text does not have its form. Whether what it names exists is
                checked later, against its table.
        """
        values = {
            name: getattr(before, name)
            if before is not None and getattr(before.config, name) == getattr(config, name)
            else read(getattr(config, name))
            for name, read in READERS.items()
        }
        return cls(config=config, **values)


def _model(text: str) -> Spec | None:
    return None if text == "auto" else parse(text, what="model")


def stages(text: str) -> tuple[Stage, ...]:
    """Read ``24@0.35|28@0.7``: 24 px for the first 35 % of the steps, 28 px up to 70 %, then full.

    Smaller pictures take less time, and what is learned from them helps with the larger ones. The
    last stage, of full size, is not in the result; ``none`` gives no stages.

    Raises:
        ConfigError: if it does not have that form, or shares do not rise.
    """
    found: list[Stage] = []
    for part in [] if text.strip() in ("", "none") else text.split("|"):
        form = _STAGE.fullmatch(part)
        if form is None:
            raise ConfigError(
                f"progressive {text!r}: {part!r} is not of the form SIZE@SHARE; "
                "accepted is such as 24@0.35|28@0.7, or none"
            )
        size, share = int(form.group(1)), float(form.group(2))
        if not (found[-1].until if found else 0) < share <= 1:
            raise ConfigError(
                f"progressive {text!r}: the share {share:g} is out of order; shares of all steps "
                "rise from above 0 to at most 1"
            )
        if size < 1:
            raise ConfigError(f"progressive {text!r}: {size} px; at least 1 px is accepted")
        found.append(Stage(share, size))
    return tuple(found)


def hardest(text: str) -> Hardest:
    """Read ``0.75@3``: from the fourth epoch on the hardest 75 % of the pictures; ``none`` is all.

    Raises:
        ConfigError: if it is not of that form, or the share is not above 0 and below 1.
    """
    if text.strip() in ("", "none"):
        return ALL_PICTURES
    form = _HARDEST.fullmatch(text)
    if form is None or not 0 < float(form.group(1)) < 1 or int(form.group(2)) < 1:
        raise ConfigError(
            f"hardest {text!r} is not of the form SHARE@EPOCHS, with a share between 0 and 1 "
            "and at least 1 epoch; accepted is such as 0.75@3, or none"
        )
    return Hardest(float(form.group(1)), int(form.group(2)))


def freeze_after(text: str) -> tuple[FreezeAfter, ...]:
    """Read ``whiten@3|stem@5``: modules, and after how many epochs each is frozen.

    Raises:
        ConfigError: if it is not of that form.
    """
    found: list[FreezeAfter] = []
    for part in [] if text.strip() in ("", "none") else text.split("|"):
        name, at, epochs = part.strip().rpartition("@")
        if not at or not epochs.isdecimal() or int(epochs) < 1:
            raise ConfigError(
                f"freeze_after {text!r}: {part!r} is not of the form NAME@EPOCHS; accepted is such "
                "as whiten@3, or none"
            )
        found.append(FreezeAfter(name, int(epochs)))
    return tuple(found)


def landings(text: str) -> tuple[Landing, ...]:
    """Read ``120:400|300:350``: shortened at step 120 to end at 400, at 300 to end at 350.

    Raises:
        ConfigError: if it is not of that form, or a landing does not lie within the one before.
    """
    found: list[Landing] = []
    for part in [] if text.strip() in ("", "none") else text.split("|"):
        form = _LANDING.fullmatch(part)
        new = Landing(*map(int, form.groups())) if form else None
        low, high = (found[-1].step, found[-1].end) if found else (0, 10**12)
        if new is None or not low <= new.step < new.end <= high:
            raise ConfigError(
                f"landing {text!r}: {part!r} is not of the form STEP:END, with END after STEP and "
                "each within the one before; accepted is such as 120:400|300:350, or none"
            )
        found.append(new)
    return tuple(found)


_LANDING = re.compile(r"\s*(\d{1,12}):(\d{1,12})\s*")
_HARDEST = re.compile(r"\s*(\d+(?:\.\d+)?|\.\d+)@(\d{1,6})\s*")
_STAGE = re.compile(r"\s*(\d{1,4})@(\d+(?:\.\d+)?|\.\d+)\s*")

READERS: dict[str, Callable[[str], Any]] = {
    "model": _model,
    "weights": WeightsFrom.read,
    "optimizer": lambda text: parse(text, what="optimizer"),
    "schedule": lambda text: parse(text, what="schedule"),
    "augment": lambda text: parse_pipe(text, what="augment"),
    "mix": lambda text: parse_pipe(text, what="mix"),
    "callbacks": lambda text: parse_pipe(text, what="callbacks"),
    "loss": lambda text: parse(text, what="loss"),
    "metrics": lambda text: parse_pipe(text, what="metrics"),
    "progressive": stages,
    "hardest": hardest,
    "freeze_after": freeze_after,
    "landing": landings,
}
"""The settings that are spec strings, and the function that parses each. ``split`` and
``save_every`` are parsed in ``config.py``, which checks them."""
