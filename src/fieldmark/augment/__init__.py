"""Training-time changes to pictures: ``--augment 'pad_crop(4)|flip_lr'``, ``--mix 'mixup(0.2)'``.

A pipe is read from left to right. Every number it draws is a function of (seed, epoch, picture) and
of the op's name and place in the pipe: the result for a picture does not depend on the batch it is
in, on the thread, or on what was drawn before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from fieldmark.augment.auto import randaugment, trivial_augment
from fieldmark.augment.color import brightness, channel_shift, contrast, grey, hue, saturation
from fieldmark.augment.erase import erase
from fieldmark.augment.geometry import (
    alternating_flip,
    flip_lr,
    flip_ud,
    pad_crop,
    random_resized_crop,
    rotate,
    shear,
    shift,
    warp,
    zoom,
)
from fieldmark.augment.mix import Mix, Mixer, cutmix, mixup
from fieldmark.augment.ops import Change, Crop, Op, Warp
from fieldmark.errors import ConfigError
from fieldmark.pictures.inputs import Box, InputSpec, Pixels, resize
from fieldmark.pictures.picture import U8
from fieldmark.seeding import F64, U64, stream, uniform
from fieldmark.settings.spec import Spec, call, lookup, parse_pipe

__all__ = ["AUGMENTS", "MIXES", "Mix", "Pipeline", "build", "build_mix"]

AUGMENTS: Mapping[str, Callable[..., Op]] = {
    "random_resized_crop": random_resized_crop,
    "pad_crop": pad_crop,
    "flip_lr": flip_lr,
    "alternating_flip": alternating_flip,
    "flip_ud": flip_ud,
    "rotate": rotate,
    "shift": shift,
    "shear": shear,
    "zoom": zoom,
    "brightness": brightness,
    "contrast": contrast,
    "saturation": saturation,
    "hue": hue,
    "grey": grey,
    "channel_shift": channel_shift,
    "erase": erase,
    "randaugment": randaugment,
    "trivial_augment": trivial_augment,
}
"""Augmentations by name, for ``--augment``."""

MIXES: Mapping[str, Callable[..., Mixer]] = {
    "mixup": mixup,
    "cutmix": cutmix,
}
"""Ways of mixing by name, for ``--mix``."""


@dataclass(frozen=True)
class Step:
    """An op at its place in the pipe."""

    op: Op
    key: int
    """Name of its stream of random numbers."""

    def draws(self, seed: int, epoch: int, identities: int | U64) -> F64:
        """Draw uniform numbers, one row a picture."""
        if not (isinstance(self.op, Change) and self.op.alternates):
            return uniform(self.op.num_draws, seed, self.key, epoch, identities)
        numbers = uniform(self.op.num_draws, seed, self.key, 0, identities)
        # Of the numbers k / 2**53 this is exactly the opposite one, and below 1 again.
        return 1 - 2.0**-53 - numbers if epoch % 2 else numbers


@dataclass(frozen=True)
class Pipeline:
    """The augmentations of training pictures; :func:`build` makes one."""

    steps: tuple[Step, ...]
    """Its ops in order."""

    @property
    def deterministic_picture(self) -> bool:
        """Whether :meth:`picture` is the same in every epoch, so that its pixels can be kept."""
        return not (self.steps and isinstance(self.steps[0].op, Crop))

    def picture(
        self,
        image: U8,
        *,
        spec: InputSpec,
        seed: int,
        epoch: int,
        identity: int,
        fast: bool = False,
    ) -> Pixels:
        """Resize one decoded picture to the input: a random crop of it, or the plain resize.

        With ``fast`` a quicker kernel is used and a crop lies on whole pixels, see ``inputs``.

        Shape:
            uint8 [H, W, 3] to [3, size, size], see ``InputSpec.number_type``.
        """
        height, width = image.shape[:2]
        box = self.box(height, width, seed=seed, epoch=epoch, identity=identity)
        if box is None:
            return spec.pixels(image, fast=fast)
        op = self.steps[0].op
        filter_ = op.interpolation if isinstance(op, Crop) else None
        return resize(image, spec.size, spec.size, filter_ or spec.interpolation, box, fast=fast)

    def box(self, height: int, width: int, *, seed: int, epoch: int, identity: int) -> Box | None:
        """Draw the part (left, top, right, bottom) that is resized; None without a random crop."""
        op = self.steps[0].op if self.steps else None
        if not isinstance(op, Crop):
            return None
        return op.box(self.steps[0].draws(seed, epoch, identity)[0], height, width)

    def batch(
        self, images: torch.Tensor, *, seed: int, epoch: int, identities: U64
    ) -> torch.Tensor:
        """Apply the rest of the pipe; the given images are not changed.

        Shape:
            uint8 [B, 3, S, S] and uint64 [B] to uint8 or float32 [B, 3, S, S], both in 0..255.
        """
        assert identities.shape == (len(images),)
        if len(images) == 0:
            return images
        height, width = images.shape[2:]
        pending: F64 | None = None
        for step, after in zip(self.steps, (*self.steps, None)[1:], strict=True):
            op = step.op
            if isinstance(op, Crop):
                continue
            draws = step.draws(seed, epoch, identities)
            if isinstance(op, Change):
                images = op.apply(images, draws)
                continue
            matrices = op.matrices(draws, height, width)
            pending = matrices if pending is None else np.matmul(pending, matrices)
            # Neighbours are resampled once: less blur, less time, and no fill between them.
            if after is None or not _merges(op, after.op):
                images = warp(images, pending, fill=op.fill, value=op.value)
                pending = None
        return images


def _merges(op: Warp, other: Op) -> bool:
    return isinstance(other, Warp) and (op.fill, op.value) == (other.fill, other.value)


def build(pipe: str | tuple[Spec, ...]) -> Pipeline:
    """Build a pipe of :data:`AUGMENTS`; ``none`` or nothing leaves pictures as they are.

    Raises:
        ConfigError: naming the word or argument, and what is accepted.
    """
    what = "augment"
    steps: list[Step] = []
    for place, spec in enumerate(specs := parse_pipe(pipe, what=what)):
        if spec.name in MIXES:
            raise ConfigError(f"{spec.name!r} mixes pictures with their labels: use --mix {spec}")
        op = call(spec, lookup(spec, AUGMENTS, what=what), what=what)
        if place > 0 and isinstance(op, Crop):
            raise ConfigError(
                f"augment {'|'.join(map(str, specs))!r}: {spec.name} crops the original picture, "
                "so it has to come first"
            )
        steps.append(Step(op, stream(f"{spec.name}#{place}")))
    return Pipeline(tuple(steps))


def build_mix(pipe: str | tuple[Spec, ...]) -> Mix | None:
    """Build one or several :data:`MIXES`, separated by ``|``; ``none`` or nothing gives None.

    Raises:
        ConfigError: naming the word or argument, and what is accepted.
    """
    what = "mix"
    specs = parse_pipe(pipe, what=what)
    for spec in specs:
        if spec.name in AUGMENTS:
            raise ConfigError(f"{spec.name!r} changes single pictures: use --augment {spec}")
    mixers = tuple(call(spec, lookup(spec, MIXES, what=what), what=what) for spec in specs)
    return Mix(mixers) if mixers else None
