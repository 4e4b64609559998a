"""Trains from a data set and settings to a finished run directory, and resumes stopped runs."""

from __future__ import annotations

from pathlib import Path

from fieldmark.data import Opened
from fieldmark.errors import RunError
from fieldmark.fit import lr_finder
from fieldmark.jobs import best, choice, running
from fieldmark.jobs.clock import Clock
from fieldmark.jobs.plan import prepare, read_data
from fieldmark.jobs.prepared import Prepared, training_batches
from fieldmark.jobs.request import TrainRequest
from fieldmark.jobs.running import Told, Trial, slug
from fieldmark.machine.signals import stop_requests
from fieldmark.pages import figures
from fieldmark.progress import Progress, Silent
from fieldmark.runs import manifest
from fieldmark.runs.directory import RunDirectory


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
    if trial is None and choice.is_open(request):
        opened = opened or read_data(request.data, request.before_recipe(), progress)
        if choice.is_worth_it(request, opened):
            return best.train(request, opened, progress)
    clock = None if request.minutes is None else Clock(request.minutes)
    job = prepare(request, progress=progress, opened=opened)
    return running.begin(job, request, progress=progress, trial=trial, clock=clock)


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
    progress = progress or Silent()
    if best.is_choosing(path):
        if allow_data_change:
            raise RunError(
                f"{path} is still choosing what to train, which it does on the pictures that it "
                "began with; train anew for others"
            )
        return best.resume(path, data=data, opened=opened, progress=progress)
    run = RunDirectory.open(path, allow_plugin_version=allow_plugin_version)
    if run.has("import.json"):
        raise RunError(f"{run.path} was imported, so there is no training to resume; train anew")
    with run.writing():
        run.clean()
        return running.go_on(
            run,
            data=data,
            allow_data_change=allow_data_change,
            progress=progress,
            opened=opened,
            trial=trial,
            clock=running.clock_of(run),
        )


def find_lr(request: TrainRequest, *, progress: Progress | None = None) -> tuple[float, Path]:
    """Try learning rates on a copy of the network; write ``lr_finder.png`` and suggest one.

    Arguments as for ``prepare``.
    """
    manifest.check_apart(request.out, request.data)
    progress = progress or Silent()
    job = prepare(request, progress=progress)
    told = Told(progress, None)
    told.plan(job)
    training = Prepared.of(job)
    if job.config.probe:
        running.solve_probe(job, training, told)
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
    Told(progress, None).plan(job)
    run = RunDirectory.create(request.out, name=slug(job.dataset.name) + "-preview")
    with run.or_nothing():
        return running.preview(job, training_batches(job), run)
