"""The house rules that a machine can check: public names, flags, docs, layers, file names."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from types import ModuleType
from typing import Any

import grimp
import pytest

import fieldmark
from fieldmark.settings.config import _CHOICES, GROUPS, TrainConfig, field_docs

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "fieldmark"

# A change here changes what users type or import: do it on purpose, and say so in CHANGELOG.md.
PUBLIC = [
    "Comparison",
    "ConfigError",
    "DataError",
    "DivergedError",
    "FieldmarkError",
    "Interrupted",
    "MissingExtraError",
    "Prediction",
    "ResourceError",
    "Run",
    "RunError",
    "TrainConfig",
    "Tuning",
    "WeightsError",
    "__version__",
    "compare",
    "import_keras",
    "load",
    "resume",
    "train",
    "tune",
]
MOST_USED = " --weights --size --epochs --batch-size --lr --augment --device "
OTHERS = """
    --split --split-seed --balance --no-balance --on-bad --fail-on-leak --no-fail-on-leak
    --max-pixels --range --decode-side --resize --interpolation --normalize
    --mix --progressive --hardest
    --probe --no-probe --freeze --no-freeze --train-from --unfreeze-at-epoch --freeze-after
    --optimizer --weight-decay --l2 --backbone-lr --bias-lr --schedule --warmup-epochs --landing
    --loss
    --label-smoothing --class-weights --clip-norm --ema --norm-statistics --accumulate --last-batch
    --callbacks --seed
    --metrics --monitor --keep --views --whole-batches --no-whole-batches
    --precision --compile --no-compile --channels-last --no-channels-last --threads --memory-gb
    --disk-gb --save-every
"""
# In the order of --help: by group, those most used first.
FLAGS = {
    "compare": "DATA --models --vary --seeds --recipe --out --model"
    + MOST_USED
    + "--json"
    + OTHERS.replace("--seed\n", ""),
    "cache": "--prune --json",
    "export": "RUN --to --out --int8 --fp16 --which --allow-plugin-version --json",
    "import-keras": "FILE --model --classes --out --preprocess --interpolation --mean-picture"
    " --size --json",
    "evaluate": "RUN --data --which --device --max-pixels --allow-plugin-version --json",
    "models": "PATTERN --num-classes --size --json",
    "plugins": "--json",
    "predict": "RUN PICTURES --top --csv --explain --which --device --engine "
    "--max-pixels --allow-plugin-version --json",
    "recipes": "PATTERN --json",
    "report": "RUNS --out --json",
    "resume": "RUN --data --allow-data-change --allow-plugin-version --json",
    "serve": "MODEL --host --port --token --allow-host --batch --queue --root-path --device"
    " --max-pixels --allow-plugin-version",
    "train": "DATA --recipe --out --minutes --model"
    + MOST_USED
    + "--config --from --preview --find-lr --json"
    + OTHERS,
    "tune": "DATA --minutes --over --trials --recipe --out --model" + MOST_USED + "--json" + OTHERS,
}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def project() -> dict[str, Any]:
    return tomllib.loads(read("pyproject.toml"))


def load(name: str) -> ModuleType:
    """One of the project's tools, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def docs() -> ModuleType:
    return load("make_docs")


def python(code: str) -> str:
    """Run code in an interpreter of its own, with warnings as errors."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "COLUMNS": "100"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


# --- public face ---------------------------------------------------------------------------------


def test_public_names_are_pinned() -> None:
    assert fieldmark.__all__ == PUBLIC
    assert dir(fieldmark) == sorted(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_there_and_documented(name: str) -> None:
    value = getattr(fieldmark, name)
    assert name == "__version__" or inspect.getdoc(value)


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        fieldmark.nonsense  # noqa: B018 - the access is the test


def test_every_error_is_a_fieldmark_error_with_an_exit_code() -> None:
    codes = {
        name: getattr(fieldmark, name).exit_code
        for name in PUBLIC
        if name.endswith("Error") and name != "FieldmarkError"
    }
    assert codes == {
        "ConfigError": 2,
        "DataError": 3,
        "RunError": 4,
        "WeightsError": 4,
        "DivergedError": 5,
        "ResourceError": 6,
        "MissingExtraError": 6,
    }
    assert all(issubclass(getattr(fieldmark, n), fieldmark.FieldmarkError) for n in codes)


def test_importing_fieldmark_imports_nothing_heavy() -> None:
    code = (
        "import sys, fieldmark\n"
        "heavy = {'torch', 'torchvision', 'timm', 'numpy', 'PIL', 'matplotlib', 'sklearn'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert python(code).strip() == "[]"


def test_help_of_every_command_without_torch() -> None:
    code = (
        "import sys\n"
        "from fieldmark.cli import main\n"
        f"for words in {[[], *([name] for name in FLAGS)]!r}:\n"
        "    try:\n"
        "        main([*words, '--help'])\n"
        "    except SystemExit as stop:\n"
        "        assert stop.code == 0, (words, stop.code)\n"
        "print(sorted({'torch', 'torchvision', 'timm', 'matplotlib'} & set(sys.modules)))"
    )
    out = python(code)
    assert out.splitlines()[-1] == "[]"
    for name in FLAGS:
        assert f"fieldmark {name}" in out


def test_commands_and_flags_are_pinned(docs: ModuleType) -> None:
    assert docs.commands() == sorted(FLAGS)
    for command, wanted in FLAGS.items():
        names = [name for argument in docs.flags(command) for name in argument.names]
        assert names == wanted.split(), command


def test_every_flag_has_help(docs: ModuleType) -> None:
    for command in FLAGS:
        assert not [a.name for a in docs.flags(command) if not a.parameter.help]


def test_every_setting_is_documented_and_a_flag() -> None:
    names = list(TrainConfig.__dataclass_fields__)
    assert list(field_docs()) == names
    settings = f"--model {MOST_USED} {OTHERS}".split()
    flags = [flag for flag in settings if not flag.startswith("--no-")]
    assert sorted(flags) == sorted("--" + name.replace("_", "-") for name in names)


def test_every_setting_is_in_one_group() -> None:
    grouped = [name for names in GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(TrainConfig.__dataclass_fields__)
    assert len(next(iter(GROUPS.values()))) + len(("recipe", "out")) == 10


def test_the_most_used_flags_come_first_in_help() -> None:
    titles = re.findall(r"^╭─ (.*?) ─+╮$", python(HELP_OF_TRAIN), re.MULTILINE)
    first, *others = GROUPS
    assert titles == ["Arguments", first, "Other flags of the command", *others]


HELP_OF_TRAIN = """
from fieldmark.cli import main
main(["train", "--help"])
"""


def test_help_names_every_word_of_the_tables() -> None:
    """Written by hand, because the tables import torch, and compared with them here."""
    from fieldmark.augment import AUGMENTS, MIXES
    from fieldmark.fit.callbacks import CALLBACKS, MONITORS
    from fieldmark.fit.optimizers import OPTIMIZERS
    from fieldmark.fit.schedules import SCHEDULES

    tables = {
        "augment": AUGMENTS,
        "mix": MIXES,
        "optimizer": OPTIMIZERS,
        "schedule": SCHEDULES,
        "callbacks": CALLBACKS,
        "monitor": MONITORS,
    }
    for name, words in tables.items():
        text = re.sub(r"\B'.*?'", "", field_docs()[name])  # without examples
        *_, listed = text.split(": ")
        found = re.findall(r"\w+", listed)
        assert [word for word in found if word in words] == list(words), name
        assert set(found) <= {*words, "none", "or", "both", "such", "as", "for"}, name
    for name, choices in _CHOICES.items():
        assert set(choices) <= set(re.findall(r"\w+", field_docs()[name])), name


def test_the_exit_codes_are_listed_everywhere(docs: ModuleType) -> None:
    kinds = [getattr(fieldmark, name) for name in PUBLIC if name.endswith("Error")]
    stops = [128 + number for number in (1, 2, 15)]  # SIGHUP, SIGINT, SIGTERM
    wanted = sorted({0, *(kind.exit_code for kind in kinds), *stops})
    for text in (docs.EXIT_CODES, read("README.md")):
        rows = re.findall(r"^\| ([\d, ]+) \|", text, re.MULTILINE)
        assert [int(code) for row in rows for code in row.split(", ")] == wanted


def test_the_version_is_the_installed_one_and_in_the_changelog() -> None:
    from importlib import metadata

    assert metadata.version("fieldmark") == fieldmark.__version__
    assert f"## [{fieldmark.__version__}]" in read("CHANGELOG.md")


# --- tables --------------------------------------------------------------------------------------


def entries() -> Iterator[tuple[str, Callable[..., Any]]]:
    from fieldmark.augment import AUGMENTS, MIXES
    from fieldmark.fit.callbacks import CALLBACKS
    from fieldmark.fit.losses import LOSSES
    from fieldmark.fit.optimizers import OPTIMIZERS
    from fieldmark.fit.schedules import SCHEDULES
    from fieldmark.models import MODELS
    from fieldmark.scoring.named import METRICS
    from fieldmark.settings.recipes import RECIPES

    for table in (AUGMENTS, MIXES, CALLBACKS, LOSSES, METRICS, OPTIMIZERS, SCHEDULES, RECIPES):
        yield from table.items()
    for name, family in MODELS.items():
        yield name, family.build


def test_every_table_entry_says_what_it_is_in_its_first_line() -> None:
    for name, function in entries():
        first = (inspect.getdoc(function) or "").partition("\n")[0]
        assert len(first) > 10 and first.endswith("."), f"{name}: {first!r}"


def test_table_names_are_the_functions_names() -> None:
    assert [(n, f.__name__) for n, f in entries() if n.replace("-", "_") != f.__name__] == []


# --- documents -----------------------------------------------------------------------------------


def test_generated_pages_are_current(docs: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert docs.main(["--check"]) == 0, capsys.readouterr().out


def test_check_of_generated_pages_notices_a_change(
    docs: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(docs, "DOCS", tmp_path)
    assert docs.main([]) == 0
    assert docs.main(["--check"]) == 0
    page = tmp_path / "settings.md"
    page.write_text(page.read_text(encoding="utf-8").replace("`epochs`", "`rounds`"), "utf-8")
    assert docs.main(["--check"]) == 1
    assert "make docs" in capsys.readouterr().out


def tree() -> list[str]:
    """The paths in the annotated file tree; two spaces of indentation a level."""
    page = read("docs/architecture.md")
    block = re.search(r"## Files\n.*?```\n(.*?)```", page, re.DOTALL)
    assert block is not None, "docs/architecture.md has no tree under '## Files'"
    paths, folders = [], [""]
    for line in block.group(1).splitlines():
        depth, rest = divmod(len(line) - len(line.lstrip()), 2)
        assert rest == 0, line
        name, _, about = line.strip().partition("  ")
        assert about.strip(), f"nothing is said of {name}"
        path = folders[depth] + name
        paths.append(path)
        if name.endswith("/"):
            folders[depth + 1 :] = [path]
    return paths


def test_the_tree_is_true() -> None:
    named = tree()
    assert [p for p in named if not (ROOT / p).exists()] == []
    assert [p for p in named if p.endswith("/") != (ROOT / p).is_dir()] == []
    assert len(named) == len(set(named))


def test_the_tree_names_every_module() -> None:
    named = set(tree())
    missing = []
    for file in PACKAGE.rglob("*.py"):
        path = file.relative_to(ROOT).as_posix()
        package = file.name == "__init__.py" and file.parent != PACKAGE
        if (path.removesuffix("__init__.py") if package else path) not in named:
            missing.append(path)
    assert missing == []


def test_the_tree_names_what_lies_at_the_top() -> None:
    named = {path.partition("/")[0] for path in tree()}
    assert {Path(p).parts[0] for p in tracked()} - named == {".gitignore"}


def test_links_between_documents_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_layers_in_the_docs_are_those_that_are_enforced() -> None:
    (contract,) = project()["tool"]["importlinter"]["contracts"]
    enforced = [layer.replace("fieldmark.", "") for layer in contract["layers"]]
    block = re.search(r"## Layers\n.*?```\n(.*?)```", read("docs/architecture.md"), re.DOTALL)
    assert block is not None
    assert block.group(1).splitlines() == enforced


def test_every_module_has_a_layer() -> None:
    (contract,) = project()["tool"]["importlinter"]["contracts"]
    layered = set(re.findall(r"fieldmark\.(\w+)", " ".join(contract["layers"])))
    modules = {p.stem for p in PACKAGE.glob("*.py")} | {
        p.parent.name for p in PACKAGE.glob("*/*.py")
    }
    assert modules - {"__init__", "__main__"} == layered


def test_no_modules_import_each_other() -> None:
    """Imports inside functions count, too."""
    graph = grimp.build_graph("fieldmark", cache_dir=None)
    assert len(graph.modules) > 100
    imports = {name: graph.find_modules_directly_imported_by(name) for name in graph.modules}
    TopologicalSorter(imports).prepare()  # CycleError names the modules


def test_few_files_lie_beside_the_packages() -> None:
    assert len([file for file in PACKAGE.iterdir() if file.is_file()]) <= 12


def test_limits_of_pictures_travel_as_one_value() -> None:
    """Not as numbers of their own, from function to function behind the user's face."""
    apart = {"max_pixels", "decode_side", "at_least"}
    lines = [
        f"{file.name}:{argument.lineno}"
        for file in PACKAGE.rglob("*.py")
        if file.name not in ("api.py", "cli.py")
        and any(name in (text := file.read_text(encoding="utf-8")) for name in apart)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.arguments)
        for argument in (*node.posonlyargs, *node.args, *node.kwonlyargs)
        if argument.arg in apart
    ]
    assert len(lines) <= 8, lines


def test_every_dependency_is_accounted_for() -> None:
    text = read("docs/dependencies.md")
    listed = project()["project"]
    wanted = [
        re.split(r"[^\w-]", line)[0]
        for group in [listed["dependencies"], *listed["optional-dependencies"].values()]
        for line in group
    ]
    assert [name for name in wanted if f"| {name} |" not in text] == []


def test_every_run_file_is_documented() -> None:
    from fieldmark.runs import directory as run

    tree = (run.__doc__ or "").partition("runs/NAME/")[2].partition("\n\n")[0]
    names = re.findall(r"[\w-]+\.(?:json|jsonl|csv|png|html|txt|ckpt|safetensors)\b", tree)
    assert len(names) > 10
    text = read("docs/run-directory.md")
    assert [name for name in names if f"`{name}`" not in text] == []


# --- files ---------------------------------------------------------------------------------------


def tracked() -> list[str]:
    """Files of the repository; those that git does not ignore."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_no_file_is_a_drawer_for_everything() -> None:
    forbidden = {"utils", "util", "common", "misc", "helpers", "helper", "core", "base"}
    assert [
        p for p in tracked() if forbidden & {part.split(".")[0] for part in Path(p).parts}
    ] == []


def test_no_file_names_a_registry_or_a_path_of_one_machine() -> None:
    hosts = ["pypi" + ".org", "python" + "hosted.org", "anaconda" + ".org", "npmjs" + ".com"]
    places = [f"/{top}/" + r"[\w.-]+" for top in ("home", "Users", "work")] + ["/ro" + "ot/"]
    pattern = re.compile("|".join([*map(re.escape, hosts), *places, r"/(simple|packages)/[\w-]+/"]))
    found = []
    for name in tracked():
        data = (ROOT / name).read_bytes()
        if b"\0" in data:
            continue
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
            if pattern.search(line):
                found.append(f"{name}:{number}: {line.strip()[:100]}")
    assert found == []


def test_constraints_are_names_and_versions() -> None:
    lines = [line for line in read("constraints.txt").splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line)] == []
    assert lines == sorted(lines, key=lambda line: line.partition("==")[0])
    listed = project()["project"]
    extras = listed["optional-dependencies"]
    for line in [*listed["dependencies"], *extras["weights"], *extras["test"]]:
        name = re.split(r"[^\w-]", line)[0].lower()
        assert f"\n{name}==" in read("constraints.txt"), line


# What must pass before a change is merged. A check that goes away goes here as well, on purpose.
CHECKS = {
    "lint": ["-m ruff check", "-m ruff format --check"],
    "types": ["-m mypy"],
    "layers": ["-X utf8 -c 'from importlinter.cli import lint_imports_command as c; c()'"],
    "docs": ["scripts/make_docs.py --check", "scripts/reliability_page.py --check"],
    "tests": ["-m pytest -n auto"],
}
TOOLS = ["ruff", "mypy", "lint-imports", "importlinter", "make_docs", "pytest"]


@pytest.fixture
def check() -> ModuleType:
    return load("check")


def test_the_checks_are_pinned(check: ModuleType) -> None:
    found = {name: [shlex.join(c) for c in commands] for name, commands in check.CHECKS.items()}
    assert found == CHECKS
    assert list(found) == list(CHECKS)  # the tests come last


def test_everybody_runs_the_one_list_of_checks() -> None:
    """No copy of the list, and nothing left out: make, .ci/run, the hosted workflow, the hook."""
    makefile = read("Makefile")
    rules = dict(re.findall(r"^(\w+):\n((?:\t.*\n)+)", makefile, re.MULTILINE))
    assert rules["check"] == "\t$(PYTHON) scripts/check.py\n"
    assert rules["lint"] == "\t$(PYTHON) scripts/check.py lint types\n"
    *_, last = read(".ci/run").strip().splitlines()
    assert last == '"$python" scripts/check.py'
    workflow = read(".github/workflows/check.yml")
    assert "- run: python scripts/check.py ${{ matrix.options }}\n" in workflow
    assert set(re.findall(r"options: (.*)", workflow)) == {"--coverage"}
    hook = re.findall(r"entry: (.*)", read(".pre-commit-config.yaml"))
    assert hook == ["python scripts/check.py lint types"]
    outside = {**rules, "fix": "", "docs": ""}
    for text in [*outside.values(), read(".ci/run"), workflow, *hook]:
        commands = re.sub(r"#.*", "", text)
        assert [tool for tool in TOOLS if tool in commands] == []


def test_everybody_installs_what_the_readme_says() -> None:
    install = "pip install {}-c constraints.txt -e '.[test,weights]'"
    for name in ("README.md", "CONTRIBUTING.md", "AGENTS.md", ".github/workflows/check.yml"):
        assert install.format("") in read(name), name
    assert install.format("--quiet ") in read(".ci/run")
    assert os.name == "nt" or os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_hosted_workflow_runs_on_every_system_and_python() -> None:
    workflow = read(".github/workflows/check.yml")
    assert "os: [ubuntu-latest, macos-latest, windows-latest]" in workflow
    named = re.search(r'python: \["([\d.", ]+)"\]', workflow)
    assert named is not None
    first, *_, last = minors = [int(text.split(".")[1]) for text in named[1].split('", "')]
    assert minors == list(range(first, last + 1))
    assert project()["project"]["requires-python"] == f">=3.{first}"
    assert re.findall(r"permissions:\n((?:  .*\n)+)", workflow) == ["  contents: read\n"]


def test_a_check_that_fails_fails_the_whole(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        check,
        "CHECKS",
        {
            "good": [["-c", "print('one')"]],
            "bad": [["-c", "raise SystemExit(3)"]],
            "after": [["-c", "print('two')"]],
        },
    )
    assert check.main([]) == 1
    out, err = capfd.readouterr()
    assert "one" in out.splitlines() and "two" not in out.splitlines()
    assert "bad failed (exit 3)" in err
    assert check.main(["good", "after"]) == 0
    assert "two" in capfd.readouterr().out.splitlines()


def test_a_check_that_is_none_is_refused(
    check: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        check.main(["lintt"])
    assert "no check lintt" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", sorted(p.name for p in (ROOT / "scripts").glob("*.py") if p.name != "make_font.py")
)
def test_the_projects_tools_start(name: str, tmp_path: Path) -> None:
    """All but the one whose packages few have; from any folder, as they are run by hand."""
    words = [sys.executable, str(ROOT / "scripts" / name), "--help"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:")
