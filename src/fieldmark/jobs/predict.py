"""Predictions for pictures: one prediction, or one reason why not, for each, in the given order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fieldmark.errors import ConfigError, DataError, RunError
from fieldmark.jobs.given import Item, expanded, pixels
from fieldmark.machine.process import Lock
from fieldmark.names import shown
from fieldmark.pictures.limits import PictureLimits
from fieldmark.pictures.picture import U8, BadPicture
from fieldmark.scoring.metrics import softmax
from fieldmark.seeding import F64

if TYPE_CHECKING:
    import torch

    from fieldmark.runs.model import Model, ModelInfo, Score

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
    """Classify files, folders, glob patterns, bytes, streams, PIL images, arrays or tensors.

    Arrays are [H, W], or [H, W, C] with 1, 3 or 4 channels, or several of these [B, H, W, C];
    uint8, uint16 for 0..65535, or floats in 0..1. Engines: see ``scoring.scorer.Scorer``;
    afterwards ``model.notes`` says how the network was computed.

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
    resize: Callable[[U8], npt.NDArray[Any]],
    score: Callable[[Sequence[npt.NDArray[Any]]], F64],
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
    check_top(top)
    named = list(expanded(items))
    if not named:
        raise DataError("no pictures were given; name files, folders or patterns such as '*.jpg'")
    found: list[Prediction] = []
    with closing(_blocks(named, resize, limits, threads, block or BLOCK)) as blocks:
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
                progress(len(found), len(named))
    return found


def check_top(top: object) -> None:
    """Refuse what is no number of classes to tell.

    Raises:
        ConfigError: with the value and what is accepted.
    """
    if not isinstance(top, int) or isinstance(top, bool) or top < 1:
        raise ConfigError(f"top is {top!r}; a whole number from 1 on is accepted")


def _scorer(model: Model, engine: str) -> Score:
    """Prepare the network for scoring, once: the network of a run is not trained any more."""
    from fieldmark.scoring.scorer import Scorer

    with _preparing:
        if engine not in model.scorers:
            device = str(next(model.module.parameters()).device)
            model.scorers[engine] = Scorer(
                model.module, spec=model.info.input, device=device, engine=engine
            )
        return model.scorers[engine]


_preparing = Lock()
"""Held while a scorer is made: it changes how the network's weights lie in memory."""


def _blocks(
    named: Sequence[tuple[str, Item]],
    resize: Callable[[U8], U8],
    limits: PictureLimits,
    threads: int,
    size: int,
) -> Generator[tuple[list[str], list[_Read]], None, None]:
    """Yield names and resized pictures, in order; the next block is read while one is scored."""
    if len(named) == 1:  # which threads would only delay
        name, item = named[0]
        yield [name], [_resized(item, resize, limits)]
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="predict")
    waiting: deque[tuple[list[str], list[Future[_Read]]]] = deque()

    def first() -> tuple[list[str], list[_Read]]:
        names, futures = waiting.popleft()
        return names, [future.result() for future in futures]

    try:
        for start in range(0, len(named), size):
            block = named[start : start + size]
            futures = [pool.submit(_resized, item, resize, limits) for _, item in block]
            waiting.append(([name for name, _ in block], futures))
            if len(waiting) > 1:
                yield first()
        while waiting:
            yield first()
    finally:
        pool.shutdown(cancel_futures=True)


def _resized(item: Item, resize: Callable[[U8], npt.NDArray[Any]], limits: PictureLimits) -> _Read:
    """Read one picture and resize it to the input; return it, or the reason why not."""
    try:
        read, notes = pixels(item, limits)
        return _Read(resize(read), "; ".join(notes))
    except BadPicture as bad:
        return _Read(None, str(bad))


def probabilities(model: Model, images: torch.Tensor, *, engine: str = "auto") -> F64:
    """Compute calibrated probabilities for pictures that were resized to the network's input.

    Shape:
        uint8 [B, 3, S, S] to [B, K].

    Raises:
        RunError: if the network cannot take them, or its outputs are not finite numbers.
    """
    outputs = finite_outputs(model.info, lambda: _scorer(model, engine)(images))
    return softmax(outputs.numpy().astype(np.float64), model.info.temperature)


def finite_outputs(info: ModelInfo, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Compute a network's outputs, and make sure that they are some.

    Raises:
        RunError: if the network cannot take its pictures, or the outputs are not finite numbers.
    """
    name = shown(info.model)
    try:
        outputs = compute()
    except (RuntimeError, ValueError, AssertionError) as error:  # as networks refuse pictures
        why = " ".join(str(error).split())[:200]
        raise RunError(
            f"the network {name} cannot take pictures of {info.input.size} px: {why}"
        ) from error
    odd = int((~outputs.isfinite()).any(dim=1).sum())
    if odd:
        raise RunError(
            f"the network {name} gives outputs that are not finite numbers, for {odd} of "
            f"{len(outputs)} pictures; its weights are damaged or too large: use another checkpoint"
        )
    return outputs


def _answer(name: str, probs: F64, class_names: Sequence[str], top: int) -> Prediction:
    order = np.argsort(-probs, kind="stable")[: max(1, top)]
    likeliest = tuple((class_names[k], float(probs[k])) for k in order)
    return Prediction(name, *likeliest[0], likeliest)
