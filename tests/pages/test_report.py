from __future__ import annotations

import base64
import hashlib
import html.parser
import io
import json
import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fieldmark.errors import ConfigError, RunError
from fieldmark.pages.report import report, write_figures
from fieldmark.scoring.metrics import wilson
from fieldmark.settings.config import TrainConfig

pytestmark = pytest.mark.drawn

SCRIPT, ONERROR = "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>'
HOSTILE = [
    SCRIPT, ONERROR, "$\\frac{", "_hidden", "שלום", "😀🐦", "\udcff", "a" * 255, "new\nline\ttab",
    "{{ 7*7 }}", "'; --", "\u202eevil", "猫",
]  # fmt: skip
CHINESE = [chr(0x4E00 + 13 * i) for i in range(95)]


def thumb(seed: int, *, side: int = 24) -> str:
    image = Image.effect_noise((side, side), 60 + seed).convert("RGB")
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def part_scores(part: str, names: list[str], *, n: int, draw: random.Random) -> dict[str, Any]:
    """The scores of ``n`` pictures of each class but the last, which has none."""
    k = len(names)
    cells: dict[tuple[int, int], int] = {}
    for true in range(k - 1 if k > 2 else k):
        for _ in range(n):
            guess = true if draw.random() < 0.88 else draw.randrange(k)
            cells[true, guess] = cells.get((true, guess), 0) + 1
    total = sum(cells.values())
    right = sum(c for (t, p), c in cells.items() if t == p)
    each = []
    for i, name in enumerate(names):
        rows = sum(c for (t, _), c in cells.items() if t == i)
        columns = sum(c for (_, p), c in cells.items() if p == i)
        hit = cells.get((i, i), 0)
        each.append(
            {
                "name": name,
                "n": rows,
                "precision": hit / columns if columns else None,
                "recall": hit / rows if rows else None,
                "f1": 2 * hit / (rows + columns) if rows else None,
            }
        )
    low, high = wilson(right, total)
    bins = [{"confidence": i / 15 + 0.03, "accuracy": i / 15, "n": i * i} for i in range(5, 15)]
    return {
        "part": part, "n": total, "accuracy": right / total, "low": low, "high": high,
        "top5": 0.99 if k > 5 else None, "loss": 0.41, "macro_f1": 0.87, "balanced_accuracy": 0.86,
        "ece": 0.021, "ece_uncalibrated": 0.064, "temperature": 1.31, "bins": bins,
        "per_class": each, "confusion": [[t, p, c] for (t, p), c in sorted(cells.items())],
    }  # fmt: skip


def fingerprint_of(rows: dict[str, list[list[Any]]]) -> str:
    """What ``data.json`` says of its rows: SHA-256 of them by split, sorted by digest."""
    hasher = hashlib.sha256()
    for part in ("train", "val", "test"):
        for key, label, digest in sorted(rows[part], key=lambda row: row[::-1]):
            hasher.update(repr((part, digest, label, key)).encode("utf-8", "surrogatepass"))
    return hasher.hexdigest()


def make_run(
    folder: Path,
    names: list[str],
    *,
    epochs: int = 12,
    parts: tuple[str, ...] = ("val", "test"),
    seed: int = 0,
    data_name: str = "pictures",
    n: int = 30,
) -> Path:
    draw = random.Random(seed)
    folder.mkdir(parents=True)

    def write(name: str, value: object) -> None:
        (folder / name).write_text(json.dumps(value), encoding="utf-8")

    (folder / "config.json").write_text(TrainConfig(epochs=12, lr=0.05).to_json(), encoding="utf-8")
    lines, best = [], 0.0
    for epoch in range(1, epochs + 1):
        value = 0.9 - 0.7 / epoch + 0.02 * draw.random()
        lines.append(
            {
                "epoch": epoch, "step": 40 * epoch, "lr": 0.05, "train_loss": 2 / epoch,
                "train_accuracy": value + 0.03, "val_loss": 2.2 / epoch + 0.02 * epoch,
                "val_accuracy": value, "val_macro_f1": value, "seconds": 13.4,
                "images_per_second": 811.0, "data_wait": 0.01, "best": value > best,
            }
        )  # fmt: skip
        best = max(best, value)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    rows = {
        "train": [["a.png", 0, f"d{len(names)}"], ["b.png", 1, "c2"]],
        "val": [["c.png", 0, "c2"]],
        "test": [["d.png", 0, "c3"]],
    }
    write(
        "data.json",
        {
            "format": 1, "name": data_name, "class_names": names, "path": "pictures",
            "fingerprint": fingerprint_of(rows),
            "counts": {
                part: [sum(label == k for _, label, _ in found) for k in range(len(names))]
                for part, found in rows.items()
            },
            "parts": rows,
            "bad": [{"file": ONERROR, "reason": "truncated", "detail": SCRIPT}],
            "notes": ["the folder is flat; it was split 0.75/0.1/0.15"],
            "warnings": [f"class {SCRIPT} has 3 pictures"],
        },
    )  # fmt: skip
    write(
        "environment.json",
        {
            "format": 1, "fieldmark": "0.1.0", "python": "3.11.7", "torch": "2.13.0",
            "torchvision": "0.29", "timm": "1.0.31", "numpy": "2.4", "pillow": "13.0",
            "simplejpeg": "1.9", "safetensors": "0.8", "system": "Linux x86_64", "device": "cpu",
            "device_name": "2 cores", "precision": "f32", "cores": 2, "threads": 2,
            "weights": "none", "git": "", "started": "2026-11-30T16:17:02Z",
            "argv": ["train", SCRIPT],
        },
    )  # fmt: skip
    if not parts:
        return folder
    write(
        "model.json",
        {
            "format": 1, "model": "cifar_resnet(depth=20, version=1)", "num_params": 272_474,
            "input": {"size": 32}, "class_names": names, "temperature": 1.31,
            "selected": {"epoch": epochs, "metric": "val_accuracy", "value": best},
            "weights": "none",
        },
    )  # fmt: skip
    scores = {part: part_scores(part, names, n=n, draw=draw) for part in parts}
    write("evaluation.json", {"format": 1, "parts": scores})
    entries = [
        {
            "file": f"{name[:40]}/{i}.png", "label": name, "predicted": names[(i + 1) % len(names)],
            "prob": 0.97 - i / 100, "label_prob": 0.01, "mime": "image/png",
            "thumb": thumb(i, side=24 if i % 2 else 96),
        }
        for i, name in enumerate(names[:8])
    ]  # fmt: skip
    write(
        "gallery.json",
        {
            "format": 1, "part": "test", "mistakes": entries,
            "correct": [{**entry, "predicted": entry["label"]} for entry in entries[:4]],
        },
    )  # fmt: skip
    return folder


class Page(html.parser.HTMLParser):
    """What a browser would make of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split()).replace("\u202f", " ")


def check_inert(text: str) -> Page:
    page = Page(text)
    assert page.open == []
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "iframe", "link", "object", "embed", "form", "base"}
    for tag, attributes in page.tags:
        assert not [key for key in attributes if key.startswith("on") or key == "style"]
        assert "href" not in attributes
        if "src" in attributes:
            assert tag == "img"
            kind, _, content = (attributes["src"] or "").partition(";base64,")
            assert kind in ("data:image/png", "data:image/jpeg")
            Image.open(io.BytesIO(base64.b64decode(content, validate=True))).verify()
        if tag == "img":
            assert attributes["alt"]
    return page


def read(path: Path) -> str:
    return path.read_bytes().decode("utf-8")


def test_the_page_says_how_good_the_classifier_is(tmp_path: Path) -> None:
    run = make_run(tmp_path / "cats", ["cat", "dog", "owl"])
    out = report([run])
    assert out == run / "report.html"
    page = check_inert(read(out))
    scores = json.loads((run / "evaluation.json").read_text())["parts"]["test"]
    assert f"Test accuracy {100 * scores['accuracy']:.1f} %" in page.text
    assert f"95 % interval {100 * scores['low']:.1f} % to {100 * scores['high']:.1f} %" in page.text
    assert f"n = {scores['n']} test pictures" in page.text
    assert "owl 0 no pictures" in page.text
    assert "1 in train and val" in page.text
    assert "truncated: 1" in page.text
    for heading in ("Most confused pairs", "Confusion matrix", "Worst mistakes", "Every class"):
        assert heading in page.text
    assert [tag for tag, _ in page.tags].count("h1") == 1
    tables = [tag for tag, _ in page.tags].count("table")
    assert tables == [tag for tag, _ in page.tags].count("caption") > 4


def test_names_are_text_whatever_they_are(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", HOSTILE, data_name=SCRIPT)
    page = check_inert(read(report([run])))
    assert page.text.count(SCRIPT) > 5
    assert page.text.count(ONERROR) > 3
    assert "{{ 7*7 }}" in page.text and "\u202e" not in page.text
    assert "🐦 (U+1F426)" in page.text


def test_the_style_is_what_the_policy_allows(tmp_path: Path) -> None:
    text = read(report([make_run(tmp_path / "run", ["a", "b"])]))
    style = text.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'"
    contents = [attributes.get("content") or "" for _, attributes in Page(text).tags]
    assert any(content.startswith(policy) for content in contents)


@pytest.mark.parametrize("names", [["a", "b", "c"], CHINESE], ids=["3", "95"])
def test_twice_gives_the_same_bytes(tmp_path: Path, names: list[str]) -> None:
    run = make_run(tmp_path / "run", names)
    first = report([run]).read_bytes()
    assert report([run]).read_bytes() == first
    if len(names) > 30:
        assert "75 more classes" in Page(first.decode()).text


def test_an_interrupted_run_still_has_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ["a", "b"], epochs=3, parts=())
    page = check_inert(read(report([run])))
    assert "not been evaluated yet: 3 of 12 epochs are finished" in page.text
    assert "Accuracy by epoch" not in page.text  # that is the alternative text of a picture


def test_a_run_that_only_began_has_a_page(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(TrainConfig().to_json(), encoding="utf-8")
    page = check_inert(read(report([run])))
    assert "No epoch is finished yet" in page.text
    write_figures(run)
    assert (run / "curves.png").exists() and not (run / "confusion.png").exists()


def test_without_a_test_part_the_page_warns(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ["a", "b"], parts=("val",))
    page = check_inert(read(report([run])))
    assert "There is no test split" in page.text and "Test accuracy" not in page.text


def test_what_was_mended_in_training_is_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", ["a", "b"])
    incidents = [f"out of memory at step 3: micro-batches of 4 pictures {SCRIPT}"]
    (run / "incidents.json").write_text(json.dumps({"format": 1, "incidents": incidents}))
    page = check_inert(read(report([run])))
    assert "In training: out of memory at step 3: micro-batches of 4" in page.text


def test_several_runs_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["cat", "dog", "owl"]
    runs = [make_run(tmp_path / f"run-{i}", names, seed=i) for i in range(2)]
    runs.append(make_run(tmp_path / "_hidden", names, parts=()))
    out = report(runs)
    assert out == Path("report.html")
    page = check_inert(read(out))
    assert "Comparison" in page.text and "not evaluated" in page.text
    assert "overlap: these runs alone do not show which is better" in page.text
    assert [a for t, a in page.tags if t == "details" and a.get("class") == "run"].__len__() == 3
    other = make_run(tmp_path / "other", ["a", "b"])
    aside = tmp_path / "aside"
    aside.mkdir()
    assert report([runs[0], other], out=aside) == aside / "report.html"
    assert "did not see the same pictures" in Page(read(aside / "report.html")).text


def test_figures_are_written_into_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", HOSTILE)
    write_figures(run)
    for name in ("curves.png", "confusion.png"):
        with Image.open(run / name) as image:
            image.load()
            assert image.format == "PNG" and min(image.size) > 200


def test_what_cannot_be_a_report_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one"):
        report([])
    with pytest.raises(RunError, match="not there"):
        report([tmp_path / "nothing"])
    run = make_run(tmp_path / "run", ["a", "b"])
    (run / "evaluation.json").write_text('{"format": 1, "parts": {"test": {"n": 3}}}')
    for make in (lambda: report([run]), lambda: write_figures(run)):
        with pytest.raises(RunError, match=r"evaluation\.json: parts\.test lacks part; .*evaluate"):
            make()
    assert not (run / "report.html").exists()


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("thumb", '"><script>alert(1)</script>', "must be base64"),
        ("mime", "image/svg+xml", "must be image/png, image/jpeg or image/webp"),
        ("prob", "sure", "must be a number from 0 to 1"),
    ],
)
def test_a_gallery_of_something_else_is_refused(
    tmp_path: Path, field: str, value: str, words: str
) -> None:
    run = make_run(tmp_path / "run", ["a", "b"])
    gallery = json.loads((run / "gallery.json").read_text())
    gallery["mistakes"][1][field] = value
    (run / "gallery.json").write_text(json.dumps(gallery))
    with pytest.raises(
        RunError, match=rf"gallery\.json: mistakes\.1\.{field} is .*{re.escape(words)}"
    ):
        report([run])
    gallery["mistakes"][1].update({"thumb": "", "mime": "image/png", "prob": 0.5})
    (run / "gallery.json").write_text(json.dumps(gallery))
    assert check_inert(read(report([run]))).text.count("no picture stored") == 1


def test_accuracy_is_never_rounded_to_perfection() -> None:
    from fieldmark.pages.html import percent

    assert percent(1.0) == "100.0\u202f%"
    assert percent(0.9996) == "99.96\u202f%"
    assert percent(None) == "–"


if __name__ == "__main__":  # python tests/pages/test_report.py FOLDER: runs and pages to look at
    where = Path(sys.argv[1])
    report([make_run(where / "three", ["cat", "dog", "owl"], data_name="pets")])
    report([make_run(where / "chinese", CHINESE, data_name="常用汉字")])
    report([make_run(where / "hostile", HOSTILE, data_name=SCRIPT)])
    report([where / "three", make_run(where / "four", ["cat", "dog", "owl"], seed=4)], out=where)
