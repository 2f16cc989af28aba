"""Workbooks: the first sheet that can be seen, wherever its table is, each cell as it is shown."""

import io
import random
import zipfile

import pytest

from api.batches.opening import open_table
from api.batches.problems import Problems
from api.batches.records import MAX_CELL_CHARS, Dialect
from tests.api.batches.sheets import NS, STRICT_NS, book, packed, sheet, workbook
from tests.api.batches.test_reading import read, refusal

HEAD = '<row r="1"><c r="A1" t="inlineStr"><is><t>id</t></is></c><c r="B1" t="inlineStr"><is><t>text</t></is></c></row>'


def texts(*values: str, row: int = 1, column: int = 0) -> str:
    """A row of inline texts."""
    cells = "".join(
        f'<c r="{chr(65 + place)}{row}" t="inlineStr"><is><t>{value}</t></is></c>'
        for place, value in enumerate(values, column)
    )
    return f'<row r="{row}">{cells}</row>'


def cell(markup: str, **how: object) -> str:
    """What is read of B2, whose XML this is."""
    rows = f'{HEAD}<row r="2"><c r="A2"><v>7</v></c>{markup}</row>'
    _, found, _, problems = read(packed(sheet(rows), **how), "a.xlsx")
    assert problems == []
    assert found[0][0] == "7"
    return found[0][1]


def problem(markup: str, **how: object) -> str:
    """What is said of a workbook with this XML in B2."""
    rows = f'{HEAD}<row r="2"><c r="A2"><v>7</v></c>{markup}</row>'
    _, found, _, problems = read(packed(sheet(rows), **how), "a.xlsx")
    assert found == []
    ((line, message),) = problems
    assert line == 2
    return message


@pytest.mark.parametrize("column", [0, 1, 5])
@pytest.mark.parametrize("row", [1, 2, 3, 40])
def test_a_table_may_begin_anywhere_and_lines_are_rows_of_the_sheet(row: int, column: int) -> None:
    """cidgoh/DataHarmonizer#40, SheetJS/sheetjs#2737, ToucanToco/fastexcel#233, tidyverse/readxl#224."""
    rows = "".join(texts(*cells, row=row + n, column=column) for n, cells in enumerate([("id", "text"), ("1", "a")]))
    rows += texts("2", "b", row=row + 5, column=column)
    columns, found, lines, problems = read(packed(sheet(f'<row r="1" spans="1:9"/>{rows}')), "a.xlsx")
    assert (columns, found, lines) == (["id", "text"], [["1", "a"], ["2", "b"]], [row + 1, row + 5])
    assert problems == []


def test_the_index_of_pandas_is_a_column_without_a_name() -> None:
    rows = texts("id", "text", column=1) + texts("0", "1", "a", row=2) + texts("1", "2", "b", row=3)
    assert read(packed(sheet(rows)), "a.xlsx")[:2] == (["", "id", "text"], [["0", "1", "a"], ["1", "2", "b"]])


def test_cells_outside_of_the_table_are_problems() -> None:
    rows = texts("id", "text", column=1)
    rows += "".join(texts("1", "a", row=number, column=1) for number in range(2, 150))
    rows += texts("here", row=150) + texts("1", "a", "there", row=151, column=1)
    _, _, _, problems = read(packed(sheet(rows)), "a.xlsx")
    assert [line for line, _ in problems] == [150, 151]
    assert "before the first column" in problems[0][1]
    assert "names 2 columns; this row has 3" in problems[1][1]


@pytest.mark.parametrize("state", ["hidden", "veryHidden"])
def test_a_hidden_sheet_is_not_read(state: str) -> None:
    """tidyverse/readxl#533, nao1215/filesql#229, SheetJS/sheetjs#123."""
    sheets = {"Lists": sheet(texts("secret")), "Data": sheet(texts("id") + texts("1", row=2))}
    assert read(book(sheets, states={"Lists": state}), "a.xlsx")[:2] == (["id"], [["1"]])


def test_a_workbook_without_a_visible_sheet_or_with_an_empty_one_names_its_sheets() -> None:
    sheets = {"A & B": sheet(""), "Data": sheet(texts("id") + texts("1", row=2))}
    told = refusal(book(sheets, states=dict.fromkeys(sheets, "hidden")), "a.xlsx")
    assert told == "No sheet of the workbook is visible. Its sheets are 'A & B' (hidden), 'Data' (hidden)."
    assert "is empty. Its sheets are 'A & B', 'Data'" in refusal(book(sheets), "a.xlsx")


@pytest.mark.parametrize(
    ("markup", "shown"),
    [
        ('<c r="B2"><v>123456789012345678</v></c>', "123456789012345678"),
        ('<c r="B2"><v>-42</v></c>', "-42"),
        ('<c r="B2"><v>0.30000000000000004</v></c>', "0.3"),
        ('<c r="B2"><v>1.2345678901234501E+17</v></c>', "123456789012345000"),
        ('<c r="B2"><v>1E-5</v></c>', "0.00001"),
        ('<c r="B2"><v>0.1</v></c>', "0.1"),
        ('<c r="B2"><v>1E+300</v></c>', "1E+300"),
        ('<c r="B2"><v>007</v></c>', "7"),
        ('<c r="B2"><v>-0</v></c>', "0"),
        ('<c r="B2" t="n"><v>5</v></c>', "5"),
        ('<c r="B2" s="0"><v></v></c>', ""),
        ('<c r="B2" s="0"/>', ""),
        ('<c r="B2" t="b"><v>1</v></c>', "TRUE"),
        ('<c r="B2" t="b"><v>0</v></c>', "FALSE"),
        ('<c r="B2" t="e"><v>#N/A</v></c>', "#N/A"),
        ('<c r="B2" t="e"><f>1/0</f><v>#DIV/0!</v></c>', "#DIV/0!"),
        ('<c r="B2" t="str"><f>A2&amp;"!"</f><v>7!</v></c>', "7!"),
        ('<c r="B2" t="str"><f>""</f><v></v></c>', ""),
        ('<c r="B2"><f t="shared" si="0"/><v>14</v></c>', "14"),
        ('<c r="B2" t="d"><v>2024-01-05T00:00:00</v></c>', "2024-01-05"),
        ('<c r="B2" t="inlineStr"><is><t>0049</t></is></c>', "0049"),
        ('<c r="B2" t="inlineStr"><is><t>a_x000D_\nb</t></is></c>', "a\r\nb"),
        ('<c r="B2" t="inlineStr"><is><t>_x005F_x000D_ &amp;lt; &#228;&#xe4;</t></is></c>', "_x000D_ &lt; ää"),
        ('<c r="B2" t="inlineStr"><is><t>_xD83D__xDE00_</t></is></c>', "😀"),
        (
            '<c r="B2" t="inlineStr"><is><r><t>ri</t></r><r><rPr/><t xml:space="preserve">ch </t></r></is></c>',
            "rich ",
        ),
        ("<c t='inlineStr' r='B2'><is><t>quoted</t></is></c>", "quoted"),
        ('<c t="inlineStr"><is><t>without a name</t></is></c>', "without a name"),
        ('<c r="B2" t="inlineStr"><is><t><![CDATA[</row> <&]]></t></is></c>', "</row> <&"),
        ('<!-- </row> --><c r="B2"><v>3</v></c>', "3"),
        ('<c r="B2" cm="1"><f>A2</f><v>3</v><extLst><ext/></extLst></c>', "3"),
    ],
)
def test_a_cell_is_read_as_it_is_shown(markup: str, shown: str) -> None:
    """colearendt/xlsx#7, django-import-export/django-import-export#323, tafia/calamine#469."""
    assert cell(markup) == shown


@pytest.mark.parametrize(
    ("code", "value", "shown"),
    [
        ("[h]:mm:ss", "1.0833333333333333", "26:00:00"),
        ("yyyy-mm-dd hh:mm:ss", "0.5", "1900-01-00 12:00:00"),
        ("yyyy-mm-dd hh:mm:ss", "45296.75", "2024-01-05 18:00:00"),
        ("d/m/yy", "45296", "5/1/24"),
        ("[$-407]d. mmm yyyy", "45296", "5. Jan 2024"),
        ("yyyy-mm-dd", "60", "1900-02-29"),
        (14, "45296", "2024-01-05"),
        (22, "45296.75", "2024-01-05 18:00"),
        (46, "2.5", "60:00:00"),
        ("00000", "123", "00123"),
        ("0000000000", "491711234567", "491711234567"),
        (10, "0.1234", "12.34%"),
        (4, "1234567.891", "1,234,567.89"),
        ("#,##0.00 [$€-407]", "-1234.5", "-1,234.50 €"),
        (44, "1234.5", "$1,234.50"),
        (11, "123456", "1.23E+05"),
        (49, "1234567890123456", "1234567890123456"),
        ("[Red]x", "1", "x"),
        ("0" * 300, "1", "1"),
    ],
)
def test_a_number_is_shown_in_its_format(code: str | int, value: str, shown: str) -> None:
    """tidyverse/readxl#637, NemusLoren/php-excel-reader#187."""
    assert cell(f'<c r="B2" s="1"><v>{value}</v></c>', formats=[code]) == shown


def test_dates_of_1904_are_shown_in_their_system() -> None:
    later = '<extLst><ext><x15:workbookPr xmlns:x15="urn:x15" chartTrackingRefBase="1"/></ext></extLst>'
    how = {"formats": ["yyyy-mm-dd"], "properties": f'<workbookPr date1904="1"/>{later}'}
    assert cell('<c r="B2" s="1"><v>0</v></c>', **how) == "1904-01-01"
    assert cell('<c r="B2" s="1"><v>43834</v></c>', **how) == "2024-01-05"


def test_a_text_keeps_its_look_unless_its_format_says_otherwise() -> None:
    assert cell('<c r="B2" s="1" t="inlineStr"><is><t>00123</t></is></c>', formats=["0"]) == "00123"
    assert cell('<c r="B2" s="1" t="inlineStr"><is><t>x</t></is></c>', formats=['0;0;0;"<"@">"']) == "<x>"


def test_shared_texts_are_rich_empty_and_without_their_pronunciation() -> None:
    shared = [
        "<t>id</t>",
        "<t>text</t>",
        "<r><t>東</t></r><r><t>京</t></r><rPh sb='0' eb='2'><t>トウキョウ</t></rPh>",
        "<t/>",
        "<t>a&amp;b</t>",
    ]
    rows = "".join(
        f'<row r="{row}">'
        + "".join(f'<c r="{c}{row}" t="s"><v>{n}</v></c>' for c, n in zip("AB", pair, strict=True))
        + "</row>"
        for row, pair in enumerate([(0, 1), (2, 3), (4, 2)], 1)
    )
    _, found, _, problems = read(packed(sheet(rows), shared=shared), "a.xlsx")
    assert (found, problems) == ([["東京", ""], ["a&b", "東京"]], [])


@pytest.mark.parametrize(
    ("markup", "properties"),
    [
        ('<c r="B2"><f>A2&amp;"!"</f></c>', ""),
        ('<c r="B2"><f>A2</f><v></v></c>', ""),
        ('<c r="B2"><f>A2</f><v/></c>', ""),
        ('<c r="B2" t="str"><f>A2</f></c>', ""),
        ('<c r="B2"><f>SUM(A2)</f><v>0</v></c>', '<calcPr calcId="1" fullCalcOnLoad="1"/>'),
    ],
)
def test_a_formula_without_a_result_is_a_problem_with_its_cell(markup: str, properties: str) -> None:
    """infiniflow/ragflow#19737, jmcnamara/XlsxWriter#877 (0 for results), SheetJS/sheetjs#1657, #2329."""
    assert "Cell B2 has a formula without a result: open the workbook" in problem(markup, properties=properties)


def test_a_formula_of_the_first_row_without_a_result_is_a_refusal() -> None:
    assert "Cell A1 has a formula" in refusal(packed(sheet('<row r="1"><c r="A1"><f>B1</f></c></row>')), "a.xlsx")


@pytest.mark.parametrize(
    "markup",
    [
        '<c r="B2" t="s"><v>9</v></c>',
        '<c r="B2" t="s"><v>-1</v></c>',
        '<c r="B2"><v>1..2</v></c>',
        '<c r="B2"><v>inf</v></c>',
        '<c r="B2" t="weird"><v>1</v></c>',
        '<c r="B2" t="inlineStr"><is><t>&unknown;</t></is></c>',
        '<c r="B2" t="d"><v>tomorrow</v></c>',
    ],
)
def test_a_cell_that_cannot_be_read_is_named(markup: str) -> None:
    assert problem(markup, shared=["<t>x</t>"]).startswith("Cell B2 cannot be read")


def test_a_cell_with_what_cannot_be_stored_is_a_problem() -> None:
    assert "U+0000" in problem('<c r="B2" t="inlineStr"><is><t>a_x0000_</t></is></c>')
    assert "characters" in problem(
        f'<c r="B2" t="inlineStr"><is><t>{random.Random(1).randbytes(MAX_CELL_CHARS).hex()}</t></is></c>'
    )


def test_a_merged_cell_has_its_value_in_its_first_cell() -> None:
    xml = sheet(texts("id", "text") + texts("1", "a", row=2) + texts("2", row=3))
    merged = xml.replace(b"</worksheet>", b'<mergeCells count="1"><mergeCell ref="B2:B3"/></mergeCells></worksheet>')
    assert read(packed(merged), "a.xlsx")[1] == [["1", "a"], ["2", ""]]


def test_a_merged_name_names_its_first_column_only() -> None:
    rows = texts("id", "text") + texts("1", "a", "b", row=2)
    assert read(packed(sheet(rows)), "a.xlsx")[3] == [(2, "The first row names 2 columns; this row has 3.")]


def test_hidden_rows_and_columns_are_read_as_a_spreadsheets_own_csv_has_them() -> None:
    xml = sheet(HEAD + texts("1", "a", row=2).replace('r="2"', 'r="2" hidden="1"', 1)).replace(
        b"<sheetData>", b'<cols><col min="2" max="2" hidden="1"/></cols><sheetData>'
    )
    assert read(packed(xml), "a.xlsx")[1] == [["1", "a"]]


def test_rows_at_the_end_that_have_a_style_only_are_left_out_later() -> None:
    rows = (
        HEAD
        + texts("1", "a", row=2)
        + "".join(f'<row r="{n}"><c r="A{n}" s="1"/><c r="Z{n}" s="1"/></row>' for n in range(3, 9))
    )
    _, found, _, problems = read(packed(sheet(rows), formats=["0"]), "a.xlsx")
    assert (found[0], [row for row in found[1:] if any(row)], problems) == (["1", "a"], [], [])


def test_names_of_columns_may_be_numbers_and_no_two_are_the_same() -> None:
    assert read(workbook([[2023, 2024], [1, 2]]), "a.xlsx")[0] == ["2023", "2024"]
    assert "Two columns are named 'a'" in refusal(workbook([["a", "a"], [1, 2]]), "a.xlsx")
    assert "Columns 2 and 4 have no name" in refusal(workbook([["a", None, "b", None, "c"], [1, 2]]), "a.xlsx")


def test_a_strict_workbook_is_read() -> None:
    rows = HEAD + '<row r="2"><c r="A2" t="d" s="1"><v>2024-01-05</v></c><c r="B2" t="s"><v>0</v></c></row>'
    data = packed(sheet(rows, STRICT_NS), strict=True, formats=["d.m.yyyy"], shared=["<t>x</t>"])
    assert read(data, "a.xlsx")[1] == [["5.1.2024", "x"]]


def test_a_workbook_with_prefixes_in_its_names_or_in_utf16_is_read() -> None:
    xml = sheet(HEAD + texts("1", "ä", row=2)).decode()
    prefixed = xml.replace("</", "</x:").replace("<", "<x:").replace("<x:/x:", "</x:").replace("xmlns=", "xmlns:x=")
    for data in (
        prefixed.encode(),
        xml.encode("utf-16"),
        b'<?xml version="1.0" encoding="ISO-8859-1"?>' + xml.encode("latin-1"),
    ):
        assert read(packed(data), "a.xlsx")[1] == [["1", "ä"]]


def test_rows_alike_and_rows_of_other_forms_follow_each_other() -> None:
    rows, wanted = HEAD, []
    for n in range(2, 200):
        style = ' s="1"' if n % 7 == 0 else ""
        first = f'<c r="A{n}"{style}><v>{n}</v></c>'
        second = f'<c r="B{n}" t="str"><v>t{n}</v></c>' if n % 5 else ""
        rows += f'<row r="{n}">{first}{second}</row>'
        wanted.append([f"{n}.0" if n % 7 == 0 else f"{n}", f"t{n}" if n % 5 else ""])
    assert read(packed(sheet(rows), formats=["0.0"]), "a.xlsx")[1] == wanted


def test_a_workbook_may_have_no_shared_texts_and_a_sheet_no_rows() -> None:
    empty = f'<sst xmlns="{NS}" count="0" uniqueCount="0"/>'
    assert read(
        packed(sheet(HEAD + texts("1", "a", row=2)), shared=[], parts={"xl/sharedStrings.xml": empty}), "a.xlsx"
    )[1]
    assert "is empty" in refusal(packed(f'<worksheet xmlns="{NS}"><sheetData /></worksheet>'.encode()), "a.xlsx")


@pytest.mark.parametrize("name", ["a.xlsm", "a.xls", "a.xlsb", "a.ods", "a"])
def test_a_workbook_is_read_whatever_its_name_is(name: str) -> None:
    assert read(workbook([["a"], ["1"]]), name)[1] == [["1"]]


BINARY = '<Relationships><Relationship Id="r" Type="urn:/officeDocument" Target="xl/workbook.bin"/></Relationships>'


def archive(**parts: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name, text in parts.items():
            made.writestr(name.replace("__", "/").replace("_", "."), text)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (
            archive(mimetype="application/vnd.oasis.opendocument.spreadsheet", content_xml="<a/>"),
            "an OpenDocument file",
        ),
        (archive(xl__workbook_bin="x"), "an .xlsb workbook"),
        (book({}, parts={"xl/workbook.bin": "x", "_rels/.rels": BINARY}), "an .xlsb workbook"),
        (archive(word__document_xml="<a/>"), "a Word document"),
        (archive(a_csv="a,b"), "a zip archive without a workbook"),
        (packed(b"<worksheet>"), "cannot be read"),
        (packed(sheet("<row")[:-20]), "cannot be read"),
        (packed(b'<!DOCTYPE worksheet [<!ENTITY a "aa">]>' + sheet(HEAD)), "cannot be read"),
        (
            book({"S": sheet(HEAD)}, parts={"xl/workbook.xml": '<!DOCTYPE a [<!ENTITY b "c">]><workbook/>'}),
            "cannot be read",
        ),
        (book({"S": sheet(HEAD)}, parts={"xl/workbook.xml": "<workbook>"}), "cannot be read"),
        (packed(sheet(HEAD), formats=["0"], parts={"xl/styles.xml": "<styleSheet"}), "cannot be read"),
        (packed(sheet("")), "is empty"),
    ],
)
def test_a_file_that_is_not_a_workbook_is_refused_with_its_kind(data: bytes, why: str) -> None:
    assert why in refusal(data, "a.xlsx")


def test_a_sheet_as_wide_as_can_be_costs_no_more_than_its_table() -> None:
    rows = HEAD + "".join(f'<row r="{n}"><c r="A{n}"><v>1</v></c><c r="XFD{n}" s="0"/></row>' for n in range(2, 3000))
    _, found, _, problems = read(packed(sheet(rows)), "a.xlsx")
    assert (len(found), found[0], problems) == (2998, ["1", ""], [])
    assert "1,000 are possible" in refusal(
        packed(sheet('<row r="1"><c r="A1"><v>1</v></c><c r="XFD1"><v>1</v></c></row>')), "a.xlsx"
    )


def test_the_results_of_a_workbook_have_a_mark_since_a_spreadsheet_will_open_them() -> None:
    table = open_table(io.BytesIO(workbook([["a"], [1]])), "a.xlsx", Problems())
    assert table.dialect == Dialect(mark=True)
