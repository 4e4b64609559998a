"""Early stopping and plateaus: against plain reimplementations, and through a checkpoint."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fieldmark.errors import ConfigError
from fieldmark.fit.callbacks import (
    CALLBACKS,
    MONITORS,
    Control,
    better,
    build,
    check_monitor,
    is_best,
)

VALUES = st.lists(
    st.one_of(st.sampled_from([0.1, 0.2, 0.3, 0.3001, 0.5, math.nan]), st.floats(0, 1)),
    min_size=1,
    max_size=25,
)
NAMES = st.sampled_from(["val_loss", "val_accuracy"])


@pytest.mark.parametrize("name", MONITORS)
def test_nan_is_never_better(name: str) -> None:
    for than in (None, 0.5, math.nan, math.inf, -math.inf):
        assert not better(name, math.nan, than)
    assert better(name, 0.5, None)
    assert better(name, 0.5, math.nan)


def test_direction_follows_the_name() -> None:
    assert better("val_loss", 0.1, 0.2)
    assert not better("val_loss", 0.2, 0.1)
    assert better("val_accuracy", 0.2, 0.1)
    assert not better("val_accuracy", 0.1, 0.2)
    for name in MONITORS:
        assert not better(name, 0.3, 0.3)
    assert not better("val_accuracy", 0.35, 0.3, by=0.1)
    assert better("val_loss", 0.15, 0.3, by=0.1)


def test_comparisons_are_in_single_precision() -> None:
    """A step of exactly ``by`` is none, on whichever side double precision puts it."""
    assert 0.7 + 0.1 < 0.8 and 0.8 - 0.1 == 0.7000000000000001
    assert not better("val_loss", 0.7, 0.8, by=0.1)
    assert not better("val_loss", 0.2, 0.3, by=0.1)
    assert not better("val_accuracy", 0.3, 0.2, by=0.1)
    assert not better("val_loss", 0.5 - 1e-12, 0.5)
    assert better("val_loss", 0.5 - 1e-7, 0.5)
    assert better("val_accuracy", 1 - 1 / 9_000_000, 1 - 2 / 9_000_000)
    assert not better("val_loss", 1e39, math.inf)  # both infinite, and no warning


def test_ties_go_to_the_lower_loss_or_to_the_earlier_epoch() -> None:
    def best(value: float, loss: float, ties_by_loss: bool) -> bool:
        return is_best(
            "val_accuracy", value, 0.8, val_loss=loss, best_loss=0.5, ties_by_loss=ties_by_loss
        )

    for ties_by_loss in (False, True):
        assert best(0.9, 0.7, ties_by_loss)
        assert not best(0.7, 0.3, ties_by_loss)
        assert not best(0.8, 0.5, ties_by_loss)
        assert not best(0.8, 0.6, ties_by_loss)
        assert not best(math.nan, 0.1, ties_by_loss)
        assert best(0.8, 0.4, ties_by_loss) == ties_by_loss
        assert best(0.8 + 1e-12, 0.4, ties_by_loss) == ties_by_loss
        assert not best(0.8, math.nan, ties_by_loss)


@pytest.mark.parametrize("ties_by_loss", [False, True])
def test_the_first_number_is_the_best_so_far(ties_by_loss: bool) -> None:
    def best(value: float) -> bool:
        return is_best(
            "val_loss", value, None, val_loss=value, best_loss=None, ties_by_loss=ties_by_loss
        )

    assert best(7.0) and best(math.inf)
    assert not best(math.nan)


def run(text: str, name: str, values: list[float], lr: float = 1.0) -> list[tuple[str, float]]:
    """What callbacks decide after each epoch."""
    return [step[0] for step in _walk(text, name, values, lr, restart=-1)]


def _walk(
    text: str, name: str, values: list[float], lr: float, *, restart: int
) -> list[tuple[tuple[str, float], int]]:
    callbacks, control = build(text, monitor=name), Control()
    decisions = []
    for epoch, value in enumerate(values, 1):
        control.lr = lr * control.lr_scale
        for callback in callbacks:
            callback.after_epoch(epoch, {name: value}, control)
        decisions.append(((control.stop, control.lr_scale), len(control.notes)))
        if epoch == restart:
            buffer = io.BytesIO()
            torch.save([c.state_dict() for c in callbacks], buffer)
            buffer.seek(0)
            callbacks = build(text, monitor=name)
            for callback, state in zip(
                callbacks, torch.load(buffer, weights_only=True), strict=True
            ):
                callback.load_state_dict(state)
    return decisions


TEXTS = [
    "early_stopping(patience=2)",
    "early_stopping(patience=3, min_delta=0.05)",
    "early_stopping(patience=2, baseline=0.2, start_from_epoch=3)",
    "reduce_on_plateau(factor=0.5, patience=1)",
    "reduce_on_plateau(factor=0.5, patience=2, cooldown=2, min_lr=0.2)",
    "early_stopping(4)|reduce_on_plateau(0.3, 2)",
]


@given(st.sampled_from(TEXTS), NAMES, VALUES, st.integers(1, 25))
def test_a_checkpoint_at_any_epoch_changes_no_decision(
    text: str, name: str, values: list[float], restart: int
) -> None:
    straight = _walk(text, name, values, 1.0, restart=-1)
    assert _walk(text, name, values, 1.0, restart=restart) == straight


@pytest.mark.parametrize("text", [*TEXTS, "reduce_on_plateau(0.5, 1, cooldown=3)"])
def test_a_checkpoint_while_waiting_or_cooling(text: str) -> None:
    values = [0.5] * 12
    straight = _walk(text, "val_loss", values, 1.0, restart=-1)
    assert straight[-1][0] != ("", 1.0)
    for restart in range(1, 12):
        assert _walk(text, "val_loss", values, 1.0, restart=restart) == straight, restart


@given(NAMES, VALUES, st.integers(1, 4), st.sampled_from([0.0, 0.05]))
def test_early_stopping_by_its_definition(
    name: str, values: list[float], patience: int, delta: float
) -> None:
    sign = -1 if name.endswith("loss") else 1
    best, best_at, stops = -math.inf, 0, []
    for epoch, value in enumerate(values, 1):
        if np.float32(sign * value - delta) > np.float32(best):
            best, best_at = sign * value, epoch
        stops.append(epoch - best_at >= patience and epoch > 1)
    got = run(f"early_stopping(patience={patience}, min_delta={delta})", name, values)
    first = stops.index(True) if True in stops else len(stops)
    assert [bool(stop) for stop, _ in got[: first + 1]] == stops[: first + 1]


class KerasPlateau:
    """Keras's ReduceLROnPlateau, as its source has it."""

    def __init__(
        self, name: str, factor: float, patience: int, cooldown: int, floor: float
    ) -> None:
        self.loss = name.endswith("loss")
        self.factor, self.patience, self.cooldown, self.floor = factor, patience, cooldown, floor
        self.best = math.inf if self.loss else -math.inf
        self.wait = self.left = 0
        self.lr = 1.0

    def after(self, value: float) -> float:
        if self.left > 0:
            self.left -= 1
            self.wait = 0
        sign = -1 if self.loss else 1
        improved = np.float32(sign * value - 1e-4) > np.float32(sign * self.best)
        if improved:
            self.best, self.wait = value, 0
        elif not self.left > 0:
            self.wait += 1
            if self.wait >= self.patience and self.lr > self.floor:
                self.lr = max(self.lr * self.factor, self.floor)
                self.left, self.wait = self.cooldown, 0
        return self.lr


@given(NAMES, VALUES, st.integers(1, 3), st.integers(0, 3), st.sampled_from([0.0, 0.2]))
def test_plateau_is_kerass(
    name: str, values: list[float], patience: int, cooldown: int, floor: float
) -> None:
    theirs = KerasPlateau(name, 0.5, patience, cooldown, floor)
    text = f"reduce_on_plateau(0.5, {patience}, 0.0001, {cooldown}, {floor})"
    got = [scale for _, scale in run(text, name, values)]
    assert got == pytest.approx([theirs.after(v) for v in values])


def test_messages_and_reasons() -> None:
    control = Control(lr=0.2)
    stop, plateau = build("early_stopping(1)|reduce_on_plateau(0.5, 1)", monitor="val_loss")
    for epoch, value in enumerate((0.5, 0.6), 1):
        for callback in (stop, plateau):
            callback.after_epoch(epoch, {"val_loss": value}, control)
    assert control.stop == "val_loss stays at 0.5000 for 1 epochs"
    assert control.notes == ["learning rate reduced to 0.1 after epoch 2"]
    (stop,) = build("early_stopping(1)", monitor="val_loss")
    control = Control()
    stop.after_epoch(1, {"val_loss": math.nan}, control)
    assert [control.stop] == [""]  # one epoch is no trend
    stop.after_epoch(2, {"val_loss": math.nan}, control)
    assert control.stop == "val_loss never a number for 2 epochs"


def test_the_baseline_decides_when_the_counter_starts_anew() -> None:
    text = "early_stopping(2, baseline=0.5)"
    stops = [stop for stop, _ in run(text, "val_loss", [0.9, 0.8, 0.7, 0.6, 0.65])]
    assert stops[:4] == [""] * 4  # improving epochs do not stop
    assert stops[4] == (
        "val_loss does not pass its baseline 0.5 in 5 epochs (best: 0.6000 in epoch 4)"
    )
    passed = [stop for stop, _ in run(text, "val_loss", [0.9, 0.8, 0.7, 0.4, 0.45, 0.42])]
    assert passed[4] == "" and passed[5] == "val_loss stays at 0.4000 for 2 epochs"


def test_first_epochs_may_be_left_out() -> None:
    values = [0.1, 0.2, 0.3, 0.9, 0.95, 0.97]  # the best three are not looked at
    stops = [s for s, _ in run("early_stopping(2, start_from_epoch=3)", "val_loss", values)]
    assert stops[:5] == [""] * 5
    assert stops[5] == "val_loss stays at 0.9000 for 2 epochs"


@pytest.mark.parametrize("text", ["early_stopping({})", "reduce_on_plateau(0.5, {})"])
def test_a_patience_of_0_is_one_of_1(text: str) -> None:
    values = [0.5, 0.4, 0.4, 0.3, 0.6, 0.6]
    zero, one = (run(text.format(n), "val_loss", values) for n in (0, 1))
    assert zero == one != [("", 1.0)] * 6


def test_a_rate_at_its_floor_is_not_reduced_again() -> None:
    """However the product of scales is rounded: a reduction would start the cool-down anew."""
    (plateau,) = build("reduce_on_plateau(0.1, 1, cooldown=1, min_lr=0.003)", monitor="val_loss")
    control = Control()
    for epoch in range(1, 12):
        control.lr = 0.3 * control.lr_scale
        plateau.after_epoch(epoch, {"val_loss": 1.0}, control)
    assert control.lr == 0.0030000000000000005
    assert control.notes == [
        "learning rate reduced to 0.03 after epoch 2",
        "learning rate reduced to 0.003 after epoch 3",
    ]


def test_each_callback_may_watch_its_own_metric() -> None:
    (stop,) = build("early_stopping(1, monitor='val_loss')", monitor="val_accuracy")
    control = Control()
    stop.after_epoch(1, {"val_loss": 1.0, "val_accuracy": 0.1}, control)
    stop.after_epoch(2, {"val_loss": 0.9, "val_accuracy": 0.1}, control)
    assert not control.stop
    stop.after_epoch(3, {"val_loss": 0.9, "val_accuracy": 0.9}, control)
    assert control.stop


@pytest.mark.parametrize(
    "text",
    [
        "early_stoping",
        "early_stopping(patience=-1)",
        "early_stopping(patience=1.5)",
        "early_stopping(min_delta=-1)",
        "early_stopping(monitor='val_acc')",
        "early_stopping(baseline='low')",
        "early_stopping(baseline=True)",
        "early_stopping(start_from_epoch=-1)",
        "early_stopping(start_from_epoch=1.5)",
        "reduce_on_plateau(factor=1.0)",
        "reduce_on_plateau(factor=0)",
        "reduce_on_plateau(patience=-1)",
        "reduce_on_plateau(min_delta=-1e-4)",
        "reduce_on_plateau(cooldown=-1)",
        "reduce_on_plateau(min_lr=-0.1)",
        "early_stopping||reduce_on_plateau",
    ],
)
def test_nonsense(text: str) -> None:
    with pytest.raises(ConfigError):
        build(text, monitor="val_loss")


def test_metrics_that_do_not_exist() -> None:
    with pytest.raises(ConfigError, match="did you mean 'val_accuracy'"):
        check_monitor("val_acc")
    with pytest.raises(ConfigError, match="no metric"):
        build("none", monitor="test_accuracy")
    assert not any("test" in name for name in MONITORS), "the test split selects nothing"
    assert build("none", monitor="val_loss") == []
    assert len(CALLBACKS) == 2
