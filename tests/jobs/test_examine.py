"""Sick trainings, made on purpose and really trained, are named; healthy ones are left alone."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

import fieldmark
from fieldmark import errors
from fieldmark.errors import FieldmarkError
from fieldmark.fit import loop
from fieldmark.fit.doctor import CODES
from fieldmark.jobs import examine
from fieldmark.progress import Silent
from fieldmark.runs import doctor as doctor_file
from fieldmark.runs.directory import RunDirectory
from tests.jobs.sick import EASY, HEALTHY, PLAIN, SICK, Patient, settings_of

LIGHT = ("two classes", "very few pictures", "nine tenths are one class", "probe alone", "dense")


class Listening(Silent):
    """Keeps the warnings, each with the epoch after which it came."""

    def __init__(self) -> None:
        self.warned: list[tuple[int, str]] = []
        self.epochs = 0

    def warn(self, text: str) -> None:
        self.warned.append((self.epochs, text))

    def epoch(self, record: Any, epochs: int) -> None:
        self.epochs = record.epoch


def trained(patient: Patient, place: Path, progress: Any = False) -> Path:
    data = patient.pictures(place / "pictures")
    with contextlib.suppress(FieldmarkError):
        fieldmark.train(
            data, out=place / "run", recipe="tiny", progress=progress, **settings_of(patient)
        )
    return place / "run"


def codes(run: Path) -> list[str]:
    found = doctor_file.read(RunDirectory(run))
    assert found is not None
    return [finding.code for finding in found.findings]


@pytest.mark.parametrize("name", [name for name in SICK if not SICK[name].seldom])
def test_a_sick_training_is_named(name: str, tmp_path: Path) -> None:
    heard = Listening()
    run = trained(SICK[name], tmp_path, heard)
    found = doctor_file.read(RunDirectory(run))
    assert found is not None
    assert SICK[name].code in [finding.code for finding in found.findings]
    for finding in found.findings:
        assert finding.code in CODES
        told = [text for _, text in heard.warned if text.startswith(finding.code + ": ")]
        assert len(told) == (finding.code != "diverged")  # which is the error itself
        assert finding.figures or finding.code == "one_class"
        assert finding.cause[0].islower()
        assert not finding.cause.endswith(".")


@pytest.mark.parametrize("name", LIGHT)
def test_nothing_is_said_of_a_healthy_training(name: str, tmp_path: Path) -> None:
    heard = Listening()
    run = trained(HEALTHY[name], tmp_path, heard)
    assert codes(run) == []
    assert [text for _, text in heard.warned if not text.startswith("classes are unequal")] == []
    assert fieldmark.load(run).findings == []
    assert "What is wrong with the training" not in (run / "report.html").read_text("utf-8")


def test_stale_statistics_are_told_while_there_is_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as scoring some training pictures costs little beside what was trained."""
    monkeypatch.setattr(examine, "EARLY", 32)
    heard = Listening()
    run = trained(SICK["slow batch norm"], tmp_path, heard)
    (first,) = [epoch for epoch, text in heard.warned if text.startswith("stale_statistics")]
    assert examine.COST * 3 * 180 * first >= 2 * 32
    assert 2 <= first < 8
    assert codes(run) == ["stale_statistics"]


def test_the_finding_is_in_the_log_and_in_the_report(tmp_path: Path) -> None:
    run = trained(SICK["one picture, many times"], tmp_path)
    (finding,) = doctor_file.read(RunDirectory(run)).findings
    log, page = ((run / name).read_text("utf-8") for name in ("log.txt", "report.html"))
    assert f"warning: {finding}" in log
    assert "<code>input_constant</code>" in page
    assert page.index("input_constant") < page.index("Learning curves")


def test_in_python_a_finding_names_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fieldmark.load(trained(SICK["one picture, many times"], tmp_path))
    assert "--size" in run.findings[0]["next"]
    monkeypatch.setattr(errors, "_for_the_command_line", False)
    assert "check the pictures, size, resize and range" in run.findings[0]["next"]


class Killed(BaseException):
    pass


def test_a_resumed_training_has_the_same_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "no gradient"
    whole = trained(SICK[name], tmp_path / "whole")
    real = loop._step

    def failing(state: Any, batch: Any, plan: Any) -> None:
        if state.step == 17:
            raise Killed
        real(state, batch, plan)

    monkeypatch.setattr(loop, "_step", failing)
    with pytest.raises(Killed):
        trained(SICK[name], tmp_path / "killed")
    monkeypatch.setattr(loop, "_step", real)
    handed = {k: v for k, v in SICK[name].settings.items() if callable(v)}
    fieldmark.resume(tmp_path / "killed" / "run", progress=False, **handed)
    resumed = tmp_path / "killed" / "run"
    assert (resumed / "doctor.json").read_bytes() == (whole / "doctor.json").read_bytes()


def test_a_healthy_training_pays_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without suspicion no picture is scored for the doctor."""
    monkeypatch.setattr("fieldmark.jobs.examine._Bench.measure", lambda *_: pytest.fail("measured"))
    run = trained(Patient("", EASY, {**PLAIN, "epochs": 6}), tmp_path)
    assert json.loads((run / "doctor.json").read_text("utf-8")) == {
        "format": 1, "findings": [], "measured": {},
    }  # fmt: skip
