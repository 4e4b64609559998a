"""The training loop: explicit, on one screen, and free of the disk.

Two time scales only: schedules are pure functions of the step, callbacks act once an epoch. Nothing
waits for the device inside a step, except the check for non-finite losses where it costs nothing
(on the processor). Elsewhere the device itself skips all updates from the first non-finite one on,
and the loop asks it now and then whether that happened.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from fieldmark.augment import Mix
from fieldmark.augment.ops import put
from fieldmark.errors import ConfigError, DivergedError, ResourceError
from fieldmark.fit import statistics
from fieldmark.fit.callbacks import is_best
from fieldmark.fit.losses import Loss, loss_sum, one_hot
from fieldmark.fit.optimizers import (
    add_l2_gradient,
    freeze,
    penalty,
    regularized,
    set_lr,
    set_trainable,
)
from fieldmark.fit.recording import Tensors
from fieldmark.fit.state import EpochRecord, Tally, TrainState
from fieldmark.machine import memory
from fieldmark.machine.device import Device
from fieldmark.machine.process import trim_heap
from fieldmark.machine.signals import released
from fieldmark.pictures.inputs import InputSpec
from fieldmark.seeding import seed_torch, stream
from fieldmark.settings.resolved import ALL_PICTURES, FreezeAfter, Hardest

LOOK = 50
"""Steps after which the loop asks a device that computes ahead whether all was finite."""


class Batch(Protocol):
    """Pixels and labels of one step."""

    @property
    def images(self) -> torch.Tensor:
        """[B, 3, S, S] in 0..255."""

    @property
    def labels(self) -> torch.Tensor:
        """[B]"""

    @property
    def indices(self) -> npt.NDArray[np.int64]:
        """[B] places of its pictures in the split."""

    @property
    def waited(self) -> float:
        """Seconds that training waited for this batch."""


class BatchSource(Protocol):
    """Makes the training batches of an epoch, as a function of the epoch's number."""

    def __len__(self) -> int:
        """Number of steps in an epoch."""

    def epoch(
        self, epoch: int, *, start: int = 0, only: npt.NDArray[np.bool_] | None = None
    ) -> Generator[Batch, None, None]:
        """Make the epoch's batches from number ``start`` on, of all pictures or of some."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the loop needs to know; nothing of it changes during training."""

    epochs: int
    seed: int
    device: Device
    input: InputSpec
    head: str
    num_classes: int
    lr: float
    schedule: Callable[[int], float]
    """Factor of the peak learning rate at a step."""
    monitor: str
    ties_by_loss: bool = True
    l2: float = 0.0
    mix: Mix | None = None
    loss: Loss | None = None
    """What is made small; None for cross entropy."""
    smoothing: float = 0.0
    weights: torch.Tensor | None = None
    accumulate: int = 1
    clip_norm: float = 0.0
    freeze: bool = False
    train_from: str = ""
    unfreeze_at_epoch: int = 0
    freeze_after: tuple[FreezeAfter, ...] = ()
    freeze_norms: bool = False
    """Whether batch norms compute with the statistics of the pretrained weights."""
    hardest: Hardest = ALL_PICTURES
    """Rule for epochs that train only on the pictures with the highest losses."""
    size_at: Callable[[int], int] | None = None
    """Height and width of the pictures at a step; None for the input's size at all steps."""
    total_steps: int = 0
    """Steps of the whole schedule."""
    last_step: int | None = None
    """The step at which a shortened training ends, in the midst of an epoch if need be."""
    channels_last: bool = True
    container: memory.Container | None = None
    """Container that limits the processor's memory, if there is one."""

    def is_done(self, state: TrainState) -> bool:
        """Whether training has come to its end, callbacks apart."""
        landed = self.last_step is not None and state.step >= self.last_step
        return state.epoch >= self.epochs or (landed and state.batch == 0)

    def head_only(self, epoch: int) -> bool:
        """Whether only the head trains in the epoch that follows ``epoch`` finished ones."""
        return self.freeze and (self.unfreeze_at_epoch == 0 or epoch < self.unfreeze_at_epoch)

    def first_trained(self, epoch: int) -> str:
        """Name of the first module that trains in that epoch; empty for the network's first."""
        frozen = self.unfreeze_at_epoch == 0 or epoch < self.unfreeze_at_epoch
        return self.train_from if frozen else ""


@dataclass(frozen=True)
class StepMark:
    """A pause between two steps that the caller asked for; the state can be stored."""

    step: int


Validate = Callable[[nn.Module], dict[str, float]]
Calm = Callable[[], Iterable[torch.Tensor]]
"""Training pictures as scores see them, in batches of mixed classes: float32 [B, 3, S, S]."""


@dataclass(frozen=True)
class _Scored:
    """How a network is validated: with statistics of its own weights, where ``calm`` is given."""

    validate: Validate
    calm: Calm | None

    def __call__(self, state: TrainState) -> dict[str, float]:
        if self.calm is not None and (names := statistics.moving(state.module)):
            statistics.estimate(state.scored, names, self.calm())
        return self.validate(state.scored)


def fit(
    state: TrainState,
    source: BatchSource,
    plan: Plan,
    *,
    validate: Validate,
    calm: Calm | None = None,
    pause: Callable[[int], bool] = lambda step: False,
) -> Iterator[EpochRecord | StepMark]:
    """Train until the plan's epochs are done or a callback stops it.

    Yields an :class:`EpochRecord` after every epoch, and a :class:`StepMark` after every step for
    which ``pause`` is true. Whenever it yields, ``state`` is complete and can be stored; training
    from a stored state ends with exactly the same weights. The state is complete as well while the
    loop waits for a batch and while ``validate`` works; requests to stop that were held are
    answered then. With ``calm`` the statistics of batch norms are estimated on its pictures before
    every validation (``statistics``).

    When the loss or gradient is not finite, the weights are not updated; training goes back to the
    beginning of the epoch, which is the same whether it was interrupted since or not, with half the
    learning rate. This yields a :class:`StepMark` too, and happens once at most.

    Raises:
        DivergedError: the second time that the loss or gradient is not finite.
        ResourceError: if there is no memory for a single picture.
    """
    if plan.channels_last:
        state.module.to(memory_format=torch.channels_last)
    if plan.container is not None:
        state.memory_used = plan.container.used()
    while not plan.is_done(state) and not state.control.stop:
        try:
            yield from _epoch(state, source, plan, _Scored(validate, calm), pause)
        except DivergedError as error:
            if state.rolled_back:
                raise DivergedError(
                    f"{error}, also with half the learning rate; "
                    "try a lower --lr, --warmup-epochs 1 or --clip-norm 1"
                ) from None
            state.roll_back(str(error))
            yield StepMark(state.step)


def _epoch(
    state: TrainState,
    source: BatchSource,
    plan: Plan,
    scored: _Scored,
    pause: Callable[[int], bool],
) -> Iterator[EpochRecord | StepMark]:
    """Run the remaining steps of an epoch."""
    if state.batch == 0:
        state.begin_epoch()
    choose_trained(state, plan)
    only = _chosen_pictures(state, plan)
    with closing(source.epoch(state.epoch, start=state.batch, only=only)) as batches:
        while state.step != plan.last_step and (batch := _next(batches)) is not None:
            _step(state, batch, plan)
            if pause(state.step):
                check_finite(state, plan)
                yield StepMark(state.step)
    check_finite(state, plan)
    yield _finish_epoch(state, plan, scored)


def _chosen_pictures(state: TrainState, plan: Plan) -> npt.NDArray[np.bool_] | None:
    """Mark the pictures that the epoch trains on; None for all."""
    if plan.hardest == ALL_PICTURES:
        return None
    assert state.losses is not None
    pictures = len(state.losses.known)
    count = plan.hardest.count(pictures, state.epoch)
    return None if count == pictures else state.losses.hardest(count)


def _next(batches: Iterator[Batch]) -> Batch | None:
    """Return the next batch, or None at the end."""
    with released():
        return next(batches, None)


def choose_trained(state: TrainState, plan: Plan) -> None:
    """Freeze the modules that do not train in the coming epoch, and let the others train."""
    set_trainable(
        state.module,
        head=plan.head,
        head_only=plan.head_only(state.epoch),
        first=plan.first_trained(state.epoch),
        freeze_norms=plan.freeze_norms,
    )
    for part in plan.freeze_after:
        if state.epoch >= part.epochs:
            freeze(state.module, part.part)
    if state.recorder is not None:
        trained = tuple(parameter.requires_grad for parameter in state.module.parameters())
        if trained != state.trained:
            state.trained = trained
            state.recorder.forget()


def _step(state: TrainState, batch: Batch, plan: Plan) -> None:
    """Do one optimizer step on one batch, in micro-batches if the plan or the memory needs it."""
    start = time.perf_counter()
    buffers = [] if _is_recorded(state, batch, plan) else list(state.module.buffers())
    before = [buffer.clone() for buffer in buffers]
    while isinstance(norm := _gradient(state, batch, plan), str):
        # Only here the error is freed, and with it the activations that its frames held.
        if before:
            torch._foreach_copy_(buffers, before)  # norms took statistics of a step that was none
        _halve(state, batch, plan, f"out of memory at step {state.step + 1} ({norm})")
    try:
        _update(state, plan, norm)
    except (RuntimeError, MemoryError) as error:
        if not memory.is_exhausted(error):
            raise
        raise ResourceError(
            f"there is no memory for what the optimizer keeps ({_first_line(error)}); "
            "give --optimizer sgd, or a smaller --model"
        ) from None
    state.tally.seen += len(batch.labels)
    state.tally.seconds += time.perf_counter() - start + batch.waited
    state.tally.waited += batch.waited
    _look_at_container(state, batch, plan)


def _gradient(state: TrainState, batch: Batch, plan: Plan) -> torch.Tensor | str:
    """Compute one batch's gradient; return its norm or, if memory ran out, the error's text."""
    try:
        return _backward(state, batch, plan)
    except (RuntimeError, MemoryError) as error:
        if not memory.is_exhausted(error):
            raise
        return _first_line(error)
    except ConfigError as error:
        if not state.halvings:
            raise
        raise ResourceError(f"{_NO_MEMORY}: {error}") from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]


def _backward(state: TrainState, batch: Batch, plan: Plan) -> torch.Tensor:
    """Leave the gradient of the mean loss in the parameters, and add to the tally.

    Shape:
        the gradient's norm [].
    """
    seed_torch(plan.seed, stream("step"), state.step)
    images, targets, labels = _inputs(batch, state.step, plan)
    size = images.shape[-1] if plan.size_at is None else plan.size_at(state.step)
    work = partial(_passes, state, plan, size, _micro_batches(state, batch, plan))
    if state.recorder is None:
        outputs = work(images, targets, labels)
    else:
        outputs = state.recorder(_kind(state, batch, plan), work, (images, targets, labels))
        for parameter, gradient in zip(state.module.parameters(), outputs[4:], strict=True):
            parameter.grad = gradient
    loss, correct, norm, each = outputs[:4]
    assert loss is not None and correct is not None and norm is not None
    if state.losses is not None:
        assert each is not None
        state.losses.fresh[put(batch.indices, each.device)] = each
    state.tally.loss += loss
    state.tally.correct += correct
    state.tally.norm += norm
    return norm


def _inputs(batch: Batch, step: int, plan: Plan) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Put pictures (mixed if the plan says so), targets and labels on the device."""
    device = plan.device.torch_device
    labels = batch.labels.to(device, non_blocking=True)
    images = batch.images.to(device, non_blocking=True)
    if plan.mix is None:
        return images, labels, labels
    images, targets = plan.mix(
        plan.input.normalize(images), one_hot(labels, plan.num_classes), seed=plan.seed, step=step
    )
    return images, targets, labels


def _passes(
    state: TrainState,
    plan: Plan,
    size: int,
    parts: list[slice],
    images: torch.Tensor,
    targets: torch.Tensor,
    labels: torch.Tensor,
) -> Tensors:
    """Run the network forward and backward; the gradients are left in the parameters.

    Returns:
        The summed loss, the number of right answers, the norm of the gradient of the mean loss,
        each picture's loss (plain cross entropy, whatever the training loss is) if it is wanted,
        and each parameter's gradient, if it has one.
    """
    if plan.mix is None:
        images = plan.input.normalize(images)
    images = shrunk(images, size)
    if plan.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    state.optimizer.zero_grad(set_to_none=True)
    total, correct = torch.zeros_like(state.tally.loss), torch.zeros_like(state.tally.correct)
    each: list[torch.Tensor] = []
    # Not "or": a compiled network has no truth value.
    network = state.module if state.forward is None else state.forward
    for here in parts:
        logits = _forward(network, images[here], plan)
        loss = loss_sum(
            logits,
            targets[here],
            smoothing=plan.smoothing,
            weights=plan.weights,
            loss=plan.loss,
        )
        (loss / len(labels)).backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
        correct += (logits.detach().argmax(1) == labels[here]).sum()
        if state.losses is not None:
            each.append(F.cross_entropy(logits.detach(), labels[here], reduction="none"))
    if plan.l2:
        kernels = regularized(state.module, plan.head)
        add_l2_gradient(kernels, plan.l2)
        total += penalty(kernels, plan.l2) * len(labels)
    gradients = [parameter.grad for parameter in state.module.parameters()]
    # 0.1 to 0.5 % of a step's time on a processor.
    norm = nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])
    return [total, correct, norm, torch.cat(each) if each else None, *gradients]


def _kind(state: TrainState, batch: Batch, plan: Plan) -> Hashable:
    """Key of steps that do the same to other numbers, as long as the same modules train."""
    size = plan.size_at(state.step) if plan.size_at is not None else batch.images.shape[-1]
    parts = len(_micro_batches(state, batch, plan))
    return len(batch.labels), size, parts, batch.images.dtype  # some augmentations leave bytes


def _is_recorded(state: TrainState, batch: Batch, plan: Plan) -> bool:
    """Whether the step is recorded, so that it needs no further memory."""
    return state.recorder is not None and state.recorder.has(_kind(state, batch, plan))


def _micro_batches(state: TrainState, batch: Batch, plan: Plan) -> list[slice]:
    """Cut a batch into the pieces that go through the network one after the other."""
    parts = torch.arange(len(batch.labels)).chunk(plan.accumulate << state.halvings)
    return [slice(int(part[0]), int(part[-1]) + 1) for part in parts]


_NO_MEMORY = (
    "there is no memory for a step on ever smaller micro-batches; give a smaller --size or "
    "--model, or end other programs that use the device"
)


def _halve(state: TrainState, batch: Batch, plan: Plan, why: str) -> None:
    """Halve the micro-batches of this step and the coming ones; the gradient is still of all.

    Raises:
        ResourceError: if a micro-batch is one picture already.
    """
    parts = _micro_batches(state, batch, plan)
    if len(parts) == len(batch.labels):
        raise ResourceError(f"{why}; {_NO_MEMORY}")
    state.halvings += 1
    trim_heap()
    if plan.device.torch_device.type == "cuda":
        torch.cuda.empty_cache()
    new = _micro_batches(state, batch, plan)
    state.incidents.append(
        f"{why}: micro-batches of {new[0].stop} pictures from now on, in place of "
        f"{parts[0].stop}; a step still takes the gradient of all its {len(batch.labels)}"
    )


def _look_at_container(state: TrainState, batch: Batch, plan: Plan) -> None:
    """Halve the micro-batches of the coming steps if this step came near the container's limit."""
    if plan.container is None:
        return
    used, before = plan.container.used(), state.memory_used
    state.memory_used = used
    if used < memory.NEAR or used - before < memory.GROWN:
        return
    if len(_micro_batches(state, batch, plan)) < len(batch.labels):
        _halve(
            state,
            batch,
            plan,
            f"step {state.step} uses {used:.0%} of the {plan.container.limit / 2**30:.1f} GiB "
            "that the container has",
        )
        state.memory_used = plan.container.used()


def shrunk(images: torch.Tensor, size: int) -> torch.Tensor:
    """Resize pictures to a smaller size, bilinearly and antialiased; their own size is no change.

    Shape:
        [B, 3, S, S] to [B, 3, size, size].
    """
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)


def _forward(
    module: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, plan: Plan
) -> torch.Tensor:
    """Compute the logits; they are f32, whatever number type the network computes in."""
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


def _update(state: TrainState, plan: Plan, norm: torch.Tensor) -> None:
    """Check and clip the gradient, and take the optimizer's step."""
    state.control.lr = plan.lr * plan.schedule(state.step) * state.control.lr_scale
    if _waits(plan) or state.step % LOOK == 0:
        check_finite(state, plan)
    if not _waits(plan) and getattr(state.optimizer, "_step_supports_amp_scaling", False):
        # torch's fused optimizers leave a step out where this is 1. The sums stay what they are,
        # so it is 1 from the first bad step on.
        bad = ~torch.isfinite(state.tally.loss + state.tally.norm)
        state.optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
    if plan.clip_norm:
        parameters = [p for p in state.module.parameters() if p.grad is not None]
        nn.utils.clip_grads_with_norm_(parameters, plan.clip_norm, norm)
    set_lr(state.optimizer, state.control.lr)
    state.optimizer.step()
    state.step += 1
    state.batch += 1
    if state.ema is not None:
        state.ema.update(state.module, state.step)


def _waits(plan: Plan) -> bool:
    """Whether numbers can be read without waiting for the device."""
    return plan.device.name == "cpu"


def check_finite(state: TrainState, plan: Plan) -> None:
    """Check that loss and gradient were finite in all steps of the epoch.

    Raises:
        DivergedError: if one was not; the message says which.
    """
    what = state.tally.not_finite()
    if what:
        raise DivergedError(
            f"the {what} is not a finite number {'at' if _waits(plan) else 'by'} step "
            f"{state.step + 1} (epoch {state.epoch + 1}, learning rate {state.control.lr:.3g})"
        )


def _finish_epoch(state: TrainState, plan: Plan, scored: _Scored) -> EpochRecord:
    """Validate, call the callbacks, and make the record."""
    tally = state.tally
    start = time.perf_counter()
    with released():
        scores = scored(state)
    metrics = {
        "train_loss": float(tally.loss) / tally.seen,
        "train_accuracy": float(tally.correct) / tally.seen,
        **scores,
    }
    if state.losses is not None:
        state.losses.finish_epoch()
    state.epoch += 1
    state.batch = 0
    best = consider(state, plan, metrics)
    for callback in state.callbacks:
        callback.after_epoch(state.epoch, metrics, state.control)
    if state.recorder is not None and (why := state.recorder.take_note()):
        state.control.notes.append(f"this network's steps are not recorded ({why})")
    record = EpochRecord.of(
        metrics,
        epoch=state.epoch,
        step=state.step,
        lr=state.control.lr,
        seconds=round(tally.seconds + time.perf_counter() - start, 3),
        images_per_second=round(tally.seen / max(tally.seconds, 1e-9), 1),
        data_wait=round(tally.waited / max(tally.seconds, 1e-9), 4),
        best=best,
    )
    state.history.append(record)
    state.tally = Tally.empty(plan.device.torch_device)
    return record


def consider(state: TrainState, plan: Plan, metrics: dict[str, float]) -> bool:
    """Decide whether the finished epoch is the best so far; if so, remember it in the state.

    The L2 penalty is added to the validation loss: Keras's ``val_loss`` has it too, and its
    callbacks watch that one.
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
