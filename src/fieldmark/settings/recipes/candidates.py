"""What ``--recipe auto`` tries, cheapest first; which one is best is measured (``jobs/choice.py``).

A probe at several sizes, because no rule says at which size a network's features tell these
pictures apart best: on ten classes of 32 px photographs 128 px were as good as 288 px at a fifth of
the cost, on 400 flowers 288 px were better. A network from scratch where pictures are so small that
it learns them in a minute or two; whether it beats a probe depends on what is in them (characters:
yes; things: no), not on how many there are (docs/log.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fieldmark.settings.config import Facts

TINY_SIDE = 96
"""Pictures up to this many pixels are tried from scratch: a small network learns them quickly."""
SMALLEST = 12
"""Pictures up to this many pixels are too small for the network of ``tiny_fast``."""
SIZES = (128, 192, 288)
"""Sizes that features are computed at, in pixels."""
LARGE_SIZES = (224, 288)
"""The same for pictures that are not tiny: a smaller input leaves out what is in them."""


@dataclass(frozen=True)
class Candidate:
    """A recipe with some settings, to be measured."""

    name: str
    recipe: str
    settings: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    family: str = ""
    """Candidates of one family differ in size only; a larger one is tried while they get better."""

    @property
    def is_probe(self) -> bool:
        """Whether features of the pictures decide it, without training."""
        return self.recipe == "probe"


def candidates(facts: Facts, networks: Sequence[str]) -> tuple[Candidate, ...]:
    """List what is worth trying for these pictures.

    Args:
        facts: The pictures, and the device.
        networks: Spec strings of networks whose pretrained weights are on this machine.
    """
    tiny = facts.data.median_side <= TINY_SIDE
    probes = [
        Candidate(
            f"probe of {network}, {size} px", "probe", {"model": network, "size": size}, network
        )
        for network in networks
        for size in (SIZES if tiny else LARGE_SIZES)
    ]
    small = "tiny_fast" if facts.data.median_side > SMALLEST else "tiny"
    scratch = [Candidate(f"{small}, from scratch", small)] if tiny else []
    return (*probes, *scratch)
