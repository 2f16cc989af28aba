"""What can go wrong between the command line and the API; each is shown as a sentence, and has an exit code.

LocalError           1, see :mod:`api.local.errors`
  CommandError       2  the command cannot be carried out as it was given
    Refused          2  the API refused it: a problem document
  Unanswered         3
    NoAnswer         3  the API does not answer, or not now; the same command may succeed later
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from api.commands.wording import Json, pairs, plain
from api.local.errors import LocalError, Unanswered

_USUAL = frozenset({"type", "title", "status", "detail", "code", "error", "errors", "problems", "instance"})


class CommandError(LocalError):
    """The command cannot be carried out as it was given."""

    exit_code = 2


class NoAnswer(Unanswered):
    """The API does not answer, or not now; ``retry_after_s`` is what it asked to wait."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a request or its file; ``line`` is the file's."""

    line: int | None
    field: str
    message: str


class Refused(CommandError):
    """The API refused a request; ``document`` is its problem document."""

    def __init__(self, document: Json, status: int) -> None:
        self.document = document
        self.status = status
        said = plain(document.get("detail") or document.get("title") or f"refused with status {status}")
        field = self.faults[0].field if len(self.faults) == 1 else ""
        super().__init__(said if field in said else f"{field}: {said}")

    @property
    def faults(self) -> Sequence[Fault]:
        """What is wrong, entry by entry."""
        return faults_of(self.document.get("errors"))

    @property
    def fault_count(self) -> int:
        """How many things are wrong; the API tells the first of them."""
        total = self.document.get("problems")
        return total if isinstance(total, int) else len(self.faults)

    @property
    def facts(self) -> Sequence[tuple[str, str]]:
        """Its further members, such as the budget that is exhausted."""
        return pairs({name: value for name, value in self.document.items() if name not in _USUAL})


def faults_of(entries: object) -> list[Fault]:
    """The entries of a problem document's ``errors``, or of a batch's."""
    return [
        Fault(
            entry["line"] if isinstance(entry.get("line"), int) else None,
            plain(entry.get("field") or entry.get("param") or ""),
            plain(entry.get("message") or entry.get("code") or ""),
        )
        for entry in (entries if isinstance(entries, list) else ())
        if isinstance(entry, Mapping)
    ]
