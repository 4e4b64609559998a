"""A real server on loopback: slow and hostile clients, stopping, and the command."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest

import fieldmark
from fieldmark.cli import _run, app
from fieldmark.errors import ConfigError, ResourceError
from fieldmark.serve import server as serving
from fieldmark.serve.app import Service
from fieldmark.serve.limits import Limits
from fieldmark.serve.start import is_loopback, serve
from tests.opening import OpenWatch
from tests.serve.tiny import Colours, picture, run_until, server

RAW = {"content-type": "application/octet-stream"}
QUICK = Limits(
    header_seconds=0.6, body_seconds=0.6, body_bytes=200_000, connections=20, drain_seconds=10
)


@pytest.fixture(scope="module")
def quick() -> Iterator[tuple[int, Service]]:
    with server(limits=QUICK) as running:
        yield running


def talk(port: int, *pieces: bytes, pause: float = 0.0) -> bytes:
    """Send pieces on a plain socket; return what comes until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as plain:
        try:
            for piece in pieces:
                plain.sendall(piece)
                time.sleep(pause)
        except OSError:
            pass
        found = b""
        try:
            while data := plain.recv(65536):
                found += data
        except OSError:
            pass
        return found


HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"


def test_slow_headers_are_cut_off(quick: tuple[int, Service]) -> None:
    port, _ = quick
    assert talk(port, *[bytes([b]) for b in HEAD], pause=0.05).startswith(b"HTTP/1.1 408")
    assert talk(port).startswith(b"HTTP/1.1 408")  # a connection that says nothing at all


def test_slow_headers_are_cut_off_on_a_connection_that_is_kept(quick: tuple[int, Service]) -> None:
    port, _ = quick
    found = talk(port, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /hea", pause=0.2)
    assert found.count(b"HTTP/1.1") == 2
    assert found.startswith(b"HTTP/1.1 200") and b"HTTP/1.1 408" in found


def test_slow_bodies_are_cut_off_and_free_their_place(quick: tuple[int, Service]) -> None:
    port, service = quick
    head = HEAD + b"Content-Length: 1000\r\n\r\n"
    assert b" 408 " in talk(port, head, *[b"x"] * 40, pause=0.05).splitlines()[0]
    chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    assert b" 408 " in talk(port, chunked, *[b"1\r\nx\r\n"] * 40, pause=0.05).splitlines()[0]
    run_until(lambda: service._slots.taken == 0)


def test_a_body_shorter_than_its_length_is_cut_off(quick: tuple[int, Service]) -> None:
    port, _ = quick
    data = picture()
    found = talk(port, HEAD + b"Content-Length: %d\r\n\r\n" % (len(data) + 10) + data)
    assert found.startswith(b"HTTP/1.1 408")


def test_a_body_longer_than_its_length_is_no_second_request(quick: tuple[int, Service]) -> None:
    port, _ = quick
    data = picture()
    found = talk(
        port, HEAD + b"Content-Length: %d\r\n\r\n" % len(data) + data + b"more of it\r\n\r\n"
    )
    assert found.startswith(b"HTTP/1.1 200") and b"HTTP/1.1 400" in found


def test_an_endless_chunked_body_is_413(quick: tuple[int, Service]) -> None:
    port, _ = quick
    chunk = b"%x\r\n" % 50_000 + b"x" * 50_000 + b"\r\n"
    found = talk(port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 40)
    assert found.startswith(b"HTTP/1.1 413") and b'"too_large"' in found


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 1_000_000, 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * 20_000 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * 100_000, 431),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
        (HEAD + b"Content-Length: -1\r\n\r\n", 400),
    ],
)
def test_what_is_no_good_http_is_refused_in_json(
    quick: tuple[int, Service], sent: bytes, status: int
) -> None:
    port, _ = quick
    found = talk(port, sent)
    assert int(found.split(b" ", 2)[1]) == status
    assert b'"error"' in found


class Connections:
    """What this process connects to or asks a name server about, the test's own thread apart."""

    def __init__(self) -> None:
        self.seen: list[str] | None = None
        self._mine = threading.get_ident()
        sys.addaudithook(self._watch)

    def _watch(self, event: str, arguments: tuple[object, ...]) -> None:
        if (
            self.seen is not None
            and threading.get_ident() != self._mine
            and event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "urllib.Request")
        ):
            self.seen.append(f"{event} {arguments[1:]!r}")


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
def test_addresses_and_paths_are_bytes_that_are_no_picture(
    quick: tuple[int, Service], tmp_path: Path
) -> None:
    """Wherever one is given, nothing connects to it and nobody opens it."""
    port, _ = quick
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture())
    watch, connections = OpenWatch(secret), Connections()
    canary = socket.create_server(("127.0.0.1", 0))
    canary.setblocking(False)
    there = f"http://127.0.0.1:{canary.getsockname()[1]}/picture.png"
    base = f"http://127.0.0.1:{port}"
    statuses = []
    connections.seen = []
    with httpx.Client(timeout=20) as http:
        for address in (there, "http://169.254.169.254/latest", secret.as_uri(), str(secret)):
            data = address.encode()
            svg = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="%s"/></svg>' % data
            quoted = quote(address, safe="")
            for answer in (
                http.post(f"{base}/predict", content=data, headers=RAW),
                http.post(f"{base}/explain", content=data, headers=RAW),
                http.post(f"{base}/predict", content=svg, headers=RAW),
                http.post(f"{base}/predict", json={"url": address, "image": address}),
                http.post(f"{base}/predict?url={quoted}", content=b""),
                http.post(f"{base}/predict", data={"file": address, "url": address}),
                http.post(f"{base}/predict", files={"file": ("x.png", data)}),
                http.post(f"{base}/predict", files={"file": (address, b"no picture")}),
                http.get(f"{base}/{quoted}"),
                http.get(f"{base}/..%2f..{quote(str(secret))}"),
            ):
                statuses.append(answer.status_code)
                assert 400 <= answer.status_code < 500
                assert "error" in answer.json()
            found = talk(port, b"GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n" % data)
            assert found.startswith(b"HTTP/1.1 4")
        # The name of an uploaded file is one nobody looks at, even beside a good picture.
        good = http.post(f"{base}/predict", files={"file": (str(secret), picture())})
        assert good.status_code == 200
    seen, connections.seen = connections.seen, None
    assert seen == []
    with canary, pytest.raises(BlockingIOError):
        canary.accept()
    assert watch.count() == 0
    secret.read_bytes()
    assert watch.count() == 1  # it would have told
    watch.close()
    assert 400 in statuses and 415 in statuses


def test_one_connection_too_many_takes_the_place_of_the_one_that_waits_longest(
    quick: tuple[int, Service],
) -> None:
    port, _ = quick
    opened = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(30)]
    try:
        for plain in opened[:10]:
            with contextlib.suppress(ConnectionResetError):
                assert plain.recv(1000) == b""
        assert httpx_ok(port)
        for plain in opened[15:]:
            plain.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert plain.recv(1000).startswith(b"HTTP/1.1 200")
    finally:
        for plain in opened:
            plain.close()
    run_until(lambda: httpx_ok(port))


def test_the_address_with_most_connections_loses_one() -> None:
    """127.0.0.2 came first and waits longest, but has only one."""
    with server(limits=Limits(connections=5, header_seconds=5)) as (port, _):
        other = socket.create_connection(
            ("127.0.0.1", port), timeout=20, source_address=("127.0.0.2", 0)
        )
        with other:
            many = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(9)]
            assert httpx_ok(port)
            other.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert other.recv(1000).startswith(b"HTTP/1.1 200")
            for plain in many:
                plain.close()


def test_requests_sent_at_once_are_answered_one_after_the_other() -> None:
    """Also where an answer waits to be taken in between."""
    with server() as (port, _), socket.create_connection(("127.0.0.1", port)) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 20)
        time.sleep(0.3)
        found, plain_file = 0, plain.makefile("rb")
        with plain_file:
            while found < 20:
                length = 0
                while (line := plain_file.readline()) != b"\r\n":
                    name, _, value = line.partition(b":")
                    length = int(value) if name == b"content-length" else length
                assert plain_file.read(length).endswith(b"</html>\n")
                found += 1


class Unread:
    """A client that asks for the page, again and again, and reads none of it."""

    def __init__(self, port: int) -> None:
        self.plain = socket.socket()
        self.plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.plain.connect(("127.0.0.1", port))
        self.plain.settimeout(0.1)
        try:
            for _ in range(200):
                self.plain.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 10)
        except OSError:  # it takes no more
            pass

    @property
    def cut(self) -> bool:
        try:
            self.plain.send(b"x")
        except (ConnectionResetError, BrokenPipeError):
            return True
        except OSError:
            return False
        return False


def test_who_does_not_read_is_cut_off() -> None:
    with server(limits=Limits(write_seconds=0.5)) as (port, service):
        connections = service.running.server_state.connections  # type: ignore[attr-defined]
        client = Unread(port)
        run_until(lambda: len(connections) == 1)
        run_until(lambda: client.cut)
        run_until(lambda: not connections and service.gate.in_flight == 0)
        client.plain.close()


def test_many_that_do_not_read_keep_nobody_out() -> None:
    with server(limits=Limits(connections=10, write_seconds=60)) as (port, _):
        clients = [Unread(port) for _ in range(10)]
        for _ in range(3):
            answer = httpx.post(
                f"http://127.0.0.1:{port}/predict", content=picture(), headers=RAW, timeout=2
            )
            assert answer.status_code == 200
            assert httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200
        for client in clients:
            client.plain.close()


def test_posts_without_a_body_hold_no_place(quick: tuple[int, Service]) -> None:
    port, service = quick
    head = HEAD + b"Content-Length: 1000\r\n\r\n"
    opened = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(15)]
    for plain in opened:
        plain.sendall(head)
    run_until(lambda: service.gate.in_flight == 15)
    assert service._slots.taken == 0
    answer = httpx.post(f"http://127.0.0.1:{port}/predict", content=picture(), headers=RAW)
    assert answer.status_code == 200
    for plain in opened:
        plain.close()
    run_until(lambda: service.gate.in_flight == 0)


def test_half_sent_bodies_make_room_for_others() -> None:
    """Four of the largest may be in memory."""
    limits = Limits(queue=4, body_bytes=100_000, body_seconds=30)
    with server(limits=limits) as (port, service):
        head = HEAD + b"Content-Length: 100000\r\n\r\n" + b"x" * 90_000
        opened = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(4)]
        for plain in opened:
            plain.sendall(head)
        run_until(lambda: service.gate.uploads.held == 360_000)
        late = httpx.post(
            f"http://127.0.0.1:{port}/predict", content=b"x" * 90_000, headers=RAW, timeout=5
        )
        assert late.status_code == 400  # it is no picture, but it was read
        answer = b""
        while data := opened[0].recv(1000):
            answer += data
        assert answer.startswith(b"HTTP/1.1 429") and b"too much is being sent" in answer
        for plain in opened:
            plain.close()
        run_until(lambda: service.gate.uploads.held == 0 and service.gate.in_flight == 0)


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", 400),
        (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
        (b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\n", 400),
        (b"Range: bytes=99999999999999-\r\n", 416),
        (b"Range: bytes=0-1,2-3,4-\r\n", 416),
        (b"Range: bytes=-1\r\n", 416),
        (b"Range: x\r\n", 416),
        (b"Origin: http://[\r\n", 403),
        (b"Origin: http://[::1\r\n", 403),
        (b"Content-Type: multipart/form-data; charset=undefined; boundary=x\r\n", 415),
        (b"Content-Type: multipart/form-data; charset=zlib; boundary=x\r\n", 415),
        (b"Content-Type: multipart/form-data; charset=idna; boundary=x\r\n", 415),
        (b"Content-Type: multipart/form-data; charset*=utf-8''x\r\n", 400),
    ],
)
def test_what_is_asked_wrongly_is_refused_before_any_traceback(
    quick: tuple[int, Service], lines: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    port, _ = quick
    form = b'--x\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\nx\r\n--x--\r\n'
    kind = b"" if b"Content-Type" in lines else b"Content-Type: image/png\r\n"
    size = b"" if b"Length" in lines else b"Content-Length: %d\r\n" % len(form)
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    found = talk(port, head + kind + size + lines + b"\r\n" + form)
    assert int(found.split(b" ", 2)[1]) == status
    assert b'"error"' in found
    assert not errors(caplog)


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the command would tell."""
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]


@pytest.mark.parametrize("bad", [b"x\r\n", b"-5\r\n", b"5\r\nabcdefgh\r\n", b"\xff" * 10 + b"\r\n"])
def test_a_broken_chunk_is_refused_once(
    quick: tuple[int, Service], bad: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    port, service = quick
    found = talk(port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", bad, pause=0.05)
    assert found.startswith(b"HTTP/1.1 400")
    assert found.count(b"HTTP/1.1") == 1
    run_until(lambda: service.gate.in_flight == 0)
    assert not errors(caplog)


def test_two_lengths_end_the_connection(quick: tuple[int, Service]) -> None:
    """What follows would be one thing to a proxy and another here."""
    port, _ = quick
    second = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    lengths = b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"
    found = talk(port, HEAD + lengths + second)
    assert found.startswith(b"HTTP/1.1 400")
    assert found.count(b"HTTP/1.1") == 1


def test_clients_that_leave_are_no_errors(
    quick: tuple[int, Service], caplog: pytest.LogCaptureFixture
) -> None:
    port, service = quick
    for length in (10, 150_000):
        with socket.create_connection(("127.0.0.1", port)) as plain:
            plain.sendall(HEAD + b"Content-Length: 160000\r\n\r\n" + b"x" * length)
            time.sleep(0.1)
    run_until(lambda: service.gate.in_flight == 0)
    assert not errors(caplog)


def test_a_log_that_anybody_can_write_to_does_not_grow() -> None:
    now = 0.0
    few = serving.FewAMinute(lambda: now)
    record = logging.LogRecord("x", logging.ERROR, "", 0, "failed", (), None)
    assert [few.filter(record) for _ in range(1000)].count(True) == 5
    now = 61.0
    assert few.filter(record)
    assert record.getMessage() == "(995 like messages kept back) failed"


def httpx_ok(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def test_a_refusal_is_read_by_a_client_that_is_still_sending(quick: tuple[int, Service]) -> None:
    port, _ = quick
    answer = httpx.post(
        f"http://127.0.0.1:{port}/predict",
        content=b"x" * 190_000,
        headers={"origin": "http://x.example"},
    )
    assert answer.status_code == 403


def test_after_all_this_the_server_answers(quick: tuple[int, Service]) -> None:
    port, service = quick
    answer = httpx.post(f"http://127.0.0.1:{port}/predict", content=picture(), headers=RAW)
    assert answer.json()["predictions"][0]["label"] == "red"
    run_until(lambda: service.gate.in_flight == 0 and service._slots.taken == 0)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit")
@pytest.mark.parametrize(
    ("soft", "hard", "connections"), [(300, 300, 150), (300, 1500, 1024), (1100, 1100, 844)]
)
def test_connections_fit_into_the_files_that_may_be_open(
    soft: int, hard: int, connections: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = [soft, hard]

    def change(_: int, wanted: tuple[int, int]) -> None:
        limits[:] = wanted

    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", change)
    assert serving._within_files(Limits()).connections == connections


def test_stopping_finishes_what_was_begun_and_refuses_what_is_new() -> None:
    colours = Colours()
    colours.go.clear()
    found: list[int] = []
    with server(colours) as (port, service):
        url = f"http://127.0.0.1:{port}/predict"

        def ask() -> None:
            found.append(httpx.post(url, content=picture(), headers=RAW, timeout=30).status_code)

        asking = threading.Thread(target=ask)
        asking.start()
        run_until(lambda: bool(colours.batches))
        service.running.handle_exit(signal.SIGTERM, None)  # type: ignore[attr-defined]
        fresh = httpx.post(url, content=picture(), headers=RAW)
        assert (fresh.status_code, fresh.json()["error"]["code"]) == (503, "stopping")
        assert httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 503
        assert not found
        colours.go.set()
        asking.join(20)
        assert found == [200]
        run_until(lambda: not httpx_ok(port))


def test_a_proxy_under_a_path_may_take_it_off_or_not() -> None:
    with server(root_path="/flowers") as (port, _):
        base = f"http://127.0.0.1:{port}"
        for prefix in ("", "/flowers"):
            answer = httpx.post(f"{base}{prefix}/predict", content=picture(), headers=RAW)
            assert answer.json()["predictions"][0]["label"] == "red"
            page = httpx.get(f"{base}{prefix}/")
            assert 'data-root="/flowers"' in page.text
        assert httpx.get(f"{base}/flowers").status_code == 200
        assert httpx.get(f"{base}/flowersx/health").status_code == 404
        assert httpx.get(f"{base}/openapi.json").json()["servers"] == [{"url": "/flowers"}]


@pytest.mark.parametrize(
    "path", ["/a b", "/a/../b", "/.", "/ä", '/"', "/a?b", "/a//b", "/<script>"]
)
def test_what_is_no_path_is_no_root(path: str) -> None:
    with pytest.raises(ConfigError, match="root_path is"):
        serve(Path("no-run"), root_path=path)


def test_stopping_waits_for_nobody_who_does_not_read_or_send() -> None:
    limits = Limits(drain_seconds=1, write_seconds=60, body_seconds=60)
    with server(limits=limits) as (port, service):
        unread = Unread(port)
        plain = socket.create_connection(("127.0.0.1", port))
        plain.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
        run_until(lambda: service.gate.in_flight == 1)
        began = time.monotonic()
        service.running.handle_exit(signal.SIGTERM, None)  # type: ignore[attr-defined]
        run_until(lambda: not httpx_ok(port))
        assert time.monotonic() - began < 5
        plain.close()
        unread.plain.close()


STUCK = """
import signal, sys, threading, time
from fieldmark.serve import server
from fieldmark.serve.app import Service
from fieldmark.serve.limits import Limits
from tests.serve.tiny import Colours, some_decoders

class Stuck(Colours):
    def classify(self, pictures):
        print("stuck", flush=True)
        time.sleep(600)

service = Service(Stuck(), some_decoders(), limits=Limits(drain_seconds=0.5, stop_seconds=1.5))
listener = server.listen("127.0.0.1", 0)
server.run(service, listener, ready=lambda: print(listener.getsockname()[1], flush=True))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_network_that_hangs_holds_up_no_stop() -> None:
    command = [sys.executable, "-c", STUCK]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        port = int(process.stdout.readline())
        with socket.create_connection(("127.0.0.1", port)) as plain:
            data = picture()
            plain.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(data) + data)
            assert process.stdout.readline() == "stuck\n"
            process.terminate()
            began = time.monotonic()
            assert process.wait(20) == 0
            assert time.monotonic() - began < 8
        assert "Traceback" not in process.stderr.read()


# --- the command -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "colours"
    for k, name in enumerate(("red", "grün", "蓝")):
        (root / name).mkdir(parents=True)
        for i in range(12):
            colour = [10 * i, 10 * i, 10 * i]
            colour[k] += 100
            (root / name / f"{i}.png").write_bytes(picture((colour[0], colour[1], colour[2])))
    out = tmp_path_factory.mktemp("runs") / "colours"
    model = "small_cnn(width=2)"
    fieldmark.train(root, model=model, size=16, epochs=1, out=out, progress=False)
    return out


def test_the_command_answers_as_predict_does_and_ends_with_0_on_sigterm(
    run: Path, tmp_path: Path
) -> None:
    data = picture((30, 30, 30), size=(50, 20))
    (tmp_path / "a.png").write_bytes(data)
    wanted = fieldmark.load(run).predict(tmp_path / "a.png", top=10)[0]
    command = [sys.executable, "-m", "fieldmark", "serve", str(run), "--port", "0"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        try:
            line = process.stdout.readline()
            assert line.startswith("serving colours on http://127.0.0.1:"), process.stderr.read()
            url = line.split()[3]
            (run / "model.safetensors").rename(run / "gone.safetensors")
            answer = httpx.post(f"{url}/predict?top=3", content=data, headers=RAW, timeout=30)
            heat = httpx.post(f"{url}/explain", content=data, headers=RAW, timeout=30)
            page = httpx.get(url)
        finally:
            (run / "gone.safetensors").rename(run / "model.safetensors")
            process.terminate()
        assert process.wait(20) == 0
        assert process.stderr.read() == ""
    found = answer.json()["predictions"][0]
    assert [t["label"] for t in found["top"]] == [label for label, _ in wanted.top]
    for got, (_, prob) in zip(found["top"], wanted.top, strict=True):
        assert abs(got["prob"] - prob) < 1e-6
    assert heat.headers["content-type"] == "image/png"
    assert "<title>Fieldmark</title>" in page.text


def test_without_a_token_no_other_machine_is_let_in(capsys: pytest.CaptureFixture[str]) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.7", "example.org"):
        with pytest.raises(ConfigError, match="a token is needed: --token"):
            serve(Path("no-run"), host=host)
    code = _run(
        lambda: app(
            ["serve", "no-run", "--host", "0.0.0.0"],
            exit_on_error=False,
            result_action="return_value",
        )
    )
    assert code == 2 and "--token" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"token": "short"}, "5 characters; 16 or more"),
        ({"token": "密" * 20}, "ASCII"),
        ({"batch": 0}, "batch is 0; 1 to 1024"),
        ({"queue": -1}, "queue is -1; 1 to"),
        ({"port": 70_000}, "port is 70000; 0 to 65535"),
    ],
)
def test_settings_out_of_range_are_refused(options: dict[str, object], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        serve(Path("no-run"), **options)


def test_loopback_addresses() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.8.8.8", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "localhost.example", "")))


def test_answers_do_not_wait_for_acknowledgements() -> None:
    with (
        serving.listen("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as connection,
    ):
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_taken_port_is_named() -> None:
    with serving.listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(ResourceError, match=f"port {port} of 127.0.0.1.*--port"):
            serving.listen("127.0.0.1", port)
    if os.getuid():
        with pytest.raises(ResourceError, match="--port"):
            serving.listen("127.0.0.1", 1)
