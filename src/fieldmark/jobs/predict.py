"""Predictions for pictures: one prediction, or one reason why not, for each, in the given order."""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from fieldmark.data.folder import pictures_below
from fieldmark.errors import DataError
from fieldmark.names import shown
from fieldmark.pictures.decode import decode_file, to_rgb
from fieldmark.pictures.limits import PictureLimits
from fieldmark.pictures.picture import U8, BadPicture
from fieldmark.scoring.metrics import softmax
from fieldmark.seeding import F64

if TYPE_CHECKING:
    import torch

    from fieldmark.runs.model import Model, Score

Item = str | os.PathLike[str] | Image.Image | npt.NDArray[Any]

BLOCK = 32
"""Pictures scored at a time, while as many more are read."""


@dataclass(frozen=True)
class Prediction:
    """The prediction for one picture, or the reason why there is none."""

    file: str
    """Path as given, or place (``#0``) among pictures given as objects."""
    label: str = ""
    prob: float = 0.0
    top: tuple[tuple[str, float], ...] = ()
    """The likeliest classes with their probabilities, likeliest first."""
    error: str = ""
    """Reason why the picture could not be used; empty if it could."""
    note: str = ""
    """What is unusual about the file, such as pixels that it lost; empty for most."""

    def to_json(self) -> dict[str, Any]:
        """Return ``file``, ``label``, ``prob``, ``top``, maybe ``note``; or ``file``, ``error``."""
        if self.error:
            return {"file": self.file, "error": self.error}
        value = {
            "file": self.file,
            "label": self.label,
            "prob": self.prob,
            "top": [{"label": label, "prob": prob} for label, prob in self.top],
        }
        return {**value, "note": self.note} if self.note else value


class _Read(NamedTuple):
    """A picture that was read."""

    pixels: U8 | None
    said: str
    """Notes on it; or the reason why there are no pixels."""


def predict(
    model: Model,
    items: Sequence[Item],
    *,
    top: int = 5,
    limits: PictureLimits,
    threads: int = 1,
    engine: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> list[Prediction]:
    """Classify files, folders, glob patterns, PIL images or arrays.

    Arrays are [H, W], [H, W, 3] or [H, W, 4], uint8, or floats in 0..1. Engines: see
    ``scoring.scorer.Scorer``; afterwards ``model.notes`` says how the network was computed.

    Raises:
        ConfigError: if there is no such engine.
        DataError: if nothing was given, or an array has another shape or type.
    """
    import torch

    return answers(
        items,
        resize=model.info.input.pixels,
        score=lambda resized: probabilities(
            model, torch.from_numpy(np.stack(resized)), engine=engine
        ),
        class_names=model.info.class_names,
        top=top,
        limits=limits,
        threads=threads,
        progress=progress,
    )


def answers(
    items: Sequence[Item],
    *,
    resize: Callable[[U8], U8],
    score: Callable[[Sequence[U8]], F64],
    class_names: Sequence[str],
    top: int,
    limits: PictureLimits,
    threads: int,
    block: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Prediction]:
    """Read pictures, score them with ``score``, and name the answers; imports no torch.

    Args:
        items: As for :func:`predict`.
        resize: Resizes a picture to the input; called in the reading threads.
        score: Gives the probabilities of a block's readable pictures, [N, K].
        class_names: K names.
        top: How many of the likeliest classes to tell.
        limits: Limits of the pictures' size.
        threads: Number of pictures read at once.
        block: Pictures scored at a time, while as many more are read; 0 for :data:`BLOCK`.
        progress: Called with the number done and the number in all.

    Raises:
        DataError: if nothing was given, or an array has another shape or type.
    """
    expanded = list(_expand(items))
    if not expanded:
        raise DataError("no pictures were given; name files, folders or patterns such as '*.jpg'")
    found: list[Prediction] = []
    with closing(_blocks(expanded, resize, limits, threads, block or BLOCK)) as blocks:
        for names, resized in blocks:
            readable = [read.pixels for read in resized if read.pixels is not None]
            rows = iter(score(readable) if readable else ())
            found += [
                Prediction(name, error=read.said)
                if read.pixels is None
                else replace(_answer(name, next(rows), class_names, top), note=read.said)
                for name, read in zip(names, resized, strict=True)
            ]
            if progress is not None:
                progress(len(found), len(expanded))
    return found


def _scorer(model: Model, engine: str) -> Score:
    """Prepare the network for scoring, once: the network of a run is not trained any more."""
    from fieldmark.scoring.scorer import Scorer

    if engine not in model.scorers:
        device = str(next(model.module.parameters()).device)
        model.scorers[engine] = Scorer(
            model.module, spec=model.info.input, device=device, engine=engine
        )
    return model.scorers[engine]


def _blocks(
    expanded: Sequence[tuple[str, Item]],
    resize: Callable[[U8], U8],
    limits: PictureLimits,
    threads: int,
    size: int,
) -> Generator[tuple[list[str], list[_Read]], None, None]:
    """Yield names and resized pictures, in order; the next block is read while one is scored."""
    if len(expanded) == 1:  # which threads would only delay
        name, item = expanded[0]
        yield [name], [_resized(item, resize, limits)]
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="predict")
    waiting: deque[tuple[list[str], list[Future[_Read]]]] = deque()

    def first() -> tuple[list[str], list[_Read]]:
        names, futures = waiting.popleft()
        return names, [future.result() for future in futures]

    try:
        for start in range(0, len(expanded), size):
            block = expanded[start : start + size]
            futures = [pool.submit(_resized, item, resize, limits) for _, item in block]
            waiting.append(([name for name, _ in block], futures))
            if len(waiting) > 1:
                yield first()
        while waiting:
            yield first()
    finally:
        pool.shutdown(cancel_futures=True)


def _expand(items: Iterable[Item]) -> Iterator[tuple[str, Item]]:
    """Name every picture; replace folders by their pictures, and patterns by what they match."""
    for number, item in enumerate(items):
        if isinstance(item, Image.Image | np.ndarray):
            yield f"#{number}", item
            continue
        text = os.fspath(item)
        if not text:  # which would mean the current folder
            raise DataError("an empty path was given; name files, folders or patterns")
        path = Path(text).expanduser()
        if path.is_dir():
            below = list(pictures_below(path))
            if not below:
                raise DataError(f"no pictures in the folder {shown(text)}")
            for file in below:
                yield str(file), file
        elif path.exists() or not glob.has_magic(text):
            yield text, path
        else:
            matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
            if not matches:
                raise DataError(f"nothing matches the pattern {shown(text)}")
            yield from _expand(matches)


def _resized(item: Item, resize: Callable[[U8], U8], limits: PictureLimits) -> _Read:
    """Read one picture and resize it to the input; return it, or the reason why not."""
    try:
        pixels, notes = _pixels(item, limits)
        return _Read(resize(pixels), "; ".join(notes))
    except BadPicture as bad:
        return _Read(None, str(bad))


def _pixels(item: Item, limits: PictureLimits) -> tuple[U8, tuple[str, ...]]:
    if isinstance(item, Image.Image):
        return to_rgb(item, limits.range), ()
    if isinstance(item, np.ndarray):
        return _from_array(item), ()
    path = Path(item)
    if not path.exists():
        raise BadPicture("no such file")
    return decode_file(path, limits)


def _from_array(array: npt.NDArray[Any]) -> U8:
    """Bring an array to uint8 RGB.

    Raises:
        DataError: if it is not a picture.
    """
    grey, colour = array.ndim == 2, array.ndim == 3 and array.shape[2] in (3, 4)
    if not (grey or colour) or 0 in array.shape:
        raise DataError(
            f"an array of shape {array.shape} is not a picture; [H, W], [H, W, 3] and [H, W, 4] are"
        )
    if array.dtype.kind == "f":
        if not np.isfinite(array).all() or array.min() < 0 or array.max() > 1:
            raise DataError("arrays of floats must be finite and in 0..1; give uint8 for 0..255")
        array = np.round(array * 255).astype(np.uint8)
    if array.dtype != np.uint8:
        raise DataError(f"arrays of {array.dtype} are not taken; give uint8, or floats in 0..1")
    if colour and array.shape[2] == 3:
        return np.ascontiguousarray(array)
    return to_rgb(Image.fromarray(array))


def probabilities(model: Model, images: torch.Tensor, *, engine: str = "auto") -> F64:
    """Compute calibrated probabilities for pictures that were resized to the network's input.

    Shape:
        uint8 [B, 3, S, S] to [B, K].
    """
    outputs = _scorer(model, engine)(images)
    return softmax(outputs.numpy().astype(np.float64), model.info.temperature)


def _answer(name: str, probs: F64, class_names: Sequence[str], top: int) -> Prediction:
    order = np.argsort(-probs, kind="stable")[: max(1, top)]
    likeliest = tuple((class_names[k], float(probs[k])) for k in order)
    return Prediction(name, *likeliest[0], likeliest)
