"""Networks by name: ``MODELS`` lists our own; ``timm/NAME`` is any of timm's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from fieldmark import plugins
from fieldmark.errors import ConfigError, did_you_mean
from fieldmark.keras import state as keras_state
from fieldmark.models import head_stages, sources
from fieldmark.models import timm as timm_models
from fieldmark.models.light_timm import library
from fieldmark.models.outputs import check_outputs, head_of
from fieldmark.models.sources import WeightsSource
from fieldmark.models.weights import (
    HeadClasses,
    load_weights,
    read_weights,
    weights_file,
    zero_head,
)
from fieldmark.networks.cifar_googlenet import cifar_googlenet
from fieldmark.networks.cifar_resnet import cifar_resnet
from fieldmark.networks.cifar_resnet18 import cifar_resnet18
from fieldmark.networks.cifar_vgg import cifar_vgg16, cifar_vgg16_big
from fieldmark.networks.keras_densenet import keras_densenet
from fieldmark.networks.keras_resnet import keras_resnet
from fieldmark.networks.keras_vgg import keras_vgg
from fieldmark.networks.resnet50_unpadded import resnet50_unpadded
from fieldmark.networks.small_cnn import small_cnn
from fieldmark.networks.sneaker_cnn import sneaker_cnn
from fieldmark.networks.whitened_cnn import whitened_cnn
from fieldmark.pictures.inputs import NORMALIZATIONS, InputSpec
from fieldmark.settings.spec import Spec, bind, call, parse, unknown
from fieldmark.settings.weights import WeightsFrom


@dataclass(frozen=True)
class Family:
    """An entry of ``MODELS``."""

    build: Callable[..., nn.Module]
    """Function that builds the network from the number of classes and the spec's arguments."""
    input: InputSpec
    head: str = "head"
    """Prefix of the head's parameters; empty for the last linear layer's."""
    examples: tuple[tuple[str, int], ...] = ()
    """Specs to list with their parameters, and the number of classes to count them with."""
    variants: tuple[tuple[str, object, InputSpec], ...] = ()
    """Where an argument decides the input: its name, its value, and the input for that value."""


CIFAR_INPUT = InputSpec(
    size=32,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    interpolation="bilinear",
)


def as_family(entry: Family | Callable[..., nn.Module]) -> Family:
    """A plugin's or caller's network; a bare function is one for 224 px, scaled to -1 to 1."""
    return entry if isinstance(entry, Family) else Family(entry, InputSpec(size=224), head="")


def _photos(normalize: str) -> InputSpec:
    """Input of those networks for photographs that come from Keras."""
    mean, std = NORMALIZATIONS[normalize]
    return InputSpec(size=224, mean=mean, std=std, interpolation="bilinear")


MODELS: dict[str, Family] = {
    "small_cnn": Family(
        small_cnn, InputSpec(size=28, interpolation="bilinear"), examples=(("small_cnn", 10),)
    ),
    "sneaker_cnn": Family(sneaker_cnn, _photos("scale"), examples=(("sneaker_cnn", 2),)),
    "cifar_resnet": Family(
        cifar_resnet,
        CIFAR_INPUT,
        examples=(("cifar_resnet", 10), ("cifar_resnet(depth=20, version=2)", 10)),
    ),
    "cifar_resnet18": Family(cifar_resnet18, CIFAR_INPUT, examples=(("cifar_resnet18", 10),)),
    "cifar_vgg16": Family(cifar_vgg16, CIFAR_INPUT, examples=(("cifar_vgg16", 10),)),
    "cifar_vgg16_big": Family(cifar_vgg16_big, CIFAR_INPUT, examples=(("cifar_vgg16_big", 10),)),
    "cifar_googlenet": Family(cifar_googlenet, CIFAR_INPUT, examples=(("cifar_googlenet", 10),)),
    "whitened_cnn": Family(whitened_cnn, CIFAR_INPUT, examples=(("whitened_cnn", 10),)),
    "resnet50_unpadded": Family(
        resnet50_unpadded, _photos("caffe"), examples=(("resnet50_unpadded", 1000),)
    ),
    "keras_resnet": Family(
        keras_resnet,
        _photos("caffe"),
        variants=(("version", 2, _photos("tf")),),
        examples=(
            ("keras_resnet", 1000),
            ("keras_resnet(depth=101)", 1000),
            ("keras_resnet(depth=152)", 1000),
            ("keras_resnet(depth=50, version=2)", 1000),
            ("keras_resnet(depth=101, version=2)", 1000),
            ("keras_resnet(depth=152, version=2)", 1000),
            ("keras_resnet(depth=152, version=2)", 800),
        ),
    ),
    "keras_vgg": Family(
        keras_vgg,
        _photos("caffe"),
        examples=(
            ("keras_vgg", 1000),
            ("keras_vgg(depth=19)", 1000),
            ("keras_vgg(top='mean')", 1000),
        ),
    ),
    "keras_densenet": Family(
        keras_densenet,
        _photos("torch"),
        examples=(
            ("keras_densenet", 1000),
            ("keras_densenet(depth=169)", 1000),
            ("keras_densenet(depth=201)", 1000),
        ),
    ),
}


@dataclass(frozen=True)
class Network:
    """A network with all that is needed to use it."""

    module: nn.Module
    spec: str
    """The spec string that builds it again."""
    input: InputSpec
    head: str
    weights: str
    """Text that says where its weights came from: a package, the hub, a file's name, or none."""
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def num_params(self) -> int:
        """Parameters, trainable or not, without running statistics."""
        return sum(p.numel() for p in self.module.parameters())


def create(
    model: str | Spec,
    *,
    num_classes: int,
    weights: str | WeightsFrom = "auto",
    size: int = 0,
    resize: str = "auto",
    interpolation: str = "auto",
    normalize: str = "auto",
    classes: HeadClasses | None = None,
) -> Network:
    """Build a network for these classes, with weights.

    Args:
        model: A name of ``MODELS`` with arguments, or ``timm/NAME``.
        num_classes: Classes.
        weights: The setting: ``auto`` (those on this machine), ``hub``, ``imagenet``, ``none``, or
            a file (Keras's, too).
        size: Input height and width; 0 is the network's own.
        resize: How pictures are resized; ``auto`` is the network's own.
        interpolation: How they are resampled; ``auto`` is the network's own.
        normalize: A name of ``inputs.NORMALIZATIONS``; ``auto`` is the network's own.
        classes: Their names, and those that the weights' head is for.

    Raises:
        ConfigError: if there is no such network.
        WeightsError: if the weights cannot be read or do not fit.
        ResourceError: if weights must be downloaded and cannot.
    """
    spec, asked = parse(model, what="model"), WeightsFrom.read(weights)
    if spec.name.startswith("timm/"):
        source = sources.decide(spec, asked, num_classes=num_classes, size=size)
        network = _timm_network(spec, source, num_classes=num_classes, size=size, classes=classes)
    else:
        sizes = {"num_classes": num_classes, "size": size}
        network = _own_network(spec, asked, **sizes, normalize=normalize, classes=classes)
    changes: dict[str, object] = {}
    if size:
        changes["size"] = size
    if size > network.input.size:
        changes["crop"] = 1.0  # larger than the weights were trained on: no margin left to cut off
    if resize != "auto":
        changes["resize"] = resize
    if interpolation != "auto":
        changes["interpolation"] = interpolation
    wanted = dataclasses.replace(network.input, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(network, input=_scaled(wanted, normalize))


def check(model: str | Spec) -> None:
    """Make sure that there is such a network, without building it.

    Raises:
        ConfigError: naming the nearest.
    """
    spec = parse(model, what="model")
    if spec.name.startswith("timm/"):
        timm_models.check_name(spec.name.removeprefix("timm/"))
    else:
        bind(spec, family(spec).build, what="model", given=1)


def exists(spec_text: str) -> bool:
    """Whether this is a network's spec, and not part of a name."""
    try:
        check(spec_text)
    except ConfigError:
        return False
    return True


def is_pretrained(model: str | Spec, weights: str | WeightsFrom) -> bool:
    """Whether :func:`create` would load weights, judged by what is on this machine."""
    return sources.is_pretrained(parse(model, what="model"), WeightsFrom.read(weights))


PREFERRED = {
    "cuda": ("timm/convnext_tiny.in12k_ft_in1k", "timm/resnet50.a1_in1k", "timm/resnet18.a1_in1k"),
    "cpu": ("timm/mobilenetv4_conv_small.e2400_r224_in1k", "timm/resnet18.a1_in1k"),
}
"""Networks for photographs, best first; the first whose weights are on this machine is chosen."""


def local_pretrained(device: str) -> str:
    """Return the best of them whose weights are on this machine; empty if there is none."""
    lite = "timm/" + timm_models.LITE0
    for name in PREFERRED["cuda" if device == "cuda" else "cpu"]:
        if timm_models.in_hub_cache(name.removeprefix("timm/")):
            return name
    return lite if is_pretrained(lite, "auto") else ""


def all_pretrained() -> tuple[str, ...]:
    """Return every network for photographs whose weights are on this machine, best first."""
    listed = dict.fromkeys(name for names in PREFERRED.values() for name in names)
    cached = [name for name in listed if timm_models.in_hub_cache(name.removeprefix("timm/"))]
    packaged = ["timm/" + name for name in timm_models.PACKAGED]
    return (*cached, *(name for name in packaged if is_pretrained(name, "auto")))


def family(spec: Spec) -> Family:
    """The network's family: ours, or that of an installed plugin.

    Raises:
        ConfigError: naming the nearest.
    """
    ours = MODELS.get(spec.name)
    if ours is not None:
        return ours
    found = plugins.find("model", spec.name, built_in=MODELS)
    if found is not None:
        return as_family(found)
    near = "" if plugins.is_handed(spec.name) else _timm_hint(spec.name)
    if near:
        raise ConfigError(f"no model {spec.name!r}{near} ({_LISTED})")
    names = [*MODELS, *plugins.names("model")]
    raise ConfigError(unknown(spec.name, names, what="model", known=_LISTED))


_LISTED = "`fieldmark models` lists our own; timm/NAME is any of timm's"


def families() -> dict[str, Family]:
    """Our own networks and those of installed plugins, which are imported for it."""
    added = {name: as_family(entry) for name, entry in plugins.entries("model").items()}
    return {**MODELS, **{name: found for name, found in added.items() if name not in MODELS}}


def _own_network(
    spec: Spec,
    asked: WeightsFrom,
    *,
    num_classes: int,
    size: int,
    normalize: str,
    classes: HeadClasses | None,
) -> Network:
    found = family(spec)
    source = sources.decide(spec, asked, num_classes=num_classes, size=size)
    spec, size = _sized(spec, found, size)
    module = call(spec, found.build, num_classes, what="model")
    head = found.head or head_of(module)
    if spec.name not in MODELS:
        check_outputs(module, spec=str(spec), num_classes=num_classes, size=size)
    input_spec = dataclasses.replace(_input(spec, found), size=size)
    notes = source.notes
    if source.file is not None:
        wanted = _scaled(input_spec, normalize)
        loaded = _load_file(module, source, head, wanted, classes)
        notes = (*notes, *loaded)
    return Network(
        module, str(spec), input_spec, head, source.words, notes, warnings=source.warnings
    )


def _scaled(spec: InputSpec, normalize: str) -> InputSpec:
    """Return the input with a named scaling of pixels; ``auto`` leaves it unchanged."""
    if normalize == "auto":
        return spec
    mean, std = NORMALIZATIONS[normalize]
    return dataclasses.replace(spec, mean=mean, std=std)


def _input(spec: Spec, family: Family) -> InputSpec:
    """Return the input of this member of the family."""
    bound = bind(spec, family.build, what="model", given=1)
    bound.apply_defaults()
    for name, value, found in family.variants:
        if bound.arguments[name] == value:
            return found
    return family.input


def _sized(spec: Spec, family: Family, size: int) -> tuple[Spec, int]:
    """Put the size into the spec of a network that is built for one: the caller's or its own."""
    bound = bind(spec, family.build, what="model", given=1)
    bound.apply_defaults()
    own = bound.arguments.get("size")
    centre = bound.arguments.get("centre")
    if own is None:
        size = size or family.input.size
        if centre and centre > 0 and centre != size:
            raise ConfigError(f"model {str(spec)!r} centres {centre} px, but the size is {size}")
        return spec, size
    if not size or size == own:
        return spec, own
    if "size" in dict(spec.kwargs) or spec.args:
        raise ConfigError(f"model {str(spec)!r} is built for {own} px, but size is {size}")
    return dataclasses.replace(spec, kwargs=(*spec.kwargs, ("size", size))), size


def _timm_hint(name: str) -> str:
    known = library().is_model(name.partition(".")[0])
    return f"; did you mean 'timm/{name}'?" if known else ""


def _timm_network(
    spec: Spec,
    source: WeightsSource,
    *,
    num_classes: int,
    size: int,
    classes: HeadClasses | None,
) -> Network:
    notes = source.notes
    if source.kind == "hub":
        module = timm_models.pretrained_from_hub(spec, num_classes=num_classes, size=size)
        published = timm_models.published_classes(module)
        if num_classes != published or head_stages.ARGUMENT in dict(spec.kwargs):
            zero_head(module, timm_models.head_name(module))
    else:
        module = timm_models.create(spec, num_classes=num_classes, size=size)
    head, wanted = timm_models.head_name(module), timm_models.input_spec(module)
    if source.kind == "package" and source.file is not None:
        state = timm_models.from_lite_package(read_weights(source.file))
        notes = (*notes, *load_weights(module, state, head=head, source=source.file.name))
    elif source.file is not None:
        notes = (*notes, *_load_file(module, source, head, wanted, classes))
    return Network(module, str(spec), wanted, head, source.words, notes, warnings=source.warnings)


def _load_file(
    module: nn.Module,
    source: WeightsSource,
    head: str,
    wanted: InputSpec,
    classes: HeadClasses | None,
) -> list[str]:
    assert source.file is not None
    file = weights_file(source.file)
    if file.suffix in keras_state.SUFFIXES:
        # Caffe's weights take blue first; so they are turned, unless the run feeds other pixels.
        bgr = (wanted.mean, wanted.std) == NORMALIZATIONS["caffe"]
        state = keras_state.read_state(file, module, size=wanted.size, bgr=bgr)
    else:
        state = read_weights(file)
    asked = classes if source.kind == "file" else None
    return load_weights(module, state, head=head, source=source.file.name, classes=asked)


STAGES = {"last_stage": 1, "last_two_stages": 2}
"""Words for the end of a network of timm: that many of its stages."""


def has_stages(spec: Spec) -> bool:
    """Whether the network is one of timm, whose stages have words (:data:`STAGES`)."""
    return spec.name.startswith("timm/")


def first_of(network: Network, part: str) -> str:
    """Return the module at which a part of the network begins: a module's name or a stage.

    The last stage works at the lowest resolution: all modules that timm lists after its
    second-lowest; the last two begin after the third-lowest. Our own networks have no stages by
    name; name one of their modules.

    Raises:
        ConfigError: if there is no such part.
    """
    names: list[str] = [name for name, _ in network.module.named_modules() if name]
    if part in names:
        return part
    features = [str(entry["module"]) for entry in getattr(network.module, "feature_info", [])]
    before = features[: -STAGES.get(part, len(features))]
    if before and before[-1] in names:
        end = names.index(before[-1])
        return next(n for n in names[end + 1 :] if not n.startswith(before[-1] + "."))
    parts = [name for name, _ in network.module.named_children()]
    raise ConfigError(
        f"{network.spec} has no part {part!r}{did_you_mean(part, names)} (its largest: "
        f"{', '.join(parts)}; parts of those by a dot, such as {names[-2]})"
    )


def listing(pattern: str) -> dict[str, str]:
    """List networks whose name contains the pattern, with a line each; timm's with ``timm/``."""
    if pattern.startswith("timm/"):
        return {f"timm/{name}": about for name, about in timm_models.listing(pattern[5:]).items()}
    return {
        name: (family.build.__doc__ or "").partition("\n")[0]
        for name, family in families().items()
        if pattern in name
    }
