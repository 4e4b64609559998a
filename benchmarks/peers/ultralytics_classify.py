"""Ultralytics' classifier from random values: right answers, and of how many."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

SIZE, BATCH = 224, 32


def main(folder: Path, epochs: int, seed: int) -> tuple[int, int]:
    """Train its smallest network, and score the test split."""
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["YOLO_CONFIG_DIR"] = scratch  # else it writes into the user's home
        os.environ["YOLO_OFFLINE"] = "true"
        from ultralytics import YOLO

        model = YOLO("yolo11n-cls.yaml", task="classify")
        options = {"data": str(folder), "imgsz": SIZE, "device": "cpu", "project": scratch}
        options |= {"workers": os.cpu_count() or 1, "verbose": False, "plots": False}
        model.train(
            **options, epochs=epochs, batch=BATCH, seed=seed, pretrained=False, exist_ok=True
        )
        scored = model.val(**options, split="test")
    n = sum(1 for file in (folder / "test").rglob("*") if file.is_file())
    return round(float(scored.top1) * n), n


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
