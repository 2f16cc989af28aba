"""How many files one API process receives at once: each may fill the disk up to the limit of its size."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from models.errors import RateLimited

MAX_UPLOADS = 16
MAX_UPLOADS_OF_TENANT = 4


class Uploads:
    """The uploads that this process receives now."""

    def __init__(self) -> None:
        self._of: Counter[UUID] = Counter()

    @contextmanager
    def one_of(self, tenant_id: UUID) -> Iterator[None]:
        """Count one more while it lasts; raises RateLimited."""
        if self._of[tenant_id] >= MAX_UPLOADS_OF_TENANT or self._of.total() >= MAX_UPLOADS:
            raise RateLimited("Too many files are being uploaded at this moment; try again.", retry_after_s=5)
        self._of[tenant_id] += 1
        try:
            yield
        finally:
            self._of[tenant_id] -= 1
            self._of += Counter()  # forget those that have none
