"""Which pictures are decoded in the process itself: well-formed JPEG and PNG files, nothing huge.

Both are decoded by libraries that half the world runs on strangers' files (libjpeg-turbo, zlib),
and are what data sets are made of. What the library is given is bounded here beforehand: the number
of parts that are walked through, and of passes over the pixels. Whatever is not as usual is not
judged here; it only goes to a process of its own (``isolated``), which may die of it.
"""

from __future__ import annotations

from fieldmark.pictures import jpeg

_CHUNKS = 1000
_PNG_PIXELS = 10**7
"""On its way to RGB a pixel takes up to 20 bytes."""
_JPEG_PASSES = 10**8
"""Pixels times scans; libjpeg-turbo takes a few nanoseconds for one, and two bytes where there are
several scans."""


def is_plain(data: bytes, kind: str) -> bool:
    """Whether a file of this format (``formats.sniff``) can be decoded without a process."""
    if kind == "JPEG":
        return _plain_jpeg(data)
    return kind == "PNG" and _plain_png(data)


def _plain_jpeg(data: bytes) -> bool:
    header = jpeg.header(data)
    if header is None or not data.endswith(jpeg.EOI):
        return False
    scans = 1 if header.one_scan else data.count(jpeg.SOS)
    return header.width * header.height * scans <= _JPEG_PASSES


def _plain_png(data: bytes) -> bool:
    width, height = (int.from_bytes(data[at : at + 4], "big") for at in (16, 20))
    if width * height > _PNG_PIXELS:
        return False
    at = 8
    for _ in range(_CHUNKS):
        name = data[at + 4 : at + 8]
        at += 12 + int.from_bytes(data[at : at + 4], "big")
        if at > len(data) or not name:
            return False
        if name == b"IEND":
            return True
    return False
