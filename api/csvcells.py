"""Cells of the CSV that we write, kept from being executed by the spreadsheet that opens it.

A cell that a spreadsheet takes for a formula gets an apostrophe before it. A plain number is evaluated to itself and
stays. Source: OWASP, "CSV Injection".

=======================================  ===========================================================================
begins with                              why
=======================================  ===========================================================================
``=``  ``+``  ``-``  ``@``               a formula; ``+`` and ``-`` as of old spreadsheets, ``@`` as of Lotus; also DDE
full-width ``=``  ``+``  ``-``  ``@``    read as the narrow ones by Excel in East Asian languages
tab, carriage return, line feed, blanks  left out by the reader, so that what follows begins the cell
=======================================  ===========================================================================

Within a cell, ``=`` after a separator or a line end, or ``+``, ``-``, ``@`` before a call or DDE after a separator, and
before DDE after a line end (a call there is a line of code or of a patch too often): a spreadsheet that expects another
separator than the file has divides the cell there, whatever its quotes.
"""

import re

_SIGNS = "=+\\-@\uff1d\uff0b\uff0d\uff20"
_BEGINS = re.compile(rf"[\t\r\n]|\s*[{_SIGNS}]")
_PLAIN = re.compile(
    r"""[+-]?(?:
          (?:\d{1,3}(?:[,.'\u2019\ \u00a0\u202f]\d{3})+|\d+)(?:[.,]\d*)?
          | [.,]\d+
        )(?:[eE][+-]?\d{1,3})?[ ]?[%\u20ac$\u00a3]?
        | \+\d{1,3}(?:\ \d{1,12}){1,6}    # a telephone number with blanks, which is no expression
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
    """A cell that no spreadsheet executes, and that is as it was where none would."""
    if "=" in cell or "(" in cell or "|" in cell or "\uff1d" in cell:
        cell = _WITHIN.sub(lambda found: f"{found[0]}'", cell)
    return f"'{cell}" if _BEGINS.match(cell) is not None and _PLAIN.fullmatch(cell) is None else cell
