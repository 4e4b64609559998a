"""What transfer learning cannot do without, in seconds: torch, every pixel once, one pass.

Decoding is a pool of threads with the fastest decoder and its resizing; the pass is PyTorch's own,
f32, channels last.
"""

from __future__ import annotations

import json
import sys
import time

start = time.perf_counter()
import torch  # noqa: E402 - its import is measured

TORCH = time.perf_counter() - start

from pathlib import Path  # noqa: E402

from benchmarks.peers import decoders, lite0  # noqa: E402

SIZE, BATCH = 224, 64


def main(folder: str) -> dict[str, float]:
    """Seconds of each part; building the network and loading its weights is in none."""
    files = sorted(Path(folder).rglob("*.jpg"))
    before = time.perf_counter()
    images = decoders.all_threads(files, SIZE)
    decoded = time.perf_counter() - before
    module = lite0.network(2).eval().to(memory_format=torch.channels_last)
    before = time.perf_counter()
    with torch.inference_mode():
        for first in range(0, len(images), BATCH):
            part = [torch.from_numpy(image) for image in images[first : first + BATCH]]
            module(torch.stack(part).permute(0, 3, 1, 2).float() / 127.5 - 1)
    return {
        "import torch, s": TORCH,
        "decoding, s": decoded,
        "one pass, s": time.perf_counter() - before,
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
