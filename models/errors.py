"""The errors that Headrace names.

::

    HeadraceError                a refusal the caller is told about: code, HTTP status, title
    |-- InvalidApiKey            401
    |-- BudgetExceeded           402
    |-- InsufficientScope        403
    |-- NotFound                 404
    |-- ModelNotFound            404
    |-- BatchFinished            409
    |-- BatchBusy                409
    |-- NothingToRetry           409
    |-- JobFinished              409
    |-- PayloadTooLarge          413
    |-- UnsupportedMediaType     415
    |-- ValidationFailed         422
    |-- IdempotencyMismatch      422
    |-- ContextLengthExceeded    422
    |-- CostCapExceeded          422
    |-- CallbackUrlRefused       422
    |-- RateLimited              429
    `-- Unavailable              503

    ConfigurationError           the operator's mistake: a process refuses to start

Why a job failed is data, not an exception: :class:`JobFailure`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from models.storable import MAX_MESSAGE, storable_text


class ConfigurationError(Exception):
    """A setting or the catalogue is wrong; the message names what to change."""


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """One thing wrong with one field of a request, or with a line of a file."""

    field: str
    message: str
    line: int | None = None


class HeadraceError(Exception):
    """A refusal with a stable code; the API's one handler turns it into problem+json."""

    code: ClassVar[str]
    status: ClassVar[int]
    title: ClassVar[str]

    def __init__(
        self,
        detail: str,
        *,
        param: str | None = None,
        problems: Sequence[FieldProblem] = (),
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.param = param
        self.problems = tuple(problems)
        self.retry_after_s = retry_after_s
        self.headers = dict(headers or {})
        self.members = dict(members or {})


class InvalidApiKey(HeadraceError):
    code, status, title = "invalid_api_key", 401, "The API key is missing, unknown or revoked"


class BudgetExceeded(HeadraceError):
    code, status, title = "budget_exceeded", 402, "The job does not fit its budget"


class InsufficientScope(HeadraceError):
    code, status, title = "insufficient_scope", 403, "The API key may not do this"


class NotFound(HeadraceError):
    code, status, title = "not_found", 404, "There is no such resource"


class ModelNotFound(HeadraceError):
    code, status, title = "model_not_found", 404, "The catalogue has no such model"


class BatchFinished(HeadraceError):
    code, status, title = "batch_finished", 409, "The batch has already ended"


class BatchBusy(HeadraceError):
    code, status, title = "batch_busy", 409, "The batch is in a state that does not allow this"


class NothingToRetry(HeadraceError):
    code, status, title = "batch_nothing_to_retry", 409, "No row of the batch ended in a way that was asked for"


class JobFinished(HeadraceError):
    code, status, title = "job_finished", 409, "The job has already finished"


class PayloadTooLarge(HeadraceError):
    code, status, title = "payload_too_large", 413, "The request body is too large"


class UnsupportedMediaType(HeadraceError):
    code, status, title = "unsupported_media_type", 415, "The request body must be JSON"


class ValidationFailed(HeadraceError):
    code, status, title = "validation_failed", 422, "The request is not valid"


class IdempotencyMismatch(HeadraceError):
    code, status = "idempotency_mismatch", 422
    title = "The idempotency key was used with another request body"


class ContextLengthExceeded(HeadraceError):
    code, status, title = "context_length_exceeded", 422, "The request fits no LLM of its route"


class CostCapExceeded(HeadraceError):
    code, status, title = "cost_cap_exceeded", 422, "The worst case is dearer than max_cost_usd"


class CallbackUrlRefused(HeadraceError):
    code, status, title = "callback_url_refused", 422, "The callback URL cannot be used"


class RateLimited(HeadraceError):
    code, status, title = "rate_limited", 429, "The API key has used up what its plan allows for now"


class Unavailable(HeadraceError):
    code, status, title = "unavailable", 503, "The service cannot take this request now"


class FailureCode(StrEnum):
    """Why an attempt, or the job with it, failed."""

    RATE_LIMITED = "rate_limited"
    TIMEOUT = "timeout"
    CONNECTION = "connection"
    OVERLOADED = "overloaded"
    PROVIDER_AUTH = "provider_auth"
    PROVIDER_REJECTED = "provider_rejected"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    CONTENT_FILTERED = "content_filtered"
    CIRCUIT_OPEN = "circuit_open"
    MAX_DELIVERIES = "max_deliveries"
    EXPIRED = "expired"
    BUDGET_EXCEEDED = "budget_exceeded"
    INTERNAL = "internal"


RETRYABLE = frozenset(
    {
        FailureCode.RATE_LIMITED,
        FailureCode.TIMEOUT,
        FailureCode.CONNECTION,
        FailureCode.OVERLOADED,
        FailureCode.CIRCUIT_OPEN,
    }
)


PROVIDER_SIDE = frozenset(
    {
        FailureCode.RATE_LIMITED,
        FailureCode.TIMEOUT,
        FailureCode.CONNECTION,
        FailureCode.OVERLOADED,
        FailureCode.PROVIDER_AUTH,
        FailureCode.CIRCUIT_OPEN,
    }
)
"""Failures for which the request is not to blame."""


@dataclass(frozen=True, slots=True)
class JobFailure:
    """Why an attempt failed, as data: the wire's ``error`` object. The message is made storable here, for all.

    ``again``: whether the same request may be sent to the same LLM again, where the code allows it.
    """

    code: FailureCode
    message: str
    retry_after_s: float | None = None
    again: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", storable_text(self.message, MAX_MESSAGE))

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later on the same LLM."""
        return self.again and self.code in RETRYABLE

    def as_wire(self) -> dict[str, str | bool]:
        """``{"code", "message", "retryable"}``."""
        return {"code": self.code.value, "message": self.message, "retryable": self.retryable}


STATUS_OF_FAILURE = {
    FailureCode.RATE_LIMITED: 429,
    FailureCode.TIMEOUT: 504,
    FailureCode.CONNECTION: 502,
    FailureCode.OVERLOADED: 503,
    FailureCode.PROVIDER_AUTH: 502,
    FailureCode.PROVIDER_REJECTED: 400,
    FailureCode.CONTEXT_LENGTH_EXCEEDED: 400,
    FailureCode.CONTENT_FILTERED: 400,
    FailureCode.CIRCUIT_OPEN: 503,
    FailureCode.MAX_DELIVERIES: 500,
    FailureCode.EXPIRED: 504,
    FailureCode.BUDGET_EXCEEDED: 402,
    FailureCode.INTERNAL: 500,
}
"""What a failure is over HTTP, to a client that waited for the answer or reads it in a batch's error file."""
