"""Pictures that candidates are judged on, none of which they were fitted to, and their answers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fieldmark.data import Dataset
from fieldmark.data.dataset import Part
from fieldmark.data.split import stratified
from fieldmark.runs.choice import Tried
from fieldmark.seeding import F64, I64, Bools

FOLDS = 3
LOOK = 0.4
"""Share of a training from which on a hopeless one is stopped."""
LEFT = 0.5
"""What the rest of a training may make of the error at :data:`LOOK`; of that at the end, all."""


@dataclass(frozen=True)
class Pool:
    """Pictures of train and val in folds."""

    part: Part
    fold: I64
    """[N] the fold that each picture is held out in."""
    is_whole: bool
    """Whether it is all pictures of train and val, in this order."""

    @classmethod
    def of(cls, dataset: Dataset, count: int) -> Pool:
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
class Answers:
    """How a candidate answered for the pictures of a pool that were held out."""

    correct: Bools
    """[N] whether right; only of those held out."""
    held_out: Bools
    """[N]"""
    loss: float

    @classmethod
    def of(cls, logits: F64, labels: I64) -> Answers:
        """From logits [N, K], NaN where a picture was not held out."""
        here = np.asarray(np.isfinite(logits).all(1), dtype=np.bool_)
        right = np.asarray((logits.argmax(1) == labels) & here, dtype=np.bool_)
        values, truth = torch.from_numpy(logits[here]), torch.from_numpy(labels[here])
        return cls(right, here, float(nn.functional.cross_entropy(values, truth)))

    @classmethod
    def read(cls, trial: Tried) -> Answers | None:
        """What :attr:`text` wrote; None if the candidate came to no judgement."""
        if not trial.answers:
            return None
        each = np.array(list(trial.answers))
        return cls(each == "1", each != "-", trial.loss)

    @property
    def text(self) -> str:
        """A character a picture: 1 right, 0 wrong, - not held out."""
        pairs = zip(self.correct, self.held_out, strict=True)
        return "".join("-" if not here else "1" if right else "0" for right, here in pairs)

    @property
    def accuracy(self) -> float:
        """Share of those held out that are right."""
        return float(self.correct.sum() / self.held_out.sum())


def is_hopeless(error: float, rival: Bools, done: float) -> bool:
    """Whether a training will not come near a rival any more, whose answers are right where true.

    At :data:`LOOK` of its length the error may still be halved; later, less is left to gain.
    """
    if done < LOOK:
        return False
    needed = 1 - float(rival.mean())
    spread = math.sqrt(max(needed * (1 - needed), 0.01) / len(rival))
    return (LEFT + (1 - LEFT) * (done - LOOK) / (1 - LOOK)) * error > needed + 2 * spread


def is_close(one: Answers, other: Answers) -> bool:
    """Whether two candidates differ by less than twice the standard error of the difference."""
    here = one.held_out & other.held_out
    gap = one.correct[here].astype(float) - other.correct[here]
    error = float(gap.std()) / math.sqrt(len(gap))
    return abs(float(gap.mean())) < 2 * max(error, 1 / len(gap))


def difference(one: Answers, best: Answers) -> str:
    """Why one lost to another: how many pictures it has wrong that the other has right."""
    here = one.held_out & best.held_out
    lost = int((best.correct & ~one.correct & here).sum())
    won = int((one.correct & ~best.correct & here).sum())
    return (
        f"of {int(here.sum())} pictures the chosen one has {lost} right that this one has wrong, "
        f"and {won} the other way"
    )
