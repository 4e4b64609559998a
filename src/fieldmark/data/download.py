"""Fetching the published data sets: resumable, verified, and never with half a file as a result."""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import errno
import functools
import gzip
import hashlib
import http.client
import os
import re
import shutil
import ssl
import sys
import tarfile
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from fieldmark.errors import ConfigError, DataError, ResourceError, did_you_mean

ATTEMPTS = 3
"""Failures in a row that got nothing; a transfer that moves on may break any number of times."""

PAUSE_SECONDS = 0.25
"""Before the second attempt; before the third four times as long."""

MAX_MEMBERS = 10_000
"""Files and folders that an archive may have."""

MAX_UNPUBLISHED_BYTES = 2 * 1024**3
"""Of a file whose size is not published but told by its host."""

CHUNK = 1024 * 1024

_LOCK_SECONDS = 3600.0
_HELD = (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Download:
    """A file on the internet, known to the last bit."""

    name: str
    """File name in the cache folder."""
    url: str
    sha256: str
    """Empty where the publisher gives an MD5 instead: enough against damage, not against malice."""
    size_bytes: int
    """0 where it is not published; the host is asked for it then."""
    md5: str = ""

    @property
    def checksum(self) -> tuple[str, str]:
        """The published checksum and its kind, as ``hashlib`` calls it."""
        return ("sha256", self.sha256) if self.sha256 else ("md5", self.md5)


DOWNLOADS = {
    "cifar10": Download(
        name="cifar-10-python.tar.gz",
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        size_bytes=170_498_071,
    ),
    "cifar100": Download(
        name="cifar-100-python.tar.gz",
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        size_bytes=169_001_437,
    ),
}


def cache_dir() -> Path:
    """The folder for downloads: $FIELDMARK_CACHE, else the system's place for caches."""
    own = os.environ.get("FIELDMARK_CACHE", "")
    if own:
        return Path(own).expanduser().absolute()
    if sys.platform == "win32":
        local = os.environ.get("LOCALAPPDATA", "")
        return (Path(local) if local else Path.home() / "AppData" / "Local") / "fieldmark"
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if shared.is_absolute():  # the XDG rules have relative paths ignored
        return shared / "fieldmark"
    try:
        return Path.home() / ".cache" / "fieldmark"
    except RuntimeError:  # no HOME, and a user the system has no name for, as in containers
        return _of_this_process()


@functools.cache
def _of_this_process() -> Path:
    """A folder of nobody else's, until this process ends: others may write where all may."""
    folder = tempfile.mkdtemp(prefix="fieldmark-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def fetch_cifar(
    name: str,
    *,
    cache: Path | None = None,
    timeout_seconds: float = 15,
    progress: Progress | None = None,
) -> Path:
    """The folder of an unpacked data set of ``DOWNLOADS``; does nothing when it is there already.

    Raises:
        ConfigError: if there is no such data set.
        ResourceError: if it cannot be downloaded or stored.
    """
    if name not in DOWNLOADS:
        raise ConfigError(
            f"no data set {name!r} to download{did_you_mean(name, DOWNLOADS)} "
            f"(known: {', '.join(DOWNLOADS)})"
        )
    folder = (cache or cache_dir()) / name
    if folder.is_dir():
        return folder
    archive = fetch(
        DOWNLOADS[name], cache=cache, timeout_seconds=timeout_seconds, progress=progress
    )
    with _locked(folder.with_name(f".{name}.lock")):
        if not folder.is_dir():
            for left in folder.parent.glob(f".{name}.*.part"):  # of a process that was killed
                shutil.rmtree(left, ignore_errors=True)
            extract(archive, into=folder)
    return folder


def fetch(
    download: Download,
    *,
    cache: Path | None = None,
    timeout_seconds: float = 15,
    progress: Progress | None = None,
) -> Path:
    """Download a file into the cache unless it is there, and verify it; returns its path.

    A transfer that broke is continued, now or at the next call. ``progress`` gets the bytes so far
    and in all. ``timeout_seconds`` is the longest wait for a host, with all attempts at it.

    Raises:
        ResourceError: if the host, the disk or the file's checksum does not play along.
    """
    folder = cache or cache_dir()
    target = folder / download.name
    part = folder / f"{download.name}.part"
    with _disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder / f".{download.name}.lock"), _disk(folder):
        if target.exists():
            _verify(target, download=download)
            return target
        if not download.size_bytes:
            size = _ask_size(download, part=part, seconds=timeout_seconds)
            download = dataclasses.replace(download, size_bytes=size)
        _transfer_all(download, part=part, timeout_seconds=timeout_seconds, progress=progress)
        try:
            _verify(part, download=download)
        except ResourceError:
            _forget(part)
            raise
        os.replace(part, target)  # noqa: PTH105 - the one call that is atomic everywhere
        _etag_file(part).unlink(missing_ok=True)
        _sync_folder(folder)
    return target


def _verify(file: Path, *, download: Download) -> None:
    size, (kind, wanted) = file.stat().st_size, download.checksum
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, kind).hexdigest()
    if size != (download.size_bytes or size) or digest != wanted:
        raise ResourceError(
            f"{file} has {size} bytes and {kind} {digest}, but {download.name} has "
            f"{download.size_bytes or size} and {wanted}; it was damaged or replaced on the way: "
            "delete it if it is still there, and try again"
        )


def _ask_size(download: Download, *, part: Path, seconds: float) -> int:
    """The whole file's size, by what its host says.

    Raises:
        ResourceError: if it does not answer, or the size cannot be.
    """
    nothing_yet = part.with_suffix(".none")
    try:
        response = _request(download, client=_Http(), part=nothing_yet, seconds=seconds)
    except _BrokenError as error:
        raise ResourceError(f"{error}; try again later, or {_by_hand(download, part)}") from None
    with contextlib.closing(response):
        length = response.headers.get("Content-Length", "")
    if not (length.isascii() and length.isdecimal() and 0 < int(length) <= MAX_UNPUBLISHED_BYTES):
        raise ResourceError(
            f"{_host(download)} says that {download.name} has {length or 'no'} bytes; 1 to "
            f"{MAX_UNPUBLISHED_BYTES} are accepted. A proxy or a log-in page may be in between"
        )
    return int(length)


def _by_hand(download: Download, part: Path) -> str:
    kind, digest = download.checksum
    return f"put {download.name} ({kind} {digest}) at {part.with_name(download.name)} yourself"


class _BrokenError(Exception):
    """A connection failed in a way that may pass."""


class _Http:
    """Requests over http and https alone, with a limit on the whole wait for an answer."""

    def __init__(self) -> None:
        self.opener = urllib.request.OpenerDirector()  # build_opener would add file: and ftp:
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(),
            urllib.request.UnknownHandler(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            _Redirects(),
        ):
            self.opener.add_handler(handler)

    def get(self, url: str, *, headers: dict[str, str], seconds: float) -> Any:
        """The response once its headers are there.

        In a thread, because a socket's time-out bounds neither the look-up of the name nor the
        number of addresses tried.
        """
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - no other handlers
        answers: list[Any] = []
        given_up = threading.Event()

        def ask() -> None:
            try:
                answer = self.opener.open(request, timeout=seconds)
            except Exception as error:
                answer = error
            answers.append(answer)
            if given_up.is_set():
                _close(answer)

        thread = threading.Thread(target=ask, name="fieldmark-download", daemon=True)
        thread.start()
        thread.join(seconds)
        if not answers:
            given_up.set()
            for late in answers:
                _close(late)
            raise TimeoutError(f"no answer in {seconds:.0f} seconds")
        if isinstance(answers[0], Exception):
            raise answers[0]
        return answers[0]


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect to files, to ftp, or from https down to http."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """The request to follow with."""
        before, after = req.type, urllib.parse.urlsplit(newurl).scheme.lower()
        if after not in ("http", "https") or (before, after) == ("https", "http"):
            fp.close()
            raise ResourceError(
                f"{req.host} redirects from {before} to {after or 'nowhere'}, which is not followed"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _close(answer: object) -> None:
    if isinstance(answer, (http.client.HTTPResponse, urllib.error.HTTPError)):
        answer.close()


def _transfer_all(
    download: Download, *, part: Path, timeout_seconds: float, progress: Progress | None
) -> None:
    """Transfer until the part is as long as the file, continuing after what may pass."""
    address = urllib.parse.urlsplit(download.url)
    if address.scheme not in ("http", "https"):
        raise ResourceError(f"{download.url} is not an http or https address")
    client, failures = _Http(), 0
    deadline = time.monotonic() + timeout_seconds
    while _size(part) != download.size_bytes:
        before = _size(part)
        seconds = max(deadline - time.monotonic(), 0.1)
        try:
            _transfer(download, client=client, part=part, seconds=seconds, progress=progress)
        except _BrokenError as error:
            if _size(part) > before:
                failures, deadline = 0, time.monotonic() + timeout_seconds
            failures += 1
            pause = PAUSE_SECONDS * 4 ** (failures - 1)
            if failures >= ATTEMPTS or time.monotonic() + pause >= deadline:
                raise ResourceError(
                    f"{error}; try again later, or {_by_hand(download, part)}, "
                    "or pass the folder that holds the unpacked data set"
                ) from None
            time.sleep(pause)


def _transfer(
    download: Download,
    *,
    client: _Http,
    part: Path,
    seconds: float,
    progress: Progress | None,
) -> None:
    """One request, appended to the part as far as it gets.

    Raises:
        _BrokenError: if the connection failed; what arrived is kept.
    """
    have = _size(part)
    if have > download.size_bytes:
        _forget(part)
        have = 0
    response = _request(download, client=client, part=part, seconds=seconds)
    with contextlib.closing(response):
        start = _start_of(response, have=have, download=download)
        if start is None:
            _forget(part)
            raise _BrokenError(f"{_host(download)} sent another piece than was asked for")
        if start == 0:
            _keep_etag(part, etag=response.headers.get("ETag", ""))
        with part.open("ab" if start else "wb") as file:
            for chunk in _chunks(response, host=_host(download)):
                if start + len(chunk) > download.size_bytes:
                    file.truncate(0)
                    raise ResourceError(
                        f"{_host(download)} sends more than the {download.size_bytes} bytes "
                        f"of {download.name}"
                    )
                file.write(chunk)
                start += len(chunk)
                if progress:
                    progress(start, download.size_bytes)
            file.flush()
            os.fsync(file.fileno())
    if start < download.size_bytes:
        raise _BrokenError(
            f"the connection to {_host(download)} ended after {start} of "
            f"{download.size_bytes} bytes"
        )


def _request(download: Download, *, client: _Http, part: Path, seconds: float) -> Any:
    headers = {"User-Agent": "fieldmark", "Accept-Encoding": "identity"}
    have = _size(part)
    if have:
        headers["Range"] = f"bytes={have}-"
        etag = _etag_file(part)
        if etag.is_file():  # without one the checksum tells a changed file
            headers["If-Range"] = etag.read_text(encoding="ascii")
    try:
        return client.get(download.url, headers=headers, seconds=seconds)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            _forget(part)
        elif error.code < 500 and error.code not in (408, 429):
            raise ResourceError(
                f"{_host(download)} answers {error.code} {error.reason} to {download.url}; "
                f"{_by_hand(download, part)}"
            ) from None
        raise _BrokenError(f"{_host(download)} answers {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise ResourceError(
                f"the certificate of {_host(download)} is not trusted ({reason.verify_message}); "
                "a proxy or a wrong clock may be the reason"
            ) from None
        raise _BrokenError(f"no connection to {_host(download)} ({_words(reason)})") from None


def _start_of(response: Any, *, have: int, download: Download) -> int | None:
    """Where in the file the response's first byte belongs; None if nowhere useful."""
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        match = re.fullmatch(r"bytes (\d+)-\d+/.*", response.headers.get("Content-Range", ""))
        return have if match and int(match[1]) == have else None
    length = response.headers.get("Content-Length", "")
    # Checked before the part is overwritten: a log-in page must not cost what arrived so far.
    if response.status != http.HTTPStatus.OK or length not in ("", str(download.size_bytes)):
        raise ResourceError(
            f"{_host(download)} sends {length or 'no'} bytes (status {response.status}) where "
            f"{download.size_bytes} were expected; a proxy or a log-in page may be in between"
        )
    return 0


def _chunks(response: Any, *, host: str) -> Iterator[bytes]:
    """The body; so that only errors of the network become a broken connection."""
    while True:
        try:
            chunk = response.read1(CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise _BrokenError(f"the connection to {host} broke ({_words(error)})") from None
        if not chunk:
            return
        yield chunk


def _words(reason: object) -> str:
    if isinstance(reason, TimeoutError):
        return "no answer in time"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return str(reason) or type(reason).__name__


def _host(download: Download) -> str:
    return urllib.parse.urlsplit(download.url).hostname or download.url


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _etag_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _keep_etag(part: Path, *, etag: str) -> None:
    """Note which version of the file the part is of; a weak tag cannot vouch for bytes."""
    if re.fullmatch(r'"[\x21\x23-\x7e]*"', etag):
        _etag_file(part).write_text(etag, encoding="ascii")
    else:
        _etag_file(part).unlink(missing_ok=True)


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _etag_file(part).unlink(missing_ok=True)


@contextlib.contextmanager
def _disk(folder: Path) -> Iterator[None]:
    """Turn what the file system refuses into words."""
    try:
        yield
    except OSError as error:
        what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else error.strerror
        raise ResourceError(
            f"cannot write to {folder}: {what or error}; what arrived is kept. Make room, or name "
            "another folder with FIELDMARK_CACHE"
        ) from None


if sys.platform == "win32":
    import msvcrt

    def _take(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _take(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Hold a lock that the system releases when the process ends, so that none goes stale."""
    with _disk(file.parent):
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        deadline = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                _take(descriptor)
                break
            except OSError as error:
                if error.errno not in _HELD or time.monotonic() > deadline:
                    raise ResourceError(
                        f"cannot lock {file}: {error.strerror}; another download may hang, or the "
                        "file system knows no locks: name a local folder with FIELDMARK_CACHE"
                    ) from None
                time.sleep(0.1)
        yield
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return  # a folder cannot be opened there
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def extract(archive: Path, *, into: Path, max_bytes: int = 2 * 1024**3) -> Path:
    """Unpack a ``.tar.gz`` of plain files and folders; all of it, or nothing.

    Raises:
        DataError: if the archive is damaged, too large, or holds links, devices or paths that
            lead out of it.
        ResourceError: if it cannot be stored.
    """
    if not archive.is_file():
        raise DataError(f"no archive {archive}")
    if into.exists():
        raise ResourceError(f"{into} exists already; delete it to unpack {archive.name} again")
    with _disk(into.parent):
        into.parent.mkdir(parents=True, exist_ok=True)
        half = Path(tempfile.mkdtemp(prefix=f".{into.name}.", suffix=".part", dir=into.parent))
        try:
            with archive.open("rb") as file:
                _unpack(file, name=archive.name, into=half, max_bytes=max_bytes)
            for unpacked in half.rglob("*"):
                if unpacked.is_file():
                    with unpacked.open("rb") as file:
                        os.fsync(file.fileno())
            half.chmod(0o755)  # mkdtemp made it for this user alone
            os.replace(half, into)  # noqa: PTH105
            _sync_folder(into.parent)
        finally:
            shutil.rmtree(half, ignore_errors=True)
    return into


_BROKEN_TAR = (
    *(tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError),
    *(ValueError, LookupError, RecursionError),  # what tarfile lets through for made-up headers
    *(FileExistsError, NotADirectoryError, IsADirectoryError),  # a file where a folder is needed
)


def _unpack(file: IO[bytes], *, name: str, into: Path, max_bytes: int) -> None:
    try:
        capped: Any = _Capped(gzip.GzipFile(fileobj=file), name=name, max_bytes=max_bytes)
        with tarfile.open(fileobj=capped, mode="r:", errorlevel=2) as tar:  # 2: raise everything
            seen: set[str] = set()
            total = 0
            for member in tar:
                total += member.size
                if total > max_bytes or len(seen) >= MAX_MEMBERS:
                    raise DataError(
                        f"{name} holds more than {max_bytes} bytes or {MAX_MEMBERS} files"
                    )
                _check(member, name=name, seen=seen)
                tar.extract(member, path=into, set_attrs=False, filter="data")
    except _BROKEN_TAR as error:
        raise DataError(
            f"{name} is not a .tar.gz that can be read: {str(error)[:200] or type(error).__name__}"
        ) from None


def _check(member: tarfile.TarInfo, *, name: str, seen: set[str]) -> None:
    shown = member.name[:100]
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise DataError(f"{name} holds {shown!r}, which is a link or a device; none is accepted")
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or any(c in member.name for c in "\\:\0"):
        raise DataError(f"{name} holds {shown!r}, whose path leads out of the archive")
    key = str(path).casefold()  # one file where the file system does not tell cases apart
    if key in seen:
        raise DataError(f"{name} holds {shown!r} twice")
    seen.add(key)


class _Capped:
    """A stream for tarfile that ends a bomb: a limit for one read, and one for the position.

    tarfile reads a header's extension in one go, however long the header says it is.
    """

    def __init__(self, stream: gzip.GzipFile, *, name: str, max_bytes: int) -> None:
        self.stream = stream
        self.name = name
        self.max_bytes = max_bytes + 2048 * MAX_MEMBERS + CHUNK  # what headers and padding take

    def _allow(self, position: int) -> None:
        if position > self.max_bytes:
            raise DataError(f"{self.name} unpacks to more than {self.max_bytes} bytes")

    def read(self, size: int = -1) -> bytes:
        """As of a file."""
        if not 0 <= size <= CHUNK:
            raise DataError(f"{self.name} has a header of {size} bytes; at most {CHUNK} accepted")
        self._allow(self.stream.tell() + size)
        return self.stream.read(size)

    def seek(self, position: int) -> int:
        """As of a file, from its start."""
        self._allow(position)
        return self.stream.seek(position)

    def tell(self) -> int:
        """As of a file."""
        return self.stream.tell()
