"""RandAugment and TrivialAugment against torchvision's lists."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
import torch

from fieldmark.augment import auto, build
from fieldmark.augment.auto import NUM_MAGNITUDES, RAND_SCALES, TRIVIAL_SCALES, apply_op


def picture(height: int = 24, width: int = 30) -> torch.Tensor:
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))


def snake(name: str) -> str:
    return {"AutoContrast": "autocontrast"}.get(name) or re.sub(
        r"(?<=[a-z])(?=[A-Z])", "_", name
    ).lower()


@pytest.mark.reference
@pytest.mark.parametrize("kind", ["RandAugment", "TrivialAugmentWide"])
def test_every_op_at_every_magnitude_is_torchvisions(kind: str) -> None:
    from torchvision.transforms import v2

    theirs = getattr(v2, kind)()
    ours = RAND_SCALES if kind == "RandAugment" else TRIVIAL_SCALES
    space = theirs._AUGMENTATION_SPACE
    assert [snake(name) for name in space] == list(ours)
    image = picture()
    for name, (magnitudes, signed) in space.items():
        scale, table = ours[snake(name)], magnitudes(NUM_MAGNITUDES, 24, 30)
        assert scale.signed == signed
        side = 24 if name == "TranslateY" else 30
        for index in range(NUM_MAGNITUDES):
            value = scale.magnitude(index, side)
            assert value == (0.0 if table is None else float(table[index])), (name, index)
            for sign in (1, -1) if signed else (1,):
                wanted = theirs._apply_image_or_video_transform(
                    image, name, sign * value, interpolation=theirs.interpolation, fill=theirs._fill
                )
                result = apply_op(image, snake(name), sign * value)
                assert result.dtype == torch.uint8
                assert torch.equal(result, wanted), (name, index, sign)


def test_ops_and_signs_are_drawn_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, float]] = []

    def note(image: torch.Tensor, name: str, value: float) -> torch.Tensor:
        seen.append((name, value))
        return image

    monkeypatch.setattr(auto, "apply_op", note)
    images, ids = picture(4, 4).expand(2000, -1, -1, -1), np.arange(2000, dtype=np.uint64)
    build("randaugment(2, 30)").batch(images, seed=0, epoch=0, identities=ids)
    counts = Counter(name for name, _ in seen)
    assert set(counts) == set(RAND_SCALES)
    assert sum(counts.values()) == 4000
    assert all(abs(n - 4000 / 14) < 4 * (4000 / 14) ** 0.5 for n in counts.values())
    angles = [value for name, value in seen if name == "rotate"]
    assert set(angles) == {30.0, -30.0}
    assert 0.35 < np.mean([a > 0 for a in angles]) < 0.65
    seen.clear()
    build("trivial_augment").batch(images, seed=0, epoch=0, identities=ids)
    assert len(seen) == 2000
    assert {name for name, _ in seen} == set(TRIVIAL_SCALES)
    assert {abs(v) for n, v in seen if n in ("solarize",)} > {0.0, 1.0}


@pytest.mark.parametrize("text", ["randaugment(2, 15)", "trivial_augment"])
def test_floats_are_rounded_to_bytes(text: str) -> None:
    images, ids = picture(9, 9).expand(20, -1, -1, -1), np.arange(20, dtype=np.uint64)
    options = {"seed": 0, "epoch": 0, "identities": ids}
    result = build(text).batch(images, **options)
    assert result.dtype == torch.uint8
    assert torch.equal(build(text).batch(images.float() + 0.3, **options), result)
