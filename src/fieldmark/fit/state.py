"""The state of training: all that it changes, and that a checkpoint holds."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fieldmark.files.typed import STRICT, Amount, Count, Figure, Flag
from fieldmark.fit.callbacks import Callback, Control
from fieldmark.fit.recording import Recorder


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """The figures of an epoch: a line of ``metrics.jsonl``."""

    __pydantic_config__ = STRICT

    epoch: Count
    """Number of the epoch, from 1; 0 is the probe."""
    step: Count
    """Optimizer steps since the start."""
    lr: Figure
    """Learning rate of the epoch's last step."""
    train_loss: Figure
    """Mean loss over the epoch's training batches, while the weights changed."""
    train_accuracy: Figure
    """Share of augmented training pictures that were right, while the weights changed."""
    val_loss: Figure
    val_accuracy: Figure
    val_macro_f1: Figure
    """Mean F1 over the classes, on validation."""
    seconds: Amount
    """Seconds of training and validation."""
    images_per_second: Amount
    """Training pictures per second, validation not counted."""
    data_wait: Amount
    """Share of training time spent waiting for pictures."""
    best: Flag
    """Whether this is the best epoch so far."""
    further: Mapping[str, Figure] = field(default_factory=dict)
    """Figures that the setting ``metrics`` asked for, by name: ``val_top_k(5)``."""

    @classmethod
    def of(cls, metrics: Mapping[str, float], **facts: Any) -> EpochRecord:
        """From an epoch's figures, those by name among them, and the other facts."""
        own: dict[str, Any] = {n: value for n, value in metrics.items() if n in _FIGURES}
        rest = {name: value for name, value in metrics.items() if name not in _FIGURES}
        return cls(**own, further=rest, **facts)

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> EpochRecord:
        """Take back what :meth:`row` gave."""
        names = {each.name for each in fields(cls)}
        rest = {name: value for name, value in row.items() if name not in names}
        return cls(**{name: row[name] for name in row if name in names}, further=rest)

    @classmethod
    def nested(cls, row: Mapping[str, Any]) -> dict[str, Any]:
        """What :meth:`row` gave, with the further figures where the type has them."""
        names = {each.name for each in fields(cls)}
        rest = {n: value for n, value in row.items() if n not in names and n.startswith("val_")}
        own = {name: value for name, value in row.items() if name not in rest}
        return {**own, "further": rest} if rest else own

    def row(self) -> dict[str, Any]:
        """All of it as one flat mapping, a line of ``metrics.jsonl``."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        further = own.pop("further")
        return {**own, **further}


_FIGURES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "val_macro_f1")


@dataclass
class Losses:
    """Each training picture's loss when it was last trained on, to choose the hardest ones.

    The losses known at the beginning of an epoch decide what it trains on, so that an interrupted
    epoch goes on with the same pictures.
    """

    known: torch.Tensor
    """[N] float32 in the split's order, of finished epochs; infinite for pictures never trained on.
    """
    fresh: torch.Tensor
    """[N] float32, with the losses of the unfinished epoch."""

    @classmethod
    def none(cls, pictures: int, device: torch.device) -> Losses:
        """Make losses of pictures that were never trained on."""
        known, fresh = (torch.full((pictures,), torch.inf, device=device) for _ in range(2))
        return cls(known, fresh)

    def finish_epoch(self) -> None:
        """Let ``known`` take the losses in ``fresh``."""
        self.known.copy_(self.fresh)

    def hardest(self, count: int) -> npt.NDArray[np.bool_]:
        """Mark the ``count`` pictures with the highest losses; the first ones of equals.

        Shape:
            [N]
        """
        order = np.argsort(-self.known.cpu().numpy(), kind="stable")
        chosen = np.zeros(len(order), dtype=np.bool_)
        chosen[order[:count]] = True
        return chosen

    def state_dict(self) -> dict[str, Any]:
        """Tensors."""
        return {"known": self.known, "fresh": self.fresh}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.known.copy_(state["known"])
        self.fresh.copy_(state["fresh"])


@dataclass
class Tally:
    """Sums over the finished steps of the unfinished epoch."""

    loss: torch.Tensor
    correct: torch.Tensor
    norm: torch.Tensor
    """Sum of the gradients' norms, which stays non-finite once one norm was. Checkpoints are only
    made while it is finite, so they do not hold it."""
    seen: int = 0
    seconds: float = 0.0
    waited: float = 0.0

    @classmethod
    def empty(cls, device: torch.device) -> Tally:
        """Make empty sums; they are on the device, so that no step waits for it."""
        kind = torch.float32 if device.type == "mps" else torch.float64
        loss, norm = (torch.zeros((), dtype=kind, device=device) for _ in range(2))
        return cls(loss, torch.zeros((), device=device), norm)

    def not_finite(self) -> str:
        """Return which is not finite, the loss or the gradient; empty if neither."""
        if math.isfinite(float(self.loss + self.norm)):  # waits for the device once
            return ""
        return "gradient" if math.isfinite(float(self.loss)) else "loss"

    def state_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "loss": float(self.loss),
            "correct": float(self.correct),
            "seen": self.seen,
            "seconds": self.seconds,
            "waited": self.waited,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.loss.fill_(state["loss"])
        self.correct.fill_(state["correct"])
        self.norm.zero_()
        self.seen, self.seconds, self.waited = state["seen"], state["seconds"], state["waited"]


class Ema:
    """Exponential moving average of weights and running statistics, in a second network.

    The decay rises as (1 + t) / (10 + t) to its final value, so that the average forgets the first
    steps.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move the average towards the network after optimizer step ``step`` (from 1)."""
        share = 1.0 - min(self.decay, (1 + step) / (10 + step))
        mine, theirs = self.module.state_dict(), module.state_dict()
        floats = [k for k, v in mine.items() if v.is_floating_point()]
        torch._foreach_lerp_([mine[k] for k in floats], [theirs[k] for k in floats], share)
        for key in mine.keys() - set(floats):
            mine[key].copy_(theirs[key])


@dataclass
class TrainState:
    """The network being trained, and everything that decides the further training."""

    module: nn.Module
    """The network itself; wrappers that make it faster are never stored."""
    optimizer: torch.optim.Optimizer
    callbacks: list[Callback]
    tally: Tally
    ema: Ema | None = None
    forward: Callable[[torch.Tensor], torch.Tensor] | None = None
    """The module to call in training, such as a compiled one, if not the network itself."""
    losses: Losses | None = None
    """Each training picture's loss, where losses decide what an epoch trains on."""
    recorder: Recorder | None = None
    """Records the passes of a step and launches them in one go, on devices that gain by it."""
    trained: tuple[bool, ...] = field(default=(), init=False)
    """Whether each parameter trained when passes were last recorded."""
    control: Control = field(default_factory=Control)
    step: int = 0
    """Optimizer steps since the start."""
    epoch: int = 0
    """Finished epochs."""
    batch: int = 0
    """Finished steps of the unfinished epoch."""
    best_value: float | None = None
    best_loss: float | None = None
    """Validation loss of the best epoch, which decides between equal values."""
    best_epoch: int = 0
    history: list[EpochRecord] = field(default_factory=list)
    halvings: int = 0
    """How often micro-batches were halved for lack of memory."""
    rolled_back: bool = False
    """Whether training went back to an epoch's beginning, with half the learning rate."""
    incidents: list[str] = field(default_factory=list)
    """What went wrong and was handled, for the run's record."""
    memory_used: float = field(default=0.0, init=False)
    """Share of the container's memory in use after the last step; it is not stored, as it belongs
    to the process."""
    _began: dict[str, Any] | None = field(default=None, init=False, repr=False)
    """State at the beginning of the epoch, to go back to."""

    @property
    def scored(self) -> nn.Module:
        """The network that is scored and stored: the average, if there is one."""
        return self.module if self.ema is None else self.ema.module

    def begin_epoch(self) -> None:
        """Keep a copy of the state to go back to, unless training went back before."""
        if not self.rolled_back:
            self._began = _copied(self._trained())

    def roll_back(self, why: str) -> None:
        """Go back to the beginning of the epoch, with half the learning rate; at most once."""
        assert self._began is not None  # the loop keeps it before an epoch's first step
        self._take(self._began)
        self.control.lr_scale /= 2
        self.rolled_back, self._began = True, None
        self.incidents.append(
            f"{why}: went back to the beginning of epoch {self.epoch + 1}, "
            "with half the learning rate from now on"
        )

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only, so that it loads with ``weights_only=True``."""
        return {
            **self._trained(),
            # Between epochs the state is what the coming one begins with.
            "began": self._began if self.batch else None,
            "halvings": self.halvings,
            "rolled_back": self.rolled_back,
            "incidents": list(self.incidents),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._take(state)
        self._began = state["began"]
        self.halvings, self.rolled_back = state["halvings"], state["rolled_back"]
        self.incidents = list(state["incidents"])

    def _trained(self) -> dict[str, Any]:
        """Return the state that going back restores."""
        return {
            "module": self.module.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "callbacks": [callback.state_dict() for callback in self.callbacks],
            "lr_scale": self.control.lr_scale,
            "lr": self.control.lr,
            "stop": self.control.stop,
            "tally": self.tally.state_dict(),
            "losses": None if self.losses is None else self.losses.state_dict(),
            "step": self.step,
            "epoch": self.epoch,
            "batch": self.batch,
            "best_value": self.best_value,
            "best_loss": self.best_loss,
            "best_epoch": self.best_epoch,
            "history": [record.row() for record in self.history],
        }

    def _take(self, state: Mapping[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        for callback, saved in zip(self.callbacks, state["callbacks"], strict=True):
            callback.load_state_dict(saved)
        self.control = Control(state["lr_scale"], state["lr"], state["stop"])
        self.tally.load_state_dict(state["tally"])
        if self.losses is not None:
            self.losses.load_state_dict(state["losses"])
        self.step, self.epoch, self.batch = state["step"], state["epoch"], state["batch"]
        self.best_value, self.best_loss = state["best_value"], state["best_loss"]
        self.best_epoch = state["best_epoch"]
        self.history = [EpochRecord.of_row(record) for record in state["history"]]


def _copied(value: Any) -> Any:
    """Copy nested plain values, with tensors on the processor."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(each) for each in value)
    return value
