"""Run directories in, one self-contained page out: how good the classifier is, and where not.

The page needs no network, no script and no other file, and whatever the classes and files are
called is text in it: autoescape is on, a content security policy forbids everything but the page's
own style and pictures, and control characters are written as escapes.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from fieldmark.errors import ConfigError, RunError
from fieldmark.files.writing import write_atomic
from fieldmark.pages import figures
from fieldmark.pages.html import (
    duration,
    embedded,
    number,
    percent,
    plain,
    png_size,
    templates,
    whole,
)
from fieldmark.runs.directory import RunDirectory
from fieldmark.settings.config import PARTS, TrainConfig

_SHOWN_CLASSES = 20
_SHOWN_PAIRS = 10
_SHOWN_BAD = 50
_IMAGE_TYPES = ("image/png", "image/jpeg", "image/webp")
_BROKEN = (KeyError, TypeError, ValueError, IndexError, AttributeError, jinja2.UndefinedError)
_Dict = dict[str, Any]


def report(runs: Sequence[Path], *, out: Path | None = None) -> Path:
    """Write ``report.html`` for one run, or one page that compares several; return its path.

    It goes to ``out``, else into the run, or for several runs into the current folder.

    Raises:
        RunError: if a folder is not a run or its files are damaged.
        ResourceError: if the page cannot be written.
    """
    if not runs:
        raise ConfigError("report needs at least one run directory")
    opened = [RunDirectory.open(Path(run)) for run in runs]
    missing: list[str] = []
    pages = [_guarded(run, missing) for run in opened]
    if out is None:
        out = opened[0].path / "report.html" if len(opened) == 1 else Path("report.html")
    elif out.is_dir():
        out = out / "report.html"
    write_atomic(out, _render(pages, missing).encode())
    return out


def write_figures(run: Path) -> None:
    """Write ``curves.png`` and, once the run is evaluated, ``confusion.png`` into the run.

    Raises:
        RunError: if the folder is not a run or its files are damaged.
    """
    directory = RunDirectory.open(run)
    try:
        records = directory.records()
        if _has_curve(records) or not records:
            directory.write("curves.png", figures.curves([(directory.name, records)]))
        scores = _scores(directory)
        if scores:
            names = [str(row["name"]) for row in scores[0]["per_class"]]
            directory.write("confusion.png", figures.confusion(names, scores[0]["confusion"]))
    except _BROKEN as error:
        raise _damaged(directory, error) from None


def _has_curve(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether there is more to draw than the point of a probe."""
    return any(int(record["epoch"]) > 0 for record in records)


def _guarded(run: RunDirectory, missing: list[str]) -> _Dict:
    try:
        return _page(run, missing)
    except _BROKEN as error:
        raise _damaged(run, error) from None


def _damaged(run: RunDirectory, error: Exception) -> RunError:
    return RunError(
        f"{run.path} has a file with unexpected contents ({type(error).__name__}: {error}); "
        "`fieldmark evaluate` writes its scores again"
    )


# --- one run ---------------------------------------------------------------------------------


def _page(run: RunDirectory, missing: list[str]) -> _Dict:
    """Everything the template says about a run."""
    config = run.read_json("config.json")
    data = run.read_json("data.json") if run.has("data.json") else None
    model = run.read_json("model.json") if run.has("model.json") else {}
    environment = run.read_json("environment.json") if run.has("environment.json") else {}
    records = run.records()
    scores = _scores(run)
    seconds = sum(float(r.get("seconds") or 0) for r in records)
    selected = model.get("selected") or {}
    page: _Dict = {
        "name": run.name,
        "title": str((data or {}).get("name") or run.name),
        "fingerprint": (data or {}).get("fingerprint"),
        "model": str(model.get("model") or config.get("model", "")),
        "num_params": model.get("num_params"),
        "records": records,
        "epochs": sum(int(r["epoch"]) > 0 for r in records),
        "best": _best(selected),
        "time": duration(seconds),
        "device": str(environment.get("device_name") or environment.get("device") or ""),
        "selected": _selected(selected, tested=_val_is_test(data or {})),
        "scores": scores,
        "main": scores[0] if scores else None,
        "problems": [
            *_problems(run, scores=scores, records=records, config=config),
            *(f"In training: {text}." for text in _incidents(run)),
        ],
        "curves": _curves([(run.name, records)], missing) if _has_curve(records) else [],
        "gallery": _gallery(run),
        "data": _data(data) if data else None,
        "config": _settings(config),
        "environment": [(k, plain(v)) for k, v in environment.items() if k != "format"],
    }
    page["facts"] = _facts(page, model=model, records=records)
    if scores:
        page.update(_mistakes(scores[0], missing))
    return page


def _scores(run: RunDirectory) -> list[_Dict]:
    """The evaluated parts, test first."""
    if not run.has("evaluation.json"):
        return []
    parts = run.read_json("evaluation.json")["parts"]
    titles = {"test": "Test accuracy", "val": "Validation accuracy", "train": "Training accuracy"}
    found = []
    for part, title in titles.items():
        if part in parts and parts[part]["n"] > 0:
            name = "validation" if part == "val" else part
            found.append({"top5": None, **parts[part], "part": part, "name": name, "title": title})
    return found


def _problems(
    run: RunDirectory, *, scores: list[_Dict], records: list[_Dict], config: _Dict
) -> list[str]:
    planned = int(config.get("epochs", 0))
    if not scores:
        done = f"{len(records)} of {planned} epochs are finished"
        return [
            (
                f"This run has not been evaluated yet: {done}, and there is no score. "
                f"Continue it with: fieldmark resume {run.name}"
            )
        ]
    if scores[0]["part"] != "test":
        return [
            (
                "There is no test part. The validation accuracy is that of the epoch it selected, "
                "so it is a little better than new pictures will show."
            )
        ]
    return []


def _incidents(run: RunDirectory) -> list[str]:
    """What went wrong and was mended."""
    found = run.read_json("incidents.json") if run.has("incidents.json") else {}
    return [str(text) for text in found.get("incidents", [])]


def _best(selected: Mapping[str, Any]) -> str:
    if not selected:
        return "–"
    if selected.get("metric") == "last":
        return f"{selected.get('epoch')} (the last)"
    epoch = selected.get("epoch")
    value = selected.get("value")
    is_share = "accuracy" in str(selected.get("metric")) or "f1" in str(selected.get("metric"))
    text = percent(value) if is_share else number(value)
    return f"{'0, the probe' if epoch == 0 else epoch} ({selected.get('metric')} {text})"


def _val_is_test(data: Mapping[str, Any]) -> bool:
    """Whether the test part validated too (a split with a val share of 0)."""
    parts = data.get("parts") or {}
    return bool(parts.get("test")) and parts.get("val") == parts.get("test")


def _selected(selected: Mapping[str, Any], *, tested: bool) -> str:
    if not selected:
        return "No best epoch is recorded yet."
    kept = f"The weights kept are those of epoch {_best(selected)}."
    if selected.get("metric") == "last":
        return kept
    if tested:
        return f"{kept} The test part validated, so it chose this epoch: its figures flatter."
    return f"{kept} The test part selected nothing."


def _curves(runs: list[tuple[str, list[_Dict]]], missing: list[str]) -> list[_Dict]:
    """Two figures rather than one, so that a narrow screen can stack them."""
    alt = "by epoch for training and validation"
    return [
        embedded(figures.curves(runs, panel="accuracy", missing=missing), f"Accuracy {alt}"),
        embedded(figures.curves(runs, panel="loss", missing=missing), f"Loss {alt}"),
    ]


def _mistakes(scores: _Dict, missing: list[str]) -> _Dict:
    """What depends on the scores of one part: pairs, matrix, classes, calibration."""
    names = [str(row["name"]) for row in scores["per_class"]]
    confusion = figures.confusion(names, scores["confusion"], missing=missing)
    rows: Counter[int] = Counter()
    for true, _, count in scores["confusion"]:
        rows[true] += count
    wrong = [cell for cell in scores["confusion"] if cell[0] != cell[1]]
    top = sorted(wrong, key=lambda cell: (-cell[2], cell[0], cell[1]))[:_SHOWN_PAIRS]
    classes = sorted(
        scores["per_class"],
        key=lambda row: (row["n"] == 0, row["recall"] if row["n"] else 0.0, row["name"]),
    )
    mistakes = sum(count for _, _, count in wrong)
    alt = (
        f"Confusion matrix of {len(names)} classes"
        if len(names) <= 30
        else f"Bars of the commonest mistakes among {len(names)} classes"
    )
    return {
        "mistakes": mistakes,
        "pairs": [
            {
                "true": names[t],
                "predicted": names[p],
                "count": c,
                "n": rows[t],
                "share": c / rows[t],
            }
            for t, p, c in top
        ],
        "confusion": embedded(confusion, f"{alt}; {mistakes} of {scores['n']} pictures mistaken"),
        "confusion_title": "Confusion matrix" if len(names) <= 30 else "Commonest mistakes",
        "confusion_caption": (
            "Rows are what the pictures show, columns what was said; the stronger the colour, the "
            "larger the share of the row. Grey rows have no pictures."
            if len(names) <= 30
            else ""
        ),
        "classes": classes if len(classes) <= _SHOWN_CLASSES + 5 else classes[:_SHOWN_CLASSES],
        "more_classes": [] if len(classes) <= _SHOWN_CLASSES + 5 else classes[_SHOWN_CLASSES:],
        "calibration": embedded(
            figures.calibration(scores["bins"]), "Reliability diagram: accuracy by confidence"
        ),
    }


def _gallery(run: RunDirectory) -> _Dict | None:
    if not run.has("gallery.json"):
        return None
    gallery = run.read_json("gallery.json")
    return {
        "part": gallery.get("part", "test"),
        "mistakes": [_picture(item) for item in gallery.get("mistakes", [])],
        "correct": [_picture(item) for item in gallery.get("correct", [])],
    }


def _picture(item: Mapping[str, Any]) -> _Dict:
    """One picture; a thumbnail that is not plainly one is left out: the run may be a stranger's."""
    mime, content = item.get("mime", "image/png"), _content(item.get("thumb"))
    heat = _content(item.get("heat"))
    is_png = content.startswith(b"\x89PNG\r\n\x1a\n")
    return {
        **{key: item[key] for key in ("file", "label", "predicted", "prob", "label_prob")},
        "src": _data_url(mime, content),
        "heat": _data_url(mime, heat),
        "tiny": is_png and max(png_size(content)) <= 64,
    }


def _content(text: object) -> bytes:
    try:
        return base64.b64decode(str(text or ""), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _data_url(mime: str, content: bytes) -> str:
    good = bool(content) and mime in _IMAGE_TYPES
    return f"data:{mime};base64,{base64.b64encode(content).decode()}" if good else ""


# --- facts -----------------------------------------------------------------------------------


def _data(data: Mapping[str, Any]) -> _Dict:
    names = [str(name) for name in data["class_names"]]
    bad = data.get("bad", [])
    reasons = Counter(str(item["reason"]) for item in bad)
    return {
        "num_classes": len(names),
        "parts": [_part(part, data["counts"].get(part, []), names) for part in PARTS],
        "leaks": _leaks(data.get("parts", {})),
        "bad": bad[:_SHOWN_BAD],
        "num_bad": len(bad),
        "reasons": ", ".join(f"{reason}: {n}" for reason, n in sorted(reasons.items())),
        "notes": [str(text) for text in data.get("notes", [])],
        "warnings": [str(text) for text in data.get("warnings", [])],
    }


def _part(part: str, counts: Sequence[int], names: Sequence[str]) -> _Dict:
    if not sum(counts):
        return {"part": part, "total": 0}
    low, high = min(counts), max(counts)
    return {
        "part": part,
        "total": sum(counts),
        "smallest": names[counts.index(low)],
        "low": low,
        "largest": names[counts.index(high)],
        "high": high,
        "empty": sum(count == 0 for count in counts),
    }


def _leaks(parts: Mapping[str, Sequence[Sequence[Any]]]) -> str:
    """How many identical pictures are in two parts, from the digests in the manifest."""
    where: dict[str, set[str]] = {}
    for part, rows in parts.items():
        for row in rows:
            if len(row) > 2 and row[2]:
                where.setdefault(str(row[2]), set()).add(part)
    if not where:
        return "Whether the same picture is in two parts was not checked."
    pairs = Counter(
        " and ".join(part for part in PARTS if part in found)
        for found in where.values()
        if len(found) > 1
    )
    if not pairs:
        return "No picture is in two parts: no two files of different parts have the same content."
    listed = "; ".join(f"{n:,} in {names}" for names, n in sorted(pairs.items()))
    return f"The same picture is in several parts, which makes scores too good: {listed}."


def _facts(page: _Dict, *, model: Mapping[str, Any], records: list[_Dict]) -> list[tuple[str, str]]:
    size = (model.get("input") or {}).get("size")
    measured = [r for r in records if int(r["epoch"]) > 0] or records  # a probe is no epoch
    speeds = [r["images_per_second"] for r in measured if r.get("images_per_second")]
    facts = [
        ("model", page["model"]),
        ("parameters", whole(page["num_params"])),
        ("input", "" if size is None else f"{size} × {size}" + " pixels"),
        ("started from", str(model.get("weights") or "")),
        ("epochs finished", str(page["epochs"])),
        ("best epoch", page["best"]),
        ("time", page["time"] if records else ""),
        ("speed", f"{whole(round(sum(speeds) / len(speeds)))} pictures/s" if speeds else ""),
        ("device", page["device"]),
        ("data fingerprint", str(page["fingerprint"] or "")),
    ]
    return [(name, value) for name, value in facts if value and value != "–"]


def _settings(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    pairs = [(key, value) for key, value in config.items() if key != "format"]
    changed = [(f"• {k}", plain(v)) for k, v in pairs if defaults.get(k) != v]
    return changed + [(k, plain(v)) for k, v in pairs if defaults.get(k) == v]


# --- the page --------------------------------------------------------------------------------


def _render(pages: list[_Dict], missing: list[str]) -> str:
    several = len(pages) > 1
    parts = [{e["part"] for e in page["scores"]} for page in pages]
    compared = "test" if any("test" in found for found in parts) else "val"
    for page in pages:
        page["compared"] = next((e for e in page["scores"] if e["part"] == compared), None)
    ranked = sorted(pages, key=lambda p: -(p["compared"]["accuracy"] if p["compared"] else -1.0))
    titles = list(dict.fromkeys(page["title"] for page in pages))
    first = pages[0]
    subtitle = f"{len(pages)} runs" if several else _subtitle(first)
    overlay = _curves([(p["name"], p["records"]) for p in pages], missing) if several else []
    return (
        templates()
        .get_template("report.html.j2")
        .render(
            title=", ".join(titles),
            subtitle=subtitle,
            notes=_comparison_notes(ranked) if several else [],
            runs=pages,
            ranked=ranked,
            compared="test" if compared == "test" else "validation",
            overlay=overlay,
            undrawn=" ".join(f"{char} (U+{ord(char):04X})" for char in missing[:200]),
        )
    )


def _subtitle(page: _Dict) -> str:
    epochs = f"{page['epochs']} epoch{'' if page['epochs'] == 1 else 's'}"
    if page["records"] and page["records"][0]["epoch"] == 0:
        epochs = "linear probe" + (f", {epochs}" if page["epochs"] else "")
    parts = [page["model"], epochs, page["time"] if page["records"] else "", page["device"]]
    return " · ".join(part for part in parts if part)


def _comparison_notes(ranked: list[_Dict]) -> list[str]:
    """What a reader must know before taking the first row for the winner."""
    notes = []
    if len({page["fingerprint"] for page in ranked}) > 1:
        notes.append(
            "These runs did not see the same pictures (their data fingerprints differ): "
            "their scores cannot be compared."
        )
    scored = [page for page in ranked if page["compared"]]
    if len(scored) > 1:
        low = scored[0]["compared"]["low"]
        close = sum(page["compared"]["high"] >= low for page in scored[1:])
        if close:
            notes.append(
                f"The intervals of the first run and of {close} other{'s' if close > 1 else ''} "
                "overlap: these runs alone do not show which is better; fieldmark compare "
                "trains each with several seeds."
            )
    return notes
