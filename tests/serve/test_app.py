"""What the server answers, in this process: pictures, refusals, facts about itself."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import re
from collections.abc import Callable

import httpx
import numpy as np
import pytest
from PIL import Image
from starlette.datastructures import Headers
from starlette.types import Message

from fieldmark.serve.app import Service
from fieldmark.serve.gate import Body, Uploads
from fieldmark.serve.limits import Limits, Refusal
from tests.serve.tiny import Colours, picture, some_decoders

Asked = Callable[..., None]
RAW = {"content-type": "application/octet-stream"}


def test_pictures_get_answers_in_their_order(asked: Asked) -> None:
    colours = [(250, 10, 10), (10, 10, 250), (10, 250, 10)]

    async def ask(http: httpx.AsyncClient, service: Service) -> None:
        files = [("file", (f"{i}.png", picture(c))) for i, c in enumerate(colours)]
        answer = await http.post("/predict", files=files)
        assert answer.status_code == 200
        found = answer.json()["predictions"]
        assert [p["label"] for p in found] == ["red", "蓝", "grün"]
        for p in found:
            assert p["prob"] == p["top"][0]["prob"] and p["sure"] is True
            assert [t["prob"] for t in p["top"]] == sorted(
                (t["prob"] for t in p["top"]), reverse=True
            )
            assert abs(sum(t["prob"] for t in p["top"]) - 1) < 1e-9
        raw = await http.post("/predict?top=1", content=picture(colours[1]), headers=RAW)
        assert raw.json()["predictions"] == [{**found[1], "top": found[1]["top"][:1]}]

    asked(ask)


def test_an_answer_below_the_threshold_is_not_sure(asked: Asked) -> None:
    async def ask(http: httpx.AsyncClient, service: Service) -> None:
        answer = await http.post("/predict", content=picture((90, 80, 80)), headers=RAW)
        assert answer.json()["predictions"][0]["sure"] is False

    asked(ask)


def test_requests_that_come_together_are_scored_together(asked: Asked) -> None:
    colours = Colours(seconds=0.05)

    async def ask(http: httpx.AsyncClient, service: Service) -> None:
        data = picture()
        answers = await asyncio.gather(
            *(http.post("/predict", content=data, headers=RAW) for _ in range(24))
        )
        assert {a.status_code for a in answers} == {200}

    asked(ask, classifier=colours)
    assert sum(colours.batches) == 24
    assert len(colours.batches) < 12 and max(colours.batches) <= 32


def test_a_batch_is_no_larger_than_asked(asked: Asked) -> None:
    colours = Colours(seconds=0.02)

    async def ask(http: httpx.AsyncClient, service: Service) -> None:
        files = [("file", ("a.png", picture())) for _ in range(20)]
        assert (await http.post("/predict", files=files)).status_code == 200

    asked(ask, classifier=colours, limits=Limits(batch=4))
    assert max(colours.batches) <= 4 and sum(colours.batches) == 20


def test_a_bad_picture_among_good_ones_is_told_in_its_place(asked: Asked) -> None:
    async def ask(http: httpx.AsyncClient, service: Service) -> None:
        files = [("f", ("a.png", picture())), ("f", ("b.png", b"no")), ("f", ("c.png", picture()))]
        answer = await http.post("/predict", files=files)
        assert answer.status_code == 200
        first, second, third = answer.json()["predictions"]
        assert first == third and first["label"] == "red"
        assert second["error"]["code"] == "not_a_picture"

    asked(ask)


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"", 400, "empty_file"),
        (b"x", 400, "not_a_picture"),
        (b"file:///etc/passwd", 400, "not_a_picture"),
        (b"http://169.254.169.254/", 400, "not_a_picture"),
        (b"%PDF-1.7\n" + b"0" * 50, 415, "unsupported_format"),
        (picture(kind="JPEG")[:300], 400, "truncated"),
        (picture()[:40], 400, "broken"),
        (picture(size=(2000, 2000)), 413, "too_many_pixels"),
    ],
)
def test_what_is_no_picture_is_refused_with_a_code(
    asked: Asked, data: bytes, status: int, code: str
) -> None:
    async def ask(http: httpx.AsyncClient, service: Service) -> None:
        for answer in (
            await http.post("/predict", content=data, headers=RAW),
            await http.post("/predict", files={"file": ("x.jpg", data)}),
            await http.post("/explain", content=data, headers=RAW),
        ):
            assert answer.status_code == status
            assert answer.json()["error"]["code"] == code
        assert (await http.post("/predict", content=picture(), headers=RAW)).status_code == 200

    asked(ask)


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"content-type": "application/json"}, 415, "content_type"),
        ({"content-type": "text/plain"}, 415, "content_type"),
        ({}, 415, "content_type"),
        ({**RAW, "content-encoding": "gzip"}, 415, "encoded"),
        ({**RAW, "content-encoding": "br"}, 415, "encoded"),
        ({**RAW, "content-encoding": "deflate"}, 415, "encoded"),
        ({"content-type": "multipart/form-data"}, 400, "bad_form"),
        ({"content-type": "multipart/form-data; boundary=x"}, 400, "bad_form"),
        ({**RAW, "content-length": "999999999999"}, 413, "too_large"),
        ({**RAW, "origin": "http://evil.example"}, 403, "other_site"),
        ({**RAW, "origin": "null"}, 403, "other_site"),
        ({**RAW, "sec-fetch-site": "cross-site"}, 403, "other_site"),
        ({**RAW, "host": "evil.example"}, 400, "wrong_host"),
        ({**RAW, "host": "localhost.evil.example"}, 400, "wrong_host"),
        ({**RAW, "host": "127.0.0.1.evil.example:80"}, 400, "wrong_host"),
        ({**RAW, "host": ""}, 400, "wrong_host"),
        ({**RAW, "host": "["}, 400, "wrong_host"),
    ],
)
def test_what_is_asked_wrongly_is_refused(
    asked: Asked, headers: dict[str, str], status: int, code: str
) -> None:
    async def ask(http: httpx.AsyncClient, service: Service) -> None:
        answer = await http.post("/predict", content=picture(), headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert service.batcher.pictures == 0

    asked(ask)


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:99", "127.0.0.1:8000", "[::1]:8000", "192.168.1.7", "Station.local"],
)
def test_addresses_and_allowed_names_are_this_server(asked: Asked, host: str) -> None:
    async def ask(http: httpx.AsyncClient, service: Service) -> None:
        headers = {**RAW, "host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
        assert (await http.post("/predict", content=picture(), headers=headers)).status_code == 200

    asked(ask, hosts=["station.local"])


@pytest.mark.parametrize(
    "url",
    [
        "/predict?url=http://x/",
        "/predict?top=0",
        "/predict?top=1000001",
        "/predict?top=-1",
        "/predict?top=%D9%A3x",
        "/predict?top=%D9%A3",
        "/predict?top=%EF%BC%95",
        "/predict?top=%C2%B2",
        "/predict?top=5&top=6",
        "/predict?top=5&top=5",
        "/predict?top=",
        "/predict?top=+5",
        "/predict?top=5.0",
        "/explain?label=3",
        "/predict?token=" + "a" * 30,
    ],
)
def test_other_parameters_are_refused(asked: Asked, url: str) -> None:
    async def ask(http: httpx.AsyncClient, service: Service) -> None:
        answer = await http.post(url, content=picture(), headers=RAW)
        assert answer.status_code == 400
        assert "parameter" in answer.json()["error"]["code"]

    asked(ask)


def test_forms_are_counted_and_hold_files_only(asked: Asked) -> None:
    async def ask(http: httpx.AsyncClient, service: Service) -> None:
        for options in (
            {"files": [("f", ("a.png", picture())) for _ in range(4)]},
            {"files": {"f": ("a.png", picture())}, "data": {"url": "http://169.254.169.254/"}},
        ):
            answer = await http.post("/predict", **options)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_form")
        many = b"".join(
            b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n' for _ in range(5000)
        )
        answer = await http.post(
            "/predict", content=many, headers={"content-type": "multipart/form-data; boundary=x"}
        )
        assert answer.json()["error"]["code"] == "bad_form"
        answer = await http.post(
            "/predict",
            content=b"--x--\r\n",
            headers={"content-type": "multipart/form-data; boundary=x"},
        )
        assert answer.json()["error"]["code"] == "no_picture"

    asked(ask, limits=Limits(pictures=3))


def test_the_body_is_counted_while_it_arrives(asked: Asked, loop: asyncio.Runner) -> None:
    read = 0

    async def receive() -> Message:
        nonlocal read
        read += 1
        return {"type": "http.request", "body": b"x" * 10_000, "more_body": True}

    async def count() -> None:
        limits = Limits(body_bytes=100_000)
        body = Body(receive, Headers({}), limits, Uploads(limits))
        with pytest.raises(Refusal) as refusal:
            while True:
                await body()
        assert refusal.value.status == 413

    loop.run(count())
    assert read == 11

    async def ask(http: httpx.AsyncClient, service: Service) -> None:
        answer = await http.post("/predict", content=b"x" * 100_001, headers=RAW)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")

    asked(ask, limits=Limits(body_bytes=100_000))


def test_a_full_queue_is_429_and_frees_itself(asked: Asked) -> None:
    colours = Colours(seconds=0.3)

    async def ask(http: httpx.AsyncClient, service: Service) -> None:
        data = picture()
        answers = await asyncio.gather(
            *(http.post("/predict", content=data, headers=RAW) for _ in range(12))
        )
        statuses = [a.status_code for a in answers]
        assert sorted(set(statuses)) == [200, 429] and statuses.count(200) == 4
        refused = next(a for a in answers if a.status_code == 429)
        assert (
            refused.json()["error"]["code"] == "busy" and int(refused.headers["retry-after"]) >= 1
        )
        files = [("f", ("a.png", data)) for _ in range(5)]
        assert (await http.post("/predict", files=files)).status_code == 429
        assert (await http.post("/predict", content=data, headers=RAW)).status_code == 200

    asked(ask, classifier=colours, limits=Limits(queue=4))


def test_a_slow_network_has_a_shorter_queue_and_smaller_batches(asked: Asked) -> None:
    colours = Colours()

    async def ask(http: httpx.AsyncClient, service: Service) -> None:
        service.batcher.pace.saw(0.25)  # four a second: twenty in half of ten seconds
        colours.go.clear()
        asking = [
            asyncio.create_task(http.post("/predict", content=picture(), headers=RAW))
            for _ in range(30)
        ]
        refused = [answer async for answer in _first(asking, 10)]
        assert {a.status_code for a in refused} == {429}
        assert int(refused[0].headers["retry-after"]) > 1
        colours.go.set()
        answers = await asyncio.gather(*asking)
        assert [a.status_code for a in answers].count(200) == 20

    asked(ask, classifier=colours)
    assert colours.batches[0] <= 2  # half a second's worth


def test_a_network_that_takes_seconds_for_a_picture_is_429_and_not_504(asked: Asked) -> None:
    """Nothing was measured before they came."""

    async def ask(http: httpx.AsyncClient, service: Service) -> None:
        answers = await asyncio.gather(
            *(http.post("/predict", content=picture(), headers=RAW) for _ in range(8))
        )
        statuses = [a.status_code for a in answers]
        assert set(statuses) == {200, 429}
        assert all(int(a.headers["retry-after"]) >= 1 for a in answers if a.status_code == 429)
        run_until = asyncio.get_running_loop().time() + 20
        while service._slots.taken and asyncio.get_running_loop().time() < run_until:
            await asyncio.sleep(0.02)
        assert service._slots.taken == 0

    asked(ask, classifier=Colours(seconds=0.7), limits=Limits(answer_seconds=2))


async def _first(tasks: list[asyncio.Task[httpx.Response]], number: int):  # type: ignore[no-untyped-def]
    """Answers as they come, the first of them."""
    for done in itertools.islice(asyncio.as_completed(tasks), number):
        yield await done


def test_no_answer_in_time_is_504_and_not_ready(asked: Asked) -> None:
    colours = Colours()
    colours.go.clear()

    async def until(http: httpx.AsyncClient, status: int) -> httpx.Response:
        async with asyncio.timeout(20):
            while (answer := await http.get("/ready")).status_code != status:
                await asyncio.sleep(0.02)
        return answer

    async def ask(http: httpx.AsyncClient, service: Service) -> None:
        answer = await http.post("/predict", content=picture(), headers=RAW)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "too_slow")
        assert (await until(http, 503)).json()["error"]["code"] == "stuck"
        assert (await http.get("/health")).status_code == 200
        colours.go.set()
        await until(http, 200)

    asked(ask, classifier=colours, limits=Limits(answer_seconds=0.5))


def test_a_failing_network_is_500_without_details_and_the_server_lives(asked: Asked) -> None:
    colours = Colours()

    async def ask(http: httpx.AsyncClient, service: Service) -> None:
        colours.fail = True
        answer = await http.post("/predict", content=picture(), headers=RAW)
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "internal" and "broken" not in answer.text
        colours.fail = False
        assert (await http.post("/predict", content=picture(), headers=RAW)).status_code == 200

    asked(ask, classifier=colours)


def test_the_token_is_asked_for_where_it_matters(asked: Asked) -> None:
    token = "correct-horse-battery"

    async def ask(http: httpx.AsyncClient, service: Service) -> None:
        for path in ("/", "/health", "/ready", "/openapi.json"):
            assert (await http.get(path)).status_code == 200
        for given in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": f"Basic {token}"},
            {"authorization": token},
            {"authorization": "Bearer é"},
        ):
            encoded = {k: v.encode() for k, v in given.items()}
            for answer in (
                await http.get("/model", headers=encoded),
                await http.get("/metrics", headers=encoded),
                await http.post(
                    "/predict",
                    content=picture(),
                    headers={**{k: v.encode() for k, v in RAW.items()}, **encoded},
                ),
                await http.post(f"/predict?token={token}", content=picture(), headers=RAW),
            ):
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"] == "Bearer"
                assert token not in answer.text
        right = {**RAW, "authorization": f"Bearer {token}"}
        assert (await http.post("/predict", content=picture(), headers=right)).status_code == 200
        assert (await http.get("/model", headers=right)).status_code == 200

    asked(ask, token=token)


def test_every_answer_has_the_security_headers_and_none_allows_another_origin(asked: Asked) -> None:
    async def ask(http: httpx.AsyncClient, service: Service) -> None:
        for answer in (
            await http.get("/"),
            await http.get("/model"),
            await http.get("/nothing", headers={"origin": "http://evil.example"}),
            await http.options("/predict", headers={"origin": "http://evil.example"}),
            await http.post("/predict", content=b"x", headers=RAW),
            await http.get("/model", headers={"host": "evil.example"}),
        ):
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
            assert not [name for name in answer.headers if name.startswith("access-control")]

    asked(ask)


def test_unknown_paths_and_methods_are_json_errors(asked: Asked) -> None:
    async def ask(http: httpx.AsyncClient, service: Service) -> None:
        for method, path, status in (
            ("GET", "/../../etc/passwd", 404),
            ("GET", "/predict", 405),
            ("DELETE", "/model", 405),
        ):
            answer = await http.request(method, path)
            assert answer.status_code == status and answer.json()["error"]["code"]

    asked(ask)


def test_heat_maps_are_png_of_the_class_that_is_asked_for(asked: Asked) -> None:
    async def ask(http: httpx.AsyncClient, service: Service) -> None:
        data = picture((10, 10, 250), size=(2000, 1000))
        for url, value in (("/explain", 100), ("/explain?label=1", 50)):
            answer = await http.post(url, content=data, headers=RAW)
            assert answer.headers["content-type"] == "image/png"
            image = Image.open(io.BytesIO(answer.content))
            assert image.size == (768, 384)
            assert (np.asarray(image) == value).all()
        two = [("f", ("a.png", data)), ("f", ("b.png", data))]
        assert (await http.post("/explain", files=two)).json()["error"]["code"] == "one_picture"

    asked(ask)


def test_a_model_without_heat_maps_says_so(asked: Asked) -> None:
    colours = Colours(whole=True)
    colours.explains = False

    async def ask(http: httpx.AsyncClient, service: Service) -> None:
        assert (await http.get("/model")).json()["heat_maps"] is False
        answer = await http.post("/explain", content=picture(), headers=RAW)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "no_heat_maps")
        answer = await http.post("/predict", content=picture(size=(200, 50)), headers=RAW)
        assert answer.json()["predictions"][0]["label"] == "red"
        await whole.really_stop()

    whole = some_decoders(spec=None)
    asked(ask, classifier=colours, decoders=whole)


def test_metrics_count_what_happened(asked: Asked) -> None:
    async def ask(http: httpx.AsyncClient, service: Service) -> None:
        await http.post("/predict", content=picture(), headers=RAW)
        await http.post("/predict", content=b"x", headers=RAW)
        await http.get("/%3Cscript%3E")
        answer = await http.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        lines = answer.text.splitlines()
        assert 'fieldmark_requests_total{path="/predict",status="200"} 1' in lines
        assert 'fieldmark_requests_total{path="/predict",status="400"} 1' in lines
        assert 'fieldmark_requests_total{path="other",status="404"} 1' in lines
        assert 'fieldmark_pictures_total{outcome="answered"} 1' in lines
        assert 'fieldmark_pictures_total{outcome="not_a_picture"} 1' in lines
        assert "fieldmark_predict_seconds_count 2" in lines
        assert 'fieldmark_predict_seconds_bucket{le="+Inf"} 2' in lines
        assert "fieldmark_scored_total 1" in lines and "fieldmark_queue_pictures 0" in lines
        sample = re.compile(r'fieldmark_\w+(\{\w+="[^"]*"(,\w+="[^"]*")*\})? [0-9.e+-]+')
        for line in lines:
            assert line.startswith("# ") or sample.fullmatch(line), line

    asked(ask)


def test_the_description_names_exactly_the_routes_that_are_there(asked: Asked) -> None:
    async def ask(http: httpx.AsyncClient, service: Service) -> None:
        described = (await http.get("/openapi.json")).json()
        assert described["openapi"].startswith("3.1")
        for path, methods in described["paths"].items():
            for method in methods:
                answer = await http.request(method, path)
                assert answer.status_code not in (404, 405), (method, path)
        assert set(described["paths"]) == service.gate.paths
        named = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(described)))
        assert named == set(described["components"]["schemas"])
        limits = set(described["paths"]["/predict"]["post"]["responses"])
        assert limits == {"200", "400", "401", "403", "408", "413", "415", "429", "503", "504"}

    asked(ask)


def test_while_stopping_new_requests_are_503(asked: Asked) -> None:
    async def ask(http: httpx.AsyncClient, service: Service) -> None:
        service.gate.draining = True
        answer = await http.post("/predict", content=picture(), headers=RAW)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "stopping")
        assert answer.headers["connection"] == "close"
        assert (await http.get("/ready")).status_code == 503
        assert (await http.get("/health")).status_code == 200

    asked(ask)
