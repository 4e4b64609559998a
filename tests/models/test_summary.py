"""Summaries: counts against formulas and published numbers, and a network left as it was."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from torch import nn

from fieldmark import models
from fieldmark.errors import ConfigError
from fieldmark.models import MODELS, Family
from fieldmark.models.summary import Row, Summary, flops, parameters, summarize, table
from fieldmark.pictures.inputs import InputSpec

KINDS = [
    *(family.examples[0] for family in MODELS.values() if family.examples),
    *(("cifar_resnet(depth=20, version=2)", 10), ("keras_resnet(depth=50, version=2)", 5)),
    *((f"timm/{name}", 1000) for name in ("test_resnet", "test_vit", "test_convnext")),
]


@pytest.mark.parametrize(("spec", "classes"), KINDS)
def test_rows_add_up_to_the_totals(spec: str, classes: int) -> None:
    found = summarize(spec, classes)
    assert found.spec == spec
    assert sum(row.parameters for row in found.rows) == found.parameters
    assert sum(row.flops for row in found.rows) == found.flops
    assert min(row.flops for row in found.rows) >= 0
    assert found.parameters >= found.trainable > 0
    assert found.non_trainable == found.parameters - found.trainable
    names = [row.name for row in found.rows]
    assert len(set(names)) == len(names)
    with torch.device("meta"):
        module = models.create(spec, num_classes=classes, weights="none").module
    assert set(names) <= set(dict(module.named_modules()))
    assert found.rows[-1].output == (classes,)


def test_the_sneaker_cnn_by_hand() -> None:
    """Its layers are few enough to write every number down; the shapes are the tutorial's."""
    found = summarize("sneaker_cnn")
    assert (found.classes, found.size) == (2, 224)
    rows = {row.name: (row.kind, row.output, row.parameters, row.flops) for row in found.rows}
    products = {
        "features.0": ("Conv2d", (16, 222, 222), 448, 2 * 16 * 27 * 222**2),
        "features.3": ("Conv2d", (32, 109, 109), 4_640, 2 * 32 * 144 * 109**2),
        "features.7": ("Conv2d", (64, 52, 52), 18_496, 2 * 64 * 288 * 52**2),
        "hidden.1": ("Linear", (128,), 22_151_296, 2 * 173_056 * 128),
        "head": ("Linear", (2,), 258, 2 * 128 * 2),
    }
    assert {name: row for name, row in rows.items() if row[2]} == products
    assert rows["features.2"] == ("AvgPool2d", (16, 111, 111), 0, 0)
    assert rows["hidden.0"] == ("FlattenHWC", (173_056,), 0, 0)
    assert found.parameters == found.trainable == 22_175_138
    assert found.flops == sum(row[3] for row in products.values())


def test_a_transformer_by_formula() -> None:
    """The products of attention happen in no layer, and are counted all the same."""
    tokens, width, depth, classes = 197, 192, 12, 7
    block = 2 * tokens * width * (3 * width + width + 8 * width) + 4 * tokens**2 * width
    patches = 2 * 196 * (16 * 16 * 3) * width
    found = summarize("timm/vit_tiny_patch16_224", classes)
    assert found.flops == depth * block + patches + 2 * width * classes
    attention = next(row for row in found.rows if row.name == "blocks.0.attn")
    assert (attention.parameters, attention.flops) == (0, 4 * tokens**2 * width)
    own = next(row for row in found.rows if row.name == "")
    assert own.parameters == (tokens + 1) * width  # positions and the class token


@pytest.fixture(scope="module")
def everything() -> list[dict[str, Any]]:
    return table()


def test_published_numbers(everything: list[dict[str, Any]]) -> None:
    """What Keras prints for its applications, and what fvcore counts for two ResNets."""
    counts = {
        (row["spec"], row["classes"]): (row["parameters"], row["trainable"])
        for row in everything
        if row["spec"].startswith("keras")
    }
    assert counts == {
        ("keras_resnet", 1000): (25_636_712, 25_583_592),
        ("keras_resnet(depth=101)", 1000): (44_707_176, 44_601_832),
        ("keras_resnet(depth=152)", 1000): (60_419_944, 60_268_520),
        ("keras_resnet(depth=50, version=2)", 1000): (25_613_800, 25_568_360),
        ("keras_resnet(depth=101, version=2)", 1000): (44_675_560, 44_577_896),
        ("keras_resnet(depth=152, version=2)", 1000): (60_380_648, 60_236_904),
        ("keras_resnet(depth=152, version=2)", 800): (59_970_848, 59_827_104),
        ("keras_vgg", 1000): (138_357_544, 138_357_544),
        ("keras_vgg(depth=19)", 1000): (143_667_240, 143_667_240),
        ("keras_vgg(top='mean')", 1000): (15_227_688, 15_227_688),
        ("keras_densenet", 1000): (8_062_504, 7_978_856),
        ("keras_densenet(depth=169)", 1000): (14_307_880, 14_149_480),
        ("keras_densenet(depth=201)", 1000): (20_242_984, 20_013_928),
    }
    assert summarize("timm/resnet18").flops == 2 * 1_814_073_344
    assert summarize("timm/resnet50").flops == 2 * 4_089_184_256


def test_the_table_says_what_the_summary_says(everything: list[dict[str, Any]]) -> None:
    examples = [example for family in MODELS.values() for example in family.examples]
    assert [(row["spec"], row["classes"]) for row in everything] == examples
    assert table("cifar_res") == [r for r in everything if r["spec"].startswith("cifar_res")]
    assert table("nothing") == []
    for row in json.loads(json.dumps(table("cifar_res"))):
        about = row.pop("about")
        assert about == models.listing("")[row["spec"].partition("(")[0]]
        found = summarize(row["spec"], row["classes"]).to_json()
        assert {key: found[key] for key in row} == row


def test_classes_and_size_that_are_not_given() -> None:
    assert (summarize("small_cnn").classes, summarize("small_cnn").size) == (10, 28)
    assert summarize("keras_resnet(depth=152, version=2)").classes == 1000
    assert summarize("timm/test_resnet").classes == 1000
    given = summarize("keras_resnet(depth=152, version=2)", 800, 80)
    assert (given.classes, given.size, given.parameters) == (800, 80, 59_970_848)
    assert given.flops < summarize("keras_resnet(depth=152, version=2)", 800).flops / 6
    assert summarize("sneaker_cnn", 2, 64).spec == "sneaker_cnn(size=64)"


class _Odd(nn.Module):
    """A layer called twice, two that share a kernel, one never called, a frozen one, buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)])
        self.one = nn.Linear(3, 3, bias=False)
        self.two = nn.Linear(3, 3, bias=False)
        self.two.weight = self.one.weight
        self.never = nn.Linear(3, 5)
        self.frozen = nn.Linear(3, 2).requires_grad_(False)
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("passing", torch.ones(9), persistent=False)
        self.register_buffer("index", torch.ones(9, dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            x = self.parts[1](self.parts[0](x))
        x = self.two(self.one(x.mean(dim=(2, 3)))) * self.scale
        found: torch.Tensor = self.frozen(x @ self.one.weight)
        return found


def test_what_is_shared_repeated_or_frozen() -> None:
    module = _Odd()
    #             conv   norm     shared never   frozen  scale
    assert parameters(module) == (84 + 12 + 9 + 20 + 8 + 3, 84 + 6 + 9 + 20 + 3)
    assert flops(module, 8) == 2 * (2 * 3 * 27 * 64) + 3 * (2 * 3 * 3) + 2 * 3 * 2


def test_a_network_is_left_as_it_was() -> None:
    module = _Odd().train()
    module.parts[1].eval()
    before = {name: (value, value.clone()) for name, value in module.state_dict().items()}
    training = [part.training for part in module.modules()]
    random = torch.random.get_rng_state()
    assert flops(module, 8) > 0
    assert torch.equal(torch.random.get_rng_state(), random)
    assert [part.training for part in module.modules()] == training
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
    after = module.state_dict()
    assert list(after) == list(before)
    for name, (value, copy) in before.items():
        assert after[name].data_ptr() == value.data_ptr()
        assert torch.equal(after[name], copy)


def test_a_mean_picture_is_counted_as_a_statistic() -> None:
    plain, centred = summarize("cifar_resnet"), summarize("cifar_resnet(centre=32)")
    assert centred.parameters - plain.parameters == 3 * 32 * 32
    assert centred.trainable == plain.trainable


def _plain(num_classes: int) -> nn.Module:
    rate = torch.linspace(0, 1, 3)[1].item()  # there is no value on the meta device
    return nn.Sequential(nn.Flatten(), nn.Dropout(rate), nn.Linear(48, num_classes))


def test_networks_that_need_values_to_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    family = Family(_plain, InputSpec(size=4), examples=(("plain", 5),))
    monkeypatch.setitem(MODELS, "plain", family)
    random = torch.random.get_rng_state()
    found = summarize("plain")
    assert (found.parameters, found.flops, found.classes) == (49 * 5, 2 * 48 * 5, 5)
    assert torch.equal(torch.random.get_rng_state(), random)


@pytest.mark.parametrize(
    ("spec", "size", "says"),
    [
        ("keras_resnt", 0, "did you mean 'keras_resnet'"),
        ("keras_resnet(depth=34)", 0, "50, 101, 152 exist"),
        ("keras_resnet(version=3)", 0, "version is 3; 1 and 2 exist"),
        ("keras_vgg(depth=11)", 0, "16 and 19 exist"),
        ("keras_vgg(size=16)", 0, "32 to 512 px"),
        ("keras_vgg(top='max')", 0, "top is 'max'; 'dense' and 'mean' exist"),
        ("keras_densenet(depth=161)", 0, "121, 169, 201 exist"),
        ("timm/resnet19", 0, "did you mean"),
        ("resnet50_unpadded", 2, "cannot take a picture of 2 px"),
    ],
)
def test_what_is_refused(spec: str, size: int, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        summarize(spec, 2, size)
    assert says in str(caught.value)


def test_json_and_lines() -> None:
    found = summarize("keras_resnet(depth=152, version=2)", 800, 80)
    again = json.loads(json.dumps(found.to_json()))
    assert again["non_trainable"] == 59_970_848 - 59_827_104
    assert len(again["layers"]) == len(found.rows) > 300
    assert again["layers"][-1] == {
        "name": "head",
        "kind": "Linear",
        "output": [800],
        "parameters": 2048 * 800 + 800,
        "flops": 2 * 2048 * 800,
    }
    lines = found.lines()
    assert max(map(len, lines)) <= 100
    assert lines[0] == "keras_resnet(depth=152, version=2), 800 classes, 80 px"
    assert lines[-2] == "parameters  59,970,848 (59,827,104 trainable, 143,744 not)"
    assert f"{found.flops:,} a picture" in lines[-1]
    cells = [line.split() for line in lines[3:-3]]
    assert len(cells) == len(found.rows)
    assert cells[-1] == ["head", "Linear", "800", "1,639,200", "3.28", "M"]
    starts = {line.index(row.kind) for line, row in zip(lines[3:-3], found.rows, strict=True)}
    assert len(starts) == 1  # one column


def test_long_names_keep_both_ends() -> None:
    name = ".".join(["stages"] * 12) + ".conv2d"
    rows = (
        Row(name, "Conv2d", (4, 5), 1_000, 1_234_000_000_000),
        Row("", "Net", (), 0, 999),
        Row("a", "B", (7,), 0, 999_600),
    )
    lines = Summary("x", 2, 8, rows, 1_000, 900, 1_234_000_000_999).lines()
    first, second, third = lines[3:6]
    assert max(map(len, lines)) <= 100
    assert first.startswith("stages.")
    assert "…" in first
    assert ".conv2d" in first
    assert first.split()[1:] == ["Conv2d", "4x5", "1,000", "1.234", "T"]
    assert second.split() == ["(network)", "Net", "-", "-", "999"]
    assert third.split() == ["a", "B", "7", "-", "1", "M"]


def test_a_summary_cannot_be_changed() -> None:
    found = summarize("small_cnn")
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.flops = 0  # type: ignore[misc]
