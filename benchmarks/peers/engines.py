"""One engine on ready pictures: images a second in batches, and milliseconds of a single one."""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TORCHINDUCTOR_FREEZING", "1")

import timm
import torch

BATCH, SIZE, CLASSES, WARM_UPS, BATCHES = 64, 224, 2, 10, 8
Forward = Callable[[torch.Tensor], Any]


def eager(module: torch.nn.Module, example: torch.Tensor) -> Forward:
    """PyTorch, channels last."""
    del example
    return module.to(memory_format=torch.channels_last)


def compiled(module: torch.nn.Module, example: torch.Tensor) -> Forward:
    """torch.compile, weights frozen into it."""
    del example
    return torch.compile(module.to(memory_format=torch.channels_last), dynamic=False)


def onnxruntime(module: torch.nn.Module, example: torch.Tensor) -> Forward:
    """ONNX Runtime on a model that torch exports."""
    import onnxruntime as library

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        torch.onnx.export(module, (example,), str(file), dynamo=True, verbose=False)
        session = library.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images.numpy()})


def openvino(module: torch.nn.Module, example: torch.Tensor) -> Forward:
    """OpenVINO on the module itself, f32."""
    import openvino as library

    converted = library.convert_model(module, example_input=example)
    converted.reshape(list(example.shape))
    options = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    ready = library.compile_model(converted, "CPU", options)
    return lambda images: ready(images.numpy())


ENGINES = {
    "eager": eager,
    "compile": compiled,
    "onnxruntime": onnxruntime,
    "openvino": openvino,
}


def median_seconds(engine: str, model: str, batch: int, repeats: int) -> float:
    """Of a batch, by an engine that is built for its shape."""
    module = timm.create_model(model, num_classes=CLASSES).eval()
    images = torch.rand(batch, 3, SIZE, SIZE)
    if engine in ("eager", "compile"):
        images = images.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        forward = ENGINES[engine](module, images)
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            forward(images)
            times.append(time.perf_counter() - start)
    return statistics.median(times[min(WARM_UPS, len(times) // 2) :])


def main(engine: str, model: str, repeats: int) -> tuple[float, float]:
    """Images a second in batches, milliseconds of one."""
    batches = median_seconds(engine, model, BATCH, BATCHES if repeats > BATCHES else 2)
    one = median_seconds(engine, model, 1, WARM_UPS + repeats)
    return BATCH / batches, 1000 * one


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
