"""CIFAR-10 in a few minutes of two processor cores."""

from __future__ import annotations

from fieldmark.settings.config import Facts, TrainConfig


def fast_cifar10(facts: Facts) -> TrainConfig:
    """The whitened CNN on CIFAR-10, in 9 epochs: first on smaller, then on the hardest pictures.

    fieldmark train cifar10 --recipe fast-cifar10

    No epoch is selected: the learning rate falls to 0 in the last one, which is kept. So val is
    used only to estimate the temperature, for which 960 pictures suffice. The learning rates are
    those of airbench94_muon for batches of 2,000, times about the root of 512 / 2,000; the picture
    sizes are those of Fulcrum's E1. Leaving out the easiest quarter from the fourth epoch on costs
    no accuracy that ten trainings could show (``docs/log.md``).
    """
    del facts
    return TrainConfig(
        model="whitened_cnn",
        weights="none",
        size=32,
        epochs=9,
        batch_size=512,
        optimizer="muon(kernel_lr=0.16)",
        lr=0.75,
        bias_lr=64,
        weight_decay=0.0023,
        schedule="linear",
        augment="pad_crop(2, 'reflect')|alternating_flip",
        progressive="24@0.333|28@0.667",
        freeze_after="whiten@3",
        hardest="0.75@3",
        label_smoothing=0.2,
        views="flip_shift",
        norm_statistics="running",
        keep="last",
        split="0.817/0.016/0.167",
    )
