"""What a search tries: a range or a list of values for each setting, and the spaces by default."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fieldmark.errors import ConfigError
from fieldmark.files.typed import STRICT, Number, Text
from fieldmark.settings.config import TrainConfig
from fieldmark.settings.spec import parse_pipe
from fieldmark.settings.varied import SPEED, flag, refuse

RATES = ("lr", "weight_decay", "l2", "backbone_lr", "bias_lr")
"""Settings whose ranges are searched by their logarithm: it is the factor that matters."""
_RANGE = re.compile(r"\s*([^\s.][^\s]*?)\.\.([^\s.][^\s]*)\s*")
_KINDS = {field.name: str(field.type) for field in dataclasses.fields(TrainConfig)}


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A setting that is searched: between two numbers, or among values."""

    __pydantic_config__ = STRICT

    setting: Text
    values: tuple[Any, ...] = ()
    """The values; none for a range."""
    low: Number = 0.0
    high: Number = 0.0

    @property
    def log(self) -> bool:
        """Whether a range is searched by its logarithm."""
        return not self.values and self.setting in RATES

    @property
    def whole(self) -> bool:
        """Whether a range is of whole numbers."""
        return not self.values and _KINDS[self.setting] == "int"

    def __str__(self) -> str:
        """As it can be given."""
        if self.values:
            return ", ".join(map(str, self.values))
        return f"{self.low:g}..{self.high:g}" + (" (logarithmic)" if self.log else "")

    def within(self, value: Any) -> bool:
        """Whether the search could come to a value."""
        if self.values:
            return value in self.values
        return bool(self.low <= value <= self.high)


@dataclass(frozen=True)
class Span:
    """``LOW..HIGH`` as it was given."""

    low: str
    high: str


def span(name: str, text: str) -> Span | None:
    """Read ``LOW..HIGH`` for a setting that is a number; None if the text is something else."""
    if _KINDS.get(name) not in ("int", "float"):
        return None
    form = _RANGE.fullmatch(text)
    return Span(form.group(1), form.group(2)) if form else None


def spaces(
    over: Mapping[str, Any], settings: Mapping[str, Any], *, monitor: str
) -> tuple[Axis, ...]:
    """The space that is asked for.

    Args:
        over: For each setting ``"LOW..HIGH"``, a pair of numbers from :func:`span`, or a list of
            values.
        settings: What is given for all trials.
        monitor: The metric that the search judges by.

    Raises:
        ConfigError: naming the setting, and what is accepted.
    """
    axes = tuple(_axis(name, given, settings) for name, given in over.items())
    if monitor.endswith("loss") and any(axis.setting == "l2" for axis in axes):
        raise ConfigError(
            f"l2 cannot be searched by {monitor}, as its penalty is part of that loss and the "
            "least would always win; judge by --monitor val_accuracy"
        )
    return axes


def _axis(name: str, given: Any, settings: Mapping[str, Any]) -> Axis:
    refuse(name, settings, _INSTEAD, be="searched")
    if isinstance(given, str):
        given = [span(name, given) or given]
    if not isinstance(given, Sequence):
        raise ConfigError(
            f"over {name!r} is {given!r}; a range such as '0.001..0.1' or a list of values is "
            "accepted"
        )
    ranges = [value for value in given if isinstance(value, Span)]
    if ranges and len(given) > 1:
        raise ConfigError(f"{name} has a range and other values; give either, after one --over")
    if ranges:
        return _between(name, ranges[0])
    values = tuple(dict.fromkeys(given))
    if len(values) < 2:
        raise ConfigError(
            f"{name} has {len(values)} value to search; give at least two, one after another, such "
            f"as --over {name} A B, "
            + (f"a range such as --over {name} LOW..HIGH, " if _KINDS[name] != "str" else "")
            + f"or {flag(name)} for the same value in all trials"
        )
    for value in values:
        if name not in ("train_from", "unfreeze_at_epoch", "accumulate"):  # depend on others
            dataclasses.replace(TrainConfig(), **{name: value})
    return Axis(setting=name, values=values)


def _between(name: str, given: Span) -> Axis:
    """A range, its ends checked as values of the setting."""
    whole = _KINDS[name] == "int"
    try:
        low, high = ((int if whole else float)(end) for end in (given.low, given.high))
    except ValueError:
        raise ConfigError(
            f"{name} is searched in {given.low}..{given.high}; two "
            f"{'whole ' if whole else ''}numbers LOW..HIGH are accepted, such as "
            f"{'5..20' if whole else '0.001..0.1'}"
        ) from None
    for value in (low, high):
        if name not in ("unfreeze_at_epoch", "accumulate"):
            changes: dict[str, Any] = {"probe": True, name: value}
            dataclasses.replace(TrainConfig(), **changes)
    if not low < high:
        raise ConfigError(f"{name} is searched in {low:g}..{high:g}; the first must be the less")
    if name in RATES and low <= 0:
        raise ConfigError(
            f"{name} is searched in {low:g}..{high:g}, but by its logarithm, so from above 0; give "
            f"a small number, or values: --over {name} {low:g} {high:g}"
        )
    return Axis(setting=name, low=float(low), high=float(high))


_INSTEAD = {
    "seed": "all trials have the same one, or its luck would be taken for a gain; give it with "
    "--seed",
    "monitor": "it is what the search judges by; give it with --monitor",
    "metrics": "they only measure; give them for all, with --metrics",
    "views": "trials are judged by one view; give it for all, with --views",
    **{
        name: "it decides how fast training is, and not what is learnt; give it for all, with "
        + flag(name)
        for name in SPEED
    },
}


# --- by default ------------------------------------------------------------------------------


def default_space(config: TrainConfig) -> tuple[Axis, ...]:
    """What is worth trying around a recipe's settings, where nothing is asked for.

    A probe alone has no learning rate: what matters is how large its pictures are and how they are
    cut. Elsewhere the learning rate comes first, then how long, how much the weights are held small
    and how the pictures are changed; ranges are a factor of 10 to both sides. The reasons are in
    docs/tuning.md.
    """
    if not config.epochs:
        step = 32 if config.size >= 128 else 8  # what networks' strides divide
        factors = (0.78, 0.89, 1.11, 1.22)
        near = sorted({max(step, step * round(config.size * f / step)) for f in factors})
        axes = [
            _choice("size", config.size, near),
            _choice("resize", config.resize, ["crop", "squash", "pad"]),
        ]
        return tuple(axis for axis in axes if len(axis.values) > 1)
    found = [_around("lr", config.lr)]
    found += [
        _around(name, value)
        for name, value in (("weight_decay", config.weight_decay), ("l2", config.l2))
        if value > 0
    ]
    if config.backbone_lr != 1 and not (config.freeze or config.train_from):
        found.append(Axis(setting="backbone_lr", low=0.01, high=1.0))
    halves = {max(1, round(config.epochs / 2)), 2 * config.epochs}
    found.append(_choice("epochs", config.epochs, sorted(halves)))
    found.append(_choice("augment", config.augment, _augments(config.augment)))
    if config.loss == "cross_entropy":
        found.append(_choice("label_smoothing", config.label_smoothing, [0.0, 0.1]))
    return tuple(found)


def _choice(name: str, own: Any, others: Sequence[Any]) -> Axis:
    return Axis(setting=name, values=tuple(dict.fromkeys([own, *others])))


def _around(name: str, value: float) -> Axis:
    """A factor of 10 to both sides."""
    low, high = (float(f"{value * factor:.3g}") for factor in (0.1, 10.0))
    return Axis(setting=name, low=low, high=high)


def _augments(own: str) -> list[str]:
    """The recipe's, with mirroring or without, and with more of everything."""
    words = parse_pipe(own, what="augment")
    mirrors = [word for word in words if word.name == "flip_lr"]
    other = [word for word in words if word not in mirrors] if mirrors else [*words, "flip_lr"]
    more = [*words, "trivial_augment"]
    return ["|".join(map(str, pipe)) or "none" for pipe in (other, more)]


def rounded(axis: Axis, value: Any) -> Any:
    """A suggested value as a person would write it, still within the range."""
    if axis.values or axis.whole or not value:
        return value
    digits = 2 - math.floor(math.log10(abs(value)))
    return min(max(round(float(value), digits), axis.low), axis.high)
