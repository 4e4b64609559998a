"""The league of ``benchmarks/``: subsets, rows that go on, and what follows from them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest
from sklearn.datasets import load_digits

from benchmarks import command, tables
from benchmarks.__main__ import PAGE, main
from benchmarks.league import methods, run, sets, table
from benchmarks.league.methods import Method, Scored, Task
from benchmarks.league.rows import Row, Rows
from benchmarks.league.sets import PictureSet, Place, build
from benchmarks.machine import kind
from benchmarks.measure import Skipped
from benchmarks.peers import pixel_regression, timm_finetune
from benchmarks.processes import Failed, TooLong
from fieldmark.errors import ConfigError

LABELS = ("cat", "dog")


def written(folder: Path, count: int) -> None:
    """Pictures of two classes, each of one colour of its own."""
    for label in LABELS:
        (folder / label).mkdir(parents=True)
        for number in range(count):
            colour = (200 if label == "cat" else 20, number * 5, 90)
            Image.new("RGB", (12, 10), colour).save(folder / label / f"{number:02}.png")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """DIR with a divided and a flat set in it."""
    written(tmp_path / "data" / "whole" / "train", 12)
    written(tmp_path / "data" / "whole" / "test", 6)
    written(tmp_path / "data" / "flat", 8)
    return tmp_path / "data"


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch, data: Path) -> Place:
    """Two sets in place of the league's."""
    for name in list(sets.SETS):
        monkeypatch.delitem(sets.SETS, name)
    monkeypatch.setitem(sets.SETS, "flat", PictureSet(sets.flat("flat")))
    monkeypatch.setitem(
        sets.SETS, "whole", PictureSet(sets.divided("whole"), train=3, test=2, kind="characters")
    )
    return Place(data)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))


# --- subsets -------------------------------------------------------------------------------------


def test_subsets_have_pictures_of_their_own_the_same_every_time(
    three: Place, data: Path, tmp_path: Path
) -> None:
    built = [build("whole", number, three, tmp_path / str(number)) for number in range(3)]
    for one in built:
        assert (one.train, one.test, one.pool, one.side) == (6, 4, 12, 10)
        assert {path.parent.name for path in one.folder.glob("train/*/*")} == set(LABELS)
    for part in ("train", "test"):
        drawn = [names(one.folder / part) for one in built]
        assert len({name for each in drawn for name in each}) == sum(map(len, drawn))
    again = build("whole", 1, three, tmp_path / "again")
    assert names(again.folder) == names(built[1].folder)
    source = data / "whole" / "train" / names(built[0].folder / "train")[0]
    assert (built[0].folder / "train" / names(built[0].folder / "train")[0]).read_bytes() == (
        source.read_bytes()
    )


def test_a_flat_set_is_divided_by_class_and_each_subset_tests_on_other_pictures(
    three: Place, tmp_path: Path
) -> None:
    built = [build("flat", number, three, tmp_path / str(number)) for number in range(4)]
    tested: list[str] = []
    for one in built:
        train, test = (names(one.folder / part) for part in ("train", "test"))
        assert (len(train), len(test)) == (12, 4)
        assert not set(train) & set(test)
        tested += test
    assert len(set(tested)) == 16 == built[0].pool


def test_a_set_may_be_classes_and_begins_anew_when_all_were_drawn(
    three: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sets.SETS, "one", PictureSet(sets.divided("whole"), classes=1))
    drawn = []
    for number in range(3):
        one = build("one", number, three, tmp_path / str(number))
        (label,) = [path.name for path in (one.folder / "train").iterdir()]
        drawn.append(label)
        assert (one.train, one.test, one.pool) == (12, 6, 12)
    assert sorted(drawn[:2]) == list(LABELS)
    assert drawn[2] == drawn[0]


def test_digits_are_those_of_scikit_learn(tmp_path: Path) -> None:
    one = build("digits", 0, Place(None), tmp_path / "digits", quick=True)
    assert (one.train, one.test, one.pool, one.side) == (18, 12, 1797, 8)
    expected = load_digits()
    for file in one.folder.rglob("*.png"):
        with Image.open(file) as image:
            found = np.asarray(image) / 255 * 16
        assert np.abs(found - expected.images[int(file.stem)]).max() < 0.04
        assert file.parent.name == str(expected.target[int(file.stem)])


def test_fashion_comes_from_idx_files_packed_or_not(tmp_path: Path) -> None:
    pixels = np.arange(8 * 28 * 28).reshape(8, 28, 28).astype(np.uint8)
    labels = np.arange(8, dtype=np.uint8) % 2
    for part in ("train", "t10k"):
        head = b"\0\0\x08\x03" + b"".join(n.to_bytes(4, "big") for n in pixels.shape)
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(
            gzip.compress(head + pixels.tobytes())
        )
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(
            b"\0\0\x08\x01" + len(labels).to_bytes(4, "big") + labels.tobytes()
        )
    one = build("fashion-50", 0, Place(None, tmp_path), tmp_path / "out")
    assert (one.train, one.test, one.side) == (8, 8, 28)
    with Image.open(tmp_path / "out" / "train" / "1" / "00003.png") as image:
        assert (np.asarray(image) == pixels[3]).all()
    with pytest.raises(Skipped, match=r"dataset-fashion-mnist.*--fashion DIR"):
        build("fashion-50", 0, Place(None, tmp_path / "nowhere"), tmp_path / "none")


def test_a_set_that_is_not_there_is_asked_for(three: Place, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"give --data DIR.*flat/CLASS"):
        build("flat", 0, Place(None), tmp_path / "out")
    with pytest.raises(ConfigError, match="must be a folder with whole/train/CLASS"):
        build("whole", 0, Place(tmp_path), tmp_path / "out")


def test_the_old_default_goes_by_size_and_number() -> None:
    def of(side: int, train: int) -> str:
        return sets.old_default(sets.Subset(Path(), train, 1, 1, side))

    assert [of(96, 9), of(97, 1_999), of(97, 2_000)] == ["tiny", "probe", "finetune"]


# --- what follows from rows ----------------------------------------------------------------------


def row(name: str, number: int, method: str, right: int = 0, **rest: Any) -> Row:
    about = {"train": 10, "pool": 250, "old_default": "tiny", "n": 100, "seconds": 10.0}
    about["cpu_s"] = rest.get("seconds", 10.0)
    return Row(name, number, method, "2026-01-01", "", **{**about, "right": right, **rest})


def test_the_default_is_held_against_the_best_on_the_same_subsets() -> None:
    rows = [
        row("birds", 0, "default", 90), row("birds", 1, "default", 80, seconds=20.0),
        row("birds", 0, "probe", 89), row("birds", 1, "probe", 83),
        row("birds", 0, "finetune", 99),  # not on the other subset: it is not the best of both
        row("birds", 0, "tiny", 50), row("birds", 1, "tiny", 40),
        row("birds", 0, "fastai", 84, seconds=15.0), row("birds", 1, "fastai", 84, seconds=15.0),
        row("birds", 0, "timm", error="over 5 s", n=0), row("birds", 1, "timm", 100),
    ]  # fmt: skip
    (one,) = table.standings(rows)
    assert one.recipe is not None and one.peer is not None and one.old is not None
    assert (one.recipe.name, one.peer.name, one.old.name) == ("probe", "fastai", "tiny")
    assert one.default.accuracy == pytest.approx(0.85)
    assert one.gain(one.recipe) == pytest.approx(-0.01)
    assert one.default.seconds == one.peer.seconds == 15.0
    assert one.beats_peer
    # Two subsets of 100 pictures each, all different; of three only 250 are.
    interval = binomtest(170, 200).proportion_ci(method="wilson")
    assert (one.default.low, one.default.high) == pytest.approx(tuple(interval))
    third = [*rows, row("birds", 2, "default", 85)]
    assert table.standings(third)[0].default.n == 250
    assert table.standings(third)[0].peer is None  # no peer has a score on all three


def test_findings_say_on_which_sets_a_goal_is_missed() -> None:
    rows = [
        row("birds", 0, "default", 90), row("birds", 0, "tiny", 91), row("birds", 0, "keras", 90),
        row("digits", 0, "default", 80), row("digits", 0, "tiny", 82),
        row("digits", 0, "keras", 70, seconds=9.0),
        row("plates", 0, "default", 80), row("plates", 0, "probe", 10),
        row("plates", 0, "tiny", error="failed: no", n=0), row("plates", 0, "keras", 81),
    ]  # fmt: skip
    value = {
        "machine": {"kind": "avx2", "processor": "P", "cores": 2, "memory_gb": 8, "system": "S"},
        "date": "2026-01-01", "versions": {"torch": "1"}, "skipped": {"fashion-50": "no file"},
        "rows": [vars(each) for each in rows],
    }  # fmt: skip
    text = table.section([value])
    assert "| default less best single recipe, the worst of the sets, points | -2 | 3 |" in text
    assert "| at least -1 | missed | digits |" in text
    assert "| default less old default, the worst of the sets, points | -2 | 2 |" in text
    peer = "sets where the default beats the best peer in no more processor time | 0 | 3 |"
    assert peer in text
    assert "birds (equal), digits (slower), plates (worse)" in text
    line = (
        "| plates | 1 | **0.800** (0.711 to 0.867, n = 100), 10 s (processor 10 s) | probe 0.100, "
    )
    assert line in text
    assert "- fashion-50: skipped: no file" in text
    assert "failed |" in text


def test_the_page_is_written_from_rows(tmp_path: Path) -> None:
    """The league has no rounds, and so no curves, unlike what else the page shows."""
    rows = Rows(tmp_path / f"league.{kind()}.json", quick=False)
    rows.add(row("birds", 0, "default", 90))
    page = tables.write({"league": PAGE["league"]}, folder=tmp_path, docs=tmp_path).read_text(
        "utf-8"
    )
    assert "| birds | 1 | **0.900**" in page
    assert not list(tmp_path.glob("*.svg"))


# --- the command ---------------------------------------------------------------------------------


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch, three: Place) -> list[str]:
    """Three methods in place of the league's; what was run."""
    done: list[str] = []

    def method(name: str, role: Any, answer: Scored | Exception) -> Method:
        def work(task: Task) -> Scored:
            done.append(f"{task.set} {task.number} {name}")
            assert len(names(task.subset.folder / "train")) == task.subset.train
            if isinstance(answer, Exception):
                raise answer
            return answer

        return Method(name, role, work, lambda s: "flat" if s.folder.name == name else "")

    every = (
        method("default", "default", Scored(3, 4, 2.0, 100.0, "how")),
        method("tiny", "recipe", TooLong("over 7 s")),
        method("flat", "peer", Scored(4, 4, 9.0, 100.0, "")),
    )
    for place in (run, table):
        monkeypatch.setattr(place, "METHODS", every)
    return done


def league(data: Path, folder: Path, *words: str) -> int:
    return main(["league", "--data", str(data), "--results", str(folder), *words])


def stored(folder: Path) -> list[dict[str, Any]]:
    value = json.loads((folder / f"league.{kind()}.json").read_text("utf-8"))
    rows: list[dict[str, Any]] = value["rows"]
    return rows


def test_every_set_has_its_first_subset_first_and_its_methods_together(
    log: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert league(data, tmp_path, "--subsets", "2") == 0
    assert log == [
        "flat 0 default", "flat 0 tiny",
        "whole 0 default", "whole 0 tiny", "whole 0 flat",
        "flat 1 default", "flat 1 tiny",
        "whole 1 default", "whole 1 tiny", "whole 1 flat",
    ]  # fmt: skip
    rows = stored(tmp_path)
    assert len(rows) == 12
    assert (rows[0]["right"], rows[0]["n"], rows[0]["seconds"]) == (3, 4, 2.0)
    assert rows[1]["error"] == "over 7 s"
    assert rows[2]["error"] == "does not apply: flat"
    out = capsys.readouterr()
    assert "| whole | 2 | **0.750**" in out.out
    assert "rows left" not in out.out


def test_it_goes_on_and_asks_again_only_what_it_is_told(
    log: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = ("--sets", "whole", "--subsets", "1")
    assert league(data, tmp_path, *whole, "--methods", "default", "tiny") == 0
    assert league(data, tmp_path, *whole) == 2
    assert "--go-on" in capsys.readouterr().err
    for words, expected in (
        (["--go-on"], ["whole 0 flat"]),
        (["--go-on"], []),
        (["--again", "failed"], ["whole 0 tiny"]),
        (["--again", "default"], ["whole 0 default"]),
        (["--go-on", "--hours", "0", "--sets", "whole", "flat"], []),
    ):
        log.clear()
        assert league(data, tmp_path, *whole, *words) == 0
        assert log == expected, words
    assert "rows left: 3" in capsys.readouterr().out
    assert len(stored(tmp_path)) == 3


def test_a_stop_keeps_the_rows_so_far(
    log: list[str], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(task: Task) -> Scored:
        raise KeyboardInterrupt

    stopping = (table.METHODS[0], Method("tiny", "recipe", stop))
    monkeypatch.setattr(run, "METHODS", stopping)
    with pytest.raises(KeyboardInterrupt):
        league(data, tmp_path)
    assert [one["method"] for one in stored(tmp_path)] == ["default"]


def test_wrong_words_are_refused(
    log: list[str], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, told in (
        (["--sets", "wole"], "did you mean 'whole'"),
        (["--methods", "keras"], "--methods: nothing is called 'keras'"),
        (["--again", "nobody"], "--again: nothing is called 'nobody'"),
        (["--subsets", "0"], "--subsets is 0"),
    ):
        assert league(data, tmp_path, *words) == 2, words
        assert told in capsys.readouterr().err
    assert log == []


# --- methods -------------------------------------------------------------------------------------


def task(tmp_path: Path, *, number: int = 0, train: int = 100, side: int = 32) -> Task:
    subset = sets.Subset(tmp_path, train, 10, 10, side)
    return Task("digits", subset, number, tmp_path, 60.0, False, "some-python")


def test_the_default_is_the_command_without_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[tuple[object, ...]] = []

    def train(data: Path, scratch: Path, *flags: object, limit_s: float) -> Any:
        called.append(flags)
        raise Failed("failed: no")

    monkeypatch.setattr(command, "train", train)
    default, probe = (m for m in methods.METHODS if m.name in ("default", "probe"))
    for method in (default, probe):
        for number in (0, 2):
            with pytest.raises(Failed):
                method.run(task(tmp_path, number=number))
    assert called == [
        (), ("--seed", 2), ("--recipe", "probe"), ("--recipe", "probe", "--seed", 2)
    ]  # fmt: skip


def test_peers_are_told_size_epochs_and_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: dict[str, Any] = {}

    def program(name: str, folder: Path, *words: object, **rest: Any) -> Any:
        called[name] = (words, rest["python"] == "some-python", rest["limit_s"])
        raise Failed("failed: no")

    monkeypatch.setattr(methods, "program", program)
    peers = {m.name: m for m in methods.METHODS if m.kind == "peer"}
    assert set(peers) == set(methods.LABELS)
    for train, side in ((100, 32), (4_000, 200)):
        for method in peers.values():
            with pytest.raises(Failed):
                method.run(task(tmp_path, number=1, train=train, side=side))
        epochs, size = ((10, 128), (4, 224))[train == 4_000]
        for name in ("fastai_finetune", "timm_finetune"):
            assert called[name] == ((epochs, 1, size, "characters"), False, 60.0)
        keras = (100, 40)[train == 4_000]
        assert called["keras_tutorial_scored"] == ((keras, 1, "characters"), True, 60.0)
    assert peers["keras"].applies(task(tmp_path, side=96).subset) == ""
    assert "have 97" in peers["keras"].applies(task(tmp_path, side=97).subset)


def test_the_regression_learns_colours_and_makes_grey_one_number(tmp_path: Path) -> None:
    written(tmp_path / "train", 6)
    written(tmp_path / "test", 4)
    assert pixel_regression.main(tmp_path, 0) == (8, 8)


def test_characters_are_not_mirrored_and_not_cut(tmp_path: Path) -> None:
    wanted = {"input_size": (3, 32, 32), "mean": (0.0,) * 3, "std": (1.0,) * 3, "crop_pct": 0.8}
    for characters in (True, False):
        steps = repr(timm_finetune.transforms(wanted, training=True, characters=characters))
        assert ("RandomHorizontalFlip" in steps) is not characters
    tall = Image.new("RGB", (32, 64))
    tall.putpixel((16, 0), (255, 255, 255))  # a stroke at the very top
    seen = [
        float(timm_finetune.transforms(wanted, training=False, characters=kind)(tall).max())
        for kind in (True, False)
    ]
    assert seen[0] > 0.2
    assert seen[1] == 0.0
