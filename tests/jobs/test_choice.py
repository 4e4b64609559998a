"""The choice by measurement: candidates are tried on train and val, and the best one is trained."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fieldmark
from fieldmark import models
from fieldmark.data.batches import Batches
from fieldmark.errors import RunError
from fieldmark.jobs import choice, held_out
from fieldmark.jobs.plan import read_data
from fieldmark.jobs.request import TrainRequest
from fieldmark.progress import Silent
from fieldmark.runs import choice as stored
from fieldmark.runs.directory import RunDirectory
from fieldmark.settings.config import DataFacts, Facts, TrainConfig
from fieldmark.settings.recipes.candidates import SIZES, Candidate, candidates
from tests.making import bright_halves

LITE0 = "timm/tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 24 pictures, bright at the top or at the bottom, and a test split."""
    return bright_halves(tmp_path_factory.mktemp("choice"))


SMALL: dict[str, str | int | float | bool] = {
    "model": "small_cnn(width=2)",
    "size": 8,
    "batch_size": 16,
}
GOOD = Candidate("good", "tiny", {**SMALL, "epochs": 6})
POOR = Candidate("poor", "tiny", {**SMALL, "epochs": 1, "lr": 1e-9})


def listed(monkeypatch: pytest.MonkeyPatch, *chosen: Candidate) -> None:
    monkeypatch.setattr(choice, "candidates", lambda facts, networks, **rest: chosen)


def facts(side: int, **changes: Any) -> Facts:
    data = DataFacts(
        num_classes=3, num_train=90, smallest_class=30, largest_class=30, median_side=side
    )
    return Facts(data=dataclasses.replace(data, **changes), device="cpu", pretrained="")


# --- what is tried -------------------------------------------------------------------------------


def test_tiny_pictures_are_tried_both_ways() -> None:
    found = candidates(facts(32), [LITE0])
    assert [each.settings["size"] for each in found if each.is_probe] == list(SIZES)
    assert [each.recipe for each in found if not each.is_probe] == ["tiny_fast"]


def test_the_smallest_pictures_are_not_probed() -> None:
    assert [each.recipe for each in candidates(facts(8), [LITE0])] == ["tiny"]


def test_photographs_are_probed_by_every_network() -> None:
    networks = (LITE0, "timm/resnet18")
    found = candidates(facts(400), networks)
    assert [(each.recipe, each.settings) for each in found] == [
        ("probe", {"model": f"{network}(head_stages=3)"}) for network in networks
    ]


def test_without_weights_there_is_nothing_to_choose_among_for_photographs() -> None:
    assert candidates(facts(400), []) == ()


@pytest.mark.parametrize(
    ("settings", "open_"),
    [
        ({}, True),
        ({"device": "cpu", "seed": 3, "split": "0.5/0.25/0.25", "memory_gb": 1.0}, True),
        ({"model": "auto", "weights": "auto"}, True),
        ({"model": "small_cnn"}, False),
        ({"epochs": 3}, False),
        ({"lr": 0.1}, False),
        ({"weights": "none"}, False),
    ],
)
def test_a_setting_that_decides_what_is_learnt_closes_the_choice(
    settings: dict[str, Any], open_: bool
) -> None:
    assert choice.is_open(TrainRequest(data="d", settings=settings)) == open_


def test_a_recipe_a_config_or_a_run_close_it(tmp_path: Path) -> None:
    assert not choice.is_open(TrainRequest(data="d", recipe="tiny"))
    assert not choice.is_open(TrainRequest(data="d", base=TrainConfig(model="small_cnn")))
    assert not choice.is_open(TrainRequest(data="d", from_run=tmp_path))


def test_every_setting_that_may_be_given_exists() -> None:
    assert {field.name for field in dataclasses.fields(TrainConfig)} >= choice.LEFT_OPEN


# --- trying --------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [(POOR, GOOD), (GOOD, POOR)])
def test_the_better_one_is_trained_and_all_is_written(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    order: tuple[Candidate, Candidate],
) -> None:
    listed(monkeypatch, *order)
    run = fieldmark.train(folder, out=tmp_path / "run", progress=False)
    assert run.config.epochs == 6
    found = stored.read(RunDirectory(run.path))
    assert found is not None
    assert [each.name for each in found.tried] == [each.name for each in order]
    by_name = {each.name: each for each in found.tried}
    assert found.chosen.name == "good"
    assert by_name["good"].accuracy > by_name["poor"].accuracy
    assert by_name["poor"].why
    assert (found.pictures, found.folds) == (48, 3)
    log = (run.path / "log.txt").read_text()
    assert "good: best of 2 tried on 48 pictures" in log
    page = (run.path / "report.html").read_text()
    assert "What was tried" in page and "poor" in page
    assert (run.path / "choice.json").read_text().count("tmp") == 0


def test_the_settings_repeat_the_run_exactly(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(monkeypatch, GOOD, POOR)
    run = fieldmark.train(folder, out=tmp_path / "run", progress=False)
    again = fieldmark.train(
        folder, config=run.path / "config.json", out=tmp_path / "again", progress=False
    )
    one, two = (each.path / "model.safetensors" for each in (run, again))
    assert one.read_bytes() == two.read_bytes()
    assert not (again.path / "choice.json").exists()


def test_the_test_split_is_not_opened(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(monkeypatch, GOOD, POOR)
    seen: list[str] = []
    resize = Batches._resize_one

    def watched(self: Batches, index: int, *rest: Any) -> Any:
        seen.append(self.part.keys[index])
        return resize(self, index, *rest)

    monkeypatch.setattr(Batches, "_resize_one", watched)
    request = TrainRequest(data=str(folder))
    opened = read_data(request.data, TrainConfig(), Silent())
    found = choice.choose(request, opened, Silent())
    assert found is not None and seen
    assert not [key for key in seen if key.startswith("test/")]


def test_a_candidate_that_fails_is_passed_over(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Candidate("broken", "tiny", {"model": "cifar_resnet(depth=7)"})
    listed(monkeypatch, broken, GOOD)
    run = fieldmark.train(folder, out=tmp_path / "run", progress=False)
    found = stored.read(RunDirectory(run.path))
    assert found is not None and found.chosen.name == "good"
    assert (found.tried[0].outcome, found.tried[0].n) == (stored.FAILED, 0)
    assert "broken" in (run.path / "report.html").read_text()
    assert "depth is 7" in found.tried[0].why


def test_a_probe_is_solved_on_features_that_are_computed_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run's probe is that of a run by name: the same bits, without the pass."""
    probes = [
        Candidate(f"probe {size}", "probe", {**SMALL, "size": size}, "small") for size in (8, 12)
    ]
    for each in probes:
        del each.settings["batch_size"]  # type: ignore[attr-defined]
    listed(monkeypatch, *probes)
    run = fieldmark.train(folder, out=tmp_path / "run", progress=False)
    found = stored.read(RunDirectory(run.path))
    assert found is not None and found.chosen.recipe == "probe"
    assert 0 <= found.chosen.neighbours <= 1
    named = fieldmark.train(
        folder, config=run.path / "config.json", out=tmp_path / "again", progress=False
    )
    one, two = (each.path / "model.safetensors" for each in (run, named))
    assert one.read_bytes() == two.read_bytes()


def test_a_larger_size_is_tried_only_while_sizes_get_better(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    losses = {"a": 0.5, "b": 0.7, "c": 0.1}
    labels = np.array([0, 1] * 24)

    def judged(self: Any, candidate: Candidate, pool: Any) -> tuple[Any, float]:
        tried.append(candidate.name)
        wrong = losses[candidate.name]
        logits = np.log(np.where(np.eye(2)[labels] > 0, np.exp(-wrong), 1 - np.exp(-wrong)))
        return held_out.Answers.of(logits, labels), 0.5

    monkeypatch.setattr(choice.Trials, "_probe", judged)
    listed(monkeypatch, *(Candidate(name, "probe", {}, "one") for name in "abc"))
    request = TrainRequest(data=str(folder))
    opened = read_data(request.data, TrainConfig(), Silent())
    found = choice.choose(request, opened, Silent())
    assert tried == ["a", "b"]
    assert found is not None and found.choice.chosen.name == "a"


@pytest.mark.parametrize(("right", "sizes"), [(40, 1), (46, 2)])
def test_larger_sizes_are_spared_where_another_network_is_far_ahead(
    folder: Path, monkeypatch: pytest.MonkeyPatch, right: int, sizes: int
) -> None:
    """It is tried directly after the smallest size."""
    sharper = iter(range(1, 9))

    def probed(self: Any, candidate: Candidate, pool: Any) -> tuple[Any, float]:
        correct = np.arange(48) < right
        return held_out.Answers(correct, np.ones(48, dtype=bool), 1 / next(sharper)), 0.5

    def trained(self: Any, *args: Any) -> Any:
        every = np.ones(48, dtype=bool)
        return held_out.Answers(every, every, 0.1), "worse", ""

    monkeypatch.setattr(choice.Trials, "_probe", probed)
    monkeypatch.setattr(choice.Trials, "_train", trained)
    probes = [Candidate(f"probe {size}", "probe", {"size": size}, "one") for size in (8, 12)]
    listed(monkeypatch, *probes, GOOD)
    request = TrainRequest(data=str(folder))
    found = choice.choose(request, read_data(request.data, TrainConfig(), Silent()), Silent())
    assert found is not None and found.choice.chosen is not None
    names = [each.name for each in found.choice.tried]
    assert names[:2] == ["probe 8", "good"]
    assert len([name for name in names if name.startswith("probe")]) == sizes
    assert found.choice.chosen.name == "good"


def test_fine_tuning_is_tried_on_fewer_pictures_beside_its_probe(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "ROUGH", 20)
    monkeypatch.setattr(choice, "FEWEST_WRONG", 0)
    probe = Candidate("probe", "probe", {"model": SMALL["model"], "size": 8}, "small")
    monkeypatch.setattr(choice, "fine_tuned", lambda probe, facts: POOR)
    listed(monkeypatch, probe)
    request = TrainRequest(data=str(folder))
    found = choice.choose(request, read_data(request.data, TrainConfig(), Silent()), Silent())
    assert found is not None
    tried = found.choice.tried
    assert [each.name for each in tried] == ["probe", "probe", "poor"]
    assert [each.n for each in tried[:2]] == [48, 20]
    assert 0 < tried[2].n <= 20
    assert found.choice.chosen is tried[0]
    assert [each.outcome for each in tried].count(stored.CHOSEN) == 1
    assert all(each.why for each in tried)
    assert found.features is not None and set(found.features) == {"train", "val"}


@pytest.mark.parametrize(("candidate", "wins"), [(GOOD, True), (POOR, False)])
def test_fine_tuning_has_to_beat_the_probe_it_goes_on_from(
    folder: Path, monkeypatch: pytest.MonkeyPatch, candidate: Candidate, wins: bool
) -> None:
    def probed(self: Any, candidate: Candidate, pool: Any) -> tuple[Any, float]:
        right = np.arange(48) % 4 > 0
        return held_out.Answers(right, np.ones(48, dtype=bool), 0.6), 0.5

    monkeypatch.setattr(choice.Trials, "_probe", probed)
    monkeypatch.setattr(choice, "fine_tuned", lambda probe, facts: candidate)
    probe, other = (Candidate(name, "probe", {}, name) for name in ("one", "other"))
    listed(monkeypatch, probe, other)
    request = TrainRequest(data=str(folder))
    found = choice.choose(request, read_data(request.data, TrainConfig(), Silent()), Silent())
    assert found is not None and found.choice.chosen is not None
    assert [each.name for each in found.choice.tried] == ["one", "other", candidate.name]
    assert found.choice.chosen.name == (candidate.name if wins else "one")
    tuned = found.choice.tried[2]
    assert tuned.n == 16 or wins  # not better from the first fold on: the others are spared
    assert wins == (tuned.outcome == stored.CHOSEN)
    assert all(each.why for each in found.choice.tried)


@pytest.mark.parametrize(("wrong", "tried"), [(3, False), (4, True)])
def test_where_chance_could_do_as_well_fine_tuning_is_spared(
    folder: Path, monkeypatch: pytest.MonkeyPatch, wrong: int, tried: bool
) -> None:
    def probed(self: Any, candidate: Candidate, pool: Any) -> tuple[Any, float]:
        return held_out.Answers(np.arange(48) >= wrong, np.ones(48, dtype=bool), 0.1), 0.5

    monkeypatch.setattr(choice.Trials, "_probe", probed)
    monkeypatch.setattr(choice, "fine_tuned", lambda probe, facts: POOR)
    listed(monkeypatch, Candidate("probe", "probe", {}, "one"))
    request = TrainRequest(data=str(folder))
    found = choice.choose(request, read_data(request.data, TrainConfig(), Silent()), Silent())
    assert found is not None
    assert (len(found.choice.tried) == 2) == tried


@pytest.mark.parametrize(("pool", "wins"), [(48, False), (12, True)])
def test_equal_to_its_probe_on_few_of_the_pictures_fine_tuning_wins(
    folder: Path, monkeypatch: pytest.MonkeyPatch, pool: int, wins: bool
) -> None:
    """It gains more by further pictures; where all were used there are none."""
    monkeypatch.setattr(choice, "POOL", pool)
    probe, tuned = Candidate("probe", "probe", {}, "one"), Candidate("tuned", "finetune", {}, "one")

    def answers(self: Any, *args: Any) -> Any:
        right = np.arange(pool) % 3 > 0
        return held_out.Answers(right, np.ones(pool, dtype=bool), 0.6)

    monkeypatch.setattr(choice.Trials, "_probe", lambda self, *args: (answers(self), 0.5))
    monkeypatch.setattr(choice.Trials, "_train", lambda self, *args: (answers(self), "worse", ""))
    monkeypatch.setattr(choice, "fine_tuned", lambda probe, facts: tuned)
    listed(monkeypatch, probe, dataclasses.replace(probe, name="second", family="two"))
    request = TrainRequest(data=str(folder))
    found = choice.choose(request, read_data(request.data, TrainConfig(), Silent()), Silent())
    assert found is not None and found.choice.chosen is not None
    assert found.choice.chosen.name == ("tuned" if wins else "probe")


@pytest.mark.parametrize(
    ("error", "done", "hopeless"),
    [(0.9, 0.3, False), (0.9, 0.4, True), (0.3, 0.4, False), (0.3, 0.9, True), (0.1, 0.9, False)],
)
def test_hopeless(error: float, done: float, hopeless: bool) -> None:
    rival = np.arange(100) >= 10
    assert held_out.is_hopeless(error, rival, done) == hopeless


def test_all_pretrained_networks_of_this_machine_are_listed() -> None:
    found = models.all_pretrained()
    assert len(found) == len(set(found))
    assert all(models.is_pretrained(name, "auto") for name in found)


def test_what_is_stored_is_read_strictly(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert stored.read(run) is None
    tried = stored.Tried(
        name="a",
        recipe="tiny",
        settings={"size": 8},
        seconds=1.0,
        outcome=stored.CHOSEN,
        why="the only one",
        n=5,
        accuracy=0.5,
        loss=0.7,
        neighbours=0.5,
    )
    value = stored.Choice(pictures=5, folds=3, seconds=1.5, tried=(tried,))
    stored.write(run, value)
    assert stored.read(run) == value
    content = json.loads((tmp_path / stored.FILE).read_text())
    content["tried"][0]["outcome"] = "won"
    (tmp_path / stored.FILE).write_text(json.dumps(content))
    with pytest.raises(RunError, match="outcome"):
        stored.read(run)
    content["tried"][0]["outcome"] = stored.CHOSEN
    content["tried"] *= 2
    (tmp_path / stored.FILE).write_text(json.dumps(content))
    with pytest.raises(RunError, match="two that were chosen"):
        stored.read(run)
