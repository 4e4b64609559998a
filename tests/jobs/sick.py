"""Trainings that are sick on purpose, and healthy ones: small pictures, a second each.

``tests/jobs/test_examine.py`` trains some of them; ``scripts/doctor_table.py`` trains all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import nn

U8 = npt.NDArray[np.uint8]
SIDE = 10
PLAIN: dict[str, Any] = {
    "model": "small_cnn(width=6, dropout=0.0)",
    "size": SIDE,
    "epochs": 8,
    "batch_size": 16,
    "optimizer": "adamw",
    "lr": 0.01,
    "weight_decay": 0.0,
    "schedule": "cosine",
    "augment": "none",
    "label_smoothing": 0.0,
    "threads": 1,
    "device": "cpu",
}
"""Settings with which the pictures below are learned."""


@dataclass(frozen=True)
class Patient:
    """A training and what is to be found."""

    code: str
    """The finding; empty for a healthy one."""
    pictures: Callable[[Path], Path]
    """Writes the pictures; returns the folder."""
    settings: dict[str, Any]
    seldom: bool = False
    """Whether only the script trains it."""


# --- pictures --------------------------------------------------------------------------------


def waves(label: int, rng: np.random.Generator, *, noise: float, side: int = SIDE) -> U8:
    """Stripes whose direction and width are the class's, anywhere in the picture, under noise."""
    angle, width = np.pi * (label % 4) / 4, 2.5 + 1.5 * (label // 4)
    y, x = np.mgrid[:side, :side]
    phase = rng.uniform(0, 2 * np.pi)
    wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / width + phase)
    image = 128 + 50 * wave[..., None] + noise * rng.normal(size=(side, side, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


def folder(
    *counts: int,
    noise: float = 30.0,
    wrong: float = 0.0,
    parts: tuple[str, ...] = (),
    seed: int = 0,
    side: int = SIDE,
    changed: Callable[[str, U8, np.random.Generator], U8] | None = None,
    shares: tuple[float, ...] = (0.5, 0.25, 0.25),
) -> Callable[[Path], Path]:
    """So many pictures of each class, in splits if ``parts`` names those with wrong labels.

    Args:
        counts: Pictures of each class.
        noise: Deviation of the noise in grey levels.
        wrong: Share of wrong labels, in the splits that ``parts`` names, or everywhere.
        parts: Splits with wrong labels; the folder is divided by hand then.
        seed: Of every draw.
        side: Height and width.
        changed: Changes a picture of a split.
        shares: Of train, val and test, if the folder is divided by hand.
    """

    def write(root: Path) -> Path:
        rng = np.random.default_rng(seed)
        divided = bool(parts) or changed is not None
        for label, count in enumerate(counts):
            for i in range(count):
                share = (i + 0.5) / count
                part = ("train", "val", "test")[int(np.searchsorted(np.cumsum(shares)[:-1], share))]
                image = waves(label, rng, noise=noise, side=side)
                if changed is not None:
                    image = changed(part, image, rng)
                told = label
                if rng.random() < wrong and (not parts or part in parts):
                    told = int(rng.integers(len(counts)))
                place = root / (part if divided else "") / f"c{told}"
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(place / f"{label}-{i}.png", compress_level=1)
        return root

    return write


def copied(root: Path) -> Path:
    """A tenth of the pictures of one class are there again in the next."""
    folder(40, 40, 40)(root)
    for label in range(3):
        for i in range(4):
            content = (root / f"c{label}" / f"{label}-{i}.png").read_bytes()
            (root / f"c{(label + 1) % 3}" / f"copy-{label}-{i}.png").write_bytes(content)
    return root


def grey(root: Path) -> Path:
    """Pictures that differ by one level of one pixel."""
    for label in range(3):
        (root / f"c{label}").mkdir(parents=True)
        for i in range(60):
            image = np.full((SIDE, SIDE, 3), 90, np.uint8)
            number = 60 * label + i
            image[number // 18, number % 18 // 2, number % 2] += 1
            Image.fromarray(image).save(root / f"c{label}" / f"{i}.png")
    return root


def inverted(part: str, image: U8, rng: np.random.Generator) -> U8:
    """Test pictures of another camera: coarse pixels, under noise."""
    if part != "test":
        return image
    return np.clip(
        image[::2, ::2].repeat(2, 0).repeat(2, 1) + rng.normal(size=image.shape) * 60, 0, 255
    ).astype(np.uint8)


# --- networks --------------------------------------------------------------------------------


def slow_norms(num_classes: int) -> nn.Module:
    """Batch norm whose statistics hardly move."""
    module = plain(num_classes)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.003
        if isinstance(layer, nn.Conv2d):
            nn.init.constant_(layer.bias, 20.0)
    return module


def plain(num_classes: int) -> nn.Sequential:
    """Two convolutions with batch norm."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, num_classes),
    )  # fmt: skip


def without_norms(num_classes: int) -> nn.Module:
    """Convolutions alone, which a high learning rate kills."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, num_classes),
    )  # fmt: skip


def many_weights(num_classes: int) -> nn.Module:
    """A wide dense network, which learns pictures by heart."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 256), nn.ReLU(), nn.Linear(256, num_classes)
    )


class Forgetful(nn.Module):
    """A layer that does something else in scoring mode: a mistake of its author."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.training else x.flip(1)


def forgetful(num_classes: int) -> nn.Module:
    module = plain(num_classes)
    return nn.Sequential(*module[:9], Forgetful(), *module[9:])


class Cut(nn.Module):
    """Through which no gradient goes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.detach() + 0 * x


def cut_off(num_classes: int) -> nn.Module:
    return nn.Sequential(*plain(num_classes), Cut())


def negative(images: torch.Tensor, draws: npt.NDArray[np.float64]) -> torch.Tensor:
    """Every training picture becomes its negative, tinted."""
    tint = torch.tensor([1.0, 0.2, 0.0]).view(1, 3, 1, 1)
    return ((255 - images.float()) * tint).clamp(0, 255)


# --- patients --------------------------------------------------------------------------------

FOUR = folder(60, 60, 60, 60)
SICK: dict[str, Patient] = {
    "slow batch norm": Patient(
        "stale_statistics", FOUR, {"model": slow_norms, "norm_statistics": "running", "epochs": 10}
    ),
    "a layer that scores otherwise": Patient(
        "scoring_mode", FOUR, {"model": forgetful, "epochs": 10}
    ),
    "augmentation that hides the pictures": Patient(
        "only_augmented", FOUR, {"model": without_norms, "augment": negative, "epochs": 8}
    ),
    "few pictures by heart": Patient(
        "overfitting",
        folder(60, 60, 60, 60, wrong=0.4),
        {
            "model": many_weights,
            "lr": 0.001,
            "schedule": "constant",
            "epochs": 20,
            "split": "0.5/0.4/0.1",
        },
    ),
    "labels drawn at random": Patient(
        "labels_unrelated",
        folder(80, 80, 80, 80, wrong=1.0),
        {"model": many_weights, "lr": 0.003, "epochs": 15, "split": "0.5/0.4/0.1"},
    ),
    "random labels, little network": Patient(
        "not_learning",
        folder(150, 150, wrong=1.0),
        {
            "model": "small_cnn(width=2, dropout=0.0)",
            "augment": "pad_crop(3)|flip_lr|flip_ud",
            "epochs": 6,
            "lr": 0.003,
        },
    ),
    "a learning rate of 1e-7": Patient("lr_too_low", FOUR, {"lr": 1e-7, "epochs": 5}),
    "a learning rate of 1e-5 (sgd)": Patient(
        "lr_too_low",
        folder(100, 100, 100),
        {"lr": 1e-6, "optimizer": "sgd", "model": plain, "epochs": 4},
        seldom=True,
    ),
    "a learning rate of 3": Patient(
        "stalled", FOUR, {"lr": 3.0, "optimizer": "adamw", "schedule": "constant"}, seldom=True
    ),
    "dead activations": Patient(
        "dead_network",
        folder(80, 80, 80),
        {"model": without_norms, "lr": 12.0, "optimizer": "sgd", "epochs": 4},
    ),
    "one picture, many times": Patient("input_constant", grey, {"epochs": 4}),
    "no gradient": Patient("nothing_trains", FOUR, {"model": cut_off, "epochs": 3}),
    "one class of twenty": Patient(
        "one_class",
        folder(760, 40, noise=110, shares=(0.6, 0.3, 0.1)),
        {"epochs": 3, "split": "0.5/0.4/0.1"},
    ),
    "a rare class": Patient(
        "class_never_predicted",
        folder(120, 120, 24, noise=90, changed=lambda part, image, rng: image),
        {"epochs": 5, "class_weights": "10,10,0.01"},
    ),
    "wrong labels in training": Patient(
        "val_above_train",
        folder(150, 150, 150, wrong=0.6, parts=("train",)),
        {"epochs": 6, "augment": "pad_crop(1, 'edge')|flip_lr", "label_smoothing": 0.1},
    ),
    "test pictures of another camera": Patient(
        "test_below_val", folder(80, 80, 80, 80, changed=inverted), {"epochs": 8}
    ),
    "fine-tuning that destroys": Patient(
        "probe_best",
        folder(120, 120, 120, 120, noise=45),
        {
            "probe": True,
            "model": "small_cnn(width=24)",
            "optimizer": "sgd",
            "lr": 1.0,
            "schedule": "constant",
            "epochs": 4,
            "split": "0.5/0.4/0.1",
        },
    ),
    "stopped too soon": Patient(
        "too_few_epochs",
        folder(150, 150, 150, 150, noise=40),
        {"schedule": "constant", "epochs": 4, "lr": 0.0005},
    ),
    "a gradient that bursts": Patient(
        "rolled_back",
        FOUR,
        {
            "model": without_norms,
            "optimizer": "sgd",
            "lr": 100.0,
            "warmup_epochs": 1.0,
            "epochs": 3,
        },
    ),
    "a loss that is no number": Patient(
        "diverged", FOUR, {"model": without_norms, "optimizer": "sgd", "lr": 1e8, "epochs": 3}
    ),
    "copies under two labels": Patient("conflicting_labels", copied, {}),
    "best at once": Patient(
        "wasted_epochs",
        folder(200, 200, noise=60, wrong=0.16),
        {
            "lr": 0.003,
            "schedule": "constant",
            "epochs": 30,
            "model": many_weights,
            "split": "0.5/0.4/0.1",
        },
        seldom=True,
    ),
}

EASY = folder(60, 60, 60, 60)
HARD = folder(*[50] * 8, noise=70)
HEALTHY: dict[str, Patient] = {
    "defaults of tiny": Patient("", EASY, {"epochs": 15, "augment": "pad_crop(1, 'edge')"}),
    "two classes": Patient("", folder(60, 60), {}),
    "eight classes under noise": Patient("", HARD, {"epochs": 20}),
    "eight classes, augmented": Patient(
        "", HARD, {"epochs": 20, "augment": "pad_crop(1)|flip_lr|flip_ud", "label_smoothing": 0.1}
    ),
    "few pictures": Patient("", folder(12, 12, 12), {"epochs": 20, "batch_size": 8}),
    "very few pictures": Patient("", folder(6, 6), {"epochs": 20, "batch_size": 4}),
    "imbalanced": Patient("", folder(200, 40, 20), {"epochs": 12}),
    "imbalanced, balanced draws": Patient("", folder(200, 40, 20), {"epochs": 12, "balance": True}),
    "imbalanced, class weights": Patient(
        "", folder(200, 40, 20), {"epochs": 12, "class_weights": "balanced"}
    ),
    "nine tenths are one class": Patient("", folder(180, 20), {"epochs": 15}),
    "mixup": Patient("", EASY, {"mix": "mixup(0.4)", "epochs": 15}),
    "cutmix and smoothing": Patient(
        "", EASY, {"mix": "cutmix(1.0)", "label_smoothing": 0.2, "epochs": 20}
    ),
    "heavy augmentation": Patient(
        "", EASY, {"augment": "randaugment|pad_crop(2)|erase(0.5)", "epochs": 20}
    ),
    "dropout": Patient("", EASY, {"model": "small_cnn(width=12, dropout=0.6)", "epochs": 15}),
    "hardest": Patient("", HARD, {"hardest": "0.6@4", "epochs": 20}),
    "moving average": Patient("", EASY, {"ema": 0.98, "epochs": 15}),
    "progressive": Patient(
        "", folder(60, 60, 60, side=16), {"size": 16, "progressive": "8@0.4|12@0.7", "epochs": 12}
    ),
    "probe alone": Patient("", EASY, {"probe": True, "epochs": 0}),
    "frozen, then everything": Patient(
        "", EASY, {"freeze": True, "unfreeze_at_epoch": 3, "epochs": 12}
    ),
    "sgd, one cycle": Patient(
        "", EASY, {"optimizer": "sgd", "lr": 0.1, "schedule": "one_cycle", "epochs": 12}
    ),
    "muon": Patient("", EASY, {"optimizer": "muon", "lr": 0.02, "epochs": 10}),
    "constant rate, long enough": Patient(
        "", EASY, {"schedule": "constant", "lr": 0.003, "epochs": 25}
    ),
    "early stopping": Patient("", EASY, {"callbacks": "early_stopping(patience=4)", "epochs": 30}),
    "last epoch kept": Patient("", EASY, {"keep": "last", "epochs": 12}),
    "some wrong labels": Patient(
        "", folder(80, 80, 80, wrong=0.1), {"epochs": 12, "augment": "pad_crop(1)|flip_lr"}
    ),
    "no test split": Patient("", EASY, {"split": "0.8/0.2/0", "epochs": 12}),
    "test validates": Patient("", EASY, {"split": "0.8/0/0.2", "epochs": 12}),
    "a residual network": Patient(
        "",
        folder(60, 60, 60, side=12),
        {"model": "cifar_resnet(depth=8)", "size": 12, "epochs": 10},
    ),
    "without norms": Patient("", EASY, {"model": without_norms, "lr": 0.005, "epochs": 25}),
    "dense": Patient(
        "", folder(80, 80, noise=20), {"model": many_weights, "lr": 0.001, "epochs": 10}
    ),
    "twenty classes": Patient("", folder(*[14] * 20, noise=20), {"epochs": 20}),
}
"""Trainings about which there is nothing to say."""


def settings_of(patient: Patient) -> dict[str, Any]:
    """The settings that a patient is trained with: a probe alone takes none for epochs."""
    some = ("model", "size", "threads", "device")
    probed = patient.settings.get("epochs") == 0
    base = {name: PLAIN[name] for name in some} if probed else PLAIN
    return {**base, **patient.settings}
