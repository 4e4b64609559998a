"""What may change training between epochs: stateful, one call an epoch, state in the checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from fieldmark.errors import ConfigError, did_you_mean
from fieldmark.spec import call, lookup, parse_pipe

MONITORS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_macro_f1")
"""The metrics that exist."""


def check_monitor(name: str) -> str:
    """Return the name if there is such a metric.

    Raises:
        ConfigError: listing those there are.
    """
    if name not in MONITORS:
        raise ConfigError(
            f"no metric {name!r}{did_you_mean(name, MONITORS)} (known: {', '.join(MONITORS)})"
        )
    return name


def better(name: str, value: float, than: float | None, *, by: float = 0.0) -> bool:
    """Whether a metric improved by more than ``by``. NaN is never better, anything beats None."""
    if math.isnan(value):
        return False
    if than is None or math.isnan(than):
        return True
    return value < than - by if name.endswith("loss") else value > than + by


@dataclass
class Control:
    """What callbacks may change."""

    lr_scale: float = 1.0
    """Factor of the learning rate on top of the schedule."""
    lr: float = 0.0
    """The rate of the last step, for information."""
    stop: str = ""
    """Why training should end; empty to go on."""
    messages: list[str] = field(default_factory=list)
    """Things to tell the user."""


class Callback(Protocol):
    """Called after every epoch."""

    def after_epoch(self, epoch: int, metrics: Mapping[str, float], control: Control) -> None:
        """Look at the epoch's metrics and change ``control``."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values for the checkpoint."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""


@dataclass
class EarlyStopping:
    """Stop after ``patience`` epochs without an improvement of more than ``min_delta``."""

    monitor: str
    patience: int
    min_delta: float
    best: float | None = None
    waited: int = 0

    def after_epoch(self, epoch: int, metrics: Mapping[str, float], control: Control) -> None:
        """Count epochs without improvement."""
        value = metrics[self.monitor]
        if better(self.monitor, value, self.best, by=self.min_delta):
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            best = "never a number" if self.best is None else f"stays at {self.best:.4f}"
            control.stop = f"{self.monitor} {best} for {self.waited} epochs"

    def state_dict(self) -> dict[str, Any]:
        """Best value and counter."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self.best, self.waited = state["best"], state["waited"]


@dataclass
class ReduceOnPlateau:
    """Multiply the learning rate by ``factor`` after ``patience`` epochs without improvement."""

    monitor: str
    factor: float
    patience: int
    min_delta: float
    cooldown: int
    min_lr: float
    best: float | None = None
    waited: int = 0
    cooling: int = 0

    def after_epoch(self, epoch: int, metrics: Mapping[str, float], control: Control) -> None:
        """Count epochs without improvement, outside of the cool-down after a reduction."""
        value = metrics[self.monitor]
        if self.cooling > 0:
            self.cooling, self.waited = self.cooling - 1, 0
        if better(self.monitor, value, self.best, by=self.min_delta):
            self.best, self.waited = value, 0
            return
        if self.cooling > 0:
            return
        self.waited += 1
        if self.waited >= self.patience and control.lr > self.min_lr:
            wanted = max(control.lr * self.factor, self.min_lr)
            control.lr_scale *= wanted / control.lr
            control.messages.append(f"learning rate reduced to {wanted:.3g} after epoch {epoch}")
            self.cooling, self.waited = self.cooldown, 0

    def state_dict(self) -> dict[str, Any]:
        """Best value and counters."""
        return {"best": self.best, "waited": self.waited, "cooling": self.cooling}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self.best, self.waited, self.cooling = state["best"], state["waited"], state["cooling"]


def early_stopping(
    default: str, patience: int = 10, min_delta: float = 0.0, monitor: str = ""
) -> Callback:
    """Stop after ``patience`` epochs without an improvement of more than ``min_delta``."""
    if patience < 1 or min_delta < 0:
        raise ValueError("patience must be at least 1 and min_delta at least 0")
    return EarlyStopping(check_monitor(monitor or default), patience, float(min_delta))


def reduce_on_plateau(
    default: str,
    factor: float = 0.1,
    patience: int = 10,
    min_delta: float = 0.0001,
    cooldown: int = 0,
    min_lr: float = 0.0,
    monitor: str = "",
) -> Callback:
    """Multiply the learning rate by ``factor`` after ``patience`` epochs without improvement."""
    if not 0 < factor < 1 or patience < 1 or min(min_delta, cooldown, min_lr) < 0:
        raise ValueError("factor must be between 0 and 1, patience at least 1, the rest at least 0")
    return ReduceOnPlateau(
        check_monitor(monitor or default),
        float(factor),
        patience,
        float(min_delta),
        cooldown,
        float(min_lr),
    )


CALLBACKS: dict[str, Callable[..., Callback]] = {
    "early_stopping": early_stopping,
    "reduce_on_plateau": reduce_on_plateau,
}


def build(text: str, *, monitor: str) -> list[Callback]:
    """Build callbacks from a pipe of specs; ``monitor`` is what they watch unless told otherwise.

    Raises:
        ConfigError: if there is no such callback or metric, or arguments do not fit.
    """
    check_monitor(monitor)
    return [
        call(spec, lookup(spec, CALLBACKS, what="callback"), monitor, what="callback")
        for spec in parse_pipe(text, what="callbacks")
    ]
