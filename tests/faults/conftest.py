"""One warm process and one undisturbed run for all faults."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.matrix import Matrix
from tests.faults.warm import Warm


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    with Warm(tmp_path_factory.mktemp("faults") / "warm") as warm:
        yield warm


@pytest.fixture(scope="session")
def matrix(warm: Warm, tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    return Matrix(warm, tmp_path_factory.mktemp("faults") / "cases")
