"""Answers for pictures: one prediction or one reason for each, in the order they were given."""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from fieldmark.data.dataset import U8, BadPicture
from fieldmark.data.decode import decode_file, to_rgb
from fieldmark.data.folder import pictures_below
from fieldmark.errors import DataError
from fieldmark.fit.infer import Scorer
from fieldmark.metrics import softmax
from fieldmark.names import shown
from fieldmark.run import Model, Score

Item = str | os.PathLike[str] | Image.Image | npt.NDArray[Any]

BLOCK = 64
"""Pictures scored at a time; as many more are read meanwhile."""


@dataclass(frozen=True)
class Prediction:
    """The answer for one picture, or why there is none."""

    file: str
    """Its path as given, or its place (``#0``) among pictures given as objects."""
    label: str = ""
    prob: float = 0.0
    top: tuple[tuple[str, float], ...] = ()
    """The likeliest classes with their probabilities, likeliest first."""
    error: str = ""
    """Why the picture could not be used; empty if it could."""

    def to_json(self) -> dict[str, Any]:
        """``file``, ``label``, ``prob``, ``top``; or ``file``, ``error``."""
        if self.error:
            return {"file": self.file, "error": self.error}
        return {
            "file": self.file,
            "label": self.label,
            "prob": self.prob,
            "top": [{"label": label, "prob": prob} for label, prob in self.top],
        }


def predict(
    model: Model,
    items: Sequence[Item],
    *,
    top: int = 5,
    max_pixels: int = 50_000_000,
    threads: int = 1,
    engine: str = "auto",
    progress: Callable[[int, int], None] | None = None,
) -> list[Prediction]:
    """Classify files, folders, glob patterns, PIL images or arrays.

    Arrays are [H, W], [H, W, 3] or [H, W, 4], uint8, or floats in 0..1. Engines: see
    ``fit.infer.Scorer``; how the network came to be used is in ``model.notes`` afterwards.

    Raises:
        ConfigError: if there is no such engine.
        DataError: if nothing was given, or an array has another shape or type.
    """
    expanded = list(_expand(items))
    if not expanded:
        raise DataError("no pictures were given; name files, folders or patterns such as '*.jpg'")
    score = _scorer(model, engine)
    found: list[Prediction] = []
    with closing(_blocks(expanded, model, max_pixels, threads)) as blocks:
        for names, fitted in blocks:
            found += _answer(model, score, names, fitted, top)
            if progress is not None:
                progress(len(found), len(expanded))
    return found


def _scorer(model: Model, engine: str) -> Score:
    """The network made ready for scoring, once: what comes from a run is not trained any more."""
    if engine not in model.scorers:
        device = str(next(model.module.parameters()).device)
        model.scorers[engine] = Scorer(
            model.module, spec=model.info.input, device=device, engine=engine
        )
    return model.scorers[engine]


def _blocks(
    expanded: Sequence[tuple[str, Item]], model: Model, max_pixels: int, threads: int
) -> Generator[tuple[list[str], list[U8 | str]], None, None]:
    """Names and fitted pictures, in order; the next block is read while one is scored."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="predict")
    waiting: deque[tuple[list[str], list[Future[U8 | str]]]] = deque()

    def first() -> tuple[list[str], list[U8 | str]]:
        names, futures = waiting.popleft()
        return names, [future.result() for future in futures]

    try:
        for start in range(0, len(expanded), BLOCK):
            block = expanded[start : start + BLOCK]
            futures = [pool.submit(_fitted, named, model, max_pixels) for named in block]
            waiting.append(([name for name, _ in block], futures))
            if len(waiting) > 1:
                yield first()
        while waiting:
            yield first()
    finally:
        pool.shutdown(cancel_futures=True)


def _expand(items: Iterable[Item]) -> Iterator[tuple[str, Item]]:
    """Name every picture: folders become what is in them, patterns what they match."""
    for number, item in enumerate(items):
        if isinstance(item, Image.Image | np.ndarray):
            yield f"#{number}", item
            continue
        text = os.fspath(item)
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


def _fitted(named: tuple[str, Item], model: Model, max_pixels: int) -> U8 | str:
    """One picture fitted to the network's input, or the reason why not."""
    _, item = named
    try:
        return model.info.input.pixels(_pixels(item, max_pixels, model.info.input.decode_side))
    except BadPicture as bad:
        return str(bad)


def _pixels(item: Item, max_pixels: int, at_least: int) -> U8:
    if isinstance(item, Image.Image):
        return to_rgb(item)
    if isinstance(item, np.ndarray):
        return _from_array(item)
    path = Path(item)
    if not path.exists():
        raise BadPicture("no such file")
    return decode_file(path, max_pixels=max_pixels, at_least=at_least)[0]


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
    return to_rgb(Image.fromarray(array))


def _answer(
    model: Model, score: Score, names: list[str], fitted: list[U8 | str], top: int
) -> list[Prediction]:
    """Run the network on the pictures of a block that could be read."""
    readable = [i for i, pixels in enumerate(fitted) if not isinstance(pixels, str)]
    answers = {i: Prediction(names[i], error=str(fitted[i])) for i in range(len(names))}
    if readable:
        images = torch.from_numpy(np.stack([np.asarray(fitted[i]) for i in readable]))
        outputs = score(images)
        probs = softmax(outputs.numpy().astype(np.float64), model.info.temperature)
        for i, row in zip(readable, probs, strict=True):
            order = np.argsort(-row, kind="stable")[: max(1, top)]
            likeliest = tuple((model.info.class_names[k], float(row[k])) for k in order)
            answers[i] = Prediction(names[i], *likeliest[0], likeliest)
    return [answers[i] for i in range(len(names))]
