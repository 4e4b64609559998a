"""Keras on torch and on the processor, with none of the user's settings, beside our own code."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Keras reads and writes its configuration when it is imported; this one goes with the process.
_KERAS_HOME = tempfile.TemporaryDirectory(prefix="keras-home-")
os.environ["KERAS_HOME"] = _KERAS_HOME.name
os.environ["KERAS_BACKEND"] = "torch"
os.environ["KERAS_TORCH_DEVICE"] = "cpu"

# What Keras itself does that its own dependencies warn of; all other warnings are errors here, too.
IGNORED = (
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
    "ignore:Please import `affine_transform` from:DeprecationWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.reference)
            item.add_marker(pytest.mark.filterwarnings(*IGNORED))
