"""The pictures that the old runs were made of: small patterns, the same every time.

Nothing is drawn from a random number generator, whose stream may change with a version of NumPy.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

CLASSES = ("columns", "rows", "格子")
MORE_CLASSES = (*CLASSES, "dots", "plain", "slants")
SIDE = 12

ADDED = "rows/added.png"
"""What came to ``changing`` after its run had begun."""


def picture(kind: str, number: int) -> npt.NDArray[np.uint8]:
    """One picture of a class: colours and place of the pattern differ, and a little noise."""
    drawn = hashlib.shake_256(f"{kind} {number}".encode()).digest(8 + 3 * SIDE * SIDE)
    given = np.frombuffer(drawn, np.uint8).astype(np.int64)
    ground, contrast = 30 + given[:3] % 80, 60 + given[3] % 60
    y, x = np.mgrid[:SIDE, :SIDE]
    down, right = (y + given[4] % 4) % 4 < 2, (x + given[5] % 4) % 4 < 2
    shape = {
        "columns": right,
        "rows": down,
        "格子": down ^ right,
        "dots": down & right,
        "plain": np.zeros_like(down),
        "slants": (x + y + given[4] % 6) % 6 < 3,
    }[kind]
    noise = given[8:].reshape(SIDE, SIDE, 3) % 12
    return (ground + contrast * shape[..., None] + noise).astype(np.uint8)


def write_all(root: Path) -> None:
    """Write every set of pictures into its folder below ``root``.

    They are ``pictures``, ``others``, ``divided`` (by folders), ``changing`` and ``spoilt``.
    """
    _write(root / "pictures", dict.fromkeys(CLASSES, 16))
    _write(root / "others", dict.fromkeys(CLASSES, 5), start=200)
    _write(root / "divided" / "train", dict.fromkeys(MORE_CLASSES, 12), start=300)
    _write(root / "divided" / "test", dict.fromkeys(MORE_CLASSES, 5), start=400)
    _save(root / "divided" / "test" / "rows" / "copy.png", picture("rows", 300))
    _write(root / "changing", dict.fromkeys(CLASSES, 12), start=500)
    _save(root / "changing" / ADDED, picture("rows", 599))
    _write(root / "spoilt", {**dict.fromkeys(CLASSES, 15), "plain": 1}, start=600)
    for number in range(600, 608):  # the same pictures in a class that they are not of
        _save(root / "spoilt" / "rows" / f"copy-{number}.png", picture("columns", number))
    whole = (root / "spoilt" / "rows" / "600.png").read_bytes()
    (root / "spoilt" / "rows" / "broken.png").write_bytes(whole[: len(whole) // 2])
    (root / "spoilt" / "columns" / "text.png").write_text("no picture", encoding="utf-8")


def _write(folder: Path, counts: dict[str, int], *, start: int = 0) -> None:
    """Write so many pictures of each class, numbered from ``start`` on."""
    for kind, count in counts.items():
        for number in range(start, start + count):
            _save(folder / kind / f"{number:03d}.png", picture(kind, number))


def _save(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
