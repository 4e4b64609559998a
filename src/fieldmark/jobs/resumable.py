"""The folder of a job of many runs: the same request on the same folder goes on in it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

from fieldmark.errors import ConfigError, ResourceError
from fieldmark.jobs.running import slug
from fieldmark.runs.directory import RunDirectory


def find(
    out: Path | None,
    data: str,
    *,
    prefix: str,
    what: str,
    file: str,
    same: str,
    differences: Callable[[Path], list[str]],
    besides: tuple[str, ...] = (),
) -> RunDirectory:
    """Find the job's folder, which is made later; what is there already must be the same job.

    Args:
        out: The folder; None for ``runs/PREFIX-NAME``, with a number if another job is there.
        data: The data set, whose name the folder gets.
        prefix: Such as ``compare``.
        what: The job in messages, such as ``comparison``.
        file: The file that makes a folder one of this job.
        same: What has to be given again to go on, for the message.
        differences: In what the job in a folder is another one.
        besides: Files that may lie in a folder without a job.

    Raises:
        ConfigError: naming the differences.
    """
    if out is None:
        name = f"{prefix}-" + slug(Path(data).expanduser().resolve().name)
        paths = (Path("runs") / (name if n == 1 else f"{name}-{n}") for n in itertools.count(1))
        return next(
            RunDirectory(path)
            for path in paths
            if not path.exists() or ((path / file).is_file() and not differences(path))
        )
    if (out / file).is_file():
        if found := differences(out):
            raise ConfigError(
                f"{out} holds another {what} ({'; '.join(found)}); choose another --out, or give "
                f"the same {same} to go on with it"
            )
    elif out.exists() and (not out.is_dir() or any(f.name not in besides for f in out.iterdir())):
        raise ConfigError(f"{out} is there already and holds no {what}; choose another --out")
    return RunDirectory(out)


def make(folder: RunDirectory) -> None:
    """Make the folder.

    Raises:
        ResourceError: if it cannot be made.
    """
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"cannot make {folder.path}: {error.strerror or error}; choose a writable place "
            "with --out"
        ) from error
