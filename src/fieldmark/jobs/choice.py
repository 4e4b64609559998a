"""``--recipe auto``: candidates are tried on the pictures themselves, and the best one is trained.

Train and val are divided into folds; every candidate answers for pictures that it was not fitted
to, the same ones as the others. A probe is solved anew for each fold, on features that are computed
once; a network from scratch is trained on all but one fold, and on the other folds too where that
leaves the matter open. The test split is not opened. What was tried, what it cost and why it lost
is in the run's ``choice.json``; the settings of the best are in its ``config.json``, so that
training with them anew is exact whatever the trials would find.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fieldmark import models
from fieldmark.data import Dataset, Opened
from fieldmark.data.dataset import Part
from fieldmark.data.split import stratified
from fieldmark.errors import DivergedError, FieldmarkError, Interrupted
from fieldmark.fit import probe
from fieldmark.fit.loop import fit
from fieldmark.fit.probe import Features
from fieldmark.fit.state import EpochRecord
from fieldmark.jobs.plan import Job, prepare
from fieldmark.jobs.prepared import Prepared, Validation, extract
from fieldmark.jobs.request import TrainRequest
from fieldmark.machine import device
from fieldmark.progress import Progress
from fieldmark.runs.choice import CHOSEN, FAILED, STOPPED, WORSE, Choice, Tried
from fieldmark.seeding import F64, I64, Bools
from fieldmark.settings.config import Facts, TrainConfig
from fieldmark.settings.recipes.candidates import Candidate, candidates

FOLDS = 3
POOL = 2_000
"""Pictures that candidates are judged on, at most; chosen by content."""
ROUGH = 600
"""Pictures that tell the sizes of one network apart, at most."""
LOOK = 0.4
"""Share of a training from which on a hopeless one is stopped."""
LEFT = 0.5
"""What the rest of a training may make of the error at :data:`LOOK`; of that at the end, all."""
GROWTH = 0.3
"""A network from scratch gains more by further pictures than a probe does: its error is let be
larger by this power of how many times more there are than it was tried on."""

LEFT_OPEN = frozenset(
    {
        *("split", "split_seed", "on_bad", "fail_on_leak", "max_pixels", "range", "decode_side"),
        *("memory_gb", "disk_gb", "threads", "device", "precision", "channels_last", "seed"),
        *("save_every", "metrics", "views", "whole_batches", "class_weights", "balance"),
    }
)
"""Settings that may be given without deciding what is trained."""


@dataclass(frozen=True)
class Chosen:
    """What the trials came to."""

    request: TrainRequest
    """The request, with the best candidate's recipe and settings."""
    choice: Choice
    features: Mapping[str, Features] | None
    """The best candidate's features by split, if they were computed of every picture."""

    def told(self, job: Job) -> Job:
        """The job of the chosen settings, with the reason and with what is known already."""
        best, tried = self.choice.chosen, len(self.choice.tried)
        reason = (
            f"{best.name}: best of {tried} tried on {self.choice.pictures} pictures of train and "
            f"val, {best.accuracy:.4f} out of fold ({self.choice.seconds:.0f} s)"
        )
        return dataclasses.replace(job, notes=(reason, *job.notes), features=self.features)


def is_open(request: TrainRequest) -> bool:
    """Whether the request leaves it open what is trained."""
    given = {
        name
        for name, value in request.settings.items()
        if not (name in ("model", "weights") and value == "auto")
    }
    alone = request.recipe == "auto" and request.base is None and request.from_run is None
    return alone and given <= LEFT_OPEN


def choose(request: TrainRequest, opened: Opened, progress: Progress) -> Chosen | None:
    """Try the candidates; None where there is nothing to choose among.

    Raises:
        FieldmarkError: if the pictures cannot be used; a candidate that fails is passed over.
    """
    start = time.perf_counter()
    config = request.before_recipe()
    dataset = opened.divide(config)
    facts = Facts(data=dataset.facts, device=_kind(config), pretrained="")
    listed = candidates(facts, models.all_pretrained())
    if len(listed) < 2:
        return None
    pool = _Pool.of(dataset, POOL)
    progress.say(
        f"trying {len(listed)} candidates on {len(pool.part)} pictures of train and val: "
        + "; ".join(each.name for each in listed)
    )
    pictures = len(dataset.parts["train"]) + len(dataset.parts["val"])
    trying = _Trying(request, opened, pool, pictures, progress)
    rough = _Pool.of(dataset, ROUGH) if len(pool.part) > ROUGH else pool
    for family in dict.fromkeys(each.family for each in listed):
        sizes = [each for each in listed if each.family == family]
        trying.add_best(sizes, rough if family and len(sizes) > 1 else pool)
    return trying.end(start)


def _kind(config: TrainConfig) -> str:
    return device.choose(config.device, "auto").torch_device.type


@dataclass(frozen=True)
class _Pool:
    """Pictures of train and val in folds."""

    part: Part
    fold: I64
    """[N] the fold that each picture is held out in."""
    is_whole: bool
    """Whether it is all pictures of train and val, in this order."""

    @classmethod
    def of(cls, dataset: Dataset, count: int) -> _Pool:
        """Take all pictures, or so many of them; equal ones are in one fold."""
        train, val = dataset.parts["train"], dataset.parts["val"]
        both = train if val.keys == dataset.parts.get("test", train).keys else _joined(train, val)
        part = both.sample(count, "trials")
        fold = stratified(part.labels, part.ids, shares=[1 / FOLDS] * FOLDS, seed=0)
        return cls(part, fold, len(part) == len(train) + len(val))


def _joined(*parts: Part) -> Part:
    return Part(
        keys=tuple(key for part in parts for key in part.keys),
        labels=np.concatenate([part.labels for part in parts]),
        digests=tuple(digest for part in parts for digest in part.digests),
    )


@dataclass(frozen=True)
class _Judged:
    """A candidate's answers for pictures of the pool that were held out."""

    logits: F64
    """[N, K]; NaN where a picture was not held out."""
    labels: I64

    @property
    def held_out(self) -> Bools:
        """[N]"""
        return np.asarray(np.isfinite(self.logits).all(1), dtype=np.bool_)

    @property
    def correct(self) -> Bools:
        """[N] whether right; only of those held out."""
        right = self.logits.argmax(1) == self.labels
        return np.asarray(right & self.held_out, dtype=np.bool_)

    @property
    def accuracy(self) -> float:
        return float(self.correct.sum() / self.held_out.sum())

    @property
    def loss(self) -> float:
        here = self.held_out
        logits, labels = torch.from_numpy(self.logits[here]), torch.from_numpy(self.labels[here])
        return float(nn.functional.cross_entropy(logits, labels))


class _Trying:
    """The trials so far, and the best of them."""

    def __init__(
        self,
        request: TrainRequest,
        opened: Opened,
        pool: _Pool,
        pictures: int,
        progress: Progress,
    ) -> None:
        self._request, self._opened, self._pool, self._progress = request, opened, pool, progress
        self._pictures = pictures
        """Number of pictures in train and val."""
        self._trials: list[tuple[Candidate, Tried, _Judged | None]] = []
        """What was tried, with the answers for the pool's pictures, where it has them."""
        self._features: dict[str, Mapping[str, Features]] = {}

    def add_best(self, sizes: Sequence[Candidate], pool: _Pool) -> None:
        """Try sizes of one network while they get better; the best of them is in the contest.

        Of one network's sizes the loss decides: right or wrong tells them apart less well.
        """
        best: tuple[float, int] | None = None
        for candidate in sizes:
            judged = self._try(candidate, pool)
            if judged is not None and best is not None and judged.loss >= best[0]:
                break
            if judged is not None:
                best = judged.loss, len(self._trials) - 1
        if best is None:
            return
        if pool is not self._pool:
            self._try(self._trials[best[1]][0], self._pool)
            best = math.nan, len(self._trials) - 1
        for place, (candidate, trial, answers) in enumerate(self._trials):
            if candidate in sizes and answers is not None and place != best[1]:
                chosen = self._trials[best[1]][0].name
                why = f"a higher loss than {chosen}"
                if candidate.name == chosen:
                    why = "the best size by its loss; tried again on more pictures"
                self._trials[place] = candidate, dataclasses.replace(trial, why=why), None

    def _try(self, candidate: Candidate, pool: _Pool) -> _Judged | None:
        """Try a candidate, and tell what came of it."""
        start = time.perf_counter()
        judged: _Judged | None = None
        outcome, why, neighbours = WORSE, "", math.nan
        try:
            if candidate.is_probe:
                judged, neighbours = self._probe(candidate, pool)
            else:
                judged, why = self._train(candidate)
                outcome = STOPPED if why else WORSE
        except Interrupted:
            raise
        except (FieldmarkError, MemoryError) as error:
            outcome, why = FAILED, str(error)
        seconds = time.perf_counter() - start
        trial = Tried(
            name=candidate.name,
            recipe=candidate.recipe,
            settings=dict(candidate.settings),
            seconds=round(seconds, 2),
            outcome=outcome,
            why=why,
            n=0 if judged is None else int(judged.held_out.sum()),
            accuracy=math.nan if judged is None else judged.accuracy,
            loss=math.nan if judged is None else judged.loss,
            neighbours=neighbours,
        )
        judged = judged if outcome == WORSE else None
        self._trials.append((candidate, trial, judged))
        result = why if not trial.n else f"{trial.accuracy:.4f} (n = {trial.n})"
        self._progress.say(f"tried {candidate.name}: {result}, {seconds:.1f} s")
        return judged

    def end(self, start: float) -> Chosen | None:
        """Name the best candidate, and say why the others lost."""
        judged = [(c, t, j) for c, t, j in self._trials if j is not None]
        if not judged:
            return None
        best = max(judged, key=lambda each: self._worth(each[0], each[2]))
        told = []
        for _, trial, answers in self._trials:
            outcome, why = trial.outcome, trial.why
            if trial is best[1]:
                outcome, why = CHOSEN, "the most accurate out of fold"
            elif answers is not None:
                why = _against(answers, best[2])
            told.append(dataclasses.replace(trial, outcome=outcome, why=why))
        choice = Choice(
            pictures=len(self._pool.part),
            folds=FOLDS,
            seconds=round(time.perf_counter() - start, 2),
            tried=tuple(told),
        )
        settings = {**best[0].settings, **_given(self._request)}
        request = dataclasses.replace(self._request, recipe=best[0].recipe, settings=settings)
        return Chosen(request, choice, self._features.get(best[0].name))

    def _worth(self, candidate: Candidate, judged: _Judged) -> tuple[float, float]:
        """Accuracy on pictures that all were judged on, with what more pictures will change."""
        here = np.all([j.held_out for _, _, j in self._trials if j is not None], axis=0)
        error = 1 - float(judged.correct[here].mean())
        if not candidate.is_probe:
            error /= (self._pictures / len(self._pool.part)) ** GROWTH
        return -error, -judged.loss

    # --- the two kinds of candidates ---------------------------------------------------------

    def _job(self, candidate: Candidate) -> Job:
        settings = {**candidate.settings, **_given(self._request)}
        request = dataclasses.replace(self._request, recipe=candidate.recipe, settings=settings)
        job = prepare(request, progress=self._progress, opened=self._opened)
        # As the run computes: another number of threads would be another order of sums.
        torch.set_num_threads(job.config.threads)
        job.device.prepare()
        return job

    def _probe(self, candidate: Candidate, pool: _Pool) -> tuple[_Judged, float]:
        """Compute features once, and solve the head for each fold."""
        job = self._job(candidate)
        if pool.is_whole:
            found = extract(job, Prepared.of(job), self._progress)
            self._features[candidate.name] = found
            values = torch.cat([found["train"].values, found["val"].values])
        else:
            dataset = _with(job.dataset, train=pool.part, val=pool.part)
            part = dataclasses.replace(job, dataset=dataset)
            values = extract(part, Prepared.of(part), self._progress, splits=("train",))[
                "train"
            ].values
        labels = torch.from_numpy(pool.part.labels)
        count = len(job.dataset.class_names)
        with probe.threads_for(values.numel() * count):
            logits = probe.out_of_fold(values, labels, pool.fold, num_classes=count)
            near = probe.neighbours(values, labels, pool.fold)
        return _Judged(logits.numpy(), pool.part.labels), near

    def _train(self, candidate: Candidate) -> tuple[_Judged, str]:
        """Train without one fold, then without the others where the first leaves it open."""
        logits: F64 | None = None
        labels, rivals = self._pool.part.labels, self._rival()
        for held_out in range(FOLDS):
            here = self._pool.fold == held_out
            if not here.any() or here.all():
                continue
            job = self._job(candidate)
            dataset = _with(
                job.dataset,
                train=self._pool.part.take(np.flatnonzero(~here)),
                val=self._pool.part.take(np.flatnonzero(here)),
            )
            answers, why = self._trained(dataclasses.replace(job, dataset=dataset), here, rivals)
            if logits is None:
                logits = np.full((len(labels), answers.shape[1]), math.nan)
            logits[here] = answers
            judged = _Judged(logits, labels)
            if why or rivals is None or not _is_close(judged, rivals):
                return judged, why
        assert logits is not None
        return _Judged(logits, labels), ""

    def _rival(self) -> _Judged | None:
        """The best candidate so far."""
        found = [judged for _, _, judged in self._trials if judged is not None]
        return max(found, key=lambda each: each.accuracy) if found else None

    def _trained(self, job: Job, here: Bools, rival: _Judged | None) -> tuple[F64, str]:
        """Train on one division; stop where even half the error would be too much.

        Returns:
            Logits of the pictures held out [M, K], and why training was stopped, if it was.
        """
        prepared = Prepared.of(job)
        validate = Validation(job, prepared.val)
        epochs = prepared.plan.epochs
        for event in fit(
            prepared.state, prepared.batches, prepared.plan, validate=validate, calm=prepared.calm
        ):
            if not isinstance(event, EpochRecord):
                continue
            self._progress.count("trying from scratch, epoch", event.epoch, epochs)
            if not math.isfinite(event.val_loss):
                raise DivergedError("the validation loss is not a number")
            error = 1 - event.val_accuracy
            if event.epoch == epochs or rival is None:
                continue
            if _is_hopeless(error, rival.correct[here], event.epoch / epochs):
                needed = 1 - float(rival.correct[here].mean())
                return validate.logits, (
                    f"stopped after epoch {event.epoch} of {epochs}: wrong about {error:.0%} of "
                    f"{here.sum()} pictures, another candidate about {needed:.0%}"
                )
        return validate.logits, ""


def _is_hopeless(error: float, rival: Bools, done: float) -> bool:
    """Whether a training will not come near a rival any more, whose answers are right where true.

    At :data:`LOOK` of its length the error may still be halved; later, less is left to gain.
    """
    if done < LOOK:
        return False
    needed = 1 - float(rival.mean())
    spread = math.sqrt(max(needed * (1 - needed), 0.01) / len(rival))
    return (LEFT + (1 - LEFT) * (done - LOOK) / (1 - LOOK)) * error > needed + 2 * spread


def _given(request: TrainRequest) -> dict[str, object]:
    return {name: value for name, value in request.settings.items() if value != "auto"}


def _with(dataset: Dataset, **parts: Part) -> Dataset:
    facts = dataclasses.replace(dataset.facts, num_train=len(parts["train"]))
    return dataclasses.replace(dataset, parts=parts, facts=facts)


def _is_close(one: _Judged, other: _Judged) -> bool:
    """Whether two candidates differ by less than twice the standard error of the difference."""
    here = one.held_out & other.held_out
    difference = one.correct[here].astype(float) - other.correct[here]
    error = float(difference.std()) / math.sqrt(len(difference))
    return abs(float(difference.mean())) < 2 * max(error, 1 / len(difference))


def _against(one: _Judged, best: _Judged) -> str:
    """Why a candidate lost: how many pictures it has wrong that the best has right."""
    here = one.held_out & best.held_out
    lost = int((best.correct & ~one.correct & here).sum())
    won = int((one.correct & ~best.correct & here).sum())
    return (
        f"of {int(here.sum())} pictures the chosen one has {lost} right that this one has wrong, "
        f"and {won} the other way"
    )
