"""Figures that are not drawn: for tests of runs that look at anything else.

Drawing takes nine tenths of the time of a tiny run. Tests of what is drawn are marked ``drawn``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

FIGURES = "fieldmark.pages.figures"
NAMES = (
    "calibration",
    "confusion",
    "convergence",
    "curves",
    "lr_finder",
    "predictions",
    "preview",
    "tuning",
)
UNSEEN = ("data_wait", "images_per_second", "missing", "seconds")
"""What a figure is given and does not show."""


@contextlib.contextmanager
def undrawn() -> Iterator[None]:
    """Context in which a figure is a few pixels that differ where what would be drawn differs.

    Nothing changes if nobody has imported the figures yet.
    """
    figures = sys.modules.get(FIGURES)
    drawn = {name: getattr(figures, name) for name in NAMES} if figures else {}
    for name, draw in drawn.items():
        setattr(figures, name, _few_pixels(draw))
    try:
        yield
    finally:
        for name, draw in drawn.items():
            setattr(figures, name, draw)


def _few_pixels(draw: Callable[..., bytes]) -> Callable[..., bytes]:
    signature = inspect.signature(draw)

    @functools.wraps(draw)
    def instead(*args: Any, **kwargs: Any) -> bytes:
        given = signature.bind(*args, **kwargs).arguments
        if len(given.get("runs", ())) == 1:
            given["runs"] = given["runs"][0][1]  # one run's name is not drawn
        digest = hashlib.sha256(_as_bytes([draw.__name__, given])).digest()
        buffer = io.BytesIO()
        Image.frombytes("L", (8, 4), digest).save(buffer, format="png")
        return buffer.getvalue()

    return instead


def _as_bytes(value: Any) -> bytes:
    """Equal bytes for what would be drawn alike."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return repr(value.shape).encode() + value.tobytes()
    if isinstance(value, Mapping):
        shown = sorted((key, each) for key, each in value.items() if key not in UNSEEN)
        return b"{" + b",".join(map(_as_bytes, shown)) + b"}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return b"[" + b",".join(map(_as_bytes, value)) + b"]"
    return repr(value).encode("utf-8", "backslashreplace")
