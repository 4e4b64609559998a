"""Trains one run, from a job to a finished run directory; and goes on with a run that stopped."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fieldmark.data import Opened
from fieldmark.data.batches import Batches
from fieldmark.errors import DivergedError, Interrupted, RunError
from fieldmark.files.csv_text import encode_csv
from fieldmark.files.writing import require_room
from fieldmark.fit import probe
from fieldmark.fit.compiled import compiled
from fieldmark.fit.loop import StepMark, fit
from fieldmark.fit.state import EpochRecord, TrainState
from fieldmark.jobs import evaluate, outside
from fieldmark.jobs.clock import REPORT, Clock, Pace
from fieldmark.jobs.examine import PICTURES as EXAMINED
from fieldmark.jobs.examine import Doctor
from fieldmark.jobs.plan import Job, describe, finish, read_data
from fieldmark.jobs.prepared import (
    Prepared,
    Validation,
    solve_head,
    split_batches,
)
from fieldmark.jobs.prepared import plan as plan_of
from fieldmark.jobs.request import TrainRequest
from fieldmark.machine.cores import threads_for
from fieldmark.machine.signals import Stop, held, released
from fieldmark.names import shown
from fieldmark.pages import figures, report
from fieldmark.plugins.needs import only
from fieldmark.progress import Progress
from fieldmark.runs import budget, checkpoint, environment, incidents, manifest
from fieldmark.runs import scores as run_scores
from fieldmark.runs.budget import Budget
from fieldmark.runs.directory import RunDirectory
from fieldmark.runs.model import ModelInfo, Selected, encode_model
from fieldmark.runs.saving import Origin, Saver, room_needed
from fieldmark.scoring import named, views
from fieldmark.scoring.metrics import estimate_temperature
from fieldmark.seeding import Bools
from fieldmark.settings.config import TrainConfig
from fieldmark.settings.resolved import Landing, Resolved
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


def begin(
    job: Job,
    request: TrainRequest,
    *,
    progress: Progress,
    trial: Trial | None = None,
    clock: Clock | None = None,
    home: RunDirectory | None = None,
) -> RunDirectory:
    """Train a job into a new run directory, score it and report.

    Args:
        job: What is trained.
        request: Where the pictures are, and the folder.
        progress: Whoever watches.
        trial: Judge it on validation alone, and neither score nor report it.
        clock: The time that it may take.
        home: The folder that the run's files will be moved to, if they will be.

    Raises:
        FieldmarkError: see ``errors.py``; ``Interrupted`` when asked to stop, after saving.
    """
    training = Prepared.of(job)
    pictures = sum(map(len, job.dataset.parts.values()))
    needed = room_needed(training.state, job.config, pictures=pictures)
    require_room(request.out or Path("runs"), needed, "the run")
    run = RunDirectory.create(request.out, name=slug(job.dataset.name))
    told = Told(progress, run)
    with run.writing():
        run.check_empty()  # another process may have finished here since
        told.plan(job)
        saver = _saver(job, run, told)
        with run.or_nothing():
            if trial is None:
                preview(job, training.batches, run)
                if clock is not None:
                    found = Budget(minutes=clock.minutes, seconds=0.0)
                    clock.note = partial(_note, run, clock, found)
                    clock.note()
            path = manifest.relative_path(request.data, home or run)
            _begin(job, run, path, training.state, saver)
        return _work(job, run, training, told, saver, trial, clock)


def _note(run: RunDirectory, clock: Clock, found: Budget) -> None:
    budget.write(run, dataclasses.replace(found, seconds=round(clock.used, 1)))


def clock_of(run: RunDirectory) -> Clock | None:
    """The clock of a run that was given a time, with what is used of it."""
    found = budget.read(run)
    if found is None:
        return None
    clock = Clock(found.minutes, before=found.seconds)
    clock.note = partial(_note, run, clock, found)
    return clock


def go_on(
    run: RunDirectory,
    *,
    data: str | None,
    progress: Progress,
    allow_data_change: bool = False,
    opened: Opened | None = None,
    trial: Trial | None = None,
    clock: Clock | None = None,
) -> RunDirectory:
    """Go on with a run where it stopped; the caller is its only writer (``run.writing``).

    Arguments as for :func:`begin` and ``train.resume``.
    """
    resolved = outside.check_run(run)
    if data is None:
        outside.check_reader(run)
    stored, found = manifest.read(run), checkpoint.newest(run.path)
    if found is None:
        raise RunError(f"{run.path} has no {checkpoint.LAST}, so it cannot be resumed; train anew")
    saved = found.state
    if clock is not None:
        resolved = _as_landed(resolved, saved)
    config = resolved.config
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
    told = Told(progress, run)
    for problem in found.passed_over:
        told.warn(f"{problem}; resuming from {found.path.name}, the checkpoint before it")
    for text in run.notes:
        told.warn(text)
    if run.has(run_scores.FILE):
        told.say(
            f"{run.path} is finished, after epoch {training.state.epoch}; it is only scored again. "
            f"To train longer: fieldmark train DATA --from {run.path} --epochs N"
        )
    elif training.plan.is_done(training.state):
        if trial is None:
            told.say(f"{run.path} is trained, after epoch {training.state.epoch}; it is scored now")
    else:
        told.say(f"resuming {run.path} after step {training.state.step}")
    found.make_last()
    saver = _saver(job, run, told)
    saver.take_back(saved, training.state)
    if change:
        step, place = training.state.step, manifest.relative_path(data, run)
        told.warn(manifest.record_change(run, stored, dataset, change, path=place, step=step))
        _write_bad_files(job, run)
    return _work(job, run, training, told, saver, trial, clock)


def _as_landed(resolved: Resolved, saved: Mapping[str, Any]) -> Resolved:
    """The settings with the landings of the checkpoint: what the clock decided after it is void."""
    then = saved.get("config")
    landing = str(then.get("landing", "none")) if isinstance(then, dict) else "none"
    config = dataclasses.replace(resolved.config, landing=landing)
    return Resolved.of(config, before=resolved)


def _saver(job: Job, run: RunDirectory, told: Told) -> Saver:
    """Make the object that writes the run's files during training."""
    origin = Origin(
        job.config, job.dataset.fingerprint, job.network.weights, run.needs_or(job.needs)
    )
    return Saver(run, origin, warn=told.warn)


@dataclass
class Told:
    """Tells whoever watches, and writes the same into ``log.txt``."""

    progress: Progress
    run: RunDirectory | None
    advised: bool = False

    def say(self, text: str) -> None:
        """Tell a note."""
        self.progress.say(text)
        self._log(text)

    def warn(self, text: str) -> None:
        """Tell a warning."""
        self.progress.warn(text)
        self._log("warning: " + text)

    def count(self, what: str, done: int, total: int) -> None:
        """Tell how many are done; it is not logged."""
        self.progress.count(what, done, total)

    def epoch(self, record: EpochRecord, epochs: int) -> None:
        """Tell that an epoch is finished."""
        self.progress.epoch(record, epochs)
        self._log(line(record, epochs))
        if record.epoch > 1 and record.data_wait > MUCH_WAITING and not self.advised:
            self.advised = True
            self.say(
                f"{record.data_wait:.0%} of the epoch was spent waiting for pictures: raise "
                "--memory-gb, else --disk-gb (decoded pictures that are kept), or --threads"
            )

    def plan(self, job: Job) -> None:
        """Tell what is going to be done."""
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


def solve_probe(job: Job, training: Prepared, told: Told) -> EpochRecord:
    """Solve the head on the frozen network's features, and tell which penalty was chosen."""
    record, solution = solve_head(job, training, told.progress)
    told.say(
        f"probe: {len(job.dataset.parts['train'])} pictures, {solution.weight.shape[1]} features, "
        f"penalty {solution.strength:.2g} of {probe.STRENGTHS[0]:g} to {probe.STRENGTHS[-1]:g}"
    )
    return record


def _begin(job: Job, run: RunDirectory, path: str, state: TrainState, saver: Saver) -> None:
    """Write the files that describe the run; ``config.json`` last: it makes the run resumable."""
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
    told: Told,
    saver: Saver,
    trial: Trial | None,
    clock: Clock | None,
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
            _train(job, training, told, saver, doctor if trial is None else None, trial, clock)
        if training.state.control.stop:
            told.say(f"stopped early: {training.state.control.stop}")
        with released():
            if trial is None:
                _conclude(job, run, training, told, doctor, clock)
            else:
                _judge_trial(job, run, training, trial)
    except Stop as stop:
        signal_number = stop.number
    except DivergedError as error:
        doctor.diverged(run, error)
        raise
    finally:
        if clock is not None:
            clock.note()
    if signal_number:
        raise Interrupted(
            f"stopped after step {training.state.step}; everything is saved. "
            f"Resume with: fieldmark resume {run.path}",
            signal_number=signal_number,
        )
    return run


def _set_threads(threads: int, told: Told) -> None:
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
    told: Told,
    saver: Saver,
    doctor: Doctor | None,
    trial: Trial | None,
    clock: Clock | None,
) -> None:
    """Train; save whenever the loop yields, and when asked to stop."""
    state = training.state
    known = len(state.incidents)
    try:
        for event in _events(job, training, told, saver, clock):
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


def _compile(job: Job, state: TrainState, told: Told) -> None:
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
    job: Job, training: Prepared, told: Told, saver: Saver, clock: Clock | None
) -> Iterator[EpochRecord | StepMark]:
    """Yield the loop's events; if training diverges, keep the best epoch and say which it is.

    Where it would not end within the clock's time it goes on by a plan that lands.
    """
    state, batches = training.state, training.batches
    validate = Validation(job, training.val)
    watch = None if clock is None else _Watch(job, training, clock)

    def pause(step: int) -> bool:
        total = batches.steps(training.plan.hardest.count(len(batches.part), state.epoch))
        what = f"epoch {state.epoch + 1}/{job.config.epochs}"
        told.progress.count(what, state.batch, total)
        late = watch is not None and watch.step()
        return saver.due(step) or late

    try:
        if job.config.probe and not state.history:
            yield solve_probe(job, training, told)
        plan = training.plan
        while not plan.is_done(state) and not state.control.stop:
            for event in fit(
                state,
                batches,
                plan,
                validate=validate,
                calm=training.before_scores,
                pause=pause,
            ):
                if watch is not None and isinstance(event, EpochRecord):
                    watch.epoch()
                if watch is not None and watch.landing is not None:
                    told.say(watch.land(saver))
                    plan = watch.plan
                    yield event
                    break
                yield event
    except DivergedError as error:
        best, found = state.best_epoch, state.best_value is not None
        kept = f"; the best epoch so far, {best or 'the probe'}, is kept" if found else ""
        raise DivergedError(f"{error}{kept}") from None


class _Watch:
    """Holds a training's plan against the clock, and has it land."""

    def __init__(self, job: Job, training: Prepared, clock: Clock) -> None:
        self._job, self._training, self._clock = job, training, clock
        self.plan = training.plan
        self.landing: Landing | None = None
        """The landing that is due."""
        counts = {name: len(part) for name, part in job.dataset.parts.items()}
        scored = counts["val"] + counts.get("test", 0)
        self._pace = Pace(
            clock,
            validation=counts["val"],
            scored=scored * views.NUMBER[job.network.input.views],
            batch_size=job.config.batch_size,
        )

    def step(self) -> bool:
        """Look at the clock after a step; whether it is time to land."""
        self._clock.tick()
        self._pace.step()
        self.landing = self._pace.landing(self._training.state, self.plan)
        return self.landing is not None

    def epoch(self) -> None:
        """Look at the clock after an epoch."""
        self._pace.epoch()
        self.landing = self._pace.landing(self._training.state, self.plan)

    def land(self, saver: Saver) -> str:
        """Go over to a plan that lands; what to tell of it."""
        assert self.landing is not None
        resolved = self._job.resolved
        landings = "|".join(map(str, (*resolved.landing, self.landing)))
        config = dataclasses.replace(self._job.config, landing=landings)
        resolved = Resolved.of(config, before=resolved)
        self._job = dataclasses.replace(self._job, resolved=resolved)
        self.plan = plan_of(self._job, self._training.batches)
        saver.change(config)
        step, end, self.landing = self.landing.step, self.landing.end, None
        return (
            f"{self._clock.minutes:g} min are not enough for {self.plan.total_steps} steps: from "
            f"step {step} on the schedule is gone through faster, to end at {end} ({landings})"
        )


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


def _conclude(
    job: Job,
    run: RunDirectory,
    training: Prepared,
    told: Told,
    doctor: Doctor,
    clock: Clock | None,
) -> None:
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
    start = time.perf_counter()
    scored = evaluate.score(model, sources, told.progress)
    one = (time.perf_counter() - start) / sum(map(len, scored.values()))
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

    def has_time() -> bool:
        return clock is None or clock.left > REPORT + EXAMINED * one

    doctor.conclude(run, scored_model, scored, has_time=has_time)
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
