"""Charts: PNG bytes from plain values, whatever the names of the classes.

No figure depends on the importing program: settings are the defaults plus :data:`STYLE`, inside
``rc_context``; pyplot is never imported. Class and file names go through :func:`label`; characters
that neither the bundled font nor DejaVu Sans can draw become ``[U+1F426]`` instead of a warning.
Every function takes ``missing``, a list to which those characters are added, each once.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from fieldmark.fit.state import EpochRecord
from fieldmark.names import shown
from fieldmark.pictures.picture import U8
from fieldmark.scoring.metrics import Bin, wilson

Records = Sequence[EpochRecord]
Panel = Literal["both", "accuracy", "loss"]

FONT = Path(__file__).with_name("fonts") / "FieldmarkSans.ttf"
FAMILIES = ("Fieldmark Sans SC", "DejaVu Sans")
DPI = 110
INK, MUTED, LINE = "#1d2b2a", "#5d6b69", "#d9dedb"
RIGHT, WRONG, TRAIN = "#0b6e63", "#c2501d", "#8a9a97"
RUN_COLOURS = (
    "#0b6e63", "#c2501d", "#3557a5", "#a8731a", "#8a3f8f", "#4d7d22", "#b02a4c", "#1c8fb0",
)  # fmt: skip
STYLE: Any = {
    "font.family": list(FAMILIES),
    "font.size": 11,
    "text.parse_math": False,  # a class may be called $\frac{
    "text.color": INK,
    "figure.facecolor": "white",
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e9ecea",
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 2.0,
}


# --- text ------------------------------------------------------------------------------------


def label(text: str, *, width: int = 24, missing: list[str] | None = None) -> str:
    """Prepare a name for drawing: one line, no markup, at most about ``width`` columns wide.

    Control characters, invisible ones and broken Unicode are written as escapes, characters that no
    font has as their code points, and a name that is too long loses its middle.
    """
    signs: list[str] = []
    base = ""
    for char in unicodedata.normalize("NFC", text):
        signs.append(_sign(char, base, missing))
        if not _extends(char):
            base = char if signs[-1] == char else ""
    widths = [columns(sign) for sign in signs]
    if sum(widths) <= width:
        return "".join(signs)
    head, used = 0, 1
    while used + widths[head] <= 1 + width // 2:
        used += widths[head]
        head += 1
    tail = len(signs)
    while tail > head and used + widths[tail - 1] <= width:
        used += widths[tail - 1]
        tail -= 1
    return "".join(signs[:head]) + "…" + "".join(signs[tail:])


def columns(text: str) -> int:
    """Width in terminal columns: 2 for a Chinese character, 0 for a separate accent."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def _sign(char: str, base: str, missing: list[str] | None) -> str:
    """Return a character as it is drawn: itself, an escape, or its code point in brackets.

    An accent is drawn with its ``base``, by one font: shaping finds no glyph when two share them.
    """
    kind = unicodedata.category(char)
    if shown(char) != char:
        return shown(char)
    if kind in ("Cn", "Co") or (kind == "Cf" and char not in _JOINERS):
        return char.encode("unicode_escape").decode()
    needed = {ord(char), ord(base)} if _extends(char) and base else {ord(char)}
    if (base or not _extends(char)) and any(needed <= points for points in _drawable()):
        return char
    if char in _JOINERS or "\ufe00" <= char <= "\ufe0f":
        return ""  # they only choose between forms of their neighbours
    if missing is not None and char not in missing:
        missing.append(char)
    return f"[U+{ord(char):04X}]"


def _extends(char: str) -> bool:
    """Whether a character belongs to the one before: an accent, or a half-width voicing mark."""
    return unicodedata.category(char)[0] == "M" or char in "\uff9e\uff9f"


_JOINERS = "\u200c\u200d"
"""Joiners, which some scripts need between letters and which are harmless; other format characters
are not."""


def _pair(true: str, predicted: str) -> str:
    """Write ``true → predicted`` in that order also where a name runs from right to left."""
    mark = "\u200e" if _is_rtl(true) or _is_rtl(predicted) else ""
    return f"{mark}{true} {mark}→{mark} {predicted}{mark}"


def _is_rtl(text: str) -> bool:
    return any(unicodedata.bidirectional(char) in ("R", "AL") for char in text)


@functools.cache
def _add_font() -> None:
    """Register the bundled font with matplotlib, unless it is registered already."""
    if FAMILIES[0] not in font_manager.fontManager.get_font_names():
        font_manager.fontManager.addfont(FONT)


@functools.cache
def _drawable() -> tuple[frozenset[int], ...]:
    """Collect the code points that each of the two fonts has."""
    _add_font()
    paths = [str(font_manager.findfont(family)) for family in FAMILIES]
    return tuple(frozenset(FT2Font(path).get_charmap()) for path in paths)


# --- the frame every figure shares -----------------------------------------------------------


@contextlib.contextmanager
def _style() -> Iterator[None]:
    """Use our settings in the block, whatever the program or a matplotlibrc file has set."""
    _add_font()
    with mpl.rc_context(), warnings.catch_warnings():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        # label() leaves no such glyph; a shaping engine that composes one must not stop a run.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing")
        yield


def _png(figure: Figure) -> bytes:
    """Encode a figure: the same bytes for the same figure, without date and version."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _finite(value: object) -> float:
    """Return a number to draw, or NaN (a gap) for one so large that axes would overflow."""
    number = float(value) if isinstance(value, int | float) else math.nan
    return number if abs(number) < 1e30 else math.nan


def _percent(value: float, _position: object = None) -> str:
    return f"{100 * value:.4g} %"


def _say(axes: Axes, text: str) -> None:
    """Write a sentence in place of a chart."""
    axes.set_axis_off()
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=MUTED)


# --- learning curves -------------------------------------------------------------------------


def curves(
    runs: Sequence[tuple[str, Records]],
    *,
    panel: Panel = "both",
    missing: list[str] | None = None,
) -> bytes:
    """Draw accuracy and loss by epoch, training and validation, with the best epoch marked.

    Several runs are laid over one another, a colour each. ``panel`` draws one of the two alone,
    for pages that stack them on a narrow screen.
    """
    panels = ("accuracy", "loss") if panel == "both" else (panel,)
    with _style():
        legend_rows = len(runs) if len(runs) > 1 else 0
        size = (4.7 * len(panels), 3.5 + 0.24 * legend_rows)
        figure = Figure(figsize=size, layout="constrained")
        every = figure.subplots(1, len(panels), squeeze=False)[0]
        names = [label(name, width=44, missing=missing) for name, _ in runs]
        for axes, kind in zip(every, panels, strict=True):
            _curve_panel(axes, kind, [records for _, records in runs])
        if len(runs) > 1:
            _legend_below(figure, every[0], names)
        return _png(figure)


def convergence(
    models: Sequence[tuple[str, Sequence[Records]]],
    *,
    panel: Panel = "both",
    missing: list[str] | None = None,
) -> bytes:
    """Draw learning curves of several models, a colour each, trained with several seeds.

    The thick line is the mean over the seeds, up to the last epoch that all of them have; the thin
    lines are the single seeds.
    """
    panels = ("accuracy", "loss") if panel == "both" else (panel,)
    with _style():
        size = (4.7 * len(panels), 3.5 + 0.24 * len(models))
        figure = Figure(figsize=size, layout="constrained")
        every = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, kind in zip(every, panels, strict=True):
            _convergence_panel(axes, kind, [runs for _, runs in models])
        names = [label(name, width=44, missing=missing) for name, _ in models]
        _legend_below(figure, every[0], names)
        return _png(figure)


def _convergence_panel(axes: Axes, kind: str, models: Sequence[Sequence[Records]]) -> None:
    if not any(records for runs in models for records in runs):
        _say(axes, "no epoch is finished yet")
        return
    for index, runs in enumerate(models):
        for part, dashed in (("val", False), ("train", True)):
            lines = [[_finite(getattr(r, f"{part}_{kind}")) for r in records] for records in runs]
            style: Any = {"color": _colour(index), "linestyle": "--" if dashed else "-"}
            shared = min(map(len, lines))
            first = 0 if runs[0] and runs[0][0].epoch == 0 else 1  # 0 is a probe
            mean = np.mean([line[:shared] for line in lines], axis=0)
            axes.plot(
                range(first, first + shared),
                mean,
                **style,
                linewidth=1.3 if dashed else 2.0,
                alpha=0.7 if dashed else 1.0,
                marker="o" if shared < 3 else None,
            )
            if len(lines) > 1 and not dashed:  # thin training lines as well would hide the rest
                for line in lines:
                    epochs = range(first, first + len(line))
                    axes.plot(epochs, line, **style, linewidth=0.8, alpha=0.4)
    axes.set_title(f"{kind.capitalize()}  (solid validation, dashed training)", fontsize=10.5)
    _epoch_axes(axes, kind)


def _legend_below(figure: Figure, axes: Axes, names: Sequence[str]) -> None:
    """Write the names under the figure, one a line, each with its colour."""
    handles = [axes.plot([], [], color=_colour(i))[0] for i in range(len(names))]
    legend = figure.legend(handles, [""] * len(names), loc="outside lower left", ncols=1)
    # Given afterwards: matplotlib drops legend entries that begin with an underscore.
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)


def _colour(index: int) -> str:
    return RUN_COLOURS[index % len(RUN_COLOURS)]


def _curve_panel(axes: Axes, kind: str, runs: Sequence[Records]) -> None:
    if not any(runs):
        _say(axes, "no epoch is finished yet")
        return
    several = len(runs) > 1
    for index, records in enumerate(runs):
        epochs = [r.epoch for r in records]
        few = "o" if len(records) < 3 else None  # a line needs two points to be seen
        colour = _colour(index)
        for part, dashed in (("train", True), ("val", False)):
            axes.plot(
                epochs,
                [_finite(getattr(r, f"{part}_{kind}")) for r in records],
                color=colour if several or not dashed else TRAIN,
                linestyle="--" if dashed else "-",
                linewidth=1.3 if dashed else 2.0,
                alpha=0.7 if dashed and several else 1.0,
                marker=few,
                label="training" if dashed else "validation",
            )
        _mark_best(axes, kind, records, colour=colour, alone=not several)
    if several:
        axes.set_title(f"{kind.capitalize()}  (solid validation, dashed training)", fontsize=10.5)
    else:
        axes.set_title(kind.capitalize())
        axes.legend(loc="lower right" if kind == "accuracy" else "upper right")
    _epoch_axes(axes, kind)


def _epoch_axes(axes: Axes, kind: str) -> None:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))
    if kind == "accuracy":
        axes.yaxis.set_major_formatter(FuncFormatter(_percent))
        axes.set_ylim(top=min(1.005, axes.get_ylim()[1]), bottom=max(-0.005, axes.get_ylim()[0]))


def _mark_best(axes: Axes, kind: str, records: Records, *, colour: str, alone: bool) -> None:
    """Draw a ring around the best epoch's validation point: the last that was best so far."""
    best = [r for r in records if r.best]
    if not best:
        return
    epoch, value = best[-1].epoch, _finite(getattr(best[-1], f"val_{kind}"))
    if alone:
        axes.axvline(epoch, color=LINE, linewidth=1, zorder=0.5)
    ring: Any = {"marker": "o", "markersize": 9, "markerfacecolor": "white", "linestyle": "none"}
    figure_text = _percent(value) if kind == "accuracy" else f"{value:.3g}"
    axes.plot(
        [epoch],
        [value],
        **ring,
        markeredgecolor=colour,
        markeredgewidth=2,
        label=f"best: {f'epoch {epoch}' if epoch else 'probe'}, {figure_text}" if alone else None,
    )


# --- confusion -------------------------------------------------------------------------------


def confusion(
    class_names: Sequence[str],
    cells: Sequence[Sequence[int]],
    *,
    limit: int = 30,
    missing: list[str] | None = None,
) -> bytes:
    """Draw the confusion matrix with counts; above ``limit`` classes only the commonest mistakes.

    ``cells`` are ``[true, predicted, count]``. Colour is the share of the true class's pictures:
    green on the diagonal, where they belong, orange elsewhere.
    """
    k = len(class_names)
    for true, predicted, _ in cells:
        if not (0 <= true < k and 0 <= predicted < k):
            raise ValueError(f"confusion cell {true}, {predicted} among {k} classes")
    with _style():
        if k <= limit:
            names = [label(name, width=16, missing=missing) for name in class_names]
            return _matrix(names, cells)
        return _top_confusions(class_names, cells, missing)


def _matrix(names: Sequence[str], cells: Sequence[Sequence[int]]) -> bytes:
    k = len(names)
    counts = np.zeros((k, k), dtype=np.int64)
    for true, predicted, count in cells:
        counts[true, predicted] = count
    cell = min(0.95, max(0.36, 4.2 / k))
    text = max(map(columns, names), default=1) * 0.085
    lying = text <= cell * 0.95
    below = 0.0 if lying else text * (0.75 if k <= 15 else 1.0)
    size_inches = (max(3.8, text + k * cell + 0.6), max(2.6, k * cell + below + 1.0))
    figure = Figure(figsize=size_inches, layout="constrained")
    axes = figure.subplots()
    axes.imshow(_shares(counts), interpolation="nearest", aspect="equal")
    size = max(6.5, min(12.0, cell * 20))
    for true, predicted in np.argwhere(counts):
        count = int(counts[true, predicted])
        share = count / counts[true].sum()
        dark = share > (0.45 if true == predicted else 0.35)
        colour = "white" if dark else INK
        axes.text(
            predicted, true, _count(count), ha="center", va="center", fontsize=size, color=colour
        )
    axes.grid(visible=False)
    axes.set_xticks(np.arange(k + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(k + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=1.5)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    font = 11 if k <= 15 else 9
    turn: Any = (
        {}
        if lying
        else {"rotation": 45 if k <= 15 else 90, "rotation_mode": "anchor", "ha": "right"}
    )
    if turn.get("rotation") == 90:
        turn["va"] = "center"
    axes.set_xticks(range(k), names, fontsize=font, color=INK, **turn)
    axes.set_yticks(range(k), names, fontsize=font, color=INK)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"Confusion matrix, n = {counts.sum():,}")
    return _png(figure)


def _shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Compute colours [K, K, 3] of the row shares; a square root makes rare mistakes visible."""
    rows = counts.sum(axis=1, keepdims=True)
    shares = counts / np.maximum(rows, 1)
    ink = np.where(np.eye(len(counts), dtype=bool)[:, :, None], _rgb(RIGHT), _rgb(WRONG))
    strength = np.where(np.eye(len(counts), dtype=bool), shares, np.sqrt(shares))[:, :, None]
    paper = np.where(rows[:, :, None] > 0, _rgb("#f5f7f6"), _rgb("#e4e7e6"))
    return np.asarray(paper * (1 - strength) + ink * strength)


def _rgb(colour: str) -> NDArray[np.float64]:
    return np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def _count(count: int) -> str:
    return str(count) if count < 10_000 else f"{count / 1000:.0f}k"


def _top_confusions(
    class_names: Sequence[str], cells: Sequence[Sequence[int]], missing: list[str] | None
) -> bytes:
    total = sum(count for _, _, count in cells)
    rows: dict[int, int] = {}
    for true, _, count in cells:
        rows[true] = rows.get(true, 0) + count
    wrong = [(true, predicted, count) for true, predicted, count in cells if true != predicted]
    top = sorted(wrong, key=lambda cell: (-cell[2], cell[0], cell[1]))[:20]
    figure = Figure(figsize=(4.9, 1.3 + 0.33 * max(len(top), 2)), layout="constrained")
    axes = figure.subplots()
    if not top:
        _say(axes, f"no mistakes among {total:,} pictures of {len(class_names)} classes")
        return _png(figure)
    most = top[0][2]
    axes.barh(range(len(top)), [count for _, _, count in top], color=WRONG, height=0.62)
    for row, (true, predicted, count) in enumerate(top):
        name = label(class_names[predicted], width=14, missing=missing)
        text = _pair("", name).strip() + f"   {count:,} of {rows[true]:,}"
        axes.text(count + most * 0.02, row, text, va="center", fontsize=10.5)
    names = [label(class_names[true], width=14, missing=missing) for true, _, _ in top]
    axes.set_yticks(range(len(top)), names, color=INK)
    axes.set_ylim(len(top) - 0.4, -0.6)
    axes.set_xlim(0, most * 2.8)
    axes.set_xticks([])
    axes.grid(visible=False)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(length=0)
    mistakes = sum(count for _, _, count in wrong)
    figure.suptitle(
        f"The {len(top)} commonest mistakes among {len(class_names)} classes\n"
        f"true → predicted; {mistakes:,} of {total:,} pictures were mistaken",
        x=0.02,
        ha="left",
        fontsize=11,
    )
    return _png(figure)


# --- calibration -----------------------------------------------------------------------------


def calibration(bins: Sequence[Bin], *, missing: list[str] | None = None) -> bytes:
    """Draw the reliability diagram: how often predictions of each confidence were right.

    It has 95 % intervals, and below it the number of pictures for each point.
    """
    del missing  # no names in this figure
    with _style():
        figure = Figure(figsize=(4.7, 4.6), layout="constrained")
        if not bins:
            _say(figure.subplots(), "no pictures")
            return _png(figure)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        confidence = np.array([b.confidence for b in bins])
        accuracy = np.array([b.accuracy for b in bins])
        numbers = [b.n for b in bins]
        ends = [wilson(round(a * n), n) for a, n in zip(accuracy, numbers, strict=True)]
        above.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        above.annotate("perfect", (0.06, 0.09), color=MUTED, fontsize=10)
        above.vlines(confidence, *zip(*ends, strict=True), color=RIGHT, alpha=0.35, linewidth=5)
        above.plot(confidence, accuracy, color=RIGHT, marker="o", markersize=6, linewidth=1.4)
        above.set_title("Right, by confidence")
        above.set_ylabel("accuracy")
        above.set_xlim(0, 1.01)
        above.set_ylim(0, 1.02)
        below.bar(confidence, numbers, width=0.035, color=TRAIN)
        below.set_ylabel("pictures")
        below.set_xlabel("confidence")
        below.grid(visible=False, axis="x")
        below.yaxis.set_major_locator(MaxNLocator(nbins=2, integer=True))
        for axis in (above.xaxis, above.yaxis):
            axis.set_major_formatter(FuncFormatter(_percent))
        return _png(figure)


# --- before training -------------------------------------------------------------------------


def preview(
    before: Sequence[U8],
    after: Sequence[U8],
    titles: Sequence[str],
    *,
    heading: str,
    missing: list[str] | None = None,
) -> bytes:
    """Draw training pictures as they are and, under each, as the network sees them.

    Shape:
        before and after: [H, W, 3] each, of any size; tiny ones are enlarged without blurring.
    """
    count = min(len(before), len(after), len(titles))
    across = max(1, min(4, count))
    down = max(1, math.ceil(count / across))
    lines = heading.splitlines() or [""]
    with _style():
        size = (1.55 * across + 0.5, 3.3 * down + 0.5 + 0.22 * len(lines))
        figure = Figure(figsize=(max(size[0], 4.2), size[1]), layout="constrained")
        figure.suptitle(
            "\n".join(label(line, width=400, missing=missing) for line in lines),
            x=0.02, ha="left", fontsize=10.5, linespacing=1.5, wrap=True,
        )  # fmt: skip
        grid = figure.subplots(2 * down, across, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for i in range(count):
            row, column = 2 * (i // across), i % across
            _picture(grid[row, column], before[i])
            _picture(grid[row + 1, column], after[i])
            name = label(titles[i], width=16, missing=missing)
            grid[row, column].set_title(name, fontsize=10.5, loc="center", pad=4)
            if column == 0:
                for offset, word in enumerate(("as it is", "as trained")):
                    grid[row + offset, 0].text(
                        -0.06, 0.5, word, transform=grid[row + offset, 0].transAxes,
                        rotation=90, ha="right", va="center", fontsize=9.5, color=MUTED,
                    )  # fmt: skip
        return _png(figure)


def predictions(
    images: Sequence[U8],
    answers: Sequence[tuple[str, str, float]],
    *,
    heading: str,
    missing: list[str] | None = None,
) -> bytes:
    """Draw pictures with their predictions; a wrong one is coloured, and names the true class.

    Shape:
        images [H, W, 3] each, of any size; answers are true class, predicted class, probability.
    """
    count = min(len(images), len(answers))
    across = max(1, min(4, count))
    down = max(1, math.ceil(count / across))
    with _style():
        figure = Figure(figsize=(1.75 * across + 0.4, 2.25 * down + 0.5), layout="constrained")
        figure.suptitle(
            label(heading, width=400, missing=missing), x=0.02, ha="left", fontsize=10.5, wrap=True
        )
        grid = figure.subplots(down, across, squeeze=False)
        for axes in grid.flat:
            axes.set_axis_off()
        for axes, image, (true, predicted, prob) in zip(grid.flat, images, answers, strict=False):
            _picture(axes, image)
            name = label(predicted, width=16, missing=missing)
            truth = label(true, width=14, missing=missing)
            right = true == predicted
            axes.set_title(
                f"{name} {prob:.0%}" + ("\n" if right else f"\nnot {truth}"),
                fontsize=9.5, loc="center", pad=4, color=RIGHT if right else WRONG,
            )  # fmt: skip
        return _png(figure)


def _picture(axes: Axes, image: U8) -> None:
    tiny = max(image.shape[:2]) <= 96
    axes.imshow(image, interpolation="nearest" if tiny else "antialiased", aspect="equal")


def tuning(
    points: Sequence[tuple[float, float, str]],
    *,
    metric: str,
    chosen: int | None,
    default: bool = True,
    missing: list[str] | None = None,
) -> bytes:
    """Draw a search: the best complete trial so far against minutes, and every trial.

    ``points`` are ``(minutes, value, state)`` in order; with ``default`` the first is the default.
    """
    with _style():
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.subplots()
        complete = [(at, value) for at, value, state in points if state == "complete"]
        other = [(at, _finite(v)) for at, v, state in points if state != "complete"]
        best = np.minimum if metric.endswith("loss") else np.maximum
        if complete:
            x, y = np.array(complete, dtype=float).T
            axes.step(x, best.accumulate(y), where="post", color=RIGHT, label="best so far")
            axes.plot(x, y, "o", color=TRAIN, markersize=4, label="complete trial")
            if default:
                axes.axhline(points[0][1], color=LINE, linewidth=1.5, label="the default")
            # What ended early must not squeeze those that matter: it is drawn at the edge.
            room = max(float(np.ptp(y)), 0.01) * 0.4
            axes.set_ylim(float(y.min()) - room, float(y.max()) + room)
        if other:
            x, y = np.array(other, dtype=float).T
            y = np.clip(y, *axes.get_ylim())
            axes.plot(x, y, "x", color=WRONG, markersize=4, label="ended early", clip_on=False)
        if chosen is not None:
            at, value, _ = points[chosen]
            ring: dict[str, Any] = {"color": RIGHT, "markersize": 9, "fillstyle": "none"}
            axes.plot([at], [value], "o", label="the run", **ring)
        axes.set_xlabel("minutes")
        axes.set_title(label(metric, missing=missing))
        if default:
            axes.legend(loc="upper right" if metric.endswith("loss") else "lower right")
        else:
            axes.legend(loc="best")
        return _png(figure)


def lr_finder(
    lrs: Sequence[float],
    losses: Sequence[float],
    suggestion: float | None,
    *,
    missing: list[str] | None = None,
) -> bytes:
    """Draw the smoothed loss by learning rate, with the suggested rate marked."""
    del missing  # no names in this figure
    points = [
        (float(lr), _finite(loss))
        for lr, loss in zip(lrs, losses, strict=True)
        if lr > 0 and math.isfinite(_finite(loss))
    ]
    with _style():
        figure = Figure(figsize=(5.2, 3.6), layout="constrained")
        axes = figure.subplots()
        if not points:
            _say(axes, "the loss was never a number")
            return _png(figure)
        x, raw = np.array(points).T
        smooth = _smoothed(raw)
        axes.plot(x, raw, color=TRAIN, linewidth=0.8, alpha=0.7, label="each step")
        axes.plot(x, smooth, color=RIGHT, label="smoothed")
        if suggestion is not None and suggestion > 0:
            axes.axvline(
                suggestion, color=WRONG, linewidth=1.5, label=f"suggested: {suggestion:.2g}"
            )
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=7))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        # The loss explodes at the end, as it should; the rest of the curve must stay visible.
        low, start = float(smooth.min()), float(smooth[0])
        room = max(start - low, 0.05 * abs(start), 1e-6)
        axes.set_ylim(low - 0.15 * room, start + 0.6 * room)
        axes.set_xlabel("learning rate")
        axes.set_title("Loss by learning rate")
        axes.legend(loc="upper left")
        return _png(figure)


def _smoothed(values: NDArray[np.float64], *, keep: float = 0.8) -> NDArray[np.float64]:
    """Compute an exponential moving average whose first values are not pulled towards 0."""
    average, out = 0.0, []
    for step, value in enumerate(values, start=1):
        average = keep * average + (1 - keep) * float(value)
        out.append(average / (1 - keep**step))
    return np.array(out)
