"""ResNet-18 for CIFAR with a max-pool stem and a projection in the first unit of every stage.

Source: He et al., Deep residual learning for image recognition, 2015, as written in the tutorial
``004``. It differs from the usual one in the projection of the first stage (its test ``if Stride``
is true for a stride of 1), global maximum in place of mean pooling and 512 hidden units before the
head. Biased convolutions, Keras's batch norm and Glorot-uniform kernels. Parameters with 10
classes: 11,457,482 (11,446,730 of them trainable), exactly. The author prints 92.70 % on CIFAR-10's
test pictures; ours: ``docs/log.md``.
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


class Unit(nn.Module):
    """conv-norm-relu-conv-norm, plus the input or its projection, then relu."""

    def __init__(self, channels_in: int, channels: int, stride: int, *, project: bool) -> None:
        super().__init__()
        self.conv1 = SameConv2d(channels_in, channels, 3, stride)
        self.norm1 = batch_norm(channels)
        self.conv2 = SameConv2d(channels, channels, 3)
        self.norm2 = batch_norm(channels)
        self.shortcut = (
            nn.Sequential(SameConv2d(channels_in, channels, 1, stride), batch_norm(channels))
            if project
            else nn.Identity()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape: [B, channels_in, H, W] to [B, channels, H / stride, W / stride]."""
        y = torch.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return torch.relu(y + self.shortcut(x))


class CifarResNet18(nn.Module):
    """Stem, four stages of two units, maximum over the map, 512 hidden units, linear head.

    Shape:
        [B, 3, H, W] to logits [B, num_classes].
    """

    def __init__(self, num_classes: int, *, dropout: float) -> None:
        super().__init__()
        self.stem = SameConv2d(3, 64, 3)
        self.norm = batch_norm(64)
        self.pool = SameMaxPool2d(3, 2)
        units: list[nn.Module] = []
        channels_in = 64
        for channels, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            units.append(Unit(channels_in, channels, stride, project=True))
            units.append(Unit(channels, channels, 1, project=False))
            channels_in = channels
        self.units = nn.Sequential(*units)
        self.hidden = nn.Sequential(
            nn.Linear(512, 512), batch_norm_1d(512), nn.ReLU(), nn.Dropout(dropout)
        )
        self.head = nn.Linear(512, num_classes)
        init_glorot_uniform(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, num_classes]."""
        x = self.pool(torch.relu(self.norm(self.stem(x))))  # [B, 64, H/2, W/2]
        x = self.units(x).amax(dim=(2, 3))  # [B, 512]
        logits: torch.Tensor = self.head(self.hidden(x))
        return logits


def cifar_resnet18(num_classes: int, dropout: float = 0.5) -> CifarResNet18:
    """ResNet-18 for pictures of about 32 px, with a max-pool stem.

    Args:
        num_classes: Classes.
        dropout: Share of the hidden units dropped before the head.

    Raises:
        ValueError: if dropout is out of range.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout is {dropout}; 0 up to below 1 is accepted")
    return CifarResNet18(num_classes, dropout=dropout)
