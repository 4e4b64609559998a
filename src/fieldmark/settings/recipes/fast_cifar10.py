"""CIFAR-10 in a few minutes of two processor cores."""

from __future__ import annotations

from fieldmark.settings.config import Facts, TrainConfig


def fast_cifar10(facts: Facts) -> TrainConfig:
    """The whitened CNN on CIFAR-10, in 9 epochs: first on smaller, then on the hardest pictures.

    fieldmark train cifar10 --recipe fast-cifar10

    Nothing chooses the epoch: the rate has fallen to 0 with the last, which is kept. So the
    validation part only calibrates, and 960 pictures do for that. The rates are those that
    airbench94_muon has for batches of 2,000, times about the root of 512 / 2,000; the sizes are
    those of Fulcrum's E1. To leave out the easiest quarter from the fourth epoch on costs no
    accuracy that ten trainings would show (``docs/log.md``).
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
        keep="last",
        split="0.817/0.016/0.167",
    )
