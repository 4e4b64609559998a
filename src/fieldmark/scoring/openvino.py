"""A network in OpenVINO, where that is installed: up to twice as fast as torch on a processor.

Everything from bytes to logits is computed there, because torch's threads, which wait a while for
more to do after each operation, would hold up OpenVINO's. Computed in f32, for its own default of
bf16 changes answers in the third digit. The conversion goes by OpenVINO's reader for PyTorch
directly; its ``convert_model`` would send usage statistics.
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
from fieldmark.pictures.inputs import InputSpec
from fieldmark.scoring.views import Forward, averaged


def is_installed() -> bool:
    """Whether :func:`converted` can be called."""
    return importlib.util.find_spec("openvino") is not None


class _FromBytes(nn.Module):
    """A network with what is done before and after it: normalising, views."""

    def __init__(self, network: nn.Module, spec: InputSpec) -> None:
        super().__init__()
        self._network, self._spec = network, spec

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return averaged(self._network, self._spec.normalize(images), self._spec.views)


def converted(module: nn.Module, spec: InputSpec, picture: torch.Tensor) -> Forward:
    """The network by OpenVINO, for any number of pictures of this size; making it takes seconds.

    Args:
        module: A network in eval mode, on the processor.
        spec: How it wants its pictures.
        picture: A fitted picture, uint8 [1, 3, S, S].

    Returns:
        uint8 [B, 3, S, S] to the logits, float32 [B, K].

    Raises:
        MissingExtraError: if OpenVINO is not installed.
        RuntimeError: if it cannot take the network.
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
    entry.set_element_type(openvino.Type.u8)
    core = openvino.Core()
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
    }

    @functools.cache
    def request(count: int) -> Any:
        """For so many pictures, -1 for any number: a fixed one is a little faster."""
        entry.set_partial_shape(openvino.PartialShape([count, *picture.shape[1:]]))
        model.validate_nodes_and_infer_types()
        return core.compile_model(model, "CPU", options).create_infer_request()

    def forward(images: torch.Tensor) -> torch.Tensor:
        ready = request(1 if len(images) == 1 else -1)
        found = ready.infer([images.contiguous().numpy()], share_inputs=True)
        return torch.from_numpy(found[0].copy())  # the next call writes into the same place

    return forward
