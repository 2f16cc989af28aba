"""The ``format`` keyword's forms as patterns that a grammar can write. Pure."""

_MONTH_AND_DAY = r"((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)|02-(0[1-9]|1\d|2[0-8]))"
_TIME = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,6})?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
_BYTE = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]\d|\d)"
_LABEL = r"[A-Za-z0-9]{1,20}(-[A-Za-z0-9]{1,20}){0,2}"
_GROUP = r"[0-9a-fA-F]{1,4}"
_PATH = r"([A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-Fa-f]{2})"
_NO_COLON = r"([A-Za-z0-9._~!$&'()*+,;=@-]|%[0-9A-Fa-f]{2})"
_AUTHORITY = r"//([A-Za-z0-9._~-]{1,60}(:[A-Za-z0-9._~-]{0,60})?@)?[A-Za-z0-9.-]*(:\d{1,4})?"
_TAIL = rf"(\?({_PATH}|[/?])*)?(#({_PATH}|[/?])*)?"
_URI = rf"[A-Za-z][A-Za-z0-9+.-]*:({_AUTHORITY}(/{_PATH}*)*|/?{_PATH}+(/{_PATH}*)*){_TAIL}"
_POINTER = r"(/([^/~]|~[01])*)*"
_DAYS = r"(\d{1,4}Y(\d{1,2}M(\d{1,2}D)?)?|\d{1,2}M(\d{1,2}D)?|\d{1,3}D)"
_HOURS = r"(\d{1,4}H(\d{1,2}M(\d{1,2}S)?)?|\d{1,4}M(\d{1,2}S)?|\d{1,4}S)"
_IPV6 = "|".join(
    [
        rf"^({_GROUP}:){{7}}{_GROUP}$",
        *(rf"^({_GROUP}:){{{many}}}(:{_GROUP}){{1,{7 - many}}}$" for many in range(1, 7)),
        rf"^:(:{_GROUP}){{1,7}}$",
        rf"^({_GROUP}:){{1,7}}:$",
        r"^::$",
    ]
)

FORMATS = {
    "date": rf"^[12]\d{{3}}-{_MONTH_AND_DAY}$",
    "time": rf"^{_TIME}$",
    "date-time": rf"^[12]\d{{3}}-{_MONTH_AND_DAY}T{_TIME}$",
    "duration": rf"^P({_DAYS}(T{_HOURS})?|T{_HOURS}|\d{{1,4}}W)$",
    "uuid": r"^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$",
    "ipv4": rf"^{_BYTE}\.{_BYTE}\.{_BYTE}\.{_BYTE}$",
    "ipv6": _IPV6,
    "email": r"^[A-Za-z0-9_+-]{1,30}(\.[A-Za-z0-9_+-]{1,30})?@[A-Za-z0-9]{1,30}(-[A-Za-z0-9]{1,30})?"
    r"(\.[A-Za-z]{2,12}){1,2}$",
    "hostname": rf"^{_LABEL}(\.{_LABEL}){{0,3}}$",
    "uri": rf"^{_URI}$",
    "uri-reference": rf"^{_URI}$|^({_AUTHORITY}|/?{_NO_COLON}+)?(/{_PATH}+)*/?{_TAIL}$",
    "json-pointer": rf"^{_POINTER}$",
    "relative-json-pointer": rf"^(0|[1-9]\d{{0,3}})(#|{_POINTER})$",
}
"""Formats that a grammar can write, some of them only in part."""

FORMATS |= {f"idn-{name}": FORMATS[name] for name in ("email", "hostname")}
FORMATS |= {f"iri{end}": FORMATS[f"uri{end}"] for end in ("", "-reference")}

UNWRITTEN = frozenset({"regex", "uri-template"})
"""Formats that are left to the check. Whatever else a schema names says nothing: who does not know it ignores it."""
