"""A small network that learns CIFAR-size pictures in a few epochs.

Source: the network of K. Jordan's airbench94 ("94% on CIFAR-10 in 3.29 seconds", 2024), written
from its description: a frozen whitening layer, three groups of two convolutions that start as the
identity, batch norms whose scale is fixed, the maximum over the last map, a head without a bias
and small logits. What differs: SiLU in place of GELU (as in Hiverge's speedrun; on a processor it
takes 0.6 of the time: ``docs/log.md``), PyTorch's epsilon in the norms (1e-5 for 1e-12), and a
maximum over whatever map is left in place of a 3x3 pool, so that other sizes fit. Parameters with
10 classes: 1,971,352; with the whitening filters, the norms' scales and their running statistics,
1,975,096. FLOPs: 0.236 G at 32 px, 0.123 G at 24 px.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fieldmark.networks.layers import Whitening


class ShiftNorm2d(nn.BatchNorm2d):
    """Batch norm that learns a shift and no scale: the scale stays 1.

    Running statistics follow quickly (momentum 0.4), because training is short.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=0.4)
        scale = self.weight.detach()
        del self.weight
        self.register_buffer("weight", scale)


class Group(nn.Module):
    """conv-pool-norm-silu, conv-norm-silu: pooled before the norm, which then has less to do."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv1 = _identity_conv(channels_in, channels)
        self.norm1 = ShiftNorm2d(channels)
        self.conv2 = _identity_conv(channels, channels)
        self.norm2 = ShiftNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape: [B, channels_in, H, W] to [B, channels, H // 2, W // 2]."""
        x = F.silu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.silu(self.norm2(self.conv2(x)))


class WhitenedCNN(nn.Module):
    """Whitening, three groups, maximum over the map, linear head.

    Shape:
        [B, 3, H, W] to logits [B, num_classes]; H and W at least 9.
    """

    def __init__(self, num_classes: int, widths: tuple[int, int, int], *, scale: float) -> None:
        super().__init__()
        self.whiten = Whitening(2)
        inputs = (self.whiten.channels, *widths)
        self.groups = nn.Sequential(*map(Group, inputs, widths))
        self.head = nn.Linear(widths[-1], num_classes, bias=False)
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, num_classes]."""
        x = F.silu(self.whiten(x))  # [B, 24, H - 1, W - 1]
        x = self.groups(x)  # [B, widths[-1], (H - 1) // 8, (W - 1) // 8]
        x = F.max_pool2d(x, (x.shape[2], x.shape[3])).flatten(1)
        logits: torch.Tensor = self.head(x) * self.scale
        return logits


def _identity_conv(channels_in: int, channels: int) -> nn.Conv2d:
    """A 3x3 convolution whose first channels pass their input on; the others start as usual."""
    conv = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(conv.weight[:channels_in])
    return conv


def whitened_cnn(
    num_classes: int,
    widths: tuple[int, int, int] = (64, 256, 256),
    scale: float = 0.1111,
) -> WhitenedCNN:
    """Small network for pictures of 9 to about 64 px that learns in a few epochs.

    Args:
        num_classes: Classes.
        widths: Channels of the three groups.
        scale: Factor of the logits; small logits let the head learn at a high rate.

    Raises:
        ValueError: if widths are not three whole numbers of 1 to 4096, or scale is not above 0.
    """
    good = isinstance(widths, tuple | list) and len(widths) == 3
    if not good or not all(type(w) is int and 1 <= w <= 4096 for w in widths):
        raise ValueError(f"widths is {widths!r}; three whole numbers such as (64, 256, 256)")
    if not 0 < scale <= 1000:
        raise ValueError(f"scale is {scale}; above 0 and up to 1000 is accepted")
    first, second, third = widths
    return WhitenedCNN(num_classes, (first, second, third), scale=scale)
