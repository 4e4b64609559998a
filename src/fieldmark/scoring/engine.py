"""A network prepared for scoring: the same logits, with fewer and faster operations.

In a copy of the network every batch norm that directly follows a convolution is folded into its
kernel, an activation that directly follows is computed in the same pass, and kernels are stored
once as oneDNN wants them, which it otherwise does for every batch: half of the time of a single
picture. Running one picture shows which layer follows which, so this works for networks whose code
cannot be traced. :func:`prepared` measures on real pictures that the copy gives the same logits.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

AGREEMENT = 1e-4
"""Largest difference of logits, as a share of the largest logit or of 1, that is accepted."""
CHECKED = 4
"""Pictures on which the copy is compared with the network."""


def prepared(module: nn.Module, images: torch.Tensor) -> tuple[nn.Module, str]:
    """Make a copy of the network for scoring, or return the network itself if that fails.

    Args:
        module: A network in eval mode, on the processor.
        images: Normalised pictures [B, 3, S, S], of which a few are used. The copy is for
            pictures of this size.

    Returns:
        The network to score with; and the reason why it is not a copy, empty if it is one.
    """
    few = images[:CHECKED]
    # Not in inference mode, where tensors do not count how often they were written to.
    with torch.inference_mode(False), torch.no_grad():
        wanted = module(few)
        try:
            copied = _fused(module, few[:1])
            difference = (copied(few) - wanted).abs().max()
        except (RuntimeError, AttributeError, TypeError, ValueError) as error:
            return module, f"it cannot be fused: {(str(error).splitlines() or [''])[0][:100]}"
        bound = AGREEMENT * wanted.abs().max().clamp(min=1)
    if not difference <= bound:  # also if it is not a number
        return module, f"its logits differ by {float(difference):.2g} when it is fused"
    return copied, ""


@dataclass
class _Chain:
    """A convolution with the layers that directly follow it, by name."""

    conv: str
    shape: list[int]
    """Shape of its input."""
    norm: str = ""
    act: str = ""
    end: torch.Tensor | None = None
    """Output of the last of them."""
    version: int = 0
    """How often that output had been written to when the layer returned it."""

    def ends_in(self, tensor: torch.Tensor) -> bool:
        return self.end is tensor and tensor._version == self.version


def watched(module: nn.Module) -> nn.Module:
    """A copy of a network to hang hooks on while other threads run the network; it has its weights.

    Hooks on a layer see whoever runs it. The copy has layers of its own, and the same tensors.
    """
    shared = itertools.chain(module.parameters(), module.buffers())
    try:
        return copy.deepcopy(module, {id(tensor): tensor for tensor in shared})
    except Exception:  # somebody else's network, which cannot be copied, is watched itself
        return module


def _fused(module: nn.Module, picture: torch.Tensor) -> nn.Module:
    chains = _chains(watched(module), picture)
    copied = copy.deepcopy(module)
    for chain in chains:
        conv = copied.get_submodule(chain.conv)
        assert isinstance(conv, nn.Conv2d)
        act: nn.Module = nn.Identity()
        if chain.norm:
            norm = copied.get_submodule(chain.norm)
            assert isinstance(norm, nn.BatchNorm2d)
            _fold(conv, norm)
            act = getattr(norm, "act", act)  # timm's batch norms bring their activation
            _replace(copied, chain.norm, act)
        if chain.act and isinstance(act, nn.Identity):
            act = copied.get_submodule(chain.act)
        fused = _fused_activation(act)
        kernel = _kernel(conv, chain.shape)
        if kernel is not None:
            packed = _Packed(conv, *kernel, chain.shape, *(fused or ("none", [])))
            _replace(copied, chain.conv, packed)
            if fused is not None:
                _replace(copied, chain.act or chain.norm, nn.Identity())
    return copied


def _chains(module: nn.Module, picture: torch.Tensor) -> list[_Chain]:
    """Run a picture through, and find which norm and activation get a convolution's output.

    Two layers are linked where one gets the very tensor that the other returned, unchanged.
    """
    chains: list[_Chain] = []

    def of_conv(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            shape = list(args[0].shape)
            chains.append(_Chain(name, shape, end=output, version=output._version))

        return hook

    def before(name: str, kind: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...]) -> None:
            for chain in chains:
                if chain.ends_in(args[0]) and not chain.act and not getattr(chain, kind):
                    setattr(chain, kind, name)

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            for chain in chains:
                if name in (chain.norm, chain.act):
                    chain.end, chain.version = output, output._version

        return hook

    handles = []
    for name, layer in module.named_modules():
        is_norm = isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None
        if isinstance(layer, nn.Conv2d):
            handles.append(layer.register_forward_hook(of_conv(name)))
        elif is_norm or _fused_activation(layer) is not None:
            kind = "norm" if is_norm else "act"
            handles.append(layer.register_forward_pre_hook(before(name, kind)))
            handles.append(layer.register_forward_hook(after(name)))
    try:
        module(picture)
    finally:
        for handle in handles:
            handle.remove()
    names = [chain.conv for chain in chains]
    return [chain for chain in chains if names.count(chain.conv) == 1]  # a shared layer stays


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, mean, variance, norm.eps, norm.weight, norm.bias
    )


def _fused_activation(layer: nn.Module) -> tuple[str, list[float]] | None:
    """Return oneDNN's name and numbers for an activation; None if it cannot be fused."""
    if type(layer) is nn.ReLU:
        return "relu", []
    if type(layer) is nn.ReLU6:
        return "hardtanh", [0.0, 6.0]
    if type(layer) is nn.SiLU:
        return "swish", []
    if type(layer) is nn.Hardswish:
        return "hardswish", []
    return None


def _kernel(conv: nn.Conv2d, shape: Sequence[int]) -> tuple[torch.Tensor, list[int]] | None:
    """Return kernel and padding with which oneDNN convolves maps of this shape; None if it cannot.

    timm's Conv2dSame pads as TensorFlow does, at stride 2 often by one row and column more at the
    end than at the beginning, for which it copies the map first. A kernel with a row and a column
    of zeros in front gives the same result with equal padding on both sides.
    """
    kernel = conv.weight.detach()
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not available or conv.padding_mode != "zeros" or kernel.dtype != torch.float32:
        return None
    if type(conv) is nn.Conv2d:
        return None if isinstance(conv.padding, str) else (kernel, list(conv.padding))
    if type(conv).__name__ != "Conv2dSame" or conv.dilation != (1, 1):
        return None
    padding = []
    for dim, stride in zip((2, 3), conv.stride, strict=True):
        last = (-(-shape[dim] // stride) - 1) * stride  # where the last one begins
        total = max(0, last + kernel.shape[dim] - shape[dim])
        padding.append(-(-total // 2))
        if total % 2:
            kernel = torch.cat([torch.zeros_like(kernel.narrow(dim, 0, 1)), kernel], dim)
    return kernel, padding


class _Packed(nn.Module):
    """A convolution whose kernel is stored as oneDNN wants it, with its activation."""

    def __init__(
        self,
        conv: nn.Conv2d,
        kernel: torch.Tensor,
        padding: list[int],
        shape: list[int],
        act: str,
        numbers: list[float],
    ) -> None:
        super().__init__()
        self._how = (padding, list(conv.stride), list(conv.dilation), conv.groups)
        self._act, self._numbers = act, numbers
        kernel = kernel.contiguous(memory_format=torch.channels_last)
        self._kernel = torch.ops.mkldnn._reorder_convolution_weight(kernel, *self._how, shape)
        self._bias = None if conv.bias is None else conv.bias.detach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, self._kernel, self._bias, *self._how, self._act, self._numbers, ""
        )
        return output


def _replace(module: nn.Module, name: str, by: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, by)
