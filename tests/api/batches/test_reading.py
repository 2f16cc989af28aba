"""Reading files: what is read is what was written, and what is wrong is said with its line."""

import csv
import gzip
import io

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.batches.csvfile import sniff_separator
from api.batches.forms import read_form
from api.batches.opening import open_table
from api.batches.problems import Problems
from api.batches.records import MAX_CELL_CHARS, Dialect, Unreadable
from tests.api.batches.sheets import packed, sheet, workbook

Rows = list[list[str]]
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)


def read(
    data: bytes, name: str = "a.csv", **how: str
) -> tuple[list[str], Rows, list[int], list[tuple[int | None, str]]]:
    """The columns, the rows, their lines, and the problems with theirs."""
    problems = Problems()
    table = open_table(io.BytesIO(data), name, problems, form=how.get("form"), separator=how.get("separator"))
    groups = list(table.groups)
    rows = [row for group in groups for row in group.cells]
    lines = [line for group in groups for line in group.lines]
    found = problems.as_error().problems if problems else ()
    return list(table.columns), rows, lines, [(problem.line, problem.message) for problem in found]


def refusal(data: bytes, name: str = "a.csv", **how: str) -> str:
    """What is said of a file that cannot be read at all."""
    with pytest.raises(Unreadable) as caught:
        read(data, name, **how)
    return caught.value.message


@given(
    rows=st.integers(1, 5).flatmap(
        lambda width: st.lists(st.lists(TEXTS, min_size=width, max_size=width), min_size=1, max_size=20)
    ),
    separator=st.sampled_from(",;\t"),
    marked=st.booleans(),
)
def test_what_a_csv_writer_wrote_is_read_back(rows: Rows, separator: str, marked: bool) -> None:
    file = io.StringIO(newline="")
    names = [f"column {place}" for place in range(len(rows[0]))]
    csv.writer(file, delimiter=separator, quoting=csv.QUOTE_ALL).writerows([names, *rows])
    data = (b"\xef\xbb\xbf" if marked else b"") + file.getvalue().encode()
    columns, found, lines, problems = read(data)
    assert (columns, found, problems) == (names, rows, [])
    text = data.decode("utf-8-sig")
    starts = [1]
    for row in [names, *rows]:
        one = io.StringIO(newline="")
        csv.writer(one, delimiter=separator, quoting=csv.QUOTE_ALL).writerow(row)
        starts.append(starts[-1] + len(list(io.StringIO(one.getvalue(), newline=""))))
    assert lines == starts[1:-1]
    assert text.startswith('"column 0"')


@given(rows=st.lists(st.dictionaries(st.sampled_from("abc"), TEXTS, min_size=1), min_size=1, max_size=20))
def test_what_is_in_a_jsonl_file_is_read_as_it_is(rows: list[dict[str, str]]) -> None:
    columns, found, _, problems = read(b"\n".join(map(orjson.dumps, rows)), "a.jsonl")
    assert set(columns) == {key for row in rows for key in row}
    assert found == [[row.get(name, "") for name in columns] for row in rows]
    assert problems == []


def test_a_value_that_is_not_text_becomes_its_json() -> None:
    columns, rows, _, _ = read(b'{"a": 1.5, "b": null, "c": {"x": [1, "\xc3\xa9"]}, "d": true}\n', "a.ndjson")
    assert dict(zip(columns, rows[0], strict=True)) == {"a": "1.5", "b": "", "c": '{"x":[1,"é"]}', "d": "true"}


@pytest.mark.parametrize(
    ("head", "separator"),
    [
        ("a,b;c", ","),
        ("a;b", ";"),
        ("a\tb", "\t"),
        ('"x,y";b', ";"),
        ('"x;\ny;z",b', ","),
        ("only one", ","),
        ("", ","),
    ],
)
def test_the_separator_is_the_one_that_divides_the_first_row_most(head: str, separator: str) -> None:
    assert sniff_separator(head) == separator


def test_excels_own_separator_line_is_obeyed() -> None:
    assert read(b"sep=|\r\na|b\r\n1|2,3\r\n")[:3] == (["a", "b"], [["1", "2,3"]], [3])


def test_line_ends_of_every_machine_are_line_ends() -> None:
    assert read(b"a,b\r1,2\r3,4\r")[1] == [["1", "2"], ["3", "4"]]


def test_an_unclosed_quote_costs_its_own_row_only() -> None:
    data = b'id,text\n1,"open\n2,fine\n3,"two\nlines"\n4,five\n5,"a"b"\n6,x,y\n7\n8,last\n'
    _, rows, lines, problems = read(data)
    assert [row[0] for row in rows] == ["2", "3", "4", "8"]
    assert lines == [3, 4, 6, 10]
    assert [line for line, _ in problems] == [2, 7, 8, 9]
    assert "not closed" in problems[0][1]
    assert "closing quote" in problems[1][1]
    assert "names 2 columns; this row has 3" in problems[2][1]


def test_an_unclosed_quote_in_a_long_file_is_found_where_it_is() -> None:
    data = b'id,text\n1,"open\n' + b"2,a row like any other\n" * 100_000 + b"3\n"
    _, rows, _, problems = read(data)
    assert len(rows) == 100_000
    assert [line for line, _ in problems] == [2, 100_003]


def test_what_cannot_be_stored_is_named_with_its_line() -> None:
    _, _, _, problems = read(b"id,text\n1,caf\xe9\n2,fine\n3,a\x00b\n4,\xff\xfe\n")
    assert [line for line, _ in problems] == [2, 4]
    assert "0xe9 is not UTF-8" in problems[0][1]
    assert "U+0000" in problems[1][1]


def test_a_megabyte_fits_a_cell_and_more_does_not() -> None:
    _, rows, _, problems = read(b'a,b\n1,"' + b"x" * MAX_CELL_CHARS + b'"\n2,y\n')
    assert [len(row[1]) for row in rows] == [MAX_CELL_CHARS, 1]
    assert problems == []
    _, rows, _, problems = read(b"a,b\n1," + b"x" * (MAX_CELL_CHARS + 1) + b"\n2,y\n")
    assert rows == [["2", "y"]]
    assert problems[0][0] == 2


def test_formulas_are_text_like_any_other() -> None:
    assert read(b"a\n=cmd()\n+1\n-1\n@x\n")[1] == [["=cmd()"], ["+1"], ["-1"], ["@x"]]


@pytest.mark.parametrize(
    ("data", "name", "why"),
    [
        (b"", "a.csv", "empty"),
        (b"\n\n\n", "a.csv", "empty"),
        (b"\n\n", "a.jsonl", "empty"),
        (gzip.compress(b"a,b\n1,2\n", mtime=0), "a.csv", "gzip"),
        (b"%PDF-1.7 ...", "a.csv", "PDF"),
        ('{"a": 1}\n'.encode("utf-16"), "a.jsonl", "UTF-16"),
        ('{"a": 1}\n'.encode("utf-16"), "a", "UTF-16"),
        ("a,b\n1,2\n".encode("utf-16-be"), "a.csv", "UTF-16"),
        ("a,b\n1,2\n".encode("utf-16") + b"\x00\xd8\x0a\x00", "a.csv", "not UTF-16"),
        (workbook([["a"], ["1"]]), "a.csv", "name it .xlsx"),
        (b"a,b\n", "a.xlsx", "not an .xlsx workbook, but text"),
        (b"PK\x03\x04 is not all that it takes", "a.xlsx", "cannot be read"),
        (bytes(range(32)) * 100, "a.csv", "not text"),
        (b"," * 1_000_000, "a.csv", "1,000,001 columns"),
        (b"\n".join(b'{"%d": 1}' % number for number in range(2000)), "a.jsonl", "1,000 different keys"),
        (b"a,b,a\n", "a.csv", "Two columns are named 'a'"),
        (b"a,,b,,c\n", "a.csv", "Columns 2 and 4 have no name"),
        (b",,\n,,\n", "a.csv", "empty"),
        (b"<html><body><table><tr><td>a</td></tr></table>", "a.xls", "an HTML page"),
        (b'<?xml version="1.0"?><Workbook xmlns="urn:schemas-microsoft-com:office:spreadsheet">', "a.xls", "XML"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(4000), "a.xls", "old Excel workbook"),
        (
            b"\xd0\xcf\x11\xe0" + bytes(9000) + "EncryptedPackage".encode("utf-16-le"),
            "a.xlsx",
            "locked with a password",
        ),
        (b'[{"a": 1},\n{"a": 2}]', "a.json", "each line must be one whole JSON object"),
        (b"x" * 5_000_000, "a.csv", "4,194,304 characters"),
        (b'{"a": "' + b"x" * 5_000_000 + b'"}', "a.jsonl", "4,194,304 bytes"),
    ],
)
def test_a_file_that_is_something_else_is_refused_with_a_sentence(data: bytes, name: str, why: str) -> None:
    assert why in refusal(data, name)


def test_wrong_lines_of_a_jsonl_file_are_named() -> None:
    _, rows, lines, problems = read(b'{"a": 1}\n\n[1]\n{"a": }\n{"a": "\\u0000"}\n{"a": "\xff"}\n{"a": 2}', "a.jsonl")
    assert (rows, lines) == ([["1"], ["2"]], [1, 7])
    assert [line for line, _ in problems] == [3, 4, 5, 6]


def test_the_first_sheet_of_a_workbook_is_read_as_its_csv_would_be() -> None:
    data = workbook([["id", "text", "ok"], [1, "a\nb", True], [2.5, "<&>", None], [3, None, False], [None, None, 4]])
    columns, rows, lines, problems = read(data, "a.xlsx")
    assert columns == ["id", "text", "ok"]
    assert rows == [["1", "a\nb", "TRUE"], ["2.5", "<&>", ""], ["3", "", "FALSE"], ["", "", "4"]]
    assert lines == [2, 3, 4, 5]
    assert problems == []


CSV_FORMS = {
    "Excel, CSV UTF-8": (b"\xef\xbb\xbfid,city\r\n1,K\xc3\xb6ln\r\n", Dialect(mark=True)),
    "Excel in Germany": (b"\xef\xbb\xbfid;city\r\n1;K\xc3\xb6ln\r\n", Dialect(";", mark=True)),
    "Excel, Unicode text": ("id\tcity\r\n1\tKöln\r\n".encode("utf-16"), Dialect("\t", "\r\n", True, "utf-16-le")),
    "Unicode text, big-endian": (
        b"\xfe\xff" + "id\tcity\n1\tKöln\n".encode("utf-16-be"),
        Dialect("\t", "\n", True, "utf-16-be"),
    ),
    "Excel's separator line": ("sep=;\r\nid;city\r\n1;Köln\r\n".encode(), Dialect(";")),
    "its line in UTF-16": ("sep=;\r\nid;city\r\n1;Köln\r\n".encode("utf-16"), Dialect(";", "\r\n", True, "utf-16-le")),
    "old Macintosh": ("id,city\r1,Köln\r".encode(), Dialect(line_end="\r")),
    "Unix": ("id,city\n1,Köln\n".encode(), Dialect(line_end="\n")),
    "mixed line ends": ("id,city\n1,Köln\r\n".encode(), Dialect(line_end="\n")),
    "pipes": ("id|city\r\n1|Köln\r\n".encode(), Dialect("|")),
    "no line end": ("id,city\r\n1,Köln".encode(), Dialect()),
    "separators at the ends": ("id,city,,\r\n1,Köln,,\r\n".encode(), Dialect()),
    "separators at the ends of rows": ("id,city\r\n1,Köln,\r\n".encode(), Dialect()),
    "empty rows before": (",,\r\n,,\r\nid,city,\r\n1,Köln,\r\n".encode(), Dialect()),
    "blank lines": ("\r\nid,city\r\n\r\n1,Köln\r\n   \r\n".encode(), Dialect()),
    "quoted": ('"id";"city"\r\n"1";"Köln"\r\n'.encode(), Dialect(";")),
}


@pytest.mark.parametrize("form", CSV_FORMS)
def test_csv_is_read_in_the_forms_that_programs_write_and_its_form_is_kept(form: str) -> None:
    """sqlpage/SQLPage#528, getodk/central#752, mtotschnig/MyExpenses#1432, ag-grid/ag-grid#655."""
    data, dialect = CSV_FORMS[form]
    assert read(data)[:2] == (["id", "city"], [["1", "Köln"]])
    table = open_table(io.BytesIO(data), "a.csv", Problems())
    assert list(table.groups)
    assert table.dialect == dialect


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("windows-1252", "é€"),
        ("iso-8859-15", "é€"),
        ("windows-1251", "Привет"),
        ("shift-jis", "日本"),
        ("gb18030", "中文"),
    ],
)
def test_another_encoding_is_read_when_it_is_named_and_results_are_utf8_with_a_mark(encoding: str, text: str) -> None:
    data = f"id;t\n1;{text}\n".encode(encoding)
    named = read_form({"encoding": encoding, "model": "small"}).encoding
    table = open_table(io.BytesIO(data), "a.csv", Problems(), encoding=named)
    assert [group.cells for group in table.groups] == [[["1", text]]]
    assert table.dialect == Dialect(";", "\n", mark=True)


def test_an_encoding_is_named_once_with_the_first_line() -> None:
    _, _, _, problems = read("id,t\n1,a\n2,é\n3,é\n4,é\n".encode("windows-1252"))
    ((line, message),) = problems
    assert line == 3
    assert "encoding=windows-1252" in message
    assert "UTF-16 text without a byte-order mark" in refusal("id,t\n1,a\n".encode("utf-16-le"))


def test_the_index_of_pandas_and_columns_without_a_name() -> None:
    """pandas writes its index as a first column without a name; R writes one in its rows only."""
    assert read(b",id,text\n0,1,a\n1,2,b\n")[:2] == (["", "id", "text"], [["0", "1", "a"], ["1", "2", "b"]])
    assert read(b"a,,b\n1,2,3\n")[:2] == (["a", "", "b"], [["1", "2", "3"]])
    _, rows, _, problems = read(b"id,text,\n1,a,\n2,b,c\n3,d,,e\n4\n")
    assert rows == [["1", "a"]]
    assert [line for line, _ in problems] == [3, 4, 5]
    assert "Column 3 has no name" in problems[0][1]


def test_text_named_as_an_old_workbook_is_read_as_what_it_is() -> None:
    assert read(b"id\ttext\n1\ta\n", "export.xls")[:2] == (["id", "text"], [["1", "a"]])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("123456789012345678901234567890", "123456789012345678901234567890"),
        ("12345678901234567890123", "12345678901234567890123"),
        ("1.10", "1.10"),
        ("-0", "-0"),
        ("1e5", "1e5"),
        ("1.0E+300", "1.0E+300"),
        ("18446744073709551616", "18446744073709551616"),
        ('{"a": [1.50, 100000000000000000000], "b": "1.10"}', '{"a":[1.50,100000000000000000000],"b":"1.10"}'),
        ("[0.10]", "[0.10]"),
        ("true", "true"),
        ('"1.10"', "1.10"),
    ],
)
def test_numbers_of_jsonl_keep_the_digits_of_the_file(value: str, text: str) -> None:
    """ijl/orjson#517, #53, #308."""
    assert read(f'{{"x": {value}, "t": "v1.10"}}\n'.encode(), "a.jsonl")[1] == [[text, "v1.10"]]


def test_jsonl_as_people_send_it() -> None:
    """infiniflow/ragflow#19179, vllm-project/vllm#7132, headroomlabs-ai/headroom#2316, mkht/PSOpenAI#19."""
    data = b'\xef\xbb\xbf\n{"a": 1}\r\n   \n{"a": 2}\nnull\n[1,2]\n3\n{"a": 3}'
    _, rows, lines, problems = read(data, "a.jsonl")
    assert (rows, lines) == ([["1"], ["2"], ["3"]], [2, 4, 8])
    assert [line for line, _ in problems] == [5, 6, 7]
    assert refusal(b"\nnull\n", "a.jsonl") == "This is not JSONL: each line must be one whole JSON object."
    assert read(b'{"a": 1e999}\n{"a": 1}\n', "a.jsonl")[1] == [["1"]]
    deep = b'{"a": ' + b"[" * 600 + b"1.5" + b"]" * 600 + b"}\n"
    assert read(deep, "a.jsonl")[3] == [(1, "A value of this line has too many levels.")]


def test_a_zip_bomb_is_refused_before_it_is_unpacked() -> None:
    bomb = packed(sheet("<!--" + " " * 300_000_000 + "-->"))
    assert len(bomb) < 400_000
    assert "unpacks to 286 MiB" in refusal(bomb, "a.xlsx")


def test_every_problem_is_counted_and_the_first_hundred_are_told_in_order() -> None:
    problems = Problems()
    for line in range(1000, 0, -1):
        problems.add("file", "wrong", line)
    problems.add("prompt", "of the form")
    error = problems.as_error()
    assert [problem.line for problem in error.problems] == [None, *range(1, 100)]
    assert error.members == {"problems": 1001}
