"""JPEG files as bytes: fast and reduced decoding, identity, and where the picture ends.

Ordinary files, with the picture alone or with the usual metadata, are decoded here. Pillow gets all
others (``decode``), so this module refuses no file.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

import numpy as np
from PIL import Image

from fieldmark.pictures.picture import U8

try:
    import simplejpeg
except ImportError:  # an exported file is answered from with NumPy, Pillow and ONNX Runtime alone
    simplejpeg = None

VERSION = "none" if simplejpeg is None else simplejpeg.__version__
"""Version of the library that decodes here."""


EOI = b"\xff\xd9"
SOS = b"\xff\xda"
_SOS, _COM, _APP0, _APP14, _APP15 = 0xDA, 0xFE, 0xE0, 0xEE, 0xEF
_ALONE = frozenset({0x00, 0x01, *range(0xD0, 0xDA)})
"""Markers without a length; none of them may come before the first scan."""
_APP2, _PROFILE = 0xE2, b"ICC_PROFILE\0"
_TABLES = frozenset({0xC4, 0xC8, 0xCC})
"""Markers among those of frames that are none: Huffman tables, a reserved one, arithmetic
conditioning."""
_NOT_BEGUN = 99
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # not a stuffed 0xff, not a restart


_EXTRA = re.compile(r"(\d+) extraneous bytes before marker 0xd9")
_FEW_BYTES = 64
"""So many odd bytes before the end marker are no pixels, where nothing more can be found out."""


def samples(data: bytes, size: tuple[int, int], scale: int, *, inks: bool = False) -> U8 | None:
    """Decode with libjpeg-turbo alone, at ``1 / scale`` of the size; None: leave it to Pillow.

    Pillow uses the same library and gives the same samples, but copies them three times, and does
    not say where the library warned. The interpreter's lock is released.

    Args:
        data: The file.
        size: Width and height that the header declares.
        scale: Number that both are divided by.
        inks: Whether the file has four colours (CMYK), as Adobe's programs store them: inverted.

    Shape:
        uint8 [H, W, 3]
    """
    if simplejpeg is None:
        return None
    width, height = (-(-side // scale) for side in size)
    try:
        # The two smallest sides and the factor leave only one of the library's scales.
        pixels: U8 = simplejpeg.decode_jpeg(
            data,
            "CMYK" if inks else "RGB",
            min_height=height,
            min_width=width,
            min_factor=scale,
            strict=True,
        )
    except ValueError:
        return None
    if pixels.shape[:2] != (height, width):
        return None
    if inks:
        pixels = np.array(Image.frombuffer("CMYK", (width, height), 255 - pixels).convert("RGB"))
    return pixels


def warning(data: bytes) -> str | None:
    """Return the decoder's first warning, or the error it ends with; empty if there is none.

    None, if there is no decoder that can be asked.
    """
    if simplejpeg is None:
        return None
    try:
        simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, min_factor=8, strict=True)
    except ValueError as error:
        return str(error) or "unknown"
    return ""


_OF_HEADERS = ("Unknown Adobe", "Warning: unknown JFIF", "Invalid SOS", "Inconsistent progression")


def is_about_data(text: str) -> bool:
    """Whether a warning is about the compressed data, and not about a header."""
    return not text.startswith(_OF_HEADERS)


def is_harmless(text: str) -> bool:
    """Whether a warning by itself says that hardly a pixel can be lost."""
    extra = _EXTRA.search(text)
    return int(extra[1]) <= _FEW_BYTES if extra else not is_about_data(text)


def unsupported(data: bytes) -> str:
    """Name the kind of JPEG, where it is one that no decoder here reads; else empty."""
    at = 2
    while match := _MARKER.search(data, at):
        at, marker = match.end(), data[match.end() - 1]
        if marker in (0x01, 0xD8):
            continue
        if marker in (_SOS, 0xD9):
            return ""
        if 0xC0 <= marker <= 0xCF and marker not in _TABLES:
            if marker in (0xC3, 0xCB):
                return "lossless JPEG"
            if marker in (0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF):
                return "hierarchical JPEG"
            return f"JPEG of {data[at + 2]} bits" if data[at + 2 : at + 3] > b"\x08" else ""
        at += max(2, int.from_bytes(data[at : at + 2], "big"))
    return ""


_SEGMENTS = 200
_PROGRESSIVE = 0xC2
_FRAMES = frozenset({0xC0, 0xC1, _PROGRESSIVE})
"""Markers of frames: baseline, extended and progressive, all with Huffman coding."""


class Header(NamedTuple):
    """The part of an ordinary JPEG before its first scan."""

    width: int
    height: int
    one_scan: bool
    """Whether the first scan holds the whole picture, so that decoders read no other."""
    bare: bool
    """Whether it is grey or YCbCr and has no metadata other than profiles, which are ignored."""
    start: int
    """Where the first scan begins, in bytes."""


def header(data: bytes) -> Header | None:
    """Read the segments before the first scan; None if anything about them is unusual.

    Unusual is: a frame of other than 8 bits, no frame or two, or hundreds of segments.
    """
    at, frame, bare = 2, b"", True
    for _ in range(_SEGMENTS):
        head = data[at : at + 4]
        size = int.from_bytes(head[2:], "big")
        if len(head) < 4 or head[0] != 0xFF or head[1] in _ALONE or head[1] == 0xFF or size < 2:
            return None
        marker, body = head[1], data[at + 4 : at + 10]
        if marker == _SOS:
            if len(frame) < 7:
                return None
            height, width = int.from_bytes(frame[2:4], "big"), int.from_bytes(frame[4:6], "big")
            one_scan = frame[0] != _PROGRESSIVE and body[:1] == frame[6:]
            return Header(width, height, one_scan, bare and frame[6:] in (b"\1", b"\3"), at)
        if 0xC0 <= marker <= 0xCF and marker not in _TABLES:
            if frame or marker not in _FRAMES or body[:1] != b"\x08":
                return None
            frame = bytes([marker]) + body
        bare = bare and (not _APP0 < marker <= _APP15 or _is_profile(data, at, size))
        at += 2 + size
    return None


def _is_profile(data: bytes, at: int, size: int) -> bool:
    """Whether a segment is a whole part of an ICC profile."""
    return data[at + 1] == _APP2 and size >= 16 and data.startswith(_PROFILE, at + 4)


def identity(data: bytes, orientation: int) -> str | None:
    """Hash of the compressed picture with its orientation; None for an unusual sequence of markers.

    The hash leaves out what changes no pixel: comments, the segments of EXIF, XMP, profiles and
    makers (APP1 to APP13 and APP15), resolution and thumbnail (only the presence of JFIF's APP0
    counts: it decides how colours are read), and whatever follows the last end marker. So a copy
    with other metadata is still a copy. A picture that was compressed anew is not, nor one that was
    stored losslessly in another format, because the hash of that one is of pixels.

    Shape:
        32 hexadecimal digits.
    """
    hasher = hashlib.sha256(b"jpeg:%d:" % orientation)
    at = 2
    while data[at : at + 1] == b"\xff":
        while data[at : at + 1] == b"\xff":  # any number of them may stand before a marker
            at += 1
        head = data[at : at + 3]
        if len(head) < 3 or head[0] in _ALONE:
            return None
        marker, size = head[0], int.from_bytes(head[1:], "big")
        if marker == _SOS:
            end = data.rfind(EOI, at)
            hasher.update(memoryview(data)[at : end if end >= 0 else len(data)])
            return hasher.hexdigest()[:32]
        body = data[at + 1 : at + 1 + size]
        if size < 2 or len(body) < size:
            return None
        if marker == _APP0:
            hasher.update(b"JFIF" if body[2:7] == b"JFIF\0" else b"")
        elif marker == _APP14 or not (marker == _COM or _APP0 < marker <= _APP15):
            hasher.update(bytes([marker]) + body)
        at += 1 + size
    return None


class End(NamedTuple):
    """Where a JPEG's picture ends."""

    at: int | None
    """The byte behind its end marker; None if it has none."""
    finished: bool
    """Whether there is a scan for each bit of each coefficient."""
    begun: bool
    """Whether there is a scan for each coefficient."""


def picture_end(data: bytes) -> End:
    """Walk a JPEG's segments; find where the picture ends, and whether all scans have begun.

    That matters for a progressive JPEG that was cut exactly between two scans: every pixel
    has a value, but lacks its last bits. A scan lists components, coefficients and bits to come.
    """
    missing: dict[tuple[int, int], int] = {}
    at = 2
    while match := _MARKER.search(data, at):
        at, marker = match.end(), data[match.end() - 1]
        if marker == 0xD9:
            break
        if marker in (0x01, 0xD8):
            continue
        size = int.from_bytes(data[at : at + 2], "big")
        body = data[at + 2 : at + size]
        if marker in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA) and len(body) > 5:
            missing = {(c, k): _NOT_BEGUN for c in body[6 : 6 + 3 * body[5] : 3] for k in range(64)}
        if marker == 0xDA and body and len(body) >= 4 + 2 * body[0]:
            first, last, bits = body[1 + 2 * body[0] :][:3]
            for component in body[1 : 1 + 2 * body[0] : 2]:
                for k in range(first, min(last, 63) + 1):
                    missing[component, k] = bits & 15
        at += max(size, 2)
    else:
        at = 0
    finished = bool(missing) and not any(missing.values())
    return End(at or None, finished, all(bits < _NOT_BEGUN for bits in missing.values()))
