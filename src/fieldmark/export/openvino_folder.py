"""A run's model as OpenVINO's two files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fieldmark.files.json_text import encode_json
from fieldmark.pictures.picture import U8
from fieldmark.runs.model import ModelInfo
from fieldmark.runtime import KEY
from fieldmark.seeding import F64

if TYPE_CHECKING:
    import onnx


FILE = "model.xml"


def write(graph: onnx.ModelProto, folder: Path, info: ModelInfo) -> None:
    """Convert a graph; the model's description goes into ``rt_info``."""
    import openvino

    source = folder / "model.onnx"
    source.write_bytes(graph.SerializeToString())
    try:
        model = openvino.convert_model(source)
        model.set_rt_info(encode_json(info.to_json(), indent=None).decode().strip(), KEY)
        openvino.save_model(model, folder / FILE, compress_to_fp16=False)
        del model  # it maps the file
    finally:
        source.unlink()


def scorer(folder: Path) -> Callable[[Sequence[U8]], F64]:
    """Read the folder back, and compute in 32 bits: some processors would use 16 by default."""
    import openvino

    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(folder / FILE, "CPU", settings)

    def score(pictures: Sequence[U8]) -> F64:
        rows = [compiled(picture[None])[0][0] for picture in pictures]
        return np.asarray(rows, dtype=np.float64)

    return score
