"""Files that are not what they say, sent to a real API: what it answers, how long it takes, what memory it needs.

    python -m benchmarks.batch_hostile

A gzip named .csv, one line of 2 GB, NUL bytes, a million columns, an .xlsx that unpacks to 3 GB. Bounds: 422 with what
is wrong, or 413; nothing stored; 300 MB for each process.
"""

import gzip
import io
import time
import zipfile
from collections.abc import Callable, Iterator
from tempfile import TemporaryFile
from typing import IO

import httpx

from benchmarks.batch_upload import MEMORY_MB, Memory, verdict
from benchmarks.ground import common_ground, print_machine
from tests.api.batches.sheets import packed, sheet

_MB = 1 << 20
_SHEET = "xl/worksheets/sheet1.xml"
_BOUNDARY = b"--x\r\nContent-Disposition: form-data; name="


def _line_of_2_gb() -> Iterator[bytes]:
    yield b"id,text\n1,"
    for _ in range(2048):
        yield b"x" * _MB


def _bomb() -> bytes:
    """A workbook of some 3 MB whose sheet is 3 GB of white space."""
    begun = zipfile.ZipFile(io.BytesIO(packed(sheet(""))))
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in begun.namelist():
            if name != _SHEET:
                archive.writestr(name, begun.read(name))
        with archive.open(_SHEET, "w", force_zip64=True) as part:
            head, _, tail = sheet("<!-- -->").partition(b" ")
            part.write(head + b" ")
            for _ in range(3072):
                part.write(b" " * _MB)
            part.write(tail)
    return file.getvalue()


def _once(content: Callable[[], bytes]) -> Callable[[], Iterator[bytes]]:
    return lambda: iter([content()])


HOSTILE: dict[str, Callable[[], Iterator[bytes]]] = {
    "gzip.csv": _once(lambda: gzip.compress(b"id,text\n1,a\n" * 1000)),
    "line-of-2-gb.csv": _line_of_2_gb,
    "nul.csv": _once(lambda: b"id,text\n1,a\x00b\n"),
    "million-columns.csv": _once(lambda: b"text," * 1_000_000),
    "bomb.xlsx": _once(_bomb),
}


def _body(name: str, content: Iterator[bytes], form: IO[bytes]) -> int:
    """Write the form that carries a file; its length."""
    form.write(_BOUNDARY + b'"prompt"\r\n\r\nSay {{text}}\r\n')
    form.write(_BOUNDARY + f'"file"; filename="{name}"\r\n\r\n'.encode())
    form.writelines(content)
    form.write(b"\r\n--x--\r\n")
    return form.tell()


def _send(client: httpx.Client, name: str, content: Iterator[bytes]) -> tuple[httpx.Response, float]:
    with TemporaryFile() as form:
        length = _body(name, content, form)
        form.seek(0)
        headers = {"content-type": "multipart/form-data; boundary=x", "content-length": str(length)}
        started = time.perf_counter()
        response = client.post("/v1/batches/upload", content=form, headers=headers)
        return response, time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    print_machine()
    with common_ground(HEADRACE_MAX_UPLOAD_MB="4096") as ground:
        ground.stack.catalog({"echo": {}})
        headers = {"authorization": f"Bearer {ground.database.api_key}"}
        for name, content in HOSTILE.items():
            process, url = ground.stack.api()
            with Memory(process.pid) as memory, httpx.Client(base_url=url, headers=headers, timeout=600) as client:
                response, seconds = _send(client, name, content())
            stored = ground.database.value("SELECT (SELECT count(*) FROM batches) + (SELECT count(*) FROM batch_rows)")
            names = {each for _, sample in memory.samples for each in sample}
            peak = max(memory.peak(each) for each in names)
            good = response.status_code in (413, 422) and not stored and peak < MEMORY_MB
            print(f"{name:>20}: {response.status_code} after {seconds:.2f} s, at most {peak:.0f} MB: {verdict(good)}")
            problem = (response.json().get("errors") or [{"message": response.json().get("detail")}])[0]
            print(f"{'':>20}  {problem['message']}", flush=True)
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
