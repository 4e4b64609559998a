"""PNG files as bytes: whether all pixels are there, and samples of 16 bits that Pillow makes 8.

Pillow decodes PNG, but takes rows that are missing for black ones, does not look at the checksums
of pixel data, and keeps only the higher byte of samples of 16 bits in colour.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fieldmark.pictures.picture import BadPicture
from fieldmark.pictures.samples import WHITE, Samples

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2))
"""Of an interlaced picture: first row and column, and the steps between them; then every row that
was left out."""


class Header(NamedTuple):
    """What the first chunk says."""

    width: int
    height: int
    depth: int
    """Bits of a sample."""
    color: int
    """PNG's number: 0 grey, 2 colour, 3 palette, 4 and 6 the first two with opacity."""
    interlaced: bool

    @property
    def channels(self) -> int:
        """Samples of each pixel."""
        return _CHANNELS.get(self.color, 1)

    def row_bytes(self, width: int) -> int:
        """Bytes of a row of so many pixels, without the one that names its filter."""
        return -(-width * self.depth * self.channels // 8)

    def passes(self) -> Iterator[tuple[int, int]]:
        """Yield width and height of each part that is stored one after another."""
        if not self.interlaced:
            yield self.width, self.height
            return
        for top, left, down, across in (*_PASSES, (1, 0, 2, 1)):
            width = -(-max(0, self.width - left) // across)
            height = -(-max(0, self.height - top) // down)
            if width and height:
                yield width, height

    @property
    def size(self) -> int:
        """Bytes of all rows, unpacked."""
        return sum(height * (1 + self.row_bytes(width)) for width, height in self.passes())


def header(data: bytes) -> Header:
    """Read the first chunk, which every PNG that Pillow opens begins with."""
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    return Header(width, height, data[24], data[25], data[28] > 0)


def is_deep(data: bytes) -> bool:
    """Whether this is a PNG of 16 bits in colour, or with opacity."""
    return data[12:16] == b"IHDR" and data[24:25] == b"\x10" and data[25:26] in b"\2\4\6"


def check(data: bytes, *, rows: bool) -> tuple[str, ...]:
    """Check the pixel data's checksums, and with ``rows`` that they hold all rows; seek the end.

    Returns:
        What is unusual.

    Raises:
        BadPicture: if pixels are damaged or missing.
    """
    packed, ended = [], False
    for name, body, crc in _chunks(data):
        if name == b"IEND":
            ended = True
            break
        if name == b"IDAT":
            if len(crc) == 4 and zlib.crc32(body, zlib.crc32(name)) != int.from_bytes(crc, "big"):
                raise BadPicture("broken", "PNG: wrong checksum of the pixel data")
            packed.append(body)
    if rows and not _is_whole(packed, header(data).size):
        raise BadPicture("truncated", "PNG: the pixel data end before the picture does")
    return () if ended else ("missing end of file",)


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, bytes]]:
    """Yield name, content and checksum of the chunks."""
    at = 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        body = memoryview(data)[at + 8 : at + 8 + size]
        yield data[at + 4 : at + 8], body, data[at + 8 + size : at + 12 + size]
        at += 12 + size


def _is_whole(packed: list[memoryview], size: int) -> bool:
    """Whether so many bytes come out of the packed data; few of them are held at once."""
    stream, found = zlib.decompressobj(), 0
    for part in packed:
        rest: bytes | memoryview = part
        while rest and not stream.eof:
            found += len(stream.decompress(rest, 2**20))
            rest = stream.unconsumed_tail
            if found >= size:
                return True
    return found + len(stream.flush()) >= size


def samples(data: bytes) -> Samples:
    """Read colour of 16 bits, of which Pillow keeps 8.

    Raises:
        BadPicture: if it is broken or cut short.
    """
    head = header(data)
    packed = b"".join(body for name, body, _ in _chunks(data) if name == b"IDAT")
    stream = zlib.decompressobj()
    raw = stream.decompress(packed, head.size)
    if len(raw) < head.size:
        raise BadPicture("truncated", "PNG: the pixel data end before the picture does")
    bands = np.zeros((head.height, head.width, head.channels), np.uint16)
    places = (*_PASSES, (1, 0, 2, 1)) if head.interlaced else ((0, 0, 1, 1),)
    at = 0
    for top, left, down, across in places:
        target = bands[top::down, left::across]
        height, width = target.shape[:2]
        if height and width:
            size = height * (1 + head.row_bytes(width))
            lines = np.frombuffer(raw, np.uint8, size, at).reshape(height, -1)
            target[:] = _unfiltered(lines, 2 * head.channels).view(">u2")
            at += size
    return _with_opacity(bands, _key(data, head))


def _key(data: bytes, head: Header) -> tuple[int, ...] | None:
    """The colour that is transparent."""
    if head.color != 2:
        return None
    key = next((bytes(body) for name, body, _ in _chunks(data) if name == b"tRNS"), b"")
    return struct.unpack(">3H", key) if len(key) == 6 else None


def _with_opacity(bands: npt.NDArray[np.uint16], key: tuple[int, ...] | None) -> Samples:
    opacity = None
    if bands.shape[2] in (2, 4):
        opacity = (bands[:, :, -1] / 65535).astype(np.float32)
    elif key is not None:
        opacity = (bands != np.array(key, np.uint16)).any(2).astype(np.float32)
    values = bands[:, :, 0] if bands.shape[2] == 2 else bands[:, :, :3]
    if opacity is not None and opacity.min() == 1:
        opacity = None
    return Samples(np.ascontiguousarray(values), WHITE, opacity)


def _unfiltered(lines: npt.NDArray[np.uint8], step: int) -> npt.NDArray[np.uint8]:
    """Undo the filters of rows whose first byte names them; ``step``: bytes of a pixel.

    Every byte depends on the one to its left, the one above, and the one above that. So all pixels
    on a diagonal are computed at once.

    Shape:
        [H, 1 + W * step] to [H, W, step], contiguous.
    """
    height, width = len(lines), (lines.shape[1] - 1) // step
    kinds = lines[:, 0].astype(np.int16)[:, None]
    given = lines[:, 1:].reshape(height, width, step).astype(np.int16)
    done = np.zeros((height + 1, width + 1, step), np.int16)  # with a row and a column of zeros
    for diagonal in range(height + width - 1):
        y = np.arange(max(0, diagonal - width + 1), min(height, diagonal + 1))
        x = diagonal - y
        left, up, corner = done[y + 1, x], done[y, x + 1], done[y, x]
        kind, guess = kinds[y], left + up - corner
        by_left, by_up, by_corner = abs(guess - left), abs(guess - up), abs(guess - corner)
        nearest = np.where(by_up <= by_corner, up, corner)
        nearest = np.where((by_left <= by_up) & (by_left <= by_corner), left, nearest)
        added = np.select(
            [kind == 1, kind == 2, kind == 3, kind == 4], [left, up, (left + up) >> 1, nearest], 0
        )
        done[y + 1, x + 1] = (given[y, x] + added) & 255
    return np.ascontiguousarray(done[1:, 1:].astype(np.uint8))
