"""Layers that several families share, with Keras's conventions where a family follows Keras."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import nn


class SameConv2d(nn.Conv2d):
    """Convolution with Keras's "same" padding: output = ceil(input / stride).

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
        return self._reaching(x, *margins) if any(margins) else super().forward(x)

    def _reaching(self, x: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """Convolve with the middle of the kernel, where the map is too small for its margins.

        The margins' taps see only padding, so the result is the same. oneDNN leaves the gradient of
        such taps unwritten in bf16 (7x7 on a 2x2 map, torch 2.15): whatever lay in memory was added
        to the weights, sometimes infinity (docs/log.md).
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
    """Maximum pooling with Keras's "same" padding, where the padding is never the maximum."""

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


class Measured(nn.Module):
    """A layer that computes constants from the training pictures before training begins.

    The constants are buffers, so they are stored with the weights.
    """

    pictures = 0
    """Number of training pictures that it measures; 0 for all."""

    def measure(self, batches: Iterable[torch.Tensor]) -> None:
        """Compute the constants from batches of normalised pictures [B, 3, S, S]."""
        raise NotImplementedError


def measured_layers(module: nn.Module) -> list[Measured]:
    """Return the layers whose :meth:`Measured.measure` has to be called before training."""
    return [m for m in module.modules() if isinstance(m, Measured)]


class MeanPicture(Measured):
    """Subtracts the training pictures' mean, pixel by pixel: ``x_train -= mean(x_train, axis=0)``.

    The mean is zero until it is measured.
    """

    mean: torch.Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3, size, size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape: [B, 3, size, size] to the same."""
        return x - self.mean

    def measure(self, batches: Iterable[torch.Tensor]) -> None:
        """Compute the mean of all training pictures."""
        total, seen = torch.zeros(self.mean.shape, dtype=torch.float64), 0
        for images in batches:
            total += images.double().sum(dim=0)
            seen += len(images)
        self.mean.copy_(total / seen)


class Whitening(Measured):
    """Convolution whose outputs are uncorrelated and of equal size, and their negatives.

    Every patch of ``kernel`` x ``kernel`` pixels is expressed in the principal axes of the training
    pictures' patches, each axis divided by its deviation. The negated copy keeps what a following
    rectifier would cut off. The filters never train; the bias does. Until :meth:`measure` is
    called, the filters pass the patch's pixels on unchanged.

    Source: D. Page, How to train your ResNet 8, 2019; ``EPS`` as in airbench94.
    """

    EPS = 5e-4
    """Number added to every variance, so that axes that hardly vary do not become noise."""

    pictures = 5000
    weight: torch.Tensor

    def __init__(self, kernel: int) -> None:
        super().__init__()
        patch = 3 * kernel**2
        self.channels = 2 * patch
        self.kernel = kernel
        self.register_buffer("weight", self._both(torch.eye(patch)))
        self.bias = nn.Parameter(torch.zeros(self.channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape: [B, 3, H, W] to [B, channels, H - kernel + 1, W - kernel + 1]."""
        return F.conv2d(x, self.weight, self.bias)

    @torch.no_grad()
    def measure(self, batches: Iterable[torch.Tensor]) -> None:
        """Compute the principal axes of these pictures' patches; nothing is random."""
        patch = self.channels // 2
        total, seen = torch.zeros(patch, patch, dtype=torch.float64), 0
        for images in batches:
            patches = F.unfold(images.float(), self.kernel).transpose(1, 2).reshape(-1, patch)
            total += (patches.T @ patches).double()
            seen += len(patches)
        variances, axes = torch.linalg.eigh(total / seen)
        # An axis may point either way: its largest part is made positive on every machine.
        largest = axes.gather(0, axes.abs().argmax(dim=0, keepdim=True))
        filters = axes * largest.sign() / (variances + self.EPS).sqrt()
        self.weight.copy_(self._both(filters.T.flip(0)))

    def _both(self, filters: torch.Tensor) -> torch.Tensor:
        """Return filters [patch, patch] and their negatives as a kernel."""
        shaped = filters.reshape(-1, 3, self.kernel, self.kernel)
        return torch.cat((shaped, -shaped)).float()


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm with Keras's epsilon, and its momentum 0.99, which PyTorch calls 0.01.

    The running variance is the unbiased one, as in TensorFlow's fused kernel, with which the
    tutorials ran. Keras 3 keeps the biased one: smaller by n / (n - 1), where n is B * H * W.
    """
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def batch_norm_1d(channels: int) -> nn.BatchNorm1d:
    """Batch norm as :func:`batch_norm`, for vectors [B, channels]."""
    return nn.BatchNorm1d(channels, eps=1e-3, momentum=0.01)


def init_glorot_uniform(module: nn.Module) -> None:
    """Draw kernels Glorot-uniform and set biases to zero, as Keras does by default."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def init_he_normal(module: nn.Module) -> None:
    """Draw kernels He-normal (cut at two standard deviations, as in Keras); biases are zero."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fan_in = layer.weight[0].numel()
            # A normal cut at two standard deviations has 0.8796 of its deviation left.
            std = (2.0 / fan_in) ** 0.5 / 0.87962566103423978
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
