"""One torch thread, no display, no network, and the switches for marked tests."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

from tests.drawing import undrawn

# No example is too slow: another program may have the processor.
settings.register_profile(
    "fieldmark", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("fieldmark")

# A shell that starts this in the background has Ctrl-C ignored, and every child inherits that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
        if "network" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs the internet"))
        if "shared" in item.keywords and not SHARED.is_dir():
            item.add_marker(pytest.mark.skip(reason="../shared/data is not here"))
        if "gpu" in item.keywords:
            import torch

            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests go to one worker: what they share is then made once."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test and its fixtures draw figures only if the test is about them."""
    drawn = item.get_closest_marker("drawn") is not None
    with contextlib.nullcontext() if drawn else undrawn():
        return (yield)


@pytest.fixture(autouse=True, scope="session")
def _flags() -> Iterator[None]:
    """Messages as they are written, with flags; tests/test_errors.py is about those in Python."""
    from fieldmark.errors import for_the_command_line

    with for_the_command_line():
        yield


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    import sys

    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
