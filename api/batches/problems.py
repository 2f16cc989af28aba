"""What is wrong with an uploaded file: all of it is counted, the first hundred are told."""

from models.errors import FieldProblem, ValidationFailed

MAX_PROBLEMS = 100


class Problems:
    """Collects the problems of a file and its form."""

    def __init__(self) -> None:
        self.total = 0
        self._first: list[FieldProblem] = []

    def __bool__(self) -> bool:
        return self.total > 0

    def add(self, field: str, message: str, line: int | None = None) -> None:
        """Note a problem of a field or a column, in the row that begins in ``line``."""
        self.total += 1
        if len(self._first) < MAX_PROBLEMS or (line or 0) < (self._first[-1].line or 0):
            self._first.append(FieldProblem(field, message, line))
            self._first.sort(key=lambda problem: problem.line or 0)
            del self._first[MAX_PROBLEMS:]

    def as_error(self) -> ValidationFailed:
        """The refusal, with the first problems in the order of their lines and how many there are."""
        first = self._first[0]
        where = "" if first.line is None else f"line {first.line}: "
        said = first.message
        if self.total > 1:
            said = f"{said.rstrip('.')}; and {self.total - 1} more"
        members = {"problems": self.total}
        return ValidationFailed(f"{where}{said}", param=first.field, problems=self._first, members=members)
