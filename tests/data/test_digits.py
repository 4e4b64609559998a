from __future__ import annotations

import numpy as np
import pytest

from fieldmark.data.digits import read_digits
from fieldmark.pictures.picture import BadPicture


def test_digits_are_all_there_in_label_order() -> None:
    found = read_digits()
    assert found.name == "digits"
    assert found.class_names == tuple("0123456789")
    assert len(found.entries) == 1797
    assert [e.key for e in found.entries] == sorted(e.key for e in found.entries)
    assert found.entries[0].key == "digits/0000"
    assert {e.part for e in found.entries} == {None}
    assert {e.label for e in found.entries} == set(range(10))


def test_pixels_are_scikit_learns_scaled_to_255() -> None:
    from sklearn.datasets import load_digits

    theirs = load_digits()
    found = read_digits()
    for row in (0, 1, 1796):
        pixels = found.load(found.entries[row].key).decode(1).pixels
        assert pixels.dtype == np.uint8
        assert pixels.shape == (8, 8, 3)
        assert np.abs(pixels[:, :, 0] - theirs.images[row] * 255 / 16).max() <= 0.5
        assert (pixels == pixels[:, :, :1]).all()
        assert found.entries[row].label == theirs.target[row]
    assert max(found.load(e.key).decode(1).pixels.max() for e in found.entries) == 255


def test_a_caller_cannot_change_the_pictures() -> None:
    found = read_digits()
    before = found.load("digits/0003").decode(1).pixels.copy()
    found.load("digits/0003").decode(1).pixels[:] = 7
    assert (found.load("digits/0003").decode(1).pixels == before).all()


def test_an_unknown_key_is_a_bad_picture() -> None:
    with pytest.raises(BadPicture, match="digits/9999"):
        read_digits().load("digits/9999")
