"""All rows of the table of hostile inputs."""

from __future__ import annotations

from tests.hostile import (
    rows_of_archives,
    rows_of_arguments,
    rows_of_folders,
    rows_of_models,
    rows_of_names,
    rows_of_pictures,
)
from tests.hostile.place import Row

TABLE: tuple[Row, ...] = (
    *rows_of_folders.ROWS,
    *rows_of_names.ROWS,
    *rows_of_pictures.ROWS,
    *rows_of_archives.ROWS,
    *rows_of_models.ROWS,
    *rows_of_arguments.ROWS,
)
