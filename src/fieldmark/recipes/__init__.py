"""Recipes: functions that return a TrainConfig. The table is the list of them.

A recipe knows the data's facts (how many pictures, how large) and nothing else; what a user sets by
a flag goes over what the recipe says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fieldmark.config import Facts, TrainConfig
from fieldmark.recipes.photos import finetune, scratch
from fieldmark.recipes.tiny import tiny, tiny_objects

Recipe = Callable[[Facts], TrainConfig]

RECIPES: dict[str, Recipe] = {
    "tiny": tiny,
    "tiny_objects": tiny_objects,
    "finetune": finetune,
    "scratch": scratch,
}

TINY_SIDE = 96
"""Pictures up to this many pixels are trained on from scratch: enlarging them to a photo network's
224 px costs twelve times the arithmetic and brings nothing into the picture."""


@dataclass(frozen=True)
class Choice:
    """A recipe with the reason for it."""

    name: str
    reason: str


def choose(facts: Facts) -> Choice:
    """Pick the recipe when the user named none."""
    side = f"pictures are {facts.data.median_side} px (median of the shorter side)"
    if facts.pretrained:
        return Choice("finetune", f"{side} and the weights of {facts.pretrained} are at hand")
    if facts.data.median_side <= TINY_SIDE:
        return Choice("tiny", f"{side}, which a small network learns from scratch")
    return Choice("scratch", f"{side} and there are no pretrained weights to start from")
