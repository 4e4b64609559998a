"""Photographs: fine-tuning a pretrained network, or training one from scratch."""

from __future__ import annotations

from fieldmark.settings.config import Facts, TrainConfig
from fieldmark.settings.recipes.tiny import _epochs

LITE0 = "timm/tf_efficientnet_lite0"
"""The network whose weights can be installed as a package."""

FEW = 2_000
"""With fewer training pictures than this only the head of a pretrained network is trained."""


def probe(facts: Facts) -> TrainConfig:
    """A linear probe of a pretrained network: one pass over the pictures, no epochs.

        fieldmark train flowers/
        fieldmark train flowers/ --recipe probe --epochs 5

    The frozen network computes the features of each picture once; the head is solved on them, with
    a penalty chosen on val. ``--epochs`` then fine-tunes everything, gently; the probe is kept if
    no epoch scores better on val. As in ``finetune``, pictures are larger than those that the
    network was trained on. On 400 flowers the probe was as good as ``finetune`` (0.890 against
    0.875, 0.875 and 0.900, n = 200), and fine-tuning after it gained nothing. Results with n, time
    and machine: docs/log.md.
    """
    return TrainConfig(
        model=facts.pretrained or LITE0,
        size=288,
        probe=True,
        epochs=0,
        batch_size=32,
        optimizer="adamw",
        lr=1e-3,
        backbone_lr=0.1,
        weight_decay=0.02,
        schedule="cosine",
        warmup_epochs=0.5,
        augment="random_resized_crop(0.5)|flip_lr",
        label_smoothing=0.1,
    )


def finetune(facts: Facts) -> TrainConfig:
    """From ImageNet weights: the head alone for small sets, everything from 2,000 pictures on.

        fieldmark train flowers/

    With few pictures the features are better left unchanged: on 240 flowers fine-tuning everything
    was no better than the head alone and took three times as long. Frozen convolutional features
    are worth more on larger pictures than they were trained on (224 to 288 px: +1.1 points in
    5-fold cross-validation on 400 flowers). Results with n, time and machine: docs/log.md.
    """
    if facts.data.num_train < FEW:
        return TrainConfig(
            model=facts.pretrained or LITE0,
            size=288,
            epochs=_epochs(facts, 4_000, 6, 12),
            batch_size=32,
            freeze=True,
            optimizer="adamw",
            lr=5e-3,
            weight_decay=0.02,
            schedule="cosine",
            augment="random_resized_crop(0.5)|flip_lr",
            label_smoothing=0.1,
        )
    return TrainConfig(
        model=facts.pretrained or LITE0,
        epochs=_epochs(facts, 20_000, 3, 10),
        batch_size=32,
        optimizer="adamw",
        lr=3e-3,
        backbone_lr=0.1,
        weight_decay=0.02,
        schedule="cosine",
        warmup_epochs=0.5,
        augment="random_resized_crop(0.35)|flip_lr",
        label_smoothing=0.1,
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
