"""The seam between an attempt and a provider."""

from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Protocol

from models.errors import FailureCode, JobFailure
from models.pricing import Usage
from workers.providers.complaints import Complaint


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What to generate, in OpenAI's terms; None leaves a choice to the provider.

    ``tenant``: whose turn the work is where tenants rotate. ``most_input_tokens``: a bound of the prompt, where one is
    known that is lower than the texts' own (:mod:`models.tokens`).
    """

    messages: list[dict[str, str]]
    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    stop: list[str] = field(default_factory=list)
    seed: int | None = None
    response_format: dict[str, Any] | None = None  # Any: a JSON Schema of the caller's
    tenant: str = ""
    most_input_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class EmbeddingRequest:
    """Texts to turn into vectors; ``base64``: of the vectors' 32-bit floats, the least significant byte first."""

    texts: list[str]
    base64: bool = False
    dimensions: int | None = None


Embedding = list[float] | str


@dataclass(frozen=True, slots=True)
class Generation:
    """What was generated; ``finish_reason`` is ``stop`` or ``length``."""

    text: str
    finish_reason: str


class Meter:
    """What an attempt has used so far, kept by the provider while it runs.

    It stays right when the call is cancelled or fails in its middle, so that what was used is booked. Of an attempt
    that makes several calls it keeps the sum. ``on_text`` takes the answer as it comes, where somebody reads along.
    ``adapted`` names what was changed in the request for the LLM.
    """

    def __init__(self, on_text: Callable[[str], None] | None = None) -> None:
        self.on_text = on_text
        self.adapted: list[str] = []
        self.input_tokens = 0
        self.output_tokens = 0
        self.cached_input_tokens = 0
        self.reasoning_tokens = 0
        self.estimated = False
        self.first_token_at: float | None = None
        self.last_output_at: float | None = None
        self._earlier = Usage()

    @property
    def usage(self) -> Usage:
        earlier = self._earlier
        return Usage(
            earlier.input_tokens + self.input_tokens,
            earlier.output_tokens + self.output_tokens,
            cached_input_tokens=earlier.cached_input_tokens + self.cached_input_tokens,
            reasoning_tokens=earlier.reasoning_tokens + self.reasoning_tokens,
            estimated=earlier.estimated or self.estimated,
        )

    def begin_another_call(self) -> None:
        """Add what was used so far to the sum; the counters are the next call's."""
        self._earlier = self.usage
        self.input_tokens = self.output_tokens = self.cached_input_tokens = self.reasoning_tokens = 0
        self.estimated = False
        self.last_output_at = None

    def write(self, text: str) -> None:
        """Hand on a piece of the answer; from the event loop's thread."""
        if self.on_text is not None and (storable := text.replace("\0", "")):
            self.on_text(storable)

    def mark_first_token(self, at: float | None = None) -> None:
        """Note the time of an answer's text, now if not given; only the first call of an attempt sets the first."""
        self.last_output_at = monotonic() if at is None else at
        if self.first_token_at is None:
            self.first_token_at = self.last_output_at

    def mark_output(self) -> None:
        """Note that output of any kind came now: reasoning is work too, though no text of the answer."""
        self.last_output_at = monotonic()

    def silent_s(self, since: float) -> float:
        """For how many seconds nothing has come, in a call made at ``since``."""
        return monotonic() - (since if self.last_output_at is None else self.last_output_at)


class ProviderError(Exception):
    """A provider could not answer; carries why, as data.

    The failure's message is for tenants: it names no address, path, host or environment variable. ``detail`` has those,
    for the log alone. ``here``: the reason lies in this process, such as its memory, and says nothing of the LLM on
    other workers. ``complaint``: what the provider said, where it said something.
    """

    def __init__(
        self, failure: JobFailure, *, detail: str = "", here: bool = False, complaint: Complaint | None = None
    ) -> None:
        super().__init__(failure.message)
        self.failure = failure
        self.detail = detail
        self.here = here
        self.complaint = complaint

    @classmethod
    def of(
        cls,
        code: FailureCode,
        message: str,
        retry_after_s: float | None = None,
        *,
        again: bool = True,
        detail: str = "",
        here: bool = False,
        complaint: Complaint | None = None,
    ) -> "ProviderError":
        """An error with a code of the taxonomy; ``again`` as in :class:`models.errors.JobFailure`."""
        failure = JobFailure(code, message, retry_after_s, again)
        return cls(failure, detail=detail, here=here, complaint=complaint)


class Provider(Protocol):
    """One LLM behind its API; one instance per LLM and process, used by many attempts at once."""

    async def generate(self, request: GenerationRequest, meter: Meter) -> Generation:
        """Answer a request, keeping ``meter`` current; raises ProviderError.

        Cancellation of the calling task stops the work.
        """
        ...

    async def close(self) -> None:
        """Free what the provider holds."""
        ...


class EmbeddingProvider(Provider, Protocol):
    """A provider that may also be asked for vectors."""

    async def embed(self, request: EmbeddingRequest, meter: Meter) -> list[Embedding]:
        """The vectors of some texts, in their order; otherwise as ``generate``."""
        ...


class WithoutEmbeddings:
    """A provider that has no vectors to give."""

    async def embed(self, request: EmbeddingRequest, meter: Meter) -> list[Embedding]:
        """Refuse."""
        raise ProviderError.of(FailureCode.PROVIDER_REJECTED, "this LLM does not make embeddings")
