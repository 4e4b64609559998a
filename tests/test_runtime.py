"""Answers from an ONNX file without torch, and the files that are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx
from onnx import TensorProto, helper, numpy_helper

from fieldmark import runtime
from fieldmark.cli import _run, app
from fieldmark.errors import DataError, ResourceError, RunError
from fieldmark.export import onnx_file
from fieldmark.jobs import predict
from fieldmark.pictures.inputs import InputSpec
from fieldmark.pictures.limits import PictureLimits
from fieldmark.runs.model import ModelInfo, Selected

NAMES = ("red", "grün", "蓝")
SPEC = InputSpec(size=12, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), resize="crop")
TEMPERATURE = 0.5


def network() -> onnx.ModelProto:
    """Logits are four times a picture's mean red, green and blue."""
    weights = numpy_helper.from_array(4 * np.eye(3, dtype=np.float32), "weights")
    axes = numpy_helper.from_array(np.array([2, 3]), "axes")
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0),
            helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
        ],
        "network",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 3, 12, 12])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [weights, axes],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def model() -> onnx.ModelProto:
    info = ModelInfo(
        model="small_cnn",
        input=SPEC,
        class_names=NAMES,
        temperature=TEMPERATURE,
        selected=Selected(epoch=1, metric="last"),
        weights="none",
        num_params=9,
    )
    facts = onnx_file.facts("{}", precision="f32", limits=PictureLimits(1_000_000))
    return onnx_file.whole(network(), info, facts=facts)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(model().SerializeToString())
    return path


def picture(k: int, height: int = 20, width: int = 30) -> np.ndarray:
    pixels = np.random.default_rng(k).integers(0, 120, (height, width, 3))
    pixels[..., k % 3] += 90
    return pixels.astype(np.uint8)


def wanted(pixels: np.ndarray) -> np.ndarray:
    logits = 4 * SPEC.pixels(pixels).mean(axis=(1, 2)) / 255 / TEMPERATURE
    return np.exp(logits) / np.exp(logits).sum()


def test_probabilities_are_softmax_of_what_the_network_says_of_the_fitted_picture(
    file: Path,
) -> None:
    classifier = runtime.load(file, threads=1)
    assert (classifier.class_names, classifier.input) == (NAMES, SPEC)
    pictures = [picture(0), picture(1, 50, 9), picture(2), picture(3, 12, 12)]
    found = classifier.probabilities(pictures)
    assert np.abs(found - [wanted(p) for p in pictures]).max() < 1e-6
    for k, answer in enumerate(classifier.predict(pictures)):
        assert (answer.file, answer.label) == (f"#{k}", NAMES[k % 3])
        assert abs(sum(prob for _, prob in answer.top) - 1) < 1e-6


def test_files_and_folders_are_answered_as_predict_does(file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    Image.fromarray(picture(1)).save(folder / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(2)).save(folder / "b.jpg", quality=95, exif=exif)
    (folder / "c.jpg").write_bytes(b"no picture")
    Image.new("RGB", (1001, 1000)).save(folder / "d.png")
    first, second, bad, large = runtime.load(file, threads=2).predict(folder, top=2)
    assert (first.label, second.label) == ("grün", "蓝")
    assert len(first.top) == 2
    assert "not a picture" in bad.error
    assert "too many pixels" in large.error
    assert isinstance(first, predict.Prediction)
    with pytest.raises(DataError, match="no pictures were given"):
        runtime.load(file).predict([])


def test_class_names_are_an_output_for_languages_without_metadata(file: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    probabilities, names = session.run(None, {"picture": picture(2)[None]})
    assert names.tolist() == list(NAMES)
    assert names[probabilities[0].argmax()] == "蓝"


# Everything but NumPy, Pillow and ONNX Runtime is absent.
ONLY = """
import sys
class Refuse:
    allowed = {"numpy", "PIL", "onnxruntime", "fieldmark", *sys.stdlib_module_names}
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        # what the allowed packages try to import and can do without
        if top not in self.allowed and not top.startswith("_"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
"""


def python(code: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_numpy_pillow_and_onnx_runtime_are_enough(file: Path, tmp_path: Path) -> None:
    Image.fromarray(picture(1)).save(tmp_path / "a.png")
    code = ONLY + (
        "from fieldmark import runtime\n"
        "(answer,) = runtime.load(sys.argv[1]).predict(sys.argv[2])\n"
        "print(answer.label, answer.prob)\n"
    )
    label, prob = python(code, str(file), str(tmp_path / "a.png")).split()
    assert label == "grün"
    assert abs(float(prob) - wanted(picture(1))[1]) < 1e-6


def test_the_command_predicts_without_torch(file: Path, tmp_path: Path) -> None:
    Image.fromarray(picture(0)).save(tmp_path / "a.png")
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from fieldmark.cli import main\n"
        "main(['predict', *sys.argv[1:], '--json'])\n"
    )
    (row,) = json.loads(python(code, str(file), str(tmp_path / "a.png")))
    assert row["label"] == "red"
    assert row["top"][0] == {"label": "red", "prob": row["prob"]}


@pytest.mark.parametrize(
    "words", [["--device", "cuda"], ["--explain", "maps"], ["--engine", "openvino"]]
)
def test_what_only_a_run_can_do_is_refused(
    file: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(file), "x.png", *words]
    assert _run(lambda: app(words, exit_on_error=False, result_action="return_value")) == 2
    assert "error:" in capsys.readouterr().err


# --- files that are refused ----------------------------------------------------------------------


def outside(graph: onnx.ModelProto) -> None:
    tensor = graph.graph.initializer[-1]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="/etc/passwd")


def hidden_outside(graph: onnx.ModelProto) -> None:
    tensor = numpy_helper.from_array(np.zeros(3, np.float32), "hidden")
    tensor.data_location = TensorProto.EXTERNAL
    inner = helper.make_graph([], "inner", [], [], [tensor])
    node = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    graph.graph.node.append(node)


def own_operators(graph: onnx.ModelProto) -> None:
    graph.graph.node[0].domain = "com.example"


def own_opset(graph: onnx.ModelProto) -> None:
    graph.opset_import.append(helper.make_opsetid("com.example", 1))


def functions(graph: onnx.ModelProto) -> None:
    graph.functions.add(name="f", domain="")


def enormous(graph: onnx.ModelProto) -> None:
    graph.graph.initializer[0].dims[:] = [2**40, 2**40]


def negative(graph: onnx.ModelProto) -> None:
    graph.graph.initializer[0].dims[:] = [-1]


def deep(graph: onnx.ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [])
    for _ in range(20):
        node = helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
        node.attribute.pop()
        inner = helper.make_graph([node], "inner", [], [])
    graph.graph.node.extend(inner.node)


def foreign(graph: onnx.ModelProto) -> None:
    del graph.metadata_props[:]


def other_version(graph: onnx.ModelProto) -> None:
    helper.set_model_props(
        graph, {p.key: p.value.replace('"format": 1', '"format": 2') for p in graph.metadata_props}
    )


def other_classes(graph: onnx.ModelProto) -> None:
    helper.set_model_props(
        graph, {p.key: p.value.replace('"red", ', "") for p in graph.metadata_props}
    )


def broken_graph(graph: onnx.ModelProto) -> None:
    graph.graph.node[-2].op_type = "NoSuchOperator"


def _begin(graph: onnx.ModelProto, operator: str, *inputs: np.ndarray, **more: object) -> None:
    """Let the file compute something first, and add its sum to the logits."""
    names = [f"made_{place}" for place in range(len(inputs))]
    for name, values in zip(names, inputs, strict=True):
        graph.graph.initializer.append(numpy_helper.from_array(values, name))
    nodes = [
        helper.make_node(operator, names, ["made"], **more),
        helper.make_node("ReduceSum", ["made"], ["made_sum"], keepdims=0),
    ]
    last = next(node for node in graph.graph.node if node.op_type == "Softmax")
    nodes.append(helper.make_node("Add", [last.input[0], "made_sum"], ["made_logits"]))
    place = list(graph.graph.node).index(last)
    last.input[0] = "made_logits"
    for node in reversed(nodes):
        graph.graph.node.insert(place, node)


def endless(graph: onnx.ModelProto) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, [])],
    )
    graph.graph.initializer.append(numpy_helper.from_array(np.array(2**62), "times"))
    graph.graph.node.append(helper.make_node("Loop", ["times", ""], [], body=body))


def huge_constant(graph: onnx.ModelProto) -> None:
    _begin(graph, "ConstantOfShape", np.array([2**33]))


def bad_expand(graph: onnx.ModelProto) -> None:
    _begin(graph, "Expand", np.ones(3, np.float32), np.array([2**31, -7]))


def huge_expand(graph: onnx.ModelProto) -> None:
    _begin(graph, "Expand", np.ones(1, np.float32), np.array([2**20, 2**20]))


def outer_sum(graph: onnx.ModelProto) -> None:
    _begin(graph, "Add", np.ones((2**18, 1), np.float32), np.ones((1, 2**18), np.float32))


def wide_padding(graph: onnx.ModelProto) -> None:
    _begin(graph, "Pad", np.ones((1, 1), np.float32), np.array([2**17, 2**17, 2**17, 2**17]))


def long_text(graph: onnx.ModelProto) -> None:
    text = helper.make_node("Constant", [], ["text"], value_string="x" * 1000)
    graph.graph.node.insert(0, text)
    graph.graph.node.insert(1, helper.make_node("StringConcat", ["text", "text"], ["longer"]))


def repeated_names(graph: onnx.ModelProto) -> None:
    graph.graph.initializer.append(numpy_helper.from_array(np.array([2**30]), "times"))
    graph.graph.node.append(helper.make_node("Tile", ["class_names", "times"], ["many"]))


def texts_as_weights(graph: onnx.ModelProto) -> None:
    graph.graph.initializer.append(numpy_helper.from_array(np.array(["x"], object), "t"))


def weights_not_finite(graph: onnx.ModelProto) -> None:
    _begin(graph, "Neg", np.full(2, np.nan, np.float32))


def no_probabilities(graph: onnx.ModelProto) -> None:
    last = next(node for node in graph.graph.node if node.op_type == "Softmax")
    last.op_type = "Neg"
    last.ClearField("attribute")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (endless, "no loops"),
        (huge_constant, "cannot be computed"),
        (bad_expand, "cannot be computed|cannot be used"),
        (huge_expand, "cannot be computed"),
        (outer_sum, "cannot be computed"),
        (wide_padding, "cannot be computed"),
        (long_text, "computes with texts"),
        (repeated_names, "computes with texts"),
        (texts_as_weights, "computes with texts"),
        (weights_not_finite, "no probabilities, such as nan"),
        (no_probabilities, "no probabilities, such as -"),
        (outside, "weights in other files"),
        (hidden_outside, "weights in other files"),
        (own_operators, "com.example"),
        (own_opset, "com.example"),
        (functions, "functions"),
        (enormous, "numbers in"),
        (negative, "numbers in"),
        (deep, "graphs in graphs"),
        (foreign, "not written by"),
        (other_version, "version"),
        (other_classes, "probability of every class"),
        (broken_graph, "ONNX Runtime"),
    ],
)
def test_files_that_are_no_export_of_ours_are_refused(
    change: Callable[[onnx.ModelProto], None], match: str
) -> None:
    graph = model()
    change(graph)
    with pytest.raises(RunError, match=match) as caught:
        runtime.open_bytes(graph.SerializeToString(), where="m.onnx")
    assert caught.value.exit_code == 4


def test_a_pointer_of_git_lfs_is_named() -> None:
    with pytest.raises(RunError, match="git lfs pull"):
        runtime.open_bytes(b"version https://git-lfs.github.com/spec/v1\noid", where="m.onnx")


def test_a_file_of_very_many_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "MAX_NODES", 20)
    with pytest.raises(RunError, match="more than 20 operators"):
        runtime.open_bytes(model().SerializeToString(), where="m.onnx")


def test_a_file_of_very_many_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_MANY_FIELDS", 1000)
    with pytest.raises(RunError, match="millions of parts"):
        runtime.check_bytes(b"\x08\x01" * 1001, where="m.onnx")
    with pytest.raises(ValueError, match="dimensions"):
        runtime._whole_numbers(memoryview(b"\x01" * 1001))


def test_a_model_that_takes_too_long_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = model()
    side = np.ones((600, 600), np.float32)
    _begin(graph, "MatMul", side, side)
    names = ["made", *(f"product_{place}" for place in range(60))]
    end = next(node for node in graph.graph.node if "made_sum" in node.output)
    end.input[0] = names[-1]
    place = list(graph.graph.node).index(end)
    for one, other in zip(names[-2::-1], names[:0:-1], strict=True):
        graph.graph.node.insert(place, helper.make_node("MatMul", [one, one], [other]))
    monkeypatch.setattr(runtime, "SECONDS", 0.05)
    with pytest.raises(RunError, match=r"takes more than 0\.055 s"):
        runtime.open_bytes(graph.SerializeToString(), where="m.onnx", threads=1)


def test_a_batch_that_memory_does_not_suffice_for_is_halved(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = runtime.load(file, threads=1)
    session, sizes = classifier._session, []

    class Small:
        def run(self, names: object, inputs: dict[str, np.ndarray], options: object) -> object:
            sizes.append(len(inputs["picture"]))
            if sizes[-1] > 2:
                raise RuntimeError("Available memory of 5 is smaller than requested bytes of 9")
            return session.run(names, inputs, options)

    pictures = [picture(k) for k in range(5)]
    before = classifier.probabilities(pictures)
    monkeypatch.setattr(classifier, "_session", Small())
    assert np.array_equal(classifier.probabilities(pictures), before)
    assert sizes == [5, 2, 3, 1, 2]


def test_damaged_files_are_refused_wherever_they_are_cut() -> None:
    data = model().SerializeToString()
    for end in [0, 1, 2, 3, *range(5, len(data), len(data) // 40), len(data) - 1]:
        with pytest.raises(RunError):
            runtime.open_bytes(data[:end], where="m.onnx")


def test_noise_is_refused_and_nothing_else_is_raised() -> None:
    rng = np.random.default_rng(0)
    data = model().SerializeToString()
    for _ in range(200):
        noisy = bytearray(data)
        for place in rng.integers(0, len(data), 8):
            noisy[place] = rng.integers(0, 256)
        try:
            runtime.check_bytes(bytes(noisy), where="m.onnx")
        except RunError:
            continue
    for size in (1, 10, 1000):
        with pytest.raises(RunError):
            runtime.open_bytes(rng.bytes(size), where="m.onnx")


def test_a_file_that_is_not_there_or_too_large(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ResourceError, match="cannot read"):
        runtime.load(tmp_path / "no.onnx")
    monkeypatch.setattr(runtime, "MAX_BYTES", 100)
    with pytest.raises(RunError, match="2 GB"):
        runtime.load(file)
