"""Fieldmark turns a folder of labelled pictures into an image classifier.

    import fieldmark

    run = fieldmark.train("photos/", epochs=10)
    run.scores["test"]["accuracy"]
    run.predict("new/*.jpg")
    run = fieldmark.load("runs/photos")

The names below are the public ones. Each is loaded when first used, so that importing fieldmark is
quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fieldmark.version import __version__

if TYPE_CHECKING:
    from fieldmark.api import Run, compare, import_keras, load, resume, train, tune
    from fieldmark.errors import (
        ConfigError,
        DataError,
        DivergedError,
        FieldmarkError,
        Interrupted,
        MissingExtraError,
        ResourceError,
        RunError,
        WeightsError,
    )
    from fieldmark.jobs.predict import Prediction
    from fieldmark.pages.comparison import Comparison
    from fieldmark.pages.tuning import Tuning
    from fieldmark.settings.config import TrainConfig

__all__ = [
    "Comparison",
    "ConfigError",
    "DataError",
    "DivergedError",
    "FieldmarkError",
    "Interrupted",
    "MissingExtraError",
    "Prediction",
    "ResourceError",
    "Run",
    "RunError",
    "TrainConfig",
    "Tuning",
    "WeightsError",
    "__version__",
    "compare",
    "import_keras",
    "load",
    "resume",
    "train",
    "tune",
]

_HOMES = {
    "Comparison": "pages.comparison",
    "Prediction": "jobs.predict",
    "Run": "api",
    "TrainConfig": "settings.config",
    "Tuning": "pages.tuning",
    "compare": "api",
    "import_keras": "api",
    "load": "api",
    "resume": "api",
    "train": "api",
    "tune": "api",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'fieldmark' has no attribute {name!r}")
    home = _HOMES.get(name, "errors")
    return getattr(importlib.import_module(f"fieldmark.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
