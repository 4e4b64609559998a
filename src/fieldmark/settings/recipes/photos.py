"""Photographs: fine-tuning a pretrained network, or training one from scratch."""

from __future__ import annotations

import dataclasses

from fieldmark.settings.config import Facts, TrainConfig
from fieldmark.settings.recipes.candidates import TINY_SIDE, with_stages
from fieldmark.settings.recipes.tiny import _epochs

LITE0 = "timm/tf_efficientnet_lite0"
"""The network whose weights can be installed as a package."""

MANY = 50_000
"""With more training pictures than this fine-tuning does not begin with a probe."""


def probe(facts: Facts) -> TrainConfig:
    """A linear probe of a pretrained network: one pass over the pictures, no epochs.

        fieldmark train flowers/
        fieldmark train flowers/ --recipe probe --epochs 5

    The frozen network computes the features of each picture once, those of its last three stages
    among them; the head is solved on them, with a penalty chosen on val. Pictures are larger than
    those that the network was trained on: frozen convolutional features are worth more on them (224
    to 288 px: +1.1 points in 5-fold cross-validation on 400 flowers). ``--epochs`` then goes on as
    ``finetune`` does. Results with n, time and machine: docs/log.md.
    """
    return dataclasses.replace(_from_probe(facts), size=288, epochs=0)


def finetune(facts: Facts) -> TrainConfig:
    """A linear probe, then a few epochs in which the later stages train from there.

        fieldmark train things/ --recipe finetune

    The stages learn at a tenth of the head's rate, and batch norms keep the statistics of the
    pretrained weights: with those of a few dozen enlarged pictures the solved head is worth nothing
    after the first steps (CIFAR-10, 50 a class: validation from 0.72 to 0.32). The first stages
    stay as they are, which is faster and no less accurate (0.724 against 0.706, n = 1,000). The
    probe is kept if no epoch scores better on val. Of tiny pictures the whole frame is used, at
    128 px; of others the network's own size. Of more than 50,000 pictures, whose features would
    take much memory and which can teach all stages, everything trains from a new head. Results with
    n, time and machine: docs/log.md.
    """
    found = _from_probe(facts)
    if facts.data.num_train <= MANY:
        return found
    return dataclasses.replace(
        found,
        model=facts.pretrained or LITE0,
        probe=False,
        augment="random_resized_crop(0.35)|flip_lr",
        train_from="",
        norm_statistics="fresh",
    )


def _from_probe(facts: Facts) -> TrainConfig:
    """A probe, and what is trained after it."""
    tiny = facts.data.median_side <= TINY_SIDE
    model = facts.pretrained or LITE0
    return TrainConfig(
        model=with_stages(model),
        size=128 if tiny else 0,
        resize="squash" if tiny else "auto",
        probe=True,
        epochs=_epochs(facts, 20_000, 3, 5),
        batch_size=32,
        optimizer="adamw",
        lr=3e-3,
        backbone_lr=0.1,
        weight_decay=0.02,
        schedule="cosine",
        warmup_epochs=0.5,
        augment="random_resized_crop(0.5)|flip_lr",
        label_smoothing=0.1,
        train_from="last_two_stages" if model.startswith("timm/") else "",
        norm_statistics="frozen",
    )


def scratch(facts: Facts) -> TrainConfig:
    """A ResNet from random weights, for photographs without pretrained weights.

    On a processor ResNet-18 at 128 px; on a GPU 224 px, and ResNet-50 from 20,000 pictures on.

        fieldmark train flowers/ --weights none

    Results with n, time and machine: docs/log.md.
    """
    large = facts.device == "cuda"
    return TrainConfig(
        model="timm/resnet50" if large and facts.data.num_train >= 20_000 else "timm/resnet18",
        weights="none",
        size=224 if large else 128,
        epochs=_epochs(facts, 100_000, 10, 60),
        batch_size=32,
        optimizer="sgd(momentum=0.9, nesterov=True)",
        lr=0.03,
        weight_decay=5e-4,
        schedule="one_cycle",
        augment="random_resized_crop(0.35)|flip_lr",
        label_smoothing=0.1,
    )
