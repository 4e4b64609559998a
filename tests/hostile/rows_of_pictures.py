"""Picture files that are not what they should be, given to `predict` one at a time, and a folder
of them given to `train`."""

from __future__ import annotations

import functools
import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from tests import making as made
from tests.hostile.place import Answer, Place, Row

SCENE = made.scene()


def jpeg(**options: object) -> bytes:
    return made.encode(SCENE, "JPEG", quality=90, **options)


def png() -> bytes:
    return made.encode(SCENE, "PNG")


def _of(name: str, content: Callable[[], bytes], place: Place) -> list[str]:
    file = place.given / name
    file.write_bytes(content())
    return place.predict(file)


def bad(item: str, text: str, name: str, content: Callable[[], bytes], *reason: str) -> Row:
    """A file that is answered with a reason."""
    return Row(item, text, functools.partial(_of, name, content), 0, (name, *reason))


def good(item: str, text: str, name: str, content: Callable[[], bytes]) -> Row:
    """A file that is answered with a class."""
    return Row(
        *(item, text, functools.partial(_of, name, content), 0, (name,)),
        "answered with a class",
        lambda _place, answer: "cannot be used" not in answer.text,
    )


# --- bytes ---------------------------------------------------------------------------------------


def with_chunk(name: bytes, body: bytes, *, again: int = 1) -> bytes:
    """A PNG with a further chunk, so many times, before its pixels."""
    whole = png()
    at = whole.index(b"IDAT") - 4
    return whole[:at] + made.chunk(name, body) * again + whole[at:]


def wrong_crc() -> bytes:
    whole = bytearray(png())
    at = whole.index(b"IDAT")
    whole[at + 4 + int.from_bytes(whole[at - 4 : at], "big")] ^= 255
    return bytes(whole)


def broken_idat() -> bytes:
    header = struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0)
    body = b"\x78\x9c" + bytes(range(60))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        made.chunk(n, b) for n, b in ((b"IHDR", header), (b"IDAT", body), (b"IEND", b""))
    )


def text_bomb() -> bytes:
    return with_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2**28), 9))


def profile_bomb() -> bytes:
    return with_chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(2**28), 9))


def wide_gif() -> bytes:
    whole = bytearray(made.encode(SCENE, "GIF"))
    whole[6:10] = b"\xff\xff\xff\xff"
    return bytes(whole)


def gif_of_many() -> bytes:
    stream = io.BytesIO()
    frames = [Image.new("P", (4, 4), k % 7) for k in range(3000)]
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    return stream.getvalue()


def tiff_in_a_circle() -> bytes:
    whole = bytearray(made.tiff_pages(1))
    whole[-4:] = struct.pack("<I", 12)
    return bytes(whole)


def tiff_strips_elsewhere() -> bytes:
    whole = made.tiff(np.zeros((16, 16), np.uint8), kind=1)
    return whole.replace(struct.pack("<HHII", 273, 4, 1, 8), struct.pack("<HHII", 273, 4, 1, 2**31))


def tiff_huge_tag() -> bytes:
    whole = made.tiff(np.zeros((16, 16), np.uint8), kind=1)
    return whole.replace(
        struct.pack("<HHII", 339, 3, 1, 1), struct.pack("<HHII", 339, 3, 2**32 - 1, 8)
    )


def scans() -> bytes:
    """A progressive JPEG whose last scan comes 3000 times: each costs a pass over the picture."""
    whole = made.encode(made.scene(1500, 2000), "JPEG", progressive=True, quality=30)
    last = whole.rindex(b"\xff\xda")
    return whole[:-2] + whole[last:-2] * 3000 + whole[-2:]


def exif_of_noise() -> bytes:
    return jpeg(exif=b"Exif\0\0" + np.random.default_rng(0).bytes(60_000))


def exif_of(orientation: int) -> bytes:
    return jpeg(exif=made.exif(orientation))


def mode(kind: str, format_: str, **options: object) -> bytes:
    image = Image.fromarray(SCENE)
    image = image.convert("L").convert("I;16") if kind == "I;16" else image.convert(kind)
    return made.encode(image, format_, **options)


def alpha(kind: str) -> bytes:
    image = Image.fromarray(SCENE).convert(kind)
    return made.encode(image, "PNG")


def float_tiff(value: float) -> bytes:
    samples = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16).copy()
    samples[3, 3] = value
    return made.tiff(samples, kind=3)


def bmp(width: int, height: int) -> bytes:
    whole = bytearray(made.encode(SCENE, "BMP"))
    whole[18:26] = struct.pack("<ii", width, height)
    return bytes(whole)


def webp_of_16383() -> bytes:
    whole = bytearray(made.encode(SCENE, "WEBP", lossless=True))
    whole[21:25] = struct.pack("<I", 0x0FFFFFFF)
    return bytes(whole)


def animation() -> bytes:
    stream = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), (k, k, k)) for k in range(5)]
    frames[0].save(stream, "WEBP", save_all=True, append_images=frames[1:])
    return stream.getvalue()


def strip(width: int, height: int) -> bytes:
    return made.encode(np.zeros((height, width, 3), np.uint8), "PNG")


HEADERS = {
    "PSD": b"8BPS\0\1" + bytes(40),
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "PDF": b"%PDF-1.7\n",
    "FITS": b"SIMPLE  =                    T" + b" " * 2850,
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40),
    "DDS": b"DDS " + bytes(124),
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
    "ICO": b"\0\0\1\0\1\0" + bytes(40),
    "PPM": b"P6 99999 99999 255\n",
    "JPEG XL": b"\xff\x0a" + bytes(40),
}


def heic() -> bytes:
    return struct.pack(">I", 24) + b"ftypheic\0\0\0\0heicmif1" + bytes(100)


def damaged(how: str) -> bytes:
    """A JPEG between whose good beginning and good end something happened."""
    rng = np.random.default_rng(3)
    cells = Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8))
    whole = made.encode(cells.resize((320, 240), Image.Resampling.BICUBIC), "JPEG", quality=90)
    start = whole.rfind(b"\xff\xda") + 20
    at, size = start + (len(whole) - start) // 2, 512
    rest = whole[at + size :]
    return {
        "a sector of zeros in a JPEG": whole[:at] + bytes(size) + rest,
        "a sector of noise in a JPEG": whole[:at] + rng.bytes(size) + rest,
        "bytes missing in a JPEG": whole[:at] + rest,
        "a JPEG cut, with an end put behind": whole[:at] + b"\xff\xd9",
        "a JPEG of zeros from its half": whole[:at] + bytes(len(whole) - at - 2) + b"\xff\xd9",
        "two halves of a JPEG": whole[:at] + whole[start:],
        "a JPEG with odd bytes before its end": whole[:-2] + bytes(range(1, 40)) + whole[-2:],
        "a JPEG that lacks its last blocks": whole[:-60] + b"\xff\xd9",
    }[how]


def png_without_rows() -> bytes:
    rows = b"".join(b"\0" + line.tobytes() for line in SCENE[:16])
    return made.png(48, 32, depth=8, color=2, rows=rows)


def twelve_bit_jpeg() -> bytes:
    whole = made.encode(Image.fromarray(SCENE).convert("L"), "JPEG")
    at = whole.index(b"\xff\xc0")
    return whole[: at + 1] + b"\xc1" + whole[at + 2 : at + 4] + b"\x0c" + whole[at + 5 :]


def bands(number: int, **options: Any) -> bytes:
    ramp = np.linspace(0, 65535, 48, dtype=np.uint16)
    samples = np.repeat(np.tile(ramp, (32, 1))[:, :, None], number, axis=2)
    return made.bands_tiff(samples, **options)


# --- folders -------------------------------------------------------------------------------------


def endless(place: Place) -> list[str]:
    """A link to a file of the system whose reader waits for what comes next."""
    file = place.given / "kernel.jpg"
    file.symlink_to("/proc/kmsg")
    return place.predict(file)


def waiting(place: Place) -> list[str]:
    """The same in a folder, beside a FIFO, with and without the name of a picture."""
    place.classes(cat=9, dog=9)
    for name in ("kernel.jpg", "kernel"):
        (place.data / "cat" / name).symlink_to("/proc/kmsg")
    for name in ("fifo.jpg", "fifo"):
        os.mkfifo(place.data / "dog" / name)
    return place.train()


def sparse(place: Place) -> list[str]:
    file = place.given / "sparse.png"
    with file.open("wb") as stream:
        stream.truncate(2**40)
    return place.predict(file)


def closed(place: Place) -> list[str]:
    """Permissions do not bind an administrator: the file is one that no one can open."""
    place.classes(cat=9, dog=9)
    (place.data / "cat" / "locked.png").symlink_to("/proc/1/mem")
    return place.look()


def _share(good_ones: int, bad_ones: int, place: Place) -> None:
    half = good_ones // 2
    place.classes(cat=half, dog=good_ones - half)
    for number in range(bad_ones):
        (place.data / "cat" / f"bad {number}.png").write_bytes(png()[: 30 + number])


def all_bad(place: Place) -> list[str]:
    for label in ("cat", "dog"):
        (place.data / label).mkdir()
        for number in range(5):
            (place.data / label / f"{number}.png").write_bytes(b"no picture")
    return place.train()


def third_bad(place: Place) -> list[str]:
    _share(28, 12, place)
    return place.train()


def few_bad(place: Place) -> list[str]:
    _share(40, 2, place)
    return place.train()


def counted(place: Place, _: Answer) -> bool:
    left_out = [item["file"] for item in place.new("data.json")["bad"]]
    table = (place.runs / "new" / "bad_files.csv").read_text(encoding="utf-8-sig").splitlines()
    scored = place.new("evaluation.json")["parts"]
    parts = place.new("data.json")["parts"]
    return (
        left_out == ["cat/bad 0.png", "cat/bad 1.png"]
        and len(table) == 3
        and all(scored[part]["n"] == len(parts[part]) for part in scored)
        and sum(map(len, parts.values())) == 40
    )


def bad_in_test(place: Place) -> list[str]:
    run = place.model()
    other = place.classes(place.given / "other", start=100, cat=4, dog=4)
    (other / "cat" / "cut.png").write_bytes(png()[:60])
    return ["evaluate", str(run), "--data", str(other)]


def alike_everywhere(place: Place) -> list[str]:
    """One picture, stored in each orientation; all answers must be those of the first."""
    folder = place.given / "turned"
    folder.mkdir()
    upright = made.scene(48, 48)
    for turn in range(1, 9):
        stored = made.stored_for(upright, turn)
        file = folder / f"{turn}.png"
        Image.fromarray(stored).save(file, exif=made.exif(turn))
    return [*place.predict(folder), "--json"]


def same_answers(_: Place, answer: Answer) -> bool:
    probs = [row["prob"] for row in json.loads(answer.out)]
    return len(probs) == 8 and max(probs) - min(probs) < 1e-6


ROWS = (
    bad("19", "an empty file", "none.jpg", bytes, "empty file"),
    bad("19", "a text called .jpg", "text.jpg", lambda: b"my dog\n" * 9, "not a picture (text)"),
    bad(
        "19",
        "a page of an error called .png",
        "page.png",
        lambda: b"<!DOCTYPE html><p>404",
        "HTML page",
    ),
    bad("19", "zeros, as after a crash", "zeros.png", lambda: bytes(5000), "nothing but zeros"),
    bad("20", "half of a JPEG", "half.jpg", lambda: jpeg()[: len(jpeg()) // 2], "truncated"),
    good("20", "a JPEG without its end marker", "open.jpg", lambda: jpeg()[:-2]),
    good("20", "a JPEG with 10 kB behind its end", "more.jpg", lambda: jpeg() + b"x" * 10_000),
    good("20", "a zip file behind a JPEG", "zip.jpg", lambda: jpeg() + b"PK\3\4" + bytes(999)),
    bad("21", "a PNG with a wrong checksum of its pixels", "crc.png", wrong_crc, "broken"),
    bad("21", "a PNG with broken compression", "idat.png", broken_idat, "cannot be used"),
    bad(
        "21",
        "a PNG of 0 x 0",
        "nothing.png",
        lambda: made.png(0, 0, depth=8, color=2, rows=b""),
        "cannot be used",
    ),
    bad(
        "21",
        "a PNG that claims 65535 x 65535 in 100 bytes",
        "claims.png",
        lambda: made.png(65535, 65535, depth=8, color=2, rows=b"x"),
        "too many pixels",
    ),
    bad(
        "22",
        "a whole PNG of 20000 x 20000 in few kB",
        "bomb.png",
        lambda: made.bilevel_bomb(20000),
        "too many pixels",
        "--max-pixels",
    ),
    bad("22", "a GIF with a screen of 65535 x 65535", "wide.gif", wide_gif, "cannot be used"),
    good("22", "a TIFF of 100,000 pages", "pages.tif", lambda: made.tiff_pages(100_000)),
    bad("22", "a PNG with 256 MB of text in its zTXt", "text.png", text_bomb, "text.png"),
    bad("22", "a PNG with a profile of 256 MB", "icc.png", profile_bomb, "icc.png"),
    good("23", "a PNG called .jpg", "really.jpg", png),
    good("23", "a WebP called .jpg", "webp.jpg", lambda: made.encode(SCENE, "WEBP")),
    bad("23", "a damaged HEIC called .JPG", "IMG_0001.JPG", heic, "cannot be used"),
    *(
        bad(
            "24",
            f"{kind} called .png",
            "other.png",
            functools.partial(bytes, head),
            "unsupported format",
            kind,
        )
        for kind, head in HEADERS.items()
    ),
    Row(
        "25",
        "one picture in the eight EXIF orientations",
        alike_everywhere,
        0,
        (),
        "the same probabilities for all",
        same_answers,
    ),
    good("25", "EXIF that is 60 kB of noise", "noise.jpg", exif_of_noise),
    good("25", "EXIF orientation 99", "99.jpg", functools.partial(exif_of, 99)),
    good("26", "a CMYK JPEG", "cmyk.jpg", functools.partial(mode, "CMYK", "JPEG")),
    good("26", "a CMYK TIFF", "cmyk.tif", functools.partial(mode, "CMYK", "TIFF")),
    good("26", "a grey PNG of 16 bits", "grey16.png", functools.partial(mode, "I;16", "PNG")),
    good(
        "26",
        "a TIFF of 16 bits",
        "deep.tif",
        lambda: made.tiff(np.full((9, 9), 40_000, np.uint16), kind=1),
    ),
    good("26", "a PNG of 1 bit", "one.png", functools.partial(mode, "1", "PNG")),
    good(
        "26",
        "a palette with a transparent colour",
        "p.png",
        lambda: mode("P", "PNG", transparency=3),
    ),
    good("26", "grey with transparency", "la.png", functools.partial(alpha, "LA")),
    good("26", "colour with transparency", "rgba.png", functools.partial(alpha, "RGBA")),
    good("26", "a TIFF of floats", "float.tif", functools.partial(float_tiff, 0.5)),
    bad(
        "26",
        "a TIFF of floats with NaN",
        "nan.tif",
        functools.partial(float_tiff, float("nan")),
        "not finite",
    ),
    good("27", "a picture of 1 x 1", "dot.png", functools.partial(strip, 1, 1)),
    good("27", "a picture of 1 x 10000", "tall.png", functools.partial(strip, 1, 10_000)),
    good("27", "a picture of 10000 x 1", "long.png", functools.partial(strip, 10_000, 1)),
    good("27", "a picture of 3 x 3", "three.png", functools.partial(strip, 3, 3)),
    good(
        "28", "a broken colour profile", "profile.jpg", lambda: jpeg(icc_profile=b"no profile" * 50)
    ),
    Row("29", "a file that cannot be opened", closed, 0, ("left out", "1")),
    Row(
        "30",
        "no picture is good",
        all_bad,
        3,
        ("10 of 10", "not a picture 10", "no picture is left"),
    ),
    Row(
        "30",
        "30 % are bad",
        third_bad,
        3,
        ("12 of 40", "truncated", "--on-bad exclude", "bad 0.png"),
    ),
    Row(
        "30",
        "2 of 42 are bad",
        few_bad,
        0,
        ("left out because they cannot be used: 2",),
        "both in bad_files.csv, n counts the others",
        counted,
    ),
    Row(
        "30",
        "a bad one among pictures to score",
        bad_in_test,
        0,
        ("left out because they cannot be used: 1", "n = 8"),
    ),
    *(
        bad("20", how, "hurt.jpg", functools.partial(damaged, how), "cannot be used: damaged")
        for how in (
            "a sector of zeros in a JPEG",
            "a sector of noise in a JPEG",
            "bytes missing in a JPEG",
            "a JPEG cut, with an end put behind",
            "a JPEG of zeros from its half",
            "two halves of a JPEG",
        )
    ),
    *(
        Row(
            *("20", how, functools.partial(_of, "hurt.jpg", functools.partial(damaged, how)), 0),
            ("hurt.jpg", word),
            "answered with a class, and a note",
            lambda _place, answer: "cannot be used" not in answer.text,
        )
        for how, word in (
            ("a JPEG with odd bytes before its end", "no pixel lost"),
            ("a JPEG that lacks its last blocks", "of the picture lost"),
        )
    ),
    bad(
        "21",
        "a PNG whose data end after half of its rows",
        "rows.png",
        png_without_rows,
        "truncated",
    ),
    bad(
        "24", "a JPEG of 12 bits", "12.jpg", twelve_bit_jpeg, "unsupported format (JPEG of 12 bits)"
    ),
    bad("24", "DICOM", "scan.dcm", lambda: bytes(128) + b"DICM" + bytes(99), "DICOM; convert it"),
    good("26", "a TIFF whose white is 0, of 16 bits", "x.tif", lambda: bands(1, photometric=0)),
    good(
        "26",
        "a TIFF of three planes of 16 bits",
        "p.tif",
        lambda: bands(3, photometric=2, planes=True),
    ),
    Row(
        *("26", "a TIFF of 13 bands", functools.partial(_of, "b.tif", lambda: bands(13)), 0),
        ("b.tif", "1 of 13 bands used"),
        "answered with a class, and a note",
        lambda _place, answer: "cannot be used" not in answer.text,
    ),
    bad(
        "26",
        "a TIFF of a camera's raw data",
        "r.tif",
        lambda: bands(1, photometric=32803),
        "raw photograph",
    ),
    Row(
        "29",
        "a link to a file of the system that never ends",
        endless,
        0,
        ("kernel.jpg", "be used"),
    ),
    Row("29", "such links and FIFOs in a class", waiting, 0, ("left out", "2")),
    Row("+", "a file of 1 TB without content", sparse, 0, ("sparse.png", "at most 256 MB")),
    bad("+", "a JPEG of 3000 progressive scans", "scans.jpg", scans, "scans.jpg"),
    good("+", "a GIF of 3000 frames", "frames.gif", gif_of_many),
    good("+", "an animated WebP", "moving.webp", animation),
    good("+", "a TIFF whose pages go round in a circle", "circle.tif", tiff_in_a_circle),
    bad(
        "+",
        "a TIFF with its pixels beyond its end",
        "beyond.tif",
        tiff_strips_elsewhere,
        "cannot be used",
    ),
    bad("+", "a TIFF with a tag of 4,294,967,295 values", "tag.tif", tiff_huge_tag, "tag.tif"),
    good(
        "+",
        "a PNG with 20,000 empty chunks",
        "chunks.png",
        lambda: with_chunk(b"teSt", b"", again=20_000),
    ),
    bad(
        "+",
        "a BMP of -2147483648 rows",
        "negative.bmp",
        functools.partial(bmp, 9, -(2**31)),
        "cannot be used",
    ),
    bad(
        "+",
        "a BMP of 2147483647 columns",
        "wide.bmp",
        functools.partial(bmp, 2**31 - 1, 9),
        "cannot be used",
    ),
    bad("+", "a WebP that claims 16384 x 16384", "claims.webp", webp_of_16383, "cannot be used"),
    bad("+", "the first 20 bytes of a PNG", "start.png", lambda: png()[:20], "cannot be used"),
    bad(
        "+", "two PNG signatures and no more", "twice.png", lambda: png()[:8] * 2, "cannot be used"
    ),
    good(
        "+",
        "a picture as large as a pixel limit allows in one direction",
        "edge.png",
        functools.partial(strip, 60_000, 2),
    ),
)
