"""The linear probe: a head that is solved on the frozen network's features of the pictures.

One pass over the pictures gives the features before the head. On them the head is multinomial
logistic regression with an L2 penalty, which has one best solution: no learning rate, no epochs, no
random draw. Only the penalty's strength is open, and the validation split decides it.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import nn

from fieldmark.errors import ConfigError, DivergedError
from fieldmark.fit.loop import Batch, Plan, choose_trained, consider
from fieldmark.fit.state import EpochRecord, TrainState
from fieldmark.machine.signals import released
from fieldmark.pictures.inputs import InputSpec
from fieldmark.scoring.scorer import Scorer
from fieldmark.seeding import F64, I64

T = TypeVar("T")

STRENGTHS = tuple(10.0 ** (half / 2) for half in range(2, -13, -1))
"""Strengths of the penalty to try, from strong (10) to weak (1e-6)."""

PATIENCE = 3
"""Number of strengths in a row that validate worse before the weaker ones are skipped."""

_STEPS = 1000
_GRADIENT = 1e-4
"""Largest slope left at a solution, divided by the number of classes."""
_SMALL = 10**8
"""Multiplications below which one thread solves alone: several would wait for each other."""


class OrderedBatches(Protocol):
    """Batches of a split in order, as scores use them."""

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
    """Strength of the penalty that it was solved with."""

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Shape: float64 [N, D] to [N, K]."""
        return torch.addmm(self.bias, features, self.weight.T)


@dataclass(frozen=True)
class Features:
    """What the head of a frozen network gets, for every picture of a split."""

    values: torch.Tensor
    """[N, D] float64"""
    labels: torch.Tensor
    """[N] int64"""
    seconds: float
    """Seconds that it took."""
    waited: float
    """Seconds of them spent waiting for pictures."""


def extract(
    module: nn.Module,
    plan: Plan,
    pictures: OrderedBatches,
    *,
    progress: Callable[[int], None] | None = None,
) -> Features:
    """Compute the features of a split; the network is left as it was.

    Args:
        module: The network.
        plan: Its head, input and device.
        pictures: The split.
        progress: Called with the number of pictures that went through the network.

    Raises:
        ConfigError: if the head is not one linear layer.
        DivergedError: if the features are not finite numbers.
    """
    start, wait = time.perf_counter(), _Wait()
    find_head(module, plan.head)
    with _replaced(module, plan.head, nn.Identity()):
        network = Scorer(
            module,
            spec=dataclasses.replace(plan.input, views="none"),
            device=plan.device.name,
            channels_last=plan.channels_last,
        )
        values, labels = _features(network, wait.over(pictures), progress)
    return Features(values, labels, time.perf_counter() - start, wait.seconds)


def probe(
    state: TrainState,
    plan: Plan,
    *,
    train: Features,
    val: Features,
    judge: Callable[[F64, I64], dict[str, float]],
    weights: torch.Tensor | None = None,
) -> tuple[EpochRecord, Solution]:
    """Solve the head and write it into the network: epoch 0 of the training, if any follows.

    Requests to stop that were held are answered until the head is solved; the state must not be
    stored then. The probe begins anew after that, with the same result.

    Args:
        state: Its network's head is replaced, and its record begun; everything else stays.
        plan: The plan of the training that may follow.
        train: Features that the head is solved on.
        val: Those whose loss decides the strength of the penalty.
        judge: Validation metrics from logits [N, K] and labels [N].
        weights: Weight of a picture of each class, [K]; all the same if None.

    Raises:
        ConfigError: if the head cannot be solved (:func:`check_head`).
    """
    start = time.perf_counter()
    layer = find_head(state.module, plan.head)
    features, labels = train.values, train.labels
    val_features, val_labels = val.values, val.labels
    with released(), threads_for(features.numel() * plan.num_classes):
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
        seconds=round(train.seconds + val.seconds + time.perf_counter() - start, 3),
        images_per_second=round(len(labels) / max(train.seconds, 1e-9), 1),
        data_wait=round(train.waited / max(train.seconds, 1e-9), 4),
        best=best,
    )
    state.history.append(record)
    return record, solution


# --- the head --------------------------------------------------------------------------------


def find_head(module: nn.Module, head: str) -> nn.Linear:
    """Return the network's head, if it is one linear layer.

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
    """Check that the head gets features [B, D], and that its outputs are the network's outputs.

    Networks that average two heads, scale the head's outputs or leave some of them out fail the
    check. It passes one grey picture through the network with a stand-in for the head.

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
    """A linear layer that keeps its input and output; no two of its outputs are equal."""

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
    """Put another module in one place of the network, for the length of the block."""
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
    """Compute the head's input for every picture; return it with the labels.

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
    """Adds up the time spent waiting for batches."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def over(self, pictures: OrderedBatches) -> Iterator[Batch]:
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
    """Minimise mean cross entropy + strength / 2 * squares of the weights, for each strength.

    The penalty is on the weights of standardised features (mean 0, deviation 1), so that strengths
    mean the same for every network; on 400 flowers that was 1 point better than one scale for all
    features (docs/log.md). The result is for the features as they are. Each strength starts from
    the solution of the one before. The bias is free.

    Args:
        features: [N, D] float64
        labels: [N] int64
        num_classes: Classes.
        strengths: Strengths of the penalty, best from strong to weak.
        weights: Weight of a picture of each class, [K]; all the same if None.
    """
    scaled = Standardization.of(features)
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
    """Choose the solution with the least loss on these pictures; of equals, the stronger penalty.

    The loss and not the accuracy decides: with 45 pictures, right or wrong tells strengths apart
    less well than probabilities do, and costs 1 point on flowers (docs/log.md).
    """
    return _least(((each, each.logits(features)) for each in solutions), labels)


def _least(answers: Iterable[tuple[T, torch.Tensor]], labels: torch.Tensor) -> T:
    """Return what has the logits with the least loss; the first of equals.

    After :data:`PATIENCE` in a row that are no better the rest is not looked at.
    """
    best: T | None = None
    least, worse = math.inf, 0
    for each, logits in answers:
        loss = float(nn.functional.cross_entropy(logits, labels))
        if loss < least:
            best, least, worse = each, loss, 0
        else:
            worse += 1
        if worse == PATIENCE:
            break
    assert best is not None  # features are finite, so the first loss is less than infinite
    return best


def out_of_fold(
    features: torch.Tensor, labels: torch.Tensor, fold: I64, *, num_classes: int
) -> torch.Tensor:
    """Answer for every picture by a head that was solved without its fold.

    One strength of the penalty is chosen for all folds: the one with the least loss.

    Args:
        features: [N, D] float64
        labels: [N] int64
        fold: [N] each picture's fold.
        num_classes: Classes.

    Shape:
        logits [N, num_classes] float64.
    """
    folds = [torch.from_numpy(fold == each) for each in np.unique(fold)]
    solved = [solve(features[~here], labels[~here], num_classes=num_classes) for here in folds]

    def answers() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for solutions in zip(*solved, strict=True):
            logits = torch.empty(len(labels), num_classes, dtype=torch.float64)
            for here, solution in zip(folds, solutions, strict=True):
                logits[here] = solution.logits(features[here])
            yield logits, logits

    return _least(answers(), labels)


NEIGHBOURS = 5


def neighbours(features: torch.Tensor, labels: torch.Tensor, fold: I64) -> float:
    """Compute how many pictures the nearest ones of other folds have right, by cosine.

    Args:
        features: [N, D] float64
        labels: [N] int64
        fold: [N] each picture's fold.
    """
    centred = nn.functional.normalize(features - features.mean(0), dim=1)
    near = centred @ centred.T
    near[torch.from_numpy(fold[:, None] == fold[None])] = -math.inf
    values, places = near.topk(min(NEIGHBOURS, len(labels)), dim=1)
    votes = torch.zeros(len(labels), int(labels.max()) + 1, dtype=torch.float64)
    votes.scatter_add_(1, labels[places], values.exp())
    return float((votes.argmax(1) == labels).double().mean())


@dataclass(frozen=True)
class Standardization:
    """Standardisation of features; features that do not vary become zero."""

    mean: torch.Tensor
    factor: torch.Tensor

    @classmethod
    def of(cls, features: torch.Tensor) -> Standardization:
        """Measure the features' mean and deviation."""
        std, mean = torch.std_mean(features, dim=0, correction=0)
        varies = std > 1e-6 * features.abs().amax(0)  # more than the rounding of f32
        return cls(mean, torch.where(varies, 1 / std, 0.0))

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Shape: [N, D] to [N, D]."""
        return (features - self.mean) * self.factor

    def undo(self, weight: torch.Tensor) -> torch.Tensor:
        """Turn weights of standardised features into weights of the features themselves."""
        return weight * self.factor


def _fewer(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Rotate the features into as few dimensions as there are pictures, if these are fewer.

    The penalised solution is a sum of pictures, and a rotation keeps every sum of squares.

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
    """Minimise by L-BFGS in float64; the last of each class's numbers is its bias.

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
def threads_for(work: int) -> Iterator[None]:
    """Compute with one thread for little work; only sizes decide, so sums keep their order."""
    before = torch.get_num_threads()
    if work < _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
