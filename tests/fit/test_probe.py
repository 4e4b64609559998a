"""The probe: the best head there is, a network that is the classifier, runs that go on exactly."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import fieldmark
from fieldmark import augment, models
from fieldmark.data.batches import Batches, scoring_batches
from fieldmark.data.dataset import Part
from fieldmark.errors import ConfigError, DivergedError
from fieldmark.fit import callbacks, optimizers, probe, schedules
from fieldmark.fit.loop import Plan, choose_trained
from fieldmark.fit.state import Ema, Tally, TrainState
from fieldmark.jobs import prepared, running
from fieldmark.jobs.plan import prepare
from fieldmark.machine.device import Device
from fieldmark.networks.small_cnn import small_cnn
from fieldmark.pictures.inputs import InputSpec
from fieldmark.pictures.picture import U8
from fieldmark.runs import checkpoint, history
from fieldmark.runs.directory import RunDirectory
from fieldmark.runs.model import Selected
from fieldmark.scoring.scorer import Scorer
from fieldmark.settings.config import DataFacts, Facts, TrainConfig
from fieldmark.settings.recipes import FEW, RECIPES
from fieldmark.settings.recipes import choose as choose_recipe
from tests.making import asked

SPEC = InputSpec(size=8, interpolation="bilinear")

# --- logistic regression ------------------------------------------------------------------------


def features(n: int, d: int, k: int, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes that overlap, features of unlike size and offset."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    labels = torch.arange(n) % k
    centres = normal(k, d)
    size = 10 ** torch.linspace(-3, 3, d, dtype=torch.float64)
    return (centres[labels] + 1.5 * normal(n, d) + 3) * size, labels


def objective(
    found: probe.Solution,
    x: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The loss as the docstring says it, with its slope, by autograd and without tricks."""
    scale = x.std(0, correction=0)
    standard = (x - x.mean(0)) / scale
    weight = (found.weight * scale).requires_grad_()
    bias = (found.bias + found.weight @ x.mean(0)).requires_grad_()
    loss = nn.functional.cross_entropy(standard @ weight.T + bias, labels, weight=weights)
    loss = loss + found.strength / 2 * weight.square().sum()
    slope, shift = torch.autograd.grad(loss, (weight, bias))
    return loss.detach(), slope, shift


@pytest.mark.parametrize(
    ("n", "d", "k"), [(60, 5, 3), (40, 90, 4), (30, 30, 2), (50, 3, 12), (7, 4, 6)]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_nothing_is_better(n: int, d: int, k: int, weighted: bool) -> None:
    """The slope of the stated loss is nothing at each solution, with more and fewer features."""
    x, labels = features(n, d, k)
    weights = torch.linspace(0.5, 2, k, dtype=torch.float64) if weighted else None
    found = list(probe.solve(x, labels, num_classes=k, strengths=(1.0, 0.1, 0.01), weights=weights))
    assert [solution.strength for solution in found] == [1.0, 0.1, 0.01]
    for solution in found:
        _, *slopes = objective(solution, x, labels, weights)
        assert max(float(slope.abs().max()) for slope in slopes) <= 1.01e-4 / k


def test_it_is_scikit_learns() -> None:
    from sklearn.linear_model import LogisticRegression

    x, labels = features(80, 6, 3)
    standard = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    for solution in probe.solve(x, labels, num_classes=3, strengths=(0.3, 0.03)):
        other = LogisticRegression(C=1 / (80 * solution.strength), tol=1e-10, max_iter=10_000)
        theirs = other.fit(standard, labels.numpy()).decision_function(standard)
        ours = solution.logits(x)
        ours -= ours.mean(1, keepdim=True)
        np.testing.assert_allclose(ours.numpy(), theirs, atol=5e-3)


def test_the_way_does_not_matter() -> None:
    """Warm starts and fewer dimensions only make it faster."""
    x, labels = features(30, 50, 3)
    path = list(probe.solve(x, labels, num_classes=3, strengths=(10.0, 1.0, 0.1)))
    alone = next(probe.solve(x, labels, num_classes=3, strengths=(0.1,)))
    torch.testing.assert_close(path[-1].logits(x), alone.logits(x), atol=5e-3, rtol=0)


def test_the_size_of_a_feature_does_not_matter() -> None:
    x, labels = features(40, 5, 3)
    other = x * torch.tensor([1e-4, 1.0, 7.0, 1e5, 3.0]) + torch.arange(5.0)
    ours, theirs = (
        next(probe.solve(values, labels, num_classes=3, strengths=(0.1,))).logits(values)
        for values in (x, other)
    )
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_what_does_not_vary_counts_nothing() -> None:
    x, labels = features(20, 4, 2)
    x[:, 1] = 5.0
    x[:, 2] = 1000 + 1e-5 * torch.rand(20, generator=torch.Generator().manual_seed(0))  # rounding
    x[:, 3] = 0.0
    found = next(probe.solve(x, labels, num_classes=2, strengths=(0.01,)))
    assert (found.weight[:, 1:] == 0).all()
    assert (found.weight[:, 0] != 0).all()
    assert torch.isfinite(found.weight).all()


def test_pictures_that_are_all_alike() -> None:
    x = torch.ones(6, 3, dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    found = next(probe.solve(x, labels, num_classes=2, strengths=(0.1,)))
    shares = found.logits(x).softmax(1)
    torch.testing.assert_close(
        shares, torch.tensor([[4 / 6, 2 / 6]]).double().expand(6, 2), atol=1e-3, rtol=0
    )


def test_a_class_with_one_picture() -> None:
    x, labels = features(21, 40, 2)
    labels[labels == 1] = 0
    labels[20] = 1
    found = probe.choose(probe.solve(x, labels, num_classes=2), x, labels)
    assert found.logits(x)[20].argmax() == 1
    assert (found.logits(x)[:20].argmax(1) == 0).all()


def test_the_same_bits_with_any_threads() -> None:
    """Little work is done by one thread, and no random number is drawn."""
    x, labels = features(50, 70, 3)
    before = torch.get_rng_state()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        with probe.threads_for(x.numel() * 3):
            found.append(probe.choose(probe.solve(x, labels, num_classes=3), x, labels))
        assert torch.get_num_threads() == threads
    assert torch.equal(found[0].weight, found[1].weight)
    assert torch.equal(found[0].bias, found[1].bias)
    assert torch.equal(before, torch.get_rng_state())


# --- the choice ---------------------------------------------------------------------------------


def solution(margin: float, strength: float) -> probe.Solution:
    """Says by so much that pictures are of class 0."""
    weight = torch.zeros(2, 1, dtype=torch.float64)
    return probe.Solution(weight, torch.tensor([margin, 0.0]).double(), strength)


@pytest.mark.parametrize(
    ("margins", "chosen", "looked_at"),
    [
        ((0.0, 1.0, 2.0), 2, 3),
        ((0.0, 1.0, 0.5), 1, 3),
        ((1.0, 1.0, 1.0), 0, 3),  # of equals the stronger
        ((1.0, 0.0, 0.5, 0.9, 2.0), 0, 4),  # three worse ones in a row end it
        ((1.0, 0.0, 0.5, 2.0, 0.0, 0.0), 3, 6),
    ],
)
def test_the_least_loss_chooses(margins: Iterable[float], chosen: int, looked_at: int) -> None:
    seen = []

    def solutions() -> Iterable[probe.Solution]:
        for place, margin in enumerate(margins):
            seen.append(place)
            yield solution(margin, float(place))

    x, labels = torch.zeros(4, 1).double(), torch.zeros(4, dtype=torch.int64)
    assert probe.choose(solutions(), x, labels).strength == chosen
    assert len(seen) == looked_at


def test_the_validation_pictures_choose_not_the_training_pictures() -> None:
    """Labels that are all noise: the weakest penalty fits them, the strongest generalises."""
    x, _ = features(60, 100, 3)
    labels = torch.randint(0, 3, (60,), generator=torch.Generator().manual_seed(1))
    train, val = slice(0, 40), slice(40, 60)
    found = probe.choose(probe.solve(x[train], labels[train], num_classes=3), x[val], labels[val])
    assert found.strength == probe.STRENGTHS[0]
    fitting = probe.choose(
        probe.solve(x[train], labels[train], num_classes=3), x[train], labels[train]
    )
    assert fitting.strength < 1e-3


# --- the network --------------------------------------------------------------------------------


class After(nn.Module):
    """A head with something behind it."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        outputs = 7 if what == "cut" else 3
        self.head: nn.Module = nn.Linear(192, outputs, bias=what != "no bias")
        if what == "convolution":
            self.head = nn.Conv2d(3, 3, 1)
        if what == "dropout":
            self.head = nn.Sequential(nn.Dropout(), nn.Linear(192, 3))
        self.second = nn.Linear(192, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.what == "convolution":
            return self.head(x).mean((2, 3))
        if self.what == "map":
            return self.head(x.flatten(1)[:, None]).mean(1)
        x = x.flatten(1)
        y: torch.Tensor = self.head(x)
        return {
            "scale": lambda: y / 3,
            "softmax": lambda: y.softmax(1),
            "second head": lambda: (y + self.second(x)) / 2,
            "cut": lambda: y[:, :3],
        }.get(self.what, lambda: y)()


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("scale", "something follows its head"),
        ("softmax", "something follows its head"),
        ("second head", "something follows its head"),
        ("cut", "7 outputs for 3 classes"),
        ("map", r"features of shape \[1, 1, 192\]"),
        ("convolution", "a Conv2d"),
        ("dropout", "a Sequential"),
        ("no bias", "without a bias"),
    ],
)
def test_what_cannot_be_probed(what: str, says: str) -> None:
    module = After(what)
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ConfigError, match=says):
        probe.check_head(module, "head", SPEC, 3)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_head_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="none of that name"):
        probe.check_head(After(""), "tail", SPEC, 3)


@pytest.mark.parametrize("name", ["small_cnn", "cifar_resnet(depth=8)", "cifar_resnet18"])
def test_own_networks_can_be_probed(name: str) -> None:
    network = models.create(name, num_classes=3, weights="none", size=16)
    probe.check_head(network.module, network.head, network.input, 3)


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("test_resnet", "layer4"),
        ("test_efficientnet", "blocks.4"),
        ("test_convnext", "stages.3"),
        ("test_vit", "blocks.5"),
    ],
)
def test_timm_networks(name: str, first: str) -> None:
    """They can be probed, and have a last stage that holds the head's part of the network."""
    network = models.create(f"timm/{name}", num_classes=3, weights="none")
    probe.check_head(network.module, network.head, network.input, 3)
    assert models.first_of(network, "last_stage") == first
    frozen = optimizers.listed_before(first, network.module)
    numbers = [p.numel() for name, p in network.module.named_parameters() if name not in frozen]
    assert 0 < sum(numbers) < network.num_params
    assert network.head not in frozen
    two = models.first_of(network, "last_two_stages")
    assert optimizers.listed_before(two, network.module) < frozen


def test_two_heads_of_timm_cannot_be_probed() -> None:
    network = models.create(
        "timm/deit_tiny_distilled_patch16_224", num_classes=3, weights="none", size=32
    )
    with pytest.raises(ConfigError, match="cannot be probed"):
        probe.check_head(network.module, network.head, network.input, 3)


# --- the probe ----------------------------------------------------------------------------------


def picture(key: str) -> U8:
    """Noise, brighter at the top for even numbers and at the bottom for odd ones."""
    rng = np.random.default_rng(int(key))
    image = rng.integers(0, 200, (8, 8, 3), dtype=np.uint8)
    image[slice(0, 4) if int(key) % 2 == 0 else slice(4, 8)] += 40
    return image


def part(numbers: Iterable[int]) -> Batches:
    keys = tuple(map(str, numbers))
    labels = np.array([int(key) % 2 for key in keys], dtype=np.int64)
    digests = tuple(f"{int(key):032x}" for key in keys)
    return scoring_batches(Part(keys, labels, digests), picture, spec=SPEC, threads=1)


def make(**changes: Any) -> tuple[TrainState, Plan]:
    torch.manual_seed(0)
    module = small_cnn(2, width=4)
    state = TrainState(
        module,
        optimizers.build("sgd", module, head="head", weight_decay=0.0),
        callbacks.build("none", monitor="val_accuracy"),
        Tally.empty(torch.device("cpu")),
        Ema(module, 0.9),
    )
    base: dict[str, Any] = {
        "epochs": 2,
        "seed": 0,
        "device": Device("cpu", "f32"),
        "input": SPEC,
        "head": "head",
        "num_classes": 2,
        "lr": 0.1,
        "schedule": schedules.build("constant", length=schedules.Length(8, 4)),
        "monitor": "val_accuracy",
    }
    return state, Plan(**(base | changes))


def run_probe(state: TrainState, plan: Plan, **changes: Any) -> tuple[Any, probe.Solution]:
    found = {
        split: probe.extract(state.module, plan, part(numbers))
        for split, numbers in (("train", range(40)), ("val", range(40, 60)))
    }
    return probe.probe(state, plan, judge=prepared.judged, **(found | changes))


def test_the_network_is_the_classifier() -> None:
    """What the record says is what the network does; nothing but the head has changed."""
    state, plan = make()
    before = copy.deepcopy(state.module.state_dict())
    generator = torch.get_rng_state()
    record, found = run_probe(state, plan)
    assert torch.equal(generator, torch.get_rng_state())
    for name, tensor in state.module.state_dict().items():
        assert torch.equal(tensor, before[name]) == (not name.startswith("head.")), name
        assert state.ema is not None
        assert torch.equal(tensor, state.ema.module.state_dict()[name])
    assert torch.equal(state.module.head.weight, found.weight.float())
    for numbers, prefix in ((range(40), "train"), (range(40, 60), "val")):
        pictures = part(numbers)
        outputs = Scorer(state.module, spec=SPEC).over(b.images for b in pictures.in_order())
        labels = torch.from_numpy(pictures.part.labels)
        right = float((outputs.argmax(1) == labels).double().mean())
        assert getattr(record, f"{prefix}_accuracy") == pytest.approx(right)
        assert getattr(record, f"{prefix}_loss") == pytest.approx(
            float(nn.functional.cross_entropy(outputs, labels)), abs=1e-5
        )
    assert record.val_accuracy > 0.7
    assert (record.epoch, record.step, record.best) == (0, 0, True)
    assert (state.epoch, state.step, state.best_epoch) == (0, 0, 0)
    assert state.best_value == record.val_accuracy
    assert state.history == [record]


def test_the_same_bits_again() -> None:
    weights = []
    for _ in range(2):
        state, plan = make()
        run_probe(state, plan)
        weights.append(state.module.head.weight.detach())
    assert torch.equal(*weights)


def test_class_weights_count() -> None:
    """What counts a thousandfold is said more often."""
    said = []
    for weights in ((1000.0, 1.0), (1.0, 1000.0)):
        state, plan = make()
        _, found = run_probe(state, plan, weights=torch.tensor(weights))
        assert found.strength > 0
        pictures = part(range(60, 90))
        outputs = Scorer(state.module, spec=SPEC).over(b.images for b in pictures.in_order())
        said.append(int((outputs.argmax(1) == 0).sum()))
    assert said[0] > said[1]


def test_features_that_are_no_numbers() -> None:
    state, plan = make()
    with torch.no_grad():
        next(state.module.blocks.parameters()).fill_(float("nan"))
    with pytest.raises(DivergedError, match="40 of 40 pictures are not finite"):
        run_probe(state, plan)
    assert isinstance(state.module.head, nn.Linear)


def test_the_l2_penalty_is_in_the_record_as_in_an_epochs() -> None:
    losses = []
    for l2 in (0.0, 0.1):
        state, plan = make(l2=l2)
        record, _ = run_probe(state, plan)
        losses.append(record.val_loss)
    kernels = optimizers.regularized(state.module, "head")
    squares = sum(float(kernel.detach().square().sum()) for kernel in kernels)
    assert losses[1] - losses[0] == pytest.approx(0.1 * squares, rel=1e-4)


# --- training a part ----------------------------------------------------------------------------


def test_train_from_freezes_what_comes_before() -> None:
    state, plan = make(train_from="blocks.2", unfreeze_at_epoch=1)
    choose_trained(state, plan)
    trains = {name for name, p in state.module.named_parameters() if p.requires_grad}
    assert trains == {
        name
        for name, _ in state.module.named_parameters()
        if name.startswith(("blocks.2", "blocks.3", "head"))
    }
    modes = {name: m.training for name, m in state.module.named_modules()}
    assert not modes["blocks.0"]
    assert not modes["blocks.1"]
    assert modes[""]
    assert modes["blocks"]
    assert modes["blocks.2"]
    assert modes["dropout"]
    batch = torch.rand(4, 3, 8, 8)
    state.module(batch).sum().backward()
    assert all((p.grad is None) == (not p.requires_grad) for p in state.module.parameters())
    state.epoch = 1
    choose_trained(state, plan)
    assert all(p.requires_grad for p in state.module.parameters())


def test_a_containers_own_parameters_come_first() -> None:
    network = models.create("timm/test_vit", num_classes=3, weights="none")
    frozen = optimizers.listed_before("blocks.5", network.module)
    assert {"pos_embed", "cls_token", "patch_embed", "blocks.4"} <= frozen
    assert frozen.isdisjoint({"", "blocks", "blocks.5", "norm", "head", "head.weight"})


def test_parts_that_are_not_there() -> None:
    network = models.create("small_cnn", num_classes=3, weights="none", size=8)
    with pytest.raises(ConfigError, match=r"no part 'block.2'.*blocks"):
        models.first_of(network, "block.2")
    with pytest.raises(ConfigError, match="no part 'last_stage'"):
        models.first_of(network, "last_stage")
    assert models.first_of(network, "blocks.1") == "blocks.1"


# --- runs ---------------------------------------------------------------------------------------

SETTINGS: dict[str, Any] = {
    "model": "small_cnn(width=4)",
    "weights": "none",
    "size": 8,
    "probe": True,
    "epochs": 0,
    "threads": 1,
    "split": "0.6/0.2/0.2",
}
TRAINED: dict[str, Any] = SETTINGS | {
    "epochs": 2,
    "batch_size": 16,
    "optimizer": "sgd",
    "lr": 0.01,
    "ema": 0.5,
    "augment": "pad_crop(1)",
    "train_from": "blocks.2",
}
TIMES = ("seconds", "images_per_second", "data_wait")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 40 and 25, by where they are bright."""
    root = tmp_path_factory.mktemp("data") / "halves"
    for label, numbers in (("top", range(0, 80, 2)), ("bottom", range(1, 51, 2))):
        (root / label).mkdir(parents=True)
        for number in numbers:
            Image.fromarray(picture(str(number))).save(root / label / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def whole(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, RunDirectory]:
    """Runs that nobody disturbs, by their epochs."""
    out = tmp_path_factory.mktemp("runs")
    for settings in (SETTINGS, TRAINED):
        name = str(settings["epochs"])
        fieldmark.train(pictures, out=out / name, progress=False, **settings)
    return {epochs: RunDirectory(out / str(epochs)) for epochs in (0, 2)}


def assert_same(run: RunDirectory, other: RunDirectory) -> None:
    ours, theirs = (
        [
            {k: v for k, v in record.items() if k not in TIMES}
            for record in fieldmark.load(r.path).history
        ]
        for r in (run, other)
    )
    assert ours == theirs
    for name in ("model.safetensors", "evaluation.json", "predictions.csv", "gallery.json"):
        assert (run.path / name).read_bytes() == (other.path / name).read_bytes(), name


def test_a_run_of_the_probe_alone(whole: dict[int, RunDirectory]) -> None:
    run = whole[0]
    (record,) = fieldmark.load(run.path).history
    assert record["epoch"] == 0
    assert record["val_accuracy"] > 0.6
    info = run.model_info()
    assert info.selected == Selected(epoch=0, metric="val_accuracy", value=record["val_accuracy"])
    assert info.temperature > 0
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "linear probe" in page
    assert "0, the probe (val_accuracy" in page
    assert "0 epochs" not in page
    assert not run.has("curves.png")
    log = run.read_text("log.txt")
    assert "features, penalty" in log
    assert "probe - " in log
    assert "those of random weights" in log


def test_evaluating_gives_the_same(whole: dict[int, RunDirectory]) -> None:
    before = {n: (whole[0].path / n).read_bytes() for n in ("evaluation.json", "predictions.csv")}
    fieldmark.load(whole[0].path).evaluate(progress=False)
    for name, content in before.items():
        assert (whole[0].path / name).read_bytes() == content


def test_the_accuracy_is_the_validation_parts(whole: dict[int, RunDirectory]) -> None:
    scores = whole[0].read_json("evaluation.json")["parts"]["val"]
    assert scores["accuracy"] == pytest.approx(history.read(whole[0])[0].val_accuracy)


def test_epochs_follow_the_probe(whole: dict[int, RunDirectory]) -> None:
    run = whole[2]
    assert [record.epoch for record in history.read(run)] == [0, 1, 2]
    probed, trained = (fieldmark.load(whole[e].path).history[0] for e in (0, 2))
    assert {k: v for k, v in probed.items() if k not in TIMES} == {
        k: v for k, v in trained.items() if k not in TIMES
    }
    assert run.has("curves.png")
    assert "linear probe, 2 epochs" in (run.path / "report.html").read_text(encoding="utf-8")


def test_what_is_before_train_from_stays(whole: dict[int, RunDirectory]) -> None:
    probed, trained = (checkpoint.newest(whole[e].path) for e in (0, 2))
    assert probed is not None
    assert trained is not None
    same = {
        k: torch.equal(v, trained.state["module"][k]) for k, v in probed.state["module"].items()
    }
    early = {name for name in same if name.startswith(("blocks.0", "blocks.1"))}
    assert all(same[name] for name in early)
    assert not any(same[name] for name in same if name.startswith(("blocks.2.0", "head")))


def test_epochs_that_do_not_beat_the_probe_leave_it(pictures: Path, tmp_path: Path) -> None:
    """Labels smoothed to nothing at a rate that forgets everything."""
    settings = TRAINED | {"lr": 30.0, "ema": 0.0, "clip_norm": 1.0, "train_from": ""}
    run = fieldmark.train(pictures, out=tmp_path / "run", progress=False, **settings)
    values = [record["val_accuracy"] for record in run.history]
    assert max(values[1:]) < values[0]
    assert run.selected["epoch"] == 0
    directory = RunDirectory(run.path)
    assert directory.model_info().selected.epoch == 0
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert "0, the probe (val_accuracy" in page
    assert directory.read_json("evaluation.json")["parts"]["val"]["accuracy"] == pytest.approx(
        values[0]
    )


class Killed(BaseException):
    pass


@pytest.mark.parametrize("epochs", [0, 2])
@pytest.mark.parametrize("where", ["in the pass", "in the solver", "before its record"])
def test_killed_in_the_probe(
    pictures: Path,
    whole: dict[int, RunDirectory],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    epochs: int,
    where: str,
) -> None:
    """It begins anew and ends with the same bits."""
    owner, name = {
        "in the pass": (Scorer, "over"),
        "in the solver": (probe, "_minimum"),
        "before its record": (running, "_keep"),
    }[where]
    real = getattr(owner, name)

    def failing(*args: Any, **kwargs: Any) -> Any:
        raise Killed

    monkeypatch.setattr(owner, name, failing)
    settings = TRAINED if epochs else SETTINGS
    with pytest.raises(Killed):
        fieldmark.train(pictures, out=tmp_path / "run", progress=False, **settings)
    monkeypatch.setattr(owner, name, real)
    fieldmark.resume(tmp_path / "run", progress=False)
    assert_same(RunDirectory(tmp_path / "run"), whole[epochs])


@pytest.mark.parametrize("epochs", [0, 2])
def test_killed_after_the_probe(
    pictures: Path,
    whole: dict[int, RunDirectory],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    epochs: int,
) -> None:
    """It is not done again."""
    target = (running, "fit") if epochs else (running, "_conclude")

    def failing(*args: Any, **kwargs: Any) -> Any:
        raise Killed

    real = getattr(*target)
    monkeypatch.setattr(*target, failing)
    settings = TRAINED if epochs else SETTINGS
    with pytest.raises(Killed):
        fieldmark.train(pictures, out=tmp_path / "run", progress=False, **settings)
    monkeypatch.setattr(*target, real)
    monkeypatch.setattr(probe, "probe", failing)
    fieldmark.resume(tmp_path / "run", progress=False)
    assert_same(RunDirectory(tmp_path / "run"), whole[epochs])


def test_the_comparison_takes_a_probe(pictures: Path, tmp_path: Path) -> None:
    settings = {k: v for k, v in SETTINGS.items() if k != "model"}
    found = fieldmark.compare(
        pictures,
        ["small_cnn(width=4)", "small_cnn(width=2)"],
        seeds=1,
        out=tmp_path / "both",
        progress=False,
        **settings,
    )
    assert [run.best_epoch for model in found.models for run in model.runs] == [0, 0]
    assert [run.epochs for model in found.models for run in model.runs] == [0, 0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"probe": False}, "nothing would be trained"),
        ({"lr": 0.2}, "lr is 0.2, but epochs is 0"),
        ({"augment": "flip_lr"}, "augment is 'flip_lr', but epochs is 0"),
        ({"model": "resnet50_unpadded(outputs=5)", "size": 64}, "5 outputs for 2 classes"),
        ({"epochs": 1, "train_from": "blocks.9"}, "no part 'blocks.9'"),
        ({"epochs": 1, "train_from": "last_stage"}, "no part 'last_stage'"),
        ({"epochs": 1, "train_from": "head", "freeze": True}, "choose one"),
    ],
)
def test_settings_that_do_not_go(
    pictures: Path, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        fieldmark.train(pictures, out=tmp_path / "run", progress=False, **(SETTINGS | changes))
    assert not (tmp_path / "run").exists()


def test_balance_counts_classes_alike(pictures: Path) -> None:
    job = prepare(asked(pictures, settings=SETTINGS | {"balance": True}))
    plan = prepared.Prepared.of(job).plan
    counts = job.dataset.parts["train"].counts(2)
    weights = prepared._probe_weights(job, plan)
    assert weights is not None
    totals = weights.numpy() * counts
    assert totals[0] == pytest.approx(totals[1])
    plain = prepare(asked(pictures, settings=SETTINGS))
    assert prepared._probe_weights(plain, prepared.Prepared.of(plain).plan) is None


# --- recipes ------------------------------------------------------------------------------------


def facts(num_train: int, pretrained: str = "timm/resnet18") -> Facts:
    data = DataFacts(
        num_classes=5,
        num_train=num_train,
        smallest_class=1,
        largest_class=num_train,
        median_side=300,
    )
    return Facts(data=data, device="cpu", pretrained=pretrained)


def test_the_recipe_and_when_it_is_chosen() -> None:
    config = RECIPES["probe"](facts(400))
    assert (config.probe, config.epochs, config.model) == (True, 0, "timm/resnet18(head_stages=3)")
    assert choose_recipe(facts(FEW - 1)).name == "probe"
    assert choose_recipe(facts(FEW)).name == "finetune"
    assert "400 to train on" in choose_recipe(facts(400)).reason
    assert choose_recipe(facts(400, pretrained="")).name == "scratch"
    augment.build(config.augment)
    assert TrainConfig.from_json(config.to_json(), where="c") == config
    assert json.loads(config.to_json())["probe"] is True
    assert dataclasses.replace(config, epochs=3).epochs == 3


# --- out of fold ---------------------------------------------------------------------------------


def test_out_of_fold_is_a_head_that_never_saw_the_fold() -> None:
    """As scikit-learn's cross-validation with logistic regression of the same penalty."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    x, labels = features(60, 7, 3)
    fold = np.arange(60) // 3 % 3
    found = probe.out_of_fold(x, labels, fold, num_classes=3)
    loss = float(nn.functional.cross_entropy(found, labels))
    losses = []
    for strength in probe.STRENGTHS:
        expected = np.empty((60, 3))
        for each in range(3):
            here = fold == each
            scaler = StandardScaler().fit(x[~here])
            model = LogisticRegression(C=1 / (strength * (~here).sum()), tol=1e-10, max_iter=5000)
            model.fit(scaler.transform(x[~here]), labels[~here])
            expected[here] = model.predict_log_proba(scaler.transform(x[here]))
        losses.append(float(nn.functional.nll_loss(torch.from_numpy(expected), labels)))
    assert loss == pytest.approx(min(losses), rel=1e-3)


def test_neighbours_of_other_folds() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    x, labels = features(90, 5, 3)
    fold = np.arange(90) % 3
    centred = (x - x.mean(0)).numpy()
    right = 0
    for each in range(3):
        here = fold == each
        model = KNeighborsClassifier(
            probe.NEIGHBOURS, metric="cosine", weights=lambda far: np.exp(1 - far)
        ).fit(centred[~here], labels[~here])
        right += int((model.predict(centred[here]) == labels[here].numpy()).sum())
    assert probe.neighbours(x, labels, fold) == pytest.approx(right / 90)
