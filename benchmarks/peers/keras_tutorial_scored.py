"""Tutorial 003's script on Keras and TensorFlow, to the end: right answers, and of how many.

Network, augmentation, optimizer and number of epochs are the tutorial's, and so is the fall of the
rate to a tenth after 81 of 100 epochs, at the same part of fewer. Differences: pictures of another
size are resized to its 32 px; characters are not mirrored; the last epoch is scored, and the test
split chooses none.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import tensorflow as tf

import keras
from benchmarks.peers import keras_tutorial as tutorial

BATCH, LR, FALL = 32, 1e-3, 0.81


def main(folder: Path, epochs: int, seed: int, *, characters: bool) -> tuple[int, int]:
    """Train, and score the test split once."""
    keras.utils.set_random_seed(seed)
    images, labels = tutorial.read(folder / "train", side=32)
    test, expected = tutorial.read(folder / "test", side=32)
    mean = images.mean(axis=0)
    model = tutorial.resnet20(labels.shape[1])
    model.compile(
        loss="categorical_crossentropy",
        optimizer=keras.optimizers.Adam(learning_rate=LR),
        metrics=["accuracy"],
    )
    generator = tf.keras.preprocessing.image.ImageDataGenerator(
        width_shift_range=0.1, height_shift_range=0.1, horizontal_flip=not characters
    )
    falling = keras.callbacks.LearningRateScheduler(
        lambda epoch: LR if epoch < FALL * epochs else LR / 10
    )
    flow = generator.flow(images - mean, labels, batch_size=BATCH, seed=seed)
    flow.workers = tutorial.WORKERS
    model.fit(flow, epochs=epochs, verbose=0, callbacks=[falling])
    found = model.predict(test - mean, batch_size=256, verbose=0).argmax(axis=1)
    return int((found == np.argmax(expected, axis=1)).sum()), len(expected)


if __name__ == "__main__":
    data, epochs, seed, kind = sys.argv[1:]
    answer = main(Path(data), int(epochs), int(seed), characters=kind == "characters")
    print(json.dumps(answer))
