"""The one decoder: the bytes of a picture file become uint8 RGB, the same way everywhere.

Training, evaluation, prediction and serving all call :func:`decode` or :func:`decode_file`. The
format is found by content, never by the name, among JPEG, PNG, WebP, BMP, GIF, TIFF, AVIF and, with
the extra ``heic``, HEIC; no other code of Pillow sees the data. Nothing here writes to a file.

Rules:
    * EXIF orientation is applied; an EXIF block that cannot be read is ignored.
    * Of an animation or a file of several pages, the first picture is used, and a note says so.
    * ICC profiles are ignored: two pictures with equal samples are equal pictures.
    * Modes: see :func:`to_rgb`.
    * A file that is cut is bad, with one exception: all pixels are there and only the end marker
      is missing (a note says so). Bytes after the end of a picture are ignored.
"""

from __future__ import annotations

import io
import math
import os
import re
import stat
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from fieldmark.data.dataset import U8, BadPicture
from fieldmark.names import shown

REASONS = (
    "empty file",
    "not a picture",
    "unsupported format",
    "truncated",
    "broken",
    "too many pixels",
    "not finite",
    "permission denied",
    "cannot be read",
)
"""Every reason a :class:`BadPicture` of this module can have."""

MAX_PIXELS = 50_000_000
MAX_FILE_BYTES = 256 * 1024 * 1024

# The plugins' own classes instead of Image.open: that has a pixel limit in a global, which this
# module would have to change for the whole process, and loses the reason why a plugin refused.
_OPENERS: dict[str, Callable[[io.BytesIO], Image.Image]] = {
    "JPEG": JpegImagePlugin.jpeg_factory,
    "PNG": PngImagePlugin.PngImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}
if WebPImagePlugin.SUPPORTED:
    _OPENERS["WebP"] = WebPImagePlugin.WebPImageFile
if AvifImagePlugin.SUPPORTED:
    _OPENERS["AVIF"] = AvifImagePlugin.AvifImageFile

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
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

PICTURES = (*_OPENERS, "HEIC")
"""What :func:`sniff` returns for pictures that can be read, HEIC with its extra."""


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[U8, tuple[str, ...]]:
    """Decode a picture file's bytes to RGB; the notes say what is unusual about the file.

    Thread-safe; most of the time is spent without the interpreter's lock.

    Shape:
        uint8 [H, W, 3], writable.

    Raises:
        BadPicture: with one of :data:`REASONS`, whatever the bytes are.
    """
    _keep_pillow_quiet()
    if not data:
        raise BadPicture("empty file")
    kind = sniff(data[:4096])
    if kind is None:
        raise BadPicture("not a picture", _guess(data[:4096]))
    if kind not in PICTURES:
        raise BadPicture("unsupported format", kind)
    try:
        if kind == "HEIC":
            return _decode_heic(data, max_pixels)
        if kind == "JPEG":
            return _decode_jpeg(data, max_pixels)
        pixels, notes = _decode_once(data, kind, max_pixels)
    except BadPicture:
        raise
    except Exception as error:  # Pillow raises nearly every class there is
        raise _bad(error, kind, data) from error
    return pixels, notes if kind != "PNG" else (*notes, *_check_png(data))


def decode_file(
    path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS
) -> tuple[U8, tuple[str, ...]]:
    """Read and :func:`decode` a file, which is never changed.

    Raises:
        BadPicture: also if the file cannot be read, is no regular file or is above 256 MB.
    """
    try:
        return decode(_read(Path(path)), max_pixels=max_pixels)
    except PermissionError:
        raise BadPicture("permission denied") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        text = getattr(error, "strerror", None) or str(error)
        raise BadPicture("cannot be read", _tidy(text)) from None


def to_rgb(image: Image.Image) -> U8:
    """Convert a Pillow image of any mode to RGB, upright.

    ========================== ==================================================================
    1, L, P, RGB, RGBX         as they are; a transparent colour or palette entry becomes white
    LA, La, PA, RGBA, RGBa     laid over white
    CMYK, YCbCr, LAB, HSV      Pillow's conversion (inverted Adobe CMYK is undone on reading)
    I;16, I;16L, I;16B, I;16N  divided by 257
    I, F                       by range: 0 to 1 (F only) times 255; 0 to 255 as it is; 0 to 65535
                               divided by 257; any other from its least to its greatest value
    ========================== ==================================================================

    Values are rounded to the nearest. The EXIF orientation, where the image has one, is applied, so
    an image just opened with Pillow gives the same pixels as its file.

    Shape:
        uint8 [H, W, 3], writable.

    Raises:
        BadPicture: 'not finite' if an F image holds NaN or an infinity; what :func:`decode` raises
            if the image is read from a file only now.
    """
    _keep_pillow_quiet()
    try:
        pixels = _samples(image)
        return np.ascontiguousarray(_TURNS.get(_orientation(image), _as_it_is)(pixels))
    except BadPicture:
        raise
    except Exception as error:
        raise _bad(error, image.format or "", b"") from error


def sniff(head: bytes) -> str | None:
    """Name the format that a file's first bytes (32 suffice, but for SVG) show, or return None."""
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[:2] == b"BM" and len(head) >= 18 and head[15:18] == b"\0\0\0":
        return "BMP" if head[14] in _BMP_HEADERS else None
    if head[4:8] == b"ftyp":
        return _sniff_ftyp(head)
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


def _guess(head: bytes) -> str:
    """What a file that is no picture may be, for the one who has to find out how it got here."""
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


def _read(path: Path) -> bytes:
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):  # a FIFO would block for ever
        kind = "a folder" if stat.S_ISDIR(facts.st_mode) else "not a regular file"
        raise BadPicture("cannot be read", kind)
    if facts.st_size > MAX_FILE_BYTES:
        raise BadPicture(
            "cannot be read",
            f"{facts.st_size / 2**20:.0f} MB; at most {MAX_FILE_BYTES // 2**20} MB are read",
        )
    try:
        return path.read_bytes()
    except MemoryError:
        raise BadPicture("cannot be read", "not enough memory") from None


def _decode_once(data: bytes, kind: str, max_pixels: int) -> tuple[U8, tuple[str, ...]]:
    with _OPENERS[kind](io.BytesIO(data)) as image:
        _check_size(image, max_pixels)
        pixels = to_rgb(image)
        return pixels, _frames(image, kind)


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise BadPicture(
            "too many pixels", f"{width} x {height}; at most {max_pixels} pixels are accepted"
        )


def _frames(image: Image.Image, kind: str) -> tuple[str, ...]:
    """Note further pictures, after the first one was read: counting moves the file's reader."""
    try:
        if kind == "TIFF":  # counting reads every page's directory, and there may be 100,000
            return ("first of several pages",) if getattr(image, "is_animated", False) else ()
        number = getattr(image, "n_frames", 1)
    except Exception:  # something is wrong with a picture that nobody wants
        return ("first of several frames",)
    return (f"first of {number} frames",) if number > 1 else ()


def _check_png(data: bytes) -> tuple[str, ...]:
    """Check the pixel data's checksums, which Pillow does not, and look for the end."""
    at = 8
    while at + 12 <= len(data):
        size, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if name == b"IEND":
            return ()
        body = memoryview(data)[at + 4 : at + 8 + size]
        crc = data[at + 8 + size : at + 12 + size]
        if name == b"IDAT" and len(crc) == 4 and zlib.crc32(body) != int.from_bytes(crc, "big"):
            raise BadPicture("broken", "PNG: wrong checksum of the pixel data")
        at += 12 + size
    return ("missing end of file",)


_EOI = b"\xff\xd9"
_BITS = b"\xb6\xdb\x6d" * 64  # unlike the zeros that the decoder invents when data runs out
# The same behind each restart marker, for a file that was cut right before one of them.
_PADDING = _BITS + b"".join(bytes([0xFF, 0xD0 + n]) + _BITS for n in range(8))
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # not a stuffed 0xff, not a restart


def _decode_jpeg(data: bytes, max_pixels: int) -> tuple[U8, tuple[str, ...]]:
    """Decode a JPEG; one without its end marker is accepted if every pixel is there.

    Whether they are is asked from the decoder itself: it reads the data twice, with different bits
    after the end. Only a picture that needs none of them comes out the same.
    """
    if data.endswith(_EOI):
        return _decode_once(data, "JPEG", max_pixels)
    end, finished = _jpeg_end(data)
    if end is not None:
        pixels, notes = _decode_once(data, "JPEG", max_pixels)
        return pixels, notes or (f"{len(data) - end} bytes after the end",)
    body = data.rstrip(b"\0")
    if len(data) - len(body) < 16:  # more of them are a file that was never written to its end
        body = data
    body = body.rstrip(b"\xff")  # half of a marker, or of a stuffed byte
    if finished:
        pixels, notes = _decode_once(body + _EOI, "JPEG", max_pixels)
        again, _ = _decode_once(body + _PADDING + _EOI, "JPEG", max_pixels)
        if np.array_equal(pixels, again):
            return pixels, (*notes, "missing end of file")
    with _OPENERS["JPEG"](io.BytesIO(data)) as image:  # a header may say something else is wrong
        _check_size(image, max_pixels)
    raise BadPicture("truncated", "the file ends before the picture does")


def _jpeg_end(data: bytes) -> tuple[int | None, bool]:
    """Walk a JPEG's segments: where the picture ends, and whether its scans had all begun.

    The second matters for a file cut exactly between two scans of a progressive JPEG: every pixel
    has a value, but not its last bits. A scan lists components, coefficients and the bits to come.
    """
    missing: dict[tuple[int, int], int] = {}
    at = 2
    while match := _MARKER.search(data, at):
        at, marker = match.end(), data[match.end() - 1]
        if marker == 0xD9:
            return at, True
        if marker in (0x01, 0xD8):
            continue
        size = int.from_bytes(data[at : at + 2], "big")
        body = data[at + 2 : at + size]
        if marker in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA) and len(body) > 5:
            missing = {(c, k): 99 for c in body[6 : 6 + 3 * body[5] : 3] for k in range(64)}
        if marker == 0xDA and body and len(body) >= 4 + 2 * body[0]:
            first, last, bits = body[1 + 2 * body[0] :][:3]
            for component in body[1 : 1 + 2 * body[0] : 2]:
                for k in range(first, min(last, 63) + 1):
                    missing[component, k] = bits & 15
        at += max(size, 2)
    return None, bool(missing) and not any(missing.values())


def _decode_heic(data: bytes, max_pixels: int) -> tuple[U8, tuple[str, ...]]:
    try:
        import pillow_heif
    except ImportError:
        detail = "HEIC; to read it: pip install 'fieldmark[heic]'"
        raise BadPicture("unsupported format", detail) from None
    heif = pillow_heif.open_heif(io.BytesIO(data))
    _check_size(heif, max_pixels)
    # The container's own rotation is applied by libheif; the EXIF tag must then not be used.
    pixels = _samples(heif.to_pillow())
    return pixels, (f"first of {len(heif)} frames",) if len(heif) > 1 else ()


def _samples(image: Image.Image) -> U8:
    """Apply the mode rule of :func:`to_rgb`, but not the orientation."""
    image.load()
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        key = image.info.get("transparency")
        if isinstance(key, int):
            values = np.where(values == key, 65535, values)
        return _grey(np.rint(values / np.float32(257)))
    if image.mode in ("I", "F"):
        return _grey(_by_range(np.asarray(image), is_float=image.mode == "F"))
    if not image.has_transparency_data or _has_wide_key(image):
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    rgba = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(rgba.convert("RGB"), mask=rgba.getchannel("A"))
    return np.array(white)


def _has_wide_key(image: Image.Image) -> bool:
    """Whether the transparent colour has 16 bits, of which the pixels have kept only 8."""
    key = image.info.get("transparency")
    return image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255


def _by_range(values: npt.NDArray[Any], *, is_float: bool) -> npt.NDArray[Any]:
    with np.errstate(invalid="ignore"):
        low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise BadPicture("not finite", "NaN or infinite pixel values")
    if low < 0 or high > 65535:
        scaled = (values - np.float64(low)) * (255 / (high - low) if high > low else 0.0)
    elif is_float and high <= 1:
        scaled = values * np.float32(255)
    else:
        scaled = values if high <= 255 else values / np.float64(257)
    return np.rint(scaled)


def _grey(values: npt.NDArray[Any]) -> U8:
    return np.repeat(values.astype(np.uint8)[:, :, None], 3, axis=2)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a corrupt EXIF block, in any of the ways there are
        return 1
    return value if isinstance(value, int) else 1


def _as_it_is(pixels: U8) -> U8:
    return pixels


_TURNS: dict[int, Callable[[U8], U8]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90,
}


_CUT = re.compile(r"truncated|incomplete|no more images|unpack(_from)? requires", re.IGNORECASE)


def _bad(error: Exception, kind: str, data: bytes) -> BadPicture:
    """Turn whatever Pillow raised into one of the reasons."""
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return BadPicture("too many pixels", "more than Pillow's own limit for one part of it")
    if isinstance(error, MemoryError):
        return BadPicture("cannot be read", "not enough memory")
    text = str(error) or type(error).__name__
    cut = re.search(
        r"truncated|incomplete|no more images|unpack(_from)? requires", text, re.IGNORECASE
    )
    if cut or _lacks_bytes(kind, data):
        return BadPicture("truncated", f"{kind}: the file ends before the picture does")
    return BadPicture("broken", _tidy(f"{kind}: {text}"))


def _lacks_bytes(kind: str, data: bytes) -> bool:
    """Whether the header speaks of more bytes than there are."""
    if kind == "WebP":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    if kind == "TIFF" and data[2:4] in (b"*\0", b"\0*"):
        return int.from_bytes(data[4:8], "little" if data[:2] == b"II" else "big") >= len(data)
    at = 0
    while kind in ("AVIF", "HEIC") and at < len(data):  # the boxes, one after another
        size = int.from_bytes(data[at : at + 4], "big")
        if size < 8:  # to the end of the file, or with 64 bits
            return False
        at += size
    return at > len(data)


def _tidy(text: str) -> str:
    return shown(" ".join(text.split()))[:160]


# Pillow warns of what this module decides itself: odd EXIF blocks, palettes with transparency, its
# own pixel limit. The plugins are the "PIL.*" modules that the warnings come from.
_QUIET = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def _keep_pillow_quiet() -> None:
    """Put the filter in place where it is not: pytest and catch_warnings() take filters away.

    Without it, a program that turns warnings into errors would find good pictures to be bad.
    """
    if _QUIET not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")
