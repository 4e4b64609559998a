"""A plain fine-tuning loop over timm's network and augmentation: right answers, and of how many.

What a script from a tutorial does: timm's transforms, ImageFolder and DataLoader, AdamW with a
cosine schedule, cross entropy, f32.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from benchmarks.peers import lite0

BATCH, LR, DECAY = 32, 1e-3, 0.05


def main(folder: Path, epochs: int, seed: int) -> tuple[int, int]:
    """Train all of the network, and score the test split once."""
    torch.manual_seed(seed)
    classes = sum(path.is_dir() for path in (folder / "train").iterdir())
    module = lite0.network(classes)
    wanted = resolve_data_config({}, model=module)  # type: ignore[no-untyped-call]
    workers = os.cpu_count() or 1
    train, test = (
        DataLoader(
            ImageFolder(str(folder / part), create_transform(**wanted, is_training=training)),
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
            F.cross_entropy(module(images), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    module.eval()
    with torch.inference_mode():
        right = sum(int((module(x).argmax(1) == y).sum()) for x, y in test)
    return right, len(test.dataset)  # type: ignore[arg-type]


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
