"""The ImageNet weights that keras.applications publishes, as files in the cache.

They are checked against the published MD5, since no other checksum is published, and read like any
other Keras file: nothing in them is run (``keras.files``).

Source: addresses and checksums, from keras 3.15 (``applications``); those of ``resnet50_unpadded``,
whose files have the names of ResNet50's and other weights, from Keras 2.0.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from fieldmark.errors import ConfigError, WeightsError
from fieldmark.files.cache import cache_dir
from fieldmark.files.download import Download, fetch
from fieldmark.networks.keras_densenet import keras_densenet
from fieldmark.networks.keras_resnet import keras_resnet
from fieldmark.networks.keras_vgg import keras_vgg
from fieldmark.networks.resnet50_unpadded import resnet50_unpadded
from fieldmark.progress import OnProgress
from fieldmark.settings.spec import Spec, bind, parse

CLASSES = 1000
SIZE = 224
"""Side in pixels of the pictures that dense layers after the map were trained for."""

_KERAS = "https://storage.googleapis.com/tensorflow/keras-applications"
_CLASSIC = "https://github.com/fchollet/deep-learning-models/releases/download/v0.2"

NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "keras_resnet": keras_resnet,
    "keras_vgg": keras_vgg,
    "keras_densenet": keras_densenet,
    "resnet50_unpadded": resnet50_unpadded,
}
FILES: dict[str, tuple[str, str, str]] = {
    "resnet50": (
        f"{_KERAS}/resnet/resnet50",
        "2cb95161c43110f7111970584f804107",
        "4d473c1dd8becc155b73f8504c6f6626",
    ),
    "resnet101": (
        f"{_KERAS}/resnet/resnet101",
        "f1aeb4b969a6efcfb50fad2f0c20cfc5",
        "88cf7a10940856eca736dc7b7e228a21",
    ),
    "resnet152": (
        f"{_KERAS}/resnet/resnet152",
        "100835be76be38e30d865e96f2aaae62",
        "ee4c566cf9a93f14d82f913c2dc6dd0c",
    ),
    "resnet50v2": (
        f"{_KERAS}/resnet/resnet50v2",
        "3ef43a0b657b3be2300d5770ece849e0",
        "fac2f116257151a9d068a22e544a4917",
    ),
    "resnet101v2": (
        f"{_KERAS}/resnet/resnet101v2",
        "6343647c601c52e1368623803854d971",
        "c0ed64b8031c3730f411d2eb4eea35b5",
    ),
    "resnet152v2": (
        f"{_KERAS}/resnet/resnet152v2",
        "a49b44d1979771252814e80f8ec446f9",
        "ed17cf2e0169df9d443503ef94b23b33",
    ),
    "vgg16": (
        f"{_KERAS}/vgg16/vgg16",
        "64373286793e3c8b2b4e3219cbf3544b",
        "6d6bbae143d832006294945121d1f1fc",
    ),
    "vgg19": (
        f"{_KERAS}/vgg19/vgg19",
        "cbe5617147190e668d6c5d5026f83318",
        "253f8cb515780f3b799900260a226db6",
    ),
    "densenet121": (
        f"{_KERAS}/densenet/densenet121",
        "9d60b8095a5708f2dcce2bca79d332c7",
        "30ee3e1110167f948a6b9946edeeb738",
    ),
    "densenet169": (
        f"{_KERAS}/densenet/densenet169",
        "d699b8f76981ab1b30698df4c175e90b",
        "b8c4d4c20dd625c148057b9ff1c1176b",
    ),
    "densenet201": (
        f"{_KERAS}/densenet/densenet201",
        "1ceb130c1ea1b78c3bf6114dbdfd8807",
        "c13680b51ded0fb44dff2d8f86ac8bb1",
    ),
    "classic_resnet50": (
        f"{_CLASSIC}/resnet50",
        "a7b3fe01876f51b976af0dea6bc144eb",
        "a268eb855778b3df3c7506639542a6af",
    ),
}
"""Address without the name's ending; MD5 of the file with and of the file without dense layers."""


def published(model: str | Spec, *, num_classes: int, size: int = 0) -> Download:
    """Return the file for a network: with the dense layers if they are of use, else without.

    They are of use if the network has ImageNet's outputs, or hidden layers before its head (VGG).

    Raises:
        ConfigError: if there is no such network.
        WeightsError: if none are published for it.
    """
    spec = parse(model, what="model")
    if spec.name not in NETWORKS:
        raise WeightsError(
            f"no ImageNet weights of {spec.name} are published by keras.applications; those of "
            f"{', '.join(NETWORKS)} are. For timm/NAME there is --weights hub"
        )
    bound = bind(spec, NETWORKS[spec.name], what="model", given=1)
    bound.apply_defaults()
    arguments = bound.arguments
    name = {
        "keras_resnet": "resnet{depth}{v}",
        "keras_vgg": "vgg{depth}",
        "keras_densenet": "densenet{depth}",
        "resnet50_unpadded": "classic_resnet50",
    }[spec.name].format(**arguments, v="v2" if arguments.get("version") == 2 else "")
    if name not in FILES:
        raise ConfigError(f"no network {str(spec)!r}; keras.applications has {', '.join(FILES)}")
    dense = arguments.get("top") == "dense"
    side = size or arguments.get("size", SIZE)
    if dense and side != SIZE:
        raise WeightsError(
            f"the dense layers of {name} were trained on {SIZE} px, but size is {side}; leave size "
            "out, or take top='mean'"
        )
    outputs = arguments.get("outputs") or num_classes
    with_top = dense or (outputs == CLASSES and arguments.get("top") != "mean")
    address, *sums = FILES[name]
    ending = f"_weights_tf_dim_ordering_tf_kernels{'' if with_top else '_notop'}.h5"
    return Download(
        name=name + ending,
        url=address + ending,
        sha256="",
        size_bytes=0,
        md5=sums[0 if with_top else 1],
    )


def imagenet_file(
    model: str | Spec,
    *,
    num_classes: int,
    size: int = 0,
    cache: Path | None = None,
    timeout_seconds: float = 15,
    progress: OnProgress | None = None,
) -> Path:
    """Download a network's ImageNet weights into the cache, unless they are there; return the file.

    Args:
        model: The network's spec.
        num_classes: Classes it is to be trained for.
        size: Height and width of its input; 0 is the network's own.
        cache: Folder for the file, in place of the usual one.
        timeout_seconds: Longest wait for the host.
        progress: Called with the bytes so far and in all.

    Raises:
        ConfigError: if there is no such network.
        WeightsError: if no weights are published for it.
        ResourceError: if they cannot be downloaded, or are not what was published.
    """
    return fetch(
        published(model, num_classes=num_classes, size=size),
        cache=cache,
        timeout_seconds=timeout_seconds,
        progress=progress,
    )


def cached_file(model: str | Spec, *, num_classes: int, size: int = 0) -> Path | None:
    """Return the file of a network's ImageNet weights, if it is in the cache and whole.

    Raises:
        ResourceError: if it is there but damaged.
    """
    if not is_published(model):
        return None
    download = published(model, num_classes=num_classes, size=size)
    return fetch(download) if (cache_dir() / download.name).is_file() else None


def is_published(model: str | Spec) -> bool:
    """Whether ImageNet weights are published for the network."""
    return parse(model, what="model").name in NETWORKS
