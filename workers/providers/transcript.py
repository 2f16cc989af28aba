"""What a provider has said so far: the text, why it ended, what it used."""

from collections.abc import Mapping
from typing import Any

import orjson

from models.errors import FailureCode
from models.storable import storable_text
from models.tokens import LONGEST_TOKEN_BYTES, most_tokens
from workers.providers.base import Generation, GenerationRequest, Meter, ProviderError
from workers.providers.errorbodies import error_in
from workers.providers.failures import failure_of_event
from workers.providers.finishreasons import Finish, finish_of
from workers.providers.http import MAX_HELD_BYTES, too_large
from workers.providers.jsontext import TextJoiner, parse_leniently
from workers.providers.usagecounts import Counts

Json = dict[str, Any]  # Any: a provider's JSON, read defensively

BYTES_PER_TOKEN = 3
"""For output that the provider did not count: English has 4 bytes to a token, so this estimates too much."""

MOST_SHOWN = 200
"""Of an answer that is none, so many bytes go to the log."""

_ANSWERED = frozenset({Finish.STOP, Finish.LENGTH})
_MAX_COUNT = 2**31 - 1


class Transcript:
    """Collects one answer; a provider's own one translates its events into these calls.

    ``finish``: how the answer ended, None while nobody has said. ``ended``: nothing more will come. ``begins``: the
    first bytes of what came, for the log.
    ``hides_reasoning``: the LLM is known to reason, at a price, without showing it.
    """

    def __init__(self, request: GenerationRequest, meter: Meter) -> None:
        self.finish: Finish | None = None
        self.ended = False
        self.begins = b""
        self.hides_reasoning = False
        self._said = ""
        self._is_refused = False
        self._request = request
        self._meter = meter
        self._texts: list[str] = []
        self._characters = 0
        self._reasoning_bytes = 0
        self._pieces = 0
        self._counted_input = self._counted_output = False
        self._joiner: TextJoiner | None = None

    def event(self, data: bytes) -> None:
        """Take one event of a stream; raises ProviderError when it is an error, or none of this API."""
        raise NotImplementedError

    def whole(self, body: bytes) -> None:
        """Take an answer that came in one piece."""
        raise NotImplementedError

    def parse_event(self, data: bytes) -> object:
        """The JSON of an event that orjson refused; None for the mark of the end, and for what follows an end.

        Raises ProviderError when it is not JSON.
        """
        if data == b"[DONE]":
            self.ended = True
            return None
        if self.finish is not None:
            return None
        return self._parse_leniently(data)

    def parse_whole(self, body: bytes) -> object:
        """The JSON of an answer in one piece; raises ProviderError."""
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            return self._parse_leniently(body)

    def add_text(self, text: object) -> None:
        """Take a piece of the answer; anything but text is nothing."""
        if isinstance(text, str) and text:
            if self._joiner is not None and not (text := self._joined(text)):
                return
            if not self._texts:
                self._meter.mark_first_token()
            self._texts.append(text)
            self._grow(text)
            if self._meter.on_text is not None:
                self._meter.write(text)

    def add_reasoning(self, text: object) -> None:
        """Count a piece of output that is paid for and not part of the answer."""
        if isinstance(text, str) and text:
            self._reasoning_bytes += len(text.encode("utf-8", "replace"))
            self._grow(text)

    def count(self, counts: Counts) -> None:
        """Note what the provider counted: each time the total so far, of which the last above zero holds."""
        meter = self._meter
        if counts.input is not None and (counts.input or not meter.input_tokens):
            self._counted_input = True
            meter.input_tokens, meter.cached_input_tokens = counts.input, counts.cached
        if counts.output is not None and (counts.output or not meter.output_tokens):
            self._counted_output = True
            meter.output_tokens, meter.reasoning_tokens = counts.output, counts.reasoning
            if meter.reasoning_tokens and not self._reasoning_bytes:
                self.hides_reasoning = True

    def note_finish(self, reason: object) -> None:
        """Note a finish reason; of several, the worst holds."""
        finish = finish_of(reason)
        if finish is not None and (self.finish is None or finish > self.finish):
            self.finish, self._said = finish, f"finish reason {reason}"

    def raise_error(self, document: object) -> None:
        """Raise the ProviderError that a document without an answer is, if it is one."""
        error = error_in(document)
        if error is not None:
            raise self._refused(failure_of_event(error))

    def refused(self, why: str) -> ProviderError:
        """The error for an answer that is none; the log has how it begins."""
        shown = self.begins.decode("utf-8", "replace")
        return self._refused(malformed(why, detail=f"the answer begins: {shown}" if shown else ""))

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
        self._doubt_counts()
        if not self._counted_input:
            self._meter.input_tokens = min(most_input_tokens(self._request), _MAX_COUNT)
            self._meter.cached_input_tokens = 0
        if not self._counted_output:
            self._meter.output_tokens = min(self._most_output(), self._request.max_tokens)
            self._meter.reasoning_tokens = 0
        self._meter.estimated = not (self._counted_input and self._counted_output)

    @property
    def is_empty(self) -> bool:
        """Whether neither output nor a count above zero has come."""
        return not (self._pieces or self._meter.input_tokens or self._meter.output_tokens)

    @property
    def is_complete(self) -> bool:
        """Whether an answer with text has ended well: then what follows may say more of it, and not take it back."""
        return self.finish in _ANSWERED and self.has_text

    @property
    def has_text(self) -> bool:
        """Whether some of the answer has come."""
        return bool(self._texts)

    def generation(self) -> Generation:
        """The complete answer; raises ProviderError when it is none."""
        if self._joiner is not None and (rest := self._joiner.end()):
            self._joiner = None
            self.add_text(rest)
        match self.finish:
            case Finish.FILTERED:
                raise ProviderError.of(FailureCode.CONTENT_FILTERED, "the provider filtered the answer")
            case Finish.FAILED:
                message = "the provider failed before the answer was complete"
                raise self._refused(ProviderError.of(FailureCode.OVERLOADED, message, detail=self._said))
            case None if not self.ended and not self.is_empty:
                raise ProviderError.of(FailureCode.CONNECTION, "the answer broke off before its end")
            case None | Finish.OTHER if not self.has_text:
                raise self.refused("it is empty" if self.is_empty else "it has no text")
        return Generation("".join(self._texts), "length" if self.finish is Finish.LENGTH else "stop")

    def _refused(self, error: ProviderError) -> ProviderError:
        self.refuse()
        error.detail = storable_text(error.detail)  # half a character would break the log
        return error

    def _parse_leniently(self, data: bytes) -> object:
        try:
            document = parse_leniently(data)
        except ValueError:
            self.begins = data[:MOST_SHOWN]
            raise self.refused("it is not JSON") from None
        self._joiner = self._joiner or TextJoiner()
        return document

    def _joined(self, text: str) -> str:
        """What of the text is complete with this piece, where pieces may end within a character."""
        assert self._joiner is not None
        return self._joiner.feed(text)

    def _doubt_counts(self) -> None:
        """Drop counts that cannot be true: a prompt of no tokens, or fewer tokens than the output must have."""
        is_answered = self._pieces or self.finish in _ANSWERED
        if is_answered and not self._meter.input_tokens:
            self._counted_input = False
        if self._pieces and not self._meter.output_tokens:
            self._counted_output = False
        if self._meter.output_tokens * LONGEST_TOKEN_BYTES < sum(map(len, self._texts)):
            self._counted_output = False

    def _most_output(self) -> int:
        is_cut_off = not (self._is_refused or self.ended or self.finish is not None)
        if is_cut_off and (self.hides_reasoning or not self._pieces):
            return self._request.max_tokens
        size = self._reasoning_bytes + len("".join(self._texts).encode("utf-8", "replace"))
        return max(self._pieces, -(-size // BYTES_PER_TOKEN))

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


def malformed(why: str, *, detail: str = "") -> ProviderError:
    """The error for an answer that is none of its API."""
    return ProviderError.of(FailureCode.OVERLOADED, f"the provider's answer cannot be read: {why}", detail=detail)


def mapping(value: object) -> Mapping[str, Any]:
    """A JSON object, or an empty one in place of anything else."""
    return value if isinstance(value, dict) else {}
