"""The contract of every word of --augment, and the reading of pipes."""

from __future__ import annotations

import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldmark.augment import AUGMENTS, build
from fieldmark.errors import ConfigError
from fieldmark.pictures.inputs import InputSpec
from fieldmark.settings.spec import Spec, parse, parse_pipe

ON_PICTURE = ["random_resized_crop"]
PIPES = [
    *(name for name in AUGMENTS if name not in ON_PICTURE),
    "pad_crop(3, 'reflect')",
    "pad_crop(3, 'edge')",
    "grey(1.0)",
    "erase(1.0)",
    "brightness(1)",
    "contrast(1)",
    "saturation(1)",
    "hue(0.5)",
    "rotate(180, fill='wrap')",
    "shift(0.5, fill='reflect')",
    "zoom(0.9, per_axis=True, fill='constant', value=77)",
    "rotate|shift|shear|zoom",
    "rotate|shift(fill='wrap')|shear(fill='wrap')|flip_ud|zoom",
    "randaugment(3, 30)",
    "brightness|pad_crop|flip_lr|grey(0.5)|erase(0.5)|randaugment|hue",
]
SEED = {"seed": 7, "epoch": 3}


def images_of(count: int, size: int = 13, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (count, 3, size, size), dtype=np.uint8))


IDS = np.array([0, 1, 2, 2**64 - 1, 10**12, 5, 6, 7], dtype=np.uint64)


@pytest.mark.parametrize("text", PIPES)
class TestEveryPipe:
    def test_keeps_shape_and_range_and_input(self, text: str) -> None:
        images = images_of(8)
        images[0], images[1] = 0, 255
        before = images.clone()
        result = build(text).batch(images, **SEED, identities=IDS)
        assert result.shape == images.shape
        assert result.dtype in (torch.uint8, torch.float32)
        assert result.min() >= 0 and result.max() <= 255  # a NaN fails, too
        assert torch.equal(images, before)
        floats = images_of(8, 20)[:, :, :11].to(torch.float32) * 0.999  # and not square
        result = build(text).batch(floats, **SEED, identities=IDS)
        assert result.shape == floats.shape
        assert result.min() >= 0 and result.max() <= 255

    def test_a_picture_does_not_depend_on_its_batch(self, text: str) -> None:
        pipe = build(text)
        for size in (1, 2, 13, 32):
            images = images_of(8, size)
            whole = pipe.batch(images, **SEED, identities=IDS)

            def alone(i: int, images: torch.Tensor = images) -> torch.Tensor:
                return pipe.batch(images[i : i + 1], **SEED, identities=IDS[i : i + 1])

            singles = torch.cat([alone(i) for i in range(8)])
            assert singles.dtype == whole.dtype
            assert torch.equal(singles, whole)
            order = np.array([3, 1, 7, 0])
            some = pipe.batch(images[order], **SEED, identities=IDS[order])
            assert torch.equal(some, whole[order])
        with ThreadPoolExecutor(4) as pool:
            assert torch.equal(torch.cat(list(pool.map(alone, range(8)))), whole)

    def test_threads_and_the_order_in_memory_do_not_matter(self, text: str) -> None:
        images, pipe = images_of(8, 96), build(text)
        one = pipe.batch(images, **SEED, identities=IDS)
        torch.set_num_threads(3)
        try:
            assert torch.equal(pipe.batch(images, **SEED, identities=IDS), one)
        finally:
            torch.set_num_threads(1)
        last = images.contiguous(memory_format=torch.channels_last)
        assert torch.equal(pipe.batch(last, **SEED, identities=IDS), one)

    def test_reads_and_advances_no_global_generator(self, text: str) -> None:
        images, pipe = images_of(8), build(text)

        def states() -> tuple[object, ...]:
            legacy = np.random.get_state()  # noqa: NPY002
            return torch.get_rng_state().tolist(), random.getstate(), legacy[1].tolist(), legacy[2:]

        before = states()
        first = pipe.batch(images, **SEED, identities=IDS)
        assert states() == before
        torch.manual_seed(99)
        random.seed(99)
        np.random.seed(99)  # noqa: NPY002
        assert torch.equal(pipe.batch(images, **SEED, identities=IDS), first)


@pytest.mark.parametrize("text", PIPES)
def test_epoch_seed_and_identity_matter(text: str) -> None:
    images, pipe = images_of(1, 24).expand(64, -1, -1, -1), build(text)
    ids = np.arange(64, dtype=np.uint64)
    base = pipe.batch(images, seed=0, epoch=0, identities=ids)
    assert torch.equal(pipe.batch(images, seed=0, epoch=0, identities=ids), base)
    if text in ("grey(1.0)",):
        return
    assert not torch.equal(pipe.batch(images, seed=0, epoch=1, identities=ids), base)
    assert not torch.equal(pipe.batch(images, seed=1, epoch=0, identities=ids), base)
    assert len(torch.unique(base.flatten(1), dim=0)) > 1


def test_an_op_at_two_places_draws_twice() -> None:
    images = images_of(256)
    ids = np.arange(256, dtype=np.uint64)
    once = build("flip_lr").batch(images, **SEED, identities=ids)
    twice = build("flip_lr|flip_lr").batch(images, **SEED, identities=ids)
    same = (twice == images).flatten(1).all(dim=1).double().mean()
    assert 0.35 < same < 0.65  # equal draws would undo every flip
    assert 0.35 < (once == images).flatten(1).all(dim=1).double().mean() < 0.65


@pytest.mark.parametrize("text", ["", "none", "  none "])
def test_nothing_to_do(text: str) -> None:
    pipe, images = build(text), images_of(2)
    assert pipe.batch(images, **SEED, identities=IDS[:2]) is images
    assert pipe.deterministic_picture
    assert pipe.steps == ()


def test_an_empty_batch_is_left_alone() -> None:
    empty = images_of(0)
    assert build("rotate|erase").batch(empty, **SEED, identities=IDS[:0]) is empty


def test_picture_without_a_random_crop_is_the_plain_resize() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    spec = InputSpec(size=16, resize="crop", crop=0.9)
    pipe = build("pad_crop|flip_lr")
    assert pipe.deterministic_picture
    assert pipe.box(40, 50, **SEED, identity=1) is None
    assert np.array_equal(pipe.picture(image, spec=spec, **SEED, identity=1), spec.pixels(image))


def test_picture_with_a_random_crop_depends_on_the_epoch() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    spec, pipe = InputSpec(size=16), build("random_resized_crop|flip_lr")
    assert not pipe.deterministic_picture
    shown = [pipe.picture(image, spec=spec, seed=0, epoch=e, identity=4) for e in (0, 0, 1)]
    assert all(s.shape == (3, 16, 16) and s.dtype == np.uint8 for s in shown)
    assert np.array_equal(shown[0], shown[1])
    assert not np.array_equal(shown[0], shown[2])
    images = torch.from_numpy(np.stack(shown))  # the batch half applies the rest only
    rest = pipe.batch(images, seed=0, epoch=0, identities=IDS[:3])
    assert rest.sum() == images.sum()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pad_corp(4)", "did you mean 'pad_crop'"),
        ("flip_lr|nothing_like_it", "known: random_resized_crop"),
        ("pad_crop(-1)", "pad is -1; 0 to 256"),
        ("pad_crop(4.5)", "whole number"),
        ("pad_crop(4, 'wrap')", "no mode 'wrap'"),
        ("pad_crop(padd=4)", "did you mean 'pad'"),
        ("flip_lr(1.5)", "p is 1.5"),
        ("flip_ud(-0.1)", "p is -0.1"),
        ("flip_lr(True)", "must be a number"),
        ("rotate(181)", "degrees is 181"),
        ("rotate(1e999)", "plain values"),
        ("rotate(fill='mirror')", "no fill 'mirror'"),
        ("rotate(value=5)", "fill='constant' only"),
        ("rotate(fill='constant', value=256)", "value is 256"),
        ("shift(0.1, 'a')", "y is 'a'"),
        ("shift(2)", "x is 2"),
        ("shear(90)", "degrees is 90"),
        ("zoom(1.0)", "range is 1.0"),
        ("brightness(1.1)", "amount is 1.1"),
        ("contrast(-1)", "amount is -1"),
        ("saturation('a')", "must be a number"),
        ("hue(0.6)", "amount is 0.6"),
        ("grey(2)", "p is 2"),
        ("channel_shift(256)", "amount is 256"),
        ("channel_shift(-1)", "amount is -1"),
        ("erase(2)", "p is 2"),
        ("erase(0.5, (0.5, 0.1))", "smaller number comes first"),
        ("erase(0.5, 0.1)", "two numbers"),
        ("erase(0.5, ratio=(0, 1))", "ratio is 0"),
        ("randaugment(2, 31)", "magnitude is 31"),
        ("randaugment(-1)", "num_ops is -1"),
        ("trivial_augment(3)", "takes no arguments"),
        ("random_resized_crop(0)", "scale is 0"),
        ("random_resized_crop((0.5, 2))", "scale is 2"),
        ("random_resized_crop('a')", "scale is 'a'"),
        ("random_resized_crop(ratio=(2, 1))", "smaller number comes first"),
        ("random_resized_crop(interpolation='cubic')", "no interpolation 'cubic'"),
        ("flip_lr|random_resized_crop", "has to come first"),
        ("flip_lr|mixup(0.2)", "use --mix mixup(0.2)"),
        ("flip_lr||flip_ud", "not of the form"),
        ("flip_lr(__import__('os'))", "plain values"),
    ],
)
def test_refuses(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        build(text)
    assert says in str(error.value)


NAMES = st.sampled_from(sorted(AUGMENTS))
SCALARS = st.one_of(
    st.integers(-(10**9), 10**9),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.none(),
    st.text(max_size=8),
)
VALUES = st.one_of(SCALARS, st.tuples(SCALARS, SCALARS), st.lists(SCALARS, max_size=3))
KEYWORDS = st.dictionaries(st.from_regex(r"_?k[a-z_0-9]{0,6}", fullmatch=True), VALUES, max_size=3)


@settings(max_examples=60)
@given(st.lists(st.tuples(NAMES, st.lists(VALUES, max_size=3), KEYWORDS), min_size=1, max_size=4))
def test_the_mini_language_reads_what_it_writes(
    parts: list[tuple[str, list[Any], dict[str, Any]]],
) -> None:
    specs = tuple(Spec(n, tuple(a), tuple(k.items())) for n, a, k in parts)
    assert all(parse(str(s), what="augment") == s for s in specs)
    assert parse_pipe("|".join(map(str, specs)), what="augment") == specs


@given(NAMES, st.lists(VALUES, max_size=3))
def test_any_argument_works_or_is_a_config_error(name: str, args: list[Any]) -> None:
    text = str(Spec(name, tuple(args)))
    try:
        pipe = build(text)
    except ConfigError:
        return
    result = pipe.batch(images_of(2, 6), **SEED, identities=IDS[:2])
    assert result.shape == (2, 3, 6, 6)


def test_augment_does_not_import_torchvision() -> None:
    code = (
        "import sys; from fieldmark.augment import build; build('randaugment|flip_lr');"
        "sys.exit('torchvision' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
