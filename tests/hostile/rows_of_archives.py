"""Data sets as they are published: Python pickles, archives, downloads."""

from __future__ import annotations

import functools
import hashlib
import io
import os
import pickle
import socket
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.hostile.place import TRAIN, Answer, Place, Row

BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5")
NAMES = [f"class {number}" for number in range(10)]


def batch(count: int = 10, *, seed: int = 0) -> dict[Any, Any]:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)
    return {"data": pixels, "labels": [k % 10 for k in range(count)]}


def cifar(folder: Path, *, as_bytes: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate((*BATCHES, "test_batch")):
        content = batch(seed=seed)
        if as_bytes:
            content = {key.encode(): value for key, value in content.items()}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES}, protocol=2))
    return folder


class Runs:
    """Something whose pickle runs a command when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.canary}'",)


def _with(change: Callable[[Place], bytes], place: Place) -> list[str]:
    cifar(place.data)
    (place.data / "data_batch_2").write_bytes(change(place))
    return place.train()


def pickled(item: str, text: str, change: Callable[[Place], bytes], *says: str) -> Row:
    """A hostile second batch."""
    return Row(item, text, functools.partial(_with, change), 3, ("data_batch_2", *says))


def of(**changes: object) -> Callable[[Place], bytes]:
    return lambda _: pickle.dumps({**batch(), **changes}, protocol=2)


def raw(content: bytes) -> Callable[[Place], bytes]:
    return lambda _: content


def old_python(place: Place) -> list[str]:
    cifar(place.data, as_bytes=True)
    return place.look()


def without(name: str, place: Place) -> list[str]:
    cifar(place.data)
    (place.data / name).unlink()
    return place.train()


def enormous_batch(place: Place) -> list[str]:
    cifar(place.data)
    with (place.data / "data_batch_2").open("r+b") as file:
        file.truncate(2**33)
    return place.train()


def batch_is_a_pipe(place: Place) -> list[str]:
    cifar(place.data)
    (place.data / "data_batch_2").unlink()
    os.mkfifo(place.data / "data_batch_2")
    return place.train()


# --- archives ------------------------------------------------------------------------------------


def entry(name: str, content: bytes = b"", **facts: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in facts.items():
        setattr(info, key, value)
    return info, content


def tar(*entries: tuple[tarfile.TarInfo, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def _cached(content: Callable[[Place], bytes], place: Place) -> list[str]:
    """The archive lies in the cache, and the table of published ones has its hash."""
    data = content(place)
    (place.cache / "x.tar.gz").write_bytes(data)
    place.published["cifar10"] = {
        "name": "x.tar.gz",
        "url": "https://localhost/x.tar.gz",
        "sha256": hashlib.sha256(data).hexdigest(),
        "size_bytes": len(data),
    }
    return ["train", "cifar10", *TRAIN, "--out", str(place.runs / "new")]


def nothing_unpacked(place: Place, _: Answer) -> bool:
    return {p.name for p in place.cache.iterdir()} <= {
        *("x.tar.gz", ".x.tar.gz.lock", ".cifar10.lock")
    }


def packed(text: str, content: Callable[[Place], bytes], *says: str) -> Row:
    make = functools.partial(_cached, content)
    return Row("33", text, make, 3, ("x.tar.gz", *says), "nothing is unpacked", nothing_unpacked)


def through_a_link(place: Place) -> bytes:
    link = entry("link", type=tarfile.SYMTYPE, linkname=str(place.outside))
    return tar(link, entry("link/evil", b"x"))


def bomb(_: Place) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=9) as archive:
        info = tarfile.TarInfo("zeros")
        info.size = 3 * 2**30
        archive.addfile(info, _Zeros(info.size))
    return stream.getvalue()


class _Zeros:
    def __init__(self, left: int) -> None:
        self.left = left

    def read(self, size: int) -> bytes:
        size = min(size, self.left)
        self.left -= size
        return bytes(size)


def encrypted_zip(_: Place) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("data_batch_1", b"secret")
    data = bytearray(stream.getvalue())
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    return bytes(data)


def a_zip_as_data(place: Place) -> list[str]:
    file = place.data / "photos.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("../../evil.png", b"x")
    return ["train", str(file), *TRAIN]


# --- downloads -----------------------------------------------------------------------------------


def _proxied(place: Place, address: str) -> list[str]:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        place.environment[name] = address
    place.environment["no_proxy"] = place.environment["NO_PROXY"] = ""
    return ["train", "cifar10", *TRAIN, "--out", str(place.runs / "new")]


def no_connection(place: Place) -> list[str]:
    with socket.socket() as free:  # a port that nobody listens on any more
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return _proxied(place, f"http://127.0.0.1:{port}")


def half_a_download(place: Place) -> list[str]:
    (place.cache / "cifar-10-python.tar.gz.part").write_bytes(b"half")
    return no_connection(place)


def half_is_kept(place: Place, _: Answer) -> bool:
    return (place.cache / "cifar-10-python.tar.gz.part").read_bytes() == b"half"


_LISTENING: list[socket.socket] = []
"""Kept open while the tests run: a proxy that accepts and never answers."""


def hanging_proxy(place: Place) -> list[str]:
    listening = socket.create_server(("127.0.0.1", 0))
    _LISTENING.append(listening)
    return _proxied(place, f"http://127.0.0.1:{listening.getsockname()[1]}")


def wrong_file_in_cache(place: Place) -> list[str]:
    (place.cache / "cifar-10-python.tar.gz").write_bytes(b"another file")
    return ["train", "cifar10", *TRAIN]


def hub(place: Place) -> list[str]:
    no_connection(place)
    place.environment["HF_HUB_OFFLINE"] = "0"
    place.environment["HF_ENDPOINT"] = place.environment["https_proxy"]
    place.classes(cat=9, dog=9)
    model = ("--model", "timm/test_resnet", "--weights", "hub", "--size", "32", "--epochs", "1")
    return ["train", str(place.data), *model, "--out", str(place.runs / "new")]


ASKED = {"network": True}

ROWS = (
    pickled(
        "31",
        "a CIFAR batch that calls os.system",
        lambda p: pickle.dumps(Runs(p.canary)),
        "it was not run",
    ),
    pickled(
        "31",
        "the same, as its labels",
        lambda p: pickle.dumps({**batch(), "labels": Runs(p.canary)}),
        "it was not run",
    ),
    pickled(
        "31",
        "an operation of 10^9 bytes",
        raw(b"\x80\x02B" + (10**9).to_bytes(4, "little") + b"x."),
        "not a batch",
    ),
    pickled(
        "31",
        "lists in lists, 100,000 deep",
        raw(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."),
        "operations",
    ),
    pickled("31", "9 pictures for 10 labels", of(data=batch(9)["data"]), "9", "10"),
    pickled("31", "a label of 10", of(labels=[10] * 10), "0 to 9"),
    pickled("31", "a label of -1", of(labels=[-1] * 10), "0 to 9"),
    pickled("31", "labels that are no whole numbers", of(labels=[0.5] * 10), "whole numbers"),
    pickled(
        "31", "pixels as floats", of(data=np.zeros((10, 3072), np.float32)), "float32", "uint8"
    ),
    pickled("31", "pixels as Python objects", of(data=np.array([[None]])), "no array of numbers"),
    pickled("31", "no labels", lambda _: pickle.dumps({"data": batch()["data"]}), "lacks 'labels'"),
    pickled("31", "half of a batch", lambda _: pickle.dumps(batch())[:9000], "not a batch"),
    Row("31", "batches of Python 2, with keys of bytes", old_python, 0, ("10 classes",)),
    Row(
        "32",
        "data_batch_3 is missing",
        functools.partial(without, "data_batch_3"),
        3,
        ("data_batch_3", "copy the whole folder"),
    ),
    Row(
        "32",
        "test_batch is missing",
        functools.partial(without, "test_batch"),
        3,
        ("test_batch", "copy the whole folder"),
    ),
    Row(
        "+",
        "a batch of 8 GB without content",
        enormous_batch,
        3,
        ("data_batch_2", "at most 512 MB"),
    ),
    Row("+", "a batch that is a pipe", batch_is_a_pipe, 3, ("data_batch_2",)),
    packed("../../evil in a tar", lambda _: tar(entry("../../evil", b"x")), "leads out of"),
    packed(
        "an absolute path in a tar",
        lambda p: tar(entry(str(p.root / "evil"), b"x")),
        "leads out of",
    ),
    packed("a link, and a file through it", through_a_link, "a link"),
    packed(
        "a hard link to a file outside",
        lambda _: tar(entry("l", type=tarfile.LNKTYPE, linkname="../../data/x")),
        "a link",
    ),
    packed(
        "a device",
        lambda _: tar(entry("d", type=tarfile.CHRTYPE, devmajor=1, devminor=5)),
        "device",
    ),
    packed("3 GB of zeros in 3 MB", bomb, "more than"),
    packed("a name twice", lambda _: tar(entry("a", b"x"), entry("a", b"y")), "twice"),
    packed("10,001 files", lambda _: tar(*(entry(f"f{k}") for k in range(10_001))), "10000 files"),
    packed("half of a tar", lambda _: tar(entry("a", b"x" * 9999))[:60], "not a .tar.gz"),
    packed("an encrypted zip called .tar.gz", encrypted_zip, "not a .tar.gz"),
    Row("33", "a zip with ../../evil.png as data", a_zip_as_data, 3, ("photos.zip", "unpack it")),
    Row("48", "no network", no_connection, 6, ("cifar-10-python.tar.gz", "put"), options=ASKED),
    Row(
        "48",
        "a half download and no network",
        half_a_download,
        6,
        ("try again later",),
        "the half stays",
        half_is_kept,
        ASKED,
    ),
    Row(
        "48",
        "a proxy that never answers",
        hanging_proxy,
        6,
        ("no answer", "put"),
        options=ASKED,
        slow=True,
    ),
    Row(
        "48",
        "another file in the cache in place of the data set",
        wrong_file_in_cache,
        6,
        ("cifar-10-python.tar.gz", "delete it"),
    ),
    Row("48", "a weights hub that is not there", hub, 6, ("--weights",), options=ASKED),
)
