"""Several models or settings, trained with several seeds, and judged on the same pictures.

    runs/compare-NAME/
      compare.json        the request, every figure, every pair
      compare.csv         a row a candidate
      convergence.png     learning curves of all candidates
      compare.html        all of it on one page
      CANDIDATE-seedN/    an ordinary run directory for each candidate and seed

A candidate is a model, or a point of the grid that models and varied settings span. Nothing is
picked. Candidates stay in the order they were given, each run keeps the epoch that its validation
split chose, and the test split only measures.

``compare.json`` is written before the first run begins. The same request on the same folder goes on
from there: finished runs are read, an interrupted one is resumed, the others are trained.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import itertools
import math
import re
import signal
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fieldmark.data import Opened
from fieldmark.errors import ConfigError, DivergedError, Interrupted, RunError
from fieldmark.files.lock import FILE as LOCK
from fieldmark.jobs import resumable
from fieldmark.jobs import train as training
from fieldmark.jobs.plan import prepare, read_data
from fieldmark.jobs.request import TrainRequest
from fieldmark.jobs.running import slug
from fieldmark.machine.process import trim_heap
from fieldmark.models import check
from fieldmark.names import shown
from fieldmark.pages import figures
from fieldmark.pages.comparison import Candidate, Comparison, Level, Marginal, Pair, Trained
from fieldmark.pages.html import plain
from fieldmark.progress import Progress, Silent
from fieldmark.runs import history, manifest, predictions, scores
from fieldmark.runs import ledger as ledgers
from fieldmark.runs.directory import RunDirectory
from fieldmark.runs.ledger import Asked, Ledger, Values
from fieldmark.scoring import significance
from fieldmark.scoring.significance import Correct
from fieldmark.settings import varied
from fieldmark.settings.config import TrainConfig
from fieldmark.settings.weights import WeightsFrom

MAX_SEEDS = 100
MAX_CANDIDATES = 100
"""Every two candidates are compared: with more of them, correcting for their number would leave no
difference that could be shown."""
FILE = ledgers.FILE

_OWN = ("size", "resize", "interpolation", "normalize")
"""Settings that fit pictures to a network: each model has its own right ones."""
_MACHINE = ("device", "precision", "threads", "channels_last", "save_every")
"""Settings that decide how fast it goes, and not what is learnt."""
_MODEL = "model"
"""What the axis of the models is called beside those of the settings."""


# --- what is asked ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Planned:
    """One run that the comparison needs."""

    candidate: int
    """Index of the candidate."""
    seed: int
    folder: str
    """Name of its run directory."""


@dataclass(frozen=True)
class Point:
    """A candidate as it is asked for."""

    model: str
    """Spec string; empty for the recipe's, or that of the settings."""
    values: tuple[tuple[str, Any], ...]
    """The varied settings by name, each with its value here."""
    levels: tuple[int, ...]
    """The place of the model among the models, then of each value among its setting's values."""

    def settings(self) -> dict[str, Any]:
        """What goes over the settings of all."""
        return {**({"model": self.model} if self.model else {}), **dict(self.values)}

    @property
    def label(self) -> str:
        """All that may be another one than that of other candidates."""
        return ", ".join(
            [self.model] * bool(self.model) + [_assigned(key, value) for key, value in self.values]
        )


def _assigned(key: str, value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"{key}={plain(value) if value != '' else repr('')}"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is compared. Two requests that are equal have the same result."""

    models: tuple[str, ...]
    """Spec strings in the order given; the same may stand twice. None where only settings vary."""
    seeds: int
    recipe: str
    settings: Mapping[str, Any]
    """What goes over the recipe's settings."""
    vary: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """Settings with the values that are compared; with the models they span a grid."""

    def __post_init__(self) -> None:
        varied.check(self.vary, self.settings)
        if not self.vary and len(self.models) < 2:
            raise ConfigError(
                f"{len(self.models)} model given; comparing takes at least two, such as "
                "--models small_cnn cifar_resnet, or a setting's values, such as "
                "--vary lr 0.01 0.001"
            )
        for spec in self.models:
            check(spec)
        if isinstance(self.seeds, bool) or not 1 <= self.seeds <= MAX_SEEDS:
            raise ConfigError(f"seeds is {self.seeds}; 1 to {MAX_SEEDS} is accepted")
        for name, instead in (
            ("model", "name the models with --models"),
            ("seed", "say how many with --seeds; they are 0, 1, 2, ..."),
        ):
            if name in self.settings and not (name == "model" and self.vary and not self.models):
                raise ConfigError(
                    f"{name} is {self.settings[name]!r}, but a comparison sets it itself; {instead}"
                )
        several = len(set(self.models)) > 1
        for weights in (self.settings.get("weights", "auto"), *self.vary.get("weights", ())):
            if several and WeightsFrom.read(weights).kind == "file":
                raise ConfigError(
                    f"weights is {weights!r}, a file that fits one model only; auto, none, hub or "
                    "imagenet is accepted here"
                )
        if len(self.points) > MAX_CANDIDATES:
            raise ConfigError(
                f"the grid has {len(self.points)} candidates; at most {MAX_CANDIDATES} are "
                "compared: vary fewer settings at a time, or search with `fieldmark tune`"
            )
        for point in self.points if self.vary else ():
            settings = {**self.settings, **point.settings()}
            TrainRequest(data="", recipe=self.recipe, settings=settings).before_recipe()

    @functools.cached_property
    def points(self) -> tuple[Point, ...]:
        """The candidates: model by model, the values of the last setting change soonest."""
        axes = [self.models or ("",), *self.vary.values()]
        return tuple(
            Point(chosen[0][1], tuple(zip(self.vary, [v for _, v in chosen[1:]], strict=True)), at)
            for chosen in itertools.product(*map(enumerate, axes))
            for at in [tuple(i for i, _ in chosen)]
        )

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """What each candidate is called: what differs, with a number where that came before."""
        alone = bool(self.vary) and len(self.models) == 1
        labels = [
            (dataclasses.replace(point, model="") if alone else point).label
            for point in self.points
        ]
        return _numbered(labels)

    def runs(self) -> Iterator[Planned]:
        """All runs, seed by seed, so that what cannot be trained shows in the first round."""
        folders = _folder_names([point.label for point in self.points])
        for seed in range(self.seeds):
            for index, folder in enumerate(folders):
                yield Planned(index, seed, f"{folder}-seed{seed}")

    def of(self, data: str, run: Planned, *, out: Path | None = None) -> TrainRequest:
        """What one of the runs asks training for."""
        settings = {**self.settings, **self.points[run.candidate].settings(), "seed": run.seed}
        return TrainRequest(data=data, recipe=self.recipe, settings=settings, out=out)

    def asked(self) -> Asked:
        """As ``compare.json`` has it."""
        return Asked(
            models=self.models,
            seeds=self.seeds,
            recipe=self.recipe,
            settings=self.settings,
            vary=tuple(Values(setting=key, values=values) for key, values in self.vary.items()),
        )


def _numbered(labels: Sequence[str]) -> tuple[str, ...]:
    """The labels, with a number where the same came before."""
    return tuple(
        label if earlier == 0 else f"{label} ({earlier + 1})"
        for label, earlier in zip(labels, _earlier(labels), strict=True)
    )


def _earlier(values: Sequence[str]) -> list[int]:
    """How often each value came before."""
    return [list(values[:i]).count(value) for i, value in enumerate(values)]


def _folder_names(labels: Sequence[str]) -> list[str]:
    """A name for each candidate, also where the file system takes capitals for small letters."""
    taken: set[str] = set()
    names = []
    for label in labels:
        stem = slug(label)[:60].rstrip("-.")
        candidates = itertools.chain([stem], (f"{stem}-{n}" for n in itertools.count(2)))
        name = next(c for c in candidates if c.casefold() not in taken)
        taken.add(name.casefold())
        names.append(name)
    return names


# --- doing it --------------------------------------------------------------------------------


def compare(
    data: str,
    models: Sequence[str] = (),
    *,
    vary: Mapping[str, Sequence[Any]] | None = None,
    seeds: int = 3,
    recipe: str = "auto",
    settings: Mapping[str, Any] | None = None,
    out: Path | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Train every candidate with every seed; say which is better, or that none is shown to be.

    All runs have the same pictures in the same splits. Runs of the same seed see them in the same
    order with the same draws, each model with its own preprocessing.

    Args:
        data: A data set's name or a folder, as for ``training.train``.
        models: Spec strings, at least two; with ``vary`` also one, or none for the recipe's.
        vary: Settings, each with the values to compare; with the models they span a grid.
        seeds: How often each candidate is trained: with the seeds 0, 1, ...
        recipe: Name of a recipe for all models; ``auto`` picks one by the data, and by whether a
            model starts from pretrained weights.
        settings: What goes over the recipe's settings; anything but seed, and the model only where
            ``models`` is empty.
        out: Folder of the comparison; default is ``runs/compare-NAME``, with a number if another
            comparison is there. Where this very comparison is there, it goes on.
        progress: Who is told what happens.

    Raises:
        ConfigError: if the request cannot be used, or ``out`` holds another one.
        RunError: if the pictures are not those that the comparison began with, or the folder of
            one of its runs is a link.
        Interrupted: on Ctrl-C or SIGTERM, after saving.
        FieldmarkError: whatever training raises.
    """
    manifest.check_apart(out, data)
    progress = progress or Silent()
    request = Request(
        models=tuple(models),
        seeds=seeds,
        recipe=recipe,
        settings=dict(settings or {}),
        vary=varied.listed(vary or {}),
    )
    folder = _folder(out, data, request)
    for path in (folder.path / run.folder for run in request.runs()):
        if path.is_symlink():
            raise RunError(
                f"{path} is a link; the runs of a comparison are written into its own folder: "
                "remove the link, or choose another --out"
            )
    first = next(request.runs())
    config = request.of(data, first).before_recipe()
    opened = read_data(data, config, progress)  # once for all runs
    begun = _open(folder, data, request, progress, opened)
    planned = list(request.runs())
    try:
        for number, run in enumerate(planned, start=1):
            name = request.names[run.candidate]
            progress.say(f"run {number} of {len(planned)}: {shown(name)}, seed {run.seed}")
            _bring_to_end(begun, run, data, request, progress, opened)
        result = _judge(begun, request)
        _write(begun, result)
    except (Interrupted, KeyboardInterrupt) as stopped:
        raise Interrupted(
            f"stopped; everything is saved. Go on with the same command and --out {folder.path}",
            signal_number=(
                stopped.exit_code - 128 if isinstance(stopped, Interrupted) else signal.SIGINT
            ),
        ) from None
    return result


@dataclass
class _Begun:
    """A comparison's folder, and what ``compare.json`` in it says while the runs go on."""

    folder: RunDirectory
    ledger: Ledger

    def remember(self, run: str, used: int) -> None:
        """Write down a run's peak memory in bytes, the one figure that a run does not keep."""
        memory = self.ledger.memory
        memory = {**memory, run: max(used, memory.get(run, 0))}
        self.ledger = dataclasses.replace(self.ledger, memory=memory, results=None)
        ledgers.write(self.folder, self.ledger)


def _folder(out: Path | None, data: str, request: Request) -> RunDirectory:
    """The comparison's folder, made later; what is there already must be the same comparison.

    Raises:
        ConfigError: naming the differences.
    """
    return resumable.find(
        out,
        data,
        prefix="compare",
        what="comparison",
        file=FILE,
        same="models, settings and values",
        differences=lambda path: _differences(path, request),
    )


def _differences(path: Path, request: Request) -> list[str]:
    """In what the comparison in a folder is another one than is asked for."""
    old, new = ledgers.read(RunDirectory(path)).request, request.asked()
    pairs: list[tuple[str, Any, Any]] = [
        (key, getattr(old, key), getattr(new, key)) for key in ("models", "seeds", "recipe")
    ]
    was_varied, is_varied = ({each.setting: each.values for each in r.vary} for r in (old, new))
    pairs += [
        (f"vary {key}", was_varied.get(key, "not varied"), is_varied.get(key, "not varied"))
        for key in dict.fromkeys([*was_varied, *is_varied])
    ]
    if not any(was != now for _, was, now in pairs) and list(was_varied) != list(is_varied):
        pairs.append(("the order of --vary", tuple(was_varied), tuple(is_varied)))
    pairs += [
        (key, *(side.settings.get(key, "the recipe's") for side in (old, new)))
        for key in dict.fromkeys([*old.settings, *new.settings])
    ]
    return [f"{key} was {_told(was)}, is {_told(now)}" for key, was, now in pairs if was != now]


def _told(value: object) -> str:
    return plain(list(value) if isinstance(value, tuple) else value)


def _open(
    folder: RunDirectory, data: str, request: Request, progress: Progress, opened: Opened
) -> _Begun:
    """Make sure that every candidate can be trained on these pictures, then write the request.

    What would fail in the last run after hours fails here: a network that does not fit the input,
    weights that cannot be had, a setting that does not go with the others.

    Raises:
        RunError: if the comparison began with other pictures.
        ConfigError: if candidates would be scored on different pictures.
    """
    pending = [
        run.candidate
        for run in request.runs()
        if not (folder.path / run.folder / "config.json").is_file()
    ]
    configs: dict[int, TrainConfig] = {}
    prepared: dict[tuple[Any, ...], TrainConfig] = {}
    scored_on: dict[str, int] = {}
    for index in dict.fromkeys(pending or [0]):
        point = request.points[index]
        key = (point.model, tuple((name, type(v), v) for name, v in point.values))
        if key not in prepared:
            job = prepare(request.of(data, Planned(index, 0, "")), progress=progress, opened=opened)
            prepared[key] = job.config
            scored_on.setdefault(job.dataset.fingerprint, index)
        configs[index] = prepared[key]
    if len(scored_on) > 1:
        first, second, *_ = (shown(request.names[index]) for index in scored_on.values())
        raise ConfigError(
            f"{first} and {second} would not have the same pictures in the same splits, so their "
            "scores could not be compared; leave --whole-batches out, or do not vary what it "
            "depends on"
        )
    if folder.has(FILE):
        ledger = ledgers.read(folder)
        if job.dataset.fingerprint != ledger.fingerprint:
            raise RunError(
                f"the pictures changed since {folder.path} began, or are others; put them back, "
                "or begin anew with another --out"
            )
        return _Begun(folder, ledger)
    found = _settings_by_candidate([[config] for config in configs.values()])[1]
    for name in _unlike(found, request.vary):
        values = ", ".join(
            f"{shown(request.names[i])} {plain(getattr(c, name))}" for i, c in configs.items()
        )
        progress.warn(f"the models will not be trained alike: {name} is {values}")
    resumable.make(folder)
    ledger = Ledger(
        name=job.dataset.name,
        path=manifest.relative_path(data, folder),
        fingerprint=job.dataset.fingerprint,
        request=request.asked(),
        memory={},
        results=None,
    )
    ledgers.write(folder, ledger)
    return _Begun(folder, ledger)


def _bring_to_end(
    begun: _Begun,
    planned: Planned,
    data: str,
    request: Request,
    progress: Progress,
    opened: Opened,
) -> None:
    """Train a run, or go on with it, unless it is finished."""
    run = RunDirectory(begun.folder.path / planned.folder)
    if all(map(run.has, _LAST)):
        _check_same_pictures(begun.ledger, run)
        return
    peak = _Peak()
    try:
        if run.has("config.json"):
            training.resume(run.path, data=data, progress=progress, opened=opened)
        else:
            _clear(run.path)
            wanted = request.of(data, planned, out=run.path)
            training.train(wanted, progress=progress, opened=opened)
    except DivergedError as error:
        name = shown(request.names[planned.candidate])
        raise DivergedError(f"{name}, seed {planned.seed}: {error}") from None
    finally:
        used = peak.bytes(run)
        if used is not None:
            begun.remember(planned.folder, used)
    _check_same_pictures(begun.ledger, run)


_LAST = ("config.json", "evaluation.json", "report.html")
"""A finished run has these. `fieldmark report` writes the page of an unfinished one as well."""


def _clear(path: Path) -> None:
    """Remove what a run left that was killed before it could be resumed.

    Raises:
        RunError: if the folder holds anything else.
        ConfigError: if another process is creating it.
    """
    if not path.exists():
        return
    RunDirectory(path).clear_unbegun()
    strange = sorted({file.name for file in path.iterdir()} - {LOCK})
    if strange:
        raise RunError(
            f"{path} is in the way: it is no run and holds {shown(strange[0])}; move it elsewhere"
        )


def _check_same_pictures(ledger: Ledger, run: RunDirectory) -> None:
    if manifest.read(run).fingerprint != ledger.fingerprint:
        raise RunError(
            f"{run.path} saw other pictures, or the same in other splits, than the "
            "comparison began with, so its scores cannot be compared; put the pictures back and "
            "remove that folder, or begin anew with another --out"
        )


class _Peak:
    """The most memory in use since this was made.

    On the processor it is the resident memory of the whole process, Python and libraries included
    (Linux only: its counter can be set back); on a GPU what torch has allocated there.
    """

    def __init__(self) -> None:
        gc.collect()
        trim_heap()  # a kept heap is what the run before it needed
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            for index in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(index)
        try:
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the high-water mark
            self._counts = True
        except OSError:
            self._counts = False

    def bytes(self, run: RunDirectory) -> int | None:
        """The peak of the run's device; None where it is not measured."""
        device = run.config().device if run.has("config.json") else ""
        if device.startswith("cuda"):
            return torch.cuda.max_memory_allocated(device)
        if device != "cpu" or not self._counts:
            return None
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        found = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
        return 1024 * int(found.group(1)) if found else None


# --- judging ---------------------------------------------------------------------------------


def _judge(begun: _Begun, request: Request) -> Comparison:
    """Read the finished runs, and compare."""
    runs: list[list[tuple[int, RunDirectory]]] = [[] for _ in request.points]
    for planned in request.runs():
        directory = RunDirectory.open(begun.folder.path / planned.folder)
        runs[planned.candidate].append((planned.seed, directory))
    first = runs[0][0][1]
    parts = manifest.read(first).parts
    for _, run in itertools.chain.from_iterable(runs):
        if manifest.read(run).parts != parts:
            raise RunError(f"{run.path} and {first.path} divide the pictures differently")
    part = "test" if "test" in scores.read(first).parts else "val"
    correct, files = [], _predictions(first, part)[0]
    for group in runs:
        rows = []
        for _, run in group:
            names, right = _predictions(run, part)
            if names != files:
                raise RunError(
                    f"the {part} pictures in {run.path / 'predictions.csv'} are not those of "
                    f"{first.path}; `fieldmark evaluate {run.path}` writes them again"
                )
            rows.append(right)
        correct.append(np.stack(rows))
    candidates = tuple(
        _candidate(name, point, group, right, part, begun.ledger.memory)
        for name, point, group, right in zip(
            request.names, request.points, runs, correct, strict=True
        )
    )
    configs = [[run.config() for _, run in group] for group in runs]
    shared, differing = _settings_by_candidate(configs)
    chose = any(config.val_decides for config in itertools.chain.from_iterable(configs))
    return Comparison(
        path=begun.folder.path,
        data=begun.ledger.name,
        part=part,
        n=len(files),
        seeds=request.seeds,
        recipe=request.recipe,
        models=candidates,
        pairs=_pairs(request.names, correct),
        settings=shared,
        differing=differing,
        notes=tuple(_notes(part, parts, candidates, differing, request.vary, chose=chose)),
        varied=tuple(request.vary),
        marginals=_marginals(request, correct),
    )


def _predictions(run: RunDirectory, part: str) -> tuple[list[str], Correct]:
    """The pictures of a split as ``predictions.csv`` names them, and which were right: [N]."""
    answers = [answer for answer in predictions.read(run) if answer.part == part]
    if not answers:
        raise RunError(
            f"{run.path / predictions.FILE} holds no {part} pictures; {run.scored_again}"
        )
    right = np.array([answer.correct for answer in answers], dtype=np.bool_)
    return [answer.file for answer in answers], right


def _candidate(
    name: str,
    point: Point,
    runs: Sequence[tuple[int, RunDirectory]],
    correct: Correct,
    part: str,
    memory: Mapping[str, int],
) -> Candidate:
    info = runs[0][1].model_info()
    return Candidate(
        name=name,
        spec=point.model or info.model,
        values=dict(point.values),
        weights=info.weights,
        num_params=info.num_params,
        flops=_flops(runs[0][1]),
        accuracy=significance.accuracy(correct),
        runs=tuple(_trained(run, seed, part, memory.get(run.path.name)) for seed, run in runs),
    )


def _trained(run: RunDirectory, seed: int, part: str, memory: int | None) -> Trained:
    records, found = history.read(run), scores.read(run).parts
    kept = run.model_info().selected.epoch
    accuracies = [record.train_accuracy for record in records if record.epoch == kept]
    if not accuracies or {part, "val"} - found.keys():
        raise RunError(
            f"{run.path}: the kept epoch {kept} is not in {history.FILE}, or a split not in "
            f"{scores.FILE}; put back the files as they were"
        )
    return Trained(
        run=run.path.name,
        seed=seed,
        epochs=sum(record.epoch > 0 for record in records),
        best_epoch=kept,
        train_accuracy=accuracies[0] if math.isfinite(accuracies[0]) else None,
        val_accuracy=found["val"].accuracy,
        test_accuracy=found["test"].accuracy if part == "test" else None,
        seconds=sum(record.seconds for record in records),
        images_per_second=statistics.median(record.images_per_second for record in records),
        memory=memory,
    )


def _flops(run: RunDirectory) -> int:
    """FLOPs of one picture forward; a multiplication and an addition are two."""
    from fieldmark.models.summary import flops

    model = run.load_model()
    return flops(model.module, model.info.input.size)


def _pairs(names: Sequence[str], correct: Sequence[Correct]) -> tuple[Pair, ...]:
    every = list(itertools.combinations(range(len(names)), 2))
    found = [significance.difference(correct[i], correct[j]) for i, j in every]
    corrected = significance.holm([difference.p for difference in found])
    return tuple(
        Pair(first=names[i], second=names[j], difference=difference, corrected=p)
        for (i, j), difference, p in zip(every, found, corrected, strict=True)
    )


def _marginals(request: Request, correct: Sequence[Correct]) -> tuple[Marginal, ...]:
    """Each thing that varies by itself, as a mean over the rest of the grid; none without a rest.

    p is corrected for all pairs of all of them.
    """
    axes = {_MODEL: list(request.models) or [""], **request.vary}
    several = [at for at, values in enumerate(axes.values()) if len(values) > 1]
    if len(several) < 2 or not request.vary:
        return ()
    found = [_levels(request, correct, at, list(axes)[at]) for at in several]
    corrected = iter(significance.holm([pair.corrected for each in found for pair in each.pairs]))
    return tuple(
        dataclasses.replace(
            each,
            pairs=tuple(dataclasses.replace(p, corrected=next(corrected)) for p in each.pairs),
        )
        for each in found
    )


def _levels(request: Request, correct: Sequence[Correct], at: int, name: str) -> Marginal:
    """One axis of the grid: each value's mean over the rest, and every two of the values."""
    groups: dict[int, list[Correct]] = {}
    labels: dict[int, str] = {}
    for point, right in zip(request.points, correct, strict=True):
        level = point.levels[at]
        groups.setdefault(level, []).append(right)
        value = point.model if at == 0 else point.values[at - 1][1]
        labels[level] = point.model if at == 0 else _assigned(name, value)
    names, tables = _numbered(list(labels.values())), list(groups.values())
    means = [[float(right.mean()) for right in group] for group in tables]
    every = list(itertools.combinations(range(len(names)), 2))
    differences = [significance.mean_difference(tables[i], tables[j]) for i, j in every]
    return Marginal(
        setting=name,
        levels=tuple(
            Level(name=label, accuracy=significance.mean_accuracy(group))
            for label, group in zip(names, tables, strict=True)
        ),
        pairs=tuple(
            Pair(first=names[i], second=names[j], difference=d, corrected=d.p)
            for (i, j), d in zip(every, differences, strict=True)
        ),
        higher=tuple(sum(a > b for a, b in zip(means[i], means[j], strict=True)) for i, j in every),
        lower=tuple(sum(a < b for a, b in zip(means[i], means[j], strict=True)) for i, j in every),
        rest=len(means[0]),
    )


def _settings_by_candidate(
    configs: Sequence[Sequence[TrainConfig]],
) -> tuple[dict[str, Any], dict[str, tuple[str, ...]]]:
    """Settings that all runs share, and for the others each candidate's value."""
    shared: dict[str, Any] = {}
    differing: dict[str, tuple[str, ...]] = {}
    for each in dataclasses.fields(TrainConfig):
        if each.name in ("model", "seed"):
            continue
        values = [[getattr(config, each.name) for config in group] for group in configs]
        if len(set(itertools.chain.from_iterable(values))) == 1:
            shared[each.name] = values[0][0]
        else:
            differing[each.name] = tuple(
                " or ".join(dict.fromkeys(map(plain, group))) for group in values
            )
    return shared, differing


def _unlike(differing: Mapping[str, object], vary: Mapping[str, object]) -> list[str]:
    """Settings that decide what is learnt, differ, and were not meant to."""
    return [key for key in differing if key not in (*_OWN, *_MACHINE, *vary)]


def _notes(
    part: str,
    parts: Mapping[str, Any],
    candidates: Sequence[Candidate],
    differing: Mapping[str, object],
    vary: Mapping[str, object],
    *,
    chose: bool,
) -> list[str]:
    """What a reader must know before believing the table."""
    notes = []
    if part == "val":
        notes.append(
            "There is no test split: the models are compared on the validation pictures, which "
            "also chose each run's epoch, so the figures are a little better than new pictures "
            "will show."
        )
    elif parts["val"] == parts.get("test") and chose:
        notes.append(
            "The test split also validated and chose each run's epoch, so the figures are a little "
            "better than new pictures will show."
        )
    if all(len(model.runs) == 1 for model in candidates):
        notes.append(
            "One seed says nothing about how much a model's accuracy changes from one training to "
            "the next, which is often more than the differences shown; --seeds 3 measures it."
        )
    if unlike := _unlike(differing, vary):
        beside = f" Beside what is varied ({', '.join(vary)})," if vary else ""
        notes.append(f"The models were not trained alike:{beside} {', '.join(unlike)} differ.")
    if speed := [key for key in vary if key in varied.SPEED]:
        notes.append(
            f"{' and '.join(speed)} decide how fast training is, and not what is learnt beyond "
            "rounding: look at the times; a difference in accuracy would be chance."
        )
    if "weights" not in vary and len({model.weights == "none" for model in candidates}) > 1:
        started = "; ".join(f"{shown(m.name)}: {m.weights}" for m in candidates)
        notes.append(f"Not all models started from pretrained weights ({started}).")
    machine = [key for key in ("device", "precision") if key in differing and key not in vary]
    if machine:
        notes.append(f"Times cannot be compared: {' and '.join(machine)} differ between runs.")
    return notes


# --- files -----------------------------------------------------------------------------------


def _write(begun: _Begun, result: Comparison) -> None:
    """Figures, table and page; ``compare.json`` comes last."""
    folder = begun.folder
    curves = [
        (model.name, [history.read(RunDirectory(folder.path / run.run)) for run in model.runs])
        for model in result.models
    ]
    folder.write("convergence.png", figures.convergence(curves))
    folder.write("compare.csv", result.csv())
    folder.write("compare.html", result.page(curves).encode())
    ledgers.write(folder, dataclasses.replace(begun.ledger, results=result.to_json()))
