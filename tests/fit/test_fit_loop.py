"""The loop: exact resume at every step, honest averages, and nothing that is not a number."""

from __future__ import annotations

import copy
import dataclasses
import io
import itertools
import math
import random
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fieldmark import augment
from fieldmark.data.batches import Batches
from fieldmark.data.dataset import Part
from fieldmark.errors import ConfigError, DivergedError, ResourceError
from fieldmark.fit import callbacks, loop, optimizers, schedules
from fieldmark.fit.loop import Plan, StepMark, _step, check_finite, fit, shrunk
from fieldmark.fit.losses import loss_sum
from fieldmark.fit.lr_finder import find_lr
from fieldmark.fit.state import Ema, EpochRecord, Losses, Tally, TrainState
from fieldmark.machine.device import Device
from fieldmark.networks.small_cnn import small_cnn
from fieldmark.pictures.inputs import InputSpec
from fieldmark.pictures.picture import U8, digest
from fieldmark.scoring import scorer
from fieldmark.settings.resolved import FreezeAfter, Stage, hardest

SPEC = InputSpec(size=8, interpolation="bilinear")
CPU = Device("cpu", "f32")


def picture(key: str) -> U8:
    """Noise, brighter at the top for even numbers and at the bottom for odd ones."""
    rng = np.random.default_rng(int(key))
    image = rng.integers(0, 120, (8, 8, 3), dtype=np.uint8)
    image[slice(0, 4) if int(key) % 2 == 0 else slice(4, 8)] += 100
    return image


def part(n: int) -> Part:
    keys = tuple(map(str, range(n)))
    return Part(
        keys=keys,
        labels=np.arange(n, dtype=np.int64) % 2,
        digests=tuple(digest(picture(k)) for k in keys),
    )


PART = part(22)


def source(text: str = "none", *, batch_size: int = 6, seed: int = 5, n: int = 22) -> Batches:
    return Batches(
        PART if n == 22 else part(n),
        picture,
        spec=SPEC,
        augment=augment.build(text),
        batch_size=batch_size,
        seed=seed,
    )


class Plain(nn.Module):
    """No norm, no dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4 * 36, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.conv(x)).flatten(1))


def cnn() -> nn.Module:
    return small_cnn(2, width=2, dropout=0.3)


def make_state(
    network: Callable[[], nn.Module] = cnn,
    *,
    optimizer: str = "sgd",
    ema: float = 0.0,
    text: str = "none",
    monitor: str = "val_accuracy",
    seed: int = 1,
    hardest: bool = False,
) -> TrainState:
    torch.manual_seed(seed)
    module = network()
    return TrainState(
        module=module,
        optimizer=optimizers.build(
            optimizer, module, head="head", weight_decay=0.01, backbone_lr=0.5
        ),
        callbacks=callbacks.build(text, monitor=monitor),
        tally=Tally.empty(torch.device("cpu")),
        ema=Ema(module, ema) if ema else None,
        losses=Losses.none(len(PART), torch.device("cpu")) if hardest else None,
    )


def make_plan(**changes: Any) -> Plan:
    base: dict[str, Any] = {
        "epochs": 3,
        "seed": 5,
        "device": CPU,
        "input": SPEC,
        "head": "head",
        "num_classes": 2,
        "lr": 0.05,
        "schedule": schedules.build("cosine", length=schedules.Length(12, 4)),
        "monitor": "val_accuracy",
    }
    return Plan(**(base | changes))


def validate(module: nn.Module, *, channels_last: bool = True) -> dict[str, float]:
    batches = [b.images for b in source(batch_size=22).in_order()]
    logits = scorer.Scorer(module, spec=SPEC, channels_last=channels_last).over(batches)
    labels = torch.from_numpy(PART.labels)
    right = float((logits.argmax(1) == labels).double().mean())
    return {
        "val_loss": float(loss_sum(logits, labels)) / len(labels),
        "val_accuracy": right,
        "val_macro_f1": right,
    }


def figures_of(record: EpochRecord) -> list[float]:
    return [getattr(record, name) for name in callbacks.MONITORS]


def run(state: TrainState, plan: Plan, batches: Any = None, **options: Any) -> list[EpochRecord]:
    given = batches if batches is not None else source()
    steps = fit(state, given, plan, **({"validate": validate} | options))
    return [r for r in steps if isinstance(r, EpochRecord)]


def stored(state: TrainState) -> dict[str, Any]:
    """Through a file and back, as a checkpoint goes."""
    buffer = io.BytesIO()
    torch.save(state.state_dict(), buffer)
    buffer.seek(0)
    value: dict[str, Any] = torch.load(buffer, weights_only=True)
    return value


def same(one: Any, other: Any) -> bool:
    """Bitwise, but for times."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        timed = {"seconds", "images_per_second", "data_wait", "waited"}
        return one.keys() == other.keys() and all(
            same(v, other[k]) for k, v in one.items() if k not in timed
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


# --- exact resume -------------------------------------------------------------------------------

Case = tuple[Callable[[], TrainState], dict[str, Any], str]
CASES: dict[str, Case] = {
    "plain sgd": (lambda: make_state(optimizer="sgd(momentum=0.9, nesterov=True)"), {}, "none"),
    "everything at once": (
        lambda: make_state(
            optimizer="adamw",
            ema=0.9,
            text="early_stopping(2)|reduce_on_plateau(0.5, 1)",
            monitor="val_loss",
        ),
        {
            "mix": augment.build_mix("mixup(0.4)|cutmix"),
            "accumulate": 2,
            "clip_norm": 0.5,
            "smoothing": 0.1,
            "weights": torch.tensor([0.5, 1.5]),
            "monitor": "val_loss",
        },
        "pad_crop(2)|flip_lr|erase",
    ),
    "freeze, then all": (
        lambda: make_state(optimizer="adam", ema=0.5),
        {"freeze": True, "unfreeze_at_epoch": 1},
        "random_resized_crop(0.5)",
    ),
    "a part, then all": (
        lambda: make_state(optimizer="sgd(momentum=0.9)"),
        {"train_from": "blocks.1", "unfreeze_at_epoch": 2},
        "none",
    ),
    "muon, small pictures first, a part frozen": (
        lambda: make_state(optimizer="muon"),
        {
            "size_at": schedules.size_at((Stage(0.4, 5), Stage(0.7, 6)), full=8, total_steps=12),
            "freeze_after": (FreezeAfter("blocks.0", 1), FreezeAfter("blocks.1", 2)),
        },
        "pad_crop(2, 'reflect')|alternating_flip",
    ),
    "the hardest pictures": (
        lambda: make_state(optimizer="adamw", hardest=True),
        {"hardest": hardest("0.85@1"), "accumulate": 2, "smoothing": 0.2},
        "pad_crop(2)|flip_lr",
    ),
    "stops early": (
        lambda: make_state(text="early_stopping(1, min_delta=5.0)", monitor="val_loss"),
        {"monitor": "val_loss"},
        "none",
    ),
}


@pytest.mark.parametrize("name", list(CASES))
def test_resuming_at_every_step_gives_the_same_run(name: str) -> None:
    """From every state the next one follows, so that by induction the rest does; one to the end."""
    make, changes, text = CASES[name]
    plan = make_plan(**changes)
    whole = make()
    checkpoints = []
    for mark in fit(whole, source(text), plan, validate=validate, pause=lambda step: True):
        checkpoints.append((type(mark), stored(whole)))
    steps = sum(kind is StepMark for kind, _ in checkpoints)
    assert steps == 4 * whole.epoch
    assert len(checkpoints) == steps + whole.epoch
    final = stored(whole)
    assert whole.epoch == (2 if name == "stops early" else 3)
    assert same(final, checkpoints[-1][1])
    for (_, checkpoint), (kind, following) in itertools.pairwise(checkpoints):
        again = make()
        again.load_state_dict(copy.deepcopy(checkpoint))
        steps_ = fit(again, source(text), plan, validate=validate, pause=lambda step: True)
        assert type(next(steps_)) is kind
        assert same(following, stored(again))
        steps_.close()  # type: ignore[attr-defined]
    again = make()
    again.load_state_dict(checkpoints[len(checkpoints) // 3][1])
    run(again, plan, source(text))
    assert same(final, stored(again))


def test_epochs_train_on_the_pictures_whose_losses_were_highest() -> None:
    """What each epoch saw, and the losses that chose it, recomputed at each step."""
    state = make_state(Plain, optimizer="sgd(momentum=0.0)", hardest=True)
    plan = make_plan(epochs=4, hardest=hardest("0.4@2"))
    assert state.losses is not None
    last = np.full(22, np.inf)
    seen: list[set[Any]] = []
    expected: list[set[Any] | None] = []
    batches = source()

    class Watched:
        def __len__(self) -> int:
            return len(batches)

        def epoch(self, epoch: int, *, start: int = 0, only: Any = None) -> Iterator[Any]:
            seen.append(set())
            expected.append(set(np.argsort(-last, kind="stable")[:9]) if only is not None else None)
            for each in batches.epoch(epoch, start=start, only=only):
                seen[-1] |= set(each.indices)
                with torch.no_grad():
                    logits = state.module(SPEC.normalize(each.images))
                loss = nn.functional.cross_entropy(logits, each.labels, reduction="none")
                fresh = last.copy()
                fresh[each.indices] = loss
                yield each
                last[:] = fresh

    run(state, plan, Watched())
    assert seen[:2] == [set(range(22))] * 2
    assert expected[:2] == [None, None]
    assert seen[2:] == expected[2:]
    assert len(seen[3]) == 9  # 0.4 of 22, rounded up
    assert seen[2] != seen[3]  # losses of what was left out stay as they were, the others fall
    assert np.abs(state.losses.known.numpy() - last).max() < 1e-5


def test_equally_hard_pictures_are_taken_in_their_order() -> None:
    losses = Losses(torch.tensor([1.0, 2.0, 1.0, torch.inf]), torch.zeros(4))
    assert losses.hardest(3).tolist() == [True, True, False, True]
    losses.finish_epoch()
    assert losses.hardest(2).tolist() == [True, True, False, False]


def test_going_back_takes_the_losses_back() -> None:
    state = make_state(Plain, hardest=True)
    plan = make_plan(hardest=hardest("0.5@1"))
    assert len(run(state, plan, BrokenAtFirst(state, 1))) == 3
    assert state.rolled_back
    assert state.losses is not None
    assert bool(torch.isfinite(state.losses.known).all())


def test_the_network_sees_the_sizes_of_the_plan() -> None:
    state, seen = make_state(), []
    state.module.register_forward_pre_hook(
        lambda module, given: seen.append((module.training, given[0].shape[-1]))
    )
    size_at = schedules.size_at((Stage(0.4, 5), Stage(0.7, 6)), full=8, total_steps=12)
    run(state, make_plan(size_at=size_at))
    assert [size for training, size in seen if training] == [5] * 5 + [6] * 4 + [8] * 3
    assert {size for training, size in seen if not training} == {8}


def test_shrinking_is_pillows_bilinear_without_its_rounding() -> None:
    from PIL import Image

    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32)))
    small = shrunk(images.float(), 24)
    for ours, picture_ in zip(small, images.to(torch.uint8), strict=True):
        whole = Image.fromarray(picture_.permute(1, 2, 0).numpy())
        wanted = np.asarray(whole.resize((24, 24), Image.Resampling.BILINEAR))
        assert np.abs(ours.permute(1, 2, 0).numpy() - wanted).max() < 1.01
    assert shrunk(small, 24) is small


def test_frozen_parts_stand_still_from_their_epoch_on() -> None:
    state = make_state()
    plan = make_plan(freeze_after=(FreezeAfter("blocks.0", 1), FreezeAfter("blocks.1", 2)))
    kept: list[dict[str, torch.Tensor]] = []
    for _ in fit(state, source(), plan, validate=validate):
        kept.append({n: v.clone() for n, v in state.module.state_dict().items()})
    one, two, three = kept

    def moved(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], part_: str) -> bool:
        return any(not torch.equal(a[n], b[n]) for n in a if n.startswith(part_))

    assert not moved(one, two, "blocks.0")
    assert not moved(one, three, "blocks.0")
    assert moved(one, two, "blocks.1")
    assert not moved(two, three, "blocks.1")
    assert moved(two, three, "blocks.2")


def test_pausing_changes_nothing() -> None:
    one, other = make_state(ema=0.9), make_state(ema=0.9)
    list(fit(one, source(), make_plan(), validate=validate, pause=lambda step: True))
    assert len(run(other, make_plan())) == 3
    assert same(stored(one), stored(other))


def test_pause_is_asked_with_the_step() -> None:
    asked: list[int] = []
    marks = fit(
        make_state(),
        source(),
        make_plan(epochs=2),
        validate=validate,
        pause=lambda step: asked.append(step) or step % 3 == 0,
    )
    assert [m.step for m in marks if isinstance(m, StepMark)] == [3, 6]
    assert asked == list(range(1, 9))


def test_the_same_seed_gives_the_same_run_and_another_one_does_not() -> None:
    states = [make_state(), make_state(), make_state()]
    for state, seed in zip(states, (5, 5, 6), strict=True):
        run(state, make_plan(seed=seed), source(seed=seed))
    one, two, three = map(stored, states)
    assert same(one, two)
    assert not same(one["module"], three["module"])


def test_dropout_follows_the_step_not_what_was_drawn_before() -> None:
    torch.manual_seed(99)
    one = make_state()
    torch.rand(1000)
    run(one, make_plan())
    other = make_state()
    run(other, make_plan(), validate=lambda m: (torch.rand(7), validate(m))[1])
    assert same(stored(one), stored(other))


def test_global_generators_of_numpy_and_python_are_not_used() -> None:
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    before = np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    plan = make_plan(mix=augment.build_mix("mixup"))
    run(make_state(), plan, source("pad_crop(2)|flip_lr"))
    assert np.array_equal(np.random.get_state()[1], before[0])  # noqa: NPY002
    assert random.getstate() == before[1]


def test_leaving_the_loop_leaves_no_thread() -> None:
    steps = fit(make_state(), source(), make_plan(), validate=validate, pause=lambda step: True)
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("batches")]


# --- arithmetic of a step -----------------------------------------------------------------------


def batch() -> Any:
    return next(iter(source(batch_size=22).in_order()))


def gradients(state: TrainState, plan: Plan) -> list[torch.Tensor]:
    _step(state, batch(), plan)
    return [p.grad.clone() for p in state.module.parameters() if p.grad is not None]


def test_the_gradient_is_that_of_the_mean_loss() -> None:
    state = make_state(Plain)
    module = make_state(Plain).module
    images, labels = batch().images, batch().labels
    nn.functional.cross_entropy(module(SPEC.normalize(images)), labels).backward()
    wanted = [p.grad for p in module.parameters()]
    for got, want in zip(gradients(state, make_plan()), wanted, strict=True):
        assert torch.allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("accumulate", [2, 3, 4, 22])
@pytest.mark.parametrize("mix", ["none", "mixup(0.5)"])
def test_micro_batches_give_the_same_gradient(accumulate: int, mix: str) -> None:
    plan = make_plan(mix=augment.build_mix(mix), smoothing=0.1, weights=torch.tensor([0.5, 1.5]))
    states = make_state(Plain), make_state(Plain)
    one = gradients(states[0], plan)
    many = gradients(states[1], dataclasses.replace(plan, accumulate=accumulate))
    for a, b in zip(one, many, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    assert float(states[0].tally.loss) == pytest.approx(float(states[1].tally.loss), rel=1e-6)
    assert float(states[0].tally.correct) == float(states[1].tally.correct)


def test_clipping_limits_the_gradient_and_only_then() -> None:
    free = gradients(make_state(Plain), make_plan())
    norm = float(torch.cat([g.flatten() for g in free]).norm())
    for limit in (norm / 3, norm * 3):
        clipped = gradients(make_state(Plain), make_plan(clip_norm=limit))
        got = float(torch.cat([g.flatten() for g in clipped]).norm())
        assert got == pytest.approx(min(limit, norm), rel=1e-4)


def test_one_step_is_the_optimizers() -> None:
    state, module = make_state(Plain), make_state(Plain).module
    _step(state, batch(), make_plan(lr=0.2, schedule=lambda step: 0.5))
    assert state.control.lr == pytest.approx(0.1)
    nn.functional.cross_entropy(module(SPEC.normalize(batch().images)), batch().labels).backward()
    with torch.no_grad():
        for name, p in module.named_parameters():
            factor = 1.0 if name.startswith("head") else 0.5
            decay = 0.01 if p.ndim > 1 else 0.0
            assert p.grad is not None
            p.sub_(0.1 * factor * (p.grad + decay * p))
    for a, b in zip(state.module.parameters(), module.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_training_figures_count_every_picture() -> None:
    state = make_state(Plain)
    plan = make_plan(epochs=1, lr=1e-12)
    (record,) = run(state, plan)
    logits = scorer.Scorer(state.module, spec=SPEC)(batch().images)
    labels = batch().labels
    assert record.train_loss == pytest.approx(float(loss_sum(logits, labels)) / 22, rel=1e-5)
    assert record.train_accuracy == float((logits.argmax(1) == labels).double().mean())
    assert (record.epoch, record.step) == (1, 4)
    assert record.images_per_second > 0
    assert 0 <= record.data_wait <= 1


def test_channels_last_is_kept_and_does_not_matter() -> None:
    states = [make_state(Plain), make_state(Plain)]
    for state, flag in zip(states, (True, False), strict=True):
        scores = partial(validate, channels_last=flag)
        run(state, make_plan(channels_last=flag), validate=scores)
        weight = state.module.conv.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) == flag
    for a, b in zip(*(s.module.parameters() for s in states), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_scoring_in_another_layout_does_not_stop_training() -> None:
    state = make_state(Plain, ema=0.9)
    assert len(run(state, make_plan(channels_last=False))) == 3


def test_bf16_trains_weights_in_f32() -> None:
    state = make_state()
    records = run(state, make_plan(device=Device("cpu", "bf16")))
    assert {p.dtype for p in state.module.parameters()} == {torch.float32}
    assert math.isfinite(records[-1].train_loss)
    other = make_state()
    run(other, make_plan())
    assert not same(stored(state)["module"], stored(other)["module"])


def test_it_learns() -> None:
    state = make_state()
    length = schedules.Length(60, 4)
    plan = make_plan(epochs=15, schedule=schedules.build("one_cycle", length=length))
    records = run(state, plan)
    assert records[-1].val_accuracy >= 0.95
    assert records[-1].train_loss < records[0].train_loss / 2


def test_a_batch_of_one_cannot_train_a_norm() -> None:
    module = nn.Sequential
    state = make_state(
        lambda: module(nn.Flatten(), nn.Linear(192, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    )
    with pytest.raises(ConfigError, match="batch_size of at least 2"):
        run(state, make_plan(), source(batch_size=1))


# --- averages and freezing ----------------------------------------------------------------------


def test_ema_follows_its_formula() -> None:
    state = make_state(ema=0.9)
    assert state.ema is not None
    average = {k: v.clone() for k, v in state.module.state_dict().items()}
    for step, _ in enumerate(
        fit(state, source(), make_plan(epochs=1), validate=validate, pause=lambda s: True), 1
    ):
        if step > 4:
            break
        decay = min(0.9, (1 + step) / (10 + step))
        for key, value in state.module.state_dict().items():
            if value.is_floating_point():
                average[key] = average[key] * decay + value * (1 - decay)
            else:
                average[key] = value.clone()
        for key, value in state.ema.module.state_dict().items():
            assert torch.allclose(value.double(), average[key].double(), atol=1e-6)
    assert state.scored is state.ema.module
    assert not state.ema.module.training
    assert not any(p.requires_grad for p in state.ema.module.parameters())
    assert make_state().scored is not None


def test_scores_are_those_of_the_average() -> None:
    scored: list[nn.Module] = []
    state = make_state(ema=0.99)
    run(state, make_plan(epochs=1), validate=lambda m: (scored.append(m), validate(m))[1])
    assert state.ema is not None
    assert scored == [state.ema.module]


def body(state: TrainState) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in state.module.state_dict().items() if not k.startswith("head.")}


@pytest.mark.parametrize("unfreeze", [0, 1, 2])
@pytest.mark.parametrize("optimizer", ["sgd(momentum=0.9)", "adamw"])
def test_freezing_really_freezes(unfreeze: int, optimizer: str) -> None:
    state = make_state(optimizer=optimizer, ema=0.5)
    start, head = body(state), state.module.head.weight.detach().clone()
    plan = make_plan(freeze=True, unfreeze_at_epoch=unfreeze)
    for record in fit(state, source(), plan, validate=validate):
        assert isinstance(record, EpochRecord)
        moved = [k for k, v in body(state).items() if not torch.equal(v, start[k])]
        if unfreeze == 0 or record.epoch <= unfreeze:
            assert moved == []
        else:
            assert "blocks.0.0.weight" in moved
            assert "blocks.0.1.running_mean" in moved
    assert not torch.equal(state.module.head.weight, head)


# --- what is not a number -----------------------------------------------------------------------


class Broken:
    """A source whose pictures stop being numbers at a step."""

    def __init__(self, at: int) -> None:
        self.at = at

    def __len__(self) -> int:
        return 4

    def epoch(self, epoch: int, *, start: int = 0, only: Any = None) -> Iterator[Any]:
        for i, b in enumerate(source().epoch(epoch, start=start, only=only), start):
            images = b.images.float()
            if i == self.at:
                images[0, 0, 0, 0] = math.nan
            yield dataclasses.replace(b, images=images)


def weights(state: TrainState) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in state.module.named_parameters()}


def until_diverged(state: TrainState, given: Any, plan: Plan) -> tuple[dict[str, Any], str]:
    """Train until it is given up; returns the last good weights, and what was said."""
    before = weights(state)
    with pytest.raises(DivergedError) as caught:
        for _ in fit(state, given, plan, validate=validate, pause=lambda step: True):
            before = weights(state)
    assert caught.value.exit_code == 5
    assert state.rolled_back
    return before, str(caught.value)


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("at", [0, 2])
def test_pictures_that_are_not_numbers_never_reach_the_weights(at: int, clip: float) -> None:
    state = make_state(Plain, ema=0.9)
    before, message = until_diverged(state, Broken(at), make_plan(clip_norm=clip))
    assert f"loss is not a finite number at step {at + 1} (epoch 1" in message
    assert "--lr" in message
    assert same(before, weights(state))
    assert state.step == at
    assert state.ema is not None
    assert all(bool(torch.isfinite(v).all()) for v in state.ema.module.state_dict().values())


class NanGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad * math.nan


class BadGradient(Plain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(NanGradient.apply(torch.tanh(self.conv(x)).flatten(1)))


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_gradients_that_are_not_numbers_never_reach_the_weights(clip: float) -> None:
    state = make_state(BadGradient)
    before, message = until_diverged(state, source(), make_plan(clip_norm=clip))
    assert "gradient is not a finite number at step 1" in message
    assert same(before, weights(state))


def test_a_rate_of_a_billion_diverges() -> None:
    state = make_state(Plain)
    plan = make_plan(epochs=50, lr=1e9, schedule=lambda step: 1.0)
    _, message = until_diverged(state, source(), plan)
    assert "learning rate 5e+08" in message
    assert "learning rate 1e+09" in state.incidents[0]
    assert all(math.isfinite(r.train_loss) for r in state.history)


class BrokenAtFirst:
    """A source that breaks at a step of the second epoch, until training went back once."""

    def __init__(self, state: TrainState, at: int) -> None:
        self.state, self.at = state, at

    def __len__(self) -> int:
        return 4

    def epoch(self, epoch: int, *, start: int = 0, only: Any = None) -> Iterator[Any]:
        breaks = epoch == 1 and not self.state.rolled_back
        return (Broken(self.at) if breaks else source()).epoch(epoch, start=start, only=only)


def roll_back_case() -> tuple[TrainState, Plan]:
    state = make_state(
        optimizer="adamw",
        ema=0.9,
        text="early_stopping(9)|reduce_on_plateau(0.5, 1)",
        monitor="val_loss",
    )
    return state, make_plan(monitor="val_loss", clip_norm=1.0, schedule=lambda step: 1.0)


@pytest.mark.parametrize("at", [0, 2])
def test_training_goes_back_to_the_epochs_beginning_with_half_the_rate(at: int) -> None:
    state, plan = roll_back_case()
    marks = []
    for event in fit(state, BrokenAtFirst(state, at), plan, validate=validate):
        marks.append((type(event), state.step, stored(state)))
    kinds = [EpochRecord, StepMark, EpochRecord, EpochRecord]
    assert [(kind, step) for kind, step, _ in marks] == list(zip(kinds, (4, 4, 8, 12), strict=True))
    began, went_back = marks[0][2], marks[1][2]
    changed = {key for key in began if not same(began[key], went_back[key])}
    assert changed == {"lr_scale", "rolled_back", "incidents"}
    assert went_back["lr_scale"] == began["lr_scale"] / 2
    (incident,) = state.incidents
    assert f"loss is not a finite number at step {5 + at} (epoch 2" in incident
    assert "back to the beginning of epoch 2, with half the learning rate" in incident
    # From there on it is a run that never knew another rate.
    other, _ = roll_back_case()
    other.load_state_dict(began)
    other.control.lr_scale /= 2
    run(other, plan)
    assert same(stored(state)["module"], stored(other)["module"])
    assert same(stored(state)["history"], stored(other)["history"])


def test_going_back_is_the_same_wherever_the_run_was_resumed() -> None:
    whole, plan = roll_back_case()
    given = BrokenAtFirst(whole, 2)
    checkpoints = [
        stored(whole) for _ in fit(whole, given, plan, validate=validate, pause=lambda step: True)
    ]
    final = stored(whole)
    assert final["rolled_back"]
    for checkpoint in checkpoints:
        again, _ = roll_back_case()
        again.load_state_dict(checkpoint)
        run(again, plan, BrokenAtFirst(again, 2))
        assert same(final, stored(again))


def test_a_checkpoint_between_epochs_does_not_hold_the_epochs_beginning_twice() -> None:
    state = make_state()
    for event in fit(state, source(), make_plan(), validate=validate, pause=lambda step: True):
        held_twice = stored(state)["began"] is not None
        assert held_twice == isinstance(event, StepMark)


@pytest.mark.parametrize("optimizer", ["sgd(momentum=0.9)", "adam", "adamw", "keras_adam"])
def test_a_device_that_is_not_waited_for_leaves_updates_out_by_itself(
    optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processor stands in for a GPU: it is not asked either."""
    monkeypatch.setattr(loop, "_waits", lambda plan: False)
    state, plan = make_state(Plain, optimizer=optimizer), make_plan()
    state.step = 1  # LOOK asks at 0, 50, ...
    kept = []
    for given in Broken(2).epoch(0):
        _step(state, given, plan)
        kept.append(weights(state))
    assert not same(kept[0], kept[1])
    assert same(kept[1], kept[2])
    assert same(kept[1], kept[3])
    with pytest.raises(DivergedError, match="loss is not a finite number by step 6"):
        check_finite(state, plan)


@pytest.mark.parametrize("optimizer", ["sgd", "muon", "keras_sgd"])
@pytest.mark.parametrize("pausing", [True, False])
def test_a_device_that_is_not_waited_for_is_asked_before_anything_is_kept(
    optimizer: str, pausing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "_waits", lambda plan: False)
    state = make_state(optimizer=optimizer)
    events = fit(
        state,
        BrokenAtFirst(state, 2),
        make_plan(),
        validate=validate,
        pause=lambda step: pausing and step % 4 == 0,
    )
    for _ in events:
        assert all(bool(torch.isfinite(v).all()) for v in state.module.state_dict().values())
    assert state.rolled_back
    assert (state.epoch, state.step) == (3, 12)


def test_a_device_that_is_not_waited_for_is_asked_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "_waits", lambda plan: False)
    monkeypatch.setattr(loop, "LOOK", 3)
    state = make_state()
    with pytest.raises(DivergedError, match="by step 4"):
        for given in Broken(1).epoch(0):
            _step(state, given, make_plan())


# --- out of memory ------------------------------------------------------------------------------


def hungry(state: TrainState, limit: int, error: type[Exception] | None = None) -> TrainState:
    """Let the network run out of memory on more than so many pictures."""
    kind = error or torch.OutOfMemoryError

    def refuse(module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        if module.training and len(given[0]) > limit:
            raise kind("CUDA out of memory. Tried to allocate 7 GiB\nmore lines")

    state.module.register_forward_pre_hook(refuse)
    return state


@pytest.mark.parametrize(
    ("limit", "same_as", "error"),
    [
        (6, 1, torch.OutOfMemoryError),
        (5, 2, torch.OutOfMemoryError),
        (3, 2, MemoryError),
        (2, 4, RuntimeError),
        (1, 8, torch.OutOfMemoryError),
    ],
)
def test_too_little_memory_halves_the_micro_batches(
    limit: int, same_as: int, error: type[Exception]
) -> None:
    """To the bit the run that had them from the beginning; the step's pictures stay."""
    state = hungry(make_state(optimizer="adamw", ema=0.9), limit, error)
    records = run(state, make_plan(mix=augment.build_mix("mixup(0.4)")))
    other = make_state(optimizer="adamw", ema=0.9)
    run(other, make_plan(mix=augment.build_mix("mixup(0.4)"), accumulate=same_as))
    assert 2**state.halvings == same_as
    assert len(state.incidents) == state.halvings
    for record, wanted in zip(records, other.history, strict=True):
        assert figures_of(record) == figures_of(wanted)
    mine, theirs = stored(state), stored(other)
    for key in mine.keys() - {"halvings", "incidents", "history"}:
        assert same(mine[key], theirs[key]), key
    if same_as == 2:
        assert state.incidents[0] == (
            "out of memory at step 1 (CUDA out of memory. Tried to allocate 7 GiB): micro-batches "
            "of 3 pictures from now on, in place of 6; a step still takes the gradient of all its 6"
        )


def test_a_step_that_ran_out_of_memory_leaves_nothing_behind() -> None:
    """Not even the statistics of the micro-batches that fitted."""
    state, other = make_state(ema=0.5), make_state(ema=0.5)
    calls = []

    def refuse(module: nn.Module, given: Any) -> None:
        calls.append(len(given[0]))
        if len(calls) == 2:
            raise torch.OutOfMemoryError("out of memory")

    state.module.register_forward_pre_hook(refuse)
    _step(state, batch(), make_plan(accumulate=2))
    _step(other, batch(), make_plan(accumulate=4))
    assert calls == [11, 11, 6, 6, 6, 4]
    mine, theirs = stored(state), stored(other)
    for key in ("module", "ema", "optimizer", "tally"):
        assert same(mine[key], theirs[key]), key


def test_smaller_micro_batches_are_kept_when_a_run_is_resumed() -> None:
    plan = make_plan()
    whole = hungry(make_state(), 2)
    checkpoints = [
        stored(whole) for _ in fit(whole, source(), plan, validate=validate, pause=lambda _: True)
    ]
    for checkpoint in checkpoints[::4]:
        again = make_state()  # with all the memory in the world
        again.load_state_dict(checkpoint)
        run(again, plan)
        assert same(stored(whole), stored(again))


def test_no_memory_for_one_picture_ends_training_with_advice() -> None:
    state = hungry(make_state(Plain), 0)
    before = weights(state)
    with pytest.raises(ResourceError, match="smaller --size or --model") as caught:
        run(state, make_plan())
    assert caught.value.exit_code == 6
    assert "out of memory at step 1" in str(caught.value)
    assert same(before, weights(state))
    assert state.halvings == 3  # 6 pictures: 3, 2, 1


def test_a_norm_that_needs_two_pictures_is_not_what_the_user_is_told_of() -> None:
    sequence = nn.Sequential
    state = hungry(
        make_state(
            lambda: sequence(nn.Flatten(), nn.Linear(192, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        ),
        1,
    )
    with pytest.raises(ResourceError, match="no memory for a step"):
        run(state, make_plan())


def test_no_memory_for_the_optimizer_is_another_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    state = make_state(Plain)

    def refuse() -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(state.optimizer, "step", refuse)
    with pytest.raises(ResourceError, match="what the optimizer keeps"):
        run(state, make_plan())


def test_other_errors_pass() -> None:
    state = hungry(make_state(Plain), 0, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        run(state, make_plan())


def test_scoring_takes_fewer_pictures_at_a_time() -> None:
    module, images = make_state(Plain).module, batch().images
    wanted = scorer.Scorer(module, spec=SPEC, prepare=False)(images)
    sizes = []

    def refuse(module: nn.Module, given: Any) -> None:
        sizes.append(len(given[0]))
        if sizes[-1] > 8:
            raise torch.OutOfMemoryError("out of memory")

    module.register_forward_pre_hook(refuse)
    score = scorer.Scorer(module, spec=SPEC, prepare=False)
    assert torch.allclose(score(images), wanted, atol=1e-6)
    assert sizes == [22, 11, 6, 5, 6, 5]
    score(images)
    assert sizes[6:] == [6, 6, 6, 4]
    assert [note.partition(", ")[2] for note in score.notes] == [
        "11 pictures are scored at a time",
        "6 pictures are scored at a time",
    ]


def test_no_memory_to_score_one_picture() -> None:
    module = make_state(Plain).module

    def refuse(module: nn.Module, given: Any) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    module.register_forward_pre_hook(refuse)
    with pytest.raises(ResourceError, match="to score a single picture"):
        scorer.Scorer(module, spec=SPEC, prepare=False)(batch().images)


# --- the best epoch -----------------------------------------------------------------------------


def scripted(rows: list[tuple[float, float]]) -> Callable[[nn.Module], dict[str, float]]:
    left = iter(rows)

    def answer(module: nn.Module) -> dict[str, float]:
        loss, accuracy = next(left)
        return {"val_loss": loss, "val_accuracy": accuracy, "val_macro_f1": accuracy}

    return answer


NAN = math.nan


@pytest.mark.parametrize(
    ("monitor", "rows", "best"),
    [
        ("val_accuracy", [(1, 0.5), (1, 0.7), (1, 0.6)], [True, True, False]),
        ("val_accuracy", [(1.0, 0.5), (0.9, 0.5), (0.95, 0.5)], [True, True, False]),
        ("val_accuracy", [(1, NAN), (1, 0.1), (1, NAN)], [False, True, False]),
        ("val_loss", [(NAN, 0.1), (3.0, 0.1), (NAN, 0.9)], [False, True, False]),
        ("val_loss", [(2.0, 0.1), (2.0, 0.9), (1.0, 0.0)], [True, False, True]),
        ("val_accuracy", [(NAN, NAN)] * 3, [False, False, False]),
    ],
)
def test_the_best_epoch(monitor: str, rows: list[tuple[float, float]], best: list[bool]) -> None:
    state = make_state()
    records = run(state, make_plan(monitor=monitor), validate=scripted(rows))
    assert [r.best for r in records] == best
    assert state.best_epoch == max([i + 1 for i, b in enumerate(best) if b], default=0)
    assert (state.best_value is None) == (not any(best))


def test_early_stopping_ends_the_run_with_its_reason() -> None:
    state = make_state(text="early_stopping(2)")
    rows = [(1.0, 0.5), (1.0, 0.4), (1.0, 0.4), (1.0, 0.4)]
    records = run(state, make_plan(epochs=4), validate=scripted(rows))
    assert len(records) == 3
    assert state.control.stop == "val_accuracy stays at 0.5000 for 2 epochs"
    assert state.history == records


def test_a_plateau_lowers_the_rate_of_the_next_epochs() -> None:
    state = make_state(text="reduce_on_plateau(0.5, 1)")
    plan = make_plan(schedule=lambda step: 1.0)
    records = run(state, plan, validate=scripted([(1.0, 0.5)] * 3))
    assert [r.lr for r in records] == pytest.approx([0.05, 0.05, 0.025])


def test_records_have_every_monitored_figure() -> None:
    (record,) = run(make_state(), make_plan(epochs=1))
    assert all(math.isfinite(getattr(record, name)) for name in callbacks.MONITORS)


# --- inference and the learning-rate finder -----------------------------------------------------


def test_logits_do_not_depend_on_the_batch_size() -> None:
    state = make_state()
    run(state, make_plan(epochs=1))
    images = batch().images
    state.module.to(memory_format=torch.contiguous_format)
    whole = scorer.Scorer(state.module, spec=SPEC).over([images])
    assert not any(p.is_inference() for p in state.module.state_dict().values())
    told: list[int] = []
    plain = scorer.Scorer(state.module, spec=SPEC, channels_last=False)
    parts = plain.over(images.split(5), progress=told.append)
    assert whole.shape == (22, 2)
    assert whole.dtype == torch.float32
    assert torch.allclose(whole, parts, atol=1e-5)
    assert told == [5, 10, 15, 20, 22]
    assert not state.module.training
    assert plain.over([]).shape[0] == 0


def test_the_finder_leaves_the_state_and_suggests_a_sane_rate() -> None:
    state = make_state(ema=0.9, optimizer="sgd(momentum=0.9)")
    run(state, make_plan(epochs=1))
    before = stored(state)
    curve = find_lr(state, source(), make_plan(), steps=60)
    assert same(before, stored(state))
    assert state.ema is not None
    assert 1e-4 < curve.suggestion < 3
    assert curve.suggestion in curve.lrs
    assert len(curve.lrs) == len(curve.losses) >= 8
    assert curve.lrs == sorted(curve.lrs)
    assert curve.lrs[0] == pytest.approx(1e-6)
    assert all(map(math.isfinite, curve.losses))
    assert not [t for t in threading.enumerate() if t.name.startswith("batches")]


def test_the_finder_says_when_nothing_can_be_learned() -> None:
    with pytest.raises(DivergedError, match="after 2 steps"):
        find_lr(make_state(Plain), Broken(2), make_plan())


@pytest.mark.parametrize("accumulate", [1, 3])
def test_l2_is_in_the_loss_of_every_kernel_but_the_heads(accumulate: int) -> None:
    """Against autograd on the loss with the penalty written out."""
    state = make_state(Plain, optimizer="keras_sgd", seed=3)
    for group in state.optimizer.param_groups:
        group["weight_decay"] = 0.0
    other = copy.deepcopy(state.module)
    plan = make_plan(l2=0.3, lr=0.2, schedule=lambda step: 1.0, accumulate=accumulate)
    batch = next(source().epoch(0))
    _step(state, batch, plan)
    images = SPEC.normalize(batch.images).contiguous(memory_format=torch.channels_last)
    other.to(memory_format=torch.channels_last)
    penalty = 0.3 * other.conv.weight.square().sum()
    loss = loss_sum(other(images), batch.labels) / len(batch.labels) + penalty
    loss.backward()
    assert float(state.tally.loss) / len(batch.labels) == pytest.approx(loss.item(), rel=1e-5)
    factors = {"head": 0.2, "conv": 0.2 * 0.5}
    for (name, new), old in zip(state.module.named_parameters(), other.parameters(), strict=True):
        expected = old.detach() - factors[name.partition(".")[0]] * old.grad
        assert torch.allclose(new, expected, atol=1e-6), name


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_l2_is_in_the_validation_loss_too(ema: float) -> None:
    plain = run(make_state(Plain, ema=ema), make_plan(epochs=1, lr=1e-9))
    with_l2 = run(state := make_state(Plain, ema=ema), make_plan(epochs=1, lr=1e-9, l2=0.1))
    penalty = 0.1 * float(state.module.conv.weight.detach().square().sum())
    assert with_l2[0].val_loss == pytest.approx(plain[0].val_loss + penalty, rel=1e-4)
    assert with_l2[0].train_loss == pytest.approx(plain[0].train_loss + penalty, rel=1e-4)


def test_equal_epochs_are_decided_by_loss_or_by_time() -> None:
    losses = iter([0.5, 0.4, 0.4, 0.6])

    def flat(module: nn.Module) -> dict[str, float]:
        return {"val_loss": next(losses), "val_accuracy": 0.5, "val_macro_f1": 0.5}

    records = run(state := make_state(), make_plan(epochs=2), validate=flat)
    assert ([r.best for r in records], state.best_epoch) == ([True, True], 2)
    plan = make_plan(epochs=2, ties_by_loss=False)
    records = run(state := make_state(), plan, validate=flat)
    assert ([r.best for r in records], state.best_epoch) == ([True, False], 1)
