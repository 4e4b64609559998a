"""``docs/benchmarks.md`` from the stored results: no figure in it is typed by hand."""

from __future__ import annotations

import inspect
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.machine import KINDS
from benchmarks.results import FOLDER, of_all_kinds
from fieldmark.files.writing import write_atomic

DOCS = Path(__file__).resolve().parents[1] / "docs"
HEAD = """<!-- Made by `python -m benchmarks table` from benchmarks/results; do not edit. -->

# Benchmarks

Fieldmark beside other tools on the same machine, and beside what the machine can do.
`python -m benchmarks` lists them, `python -m benchmarks NAME --data DIR` measures one anew and
`python -m benchmarks table` writes this page; the other tools come with
`pip install -e '.[bench,weights]'`.

Each contender runs in a process of its own; they take turns (A B C, A B C, ...), because a
machine's speed drifts. A cell is the median over the rounds, with the smallest and the largest in
brackets. A ratio is computed within a round; n is the number of rounds that have one. Goals were
set before measuring.

What each kind of machine gave stands side by side: processors with AVX2, with AVX-512 (with and
without bf16) and with AMX, and GPUs. What a machine lacks is not measured there, and the table says
what that is: bf16 on a processor that does not multiply it is emulated, and says nothing. A
goal that rests on it is no goal there.
"""


def page(modules: Mapping[str, ModuleType], folder: Path = FOLDER) -> str:
    """The whole page."""
    parts = [HEAD]
    for name, module in modules.items():
        title, description = documented(module)
        parts.append(f"## {name}: {title}\n\n{description}\n")
        values = of_all_kinds(name, folder)
        written = getattr(module, "section", section)(values) if values else "Not measured yet.\n"
        parts.append(written)
    return "\n".join(parts)


def documented(module: ModuleType) -> tuple[str, str]:
    """A benchmark's name in a line, and its description."""
    first, _, rest = (inspect.getdoc(module) or "").partition("\n")
    return first.rstrip("."), rest.strip()


def about(value: Mapping[str, Any]) -> str:
    """When, on what and with what something was measured."""
    machine = value["machine"]
    hardware = (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']:g} GB, "
        f"{machine['system']}"
    )
    if "gpu" in machine:
        hardware = f"{machine['gpu']}, {hardware}"
    versions = ", ".join(f"{name} {version}" for name, version in value["versions"].items())
    rounds = f"{len(value['rounds'])} rounds; " if "rounds" in value else ""
    kind = KINDS[machine["kind"]]
    return f"**{kind}**: {value['date']}; {hardware}; {rounds}{versions}.\n"


def section(values: Sequence[Mapping[str, Any]]) -> str:
    """Tables of one benchmark, with what each kind of machine gave side by side."""
    lines = [*map(about, values), figures_table(values), findings_table(values)]
    for value in values:
        kind = value["machine"]["kind"]
        lines += [f"- {KINDS[kind]}: {remark}\n" for remark in value["remarks"]]
        if curves(value):
            lines.append(f"![curves of {value['name']}, {KINDS[kind]}]({_svg(value)})\n")
    return "\n".join(line for line in lines if line)


def figures_table(values: Sequence[Mapping[str, Any]]) -> str:
    """Contenders on each kind of machine, by quantities."""
    quantities = _union(
        measured["figures"] for v in values for one in v["rounds"] for measured in one.values()
    )
    rows = []
    for name in _union(value["contenders"] for value in values):
        for value in values:
            if name in value["contenders"]:
                found = [one[name]["figures"] for one in value["rounds"] if name in one]
                cells = [spread([f[q] for f in found if q in f]) for q in quantities]
                note = value["errors"].get(name, "" if found else "not asked")
                rows.append([name, KINDS[value["machine"]["kind"]], *cells, note])
    return table(["", "on", *quantities, "remark"], rows)


def findings_table(values: Sequence[Mapping[str, Any]]) -> str:
    """Ratios on each kind of machine, with their goals."""
    by_kind = {
        KINDS[value["machine"]["kind"]]: {finding["what"]: finding for finding in value["findings"]}
        for value in values
    }
    rows = []
    for what in _union(by_kind.values()):
        there = [found[what] for found in by_kind.values() if what in found]
        goal = next((finding["goal"] for finding in there if finding["goal"]), "")
        cells = [_finding_cell(found[what]) if what in found else "" for found in by_kind.values()]
        rows.append([what, goal, *cells])
    return table(["ratio", "goal", *by_kind], rows)


def _finding_cell(finding: Mapping[str, Any]) -> str:
    """Value, number of rounds, and whether the goal was met; or why there is none."""
    n = len(finding["values"])
    lacking = finding.get("lacks", "")  # results of before do not have it
    if not n:
        return "not on this machine" if lacking else "not measured"
    shown = spread(finding["values"], finding["unit"], finding.get("mean"))
    verdict = {True: ", met", False: ", missed", None: ", no goal here" if lacking else ""}
    return f"{shown}, n = {n}{verdict[finding['met']]}"


def _union(several: Iterable[Iterable[str]]) -> list[str]:
    """All names, each once, in the order in which they first come."""
    return list(dict.fromkeys(name for names in several for name in names))


def _svg(value: Mapping[str, Any]) -> str:
    return f"benchmark-{value['name']}.{value['machine']['kind']}.svg"


def spread(values: Sequence[float], unit: str = "", middle: float | None = None) -> str:
    """Median, or what is given in its place (smallest to largest); empty for none."""
    if not values:
        return ""
    unit = unit if unit in ("", "x") else " " + unit
    shown = rounded(statistics.median(values) if middle is None else middle) + unit
    if len(values) == 1:
        return shown
    return f"{shown} ({rounded(min(values))} to {rounded(max(values))})"


def rounded(value: float) -> str:
    """Four digits of what is small, whole numbers of what is large."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, without the columns in which no row says anything."""
    rows = [list(row) for row in rows]
    if not rows:
        return ""
    kept = [i for i in range(len(columns)) if i == 0 or any(row[i] for row in rows)]
    lines = [[columns[i] for i in kept], ["---"] * len(kept)]
    lines += [[row[i].replace("|", "\\|") for i in kept] for row in rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def curves(value: Mapping[str, Any]) -> dict[str, list[list[tuple[float, float]]]]:
    """The curves of all rounds, by contender; empty if there are none."""
    found: dict[str, list[list[tuple[float, float]]]] = {}
    for one in value.get("rounds", ()):  # the league has rows
        for name, measured in one.items():
            if measured["curve"]:
                found.setdefault(name, []).append(measured["curve"])
    return found


def draw(value: Mapping[str, Any]) -> bytes:
    """Accuracy against time as SVG; the same results give the same bytes."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "fieldmark", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        for colour, (name, lines) in zip(
            ("#0072b2", "#d55e00", "#009e73", "#cc79a7"), curves(value).items(), strict=False
        ):
            for number, line in enumerate(lines):
                seconds, accuracies = zip(*line, strict=True)
                label = name if number == 0 else None
                axes.plot(seconds, accuracies, color=colour, marker=".", label=label)
        axes.set(xlabel="seconds since the command", ylabel="accuracy")
        axes.grid(visible=True, alpha=0.3)
        axes.legend(loc="lower right")
        written = io.BytesIO()
        FigureCanvasSVG(figure).print_svg(written, metadata={"Date": None})  # type: ignore[no-untyped-call]
    return written.getvalue()


def write(modules: Mapping[str, ModuleType], folder: Path = FOLDER, docs: Path = DOCS) -> Path:
    """Write the page and its figures; returns the page's path."""
    for name in modules:
        for value in of_all_kinds(name, folder):
            if curves(value):
                write_atomic(docs / _svg(value), draw(value))
    write_atomic(docs / "benchmarks.md", page(modules, folder).encode())
    return docs / "benchmarks.md"
