"""RandAugment and TrivialAugment: ops drawn from a list, one list for every data set.

Source:
    Cubuk et al., RandAugment (2019); Müller and Hutter, TrivialAugment (2021). The lists, the 31
    magnitudes of each op and the ops themselves are torchvision's (transforms.v2, nearest
    resampling, black fill); which op, magnitude and sign a picture gets is drawn here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from fieldmark.augment.ops import Change, check, to_bytes
from fieldmark.seeding import F64

NUM_MAGNITUDES = 31


@dataclass(frozen=True)
class Scale:
    """An op's magnitudes, evenly spaced from the weakest to the strongest."""

    first: float = 0.0
    last: float = 0.0
    signed: bool = False
    """Whether the sign is drawn, too."""
    share_of_side: bool = False
    """Whether the magnitudes are shares of the picture's width (or height)."""
    whole: bool = False
    """Whether the magnitudes are rounded to whole numbers."""

    def magnitude(self, index: int, side: int) -> float:
        """Return the index-th magnitude for a picture of that width or height."""
        last = self.last * side if self.share_of_side else self.last
        # In float32, as torchvision does: a shift of 15 pixels must not become 14.999.
        value = float(torch.linspace(self.first, last, NUM_MAGNITUDES)[index])
        return float(round(value)) if self.whole else value


_PLAIN = Scale()


def _signed(last: float) -> Scale:
    return Scale(0.0, last, signed=True)


RAND_SCALES: Mapping[str, Scale] = {
    "identity": _PLAIN,
    "shear_x": _signed(0.3),
    "shear_y": _signed(0.3),
    "translate_x": Scale(0.0, 150 / 331, signed=True, share_of_side=True),
    "translate_y": Scale(0.0, 150 / 331, signed=True, share_of_side=True),
    "rotate": _signed(30.0),
    "brightness": _signed(0.9),
    "color": _signed(0.9),
    "contrast": _signed(0.9),
    "sharpness": _signed(0.9),
    "posterize": Scale(8.0, 4.0, whole=True),
    "solarize": Scale(1.0, 0.0),
    "autocontrast": _PLAIN,
    "equalize": _PLAIN,
}
TRIVIAL_SCALES: Mapping[str, Scale] = {
    "identity": _PLAIN,
    "shear_x": _signed(0.99),
    "shear_y": _signed(0.99),
    "translate_x": _signed(32.0),
    "translate_y": _signed(32.0),
    "rotate": _signed(135.0),
    "brightness": _signed(0.99),
    "color": _signed(0.99),
    "contrast": _signed(0.99),
    "sharpness": _signed(0.99),
    "posterize": Scale(8.0, 2.0, whole=True),
    "solarize": Scale(1.0, 0.0),
    "autocontrast": _PLAIN,
    "equalize": _PLAIN,
}


def randaugment(num_ops: int = 2, magnitude: int = 9) -> Change:
    """Apply ``num_ops`` ops drawn from fourteen, all of the same magnitude (RandAugment).

    Args:
        num_ops: ops a picture, one after another.
        magnitude: 0 (weakest) to 30.
    """
    check("num_ops", num_ops, 0, 14)
    check("magnitude", magnitude, 0, NUM_MAGNITUDES - 1)

    def one(image: torch.Tensor, draws: list[float]) -> torch.Tensor:
        for choice, sign in zip(draws[0::2], draws[1::2], strict=True):
            image = _drawn(image, RAND_SCALES, choice, magnitude, sign)
        return image

    return _each(2 * num_ops, one)


def trivial_augment() -> Change:
    """Apply one op drawn from fourteen, of any magnitude (TrivialAugment, wide)."""

    def one(image: torch.Tensor, draws: list[float]) -> torch.Tensor:
        choice, strength, sign = draws
        return _drawn(image, TRIVIAL_SCALES, choice, int(strength * NUM_MAGNITUDES), sign)

    return _each(3, one)


def _each(num_draws: int, one: Callable[[torch.Tensor, list[float]], torch.Tensor]) -> Change:
    def apply(images: torch.Tensor, draws: F64) -> torch.Tensor:
        images = to_bytes(images)
        result = torch.empty_like(images)
        for i, own in enumerate(draws.tolist()):
            result[i] = one(images[i], own)
        return result

    return Change(num_draws, apply)


def _drawn(
    image: torch.Tensor, scales: Mapping[str, Scale], choice: float, index: int, sign: float
) -> torch.Tensor:
    names = tuple(scales)
    name = names[int(choice * len(names))]
    scale = scales[name]
    value = scale.magnitude(index, image.shape[1] if name == "translate_y" else image.shape[2])
    return apply_op(image, name, -value if scale.signed and sign < 0.5 else value)


def apply_op(image: torch.Tensor, name: str, value: float) -> torch.Tensor:
    """Apply one op of the lists.

    Shape:
        uint8 [3, H, W] to the same.
    """
    # Importing torchvision takes seconds, so only pipes that need it import it.
    from torchvision.transforms.v2 import functional

    changed: torch.Tensor
    match name:
        case "identity":
            changed = image
        case "shear_x" | "shear_y":
            angle = math.degrees(math.atan(value))
            slant = [angle, 0.0] if name == "shear_x" else [0.0, angle]
            changed = functional.affine(
                image, angle=0.0, translate=[0, 0], scale=1.0, shear=slant, center=[0, 0]
            )
        case "translate_x" | "translate_y":
            move = [int(value), 0] if name == "translate_x" else [0, int(value)]
            changed = functional.affine(
                image, angle=0.0, translate=move, scale=1.0, shear=[0.0, 0.0]
            )
        case "rotate":
            changed = functional.rotate(image, angle=value)
        case "brightness":
            changed = functional.adjust_brightness(image, brightness_factor=1 + value)
        case "color":
            changed = functional.adjust_saturation(image, saturation_factor=1 + value)
        case "contrast":
            changed = functional.adjust_contrast(image, contrast_factor=1 + value)
        case "sharpness":
            changed = functional.adjust_sharpness(image, sharpness_factor=1 + value)
        case "posterize":
            changed = functional.posterize(image, bits=int(value))
        case "solarize":
            changed = functional.solarize(image, threshold=255 * value)
        case "autocontrast":
            changed = functional.autocontrast(image)
        case "equalize":
            changed = functional.equalize(image)
        case _:
            raise AssertionError(name)
    return changed
