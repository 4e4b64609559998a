"""Convolutions of small maps: on sheets or not, the same numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fieldmark.machine import device, small_maps
from fieldmark.networks.layers import SameConv2d

Pair = tuple[int, int]
Numbers = Callable[..., torch.Tensor]


@contextlib.contextmanager
def bf16(*, amx: bool = True) -> Iterator[None]:
    with torch.autocast("cpu", dtype=torch.bfloat16), small_maps.SmallMaps(amx=amx):
        yield


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the inputs that were convolved here."""
    shapes: list[tuple[int, ...]] = []
    original: Callable[..., torch.Tensor] = small_maps._Convolution.apply

    def counted(x: torch.Tensor, *rest: torch.Tensor | None) -> torch.Tensor:
        shapes.append(tuple(x.shape))
        return original(x, *rest)

    monkeypatch.setattr(small_maps._Convolution, "apply", counted)
    return shapes


def picture(*shape: int) -> torch.Tensor:
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A layer, its input and the gradient of its output."""

    layer: nn.Conv2d
    x: torch.Tensor
    towards: torch.Tensor


def case(kernel: Pair, shape: Pair, batch: int, *, bias: bool, numbers: Numbers) -> Case:
    torch.manual_seed(0)
    pads = (kernel[0] // 2, kernel[1] // 2)
    layer = nn.Conv2d(32, 48, kernel, padding=pads, bias=bias).to(memory_format=torch.channels_last)
    for parameter in layer.parameters():
        parameter.data.copy_(numbers(*parameter.shape))
    x = numbers(batch, 32, *shape).contiguous(memory_format=torch.channels_last)
    return Case(layer=layer, x=x, towards=numbers(batch, 48, *shape))


def computed(case: Case, *contexts: contextlib.AbstractContextManager[None]) -> list[torch.Tensor]:
    """The layer's output and the gradients of its input, kernel and bias."""
    x = case.x.clone(memory_format=torch.preserve_format).requires_grad_()
    case.layer.zero_grad()
    with contextlib.ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        y = case.layer(x)
    (y.float() * case.towards).sum().backward()
    gradients = [x.grad, *(parameter.grad for parameter in case.layer.parameters())]
    return [y.detach(), *(each for each in gradients if each is not None)]


def few_ones(*shape: int) -> torch.Tensor:
    """1, -1 and mostly 0: bf16 holds every sum of their products, so that nothing is rounded."""
    return (torch.rand(*shape) < 0.25) * torch.randn(*shape).sign()


def any_numbers(*shape: int) -> torch.Tensor:
    """Numbers that bf16 holds; the sums of their products are rounded."""
    return torch.randn(*shape).bfloat16().float()


MAPS = pytest.mark.parametrize(
    ("kernel", "shape", "batch", "bias"),
    [
        ((3, 3), (8, 8), 8, True),
        ((3, 3), (4, 4), 19, False),
        ((3, 3), (3, 7), 16, True),
        ((3, 3), (1, 1), 41, False),
        ((5, 5), (6, 6), 23, True),
        ((7, 7), (4, 4), 9, False),
        ((1, 3), (5, 2), 30, True),
        ((3, 1), (2, 5), 30, False),
    ],
)
SHEETS = pytest.mark.parametrize(
    "large", [False, True], ids=["gradient on sheets", "all on sheets"]
)


@SHEETS
@MAPS
def test_exactly_the_numbers_and_gradients_of_f32(
    kernel: Pair,
    shape: Pair,
    batch: int,
    bias: bool,
    large: bool,
    served: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where no sum is rounded, whatever a processor does with bf16 changes nothing."""
    monkeypatch.setattr(small_maps, "_LARGE_KERNEL", 0 if large else 2**30)
    small = case(kernel, shape, batch, bias=bias, numbers=few_ones)
    ours, theirs = computed(small, bf16()), computed(small)
    assert served == [(batch, 32, *shape)]
    assert ours[0].dtype == torch.bfloat16
    assert ours[0].is_contiguous(memory_format=torch.channels_last)
    assert len(ours) == len(theirs) == 3 + bias
    for mine, other in zip(ours, theirs, strict=True):
        assert 3 < other.abs().max() < 256  # what 8 bits count up to
        assert torch.equal(mine.float(), other)


@SHEETS
@MAPS
def test_no_less_accurate_than_torchs_own_bf16(
    kernel: Pair,
    shape: Pair,
    batch: int,
    bias: bool,
    large: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Processors differ in how they round; this one's own convolution is the measure."""
    monkeypatch.setattr(small_maps, "_LARGE_KERNEL", 0 if large else 2**30)
    any_ = case(kernel, shape, batch, bias=bias, numbers=any_numbers)
    autocast = torch.autocast("cpu", dtype=torch.bfloat16)
    exact, torchs, ours = computed(any_), computed(any_, autocast), computed(any_, bf16())
    for wanted, other, mine in zip(exact, torchs, ours, strict=True):
        error, allowed = ((each.float() - wanted).norm() for each in (mine, other))
        assert 0 < allowed < 0.01 * wanted.norm()
        assert error <= 1.1 * allowed  # sums in another order


@pytest.mark.parametrize("large", [False, True])
def test_a_pictures_answer_depends_on_no_other_picture(
    large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_maps, "_LARGE_KERNEL", 0 if large else 2**30)
    torch.manual_seed(0)
    weight = torch.randn(64, 32, 5, 5)
    x = picture(21, 32, 4, 4)
    other = x.clone()
    other[:7], other[8:] = 1e4, -1e4
    with bf16():
        one, two = (F.conv2d(each, weight, padding=2)[7] for each in (x, other))
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("change", "amx"),
    [
        ({"stride": 2}, True),
        ({"groups": 2, "weight": torch.ones(48, 16, 3, 3)}, True),
        ({"dilation": 2, "padding": 2}, True),
        ({"padding": "same"}, True),
        ({"padding": 0}, True),
        ({"weight": torch.ones(48, 32, 2, 2)}, True),
        ({"weight": torch.ones(48, 32, 1, 1), "padding": 0}, True),
        ({"weight": torch.ones(8, 32, 3, 3)}, True),
        ({"x": picture(16, 32, 9, 4)}, True),
        ({"x": picture(7, 32, 4, 4)}, True),
        ({"x": torch.ones(16, 32, 4, 4)}, True),
        ({"x": torch.ones(32, 4, 4)}, True),
        ({}, False),
    ],
    ids=[
        "strided",
        "grouped",
        "dilated",
        "word",
        "unpadded",
        "even",
        "1x1",
        "few-channels",
        "large-map",
        "few-pictures",
        "channels-first",
        "one-picture",
        "without-amx",
    ],
)
def test_everything_else_is_torchs(
    change: dict[str, Any], amx: bool, served: list[tuple[int, ...]]
) -> None:
    kernels = torch.ones(48, 32, 3, 3)
    settings = {"x": picture(16, 32, 4, 4), "weight": kernels, "padding": 1, **change}
    x, weight = settings.pop("x"), settings.pop("weight")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = F.conv2d(x, weight, **settings)
    with bf16(amx=amx):
        got = F.conv2d(x, weight, **settings)
    assert not served
    assert torch.equal(got, expected)


def test_numbers_of_32_bits_are_left_alone(served: list[tuple[int, ...]]) -> None:
    x, weight = picture(16, 32, 4, 4), torch.ones(48, 32, 3, 3)
    with small_maps.SmallMaps(amx=True):
        assert F.conv2d(x, weight, padding=1).dtype == torch.float32
        with bf16(), torch.autocast("cpu", enabled=False):
            assert F.conv2d(x, weight, padding=1).dtype == torch.float32
    assert not served


def test_without_a_matrix_unit_only_hardly_a_map_is(served: list[tuple[int, ...]]) -> None:
    weight = torch.ones(48, 32, 3, 3)
    with bf16(amx=False):
        for side in (2, 3):
            F.conv2d(picture(16, 32, side, side), weight, padding=1)
    assert served == [(16, 32, 2, 2)]


@pytest.mark.parametrize(("kernel", "size"), [(3, 2), (7, 2), (5, 4), (7, 1)])
def test_kernels_that_are_cut_to_the_map(
    kernel: int, size: int, served: list[tuple[int, ...]]
) -> None:
    torch.manual_seed(0)
    layer = SameConv2d(64, 32, kernel, bias=False).to(memory_format=torch.channels_last)
    layer.weight.data.copy_(few_ones(*layer.weight.shape))
    x = few_ones(16, 64, size, size).contiguous(memory_format=torch.channels_last)
    with bf16():
        got = layer(x)
    assert len(served) == (size > 1)  # of a kernel cut to one tap there is nothing to lay out
    assert torch.equal(got.float(), layer(x))
    got.float().square().sum().backward()
    assert layer.weight.grad is not None
    assert torch.isfinite(layer.weight.grad).all()
    rows = max(0, kernel // 2 - size + 1)
    assert not layer.weight.grad[:, :, :rows].any()
    assert layer.weight.grad[:, :, rows].any()


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("trained", [(True, False), (False, True), (False, False)])
def test_only_gradients_that_are_wanted(
    trained: tuple[bool, bool], large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a layer that is frozen, or the first of the network."""
    monkeypatch.setattr(small_maps, "_LARGE_KERNEL", 0 if large else 2**30)
    torch.manual_seed(0)
    x, weight = picture(16, 32, 4, 4), torch.randn(48, 32, 3, 3)
    bias = torch.zeros(48, requires_grad=True)
    x.requires_grad_(trained[0])
    weight.requires_grad_(trained[1])
    with bf16():
        F.conv2d(x, weight, bias, padding=1).float().sum().backward()
    assert (x.grad is not None, weight.grad is not None) == trained
    assert bias.grad is not None
    assert bias.grad.tolist() == [16 * 16] * 48


@pytest.mark.parametrize(
    ("precision", "amx", "many"), [("bf16", True, 2), ("bf16", False, 1), ("f32", True, 0)]
)
def test_training_on_a_processor_computes_so(
    precision: str,
    amx: bool,
    many: int,
    served: list[tuple[int, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever processor this is."""
    monkeypatch.setattr(device, "capabilities", lambda: {"amx_bf16": amx})
    with device.Device("cpu", precision).autocast():
        F.conv2d(picture(16, 32, 2, 2), torch.ones(48, 32, 3, 3), padding=1)
        F.conv2d(picture(16, 32, 4, 4), torch.ones(48, 32, 3, 3), padding=1)
    assert len(served) == many
