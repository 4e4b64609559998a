from __future__ import annotations

import gzip
import hashlib
import io
import os
import socket
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fieldmark.data.cifar_download import DOWNLOADS, fetch_cifar
from fieldmark.errors import ConfigError, DataError, ResourceError
from fieldmark.files import archives
from fieldmark.files import download as module
from fieldmark.files.archives import extract
from fieldmark.files.cache import cache_dir
from fieldmark.files.download import Download, fetch

BODY = bytes(range(256)) * 4096  # 1 MiB


@dataclass
class Site:
    """A web server of one file, told how to misbehave."""

    body: bytes = BODY
    etag: str = '"v1"'
    ranges: bool = True
    plan: list[str] = field(default_factory=list)
    """What to do with the next requests: cut, hang, stall, a status or a header; then behave."""
    requests: list[dict[str, str]] = field(default_factory=list)
    port: int = 0
    release: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/file.bin"

    def download(self, **changes: Any) -> Download:
        digest = hashlib.sha256(self.body).hexdigest()
        return replace(Download("file.bin", self.url, digest, len(self.body)), **changes)


def handler_of(site: Site) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.requests.append(dict(self.headers))
            act = site.plan.pop(0) if site.plan else ""
            if act == "hang":
                site.release.wait(10)
                return
            if act.isdecimal() or act.startswith("to "):
                self.send_response(int(act) if act.isdecimal() else 302)
                if act.startswith("to "):
                    self.send_header("Location", act[3:])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body = b"please log in" if act == "login" else site.body
            start = 0
            wanted = self.headers.get("Range", "")
            same = self.headers.get("If-Range", site.etag) == site.etag
            if wanted and site.ranges and same:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                self.send_response(206)
                at = start + 1 if act == "shifted" else start
                self.send_header("Content-Range", f"bytes {at}-{len(body) - 1}/{len(body)}")
            else:
                self.send_response(200)
            if site.etag:
                self.send_header("ETag", site.etag)
            if act != "endless":
                self.send_header("Content-Length", str(len(body) - start))
            self.end_headers()
            rest = body[start:]
            if act in ("cut", "stall"):
                rest = rest[: len(rest) // 2]
            self.wfile.write(rest + (b"more" if act == "endless" else b""))
            if act == "stall":
                self.wfile.flush()
                site.release.wait(10)
            self.close_connection = True

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients that go away are what is tested


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.02)
    site = Site()
    server = QuietServer(("127.0.0.1", 0), handler_of(site))
    site.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield site
    site.release.set()
    server.shutdown()
    server.server_close()
    thread.join()


def failure(download: Download, cache: Path, *, timeout_seconds: float = 15) -> str:
    with pytest.raises(ResourceError) as caught:
        fetch(download, cache=cache, timeout_seconds=timeout_seconds)
    assert caught.value.exit_code == 6
    return str(caught.value)


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if not p.name.endswith(".lock")}


# ---------------------------------------------------------------- fetching


def test_a_whole_download_and_then_none(site: Site, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    cache = tmp_path / "a" / "b"
    path = fetch(site.download(), cache=cache, progress=lambda *p: seen.append(p))
    assert path == cache / "file.bin"
    assert path.read_bytes() == BODY
    assert seen[-1] == (len(BODY), len(BODY))
    assert names(cache) == {"file.bin"}
    assert fetch(site.download(), cache=cache) == path
    assert len(site.requests) == 1


def test_a_cut_transfer_is_continued(site: Site, tmp_path: Path) -> None:
    site.plan = ["cut", "503"]
    path = fetch(site.download(), cache=tmp_path)
    assert path.read_bytes() == BODY
    assert [r.get("Range") for r in site.requests] == [None] + [f"bytes={len(BODY) // 2}-"] * 2
    assert site.requests[1]["If-Range"] == '"v1"'
    assert names(tmp_path) == {"file.bin"}


def test_the_next_call_continues(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(BODY[:1000])
    path = fetch(site.download(), cache=tmp_path)
    assert path.read_bytes() == BODY
    assert site.requests[0]["Range"] == "bytes=1000-"
    assert "If-Range" not in site.requests[0]  # no ETag is known of that part


def test_any_number_of_breaks_with_progress(site: Site, tmp_path: Path) -> None:
    site.plan = ["cut"] * 6
    assert fetch(site.download(), cache=tmp_path).read_bytes() == BODY
    assert len(site.requests) == 7


def test_a_changed_file_starts_over(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(b"old" * 1000)
    (tmp_path / "file.bin.part.etag").write_text('"v0"')
    assert fetch(site.download(), cache=tmp_path).read_bytes() == BODY
    assert site.requests[0]["If-Range"] == '"v0"'


def test_a_server_without_ranges_starts_over(site: Site, tmp_path: Path) -> None:
    site.plan, site.ranges, site.etag = ["cut"], False, 'W/"weak"'
    assert fetch(site.download(), cache=tmp_path).read_bytes() == BODY
    assert "Range" in site.requests[1]
    assert "If-Range" not in site.requests[1]


def test_a_piece_from_elsewhere_is_not_used(site: Site, tmp_path: Path) -> None:
    site.plan = ["cut", "shifted"]
    assert fetch(site.download(), cache=tmp_path).read_bytes() == BODY
    assert "Range" not in site.requests[2]


def test_a_stalled_transfer_is_continued(site: Site, tmp_path: Path) -> None:
    site.plan = ["stall"]
    assert fetch(site.download(), cache=tmp_path, timeout_seconds=1).read_bytes() == BODY
    assert "Range" in site.requests[1]


def test_a_part_that_is_whole_or_too_long(site: Site, tmp_path: Path) -> None:
    part = tmp_path / "file.bin.part"
    part.write_bytes(BODY)
    assert fetch(site.download(), cache=tmp_path).read_bytes() == BODY
    assert not site.requests
    (tmp_path / "file.bin").unlink()
    part.write_bytes(BODY + b"x")
    assert fetch(site.download(), cache=tmp_path).read_bytes() == BODY


def test_a_wrong_checksum_leaves_nothing(site: Site, tmp_path: Path) -> None:
    message = failure(site.download(sha256="0" * 64), tmp_path)
    assert hashlib.sha256(BODY).hexdigest() in message
    assert names(tmp_path) == set()


def test_a_wrong_file_put_there_is_named_and_kept(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(b"half")
    assert str(tmp_path / "file.bin") in failure(site.download(), tmp_path)
    assert names(tmp_path) == {"file.bin"}
    assert not site.requests


def test_more_bytes_than_announced(site: Site, tmp_path: Path) -> None:
    site.plan = ["endless"]
    assert "more than the" in failure(site.download(), tmp_path)
    assert fetch(site.download(), cache=tmp_path).read_bytes() == BODY


def test_a_login_page_costs_nothing(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(BODY[:1000])
    site.plan, site.ranges = ["login"], False
    assert "13 bytes" in failure(site.download(), tmp_path)
    assert (tmp_path / "file.bin.part").read_bytes() == BODY[:1000]


def test_not_found_is_final(site: Site, tmp_path: Path) -> None:
    site.plan = ["404"]
    message = failure(site.download(), tmp_path)
    assert "404" in message
    assert str(tmp_path / "file.bin") in message
    assert len(site.requests) == 1


def test_server_errors_pass(site: Site, tmp_path: Path) -> None:
    site.plan = ["500", "429"]
    assert fetch(site.download(), cache=tmp_path).read_bytes() == BODY
    site.plan = ["500"] * 9
    site.requests.clear()
    assert "500" in failure(site.download(name="other.bin"), tmp_path)
    assert len(site.requests) == 3


def test_a_hanging_server_costs_the_time_out(site: Site, tmp_path: Path) -> None:
    site.plan = ["hang"] * 9
    start = time.monotonic()
    message = failure(site.download(), tmp_path, timeout_seconds=0.5)
    assert time.monotonic() - start < 2
    assert "no connection to 127.0.0.1 (no answer in time)" in message


def test_a_look_up_that_hangs_costs_the_time_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released = threading.Event()

    def slow(*arguments: object, **more: object) -> list[object]:
        released.wait(10)
        raise OSError("too late")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    start = time.monotonic()
    message = failure(
        Download("f", "http://example.invalid/f", "0" * 64, 5), tmp_path, timeout_seconds=0.5
    )
    released.set()
    assert time.monotonic() - start < 2
    assert "no connection to example.invalid" in message


def test_a_refused_connection_in_plain_words(tmp_path: Path, site: Site) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        wanted = site.download(url=f"http://127.0.0.1:{port}/f")
        message = failure(wanted, tmp_path)
    assert "no connection to 127.0.0.1 (Connection refused)" in message
    assert wanted.sha256 in message
    assert str(tmp_path / "file.bin") in message
    assert "pass the folder" in message


def test_redirects_within_http_alone(site: Site, tmp_path: Path) -> None:
    site.plan = [f"to {site.url}"]
    assert fetch(site.download(), cache=tmp_path).read_bytes() == BODY
    secret = tmp_path / "secret"
    secret.write_bytes(b"12345")
    for target in (secret.as_uri(), "ftp://127.0.0.1/f", "data:,12345"):
        site.plan = [f"to {target}"]
        message = failure(site.download(name="x", size_bytes=5), tmp_path)
        assert "redirects" in message or "302" in message
    assert "not an http" in failure(site.download(name="x", url=secret.as_uri()), tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_in_plain_words(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").symlink_to("/dev/full")
    assert "the disk is full" in failure(site.download(), tmp_path)


def test_a_full_disk_keeps_the_part(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("fieldmark.files.download.os.fsync", full)
        assert "the disk is full" in failure(site.download(), tmp_path)
    assert "file.bin.part" in names(tmp_path)
    assert fetch(site.download(), cache=tmp_path).read_bytes() == BODY


def test_a_cache_that_cannot_be_made(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "FIELDMARK_CACHE" in failure(site.download(), tmp_path / "file" / "cache")


def test_threads_and_processes_share_one_transfer(site: Site, tmp_path: Path) -> None:
    wanted = site.download()
    code = (
        "from pathlib import Path\n"
        "from fieldmark.files.download import Download, fetch\n"
        f"fetch({wanted!r}, cache=Path({str(tmp_path)!r}))\n"
    )
    site.plan = ["stall"]  # the first holds the lock for a while
    paths: list[Path] = []
    threads = [
        threading.Thread(
            target=lambda: paths.append(fetch(wanted, cache=tmp_path, timeout_seconds=1.5))
        )
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    process = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    for thread in threads:
        thread.join()
    assert process.returncode == 0
    assert paths == [tmp_path / "file.bin"] * 3
    assert paths[0].read_bytes() == BODY
    assert len(site.requests) == 2


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIELDMARK_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"
    monkeypatch.delenv("FIELDMARK_CACHE")
    if sys.platform == "win32":
        return
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "fieldmark"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir() == Path.home() / ".cache" / "fieldmark"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "fieldmark"


# ---------------------------------------------------------------- unpacking


def entry(name: str, content: bytes = b"", **values: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in values.items():
        setattr(info, key, value)
    return info, content


def pack(path: Path, *entries: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    return path


GOOD = (entry("set", type=tarfile.DIRTYPE), entry("set/a", b"one"), entry("set/deep/b", b"two"))


def test_unpacking(tmp_path: Path) -> None:
    archive = pack(tmp_path / "x.tar.gz", *GOOD)
    folder = extract(archive, into=tmp_path / "out" / "x")
    assert folder == tmp_path / "out" / "x"
    assert (folder / "set" / "a").read_bytes() == b"one"
    assert (folder / "set" / "deep" / "b").read_bytes() == b"two"
    assert names(tmp_path / "out") == {"x"}
    with pytest.raises(ResourceError, match="exists already"):
        extract(archive, into=folder)


def chain_of_long_names() -> bytes:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 512
    return (header.tobuf(tarfile.GNU_FORMAT) + b"n" * 512) * 3000


EVIL = {
    "dots": [entry("ok", b"x"), entry("../../evil", b"x")],
    "harmless dots": [entry("a/b", b"x"), entry("a/../c", b"x")],
    "sparse": [entry("s", type=tarfile.GNUTYPE_SPARSE)],
    "inner dots": [entry("a/../../evil", b"x")],
    "absolute": [entry("/OUTSIDE/evil", b"x")],
    "backslash": [entry("..\\evil", b"x")],
    "drive": [entry("C:/evil", b"x")],
    "symlink": [entry("l", type=tarfile.SYMTYPE, linkname="OUTSIDE"), entry("l/evil", b"x")],
    "inner symlink": [entry("a", b"x"), entry("l", type=tarfile.SYMTYPE, linkname="a")],
    "hard link": [entry("l", type=tarfile.LNKTYPE, linkname="../victim"), entry("l", b"evil")],
    "device": [entry("d", type=tarfile.CHRTYPE, devmajor=1, devminor=3)],
    "pipe": [entry("p", type=tarfile.FIFOTYPE)],
    "twice": [entry("a", b"x"), entry("./a", b"y")],
    "twice but for case": [entry("a", b"x"), entry("A", b"y")],
    "file as folder": [entry("a", b"x"), entry("a/b", b"y")],
    "folder as file": [entry("a/b", b"x"), entry("a", b"y")],
    "many": [entry(f"f{i}") for i in range(40)],
    "large": [entry("zeros", bytes(200_000))],
}


@pytest.mark.parametrize("name", EVIL)
def test_evil_archives_write_nothing(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MAX_MEMBERS", 30)
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "victim").write_bytes(b"mine")
    entries = [
        entry(
            info.name.replace("/OUTSIDE", str(outside)),
            content,
            **{k: getattr(info, k) for k in ("type", "devmajor", "devminor")},
            linkname=info.linkname.replace("OUTSIDE", str(outside)),
        )
        for info, content in EVIL[name]
    ]
    archive = pack(tmp_path / "x.tar.gz", *entries)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(DataError, match=r"x\.tar\.gz"):
        extract(archive, into=tmp_path / "cache" / "x", max_bytes=100_000)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "cache" / "victim").read_bytes() == b"mine"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"no archive",
        b"\x1f\x8b no gzip",
        gzip.compress(b"no tar" * 1000),
        gzip.compress(chain_of_long_names()),
    ],
    ids=["empty", "text", "gzip head", "no tar", "chain of headers"],
)
def test_broken_archives(tmp_path: Path, raw: bytes) -> None:
    archive = tmp_path / "x.tar.gz"
    archive.write_bytes(raw)
    with pytest.raises(DataError, match=r"x\.tar\.gz"):
        extract(archive, into=tmp_path / "x")
    assert names(tmp_path) == {"x.tar.gz"}


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = pack(tmp_path / "x.tar.gz", entry("a", os.urandom(3000)), entry("b", b"y")).read_bytes()
    for length in range(0, len(whole) - 100, 97):
        (tmp_path / "x.tar.gz").write_bytes(whole[:length])
        with pytest.raises(DataError):
            extract(tmp_path / "x.tar.gz", into=tmp_path / "x")


def test_a_bomb_ends_early(tmp_path: Path) -> None:
    """A declared terabyte is not looked for."""
    archive = tmp_path / "x.tar.gz"
    info, _ = entry("zeros")
    info.size = 10**12
    archive.write_bytes(gzip.compress(info.tobuf() + bytes(10_000)))
    start = time.monotonic()
    with pytest.raises(DataError, match="more than"):
        extract(archive, into=tmp_path / "x")
    assert time.monotonic() - start < 2


def test_a_header_of_any_length_takes_no_memory(tmp_path: Path) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 60_000_000
    archive = tmp_path / "x.tar.gz"
    archive.write_bytes(gzip.compress(header.tobuf(tarfile.GNU_FORMAT) + bytes(60_000_000), 1))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="header of 60000256 bytes"):
            extract(archive, into=tmp_path / "x")
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_no_archive_at_all(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no archive"):
        extract(tmp_path / "x.tar.gz", into=tmp_path / "x")


def test_fetching_a_data_set(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.body = pack(tmp_path / "made.tar.gz", *GOOD).read_bytes()
    monkeypatch.setitem(DOWNLOADS, "cifar10", site.download())
    cache = tmp_path / "cache"
    left = cache / ".cifar10.abc.part"
    left.mkdir(parents=True)
    folder = fetch_cifar("cifar10", cache=cache)
    assert folder == cache / "cifar10"
    assert (folder / "set" / "a").read_bytes() == b"one"
    assert not left.exists()
    site.plan = ["500"] * 3
    assert fetch_cifar("cifar10", cache=cache) == folder
    assert len(site.requests) == 1
    with pytest.raises(ConfigError, match="did you mean 'cifar100'"):
        fetch_cifar("cifar1000", cache=cache)


def test_the_table() -> None:
    for wanted in DOWNLOADS.values():
        assert wanted.url.startswith("https://")
        assert wanted.url.endswith("/" + wanted.name)
        assert len(bytes.fromhex(wanted.sha256)) == 32
        assert 160e6 < wanted.size_bytes < 180e6
