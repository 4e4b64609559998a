"""The linear probe: a head that is solved on what the frozen network makes of the pictures.

One pass over the pictures gives the features before the head. On them the head is multinomial
logistic regression with an L2 penalty, which has one best answer: no learning rate, no epochs, no
random draw. Only the penalty's strength is open, and the validation part picks it.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fieldmark.errors import ConfigError, DivergedError
from fieldmark.fit.loop import Batch, Plan, choose_trained, consider
from fieldmark.fit.state import EpochRecord, TrainState
from fieldmark.machine.signals import released
from fieldmark.pictures.inputs import InputSpec
from fieldmark.scoring.scorer import Scorer

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

STRENGTHS = tuple(10.0 ** (half / 2) for half in range(2, -13, -1))
"""Strengths of the penalty that are tried, from strong (10) to weak (1e-6)."""

PATIENCE = 3
"""Strengths in a row that validate worse before the weaker ones are left untried."""

_STEPS = 1000
_GRADIENT = 1e-4
"""Largest slope left at a solution, divided by the classes."""
_SMALL = 10**8
"""Multiplications below which one thread solves: for less, threads wait for each other."""


class Pictures(Protocol):
    """A part whose pictures come in order, as scores see them."""

    def in_order(self) -> Generator[Batch, None, None]:
        """Every picture once."""


@dataclass(frozen=True)
class Solution:
    """A linear classifier of features."""

    weight: torch.Tensor
    """[K, D] float64"""
    bias: torch.Tensor
    """[K] float64"""
    strength: float
    """Of the penalty that it was solved with."""

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Shape: float64 [N, D] to [N, K]."""
        return torch.addmm(self.bias, features, self.weight.T)


def probe(
    state: TrainState,
    plan: Plan,
    *,
    train: Pictures,
    val: Pictures,
    judge: Callable[[F64, I64], dict[str, float]],
    weights: torch.Tensor | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[EpochRecord, Solution]:
    """Solve the head and write it into the network: epoch 0 of the training, if any follows.

    Requests to stop that were held are answered until the head is solved; what was changed by then
    is not to be stored. It begins anew with the same outcome.

    Args:
        state: Its network's head is replaced, and its record begun; everything else stays.
        plan: What the loop will do afterwards.
        train: What the head is solved on.
        val: Picks the strength of the penalty, by its loss.
        judge: Validation metrics from logits [N, K] and labels [N].
        weights: What a picture of each class counts, [K]; all the same if None.
        progress: Is told how many training pictures are through the network.

    Raises:
        ConfigError: if the head cannot be solved (:func:`check_head`).
        DivergedError: if the network's features are not finite numbers.
    """
    start = time.perf_counter()
    wait = _Wait()
    layer = find_head(state.module, plan.head)
    with released():
        with _replaced(state.module, plan.head, nn.Identity()):
            network = Scorer(
                state.module,
                spec=dataclasses.replace(plan.input, views="none"),
                device=plan.device.name,
                channels_last=plan.channels_last,
            )
            features, labels = _features(network, wait.over(train), progress)
            passed = time.perf_counter() - start
            val_features, val_labels = _features(network, val.in_order())
        with _threads_for(features.numel() * plan.num_classes):
            solution = choose(
                solve(features, labels, num_classes=plan.num_classes, weights=weights),
                val_features,
                val_labels,
            )
    install(layer, solution)
    if state.ema is not None:
        state.ema.module.load_state_dict(state.module.state_dict())
    rounded = Solution(layer.weight.detach().double().cpu(), _bias(layer), solution.strength)
    trained = rounded.logits(features)
    metrics = {
        "train_loss": float(nn.functional.cross_entropy(trained, labels)),
        "train_accuracy": float((trained.argmax(1) == labels).double().mean()),
        **judge(rounded.logits(val_features).numpy(), val_labels.numpy()),
    }
    choose_trained(state, plan)
    best = consider(state, plan, metrics)
    record = EpochRecord.of(
        metrics,
        epoch=0,
        step=0,
        lr=0.0,
        seconds=round(time.perf_counter() - start, 3),
        images_per_second=round(len(labels) / max(passed, 1e-9), 1),
        data_wait=round(wait.seconds / max(passed, 1e-9), 4),
        best=best,
    )
    state.history.append(record)
    return record, solution


# --- the head --------------------------------------------------------------------------------


def find_head(module: nn.Module, head: str) -> nn.Linear:
    """The network's head, if it is one linear layer.

    Raises:
        ConfigError: if it is something else.
    """
    names = dict(module.named_modules())
    layer = names.get(head)
    if not isinstance(layer, nn.Linear) or layer.bias is None:
        what = (
            "without a bias"
            if isinstance(layer, nn.Linear)
            else "none of that name"
            if layer is None
            else f"a {type(layer).__name__}"
        )
        raise ConfigError(_cannot(f"its head ({head}) is not one linear layer with a bias: {what}"))
    return layer


def check_head(module: nn.Module, head: str, spec: InputSpec, num_classes: int) -> None:
    """Make sure that the network is its head's answer to features [B, D], and nothing after it.

    Networks that average two heads, scale the head's outputs or leave some of them out are none.
    One grey picture is passed through a stand-in for the head.

    Raises:
        ConfigError: saying what the head is instead.
    """
    layer = find_head(module, head)
    if layer.out_features != num_classes:
        raise ConfigError(
            _cannot(f"its head has {layer.out_features} outputs for {num_classes} classes")
        )
    stand_in = _StandIn(layer)
    picture = torch.full((1, 3, spec.size, spec.size), 128, dtype=torch.uint8)
    with _replaced(module, head, stand_in):
        given = Scorer(module, spec=spec, channels_last=False, prepare=False)(picture)
    features, answer = stand_in.seen
    if features.ndim != 2:
        raise ConfigError(_cannot(f"its head gets features of shape {list(features.shape)}"))
    if given.shape != answer.shape or not torch.equal(given, answer):
        raise ConfigError(_cannot(f"something follows its head ({head})"))


def install(layer: nn.Linear, solution: Solution) -> None:
    """Write a solution into the head."""
    with torch.no_grad():
        layer.weight.copy_(solution.weight)
        layer.bias.copy_(solution.bias)


def _bias(layer: nn.Linear) -> torch.Tensor:
    return layer.bias.detach().double().cpu()


def _cannot(why: str) -> str:
    return (
        f"this network cannot be probed: {why}; choose another with --model, or train without "
        "the probe"
    )


class _StandIn(nn.Module):
    """A linear layer that keeps what it got and gave; no two of its outputs are alike."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self._slope = torch.arange(1.0, layer.out_features + 1, device=layer.weight.device)
        self.seen: tuple[torch.Tensor, torch.Tensor] = (torch.empty(0), torch.empty(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape: [B, D] to [B, K]."""
        answer = x.mean(-1, keepdim=True) * self._slope + self._slope
        self.seen = x.cpu(), answer.float().cpu().clone()
        return answer


@contextmanager
def _replaced(module: nn.Module, name: str, other: nn.Module) -> Iterator[None]:
    """The network with another module in one place, for a moment."""
    own = module.get_submodule(name)
    module.set_submodule(name, other)
    try:
        yield
    finally:
        module.set_submodule(name, own)


# --- features --------------------------------------------------------------------------------


def _features(
    network: Scorer, batches: Iterable[Batch], progress: Callable[[int], None] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the head gets for every picture, with the labels.

    Shape:
        float64 [N, D] and int64 [N], on the processor.
    """
    labels: list[torch.Tensor] = []

    def images() -> Iterator[torch.Tensor]:
        for batch in batches:
            labels.append(batch.labels)
            yield batch.images

    found = network.over(images(), progress=progress)
    broken = int((~torch.isfinite(found).all(1)).sum())
    if broken:
        raise DivergedError(
            f"the network's features of {broken} of {len(found)} pictures are not finite numbers, "
            "so no head can be solved on them; check its weights, and --normalize"
        )
    return found.double(), torch.cat(labels).cpu()


class _Wait:
    """Adds up how long batches were waited for."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def over(self, pictures: Pictures) -> Iterator[Batch]:
        for batch in pictures.in_order():
            self.seconds += batch.waited
            yield batch


# --- logistic regression ---------------------------------------------------------------------


def solve(
    features: torch.Tensor,
    labels: torch.Tensor,
    *,
    num_classes: int,
    strengths: Iterable[float] = STRENGTHS,
    weights: torch.Tensor | None = None,
) -> Iterator[Solution]:
    """Least mean cross entropy + strength / 2 * squares of the weights, for each strength in turn.

    The penalty is on the weights of standardised features (mean 0, deviation 1), so that strengths
    mean the same for every network; on 400 flowers that was 1 point better than one scale for all
    features (docs/log.md). The result is for the features as they are. Each strength starts from
    the solution of the one before. The bias is free.

    Args:
        features: [N, D] float64
        labels: [N] int64
        num_classes: Classes.
        strengths: Of the penalty, best from strong to weak.
        weights: What a picture of each class counts, [K]; all the same if None.
    """
    scaled = Scale.of(features)
    x, back = _fewer(scaled(features))
    shares = torch.ones(len(x), dtype=torch.float64) if weights is None else _per(weights, labels)
    shares = shares / shares.sum()
    start = np.zeros(num_classes * (x.shape[1] + 1))
    for strength in strengths:
        start = _minimum(x, labels, shares, strength, start)
        table = torch.from_numpy(start).view(num_classes, -1)
        weight = scaled.undo(table[:, :-1] if back is None else table[:, :-1] @ back)
        yield Solution(weight, table[:, -1] - weight @ scaled.mean, strength)


def choose(solutions: Iterable[Solution], features: torch.Tensor, labels: torch.Tensor) -> Solution:
    """The solution with the least loss on these pictures; of equals, the stronger penalty.

    The loss and not the accuracy: 45 pictures that are right or wrong tell strengths apart less
    well than how sure they are, at a price of 1 point on flowers (docs/log.md).
    """
    best: Solution | None = None
    least, worse = math.inf, 0
    for solution in solutions:
        loss = float(nn.functional.cross_entropy(solution.logits(features), labels))
        if loss < least:
            best, least, worse = solution, loss, 0
        else:
            worse += 1
        if worse == PATIENCE:
            break
    assert best is not None  # features are finite, so the first loss is less than infinite
    return best


@dataclass(frozen=True)
class Scale:
    """Standardisation of features; what does not vary counts nothing."""

    mean: torch.Tensor
    factor: torch.Tensor

    @classmethod
    def of(cls, features: torch.Tensor) -> Scale:
        """Measure mean and deviation."""
        std, mean = torch.std_mean(features, dim=0, correction=0)
        varies = std > 1e-6 * features.abs().amax(0)  # more than the rounding of f32
        return cls(mean, torch.where(varies, 1 / std, 0.0))

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Shape: [N, D] to [N, D]."""
        return (features - self.mean) * self.factor

    def undo(self, weight: torch.Tensor) -> torch.Tensor:
        """Weights of the features as they are from those of standardised ones."""
        return weight * self.factor


def _fewer(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """With fewer pictures than features, the same pictures in as many dimensions as there are.

    The penalised solution is a sum of pictures, and a rotation changes no square.

    Shape:
        [N, D] to [N, R] and the way back, [R, D].
    """
    if len(x) >= x.shape[1]:
        return x, None
    values, vectors = torch.linalg.eigh(x @ x.T)
    kept = values > 1e-12 * values.max()
    size = values[kept].sqrt()
    return vectors[:, kept] * size, (vectors[:, kept] / size).T @ x


def _per(weights: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return weights.double().cpu()[labels]


def _minimum(
    x: torch.Tensor, labels: torch.Tensor, shares: torch.Tensor, strength: float, start: F64
) -> F64:
    """L-BFGS in float64; the last of each class's numbers is its bias.

    Shape:
        x [N, R], labels and shares [N]; start and the result [K * (R + 1)].
    """
    from scipy.optimize import minimize  # a third of a second, which only a probe pays

    rows = torch.arange(len(x))

    def loss_and_gradient(flat: F64) -> tuple[float, F64]:
        table = torch.from_numpy(flat).view(-1, x.shape[1] + 1)
        weight = table[:, :-1]
        outputs = torch.addmm(table[:, -1], x, weight.T)
        total = outputs.logsumexp(1)
        loss = shares @ (total - outputs[rows, labels]) + strength / 2 * weight.square().sum()
        slope = (outputs - total[:, None]).exp_()
        slope[rows, labels] -= 1
        slope *= shares[:, None]
        gradient = torch.empty_like(table)
        torch.addmm(weight, slope.T, x, beta=strength, out=gradient[:, :-1])
        gradient[:, -1] = slope.sum(0)
        return float(loss), gradient.numpy().ravel()

    slope = _GRADIENT * (x.shape[1] + 1) / len(start)
    options: dict[str, Any] = {"maxiter": _STEPS, "gtol": slope, "ftol": 0.0}
    found = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options=options)
    return np.asarray(found.x, dtype=np.float64)


@contextmanager
def _threads_for(work: int) -> Iterator[None]:
    """One thread for little work; the sizes decide, so the same run sums in the same order."""
    before = torch.get_num_threads()
    if work < _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
