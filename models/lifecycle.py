"""The states of a job, and the only ways from one to another.

::

                     +--------------- retry, fallback, release, rescue ---------------+
                     v                                                                |
    submit --> [ queued ] ----------- claim (lease) ----------> [ in_progress ] ------+
                     |                                                |
                     |                                                +--> completed
                     +--> failed | cancelled | expired <--------------+

``completed``, ``failed``, ``cancelled`` and ``expired`` are terminal: nothing leaves them.
Every statement that writes ``jobs.status`` names its sources through :func:`sources_of`,
so that an illegal transition touches no row whatever races with it.
"""

from enum import StrEnum


class JobStatus(StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"
    """Recorded and owed; it runs when it is due (``next_attempt_at``) and its turn comes."""

    IN_PROGRESS = "in_progress"
    """Claimed by one worker process, which holds it as long as its lease is renewed."""

    COMPLETED = "completed"
    """Answered: the result is stored and the cost is settled."""

    FAILED = "failed"
    """Ended without an answer, after the retries and fallbacks its error allows."""

    CANCELLED = "cancelled"
    """Ended by its caller."""

    EXPIRED = "expired"
    """Not finished by ``expires_at``."""


QUEUED = f"status || '' = '{JobStatus.QUEUED}'"
IN_PROGRESS = f"status || '' = '{JobStatus.IN_PROGRESS}'"
"""SQL: the status of a job that is found by its id, or among those of its batch. With a plain condition PostgreSQL may
read the index of all queued jobs instead: it believes that there are few, since they come and go quickly."""

TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset({JobStatus.IN_PROGRESS, JobStatus.CANCELLED, JobStatus.EXPIRED, JobStatus.FAILED}),
    JobStatus.IN_PROGRESS: frozenset(
        {
            JobStatus.COMPLETED,
            JobStatus.FAILED,
            JobStatus.CANCELLED,
            JobStatus.EXPIRED,
            JobStatus.QUEUED,
        }
    ),
    JobStatus.COMPLETED: frozenset(),
    JobStatus.FAILED: frozenset(),
    JobStatus.CANCELLED: frozenset(),
    JobStatus.EXPIRED: frozenset(),
}

TERMINAL = frozenset(status for status, targets in TRANSITIONS.items() if not targets)
UNFINISHED = frozenset(TRANSITIONS) - TERMINAL


class AttemptOutcome(StrEnum):
    """How one execution of a job on one LLM ended; an attempt that runs has none yet."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    RELEASED = "released"
    """Given back by a worker that was told to stop."""

    SNOOZED = "snoozed"
    """Not made: the LLM's circuit breaker was open, and the job went on to another LLM."""

    LOST = "lost"
    """Its worker's lease ran out: the process died, hung or was cut off."""


def can_move(source: JobStatus, target: JobStatus) -> bool:
    """Whether the transition table allows ``source -> target``."""
    return target in TRANSITIONS[source]


def sources_of(target: JobStatus) -> tuple[JobStatus, ...]:
    """The states from which a job may move to ``target``, in order of definition."""
    return tuple(source for source in JobStatus if can_move(source, target))
