"""The contract that every network keeps, and the exactness of those named after tutorials."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fieldmark import models
from fieldmark.errors import ConfigError, FieldmarkError
from fieldmark.models import MODELS
from fieldmark.networks.cifar_resnet import cifar_resnet
from fieldmark.networks.layers import FlattenHWC, SameConv2d, SameMaxPool2d, init_he_normal
from fieldmark.pictures.inputs import InputSpec

OWN = {
    "cifar_resnet": 16,
    "cifar_resnet(depth=20, version=2)": 12,
    "small_cnn": 8,
    "small_cnn(width=4, dropout=0)": 5,
    "sneaker_cnn(size=32)": 32,
    "cifar_resnet(depth=8, centre=16)": 16,
    "cifar_resnet18": 16,
    "cifar_vgg16": 32,
    "cifar_vgg16_big(dropout=0)": 32,
    "cifar_googlenet": 16,
    "whitened_cnn": 9,
    "whitened_cnn(widths=(8, 4, 16), scale=1)": 20,
    "resnet50_unpadded": 48,
    "keras_resnet": 32,
    "keras_resnet(depth=50, version=2)": 32,
    "keras_vgg(top='mean')": 32,
    "keras_densenet": 32,
}
TIMM = {
    "timm/test_resnet": 64,
    "timm/resnet18": 64,
    "timm/mobilenetv3_small_050": 64,
    "timm/vit_tiny_patch16_224": 32,
    "timm/test_vit(drop_path_rate=0.1)": 32,
}


TWO = ("small_cnn", "cifar_resnet", "sneaker_cnn(size=32)", "timm/test_resnet")


@pytest.mark.parametrize(
    ("spec", "size", "num_classes"),
    [
        *((spec, size, 7) for spec, size in (OWN | TIMM).items()),
        *((spec, (OWN | TIMM)[spec], 2) for spec in TWO),
    ],
)
def test_contract(spec: str, size: int, num_classes: int) -> None:
    models.check(spec)
    torch.manual_seed(1)
    first = models.create(spec, num_classes=num_classes, weights="none", size=size)
    torch.manual_seed(1)
    again = models.create(first.spec, num_classes=num_classes, weights="none", size=size)
    assert again.spec == first.spec
    assert isinstance(first.input, InputSpec)
    assert first.input.size == size
    assert first.weights == "none"
    states = first.module.state_dict(), again.module.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])
    head = first.module.get_submodule(first.head)
    assert isinstance(head, nn.Linear)
    assert head.out_features == num_classes
    assert first.num_params == sum(p.numel() for p in first.module.parameters())
    images = first.input.normalize(torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8))
    logits = first.module.eval()(images)
    assert logits.shape == (2, num_classes)
    assert logits.dtype == torch.float32
    assert bool(torch.isfinite(logits).all())
    torch.manual_seed(2)
    other = models.create(spec, num_classes=num_classes, weights="none", size=size)
    assert not torch.equal(other.module.get_submodule(first.head).weight, head.weight)


def test_the_table_is_covered() -> None:
    assert {s.partition("(")[0] for s in OWN} == set(MODELS)
    assert models.listing("") == models.listing("")
    assert set(models.listing("")) == set(MODELS)
    assert all(models.listing("").values())
    assert set(models.listing("cifar_r")) == {"cifar_resnet", "cifar_resnet18"}
    listed = models.listing("timm/resnet18")
    assert "timm/resnet18" in listed
    assert "a1_in1k" in listed["timm/resnet18"]


@pytest.mark.parametrize("spec", ["small_cnn", "cifar_resnet", "timm/test_resnet"])
def test_size_and_resize_go_over_the_networks_own(spec: str) -> None:
    own = models.create(spec, num_classes=2, weights="none").input
    changed = models.create(spec, num_classes=2, weights="none", size=40, resize="pad").input
    assert (changed.size, changed.resize) == (40, "pad")
    assert (changed.mean, changed.std, changed.crop) == (own.mean, own.std, own.crop)


def test_timm_inputs_are_timms() -> None:
    spec = models.create("timm/resnet18.a1_in1k", num_classes=2, weights="none").input
    assert (spec.size, spec.interpolation, spec.resize, spec.crop) == (224, "bicubic", "crop", 0.95)
    assert spec.mean == (0.485, 0.456, 0.406)
    assert spec.std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("cifar_resnt", "did you mean 'cifar_resnet'"),
        ("resnet18", "did you mean 'timm/resnet18'"),
        ("resnet50.a1_in1k", "did you mean 'timm/resnet50.a1_in1k'"),
        ("timm/resnet19", "did you mean 'resnet1"),
        ("timm/resnet18.a1_in1l", "did you mean 'a1_in1k'"),
        ("timm/", "timm has no model"),
        ("small_cnn(widht=3)", "did you mean 'width'"),
    ],
)
def test_unknown_names_are_refused_by_check_too(spec: str, says: str) -> None:
    for function in (models.check, lambda s: models.create(s, num_classes=2, weights="none")):
        with pytest.raises(ConfigError) as caught:
            function(spec)
        assert says in str(caught.value)


@pytest.mark.parametrize(
    "spec",
    [
        "small_cnn(width=0)",
        "small_cnn(dropout=1.0)",
        "small_cnn(dropout=-0.1)",
        "cifar_resnet(version=3)",
        "timm/test_resnet(pretrained=True)",
        "timm/test_resnet(num_classes=3)",
        "timm/test_resnet(checkpoint_path='x')",
        "timm/test_resnet('x')",
        "timm/test_resnet(no_such_argument=1)",
    ],
)
def test_arguments_that_networks_refuse(spec: str) -> None:
    with pytest.raises(ConfigError):
        models.create(spec, num_classes=2, weights="none")


def test_weights_that_do_not_exist_are_never_ignored(tmp_path: Path) -> None:
    for weights in ("hub", str(tmp_path / "no.pth"), "nonsense"):
        with pytest.raises(FieldmarkError):
            models.create("small_cnn", num_classes=2, weights=weights)


# --- cifar_resnet: exact -------------------------------------------------------------------------


def keras_counts(depth: int, version: int, classes: int = 10) -> tuple[int, int]:
    """(all, trainable) parameters, layer by layer as in Keras's cifar10_resnet example."""
    total, trainable = 0, 0

    def conv(cin: int, cout: int, k: int) -> int:
        nonlocal total, trainable
        total += k * k * cin * cout + cout
        trainable += k * k * cin * cout + cout
        return cout

    def norm(c: int) -> None:
        nonlocal total, trainable
        total += 4 * c
        trainable += 2 * c

    x = conv(3, 16, 3)
    norm(x)
    if version == 1:
        filters = 16
        for stack in range(3):
            for block in range((depth - 2) // 6):
                y = conv(x, filters, 3)
                norm(y)
                y = conv(y, filters, 3)
                norm(y)
                if stack > 0 and block == 0:
                    conv(x, filters, 1)
                x = y
            filters *= 2
    else:
        filters = 16
        for stage in range(3):
            out = filters * 4 if stage == 0 else filters * 2
            for block in range((depth - 2) // 9):
                if not (stage == 0 and block == 0):
                    norm(x)
                y = conv(x, filters, 1)
                norm(y)
                y = conv(y, filters, 3)
                norm(y)
                y = conv(y, out, 1)
                if block == 0:
                    conv(x, out, 1)
                x = y
            filters = out
        norm(x)
    dense = x * classes + classes
    return total + dense, trainable + dense


def counts(module: nn.Module) -> tuple[int, int]:
    floats = [b for b in module.buffers() if b.is_floating_point()]
    trainable = sum(p.numel() for p in module.parameters())
    return trainable + sum(b.numel() for b in floats), trainable


def test_the_tutorials_parameter_counts() -> None:
    assert counts(cifar_resnet(10)) == (274_442, 273_066)
    assert keras_counts(20, 1) == (274_442, 273_066)


@pytest.mark.parametrize(
    ("depth", "version"), [(8, 1), (32, 1), (56, 1), (110, 1), (11, 2), (20, 2), (29, 2), (56, 2)]
)
def test_parameter_counts_follow_keras(depth: int, version: int) -> None:
    assert counts(cifar_resnet(10, depth, version)) == keras_counts(depth, version)
    few, many = cifar_resnet(2, depth, version), cifar_resnet(100, depth, version)
    width = few.head.in_features
    assert counts(many)[1] - counts(few)[1] == 98 * (width + 1)


@pytest.mark.parametrize(
    ("depth", "version"),
    [(0, 1), (2, 1), (18, 1), (21, 1), (-4, 1), (2, 2), (21, 2), (32, 2), (10**6 * 6 + 2, 1)],
)
def test_other_depths_do_not_exist(depth: int, version: int) -> None:
    with pytest.raises(ConfigError, match=f"depth is {depth}"):
        models.create(f"cifar_resnet({depth}, {version})", num_classes=2)


def test_depth_is_the_number_of_layers_with_weights() -> None:
    for depth, version in ((20, 1), (26, 1), (20, 2)):
        module = cifar_resnet(10, depth, version)
        main = [
            n
            for n, m in module.named_modules()
            if isinstance(m, nn.Conv2d | nn.Linear) and "shortcut" not in n
        ]
        assert len(main) == depth


def test_norms_are_kerass() -> None:
    norms = [m for m in cifar_resnet(10, 20, 2).modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 19
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.01)}


def same_convolution(
    x: np.ndarray, kernel: np.ndarray, bias: np.ndarray, stride: int
) -> np.ndarray:
    """Keras's 'same' convolution by its definition, one output at a time."""
    _, height, width = x.shape
    k = kernel.shape[2]
    out_h, out_w = math.ceil(height / stride), math.ceil(width / stride)
    pad_h = max((out_h - 1) * stride + k - height, 0)
    pad_w = max((out_w - 1) * stride + k - width, 0)
    padded = np.zeros((x.shape[0], height + pad_h, width + pad_w))
    padded[:, pad_h // 2 : pad_h // 2 + height, pad_w // 2 : pad_w // 2 + width] = x
    out = np.zeros((kernel.shape[0], out_h, out_w))
    for i in range(out_h):
        for j in range(out_w):
            patch = padded[:, i * stride : i * stride + k, j * stride : j * stride + k]
            out[:, i, j] = (patch[None] * kernel).sum(axis=(1, 2, 3)) + bias
    return out


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_same_padding(kernel: int, stride: int) -> None:
    torch.manual_seed(0)
    layer = SameConv2d(2, 3, kernel, stride)
    for shape in ((8, 8), (7, 9), (1, 5), (3, 2)):
        x = torch.randn(1, 2, *shape)
        wanted = same_convolution(
            x[0].numpy(), layer.weight.detach().numpy(), layer.bias.detach().numpy(), stride
        )
        got = layer(x)[0].detach().numpy()
        assert got.shape == wanted.shape
        assert np.allclose(got, wanted, atol=1e-5)


def test_same_padding_differs_from_torchs_at_stride_two() -> None:
    torch.manual_seed(0)
    layer = SameConv2d(1, 1, 3, 2)
    x = torch.randn(1, 1, 8, 8)
    torchs = F.conv2d(x, layer.weight, layer.bias, stride=2, padding=1)
    assert torchs.shape == layer(x).shape
    assert not torch.allclose(torchs, layer(x))


def test_he_normal() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(64, 128, 3)
    init_he_normal(layer)
    wanted = math.sqrt(2 / (64 * 9))
    weights = layer.weight.detach()
    assert float(weights.std()) == pytest.approx(wanted, rel=0.01)
    assert abs(float(weights.mean())) < wanted / 50
    limit = 2 * wanted / 0.87962566103423978
    assert float(weights.abs().max()) <= limit
    assert float(weights.abs().max()) > 0.98 * limit
    assert not layer.bias.detach().any()
    linear = nn.Linear(200, 300)
    init_he_normal(linear)
    assert float(linear.weight.detach().std()) == pytest.approx(math.sqrt(2 / 200), rel=0.02)


def test_sizes_down_to_one_pixel_are_taken() -> None:
    for spec in ("small_cnn(width=2)", "cifar_resnet(depth=8)"):
        module = models.create(spec, num_classes=3).module.eval()
        for size in (1, 2, 4, 7, 33):
            assert module(torch.zeros(2, 3, size, size)).shape == (2, 3)


# --- which weights there are ---------------------------------------------------------------------


def test_is_pretrained_agrees_with_what_create_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.timm_models, "in_hub_cache", lambda name: False)
    assert not models.is_pretrained("small_cnn", "auto")
    assert not models.is_pretrained("timm/resnet18", "auto")
    assert not models.is_pretrained("timm/resnet18.a1_in1k", "none")
    assert models.is_pretrained("timm/resnet18.a1_in1k", "auto")
    assert models.is_pretrained("timm/resnet18", "hub")
    assert models.is_pretrained("small_cnn", "some/file.pth")
    network = models.create("timm/test_resnet", num_classes=2)
    assert network.weights == "none"
    assert "--weights hub" in network.warnings[0]


def test_asking_for_published_weights_and_none_at_once_is_said() -> None:
    network = models.create("timm/resnet18.a1_in1k", num_classes=2, weights="none")
    assert "'a1_in1k'" in network.notes[0]
    assert network.weights == "none"


def test_the_preferred_network_is_the_first_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    for names in models.PREFERRED.values():
        for name in names:
            models.check(name)
    here = {"resnet18.a1_in1k"}
    monkeypatch.setattr(models.timm_models, "in_hub_cache", here.__contains__)
    assert models.local_pretrained("cpu") == "timm/resnet18.a1_in1k"
    here.add("resnet50.a1_in1k")
    assert models.local_pretrained("cuda") == "timm/resnet50.a1_in1k"
    here.clear()
    monkeypatch.setattr(models.timm_models, "packaged_file", lambda name: None)
    assert models.local_pretrained("cpu") == ""


@pytest.mark.parametrize(
    "spec",
    [
        "sneaker_cnn(size=31)",
        "sneaker_cnn(dropout=1)",
        "cifar_vgg16(size=16)",
        "cifar_vgg16(dropout=1.5)",
        "cifar_googlenet(dropout=1)",
        "cifar_resnet18(dropout=-1)",
        "cifar_resnet(centre=-1)",
        "resnet50_unpadded(outputs=1)",
        "keras_resnet(depth=34)",
        "keras_resnet(version=3)",
        "keras_vgg(depth=11)",
        "keras_vgg(top='max')",
        "keras_densenet(depth=100)",
    ],
)
def test_arguments_out_of_range_are_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"accepted|exist|built for"):
        models.create(spec, num_classes=3, weights="none")


def test_outputs_without_a_class_train_and_are_not_scored() -> None:
    network = models.create("resnet50_unpadded(outputs=9)", num_classes=4, weights="none")
    x = torch.zeros(2, 3, 48, 48)
    assert network.module.train()(x).shape == (2, 9)
    assert network.module.eval()(x).shape == (2, 4)


@pytest.mark.parametrize(("kernel", "stride"), [(2, 1), (3, 2), (2, 2), (3, 1), (5, 3)])
def test_same_pooling_is_kerass(kernel: int, stride: int) -> None:
    """Against a loop over the windows that Keras's rule names."""
    for size in (5, 6, 7, 8, 9, 15):
        assert_pooling_is_kerass(kernel, stride, size)


def assert_pooling_is_kerass(kernel: int, stride: int, size: int) -> None:
    x = torch.randn(1, 2, size, size + 3) - 5  # mostly negative, so that zeros would win
    got = SameMaxPool2d(kernel, stride)(x)
    for axis, extent in enumerate(x.shape[2:]):
        assert got.shape[2 + axis] == -(-extent // stride)
    starts = [
        [i * stride - max((-(-n // stride) - 1) * stride + kernel - n, 0) // 2 for i in range(m)]
        for n, m in zip(x.shape[2:], got.shape[2:], strict=True)
    ]
    for i, top in enumerate(starts[0]):
        for j, left in enumerate(starts[1]):
            window = x[0, :, max(top, 0) : top + kernel, max(left, 0) : left + kernel]
            assert torch.equal(got[0, :, i, j], window.amax(dim=(1, 2)))


def test_flattening_is_channels_fastest() -> None:
    x = torch.arange(2 * 3 * 4 * 5.0).view(2, 3, 4, 5)
    expected = x.numpy().transpose(0, 2, 3, 1).reshape(2, -1)
    assert np.array_equal(FlattenHWC()(x).numpy(), expected)


def test_tutorial_networks_are_built_for_their_size() -> None:
    assert models.create("sneaker_cnn", num_classes=2, weights="none", size=64).spec == (
        "sneaker_cnn(size=64)"
    )
    own = models.create("keras_resnet(depth=50, version=2)", num_classes=2, weights="none").input
    assert (own.mean, own.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    caffe = models.create("keras_resnet", num_classes=2, weights="none").input
    white = caffe.normalize(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).flatten()
    assert white.tolist() == pytest.approx([255 - 123.68, 255 - 116.779, 255 - 103.939], rel=1e-5)


@pytest.mark.parametrize(("kernel", "size"), [(7, 2), (7, 1), (7, 3), (7, 4), (5, 2), (3, 1)])
def test_taps_that_see_padding_only_have_no_gradient(kernel: int, size: int) -> None:
    """The same numbers as with the whole kernel, and exactly none where none can be."""
    torch.manual_seed(0)
    layer = SameConv2d(3, 4, kernel)
    whole = nn.Conv2d(3, 4, kernel, padding="same")
    whole.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, size, size + 1)
    got, expected = layer(x), whole(x)
    assert torch.allclose(got, expected, atol=1e-6)
    got.square().sum().backward()
    expected.square().sum().backward()
    assert layer.weight.grad is not None
    assert whole.weight.grad is not None
    assert torch.allclose(layer.weight.grad, whole.weight.grad, atol=1e-4)
    rows = max(0, kernel // 2 - size + 1)
    assert not layer.weight.grad[:, :, :rows].any()
    assert layer.weight.grad[:, :, rows].any()
