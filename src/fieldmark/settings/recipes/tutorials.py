"""The five tutorials that Fieldmark grew out of, as written; each ``*_fixed`` does what was meant.

A recipe without ``_fixed`` trains as the tutorial's code does, mistakes included, and its docstring
says which. Three things differ in all of them: pictures are resized with Pillow's antialiasing
where TensorFlow's resize has none, flat folders are divided class by class, and the order of
pictures and every draw follow from the seed.

Weights are those of ImageNet where they are in the cache (``--weights imagenet`` downloads them);
without them the networks start from random weights, and the run says so.
"""

from __future__ import annotations

import dataclasses

from fieldmark.settings.config import FULL_SIDE, Facts, TrainConfig

FOUR_NETS = ("cifar_vgg16", "cifar_vgg16_big", "cifar_googlenet", "cifar_resnet18")
"""What the tutorial ``004`` compares."""
FOUR_NETS_FIXED = (*FOUR_NETS[:2], "cifar_googlenet(pooled=True)", FOUR_NETS[3])


def handwriting(facts: Facts) -> TrainConfig:
    """Tutorial 000: 800 handwritten characters with ResNet152V2 at 80 px, as written.

        fieldmark train characters/ --recipe handwriting

    Where its code may differ from what its author meant: the test score is of whole batches of
    64 only, so up to 63 pictures of the last classes are never scored (so is each epoch's
    validation, and training leaves the rest of each epoch out); that score is the last epoch's,
    not the best one's, which lies beside it in a file; pixels are divided by 255 where the
    ImageNet weights know -1 to 1; pictures are resized without interpolation, Keras's default; a
    shear of 0.2 is in degrees, which moves nothing. Its author trained 31 epochs in 4 h 17 min.
    """
    del facts
    return TrainConfig(
        model="keras_resnet(depth=152, version=2)",
        size=80,
        decode_side=FULL_SIDE,
        precision="f32",
        resize="squash",
        interpolation="nearest",
        normalize="scale",
        epochs=50,
        batch_size=64,
        last_batch="drop",
        whole_batches=True,
        optimizer="keras_adam",
        lr=0.001,
        weight_decay=0.0,
        schedule="constant",
        augment="rotate(20)|shift(0.2, 0.2)|shear(0.2)|zoom(0.5, per_axis=True)",
        monitor="val_loss",
        callbacks="early_stopping(patience=10)"
        "|reduce_on_plateau(factor=0.2, patience=5, min_lr=1e-05)",
        keep="last",
        norm_statistics="running",
    )


def handwriting_fixed(facts: Facts) -> TrainConfig:
    """Tutorial 000 as meant: every picture scored, the best epoch kept, ImageNet's own scaling.

        fieldmark train characters/ --recipe handwriting_fixed

    Pixels from -1 to 1, antialiased resizing, a shear of 0.2 radians (11.5 degrees).
    """
    return dataclasses.replace(
        handwriting(facts),
        interpolation="bilinear",
        normalize="auto",
        last_batch="even",
        whole_batches=False,
        augment="rotate(20)|shift(0.2, 0.2)|shear(11.5)|zoom(0.5, per_axis=True)",
        keep="best",
        norm_statistics="fresh",
    )


def birds(facts: Facts) -> TrainConfig:
    """Tutorial 001: four kinds of birds with ResNet-50, as written.

        fieldmark train birds/ --recipe birds

    Where its code may differ from what its author meant: the head keeps ImageNet's 1000 outputs
    for four classes; an Adam with a rate of 1e-7 is built and never used, ``optimizer="adam"``
    trains with 1e-3; pixels go in unscaled and red-green-blue where the weights know
    blue-green-red less a mean; there is no test split, and the last epoch is used. Here the outputs
    without a class are left out of validation, where Keras counts them as wrong.
    """
    return TrainConfig(
        model=f"resnet50_unpadded(outputs={max(1000, facts.data.num_classes)})",
        size=224,
        decode_side=FULL_SIDE,
        precision="f32",
        resize="squash",
        interpolation="keras_bilinear",
        normalize="none",
        epochs=10,
        batch_size=8,
        last_batch="keep",
        optimizer="keras_adam",
        lr=0.001,
        weight_decay=0.0,
        schedule="constant",
        split="0.8/0.2/0",
        keep="last",
        norm_statistics="running",
    )


def birds_fixed(facts: Facts) -> TrainConfig:
    """Tutorial 001 as meant: one output a class, the weights' own scaling, a test split.

        fieldmark train birds/ --recipe birds_fixed

    The rate is 1e-4: the 1e-7 of the optimizer that was never used would learn nothing in 10
    epochs, and 1e-3 undoes the pretrained weights.
    """
    return dataclasses.replace(
        birds(facts),
        model="resnet50_unpadded",
        interpolation="bilinear",
        normalize="auto",
        last_batch="even",
        lr=0.0001,
        split="0.7/0.15/0.15",
        keep="best",
        norm_statistics="fresh",
    )


def sneakers(facts: Facts) -> TrainConfig:
    """Tutorial 002: two sneaker brands with a small CNN, as written.

        fieldmark train sneakers/ --recipe sneakers

    Where its code may differ from what its author meant: the folder ``test`` validates, so the
    best epoch is chosen by the pictures it is judged on (0.88 to 0.92 of 76); the rate falls by 2 %
    every 50 steps over the whole training, where the text says that it starts anew each epoch.
    """
    del facts
    return TrainConfig(
        model="sneaker_cnn",
        weights="none",
        size=224,
        decode_side=FULL_SIDE,
        precision="f32",
        resize="squash",
        interpolation="keras_bilinear",
        epochs=60,
        batch_size=32,
        last_batch="keep",
        optimizer="keras_adam",
        lr=0.0001,
        weight_decay=0.0,
        schedule="exponential_decay(steps=50, rate=0.98, staircase=True)",
        monitor="val_accuracy",
        callbacks="early_stopping(patience=20, min_delta=0.001)",
        split="0.8/0/0.2",
        keep="first_best",
        norm_statistics="running",
    )


def sneakers_fixed(facts: Facts) -> TrainConfig:
    """Tutorial 002 as meant: validation taken from the training pictures, one test at the end.

    fieldmark train sneakers/ --recipe sneakers_fixed
    """
    return dataclasses.replace(
        sneakers(facts),
        interpolation="bilinear",
        split="0.68/0.12/0.2",
        last_batch="even",
        keep="best",
        norm_statistics="fresh",
    )


def cifar10_resnet20(facts: Facts) -> TrainConfig:
    """Tutorial 003: CIFAR-10 with ResNet-20, as written.

        fieldmark train cifar10 --recipe cifar10-resnet20

    Where its code may differ from what its author meant: the best epoch, which is saved but not
    scored, is chosen on the test set; ReduceLROnPlateau has no effect, because the schedule sets
    the rate anew at every epoch's start (so it is left out here); the rate falls once, at epoch 82
    of 100: the steps at 121, 161 and 181 are never reached; ``val_acc`` is called ``val_accuracy``
    by newer Keras, which then saves nothing. An epoch has 1,562 whole batches of 32. The author
    prints 0.9128.
    """
    del facts
    return TrainConfig(
        model="cifar_resnet(depth=20, version=1, centre=32)",
        weights="none",
        size=32,
        decode_side=FULL_SIDE,
        precision="f32",
        normalize="scale",
        epochs=100,
        batch_size=32,
        last_batch="drop",
        optimizer="keras_adam",
        lr=0.001,
        weight_decay=0.0,
        l2=0.0001,
        schedule="piecewise({81: 0.1, 121: 0.01, 161: 0.001, 181: 0.0005})",
        augment="shift(0.1, 0.1)|flip_lr",
        monitor="val_accuracy",
        split="0.8/0/0.2",
        keep="last",
        norm_statistics="running",
    )


def cifar10_resnet20_fixed(facts: Facts) -> TrainConfig:
    """Tutorial 003 as meant: plateaus lower the rate, and validation is not the test set.

        fieldmark train cifar10 --recipe cifar10-resnet20_fixed

    A tenth of the training pictures validates; the best epoch by it is scored on the test set.
    """
    return dataclasses.replace(
        cifar10_resnet20(facts),
        last_batch="even",
        callbacks="reduce_on_plateau(factor=0.31622776601683794, patience=5, min_lr=5e-07, "
        "monitor='val_loss')",
        split="0.72/0.08/0.2",
        keep="best",
        norm_statistics="fresh",
    )


def cifar10_four_nets(facts: Facts) -> TrainConfig:
    """Tutorial 004: VGG16, VGG16_bigConv, GoogLeNet and ResNet18 on CIFAR-10, as written.

        fieldmark compare cifar10 --recipe cifar10-four-nets
        fieldmark train cifar10 --recipe cifar10-four-nets --model cifar_resnet18

    Where its code may differ from what its author meant: "validation" is the test set; the
    builder of GoogLeNet compiles its stem and returns the whole network uncompiled; in its modules
    the pool's output goes nowhere, so the fourth branch is a plain 1x1 convolution; the first unit
    of ResNet18 gets a projection because its test ``if Stride`` is true for 1. L2 is 0: the author
    says that there was none. The text does not print the rate, its decay, the batch size, or the
    augmentation: they are those of the CIFAR VGG16 that its code follows (0.1, halved every 20
    epochs, 128, turns of 15 degrees, shifts of 0.1, mirroring). The author prints 93.04, 85.91,
    89.46 and 92.70 % after about 100, 100, 150 and 150 epochs.
    """
    del facts
    return TrainConfig(
        model="cifar_vgg16",
        weights="none",
        size=32,
        decode_side=FULL_SIDE,
        precision="f32",
        epochs=150,
        batch_size=128,
        last_batch="keep",
        optimizer="keras_sgd(momentum=0.9, nesterov=True)",
        lr=0.1,
        weight_decay=0.0,
        schedule="step(epochs=20, factor=0.5)",
        augment="rotate(15)|shift(0.1, 0.1)|flip_lr",
        split="0.8/0/0.2",
        keep="last",
        norm_statistics="running",
    )


def cifar10_four_nets_fixed(facts: Facts) -> TrainConfig:
    """Tutorial 004 as meant: the weight decay of the paper, and validation is not the test set.

        fieldmark compare cifar10 --recipe cifar10-four-nets_fixed

    L2 of 5e-4 on every kernel but the head's, which the code has and the author switched off;
    GoogLeNet's fourth branch pools (``cifar_googlenet(pooled=True)``, which ``compare`` takes); a
    tenth of the training pictures validates, and the best epoch by it is scored on the test set.
    """
    return dataclasses.replace(
        cifar10_four_nets(facts),
        l2=0.0005,
        last_batch="even",
        split="0.72/0.08/0.2",
        keep="best",
        norm_statistics="fresh",
    )
