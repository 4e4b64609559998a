"""Flags that make no sense, and config files that are none."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Callable

from tests.hostile.place import TRAIN, Place, Row, picture


def _train(words: tuple[str, ...], place: Place) -> list[str]:
    place.classes(cat=9, dog=9)
    base = list(TRAIN)
    for flag in words:
        if flag in base and words.count(flag) == 1:
            at = base.index(flag)
            del base[at : at + 2]
    return ["train", str(place.data), *base, "--out", str(place.runs / "new"), *words]


def flags(item: str, *words: str, says: tuple[str, ...], text: str = "") -> Row:
    text = text or " ".join(words)
    return Row(item, text, functools.partial(_train, words), 2, says)


def _config(content: Callable[[Place], bytes], place: Place) -> list[str]:
    place.classes(cat=9, dog=9)
    file = place.given / "mine.json"
    file.write_bytes(content(place))
    return ["train", str(place.data), "--config", str(file), "--out", str(place.runs / "new")]


def config(text: str, content: bytes, *says: str, code: int = 4) -> Row:
    make = functools.partial(_config, lambda _: content)
    return Row("+", f"--config {text}", make, code, ("mine.json", *says))


def _changed(name: str, value: object, place: Place) -> bytes:
    run = place.model()
    settings = json.loads((run / "config.json").read_text(encoding="utf-8"))
    return json.dumps({**settings, name: value}).encode()


def edited(name: str, value: object, *says: str, code: int = 4) -> Row:
    make = functools.partial(_config, functools.partial(_changed, name, value))
    return Row("+", f"--config with {name}: {value!r}"[:80], make, code, says or ("mine.json",))


def config_folder(place: Place) -> list[str]:
    place.classes(cat=9, dog=9)
    return ["train", str(place.data), "--config", str(place.given)]


def config_pipe(place: Place) -> list[str]:
    place.classes(cat=9, dog=9)
    os.mkfifo(place.given / "pipe.json")
    return ["train", str(place.data), "--config", str(place.given / "pipe.json")]


def words(*argv: str) -> Callable[[Place], list[str]]:
    return lambda _: list(argv)


def no_run(command: str) -> Callable[[Place], list[str]]:
    return lambda place: [command, str(place.given)]


def predicting(*given: str) -> Callable[[Place], list[str]]:
    return lambda place: place.predict(*given)


def onto_a_folder(place: Place) -> list[str]:
    (place.out / "table.csv").mkdir()
    return [*place.predict(place.data), "--csv", str(place.out / "table.csv")]


def below_brackets(place: Place) -> list[str]:
    folder = place.given / "set [1]"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture(0))
    return place.predict(str(folder / "*.png"))


ROWS = (
    flags("49", "--epochs", "-1", says=("epochs is -1", "0 to 100000")),
    flags("49", "--epochs", "0", says=("epochs is 0", "probe")),
    flags("49", "--epochs", "1000000000", says=("epochs is 1000000000", "0 to 100000")),
    flags("49", "--epochs", "1e3", says=("--epochs", "1e3")),
    flags("49", "--batch-size", "0", says=("batch_size is 0", "1 to 65536")),
    flags("49", "--size", "-7", says=("size is -7", "0 to 4096")),
    flags("49", "--size", "100000", says=("size is 100000", "0 to 4096")),
    flags("49", "--lr", "nan", says=("lr is nan", "finite")),
    flags("49", "--lr", "inf", says=("lr is inf", "finite")),
    flags("49", "--lr", "1e-3x", says=("--lr", "1e-3x")),
    flags("49", "--lr", "0", says=("lr is 0", "1e-12 to 1e+12")),
    flags("49", "--lr", "-0.1", says=("lr is -0.1", "1e-12 to 1e+12")),
    flags("49", "--model", "smal_cnn", says=("smal_cnn", "did you mean 'small_cnn'")),
    flags("49", "--model", "small_cnn(widht=2)", says=("widht", "did you mean 'width'")),
    flags("49", "--model", "small_cnn(width=0)", says=("width is 0", "1 to 4096")),
    flags("49", "--model", "small_cnn(width=__import__('os'))", says=("plain values",)),
    flags(
        "49",
        "--model",
        "small_cnn(" + "(" * 500,
        says=("is not of the form",),
        text="--model small_cnn( and 499 more",
    ),
    flags(
        "49",
        "--model",
        "x" * 5000,
        says=("5000 characters", "at most 2000"),
        text="--model of 5000 letters",
    ),
    flags("49", "--model", "../../etc/passwd", says=("../../etc/passwd",)),
    flags("49", "--model", "timm/no_such_network", says=("no_such_network", "fieldmark models")),
    flags("49", "--lr", "0.1", "--lr", "0.2", says=("--lr", "multiple times")),
    flags("49", "--class-weights", "1,2,3", says=("class_weights", "2")),
    flags("49", "--class-weights", "1,-2", says=("class_weights",)),
    flags(
        "49", "--seed", "18446744073709551616", says=("seed is 18446744073709551616", "9.22337e+18")
    ),
    flags("49", "--seed", "9" * 5000, says=("--seed",), text="--seed of 5000 digits"),
    flags("49", "--split", "1/2", says=("split is '1/2'", "three shares")),
    flags("49", "--split", "0/1/1", says=("split is '0/1/1'", "three shares")),
    flags("49", "--optimizer", "adamm", says=("adamm", "did you mean")),
    flags("49", "--schedule", "cosine(7)", says=("cosine",)),
    flags("49", "--augment", "flip_lr|", says=("augment",)),
    flags("49", "--augment", "rotate('x')", says=("augment",)),
    flags("49", "--mix", "mixup(-1)", says=("mixup",)),
    flags("49", "--callbacks", "early_stopping(patience=-1)", says=("patience",)),
    flags("49", "--monitor", "val_beauty", says=("val_beauty",)),
    flags("49", "--recipe", "fintune", says=("fintune", "finetune")),
    Row(
        *("49", "--device cuda:99", functools.partial(_train, ("--device", "cuda:99"))),
        *(6, ("cuda:99", "--device cpu")),
    ),
    flags("49", "--device", "toaster", says=("toaster", "known: auto, cpu")),
    flags("49", "--no-such-flag", "1", says=("--no-such-flag",)),
    flags(
        "49",
        "--epochs",
        "\x1b]0;evil\x07\x9b31m",
        says=("--epochs",),
        text="--epochs with an escape sequence",
    ),
    flags(
        "49", "--model", "\x1b[31mevil\x07", says=("evil",), text="--model with an escape sequence"
    ),
    flags("49", "--preview", "--find-lr", says=("--preview and --find-lr",)),
    Row(
        "+",
        "compare --vary lr with a word",
        words("compare", "digits", "--vary", "lr", "0.1", "fast"),
        2,
        ("--lr", "fast"),
    ),
    Row(
        "+",
        "compare --vary with the split",
        words("compare", "digits", "--vary", "split", "80/10/10", "70/15/15"),
        2,
        ("split cannot be varied", "same pictures"),
    ),
    Row(
        "+",
        "tune --over with a range that is none",
        words("tune", "digits", "--over", "lr", "0.1..0.01"),
        2,
        ("0.1..0.01", "first must be the less"),
    ),
    Row("49", "no command that exists: trian", words("trian"), 2, ("train",)),
    Row(
        "49",
        "predict --top 0",
        lambda place: [*place.predict(place.data), "--top", "0"],
        2,
        ("top is 0", "at least 1"),
    ),
    Row("49", "predict of no pictures", predicting(), 2, ("PICTURES",)),
    Row(
        "+",
        "a path of an escape sequence as data",
        words("train", "\x1b]0;evil\x07"),
        3,
        ("\\x1b]0;evil\\x07",),
    ),
    Row(
        "+",
        "a run that is not there, with an escape sequence",
        words("evaluate", "\x1b[2Jrun"),
        4,
        ("run", "fieldmark train"),
    ),
    *(
        Row(
            "+",
            f"{command} of a folder that is no run",
            no_run(command),
            4,
            ("given", "not a run directory"),
        )
        for command in ("evaluate", "resume", "report", "predict")[:3]
    ),
    Row(
        "+",
        "export to a format that is none",
        lambda place: ["export", str(place.model()), "--to", "coreml"],
        2,
        ("coreml", "onnx"),
    ),
    Row(
        "+",
        "predict of a pattern that matches nothing",
        predicting("nothing/**/*.jpg"),
        3,
        ("nothing/**/*.jpg",),
    ),
    Row("+", "predict of an empty path", predicting(""), 3, ("an empty path",)),
    Row(
        "+",
        "predict of a file that is not there",
        predicting("gone.jpg"),
        0,
        ("gone.jpg", "no such file"),
    ),
    Row(
        "+", "predict of a folder that is not there", predicting("gone/"), 3, ("gone/", "no folder")
    ),
    Row("+", "predict of an address", predicting("https://x.example/a.png"), 3, ("fetched",)),
    Row(
        "+",
        "predict of a pattern below a folder with brackets",
        below_brackets,
        0,
        ("set [1]/a.png",),
    ),
    *(
        Row(
            "+",
            f"{command} --device {device}",
            lambda place, command=command, device=device: [  # type: ignore[misc]
                *(command, str(place.model())),
                *([str(place.data)] if command == "predict" else []),
                *("--device", device),
            ],
            2,
            (device, "known: auto, cpu"),
        )
        for command in ("predict", "evaluate", "serve")
        for device in ("0", "gpu", "CPU", "cuda:0,1", "cpu:0")
    ),
    Row(
        "+",
        "models --num-classes -5",
        words("models", "small_cnn", "--num-classes", "-5"),
        2,
        ("--num-classes is -5",),
    ),
    Row("+", "predict --csv is a folder", onto_a_folder, 6, ("table.csv",)),
    config("is an empty file", b"", "JSON"),
    config("is a picture", b"\x89PNG\r\n\x1a\n" + bytes(99), "mine.json", code=2),
    config("of another version", b'{"format": 2}', "format 2"),
    config("lacks everything", b'{"format": 1}', "lacks model"),
    Row("+", "--config is a folder", config_folder, 2, ("given",)),
    Row("+", "--config is a pipe", config_pipe, 2, ("pipe.json",)),
    edited("epochs", "1"),
    edited("epochs", 1.5),
    edited("epochs", True),
    edited("lr", 1e999),
    edited("model", "\ud800"),
    edited("model", None),
    edited("colour", "red", "mine.json", "colour"),
    edited("augment", "x" * 10**6, "augment: 1000000 characters", code=2),
)
