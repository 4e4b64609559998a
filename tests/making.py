"""Pictures and folders for the tests, made in code."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fieldmark.jobs.request import TrainRequest

U8 = npt.NDArray[np.uint8]


def scene(height: int = 32, width: int = 48, *, seed: int = 0) -> U8:
    """A picture without symmetry: every flip and turn of it is another picture."""
    noise = np.random.default_rng(seed).integers(0, 60, (height, width, 3))
    ramp = np.add.outer(np.arange(height) * 3, np.arange(width))[:, :, None]
    tint = np.array([0, 30, 60])
    return np.clip(ramp + noise + tint, 0, 255).astype(np.uint8)


def encode(picture: U8 | Image.Image, kind: str, **options: Any) -> bytes:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    crc = zlib.crc32(name + body)
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc)


def png(
    width: int, height: int, *, depth: int, color: int, rows: bytes, extra: bytes = b""
) -> bytes:
    """A PNG from its header's values and its unfiltered rows, whatever sense they make."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows, 9))
        + chunk(b"IEND", b"")
    )


def bilevel_bomb(side: int) -> bytes:
    """A whole 1-bit PNG of side x side pixels in few bytes."""
    packer = zlib.compressobj(9)
    row = bytes(1 + side // 8)
    body = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


def stored_for(upright: U8, orientation: int) -> U8:
    """How a camera that writes this orientation stores the picture: the inverse of the turn."""
    inverse = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    return np.ascontiguousarray(inverse(upright))


def tiff(samples: npt.NDArray[Any], *, kind: int) -> bytes:
    """An uncompressed grey TIFF of any sample type; kind: 1 unsigned, 2 signed, 3 float."""
    height, width = samples.shape
    data = samples.astype(samples.dtype.newbyteorder("<")).tobytes()
    entries = [
        (256, 4, width),
        (257, 4, height),
        (258, 3, samples.dtype.itemsize * 8),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 8),
        (277, 3, 1),
        (278, 4, height),
        (279, 4, len(data)),
        (339, 3, kind),
    ]
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", tag, typ, 1, value) for tag, typ, value in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + bytes(4)


def tiff_pages(number: int) -> bytes:
    """A TIFF of 1x1 pictures that share their pixel."""
    body = bytearray(b"II*\0" + struct.pack("<I", 12) + b"\x80\0\0\0")
    entries = [(256, 1), (257, 1), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (279, 1)]
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    for page in range(number):
        after = len(body) + 2 + len(fields) + 4 if page < number - 1 else 0
        body += struct.pack("<H", len(entries)) + fields + struct.pack("<I", after)
    return bytes(body)


def folder(root: Path, *names: str | bytes, data: bytes | None = None) -> Path:
    """Write one small picture under each of these names; a name that ends in '/' is a folder."""
    content = encode(scene(4, 5), "PNG") if data is None else data
    for name in map(os.fsdecode, names):
        path = root / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_bytes(content)
    return root


def bright_halves(root: Path) -> Path:
    """Two classes of 24 pictures, bright at the top or at the bottom, and a test split."""
    for number in range(64):
        rng = np.random.default_rng(number)
        pixels = rng.integers(0, 120, (8, 8, 3), dtype=np.uint8)
        pixels[slice(0, 4) if number % 2 else slice(4, 8)] += 100
        place = root / ("test" if number >= 48 else "train") / ("up" if number % 2 else "down")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number}.png")
    return root


def asked(data: object, **rest: Any) -> TrainRequest:
    """A request for training on these pictures."""
    return TrainRequest(data=str(data), **rest)


def bands_tiff(
    samples: npt.NDArray[Any],
    *,
    photometric: int = 1,
    planes: bool = False,
    order: str = "<",
    big: bool = False,
    extra: tuple[int, ...] = (),
    more: tuple[tuple[int, int], ...] = (),
) -> bytes:
    """An uncompressed TIFF of bands [H, W] or [H, W, N]; ``planes`` stores one after another."""
    kind = {"u": 1, "i": 2, "f": 3}[samples.dtype.kind]
    bands = samples.reshape(*samples.shape[:2], -1)
    height, width, number = bands.shape
    stored = np.moveaxis(bands, 2, 0) if planes else bands[None]
    strips = [s.astype(samples.dtype.newbyteorder(order)).tobytes() for s in stored]
    word, count, head = ("Q", "Q", 16) if big else ("I", "H", 8)
    starts = [head + sum(map(len, strips[:i])) for i in range(len(strips))]
    fields: list[tuple[int, str, list[int]]] = [
        (256, "I", [width]),
        (257, "I", [height]),
        (258, "H", [samples.dtype.itemsize * 8] * number),
        (259, "H", [1]),
        (262, "H", [photometric]),
        (273, "I", starts),
        (277, "H", [number]),
        (278, "I", [height]),
        (279, "I", [len(s) for s in strips]),
        (284, "H", [2 if planes else 1]),
        (339, "H", [kind] * number),
        *((tag, "H", [value]) for tag, value in more),
        *([(338, "H", list(extra))] if extra else []),
    ]
    at = head + sum(map(len, strips))
    size = struct.calcsize(word)
    entries, outside = b"", b""
    after = at + struct.calcsize(count) + len(fields) * (4 + 2 * size) + size
    for tag, letter, values in sorted(fields):
        body = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(body) > size:
            place = struct.pack(order + word, after + len(outside))
            outside, body = outside + body, place
        code = {"H": 3, "I": 4}[letter]
        entries += struct.pack(order + "HH" + word, tag, code, len(values)) + body.ljust(
            size, b"\0"
        )
    magic = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    first = struct.pack(order + "HHQ", 8, 0, at) if big else struct.pack(order + "I", at)
    directory = struct.pack(order + count, len(fields)) + entries + bytes(size)
    return magic + first + b"".join(strips) + directory + outside
