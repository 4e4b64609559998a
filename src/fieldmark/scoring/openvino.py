"""A network in OpenVINO, where that is installed: up to twice as fast as torch on a processor.

OpenVINO computes everything from bytes to logits, because torch's threads, which keep waiting for
work for a while after each operation, would slow its threads down. It computes in f32, because its
own default of bf16 changes probabilities in the third digit. The conversion calls OpenVINO's reader
for PyTorch directly; ``convert_model`` would send usage statistics.
"""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.util
import warnings
from typing import Any

import torch
from torch import nn

from fieldmark.errors import MissingExtraError
from fieldmark.machine.process import Lock
from fieldmark.pictures.inputs import InputSpec
from fieldmark.scoring.views import Forward, averaged


def is_installed() -> bool:
    """Whether :func:`converted` can be called."""
    return importlib.util.find_spec("openvino") is not None


class _FromBytes(nn.Module):
    """A network together with normalising and averaging over views."""

    def __init__(self, network: nn.Module, spec: InputSpec) -> None:
        super().__init__()
        self._network, self._spec = network, spec

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return averaged(self._network, self._spec.normalize(images), self._spec.views)


def converted(module: nn.Module, spec: InputSpec, picture: torch.Tensor) -> Forward:
    """Convert the network, for any number of pictures of this size; that takes seconds.

    Args:
        module: A network in eval mode, on the processor.
        spec: Its input.
        picture: A picture resized to the input, [1, 3, S, S].

    Returns:
        A function from [B, 3, S, S] of the same number type to the logits, float32 [B, K].

    Raises:
        MissingExtraError: if OpenVINO is not installed.
        RuntimeError: if OpenVINO cannot convert the network.
    """
    if not is_installed():
        raise MissingExtraError(
            "engine is openvino, which is not installed: pip install 'fieldmark[openvino]', "
            "or use torch"
        )
    openvino: Any = importlib.import_module("openvino")
    decoder: Any = importlib.import_module("openvino.frontend.pytorch.ts_decoder")
    reader = openvino.frontend.FrontEndManager().load_by_framework("pytorch")
    plain = copy.deepcopy(module).to(memory_format=torch.contiguous_format)
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing
        whole = _FromBytes(plain, spec).eval()
        spec.normalize(picture)  # makes its constants, which tracing must not see made
        traced = decoder.TorchScriptPythonDecoder(whole, example_input=picture.clone().contiguous())
        model = reader.convert(reader.load(traced))
    entry = model.inputs[0].get_node()
    floats = picture.dtype == torch.float32
    entry.set_element_type(openvino.Type.f32 if floats else openvino.Type.u8)
    core = openvino.Core()
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
    }

    asking = Lock()

    @functools.cache
    def request(count: int) -> Any:
        """Make a request for ``count`` pictures, -1 for any number: a fixed one is faster."""
        entry.set_partial_shape(openvino.PartialShape([count, *picture.shape[1:]]))
        model.validate_nodes_and_infer_types()
        return core.compile_model(model, "CPU", options).create_infer_request()

    def forward(images: torch.Tensor) -> torch.Tensor:
        with asking:  # a request has one place for its answer
            ready = request(1 if len(images) == 1 else -1)
            found = ready.infer([images.contiguous().numpy()], share_inputs=True)
            return torch.from_numpy(found[0].copy())  # the next call writes into the same place

    return forward
