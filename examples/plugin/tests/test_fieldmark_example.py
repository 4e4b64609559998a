"""The plugin keeps fieldmark's contracts, and its metric is right."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fieldmark_example import plugin
from fieldmark_example.metric import quadratic_kappa
from PIL import Image

from fieldmark import testing


@pytest.mark.parametrize("check", testing.checks(plugin), ids=str)
def test_contracts(check: Callable[[], None]) -> None:
    check()


def test_the_reader_keeps_its_contract(tmp_path: Path) -> None:
    rows = ["file,label"]
    for i in range(6):
        Image.new("RGB", (9, 7), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{'ab'[i % 2]}")
    (tmp_path / "labels.csv").write_text("\n".join(rows), encoding="utf-8")
    testing.check_reader(plugin.readers["labels_csv"], str(tmp_path / "labels.csv"))


def test_kappa_of_all_right_and_of_chance() -> None:
    labels = np.array([0, 1, 2, 0, 1, 2])
    assert quadratic_kappa(np.eye(3)[labels], labels) == 1
    assert quadratic_kappa(np.eye(3)[[0, 0, 0, 0, 0, 0]], labels) == 0
