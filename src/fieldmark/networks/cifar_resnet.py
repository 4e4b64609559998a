"""The ResNets for tiny pictures: version 1 at depth 6n+2, version 2 at depth 9n+2.

Source: He et al., Deep residual learning for image recognition, 2015, section 4.2 (version 1) and
Identity mappings in deep residual networks, 2016 (version 2), in the form of the Keras example that
the tutorial ``003`` uses: convolutions have biases, the shortcut of version 1 is a 1x1 convolution
without batch norm, batch norm has Keras's epsilon 1e-3 and momentum 0.99, kernels are He-normal.
Parameters at depth 20, version 1, 10 classes: 274,442 (273,066 of them trainable), as in the
tutorial. What differs: the mean over the last map, where the original has an 8x8 average pool,
which is the same thing at 32 px and lets other sizes in.
"""

from __future__ import annotations

import torch
from torch import nn

from fieldmark.networks.layers import MeanPicture, SameConv2d, batch_norm, init_he_normal


class _Unit1(nn.Module):
    """conv-norm-relu-conv-norm, plus the shortcut, then relu."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = SameConv2d(channels_in, channels, 3, stride)
        self.norm1 = batch_norm(channels)
        self.conv2 = SameConv2d(channels, channels, 3)
        self.norm2 = batch_norm(channels)
        self.shortcut = (
            SameConv2d(channels_in, channels, 1, stride) if stride != 1 else nn.Identity()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return torch.relu(self.shortcut(x) + y)


class _Unit2(nn.Module):
    """Bottleneck with norm and relu before each convolution; the very first has neither."""

    def __init__(
        self, channels_in: int, middle: int, channels: int, stride: int, *, first: bool
    ) -> None:
        super().__init__()
        self.norm1 = nn.Identity() if first else batch_norm(channels_in)
        self.relu1 = nn.Identity() if first else nn.ReLU()
        self.conv1 = SameConv2d(channels_in, middle, 1, stride)
        self.norm2 = batch_norm(middle)
        self.conv2 = SameConv2d(middle, middle, 3)
        self.norm3 = batch_norm(middle)
        self.conv3 = SameConv2d(middle, channels, 1)
        self.shortcut = (
            SameConv2d(channels_in, channels, 1, stride)
            if channels_in != channels or stride != 1
            else nn.Identity()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv1(self.relu1(self.norm1(x)))
        y = self.conv2(torch.relu(self.norm2(y)))
        y = self.conv3(torch.relu(self.norm3(y)))
        total: torch.Tensor = self.shortcut(x) + y
        return total


class CifarResNet(nn.Module):
    """Stem, three stages of units, mean over the map, linear head.

    Shape:
        [B, 3, H, W] to logits [B, num_classes]; H and W at least 4.
    """

    def __init__(
        self, num_classes: int, units: nn.Sequential, width: int, *, last: nn.Module, centre: int
    ) -> None:
        super().__init__()
        self.centre = MeanPicture(centre) if centre else nn.Identity()
        self.stem = SameConv2d(3, 16, 3)
        self.norm = batch_norm(16)
        self.units = units
        self.last = last
        self.head = nn.Linear(width, num_classes)
        init_he_normal(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, num_classes]."""
        x = torch.relu(self.norm(self.stem(self.centre(x))))  # [B, 16, H, W]
        x = self.last(self.units(x))  # [B, width, H/4, W/4]
        logits: torch.Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


def cifar_resnet(
    num_classes: int, depth: int = 20, version: int = 1, centre: int = 0
) -> CifarResNet:
    """Residual network for pictures of about 32 px.

    Args:
        num_classes: Classes.
        depth: 6n+2 for version 1 (20, 32, 44, 56, 110), 9n+2 for version 2 (20, 29, 56, 110).
        version: 1, or 2 for pre-activation bottlenecks.
        centre: Subtract the training pictures' mean picture, of this many pixels a side, as the
            tutorial ``003`` does; 0 for not.

    Raises:
        ValueError: if there is no such depth.
    """
    if version not in (1, 2):
        raise ValueError(f"version is {version}; 1 and 2 exist")
    step = {1: 6, 2: 9}[version]
    n, rest = divmod(depth - 2, step)
    if n < 1 or rest:
        raise ValueError(
            f"depth is {depth}; version {version} needs {step}n+2, such as "
            f"{step + 2}, {2 * step + 2}, {3 * step + 2}"
        )
    if n > 200:
        raise ValueError(f"depth is {depth}; at most {200 * step + 2} is built")
    if not 0 <= centre <= 512:
        raise ValueError(f"centre is {centre}; 0, or the input's size up to 512 px, is accepted")
    if version == 1:
        return _version1(num_classes, n, centre)
    return _version2(num_classes, n, centre)


def _version1(num_classes: int, n: int, centre: int) -> CifarResNet:
    units: list[nn.Module] = []
    channels_in = 16
    for stage, channels in enumerate((16, 32, 64)):
        for unit in range(n):
            stride = 2 if stage > 0 and unit == 0 else 1
            units.append(_Unit1(channels_in, channels, stride))
            channels_in = channels
    return CifarResNet(num_classes, nn.Sequential(*units), 64, last=nn.Identity(), centre=centre)


def _version2(num_classes: int, n: int, centre: int) -> CifarResNet:
    units: list[nn.Module] = []
    channels_in, middle = 16, 16
    for stage in range(3):
        channels = middle * (4 if stage == 0 else 2)
        for unit in range(n):
            stride = 2 if stage > 0 and unit == 0 else 1
            first = stage == 0 and unit == 0
            units.append(_Unit2(channels_in, middle, channels, stride, first=first))
            channels_in = channels
        middle = channels
    last = nn.Sequential(batch_norm(channels_in), nn.ReLU())
    return CifarResNet(num_classes, nn.Sequential(*units), channels_in, last=last, centre=centre)
