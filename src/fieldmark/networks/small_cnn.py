"""A small convolutional network for tiny pictures, down to 4 px.

Source: our own. Three blocks of two 3x3 convolutions with batch norm; each block but the first
starts by halving the map while it is larger than 2 px, so that 8 px digits and 28 px characters
both end in a map worth averaging. Measured on digits (8 px): see ``docs/log.md``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def _block(channels_in: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


class SmallCNN(nn.Module):
    """Three convolution blocks, mean and maximum over the map, dropout, linear head.

    Shape:
        [B, 3, H, W] to logits [B, num_classes].
    """

    def __init__(self, num_classes: int, width: int, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [_block(3, width), _block(width, 2 * width), _block(2 * width, 4 * width)]
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(8 * width, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, num_classes]."""
        for i, block in enumerate(self.blocks):
            if i > 0 and min(x.shape[2:]) > 2:
                x = F.max_pool2d(x, 2, ceil_mode=True)  # half the height and width, rounded up
            x = block(x)
        x = torch.cat([x.mean(dim=(2, 3)), x.amax(dim=(2, 3))], dim=1)  # [B, 8 * width]
        logits: torch.Tensor = self.head(self.dropout(x))
        return logits


def small_cnn(num_classes: int, width: int = 32, dropout: float = 0.2) -> SmallCNN:
    """Small convolutional network for tiny pictures.

    Args:
        num_classes: Classes.
        width: Channels of the first block; the second has twice, the third four times as many.
        dropout: Share of features dropped before the head.

    Raises:
        ValueError: if an argument is out of range.
    """
    if not 1 <= width <= 4096:
        raise ValueError(f"width is {width}; 1 to 4096 is accepted")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; 0 up to below 1 is accepted")
    return SmallCNN(num_classes, width, dropout)
