"""What the server needs from a model: run directories and ONNX files have the same interface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fieldmark.errors import ConfigError
from fieldmark.names import shown
from fieldmark.pictures.inputs import InputSpec
from fieldmark.pictures.limits import PictureLimits
from fieldmark.pictures.picture import U8
from fieldmark.runs import manifest, predictions
from fieldmark.runs.directory import RunDirectory
from fieldmark.runs.model import Model
from fieldmark.scoring.metrics import wilson
from fieldmark.seeding import F64

TARGET = 0.9
"""Share of the answers not called unsure that should be right, at least."""


@dataclass(frozen=True)
class Threshold:
    """The calibrated probability below which an answer is "not sure"."""

    value: float
    reason: str
    """Text that says how it was found."""


class Classifier(Protocol):
    """A model behind the server."""

    @property
    def name(self) -> str:
        """Name to show."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, in the order of the probabilities."""

    @property
    def threshold(self) -> Threshold:
        """The threshold below which an answer is "not sure"."""

    @property
    def input(self) -> InputSpec | None:
        """Input that pictures are resized to before :meth:`classify`; None: left as decoded."""

    @property
    def limits(self) -> PictureLimits:
        """Limits with which pictures are decoded for it."""

    @property
    def explains(self) -> bool:
        """Whether :meth:`explain` can be called."""

    def classify(self, pictures: Sequence[U8]) -> F64:
        """Compute calibrated probabilities.

        Shape:
            N of [3, S, S], or of [H, W, 3] where ``input`` is None, to [N, K].
        """

    def explain(self, resized: U8, preview: U8, label: int) -> U8:
        """Draw a class's heat map over the preview.

        Shape:
            [3, S, S] and [h, w, 3] to [h, w, 3].
        """


class RunClassifier:
    """A run's model."""

    input: InputSpec

    def __init__(self, run: RunDirectory, *, device: str) -> None:
        self._model: Model = run.load_model(device=device)
        data = manifest.read(run).name if run.has(manifest.FILE) else ""
        self.name = shown(data or run.name)
        self.class_names = self._model.info.class_names
        self.input = self._model.info.input
        self.limits = run.limits()
        self.threshold = threshold_of(run)
        # A model that cannot answer is refused before it serves.
        self.classify([self._blank(), 255 - self._blank(), self._striped()])
        self.explains = self._can_explain()

    def classify(self, pictures: Sequence[U8]) -> F64:
        """See :class:`Classifier`."""
        import torch

        from fieldmark.jobs.predict import probabilities

        return probabilities(self._model, torch.from_numpy(np.stack(pictures)))

    def explain(self, resized: U8, preview: U8, label: int) -> U8:
        """See :class:`Classifier`."""
        import torch

        from fieldmark.jobs import explain

        images = torch.from_numpy(resized.copy())[None]
        heat = explain.heat_maps(self._model.module, images, [label], spec=self.input)[0]
        return explain.overlay(preview, heat, self.input)

    def _blank(self) -> U8:
        """Shape: [3, S, S]."""
        return np.zeros((3, self.input.size, self.input.size), np.uint8)

    def _striped(self) -> U8:
        """Shape: [3, S, S]."""
        blank = self._blank()
        return (np.arange(blank.size) * 101 % 256).astype(np.uint8).reshape(blank.shape)

    def _can_explain(self) -> bool:
        blank = self._blank()
        try:
            self.explain(blank, blank.transpose(1, 2, 0), 0)
        except ConfigError:  # it ends in tokens
            return False
        return True


def threshold_of(run: RunDirectory) -> Threshold:
    """Derive a run's threshold from its predictions on validation pictures.

    Without such predictions, or with too few to show anything, the threshold is :data:`TARGET`:
    then the calibrated probability is trusted as it is.
    """
    if run.has(predictions.FILE):
        rows = [answer for answer in predictions.read(run) if answer.part == "val"]
        probs = np.array([answer.prob for answer in rows])
        correct = np.array([answer.correct for answer in rows])
        found = confidence_threshold(probs, correct)
        if found is not None:
            return Threshold(
                found,
                f"of {len(probs)} validation pictures, those with at least this probability are "
                f"right in {TARGET:.0%} or more (lower end of the 95 % interval)",
            )
    return _taken_at_its_word("there are too few validation pictures to derive another")


def _taken_at_its_word(why: str) -> Threshold:
    return Threshold(TARGET, f"the calibrated probability must be {TARGET} itself, because {why}")


def confidence_threshold(probs: F64, correct: npt.NDArray[np.bool_]) -> float | None:
    """Find the lowest confidence from which on predictions are shown to be right often enough.

    That is the smallest confidence t, one half at least, such that among the predictions with a
    confidence of t or more the lower end of accuracy's 95 % interval (Wilson) is :data:`TARGET` or
    more; None where there is none. An answer below one half gives itself less than even odds, so it
    is never called sure, whatever validation shows.

    Shape:
        [N] and [N]: each prediction's confidence, and whether it was right.
    """
    order = np.argsort(-probs, kind="stable")
    right = np.cumsum(correct[order])
    best = None
    for i, confidence in enumerate(probs[order]):
        if confidence < 0.5:
            break
        last_of_ties = i + 1 == len(order) or probs[order[i + 1]] < confidence
        if last_of_ties and wilson(int(right[i]), i + 1)[0] >= TARGET:
            best = float(confidence)
    return best


class OnnxClassifier:
    """An exported ONNX file. It resizes pictures itself, and has no gradients for heat maps."""

    input = None
    explains = False

    def __init__(self, path: Path, *, threads: int) -> None:
        from fieldmark import runtime

        self._model = runtime.load(path, threads=threads)
        self.name = shown(path.stem)
        self.class_names = self._model.class_names
        self.limits = self._model.limits
        self.threshold = _taken_at_its_word("an exported file holds no validation pictures")

    def classify(self, pictures: Sequence[U8]) -> F64:
        """See :class:`Classifier`."""
        return self._model.probabilities(pictures)

    def explain(self, resized: U8, preview: U8, label: int) -> U8:
        """Never called: ``explains`` is false."""
        raise NotImplementedError


def open_classifier(
    path: Path, *, device: str = "auto", allow_plugin_version: bool = False
) -> Classifier:
    """Load a run directory, or an ONNX file that was exported from one.

    Raises:
        FieldmarkError: if it is neither, or damaged.
    """
    if path.suffix == ".onnx":
        if device not in ("auto", "cpu"):
            raise ConfigError(f"--device {device}: ONNX files run on the processor; leave it out")
        return OnnxClassifier(path, threads=0)
    from fieldmark.machine.device import choose

    run = RunDirectory.open(path, allow_plugin_version=allow_plugin_version)
    return RunClassifier(run, device=choose(device, "f32").name)
