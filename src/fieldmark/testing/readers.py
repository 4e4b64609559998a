"""The contract of a reader."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

import numpy as np

from fieldmark.data.dataset import Found
from fieldmark.data.readers import checked
from fieldmark.errors import DataError
from fieldmark.pictures.limits import PictureLimits
from fieldmark.pictures.picture import BadPicture
from fieldmark.testing.promises import check_described, require, untouched


def check_reader(reader: Callable[[str], Found], argument: str, *, pictures: int = 8) -> None:
    """Check a reader on a data set: the same pictures each time, read from any thread.

    Args:
        reader: The reader.
        argument: What it is given after ``NAME:``; a data set with two classes or more.
        pictures: How many pictures are opened.

    Raises:
        AssertionError: naming the promise that is not kept.
    """
    check_described(reader, given=1)
    try:
        with untouched("it"):
            found = checked(reader(argument), where=argument)
        again = checked(reader(argument), where=argument)
    except DataError as error:
        raise AssertionError(str(error)) from error
    require(found.entries == again.entries, "it finds other pictures each time")
    require(found.class_names == again.class_names, "it finds other classes each time")
    require(found.entries, "it finds no pictures")
    for entry in found.entries:
        path = PurePosixPath(entry.key)
        plain = not path.is_absolute() and ".." not in path.parts and "\\" not in entry.key
        require(plain, f"the key {entry.key!r} is no relative name; runs record keys")
    keys = [entry.key for entry in found.entries[:pictures]]

    def opened(key: str) -> tuple[str, str]:
        picture = found.load(key).decode(PictureLimits())
        pixels = picture.pixels
        fine = pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
        require(fine, f"{key!r} is {pixels.dtype} {pixels.shape}, not uint8 [H, W, 3]")
        return key, picture.identity

    try:
        one = [opened(key) for key in keys]
        with ThreadPoolExecutor(4) as pool:
            many = list(pool.map(opened, keys))
    except BadPicture as bad:
        raise AssertionError(f"a picture cannot be opened: {bad}") from bad
    require(one == many, "a picture is another one when several threads read")
    try:
        found.load("no/such/picture").decode(PictureLimits())
    except (BadPicture, KeyError):
        return
    raise AssertionError("it gives a picture for a key that it did not list")
