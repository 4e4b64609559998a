"""A small network for pictures of any size."""

from torch import Tensor, nn


class Block(nn.Module):
    """Mixes places (one filter a channel), then channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.places = nn.Sequential(
            nn.Conv2d(width, width, 5, padding=2, groups=width), nn.GELU(), nn.BatchNorm2d(width)
        )
        self.channels = nn.Sequential(nn.Conv2d(width, width, 1), nn.GELU(), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """Shape: [B, width, h, w] to the same."""
        mixed: Tensor = self.channels(x + self.places(x))
        return mixed


class TinyMixer(nn.Module):
    """Patches, blocks, the mean over all places, a linear head."""

    def __init__(self, num_classes: int, width: int, depth: int, patch: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Shape: [B, 3, H, W] to logits [B, num_classes]."""
        logits: Tensor = self.head(self.blocks(self.patches(images)).mean((2, 3)))
        return logits


def tiny_mixer(num_classes: int, width: int = 32, depth: int = 2, patch: int = 4) -> nn.Module:
    """A small ConvMixer: patches, then convolutions that mix places and channels in turn.

    Source: Trockman and Kolter, Patches are all you need?, 2022.
    """
    for name, value in (("width", width), ("depth", depth), ("patch", patch)):
        if value < 1:
            raise ValueError(f"{name} is {value}; at least 1 is accepted")
    return TinyMixer(num_classes, width, depth, patch)
