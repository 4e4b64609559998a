"""Decoding processes: the same pixels as everywhere, and one that dies takes nothing along."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from fieldmark.errors import ResourceError
from fieldmark.pictures.decode import decode
from fieldmark.serve.app import Service
from fieldmark.serve.limits import Limits, Refusal
from tests.serve.tiny import INPUT, SharedDecoders, picture, some_decoders

Asked = Callable[..., None]
RAW = {"content-type": "application/octet-stream"}


def odd_pictures() -> list[bytes]:
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    found = []
    for mode, kind in (
        ("RGB", "JPEG"),
        ("L", "PNG"),
        ("RGBA", "PNG"),
        ("P", "GIF"),
        ("CMYK", "JPEG"),
    ):
        buffer = io.BytesIO()
        colour.convert(mode).save(buffer, kind)
        found.append(buffer.getvalue())
    exif = Image.Exif()
    exif[274] = 6
    buffer = io.BytesIO()
    colour.save(buffer, "JPEG", exif=exif)
    return [*found, buffer.getvalue()]


def test_pixels_are_those_of_the_one_decoder(
    loop: asyncio.Runner, decoders: SharedDecoders
) -> None:
    async def run() -> None:
        await decoders.start()
        for data in odd_pictures():
            found = await decoders.decode(data, preview=20)
            whole, _ = decode(data)
            np.testing.assert_array_equal(found.pixels, INPUT.pixels(whole))
            assert found.preview is not None and max(found.preview.shape[:2]) == 20
            assert (await decoders.decode(data)).preview is None

    loop.run(run())


def test_a_refused_picture_leaves_the_process_alive(
    loop: asyncio.Runner, decoders: SharedDecoders
) -> None:
    async def run() -> None:
        await decoders.start()
        before = decoders._pool.pids
        for data in (b"", b"no", picture()[:50], b"\x89PNG\r\n\x1a\n" + b"\xff" * 100):
            with pytest.raises(Refusal) as refusal:
                await decoders.decode(data)
            assert refusal.value.status == 400
        assert decoders._pool.pids == before

    loop.run(run())


def separate(
    loop: asyncio.Runner, ask: Callable[[SharedDecoders], Awaitable[None]], **options: float
) -> None:
    async def run() -> None:
        decoders = some_decoders(**options)
        await decoders.start()
        try:
            await ask(decoders)
        finally:
            await decoders.really_stop()

    loop.run(run())


async def killed_with_a_picture(decoders: SharedDecoders, sent: asyncio.Task[Any]) -> None:
    """Kill the one process while it has the picture that is being sent."""
    async with asyncio.timeout(20):
        while not (pids := decoders._pool.pids) or decoders._pool._idle or not decoders.able:
            await asyncio.sleep(0.005)
    assert not sent.done()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def test_a_process_that_is_killed_over_a_picture_is_replaced_and_the_picture_tried_again(
    loop: asyncio.Runner, asked: Asked
) -> None:
    decoders = some_decoders()

    async def ask(http: httpx.AsyncClient, service: Service) -> None:
        (pid,) = decoders._pool.pids
        os.kill(pid, signal.SIGSTOP)  # so that it dies while it has the picture
        waiting = asyncio.create_task(http.post("/predict", content=picture(), headers=RAW))
        await killed_with_a_picture(decoders, waiting)
        assert (await waiting).status_code == 200
        assert decoders.replaced == 1 and decoders.working == 1
        await decoders.really_stop()

    asked(ask, decoders=decoders)


def test_a_process_that_dies_while_it_waits_is_replaced_and_ready_says_so(
    loop: asyncio.Runner, asked: Asked
) -> None:
    decoders = some_decoders()

    async def ask(http: httpx.AsyncClient, service: Service) -> None:
        assert (await http.get("/ready")).status_code == 200
        (pid,) = decoders._pool.pids
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        answer = await http.get("/ready")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_decoder")
        async with asyncio.timeout(20):
            while (await http.get("/ready")).status_code != 200:
                await asyncio.sleep(0.02)
        assert decoders.replaced == 1 and decoders._pool.pids != {pid}
        assert (await http.post("/predict", content=picture(), headers=RAW)).status_code == 200
        await decoders.really_stop()

    asked(ask, decoders=decoders)


def test_a_process_that_dies_while_it_starts_is_replaced(
    loop: asyncio.Runner, tmp_path: Path
) -> None:
    """The first two are killed before they can work; a third works."""
    script = (
        "import os, pathlib, signal, sys\n"
        f"tries = pathlib.Path({str(tmp_path / 'tries')!r})\n"
        "number = len(tries.read_text()) if tries.exists() else 0\n"
        "tries.write_text('x' * (number + 1))\n"
        "if number < 2:\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.argv = ['worker', '5']\n"
        "from fieldmark.pictures import worker\n"
        "worker.main()\n"
    )

    async def run() -> None:
        decoders = some_decoders()
        decoders._pool._command = [sys.executable, "-c", script]
        try:
            await decoders.start()
            assert (await decoders.decode(picture())).pixels.shape == (3, 16, 16)
            assert (decoders.replaced, decoders.able) == (2, True)
        finally:
            await decoders.really_stop()

    loop.run(run())


def test_what_waits_too_long_for_its_turn_is_429_and_not_504(
    loop: asyncio.Runner, asked: Asked
) -> None:
    """Each picture takes long, and nothing was measured before they came."""
    decoders = some_decoders(seconds=20.0)

    async def ask(http: httpx.AsyncClient, service: Service) -> None:
        (pid,) = decoders._pool.pids
        os.kill(pid, signal.SIGSTOP)
        asking = [
            asyncio.create_task(http.post("/predict", content=picture(), headers=RAW))
            for _ in range(5)
        ]
        done, late = await asyncio.wait(asking, timeout=0.8)
        assert {answer.result().status_code for answer in done} == {429}
        assert all("retry-after" in answer.result().headers for answer in done)
        assert (len(done), len(late)) == (4, 1)
        os.kill(pid, signal.SIGCONT)
        assert (await late.pop()).status_code == 200
        await decoders.really_stop()

    asked(ask, decoders=decoders, limits=Limits(answer_seconds=1.0))


def test_a_process_that_hangs_is_killed_and_replaced(loop: asyncio.Runner) -> None:
    async def ask(decoders: SharedDecoders) -> None:
        (pid,) = decoders._pool.pids
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(Refusal, match="more than 1 s") as refusal:
            await decoders.decode(picture())
        assert 1 <= time.monotonic() - began < 15
        assert (refusal.value.status, refusal.value.code) == (503, "decoder_failed")
        with pytest.raises(ProcessLookupError):  # nor is it left as a zombie
            os.kill(pid, 0)
        assert (await decoders.decode(picture())).pixels.shape == (3, 16, 16)
        assert decoders.replaced == 1

    separate(loop, ask, seconds=1.0)


def test_whoever_stops_waiting_leaves_no_half_answer_behind(loop: asyncio.Runner) -> None:
    async def ask(decoders: SharedDecoders) -> None:
        (pid,) = decoders._pool.pids
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await asyncio.gather(*(decoders.decode(picture((250, 0, 0))) for _ in range(30)))
        os.kill(pid, signal.SIGCONT)
        pixels = (await decoders.decode(picture((0, 0, 250)))).pixels
        assert pixels[2].min() == 250 and pixels[0].max() == 0
        assert decoders._pool.pids == {pid}
        assert decoders._pool._idle[0]._pictures == 2  # what nobody waits for is not begun

    separate(loop, ask, seconds=20.0)


def test_who_waits_behind_a_process_that_hangs_is_answered(loop: asyncio.Runner) -> None:
    async def ask(decoders: SharedDecoders) -> None:
        (pid,) = decoders._pool.pids
        os.kill(pid, signal.SIGSTOP)
        hung = asyncio.create_task(decoders.decode(picture()))
        await asyncio.sleep(0.1)
        hung.cancel()  # its client is gone
        assert (await decoders.decode(picture())).pixels.shape == (3, 16, 16)
        assert decoders.replaced == 1

    separate(loop, ask, seconds=1.0)


def test_the_end_does_not_wait_for_a_process_that_hangs(loop: asyncio.Runner) -> None:
    async def run() -> None:
        decoders = some_decoders(seconds=60.0)
        await decoders.start()
        (pid,) = decoders._pool.pids
        os.kill(pid, signal.SIGSTOP)
        waiting = [asyncio.create_task(decoders.decode(picture())) for _ in range(3)]
        await asyncio.sleep(0.1)
        began = time.monotonic()
        await decoders.really_stop()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert time.monotonic() - began < 10
        assert all(isinstance(one, (Refusal, asyncio.CancelledError)) for one in found)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        assert decoders.working == 0

    loop.run(run())


def test_processes_that_cannot_start_are_said_and_tried_again(
    loop: asyncio.Runner,
) -> None:
    async def run() -> None:
        decoders = some_decoders()
        good, decoders._pool._command = decoders._pool._command, ["/no/such/program"]
        try:
            with pytest.raises(ResourceError, match="could not be started"):
                await decoders.start()
            assert not decoders.able
            with pytest.raises(Refusal) as refusal:
                await decoders.decode(picture())
            assert (refusal.value.status, refusal.value.code) == (503, "no_decoder")
            decoders._pool._command = good
            assert (await decoders.decode(picture())).pixels.shape == (3, 16, 16)
            assert decoders.able
        finally:
            await decoders.really_stop()

    loop.run(run())


def test_processes_end_with_the_server(loop: asyncio.Runner) -> None:
    pids: list[int | None] = []

    async def ask(decoders: SharedDecoders) -> None:
        pids.extend(decoders._pool.pids)

    separate(loop, ask)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_bomb_is_refused_before_it_is_decoded(
    loop: asyncio.Runner, decoders: SharedDecoders
) -> None:
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")

    async def run() -> None:
        await decoders.start()
        with pytest.raises(Refusal) as refusal:
            await decoders.decode(buffer.getvalue())
        assert (refusal.value.status, refusal.value.code) == (413, "too_many_pixels")

    loop.run(run())
