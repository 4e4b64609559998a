"""Where in a checkpoint a network's weights are, whoever wrote it.

Programs put weights under names of their own (``model``, ``state_dict_ema``, ``net``), beside
those of losses, optimizers and averages, with prefixes (``module.``, ``backbone.``) and with those
of wrappers in the middle (``_orig_mod.``). None of these names is looked for. A checkpoint is taken
apart into sets of tensors; the weights are the set, and the prefix in it, below which every tensor
of the network is found. Where several fit, averages of weights come first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from fieldmark.models.inert import Inert, parts_of_network, tensor_of

Tensors = Mapping[str, torch.Tensor]

BETWEEN = "/"
"""Stands between the names of nested dictionaries in a tensor's name."""
_DEPTH, _MANY = 24, 1_000_000
_WRAPPERS = frozenset(
    {"_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
)
"""Parts of names that stand for no layer, wherever they are."""
_AVERAGES = frozenset({"ema", "swa", "averaged", "average", "avg", "polyak", "shadow", "teacher"})
_LATEST = frozenset({"student", "online", "current", "last", "latest"})
_NO_LAYER = re.compile(
    r"(.*_)?(criterions?|loss|losses|loss_?(fn|func|function)|metrics?|acc(uracy)?|auroc"
    r"|f1_?score|confusion_?matrix|confmat)(_?\d+|_.*)?",
    re.IGNORECASE,
)
"""First parts of names of losses and metrics, which a network's output does not depend on."""


def tensors_in(value: object) -> dict[str, torch.Tensor]:
    """All named tensors of a checkpoint, however deep, such as ``state_dict_ema/conv.weight``.

    Raises:
        ValueError: if it holds more than can be, or an array without numbers.
    """
    found: dict[str, torch.Tensor] = {}
    for visited, (name, tensor) in enumerate(_walk(value, "", "", (), set())):
        if visited > _MANY:
            raise ValueError(f"it holds more than {_MANY:,} values")
        if tensor is not None and name:
            found.setdefault(name, tensor)
    return found


def _walk(
    value: object, path: str, dots: str, above: tuple[int, ...], seen: set[int]
) -> Iterator[tuple[str, torch.Tensor | None]]:
    """Yield every value below with its name; None for the tensor of what is none.

    Containers are looked into once; networks wherever they are, as layers may be shared.
    """
    tensor = tensor_of(value)
    yield (dots or path), tensor
    if tensor is not None or id(value) in above or len(above) > _DEPTH:
        return
    above = (*above, id(value))
    network = parts_of_network(value) if isinstance(value, Inert) else None
    if network is not None:
        own, inside = network
        for parts in (own, inside):
            for name, each in parts.items():
                yield from _walk(each, "", _joined(dots, name, path), above, seen)
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    for name, each in _items(value):
        if dots:  # a list of networks, or anything else that a network held
            continue
        yield from _walk(each, f"{path}{BETWEEN}{name}" if path else str(name), "", above, seen)


def _joined(dots: str, name: object, path: str) -> str:
    """The name of a part of a network: after a dot, the first after where the network is."""
    if dots:
        return f"{dots}.{name}"
    return f"{path}{BETWEEN}{name}" if path else str(name)


def _items(value: object) -> Iterable[tuple[object, object]]:
    if isinstance(value, Mapping):
        return value.items()
    if isinstance(value, Inert):
        return [*value.attributes().items(), *value.items.items()]
    if isinstance(value, list | tuple):
        return [
            (place, each)
            for place, each in enumerate(value)
            if isinstance(each, Mapping | Inert | list | tuple)
        ]
    return ()


@dataclass(frozen=True)
class Fit:
    """How one set of a checkpoint's tensors fits a network."""

    where: str
    """The set, and the prefix in it."""
    prefix: str
    state: dict[str, torch.Tensor]
    """The tensors below the prefix, by the names that they would have in the network."""
    clash: tuple[str, ...]
    """Names of both with other shapes."""
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    unused: tuple[str, ...]
    """The set's tensors that are no part of the network: those beside the prefix, and losses'."""
    beside: Tensors
    """Those beside the prefix."""
    foreign: tuple[str, ...]
    """What of the above is in the way: all but the head's."""
    matched: int

    @property
    def unfit(self) -> frozenset[str]:
        """Names of the network that get nothing."""
        return frozenset((*self.clash, *self.missing))


def fits(own: Tensors, state: Tensors, *, head: str) -> list[Fit]:
    """Every set of tensors that has a network's, best first; else the one that comes nearest.

    Shape:
        any.
    """
    parts = {part for key in own for part in key.split(".")}
    nearest: list[Fit] = []
    for wrappers in (_WRAPPERS, _WRAPPERS | {"module"}):
        found = [
            _fit(own, tensors, where, prefix, head)
            for where, tensors in _sets(state, wrappers - parts)
            for prefix in _prefixes(own, tensors)
        ]
        good = [fit for fit in found if not fit.foreign and fit.matched]
        if good:
            return sorted(good, key=lambda fit: (len(fit.unfit) > 0, _rank(fit.where)))
        nearest += sorted(found, key=lambda fit: (-fit.matched, len(fit.foreign)))[:1]
    return nearest[:1] or [_fit(own, dict(state), "", "", head)]


def _sets(state: Tensors, wrappers: frozenset[str]) -> list[tuple[str, dict[str, torch.Tensor]]]:
    """The tensors by the dictionary that they were in, without the names of wrappers."""
    sets: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        where, _, key = name.rpartition(BETWEEN)
        plain = ".".join(part for part in key.split(".") if part not in wrappers)
        sets.setdefault(where, {}).setdefault(plain, tensor)
    return list(sets.items())


def _prefixes(own: Tensors, tensors: Tensors) -> list[str]:
    """The prefixes after which names of the network come, those with the most first."""
    counts: dict[str, int] = {}
    for key, tensor in tensors.items():
        start = 0
        while start >= 0:
            name = key[start:]
            if name in own:
                same = own[name].shape == tensor.shape
                counts[key[:start]] = counts.get(key[:start], 0) + 1 + same
            dot = key.find(".", start)
            start = dot + 1 if dot >= 0 else -1
    return sorted(counts, key=lambda prefix: -counts[prefix])[:8]


def _fit(own: Tensors, tensors: Tensors, where: str, prefix: str, head: str) -> Fit:
    below = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    clash = [k for k, v in own.items() if k in below and below[k].shape != v.shape]
    missing = [k for k in own if k not in below and not _counts_batches(k)]
    strange = [k for k in below if k not in own and not _counts_batches(k)]
    extra = [k for k in strange if not _NO_LAYER.fullmatch(k.partition(".")[0])]
    beside = {k: v for k, v in tensors.items() if not k.startswith(prefix) and v.numel() > 1}
    foreign = [k for k in (*clash, *missing, *extra) if not in_head(k, head)]
    return Fit(
        where=BETWEEN.join(filter(None, (where, prefix.rstrip(".")))),
        prefix=prefix,
        state=below,
        clash=tuple(clash),
        missing=tuple(missing),
        extra=tuple(extra),
        unused=(*beside, *(k for k in strange if k not in extra and below[k].numel() > 1)),
        beside=beside,
        foreign=tuple(foreign),
        matched=sum(k in below and below[k].shape == v.shape for k, v in own.items()),
    )


def _counts_batches(key: str) -> bool:
    return key.endswith("num_batches_tracked")


def in_head(key: str, head: str) -> bool:
    """Whether a tensor is one of the head's."""
    return key == head or key.startswith(head + ".")


def _rank(where: str) -> int:
    words = set(re.split(r"[^a-z0-9]+", where.lower()))
    if words & _AVERAGES:
        return 0
    if words & _LATEST:
        return 3
    return 1 if "best" in words else 2
