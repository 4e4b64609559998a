"""A plain fine-tuning loop over timm's network and augmentation: right answers, and of how many.

What a script from a tutorial does: timm's transforms, ImageFolder and DataLoader, AdamW with a
cosine schedule, cross entropy, f32. Characters are not mirrored, are cropped by a quarter at most,
and are squashed to a square, because a square cut out of one misses strokes.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import Compose, InterpolationMode, Resize

from benchmarks.peers import lite0

SIZE, BATCH, LR, DECAY = 224, 32, 1e-3, 0.05


def transforms(wanted: dict[str, Any], *, training: bool, characters: bool) -> Any:
    """Timm's own for photographs."""
    if not characters:
        return create_transform(**wanted, is_training=training)
    gentle: dict[str, Any] = {"scale": (0.75, 1.0), "hflip": 0.0} if training else {}
    own = create_transform(**{**wanted, "crop_pct": 1.0}, is_training=training, **gentle)
    return Compose([Resize(wanted["input_size"][1:], InterpolationMode.BICUBIC), own])


def main(
    folder: Path, epochs: int, seed: int, *, size: int = SIZE, characters: bool = False
) -> tuple[int, int]:
    """Train all of the network, and score the test split once."""
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classes = sum(path.is_dir() for path in (folder / "train").iterdir())
    module = lite0.network(classes).to(device)
    asked = {"input_size": (3, size, size)}
    wanted = resolve_data_config(asked, model=module)  # type: ignore[no-untyped-call]
    workers = os.cpu_count() or 1
    train, test = (
        DataLoader(
            ImageFolder(
                str(folder / part), transforms(wanted, training=training, characters=characters)
            ),
            batch_size=BATCH,
            shuffle=training,
            num_workers=workers,
            persistent_workers=training,
        )
        for part, training in (("train", True), ("test", False))
    )
    optimizer = torch.optim.AdamW(module.parameters(), lr=LR, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(train))
    module.train()
    for _ in range(epochs):
        for images, labels in train:
            optimizer.zero_grad()
            F.cross_entropy(module(images.to(device)), labels.to(device)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    module.eval()
    with torch.inference_mode():
        right = sum(int((module(x.to(device)).argmax(1).cpu() == y).sum()) for x, y in test)
    return right, len(test.dataset)  # type: ignore[arg-type]


if __name__ == "__main__":
    data, epochs, seed, *rest = sys.argv[1:]
    given: dict[str, Any] = {}
    if rest:
        given = {"size": int(rest[0]), "characters": rest[1] == "characters"}
    print(json.dumps(main(Path(data), int(epochs), int(seed), **given)))
