"""Tiny pictures from scratch: digits, characters, plates, CIFAR."""

from __future__ import annotations

import dataclasses

from fieldmark.settings.config import Facts, TrainConfig


def _epochs(facts: Facts, pictures: int, low: int, high: int) -> int:
    """The number of epochs in which about ``pictures`` are seen, from ``low`` to ``high``."""
    return max(low, min(high, round(pictures / facts.data.num_train)))


def tiny(facts: Facts) -> TrainConfig:
    """Small network, shifts by a few pixels, no mirroring.

    The border repeats the picture's edge: black bars beside dark strokes on white paper are
    strokes that no test picture has. Fewer than 5,000 pictures get smaller batches, to
    have more steps. No mirroring, because tiny pictures are often characters, and a mirrored 'd' is
    a 'b'; for things that may be mirrored use ``tiny_objects``.

        fieldmark train digits                  (small_cnn, 8 px)
        fieldmark train characters/             (cifar_resnet, up to 48 px)

    Results with n, time and machine: docs/log.md.
    """
    side = facts.data.median_side
    model = "small_cnn" if side <= 12 else "cifar_resnet(depth=20, version=1)"
    return TrainConfig(
        model=model,
        weights="none",
        size=max(8, min(48, side)),
        epochs=_epochs(facts, 500_000, 8, 40),
        batch_size=64 if facts.data.num_train >= 5_000 else 32,
        optimizer="sgd(momentum=0.9, nesterov=True)",
        lr=0.05,
        weight_decay=5e-4,
        schedule="one_cycle",
        augment=f"pad_crop({max(1, min(48, side) // 8)}, 'edge')",
        label_smoothing=0.1,
    )


def tiny_objects(facts: Facts) -> TrainConfig:
    """As ``tiny``, with mirroring: CIFAR, small photographs of things."""
    config = tiny(facts)
    return dataclasses.replace(config, augment=config.augment + "|flip_lr")


def tiny_fast(facts: Facts) -> TrainConfig:
    """Tiny pictures from 13 px on: the whitened CNN with Muon, in 15 epochs at up to 32 px.

        fieldmark train characters/ --recipe tiny_fast

    It learns in 15 epochs and a third of the time what takes ResNet-20 40 epochs at 48 px: 12
    Chinese characters of 24 pictures each 0.958 against 0.896 (n = 96), CIFAR-10 (JPEG copy), 200 a
    class, 0.668 against 0.599 (n = 1,000). The rates are those of ``fast-cifar10``, which suit this
    network alone; for others use ``tiny``. No mirroring, as in ``tiny``.
    """
    size, number = max(13, min(32, facts.data.median_side)), facts.data.num_train
    return TrainConfig(
        model="whitened_cnn((64, 128, 192))" if number < 5_000 else "whitened_cnn",
        weights="none",
        size=size,
        epochs=_epochs(facts, 300_000, 8, 15),
        batch_size=32 if number < 1_000 else 64 if number < 5_000 else 256,
        optimizer="muon(kernel_lr=0.16)",
        lr=0.53 if number < 1_000 else 0.75,
        bias_lr=64,
        weight_decay=0.0023,
        schedule="linear",
        augment=f"pad_crop({size // 8}, 'edge')",
        label_smoothing=0.2,
    )
