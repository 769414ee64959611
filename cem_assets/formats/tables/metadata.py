"""Reading a source's metadata table as people publish it: csv, tsv, txt, xls or xlsx, also with .gz.

Every cell stays the text that it is in the file, so that ids such as "007", "1e5" or "NA" keep their form. The recipe decides
what counts as missing, and which column means what. `cem_assets.formats.tables.delimited_text` splits text into cells. Tables
that this platform writes itself are `cem_assets.cem.patches.tables`.
"""

import codecs
import gzip
import re
import zlib
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from pathlib import Path
from zipfile import BadZipFile

import charset_normalizer
import pandas as pd
import pyarrow.compute as pc

from cem_assets.errors import DataError
from cem_assets.formats import sniff
from cem_assets.formats.arrays import MAX_EXPANSION, shown
from cem_assets.formats.tables.delimited_text import BLANKS, SEPARATORS, TextRecords, detect_separator, parse_even
from cem_assets.formats.tables.workbooks import XLS_START, XLSX_START, Rows, sheet_rows, xlsx_unpacked_bytes

TEXT_SUFFIXES = (".csv", ".tsv", ".txt")
WORKBOOK_SUFFIXES = (".xls", ".xlsx")
TABLE_SUFFIXES: tuple[str, ...] = tuple(
    f"{suffix}{gz}" for gz in ("", ".gz") for suffix in (*TEXT_SUFFIXES, *WORKBOOK_SUFFIXES)
)
MAX_TABLE_BYTES = 4 << 30
"""Unpacked size above which a table is refused."""
MAX_WORKBOOK_BYTES = 1 << 30
"""The same for all parts of an xlsx file together; they take several times their size in memory."""
EXPANSION_FROM = 256 << 20
"""Unpacked size from which on a table may be taken for a decompression bomb; columns of a single value shrink a lot."""
MAX_COLUMNS = 10_000

_BLOCK = 4 << 20
_HEAD = 1 << 16
_MARKS = {
    codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
_NOT_TABLES = {
    "<!doctype html": "a web page", "<html": "a web page", "<?xml": "XML",
    "version https://git-lfs": "a Git LFS pointer, not the file it stands for",
}  # fmt: skip
_CONTROL = re.compile(r"[\x01-\x08\x0e-\x19\x1c-\x1f]")


@dataclass(frozen=True)
class TableOptions:
    """What a recipe says about a table; everything else is detected.

    Attributes:
        separator: The character between cells; None detects comma, tab, semicolon or pipe.
        encoding: Name of the encoding, such as "cp1252"; None detects it.
        columns: Names of the columns of a file without a header row; empty where the file has one.
        skip_rows: How many lines (or rows of a sheet) above the header are no part of the table.
        sheet: Name of the sheet of an xls or xlsx file; empty takes the first visible one.
        comment: Lines that begin with this text are no rows; empty where there are no such lines.
        quote: The character around quoted cells; empty where quotes are characters like any other.
    """

    separator: str | None = None
    encoding: str | None = None
    columns: tuple[str, ...] = ()
    skip_rows: int = 0
    sheet: str = ""
    comment: str = ""
    quote: str = '"'


_DETECT_ALL = TableOptions()


@dataclass(frozen=True)
class TableRead:
    """A table, and what became of its rows.

    Attributes:
        frame: The rows that were kept, in the order of the file. Every column has pandas' str dtype. Cells are stripped of
            blanks, and "" where they are missing, never NaN.
        num_rows_read: Rows below the header, kept and dropped; rows of only empty cells do not count.
        dropped: For each row that was dropped, its line in the file or its row in the sheet, counted from 1, and the reason.
        notes: What was detected and repaired, for the provenance record.
    """

    frame: pd.DataFrame
    num_rows_read: int
    dropped: tuple[tuple[int, str], ...]
    notes: tuple[str, ...]


def is_table(name: str) -> bool:
    """Tell whether a file's name has one of `TABLE_SUFFIXES`, in upper or lower case."""
    return name.lower().endswith(TABLE_SUFFIXES)


def read_metadata_table(path: Path, options: TableOptions = _DETECT_ALL) -> TableRead:
    """Read a metadata table from a local file with one of `TABLE_SUFFIXES`.

    A row with too few cells is padded with empty ones. A row with too many cells is kept where the additional ones are empty,
    and otherwise dropped with a reason. Column names that are empty or occur twice are made unique. Whole numbers in sheets
    become text without ".0", and dates become ISO 8601.

    Raises:
        DataError: The file is empty, binary, damaged, too large, cannot be decoded, is no table, has more than `MAX_COLUMNS`
            columns or lacks the sheet; or an option makes no sense.
    """
    what = shown(path)
    _check_options(what, options)
    if not is_table(path.name):
        raise DataError(f"{what} has no suffix of a table; expected one of {', '.join(TABLE_SUFFIXES)}. Rename it.")
    data = _contents(path, what)
    named_workbook = path.name.lower().removesuffix(".gz").endswith(WORKBOOK_SUFFIXES)
    if data.startswith((XLSX_START, XLS_START)):
        if not named_workbook:
            kind = "zip" if data.startswith(XLSX_START) else "an OLE document"
            raise DataError(f"{what} is {kind}; expected text by its name. Rename it to .xlsx or .xls if it is a workbook.")
        return _read_workbook(data, options, what)
    text, notes = _decode(data, options.encoding, path, what)
    if named_workbook:
        notes = (*notes, "text in a file named as a workbook")
    return _read_text(text, options, what, notes)


def _read_workbook(data: bytes, options: TableOptions, what: str) -> TableRead:
    unpacked = len(data)
    if data.startswith(XLSX_START):
        try:
            unpacked = xlsx_unpacked_bytes(data)
        except (BadZipFile, NotImplementedError, ValueError) as error:
            raise DataError(f"{what} is damaged or truncated (zip): {error}. Copy it again from its source.") from error
    _check_size(what, unpacked, len(data), MAX_WORKBOOK_BYTES)
    rows, notes = sheet_rows(data, options.sheet, options.encoding, what)
    rows = rows[options.skip_rows :]
    if options.comment:
        num_rows = len(rows)
        rows = [row for row in rows if not (row[1] and row[1][0].startswith(options.comment))]
        notes += _counted(num_rows - len(rows), "skipped as comments")
    return _assemble(rows, options, what, notes)


def _check_options(what: str, options: TableOptions) -> None:
    wrong = []
    if options.separator is not None and (len(options.separator) != 1 or options.separator in "\r\n\"'"):
        wrong.append(f"separator is {options.separator!r:.80}; expected one character, neither quote nor line end")
    if options.quote not in ("", '"', "'"):
        wrong.append(f"quote is {options.quote!r:.80}; expected \", ' or nothing")
    if options.skip_rows < 0:
        wrong.append(f"skip_rows is {options.skip_rows}; expected 0 or more")
    names = [name.strip(BLANKS) for name in options.columns]
    if "" in names or len(set(names)) < len(names) or len(names) > MAX_COLUMNS:
        wrong.append(f"columns are {options.columns!r:.200}; expected distinct names, at most {MAX_COLUMNS}, none empty")
    if wrong:
        raise DataError(f"{what} cannot be read as declared: {'; '.join(wrong)}. Correct the options of the table.")


def _contents(path: Path, what: str) -> bytes:
    """Read a file within limits of size, and unpack it where its name ends in .gz."""
    stored = path.stat().st_size
    if stored == 0:
        raise DataError(f"{what} is empty (0 bytes); expected a table. Copy it again from its source.")
    _check_size(what, stored, stored, MAX_TABLE_BYTES)
    with open(path, "rb") as handle:
        is_gzip = handle.read(2) == b"\x1f\x8b"
    if is_gzip and not path.name.lower().endswith(".gz"):
        raise DataError(f"{what} is gzip; expected an unpacked table by its name. Rename it to end in .gz.")
    if not is_gzip and path.name.lower().endswith(".gz"):
        raise DataError(f"{what} is not gzip, as its name says. Rename it without .gz, or copy it again from its source.")
    if not is_gzip:
        return path.read_bytes()
    blocks, total = [], 0
    try:
        with gzip.open(path, "rb") as source:
            while block := source.read(_BLOCK):
                total += len(block)
                _check_size(what, total, stored, MAX_TABLE_BYTES)
                blocks.append(block)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{what} is damaged or truncated (gzip): {error}. Copy it again from its source.") from error
    if not total:
        raise DataError(f"{what} is empty (0 bytes, unpacked); expected a table. Copy it again from its source.")
    return b"".join(blocks)


def _check_size(what: str, unpacked: int, stored: int, limit: int) -> None:
    if unpacked > limit:
        raise DataError(f"{what} unpacks to {unpacked} bytes or more; expected at most {limit}. Split it into several tables.")
    if unpacked > EXPANSION_FROM and unpacked > MAX_EXPANSION * stored:
        raise DataError(
            f"{what} unpacks to {unpacked} bytes or more, over {MAX_EXPANSION} times its {stored}; it is taken for a "
            "decompression bomb. If it is real, save it uncompressed."
        )


def _decode(data: bytes, declared: str | None, path: Path, what: str) -> tuple[str, tuple[str, ...]]:
    """Decode text by its declared encoding, or else by its byte order mark, as UTF-8, or by what its bytes look like."""
    mark = next((name for bom, name in _MARKS.items() if data.startswith(bom)), None)
    encoding = declared or mark or _utf16_without_mark(data) or "utf-8"
    how = "declared" if declared else "by its byte order mark" if mark else "detected"
    try:
        text = data.decode(encoding)
        text.isascii() or text.encode()  # refuses half a surrogate pair, which some codecs accept and nothing can store
    except LookupError as error:
        raise DataError(f"{what}: there is no text encoding {encoding!r:.80}. Give one such as 'cp1252'.") from error
    except UnicodeError as error:
        if declared or mark or encoding != "utf-8":
            raise DataError(
                f"{what} is not {encoding} ({how}): {error!s:.200}. Give the right encoding, or none to have it detected."
            ) from error
        text, encoding = _guessed(data)
        how = "guessed"
    head = text[:_HEAD]
    if "\0" in text or 100 * len(_CONTROL.findall(head)) > len(head):
        kind = None if path.name.lower().endswith(".gz") else sniff(path)
        raise DataError(f"{what} is {kind or 'binary'}: it has bytes that are no text; expected a table. Copy the right file.")
    text = text.removeprefix("\ufeff").rstrip("\x1a")  # DOS ends texts with 1A
    start = text[:100].lstrip().lower()
    for prefix, kind in _NOT_TABLES.items():
        if start.startswith(prefix):
            raise DataError(f"{what} is {kind}; expected a table. Copy the table itself from its source.")
    return text, (f"encoding {encoding} ({how})",)


def _utf16_without_mark(data: bytes) -> str | None:
    """Recognise UTF-16 by its NUL bytes: in Western text they are all the first, or all the second, of each pair of bytes."""
    even, odd = (data[start:_HEAD:2].count(0) for start in (0, 1))
    if len(data) % 2 or min(even, odd) or max(even, odd) < 0.4 * (min(len(data), _HEAD) // 2):
        return None
    return "utf-16-le" if odd else "utf-16-be"


def _guessed(data: bytes) -> tuple[str, str]:
    """Decode 8-bit text of an unknown encoding.

    charset-normalizer alone takes "10 µM" for Big5. High bytes that mostly stand alone are accents and units of Western text,
    and then only Western encodings are compared. For any other text charset-normalizer decides.
    """
    lines = re.finditer(rb"(?<![^\r\n])[^\r\n\x80-\xff]*+[\x80-\xff][^\r\n]*+", data)
    sample = b"\n".join(match.group() for match in islice(lines, 2000))[:_HEAD]
    runs = [len(run) for run in re.findall(rb"[\x80-\xff]+", sample)]
    candidates: list[str] = []
    if 2 * runs.count(1) >= sum(runs):
        western = charset_normalizer.from_bytes(
            sample, cp_isolation=["cp1252", "mac_roman"], threshold=1.0, enable_fallback=False
        )
        candidates = [match.encoding for match in western if match.encoding == "cp1252" or match.chaos < 0.2]
    if not candidates:
        wide = ["utf_7", "utf_16", "utf_16_be", "utf_16_le", "utf_32", "utf_32_be", "utf_32_le"]
        candidates = [match.encoding for match in charset_normalizer.from_bytes(sample, cp_exclusion=wide)]
    for encoding in (*candidates, "cp1252"):
        try:
            return data.decode(encoding), encoding
        except UnicodeError:
            continue  # the encoding fits the sample, but not the rest of the text
    return data.decode("latin-1"), "latin-1"  # latin-1 has a character for every byte


def _read_text(text: str, options: TableOptions, what: str, notes: tuple[str, ...]) -> TableRead:
    if "\r" in text:
        num_pairs, num_cr = text.count("\r\n"), text.count("\r")
        if num_cr > num_pairs:
            notes = (*notes, "line ends CR" if not text.count("\n") else "line ends of several kinds")
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = text.rstrip("\n")
    start = 0
    for _ in range(options.skip_rows):
        start = text.find("\n", start) + 1 or len(text)
    hint = re.compile(r"sep=([^\n])(?:\n|\Z)").match(text, start)  # a line by which Excel marks the separator
    first_line = 1 + options.skip_rows + bool(hint)
    start = hint.end() if hint else start
    if not text[start:].strip(BLANKS):
        below = " below the lines that are no part of the table" if start else ""
        raise DataError(f"{what} is empty{below}; expected a header or rows. Copy it again from its source.")
    separator, how = options.separator, "declared"
    if separator is None:
        separator, how = (hint[1], "by its first line") if hint else (None, "detected")
    if separator is None:
        separator = detect_separator(text, start, options.columns, options.quote, options.comment)
    notes = (*notes, f"separator {SEPARATORS.get(separator, repr(separator))} ({how})")
    records = TextRecords(text, start, first_line, separator, options.quote, options.comment)
    even = parse_even(records, [name.strip(BLANKS) for name in options.columns], MAX_COLUMNS)
    if even is None:
        return _assemble(records, options, what, notes)
    header, table = even
    names, renamed = _unique_names(header)
    is_empty = [pc.equal(column, "") for column in table.columns]
    if num_empty := pc.sum(reduce(pc.and_, is_empty)).as_py() or 0:
        table = table.filter(pc.invert(reduce(pc.and_, is_empty)))
    frame = pd.DataFrame(dict(zip(names, (column.to_pandas() for column in table.columns), strict=True)))
    return TableRead(frame, len(frame), (), (*notes, *renamed, *_counted(num_empty, "of only empty cells skipped")))


def _assemble(records: TextRecords | Rows, options: TableOptions, what: str, notes: tuple[str, ...]) -> TableRead:
    """Put rows together to a table; rows may be of different widths, empty, or comments."""
    header = [name.strip(BLANKS) for name in options.columns]
    rows: list[list[str]] = []
    dropped: list[tuple[int, str]] = []
    num_empty = num_padded = num_shortened = 0
    for number, cells in records:
        if not any(cells):
            num_empty += 1
        elif not header:
            header = cells
            _check_width(header, what)
        elif len(cells) == len(header):
            rows.append(cells)
        elif len(cells) < len(header):
            num_padded += 1
            rows.append(cells + [""] * (len(header) - len(cells)))
        elif any(cells[len(header) :]):
            extra = next(cell for cell in cells[len(header) :] if cell)
            dropped.append((number, f"it has {len(cells)} cells; expected {len(header)}, and found {extra!r:.60} after them"))
        else:
            num_shortened += 1
            rows.append(cells[: len(header)])
    if not header:
        raise DataError(f"{what} has no row that is not empty; expected a header. Copy it again from its source.")
    names, renamed = _unique_names(header)
    columns = zip(*rows, strict=True) if rows else [()] * len(names)
    frame = pd.DataFrame({name: pd.Series(cells, dtype="str") for name, cells in zip(names, columns, strict=True)})
    notes += renamed + _counted(num_empty, "of only empty cells skipped")
    notes += _counted(num_padded, "with too few cells padded with empty ones")
    notes += _counted(num_shortened, "with empty cells beyond the last column")
    if isinstance(records, TextRecords):
        notes += _counted(records.num_comments, "skipped as comments", "line")
        notes += _counted(records.num_stray_quotes, "with quotes that do not enclose them, taken as they stand", "cell")
    return TableRead(frame, len(rows) + len(dropped), tuple(dropped), notes)


def _counted(number: int, what: str, unit: str = "row") -> tuple[str, ...]:
    return (f"{number} {unit}{'' if number == 1 else 's'} {what}",) if number else ()


def _check_width(header: list[str], what: str) -> None:
    if len(header) > MAX_COLUMNS:
        raise DataError(
            f"{what} has {len(header)} columns; expected at most {MAX_COLUMNS}. Give the right separator, or transpose it."
        )


def _unique_names(header: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """Name the columns. The first of equal names stays; the next ones become "name.2" or the next number that is free."""
    taken, names, changed = {cell for cell in header if cell}, [], []
    seen: set[str] = set()
    numbers: dict[str, int] = {}
    for position, cell in enumerate(header, 1):
        name = base = cell or f"column {position}"
        while name in seen or (name != cell and name in taken):
            numbers[base] = numbers.get(base, 1) + 1
            name = f"{base}.{numbers[base]}"
        if name != cell:
            changed.append(f"{cell!r:.60} of column {position} to {name!r:.60}")
        seen.add(name)
        names.append(name)
    more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
    return names, (f"empty or repeated column names changed: {', '.join(changed[:5])}{more}",) if changed else ()
