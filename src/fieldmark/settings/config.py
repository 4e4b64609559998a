"""TrainConfig: the frozen, flat description that decides a run completely."""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import json
import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from fieldmark.errors import ConfigError, RunError, did_you_mean
from fieldmark.files.json_text import FORMAT, check_format, read_object

if TYPE_CHECKING:
    from pydantic import TypeAdapter

    from fieldmark.plugins import Need


PARTS = ("train", "val", "test")

VIEWS = ("none", "flip", "flip_shift")
"""Ways to average answers over views of a picture (``fit/views.py``)."""

FULL_SIDE = 65_535
"""The largest side of a JPEG: keeping so many pixels is decoding in full size."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a run, except where the pictures are."""

    __pydantic_config__ = {"extra": "forbid", "strict": True}  # noqa: RUF012 - read by pydantic

    model: str = "auto"
    """The network: auto, a name from `fieldmark models`, or timm/NAME for any timm network."""
    weights: str = "auto"
    """Pretrained weights: auto (those on this machine), hub (download timm's), imagenet (download
    those of keras.applications), none, or a file."""
    size: int = 0
    """Height and width of the network's input in pixels; 0 is the model's own."""
    resize: str = "auto"
    """Fitting a picture to the input: auto (the model's own), crop, squash or pad."""
    interpolation: str = "auto"
    """Resampling when fitting: auto (the model's own), nearest, bilinear, bicubic or lanczos."""
    normalize: str = "auto"
    """Scaling of pixels: auto (the model's own), scale (1/255), tf (-1 to 1), torch, caffe, none,
    or dataset (mean and deviation of the training pictures)."""
    probe: bool = False
    """Begin with a linear probe: one pass of the frozen network, and a head solved on its features
    with a penalty whose strength the validation part picks. With 0 epochs that is all."""
    epochs: int = 20
    """Passes over the training pictures; 0 only with probe."""
    batch_size: int = 64
    """Pictures an optimizer step sees."""
    accumulate: int = 1
    """Micro-batches a step's pictures are divided into; more of them need less memory."""
    optimizer: str = "sgd(momentum=0.9, nesterov=True)"
    """sgd, adam or adamw, with their arguments."""
    lr: float = 0.1
    """Peak learning rate."""
    weight_decay: float = 0.0005
    """Decay of weights; norms and biases are left alone."""
    l2: float = 0.0
    """Keras's kernel_regularizer: this times the squares of all kernels but the head's is added to
    the loss, in training and in validation."""
    backbone_lr: float = 1.0
    """Learning rate of everything but the head, as a factor of lr."""
    bias_lr: float = 1.0
    """Learning rate of norms' parameters and biases, as a further factor."""
    schedule: str = "cosine"
    """constant, cosine, one_cycle, step, piecewise or exponential_decay, with their arguments."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises linearly from 0."""
    augment: str = "none"
    """Training-time changes to pictures, e.g. 'pad_crop(4)|flip_lr'; none for none."""
    mix: str = "none"
    """Mixing of pictures and labels: mixup(0.2), cutmix(1.0) or both with |."""
    progressive: str = "none"
    """Smaller pictures at first, by size and share of all steps: '24@0.35|28@0.7' trains at 24 px
    for 35 % of the steps, at 28 px up to 70 % and at full size then."""
    hardest: str = "none"
    """Leave out pictures that are learned already: with '0.75@3' the epochs after the third train
    on the 75 % whose loss was highest when they were last trained on. What an epoch says of the
    training part is then of these. Wrongly labelled pictures are among the hardest."""
    views: str = "none"
    """Views of a picture whose answers are averaged: none, flip (it and its mirror image) or
    flip_shift (these, shifted by a pixel too). For scores and predictions, not for choosing the
    epoch."""
    loss: str = "cross_entropy"
    """What training makes small: cross_entropy, or a plugin's loss with its arguments. Validation
    tells the cross entropy whatever this is."""
    label_smoothing: float = 0.0
    """Share of the target spread over all classes."""
    class_weights: str = "none"
    """Loss weights: none, balanced (inverse frequency), or one number a class, comma-separated."""
    balance: bool = False
    """Draw training pictures so that every class comes equally often."""
    clip_norm: float = 0.0
    """Largest norm of the gradient; 0 for no limit."""
    ema: float = 0.0
    """Decay of an exponential moving average of the weights, used for scores; 0 for none."""
    freeze: bool = False
    """Train the head alone, with the rest as it was loaded."""
    train_from: str = ""
    """Train from this part of the network on, with everything before it as it was loaded: a
    module's name such as blocks.5, or last_stage (timm's networks); empty for everything."""
    unfreeze_at_epoch: int = 0
    """With freeze or train_from: train everything from this epoch on; 0 for never."""
    freeze_after: str = "none"
    """Parts of the network that stop training early, by name and epochs: 'whiten@3'."""
    metrics: str = "none"
    """Further figures of validation and test, e.g. 'balanced_accuracy|top_k(3)'; none for none.
    Each may be the monitor, as val_NAME."""
    monitor: str = "val_accuracy"
    """Metric that picks the best epoch and drives callbacks."""
    keep: str = "best"
    """Which epoch's weights are scored and used: best (equals are decided by val_loss), first_best
    (the earliest of equals, as Keras), or last."""
    callbacks: str = "none"
    """E.g. 'early_stopping(patience=10)|reduce_on_plateau(factor=0.3, patience=5)'."""
    split: str = "0.75/0.1/0.15"
    """Shares of train/val/test, used for what the folder does not divide itself. With a val share
    of 0 the test part validates too, and chooses the epoch it is then scored by."""
    split_seed: int = 0
    """Decides the split, so that runs of several seeds share one."""
    last_batch: str = "even"
    """A number of pictures that batches do not divide: even (batches differ by one at most), keep
    (a smaller last batch) or drop (leave the rest of the order out of the epoch)."""
    whole_batches: bool = False
    """Score validation and test on whole batches only, leaving the rest out."""
    on_bad: str = "limit"
    """Unreadable pictures: limit (leave out up to 1 % or 10), exclude (any number) or stop."""
    fail_on_leak: bool = False
    """Stop when the same picture is in two parts, instead of warning."""
    max_pixels: int = 50_000_000
    """Pictures with more pixels than this count as unreadable."""
    decode_side: int = 0
    """Large JPEGs are decoded at 1/2, 1/4 or 1/8 of their size, as long as the shorter side keeps
    this many pixels; 0 is twice the input's size and at least 512; 65535 is full size always."""
    memory_gb: float = 0.0
    """Memory for decoded pictures in GB; 0 is a quarter of what is free, at most 2 GiB."""
    disk_gb: float = 20.0
    """Decoded pictures beyond that are kept in the cache folder up to so many GB; 0 for none."""
    seed: int = 0
    """Decides the initial weights, the order and every random draw."""
    precision: str = "auto"
    """f32, bf16 (autocast), or auto: bf16 on GPUs that have it; on processors that have it where a
    measurement finds it clearly faster for this network, f32 where training is a matter of a minute
    anyway."""
    compile: bool = False
    """Train by torch.compile: minutes of compiling at the start, for 0.8 to 1.1 times the speed on
    the processors measured."""
    channels_last: bool = True
    """Keep tensors in channels-last memory order, which is faster on most machines."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    threads: int = 0
    """Processor threads for computing and for reading pictures; 0 for one a core."""
    save_every: str = "epoch"
    """When to write a checkpoint: epoch (at the end of each), or also in between, every so many
    steps or minutes: '500 steps', '10 min'."""

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
        if not _is_device(self.device):
            raise ConfigError(f"no device {self.device!r} (known: auto, cpu, cuda, cuda:N, mps)")
        split_shares(self.split)
        save_interval(self.save_every)

    def values(self) -> dict[str, Any]:
        """All settings as plain values, without younger ones (``_LATER``) that are at default."""
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in _LATER or value != _LATER[name]
        }

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
            RunError: if it is not that: another version, unknown or missing keys, wrong types.
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
                "use that version, or put it right"
            )
        try:
            return _strictly().validate_json(json.dumps(value))
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            raise RunError(f"{where}: {name}: {first['msg']}") from None
        except ConfigError as error:
            raise RunError(f"{where}: {error}") from None


_LATER: dict[str, Any] = {"loss": "cross_entropy", "metrics": "none"}
"""Settings that came after the first version, with their defaults: ``config.json`` holds one only
where it has another value, so that runs of either side of it read and compare alike."""


def needs_in(text: str, *, where: str) -> tuple[Need, ...]:
    """The plugins that a ``config.json`` says its run needs.

    Raises:
        RunError: if it says so in another form.
    """
    from fieldmark.plugins import read_needs

    return read_needs(read_object(text, where=where).get("plugins", []), where=where)


@functools.cache
def _strictly() -> TypeAdapter[TrainConfig]:
    """What reads settings and checks their types; making it takes milliseconds."""
    from pydantic import TypeAdapter

    return TypeAdapter(TrainConfig)


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """What a recipe or the choice of a model may know about the data."""

    num_classes: int
    """Classes."""
    num_train: int
    """Training pictures."""
    smallest_class: int
    """Training pictures of the rarest class."""
    largest_class: int
    """Training pictures of the commonest class."""
    median_side: int
    """Median of the training pictures' shorter sides in pixels."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a recipe may know: the data, and what there is to train with."""

    data: DataFacts
    device: str
    """cpu, cuda or mps."""
    pretrained: str
    """Spec of a network whose weights are to be used; empty for none."""


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
    "interpolation": ("auto", "nearest", "bilinear", "bicubic", "lanczos"),
    "normalize": ("auto", "scale", "tf", "torch", "caffe", "none", "dataset"),
    "keep": ("best", "first_best", "last"),
    "last_batch": ("even", "keep", "drop"),
    "on_bad": ("limit", "exclude", "stop"),
    "views": VIEWS,
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


def _is_device(device: str) -> bool:
    kind, _, index = device.partition(":")
    return kind in ("auto", "cpu", "cuda", "mps") and (
        device == kind or (kind == "cuda" and index.isdecimal())
    )


def split_shares(text: str) -> tuple[float, float, float]:
    """Read ``train/val/test`` shares: 0.75/0.1/0.15, 75/10/15 and 80/20/0 all work.

    Raises:
        ConfigError: if they are not three shares, or leave train empty, or both val and test.
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


def save_interval(text: str) -> tuple[int, float]:
    """Read ``save_every``: steps and seconds between two checkpoints; 0 where that does not count.

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


def decode_side(setting: int, size: int) -> int:
    """Pixels that a JPEG's shorter side keeps when it is decoded for an input of this size."""
    return setting or max(512, 2 * size)


@functools.cache
def field_docs() -> dict[str, str]:
    """The docstring under each field of :class:`TrainConfig`: the source of ``--help`` and docs."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(TrainConfig)))
    body = tree.body[0].body  # type: ignore[attr-defined]
    docs: dict[str, str] = {}
    for node, following in itertools.pairwise(body):
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and isinstance(following, ast.Expr)
            and isinstance(following.value, ast.Constant)
        ):
            docs[node.target.id] = " ".join(str(following.value.value).split())
    return docs
