"""From a data set and settings to a finished run directory; and going on where a run stopped."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fieldmark import augment, evaluate, figures, provenance, report
from fieldmark.config import TrainConfig
from fieldmark.data import Opened
from fieldmark.data.batches import Batches, scoring_batches
from fieldmark.errors import DivergedError, Interrupted, RunError
from fieldmark.fit import callbacks, lr_finder, optimizers, probe, schedules
from fieldmark.fit.compiled import compiled
from fieldmark.fit.infer import logits
from fieldmark.fit.loop import Plan, StepMark, Validate, fit
from fieldmark.fit.losses import class_weights
from fieldmark.fit.state import Ema, EpochRecord, Tally, TrainState
from fieldmark.metrics import PerClass, confusion, cross_entropy, fit_temperature
from fieldmark.names import shown
from fieldmark.plan import Job, describe, finish, prepare, read_data
from fieldmark.progress import Progress, Silent
from fieldmark.run import Model, ModelInfo, RunDirectory, encode_csv
from fieldmark.signals import Wanted, stop_requests

PREVIEW = 12
"""Training pictures in the preview."""
MUCH_WAITING = 0.1
"""Share of an epoch, after the first, from which on advice is given."""


def train(
    data: str,
    *,
    recipe: str = "auto",
    base: TrainConfig | None = None,
    settings: Mapping[str, Any] | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
    opened: Opened | None = None,
) -> RunDirectory:
    """Train a classifier, judge it, and write a run directory. Arguments as for ``prepare``.

    Raises:
        FieldmarkError: see ``errors.py``; ``Interrupted`` on Ctrl-C or SIGTERM, after saving.
    """
    progress = progress or Silent()
    job = prepare(
        data, recipe=recipe, base=base, settings=settings, progress=progress, opened=opened
    )
    training = _Training.of(job)
    run = RunDirectory.create(out, name=slug(job.dataset.name))
    told = _Told(progress, run)
    told.plan(job)
    with run.or_nothing():
        preview(job, training.batches, run)
        _begin(job, run, data, training.state)
    return _work(job, run, training, told)


def resume(
    path: Path,
    *,
    data: str | None = None,
    progress: Progress | None = None,
    opened: Opened | None = None,
) -> RunDirectory:
    """Go on where a run stopped; the result is that of a run which never stopped.

    Args:
        path: The run directory.
        data: Where the pictures are now, if not where they were.
        progress: Who is told what happens.
        opened: The pictures, where they were read for another run already.

    Raises:
        RunError: if it is no run, or the pictures are not those it began with.
    """
    progress = progress or Silent()
    run = RunDirectory.open(path)
    run.clean()
    if run.has("import.json"):
        raise RunError(f"{run.path} was imported: there is nothing to go on with; train anew")
    config, stored = run.config(), run.read_json("data.json")
    checkpoint = run.load_checkpoint()
    if checkpoint is None:
        raise RunError(f"{run.path} has no last.ckpt to go on from; train anew")
    opened = opened or read_data(data or provenance.locate(run, stored), config, progress)
    dataset = opened.divide(config)
    provenance.check_same_data(run, stored, dataset)
    job = finish(dataclasses.replace(config, weights="none"), dataset)
    source = run.read_json("environment.json")["weights"]
    job = dataclasses.replace(
        job, config=config, network=dataclasses.replace(job.network, weights=source)
    )
    training = _Training.of(job)
    try:
        training.state.load_state_dict(checkpoint)
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        raise RunError(f"{run.path / 'last.ckpt'} does not fit the run: {error}") from None
    told = _Told(progress, run)
    told.say(f"resuming {run.path} after step {training.state.step}")
    return _work(job, run, training, told)


def find_lr(
    data: str,
    *,
    recipe: str = "auto",
    base: TrainConfig | None = None,
    settings: Mapping[str, Any] | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
) -> tuple[float, Path]:
    """Try learning rates on a copy of the network; write ``lr_finder.png`` and suggest one.

    Arguments as for ``prepare``.
    """
    progress = progress or Silent()
    job = prepare(data, recipe=recipe, base=base, settings=settings, progress=progress)
    told = _Told(progress, None)
    told.plan(job)
    training = _Training.of(job)
    if job.config.probe:
        _probe(job, training, told, Wanted())
    curve = lr_finder.find_lr(training.state, training.batches, training.plan)
    run = RunDirectory.create(out, name=slug(job.dataset.name) + "-lr")
    figure = figures.lr_finder(curve.lrs, curve.losses, curve.suggestion)
    with run.or_nothing():
        return curve.suggestion, run.write("lr_finder.png", figure)


def look(
    data: str,
    *,
    recipe: str = "auto",
    base: TrainConfig | None = None,
    settings: Mapping[str, Any] | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write ``preview.png``, training pictures as the network would see them, and train nothing.

    Arguments as for ``prepare``.
    """
    progress = progress or Silent()
    job = prepare(data, recipe=recipe, base=base, settings=settings, progress=progress)
    _Told(progress, None).plan(job)
    run = RunDirectory.create(out, name=slug(job.dataset.name) + "-preview")
    with run.or_nothing():
        return preview(job, _training_batches(job), run)


@dataclass
class _Told:
    """Tells the watcher, and writes the same into ``log.txt``."""

    progress: Progress
    run: RunDirectory | None
    advised: bool = False

    def say(self, text: str) -> None:
        self.progress.say(text)
        self._log(text)

    def warn(self, text: str) -> None:
        self.progress.warn(text)
        self._log("warning: " + text)

    def epoch(self, record: EpochRecord, epochs: int) -> None:
        self.progress.epoch(record, epochs)
        self._log(line(record, epochs))
        if record.epoch > 1 and record.data_wait > MUCH_WAITING and not self.advised:
            self.advised = True
            self.say(
                f"{record.data_wait:.0%} of the epoch was spent waiting for pictures: raise "
                "--memory-gb, else --disk-gb (decoded pictures that are kept), or --threads"
            )

    def plan(self, job: Job) -> None:
        for text in describe(job):
            self.say(text)
        for text in (*job.dataset.warnings, *job.device.warnings):
            self.warn(text)

    def _log(self, text: str) -> None:
        if self.run is not None:
            self.run.log(text)


def line(record: EpochRecord, epochs: int) -> str:
    """An epoch in one line, with the four figures that Keras prints; the probe is epoch 0."""
    return (
        (f"epoch {record.epoch}/{epochs}" if record.epoch else "probe")
        + f" - {record.seconds:.1f} s - "
        f"loss {record.train_loss:.4f} - accuracy {record.train_accuracy:.4f} - "
        f"val_loss {record.val_loss:.4f} - val_accuracy {record.val_accuracy:.4f} - "
        f"lr {record.lr:.3g} - "
        f"{record.images_per_second:.0f} images/s, waiting {record.data_wait:.0%}"
        f"{_left(record, epochs)}" + (" - best" if record.best else "")
    )


def _left(record: EpochRecord, epochs: int) -> str:
    """How long the remaining epochs will take if they are like this one."""
    seconds = record.seconds * (epochs - record.epoch) if record.epoch else 0.0
    if seconds < 60:
        return ""
    if seconds < 5400:
        return f" - {seconds / 60:.0f} min left"
    return f" - {seconds / 3600:.1f} h left"


@dataclass(frozen=True)
class _Training:
    """What the loop works on."""

    state: TrainState
    batches: Batches
    plan: Plan
    val: Batches

    @classmethod
    def of(cls, job: Job) -> _Training:
        """Build optimizer, schedule, callbacks and batches from the config."""
        config, device = job.config, job.device
        module = job.network.module.to(device.torch_device)
        batches, val = _training_batches(job), _scoring_batches(job, "val")
        state = TrainState(
            module,
            optimizers.build(
                config.optimizer,
                module,
                head=job.network.head,
                weight_decay=config.weight_decay,
                backbone_lr=config.backbone_lr,
                bias_lr=config.bias_lr,
            )
            if config.epochs
            else optimizers.NoOptimizer(),
            callbacks.build(config.callbacks, monitor=config.monitor),
            Tally.empty(device.torch_device),
            Ema(module, config.ema) if config.ema else None,
        )
        return cls(state, batches, _plan(job, len(batches)), val)


def _plan(job: Job, steps_per_epoch: int) -> Plan:
    config, names = job.config, job.dataset.class_names
    counts = job.dataset.parts["train"].counts(len(names))
    weights = class_weights(config.class_weights, counts, names)
    total_steps, size = config.epochs * steps_per_epoch, job.network.input.size
    stages = schedules.stages(config.progressive, full=size)
    return Plan(
        epochs=config.epochs,
        seed=config.seed,
        device=job.device,
        input=job.network.input,
        head=job.network.head,
        num_classes=len(names),
        lr=float(config.lr),
        schedule=schedules.build(
            config.schedule,
            length=schedules.Length(total_steps, steps_per_epoch),
            warmup_steps=round(config.warmup_epochs * steps_per_epoch),
        ),
        monitor=config.monitor,
        ties_by_loss=config.keep == "best",
        l2=float(config.l2),
        mix=augment.build_mix(config.mix),
        smoothing=float(config.label_smoothing),
        weights=None if weights is None else weights.to(job.device.torch_device),
        accumulate=config.accumulate,
        clip_norm=float(config.clip_norm),
        freeze=config.freeze,
        train_from=config.train_from,
        unfreeze_at_epoch=config.unfreeze_at_epoch,
        freeze_after=optimizers.freezing(
            config.freeze_after, job.network.module, head=job.network.head
        ),
        size_at=schedules.size_at(stages, full=size, total_steps=total_steps) if stages else None,
        channels_last=config.channels_last,
    )


def _training_batches(job: Job) -> Batches:
    config = job.config
    return Batches(
        job.dataset.parts["train"],
        job.dataset.read,
        spec=job.network.input,
        augment=augment.build(config.augment if config.epochs else "none"),
        batch_size=config.batch_size,
        seed=config.seed,
        balance=config.balance,
        last=config.last_batch,
        threads=config.threads,
        fast=True,
    )


def _scoring_batches(job: Job, part: str) -> Batches:
    """Batches of a part as they are scored: no augmentation, in order."""
    return scoring_batches(
        job.dataset.parts[part],
        job.dataset.read,
        spec=job.network.input,
        threads=job.config.threads,
    )


def _validation(job: Job, val: Batches) -> Validate:
    """Score the validation part with a network, by one view: its figures choose the epoch only."""
    labels = val.part.labels
    spec = dataclasses.replace(job.network.input, views="none")

    def validate(module: torch.nn.Module) -> dict[str, float]:
        outputs = logits(
            module,
            (batch.images for batch in val.in_order()),
            spec=spec,
            device=job.device.name,
            channels_last=job.config.channels_last,
        )
        return _judged(outputs.numpy().astype(np.float64), labels)

    return validate


def _judged(values: probe.F64, labels: probe.I64) -> dict[str, float]:
    """The validation metrics of logits [N, K]."""
    predicted = values.argmax(axis=1)
    each = PerClass.of(confusion(labels, predicted, values.shape[1]))
    finite = np.isfinite(values).all()
    return {
        "val_loss": cross_entropy(values, labels) if finite else float("nan"),
        "val_accuracy": float((predicted == labels).mean()) if finite else float("nan"),
        "val_macro_f1": each.macro_f1 if finite else float("nan"),
    }


def _probe(job: Job, training: _Training, told: _Told, wanted: Wanted) -> EpochRecord:
    """Solve the head on the frozen network's features, and say which penalty was taken.

    Raises:
        Interrupted: if stopping is asked for; ``resume`` then begins the probe anew.
    """
    total = len(job.dataset.parts["train"])

    def progress(done: int) -> None:
        told.progress.count("probe", done, total)
        if wanted.signal:
            raise Interrupted(
                "stopped in the probe, which begins anew with: fieldmark resume "
                + (str(told.run.path) if told.run else "RUN"),
                signal_number=wanted.signal,
            )

    record, solution = probe.probe(
        training.state,
        training.plan,
        train=_scoring_batches(job, "train"),
        val=training.val,
        judge=_judged,
        weights=_probe_weights(job, training.plan),
        progress=progress,
    )
    told.say(
        f"probe: {total} pictures, {solution.weight.shape[1]} features, penalty "
        f"{solution.strength:.2g} of {probe.STRENGTHS[0]:g} to {probe.STRENGTHS[-1]:g}"
    )
    return record


def _probe_weights(job: Job, plan: Plan) -> torch.Tensor | None:
    """What a picture of each class counts: its class weight, and as often as it would be drawn."""
    if not job.config.balance:
        return plan.weights
    counts = job.dataset.parts["train"].counts(plan.num_classes)
    often = torch.from_numpy(1 / counts)
    return often if plan.weights is None else often * plan.weights.cpu()


def _begin(job: Job, run: RunDirectory, data: str, state: TrainState) -> None:
    """Write what describes the run. ``config.json`` comes last: with it, the run can be resumed."""
    run.write_json(
        "data.json",
        provenance.describe_data(job.dataset, path=provenance.relative_path(data, run)),
        indent=None,
    )
    if job.dataset.bad:
        rows = [(b.key, b.reason, b.detail) for b in job.dataset.bad]
        run.write("bad_files.csv", encode_csv(("file", "reason", "detail"), rows))
    run.write_json(
        "environment.json", provenance.environment(job.device, weights=job.network.weights)
    )
    run.save_checkpoint(state.state_dict())
    run.write("config.json", job.config.to_json().encode())


def _work(job: Job, run: RunDirectory, training: _Training, told: _Told) -> RunDirectory:
    """Train, keeping the disk up to date; then judge and report."""
    torch.set_num_threads(job.config.threads)  # another number would sum in another order
    if job.config.compile:
        _compile(job, training.state, told)
    with stop_requests() as wanted:
        for event in _events(job, training, told, wanted):
            if isinstance(event, EpochRecord):
                told.epoch(event, job.config.epochs)
                _keep(job, run, training.state, event)
            run.save_checkpoint(training.state.state_dict())
            if wanted.signal:
                raise Interrupted(
                    f"stopped after step {training.state.step}; everything is saved. "
                    f"Go on with: fieldmark resume {run.path}",
                    signal_number=wanted.signal,
                )
    if training.state.control.stop:
        told.say(f"stopped early: {training.state.control.stop}")
    _conclude(job, run, training, told)
    return run


def _compile(job: Job, state: TrainState, told: _Told) -> None:
    """Let the network be called compiled in training, or say why it is not."""
    told.say("compiling the network, which may take minutes")
    state.forward, why = compiled(
        state.module,
        device=job.device,
        batch_size=-(-job.config.batch_size // job.config.accumulate),
        size=job.network.input.size,
        channels_last=job.config.channels_last,
    )
    if why:
        told.warn(f"the network is not compiled ({why}); it trains as it is")


def _events(
    job: Job, training: _Training, told: _Told, wanted: Wanted
) -> Iterator[EpochRecord | StepMark]:
    """The loop's events; divergence keeps the best epoch and says where it is."""
    every, steps = job.config.save_every_steps, len(training.batches)

    def pause(step: int) -> bool:
        told.progress.count(
            f"epoch {training.state.epoch + 1}/{job.config.epochs}", training.state.batch, steps
        )
        return bool(wanted.signal) or (every > 0 and step % every == 0)

    try:
        if job.config.probe and not training.state.history:
            yield _probe(job, training, told, wanted)
        yield from fit(
            training.state,
            training.batches,
            training.plan,
            validate=_validation(job, training.val),
            pause=pause,
        )
    except DivergedError as error:
        best, found = training.state.best_epoch, training.state.best_value is not None
        kept = f"; the best epoch so far, {best or 'the probe'}, is kept" if found else ""
        raise DivergedError(f"{error}{kept}") from None
    for message in training.state.control.messages:
        told.say(message)


def _keep(job: Job, run: RunDirectory, state: TrainState, record: EpochRecord) -> None:
    """Write the metrics, and the weights if they are the best so far."""
    for message in state.control.messages:
        run.log(message)
    rows = [dataclasses.asdict(r) for r in state.history]
    run.write_lines("metrics.jsonl", [_finite(row) for row in rows])
    run.write("results.csv", encode_csv(tuple(rows[0]), [tuple(r.values()) for r in rows]))
    best = _info(job, state, temperature=1.0)
    if job.config.keep == "last":
        if record.best:
            run.save_model(state.scored.state_dict(), best, name="best.safetensors")
        run.save_model(state.scored.state_dict(), _last(best, state))
    elif record.best:
        run.save_model(state.scored.state_dict(), best)


def _last(info: ModelInfo, state: TrainState) -> ModelInfo:
    """The same network with the weights of the last epoch, which nothing selected."""
    selected = {"epoch": state.epoch, "metric": "last", "value": None}
    return dataclasses.replace(info, selected=selected)


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: null stands for a figure that is none."""
    return {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in row.items()}


def _info(job: Job, state: TrainState, *, temperature: float) -> ModelInfo:
    return ModelInfo(
        model=job.network.spec,
        input=job.network.input,
        class_names=job.dataset.class_names,
        temperature=temperature,
        selected={
            "epoch": state.best_epoch,
            "metric": job.config.monitor,
            "value": state.best_value,
        },
        weights=job.network.weights,
        num_params=job.network.num_params,
    )


def _conclude(job: Job, run: RunDirectory, training: _Training, told: _Told) -> None:
    """Calibrate on validation, score validation and test, write figures and report."""
    if not run.has("model.safetensors"):
        raise DivergedError(
            f"no epoch had a {job.config.monitor} that is a number, so there is no best one; "
            "try a lower --lr"
        )
    model = run.load_model(device=job.device.name)
    sources = {"val": training.val}  # which holds its pictures fitted to the input already
    if "test" in job.dataset.parts:
        sources["test"] = _scoring_batches(job, "test")
    scored = {
        part: evaluate.run_logits(
            model, batches, progress=partial(told.progress.count, f"scoring {part}")
        )
        for part, batches in sources.items()
    }
    temperature = fit_temperature(scored["val"], job.dataset.parts["val"].labels)
    info = dataclasses.replace(model.info, temperature=temperature)
    run.save_model(model.module.state_dict(), info)
    if job.config.keep != "last":
        final = _last(_info(job, training.state, temperature=1.0), training.state)
        run.save_model(training.state.scored.state_dict(), final, name="final.safetensors")
    evaluate.write(run, Model(model.module, info), job.dataset, scored)
    report.write_figures(run.path)
    report.report([run.path])


def preview(job: Job, batches: Batches, run: RunDirectory) -> Path:
    """Write training pictures before and after augmentation, as the first epoch shows them."""
    batch = next(batches.epoch(0))
    chosen = batch.indices[:PREVIEW]
    part, names = batches.part, job.dataset.class_names
    after = batch.images[: len(chosen)].round().clamp(0, 255).to(torch.uint8)
    counts = ", ".join(f"{len(p)} {name}" for name, p in job.dataset.parts.items())
    heading = (
        f"{shown(job.dataset.name)}: {counts}; batches {list(batch.images.shape)}; "
        f"augment {job.config.augment if job.config.epochs else 'none'}"
    )
    figure = figures.preview(
        [job.dataset.read(part.keys[i]) for i in chosen],
        [image.permute(1, 2, 0).numpy() for image in after],
        [names[part.labels[i]] for i in chosen],
        heading=heading,
    )
    return run.write("preview.png", figure)


def slug(name: str) -> str:
    """A folder name from a data set's name: its letters and digits in any script."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"
