"""The methods of the league: what each one runs, and where it does not apply."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks import command
from benchmarks.league.sets import SETS, Subset
from benchmarks.processes import program
from fieldmark.settings.recipes import RECIPES

DEFAULT = "default"
SINGLE = ("probe", "finetune", "scratch", "tiny", "tiny_objects", "tiny_fast")
"""Recipes that train one thing in one way, on any pictures."""
SMALL_SIDE = 96
"""Pictures up to this many pixels are small: nobody enlarges them to a photograph's size."""
MANY = 4_000
"""Training pictures from which on a user makes do with fewer epochs."""


@dataclass(frozen=True)
class Task:
    """A subset, and how a method is to be run on it."""

    set: str
    subset: Subset
    number: int
    """Number of the subset; the seed of whatever the method draws."""
    scratch: Path
    limit_s: float
    quick: bool = False
    keras_python: str = sys.executable

    @property
    def kind(self) -> str:
        """Photographs or characters."""
        return SETS[self.set].kind

    def epochs(self, few: int, many: int) -> int:
        """Those for few pictures or for many."""
        return 1 if self.quick else few if self.subset.train < MANY else many


@dataclass(frozen=True)
class Scored:
    """What a method reached on the test split."""

    right: int
    n: int
    seconds: float
    peak_mb: float
    how: str
    """What was run, in a few words."""
    cpu_s: float = 0.0
    """Seconds of processor time."""


@dataclass(frozen=True)
class Method:
    """A way from a folder to a classifier."""

    name: str
    kind: Literal["default", "recipe", "peer"]
    run: Callable[[Task], Scored]
    applies: Callable[[Subset], str] = lambda subset: ""
    """Why it is not run on a subset; nothing if it is."""


def _fieldmark(*flags: str) -> Callable[[Task], Scored]:
    def run(task: Task) -> Scored:
        every: tuple[object, ...] = flags
        if task.number:  # the first subset's command is the one that a user types
            every += ("--seed", task.number)
        if task.quick and flags:
            every += ("--epochs", 1)
        ran = command.train(task.subset.folder, task.scratch, *every, limit_s=task.limit_s)
        test = ran.scores["test"]
        right = round(test["accuracy"] * test["n"])
        return Scored(right, test["n"], ran.seconds, ran.peak_mb, _chosen(ran.config), ran.cpu_s)

    return run


def _chosen(config: dict[str, Any]) -> str:
    words = [str(config[key]) for key in ("recipe", "model") if config.get(key)]
    words.append(f"{config['size']} px")
    if config.get("probe"):
        words.append("probe")
    if config.get("epochs"):
        words.append(f"{config['epochs']} epochs")
    return ", ".join(words)


def _fine_tuned(name: str) -> Callable[[Task], Scored]:
    def run(task: Task) -> Scored:
        size = 128 if task.subset.side <= SMALL_SIDE else 224
        epochs = task.epochs(10, 4)
        how = f"tf_efficientnet_lite0, {size} px, {epochs} epochs"
        words = (epochs, task.number, 64 if task.quick else size, task.kind)
        return _scored(task, how, name, *words)

    return run


def _regression(task: Task) -> Scored:
    return _scored(task, "", "pixel_regression", task.number)


def _keras(task: Task) -> Scored:
    epochs = task.epochs(100, 40)
    how = f"ResNet-20, {epochs} epochs"
    words = (epochs, task.number, task.kind)
    return _scored(task, how, "keras_tutorial_scored", *words, python=task.keras_python)


def _scored(
    task: Task, how: str, name: str, *words: object, python: str = sys.executable
) -> Scored:
    answer = program(
        name,
        task.subset.folder,
        *words,
        cache=task.scratch / "peers",
        python=python,
        limit_s=task.limit_s,
    )
    right, n = answer.value
    return Scored(right, n, answer.ran.seconds, answer.ran.peak_mb, how, answer.ran.cpu_s)


def _only_small(subset: Subset) -> str:
    if subset.side <= SMALL_SIDE:
        return ""
    return f"a script for pictures of 32 px; these have {subset.side}"


METHODS: tuple[Method, ...] = (
    Method(DEFAULT, "default", _fieldmark()),
    *(Method(name, "recipe", _fieldmark("--recipe", name)) for name in SINGLE if name in RECIPES),
    Method("fastai", "peer", _fine_tuned("fastai_finetune")),
    Method("timm", "peer", _fine_tuned("timm_finetune")),
    Method("pixels", "peer", _regression),
    Method("keras", "peer", _keras, _only_small),
)
LABELS = {
    "fastai": "fastai `fine_tune`",
    "timm": "timm, plain loop",
    "pixels": "logistic regression",
    "keras": "Keras, tutorial 003",
}
"""Peers' names in the table."""
