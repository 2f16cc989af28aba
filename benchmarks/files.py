"""Spreadsheets and CSV files of other projects' test suites: each cell compared with what another reader reads.

    python -m benchmarks.files FOLDER [--show 20]

Every .xlsx, .xlsm, .csv and .tsv file of up to 2 MiB below the folder is read as an upload is. Workbooks are compared
with openpyxl, whose values xlfmt shows in their number formats. Headrace does not need these two packages; install
them for this alone. CSV is compared with a reader of RFC 4180 of 30 lines, below. A file may also be refused, or rows
of it named as problems: the table counts these by their reasons. Nothing is fetched. Bound: no cell differs, except
where the other reader is known to be wrong (docs/batches.md).
"""

import datetime as dt
import importlib
import re
import sys
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from api.batches.opening import open_table
from api.batches.problems import Problems
from api.batches.records import Dialect, Table, Unreadable

Cells = Mapping[int, Sequence["Right"]]
"""What is right for each cell of a line, by the line."""

MAX_BYTES = 2 << 20
"""The largest file that is compared: the other readers hold a file whole."""

_REFUSED = (".xls", ".xlsb", ".ods")
_QUOTED = re.compile(r"'[^']*'|\b[A-Z]{1,3}\d+\b|\d[\d,]*|0x\w\w")


@dataclass
class Tally:
    """What came of the files of one kind."""

    files: int = 0
    whole: int = 0
    cells: int = 0
    wrong: int = 0
    unread_rows: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


def compare(path: Path, tally: Tally, show: Callable[[str], None]) -> None:
    """Read a file, and compare it."""
    tally.files += 1
    problems = Problems()
    rows: dict[int, list[str]] = {}
    try:
        with path.open("rb") as file:
            table = open_table(file, path.name, problems)
            for group in table.groups:
                rows.update(zip(group.lines, group.cells, strict=True))
    except Unreadable as refusal:
        tally.reasons[_QUOTED.sub("…", refusal.message)] += 1
        return
    tally.unread_rows += problems.total
    found = problems.as_error().problems if problems else ()
    if found:
        tally.reasons[f"rows: {_QUOTED.sub('…', found[0].message)}"] += 1
    else:
        tally.whole += 1
    right = _csv_cells(path, table.dialect) if path.suffix in (".csv", ".tsv") else _sheet_cells(path)
    named = {problem.line for problem in found}
    header, first, others = _place_of_table(right, table)
    rows[header] = list(table.columns)
    if not problems and (missed := others - set(rows)):
        tally.wrong += len(missed)
        show(f"{path}: rows {sorted(missed)[:5]} are missing")
    for line, record in rows.items():
        tests = [*right.get(line, [])][first:]
        tests += [Right("")] * (len(record) - len(tests))
        for place, (text, test) in enumerate(zip(record, tests, strict=False)):
            tally.cells += 1
            if not test.fits(text, trimmed=line == header) and line not in named:
                tally.wrong += 1
                show(f"{path}: row {line}, cell {place + first + 1} is {text!r}; right is {test.wanted!r}")


def _place_of_table(right: Cells, table: Table) -> tuple[int, int, set[int]]:
    """The line of the columns' names, the place of the first column, and the other lines with something in them."""
    lines = [line for line, tests in right.items() if not all(test.fits("") for test in tests)]
    if not lines:
        return 0, 0, set()
    first = next(place for place, test in enumerate(right[lines[0]]) if not test.fits(""))
    unnamed = next((place for place, name in enumerate(table.columns) if name), 0)
    return lines[0], first - unnamed, set(lines[1:])


@dataclass(frozen=True, slots=True)
class Right:
    """What is right for a cell: a text, a number in any notation, or None if the other reader does not know."""

    wanted: str | float | None

    def fits(self, text: str, *, trimmed: bool = False) -> bool:
        """Whether a text is right; names of columns are ``trimmed``."""
        if isinstance(self.wanted, str):
            wanted = self.wanted.strip() if trimmed or not self.wanted.strip() else self.wanted
            return wanted == (text if wanted else text.strip())
        try:
            return self.wanted is None or abs(float(text) - self.wanted) <= abs(self.wanted) * 1e-14
        except ValueError:
            return False


def _sheet_cells(path: Path) -> Cells:
    """The cells of the first visible sheet, by openpyxl."""
    openpyxl = importlib.import_module("openpyxl")
    book = openpyxl.load_workbook(path, data_only=True)
    sheet = next(sheet for sheet in book.worksheets if sheet.sheet_state == "visible")
    epoch = book.epoch
    found: dict[int, list[Right]] = {}
    for (row, column), cell in sorted(sheet._cells.items()):  # its rows have all the cells that there can be
        tests = found.setdefault(row, [])
        tests += [Right("")] * (column - 1 - len(tests))
        tests.append(_shown(cell, epoch))
    return found


def _shown(cell: Any, epoch: Any) -> Right:  # Any: a library without types
    value, code = cell.value, cell.number_format
    if value is None:
        return Right("")
    if isinstance(value, bool):
        return Right("TRUE" if value else "FALSE")
    if isinstance(value, str):
        # openpyxl has made an error of a number that is not a date.
        return Right(None if cell.data_type == "e" and code != "General" else value)
    dates = importlib.import_module("openpyxl.utils.datetime")
    if isinstance(value, dt.datetime | dt.date | dt.time | dt.timedelta):
        value = dates.to_excel(value, epoch)
    if code in ("General", "@"):
        return Right(value)
    if code in ("mm-dd-yy", "m/d/yy h:mm"):  # these look different on each machine
        code = "yyyy-mm-dd" if code == "mm-dd-yy" else "yyyy-mm-dd hh:mm"
    code = "yyyy-mm-dd" if code.upper().startswith("[$-F800]") else code
    if "g" in code.replace("General", ""):  # the year of an era: ours are Gregorian, the other reader has neither
        return Right(None)
    xlfmt = importlib.import_module("xlfmt")
    shown = str(xlfmt.format_value(value, code, date1904=epoch == dates.CALENDAR_MAC_1904))
    return Right(value) if set(shown) == {"#"} else Right(re.sub(" +", " ", shown).strip(" "))


def _csv_cells(path: Path, dialect: Dialect) -> Cells:
    encoding = "utf-16" if dialect.encoding.startswith("utf-16") else "utf-8-sig"
    text = path.read_bytes().decode(encoding, "surrogateescape")
    return {line: [Right(cell) for cell in cells] for line, cells in _records(text, dialect.separator)}


def _records(text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The records of RFC 4180, with the line ends of every machine, and the lines where they start."""
    cells: list[str] = []
    cell, before = "", ""
    quoted = after_quote = False
    line = start = 1
    for char in text:
        ends = char == "\n" or char == "\r"
        second = before + char == "\r\n"
        before = char
        line += ends and not second
        if quoted:
            quoted = char != '"'
            after_quote = not quoted
            cell += char if quoted else ""
        elif char == '"' and (after_quote or not cell):
            cell, quoted = cell + '"' * after_quote, True
        elif char == separator:
            cells.append(cell)
            cell, after_quote = "", False
        elif ends and not second:
            yield start, [*cells, cell]
            cells, cell, after_quote, start = [], "", False, line
        elif not ends:
            cell, after_quote = cell + char, False
    if cells or cell:
        yield start, [*cells, cell]


def main() -> None:
    """Compare all files below a folder, and print the table."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--show", type=int, default=20, help="differences that are printed")
    asked = parser.parse_args()
    told: list[str] = []
    tallies: dict[str, Tally] = {}
    for path in sorted(asked.folder.rglob("*")):
        if (
            path.is_file()
            and path.stat().st_size <= MAX_BYTES
            and path.suffix.lower() in (".xlsx", ".xlsm", ".csv", ".tsv", *_REFUSED)
        ):
            tally = tallies.setdefault(path.suffix.lower(), Tally())
            try:
                compare(path, tally, told.append)
            except Exception as error:  # noqa: BLE001 - openpyxl raises anything for a file that it cannot read
                tally.reasons[f"not compared: {type(error).__name__} of the other reader"] += 1
    print("| kind | files | read whole | cells compared | cells that differ | rows named as problems |")
    print("|---|---|---|---|---|---|")
    for kind, tally in sorted(tallies.items()):
        print(f"| {kind} | {tally.files} | {tally.whole} | {tally.cells:,} | {tally.wrong} | {tally.unread_rows:,} |")
    print("\n| kind | files | why refused, or which rows |\n|---|---|---|")
    for kind, tally in sorted(tallies.items()):
        for reason, count in tally.reasons.most_common():
            print(f"| {kind} | {count} | {reason} |")
    print(*told[: asked.show], sep="\n")
    sys.exit(any(tally.wrong for tally in tallies.values()))


if __name__ == "__main__":
    main()
