"""Which pictures are decoded in the process itself: well-formed JPEG and PNG files, nothing huge.

Data sets are made of these two formats, and the libraries that decode them (libjpeg-turbo, zlib)
are used on strangers' files everywhere. This module limits beforehand what they get: the number of
segments to walk through, and of passes over the pixels. It does not judge unusual files; they only
go to a separate process (``isolated``), which may crash over them.
"""

from __future__ import annotations

from fieldmark.pictures import jpeg, png

_CHUNKS = 1000
_PNG_PIXELS = 10**7
"""Largest picture in pixels; while it becomes RGB, each pixel takes up to 20 bytes."""
_JPEG_PASSES = 10**8
"""Largest product of pixels and scans. For each, libjpeg-turbo takes a few nanoseconds, and two
bytes where there are several scans."""


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
    if width * height > _PNG_PIXELS or png.is_deep(data):
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
