"""What training writes as it goes, and how it goes on when the disk refuses."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from fieldmark.errors import ResourceError, RunError
from fieldmark.fit.state import EpochRecord, TrainState
from fieldmark.plugins import Need
from fieldmark.runs import history
from fieldmark.runs.directory import MODEL_FILES, RunDirectory
from fieldmark.settings.config import TrainConfig, save_interval

LONGEST_WAIT = 60.0
"""Seconds after which a save that failed is tried again at the latest, if one is due."""
SMALL_FILES = 4_000_000
"""Bytes for figures, gallery and report, which do not grow with the network."""
PER_PICTURE = 500
"""Bytes a picture takes in ``data.json`` and ``predictions.csv``, twice over."""


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a checkpoint says of the run it is of, so that no other file has to be believed."""

    config: TrainConfig
    data: str
    """Fingerprint of the pictures."""
    weights: str
    """What training started from."""
    needs: tuple[Need, ...] = ()
    """The plugins that it uses."""

    def plugins(self) -> dict[str, Any]:
        """What a checkpoint says of them: nothing, where none is used."""
        needs = [need.to_json() for need in self.needs]
        return {"plugins": needs} if needs else {}


class Saver:
    """Writes a run's files, and keeps them in memory while the disk refuses.

    Checkpoints hold the models written so far (``MODEL_FILES``): a run goes on from one file, and
    whatever was in the folder, its best weights are those of its best epoch.
    """

    def __init__(
        self,
        run: RunDirectory,
        origin: Origin,
        *,
        warn: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._origin = origin
        self._warn = warn
        self._clock = clock
        self._waiting: dict[str, bytes] = {}
        self._models: dict[str, torch.Tensor] = {}
        self._every, self._seconds = save_interval(origin.config.save_every)
        self._failures = 0
        self._saved_step: int | None = None
        self._tried_at = clock()

    def due(self, step: int) -> bool:
        """Whether a checkpoint is wanted after this step, in the midst of an epoch."""
        if self._every and step % self._every == 0:
            return True
        return 0 < self._seconds <= self._clock() - self._tried_at

    def change(self, config: TrainConfig) -> None:
        """Have settings that training itself decided written with the next save."""
        self._origin = dataclasses.replace(self._origin, config=config)
        self.put("config.json", config.to_json(needs=self._origin.needs).encode())

    def put(self, name: str, data: bytes) -> None:
        """Have a file written with the next save."""
        self._waiting[name] = data
        if name in MODEL_FILES:
            self._models[name] = torch.frombuffer(bytearray(data), dtype=torch.uint8)

    def save(self, state: TrainState, *, must: bool = False) -> None:
        """Write what waits, and a checkpoint.

        If the disk refuses, a warning says so once, and training goes on: the next save after a
        while tries again.

        Args:
            state: What training has come to.
            must: Try now, and give up if it fails.

        Raises:
            ResourceError: if it must be saved and cannot be.
        """
        now = self._clock()
        wait = min(2.0**self._failures, LONGEST_WAIT) if self._failures else 0.0
        if not must and now - self._tried_at < wait:
            return
        self._tried_at = now
        try:
            self._write(state)
        except ResourceError as error:
            self._failures += 1
            if must:
                raise ResourceError(self._lost(state, error)) from error
            if self._failures == 1:
                self._warn(f"not saved: {error}. Training goes on, and saving is tried again")
            return
        if self._failures:
            self._warn(f"saved again after {self._failures} failed tries, at step {state.step}")
        self._failures, self._saved_step = 0, state.step

    def finish(self, state: TrainState) -> None:
        """Bring to the disk what is still waiting for it.

        Raises:
            ResourceError: if it still refuses.
        """
        if self._failures or self._waiting:
            self.save(state, must=True)

    def _write(self, state: TrainState) -> None:
        for name in list(self._waiting):
            if name in MODEL_FILES:
                self._run.put_model(name, self._waiting[name])
            else:
                self._run.write(name, self._waiting[name])
            del self._waiting[name]
        self._run.save_checkpoint(
            {
                **state.state_dict(),
                "config": self._origin.config.values(),
                "data": self._origin.data,
                "weights": self._origin.weights,
                "models": self._models,
                **self._origin.plugins(),
            }
        )

    def _lost(self, state: TrainState, error: ResourceError) -> str:
        """What a save that had to succeed leaves the user with."""
        if self._saved_step is None:
            return str(error)
        return (
            f"{error}. Training came to step {state.step}, and step {self._saved_step} is the last "
            f"that is saved; go on from there with: fieldmark resume {self._run.path}"
        )

    def take_back(self, saved: Mapping[str, Any], state: TrainState) -> None:
        """Make the folder fit a checkpoint: its models and the records of its epochs.

        What a later epoch wrote before the run was killed is written again when that epoch is.

        Args:
            saved: The checkpoint.
            state: What was loaded from it.

        Raises:
            RunError: if the checkpoint holds something else.
            ResourceError: if the disk refuses.
        """
        models = saved.get("models")
        if not isinstance(models, dict) or not all(
            name in MODEL_FILES and isinstance(data, torch.Tensor) and data.dtype == torch.uint8
            for name, data in models.items()
        ):
            raise RunError(f"{self._run.path}: the checkpoint's models are not what a run writes")
        self._models = dict(models)
        for name in MODEL_FILES:
            data = models[name].numpy().tobytes() if name in models else None
            self._run.restore_model(name, data)
        self.put_records(state.history)
        for name in list(self._waiting):
            self._run.write(name, self._waiting.pop(name))
        self._saved_step = state.step

    def put_records(self, epochs: list[EpochRecord]) -> None:
        """Have ``metrics.jsonl`` and ``results.csv`` written with the next save."""
        if epochs:
            self.put(history.FILE, history.encode(epochs))
            self.put(history.TABLE, history.encode_table(epochs))


def room_needed(state: TrainState, config: TrainConfig, *, pictures: int) -> int:
    """Bytes that a run takes on the disk at most, while it writes.

    Three checkpoints (the new one beside the last and the one before), each with the weights, their
    average and the optimizer's tensors, in the midst of an epoch also as they were at its start,
    and the best model; two models and one being written.
    """
    weights = sum(int(t.nbytes) for t in state.module.state_dict().values())
    adaptive = any("betas" in group for group in state.optimizer.param_groups)
    moments = (2 if adaptive else 1) if config.epochs else 0
    trained = 1 + moments + (state.ema is not None)
    times = 1 if config.save_every == "epoch" else 2
    models = 2 if config.keep == "last" else 1
    checkpoint = (times * trained + models) * weights
    return 3 * checkpoint + 3 * weights + SMALL_FILES + PER_PICTURE * pictures
