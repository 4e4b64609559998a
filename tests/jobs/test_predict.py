"""One answer or one reason for each picture, and the same answer as evaluation's."""

from __future__ import annotations

import csv
import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fieldmark
from fieldmark.cli import _run, app
from fieldmark.jobs import predict
from fieldmark.jobs.given import expanded
from fieldmark.jobs.plan import prepare
from fieldmark.pictures.decode import decode_file
from fieldmark.pictures.limits import PictureLimits
from fieldmark.runs.directory import RunDirectory
from fieldmark.serve.classifier import RunClassifier
from tests.making import asked


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> fieldmark.Run:
    """A small network on colours: three classes, sizes that differ, some with alpha."""
    root = tmp_path_factory.mktemp("data") / "colours"
    rng = np.random.default_rng(1)
    for k, name in enumerate(("red", "grün", "蓝")):
        (root / name).mkdir(parents=True)
        for i in range(30):
            image = rng.integers(0, 160, (*rng.integers(9, 40, 2), 3))
            image[..., k] += 60
            Image.fromarray(image.astype(np.uint8)).save(root / name / f"{i}.png")
    return fieldmark.train(
        root,
        model="small_cnn(width=4)",
        size=16,
        epochs=3,
        out=tmp_path_factory.mktemp("runs") / "colours",
        resize="crop",
        lr=0.02,
        progress=False,
    )


def data_of(run: fieldmark.Run) -> Path:
    stored = RunDirectory(run.path).read_json("data.json")
    return (run.path / stored["path"]).resolve()


def test_evaluation_and_prediction_agree_on_every_picture(run: fieldmark.Run) -> None:
    text = (run.path / "predictions.csv").read_text(encoding="utf-8-sig")
    rows = [row for row in csv.DictReader(io.StringIO(text)) if row["part"] == "test"]
    assert len(rows) == run.scores["test"]["n"]
    root = data_of(run)
    for row, answer in zip(rows, run.predict([root / r["file"] for r in rows]), strict=True):
        assert answer.label == row["predicted"]
        assert abs(answer.prob - float(row["prob"])) < 1e-5
        alone = run.predict(root / row["file"])[0]
        assert abs(alone.prob - answer.prob) < 1e-5


def test_evaluate_again_gives_the_same_scores(run: fieldmark.Run) -> None:
    before = run.scores
    again = run.evaluate(progress=False)
    for part in ("val", "test"):
        assert again[part]["confusion"] == before[part]["confusion"]
        assert abs(again[part]["loss"] - before[part]["loss"]) < 1e-6


def test_files_pil_images_and_arrays_get_the_same_answer(run: fieldmark.Run) -> None:
    file = sorted((data_of(run) / "red").glob("*.png"))[0]
    image = Image.open(file)
    array = np.asarray(image)
    answers = run.predict([file, image, array, array / 255.0, str(file)])
    assert len({answer.prob for answer in answers}) == 1
    assert [answer.file for answer in answers][1:4] == ["#1", "#2", "#3"]
    assert answers[0].top[0] == (answers[0].label, answers[0].prob)
    assert abs(sum(prob for _, prob in answers[0].top) - 1) < 1e-6


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((3,), np.uint8),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.int64),
        np.full((4, 4, 3), 2.0),
        np.full((4, 4), np.nan),
    ],
)
def test_arrays_that_are_no_pictures(run: fieldmark.Run, array: np.ndarray) -> None:
    with pytest.raises(fieldmark.DataError):
        run.predict(array)


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(b"\0" * ((width + 7) // 8 + 1) * 8)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Good and bad files side by side."""
    folder = tmp_path / "odd"
    folder.mkdir()
    rng = np.random.default_rng(2)
    rgb = Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8))
    rgb.save(folder / "good.png")
    rgb.save(folder / "good.jpg", quality=95)
    jpeg = (folder / "good.jpg").read_bytes()
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "half.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (folder / "text.jpg").write_text("this is no picture")
    (folder / "page.png").write_text("<!doctype html><html><body>404</body></html>")
    (folder / "bomb.png").write_bytes(png(20_000, 20_000))
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    sixteen = rng.integers(0, 65535, (40, 60), dtype=np.uint16)
    Image.fromarray(sixteen).save(folder / "sixteen.png")
    rgb.convert("RGBA").save(folder / "rgba.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.save(folder / "rotated.jpg", exif=exif)
    rgb.convert("P").save(folder / "palette.gif")
    Image.fromarray(rng.integers(0, 255, (1, 5000, 3), dtype=np.uint8)).save(folder / "strip.png")
    Image.fromarray(rng.integers(0, 255, (1, 1, 3), dtype=np.uint8)).save(folder / "dot.png")
    (folder / "wrong-name.jpg").write_bytes((folder / "good.png").read_bytes())
    return folder


BAD = {"empty.jpg", "half.jpg", "text.jpg", "page.png", "bomb.png"}


def test_one_answer_or_reason_for_each_file(run: fieldmark.Run, odd: Path) -> None:
    before = {file.name: file.read_bytes() for file in odd.iterdir()}
    answers = {Path(a.file).name: a for a in run.predict(odd)}
    assert set(answers) == set(before)
    assert {name for name, answer in answers.items() if answer.error} == BAD
    assert answers["good.png"].prob == answers["wrong-name.jpg"].prob
    assert {file.name: file.read_bytes() for file in odd.iterdir()} == before


def test_command_exits_0_and_prints_json(
    run: fieldmark.Run, odd: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    table = tmp_path / "out" / "answers.csv"
    words = ["predict", str(run.path), str(odd), str(odd / "no.png"), "--json", "--csv", str(table)]
    code = _run(lambda: app(words, exit_on_error=False, result_action="return_value"))
    out = capsys.readouterr().out
    assert code == 0
    value = json.loads(out)
    assert len(value) == 16
    for row in value:
        assert set(row) in ({"file", "label", "prob", "top"}, {"file", "error"})
    rows = list(csv.DictReader(io.StringIO(table.read_text(encoding="utf-8-sig"))))
    assert len(rows) == 16
    assert sum(1 for row in rows if row["error"]) == len(BAD) + 1


def test_many_blocks_keep_their_order_and_few_are_read_ahead(
    run: fieldmark.Run, odd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "BLOCK", 3)
    files = sorted(odd.iterdir())
    read, scored, ahead = 0, 0, []

    def reading(*args: Any) -> Any:
        nonlocal read
        read += 1
        ahead.append(read - scored)
        return fitted(*args)

    def done(now: int, total: int) -> None:
        nonlocal scored
        scored = now

    fitted = predict._resized
    monkeypatch.setattr(predict, "_resized", reading)
    model = RunDirectory(run.path).load_model()
    answers = predict.predict(model, files, limits=PictureLimits(), threads=2, progress=done)
    assert [a.file for a in answers] == list(map(str, files))
    assert {Path(a.file).name for a in answers if a.error} == BAD
    assert scored == len(files)
    assert max(ahead) <= 2 * 3
    for answer, alone in zip(answers, map(run.predict, files), strict=True):
        assert (answer.label, answer.error) == (alone[0].label, alone[0].error)
        assert abs(answer.prob - alone[0].prob) < 1e-5


def test_a_wrong_array_among_many_stops_the_reading(
    run: fieldmark.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "BLOCK", 2)
    good = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(fieldmark.DataError, match="int64"):
        run.predict([good, good, good.astype(np.int64), *[good] * 9])


def test_patterns_and_missing_files(run: fieldmark.Run, odd: Path) -> None:
    assert len(run.predict(str(odd / "*.gif"))) == 1
    with pytest.raises(fieldmark.DataError, match="nothing matches"):
        run.predict(str(odd / "*.bmp"))
    assert run.predict(str(odd / "no.jpg"))[0].error == "no such file"
    with pytest.raises(fieldmark.DataError, match="no pictures were given"):
        run.predict([])


@pytest.mark.parametrize(
    ("given", "says"),
    [("missing/", "there is no folder missing/"), ("missing", "no file or folder missing")],
)
def test_a_folder_that_is_not_there_is_an_error(
    run: fieldmark.Run, given: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = _run(lambda: app(["predict", str(run.path), given], result_action="return_value"))
    assert code == 3
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("place", ["set [1]", "a*b?", "[!x]/[2]", "plain"])
def test_a_pattern_below_a_folder_with_brackets(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (place, "set 1"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for name in ("1.png", "[2].png", "3.jpg"):
            (tmp_path / folder / name).touch()
    monkeypatch.chdir(tmp_path)
    wanted = [str(Path(place, name)) for name in ("1.png", "[2].png")]
    for base in (Path(), tmp_path):
        found = expanded([str(base / place / "*.png")])
        assert [name for name, _ in found] == [str(base / name) for name in wanted]
    assert [n for n, _ in expanded([f"{place}/[13].*"])] == [
        f"{place}/1.png",
        f"{place}/3.jpg",
    ]
    if "[" not in place[0]:
        found = expanded([f"{tmp_path}/*/[[]2].png"])
        assert f"{tmp_path}/{place}/[2].png" in [name for name, _ in found]


def test_a_bracket_after_a_pattern_may_mean_itself(tmp_path: Path) -> None:
    (tmp_path / "x" / "set [7]").mkdir(parents=True)
    (tmp_path / "x" / "set [7]" / "1.png").touch()
    (found,) = expanded([f"{tmp_path}/*/set [7]/*.png"])
    assert found[0] == f"{tmp_path}/x/set [7]/1.png"


def test_other_pictures_can_be_scored(
    run: fieldmark.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "more"
    for name in ("蓝", "red"):
        (other / name).mkdir(parents=True)
        for i, file in enumerate(sorted((data_of(run) / name).glob("*.png"))[:5]):
            (other / name / f"{i}.png").write_bytes(file.read_bytes())
    before = (run.path / "evaluation.json").read_bytes()
    scores = run.evaluate(other, progress=False)["test"]
    assert scores["n"] == 10
    rows = RunDirectory(run.path).read_json("data.json")["parts"]["train"]
    trained = {(data_of(run) / key).read_bytes() for key, _, _ in rows}
    seen = sum(path.read_bytes() in trained for path in other.rglob("*.png"))
    assert scores["trained_on"] == seen > 0
    assert (
        app(["evaluate", str(run.path), "--data", str(other)], result_action="return_value") is None
    )
    told = capsys.readouterr()
    assert f"{seen} of these 10 pictures are among those" in told.out
    assert "\nnot a test: accuracy" in told.out
    assert [row["n"] for row in scores["per_class"]] == [0, 5, 5]
    assert scores["per_class"][0]["recall"] is None
    assert (run.path / "evaluation.json").read_bytes() == before
    assert (run.path / "evaluation-more.json").is_file()
    (other / "gelb").mkdir()
    (other / "gelb" / "a.png").write_bytes(file.read_bytes())
    with pytest.raises(fieldmark.DataError, match="gelb"):
        run.evaluate(other, progress=False)


def test_a_changed_picture_is_noticed(run: fieldmark.Run, tmp_path: Path) -> None:
    file = sorted((data_of(run) / "red").glob("*.png"))[0]
    kept = file.read_bytes()
    try:
        Image.new("RGB", (9, 9)).save(file)
        stored = RunDirectory(run.path).read_json("data.json")
        keys = [row[0] for part in ("val", "test") for row in stored["parts"][part]]
        if f"red/{file.name}" in keys:
            with pytest.raises(fieldmark.RunError, match="changed"):
                run.evaluate(progress=False)
        file.unlink()
        assert run.evaluate(progress=False) if f"red/{file.name}" not in keys else True
    finally:
        file.write_bytes(kept)


# Samples of more than 8 bits, limits and notes


@pytest.fixture(scope="module")
def deep_run(tmp_path_factory: pytest.TempPathFactory) -> fieldmark.Run:
    """A run on pictures of 12 bits, in PNG and TIFF, whose classes differ by 3 %."""
    root = tmp_path_factory.mktemp("data") / "deep"
    rng = np.random.default_rng(1)
    for name, level in (("dim", 1000), ("bright", 1120)):
        (root / name).mkdir(parents=True)
        for i in range(20):
            values = rng.normal(level, 20, (12, 12)).astype(np.uint16)
            Image.fromarray(values).save(root / name / f"{i}.{'png' if i % 2 else 'tif'}")
    return fieldmark.train(
        root,
        model="small_cnn(width=2)",
        size=12,
        epochs=2,
        lr=0.02,
        batch_size=8,
        out=tmp_path_factory.mktemp("runs") / "deep",
        progress=False,
    )


def test_the_scale_of_training_is_that_of_everything_after_it(deep_run: fieldmark.Run) -> None:
    directory = RunDirectory(deep_run.path)
    scale = directory.read_json("model.json")["input"]["range"]
    low, high = map(float, scale.split(","))
    assert 900 < low < 1000 < 1120 < high < 1220
    assert deep_run.config.range == scale == directory.limits().range
    classifier = RunClassifier(directory, device="cpu")
    assert classifier.limits.range == scale
    file = next(data_of(deep_run).rglob("*.tif"))
    image = Image.open(file)
    by_file, by_image = deep_run.predict(file)[0], deep_run.predict(image)[0]
    assert by_file.prob == by_image.prob
    pixels = decode_file(file, directory.limits())[0]
    assert pixels.max() - pixels.min() > 60  # and not 1000 / 257 and 1120 / 257
    by_pixels = deep_run.predict(pixels)[0]
    assert by_file.prob == by_pixels.prob
    with Image.open(file) as again:
        values = np.asarray(again).astype(float)
    expected = np.clip((values - low) / (high - low) * 255, 0, 255)
    assert np.abs(pixels[:, :, 0] - expected).max() <= 0.51
    test_evaluation_and_prediction_agree_on_every_picture(deep_run)


def test_the_scale_is_printed_and_a_given_one_is_kept(
    deep_run: fieldmark.Run, tmp_path: Path
) -> None:
    said = (deep_run.path / "log.txt").read_text("utf-8")
    assert "samples of 16 bits in 30 pictures: " in said and "--range LOW,HIGH" in said
    given = prepare(
        asked(data_of(deep_run), settings={"range": "0,4095", "model": "small_cnn(width=2)"})
    )
    assert given.network.input.range == given.config.range == "0,4095"
    again = prepare(asked(data_of(deep_run), base=deep_run.config))
    assert again.network.input.range == deep_run.config.range


def test_the_limit_of_pixels_is_named_and_can_be_chosen(
    run: fieldmark.Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "large.png"
    Image.new("L", (70, 50)).save(file)
    assert run.predict(file, max_pixels=3499)[0].error == (
        "too many pixels (70 x 50; at most 3499 pixels are accepted, unless --max-pixels says more)"
    )
    assert not run.predict(file, max_pixels=3500)[0].error
    with pytest.raises(fieldmark.ConfigError, match="max_pixels is -1"):
        run.predict(file, max_pixels=-1)
    words = ["predict", str(run.path), str(file), "--max-pixels", "99"]
    _run(lambda: app(words, exit_on_error=False, result_action="return_value"))
    assert "at most 99 pixels" in capsys.readouterr().out


def test_photographs_of_50_megapixels_are_within_the_limit() -> None:
    assert 8192 * 6144 <= PictureLimits().max_pixels == fieldmark.TrainConfig().max_pixels


def test_what_a_picture_lost_is_said(run: fieldmark.Run, tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 255, (24, 24, 3), dtype=np.uint8)
    image = Image.fromarray(colours).resize((320, 320))
    image.save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[:-50] + whole[-2:])
    (answer,) = run.predict(tmp_path / "a.jpg")
    assert answer.note.startswith("damaged: ") and answer.to_json()["note"] == answer.note
    (tmp_path / "a.jpg").write_bytes(whole)
    assert "note" not in run.predict(tmp_path / "a.jpg")[0].to_json()
