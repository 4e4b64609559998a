"""How a model wants its pixels: the one transform of evaluation, prediction, export and serving.

A decoded picture (uint8, RGB, any size) becomes uint8 [3, size, size] by :meth:`InputSpec.pixels`,
and floats by :meth:`InputSpec.normalize`. Both are plain functions of the picture: no state, no
batch. Resizing is Pillow's (antialiased, rounded to uint8 after each axis), because that is what
the published weights were evaluated with; see ``docs/architecture.md`` for the measurements.

Training may ask for torch's kernel of the same filters (``fast=True``), which takes a quarter to a
third of the time. Bilinear it differs from Pillow's by at most 2 levels of 255: both round after
each axis, and Pillow 13 chooses which comes first. Bicubic it may differ by more where the first
axis overshoots black or white and is clipped (15 were seen on photographs); the mean difference is
below 0.3, and less than 1 in 100 values differ by more than 1.

``keras_bilinear`` is the one filter that is not Pillow's: Keras and TensorFlow take the four
nearest pixels however much a picture shrinks, and do not round. Such pixels are float32 throughout.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fieldmark.errors import ConfigError
from fieldmark.pictures.limits import PictureLimits
from fieldmark.pictures.picture import U8
from fieldmark.seeding import F32, I64
from fieldmark.settings.config import FULL_SIDE, SCALES, VIEWS, scale_of

if TYPE_CHECKING:
    import torch

Box = tuple[float, float, float, float]
Pixels = U8 | F32
"""Pixels of a picture that was resized to an input: [3, S, S], from 0 to 255."""

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
KERAS = "keras_bilinear"
FILTERS = (*INTERPOLATIONS, KERAS)
RESIZES = ("crop", "squash", "pad")
_TORCH_HAS = ("bilinear", "bicubic")
"""Interpolations for which torch has an antialiased kernel that works on bytes."""

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
    """Number subtracted from each channel (R, G, B), as a fraction of white."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Number that each channel is then divided by, as a fraction of white."""
    interpolation: str = "bicubic"
    """Resampling filter: nearest, bilinear, bicubic, lanczos or keras_bilinear."""
    resize: str = "squash"
    """crop: resize the shorter side, cut the centre; squash: resize both sides; pad: resize the
    longer side, add borders."""
    crop: float = 1.0
    """With resize=crop, the share of the shorter side that the input sees."""
    views: str = "none"
    """Views whose logits are averaged: none, flip or flip_shift (``scoring/views.py``)."""
    decode_side: int = FULL_SIDE
    """Smallest shorter side, in pixels, that a JPEG is decoded to; the default is full size."""
    range: str = "picture"
    """Scale of samples of more than 8 bits (``samples``): LOW,HIGH or type; picture in models from
    before there was one for all pictures."""

    def __post_init__(self) -> None:
        if not 1 <= self.size <= 4096:
            raise ConfigError(f"input size is {self.size} px; 1 to 4096 are accepted")
        if self.interpolation not in FILTERS:
            known = ", ".join(FILTERS)
            raise ConfigError(f"no interpolation {self.interpolation!r} (known: {known})")
        if self.resize not in RESIZES:
            raise ConfigError(f"no resize mode {self.resize!r} (known: {', '.join(RESIZES)})")
        if not 0 < self.crop <= 1:
            raise ConfigError(f"crop is {self.crop}; a share above 0 and up to 1 is accepted")
        if self.views not in VIEWS:
            raise ConfigError(f"no views {self.views!r} (known: {', '.join(VIEWS)})")
        if not 1 <= self.decode_side <= FULL_SIDE:
            raise ConfigError(
                f"decode_side is {self.decode_side} px; 1 to {FULL_SIDE} (full size) are accepted"
            )
        if self.range not in SCALES[1:]:
            scale_of(self.range)
        if len(self.mean) != 3 or len(self.std) != 3 or not all(s > 0 for s in self.std):
            raise ConfigError(f"mean {self.mean} and std {self.std} must be three numbers, std > 0")

    @property
    def number_type(self) -> np.dtype[Any]:
        """Number type of the resized pixels, which are from 0 to 255: uint8, or float32."""
        return np.dtype(np.float32 if self.interpolation == KERAS else np.uint8)

    def pixels(self, image: U8, *, fast: bool = False) -> Pixels:
        """Resize and crop one picture; ``fast`` is for training, see the module.

        Shape:
            uint8 [H, W, 3] to :attr:`number_type` [3, size, size].
        """
        height, width = image.shape[:2]
        if self.resize == "crop":
            tall, wide, top, left = self._centre(height, width)
            # Resized as a whole and then cut, or cut first: a whole long strip would cost too much.
            if fast and tall * wide <= 4 * self.size**2:
                whole = resize(image, tall, wide, self.interpolation, fast=True)
                cut: Pixels = whole[:, top : top + self.size, left : left + self.size]
                return cut.copy()
            box = self._centre_box(height, width)
            return resize(image, self.size, self.size, self.interpolation, box)
        if self.resize == "squash":
            return resize(image, self.size, self.size, self.interpolation, fast=fast)
        return self._padded(image, fast=fast)

    def _centre(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Height and width of the whole picture once resized, and where the input begins in it."""
        short, side = int(self.size / self.crop), min(height, width)
        tall, wide = short * height // side, short * width // side
        return tall, wide, round((tall - self.size) / 2), round((wide - self.size) / 2)

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
        tall, wide, top, left = self._centre(height, width)
        step_x, step_y = width / wide, height / tall
        return (
            left * step_x,
            top * step_y,
            min(width, (left + self.size) * step_x),
            min(height, (top + self.size) * step_y),
        )

    def _padded(self, image: U8, *, fast: bool) -> Pixels:
        height, width = image.shape[:2]
        scale = self.size / max(height, width)
        tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
        fill = np.round(np.asarray(self.mean) * 255).astype(self.number_type)
        shape = (3, self.size, self.size)
        canvas: Pixels = np.broadcast_to(fill[:, None, None], shape).copy()
        top, left = (self.size - tall) // 2, (self.size - wide) // 2
        canvas[:, top : top + tall, left : left + wide] = resize(
            image, tall, wide, self.interpolation, fast=fast
        )
        return canvas

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Turn bytes (or floats in 0..255 from augmentation) into the network's input.

        Shape:
            [B, 3, size, size] in 0..255 to float32 of the same shape, on the same device.
        """
        import torch

        mean, scale = _scaling(self.mean, self.std, images.device)
        return torch.sub(images, mean).mul_(scale)

    def to_json(self) -> dict[str, Any]:
        """Return plain values, as stored in ``model.json``."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        if self.range == "picture":  # as models had it before there was a choice
            del values["range"]
        return values

    def limits(self, max_pixels: int) -> PictureLimits:
        """The limits within which pictures are decoded for this input."""
        return PictureLimits(max_pixels, self.decode_side, self.range)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> InputSpec:
        """Read what :meth:`to_json` wrote; unknown or missing keys are a TypeError."""
        tuples: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in value.items()
        }
        return cls(**tuples)


@functools.lru_cache(maxsize=64)
def _scaling(mean: _Three, std: _Three, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Tensors to subtract and to multiply by; made once, because making them stalls a GPU.

    Shape:
        two of float32 [1, 3, 1, 1].
    """
    import torch

    with torch.inference_mode(mode=False):  # so that training can use them, too
        options: dict[str, Any] = {"dtype": torch.float32, "device": device}
        middle = torch.tensor(mean, **options).view(1, 3, 1, 1) * 255
        return middle, 1 / (torch.tensor(std, **options).view(1, 3, 1, 1) * 255)


def resize(
    image: U8,
    height: int,
    width: int,
    interpolation: str,
    box: Box | None = None,
    *,
    fast: bool = False,
) -> Pixels:
    """Resample a picture, or the box (left, top, right, bottom) of it.

    With ``fast`` the box is rounded to whole pixels, and torch's kernel is used where there is one.

    Shape:
        uint8 [H, W, 3] to uint8 [3, height, width]; to float32 for ``keras_bilinear``.
    """
    if interpolation == KERAS:
        return _resize_as_keras(image, height, width, box or (0.0, 0.0, *image.shape[1::-1]))
    if image.shape[:2] == (height, width) and box in (None, (0.0, 0.0, width, height)):
        return np.ascontiguousarray(image.transpose(2, 0, 1))
    if fast and interpolation in _TORCH_HAS:
        return _resize_in_torch(image, height, width, interpolation, box)
    resized = Image.fromarray(image).resize((width, height), INTERPOLATIONS[interpolation], box=box)
    return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))


def _resize_as_keras(image: U8, height: int, width: int, box: Box) -> F32:
    """Interpolate between the four nearest pixels, in float32.

    Source: TensorFlow, ``core/kernels/image/resize_bilinear_op.cc``, with half-pixel centers.
    """
    left, top, right, bottom = box
    above, below, down = _neighbours(top, bottom, height, image.shape[0])
    before, after, across = _neighbours(left, right, width, image.shape[1])
    pixels = image.transpose(2, 0, 1)
    upper, lower = (
        _between(pixels[:, row][:, :, before], pixels[:, row][:, :, after], across)
        for row in (above, below)
    )
    return _between(upper, lower, down[:, None])


def _neighbours(low: float, high: float, count: int, length: int) -> tuple[I64, I64, F32]:
    """Pixels on both sides of each point of the result, and how far from the first it lies."""
    scale = np.float32((high - low) / count)
    place = (np.arange(count, dtype=np.float32) + np.float32(0.5)) * scale + np.float32(low - 0.5)
    place = place.clip(0, length - 1)
    first = np.floor(place)
    return first.astype(np.int64), np.ceil(place).astype(np.int64), place - first


def _between(one: npt.NDArray[Any], other: npt.NDArray[Any], share: F32) -> F32:
    start = one.astype(np.float32)
    between: F32 = start + (other.astype(np.float32) - start) * share
    return between


def shrunk(picture: U8, side: int) -> U8:
    """Shrink a picture for people to look at; its longer side is at most ``side``.

    Shape:
        uint8 [H, W, 3] to uint8 [h, w, 3].
    """
    image = Image.fromarray(picture)
    image.thumbnail((side, side))
    return np.asarray(image)


def _resize_in_torch(image: U8, height: int, width: int, interpolation: str, box: Box | None) -> U8:
    import torch

    if box is not None:
        left, top = min(round(box[0]), image.shape[1] - 1), min(round(box[1]), image.shape[0] - 1)
        right, bottom = max(round(box[2]), left + 1), max(round(box[3]), top + 1)
        image = image[top:bottom, left:right]
    image = np.require(image, requirements=["C", "W"])  # torch warns of arrays it may not write
    channels_last = torch.from_numpy(image).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(
        channels_last, (height, width), mode=interpolation, antialias=True, align_corners=False
    )
    pixels: U8 = resized[0].contiguous().numpy()
    return pixels


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
