"""Heat maps point at what speaks for the class, for every network, and land on the right pixels."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import fieldmark
from fieldmark import models
from fieldmark.cli import _run, app
from fieldmark.errors import ConfigError, DataError
from fieldmark.jobs import explain
from fieldmark.models import MODELS
from fieldmark.pictures.inputs import InputSpec

PLAIN = InputSpec(size=32, mean=(0, 0, 0), std=(1, 1, 1))


class Colours(nn.Module):
    """Says how much red, green and blue there is, each in its own channel of the last map."""

    def __init__(self, head: str = "mean") -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(4)
        self.mix = nn.Conv2d(3, 3, 1, bias=False)
        with torch.no_grad():
            self.mix.weight.copy_((2 * torch.eye(3) - torch.ones(3, 3))[:, :, None, None])
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Identity() if head == "mean" else nn.Linear(3 * 64, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.mix(self.pool(x)))
        if isinstance(self.head, nn.Identity):
            return self.head(x.mean(dim=(2, 3)))
        return self.head(x.flatten(1))


def two_patches() -> torch.Tensor:
    """Red at the top left, blue at the bottom right, on black."""
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[0, 0, 4:12, 4:12] = 255
    image[0, 2, 20:28, 20:28] = 255
    return image


@pytest.mark.parametrize(("label", "where"), [(0, (1, 3)), (2, (5, 7))])
def test_the_map_lies_on_what_speaks_for_the_class(label: int, where: tuple[int, int]) -> None:
    heat = explain.heat_maps(Colours(), two_patches(), [label], spec=PLAIN)[0]
    wanted = np.zeros((8, 8), np.float32)
    wanted[where[0] : where[1], where[0] : where[1]] = 1
    np.testing.assert_allclose(heat, wanted, atol=1e-6)


def test_a_class_that_nothing_speaks_for_has_an_empty_map() -> None:
    assert explain.heat_maps(Colours(), two_patches(), [1], spec=PLAIN).max() == 0


def test_a_flattening_head_keeps_the_places_apart() -> None:
    # The head counts red on the left half only: averaged gradients would light both halves up.
    network = Colours("flat")
    weight = torch.zeros(3, 3, 8, 8)
    weight[0, 0, :, :4] = 1
    with torch.no_grad():
        network.head.weight.copy_(weight.flatten(1))
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[0, 0] = 255
    heat = explain.heat_maps(network, image, [0], spec=PLAIN)[0]
    assert heat[:, :4].min() == 1
    assert heat[:, 4:].max() == 0


def test_each_picture_of_a_batch_gets_the_map_it_gets_alone() -> None:
    images = torch.cat([two_patches(), two_patches().flip(3)])
    together = explain.heat_maps(Colours(), images, [0, 2], spec=PLAIN)
    alone = [
        explain.heat_maps(Colours(), images[i : i + 1], [k], spec=PLAIN)[0]
        for i, k in enumerate((0, 2))
    ]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-6)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "keras_resnet"])
def test_every_family_has_a_map_and_the_network_stays_as_it_was(name: str) -> None:
    size = 75 if MODELS[name].input.size > 32 else 0
    network = models.create(name, num_classes=3, weights="none", size=size)
    before = {k: v.clone() for k, v in network.module.state_dict().items()}
    rng = torch.Generator().manual_seed(0)
    side = network.input.size
    images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=rng)
    heat = explain.heat_maps(network.module, images, [0, 2], spec=network.input)
    assert heat.ndim == 3 and len(heat) == 2 and min(heat.shape[1:]) > 1
    assert np.isfinite(heat).all() and heat.min() >= 0 and heat.max() <= 1
    for key, value in network.module.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert not any(m._forward_hooks for m in network.module.modules())
    assert all(p.grad is None for p in network.module.parameters())


@pytest.mark.parametrize(
    "name", ["timm/resnet10t", "timm/convnext_atto", "timm/swin_tiny_patch4_window7_224"]
)
@pytest.mark.slow
def test_timm_networks_with_maps(name: str) -> None:
    network = models.create(name, num_classes=3, weights="none")
    nn.init.normal_(network.module.get_classifier().weight)
    images = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    heat = explain.heat_maps(network.module, images, [1], spec=network.input)
    assert heat.shape == (1, 7, 7)


def test_a_network_that_ends_in_tokens_is_refused() -> None:
    network = models.create("timm/test_vit", num_classes=3, weights="none")
    side = network.input.size
    images = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    with pytest.raises(ConfigError, match="a sequence of tokens; convolutional networks have one"):
        explain.heat_maps(network.module, images, [0], spec=network.input)


@pytest.mark.parametrize(
    ("resize", "crop"), [("squash", 1.0), ("crop", 1.0), ("crop", 0.5), ("pad", 1.0)]
)
@pytest.mark.parametrize(("height", "width"), [(60, 120), (120, 60), (64, 64)])
def test_the_drawing_lies_where_the_network_saw_the_patch(
    resize: str, crop: float, height: int, width: int
) -> None:
    spec = InputSpec(size=32, mean=(0, 0, 0), std=(1, 1, 1), resize=resize, crop=crop)
    picture = np.full((height, width, 3), (0, 90, 0), np.uint8)
    top, left = height // 2 - 8, width // 2
    picture[top : top + 16, left : left + 12] = (255, 0, 0)
    drawn = next(explain.explained(Colours(), [picture], [0], spec=spec)).astype(int)
    warm = drawn[:, :, 0] - drawn[:, :, 1]
    rows, cols = np.nonzero(warm > 0.6 * warm.max())
    assert abs(rows.mean() - (top + 7.5)) < 4
    assert abs(cols.mean() - (left + 5.5)) < 4
    left_edge, top_edge, right_edge, bottom_edge = spec.seen(height, width)
    outside = np.ones((height, width), bool)
    outside[
        max(0, int(top_edge)) : int(np.ceil(bottom_edge)),
        max(0, int(left_edge)) : int(np.ceil(right_edge)),
    ] = False
    assert (drawn[outside] == 13).all()  # grey and dark: 0.45 of the mean of (0, 90, 0)
    assert (drawn[~outside] != 13).any(axis=1).all()


def test_a_drawing_can_be_kept_small() -> None:
    picture = np.zeros((300, 600, 3), np.uint8)
    drawn = next(explain.explained(Colours(), [picture], [0], spec=PLAIN, side=100))
    assert drawn.shape == (50, 100, 3)


def test_many_are_drawn_as_each_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explain, "AT_ONCE", 4 * PLAIN.size**2)
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (40 + i, 60, 3), dtype=np.uint8) for i in range(11)]
    labels = [i % 3 for i in range(11)]
    together = list(explain.explained(Colours(), pictures, labels, spec=PLAIN))
    assert len(together) == 11
    for picture, label, drawn in zip(pictures, labels, together, strict=True):
        (alone,) = explain.explained(Colours(), [picture], [label], spec=PLAIN)
        assert np.abs(alone.astype(int) - drawn).max() <= 1


# --- in runs ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> fieldmark.Run:
    """A network that a moment's training leaves with mistakes."""
    root = tmp_path_factory.mktemp("data") / "noise"
    rng = np.random.default_rng(1)
    for name in ("cat", "=dog"):
        (root / name).mkdir(parents=True)
        for i in range(24):
            image = rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)
            Image.fromarray(image).save(root / name / f"{i}.png")
    return fieldmark.train(
        root,
        model="small_cnn(width=2)",
        size=16,
        epochs=1,
        out=tmp_path_factory.mktemp("runs") / "noise",
        progress=False,
    )


def test_a_run_draws_what_speaks_for_a_class(run: fieldmark.Run, tmp_path: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(2).integers(0, 256, (50, 80, 3), np.uint8))
    picture.save(tmp_path / "a.png")
    drawn = run.explain(tmp_path / "a.png")
    assert drawn.size == (80, 50)
    label = run.predict(tmp_path / "a.png")[0].label
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(run.explain(picture, label=label)))
    other = next(name for name in run.class_names if name != label)
    assert (np.asarray(drawn) != np.asarray(run.explain(picture, label=other))).any()
    with pytest.raises(ConfigError, match=r"no class 'cot'; did you mean 'cat'\?"):
        run.explain(picture, label="cot")
    (tmp_path / "b.png").write_bytes(b"no")
    for options in ({}, {"label": "cat"}):
        with pytest.raises(DataError, match="cannot be used: not a picture"):
            run.explain(tmp_path / "b.png", **options)


def test_the_command_writes_a_drawing_for_each_answer(run: fieldmark.Run, tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    for folder, name in (("a", "x y.png"), ("b", "x y.png"), ("b", "bad.png")):
        (pictures / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 30), "red").save(pictures / folder / name)
    (pictures / "b" / "bad.png").write_bytes(b"no")
    out = tmp_path / "heat" / "maps"
    words = ["predict", str(run.path), str(pictures), "--explain", str(out)]
    assert _run(lambda: app(words, exit_on_error=False, result_action="return_value")) == 0
    written = sorted(path.name for path in out.iterdir())
    assert written == ["0001-x-y.png", "0003-x-y.png"]
    with Image.open(out / written[0]) as drawn:
        assert drawn.size == (20, 30)


def test_the_gallery_and_the_report_show_what_spoke_for_a_mistake(run: fieldmark.Run) -> None:
    gallery = json.loads((run.path / "gallery.json").read_text(encoding="utf-8"))
    assert gallery["mistakes"]
    for item in gallery["mistakes"]:
        heat = Image.open(io.BytesIO(base64.b64decode(item["heat"])))
        assert heat.size == Image.open(io.BytesIO(base64.b64decode(item["thumb"]))).size
        assert item["heat"] != item["thumb"]
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert page.count('class="heat"') == len(gallery["mistakes"])
    assert "Show what spoke for the wrong answer" in page


def test_a_network_without_maps_has_a_gallery_without_them(
    run: fieldmark.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*args: object, **options: object) -> None:
        raise ConfigError("no heat map")

    monkeypatch.setattr(explain, "heat_maps", none)
    run.evaluate(progress=False)
    run.report()
    gallery = json.loads((run.path / "gallery.json").read_text(encoding="utf-8"))
    assert {item["heat"] for item in gallery["mistakes"]} == {""}
    assert 'class="heat"' not in (run.path / "report.html").read_text(encoding="utf-8")
