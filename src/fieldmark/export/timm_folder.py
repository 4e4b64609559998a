"""A run's model as a folder that timm loads: ``timm.create_model("local-dir:FOLDER")``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fieldmark.files.json_text import encode_json
from fieldmark.files.writing import write_atomic
from fieldmark.models import timm as timm_models
from fieldmark.pictures.inputs import InputSpec
from fieldmark.pictures.picture import U8
from fieldmark.runs.model import Model
from fieldmark.scoring.metrics import softmax
from fieldmark.seeding import F64

_CROP_MODES = {"crop": "center", "squash": "squash", "pad": "border"}


def write(model: Model, folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors``.

    timm has no place for a temperature, so the classifier's weights are divided by it: softmax of
    the network's outputs then gives the run's probabilities.

    Raises:
        ConfigError: if the network is not timm's.
    """
    from safetensors.torch import save

    info = model.info
    architecture, arguments = timm_models.architecture(info.model, size=info.input.size)
    state = {
        key: value.detach().cpu().contiguous() for key, value in model.module.state_dict().items()
    }
    classifiers = timm_models.classifiers(model.module)
    for key in (f"{name}.{kind}" for name in classifiers for kind in ("weight", "bias")):
        if key in state:
            state[key] = state[key] / info.temperature
    config = {
        "architecture": architecture,
        "num_classes": len(info.class_names),
        "label_names": list(info.class_names),
        "model_args": arguments,
        "pretrained_cfg": {
            "num_classes": len(info.class_names),
            "classifier": classifiers[0] if len(classifiers) == 1 else classifiers,
            "fixed_input_size": "img_size" in arguments,
            **_input(info.input),
        },
    }
    write_atomic(folder / "model.safetensors", save(state, metadata={"format": "pt"}))
    write_atomic(folder / "config.json", encode_json(config))


def _input(spec: InputSpec) -> dict[str, Any]:
    """Write ``InputSpec`` in timm's words."""
    return {
        "input_size": [3, spec.size, spec.size],
        "interpolation": spec.interpolation,
        "crop_pct": spec.crop if spec.resize == "crop" else 1.0,
        "crop_mode": _CROP_MODES[spec.resize],
        "mean": list(spec.mean),
        "std": list(spec.std),
    }


def scorer(folder: Path) -> Callable[[Sequence[U8]], F64]:
    """Load the folder as timm's users do, with timm's own resizing of pictures."""
    import timm

    module = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    data: Any = timm.data  # its names are only re-exported
    transform = data.create_transform(**data.resolve_model_data_config(module))

    def score(pictures: Sequence[U8]) -> F64:
        images = torch.stack([transform(Image.fromarray(picture)) for picture in pictures])
        with torch.inference_mode():
            return softmax(module(images).numpy().astype(np.float64))

    return score
