"""ResNet-50, 101 and 152 as keras.applications has them, version 1 and version 2 (pre-activation).

Source: He et al., Deep residual learning for image recognition, 2015, and Identity mappings in deep
residual networks, 2016, with the choices of keras.applications: biased convolutions (in version 2
only where no batch norm follows), version 1 with the stride in the first 1x1 of a stage's first
unit, version 2 with it in the 3x3 of a stage's last unit and none in the last stage, zero padding
before the stem and its pool, batch norm with epsilon 1.001e-5 and momentum 0.99, Glorot-uniform
kernels. Version 1 wants Caffe's pixels, version 2 those from -1 to 1. Parameters with 1000 classes
at depth 50, version 1: 25,636,712 (25,583,592 of them trainable); at depth 152, version 2:
60,380,648 (60,236,904), exactly.
"""

from __future__ import annotations

import torch
from torch import nn

from fieldmark.networks.layers import SameConv2d, init_glorot_uniform

_UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Units in each stage, by depth."""
_WIDTHS = (64, 128, 256, 512)
"""Inner channels of each stage; the outer ones are four times as many."""


def applications_norm(channels: int) -> nn.BatchNorm2d:
    """Batch norm as keras.applications sets it: epsilon 1.001e-5, and Keras's momentum 0.99.

    The running variance is the unbiased one; see :func:`fieldmark.networks.layers.batch_norm`.
    """
    return nn.BatchNorm2d(channels, eps=1.001e-5, momentum=0.01)


class Unit1(nn.Module):
    """Input or its projection, plus 1x1 (with the stride), 3x3 and 1x1, then relu."""

    def __init__(self, channels_in: int, middle: int, stride: int, *, project: bool) -> None:
        super().__init__()
        channels = 4 * middle
        self.shortcut = (
            nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride), applications_norm(channels))
            if project
            else nn.Identity()
        )
        self.conv1 = nn.Conv2d(channels_in, middle, 1, stride)
        self.norm1 = applications_norm(middle)
        self.conv2 = SameConv2d(middle, middle, 3)
        self.norm2 = applications_norm(middle)
        self.conv3 = nn.Conv2d(middle, channels, 1)
        self.norm3 = applications_norm(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape: [B, channels_in, H, W] to [B, 4 * middle, ceil(H / stride), ceil(W / stride)]."""
        shortcut = self.shortcut(x)
        y = torch.relu(self.norm1(self.conv1(x)))
        y = torch.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        return torch.relu(shortcut + y)


class Unit2(nn.Module):
    """Norm and relu first, then 1x1, 3x3 (with the stride) and 1x1, plus the shortcut.

    The projection gets the input after norm and relu; a shortcut without projection is the input
    itself, of which a stride keeps every second pixel.
    """

    def __init__(self, channels_in: int, middle: int, stride: int, *, project: bool) -> None:
        super().__init__()
        channels = 4 * middle
        self.project = project
        self.norm0 = applications_norm(channels_in)
        if project:
            self.shortcut: nn.Module = nn.Conv2d(channels_in, channels, 1, stride)
        else:
            self.shortcut = nn.MaxPool2d(1, stride) if stride > 1 else nn.Identity()
        self.conv1 = nn.Conv2d(channels_in, middle, 1, bias=False)
        self.norm1 = applications_norm(middle)
        self.pad = nn.ZeroPad2d(1)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, bias=False)
        self.norm2 = applications_norm(middle)
        self.conv3 = nn.Conv2d(middle, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape: [B, channels_in, H, W] to [B, 4 * middle, ceil(H / stride), ceil(W / stride)]."""
        active = torch.relu(self.norm0(x))
        shortcut = self.shortcut(active if self.project else x)
        y = torch.relu(self.norm1(self.conv1(active)))
        y = torch.relu(self.norm2(self.conv2(self.pad(y))))
        total: torch.Tensor = shortcut + self.conv3(y)
        return total


class KerasResNet(nn.Module):
    """Stem, four stages of units, mean over the map, linear head.

    Shape:
        [B, 3, H, W] to logits [B, num_classes].
    """

    def __init__(
        self, num_classes: int, *, stem: nn.Module, units: list[nn.Module], last: nn.Module
    ) -> None:
        super().__init__()
        self.stem = stem
        self.units = nn.Sequential(*units)
        self.last = last
        self.head = nn.Linear(4 * _WIDTHS[-1], num_classes)
        init_glorot_uniform(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, num_classes]."""
        x = self.last(self.units(self.stem(x)))  # [B, 2048, H/32, W/32]
        logits: torch.Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


def keras_resnet(num_classes: int, depth: int = 50, version: int = 1) -> KerasResNet:
    """ResNet of keras.applications, for photographs.

    Args:
        num_classes: Classes.
        depth: 50, 101 or 152.
        version: 1, or 2 for pre-activation units (``ResNet50V2`` and so on).

    Raises:
        ValueError: if there is no such depth or version.
    """
    if depth not in _UNITS:
        raise ValueError(f"depth is {depth}; {', '.join(map(str, _UNITS))} exist")
    if version not in (1, 2):
        raise ValueError(f"version is {version}; 1 and 2 exist")
    build = _version1 if version == 1 else _version2
    return build(num_classes, _UNITS[depth])


def _version1(num_classes: int, counts: tuple[int, ...]) -> KerasResNet:
    stem = nn.Sequential(
        *(nn.ZeroPad2d(3), nn.Conv2d(3, 64, 7, 2), applications_norm(64), nn.ReLU()),
        *(nn.ZeroPad2d(1), nn.MaxPool2d(3, 2)),
    )
    units: list[nn.Module] = []
    channels = 64
    for stage, (middle, count) in enumerate(zip(_WIDTHS, counts, strict=True)):
        for unit in range(count):
            stride = 2 if unit == 0 and stage > 0 else 1
            units.append(Unit1(channels, middle, stride, project=unit == 0))
            channels = 4 * middle
    return KerasResNet(num_classes, stem=stem, units=units, last=nn.Identity())


def _version2(num_classes: int, counts: tuple[int, ...]) -> KerasResNet:
    stem = nn.Sequential(
        nn.ZeroPad2d(3), nn.Conv2d(3, 64, 7, 2), nn.ZeroPad2d(1), nn.MaxPool2d(3, 2)
    )
    units: list[nn.Module] = []
    channels = 64
    for stage, (middle, count) in enumerate(zip(_WIDTHS, counts, strict=True)):
        for unit in range(count):
            stride = 2 if unit == count - 1 and stage < len(counts) - 1 else 1
            units.append(Unit2(channels, middle, stride, project=unit == 0))
            channels = 4 * middle
    last = nn.Sequential(applications_norm(channels), nn.ReLU())
    return KerasResNet(num_classes, stem=stem, units=units, last=last)
