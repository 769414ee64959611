"""Parsing delimited text (csv, tsv) into records, whatever its dialect.

A cell is quoted where it begins with a quote and ends with the closing quote, with nothing but blanks around them. Inside, two
quotes stand for one, and separators and line breaks are text. Quotes elsewhere are characters like any other, so that a quote
that is never closed spoils at most its own cell. The text must have LF line ends.
`cem_assets.formats.tables.metadata` reads files, decodes text, and decides what becomes of rows of another width.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

SEPARATORS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "pipe"}
"""The separators that are detected, and their names."""
BLANKS = " \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000\u200b\ufeff" + "".join(
    map(chr, range(0x2000, 0x200B))
)
"""The characters that are stripped from cells. The set is fixed, because Python and pyarrow disagree on what a blank is."""

_DETECTION_ROWS = 200
_DETECTION_CHARACTERS = 1 << 18
_BLOCK = 4 << 20


@dataclass
class TextRecords:
    """The records of a text. Iterating gives (line of the file, counted from 1; cells without blanks around them).

    Attributes:
        text: The text, with LF line ends.
        start: Where in the text the first record begins.
        first_line: The number of that line in the file.
        separator: One character.
        quote: The character around quoted cells, or empty.
        comment: What a line that is no record begins with, or empty.
        position: Where in the text the record after the latest one begins.
        num_comments: Comment lines so far.
        num_stray_quotes: Cells so far that contain quotes and are not quoted.
    """

    text: str
    start: int
    first_line: int
    separator: str
    quote: str = '"'
    comment: str = ""
    position: int = field(default=0, init=False)
    num_comments: int = field(default=0, init=False)
    num_stray_quotes: int = field(default=0, init=False)

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        text, separator, quote, comment = self.text, self.separator, self.quote, self.comment
        following, self.position, self.num_comments, self.num_stray_quotes = self.first_line, self.start, 0, 0
        while self.position < len(text):
            end = text.find("\n", self.position)
            end = len(text) if end < 0 else end
            row = text[self.position : end]
            line, following = following, following + 1
            if comment and row.startswith(comment):
                self.num_comments += 1
                self.position = end + 1
                continue
            if quote and quote in row:
                cells, end = self._quoted_record()
                following += text.count("\n", self.position, end)
            else:
                cells = [cell.strip(BLANKS) for cell in row.split(separator)]
            self.position = end + 1
            yield line, cells

    def _quoted_record(self) -> tuple[list[str], int]:
        """Parse the record at `position`, and return its cells and where it ends."""
        quoted, plain = _cell_patterns(self.separator, self.quote)
        text, quote, position = self.text, self.quote, self.position
        cells = []
        while True:
            if match := quoted.match(text, position):
                cell = match[1].replace(2 * quote, quote).strip(BLANKS)
            else:
                match = plain.match(text, position)
                assert match is not None  # the pattern matches an empty text as well
                cell = match[0].strip(BLANKS)
                self.num_stray_quotes += quote in cell
            cells.append(cell)
            position = match.end()
            if position == len(text) or text[position] == "\n":
                return cells, position
            position += 1


def _cell_patterns(separator: str, quote: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Return the patterns of a quoted cell and of any other cell; the re module caches them."""
    mark, end = re.escape(quote), re.escape(separator) + r"\n"
    blank = "[" + " \t".replace(separator, "") + "]"
    inside = rf"[^{mark}]*+(?:{mark}{mark}[^{mark}]*+)*+"
    return re.compile(rf"{blank}*+{mark}({inside}){mark}{blank}*+(?![^{end}])"), re.compile(rf"[^{end}]*")


def detect_separator(text: str, start: int, columns: Sequence[str], quote: str, comment: str) -> str:
    """Find which of `SEPARATORS` a text uses, from its first rows.

    The header decides, because characters that also occur inside cells, such as "|" between labels, are rare there. Among those
    that split the header, the separator is taken that makes most rows as wide as the header. Of equal ones it is the one that
    leaves no quotes inside cells, then the one that is no decimal comma, then the one that splits most.

    Args:
        text: The text, with LF line ends.
        start: Where in the text the first record begins.
        columns: Names of the columns where the text has no header.
        quote: The character around quoted cells, or empty.
        comment: What a line that is no record begins with, or empty.
    """
    sample = text[start : start + _DETECTION_CHARACTERS]
    has_decimal_commas = re.search(r"(?<!\d),|,(?!\d)", sample) is None

    def merit(separator: str) -> tuple[bool, float, int, bool, int, int]:
        records = TextRecords(sample, 0, 1, separator, quote, comment)
        widths = [len(cells) for _, cells in islice(records, _DETECTION_ROWS) if any(cells)]
        if len(widths) > 2 and records.position >= len(sample) < len(text) - start:
            widths.pop()  # the sample may end inside this row
        if not widths:  # the sample has nothing but this separator
            return True, 1.0, 0, True, 0, 0
        width = len(columns) or widths[0]
        rows = widths if columns else widths[1:]
        agreement = rows.count(width) / len(rows) if rows else 1.0
        is_likely = not (separator == "," and has_decimal_commas)
        return width > 1, round(agreement, 1), -records.num_stray_quotes, is_likely, width, sum(rows)

    return max(SEPARATORS, key=merit)


def parse_even(records: TextRecords, columns: Sequence[str], max_columns: int) -> tuple[list[str], pa.Table] | None:
    """Parse well-formed text with pyarrow, several times as fast as record by record.

    Args:
        records: The text; it is iterated up to the header.
        columns: Names of the columns where the text has no header.
        max_columns: Texts with a wider header are not tried.

    Returns:
        The header's cells, and the rows below it as a table of as many columns of strings without blanks around them. None
        where the text is not simple enough (its header, quotes, comments, blank lines or widths of rows); then `records` must
        be iterated instead.
    """
    if columns:
        header, body = list(columns), records.text[records.start :]
    else:
        header = next(iter(records), (0, [""]))[1]
        body = records.text[records.position :]
    quote, separator = records.quote, records.separator
    if not any(header) or len(header) > max_columns or records.num_comments or records.num_stray_quotes:
        return None
    if not body or body[0] == "\n" or "\n\n" in body or not separator.isascii() or not quote.isascii():
        return None
    if records.comment and records.comment in body:
        return None
    is_quoted = bool(quote) and quote in body
    if is_quoted:
        mark, end = re.escape(quote), re.escape(separator) + r"\n"
        whole_cell = rf"(?<![^{end}]){mark}[^{mark}]*+(?:{mark}{mark}[^{mark}]*+)*+{mark}(?![^{end}])"
        if quote in re.sub(whole_cell, "", body):
            return None
    names = [str(number) for number in range(len(header))]
    try:
        table = pyarrow.csv.read_csv(
            pa.BufferReader(body.encode()),
            pyarrow.csv.ReadOptions(column_names=names, block_size=_BLOCK),
            pyarrow.csv.ParseOptions(
                delimiter=separator,
                quote_char=quote if is_quoted else False,
                newlines_in_values=is_quoted,
                ignore_empty_lines=False,
            ),
            pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
        )
    except pa.ArrowInvalid:
        return None  # a row has another width than the header, or is larger than a block
    return header, pa.table([pc.utf8_trim(column, BLANKS) for column in table.columns], names)
