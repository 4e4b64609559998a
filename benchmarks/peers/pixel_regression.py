"""scikit-learn's logistic regression on pixels: right answers, and of how many.

Pictures of more than 32 px are made that small, those of several sizes are squashed to one; grey
ones have one number a pixel. Pixels are standardised, and C is chosen by cross-validation in as
many parts as the smallest class allows, five at most.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

SIDE, PARTS = 32, 5
STRENGTHS = np.logspace(-5, 0, 6)
"""C that are tried; thousands of pixels want small ones."""
MANY, PARTS_OF_MANY = 2_000, 3


def read(folder: Path, side: int = 0) -> tuple[Any, Any, int]:
    """Pixels of every picture, its class, and the side of the pictures."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    files = [(file, k) for k, path in enumerate(classes) for file in sorted(path.iterdir())]
    images = [Image.open(file).convert("RGB") for file, _ in files]
    side = side or min(SIDE, round(float(np.median([min(image.size) for image in images]))))
    bilinear = Image.Resampling.BILINEAR
    pixels = np.stack([np.asarray(image.resize((side, side), bilinear)) for image in images])
    return pixels, np.asarray([k for _, k in files]), side


def main(folder: Path, seed: int) -> tuple[int, int]:
    """Choose C and fit on the training split; score the test split once."""
    train, labels, side = read(folder / "train")
    test, expected, _ = read(folder / "test", side)
    if (train == train[..., :1]).all():
        train, test = train[..., :1], test[..., :1]
    most = PARTS if len(train) < MANY else PARTS_OF_MANY
    parts = StratifiedKFold(
        max(2, min(most, np.bincount(labels).min())), shuffle=True, random_state=seed
    )
    chosen = LogisticRegressionCV(Cs=STRENGTHS, cv=parts, max_iter=300, tol=1e-3)
    model = make_pipeline(StandardScaler(), chosen)
    with (
        warnings.catch_warnings()
    ):  # of names in later versions, and of large C that need more steps
        warnings.simplefilter("ignore")
        model.fit(train.reshape(len(train), -1), labels)
    right = int((model.predict(test.reshape(len(test), -1)) == expected).sum())
    return right, len(expected)


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]))))
