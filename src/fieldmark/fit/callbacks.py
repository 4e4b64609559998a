"""Callbacks change training between epochs: one call an epoch; checkpoints hold their state.

Early stopping, plateaus and the choice of the best epoch decide as Keras 3 decides, in its order
and in its single precision: differences that only double precision sees are none, and a step of
exactly ``min_delta`` is not an improvement, however it is rounded. One thing is different on
purpose: **NaN is never the best**. In Keras, a NaN in the first epoch becomes the value to beat,
and nothing beats it; here the first number becomes that value, as in Keras 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from fieldmark.errors import ConfigError, did_you_mean
from fieldmark.settings.spec import Spec, call, lookup, parse_pipe

MONITORS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_macro_f1")
"""The metrics that can always be monitored."""


def check_monitor(name: str, further: Sequence[str] = ()) -> str:
    """Return the name if there is such a metric.

    Args:
        name: What to watch.
        further: Names of the metrics that were asked for.

    Raises:
        ConfigError: if there is none; the message lists the metrics.
    """
    known = (*MONITORS, *(f"val_{each}" for each in further))
    if name not in known:
        hint = "" if did_you_mean(name, known) else "; further ones are asked for with --metrics"
        raise ConfigError(
            f"no metric {name!r}{did_you_mean(name, known)} (known: {', '.join(known)}{hint})"
        )
    return name


def better(name: str, value: float, than: float | None, *, by: float = 0.0) -> bool:
    """Whether a metric improved by more than ``by``. NaN is never better, anything beats None.

    Less is better where the name ends in ``loss``, more is better elsewhere. Compared in single
    precision (see the module).
    """
    if math.isnan(value):
        return False
    if than is None or math.isnan(than):
        return True
    if name.partition("(")[0].endswith("loss"):
        return bool(_single(value + by) < _single(than))
    return bool(_single(value - by) > _single(than))


def is_best(
    monitor: str,
    value: float,
    best_value: float | None,
    *,
    val_loss: float,
    best_loss: float | None,
    ties_by_loss: bool,
) -> bool:
    """Whether an epoch is the new best one.

    Args:
        monitor: the metric that decides.
        value: its value after the epoch.
        best_value: its value in the best epoch so far; None if there is none.
        val_loss: the epoch's validation loss.
        best_loss: that of the best epoch so far.
        ties_by_loss: whether the lower validation loss decides between equal values. Otherwise the
            earlier epoch is better, as in Keras's ModelCheckpoint(save_best_only=True).
    """
    if better(monitor, value, best_value):
        return True
    if not ties_by_loss or best_value is None or _single(value) != _single(best_value):
        return False
    return better("val_loss", val_loss, best_loss)


def _single(value: float) -> np.float32:
    with np.errstate(over="ignore"):  # beyond single precision is infinite, in Keras as well
        return np.float32(value)


@dataclass
class Control:
    """What callbacks may change, and what they tell."""

    lr_scale: float = 1.0
    """Factor by which the schedule's learning rate is multiplied."""
    lr: float = 0.0
    """Learning rate of the last step, for information."""
    stop: str = ""
    """Reason why training should end; empty to go on."""
    notes: list[str] = field(default_factory=list)
    """Notes for the user."""


class Callback(Protocol):
    """Called after every epoch."""

    def after_epoch(self, epoch: int, metrics: Mapping[str, float], control: Control) -> None:
        """Look at the epoch's metrics and change ``control``."""

    def state_dict(self) -> dict[str, Any]:
        """Return plain values for the checkpoint."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""


@dataclass
class EarlyStopping:
    """Stop after ``patience`` epochs without an improvement of more than ``min_delta``.

    Source: Keras's ``callbacks.EarlyStopping``.
    """

    monitor: str
    patience: int
    min_delta: float
    baseline: float | None = None
    start_from_epoch: int = 0
    best: float | None = None
    best_epoch: int = 0
    """Epoch of ``best``, to which Keras's restore_best_weights goes back."""
    waited: int = 0

    def after_epoch(self, epoch: int, metrics: Mapping[str, float], control: Control) -> None:
        """Count epochs without improvement."""
        if epoch <= self.start_from_epoch:
            return
        value = metrics[self.monitor]
        self.waited += 1
        if self._improves(value, self.best):
            self.best, self.best_epoch = value, epoch
            # The baseline affects the counter only: an epoch that improves never stops training.
            if self._passes_baseline():
                self.waited = 0
        elif self.waited >= self.patience and epoch > 1:
            control.stop = f"{self.monitor} {self._reason()}"

    def _improves(self, value: float, than: float | None) -> bool:
        return better(self.monitor, value, than, by=self.min_delta)

    def _passes_baseline(self) -> bool:
        return self.baseline is None or (
            self.best is not None and self._improves(self.best, self.baseline)
        )

    def _reason(self) -> str:
        if self.best is None:
            return f"never a number for {self.waited} epochs"
        if not self._passes_baseline():
            return (
                f"does not pass its baseline {self.baseline:g} in {self.waited} epochs "
                f"(best: {self.best:.4f} in epoch {self.best_epoch})"
            )
        return f"stays at {self.best:.4f} for {self.waited} epochs"

    def state_dict(self) -> dict[str, Any]:
        """Best value, its epoch, and the counter."""
        return {"best": self.best, "best_epoch": self.best_epoch, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self.waited = state["waited"]


@dataclass
class ReduceOnPlateau:
    """Multiply the learning rate by ``factor`` after ``patience`` epochs without improvement.

    The reduction multiplies the schedule's rate from then on. With a constant schedule it does what
    Keras's callback does. With another it does not: Keras refuses to reduce the rate of an
    optimizer with a schedule, and its LearningRateScheduler sets the rate anew before every epoch,
    which undoes the reduction. A reduction leaves at least ``min_lr``; the schedule may go below.

    Source: Keras's ``callbacks.ReduceLROnPlateau``.
    """

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
        """Count epochs without improvement, except in the cool-down after a reduction."""
        value = metrics[self.monitor]
        if self.cooling > 0:
            self.cooling, self.waited = self.cooling - 1, 0
        if better(self.monitor, value, self.best, by=self.min_delta):
            self.best, self.waited = value, 0
            return
        if self.cooling > 0:
            return
        self.waited += 1
        # In single precision, or the rounding of a rate at its floor would make it reducible.
        if self.waited >= self.patience and _single(control.lr) > _single(self.min_lr):
            wanted = max(control.lr * self.factor, self.min_lr)
            control.lr_scale *= wanted / control.lr
            control.notes.append(f"learning rate reduced to {wanted:.3g} after epoch {epoch}")
            self.cooling, self.waited = self.cooldown, 0

    def state_dict(self) -> dict[str, Any]:
        """Best value and counters."""
        return {"best": self.best, "waited": self.waited, "cooling": self.cooling}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.best, self.waited, self.cooling = state["best"], state["waited"], state["cooling"]


def early_stopping(
    default: str,
    patience: int = 10,
    min_delta: float = 0.0,
    monitor: str = "",
    baseline: float | None = None,
    start_from_epoch: int = 0,
) -> Callback:
    """Stop after ``patience`` epochs without an improvement of more than ``min_delta``.

    Args:
        default: the metric to watch unless ``monitor`` names one.
        patience: epochs; 0 means the same as 1.
        min_delta: how much better a value must be.
        monitor: the metric to watch.
        baseline: value to pass; epochs before that count as epochs without improvement.
        start_from_epoch: epochs at the beginning that are not looked at.
    """
    if patience < 0:
        raise ValueError(f"patience is {patience}; 0 or more is accepted")
    if min_delta < 0:
        raise ValueError(f"min_delta is {min_delta}; 0 or more is accepted")
    if start_from_epoch < 0:
        raise ValueError(f"start_from_epoch is {start_from_epoch}; 0 or more is accepted")
    number = isinstance(baseline, int | float) and not isinstance(baseline, bool)
    if baseline is not None and not number:
        raise ValueError(f"baseline is {baseline!r}; a number or None is accepted")
    return EarlyStopping(
        monitor or default,
        patience,
        float(min_delta),
        None if baseline is None else float(baseline),
        start_from_epoch,
    )


def reduce_on_plateau(
    default: str,
    factor: float = 0.1,
    patience: int = 10,
    min_delta: float = 0.0001,
    cooldown: int = 0,
    min_lr: float = 0.0,
    monitor: str = "",
) -> Callback:
    """Multiply the learning rate by ``factor`` after ``patience`` epochs without improvement.

    Args:
        default: the metric to watch unless ``monitor`` names one.
        factor: number that the present rate is multiplied by, whatever the schedule does.
        patience: epochs; 0 means the same as 1.
        min_delta: how much better a value must be.
        cooldown: epochs after a reduction that are not counted.
        min_lr: the least that a reduction leaves.
        monitor: the metric to watch.
    """
    if not 0 < factor < 1:
        raise ValueError(f"factor is {factor}; a number between 0 and 1 is accepted")
    for name, value in {
        "patience": patience,
        "min_delta": min_delta,
        "cooldown": cooldown,
        "min_lr": min_lr,
    }.items():
        if value < 0:
            raise ValueError(f"{name} is {value}; 0 or more is accepted")
    return ReduceOnPlateau(
        monitor or default,
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


def build(
    pipe: str | tuple[Spec, ...], *, monitor: str, further: Sequence[str] = ()
) -> list[Callback]:
    """Build callbacks from a pipe of specs; ``monitor`` is what they watch unless told otherwise.

    ``further`` are the names of metrics that were asked for, beside those that always exist.

    Raises:
        ConfigError: if there is no such callback or metric, or arguments do not fit.
    """
    check_monitor(monitor, further)
    built = [
        call(spec, lookup(spec, CALLBACKS, what="callback"), monitor, what="callback")
        for spec in parse_pipe(pipe, what="callbacks")
    ]
    for callback in built:
        watched = getattr(callback, "monitor", monitor)
        if isinstance(watched, str):
            check_monitor(watched, further)
    return built
