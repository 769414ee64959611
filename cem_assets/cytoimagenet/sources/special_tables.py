"""Readers for metadata files that are not tables. This is the only place where a source may have code of its own.

A recipe names a reader with `reader = "..."`. Usual tables need none, because `cem_assets.formats.tables.metadata` reads them.
"""

import json
import re
from collections.abc import Callable
from typing import Any

import pandas as pd

from cem_assets.errors import DataError

MAX_JSON_BYTES = 256 << 20
"""BBBC041 has 80,000 cells, and its file needs a few hundred bytes for each. Parsed JSON takes several times as much memory."""
_MAX_PROBLEMS = 5
_LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")
"""Half of a character; JSON can contain one, but UTF-8 and Parquet cannot."""


def bbbc041_json(content: bytes) -> pd.DataFrame:
    """Read `training.json` or `test.json` of BBBC041: images of blood smears with boxes around their cells.

    Args:
        content: A list of records {"image": {"pathname": ...}, "objects": [{"category": ..., "bounding_box": ...}, ...]}.

    Returns:
        One row per image with the columns `pathname` and `categories`: the categories of its cells, each once, in
        alphabetical order, joined by "|". The reference (CytoImageNet, arXiv:2111.11646) cuts out every box instead.

    Raises:
        DataError: The file is too large or not JSON, or records have another form; the error lists the first of these.
    """
    what = "the annotation of BBBC041"
    if len(content) > MAX_JSON_BYTES:
        raise DataError(f"{what} has {len(content)} bytes; expected at most {MAX_JSON_BYTES}. Copy the right file.")
    try:
        records = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{what} is not valid JSON: {str(error)[:200]}. Copy the file again from its source.") from error
    if not isinstance(records, list):
        raise DataError(f"{what} is {type(records).__name__}; expected a list of images. Copy the right file.")
    problems, rows = [], []
    for number, record in enumerate(records, 1):
        try:
            rows.append((_text(record, "image", "pathname"), "|".join(sorted(set(_categories(record))))))
        except DataError as error:
            problems.append(f"image {number}: {error}")
    if problems:
        more = f" and {len(problems) - _MAX_PROBLEMS} more" if len(problems) > _MAX_PROBLEMS else ""
        raise DataError(f"{what} has records of another form: {'; '.join(problems[:_MAX_PROBLEMS])}{more}. Correct the file.")
    return pd.DataFrame(rows, columns=["pathname", "categories"], dtype="str")


def _text(record: Any, *keys: str) -> str:
    for key in keys:
        if not isinstance(record, dict) or key not in record:
            raise DataError(f"it has no {'.'.join(keys)}")
        record = record[key]
    if not isinstance(record, str) or not record.strip() or "|" in record or _LONE_SURROGATE.search(record):
        raise DataError(f"its {'.'.join(keys)} is {record!r:.80}; expected text in valid Unicode without '|'")
    return record.strip()


def _categories(record: dict[str, Any]) -> list[str]:
    cells = record.get("objects", [])
    if not isinstance(cells, list):
        raise DataError(f"its objects are {type(cells).__name__}; expected a list")
    return [_text(cell, "category") for cell in cells]


SPECIAL_READERS: dict[str, Callable[[bytes], pd.DataFrame]] = {"bbbc041_json": bbbc041_json}
