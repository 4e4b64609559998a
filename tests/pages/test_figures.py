from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from fieldmark.fit.state import EpochRecord
from fieldmark.pages import figures
from fieldmark.scoring.metrics import Bin

pytestmark = pytest.mark.drawn

HOSTILE = [
    "<script>alert(1)</script>", "$\\frac{", "_hidden", "שלום", "سلام دنیا", "😀🐦", "\udcff",
    "a" * 255, "new\nline\ttab\0", "猫", "戀", "𠮷", "고양이", "हिन्दी", "\u202eevil", "e\u0301", "",
    "👩\u200d👩\u200d👧", "\ue000", "\U000e0041", "ｶﾀｶﾅ １２", "{\\n}", "%s", "−→…",
]  # fmt: skip


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """No warning, not even one that figures.py would swallow."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.fixture(autouse=True)
def _nothing_swallowed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("fieldmark.pages.figures.warnings.filterwarnings", lambda *_, **__: None)
    before, pyplot = dict(mpl.rcParams), "matplotlib.pyplot" in sys.modules
    with silent():
        yield
    assert dict(mpl.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == pyplot  # which Keras imports in other tests


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        assert "Software" not in image.info
        return np.asarray(image.convert("RGB"))


EPOCH = EpochRecord(
    epoch=1, step=40, lr=0.05, train_loss=2.0, train_accuracy=0.9, val_loss=2.1, val_accuracy=0.5,
    val_macro_f1=0.5, seconds=13.4, images_per_second=811.0, data_wait=0.01, best=True,
)  # fmt: skip


def records(epochs: int, *, top: float = 0.9) -> list[EpochRecord]:
    return [
        dataclasses.replace(
            EPOCH,
            epoch=e,
            train_loss=2 / e,
            train_accuracy=top,
            val_loss=2.1 / e,
            val_accuracy=top - 0.5 / e,
        )
        for e in range(1, epochs + 1)
    ]


# --- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("cat", "cat"),
        ("猫咪", "猫咪"),
        ("שלום", "שלום"),
        ("$\\frac{", "$\\frac{"),
        ("new\nline", "new\\nline"),
        ("\udcff", "\\xff"),
        ("a\u202eb", "a\\u202eb"),
        ("a\u200bb", "a\\u200bb"),
        ("🐦", "[U+1F426]"),
        ("e\u0301", "é"),
        ("猫\u0301", "猫[U+0301]"),
        ("❤\ufe0f", "❤\ufe0f"),
        ("", ""),
    ],
)
def test_a_name_is_drawn_as(name: str, drawn: str) -> None:
    assert figures.label(name) == drawn


def test_a_long_name_loses_its_middle() -> None:
    assert figures.label("a" * 10 + "b" * 10, width=9) == "aaaa…bbbb"
    assert figures.label("猫" * 20, width=9) == "猫猫…猫猫"
    for name in HOSTILE:
        for width in (4, 9, 16):
            assert figures.columns(figures.label(name, width=width)) <= width
    assert figures.label("🐦" * 9, width=21) == "[U+1F426]…[U+1F426]"  # never half an escape


def test_missing_characters_are_told_once() -> None:
    missing: list[str] = []
    for name in ("🐦🐦", "고🐦", "ok"):
        figures.label(name, missing=missing)
    assert missing == ["🐦", "고"]


def test_every_common_chinese_character_can_be_drawn() -> None:
    common = bytes(
        byte for lead in range(0xB0, 0xF8) for trail in range(0xA1, 0xFF) for byte in (lead, trail)
    ).decode("gb2312", errors="ignore")  # fmt: skip
    traditional = "貓狗鳥龍龜鬱戀麵體灣憂"
    missing: list[str] = []
    assert figures.label(common + traditional, width=10**6, missing=missing)
    assert missing == [] and len(common) > 6700


def test_what_a_label_lets_through_has_glyphs() -> None:
    """Any mix of what is drawable, and any name at all, renders without 'Glyph missing'."""
    from matplotlib.figure import Figure

    draw = random.Random(0)
    drawable = [chr(c) for c in sorted(frozenset().union(*figures._drawable())) if c > 31]
    anything = [chr(draw.randrange(0x20, 0x11000)) for _ in range(300)]
    texts = ["".join(draw.choices(pool, k=12)) for pool in (drawable, anything) for _ in range(60)]
    with figures._style():
        figure = Figure(figsize=(4, 4))
        for text in [*texts, *HOSTILE]:
            figure.text(0.1, 0.1, figures.label(text, width=60))
        assert figures._png(figure)


def test_names_from_right_to_left_keep_the_order_of_a_pair() -> None:
    assert figures._pair("cat", "dog") == "cat → dog"
    assert figures._pair("שלום", "سلام").replace("\u200e", "") == "שלום → سلام"
    assert "\u200e→\u200e" in figures._pair("שלום", "سلام")


# --- figures ---------------------------------------------------------------------------------

CELLS = [[i, (i + j) % len(HOSTILE), 9 - 4 * j] for i in range(1, len(HOSTILE)) for j in range(3)]
BINS = [Bin(confidence=i / 10, accuracy=max(0.0, i / 10 - 0.05), n=i) for i in range(1, 11)]
GREY = np.full((8, 8, 3), 90, dtype=np.uint8)
DRAWN: dict[str, Callable[[], bytes]] = {
    "curves": lambda: figures.curves([("a", records(9))]),
    "one epoch": lambda: figures.curves([("a", records(1))]),
    "no epoch": lambda: figures.curves([("a", [])]),
    "runs": lambda: figures.curves([(name, records(4)) for name in HOSTILE[:5]]),
    "models": lambda: figures.convergence(
        [(name, [records(4), records(2)]) for name in HOSTILE[:9]]
    ),
    "no model": lambda: figures.convergence([("a", [[]]), ("b", [[], records(1)])]),
    "nothing": lambda: figures.convergence([("a", [[]])], panel="loss"),
    "matrix": lambda: figures.confusion(HOSTILE, CELLS[:30]),
    "top": lambda: figures.confusion(HOSTILE, CELLS, limit=10),
    "perfect": lambda: figures.confusion(["猫"] * 40, [[0, 0, 5]]),
    "one class": lambda: figures.confusion(["x"], [[0, 0, 123456]]),
    "empty": lambda: figures.confusion(["a", "b"], []),
    "calibration": lambda: figures.calibration(BINS),
    "no bins": lambda: figures.calibration([]),
    "preview": lambda: figures.preview([GREY] * 5, [GREY] * 5, HOSTILE[:5], heading="float32\n$x$"),
    "predictions": lambda: figures.predictions(
        [GREY] * 5, [(name, HOSTILE[0], 0.5) for name in HOSTILE[:5]], heading="$x$"
    ),
    "no preview": lambda: figures.preview([], [], [], heading=""),
    "lr": lambda: figures.lr_finder([1e-4, 1e-3, 1e-2, 0.1, 1], [2, 1.5, 1, 3, math.inf], 0.01),
    "no lr": lambda: figures.lr_finder([1e-4], [math.nan], None),
}


@pytest.mark.parametrize("name", list(DRAWN))
def test_every_figure_is_a_png(name: str) -> None:
    picture = pixels(DRAWN[name]())
    assert min(picture.shape[:2]) >= 200
    assert picture.std() > 1 or name == "no preview"


@pytest.mark.parametrize("name", ["curves", "matrix", "preview"])
def test_the_same_figure_has_the_same_bytes(name: str) -> None:
    first = DRAWN[name]()
    with mpl.rc_context({"font.size": 20, "text.usetex": False, "axes.facecolor": "red"}):
        assert DRAWN[name]() == first  # whatever the importing program has set


def test_gaps_and_infinities_leave_the_rest() -> None:
    lines = records(6)
    lines[2] = dataclasses.replace(
        lines[2], val_loss=math.nan, val_accuracy=math.nan, train_loss=1e300
    )
    lines[5] = dataclasses.replace(lines[5], val_accuracy=math.nan)
    pixels(figures.curves([("a", lines)]))
    none = dict.fromkeys(("train_loss", "train_accuracy", "val_loss", "val_accuracy"), math.nan)
    nothing = [dataclasses.replace(EPOCH, best=False, **none)]
    pixels(figures.curves([("a", nothing)]))


def test_one_epoch_shows_as_a_point() -> None:
    """A line through one point would draw nothing."""
    line = dataclasses.replace(EPOCH, train_accuracy=math.nan, best=False)
    picture = pixels(figures.curves([("a", [line])], panel="accuracy"))
    green = np.abs(picture.astype(int) - (0x0B, 0x6E, 0x63)).sum(axis=2) < 30
    legend = 60  # pixels of the line in the legend
    assert green.sum() > legend + 20


def test_models_are_drawn_as_the_mean_over_their_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tuple[list[float], list[float], float]] = []
    real = Axes.plot

    def plot(axes: Any, x: Any, y: Any, **style: Any) -> Any:
        drawn.append((list(x), list(y), style.get("linewidth", 0)))
        return real(axes, x, y, **style)

    monkeypatch.setattr(Axes, "plot", plot)
    early = records(2, top=0.7)
    figures.convergence([("a", [records(4, top=0.9), early]), ("b", [early])], panel="accuracy")
    thick = [(x, y) for x, y, width in drawn if width == 2.0]
    thin = [(x, len(y)) for x, y, width in drawn if width == 0.8]
    assert thick[0][0] == thick[1][0] == [1, 2]  # as far as both seeds went
    assert thick[0][1] == pytest.approx([0.3, 0.55])
    assert thick[1][1] == pytest.approx([0.2, 0.45])
    assert thin == [([1, 2, 3, 4], 4), ([1, 2], 2)]  # one seed needs no line of its own


def test_the_matrix_is_coloured_by_row_share() -> None:
    shares = figures._shares(np.array([[90, 10], [0, 0]]))
    green, orange, empty = shares[0, 0], shares[0, 1], shares[1]
    assert green[1] > green[0]
    assert orange[0] > orange[2]
    assert np.allclose(empty, figures._rgb("#e4e7e6"))


def test_a_cell_outside_the_matrix_is_refused() -> None:
    for cell in ([0, 2, 1], [-1, 0, 1]):
        with pytest.raises(ValueError, match="among 2 classes"):
            figures.confusion(["a", "b"], [cell])


def test_tiny_pictures_are_enlarged_without_blur() -> None:
    checkers = np.zeros((4, 4, 3), dtype=np.uint8)
    checkers[::2, ::2] = (255, 0, 0)
    picture = pixels(figures.preview([checkers], [checkers], ["x"], heading="h"))
    reddish = (picture[:, :, 0] > 40) & (picture[:, :, 1] < 10) & (picture[:, :, 2] < 10)
    assert (picture[reddish][:, 0] == 255).mean() > 0.97


def test_figures_tell_what_they_could_not_draw() -> None:
    missing: list[str] = []
    figures.confusion(["🐦", "고"], [[0, 0, 1]], missing=missing)
    figures.preview([GREY], [GREY], ["🐦🦉"], heading="한", missing=missing)
    assert missing == ["🐦", "고", "한", "🦉"]


def test_the_font_keeps_its_licence_and_not_its_name() -> None:
    from fontTools.ttLib import TTFont

    folder = Path(figures.FONT).parent
    with TTFont(figures.FONT) as font:
        names = {record.nameID: str(record) for record in font["name"].names}
    assert "Adobe" in names[0] and "SIL Open Font License" in names[13]
    assert all("Source" not in names[i] and "Noto" not in names[i] for i in (1, 3, 4, 6))
    assert "SIL OPEN FONT LICENSE" in (folder / "OFL.txt").read_text(encoding="utf-8")
    assert figures.FONT.stat().st_size < 8_000_000
