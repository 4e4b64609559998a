"""Fieldmark's predictions: pictures a second of a folder, milliseconds of one; decoder's rate.

Decoding alone is the fastest decoder with its resizing in all threads, in the same process.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

import fieldmark
from benchmarks.peers import decoders

SIZE = 224

WARM_UPS = 10


def main(run: str, folder: str, repeats: int) -> tuple[float, float, float]:
    """Everything is warm: a first call of each kind is not counted."""
    trained = fieldmark.load(run)
    count = len(trained.predict(folder))
    start = time.perf_counter()
    trained.predict(folder)
    rate = count / (time.perf_counter() - start)
    one = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    times = [_seconds(trained, one) for _ in range(WARM_UPS + repeats)][WARM_UPS:]
    files = sorted(Path(folder).rglob("*.jpg"))
    start = time.perf_counter()
    decoders.all_threads(files, SIZE)
    decoding = len(files) / (time.perf_counter() - start)
    return rate, decoding, 1000 * statistics.median(times)


def _seconds(trained: fieldmark.Run, picture: npt.NDArray[np.uint8]) -> float:
    start = time.perf_counter()
    trained.predict(picture)
    return time.perf_counter() - start


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
