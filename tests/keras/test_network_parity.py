"""Every network that is named after Keras code gives the numbers of that code.

For each of them the same weights stand in both: random, with biases, scales, shifts and moving
statistics that are nothing like fresh ones. They are copied layer by layer in the order in which
the layers are called, which thereby is compared too. The gradients are compared in 64 bits: batch
norm over a handful of values multiplies 32-bit rounding, so that two right networks would differ.
"""

from __future__ import annotations

import contextlib
import functools
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from fieldmark import models
from fieldmark.models.summary import parameters

os.environ.setdefault("KERAS_BACKEND", "torch")
pytest.importorskip("keras.layers")
import keras
from keras import applications as apps
from tests.keras import tutorials

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
CAFFE = (apps.resnet.preprocess_input, apps.vgg16.preprocess_input, apps.vgg19.preprocess_input)
KINDS = {nn.Conv2d: "Conv2D", nn.Linear: "Dense"} | dict.fromkeys(
    (nn.BatchNorm1d, nn.BatchNorm2d), "BatchNormalization"
)
NORMS = nn.BatchNorm1d | nn.BatchNorm2d
KIND_OF = keras.layers.Conv2D, keras.layers.Dense, keras.layers.BatchNormalization


@dataclass(frozen=True)
class Case:
    """A network of ours and the Keras code that it follows, without dropout."""

    spec: str
    build: Callable[[int, int], keras.Model]
    """Takes the number of classes and the size."""
    size: int = 32
    preprocess: Callable[[np.ndarray], np.ndarray] | None = None
    """Keras's own, from pixels 0 to 255; None is mean and deviation, written out below."""
    deeper: bool = False
    """More units of what another case has: left to the slow tests, but for its number of values."""
    slow: bool = False
    """Whether the gradients are left to the slow tests: another case has the same layers."""

    @property
    def caffe(self) -> bool:
        """Whether Keras has blue-green-red pixels, and we have turned the first kernel around."""
        return self.preprocess in CAFFE


def _app(build: Callable[..., keras.Model]) -> Callable[[int, int], keras.Model]:
    def model(classes: int, size: int) -> keras.Model:
        return build(weights=None, classes=classes, input_shape=(size, size, 3))

    return model


def _mean_top(build: Callable[..., keras.Model]) -> Callable[[int, int], keras.Model]:
    """What one writes to fine-tune: the body, the mean and a dense layer."""

    def model(classes: int, size: int) -> keras.Model:
        body = build(weights=None, include_top=False, pooling="avg", input_shape=(size, size, 3))
        dense = keras.layers.Dense(classes, activation="softmax")
        return keras.Model(body.input, dense(body.output))

    return model


def _resnet_cases() -> Iterator[tuple[str, Case]]:
    for version, module in ((1, apps.resnet), (2, apps.resnet_v2)):
        for depth in (50, 101, 152):
            name = f"ResNet{depth}" + ("V2" if version == 2 else "")
            yield (
                name,
                Case(
                    f"keras_resnet(depth={depth}, version={version})",
                    _app(getattr(module, name)),
                    64,
                    module.preprocess_input,
                    deeper=depth > 50,
                    slow=version == 1,  # the units of 001
                ),
            )


def tiny(make: Callable[..., Any], depth: int, n: int, s: int) -> Any:
    return make(depth, n, size=s)


CASES: dict[str, Case] = {
    "002": Case("sneaker_cnn(dropout=0.0)", lambda n, s: tutorials.sneaker(n, size=s, dropout=0)),
    "001": Case(
        "resnet50_unpadded",
        lambda n, s: tutorials.resnet50(n, size=s, pool=2),
        64,
        apps.resnet.preprocess_input,
    ),
    **{
        f"003 v1 {depth}": Case(
            f"cifar_resnet(depth={depth})",
            partial(tiny, tutorials.tiny_resnet_v1, depth),
            deeper=depth not in (8, 20, 44),
            slow=depth == 44,
        )
        for depth in (8, 14, 20, 26, 32, 38, 44)
    },
    **{
        f"003 v2 {depth}": Case(
            f"cifar_resnet(depth={depth}, version=2)",
            partial(tiny, tutorials.tiny_resnet_v2, depth),
        )
        for depth in (11, 20, 29)
    },
    "004 VGG16": Case(
        "cifar_vgg16(dropout=0.0)", lambda n, s: tutorials.vgg16(n, size=s, dropout=0)
    ),
    "004 VGG16_bigConv": Case(
        "cifar_vgg16_big(dropout=0.0)",
        lambda n, s: tutorials.vgg16_big(n, size=s, dropout=0),
        slow=True,
    ),
    "004 GoogLeNet_V3": Case(
        "cifar_googlenet(dropout=0.0)", lambda n, s: tutorials.googlenet(n, size=s, dropout=0)
    ),
    "004 GoogLeNet_V3, as meant": Case(
        "cifar_googlenet(dropout=0.0, pooled=True)",
        lambda n, s: tutorials.googlenet(n, size=s, dropout=0, pooled=True),
    ),
    "004 ResNet18": Case(
        "cifar_resnet18(dropout=0.0)", lambda n, s: tutorials.resnet18(n, size=s, dropout=0)
    ),
    **dict(_resnet_cases()),
    "VGG16": Case("keras_vgg", _app(apps.VGG16), 64, apps.vgg16.preprocess_input, slow=True),
    "VGG19": Case(
        "keras_vgg(depth=19)", _app(apps.VGG19), 64, apps.vgg19.preprocess_input, deeper=True
    ),
    "VGG16 mean": Case(
        "keras_vgg(top='mean')", _mean_top(apps.VGG16), 70, apps.vgg16.preprocess_input, slow=True
    ),
    **{
        f"DenseNet{depth}": Case(
            f"keras_densenet(depth={depth})",
            _app(getattr(apps, f"DenseNet{depth}")),
            64,
            apps.densenet.preprocess_input,
            deeper=depth > 121,
        )
        for depth in (121, 169, 201)
    },
}
OTHER_SIZES = [
    # What no stride divides: the padding that Keras calls "same", and pools that leave a rest.
    *(("003 v1 20", 35), ("003 v2 20", 33), ("003 v2 20", 46), ("002", 39), ("002", 45)),
    *(("004 ResNet18", size) for size in (33, 46)),
    *(("004 GoogLeNet_V3", size) for size in (17, 46)),
    *(("004 VGG16", 47), ("ResNet50", 65), ("DenseNet121", 75)),
    # The same padding and pools once more, in large networks.
    *(
        pytest.param(name, size, marks=pytest.mark.slow)
        for name, size in (("ResNet50V2", 75), ("004 VGG16_bigConv", 67), ("VGG16", 75))
    ),
]


@contextlib.contextmanager
def keras_in_64_bits() -> Iterator[None]:
    """Keras computes in 64 bits inside.

    On torch its matrix products and batch norms go down to 32 bits whatever they are given; a table
    of its own says so.
    """
    from keras.src.backend.common import dtypes

    before = keras.config.floatx(), keras.config.dtype_policy()
    keras.config.set_floatx("float64")
    keras.config.set_dtype_policy("float64")
    try:
        with mock.patch.dict(dtypes.BIT64_TO_BIT32_DTYPE, float64="float64"):
            yield
    finally:
        keras.config.set_floatx(before[0])
        keras.config.set_dtype_policy(before[1])


@contextlib.contextmanager
def _keras_calls() -> Iterator[list[keras.layers.Layer]]:
    """Collects the layers with weights in the order in which they are called."""
    calls: list[keras.layers.Layer] = []
    original = keras.layers.Layer.__call__

    @functools.wraps(original)
    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        if isinstance(layer, KIND_OF) and layer not in calls:
            calls.append(layer)
        return original(layer, *args, **kwargs)

    with mock.patch.object(keras.layers.Layer, "__call__", call):
        yield calls


def _calls(module: nn.Module, images: torch.Tensor) -> list[nn.Module]:
    """Our layers with weights in the order in which they are called."""
    calls: list[nn.Module] = []
    hooks = [
        layer.register_forward_pre_hook(lambda m, _: calls.append(m))
        for layer in module.modules()
        if isinstance(layer, tuple(KINDS))
    ]
    with torch.no_grad():
        module(images)
    for hook in hooks:
        hook.remove()
    return calls


def norms(module: nn.Module) -> list[nn.BatchNorm1d | nn.BatchNorm2d]:
    return [m for m in module.modules() if isinstance(m, NORMS)]


def _kind(layer: nn.Module) -> str:
    return next(name for kind, name in KINDS.items() if isinstance(layer, kind))


class Twins:
    """One network twice, with the same weights."""

    def __init__(self, case: Case, *, size: int = 0, fresh: bool = False) -> None:
        self.case, self.size = case, size or case.size
        with _keras_calls() as calls:
            self.keras = case.build(10, self.size)
        self.dtype = getattr(torch, keras.config.floatx())
        network = models.create(case.spec, num_classes=10, weights="none", size=self.size)
        self.ours, self.input = network.module.eval().to(self.dtype), network.input
        order = _calls(self.ours, self.pair(noise(2, self.size))[0])
        self.layers = list(zip(order, calls, strict=True))
        if not fresh:
            self.randomise()
            self.copy()

    def randomise(self) -> None:
        """Values as of a trained network, none of them zero, one or the same as another."""
        draw = torch.Generator().manual_seed(7)
        momenta = {norm: norm.momentum for norm in norms(self.ours)}

        def normal(like: torch.Tensor, std: float) -> torch.Tensor:
            return torch.randn(like.shape, generator=draw, dtype=like.dtype) * std

        def uniform(like: torch.Tensor) -> torch.Tensor:
            return torch.rand(like.shape, generator=draw, dtype=like.dtype) + 0.5

        with torch.no_grad():
            for layer in self.ours.modules():
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    layer.weight.copy_(normal(layer.weight, (2 / layer.weight[0].numel()) ** 0.5))
                    if layer.bias is not None:
                        layer.bias.copy_(normal(layer.bias, 0.2))
            for norm in momenta:
                norm.weight.copy_(uniform(norm.weight))
                norm.bias.copy_(normal(norm.bias, 0.3))
                norm.momentum = 1.0
            # The statistics of a batch, moved away from it: a network that is alive to the end.
            self.ours.train()(self.pair(photos(4, self.size))[0])
            for norm, momentum in momenta.items():
                norm.momentum = momentum
                norm.running_mean.add_(normal(norm.running_mean, 0.2) * norm.running_var.sqrt())
                norm.running_var.mul_(uniform(norm.running_var))
        self.ours.eval()

    def copy(self) -> None:
        """Our values into Keras's layers."""
        for ours, theirs in self.layers:
            assert type(theirs).__name__ == _kind(ours)
            theirs.set_weights([value.detach().numpy() for value in self.weights(ours)])

    def weights(self, layer: nn.Module, *, grad: bool = False) -> list[torch.Tensor]:
        """Our layer's values, or its gradients, in Keras's order and layout."""
        first = layer is self.layers[0][0]
        if isinstance(layer, NORMS):
            values: list[Any] = [layer.weight, layer.bias]
        else:
            assert isinstance(layer, nn.Conv2d | nn.Linear)
            values = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
        if grad:
            values = [value.grad for value in values]
        if values[0].ndim > 1:
            axes = (2, 3, 1, 0) if values[0].ndim == 4 else (1, 0)
            values[0] = values[0].permute(axes)
            if first and self.case.caffe:
                values[0] = values[0].flip(2)
        elif not grad:
            values += [layer.running_mean, layer.running_var]
        return values

    def pair(self, pixels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """The same pictures as each side wants them: ours by our input description.

        Shape:
            uint8 [B, H, W, 3] to [B, 3, H, W] and [B, H, W, 3].
        """
        ours = self.input.normalize(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        theirs: Any = pixels.astype(np.float32)
        if self.case.preprocess is not None:
            theirs = self.case.preprocess(theirs)
        elif self.case.spec.startswith("cifar"):
            theirs = (theirs / 255 - (0.4914, 0.4822, 0.4465)) / (0.2470, 0.2435, 0.2616)
        theirs = torch.from_numpy(np.ascontiguousarray(theirs))  # 002 divides by itself
        return ours.to(self.dtype), theirs.to(self.dtype)

    def exact_pair(self, pixels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """As :meth:`pair`, with Keras's made of ours, so that they agree to the last bit."""
        ours, _ = self.pair(pixels)
        theirs = (ours.flip(1) if self.case.caffe else ours).permute(0, 2, 3, 1)
        return ours, theirs * 255 if self.case.spec.startswith("sneaker") else theirs

    def keras_logits(self, images: torch.Tensor, *, training: bool = False) -> torch.Tensor:
        """What goes into Keras's softmax."""
        last = self.keras.layers[-1]
        with mock.patch.object(last, "activation", keras.activations.linear):
            logits: torch.Tensor = self.keras(images, training=training)
        return logits


def noise(count: int, size: int) -> np.ndarray:
    """Pixels without any order. Shape: uint8 [count, size, size, 3]."""
    return np.random.default_rng(3).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def photos(count: int, size: int) -> np.ndarray:
    """Pictures with the statistics of photographs: power falls with the square of the frequency,
    the channels go together, every picture has its light and an edge.

    Shape:
        uint8 [count, size, size, 3].
    """
    draw = np.random.default_rng(5)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(size), np.fft.fftfreq(size)))
    spectrum = np.fft.fft2(draw.standard_normal((count, 4, size, size)))
    fields = np.fft.ifft2(spectrum / np.maximum(frequency, 1 / size)).real
    fields /= fields.std(axis=(2, 3), keepdims=True)
    pictures = fields[:, :1] + 0.4 * fields[:, 1:]
    edges = draw.integers(size // 4, 3 * size // 4, count)
    for picture, edge in zip(pictures, edges, strict=True):
        picture[:, edge:] += 1.5
    light = draw.uniform(60, 190, (count, 1, 1, 1))
    return (light + 45 * pictures).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1).copy()


def assert_same_outputs(twins: Twins, pixels: np.ndarray) -> None:
    """Logits and probabilities within 1e-4, and not because all pictures give the same."""
    ours, theirs = twins.pair(pixels)
    with torch.no_grad():
        logits, expected = twins.ours(ours), twins.keras_logits(theirs)
        probabilities = twins.keras(theirs, training=False)
    if twins.case.spec.startswith("sneaker"):
        probabilities = probabilities.softmax(dim=1)  # 002 ends in logits
    scale = max(1.0, float(expected.abs().max()))
    assert bool(torch.isfinite(expected).all())
    assert float(expected.std(dim=0).max()) > 0.01 * scale
    assert float((logits - expected).abs().max()) <= 1e-4 * scale
    # Softmax passes on at most half of what rounding in float32 does to logits of this size.
    rounding = 10 * torch.finfo(torch.float32).eps * scale
    assert float((logits.softmax(dim=1) - probabilities).abs().max()) <= 1e-4 + rounding / 2


def _cases(slow: Callable[[Case], bool]) -> list[Any]:
    marks = {True: [pytest.mark.slow], False: []}
    return [pytest.param(name, marks=marks[slow(case)]) for name, case in CASES.items()]


@pytest.fixture(scope="module", params=_cases(lambda case: case.deeper))
def twins(request: pytest.FixtureRequest) -> Twins:
    return Twins(CASES[request.param])


@pytest.fixture(scope="module")
def real_pictures(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    """Two pictures of each class of flowers and birds."""
    folder = tmp_path_factory.mktemp("real")
    found = []
    for name in ("flowers", "birds"):
        with tarfile.open(SHARED / f"{name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
        files = sorted(
            p for p in (folder / name).rglob("*") if p.suffix.lower() in (".jpg", ".png")
        )
        by_class: dict[str, list[Path]] = {}
        for file in files:
            by_class.setdefault(file.parent.name, []).append(file)
        found += [file for files in by_class.values() for file in files[:2]]
    assert len(found) == 18
    return [np.asarray(Image.open(file).convert("RGB")) for file in found]


def test_outputs(twins: Twins) -> None:
    assert_same_outputs(twins, np.concatenate([noise(2, twins.size), photos(3, twins.size)]))


@pytest.mark.shared
@pytest.mark.slow
def test_real_pictures(twins: Twins, real_pictures: list[np.ndarray]) -> None:
    pixels = [twins.input.pixels(picture).transpose(1, 2, 0) for picture in real_pictures]
    assert_same_outputs(twins, np.stack(pixels))


def test_parameters(twins: Twins) -> None:
    assert parameters(twins.ours) == keras_parameters(twins.keras)


def test_batch_norms_settings(twins: Twins) -> None:
    """Which move the outputs too little to be seen there."""
    for layer, other in twins.layers:
        if isinstance(layer, NORMS):
            assert layer.eps == other.epsilon
            assert 1 - layer.momentum == other.momentum


def keras_parameters(model: keras.Model) -> tuple[int, int]:
    """All that its summary counts, and the trainable ones."""
    return model.count_params(), sum(weight.value.numel() for weight in model.trainable_weights)


@pytest.mark.parametrize(("name", "size"), OTHER_SIZES)
def test_sizes_that_no_stride_divides(name: str, size: int) -> None:
    assert_same_outputs(Twins(CASES[name], size=size), photos(3, size))


@pytest.mark.slow
def test_the_tutorial_001_at_its_own_size() -> None:
    """224 px, with the tutorial's 7x7 pool in place of the mean over the map."""
    case = Case(
        "resnet50_unpadded",
        lambda n, s: tutorials.resnet50(n, size=s),
        224,
        apps.resnet.preprocess_input,
    )
    assert_same_outputs(Twins(case), photos(2, 224))


def test_the_unpadded_pool_leaves_55() -> None:
    """And keras.applications, whose pool is padded, 56."""
    with torch.device("meta"):
        unpadded = models.create("resnet50_unpadded", num_classes=2, weights="none").module
        padded = models.create("keras_resnet", num_classes=2, weights="none").module
        images = torch.empty(1, 3, 224, 224)
    assert unpadded.get_submodule("stem")(images).shape == (1, 64, 55, 55)
    assert padded.get_submodule("stem")(images).shape == (1, 64, 56, 56)
    with keras.device("meta"):
        theirs = tutorials.resnet50(2).get_layer("pool"), apps.ResNet50(weights=None)
    assert theirs[0].output.shape == (None, 55, 55, 64)
    assert theirs[1].get_layer("pool1_pool").output.shape == (None, 56, 56, 64)


@pytest.mark.parametrize("name", _cases(lambda case: case.deeper or case.slow))
def test_a_training_step(name: str) -> None:
    """The gradient of every parameter, and what batch norm keeps of the batch."""
    case = CASES[name]
    with keras_in_64_bits():
        twins = Twins(case, size=32 if case.spec == "keras_vgg" else 0)
        ours, theirs = twins.exact_pair(photos(4, twins.size))
        target = torch.arange(4)
        before = [(n, n.running_mean.clone(), n.running_var.clone()) for n in norms(twins.ours)]
        counts = _values_per_channel(twins.ours, ours)
        F.cross_entropy(twins.ours.train()(ours), target).backward()
        F.cross_entropy(twins.keras_logits(theirs, training=True), target).backward()
    compared = 0
    for layer, other in twins.layers:
        # Before a batch norm a bias has no gradient: what either side has there is rounding.
        for value, weight in zip(
            twins.weights(layer, grad=True), other.trainable_weights, strict=True
        ):
            expected = weight.value.grad
            scale = float(expected.abs().max())
            assert float((value - expected).abs().max()) <= 1e-8 * scale + 1e-10
            compared += value.ndim > 1 and scale > 1e-6
    assert compared == sum(not isinstance(n, NORMS) for n, _ in twins.layers)
    keras_norms = {layer: other for layer, other in twins.layers if isinstance(layer, NORMS)}
    assert len(keras_norms) == len(before)
    for norm, mean, variance in before:
        other = keras_norms[norm]
        # Of the batch: what came on top of 99 % of the old.
        means = norm.running_mean - 0.99 * mean, other.moving_mean.value - 0.99 * mean
        variances = (
            norm.running_var - 0.99 * variance,
            other.moving_variance.value - 0.99 * variance,
        )
        torch.testing.assert_close(*means, rtol=1e-7, atol=1e-10)
        n = counts[norm]
        torch.testing.assert_close(variances[0] * (n - 1) / n, variances[1], rtol=1e-7, atol=1e-10)


def _values_per_channel(module: nn.Module, images: torch.Tensor) -> dict[nn.Module, int]:
    """How many values each batch norm averages over."""
    counts: dict[nn.Module, int] = {}
    hooks = [
        norm.register_forward_hook(lambda m, _, y: counts.update({m: y.numel() // y.shape[1]}))
        for norm in norms(module)
    ]
    with torch.no_grad():
        module(images)
    for hook in hooks:
        hook.remove()
    return counts


FRESH = (
    *("002", "001", "003 v1 20", "003 v2 29", "004 VGG16"),
    *("004 GoogLeNet_V3", "004 ResNet18", "ResNet50V2", "DenseNet121"),
)


@pytest.mark.parametrize("name", FRESH)
def test_fresh_weights_are_drawn_as_kerass(name: str) -> None:
    """Every large kernel spread as Keras's is, and the same constants elsewhere.

    The outermost thousandth is left out: Keras on torch cuts a normal by choosing among four draws,
    and where none of them is inside, which happens to four values in a million, keeps one outside.
    """
    torch.manual_seed(1)
    keras.utils.set_random_seed(1)
    twins = Twins(CASES[name], fresh=True)
    compared = 0
    for layer, other in twins.layers:
        for value, weight in zip(twins.weights(layer), other.weights, strict=True):
            ours, theirs = value.detach(), weight.value.detach()
            assert ours.shape == theirs.shape
            if ours.ndim == 1:
                assert torch.equal(ours, theirs)
            elif ours.numel() > 10_000:
                compared += 1
                assert abs(float(ours.mean())) < 0.05 * float(ours.std())
                assert float(ours.std()) == pytest.approx(float(theirs.std()), rel=0.03)
                assert _largest(ours) == pytest.approx(_largest(theirs), rel=0.02)
    assert compared >= 2


def _largest(values: torch.Tensor) -> float:
    """The size that 99.9 % of the values do not exceed."""
    return float(values.abs().flatten().kthvalue(round(0.999 * values.numel())).values)


TABLE: dict[str, tuple[str, int, Callable[[], keras.Model], tuple[int, int]]] = {
    "002": ("sneaker_cnn", 2, tutorials.sneaker, (22_175_138, 22_175_138)),
    "001": ("resnet50_unpadded", 1000, tutorials.resnet50, (25_636_712, 25_583_592)),
    "ResNet152V2 at 80 px": (
        "keras_resnet(depth=152, version=2)",
        800,
        lambda: _mean_top(apps.ResNet152V2)(800, 80),
        (59_970_848, 59_827_104),
    ),
    "003": ("cifar_resnet(depth=20)", 10, tutorials.tiny_resnet_v1, (274_442, 273_066)),
    "VGG16": ("cifar_vgg16", 10, tutorials.vgg16, (15_001_418, 14_991_946)),
    "VGG16_bigConv": ("cifar_vgg16_big", 10, tutorials.vgg16_big, (21_360_010, 21_356_042)),
    "GoogLeNet_V3": ("cifar_googlenet", 10, tutorials.googlenet, (1_903_906, 1_895_602)),
    "ResNet18": ("cifar_resnet18", 10, tutorials.resnet18, (11_457_482, 11_446_730)),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_published_counts(name: str) -> None:
    spec, classes, build, expected = TABLE[name]
    with torch.device("meta"):
        ours = models.create(spec, num_classes=classes, weights="none").module
    with keras.device("meta"):
        theirs = keras_parameters(build())
    assert parameters(ours) == theirs == expected


@pytest.mark.parametrize(
    ("spec", "published"),
    [
        ("keras_resnet", 25_636_712),
        ("keras_resnet(depth=101)", 44_707_176),
        ("keras_resnet(depth=152)", 60_419_944),
        ("keras_resnet(version=2)", 25_613_800),
        ("keras_resnet(depth=101, version=2)", 44_675_560),
        ("keras_resnet(depth=152, version=2)", 60_380_648),
        ("keras_densenet", 8_062_504),
        ("keras_densenet(depth=169)", 14_307_880),
        ("keras_densenet(depth=201)", 20_242_984),
        ("keras_vgg", 138_357_544),
        ("keras_vgg(depth=19)", 143_667_240),
    ],
)
def test_every_depth_has_as_many_values_as_keras_says(spec: str, published: int) -> None:
    """As printed by ``summary()`` of keras.applications with its 1000 classes."""
    with torch.device("meta"):
        module = models.create(spec, num_classes=1000, weights="none").module
    assert parameters(module)[0] == published
