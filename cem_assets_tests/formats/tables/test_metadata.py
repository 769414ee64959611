"""Metadata tables of every dialect keep each cell as it was published, and say which rows were dropped."""

import codecs
import csv
import datetime
import gzip
import io
import struct
import tempfile
import zipfile
from pathlib import Path

import openpyxl
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cem_assets.formats.tables import metadata as metadata_tables
from cem_assets.formats.tables import workbooks
from cem_assets.formats.tables.delimited_text import BLANKS, SEPARATORS, TextRecords, detect_separator, parse_even
from cem_assets.formats.tables.metadata import TableOptions, TableRead, is_table, read_metadata_table

REMEDIES = ("Copy", "Rename", "Split", "Give", "Correct", "Name one", "Save it", "save it")


def written(folder: Path, content: bytes | str, name: str = "t.csv") -> Path:
    path = folder / name
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(data, 1) if name.endswith(".gz") else data)
    return path


def read(folder: Path, content: bytes | str, name: str = "t.csv", **options) -> TableRead:
    return read_metadata_table(written(folder, content, name), TableOptions(**options))


def cells(table: TableRead) -> list[list[str]]:
    """Return the header and the rows of a table."""
    assert all(dtype == "str" for dtype in table.frame.dtypes), table.frame.dtypes
    assert not table.frame.isna().any().any()
    assert table.frame.index.tolist() == list(range(len(table.frame)))
    return [list(table.frame.columns), *table.frame.to_numpy(dtype=object).tolist()]


def refused(path: Path, *parts: str, **options) -> str:
    with pytest.raises(ValueError) as caught:
        read_metadata_table(path, TableOptions(**options))
    message = str(caught.value)
    for part in (path.name, *parts):
        assert part in message, (part, message)
    assert any(remedy in message for remedy in REMEDIES), message
    assert str(path.parent) not in message
    return message


# Real tables

REAL = [
    ("metadata/bbbc021/BBBC021_v1_image.csv.gz", 13200, 13),
    ("metadata/bbbc021/BBBC021_v1_moa.csv", 104, 3),
    ("metadata/bbbc021/BBBC021_v1_moa_CR_line_ends.csv", 104, 3),
    ("metadata/cem_dataset/ngff_datasets.csv", 45, 13),
    ("metadata/cytoimagenet_history/bbbc005_metadata.csv", 2400, 12),
    ("metadata/cytoimagenet_history/bbbc006_metadata.csv", 1536, 11),
    ("metadata/cytoimagenet_history/bbbc013_metadata.csv", 192, 11),
    ("metadata/cytoimagenet_history/bbbc014_metadata.csv", 192, 11),
    ("metadata/cytoimagenet_history/bbbc039_metadata.csv", 200, 11),
    ("metadata/cytoimagenet_history/datasets_info.csv", 66, 21),
    ("metadata/cytoimagenet_history/kag_leukemia_metadata.csv", 13766, 11),
    ("metadata/idr0013-neumann-mitocheck/idr0013-screenB-library.txt", 10752, 23),
    ("metadata/idr0013-neumann-mitocheck/idr0013-screenB-processed.txt", 10181, 74),
    ("metadata/idr0035-caie-drugresponse/idr0035-screenA-annotation.csv", 3300, 17),
    ("metadata/idr0036-gustafsdottir-cellpainting/idr0036-screenA-library.txt", 7680, 19),
    ("metadata/jump_cp/compound_source.csv.gz", 127060, 2),
    ("metadata/jump_cp/crispr.csv.gz", 7977, 3),
    ("metadata/jump_cp/orf.csv.gz", 15132, 12),
    ("metadata/jump_cp/plate.csv.gz", 2525, 4),
    ("metadata/jump_cp/well.csv.gz", 742825, 4),
    ("fluorescence/bbbc013_sbs/1049_Metadata.csv", 96, 5),
]


@pytest.mark.parametrize(("name", "num_rows", "num_columns"), REAL, ids=[row[0].rsplit("/", 1)[-1] for row in REAL])
def test_real_tables_are_read_whole(test_data, name, num_rows, num_columns):
    table = read_metadata_table(test_data / name)
    assert table.frame.shape == (num_rows, num_columns)
    assert (table.num_rows_read, table.dropped) == (num_rows, ())
    assert (table.frame.dtypes == "str").all() and not table.frame.isna().any().any()


@pytest.mark.parametrize("name", [row[0] for row in REAL if row[1] < 20000], ids=lambda name: name.rsplit("/", 1)[-1])
def test_real_tables_hold_what_the_standard_library_reads(test_data, name):
    data = (test_data / name).read_bytes()
    text = (gzip.decompress(data) if name.endswith(".gz") else data).decode("utf-8-sig")
    separator = "\t" if name.endswith(".txt") else ","
    limit = csv.field_size_limit(1 << 24)  # a cell of datasets_info.csv has more than the usual 131,072 characters
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    finally:
        csv.field_size_limit(limit)
    expected = [[cell.strip(BLANKS).replace("\r\n", "\n") for cell in row] for row in rows if any(row)]
    expected[0] = [cell or f"column {n}" for n, cell in enumerate(expected[0], 1)]
    assert cells(read_metadata_table(test_data / name)) == expected


def test_every_table_of_the_real_data_is_listed_here(test_data):
    found = {str(path.relative_to(test_data)) for path in (test_data / "metadata").rglob("*") if is_table(path.name)}
    assert found == {name for name, *_ in REAL if name.startswith("metadata/")}


def test_the_copy_with_cr_line_ends_equals_the_other_up_to_the_form_of_numbers(test_data):
    folder = test_data / "metadata/bbbc021"
    one, other = (read_metadata_table(folder / f"BBBC021_v1_moa{end}.csv") for end in ("", "_CR_line_ends"))
    assert one.frame["concentration"][0] == "3.000000" and other.frame["concentration"][0] == "3"
    for frame in (one.frame, other.frame):
        frame["concentration"] = pd.to_numeric(frame["concentration"])
    pd.testing.assert_frame_equal(one.frame, other.frame)
    assert "line ends CR" in other.notes


def test_ids_of_a_real_table_keep_their_form(test_data):
    frame = read_metadata_table(test_data / "fluorescence/bbbc013_sbs/1049_Metadata.csv").frame
    assert frame["Column"][:3].tolist() == ["01", "02", "03"]
    genes = read_metadata_table(test_data / "metadata/jump_cp/crispr.csv.gz").frame
    assert genes.iloc[0].tolist() == ["JCP2022_800001", "", "no-guide"]


@pytest.mark.parametrize("name", ["metadata/jump_cp/well.csv.gz", "metadata/jump_cp/orf.csv.gz"])
def test_large_real_tables_take_the_fast_way(test_data, name):
    text = gzip.decompress((test_data / name).read_bytes()).decode().replace("\r\n", "\n").rstrip("\n")
    even = parse_even(TextRecords(text, 0, 1, ","), (), 10_000)
    assert even is not None and even[1].num_rows == next(num for path, num, _ in REAL if path == name)


# Dialects

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252", "latin-1")
WRITABLE = st.text(st.sampled_from("ab7 ,;|\t\n\"'µéNA.-") | st.characters(min_codepoint=33, max_codepoint=126), max_size=6)


def kept(rows: list[list[str]]) -> list[list[str]]:
    stripped = [[cell.strip(BLANKS) for cell in row] for row in rows]
    return [row for row in stripped if any(row)]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_what_a_csv_writer_writes_comes_back(data):
    width = data.draw(st.integers(1, 5))
    header = [f"c{n} {data.draw(st.sampled_from(['', 'µM', 'a, b', 'x|y']))}".strip() for n in range(width)]
    rows = data.draw(st.lists(st.lists(WRITABLE, min_size=width, max_size=width), max_size=8))
    separator = data.draw(st.sampled_from(list(SEPARATORS)))
    line_end = data.draw(st.sampled_from(["\n", "\r", "\r\n"]))
    quoting = data.draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    if any("\n" in cell for row in rows for cell in row):
        quoting = csv.QUOTE_ALL  # older csv writers do not quote LF where lines end in CR
    encoding = data.draw(st.sampled_from(ENCODINGS))
    name = data.draw(st.sampled_from(["t.csv", "t.TSV", "t.txt.gz"]))
    has_header = data.draw(st.booleans())
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator, lineterminator=line_end, quoting=quoting)
    writer.writerows([header, *rows] if has_header else rows)
    text = out.getvalue()
    if not text.strip(BLANKS + '"'):
        return
    options = {"separator": separator, "encoding": encoding, "columns": () if has_header else tuple(header)}
    with tempfile.TemporaryDirectory() as folder:
        table = read(Path(folder), text.encode(encoding), name, **options)
    expected = kept(rows)
    assert cells(table) == [header, *expected]
    assert table.num_rows_read == len(expected) and not table.dropped


def slow_records(text: str, separator: str, quote: str) -> list[tuple[int, list[str]]]:
    """Parse records by the definition, one character after the other."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    while text.endswith("\n"):
        text = text[:-1]
    records, row, place, line, first = [], [], 0, 1, 1
    blanks = [c for c in " \t" if c != separator]
    while True:
        end, inside = None, ""
        probe = place
        while text[probe : probe + 1] in blanks and probe < len(text):
            probe += 1
        if quote and text[probe : probe + 1] == quote:
            probe += 1
            while probe < len(text):
                if text[probe : probe + 2] == quote * 2:
                    inside += quote
                    probe += 2
                elif text[probe] == quote:
                    probe += 1
                    while probe < len(text) and text[probe] in blanks:
                        probe += 1
                    if probe == len(text) or text[probe] in (separator, "\n"):
                        end = probe
                    break
                else:
                    inside += text[probe]
                    probe += 1
        if end is None:
            end = place
            while end < len(text) and text[end] not in (separator, "\n"):
                end += 1
            inside = text[place:end]
        line += text[place:end].count("\n")
        row.append(inside.strip(BLANKS))
        place = end + 1
        if end == len(text) or text[end] == "\n":
            records.append((first, row))
            row = []
            line += 1
            first = line
        if end == len(text):
            return records


def slow_table(text: str, separator: str, quote: str) -> tuple[list[list[str]], int, list[int]]:
    """Return (header and rows, rows read, lines dropped) by the definition, for headers without empty and equal cells."""
    header, rows, dropped = None, [], []
    for line, row in slow_records(text, separator, quote):
        if not any(row):
            continue
        if header is None:
            header = row
        elif any(row[len(header) :]):
            dropped.append(line)
        else:
            rows.append((row + [""] * len(header))[: len(header)])
    return [header, *rows], len(rows) + len(dropped), dropped


MESSY = st.text(st.sampled_from('ab1,,,"" \t\n\n\r|'), max_size=60)


@settings(max_examples=600, deadline=None)
@given(MESSY, st.sampled_from([",", "\t", "|", " "]), st.sampled_from(['"', "", "'"]))
def test_any_text_is_read_as_the_definition_says(body, separator, quote):
    text = f"head{separator}tail\n{body}"
    with tempfile.TemporaryDirectory() as folder:
        table = read(Path(folder), text, separator=separator, quote=quote)
    expected, num_read, lines = slow_table(text, separator, quote)
    assert cells(table) == expected
    assert (table.num_rows_read, [line for line, _ in table.dropped]) == (num_read, lines)


TIDY_CELL = st.sampled_from(
    ["", "a", " b ", "NA", "007", "1e5", '"q"', '"x,y"', '"say ""hi"""', '"two\nlines"', "µ", "'", '""', "\u2003x"]
)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(TIDY_CELL, min_size=n, max_size=n), min_size=1, max_size=8)))
def test_both_ways_of_parsing_give_the_same_table(rows):
    width = len(rows[0])
    text = "\n".join(",".join(row) for row in [[f"c{n}" for n in range(width)], *rows])
    options = TableOptions(separator=",")
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = written(Path(folder), text)
        fast = read_metadata_table(path, options)
        patch.setattr(metadata_tables, "parse_even", lambda *_: None)
        careful = read_metadata_table(path, options)
    pd.testing.assert_frame_equal(fast.frame, careful.frame)
    assert (fast.num_rows_read, fast.dropped, fast.notes) == (careful.num_rows_read, careful.dropped, careful.notes)


@pytest.mark.parametrize(
    ("body", "is_even"),
    [
        ("1,2\n3,4", True),
        ('"1","2"\n"a ""b""","x\ny"', True),
        (' 1,"2"', True),
        (",", True),
        ("1,2\n3", False),
        ("1,2\n3,4,5", False),
        ("1,2\n\n3,4", False),
        ('1, "2"', False),
        ('1,5" dish', False),
        ('"open,2', False),
        ("", False),
    ],
)
def test_the_fast_way_is_taken_where_text_is_even(body, is_even):
    assert (parse_even(TextRecords(f"a,b\n{body}".rstrip("\n"), 0, 1, ","), (), 10) is not None) == is_even


def test_a_row_larger_than_a_block_of_the_fast_way_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("cem_assets.formats.tables.delimited_text._BLOCK", 1 << 10)
    long = "x" * 5000
    assert cells(read(tmp_path, f"a,b\n1,{long}\n2,y\n"))[1:] == [["1", long], ["2", "y"]]


# Encodings


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252", "latin-1"])
def test_encodings_are_detected(tmp_path, encoding):
    table = read(tmp_path, "compound,dose\nfoo,10 µM\nJosé,5 °C ± 1\n".encode(encoding))
    assert cells(table)[1:] == [["foo", "10 µM"], ["José", "5 °C ± 1"]]


@pytest.mark.parametrize(
    ("encoding", "found", "text"),
    [
        ("cp1252", "cp1252", "t\n1–2 µm “soft”\n"),
        ("cp1252", "cp1252", "t\nZürich Åberg\n"),
        ("mac_roman", "mac_roman", "name,city\nJosé,Zürich\nFrançois,Orléans\nBjörn,Malmö\n"),
        ("cp1251", "cp1251", "ген,описание\nTP53,опухолевый белок\nBRCA1,рак молочной железы\n"),
        ("shift_jis", "cp932", "遺伝子,説明\nTP53,腫瘍抑制タンパク質\nx,細胞 核\n"),
        ("gb18030", "gb18030", "基因,说明\nTP53,肿瘤抑制蛋白\nx,细胞核\n"),
        ("utf-16-le", "utf-16-le", "gene,dose\nTP53,µ\n"),
        ("utf-16-be", "utf-16-be", "gene,dose\nTP53,µ\n"),
    ],
)
def test_encodings_without_a_mark_are_told(tmp_path, encoding, found, text):
    table = read(tmp_path, text.encode(encoding))
    assert [row[0] for row in cells(table)] == [line.split(",")[0] for line in text.splitlines()]
    assert table.notes[0].startswith(f"encoding {found} (")


def test_a_declared_encoding_wins(tmp_path):
    text = "t,u\nŁódź,1\n"
    table = read(tmp_path, text.encode("cp1250"), encoding="cp1250")
    assert cells(table)[1] == ["Łódź", "1"] and table.notes[0] == "encoding cp1250 (declared)"
    assert cells(read(tmp_path, codecs.BOM_UTF8 + text.encode(), encoding="utf-8")) == [["t", "u"], ["Łódź", "1"]]


# Line ends, separators, headers


@pytest.mark.parametrize(
    "text", ["a,b\n1,2\n3,4\n", "a,b\r1,2\r3,4", "a,b\r\n1,2\r\n3,4\r\n", "a,b\r1,2\n3,4\r\n\r\n", "a,b\n1,2\r3,4\x1a"]
)
def test_any_line_ends(tmp_path, text):
    assert cells(read(tmp_path, text)) == [["a", "b"], ["1", "2"], ["3", "4"]]


@pytest.mark.parametrize(
    ("text", "separator"),
    [
        ("a,b\n1,2", ","),
        ("a\tb, c\n1\t2", "\t"),
        ("a;b\n1,5;2,5\n2,5;3,0", ";"),
        ("a|b\n1|2", "|"),
        ("name,labels\nx,a|b\ny,a|b", ","),
        ("name,channels\nx,DAPI:DNA;Actin:red;x\ny,DAPI:DNA;Actin:red;x", ","),
        ('name\t"a,b"\nx\t"1,2"', "\t"),
        ("plate\tscore (a, b)\tnote, more\n1\t2\t3\n1\t2\t3", "\t"),
        ("a,b,c\n1,2\n3,4", ","),
        ("a,b\n1,2\n3,4", ","),
        ('size\tnote\n5" dish\tx, y\n6" dish\tx, y', "\t"),
    ],
)
def test_separators_are_detected(tmp_path, text, separator):
    assert detect_separator(text, 0, (), '"', "") == separator
    assert f"separator {SEPARATORS[separator]} (detected)" in read(tmp_path, text).notes


def test_the_separator_of_a_file_without_header_is_the_one_that_gives_its_columns(tmp_path):
    table = read(tmp_path, "1,5;x\n2,5;y\n", columns=("dose", "name"))
    assert cells(table) == [["dose", "name"], ["1,5", "x"], ["2,5", "y"]]


def test_one_column_with_commas_in_some_cells_stays_one_column(tmp_path):
    assert cells(read(tmp_path, "compound\nfoo, bar\nbaz\n")) == [["compound"], ["foo, bar"], ["baz"]]


def test_a_long_file_is_not_judged_by_a_row_cut_short():
    text = "a;b\n" + '1;"' + "x,y," * 100_000 + '"\n2;3'
    assert detect_separator(text, 0, (), '"', "") == ";"


def test_excels_separator_line_is_no_header(tmp_path):
    table = read(tmp_path, "sep=;\r\na;b\r\n1;2;3\r\n")
    assert list(table.frame.columns) == ["a", "b"] and table.dropped[0][0] == 3
    assert "separator semicolon (by its first line)" in table.notes


def test_lines_above_the_table_and_comments_are_skipped_and_lines_counted_from_the_top(tmp_path):
    table = read(tmp_path, 'exported\n"by", me\n#x\na,b\n# no,row\n1,2\n1,2,3\n', skip_rows=2, comment="#")
    assert cells(table) == [["a", "b"], ["1", "2"]]
    assert table.dropped[0][0] == 7 and "2 lines skipped as comments" in table.notes


def test_empty_and_repeated_names_become_unique(tmp_path):
    table = read(tmp_path, "name,,name,name.2,name,\n1,2,3,4,5,6\n")
    assert list(table.frame.columns) == ["name", "column 2", "name.3", "name.2", "name.4", "column 6"]
    assert any("'name' of column 3 to 'name.3'" in note for note in table.notes)
    assert list(read(tmp_path, "name,name\n1,2\n").frame.columns) == ["name", "name.2"]
    assert list(read(tmp_path, "column 2,\n1,2\n").frame.columns) == ["column 2", "column 2.2"]


# Rows


def test_a_short_row_is_padded_and_told(tmp_path):
    table = read(tmp_path, "a,b,c\n1,2\n3,4,5\n6\n")
    assert cells(table)[1:] == [["1", "2", ""], ["3", "4", "5"], ["6", "", ""]]
    assert "2 rows with too few cells padded with empty ones" in table.notes


def test_a_long_row_is_dropped_by_its_line_unless_the_rest_is_empty(tmp_path):
    table = read(tmp_path, 'a,b\n"1\n2",3\n4,5,,\n6,7,8\n9,10\n')
    assert cells(table)[1:] == [["1\n2", "3"], ["4", "5"], ["9", "10"]]
    assert table.dropped == ((5, "it has 3 cells; expected 2, and found '8' after them"),)
    assert table.num_rows_read == 4
    assert "1 row with empty cells beyond the last column" in table.notes


@pytest.mark.parametrize("text", ["a,b\n\n,\n1,2\n , \n", "\n,\na,b\n1,2\n\t,\n\n\n", "a,b\n,\n , \n1,2"])
def test_rows_of_empty_cells_are_skipped_and_counted(tmp_path, text):
    table = read(tmp_path, text, separator=",")
    assert cells(table) == [["a", "b"], ["1", "2"]] and table.num_rows_read == 1
    counts = {note for note in table.notes if "only empty" in note}
    assert counts in ({"3 rows of only empty cells skipped"}, {"2 rows of only empty cells skipped"})


def test_cells_keep_their_form(tmp_path):
    row = ["007", "1e5", "NA", "nan", "NULL", "True", "1.0", "-", "2020-01-02", "=SUM(A1)"]
    table = read(tmp_path, ",".join(f"c{n}" for n in range(len(row))) + "\n" + ",".join(row) + "\n")
    assert cells(table)[1] == row


def test_quotes_that_enclose_nothing_spoil_only_their_cell(tmp_path):
    table = read(tmp_path, 'a,b\n5" dish,x\n"open,y\n"a"b,z\n"good, one" , "w"\n')
    assert cells(table)[1:] == [['5" dish', "x"], ['"open', "y"], ['"a"b', "z"], ["good, one", "w"]]
    assert "3 cells with quotes that do not enclose them, taken as they stand" in table.notes


def test_quotes_can_be_declared_characters(tmp_path):
    table = read(tmp_path, 'a\tb\n"x\ty"\n', quote="")
    assert cells(table)[1:] == [['"x', 'y"']]


def test_a_header_alone_is_a_table_without_rows(tmp_path):
    for text in ("a,b\n", "a,b", "a,b\n\n"):
        table = read(tmp_path, text)
        assert cells(table) == [["a", "b"]] and table.num_rows_read == 0


# Workbooks


def xlsx(**sheets: list[list[object]]) -> bytes:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        page = book.create_sheet(name)
        for row in rows:
            page.append(row)
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


def xls(**sheets: list[list[object]]) -> bytes:
    """Return a BIFF8 workbook in an OLE container of one FAT sector, by the published layouts."""

    def record(kind: int, body: bytes) -> bytes:
        return struct.pack("<HH", kind, len(body)) + body

    def text(value: str, count: str) -> bytes:
        return struct.pack(count, len(value)) + b"\1" + value.encode("utf-16-le")

    def page(rows: list[list[object]]) -> bytes:
        out = record(0x809, struct.pack("<HHHHII", 0x600, 0x10, 0, 0, 0, 0))
        for y, row in enumerate(rows):
            for x, value in enumerate(row):
                if isinstance(value, str):
                    out += record(0x204, struct.pack("<HHH", y, x, 0) + text(value, "<H"))
                elif isinstance(value, bool):
                    out += record(0x205, struct.pack("<HHHBB", y, x, 0, value, 0))
                elif isinstance(value, datetime.datetime):
                    days = (value - datetime.datetime(1899, 12, 30)) / datetime.timedelta(days=1)
                    out += record(0x203, struct.pack("<HHHd", y, x, 1, days))
                elif value is not None:
                    out += record(0x203, struct.pack("<HHHd", y, x, 0, value))
        return out + record(0x0A, b"")

    formats = b"".join(record(0xE0, struct.pack("<HH", 0, key) + bytes(16)) for key in (0, 14))
    start = record(0x809, struct.pack("<HHHHII", 0x600, 5, 0, 0, 0, 0)) + record(0x42, struct.pack("<H", 1200)) + formats
    pages = {name: page(rows) for name, rows in sheets.items()}
    offset = len(start) + sum(4 + 8 + 2 * len(name) for name in pages) + 4
    bounds = b""
    for name, body in pages.items():
        bounds += record(0x85, struct.pack("<IBB", offset, 0, 0) + text(name, "<B"))
        offset += len(body)
    stream = start + bounds + record(0x0A, b"") + b"".join(pages.values())
    stream = stream.ljust(max(4096, -(-len(stream) // 512) * 512), b"\0")
    num_sectors = len(stream) // 512
    chain = [-3, -2, *range(3, num_sectors + 2), -2]
    fat = struct.pack("<128i", *(chain + [-1] * 128)[:128])

    def entry(name: str, kind: int, child: int, first: int, size: int) -> bytes:
        raw = name.encode("utf-16-le")
        links = struct.pack("<BBiii", kind, 1, -1, -1, child)
        return raw.ljust(64, b"\0") + struct.pack("<H", len(raw) + 2) + links + bytes(36) + struct.pack("<iII", first, size, 0)

    folder = entry("Root Entry", 5, 1, -2, 0) + entry("Workbook", 2, -1, 2, len(stream)) + bytes(256)
    head = bytes.fromhex("d0cf11e0a1b11ae1") + bytes(16) + struct.pack("<HHHHH", 0x3E, 3, 0xFFFE, 9, 6) + bytes(6)
    head += struct.pack("<iiiiiiiii", 0, 1, 1, 0, 4096, -2, 0, -2, 0) + struct.pack("<109i", 0, *[-1] * 108)
    return head + fat + folder + stream


@pytest.mark.parametrize(("write", "name"), [(xlsx, "t.xlsx"), (xls, "t.xls"), (xlsx, "t.XLSX.gz".lower()), (xls, "t.xls.gz")])
def test_sheets_are_read_as_text(tmp_path, write, name):
    noon = datetime.datetime(2020, 1, 31, 12, 30)
    rows = [
        ["id", "dose", "when", " µ "],
        [3.0, 0.5, datetime.datetime(2020, 1, 31), True],
        ["007", 1e-7, noon, None],
        [],
        [" x ", 12345678901.0, None, "NA"],
    ]
    table = read(tmp_path, write(Data=rows), name)
    assert cells(table) == [
        ["id", "dose", "when", "µ"],
        ["3", "0.5", "2020-01-31", "TRUE"],
        ["007", "1e-07", "2020-01-31T12:30:00", ""],
        ["x", "12345678901", "", "NA"],
    ]
    assert table.num_rows_read == 3 and "1 row of only empty cells skipped" in table.notes


@pytest.mark.parametrize(("write", "name"), [(xlsx, "t.xlsx"), (xls, "t.xls")])
def test_sheets_are_chosen_by_name_and_a_missing_one_is_told_with_those_there_are(tmp_path, write, name):
    path = written(tmp_path, write(first=[["a"], ["1"]], second=[["b"], ["2"]]), name)
    assert cells(read_metadata_table(path)) == [["a"], ["1"]]
    assert read_metadata_table(path).notes == ("sheet 'first' (the first visible one, not read: 'second')",)
    assert cells(read_metadata_table(path, TableOptions(sheet="second"))) == [["b"], ["2"]]
    refused(path, "'third'", "'first', 'second'", sheet="third")


def test_rows_of_a_sheet_are_ragged_skipped_and_counted_like_lines(tmp_path):
    rows = [["title"], [], ["a", "b"], ["#", "no"], ["1"], ["1", "2", "3"], ["4", "5"]]
    for write, name in ((xlsx, "t.xlsx"), (xls, "t.xls")):
        table = read(tmp_path, write(s=rows), name, skip_rows=1, comment="#")
        assert cells(table) == [["a", "b"], ["1", ""], ["4", "5"]]
        assert table.dropped[0][0] == 6 and table.num_rows_read == 3
        assert cells(read(tmp_path, write(s=[["1", "x"]]), name, columns=("p", "q"))) == [["p", "q"], ["1", "x"]]


def test_a_hidden_first_sheet_is_passed_over(tmp_path):
    book = openpyxl.load_workbook(io.BytesIO(xlsx(settings=[["x"]], data=[["a"], ["1"]])))
    book["settings"].sheet_state = "hidden"
    book.save(tmp_path / "t.xlsx")
    assert cells(read_metadata_table(tmp_path / "t.xlsx")) == [["a"], ["1"]]


def test_text_named_as_a_workbook_is_read_as_text(tmp_path):
    table = read(tmp_path, "a\tb\n1\t2\n", "t.xls")
    assert cells(table) == [["a", "b"], ["1", "2"]] and "text in a file named as a workbook" in table.notes


def test_a_workbook_far_down_and_right_is_read_without_filling_the_gap(tmp_path):
    book = openpyxl.Workbook()
    book.active["A1"], book.active["A200000"] = "a", "1"
    book.save(tmp_path / "t.xlsx")
    assert cells(read_metadata_table(tmp_path / "t.xlsx")) == [["a"], ["1"]]


# Refusals


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("t.csv", b"", ("is empty (0 bytes)",)),
        ("t.csv.gz", b"", ("is empty (0 bytes, unpacked)",)),
        ("t.csv", b"\n \r\n\n", ("is empty",)),
        ("t.csv", b",,\n,,\n", ("no row that is not empty",)),
        ("t.csv", b"a,b\n1,\0\n", ("bytes that are no text",)),
        ("t.csv", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4, ("is PNG",)),
        ("t.csv", bytes(range(1, 32)) * 9, ("is binary",)),
        ("t.csv", xlsx(a=[["x"]]), ("is zip", ".xlsx")),
        ("t.csv", xls(a=[["x"]]), ("is an OLE document", ".xls")),
        ("t.txt", b"<!DOCTYPE html><html>not found</html>", ("is a web page",)),
        ("t.csv", b"<?xml version='1.0'?><Error/>", ("is XML",)),
        ("t.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", ("Git LFS pointer",)),
        ("t.xlsx", xlsx(a=[["x"]])[:900], ("damaged or truncated (zip)",)),
        ("t.xls", xls(a=[["x"]])[:900], ("cannot be read as a workbook",)),
        ("t.xlsx", xlsx(a=[[]]), ("no row that is not empty",)),
        ("t.dat", b"a,b\n", ("no suffix of a table", ".tsv.gz")),
        ("t.csv", b"\xff\xfea\0,\0b\0\n", ("is not utf-16 (by its byte order mark)",)),
        ("t.csv", (",".join(["x"] * 10_001)).encode(), ("has 10001 columns", "at most 10000")),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)
def test_what_is_no_table_is_refused(tmp_path, name, content, parts):
    refused(written(tmp_path, content, name), *parts)


def test_gzip_that_is_none_damaged_or_not_in_the_name(tmp_path):
    (tmp_path / "a.csv.gz").write_text("a,b\n1,2\n")
    refused(tmp_path / "a.csv.gz", "is not gzip, as its name says")
    packed = gzip.compress(b"a,b\n" + b"1,2\n" * 1000)
    (tmp_path / "b.csv").write_bytes(packed)
    refused(tmp_path / "b.csv", "is gzip")
    (tmp_path / "c.csv.gz").write_bytes(packed[:-12])
    refused(tmp_path / "c.csv.gz", "damaged or truncated (gzip)")
    (tmp_path / "d.csv.gz").write_bytes(packed[:-6] + b"\0\0\0\0\0\0")
    refused(tmp_path / "d.csv.gz", "damaged or truncated (gzip)")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"encoding": "ascii"}, ("is not ascii (declared)",)),
        ({"encoding": "no-such"}, ("no text encoding 'no-such'",)),
        ({"encoding": "zlib"}, ("no text encoding 'zlib'",)),
        ({"separator": ""}, ("separator is ''",)),
        ({"separator": ",,"}, ("separator is ',,'",)),
        ({"separator": "\n"}, ("separator is '\\n'",)),
        ({"quote": "x"}, ("quote is 'x'",)),
        ({"skip_rows": -1}, ("skip_rows is -1",)),
        ({"skip_rows": 9}, ("below the lines",)),
        ({"columns": ("a", "a")}, ("distinct names",)),
        ({"columns": ("a", " ")}, ("distinct names",)),
        ({"separator": "ab", "skip_rows": -2}, ("separator is 'ab'", "skip_rows is -2")),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, options, parts):
    refused(written(tmp_path, "a,b\nµ,2\n"), *parts, **options)


def test_sizes_are_limited_while_unpacking(tmp_path, monkeypatch):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"a,b\n" + b"0,0\n" * 8_000_000))
    monkeypatch.setattr(metadata_tables, "EXPANSION_FROM", 1 << 20)
    message = refused(path, "decompression bomb")
    assert "unpacks to 8388608 bytes" in message  # reading stops at the first block that is too much, not after all 32 MB
    monkeypatch.setattr(metadata_tables, "MAX_TABLE_BYTES", 1 << 20)
    refused(path, "expected at most 1048576")
    refused(written(tmp_path, b"a,b\n" + b"0,0\n" * 300_000), "expected at most 1048576")


def test_a_workbook_that_unpacks_to_far_more_is_refused_before_it_is_opened(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "t.xlsx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/worksheets/sheet1.xml", bytes(5 << 20))
    monkeypatch.setattr(metadata_tables, "EXPANSION_FROM", 1 << 20)
    monkeypatch.setattr(workbooks.openpyxl, "load_workbook", lambda *_, **__: pytest.fail("it was opened"))
    refused(tmp_path / "t.xlsx", "decompression bomb")
    monkeypatch.setattr(metadata_tables, "MAX_WORKBOOK_BYTES", 1 << 20)
    refused(tmp_path / "t.xlsx", "expected at most 1048576")


@settings(max_examples=200, deadline=None)
@given(
    st.binary(min_size=1, max_size=200),
    st.sampled_from(["t.csv", "t.xls", "t.xlsx", "t.tsv.gz"]),
    st.sampled_from([b"", b"PK\3\4", bytes.fromhex("d0cf11e0a1b11ae1")]),
)
def test_any_bytes_give_a_table_or_a_value_error(data, name, prefix):
    with tempfile.TemporaryDirectory() as folder:
        path = written(Path(folder), prefix + data, name)
        try:
            table = read_metadata_table(path)
        except ValueError as error:
            assert str(error).startswith(path.name)
        else:
            assert table.num_rows_read == len(table.frame) + len(table.dropped)


def test_names_of_tables():
    assert all(is_table(name) for name in ("a.csv", "A.CSV", "a.tsv.gz", "a.b.TXT.GZ", "x.xls", "x.xlsx", "x.xlsx.gz"))
    assert not any(is_table(name) for name in ("a.csv.bz2", "csv", "a.ods", "a.gz", "a.csv.png", ""))
