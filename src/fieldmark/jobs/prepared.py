"""A job's network, optimizer, batches and plan, ready for the loop: nothing is decided here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from fieldmark import augment
from fieldmark.data.batches import Batches, scoring_batches
from fieldmark.errors import ConfigError
from fieldmark.fit import callbacks, losses, optimizers, probe, schedules, statistics
from fieldmark.fit.loop import Calm, Plan
from fieldmark.fit.losses import class_weights
from fieldmark.fit.recording import Recorder
from fieldmark.fit.state import Ema, EpochRecord, Losses, Tally, TrainState
from fieldmark.jobs.plan import Job
from fieldmark.machine import memory
from fieldmark.machine.signals import released
from fieldmark.progress import Progress
from fieldmark.scoring import named
from fieldmark.scoring.metrics import PerClass, cross_entropy
from fieldmark.scoring.scorer import Scorer
from fieldmark.seeding import F64, I64
from fieldmark.settings.resolved import ALL_PICTURES


@dataclass(frozen=True)
class Prepared:
    """The state, the batches and the plan that the loop works on."""

    state: TrainState
    batches: Batches
    plan: Plan
    val: Batches
    calm: Calm
    before_scores: Calm | None
    """What statistics are estimated on before every scoring; None where they are not."""

    @classmethod
    def of(cls, job: Job) -> Prepared:
        """Build optimizer, schedule, callbacks and batches from the config."""
        config, resolved, device = job.config, job.resolved, job.device
        module = job.network.module.to(device.torch_device)
        batches, val = training_batches(job), split_batches(job, "val")
        state = TrainState(
            module,
            optimizers.build(
                resolved.optimizer,
                module,
                head=job.network.head,
                weight_decay=config.weight_decay,
                backbone_lr=config.backbone_lr,
                bias_lr=config.bias_lr,
            )
            if config.epochs
            else optimizers.NoOptimizer(),
            callbacks.build(
                resolved.callbacks,
                monitor=config.monitor,
                further=[each.name for each in named.build(resolved.metrics)],
            ),
            Tally.empty(device.torch_device),
            Ema(module, config.ema) if config.ema else None,
            losses=Losses.none(len(batches.part), device.torch_device)
            if resolved.hardest != ALL_PICTURES
            else None,
            recorder=Recorder() if device.name.startswith("cuda") and not config.compile else None,
        )
        calm = calm_pictures(job)
        fresh = calm if config.norm_statistics == "fresh" else None
        return cls(state, batches, plan(job, batches), val, calm, fresh)


def plan(job: Job, batches: Batches) -> Plan:
    """Say how the loop trains: the settings as it takes them."""
    config, resolved, names = job.config, job.resolved, job.dataset.class_names
    counts = job.dataset.parts["train"].counts(len(names))
    weights = class_weights(config.class_weights, counts, names)
    hardest, total = resolved.hardest, len(batches.part)
    total_steps = sum(batches.steps(hardest.count(total, e)) for e in range(config.epochs))
    size = job.network.input.size
    stages = resolved.progressive
    if resolved.landing and resolved.landing[0].end > total_steps:
        raise ConfigError(
            f"landing {config.landing} ends after the {total_steps} steps of this training; give "
            "--landing none"
        )
    place = schedules.landed(resolved.landing, total_steps=total_steps)
    schedule = schedules.build(
        resolved.schedule,
        length=schedules.Length(total_steps, len(batches)),
        warmup_steps=round(config.warmup_epochs * len(batches)),
    )
    sizes = schedules.size_at(stages, full=size, total_steps=total_steps)
    return Plan(
        epochs=config.epochs,
        seed=config.seed,
        device=job.device,
        input=job.network.input,
        head=job.network.head,
        num_classes=len(names),
        lr=float(config.lr),
        schedule=(lambda step: schedule(place(step))) if resolved.landing else schedule,
        monitor=config.monitor,
        ties_by_loss=config.keep == "best",
        l2=float(config.l2),
        mix=augment.build_mix(resolved.mix),
        loss=losses.build(resolved.loss),
        smoothing=float(config.label_smoothing),
        weights=None if weights is None else weights.to(job.device.torch_device),
        accumulate=config.accumulate,
        clip_norm=float(config.clip_norm),
        freeze=config.freeze,
        train_from=config.train_from,
        unfreeze_at_epoch=config.unfreeze_at_epoch,
        freeze_after=resolved.freeze_after,
        freeze_norms=config.norm_statistics == "frozen",
        hardest=hardest,
        size_at=(lambda step: sizes(place(step))) if stages else None,
        total_steps=total_steps,
        last_step=resolved.landing[-1].end if resolved.landing else None,
        channels_last=config.channels_last,
        container=memory.Container.find() if job.device.name == "cpu" else None,
    )


def training_batches(job: Job) -> Batches:
    """Make the batches that training goes through, in an order that follows from the seed."""
    config = job.config
    return Batches(
        job.dataset.parts["train"],
        job.dataset.read,
        spec=job.network.input,
        augment=augment.build(job.resolved.augment if config.epochs else ()),
        batch_size=config.batch_size,
        seed=config.seed,
        balance=config.balance,
        last=config.last_batch,
        threads=config.threads,
        fast=True,
        device=job.device.torch_device,
    )


def split_batches(job: Job, part: str) -> Batches:
    """Make the batches of a split for scoring: no augmentation, in order."""
    return scoring_batches(
        job.dataset.parts[part],
        job.dataset.read,
        spec=job.network.input,
        threads=job.config.threads,
        device=job.device.torch_device,
    )


def calm_pictures(job: Job) -> Calm:
    """Make the function that gives training pictures for the statistics of batch norms.

    They are in the order of an epoch: batches of one class would have statistics of their own.
    """
    batches = scoring_batches(
        job.dataset.parts["train"].sample(statistics.PICTURES, "statistics"),
        job.dataset.read,
        spec=job.network.input,
        threads=job.config.threads,
        device=job.device.torch_device,
    )
    layout = torch.channels_last if job.config.channels_last else torch.contiguous_format

    def calm() -> Iterator[torch.Tensor]:
        for batch in batches.epoch(0):
            images = batch.images.to(job.device.torch_device, non_blocking=True)
            yield job.network.input.normalize(images).contiguous(memory_format=layout)

    return calm


class Validation:
    """Validates a network by one view: it only chooses the epoch."""

    def __init__(self, job: Job, val: Batches) -> None:
        self._job, self._val = job, val
        self._spec = dataclasses.replace(job.network.input, views="none")
        self._metrics = named.build(job.resolved.metrics)
        self.logits: F64 = np.zeros((0, 0))
        """[N, K] of the network that was validated last."""

    def __call__(self, module: torch.nn.Module) -> dict[str, float]:
        """Compute the metrics of :func:`judged`."""
        config, device = self._job.config, self._job.device.name
        network = Scorer(module, spec=self._spec, device=device, channels_last=config.channels_last)
        outputs = network.over(batch.images for batch in self._val.in_order())
        self.logits = outputs.numpy().astype(np.float64)
        return judged(self.logits, self._val.part.labels, self._metrics)


def judged(values: F64, labels: I64, metrics: Sequence[named.Named] = ()) -> dict[str, float]:
    """Compute the validation metrics of logits [N, K]."""
    predicted = values.argmax(axis=1)
    each = PerClass.of(labels, predicted, values.shape[1])
    finite = np.isfinite(values).all()
    return {
        "val_loss": cross_entropy(values, labels) if finite else float("nan"),
        "val_accuracy": float((predicted == labels).mean()) if finite else float("nan"),
        "val_macro_f1": each.macro_f1 if finite else float("nan"),
        **{f"val_{m.name}": m(values, labels) if finite else float("nan") for m in metrics},
    }


def extract(
    job: Job,
    training: Prepared,
    progress: Progress,
    *,
    splits: tuple[str, ...] = ("train", "val"),
) -> dict[str, probe.Features]:
    """Compute the features of every picture of these splits."""
    total = len(job.dataset.parts["train"])
    found = {}
    with released():
        for split in splits:
            batches = training.val if split == "val" else split_batches(job, split)
            found[split] = probe.extract(
                training.state.module,
                training.plan,
                batches,
                progress=lambda done: progress.count("probe", done, total),
            )
    return found


def solve_head(
    job: Job, training: Prepared, progress: Progress
) -> tuple[EpochRecord, probe.Solution]:
    """Solve the head on the frozen network's features, which are computed if they are not known."""
    found = job.features or extract(job, training, progress)
    return probe.probe(
        training.state,
        training.plan,
        train=found["train"],
        val=found["val"],
        judge=partial(judged, metrics=named.build(job.resolved.metrics)),
        weights=_probe_weights(job, training.plan),
    )


def _probe_weights(job: Job, plan: Plan) -> torch.Tensor | None:
    """Compute the weight of a picture of each class: class weight times how often it is drawn."""
    if not job.config.balance:
        return plan.weights
    counts = job.dataset.parts["train"].counts(plan.num_classes)
    often = torch.from_numpy(1 / counts)
    return often if plan.weights is None else often * plan.weights.cpu()
