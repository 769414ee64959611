"""The columns of CytoImageNet's tables: standard metadata, and the release as it was published.

Several values in a cell are joined by "|"; a missing one is empty text, never NaN. How a source's own tables
become these columns is `cem_assets.cytoimagenet.sources.recipe`; Parquet schemas are in `cem_assets.storage`.
"""

import pandas as pd

from cem_assets.errors import DataError

LABEL_COLUMNS = ("organism", "cell_type", "cell_visible", "phenotype", "compound", "gene", "sirna")
"""Columns that labels are taken from, in the order that settles equal counts (that of the published README)."""

STANDARD_COLUMNS = (
    "database", "name", "dir_name", "path", "filename", "idx",
    "organism", "cell_type", "cell_visible", "phenotype", "compound", "sirna", "gene",
    "microscopy", "channels",
)  # fmt: skip
"""One row per image; a field of several channels is one row."""

OWN_COLUMNS = ("source", "licence", "files", "sha256")
"""What the platform keeps beside the standard columns: the source's key, its licence, and the files (lists, in order of
channel) with their digests."""

RELEASE_COLUMNS = (
    "label", "category",
    "database", "name", "dir_name", "path", "filename", "idx",
    "organism", "cell_type", "cell_visible", "phenotype", "compound", "sirna", "gene",
    "microscopy", "crop", "scaling", "x_min", "x_max", "y_min", "y_max",
)  # fmt: skip
"""`metadata.csv` of the published data set, in its order."""

SEPARATOR = "|"


def split_values(cell: str) -> list[str]:
    """Split a cell into its values, in order, without empty ones."""
    return [value for part in cell.split(SEPARATOR) if (value := part.strip())]


def join_values(values: list[str]) -> str:
    """Join values into a cell: each once, in order of first occurrence."""
    return SEPARATOR.join(dict.fromkeys(value for value in values if value))


def check_columns(table: pd.DataFrame, required: tuple[str, ...], what: str) -> None:
    """Refuse a table that lacks columns.

    Raises:
        DataError: Names the missing columns and those there are.
    """
    missing = [name for name in required if name not in table.columns]
    if missing:
        raise DataError(
            f"{what} lacks column(s) {', '.join(missing)}; found {', '.join(map(str, table.columns))}. Take it from "
            "cytoimagenet/source_metadata, or rename its columns."
        )
