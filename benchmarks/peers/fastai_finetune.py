"""fastai's fine_tune of timm's network: right answers, and of how many.

``vision_learner`` and ``fine_tune`` as fastai's own guide has them: one epoch of the head, then all
of the network at discriminative rates. Characters are not mirrored, and are squashed to a square,
because a square cut out of one misses strokes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from fastai.vision.all import (
    ImageDataLoaders,
    Normalize,
    Resize,
    ResizeMethod,
    accuracy,
    aug_transforms,
    set_seed,
    vision_learner,
)

from benchmarks.peers import lite0

SIZE, BATCH = 224, 32
LARGER = 8 / 7
"""What is loaded over what is cut out of it."""


def main(
    folder: Path, epochs: int, seed: int, *, size: int = SIZE, characters: bool = False
) -> tuple[int, int]:
    """Fine-tune, and score the test split, which plays fastai's validation split."""
    set_seed(seed)
    half = [0.5] * 3
    method = ResizeMethod.Squish if characters else ResizeMethod.Crop
    changes = aug_transforms(size=size, do_flip=not characters)
    loaders = ImageDataLoaders.from_folder(
        folder,
        train="train",
        valid="test",
        item_tfms=Resize(round(size * LARGER), method),
        batch_tfms=[*changes, Normalize.from_stats(half, half)],
        bs=BATCH,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
    learner = vision_learner(loaders, lite0.NAME, pretrained=False, metrics=accuracy)
    learner.model[0].model.load_state_dict(lite0.weights())
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(epochs)
        score = learner.validate()[1]
    n = len(loaders.valid_ds)
    return round(score * n), n


if __name__ == "__main__":
    data, epochs, seed, *rest = sys.argv[1:]
    asked: dict[str, Any] = {}
    if rest:
        asked = {"size": int(rest[0]), "characters": rest[1] == "characters"}
    print(json.dumps(main(Path(data), int(epochs), int(seed), **asked)))
