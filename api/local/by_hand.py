"""The commands that a person types to use a running Headrace."""

import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def curl_commands(api_url: str, key_file: Path, body: Mapping[str, object]) -> list[str]:
    """The lines of two commands: one submits a job, one reads its answer."""
    authorization = f'-H "Authorization: Bearer $(cat {shlex.quote(short(key_file))})"'
    return [
        f"curl -s {api_url}/v1/jobs \\",
        f"  {authorization} \\",
        "  -H 'Content-Type: application/json' \\",
        f"  -d {shlex.quote(json.dumps(body, ensure_ascii=False))}",
        "",
        f"curl -s '{api_url}/status/<id>?wait=30' \\",
        f"  {authorization}",
    ]


def batch_commands(cells: Sequence[str], template: str) -> list[str]:
    """The lines of two commands: one writes a spreadsheet of one column, one runs it through a model."""
    return [
        f"printf '%s\\n' {shlex.join(cells)} > rows.csv",
        f"{program()} batch run rows.csv --prompt {shlex.quote(template)} -o out.csv",
    ]


def program() -> str:
    """The command that started this process, as a person in the current directory can type it again."""
    started = Path(sys.argv[0])
    if started.suffix == ".py":  # python -m api.cli
        return shlex.join([sys.orig_argv[0], "-m", "api.cli"])
    found = shutil.which(started.name)
    if found is not None and started.exists() and Path(found).samefile(started):
        return started.name
    return shlex.quote(short(started.absolute()))


def without_number(error: object) -> str:
    """The system's message, without the number of the error."""
    return re.sub(r"^\[Errno -?\d+\] ", "", str(error))


def short(path: Path) -> str:
    """A path as a person in the current directory would type it."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
