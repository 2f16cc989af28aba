"""The rows of a sheet as texts: each cell as the spreadsheet shows it.

An error such as ``#N/A`` is its text. A formula is its stored result; without one, its row is a problem.
"""

import re
from collections.abc import Iterator, Mapping, Sequence

from api.batches.dateformat import serial_of
from api.batches.formatparts import general
from api.batches.numberformat import Show, number_format, text_format
from api.batches.records import MAX_COLUMNS, Unreadable
from api.batches.sheetxml import elements_of, plain_text, unescaped
from api.batches.workbook import BROKEN, FAULTS, Workbook

MAX_SHEET_COLUMNS = 16_384
MAX_SHEET_ROWS = 1 << 30
MAX_SHAPES = 64
"""The most shapes of rows that are remembered of a sheet."""

_USUAL_CELL = re.compile(
    r'<c r="([A-Z]{1,3})[0-9]+"(?: s="([0-9]+)")?(?: t="([a-zA-Z]+)")?'
    r'(?:/>|><v>([^<]*)</v></c>|><is><t(?: xml:space="preserve")?>([^<]*)</t></is></c>)'
)
"""A cell as nearly all programs write it."""

_CELL = re.compile(r"<c(\s[^>]*?)?(?:/>|>(.*?)</c\s*>)", re.DOTALL)
_ATTRIBUTE = re.compile(r"""([\w:]+)\s*=\s*(?:"([^"]*)"|'([^']*)')""")
_VALUE = re.compile(r"<v(?:\s[^>]*)?(?:/>|>([^<]*)</v\s*>)")
_INLINE = re.compile(r"<is(?:\s[^>]*)?>(.*)</is\s*>", re.DOTALL)
_ROW_NUMBER = re.compile(r"""\sr\s*=\s*["']\s*(\d{1,10})""")
_EMPTY_ROW = re.compile(r"<row(?:\s[^<>]*)?/>")
_NO_RESULT = "Cell {} has a formula without a result: open the workbook in a spreadsheet program, save it, and send it."
_NO_CELL = "Cell {} cannot be read; save the workbook again as .xlsx, or as CSV UTF-8."

SheetRow = tuple[int, list[str], str | None]
"""A row's number in the sheet, its cells from column A on, and what is wrong with it."""

CellShape = tuple[str, str, str, bool, bool]
"""A cell's column, style and type, whether it has a value, and whether it has an inline text."""


class RowShape:
    """A reader of rows that have the same columns, styles and types, as most rows of most sheets have.

    One match of a pattern reads such a row.
    """

    def __init__(self, cells: Sequence[CellShape], places: Sequence[int], converters: Sequence[Show]) -> None:
        self._pattern = re.compile('<row r="([0-9]{1,9})"[^>]*>' + "".join(map(_cell_pattern, cells)))
        filled = [number for number, cell in enumerate(cells) if cell[3] or cell[4]]
        self._places = [places[number] for number in filled]
        self._converters = [converters[number] for number in filled]
        self._width = max(places, default=-1) + 1
        self._dense = self._places == list(range(self._width))

    def read(self, text: str) -> tuple[int, list[str]] | None:
        """A row's number and its cells; None for a row of another shape, or with a cell that cannot be read."""
        found = self._pattern.fullmatch(text)
        if found is None:
            return None
        number, *values = found.groups()
        try:
            shown = [convert(value) for convert, value in zip(self._converters, values, strict=True)]
        except FAULTS:
            return None
        if self._dense:
            return int(number), shown
        cells = [""] * self._width
        for place, value in zip(self._places, shown, strict=True):
            cells[place] = value
        return int(number), cells


def _cell_pattern(cell: CellShape) -> str:
    letters, style, kind, has_value, has_text = cell
    head = f'<c r="{letters}[0-9]+"' + (f' s="{style}"' if style else "") + (f' t="{kind}"' if kind else "")
    if has_value:
        return head + ("><v>([0-9]+)</v></c>" if kind == "s" else "><v>([^<]+)</v></c>")
    return head + ('><is><t(?: xml:space="preserve")?>([^<]+)</t></is></c>' if has_text else "/>")


class SheetReader:
    """Reads the rows of one sheet."""

    def __init__(self, workbook: Workbook) -> None:
        self._texts = workbook.shared_texts()
        codes = workbook.number_formats()
        self._shows: Mapping[str, Show] = {
            str(place): number_format(code, date1904=workbook.date1904) for place, code in enumerate(codes)
        }
        self._text_shows = {str(place): show for place, code in enumerate(codes) if (show := text_format(code))}
        self._calculates = workbook.calculates
        self._date1904 = workbook.date1904
        self._shapes: dict[tuple[CellShape, ...], RowShape] = {}
        self._shape: RowShape | None = None
        self._last: tuple[CellShape, ...] = ()

    def rows(self, pieces: Iterator[str]) -> Iterator[SheetRow]:
        """The rows that the sheet has; raises Unreadable."""
        number = 0
        try:
            for text in elements_of(pieces, "row", "sheetData"):
                if self._shape is not None and (usual := self._shape.read(text)):
                    number, cells = usual
                    yield number, cells, None
                    continue
                start = text.rfind("<row")
                head_end = text.index(">", start)
                number = _next_number(number, text, start, head_end)
                if number > MAX_SHEET_ROWS:
                    raise Unreadable(BROKEN)
                yield self._row(number, text[head_end + 1 :])
        except FAULTS:
            raise Unreadable(BROKEN, number or None) from None

    def _row(self, number: int, markup: str) -> SheetRow:
        found: list[tuple[str, str, str, str, str]] = _USUAL_CELL.findall(markup)
        values, inline = markup.count("</v>"), markup.count("</is>")
        if markup.count("<") != len(found) + 3 * values + 5 * inline:
            return self._unusual_row(number, markup)
        try:
            shown = [self._shown(kind or "n", value or text, style) for _, style, kind, value, text in found]
            places = [_column_place(cell[0]) for cell in found]
        except FAULTS:
            return self._unusual_row(number, markup)
        self._learn(found, places)
        cells = [""] * (max(places, default=-1) + 1)
        for place, text in zip(places, shown, strict=True):
            cells[place] = text
        return number, cells, None

    def _learn(self, found: Sequence[tuple[str, str, str, str, str]], places: Sequence[int]) -> None:
        """Expect further rows to be like the last two, if these are alike."""
        cells = tuple([(at, style, kind, bool(v), bool(t)) for at, style, kind, v, t in found])
        if cells != self._last or len(cells) > MAX_COLUMNS:
            self._last = cells
            return
        if cells not in self._shapes and len(self._shapes) < MAX_SHAPES:
            converters = [self._converter(kind, style) for _, style, kind, _, _ in found]
            self._shapes[cells] = RowShape(cells, places, converters)
        self._shape = self._shapes.get(cells, self._shape)

    def _converter(self, kind: str, style: str) -> Show:
        texts = self._texts
        if kind == "s" and style not in self._text_shows:
            return lambda value: texts[int(value)]
        if kind in ("", "n"):
            return self._shows.get(style, general)
        return lambda value: self._shown(kind, value, style)

    def _unusual_row(self, number: int, markup: str) -> SheetRow:
        """A row some cells of which are written in another way, or have formulas."""
        cells: dict[int, str] = {}
        place = -1
        for found in _CELL.finditer(markup):
            attributes = {key: double or single for key, double, single in _ATTRIBUTE.findall(found[1] or "")}
            letters = attributes.get("r", "").rstrip("0123456789")
            place = _column_place(letters) if letters else place + 1
            name = f"{letters or column_name(place)}{number}"
            content = found[2] or ""
            kind = attributes.get("t", "n")
            value = _VALUE.search(content)
            if "<f" in content and self._lacks_result(kind, value):
                return number, [], _NO_RESULT.format(name)
            inline = _INLINE.search(content) if kind == "inlineStr" else None
            try:
                text = plain_text(inline[1]) if inline else value[1] or "" if value else ""
                shown = text if inline else self._shown(kind, text, attributes.get("s", ""))
            except FAULTS:
                return number, [], _NO_CELL.format(name)
            cells[place] = shown
        width = max(cells, default=-1) + 1
        return number, [cells.get(place, "") for place in range(width)], None

    def _lacks_result(self, kind: str, value: re.Match[str] | None) -> bool:
        if value is None or not value[1]:
            return kind != "str" or value is None
        return self._calculates and kind == "n" and value[1] == "0"

    def _shown(self, kind: str, value: str, style: str) -> str:
        """A cell's value as it is shown; raises ValueError and LookupError."""
        if kind == "s":
            text = self._texts[_index(value)] if value else ""
        elif kind in ("str", "inlineStr"):
            text = unescaped(value)
        elif not value:
            return ""
        elif kind == "b":
            return "TRUE" if value.strip() in ("1", "true") else "FALSE"
        elif kind == "e":
            return unescaped(value)
        elif kind == "d":
            return self._date(value.strip(), style)
        elif kind == "n":
            return self._shows.get(style, general)(value)
        else:
            raise ValueError(kind)
        show = self._text_shows.get(style)
        return text if show is None else show(text)

    def _date(self, value: str, style: str) -> str:
        show = self._shows.get(style, general)
        serial = serial_of(value.removesuffix("Z"), date1904=self._date1904)
        return value.removesuffix("T00:00:00") if show is general else show(repr(serial))


def _next_number(number: int, text: str, start: int, head_end: int) -> int:
    """The number of the row whose tag is at ``start``: what the tag says, or 1 + that of the row before it."""
    told = _ROW_NUMBER.search(text, start, head_end)
    if told is not None:
        return int(told[1])
    for empty in _EMPTY_ROW.finditer(text, 0, start):
        told = _ROW_NUMBER.search(empty[0])
        number = number + 1 if told is None else int(told[1])
    return number + 1


def column_name(place: int) -> str:
    """The letters of a column, by its place from 0."""
    letters = ""
    place += 1
    while place:
        place, rest = divmod(place - 1, 26)
        letters = chr(65 + rest) + letters
    return letters


def _index(text: str) -> int:
    if (index := int(text)) < 0:
        raise ValueError(text)
    return index


_PLACES = {column_name(place): place for place in range(MAX_COLUMNS)}


def _column_place(letters: str) -> int:
    """The place of a column, from 0; raises ValueError for letters that name no column of a sheet."""
    place = _PLACES.get(letters)
    if place is not None:
        return place
    place = 0
    for letter in letters.upper():
        if not "A" <= letter <= "Z" or place > MAX_SHEET_COLUMNS:
            raise ValueError(letters)
        place = place * 26 + ord(letter) - 64
    if not 1 <= place <= MAX_SHEET_COLUMNS:
        raise ValueError(letters)
    return place - 1
