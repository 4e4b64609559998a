"""Photographs: fine-tuning a pretrained network, or training one from scratch."""

from __future__ import annotations

from fieldmark.config import Facts, TrainConfig
from fieldmark.recipes.tiny import _epochs


def finetune(facts: Facts) -> TrainConfig:
    """Head first, then everything, from ImageNet weights.

        fieldmark train flowers/

    Results with n, time and machine: docs/log.md.
    """
    return TrainConfig(
        model=facts.pretrained or "timm/tf_efficientnet_lite0",
        epochs=_epochs(facts, 5_000, 6, 15),
        batch_size=32,
        optimizer="adamw",
        lr=2e-3,
        backbone_lr=0.2,
        weight_decay=0.02,
        schedule="cosine",
        warmup_epochs=0.5,
        augment="random_resized_crop(0.35)|flip_lr",
        label_smoothing=0.1,
    )


def scratch(facts: Facts) -> TrainConfig:
    """A ResNet from random weights: what is left where no weights are.

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
