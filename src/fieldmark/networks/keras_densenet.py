"""DenseNet-121, 169 and 201 as keras.applications has them.

Source: Huang et al., Densely connected convolutional networks, 2016, in the form of
keras.applications: growth 32, bottlenecks of four times that, transitions that halve the channels,
no biases but the head's, zero padding before the stem and its pool, batch norm with epsilon
1.001e-5 and momentum 0.99, Glorot-uniform kernels. Pixels scaled by ImageNet's mean and deviation.
Parameters with 1000 classes at depth 121: 8,062,504 (7,978,856 of them trainable), exactly.
"""

from __future__ import annotations

import torch
from torch import nn

from fieldmark.networks.keras_resnet import applications_norm
from fieldmark.networks.layers import SameConv2d, init_glorot_uniform

_UNITS = {121: (6, 12, 24, 16), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32)}
"""Units in each block, by depth."""
_GROWTH = 32


class DenseUnit(nn.Module):
    """The input, joined with the output of a bottleneck."""

    def __init__(self, channels_in: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(applications_norm(channels_in), nn.ReLU()),
            nn.Conv2d(channels_in, 4 * _GROWTH, 1, bias=False),
            *(applications_norm(4 * _GROWTH), nn.ReLU()),
            SameConv2d(4 * _GROWTH, _GROWTH, 3, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape: [B, channels_in, H, W] to [B, channels_in + 32, H, W]."""
        return torch.cat([x, self.layers(x)], dim=1)


class KerasDenseNet(nn.Module):
    """Stem, four blocks with a transition between two, mean over the map, linear head.

    Shape:
        [B, 3, H, W] to logits [B, num_classes].
    """

    def __init__(self, num_classes: int, counts: tuple[int, ...]) -> None:
        super().__init__()
        features: list[nn.Module] = [
            *(nn.ZeroPad2d(3), nn.Conv2d(3, 64, 7, 2, bias=False), applications_norm(64)),
            *(nn.ReLU(), nn.ZeroPad2d(1), nn.MaxPool2d(3, 2)),
        ]
        channels = 64
        for block, count in enumerate(counts):
            if block > 0:
                features += [
                    *(applications_norm(channels), nn.ReLU()),
                    *(nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)),
                ]
                channels //= 2
            for _ in range(count):
                features.append(DenseUnit(channels))
                channels += _GROWTH
        self.features = nn.Sequential(*features, applications_norm(channels), nn.ReLU())
        self.head = nn.Linear(channels, num_classes)
        init_glorot_uniform(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, num_classes]."""
        x = self.features(x)  # [B, 1024, H/32, W/32] at depth 121
        logits: torch.Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


def keras_densenet(num_classes: int, depth: int = 121) -> KerasDenseNet:
    """DenseNet of keras.applications, for photographs.

    Args:
        num_classes: Classes.
        depth: 121, 169 or 201.

    Raises:
        ValueError: if there is no such depth.
    """
    if depth not in _UNITS:
        raise ValueError(f"depth is {depth}; {', '.join(map(str, _UNITS))} exist")
    return KerasDenseNet(num_classes, _UNITS[depth])
