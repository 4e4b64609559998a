"""One thread of one JPEG decoder, from a file to pixels: pictures a second, also with resizing.

Each resizes by its own means, bilinearly, to a square.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

Decode = Callable[[bytes], Any]
Resize = Callable[[Any, int], Any]
REPEATS = 3


def pillow() -> tuple[Decode, Resize]:
    """Pillow."""
    from PIL import Image

    def decode(data: bytes) -> Any:
        image = Image.open(io.BytesIO(data))
        image.load()
        return image

    return decode, lambda image, size: image.resize((size, size), Image.Resampling.BILINEAR)


def simplejpeg() -> tuple[Decode, Resize]:
    """Simplejpeg, which does not resize: OpenCV does it."""
    import simplejpeg as library

    return library.decode_jpeg, opencv()[1]


def opencv() -> tuple[Decode, Resize]:
    """OpenCV, in its own order of channels."""
    import cv2
    import numpy as np

    cv2.setNumThreads(1)

    def decode(data: bytes) -> Any:
        return cv2.imdecode(np.frombuffer(data, dtype=np.uint8), cv2.IMREAD_COLOR)

    return decode, lambda image, size: cv2.resize(image, (size, size))


def torchvision() -> tuple[Decode, Resize]:
    """Torchvision, antialiased."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg
    from torchvision.transforms.v2.functional import resize

    torch.set_num_threads(1)

    def decode(data: bytes) -> Any:
        return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)

    return decode, lambda image, size: resize(image, [size, size], antialias=True)


DECODERS = {
    "pillow": pillow,
    "simplejpeg": simplejpeg,
    "opencv": opencv,
    "torchvision": torchvision,
}


def all_threads(files: Sequence[Path], size: int) -> list[Any]:
    """Every picture by the fastest decoder and its resizing, on all cores.

    Shape:
        uint8 [size, size, 3] each.
    """
    decode, resize = simplejpeg()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda file: resize(decode(file.read_bytes()), size), files))


def main(name: str, folder: str, size: int) -> tuple[float, float]:
    """Rates over all files, the best of three passes."""
    decode, resize = DECODERS[name]()
    files = sorted(Path(folder).rglob("*.jpg"))
    alone, fitted = [], []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for file in files:
            decode(file.read_bytes())
        middle = time.perf_counter()
        for file in files:
            resize(decode(file.read_bytes()), size)
        alone.append(len(files) / (middle - start))
        fitted.append(len(files) / (time.perf_counter() - middle))
    return max(alone), max(fitted)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
