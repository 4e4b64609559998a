"""Mixing pictures and their targets: mixup and cutmix.

The draws belong to the step, and a picture's partner is another one of the batch. So code that
cuts a batch into pieces (ranks, accumulation) has to mix first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from fieldmark.augment.ops import check, put
from fieldmark.seeding import generator, stream

Mixed = tuple[torch.Tensor, float]


@dataclass(frozen=True)
class Mixer:
    """One way of mixing."""

    alpha: float
    """Parameter of Beta(alpha, alpha), from which the kept share is drawn."""
    blend: Callable[[torch.Tensor, torch.Tensor, float, np.random.Generator], Mixed]
    """From images, partners and the drawn share to mixed images and the share really kept."""


@dataclass(frozen=True)
class Mix:
    """One or several ways of mixing; each batch gets one of them with equal chance."""

    mixers: tuple[Mixer, ...]

    def __call__(
        self, images: torch.Tensor, targets: torch.Tensor, *, seed: int, step: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mix every picture, and its targets, with another one of the batch.

        Shape:
            float images [B, 3, S, S] and float targets [B, K] to the same.
        """
        assert images.is_floating_point() and targets.is_floating_point()
        if len(images) < 2:
            return images, targets
        rng = generator(seed, stream("mix"), step)
        mixer = self.mixers[int(rng.integers(len(self.mixers)))]
        kept = float(rng.beta(mixer.alpha, mixer.alpha))
        order = put(rng.permutation(len(images)), images.device)
        mixed, kept = mixer.blend(images, images[order], kept, rng)
        return mixed, targets * kept + targets[order] * (1 - kept)


def mixup(alpha: float = 0.2) -> Mixer:
    """Average each picture with another one; the weight is drawn from Beta(alpha, alpha).

    Source:
        Zhang et al., mixup: Beyond Empirical Risk Minimization (2018). One weight a batch.
    """
    check("alpha", alpha, 0.001, 100)

    def blend(
        images: torch.Tensor, partners: torch.Tensor, kept: float, rng: np.random.Generator
    ) -> Mixed:
        return images * kept + partners * (1 - kept), kept

    return Mixer(alpha, blend)


def cutmix(alpha: float = 1.0) -> Mixer:
    """Replace a rectangle by the same one of another picture; its area is drawn from Beta.

    Source:
        Yun et al., CutMix (2019). One rectangle a batch; where the picture's edge cuts it, the
        targets follow the area that is left.
    """
    check("alpha", alpha, 0.001, 100)

    def blend(
        images: torch.Tensor, partners: torch.Tensor, kept: float, rng: np.random.Generator
    ) -> Mixed:
        height, width = images.shape[2:]
        half = math.sqrt(1 - kept) / 2
        y, x = int(rng.integers(height)), int(rng.integers(width))
        top, bottom = max(0, y - int(half * height)), min(height, y + int(half * height))
        left, right = max(0, x - int(half * width)), min(width, x + int(half * width))
        mixed = images.clone()
        mixed[:, :, top:bottom, left:right] = partners[:, :, top:bottom, left:right]
        return mixed, 1 - (bottom - top) * (right - left) / (height * width)

    return Mixer(alpha, blend)
