"""Scoring by torch and by OpenVINO, and when one takes over from the other."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fieldmark import models
from fieldmark.errors import ConfigError, MissingExtraError
from fieldmark.pictures.inputs import InputSpec
from fieldmark.scoring import openvino, scorer
from fieldmark.scoring.scorer import Scorer
from fieldmark.scoring.views import Forward

SPEC = InputSpec(size=28)


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return models.create("small_cnn", num_classes=3, weights="none").module.eval()


def pictures(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, 28, 28), dtype=torch.uint8, generator=generator)


def stand_in(monkeypatch: pytest.MonkeyPatch, make: Forward | Exception) -> list[int]:
    """OpenVINO is there, and gives this; returns how often it was asked."""
    asked: list[int] = []

    def converted(module: nn.Module, spec: InputSpec, picture: torch.Tensor) -> Forward:
        asked.append(len(picture))
        if isinstance(make, Exception):
            raise make
        return make

    monkeypatch.setattr(openvino, "is_installed", lambda: True)
    monkeypatch.setattr(openvino, "converted", converted)
    monkeypatch.setattr(scorer, "FIRST", 6 * 28 * 28)
    return asked


def scores(module: nn.Module, engine: str, calls: int) -> tuple[list[torch.Tensor], list[str]]:
    score = Scorer(module, spec=SPEC, engine=engine)
    return [score(pictures(3)) for _ in range(calls)], score.notes


@pytest.mark.parametrize(
    ("one", "many", "said"),
    [
        (2.0, 2.0, "OpenVINO is used from now on"),
        (1.04, 1.04, "torch is kept"),
        (1.2, 0.9, "single pictures are scored by OpenVINO"),
        (0.9, 1.2, "several pictures are scored by OpenVINO"),
    ],
    ids=["faster", "hardly faster", "one faster", "many faster"],
)
def test_the_faster_one_takes_over_once_enough_were_scored(
    module: nn.Module, monkeypatch: pytest.MonkeyPatch, one: float, many: float, said: str
) -> None:
    used: list[int] = []
    clock = 0.0

    def slow(images: torch.Tensor) -> torch.Tensor:
        nonlocal clock
        clock += one if len(images) == 1 else many
        found: torch.Tensor = module(images)
        return found

    def fast(images: torch.Tensor) -> torch.Tensor:
        nonlocal clock
        clock += 1.0
        used.append(len(images))
        found: torch.Tensor = module(SPEC.normalize(images))
        return found

    monkeypatch.setattr(scorer, "prepared", lambda module, images: (slow, ""))
    monkeypatch.setattr("fieldmark.scoring.scorer.time.perf_counter", lambda: clock)
    asked = stand_in(monkeypatch, fast)
    score = Scorer(module, spec=SPEC, engine="auto")
    found = [score(pictures(count)) for count in (3, 3, 3, 1, 1)]
    assert asked == [1]
    # One look at both to compare the answers, 11 and 3 to time them, then what is scored.
    assert used.count(1) == 11 + (2 if one > 1.1 else 0)
    assert used.count(3) == 4 + (1 if many > 1.1 else 0)
    (note,) = score.notes
    assert f"{one:.2f}x torch's speed on one picture and {many:.2f}x on 3" in note
    assert said in note
    for given in found:
        wanted = module(SPEC.normalize(pictures(len(given))))
        torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda images: torch.zeros(len(images), 3), "probabilities differ"),
        (lambda images: torch.full((len(images), 3), float("nan")), "probabilities differ"),
        (RuntimeError("no such operation\nmore"), "cannot take the network: no such operation"),
    ],
    ids=["other answers", "no numbers", "fails"],
)
def test_what_does_not_agree_is_not_used(
    module: nn.Module, monkeypatch: pytest.MonkeyPatch, other: Forward | Exception, said: str
) -> None:
    wanted, _ = scores(module, "torch", 1)
    asked = stand_in(monkeypatch, other)
    found, notes = scores(module, "auto", 4)
    assert asked == [1]
    assert len(notes) == 1
    assert said in notes[0]
    assert all(torch.equal(given, wanted[0]) for given in found)


def test_what_fails_on_one_picture_alone_is_not_used(
    module: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its network for exactly one is compiled by itself, and may be what cannot be."""
    wanted, _ = scores(module, "torch", 1)

    def failing(images: torch.Tensor) -> torch.Tensor:
        if len(images) == 1:
            raise RuntimeError("cannot compile")
        found: torch.Tensor = module(SPEC.normalize(images))
        return found

    stand_in(monkeypatch, failing)
    found, (note,) = scores(module, "auto", 4)
    assert "cannot take the network: cannot compile" in note
    assert all(torch.equal(given, wanted[0]) for given in found)


def test_few_pictures_and_torch_never_ask(
    module: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = stand_in(monkeypatch, RuntimeError("asked"))
    scores(module, "auto", 2)
    scores(module, "torch", 4)
    assert asked == []


def test_engines_that_cannot_be_had(module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no engine 'onnx'"):
        Scorer(module, spec=SPEC, engine="onnx")
    with pytest.raises(ConfigError, match="on cpu only, not on cuda:0"):
        Scorer(module, spec=SPEC, device="cuda:0", engine="openvino")
    monkeypatch.setattr(openvino, "is_installed", lambda: False)
    with pytest.raises(MissingExtraError, match="pip install"):
        Scorer(module, spec=SPEC, engine="openvino")(pictures(1))
    assert scores(module, "auto", 1)[1] == []


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("views", ["none", "flip", "flip_shift"])
def test_openvino_gives_torchs_answers(module: nn.Module, views: str) -> None:
    pytest.importorskip("openvino")
    spec = InputSpec(size=28, views=views)
    fast, plain = (Scorer(module, spec=spec, engine=engine) for engine in ("openvino", "torch"))
    for count in (1, 5, 2):
        torch.testing.assert_close(
            fast(pictures(count)), plain(pictures(count)), rtol=1e-4, atol=1e-5
        )
