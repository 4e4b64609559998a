"""Logits of many pictures, in f32 and in the order of the pictures; every score is made here."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterable

import torch
from torch import nn

from fieldmark.errors import ConfigError, ResourceError
from fieldmark.machine import memory
from fieldmark.machine.device import require_no_fork
from fieldmark.machine.process import Lock, outlive_forks
from fieldmark.pictures.inputs import InputSpec
from fieldmark.scoring import openvino
from fieldmark.scoring.engine import prepared
from fieldmark.scoring.views import Forward, averaged


class Scorer:
    """A network that gives logits for batches of pictures that were resized to its input.

    On the processor the network is prepared (``engine``) when the first batch comes, so its weights
    must not change afterwards. Several threads may score with it at once, also the first batches.

    Args:
        module: The network; it is put into eval mode.
        spec: Its input.
        device: Its device.
        channels_last: Whether to compute with the channels last in memory.
        prepare: Whether to score with a copy that is faster.
        engine: torch; openvino; or auto: torch until as many pixels were scored as 500 pictures of
            224 px have, and OpenVINO from then on, for single pictures or for several or for both,
            where it is installed, agrees and is faster.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        spec: InputSpec,
        device: str = "cpu",
        channels_last: bool = True,
        prepare: bool = True,
        engine: str = "torch",
    ) -> None:
        if engine not in ENGINES:
            raise ConfigError(f"no engine {engine!r} (known: {', '.join(ENGINES)})")
        if engine == "openvino" and device != "cpu":
            raise ConfigError(f"engine is openvino, which computes on cpu only, not on {device}")
        outlive_forks()
        self._module = module.eval()
        if channels_last:
            module.to(memory_format=torch.channels_last)
        self._forward: Forward = module
        self._single: Forward = self._by_torch
        self._several: Forward = self._by_torch
        self._spec, self._device, self._channels_last = spec, device, channels_last
        self._unprepared = prepare and device == "cpu"
        self._engine = engine if device == "cpu" else "torch"
        self._asked, self._process = self._engine, os.getpid()
        self._pixels = 0
        self._most = 0
        """Pictures scored at a time; 0 for a whole batch, or as many as suit the processor."""
        self.notes: list[str] = []
        """Notes for the user about how the network is computed."""

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Score a batch, in pieces where memory is too small for all of it.

        Shape:
            uint8 [B, 3, S, S] to float32 [B, K] on the processor.

        Raises:
            ResourceError: if there is no memory for a single picture.
        """
        if not self._most and self._device == "cpu":
            share = AT_ONCE * torch.get_num_threads()
            self._most = max(1, share // (images.shape[2] * images.shape[3]))
        parts = torch.split(images, self._most or max(1, len(images)))
        if len(parts) > 1:
            return torch.cat([self(part) for part in parts])
        try:
            return self._score(images)
        except (RuntimeError, MemoryError) as error:
            if not memory.is_exhausted(error):
                raise
        if len(images) < 2:
            raise ResourceError(
                f"there is no memory on {self._device} to score a single picture; give a smaller "
                "--size or --model, or end other programs that use the device"
            )
        self._most = -(-len(images) // 2)
        self.notes.append(f"for lack of memory, {self._most} pictures are scored at a time")
        return self(images)

    def over(
        self, batches: Iterable[torch.Tensor], *, progress: Callable[[int], None] | None = None
    ) -> torch.Tensor:
        """Score batches, and tell ``progress`` how many pictures are done.

        Shape:
            batches of uint8 [B, 3, S, S] to float32 [N, K] on the processor.
        """
        results, done = [], 0
        for images in batches:
            results.append(self(images))
            done += len(images)
            if progress is not None:
                progress(done)
        return torch.cat(results) if results else torch.zeros((0, 0))

    def _score(self, images: torch.Tensor) -> torch.Tensor:
        self._look_for_forks()
        # Only here: weights that .to() makes in inference mode could never be trained again.
        with torch.inference_mode():
            if self._is_undecided():
                with _deciding:
                    if self._is_undecided():  # another thread may have decided meanwhile
                        self._decide(images)
            found = (self._single if len(images) == 1 else self._several)(images)
        self._pixels += images.shape[0] * images.shape[2] * images.shape[3]
        return found

    def _look_for_forks(self) -> None:
        """Go on with what works in a process that was forked: OpenVINO's threads are not there."""
        require_no_fork(self._device)
        if self._process == os.getpid():
            return
        self._process = os.getpid()
        if self._asked == "openvino":
            raise ResourceError(
                "engine is openvino, which does not work in a process that was forked after it was "
                "used; start processes with multiprocessing's 'spawn', or use engine torch"
            )
        self._engine, self._single, self._several = "torch", self._by_torch, self._by_torch

    def _is_undecided(self) -> bool:
        """Whether a choice of the engine is due."""
        return self._engine == "openvino" or (self._engine == "auto" and self._pixels >= FIRST)

    def _decide(self, images: torch.Tensor) -> None:
        """Choose between torch and OpenVINO, for good."""
        try:
            if self._engine == "openvino":
                self._single = openvino.converted(self._module, self._spec, images[:1])
                self._several = self._single
            elif openvino.is_installed():
                try:
                    self.notes.append(self._compare(images))
                except RuntimeError as error:
                    why = str(error).splitlines()[0][:100]
                    self.notes.append(f"OpenVINO cannot take the network: {why}")
        finally:
            self._engine = "torch"

    def _compare(self, images: torch.Tensor) -> str:
        """Let OpenVINO score what it is faster at, if it agrees on these pictures.

        Returns:
            A note that says what was decided.

        Raises:
            RuntimeError: if OpenVINO cannot convert the network.
        """
        few = images[:COMPARED]
        other = openvino.converted(self._module, self._spec, few[:1])
        mine, theirs = self._by_torch(few).softmax(1), other(few).softmax(1)
        difference = float((mine - theirs).abs().max())
        if not (difference <= PROBABILITIES and torch.equal(mine.argmax(1), theirs.argmax(1))):
            return f"OpenVINO's probabilities differ by {difference:.2g}, so torch is kept"
        single = _speedup(self._by_torch, other, few[:1], rounds=11)
        several = _speedup(self._by_torch, other, few, rounds=3)
        if single >= CLEARLY:
            self._single = other
        if several >= CLEARLY:
            self._several = other
        return (
            f"OpenVINO has {single:.2f}x torch's speed on one picture and {several:.2f}x on "
            f"{len(few)}: {_OUTCOMES[single >= CLEARLY, several >= CLEARLY]}"
        )

    def _by_torch(self, images: torch.Tensor) -> torch.Tensor:
        floats = self._spec.normalize(images.to(self._device, non_blocking=True))
        if self._channels_last:
            floats = floats.contiguous(memory_format=torch.channels_last)
        if self._unprepared:
            with _deciding:
                if self._unprepared:  # another thread may have prepared it meanwhile
                    self._prepare(floats)
        return averaged(self._forward, floats, self._spec.views).float().cpu()

    def _prepare(self, floats: torch.Tensor) -> None:
        try:
            self._forward, why = prepared(self._module, floats)
            if why:
                self.notes.append(f"the network is scored as it is: {why}")
        finally:
            self._unprepared = False  # last: until then other threads wait


_deciding = Lock()
"""Held while a network is prepared, or engines are compared: each once, by one thread."""
ENGINES = ("auto", "torch", "openvino")
AT_ONCE = 16 * 224 * 224
"""Pixels that a processor scores at once for each of its threads: more is not faster, and needs
memory that the system has to provide first."""
FIRST = 500 * 224 * 224
"""Pixels after which converting the network to OpenVINO, one to two seconds, pays."""
COMPARED = 16
"""Largest number of pictures that both engines score for the comparison."""
PROBABILITIES = 1e-4
"""Largest difference of a probability that counts as agreement."""
CLEARLY = 1.05
"""Ratio of speeds from which on changing to OpenVINO pays."""
PAUSE = 0.003
"""Seconds before each timing, in which the other engine's threads stop waiting for work: they would
slow this one down by a tenth (``docs/log.md``)."""
_OUTCOMES = {
    (False, False): "torch is kept",
    (True, False): "single pictures are scored by OpenVINO from now on, several by torch",
    (False, True): "several pictures are scored by OpenVINO from now on, single ones by torch",
    (True, True): "OpenVINO is used from now on",
}


def _speedup(present: Forward, other: Forward, images: torch.Tensor, *, rounds: int) -> float:
    """Return how many times as fast the other is: medians of runs that take turns."""
    seconds: dict[Forward, list[float]] = {present: [], other: []}
    for _ in range(rounds):
        for call, taken in seconds.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            call(images)
            taken.append(time.perf_counter() - start)
    return statistics.median(seconds[present]) / statistics.median(seconds[other])
