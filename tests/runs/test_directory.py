"""The run directory: atomic, never overwritten, and safe to open whatever is in it."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fieldmark import models
from fieldmark.errors import ConfigError, ResourceError, RunError
from fieldmark.files.checksum import tail
from fieldmark.files.json_text import FORMAT, encode_json
from fieldmark.files.writing import write_atomic
from fieldmark.runs import checkpoint
from fieldmark.runs import directory as run_module
from fieldmark.runs.directory import RunDirectory
from fieldmark.runs.model import ModelInfo, Selected
from fieldmark.settings.config import TrainConfig

NAMES = (
    "猫",
    "кот",
    "قط",
    "חתול",
    "แมว",
    "chat « noir »",
    "😺",
    "a/b\\c\n\t",
    "\u202eevil",
    "é",
    "e\u0301",
)


def info(**changes: Any) -> ModelInfo:
    network = models.create("small_cnn(width=2)", num_classes=len(NAMES), size=8)
    base = ModelInfo(
        model="small_cnn(width=2)",
        input=network.input,
        class_names=NAMES,
        temperature=1.25,
        selected=Selected(epoch=3, metric="val_accuracy", value=0.5),
        weights="none",
        num_params=network.num_params,
    )
    return replace(base, **changes)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "r", name="x")


@pytest.fixture
def saved(run: RunDirectory) -> RunDirectory:
    torch.manual_seed(3)
    network = models.create("small_cnn(width=2)", num_classes=len(NAMES), size=8)
    run.save_model(network.module.state_dict(), info())
    return run


def test_write_atomic_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, b"one")
    write_atomic(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("where", ["fsync", "replace", "write"])
def test_a_full_disk_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, b"one")
    if where == "fsync":
        monkeypatch.setattr(os, "fsync", _full)
    elif where == "replace":
        monkeypatch.setattr(Path, "replace", _full)
    else:
        real = Path.open

        def opened(self: Path, *args: Any, **kwargs: Any) -> Any:
            file = real(self, *args, **kwargs)
            file.write(b"half")
            file.close()
            _full()

        monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(ResourceError, match=r"a\.json.*No space left.*unchanged") as caught:
        write_atomic(path, b"two")
    monkeypatch.undo()
    assert caught.value.exit_code == 6
    assert path.read_bytes() == b"one"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_content_is_on_the_disk_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, bool]] = []
    path = tmp_path / "a"
    real_sync, real_replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda f: (seen.append(("sync", path.exists())), real_sync(f)))
    monkeypatch.setattr(
        Path, "replace", lambda a, b: (seen.append(("rename", path.exists())), real_replace(a, b))
    )
    write_atomic(path, b"x")
    assert seen == [("sync", False), ("rename", False), ("sync", True)]


def test_a_missing_folder_is_a_resource_error(tmp_path: Path) -> None:
    with pytest.raises(ResourceError):
        write_atomic(tmp_path / "no" / "a", b"x")


def test_interrupted_writes_are_cleaned_and_nothing_else(run: RunDirectory) -> None:
    (run.path / ".last.ckpt.part").write_bytes(b"half")
    (run.path / ".hidden").write_bytes(b"")
    (run.path / "a.part").write_bytes(b"")
    run.clean()
    assert sorted(p.name for p in run.path.iterdir()) == [".hidden", "a.part"]


def test_create_never_overwrites(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "r"
    run = RunDirectory.create(out, name="x")
    assert run.path == out
    assert RunDirectory.create(out, name="x").path == out
    run.write("config.json", b"{}")
    with pytest.raises(ConfigError, match=r"never overwritten.*fieldmark resume"):
        RunDirectory.create(out, name="x")
    assert (out / "config.json").read_bytes() == b"{}"


def test_runs_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = [RunDirectory.create(None, name="birds").path.as_posix() for _ in range(3)]
    assert made == ["runs/birds", "runs/birds-2", "runs/birds-3"]
    assert RunDirectory.create(None, name="other").name == "other"


def test_a_place_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for out in (tmp_path / "file", tmp_path / "file" / "r"):
        with pytest.raises(ResourceError, match="--out"):
            RunDirectory.create(out, name="x")
    assert (tmp_path / "file").read_bytes() == b""


def test_open_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not there"):
        RunDirectory.open(tmp_path / "nothing")
    with pytest.raises(RunError, match=r"no config\.json"):
        RunDirectory.open(tmp_path)
    (tmp_path / "config.json").write_text(TrainConfig(lr=0.3).to_json(), encoding="utf-8")
    assert RunDirectory.open(tmp_path).config() == TrainConfig(lr=0.3)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b'{"format": 99}', b'{"a": 1, "a": 2}', b'{"a": NaN}'],
)
def test_broken_json_files(run: RunDirectory, content: bytes) -> None:
    (run.path / "data.json").write_bytes(content)
    with pytest.raises(RunError, match=r"data\.json"):
        run.read_json("data.json")


def test_missing_file_and_folder_in_its_place(run: RunDirectory) -> None:
    with pytest.raises(RunError, match="is missing"):
        run.read_json("data.json")
    (run.path / "data.json").mkdir()
    with pytest.raises(RunError, match=r"cannot read|is missing"):
        run.read_json("data.json")


def test_json_with_every_name_and_lone_surrogates(run: RunDirectory) -> None:
    run.write_json("a.json", {"names": NAMES})
    text = (run.path / "a.json").read_text(encoding="utf-8")
    assert "猫" in text
    assert run.read_json("a.json") == {"names": list(NAMES)}
    run.write_json("b.json", {"names": ["\udcff猫"]})
    assert run.read_json("b.json") == {"names": ["\udcff猫"]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode_json({"x": float("nan")})


def test_log_takes_any_text(run: RunDirectory) -> None:
    run.log("猫 \udcff")
    run.log("two\n")
    assert (run.path / "log.txt").read_text(encoding="utf-8") == "猫 \\udcff\ntwo\n"


def test_model_round_trip(saved: RunDirectory) -> None:
    model = saved.load_model()
    assert model.info == info()
    assert not model.module.training
    torch.manual_seed(3)
    network = models.create("small_cnn(width=2)", num_classes=len(NAMES), size=8).module.eval()
    images = torch.randn(3, 3, 8, 8)
    with torch.inference_mode():
        assert torch.equal(model.module(images), network(images))
    described = json.loads((saved.path / "model.json").read_text(encoding="utf-8"))
    assert described == json.loads(json.dumps(info().to_json()))
    assert described["format"] == FORMAT


def test_channels_last_weights_come_back(run: RunDirectory) -> None:
    network = models.create("small_cnn(width=4)", num_classes=len(NAMES), size=8)
    before = {k: v.clone() for k, v in network.module.state_dict().items()}
    network.module.to(memory_format=torch.channels_last)
    state = network.module.state_dict()
    assert not state["blocks.0.3.weight"].is_contiguous()
    run.save_model(state, info(model="small_cnn(width=4)"))
    after = run.load_model().module.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before)


def test_the_class_count_decides_the_head(saved: RunDirectory) -> None:
    state = torch.load(io.BytesIO(_saved_state(saved)), weights_only=True)
    saved.save_model(state, info(class_names=NAMES[:5]))
    with pytest.raises(RunError, match="does not fit the network"):
        saved.load_model()


def _saved_state(run: RunDirectory) -> bytes:
    buffer = io.BytesIO()
    torch.save(run.load_model().module.state_dict(), buffer)
    return buffer.getvalue()


def test_no_model_yet(run: RunDirectory) -> None:
    with pytest.raises(RunError, match=r"no epoch was finished.*fieldmark resume"):
        run.load_model()


def test_a_foreign_safetensors_is_refused(run: RunDirectory) -> None:
    from safetensors.torch import save

    for metadata in (None, {"format": "pt"}):
        run.write("model.safetensors", save({"a": torch.zeros(2)}, metadata=metadata))
        with pytest.raises(RunError, match="not written by fieldmark"):
            run.load_model()


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"model": 3},
        {"model": "os.system('true')"},
        {"model": "small_cnm"},
        {"model": "small_cnn(width=-1)"},
        {"model": "timm/nothing"},
        {"model": "small_cnn(width=3)"},
        {"temperature": 0},
        {"temperature": -1.0},
        {"temperature": "warm"},
        {"selected": []},
        {"class_names": 7},
        {"input": {}},
        {"input": {"size": 0}},
        {"input": {"size": 8.5}},
        {"input": {"size": 8, "extra": 1}},
        {"input": None},
        {"extra": 1},
    ],
)
def test_a_header_that_makes_no_sense_is_a_run_error(
    saved: RunDirectory, changes: dict[str, Any]
) -> None:
    from safetensors.torch import load_file, save

    path = saved.path / "model.safetensors"
    header = json.dumps({**info().to_json(), **changes})
    path.write_bytes(save(load_file(path), metadata={"fieldmark": header}))
    with pytest.raises(RunError):
        saved.load_model()


@pytest.mark.parametrize("name", ["model.safetensors", "last.ckpt"])
def test_truncated_files_are_run_errors(saved: RunDirectory, name: str) -> None:
    saved.save_checkpoint({"step": 3, "module": saved.load_model().module.state_dict()})
    path = saved.path / name
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(RunError, match=name.replace(".", r"\.")):
            saved.load_model() if name.startswith("model") else checkpoint.newest(saved.path)


@pytest.mark.parametrize("name", ["model.safetensors", "last.ckpt"])
def test_every_bit_flip_is_a_run_error(saved: RunDirectory, name: str) -> None:
    """In headers, in weights, in the checksum itself: a flipped bit is never used."""
    saved.save_checkpoint({"step": 3, "module": saved.load_model().module.state_dict()})
    path = saved.path / name
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    ends = [*range(16), *range(len(whole) - 90, len(whole))]
    for place in [*ends, *rng.integers(0, len(whole), 150).tolist()]:
        broken = bytearray(whole)
        broken[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(broken))
        with pytest.raises(RunError, match=name.replace(".", r"\.")):
            saved.load_model() if name.startswith("model") else checkpoint.newest(saved.path)
    path.write_bytes(whole)
    assert saved.load_model() if name.startswith("model") else checkpoint.newest(saved.path)


def test_checkpoint_round_trip(run: RunDirectory) -> None:
    assert checkpoint.newest(run.path) is None
    run.save_checkpoint({"a": torch.arange(3), "b": [1, 2.5, None, "x"]})
    found = checkpoint.newest(run.path)
    assert found is not None
    state = found.state
    assert state["a"].tolist() == [0, 1, 2]
    assert state["b"] == [1, 2.5, None, "x"]
    assert state["format"] == FORMAT


class _Canary:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_a_malicious_checkpoint_is_not_run(run: RunDirectory, tmp_path: Path) -> None:
    """Nor if its author took the trouble to write a checksum that fits."""
    canary = tmp_path / "canary"
    evil = _Canary(f"touch {canary}")
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "x": evil}, buffer)
    for content in (buffer.getvalue(), pickle.dumps(evil)):
        for written, words in (
            (content, "no checksum"),
            (content + tail(content), "cannot be read"),
        ):
            (run.path / "last.ckpt").write_bytes(written)
            with pytest.raises(RunError, match=words):
                checkpoint.newest(run.path)
            assert not canary.exists()
    pickle.loads(pickle.dumps(evil))
    assert canary.exists(), "the canary itself has to work"


@pytest.mark.parametrize("content", [{"format": FORMAT + 1}, {}, [1], None, {"format": True}])
def test_checkpoints_of_other_formats(run: RunDirectory, content: object) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    (run.path / "last.ckpt").write_bytes(buffer.getvalue() + tail(buffer.getvalue()))
    with pytest.raises(RunError, match=rf"format {FORMAT}|not a checkpoint"):
        checkpoint.newest(run.path)


def test_a_newer_version_is_named(run: RunDirectory) -> None:
    run.write_json("data.json", {"format": FORMAT + 1})
    with pytest.raises(RunError, match=f"format {FORMAT + 1}.*newer fieldmark"):
        run.read_json("data.json")
    text = TrainConfig().to_json()
    run.write("config.json", text.replace(f'"format": {FORMAT}', '"format": 99').encode())
    with pytest.raises(RunError, match=r"format 99.*newer fieldmark"):
        run.config()
    changed = text.replace('"epochs"', '"epoch"').replace('"lr"', '"from_the_future"')
    run.write("config.json", changed.encode())
    with pytest.raises(RunError, match=r"lacks epochs, lacks lr, has 'epoch'; did you mean"):
        run.config()


def test_what_a_killed_start_left_is_begun_anew(tmp_path: Path) -> None:
    out = tmp_path / "r"
    out.mkdir()
    for name in (".lock", "data.json", ".last.ckpt.part", ".config.json.part", "log.txt"):
        (out / name).write_bytes(b"half")
    with pytest.raises(RunError, match=r"stopped before it could be resumed: train anew"):
        RunDirectory.open(out)
    assert RunDirectory.create(out, name="x").path == out
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("others", [("data.json",), (".lock", "data.json", "holiday.jpg")])
def test_a_folder_that_may_be_the_users_is_left_alone(
    tmp_path: Path, others: tuple[str, ...]
) -> None:
    out = tmp_path / "r"
    out.mkdir()
    for name in others:
        (out / name).write_bytes(b"mine")
    with pytest.raises(ConfigError, match="never overwritten"):
        RunDirectory.create(out, name="x")
    assert {p.name: p.read_bytes() for p in out.iterdir()} == dict.fromkeys(others, b"mine")


def test_a_start_under_way_is_not_cleared(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "r", name="x")
    with run.writing():
        run.write("data.json", b"{}")
        with pytest.raises(ConfigError, match=f"process {os.getpid()}"):
            RunDirectory.create(run.path, name="x")
        assert run.has("data.json")


def test_timestamp_is_utc() -> None:
    assert len(run_module.timestamp()) == 20
    assert run_module.timestamp().endswith("Z")
