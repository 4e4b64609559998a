"""A run's model for other programs: a file or folder that predicts as the run does.

Every format is made in the same way: it is written beside its place, predictions of real pictures
by it and by the run are compared (:mod:`fieldmark.export.gate`), and only if they agree is it moved
to its place.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fieldmark import plugins
from fieldmark.errors import (
    ConfigError,
    MissingExtraError,
    ResourceError,
    RunError,
    did_you_mean,
)
from fieldmark.files.writing import new_folder, write_atomic
from fieldmark.jobs import outside
from fieldmark.pictures.inputs import KERAS
from fieldmark.progress import Progress, Silent
from fieldmark.runs.directory import RunDirectory
from fieldmark.runs.model import Model

if TYPE_CHECKING:
    import onnx

    from fieldmark.export.gate import Sample, Score, Verdict

CALIBRATION = 128
"""Number of training pictures whose values decide the ranges of 8-bit numbers."""
TOLERANCES = {"onnx": 1e-4, "openvino": 5e-3, "timm": 5e-3}
"""Largest difference of a probability. ONNX resizes pictures to the same bits as the run. OpenVINO
computes the weights of the resize with 32 bits, and timm resizes the whole picture before it cuts
the centre out: some pixels differ by one level where a half is rounded."""

OF_PLUGINS = 5e-3
"""The same for the formats of plugins."""


@dataclass(frozen=True)
class Exported:
    """The result of an export."""

    path: Path
    verdict: Verdict | None
    """Result of the check; None for Keras, whose file is read back and compared by tensors."""


@dataclass(frozen=True)
class _Job:
    """One export: what all formats share."""

    run: RunDirectory
    model: Model
    to: str
    out: Path
    int8: bool
    fp16: bool
    progress: Progress

    @property
    def precision(self) -> str:
        return "int8" if self.int8 else "fp16" if self.fp16 else "f32"

    def pictures(self) -> Sample:
        """Return the pictures to compare predictions of.

        Raises:
            RunError: if the precision is below 32 bits and the run's pictures are gone.
        """
        from fieldmark.export import gate

        try:
            found = gate.part(self.run, "val")
        except RunError as error:
            if self.precision != "f32":
                raise RunError(
                    f"--{self.precision} is judged on the run's own pictures: {error}"
                ) from None
            self.progress.warn(f"checked on made-up pictures only: {error}")
            return gate.made_up(self.model.info.input.size)
        return found if self.precision != "f32" else found.spaced(gate.PICTURES)

    def judge(self, score: Score) -> Verdict:
        """Compare a file with the run, by the rule for its precision.

        Raises:
            WeightsError: if it must not be written.
        """
        from fieldmark.export import gate

        self.progress.say(f"comparing {self.out.name} with the run")
        if self.precision != "f32":
            return gate.as_good(self.model, score, self.pictures(), what=self.out.name)
        return gate.equal(
            self.model,
            score,
            self.pictures(),
            what=self.out.name,
            tolerance=TOLERANCES.get(self.to, OF_PLUGINS),
        )


def export(
    run_path: Path,
    out: Path | None = None,
    *,
    to: str,
    int8: bool = False,
    fp16: bool = False,
    which: str = "auto",
    allow_plugin_version: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write a run's model for another program.

    Args:
        run_path: The run directory.
        out: File or folder; default is ``model`` with the format's ending in the run.
        to: A name in :data:`FORMATS`, or of a plugin's exporter.
        int8: Weights and values of 8 bits, calibrated on training pictures; ONNX and OpenVINO.
        fp16: Weights and values of 16 bits; ONNX and OpenVINO.
        which: Epoch whose weights are written, as for ``RunDirectory.open``.
        allow_plugin_version: Use other versions of plugins than the run was made with.
        progress: Whoever watches.

    Raises:
        ConfigError: if there is no such format, or a setting has no effect on it.
        WeightsError: if the format cannot hold the network, or predictions differ from the run's.
        RunError: if the run cannot be used.
        MissingExtraError: if a package is not installed.
        ResourceError: if the place cannot be written.
    """
    writer = _writer(to)
    if int8 and fp16:
        raise ConfigError("--int8 and --fp16 are two precisions of one file; give one of them")
    if (int8 or fp16) and to not in _PRECISIONS:
        raise ConfigError(
            f"--int8 and --fp16 have no effect on {to}; they are for {' and '.join(_PRECISIONS)}"
        )
    run = RunDirectory.open(run_path, allow_plugin_version=allow_plugin_version, which=which)
    outside.check_run(run, ["networks"])
    views, resampling = run.model_info().input.views, run.model_info().input.interpolation
    if to in _ONE_VIEW and views != "none":
        raise ConfigError(
            f"{run.path} averages its answers over views ({views}), which {to} cannot do; "
            "export it to onnx or openvino"
        )
    if to == "timm" and resampling == KERAS:
        raise ConfigError(
            f"{run.path} resizes pictures by {resampling}, which timm cannot do; export it to "
            "onnx, openvino or keras"
        )
    ending = "_int8" if int8 else "_fp16" if fp16 else ""
    ends = _ENDINGS.get(to, f"_{to}")
    epoch = "" if which == "auto" else f"_{which}"
    place = out or run.path / f"model{epoch}{ending}{ends}"
    if to == "keras":
        from fieldmark.export.keras_file import export_keras

        made = export_keras(run.path, place, allow_plugin_version=allow_plugin_version, which=which)
        return Exported(made, None)
    _check_place(place, folder=not ends.startswith("."))
    _need(to)
    job = _Job(run, run.load_model(), to, place, int8, fp16, progress or Silent())
    return Exported(place, writer(job))


def _onnx(job: _Job) -> Verdict:
    """Write one ONNX file: resizing of pictures, network, probabilities, class names."""
    from fieldmark import runtime

    data = _graph(job).SerializeToString()
    classifier = runtime.open_bytes(data, where=job.out.name)
    verdict = job.judge(classifier.probabilities)
    write_atomic(job.out, data)
    return verdict


def _graph(job: _Job, *, names: bool = True) -> onnx.ModelProto:
    from fieldmark.export import gate, onnx_file

    job.progress.say(f"writing {job.model.info.model} as ONNX, {job.precision}")
    inner = onnx_file.network(job.model)
    if job.int8:
        try:
            pictures = gate.part(job.run, "train").spaced(CALIBRATION)
        except RunError as error:
            raise RunError(f"--int8 is calibrated on the run's own pictures: {error}") from None
        readable = (picture for block in pictures.blocks() for picture in block)
        inner = onnx_file.quantized(inner, onnx_file.calibration(readable, job.model.info.input))
    elif job.fp16:
        inner = onnx_file.half(inner)
    facts = onnx_file.facts(
        job.run.read_text("config.json"),
        precision=job.precision,
        limits=job.run.limits(),
    )
    return onnx_file.whole(inner, job.model.info, facts=facts, names=names)


def _openvino(job: _Job) -> Verdict:
    """Write a folder with OpenVINO's model.xml and model.bin."""
    from fieldmark.export import openvino_folder

    graph = _graph(job, names=False)
    with _folder(job.out) as folder:
        openvino_folder.write(graph, folder, job.model.info)
        return job.judge(openvino_folder.scorer(folder))


def _timm(job: _Job) -> Verdict:
    """Write a folder that ``timm.create_model("local-dir:FOLDER")`` loads."""
    from fieldmark.export import timm_folder

    with _folder(job.out) as folder:
        timm_folder.write(job.model, folder)
        return job.judge(timm_folder.scorer(folder))


WRITERS: dict[str, Callable[[_Job], Verdict]] = {
    "onnx": _onnx,
    "openvino": _openvino,
    "timm": _timm,
}
FORMATS = (*WRITERS, "keras")
"""Formats that a model can be exported to. Keras's files have a writer and a check of their own."""
_ENDINGS = {"onnx": ".onnx", "openvino": "_openvino", "timm": "_timm", "keras": ".keras"}
_ONE_VIEW = ("timm", "keras")
_PRECISIONS = ("onnx", "openvino")
_PACKAGES: dict[str, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "onnxruntime", "openvino"),
}


def _writer(to: str) -> Callable[[_Job], Verdict]:
    """What writes a format: ours, or a plugin's exporter, in a folder and through the same check.

    Raises:
        ConfigError: if there is no such format.
    """
    if to in FORMATS:
        return WRITERS.get(to, _onnx)  # Keras's never comes to it
    exporter = plugins.find("exporter", to, built_in=FORMATS)
    if exporter is None:
        known = [*FORMATS, *plugins.names("exporter")]
        raise ConfigError(
            f"no export format {to!r}{did_you_mean(to, known)} (known: {', '.join(known)}"
            f"{plugins.troubles()})"
        )

    def write(job: _Job) -> Verdict:
        with _folder(job.out) as folder:
            return job.judge(exporter(job.model, folder))

    return write


def _need(to: str) -> None:
    """Check that the packages for a format are installed, before anything is computed.

    Raises:
        MissingExtraError: naming the extra.
    """
    missing = [name for name in _PACKAGES.get(to, ()) if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"writing {to} needs {', '.join(missing)}; "
            f"install it with: pip install 'fieldmark[{to}]'"
        )


def _check_place(place: Path, *, folder: bool) -> None:
    if folder and (
        place.is_symlink() or (place.exists() and (not place.is_dir() or any(place.iterdir())))
    ):
        raise ConfigError(f"{place} is there already; choose another --out, or remove it")
    if not folder and place.suffix != ".onnx":
        raise ConfigError(f"{place} ends in {place.suffix!r}; .onnx is written")
    if not folder and place.is_dir():
        raise ConfigError(f"{place} is a folder; name a file")
    if not place.parent.is_dir():
        raise ConfigError(f"the folder {place.parent} is not there; make it, or choose another")


@contextlib.contextmanager
def _folder(place: Path) -> Iterator[Path]:
    """Make a folder beside the place; move it there if the block succeeds, else remove it.

    Raises:
        ResourceError: if the disk refuses.
    """
    try:
        with new_folder(place) as part:
            yield part
    except OSError as error:
        raise ResourceError(f"cannot write {place}: {error.strerror or error}") from error
