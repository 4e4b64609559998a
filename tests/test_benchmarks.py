"""The machinery of ``benchmarks/``: turns, ratios, tables, peers that are missing, one tiny run."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from benchmarks import pictures, processes, results, tables
from benchmarks.__main__ import BENCHMARKS, PAGE, main
from benchmarks.machine import KINDS, kind, lacks, machine, versions
from benchmarks.measure import (
    Benchmark,
    Contender,
    Finding,
    Measured,
    Options,
    Results,
    Round,
    Skipped,
    at_least,
    at_most,
    conclude,
    figure,
    interleave,
    ratio,
)
from benchmarks.processes import ROOT, Failed, Missing, TooLong
from fieldmark.errors import ConfigError

FAST, SLOW = "fast", "slow"
RATE = "images/s"


def contender(name: str, values: list[float], log: list[str]) -> Contender:
    def measure(number: int) -> Measured:
        log.append(f"{name} {number}")
        return Measured({RATE: values[number]}, [(1.0, values[number])])

    return Contender(name, measure)


def refusing(name: str, error: Exception) -> Contender:
    def measure(number: int) -> Measured:
        raise error

    return Contender(name, measure)


def run(contenders: list[Contender], repeats: int, found: Results | None = None) -> Results:
    found = found or Results([], {})
    interleave(contenders, repeats, results=found, after=lambda r: None, say=lambda text: None)
    return found


def rates(found: Results) -> dict[str, list[float]]:
    """The rates of all rounds by contender."""
    names = {name for one in found.rounds for name in one.measured}
    return {
        name: [one.of(name, RATE) for one in found.rounds if name in one.measured] for name in names
    }


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A benchmark of two contenders, in the table of benchmarks, that counts its measurements."""
    log: list[str] = []

    def prepare(options: Options, scratch: Path) -> Benchmark:
        assert scratch.is_dir()
        return Benchmark(
            [contender(FAST, [30.0, 40.0, 50.0], log), contender(SLOW, [10.0, 10.0, 10.0], log)],
            [ratio(FAST, SLOW, RATE, goal=at_least(3.5))],
            ["Read this."],
        )

    made = SimpleNamespace(__doc__="Two contenders.\n\nHow.", REPEATS=3, prepare=prepare, log=log)
    monkeypatch.setitem(BENCHMARKS, "tiny", made)
    return made


# --- turns and ratios ----------------------------------------------------------------------------


def test_contenders_take_turns() -> None:
    log: list[str] = []
    run([contender("a", [1, 2], log), contender("b", [1, 2], log)], 2)
    assert log == ["a 0", "b 0", "a 1", "b 1"]


def test_a_ratio_is_taken_within_a_round_and_only_then_the_median() -> None:
    rounds = [
        Round({FAST: Measured({RATE: fast}), SLOW: Measured({RATE: slow})})
        for fast, slow in ((10.0, 1.0), (40.0, 2.0), (30.0, 10.0))
    ]
    (found,) = conclude([ratio(FAST, SLOW, RATE, goal=at_least(11))], rounds)
    assert found["values"] == [10.0, 20.0, 3.0]
    assert found["median"] == 10.0 != 30.0 / 2.0
    assert (found["goal"], found["met"]) == ("at least 11", False)


def test_a_mean_stands_where_it_is_asked_for() -> None:
    rounds = [Round({FAST: Measured({RATE: value})}) for value in (1.0, 2.0, 6.0)]
    (found,) = conclude([figure("f", FAST, RATE, goal=at_most(2.5), by="mean")], rounds)
    assert found["mean"] == 3.0
    assert found["met"] is False
    assert tables._finding_cell(found) == "3 (1 to 6), n = 3, missed"


def test_rounds_without_a_figure_have_no_ratio() -> None:
    rounds = [
        Round({FAST: Measured({RATE: 2.0})}),
        Round({FAST: Measured({RATE: 2.0}), SLOW: Measured({RATE: 1.0})}),
    ]
    (found,) = conclude([ratio(FAST, SLOW, RATE)], rounds)
    assert found["values"] == [2.0]
    (none,) = conclude([ratio(FAST, "nobody", RATE, goal=at_least(1))], rounds)
    assert (none["values"], none["median"], none["met"]) == ([], None, None)


def test_the_best_of_several_leaves_out_those_that_gave_nothing() -> None:
    one = Round({FAST: Measured({RATE: 3.0}), SLOW: Measured({"seconds": 1.0})})
    assert one.all_of([FAST, SLOW, "nobody"], RATE) == [3.0]
    with pytest.raises(KeyError):
        one.all_of([SLOW], RATE)


def test_a_contender_that_fails_is_asked_once_and_named() -> None:
    log: list[str] = []
    found = run([refusing("b", Missing("not installed: No module named 'b'")),
                 contender("a", [1.0, 2.0], log)], 2)  # fmt: skip
    assert [set(one.measured) for one in found.rounds] == [{"a"}, {"a"}]
    assert found.errors == {"b": "not installed: No module named 'b'"}
    assert rates(found) == {"a": [1.0, 2.0]}


def test_an_error_of_the_benchmark_itself_is_not_swallowed() -> None:
    with pytest.raises(ZeroDivisionError):
        run([refusing("a", ZeroDivisionError())], 1)


def test_what_was_measured_is_kept_and_the_rest_is_measured() -> None:
    log: list[str] = []
    found = Results([Round({"a": Measured({RATE: 7.0})})], {})
    run([contender("a", [1.0, 2.0], log), contender("b", [3.0, 4.0], log)], 2, found)
    assert log == ["b 0", "a 1", "b 1"]
    assert rates(found) == {"a": [7.0, 2.0], "b": [3.0, 4.0]}


# --- processes -----------------------------------------------------------------------------------


def python(code: str) -> processes.Ran:
    return processes.run([sys.executable, "-c", code])


def test_a_command_tells_its_time_its_memory_and_its_words() -> None:
    # Asked from a small process, as the command is: a child's peak begins with its parent's size.
    program = """
import sys
from benchmarks import processes
for code in ("print('x')", "import time; x = b'1' * 200_000_000; time.sleep(0.1)", "pass"):
    ran = processes.run([sys.executable, "-c", code])
    print(ran.seconds, ran.peak_mb, ran.stdout.strip())
"""
    lines = python(program).stdout.splitlines()
    (_, small, said), (seconds, large), (_, last) = (line.split() for line in lines)
    assert said == "x"
    assert float(seconds) > 0.1
    assert 150 < float(large) - float(small) < 300  # each its own, not the largest so far
    assert float(last) < float(small) + 50


def test_a_missing_module_is_told_from_a_failure() -> None:
    with pytest.raises(Missing, match=r"^not installed: No module named 'nonsense'$"):
        python("import nonsense")
    with pytest.raises(Failed, match=r"^failed: ValueError: no a\.jpg$"):
        python("raise ValueError('no /some/where/a.jpg')")
    with pytest.raises(Failed, match="ended with status 3"):
        python("raise SystemExit(3)")


def test_a_command_that_takes_too_long_is_stopped() -> None:
    with pytest.raises(TooLong, match=r"^over 0\.2 s$"):
        processes.run([sys.executable, "-c", "import time; time.sleep(60)"], limit_s=0.2)


def test_a_command_that_does_not_end_when_asked_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.2)
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    with pytest.raises(TooLong):
        processes.run([sys.executable, "-c", code], limit_s=0.3)


def test_a_program_that_says_nothing_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    ran = processes.Ran(1.0, 1.0, "a warning\nno figures\n")
    monkeypatch.setattr(processes, "run", lambda argv, **rest: ran)
    with pytest.raises(Failed, match="nobody gave no figures: no figures"):
        processes.program("nobody")


def test_paths_lose_all_but_their_last_part() -> None:
    assert processes.anonymous("no '/a/b.c/d.jpg' in ~/x/y") == "no 'd.jpg' in y"
    assert processes.anonymous("1/2 of images/s, C:\\u\\v.txt") == "1/2 of images/s, v.txt"


# --- results and the page ------------------------------------------------------------------------


def tiny(folder: Path, *, quick: bool = False, on: str = "") -> Path:
    """Where the results of the benchmark of two contenders are."""
    return results.path_of("tiny", quick=quick, kind=on or kind(), folder=folder)


def stored(folder: Path, module: Any, **options: Any) -> dict[str, Any]:
    asked = Options(2, **options)
    file = tiny(folder, quick=asked.quick)
    benchmark = module.prepare(asked, folder)
    found = run(list(benchmark.contenders), asked.repeats)
    results.store(file, "tiny", asked, benchmark, found)
    return results.load(file)


def test_a_result_says_what_it_was_measured_with(tmp_path: Path, module: ModuleType) -> None:
    value = stored(tmp_path, module)
    assert value["machine"] == machine()
    assert value["machine"]["cores"] >= 1
    assert value["machine"]["processor"]
    assert value["versions"]["fieldmark"] == versions()["fieldmark"]
    assert [one[FAST]["figures"][RATE] for one in value["rounds"]] == [30.0, 40.0]
    assert value["findings"][0]["values"] == [3.0, 4.0]
    text = json.dumps(value)
    for private in (str(Path.home()), str(tmp_path), str(ROOT)):
        assert private not in text


def test_going_on_gives_back_what_was_stored(tmp_path: Path, module: ModuleType) -> None:
    stored(tmp_path, module)
    found = results.go_on(tiny(tmp_path))
    assert rates(found) == {FAST: [30.0, 40.0], SLOW: [10.0, 10.0]}
    assert found.rounds[0].measured[FAST].curve == [(1.0, 30.0)]
    assert results.go_on(tmp_path / "nothing.json").rounds == []


def test_two_machines_do_not_go_into_one_table(
    tmp_path: Path, module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(tmp_path, module)
    monkeypatch.setattr(results, "versions", lambda: {**versions(), "torch": "1.0"})
    with pytest.raises(ConfigError, match=r"another versions: torch .* then, 1\.0 now.*anew|again"):
        results.go_on(tiny(tmp_path))


def test_the_page_has_the_figures_the_goals_and_the_curves(
    tmp_path: Path, module: ModuleType
) -> None:
    stored(tmp_path, module)
    page = tables.write({"tiny": module}, folder=tmp_path, docs=tmp_path).read_text("utf-8")
    assert "## tiny: Two contenders\n\nHow.\n" in page
    assert f"| fast | {KINDS[kind()]} | 35 (30 to 40) |" in page
    assert "| images/s: fast over slow | at least 3.5 | 3.5x (3 to 4), n = 2, met |" in page
    assert f"- {KINDS[kind()]}: Read this." in page
    assert f"![curves of tiny, {KINDS[kind()]}](benchmark-tiny.{kind()}.svg)" in page
    svg = (tmp_path / f"benchmark-tiny.{kind()}.svg").read_bytes()
    assert b"fast" in svg
    assert svg == tables.draw(results.load(tiny(tmp_path)))


def test_a_missing_peer_is_named_on_the_page(tmp_path: Path) -> None:
    benchmark = Benchmark(
        [contender(FAST, [1.0], []), refusing("peer", Missing("not installed: peer"))],
        [ratio(FAST, "peer", RATE, goal=at_least(2))],
    )
    found = run(list(benchmark.contenders), 1)
    results.store(tmp_path / "x.json", "x", Options(1), benchmark, found)
    text = tables.section([results.load(tmp_path / "x.json")])
    assert f"| peer | {KINDS[kind()]} |  | not installed: peer |" in text
    assert "| images/s: fast over peer | at least 2 | not measured |" in text


def test_quick_figures_stay_off_the_page(tmp_path: Path, module: ModuleType) -> None:
    value = stored(tmp_path, module, quick=True)
    assert value["quick"] is True
    assert not tiny(tmp_path).exists()
    assert "Not measured yet." in tables.page({"tiny": module}, tmp_path)


def test_cells_are_readable() -> None:
    assert tables.spread([]) == ""
    assert tables.spread([1234.5]) == "1,234"
    assert tables.spread([0.123456, 2.0], "s") == "1.062 s (0.1235 to 2)"
    assert tables.table(["", "a", "b"], [["x", "", "1|2"]]) == (
        "|  | b |\n| --- | --- |\n| x | 1\\|2 |\n"
    )


def test_the_page_in_the_repository_is_that_of_the_results() -> None:
    assert (tables.DOCS / "benchmarks.md").read_text("utf-8") == tables.page(PAGE)


# --- pictures ------------------------------------------------------------------------------------


def coloured(out: Path, *, train: int, test: int) -> None:
    """Pictures of two classes, as many as said in each part."""
    for part, count in (("train", train), ("test", test)):
        for number in range(count):
            label = ("cat", "dog")[number % 2]
            place = out / part / label
            place.mkdir(parents=True, exist_ok=True)
            colour = (number % 256, 90 if label == "cat" else 10, 200)
            Image.new("RGB", (32, 32), colour).save(place / f"{number:03}.jpg")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """DIR with cifar10-jpeg in it."""
    coloured(tmp_path / "data" / "cifar10-jpeg", train=12, test=6)
    return tmp_path / "data"


def test_a_part_of_the_pictures_is_the_same_every_time(folder: Path, tmp_path: Path) -> None:
    source = folder / "cifar10-jpeg"
    taken = [
        sorted(
            path.relative_to(out).as_posix()
            for path in pictures.some(source, out, train=5, test=2).rglob("*.jpg")
        )
        for out in (tmp_path / "a", tmp_path / "b")
    ]
    assert taken[0] == taken[1]
    assert sorted(Path(name).parent.as_posix() for name in taken[0]) == (
        ["test/cat", "test/dog"] + 3 * ["train/cat"] + 2 * ["train/dog"]
    )
    with pytest.raises(ConfigError, match=r"cifar10-jpeg/train/cat has 6 pictures.*takes 7"):
        pictures.some(source, tmp_path / "c", train=14, test=2)


def test_pictures_that_are_not_there_are_asked_for(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"give --data DIR.*flowers/train/CLASS"):
        pictures.real(Options(1), "flowers")
    with pytest.raises(ConfigError, match=r"must be a folder with flowers/train"):
        pictures.real(Options(1, data=folder), "flowers")
    assert pictures.real(Options(1, data=folder), "cifar10-jpeg").is_dir()


def test_synthetic_pictures_are_the_same_every_time_and_differ(tmp_path: Path) -> None:
    sizes = [pictures.synthetic(tmp_path / name, 12, classes=3) for name in ("a", "b")]
    files = [sorted((tmp_path / name).rglob("*.jpg")) for name in ("a", "b")]
    contents = [[file.read_bytes() for file in some] for some in files]
    assert sizes[0] == sizes[1]
    assert contents[0] == contents[1]
    assert len(set(contents[0])) == 12
    shapes = []
    for file in files[0]:
        with Image.open(file) as image:
            shapes.append(image.size)
    assert sum(3 * width * height for width, height in shapes) == sizes[0]
    assert {file.relative_to(tmp_path / "a").parts[:2] for file in files[0]} == {
        (part, f"class{k}") for part in ("train", "test") for k in range(3)
    }


# --- the command ---------------------------------------------------------------------------------


def test_benchmarks_are_listed_and_documented(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [*PAGE, "table"]
    for name, module in PAGE.items():
        title, description = tables.documented(module)
        assert title and description, name
    assert all(module.REPEATS >= 3 for module in BENCHMARKS.values())


def test_listing_imports_no_torch() -> None:
    code = (
        "import sys, benchmarks.__main__\n"
        "print(sorted({'torch', 'timm', 'tensorflow', 'matplotlib'} & set(sys.modules)))"
    )
    assert python(code).stdout.strip() == "[]"


def test_the_command_measures_stores_and_goes_on(
    tmp_path: Path, module: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tiny", "--results", str(tmp_path)]
    assert main([*words, "--repeats", "2", "--only", "fa"]) == 0
    assert module.log == ["fast 0", "fast 1"]
    assert f"| slow | {KINDS[kind()]} |  | not asked |" in capsys.readouterr().out
    assert main([*words, "--go-on"]) == 0
    assert module.log[2:] == ["slow 0", "slow 1", "fast 2", "slow 2"]
    out = capsys.readouterr().out
    assert "| images/s: fast over slow | at least 3.5 | 4x (3 to 5), n = 3, met |" in out
    assert main([*words, "--quick"]) == 0
    assert len(results.load(tiny(tmp_path, quick=True))["rounds"]) == 1


def test_wrong_words_are_refused(
    module: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, told in (
        (["startupp"], "did you mean 'startup'"),
        (["tiny", "--repeats", "-1"], "--repeats is -1"),
        (["tiny", "--only", "keras"], "nothing is called 'keras' (known: fast; slow)"),
        (["tutorial"], "give --data DIR"),
    ):
        assert main([*words, "--results", str(tmp_path)]) == 2, words
        assert told in capsys.readouterr().err
    assert module.log == []


def test_a_benchmark_that_measured_nothing_says_so(
    tmp_path: Path, module: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    only = Benchmark([refusing("peer", Failed("failed: OSError: no"))], [])
    module.prepare = lambda options, scratch: only
    assert main(["tiny", "--quick", "--results", str(tmp_path)]) == 1
    assert f"| peer | {KINDS[kind()]} | failed: OSError: no |" in capsys.readouterr().out


def test_a_benchmark_of_what_is_not_there_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fieldmark.settings.recipes import RECIPES

    for name, recipe in (("step", "fast-cifar10"), ("transfer", "probe")):
        monkeypatch.delitem(RECIPES, recipe, raising=False)
        with pytest.raises(Skipped, match=f"no recipe {recipe}"):
            BENCHMARKS[name].prepare(Options(1), tmp_path)
        assert main([name, "--results", str(tmp_path)]) == 1
        assert capsys.readouterr().err.startswith("skipped: ")


def test_a_benchmark_runs_as_a_command(tmp_path: Path) -> None:
    """Real programs in processes of their own; OpenCV is a peer that may be missing."""
    coloured(tmp_path / "cifar10-jpeg", train=200, test=100)
    coloured(tmp_path / "flowers", train=40, test=20)
    words = ["loading", "--quick", "--data", str(tmp_path), "--results", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *words, "--only", "pillow", "opencv"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    value = results.load(results.path_of("loading", quick=True, kind=kind(), folder=tmp_path))
    (one,) = value["rounds"]
    assert one["pillow, one thread"]["figures"]["images/s"] > 0
    missing = "not installed: No module named 'cv2'"
    assert "opencv, one thread" in one or value["errors"]["opencv, one thread"] == missing
    assert "| fieldmark |" in done.stdout


# --- kinds of machine ----------------------------------------------------------------------------


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes this machine one whose processor can what is named, and nothing else."""
    from fieldmark.machine import device, tune

    def become(*names: str, gpu: bool = False) -> None:
        for place in (device, tune):
            monkeypatch.setattr(place, "capabilities", lambda: dict.fromkeys(names, True))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "a GPU")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda name: (9, 0))

    return become


def test_a_machine_is_of_the_kind_that_computes_fastest(processor: Callable[..., None]) -> None:
    avx512 = ("avx2", "avx512_f")
    for names, expected, bf16 in (
        (("avx2",), "avx2", False),
        (avx512, "avx512", False),
        ((*avx512, "avx512_bf16"), "avx512-bf16", True),
        ((*avx512, "avx512_bf16", "amx_bf16"), "amx", True),
        (("bf16",), "other", True),
        ((), "other", False),
    ):
        processor(*names)
        assert kind() == machine()["kind"] == expected, names
        assert bool(lacks(["bf16"])) is not bf16, names
        assert lacks(["processor"]) == ""
    processor("avx2", gpu=True)
    assert (kind(), machine()["gpu"]) == ("gpu", "a GPU")
    assert lacks(["bf16"]) == ""
    assert "CUDA_VISIBLE_DEVICES" in lacks(["processor"])


def half(log: list[str]) -> Benchmark:
    """A contender in bf16, and one that needs nothing."""
    return Benchmark(
        [
            Contender(FAST, contender(FAST, [9.0], log).measure, ("bf16",)),
            contender(SLOW, [3.0], log),
        ],
        [
            ratio(FAST, SLOW, RATE, goal=at_least(2), needs=("bf16",)),
            figure("slow", SLOW, RATE, goal=at_least(1)),
            figure("slow, as half of it", SLOW, RATE, goal=at_least(5), needs=("bf16",)),
        ],
    )


def test_what_a_processor_lacks_is_not_measured_and_the_page_says_so_side_by_side(
    tmp_path: Path, processor: Callable[..., None]
) -> None:
    log: list[str] = []
    for names in (("avx2",), ("avx512_f", "avx512_bf16")):
        processor(*names)
        made = half(log)
        results.store(tiny(tmp_path), "tiny", Options(1), made, run(list(made.contenders), 1))
    assert log == ["slow 0", "fast 0", "slow 0"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "tiny.avx2.json",
        "tiny.avx512-bf16.json",
    ]
    text = tables.section(results.of_all_kinds("tiny", tmp_path))
    assert "| fast | AVX2 |  | skipped: " in text
    assert "does not multiply bf16 (AVX2)" in text
    assert "| fast | AVX-512 with bf16 | 9 |  |" in text
    assert "| ratio | goal | AVX2 | AVX-512 with bf16 |" in text
    assert "fast over slow | at least 2 | not on this machine | 3x, n = 1, met |" in text
    assert "| slow | at least 1 | 3, n = 1, met | 3, n = 1, met |" in text
    assert "half of it | at least 5 | 3, n = 1, no goal here | 3, n = 1, missed |" in text


def test_benchmarks_in_bf16_leave_it_out_where_it_is_emulated(
    folder: Path, tmp_path: Path, processor: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    processor("avx2")
    monkeypatch.setattr(pictures, "some", lambda source, out, **counts: source)
    for name in ("tutorial", "step", "cifar10"):
        made = BENCHMARKS[name].prepare(Options(1, quick=True, data=folder), tmp_path)
        left_out = [one.name for one in made.contenders if lacks(one.needs)]
        assert left_out == [
            one.name for one in made.contenders if "bf16" in one.name or "airbench" in one.name
        ]
        assert left_out
        for finding in made.findings:
            if any(word in finding.what for word in left_out):
                assert lacks(finding.needs), finding.what


def test_figures_of_a_finding_are_medians() -> None:
    finding = Finding("f", lambda one: one.of(FAST, RATE), at_most(2))
    rounds = [Round({FAST: Measured({RATE: value})}) for value in (3.0, 1.0, 2.0)]
    (found,) = conclude([finding], rounds)
    assert found["median"] == statistics.median([3.0, 1.0, 2.0])
    assert found["met"] is True
