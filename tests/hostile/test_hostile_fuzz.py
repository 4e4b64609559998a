"""Every parser of ours, on what hypothesis makes up: a right answer or an error for the user."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from fieldmark import augment, models
from fieldmark.errors import ConfigError, DataError, RunError, WeightsError
from fieldmark.files.csv_text import encode_csv
from fieldmark.files.json_text import encode_json, read_object
from fieldmark.fit import callbacks, optimizers, schedules
from fieldmark.jobs.evaluate import own_data
from fieldmark.models.weights import read_weights
from fieldmark.names import on_screen, shown
from fieldmark.pictures.inputs import InputSpec
from fieldmark.runs.directory import RunDirectory
from fieldmark.runs.model import ModelInfo, Selected
from fieldmark.settings.config import TrainConfig, split_shares
from fieldmark.settings.resolved import stages
from fieldmark.settings.spec import lookup, parse
from tests.hostile.place import Place
from tests.hostile.rows_of_models import state, zipped

QUICK = settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
LONG = settings(QUICK, max_examples=3000)

ANY_TEXT = st.text(st.characters(codec=None, categories=None), max_size=40)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from([0, -1, 2**31, 2**63, 1e308, "", "none", "\ud800"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
LITERALS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-10, 10),
    st.integers(),
    st.floats(-2, 2),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=4),
    st.tuples(st.integers(-2, 9), st.integers(-2, 9)),
    st.lists(st.floats(0, 2), max_size=3),
)


# --- spec strings --------------------------------------------------------------------------------

PARSERS: dict[str, tuple[tuple[str, ...], Callable[[str], object]]] = {
    "model": (tuple(models.MODELS), models.check),
    "augment": (tuple(augment.AUGMENTS), augment.build),
    "mix": (tuple(augment.MIXES), augment.build_mix),
    "callbacks": (
        tuple(callbacks.CALLBACKS),
        lambda text: callbacks.build(text, monitor="val_accuracy"),
    ),
    "schedule": (
        tuple(schedules.SCHEDULES),
        lambda text: schedules.build(text, length=schedules.Length(10, 5), warmup_steps=3),
    ),
    "progressive": (
        ("24@0.5", "8@1", "9@0"),
        lambda text: schedules.check_stages(stages(text), full=32),
    ),
    "optimizer": (
        tuple(optimizers.OPTIMIZERS),
        lambda text: lookup(parse(text, what="optimizer"), optimizers.OPTIMIZERS, what="optimizer"),
    ),
    "split": (("1/1/1", "80/20/0"), split_shares),
}


@st.composite
def specs(draw: Any, names: tuple[str, ...]) -> str:
    """A name of the table, or nearly, with arguments that may or may not be its own."""
    words = []
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(names) | st.text(max_size=6))
        given_by_name = draw(
            st.dictionaries(
                st.sampled_from(
                    [
                        "width",
                        "depth",
                        "size",
                        "p",
                        "alpha",
                        "patience",
                        "factor",
                        "at",
                        "steps",
                        "x",
                    ]
                ),
                LITERALS,
                max_size=2,
            )
        )
        inside = [repr(v) for v in draw(st.lists(LITERALS, max_size=3))]
        inside += [f"{key}={value!r}" for key, value in given_by_name.items()]
        words.append(f"{name}({', '.join(inside)})" if draw(st.booleans()) else name)
    text: str = draw(st.sampled_from(["|", ",", ""])).join(words)
    return text


@pytest.mark.parametrize("kind", PARSERS)
@pytest.mark.parametrize(
    "profile", [QUICK, pytest.param(LONG, marks=pytest.mark.slow)], ids=["quick", "long"]
)
def test_specs(kind: str, profile: settings) -> None:
    names, parser = PARSERS[kind]

    @profile
    @given(specs(names) | ANY_TEXT)
    def check(text: str) -> None:
        with contextlib.suppress(ConfigError):
            parser(text)

    check()


# --- settings and descriptions -------------------------------------------------------------------

FIELDS = sorted(json.loads(TrainConfig().to_json()))


@QUICK
@given(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), VALUES, max_size=3))
def test_config_files(changes: dict[str, Any]) -> None:
    value = {**json.loads(TrainConfig().to_json()), **changes}
    with contextlib.suppress(RunError):
        config = TrainConfig.from_json(json.dumps(value), where="x")
        assert TrainConfig.from_json(config.to_json(), where="x") == config


@QUICK
@given(st.text(max_size=60) | VALUES.map(json.dumps))
def test_json_objects(text: str) -> None:
    with contextlib.suppress(RunError):
        assert isinstance(read_object(text, where="x"), dict)


INFO = ModelInfo(
    model="small_cnn(width=2)",
    input=InputSpec(size=8),
    class_names=("cat", "dog"),
    temperature=1.0,
    selected=Selected(epoch=1, metric="val_loss", value=0.5),
    weights="none",
    num_params=1,
)


@QUICK
@given(st.data())
def test_descriptions_of_models(data: st.DataObject) -> None:
    value = INFO.to_json()
    at = value["input"] if data.draw(st.booleans()) else value
    at[data.draw(st.sampled_from(sorted(at)) | st.text(max_size=4))] = data.draw(VALUES)
    with contextlib.suppress(RunError):
        info = ModelInfo.from_json(json.dumps(value), where="x")
        again = ModelInfo.from_json(json.dumps(info.to_json()), where="x")
        assert again == info


# --- files ---------------------------------------------------------------------------------------


@st.composite
def damaged(draw: Any, whole: bytes) -> bytes:
    """The bytes with some of them changed, cut out, doubled, or with the end gone."""
    found = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(found) - 1)))
        end = min(len(found), at + draw(st.integers(1, 64)))
        kind = draw(st.sampled_from(["flip", "cut", "zero", "double", "end"]))
        if kind == "flip" and found:
            found[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del found[at:end]
        elif kind == "zero":
            found[at:end] = bytes(end - at)
        elif kind == "double":
            found[at:at] = found[at:end]
        else:
            del found[at:]
    return bytes(found)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    "profile", [QUICK, pytest.param(LONG, marks=pytest.mark.slow)], ids=["quick", "long"]
)
def test_damaged_weights(suffix: str, profile: settings, tmp_path: Path) -> None:
    whole = save(state()) if suffix == ".safetensors" else zipped(state())
    path = tmp_path / f"w{suffix}"

    @profile
    @given(damaged(whole))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        with contextlib.suppress(WeightsError):
            read_weights(path)

    check()


def test_damaged_models_of_runs(place: Place) -> None:
    run = RunDirectory(place.model())
    whole = (run.path / "model.safetensors").read_bytes()

    @QUICK
    @given(damaged(whole[: 8 + struct.unpack("<Q", whole[:8])[0]]))
    def check(head: bytes) -> None:
        (run.path / "model.safetensors").write_bytes(head + whole[len(head) :])
        with contextlib.suppress(RunError):
            run.load_model()

    check()


def test_manifests(place: Place) -> None:
    """``data.json``, the list of a run's pictures, changed in any place."""
    run = RunDirectory(place.model())
    whole = json.loads((run.path / "data.json").read_text(encoding="utf-8"))
    whole["path"] = str(place.data)

    @QUICK
    @given(st.data())
    def check(data: st.DataObject) -> None:
        value = json.loads(json.dumps(whole))
        at: Any = value
        for _ in range(data.draw(st.integers(0, 3))):
            keys = sorted(at) if isinstance(at, dict) else range(len(at))
            deeper = [key for key in keys if isinstance(at[key], dict | list) and at[key]]
            if not deeper:
                break
            at = at[data.draw(st.sampled_from(deeper))]
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        at[key] = data.draw(VALUES)
        with contextlib.suppress(ValueError):  # NaN is for the reader of JSON, tried elsewhere
            (run.path / "data.json").write_text(json.dumps(value, allow_nan=False))
        with contextlib.suppress(RunError, DataError):
            dataset = own_data(run)
            for part in dataset.parts.values():
                for name in part.keys[:2]:
                    dataset.read(name)

    check()
    shutil.rmtree(run.path)


# --- round trips ---------------------------------------------------------------------------------


@QUICK
@given(st.lists(st.lists(ANY_TEXT, min_size=2, max_size=2), max_size=4))
def test_csv_holds_any_text_and_no_formula(rows: list[list[str]]) -> None:
    raw = encode_csv(("a", "b"), rows)
    read = list(csv.reader(io.StringIO(raw.decode("utf-8-sig"), newline="")))[1:]
    wanted = [[text.encode("utf-8", "backslashreplace").decode() for text in row] for row in rows]
    assert [[cell.removeprefix("'") for cell in row] for row in read] == [
        [text.removeprefix("'") if not text.startswith("'") else text for text in row]
        for row in wanted
    ]
    assert not any(cell[:1] in ("=", "+", "-", "@", "\t", "\r") for row in read for cell in row)


@QUICK
@given(st.dictionaries(ANY_TEXT, ANY_TEXT))
def test_json_holds_any_text(value: dict[str, str]) -> None:
    assert json.loads(encode_json(value)) == value


@QUICK
@given(ANY_TEXT)
def test_what_is_shown_can_be_shown(text: str) -> None:
    seen = shown(text)
    assert shown(seen) == seen
    assert not {"\x1b", "\n", "\r", "\x9b", "\u202e", "\u200b"} & set(seen)
    seen.encode()
    assert on_screen(f"{text}\n{text}").count("\n") == 1 + 2 * text.count("\n")
