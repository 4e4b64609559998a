"""What a file is, by its first bytes."""

from __future__ import annotations

import re

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
)
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_BMP_HEADERS = frozenset({12, 16, 40, 52, 56, 64, 108, 124})


def sniff(head: bytes) -> str | None:
    """Name the format of a file from its first bytes, or None.

    32 bytes suffice, except for SVG and DICOM.
    """
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
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


def _sniff_ftyp(head: bytes) -> str | None:
    size = max(16, min(int.from_bytes(head[:4], "big"), len(head)))
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, size - 3, 4))}
    if brands & {b"avif", b"avis"}:  # before HEIC: an AVIF may call itself mif1 first
        return "AVIF"
    return "HEIC" if head[8:12] in _HEIC_BRANDS else None


def guess(head: bytes) -> str:
    """Say what a file that is no picture may be, to help the user find out where it came from."""
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
