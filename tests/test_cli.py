"""The command line as a user meets it: exit codes, messages, JSON keys, hostile names."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fieldmark.cli import _run, app
from fieldmark.runs.directory import RunDirectory

QUICK = ["--model", "small_cnn(width=2)", "--size", "8", "--epochs", "1", "--threads", "1"]


def fieldmark(*words: str) -> int:
    """Run the command line in this process, as ``main`` does."""
    return _run(
        lambda: app([str(w) for w in words], exit_on_error=False, result_action="return_value")
    )


def picture(seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))


def classes(root: Path, names: dict[str, int], *, start: int = 0) -> Path:
    """A folder of class folders, every picture another one."""
    for name, count in names.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for _ in range(count):
            picture(start).save(root / name / f"{start}.png")
            start += 1
    return root


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def refused(capsys: pytest.CaptureFixture[str], code: int, *words: str, wanted: int) -> str:
    """The message of a command that must fail in one paragraph and leave nothing behind."""
    out, err = capsys.readouterr()
    assert code == wanted, err
    assert "Traceback" not in err
    assert out == ""
    for word in words:
        assert word in err, err
    assert not Path("runs").exists()
    return err


class TestFolders:
    """Hostile folder layouts, by the list in reliability.md."""

    def test_missing_file_and_empty(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        refused(capsys, fieldmark("train", str(tmp_path / "nowhere")), "nowhere", wanted=3)
        (tmp_path / "file.txt").write_text("x")
        refused(capsys, fieldmark("train", str(tmp_path / "file.txt")), "folder", wanted=3)
        (tmp_path / "empty").mkdir()
        refused(capsys, fieldmark("train", str(tmp_path / "empty")), "empty", wanted=3)

    def test_pictures_without_classes(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "loose").mkdir()
        picture().save(tmp_path / "loose" / "a.png")
        refused(capsys, fieldmark("train", str(tmp_path / "loose")), "class", wanted=3)

    def test_one_class(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        root = classes(tmp_path / "one", {"cat": 5})
        refused(capsys, fieldmark("train", str(root)), "cat", "two", wanted=3)

    def test_classes_with_no_and_one_picture(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        root = classes(tmp_path / "few", {"a": 9, "b": 9, "lone": 1, "none": 0})
        assert fieldmark("train", str(root), *QUICK) == 0
        out = capsys.readouterr().out
        assert "none" in out
        assert "no val picture of lone" in out
        rows = RunDirectory(Path("runs/few")).read_json("evaluation.json")["parts"]["test"]
        lone = next(row for row in rows["per_class"] if row["name"] == "lone")
        assert lone["n"] == 0
        assert lone["recall"] is None

    def test_system_files_are_ignored(self, tmp_path: Path) -> None:
        root = classes(tmp_path / "mac", {"a": 9, "b": 9, ".ipynb_checkpoints": 2, "__MACOSX": 2})
        for name in (".DS_Store", "._x.jpg", "Thumbs.db", "desktop.ini"):
            (root / "a" / name).write_bytes(b"x")
        assert fieldmark("train", str(root), *QUICK) == 0
        data = RunDirectory(Path("runs/mac")).read_json("data.json")
        assert data["class_names"] == ["a", "b"]
        assert data["bad"] == []

    def test_nested_folders_keep_the_first_level_label(self, tmp_path: Path) -> None:
        root = tmp_path / "nested"
        classes(root / "cat", {"2021": 5, "2022": 5})
        classes(root / "dog", {"2021": 5, "2022": 5}, start=10)
        assert fieldmark("train", str(root), *QUICK) == 0
        assert RunDirectory(Path("runs/nested")).read_json("data.json")["class_names"] == [
            "cat",
            "dog",
        ]

    def test_parts_and_a_class_that_train_lacks(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        root = tmp_path / "parts"
        classes(root / "training_set", {"a": 6, "b": 6})
        classes(root / "valid", {"a": 3}, start=20)
        assert fieldmark("train", str(root), *QUICK) == 0
        out = capsys.readouterr().out
        assert "training_set" in out
        assert "no val picture of b" in out
        classes(root / "valid", {"c": 3}, start=30)
        assert fieldmark("train", str(root), *QUICK) == 3
        assert "c" in capsys.readouterr().err

    def test_order_of_classes_is_pythons(self, tmp_path: Path) -> None:
        root = classes(tmp_path / "order", {"10": 4, "2": 4, "1": 4, "猫": 4, "狗": 4})
        assert fieldmark("train", str(root), *QUICK) == 0
        names = RunDirectory(Path("runs/order")).read_json("data.json")["class_names"]
        assert names == sorted(["10", "2", "1", "猫", "狗"])

    def test_the_same_picture_in_two_parts(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        root = tmp_path / "leak"
        classes(root / "train", {"a": 6, "b": 6})
        classes(root / "val", {"a": 2, "b": 2}, start=50)
        os.link(root / "train" / "a" / "0.png", root / "val" / "a" / "copy.png")
        refused(
            capsys,
            fieldmark("train", str(root), *QUICK, "--fail-on-leak"),
            "train/a/0.png = val/a/copy.png",
            wanted=3,
        )
        assert fieldmark("train", str(root), *QUICK) == 0
        assert "in two splits, so that scores will be too good: 1" in capsys.readouterr().out

    def test_too_many_bad_pictures(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        root = classes(tmp_path / "bad", {"a": 20, "b": 20})
        for i in range(12):
            (root / "a" / f"broken{i}.jpg").write_bytes(b"" if i % 2 else b"no picture at all")
        message = refused(capsys, fieldmark("train", str(root), *QUICK), "12 of 52", wanted=3)
        assert "empty file 6" in message
        assert "not a picture 6" in message
        assert fieldmark("train", str(root), *QUICK, "--on-bad", "exclude") == 0
        run = RunDirectory(Path("runs/bad"))
        assert len(run.read_json("data.json")["bad"]) == 12
        rows = list(
            csv.DictReader(io.StringIO((run.path / "bad_files.csv").read_text("utf-8-sig")))
        )
        assert len(rows) == 12
        assert "left out because they cannot be used: 12" in capsys.readouterr().out

    def test_a_few_bad_pictures_are_left_out(self, tmp_path: Path) -> None:
        root = classes(tmp_path / "some", {"a": 20, "b": 20})
        (root / "b" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nrest")
        before = {f: f.read_bytes() for f in root.rglob("*") if f.is_file()}
        assert fieldmark("train", str(root), *QUICK) == 0
        counts = RunDirectory(Path("runs/some")).read_json("data.json")["counts"]
        assert sum(sum(c) for c in counts.values()) == 40
        assert {f: f.read_bytes() for f in root.rglob("*") if f.is_file()} == before
        assert fieldmark("train", str(root), *QUICK, "--on-bad", "stop") == 3

    def test_all_bad(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name in ("a", "b"):
            (tmp_path / "allbad" / name).mkdir(parents=True)
            (tmp_path / "allbad" / name / "x.jpg").write_bytes(b"")
        words = ("train", str(tmp_path / "allbad"), "--on-bad", "exclude")
        refused(capsys, fieldmark(*words), "no picture is left", wanted=3)


HOSTILE = [
    "猫",
    "戀",
    "𠮷",
    "😀",
    "ＦＵＬＬ",
    "שלום",
    "café",
    "cafe\u0301",
    "Cat",
    "cat",
    "with space",
    "comma,quote\"'",
    "line\nbreak",
    "tab\there",
    "-dash",
    "_underscore",
    "dots..",
    "n" * 255,
    '=HYPERLINK("http:x")',
    "@SUM(1)",
    "<script>alert(1)<",
    '"><img src=x onerror=alert(1)>',
    "$\\frac{1}{",
    "[red]markup[",
    "\x1b[31mred",
    os.fsdecode(b"\xff\xfe"),
]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run whose classes bear hostile names, trained under a Chinese console's encoding."""
    root = tmp_path_factory.mktemp("data") / "名前"
    classes(root, dict.fromkeys(HOSTILE, 8))
    out = tmp_path_factory.mktemp("runs") / "hostile"
    environment = {**os.environ, "PYTHONIOENCODING": "gbk", "PYTHONUTF8": "0"}
    words = ["train", str(root), *QUICK, "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-m", "fieldmark", *words], capture_output=True, env=environment
    )
    assert done.returncode == 0, done.stderr.decode("gbk")
    shown = done.stdout.decode("gbk")
    assert "猫" in shown or "名前" in shown
    assert "\x1b" not in shown
    assert "two Unicode forms" in shown
    assert "Cat" in shown
    return RunDirectory(out)


class TestNames:
    """Names in every script, and names that attack."""

    def test_names_survive_in_every_file(self, hostile: RunDirectory) -> None:
        assert hostile.read_json("data.json")["class_names"] == sorted(HOSTILE)
        assert hostile.model_info().class_names == tuple(sorted(HOSTILE))
        scores = hostile.read_json("evaluation.json")["parts"]["val"]
        assert [row["name"] for row in scores["per_class"]] == sorted(HOSTILE)

    def test_csv_round_trips_and_is_inert(self, hostile: RunDirectory) -> None:
        text = (hostile.path / "predictions.csv").read_bytes().decode("utf-8-sig")
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        labels = {row["label"] for row in rows}
        assert not any(label[0] in "=+-@\t\r" for label in labels)
        read = {label[1:] if label.startswith("'") else label for label in labels}
        safe = {name for name in HOSTILE if not any(0xD800 <= ord(c) < 0xE000 for c in name)}
        assert safe <= read

    def test_pictures_and_page_are_there(self, hostile: RunDirectory) -> None:
        for name in ("curves.png", "confusion.png", "preview.png"):
            Image.open(hostile.path / name).verify()
        page = (hostile.path / "report.html").read_text("utf-8")
        assert "<script>alert" not in page
        assert "<img src=x" not in page

    def test_predict_names_them(
        self, hostile: RunDirectory, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        bad = os.fsdecode(b"\xff.png")
        picture().save(tmp_path / "a.png")
        (tmp_path / "a.png").rename(tmp_path / bad)
        assert fieldmark("predict", str(hostile.path), str(tmp_path / bad)) == 0
        out = capsys.readouterr().out
        assert "\\xff.png" in out or "\\udcff.png" in out
        assert "\x1b" not in out


@pytest.mark.parametrize(
    "words",
    [
        ["--epochs", "0"],
        ["--epochs", "-1"],
        ["--epochs", "1000000000"],
        ["--epochs", "many"],
        ["--batch-size", "0"],
        ["--size", "-7"],
        ["--lr", "nan"],
        ["--lr", "inf"],
        ["--lr", "1e-3x"],
        ["--lr", "0"],
        ["--model", "cifar_resnet(depth=21)"],
        ["--model", "cifar_resnett"],
        ["--model", "timm/resnet19"],
        ["--model", "__import__('os')"],
        ["--augment", "flip_rl"],
        ["--augment", "pad_crop(-1)"],
        ["--mix", "mixup('a')"],
        ["--schedule", "cosin"],
        ["--schedule", "one_cycle", "--warmup-epochs", "1"],
        ["--optimizer", "adamm"],
        ["--monitor", "val_acc"],
        ["--callbacks", "early_stoping"],
        ["--class-weights", "1,2,3"],
        ["--class-weights", "1,-1"],
        ["--seed", "18446744073709551616"],
        ["--split", "1/1"],
        ["--split", "1/0/0"],
        ["--on-bad", "ignore"],
        ["--precision", "f16"],
        ["--device", "gpu"],
        ["--unfreeze-at-epoch", "3"],
        ["--recipe", "tinny"],
        ["--epoch", "3"],
        ["--preview", "--find-lr"],
        ["--config", "/nowhere/config.json"],
    ],
)
def test_nonsense_is_exit_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    root = classes(Path("data"), {"a": 6, "b": 6})
    code = fieldmark("train", str(root), *words)
    out, err = capsys.readouterr()
    assert code == 2, (out, err)
    assert "Traceback" not in err
    assert not Path("runs").exists()


def test_suggestions(capsys: pytest.CaptureFixture[str]) -> None:
    for words, hint in (
        (["--monitor", "val_acc"], "val_accuracy"),
        (["--model", "cifar_resnett"], "cifar_resnet"),
        (["--model", "resnet18"], "timm/resnet18"),
        (["--augment", "flip_l"], "flip_lr"),
    ):
        assert fieldmark("train", "digits", *words) == 2
        assert f"did you mean '{hint}'" in capsys.readouterr().err


def test_other_exit_codes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import torch

    root = str(classes(tmp_path / "data", {"a": 6, "b": 6}))
    assert fieldmark("resume", "nowhere") == 4
    assert fieldmark("evaluate", root) == 4
    assert fieldmark("predict", root, "x.png") == 4
    assert fieldmark("train", root, *QUICK, "--weights", "nowhere.pth") == 4
    if not torch.cuda.is_available():
        assert fieldmark("train", root, *QUICK, "--device", "cuda") == 6
    assert fieldmark("train", root, *QUICK, "--lr", "1e12") == 5
    assert fieldmark("train", root, *QUICK, "--out", "kept") == 0
    assert fieldmark("train", root, *QUICK, "--out", "kept") == 2
    assert "never overwritten" in capsys.readouterr().err
    (tmp_path / "locked").mkdir(mode=0o500)
    if os.geteuid() != 0:
        assert fieldmark("train", root, *QUICK, "--out", str(tmp_path / "locked" / "x")) == 6
    assert fieldmark() == 0


def test_json_keys(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root = str(classes(tmp_path / "data", dict.fromkeys("abcdefg", 8)))
    assert fieldmark("train", root, *QUICK, "--json") == 0
    out, err = capsys.readouterr()
    value = json.loads(out)
    assert list(value) == ["run", "epochs", "steps", "seconds", "best", "val", "test"]
    assert set(value["best"]) == {"epoch", "metric", "value"}
    assert set(value["test"]) == {"accuracy", "n", "low", "high", "loss"}
    assert "epoch 1/1" in err
    assert fieldmark("evaluate", value["run"], "--json") == 0
    scores = json.loads(capsys.readouterr().out)
    wanted = {"part", "accuracy", "n", "low", "high", "top5", "loss", "per_class"}
    assert set(scores) == wanted
    assert scores["top5"] is not None
    with RunDirectory(Path(value["run"])).writing():  # while it trains
        assert fieldmark("evaluate", value["run"]) == 2
        assert "being written by process" in capsys.readouterr().err
        assert fieldmark("report", value["run"], "--json") == 0
    assert json.loads(capsys.readouterr().out)["file"].endswith("report.html")
    assert fieldmark("models", "cifar_res", "--json") == 0
    rows = {row["spec"]: row for row in json.loads(capsys.readouterr().out)}
    assert (rows["cifar_resnet"]["parameters"], rows["cifar_resnet"]["trainable"]) == (
        274_442,
        273_066,
    )
    assert fieldmark("models", "timm/resnet1", "--json") == 0
    found = {row["spec"]: row["about"] for row in json.loads(capsys.readouterr().out)}
    assert "a1_in1k" in found["timm/resnet18"]
    assert fieldmark("models", "cifar_resnet(depth=8)", "--num-classes", "7", "--json") == 0
    layers = json.loads(capsys.readouterr().out)
    assert layers["classes"] == 7
    assert layers["layers"][-1]["output"] == [7]
    assert fieldmark("recipes", "--json") == 0
    assert "tiny" in json.loads(capsys.readouterr().out)


@pytest.mark.drawn
def test_preview_and_find_lr_train_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root = str(classes(tmp_path / "data", {"a": 8, "b": 8}))
    assert fieldmark("train", root, *QUICK, "--preview", "--json") == 0
    preview = Path(json.loads(capsys.readouterr().out)["file"])
    assert [f.name for f in preview.parent.iterdir()] == ["preview.png"]
    assert fieldmark("train", root, *QUICK, "--find-lr", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert 1e-6 < found["lr"] < 10
    assert Path(found["file"]).is_file()


def test_several_runs_on_one_page(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root = str(classes(tmp_path / "data", {"a": 8, "b": 8}))
    for seed in ("0", "1"):
        assert fieldmark("train", root, *QUICK, "--seed", seed) == 0
    capsys.readouterr()
    assert fieldmark("report", "runs/data", "runs/data-2", "--out", "both.html") == 0
    page = Path("both.html").read_text("utf-8")
    assert "data-2" in page


def test_privacy_no_path_or_user_in_any_file(tmp_path: Path) -> None:
    root = classes(tmp_path / "secretuser" / "photos", {"a": 8, "b": 8})
    assert fieldmark("train", str(root), *QUICK) == 0
    for file in Path("runs/photos").iterdir():
        content = file.read_bytes()
        assert str(tmp_path).encode() not in content, file
        assert b"secretuser" not in content or file.name == "data.json", file


def test_models_shows_the_layers_of_one_and_the_list_of_many(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert fieldmark("models", "sneaker_cnn") == 0
    out = capsys.readouterr().out
    assert "22,151,296" in out  # the dense layer, as the tutorial prints it
    assert "parameters  22,175,138" in out
    assert fieldmark("models", "cifar_vgg") == 0
    assert "21,360,010 parameters,   10 classes" in capsys.readouterr().out
    assert fieldmark("models", "cifar_vgg", "--size", "64") == 2
    assert "is not one" in capsys.readouterr().err


def test_compare_takes_the_recipes_own_networks(capsys: pytest.CaptureFixture[str]) -> None:
    assert fieldmark("compare", "digits", "--recipe", "tiny") == 2
    assert "two" in capsys.readouterr().err
    assert fieldmark("compare", "digits", "--seed", "1") == 2


def test_a_model_against_itself(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root = str(classes(tmp_path / "data", {"a": 16, "b": 16}))
    words = ("compare", root, "--models", "small_cnn(width=2)", "small_cnn(width=2)")
    quick = (
        "--seeds",
        "1",
        "--out",
        str(tmp_path / "out"),
        "--size",
        "8",
        "--epochs",
        "1",
        "--threads",
        "1",
    )
    assert fieldmark(*words, *quick, "--json") == 0
    value = json.loads(capsys.readouterr().out)
    assert value["pairs"][0]["p"] == 1
    assert "no difference shown" in value["pairs"][0]["verdict"]
    assert Path(value["folder"], "compare.html").is_file()
