"""VGG16 and VGG19 as keras.applications has them, with the dense top or a mean in its place.

Source: Simonyan and Zisserman, Very deep convolutional networks, 2014, in the form of
keras.applications: biased 3x3 convolutions, no norm, Glorot-uniform kernels. The two dense layers
of 4096 hold most of the parameters and fix the input's size; ``top="mean"`` is the form for other
classes (``include_top=False, pooling="avg"`` and a dense layer). Caffe's pixels. Parameters with
1000 classes at 224 px: 138,357,544 (VGG16) and 143,667,240 (VGG19), exactly.
"""

from __future__ import annotations

import torch
from torch import nn

from fieldmark.networks.layers import FlattenHWC, SameConv2d, init_glorot_uniform

_CONVOLUTIONS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""3x3 convolutions before each halving, by depth."""
_WIDTHS = (64, 128, 256, 512, 512)
_TOPS = ("dense", "mean")


class KerasVGG(nn.Module):
    """Five groups of convolutions with a halving after each, the top, linear head.

    Shape:
        [B, 3, size, size] to logits [B, num_classes]; with the mean in place of the dense layers,
        [B, 3, H, W], H and W at least 32.
    """

    def __init__(self, num_classes: int, counts: tuple[int, ...], *, size: int, top: str) -> None:
        super().__init__()
        features: list[nn.Module] = []
        channels = 3
        for width, count in zip(_WIDTHS, counts, strict=True):
            for _ in range(count):
                features += [SameConv2d(channels, width, 3), nn.ReLU()]
                channels = width
            features.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*features)
        self.hidden: nn.Module | None = None
        if top == "dense":
            self.hidden = nn.Sequential(
                FlattenHWC(),
                *(nn.Linear(channels * (size // 32) ** 2, 4096), nn.ReLU()),
                *(nn.Linear(4096, 4096), nn.ReLU()),
            )
        self.head = nn.Linear(4096 if self.hidden else channels, num_classes)
        init_glorot_uniform(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [B, num_classes]."""
        x = self.features(x)  # [B, 512, H/32, W/32]
        x = x.mean(dim=(2, 3)) if self.hidden is None else self.hidden(x)
        logits: torch.Tensor = self.head(x)
        return logits


def keras_vgg(num_classes: int, depth: int = 16, size: int = 224, top: str = "dense") -> KerasVGG:
    """VGG of keras.applications, for photographs.

    Args:
        num_classes: Classes.
        depth: 16 or 19.
        size: Height and width of the input, 32 to 512 px; the first dense layer grows with its
            square.
        top: ``dense`` for the two layers of 4096, or ``mean`` for the mean over the last map, the
            usual form for fine-tuning to other classes.

    Raises:
        ValueError: if an argument is out of range.
    """
    if depth not in _CONVOLUTIONS:
        raise ValueError(f"depth is {depth}; {' and '.join(map(str, _CONVOLUTIONS))} exist")
    if not 32 <= size <= 512:
        raise ValueError(f"size is {size}; 32 to 512 px are accepted")
    if top not in _TOPS:
        raise ValueError(f"top is {top!r}; {' and '.join(map(repr, _TOPS))} exist")
    return KerasVGG(num_classes, _CONVOLUTIONS[depth], size=size, top=top)
