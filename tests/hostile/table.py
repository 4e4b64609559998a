"""All rows of the table of hostile inputs."""

from __future__ import annotations

import rows_of_archives
import rows_of_arguments
import rows_of_folders
import rows_of_models
import rows_of_names
import rows_of_pictures
from place import Row

TABLE: tuple[Row, ...] = (
    *rows_of_folders.ROWS,
    *rows_of_names.ROWS,
    *rows_of_pictures.ROWS,
    *rows_of_archives.ROWS,
    *rows_of_models.ROWS,
    *rows_of_arguments.ROWS,
)
