"""Ask a run, its ONNX file and its server for odd pictures, and compare all their answers.

    python scripts/odd_pictures.py RUN PICTURES [--count 300]

PICTURES is a folder with parts whose test part has the run's classes. From its pictures odd ones
are made in a temporary folder: turned by EXIF, grey, with a palette, with transparency, of 16 bits,
CMYK, WebP, three times as wide as high and the other way, of 20 px, of 12 megapixels. Each goes
through `fieldmark evaluate`, `fieldmark predict`, `fieldmark.runtime` on the exported file and
`POST /predict` of a server. Printed is one JSON object; the exit code is 1 if a label differs or a
probability differs by 1e-4 or more.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

import fieldmark
from fieldmark import runtime
from fieldmark.data.folder import pictures_below

WITHIN = 1e-4
PORT = re.compile(r"http://127\.0\.0\.1:(\d+)")


def turned(orientation: int) -> Callable[[Image.Image], tuple[bytes, str]]:
    """A JPEG that says how it is to be turned."""

    def make(image: Image.Image) -> tuple[bytes, str]:
        exif = Image.Exif()
        exif[0x0112] = orientation
        return stored(image, "JPEG", quality=92, exif=exif), "jpg"

    return make


def stored(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def transparent(image: Image.Image, mode: str) -> tuple[bytes, str]:
    """With a ramp of transparency."""
    ramp = np.linspace(0, 255, image.width, dtype=np.uint8)[None].repeat(image.height, 0)
    image = image.convert(mode)
    image.putalpha(Image.fromarray(ramp))
    return stored(image, "PNG"), "png"


def deep(image: Image.Image) -> tuple[bytes, str]:
    """Grey, of 16 bits."""
    levels = np.asarray(image.convert("L")).astype(np.uint16) * 257
    return stored(Image.fromarray(levels), "PNG"), "png"


def resized(width: int, height: int) -> Callable[[Image.Image], tuple[bytes, str]]:
    """A JPEG of that size."""

    def make(image: Image.Image) -> tuple[bytes, str]:
        return stored(image.resize((width, height)), "JPEG", quality=92), "jpg"

    return make


KINDS: dict[str, Callable[[Image.Image], tuple[bytes, str]]] = {
    **{f"EXIF {n}": turned(n) for n in range(1, 9)},
    "grey": lambda image: (stored(image.convert("L"), "JPEG"), "jpg"),
    "palette": lambda image: (stored(image.quantize(64), "PNG"), "png"),
    "RGBA": lambda image: transparent(image, "RGB"),
    "LA": lambda image: transparent(image, "L"),
    "16 bits": deep,
    "CMYK": lambda image: (stored(image.convert("CMYK"), "JPEG"), "jpg"),
    "WebP": lambda image: (stored(image, "WebP"), "webp"),
    "progressive": lambda image: (stored(image, "JPEG", progressive=True), "jpg"),
    "3:1": resized(600, 200),
    "1:3": resized(200, 600),
    "20 px": resized(20, 20),
    "12 megapixels": resized(4000, 3000),
}


def make(source: Path, folder: Path, count: int) -> dict[str, str]:
    """Write the odd pictures in folders of their classes; returns what each file is."""
    originals = pictures_below(source)
    kinds: dict[str, str] = {}
    for number in range(count):
        kind = list(KINDS)[number % len(KINDS)]
        original = originals[number * len(originals) // count]
        with Image.open(original) as image:
            data, ending = KINDS[kind](image.convert("RGB"))
        file = folder / original.parent.name / f"{number:03}.{ending}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        kinds[file.relative_to(folder).as_posix()] = kind
    return kinds


def from_server(model: Path, folder: Path, keys: list[str]) -> dict[str, tuple[str, float]]:
    """What the server answers for each file, sent as it is."""
    words = [sys.executable, "-m", "fieldmark", "serve", str(model), "--port", "0"]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert server.stdout is not None
        port = next(match[1] for line in server.stdout if (match := PORT.search(line)))
        found = {}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            for key in keys:
                kind = {"content-type": "application/octet-stream"}
                answer = client.post(
                    "/predict", content=(folder / key).read_bytes(), headers=kind
                ).raise_for_status()
                first = answer.json()["predictions"][0]
                found[key] = (str(first["label"]), float(first["prob"]))
        return found
    finally:
        server.terminate()
        server.wait(30)


def main() -> int:
    """Make, ask, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--count", type=int, default=300)
    given = parser.parse_args()
    run = fieldmark.load(given.run)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "odd"
        kinds = make(given.pictures / "test", folder, given.count)
        keys = list(kinds)
        answers: dict[str, dict[str, tuple[str, float]]] = {}
        run.evaluate(str(folder))
        with (given.run / "predictions-odd.csv").open(encoding="utf-8-sig", newline="") as file:
            answers["evaluate"] = {
                row["file"]: (row["predicted"], float(row["prob"])) for row in csv.DictReader(file)
            }
        files = [folder / key for key in keys]
        answers["predict"] = {
            key: (str(one.label), float(one.prob))
            for key, one in zip(keys, run.predict(files), strict=True)
        }
        exported = Path(place) / "model.onnx"
        run.export(exported, to="onnx")
        answers["onnx"] = {
            key: (str(one.label), float(one.prob))
            for key, one in zip(keys, runtime.load(exported).predict(files), strict=True)
        }
        answers["server"] = from_server(given.run, folder, keys)
        answers["server of the onnx file"] = from_server(exported, folder, keys)
    base = answers.pop("predict")
    result: dict[str, Any] = {"pictures": len(keys), "kinds": len(KINDS)}
    good = True
    for name, theirs in answers.items():
        same = sum(theirs[key][0] == base[key][0] for key in keys)
        most = max(keys, key=lambda key: abs(theirs[key][1] - base[key][1]))
        difference = abs(theirs[most][1] - base[most][1])
        result[name] = {
            "same label": same,
            "largest difference": float(f"{difference:.2g}"),
            "of": kinds[most],
        }
        good = good and same == len(keys) and difference < WITHIN
    print(json.dumps(result, indent=1))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
