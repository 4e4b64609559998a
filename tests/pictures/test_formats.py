"""What a file is by its first bytes: raw photographs and pointers are no pictures."""

from __future__ import annotations

import io
import struct

import pytest
from PIL import Image, TiffImagePlugin

from fieldmark.pictures.decode import decode
from fieldmark.pictures.formats import guess, sniff
from fieldmark.pictures.picture import BadPicture
from tests.making import scene


def tiff(**tags: tuple[int, object]) -> bytes:
    """A TIFF by Pillow with further tags: their types and values."""
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for name, (kind, value) in tags.items():
        number = int(name.removeprefix("t"))
        info.tagtype[number] = kind
        info[number] = value
    stream = io.BytesIO()
    Image.fromarray(scene()).save(stream, "TIFF", tiffinfo=info)
    return stream.getvalue()


RAW = {
    "DNG": tiff(t50706=(1, b"\1\4\0\0")),
    "NEF": tiff(t254=(4, 1), t330=(4, 8)),
    "CR2": b"II*\0\x10\0\0\0CR\2\0" + bytes(60),
    "CR3": b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(40),
    "RAF": b"FUJIFILMCCD-RAW 0201" + bytes(40),
    "ORF": b"IIRO\x08\0\0\0" + bytes(40),
    "RW2": b"IIU\0\x18\0\0\0" + bytes(40),
    "mosaic": b"MM\0*\0\0\0\x08\0\1" + struct.pack(">HHIHH", 262, 3, 1, 32803, 0) + bytes(40),
}


@pytest.mark.parametrize("name", list(RAW))
def test_a_raw_photograph_is_not_taken_for_its_preview(name: str) -> None:
    with pytest.raises(BadPicture, match=r"unsupported format \(raw photograph"):
        decode(RAW[name])


@pytest.mark.parametrize(
    "tags", [{}, {"t254": (4, 1)}, {"t330": (4, 8)}, {"t254": (4, 0), "t330": (4, 8)}]
)
def test_overviews_and_pictures_with_overviews_are_pictures(
    tags: dict[str, tuple[int, object]],
) -> None:
    assert sniff(tiff(**tags)) == "TIFF"


@pytest.mark.parametrize("length", range(8, 24))
def test_a_head_that_ends_anywhere_is_no_error(length: int) -> None:
    assert sniff(RAW["NEF"][:length]) == "TIFF"


def test_a_pointer_of_git_lfs_is_named() -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9040\n"
    assert "git lfs pull" in guess(pointer)
    with pytest.raises(BadPicture, match=r"not a picture .*Git LFS pointer"):
        decode(pointer)
