"""The example plugin from the command line and from Python; without it, and of another version."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fieldmark
from fieldmark import cli, testing
from fieldmark.errors import RunError
from fieldmark.jobs.evaluate import own_data
from fieldmark.runs.directory import RunDirectory
from fieldmark.runs.model import description_of
from tests.plugins.conftest import ROOT, Sites

WORDS = [
    *(
        "--model",
        "tiny_mixer(width=4, depth=1)",
        "--size",
        "8",
        "--augment",
        "uneven_light|flip_lr",
    ),
    *("--metrics", "quadratic_kappa|top_k(2)", "--monitor", "val_quadratic_kappa"),
    *("--epochs", "2", "--batch-size", "16", "--threads", "1", "--recipe", "tiny"),
]
NAMES = {
    "augmentations": ["uneven_light"],
    "metrics": ["quadratic_kappa"],
    "networks": ["tiny_mixer"],
    "readers": ["labels_csv"],
}


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(word) for word in words])
    assert isinstance(stop.value.code, int)
    return stop.value.code


@pytest.fixture(scope="module")
def finished(
    _sites: Sites, versions: dict[str, Path], photos: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A run that used all four, as the command line makes it."""
    _sites(versions["0.1.0"])
    out = tmp_path_factory.mktemp("finished") / "run"
    assert run("train", f"labels_csv:{photos / 'labels.csv'}", *WORDS, "--out", out) == 0
    _sites(None)
    yield out


@pytest.fixture
def trained(finished: Path, tmp_path: Path) -> Path:
    """A copy, as far from its pictures as the original."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_its_four_words_from_the_command_line(
    trained: Path, photos: Path, versions: dict[str, Path], use: Sites, capsys: Any
) -> None:
    use(versions["0.1.0"])
    config = json.loads((trained / "config.json").read_text())
    (need,) = config["plugins"]
    assert need == {
        "package": "fieldmark-example",
        "version": "0.1.0",
        "plugin": "example",
        "names": NAMES,
    }
    (small,) = description_of(trained / "model.safetensors").plugins
    assert small.names == (("networks", "tiny_mixer"),)
    scores = json.loads((trained / "evaluation.json").read_text())["parts"]["test"]
    assert set(scores["metrics"]) == {"quadratic_kappa", "top_k(2)"}
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert all("val_quadratic_kappa" in record for record in records)
    page = (trained / "report.html").read_text()
    assert all(f"<small>{name} " in page for name in scores["metrics"])
    path = json.loads((trained / "data.json").read_text())["path"]
    assert path.startswith("labels_csv:..") and str(photos) not in path

    assert run("predict", trained, photos / "1.png", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["label"].startswith("grade")
    before = (trained / "evaluation.json").read_bytes()
    assert run("evaluate", trained) == 0
    assert (trained / "evaluation.json").read_bytes() == before
    assert "quadratic_kappa" in capsys.readouterr().out
    assert run("resume", trained) == 0
    assert (trained / "evaluation.json").read_bytes() == before
    assert run("plugins", "--json") == 0
    (row,) = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (row["package"], row["version"], row["trouble"]) == ("fieldmark-example", "0.1.0", "")
    assert row["adds"] == NAMES
    assert run("models", "tiny_") == 0
    assert "tiny_mixer" in capsys.readouterr().out


def test_without_it_and_with_another_version(
    trained: Path, photos: Path, versions: dict[str, Path], use: Sites, capsys: Any
) -> None:
    commands: list[tuple[object, ...]] = [
        ("predict", trained, photos / "1.png"),
        ("evaluate", trained),
        ("resume", trained),
        ("export", trained, "--to", "onnx"),
    ]
    use(None)
    for words in commands:
        assert run(*words) == 4, words
        error = capsys.readouterr().err
        assert "needs the plugin fieldmark-example 0.1.0 (" in error
        assert "which is not installed: pip install fieldmark-example==0.1.0" in error
    assert run("report", trained) == 0  # which needs none of it
    with pytest.raises(RunError, match=r"needs the plugin fieldmark-example 0\.1\.0 \(reader"):
        own_data(RunDirectory.open(trained))
    use(versions["0.2.0"])
    capsys.readouterr()
    for words in commands:
        assert run(*words) == 4, words
        error = capsys.readouterr().err
        assert "but 0.2.0 is installed" in error and "--allow-plugin-version" in error
    for words in commands[:3]:
        assert run(*words, "--allow-plugin-version") == 0, words
        told = capsys.readouterr()
        assert "0.2.0 is taken" in told.out + told.err
    with pytest.raises(RunError, match="allow_plugin_version=True"):
        fieldmark.load(trained).evaluate(progress=False)
    newer = description_of(trained / "model.safetensors").plugins
    assert [need.version for need in newer] == ["0.1.0"]  # it was finished by then


def test_from_python(versions: dict[str, Path], photos: Path, use: Sites, tmp_path: Path) -> None:
    use(versions["0.1.0"])
    made = fieldmark.train(
        f"labels_csv:{photos / 'labels.csv'}",
        recipe="tiny",
        model="tiny_mixer(width=4)",
        size=8,
        augment="uneven_light(0.5)",
        metrics="quadratic_kappa",
        epochs=1,
        threads=1,
        out=tmp_path / "run",
        progress=False,
    )
    assert "quadratic_kappa" in made.scores["val"]["metrics"]
    (found,) = fieldmark.load(made.path).predict(photos / "2.png")
    assert found.label.startswith("grade")


def test_its_own_contracts(versions: dict[str, Path], use: Sites, photos: Path) -> None:
    use(versions["0.1.0"])
    from fieldmark import plugins

    (loaded,) = plugins.load_all()
    testing.check_plugin(loaded.plugin)
    testing.check_reader(loaded.plugin.readers["labels_csv"], str(photos / "labels.csv"))


@pytest.mark.slow
def test_pip_installs_it_and_its_tests_pass(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "examples" / "plugin", copy)
    target = tmp_path / "site"
    flags = ["--no-build-isolation", "--no-deps", "--no-index", "--quiet", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *flags, copy], check=True)
    assert list(target.glob("fieldmark_example-0.1.0.dist-info/entry_points.txt"))
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", copy / "tests"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (target, ROOT / "src")))},
        check=True,
        cwd=tmp_path,
    )
