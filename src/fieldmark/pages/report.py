"""Run directories in, one self-contained page out: how good the classifier is, and where not.

The page needs no network, no script and no other file, and whatever the classes and files are
called is text in it: autoescape is on, a content security policy forbids everything but the page's
own style and pictures, and control characters are written as escapes.
"""

from __future__ import annotations

import base64
import dataclasses
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fieldmark.errors import ConfigError
from fieldmark.files import typed
from fieldmark.files.writing import write_atomic
from fieldmark.fit.doctor import Finding
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
from fieldmark.runs import (
    choice,
    doctor,
    environment,
    gallery,
    history,
    incidents,
    manifest,
    scores,
)
from fieldmark.runs.directory import RunDirectory
from fieldmark.runs.gallery import Item
from fieldmark.runs.manifest import Manifest, Row
from fieldmark.runs.model import ModelInfo, Selected
from fieldmark.scoring.metrics import Scores
from fieldmark.settings.config import PARTS, TrainConfig

_SHOWN_CLASSES = 20
_SHOWN_PAIRS = 10
_SHOWN_BAD = 50
_SHOWN_COUNTS = 1000
_TITLES = {"test": "Test accuracy", "val": "Validation accuracy", "train": "Training accuracy"}
"""Headings, in the order in which splits are shown."""
_NAMES = {"test": "test", "val": "validation", "train": "train"}
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
    pages = [_page(run, missing) for run in opened]
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
    records = history.read(directory)
    if _has_curve(records) or not records:
        directory.write("curves.png", figures.curves([(directory.name, records)]))
    evaluated = _evaluated(directory)
    if evaluated:
        names = [each.name for each in evaluated[0].per_class]
        directory.write("confusion.png", figures.confusion(names, evaluated[0].confusion))


def _has_curve(records: figures.Records) -> bool:
    """Whether there is more to draw than the point of a probe."""
    return any(record.epoch > 0 for record in records)


# --- one run ---------------------------------------------------------------------------------


def _page(run: RunDirectory, missing: list[str]) -> _Dict:
    """Everything the template says about a run."""
    config = run.config()
    data = manifest.read(run) if run.has(manifest.FILE) else None
    model = _model(run)
    made_with = environment.read(run)
    records = history.read(run)
    evaluated = _evaluated(run)
    page: _Dict = {
        "name": run.name,
        "title": (data.name if data else "") or run.name,
        "fingerprint": data.fingerprint if data else None,
        "model": model.model if model else config.model,
        "num_params": model.num_params if model else None,
        "choice": (tried := choice.read(run)),
        "choice_curve": [] if tried is None else [_choice_curve(tried, missing)],
        "records": records,
        "epochs": sum(record.epoch > 0 for record in records),
        "best": _best(model.selected) if model else "–",
        "time": duration(sum(record.seconds for record in records)),
        "device": (made_with.device_name or made_with.device) if made_with else "",
        "selected": _selected(model, tested=data is not None and _val_is_test(data)),
        "scores": evaluated,
        "main": evaluated[0] if evaluated else None,
        "problems": [
            *_problems(run, evaluated=evaluated, records=records, config=config),
            *(f"In training: {text}." for text in incidents.read(run)),
        ],
        "findings": _findings(run),
        "curves": _curves([(run.name, records)], missing) if _has_curve(records) else [],
        "gallery": _gallery(run),
        "data": _data(data) if data else None,
        "config": _settings(config),
        "environment": [(k, plain(v)) for k, v in typed.plain(made_with).items()]
        if made_with
        else [],
    }
    page["facts"] = _facts(page, model=model, records=records)
    if evaluated:
        page.update(_mistakes(evaluated[0], missing))
    return page


def _model(run: RunDirectory) -> ModelInfo | None:
    """What the run's model says of itself; None before the first epoch is finished."""
    if not run.has("model.json"):
        return None
    return ModelInfo.from_json(run.read_text("model.json"), where=str(run.path / "model.json"))


def _evaluated(run: RunDirectory) -> list[Scores]:
    """The scores of each split, test first."""
    if not run.has(scores.FILE):
        return []
    parts = scores.read(run).parts
    return [parts[part] for part in _TITLES if part in parts]


def _problems(
    run: RunDirectory,
    *,
    evaluated: Sequence[Scores],
    records: figures.Records,
    config: TrainConfig,
) -> list[str]:
    if not evaluated:
        done = f"{len(records)} of {config.epochs} epochs are finished"
        return [
            (
                f"This run has not been evaluated yet: {done}, and there is no score. "
                f"Continue it with: fieldmark resume {run.name}"
            )
        ]
    if evaluated[0].part != "test":
        return [
            (
                "There is no test split. The validation accuracy is that of the epoch it selected, "
                "so it is a little better than new pictures will show."
            )
        ]
    return []


def _findings(run: RunDirectory) -> tuple[Finding, ...]:
    """What is wrong with the training; nothing where nothing is, or nobody looked."""
    found = doctor.read(run)
    return found.findings if found else ()


def _best(selected: Selected) -> str:
    if selected.metric == "last":
        return f"{selected.epoch} (the last)"
    is_share = "accuracy" in selected.metric or "f1" in selected.metric
    text = percent(selected.value) if is_share else number(selected.value)
    return f"{selected.epoch or '0, the probe'} ({selected.metric} {text})"


def _val_is_test(data: Manifest) -> bool:
    """Whether the test split validated too (a split with a val share of 0)."""
    return bool(data.parts.get("test")) and data.parts["val"] == data.parts["test"]


def _selected(model: ModelInfo | None, *, tested: bool) -> str:
    if model is None:
        return "No best epoch is recorded yet."
    kept = f"The weights kept are those of epoch {_best(model.selected)}."
    if model.selected.metric == "last":
        return kept
    if tested:
        return f"{kept} The test split validated, so it chose this epoch: its figures flatter."
    return f"{kept} The test split selected nothing."


def _curves(runs: list[tuple[str, figures.Records]], missing: list[str]) -> list[_Dict]:
    """Two figures rather than one, so that a narrow screen can stack them."""
    alt = "by epoch for training and validation"
    return [
        embedded(figures.curves(runs, panel="accuracy", missing=missing), f"Accuracy {alt}"),
        embedded(figures.curves(runs, panel="loss", missing=missing), f"Loss {alt}"),
    ]


def _choice_curve(tried: choice.Choice, missing: list[str]) -> _Dict:
    """The accuracy of what was tried against time."""
    ended = itertools.accumulate(each.seconds / 60 for each in tried.tried)
    points = [
        (minutes, each.accuracy, "ended early" if each.outcome == choice.STOPPED else "complete")
        for minutes, each in zip(ended, tried.tried, strict=True)
        if each.n
    ]
    judged = [each for each in tried.tried if each.n]
    chosen = judged.index(tried.chosen) if tried.chosen is not None else None
    figure = figures.tuning(
        points, metric="accuracy out of fold", chosen=chosen, default=False, missing=missing
    )
    return embedded(figure, "Accuracy of the candidates, out of fold, against time")


def _mistakes(evaluated: Scores, missing: list[str]) -> _Dict:
    """What depends on the scores of one split: pairs, matrix, classes, calibration."""
    names = [each.name for each in evaluated.per_class]
    confusion = figures.confusion(names, evaluated.confusion, missing=missing)
    wrong = [cell for cell in evaluated.confusion if cell[0] != cell[1]]
    top = sorted(wrong, key=lambda cell: (-cell[2], cell[0], cell[1]))[:_SHOWN_PAIRS]
    classes = sorted(
        evaluated.per_class, key=lambda each: (each.n == 0, each.recall or 0.0, each.name)
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
                "n": evaluated.per_class[t].n,
                "share": c / evaluated.per_class[t].n,
            }
            for t, p, c in top
        ],
        "confusion": embedded(confusion, f"{alt}; {mistakes} of {evaluated.n} pictures mistaken"),
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
            figures.calibration(evaluated.bins), "Reliability diagram: accuracy by confidence"
        ),
    }


def _gallery(run: RunDirectory) -> _Dict | None:
    if not run.has(gallery.FILE):
        return None
    found = gallery.read(run)
    return {
        "part": found.part,
        "mistakes": [_picture(item) for item in found.mistakes],
        "correct": [_picture(item) for item in found.correct],
    }


def _picture(item: Item) -> _Dict:
    """One picture; what stands in the page is of the named format and base64, no more."""
    content = base64.b64decode(item.thumb)
    is_png = content.startswith(b"\x89PNG\r\n\x1a\n")
    return {
        "file": item.file,
        "label": item.label,
        "predicted": item.predicted,
        "prob": item.prob,
        "label_prob": item.label_prob,
        "src": _data_url(item.mime, item.thumb),
        "heat": _data_url(item.mime, item.heat or ""),
        "tiny": is_png and max(png_size(content)) <= 64,
    }


def _data_url(mime: str, content: str) -> str:
    return f"data:{mime};base64,{content}" if content else ""


# --- facts -----------------------------------------------------------------------------------


def _data(data: Manifest) -> _Dict:
    reasons = Counter(item.reason for item in data.bad)
    return {
        "num_classes": len(data.class_names),
        "parts": [_part(part, data.counts.get(part, ()), data.class_names) for part in PARTS],
        "counts": _counts(data),
        "leaks": _leaks(data.parts),
        "bad": data.bad[:_SHOWN_BAD],
        "num_bad": len(data.bad),
        "reasons": ", ".join(f"{reason}: {n}" for reason, n in sorted(reasons.items())),
        "notes": data.notes,
        "warnings": data.warnings,
    }


def _counts(data: Manifest) -> _Dict:
    """Pictures of each class in each split, in the order of the network's outputs."""
    parts = [part for part in PARTS if any(data.counts.get(part, ()))]
    rows = [
        (name, [data.counts[part][i] for part in parts]) for i, name in enumerate(data.class_names)
    ]
    return {"parts": parts, "rows": rows[:_SHOWN_COUNTS], "more": len(rows[_SHOWN_COUNTS:])}


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


def _leaks(parts: Mapping[str, Sequence[Row]]) -> str:
    """How many identical pictures are in two splits, from the digests in the manifest."""
    where: dict[str, set[str]] = {}
    if parts.get("val") == parts.get("test"):  # the test split validates, which is said elsewhere
        parts = {part: rows for part, rows in parts.items() if part != "val"}
    for part, rows in parts.items():
        for _, _, digest in rows:
            if digest:
                where.setdefault(digest, set()).add(part)
    if not where:
        return "Whether the same picture is in two splits was not checked."
    pairs = Counter(
        " and ".join(part for part in PARTS if part in found)
        for found in where.values()
        if len(found) > 1
    )
    if not pairs:
        return (
            "No picture is in two splits: no two files of different splits have the same content."
        )
    listed = "; ".join(f"{n:,} in {names}" for names, n in sorted(pairs.items()))
    return f"The same picture is in several splits, which makes scores too good: {listed}."


def _facts(
    page: _Dict, *, model: ModelInfo | None, records: figures.Records
) -> list[tuple[str, str]]:
    size = model.input.size if model else None
    measured = [r for r in records if r.epoch > 0] or records  # a probe is no epoch
    speeds = [r.images_per_second for r in measured if r.images_per_second]
    facts = [
        ("model", page["model"]),
        ("parameters", whole(page["num_params"])),
        ("input", "" if size is None else f"{size} × {size}" + " pixels"),
        ("started from", model.weights if model else ""),
        ("epochs finished", str(page["epochs"])),
        ("best epoch", page["best"]),
        ("time", page["time"] if records else ""),
        ("speed", f"{whole(round(sum(speeds) / len(speeds)))} pictures/s" if speeds else ""),
        ("device", page["device"]),
        ("data fingerprint", page["fingerprint"] or ""),
    ]
    return [(name, value) for name, value in facts if value and value != "–"]


def _settings(config: TrainConfig) -> list[tuple[str, str]]:
    pairs = [(f, getattr(config, f.name)) for f in dataclasses.fields(config)]
    changed = [(f"• {f.name}", plain(value)) for f, value in pairs if f.default != value]
    return changed + [(f.name, plain(value)) for f, value in pairs if f.default == value]


# --- the page --------------------------------------------------------------------------------


def _render(pages: list[_Dict], missing: list[str]) -> str:
    several = len(pages) > 1
    parts = [{e.part for e in page["scores"]} for page in pages]
    compared = "test" if any("test" in found for found in parts) else "val"
    for page in pages:
        page["compared"] = next((e for e in page["scores"] if e.part == compared), None)
    ranked = sorted(pages, key=lambda p: -(p["compared"].accuracy if p["compared"] else -1.0))
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
            titles=_TITLES,
            names=_NAMES,
            runs=pages,
            ranked=ranked,
            compared="test" if compared == "test" else "validation",
            overlay=overlay,
            undrawn=" ".join(f"{char} (U+{ord(char):04X})" for char in missing[:200]),
        )
    )


def _subtitle(page: _Dict) -> str:
    epochs = f"{page['epochs']} epoch{'' if page['epochs'] == 1 else 's'}"
    if page["records"] and page["records"][0].epoch == 0:
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
        low = scored[0]["compared"].low
        close = sum(page["compared"].high >= low for page in scored[1:])
        if close:
            notes.append(
                f"The intervals of the first run and of {close} other{'s' if close > 1 else ''} "
                "overlap: these runs alone do not show which is better; fieldmark compare "
                "trains each with several seeds."
            )
    return notes
