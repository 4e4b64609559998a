"""Damaged pictures of every format: each is answered, and memory stays what it was.

``scripts/fuzz_pictures.py`` does the same with ten thousand of them.
"""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from fieldmark.pictures.decode import PICTURES, REASONS, decode
from fieldmark.pictures.formats import sniff
from scripts import fuzz_pictures as fuzz


def test_the_originals_are_whole_and_of_every_format() -> None:
    kinds = set()
    for kind, data in fuzz.originals():
        assert sniff(data) == kind
        assert fuzz.answer(data) == "decoded"
        kinds.add(kind)
    assert kinds >= set(PICTURES) - {"HEIC"}


def test_parts_are_those_of_the_format() -> None:
    for kind, data in fuzz.originals():
        ends = fuzz.cuts(kind, data)
        assert len(ends) > 2
        assert ends == sorted(set(ends)) and ends[-1] <= len(data)
        if kind == "PNG":
            names = [data[at + 4 : at + 8] for at in ends[:-1]]
            assert (names[0], names[-1]) == (b"IHDR", b"IEND")
        if kind == "JPEG":
            assert all(data[at] == 0xFF for at in ends[:-1])


def test_a_swap_of_two_parts_loses_no_byte() -> None:
    for kind, data in fuzz.originals():
        copy = bytearray(data)
        fuzz.MUTATIONS["parts swapped"](copy, np.random.default_rng(1), fuzz.cuts(kind, data))
        assert sorted(copy) == sorted(data)
        assert bytes(copy) != data


def test_a_file_depends_on_seed_and_number_only() -> None:
    kind, data = fuzz.originals()[0]
    one, two, other = (
        fuzz.mutated(kind, data, np.random.default_rng((seed, 7))) for seed in (0, 0, 1)
    )
    assert one == two
    assert one[0] != data and one != other


def run(files: int, seed: int) -> None:
    result = fuzz.fuzz(files, seed)
    assert result.wrong == []
    assert result.answered == result.files == files
    assert result.peak_growth_mb < fuzz.MEMORY_MB
    found = result.to_json(seed, 0.0)
    assert set(found["reasons"]) <= {"decoded", *REASONS}
    assert set(found["mutations"]) == set(fuzz.MUTATIONS)
    for kind, counts in found["formats"].items():
        assert counts["decoded"] > 0, kind  # the damage is not so great that nobody looks at it
        assert len(counts) > 1, kind


def test_every_damaged_file_is_answered() -> None:
    run(350, seed=1)


@pytest.mark.slow
def test_every_one_of_many_damaged_files_is_answered() -> None:
    run(5000, seed=2)


def test_an_answer_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "PNG")
    assert decode(stream.getvalue())[0].shape == (4, 4, 3)
    monkeypatch.setattr("scripts.fuzz_pictures.Encoded.decode", lambda *_: 1 / 0)
    assert fuzz.answer(stream.getvalue()) == "wrong: ZeroDivisionError('division by zero')"
    result = fuzz.fuzz(3, 0)
    assert result.answered == 0 and len(result.wrong) == 3
