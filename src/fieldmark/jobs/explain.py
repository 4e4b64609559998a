"""Heat maps: which part of a picture speaks for a class, drawn over the picture.

The map is HiResCAM's: at the last feature map, activation times gradient of the class's logit,
summed over the channels, without the negative values, which speak against the class. For networks
with global average pooling and a linear head this is Grad-CAM's map. Where a network flattens its
last map, Grad-CAM averages the gradient and so mixes up the places; HiResCAM does not.

The layer is found by running the network: the last output of a layer that has places (at least
4 x 4 of them where there is such a layer) and is not followed by a sequence of tokens. Networks
that end in tokens (vision transformers) have no such layer; the error names the network.

Source: Draelos and Carin, Use HiResCAM instead of Grad-CAM for faithful explanations of
convolutional neural networks, arXiv:2011.08891; Selvaraju et al., Grad-CAM, arXiv:1610.02391.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from fieldmark.errors import ConfigError
from fieldmark.machine.device import require_no_fork
from fieldmark.machine.process import outlive_forks
from fieldmark.pictures.inputs import InputSpec, shrunk
from fieldmark.pictures.picture import U8
from fieldmark.scoring.engine import watched
from fieldmark.scoring.scorer import AT_ONCE
from fieldmark.seeding import F32

MIN_SIDE = 4
"""Smallest side of a feature map; a coarser one is used only if the network has none this fine."""

DRAWN_SIDE = 1024
"""Default for the longest side of a drawing, in pixels."""

# Dark violet over red to light yellow: lightness rises steadily, so it reads without colour, too.
_RAMP = np.array(
    [(38, 14, 72), (121, 28, 109), (203, 57, 74), (246, 130, 27), (252, 206, 75)], np.float32
)
_STRENGTH = 0.68
_UNSEEN = 0.45


def heat_maps(
    module: nn.Module, images: torch.Tensor, labels: Sequence[int], *, spec: InputSpec
) -> F32:
    """Compute how much each place of each picture speaks for its class, relative to the strongest.

    Args:
        module: The network, on any device.
        images: Pictures resized to its input.
        labels: The class to explain for each.
        spec: How pixels are scaled.

    Shape:
        uint8 [B, 3, S, S] to [B, h, w] in 0..1; all zeros where nothing speaks for the class.

    Raises:
        ConfigError: if the network has no feature map to explain with.
    """
    outlive_forks()
    module.eval()
    device = next(module.parameters()).device
    require_no_fork(str(device))
    module = watched(module)  # for other threads may run the network meanwhile
    floats = spec.normalize(images.to(device))
    place = _last_map(module, floats[:1])
    kept: list[torch.Tensor] = []

    def start(output: torch.Tensor) -> torch.Tensor:
        # The graph begins here: the layers before need no memory for gradients.
        torch.set_grad_enabled(True)
        kept.append(output.detach().requires_grad_())
        return kept[0].clone()  # a following layer may work in place, which a leaf refuses

    with torch.no_grad(), _Watch(module, at=place.call, change=start):
        logits = module(floats)
        chosen = logits[torch.arange(len(labels)), torch.as_tensor(labels, device=logits.device)]
        (gradient,) = torch.autograd.grad(chosen.sum(), kept[0])
        heat = (kept[0].detach() * gradient).sum(dim=place.channels).clamp_min(0)
        heat /= heat.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)
        return heat.float().cpu().numpy()


_Call = tuple[nn.Module, int]


@dataclass(frozen=True)
class _Place:
    """A layer's output that has places, and which of its dimensions are the channels."""

    call: _Call
    channels: int
    side: int


class _Watch:
    """Hooks on every layer's forward pass, for the length of a block; counts each layer's calls."""

    def __init__(
        self,
        module: nn.Module,
        *,
        see: Callable[[_Call, torch.Tensor], None] | None = None,
        at: _Call | None = None,
        change: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self._module, self._see, self._at, self._change = module, see, at, change
        self._calls: Counter[int] = Counter()

    def __enter__(self) -> None:
        self._handles = [m.register_forward_hook(self._hook) for m in self._module.modules()]

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, module: nn.Module, args: Any, output: Any) -> torch.Tensor | None:
        if not isinstance(output, torch.Tensor):
            return None
        call = (module, self._calls[id(module)])
        self._calls[id(module)] += 1
        if self._see is not None:
            self._see(call, output)
        return self._change(output) if self._change is not None and call == self._at else None


def _last_map(module: nn.Module, one: torch.Tensor) -> _Place:
    """Run the network on one picture, and find the last output that has places."""
    found: list[_Place] = []
    ends_in_tokens = False

    def see(call: _Call, output: torch.Tensor) -> None:
        nonlocal ends_in_tokens
        place = _place(call, tuple(output.shape))
        if place is not None:
            found.append(place)
            ends_in_tokens = False
        elif output.ndim == 3 and output.shape[1] > 1:
            ends_in_tokens = True

    with torch.no_grad(), _Watch(module, see=see):
        module(one)
    if not found or ends_in_tokens:
        raise ConfigError(
            f"no heat map: {type(module).__name__} has no feature map before its head"
            + (" but a sequence of tokens" if ends_in_tokens else "")
            + "; convolutional networks have one"
        )
    fine = [place for place in found if place.side >= MIN_SIDE]
    return (fine or found)[-1]


def _place(call: _Call, shape: tuple[int, ...]) -> _Place | None:
    """Find the places of an output. Inputs are square, so equal sides show where they are."""
    if len(shape) != 4:
        return None
    _, a, b, c = shape
    if b == c:
        return _Place(call, channels=1, side=b) if b > 1 else None
    return _Place(call, channels=3, side=a) if a == b > 1 else None


def overlay(picture: U8, heat: F32, spec: InputSpec) -> U8:
    """Draw a heat map over its picture; what the network did not see is dark and grey.

    Shape:
        uint8 [H, W, 3] and [h, w] to uint8 [H, W, 3].
    """
    strength = _over_picture(heat, spec, *picture.shape[:2])[:, :, None]
    seen = strength >= 0
    strength = np.clip(strength, 0, 1)
    steps = np.linspace(0, 1, len(_RAMP))
    colour = np.stack([np.interp(strength[:, :, 0], steps, channel) for channel in _RAMP.T], axis=2)
    grey = picture.mean(axis=2, keepdims=True)
    # Places that do not speak for the class are pale, so that the others stand out.
    alpha = _STRENGTH * strength
    drawn = (0.45 * picture + 0.55 * grey) * (1 - alpha) + colour * alpha
    result: U8 = np.where(seen, np.round(drawn), _UNSEEN * grey).astype(np.uint8)
    return result


def _over_picture(heat: F32, spec: InputSpec, height: int, width: int) -> F32:
    """Stretch the map over the part of the picture that the network saw; -1 elsewhere.

    Shape:
        [h, w] to [height, width].
    """
    left, top, right, bottom = spec.seen(height, width)
    rows, cols = heat.shape
    # Each pixel's centre in the map's coordinates; the borders repeat the outermost cells.
    y = (np.arange(height) + 0.5 - top) / (bottom - top)
    x = (np.arange(width) + 0.5 - left) / (right - left)
    inside = ((y >= 0) & (y <= 1))[:, None] & ((x >= 0) & (x <= 1))[None, :]
    smooth = _interpolate(_interpolate(heat, y * rows - 0.5).T, x * cols - 0.5).T
    return np.where(inside, smooth, np.float32(-1)).astype(np.float32)


def _interpolate(values: F32, at: npt.NDArray[np.float64]) -> F32:
    """Interpolate linearly between rows.

    Shape:
        [n, m] at [k] to [k, m].
    """
    at = np.clip(at, 0, len(values) - 1)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, len(values) - 1)
    share = (at - low)[:, None]
    return np.asarray(values[low] * (1 - share) + values[high] * share, dtype=np.float32)


def explained(
    module: nn.Module,
    pictures: Iterable[U8],
    labels: Iterable[int],
    *,
    spec: InputSpec,
    side: int = 0,
) -> Iterator[U8]:
    """Draw what speaks for a class over each picture.

    As many pictures are explained at once as one thread scores. Of these, only the resized
    picture and the drawing are held in memory.

    Args:
        module: The network.
        pictures: Decoded pictures of any size.
        labels: The class to explain for each.
        spec: The network's input.
        side: Longest side of a drawing in pixels; 0 leaves the picture's size.

    Shape:
        uint8 [H, W, 3] to uint8 [H, W, 3].

    Raises:
        ConfigError: if the network has no feature map to explain with.
    """
    remaining = (
        (spec.pixels(picture), shrunk(picture, side) if side else picture, label)
        for picture, label in zip(pictures, labels, strict=True)
    )
    while some := list(islice(remaining, max(1, AT_ONCE // spec.size**2))):
        resized, below, chosen = zip(*some, strict=True)
        heats = heat_maps(module, torch.from_numpy(np.stack(resized)), chosen, spec=spec)
        for picture, heat in zip(below, heats, strict=True):
            yield overlay(picture, heat, spec)
