"""The API as the command line sees it: answers as JSON, refusals as sentences, hiccups survived."""

import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from api.commands.errors import CommandError, NoAnswer, Refused
from api.commands.wording import Json, plain
from api.local.by_hand import program, without_number
from api.local.settings import api_address
from api.local.stack import KEY_FILE
from models.textfiles import read_text

T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_DATA_DIR = ".headrace"
CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 90.0
GIVE_UP_S = 900.0
"""How long an API that has answered before may be away."""
SUBMIT_PATIENCE_S = 10.0
"""How long to try to submit something."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 5.0


@dataclass(frozen=True)
class Target:
    """Which API, and whose key."""

    url: str
    key_file: Path | None = None

    @property
    def flags(self) -> str:
        """What a further command must repeat to reach the same API from the same shell."""
        flags = []
        if self.url != (os.environ.get("HEADRACE_URL") or DEFAULT_URL):
            flags += ["--url", self.url]
        if self.key_file is not None and str(self.key_file) != os.environ.get("HEADRACE_KEY_FILE"):
            flags += ["--key-file", str(self.key_file)]
        return "".join(f" {shlex.quote(flag)}" for flag in flags)

    def find_key(self) -> tuple[str, str]:
        """The API key and where it was found: the file that was named, the environment, or what `headrace up` wrote.

        Raises CommandError when there is none.
        """
        given = os.environ.get("HEADRACE_API_KEY", "").strip()
        if given and self.key_file is None:
            return _checked_key(given, "HEADRACE_API_KEY")
        file = self.key_file or Path(os.environ.get("HEADRACE_DATA_DIR") or DEFAULT_DATA_DIR, KEY_FILE)
        try:
            return _checked_key(read_text(file).strip(), str(file))
        except FileNotFoundError:
            said = f"there is no API key in {plain(file)}"
            if self.key_file is None:
                said += f"; `{program()} up` writes one there; or set HEADRACE_API_KEY, or name a file with --key-file"
            raise CommandError(said) from None
        except ValueError:
            raise CommandError(f"there is no API key in {plain(file)}, but something else") from None
        except OSError as error:
            raise CommandError(f"cannot read the API key in {plain(file)}: {error.strerror}") from None


class Api:
    """A connection to the API. Every method raises Refused and NoAnswer."""

    def __init__(self, target: Target) -> None:
        self.target = target
        key, self._key_source = target.find_key()
        self._client = httpx.Client(
            base_url=api_address(target.url),
            headers={"authorization": f"Bearer {key}", "user-agent": "headrace-cli"},
            timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            trust_env=not is_loopback(target.url),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def get(self, path: str, **params: object) -> Json:
        """Read a resource; parameters that are None are left out."""
        return self._json(self._request("GET", path, params=_known(params)))

    def get_text(self, path: str, **params: object) -> str:
        """Read something that is not JSON."""
        return self._request("GET", path, params=_known(params)).text

    def post(
        self, path: str, body: Mapping[str, object] | None = None, headers: Mapping[str, str] | None = None
    ) -> Json:
        """Send a JSON object, or nothing."""
        return self._json(self._request("POST", path, json=body, headers=headers))

    def send_form(
        self,
        path: str,
        fields: Mapping[str, str],
        file: tuple[str, Any],
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> Json:
        """Send a form with a file (its name, and an opened file), which is read as it is sent."""
        timeout = httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
        form = {"data": dict(fields), "files": {"file": file}}
        return self._json(self._request("POST", path, **form, timeout=timeout, headers=headers))

    @contextmanager
    def stream(self, path: str, **params: object) -> Iterator[Iterator[bytes]]:
        """Read a body piece by piece."""
        with self._told(), self._client.stream("GET", path, params=_known(params)) as response:
            if not response.is_success:
                response.read()
                self._check(response)
            yield response.iter_bytes()

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:  # Any: as httpx's request
        with self._told():
            response = self._client.request(method, path, **options)
        self._check(response)
        return response

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise NoAnswer(f"no answer from {self.target.url}: {without_number(reason)}{self._hint(error)}") from error
        except (httpx.InvalidURL, httpx.HTTPError) as error:
            raise CommandError(f"{self.target.url} cannot be asked: {error}") from error

    def _hint(self, error: httpx.TransportError) -> str:
        """What to do when nothing listens at an address of this machine."""
        is_away = isinstance(error, httpx.ConnectError) and is_loopback(self.target.url)
        return f" (`{program()} up` starts Headrace here)" if is_away else ""

    def _check(self, response: httpx.Response) -> None:
        if response.is_success:
            return
        document = self._document(response)
        if response.status_code == 429 or response.status_code >= 500:
            said = document.get("detail") or f"{self.target.url} answered {response.status_code}"
            raise NoAnswer(str(said), _seconds(response.headers.get("retry-after")))
        refused = Refused(document, response.status_code)
        if response.status_code == 401:
            refused.args = (f"{refused} (the key is that of {self._key_source})",)
        raise refused

    def _document(self, response: httpx.Response) -> Json:
        try:
            document = response.json()
        except ValueError:
            document = None
        if isinstance(document, dict):
            return document
        return {"detail": f"{self.target.url} answered {response.status_code}, and does not seem to be Headrace"}

    def _json(self, response: httpx.Response) -> Json:
        try:
            body = response.json()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise CommandError(f"what answers at {self.target.url} is not Headrace")
        return body


def patiently(
    work: Callable[[], T], on_trouble: Callable[[str], None] = lambda text: None, give_up_s: float = GIVE_UP_S
) -> T:
    """Do what an absent API interrupts until it is done; raises NoAnswer when that lasts for ``give_up_s``."""
    pause_s, deadline = _FIRST_PAUSE_S, time.monotonic() + give_up_s
    while True:
        try:
            return work()
        except NoAnswer as error:
            if time.monotonic() >= deadline:
                raise
            on_trouble(str(error))
            time.sleep(max(pause_s, min(error.retry_after_s, 60.0)))
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)


def is_loopback(url: str) -> bool:
    """Whether a URL leads to this machine, where no proxy of the environment can be of use."""
    try:
        host = httpx.URL(url).host
        return host == "localhost" or ip_address(host).is_loopback
    except (httpx.InvalidURL, ValueError):
        return False


def _checked_key(key: str, source: str) -> tuple[str, str]:
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise CommandError(f"there is no API key in {source}, but something else")
    return key, source


def _known(params: Mapping[str, Any]) -> dict[str, Any]:  # Any: as httpx's params
    return {name.rstrip("_"): value for name, value in params.items() if value is not None}


def _seconds(retry_after: str | None) -> float:
    return float(retry_after) if retry_after and retry_after.isdigit() else 0.0
