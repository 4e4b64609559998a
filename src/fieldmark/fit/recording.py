"""Work that a GPU repeats is recorded once, as a CUDA graph.

A small network's step is a few hundred short kernels, and launching them one by one takes the
processor longer than the GPU needs to run them. A recorded step is launched in one go. The kernels
are the same, in the same order, so the results are the same bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch

Tensors = list[torch.Tensor | None]
Work = Callable[..., Tensors]

UNRECORDED = 3
"""How often work of a kind is done without recording first, so that libraries can choose their
kernels and allocate their memory."""


class Recorder:
    """Does work on a CUDA device; from the fourth time on it replays a recording of it.

    The work may depend only on the tensors that are handed in, on tensors that keep their memory
    (weights, running statistics, velocities) and on torch's default generator, and must not wait
    for the device. Results stay valid until the next call.
    """

    def __init__(self) -> None:
        self._gave_up = False
        self._note = ""
        self._counts: dict[Hashable, int] = {}
        self._tapes: dict[Hashable, _Tape] = {}
        self._pool: Any = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Recorder:
        return Recorder()  # what was recorded is of the original's tensors

    def take_note(self) -> str:
        """Return, the first time only, why nothing is recorded any more."""
        why, self._note = self._note, ""
        return why

    def forget(self) -> None:
        """Drop all recordings, because the work has changed."""
        self._counts.clear()
        self._tapes.clear()
        self._pool = None  # it goes with the last recording that has it

    def has(self, key: Hashable) -> bool:
        """Whether work of that kind is recorded."""
        return key in self._tapes

    def __call__(self, key: Hashable, work: Work, inputs: Sequence[torch.Tensor]) -> Tensors:
        """Return ``work(*inputs)``; all work with one key does the same to other numbers."""
        tape = self._tapes.get(key)
        if tape is None:
            count = self._counts.get(key, 0)
            if self._gave_up or count < UNRECORDED:
                self._counts[key] = count + 1
                return work(*inputs)
            tape = self._record(work, inputs)
            if tape is None:
                return work(*inputs)
            self._tapes[key] = tape
        return tape.play(inputs)

    def _record(self, work: Work, inputs: Sequence[torch.Tensor]) -> _Tape | None:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        torch.cuda.empty_cache()  # a recording has its own memory
        try:
            return _Tape(work, inputs, self._pool)
        except RuntimeError as error:  # CUDA says so when work waits, or memory runs out
            lines = str(error).strip().splitlines() or [type(error).__name__]
            self._gave_up, self._note = True, lines[0][:120]
            self.forget()
            torch.cuda.synchronize()
            return None


class _Tape:
    """One recording, with the tensors that it reads and writes."""

    def __init__(self, work: Work, inputs: Sequence[torch.Tensor], pool: Any) -> None:
        device = inputs[0].device
        self._inputs = [each.clone() for each in inputs]
        self._graph = torch.cuda.CUDAGraph()
        now = torch.cuda.current_stream(device)
        aside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        aside.wait_stream(now)
        with torch.cuda.stream(aside):
            # Other threads make the next batches meanwhile, which only this mode lets them.
            self._graph.capture_begin(pool, capture_error_mode="thread_local")
            try:
                self._outputs = work(*self._inputs)
            except BaseException:
                self._abandon(device)
                raise
            self._graph.capture_end()
        now.wait_stream(aside)

    def _abandon(self, device: torch.device) -> None:
        with contextlib.suppress(RuntimeError):  # it says again what ended the recording
            self._graph.capture_end()
        # The generator still takes itself for recorded, and would draw no more.
        generator = torch.cuda.default_generators[device.index or 0]
        generator.graphsafe_set_state(torch.Generator(device).graphsafe_get_state())

    def play(self, inputs: Sequence[torch.Tensor]) -> Tensors:
        """Replay with other inputs; return the results."""
        torch._foreach_copy_(self._inputs, list(inputs))
        self._graph.replay()
        return self._outputs
