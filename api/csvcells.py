"""Cells of the CSV that we write, made so that no spreadsheet executes one.

A cell that a spreadsheet takes for a formula gets an apostrophe before it. A plain number is evaluated to itself, and
stays as it is. Source: OWASP, "CSV Injection".

=======================================  ===========================================================================
begins with                              why
=======================================  ===========================================================================
``=``  ``+``  ``-``  ``@``               a formula; ``+`` and ``-`` as of old spreadsheets, ``@`` as of Lotus; also DDE
full-width ``=``  ``+``  ``-``  ``@``    read as the narrow ones by Excel in East Asian languages
tab, carriage return, line feed, blanks  a reader leaves them out; the cell begins with what follows
=======================================  ===========================================================================

A spreadsheet that expects another separator than the file has divides a cell at that one, in spite of its quotes. So
within a cell, these get an apostrophe too:

- ``=`` after a separator or a line end;
- ``+``, ``-`` and ``@`` after a separator, before a call or DDE;
- ``+``, ``-`` and ``@`` after a line end, before DDE. A call stays there: it is often a line of code or of a patch.
"""

import re

_SIGNS = "=+\\-@\uff1d\uff0b\uff0d\uff20"
_BEGINS = re.compile(rf"[\t\r\n]|\s*[{_SIGNS}]")
_PLAIN = re.compile(
    r"""[+-]?(?:
          (?:\d{1,3}(?:[,.'\u2019\ \u00a0\u202f]\d{3})+|\d+)(?:[.,]\d*)?
          | [.,]\d+
        )(?:[eE][+-]?\d{1,3})?[ ]?[%\u20ac$\u00a3]?
        | \+\d{1,3}(?:\ \d{1,12}){1,6}    # a telephone number with blanks, which is not an expression
        | [+-]
    """,
    re.VERBOSE | re.ASCII,
)
_WITHIN = re.compile(
    r"""(?<=[\s\S])([;,\t|\r\n][\s"]*)(?=[=\uff1d])
      | (?<=[\s\S])([\r\n][\s"]*)(?=[+\-@\uff0b\uff0d\uff20]\w[\w.]{0,60}\|[^\r\n]{0,300}!)    # DDE
      | (?<=[\s\S])([;,\t|][\ "]*)(?=[+\-@\uff0b\uff0d\uff20][\w.]{0,60}[(|])
    """,
    re.VERBOSE,
)


def harmless(cell: str) -> str:
    """The cell as no spreadsheet executes it: unchanged if none would."""
    if "=" in cell or "(" in cell or "|" in cell or "\uff1d" in cell:
        cell = _WITHIN.sub(lambda found: f"{found[0]}'", cell)
    return f"'{cell}" if _BEGINS.match(cell) is not None and _PLAIN.fullmatch(cell) is None else cell
