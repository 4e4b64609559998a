"""VGG16 for CIFAR with batch norm and heavy dropout, and a variant with 5x5 and 7x7 kernels.

Source: Simonyan and Zisserman, Very deep convolutional networks, 2014, in the form that Liu and
Deng gave it for CIFAR in 2015, as written in the tutorial ``004``: biased convolutions, Keras's
batch norm and Glorot-uniform kernels, L2 on every kernel but the last (the recipe's ``l2``).
``cifar_vgg16_big`` has one 5x5 or 7x7 convolution where VGG16 has two or three of 3x3. Parameters
with 10 classes: 15,001,418 (14,991,946 of them trainable) and 21,360,010 (21,356,042), exactly.
The author prints 93.04 % and 85.91 % on CIFAR-10's test pictures; ours: ``docs/log.md``.
"""

from __future__ import annotations

import torch
from torch import nn

from fieldmark.networks.layers import (
    FlattenHWC,
    SameConv2d,
    batch_norm,
    batch_norm_1d,
    init_glorot_uniform,
)

POOL = "pool"
_Layers = tuple[tuple[int, int, float] | str, ...]
_VGG16: _Layers = (
    *((64, 3, 0.3), (64, 3, 0.0), POOL),
    *((128, 3, 0.4), (128, 3, 0.0), POOL),
    *((256, 3, 0.4), (256, 3, 0.4), (256, 3, 0.0), POOL),
    *((512, 3, 0.4), (512, 3, 0.4), (512, 3, 0.0), POOL),
    *((512, 3, 0.4), (512, 3, 0.4), (512, 3, 0.0), POOL),
)
"""Channels, kernel and the dropout that follows, of each convolution."""
_BIG: _Layers = (
    *((64, 5, 0.3), POOL),
    *((128, 5, 0.4), POOL),
    *((256, 7, 0.4), POOL),
    *((512, 7, 0.4), POOL),
    *((512, 7, 0.4), POOL),
)


class CifarVGG(nn.Module):
    """Convolutions with norm, ReLU and dropout, five halvings, 512 hidden units, linear head.

    Shape:
        [B, 3, size, size] to logits [B, num_classes]; size is fixed when the network is built.
    """

    def __init__(self, num_classes: int, layers: _Layers, *, size: int, dropout: float) -> None:
        super().__init__()
        features: list[nn.Module] = []
        channels = 3
        for layer in layers:
            if isinstance(layer, str):
                features.append(nn.MaxPool2d(2))
                continue
            width, kernel, rate = layer
            features += [SameConv2d(channels, width, kernel), batch_norm(width), nn.ReLU()]
            if rate:
                features.append(nn.Dropout(rate * dropout))
            channels = width
        self.features = nn.Sequential(*features)
        self.hidden = nn.Sequential(
            nn.Dropout(0.5 * dropout),
            FlattenHWC(),
            nn.Linear(channels * (size // 32) ** 2, 512),
            batch_norm_1d(512),
            nn.ReLU(),
            nn.Dropout(0.5 * dropout),
        )
        self.head = nn.Linear(512, num_classes)
        init_glorot_uniform(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, num_classes]."""
        x = self.features(x)  # [B, 512, size / 32, size / 32]
        logits: torch.Tensor = self.head(self.hidden(x))
        return logits


def cifar_vgg16(num_classes: int, size: int = 32, dropout: float = 1.0) -> CifarVGG:
    """VGG16 with batch norm and dropout, for pictures of 32 px.

    Args:
        num_classes: Classes.
        size: Height and width of the input, 32 to 256.
        dropout: Factor of the dropout rates (0.3, 0.4 and 0.5), 0 to 1.

    Raises:
        ValueError: if an argument is out of range.
    """
    _check(size, dropout)
    return CifarVGG(num_classes, _VGG16, size=size, dropout=dropout)


def cifar_vgg16_big(num_classes: int, size: int = 32, dropout: float = 1.0) -> CifarVGG:
    """VGG16 with single 5x5 and 7x7 convolutions in place of stacked 3x3 ones.

    Args:
        num_classes: Classes.
        size: Height and width of the input, 32 to 256.
        dropout: Factor of the dropout rates (0.3, 0.4 and 0.5), 0 to 1.

    Raises:
        ValueError: if an argument is out of range.
    """
    _check(size, dropout)
    return CifarVGG(num_classes, _BIG, size=size, dropout=dropout)


def _check(size: int, dropout: float) -> None:
    if not 32 <= size <= 256:
        raise ValueError(f"size is {size}; 32 to 256 px are accepted")
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout is {dropout}; a factor of 0 to 1 is accepted")
