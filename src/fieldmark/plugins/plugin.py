"""What a plugin is: one mapping for each table, from names to what the table holds."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

Entries = Mapping[str, Any]
Functions = Mapping[str, Callable[..., Any]]

KINDS = {
    "networks": "network",
    "augmentations": "augmentation",
    "mixes": "mix",
    "recipes": "recipe",
    "schedules": "schedule",
    "optimizers": "optimizer",
    "losses": "loss",
    "callbacks": "callback",
    "metrics": "metric",
    "readers": "reader",
    "exporters": "exporter",
}
"""A plugin's mappings, and the word for one of their entries."""

_KIND_OF = {
    "model": "networks",
    "augment": "augmentations",
    **{one: kind for kind, one in KINDS.items()},
}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")


def kind_of(what: str) -> str:
    """The mapping that a setting's word means: ``augment`` is ``augmentations``; else empty."""
    return _KIND_OF.get(what, "")


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """Names that a package adds; each value is what the built-in table of the kind holds."""

    networks: Entries = field(default_factory=dict)
    """``models.Family``; or a function from the number of classes to a network for 224 px."""
    augmentations: Functions = field(default_factory=dict)
    """Functions from a spec's arguments to an ``augment.ops`` Crop, Warp or Change."""
    mixes: Functions = field(default_factory=dict)
    """Functions from a spec's arguments to an ``augment.mix`` Mixer."""
    recipes: Functions = field(default_factory=dict)
    """Functions from ``settings.config`` Facts to a TrainConfig."""
    schedules: Functions = field(default_factory=dict)
    """Functions from ``fit.schedules`` Length and arguments to a function of the step."""
    optimizers: Functions = field(default_factory=dict)
    """Functions from parameter groups and arguments to a torch optimizer."""
    losses: Functions = field(default_factory=dict)
    """Functions from logits [B, K], targets [B, K] and arguments to losses [B]."""
    callbacks: Functions = field(default_factory=dict)
    """Functions from the monitor's name and arguments to a ``fit.callbacks`` Callback."""
    metrics: Functions = field(default_factory=dict)
    """Functions from probs [N, K], labels [N] and arguments to a number."""
    readers: Functions = field(default_factory=dict)
    """Functions from the text after ``NAME:`` to a ``data.dataset`` Found."""
    exporters: Functions = field(default_factory=dict)
    """Functions from a run's ``runs.model`` Model and an empty folder, which they fill, to one
    that gives probabilities [N, K] of decoded pictures by what is in the folder."""

    def __post_init__(self) -> None:
        for each in fields(self):
            table = getattr(self, each.name)
            if not isinstance(table, Mapping):
                raise TypeError(f"{each.name} is {table!r}; a mapping of names is accepted")
            for name in table:
                if not isinstance(name, str) or not _NAME.fullmatch(name):
                    raise ValueError(
                        f"{each.name} has the name {name!r}; letters, digits, _ and - are accepted"
                    )

    def table(self, kind: str) -> Entries:
        """The mapping of a kind, a key of :data:`KINDS`."""
        found: Entries = getattr(self, kind)
        return found
