"""Optuna: which settings are tried next, which trials are hopeless, and which settings mattered.

Nothing of Optuna's is kept: a study is made anew from the finished trials whenever one is needed,
and its sampler is seeded by the number of the trial. So what is suggested is a function of the
seed and of the trials before, and a search that was killed goes on as if it had not been.

Source:
    Akiba et al., Optuna: A next-generation hyperparameter optimization framework, KDD 2019.
    Bergstra et al., Algorithms for hyper-parameter optimization, NeurIPS 2011 (TPE).
    Hutter, Hoos and Leyton-Brown, An efficient approach for assessing hyperparameter importance,
    ICML 2014 (fANOVA).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fieldmark.errors import MissingExtraError
from fieldmark.runs.trials import Trial
from fieldmark.seeding import mix, stream, uniform
from fieldmark.settings.space import Axis, rounded

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

STARTUP = 6
"""Trials that are drawn at random before the others lead the draw."""
SHARES = 20
"""Trainings are compared at these parts of their epochs, as some have more epochs than others."""
WARM_UP = 5
"""Of these, those in which nobody is judged."""
BEFORE_PRUNING = 4
"""Complete trials before others are held against them."""
TRIES = 20
"""Suggestions that were all tried before, until one of the combinations that are left is drawn."""
_SEARCH = stream("search")


def require() -> None:
    """Make sure that Optuna is there.

    Raises:
        MissingExtraError: if it is not.
    """
    try:
        import optuna
    except ImportError as error:
        raise MissingExtraError(
            f"searching needs {error.name}; install it with: pip install 'fieldmark[tune]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def suggest(
    space: Sequence[Axis],
    trials: Sequence[Trial],
    *,
    default: Mapping[str, Any],
    monitor: str,
    seed: int,
) -> dict[str, Any] | None:
    """Settings for the next trial, none that were tried; None if there are no others.

    Args:
        space: What is searched.
        trials: The finished trials.
        default: What the first of them had for the searched settings.
        monitor: The metric that judges.
        seed: Seed of the search.
    """
    tried = [default, *(trial.settings for trial in trials[1:])]
    distributions = {axis.setting: _distribution(axis) for axis in space}
    for attempt in range(TRIES):
        study = _study(space, trials, default, monitor, _key(seed, len(trials), attempt))
        params = study.ask(distributions).params
        found = {axis.setting: rounded(axis, params[axis.setting]) for axis in space}
        if found not in tried:
            return found
    if not all(axis.values for axis in space):
        return found
    every = [
        dict(zip((axis.setting for axis in space), values, strict=True))
        for values in itertools.product(*(axis.values for axis in space))
    ]
    left = [settings for settings in every if settings not in tried]
    if not left:
        return None
    return left[int(uniform(1, seed, _SEARCH, len(trials))[0, 0] * len(left))]


def shares(curve: Sequence[float], epochs: int, *, less_is_better: bool) -> dict[int, float]:
    """A training's best value so far at each part of its epochs that it has come to.

    Args:
        curve: The metric after each epoch.
        epochs: Epochs that were planned.
        less_is_better: Whether the metric is a loss.
    """
    better = min if less_is_better else max
    reached: dict[int, float] = {}
    best = math.nan
    for epoch, value in enumerate(curve, start=1):
        if math.isfinite(value):
            best = value if math.isnan(best) else better(best, value)
        reached[SHARES * epoch // max(1, epochs)] = best
    found: dict[int, float] = {}
    for part in range(min(SHARES, max(reached, default=0)) + 1):
        known = [value for at, value in reached.items() if at <= part]
        if known and math.isfinite(known[-1]):
            found[part] = known[-1]
    return found


def is_hopeless(
    trials: Sequence[Trial], curve: Sequence[float], epochs: int, *, monitor: str
) -> bool:
    """Whether a training is behind the median of the complete ones at the same part of theirs."""
    import optuna

    less = monitor.endswith("loss")
    now = shares(curve, epochs, less_is_better=less)
    if not now or len(curve) >= epochs:
        return False
    study = optuna.create_study(
        direction="minimize" if less else "maximize",
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=BEFORE_PRUNING, n_warmup_steps=WARM_UP),
    )
    study.add_trials(
        [_frozen(trial, {}, {}, less) for trial in trials if trial.state == "complete"]
    )
    asked = study.ask()
    for part, value in now.items():
        asked.report(value, part)
    return bool(asked.should_prune())


def importances(
    space: Sequence[Axis],
    trials: Sequence[Trial],
    *,
    default: Mapping[str, Any],
    monitor: str,
) -> dict[str, float]:
    """How much of the differences between complete trials each setting explains (fANOVA).

    They add up to 1; empty where trials are too few or all alike.
    """
    import optuna

    values = {trial.value for trial in trials if trial.state == "complete"}
    if len(values) < 2:
        return {}
    study = _study(space, trials, default, monitor, 0)
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    try:
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except RuntimeError:  # all its trees say the same for any settings
        return {}
    return {name: float(share) for name, share in found.items() if math.isfinite(share)}


def _study(
    space: Sequence[Axis],
    trials: Sequence[Trial],
    default: Mapping[str, Any],
    monitor: str,
    seed: int,
) -> Study:
    """A study of the trials whose settings lie in the space."""
    import optuna

    distributions = {axis.setting: _distribution(axis) for axis in space}
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP)
    less = monitor.endswith("loss")
    study = optuna.create_study(direction="minimize" if less else "maximize", sampler=sampler)
    for number, trial in enumerate(trials):
        settings = trial.settings if number else default
        if all(axis.within(settings[axis.setting]) for axis in space):
            params = {axis.setting: settings[axis.setting] for axis in space}
            study.add_trial(_frozen(trial, params, distributions, less))
    return study


def _frozen(
    trial: Trial,
    params: dict[str, Any],
    distributions: dict[str, BaseDistribution],
    less_is_better: bool,
) -> FrozenTrial:
    """A trial as Optuna has it. One that failed counts as pruned before its first epoch: worst."""
    import optuna

    complete = trial.state == "complete"
    state = optuna.trial.TrialState.COMPLETE if complete else optuna.trial.TrialState.PRUNED
    steps = shares(trial.curve, trial.epochs, less_is_better=less_is_better)
    return optuna.trial.create_trial(
        state=state,
        value=trial.value if complete else None,
        params=params,
        distributions=distributions,
        intermediate_values={} if trial.state == "failed" else steps,
    )


def _distribution(axis: Axis) -> BaseDistribution:
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if axis.values:
        return CategoricalDistribution(axis.values)
    if axis.whole:
        return IntDistribution(int(axis.low), int(axis.high))
    return FloatDistribution(axis.low, axis.high, log=axis.log)


def _key(*keys: int) -> int:
    """A seed as Optuna takes it."""
    return int(mix(_SEARCH, *keys)[0] >> np.uint64(32))
