"""The digits data set that is part of scikit-learn: needs no file and no network."""

from __future__ import annotations

import numpy as np

from fieldmark.data.dataset import Entry, Found
from fieldmark.pictures.picture import BadPicture, InMemory


def read_digits() -> Found:
    """Read the 1797 handwritten digits of 8x8 pixels; no split is given.

    Source:
        Alpaydin and Kaynak, Optical Recognition of Handwritten Digits (UCI, 1998), the test set,
        as ``sklearn.datasets.load_digits`` holds it. Grey levels 0 to 16 become 0 to 255.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # [N, 8, 8]
    keys = [f"digits/{i:04d}" for i in range(len(grey))]
    rows = {key: i for i, key in enumerate(keys)}

    def load(key: str) -> InMemory:
        if key not in rows:
            raise BadPicture("no such picture", key)
        return InMemory(np.repeat(grey[rows[key], :, :, None], 3, axis=2))  # [8, 8, 3]

    labels = digits.target.tolist()
    return Found(
        name="digits",
        class_names=tuple(str(name) for name in digits.target_names),
        entries=tuple(Entry(key, label) for key, label in zip(keys, labels, strict=True)),
        load=load,
    )
