"""What every entry of a table promises: a description, arguments that can be checked, no hidden
randomness.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch


def require(holds: object, text: str) -> None:
    """Fail with the text unless it holds; ``assert`` would not in an optimised interpreter.

    Raises:
        AssertionError: with the text.
    """
    if not holds:
        raise AssertionError(text)


def check_described(function: Callable[..., Any], *, given: int) -> None:
    """Check the docstring and the arguments that a spec string may give.

    Args:
        function: The entry.
        given: How many leading parameters are fieldmark's to give.

    Raises:
        AssertionError: naming what is missing.
    """
    documented = function.func if isinstance(function, partial) else function
    first = (inspect.getdoc(documented) or "").partition("\n")[0]
    require(
        len(first) > 10 and first.endswith("."),
        f"the first line of its docstring says what it is, as a sentence; it is {first!r}",
    )
    parameters = list(inspect.signature(function).parameters.values())
    require(len(parameters) >= given, f"it takes {len(parameters)} arguments, {given} are given")
    for parameter in parameters[given:]:
        star = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        require(not star, f"{parameter} takes anything, so a spec's arguments cannot be checked")
        require(
            parameter.annotation is not parameter.empty,
            f"{parameter.name} has no annotation, so a spec's value cannot be checked; "
            "int, float, bool and str are",
        )


@contextmanager
def untouched(what: str, *, torch_too: bool = True) -> Iterator[None]:
    """Make sure that the block advances no global generator.

    Raises:
        AssertionError: naming the generator.
    """
    before = _generators()
    yield
    after = _generators()
    for name in before:
        if name == "torch's" and not torch_too:
            continue
        require(before[name] == after[name], f"{what} advances {name} global generator")


def _generators() -> dict[str, object]:
    legacy: Any = np.random.get_state()  # noqa: NPY002 - it is the one that must not move
    return {
        "torch's": torch.random.get_rng_state().tolist(),
        "Python's": random.getstate(),
        "NumPy's": (legacy[1].tolist(), legacy[2:]),
    }
