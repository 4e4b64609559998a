"""Tutorial 003's script on Keras and TensorFlow: training pictures a second after the first epoch.

The network, augmentation, optimizer and callbacks are the tutorial's; written for Keras 3, where
``fit_generator`` is ``fit`` and the number of workers belongs to the generator. The run's pictures
come from a folder and are decoded before the clock starts, as the tutorial's pickles are.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from PIL import Image

import keras
from keras import layers

WORKERS = 4


def unit(x: Any, filters: int, *, size: int = 3, stride: int = 1, norm: bool = True) -> Any:
    """Convolution with the tutorial's initial values and penalty, and batch norm."""
    x = layers.Conv2D(
        filters,
        size,
        strides=stride,
        padding="same",
        kernel_initializer="he_normal",
        kernel_regularizer=keras.regularizers.L2(1e-4),
    )(x)
    return layers.BatchNormalization()(x) if norm else x


def resnet20(classes: int) -> Any:
    """ResNet version 1 with three stages of three blocks."""
    inputs = keras.Input((32, 32, 3))
    x = layers.ReLU()(unit(inputs, 16))
    for stage, filters in enumerate((16, 32, 64)):
        for block in range(3):
            first = stage > 0 and block == 0
            y = layers.ReLU()(unit(x, filters, stride=2 if first else 1))
            y = unit(y, filters)
            if first:
                x = unit(x, filters, size=1, stride=2, norm=False)
            x = layers.ReLU()(layers.add([x, y]))
    x = layers.Flatten()(layers.AveragePooling2D(8)(x))
    # Mixed precision wants the probabilities in f32; without it that is what they are.
    outputs = layers.Dense(
        classes, activation="softmax", kernel_initializer="he_normal", dtype="float32"
    )(x)
    return keras.Model(inputs, outputs)


def read(folder: Path, side: int | None = None) -> tuple[Any, Any]:
    """Pictures as floats in 0..1, resized to a square if a side is given, and one-hot labels."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    files = [(file, k) for k, path in enumerate(classes) for file in sorted(path.glob("*"))]
    pictures = [Image.open(file).convert("RGB") for file, _ in files]
    if side is not None:
        pictures = [picture.resize((side, side)) for picture in pictures]
    images = np.stack([np.asarray(picture) for picture in pictures])
    labels = keras.utils.to_categorical([k for _, k in files], len(classes))
    return images.astype("float32") / 255, labels


class Clock(keras.callbacks.Callback):  # type: ignore[misc]
    """Seconds of each epoch's training."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self._start = 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Start."""
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Stop; there is no validation in between."""
        self.seconds.append(time.perf_counter() - self._start)


def main(folder: str, batch: str, epochs: str, precision: str) -> float:
    """Train; returns images a second over the epochs after the first."""
    keras.config.set_dtype_policy("mixed_bfloat16" if precision == "bf16" else "float32")
    images, labels = read(Path(folder) / "train")
    images -= images.mean(axis=0)
    model = resnet20(labels.shape[1])
    model.compile(
        loss="categorical_crossentropy",
        optimizer=keras.optimizers.Adam(learning_rate=1e-3),
        metrics=["accuracy"],
    )
    generator = tf.keras.preprocessing.image.ImageDataGenerator(
        width_shift_range=0.1, height_shift_range=0.1, horizontal_flip=True
    )
    generator.fit(images)
    flow = generator.flow(images, labels, batch_size=int(batch))
    flow.workers = WORKERS
    steps, clock = len(images) // int(batch), Clock()
    model.fit(flow, steps_per_epoch=steps, epochs=int(epochs), verbose=0, callbacks=[clock])
    return steps * int(batch) * (int(epochs) - 1) / sum(clock.seconds[1:])


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
