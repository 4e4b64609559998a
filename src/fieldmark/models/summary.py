"""Summaries of networks, ours and timm's: layers, output shapes, parameters and FLOPs.

Networks are built and run on torch's meta device, which keeps shapes and no values, so that a
summary takes a moment and no memory whatever the network. FLOPs are those of matrix products and
convolutions (and attention, which is made of them) for one picture, a multiplication and an
addition counting as two; norms, activations and pools, about a hundredth of that, are not counted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fieldmark import models
from fieldmark.errors import ConfigError
from fieldmark.settings.spec import parse

_NAME_WIDTH = 44


@dataclass(frozen=True)
class Row:
    """A layer: a module that computes something itself, not through its submodules."""

    name: str
    """Path in the network; empty for what the network itself computes."""
    kind: str
    output: tuple[int, ...]
    """Shape of its output for one picture; empty if it was not called or returns no tensor."""
    parameters: int
    """Its own parameters, trainable or not, with running statistics."""
    flops: int


@dataclass(frozen=True)
class Summary:
    """A network in numbers."""

    spec: str
    classes: int
    size: int
    """Height and width of the picture that FLOPs are counted for."""
    rows: tuple[Row, ...]
    parameters: int
    """All parameters with running statistics, as Keras counts them."""
    trainable: int
    flops: int
    """FLOPs of a forward pass of one picture; a multiplication and an addition count as two."""

    @property
    def non_trainable(self) -> int:
        """Number of running statistics and frozen parameters."""
        return self.parameters - self.trainable

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {
            "spec": self.spec,
            "classes": self.classes,
            "size": self.size,
            "parameters": self.parameters,
            "trainable": self.trainable,
            "non_trainable": self.non_trainable,
            "flops": self.flops,
            "layers": [
                {
                    "name": row.name,
                    "kind": row.kind,
                    "output": list(row.output),
                    "parameters": row.parameters,
                    "flops": row.flops,
                }
                for row in self.rows
            ],
        }

    def lines(self) -> list[str]:
        """Return a table for the terminal, with the totals below."""
        head = ("layer", "kind", "output", "parameters", "FLOPs")
        cells = [
            (
                _shortened(row.name or "(network)"),
                row.kind,
                "x".join(map(str, row.output)) or "-",
                f"{row.parameters:,}" if row.parameters else "-",
                _short_count(row.flops),
            )
            for row in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
        rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
        trainable = f"{self.trainable:,} trainable, {self.non_trainable:,} not"
        counted = "matrix products and convolutions; a multiply-add is 2"
        return [
            f"{self.spec}, {self.classes} classes, {self.size} px",
            _aligned(head, widths),
            rule,
            *(_aligned(row, widths) for row in cells),
            rule,
            f"parameters  {self.parameters:,} ({trainable})",
            f"FLOPs       {self.flops:,} a picture ({counted})",
        ]


def _aligned(cells: tuple[str, ...], widths: list[int]) -> str:
    """Align words to the left, numbers to the right."""
    return "  ".join(
        cell.ljust(width) if i < 3 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ).rstrip()


def _shortened(name: str) -> str:
    """Cut a name in the middle: its beginning says where a layer is, its end what it is."""
    if len(name) <= _NAME_WIDTH:
        return name
    end = _NAME_WIDTH * 2 // 3
    return name[: _NAME_WIDTH - end - 1] + "…" + name[-end:]


def _short_count(number: int) -> str:
    """Write a number with three digits and a unit."""
    value = float(number)
    for unit in ("", " k", " M", " G"):
        if value < 999.5:
            return f"{value:.3g}{unit}" if number else "-"
        value /= 1000
    return f"{value:,.4g} T"


def summarize(spec_text: str, num_classes: int = 0, size: int = 0) -> Summary:
    """Count a network's layers, parameters and FLOPs.

    Args:
        spec_text: A name of ``MODELS`` with arguments, or ``timm/NAME``.
        num_classes: Classes; 0 takes those of the family's examples, 1000 for timm's.
        size: Height and width of the picture; 0 is the network's own.

    Raises:
        ConfigError: if there is no such network, or it takes no pictures of this size.
    """
    for name, value, most in (("num_classes", num_classes, 10**6), ("size", size, 10**4)):
        if not 0 <= value <= most:
            raise ConfigError(
                f"{name} is {value}; 1 to {most} is accepted, or 0 for the network's own"
            )
    classes = num_classes or _example_classes(spec_text)
    network = _built(spec_text, classes, size)
    size = network.input.size
    try:
        rows, total = _traced(network.module, size)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"model {network.spec!r} cannot take a picture of {size} px: {error}"
        ) from error
    everything, trainable = parameters(network.module)
    return Summary(network.spec, classes, size, tuple(rows), everything, trainable, total)


def table(pattern: str = "") -> list[dict[str, Any]]:
    """List our networks whose name contains the pattern, each with its variants and their counts.

    FLOPs and parameters are as in :class:`Summary`.
    """
    found: list[dict[str, Any]] = []
    for name, family in models.families().items():
        if pattern not in name:
            continue
        about = (family.build.__doc__ or "").partition("\n")[0]
        for spec_text, classes in family.examples or ((name, 10),):
            network = _built(spec_text, classes, 0)
            everything, trainable = parameters(network.module)
            found.append(
                {
                    "spec": network.spec,
                    "classes": classes,
                    "size": network.input.size,
                    "parameters": everything,
                    "trainable": trainable,
                    "flops": flops(network.module, network.input.size),
                    "about": about,
                }
            )
    return found


def parameters(module: nn.Module) -> tuple[int, int]:
    """Count all parameters with running statistics, as Keras does, and the trainable ones.

    Running statistics are the floating-point values beside the parameters that are stored with
    them: batch norm's means and variances, and the mean picture of a network that centres.
    Parameters that two layers share count once.
    """
    everything = sum(p.numel() for p in module.parameters())
    everything += sum(value.numel() for m in module.modules() for value in _statistics(m))
    return everything, sum(p.numel() for p in module.parameters() if p.requires_grad)


def flops(module: nn.Module, size: int) -> int:
    """Count the FLOPs of a forward pass of a picture [3, size, size]; a multiply-add is two."""
    return _traced(module, size)[1]


def _statistics(module: nn.Module) -> list[torch.Tensor]:
    """Return the module's own floating-point buffers that are in its state dict."""
    return [
        buffer
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set and buffer.is_floating_point()
    ]


def _example_classes(spec_text: str) -> int:
    """Return the number of classes in the network's listed example; 1000 if there is none."""
    spec = parse(spec_text, what="model")
    family = None if spec.name.startswith("timm/") else models.family(spec)
    if family is None or not family.examples:
        return 1000
    return dict(reversed(family.examples)).get(str(spec), family.examples[0][1])


def _built(spec_text: str, classes: int, size: int) -> models.Network:
    """Build a network without values, or with them if its code reads a value while building."""
    # Drawing values that are not used must not change any later random number.
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):
                return models.create(spec_text, num_classes=classes, weights="none", size=size)
        except (ConfigError, RuntimeError):
            return models.create(spec_text, num_classes=classes, weights="none", size=size)


@dataclass
class _Call:
    """What the hooks recorded of a module."""

    output: tuple[int, ...] = ()
    flops: int = 0
    """FLOPs without those of the modules that it called."""


def _traced(module: nn.Module, size: int) -> tuple[list[Row], int]:
    """Run one picture through the network without computing it.

    A module's own FLOPs are those outside of the modules that it calls, such as attention in plain
    functions; so the rows add up to the total.
    """
    calls: dict[nn.Module, _Call] = {}
    counter = FlopCounterMode(display=False)
    open_calls: list[tuple[int, list[int]]] = []  # total at the start, totals of those called

    def before(part: nn.Module, _: Any) -> None:
        open_calls.append((counter.get_total_flops(), []))

    def after(part: nn.Module, _: Any, output: Any) -> None:
        start, inner = open_calls.pop()
        spent = counter.get_total_flops() - start
        if open_calls:
            open_calls[-1][1].append(spent)
        call = calls.setdefault(part, _Call())
        call.flops += spent - sum(inner)
        if isinstance(output, torch.Tensor):
            call.output = tuple(output.shape[1:])

    parts = list(module.modules())
    hooks = [part.register_forward_pre_hook(before) for part in parts]
    hooks += [part.register_forward_hook(after) for part in parts]
    state = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    shapes = {name: value.detach().to("meta") for name, value in state.items()}
    try:
        with _scoring(module), torch.no_grad(), torch.device("meta"), counter:
            torch.func.functional_call(module, shapes, torch.empty(1, 3, size, size))
    finally:
        for hook in hooks:
            hook.remove()
    return _rows(module, calls), counter.get_total_flops()


def _rows(module: nn.Module, calls: dict[nn.Module, _Call]) -> list[Row]:
    rows = []
    seen: set[nn.Parameter] = set()
    for name, part in module.named_modules():
        call = calls.get(part, _Call())
        new = set(part.parameters(recurse=False)) - seen  # shared ones are the first layer's
        seen |= new
        own = sum(value.numel() for value in [*new, *_statistics(part)])
        leaf = next(part.children(), None) is None and not isinstance(part, nn.Identity)
        if own or call.flops or (leaf and part in calls):
            rows.append(Row(name, type(part).__name__, call.output, own, call.flops))
    return rows


@contextlib.contextmanager
def _scoring(module: nn.Module) -> Iterator[None]:
    """Context in which the network is in eval mode; afterwards every module has its old mode."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True
