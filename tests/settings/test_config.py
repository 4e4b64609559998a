"""TrainConfig: strict reading, ranges, and settings that make no sense."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldmark.errors import ConfigError, RunError
from fieldmark.files.json_text import FORMAT, read_object
from fieldmark.settings.config import _CHOICES, _RANGES, TrainConfig, field_docs, split_shares

FIELDS = {f.name: f for f in dataclasses.fields(TrainConfig)}
FREE_TEXT = [
    "model",
    "weights",
    "optimizer",
    "schedule",
    "augment",
    "mix",
    "class_weights",
    "monitor",
    "callbacks",
    "progressive",
    "freeze_after",
    "hardest",
    "train_from",
    "loss",
    "metrics",
    "landing",
]
YOUNGER = ("loss", "metrics", "landing")


def values(name: str) -> st.SearchStrategy[Any]:
    kind = FIELDS[name].type
    if name in _CHOICES:
        return st.sampled_from(_CHOICES[name])
    if name == "split":
        return st.sampled_from(["0.75/0.1/0.15", "80/20/0", "1/1/1", "7e1/1_0/20"])
    if name == "range":
        return st.sampled_from(["data", "type", "picture", "0,4095", "-1.5,2e3"])
    if name == "save_every":
        return st.sampled_from(["epoch", "1 step", "500 steps", "0.5 min"])
    if name == "device":
        return st.sampled_from(["auto", "cpu", "cuda", "cuda:7", "mps"])
    if kind == "bool":
        return st.booleans()
    if kind == "str":
        return st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
    low, high = _RANGES[name]
    if kind == "int":
        return st.integers(int(low), int(high))
    return st.floats(low, high)


def build(changes: dict[str, Any]) -> TrainConfig:
    changes["accumulate"] = min(changes["accumulate"], changes["batch_size"])
    changes["freeze"] = changes["freeze"] or changes["unfreeze_at_epoch"] > 0
    changes["train_from"] = "" if changes["freeze"] else changes["train_from"]
    changes["epochs"] = max(changes["epochs"], 0 if changes["probe"] else 1)
    return TrainConfig(**changes)


@given(st.fixed_dictionaries({name: values(name) for name in FIELDS}).map(build))
def test_json_round_trip(config: TrainConfig) -> None:
    again = TrainConfig.from_json(config.to_json(), where="config.json")
    assert again == config
    assert again.to_json() == config.to_json()
    config.to_json().encode()


def test_every_field_is_documented_and_restricted() -> None:
    docs = field_docs()
    assert list(docs) == list(FIELDS)
    assert all(text.endswith(".") for text in docs.values())
    numbers = {n for n, f in FIELDS.items() if f.type in ("int", "float")}
    assert numbers == set(_RANGES)
    texts = {n for n, f in FIELDS.items() if f.type == "str"}
    assert texts == set(_CHOICES) | set(FREE_TEXT) | {"split", "range", "device", "save_every"}
    assert {f.type for f in FIELDS.values()} == {"int", "float", "bool", "str"}


def test_runs_from_before_there_was_a_range_have_the_rule_of_then() -> None:
    value = json.loads(TrainConfig().to_json())
    assert value.pop("range") == "data"
    old = TrainConfig.from_json(json.dumps(value), where="c")
    assert old.range == "picture"
    assert "range" not in json.loads(old.to_json())  # and earlier versions can read it still


@pytest.mark.parametrize("text", ["", "dta", "5", "4095,0", "1,1", "nan,1", "0,inf", "0,1,2"])
def test_a_range_is_two_numbers_or_a_word(text: str) -> None:
    with pytest.raises(ConfigError, match=r"LOW,HIGH are accepted, such as 0,4095"):
        TrainConfig(range=text)


def test_frozen_keyword_only_and_hashable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().lr = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        TrainConfig("auto")  # type: ignore[call-arg]
    assert hash(TrainConfig()) == hash(TrainConfig())


def text_with(**changes: Any) -> str:
    value = json.loads(TrainConfig().to_json())
    value.update(changes)
    return json.dumps(value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"learning_rate": 0.1}, "learning_rate"),
        ({"lr": "0.1"}, "lr"),
        ({"lr": None}, "lr"),
        ({"lr": True}, "lr"),
        ({"epochs": 3.0}, "epochs"),
        ({"epochs": "3"}, "epochs"),
        ({"balance": 1}, "balance"),
        ({"balance": "true"}, "balance"),
        ({"model": 3}, "model"),
        ({"model": ["auto"]}, "model"),
        ({"precision": "f16"}, "precision"),
        ({"format": 2}, "format 2"),
        ({"format": None}, "format None"),
        ({"format": "1"}, "format '1'"),
        ({"format": {}}, "format"),
    ],
)
def test_reading_is_strict(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(RunError, match=re.escape(says)) as caught:
        TrainConfig.from_json(text_with(**changes), where="runs/a/config.json")
    assert "runs/a/config.json" in str(caught.value)


def test_a_missing_key_is_named() -> None:
    whole = json.loads(TrainConfig().to_json())
    for name in (*(n for n in FIELDS if n not in (*YOUNGER, "range", "norm_statistics")), "format"):
        value = {key: each for key, each in whole.items() if key != name}
        with pytest.raises(RunError, match=name):
            TrainConfig.from_json(json.dumps(value), where="c")


def test_younger_settings_are_written_where_they_are_not_at_their_default_only() -> None:
    plain, other = TrainConfig(), TrainConfig(loss="focal", metrics="top_k(5)", landing="3:9")
    assert not set(YOUNGER) & set(json.loads(plain.to_json())) & set(plain.values())
    assert {n: json.loads(other.to_json())[n] for n in YOUNGER} == {
        "loss": "focal",
        "metrics": "top_k(5)",
        "landing": "3:9",
    }
    assert TrainConfig.from_json(plain.to_json(), where="c") == plain


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        '{"format": 1}',
        '"x"',
        text_with(lr=float("nan")),
        text_with(lr=float("inf")),
        text_with().replace('"lr": 0.1', '"lr": 1e999'),
        text_with().replace('"lr": 0.1', '"lr": 0.1, "lr": 0.2'),
        text_with().replace('"lr": 0.1', '"lr": ' + "9" * 5000),
        "[" * 100_000,
        text_with().replace('"model": "auto"', '"model": "\\ud800"'),
    ],
)
def test_broken_json_is_a_run_error(text: str) -> None:
    with pytest.raises(RunError):
        TrainConfig.from_json(text, where="c")


def test_duplicate_keys_are_refused_at_any_depth() -> None:
    with pytest.raises(RunError, match="twice"):
        read_object('{"a": {"b": 1, "b": 2}}', where="f")
    assert read_object('{"a": {"b": 1}, "b": 2}', where="f") == {"a": {"b": 1}, "b": 2}


@pytest.mark.parametrize("name", list(_RANGES))
def test_ranges(name: str) -> None:
    low, high = _RANGES[name]
    kind = int if FIELDS[name].type == "int" else float
    extra: dict[str, dict[str, Any]] = {
        "unfreeze_at_epoch": {"freeze": True},
        "accumulate": {"batch_size": 65_536},
    }
    for value in (low, high):
        config = TrainConfig(**{name: kind(value), **extra.get(name, {})})
        assert getattr(config, name) == value
    step = 1 if kind is int else max(abs(high) * 1e-9, 1e-9)
    for value in (kind(low) - step, kind(high) + max(step, 1 if kind is int else 0)):
        with pytest.raises(ConfigError, match=f"{name} is .*accepted"):
            TrainConfig(**{name: value})


@pytest.mark.parametrize("name", list(_CHOICES))
def test_choices(name: str) -> None:
    for value in _CHOICES[name]:
        assert getattr(TrainConfig(**{name: value}), name) == value
    wrong = _CHOICES[name][0] + "x"
    with pytest.raises(ConfigError, match=f"no {name} '{wrong}'; did you mean"):
        TrainConfig(**{name: wrong})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"epochs": -1}, "0 to 100000"),
        ({"epochs": -1}, "epochs is -1"),
        ({"epochs": 10**9}, "epochs is 1000000000"),
        ({"epochs": 1.5}, "whole number"),
        ({"epochs": True}, "whole number"),
        ({"batch_size": 0}, "1 to 65536"),
        ({"size": -1}, "size is -1"),
        ({"size": 5000}, "0 to 4096"),
        ({"lr": float("nan")}, "finite"),
        ({"lr": float("inf")}, "finite"),
        ({"lr": -0.1}, "lr is -0.1"),
        ({"lr": 0}, "lr is 0"),
        ({"lr": "1e-3x"}, "must be a number"),
        ({"lr": None}, "must be a number"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"seed": -1}, "seed is -1"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"accumulate": 65}, "more than the 64 pictures"),
        ({"unfreeze_at_epoch": 3}, "no effect"),
        ({"device": "gpu"}, "no device 'gpu'"),
        ({"device": "cuda:"}, "no device"),
        ({"device": "cuda:x"}, "no device"),
        ({"device": "cpu:0"}, "no device"),
        ({"device": "cuda:-1"}, "no device"),
        ({"balance": "yes"}, "true or false"),
        ({"model": 7}, "must be a text"),
        ({"weights": "\udcff.pth"}, "not Unicode"),
        ({"split": "0.8/0.2"}, "three shares"),
    ],
)
def test_nonsense_is_refused_with_what_is_accepted(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)) as caught:
        TrainConfig(**changes)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "shares"),
    [
        ("0.75/0.1/0.15", (0.75, 0.1, 0.15)),
        ("75/10/15", (0.75, 0.1, 0.15)),
        ("80/20/0", (0.8, 0.2, 0.0)),
        (" 1 / 1 / 2 ", (0.25, 0.25, 0.5)),
        ("1/0/1", (0.5, 0.0, 0.5)),
    ],
)
def test_split_shares(text: str, shares: tuple[float, float, float]) -> None:
    assert split_shares(text) == pytest.approx(shares)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1/1",
        "1/1/1/1",
        "a/b/c",
        "0/1/1",
        "1/0/0",
        "-1/1/1",
        "1/1/-1",
        "nan/1/1",
        "inf/1/1",
        "1/1/inf",
        "1e308/1e308/0",
        "1//1",
        "1/1/nan",
    ],
)
def test_broken_splits(text: str) -> None:
    with pytest.raises(ConfigError, match="split is"):
        split_shares(text)


def test_config_json_begins_with_its_format() -> None:
    assert next(iter(json.loads(TrainConfig().to_json()).items())) == ("format", FORMAT)
