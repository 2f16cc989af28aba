"""Messages to workers: which jobs go together in one, and the broker that takes them."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from kombu.exceptions import OperationalError as BrokerError

from workers.celery import TASK, HeadraceCelery


@dataclass(frozen=True, slots=True)
class Message:
    """The ids of jobs that go to one worker together: ``rows`` of batches, or single jobs."""

    ids: list[str]
    rows: bool


def to_messages(ids: Sequence[str], largest_worker: int, limit: int, *, rows: bool) -> list[Message]:
    """The ids of jobs in messages.

    A message carries at most a quarter of the largest worker's places, so that messages spread over workers; fewer,
    larger messages are what makes quick jobs quick. With rows, which may wait, it is half.
    """
    size = max(1, min(limit, largest_worker // (2 if rows else 4)))
    return [Message(list(ids[start : start + size]), rows) for start in range(0, len(ids), size)]


class BrokerUnavailable(Exception):
    """The broker did not take a message or answer a question."""


class Publisher:
    """Sends messages to the broker, and asks it how many wait; raises BrokerUnavailable."""

    def __init__(self, celery: HeadraceCelery) -> None:
        self._celery = celery

    def publish(self, queue: str, messages: Sequence[Message]) -> None:
        """Send messages; when it raises, some may have been sent."""
        with self._broker_errors(), self._celery.producer_pool.acquire(block=True, timeout=5) as producer:
            for message in messages:
                kwargs = {"rows": True} if message.rows else {}
                self._celery.send_task(
                    TASK, args=[message.ids], kwargs=kwargs, queue=queue, producer=producer, retry=False
                )

    def depth(self, queue: str) -> int:
        """Messages that wait in a queue, which is made if it does not exist."""
        with self._broker_errors(), self._celery.connection_or_acquire() as connection:
            bound = self._celery.amqp.queues[queue](connection.default_channel)
            return int(bound.queue_declare().message_count)  # type: ignore[union-attr]  # its types name the queue

    @contextmanager
    def _broker_errors(self) -> Iterator[None]:
        connection = self._celery.connection_for_write()
        errors: tuple[type[BaseException], ...] = (
            *connection.connection_errors,
            *connection.channel_errors,
            BrokerError,
            OSError,
        )
        try:
            yield
        except errors as error:
            raise BrokerUnavailable(str(error)) from error
