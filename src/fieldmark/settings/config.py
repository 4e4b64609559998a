"""TrainConfig: all settings of a run, flat and frozen."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import json
import math
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fieldmark.errors import ConfigError, RunError, did_you_mean
from fieldmark.files.json_text import FORMAT, check_format, read_object
from fieldmark.machine.device_names import check_device

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from fieldmark.plugins import Need


PARTS = ("train", "val", "test")

VIEWS = ("none", "flip", "flip_shift")
"""Ways to average predictions over views of a picture (``scoring/views.py``)."""

SCALES = ("data", "type", "picture")
"""Words for the scale of samples of more than 8 bits (``pictures/samples.py``)."""

FULL_SIDE = 65_535
"""The largest side of a JPEG: a ``decode_side`` that always decodes at full size."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a run, except where the pictures are."""

    __pydantic_config__ = {"extra": "forbid", "strict": True}  # noqa: RUF012 - read by pydantic

    model: str = "auto"
    """The network: auto, a name from `fieldmark models`, or timm/NAME for any network of timm."""
    weights: str = "auto"
    """Pretrained weights: auto (those on this machine; a timm name with a tag downloads its own),
    hub (download timm's), imagenet (download those of keras.applications), none, a file, or a run,
    which names its network."""
    size: int = 0
    """Height and width of the network's input in pixels; 0 is the network's own size."""
    resize: str = "auto"
    """How a picture is resized to the input: auto (as the network expects), crop (shorter side,
    then the centre), squash (both sides) or pad (longer side, then borders)."""
    interpolation: str = "auto"
    """Filter used for resizing: auto (as the network expects), nearest, bilinear, bicubic, lanczos
    or keras_bilinear. keras_bilinear is that of tf.image.resize and image_dataset_from_directory:
    the four nearest pixels, without antialiasing and without rounding. It takes four times the
    memory."""
    normalize: str = "auto"
    """Scaling of pixel values: auto (as the network expects), scale (0 to 1), tf (-1 to 1), torch
    (ImageNet's mean and deviation), caffe (0 to 255 less ImageNet's mean), none (0 to 255), or
    dataset (mean and deviation of the training pictures)."""
    probe: bool = False
    """Begin with a linear probe: the frozen network computes the features of every training picture
    once, and the head is solved on them. The penalty on its weights is chosen on val. With 0 epochs
    training ends there."""
    epochs: int = 20
    """Passes over the training pictures; 0 only with probe."""
    batch_size: int = 64
    """Pictures in an optimizer step."""
    accumulate: int = 1
    """Micro-batches into which a step's pictures are divided; more of them need less memory."""
    optimizer: str = "sgd(momentum=0.9, nesterov=True)"
    """Optimizer with its arguments: sgd, adam, adamw, keras_sgd, keras_adam or muon."""
    lr: float = 0.1
    """Peak learning rate."""
    weight_decay: float = 0.0005
    """Weight decay. Not applied to biases and normalization layers."""
    l2: float = 0.0
    """Keras's kernel_regularizer: this times the sum of squares of all kernels but the head's is
    added to the loss, in training and in validation."""
    backbone_lr: float = 1.0
    """Learning rate of everything but the head, as a factor of lr."""
    bias_lr: float = 1.0
    """Learning rate of biases and normalization layers, as a further factor."""
    schedule: str = "cosine"
    """Learning-rate schedule with its arguments: constant, cosine, one_cycle, linear, step,
    piecewise, exponential_decay or inverse_time."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises linearly from 0."""
    augment: str = "none"
    """Random changes to training pictures, applied from left to right, such as
    'pad_crop(4)|flip_lr'; none for none. The words: random_resized_crop, pad_crop, flip_lr,
    alternating_flip, flip_ud, rotate, shift, shear, zoom, brightness, contrast, saturation, hue,
    grey, channel_shift, erase, randaugment, trivial_augment."""
    mix: str = "none"
    """Blending of training pictures and their labels: mixup, cutmix, or both as
    'mixup(0.2)|cutmix(1.0)'; none for none."""
    progressive: str = "none"
    """Train on smaller pictures at first: '24@0.35|28@0.7' is 24 px for the first 35 % of the
    steps, 28 px up to 70 %, then full size."""
    hardest: str = "none"
    """Train on the pictures with the highest losses only: with '0.75@3' each epoch after the third
    uses the 75 % whose loss was highest when they were last trained on. Training loss and accuracy
    of such an epoch are of these pictures. Wrongly labelled pictures are often among them."""
    views: str = "none"
    """Average predictions over views of a picture: none, flip (it and its mirror image) or
    flip_shift (these, shifted by a pixel too). For scores and predictions, not for choosing the
    epoch."""
    loss: str = "cross_entropy"
    """What training minimises: cross_entropy, or a plugin's loss with its arguments. The validation
    loss is the cross entropy in any case."""
    landing: str = "none"
    """Where a clock shortened the training (--minutes): '120:400' goes faster through the rest of
    the schedule from step 120 on, and training ends at step 400; 'A:B|C:D' for more of them."""
    label_smoothing: float = 0.0
    """Share of each target that is spread over all classes."""
    class_weights: str = "none"
    """Loss weight of each class: none, balanced (inverse frequency), or one number per class,
    comma-separated."""
    balance: bool = False
    """Draw training pictures so that every class comes equally often."""
    clip_norm: float = 0.0
    """Largest norm of the gradient; 0 for no limit."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, which is then what is scored and kept;
    0 for none."""
    freeze: bool = False
    """Train the head only; the rest stays as it was loaded."""
    train_from: str = ""
    """Train this module of the network and those after it; everything before stays as it was
    loaded. A module's name such as blocks.5, or last_stage or last_two_stages (networks of timm);
    empty trains everything."""
    unfreeze_at_epoch: int = 0
    """With freeze or train_from: train everything from this epoch on; 0 for never."""
    freeze_after: str = "none"
    """Modules of the network that stop training after so many epochs: 'whiten@3'."""
    norm_statistics: str = "fresh"
    """Statistics that batch norms score with: fresh (estimated anew on up to 1,024 training
    pictures after every epoch), running (moving averages, as in Keras, which lag behind where steps
    are few) or frozen (those of the pretrained weights, in training too)."""
    metrics: str = "none"
    """Further figures of validation and test, such as a plugin's, with | between them; none for
    none. Each may be the monitor, as val_NAME."""
    monitor: str = "val_accuracy"
    """Metric that selects the best epoch and that callbacks watch: train_loss, train_accuracy,
    val_loss, val_accuracy or val_macro_f1."""
    keep: str = "best"
    """Which epoch's weights are scored and used: best (val_loss decides between equals), first_best
    (the first of equals, as in Keras), or last."""
    callbacks: str = "none"
    """Checks after each epoch: early_stopping, reduce_on_plateau, or both, such as
    'early_stopping(patience=10)|reduce_on_plateau(factor=0.3)'; none for none."""
    split: str = "0.75/0.1/0.15"
    """Shares of train/val/test, for what the folder does not divide itself. With a val share of 0
    the test split also validates: it chooses the epoch whose scores it then gives."""
    split_seed: int = 0
    """Seed of the division into train, val and test; seed does not change it."""
    last_batch: str = "even"
    """When the pictures do not fill whole batches: even (batch sizes differ by at most one), keep
    (a smaller last batch) or drop (the rest is left out of the epoch)."""
    whole_batches: bool = False
    """Score val and test on whole batches only; pictures drawn at random are left out."""
    on_bad: str = "limit"
    """Unreadable pictures: limit (leave out up to 10, or 1 % if that is more), exclude (leave out
    any number) or stop."""
    fail_on_leak: bool = False
    """Stop, instead of warning, when the same picture is in two splits."""
    max_pixels: int = 67_108_864
    """Pictures with more pixels than this count as unreadable."""
    range: str = "data"
    """Which samples of more than 8 bits are black and white: LOW,HIGH such as '0,4095'; data (from
    the least to the greatest of the training pictures, but for outliers); type (0 to 65535, or 0 to
    1 for floats). picture is the rule of earlier versions: each picture by its own largest value.
    """
    decode_side: int = 0
    """Large JPEGs are decoded at 1/2, 1/4 or 1/8 of their size, as long as the shorter side keeps
    this many pixels; 0 is twice the input's size, at least 512; 65535 is always full size."""
    memory_gb: float = 0.0
    """Memory for decoded pictures in GB; 0 is a quarter of what is free, at most 2 GiB."""
    disk_gb: float = 20.0
    """Disk space in GB for the decoded pictures that do not fit into memory, in the cache folder; 0
    for none."""
    seed: int = 0
    """Seed of the initial weights, the order of pictures and every random draw in training."""
    precision: str = "auto"
    """Number type: f32, bf16 (autocast) or auto. auto is bf16 on GPUs that have it; on processors
    that have it, bf16 where a measurement finds it clearly faster for this network, f32 where
    training takes only a minute or two anyway."""
    compile: bool = False
    """Train with torch.compile: minutes of compiling at the start, for 0.8 to 1.1 times the speed
    on the processors measured."""
    channels_last: bool = True
    """Keep tensors in channels-last memory order, which is faster on most machines."""
    device: str = "auto"
    """Where to compute: auto, cpu, cuda, cuda:N or mps."""
    threads: int = 0
    """Processor threads for computing and for reading pictures; 0 for one per core."""
    save_every: str = "epoch"
    """When to write a checkpoint: epoch (at the end of each), or also every so many steps or
    minutes: '500 steps', '10 min'."""

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_kind(field.name, str(field.type), getattr(self, field.name))
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"{name} is {value}; {low:g} to {high:g} is accepted")
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ConfigError(
                    f"no {name} {value!r}{did_you_mean(value, choices)} "
                    f"(known: {', '.join(choices)})"
                )
        if self.accumulate > self.batch_size:
            raise ConfigError(
                f"accumulate is {self.accumulate}, more than the {self.batch_size} pictures "
                "of a step; choose at most batch_size"
            )
        if self.freeze and self.train_from:
            raise ConfigError(
                f"freeze trains the head alone, train_from {self.train_from!r} more than that; "
                "choose one of them"
            )
        if self.unfreeze_at_epoch and not (self.freeze or self.train_from):
            raise ConfigError(
                f"unfreeze_at_epoch is {self.unfreeze_at_epoch} but freeze is off and train_from "
                "empty, so it would have no effect; add one of them"
            )
        check_device(self.device)
        if self.range not in SCALES:
            scale_of(self.range)
        split_shares(self.split)
        save_interval(self.save_every)

    def values(self) -> dict[str, Any]:
        """All settings as plain values, without younger ones (``_LATER``) that are as before."""
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in _LATER or value != _LATER[name]
        }

    @property
    def val_decides(self) -> bool:
        """Whether validation chooses the epoch that is kept, or a callback acts on it."""
        return self.keep != "last" or self.callbacks.strip() not in ("", "none")

    def to_json(self, *, needs: Sequence[Need] = ()) -> str:
        """The text of ``config.json``, with the plugins that the run needs, if any."""
        value = {"format": FORMAT, **self.values()}
        if needs:
            value["plugins"] = [need.to_json() for need in needs]
        return json.dumps(value, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str) -> TrainConfig:
        """Read strictly what :meth:`to_json` wrote.

        Raises:
            RunError: if the format is another one, or keys are unknown, missing or of a wrong type.
        """
        from pydantic import ValidationError

        from fieldmark.plugins import read_needs

        value = read_object(text, where=where)
        check_format(value.pop("format", None), where=where)
        read_needs(value.pop("plugins", []), where=where)
        value = {**_LATER, **value}
        names = [f.name for f in fields(cls)]
        wrong = [
            *(f"lacks {name}" for name in names if name not in value),
            *(f"has {name!r}{did_you_mean(name, names)}" for name in value if name not in names),
        ]
        if wrong:
            raise RunError(
                f"{where} was made by another version of fieldmark or changed by hand: "
                f"{', '.join(wrong[:8])}{' ...' if len(wrong) > 8 else ''}; "
                "use that version, or correct the file"
            )
        try:
            return _strictly().validate_json(json.dumps(value))
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            raise RunError(f"{where}: {name}: {first['msg']}") from None
        except ConfigError as error:
            raise RunError(f"{where}: {error}") from None


GROUPS: dict[str, tuple[str, ...]] = {
    "Most used": ("model", "weights", "size", "epochs", "batch_size", "lr", "augment", "device"),
    "Pictures and splits": (
        "split",
        "split_seed",
        "balance",
        "on_bad",
        "fail_on_leak",
        "max_pixels",
        "range",
        "decode_side",
        "resize",
        "interpolation",
        "normalize",
    ),
    "Augmentation and choice of pictures": ("mix", "progressive", "hardest"),
    "Linear probe and freezing": (
        "probe",
        "freeze",
        "train_from",
        "unfreeze_at_epoch",
        "freeze_after",
    ),
    "Training": (
        "optimizer",
        "weight_decay",
        "l2",
        "backbone_lr",
        "bias_lr",
        "schedule",
        "warmup_epochs",
        "landing",
        "loss",
        "label_smoothing",
        "class_weights",
        "clip_norm",
        "ema",
        "norm_statistics",
        "accumulate",
        "last_batch",
        "callbacks",
        "seed",
    ),
    "Scores": ("metrics", "monitor", "keep", "views", "whole_batches"),
    "Machine and checkpoints": (
        "precision",
        "compile",
        "channels_last",
        "threads",
        "memory_gb",
        "disk_gb",
        "save_every",
    ),
}
"""The settings as ``--help`` and ``docs/settings.md`` show them, each one once."""

_LATER: dict[str, Any] = {
    "loss": "cross_entropy",
    "metrics": "none",
    "range": "picture",
    "norm_statistics": "running",
    "landing": "none",
}
"""Settings that came after the first version, with what they were before: ``config.json`` holds one
only where it has another value, so that runs of either side of it read and compare alike."""


def needs_in(text: str, *, where: str) -> tuple[Need, ...]:
    """The plugins that a ``config.json`` says its run needs.

    Raises:
        RunError: if it says so in another form.
    """
    from fieldmark.plugins import read_needs

    return read_needs(read_object(text, where=where).get("plugins", []), where=where)


@functools.cache
def _strictly() -> TypeAdapter[TrainConfig]:
    """The reader that checks types; made when first used, as that takes milliseconds."""
    from pydantic import TypeAdapter

    return TypeAdapter(TrainConfig)


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What a recipe, or the choice of a network, knows about the data."""

    num_classes: int
    """Number of classes."""
    num_train: int
    """Number of training pictures."""
    smallest_class: int
    """Number of training pictures of the rarest class."""
    largest_class: int
    """Number of training pictures of the commonest class."""
    median_side: int
    """Median of the training pictures' shorter sides in pixels."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a recipe knows: the data, the device, and whether there are pretrained weights."""

    data: DataFacts
    device: str
    """cpu, cuda or mps."""
    pretrained: str
    """Spec string of the network whose pretrained weights are to be used; empty for none."""


_RANGES: dict[str, tuple[float, float]] = {
    "size": (0, 4096),
    "epochs": (0, 100_000),
    "batch_size": (1, 65_536),
    "accumulate": (1, 65_536),
    "lr": (1e-12, 1e12),
    "backbone_lr": (0, 1000),
    "bias_lr": (0, 10_000),
    "weight_decay": (0, 10),
    "l2": (0, 10),
    "warmup_epochs": (0, 10_000),
    "label_smoothing": (0, 0.999),
    "clip_norm": (0, 1e12),
    "ema": (0, 0.999999),
    "unfreeze_at_epoch": (0, 100_000),
    "max_pixels": (1, 10**10),
    "decode_side": (0, FULL_SIDE),
    "memory_gb": (0, 10**6),
    "disk_gb": (0, 10**6),
    "seed": (0, 2**63 - 1),
    "split_seed": (0, 2**63 - 1),
    "threads": (0, 1024),
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "resize": ("auto", "crop", "squash", "pad"),
    "interpolation": ("auto", "nearest", "bilinear", "bicubic", "lanczos", "keras_bilinear"),
    "normalize": ("auto", "scale", "tf", "torch", "caffe", "none", "dataset"),
    "keep": ("best", "first_best", "last"),
    "last_batch": ("even", "keep", "drop"),
    "on_bad": ("limit", "exclude", "stop"),
    "views": VIEWS,
    "norm_statistics": ("fresh", "running", "frozen"),
    "precision": ("auto", "f32", "bf16"),
}
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "a whole number"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "str": ((str,), "a text"),
}


def _check_kind(name: str, annotation: str, value: object) -> None:
    kinds, words = _KINDS[annotation]
    wrong_bool = isinstance(value, bool) and annotation != "bool"
    if wrong_bool or not isinstance(value, kinds):
        raise ConfigError(f"{name} is {value!r}, but must be {words}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name} is {value}, but must be a finite number")
    if isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value):
        raise ConfigError(f"{name} is {value!r}, which is not Unicode text; rename the file")


def check_names(given: Iterable[str]) -> None:
    """Refuse settings that do not exist.

    Raises:
        ConfigError: if one does not; the message suggests the nearest name.
    """
    names = [f.name for f in fields(TrainConfig)]
    for name in given:
        if name not in names:
            raise ConfigError(
                f"no setting {name!r}{did_you_mean(name, names)} (known: {', '.join(names)})"
            )


def read_config(file: Path) -> TrainConfig:
    """Read the settings of another run, its ``config.json``.

    Raises:
        ConfigError: if it cannot be read.
        RunError: if it is not what a run writes.
    """
    if not file.is_file():  # reading a pipe would wait for ever
        raise ConfigError(f"the config file {file} does not exist, or is not a regular file")
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the config file {file}: {error}") from None
    return TrainConfig.from_json(text, where=str(file))


@functools.cache
def split_shares(text: str) -> tuple[float, float, float]:
    """Read ``train/val/test`` shares: 0.75/0.1/0.15, 75/10/15 and 80/20/0 all work.

    Raises:
        ConfigError: if they are not three shares, or train is empty, or both val and test are.
    """
    try:
        shares = [float(part) for part in text.split("/")]
    except ValueError:
        shares = []
    whole = sum(shares)
    good = len(shares) == 3 and math.isfinite(whole) and all(s >= 0 for s in shares)
    if not good or shares[0] <= 0 or shares[1] + shares[2] <= 0:
        raise ConfigError(
            f"split is {text!r}; three shares train/val/test are accepted, train and one of the "
            "others above 0, such as 0.75/0.1/0.15 or 80/20/0"
        )
    return shares[0] / whole, shares[1] / whole, shares[2] / whole


@functools.cache
def scale_of(text: str) -> tuple[float, float]:
    """Read ``LOW,HIGH`` of ``range``: the samples that are black and white.

    Raises:
        ConfigError: if they are not two numbers, the first below the second.
    """
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(high - low) and low < high):
        raise ConfigError(
            f"range is {text!r}; two numbers LOW,HIGH are accepted, such as 0,4095, or one of "
            f"{', '.join(SCALES)}"
        )
    return low, high


@functools.cache
def save_interval(text: str) -> tuple[int, float]:
    """Read ``save_every``: steps and seconds between checkpoints; 0 for the one not given.

    Raises:
        ConfigError: if it is none of ``epoch``, ``N steps`` and ``N min``.
    """
    if text == "epoch":
        return 0, 0.0
    found = re.fullmatch(r"(?:([0-9]{1,9}) ?steps?|([0-9]{1,5}(?:\.[0-9]{1,3})?) ?min)", text)
    steps, minutes = found.groups(default="0") if found else ("0", "0")
    if not int(steps) and not float(minutes):
        raise ConfigError(
            f"save_every is {text!r}; epoch, a number of steps or a number of minutes above 0 is "
            "accepted, such as '500 steps' or '10 min'"
        )
    return int(steps), 60 * float(minutes)


@functools.cache
def field_docs() -> dict[str, str]:
    """The docstring under each field of :class:`TrainConfig`: the source of ``--help`` and docs."""
    module = ast.parse(inspect.getsource(sys.modules[__name__]))
    (found,) = (
        node
        for node in module.body
        if isinstance(node, ast.ClassDef) and node.name == TrainConfig.__name__
    )
    docs: dict[str, str] = {}
    for node, following in itertools.pairwise(found.body):
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            docs[node.target.id] = " ".join(str(following.value.value).split())
    return docs
