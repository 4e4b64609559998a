"""The house rules that a machine can check: public names, flags, docs, layers, file names."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import fieldmark
from fieldmark.settings.config import TrainConfig, field_docs

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
    "WeightsError",
    "__version__",
    "compare",
    "import_keras",
    "load",
    "resume",
    "train",
]
SETTINGS = """
    --model --weights --size --resize --interpolation --normalize --probe --no-probe --epochs
    --batch-size --accumulate --optimizer --lr --weight-decay --l2 --backbone-lr --bias-lr
    --schedule --warmup-epochs --augment --mix --progressive --hardest --views --loss
    --label-smoothing --class-weights --balance --no-balance --clip-norm --ema --freeze --no-freeze
    --train-from --unfreeze-at-epoch --freeze-after --metrics --monitor --keep --callbacks
    --split --split-seed
    --last-batch --whole-batches --no-whole-batches --on-bad --fail-on-leak --no-fail-on-leak
    --max-pixels --decode-side --memory-gb --disk-gb --seed --precision --compile --no-compile
    --channels-last --no-channels-last --device --threads --save-every
"""
FLAGS = {
    "compare": "DATA --models --seeds --recipe --out --json"
    + SETTINGS.replace("--model ", "").replace("--seed ", ""),
    "cache": "--prune --json",
    "export": "RUN --to --out --int8 --fp16 --allow-plugin-version --json",
    "import-keras": "FILE --model --classes --out --preprocess --interpolation --mean-picture"
    " --size --json",
    "evaluate": "RUN --data --device --allow-plugin-version --json",
    "models": "PATTERN --num-classes --size --json",
    "plugins": "--json",
    "predict": "RUN PICTURES --top --csv --explain --device --engine --allow-plugin-version --json",
    "recipes": "PATTERN --json",
    "report": "RUNS --out --json",
    "resume": "RUN --data --allow-data-change --allow-plugin-version --json",
    "serve": "MODEL --host --port --token --allow-host --batch --queue --device"
    " --allow-plugin-version",
    "train": "DATA --recipe --config --out --preview --find-lr --json" + SETTINGS,
}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def project() -> dict[str, Any]:
    return tomllib.loads(read("pyproject.toml"))


@pytest.fixture(scope="module")
def docs() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_docs", ROOT / "scripts" / "make_docs.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    flags = [flag for flag in SETTINGS.split() if not flag.startswith("--no-")]
    assert flags == ["--" + name.replace("_", "-") for name in names]


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
    """The paths in the README's annotated file tree; two spaces of indentation a level."""
    block = re.search(r"## Files\n.*?```\n(.*?)```", read("README.md"), re.DOTALL)
    assert block is not None, "README.md has no tree under '## Files'"
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


def test_the_readmes_tree_is_true() -> None:
    named = tree()
    assert [p for p in named if not (ROOT / p).exists()] == []
    assert [p for p in named if p.endswith("/") != (ROOT / p).is_dir()] == []
    assert len(named) == len(set(named))


def test_the_readmes_tree_names_every_module() -> None:
    named = set(tree())
    missing = []
    for file in PACKAGE.rglob("*.py"):
        path = file.relative_to(ROOT).as_posix()
        package = file.name == "__init__.py" and file.parent != PACKAGE
        if (path.removesuffix("__init__.py") if package else path) not in named:
            missing.append(path)
    assert missing == []


def test_the_readmes_tree_names_what_lies_at_the_top() -> None:
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


def test_ci_does_what_make_check_does() -> None:
    def commands(recipe: str) -> list[str]:
        lines = [line.replace('"$python"', "$(PYTHON)") for line in recipe.splitlines()]
        return [line.strip() for line in lines if line.strip().startswith("$(PYTHON)")]

    makefile = read("Makefile")
    lint = makefile.partition("lint:")[2].partition("fix:")[0]
    test = makefile.partition("test:")[2].partition("docs:")[0]
    install, *checks = commands(read(".ci/run"))
    assert checks == commands(lint) + commands(test)
    assert len(checks) == 7
    assert install.endswith("pip install --quiet -c constraints.txt -e '.[test,weights]'")
    assert "pip install -c constraints.txt -e '.[test,weights]'" in read("README.md")
    assert os.name == "nt" or os.access(ROOT / ".ci" / "run", os.X_OK)


@pytest.mark.parametrize(
    "name", sorted(p.name for p in (ROOT / "scripts").glob("*.py") if p.name != "make_font.py")
)
def test_the_projects_tools_start(name: str, tmp_path: Path) -> None:
    """All but the one whose packages few have; from any folder, as they are run by hand."""
    words = [sys.executable, str(ROOT / "scripts" / name), "--help"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:")
