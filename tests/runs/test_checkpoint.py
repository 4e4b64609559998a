"""Nothing is lost: whole files, the checkpoint before, full disks, and changes made by hand."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fieldmark
from fieldmark import models
from fieldmark.data import open_dataset
from fieldmark.errors import ConfigError, ResourceError, RunError
from fieldmark.files import writing
from fieldmark.fit import optimizers
from fieldmark.fit.state import Ema, Tally, TrainState
from fieldmark.runs import checkpoint, history, saving
from fieldmark.runs.directory import RunDirectory
from fieldmark.runs.model import ModelInfo, Selected, encode_model
from fieldmark.runs.saving import Origin, Saver
from fieldmark.settings.config import TrainConfig, save_interval

Usage = namedtuple("Usage", "total used free")


# --- checkpoints ---------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "r", name="x")


@pytest.fixture
def saved(run: RunDirectory) -> RunDirectory:
    """Three were saved; the first is gone."""
    for step in range(3):
        run.save_checkpoint({"step": step, "weight": torch.full((500,), float(step))})
    return run


def step_of(run: RunDirectory) -> int:
    found = checkpoint.newest(run.path)
    assert found is not None
    return int(found.state["step"])


def test_the_one_before_is_kept(saved: RunDirectory) -> None:
    assert sorted(p.name for p in saved.path.iterdir()) == ["last.ckpt", "previous.ckpt"]
    assert step_of(saved) == 2
    (saved.path / "last.ckpt").unlink()
    found = checkpoint.newest(saved.path)
    assert found is not None
    assert found.state["step"] == 1
    assert found.passed_over == (f"{saved.path / 'last.ckpt'} is missing",)


def damages(whole: bytes) -> dict[str, bytes]:
    """Item 35: cut at every tenth, a flipped bit, a tail of zeros as a power cut leaves it."""
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 4
    cut = {f"cut at {k}/10": whole[: len(whole) * k // 10] for k in range(10)}
    tail = whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2)
    return {
        **cut,
        "a flipped bit": bytes(flipped),
        "a tail of zeros": tail,
        "a byte more": whole + b"\n",
        "a byte less": whole[:-1],
        "only the checksum's line": whole[-82:],
    }


def test_a_damaged_one_is_passed_over_and_said(saved: RunDirectory) -> None:
    last = saved.path / "last.ckpt"
    for name, content in damages(last.read_bytes()).items():
        last.write_bytes(content)
        found = checkpoint.newest(saved.path)
        assert found is not None, name
        assert found.state["step"] == 1, name
        assert len(found.passed_over) == 1
        assert "last.ckpt is" in found.passed_over[0]
    (saved.path / "previous.ckpt").write_bytes(b"x")
    with pytest.raises(RunError, match=r"last\.ckpt is.*previous\.ckpt is") as caught:
        checkpoint.newest(saved.path)
    assert caught.value.exit_code == 4


def test_no_checkpoint_is_none(run: RunDirectory) -> None:
    assert checkpoint.newest(run.path) is None


def test_the_next_save_does_not_cost_the_one_that_was_gone_on_from(saved: RunDirectory) -> None:
    """Killed between the two renames of a save that follows a damaged checkpoint."""
    (saved.path / "last.ckpt").write_bytes(b"damaged")
    found = checkpoint.newest(saved.path)
    assert found is not None
    found.make_last()
    assert step_of(saved) == 1
    (saved.path / "last.ckpt").replace(saved.path / "previous.ckpt")  # the first of the renames
    assert step_of(saved) == 1


def test_the_old_ones_stay_until_the_new_one_is_verified(
    saved: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p.name: p.read_bytes() for p in saved.path.iterdir()}
    monkeypatch.setattr(writing, "PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setattr(writing, "_holds", lambda path, data: False)
    with pytest.raises(ResourceError, match="reads back differently"):
        saved.save_checkpoint({"step": 3})
    assert {p.name: p.read_bytes() for p in saved.path.iterdir()} == before


def test_what_is_read_back_is_compared_to_the_last_byte(tmp_path: Path) -> None:
    path, data = tmp_path / "x", bytes(3_000_000)
    for content, same in ((data, True), (data[:-1], False), (data + b"x", False), (b"", False)):
        path.write_bytes(content)
        assert writing._holds(path, data) is same
    path.write_bytes(data[:2_999_999] + b"\1")
    assert not writing._holds(path, data)


# --- a disk that refuses -------------------------------------------------------------------------


class Failing:
    """``os.fsync`` that fails so many times."""

    def __init__(self, times: int, number: int) -> None:
        self.times, self.number, self.calls = times, number, 0
        self.real = os.fsync

    def __call__(self, handle: int) -> None:
        self.calls += 1
        if self.calls <= self.times:
            raise OSError(self.number, os.strerror(self.number))
        self.real(handle)


@pytest.mark.parametrize("number", [errno.EIO, errno.EBUSY, errno.ESTALE, errno.EAGAIN])
def test_what_may_pass_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("fieldmark.files.writing.time.sleep", pauses.append)
    path = tmp_path / "a"
    monkeypatch.setattr(os, "fsync", Failing(3, number))
    writing.write_atomic(path, b"one")
    assert path.read_bytes() == b"one"
    assert pauses == list(writing.PAUSES)
    monkeypatch.setattr(os, "fsync", Failing(4, number))
    with pytest.raises(ResourceError, match="unchanged"):
        writing.write_atomic(path, b"two")
    assert path.read_bytes() == b"one"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, r"7 bytes needed, .* free; .*make room"),
        (errno.EDQUOT, r"7 bytes needed, .* free; .*quota"),
        (errno.EFBIG, r"7 bytes needed"),
        (errno.EROFS, r"make the folder writable"),
        (errno.EACCES, r"make the folder writable"),
    ],
)
def test_what_will_not_pass_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, says: str
) -> None:
    failing = Failing(1, number)
    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(ResourceError, match=says) as caught:
        writing.write_atomic(tmp_path / "a", b"content")
    assert failing.calls == 1
    assert caught.value.exit_code == 6
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_vanished_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="the folder is gone: bring it back"):
        writing.write_atomic(tmp_path / "gone" / "a", b"x")


def test_a_request_to_stop_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", stop)
    with pytest.raises(KeyboardInterrupt):
        writing.write_atomic(tmp_path / "a", b"x")
    assert list(tmp_path.iterdir()) == []


def full(monkeypatch: pytest.MonkeyPatch, free: Callable[[], int]) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, free()))


def test_nothing_is_written_that_has_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing.write_atomic(tmp_path / "a", b"old")
    full(monkeypatch, lambda: 150_000)
    with pytest.raises(ResourceError, match=r"1\.0 MB needed, 150\.0 kB free"):
        writing.write_atomic(tmp_path / "a", bytes(1_000_000))
    writing.write_atomic(tmp_path / "b", b"small")
    assert (tmp_path / "a").read_bytes() == b"old"


@pytest.mark.parametrize("answer", [Usage(0, 0, 0), OSError(errno.ENOSYS, "not here")])
def test_a_file_system_that_does_not_say_is_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    def usage(path: Path) -> Usage:
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(shutil, "disk_usage", usage)
    writing.require_room(tmp_path, 10**15, "the run")
    writing.write_atomic(tmp_path / "a", b"x")
    assert (tmp_path / "a").read_bytes() == b"x"


def test_a_run_that_will_not_fit_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full(monkeypatch, lambda: 999_999)
    writing.require_room(tmp_path / "not" / "yet", 999_999, "the run")
    with pytest.raises(ResourceError, match=r"the run needs 1\.0 MB.*1000\.0 kB are free.*--out"):
        writing.require_room(tmp_path / "not" / "yet", 1_000_000, "the run")
    assert list(tmp_path.iterdir()) == []


# --- save_every ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "interval"),
    [
        ("epoch", (0, 0)),
        ("500 steps", (500, 0)),
        ("1 step", (1, 0)),
        ("10 min", (0, 600)),
        ("0.5min", (0, 30)),
    ],
)
def test_intervals(text: str, interval: tuple[int, float]) -> None:
    assert save_interval(text) == interval
    assert TrainConfig(save_every=text).save_every == text


@pytest.mark.parametrize(
    "text", ["", "0 steps", "0 min", "0.0 min", "-1 steps", "5", "5 epochs", "1e3 steps", "٣ steps"]
)
def test_other_intervals_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="'500 steps' or '10 min'"):
        TrainConfig(save_every=text)


# --- the saver -----------------------------------------------------------------------------------


def state_of(text: str = "sgd(momentum=0.9)", ema: float = 0.0, width: int = 2) -> TrainState:
    network = models.create(f"small_cnn(width={width})", num_classes=2, size=8)
    optimizer = optimizers.build(
        text, network.module, head=network.head, weight_decay=0.0, backbone_lr=1.0, bias_lr=1.0
    )
    average = Ema(network.module, ema) if ema else None
    return TrainState(network.module, optimizer, [], Tally.empty(torch.device("cpu")), average)


def info_of(**changes: Any) -> ModelInfo:
    network = models.create("small_cnn(width=2)", num_classes=2, size=8)
    info = ModelInfo(
        model="small_cnn(width=2)",
        input=network.input,
        class_names=("a", "b"),
        temperature=1.0,
        selected=Selected(epoch=1, metric="val_accuracy", value=0.5),
        weights="none",
        num_params=network.num_params,
    )
    return dataclasses.replace(info, **changes)


def model_of(state: TrainState, **changes: Any) -> bytes:
    return encode_model(state.module.state_dict(), info_of(**changes))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclasses.dataclass
class Desk:
    """A saver and what it says."""

    run: RunDirectory
    state: TrainState
    saver: Saver
    clock: Clock
    said: list[str]


@pytest.fixture
def desk(run: RunDirectory) -> Desk:
    clock = Clock()
    said: list[str] = []
    origin = Origin(TrainConfig(save_every="2 min"), "fingerprint", "none")
    return Desk(run, state_of(), Saver(run, origin, warn=said.append, clock=clock), clock, said)


def test_steps_and_minutes_between_checkpoints(desk: Desk) -> None:
    assert not desk.saver.due(1)
    desk.clock.now = 120
    assert desk.saver.due(2)
    desk.saver.save(desk.state)
    assert not desk.saver.due(3)
    by_steps = Saver(
        desk.run, Origin(TrainConfig(save_every="3 steps"), "", ""), warn=desk.said.append
    )
    assert [step for step in range(1, 10) if by_steps.due(step)] == [3, 6, 9]


def test_training_goes_on_while_the_disk_is_full(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Warned of once, tried again after a while, and nothing that was waiting is lost."""
    desk.saver.save(desk.state)
    old = (desk.run.path / "last.ckpt").read_bytes()
    tried = 0

    def free() -> int:
        nonlocal tried
        tried += 1
        return 0

    full(monkeypatch, free)
    desk.state.step = 1
    desk.saver.put("model.safetensors", model_of(desk.state))
    desk.saver.save(desk.state)
    assert len(desk.said) == 1
    assert "Training goes on" in desk.said[0]
    assert "0 bytes free" in desk.said[0]
    after_one = tried
    desk.clock.now = 1.9
    desk.saver.save(desk.state)
    assert tried == after_one, "tried again too early"
    desk.clock.now = 2.0
    desk.saver.save(desk.state)
    assert tried > after_one
    assert len(desk.said) == 1
    assert (desk.run.path / "last.ckpt").read_bytes() == old
    assert [p.name for p in desk.run.path.iterdir()] == ["last.ckpt"]
    monkeypatch.undo()
    desk.clock.now = 6.0
    desk.saver.save(desk.state)
    assert "saved again after 2 failed tries" in desk.said[1]
    assert step_of(desk.run) == 1
    assert desk.run.load_model().info.selected.epoch == 1
    written = (desk.run.path / "last.ckpt").stat().st_ino
    desk.saver.finish(desk.state)
    assert (desk.run.path / "last.ckpt").stat().st_ino == written, "nothing was waiting"
    assert len(desk.said) == 2


def test_at_the_end_it_has_to_be_saved(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.saver.save(desk.state)
    full(monkeypatch, lambda: 1000)
    desk.state.step = 7
    desk.saver.save(desk.state)
    with pytest.raises(ResourceError, match=r"make room.*step 7, and step 0 is.*fieldmark resume"):
        desk.saver.finish(desk.state)
    monkeypatch.undo()
    desk.saver.finish(desk.state)
    assert step_of(desk.run) == 7


def test_a_checkpoint_alone_brings_the_models_back(desk: Desk) -> None:
    """Whatever became of the other file: gone, damaged, or of an epoch that was lost."""
    path, wanted = desk.run.path / "model.safetensors", model_of(desk.state)
    desk.saver.put("model.safetensors", wanted)
    desk.saver.save(desk.state)
    found = checkpoint.newest(desk.run.path)
    assert found is not None
    other = model_of(state_of())
    flipped = wanted[:-5] + bytes([wanted[-5] ^ 1]) + wanted[-4:]
    epoch_2 = model_of(desk.state, selected=Selected(epoch=2, metric="val_accuracy", value=0.9))
    place = wanted.index(b"sha256") + 12  # within the checksum itself
    unsealed = wanted[:place] + bytes([wanted[place] ^ 1]) + wanted[place + 1 :]
    assert len({wanted, other, flipped, epoch_2, unsealed}) == 5
    for content in (None, b"", wanted[:100], flipped, other, epoch_2, unsealed):
        path.unlink() if content is None else path.write_bytes(content)
        desk.saver.take_back(found.state, desk.state)
        assert path.read_bytes() == wanted
        assert json.loads((desk.run.path / "model.json").read_bytes())["selected"]["epoch"] == 1


def test_a_finished_models_temperature_stays(desk: Desk) -> None:
    desk.saver.put("model.safetensors", model_of(desk.state))
    desk.saver.save(desk.state)
    found = checkpoint.newest(desk.run.path)
    assert found is not None
    desk.run.put_model("model.safetensors", model_of(desk.state, temperature=2.5))
    desk.saver.take_back(found.state, desk.state)
    assert desk.run.load_model().info.temperature == 2.5


def test_a_model_of_an_epoch_that_is_to_come_again_is_removed(desk: Desk) -> None:
    desk.saver.save(desk.state)
    found = checkpoint.newest(desk.run.path)
    assert found is not None
    desk.run.put_model("model.safetensors", model_of(desk.state))
    desk.saver.take_back(found.state, desk.state)
    assert not desk.run.has("model.safetensors")


@pytest.mark.parametrize(
    "value", [None, [], {"config.json": torch.zeros(1, dtype=torch.uint8)}, {"a": 1}]
)
def test_a_checkpoint_cannot_have_other_files_written(desk: Desk, value: object) -> None:
    with pytest.raises(RunError, match="not what a run writes"):
        desk.saver.take_back({"models": value}, desk.state)
    assert list(desk.run.path.iterdir()) == []


def test_the_same_model_is_the_same_file() -> None:
    state = state_of()
    assert model_of(state) == model_of(state)


@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize("every", ["epoch", "1 step"])
@pytest.mark.parametrize(
    ("optimizer", "ema"),
    [("sgd", 0.0), ("sgd(momentum=0.9)", 0.0), ("adamw", 0.9), ("keras_adam", 0.0), ("muon", 0.9)],
)
def test_the_room_a_run_is_said_to_need_is_enough(
    run: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
    optimizer: str,
    ema: float,
    every: str,
    keep: str,
) -> None:
    """With so large a network that the other files do not count; and no more than twice of it."""
    monkeypatch.setattr(saving, "SMALL_FILES", 0)
    state = state_of(optimizer, ema, width=32)
    config = TrainConfig(optimizer=optimizer, ema=ema, keep=keep, save_every=every)
    for parameter in state.module.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.begin_epoch()
    state.optimizer.step()
    state.step, state.batch = 1, int(every != "epoch")
    saver = Saver(run, Origin(config, "", ""), warn=pytest.fail)
    saver.put("model.safetensors", model_of(state))
    if keep == "last":
        saver.put("best.safetensors", model_of(state))
    run.save_model(state.module.state_dict(), info_of(), name="final.safetensors")
    saver.save(state)
    saver.save(state)
    used = sum(p.stat().st_size for p in run.path.iterdir())
    used += (run.path / "last.ckpt").stat().st_size  # the one that is being written
    needed = saving.room_needed(state, config, pictures=0)
    assert used < 1.01 * needed
    assert needed < 2 * used


# --- a whole run ---------------------------------------------------------------------------------

SETTINGS: dict[str, Any] = {
    "model": "small_cnn(width=2)",
    "size": 8,
    "epochs": 3,
    "batch_size": 8,
    "lr": 0.05,
    "optimizer": "sgd(momentum=0.9)",
    "save_every": "2 steps",
    "threads": 1,
    "split": "0.6/0.2/0.2",
}
RESULTS = ("model.safetensors", "final.safetensors", "evaluation.json", "predictions.csv")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "stripes"
    rng = np.random.default_rng(0)
    for label in ("rows", "columns"):
        (root / label).mkdir(parents=True)
        for i in range(20):
            image = rng.integers(0, 140, (8, 8, 3))
            image[::2] += 80 * (label == "rows")
            image[:, ::2] += 80 * (label == "columns")
            Image.fromarray(image.astype(np.uint8)).save(root / label / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def whole(pictures: Path) -> RunDirectory:
    return RunDirectory(
        fieldmark.train(pictures, out=pictures.parent / "whole", progress=False, **SETTINGS).path
    )


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def stopped(pictures: Path) -> Path:
    """A run that was killed in its last epoch, with a checkpoint there and one epoch back."""
    from fieldmark.fit import loop

    real = loop._step

    def failing(state: Any, batch: Any, plan: Any) -> None:
        if state.step == 8:
            raise Killed
        real(state, batch, plan)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_step", failing)
        with pytest.raises(Killed):
            fieldmark.train(pictures, out=pictures.parent / "stopped", progress=False, **SETTINGS)
    return pictures.parent / "stopped"


@pytest.fixture
def mine(stopped: Path, request: pytest.FixtureRequest) -> RunDirectory:
    """A copy of it, beside it: a run says where its pictures are as seen from there."""
    copy = stopped.with_name(f"copy-{abs(hash(request.node.name))}")
    shutil.copytree(stopped, copy)
    return RunDirectory(copy)


def assert_same(run: RunDirectory, whole: RunDirectory) -> None:
    for name in RESULTS:
        assert (run.path / name).read_bytes() == (whole.path / name).read_bytes(), name
    assert not list(run.path.glob(".*"))


@pytest.mark.parametrize("damaged", [("last.ckpt",), ("model.safetensors",), ()])
def test_it_ends_alike_whatever_was_damaged(
    mine: RunDirectory, whole: RunDirectory, damaged: tuple[str, ...]
) -> None:
    for name in damaged:
        data = bytearray((mine.path / name).read_bytes())
        data[len(data) // 2] ^= 1
        (mine.path / name).write_bytes(data)
    (mine.path / "metrics.jsonl").unlink()
    (mine.path / ".last.ckpt.part").write_bytes(b"half")
    fieldmark.resume(mine.path, progress=False)
    assert_same(mine, whole)
    log = mine.read_text("log.txt")
    assert ("resuming from previous.ckpt" in log) == ("last.ckpt" in damaged)
    assert len(history.read(mine)) == SETTINGS["epochs"]


def test_a_damaged_model_answers_nothing(mine: RunDirectory) -> None:
    path = mine.path / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    run = fieldmark.load(mine.path)
    for use in (run.evaluate, lambda **_: run.predict(np.zeros((8, 8, 3), np.uint8))):
        with pytest.raises(RunError, match="checksum does not fit") as caught:
            use(progress=False)
        assert caught.value.exit_code == 4


def test_a_full_disk_in_training_costs_nothing(
    pictures: Path, whole: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full from the first step on, so that the best weights wait in memory; free before the end."""
    out = tmp_path / "r"
    real, asked = shutil.disk_usage, 0

    def usage(path: Path) -> Any:
        nonlocal asked
        asked += out.joinpath("config.json").exists()
        return Usage(1, 1, 0) if 0 < asked < 4 else real(path)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    monkeypatch.setattr(saving, "LONGEST_WAIT", 0.0)
    fieldmark.train(pictures, out=out, progress=False, **SETTINGS)
    assert asked > 4
    assert_same(RunDirectory(out), whole)
    log = (out / "log.txt").read_text()
    assert log.count("warning: not saved") == 1
    assert log.count("saved again") == 1


def test_a_disk_that_stays_full_ends_it_with_what_to_do(
    pictures: Path, whole: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r"
    real = shutil.disk_usage

    def usage(path: Path) -> Any:
        return Usage(1, 1, 0) if (out / "config.json").exists() else real(path)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(ResourceError, match=r"0 bytes free.*make room.*fieldmark resume"):
        fieldmark.train(pictures, out=out, progress=False, **SETTINGS)
    monkeypatch.undo()
    assert not (out / "model.safetensors").exists()
    fieldmark.resume(out, progress=False)
    assert_same(RunDirectory(out), whole)


def test_no_run_is_begun_without_room(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full(monkeypatch, lambda: 1000)
    with pytest.raises(ResourceError, match=r"the run needs .* MB.*1\.0 kB are free"):
        fieldmark.train(pictures, out=tmp_path / "r", progress=False, **SETTINGS)
    assert not (tmp_path / "r").exists()


def test_settings_changed_by_hand_are_named(mine: RunDirectory) -> None:
    before = (mine.path / "last.ckpt").read_bytes()
    value = json.loads(mine.read_text("config.json"))
    mine.write_json("config.json", {**value, "lr": 0.5, "epochs": 9})
    with pytest.raises(RunError, match=r"epochs is 9, was 3; lr is 0\.5, was 0\.05\. "):
        fieldmark.resume(mine.path, progress=False)
    assert (mine.path / "last.ckpt").read_bytes() == before


def test_pictures_changed_by_hand_in_the_manifest_are_named(mine: RunDirectory) -> None:
    stored = json.loads(mine.read_text("data.json"))
    stored["parts"]["train"][0][1] ^= 1
    mine.write_json("data.json", stored)
    for use in (fieldmark.resume, lambda path, **_: fieldmark.load(path).evaluate(progress=False)):
        with pytest.raises(RunError, match=r"data\.json.*put back the file as it was"):
            use(mine.path, progress=False)


@pytest.mark.parametrize("change", [{"parts": 3}, {"parts": {"train": [[1]]}}, {"counts": {}}])
def test_a_manifest_that_makes_no_sense(mine: RunDirectory, change: dict[str, Any]) -> None:
    mine.write_json("data.json", {**json.loads(mine.read_text("data.json")), **change})
    with pytest.raises(
        RunError, match=r"data\.json: (parts is 3, but must be an object|parts\.train\.0|counts)"
    ):
        fieldmark.resume(mine.path, progress=False)


def test_the_manifest_of_another_run_is_refused(
    mine: RunDirectory, pictures: Path, tmp_path: Path
) -> None:
    shutil.copytree(pictures, tmp_path / "fewer")
    (tmp_path / "fewer" / "rows" / "3.png").unlink()
    other = fieldmark.train(
        tmp_path / "fewer", out=tmp_path / "r", progress=False, **{**SETTINGS, "epochs": 1}
    )
    shutil.copy(other.path / "data.json", mine.path / "data.json")
    with pytest.raises(RunError, match=r"data\.json is not that of the checkpoint"):
        fieldmark.resume(mine.path, data=tmp_path / "fewer", progress=False)


def test_classes_in_another_order_are_not_scored(mine: RunDirectory) -> None:
    stored = json.loads(mine.read_text("data.json"))
    mine.write_json("data.json", {**stored, "class_names": stored["class_names"][::-1]})
    with pytest.raises(RunError, match="another order of them: rows, columns; the model's are"):
        fieldmark.load(mine.path).evaluate(progress=False)


def test_changed_pictures_go_on_only_when_allowed_and_are_recorded(
    mine: RunDirectory, pictures: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "stripes"
    shutil.copytree(pictures, copy)
    before = json.loads(mine.read_text("data.json"))
    part = {row[0]: name for name, rows in before["parts"].items() for row in rows}
    victims = [key for key, name in part.items() if name == "train"]
    image = np.asarray(Image.open(copy / victims[0]))
    Image.fromarray(255 - image).save(copy / victims[0])
    gone = sorted(key for key in victims[1:] if key.startswith("columns"))[:4]
    for key in gone:
        (copy / key).unlink()
    Image.fromarray(image[::-1]).save(copy / "rows" / "new.png")
    some = ", ".join(gone[:3])
    told = rf"1 new \(rows/new\.png\), 4 gone \({some}, \.\.\.\), 1 changed \({victims[0]}\)"
    with pytest.raises(RunError, match=f"{told}.*--allow-data-change"):
        fieldmark.resume(mine.path, data=copy, progress=False)
    assert json.loads(mine.read_text("data.json")) == before
    fieldmark.resume(mine.path, data=copy, allow_data_change=True, progress=False)
    after = json.loads(mine.read_text("data.json"))
    (record,) = after["changes"]
    assert record["from"] == before["fingerprint"] != after["fingerprint"]
    assert (record["added"], record["gone"]) == (["rows/new.png"], gone)
    assert record["after_step"] == 8
    now = {row[0]: name for name, rows in after["parts"].items() for row in rows}
    assert {key: now[key] for key in now if key != "rows/new.png"} == {
        key: name for key, name in part.items() if key not in gone
    }, "a picture changed sides"
    anew = open_dataset(str(copy), mine.config()).divide(mine.config()).parts
    sides = {key: name for name, divided in anew.items() for key in divided.keys}
    assert any(sides[key] != part[key] for key in sides if key in part), "dividing anew moves none"
    assert "the pictures changed after step 8" in mine.read_text("report.html")
    fieldmark.resume(mine.path, data=copy, progress=False)  # they are the run's now
    assert json.loads(mine.read_text("data.json")) == after


def test_another_class_is_never_gone_on_with(
    mine: RunDirectory, pictures: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "stripes"
    shutil.copytree(pictures, copy)
    shutil.copytree(copy / "rows", copy / "dots")
    with pytest.raises(RunError, match=r"classes changed.*new dots; gone none"):
        fieldmark.resume(mine.path, data=copy, allow_data_change=True, progress=False)


def test_a_run_has_one_writer(mine: RunDirectory, pictures: Path) -> None:
    run = fieldmark.load(mine.path)
    with mine.writing():
        for use in (
            run.evaluate,
            lambda **_: fieldmark.resume(mine.path, progress=False),
            lambda **_: fieldmark.train(pictures, out=mine.path, progress=False, **SETTINGS),
        ):
            with pytest.raises(ConfigError, match=r"being written by process|never overwritten"):
                use(progress=False)
        run.predict(np.zeros((8, 8, 3), np.uint8))
