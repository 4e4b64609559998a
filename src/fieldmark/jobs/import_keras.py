"""Makes a run from a Keras file.

The run records what it needs to predict as Keras did: the order of the classes, the scaling of
pixels, the resampling filter. A file that was exported from a run contains the run's own
description, so that importing it restores the run exactly.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from fieldmark import models
from fieldmark.errors import ConfigError, RunError, WeightsError, did_you_mean
from fieldmark.files.json_text import FORMAT
from fieldmark.jobs import outside
from fieldmark.keras import config as keras_config
from fieldmark.keras import files as keras_files
from fieldmark.keras import graph as keras_graph
from fieldmark.keras import state as keras_state
from fieldmark.keras.config import Scaling
from fieldmark.keras.files import KerasFile
from fieldmark.keras.graph import Graph, MismatchError
from fieldmark.names import shown
from fieldmark.pictures.inputs import NORMALIZATIONS, InputSpec
from fieldmark.runs.directory import RunDirectory
from fieldmark.runs.model import Model, ModelInfo, Selected
from fieldmark.settings.config import TrainConfig
from fieldmark.settings.resolved import Resolved
from fieldmark.settings.spec import Spec, call, parse

_MAX_CLASSES_BYTES = 2**24
_MAX_MEAN_BYTES = 2**26
CENTRE = "centre.mean"
"""Name of the mean picture in the weights of a network that subtracts one."""
_EXACT = 1e-6
"""Relative difference below which two scalings count as one that was rounded."""


def import_keras(
    file: Path,
    *,
    model: str = "",
    classes: Sequence[str] = (),
    out: Path | None = None,
    preprocess: str = "auto",
    interpolation: str = "auto",
    mean_picture: Path | None = None,
    size: int = 0,
) -> RunDirectory:
    """Make a run directory from a Keras file, for predicting, scoring and exporting.

    Args:
        file: ``.h5``, ``.weights.h5`` or ``.keras``; weights alone, or a whole model.
        model: Spec of the network; may be left out for a file that a run was exported to.
        classes: Names in the order of the network's outputs; or one text file with a name a line,
            or one folder, whose folders in sorted order are the classes, as Keras has it.
        out: The run directory; default is a new one under ``runs/``.
        preprocess: Scaling of the pixels before the network got them: caffe, tf, torch, scale
            (divided by 255) or none. ``auto``: that of layers at the front of the file, else the
            network's own.
        interpolation: Resampling filter; ``auto`` is that of the exported run, else nearest, as in
            ``keras.utils.load_img``. ``keras_bilinear`` is that of ``tf.image.resize`` and
            ``image_dataset_from_directory``.
        mean_picture: ``.npy`` file of the picture that the script subtracted after ``preprocess``,
            [H, W, 3]: ``np.save("mean.npy", x_train.mean(axis=0))``. For networks with an argument
            ``centre``; the file of weights does not hold it.
        size: Height and width of the input; 0 is the file's or the network's.

    Raises:
        WeightsError: if the file is unsafe, damaged, or of another network.
        ConfigError: if the settings cannot be used.
        MissingExtraError: if h5py is not installed.
    """
    if preprocess != "auto" and preprocess not in NORMALIZATIONS:
        raise ConfigError(
            f"no preprocess {preprocess!r}{did_you_mean(preprocess, NORMALIZATIONS)} "
            f"(known: auto, {', '.join(NORMALIZATIONS)})"
        )
    read = keras_files.read_keras(file)
    before = _note(read)
    spec = model or (before.model if before else "")
    names = class_names(classes) if classes else (before.class_names if before else ())
    if not spec or not names:
        raise ConfigError(
            f"{read.name} does not say {'which network it is of' if not spec else 'its classes'}; "
            "give --model and --classes"
        )
    if spec.startswith("timm/"):
        raise ConfigError(f"{spec} has no Keras twin; `fieldmark models` lists networks that have")
    sketch, graph, found = _matched(read, spec, len(names), size=size, before=before)
    description, state = found.description, found.state
    scaling = description.scaling if description else None
    wanted, told = input_of(sketch.input, scaling, preprocess, before, read.name)
    if scaling is None and wanted.mean == NORMALIZATIONS["caffe"][0]:
        state = keras_state.turn_channels(state, graph)
        told.append("the first kernel's channels were turned from blue-green-red")
    if found.ordered:
        told.append(
            "the file holds weights alone; layers of equal shape were taken in Keras's order"
        )
    built = sketch.spec
    if mean_picture is not None:
        built = _centred(built, sketch.input.size)
        state = {**state, CENTRE: _mean_picture(mean_picture, sketch.input.size)}
        told.append(f"{shown(mean_picture.name)} is subtracted from every picture")
    scale = "type" if before is None else before.input.range
    resized = dataclasses.replace(_resizing(wanted, interpolation, before), range=scale)
    told.append(_filter_note(resized.interpolation, interpolation, before))
    network = models.create(built, num_classes=len(names), weights="none", size=sketch.input.size)
    network.module.load_state_dict(state, strict=False)  # all but the counters of batch norm
    info = ModelInfo(
        model=network.spec,
        input=resized,
        class_names=tuple(names),
        temperature=temperature_of(description.temperature if description else 1.0, before),
        selected=Selected(epoch=0, metric="imported"),
        weights=f"keras file: {read.name}",
        num_params=network.num_params,
    )
    return _write(Model(network.module, info), file, read, told, out)


def class_names(given: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the classes: as given, or read from one text file or folder.

    Raises:
        ConfigError: if there are none, or one is empty or is there twice.
    """
    names, source = list(given), "--classes"
    if len(given) == 1:
        path = Path(given[0]).expanduser()
        if path.is_dir():
            source = f"the folder {path}"
            names = sorted(
                entry.name
                for entry in path.iterdir()
                if entry.is_dir() and not entry.name.startswith(".")
            )
        elif path.is_file():
            source = f"the file {path}"
            names = _lines(path)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if not names or not all(names) or twice:
        what = f"names {shown(twice[0])} twice" if twice else "names no class, or an empty one"
        raise ConfigError(
            f"{source} {what}; give the names in the order of the network's outputs, a text file "
            "with one name a line, or the folder with a folder for each class"
        )
    return tuple(names)


def _lines(path: Path) -> list[str]:
    try:
        if path.stat().st_size > _MAX_CLASSES_BYTES:
            raise ConfigError(f"{path} is too large for a list of classes")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the classes in {path}: {error}") from None
    return [line.rstrip("\r") for line in text.rstrip("\r\n").split("\n")]


def _note(file: KerasFile) -> ModelInfo | None:
    """Read the description of the run that the file was exported from, if there is one."""
    if not file.note:
        return None
    try:
        return ModelInfo.from_json(file.note, where=f"{file.name}: Fieldmark's description")
    except RunError as error:
        raise WeightsError(str(error)) from None


def _matched(
    file: KerasFile, spec: str, classes: int, *, size: int, before: ModelInfo | None
) -> tuple[models.Network, Graph, keras_state.KerasState]:
    """Build the network without values, its graph, and the file's tensors under its names.

    Without values, because a file may ask for more memory than there is, and not fit in the end.
    """
    told = keras_config.input_size(file.config, name=file.name) if file.config else 0
    if size and told and size != told:
        raise ConfigError(f"size is {size}, but {file.name} takes pictures of {told} px")
    size = size or told or (before.input.size if before else 0)
    with torch.device("meta"):
        network = models.create(spec, num_classes=classes, weights="none", size=size)
    size = network.input.size
    graph = keras_graph.trace(network.module, size)
    outputs = _outputs(file)
    if outputs and outputs != graph[-1].shape[-1]:
        raise WeightsError(
            f"{file.name} has {outputs} outputs, but {graph[-1].shape[-1]} are wanted for "
            f"{classes} classes; name every class, in the order of the outputs"
        )
    if any(layer.kind == "centre" for layer in graph) and not _has_centre(file):
        raise WeightsError(
            f"{network.spec} subtracts the training pictures' mean, which {file.name} does not "
            "hold; name the model without centre, and give the mean by --mean-picture FILE.npy if "
            "one was subtracted"
        )
    try:
        return network, graph, keras_state.keras_state(file, graph, size=size)
    except MismatchError as error:
        fitting = _of_these_shapes(file, outputs or classes, size)
        hint = f"; by the shapes of its tensors it fits {', '.join(fitting)}" if fitting else ""
        raise WeightsError(f"{error}{hint}") from None


def _centred(text: str, size: int) -> str:
    """Return the spec of the same network with a mean picture.

    Raises:
        ConfigError: if it does not take one.
    """
    spec = parse(text, what="model")
    if "centre" not in inspect.signature(models.family(spec).build).parameters:
        raise ConfigError(f"{spec.name} subtracts no mean picture; leave --mean-picture out")
    kwargs = tuple((key, value) for key, value in spec.kwargs if key != "centre")
    return str(Spec(spec.name, spec.args, (*kwargs, ("centre", size))))


def _mean_picture(path: Path, size: int) -> torch.Tensor:
    """Read a mean picture.

    Shape:
        [H, W, 3] in the file to [3, H, W].

    Raises:
        WeightsError: if the file holds none, or one of another size.
    """
    try:
        if path.stat().st_size > _MAX_MEAN_BYTES:
            raise WeightsError(f"{path} is larger than {_MAX_MEAN_BYTES >> 20} MiB")
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise WeightsError(f"{path} cannot be read as a .npy file: {error}") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        raise WeightsError(f"{path} is not an array of numbers")
    if array.shape != (size, size, 3):
        raise WeightsError(
            f"{path} has the shape {array.shape}; the mean of pictures of {size} px has "
            f"({size}, {size}, 3)"
        )
    values = array.astype(np.float32)
    if not np.isfinite(values).all():
        raise WeightsError(f"{path} holds values that are not finite numbers")
    return torch.from_numpy(values.transpose(2, 0, 1).copy())


def _outputs(file: KerasFile) -> int:
    """Return the units of the file's last dense layer; 0 if it has none."""
    dense = [a for layer in file.layers for _, a in layer.tensors[:1] if a.ndim == 2]
    return int(dense[-1].shape[1]) if dense else 0


def _has_centre(file: KerasFile) -> bool:
    return any(layer.tensors[0][1].ndim == 3 for layer in file.layers)


_DEPTHS = {
    "cifar_resnet": [
        *(f"cifar_resnet(depth={depth})" for depth in (20, 32, 44, 56, 110)),
        *(f"cifar_resnet(depth={depth}, version=2)" for depth in (20, 29, 56, 110)),
    ]
}


def _of_these_shapes(file: KerasFile, classes: int, size: int) -> list[str]:
    """List our networks whose tensors have the file's shapes, in any order."""
    there = Counter(
        tuple(keras_graph.to_torch_shape(array.shape))
        for layer in file.layers
        for _, array in layer.tensors
    )
    found = []
    for name, family in models.MODELS.items():
        specs = [spec for spec, _ in family.examples]
        for text in dict.fromkeys([*specs, *_DEPTHS.get(name, [])]):
            spec = parse(text, what="model")
            if "size" in inspect.signature(family.build).parameters:
                spec = Spec(spec.name, spec.args, (*spec.kwargs, ("size", size)))
            try:
                with torch.device("meta"):
                    module = call(spec, family.build, classes, what="model")
            except ConfigError:
                continue  # not for this size
            here = Counter(
                tuple(value.shape)
                for key, value in module.state_dict().items()
                if not key.endswith("num_batches_tracked")
            )
            if here == there:
                found.append(str(spec))
    return found


def input_of(
    own: InputSpec, scaling: Scaling | None, preprocess: str, before: ModelInfo | None, name: str
) -> tuple[InputSpec, list[str]]:
    """Return the input with the right scaling of pixels, and a note about it."""
    if scaling is not None:
        if preprocess not in ("auto", "none"):
            raise ConfigError(
                f"preprocess is {preprocess}, but layers at the front of {name} scale pixels "
                "already; leave it out"
            )
        if not all(scale > 0 for scale in scaling.scale):
            raise WeightsError(f"{name} scales pixels by {scaling.scale}; above 0 is accepted")
        red, green, blue = (1 / (scale * 255) for scale in scaling.scale)
        std = (red, green, blue)
        red, green, blue = (0.0 - o * s for o, s in zip(scaling.offset, std, strict=True))
        mean = (red, green, blue)
        if before is not None and _close((*mean, *std), (*before.input.mean, *before.input.std)):
            mean, std = before.input.mean, before.input.std
        told = "pixels are scaled as the layers at the front of the file do"
    elif preprocess != "auto":
        mean, std = NORMALIZATIONS[preprocess]
        told = f"pixels are scaled as --preprocess {preprocess} says"
    else:
        mean, std = own.mean, own.std
        told = "pixels are scaled as the network expects; if Keras did otherwise, --preprocess"
    return dataclasses.replace(own, mean=mean, std=std), [told]


def _resizing(spec: InputSpec, interpolation: str, before: ModelInfo | None) -> InputSpec:
    """Set the resizing to that of the exported run, else to that of ``keras.utils.load_img``."""
    if before is None:
        spec = dataclasses.replace(spec, interpolation="nearest", resize="squash", crop=1.0)
    else:
        was = before.input
        spec = dataclasses.replace(
            spec, interpolation=was.interpolation, resize=was.resize, crop=was.crop
        )
    if interpolation != "auto":
        spec = dataclasses.replace(spec, interpolation=interpolation)
    return spec


def _filter_note(used: str, asked: str, before: ModelInfo | None) -> str:
    """Say how pictures will be resized, and why."""
    if asked != "auto":
        return f"pictures are resized by {used}, as --interpolation says"
    if before is not None:
        return f"pictures are resized by {used}, as in the run that the file was exported from"
    return (
        f"pictures are resized by {used}, as load_img and flow_from_directory do; if the script "
        "used image_dataset_from_directory or tf.image.resize, give --interpolation keras_bilinear"
    )


def _close(values: Sequence[float], others: Sequence[float]) -> bool:
    return all(
        math.isclose(a, b, rel_tol=_EXACT, abs_tol=1e-9)
        for a, b in zip(values, others, strict=True)
    )


def temperature_of(found: float, before: ModelInfo | None) -> float:
    """Return a file's temperature; one that is the exported run's, rounded, becomes exact."""
    if before is not None and _close([found], [before.temperature]):
        return before.temperature
    return found


def _write(
    model: Model, file: Path, read: KerasFile, told: list[str], out: Path | None
) -> RunDirectory:
    """Write the run directory: model, settings, and the file that it came from."""
    info = model.info
    run = RunDirectory.create(out, name=Path(file.name).stem)
    config = TrainConfig(
        model=info.model,
        weights="none",
        size=info.input.size,
        resize=info.input.resize,
        interpolation=info.input.interpolation,
    )
    needs = outside.needs(Resolved.of(config), "")
    with run.or_nothing():
        run.save_model(model.module.state_dict(), dataclasses.replace(info, plugins=needs))
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        origin = {
            "format": FORMAT,
            "file": read.name,
            "sha256": digest,
            "whole_model": read.config is not None,
            "notes": told,
        }
        run.write_json("import.json", origin)
        run.write("config.json", config.to_json(needs=needs).encode())
        run.log("\n".join([f"imported from {read.name}", *told]))
    return run
