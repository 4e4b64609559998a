"""Make ``pages/fonts/FieldmarkSans.ttf``, the font of every figure: 猫 is never a box.

    pip install 'fieldmark[font]'
    python scripts/make_font.py

It is a subset of Noto Sans SC (SIL Open Font License 1.1, from the wheel zhplot 1.0.0) with the
ideographs of Unicode's basic block (all of GB2312, GBK and Big5), Latin, Greek, Cyrillic, kana and
full-width forms. "Source" is a reserved font name of the original, so ours is named differently.
The same input gives the same bytes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import shutil
from pathlib import Path

from fontTools import subset
from fontTools.ttLib import TTFont

FONTS = Path(__file__).resolve().parents[1] / "src" / "fieldmark" / "fonts"
FAMILY = "Fieldmark Sans SC"
SOURCE_SHA256 = "5cf8b2a0576d5680284ab03a7a8219499d59bbe981a79bb3dc0031f251c39736"
"""Of zhplot 1.0.0's NotoSansSC-Regular.ttf, version 2.004."""

RANGES = (
    (0x0020, 0x007E),  # ASCII
    (0x00A0, 0x017F),  # Latin-1, Latin Extended-A
    (0x0370, 0x052F),  # Greek, Cyrillic
    (0x2010, 0x2044),  # dashes, quotation marks, the ellipsis
    (0x2070, 0x209F),  # superscripts, subscripts
    (0x20A0, 0x22FF),  # currency, letter-like signs, numbers, arrows, mathematics with its minus
    (0x25A0, 0x26FF),  # shapes
    (0x3000, 0x30FF),  # CJK punctuation, kana
    (0x4E00, 0x9FFF),  # every unified ideograph of the basic block: names and places use rare ones
    (0xFF00, 0xFFEF),  # full-width and half-width forms
)
KEPT_NAMES = (0, 3, 5, 7, 8, 9, 10, 11, 13, 14)
"""Copyright, identifier, version, trademark, makers, and the licence with its address."""


def zhplot_font() -> Path:
    """Find the original without importing zhplot, which would change matplotlib's settings."""
    for file in importlib.metadata.files("zhplot") or []:
        if file.name == "NotoSansSC-Regular.ttf":
            return Path(str(file.locate()))
    raise SystemExit("zhplot 1.0.0 is not installed; pip install 'fieldmark[font]'")


def wanted() -> set[int]:
    """The code points to keep, where the original has them."""
    return {point for low, high in RANGES for point in range(low, high + 1)}


def rename(font: TTFont) -> None:
    """Give the font our name, keep who made it and under which licence."""
    names = font["name"]
    names.names = [record for record in names.names if record.nameID in KEPT_NAMES]
    ours = {
        1: FAMILY,
        2: "Regular",
        3: "2.004;Fieldmark;FieldmarkSansSC-Regular",
        4: f"{FAMILY} Regular",
        6: "FieldmarkSansSC-Regular",
        10: "A subset of Noto Sans SC 2.004 with another name; see scripts/make_font.py.",
    }
    for name_id, text in ours.items():
        names.setName(text, name_id, 3, 1, 0x409)


def main() -> None:
    """Write the subset and its licence."""
    source = zhplot_font()
    if (digest := hashlib.sha256(source.read_bytes()).hexdigest()) != SOURCE_SHA256:
        raise SystemExit(f"{source} has SHA-256 {digest}, expected {SOURCE_SHA256}")
    font = TTFont(source, recalcTimestamp=False)
    options = subset.Options(
        layout_features=[],
        hinting=False,
        name_IDs=["*"],
        notdef_outline=True,
        recalc_timestamp=False,
    )
    options.drop_tables += ["BASE", "GDEF", "GPOS", "GSUB", "STAT", "vhea", "vmtx"]
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=wanted() & set(font.getBestCmap()))
    subsetter.subset(font)
    rename(font)
    FONTS.mkdir(parents=True, exist_ok=True)
    target = FONTS / "FieldmarkSans.ttf"
    font.save(target, reorderTables=True)
    shutil.copyfile(source.with_name("OFL.txt"), FONTS / "OFL.txt")
    data = target.read_bytes()
    print(f"{target}: {len(font.getBestCmap())} signs, {len(data)} bytes")
    print(f"SHA-256 {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    main()
