"""torchvision's ImageFolder and torch's DataLoader: pictures a second in the second pass."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from torch.utils.data import ConcatDataset, DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

BATCH = 64


def main(folder: str, size: int, workers: int) -> float:
    """Both parts, twice; the workers live on."""
    change = v2.Compose([v2.Resize(size), v2.CenterCrop(size), v2.PILToTensor()])
    parts = [ImageFolder(str(part), change) for part in sorted(Path(folder).glob("*/"))]
    loader: DataLoader[Any] = DataLoader(
        ConcatDataset(parts),
        batch_size=BATCH,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    for _ in range(2):
        start = time.perf_counter()
        images = [batch for batch, _ in loader]
        seconds = time.perf_counter() - start
    return sum(map(len, images)) / seconds


if __name__ == "__main__":
    print(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
