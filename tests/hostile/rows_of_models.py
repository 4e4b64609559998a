"""Weights, checkpoints, runs and exported models from strangers."""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from fieldmark import models
from fieldmark.data.scan import fingerprint
from fieldmark.files.checksum import BLANK, FIELD, seal, tail
from fieldmark.keras import files as keras_files
from fieldmark.runs import manifest
from tests.hostile.place import TRAIN, Answer, Place, Row, picture
from tests.hostile.rows_of_archives import Runs
from tests.keras import hostile as keras

WRONG = "cannot be read as plain tensors"


def state(**changes: torch.Tensor) -> dict[str, torch.Tensor]:
    """The weights that :data:`place.TRAIN` would take."""
    torch.manual_seed(0)
    network = models.create("small_cnn(width=2)", num_classes=2, weights="none", size=8)
    return {**network.module.state_dict(), **changes}


def zipped(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def unzipped(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def _weights(name: str, content: Callable[[Place], bytes], place: Place) -> list[str]:
    place.classes(cat=9, dog=9)
    file = place.given / name
    file.write_bytes(content(place))
    return place.look("--weights", str(file))


def refused(
    item: str,
    text: str,
    name: str,
    content: Callable[[Place], bytes],
    *says: str,
    slow: bool = False,
) -> Row:
    """Weights that are not taken."""
    return Row(item, text, functools.partial(_weights, name, content), 4, (name, *says), slow=slow)


def taken(item: str, text: str, name: str, content: Callable[[Place], bytes], *says: str) -> Row:
    """Weights that are taken, with a word about it."""
    return Row(item, text, functools.partial(_weights, name, content), 0, says)


def data(content: Callable[[], bytes]) -> Callable[[Place], bytes]:
    return lambda _: content()


# --- pickles -------------------------------------------------------------------------------------


def edited_zip(change: Callable[[bytes], bytes], *, member: str = "data.pkl") -> bytes:
    """A checkpoint of four zeros whose pickle is another."""
    source = zipfile.ZipFile(io.BytesIO(zipped({"w": torch.zeros(4)})))
    stream = io.BytesIO()
    with source, zipfile.ZipFile(stream, "w") as target:
        for info in source.infolist():
            content = source.read(info)
            target.writestr(info, change(content) if info.filename.endswith(member) else content)
    return stream.getvalue()


def old_tar(place: Place) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickle.dumps(Runs(place.canary))
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def twice_in_zip() -> bytes:
    stream = io.BytesIO(zipped(state()))
    with zipfile.ZipFile(stream, "a") as archive:
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        archive.filename = None
        archive.NameToInfo.clear()  # so that no warning is given
        archive.writestr(name, b"\x80\x02}.")
    return stream.getvalue()


def compressed() -> bytes:
    """A storage of 2 GB in 2 MB."""
    value = zipped({"w": torch.zeros(4)})
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(value)) as source, zipfile.ZipFile(stream, "w") as target:
        for info in source.infolist():
            if info.filename.endswith("data/0"):
                member = zipfile.ZipInfo(info.filename)
                member.compress_type = zipfile.ZIP_DEFLATED
                with target.open(member, "w", force_zip64=True) as stream_of_member:
                    for _ in range(2048):
                        stream_of_member.write(bytes(2**20))
            else:
                target.writestr(info, source.read(info))
    return stream.getvalue()


def cut(tenth: int) -> bytes:
    whole = zipped(state())
    return whole[: len(whole) * tenth // 10]


def flipped(place_in_file: float) -> bytes:
    whole = bytearray(zipped(state()))
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        sizes = [(info.file_size, info.header_offset, info.filename) for info in archive.infolist()]
    size, offset, name = max(entry for entry in sizes if "/data/" in entry[2])
    at = whole.index(name.encode(), offset) + len(name)
    extra = int.from_bytes(whole[offset + 28 : offset + 30], "little")
    whole[at + extra + int(size * place_in_file)] ^= 16
    return bytes(whole)


def zero_tail(share: float) -> bytes:
    whole = zipped(state())
    kept = int(len(whole) * share)
    return whole[:kept] + bytes(len(whole) - kept)


# --- safetensors ---------------------------------------------------------------------------------


def safetensors(header: object, body: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def described(shape: list[int], end: int, *, kind: str = "F32", start: int = 0) -> dict[str, Any]:
    return {"w": {"dtype": kind, "shape": shape, "data_offsets": [start, end]}}


def two_over_each_other() -> bytes:
    header = {**described([4], 16), "v": {"dtype": "F32", "shape": [4], "data_offsets": [8, 24]}}
    return safetensors(header, bytes(24))


# --- runs ----------------------------------------------------------------------------------------


def _run(change: Callable[[Any, Place], None], command: str, place: Place) -> list[str]:
    run = place.model()
    change(run, place)
    pictures = [str(place.data / "cat" / "0.png")] if command == "predict" else []
    return [command, str(run), *pictures]


def in_run(
    item: str, text: str, change: Callable[[Any, Place], None], *says: str, command: str = "predict"
) -> Row:
    """A run directory that somebody changed."""
    return Row(item, text, functools.partial(_run, change, command), 4, says)


def edit_json(name: str, **changes: object) -> Callable[[Any, Place], None]:
    def change(run: Any, _: Place) -> None:
        value = json.loads((run / name).read_text(encoding="utf-8"))
        (run / name).write_text(json.dumps({**value, **changes}), encoding="utf-8")

    return change


def put(name: str, content: Callable[[Place], bytes]) -> Callable[[Any, Place], None]:
    return lambda run, place: (run / name).write_bytes(content(place)) and None


def only(name: str, content: Callable[[Place], bytes]) -> Callable[[Any, Place], None]:
    """The file in place of all checkpoints."""

    def change(run: Any, place: Place) -> None:
        for old in run.glob("*.ckpt"):
            old.unlink()
        (run / name).write_bytes(content(place))

    return change


def link_outside(name: str) -> Callable[[Any, Place], None]:
    def change(run: Any, place: Place) -> None:
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(place.secret)

    return change


def results_outside(place: Place) -> list[str]:
    run = place.model()
    for name in ("evaluation.json", "predictions.csv", "gallery.json", "predictions.png"):
        for link in (name, f".{name}.part"):
            link_outside(link)(run, place)
    return ["evaluate", str(run)]


def edit_header(**changes: object) -> Callable[[Any, Place], None]:
    """Change what ``model.safetensors`` says of itself, with a checksum that fits."""

    def change(run: Any, _: Place) -> None:
        file = run / "model.safetensors"
        whole = file.read_bytes()
        size = int.from_bytes(whole[:8], "little")
        header = json.loads(whole[8 : 8 + size])
        metadata = header["__metadata__"]
        description = {**json.loads(metadata["fieldmark"]), **changes, FIELD: BLANK}
        metadata["fieldmark"] = json.dumps(description)
        text = json.dumps(header).encode()
        file.write_bytes(seal(struct.pack("<Q", len(text)) + text + whole[8 + size :]))

    return change


def edit_weights(value: float) -> Callable[[Any, Place], None]:
    """Set every weight of the model to a value, with a checksum that fits."""

    def change(run: Any, place: Place) -> None:
        edit_header()(run, place)
        file = run / "model.safetensors"
        whole = file.read_bytes()
        start = 8 + int.from_bytes(whole[:8], "little")
        body = np.full((len(whole) - start) // 4, value, "<f4").tobytes()
        metadata = json.loads(whole[8:start])["__metadata__"]["fieldmark"]
        old = json.loads(metadata)[FIELD]
        file.write_bytes(seal(whole[:start].replace(old.encode(), BLANK.encode()) + body))

    return change


def edit_input(**changes: object) -> Callable[[Any, Place], None]:
    """Change what the model says of its input."""

    def change(run: Any, place: Place) -> None:
        before = json.loads((run / "model.json").read_text(encoding="utf-8"))["input"]
        edit_header(input={**before, **changes})(run, place)

    return change


def _empty_zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("readme.txt", "pictures")
    return stream.getvalue()


EMPTY_ZIP = _empty_zip()
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9040\n"


def pointer_as_model(place: Place) -> list[str]:
    (place.given / "model.onnx").write_bytes(POINTER)
    return ["predict", str(place.given / "model.onnx"), str(place.given)]


class _OwnSettings:
    """A class that the program which reads a checkpoint does not have."""


def with_settings(_: Place) -> bytes:
    return zipped({"state_dict": state(), "args": argparse.Namespace(lr=1), "own": _OwnSettings()})


def whole_network(_: Place) -> bytes:
    return zipped(models.create("small_cnn(width=2)", num_classes=2, weights="none").module)


def weights_without_model(place: Place) -> list[str]:
    """The weights name the network: nothing else does."""
    run = place.model()
    return ["train", str(place.data), *TRAIN[4:], "--weights", str(run), "--preview"]


def _name_in_manifest(run: Any, name: str) -> None:
    """Let the manifest name another file as one of the run's pictures, and vouch for that."""
    data = json.loads((run / "data.json").read_text(encoding="utf-8"))
    data["parts"]["test"][0][0] = name
    parts = {part: manifest._part(rows) for part, rows in data["parts"].items()}
    data["fingerprint"] = fingerprint(parts)
    (run / "data.json").write_text(json.dumps(data), encoding="utf-8")


def traversing(run: Any, place: Place) -> None:
    _name_in_manifest(run, os.path.relpath(place.secret, place.data))


def absolute(run: Any, place: Place) -> None:
    _name_in_manifest(run, str(place.secret))


def model_is_a_pipe(run: Any, _: Place) -> None:
    (run / "model.safetensors").unlink()
    os.mkfifo(run / "model.safetensors")


def _gallery(place: Place, **changes: str) -> list[str]:
    """Ask for the page of a run whose gallery has been written by somebody else."""
    run = place.model()
    (run / "report.html").unlink()
    file = run / "gallery.json"
    value = json.loads(file.read_text(encoding="utf-8"))
    item = {**(value["mistakes"] + value["correct"])[0], "predicted": "another"}
    value["mistakes"] = [{**item, **changes}]
    file.write_text(json.dumps(value), encoding="utf-8")
    return ["report", str(run)]


def gallery_with_markup(place: Place) -> list[str]:
    return _gallery(place, file="<script>alert(1)</script>", label='"><img src=x onerror=alert(1)>')


def gallery_with_a_page(place: Place) -> list[str]:
    return _gallery(place, mime="text/html", thumb="PHNjcmlwdD4=")


def no_page(place: Place, _: Answer) -> bool:
    return not (place.runs / "model" / "report.html").exists()


def page_is_inert(place: Place, _: Answer) -> bool:
    text = (place.runs / "model" / "report.html").read_text(encoding="utf-8")
    return "<script" not in text and "<img src=x" not in text and "text/html" not in text


# --- Keras, ONNX ---------------------------------------------------------------------------------


def _keras(name: str, place: Place) -> list[str]:
    suffix = name.rpartition("_")[2]
    many, keras_files.MAX_OBJECTS = keras_files.MAX_OBJECTS, min(60_000, keras_files.MAX_OBJECTS)
    try:
        keras.MAKERS[name](place.given / f"file.{suffix}", place.secret)
    finally:
        keras_files.MAX_OBJECTS = many
    words = ("--model", keras.SPEC, "--classes", "cat", "dog")
    return [
        *("import-keras", str(place.given / f"file.{suffix}"), *words),
        *("--out", str(place.runs / "new")),
    ]


def keras_rows() -> tuple[Row, ...]:
    return tuple(
        Row(
            "37" if name.endswith("h5") else "38",
            f"{name.rpartition('_')[0].replace('_', ' ')} (.{name.rpartition('_')[2]})",
            functools.partial(_keras, name),
            4,
            ("file.",),
        )
        for name in keras.MAKERS
    )


def keras_order(place: Place) -> list[str]:
    """Classes 1, 10, 2 in the order that Keras gives folders, which is Python's."""
    file = place.given / "ten.keras"
    file.write_bytes(keras.good(".keras", classes=3))
    place.classes(**{"1": 1, "10": 1, "2": 1})
    words = ("--model", keras.SPEC, "--classes", str(place.data))
    return ["import-keras", str(file), *words, "--out", str(place.runs / "new")]


def in_kerass_order(place: Place, _: Answer) -> bool:
    return bool(place.new("model.json")["class_names"] == ["1", "10", "2"])


def _onnx(change: str, place: Place) -> list[str]:
    from tests import test_runtime

    graph = test_runtime.model()
    getattr(test_runtime, change)(graph)
    file = place.given / "model.onnx"
    file.write_bytes(graph.SerializeToString())
    place.classes(cat=1)
    return ["predict", str(file), str(place.data / "cat" / "0.png")]


def onnx(text: str, change: str, *says: str) -> Row:
    return Row("39", text, functools.partial(_onnx, change), 4, ("model.onnx", *says))


def onnx_of_noise(place: Place) -> list[str]:
    (place.given / "model.onnx").write_bytes(np.random.default_rng(0).bytes(5000))
    return ["predict", str(place.given / "model.onnx"), str(place.given)]


# --- other ways in -------------------------------------------------------------------------------


def special(path: str, place: Place) -> list[str]:
    place.classes(cat=9, dog=9)
    return place.look("--weights", path)


def weights_pipe(place: Place) -> list[str]:
    os.mkfifo(place.given / "w.pth")
    return special(str(place.given / "w.pth"), place)


def weights_folder(place: Place) -> list[str]:
    return special(str(place.given), place)


def other_head(_: Place) -> bytes:
    network = models.create("small_cnn(width=2)", num_classes=7, weights="none", size=8)
    return save(network.module.state_dict())


def first() -> str:
    return next(name for name in state() if name.endswith("weight"))


def changed(make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Place], bytes]:
    """Good weights but for the first kernel, as a .pth file."""
    return lambda _: zipped(state(**{first(): make(state()[first()])}))


def enormous_list() -> bytes:
    return b"\x80\x02" + b"]" + b"q\0h\0a" * 400_000 + b"."


ONE, BOTH = ("predict",), ("predict", "serve")

ROWS = (
    *(
        refused(
            "34",
            f"a pickle that calls os.system, as {name}",
            name,
            lambda p: zipped({"w": Runs(p.canary)}),
            WRONG,
            ".safetensors",
        )
        for name in ("evil.pt", "evil.pth", "evil.bin", "evil.ckpt")
    ),
    refused(
        "34",
        "the same in the format before zip",
        "old.pth",
        lambda p: unzipped({"w": Runs(p.canary)}),
        WRONG,
    ),
    refused(
        "34", "the same as a bare pickle", "bare.pth", lambda p: pickle.dumps(Runs(p.canary)), WRONG
    ),
    refused(
        "34",
        "the same called .safetensors",
        "evil.safetensors",
        lambda p: zipped({"w": Runs(p.canary)}),
        "not a safetensors file",
    ),
    refused("34", "the same in the tar of old times", "tar.pth", old_tar, WRONG),
    refused(
        "34",
        "a pickle that sets an item of a list",
        "list.pth",
        data(lambda: edited_zip(lambda _: b"\x80\x02]K\x01K\x02s.")),
        WRONG,
    ),
    refused(
        "34",
        "a storage that claims more than it has",
        "storage.pth",
        data(lambda: edited_zip(lambda old: old.replace(b"K\x04t", b"K\xfft"))),
        WRONG,
    ),
    refused(
        "34",
        "a tensor larger than its storage",
        "view.pth",
        data(lambda: edited_zip(lambda old: old.replace(b"K\x04\x85", b"J\xff\xff\xff\x7f\x85"))),
        WRONG,
    ),
    refused(
        "34",
        "a pickle that asks for builtins.eval",
        "eval.pth",
        data(lambda: edited_zip(lambda _: b"\x80\x02cbuiltins\neval\nX\x01\0\0\x001\x85R.")),
        WRONG,
    ),
    refused(
        "34",
        "400,000 references to itself",
        "self.pth",
        data(lambda: edited_zip(lambda _: enormous_list())),
        "self.pth",
    ),
    refused("34", "a storage of 2 GB compressed to 2 MB", "bomb.pth", data(compressed), "bomb.pth"),
    refused("34", "two members of one name", "twice.pth", data(twice_in_zip), "twice"),
    *(
        refused(
            "35",
            f"weights cut after {tenth} tenths",
            "cut.pth",
            data(functools.partial(cut, tenth)),
            slow=tenth not in (0, 5, 9),
        )
        for tenth in range(10)
    ),
    *(
        refused(
            "35",
            f"a bit flipped at {share:.0%} of a tensor",
            "flip.pth",
            data(functools.partial(flipped, share)),
            "checksum",
        )
        for share in (0.0, 0.5, 0.99)
    ),
    *(
        refused(
            "35",
            f"zeros from {share:.0%} on",
            "tail.pth",
            data(functools.partial(zero_tail, share)),
        )
        for share in (0.3, 0.6, 0.9)
    ),
    refused(
        "36",
        "weights of another network",
        "other.safetensors",
        data(lambda: save({"conv.weight": torch.zeros(3, 3)})),
        "does not fit the network",
        "the network has",
        "--model",
    ),
    taken(
        "36",
        "weights for other classes",
        "seven.safetensors",
        other_head,
        "is for other classes and starts fresh",
    ),
    in_run(
        "36",
        "a run of a newer version",
        edit_json("config.json", format=999),
        "config.json",
        "format 999",
    ),
    in_run(
        "36",
        "a model of a newer version",
        edit_header(format=999),
        "model.safetensors",
        "newer fieldmark",
    ),
    in_run(
        "36",
        "a model with a class more than outputs",
        edit_header(class_names=["a", "b", "c"]),
        "model.safetensors",
        "does not fit",
    ),
    in_run(
        "36",
        "a model that is said to be another network",
        edit_header(model="cifar_resnet(depth=20)"),
        "model.safetensors",
        "does not fit",
    ),
    refused(
        "+",
        "a safetensors header of 2^63 bytes",
        "h.safetensors",
        data(lambda: safetensors({}, length=2**63 - 1)),
        "not a safetensors file",
    ),
    refused(
        "+",
        "a safetensors header that is no JSON",
        "h.safetensors",
        data(lambda: safetensors(b"{'w'")),
        "not a safetensors file",
    ),
    refused(
        "+",
        "safetensors of 4 TB in 100 bytes",
        "h.safetensors",
        data(lambda: safetensors(described([2**40], 2**42))),
        "not a safetensors file",
    ),
    refused(
        "+",
        "safetensors over each other",
        "h.safetensors",
        data(two_over_each_other),
        "not a safetensors file",
    ),
    refused(
        "+",
        "safetensors whose shape and bytes differ",
        "h.safetensors",
        data(lambda: safetensors(described([9], 16), bytes(16))),
        "not a safetensors file",
    ),
    refused(
        "+",
        "bytes after the last of the safetensors",
        "h.safetensors",
        data(lambda: save(state()) + b"x"),
        "not a safetensors file",
    ),
    refused(
        "+", "an empty file as weights", "none.safetensors", data(bytes), "not a safetensors file"
    ),
    refused("+", "an empty file as .pth", "none.pth", data(bytes), WRONG),
    refused("+", "weights with NaN", "nan.pth", changed(lambda t: t * float("nan")), "not finite"),
    refused(
        "+", "weights as whole numbers", "int.pth", changed(lambda t: t.to(torch.int8)), "int8"
    ),
    refused(
        "+",
        "weights as complex numbers",
        "complex.pth",
        changed(lambda t: t.to(torch.complex64)),
        "complex64",
    ),
    refused("+", "a sparse tensor", "sparse.pth", changed(lambda t: t.to_sparse()), "sparse"),
    refused(
        "+",
        "a list in place of named tensors",
        "list.pth",
        data(lambda: zipped([torch.zeros(1)])),
        "not named tensors",
    ),
    refused("+", "no tensor at all", "text.pth", data(lambda: zipped({"a": "b"})), "no tensors"),
    refused("+", "weights left in Git LFS", "lfs.pth", lambda _: POINTER, "git lfs pull"),
    refused("+", "the same as .safetensors", "lfs.safetensors", lambda _: POINTER, "git lfs pull"),
    refused("+", "the same as .h5", "lfs.h5", lambda _: POINTER, "git lfs pull"),
    refused(
        "+",
        "a web page in place of weights",
        "page.pth",
        lambda _: b"<!DOCTYPE html><html>",
        "an HTML page",
    ),
    refused("+", "an archive in place of weights", "w.pth", lambda _: EMPTY_ZIP, "a zip archive"),
    taken("+", "weights beside settings of any class", "s.pth", with_settings, "file: s.pth"),
    taken("+", "a network saved whole", "whole.pt", whole_network, "file: whole.pt"),
    taken(
        "+",
        "safetensors called .pth",
        "st.pth",
        lambda _: save(state()),
        "does not say which classes its head is for",
    ),
    Row(
        "+",
        "the weights of a run, without --model",
        weights_without_model,
        0,
        ("network and size are those of the weights: small_cnn(width=2), 8 px",),
    ),
    Row("+", "--weights /dev/zero", functools.partial(special, "/dev/zero"), 4, ("/dev/zero",)),
    Row("+", "--weights is a pipe", weights_pipe, 4, ("w.pth",)),
    Row("+", "--weights is a folder of anything", weights_folder, 4, ("given",)),
    in_run("+", "a run whose model is a pipe", model_is_a_pipe, "model.safetensors"),
    in_run(
        "+",
        "a run whose model is an empty file",
        put("model.safetensors", lambda _: b""),
        "model.safetensors",
    ),
    in_run(
        "+",
        "a run that names a network of gigabytes",
        edit_header(model="small_cnn(width=4096)"),
        "model.safetensors",
        "does not fit",
    ),
    in_run(
        "+",
        "a run that names a network of somebody's repository",
        edit_header(model="timm/hf_hub:evil/model"),
        "model.safetensors",
    ),
    in_run(
        "+",
        "a run whose temperature is negative",
        edit_header(temperature=-1.0),
        "model.safetensors",
    ),
    in_run(
        "+",
        "a run whose classes are numbers in a list",
        edit_header(class_names=[[1], {}]),
        "model.safetensors",
    ),
    *(
        in_run("+", f"a run {text}, {command}", change, *says, command=command)
        for commands, text, change, says in (
            (ONE, "whose weights are NaN", edit_weights(float("nan")), ("not finite",)),
            (BOTH, "whose weights are too large", edit_weights(3e38), ("not finite",)),
            (ONE, "with a deviation of 1e-320", edit_input(std=[1e-320] * 3), ("input.std",)),
            (ONE, "with a mean of texts", edit_input(mean=["0", "0", "0"]), ("input.mean",)),
            (BOTH, "of 8 px that says 4096", edit_input(size=4096), ("4096 px", "with 8")),
        )
        for command in commands
    ),
    in_run(
        "+",
        "a run whose weights are NaN, evaluate",
        edit_weights(float("nan")),
        "not finite",
        command="evaluate",
    ),
    in_run(
        "+", "a run whose temperature is 1e-320", edit_header(temperature=1e-320), "temperature"
    ),
    in_run("+", "a run whose crop is 1e-300", edit_input(crop=1e-300), "input.crop"),
    in_run(
        "+",
        "a run whose model was left in Git LFS",
        put("model.safetensors", lambda _: POINTER),
        "model.safetensors",
        "git lfs pull",
    ),
    in_run(
        "+",
        "a run with a class twice",
        edit_header(class_names=["cat", "cat"]),
        "model.safetensors",
    ),
    in_run(
        "+",
        "a run whose input is of 10^9 px",
        edit_header(input={"size": 10**9}),
        "model.safetensors",
    ),
    in_run(
        "+",
        "config.json with NaN",
        put("config.json", lambda _: b'{"format": 1, "lr": NaN}'),
        "config.json",
        "NaN",
    ),
    in_run(
        "+",
        "config.json with a key twice",
        put("config.json", lambda _: b'{"format": 1, "format": 1}'),
        "config.json",
        "twice",
    ),
    in_run(
        "+",
        "config.json 100,000 lists deep",
        put("config.json", lambda _: b'{"a":' + b"[" * 100_000),
        "config.json",
    ),
    in_run(
        "+",
        "config.json in UTF-16",
        put("config.json", lambda _: "{}".encode("utf-16")),
        "config.json",
    ),
    in_run(
        "+",
        "config.json is a list",
        put("config.json", lambda _: b"[]"),
        "config.json",
        "JSON object",
    ),
    in_run(
        "+",
        "config.json with a number of 5000 digits",
        put("config.json", lambda _: b'{"format": ' + b"9" * 5000 + b"}"),
        "config.json",
    ),
    in_run(
        "+",
        "a manifest that names a picture outside by ../",
        traversing,
        "data.json",
        command="evaluate",
    ),
    in_run(
        "+",
        "a manifest that names a picture outside by its path",
        absolute,
        "data.json",
        command="evaluate",
    ),
    in_run(
        "+",
        "a manifest without parts",
        edit_json("data.json", parts=None),
        "data.json",
        command="evaluate",
    ),
    in_run(
        "+",
        "a manifest with parts that are texts",
        edit_json("data.json", parts={"test": ["ab"], "val": [[1]]}),
        "data.json",
        command="evaluate",
    ),
    in_run(
        "+",
        "a manifest with labels beyond the classes",
        edit_json("data.json", class_names=["cat"]),
        "data.json",
        command="evaluate",
    ),
    *(
        in_run("+", f"a run whose {name} is a link", link_outside(name), name, command=command)
        for name in (".lock", "log.txt")
        for command in ("evaluate", "resume")
    ),
    Row(
        "+",
        "a run whose parts and results are links",
        results_outside,
        0,
        (),
        "what they name is as it was",
        lambda place, _: place.secret.read_bytes() == picture(9999),
    ),
    in_run(
        "34",
        "a checkpoint in a run that calls os.system, with a checksum that fits",
        put("last.ckpt", lambda p: (bad := zipped({"w": Runs(p.canary)})) + tail(bad)),
        "last.ckpt",
        command="resume",
    ),
    in_run(
        "34",
        "such a checkpoint without a checksum, and nothing before it",
        only("last.ckpt", lambda p: zipped({"w": Runs(p.canary)})),
        "last.ckpt",
        command="resume",
    ),
    in_run(
        "+",
        "metrics.jsonl with Infinity",
        put("metrics.jsonl", lambda _: b'{"epoch": Infinity}\n'),
        "metrics.jsonl",
        command="report",
    ),
    in_run(
        "+",
        "scores that are texts",
        edit_json("evaluation.json", parts={"test": "good"}),
        "evaluation.json: parts.test is 'good', but must be an object",
        command="report",
    ),
    Row(
        "16",
        "a gallery with markup",
        gallery_with_markup,
        0,
        ("report.html",),
        "the page holds none of it",
        page_is_inert,
    ),
    Row(
        "16",
        "a gallery with a page as a picture",
        gallery_with_a_page,
        4,
        ("gallery.json", "mime is 'text/html'"),
        "no page is written",
        no_page,
    ),
    Row(
        "8",
        "Keras weights of classes 1, 10, 2",
        keras_order,
        0,
        (),
        "in the order 1, 10, 2",
        in_kerass_order,
    ),
    *keras_rows(),
    onnx("ONNX with weights in /etc/passwd", "outside", "weights in other files"),
    onnx("the same, hidden in a branch", "hidden_outside", "weights in other files"),
    onnx("ONNX with operators of its author", "own_operators", "com.example"),
    onnx("ONNX with functions", "functions", "functions"),
    onnx("ONNX of 2^80 numbers", "enormous"),
    onnx("ONNX with graphs in graphs", "deep", "graphs in graphs"),
    onnx("ONNX with a loop of 2^62 rounds", "endless", "no loops"),
    onnx("ONNX with a constant of 32 GB", "huge_constant", "cannot be computed"),
    onnx("ONNX that expands to an impossible shape", "bad_expand"),
    onnx("ONNX that expands to 4 TB", "huge_expand", "cannot be computed"),
    onnx("ONNX that adds to 256 GB", "outer_sum", "cannot be computed"),
    onnx("ONNX whose texts grow", "long_text", "texts"),
    onnx("ONNX with weights that are not finite", "weights_not_finite", "no probabilities"),
    Row("+", "an ONNX file left in Git LFS", pointer_as_model, 4, ("model.onnx", "git lfs pull")),
    onnx("an ONNX file of another program", "foreign", "not written by"),
    onnx("an ONNX file of a newer version", "other_version", "version"),
    Row("39", "5000 bytes of noise called .onnx", onnx_of_noise, 4, ("model.onnx",)),
)
