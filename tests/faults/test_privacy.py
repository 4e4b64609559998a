"""Nothing goes out, and nothing of the machine gets into what a run leaves behind."""

from __future__ import annotations

import io
import json
import re
import struct
import sys
import zipfile
import zlib
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.faults import tiny_run
from tests.faults.commands import command

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sets HOME and USER")

CANARIES = {
    "USER": "canary-user",
    "LOGNAME": "canary-logname",
    "HOSTNAME": "canary-host",
    "FIELDMARK_TOKEN": "canary-token",
    "AWS_SECRET_ACCESS_KEY": "canary-secret",
    "HTTP_PROXY": "http://canary-proxy:1",
    "GIT_AUTHOR_NAME": "canary-author",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a name of its own; pictures and cache lie in it, the run does not."""
    home = tmp_path_factory.mktemp("privacy") / "canary-home"
    (home / "canary-folder").mkdir(parents=True)
    tiny_run.make_pictures(home / "canary-folder" / "stripes")
    return home


@pytest.fixture(scope="module")
def run(place: Path) -> Path:
    """A finished run, from a command that was watched; with all else that writes into it."""
    run = place.parent / "elsewhere" / "run"
    pictures = place / "canary-folder" / "stripes"
    settings = tiny_run.SETTINGS | {"epochs": 2}
    env: dict[str, str | None] = {
        **CANARIES,
        "HOME": str(place),
        "XDG_CACHE_HOME": None,
        "FIELDMARK_CACHE": None,
        "MPLCONFIGDIR": None,
    }
    for words in (
        ["train", str(pictures), "--out", str(run), *tiny_run.flags(settings)],
        ["evaluate", str(run), "--data", str(pictures)],
        ["predict", str(run), str(pictures), "--csv", str(run / "answers.csv")],
        ["report", str(run)],
    ):
        done = command(words, env=env, folder=place / "watch")
        assert done.code == 0, done.err.decode()
        assert not done.network, f"{words[0]}: {done.network}"
    return run


def test_no_command_looks_at_the_network(run: Path) -> None:
    """The fixture asserts it for each; here that the watch sees a look, so that it can fail."""
    missing = command(
        ["train", "cifar10", "--out", str(run.parent / "other")],
        env={"HOME": str(run.parent), "FIELDMARK_CACHE": None, "HTTPS_PROXY": "http://127.0.0.1:9"},
        folder=run.parent / "watch",
    )
    assert missing.code == 6, missing.err.decode()
    assert "Traceback" not in missing.err.decode()
    assert "socket." in missing.network


def contents(file: Path) -> Iterator[bytes]:
    """A file's bytes, and those that are packed in it: zip members, PNG texts, data URLs."""
    data = file.read_bytes()
    yield data
    yield from unpacked(data)
    for found in re.findall(rb"base64,([A-Za-z0-9+/=]+)", data):
        inner = b64decode(found)
        yield inner
        yield from unpacked(inner)


def unpacked(data: bytes) -> Iterator[bytes]:
    if data.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            yield from (archive.read(name) for name in archive.namelist())
    if data.startswith(b"\x89PNG"):
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            yield repr(getattr(image, "text", {})).encode()


def test_the_search_looks_into_what_is_packed(tmp_path: Path) -> None:
    """A canary in a compressed PNG text or a zip member would be found."""
    text = b"Author\0\0" + zlib.compress(b"canary-user")
    chunk = struct.pack(">I", len(text)) + b"zTXt" + text
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + text))
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "PNG")
    png = picture.getvalue()[:33] + chunk + picture.getvalue()[33:]
    (tmp_path / "a.png").write_bytes(png)
    with zipfile.ZipFile(tmp_path / "a.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data", b"canary-user " * 10)
    for file in tmp_path.iterdir():
        assert b"canary-user" not in file.read_bytes()
        assert any(b"canary-user" in content for content in contents(file)), file.name


def test_nothing_of_the_machine_is_in_a_run(run: Path) -> None:
    host = Path("/proc/sys/kernel/hostname")
    names = [b"canary", str(run.parent).encode(), sys.prefix.encode()]
    if host.exists() and len(name := host.read_bytes().strip()) > 3:
        names.append(name)
    found = [
        f"{name.decode()} in {file.name}"
        for file in run.iterdir()
        for name in names
        if any(name in content for content in contents(file))
        # What the user asked for by `--csv` names the files as they were given.
        and file.name != "answers.csv"
    ]
    assert not found


def test_the_cache_names_nothing(run: Path, place: Path) -> None:
    cache = place / ".cache" / "fieldmark"
    assert not [p for p in cache.rglob("*") if p.is_file() and b"canary" in p.read_bytes()]


def test_environment_json_has_the_facts_it_promises(run: Path) -> None:
    """So that the search above is not passed by a file that says nothing."""
    facts = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    assert {"device", "started", "argv", "weights"} <= set(facts)
