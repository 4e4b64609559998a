"""The contract of an augmentation: a function of the picture, its draws and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from fieldmark.augment import Mix, Pipeline, Step
from fieldmark.augment.mix import Mixer
from fieldmark.augment.ops import Change, Crop, Op, Warp
from fieldmark.seeding import U64, stream
from fieldmark.testing.promises import check_described, require, untouched

IDS: U64 = np.array([0, 1, 2, 2**64 - 1, 10**12, 5, 6, 7], dtype=np.uint64)
SEED = {"seed": 7, "epoch": 3}


def pictures(*, side: int = 13, seed: int = 0) -> torch.Tensor:
    """Made-up pictures, a black and a white one among them.

    Shape:
        uint8 [8, 3, side, side]
    """
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(0, 256, (len(IDS), 3, side, side), dtype=np.uint8))
    images[0], images[1] = 0, 255
    return images


def check_augmentation(factory: Callable[..., Op]) -> None:
    """Check an augmentation, with its arguments at their defaults.

    Raises:
        AssertionError: naming the promise that is not kept.
    """
    check_described(factory, given=0)
    op = factory()
    kinds = "a Crop, Warp or Change of augment.ops"
    require(isinstance(op, Crop | Warp | Change), f"it gives a {type(op).__name__}, not {kinds}")
    require(op.num_draws >= 0, f"num_draws is {op.num_draws}")
    if isinstance(op, Crop):
        _check_crop(op)
    else:
        check_pipeline(Pipeline((Step(op, stream("checked")),)))
        _check_draws(Pipeline((Step(op, stream("checked")),)), op)


def _check_crop(op: Crop) -> None:
    step = Step(op, stream("checked"))
    for height, width in ((40, 50), (1, 9), (300, 20)):
        for identity in range(20):
            draws = step.draws(0, 1, identity)[0]
            with untouched("choosing the box"):
                left, top, right, bottom = op.box(draws, height, width)
            inside = 0 <= left < right <= width and 0 <= top < bottom <= height
            box = (left, top, right, bottom)
            require(inside, f"its box {box} is not inside a picture of {width} x {height}")
            require(op.box(draws, height, width) == box, "equal draws give another box")


def check_pipeline(pipe: Pipeline) -> None:
    """Check that a picture's result depends on nothing but the picture, seed and epoch.

    Raises:
        AssertionError: naming the promise that is not kept.
    """
    images = pictures()
    before = images.clone()
    with untouched("it"):
        whole = pipe.batch(images, **SEED, identities=IDS)
    require(torch.equal(images, before), "it changes the pictures that it is given in place")
    _check_pixels(whole, images)
    floats = pictures(side=20)[:, :, :11].to(torch.float32) * 0.999
    _check_pixels(pipe.batch(floats, **SEED, identities=IDS), floats)

    def alone(i: int) -> torch.Tensor:
        return pipe.batch(images[i : i + 1], **SEED, identities=IDS[i : i + 1])

    with ThreadPoolExecutor(4) as pool:
        singles = torch.cat(list(pool.map(alone, range(len(IDS)))))
    require(torch.equal(singles, whole), "a picture's result depends on others in its batch")
    order = np.array([3, 1, 7, 0])
    mixed = pipe.batch(images[order], **SEED, identities=IDS[order])
    require(torch.equal(mixed, whole[order]), "a picture's result depends on its place in a batch")
    last = images.contiguous(memory_format=torch.channels_last)
    found = pipe.batch(last, **SEED, identities=IDS)
    require(torch.equal(found, whole), "its result depends on the order of pixels in memory")


def _check_pixels(result: torch.Tensor, images: torch.Tensor) -> None:
    require(
        isinstance(result, torch.Tensor) and result.shape == images.shape,
        f"{tuple(images.shape)} becomes {getattr(result, 'shape', type(result).__name__)}",
    )
    known = (torch.uint8, torch.float32)
    require(result.dtype in known, f"its result is {result.dtype}; uint8 or float32 is needed")
    low, high = float(result.min()), float(result.max())
    require(low >= 0 and high <= 255, f"its values lie in {low:g} to {high:g}, not in 0 to 255")


def _check_draws(pipe: Pipeline, op: Warp | Change) -> None:
    if op.num_draws == 0:
        return
    one = pictures(side=24)[2:3].expand(64, -1, -1, -1)
    ids = np.arange(64, dtype=np.uint64)
    base = pipe.batch(one, seed=0, epoch=0, identities=ids)
    varied = len(torch.unique(base.flatten(1), dim=0)) > 1
    require(varied, f"64 pictures with {op.num_draws} draws each are all changed alike")
    later = pipe.batch(one, seed=0, epoch=1, identities=ids)
    require(not torch.equal(later, base), "every epoch changes the pictures alike")


def check_mix(factory: Callable[..., Mixer]) -> None:
    """Check a way of mixing, with its arguments at their defaults.

    Raises:
        AssertionError: naming the promise that is not kept.
    """
    check_described(factory, given=0)
    mixer = factory()
    require(isinstance(mixer, Mixer), f"it gives a {type(mixer).__name__}, not a Mixer")
    mix = Mix((mixer,))
    images = pictures().to(torch.float32)
    targets = torch.eye(len(IDS))
    kept = images.clone()
    with untouched("it"):
        mixed, shares = mix(images, targets, seed=1, step=5)
    require(torch.equal(images, kept), "it changes the pictures that it is given in place")
    require(mixed.shape == images.shape, f"{tuple(images.shape)} becomes {tuple(mixed.shape)}")
    sums = shares.sum(dim=1)
    require(torch.allclose(sums, torch.ones_like(sums)), "the shares of a picture do not sum to 1")
    again = mix(images, targets, seed=1, step=5)
    same = torch.equal(again[0], mixed) and torch.equal(again[1], shares)
    require(same, "one step mixes in another way each time")
