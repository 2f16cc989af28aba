"""What a provider has said so far: the text, why it ended, what it used."""

from collections.abc import Mapping
from typing import Any

from models.errors import FailureCode
from models.tokens import most_tokens
from workers.providers.base import Generation, GenerationRequest, Meter, ProviderError
from workers.providers.http import MAX_HELD_BYTES, too_large

Json = dict[str, Any]  # Any: a provider's JSON, read defensively

BYTES_PER_TOKEN = 3
"""For output that the provider did not count: English has 4 bytes to a token, so this estimates too much."""

_MAX_COUNT = 2**31 - 1


class Transcript:
    """Collects one answer; a provider's own one translates its events into these calls.

    ``hides_reasoning``: the LLM is known to reason, at a price, without showing it.
    """

    def __init__(self, request: GenerationRequest, meter: Meter) -> None:
        self.finish_reason: str | None = None
        self.ended = False
        self.hides_reasoning = False
        self._is_refused = False
        self._request = request
        self._meter = meter
        self._texts: list[str] = []
        self._characters = 0
        self._reasoning_bytes = 0
        self._pieces = 0
        self._counted_input = self._counted_output = False

    def event(self, data: bytes) -> None:
        """Take one event of a stream; raises ProviderError when it is an error, or none of this API."""
        raise NotImplementedError

    def whole(self, body: bytes) -> None:
        """Take an answer that came in one piece."""
        raise NotImplementedError

    def add_text(self, text: object) -> None:
        """Take a piece of the answer; anything but text is nothing."""
        if isinstance(text, str) and text:
            if not self._texts:
                self._meter.mark_first_token()
            self._texts.append(text)
            self._grow(text)
            self._meter.write(text)

    def add_reasoning(self, text: object) -> None:
        """Count a piece of reasoning, which is paid for and not part of the answer."""
        if isinstance(text, str) and text:
            self._reasoning_bytes += len(text.encode("utf-8", "replace"))
            self._grow(text)

    def count_input(self, tokens: object, *, cached: object = None) -> None:
        """Note the input tokens that the provider counted; ``cached`` are among them."""
        if (count := _count(tokens)) is not None:
            self._counted_input = True
            self._meter.input_tokens = count
            self._meter.cached_input_tokens = min(_count(cached) or 0, count)

    def count_output(self, tokens: object, *, reasoning: object = None) -> None:
        """Note the output tokens that the provider counted; ``reasoning`` are among them."""
        if (count := _count(tokens)) is not None:
            self._counted_output = True
            self._meter.output_tokens = count
            self._meter.reasoning_tokens = min(_count(reasoning) or 0, count)
            if self._meter.reasoning_tokens and not self._reasoning_bytes:
                self.hides_reasoning = True

    def refuse(self) -> None:
        """Note that an error ended the answer, or came in its place."""
        self._is_refused = True

    def settle(self) -> None:
        """Estimate from above what the provider did not count, once it has the request.

        An error in place of an answer is not charged. Output that came is estimated by its size. Where the answer was
        cut off, by a time limit, a broken connection or a cancellation, before anything of it came, or where
        reasoning is hidden, nobody knows what was made: then it is the most that was asked for. None of it is more
        than the job reserved for the call.
        """
        if self._is_refused and self.is_empty:
            return
        if self._pieces and not self._meter.output_tokens:
            self._counted_output = False  # zeros beside output are no count
        if self._pieces and not self._meter.input_tokens:
            self._counted_input = False
        if not self._counted_input:
            self._meter.input_tokens = min(most_input_tokens(self._request), _MAX_COUNT)
        if not self._counted_output:
            self._meter.output_tokens = min(self._most_output(), self._request.max_tokens)
        self._meter.estimated = not (self._counted_input and self._counted_output)

    def _most_output(self) -> int:
        is_cut_off = not (self._is_refused or self.ended or self.finish_reason is not None)
        if is_cut_off and (self.hides_reasoning or not self._pieces):
            return self._request.max_tokens
        size = self._reasoning_bytes + len("".join(self._texts).encode("utf-8", "replace"))
        return max(self._pieces, -(-size // BYTES_PER_TOKEN))

    @property
    def is_empty(self) -> bool:
        """Whether neither output nor a count has come."""
        return not (self._pieces or self._counted_input or self._counted_output)

    def generation(self) -> Generation:
        """The complete answer; raises ProviderError when its end is missing or a filter stopped it."""
        if self.finish_reason is None and not self.ended:
            if self.is_empty:
                raise malformed("it is empty")
            raise ProviderError.of(FailureCode.CONNECTION, "the answer broke off before its end")
        if self.finish_reason == "content_filter":
            raise ProviderError.of(FailureCode.CONTENT_FILTERED, "the provider filtered the answer")
        return Generation("".join(self._texts), "length" if self.finish_reason == "length" else "stop")

    def _grow(self, text: str) -> None:
        self._meter.mark_output()
        self._pieces += 1
        self._characters += len(text)
        if self._characters > MAX_HELD_BYTES:
            raise too_large()


def most_input_tokens(request: GenerationRequest) -> int:
    """More tokens than the prompt of a request can have."""
    most = most_tokens(message["content"] for message in request.messages)
    return most if request.most_input_tokens is None else min(most, request.most_input_tokens)


def malformed(why: str) -> ProviderError:
    """The error for an answer that is none of its API."""
    return ProviderError.of(FailureCode.OVERLOADED, f"the provider's answer cannot be read: {why}")


def mapping(value: object) -> Mapping[str, Any]:
    """A JSON object, or an empty one in place of anything else."""
    return value if isinstance(value, dict) else {}


def _count(value: object) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return min(max(value, 0), _MAX_COUNT)
