"""Workbooks for tests, made by hand: as small as ``.xlsx`` can be."""

import io
import zipfile
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape, quoteattr

NS = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
REL = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
STRICT_NS = "http://purl.oclc.org/ooxml/spreadsheetml/main"
STRICT_REL = "http://purl.oclc.org/ooxml/officeDocument/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_TYPES = (
    f'<Types xmlns="{_PACKAGE}/content-types"><Default Extension="rels" '
    'ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    '<Override PartName="/xl/workbook.xml" ContentType='
    '"application/vnd.openxmlformats-officedocument.spreadsheetml.sheet.main+xml"/></Types>'
)


def workbook(rows: Sequence[Sequence[object]]) -> bytes:
    """A workbook with these rows in its only sheet: texts, numbers, booleans, and None for no cell."""
    return packed(sheet("".join(_row(number, row) for number, row in enumerate(rows, 1))))


def sheet(rows: str, ns: str = NS) -> bytes:
    """A sheet's XML."""
    return f'<worksheet xmlns="{ns}"><sheetData>{rows}</sheetData></worksheet>'.encode()


def packed(xml: bytes, **how: object) -> bytes:
    """A workbook whose only sheet is this XML; ``how`` as of :func:`book`."""
    return book({"Sheet1": xml}, **how)  # type: ignore[arg-type]  # checked there


def book(
    sheets: Mapping[str, bytes],
    *,
    states: Mapping[str, str] | None = None,
    formats: Sequence[str | int] = (),
    shared: Sequence[str] | None = None,
    properties: str = "",
    strict: bool = False,
    parts: Mapping[str, str | bytes] | None = None,
) -> bytes:
    """A workbook with sheets by their names, in their order.

    ``formats`` are the number formats of the styles from 1 on, ``shared`` the XML of shared texts, ``properties`` of
    the workbook, and ``parts`` are added to the archive, or put in the place of one.
    """
    ns, rel = (STRICT_NS, STRICT_REL) if strict else (NS, REL)
    named = "".join(
        f'<sheet name={quoteattr(name)} sheetId="{number}" r:id="r{number}"'
        + (f' state="{states[name]}"' if states and name in states else "")
        + "/>"
        for number, name in enumerate(sheets, 1)
    )
    relations = "".join(
        _relation(f"r{number}", f"{rel}/worksheet", f"worksheets/sheet{number}.xml")
        for number in range(1, len(sheets) + 1)
    )
    content: dict[str, str | bytes] = {
        "[Content_Types].xml": _TYPES,
        "_rels/.rels": _relations(_relation("r1", f"{rel}/officeDocument", "xl/workbook.xml")),
        "xl/workbook.xml": f'<workbook xmlns="{ns}" xmlns:r="{rel}">{properties}<sheets>{named}</sheets></workbook>',
        **{f"xl/worksheets/sheet{number}.xml": xml for number, xml in enumerate(sheets.values(), 1)},
    }
    if formats:
        relations += _relation("styles", f"{rel}/styles", "styles.xml")
        content["xl/styles.xml"] = _styles(formats, ns)
    if shared is not None:
        relations += _relation("shared", f"{rel}/sharedStrings", "sharedStrings.xml")
        items = "".join(f"<si>{item}</si>" for item in shared)
        content["xl/sharedStrings.xml"] = f'<sst xmlns="{ns}" count="{len(shared)}">{items}</sst>'
    content["xl/_rels/workbook.xml.rels"] = _relations(relations)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in (content | dict(parts or {})).items():
            archive.writestr(name, text)
    return file.getvalue()


def _relations(relations: str) -> str:
    return f'<Relationships xmlns="{_PACKAGE}/relationships">{relations}</Relationships>'


def _relation(name: str, kind: str, target: str) -> str:
    return f'<Relationship Id="{name}" Type="{kind}" Target="{target}"/>'


def _styles(formats: Sequence[str | int], ns: str) -> str:
    own = "".join(
        f'<numFmt numFmtId="{164 + place}" formatCode={quoteattr(code)}/>'
        for place, code in enumerate(formats)
        if isinstance(code, str)
    )
    styles = "".join(
        f'<xf numFmtId="{code if isinstance(code, int) else 164 + place}"/>' for place, code in enumerate(formats)
    )
    return (
        f'<styleSheet xmlns="{ns}"><numFmts>{own}</numFmts><cellStyleXfs><xf numFmtId="9"/></cellStyleXfs>'
        f'<cellXfs><xf numFmtId="0"/>{styles}</cellXfs></styleSheet>'
    )


def _row(number: int, row: Sequence[object]) -> str:
    cells = (_cell(f"{chr(65 + place)}{number}", value) for place, value in enumerate(row) if value is not None)
    return f'<row r="{number}">{"".join(cells)}</row>'


def _cell(name: str, value: object) -> str:
    if isinstance(value, bool):
        return f'<c r="{name}" t="b"><v>{int(value)}</v></c>'
    if isinstance(value, int | float):
        return f'<c r="{name}"><v>{value}</v></c>'
    return f'<c r="{name}" t="inlineStr"><is><t xml:space="preserve">{escape(str(value))}</t></is></c>'
