"""The rows of an Excel sheet as text: xlsx by openpyxl, xls by xlrd. Only values are read; no formula or macro is run.

`cem_assets.formats.tables.metadata` makes a table of the rows.
"""

import io
import warnings
from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime, time, timedelta
from typing import Any
from zipfile import ZipFile

import openpyxl  # type: ignore[import-untyped]
import xlrd  # type: ignore[import-untyped]

from cem_assets.errors import DataError
from cem_assets.formats.decoding import decoding
from cem_assets.formats.tables.delimited_text import BLANKS

XLSX_START = b"PK\x03\x04"
XLS_START = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
MAX_SHEET_ROWS = 1 << 20

Rows = list[tuple[int, list[str]]]
"""(row of the sheet, counted from 1; its cells without blanks around them, up to the last that is not empty)."""


def xlsx_unpacked_bytes(data: bytes) -> int:
    """Return the unpacked size of all parts of an xlsx file, as its directory says; no part can give more than that.

    Raises:
        BadZipFile, NotImplementedError, ValueError: The archive is damaged, or of a kind that zipfile does not know.
    """
    with ZipFile(io.BytesIO(data)) as archive:
        return sum(part.file_size for part in archive.infolist())


def sheet_rows(data: bytes, sheet: str, encoding: str | None, what: str) -> tuple[Rows, tuple[str, ...]]:
    """Read the rows of one sheet.

    Args:
        data: The bytes of an xlsx or xls file, whose size was checked before.
        sheet: Name of the sheet; empty takes the first visible one.
        encoding: Encoding of the text in old xls files that do not say it, or say a wrong one.
        what: The file, for errors.

    Returns:
        The rows in order, and notes on the choice of the sheet.

    Raises:
        DataError: There is no such sheet; or the file is damaged, protected by a password, or no workbook.
    """
    remedy = "Save it again without a password, or as csv."
    with decoding(what, "a workbook", remedy), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # openpyxl warns of styles and extensions that it leaves out
        return (_xlsx_rows if data.startswith(XLSX_START) else _xls_rows)(data, sheet, encoding, what)


def _xlsx_rows(data: bytes, sheet: str, encoding: str | None, what: str) -> tuple[Rows, tuple[str, ...]]:
    del encoding  # XML says its own encoding
    book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True, keep_links=False)
    try:
        names = [page.title for page in book.worksheets]
        name, notes = _choose(names, [page.sheet_state == "visible" for page in book.worksheets], sheet, what)
        page = book[name]
        page.reset_dimensions()  # many programs write wrong ones
        rows: Rows = []
        for number, values in enumerate(page.iter_rows(values_only=True), 1):
            if number > MAX_SHEET_ROWS:
                raise DataError(f"{what} has more than {MAX_SHEET_ROWS} rows; no workbook can. Save it as csv.")
            _add(rows, number, values, _cell_text)
        return rows, notes
    finally:
        book.close()


def _xls_rows(data: bytes, sheet: str, encoding: str | None, what: str) -> tuple[Rows, tuple[str, ...]]:
    with xlrd.open_workbook(
        file_contents=data, logfile=io.StringIO(), on_demand=True, ragged_rows=True, encoding_override=encoding
    ) as book:
        names = book.sheet_names()
        states = [book.sheet_by_name(name).visibility == 0 for name in names] if not sheet else [True] * len(names)
        name, notes = _choose(names, states, sheet, what)
        page = book.sheet_by_name(name)

        def text(cell: Any) -> str:
            if cell.ctype == xlrd.XL_CELL_DATE:
                if 0 <= cell.value < 1:
                    moment = xlrd.xldate.xldate_as_datetime(cell.value, book.datemode)
                    return _cell_text(moment.time())
                return _cell_text(xlrd.xldate.xldate_as_datetime(cell.value, book.datemode))
            if cell.ctype == xlrd.XL_CELL_BOOLEAN:
                return _cell_text(bool(cell.value))
            if cell.ctype == xlrd.XL_CELL_ERROR:
                return str(xlrd.error_text_from_code.get(cell.value, "#ERROR"))
            return _cell_text(cell.value)

        rows: Rows = []
        for index in range(page.nrows):
            _add(rows, index + 1, page.row(index), text)
        return rows, notes


def _choose(names: Sequence[str], visible: Sequence[bool], sheet: str, what: str) -> tuple[str, tuple[str, ...]]:
    if not names:
        raise DataError(f"{what} has no sheets with cells; expected at least one. Save it as csv.")
    if sheet and sheet not in names:
        raise DataError(f"{what} has no sheet {sheet!r:.80}; it has {', '.join(map(repr, names)):.400}. Name one of these.")
    name = sheet or next((name for name, shown in zip(names, visible, strict=True) if shown), names[0])
    others = [other for other in names if other != name]
    unread = f", not read: {', '.join(map(repr, others)):.200}" if others else ""
    return name, (f"sheet {name!r} ({'declared' if sheet else 'the first visible one'}{unread})",)


def _add(rows: Rows, number: int, values: Iterable[Any], text: Callable[[Any], str]) -> None:
    cells = [text(value) for value in values]
    while cells and not cells[-1]:
        cells.pop()
    rows.append((number, cells))


def _cell_text(value: Any) -> str:
    """Return a cell's value as text: whole numbers without a point, others with as few digits as give the same number again."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1 << 53 else repr(value)
    if isinstance(value, datetime):
        return value.date().isoformat() if value.time() == time() else value.isoformat()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return f"PT{value.total_seconds():g}S"
    return str(value).strip(BLANKS)
