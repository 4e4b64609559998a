"""What may be given as a picture: files, folders and patterns, bytes, streams, images, arrays.

Imports no torch: a tensor is known by its type's name, and becomes an array.
"""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from fieldmark.data import naming
from fieldmark.data.folder import pictures_below
from fieldmark.errors import DataError
from fieldmark.names import shown
from fieldmark.pictures.decode import MAX_FILE_BYTES, decode, decode_file, to_rgb
from fieldmark.pictures.limits import PictureLimits
from fieldmark.pictures.picture import U8, BadPicture

Item = str | os.PathLike[str] | bytes | bytearray | BinaryIO | Image.Image | npt.NDArray[Any] | Any
"""``Any`` stands for torch's tensors."""
TAKEN = (
    "files, folders, patterns, the bytes of a picture file, streams opened for bytes, PIL images, "
    "and arrays or tensors, one or several"
)
_ONE = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray)
_CHANNELS = (1, 3, 4)


def listed(pictures: object) -> list[Item]:
    """What was given, as a list: a single picture is a list of one.

    Raises:
        DataError: if it is nothing that can be pictures.
    """
    if isinstance(pictures, _ONE) or is_tensor(pictures) or hasattr(pictures, "read"):
        return [pictures]
    if not isinstance(pictures, Iterable) or isinstance(pictures, dict):
        raise DataError(f"{_described(pictures)} is no picture; {TAKEN} are taken")
    return list(pictures)


def expanded(items: Iterable[Item]) -> Iterator[tuple[str, Item]]:
    """Name every picture; replace folders by their pictures, patterns by what they match.

    An array of several pictures becomes several.

    Raises:
        DataError: if one of them is no picture.
    """
    for number, item in enumerate(items):
        if isinstance(item, str | os.PathLike):
            yield from _files(os.fspath(item))
        elif isinstance(item, np.ndarray) or is_tensor(item):
            array = item if isinstance(item, np.ndarray) else array_of(item)
            if array.ndim == 4:
                yield from ((f"#{number}.{i}", picture) for i, picture in enumerate(array))
            else:
                yield f"#{number}", array
        elif isinstance(item, bytes | bytearray | memoryview | Image.Image):
            yield f"#{number}", item
        elif hasattr(item, "read"):
            yield f"#{number}", _read(item)
        else:
            raise DataError(f"#{number}, {_described(item)}, is no picture; {TAKEN} are taken")


def _files(text: str) -> Iterator[tuple[str, Item]]:
    """The picture files that a text names."""
    if not isinstance(text, str):
        raise DataError(f"{text!r} is a path of bytes; give it as text")
    if not text:  # which would mean the current folder
        raise DataError("an empty path was given; name files, folders or patterns")
    if naming.ADDRESS.match(text) and not Path(text).exists():
        raise DataError(f"{shown(text)} is an address; nothing is fetched: give the file's bytes")
    if "\0" in text:
        raise DataError(f"{shown(text)} is no path: it holds a zero byte")
    path = Path(text).expanduser()
    if path.is_dir():
        below = list(pictures_below(path))
        if not below:
            raise DataError(f"no pictures in the folder {shown(text)}")
        for file in below:
            yield str(file), file
    elif os.path.lexists(path) or not glob.has_magic(text):
        if text.endswith(("/", os.sep)):
            raise DataError(f"there is no folder {shown(text)}")
        if not os.path.lexists(path) and not path.suffix:
            raise DataError(
                f"there is no file or folder {shown(text)}; name files, folders or patterns such "
                "as '*.jpg'"
            )
        yield text, path
    else:
        matches = _matches(path)
        if not matches:
            raise DataError(f"nothing matches the pattern {shown(text)}")
        for match in matches:
            yield from _files(match)


def _matches(path: Path) -> list[str]:
    """What a pattern matches.

    Folders that are there stand for themselves, brackets and all; and if nothing matches, brackets
    in the rest stand for themselves, too.
    """
    folder, *rest = Path(path.anchor), *path.parts[bool(path.anchor) :]
    while rest and os.path.lexists(folder / rest[0]):
        folder /= rest.pop(0)
    below = str(Path(*rest))
    for pattern in dict.fromkeys((below, below.replace("[", "[[]"))):
        whole = str(Path(glob.escape(str(folder)), pattern))
        if found := sorted(glob.glob(whole, recursive=True)):  # noqa: PTH207
            return found
    return []


def pixels(item: Item, limits: PictureLimits) -> tuple[U8, tuple[str, ...]]:
    """Decode one picture of :func:`expanded`; returns notes on it, too.

    Raises:
        BadPicture: if it cannot be used.
        DataError: if an array is no picture.
    """
    if isinstance(item, Image.Image):
        if 0 in item.size:
            raise BadPicture("not a picture", f"{item.width} x {item.height} pixels")
        return to_rgb(item, limits.range), ()
    if isinstance(item, np.ndarray):
        return from_array(item, limits.range), ()
    if isinstance(item, bytes | bytearray | memoryview):
        return decode(bytes(item), limits)
    path = Path(cast("str | os.PathLike[str]", item))
    if not path.exists():
        raise BadPicture("no such file")
    return decode_file(path, limits)


def from_array(array: npt.NDArray[Any], scale: str = "type") -> U8:
    """Bring an array to uint8 RGB; grey uint16 by the ``scale`` of :func:`to_rgb`.

    Raises:
        DataError: if it is not a picture.
    """
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    grey, colour = array.ndim == 2, array.ndim == 3 and array.shape[2] in (3, 4)
    if not (grey or colour) or 0 in array.shape:
        raise DataError(
            f"an array of shape {array.shape} is not a picture; [H, W], [H, W, 1], [H, W, 3] and "
            "[H, W, 4] are, and [B, H, W, C] is several; tensors may be [C, H, W] and [B, C, H, W]"
        )
    if array.dtype.kind == "f":
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise DataError("arrays of floats must be finite and in 0..1; give uint8 for 0..255")
        array = np.round(array.astype(np.float64) * 255).astype(np.uint8)
    elif array.dtype.newbyteorder("=") == np.uint16 and grey:
        return to_rgb(Image.fromarray(np.ascontiguousarray(array.astype(np.uint16))), scale)
    elif array.dtype.newbyteorder("=") == np.uint16:
        array = np.round(array / 257).astype(np.uint8)
    if array.dtype != np.uint8:
        raise DataError(
            f"arrays of {array.dtype} are not taken; give uint8, uint16 for 0..65535, or floats in "
            "0..1"
        )
    if colour and array.shape[2] == 3:
        return np.ascontiguousarray(array)
    return to_rgb(Image.fromarray(np.ascontiguousarray(array)))


def is_tensor(item: object) -> bool:
    """Whether it is a tensor of torch."""
    return any(kind.__module__ == "torch" for kind in type(item).__mro__) and hasattr(item, "numpy")


def array_of(tensor: Any) -> npt.NDArray[Any]:
    """A tensor as an array with the channels last, as which torch's pictures have them first."""
    if not tensor.dtype.is_floating_point:
        array: npt.NDArray[Any] = tensor.detach().cpu().numpy()
    else:
        array = tensor.detach().cpu().double().numpy()
    if array.ndim in (3, 4) and array.shape[-3] in _CHANNELS:
        return np.moveaxis(array, -3, -1)
    return array


def _read(stream: Any) -> bytes:
    """What a stream holds from where it stands.

    Raises:
        DataError: if it gives text, cannot be read, or gives too much.
    """
    try:
        data = stream.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError, TypeError, io.UnsupportedOperation) as error:
        raise DataError(f"a stream that was given cannot be read: {error}") from None
    if not isinstance(data, bytes | bytearray | memoryview):
        raise DataError("a stream that was given holds text; open it with mode 'rb'")
    if len(data) > MAX_FILE_BYTES:
        raise DataError(f"a stream that was given holds more than {MAX_FILE_BYTES:,} bytes")
    return bytes(data)


def _described(item: object) -> str:
    """A value and its type, shortly."""
    if isinstance(item, list | tuple | dict | set):
        return f"a {type(item).__name__} of {len(item)}"
    return f"{shown(repr(item)[:60])} ({type(item).__name__})"
