"""ResNet-50 in its oldest Keras form: stride in the first 1x1, biases, an unpadded max-pool.

Source: He et al., Deep residual learning for image recognition, 2015, as written in the tutorial
``001``. The max-pool after the stem is not padded, so its map is 55x55 where keras.applications
(``keras_resnet``) and torchvision have 56x56; batch norm has Keras's own epsilon 1e-3. The
weight file that the tutorial loads, ``resnet50_weights_tf_dim_ordering_tf_kernels.h5``, fits.
Parameters with 1000 classes: 25,636,712 (25,583,592 of them trainable), exactly.
"""

from __future__ import annotations

import torch
from torch import nn

from fieldmark.networks.layers import SameConv2d, batch_norm, init_glorot_uniform

_STAGES = ((64, 256, 3, 1), (128, 512, 4, 2), (256, 1024, 6, 2), (512, 2048, 3, 2))
"""Inner channels, outer channels, units, stride of the first unit."""


class Bottleneck(nn.Module):
    """1x1 (with the stride), 3x3, 1x1, plus the input or its projection, then relu."""

    def __init__(
        self, channels_in: int, middle: int, channels: int, stride: int, *, project: bool
    ) -> None:
        super().__init__()
        self.conv1 = SameConv2d(channels_in, middle, 1, stride)
        self.norm1 = batch_norm(middle)
        self.conv2 = SameConv2d(middle, middle, 3)
        self.norm2 = batch_norm(middle)
        self.conv3 = SameConv2d(middle, channels, 1)
        self.norm3 = batch_norm(channels)
        self.shortcut = (
            nn.Sequential(SameConv2d(channels_in, channels, 1, stride), batch_norm(channels))
            if project
            else nn.Identity()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape: [B, channels_in, H, W] to [B, channels, H / stride, W / stride]."""
        y = torch.relu(self.norm1(self.conv1(x)))
        y = torch.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        return torch.relu(y + self.shortcut(x))


class ResNet50Unpadded(nn.Module):
    """7x7 stem, unpadded max-pool, sixteen bottlenecks, mean over the map, linear head.

    Shape:
        [B, 3, H, W] to logits [B, num_classes].
    """

    def __init__(self, num_classes: int, *, outputs: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stem = nn.Sequential(
            nn.ZeroPad2d(3), nn.Conv2d(3, 64, 7, 2), batch_norm(64), nn.ReLU(), nn.MaxPool2d(3, 2)
        )
        units: list[nn.Module] = []
        channels_in = 64
        for middle, channels, count, stride in _STAGES:
            for unit in range(count):
                first = unit == 0
                units.append(
                    Bottleneck(channels_in, middle, channels, stride if first else 1, project=first)
                )
                channels_in = channels
        self.units = nn.Sequential(*units)
        self.head = nn.Linear(2048, outputs)
        init_glorot_uniform(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits: all outputs in training, those of the classes in scoring."""
        x = self.units(self.stem(x))  # [B, 2048, 7, 7] at 224 px
        logits: torch.Tensor = self.head(x.mean(dim=(2, 3)))
        if self.training or logits.shape[1] == self.num_classes:
            return logits
        return logits[:, : self.num_classes]


def resnet50_unpadded(num_classes: int, outputs: int = 0) -> ResNet50Unpadded:
    """ResNet-50 as old Keras code writes it, with an unpadded max-pool.

    Args:
        num_classes: Classes.
        outputs: Width of the head; 0 is one output a class. The tutorial ``001`` trains more, such
            as ImageNet's 1000 for four classes: outputs without a class take part in the loss, and
            are left out of scores and predictions.

    Raises:
        ValueError: if there are fewer outputs than classes.
    """
    if outputs and not num_classes <= outputs <= 100_000:
        raise ValueError(
            f"outputs is {outputs} for {num_classes} classes; 0, or {num_classes} to 100,000, "
            "is accepted"
        )
    return ResNet50Unpadded(num_classes, outputs=outputs or num_classes)
