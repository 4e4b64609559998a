"""Trains from a data set and settings to a finished run directory, and resumes stopped runs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from fieldmark.data import Opened
from fieldmark.data.batches import Batches
from fieldmark.errors import DivergedError, Interrupted, RunError
from fieldmark.files.csv_text import encode_csv
from fieldmark.files.writing import require_room
from fieldmark.fit import lr_finder, probe
from fieldmark.fit.compiled import compiled
from fieldmark.fit.loop import StepMark, fit
from fieldmark.fit.state import EpochRecord, TrainState
from fieldmark.jobs import choice, evaluate, outside
from fieldmark.jobs.examine import Doctor
from fieldmark.jobs.plan import Job, describe, finish, prepare, read_data
from fieldmark.jobs.prepared import (
    Prepared,
    Validation,
    extract,
    judged,
    probe_weights,
    split_batches,
    training_batches,
)
from fieldmark.jobs.request import TrainRequest
from fieldmark.machine.cores import threads_for
from fieldmark.machine.signals import Stop, held, released, stop_requests
from fieldmark.names import shown
from fieldmark.pages import figures, report
from fieldmark.plugins.needs import only
from fieldmark.progress import Progress, Silent
from fieldmark.runs import checkpoint, environment, incidents, manifest
from fieldmark.runs import choice as choices
from fieldmark.runs import scores as run_scores
from fieldmark.runs.directory import RunDirectory
from fieldmark.runs.model import ModelInfo, Selected, encode_model
from fieldmark.runs.saving import Origin, Saver, room_needed
from fieldmark.scoring import named
from fieldmark.scoring.metrics import estimate_temperature
from fieldmark.seeding import Bools
from fieldmark.settings.config import TrainConfig
from fieldmark.settings.weights import WeightsFrom

PREVIEW = 12
"""Number of training pictures in the preview."""
MUCH_WAITING = 0.1
"""Share of an epoch spent waiting for pictures, after the first epoch, that gives a warning."""


@dataclass
class Trial:
    """A training that is judged on validation alone: nothing is scored at its end, nor reported.

    ``resume`` without it later makes an ordinary run of it, if it was not stopped.
    """

    judge: Callable[[Sequence[EpochRecord]], str] = lambda records: ""
    """Told of the epochs so far after each; a text that it returns ends the training, and says
    why."""
    config: TrainConfig | None = None
    """The settings as the run has them; this and what follows is set when it ends."""
    records: tuple[EpochRecord, ...] = ()
    stopped: str = ""
    """What ended it early: of ``judge``, or of a callback."""
    right: Bools | None = None
    """[N]: whether the weights that were kept are right about each validation picture; None if no
    epoch was kept."""


@stop_requests()
def train(
    request: TrainRequest,
    *,
    progress: Progress | None = None,
    opened: Opened | None = None,
    trial: Trial | None = None,
) -> RunDirectory:
    """Train a classifier, score it, and write a run directory. Arguments as for ``prepare``.

    With ``trial`` it is neither scored nor reported; see there.

    Raises:
        FieldmarkError: see ``errors.py``; ``Interrupted`` when asked to stop, after saving.
    """
    manifest.check_apart(request.out, request.data)
    progress = progress or Silent()
    chosen = None
    if trial is None and choice.is_open(request):
        opened = opened or read_data(request.data, request.before_recipe(), progress)
        chosen = choice.choose(request, opened, progress)
    job = prepare(request if chosen is None else chosen.request, progress=progress, opened=opened)
    if chosen is not None:
        job = chosen.told(job)
    training = Prepared.of(job)
    pictures = sum(map(len, job.dataset.parts.values()))
    needed = room_needed(training.state, job.config, pictures=pictures)
    require_room(request.out or Path("runs"), needed, "the run")
    run = RunDirectory.create(request.out, name=slug(job.dataset.name))
    told = _Told(progress, run)
    with run.writing():
        run.check_empty()  # another process may have finished here since
        told.plan(job)
        saver = _saver(job, run, told)
        with run.or_nothing():
            if trial is None:
                preview(job, training.batches, run)
            if chosen is not None:
                choices.write(run, chosen.choice)
            _begin(job, run, request.data, training.state, saver)
        return _work(job, run, training, told, saver, trial)


@stop_requests()
def resume(
    path: Path,
    *,
    data: str | None = None,
    allow_data_change: bool = False,
    allow_plugin_version: bool = False,
    progress: Progress | None = None,
    opened: Opened | None = None,
    trial: Trial | None = None,
) -> RunDirectory:
    """Resume a run where it stopped; the result is that of a run that never stopped.

    Args:
        path: The run directory.
        data: The pictures' place, if they were moved.
        allow_data_change: Resume with other pictures than the run began with; the run says so.
        allow_plugin_version: Use other versions of plugins than the run began with.
        progress: Whoever watches.
        opened: The pictures, if they were read for another run already.
        trial: Judge it on validation alone, and neither score nor report it.

    Raises:
        RunError: if it is no run, was changed by hand, or began with other pictures.
        ConfigError: if another process writes it.
    """
    run = RunDirectory.open(path, allow_plugin_version=allow_plugin_version)
    if run.has("import.json"):
        raise RunError(f"{run.path} was imported, so there is no training to resume; train anew")
    with run.writing():
        run.clean()
        return _resume(run, data, allow_data_change, progress or Silent(), opened, trial)


def _resume(
    run: RunDirectory,
    data: str | None,
    allow_data_change: bool,
    progress: Progress,
    opened: Opened | None,
    trial: Trial | None,
) -> RunDirectory:
    resolved = outside.check_run(run)
    if data is None:
        outside.check_reader(run)
    config, stored = resolved.config, manifest.read(run)
    found = checkpoint.newest(run.path)
    if found is None:
        raise RunError(f"{run.path} has no {checkpoint.LAST}, so it cannot be resumed; train anew")
    saved = found.state
    manifest.check_unedited(run, config, stored, saved)
    outside.check_recorded(run, saved)
    data = data or manifest.locate(run, stored)
    opened = opened or read_data(data, config, progress)
    if set(opened.found.class_names) == set(stored.class_names):
        opened = dataclasses.replace(opened, found=opened.found.in_order_of(stored.class_names))
    dataset = opened.divide(config)
    if dataset.fingerprint != stored.fingerprint and config.whole_batches:
        dataset = opened.divide(config, at_end=True)
    dataset = manifest.divided_as_before(dataset, stored)
    change = manifest.data_change(run, stored, dataset)
    if change and not allow_data_change:
        raise RunError(
            f"the pictures changed since {run.path} began: {change}; so resuming cannot give the "
            "same result. Put them back, train anew, or resume all the same with "
            "--allow-data-change, which the run records"
        )
    job = finish(dataclasses.replace(resolved, weights=WeightsFrom("none")), dataset)
    source = str(saved.get("weights", ""))
    job = dataclasses.replace(
        job,
        resolved=resolved,
        network=dataclasses.replace(job.network, weights=source),
        needs=outside.needs(resolved, data),
    )
    training = Prepared.of(job)
    try:
        training.state.load_state_dict(saved)
    except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise RunError(f"{found.path} does not fit the run: {error}") from None
    told = _Told(progress, run)
    for problem in found.passed_over:
        told.warn(f"{problem}; resuming from {found.path.name}, the checkpoint before it")
    for text in run.notes:
        told.warn(text)
    if trial is not None and training.state.epoch >= config.epochs:
        pass
    elif training.state.epoch >= config.epochs or run.has(run_scores.FILE):
        told.say(
            f"{run.path} is finished, after epoch {training.state.epoch}; it is only scored again. "
            f"To train longer: fieldmark train DATA --from {run.path} --epochs N"
        )
    else:
        told.say(f"resuming {run.path} after step {training.state.step}")
    found.make_last()
    saver = _saver(job, run, told)
    saver.take_back(saved, training.state)
    if change:
        step, place = training.state.step, manifest.relative_path(data, run)
        told.warn(manifest.record_change(run, stored, dataset, change, path=place, step=step))
        _write_bad_files(job, run)
    return _work(job, run, training, told, saver, trial)


def _saver(job: Job, run: RunDirectory, told: _Told) -> Saver:
    """Make the object that writes the run's files during training."""
    origin = Origin(
        job.config, job.dataset.fingerprint, job.network.weights, run.needs_or(job.needs)
    )
    return Saver(run, origin, warn=told.warn)


def find_lr(request: TrainRequest, *, progress: Progress | None = None) -> tuple[float, Path]:
    """Try learning rates on a copy of the network; write ``lr_finder.png`` and suggest one.

    Arguments as for ``prepare``.
    """
    manifest.check_apart(request.out, request.data)
    progress = progress or Silent()
    job = prepare(request, progress=progress)
    told = _Told(progress, None)
    told.plan(job)
    training = Prepared.of(job)
    if job.config.probe:
        _probe(job, training, told)
    curve = lr_finder.find_lr(training.state, training.batches, training.plan)
    run = RunDirectory.create(request.out, name=slug(job.dataset.name) + "-lr")
    figure = figures.lr_finder(curve.lrs, curve.losses, curve.suggestion)
    with run.or_nothing():
        return curve.suggestion, run.write("lr_finder.png", figure)


def look(request: TrainRequest, *, progress: Progress | None = None) -> Path:
    """Write ``preview.png``: training pictures as the network would see them. Train nothing.

    Arguments as for ``prepare``.
    """
    manifest.check_apart(request.out, request.data)
    progress = progress or Silent()
    job = prepare(request, progress=progress)
    _Told(progress, None).plan(job)
    run = RunDirectory.create(request.out, name=slug(job.dataset.name) + "-preview")
    with run.or_nothing():
        return preview(job, training_batches(job), run)


@dataclass
class _Told:
    """Tells whoever watches, and writes the same into ``log.txt``."""

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
        for text in (*job.dataset.warnings, *job.network.warnings, *job.device.warnings):
            self.warn(text)

    def _log(self, text: str) -> None:
        if self.run is not None:
            self.run.log(text)


def line(record: EpochRecord, epochs: int) -> str:
    """Describe an epoch in one line, with the four figures of Keras; the probe is epoch 0."""
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
    """Describe how long the remaining epochs will take if they are like this one."""
    seconds = record.seconds * (epochs - record.epoch) if record.epoch else 0.0
    if seconds < 60:
        return ""
    if seconds < 5400:
        return f" - {seconds / 60:.0f} min left"
    return f" - {seconds / 3600:.1f} h left"


def _probe(job: Job, training: Prepared, told: _Told) -> EpochRecord:
    """Solve the head on the frozen network's features, and tell which penalty was chosen."""
    total = len(job.dataset.parts["train"])
    found = job.features or extract(job, training, told.progress)
    record, solution = probe.probe(
        training.state,
        training.plan,
        train=found["train"],
        val=found["val"],
        judge=partial(judged, metrics=named.build(job.resolved.metrics)),
        weights=probe_weights(job, training.plan),
    )
    told.say(
        f"probe: {total} pictures, {solution.weight.shape[1]} features, penalty "
        f"{solution.strength:.2g} of {probe.STRENGTHS[0]:g} to {probe.STRENGTHS[-1]:g}"
    )
    return record


def _begin(job: Job, run: RunDirectory, data: str, state: TrainState, saver: Saver) -> None:
    """Write the files that describe the run; ``config.json`` last: it makes the run resumable."""
    path = manifest.relative_path(data, run)
    manifest.write(run, manifest.describe_data(job.dataset, path=path))
    _write_bad_files(job, run)
    made_with = environment.environment(job.device, weights=job.network.weights)
    environment.write(run, made_with)
    saver.save(state, must=True)
    run.write("config.json", job.config.to_json(needs=job.needs).encode())


def _write_bad_files(job: Job, run: RunDirectory) -> None:
    if job.dataset.bad:
        rows = [(b.key, b.reason, b.detail) for b in job.dataset.bad]
        run.write("bad_files.csv", encode_csv(("file", "reason", "detail"), rows))


def _work(
    job: Job,
    run: RunDirectory,
    training: Prepared,
    told: _Told,
    saver: Saver,
    trial: Trial | None,
) -> RunDirectory:
    """Train, keeping the disk up to date; then score and report, or have a trial judged.

    Raises:
        Interrupted: when asked to stop, after saving.
    """
    _set_threads(job.config.threads, told)
    job.device.prepare()
    doctor = Doctor(
        job, training.state, training.plan, training.val, calm=training.calm, tell=told.warn
    )
    signal_number = 0
    try:
        if job.config.compile:
            _compile(job, training.state, told)
        with held():
            _train(job, training, told, saver, doctor if trial is None else None, trial)
        if training.state.control.stop:
            told.say(f"stopped early: {training.state.control.stop}")
        with released():
            if trial is None:
                _conclude(job, run, training, told, doctor)
            else:
                _judge_trial(job, run, training, trial)
    except Stop as stop:
        signal_number = stop.number
    except DivergedError as error:
        doctor.diverged(run, error)
        raise
    if signal_number:
        raise Interrupted(
            f"stopped after step {training.state.step}; everything is saved. "
            f"Resume with: fieldmark resume {run.path}",
            signal_number=signal_number,
        )
    return run


def _set_threads(threads: int, told: _Told) -> None:
    """Compute with the run's number of threads, and warn if this machine has fewer cores.

    With another number, sums would have another order, and a resumed run not the same bits.
    """
    torch.set_num_threads(threads)
    cores = threads_for(0)
    if threads > cores:
        told.say(
            f"computing with {threads} threads on {cores} cores, which is slower than fewer "
            "threads; their number is the run's, so that its result stays the same"
        )


def _train(
    job: Job,
    training: Prepared,
    told: _Told,
    saver: Saver,
    doctor: Doctor | None,
    trial: Trial | None,
) -> None:
    """Train; save whenever the loop yields, and when asked to stop."""
    state = training.state
    known = len(state.incidents)
    try:
        for event in _events(job, training, told, saver):
            if state.incidents:
                saver.put(incidents.FILE, incidents.encode(state.incidents))
            if isinstance(event, EpochRecord):
                _keep(job, saver, state, event)
                if trial is not None and not state.control.stop:
                    state.control.stop = trial.judge(state.history)
            saver.save(state)
            # Told last: the terminal may be gone.
            for text in state.incidents[known:]:
                told.warn(text)
            known = len(state.incidents)
            if isinstance(event, EpochRecord):
                told.epoch(event, job.config.epochs)
                if doctor is not None:
                    with released():
                        doctor.after_epoch()
            for text in state.control.notes:
                told.say(text)
            state.control.notes.clear()
        saver.finish(state)
    except Stop:
        # Before the first step there is the checkpoint of the beginning, and a probe may have been
        # on its way to another one. What is not finite is for a resumed run to find again.
        if state.step and not state.tally.not_finite():
            saver.save(state, must=True)
        raise


def _compile(job: Job, state: TrainState, told: _Told) -> None:
    """Compile the network for training, or tell why it is not compiled."""
    told.say("compiling the network, which may take minutes")
    state.forward, why = compiled(
        state.module,
        device=job.device,
        batch_size=-(-job.config.batch_size // job.config.accumulate),
        size=job.network.input.size,
        channels_last=job.config.channels_last,
    )
    if why:
        told.warn(f"the network trains without being compiled ({why})")


def _events(
    job: Job, training: Prepared, told: _Told, saver: Saver
) -> Iterator[EpochRecord | StepMark]:
    """Yield the loop's events; if training diverges, keep the best epoch and say which it is."""
    hardest, total = training.plan.hardest, len(training.batches.part)

    def pause(step: int) -> bool:
        epoch = training.state.epoch
        steps = training.batches.steps(hardest.count(total, epoch))
        told.progress.count(f"epoch {epoch + 1}/{job.config.epochs}", training.state.batch, steps)
        return saver.due(step)

    try:
        if job.config.probe and not training.state.history:
            yield _probe(job, training, told)
        yield from fit(
            training.state,
            training.batches,
            training.plan,
            validate=Validation(job, training.val),
            calm=training.calm if job.config.norm_statistics == "fresh" else None,
            pause=pause,
        )
    except DivergedError as error:
        best, found = training.state.best_epoch, training.state.best_value is not None
        kept = f"; the best epoch so far, {best or 'the probe'}, is kept" if found else ""
        raise DivergedError(f"{error}{kept}") from None


def _keep(job: Job, saver: Saver, state: TrainState, record: EpochRecord) -> None:
    """Save the metrics, and the weights if they are the best so far."""
    saver.put_records(state.history)
    best = _info(job, state, temperature=1.0)
    if job.config.keep == "last":
        if record.best:
            saver.put("best.safetensors", encode_model(state.scored.state_dict(), best))
        saver.put("model.safetensors", encode_model(state.scored.state_dict(), _last(best, state)))
    elif record.best:
        saver.put("model.safetensors", encode_model(state.scored.state_dict(), best))


def _last(info: ModelInfo, state: TrainState) -> ModelInfo:
    """Describe the same network with the weights of the last epoch, which no metric selected."""
    return dataclasses.replace(info, selected=Selected(epoch=state.epoch, metric="last"))


def _info(job: Job, state: TrainState, *, temperature: float) -> ModelInfo:
    return ModelInfo(
        model=job.network.spec,
        input=job.network.input,
        class_names=job.dataset.class_names,
        temperature=temperature,
        selected=Selected(
            epoch=state.best_epoch, metric=job.config.monitor, value=state.best_value
        ),
        weights=job.network.weights,
        num_params=job.network.num_params,
        plugins=only(job.needs, ["networks"]),
    )


def _conclude(job: Job, run: RunDirectory, training: Prepared, told: _Told, doctor: Doctor) -> None:
    """Estimate the temperature on validation, score validation and test, write the report."""
    if not run.has("model.safetensors"):
        raise DivergedError(
            f"no epoch had a {job.config.monitor} that is a number, so there is no best one; "
            "try a lower --lr"
        )
    if not run.has("preview.png"):
        preview(job, training.batches, run)
    model = run.load_model(device=job.device.name)
    sources = {"val": training.val}  # it holds its pictures resized already
    if "test" in job.dataset.parts:
        sources["test"] = split_batches(job, "test")
    scored = evaluate.score(model, sources, told.progress)
    temperature = estimate_temperature(scored["val"], job.dataset.parts["val"].labels)
    info = dataclasses.replace(model.info, temperature=temperature)
    run.save_model(model.module.state_dict(), info)
    if job.config.keep != "last":
        final = _last(_info(job, training.state, temperature=1.0), training.state)
        run.save_model(training.state.scored.state_dict(), final, name="final.safetensors")
    metrics = named.build(job.resolved.metrics)
    scored_model = dataclasses.replace(model, info=info)
    added = evaluate.l2_penalty(scored_model, job.config)
    evaluate.write(run, scored_model, job.dataset, scored, metrics, added)
    doctor.conclude(run, scored_model, scored)
    report.write_figures(run.path)
    report.report([run.path])


def _judge_trial(job: Job, run: RunDirectory, training: Prepared, trial: Trial) -> None:
    """Fill in what a trial came to, the answers of the kept weights on validation among it."""
    trial.config, trial.records = job.config, tuple(training.state.history)
    trial.stopped = training.state.control.stop
    if not run.has("model.safetensors"):
        return
    validate = Validation(job, training.val)  # as the epochs were
    validate(run.load_model(device=job.device.name).module)
    trial.right = validate.logits.argmax(axis=1) == training.val.part.labels


def preview(job: Job, batches: Batches, run: RunDirectory) -> Path:
    """Write training pictures before and after augmentation, as in the first epoch."""
    batch = next(batches.epoch(0))
    chosen = batch.indices[:PREVIEW]
    part, names = batches.part, job.dataset.class_names
    after = batch.images[: len(chosen)].cpu().round().clamp(0, 255).to(torch.uint8)
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
    """Make a folder name from a data set's name: its letters and digits in any script."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"
