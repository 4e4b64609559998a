"""bf16 convolutions of small maps on a processor: several pictures lie side by side on a sheet.

oneDNN's kernels work along a row of the map, and read the whole kernel for every picture. On maps
of a few pixels most of that is wasted: on a processor with a matrix unit (AMX) the gradient of 512
kernels of 3x3 on maps of 4x4 runs at a tenth of the rate it has on large ones. So pictures are laid
side by side on a sheet, with as many columns of zeros in between as a kernel reaches. The
convolution of the sheet contains each picture's convolution; only the order of summation differs.
For which layers this pays was measured: ``docs/log.md``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

Pair = tuple[int, int]

LARGEST, LARGEST_WITHOUT_AMX = 8, 2
"""Pixels of the longer side of a map up to which pictures are laid side by side."""
_WIDTH = 40
"""Smallest width of a sheet in pixels."""
_FEWEST = 8
"""Smallest batch that is laid out on sheets."""
_PAIRS = 1024
"""Smallest number of channels in times channels out for which sheets pay."""
_LARGE_KERNEL = 2**20
"""Values of a kernel from which on it does not stay in a core's cache, so that the forward pass
spends its time reading it for every picture. For smaller ones only the gradient uses sheets."""


class SmallMaps(TorchFunctionMode):
    """Context in which autocast's convolutions of small maps are computed on sheets.

    Args:
        amx: Whether the processor multiplies bf16 matrices in a unit of its own.
    """

    def __init__(self, *, amx: bool) -> None:
        super().__init__()
        self._largest = LARGEST if amx else LARGEST_WITHOUT_AMX

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Receive every torch call in the context."""
        if func is torch.conv2d:
            return _conv2d(self._largest, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _conv2d(
    largest: int,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> torch.Tensor:
    """``torch.conv2d``, on sheets where that is faster."""
    simple = groups == 1 and _pair(stride) == _pair(dilation) == (1, 1)
    if not (simple and _pair(padding) == _reach(weight) and _is_served(x, weight, largest)):
        return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)
    half = [None if each is None else each.to(torch.bfloat16) for each in (x, weight, bias)]
    result: torch.Tensor = _Convolution.apply(*half)
    return result


def _is_served(x: torch.Tensor, weight: torch.Tensor, largest: int) -> bool:
    """Whether a convolution at stride 1 that keeps the map's size is faster on sheets."""
    channels, channels_in, height, width = weight.shape
    return (
        x.ndim == 4
        and x.is_cpu
        and max(x.shape[2:]) <= largest
        and height % 2 == width % 2 == 1
        and height * width > 1
        and len(x) >= _FEWEST
        and channels * channels_in >= _PAIRS
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") is torch.bfloat16
        and x.is_contiguous(memory_format=torch.channels_last)
    )


class _Convolution(torch.autograd.Function):
    """Convolution at stride 1 that keeps the map's size.

    Shape:
        bf16 x [B, C, H, W], weight [O, C, h, w] of odd sides, bias [O] or None, to [B, O, H, W].
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        pads = _reach(weight)
        if weight.numel() < _LARGE_KERNEL:
            return torch.conv2d(x, weight, bias, padding=pads)
        return _cut(torch.conv2d(_sheets(x, pads[1]), weight, bias, padding=pads), x, pads[1])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        x, weight = ctx.saved_tensors
        pads, needs = _reach(weight), list(ctx.needs_input_grad)
        of_x = of_weight = of_bias = None
        if needs[0] and weight.numel() < _LARGE_KERNEL:
            of_x = _gradients(gradient, x, weight, pads, [True, False, False])[0]
            needs[0] = False
        if any(needs):
            sheets = (_sheets(gradient, pads[1]), _sheets(x, pads[1]))
            on_sheets, of_weight, of_bias = _gradients(*sheets, weight, pads, needs)
            if needs[0]:
                of_x = _cut(on_sheets, x, pads[1])
        return of_x, of_weight, of_bias


def _gradients(
    gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, pads: Pair, mask: list[bool]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of a convolution's input, kernel and bias, as far as the mask asks for them."""
    found: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = torch.ops.aten.convolution_backward(
        gradient, x, weight, [len(weight)], [1, 1], pads, [1, 1], False, [0, 0], 1, mask
    )
    return found


def _sheets(x: torch.Tensor, reach: int) -> torch.Tensor:
    """Pictures side by side, each followed by columns of zeros; the last sheet may not be full.

    Shape:
        [B, C, H, W] to [ceil(B / n), C, H, n * (W + reach)], channels last in memory.
    """
    batch, channels, height, width = x.shape
    many = _per_sheet(x, reach)
    full, rest = divmod(batch, many)
    sheets = x.new_zeros(full + (rest > 0), height, many, width + reach, channels)
    pictures = x.permute(0, 2, 3, 1)
    whole = pictures[: full * many].reshape(full, many, height, width, channels)
    sheets[:full, :, :, :width] = whole.transpose(1, 2)
    if rest:
        sheets[full, :, :rest, :width] = pictures[full * many :].transpose(0, 1)
    return sheets.flatten(2, 3).permute(0, 3, 1, 2)


def _cut(sheets: torch.Tensor, x: torch.Tensor, reach: int) -> torch.Tensor:
    """Cut the pictures out of sheets that were laid out like x.

    Shape:
        [ceil(B / n), O, H, n * (W + reach)] to [B, O, H, W], channels last in memory.
    """
    batch, _, height, width = x.shape
    apart = (len(sheets), height, _per_sheet(x, reach), width + reach, sheets.shape[1])
    columns = sheets.permute(0, 2, 3, 1).reshape(apart)[:, :, :, :width]
    pictures = columns.transpose(1, 2).flatten(0, 1)[:batch]
    return pictures.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _per_sheet(x: torch.Tensor, reach: int) -> int:
    return min(len(x), -(-_WIDTH // (x.shape[3] + reach)))


def _reach(weight: torch.Tensor) -> Pair:
    """Rows and columns that a kernel of odd sides sees beyond its middle."""
    return weight.shape[2] // 2, weight.shape[3] // 2


def _pair(value: int | str | Sequence[int]) -> Pair | None:
    """Both numbers of a setting; None if it is a word."""
    if isinstance(value, str):
        return None
    if isinstance(value, int):
        return value, value
    both = tuple(value)
    return (both[0], both[-1])
