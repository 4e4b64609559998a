"""Every hostile input gets the answer that is expected of it, and does no harm."""

from __future__ import annotations

import pytest

from tests.hostile.place import Nursery, Place, Row, try_row
from tests.hostile.table import TABLE


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, marks=[pytest.mark.slow] * row.slow, id=f"{row.item} {row.input}")
        for row in TABLE
    ],
)
def test_hostile_input(row: Row, place: Place, nursery: Nursery) -> None:
    _, wrong = try_row(row, place, nursery)
    assert not wrong, "\n".join(wrong)
