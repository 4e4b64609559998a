"""JSON has no NaN: what is printed as JSON has none either."""

from __future__ import annotations

import json

from fieldmark.files.json_text import numbers_or_null


def test_numbers_that_json_lacks_become_null() -> None:
    value = {"a": [float("nan"), 1.5, (float("inf"),)], "b": "nan", "c": {"d": -float("inf")}}
    text = json.dumps(numbers_or_null(value), allow_nan=False)
    assert json.loads(text) == {"a": [None, 1.5, [None]], "b": "nan", "c": {"d": None}}
