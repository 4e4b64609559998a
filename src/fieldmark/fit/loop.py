"""The training loop: explicit, on one screen, and free of the disk.

Two time scales only: schedules are pure functions of the step, callbacks act once an epoch. Nothing
waits for the device inside a step, except the check for non-finite losses where it costs nothing
(on the processor).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from fieldmark.augment import Mix
from fieldmark.errors import ConfigError, DivergedError
from fieldmark.fit.callbacks import is_best
from fieldmark.fit.device import Device
from fieldmark.fit.losses import loss_sum, one_hot
from fieldmark.fit.optimizers import (
    add_l2_gradient,
    freeze,
    penalty,
    regularized,
    set_lr,
    set_trainable,
)
from fieldmark.fit.schedules import Schedule, SizeAt
from fieldmark.fit.state import EpochRecord, Tally, TrainState
from fieldmark.inputs import InputSpec
from fieldmark.seeding import seed_torch, stream


class Batch(Protocol):
    """Pixels and labels of one step."""

    @property
    def images(self) -> torch.Tensor:
        """[B, 3, S, S] in 0..255."""

    @property
    def labels(self) -> torch.Tensor:
        """[B]"""

    @property
    def waited(self) -> float:
        """Seconds spent waiting for it."""


class Source(Protocol):
    """Training batches, a function of the epoch."""

    def __len__(self) -> int:
        """Steps in an epoch."""

    def epoch(self, epoch: int, *, start: int = 0) -> Generator[Batch, None, None]:
        """The epoch's batches from number ``start`` on."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the loop needs to know, all of it fixed."""

    epochs: int
    seed: int
    device: Device
    input: InputSpec
    head: str
    num_classes: int
    lr: float
    schedule: Schedule
    monitor: str
    ties_by_loss: bool = True
    l2: float = 0.0
    mix: Mix | None = None
    smoothing: float = 0.0
    weights: torch.Tensor | None = None
    accumulate: int = 1
    clip_norm: float = 0.0
    freeze: bool = False
    train_from: str = ""
    unfreeze_at_epoch: int = 0
    freeze_after: tuple[tuple[str, int], ...] = ()
    size_at: SizeAt | None = None
    """Height and width that the network sees at a step; None for the input's own throughout."""
    channels_last: bool = True

    def head_only(self, epoch: int) -> bool:
        """Whether only the head trains in the epoch after ``epoch`` finished ones."""
        return self.freeze and (self.unfreeze_at_epoch == 0 or epoch < self.unfreeze_at_epoch)

    def first_trained(self, epoch: int) -> str:
        """The module from which on everything trains in that epoch; empty for the very first."""
        frozen = self.unfreeze_at_epoch == 0 or epoch < self.unfreeze_at_epoch
        return self.train_from if frozen else ""


@dataclass(frozen=True)
class StepMark:
    """A pause between two steps that the caller asked for; the state is whole."""

    step: int


Validate = Callable[[nn.Module], dict[str, float]]


def fit(
    state: TrainState,
    source: Source,
    plan: Plan,
    *,
    validate: Validate,
    pause: Callable[[int], bool] = lambda step: False,
) -> Iterator[EpochRecord | StepMark]:
    """Train until the plan's epochs are done or a callback stops it.

    Yields an :class:`EpochRecord` after every epoch, and a :class:`StepMark` after every step for
    which ``pause`` says so. Whenever it yields, ``state`` is whole and can be stored; a state
    that is loaded again goes on to exactly the same weights.

    Raises:
        DivergedError: when the loss or gradient is not finite, before the weights take it.
    """
    if plan.channels_last:
        state.module.to(memory_format=torch.channels_last)
    while state.epoch < plan.epochs and not state.control.stop:
        choose_trained(state, plan)
        with closing(source.epoch(state.epoch, start=state.batch)) as batches:
            for batch in batches:
                _step(state, batch, plan)
                if pause(state.step):
                    yield StepMark(state.step)
        yield _finish_epoch(state, plan, validate)


def choose_trained(state: TrainState, plan: Plan) -> None:
    """Freeze what does not train in the coming epoch, and let the rest train."""
    set_trainable(
        state.module,
        head=plan.head,
        head_only=plan.head_only(state.epoch),
        first=plan.first_trained(state.epoch),
    )
    for name, epochs in plan.freeze_after:
        if state.epoch >= epochs:
            freeze(state.module, name)


def _step(state: TrainState, batch: Batch, plan: Plan) -> None:
    """One optimizer step on one batch, in micro-batches if the plan says so."""
    start = time.perf_counter()
    seed_torch(plan.seed, stream("step"), state.step)
    device = plan.device.torch_device
    labels = batch.labels.to(device, non_blocking=True)
    images = plan.input.normalize(batch.images.to(device, non_blocking=True))
    targets = labels
    if plan.mix is not None:
        images, targets = plan.mix(
            images, one_hot(labels, plan.num_classes), seed=plan.seed, step=state.step
        )
    if plan.size_at is not None:
        images = shrunk(images, plan.size_at(state.step))
    if plan.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    state.optimizer.zero_grad(set_to_none=True)
    for part in torch.arange(len(labels)).chunk(plan.accumulate):
        here = slice(int(part[0]), int(part[-1]) + 1)
        logits = _forward(state.forward or state.module, images[here], plan)
        loss = loss_sum(logits, targets[here], smoothing=plan.smoothing, weights=plan.weights)
        (loss / len(labels)).backward()  # type: ignore[no-untyped-call]
        state.tally.loss += loss.detach()
        state.tally.correct += (logits.detach().argmax(1) == labels[here]).sum()
    if plan.l2:
        kernels = regularized(state.module, plan.head)
        add_l2_gradient(kernels, plan.l2)
        state.tally.loss += penalty(kernels, plan.l2) * len(labels)
    _update(state, plan)
    state.tally.seen += len(labels)
    state.tally.seconds += time.perf_counter() - start + batch.waited
    state.tally.waited += batch.waited


def shrunk(images: torch.Tensor, size: int) -> torch.Tensor:
    """Pictures at a smaller size, bilinearly and antialiased; at their own they pass through.

    Shape:
        [B, 3, S, S] to [B, 3, size, size].
    """
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


def _forward(
    module: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, plan: Plan
) -> torch.Tensor:
    """Logits in f32, whatever the network computes in."""
    try:
        with plan.device.autocast():
            logits = module(images)
    except ValueError as error:
        if "more than 1 value per channel" in str(error):
            raise ConfigError(
                "a batch of one picture cannot train a network with batch norm; use a batch_size "
                "of at least 2 and fewer micro-batches (accumulate)"
            ) from None
        raise
    return logits.float()


def _update(state: TrainState, plan: Plan) -> None:
    """Check, clip and take the optimizer's step."""
    if plan.device.name == "cpu" and not torch.isfinite(state.tally.loss):
        raise DivergedError(_diverged(state, "loss"))
    parameters = [p for p in state.module.parameters() if p.grad is not None]
    if plan.clip_norm or plan.device.name == "cpu":  # 0.1 to 0.5 % of a step's time
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if plan.device.name == "cpu" and not torch.isfinite(norm):
            raise DivergedError(_diverged(state, "gradient"))
        if plan.clip_norm:
            nn.utils.clip_grads_with_norm_(parameters, plan.clip_norm, norm)
    state.control.lr = plan.lr * plan.schedule(state.step) * state.control.lr_scale
    set_lr(state.optimizer, state.control.lr)
    state.optimizer.step()
    state.step += 1
    state.batch += 1
    if state.ema is not None:
        state.ema.update(state.module, state.step)


def _finish_epoch(state: TrainState, plan: Plan, validate: Validate) -> EpochRecord:
    """Validate, let the callbacks act, and write the record."""
    tally = state.tally
    loss, correct = float(tally.loss), float(tally.correct)
    if loss != loss or loss in (float("inf"), float("-inf")):
        raise DivergedError(_diverged(state, "loss"))
    start = time.perf_counter()
    metrics = {
        "train_loss": loss / tally.seen,
        "train_accuracy": correct / tally.seen,
        **validate(state.scored),
    }
    state.epoch += 1
    state.batch = 0
    best = consider(state, plan, metrics)
    for callback in state.callbacks:
        callback.after_epoch(state.epoch, metrics, state.control)
    record = EpochRecord(
        epoch=state.epoch,
        step=state.step,
        lr=state.control.lr,
        seconds=round(tally.seconds + time.perf_counter() - start, 3),
        images_per_second=round(tally.seen / max(tally.seconds, 1e-9), 1),
        data_wait=round(tally.waited / max(tally.seconds, 1e-9), 4),
        best=best,
        **metrics,
    )
    state.history.append(record)
    state.tally = Tally.empty(plan.device.torch_device)
    return record


def consider(state: TrainState, plan: Plan, metrics: dict[str, float]) -> bool:
    """Whether the finished epoch is the best so far; if so the state remembers it.

    The L2 penalty is added to the validation loss: Keras's ``val_loss`` has it too, and its
    callbacks watch that.
    """
    if plan.l2:
        metrics["val_loss"] += float(penalty(regularized(state.module, plan.head), plan.l2))
    value, val_loss = metrics[plan.monitor], metrics["val_loss"]
    best = is_best(
        plan.monitor,
        value,
        state.best_value,
        val_loss=val_loss,
        best_loss=state.best_loss,
        ties_by_loss=plan.ties_by_loss,
    )
    if best:
        state.best_value, state.best_loss, state.best_epoch = value, val_loss, state.epoch
    return best


def _diverged(state: TrainState, what: str) -> str:
    return (
        f"the {what} is not a finite number at step {state.step + 1} "
        f"(epoch {state.epoch + 1}, learning rate {state.control.lr:.3g}); "
        "try a lower --lr, --warmup-epochs 1 or --clip-norm 1"
    )
