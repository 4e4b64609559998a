"""Objects of a Python program in place of names: what each may be, and what it is recorded as.

An object is recorded as ``python:NAME``, its class's or function's name. It is turned into what the
table of its kind holds, and is found by that name while the call lasts (``plugins.handed``).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from fieldmark.augment.ops import Change, Crop, Op, Warp
from fieldmark.errors import ConfigError
from fieldmark.fit.callbacks import Callback, Control
from fieldmark.models import Family, as_family
from fieldmark.plugins.handed import PREFIX
from fieldmark.seeding import F64

DRAWS = 8
"""Uniform numbers that an augmentation handed over as a function gets for each picture."""

Objects = dict[tuple[str, str], Any]


def separate(settings: Mapping[str, Any]) -> tuple[dict[str, Any], Objects]:
    """Settings with a name for every object among them, and the objects by kind and name.

    Raises:
        ConfigError: if an object cannot be what it was given for.
    """
    plain, objects = dict(settings), Objects()
    for setting, (kind, entry) in _TAKEN.items():
        value = settings.get(setting)
        if value is None or isinstance(value, str):
            continue
        several = isinstance(value, list | tuple)
        if several and setting not in _PIPES:
            raise ConfigError(f"{setting} is {value!r}; one name or one object is accepted")
        words = []
        for each in value if several else [value]:
            if isinstance(each, str):
                words.append(each)
                continue
            name = _free(_name(each), kind, objects)
            objects[kind, name] = entry(each)
            words.append(name)
        plain[setting] = "|".join(words) or "none"
    return plain, objects


def again(given: Mapping[str, Any]) -> Objects:
    """Objects that are handed over once more, for a run that records their names.

    Raises:
        ConfigError: if something else is among them.
    """
    for setting, value in given.items():
        if setting not in _TAKEN or isinstance(value, str):
            raise ConfigError(
                f"{setting} is {value!r}; a run goes on with its own settings, and takes objects "
                f"only, by {', '.join(_TAKEN)}"
            )
    return separate(given)[1]


def _name(value: Any) -> str:
    """What an object is called: its own name, or that of its class."""
    while isinstance(value, partial):
        value = value.func
    if isinstance(value, Family):
        return _name(value.build)
    named = value if hasattr(value, "__qualname__") else type(value)
    last = str(named.__qualname__).replace("<locals>.", "").replace("<lambda>", "lambda")
    return PREFIX + (re.sub(r"[^\w.]", "_", last) or "object")


def _free(name: str, kind: str, objects: Objects) -> str:
    """The name, with a number where another object of the kind has it already."""
    number, free = 2, name
    while (kind, free) in objects:
        free, number = f"{name}-{number}", number + 1
    return free


def _network(value: Any) -> Family:
    """A module, a function from the number of classes to one, or a Family."""
    if isinstance(value, nn.Module):

        def build(num_classes: int) -> nn.Module:
            del num_classes  # what it gives is checked when it is built
            return copy.deepcopy(value)

        build.__doc__ = type(value).__doc__
        return as_family(build)
    if not isinstance(value, Family) and not callable(value):
        raise _not("model", value, "a module, or a function from the number of classes to one")
    return as_family(value)


def _augmentation(value: Any) -> Callable[[], Op]:
    """An op, or a function of pictures [B, 3, S, S] and draws [B, 8] to such pictures."""
    if isinstance(value, Crop | Warp | Change):
        return lambda: value
    if not callable(value):
        raise _not("augment", value, "a function of pictures and draws, or an op of augment.ops")
    return lambda: Change(DRAWS, partial(_applied, value))


def _applied(
    function: Callable[[torch.Tensor, F64], Any], images: torch.Tensor, draws: F64
) -> torch.Tensor:
    changed = function(images, draws)
    fine = isinstance(changed, torch.Tensor) and changed.shape == images.shape
    if not fine or changed.dtype not in (torch.uint8, torch.float32):
        told = f"{changed.dtype} {tuple(changed.shape)}" if fine else type(changed).__name__
        raise ConfigError(
            f"augment {_name(function)!r} gives {told} for uint8 or float32 "
            f"{tuple(images.shape)}; pictures of the same shape in 0..255 are needed"
        )
    result: torch.Tensor = changed
    return result


def _callable(setting: str, accepted: str) -> Callable[[Any], Callable[..., Any]]:
    def checked(value: Any) -> Callable[..., Any]:
        if not callable(value):
            raise _not(setting, value, accepted)

        def called(*given: Any) -> Any:  # whatever else it takes is not open to a spec
            return value(*given)

        return called

    return checked


@dataclass
class _AfterEpoch:
    """A function as a callback without a state."""

    function: Callable[[int, Mapping[str, float], Control], object]

    def after_epoch(self, epoch: int, metrics: Mapping[str, float], control: Control) -> None:
        self.function(epoch, metrics, control)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        del state


def _callback(value: Any) -> Callable[[str], Callback]:
    """A callback, or a function of epoch, metrics and control."""
    if hasattr(value, "after_epoch"):
        return lambda monitor: value
    if not callable(value):
        raise _not("callbacks", value, "functions of epoch, metrics and control")
    return lambda monitor: _AfterEpoch(value)


def _not(setting: str, value: object, accepted: str) -> ConfigError:
    return ConfigError(f"{setting} is {value!r}; a name is accepted, or {accepted}")


_TAKEN: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "model": ("networks", _network),
    "augment": ("augmentations", _augmentation),
    "optimizer": (
        "optimizers",
        _callable("optimizer", "a function from parameter groups to a torch optimizer"),
    ),
    "loss": ("losses", _callable("loss", "a function of logits and targets to losses [B]")),
    "callbacks": ("callbacks", _callback),
    "metrics": ("metrics", _callable("metrics", "functions of probs and labels to a number")),
}
"""Settings that take objects: the kind, and what makes the table's entry of one."""
_PIPES = ("augment", "callbacks", "metrics")
