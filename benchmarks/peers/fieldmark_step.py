"""Fieldmark's training step: its arithmetic, its time, and the share outside the network.

The network is what lies between the beginning of its forward pass and the end of its backward pass,
the loss included; outside are input, resizing, optimizer, averaging, checks and records. FLOP are
those that torch's ``FlopCounterMode`` counts in whole steps, optimizer included; steps that are
counted are not timed, and convolve small maps as they are, without the zeros between pictures that
``fit/small_maps.py`` computes with. Each epoch's first steps are not timed either.
"""

from __future__ import annotations

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peers import convolutions, fieldmark_fit
from fieldmark.fit.loop import StepMark
from fieldmark.machine import small_maps
from fieldmark.settings.config import TrainConfig

WARM_UP = 2


@dataclass
class Watch:
    """Times steps and counts their FLOP."""

    count_every: int
    """1 counts every step and times none."""
    flop: dict[Any, list[float]] = field(default_factory=lambda: defaultdict(list))
    """FLOP a picture of the counted steps, by the kind of step."""
    timed: list[tuple[Any, int, float, float]] = field(default_factory=list)
    """Kind, pictures, seconds and seconds in the network of the timed steps."""
    _kind: Any = None
    _pictures: int = 0
    _network: float = 0.0
    _began: float = 0.0

    def around(self, fit: fieldmark_fit.Loop) -> fieldmark_fit.Loop:
        """The loop with a pause after every step."""

        def watched(state: Any, *words: Any, pause: Any = None, **rest: Any) -> Iterator[Any]:
            module = state.module
            module.register_forward_pre_hook(self._forward)
            marks = fit(state, *words, pause=lambda step: True, **rest)
            number = 0
            while True:
                counted = number % self.count_every == 0
                mark, seconds = self._next(marks, counted)
                if mark is None:
                    return
                if not isinstance(mark, StepMark):
                    number = 0
                    yield mark
                    continue
                if not counted and number >= WARM_UP:
                    self.timed.append((self._kind, self._pictures, seconds, self._network))
                number += 1
                if pause is not None and pause(mark.step):
                    yield mark

        return watched

    def _next(self, marks: Iterator[Any], counted: bool) -> tuple[Any, float]:
        """Take a step, or end an epoch; what it was, and its seconds."""
        self._network, self._pictures = 0.0, 0
        with ExitStack() as stack:
            counter = None
            if counted:
                counter = stack.enter_context(FlopCounterMode(display=False))
                for limit in ("LARGEST", "LARGEST_WITHOUT_AMX"):
                    stack.enter_context(mock.patch.object(small_maps, limit, 0))
            start = time.perf_counter()
            mark = next(marks, None)
            seconds = time.perf_counter() - start
        if counter is not None and isinstance(mark, StepMark):
            self.flop[self._kind].append(counter.get_total_flops() / self._pictures)
        return mark, seconds

    def _forward(self, module: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if not module.training:
            return
        trained = sum(p.requires_grad for p in module.parameters())
        self._kind = (tuple(inputs[0].shape[1:]), trained)
        self._pictures += len(inputs[0])
        self._began = time.perf_counter()

    def backward_ended(self) -> None:
        """The network's part of a micro-batch is over."""
        self._network += time.perf_counter() - self._began

    @property
    def flop_per_picture(self) -> float:
        """Mean over the counted steps."""
        counted = [flop for kind in self.flop.values() for flop in kind]
        return sum(counted) / len(counted)

    def figures(self) -> dict[str, float]:
        """Of the timed steps whose kind was counted, too."""
        timed = [one for one in self.timed if one[0] in self.flop]
        if not timed:
            raise ValueError(f"no step was timed: an epoch needs more than {WARM_UP + 1} steps")
        seconds = sum(one[2] for one in timed)
        pictures = sum(one[1] for one in timed)
        flop = sum(pictures * self.flop[kind][0] for kind, pictures, _, _ in timed)
        return {
            "images/s": pictures / seconds,
            "GFLOP/s": flop / seconds / 1e9,
            "outside the network, %": 100 * (1 - sum(one[3] for one in timed) / seconds),
            "GFLOP a picture": self.flop_per_picture / 1e9,
        }


def watch(
    data: str, *, recipe: str, settings: dict[str, Any], count_every: int
) -> tuple[Watch, TrainConfig]:
    """Train and watch every step; returns what was seen, and the run's settings."""
    seen = Watch(count_every)
    own = torch.Tensor.backward

    def backward(self: torch.Tensor, *words: Any, **rest: Any) -> None:
        own(self, *words, **rest)  # type: ignore[no-untyped-call]
        seen.backward_ended()

    with mock.patch.object(torch.Tensor, "backward", backward):
        config = fieldmark_fit.train(data, recipe=recipe, settings=settings, around=seen.around)
    return seen, config


def main(data: str, recipe: str, precision: str, epochs: int, batch: int) -> dict[str, float]:
    """The step's figures beside the best rate of convolutions in the same process.

    A batch of 0 is the recipe's.
    """
    settings = {
        "epochs": epochs,
        "precision": precision,
        **({"batch_size": batch} if batch else {}),
    }
    seen, config = watch(data, recipe=recipe, settings=settings, count_every=4)
    torch.set_num_threads(config.threads)
    kind = torch.bfloat16 if config.precision == "bf16" else torch.float32
    best = convolutions.best_rate(kind, batch=min(256, config.batch_size))
    return {**seen.figures(), "best convolution, GFLOP/s": best / 1e9}


if __name__ == "__main__":
    data, recipe, precision, epochs, batch = sys.argv[1:]
    print(json.dumps(main(data, recipe, precision, int(epochs), int(batch))))
