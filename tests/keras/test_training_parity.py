"""Steps of training against Keras: gradients, weights, penalty, and the rates of schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fieldmark.fit import optimizers, schedules
from fieldmark.fit.losses import loss_sum
from fieldmark.fit.schedules import Length

# Submodules: without Keras, this folder itself would be found as an empty package called keras.
keras = pytest.importorskip("keras.src")
theirs = pytest.importorskip("keras.optimizers")
their_schedules = pytest.importorskip("keras.optimizers.schedules")

L2 = 0.01
EPOCHS, PER_EPOCH, BATCH = 2, 4, 16
STEPS = EPOCHS * PER_EPOCH
# Two frameworks sum the same float32 products in different orders.
WEIGHTS: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}
GRADIENTS: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


class Net(nn.Module):
    """Convolution, batch norm, convolution, head: what Keras's side has, in its settings."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8, eps=1e-3, momentum=0.01)
        self.second = nn.Conv2d(8, 6, 3)
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.first(x)))
        return self.head(torch.relu(self.second(x)).mean((2, 3)))


def keras_net(l2: float = L2) -> Any:
    layers = keras.layers
    penalty = {"kernel_regularizer": keras.regularizers.L2(l2)} if l2 else {}
    return keras.Sequential(
        [
            layers.Input((8, 8, 3)),
            layers.Conv2D(8, 3, padding="same", use_bias=False, **penalty),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(6, 3, **penalty),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            layers.Dense(4),
        ]
    )


def pairs(net: Net) -> list[Any]:
    """Our parameters in the order of Keras's trainable weights."""
    return [
        net.first.weight,
        net.norm.weight,
        net.norm.bias,
        net.second.weight,
        net.second.bias,
        net.head.weight,
        net.head.bias,
    ]


def to_keras(tensor: torch.Tensor) -> np.ndarray:
    """Keras's axes: (height, width, in, out) and (in, out)."""
    array = tensor.detach().numpy()
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T


def twins(l2: float = L2) -> tuple[Net, Any]:
    """Both networks with the same weights; the norm's are not the ones it starts with."""
    torch.manual_seed(0)
    net, twin = Net(), keras_net(l2)
    with torch.no_grad():
        net.norm.weight.uniform_(0.5, 1.5)
        net.norm.bias.normal_(std=0.3)
    for mine, other in zip(pairs(net), twin.trainable_weights, strict=True):
        other.assign(to_keras(mine).copy())
    return net, twin


def data() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(1)
    images = torch.randn(PER_EPOCH * BATCH, 3, 8, 8, generator=rng)
    return images, torch.randint(4, (PER_EPOCH * BATCH,), generator=rng)


def batch(step: int) -> slice:
    """Every epoch shows the same batches in the same order."""
    start = step % PER_EPOCH * BATCH
    return slice(start, start + BATCH)


def train(
    net: Net,
    optimizer: torch.optim.Optimizer,
    rate: Callable[[int], float],
    *,
    l2: float = L2,
    after: Callable[[int], None] = lambda step: None,
) -> list[float]:
    """Our steps, as the loop takes them; the loss of each, penalty included."""
    images, labels = data()
    kernels = optimizers.regularized(net, "head")
    losses = []
    net.train()
    for step in range(STEPS):
        here = batch(step)
        optimizer.zero_grad(set_to_none=True)
        loss = loss_sum(net(images[here]), labels[here], smoothing=0.0, weights=None) / BATCH
        loss.backward()
        losses.append(float(loss.detach() + optimizers.penalty(kernels, l2)))
        optimizers.add_l2_gradient(kernels, l2)
        after(step)
        optimizers.set_lr(optimizer, rate(step))
        optimizer.step()
    return losses


def build(text: str, net: Net, weight_decay: float = 0.0) -> torch.optim.Optimizer:
    return optimizers.build(text, net, head="head", weight_decay=weight_decay, backbone_lr=1.0)


def assert_equal_weights(net: Net, twin: Any) -> None:
    for mine, other in zip(pairs(net), twin.trainable_weights, strict=True):
        wanted = keras.ops.convert_to_numpy(other)
        np.testing.assert_allclose(to_keras(mine), wanted, **WEIGHTS, err_msg=other.path)


OPTIMIZERS = {
    "keras_sgd": lambda lr: theirs.SGD(lr),
    "keras_sgd(0.9)": lambda lr: theirs.SGD(lr, momentum=0.9),
    "keras_sgd(0.9, nesterov=True)": lambda lr: theirs.SGD(lr, momentum=0.9, nesterov=True),
    "keras_adam": lambda lr: theirs.Adam(lr),
    "keras_adam(eps=1e-3)": lambda lr: theirs.Adam(lr, epsilon=1e-3),
    "keras_adam(beta1=0.5, beta2=0.9, eps=1e-2)": lambda lr: theirs.Adam(
        lr, beta_1=0.5, beta_2=0.9, epsilon=1e-2
    ),
}
LENGTH = Length(total_steps=STEPS, steps_per_epoch=PER_EPOCH)
RATES = {
    "constant": lambda lr: lr,
    "exponential_decay(steps=3, rate=0.5, staircase=True)": lambda lr: (
        their_schedules.ExponentialDecay(lr, 3, 0.5, staircase=True)
    ),
    "exponential_decay(steps=3, rate=0.5)": lambda lr: their_schedules.ExponentialDecay(lr, 3, 0.5),
    "inverse_time(0.5)": lambda lr: their_schedules.InverseTimeDecay(lr, 1, 0.5),
}


def peak(text: str) -> float:
    return 0.01 if "adam" in text else 0.1


@pytest.mark.parametrize("schedule", RATES)
@pytest.mark.parametrize("text", OPTIMIZERS)
def test_gradients_losses_and_weights_of_every_step(text: str, schedule: str) -> None:
    net, twin = twins()
    lr = peak(text)
    factor = schedules.build(schedule, length=LENGTH)
    optimizer, keras_optimizer = build(text, net), OPTIMIZERS[text](RATES[schedule](lr))
    images, labels = data()
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    losses = []

    def compare(step: int) -> None:
        """Take Keras's step on the same batch and compare it before ours moves the weights."""
        assert_equal_weights(net, twin)
        here = batch(step)
        twin.zero_grad()
        logits = twin(images[here].permute(0, 2, 3, 1), training=True)
        loss = loss_of(labels[here], logits) + sum(twin.losses)
        loss.backward()
        losses.append(float(loss.detach()))
        variables = twin.trainable_weights
        gradients = [v.value.grad for v in variables]
        for mine, other, variable in zip(pairs(net), gradients, variables, strict=True):
            np.testing.assert_allclose(
                to_keras(mine.grad), other.numpy(), **GRADIENTS, err_msg=variable.path
            )
        with torch.no_grad():
            keras_optimizer.apply(gradients, variables)

    ours = train(net, optimizer, lambda step: lr * factor(step), after=compare)
    assert_equal_weights(net, twin)
    np.testing.assert_allclose(ours, losses, rtol=1e-5)
    moved = [(p - q).abs().max() for p, q in zip(pairs(net), pairs(twins()[0]), strict=True)]
    assert min(moved) > 100 * WEIGHTS["atol"]  # or equal weights would say nothing


@pytest.mark.parametrize("text", OPTIMIZERS)
def test_kerass_own_fit_with_a_rate_an_epoch(text: str) -> None:
    """``model.fit`` with LearningRateScheduler; batch norm's running mean included."""
    net, twin = twins()
    lr = peak(text)
    images, labels = data()
    twin.compile(
        optimizer=OPTIMIZERS[text](lr),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    twin.fit(
        images.permute(0, 2, 3, 1).numpy(),
        labels.numpy(),
        batch_size=BATCH,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        callbacks=[keras.callbacks.LearningRateScheduler(lambda epoch: lr * (1.0, 0.1)[epoch])],
    )
    factor = schedules.build("piecewise({1: 0.1})", length=LENGTH)
    train(net, build(text, net), lambda step: lr * factor(step))
    assert_equal_weights(net, twin)
    mean = keras.ops.convert_to_numpy(twin.layers[1].moving_mean)
    np.testing.assert_allclose(net.norm.running_mean.numpy(), mean, **WEIGHTS)


@pytest.mark.parametrize(
    ("text", "make"),
    [
        ("keras_sgd(0.9)", lambda lr: theirs.SGD(lr, momentum=0.9, weight_decay=0.1)),
        ("keras_adam", lambda lr: theirs.Adam(lr, weight_decay=0.1)),
    ],
)
def test_weight_decay_is_kerass(text: str, make: Callable[[float], Any]) -> None:
    net, twin = twins(l2=0.0)
    lr = peak(text)
    images, labels = data()
    optimizer = make(lr)
    optimizer.exclude_from_weight_decay([v for v in twin.trainable_weights if len(v.shape) == 1])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    twin.compile(optimizer=optimizer, loss=loss)
    for step in range(STEPS):
        here = batch(step)
        twin.train_on_batch(images[here].permute(0, 2, 3, 1).numpy(), labels[here].numpy())
    train(net, build(text, net, weight_decay=0.1), lambda step: lr, l2=0.0)
    assert_equal_weights(net, twin)


@pytest.mark.parametrize("text", ["sgd(0.9)", "adam(eps=1e-2)"])
def test_torchs_own_optimizers_do_not_agree(text: str) -> None:
    """Which is why there are others: after a change of rate, and with a large epsilon."""
    keras_text = f"keras_{text}"
    rates = [peak(text)] * 4 + [peak(text) / 10] * 4
    weights = []
    for name in (text, keras_text):
        net, _ = twins()
        train(net, build(name, net), lambda step: rates[step])
        weights.append(net.first.weight.detach())
    assert (weights[0] - weights[1]).abs().max() > 100 * WEIGHTS["atol"]


def test_the_penalty_is_on_what_trains() -> None:
    net, twin = twins()
    kernels = optimizers.regularized(net, "head")
    assert float(optimizers.penalty(kernels, L2)) == pytest.approx(float(sum(twin.losses).detach()))
    net.first.requires_grad_(False)
    twin.layers[0].trainable = False
    value = float(optimizers.penalty(kernels, L2))
    assert value == pytest.approx(float(sum(twin.losses).detach()))
    assert value == pytest.approx(L2 * float(net.second.weight.detach().square().sum()))


# --- schedules -----------------------------------------------------------------------------------

LRS = st.sampled_from([1e-4, 0.001, 0.05, 0.1, 1.0])
COUNTS = st.integers(1, 5000)
AT = st.integers(0, 100_000)


def assert_same_rate(text: str, length: Length, theirs: Any, lr: float, step: int) -> None:
    ours = lr * schedules.build(text, length=length)(step)
    assert ours == pytest.approx(float(theirs(step)), rel=1e-6, abs=1e-30)


@settings(max_examples=200)
@given(LRS, COUNTS, st.sampled_from([0.5, 0.9, 0.96, 0.999, 1.0]), st.booleans(), AT, st.booleans())
def test_exponential_decay(
    lr: float, count: int, rate: float, staircase: bool, step: int, at_stair: bool
) -> None:
    step = min(step, 30 * count)  # beyond, the rates are nothing and float32 has no digits left
    step = step // count * count if at_stair else step
    theirs = their_schedules.ExponentialDecay(lr, count, rate, staircase=staircase)
    text = f"exponential_decay({count}, {rate}, {staircase})"
    assert_same_rate(text, LENGTH, theirs, lr, step)


@given(LRS, st.sampled_from([0.0, 1e-6, 1e-4, 0.01, 0.5, 3.0]), AT)
def test_inverse_time(lr: float, rate: float, step: int) -> None:
    theirs = their_schedules.InverseTimeDecay(lr, 1, rate)
    assert_same_rate(f"inverse_time({rate})", LENGTH, theirs, lr, step)


@given(
    LRS,
    st.lists(st.integers(1, 200), min_size=2, max_size=5, unique=True).map(sorted),
    st.integers(1, 50),
    st.data(),
)
def test_piecewise_constant(
    lr: float, epochs: list[int], per_epoch: int, data: st.DataObject
) -> None:
    factors = [0.5**n for n in range(len(epochs) + 1)]
    boundaries = [epoch * per_epoch - 1 for epoch in epochs]
    theirs = their_schedules.PiecewiseConstantDecay(boundaries, [lr * f for f in factors])
    text = f"piecewise({dict(zip(epochs, factors[1:], strict=True))})"
    edges = [boundary + side for boundary in boundaries for side in (0, 1)]
    step = data.draw(st.sampled_from(edges) | st.integers(0, 250 * per_epoch))
    assert_same_rate(text, Length(10_000, per_epoch), theirs, lr, step)


@given(LRS, st.integers(1, 100_000), st.sampled_from([0.0, 0.1, 0.5]), AT)
def test_cosine(lr: float, total: int, final: float, step: int) -> None:
    theirs = their_schedules.CosineDecay(lr, total, alpha=final)
    ours = lr * schedules.build(f"cosine({final})", length=Length(total, 1))(step)
    # Near its end the cosine is a difference of nearly equal float32 numbers.
    assert ours == pytest.approx(float(theirs(step)), rel=1e-6, abs=2e-7 * lr)
