"""One nursery and one finished run for all hostile inputs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.place import Nursery, Place, trained


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    if sys.platform != "linux":
        pytest.skip("forks after importing torch, and asks Linux what was opened")
    started = Nursery()
    yield started
    started.close()


@pytest.fixture(scope="session")
def model(nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The place with the run that commands are given."""
    return trained(nursery, tmp_path_factory.mktemp("model") / "place").root


@pytest.fixture
def place(tmp_path: Path, model: Path) -> Place:
    return Place(tmp_path / "place", model)
