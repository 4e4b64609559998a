"""Decode thousands of damaged pictures of every format, and write down what came of them.

    python scripts/fuzz_pictures.py --files 10000 --out docs/reliability/mutated.json

A file is a small picture made in code, with one to three mutations: flipped bits, other bytes,
extreme numbers, a cut, parts swapped, doubled or left out. Parts are what the format consists of
(chunks, segments, boxes, directory entries). Each file is decoded as training does it, and must
have an answer: pixels, or one of the reasons that a bad picture can have. The exit code is 1 if one
had another or none, or if this process's memory grew by more than 200 MB.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import pillow_heif
from PIL import Image, ImageDraw

from fieldmark.pictures import isolated, jpeg
from fieldmark.pictures.decode import REASONS, Encoded
from fieldmark.pictures.formats import sniff
from fieldmark.pictures.limits import PictureLimits
from fieldmark.pictures.picture import BadPicture
from fieldmark.pictures.plain import is_plain

MEMORY_MB = 200
LIMITS = PictureLimits(decode_side=64)
_WARM_UP = 100
"""Files after which memory is what it should stay."""

Draw = np.random.Generator
_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


# Whole pictures


def originals() -> list[tuple[str, bytes]]:
    """Pictures of every format that is read, in the variants that decoders treat differently."""
    image = _scene()
    grey, clear = image.convert("L"), image.copy()
    clear.putalpha(grey)
    wide = np.asarray(grey).astype(np.uint16) * 257
    real = np.asarray(grey).astype(np.float32) / 255
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a maker"
    more: dict[str, Any] = {"save_all": True, "append_images": [image.rotate(90)] * 2}
    wanted: list[tuple[str, Image.Image, dict[str, Any]]] = [
        ("JPEG", image, {}),
        ("JPEG", image, {"progressive": True, "exif": exif, "icc_profile": bytes(300)}),
        ("JPEG", image, {"subsampling": 0, "restart_marker_rows": 1, "comment": b"a comment"}),
        ("JPEG", grey, {"optimize": True}),
        ("JPEG", image.convert("CMYK"), {}),
        ("PNG", image, {"exif": exif}),
        ("PNG", clear, {"icc_profile": bytes(300)}),
        ("PNG", image.quantize(16), {"transparency": 3}),
        ("PNG", Image.fromarray(wide), {}),
        ("PNG", image.convert("1"), {}),
        ("PNG", image, more),
        ("GIF", image.quantize(64), {}),
        ("GIF", image, more),
        ("BMP", image, {}),
        ("BMP", image.quantize(16), {}),
        ("BMP", image.convert("1"), {}),
        ("TIFF", image, {}),
        ("TIFF", image, {"compression": "tiff_lzw"}),
        ("TIFF", image, {"compression": "jpeg"}),
        ("TIFF", clear, {"compression": "tiff_adobe_deflate"}),
        ("TIFF", image.convert("1"), {"compression": "group4"}),
        ("TIFF", Image.fromarray(real), {"compression": "packbits"}),
        ("TIFF", Image.fromarray(wide), more),
        ("WEBP", image, {"quality": 80, "exif": exif}),
        ("WEBP", clear, {"lossless": True}),
        ("WEBP", image, more),
        ("AVIF", image, {"quality": 60, "exif": exif}),
        ("AVIF", clear, {"quality": 60}),
        ("AVIF", image, more),
    ]
    found = []
    for kind, picture, options in wanted:
        stream = io.BytesIO()
        picture.save(stream, kind, **options)
        found.append((sniff(stream.getvalue()) or kind, stream.getvalue()))
    stream = io.BytesIO()
    pillow_heif.from_pillow(image).save(stream, quality=60)
    return [*found, ("HEIC", stream.getvalue())]


def _scene() -> Image.Image:
    y, x = np.mgrid[:56, :72]
    waves = [127 + 90 * np.sin(x / (5 + c)) * np.cos(y / (7 - c)) for c in range(3)]
    image = Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8))
    ImageDraw.Draw(image).ellipse((10, 8, 50, 44), fill=(250, 40, 10))
    return image


# What a format consists of


def cuts(kind: str, data: bytes) -> list[int]:
    """Where the parts of a whole file begin and the last one ends; from the first that can move.

    Of a GIF, and of a file that is one part, they are blocks of some bytes.
    """
    found = _cuts(kind, data)
    return found if len(found) > 2 else [*range(16, len(data), 40), len(data)]


def _cuts(kind: str, data: bytes) -> list[int]:
    if kind == "PNG":
        return _lengths(data, 8, lambda at: 12 + int.from_bytes(data[at : at + 4], "big"))
    if kind == "JPEG":
        ends = _lengths(data, 2, lambda at: 2 + int.from_bytes(data[at + 2 : at + 4], "big"))
        first_scan = data.index(jpeg.SOS)
        return [at for at in ends if at <= first_scan] + [len(data)]
    if kind == "WebP":
        size = struct.Struct("<I").unpack_from
        return _lengths(data, 12, lambda at: 8 + size(data, at + 4)[0] + size(data, at + 4)[0] % 2)
    if kind in ("AVIF", "HEIC"):
        boxes = _lengths(data, 0, lambda at: int.from_bytes(data[at : at + 4], "big"))
        meta = data.index(b"meta") + 8
        inner = _lengths(data, meta, lambda at: int.from_bytes(data[at : at + 4], "big"))
        return sorted({*boxes, *(at for at in inner if at < boxes[2])})
    if kind == "TIFF":
        directory = int.from_bytes(data[4:8], "little")
        number = int.from_bytes(data[directory : directory + 2], "little")
        return [directory + 2 + 12 * i for i in range(number + 1)]
    if kind == "BMP":
        return [*range(2, 54, 4), len(data)]
    return []


def _lengths(data: bytes, at: int, length: Callable[[int], int]) -> list[int]:
    found = [at]
    while at < len(data) and length(at) > 0:
        at += length(at)
        found.append(min(at, len(data)))
    return found


# Mutations: of the bytes, in place


def _flip(data: bytearray, draw: Draw, _: list[int]) -> None:
    for place in (_where(data, draw) for _time in range(draw.integers(1, 17))):
        data[place] ^= 1 << int(draw.integers(8))


def _other(data: bytearray, draw: Draw, _: list[int]) -> None:
    at, size = _where(data, draw), int(draw.integers(1, 40))
    data[at : at + size] = draw.bytes(len(data[at : at + size]))


def _extreme(data: bytearray, draw: Draw, _: list[int]) -> None:
    at, size = _where(data, draw), int(draw.choice([1, 2, 4]))
    value = int(draw.choice(_EXTREMES)) & (2 ** (8 * size) - 1)
    data[at : at + size] = value.to_bytes(size, ("big", "little")[int(draw.integers(2))])


def _cut(data: bytearray, draw: Draw, _: list[int]) -> None:
    del data[int(draw.integers(len(data) + 1)) :]


def _zeros(data: bytearray, draw: Draw, _: list[int]) -> None:
    at = int(draw.integers(len(data) + 1))
    end = int(draw.integers(at, len(data) + 1))
    data[at:end] = bytes(end - at)


def _swap(data: bytearray, draw: Draw, ends: list[int]) -> None:
    first, second = sorted(draw.choice(len(ends) - 1, 2, replace=False).tolist())
    a, b, c, d = ends[first], ends[first + 1], ends[second], ends[second + 1]
    data[a:d] = data[c:d] + data[b:c] + data[a:b]


def _double(data: bytearray, draw: Draw, ends: list[int]) -> None:
    i = int(draw.integers(len(ends) - 1))
    data[ends[i] : ends[i]] = data[ends[i] : ends[i + 1]] * int(draw.choice([1, 1, 1, 2, 50]))


def _leave_out(data: bytearray, draw: Draw, ends: list[int]) -> None:
    i = int(draw.integers(len(ends) - 1))
    del data[ends[i] : ends[i + 1]]


def _where(data: bytearray, draw: Draw) -> int:
    """Half of all damage is to the first bytes, where most of what is not pixels stands."""
    most = len(data) if draw.random() < 0.5 else min(len(data), 200)
    return int(draw.integers(max(most, 1))) if data else 0


MUTATIONS: dict[str, Callable[[bytearray, Draw, list[int]], None]] = {
    "bits flipped": _flip,
    "other bytes": _other,
    "extreme number": _extreme,
    "cut": _cut,
    "zeros": _zeros,
    "parts swapped": _swap,
    "part doubled": _double,
    "part left out": _leave_out,
}
_OF_PARTS = ("parts swapped", "part doubled", "part left out")


def mutated(kind: str, data: bytes, draw: Draw) -> tuple[bytes, str]:
    """A damaged copy, and the name of its first mutation."""
    first, *others = draw.choice(list(MUTATIONS), int(draw.integers(1, 4))).tolist()
    copy = bytearray(data)
    MUTATIONS[first](copy, draw, cuts(kind, data))
    for name in others:
        if name not in _OF_PARTS and copy:  # the parts are no longer where they were
            MUTATIONS[name](copy, draw, [])
    mend = kind == "PNG" and draw.random() < 0.5
    return _with_checksums(bytes(copy)) if mend else bytes(copy), first


def _with_checksums(png: bytes) -> bytes:
    """A PNG's chunks with the checksums they need to be looked into."""
    found, at = png[:8], 8
    while at + 12 <= len(png):
        (size,) = struct.unpack_from(">I", png, at)
        body = png[at + 4 : at + 8 + size]
        found += png[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + size
    return found + png[at:]


# What comes of them


@dataclass
class Result:
    """Counts and measurements of all files."""

    files: int = 0
    answered: int = 0
    formats: dict[str, Counter[str]] = field(default_factory=dict)
    mutations: Counter[str] = field(default_factory=Counter)
    processes: int = 0
    """Files that were decoded in a process of their own."""
    wrong: list[str] = field(default_factory=list)
    """Files without a proper answer, by number, with what came instead."""
    slowest_seconds: float = 0.0
    growth_mb: float = 0.0
    peak_growth_mb: float = 0.0
    process_peak_mb: float = 0.0

    def to_json(self, seed: int, seconds: float) -> dict[str, Any]:
        """For docs/reliability.md."""
        return {
            "files": self.files,
            "answered": self.answered,
            "seed": seed,
            "formats": {kind: dict(n.most_common()) for kind, n in sorted(self.formats.items())},
            "reasons": dict(sum(self.formats.values(), Counter()).most_common()),
            "mutations": dict(self.mutations.most_common()),
            "in_processes": self.processes,
            "wrong": self.wrong,
            "slowest_seconds": round(self.slowest_seconds, 2),
            "rss_growth_mb": round(self.growth_mb, 1),
            "peak_rss_growth_mb": round(self.peak_growth_mb, 1),
            "largest_decoding_process_mb": round(self.process_peak_mb, 1),
            "seconds": round(seconds, 1),
            "pillow": PIL.__version__,
            "simplejpeg": jpeg.VERSION,
            "pillow-heif": pillow_heif.__version__,
            "python": platform.python_version(),
        }


def answer(data: bytes) -> str:
    """``decoded``, the reason why not, or what else happened, which begins with ``wrong``."""
    try:
        source = Encoded(data)
        source.name(LIMITS)
        picture = source.decode(LIMITS)
    except BadPicture as bad:
        known = bad.reason in REASONS and str(bad).isprintable()
        return bad.reason if known else f"wrong: {bad!r}"
    except Exception as error:
        return f"wrong: {error!r}"
    pixels: npt.NDArray[Any] = picture.pixels
    good = pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    return "decoded" if good else f"wrong: {pixels.dtype} {pixels.shape}"


def fuzz(files: int, seed: int, told: Callable[[int], None] = lambda _: None) -> Result:
    """Decode so many damaged files, the formats in turn.

    A file depends on the seed and its number only.
    """
    result, whole = Result(), originals()
    kinds = list(dict.fromkeys(kind for kind, _ in whole))
    before = peak_before = 0.0
    for number in range(files):
        kind = kinds[number % len(kinds)]
        variants = [data for name, data in whole if name == kind]
        draw = np.random.default_rng((seed, number))
        data, how = mutated(kind, variants[int(draw.integers(len(variants)))], draw)
        began = time.monotonic()
        found = answer(data)
        result.slowest_seconds = max(result.slowest_seconds, time.monotonic() - began)
        result.files += 1
        result.mutations[how] += 1
        shown = sniff(data[:4096]) or ""
        result.processes += shown in kinds and not is_plain(data, shown)
        if found.startswith("wrong"):
            result.wrong.append(f"{number} ({kind}, {how}): {found}")
        else:
            result.answered += 1
            result.formats.setdefault(kind, Counter())[found] += 1
        if number == min(_WARM_UP, files // 2):
            before, peak_before = memory_mb("VmRSS"), memory_mb("VmHWM")
        if number % 50 == 0:
            result.process_peak_mb = max(
                [result.process_peak_mb, *(memory_mb("VmHWM", p) for p in isolated.pids())]
            )
            told(number)
    result.growth_mb = memory_mb("VmRSS") - before
    result.peak_growth_mb = memory_mb("VmHWM") - peak_before
    return result


def memory_mb(what: str, process: int | str = "self") -> float:
    """A line of ``/proc/PID/status``; 0 where there is none."""
    try:
        text = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0.0
    return next(
        (int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith(what)), 0.0
    )


def main() -> int:
    """Run it, write the result, and say it in a line."""
    parser = argparse.ArgumentParser(description="Decode damaged pictures of every format.")
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    wanted = parser.parse_args()
    began = time.monotonic()
    result = fuzz(
        wanted.files,
        wanted.seed,
        told=lambda done: print(f"\r{done} of {wanted.files}", end="", file=sys.stderr),
    )
    print(file=sys.stderr)
    text = json.dumps(result.to_json(wanted.seed, time.monotonic() - began), indent=2) + "\n"
    if wanted.out is not None:
        wanted.out.write_text(text, encoding="utf-8")
    print(text, end="")
    return 1 if result.wrong or result.peak_growth_mb > MEMORY_MB else 0


if __name__ == "__main__":
    sys.exit(main())
