"""From a path to a running server."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from fieldmark.errors import ConfigError, MissingExtraError
from fieldmark.machine.cores import threads_for

MIN_TOKEN = 16


def serve(
    model: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str = "",
    allow_hosts: Sequence[str] = (),
    batch: int = 32,
    queue: int = 64,
    root_path: str = "",
    device: str = "auto",
    max_pixels: int = 0,
    allow_plugin_version: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Serve a classifier over HTTP until a signal comes.

    Args:
        model: A run directory or an exported ONNX file.
        host: Address to listen on; any but a loopback address needs a token.
        port: Port; 0 for any that is free.
        token: What clients must send as ``Authorization: Bearer``; empty for no token.
        allow_hosts: Further names by which the server is addressed.
        batch: Pictures scored at a time.
        queue: Pictures inside the server; more are refused with 429.
        root_path: What the paths begin with outside, where a proxy serves it under a path, such as
            ``/flowers``; whether the proxy takes it off does not matter.
        device: Where the network runs.
        max_pixels: Largest number of pixels of a picture; 0 as in training.
        allow_plugin_version: Use other versions of plugins than the run was made with.
        say: Called with the address once the server answers.

    Raises:
        ConfigError: if the settings cannot be used.
        MissingExtraError: if the extra ``serve`` is not installed.
        FieldmarkError: if the model cannot be loaded or the port is taken.
    """
    if not is_loopback(host) and not token:
        raise ConfigError(
            f"--host {host} can be reached from other machines, so a token is needed: "
            f"--token with {MIN_TOKEN} characters or more, which clients send as "
            "'Authorization: Bearer TOKEN'"
        )
    if token and (len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable()):
        raise ConfigError(
            f"the token has {len(token)} characters; {MIN_TOKEN} or more are accepted, all of them "
            "ASCII; `python -c 'import secrets; print(secrets.token_urlsafe())'` makes one"
        )
    for name, value, high in (("batch", batch, 1024), ("queue", queue, 100_000)):
        if not 1 <= value <= high:
            raise ConfigError(f"{name} is {value}; 1 to {high} are accepted")
    if not 0 <= port <= 65_535:
        raise ConfigError(f"port is {port}; 0 to 65535 are accepted")
    root_path = "/" + root_path.strip("/") if root_path.strip("/") else ""
    if not re.fullmatch(r"(/(?!\.{1,2}(/|$))[\w.~-]+)*", root_path, re.ASCII):
        raise ConfigError(
            f"root_path is {root_path!r}; a path of letters, digits and . _ ~ - is accepted, such "
            "as /flowers"
        )
    try:
        from fieldmark.serve import server
        from fieldmark.serve.app import Service
    except ImportError as error:
        raise MissingExtraError(
            f"the server needs {error.name}; install it with: pip install 'fieldmark[serve]'"
        ) from None
    from fieldmark.serve.classifier import open_classifier
    from fieldmark.serve.decoding import AwaitedDecoders
    from fieldmark.serve.limits import Limits

    classifier = open_classifier(model, device=device, allow_plugin_version=allow_plugin_version)
    listener = server.listen(host, port)
    limits = Limits(batch=batch, queue=queue)
    decoders = AwaitedDecoders(
        threads_for(0),
        spec=classifier.input,
        limits=classifier.limits.or_more(max_pixels),
        seconds=limits.decode_seconds,
    )
    service = Service(
        classifier,
        decoders,
        limits=limits,
        token=token,
        hosts=[host, *allow_hosts],
        root_path=root_path,
    )
    shown = f"[{host}]" if ":" in host else host
    where = f"http://{shown}:{listener.getsockname()[1]}"
    server.run(
        service,
        listener,
        ready=lambda: say(f"serving {classifier.name} on {where} (Ctrl-C stops it)"),
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
