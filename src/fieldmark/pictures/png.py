"""PNG files as bytes: whether all pixels are there, and samples of 16 bits that Pillow makes 8.

Pillow decodes PNG, but takes rows that are missing for black ones, does not look at the pixel data's
checksums, and keeps only the higher byte of samples of 16 bits in colour.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import NamedTuple

from fieldmark.pictures.picture import BadPicture

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
    """Read the first chunk, which every PNG that Pillow has opened begins with."""
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    return Header(width, height, data[24], data[25], data[28] > 0)


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
