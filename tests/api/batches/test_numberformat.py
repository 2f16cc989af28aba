"""Numbers in their formats, as spreadsheets show them; many values are also those of SheetJS's SSF."""

import pytest

from api.batches.dateformat import calendar_day, serial_of
from api.batches.numberformat import BUILT_IN, number_format, text_format


@pytest.mark.parametrize(
    ("code", "value", "shown"),
    [
        ("0", "0.5", "1"),
        ("0", "-0.4", "0"),
        ("0.00", "1.005", "1.01"),
        ("0.00", "1234567890000", "1234567890000.00"),
        ("#.##", "0", "."),
        ("#,##0", "1234567", "1,234,567"),
        ("#,##0", "-1234567", "-1,234,567"),
        ("#,##0;(#,##0)", "-1234567", "(1,234,567)"),
        ("0,000", "5", "0,005"),
        ("#,##0,", "1234567", "1,235"),
        ("#.0000,,,", "1.2345", ".0000"),
        ("0.0,,", "1250000", "1.3"),
        ("0%", "0.125", "13%"),
        ("0.0%%", "0.5", "5000.0%%"),
        ("0.00E+00", "12345", "1.23E+04"),
        ("##0.0E+0", "12345", "12.3E+3"),
        ("0.0E-0", "0.00012", "1.2E-4"),
        ("0.0E+0", "9.99", "1.0E+1"),
        ("0.0E+0", "0", "0.0E+0"),
        ("# ?/?", "12.3", "12 1/3"),
        ("# ?/?", "-123.456", "-123 1/2"),
        ("# ??/??", "0.5", "1/2"),
        ("?/8", "1.25", "10/8"),
        ("# ?/4", "1.99", "2"),
        ("000-00-0000", "123456789", "123-45-6789"),
        ("(000) 000-0000", "2125551234", "(212) 555-1234"),
        ("00000", "123", "00123"),
        ('0 "pieces"', "3", "3 pieces"),
        ("0\\x", "3", "3x"),
        ('"a";"b";"c"', "0", "c"),
        ('"a";"b";"c"', "-1", "b"),
        ("[<100]0;0.0", "5", "5"),
        ("[<100]0;0.0", "500", "500.0"),
        ("[>=1000]0,K;0", "2500", "3K"),
        ("[Red]0;[Blue]-0", "-4", "-4"),
        ('_(* #,##0_);_(* \\(#,##0\\);_(* "-"_)', "0", "-"),
        ("[$$-409]#,##0.00", "5", "$5.00"),
        ("[$-407]0.0", "5", "5.0"),
        ("General", "5", "5"),
        ('General" km"', "5.5", "5.5 km"),
        ("@", "1.50", "1.5"),
        ("", "5", "5"),
        ("yyyy-mm-dd", "45296", "2024-01-05"),
        ("dddd, mmmm d, yyyy", "45296", "Friday, January 5, 2024"),
        ("ddd d-mmm-yy", "60", "Wed 29-Feb-00"),
        ("mmmmm", "45296", "J"),
        ("yyyy-mm-dd", "0", "1900-01-00"),
        ("yyyy-mm-dd", "59.99", "1900-02-28"),
        ("yyyy-mm-dd", "2958465", "9999-12-31"),
        ("yyyy-mm-dd", "2958466", "2958466"),
        ("yyyy-mm-dd", "-1", "-1"),
        ("h:mm", "0.99999", "23:59"),
        ("h:mm:ss", "0.999999", "0:00:00"),
        ("h:mm AM/PM", "0.5", "12:00 PM"),
        ("hh:mm a/p", "0.75", "06:00 P"),
        ("mm:ss.0", "0.00070138888", "01:00.6"),
        ("[h]:mm", "1.0833333333", "26:00"),
        ("[mm]:ss", "0.1", "144:00"),
        ("[s].000", "0.00001", "0.864"),
        ("yyyy-mm-dd\\Thh:mm", "45296.25", "2024-01-05T06:00"),
        ("m/d/yy h:mm", "45296.25", "1/5/24 6:00"),
        ("[$-F800]dddd, mmmm dd, yyyy", "45296", "2024-01-05"),
        ("[$-F400]h:mm:ss AM/PM", "0.75", "18:00:00"),
        ("bbbb", "45296", "2567"),
        ('d "of" mmmm', "45296", "5 of January"),
    ],
)
def test_a_number_in_a_format(code: str, value: str, shown: str) -> None:
    assert number_format(code)(value) == shown


@pytest.mark.parametrize(
    "code", [";", ";;;", "[", '"', "\\", "_", "*", "0.0.0", "//", "?/", "[h", "E+", "%%%", "0" * 255]
)
def test_a_broken_format_shows_something_and_raises_nothing(code: str) -> None:
    for value in ("0", "-1.5", "1e300", "45296.5"):
        assert isinstance(number_format(code)(value), str)


@pytest.mark.parametrize(
    "code", ["[h]" * 80, "?" * 127 + "/" + "?" * 127, "#," * 127, "%" * 255, "(" * 255, "[<1" * 80, "yyyy" * 63]
)
def test_a_format_made_to_take_long_does_not(code: str) -> None:
    """A format has 255 characters at most, and none is gone through more than once; the value may be the largest."""
    for value in ("1.7976931348623157e308", "5e-324", "0.123456789012345"):
        assert len(number_format(code)(value)) < 2000


def test_a_text_in_a_format() -> None:
    assert text_format("@") is None
    assert text_format("_(@_)") is None
    assert text_format("0.00") is None
    show = text_format('0;0;0;"<"@">"')
    assert show is not None
    assert show("a") == "<a>"


def test_every_built_in_format_shows_a_number() -> None:
    shown = {number: number_format(code)("1.5") for number, code in BUILT_IN.items()}
    assert all(shown.values())
    assert {number: text for number, text in shown.items() if number < 12} == {
        1: "2",
        2: "1.50",
        3: "2",
        4: "1.50",
        5: "$2",
        6: "$2",
        7: "$1.50",
        8: "$1.50",
        9: "150%",
        10: "150.00%",
        11: "1.50E+00",
    }


@pytest.mark.parametrize("text", ["2024-01-05", "1900-02-28", "1900-03-01", "2024-01-05T06:00:00", "06:00:00"])
def test_dates_in_iso_8601_are_counts_of_days(text: str) -> None:
    code = {8: "hh:mm:ss", 10: "yyyy-mm-dd"}.get(len(text), "yyyy-mm-dd\\Thh:mm:ss")
    assert number_format(code)(repr(serial_of(text))) == text


def test_the_calendar_has_the_day_that_only_spreadsheets_have() -> None:
    assert [calendar_day(day)[:3] for day in (0, 1, 59, 60, 61)] == [
        (1900, 1, 0),
        (1900, 1, 1),
        (1900, 2, 28),
        (1900, 2, 29),
        (1900, 3, 1),
    ]
