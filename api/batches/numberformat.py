"""Numbers as a spreadsheet shows them, each in the number format of its cell.

A format has up to four sections, for positive and negative numbers, zero, and text; a section may have a condition
instead. Source: ECMA-376 part 1, 18.8.30 and 18.8.31. Two things differ on purpose (decision 028): the format
``General`` shows all 15 digits that a spreadsheet keeps, however narrow the column is, and blanks that only align a
number with others are left out.
"""

import re
from collections.abc import Callable, Sequence
from decimal import ROUND_HALF_UP, Decimal, localcontext
from fractions import Fraction
from functools import lru_cache

from api.batches.dateformat import DateSection, is_date
from api.batches.formatparts import Part, general, sections_of

MAX_FORMAT_CHARS = 255
"""What Excel allows; a longer one is read as ``General``."""

BUILT_IN = {
    1: "0",
    2: "0.00",
    3: "#,##0",
    4: "#,##0.00",
    5: '"$"#,##0_);\\("$"#,##0\\)',
    6: '"$"#,##0_);[Red]\\("$"#,##0\\)',
    7: '"$"#,##0.00_);\\("$"#,##0.00\\)',
    8: '"$"#,##0.00_);[Red]\\("$"#,##0.00\\)',
    9: "0%",
    10: "0.00%",
    11: "0.00E+00",
    12: "# ?/?",
    13: "# ??/??",
    14: "yyyy-mm-dd",
    15: "d-mmm-yy",
    16: "d-mmm",
    17: "mmm-yy",
    18: "h:mm AM/PM",
    19: "h:mm:ss AM/PM",
    20: "h:mm",
    21: "h:mm:ss",
    22: "yyyy-mm-dd hh:mm",
    **dict.fromkeys((27, 28, 29, 30, 31, 36, *range(50, 59)), "yyyy-mm-dd"),
    **dict.fromkeys((32, 33, 34, 35), "h:mm:ss"),
    37: "#,##0_);\\(#,##0\\)",
    38: "#,##0_);[Red]\\(#,##0\\)",
    39: "#,##0.00_);\\(#,##0.00\\)",
    40: "#,##0.00_);[Red]\\(#,##0.00\\)",
    41: '_(* #,##0_);_(* \\(#,##0\\);_(* "-"_);_(@_)',
    42: '_("$"* #,##0_);_("$"* \\(#,##0\\);_("$"* "-"_);_(@_)',
    43: '_(* #,##0.00_);_(* \\(#,##0.00\\);_(* "-"??_);_(@_)',
    44: '_("$"* #,##0.00_);_("$"* \\(#,##0.00\\);_("$"* "-"??_);_(@_)',
    45: "mm:ss",
    46: "[h]:mm:ss",
    47: "mm:ss.0",
    48: "##0.0E+0",
    49: "@",
}
"""The formats that a workbook names by number only. 14 and 22 look different on each machine: ISO 8601 here."""

_CONDITION = re.compile(r"(<=|>=|<>|<|>|=)\s*(-?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)")
_HOLDERS = frozenset("0#?")
_REMEMBERED = 256
_TESTS: dict[str, Callable[[float, float], bool]] = {
    "<": float.__lt__,
    "<=": float.__le__,
    ">": float.__gt__,
    ">=": float.__ge__,
    "=": float.__eq__,
    "<>": float.__ne__,
}

Show = Callable[[str], str]


@lru_cache(maxsize=_REMEMBERED)
def number_format(code: str, *, date1904: bool = False) -> Show:
    """What shows the digits of a file as a number in a format; it raises ValueError if they are not a number."""
    if code in ("", "General", "@") or len(code) > MAX_FORMAT_CHARS:
        return general
    sections = [_Section(parts, date1904=date1904) for parts in sections_of(code)]
    if any(part.kind == "text" for part in sections[-1].parts) or len(sections) > 3:
        sections.pop()
    if not sections:
        return general

    def show(digits: str) -> str:
        value = float(digits)
        section, bare = _chosen(sections, value)
        return section.show(digits, value, bare=bare).strip(" ")

    return lru_cache(maxsize=2 * _REMEMBERED)(show)


@lru_cache(maxsize=_REMEMBERED)
def text_format(code: str) -> Show | None:
    """What shows a text in a format; None when the format shows it as it is."""
    if code == "@" or len(code) > MAX_FORMAT_CHARS or ("@" not in code and code.count(";") < 3):
        return None
    sections = sections_of(code)
    parts = sections[-1]
    if not any(part.kind == "text" for part in parts) and len(sections) < 4:
        return None
    if all(part.kind in ("text", "space", "fill") for part in parts) and sum(p.kind == "text" for p in parts) == 1:
        return None  # the blanks that align it are left out
    return lambda text: "".join([text if part.kind in ("text", "general") else part.shown for part in parts]).strip(" ")


def _chosen(sections: Sequence["_Section"], value: float) -> tuple["_Section", bool]:
    """The section for a number, and whether it leaves out the sign."""
    for section in sections[:2]:
        if section.condition is not None and section.holds(value):
            return section, section.only_negative
    if any(section.condition is not None for section in sections):
        rest = [section for section in sections if section.condition is None]
        return (rest[0] if rest else sections[-1]), False
    if value < 0 and len(sections) > 1:
        return sections[1], True
    if value == 0 and len(sections) > 2:
        return sections[2], True
    return sections[0], False


class _Section:
    """A section of a format, taken apart once."""

    def __init__(self, parts: Sequence[Part], *, date1904: bool) -> None:
        self.parts = parts
        self.condition: tuple[str, float] | None = None
        for part in parts:
            if part.kind == "bracket" and (found := _CONDITION.fullmatch(part.text)):
                self.condition = (found[1], float(found[2]))
        self._date = DateSection(parts, date1904=date1904) if is_date(parts) else None
        self._number = None if self._date is not None else _Number(parts)

    @property
    def only_negative(self) -> bool:
        """Whether its condition holds for negative numbers only."""
        return self.condition is not None and self.condition[0] in ("<", "<=") and self.condition[1] <= 0

    def holds(self, value: float) -> bool:
        """Whether its condition holds."""
        assert self.condition is not None
        return _TESTS[self.condition[0]](value, self.condition[1])

    def show(self, digits: str, value: float, *, bare: bool) -> str:
        """A number in this section; ``bare`` without its sign."""
        if self._date is not None:
            return self._date.show(value) or general(digits)
        assert self._number is not None
        return self._number.show(digits, value, bare=bare)


class _Number:
    """A section that shows a number: digits, a power, a fraction, or text alone."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        self._is_general = any(part.kind == "general" for part in parts)
        places = [place for place, part in enumerate(parts) if part.kind == "digit" and part.text in _HOLDERS]
        self._has_digits = bool(places)
        self._percents = sum(part.kind == "percent" for part in parts)
        kinds = [part.kind for part in parts]
        self._power = kinds.index("power") if "power" in kinds else None
        slash = next((n for n, part in enumerate(parts) if part.kind == "slash" and places and n > places[0]), None)
        if slash is not None and (self._power is not None or not _divides(parts, slash)):
            slash = None
        self._slash = slash
        end = len(parts) if self._power is None else self._power
        self._point = kinds.index("point") if "point" in kinds[:end] else None
        last_whole = end if self._point is None else self._point
        whole = [place for place in places if place < last_whole]
        self._whole = whole
        self._decimals = [] if self._point is None else [place for place in places if self._point < place < end]
        commas = [n for n in range(end) if kinds[n] == "comma"]
        self._grouped = any(whole and whole[0] < comma < whole[-1] for comma in commas)
        last = {*whole[-1:], *self._decimals[-1:]}
        self._scale = sum(1 for n in commas if last and (n > max(last) or max(whole, default=n) < n < last_whole))
        self._powers = [place for place in places if place >= end]
        self._has_number_in_text = any(p.kind == "literal" and any(map(str.isdigit, p.shown)) for p in parts)

    def show(self, digits: str, value: float, *, bare: bool) -> str:
        if self._is_general:
            return self._sign(value, bare) + self._literal(general(digits.lstrip("+-")))
        if not self._has_digits:
            return self._sign(value, bare) + self._literal("")
        exact = _exact(digits, value)
        with localcontext() as context:
            context.prec = 1000
            exact = abs(exact) * 100**self._percents / 1000**self._scale
            if self._slash is not None:
                shown = self._fraction(exact, self._slash)
            elif self._power is not None:
                shown = self._scientific(exact)
            else:
                shown = self._filled(_rounded(exact, len(self._decimals)), "")
        keeps_sign = self._slash is not None or self._has_number_in_text or any(c in "123456789" for c in shown)
        return self._sign(value, bare) + shown if keeps_sign else shown

    def _sign(self, value: float, bare: bool) -> str:
        return "-" if value < 0 and not bare else ""

    def _literal(self, number: str) -> str:
        return "".join([number if part.kind == "general" else part.shown for part in self._parts])

    def _filled(self, number: str, power: str) -> str:
        """The parts with the digits of a number, and of its power, in their places."""
        whole, _, decimals = number.partition(".")
        texts = [part.shown for part in self._parts]
        self._fill_whole(texts, self._whole, whole.lstrip("0"), grouped=self._grouped)
        kept = decimals.rstrip("0")
        for count, place in enumerate(self._decimals):
            holder = self._parts[place].text
            texts[place] = decimals[count] if count < len(kept) or holder == "0" else _BLANK[holder]
        if self._power is not None:
            self._fill_whole(texts, self._powers, power.lstrip("-").lstrip("0"), grouped=False)
            sign = "-" if power.startswith("-") else "+" if self._parts[self._power].text.endswith("+") else ""
            texts[self._power] = "E" + sign
        return "".join(texts)

    def _fill_whole(self, texts: list[str], places: Sequence[int], digits: str, *, grouped: bool) -> None:
        left = len(digits)
        for position, place in enumerate(reversed(places)):
            first = position == len(places) - 1
            if left > 0:
                taken = digits[:left] if first else digits[left - 1 : left]
                left -= len(taken)
            else:
                taken = _BLANK.get(self._parts[place].text, "0")
            texts[place] = _with_commas(taken, position) if grouped else taken

    def _scientific(self, exact: Decimal) -> str:
        assert self._power is not None
        step = max(1, len(self._whole))
        power = 0 if not exact else exact.adjusted()
        power -= power % step if step > 1 else 0
        rounded = _rounded(exact.scaleb(-power), len(self._decimals))
        if exact and Decimal(rounded).adjusted() >= step:
            power += step
            rounded = _rounded(exact.scaleb(-power), len(self._decimals))
        return self._filled(rounded, str(power))

    def _fraction(self, exact: Decimal, slash: int) -> str:
        over = _run(self._parts, slash, -1)
        under = _run(self._parts, slash, 1)
        wholes = [place for place in self._whole if place < over[0]]
        whole = int(exact) if wholes else 0
        rest = Fraction(exact) - whole
        fixed = "".join(self._parts[place].text for place in under)
        if fixed.strip("0#?"):
            below = int(fixed.replace("#", "").replace("?", "") or "1") or 1
            above = int(rest * below + Fraction(1, 2))
        else:
            above, below = _nearest(rest, 10 ** min(len(under), 9) - 1)
        if wholes and above == below:
            whole, above = whole + 1, 0
        texts = [part.shown for part in self._parts]
        self._fill_whole(texts, wholes, str(whole) if whole or not above else "", grouped=self._grouped)
        hidden = bool(wholes) and above == 0
        for place in (*over, *under):
            texts[place] = ""
        texts[slash] = "" if hidden else f"{above}/{below}"
        return "".join(texts)


_BLANK = {"0": "0", "#": "", "?": " "}


def _divides(parts: Sequence[Part], slash: int) -> bool:
    return bool(_run(parts, slash, -1)) and bool(_run(parts, slash, 1))


def _run(parts: Sequence[Part], start: int, step: int) -> list[int]:
    """The places of the digits next to a slash, in order; ``step`` is -1 before it and 1 after it."""
    found: list[int] = []
    place = start + step
    while 0 <= place < len(parts) and parts[place].kind == "digit":
        found.append(place)
        place += step
    return found[::step]


def _nearest(number: Fraction, most: int) -> tuple[int, int]:
    """The last convergent of a number's continued fraction that has a denominator of at most ``most``."""
    above, below, above_before, below_before = int(number), 1, 1, 0
    rest = number - above
    while rest:
        rest = 1 / rest
        whole = int(rest)
        rest -= whole
        if whole * below + below_before > most:
            break
        above, above_before = whole * above + above_before, above
        below, below_before = whole * below + below_before, below
    return above, below


def _with_commas(digits: str, position: int) -> str:
    """Digits, of which ``position`` more stand before the point, with a comma after each group of three."""
    if not digits.isdigit():
        return digits
    texts = []
    for count, digit in enumerate(reversed(digits), position):
        texts.append(f"{digit}," if count and count % 3 == 0 else digit)
    return "".join(reversed(texts))


def _exact(digits: str, value: float) -> Decimal:
    """The number as a spreadsheet has it: 15 digits, or all digits of a whole number."""
    bare = digits.strip().lstrip("+-")
    return Decimal(digits.strip()) if bare.isdigit() and bare.isascii() else Decimal(f"{value:.15g}")


def _rounded(exact: Decimal, decimals: int) -> str:
    return f"{exact.quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP):f}"
