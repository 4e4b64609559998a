"""How a model wants its pixels: the one transform of evaluation, prediction, export and serving.

A decoded picture (uint8, RGB, any size) becomes uint8 [3, size, size] by :meth:`InputSpec.pixels`,
and floats by :meth:`InputSpec.normalize`. Both are plain functions of the picture: no state, no
batch. Resizing is Pillow's (antialiased, rounded to uint8 after each axis), because that is what
the published weights were evaluated with; see ``docs/architecture.md`` for the measurements.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fieldmark.errors import ConfigError

if TYPE_CHECKING:
    import torch

U8 = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
RESIZES = ("crop", "squash", "pad")

_Three = tuple[float, float, float]
NORMALIZATIONS: dict[str, tuple[_Three, _Three]] = {
    "scale": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "tf": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "torch": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "caffe": ((123.68 / 255, 116.779 / 255, 103.939 / 255), (1 / 255, 1 / 255, 1 / 255)),
    "none": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}
"""Mean and deviation of each named scaling. Pictures are red-green-blue throughout: networks that
had Caffe's blue-green-red order have it in their first kernel (``models``)."""


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """Size, resizing and normalisation of a model's input."""

    size: int
    """Height and width of the input in pixels."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Subtracted from each channel (R, G, B), as a fraction of white."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Each channel is then divided by this."""
    interpolation: str = "bicubic"
    """Resampling filter: nearest, bilinear, bicubic or lanczos."""
    resize: str = "squash"
    """crop: shorter side, then the centre; squash: both sides; pad: longer side, then borders."""
    crop: float = 1.0
    """With resize=crop, the share of the shorter side that the input sees."""

    def __post_init__(self) -> None:
        if not 1 <= self.size <= 4096:
            raise ConfigError(f"input size is {self.size} px; 1 to 4096 are accepted")
        if self.interpolation not in INTERPOLATIONS:
            known = ", ".join(INTERPOLATIONS)
            raise ConfigError(f"no interpolation {self.interpolation!r} (known: {known})")
        if self.resize not in RESIZES:
            raise ConfigError(f"no resize mode {self.resize!r} (known: {', '.join(RESIZES)})")
        if not 0 < self.crop <= 1:
            raise ConfigError(f"crop is {self.crop}; a share above 0 and up to 1 is accepted")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(s > 0 for s in self.std):
            raise ConfigError(f"mean {self.mean} and std {self.std} must be three numbers, std > 0")

    def pixels(self, image: U8) -> U8:
        """Resize and crop one picture.

        Shape:
            uint8 [H, W, 3] to uint8 [3, size, size].
        """
        height, width = image.shape[:2]
        if self.resize == "crop":
            box = self._centre_box(height, width)
            return resize(image, self.size, self.size, self.interpolation, box)
        if self.resize == "squash":
            return resize(image, self.size, self.size, self.interpolation)
        return self._padded(image)

    def seen(self, height: int, width: int) -> Box:
        """Where the input's edges lie in a picture: left, top, right, bottom in its pixels.

        Beyond the picture where it is padded, within it where it is cropped.
        """
        if self.resize == "crop":
            return self._centre_box(height, width)
        if self.resize == "squash":
            return 0.0, 0.0, width, height
        side = max(height, width)
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side

    def _centre_box(self, height: int, width: int) -> Box:
        """The part of the picture that resizing the shorter side and cropping the centre keeps.

        Pillow resamples a box exactly as if the whole had been resized and then cropped, so a
        1x5000 strip costs no more than a square.
        """
        short, side = int(self.size / self.crop), min(height, width)
        tall, wide = short * height // side, short * width // side
        top, left = round((tall - self.size) / 2), round((wide - self.size) / 2)
        step_x, step_y = width / wide, height / tall
        return (
            left * step_x,
            top * step_y,
            min(width, (left + self.size) * step_x),
            min(height, (top + self.size) * step_y),
        )

    def _padded(self, image: U8) -> U8:
        height, width = image.shape[:2]
        scale = self.size / max(height, width)
        tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
        fill = np.round(np.asarray(self.mean) * 255).astype(np.uint8)
        canvas = np.broadcast_to(fill[:, None, None], (3, self.size, self.size)).copy()
        top, left = (self.size - tall) // 2, (self.size - wide) // 2
        canvas[:, top : top + tall, left : left + wide] = resize(
            image, tall, wide, self.interpolation
        )
        return canvas

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Turn bytes (or bytes that augmentation made floats of) into what the network gets.

        Shape:
            [B, 3, size, size] in 0..255 to float32 of the same shape, on the same device.
        """
        import torch

        options: dict[str, Any] = {"dtype": torch.float32, "device": images.device}
        mean = torch.tensor(self.mean, **options).view(1, 3, 1, 1) * 255
        scale = 1 / (torch.tensor(self.std, **options).view(1, 3, 1, 1) * 255)
        return (images.to(torch.float32) - mean) * scale

    def to_json(self) -> dict[str, Any]:
        """Plain values, as stored in ``model.json``."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> InputSpec:
        """Read what :meth:`to_json` wrote; unknown or missing keys are a TypeError."""
        tuples: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in value.items()
        }
        return cls(**tuples)


def resize(image: U8, height: int, width: int, interpolation: str, box: Box | None = None) -> U8:
    """Resample a picture, or the box (left, top, right, bottom) of it, antialiased.

    Shape:
        uint8 [H, W, 3] to uint8 [3, height, width].
    """
    if image.shape[:2] == (height, width) and box in (None, (0.0, 0.0, width, height)):
        return np.ascontiguousarray(image.transpose(2, 0, 1))
    resized = Image.fromarray(image).resize((width, height), INTERPOLATIONS[interpolation], box=box)
    return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))


def shrunk(picture: U8, side: int) -> U8:
    """A picture to look at, its longer side at most this long.

    Shape:
        uint8 [H, W, 3] to uint8 [h, w, 3].
    """
    image = Image.fromarray(picture)
    image.thumbnail((side, side))
    return np.asarray(image)


def channel_statistics(batches: Iterable[torch.Tensor]) -> tuple[_Three, _Three]:
    """Mean and standard deviation of each channel over pictures, as fractions of white.

    Source: Keras's ``featurewise_center`` and ``featurewise_std_normalization``.

    Shape:
        batches of uint8 [B, 3, S, S].
    """
    total, squares, seen = np.zeros(3), np.zeros(3), 0
    for images in batches:
        pixels = images.numpy().astype(np.float64) / 255
        total += pixels.sum(axis=(0, 2, 3))
        squares += (pixels**2).sum(axis=(0, 2, 3))
        seen += pixels.size // 3
    mean = total / seen
    # A channel that never varies is left at its scale, not divided by 0.
    std = np.sqrt(np.maximum(squares / seen - mean**2, 0))
    std[std < 1e-6] = 1.0
    return _three(mean), _three(std)


def _three(values: npt.NDArray[np.float64]) -> _Three:
    red, green, blue = map(float, values)
    return red, green, blue
