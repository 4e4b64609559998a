"""When work is recorded, and what happens where it cannot be; the recordings: ``test_gpu.py``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fieldmark.fit import recording
from fieldmark.fit.recording import UNRECORDED, Recorder, Tensors


class Tape:
    """A recording as a processor can have it: the work, done again."""

    made = 0

    def __init__(self, work: Callable[..., Tensors], inputs: Any, pool: Any) -> None:
        del inputs
        Tape.made += 1
        self.work, self.pool, self.played = work, pool, 0

    def play(self, inputs: Any) -> Tensors:
        self.played += 1
        return self.work(*inputs)


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    monkeypatch.setattr(Tape, "made", 0)
    monkeypatch.setattr(recording, "_Tape", Tape)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    return Recorder()


def double(x: torch.Tensor) -> Tensors:
    return [x * 2]


def times(recorder: Recorder, n: int, key: object = "a") -> None:
    for i in range(n):
        (result,) = recorder(key, double, [torch.tensor(float(i))])
        assert result is not None
        assert float(result) == 2 * i


def tape(recorder: Recorder, key: str) -> Tape:
    found = recorder._tapes[key]
    assert isinstance(found, Tape)
    return found


def test_work_is_recorded_from_the_fourth_time_on(recorder: Recorder) -> None:
    times(recorder, UNRECORDED)
    assert not recorder.has("a")
    times(recorder, 5)
    assert recorder.has("a")
    assert tape(recorder, "a").played == 5
    times(recorder, UNRECORDED, "b")
    assert not recorder.has("b")
    times(recorder, 1, "b")
    assert Tape.made == 2
    assert tape(recorder, "a").pool is tape(recorder, "b").pool


def test_what_is_forgotten_is_recorded_anew_in_a_place_of_its_own(recorder: Recorder) -> None:
    times(recorder, UNRECORDED + 1)
    pool = tape(recorder, "a").pool
    recorder.forget()
    assert not recorder.has("a")
    times(recorder, UNRECORDED + 1)
    assert tape(recorder, "a").pool is not pool


def test_a_copy_has_recorded_nothing(recorder: Recorder) -> None:
    times(recorder, UNRECORDED + 1)
    assert not copy.deepcopy(recorder).has("a")
    assert recorder.has("a")


def test_what_cannot_be_recorded_is_done_as_it_is(
    recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    times(recorder, UNRECORDED + 1)

    def refuse(*args: Any) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(recording, "_Tape", refuse)
    assert recorder.take_note() == ""
    times(recorder, UNRECORDED + 3, "b")
    assert not recorder.has("a")
    assert not recorder.has("b")
    assert recorder.take_note() == "operation not permitted when stream is capturing"
    assert recorder.take_note() == ""
    times(recorder, UNRECORDED + 3, "c")
    assert recorder.take_note() == ""
