"""The small CNN of the sneaker tutorial: three convolutions and a wide dense layer, no norm.

Source: the tutorial ``002``. Unpadded 3x3 convolutions with ReLU, average then maximum pooling,
dropout, Keras's Glorot-uniform kernels. Its first layer, the division by 255, is our input
description (mean 0, std 1). Nearly all of its parameters are in the dense layer: 22,175,138 with
2 classes at 224 px, exactly. The author prints 88 to 92 % on 76 validation pictures.
"""

from __future__ import annotations

import torch
from torch import nn

from fieldmark.networks.layers import FlattenHWC, init_glorot_uniform


class SneakerCNN(nn.Module):
    """Three convolutions, 128 hidden units, linear head.

    Shape:
        [B, 3, size, size] to logits [B, num_classes]; size is fixed when the network is built.
    """

    def __init__(self, num_classes: int, *, size: int, dropout: float) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AvgPool2d(2)),
            *(nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(dropout)),
            *(nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Dropout(dropout)),
        )
        side = ((size - 2) // 2 - 2) // 2 - 2
        self.hidden = nn.Sequential(FlattenHWC(), nn.Linear(64 * side**2, 128), nn.ReLU())
        self.head = nn.Linear(128, num_classes)
        init_glorot_uniform(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, num_classes]."""
        x = self.features(x)  # [B, 64, side, side]
        logits: torch.Tensor = self.head(self.hidden(x))
        return logits


def sneaker_cnn(num_classes: int, size: int = 224, dropout: float = 0.3) -> SneakerCNN:
    """Three plain convolutions and a wide dense layer, for photographs of 224 px.

    Args:
        num_classes: Classes.
        size: Height and width of the input, 32 to 512 px; the dense layer grows with its square.
        dropout: Share of values dropped after the second and third convolution.

    Raises:
        ValueError: if an argument is out of range.
    """
    if not 32 <= size <= 512:
        raise ValueError(f"size is {size}; 32 to 512 px are accepted")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; 0 up to below 1 is accepted")
    return SneakerCNN(num_classes, size=size, dropout=dropout)
