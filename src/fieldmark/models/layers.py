"""Layers that several families share, with Keras's conventions where a family follows Keras."""

from __future__ import annotations

from collections.abc import Iterable

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
        self._reach = symmetric

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape: [B, channels_in, H, W] to [B, channels, ceil(H / stride), ceil(W / stride)]."""
        if self._pads:
            return super().forward(self._padded(x))
        margins = [max(0, self._reach - size + 1) for size in x.shape[2:]]
        if any(margins):
            return self._reaching(x, *margins)
        return super().forward(x)

    def _reaching(self, x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """Convolve with the middle of the kernel, where the map is too small for its margins.

        Those taps see nothing but padding, so the result is the same. oneDNN leaves the gradient of
        such taps unwritten in bf16 (7x7 on a 2x2 map, torch 2.15): whatever lay in memory was added
        to the weights, now and then something infinite (docs/log.md).
        """
        height, width = self.kernel_size
        middle = self.weight[:, :, rows : height - rows, columns : width - columns]
        pads = (self._reach - rows, self._reach - columns)
        return F.conv2d(x, middle, self.bias, self.stride, pads)

    def _padded(self, x: torch.Tensor) -> torch.Tensor:
        pads = _same_padding(x, self.kernel_size[0], self.stride[0])
        return F.pad(x, pads) if any(pads) else x


def _same_padding(x: torch.Tensor, kernel: int, stride: int) -> list[int]:
    """Left, right, top and bottom padding for output = ceil(input / stride)."""
    pads: list[int] = []
    for size in (x.shape[3], x.shape[2]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    return pads


class SameMaxPool2d(nn.Module):
    """Maximum pooling with Keras's "same" padding: what is outside never wins."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape: [B, C, H, W] to [B, C, ceil(H / stride), ceil(W / stride)]."""
        pads = _same_padding(x, self.kernel, self.stride)
        if self.stride > 1 and pads[0] == pads[2] == 0 and max(pads) <= 1:
            # One row and column at the end at most: what ceil_mode gives, without a copy.
            return F.max_pool2d(x, self.kernel, self.stride, ceil_mode=True)
        return F.max_pool2d(F.pad(x, pads, value=float("-inf")), self.kernel, self.stride)


class FlattenHWC(nn.Module):
    """Flattening in Keras's order, channels fastest, so that its dense kernels fit as they are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape: [B, C, H, W] to [B, H * W * C]; no copy when the memory is channels-last."""
        return x.permute(0, 2, 3, 1).flatten(1)


class MeanPicture(nn.Module):
    """Subtracts the training pictures' mean, pixel by pixel: ``x_train -= mean(x_train, axis=0)``.

    The mean is a buffer, so it goes with the weights wherever they go. It is zero until training
    sets it (:func:`set_mean_picture`).
    """

    mean: torch.Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3, size, size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape: [B, 3, size, size] to the same."""
        return x - self.mean


def has_mean_picture(module: nn.Module) -> bool:
    """Whether the network subtracts a mean picture."""
    return any(isinstance(m, MeanPicture) for m in module.modules())


def set_mean_picture(module: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Give a network's :class:`MeanPicture` the mean of these pictures.

    Shape:
        batches of normalised pictures [B, 3, S, S].
    """
    layer = next(m for m in module.modules() if isinstance(m, MeanPicture))
    total, seen = torch.zeros(layer.mean.shape, dtype=torch.float64), 0
    for images in batches:
        total += images.double().sum(dim=0)
        seen += len(images)
    layer.mean.copy_(total / seen)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm with Keras's epsilon, and its momentum 0.99, which PyTorch calls 0.01.

    The running variance is the unbiased one, as TensorFlow's fused kernel keeps it, on which the
    tutorials ran. Keras 3 keeps the biased one: n / (n - 1) smaller, n being B * H * W.
    """
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def batch_norm_1d(channels: int) -> nn.BatchNorm1d:
    """The same for vectors [B, channels]."""
    return nn.BatchNorm1d(channels, eps=1e-3, momentum=0.01)


def init_glorot_uniform(module: nn.Module) -> None:
    """Kernels Glorot-uniform, biases zero: what Keras does unless told otherwise."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


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
