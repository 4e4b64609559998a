"""What a file is, by its first bytes."""

from __future__ import annotations

import re
from typing import Literal

from fieldmark.files import lfs

JPEG_MAGIC = b"\xff\xd8\xff"
_MAGIC: tuple[tuple[bytes, str], ...] = (
    (JPEG_MAGIC, "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"8BPS", "PSD"),
    (b"%!PS", "EPS"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"%PDF", "PDF"),
    (b"SIMPLE  =", "FITS"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"DDS ", "DDS"),
    (b"\0\0\1\0", "ICO"),
    (b"\0\0\2\0", "CUR"),
    (b"qoif", "QOI"),
    (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance HDR"),
    *((magic, "raw photograph, ORF") for magic in (b"IIRO", b"IIRS", b"MMOR")),
    (b"IIU\0", "raw photograph, RW2"),
    (b"FUJIFILMCCD-RAW", "raw photograph, RAF"),
    (b"FOVb", "raw photograph, X3F"),
    (b"\0MRM", "raw photograph, MRW"),
)
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_BMP_HEADERS = frozenset({12, 16, 40, 52, 56, 64, 108, 124})


def sniff(head: bytes) -> str | None:
    """Name the format of a file from its first bytes, or None.

    32 bytes suffice, except for SVG and DICOM.
    """
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return _raw_kind(head) or kind if kind == "TIFF" else kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[:2] == b"BM" and len(head) >= 18 and head[15:18] == b"\0\0\0":
        return "BMP" if head[14] in _BMP_HEADERS else None
    if head[4:8] == b"ftyp":
        return _sniff_ftyp(head)
    if head[128:132] == b"DICM":
        return "DICOM"
    if re.match(rb"P[1-7][\s#]", head):
        return "PPM"
    if re.match(rb"(\xef\xbb\xbf)?\s*<", head) and b"<svg" in head.lower():
        return "SVG"
    return None


_SUBFILE, _PHOTOMETRIC, _SUB_IFDS, _DNG_VERSION = 254, 262, 330, 50706
_MOSAIC = (32803, 34892)
"""Samples of a sensor, as photometric interpretation: behind a mosaic of colours, or linear."""


def _raw_kind(head: bytes) -> str | None:
    """Say whether a TIFF is a photograph that is not developed; its first picture is a preview."""
    if head[8:10] == b"CR":
        return "raw photograph, CR2"
    order: Literal["little", "big"] = "little" if head[:2] == b"II" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(head[at : at + size], order)

    at = number(4, 4)
    tags = {}
    for entry in range(at + 2, at + 2 + 12 * number(at, 2), 12):
        if entry + 12 > len(head):
            break
        short = number(entry + 2, 2) == 3
        tags[number(entry, 2)] = number(entry + 8, 2 if short else 4)
    if _DNG_VERSION in tags:
        return "raw photograph, DNG"
    if tags.get(_PHOTOMETRIC) in _MOSAIC or (tags.get(_SUBFILE, 0) & 1 and _SUB_IFDS in tags):
        return "raw photograph"
    return None


def _sniff_ftyp(head: bytes) -> str | None:
    size = max(16, min(int.from_bytes(head[:4], "big"), len(head)))
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, size - 3, 4))}
    if brands & {b"avif", b"avis"}:  # before HEIC: an AVIF may call itself mif1 first
        return "AVIF"
    if head[8:12] == b"crx ":
        return "raw photograph, CR3"
    return "HEIC" if head[8:12] in _HEIC_BRANDS else None


def guess(head: bytes) -> str:
    """Say what a file that is no picture may be, to help the user find out where it came from."""
    if lfs.is_pointer(head):
        return lfs.ADVICE
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page"
    if head.startswith(b"PK\3\4"):
        return "a zip archive"
    if head[4:8] == b"ftyp":
        return "a video"
    if not head.strip(b"\0"):
        return "nothing but zeros"
    if b"\0" in head:
        return "unknown data"
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return "unknown data" if error.start < len(head) - 3 else "text"
    return "text"
