"""Recipes: functions that return a TrainConfig. The table is the list of them.

A recipe is given facts about the pictures (how many, how large), the device and the pretrained
weights, and nothing else. Flags override its settings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fieldmark.settings.config import Facts, TrainConfig
from fieldmark.settings.recipes.candidates import TINY_SIDE
from fieldmark.settings.recipes.fast_cifar10 import fast_cifar10
from fieldmark.settings.recipes.photos import finetune, probe, scratch
from fieldmark.settings.recipes.tiny import tiny, tiny_fast, tiny_objects
from fieldmark.settings.recipes.tutorials import (
    FOUR_NETS,
    FOUR_NETS_FIXED,
    birds,
    birds_fixed,
    cifar10_four_nets,
    cifar10_four_nets_fixed,
    cifar10_resnet20,
    cifar10_resnet20_fixed,
    handwriting,
    handwriting_fixed,
    sneakers,
    sneakers_fixed,
)
from fieldmark.settings.recipes.tutorials_fast import (
    birds_fast,
    cifar10_four_nets_fast,
    cifar10_resnet20_fast,
    handwriting_fast,
    sneakers_fast,
)
from fieldmark.settings.spec import Spec, lookup, parse

Recipe = Callable[[Facts], TrainConfig]

RECIPES: dict[str, Recipe] = {
    "tiny": tiny,
    "tiny_objects": tiny_objects,
    "tiny_fast": tiny_fast,
    "probe": probe,
    "finetune": finetune,
    "scratch": scratch,
    "handwriting": handwriting,
    "handwriting_fixed": handwriting_fixed,
    "handwriting_fast": handwriting_fast,
    "birds": birds,
    "birds_fixed": birds_fixed,
    "birds_fast": birds_fast,
    "sneakers": sneakers,
    "sneakers_fixed": sneakers_fixed,
    "sneakers_fast": sneakers_fast,
    "cifar10-resnet20": cifar10_resnet20,
    "cifar10-resnet20_fixed": cifar10_resnet20_fixed,
    "cifar10-resnet20_fast": cifar10_resnet20_fast,
    "fast-cifar10": fast_cifar10,
    "cifar10-four-nets": cifar10_four_nets,
    "cifar10-four-nets_fixed": cifar10_four_nets_fixed,
    "cifar10-four-nets_fast": cifar10_four_nets_fast,
}

COMPARED: dict[str, tuple[str, ...]] = {
    "cifar10-four-nets": FOUR_NETS,
    "cifar10-four-nets_fixed": FOUR_NETS_FIXED,
    "cifar10-four-nets_fast": FOUR_NETS,
}
"""The networks that ``compare`` trains with a recipe if none are named."""


def find(name: str) -> str:
    """The recipe's name as the table has it; hyphens and underscores are the same.

    Raises:
        ConfigError: if there is none; names the nearest.
    """
    spec = parse(name, what="recipe")
    for known in RECIPES:
        if known.replace("-", "_") == spec.name.replace("-", "_"):
            return known
    lookup(spec, RECIPES, what="recipe")
    return spec.name


def get(name: str) -> Recipe:
    """The recipe of a name that :func:`find` gave: ours, or that of an installed plugin."""
    return lookup(Spec(name), RECIPES, what="recipe")


def listing(pattern: str = "") -> dict[str, str]:
    """Recipes whose name contains the pattern, with a line about each; plugins are imported."""
    from fieldmark import plugins

    added = {name: each for name, each in plugins.entries("recipe").items() if name not in RECIPES}
    return {
        name: (function.__doc__ or "").partition("\n")[0]
        for name, function in {**RECIPES, **added}.items()
        if pattern in name
    }


FEW = 2_000
"""With fewer training pictures than this only the head of a pretrained network is trained."""


@dataclass(frozen=True)
class Choice:
    """A recipe, and why it was chosen."""

    name: str
    reason: str


def choose(facts: Facts) -> Choice:
    """Choose the recipe when the user named none."""
    side = f"pictures are {facts.data.median_side} px (median of the shorter side)"
    if facts.pretrained:
        few = facts.data.num_train < FEW
        number = f"there are {facts.data.num_train} to train on"
        return Choice(
            "probe" if few else "finetune",
            f"{side}, {number} and pretrained weights of {facts.pretrained} are available",
        )
    if facts.data.median_side <= TINY_SIDE:
        return Choice("tiny", f"{side}, which a small network learns from scratch")
    return Choice("scratch", f"{side} and there are no pretrained weights to start from")
