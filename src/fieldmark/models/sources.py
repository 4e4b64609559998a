"""Where a network's weights come from, decided once: nowhere, a package, the hub, or a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fieldmark.errors import WeightsError
from fieldmark.models import imagenet
from fieldmark.models import timm as timm_models
from fieldmark.settings.spec import Spec
from fieldmark.settings.weights import WeightsFrom


@dataclass(frozen=True)
class WeightsSource:
    """The meaning of the setting ``weights`` for one network on this machine."""

    kind: str
    """Kind of source: none, package, hub, file or imagenet."""
    file: Path | None = None
    """Path of the weights: of a package, a file, or Keras's ImageNet weights."""
    words: str = "none"
    """Text by which the run names the source."""
    notes: tuple[str, ...] = ()
    """Notes for the user."""
    warnings: tuple[str, ...] = ()
    """Warnings for the user."""


NONE = WeightsSource("none")


def decide(spec: Spec, asked: WeightsFrom, *, num_classes: int, size: int) -> WeightsSource:
    """Decide where a network's weights come from; ``imagenet`` downloads Keras's weights here.

    Raises:
        WeightsError: if none are published.
        ResourceError: if the weights cannot be downloaded.
    """
    if asked.file is not None:
        return WeightsSource("file", asked.file, f"file: {asked.file.name}")
    if asked.kind == "imagenet":
        return _keras(imagenet.imagenet_file(spec, num_classes=num_classes, size=size))
    if spec.name.startswith("timm/"):
        return _of_timm(spec.name.removeprefix("timm/"), asked)
    if asked.kind == "hub":
        raise WeightsError(
            f"no weights of {spec.name} are on the hub; use --weights none, --weights FILE or, for "
            "networks of keras.applications, --weights imagenet"
        )
    if asked.kind == "none" or not imagenet.is_published(spec):
        return NONE
    file = imagenet.cached_file(spec, num_classes=num_classes, size=size)
    if file is not None:
        return _keras(file)
    note = (
        f"no weights of {spec} are on this machine, so it starts from random ones; "
        "--weights imagenet downloads them"
    )
    return WeightsSource("none", warnings=(note,))


def _keras(file: Path) -> WeightsSource:
    return WeightsSource("imagenet", file, f"imagenet: {file.name}")


def _of_timm(name: str, asked: WeightsFrom) -> WeightsSource:
    base, _, tag = name.partition(".")
    if asked.kind == "none":
        note = f"--weights none: the weights {tag!r} that the name asks for are not loaded"
        return WeightsSource("none", notes=(note,) if tag else ())
    packaged = timm_models.packaged_file(base)
    if asked.kind == "hub" or (not (packaged and not tag) and _may_use_hub(name, tag)):
        return WeightsSource("hub", words=f"hub: {name}")
    if packaged is not None:
        return WeightsSource("package", packaged, f"package: {timm_models.PACKAGED[base]}")
    note = (
        f"no weights of {name} are on this machine, so it starts from random ones; "
        "--weights hub downloads them"
    )
    return WeightsSource("none", warnings=(note,))


def _may_use_hub(name: str, tag: str) -> bool:
    """Whether ``auto`` may use the hub: if a tag names published weights, or they are cached."""
    return bool(tag) or timm_models.in_hub_cache(name)


def is_pretrained(spec: Spec, asked: WeightsFrom) -> bool:
    """Whether a network would start from weights, judged by what is on this machine."""
    if asked.kind == "auto":
        return (
            spec.name.startswith("timm/")
            and _of_timm(spec.name.removeprefix("timm/"), asked).kind != "none"
        )
    return asked.kind != "none"
