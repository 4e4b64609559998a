"""GoogLeNet for CIFAR: nine inception modules of half the usual width, global maximum pooling.

Source: Szegedy et al., Going deeper with convolutions, 2014, as written in the tutorial ``004``
(which calls it GoogLeNet_V3): batch norm after every convolution, 512 hidden units. In its code the
output of the fourth branch's pool goes nowhere: ``x4 = MaxPooling2D(...)(x)`` is followed by
``x4 = Conv2D(...)(x)``, so that branch is a second 1x1 convolution of the input. That is what the
author trained and what his weights are for; ``pooled=True`` is the module as it was meant, with a
2x2 pool of stride 1. Biased convolutions, Keras's batch norm and Glorot-uniform kernels. Parameters
with 10 classes: 1,903,906 (1,895,602 of them trainable), exactly. The author prints 89.46 % on
CIFAR-10's test pictures; ours: ``docs/log.md``.
"""

from __future__ import annotations

import torch
from torch import nn

from fieldmark.networks.layers import (
    SameConv2d,
    SameMaxPool2d,
    batch_norm,
    batch_norm_1d,
    init_glorot_uniform,
)

_MODULES: tuple[tuple[int, int, int, int, int, int] | None, ...] = (
    (64, 96, 128, 16, 32, 32),
    (128, 128, 192, 32, 96, 64),
    None,
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
    None,
    (256, 160, 320, 32, 128, 128),
    (384, 192, 384, 48, 128, 128),
)
"""The paper's widths, halved below: 1x1; 1x1 then 3x3; 1x1 then 5x5; pool then 1x1. None: pool."""


def _conv(channels_in: int, channels: int, kernel: int) -> list[nn.Module]:
    return [SameConv2d(channels_in, channels, kernel), batch_norm(channels), nn.ReLU()]


class Inception(nn.Module):
    """Four branches side by side, joined along the channels."""

    def __init__(
        self, channels_in: int, widths: tuple[int, int, int, int, int, int], *, pooled: bool
    ) -> None:
        super().__init__()
        one, three_in, three, five_in, five, last = (width // 2 for width in widths)
        self.channels = one + three + five + last
        self.one = nn.Sequential(*_conv(channels_in, one, 1))
        self.three = nn.Sequential(*_conv(channels_in, three_in, 1), *_conv(three_in, three, 3))
        self.five = nn.Sequential(*_conv(channels_in, five_in, 1), *_conv(five_in, five, 5))
        pool = [SameMaxPool2d(2, 1)] if pooled else []
        self.last = nn.Sequential(*pool, *_conv(channels_in, last, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape: [B, channels_in, H, W] to [B, channels, H, W]."""
        return torch.cat([self.one(x), self.three(x), self.five(x), self.last(x)], dim=1)


class CifarGoogLeNet(nn.Module):
    """Two convolutions, nine inception modules, maximum over the map, 512 hidden units, head.

    Shape:
        [B, 3, H, W] to logits [B, num_classes].
    """

    def __init__(self, num_classes: int, *, dropout: float, pooled: bool) -> None:
        super().__init__()
        features: list[nn.Module] = [
            *(*_conv(3, 64, 3), SameMaxPool2d(3, 2)),
            *(*_conv(64, 96, 5), SameMaxPool2d(3, 2)),
        ]
        channels = 96
        for widths in _MODULES:
            if widths is None:
                features.append(SameMaxPool2d(3, 2))
                continue
            module = Inception(channels, widths, pooled=pooled)
            features.append(module)
            channels = module.channels
        self.features = nn.Sequential(*features)
        self.hidden = nn.Sequential(
            nn.Linear(channels, 512), batch_norm_1d(512), nn.ReLU(), nn.Dropout(dropout)
        )
        self.head = nn.Linear(512, num_classes)
        init_glorot_uniform(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, num_classes]."""
        x = self.features(x).amax(dim=(2, 3))  # [B, 512]
        logits: torch.Tensor = self.head(self.hidden(x))
        return logits


def cifar_googlenet(num_classes: int, dropout: float = 0.5, pooled: bool = False) -> CifarGoogLeNet:
    """GoogLeNet of half width for pictures of about 32 px.

    Args:
        num_classes: Classes.
        dropout: Share of the hidden units dropped before the head.
        pooled: Whether the fourth branch of each module pools, as meant; the tutorial's does not.

    Raises:
        ValueError: if dropout is out of range.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; 0 up to below 1 is accepted")
    return CifarGoogLeNet(num_classes, dropout=dropout, pooled=pooled)
