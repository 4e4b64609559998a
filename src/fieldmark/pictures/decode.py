"""The one decoder: the bytes of a picture file become uint8 RGB, the same way everywhere.

Training, evaluation and prediction all call :func:`decode` or :func:`decode_file`, or hold an
:class:`Encoded`. This module also decides where a file is decoded: the plainest files in this
process, all others in a separate process (``isolated``), so that a broken file crashes only that;
the pixels are the same. The format is found by content, never by the name, among JPEG, PNG, WebP,
BMP, GIF, TIFF, AVIF and, with the extra ``heic``, HEIC; no other code of Pillow sees the data.
Nothing here writes to a file.

Rules:
    * A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where the caller says how many pixels are
      enough (``decode_side``). The decoder then leaves out the finest detail of each block of 8 x
      8, and rounds the size up, by less than one pixel of what is left. Resized to half of
      ``decode_side`` or less, a picture differs from what it would be in full by 1 to 2 of 255
      levels on average (bounded in ``tests/pictures/test_jpeg.py``).
    * EXIF orientation is applied; an EXIF block that cannot be read is ignored.
    * The first picture of an animation or of a file with several pages is used; a note says so.
    * ICC profiles are ignored: two pictures with equal samples are equal pictures.
    * Modes: see :func:`to_rgb`. Samples of more than 8 bits have a scale (``samples``).
    * A picture that lost pixels is bad: cut short, with missing, changed or zeroed data, or with
      data of something else. A JPEG that lost 2 % of its pixels or less (:data:`MOST_LOST`) is
      used, and one that lacks its end marker only; a note says so. Bytes after the end of a picture
      are ignored. What the program around this one has set in Pillow changes nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import PIL
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from fieldmark.names import shown
from fieldmark.pictures import damage, isolated, jpeg, png, tiff
from fieldmark.pictures.formats import JPEG_MAGIC, guess, sniff
from fieldmark.pictures.limits import PictureLimits
from fieldmark.pictures.picture import U8, BadPicture, Decoded, Deep, Picture, digest
from fieldmark.pictures.plain import is_plain
from fieldmark.pictures.samples import WHITE, Samples
from fieldmark.settings.config import FULL_SIDE

_ADVICE = {
    "DICOM": "DICOM; convert it to PNG or TIFF of 16 bits, or read it with a plugin's reader",
}
"""What to do about formats that are not read."""

_Array = TypeVar("_Array", bound=npt.NDArray[Any])

REASONS = (
    "empty file",
    "not a picture",
    "unsupported format",
    "truncated",
    "damaged",
    "broken",
    "too many pixels",
    "not finite",
    "permission denied",
    "cannot be read",
    "decoder crashed",
    "took too long",
)
"""Every reason a :class:`BadPicture` of this module can have."""

MOST_LOST = 0.02
"""Largest share of a picture's pixels that a damaged JPEG may lack and still be used."""

DAMAGED = ("damaged", "the last scans")
"""How notes begin that say that pixels are not as they were."""

MAX_FILE_BYTES = 256 * 1024 * 1024
READ_SECONDS = 5.0
"""Seconds that a file may take to be read that does not say how large it is."""
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)  # Windows has none

# The plugins' own classes instead of Image.open: that one has a pixel limit in a global, which this
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

PICTURES = (*_OPENERS, "HEIC")
"""Formats, as ``formats.sniff`` names them, that can be read; HEIC only with its extra."""


def decode(data: bytes, limits: PictureLimits | None = None) -> tuple[U8, tuple[str, ...]]:
    """Decode a picture file's bytes to RGB; the notes say what is unusual about the file.

    Thread-safe; most of the time is spent without the interpreter's lock.

    Args:
        data: The file.
        limits: Limits of the size; by default up to 67 million pixels, decoded in full size.

    Shape:
        uint8 [H, W, 3], writable.

    Raises:
        BadPicture: with one of :data:`REASONS`, whatever the bytes are.
        ResourceError: if the file needs a decoding process, and none can be started.
    """
    return _decode(data, limits or PictureLimits())[:2]


def decode_file(
    path: str | os.PathLike[str], limits: PictureLimits | None = None
) -> tuple[U8, tuple[str, ...]]:
    """Read and :func:`decode` a file, which is never changed.

    Raises:
        BadPicture: also if the file cannot be read, is no regular file or is above 256 MB.
    """
    return decode(read_file(path), limits)


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Read a picture file.

    Raises:
        BadPicture: if it cannot be read, is no regular file or is above 256 MB.
    """
    try:
        return _read(Path(path))
    except PermissionError:
        raise BadPicture("permission denied") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        text = getattr(error, "strerror", None) or str(error)
        raise BadPicture("cannot be read", _tidy(text)) from None


_MADE_BY = f"2, Pillow {PIL.__version__}, simplejpeg {jpeg.VERSION}"
"""What decides the pixels besides the file: a number for this module's rules, and the decoders."""


class Encoded:
    """A picture file's bytes: a ``PictureSource``."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def name(self, limits: PictureLimits) -> str:
        """Hash of the bytes, the rules, the decoders, and how much a JPEG is reduced."""
        scale = 1
        if self._data.startswith(JPEG_MAGIC):
            header = jpeg.header(self._data)
            if header is None:
                return ""  # decoding will say what is unusual
            scale = limits.reduction(min(header.width, header.height))
        rules = f"{_MADE_BY}, {limits.max_pixels}, 1/{scale}"
        if sniff(self._data[:32]) == "TIFF" or self._data[24:25] == b"\x10":  # maybe of 16 bits
            rules += f", {limits.range}"
        hasher = hashlib.sha256(f"{rules}:".encode())
        hasher.update(self._data)
        return hasher.hexdigest()[:32]

    def decode(self, limits: PictureLimits) -> Picture:
        """Decode it, and compute its identity: of a JPEG without its metadata, else of the pixels.

        Raises:
            BadPicture: with one of :data:`REASONS`.
        """
        found = _decode(self._data, limits)
        pixels, notes, side, deep = found.pixels, found.notes, found.side, found.deep
        if deep is not None:
            return Picture(pixels, deep.identity, side, False, notes, deep, limits.range)
        if not self._data.startswith(JPEG_MAGIC):
            return Picture(pixels, digest(pixels), side, notes=notes)
        identity = jpeg.identity(self._data, found.orientation)
        if identity is None:
            whole = dataclasses.replace(limits, decode_side=FULL_SIDE)
            identity = digest(_decode(self._data, whole).pixels)
        return Picture(pixels, identity, side, reducible=True, notes=notes)


def _decode(data: bytes, limits: PictureLimits) -> Decoded:
    """Decode in this process or in a separate one, whichever the file needs.

    In a program that can start none, it is this one. Where the program around this one has told
    Pillow to invent what is missing, it is a separate one: that is a setting of the whole process.
    """
    kind = sniff(data[:4096])
    if (
        kind in PICTURES
        and (not is_plain(data, kind) or ImageFile.LOAD_TRUNCATED_IMAGES)
        and isolated.can_start()
    ):
        return isolated.decode(data, limits)
    return decode_here(data, limits)


def decode_here(data: bytes, limits: PictureLimits) -> Decoded:
    """Decode in this process, even if that may crash it: for the decoding processes.

    Raises:
        BadPicture: with one of :data:`REASONS`.
    """
    _keep_pillow_quiet()
    if not data:
        raise BadPicture("empty file")
    kind = sniff(data[:4096])
    if kind is None:
        raise BadPicture("not a picture", guess(data[:4096]))
    if kind not in PICTURES:
        raise BadPicture("unsupported format", _ADVICE.get(kind, kind))
    try:
        if kind == "HEIC":
            return _decode_heic(data, limits)
        if kind == "JPEG":
            return _decode_jpeg(data, limits)
        return _decode_once(data, kind, limits)
    except BadPicture:
        raise
    except Exception as error:  # Pillow raises nearly every class there is
        raise _bad(error, kind, data) from error


def to_rgb(image: Image.Image, scale: str = "type") -> U8:
    """Convert a Pillow image of any mode to RGB, upright.

    ========================== ==================================================================
    1, L, P, RGB, RGBX         as they are; a transparent colour or palette entry becomes white
    LA, La, PA, RGBA, RGBa     laid over white
    CMYK, YCbCr, LAB, HSV      Pillow's conversion (inverted Adobe CMYK is undone on reading)
    I;16, I;16L, I;16B, I;16N  by the scale (``samples``): 65535 is white, where it says no other
    I, F                       by the scale: 65535 is white of I, and 1 of F
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
    if 0 in image.size:
        raise BadPicture("broken", f"it has no pixels: {image.width} x {image.height}")
    try:
        return _samples(image, scale)[0]
    except BadPicture:
        raise
    except Exception as error:
        raise _bad(error, image.format or "", b"") from error


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
        if facts.st_size == 0:
            return _read_in_time(path)
        with _opened(path) as file:  # as much memory as is asked for is set aside before reading
            return file.read(min(facts.st_size + 2**16, MAX_FILE_BYTES))
    except MemoryError:
        raise BadPicture("cannot be read", "not enough memory") from None


def _opened(path: Path) -> io.BufferedReader:
    """Open a file; one that has become a FIFO or the like meanwhile gives an error at once."""
    return open(path, "rb", opener=lambda name, flags: os.open(name, flags | _NONBLOCK))


def _read_in_time(path: Path) -> bytes:
    """Read a file that does not say how large it is, as those of the system that are no files.

    Some wait for ever for what comes next (``/proc/kmsg``): then the thread that waits is given up.
    """
    found: list[bytes | BaseException] = []

    def read() -> None:
        try:
            with _opened(path) as file:
                found.append(file.read(MAX_FILE_BYTES) or b"")
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=read, name="reading", daemon=True)
    thread.start()
    thread.join(READ_SECONDS)
    if not found:
        raise BadPicture("took too long", f"more than {READ_SECONDS:g} s to read")
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def _open(data: bytes, kind: str) -> Image.Image:
    """Make Pillow read the header."""
    return _OPENERS[kind](io.BytesIO(data))


def _decode_once(data: bytes, kind: str, limits: PictureLimits) -> Decoded:
    if kind == "TIFF" and (size := tiff.size(data)) is not None:
        _check_size(size, limits)
        found = tiff.read(data)
        pixels, deep, notes = _made_bytes(found.samples, found.orientation, limits.range)
        return Decoded(pixels, (*found.notes, *notes), min(pixels.shape[:2]), deep=deep)
    with _open(data, kind) as image:
        _check_size(image.size, limits)
        turn = _orientation(image)
        if kind == "PNG" and png.is_deep(data) and limits.range != "picture":
            notes = png.check(data, rows=False)
            pixels, deep, more = _made_bytes(png.samples(data), turn, limits.range)
        else:
            notes = _check_png(image, data) if kind == "PNG" else ()
            pixels, deep, more = _samples(image, limits.range)
        notes = (*notes, *more, *_frames(image, kind))
        return Decoded(pixels, notes, min(pixels.shape[:2]), deep=deep)


def _check_png(image: Image.Image, data: bytes) -> tuple[str, ...]:
    """Check that all pixels are there, with the stream itself only where the last row looks empty.

    Rows that are missing are zeros for Pillow: black, transparent, or of the first colour.
    """
    width, height = image.size
    box = (0, height - 1, width, height)
    last = np.asarray(image.resize((width, 1), Image.Resampling.NEAREST, box))
    return png.check(data, rows=data[28] > 0 or not last.any())


def _check_size(size: tuple[int, int], limits: PictureLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise BadPicture(
            "too many pixels",
            f"{width} x {height}; at most {limits.max_pixels} pixels are accepted, unless "
            "--max-pixels says more",
        )
    if width < 1 or height < 1:
        raise BadPicture("broken", f"it has no pixels: {width} x {height}")


def _frames(image: Image.Image, kind: str) -> tuple[str, ...]:
    """Note that there are further pictures; call it last, because counting moves the reader."""
    try:
        if kind in ("GIF", "TIFF"):  # counting walks through them all, and there may be millions
            name = "pages" if kind == "TIFF" else "frames"
            return (f"first of several {name}",) if getattr(image, "is_animated", False) else ()
        number = getattr(image, "n_frames", 1)
    except Exception:  # something is wrong with a picture that nobody wants
        return ("first of several frames",)
    return (f"first of {number} frames",) if number > 1 else ()


_BITS = b"\xb6\xdb\x6d" * 64  # unlike the zeros that the decoder invents when data runs out
# The same behind each restart marker, for a file that was cut right before one of them.
_PADDING = _BITS + b"".join(bytes([0xFF, 0xD0 + n]) + _BITS for n in range(8))


def _decode_jpeg(data: bytes, limits: PictureLimits) -> Decoded:
    """Decode a JPEG; one without its end marker is accepted if nearly every pixel is there."""
    header = jpeg.header(data)
    if header is None and (name := jpeg.unsupported(data)):
        raise BadPicture("unsupported format", name)
    if data.endswith(jpeg.EOI) and header is not None and header.one_scan:
        return _decode_whole_jpeg(data, limits, header)
    end, finished, begun = jpeg.picture_end(data)
    if end is not None and not begun:
        raise BadPicture("truncated", "JPEG: scans are missing before the end marker")
    if data.endswith(jpeg.EOI):
        result = _decode_whole_jpeg(data, limits, header)
        if finished:
            return result
        if result.notes:
            raise BadPicture("damaged", "JPEG: " + "; ".join((*result.notes, "scans are missing")))
        return result._replace(notes=("the last scans of a progressive JPEG are missing",))
    if end is not None:
        result = _decode_whole_jpeg(data, limits, header)
        notes = result.notes or (f"{len(data) - end} bytes after the end",)
        return result._replace(notes=notes)
    body = data.rstrip(b"\0")
    if len(data) - len(body) < 16:  # more of them are a file that was never written to its end
        body = data
    body = body.rstrip(b"\xff")  # half of a marker, or of a stuffed byte
    if finished and _is_padded(body, limits):
        result = _decode_whole_jpeg(body + jpeg.EOI, limits, header, lost="truncated")
        return result._replace(notes=(*result.notes, "missing end of file"))
    with _open(data, "JPEG") as image:  # a header may say something else is wrong
        _check_size(image.size, limits)
    raise BadPicture("truncated", "the file ends before the picture does")


def _is_padded(body: bytes, limits: PictureLimits) -> bool:
    """Whether a JPEG has all its pixels, where the decoder's warnings are not known.

    Pillow reads the data twice, with different bits after the end. Only a picture that needs none
    of these bits comes out the same.
    """
    if jpeg.warning(body + jpeg.EOI) is not None:  # it says so itself
        return True
    both = []
    for filling in (b"", _PADDING):
        with _open(body + filling + jpeg.EOI, "JPEG") as image:
            _check_size(image.size, limits)
            both.append(_samples(image, limits.range)[0])
    return np.array_equal(both[0], both[1])


def _decode_whole_jpeg(
    data: bytes, limits: PictureLimits, header: jpeg.Header | None, *, lost: str = "damaged"
) -> Decoded:
    """Decode a JPEG with its end marker; ``lost`` is the reason where too much of it is."""
    if header is not None and header.bare and header.width * header.height <= limits.max_pixels:
        side = min(header.width, header.height)
        size, scale = (header.width, header.height), limits.reduction(side)
        pixels = jpeg.samples(data, size, scale)
        if pixels is not None and data.find(damage.ZEROS, header.start) < 0:
            return Decoded(pixels, (), side)
    with _open(data, "JPEG") as image:
        _check_size(image.size, limits)
        side = min(image.size)
        scale, inks = limits.reduction(side), image.mode == "CMYK"
        pixels = jpeg.samples(data, image.size, scale, inks=inks)
        notes: tuple[str, ...] = ()
        if pixels is None or data.find(damage.ZEROS, header.start if header else 0) >= 0:
            notes = _losses(data, lost)
        if pixels is None:
            width, height = image.size
            if scale > 1 and isinstance(image, JpegImagePlugin.JpegImageFile):
                image.draft(None, (width // scale, height // scale))
            pixels = _bytes(image)
        orientation = _orientation(image)
        notes = (*notes, *_frames(image, "JPEG"))
        return Decoded(_upright(pixels, orientation), notes, side, orientation)


def _losses(data: bytes, reason: str) -> tuple[str, ...]:
    """Say what a JPEG lost that the decoder warns of.

    Raises:
        BadPicture: with this reason, if that is more than :data:`MOST_LOST`.
    """
    warned = jpeg.warning(data)
    found = damage.loss(data)
    text = warned or "data of zeros, or without the decoder's warnings"
    known = found is not None and (found.certain or found.share > MOST_LOST)
    if warned and not known and not jpeg.is_harmless(warned):
        raise BadPicture(reason, f"JPEG: {text}")
    if found is not None and found.share > MOST_LOST:
        where = "bytes inside it are missing or changed"
        much = f"about {found.share:.0%} of the picture is lost" if found.share < 1 else where
        raise BadPicture(reason, f"JPEG: {much}; {text}")
    if found is not None and found.share > 0:
        return (f"damaged: {max(found.share, 0.001):.1%} of the picture lost ({text})",)
    return (f"odd data, no pixel lost ({text})",) if warned and jpeg.is_about_data(text) else ()


def _decode_heic(data: bytes, limits: PictureLimits) -> Decoded:
    try:
        import pillow_heif
    except ImportError:
        detail = "HEIC; to read it: pip install 'fieldmark[heic]'"
        raise BadPicture("unsupported format", detail) from None
    heif = pillow_heif.open_heif(io.BytesIO(data))
    _check_size(heif.size, limits)
    # The container's own rotation is applied by libheif; the EXIF tag must then not be used.
    pixels = _bytes(heif.to_pillow())
    notes = (f"first of {len(heif)} frames",) if len(heif) > 1 else ()
    return Decoded(pixels, notes, min(pixels.shape[:2]))


def _samples(image: Image.Image, scale: str) -> tuple[U8, Deep | None, tuple[str, ...]]:
    """Apply the mode rule of :func:`to_rgb`, and the orientation; the last are notes."""
    image.load()
    turn = _orientation(image)  # in a PNG it may stand behind the pixels, in a TIFF it is done
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values, key = np.asarray(image), image.info.get("transparency")
        opacity = (values != key).astype(np.float32) if isinstance(key, int) else None
        white = 1.0 if image.mode == "F" else WHITE
        if values.dtype.byteorder == ">":
            values = values.astype(values.dtype.newbyteorder("="))
        return _made_bytes(Samples(values, white, opacity), turn, scale)
    return _upright(_bytes(image), turn), None, ()


def _made_bytes(samples: Samples, turn: int, scale: str) -> tuple[U8, Deep | None, tuple[str, ...]]:
    opacity = None if samples.opacity is None else _upright(samples.opacity, turn)
    pixels, deep = Samples(_upright(samples.values, turn), samples.white, opacity).picture(scale)
    return pixels, deep, samples.notes(scale, deep)


def _bytes(image: Image.Image) -> U8:
    """Apply the mode rule to an image of 8 bits."""
    image.load()
    if not image.has_transparency_data or _has_wide_key(image):
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    rgba = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(rgba.convert("RGB"), mask=rgba.getchannel("A"))
    return np.array(white)


def _has_wide_key(image: Image.Image) -> bool:
    """Whether the transparent colour has 16 bits while Pillow kept only 8 of each pixel's."""
    key = image.info.get("transparency")
    return image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a corrupt EXIF block, in any of the ways there are
        return 1
    return value if isinstance(value, int) else 1


_Turn = Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
_TURNS: dict[int, _Turn] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}


def _upright(pixels: _Array, orientation: int) -> _Array:
    """Apply the EXIF orientation; undefined values leave the picture as it is."""
    turn = _TURNS.get(orientation)
    return pixels if turn is None else cast(_Array, np.ascontiguousarray(turn(pixels)))


_CUT = re.compile(r"truncated|incomplete|no more images|unpack(_from)? requires", re.IGNORECASE)

_UNKNOWN = re.compile(r"unknown pixel mode")


def _bad(error: Exception, kind: str, data: bytes) -> BadPicture:
    """Turn whatever Pillow raised into one of :data:`REASONS`."""
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return BadPicture("too many pixels", "more than Pillow's own limit for one part of it")
    if isinstance(error, MemoryError):
        return BadPicture("cannot be read", "not enough memory")
    text = str(error) or type(error).__name__
    if _CUT.search(text) or _lacks_bytes(kind, data):
        return BadPicture("truncated", f"{kind}: the file ends before the picture does")
    if kind == "TIFF" and _UNKNOWN.search(text):
        return BadPicture("unsupported format", _tidy(f"TIFF: {text}"))
    return BadPicture("broken", _tidy(f"{kind}: {text}"))


def _lacks_bytes(kind: str, data: bytes) -> bool:
    """Whether the header announces more bytes than there are."""
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
    """Install the filter where it is missing: pytest and catch_warnings() remove filters.

    Without it, a program that turns warnings into errors would find good pictures to be bad.
    """
    if _QUIET not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")
