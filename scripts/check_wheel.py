"""Build the source archive and the wheel, and check that the wheel is whole and works alone.

    python scripts/check_wheel.py              with the newest dependencies; needs the network
    python scripts/check_wheel.py --out dist   the same, and the two files stay in dist
    python scripts/check_wheel.py --offline    with the packages of this environment: a minute

The wheel is built from the source archive, as it is for whoever has only that. It is then installed
into an empty environment and run there, in a folder that is not the checkout.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

NEEDED = {"__init__.py", "py.typed", "page.html", "report.html.j2", "FieldmarkSans.ttf", "OFL.txt"}
"""Names of which the package must have one each: code, types, page, template, font, licence."""

AT_THE_TOP = {"README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml", "constraints.txt"}
"""What the source archive must have besides the package."""

STEPS = [
    ["python", "-m", "fieldmark", "--help"],
    ["fieldmark", "--help"],
    ["fieldmark", "train", "digits", "--epochs", "1", "--out", "run"],
    ["fieldmark", "evaluate", "run"],
    ["fieldmark", "report", "run", "--out", "page.html"],
]
"""Commands that must work from the wheel alone."""


class NotReadyError(Exception):
    """What was built must not be released."""


def build(out: Path, *, offline: bool) -> tuple[Path, Path]:
    """Build the source archive, and the wheel from it; returns both."""
    isolation = ["--no-isolation"] if offline else []
    run([sys.executable, "-m", "build", *isolation, "--outdir", str(out), str(ROOT)], cwd=out)
    (archive,), (wheel,) = out.glob("*.tar.gz"), out.glob("*.whl")
    return archive, wheel


def check_contents(archive: Path, wheel: Path) -> None:
    """Compare what was packed with the checkout.

    Raises:
        NotReadyError: if a file is missing, or there is one too many.
    """
    source = ROOT / "src"
    wanted = {
        file.relative_to(source).as_posix()
        for file in (source / "fieldmark").rglob("*")
        if file.is_file() and file.suffix != ".pyc"
    }
    if lacking := NEEDED - {name.rpartition("/")[2] for name in wanted}:
        raise NotReadyError(f"the package in the checkout lacks {sorted(lacking)}")
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
    inside = {name for name in names if ".dist-info/" not in name.partition("/")[0] + "/"}
    if inside != wanted:
        raise NotReadyError(
            f"{wheel.name} lacks {sorted(wanted - inside)}, and should not have "
            f"{sorted(inside - wanted)}"
        )
    with tarfile.open(archive) as packed_source:
        in_source = {name.partition("/")[2] for name in packed_source.getnames()}
    if lacking := ({f"src/{name}" for name in wanted} | AT_THE_TOP) - in_source:
        raise NotReadyError(f"{archive.name} lacks {sorted(lacking)}")
    print(f"{wheel.name}: the package's {len(inside)} files", f"{wheel.stat().st_size:,} bytes")
    print(f"{archive.name}: {len(in_source)} files and folders, {archive.stat().st_size:,} bytes")


def install(wheel: Path, *, into: Path, offline: bool) -> Path:
    """Install the wheel into a new environment; returns the folder of its programs."""
    venv.create(into, with_pip=True)
    programs = into / ("Scripts" if os.name == "nt" else "bin")
    words = [str(programs / "python"), "-m", "pip", "install", "--quiet"]
    run([*words, *(["--no-deps"] if offline else []), str(wheel)], cwd=into)
    if offline:
        # Folders named in a .pth file come after the environment's own, and .pth files in them are
        # not read: an editable install of the checkout is not found this way.
        (own,) = into.rglob("site-packages")
        here = [folder for folder in sys.path if Path(folder).name == "site-packages"]
        (own / "borrowed.pth").write_text("\n".join(here) + "\n", encoding="utf-8")
    return programs


def check_running(programs: Path, folder: Path) -> None:
    """Use the installed package as its users do.

    Raises:
        NotReadyError: if it is not the wheel's, or a command fails.
    """
    code = "import fieldmark; print(fieldmark.__version__); print(fieldmark.__file__)"
    out = run([str(programs / "python"), "-W", "error", "-c", code], cwd=folder)
    version, place = out.strip().splitlines()
    written = (ROOT / "src" / "fieldmark" / "version.py").read_text(encoding="utf-8")
    if f'__version__ = "{version}"' not in written:
        raise NotReadyError(f"the wheel says that it is {version}, and version.py does not")
    if not Path(place).resolve().is_relative_to(programs.parent.resolve()):
        raise NotReadyError(f"not the wheel was imported, but {place}")
    for program, *words in STEPS:
        run([str(programs / program), *words], cwd=folder)


def run(command: list[str], *, cwd: Path) -> str:
    """Run a command that cannot see the checkout; returns what it printed.

    Raises:
        NotReadyError: if it fails.
    """
    print("$", shlex.join([Path(command[0]).name, *command[1:]]), flush=True)
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    env |= {"FIELDMARK_CACHE": str(cwd / "cache"), "PYTHONNOUSERSITE": "1", "PYTHONUTF8": "1"}
    done = subprocess.run(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        raise NotReadyError(f"exit {done.returncode}:\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    return done.stdout


def main() -> int:
    """Build and check; returns 1 if what was built must not be released."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="keep both files in this folder; it must be empty")
    parser.add_argument(
        "--offline", action="store_true", help="take build, hatchling and dependencies from here"
    )
    options = parser.parse_args()
    if options.out and options.out.exists() and any(options.out.iterdir()):
        parser.error(f"{options.out} is not empty; remove what is in it, or name another folder")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("built", "elsewhere"):
            (folder / part).mkdir()
        try:
            archive, wheel = build(folder / "built", offline=options.offline)
            check_contents(archive, wheel)
            programs = install(wheel, into=folder / "empty", offline=options.offline)
            check_running(programs, folder / "elsewhere")
        except NotReadyError as error:
            print(f"not ready: {error}", file=sys.stderr)
            return 1
        if options.out:
            options.out.mkdir(parents=True, exist_ok=True)
            for file in (archive, wheel):
                shutil.copy(file, options.out)
    print("the wheel is whole and works alone")
    return 0


if __name__ == "__main__":
    sys.exit(main())
