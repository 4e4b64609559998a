"""The whole pipeline where little is as it should be: encodings, no home, nothing to write in."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import tiny_run
from tests.faults.commands import command, mounted_read_only

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux's mounts and locales")

POOR = {
    "PYTHONIOENCODING": "gbk",
    "PYTHONUTF8": None,
    "LANG": "C",
    "LC_ALL": None,
    "LC_CTYPE": None,
    "TERM": "dumb",
    "NO_COLOR": "1",
    "HOME": None,
    "XDG_CACHE_HOME": None,
    "XDG_CONFIG_HOME": None,
    "FIELDMARK_CACHE": None,
    "MPLCONFIGDIR": None,
    "WATCHED_NO_USER": "1",
    "USER": None,
    "LOGNAME": None,
}
CLASSES = {"flat": "猫 cat", "rows": "é狗", "columns": "😀"}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Stripes with names that GBK and ASCII cannot write."""
    root = tiny_run.make_pictures(tmp_path / "数据 集")
    for old, new in CLASSES.items():
        (root / old).rename(root / new)
    return root


@pytest.fixture
def read_only(pictures: Path) -> Iterator[Path]:
    """The pictures where nobody can write, root neither if the system lets it be mounted so."""
    for folder in (*pictures.iterdir(), pictures):
        folder.chmod(0o555)
    yield pictures
    for folder in (pictures, *pictures.iterdir()):
        folder.chmod(0o755)


def test_the_whole_pipeline_in_poor_surroundings(read_only: Path, tmp_path: Path) -> None:
    """By the default recipe, from training to the report: no traceback, and no trace left."""
    before = tiny_run.tree_digest(read_only)
    run = tmp_path / "运行 目录" / "第一 次"
    wrapped = mounted_read_only(read_only)
    told = b""
    for words in (
        ["train", str(read_only), "--out", str(run), "--epochs", "2", "--threads", "1"],
        ["evaluate", str(run), "--data", str(read_only)],
        ["predict", str(run), str(read_only), "--csv", str(tmp_path / "答 案.csv")],
        ["report", str(run)],
        ["export", str(run), "--to", "timm"],
        ["cache"],
    ):
        done = command(words, env=POOR, folder=tmp_path / "watch", cwd=tmp_path, wrapped=wrapped)
        expected = (0, 2, 6) if words[0] in ("export", "cache") else (0,)
        assert done.code in expected, (words, done.err.decode("gbk", "replace"))
        text = done.out + done.err
        assert b"Traceback" not in text, words
        assert b"\x1b" not in text, f"{words[0]} colours a dumb terminal"
        text.decode("gbk")
        assert not done.network, (words, done.network)
        told += text
    assert "猫 cat".encode("gbk") in told
    assert b"\\U0001f600" in told, "what GBK cannot write is told as an escape"
    assert tiny_run.tree_digest(read_only) == before
    names = json.loads((run / "data.json").read_text(encoding="utf-8"))["class_names"]
    assert names == sorted(CLASSES.values())
    assert (run / "report.html").read_text(encoding="utf-8").count("😀") > 0
    unexpected = {p.name for p in tmp_path.iterdir()} - {
        "数据 集",
        "运行 目录",
        "答 案.csv",
        "watch",
    }
    assert not unexpected


@pytest.mark.parametrize("encoding", ["ascii", "cp936"])
def test_answers_in_any_encoding(pictures: Path, tmp_path: Path, encoding: str) -> None:
    """A picture that is none, with a name that the console cannot write, is answered by name."""
    (pictures / "猫 cat" / "坏.png").write_bytes(b"not a picture")
    env = POOR | {"PYTHONIOENCODING": encoding}
    words = ["train", str(pictures), "--out", str(tmp_path / "run"), "--on-bad", "stop"]
    done = command(words, env=env, folder=tmp_path / "watch")
    assert done.code == 3
    assert b"Traceback" not in done.err
    assert "坏.png".encode(encoding, "backslashreplace") in done.err
    assert not (tmp_path / "run").exists()


def test_a_home_that_cannot_be_written(pictures: Path, tmp_path: Path) -> None:
    """The cache folder is a convenience: without one a run is slower, not impossible."""
    home = tmp_path / "home"
    home.write_text("a file, so that nothing can be made below it")
    env = POOR | {"HOME": str(home)}
    flags = tiny_run.flags(tiny_run.SETTINGS | {"epochs": 1})
    done = command(
        ["train", str(pictures), "--out", str(tmp_path / "run"), *flags],
        env=env,
        folder=tmp_path / "watch",
    )
    assert done.code == 0, done.err
    assert home.read_text().startswith("a file")
    assert (tmp_path / "run" / "report.html").is_file()
