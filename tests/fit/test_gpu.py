"""Training on a CUDA device: recorded steps, pictures that live there, nothing that waits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fieldmark import augment
from fieldmark.data.batches import Batches, scoring_batches
from fieldmark.data.dataset import Part
from fieldmark.errors import DivergedError
from fieldmark.fit import callbacks, loop, optimizers, schedules
from fieldmark.fit.loop import Plan, StepMark, fit
from fieldmark.fit.lr_finder import find_lr
from fieldmark.fit.recording import Recorder
from fieldmark.fit.state import Ema, EpochRecord, Losses, Tally, TrainState
from fieldmark.machine.device import Device, choose
from fieldmark.networks.small_cnn import small_cnn
from fieldmark.networks.whitened_cnn import whitened_cnn
from fieldmark.pictures.inputs import InputSpec
from fieldmark.pictures.picture import U8, digest
from fieldmark.scoring import scorer
from fieldmark.settings.resolved import FreezeAfter, hardest, stages

pytestmark = pytest.mark.gpu

SPEC = InputSpec(size=32, interpolation="bilinear")
GPU = torch.device("cuda:0")
N, BATCH = 200, 16


def picture(key: str) -> U8:
    """Noise, brighter at the top for even numbers and at the bottom for odd ones."""
    rng = np.random.default_rng(int(key))
    image = rng.integers(0, 120, (32, 32, 3), dtype=np.uint8)
    image[slice(0, 16) if int(key) % 2 == 0 else slice(16, 32)] += 100
    return image


KEYS = tuple(map(str, range(N)))
PART = Part(
    keys=KEYS,
    labels=np.arange(N, dtype=np.int64) % 2,
    digests=tuple(digest(picture(k)) for k in KEYS),
)


def source(text: str = "pad_crop(4)|flip_lr", *, device: torch.device = GPU) -> Batches:
    return Batches(
        PART,
        picture,
        spec=SPEC,
        augment=augment.build(text),
        batch_size=BATCH,
        seed=5,
        threads=2,
        device=device,
    )


def make_state(
    network: Callable[[], nn.Module],
    *,
    optimizer: str = "sgd",
    ema: float = 0.0,
    recorder: Recorder | None = None,
    hardest: bool = False,
) -> TrainState:
    torch.manual_seed(1)
    module = network().to(GPU)
    return TrainState(
        module=module,
        optimizer=optimizers.build(optimizer, module, head="head", weight_decay=0.01),
        callbacks=callbacks.build("", monitor="val_accuracy"),
        tally=Tally.empty(GPU),
        ema=Ema(module, ema) if ema else None,
        losses=Losses.none(N, GPU) if hardest else None,
        recorder=recorder,
    )


def make_plan(**changes: Any) -> Plan:
    base: dict[str, Any] = {
        "epochs": 2,
        "seed": 5,
        "device": choose("cuda:0", "auto"),
        "input": SPEC,
        "head": "head",
        "num_classes": 2,
        "lr": 0.05,
        "schedule": schedules.build("cosine", length=schedules.Length(26, 13)),
        "monitor": "val_accuracy",
    }
    return Plan(**(base | changes))


def validate(module: nn.Module) -> dict[str, float]:
    val = scoring_batches(PART, picture, spec=SPEC, threads=1, device=GPU)
    found = scorer.Scorer(module, spec=SPEC, device="cuda:0").over(b.images for b in val.in_order())
    labels = torch.from_numpy(PART.labels)
    right = float((found.argmax(1) == labels).double().mean())
    loss = float(nn.functional.cross_entropy(found, labels))
    return {"val_loss": loss, "val_accuracy": right, "val_macro_f1": right}


def dropping() -> nn.Module:
    return small_cnn(2, width=8, dropout=0.3)


def narrow() -> nn.Module:
    return whitened_cnn(2, widths=(16, 32, 32))


def run(state: TrainState, plan: Plan, batches: Batches | None = None, **options: Any) -> Any:
    given = batches if batches is not None else source()
    return list(fit(state, given, plan, **({"validate": validate} | options)))


@pytest.fixture(autouse=True)
def _alike() -> Iterator[None]:
    choose("cuda:0", "auto").prepare()
    yield


@pytest.mark.parametrize("precision", ["f32", "bf16"])
@pytest.mark.parametrize(
    ("network", "optimizer"),
    [
        (dropping, "sgd"),
        (dropping, "adamw"),
        (dropping, "keras_adam"),
        (narrow, "muon"),
        (narrow, "muon(hold_norms=False)"),
        (narrow, "keras_sgd(momentum=0.9, nesterov=True)"),
    ],
)
def test_recorded_steps_are_the_same_bits(
    network: Callable[[], nn.Module], optimizer: str, precision: str
) -> None:
    plan = make_plan(device=choose("cuda:0", precision), l2=1e-4, clip_norm=5.0)
    plain, recorder = make_state(network, optimizer=optimizer, ema=0.9), Recorder()
    recorded = make_state(network, optimizer=optimizer, ema=0.9, recorder=recorder)
    a, b = run(plain, plan), run(recorded, plan)
    assert recorder.take_note() == ""
    assert recorder._tapes
    assert [r.train_loss for r in a] == [r.train_loss for r in b]
    for key, value in plain.module.state_dict().items():
        assert torch.equal(value, recorded.module.state_dict()[key]), key


def test_sizes_frozen_parts_mixes_and_micro_batches_are_recorded_alike() -> None:
    plan = make_plan(
        epochs=4,
        mix=augment.build_mix("mixup(0.2)"),
        smoothing=0.1,
        accumulate=2,
        freeze_after=(FreezeAfter("whiten", 2),),
        size_at=schedules.size_at(stages("24@0.5"), full=32, total_steps=52),
    )
    plain, recorder = make_state(narrow, optimizer="muon"), Recorder()
    recorded = make_state(narrow, optimizer="muon", recorder=recorder)
    a, b = run(plain, plan), run(recorded, plan)
    assert recorder.take_note() == ""
    assert [r.train_loss for r in a] == [r.train_loss for r in b]
    for key, value in plain.module.state_dict().items():
        assert torch.equal(value, recorded.module.state_dict()[key]), key


def test_the_hardest_pictures_are_the_same_recorded_and_not() -> None:
    plan = make_plan(epochs=4, smoothing=0.1, accumulate=2, hardest=hardest("0.6@1"))
    plain, recorder = make_state(narrow, optimizer="muon", hardest=True), Recorder()
    recorded = make_state(narrow, optimizer="muon", hardest=True, recorder=recorder)
    a, b = run(plain, plan), run(recorded, plan)
    assert recorder.take_note() == ""
    assert [r.train_loss for r in a] == [r.train_loss for r in b]
    assert plain.losses is not None
    assert recorded.losses is not None
    assert torch.equal(plain.losses.known, recorded.losses.known)
    for key, value in plain.module.state_dict().items():
        assert torch.equal(value, recorded.module.state_dict()[key]), key


def test_no_step_waits_for_the_device_with_each_pictures_loss() -> None:
    plan = make_plan(hardest=hardest("0.6@1"))
    state = make_state(narrow, optimizer="muon", hardest=True, recorder=Recorder())

    def pause(step: int) -> bool:
        torch.cuda.set_sync_debug_mode("error" if 2 <= step < 12 or 15 <= step < 19 else "default")
        return False

    try:
        records = run(state, plan, source("pad_crop(4, 'reflect')|alternating_flip"), pause=pause)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(records) == 2


def test_no_step_waits_for_the_device() -> None:
    plan = make_plan(mix=augment.build_mix("cutmix(1.0)"), clip_norm=1.0, l2=1e-4)
    state = make_state(narrow, optimizer="muon", ema=0.99, recorder=Recorder())
    text = "pad_crop(4, 'reflect')|rotate(15)|flip_lr|erase(0.5)|contrast(0.2)"

    def pause(step: int) -> bool:
        # The first step looks whether all is finite, and the thirteenth ends the epoch.
        waiting = 2 <= step % 13 < 12
        torch.cuda.set_sync_debug_mode("error" if waiting else "default")
        return False

    try:
        records = run(state, plan, source(text), pause=pause)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(records) == 2


@pytest.mark.parametrize(
    "text", [*augment.AUGMENTS, "erase(1.0)", "rotate(15)|shift(0.1, 0.1)|flip_lr"]
)
def test_pictures_are_changed_there_as_here(text: str) -> None:
    """Bytes are the same; what is resampled in float differs by rounding."""
    for ours, theirs in zip(
        source(text, device=torch.device("cpu")).epoch(1), source(text).epoch(1), strict=True
    ):
        assert np.array_equal(ours.indices, theirs.indices)
        assert torch.equal(ours.labels, theirs.labels.cpu())
        assert ours.images.dtype == theirs.images.dtype
        difference = (ours.images.float() - theirs.images.cpu().float()).abs()
        assert float(difference.quantile(0.99)) <= 0.02, text
        assert float(difference.max()) <= 1.01, text


def test_pictures_live_on_the_device_in_order() -> None:
    batches = scoring_batches(PART, picture, spec=SPEC, threads=2, device=GPU)
    for _ in range(2):
        images = torch.cat([b.images for b in batches.in_order()])
        assert images.is_cuda
        assert torch.equal(
            images.cpu(), torch.from_numpy(np.stack([picture(k).transpose(2, 0, 1) for k in KEYS]))
        )


def test_pictures_without_room_there_come_from_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fieldmark.data.batches.RESIDENT", 0.0)
    batch = next(source("none").epoch(0))
    assert batch.images.is_pinned()
    plan = make_plan()
    assert len(run(make_state(narrow, recorder=Recorder()), plan, source())) == 2


def test_interrupted_anywhere_and_gone_on_with() -> None:
    plan = make_plan()
    whole = make_state(narrow, optimizer="muon", ema=0.9, recorder=Recorder())
    run(whole, plan)
    for stop in (2, 8, 15):
        first = make_state(narrow, optimizer="muon", ema=0.9, recorder=Recorder())
        here = partial(int.__eq__, stop)
        for event in fit(first, source(), plan, validate=validate, pause=here):
            if isinstance(event, StepMark):
                break
        saved = copy.deepcopy(first.state_dict())
        second = make_state(narrow, optimizer="muon", ema=0.9, recorder=Recorder())
        second.load_state_dict(saved)
        run(second, plan)
        for key, value in whole.scored.state_dict().items():
            assert torch.equal(value, second.scored.state_dict()[key]), (stop, key)


class Waiting(nn.Module):
    """Asks the device for a number, as no recorded work may."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.mean((2, 3))
        return self.head(x if float(x.sum()) > -1e9 else -x)


def test_what_cannot_be_recorded_trains_all_the_same() -> None:
    state = make_state(Waiting, recorder=Recorder())
    plain = make_state(Waiting)
    plan = make_plan()
    said: list[str] = []
    for _ in fit(state, source(), plan, validate=validate):
        said += state.control.notes
        state.control.notes.clear()
    run(plain, plan)
    assert len(said) == 1
    assert "not recorded" in said[0]
    for key, value in plain.module.state_dict().items():
        assert torch.equal(value, state.module.state_dict()[key]), key


def test_divergence_is_found_and_gone_back_from_once() -> None:
    state = make_state(dropping, optimizer="sgd(momentum=0.0)", recorder=Recorder())
    with pytest.raises(DivergedError, match="also with half the learning rate"):
        run(state, make_plan(lr=1e30, schedule=lambda step: 1.0))
    assert state.rolled_back
    for parameter in state.module.parameters():
        assert bool(torch.isfinite(parameter).all())


class Hungry(nn.Module):
    """Has memory for so many pictures at a time, and statistics that a failed pass would change."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x).mean((2, 3))
        if len(x) > BATCH // 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return self.head(x)


def test_memory_that_runs_out_halves_the_micro_batch() -> None:
    state, whole = make_state(Hungry, recorder=Recorder()), make_state(Hungry)
    records = run(state, make_plan())
    run(whole, make_plan(accumulate=2))
    assert len(state.incidents) == 1
    assert "out of memory" in state.incidents[0]
    assert isinstance(records[-1], EpochRecord)
    for key, value in whole.module.state_dict().items():
        assert torch.equal(value, state.module.state_dict()[key]), key


def test_learning_rates_are_tried_on_a_copy() -> None:
    state = make_state(narrow, optimizer="muon", recorder=Recorder())
    before = copy.deepcopy(state.module.state_dict())
    assert find_lr(state, source(), make_plan(), steps=30).lrs
    for key, value in before.items():
        assert torch.equal(value, state.module.state_dict()[key])


def test_the_loop_knows_what_a_step_has_in_common() -> None:
    state, batch = make_state(narrow), next(source().epoch(0))
    plan = make_plan()
    assert loop._kind(state, batch, plan) == (len(batch.labels), 32, 1, torch.uint8)


def test_scores_are_those_of_the_processor() -> None:
    torch.manual_seed(3)
    module = narrow().eval()
    given = list(scoring_batches(PART, picture, spec=SPEC, threads=1).in_order())
    here = scorer.Scorer(module, spec=SPEC).over(b.images for b in given)
    there = scorer.Scorer(module.to(GPU), spec=SPEC, device="cuda:0").over(b.images for b in given)
    assert float((here.softmax(1) - there.softmax(1)).abs().max()) < 1e-3
    assert isinstance(choose("cuda:0", "f32"), Device)
