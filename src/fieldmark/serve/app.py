"""The routes: pictures in, answers out."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from PIL import Image
from python_multipart.multipart import parse_options_header
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from fieldmark.pictures.picture import U8, Decoded
from fieldmark.seeding import F64
from fieldmark.serve import openapi, page
from fieldmark.serve.batching import Batcher
from fieldmark.serve.classifier import Classifier
from fieldmark.serve.counters import Counters, resident_bytes
from fieldmark.serve.decoding import AwaitedDecoders
from fieldmark.serve.gate import Gate, refused, too_large
from fieldmark.serve.limits import Limits, Refusal, Slots
from fieldmark.version import __version__

PREVIEW = 768
"""Longest side of a heat map, in pixels."""
_WHOLE_PICTURES = 8
_MOST_CLASSES = 1_000_000
_RAW = ("application/octet-stream", "image/")
_CHARSETS = ("utf-8", "utf8", "us-ascii", "ascii")
"""Of the names in a form, none of which is used."""


class Service:
    """One classifier with its decoders, batches and routes; ``gate`` is the ASGI application."""

    def __init__(
        self,
        classifier: Classifier,
        decoders: AwaitedDecoders,
        *,
        limits: Limits | None = None,
        token: str = "",
        hosts: Sequence[str] = (),
        root_path: str = "",
    ) -> None:
        self._page = page.under(root_path)
        self._root_path = root_path
        self.classifier, self.decoders = classifier, decoders
        self.limits = limits or Limits()
        self.counters = Counters()
        # Pictures that are not resized yet may be large, so only a few are in memory at a time.
        self._room = asyncio.Semaphore(
            _WHOLE_PICTURES if classifier.input is None else self.limits.queue
        )
        self.batcher = Batcher(classifier.classify, self.limits)
        self._slots = Slots(self.limits, self.batcher.pace, decoders.pace)
        routes = [
            Route("/", self.page, methods=["GET"]),
            Route("/predict", self.predict, methods=["POST"]),
            Route("/explain", self.explain, methods=["POST"]),
            Route("/model", self.model, methods=["GET"]),
            Route("/health", self.health, methods=["GET"]),
            Route("/ready", self.ready, methods=["GET"]),
            Route("/metrics", self.metrics, methods=["GET"]),
            Route("/openapi.json", self.openapi, methods=["GET"]),
        ]
        app = Starlette(
            routes=routes,
            lifespan=lambda app: self.lifespan(),
            exception_handlers={
                Refusal: _refuse,
                HTTPException: _http_error,
                ClientDisconnect: _gone,
                Exception: _broken,
            },
        )
        self.gate = Gate(
            app,
            limits=self.limits,
            counters=self.counters,
            paths=[route.path for route in routes],
            hosts=hosts,
            token=token,
            root_path=root_path,
        )

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Run the decoding processes and the batcher for the length of the block."""
        try:
            await self.decoders.start()
            await self.batcher.start()
            yield
        finally:
            await self.batcher.stop()
            await self.decoders.stop()

    # --- answers -----------------------------------------------------------------------------

    async def predict(self, request: Request) -> Response:
        """Classify the pictures of a request."""
        top = self._number(request, "top", default=5, low=1, high=_MOST_CLASSES)
        self._slots.check()  # before anybody sends a body that is then refused
        files = await _files(request, self.limits)
        self._slots.take(len(files))
        try:
            turn_by = self._turn_by()
            work = asyncio.gather(*(self._one(file, turn_by) for file in files))
            found = await self._in_time(work, own=len(files))
        finally:
            self._slots.give_back(len(files))
        answers = [self._answer(item, top) for item in found]
        for answer in answers:
            self.counters.pictures[
                answer["error"]["code"] if "error" in answer else "answered"
            ] += 1
        if all(isinstance(item, Refusal) for item in found):
            first = next(item for item in found if isinstance(item, Refusal))
            if len(found) == 1:
                raise first
            return JSONResponse(
                {"predictions": answers}, status_code=first.status, headers=first.headers
            )
        return JSONResponse({"predictions": answers})

    async def _one(self, data: bytes, turn_by: float) -> F64 | Refusal:
        try:
            async with self._turn(turn_by):
                with self.batcher.coming():
                    decoded = await self._decoded(data, turn_by)
                return await self._scored(decoded.pixels, turn_by)
        except Refusal as refusal:
            return refusal

    async def _scored(self, pixels: U8, turn_by: float) -> F64:
        try:
            return await self.batcher.score(pixels, turn_by=turn_by)
        except TimeoutError:
            raise self._slots.busy() from None

    def _turn_by(self) -> float:
        """The time of the loop's clock until which a picture may wait; then it is refused.

        So each that is begun has time enough left.
        """
        return asyncio.get_running_loop().time() + self.limits.answer_seconds / 2

    @asynccontextmanager
    async def _turn(self, turn_by: float) -> AsyncIterator[None]:
        """Be one of the pictures that are in memory, for the length of the block."""
        try:
            async with asyncio.timeout_at(turn_by):
                await self._room.acquire()
        except TimeoutError:
            raise self._slots.busy() from None
        try:
            yield
        finally:
            self._room.release()

    async def _decoded(self, data: bytes, turn_by: float, *, preview: int = 0) -> Decoded:
        try:
            return await self.decoders.decode(data, preview=preview, turn_by=turn_by)
        except TimeoutError:
            raise self._slots.busy() from None

    async def _in_time(self, work: Any, *, own: int) -> Any:
        try:
            async with asyncio.timeout(self.limits.answer_seconds):
                return await work
        except TimeoutError:
            stuck = self.batcher.stuck_for() > self.limits.answer_seconds / 2
            if self._slots.taken > own and not stuck:  # it had to wait for others
                raise self._slots.busy() from None
            raise Refusal(
                504, "too_slow", f"there was no answer within {self.limits.answer_seconds:g} s"
            ) from None

    def _answer(self, item: F64 | Refusal, top: int) -> dict[str, Any]:
        if isinstance(item, Refusal):
            return {"error": item.to_json()}
        names = self.classifier.class_names
        order = np.argsort(-item, kind="stable")[:top]
        likeliest = [{"label": names[k], "prob": float(item[k])} for k in order]
        return {
            **likeliest[0],
            "sure": bool(likeliest[0]["prob"] >= self.classifier.threshold.value),
            "top": likeliest,
        }

    async def explain(self, request: Request) -> Response:
        """Draw a heat map over one picture."""
        if not self.classifier.explains:
            raise Refusal(404, "no_heat_maps", "this model has no heat maps")
        classes = len(self.classifier.class_names)
        label = self._number(request, "label", default=-1, low=0, high=classes - 1)
        self._slots.check()
        files = await _files(request, self.limits)
        if len(files) != 1:
            raise Refusal(400, "one_picture", "heat maps are made of one picture at a time")
        self._slots.take(1)
        try:
            drawn = await self._in_time(self._explained(files[0], label), own=1)
        finally:
            self._slots.give_back(1)
        return Response(drawn, media_type="image/png")

    async def _explained(self, data: bytes, label: int) -> bytes:
        turn_by = self._turn_by()
        decoded = await self._decoded(data, turn_by, preview=PREVIEW)
        preview = decoded.preview
        assert preview is not None
        if label < 0:
            label = int((await self._scored(decoded.pixels, turn_by)).argmax())
        drawn = await self.batcher.alone(
            lambda: self.classifier.explain(decoded.pixels, preview, label)
        )
        buffer = io.BytesIO()
        Image.fromarray(drawn).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def _number(self, request: Request, name: str, *, default: int, low: int, high: int) -> int:
        """Read a number from the query, which may hold nothing else: no token, path or address."""
        if set(request.query_params) - {name}:
            raise Refusal(400, "unknown_parameter", f"{name} is the only parameter")
        texts = request.query_params.getlist(name)
        if not texts:
            return default
        text = texts[0]
        digits = text.isascii() and text.isdecimal() and len(text) <= 9
        if len(texts) > 1 or not digits or not low <= int(text) <= high:
            raise Refusal(
                400, "bad_parameter", f"{name} is one whole number from {low} to {high}, given once"
            )
        return int(text)

    # --- about the server --------------------------------------------------------------------

    async def page(self, request: Request) -> Response:
        """Serve the page for people."""
        return Response(
            self._page,
            media_type="text/html; charset=utf-8",
            headers={"content-security-policy": page.POLICY, "cache-control": "no-cache"},
        )

    async def model(self, request: Request) -> Response:
        """Describe the model, for the page."""
        classifier = self.classifier
        return JSONResponse(
            {
                "name": classifier.name,
                "classes": classifier.class_names,
                "threshold": classifier.threshold.value,
                "threshold_reason": classifier.threshold.reason,
                "heat_maps": classifier.explains,
                "max_bytes": self.limits.body_bytes,
                "version": __version__,
            }
        )

    async def health(self, request: Request) -> Response:
        """Say that the process answers."""
        return JSONResponse({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        """Say whether a picture would be answered now."""
        if self.gate.draining:
            raise Refusal(503, "stopping", "the server is being stopped")
        if not self.decoders.able:
            raise Refusal(503, "no_decoder", "no decoding process is alive; one is being started")
        if self.batcher.stuck_for() > self.limits.answer_seconds:
            raise Refusal(503, "stuck", "scoring a batch takes too long")
        return JSONResponse({"status": "ready"})

    async def metrics(self, request: Request) -> Response:
        """Give counts to Prometheus."""
        gauges = [
            ("queue_pictures", "gauge", "Pictures inside the server.", self._slots.taken),
            ("batches_total", "counter", "Batches scored.", self.batcher.batches),
            ("scored_total", "counter", "Pictures scored.", self.batcher.pictures),
            ("decoders_replaced_total", "counter", "Decoders that died.", self.decoders.replaced),
            ("resident_bytes", "gauge", "Memory of the server's process.", resident_bytes()),
        ]
        text = self.counters.text(gauges)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(self, request: Request) -> Response:
        """Serve the OpenAPI description."""
        return JSONResponse(openapi.description(self.limits, self._root_path))


class _InMemory(MultiPartParser):
    """Keeps a form's parts in memory, within the body's limit, so that nothing is on the disk."""

    spool_max_size = 2**31


async def _files(request: Request, limits: Limits) -> list[bytes]:
    """Read the pictures from a request's body.

    Raises:
        Refusal: if it is too large, compressed, of another type, or has other fields than files.
    """
    headers = request.headers
    if headers.get("content-encoding", "identity") != "identity":
        raise Refusal(
            415, "encoded", "compressed bodies are not read; send it without Content-Encoding"
        )
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > limits.body_bytes:
        raise too_large(limits)
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _parts(request, limits)
    if not kind.startswith(_RAW):
        raise Refusal(
            415,
            "content_type",
            "send a picture's bytes as image/* or application/octet-stream, "
            "or files as multipart/form-data",
        )
    return [await request.body()]


async def _parts(request: Request, limits: Limits) -> list[bytes]:
    _, options = parse_options_header(request.headers["content-type"])
    name = options.get(b"charset", b"utf-8").decode("latin-1").lower()
    if name not in _CHARSETS:
        raise Refusal(415, "charset", f"a form's charset is utf-8, not {name[:40]!r}")
    parser = _InMemory(request.headers, request.stream(), max_files=limits.pictures, max_fields=0)
    try:
        form = await parser.parse()
    except (MultiPartException, ValueError, LookupError) as error:
        why = error.message if isinstance(error, MultiPartException) else "the form cannot be read"
        raise Refusal(
            400,
            "bad_form",
            f"{why.rstrip('.')}; up to {limits.pictures} files are accepted, and no other fields",
        ) from None
    files = [await part.read() for _, part in form.multi_items() if not isinstance(part, str)]
    await form.close()
    if not files:
        raise Refusal(400, "no_picture", "there is no file in the form")
    return files


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return refused(error)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    codes: Mapping[int, str] = {404: "not_found", 405: "method"}
    refusal = Refusal(error.status_code, codes.get(error.status_code, "http"), str(error.detail))
    answer = refused(refusal)
    answer.headers.update(error.headers or {})
    return answer


async def _gone(request: Request, error: Exception) -> Response:
    """Nobody reads it: the client has left."""
    return refused(Refusal(400, "gone", "the connection ended before the body did"))


async def _broken(request: Request, error: Exception) -> Response:
    return refused(Refusal(500, "internal", "the server failed; its log says more"))
