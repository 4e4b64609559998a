"""Write ``docs/reliability.md`` from the results in ``docs/reliability/*.json``.

    python scripts/reliability_page.py            write it
    python scripts/reliability_page.py --check    exit 1 and show what differs if it is not current

The results are written by the tests and scripts that the page names; one that is not there is said
on the page to be not yet run. What the page promises is what the results show.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from make_docs import DOCS, difference, table

RESULTS = DOCS / "reliability"
PAGE = "reliability.md"
HEAD = "<!-- Made by scripts/reliability_page.py from docs/reliability/*.json. -->\n"
PROMISES = """
- **Nothing is lost.** A run that is killed, at whatever moment and however often, goes on with
  `fieldmark resume` and ends with the bits of the run that was not: weights, metrics, scores,
  predictions and report, times aside (same machine, same number of threads). Lost is at most the
  work since the last save: an epoch, or what `--save-every` says.
- **No half files.** Every file is replaced at once. What is read back carries a checksum, and a
  damaged file is refused or passed over, by name.
- **A disk that refuses costs no work that was saved.** Full, over quota, read-only or gone: what
  was there stays whole, and the command ends with exit code 6, or goes on once the disk does.
- **Every input is answered**, with a result or with a message that names it and says what to do:
  no traceback, no hang, nothing written outside the run and the cache folder, pictures untouched.
- **Files are data.** No code in a model, checkpoint, data set or archive is run, no other file is
  opened because of it, and no name in it is more than text in pages, tables and terminals.
- **Nothing leaves the machine and nothing of it gets into a run.** No connection is made unless
  it is asked for by name; no user name, host name, absolute path or environment value is stored.
"""
HOW = """
| What | Command | Takes |
|---|---|---|
| All of it, bounded | `make test` | minutes |
| All of it, with the long tests | `pytest --slow tests/faults tests/hostile` | an hour |
| The crash matrix | `python scripts/crash_matrix.py --jobs 2` | 1 to 2 hours |
| The hostile inputs | `python scripts/hostile_table.py` | minutes |
| The mutated pictures | `python scripts/fuzz_pictures.py --out docs/reliability/mutated.json` | \
minutes |
| The soak | `python scripts/soak.py --minutes 120 --summary docs/reliability/soak.json` | 2 hours |
| The siege | `python scripts/siege.py RUN --summary docs/reliability/siege.json` | 5 minutes |
| This page | `python scripts/reliability_page.py` | |
"""


def page() -> str:
    """The text of the page."""
    text = "\n".join(
        [
            HEAD,
            "# Reliability\n",
            "What Fieldmark promises when things go wrong, and what was seen when they did.\n",
            "## Promises\n",
            PROMISES.strip() + "\n",
            "## Crash matrix\n",
            _crashes(_read("crashes.json")),
            "## Bad inputs\n",
            _hostile(_read("hostile.json")),
            "## Mutated pictures\n",
            _mutated(_read("mutated.json")),
            "## The server besieged\n",
            _siege(_read("siege.json")),
            "## Hours of it\n",
            _soak(_read("soak.json")),
            "## How to run it\n",
            HOW.strip() + "\n",
        ]
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def _read(name: str) -> Any:
    path = RESULTS / name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


NOT_RUN = "Not yet run.\n"


def _crashes(value: dict[str, Any] | None) -> str:
    """What happened how often, and at which file; every case that broke a promise by itself."""
    if value is None:
        return NOT_RUN
    by_fault: dict[str, list[dict[str, str]]] = defaultdict(list)
    by_file: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in value["rows"]:
        by_fault[row["fault"]].append(row)
        if row["fault"] != "random kill":
            by_file[row["at"].partition(" ")[2]].append(row)
    return "\n".join(
        [
            (
                "A tiny run with validation, best epoch, moving average, a learning rate that "
                "falls on a plateau, early stopping and saves within epochs changes its files "
                f"{value['boundaries']} times: files opened, written, flushed, closed and renamed. "
                "At each of these boundaries something goes wrong; then the run is resumed, or "
                "begun anew where nothing had been begun that can be resumed. *Same* means that "
                "weights, metrics, scores, predictions and report are those of the run that nobody "
                "disturbed, that no unfinished file and no process is left and that the pictures "
                "are unchanged.\n"
            ),
            table(
                ("What happens", "Cases", "Came through", "Resumed", "Begun anew", "Same"),
                ((fault, *_counts(rows)) for fault, rows in by_fault.items()),
            ),
            "By file:\n",
            table(
                ("File", "Cases", "Came through", "Resumed", "Begun anew", "Same"),
                ((f"`{name}`", *_counts(rows)) for name, rows in sorted(by_file.items())),
            ),
            _broken(f"{r['fault']} at {r['at']}: {r['wrong']}" for r in value["rows"]),
        ]
    )


def _counts(rows: list[dict[str, str]]) -> list[str]:
    ways = Counter(row["went_on"] for row in rows)
    same = sum(not row["wrong"] for row in rows)
    counts = (len(rows), ways[""], ways["resume"], ways["train"], same)
    return [str(count) for count in counts]


def _broken(lines: Iterable[str]) -> str:
    found = [line for line in lines if not line.endswith(": ")]
    return "".join(f"- **Not as promised**: {line}\n" for line in found)


def _hostile(rows: list[dict[str, Any]] | None) -> str:
    if rows is None:
        return NOT_RUN
    good = sum(bool(row["ok"]) for row in rows)
    return "\n".join(
        [
            f"{good} of {len(rows)} as expected.\n",
            table(
                ("Item", "Input", "Expected", "Seen", ""),
                (
                    (
                        *(_cell(row[key]) for key in ("item", "input", "expected", "seen")),
                        "as expected" if row["ok"] else "**not as expected**",
                    )
                    for row in rows
                ),
            ),
        ]
    )


def _cell(value: object) -> str:
    """Text in one line, inert in Markdown."""
    text = " ".join(str(value).split())
    for mark in ("\\", "`", "*", "_", "<", ">", "[", "]"):
        text = text.replace(mark, {"<": "&lt;", ">": "&gt;"}.get(mark, "\\" + mark))
    return "".join(c if c.isprintable() else f"U+{ord(c):04X}" for c in text)


def _mutated(value: dict[str, Any] | None) -> str:
    if value is None:
        return NOT_RUN
    reasons = list(value["reasons"])
    rows = sorted(value["formats"].items())
    mutations = ", ".join(f"{name} ({count})" for name, count in value["mutations"].items())
    return "\n".join(
        [
            (
                f"{value['answered']} of {value['files']} damaged files were answered, with pixels "
                f"or with a reason, none in more than {value['slowest_seconds']} seconds. Memory "
                f"grew by {value['rss_growth_mb']} MB, at its peak by "
                f"{value['peak_rss_growth_mb']}; {value['in_processes']} were decoded in a process "
                f"of its own, which took {value['largest_decoding_process_mb']} MB at most. What "
                f"was done to them: {mutations}.\n"
            ),
            table(
                ("Format", *reasons),
                ((name, *(str(counts.get(r, 0)) for r in reasons)) for name, counts in rows),
            ),
            _broken(map(str, value["wrong"])),
        ]
    )


_SIEGES = {
    "calm": "nobody",
    "readers": "1,024 clients that read no answer",
    "senders": "1,024 clients that send a byte a second",
    "bodiless": "64 clients that send a POST's head and no body",
    "killed": "decoding processes killed 20 times",
}


def _siege(value: dict[str, Any] | None) -> str:
    """How another client fared while a server was besieged."""
    if value is None:
        return NOT_RUN
    rows = []
    for row in value["rows"]:
        answers = Counter[str]()
        for found in row["answers"].values():
            answers.update(found)
        memory = row["resident_mib"]
        rows.append(
            (
                _SIEGES[row["siege"]],
                f"{row['seconds']:g}",
                ", ".join(f"{count} of {status}" for status, count in sorted(answers.items())),
                f"{max(row['longest_seconds'].values()):.2f} s",
                f"{memory['before']:.0f} and {memory['after']:.0f} MiB",
            )
        )
    return "\n".join(
        [
            (
                "While a server is besieged, another client sends pictures and asks for `/health`. "
                "Each is to be answered within 2 seconds, or to get 429, and the server's memory "
                "to be back within 10 % afterwards.\n"
            ),
            table(
                ("By", "Seconds", "The other client's answers", "Longest", "Memory before, after"),
                rows,
            ),
            (
                f"The server's log had {value['lines_in_the_log']} lines, and on SIGTERM it ended "
                f"after {value['stopped_in_seconds']} seconds.\n"
            ),
        ]
    )


def _soak(value: dict[str, Any] | None) -> str:
    if value is None:
        return NOT_RUN
    held = [
        (words, *(f"{value[key][when]:,.0f}" for when in ("first_quarter", "last_quarter")))
        for key, words in (
            ("rss_kib", "Memory, KiB"),
            ("open_files", "Open files"),
            ("threads", "Threads"),
            ("children", "Processes begun"),
        )
        if key in value
    ]
    return "\n".join(
        [
            (
                f"{value['minutes']} minutes of training, killing, resuming, scoring and "
                f"predicting: {value['killed_rounds']} runs with {value['kills']} kills, "
                f"{value['orphans']} processes left; rounds not as promised: "
                f"{value['failed_rounds']} (`log.md` says why). From a signal to the "
                f"end of the process it was {value['longest_stop_seconds']} seconds at most. There "
                f"were at most {value['cache_files_most']} files in the cache folder and "
                f"{value['scratch_files_most']} in the system's temporary one. A process that "
                f"lived through {value['living_rounds']} rounds held (medians):\n"
            ),
            table(("", "First quarter of the rounds", "Last quarter"), held),
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Write or check; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if out of date")
    text = page()
    if not parser.parse_args(argv).check:
        (DOCS / PAGE).write_text(text, encoding="utf-8", newline="\n")
        return 0
    found = difference(PAGE, text)
    if found:
        print(f"{found}\ndocs are out of date: run python scripts/reliability_page.py")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
