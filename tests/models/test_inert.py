"""Pickles of strangers: nothing that they name is imported, nothing that they ask for is called."""

from __future__ import annotations

import datetime
import enum
import functools
import io
import logging
import os
import pickle
import struct
import sys
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fieldmark.errors import WeightsError
from fieldmark.models import inert
from fieldmark.models.layouts import tensors_in
from fieldmark.models.light_timm import library
from fieldmark.models.weights import read_weights
from tests.hostile.rows_of_models import edited_zip

UNICODE = b"X"


def text(value: str) -> bytes:
    data = value.encode()
    return UNICODE + struct.pack("<I", len(data)) + data


def load(pickled: bytes) -> Any:
    return inert.load(io.BytesIO(pickled))


class _Calls:
    """Pickled by protocol 2: a call of any function by its name."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.what = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.what


HOSTILE: dict[str, bytes] = {
    "a call": b"\x80\x02cposix\nsystem\n" + text("touch canary") + b"\x85R.",
    "a call of the oldest protocol": b"(S'touch canary'\niposix\nsystem\n.",
    "a call by an object": b"(cposix\nsystem\nS'touch canary'\no.",
    "a class made with arguments": b"(cbuiltins\nexec\nS'1'\no.",
    "getattr": b"\x80\x02cbuiltins\ngetattr\n" + text("a") + text("b") + b"\x86R.",
    "torch.load": b"\x80\x02ctorch\nload\n" + text("canary") + b"\x85R.",
    "nested pickles": b"\x80\x02ctorch.storage\n_load_from_bytes\n" + text("x") + b"\x85R.",
    "a program in a storage": b"\x80\x03ctorch.storage\n_load_from_bytes\nC\x04PK\3\4\x85R.",
    "a call in a storage": b"\x80\x03ctorch.storage\n_load_from_bytes\nC\x20"
    + (b"\x80\x02cposix\nsystem\nX\1\0\0\0x\x85R." + bytes(10))[:32]
    + b"\x85R.",
    "a partial call": b"\x80\x02cfunctools\npartial\n" + b"cposix\nsystem\n\x85R" + b")R.",
    "a tensor made by another call": b"\x80\x02ctorch._tensor\n_rebuild_from_type_v2\n"
    b"(cposix\nsystem\nN" + text("touch canary") + b"\x85NtR.",
    "a number called": b"\x80\x02K\x01)R.",
    "a function of ours changed": b"\x80\x02cnumpy\ndtype\n}"
    + text("run")
    + b"cposix\nsystem\nsb.",
    "a tensor without storage": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n"
    b"(K\x01K\x00)))\x89}tR.",
    "something persistent": b"\x80\x02" + text("storage") + b"\x85" + text("x") + b"\x86Q.",
    "a value of an extension": b"\x80\x02\x82\x01.",
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_whatever_would_run_code_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = dict(inert._CALLS)
    with pytest.raises((pickle.UnpicklingError, TypeError, ValueError)):
        load(HOSTILE[name])
    with pytest.raises(WeightsError, match="cannot be read as plain tensors"):
        (tmp_path / "w.pth").write_bytes(edited_zip(lambda _: HOSTILE[name]))
        read_weights(tmp_path / "w.pth")
    assert not (tmp_path / "canary").exists()
    assert before == inert._CALLS


@pytest.mark.parametrize(
    "function", [os.system, eval, exec, __import__, getattr, setattr, open, torch.hub.load]
)
def test_calls_that_pickle_itself_writes(function: Any, tmp_path: Path) -> None:
    with pytest.raises(pickle.UnpicklingError, match="it asks for GLOBAL"):
        load(pickle.dumps(_Calls(function, str(tmp_path / "canary"))))
    assert not list(tmp_path.iterdir())


def test_classes_are_not_imported_and_their_objects_have_no_code() -> None:
    made = load(b"\x80\x02cantigravity\nSettings\n)\x81}" + text("lr") + b"K\x05sb.")
    assert "antigravity" not in sys.modules
    assert isinstance(made, inert.Inert)
    assert made.attributes() == {"lr": 5}


@pytest.mark.parametrize("memory", [b"r\xff\xff\xff\xff", b"p4294967295\n"])
def test_a_large_place_in_the_memo_takes_no_memory(memory: bytes) -> None:
    assert load(b"\x80\x02}" + memory + b".") == {}


def test_networks_in_networks_over_and_over_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fieldmark.models import layouts

    monkeypatch.setattr(layouts, "_MANY", 10_000)
    value: torch.nn.Module = torch.nn.Linear(1, 1)
    for _ in range(20):
        value = torch.nn.Sequential(value, value)
    torch.save(value, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="more than 10,000 values"):
        read_weights(tmp_path / "w.pth")


def test_what_holds_itself_has_an_end() -> None:
    value: dict[str, Any] = {"w": torch.zeros(1)}
    value["again"] = value
    value["often"] = [value] * 100_000
    value["often"] += [value["often"]] * 100_000
    assert list(tensors_in(value)) == ["w"]


class _Mode(enum.Enum):
    TRAIN = "train"


@pytest.mark.parametrize(
    "value",
    [
        _Mode.TRAIN,
        logging.getLogger("x"),
        np.random.default_rng(0),
        np.random.RandomState(1),
        torch.get_rng_state(),
        torch.device("cpu"),
        torch.float32,
        np.array(["a"]),
        np.array([None]),
        np.datetime64("2026"),
        datetime.timedelta(1),
        uuid.UUID(int=3),
        range(3),
        functools.partial(print, end=""),
        print,
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_lies_beside_the_weights_is_no_obstacle(value: Any, tmp_path: Path) -> None:
    torch.save({"state_dict": {"w": torch.ones(2)}, "value": value}, tmp_path / "w.pth")
    assert torch.equal(read_weights(tmp_path / "w.pth")["state_dict/w"], torch.ones(2))


@pytest.mark.reference
@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "mobilenetv4_conv_small"])
def test_networks_of_timm_saved_whole(name: str, tmp_path: Path) -> None:
    module = library().create_model(name, num_classes=2)
    torch.save({"ema": module, "optimizer": torch.optim.Adam(module.parameters())}, tmp_path / "w")
    wanted = {f"ema/{key}": value for key, value in module.state_dict().items()}
    found = read_weights(tmp_path / "w")
    assert found.keys() >= wanted.keys()
    assert all(torch.equal(found[key], value) for key, value in wanted.items())


def test_containers_are_what_they_were() -> None:
    from collections import Counter, OrderedDict, defaultdict, deque

    value = [OrderedDict(a=1), Counter("aab"), defaultdict(list, x=[1]), deque([1, 2]), {1}, b"x"]
    assert load(pickle.dumps(value, 2)) == [
        {"a": 1},
        {"a": 2, "b": 1},
        {"x": [1]},
        [1, 2],
        [1],
        b"x",
    ]
