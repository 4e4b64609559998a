"""Downloading published files: resumable, verified, and never half a file under its final name."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import http.client
import os
import re
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from fieldmark.errors import ResourceError
from fieldmark.files.cache import cache_dir, cache_errors
from fieldmark.files.lock import waited_for
from fieldmark.files.writing import sync_folder
from fieldmark.progress import OnProgress

ATTEMPTS = 3
"""Failed requests in a row without a new byte; a transfer that gains some may break any number of
times."""

PAUSE_SECONDS = 0.25
"""Pause before the second attempt; the one before the third is four times as long."""


MAX_UNPUBLISHED_BYTES = 2 * 1024**3
"""Largest file whose size is not published, but told by its host."""

CHUNK = 1024 * 1024

_LOCK_SECONDS = 3600.0
_HELD = (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)


@dataclass(frozen=True)
class Download:
    """A file on the internet with its published size and checksum."""

    name: str
    """File name in the cache folder."""
    url: str
    sha256: str
    """Empty where the publisher gives an MD5 instead, which finds damage but no forgery."""
    size_bytes: int
    """0 where it is not published; the host is asked for it then."""
    md5: str = ""

    @property
    def checksum(self) -> tuple[str, str]:
        """The published checksum and its kind, as ``hashlib`` calls it."""
        return ("sha256", self.sha256) if self.sha256 else ("md5", self.md5)


def fetch(
    download: Download,
    *,
    cache: Path | None = None,
    timeout_seconds: float = 15,
    progress: OnProgress | None = None,
) -> Path:
    """Download a file into the cache unless it is there, and verify it; returns its path.

    A transfer that broke is continued, now or at the next call. ``progress`` gets the bytes so far
    and in all. ``timeout_seconds`` is the longest wait for a host, with all attempts at it.

    Raises:
        ResourceError: if the host does not answer, the disk refuses, or the checksum is wrong.
    """
    folder = cache or cache_dir()
    target = folder / download.name
    part = folder / f"{download.name}.part"
    with cache_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with waited_for(folder / f".{download.name}.lock"), cache_errors(folder):
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
        sync_folder(folder)
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
    """Ask the host for the size of the whole file.

    Raises:
        ResourceError: if it does not answer, or names an impossible size.
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
        """Return the response once its headers have arrived.

        The request runs in a thread, because a socket's time-out limits neither the look-up of the
        name nor the number of addresses tried.
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
    """Follows redirects, but none to files, to ftp, or from https down to http."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Return the request that follows the redirect, or refuse."""
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
    download: Download, *, part: Path, timeout_seconds: float, progress: OnProgress | None
) -> None:
    """Transfer until the partial file is complete; try again after failures that may pass."""
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
    progress: OnProgress | None,
) -> None:
    """Send one request and append what arrives to the partial file.

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
            raise _BrokenError(f"{_host(download)} sent another part of the file than asked for")
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
    """Where in the file the response's first byte belongs; None if it cannot be used."""
    if response.status == http.HTTPStatus.PARTIAL_CONTENT:
        match = re.fullmatch(r"bytes (\d+)-\d+/.*", response.headers.get("Content-Range", ""))
        return have if match and int(match[1]) == have else None
    length = response.headers.get("Content-Length", "")
    # Checked before the partial file is overwritten: a log-in page must not replace it.
    if response.status != http.HTTPStatus.OK or length not in ("", str(download.size_bytes)):
        raise ResourceError(
            f"{_host(download)} sends {length or 'no'} bytes (status {response.status}) where "
            f"{download.size_bytes} were expected; a proxy or a log-in page may be in between"
        )
    return 0


def _chunks(response: Any, *, host: str) -> Iterator[bytes]:
    """Yield the body; network errors, and no others, become a :class:`_BrokenError`."""
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
    """Store which version of the file the partial file is from; weak tags do not identify bytes."""
    if re.fullmatch(r'"[\x21\x23-\x7e]*"', etag):
        _etag_file(part).write_text(etag, encoding="ascii")
    else:
        _etag_file(part).unlink(missing_ok=True)


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _etag_file(part).unlink(missing_ok=True)
