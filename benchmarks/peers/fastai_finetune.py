"""fastai's fine_tune of timm's network: right answers, and of how many.

``vision_learner`` and ``fine_tune`` as fastai's own guide has them: one epoch of the head, then all
of the network at discriminative rates.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from fastai.vision.all import (
    ImageDataLoaders,
    Normalize,
    Resize,
    accuracy,
    aug_transforms,
    set_seed,
    vision_learner,
)

from benchmarks.peers import lite0

SIZE, BATCH = 224, 32


def main(folder: Path, epochs: int, seed: int) -> tuple[int, int]:
    """Fine-tune, and score the test split, which plays fastai's validation split."""
    set_seed(seed)
    half = [0.5] * 3
    loaders = ImageDataLoaders.from_folder(
        folder,
        train="train",
        valid="test",
        item_tfms=Resize(256),
        batch_tfms=[*aug_transforms(size=SIZE), Normalize.from_stats(half, half)],
        bs=BATCH,
        device="cpu",
    )
    learner = vision_learner(loaders, lite0.NAME, pretrained=False, metrics=accuracy)
    learner.model[0].model.load_state_dict(lite0.weights())
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(epochs)
        score = learner.validate()[1]
    n = len(loaders.valid_ds)
    return round(score * n), n


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
