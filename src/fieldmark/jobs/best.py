"""Training where it is open what is trained: the best of the candidates, on disk as it is found.

    runs/NAME/
      budget.json        the request and the time used: what a resumed run goes on from
      choice.json        what was tried so far, and how each candidate answered
      config.json, ...   the best so far: an ordinary run, not scored yet
      next/              a candidate while it is trained; it becomes the run when it is done

Candidates are tried, with ``--minutes`` those that there is time for (``choice``). A probe that is
the best so far becomes the run's model at once. The best of all is trained in ``next``, shortened
where the time demands it (``clock``), and takes the place of what was there. What there was no time
to try, but is time to train, is trained then, and taken if it is better on val. Now the run is an
ordinary one, and is scored: before that the test split is not opened.

A run that was killed goes on from what is on the disk. What was tried is not tried again, the time
used before counts, and a training goes on from its checkpoint.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

from fieldmark.data import Opened
from fieldmark.errors import DivergedError, Interrupted, ResourceError, RunError
from fieldmark.files.lock import FILE as LOCK
from fieldmark.jobs import running
from fieldmark.jobs.choice import Chosen, Trials
from fieldmark.jobs.clock import Clock
from fieldmark.jobs.plan import Job, describe, prepare, read_data
from fieldmark.jobs.request import TrainRequest
from fieldmark.machine.signals import Stop
from fieldmark.progress import Progress, Quiet, Silent
from fieldmark.runs import budget, checkpoint, choice, history, incidents, manifest
from fieldmark.runs.budget import Budget, Wanted
from fieldmark.runs.choice import Choice
from fieldmark.runs.directory import LOG, MODEL_FILES, RunDirectory

NEXT = "next"
_OWN = (LOCK, LOG)
"""What of a candidate's files does not become the run's."""
_TRAINED = (
    *(checkpoint.PREVIOUS, "model.json", *MODEL_FILES),
    *(incidents.FILE, history.FILE, history.TABLE),
)
"""What the candidate before may have left that this one has not."""


def train(request: TrainRequest, opened: Opened, progress: Progress) -> RunDirectory:
    """Find the best within the request's time, and make a finished run of it.

    Raises:
        FieldmarkError: see ``errors.py``; ``Interrupted`` when asked to stop, after saving.
    """
    clock = Clock(request.minutes)
    dataset = opened.divide(request.before_recipe())
    run = RunDirectory.create(request.out, name=running.slug(dataset.name))
    with run.writing():
        run.check_empty()
        wanted = Wanted(
            path=manifest.relative_path(request.data, run),
            fingerprint=dataset.fingerprint,
            settings=dict(request.settings),
        )
        with run.or_nothing():
            search = _Search(run, request, opened, clock, progress, wanted)
            search.note()
        return search.done()


def is_choosing(path: Path) -> bool:
    """Whether a run is one whose candidates are not all tried, or not trained."""
    run = RunDirectory(path)
    found = budget.read(run) if run.has(budget.FILE) else None
    if found is None or found.wanted is None:
        return False
    return not found.wanted.chosen or bool(found.wanted.moving)


def resume(
    path: Path, *, data: str | None, opened: Opened | None, progress: Progress
) -> RunDirectory:
    """Go on where :func:`train` was interrupted, within what is left of the time.

    Raises:
        RunError: if the pictures are others.
        FieldmarkError: as for :func:`train`.
    """
    run = RunDirectory(path)
    with run.writing():
        run.clean()
        found = budget.read(run)
        assert found is not None and found.wanted is not None
        wanted = found.wanted
        clock = Clock(found.minutes, before=found.seconds)
        where = data or manifest.find(run, wanted.path, name=path.name)
        request = TrainRequest(data=where, settings=wanted.settings, minutes=found.minutes)
        opened = opened or read_data(where, request.before_recipe(), progress)
        if opened.divide(request.before_recipe()).fingerprint != wanted.fingerprint:
            raise RunError(
                f"the pictures changed since {path} began, or are others; put them back, or train "
                "anew with another --out"
            )
        given = "" if found.minutes is None else f" of {found.minutes:g} min"
        progress.say(f"resuming {path}: {clock.used:.0f} s{given} are used")
        return _Search(run, request, opened, clock, progress, wanted).done()


class _Search:
    """The run, while its candidates are tried and trained."""

    def __init__(
        self,
        run: RunDirectory,
        request: TrainRequest,
        opened: Opened,
        clock: Clock,
        progress: Progress,
        wanted: Wanted,
    ) -> None:
        self._run, self._request, self._opened = run, request, opened
        self._clock, self._watching, self._wanted = clock, progress, wanted
        self._progress = running.Told(progress, run)
        clock.note = self.note

    def note(self, **changes: Any) -> None:
        """Write down how far it is."""
        self._wanted = dataclasses.replace(self._wanted, **changes)
        used = round(self._clock.used, 1)
        found = Budget(minutes=self._clock.minutes, seconds=used, wanted=self._wanted)
        budget.write(self._run, found)

    def done(self) -> RunDirectory:
        """Bring it to its end.

        Raises:
            Interrupted: when asked to stop; it can be resumed.
        """
        try:
            if self._wanted.moving:
                self._move()
            if not self._wanted.chosen:
                self._choose()
            return running.go_on(
                self._run,
                data=self._request.data,
                progress=self._watching,
                opened=self._opened,
                clock=self._clock,
            )
        except (Interrupted, Stop) as stopped:
            number = stopped.number if isinstance(stopped, Stop) else stopped.exit_code - 128
            self.note()
            usable = f"; {self._wanted.held} is the model so far" if self._wanted.held else ""
            raise Interrupted(
                f"stopped; everything is saved{usable}. Resume with: "
                f"fieldmark resume {self._run.path}",
                signal_number=number,
            ) from None

    def _choose(self) -> None:
        """Have the files of the best candidate be the run's."""
        before = choice.read(self._run)
        trials = Trials(
            self._request,
            self._opened,
            self._progress,
            self._clock,
            before=() if before is None else before.tried,
            tell=self._tell,
            better=self._keep,
        )
        chosen = trials.run()
        while chosen is not None and not self._train(chosen, trials):
            chosen = trials.chosen()
        if chosen is None:
            raise DivergedError(
                "no candidate could be trained; see choice.json, or choose a --recipe"
            )
        self._tell(chosen.choice)
        while not self._wanted.chosen:
            direct = trials.untried(self._wanted.next)
            if direct is None:
                self.note(chosen=True)
            else:
                self._train_directly(direct, chosen, trials)

    def _tell(self, found: Choice) -> None:
        choice.write(self._run, found)
        self.note()

    def _keep(self, chosen: Chosen) -> None:
        """Make a probe, whose features are known, the run's model."""
        self._put(chosen, quiet=True)
        name, used = chosen.name, self._clock.used
        self._progress.say(f"the model so far: {name} ({used:.0f} s); {self._run.path} is usable")

    def _train(self, chosen: Chosen, trials: Trials) -> bool:
        """Make the best of all the run's model; False if it cannot be trained."""
        if self._wanted.held == chosen.name:
            for text in describe(self._job(chosen, Silent())):  # warnings were told before
                self._progress.say(text)
            return True
        try:
            self._put(chosen, quiet=False)
        except DivergedError as error:
            self._progress.warn(f"{chosen.name}: {error}; the next best is trained")
            trials.failed(chosen.name, str(error))
            return False
        return True

    def _train_directly(self, direct: Chosen, best: Chosen, trials: Trials) -> None:
        """Train what was not tried; it becomes the run's model if it is better on val."""
        accuracy, won = math.nan, False
        theirs = self._run.model_info().selected.value or 0.0
        try:
            self._train_next(direct, self._progress)
            accuracy = RunDirectory(self._run.path / NEXT).model_info().selected.value or 0.0
            won = accuracy > theirs
            why = f"trained without a trial: {accuracy:.4f} on val, {best.name} {theirs:.4f}"
        except DivergedError as error:
            why = f"trained without a trial: {error}"
        self._progress.say(f"{direct.name}: {why}")
        self._tell(trials.settle(accuracy, why, won=won))
        if won:
            self._take(direct.name, chosen=True)
        else:
            self.note(next="")
            _remove(self._run.path / NEXT)

    def _put(self, chosen: Chosen, *, quiet: bool) -> None:
        """Train a candidate, and have its files become the run's."""
        self._train_next(chosen, Quiet(self._progress) if quiet else self._progress)
        self._take(chosen.name)

    def _train_next(self, chosen: Chosen, progress: Progress) -> None:
        """Train a candidate in the folder ``next``, or go on with it."""
        place, trial = self._run.path / NEXT, running.Trial()
        if self._wanted.next == chosen.name and (place / "config.json").is_file():
            folder = RunDirectory(place)
            with folder.writing():
                running.go_on(
                    folder,
                    data=self._request.data,
                    progress=progress,
                    opened=self._opened,
                    trial=trial,
                    clock=self._clock,
                )
        else:
            _remove(place)
            self.note(next=chosen.name)
            running.begin(
                self._job(chosen, progress),
                dataclasses.replace(chosen.request, out=place, minutes=None),
                progress=progress,
                trial=trial,
                clock=self._clock,
                home=self._run,
            )
        if trial.right is None:
            raise DivergedError("no epoch had a metric that is a number")

    def _take(self, name: str, **changes: Any) -> None:
        """Have the files of ``next`` become the run's."""
        files = sorted(f.name for f in (self._run.path / NEXT).iterdir() if f.name not in _OWN)
        self.note(held=name, next="", moving=tuple(files), **changes)
        self._move()

    def _job(self, chosen: Chosen, progress: Progress) -> Job:
        job = prepare(
            dataclasses.replace(chosen.request, out=self._run.path / NEXT, minutes=None),
            progress=progress,
            opened=self._opened,
        )
        return chosen.told(job)

    def _move(self) -> None:
        """Have the files of ``next`` become the run's; what was begun is done again."""
        place = self._run.path / NEXT
        try:
            for name in self._wanted.moving:
                if (place / name).is_file():
                    (place / name).replace(self._run.path / name)
            for name in _TRAINED:
                if name not in self._wanted.moving:
                    (self._run.path / name).unlink(missing_ok=True)
        except OSError as error:
            raise ResourceError(
                f"cannot write {self._run.path}: {error.strerror or error}"
            ) from error
        _remove(place)
        self.note(moving=())


def _remove(place: Path) -> None:
    """Remove the folder of a candidate; a link is removed, not what it leads to."""
    if place.is_symlink():
        place.unlink()
    else:
        shutil.rmtree(place, ignore_errors=True)
