"""Fieldmark's way from a folder to fitted pictures in memory: pictures a second, all told.

They are fitted as training does it, without augmentation: once as the first thing that the process
does, and once more from the files.
"""

from __future__ import annotations

import json
import sys
import time

import torch

from fieldmark.augment import build
from fieldmark.data import open_dataset
from fieldmark.data.batches import Batches
from fieldmark.machine.cores import threads_for
from fieldmark.pictures.inputs import InputSpec
from fieldmark.settings.config import TrainConfig

BATCH = 64


def main(folder: str, size: int) -> tuple[float, float]:
    """Pictures a second the first and the second time in this process."""
    return rate(folder, size), rate(folder, size)


def rate(folder: str, size: int) -> float:
    """Open, check and fit every picture of every part; returns pictures a second."""
    start = time.perf_counter()
    config = TrainConfig(size=size)
    dataset = open_dataset(folder, config).divide(config)
    spec, threads = InputSpec(size=size, interpolation="bilinear"), threads_for(config.threads)
    parts = {id(part): part for part in dataset.parts.values()}
    fitted: list[torch.Tensor] = []
    for part in parts.values():
        batches = Batches(
            part,
            dataset.read,
            spec=spec,
            augment=build("none"),
            batch_size=BATCH,
            seed=0,
            threads=threads,
            fast=True,
        )
        fitted += [batch.images for batch in batches.in_order()]
    seconds = time.perf_counter() - start
    return sum(map(len, fitted)) / seconds


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
