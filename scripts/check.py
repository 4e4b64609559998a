"""The checks of this project in one list, which `make check`, .ci/run, hosted CI and the hook run.

    python scripts/check.py               all of them; stops at the first that fails
    python scripts/check.py lint types    these alone: seconds, once mypy has its cache

Each command runs with the interpreter that runs this script, in the folder of the checkout.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

CHECKS = {
    "lint": [["-m", "ruff", "check"], ["-m", "ruff", "format", "--check"]],
    "types": [["-m", "mypy"]],
    "layers": [
        # Its banner is not ASCII, which a Windows console may refuse.
        ["-X", "utf8", "-c", "from importlinter.cli import lint_imports_command as c; c()"],
    ],
    "docs": [["scripts/make_docs.py", "--check"], ["scripts/reliability_page.py", "--check"]],
    "tests": [["-m", "pytest", "-n", "auto"]],
}
"""The arguments of the interpreter, by what they check, the quick ones first."""

COVERAGE = ["--cov", "--cov-report=term:skip-covered"]
"""What pytest is given besides; the floor is in pyproject.toml."""


def main(words: list[str] | None = None) -> int:
    """Run the checks; returns 1 if one fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"of {', '.join(CHECKS)}")
    parser.add_argument(
        "--coverage", action="store_true", help="also say which lines no test runs; slower"
    )
    options = parser.parse_args(words)
    if unknown := sorted(set(options.checks) - set(CHECKS)):
        parser.error(f"no check {', '.join(unknown)}; there are {', '.join(CHECKS)}")
    for name, commands in CHECKS.items():
        if options.checks and name not in options.checks:
            continue
        for command in commands:
            more = COVERAGE if options.coverage and name == "tests" else []
            arguments = [*command, *more]
            print(f"{name}: python {shlex.join(arguments)}", flush=True)
            code = subprocess.run([sys.executable, *arguments], cwd=ROOT, check=False).returncode
            if code:
                print(f"{name} failed (exit {code})", file=sys.stderr, flush=True)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
