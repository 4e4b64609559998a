"""The weights hub: unreachable in every way, and a local one that works."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from fieldmark.runs import choice
from fieldmark.runs.directory import RunDirectory

NAME = "test_resnet.r160_in1k"
CODE = """
import json, os, shutil, sys, time, urllib.request
from fieldmark import models
from fieldmark.errors import FieldmarkError
models.timm_models.HUB_SECONDS = 3
for mode, classes in json.loads(sys.argv[1]):
    if mode != "closed":
        urllib.request.urlopen(os.environ["HF_ENDPOINT"] + "/mode/" + mode).read()
    start = time.perf_counter()
    try:
        network = models.create("timm/" + sys.argv[2], num_classes=classes, weights="hub")
        answer = {"weights": network.weights, "head": network.head, "state": {
            k: float(v.double().sum()) for k, v in network.module.state_dict().items()}}
    except FieldmarkError as error:
        answer = {"error": type(error).__name__, "code": error.exit_code, "text": str(error)}
    answer |= {"mode": mode, "classes": classes, "seconds": time.perf_counter() - start}
    print(json.dumps(answer))
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)
"""


class _Hub(http.server.BaseHTTPRequestHandler):
    """The part of the hub's protocol that a download needs, and its failures."""

    content = b""
    mode = "missing"
    over = threading.Event()

    def _answer(self) -> None:
        hub = type(self)
        if self.path.startswith("/mode/"):
            hub.mode = self.path.rpartition("/")[2]
            self._send(b"ok")
        elif hub.mode == "silent":
            hub.over.wait(60)
        elif hub.mode == "missing" or not self.path.endswith("/resolve/main/model.safetensors"):
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._send(self.content)

    def _send(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 39 + "1")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[:100] if type(self).mode == "breaks" else content)

    do_GET = do_HEAD = _answer

    def log_message(self, *args: object) -> None:
        pass


def _content() -> bytes:
    import timm

    torch.manual_seed(4)
    module = timm.create_model("test_resnet")
    return save({k: v.contiguous() for k, v in module.state_dict().items()})


@pytest.fixture(scope="module")
def server() -> Iterator[http.server.ThreadingHTTPServer]:
    over = threading.Event()
    hub = type("Hub", (_Hub,), {"content": _content(), "over": over})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), hub) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield found
        over.set()
        found.shutdown()


def asking(port: int, home: Path) -> dict[str, str]:
    """An environment in which the hub is a port of this machine."""
    env = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    env.pop("HF_HUB_OFFLINE", None)
    return env | {
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(scope="module")
def answers(
    server: http.server.ThreadingHTTPServer, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, int], dict[str, object]]:
    """What fresh processes say of each behaviour of the hub; the two run side by side."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        open_modes = [("silent", 5), ("missing", 5), ("works", 5), ("works", 1000), ("breaks", 5)]
        running = []
        for port, modes in (
            (closed.getsockname()[1], [("closed", 5)]),
            (server.server_address[1], open_modes),
        ):
            env = asking(port, tmp_path_factory.mktemp("hf"))
            command = [sys.executable, "-c", CODE, json.dumps(modes), NAME]
            running.append(
                subprocess.Popen(
                    command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                )
            )
        rows = []
        for process in running:
            out, err = process.communicate(timeout=200)
            assert process.returncode == 0, err
            rows += [json.loads(line) for line in out.splitlines()]
    return {(row["mode"], row["classes"]): row for row in rows}


@pytest.mark.parametrize("mode", ["closed", "silent", "missing"])
def test_an_unreachable_hub_is_said_soon(
    mode: str, answers: dict[tuple[str, int], dict[str, object]]
) -> None:
    answer = answers[mode, 5]
    assert answer["error"] == "ResourceError"
    assert answer["code"] == 6
    text = str(answer["text"])
    for part in (NAME, "http://127.0.0.1:", "HF_ENDPOINT", "weights FILE", "fieldmark[weights]"):
        assert part in text
    # 3 seconds for the hub; the first also imports timm. Nothing may multiply them by retrying.
    assert float(str(answer["seconds"])) < {"closed": 15, "silent": 15, "missing": 5}[mode]


def test_the_hub_has_ten_seconds_to_answer() -> None:
    from fieldmark.models import timm as timm_models

    assert timm_models.HUB_SECONDS == 10


def test_a_download_that_breaks_off_is_a_resource_error(
    answers: dict[tuple[str, int], dict[str, object]],
) -> None:
    assert answers["breaks", 5]["error"] == "ResourceError"
    assert "HF_ENDPOINT" in str(answers["breaks", 5]["text"])


@pytest.mark.parametrize("classes", [5, 1000])
def test_a_hub_that_works_gives_its_weights(
    classes: int, answers: dict[tuple[str, int], dict[str, object]]
) -> None:
    import timm

    torch.manual_seed(4)
    wanted = timm.create_model("test_resnet").state_dict()
    answer = answers["works", classes]
    assert answer.get("weights") == f"hub: {NAME}", answer
    state = answer["state"]
    assert isinstance(state, dict)
    for key, value in wanted.items():
        fresh = classes != 1000 and key.startswith(str(answer["head"]) + ".")
        assert state[key] == (0 if fresh else pytest.approx(float(value.double().sum()), abs=1e-6))


def test_offline_is_said_at_once() -> None:
    from fieldmark import models
    from fieldmark.errors import ResourceError

    with pytest.raises(ResourceError, match="HF_HUB_OFFLINE is set"):
        models.create("timm/" + NAME, num_classes=2)


def test_a_network_without_published_weights() -> None:
    import timm

    from fieldmark import models
    from fieldmark.errors import WeightsError

    published = {n.partition(".")[0] for n in timm.list_pretrained()}
    name = next(n for n in timm.list_models() if n not in published)
    with pytest.raises(WeightsError, match="publishes no weights"):
        models.create("timm/" + name, num_classes=2, weights="hub")


CHOOSING = """
import sys
import fieldmark
from fieldmark.settings.recipes import candidates
candidates.HUB = {"cpu": tuple("timm/" + name for name in sys.argv[3:])}
candidates.SIZES = (32,)
candidates.TINY_SIDE = 0
fieldmark.train(sys.argv[1], out=sys.argv[2], weights="hub", progress=False)
"""


def test_the_hubs_short_list_is_tried_where_it_may_be_asked(
    server: http.server.ThreadingHTTPServer, tmp_path: Path
) -> None:
    """One that cannot be had is passed over; the weights of the best are the run's."""
    for number in range(24):
        place = tmp_path / "pictures" / ("light" if number % 2 else "dark")
        place.mkdir(parents=True, exist_ok=True)
        draw = np.random.default_rng(number)
        pixels = draw.integers(0, 130, (100, 100, 3), dtype=np.uint8) + 100 * (number % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(place / f"{number}.png")
    urllib.request.urlopen(f"http://127.0.0.1:{server.server_address[1]}/mode/works").read()
    other = "test_efficientnet.r160_in1k"  # the file that comes does not fit it
    folders = [str(tmp_path / name) for name in ("pictures", "run")]
    words = [sys.executable, "-c", CHOOSING, *folders, NAME, other]
    env = asking(server.server_address[1], tmp_path / "hf")
    ran = subprocess.run(words, env=env, capture_output=True, text=True, timeout=200)
    assert ran.returncode == 0, ran.stderr
    found = choice.read(RunDirectory(tmp_path / "run"))
    assert found is not None and found.chosen is not None
    tried = {each.name: each for each in found.tried}
    wanted = {"model": f"timm/{NAME}(head_stages=3)", "weights": "hub"}
    assert tried[f"probe of timm/{NAME}"].settings == wanted
    assert tried[f"probe of timm/{NAME}"].n == found.pictures
    assert tried[f"probe of timm/{other}"].outcome == "failed"
    assert tried[f"probe of timm/{other}"].why
    config = RunDirectory(tmp_path / "run").config()
    assert config.model == found.chosen.settings["model"]
