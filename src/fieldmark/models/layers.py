"""Layers that several families share, with Keras's conventions where a family follows Keras."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class SameConv2d(nn.Conv2d):
    """Convolution with the padding that Keras calls "same": output = ceil(input / stride).

    With an even stride the padding is one larger at the bottom and right than at the top and left;
    PyTorch's own padding is symmetric and gives other numbers.
    """

    def __init__(
        self, channels_in: int, channels: int, kernel: int, stride: int = 1, *, bias: bool = True
    ) -> None:
        symmetric = kernel // 2 if stride == 1 and kernel % 2 == 1 else 0
        super().__init__(channels_in, channels, kernel, stride, padding=symmetric, bias=bias)
        self._pads = stride > 1 or kernel % 2 == 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape: [B, channels_in, H, W] to [B, channels, ceil(H / stride), ceil(W / stride)]."""
        if self._pads:
            x = self._padded(x)
        return super().forward(x)

    def _padded(self, x: torch.Tensor) -> torch.Tensor:
        pads: list[int] = []
        for axis in (3, 2):
            size, kernel, stride = x.shape[axis], self.kernel_size[axis - 2], self.stride[axis - 2]
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return F.pad(x, pads) if any(pads) else x


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm with Keras's epsilon, and its momentum 0.99, which PyTorch calls 0.01."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def init_he_normal(module: nn.Module) -> None:
    """Kernels He-normal (truncated at two standard deviations, as in Keras), biases zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan_in = layer.weight[0].numel()
            # A normal cut at two standard deviations has 0.8796 of its deviation left.
            std = (2.0 / fan_in) ** 0.5 / 0.87962566103423978
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
