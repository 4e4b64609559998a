"""Makes the run directories of this folder, and ``expected.json``: what they answered then.

It was run with fieldmark 0.1.0 at commit fe63998, from the root of the repository:

    python -m tests.old_runs.make

and refuses any other version: the point of these runs is that an older version made them. It uses
that version's command line and Python face, and in :func:`mended` reaches into it, since nobody can
order a lack of memory. What a run has on top of the others is said in each function. To keep the
folder small, figures, pages and checkpoints that no test needs are taken out; ``finished`` has all.

The pictures are not kept: ``pictures.py`` makes the same ones again.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import fieldmark
from tests.old_runs import pictures

HERE = Path(__file__).resolve().parent
VERSION = "0.1.0"
SMALL, LARGE = "small_cnn(width=2)", "small_cnn(width=3)"
SHARED: dict[str, Any] = {
    "size": 12,
    "epochs": 3,
    "batch_size": 4,
    "optimizer": "adamw",
    "lr": 0.05,
    "schedule": "cosine",
    "augment": "pad_crop(1)",
    "split": "0.5/0.25/0.25",
    "threads": 1,
    "device": "cpu",
}
SETTINGS = {"model": SMALL, **SHARED}
FIGURES = ("preview.png", "curves.png", "confusion.png", "predictions.png", "convergence.png")
WITH_CHECKPOINT = ("probe", "mended", "changed")
"""Runs that came to their end and keep ``last.ckpt`` all the same; ``finished`` does, too."""
CLOSEST = 0.001
"""The two likeliest classes of a picture that counts are not nearer: processors round otherwise."""


class Stopping:
    """Watches, and asks the process to stop after an epoch, or when a count has come so far."""

    def __init__(self, *, epoch: int = 0, count: tuple[str, int] = ("", 0)) -> None:
        self._epoch, self._count = epoch, count

    def say(self, text: str) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """Nothing."""

    def count(self, what: str, done: int, total: int) -> None:
        """Stop in the midst of an epoch."""
        if (what, done) == self._count:
            signal.raise_signal(signal.SIGTERM)

    def epoch(self, record: Any, epochs: int) -> None:
        """Stop after an epoch."""
        if record.epoch == self._epoch:
            signal.raise_signal(signal.SIGTERM)


@contextlib.contextmanager
def stopped() -> Iterator[None]:
    """What is done in the block must end by being asked to stop."""
    try:
        yield
    except fieldmark.Interrupted:
        return
    raise AssertionError("it came to its end before it could be stopped")


def command(*words: str) -> None:
    """Run the command line in a process of its own, as a user does."""
    subprocess.run([sys.executable, "-m", "fieldmark", *words], check=True)


def flags(settings: dict[str, Any]) -> list[str]:
    """The settings as words of a command line."""
    return [
        w for key, value in settings.items() for w in ("--" + key.replace("_", "-"), str(value))
    ]


# --- the kinds -----------------------------------------------------------------------------------


def finished() -> None:
    """Trained from scratch by the command line, with a test split; nothing is taken out."""
    settings = {**SETTINGS, "optimizer": "sgd(momentum=0.9, nesterov=True)", "lr": 0.1}
    command("train", "pictures", "--out", "runs/finished", *flags(settings))


def killed() -> None:
    """Ended after the second of four epochs, at once: ``previous.ckpt`` is of the first."""

    class Killed(BaseException):
        pass

    class Killing(Stopping):
        def epoch(self, record: Any, epochs: int) -> None:
            if record.epoch == 2:
                raise Killed

    with contextlib.suppress(Killed):
        fieldmark.train(
            "pictures", out="runs/killed", progress=Killing(), **{**SETTINGS, "epochs": 4}
        )


def stopped_within() -> None:
    """Stopped in the midst of the third of five epochs, with many states in its checkpoint.

    ``keep=last``, so it has ``best.safetensors``; average, callbacks, mixing, growing pictures,
    the state at the beginning of the epoch.
    """
    settings = {
        "epochs": 5,
        "batch_size": 6,
        "accumulate": 2,
        "optimizer": "sgd(momentum=0.9)",
        "warmup_epochs": 0.5,
        "ema": 0.8,
        "keep": "last",
        "monitor": "val_loss",
        "callbacks": "reduce_on_plateau(factor=0.5, patience=1)|early_stopping(patience=9)",
        "mix": "mixup(0.2)|cutmix(1.0)",
        "progressive": "8@0.3",
        "views": "flip",
        "label_smoothing": 0.1,
        "class_weights": "balanced",
        "clip_norm": 5.0,
        "save_every": "1 step",
    }
    with stopped():
        fieldmark.train(
            "pictures",
            out="runs/stopped_within",
            progress=Stopping(count=("epoch 3/5", 2)),
            **{**SETTINGS, **settings},
        )


def stopped_choosing() -> None:
    """Stopped in the midst of an epoch that chose its pictures by their recorded losses."""
    settings = {
        "epochs": 4,
        "optimizer": "muon",
        "hardest": "0.75@1",
        "freeze_after": "blocks.0@1",
        "keep": "first_best",
        "save_every": "1 step",
    }
    with stopped():
        fieldmark.train(
            "pictures",
            out="runs/stopped_choosing",
            progress=Stopping(count=("epoch 2/4", 3)),
            **{**SETTINGS, **settings},
        )


def probe() -> None:
    """A linear probe and no epoch: the record of epoch 0, no curves."""
    kept = {key: SETTINGS[key] for key in ("model", "size", "split", "threads", "device")}
    words = ("--probe", "--epochs", "0", "--out", "runs/probe")
    command("train", "pictures", *words, *flags(kept))


def no_test() -> None:
    """No test split, unreadable pictures, copies in two classes, a class that is not scored."""
    fieldmark.train(
        "spoilt", out="runs/no_test", progress=False, **{**SETTINGS, "split": "80/20/0"}
    )


def mended() -> None:
    """Short of memory, not a number, an epoch without validation figures: ``incidents.json``."""
    from fieldmark.fit import loop
    from fieldmark.jobs import prepared

    backward, judged = loop._backward, prepared.judged
    calls: list[str] = []

    def failing(state: Any, batch: Any, plan: Any) -> torch.Tensor:
        if not state.halvings:
            raise torch.OutOfMemoryError("no memory for 4 pictures, by order of make.py")
        norm = backward(state, batch, plan)
        if state.epoch == 1 and not state.rolled_back:
            state.tally.loss += math.nan
        return norm

    def without_figures(values: Any, labels: Any) -> dict[str, float]:
        calls.append("")
        found = judged(values, labels)
        return dict.fromkeys(found, math.nan) if len(calls) == 1 else found

    with (
        mock.patch.object(loop, "_backward", failing),
        mock.patch.object(prepared, "judged", without_figures),
    ):
        fieldmark.train("pictures", out="runs/mended", progress=False, **SETTINGS)


def divided() -> None:
    """Divided by folders, a copy in two splits; the test split validates. Six classes: top-5."""
    fieldmark.train(
        "divided",
        out="runs/divided",
        progress=False,
        **{**SETTINGS, "split": "70/0/30", "views": "flip_shift", "normalize": "dataset"},
    )


def changed() -> None:
    """A picture was added after the first epoch, and it went on by ``--allow-data-change``."""
    added = Path("changing") / pictures.ADDED
    kept = added.read_bytes()
    added.unlink()
    with stopped():
        fieldmark.train("changing", out="runs/changed", progress=Stopping(epoch=1), **SETTINGS)
    added.write_bytes(kept)
    command("resume", "runs/changed", "--allow-data-change")


def named() -> None:
    """Trained on a data set that has a name in place of a folder."""
    settings = {**SETTINGS, "size": 8, "epochs": 2, "batch_size": 64, "split": "0.9/0.05/0.05"}
    fieldmark.train("digits", out="runs/named", progress=False, **settings)


def exported() -> None:
    """With an ONNX file and a Keras file in their usual places."""
    fieldmark.train("pictures", out="runs/exported", progress=False, **{**SETTINGS, "seed": 1})
    command("export", "runs/exported", "--to", "onnx")
    command("export", "runs/exported", "--to", "keras")


def imported() -> None:
    """Made of the Keras file of ``exported``: ``import.json``, and no pictures of its own."""
    command("import-keras", "runs/exported/model.keras", "--out", "runs/imported")


def scored() -> None:
    """Scored on other pictures as well: ``evaluation-others.json``, ``predictions-others.csv``."""
    run = fieldmark.train("pictures", out="runs/scored", progress=False, **SETTINGS)
    assert all(map(clear, run.predict("others", device="cpu")))
    command("evaluate", "runs/scored", "--data", "others")


def compared() -> None:
    """A finished comparison of two networks and two seeds."""
    words = ("--models", SMALL, LARGE, "--seeds", "2", "--out", "runs/compared")
    command("compare", "pictures", *words, *flags(SHARED))


def compared_in_part() -> None:
    """A comparison with a run that is finished, one that was stopped and one that was not begun."""

    class Third(Stopping):
        """Stops after the first epoch of the second run."""

        seen = 0

        def epoch(self, record: Any, epochs: int) -> None:
            self.seen += 1
            if self.seen == epochs + 1:
                signal.raise_signal(signal.SIGTERM)

    with stopped():
        fieldmark.compare(
            "pictures",
            [SMALL, LARGE, "small_cnn(width=1)"],
            seeds=1,
            out="runs/compared_in_part",
            progress=Third(),
            **SHARED,
        )


PICTURES = {
    finished: "pictures",
    killed: "pictures",
    stopped_within: "pictures",
    stopped_choosing: "pictures",
    probe: "pictures",
    no_test: "spoilt",
    mended: "pictures",
    divided: "divided/test",
    changed: "changing",
    named: "pictures",
    exported: "pictures",
    imported: "pictures",
    scored: "pictures",
}
"""The kinds of single runs, and the pictures of which some answers are kept."""


# --- what is kept --------------------------------------------------------------------------------


def clear(found: fieldmark.Prediction) -> bool:
    """Whether every processor gives this answer."""
    return bool(found.error) or found.top[0][1] - found.top[1][1] > CLOSEST


def expected(run: fieldmark.Run, folder: str) -> dict[str, Any]:
    """What a later version must find in a run."""
    there = (run.path / "evaluation.json").is_file()
    files = sorted(path for path in Path(folder).rglob("*.png"))
    answers, right = {}, 0
    for number, found in enumerate(run.predict(files, top=99, device="cpu")):
        assert clear(found) or not there, f"{run.path}: {found}: choose another seed"
        right += Path(found.file).parent.name == found.label
        if found.error or (clear(found) and number % 5 == 0):
            top = [[label, round(prob, 7)] for label, prob in found.top]
            answers[Path(found.file).as_posix()] = top
    return {
        "model": run.config.model,
        "class_names": list(run.class_names),
        "epochs": [record["epoch"] for record in run.history],
        "val_loss": [record["val_loss"] for record in run.history],
        "selected": run.selected,
        "scores": {
            part: {key: scores[key] for key in ("n", "accuracy", "top5")}
            for part, scores in (run.scores if there else {}).items()
        },
        "folder": folder,
        "right": right,
        "answers": answers,
    }


PAGE_PICTURES = re.compile(r"data:(image|font)/[^;]*;base64,[\w+/=]*")


def thin(folder: Path) -> None:
    """Take out what no test needs; pages of comparisons and their runs stay, without pictures."""
    is_compared = "compared" in folder.as_posix()
    for name in (*FIGURES, *(("gallery.json",) if is_compared else ("report.html",))):
        (folder / name).unlink(missing_ok=True)
    for page in folder.glob("*.html"):
        page.write_bytes(PAGE_PICTURES.sub("data:,", page.read_text("utf-8")).encode())
    if folder.name != "killed":
        (folder / "previous.ckpt").unlink(missing_ok=True)
    if (folder / "final.safetensors").is_file() and folder.name not in WITH_CHECKPOINT:
        (folder / "last.ckpt").unlink(missing_ok=True)


def main() -> None:
    """Make all of them anew."""
    assert fieldmark.__version__ == VERSION, f"made by {VERSION}, not by {fieldmark.__version__}"
    torch.set_num_threads(1)
    wanted: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        pictures.write_all(Path())
        for kind, shown in PICTURES.items():
            kind()
            wanted[kind.__name__] = expected(
                fieldmark.load(Path("runs") / kind.__name__), folder=shown
            )
        for kind in (compared, compared_in_part):
            kind()
        for path in sorted(Path("runs").iterdir()):
            for folder in [path, *filter(Path.is_dir, path.iterdir())]:
                if path.name != "finished":
                    thin(folder)
            kept = HERE / path.name
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(path, kept, ignore=shutil.ignore_patterns(".lock"))
    lines = [f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in wanted.items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    (HERE / "expected.json").write_bytes(text.encode())


if __name__ == "__main__":
    main()
