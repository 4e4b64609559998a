"""Our own tables keep the contracts that plugins are checked by, and each check can fail."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fieldmark import testing
from fieldmark.augment import AUGMENTS, MIXES
from fieldmark.augment.ops import Change
from fieldmark.data.dataset import Entry, Found
from fieldmark.fit.callbacks import CALLBACKS
from fieldmark.fit.losses import LOSSES
from fieldmark.fit.optimizers import OPTIMIZERS
from fieldmark.fit.schedules import SCHEDULES
from fieldmark.models import MODELS
from fieldmark.plugins import Plugin
from fieldmark.scoring.named import METRICS
from fieldmark.settings.recipes import RECIPES

OURS = Plugin(
    augmentations=AUGMENTS,
    mixes=MIXES,
    recipes=RECIPES,
    schedules={
        **SCHEDULES,
        "piecewise": partial(SCHEDULES["piecewise"], factors={2: 0.1}),
        "inverse_time": partial(SCHEDULES["inverse_time"], rate=0.01),
    },
    optimizers=OPTIMIZERS,
    losses=LOSSES,
    callbacks=CALLBACKS,
    metrics=METRICS,
)


@pytest.mark.parametrize("check", testing.checks(OURS), ids=str)
def test_our_tables_keep_the_contracts(check: testing.Check) -> None:
    check()


@pytest.mark.parametrize(
    ("name", "size"), [("small_cnn", 8), ("cifar_resnet", 16), ("whitened_cnn", 9)]
)
def test_our_networks_keep_the_contract(name: str, size: int) -> None:
    testing.check_network(MODELS[name], size=size)


class Head(nn.Module):
    """One linear layer on the mean colour."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.mean((2, 3)))


class Centred(Head):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = super().forward(images)
        return logits - logits.mean(0)


class Forgetful(Head):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.shift = torch.randn(num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) + self.shift


class Idle(Head):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.unused = nn.Linear(2, 2)


def network(kind: type[nn.Module]) -> Callable[[int], nn.Module]:
    def build(num_classes: int) -> nn.Module:
        """A network that is made for this test."""
        return kind(num_classes)

    return build


def augmentation(apply: Callable[..., torch.Tensor], draws: int = 1) -> Callable[[], Change]:
    def made() -> Change:
        """A change that is made for this test."""
        return Change(draws, apply)

    return made


def in_place(images: torch.Tensor, draws: Any) -> torch.Tensor:
    return images.clamp_(10, 20)


def from_the_batch(images: torch.Tensor, draws: Any) -> torch.Tensor:
    return (images * 0.5 + images.float().mean((0, 2, 3), keepdim=True) * 0.5).clamp(0, 255)


def at_random(images: torch.Tensor, draws: Any) -> torch.Tensor:
    return (images * random.random()).clamp(0, 255)


def last_of(probs: Any, labels: Any) -> float:
    """The probability of the last picture's class."""
    return float(probs[-1, labels[-1]])


def mean_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean over the batch, which is one number."""
    return -(targets * logits.log_softmax(1)).sum(1).mean()


def stale(length: Any) -> Callable[[int], float]:
    """A schedule that counts how often it is asked."""
    asked: list[int] = []

    def factor(step: int) -> float:
        asked.append(step)
        return 1 / len(asked)

    return factor


def nameless(num_classes: int) -> nn.Module:
    return Head(num_classes)


@pytest.mark.parametrize(
    ("check", "entry", "says"),
    [
        (testing.check_network, nameless, "docstring"),
        (testing.check_network, network(Centred), "depend on others in its batch"),
        (testing.check_network, network(Forgetful), "state dict does not hold all"),
        (testing.check_network, network(Idle), "no gradient reaches unused.weight"),
        (testing.check_augmentation, augmentation(in_place), "in place"),
        (testing.check_augmentation, augmentation(from_the_batch), "others in its batch"),
        (testing.check_augmentation, augmentation(at_random), "Python's global generator"),
        (testing.check_augmentation, augmentation(lambda i, d: i * 2.0), "not in 0 to 255"),
        (testing.check_augmentation, augmentation(lambda i, d: i), "changed alike"),
        (testing.check_metric, last_of, "order of pictures"),
        (testing.check_loss, mean_loss, "one number for each"),
        (testing.check_schedule, stale, "depends on what it was asked before"),
    ],
)
def test_each_check_can_fail(check: Callable[[Any], None], entry: Any, says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        check(entry)


def found(**changes: Any) -> Callable[[str], Found]:
    entries = [Entry(f"{i}.png", i % 2) for i in range(4)]
    facts: dict[str, Any] = {
        "name": "made",
        "class_names": ("a", "b"),
        "entries": tuple(entries),
        "load": {e.key: np.full((4, 5, 3), i, np.uint8) for i, e in enumerate(entries)}.__getitem__,
        **changes,
    }

    def read(argument: str) -> Found:
        """Give four made-up pictures."""
        return Found(**facts)

    return read


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"class_names": ("a",)}, "two or more"),
        ({"entries": (Entry("x", 0), Entry("x", 1))}, "two pictures have the key x"),
        ({"entries": (Entry("x", 7),)}, "no class 7"),
        ({"entries": (Entry("x", 0, "dev"),)}, "in no part 'dev'"),
        ({"entries": (Entry("/etc/x", 0),)}, "no relative name"),
        ({"load": lambda key: np.zeros((2, 2, 3), np.uint8)}, "did not list"),
        ({"load": lambda key: np.zeros((2, 2), np.uint8)}, "not uint8"),
    ],
)
def test_what_a_reader_must_not_give(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    testing.check_reader(found(), "")
    with pytest.raises(AssertionError, match=says):
        testing.check_reader(found(**changes), "")
