"""What is exported answers as the run does, or is not written."""

from __future__ import annotations

import copy
import dataclasses
import getpass
import json
import platform
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fieldmark
from fieldmark import runtime
from fieldmark.cli import _run, app
from fieldmark.errors import ConfigError, MissingExtraError, RunError, WeightsError
from fieldmark.pictures.inputs import InputSpec
from fieldmark.runs.directory import RunDirectory
from fieldmark.runs.model import Model

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import onnx
import onnxruntime
from onnx import TensorProto, helper

from fieldmark import export as exporting
from fieldmark.export import gate, onnx_file, preprocessing
from fieldmark.export.nodes import Nodes


def colours(root: Path) -> Path:
    """Three classes of small pictures, of sizes that differ."""
    rng = np.random.default_rng(1)
    for k, name in enumerate(("red", "grün", "蓝")):
        (root / name).mkdir(parents=True)
        for i in range(30):
            image = rng.integers(0, 160, (*rng.integers(9, 40, 2), 3))
            image[..., k] += 60
            Image.fromarray(image.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> fieldmark.Run:
    return fieldmark.train(
        colours(tmp_path_factory.mktemp("data") / "colours"),
        model="small_cnn(width=4)",
        size=16,
        epochs=2,
        out=tmp_path_factory.mktemp("runs") / "colours",
        resize="crop",
        interpolation="bicubic",
        lr=0.02,
        progress=False,
    )


@pytest.fixture(scope="module")
def network(run: fieldmark.Run) -> onnx.ModelProto:
    return onnx_file.network(RunDirectory(run.path).load_model())


@pytest.fixture
def quick(network: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing a network takes seconds; once is enough."""
    monkeypatch.setattr(onnx_file, "network", lambda model: copy.deepcopy(network))


# --- the fitting of pictures in the graph --------------------------------------------------------


def fitting(spec: InputSpec) -> onnxruntime.InferenceSession:
    nodes = Nodes("fit")
    values = preprocessing.preprocess(nodes.value("picture", np.uint8), spec)
    graph = helper.make_graph(
        nodes.nodes,
        "fitting",
        [helper.make_tensor_value_info("picture", TensorProto.UINT8, ["N", "H", "W", 3])],
        [helper.make_tensor_value_info(values.name, TensorProto.FLOAT, ["N", 3, None, None])],
        nodes.constants,
    )
    opsets = [helper.make_opsetid("", onnx_file.OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=onnx_file.IR_VERSION)
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )


SIDES = [
    (240, 320), (320, 240), (20, 20), (1, 300), (300, 1), (32, 32), (1, 1), (64, 64), (48, 48),
    (101, 47), (47, 101), (33, 32), (32, 33), (500, 333), (31, 900),
]  # fmt: skip


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_fitting_is_pillows_to_the_last_bit(resize: str, interpolation: str) -> None:
    rng = np.random.default_rng(3)
    for size, crop in ((32, 0.875), (45, 1.0)):
        spec = InputSpec(
            size=size,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            interpolation=interpolation,
            resize=resize,
            crop=crop,
        )
        session = fitting(spec)
        for height, width in SIDES:
            noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            extremes = (noise > 127).astype(np.uint8) * 255
            pair = np.stack([noise, extremes])
            expected = np.stack([spec.pixels(picture) for picture in pair])
            normal = spec.normalize(torch.from_numpy(expected)).numpy()
            assert np.array_equal(session.run(None, {"picture": pair})[0], normal), (height, width)


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_resizing_as_keras_is_the_same_in_the_graph(resize: str) -> None:
    """But for the places in a picture, which Keras has in float32 and the graph in float64."""
    rng = np.random.default_rng(3)
    spec = InputSpec(
        size=45, mean=(0, 0, 0), std=(1 / 255, 1 / 255, 1 / 255),
        interpolation="keras_bilinear", resize=resize, crop=0.9,
    )  # fmt: skip
    session = fitting(spec)
    for height, width in SIDES:
        pair = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
        expected = np.stack([spec.pixels(picture) for picture in pair])
        found = session.run(None, {"picture": pair})[0]
        np.testing.assert_allclose(found, expected, rtol=0, atol=0.03, err_msg=f"{height}x{width}")


# --- ONNX ----------------------------------------------------------------------------------------


def odd_pictures(folder: Path) -> list[Path]:
    """EXIF 1 to 8, every mode, strips, a dot, an enlarged one."""
    folder.mkdir()
    rng = np.random.default_rng(5)
    rgb = Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8))
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = turn
        rgb.save(folder / f"turn{turn}.jpg", exif=exif)
    for mode in ("L", "LA", "P", "RGBA", "1"):
        rgb.convert(mode).save(folder / f"{mode}.png")
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    sixteen = rng.integers(0, 65536, (40, 60), dtype=np.uint16)
    Image.fromarray(sixteen).save(folder / "sixteen.png")
    for name, size in {
        "wide": (300, 100),
        "tall": (100, 300),
        "dot": (1, 1),
        "20": (20, 20),
    }.items():
        rgb.resize(size).save(folder / f"{name}.webp", lossless=True)
    rgb.resize((1200, 900)).save(folder / "enlarged.jpg")
    return sorted(folder.iterdir())


def test_the_file_answers_as_the_run(run: fieldmark.Run, quick: None, tmp_path: Path) -> None:
    file = run.export(tmp_path / "model.onnx", to="onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    pictures = odd_pictures(tmp_path / "odd")
    classifier = runtime.load(file, threads=1)
    assert classifier.class_names == run.class_names
    for ours, theirs in zip(run.predict(pictures), classifier.predict(pictures), strict=True):
        assert ours.error == theirs.error == ""
        assert (ours.file, ours.label) == (theirs.file, theirs.label)
        found = dict(theirs.top)
        assert max(abs(prob - found[name]) for name, prob in ours.top) < 1e-5


def test_the_file_stands_alone_and_says_nothing_personal(
    run: fieldmark.Run, quick: None, tmp_path: Path
) -> None:
    data = run.export(tmp_path / "model.onnx", to="onnx").read_bytes()
    graph = onnx.load_from_string(data)
    onnx.checker.check_model(graph, full_check=True)
    assert graph.ir_version <= 8
    assert [(o.domain, o.version) for o in graph.opset_import] == [("", 18)]
    assert not {node.op_type for node in graph.graph.node} & {"BatchNormalization"}
    metadata = {entry.key: json.loads(entry.value) for entry in graph.metadata_props}
    assert metadata["fieldmark"] == RunDirectory(run.path).read_json("model.json")
    assert set(metadata["fieldmark_export"]) == {
        "format", "fieldmark", "config", "precision", "max_pixels",
    }  # fmt: skip
    for secret in (str(run.path), str(Path.home()), "site-packages"):
        assert secret.encode() not in data
    for name in (platform.node(), getpass.getuser()):
        assert len(name) <= 4 or name.encode() not in data  # a short one is there by chance


def test_another_interpolation_is_noticed_and_nothing_is_written(
    run: fieldmark.Run, quick: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(picture: object, spec: InputSpec) -> object:
        changed = dataclasses.replace(spec, interpolation="bilinear")
        return preprocessing.preprocess(picture, changed)

    there = tmp_path / "model.onnx"
    there.write_bytes(b"what was there")
    monkeypatch.setattr(onnx_file, "preprocess", other)
    with pytest.raises(WeightsError, match="was not written") as caught:
        run.export(there, to="onnx")
    assert caught.value.exit_code == 4
    assert there.read_bytes() == b"what was there"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_pictures_that_are_gone_are_replaced_and_that_is_told(
    run: fieldmark.Run, quick: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "elsewhere" / "deep" / "run"
    shutil.copytree(run.path, moved)
    out = tmp_path / "model.onnx"
    words = ["export", str(moved), "--to", "onnx", "--out", str(out), "--json"]
    assert _run(lambda: app(words, exit_on_error=False, result_action="return_value")) == 0
    told = capsys.readouterr()
    value = json.loads(told.out)
    assert value["file"] == str(out)
    assert value["check"]["made_up"] is True
    assert value["check"]["same_label"] == value["check"]["pictures"] == 24
    assert "made-up pictures" in told.err
    with pytest.raises(RunError, match="--int8"):
        exporting.export(moved, out, to="onnx", int8=True)


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_less_precision_is_judged_by_accuracy(
    run: fieldmark.Run, quick: None, tmp_path: Path, precision: str
) -> None:
    out = tmp_path / "model.onnx"
    made = exporting.export(run.path, out, to="onnx", **{precision: True})
    assert made.verdict is not None and made.verdict.change is not None
    change = made.verdict.change
    assert change["low"] <= change["value"] <= change["high"]
    stored = RunDirectory(run.path).read_json("data.json")["parts"]["val"]
    assert made.verdict.pictures == len(stored)
    assert "95 % interval" in "\n".join(made.verdict.lines())
    assert runtime.load(out).exported["precision"] == precision
    types = {tensor.data_type for tensor in onnx.load(out).graph.initializer}
    assert {"int8": TensorProto.INT8, "fp16": TensorProto.FLOAT16}[precision] in types
    picture = np.full((30, 20, 3), (250, 0, 0), np.uint8)
    (ours,), (theirs,) = run.predict(picture), runtime.load(out).predict(picture)
    assert abs(ours.prob - theirs.prob) < {"int8": 0.1, "fp16": 0.01}[precision]


# --- the gate ------------------------------------------------------------------------------------


@pytest.fixture
def model(run: fieldmark.Run) -> Model:
    return RunDirectory(run.path).load_model()


def test_equal_answers_pass_and_close_ones_are_listed(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = gate.made_up(16)
    close = np.tile([0.40001, 0.4, 0.19999], (24, 1))
    monkeypatch.setattr(gate, "_both", lambda *_: (close, close[:, [1, 0, 2]]))
    verdict = gate.equal(model, lambda _: close, pictures, what="m", tolerance=1e-4)
    assert len(verdict.close) == verdict.pictures == 24
    assert verdict.agreeing == 0
    assert "within 0.0001 of each other: made up 1" in verdict.lines()[-1]
    with pytest.raises(WeightsError, match=r"24 of 24 .*made up 1"):
        gate.equal(model, lambda _: close, pictures, what="m", tolerance=1e-6)


@pytest.mark.parametrize("wrong", [0.5, np.nan])
def test_a_single_probability_that_differs_fails(model: Model, wrong: float) -> None:
    pictures = gate.made_up(16)
    right = gate._both(model, lambda block: np.zeros((len(block), 3)), pictures)[0]
    rows = iter(right)
    spoilt = right.copy()
    spoilt[7, 0] = wrong
    bad = iter(spoilt)
    gate.equal(model, lambda b: np.stack([next(rows) for _ in b]), pictures, what="m", tolerance=0)
    with pytest.raises(WeightsError, match="largest difference"):
        gate.equal(
            model, lambda b: np.stack([next(bad) for _ in b]), pictures, what="m", tolerance=1e-4
        )


def test_a_loss_of_accuracy_that_is_no_chance_fails(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = np.arange(300) % 3
    right = np.eye(3)[truth]
    black = np.zeros((1, 1, 3), np.uint8)
    pictures = gate.Sample(tuple(map(str, range(300))), truth, lambda key: black)

    def with_errors(count: int) -> gate.Verdict:
        theirs = right.copy()
        theirs[:count] = np.roll(theirs[:count], 1, axis=1)
        monkeypatch.setattr(gate, "_both", lambda *_: (right, theirs))
        return gate.as_good(model, lambda _: theirs, pictures, what="m")

    assert with_errors(2).change == pytest.approx(
        {"before": 1.0, "after": 298 / 300, "value": -2 / 300, "low": -0.02, "high": 0.007},
        abs=0.01,
    )
    with pytest.raises(WeightsError, match=r"accuracy 0\.9000 instead of 1\.0000"):
        with_errors(30)


# --- timm, OpenVINO, Keras, and what is refused --------------------------------------------------


def test_the_folder_for_timm_loads_there(tmp_path: Path) -> None:
    import timm

    run = fieldmark.train(
        colours(tmp_path / "colours"),
        model="timm/test_resnet",
        weights="none",
        size=32,
        epochs=1,
        out=tmp_path / "run",
        progress=False,
    )
    folder = run.export(tmp_path / "there", to="timm")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    module = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert tuple(module.pretrained_cfg["label_names"]) == run.class_names
    assert module.num_classes == 3
    pictures = odd_pictures(tmp_path / "odd")
    data = timm.data.resolve_model_data_config(module)
    transform = timm.data.create_transform(**data)
    for answer, path in zip(run.predict(pictures), pictures, strict=True):
        image = Image.fromarray(fieldmark.pictures.decode.decode_file(path)[0])
        with torch.inference_mode():
            probs = module(transform(image)[None]).softmax(1)[0]
        assert run.class_names[int(probs.argmax())] == answer.label
        assert abs(float(probs.max()) - answer.prob) < 5e-3
    with pytest.raises(ConfigError, match="there already"):
        run.export(folder, to="timm")


def test_a_network_of_our_own_is_none_of_timms(run: fieldmark.Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fieldmark's own network"):
        run.export(tmp_path / "there", to="timm")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_openvino_answers_as_the_run(run: fieldmark.Run, quick: None, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    folder = run.export(tmp_path / "there", to="openvino")
    assert sorted(path.name for path in folder.iterdir()) == ["model.bin", "model.xml"]
    model = openvino.Core().read_model(folder / "model.xml")
    stored = json.loads(model.get_rt_info("fieldmark").astype(str))
    assert tuple(stored["class_names"]) == run.class_names


def test_keras_goes_the_same_way(run: fieldmark.Run, tmp_path: Path) -> None:
    pytest.importorskip("h5py")
    assert run.export(tmp_path / "model.keras", to="keras").is_file()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"to": "onxx"}, r"no export format 'onxx'; did you mean 'onnx'\?"),
        ({"to": "timm", "int8": True}, "no effect on timm"),
        ({"to": "keras", "fp16": True}, "no effect on keras"),
        ({"to": "onnx", "int8": True, "fp16": True}, "two precisions"),
        ({"to": "onnx", "out": "model.bin"}, "ends in '.bin'"),
        ({"to": "onnx", "out": "no/model.onnx"}, "is not there"),
    ],
)
def test_settings_that_cannot_be_used(
    run: fieldmark.Run, options: dict[str, object], match: str, tmp_path: Path
) -> None:
    options["out"] = tmp_path / str(options.get("out", "model.onnx"))
    with pytest.raises(ConfigError, match=match):
        run.export(**options)


def test_a_missing_package_is_named_before_anything_is_done(
    run: fieldmark.Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(exporting, "_PACKAGES", {"onnx": ("no_such_package",)})
    with pytest.raises(MissingExtraError, match=r"no_such_package.*fieldmark\[onnx\]"):
        run.export(tmp_path / "model.onnx", to="onnx")


@pytest.mark.parametrize("views", [pytest.param("flip", marks=pytest.mark.slow), "flip_shift"])
def test_views_are_averaged_in_the_graph(
    run: fieldmark.Run,
    network: onnx.ModelProto,
    tmp_path: Path,
    views: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    viewed = RunDirectory(tmp_path / "run")
    model = viewed.load_model()
    spec = dataclasses.replace(model.info.input, views=views)
    viewed.save_model(model.module.state_dict(), dataclasses.replace(model.info, input=spec))
    made = exporting.export(viewed.path, tmp_path / "m.onnx", to="onnx")
    assert made.verdict is not None and not made.verdict.made_up and made.verdict.largest < 1e-4
    with monkeypatch.context() as patch:
        patch.setattr(onnx_file, "network", lambda model: copy.deepcopy(network))
        plain = exporting.export(run.path, tmp_path / "plain.onnx", to="onnx")
    picture = np.random.default_rng(3).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    both = [runtime.load(m.path).probabilities([picture]) for m in (made, plain)]
    assert np.abs(both[0] - both[1]).max() > 1e-5  # the views do count; they differ by 1e-7 else
    for to in ("timm", "keras"):
        with pytest.raises(ConfigError, match="views"):
            exporting.export(viewed.path, tmp_path / to, to=to)
