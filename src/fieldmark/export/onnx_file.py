"""One ONNX file of a run's model: resizing of pictures, network, softmax and names in one graph.

PyTorch's exporter writes the network (the exporter on ``torch.export``; the older one on
TorchScript is about to be removed) and folds batch norms into the convolutions before them. The
rest is written here. The file does not tell where it was made: the exporter's notes, which hold
paths, are removed.
"""

from __future__ import annotations

import copy
import hashlib
import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import TensorProto, compose, helper
from torch import nn

from fieldmark.errors import WeightsError
from fieldmark.export.nodes import Nodes
from fieldmark.export.preprocessing import preprocess
from fieldmark.files.json_text import FORMAT, encode_json
from fieldmark.pictures.inputs import InputSpec
from fieldmark.pictures.limits import PictureLimits
from fieldmark.runs.model import Model, ModelInfo
from fieldmark.runtime import EXPORT_KEY, INPUT, KEY, MAX_BYTES, NAMES, OUTPUT, onnx_runtime
from fieldmark.scoring.views import averaged
from fieldmark.seeding import F32
from fieldmark.version import __version__

OPSET = 18
IR_VERSION = 8
"""Versions that ONNX Runtime reads since 1.14."""

_PIXELS, _LOGITS = "pixels", "logits"


def network(model: Model) -> onnx.ModelProto:
    """Export the network alone, from normalised pixels to logits, batch norms folded.

    Raises:
        WeightsError: if PyTorch cannot export it.
    """
    size = model.info.input.size
    example = torch.zeros(2, 3, size, size)
    quiet = logging.getLogger("torch.onnx")
    before = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of libraries about their next version
            program = torch.onnx.export(
                _answering(model),
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[_PIXELS],
                output_names=[_LOGITS],
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                verbose=False,
            )
    except Exception as error:  # any error that torch.export meets in a network
        why = " ".join(str(error).split())[:300]
        raise WeightsError(
            f"PyTorch cannot write the network {model.info.model} as ONNX: {why}"
        ) from error
    finally:
        quiet.setLevel(before)
    assert program is not None  # it is None for the old exporter
    exported = program.model_proto
    _forget(exported)
    del exported.graph.value_info[:]
    return exported


class _Views(nn.Module):
    """A network whose answers are averaged over views."""

    def __init__(self, module: nn.Module, views: str) -> None:
        super().__init__()
        self.module = module
        self.views = views

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape: [B, 3, S, S] to [B, K]."""
        return averaged(self.module, x, self.views)


def _answering(model: Model) -> nn.Module:
    """Return the network with its views averaged and its weights in the usual memory order.

    Scoring may have left them with the channels last.
    """
    module = model.module.cpu().eval().to(memory_format=torch.contiguous_format)
    views = model.info.input.views
    return module if views == "none" else _Views(module, views).eval()


def _forget(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes on source files and on how nodes came about."""
    model.doc_string = ""
    del model.metadata_props[:]
    graph = model.graph
    graph.doc_string = ""
    for item in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]


def whole(
    inner: onnx.ModelProto, info: ModelInfo, *, facts: dict[str, Any], names: bool = True
) -> onnx.ModelProto:
    """Put the resizing of pictures before a network and probabilities behind it.

    Args:
        inner: From :func:`network`, or a converted form of that.
        info: The run's description of its model.
        facts: How the file was made, for its metadata.
        names: Whether the graph gives the class names as a second output.

    Raises:
        WeightsError: if the file would have 2 GB or more.
    """
    inner = compose.add_prefix(inner, "network_", rename_inputs=False, rename_outputs=False)
    graph = inner.graph
    before, after = Nodes("before"), Nodes("after")
    pixels = preprocess(before.value(INPUT, np.uint8), info.input)
    before.rename(pixels, graph.input[0].name)
    logits = after.value(graph.output[0].name, np.float32)
    probabilities = (logits / info.temperature).op("Softmax", axis=1)
    after.rename(probabilities, OUTPUT)
    outputs = [_described(OUTPUT, TensorProto.FLOAT, ["N", len(info.class_names)])]
    if names:
        after.nodes.append(_names(info.class_names))
        outputs.append(_described(NAMES, TensorProto.STRING, [len(info.class_names)]))
    model = helper.make_model(
        helper.make_graph(
            [*before.nodes, *graph.node, *after.nodes],
            "fieldmark",
            [_described(INPUT, TensorProto.UINT8, ["N", "H", "W", 3])],
            outputs,
            [*before.constants, *graph.initializer, *after.constants],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="fieldmark",
        producer_version=__version__,
    )
    description = encode_json(info.to_json(), indent=None).decode()
    about = encode_json(facts, indent=None).decode()
    helper.set_model_props(model, {KEY: description, EXPORT_KEY: about})
    if model.ByteSize() > MAX_BYTES:
        raise WeightsError(
            f"{info.model} has {model.ByteSize() / 2**30:.1f} GB; one ONNX file holds less than 2"
        )
    onnx.checker.check_model(model)
    return model


def facts(config: str, *, precision: str, limits: PictureLimits) -> dict[str, Any]:
    """Collect how the file was made, for its metadata: no path, no name of a person or machine."""
    return {
        "format": FORMAT,
        "fieldmark": __version__,
        "config": hashlib.sha256(config.encode()).hexdigest(),
        "precision": precision,
        "max_pixels": limits.max_pixels,
    }


def _described(name: str, kind: int, shape: list[Any]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _names(class_names: Iterable[str]) -> onnx.NodeProto:
    """Make the class names an output, for languages whose runtimes do not show metadata."""
    values = [name.encode("utf-8", "backslashreplace") for name in class_names]
    return helper.make_node("Constant", [], [NAMES], name=NAMES, value_strings=values)


def half(inner: onnx.ModelProto) -> onnx.ModelProto:
    """Convert weights and arithmetic to 16 bits; inputs and outputs keep 32."""
    onnx_runtime()
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # values too small for 16 bits; the check judges them
        result: onnx.ModelProto = convert_float_to_float16(
            copy.deepcopy(inner), keep_io_types=True, disable_shape_infer=True
        )
    OnnxModel.graph_topological_sort(result.graph)  # conversions were added at its end
    return result


def quantized(inner: onnx.ModelProto, batches: Iterable[F32]) -> onnx.ModelProto:
    """Convert to 8-bit weights, scaled per channel, and 8-bit values between layers.

    Args:
        inner: From :func:`network`.
        batches: Normalised pictures, [B, 3, S, S], whose values decide the ranges.
    """
    onnx_runtime()
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches: Iterator[F32] = iter(batches)

        def get_next(self) -> dict[str, F32] | None:
            batch = next(self.batches, None)
            return None if batch is None else {inner.graph.input[0].name: batch}

    quiet = logging.getLogger()
    before = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "quantized.onnx"
            quantization.quantize_static(
                copy.deepcopy(inner),  # it is changed: its weights go into another file
                str(file),
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                calibrate_method=quantization.CalibrationMethod.MinMax,
            )
            return onnx.load(file)
    finally:
        quiet.setLevel(before)


def calibration(pictures: Iterable[Any], spec: InputSpec, *, batch: int = 8) -> Iterator[F32]:
    """Yield pictures as the network gets them, a few at a time."""
    block: list[npt.NDArray[Any]] = []
    for picture in pictures:
        block.append(spec.pixels(picture))
        if len(block) == batch:
            yield spec.normalize(torch.from_numpy(np.stack(block))).numpy()
            block = []
    if block:
        yield spec.normalize(torch.from_numpy(np.stack(block))).numpy()
