"""Write ``docs/cli.md`` and ``docs/settings.md`` from the code, so that they cannot be out of date.

    python scripts/make_docs.py            write them
    python scripts/make_docs.py --check    exit 1 and show the difference if they are not current

The text comes from flags, signatures, defaults and docstrings alone: nothing of this machine, of
the terminal or of a library's version gets in.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args

DOCS = Path(__file__).resolve().parents[1] / "docs"
HEAD = "<!-- Generated from the code by scripts/make_docs.py; `make docs` updates it. -->\n"
EXIT_CODES = """
| Exit code | Meaning |
|---|---|
| 0 | done |
| 1 | a bug in fieldmark |
| 2 | usage: a flag, a setting or a spec string that cannot be used |
| 3 | data: pictures or folders that cannot be used |
| 4 | model: a run, a checkpoint or weights that cannot be used |
| 5 | diverged: the loss stopped being a number |
| 6 | environment: disk, memory, network, a missing extra |
| 129, 130, 143 | stopped by SIGHUP, Ctrl-C or SIGTERM; a run that had begun is saved |
"""


def pages() -> dict[str, str]:
    """File name to text of every generated page."""
    return {"cli.md": cli_page(), "settings.md": settings_page()}


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [list(columns)]
    lines += [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def flags(command: str) -> list[Any]:
    """A command's arguments and flags, in the order of ``--help``."""
    from fieldmark.cli import app

    found = [a for a in app[command].assemble_argument_collection() if a.show]
    return sorted(found, key=_place)


def commands() -> list[str]:
    """The commands, by name."""
    from fieldmark.cli import app

    return sorted(name for name in app if not name.startswith("-"))


def cli_page() -> str:
    """The reference of the command line."""
    from fieldmark.cli import app

    parts = [
        HEAD,
        "# Command line\n",
        (
            "`fieldmark COMMAND --help` says the same. The settings of `train`, with their "
            "defaults and the words they accept, are in [settings.md](settings.md).\n"
        ),
        EXIT_CODES.strip() + "\n",
        "`FIELDMARK_DEBUG=1` adds Python's traceback to an error message.\n",
    ]
    for command in commands():
        given = flags(command)
        positional = [_placed(a) for a in given if not a.name.startswith("-")]
        parts += [
            f"## fieldmark {command}\n",
            first_line(app[command].default_command) + "\n",
            f"`{' '.join(['fieldmark', command, *positional, '[flags]'])}`\n",
            *_panels(given),
        ]
    return "\n".join(parts)


def _panels(given: list[Any]) -> list[str]:
    """One table, or where a command has groups of flags a table for each."""
    groups = [(title, list(members)) for title, members in itertools.groupby(given, key=_group)]
    if len(groups) <= 2:
        return [_flag_table(given)]
    return [part for title, members in groups for part in (f"### {title}\n", _flag_table(members))]


def _group(argument: Any) -> str:
    (group,) = argument.parameter.group
    return str(group.name)


def _place(argument: Any) -> float:
    """Where its group stands in ``--help``; positional arguments come first."""
    (group,) = argument.parameter.group
    return group.sort_key if isinstance(group.sort_key, int | float) else -1


def _flag_table(given: Iterable[Any]) -> str:
    return table(
        ("Argument or flag", "Value", "Default", "What"),
        (
            (
                ", ".join(f"`{name}`" for name in a.names),
                _value(a.hint),
                _default(a),
                a.parameter.help or "",
            )
            for a in given
        ),
    )


def _placed(argument: Any) -> str:
    name = argument.name + ("..." if _value(argument.hint).endswith("...") else "")
    return name if argument.required else f"[{name}]"


def _value(hint: Any) -> str:
    """What is to be given, in a word."""
    if isinstance(hint, UnionType):
        hint = next(a for a in get_args(hint) if a is not NoneType)
    words = {bool: "", str: "text", int: "whole number", float: "number", Path: "path"}
    if hint in words:
        return words[hint]
    return f"{_value(get_args(hint)[0])} ..."


def _default(argument: Any) -> str:
    value = argument.field_info.default
    shown = value is not inspect.Parameter.empty and value not in (None, False, "", ())
    return f"`{value}`" if shown else ""


def first_line(documented: object) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(documented) or "").partition("\n")[0].replace("``", "`")


def settings_page() -> str:
    """Settings and the words that may stand in them."""
    from fieldmark.augment import AUGMENTS, MIXES
    from fieldmark.fit.callbacks import CALLBACKS, MONITORS
    from fieldmark.fit.losses import LOSSES
    from fieldmark.fit.optimizers import OPTIMIZERS
    from fieldmark.fit.schedules import SCHEDULES
    from fieldmark.models import MODELS
    from fieldmark.scoring.named import METRICS
    from fieldmark.settings.recipes import RECIPES

    metrics = ", ".join(f"`{name}`" for name in MONITORS)
    return "\n".join(
        [
            HEAD,
            "# Settings\n",
            (
                "Each is a flag of `fieldmark train` (`--batch-size 32`), a keyword of "
                "`fieldmark.train` (`batch_size=32`), a field of `fieldmark.TrainConfig` and a key "
                "of `config.json`. A recipe or a config file overrides the defaults, and flags "
                "override both.\n"
            ),
            *_fields(),
            "## Spec strings\n",
            (
                "Several settings are spec strings: words with arguments, written as in Python "
                "(`name`, `name(4)`, `name(key=0.5)`). Arguments are literals, nothing is "
                "evaluated. A pipe `a|b(2)` is applied from left to right. An unknown word or "
                "argument is an error.\n"
            ),
            "## Recipes (`--recipe`)\n",
            table(
                ("Recipe", "What"), ((f"`{n}`", first_line(f)) for n, f in sorted(RECIPES.items()))
            ),
            "## Models (`--model`)\n",
            "`timm/NAME` is any network of timm; `fieldmark models timm/resnet` lists some.",
            "With `timm/NAME(head_stages=3)` the head sees the features of its last three stages",
            "beside its own, as in `probe` and `finetune`: from few pictures it learns more.\n",
            table(
                ("Model and its arguments", "Input", "What"),
                (
                    (call(n, f.build, given=1), f"{f.input.size} px", first_line(f.build))
                    for n, f in sorted(MODELS.items())
                ),
            ),
            "## Augmentation (`--augment`)\n",
            _words(AUGMENTS),
            "## Mixing (`--mix`)\n",
            _words(MIXES),
            "## Schedules (`--schedule`)\n",
            _words(SCHEDULES, given=1),
            "## Optimizers (`--optimizer`)\n",
            "The learning rate and the weight decay are settings of their own.\n",
            _words(OPTIMIZERS, given=1),
            "## Losses (`--loss`)\n",
            _words(LOSSES, given=2),
            "## Metrics (`--metrics`)\n",
            _words(METRICS, given=2),
            "## Callbacks (`--callbacks`)\n",
            f"`monitor` is the setting `monitor` unless given. The metrics: {metrics}.\n",
            _words(CALLBACKS, given=1),
        ]
    )


def _fields() -> list[str]:
    from fieldmark.settings.config import GROUPS, TrainConfig, field_docs

    docs = field_docs()
    fields = {field.name: field for field in dataclasses.fields(TrainConfig)}
    parts = []
    for title, names in GROUPS.items():
        rows = (
            (f"`{name}`", str(fields[name].type), f"`{fields[name].default!r}`", docs[name])
            for name in names
        )
        parts += [f"## {title}\n", table(("Setting", "Type", "Default", "What"), rows)]
    return parts


def _words(entries: Mapping[str, Callable[..., Any]], given: int = 0) -> str:
    return table(
        ("Word and its arguments", "What"),
        ((call(name, f, given=given), first_line(f)) for name, f in sorted(entries.items())),
    )


def call(name: str, function: Callable[..., Any], *, given: int = 0) -> str:
    """A spec string with all arguments at their defaults, without those the caller gives."""
    parameters = list(inspect.signature(function).parameters.values())[given:]
    inside = ", ".join(
        p.name if p.default is p.empty else f"{p.name}={p.default!r}" for p in parameters
    )
    return f"`{name}({inside})`" if inside else f"`{name}`"


def difference(name: str, wanted: str) -> str:
    """What differs between a page on the disk and what it should be; empty if nothing does."""
    path = DOCS / name
    there = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = difflib.unified_diff(
        there.splitlines(), wanted.splitlines(), f"docs/{name}", "from the code", lineterm="", n=0
    )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Write or check; returns the exit code."""
    parser = argparse.ArgumentParser(description=re.sub(r"\s+", " ", (__doc__ or "").split(".")[0]))
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if out of date")
    check = parser.parse_args(argv).check
    stale = False
    for name, text in pages().items():
        wanted = re.sub(r"\n{3,}", "\n\n", text)
        if not check:
            DOCS.mkdir(exist_ok=True)
            (DOCS / name).write_text(wanted, encoding="utf-8", newline="\n")
        elif found := difference(name, wanted):
            stale = True
            print(found)
    if stale:
        print("docs are out of date: run `make docs` (python scripts/make_docs.py)")
    return int(stale)


if __name__ == "__main__":
    sys.exit(main())
