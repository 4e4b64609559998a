"""One event loop and one decoding process for the tests that need no server of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest

from fieldmark.serve.app import Service
from tests.serve.tiny import client, some_decoders

Asked = Callable[..., None]


@pytest.fixture(scope="session")
def loop() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="session")
def decoders(loop: asyncio.Runner) -> Iterator[Any]:
    found = some_decoders()
    yield found
    loop.run(found.really_stop())


@pytest.fixture
def asked(loop: asyncio.Runner, decoders: Any) -> Asked:
    """Run a coroutine function with a client of a new application, and the application."""

    def run(ask: Callable[[httpx.AsyncClient, Service], Awaitable[None]], **options: Any) -> None:
        async def whole() -> None:
            async with client(options.pop("decoders", decoders), **options) as (http, service):
                await ask(http, service)

        loop.run(whole())

    return run
