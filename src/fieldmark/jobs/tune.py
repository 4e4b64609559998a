"""A search for better settings: trials judged on validation, then one ordinary run.

    runs/tune-NAME/
      tune.json        the request, every trial, time used: what a search goes on from
      tune.csv         a row a trial
      tune.png         the best so far against time
      tune.html        all of it on one page
      trial-N/         a trial while it trains, and those that may still become the run
      best/            the run: an ordinary run directory

The first trial has the recipe's own settings, so the run is never worse on validation than the
default. All trials have the same seed. The test split is not scored before the choice is written
down. Where validation is small the best of many trials is partly luck: the best few are then
trained again with other seeds, beside the default, and chosen by their means.

``tune.json`` is written after every epoch. The same request on the same folder goes on from there:
finished trials are read, the interrupted one is resumed, and the time used before counts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import math
import shutil
import signal
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fieldmark.data import Opened
from fieldmark.errors import (
    ConfigError,
    DataError,
    DivergedError,
    Interrupted,
    ResourceError,
    RunError,
)
from fieldmark.files.lock import only_writer
from fieldmark.fit.state import EpochRecord
from fieldmark.jobs import choice, resumable, running, study
from fieldmark.jobs import train as training
from fieldmark.jobs.plan import Job, describe, prepare, read_data
from fieldmark.jobs.request import TrainRequest
from fieldmark.machine.process import trim_heap
from fieldmark.machine.signals import Stop, stop_requests
from fieldmark.pages import figures
from fieldmark.pages.html import plain
from fieldmark.pages.tuning import Finalist, Row, Tuning
from fieldmark.progress import Progress, Quiet, Silent
from fieldmark.runs import manifest, scores, trials
from fieldmark.runs.directory import RunDirectory
from fieldmark.runs.trials import FILE, Again, Asked, Journal, Measured, Trial
from fieldmark.scoring import significance
from fieldmark.scoring.significance import Correct
from fieldmark.settings.config import TrainConfig
from fieldmark.settings.space import Axis, default_space, spaces

SMALL = 500
"""With fewer validation pictures than this the best trials are trained again with other seeds: at
an accuracy of 0.9 the standard error of 500 pictures is 1.3 points."""
FINALISTS = 3
"""Trials that are trained again, beside the default."""
FRESH = 2
"""Further seeds of each."""
SHARE_AGAIN = 0.35
"""Largest share of the time that is kept for training again."""
FAILURES = 3
"""Failed trials in a row that end the search."""
BEST = "best"
PRUNED, LATE = "behind the median of the trials before", "there is no time left for it"


# --- doing it --------------------------------------------------------------------------------


@stop_requests()
def tune(
    data: str,
    *,
    over: Mapping[str, Any] | None = None,
    minutes: float = 60.0,
    most: int = 0,
    recipe: str = "auto",
    settings: Mapping[str, Any] | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
) -> Tuning:
    """Search for settings that validate better, and train a run with the best.

    Args:
        data: A data set's name or a folder, as for ``training.train``.
        over: What is searched: for each setting ``"LOW..HIGH"`` or a list of values; default is a
            space around the recipe's settings.
        minutes: Wall time for everything, the run and its scores included.
        most: Largest number of trials; 0 for as many as there is time for.
        recipe: Name of a recipe, as for ``training.train``.
        settings: What goes over the recipe's settings in every trial.
        out: Folder of the search; default is ``runs/tune-NAME``, with a number if another one is
            there. Where this very search is there, it goes on.
        progress: Who is told what happens.

    Raises:
        MissingExtraError: if Optuna is not installed.
        ConfigError: if the request cannot be used, or ``out`` holds another one.
        DataError: if there are no validation pictures apart from the test split.
        RunError: if the pictures are not those that the search began with.
        Interrupted: on Ctrl-C or SIGTERM, after saving.
        FieldmarkError: whatever training of the default raises.
    """
    study.require()
    if isinstance(minutes, bool) or not 0 < minutes < math.inf:
        raise ConfigError(f"minutes is {minutes}; a number above 0 is accepted")
    if isinstance(most, bool) or most < 0:
        raise ConfigError(f"trials is {most}; 1 or more is accepted, or 0 for no limit")
    manifest.check_apart(out, data)
    progress = progress or Silent()
    common = {"seed": 0, **(settings or {})}
    first = TrainRequest(data=data, recipe=recipe, settings=common)
    config = first.before_recipe()
    space = spaces(over or {}, settings or {}, monitor=config.monitor)
    asked = Asked(recipe=recipe, settings=common, over=space)
    folder = _folder(out, data, asked)
    begin = time.monotonic()
    opened = read_data(data, config, progress)
    first, default = _default(first, asked, folder, opened, progress)
    job = prepare(first, progress=progress, opened=opened)
    _check_validation(job)
    space = space or _that_can_be_trained(first, job, opened)
    if asked.over:
        _check_choices(first, space, opened)
    resumable.make(folder)
    with only_writer(folder.path):
        journal = _open(folder, data, asked, space, job, default)
        search = _Search(folder, journal, first, opened, job, progress, 60.0 * minutes, most, begin)
        try:
            return search.done()
        except (Interrupted, KeyboardInterrupt) as stopped:
            number = int(signal.SIGINT)
            if isinstance(stopped, Interrupted):
                number = stopped.exit_code - 128
            elif isinstance(stopped, Stop):
                number = stopped.number
            raise Interrupted(
                "stopped; everything is saved. Go on with the same command and --out "
                f"{folder.path}",
                signal_number=number,
            ) from None


def _default(
    first: TrainRequest,
    asked: Asked,
    folder: RunDirectory,
    opened: Opened,
    progress: Progress,
) -> tuple[TrainRequest, Measured | None]:
    """Find what ``fieldmark train`` would train, where it measures that (``jobs/choice.py``).

    What is searched is given, so a search of anything that decides what is learnt has the recipe
    that follows from the pictures.
    """
    searched = {axis.setting: None for axis in asked.over}
    if not choice.is_open(dataclasses.replace(first, settings={**first.settings, **searched})):
        return first, None
    if folder.has(FILE):
        default = trials.read(folder).default
    else:
        found, default = choice.choose(first, opened, progress), None
        if found is not None:
            settings = dict(found.request.settings)
            default = Measured(recipe=found.request.recipe, settings=settings)
    if default is None:
        return first, None
    settings = {**default.settings, **first.settings}
    return dataclasses.replace(first, recipe=default.recipe, settings=settings), default


def _check_validation(job: Job) -> None:
    """Make sure that trials are judged by pictures that are not the test split's.

    Raises:
        ConfigError: if the monitored metric is one of training.
        DataError: if the test split validates.
    """
    if not job.config.monitor.startswith("val_"):
        raise ConfigError(
            f"monitor is {job.config.monitor!r}, but a search is judged on validation: give "
            "--monitor val_accuracy, val_macro_f1 or val_loss"
        )
    parts = job.dataset.parts
    if "test" in parts and parts["test"].keys == parts["val"].keys:
        raise DataError(
            "the test split validates here, so choosing among trials would be choosing by the "
            "test; give validation a share of its own, such as --split 0.75/0.1/0.15"
        )


def _that_can_be_trained(first: TrainRequest, job: Job, opened: Opened) -> tuple[Axis, ...]:
    """The space by default, without values that this network cannot take."""
    found = []
    for axis in default_space(job.config):
        fit = tuple(v for v in axis.values if _is_possible(first, {axis.setting: v}, opened))
        if not axis.values or len(fit) > 1:
            found.append(dataclasses.replace(axis, values=fit))
    if not found:
        raise ConfigError(
            "there is nothing to search by default with these settings; say what with --over"
        )
    return tuple(found)


def _is_possible(first: TrainRequest, settings: Mapping[str, Any], opened: Opened) -> bool:
    try:
        prepare(_with(first, settings), opened=opened)
    except (ConfigError, DataError):
        return False
    return True


def _check_choices(first: TrainRequest, space: Sequence[Axis], opened: Opened) -> None:
    """Have every value fail now that could not be trained beside the recipe's settings."""
    for axis in space:
        for value in axis.values or (axis.high,):
            value = int(value) if axis.whole else value
            prepare(_with(first, {axis.setting: value}), opened=opened)


def _with(request: TrainRequest, settings: Mapping[str, Any], **rest: Any) -> TrainRequest:
    return dataclasses.replace(request, settings={**request.settings, **settings}, **rest)


def _folder(out: Path | None, data: str, asked: Asked) -> RunDirectory:
    """The search's folder, made later; what is there already must be the same search.

    Raises:
        ConfigError: naming the differences.
    """
    return resumable.find(
        out,
        data,
        prefix="tune",
        what="search",
        file=FILE,
        same="recipe, settings and --over",
        differences=lambda path: _differences(path, asked),
        besides=(".lock",),
    )


def _differences(path: Path, asked: Asked) -> list[str]:
    """In what the search in a folder is another one than is asked for."""
    old = trials.read(RunDirectory(path)).request
    was, now = ({axis.setting: str(axis) for axis in each.over} for each in (old, asked))
    pairs: list[tuple[str, Any, Any]] = [("recipe", old.recipe, asked.recipe)]
    pairs += [
        (f"over {key}", was.get(key, "not asked for"), now.get(key, "not asked for"))
        for key in dict.fromkeys([*was, *now])
    ]
    pairs += [
        (key, *(side.settings.get(key, "the recipe's") for side in (old, asked)))
        for key in dict.fromkeys([*old.settings, *asked.settings])
    ]
    told = [f"{key} was {plain(a)}, is {plain(b)}" for key, a, b in pairs if a != b]
    return told or (["--over has another order"] if list(was) != list(now) else [])


def _open(
    folder: RunDirectory,
    data: str,
    asked: Asked,
    space: tuple[Axis, ...],
    job: Job,
    default: Measured | None,
) -> Journal:
    """Begin the journal, or read it.

    Raises:
        RunError: if the search began with other pictures.
    """
    if folder.has(FILE):
        journal = trials.read(folder)
        if job.dataset.fingerprint != journal.fingerprint:
            raise RunError(
                f"the pictures changed since {folder.path} began, or are others; put them back, "
                "or begin anew with another --out"
            )
        return journal
    journal = Journal(
        name=job.dataset.name,
        path=manifest.relative_path(data, folder),
        fingerprint=job.dataset.fingerprint,
        request=asked,
        space=space,
        monitor=job.config.monitor,
        validation=len(job.dataset.parts["val"]),
        seconds=0.0,
        trials=(),
        running=None,
        again=(),
        default=default,
    )
    trials.write(folder, journal)
    return journal


@dataclass
class _Search:
    """A search as it goes on."""

    folder: RunDirectory
    journal: Journal
    first: TrainRequest
    """What the default asks training for."""
    opened: Opened
    job: Job
    """The plan of the default."""
    progress: Progress
    limit: float
    """Seconds for everything."""
    most: int
    begin: float

    def __post_init__(self) -> None:
        self.before = self.journal.seconds
        self.finished = self.journal.results is not None
        self.quiet = Quiet(self.progress)

    # --- time and files

    @property
    def used(self) -> float:
        """Seconds since the search began, without those in which nobody worked at it."""
        return self.before + (0.0 if self.finished else time.monotonic() - self.begin)

    def note(self, **changes: Any) -> None:
        """Write the journal."""
        self.journal = dataclasses.replace(self.journal, seconds=round(self.used, 3), **changes)
        trials.write(self.folder, self.journal)

    @property
    def default(self) -> dict[str, Any]:
        """The recipe's own values of what is searched."""
        config = self.job.config
        return {axis.setting: getattr(config, axis.setting) for axis in self.journal.space}

    @property
    def complete(self) -> list[int]:
        """Numbers of the complete trials, best first; the earlier of equals."""
        found = [n for n, row in enumerate(self.journal.trials) if row.state == "complete"]
        return sorted(found, key=lambda n: (*self._merit(self.journal.trials[n]), n))

    def _merit(self, row: Trial | Again) -> tuple[float, float]:
        value = row.value if self.journal.monitor.endswith("loss") else -row.value
        return value, row.loss

    @property
    def typical(self) -> float:
        """Seconds of a complete trial."""
        return statistics.median(
            [row.seconds for row in self.journal.trials if row.state == "complete"]
        )

    @property
    def _ending(self) -> float:
        """Seconds that scoring and the reports will take, as far as can be said."""
        parts = self.job.dataset.parts
        pictures = len(parts["val"]) + len(parts.get("test", ()))
        spent = self.journal.trials[0].seconds
        passes = max(1, self.journal.trials[0].epochs)
        return 4.0 + spent / passes * pictures / max(1, len(parts["train"]))

    @property
    def search_ends(self) -> float:
        """Seconds after which nothing new is tried."""
        left = self.limit - self._ending
        if self.journal.validation < SMALL and self.most != 1:
            left -= min(SHARE_AGAIN * self.limit, (FINALISTS + 1) * FRESH * self.typical)
        return left

    # --- the whole

    def done(self) -> Tuning:
        """Bring the search to its end."""
        if self.journal.chosen is None:
            self._tell_the_plan()
            self._search()
            self._train_again()
            chosen, _ = self._choice()
            self.note(chosen=chosen, running=None)
        run = self._conclude(self.journal.chosen or 0)
        for path in self.folder.path.glob("trial-*"):
            _remove(path)
        if self.journal.results is None:
            self.note()
        result = self._result(run)
        self.folder.write("tune.csv", result.csv())
        self.folder.write("tune.png", figures.tuning(**result.curve()))
        self.folder.write("tune.html", result.page().encode())
        self.journal = dataclasses.replace(self.journal, results=result.to_json())
        trials.write(self.folder, self.journal)
        return result

    def _tell_the_plan(self) -> None:
        for text in describe(self.job):
            self.progress.say(text)
        for at, axis in enumerate(self.journal.space):
            self.progress.say(f"{'' if at else 'search':10} {axis.setting}: {axis}")
        done = len(self.journal.trials)
        if done:
            self.progress.say(
                f"going on after {done} trials and {self.used / 60:.1f} minutes that were used"
            )

    def _search(self) -> None:
        """Train trials until time, number or combinations are at an end."""
        failures = 0
        while not self.most or len(self.journal.trials) < self.most:
            number = len(self.journal.trials)
            if number and self.used + min(self._durations()) > self.search_ends:
                return
            settings = dict(self.journal.running or {})
            if number and not settings:
                suggested = study.suggest(
                    self.journal.space,
                    self.journal.trials,
                    default=self.default,
                    monitor=self.journal.monitor,
                    seed=int(self.first.settings["seed"]),
                )
                if suggested is None:
                    self.progress.say("every combination was tried")
                    return
                settings = suggested
                self.note(running=settings)
            told = ", ".join(f"{key} {plain(value)}" for key, value in settings.items())
            of = f" of {self.most}" if self.most else ""
            self.progress.say(f"trial {number}{of}: {told or 'the default'}")
            row = self._trial(number, settings)
            if number == 0 and self.used > self.limit:
                self.progress.warn(
                    f"the default alone took {self.used / 60:.1f} minutes; give more --minutes, or "
                    "fewer --epochs"
                )
            self.note(trials=(*self.journal.trials, row), running=None)
            self._keep_the_best()
            self._tell(number, row)
            failures = failures + 1 if row.state == "failed" else 0
            if failures == FAILURES:
                self.progress.warn(f"{failures} trials failed one after another: {row.why}")
                return
            if row.state == "late":
                return

    def _durations(self) -> list[float]:
        return [row.seconds for row in self.journal.trials if row.state == "complete"]

    def _tell(self, number: int, row: Trial) -> None:
        best = self.complete[0]
        value = f"{self.journal.monitor} {row.value:.4f}, " if row.state == "complete" else ""
        self.progress.say(
            f"trial {number} is {row.state}: {value}best is trial {best} with "
            f"{self.journal.trials[best].value:.4f}; {self.used / 60:.1f} of "
            f"{self.limit / 60:g} minutes are used"
        )

    def _trial(self, number: int, settings: Mapping[str, Any]) -> Trial:
        """Train a trial, or go on with it."""
        begun = self.used
        judged = running.Trial()
        if number:
            judged.judge = lambda records: self._verdict(judged, records, settings, begun)
        else:
            judged.judge = self._only_note
        try:
            self._train(f"trial-{number}", settings, judged)
        except (DivergedError, ConfigError, DataError, ResourceError) as error:
            if not number:
                raise
            _remove(self.folder.path / f"trial-{number}")
            return self._failed(settings, str(error), self.used - begun)
        assert judged.config is not None
        seconds = max(self.used - begun, sum(record.seconds for record in judged.records))
        curve = tuple(
            float(record.row()[self.journal.monitor])
            for record in judged.records
            if record.epoch or not judged.config.epochs
        )
        kept = _kept(judged.config, judged.records)
        if kept is None or judged.right is None:
            why = f"no epoch had a {self.journal.monitor} that is a number"
            if not number:
                raise DivergedError(f"the default: {why}; try a lower --lr")
            return self._failed(settings, why, seconds)
        state = {PRUNED: "pruned", LATE: "late"}.get(judged.stopped, "complete")
        return Trial(
            settings=settings,
            state=state,
            value=float(kept.row()[self.journal.monitor]),
            loss=kept.val_loss,
            curve=curve,
            kept=kept.epoch,
            epochs=judged.config.epochs,
            seconds=round(seconds, 3),
            at=round(self.used, 3),
            right=_bits(judged.right) if state == "complete" else "",
        )

    def _failed(self, settings: Mapping[str, Any], why: str, seconds: float) -> Trial:
        return Trial(
            settings=settings,
            state="failed",
            value=math.nan,
            loss=math.nan,
            curve=(),
            kept=0,
            epochs=0,
            seconds=round(seconds, 3),
            at=round(self.used, 3),
            why=why,
        )

    def _only_note(self, records: Sequence[EpochRecord]) -> str:
        del records
        self.note()
        return ""

    def _verdict(
        self,
        judged: running.Trial,
        records: Sequence[EpochRecord],
        settings: Mapping[str, Any],
        begun: float,
    ) -> str:
        """Whether a trial ends here: it is hopeless, or would not be finished in time."""
        self.note()
        epochs = int(settings.get("epochs", self.job.config.epochs))
        done = sum(record.epoch > 0 for record in records)
        if done >= epochs:
            return ""
        curve = [float(record.row()[self.journal.monitor]) for record in records if record.epoch]
        if study.is_hopeless(self.journal.trials, curve, epochs, monitor=self.journal.monitor):
            return PRUNED
        each = (self.used - begun) / max(1, done)
        late = self.used + (each * (epochs - done) if done >= 2 else 0.0) > self.search_ends
        return LATE if late else ""

    def _train(self, name: str, settings: Mapping[str, Any], judged: running.Trial) -> RunDirectory:
        """Train in a folder of the search, or go on there."""
        path = self.folder.path / name
        if path.is_symlink():
            raise RunError(
                f"{path} is a link; trials are written into the search's own folder: remove the "
                "link, or choose another --out"
            )
        data = self.first.data
        if (path / "config.json").is_file():
            return training.resume(
                path, data=data, progress=self.quiet, opened=self.opened, trial=judged
            )
        request = _with(self.first, settings, out=path)
        try:
            return training.train(request, progress=self.quiet, opened=self.opened, trial=judged)
        finally:
            gc.collect()
            trim_heap()

    def _keep_the_best(self) -> None:
        """Remove the folders of trials that cannot become the run any more."""
        kept = {0, *self.complete[:FINALISTS], len(self.journal.trials)}
        for path in self.folder.path.glob("trial-*"):
            number = path.name.removeprefix("trial-")
            if number.isdecimal() and int(number) not in kept:
                _remove(path)

    # --- the choice

    @property
    def _rounds(self) -> list[int]:
        """Trials that are trained again, the default first, where validation is small."""
        complete = self.complete
        if self.journal.validation >= SMALL or complete[0] == 0:
            return []
        return list(dict.fromkeys([0, *complete[:FINALISTS]]))

    def _train_again(self) -> None:
        """Train the best few and the default with other seeds, as far as there is time."""
        rounds, seed = self._rounds, int(self.first.settings["seed"])
        if rounds:
            self.progress.say(
                f"validation has {self.journal.validation} pictures, few enough for luck to "
                f"decide: the best {len(rounds) - 1} and the default are trained again"
            )
        for fresh, number in itertools.product(range(1, FRESH + 1), rounds):
            if any((a.trial, a.seed) == (number, seed + fresh) for a in self.journal.again):
                continue
            if self.used + self.journal.trials[number].seconds > self.limit - self._ending:
                self.progress.say("there is no time for further seeds")
                return
            self.progress.say(f"trial {number} again, seed {seed + fresh}")
            self._again(number, seed + fresh)

    def _again(self, number: int, seed: int) -> None:
        begun, name = self.used, f"trial-{number}-seed{seed}"
        judged = running.Trial(judge=self._only_note)
        settings = {**self.journal.trials[number].settings, "seed": seed}
        with contextlib.suppress(DivergedError):
            self._train(name, settings, judged)
        kept = _kept(judged.config, judged.records) if judged.config is not None else None
        if kept is None or judged.right is None:  # the worst there is
            less = self.journal.monitor.endswith("loss")
            value, loss, right = 1e9 if less else 0.0, 1e9, "0" * self.journal.validation
        else:
            value, loss = float(kept.row()[self.journal.monitor]), kept.val_loss
            right = _bits(judged.right)
        row = Again(
            trial=number,
            seed=seed,
            value=value,
            loss=loss,
            seconds=round(self.used - begun, 3),
            right=right,
        )
        self.note(again=(*self.journal.again, row))
        _remove(self.folder.path / name)

    def _fresh(self) -> dict[int, list[Again]]:
        """The trainings with other seeds, as many of every finalist; none if there are none."""
        found: dict[int, list[Again]] = {number: [] for number in self._rounds}
        for row in self.journal.again:
            if row.trial in found:
                found[row.trial].append(row)
        rounds = min(map(len, found.values()), default=0)
        return {number: rows[:rounds] for number, rows in found.items() if rounds}

    def _choice(self) -> tuple[int, list[Finalist]]:
        """The trial that becomes the run, and the finalists; by means over seeds if there are."""
        fresh = self._fresh()
        if not fresh:
            return self.complete[0], []
        finalists = []
        for number, rows in fresh.items():
            every: list[Trial | Again] = [self.journal.trials[number], *rows]
            finalists.append(
                Finalist(
                    trial=number,
                    first=every[0].value,
                    fresh=tuple(row.value for row in rows),
                    mean=statistics.fmean(row.value for row in every),
                    loss=statistics.fmean(row.loss for row in every),
                )
            )
        sign = 1 if self.journal.monitor.endswith("loss") else -1
        best = min(finalists, key=lambda each: (sign * each.mean, each.loss, each.trial))
        return best.trial, finalists

    # --- the end

    def _conclude(self, chosen: int) -> RunDirectory:
        """Make an ordinary run of the chosen trial: here the test split is scored."""
        run, trial = (self.folder.path / name for name in (BEST, f"trial-{chosen}"))
        if not run.exists() and trial.exists():
            trial.rename(run)
        if not (run / "config.json").is_file():  # somebody removed it
            settings = self.journal.trials[chosen].settings
            request = _with(self.first, settings, out=run)
            return training.train(request, progress=self.progress, opened=self.opened)
        done = RunDirectory(run)
        if all(map(done.has, ("evaluation.json", "report.html"))):
            return done
        return training.resume(run, data=self.first.data, progress=self.quiet, opened=self.opened)

    def _result(self, run: RunDirectory) -> Tuning:
        journal, chosen = self.journal, self.journal.chosen or 0
        rows = tuple(
            Row(
                number=number,
                settings={**self.default} if not number else dict(row.settings),
                state=row.state,
                value=row.value,
                kept=row.kept,
                epochs=row.epochs,
                done=len(row.curve),
                seconds=row.seconds,
                at=row.at,
                why=row.why,
            )
            for number, row in enumerate(journal.trials)
        )
        _, finalists = self._choice()
        evaluated = scores.read(run).parts
        return Tuning(
            path=self.folder.path,
            run=run.path,
            data=journal.name,
            monitor=journal.monitor,
            validation=journal.validation,
            seconds=journal.seconds,
            space=tuple((axis.setting, str(axis)) for axis in journal.space),
            rows=rows,
            chosen=chosen,
            finalists=tuple(finalists),
            difference=self._difference(chosen),
            importances=study.importances(
                journal.space, journal.trials, default=self.default, monitor=journal.monitor
            ),
            scores={
                part: (each.accuracy, each.low, each.high, each.n)
                for part, each in evaluated.items()
            },
        )

    def _difference(self, chosen: int) -> tuple[significance.Difference, float] | None:
        """Chosen less default on validation, with p for as many trials as were looked at.

        From the trainings with fresh seeds where there are: which trials became finalists was
        decided without them.
        """
        if chosen == 0:
            return None
        fresh = self._fresh()
        pair = [
            [row.right for row in fresh[number]] if fresh else [self.journal.trials[number].right]
            for number in (chosen, 0)
        ]
        a, b = (_correct(texts) for texts in pair)
        found = significance.difference(a, b)
        looked = sum(row.state == "complete" for row in self.journal.trials) - 1
        return found, min(1.0, found.p * max(1, looked))


def _kept(config: TrainConfig, records: Sequence[EpochRecord]) -> EpochRecord | None:
    """The record of the epoch whose weights a run keeps."""
    if config.keep == "last":
        last = records[-1] if records else None
        return last if last and math.isfinite(float(last.row()[config.monitor])) else None
    best = [record for record in records if record.best]
    return best[-1] if best else None


def _bits(right: Any) -> str:
    return "".join("1" if each else "0" for each in right)


def _correct(texts: Sequence[str]) -> Correct:
    return np.array([[char == "1" for char in text] for text in texts], dtype=np.bool_)


def _remove(path: Path) -> None:
    """Remove a trial's folder; a link is removed, not what it leads to."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)
