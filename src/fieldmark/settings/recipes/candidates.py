"""What ``--recipe auto`` tries, cheapest first; which one is best is measured (``jobs/choice.py``).

A probe by every network whose weights are here. Of tiny pictures at several sizes, because no rule
says at which size a network's features tell them apart best; photographs are probed at 288 px,
which was better than their networks' own 224 px wherever it was measured (docs/log.md). A network
from scratch where pictures are so small that it learns them in a minute or two: whether it beats a
probe depends on what is in them (characters: yes; things: no), not on how many there are. Pictures
of 12 px and less have nothing that a network for photographs could see.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fieldmark.settings.config import Facts

TINY_SIDE = 96
"""Pictures up to this many pixels are tried from scratch: a small network learns them quickly."""
SMALLEST = 12
"""Pictures up to this many pixels are not probed, and too small for ``tiny_fast``."""
SIZES = (128, 192, 288)
"""Sizes that features are computed at, in pixels."""
FINE_SIZE = 128
"""Size that tiny pictures are fine-tuned at: larger costs more than it gains (docs/log.md)."""
PHOTO_SIZE = 224
"""Size that photographs are fine-tuned at."""


@dataclass(frozen=True)
class Candidate:
    """A recipe with some settings, to be measured."""

    name: str
    recipe: str
    settings: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    family: str = ""
    """The network, where it is pretrained; a larger size of one is tried while they get better."""

    @property
    def is_probe(self) -> bool:
        """Whether features of the pictures decide it, without training."""
        return self.recipe == "probe"


def candidates(
    facts: Facts, networks: Sequence[str], *, timed: bool = False
) -> tuple[Candidate, ...]:
    """List what is worth trying for these pictures; one candidate or none needs no trial.

    Args:
        facts: The pictures, and the device.
        networks: Spec strings of networks whose pretrained weights are on this machine.
        timed: Whether the time is given: then the sizes of photographs are tried, too, the small
            ones first, so that there is a model soon, and one that the time suffices for.
    """
    side = facts.data.median_side
    if side <= SMALLEST:
        return (Candidate("tiny, from scratch", "tiny"),)
    if side > TINY_SIDE and not timed:
        return tuple(Candidate(f"probe of {n}", "probe", {"model": n}, n) for n in networks)
    probes = [
        Candidate(
            f"probe of {network}, {size} px", "probe", {"model": network, "size": size}, network
        )
        for network in networks
        for size in SIZES
    ]
    if side > TINY_SIDE:
        return tuple(probes)
    return (*probes, Candidate("tiny_fast, from scratch", "tiny_fast"))


def fine_tuned(probe: Candidate, facts: Facts) -> Candidate:
    """The network of a probe, trained on from there: what is tried after the probes."""
    size = FINE_SIZE if facts.data.median_side <= TINY_SIDE else PHOTO_SIZE
    settings: dict[str, str | int | float | bool] = {"model": probe.family, "size": size}
    return Candidate(f"fine-tuned {probe.family}, {size} px", "finetune", settings, probe.family)


def with_epochs(candidate: Candidate, epochs: int) -> Candidate:
    """The same with a number of epochs."""
    name = f"{candidate.name.partition(', epochs ')[0]}, epochs {epochs}"
    return dataclasses.replace(
        candidate, name=name, settings={**candidate.settings, "epochs": epochs}
    )
