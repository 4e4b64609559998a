"""What ``--recipe auto`` tries, cheapest first; which one is best is measured (``jobs/choice.py``).

A probe by every network whose weights are here. Of tiny pictures at several sizes, because no rule
says at which size a network's features tell them apart best; photographs are probed at 288 px,
which was better than their networks' own 224 px wherever it was measured (docs/log.md). A network
from scratch where pictures are so small that it learns them in a minute or two: whether it beats a
probe depends on what is in them (characters: yes; things: no), not on how many there are. Pictures
of 12 px and less have nothing that a network for photographs could see. Then the network of the
best probe is fine-tuned.

Where the hub may be asked (``--weights hub`` without ``--model``), its short list (:data:`HUB`) is
tried as well, one network after the other while there is time.
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
HEAD_STAGES = 3
"""Stages that the head of a probe sees."""
PHOTO_SIZE = 224
"""Size that photographs are fine-tuned at."""


HUB = {
    "cuda": (
        "timm/convnext_tiny.in12k_ft_in1k",
        "timm/tf_efficientnetv2_s.in21k_ft_in1k",
        "timm/resnet50.a1_in1k",
    ),
    "cpu": (
        "timm/mobilenetv4_conv_small.e2400_r224_in1k",
        "timm/convnext_nano.in12k_ft_in1k",
        "timm/efficientnet_b0.ra4_e3600_r224_in1k",
    ),
}
"""Strong networks for a graphics card, and for a processor, in the order in which they are tried.

Convolutional ones, which beat attention where labelled pictures are few (arXiv 2406.05612:
ConvNeXt, EfficientNetV2), trained on 12,000 or 21,000 classes where such weights are free to use:
more classes make features that tell more apart. For a processor they are of 0.2 to 2.5 GFLOP a
picture, the fastest first, so that there is a model soon. Weights that exclude commercial use are
not listed.
"""


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


def with_stages(network: str) -> str:
    """A network of timm whose head sees its last stages (``models/head_stages.py``); others as is.

    From the same pictures a probe of them knows more: five-fold cross-validation, n = 600 flowers
    0.880 to 0.889, n = 1,000 of CIFAR-10 0.718 to 0.728 (docs/log.md).
    """
    if not network.startswith("timm/") or "(" in network:
        return network
    return f"{network}(head_stages={HEAD_STAGES})"


def candidates(
    facts: Facts, networks: Sequence[str], *, timed: bool = False, hub: bool = False
) -> tuple[Candidate, ...]:
    """List what is worth trying for these pictures; one candidate or none needs no trial.

    Args:
        facts: The pictures, and the device.
        networks: Spec strings of networks whose pretrained weights are on this machine.
        timed: Whether the time is given: then the sizes of photographs are tried, too, the small
            ones first, so that there is a model soon, and one that the time suffices for.
        hub: Whether weights may be downloaded.
    """
    side = facts.data.median_side
    sources = {name: {"model": with_stages(name)} for name in networks}
    for name in HUB["cuda" if facts.device == "cuda" else "cpu"] if hub else ():
        sources.setdefault(name, {"model": with_stages(name), "weights": "hub"})
    if side <= SMALLEST:
        return (Candidate("tiny, from scratch", "tiny"),)
    if side > TINY_SIDE and not timed:
        return tuple(Candidate(f"probe of {n}", "probe", s, n) for n, s in sources.items())
    probes = [
        Candidate(f"probe of {network}, {size} px", "probe", {**source, "size": size}, network)
        for network, source in sources.items()
        for size in SIZES
    ]
    if side > TINY_SIDE:
        return tuple(probes)
    return (*probes, Candidate("tiny_fast, from scratch", "tiny_fast"))


def fine_tuned(probe: Candidate, facts: Facts) -> Candidate:
    """The network of a probe, trained on from there: what is tried after the probes."""
    size = FINE_SIZE if facts.data.median_side <= TINY_SIDE else PHOTO_SIZE
    settings = {**probe.settings, "size": size}
    return Candidate(f"fine-tuned {probe.family}, {size} px", "finetune", settings, probe.family)


def with_epochs(candidate: Candidate, epochs: int) -> Candidate:
    """The same with a number of epochs."""
    name = f"{candidate.name.partition(', epochs ')[0]}, epochs {epochs}"
    return dataclasses.replace(
        candidate, name=name, settings={**candidate.settings, "epochs": epochs}
    )
