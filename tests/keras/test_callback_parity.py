"""Early stopping, plateaus and the best epoch against Keras's own callbacks."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fieldmark.fit.callbacks import Control, build, is_best

# Submodules: without Keras, this folder itself would be found as an empty package called keras.
callbacks = pytest.importorskip("keras.callbacks")
optimizers = pytest.importorskip("keras.optimizers")

NAMES = st.sampled_from(["val_loss", "train_loss", "val_accuracy", "val_macro_f1"])
MODES = {"loss": "min", "accuracy": "max", "f1": "max"}
# Ties, steps of exactly min_delta, steps that only double precision sees, and no numbers at all.
LEVELS = [0.1, 0.2, 0.3, 0.3 + 1e-12, 0.30001, 0.3001, 0.5, 0.7, 0.8, 1.0, 1e39]
NUMBERS = st.sampled_from(LEVELS) | st.floats(0, 2) | st.floats(0, 1, width=32)
ANY = NUMBERS | st.sampled_from([math.nan, math.inf, -math.inf])
# 1e39 is infinite to Keras, and so not better than the infinity that stands for "nothing yet".
AFTER_NAN = st.lists((NUMBERS | st.just(math.nan)).filter(lambda v: v != 1e39), max_size=20)
RECORDED = {
    # Shapes of real runs: noise on a plateau, over-fitting, a spike, a run that fails.
    "plateau": [2.31, 1.8724, 1.5512, 1.5514, 1.5513, 1.5512, 1.55119, 1.5512, 1.5, 1.51, 1.52],
    "over-fitting": [0.9, 0.7, 0.6, 0.58, 0.59, 0.61, 0.64, 0.68, 0.73, 0.79, 0.86, 0.94, 1.03],
    "spike": [0.9, 0.5, 7e4, 0.6, 0.45, 0.46, 0.44, 0.47, 0.43, 0.48],
    "fails": [0.9, 0.8, math.nan, math.nan, math.inf, 0.7, math.nan, 0.75, 0.8],
    "flat": [0.25] * 12,
    "improves": [1 / n for n in range(1, 15)],
}
# The first value is a number: what is different after a NaN has tests of its own.
SEQUENCES = st.sampled_from(list(RECORDED.values())) | st.tuples(
    NUMBERS | st.sampled_from([math.inf, -math.inf]), st.lists(ANY, max_size=24)
).map(lambda drawn: [drawn[0], *drawn[1]])
DELTAS = st.sampled_from([0.0, 1e-12, 1e-4, 0.1, 0.2, 0.25])


def mode(name: str) -> str:
    return MODES[name.rpartition("_")[2]]


def control_after(text: str, name: str, values: list[float], lr: float = 1.0) -> list[Control]:
    """What our callbacks say after every epoch, up to the one that stops."""
    (callback,), control, after = build(text, monitor=name), Control(), []
    for epoch, value in enumerate(values, 1):
        control.lr = lr * control.lr_scale
        callback.after_epoch(epoch, {name: value}, control)
        after.append(Control(control.lr_scale, control.lr, control.stop))
        if control.stop:
            break
    return after


class FakeModel:
    """As much of a model as these callbacks touch: its weights are the number of the epoch."""

    def __init__(self, lr: float = 1.0) -> None:
        self.optimizer = optimizers.SGD(lr)
        self.stop_training = False
        self.epoch = self.restored = 0

    def get_weights(self) -> int:
        return self.epoch

    def set_weights(self, weights: int) -> None:
        self.restored = weights


def keras_stop(callback: Any, name: str, values: list[float], worst: bool = False) -> FakeModel:
    """The model after Keras has trained it, for as long as its callback lets it."""
    model = FakeModel()
    callback.set_model(model)
    callback.on_train_begin()
    if worst:
        callback.best = math.inf if mode(name) == "min" else -math.inf
    for model.epoch, value in enumerate(values, 1):
        callback.on_epoch_end(model.epoch - 1, {name: value})
        if model.stop_training:
            break
    callback.on_train_end()
    return model


def best_epoch(name: str, values: list[float], *, skip: int = 0) -> int:
    """The epoch that is kept, as the loop chooses it."""
    best: float | None = None
    kept = 0
    for epoch, value in enumerate(values, 1):
        if epoch > skip and is_best(
            name, value, best, val_loss=0.0, best_loss=0.0, ties_by_loss=False
        ):
            best, kept = value, epoch
    return kept


# --- early stopping ------------------------------------------------------------------------------


@settings(max_examples=300)
@given(
    NAMES,
    SEQUENCES,
    st.integers(0, 5),
    DELTAS,
    st.none() | st.sampled_from(LEVELS) | st.floats(0, 2),
    st.integers(0, 6),
)
# Improving epochs never stop, however long the baseline stays out of reach.
@example("val_loss", [0.9, 0.8, 0.7, 0.6, 0.6], 1, 0.0, 0.1, 0)
@example("val_accuracy", [0.3, 0.2, 0.2], 0, 0.1, None, 0)
@example("val_loss", [0.8, 0.7, 0.7], 1, 0.1, None, 0)
def test_early_stopping(
    name: str,
    values: list[float],
    patience: int,
    delta: float,
    baseline: float | None,
    start: int,
) -> None:
    if math.isnan((values + [0.0] * 7)[start]):
        values = [*values[:start], 0.4, *values[start:]]  # the first value that is looked at
    theirs = callbacks.EarlyStopping(
        monitor=name,
        mode=mode(name),
        min_delta=delta,
        patience=patience,
        baseline=baseline,
        start_from_epoch=start,
        restore_best_weights=True,
    )
    model = keras_stop(theirs, name, values)
    (ours,), control = (
        build(
            f"early_stopping({patience}, {delta}, baseline={baseline}, start_from_epoch={start})",
            monitor=name,
        ),
        Control(),
    )
    for epoch, value in enumerate(values, 1):
        ours.after_epoch(epoch, {name: value}, control)
        if control.stop:
            break
    assert (epoch, bool(control.stop)) == (model.epoch, model.stop_training)
    assert ours.state_dict()["best_epoch"] == model.restored
    assert ours.state_dict()["waited"] == theirs.wait
    if delta == 0:
        assert best_epoch(name, values[:epoch], skip=start) == model.restored


@given(NAMES, st.integers(1, 4), AFTER_NAN, st.data())
def test_after_a_nan_the_first_number_is_taken(
    name: str, nans: int, values: list[float], data: st.DataObject
) -> None:
    """Keras decides the same if it starts from the worst number instead of from the NaN."""
    values = [math.nan] * nans + values
    patience = data.draw(st.integers(0, 4))
    theirs = callbacks.EarlyStopping(name, patience=patience, mode=mode(name))
    model = keras_stop(theirs, name, values, worst=True)
    after = control_after(f"early_stopping({patience})", name, values)
    assert (len(after), bool(after[-1].stop)) == (model.epoch, model.stop_training)


def test_what_keras_itself_makes_of_a_first_nan() -> None:
    """The one difference, so that it is known when it goes away."""
    values = [math.nan, 0.9, 0.5, 0.3, 0.2]
    model = keras_stop(callbacks.EarlyStopping("val_loss", patience=2), "val_loss", values)
    assert (model.epoch, model.stop_training) == (3, True)
    assert not control_after("early_stopping(2)", "val_loss", values)[-1].stop


# --- plateaus ------------------------------------------------------------------------------------


def keras_rates(callback: Any, name: str, values: list[float], lr: float) -> list[float]:
    model = FakeModel(lr)
    callback.set_model(model)
    callback.on_train_begin()
    rates = []
    for epoch, value in enumerate(values):
        callback.on_epoch_end(epoch, {name: value})
        rates.append(float(model.optimizer.learning_rate))
    return rates


def our_rates(text: str, name: str, values: list[float], lr: float) -> list[float]:
    return [lr * control.lr_scale for control in control_after(text, name, values, lr)]


@settings(max_examples=300)
@given(
    NAMES,
    SEQUENCES,
    st.integers(0, 4),
    st.integers(0, 4),
    st.sampled_from([0.1, 0.31622776601683794, 0.5, 0.9]),
    st.sampled_from([0.0, 0.001, 0.05, 0.1, 0.2]),
    st.sampled_from([0.001, 0.05, 0.1, 1.0]),
    DELTAS,
)
def test_reduce_on_plateau(
    name: str,
    values: list[float],
    patience: int,
    cooldown: int,
    factor: float,
    floor: float,
    lr: float,
    delta: float,
) -> None:
    theirs = callbacks.ReduceLROnPlateau(
        monitor=name,
        mode=mode(name),
        factor=factor,
        patience=patience,
        min_delta=delta,
        cooldown=cooldown,
        min_lr=floor,
    )
    text = f"reduce_on_plateau({factor}, {patience}, {delta}, {cooldown}, {floor})"
    # Keras's rate is a float32 variable, rounded at every reduction.
    assert our_rates(text, name, values, lr) == pytest.approx(
        keras_rates(theirs, name, values, lr), rel=2e-6, abs=1e-30
    )


def test_the_recorded_metrics_do_stop_and_do_reduce() -> None:
    """As in Keras; the tests above draw these and many others."""
    stops, falls, epochs, rates = [], [], [], []
    for values in RECORDED.values():
        after = control_after("early_stopping(2)", "val_loss", values)
        stops.append(bool(after[-1].stop))
        theirs = keras_stop(callbacks.EarlyStopping("val_loss", patience=2), "val_loss", values)
        epochs.append((theirs.epoch, theirs.stop_training) == (len(after), after[-1].stop != ""))
        falls.append(our_rates("reduce_on_plateau(0.3, 2)", "val_loss", values, 1.0)[-1])
        plateau = callbacks.ReduceLROnPlateau("val_loss", factor=0.3, patience=2)
        rates.append(keras_rates(plateau, "val_loss", values, 1.0)[-1])
    assert stops == [True, True, True, True, True, False]
    assert falls == pytest.approx([0.027, 0.0081, 0.3, 0.09, 0.00243, 1])
    assert all(epochs)
    assert falls == pytest.approx(rates)


# --- the best epoch ------------------------------------------------------------------------------


def saved_epochs(name: str, values: list[float], *, worst: bool = False) -> list[int]:
    """The epochs after which Keras's ModelCheckpoint writes the model."""
    saved: list[int] = []
    epoch = 0
    model = SimpleNamespace(save=lambda path, overwrite: saved.append(epoch))
    callback = callbacks.ModelCheckpoint(
        "never-written.keras", monitor=name, mode=mode(name), save_best_only=True
    )
    if worst:
        callback.best = math.inf if mode(name) == "min" else -math.inf
    callback.set_model(model)
    callback.on_train_begin()
    for epoch, value in enumerate(values, 1):
        callback.on_epoch_begin(epoch - 1)
        callback.on_epoch_end(epoch - 1, {name: value})
    return saved


def kept_epochs(name: str, values: list[float]) -> list[int]:
    best, kept = None, []
    for epoch, value in enumerate(values, 1):
        if is_best(name, value, best, val_loss=0.0, best_loss=0.0, ties_by_loss=False):
            best = value
            kept.append(epoch)
    return kept


@settings(max_examples=300)
@given(NAMES, SEQUENCES)
def test_the_best_epoch(name: str, values: list[float]) -> None:
    assert kept_epochs(name, values) == saved_epochs(name, values)


@given(NAMES, st.integers(1, 4), AFTER_NAN)
def test_nan_is_never_the_best_epoch(name: str, nans: int, values: list[float]) -> None:
    values = [math.nan] * nans + values
    assert kept_epochs(name, values) == saved_epochs(name, values, worst=True)
    assert saved_epochs(name, values) == [1]  # Keras keeps the NaN, whatever comes after
