# Names are bytes here, and paths what the system calls see, so that pathlib is no help.
# ruff: noqa: PTH115, PTH118, PTH123
"""Where one hostile input is tried: folders, the command, and what it must not have done.

data/      the user's pictures: byte-identical afterwards
given/     files from strangers: byte-identical afterwards
outside/   nothing in it may be opened by anything, which Linux tells
work/      the current folder; runs/ and out/ in it, and cache/, may be written to
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fieldmark.names import shown
from tests.opening import OpenWatch

HERE = Path(__file__).parent
SECONDS = 30
"""Processor time that the answer to any input may take."""
WAIT = 120
"""Longest wait for it, as other work may have the processor."""
GROWTH = 400 * 2**20
"""Memory that any input may cost beyond what the imports have."""

TRAIN = (
    *("--model", "small_cnn(width=2)", "--size", "8", "--epochs", "1", "--threads", "1"),
    *("--device", "cpu", "--precision", "f32"),
)


@dataclass(frozen=True)
class Answer:
    """What a command did."""

    code: int
    out: str
    err: str
    hung: bool
    worked: float
    """Seconds of processor time."""
    grown: int
    trace: tuple[str, ...]
    """What the audit hook saw that must not be."""

    @property
    def text(self) -> str:
        return self.out + self.err


class Nursery:
    """Runs commands in children of one process that has everything imported."""

    def __init__(self) -> None:
        environment = {
            **{k: os.environ[k] for k in ("PATH", "PYTHONPATH") if k in os.environ},
            "OMP_NUM_THREADS": "1",
            "MPLBACKEND": "Agg",
            "HF_HUB_OFFLINE": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "nursery.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        try:
            self._check(self._answer()["threads"])
        except BaseException:
            self.close()
            raise

    def _check(self, threads: int) -> None:
        if threads != 1:
            raise RuntimeError(f"the nursery has {threads} threads, and may not be forked")

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the nursery ended")
        return dict(json.loads(line))

    def run(self, place: Place, argv: Sequence[str], **options: Any) -> Answer:
        """Run the command line in the place; options as of :class:`Row`."""
        assert self._process.stdin is not None
        streams = {name: str(place.root / f"{name}.txt") for name in ("stdout", "stderr")}
        request = {
            "argv": list(argv),
            "cwd": str(place.work),
            "environment": {
                "HOME": str(place.home),
                "FIELDMARK_CACHE": str(place.cache),
                "TMPDIR": str(place.temporary),
                **place.environment,
            },
            "writable": [str(path) for path in place.writable],
            "seconds": WAIT,
            "encoding": "utf-8",
            "network": False,
            "drawn": False,
            "published": place.published,
            **streams,
            **options,
        }
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        done = self._answer()
        out, err = (
            Path(streams[name]).read_bytes().decode(request["encoding"], "backslashreplace")
            for name in ("stdout", "stderr")
        )
        return Answer(
            done["code"],
            out,
            err,
            done["hung"],
            done["worked"],
            done["grown"],
            tuple(done["trace"]),
        )

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.kill()  # it has nothing to finish
        self._process.wait()
        self._process.stdout.close()


class Place:
    """The folders of one try."""

    def __init__(self, root: Path, model: Path | None = None) -> None:
        self.root = root
        self.data, self.given, self.outside = root / "data", root / "given", root / "outside"
        self.work, self.cache, self.home = root / "work", root / "cache", root / "home"
        self.runs, self.out, self.temporary = self.work / "runs", self.work / "out", root / "tmp"
        self.environment: dict[str, str] = {}
        self.published: dict[str, dict[str, Any]] = {}
        self._model = model
        for path in (self.data, self.given, self.outside, self.runs, self.out, self.cache):
            path.mkdir(parents=True)
        self.home.mkdir()
        self.temporary.mkdir()

    @property
    def writable(self) -> tuple[Path, ...]:
        return self.runs, self.out, self.cache, self.temporary

    @property
    def secret(self) -> Path:
        """A picture that nobody was asked to open."""
        path = self.outside / "secret.png"
        if not path.exists():
            path.write_bytes(picture(9999))
        return path

    @property
    def canary(self) -> Path:
        """What code from a stranger's file would make."""
        return self.root / "canary"

    def classes(self, root: Path | None = None, *, start: int = 0, **counts: int) -> Path:
        """Class folders with so many pictures, each another one."""
        return self.folders(counts, root, start=start)

    def folders(
        self, counts: Mapping[str, int], root: Path | None = None, *, start: int = 0
    ) -> Path:
        """As :meth:`classes`, for names that are no words."""
        root = root or self.data
        for name, count in counts.items():
            (root / name).mkdir(parents=True)
            for _ in range(count):
                (root / name / f"{start}.png").write_bytes(picture(start))
                start += 1
        return root

    def train(self, *flags: str) -> list[str]:
        """The command that trains on the data, briefly."""
        return ["train", str(self.data), *TRAIN, "--out", str(self.runs / "new"), *flags]

    def look(self, *flags: str) -> list[str]:
        """The command that reads the data as for training, and draws some of it."""
        return self.train("--preview", *flags)

    def new(self, name: str) -> Any:
        """A JSON file of the run that :meth:`train` made."""
        return json.loads((self.runs / "new" / name).read_text(encoding="utf-8"))

    def model(self) -> Path:
        """A finished run of two classes, cat and dog, to be changed and used; pictures in data/."""
        assert self._model is not None
        shutil.copytree(self._model / "data", self.data, dirs_exist_ok=True)
        shutil.copytree(self._model / "work" / "runs" / "new", self.runs / "model")
        return self.runs / "model"

    def predict(self, *pictures: Path | str) -> list[str]:
        """The command that classifies pictures by :meth:`model`."""
        return ["predict", str(self.model()), *map(str, pictures)]


def trained(nursery: Nursery, root: Path) -> Place:
    """A place with a finished run of two classes, which :meth:`Place.model` copies."""
    place = Place(root)
    place.classes(cat=12, dog=12)
    answer = nursery.run(place, place.train())
    if answer.code != 0:
        raise RuntimeError(f"the model could not be trained: {answer.text}")
    return place


def picture(seed: int, side: int = 8) -> bytes:
    """A small PNG of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@dataclass(frozen=True)
class Row:
    """One hostile input with what is expected of it."""

    item: str
    """Number in the list of hostile inputs; "+" for one that is not on it."""
    input: str
    make: Callable[[Place], list[str]]
    """Makes the input and returns the command line."""
    code: int = 3
    says: tuple[str, ...] = ()
    """Words that the answer must have: the file, and the cure."""
    also: str = ""
    """What else is expected, in words; ``check`` looks."""
    check: Callable[[Place, Answer], bool] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    """``encoding`` of the streams; whether ``network`` is asked for; whether figures are ``drawn``;
    ``seconds``."""
    slow: bool = False

    @property
    def expected(self) -> str:
        """In words."""
        said = ", ".join(f"“{word}”" for word in self.says)
        return "; ".join(filter(None, [f"exit {self.code}", said and f"says {said}", self.also]))


def try_row(row: Row, place: Place, nursery: Nursery) -> tuple[dict[str, Any], list[str]]:
    """Run a row; returns what goes into the table, and what is not as it must be."""
    argv = row.make(place)
    _ = place.secret
    before = snapshot(place)
    watch = OpenWatch(place.outside)
    answer = nursery.run(place, argv, **row.options)
    opened = watch.count()
    watch.close()
    wrong = faults(answer, row.code)
    wrong += [f"does not say {word!r}" for word in row.says if word not in answer.text]
    if row.check is not None and not wrong and not row.check(place, answer):
        wrong.append(f"not so: {row.also}")
    if opened:
        wrong.append("a file outside was opened")
    wrong += difference(before, snapshot(place))
    seen = _telling_line(place, answer, row.says)
    return {
        "item": row.item,
        "input": row.input,
        "expected": row.expected,
        "seen": f"{seen}; BUT {'; '.join(wrong)[:300]}" if wrong else seen,
        "ok": not wrong,
    }, [*wrong, answer.out[-3000:], answer.err[-3000:]] if wrong else []


def faults(answer: Answer, code: int) -> list[str]:
    """What no answer may have, whatever the input."""
    wrong = list(answer.trace)
    if answer.hung:
        wrong.append(f"no end after {WAIT} s")
    if answer.worked > SECONDS:
        wrong.append(f"{answer.worked:.0f} s of work")
    if answer.code != code:
        wrong.append(f"exit {answer.code}")
    if "Traceback" in answer.text:
        wrong.append("a traceback")
    if answer.code not in (0, 130, 143) and not answer.err.strip():
        wrong.append("no message")
    if answer.grown > GROWTH:
        wrong.append(f"{answer.grown >> 20} MB of memory")
    unfit = [line for line in answer.text.split("\n") if shown(line) != line]
    if unfit:
        wrong.append(f"control characters on the screen: {unfit[0]!r}")
    return wrong


def _telling_line(place: Place, answer: Answer, says: Sequence[str]) -> str:
    """The exit code and the line with what was to be said, without the folders of this try."""
    lines = [line.strip("╭╮╰╯│─ ") for line in (answer.err + answer.out).splitlines()]
    lines = [line for line in lines if line and line != "Error"]
    text = next((line for line in lines if any(word in line for word in says)), "")
    if answer.code and not text:
        text = lines[0] if lines else ""
    text = text.replace(f"{place.root}/", "").replace(str(place.root), "")
    text = text.replace(f"{sysconfig.get_path('purelib')}/", "")  # of a library that warns
    return f"exit {answer.code}" + (f": {text[:240]}" if text else "")


Facts = dict[bytes, tuple[object, ...]]
_MUCH = 2**24


def snapshot(place: Place) -> Facts:
    """All that must stay as it is: every name, kind, time, permission and content."""
    free = {os.fsencode(path) for path in place.writable}
    free |= {os.fsencode(place.root / f"{name}.txt") for name in ("stdout", "stderr")}
    found: Facts = {}
    for folder, folders, files in os.walk(os.fsencode(place.root)):
        folders[:] = [name for name in folders if os.path.join(folder, name) not in free]
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            if path not in free:
                found[path] = _facts(path)
    return found


def _facts(path: bytes) -> tuple[object, ...]:
    facts = os.lstat(path)
    if stat.S_ISLNK(facts.st_mode):
        return "link", os.readlink(path)
    if stat.S_ISDIR(facts.st_mode):
        return "folder", facts.st_mode
    kept = (facts.st_mode, facts.st_size, facts.st_mtime_ns)
    if not stat.S_ISREG(facts.st_mode) or facts.st_size > _MUCH:
        return "other", *kept
    try:
        with open(path, "rb") as file:
            return "file", *kept, hashlib.sha256(file.read()).digest()
    except PermissionError:
        return "closed", *kept


def difference(before: Facts, after: Facts) -> list[str]:
    """What came, went or changed."""
    words = []
    for path in sorted(before.keys() | after.keys()):
        if before.get(path) != after.get(path):
            kind = "made" if path not in before else "gone" if path not in after else "changed"
            words.append(f"{kind}: {os.fsdecode(path)!r}")
    return words
