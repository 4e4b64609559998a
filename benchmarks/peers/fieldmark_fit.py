"""Fieldmark's own training with a look at its loop: what the other programs here share.

The whole command runs (settings, heap, number type, batches, loop), so that what is measured is
what a user gets; only the loop is wrapped.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from fieldmark.fit import loop
from fieldmark.jobs import train as training
from fieldmark.jobs.request import TrainRequest
from fieldmark.progress import Silent
from fieldmark.settings.config import TrainConfig

Loop = Callable[..., Iterator[Any]]


def train(
    data: str, *, recipe: str, settings: dict[str, Any], around: Callable[[Loop], Loop]
) -> TrainConfig:
    """Train as ``fieldmark train`` does, with a loop around the loop; returns its settings."""
    with (
        mock.patch.object(training, "fit", around(loop.fit)),
        tempfile.TemporaryDirectory() as folder,
    ):
        out = Path(folder) / "run"
        run = training.train(
            TrainRequest(data=data, recipe=recipe, settings=settings, out=out), progress=Silent()
        )
        return run.config()
