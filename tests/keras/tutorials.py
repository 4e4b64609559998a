"""The tutorials' networks in Keras 3, written anew from their code: what ours are compared with.

Each ends as its tutorial's does: in a softmax, but for 002's, which ends in logits. Regularisers
are left out, since they change no output. What the tutorials fix and a test needs to vary is an
argument: the input's size and the dropout. Layers are made and called in the tutorial's order.
"""

from __future__ import annotations

import keras
from keras import KerasTensor as Tensor
from keras import layers


def sneaker(num_classes: int = 2, *, size: int = 224, dropout: float = 0.3) -> keras.Model:
    """002: the plain CNN for two brands of shoes. Takes pixels 0 to 255 and gives logits."""
    return keras.Sequential(
        [
            layers.Input((size, size, 3)),
            layers.Rescaling(1.0 / 255),
            layers.Conv2D(16, 3, activation="relu"),
            layers.AveragePooling2D(2),
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Dropout(dropout),
            layers.Conv2D(64, 3, activation="relu"),
            layers.Dropout(dropout),
            layers.Flatten(),
            layers.Dense(128, activation="relu"),
            layers.Dense(num_classes),
        ]
    )


def resnet50(num_classes: int = 1000, *, size: int = 224, pool: int = 7) -> keras.Model:
    """001: ResNet-50 with an unpadded max-pool. The tutorial has 224 px, whose last map is 7x7."""
    inputs = layers.Input((size, size, 3))
    x = layers.ZeroPadding2D(3)(inputs)
    x = layers.Conv2D(64, 7, strides=2)(x)
    x = layers.BatchNormalization()(x)
    x = layers.Activation("relu")(x)
    x = layers.MaxPooling2D(3, strides=2, name="pool")(x)
    for stage, (middle, count) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for unit in range(count):
            strides = 2 if stage > 0 and unit == 0 else 1
            x = _bottleneck(x, middle, strides, project=unit == 0)
    x = layers.AveragePooling2D(pool)(x)
    x = layers.Flatten()(x)
    return keras.Model(inputs, layers.Dense(num_classes, activation="softmax")(x))


def _bottleneck(inputs: Tensor, middle: int, strides: int, *, project: bool) -> Tensor:
    x = layers.Conv2D(middle, 1, strides=strides)(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.Activation("relu")(x)
    x = layers.Conv2D(middle, 3, padding="same")(x)
    x = layers.BatchNormalization()(x)
    x = layers.Activation("relu")(x)
    x = layers.Conv2D(4 * middle, 1)(x)
    x = layers.BatchNormalization()(x)
    shortcut = inputs
    if project:
        shortcut = layers.Conv2D(4 * middle, 1, strides=strides)(inputs)
        shortcut = layers.BatchNormalization()(shortcut)
    return layers.Activation("relu")(layers.add([x, shortcut]))


def _he(channels: int, kernel: int, strides: int = 1) -> layers.Conv2D:
    """003's convolution."""
    return layers.Conv2D(
        channels, kernel, strides=strides, padding="same", kernel_initializer="he_normal"
    )


def _tiny_top(x: Tensor, inputs: Tensor, num_classes: int, pool: int) -> keras.Model:
    """003's end: an average pool over the whole last map, which is 8x8 at 32 px."""
    x = layers.Flatten()(layers.AveragePooling2D(pool)(x))
    dense = layers.Dense(num_classes, activation="softmax", kernel_initializer="he_normal")
    return keras.Model(inputs, dense(x))


def tiny_resnet_v1(depth: int = 20, num_classes: int = 10, *, size: int = 32) -> keras.Model:
    """003: version 1, depth 6n+2."""
    inputs = layers.Input((size, size, 3))
    x = layers.BatchNormalization()(_he(16, 3)(inputs))
    x = layers.Activation("relu")(x)
    channels = 16
    for stage in range(3):
        for unit in range((depth - 2) // 6):
            strides = 2 if stage > 0 and unit == 0 else 1
            y = layers.BatchNormalization()(_he(channels, 3, strides)(x))
            y = layers.Activation("relu")(y)
            y = layers.BatchNormalization()(_he(channels, 3)(y))
            if strides == 2:
                x = _he(channels, 1, strides)(x)
            x = layers.Activation("relu")(layers.add([x, y]))
        channels *= 2
    return _tiny_top(x, inputs, num_classes, -(-size // 4))


def tiny_resnet_v2(depth: int = 20, num_classes: int = 10, *, size: int = 32) -> keras.Model:
    """003's example in version 2, depth 9n+2: bottlenecks with norm and relu first."""
    inputs = layers.Input((size, size, 3))
    x = layers.BatchNormalization()(_he(16, 3)(inputs))
    x = layers.Activation("relu")(x)
    middle = 16
    for stage in range(3):
        channels = middle * (4 if stage == 0 else 2)
        for unit in range((depth - 2) // 9):
            strides = 2 if stage > 0 and unit == 0 else 1
            y = x
            if stage > 0 or unit > 0:
                y = layers.Activation("relu")(layers.BatchNormalization()(y))
            y = _he(middle, 1, strides)(y)
            y = layers.Activation("relu")(layers.BatchNormalization()(y))
            y = _he(middle, 3)(y)
            y = layers.Activation("relu")(layers.BatchNormalization()(y))
            y = _he(channels, 1)(y)
            if unit == 0:
                x = _he(channels, 1, strides)(x)
            x = layers.add([x, y])
        middle = channels
    x = layers.Activation("relu")(layers.BatchNormalization()(x))
    return _tiny_top(x, inputs, num_classes, -(-size // 4))


def _norm_relu(x: Tensor) -> Tensor:
    return layers.Activation("relu")(layers.BatchNormalization()(x))


def _conv(x: Tensor, channels: int, kernel: int, strides: int = 1) -> Tensor:
    """004's convolution with norm and relu."""
    return _norm_relu(layers.Conv2D(channels, kernel, strides=strides, padding="same")(x))


def _hidden_top(x: Tensor, inputs: Tensor, num_classes: int, rate: float) -> keras.Model:
    """004's end: 512 hidden units."""
    x = _norm_relu(layers.Dense(512)(x))
    x = layers.Dense(num_classes)(layers.Dropout(rate)(x))
    return keras.Model(inputs, layers.Activation("softmax")(x))


def vgg16(num_classes: int = 10, *, size: int = 32, dropout: float = 1.0) -> keras.Model:
    """004: VGG16 with batch norm and dropout. ``dropout`` is a factor of its rates."""
    inputs = layers.Input((size, size, 3))
    x = inputs
    groups = ((64, (0.3,)), (128, (0.4,)), (256, (0.4, 0.4)), (512, (0.4, 0.4)), (512, (0.4, 0.4)))
    for channels, rates in groups:
        for rate in rates:
            x = layers.Dropout(rate * dropout)(_conv(x, channels, 3))
        x = layers.MaxPooling2D(2)(_conv(x, channels, 3))
    x = layers.Flatten()(layers.Dropout(0.5 * dropout)(x))
    return _hidden_top(x, inputs, num_classes, 0.5 * dropout)


def vgg16_big(num_classes: int = 10, *, size: int = 32, dropout: float = 1.0) -> keras.Model:
    """004: VGG16_bigConv, one 5x5 or 7x7 in place of each group. ``dropout`` is a factor."""
    inputs = layers.Input((size, size, 3))
    x = inputs
    for channels, kernel, rate in (
        (64, 5, 0.3),
        (128, 5, 0.4),
        (256, 7, 0.4),
        (512, 7, 0.4),
        (512, 7, 0.4),
    ):
        x = layers.Dropout(rate * dropout)(_conv(x, channels, kernel))
        x = layers.MaxPooling2D(2)(x)
    x = layers.Flatten()(layers.Dropout(0.5 * dropout)(x))
    return _hidden_top(x, inputs, num_classes, 0.5 * dropout)


INCEPTIONS = (
    (64, 96, 128, 16, 32, 32),
    (128, 128, 192, 32, 96, 64),
    (),
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
    (),
    (256, 160, 320, 32, 128, 128),
    (384, 192, 384, 48, 128, 128),
)
"""Widths that 004 halves; empty for a pool."""


def googlenet(
    num_classes: int = 10, *, size: int = 32, dropout: float = 0.5, pooled: bool = False
) -> keras.Model:
    """004: GoogLeNet_V3.

    Args:
        num_classes: Classes.
        size: Height and width of the input.
        dropout: Rate before the last layer.
        pooled: Whether the fourth branch sees the 2x2 pool. In the tutorial's code it does not: the
            pool's output is assigned, and the convolution after it is called on the module's input
            (``x4=MaxPooling2D(...)(x)`` and then ``x4=Conv2D(...)(x)``).
    """
    inputs = layers.Input((size, size, 3))
    x = layers.MaxPooling2D(3, strides=2, padding="same")(_conv(inputs, 64, 3))
    x = layers.MaxPooling2D(3, strides=2, padding="same")(_conv(x, 96, 5))
    for widths in INCEPTIONS:
        if not widths:
            x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
            continue
        one, three_in, three, five_in, five, last = (width // 2 for width in widths)
        x1 = _conv(x, one, 1)
        x2 = _conv(_conv(x, three_in, 1), three, 3)
        x3 = _conv(_conv(x, five_in, 1), five, 5)
        x4 = layers.MaxPooling2D(2, strides=1, padding="same")(x) if pooled else x
        x4 = _conv(x4, last, 1)
        x = layers.Concatenate()([x1, x2, x3, x4])
    return _hidden_top(layers.GlobalMaxPooling2D()(x), inputs, num_classes, dropout)


def resnet18(num_classes: int = 10, *, size: int = 32, dropout: float = 0.5) -> keras.Model:
    """004: ResNet18, every stage with a projection. ``dropout`` is the rate."""
    inputs = layers.Input((size, size, 3))
    x = layers.MaxPooling2D(3, strides=2, padding="same")(_conv(inputs, 64, 3))
    for channels, strides in ((64, 1), (128, 2), (256, 2), (512, 2)):
        y = _conv(x, channels, 3, strides)
        y = layers.BatchNormalization()(layers.Conv2D(channels, 3, padding="same")(y))
        z = layers.Conv2D(channels, 1, strides=strides, padding="same")(x)
        z = layers.BatchNormalization()(z)
        x = layers.Activation("relu")(layers.Add()([y, z]))
        y = _conv(x, channels, 3)
        y = layers.BatchNormalization()(layers.Conv2D(channels, 3, padding="same")(y))
        x = layers.Activation("relu")(layers.Add()([y, x]))
    return _hidden_top(layers.GlobalMaxPooling2D()(x), inputs, num_classes, dropout)
