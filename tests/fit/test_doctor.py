"""The doctor's rules on plain figures: what is found, and what small numbers do not show."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fieldmark.fit import doctor
from fieldmark.fit.doctor import Answers, Case, Finding, Trial, constant_loss, diagnose, missing
from fieldmark.fit.state import EpochRecord
from fieldmark.settings.config import TrainConfig

DOCS = Path(__file__).resolve().parents[2] / "docs"


def record(epoch: int, train: float, val: float, **more: float) -> EpochRecord:
    figures = {"train_loss": 1.2 * (1 - train), "val_loss": 1.2 * (1 - val), "lr": 0.1, **more}
    return EpochRecord(
        epoch=epoch, step=50 * epoch, train_accuracy=train, val_accuracy=val, val_macro_f1=val,
        seconds=1.0, images_per_second=1.0, data_wait=0.0, best=False, **figures,
    )  # fmt: skip


def answers(*by_class: tuple[int, int], loss: float = 0.1) -> Answers:
    """Right answers and pictures of each class; the wrong ones go to the next class."""
    k = len(by_class)
    table = np.zeros((k, k), dtype=np.int64)
    for i, (right, n) in enumerate(by_class):
        table[i, i] += right
        table[i, (i + 1) % k] += n - right
    return Answers(table, loss)


def case(history: Sequence[EpochRecord], **changes: Any) -> Case:
    base: dict[str, Any] = {
        "config": TrainConfig(epochs=len(history), schedule="constant"),
        "class_names": ("a", "b", "c"),
        "counts": (200, 200, 200),
        "num_val": 150,
        "history": tuple(history),
        "kept": history[-1].epoch,
        "val": answers((45, 50), (45, 50), (45, 50)),
    }
    return Case(**{**base, **changes})


def codes(one: Case) -> list[str]:
    return [finding.code for finding in diagnose(one)]


RISE = [record(e, 0.5 + 0.4 * e / 10, 0.5 + 0.4 * e / 10) for e in range(1, 11)]
STILL = [*RISE, *(record(e, 0.905, 0.9) for e in range(11, 15))]
"""A training that came to its end."""


def test_a_good_training_has_no_finding_and_needs_no_measurement() -> None:
    assert missing(case(STILL)) == ""
    assert codes(case(STILL)) == []


@pytest.mark.parametrize("n", [6, 30, 3000])
def test_a_gap_needs_numbers(n: int) -> None:
    """Training 0.95 and validation 0.85 is suspicious with many pictures, not with few."""
    history = [record(e, 0.95, 0.8334) for e in range(1, 9)]
    asked = missing(case(history, num_val=n, counts=(1000, 1000, 1000)))
    assert (asked == "train") == (n == 3000)


def test_constant_losses_of_every_weighting() -> None:
    """Against the minimum that a search finds with torch's own loss."""
    import torch
    from scipy.optimize import minimize

    counts = (60, 30, 10)
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    for changes, weight, smoothing in (
        ({}, None, 0.0),
        ({"label_smoothing": 0.2}, None, 0.2),
        ({"class_weights": "2,1,5", "label_smoothing": 0.1}, np.array([2.0, 1, 5]), 0.1),
        ({"class_weights": "balanced"}, 1 / np.array(counts), 0.0),
    ):
        config = dataclasses.replace(TrainConfig(), **changes)
        given = case(STILL, config=config, counts=counts)
        scaled = None if weight is None else weight * 100 / (weight * counts).sum()
        weights = None if scaled is None else torch.tensor(scaled)

        def loss(logits: Any, weights: Any = weights, smoothing: float = smoothing) -> float:
            repeated = torch.tensor(logits).expand(100, 3)
            return float(
                torch.nn.functional.cross_entropy(
                    repeated, labels, weight=weights, label_smoothing=smoothing, reduction="sum"
                )
                / 100
            )

        best = minimize(loss, np.zeros(3), tol=1e-12).fun
        assert constant_loss(given) == pytest.approx(best, abs=1e-6), changes
    balanced = case(STILL, config=TrainConfig(balance=True), counts=counts)
    assert constant_loss(balanced) == pytest.approx(np.log(3))
    for changes in ({"l2": 1e-4}, {"hardest": "0.5@2"}):
        assert constant_loss(case(STILL, config=TrainConfig(**changes))) is None


WRONG = answers((10, 100), (10, 100), (90, 100))
RIGHT = answers((95, 100), (94, 100), (96, 100))
GAP = [record(e, 0.95, 0.3) for e in range(1, 9)]


def gap(**changes: Any) -> Case:
    given = {"val": answers((5, 50), (5, 50), (35, 50)), "has_norms": True, "momentum": 0.01}
    return case(GAP, **{**given, **changes})


def test_the_way_to_stale_statistics() -> None:
    assert missing(gap()) == "train"
    asked = doctor.with_measurement(gap(), "train", train=WRONG)
    assert missing(asked) == "fresh"
    found = doctor.with_measurement(
        asked, "fresh", fresh_train=RIGHT, fresh_val=RIGHT, mended=(175, 0)
    )
    assert missing(found) == ""
    (finding,) = diagnose(found)
    assert finding.code == "stale_statistics"
    assert "--norm-statistics fresh" in finding.next
    assert "n = 300" in finding.evidence


def test_an_average_a_mode_or_augmentation() -> None:
    """What is not of the statistics is told apart by two more measurements."""
    lost = gap(average=True, train=WRONG, fresh_train=WRONG, measured=frozenset({"train", "fresh"}))
    assert missing(lost) == "raw"
    assert codes(doctor.with_measurement(lost, "raw", raw=RIGHT)) == ["average_lags"]
    lost = doctor.with_measurement(lost, "raw", raw=WRONG)
    assert missing(lost) == "mode"
    assert codes(doctor.with_measurement(lost, "mode", in_training=RIGHT)) == ["scoring_mode"]
    assert codes(doctor.with_measurement(lost, "mode", in_training=WRONG)) == ["only_augmented"]


def test_overfitting_is_no_fault_of_the_statistics() -> None:
    rising = [
        record(e, 0.99, 0.6, train_loss=0.05, val_loss=1 + 0.1 * max(0, e - 3))
        for e in range(1, 13)
    ]
    one = case(rising, val=answers((30, 50), (30, 50), (30, 50)), has_norms=True)
    assert missing(one) == "train"
    one = doctor.with_measurement(one, "train", train=RIGHT)
    assert missing(one) == ""
    assert codes(one) == ["overfitting"]


def test_running_statistics_that_cost_two_points_are_told_by_validation() -> None:
    fine = case(STILL, fresh_val=answers((48, 50), (48, 50), (47, 50)))
    assert codes(dataclasses.replace(fine, mended_val=(3, 0))) == []
    assert codes(dataclasses.replace(fine, mended_val=(9, 0))) == ["stale_statistics"]
    worse = dataclasses.replace(
        fine, mended_val=(0, 9), fresh_val=answers((43, 50), (43, 50), (42, 50))
    )
    assert codes(worse) == []


STUCK = [record(e, 0.333, 0.333, train_loss=1.0987, val_loss=1.0987) for e in range(1, 9)]
CHANCE = answers((50, 150), (50, 150), (50, 150), loss=1.0987)


@pytest.mark.parametrize(
    ("losses", "moved", "code"),
    [
        ({1.0: 1.1, 10.0: 1.0, 100.0: 0.4}, True, "lr_too_low"),
        ({1.0: 1.1, 0.1: 0.3}, True, "lr_too_high"),
        ({1.0: 0.2}, True, "not_learning"),
        ({1.0: 1.1, 10.0: 1.1, 0.1: 1.1}, True, "not_learning"),
        ({1.0: 1.1}, False, "nothing_trains"),
    ],
)
def test_why_nothing_was_learned(losses: dict[float, float], moved: bool, code: str) -> None:
    one = case(STUCK, val=answers((16, 50), (17, 50), (17, 50), loss=1.1))
    one = doctor.with_measurement(one, "train", train=CHANCE)
    assert missing(one) == "trial"
    trial = Trial(32, 30, 1.0986, losses, moved=moved)
    (finding,) = diagnose(doctor.with_measurement(one, "trial", trial=trial))
    assert finding.code == code
    assert codes(dataclasses.replace(one, same_input=True)) == ["input_constant"]
    assert codes(dataclasses.replace(one, same_output=True)) == ["dead_network"]


def test_imbalance_alone_is_not_stuck() -> None:
    """Accuracy is no better than the commonest class, but answers follow the classes."""
    history = [record(e, 0.9, 0.9, train_loss=0.3 - e / 40, val_loss=0.25) for e in range(1, 9)]
    table = np.array([[126, 9], [6, 9]])
    one = case(history, counts=(540, 60), class_names=("a", "b"), val=Answers(table, 0.25))
    one = doctor.with_measurement(one, "train", train=Answers(2 * table, 0.25))
    assert missing(one) == ""
    assert codes(one) == []


@pytest.mark.parametrize(("n", "found"), [(2, []), (8, ["class_never_predicted"])])
def test_a_class_that_is_never_said(n: int, found: list[str]) -> None:
    table = np.array([[45, 5, 0], [6, 44, 0], [n, 0, 0]])
    assert codes(case(STILL, val=Answers(table, 0.3))) == found


@pytest.mark.parametrize(("n", "found"), [(6, []), (60, ["one_class"])])
def test_one_class(n: int, found: list[str]) -> None:
    table = np.array([[2 * n // 3, 0, 0], [n // 6, 0, 0], [n // 6, 0, 0]])
    learned = doctor.with_measurement(case(STILL, val=Answers(table, 0.3)), "train", train=RIGHT)
    assert codes(learned) == found


def test_validation_above_training_is_explained_or_not() -> None:
    history = [record(e, 0.5, 0.9) for e in range(1, 9)]
    assert missing(case(history)) == "train"
    assert codes(doctor.with_measurement(case(history), "train", train=RIGHT)) == []
    hard = answers((60, 100), (60, 100), (62, 100))
    found = codes(doctor.with_measurement(case(history), "train", train=hard))
    assert found == ["val_above_train"]


def test_test_below_validation_by_how_much_chance_had_a_choice() -> None:
    """What one comparison would show, the best of a hundred epochs does not."""
    below = answers((38, 50), (38, 50), (37, 50))
    kept_last = TrainConfig(epochs=14, keep="last")
    assert codes(case(STILL, test=below, config=kept_last)) == ["test_below_val"]
    assert codes(case(STILL, test=below)) == ["val_too_small"]
    assert codes(case(STILL, test=answers((43, 50), (44, 50), (42, 50)))) == []
    assert codes(case(STILL, test=below, val_is_test=True)) == []
    other = answers((4, 50), (4, 50), (4, 50))
    assert codes(case(STILL, test=other)) == ["test_below_val"]


def test_a_probe_that_was_better() -> None:
    probe = record(0, 0.95, 0.9)
    worse = [record(e, 0.9, 0.75) for e in range(1, 5)]
    assert codes(case([probe, *worse], kept=0)) == ["probe_best"]
    nearly = [record(e, 0.95, 0.893) for e in range(1, 5)]
    assert codes(case([probe, *nearly], kept=0)) == []


def test_training_that_goes_on_getting_better() -> None:
    half = case(RISE, config=TrainConfig(epochs=10, schedule="constant"))
    assert codes(half) == ["too_few_epochs"]
    annealed = [dataclasses.replace(r, lr=0.1 * (1 - r.epoch / 10.5)) for r in RISE]
    assert codes(case(annealed)) == []
    assert codes(case(RISE, kept=6)) == []
    assert codes(case(RISE, num_val=20, val=answers((6, 7), (6, 7), (6, 6)))) in (
        [], ["too_few_epochs"],
    )  # fmt: skip


def test_an_epoch_that_lost_all() -> None:
    lost = [*RISE[:8], record(9, 0.34, 0.4, train_loss=1.2), *STILL[9:]]
    assert codes(case(lost)) == ["lr_too_high"]
    assert [f.code for f in doctor.during(case(lost[:9], val=None))] == ["lr_too_high"]
    one = case(lost, rolled_back=True, incidents=("the loss: went back to epoch 3",))
    assert codes(one) == ["rolled_back"]


def test_scores_that_are_no_numbers() -> None:
    bad = [*STILL[:5], record(6, 0.8, float("nan"), val_loss=float("nan")), *STILL[6:]]
    assert codes(case(bad)) == ["not_finite"]


def test_divergence_is_said_alone_with_what_is_beside_it() -> None:
    assert codes(case(STILL, diverged="the loss is not a number")) == ["diverged"]


def test_no_finding_by_chance() -> None:
    """Splits of one kind, in all sizes, with the best of many epochs kept."""
    rng = np.random.default_rng(0)
    found: list[str] = []
    for _ in range(400):
        k = int(rng.integers(2, 8))
        names = tuple(map(str, range(k)))
        shares = rng.dirichlet(np.full(k, 3.0))
        recalls = rng.uniform(0.5, 1.0, k)
        sizes = {part: int(rng.integers(k, 300)) for part in ("train", "val", "test")}

        def drawn(n: int, recalls: Any = recalls, shares: Any = shares, k: int = k) -> Answers:
            of = rng.multinomial(n, shares)
            return answers(
                *((int(rng.binomial(c, r)), int(c)) for c, r in zip(of, recalls, strict=True)),
                loss=0.3,
            )

        tries = max((drawn(sizes["val"]) for _ in range(8)), key=lambda a: a.accuracy)
        true = float(shares @ recalls)
        seen = [float(rng.binomial(k * (600 // k), true)) / (k * (600 // k)) for _ in range(8)]
        history = [record(i + 1, seen[i], tries.accuracy) for i in range(8)]
        one = case(
            history, counts=tuple([600 // k] * k), class_names=names, num_val=sizes["val"],
            val=tries, test=drawn(sizes["test"]), train=drawn(sizes["train"]),
            measured=frozenset({"train", "fresh", "raw", "mode", "trial"}),
        )  # fmt: skip
        found += codes(one)
    assert len(found) <= 2, found


def test_every_code_has_its_place_in_the_docs() -> None:
    listed = re.findall(r"^### `(\w+)`", (DOCS / "doctor.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(doctor.CODES)
    source = Path(doctor.__file__).read_text("utf-8")
    used = set(re.findall(r'code(?:=|, remedy = | = )"(\w+)"', source))
    assert used == set(doctor.CODES)


def test_a_finding_is_one_line() -> None:
    finding = Finding(code="x", cause="it is so", evidence="n = 3", next="do it", figures={})
    assert str(finding) == "x: it is so (n = 3). Next: do it"
    assert doctor.once([finding, dataclasses.replace(finding, next="else"), finding]) == (finding,)
