"""Where "not sure" begins, and that a run behind the server is the run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fieldmark.errors import ConfigError, RunError
from fieldmark.pictures.inputs import InputSpec
from fieldmark.pictures.limits import PictureLimits
from fieldmark.runs.directory import RunDirectory
from fieldmark.scoring.metrics import wilson
from fieldmark.serve.classifier import (
    TARGET,
    OnnxClassifier,
    confidence_threshold,
    open_classifier,
    threshold_of,
)
from fieldmark.serve.limits import Limits, Pace, Refusal, Slots


def test_the_threshold_is_where_answers_are_shown_to_be_right() -> None:
    # The surest 100 are right; of the 100 below them every other one is wrong.
    probs = np.linspace(0.99, 0.60, 200)
    correct = np.ones(200, bool)
    correct[100::2] = False
    found = confidence_threshold(probs, correct)
    assert found is not None
    kept = probs >= found
    assert wilson(int(correct[kept].sum()), int(kept.sum()))[0] >= TARGET
    below = probs >= probs[kept.sum()]
    assert wilson(int(correct[below].sum()), int(below.sum()))[0] < TARGET


def test_order_and_ties_make_no_difference() -> None:
    rng = np.random.default_rng(0)
    probs = rng.integers(50, 100, 300) / 100
    correct = rng.random(300) < probs**0.3
    found = confidence_threshold(probs, correct)
    order = rng.permutation(300)
    assert found == confidence_threshold(probs[order], correct[order])
    tied = np.full(50, 0.8)
    assert confidence_threshold(tied, np.ones(50, bool)) == 0.8
    assert confidence_threshold(tied, np.arange(50) > 20) is None


def test_too_few_or_too_many_wrong_answers_show_nothing() -> None:
    assert confidence_threshold(np.full(34, 0.99), np.ones(34, bool)) is None
    assert confidence_threshold(np.full(35, 0.99), np.ones(35, bool)) == 0.99
    assert confidence_threshold(np.zeros(0), np.zeros(0, bool)) is None


def test_less_than_one_half_is_never_sure() -> None:
    probs = np.concatenate([np.full(100, 0.9), np.full(100, 0.4)])
    assert confidence_threshold(probs, np.ones(200, bool)) == 0.9


def written(tmp_path: Path, rows: list[str]) -> RunDirectory:
    text = "\ufeffpart,file,label,predicted,prob,label_prob,correct\r\n" + "".join(rows)
    (tmp_path / "predictions.csv").write_text(text, encoding="utf-8", newline="")
    return RunDirectory(tmp_path)


def test_only_validation_decides(tmp_path: Path) -> None:
    right = ['val,"a\r\nb.jpg",x,x,0.97,0.97,1\r\n'] * 40
    wrong = ["test,b.jpg,x,y,0.99,0.01,0\r\n"] * 40
    found = threshold_of(written(tmp_path, right + wrong))
    assert found.value == 0.97 and "40 validation pictures" in found.reason
    found = threshold_of(written(tmp_path, right[:5]))
    assert found.value == TARGET and "too few" in found.reason
    (tmp_path / "predictions.csv").unlink()
    assert threshold_of(RunDirectory(tmp_path)).value == TARGET


def test_a_damaged_file_of_predictions_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"predictions\.csv: line 2: prob is 'what'.*fieldmark evaluate"
    ):
        threshold_of(written(tmp_path, ["val,a.jpg,x,x,what,0.9,1\r\n"]))


def test_what_is_neither_run_nor_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a run directory"):
        open_classifier(tmp_path)
    with pytest.raises(ConfigError, match="--device cuda"):
        open_classifier(tmp_path / "model.onnx", device="cuda")


def test_an_onnx_file_takes_whole_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fieldmark import runtime

    class Exported:
        class_names = ("a", "b")
        input = InputSpec(size=16, decode_side=512)
        limits = PictureLimits(decode_side=512)

        def probabilities(self, pictures: list[np.ndarray]) -> np.ndarray:
            return np.array([[p.shape[0] / 100, 1 - p.shape[0] / 100] for p in pictures])

    monkeypatch.setattr(runtime, "load", lambda path, threads: Exported())
    found = open_classifier(tmp_path / "bird\u202e.onnx")
    assert isinstance(found, OnnxClassifier)
    assert (found.input, found.explains, found.threshold.value) == (None, False, TARGET)
    assert found.limits.decode_side == 512
    assert found.name == "bird\\u202e" and found.class_names == ("a", "b")
    rows = found.classify([np.zeros((30, 20, 3), np.uint8), np.zeros((90, 5, 3), np.uint8)])
    np.testing.assert_allclose(rows[:, 0], [0.3, 0.9])


def test_places_follow_the_pace() -> None:
    limits, pace = Limits(queue=10, answer_seconds=10), Pace()
    slots = Slots(limits, pace)
    slots.take(10)
    with pytest.raises(Refusal, match="10 pictures"):
        slots.take(1)
    slots.give_back(10)
    pace.saw(1.0)
    slots.take(5)
    with pytest.raises(Refusal) as refusal:
        slots.take(1)
    assert refusal.value.status == 429 and refusal.value.headers == {"retry-after": "6"}
    slots.give_back(5)
    slots.take(8)  # alone in the server
    with pytest.raises(Refusal):
        slots.check()
    slots.give_back(8)
    slots.check()
    assert slots.taken == 0
