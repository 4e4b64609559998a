"""Train sick and healthy networks on purpose, and print what the doctor of the training says.

    python scripts/doctor_table.py                      all of ``tests/jobs/sick.py``, and digits
    python scripts/doctor_table.py --only sick
    python scripts/doctor_table.py --folder ../shared/data/flowers --recipe probe --recipe tiny

``--folder`` is for healthy trainings on real pictures, one of each named recipe. Exit code 1 if a
sick one is not named, or something is found on a healthy one. Seconds are the processor's.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import fieldmark
import fieldmark.pages.figures
from fieldmark.errors import FieldmarkError
from fieldmark.jobs import examine
from tests.drawing import undrawn
from tests.jobs.sick import HEALTHY, SICK, Patient, settings_of

DIGITS: dict[str, dict[str, Any]] = {
    "digits, tiny": {"recipe": "tiny", "epochs": 8, "threads": 1},
    "digits, tiny, 3 epochs": {"recipe": "tiny", "epochs": 3, "threads": 1},
    "digits, mixup and average": {
        "recipe": "tiny",
        "epochs": 8,
        "mix": "mixup(0.2)",
        "ema": 0.98,
        "threads": 1,
    },
}


@dataclass
class Row:
    """A line of the table."""

    name: str
    expected: str
    found: list[str]
    train: str
    val: str
    seconds: float
    doctor: float
    """Seconds of the doctor's."""

    @property
    def fine(self) -> bool:
        """Whether it is as expected."""
        return self.expected in self.found if self.expected else not self.found


def main() -> int:
    """Train all that was asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("sick", "healthy"))
    parser.add_argument("--folder", action="append", default=[], help="real pictures")
    parser.add_argument("--recipe", action="append", default=[], help="recipes for --folder")
    parser.add_argument("--epochs", type=int, default=0, help="epochs for --folder")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    print("| training | expected | found | train | val | s | of it the doctor |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch, undrawn():
        for name, work in _works(args, Path(scratch)):
            rows.append(_row(name, work, Path(scratch) / f"run-{len(rows)}"))
            row = rows[-1]
            mark = "" if row.fine else " **wrong**"
            print(
                f"| {name} | {row.expected or '-'} | {', '.join(row.found) or '-'}{mark} "
                f"| {row.train} | {row.val} | {row.seconds:.1f} | {row.doctor / row.seconds:.1%} |",
                flush=True,
            )
    for kind, chosen in (("sick", True), ("healthy", False)):
        some = [row for row in rows if bool(row.expected) == chosen]
        print(f"{kind}: {len(some)} trained, {sum(row.fine for row in some)} as expected")
    costs = [row.doctor / row.seconds for row in rows if not row.expected]
    if costs:
        print(f"the doctor's share of healthy trainings: {sum(costs) / len(costs):.1%} in the mean")
    return int(not all(row.fine for row in rows))


Work = tuple[str, Callable[[Path], Any]]


def _works(args: argparse.Namespace, scratch: Path) -> Iterator[tuple[str, Work]]:
    """What to train: its name, what is to be found, and the training itself."""
    if args.folder:
        for folder in args.folder:
            for recipe in args.recipe or ["auto"]:
                settings = {"epochs": args.epochs} if args.epochs else {}
                yield f"{Path(folder).name}, {recipe}", (
                    "", _training(folder, recipe=recipe, **settings)
                )  # fmt: skip
        return
    patients = {
        **({} if args.only == "healthy" else SICK),
        **({} if args.only == "sick" else HEALTHY),
    }
    for number, (name, patient) in enumerate(patients.items()):
        place = scratch / f"pictures-{number}"
        yield name, (patient.code, _of_patient(patient, place))
    for name, settings in {} if args.only == "sick" else DIGITS.items():
        yield name, ("", _training("digits", **settings))


def _of_patient(patient: Patient, place: Path) -> Callable[[Path], Any]:
    data = patient.pictures(place)
    return _training(str(data), recipe="tiny", **settings_of(patient))


def _training(data: str, **settings: Any) -> Callable[[Path], Any]:
    return lambda out: fieldmark.train(data, out=out, progress=False, **settings)


def _row(name: str, work: Work, out: Path) -> Row:
    expected, training = work
    start = time.process_time()
    with _timed() as spent, contextlib.suppress(FieldmarkError):
        training(out)
    seconds = time.process_time() - start
    stored = json.loads((out / "doctor.json").read_text(encoding="utf-8"))
    file = out / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    last = json.loads(lines[-1]) if lines else {"train_accuracy": None, "val_accuracy": None}
    shown = [
        "-" if last[k] is None else f"{last[k]:.2f}" for k in ("train_accuracy", "val_accuracy")
    ]
    return Row(
        name, expected, [each["code"] for each in stored["findings"]], *shown, seconds, spent[0]
    )


@contextlib.contextmanager
def _timed() -> Iterator[list[float]]:
    """Measure the seconds that the doctor takes."""
    spent = [0.0]
    real = {name: getattr(examine.Doctor, name) for name in ("after_epoch", "conclude")}

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any) -> Any:
            start = time.process_time()
            try:
                return method(*args)
            finally:
                spent[0] += time.process_time() - start

        return called

    for method_name, method in real.items():
        setattr(examine.Doctor, method_name, timed(method))
    try:
        yield spent
    finally:
        for method_name, method in real.items():
            setattr(examine.Doctor, method_name, method)


if __name__ == "__main__":
    sys.exit(main())
