"""The tutorials' networks, trained in a fraction of the epochs.

What makes the difference is the same everywhere: a rate that falls to nothing with the last epoch
(so the last epochs are the best ones), label smoothing, and weight decay. The test split selects
nothing. Results with n, time and machine: ``docs/log.md``.
"""

from __future__ import annotations

from fieldmark.settings.config import Facts, TrainConfig


def handwriting_fast(facts: Facts) -> TrainConfig:
    """ResNet152V2 at 80 px for handwritten characters, in 15 epochs.

    fieldmark train characters/ --recipe handwriting_fast
    """
    del facts
    return TrainConfig(
        model="keras_resnet(depth=152, version=2)",
        size=80,
        epochs=15,
        batch_size=32,
        optimizer="adamw",
        lr=0.001,
        weight_decay=0.05,
        schedule="one_cycle",
        augment="rotate(10)|shift(0.08, 0.08)|shear(8)|zoom(0.15, per_axis=True)",
        label_smoothing=0.1,
        clip_norm=1.0,
    )


def birds_fast(facts: Facts) -> TrainConfig:
    """ResNet-50 for a few hundred photographs, in 8 epochs from ImageNet weights.

    fieldmark train birds/ --recipe birds_fast --weights imagenet
    """
    del facts
    return TrainConfig(
        model="resnet50_unpadded",
        size=224,
        epochs=8,
        batch_size=16,
        optimizer="adamw",
        lr=0.001,
        backbone_lr=0.1,
        weight_decay=0.05,
        schedule="one_cycle",
        augment="random_resized_crop(0.35)|flip_lr",
        label_smoothing=0.1,
        clip_norm=1.0,
    )


def sneakers_fast(facts: Facts) -> TrainConfig:
    """The sneaker CNN, in 20 epochs.

    fieldmark train sneakers/ --recipe sneakers_fast
    """
    del facts
    return TrainConfig(
        model="sneaker_cnn",
        weights="none",
        size=224,
        epochs=20,
        batch_size=16,
        optimizer="adamw",
        lr=0.0005,
        weight_decay=0.05,
        schedule="one_cycle",
        augment="random_resized_crop(0.5)|flip_lr",
        label_smoothing=0.1,
        clip_norm=1.0,
    )


def cifar10_resnet20_fast(facts: Facts) -> TrainConfig:
    """ResNet-20 on CIFAR-10, in 36 epochs, two thirds of them on smaller pictures.

    fieldmark train cifar10 --recipe cifar10-resnet20_fast
    """
    del facts
    return TrainConfig(
        model="cifar_resnet(depth=20, version=1)",
        weights="none",
        size=32,
        epochs=36,
        batch_size=256,
        optimizer="muon(kernel_lr=0.85, momentum=0.9)",
        lr=0.1,
        weight_decay=5e-4,
        schedule="linear",
        augment="pad_crop(4)|flip_lr",
        progressive="24@0.35|28@0.7",
        views="flip",
        label_smoothing=0.05,
        split="0.8/0.033/0.167",
    )


def cifar10_four_nets_fast(facts: Facts) -> TrainConfig:
    """The four networks of tutorial 004 on CIFAR-10, in 26 epochs.

    fieldmark compare cifar10 --recipe cifar10-four-nets_fast
    fieldmark train cifar10 --recipe cifar10-four-nets_fast --model cifar_resnet18

    ResNet18 reaches 0.904 on a copy of CIFAR-10 that lowers accuracy by 3 points; with Muon it
    learns in 12 epochs what takes SGD 28. With ``--batch-size 256 --optimizer "muon(kernel_lr=0.85,
    momentum=0.9)"`` GoogLeNet reaches 0.870 in 15 epochs, and with dropout 0.3 (``--model
    "cifar_vgg16(dropout=0.3)"``) VGG16 to 0.905 in 16 and VGG16_bigConv to 0.843 in 7.
    """
    del facts
    return TrainConfig(
        model="cifar_vgg16",
        weights="none",
        size=32,
        epochs=26,
        batch_size=512,
        optimizer="muon(kernel_lr=1.2, momentum=0.9)",
        lr=0.1,
        weight_decay=5e-4,
        schedule="linear",
        augment="pad_crop(4, 'reflect')|flip_lr|erase(0.5, (0.03, 0.2), (0.5, 2.0))",
        views="flip_shift",
        label_smoothing=0.1,
        split="0.8/0.033/0.167",
    )
