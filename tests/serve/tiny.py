"""A classifier without a network, and pictures, for the tests of the server."""

from __future__ import annotations

import contextlib
import io
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import httpx
import numpy as np
from PIL import Image

from fieldmark.pictures.inputs import InputSpec
from fieldmark.pictures.limits import PictureLimits
from fieldmark.pictures.picture import U8
from fieldmark.seeding import F64
from fieldmark.serve import server as serving
from fieldmark.serve.app import Service
from fieldmark.serve.classifier import Threshold
from fieldmark.serve.decoding import AwaitedDecoders


class Colours:
    """Says which colour a picture has most of."""

    name = "colours"
    threshold = Threshold(0.6, "made up")
    limits = PictureLimits()
    explains = True

    def __init__(
        self,
        *,
        class_names: tuple[str, ...] = ("red", "grün", "蓝"),
        seconds: float = 0.0,
        whole: bool = False,
    ) -> None:
        self.class_names = class_names
        self.input = None if whole else INPUT
        self.seconds = seconds
        self.batches: list[int] = []
        self.fail = False
        self.go = threading.Event()
        """While it is cleared, nothing is answered."""
        self.go.set()

    def classify(self, pictures: Sequence[U8]) -> F64:
        self.batches.append(len(pictures))
        time.sleep(self.seconds)
        assert self.go.wait(30)
        if self.fail:
            raise RuntimeError("the network is broken")
        axes = (0, 1) if self.input is None else (1, 2)
        means = np.array([p.mean(axis=axes, dtype=np.float64) for p in pictures]) + 1
        return means / means.sum(axis=1, keepdims=True)

    def explain(self, fitted: U8, preview: U8, label: int) -> U8:
        return np.full_like(preview, 50 * label)


def picture(
    colour: tuple[int, int, int] = (250, 10, 10),
    *,
    size: tuple[int, int] = (40, 30),
    kind: str = "PNG",
) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


INPUT = InputSpec(size=16, interpolation="bilinear")
MAX_PIXELS = 3_000_000


class SharedDecoders(AwaitedDecoders):
    """Processes that outlive the service: starting them is what takes time."""

    async def start(self) -> None:
        if not self.working:
            await super().start()

    async def stop(self) -> None:
        pass

    async def really_stop(self) -> None:
        await super().stop()


def some_decoders(**changes: Any) -> SharedDecoders:
    options: dict[str, Any] = {"spec": INPUT, "limits": PictureLimits(MAX_PIXELS), "seconds": 5.0}
    return SharedDecoders(1, **{**options, **changes})


@contextlib.asynccontextmanager
async def client(
    decoders: AwaitedDecoders, classifier: Any = None, **options: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Service]]:
    """The application in this process, with its lifespan."""
    service = Service(classifier or Colours(), decoders, **options)
    transport = httpx.ASGITransport(service.gate, raise_app_exceptions=False)
    async with (
        service.lifespan(),
        httpx.AsyncClient(transport=transport, base_url="http://localhost") as asking,
    ):
        yield asking, service


@contextlib.contextmanager
def server(classifier: Any = None, **options: Any) -> Iterator[tuple[int, Service]]:
    """A real server on loopback in a thread; gives its port, and the service with the server."""
    decoders = AwaitedDecoders(1, spec=INPUT, limits=PictureLimits(MAX_PIXELS), seconds=5.0)
    service = Service(classifier or Colours(), decoders, **options)
    listener = serving.listen("127.0.0.1", 0)
    ready = threading.Event()
    service.running = running = serving.make(service, ready=ready.set)  # type: ignore[attr-defined]
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    port = listener.getsockname()[1]
    thread.start()
    try:
        assert ready.wait(60)
        yield port, service
    finally:
        running.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def run_until(check: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for what another thread or process brings about."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)
