"""``--recipe auto``: candidates are tried on the pictures themselves, and the best one is trained.

Train and val are divided into folds; every candidate answers for pictures that it was not fitted
to, the same ones as the others. A probe is solved anew for each fold, on features that are computed
once; a network that trains is trained on all but one fold, and on the other folds too where that
leaves the matter open. Fine-tuning costs most, so it is tried on fewer pictures, against the probe
of the same network on the same ones. The test split is not opened. What was tried, what it cost and
why it lost is in the run's ``choice.json``; the settings of the best are in its ``config.json``, so
that training with them anew is exact whatever the trials would find.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fieldmark import models
from fieldmark.data import Dataset, Opened
from fieldmark.data.dataset import Part
from fieldmark.errors import DivergedError, FieldmarkError, Interrupted
from fieldmark.fit import probe
from fieldmark.fit.loop import fit
from fieldmark.fit.probe import Features
from fieldmark.fit.state import EpochRecord
from fieldmark.jobs.clock import REPORT, Clock
from fieldmark.jobs.held_out import FOLDS, LOOK, Answers, Pool, difference, is_close, is_hopeless
from fieldmark.jobs.plan import Job, prepare
from fieldmark.jobs.prepared import Prepared, Validation, extract, solve_head
from fieldmark.jobs.request import TrainRequest
from fieldmark.machine import device
from fieldmark.progress import Progress
from fieldmark.runs.choice import CHOSEN, FAILED, LATE, STOPPED, WORSE, Choice, Tried
from fieldmark.seeding import F64, Bools
from fieldmark.settings.config import Facts, TrainConfig
from fieldmark.settings.recipes.candidates import (
    Candidate,
    candidates,
    fine_tuned,
    with_epochs,
)

POOL = 2_000
"""Pictures that candidates are judged on, at most; chosen by content."""
ROUGH = 600
"""Pictures that tell the sizes of one network apart, at most."""
TRAINING = 4
"""Times of a picture's features that a training step takes for it, with its augmentation."""
FEWEST = 2
"""Epochs of fine-tuning that are worth a trial."""
FEWEST_WRONG = 4
"""Wrong answers of a probe from which on fine-tuning is tried: were it right on every one of three,
that could still be chance (1 in 8)."""
SHORTEST = 0.3
"""Share of the epochs of a network from scratch that is worth a trial, if there is no time for all.
"""
UNKNOWN = 0.25
"""Share of the time that must be left for a trial of which is not known how long it takes."""
LONGER = 3
"""Times the epochs of the best, tried where time is left."""
GROWTH = 0.3
"""A network from scratch gains more by further pictures than a probe does: its error is let be
larger by this power of how many times more there are than it was tried on."""

TUNED_GROWTH = 0.1
"""The same for fine-tuning beside the probe that it begins with: of CIFAR-10, 425 pictures made of
the probe's error 0.90 of it, 1,700 made 0.76 (docs/log.md)."""

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
    """A candidate that is to be trained."""

    name: str
    request: TrainRequest
    """The request, with the candidate's recipe and settings."""
    choice: Choice
    """What the trials came to."""
    reason: str
    """Why this one is trained."""
    features: Mapping[str, Features] | None = None
    """The candidate's features by split, if they were computed of every picture."""

    def told(self, job: Job) -> Job:
        """The job of its settings, with the reason and with what is known already."""
        notes = (f"{self.name}: {self.reason}", *job.notes)
        return dataclasses.replace(job, notes=notes, features=self.features)


def is_open(request: TrainRequest) -> bool:
    """Whether the request leaves it open what is trained."""
    given = {
        name
        for name, value in request.settings.items()
        if not (name in ("model", "weights") and value == "auto")
    }
    if _asks_hub(request):
        given.discard("weights")
    alone = request.recipe == "auto" and request.base is None and request.from_run is None
    return alone and given <= LEFT_OPEN


def _asks_hub(request: TrainRequest) -> bool:
    """Whether weights may be downloaded, and of any network."""
    asked = request.settings
    return asked.get("weights") == "hub" and asked.get("model", "auto") == "auto"


def is_worth_it(request: TrainRequest, opened: Opened) -> bool:
    """Whether there is anything to choose: a probe can be fine-tuned, or not."""
    listed = _listed(request, opened, timed=False)[0]
    return len(listed) > 1 or any(each.is_probe for each in listed)


def choose(request: TrainRequest, opened: Opened, progress: Progress) -> Chosen | None:
    """Try the candidates; None where there is nothing to choose among.

    Raises:
        FieldmarkError: if the pictures cannot be used; a candidate that fails is passed over.
    """
    if not is_worth_it(request, opened):
        return None
    return Trials(request, opened, progress, Clock(None)).run()


def _listed(
    request: TrainRequest, opened: Opened, *, timed: bool
) -> tuple[tuple[Candidate, ...], Facts, Dataset]:
    config = request.before_recipe()
    dataset = opened.divide(config)
    facts = Facts(data=dataset.facts, device=_kind(config), pretrained="")
    listed = candidates(facts, models.all_pretrained(), timed=timed, hub=_asks_hub(request))
    return listed, facts, dataset


def _kind(config: TrainConfig) -> str:
    return device.choose(config.device, "auto").torch_device.type


@dataclass(frozen=True)
class _Rate:
    """How long a network takes."""

    size: int
    """Of the input, in pixels."""
    features: float
    """Seconds for the features of a picture."""
    head: float
    """Seconds for a picture in solving the head."""

    def at(self, size: int) -> float:
        """Seconds for the features of a picture of another size."""
        return self.features * (size / self.size) ** 2


@dataclass(eq=False)
class _Trial:
    """A candidate that was tried."""

    candidate: Candidate
    tried: Tried
    pool: Pool
    judged: Answers | None
    """Its answers, while it is in the contest."""
    base: _Trial | None = None
    """The trial that it adds training to, if it was tried beside that one alone."""
    beside: Answers | None = None
    """That one's answers on the same pictures."""
    possible: int = 0
    """Epochs that there is time for, where there is none for all."""
    epoch: float = 0.0
    """Seconds that an epoch of all pictures takes, where that was found out."""


class Trials:
    """The trials so far, and the best of them."""

    def __init__(
        self,
        request: TrainRequest,
        opened: Opened,
        progress: Progress,
        clock: Clock,
        *,
        before: Sequence[Tried] = (),
        tell: Callable[[Choice], None] = lambda choice: None,
        better: Callable[[Chosen], None] = lambda chosen: None,
    ) -> None:
        """Make ready.

        Args:
            request: What is asked for.
            opened: The pictures.
            progress: Whoever watches.
            clock: The time for everything; a candidate without time for it is passed over.
            before: What was tried before an interruption; it is not tried again.
            tell: Told of all that was tried, after each trial.
            better: Told of a new best, if its features are known of every picture.
        """
        self._request, self._opened, self._progress = request, opened, progress
        self._clock, self._before, self._tell, self._better = clock, tuple(before), tell, better
        self._listed, self._facts, dataset = _listed(
            request, opened, timed=clock.minutes is not None
        )
        self._parts = {name: len(part) for name, part in dataset.parts.items()}
        self._pictures = self._parts["train"] + self._parts["val"]
        self._pool = Pool.of(dataset, POOL)
        is_small = len(self._pool.part) <= ROUGH
        self._rough = self._pool if is_small else Pool.of(dataset, ROUGH)
        self._trials: list[_Trial] = []
        self._features: dict[str, Mapping[str, Features]] = {}
        self._rates: dict[str, _Rate] = {}
        """By network."""
        self._failed: dict[str, str] = {}
        self._possible, self._epoch = 0, 0.0
        """Of the training that was last given up for want of time: epochs that are possible, and
        seconds that one of all pictures takes."""
        self._direct: _Trial | None = None
        """The one that is trained without having been tried."""

    def run(self) -> Chosen | None:
        """Try all; None if none came to an end."""
        probes = [each for each in self._listed if each.is_probe]
        names = [each.name for each in self._listed]
        if probes:
            names.append("the best probe fine-tuned, if it can gain by it")
        self._progress.say(
            f"trying on {len(self._pool.part)} pictures of train and val: {'; '.join(names)}"
        )
        others = [each for each in self._listed if not each.is_probe]
        for family in dict.fromkeys(each.family for each in probes):
            self._add_best([each for each in probes if each.family == family], others)
            others = []
        for candidate in others:
            self._try_shortened(candidate)
        self._fine_tune()
        self._go_further()
        return self.chosen()

    def failed(self, name: str, why: str) -> None:
        """Take a candidate out of the contest that could not be trained after all."""
        self._failed[name] = why
        for trial in self._trials:
            base = trial.base
            if trial.candidate.name == name or (base is not None and base.judged is None):
                trial.judged = None

    def chosen(self) -> Chosen | None:
        """The best candidate, and why the others lost; None if there is none."""
        best = self._leader()
        if best is None:
            return None
        told = []
        for trial in self._trials:
            outcome, why = trial.tried.outcome, trial.tried.why
            if trial is best:
                outcome, why = CHOSEN, "the most accurate out of fold"
            elif trial.candidate.name in self._failed:
                outcome, why = FAILED, self._failed[trial.candidate.name]
            elif trial.judged is not None and best.judged is not None:
                why = self._against(trial, best)
            told.append(dataclasses.replace(trial.tried, outcome=outcome, why=why))
        found, name = self._record(told), best.candidate.name
        others = f"best of {len(told)} " if len(told) > 1 else ""
        reason = (
            f"{others}tried on {found.pictures} pictures of train and val, "
            f"{best.tried.accuracy:.4f} out of fold ({found.seconds:.0f} s)"
        )
        request = self._asked(best.candidate)
        return Chosen(name, request, found, reason, self._features.get(name))

    def untried(self, begun: str = "") -> Chosen | None:
        """What there was no time to try, if what is left of it suffices to train it at once.

        That is fine-tuning of the best, or a network from scratch; one that was ``begun`` is gone
        on with. :meth:`settle` is told what came of it.
        """
        best = self._leader()
        judged = {each.candidate.recipe for each in self._trials if each.tried.n}
        for trial in reversed(self._trials):
            candidate = trial.candidate
            if trial.tried.outcome != LATE or candidate.is_probe or candidate.recipe in judged:
                continue
            if trial.base is not None:
                candidate = fine_tuned(trial.base.candidate, self._facts)
            if trial.base not in (None, best):
                continue
            if begun == candidate.name or self._can_be_trained(candidate, trial.epoch):
                self._direct = trial
                reason = "there was no time to try it; it is trained in the time that is left"
                found = self._record([each.tried for each in self._trials])
                return Chosen(candidate.name, self._asked(candidate), found, reason)
        return None

    def settle(self, accuracy: float, why: str, *, won: bool) -> Choice:
        """Record what came of the one that was trained without a trial.

        Args:
            accuracy: On val; NaN if it could not be trained.
            why: How it did beside the best of those that were tried.
            won: Whether it is the run's model now.
        """
        found, direct = self.chosen(), self._direct
        assert found is not None and direct is not None
        direct.tried = dataclasses.replace(
            direct.tried,
            n=0 if math.isnan(accuracy) else self._parts["val"],
            accuracy=accuracy,
            outcome=CHOSEN if won else WORSE,
            why=why,
        )
        told = []
        for trial, tried in zip(self._trials, found.choice.tried, strict=True):
            lost = won and tried.outcome == CHOSEN
            if lost:
                tried = dataclasses.replace(tried, outcome=WORSE, why="less accurate on val")
            told.append(direct.tried if trial is direct else tried)
        return self._record(told)

    def _record(self, tried: Sequence[Tried]) -> Choice:
        return Choice(
            pictures=len(self._pool.part),
            folds=FOLDS,
            seconds=round(sum(each.seconds for each in tried), 2),
            tried=tuple(tried),
        )

    # --- the contest -------------------------------------------------------------------------

    def _leader(self) -> _Trial | None:
        within = [each for each in self._trials if each.judged is not None]
        return min(within, key=self._worth) if within else None

    def _worth(self, trial: _Trial) -> tuple[float, float]:
        """Error with all pictures to learn from, as far as the trials tell; and the loss."""
        assert trial.judged is not None
        if trial.base is not None and trial.beside is not None:
            here = trial.judged.held_out & trial.beside.held_out
            mine, theirs = (
                float((~each.correct[here]).sum()) for each in (trial.judged, trial.beside)
            )
            ratio = (mine + 0.5) / (theirs + 0.5) / self._growth(trial.pool, trial.base)
            return self._worth(trial.base)[0] * ratio, trial.judged.loss
        here = trial.judged.held_out
        if trial.pool is self._pool:
            here = np.all([each.held_out for each in self._rivals()], axis=0)
        error = 1 - float(trial.judged.correct[here].mean())
        if not trial.candidate.is_probe:
            error /= max(1.0, self._pictures / len(self._pool.part)) ** GROWTH
        return error, trial.judged.loss

    def _growth(self, pool: Pool, base: _Trial) -> float:
        """What fine-tuning gains over its probe by all pictures, where it was tried on fewer."""
        if not base.candidate.is_probe:
            return 1.0
        return float(max(1.0, self._pictures / len(pool.part)) ** TUNED_GROWTH)

    def _against(self, trial: _Trial, best: _Trial) -> str:
        """Why a candidate lost."""
        assert trial.judged is not None and best.judged is not None
        if trial.base is not None and trial.beside is not None:
            return f"beside {trial.base.candidate.name}: " + difference(trial.judged, trial.beside)
        other = best
        while other.base is not None:
            other = other.base
        if other is trial:
            assert best.beside is not None
            return difference(best.beside, best.judged)
        assert other.judged is not None
        if trial.pool is not other.pool:
            return "less accurate, as far as other pictures can tell"
        return difference(trial.judged, other.judged)

    # --- what is tried -----------------------------------------------------------------------

    def _add_best(self, sizes: Sequence[Candidate], others: Sequence[Candidate]) -> None:
        """Try sizes of one network while they get better; the best of them is in the contest.

        Of one network's sizes the loss decides: right or wrong tells them apart less well. After
        the first one the ``others`` are tried: where one of them is far ahead, larger sizes of the
        network, which cost most, are spared.
        """
        best: _Trial | None = None
        for candidate in sizes:
            trial = self._try(candidate, self._pool)
            for other in others:
                self._try_shortened(other)
            others = ()
            if trial.judged is None:
                break
            if best is not None and trial.tried.loss >= best.tried.loss:
                self._lost(trial, f"a higher loss than {best.candidate.name}")
                break
            if best is not None:
                self._lost(best, f"a higher loss than {candidate.name}")
            best = trial
            if self._is_far_behind(trial):
                break

    def _is_far_behind(self, trial: _Trial) -> bool:
        """Whether even half a candidate's error would be more than that of the best."""
        best = self._leader()
        if best is None or best is trial or best.pool is not trial.pool:
            return False
        assert best.judged is not None and trial.judged is not None
        here = best.judged.held_out & trial.judged.held_out
        return is_hopeless(1 - trial.judged.accuracy, best.judged.correct[here], LOOK)

    def _try_shortened(self, candidate: Candidate) -> None:
        """Try a network from scratch, with fewer epochs if there is no time for all."""
        trial = self._try(candidate, self._pool)
        if trial.tried.outcome != LATE:
            return
        done = self._done()
        if done is not None and done.recipe == candidate.recipe:
            self._try(_as_before(candidate, done), self._pool)
        elif done is None and trial.possible:
            self._try(with_epochs(candidate, trial.possible), self._pool)

    def _fine_tune(self) -> None:
        """Try to fine-tune the network of the best probe, where that may be the best of all."""
        probes = [t for t in self._trials if t.judged is not None and t.candidate.is_probe]
        if not probes:
            return
        base = min(probes, key=self._worth)
        assert base.judged is not None
        wrong = (1 - base.judged.accuracy) * len(self._rough.part)
        if wrong < FEWEST_WRONG or self._is_far_behind(base):
            return
        beside: Answers | None = base.judged
        if self._rough is not self._pool:
            beside = self._try(base.candidate, self._rough, aside=True).beside
        if beside is not None:
            candidate = self._in_time(fine_tuned(base.candidate, self._facts), self._rough)
            self._try(candidate, self._rough, base=base, beside=beside)

    def _in_time(self, candidate: Candidate, pool: Pool) -> Candidate:
        """The candidate with as many epochs as there is time for, if that is not too few."""
        if self._clock.minutes is None:
            return candidate
        done = self._done()
        if done is not None:
            return _as_before(candidate, done)
        epochs = self._job(candidate).config.epochs
        while epochs > FEWEST and self._no_time(with_epochs(candidate, epochs), pool):
            epochs -= 1
        return with_epochs(candidate, epochs)

    def _go_further(self) -> None:
        """With time given and left, try the best one with more epochs, if it is one that trains."""
        best = self._leader()
        if best is None or self._clock.minutes is None:
            return
        if not best.candidate.is_probe and self._worth(best)[0]:
            epochs = self._job(best.candidate).config.epochs
            candidate = with_epochs(best.candidate, LONGER * epochs)
            self._try(candidate, best.pool, base=best, beside=best.judged)

    def _lost(self, trial: _Trial, why: str) -> None:
        trial.judged = None
        trial.tried = dataclasses.replace(trial.tried, why=why)

    # --- a trial -----------------------------------------------------------------------------

    def _try(
        self,
        candidate: Candidate,
        pool: Pool,
        *,
        base: _Trial | None = None,
        beside: Answers | None = None,
        aside: bool = False,
    ) -> _Trial:
        """Try a candidate, unless that was done before, and tell what came of it.

        One tried ``aside`` is not in the contest: its answers are ``beside`` those of another.
        """
        done = self._done()
        if done is not None and done.name == candidate.name:
            if done.outcome == CHOSEN and not done.answers:  # not tried, but trained; not taken yet
                done = dataclasses.replace(done, outcome=LATE, n=0, accuracy=math.nan)
            judged = Answers.read(done) if done.outcome in (WORSE, CHOSEN) else None
            if aside:
                judged, beside = None, judged
            trial = _Trial(candidate, done, pool, judged, base, beside)
            self._trials.append(trial)
            size = candidate.settings.get("size")
            if candidate.is_probe and done.n and size:
                self._rates[candidate.family] = _Rate(int(size), done.seconds / len(pool.part), 0.0)
            return trial
        leader, start, self._possible = self._leader(), time.perf_counter(), 0
        self._epoch = 0.0
        rival = max(self._rivals(), key=lambda each: each.accuracy, default=None)
        judged = None
        outcome, why, neighbours = WORSE, "", math.nan
        try:
            if why := self._no_time(candidate, pool):
                outcome = LATE
            elif candidate.is_probe:
                judged, neighbours = self._probe(candidate, pool)
            else:
                judged, outcome, why = self._train(candidate, pool, beside or rival, base)
        except Interrupted:
            raise
        except (FieldmarkError, MemoryError) as error:
            outcome, why = FAILED, str(error)
        seconds = time.perf_counter() - start
        tried = Tried(
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
            answers="" if judged is None else judged.text,
        )
        judged = judged if outcome == WORSE else None
        if aside:
            tried = dataclasses.replace(
                tried, why=tried.why or "what is added to it is beside this"
            )
            judged, beside = None, judged
        trial = _Trial(candidate, tried, pool, judged, base, beside, self._possible, self._epoch)
        self._trials.append(trial)
        result = why if not tried.n else f"{tried.accuracy:.4f} (n = {tried.n})"
        self._progress.say(f"tried {candidate.name}: {result}, {seconds:.1f} s")
        self._tell(self._record([each.tried for each in self._trials]))
        if self._leader() is not leader and candidate.name in self._features:
            found = self.chosen()
            assert found is not None
            self._better(found)
        return trial

    def _done(self) -> Tried | None:
        """The next trial, if it was made before an interruption."""
        place = len(self._trials)
        return self._before[place] if place < len(self._before) else None

    def _rivals(self) -> list[Answers]:
        """The answers in the contest that are for the same pictures."""
        within = [t for t in self._trials if t.base is None and t.pool is self._pool]
        return [t.judged for t in within if t.judged is not None]

    def _asked(self, candidate: Candidate) -> TrainRequest:
        """The request, with a candidate's recipe and settings."""
        settings = {**candidate.settings, **_given(self._request)}
        return dataclasses.replace(self._request, recipe=candidate.recipe, settings=settings)

    def _job(self, candidate: Candidate) -> Job:
        request = self._asked(candidate)
        job = prepare(request, progress=self._progress, opened=self._opened)
        # As the run computes: another number of threads would be another order of sums.
        torch.set_num_threads(job.config.threads)
        job.device.prepare()
        return job

    def _probe(self, candidate: Candidate, pool: Pool) -> tuple[Answers, float]:
        """Compute features once, and solve the head for each fold."""
        job = self._job(candidate)
        if pool.is_whole:
            found = extract(job, Prepared.of(job), self._progress)
            self._features[candidate.name] = found
            values = torch.cat([found["train"].values, found["val"].values])
        else:
            dataset = _with(job.dataset, train=pool.part, val=pool.part)
            part = dataclasses.replace(job, dataset=dataset)
            found = extract(part, Prepared.of(part), self._progress, splits=("train",))
            values = found["train"].values
        seconds, start = sum(each.seconds for each in found.values()), time.perf_counter()
        labels = torch.from_numpy(pool.part.labels)
        count = len(job.dataset.class_names)
        with probe.threads_for(values.numel() * count):
            logits = probe.out_of_fold(values, labels, pool.fold, num_classes=count)
            near = probe.neighbours(values, labels, pool.fold)
        count = len(values)
        self._rates[candidate.family] = _Rate(
            job.network.input.size, seconds / count, (time.perf_counter() - start) / count
        )
        return Answers.of(logits.numpy(), pool.part.labels), near

    def _train(
        self, candidate: Candidate, pool: Pool, rival: Answers | None, base: _Trial | None
    ) -> tuple[Answers | None, str, str]:
        """Train without one fold, then without the others where the first leaves it open.

        One that adds training to another (``base``) has to be better from the first fold on.

        Returns:
            Its answers, how it ended, and why, if it was stopped.
        """
        logits: F64 | None = None
        labels = pool.part.labels
        for held_out in range(FOLDS):
            here = pool.fold == held_out
            if not here.any() or here.all():
                continue
            job = self._job(candidate)
            dataset = _with(
                job.dataset,
                train=pool.part.take(np.flatnonzero(~here)),
                val=pool.part.take(np.flatnonzero(here)),
            )
            start = time.perf_counter()
            job = dataclasses.replace(job, dataset=dataset)
            answers, outcome, why = self._trained(job, here, rival, more=held_out > 0)
            if logits is None:
                logits = np.full((len(labels), answers.shape[1]), math.nan)
            if held_out and outcome == LATE:
                return Answers.of(logits, labels), WORSE, ""
            logits[here] = answers
            judged = Answers.of(logits, labels)
            if outcome != WORSE:
                return judged, outcome, why
            if rival is None or not is_close(judged, rival):
                break
            if base is not None:
                both = judged.held_out & rival.held_out
                mine, theirs = ((~each.correct[both]).sum() for each in (judged, rival))
                if mine >= theirs * self._growth(pool, base):
                    break
            seconds = time.perf_counter() - start
            final = seconds * self._parts["train"] / len(dataset.parts["train"])
            if not self._has_time((FOLDS - 1) * seconds + final):
                break
        assert logits is not None
        return Answers.of(logits, labels), WORSE, ""

    def _trained(
        self, job: Job, here: Bools, rival: Answers | None, *, more: bool
    ) -> tuple[F64, str, str]:
        """Train on one division; stop where even half the error would be too much, or too late.

        Returns:
            Logits of the pictures held out [M, K], how it ended, and why, if it was stopped.
        """
        prepared = Prepared.of(job)
        validate = Validation(job, prepared.val)
        epochs = prepared.plan.epochs
        if job.config.probe:
            solve_head(job, prepared, self._progress)
        start = time.perf_counter()
        for event in fit(
            prepared.state,
            prepared.batches,
            prepared.plan,
            validate=validate,
            calm=prepared.before_scores,
        ):
            if not isinstance(event, EpochRecord):
                continue
            self._progress.count("trying by training, epoch", event.epoch, epochs)
            self._clock.tick()
            if not math.isfinite(event.val_loss):
                raise DivergedError("the validation loss is not a number")
            if event.epoch == epochs:
                break
            one = (time.perf_counter() - start) / event.epoch
            all_of_it = 0.0 if more else one * self._parts["train"] / int((~here).sum())
            needed = one * (epochs - event.epoch) + epochs * all_of_it
            if not self._has_time(needed):
                self._possible = self._epochs_in_time(epochs, one + all_of_it)
                self._epoch = all_of_it
                why = (
                    f"no time left for it: {epochs} epochs take about {one * epochs:.0f} s here, "
                    f"and {all_of_it * epochs:.0f} s on all pictures"
                )
                return validate.logits, LATE, why
            error = 1 - event.val_accuracy
            if rival is None:
                continue
            known = rival.correct[here & rival.held_out]
            if len(known) and is_hopeless(error, known, event.epoch / epochs):
                needed = 1 - float(known.mean())
                why = (
                    f"stopped after epoch {event.epoch} of {epochs}: wrong about {error:.0%} of "
                    f"{here.sum()} pictures, another candidate about {needed:.0%}"
                )
                return validate.logits, STOPPED, why
        return validate.logits, WORSE, ""

    # --- time --------------------------------------------------------------------------------

    def _no_time(self, candidate: Candidate, pool: Pool) -> str:
        """Why there is no time for a candidate, as far as is known; empty if there is."""
        if self._clock.minutes is None:
            return ""
        rate, size = self._rates.get(candidate.family), candidate.settings.get("size")
        if rate is None or not size:
            if not self._trials or self._has_time(UNKNOWN * 60 * self._clock.minutes):
                return ""
            return "no time left to find out how long it takes"
        one, head = rate.at(int(size)), rate.head
        trial, final = len(pool.part) * (one + head), self._pictures * (one + head)
        if not candidate.is_probe:
            epochs = int(candidate.settings.get("epochs", 0))
            trial += TRAINING * epochs * one * len(pool.part) * (FOLDS - 1) / FOLDS
            final += TRAINING * epochs * one * self._parts["train"]
        elif pool.is_whole:
            final = self._pictures * head
        if self._has_time(trial + final, scored_at=one):
            return ""
        return f"no time left for it: it takes about {trial + final:.0f} s"

    def _can_be_trained(self, candidate: Candidate, epoch: float) -> bool:
        """Whether there is time to train it with enough of its epochs, without a trial."""
        rate, size = self._rates.get(candidate.family), candidate.settings.get("size")
        if rate is not None and size:
            one = rate.at(int(size))
            epoch = TRAINING * one * self._parts["train"]
            before = self._pictures * (one + rate.head)
        elif epoch:
            before = 0.0
        else:
            return False
        epochs = self._job(candidate).config.epochs
        return self._epochs_in_time(epochs, epoch, before=before) > 0

    def _epochs_in_time(self, epochs: int, seconds: float, *, before: float = 0.0) -> int:
        """Number of epochs of so many seconds that there is time for; 0 for too few of them."""
        least = max(FEWEST, math.ceil(epochs * SHORTEST))
        fitting = (
            n for n in range(epochs - 1, least - 1, -1) if self._has_time(before + n * seconds)
        )
        return next(fitting, 0)

    def _has_time(self, seconds: float, *, scored_at: float | None = None) -> bool:
        """Whether so much can be done before the scores and the report have to be begun.

        ``scored_at`` is what a picture takes then; by default as long as with the leader.
        """
        if scored_at is None and (best := self._leader()) is not None:
            rate, size = self._rates.get(best.candidate.family), best.candidate.settings.get("size")
            scored_at = rate.at(int(size)) if rate is not None and size else None
        scores = (scored_at or 0.0) * (self._parts["val"] + self._parts.get("test", 0))
        return seconds + scores + REPORT <= self._clock.left


def _as_before(candidate: Candidate, tried: Tried) -> Candidate:
    """The candidate with the number of epochs that it was tried with before an interruption."""
    return dataclasses.replace(candidate, name=tried.name, settings=tried.settings)


def _given(request: TrainRequest) -> dict[str, object]:
    """What was given beside a candidate's own settings."""
    return {
        name: value
        for name, value in request.settings.items()
        if value != "auto" and name not in ("model", "weights")
    }


def _with(dataset: Dataset, **parts: Part) -> Dataset:
    facts = dataclasses.replace(dataset.facts, num_train=len(parts["train"]))
    return dataclasses.replace(dataset, parts=parts, facts=facts)
