"""What the names of folders and files say: which are splits, which are no pictures of their own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_EXACT = (
    (re.compile(r"train(ing)?(set)?"), "train"),
    (re.compile(r"(val|valid|validation|dev)(set)?"), "val"),
    (re.compile(r"test(ing)?(set)?"), "test"),
)
_PLAIN = (
    r"(images?|imgs?|img|pics?|pictures?|photos?|data|dataset|datasets|sets?|splits?|folder|files?)"
)
_PLAIN_WORD = re.compile(rf"{_PLAIN}|jpe?gs?|pngs?|part|dir|the|of|for|and")
_NEAR = tuple(
    (re.compile(rf"{_PLAIN}?({words}){_PLAIN}?"), part)
    for words, part in (
        ("train|training|trn", "train"),
        ("val|valid|validation|dev", "val"),
        ("test|testing|tst|holdout|heldout", "test"),
    )
)
_FOLD = re.compile(r"(folds?|kfold|cv|splits?|parts?|batch|sets?|subsets?|partition|chunk|shard)")

Group = dict[str, list[str]]
"""Names of folders by the split that they say: train, val or test."""


def part_of(name: str) -> str | None:
    """The split that a name means, as a whole: ``train``, ``Test_Set``, ``validation``."""
    plain = re.sub(r"[-_ ]", "", name.lower())
    return next((part for pattern, part in _EXACT if pattern.fullmatch(plain)), None)


def is_plain(name: str) -> bool:
    """Whether a name says no more than that pictures are in it: ``images``, ``data``."""
    return all(_PLAIN_WORD.fullmatch(word) for word in _words(name))


def groups(names: Iterable[str]) -> dict[tuple[str, ...], Group]:
    """The names that have a split's in them, by the words that they have besides.

    ``seg_train`` and ``seg_test`` are one group, ``train_images``, ``Test`` and ``2_val`` another.
    Where a split has names that mean it as a whole, others are left out.
    """
    found: dict[tuple[str, ...], Group] = {}
    for name in names:
        near = _near(name)
        if near is not None:
            part, besides = near
            found.setdefault(besides, {}).setdefault(part, []).append(name)
    for group in found.values():
        for part, members in group.items():
            group[part] = [name for name in members if part_of(name)] or members
    return found


def is_complete(group: Mapping[str, list[str]]) -> bool:
    """Whether a group has names for training and for scoring."""
    return "train" in group and len(group) > 1


def has_splits(names: Iterable[str]) -> bool:
    """Whether folders beside each other are splits by their names."""
    return any(is_complete(group) for group in groups(names).values())


def is_fold(name: str) -> bool:
    """Whether a name is that of one of several equal shares: ``fold_1``, ``Split 2``."""
    words = _words(name)
    kinds = [word for word in words if not word.isdigit()]
    return len(words) > len(kinds) > 0 and all(_FOLD.fullmatch(word) for word in kinds)


def _near(name: str) -> tuple[str, tuple[str, ...]] | None:
    """The one split that a name has in it, and its other words; numbers are none."""
    whole = part_of(name)
    if whole is not None:
        return whole, ()
    parts, besides = [], []
    for word in _words(name):
        part = next((part for pattern, part in _NEAR if pattern.fullmatch(word)), None)
        if part is not None:
            parts.append(part)
        elif not word.isdigit() and not _PLAIN_WORD.fullmatch(word):
            besides.append(word)
    return (parts[0], tuple(besides)) if len(parts) == 1 else None


def _words(name: str) -> list[str]:
    """The words of a name: ``TrainImages2``, ``train-images_2`` and ``train images 2`` alike."""
    return [
        word.lower() for word in re.findall(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+|\d+", name) if word.strip()
    ]


# --- files and folders that are no pictures ------------------------------------------------------

_SYSTEM = frozenset(
    {
        *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "lost+found", "lost.dir"),
        *("$recycle.bin", "recycler", "system volume information", "msocache"),
        *("@eadir", "#recycle", "#snapshot", "@tmp", "@sharebin"),  # Synology
        *("@recycle", "@recently-snapshot", "@transcode"),  # QNAP
        *("~snapshot", "network trash folder", "temporary items", "thevolumesettingsfolder"),
    }
)
_FOUND = re.compile(r"found\.\d{3}")

EXTENSIONS = frozenset(
    ".jpg .jpeg .jpe .jfif .jif .pjpeg .mpo .png .apng .gif .bmp .dib .webp .tif .tiff "  # noqa: SIM905 - it is read as one line
    ".avif .avifs .heic .heics .heif .heifs .hif .jp2 .j2k .jpx .jxl .psd .ico .ppm .pgm .pbm "
    ".pnm .tga .dds .exr".split()
)
"""Extensions of pictures, whatever the file holds: a broken or unsupported one is reported."""

TABLES = frozenset({".csv", ".tsv", ".tab", ".txt", ".jsonl", ".ndjson", ".json"})
"""Extensions of tables that name pictures."""

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
"""How a text begins that names something elsewhere, and no file."""

RAW = frozenset(
    ".dng .nef .nrw .cr2 .cr3 .crw .arw .srf .sr2 .orf .rw2 .rwl .raf .pef .ptx .srw .3fr .fff "  # noqa: SIM905 - it is read as one line
    ".iiq .erf .kdc .dcr .k25 .mef .mos .mrw .x3f .gpr .raw .cap .eip".split()
)
"""Extensions of photographs that are not developed yet."""
_BESIDE = frozenset(
    ".ovr .thm .lrv .aux .msk .bak .back .backup .old .orig .original .tmp .temp .part .partial "  # noqa: SIM905 - it is read as one line
    ".crdownload .download .swp .swo .sav .save .copy .rej .pp3 .xmp .dop .lnk .url".split()
)
"""Extensions of files that lie beside a picture: overviews, thumbnails, backups, parts."""


def is_system(name: str) -> bool:
    """Whether a file or folder is hidden, or the system's or a network drive's own."""
    lower = name.lower()
    return name[0] == "." or lower in _SYSTEM or _FOUND.fullmatch(lower) is not None


def is_beside(name: str, extension: str) -> bool:
    """Whether a file lies beside a picture, or is a raw photograph, whatever its content."""
    return (
        extension in RAW
        or extension in _BESIDE
        or extension.endswith(("~", "_original", "_bak", "_backup", "_orig", "_old"))
        or name.endswith("~")
    )
