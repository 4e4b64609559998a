"""The doctor of the training: what is wrong, by which figures, and what to do about it.

Plain values in, findings out: nothing here reads, trains or prints. A finding needs two things: a
test that chance hardly passes (``STRICT_P``, or stricter where many epochs were looked at), and a
difference that matters. What cannot be told with so few pictures is not said.

Some questions need more than the record: training pictures scored as validation is, without
augmentation and dropout; the same with statistics of batch norm that are estimated anew; a few
steps on one batch. :func:`missing` names the measurement that would decide next, so that whoever
measures (``jobs/examine.py``) pays only where there is suspicion.

``docs/doctor.md`` lists every code with its cause and its remedy.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fieldmark.files.typed import STRICT, Number, Text
from fieldmark.names import shown
from fieldmark.scoring.metrics import confusion, cross_entropy
from fieldmark.scoring.significance import (
    Agreement,
    Counted,
    Higher,
    above,
    agreement,
    higher,
    mcnemar,
    rising,
)
from fieldmark.seeding import F64, I64
from fieldmark.settings.config import TrainConfig
from fieldmark.settings.resolved import hardest

if TYPE_CHECKING:
    from fieldmark.fit.state import EpochRecord

STRICT_P = 0.001
"""Largest probability of what is found, if it were chance."""
LEARNED_P = 0.01
"""Largest probability at which answers count as better than chance."""
GAP = 0.05
"""Difference of accuracies that matters, where something is said to be broken."""
FAR = 0.1
"""Difference between training and validation that matters."""
FLAT = 0.97
"""Share of the loss of constant answers from which on a loss has not fallen."""
CHANCE = 0.25
"""Kappa below which answers count as chance, if as many pictures could have shown more."""
LISTED = 5
"""Class names in a sentence."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is wrong."""

    __pydantic_config__ = STRICT

    code: Text
    """Stable name of what is wrong; ``docs/doctor.md`` lists them."""
    cause: Text
    """What it is, in one sentence."""
    evidence: Text
    """The figures that show it, with the numbers of pictures."""
    next: Text
    """What to do: a command, a flag or a setting."""
    figures: Mapping[Text, Number]
    """The figures of the evidence, for programs."""

    def __str__(self) -> str:
        """All of it in one line."""
        return f"{self.code}: {self.cause} ({self.evidence}). Next: {self.next}"


@dataclass(frozen=True, eq=False)
class Answers:
    """A network's answers to the pictures of a split."""

    table: I64
    """[K, K] pictures by true and answered class."""
    loss: float = math.nan
    """Their cross entropy."""

    @classmethod
    def of(cls, logits: F64, labels: I64) -> Answers:
        """From logits [N, K] and labels [N]."""
        table = confusion(labels, logits.argmax(axis=1), logits.shape[1])
        return cls(table, cross_entropy(logits, labels))

    @property
    def n(self) -> int:
        """Pictures."""
        return int(self.table.sum())

    @property
    def right(self) -> int:
        """Right answers."""
        return int(np.trace(self.table))

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return self.right / self.n

    @property
    def balanced(self) -> float:
        """Mean share of right answers over the classes."""
        n = self.table.sum(axis=1)
        return float((np.diag(self.table)[n > 0] / n[n > 0]).mean())

    @property
    def by_class(self) -> list[Counted]:
        """Right answers and pictures of each class."""
        n = self.table.sum(axis=1).tolist()
        return list(zip(np.diag(self.table).tolist(), n, strict=True))

    @property
    def constant_loss(self) -> float:
        """Least cross entropy of answers that are the same for all these pictures."""
        shares = self.table.sum(axis=1) / self.n
        shares = shares[shares > 0]
        return float(-(shares * np.log(shares)).sum())

    @property
    def said(self) -> I64:
        """[K] how often each class was answered."""
        return np.asarray(self.table.sum(axis=0), dtype=np.int64)

    @property
    def chance(self) -> Agreement:
        """Whether they have to do with the classes at all."""
        return agreement(self.table)


@dataclass(frozen=True)
class Trial:
    """Some steps on one batch of training pictures, with several learning rates."""

    pictures: int
    steps: int
    constant: float
    """Loss of answers that are the batch's shares of classes."""
    losses: Mapping[float, float]
    """Loss at the end by the factor of the learning rate; infinite where it diverged."""
    first: float = math.inf
    """Loss of the first step."""
    moved: bool = True
    """Whether any gradient reached any weight."""

    @property
    def learned(self) -> tuple[float, ...]:
        """Factors with which the batch was learned, the nearest to 1 first."""
        found = [f for f, loss in self.losses.items() if loss < TRIAL_LEARNED * self.constant]
        return tuple(sorted(found, key=lambda factor: abs(math.log(factor))))


SOONER = 0.6
"""Share of a trial's loss that another learning rate has to come below to be the better one."""
TRIAL_LEARNED = 0.75
"""Share of the loss of constant answers below which a batch counts as learned."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is known of a training; measurements are None until they are made."""

    config: TrainConfig
    class_names: tuple[str, ...]
    counts: tuple[int, ...]
    """Training pictures of each class."""
    num_val: int
    history: tuple[EpochRecord, ...]
    kept: int
    """Epoch whose weights are kept."""
    subject: int | None = None
    """Epoch whose weights are measured: the last one where only that is suspicious."""
    steps: int = 0
    """Optimizer steps in an epoch of all pictures."""
    conflicting: int = 0
    """Training pictures that are there under another label, too."""
    incidents: tuple[str, ...] = ()
    rolled_back: bool = False
    diverged: str = ""
    """Why training ended, if it diverged for good."""
    has_norms: bool = False
    """Whether the network keeps statistics of batches."""
    momentum: float = 0.0
    """Share of a step in their running averages; the least of all layers."""
    average: bool = False
    """Whether a moving average of the weights is scored."""
    val_is_test: bool = False
    val: Answers | None = None
    test: Answers | None = None
    train: Answers | None = None
    """Training pictures in scoring mode."""
    same_input: bool = False
    """Whether these pictures are all the same to the network."""
    same_output: bool = False
    """Whether it gives the same outputs for all of them."""
    fresh_train: Answers | None = None
    """The same pictures, with statistics of batch norm estimated anew."""
    fresh_val: Answers | None = None
    mended: tuple[int, int] = (0, 0)
    """Training pictures that are right with fresh statistics only, and without them only."""
    mended_val: tuple[int, int] = (0, 0)
    """The same of validation."""
    raw: Answers | None = None
    """The same pictures with the last weights themselves, in place of their average."""
    in_training: Answers | None = None
    """The same pictures in training mode: statistics of the batch, dropout."""
    trial: Trial | None = None
    measured: frozenset[str] = frozenset()
    """Measurements that were asked for, whether they could be made or not."""

    @property
    def epochs(self) -> tuple[EpochRecord, ...]:
        """The epochs without the probe."""
        return tuple(record for record in self.history if record.epoch > 0)

    @property
    def record(self) -> EpochRecord | None:
        """The record of the epoch whose weights are measured."""
        return self.record_of(self.kept if self.subject is None else self.subject)

    def record_of(self, epoch: int) -> EpochRecord | None:
        """The record of an epoch."""
        return next((record for record in self.history if record.epoch == epoch), None)

    def trained(self, epoch: int) -> int:
        """Pictures that an epoch trained on."""
        total = sum(self.counts)
        return hardest(self.config.hardest).count(total, epoch - 1) if epoch else total


# --- what a constant answer reaches ----------------------------------------------------------


def constant_loss(case: Case) -> float | None:
    """Least training loss of answers that are the same for all pictures; None if not comparable."""
    config = case.config
    other = config.loss != "cross_entropy" or config.l2 or config.hardest not in ("", "none")
    if other or not case.counts:
        return None
    counts = np.array(case.counts, dtype=np.float64)
    k = len(counts)
    shares = np.full(k, 1 / k) if config.balance else counts / counts.sum()
    weights = np.ones(k)
    if config.class_weights != "none":
        text = config.class_weights
        weights = (
            1 / np.maximum(counts, 1)
            if text == "balanced"
            else np.array([float(part) for part in text.split(",")])
        )
        weights = weights * counts.sum() / (weights * counts).sum()
    mass = weights * ((1 - config.label_smoothing) * shares + config.label_smoothing / k)
    mass = mass[mass > 0]
    return float(-(mass * np.log(mass / mass.sum())).sum())


def _commonest(case: Case) -> float:
    """Accuracy in training of always answering the commonest class."""
    if case.config.balance:
        return 1 / len(case.counts)
    return max(case.counts) / max(1, sum(case.counts))


def _learned_in_training(case: Case) -> bool:
    """Whether some epoch's training accuracy is above that of the best constant answer."""
    share, tries = _commonest(case), max(1, len(case.history))
    return any(
        above(round(r.train_accuracy * n), n, share) < LEARNED_P / tries
        for r in case.history
        if math.isfinite(r.train_accuracy) and (n := case.trained(r.epoch))
    )


def _flat(case: Case) -> bool:
    """Whether the training loss never came below that of constant answers."""
    constant, losses = constant_loss(case), [r.train_loss for r in case.epochs]
    return constant is not None and bool(losses) and min(losses) >= FLAT * constant


def stalls(case: Case) -> bool:
    """Whether the loss stopped falling halfway, with most of it left, at a rate that was kept."""
    constant, records = constant_loss(case), case.epochs
    if constant is None or len(records) < 5:
        return False
    losses, half = [r.train_loss for r in records], len(records) // 2
    middle = records[half:]
    held = middle[0].lr >= 0.3 * max(r.lr for r in records)
    fell, left = min(losses) < FLAT * constant, losses[-1] >= 0.4 * constant
    return held and fell and left and min(losses[half:]) >= 0.95 * min(losses[:half])


def _is_chance(answers: Answers) -> bool:
    """Whether answers are chance, and so many pictures would have shown more."""
    if np.count_nonzero(answers.said) == 1:
        share = float(answers.table[answers.said.argmax()].sum()) / answers.n
        return share**answers.n < STRICT_P
    found = answers.chance
    return found.p >= LEARNED_P and found.kappa + found.half < CHANCE


def _not_learned(case: Case) -> bool:
    """Whether nothing was learned: neither of training pictures nor of validation."""
    if not case.epochs or _learned_in_training(case):
        return False
    if case.val is None or case.train is None:
        return False
    if case.val.chance.p < LEARNED_P or case.train.chance.p < LEARNED_P:
        return False
    if case.train.loss < FLAT * case.train.constant_loss:
        return False  # surer of the right class than shares of classes are: it is on its way
    return _flat(case) or _is_chance(case.train)


# --- comparisons -----------------------------------------------------------------------------


def _recorded(case: Case, record: EpochRecord) -> tuple[Counted, Counted]:
    """Right answers and pictures of training and validation, by the record."""
    n = case.trained(record.epoch)
    return (
        (round(record.train_accuracy * n), n),
        (round(record.val_accuracy * case.num_val), case.num_val),
    )


def _finite(record: EpochRecord | None) -> bool:
    return record is not None and math.isfinite(record.train_accuracy + record.val_accuracy)


def far_above(case: Case, record: EpochRecord | None) -> bool:
    """Whether an epoch's training accuracy is far above its validation accuracy."""
    if record is None or not _finite(record):
        return False
    train, val = _recorded(case, record)
    found = higher([train], [val])
    return found.value >= FAR and found.p < STRICT_P


def _below_record(case: Case, answers: Answers) -> Higher:
    """How far training pictures in scoring mode are below what training itself recorded."""
    record = case.record
    if record is None or not math.isfinite(record.train_accuracy):
        return Higher(0.0, 1.0)
    n = case.trained(record.epoch)
    # Balanced training sees every class equally often, and so is what it is compared with.
    share = answers.balanced if case.config.balance else answers.accuracy
    return higher([(round(record.train_accuracy * n), n)], [(round(share * answers.n), answers.n)])


def fails_in_scoring(case: Case) -> bool:
    """Whether training pictures that training got right are wrong in scoring mode."""
    record = case.record
    if case.train is None or record is None or record.epoch == 0:
        return False
    found = _below_record(case, case.train)
    return found.value >= GAP and found.p < STRICT_P


def _recovers(case: Case, other: Answers | None) -> bool:
    """Whether the same pictures, scored otherwise, make up for at least half of what is lost."""
    if case.train is None or other is None:
        return False
    lost = _below_record(case, case.train).value
    return other.accuracy - case.train.accuracy >= lost / 2


def _val_loss_rises(case: Case) -> bool:
    """Whether the validation loss rose steadily, and by much, after its least value."""
    losses = [r.val_loss for r in case.epochs]
    if len(losses) < 6 or not all(map(math.isfinite, losses)):
        return False
    least = min(range(len(losses)), key=losses.__getitem__)
    after = losses[least:]
    last = after[-max(1, len(after) // 3) :]
    return (
        len(after) >= 5
        and rising(after) < LEARNED_P
        and sum(last) / len(last) >= 1.2 * losses[least]
    )


def _ignored(case: Case) -> list[int]:
    """Classes that are never answered for validation, where their number makes that no chance."""
    if case.val is None:
        return []
    table, found = case.val.table, []
    n, right, k = table.sum(axis=1), np.diag(table), len(table)
    for label in range(k):
        others = int(n.sum() - n[label])
        if n[label] == 0 or others == 0 or case.val.said[label]:
            continue
        recall = float(right.sum() - right[label]) / others
        if (1 - recall) ** int(n[label]) * k < STRICT_P:
            found.append(label)
    return found


def _only_class(case: Case) -> int | None:
    """The class that every validation picture is said to be, where that is no chance."""
    if case.val is None or np.count_nonzero(case.val.said) != 1:
        return None
    label = int(case.val.said.argmax())
    share = case.val.table[label].sum() / case.val.n
    return label if share < 1 and share**case.val.n < STRICT_P else None


def _selected(case: Case) -> int:
    """Epochs among which validation chose."""
    return 1 if case.config.keep == "last" else max(1, len(case.history))


# --- what to measure -------------------------------------------------------------------------


def subject(case: Case) -> int:
    """The epoch whose weights are to be measured: the kept one.

    Only where it is not suspicious, and the last one is, that: an early epoch is kept by chance
    where validation is at chance throughout.
    """
    if not case.epochs or far_above(case, case.record_of(case.kept)):
        return case.kept
    last = case.epochs[-1]
    return last.epoch if far_above(case, last) else case.kept


def missing(case: Case) -> str:
    """Name the measurement that would decide next; empty if the case is clear.

    ``train`` scores training pictures, ``fresh`` estimates statistics of batch norm anew, ``raw``
    takes the last weights in place of their average, ``mode`` is training mode, and ``trial``
    trains on one batch.
    """
    if case.val is None:
        return ""

    def open_(name: str, wanted: bool) -> bool:
        return wanted and name not in case.measured

    if open_("train", _suspicious(case)):
        return "train"
    fails = fails_in_scoring(case)
    if open_("fresh", fails and case.has_norms):
        return "fresh"
    fails = fails and not _recovers(case, case.fresh_train)
    if open_("raw", fails and case.average):
        return "raw"
    if open_("mode", fails and not _recovers(case, case.raw)):
        return "mode"
    stuck = _not_learned(case) and not case.same_input and not case.same_output
    return "trial" if open_("trial", stuck or stalls(case)) else ""


def _suspicious(case: Case) -> bool:
    """Whether training pictures have to be scored to tell what is wrong."""
    record = case.record
    if record is None or not _finite(record) or not case.history:
        return False
    train, val = _recorded(case, record)
    below = higher([val], [train])
    return (
        far_above(case, record)
        or (below.value >= GAP and below.p < STRICT_P)
        or not _learned_in_training(case)
        or bool(_ignored(case))
        or _only_class(case) is not None
        or _val_loss_rises(case)
    )


# --- findings --------------------------------------------------------------------------------


def diagnose(case: Case) -> tuple[Finding, ...]:
    """Find what is wrong with a training, the gravest first.

    What explains the rest stands alone: a network whose statistics are stale also answers with one
    class and overfits by its figures, but there is one thing to do.
    """
    found = [_diverged(case)] if case.diverged else _first(case, _ROOTS) or _all(case, _OTHERS)
    found += _all(case, _BESIDE)
    return tuple(_finite_figures(finding) for finding in found if finding is not None)


def during(case: Case) -> tuple[Finding, ...]:
    """Find what the records of the epochs so far show; the case needs no measurement."""
    return tuple(_all(case, (_not_finite, _too_high, _flat_so_far, _rolled_back, _conflicting)))


Rule = Callable[[Case], Finding | None]


def _first(case: Case, rules: Sequence[Rule]) -> list[Finding | None]:
    for rule in rules:
        if (found := rule(case)) is not None:
            return [found]
    return []


def _all(case: Case, rules: Sequence[Rule]) -> list[Finding]:
    return [found for rule in rules if (found := rule(case)) is not None]


def _share(right: int, n: int) -> str:
    return f"{right / n:.3f} (n = {n})"


def _of(answers: Answers) -> str:
    return _share(answers.right, answers.n)


def _trained(case: Case, record: EpochRecord) -> str:
    return _share(*_recorded(case, record)[0])


def _diverged(case: Case) -> Finding:
    return Finding(
        code="diverged",
        cause="the loss or the gradient stopped being a number",
        evidence=f"{case.diverged}; {len(case.epochs)} epochs were finished",
        next=f"try --lr {_fewer(case.config.lr)}, --warmup-epochs 1 or --clip-norm 1",
        figures={"lr": case.config.lr, "epochs": len(case.epochs)},
    )


def _not_finite(case: Case) -> Finding | None:
    bad = [r.epoch for r in case.epochs if not math.isfinite(r.val_loss)]
    if not bad:
        return None
    return Finding(
        code="not_finite",
        cause="in scoring mode the network's outputs are not numbers, though its training loss is",
        evidence=f"epochs {_numbers(bad)} of {len(case.epochs)} (n = {case.num_val})",
        next=f"try --lr {_fewer(case.config.lr)}, --precision f32 or --clip-norm 1",
        figures={"epochs": len(bad), "val_n": case.num_val},
    )


def stale(case: Case) -> Finding | None:
    """Statistics of batch norm that are not those of the weights."""
    train = case.train
    better, worse = case.mended
    if (
        train is not None
        and case.fresh_train is not None
        and fails_in_scoring(case)
        and _recovers(case, case.fresh_train)
        and mcnemar(better, worse) < STRICT_P
    ):
        record = case.record
        assert record is not None
        fresh_val = case.fresh_val
        beside = ""
        if fresh_val is not None:
            share = round(record.val_accuracy * case.num_val)
            beside = f"; validation {_share(share, case.num_val)}, then {fresh_val.accuracy:.3f}"
        return _stale_finding(
            case,
            f"training {_trained(case, record)}, the same pictures in scoring mode {_of(train)}, "
            f"with statistics estimated anew {case.fresh_train.accuracy:.3f}{beside}",
            {
                "train_accuracy": record.train_accuracy,
                "scoring_accuracy": train.accuracy,
                "scoring_n": train.n,
                "fresh_accuracy": case.fresh_train.accuracy,
            },
        )
    if case.val is None or case.fresh_val is None:
        return None
    better, worse = case.mended_val
    gain = case.fresh_val.accuracy - case.val.accuracy
    if gain < 0.01 or mcnemar(better, worse) >= LEARNED_P:
        return None
    return _stale_finding(
        case,
        f"validation {_of(case.val)}, with statistics estimated anew {case.fresh_val.accuracy:.3f}",
        {
            "val_accuracy": case.val.accuracy,
            "val_n": case.val.n,
            "fresh_accuracy": case.fresh_val.accuracy,
        },
    )


def _stale_finding(case: Case, evidence: str, figures: dict[str, float]) -> Finding:
    steps = case.history[-1].step
    arrived = case.momentum * steps >= 3  # what is left of the beginning is 5 %
    return Finding(
        code="stale_statistics",
        cause="the running statistics of batch norm are not those of the weights and pictures that "
        "are scored: "
        + (
            "they are of augmented pictures, or lag behind weights that change fast"
            if arrived
            else f"their averages move by {case.momentum:.2g} a step, and there were {steps} steps"
        ),
        evidence=evidence,
        next="give --norm-statistics fresh, which estimates them from training pictures before "
        "every scoring",
        figures={**figures, "steps": steps},
    )


def _lags(case: Case) -> Finding | None:
    if not (fails_in_scoring(case) and case.train and case.raw and _recovers(case, case.raw)):
        return None
    return Finding(
        code="average_lags",
        cause="the moving average of the weights is far behind the weights themselves",
        evidence=f"training pictures in scoring mode: the average {_of(case.train)}, the last "
        f"weights {case.raw.accuracy:.3f}; {case.history[-1].step} steps, ema {case.config.ema:g}",
        next=f"give a shorter memory, --ema {_shorter(case)}, or leave --ema out",
        figures={
            "scoring_accuracy": case.train.accuracy,
            "scoring_n": case.train.n,
            "raw_accuracy": case.raw.accuracy,
            "steps": case.history[-1].step,
        },
    )


def _shorter(case: Case) -> str:
    """A decay whose memory is a twentieth of the training."""
    steps = max(20, case.history[-1].step)
    return f"{min(case.config.ema, 1 - 20 / steps):.3g}" if steps > 40 else "0"


def _scoring(case: Case) -> Finding | None:
    if not (fails_in_scoring(case) and case.train):
        return None
    record = case.record
    assert record is not None
    evidence = f"training {_trained(case, record)}, training pictures in scoring mode "
    evidence += _of(case.train)
    figures = {
        "train_accuracy": record.train_accuracy,
        "scoring_accuracy": case.train.accuracy,
        "scoring_n": float(case.train.n),
    }
    if case.fresh_train is not None:
        evidence += f", with fresh statistics {case.fresh_train.accuracy:.3f}"
        figures["fresh_accuracy"] = case.fresh_train.accuracy
    if case.in_training is None or _recovers(case, case.in_training):
        if case.in_training is not None:
            evidence += f", in training mode {case.in_training.accuracy:.3f}"
        return Finding(
            code="scoring_mode",
            cause="the network answers otherwise in scoring mode than in training mode: a layer "
            "(dropout, norms) does something else there",
            evidence=evidence,
            next="choose a network with less dropout or with other norms by --model, or more "
            "--batch-size",
            figures=figures,
        )
    evidence += f", in training mode {case.in_training.accuracy:.3f}"
    return Finding(
        code="only_augmented",
        cause="the network knows augmented training pictures, and not the same ones as they are",
        evidence=f"{evidence}; augment {case.config.augment}, mix {case.config.mix}",
        next="weaken --augment, so that pictures as they are belong to what training shows",
        figures=figures,
    )


def _stuck(case: Case) -> Finding | None:
    """Nothing was learned; say as much of the reason as can be told."""
    if not _not_learned(case):
        return None
    train, val = case.train, case.val
    assert train is not None
    assert val is not None
    constant, last = constant_loss(case), case.epochs[-1]
    losses = [r.train_loss for r in case.epochs]
    evidence = f"training loss {losses[0]:.4g} to {losses[-1]:.4g}"
    evidence += "" if constant is None else f", constant answers {constant:.4g}"
    evidence += (
        f"; training accuracy {_trained(case, last)}, in scoring mode {_of(train)}, "
        f"the commonest class {_commonest(case):.3f}; validation {_of(val)}"
    )
    figures: dict[str, float] = {
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "train_accuracy": last.train_accuracy,
        "scoring_accuracy": train.accuracy,
        "scoring_n": train.n,
        "val_accuracy": val.accuracy,
        "val_n": val.n,
    }
    if constant is not None:
        figures["constant_loss"] = constant
    code, cause, remedy = _why_stuck(case)
    if case.trial is not None:
        evidence += f"; {_tried(case)}"
    return Finding(code=code, cause=cause, evidence=evidence, next=remedy, figures=figures)


def _why_stuck(case: Case) -> tuple[str, str, str]:
    """Code, cause and next step for a training that learned nothing."""
    lr, trial, steps = case.config.lr, case.trial, case.history[-1].step
    learned = trial.learned if trial is not None else ()
    rate = (
        f"give --lr {lr * learned[0]:.3g}, or let `fieldmark train DATA --find-lr` suggest one"
        if learned
        else ""
    )
    if case.same_input:
        code = "input_constant"
        cause = "to the network all training pictures are the same, so nothing can be learned"
        remedy = "look at preview.png, and check the pictures, --size, --resize and --range"
    elif case.same_output:
        code = "dead_network"
        cause = (
            "the network gives the same outputs for every picture, though the pictures differ: its "
            "activations have died, as they do after a learning rate that was too high, or its "
            "input is out of range"
        )
        remedy = (
            f"train anew with --lr {_fewer(lr)}, --warmup-epochs 1 or --clip-norm 1, and check "
            f"--normalize ({case.config.normalize})"
        )
    elif trial is not None and not trial.moved:
        code = "nothing_trains"
        cause = "no gradient reaches any weight, so nothing can change"
        remedy = (
            "check what is frozen (--freeze, --train-from, --freeze-after) and the network itself"
        )
    elif learned and learned[0] > 1:
        code, remedy = "lr_too_low", rate
        cause = "the learning rate is too low: the same network learns with a higher one"
    elif learned and learned[0] < 1:
        code, remedy = "lr_too_high", rate
        cause = "the learning rate is too high: the same network learns with a lower one"
    elif learned and steps <= FEW_STEPS:
        code = "too_few_epochs"
        cause = f"there were {steps} optimizer steps, too few to learn anything"
        remedy = "give more --epochs, or a smaller --batch-size"
    elif learned:
        code = "not_learning"
        cause = (
            "the loss does not fall though the network can learn some pictures by heart: the "
            "labels may not fit the pictures, or augmentation hides what they show"
        )
        remedy = (
            "check the labels of some training pictures (preview.png), then weaken --augment and "
            "--mix; if both are fine, choose a larger --model"
        )
    else:
        code = "not_learning"
        cause = "the loss does not fall below that of constant answers"
        remedy = (
            "let `fieldmark train DATA --find-lr` suggest a learning rate, check --normalize, or "
            "choose another --model"
        )
    return code, cause, remedy


FEW_STEPS = 60
"""Steps of a training that may simply have been too short."""


def _rate_stalls(case: Case) -> Finding | None:
    """The loss stopped falling, and falls again at once with a lower learning rate."""
    trial, constant = case.trial, constant_loss(case)
    if trial is None or constant is None or not stalls(case):
        return None
    if min(trial.losses.values()) > 0.8 * trial.first:
        return _stalled(case, trial, constant)
    lower = {loss: factor for factor, loss in trial.losses.items() if factor < 1}
    if not lower or min(lower) > SOONER * trial.losses.get(1.0, 0.0):
        return None
    factor, lr, last = lower[min(lower)], case.config.lr, case.epochs[-1]
    return Finding(
        code="lr_too_high",
        cause="the learning rate is too high: the training loss stopped falling, and a lower rate "
        "makes it fall again",
        evidence=f"training loss {last.train_loss:.4g} in epoch {last.epoch}, "
        f"{min(r.train_loss for r in case.epochs):.4g} at its least, constant answers "
        f"{constant:.4g}; {_tried(case)}",
        next=f"give --lr {lr * factor:.3g}, or a --schedule that ends low, such as cosine",
        figures={"last_loss": last.train_loss, "constant_loss": constant, "lr": lr},
    )


def _stalled(case: Case, trial: Trial, constant: float) -> Finding:
    """The loss stopped falling, and no learning rate makes it fall."""
    highest = max(case.epochs, key=lambda r: r.train_loss)
    burst = highest.train_loss > 3 * constant
    last, lr = case.epochs[-1], case.config.lr
    return Finding(
        code="stalled",
        cause="the training loss stopped falling with most of it left, and the network learns not "
        "even a few pictures further: "
        + (
            "a learning rate that was too high has damaged it"
            if burst
            else "it is too small for them, or a learning rate that was too high has damaged it"
        ),
        evidence=f"training loss {last.train_loss:.4g} in epoch {last.epoch}, constant answers "
        f"{constant:.4g}"
        + (f", {highest.train_loss:.4g} in epoch {highest.epoch}" if burst else "")
        + f"; accuracy {_trained(case, last)}; {_tried(case)}, {trial.first:.3g} at the start",
        next=f"train anew with --lr {_fewer(lr)} or --warmup-epochs 1"
        + ("" if burst else ", or with a larger --model"),
        figures={"last_loss": last.train_loss, "constant_loss": constant, "lr": lr},
    )


def _tried(case: Case) -> str:
    """What some steps on one batch came to."""
    if case.trial is None:
        return ""
    losses = ", ".join(
        f"lr {case.config.lr * factor:.3g}: {loss:.3g}"
        for factor, loss in sorted(case.trial.losses.items())
    )
    return (
        f"{case.trial.steps} steps on {case.trial.pictures} training pictures as they are, loss at "
        f"the end with {losses} (constant answers {case.trial.constant:.3g})"
    )


def _unrelated(case: Case) -> Finding | None:
    """Training pictures are known by heart, and nothing of it holds for validation."""
    if case.train is None or case.val is None or fails_in_scoring(case):
        return None
    known = case.train.chance
    if known.kappa < 0.5 or known.p >= STRICT_P or not _is_chance(case.val):
        return None
    if _only_class(case) is not None:
        return None
    return Finding(
        code="labels_unrelated",
        cause="training pictures are known by heart, and nothing of it holds for validation: the "
        "labels do not fit the pictures, the pictures show too little, or validation is of "
        "something else",
        evidence=f"training pictures in scoring mode {_of(case.train)}, validation {_of(case.val)}"
        f", kappa {case.val.chance.kappa:.2f}",
        next="check the labels of some pictures of both splits (preview.png, predictions.png), and "
        "how the folder is divided (--split)",
        figures={
            "scoring_accuracy": case.train.accuracy,
            "scoring_n": case.train.n,
            "val_accuracy": case.val.accuracy,
            "val_n": case.val.n,
        },
    )


def _one_class(case: Case) -> Finding | None:
    label = _only_class(case)
    if label is None or case.val is None:
        return None
    n = int(case.val.table[label].sum())
    train = "" if case.train is None else f"; in training {case.counts[label]} of "
    train += "" if case.train is None else f"{sum(case.counts)}"
    return Finding(
        code="one_class",
        cause=f"every validation picture is said to be {shown(case.class_names[label])}",
        evidence=f"{n} of {case.val.n} are{train}",
        next="give --balance or --class-weights balanced, more --epochs, or another --lr",
        figures={"val_n": case.val.n, "of_the_class": n},
    )


def _never(case: Case) -> Finding | None:
    labels = _ignored(case) if _only_class(case) is None else []
    if not labels or case.val is None:
        return None
    n = case.val.table.sum(axis=1)
    named = ", ".join(
        f"{shown(case.class_names[i])} ({case.counts[i]} training pictures, n = {n[i]})"
        for i in labels[:LISTED]
    )
    more = f" and {len(labels) - LISTED} more" if len(labels) > LISTED else ""
    return Finding(
        code="class_never_predicted",
        cause="some classes are never answered, though the others are recognised",
        evidence=f"{named}{more}; validation in all {_of(case.val)}",
        next="give --balance or --class-weights balanced, add pictures of these classes, and check "
        "their labels",
        figures={"classes": len(labels), "val_n": case.val.n},
    )


def _overfitting(case: Case) -> Finding | None:
    last = case.epochs[-1] if case.epochs else None
    if last is None or not _val_loss_rises(case) or not far_above(case, last):
        return None
    losses = [r.val_loss for r in case.epochs]
    least = min(range(len(losses)), key=losses.__getitem__)
    beside = "" if case.train is None else f"; training pictures in scoring mode {_of(case.train)}"
    fresh = case.config.weights != "none"
    return Finding(
        code="overfitting",
        cause="training pictures are learned by heart: validation is far below and its loss rises",
        evidence=f"epoch {last.epoch}: training {_trained(case, last)}, validation "
        f"{_share(*_recorded(case, last)[1])}; validation loss {losses[least]:.4g} in epoch "
        f"{case.epochs[least].epoch}, {losses[-1]:.4g} at the end{beside}",
        next=("" if fresh else "use pretrained weights (--recipe probe, or --weights), ")
        + "strengthen --augment, add pictures, or end sooner (--callbacks early_stopping)",
        figures={
            "train_accuracy": last.train_accuracy,
            "train_n": case.trained(last.epoch),
            "val_accuracy": last.val_accuracy,
            "val_n": case.num_val,
            "least_val_loss": losses[least],
            "last_val_loss": losses[-1],
        },
    )


def _wasted(case: Case) -> Finding | None:
    total = len(case.epochs)
    early = 0 < case.kept <= total / 4 and case.config.keep != "last"
    if total < 8 or not early or not _val_loss_rises(case) or _overfitting(case) is not None:
        return None
    losses = {r.epoch: r.val_loss for r in case.epochs}
    return Finding(
        code="wasted_epochs",
        cause=f"the best epoch is {case.kept} of {total}, and validation got worse from then on",
        evidence=f"validation loss {losses[case.kept]:.4g} in epoch {case.kept}, "
        f"{losses[total]:.4g} in epoch {total} (n = {case.num_val})",
        next="end sooner (--callbacks early_stopping, or fewer --epochs), or lower --lr",
        figures={"best_epoch": case.kept, "epochs": total, "val_n": case.num_val},
    )


def _easier(case: Case) -> Finding | None:
    """Validation above training, also where training pictures are scored as validation is."""
    if case.val is None or case.train is None or case.subject not in (None, case.kept):
        return None
    found = higher(case.val.by_class, case.train.by_class)
    if found.value < GAP or found.p * _selected(case) >= STRICT_P:
        return None
    return Finding(
        code="val_above_train",
        cause="validation pictures are easier than the training pictures, also without "
        "augmentation and dropout: wrong labels in training, another source, or copies of "
        "training pictures in validation",
        evidence=f"validation {_of(case.val)}, training pictures in scoring mode {_of(case.train)}"
        f", class by class {found.value:+.3f}",
        next="check training labels by their mistakes, and how the folder is divided; "
        "--fail-on-leak stops where the same picture is in two splits",
        figures={
            "val_accuracy": case.val.accuracy,
            "val_n": case.val.n,
            "scoring_accuracy": case.train.accuracy,
            "scoring_n": case.train.n,
            "difference": found.value,
        },
    )


def _test_below(case: Case) -> Finding | None:
    if case.val is None or case.test is None or case.val_is_test:
        return None
    found, tries = higher(case.val.by_class, case.test.by_class), _selected(case)
    if found.value < GAP or found.p >= STRICT_P:
        return None
    evidence = f"validation {_of(case.val)}, test {_of(case.test)}, class by class "
    evidence += f"{found.value:+.3f}"
    figures = {
        "val_accuracy": case.val.accuracy,
        "val_n": float(case.val.n),
        "test_accuracy": case.test.accuracy,
        "test_n": float(case.test.n),
        "difference": found.value,
    }
    if found.p * tries >= STRICT_P:
        return Finding(
            code="val_too_small",
            cause=f"the best of {tries} epochs was chosen on {case.val.n} pictures, which flatters "
            "it: validation is far above test",
            evidence=evidence,
            next="give validation a larger share (--split 0.6/0.2/0.2), or --monitor val_loss; "
            "believe the test figure",
            figures=figures,
        )
    return Finding(
        code="test_below_val",
        cause="test pictures are harder than validation pictures: they are of another source, or "
        "validation holds near copies of training pictures",
        evidence=evidence,
        next="divide by source (person, day, camera) rather than by picture, and check the test "
        "labels; believe the test figure",
        figures=figures,
    )


def _probe_best(case: Case) -> Finding | None:
    """The head that was solved in a minute is better than what hours of training came to."""
    epochs = case.epochs
    if case.kept != 0 or not epochs or case.history[0].epoch != 0:
        return None
    first, values = case.history[0], sorted(r.val_accuracy for r in epochs)
    middle = values[len(values) // 2]
    n = case.num_val
    found = higher([(round(first.val_accuracy * n), n)], [(round(middle * n), n)])
    worse = all(r.val_loss > first.val_loss for r in epochs) and len(epochs) >= 3
    if found.p >= (0.2 if worse and values[-1] < first.val_accuracy else 0.05):
        return None
    return Finding(
        code="probe_best",
        cause="the probe is better than every epoch of training that followed",
        evidence=f"validation {_share(round(first.val_accuracy * n), n)} after the probe, at best "
        f"{values[-1]:.3f} in {len(epochs)} epochs ({middle:.3f} in the middle)",
        next=f"keep the probe alone (--probe --epochs 0), or lower --lr ({case.config.lr:g}) or "
        "--backbone-lr",
        figures={
            "probe_accuracy": first.val_accuracy,
            "best_accuracy": values[-1],
            "val_n": n,
            "epochs": len(epochs),
        },
    )


def _unfinished(case: Case) -> Finding | None:
    """Training ended while it was still getting better fast."""
    records, constant = case.epochs, constant_loss(case)
    total = len(records)
    if total < 2 or case.kept != records[-1].epoch or total < case.config.epochs:
        return None
    constant = math.log(len(case.counts)) if constant is None else constant
    last, held = records[-1], records[-1].lr >= 0.3 * max(r.lr for r in records)
    before = records[-1 - math.ceil(total / 4)]
    fall = (before.train_loss - last.train_loss) / constant
    half = records[total // 2 - 1]
    n = case.num_val

    def gained(since: EpochRecord) -> float:
        counts = [(round(r.val_accuracy * n), n) for r in (last, since)]
        return higher([counts[0]], [counts[1]]).p

    steady = total >= 6 and rising([-r.val_loss for r in records[total // 2 - 1 :]]) < 0.05
    if held:
        going = total >= 3 and fall >= 0.05 and (gained(half) < LEARNED_P or steady)
    else:
        going = total <= 4 and fall >= 0.08 and gained(before) < STRICT_P
    if not going:
        return None
    return Finding(
        code="too_few_epochs",
        cause="training ended while it was still getting better fast: there were too few epochs, "
        "or the learning rate is too low",
        evidence=f"from epoch {before.epoch} to {last.epoch}, the best: training loss "
        f"{before.train_loss:.4g} to {last.train_loss:.4g}, validation accuracy "
        f"{before.val_accuracy:.3f} to {_share(round(last.val_accuracy * n), n)}; lr {last.lr:.3g}",
        next=f"train longer (--epochs {2 * case.config.epochs}), or raise --lr "
        f"({case.config.lr:g})",
        figures={
            "epochs": total,
            "before_loss": before.train_loss,
            "last_loss": last.train_loss,
            "val_accuracy": last.val_accuracy,
            "val_n": n,
        },
    )


def _too_high(case: Case) -> Finding | None:
    """A training loss that explodes, or what was learned and lost again."""
    constant = constant_loss(case)
    if constant is None or case.rolled_back:
        return None
    best: EpochRecord | None = None
    for record in case.epochs:
        lost = (
            best is not None
            and best.train_loss < 0.7 * constant
            and record.train_loss >= 0.95 * constant
            and higher([_recorded(case, best)[0]], [_recorded(case, record)[0]]).p < STRICT_P
        )
        if (record.epoch > 1 and record.train_loss > 3 * constant) or lost:
            return Finding(
                code="lr_too_high",
                cause="the learning rate is too high: the training loss "
                + ("rose again, and what was learned was lost" if lost else "exploded"),
                evidence=f"epoch {record.epoch}: loss {record.train_loss:.4g}, accuracy "
                f"{_trained(case, record)}; constant answers have {constant:.4g}"
                + (f", epoch {best.epoch} had {best.train_loss:.4g}" if lost and best else "")
                + f"; lr {record.lr:.3g}",
                next=f"give --lr {_fewer(case.config.lr)}, --warmup-epochs 1 or --clip-norm 1",
                figures={
                    "epoch": record.epoch,
                    "train_loss": record.train_loss,
                    "constant_loss": constant,
                    "lr": record.lr,
                },
            )
        if best is None or record.train_loss < best.train_loss:
            best = record
    return None


def _flat_so_far(case: Case) -> Finding | None:
    """A third of the training, at least three epochs and 100 steps, and nothing was learned."""
    done = len(case.epochs)
    if done < max(3, case.config.epochs / 3) or case.epochs[-1].step < 100:
        return None
    constant, last = constant_loss(case), case.epochs[-1]
    n = case.num_val
    commonest = _commonest(case)
    learned = any(
        above(round(r.val_accuracy * n), n, commonest) < LEARNED_P
        for r in case.epochs
        if math.isfinite(r.val_accuracy)
    )
    if constant is None or not _flat(case) or _learned_in_training(case) or learned:
        return None
    return Finding(
        code="not_learning",
        cause="the loss does not fall below that of constant answers",
        evidence=f"training loss {case.epochs[0].train_loss:.4g} to {last.train_loss:.4g} in "
        f"{done} epochs, constant answers {constant:.4g}; training accuracy "
        f"{_trained(case, last)}, the commonest class {commonest:.3f}",
        next="stop with Ctrl-C, and let `fieldmark train DATA --find-lr` suggest a learning rate; "
        "the end of the training tells more",
        figures={
            "last_loss": last.train_loss,
            "constant_loss": constant,
            "train_accuracy": last.train_accuracy,
        },
    )


def _rolled_back(case: Case) -> Finding | None:
    if not case.rolled_back or case.diverged:
        return None
    what = next((text for text in case.incidents if "went back" in text), "training went back")
    return Finding(
        code="rolled_back",
        cause="the learning rate is at its edge: the loss or the gradient stopped being a number, "
        "and an epoch was trained again with half the rate",
        evidence=what,
        next=f"give --lr {_fewer(case.config.lr, 2)}, --warmup-epochs 1 or --clip-norm 1",
        figures={"lr": case.config.lr},
    )


def _conflicting(case: Case) -> Finding | None:
    """So many pictures under two labels that they limit what can be learned."""
    total = sum(case.counts)
    if not total or case.conflicting < 4 or case.conflicting / total < 0.02:
        return None
    return Finding(
        code="conflicting_labels",
        cause="the same pictures are in training under several labels, which no network can learn",
        evidence=f"{case.conflicting} of n = {total} training pictures",
        next="remove the wrong copies; data.json lists the pictures with their digests",
        figures={"pictures": case.conflicting, "train_n": total},
    )


_ROOTS: tuple[Rule, ...] = (stale, _lags, _scoring, _stuck, _unrelated, _rate_stalls)
"""What explains the rest; the first that holds is told."""
_OTHERS: tuple[Rule, ...] = (
    *(_one_class, _never, _easier, _test_below, _overfitting, _wasted, _probe_best, _unfinished),
)
_BESIDE: tuple[Rule, ...] = (_not_finite, _too_high, _rolled_back, _conflicting)
"""What is told in any case."""
CODES = (
    *("diverged", "not_finite", "stale_statistics", "average_lags", "scoring_mode"),
    *("only_augmented", "input_constant", "dead_network", "nothing_trains", "lr_too_low"),
    *("lr_too_high", "stalled", "not_learning", "labels_unrelated", "one_class"),
    "class_never_predicted",
    *("val_above_train", "test_below_val", "val_too_small", "overfitting", "wasted_epochs"),
    *("probe_best", "too_few_epochs", "rolled_back", "conflicting_labels"),
)
"""Every code that there is."""


def once(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The first finding of each code."""
    return tuple({finding.code: finding for finding in reversed(findings)}.values())[::-1]


def _finite_figures(finding: Finding) -> Finding:
    """The finding without figures that JSON has no number for."""
    kept = {name: value for name, value in finding.figures.items() if math.isfinite(value)}
    return dataclasses.replace(finding, figures=kept)


def _fewer(lr: float, by: float = 10) -> str:
    return f"{lr / by:.3g}"


def _numbers(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:LISTED])) + (" ..." if len(values) > LISTED else "")


def with_measurement(case: Case, name: str, **found: object) -> Case:
    """The case with a measurement that was made, or could not be made."""
    return dataclasses.replace(case, measured=case.measured | {name}, **found)  # type: ignore[arg-type]
