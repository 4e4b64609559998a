"""A tiny run with every kind of state in it, and what of a run must be the same again.

Nothing here imports fieldmark: the processes that are killed do.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SETTINGS: dict[str, Any] = {
    "model": "small_cnn(width=4)",
    "size": 8,
    "epochs": 8,
    "batch_size": 24,
    "accumulate": 2,
    "ema": 0.9,
    "mix": "mixup(0.2)",
    "augment": "pad_crop(1)|brightness(0.2)",
    "callbacks": "reduce_on_plateau(patience=1, factor=0.5)|early_stopping(patience=2)",
    "lr": 0.05,
    "optimizer": "adamw",
    "schedule": "one_cycle",
    "clip_norm": 5.0,
    "split": "0.6/0.2/0.2",
    "threads": 1,
    "save_every": "2 steps",
}
"""Validation, best epoch, moving average, a falling rate, an early end, saves in between."""

TIMES = ("seconds", "images_per_second", "data_wait")
"""Fields of a record that a clock decides."""

MODELS = ("model.safetensors", "final.safetensors")
SCORES = (
    "evaluation.json",
    "predictions.csv",
    "gallery.json",
    "config.json",
    "data.json",
    "doctor.json",
)


def make_pictures(root: Path) -> Path:
    """Three classes that differ by their stripes, under noise; the same every time."""
    rng = np.random.default_rng(0)
    for label, count in (("flat", 40), ("rows", 30), ("columns", 20)):
        (root / label).mkdir(parents=True)
        for i in range(count):
            image = rng.integers(0, 140, (10, 10, 3))
            if label == "rows":
                image[::2] += 80
            if label == "columns":
                image[:, ::2] += 80
            Image.fromarray(image.astype(np.uint8)).save(root / label / f"{i}.png")
    return root


def flags(settings: dict[str, Any]) -> list[str]:
    """The settings as words of a command line."""
    words = []
    for key, value in settings.items():
        name = "--" + key.replace("_", "-")
        words += [name] if value is True else [name, str(value)]
    return words


def outcome(run: Path) -> dict[str, str]:
    """What a finished run came to, without times: a digest or a text for each thing."""
    found = {name: _digest((run / name).read_bytes()) for name in (*MODELS, *SCORES)}
    found["metrics"] = json.dumps(records(run))
    found["report"] = _digest(_timeless(run / "report.html", run.name).encode())
    return found


def records(run: Path) -> list[dict[str, Any]]:
    """The records of the epochs without times."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def differences(run: Path, whole: Path) -> list[str]:
    """What is not the same in both runs; a file that is missing differs."""
    wanted = outcome(whole)
    try:
        found = outcome(run)
    except (OSError, ValueError) as error:
        return [f"not whole: {type(error).__name__}: {getattr(error, 'filename', None) or error}"]
    return [name for name in wanted if found[name] != wanted[name]]


def tree_digest(root: Path) -> str:
    """Names and contents of all files below a folder."""
    found = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        found.update(str(path.relative_to(root)).encode() + b"\0")
        found.update(path.read_bytes() if path.is_file() else b"folder")
    return found.hexdigest()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _timeless(page: Path, name: str) -> str:
    """The text of a page without its run's name, its command, and what a clock decides."""
    text = re.sub(rf"\b{re.escape(name)}\b", "NAME", page.read_text(encoding="utf-8"))
    text = re.sub(r"\d[\d.]*\s(s|min|h)\s·\s", "TIME · ", text)
    return re.sub(r'(<th scope="row">(?:time|speed|started|argv)</th>).*', r"\1", text)
