"""What a provider's error means, in the codes of the design; the table is in docs/providers.md.

An HTTP status of the 400s other than 408, 409, 425 and 429 never means that the same request is sent again to the same
LLM, whatever its body says: :attr:`models.errors.JobFailure.again` is false then.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from html import escape
from urllib.parse import quote

from models.errors import FailureCode
from workers.providers.base import ProviderError
from workers.providers.complaints import Complaint, complaint_of, read_complaint
from workers.providers.waits import retry_after

MAX_ERROR_BYTES = 64 * 1024
_MAX_MESSAGE = 500
_MAX_SAID = 1000
_SENT_AGAIN = frozenset({408, 409, 425, 429})
"""The statuses of the 400s that speak of the moment and not of the request."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What an error means: its code, what tenants read of it, and whether the same request may be sent again.

    ``public`` is None where tenants read what the provider said, because it is about their request.
    """

    code: FailureCode
    public: str | None = None
    again: bool = True


ACCESS = Meaning(FailureCode.PROVIDER_AUTH, "the provider does not accept this platform's access to it")
MONEY = Meaning(FailureCode.PROVIDER_AUTH, "this platform's account with the provider has no money or quota left")
REGION = Meaning(FailureCode.PROVIDER_AUTH, "the provider does not serve the place where this platform runs")
MODEL = Meaning(FailureCode.PROVIDER_AUTH, "the provider does not have the model, or the address, of the catalogue")
LIMITED = Meaning(FailureCode.RATE_LIMITED, "the provider's rate limit is reached")
TOO_MUCH_AT_ONCE = Meaning(FailureCode.RATE_LIMITED, "the request is above the provider's rate limit", again=False)
TIMEOUT = Meaning(FailureCode.TIMEOUT, "the provider reported a time-out")
OVERLOADED = Meaning(FailureCode.OVERLOADED, "the provider failed or is overloaded")
CONTEXT = Meaning(FailureCode.CONTEXT_LENGTH_EXCEEDED)
FILTERED = Meaning(FailureCode.CONTENT_FILTERED)
REJECTED = Meaning(FailureCode.PROVIDER_REJECTED)

_OF_STATUS = {
    **dict.fromkeys((401, 402, 403, 407), ACCESS),
    402: MONEY,
    **dict.fromkeys((404, 405, 410, 501), MODEL),
    451: REGION,
    **dict.fromkeys((408, 504, 522, 524, 598, 599), TIMEOUT),
    **dict.fromkeys((409, 423, 424, 425, 444, 449, 498, 499), OVERLOADED),
    **dict.fromkeys((413, 414, 431), CONTEXT),
    429: LIMITED,
}
"""What a status means by itself. Another of the 300s is :data:`MODEL`, of the 400s :data:`REJECTED`, of the 500s
:data:`OVERLOADED`."""

_OF_KIND = {
    # OpenAI's `code` or `type`, and Azure's
    "context_length_exceeded": CONTEXT,
    "string_above_max_length": CONTEXT,
    "content_filter": FILTERED,
    "content_policy_violation": FILTERED,
    "responsibleaipolicyviolation": FILTERED,
    "invalid_prompt": FILTERED,
    "cyber_policy": FILTERED,
    "insufficient_quota": MONEY,
    "billing_hard_limit_reached": MONEY,
    "billing_not_active": MONEY,
    "invalid_api_key": ACCESS,
    "account_deactivated": ACCESS,
    "rate_limit_exceeded": LIMITED,
    "server_error": OVERLOADED,
    "model_not_found": MODEL,
    "unsupported_country_region_territory": REGION,
    "deploymentnotfound": MODEL,
    "operationnotsupported": MODEL,
    "unsupported_api_for_model": MODEL,
    # llama-server's `type`
    "exceed_context_size_error": CONTEXT,
    "unavailable_error": OVERLOADED,
    "not_supported_error": MODEL,
    # Anthropic's `type`
    "overloaded_error": OVERLOADED,
    "api_error": OVERLOADED,
    "timeout_error": TIMEOUT,
    "rate_limit_error": LIMITED,
    "authentication_error": ACCESS,
    "permission_error": ACCESS,
    "billing_error": MONEY,
    "request_too_large": CONTEXT,
    # Google's `reason`
    "api_key_invalid": ACCESS,
    "api_key_expired": ACCESS,
    "billing_disabled": MONEY,
    # Groq's, Mistral's, Moonshot's, DashScope's
    "model_decommissioned": MODEL,
    "invalid_model": MODEL,
    "exceeded_current_quota_error": MONEY,
    "arrearage": MONEY,
    "datainspectionfailed": FILTERED,
    "data_inspection_failed": FILTERED,
}

_PHRASES: tuple[tuple[Meaning, re.Pattern[str]], ...] = tuple(
    (meaning, re.compile(pattern, re.IGNORECASE))
    for meaning, pattern in (
        (
            MONEY,
            (
                r"credit balance is too low"  # Anthropic
                r"|reached your specified (api )?usage limits"  # Anthropic
                r"|billing hard limit has been reached|check your plan and billing details"  # OpenAI
                r"|insufficient (account )?(balance|credits?|funds)|not enough credits|out of credits"
                r"|account is in good standing|\u4f59\u989d\u4e0d\u8db3|\u6b20\u8d39"
            ),  # DashScope, Zhipu
        ),
        (
            CONTEXT,
            (
                r"maximum context length"  # OpenAI, vLLM, DeepSeek
                r"|(prompt|input) is too long"  # Anthropic, Bedrock
                r"|exceed(s|ed|ing)? (the )?(available |configured |model'?s )*context (size|length|limit|window)"
                r"|longer than the (maximum model|model's context) length"  # vLLM, SGLang
                r"|maximum (allowed )?(prompt|input) length|maximum context limit"  # xAI, Cerebras
                r"|exceeds the maximum number of tokens"  # Google
                r"|too many (input )?tokens|input tokens exceed|context length is only"  # Cohere, Bedrock, LM Studio
                r"|`?inputs`? tokens \+ `?max_new_tokens`? must be"  # TGI
                r"|current length is \d+ while limit is"  # Cerebras
                r"|please reduce (the )?length of (the|your) (messages|prompt|input)"  # Groq
                r"|max(_completion)?_tokens\W{0,2} is too large|supports at most \d+ completion tokens"  # OpenAI
                r"|maximum allowed number of output tokens"  # Anthropic
                r"|max(_completion)?_tokens\W? (is limited|must be (less than or equal to|at most))"  # Scaleway, Groq
                r"|range of max_tokens (is|should be)|max(_completion)?_tokens\b.{0,80}above maximum value"
            ),  # DeepSeek, OpenAI
        ),
        (
            FILTERED,
            (
                r"content management policy|blocked by content filter|triggered .{0,40}content filter"  # Azure
                r"|violat\w{0,4} (our |the )?usage (policy|policies|guidelines)"  # OpenAI, xAI
                r"|requires moderation .{0,60}flagged|input was flagged"  # OpenRouter
                r"|content exists risk|inappropriate content"  # DeepSeek, DashScope
                r"|prohibited_content"
            ),  # Google
        ),
        (
            MODEL,
            (
                r"\bmodel\b.{0,160}?\b(has been|was|is|are) (deprecated|decommissioned|retired|removed|discontinued)"
                r"|\bmodel\b.{0,160}?\b(does )?not (exist|found)"
                r"|\bmodel\b.{0,160}?\b(is no longer (available|supported)|reached its end of life|not have access)"
                r"|(invalid|unknown) model\b|not a valid model id|model identifier is invalid|model not exist"
                r"|no endpoints found|not a chat model|deployment .{0,60}does not exist"
                r"|does not work with the specified model"
            ),
        ),
        (
            REGION,
            (
                r"location is not supported|(country|region|territory)[^.]{0,40} not supported"
                r"|not available in your (country|region)"
            ),
        ),
        (
            ACCESS,
            (
                r"(invalid|incorrect) api[ _-]?key|api[ _-]?key (not valid|not found|is invalid|(has |is )?expired)"
                r"|organization (has been disabled|must be verified to use)|authentication token"
            ),
        ),
    )
)
"""What a sentence means that a server says with 400, 403, 413, 416 or 422, where no name of a kind does."""

_SPEAKS = frozenset({400, 403, 413, 416, 422})
_MONEY_AT_429 = re.compile(
    r"insufficient (account )?balance|\u4f59\u989d\u4e0d\u8db3|\u6b20\u8d39|account is suspended", re.IGNORECASE
)
_TOO_MUCH = re.compile(r"\brequest too large\b", re.IGNORECASE)

_PLACE = re.compile(
    r"""\b[a-z][a-z0-9+.-]*://[^\s'"<>)]+"""  # a URL
    r"""|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b"""  # an IPv4 address
    r"""|\[?(?<![\w:.])(?:[0-9a-f]{0,4}:){2,7}[0-9a-f]{1,4}\b\]?(?::\d+)?"""  # an IPv6 address
    r"""|(?<![\w.-])(?=[\w.-]*[a-z])[\w-]+(?:\.[\w-]+)*:\d{4,5}\b"""  # a host and its port
    r"""|\bhost=['"]?[^\s'",)]+|\blocalhost\b"""  # a host as an error of a library names it
    r"""|(?<![\w.-])[\w-]+(?:\.[\w-]+)*\.(?:local|internal|intranet|lan|corp|svc)\b"""  # a host of a private network
    r"""|(?<![\w#])/(?:app|data|etc|home|mnt|models?|opt|proc|root|run|srv|tmp|usr|var|workspace)(?:/[\w.@+-]+)+""",
    re.IGNORECASE,
)
_CREDENTIAL = re.compile(
    r"""(?i)(\bbearer\s+)[^\s'",;}<]{8,}"""
    r"""|((?:x-api-key|api-key|authorization)['"]?\s*[:=]\s*['"]?)(?!bearer\b)[^\s'",;}<]+"""
)


def failure_of_status(status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
    """The error that an answer without success means."""
    complaint = replace(read_complaint(body), status=status)
    meaning = _meaning(complaint, status)
    again = meaning.again and headers.get("x-should-retry") != "false"
    return _error(meaning, f"HTTP {status}", complaint, status, retry_after(headers, complaint), again=again)


def failure_of_event(error: object) -> ProviderError:
    """The error that an error object within a successful answer means."""
    complaint = complaint_of(error)
    status = complaint.status or 500
    meaning = _meaning(complaint, status)
    return _error(meaning, "the provider broke off", complaint, status, retry_after({}, complaint), again=meaning.again)


def scrubbed(error: ProviderError, key: str | None) -> ProviderError:
    """The same error without the key, which a server may have echoed, and no longer than a message should be."""
    failure = error.failure
    return ProviderError.of(
        failure.code,
        _without_key(failure.message, key),
        failure.retry_after_s,
        again=failure.again,
        detail=_without_key(error.detail, key),
        here=error.here,
    )


def without_places(message: str) -> str:
    """A message without the addresses, hosts and file paths in it."""
    return _PLACE.sub("(...)", message)


def _error(
    meaning: Meaning, what: str, complaint: Complaint, status: int, wait_s: float | None, *, again: bool
) -> ProviderError:
    """The error of what a provider said, of which tenants see what is about their request."""
    again = again and (status in _SENT_AGAIN or not 400 <= status < 500)
    said = complaint.message
    if meaning.public is None:
        message, detail = f"{what}: {without_places(said[:_MAX_SAID])}", ""
    else:
        message, detail = f"{meaning.public} ({what})", said
    return ProviderError.of(meaning.code, message, wait_s, again=again, detail=detail, complaint=complaint)


def _without_key(text: str, key: str | None) -> str:
    for form in (key, quote(key, safe=""), escape(key)) if key else ():
        text = text.replace(form, "***")
    return _CREDENTIAL.sub(r"\1\2***", text)[:_MAX_MESSAGE].replace("\0", "")


def _meaning(complaint: Complaint, status: int) -> Meaning:
    """What an error means: by the names of its kind, else by what it says, else by its status."""
    by_status = _OF_STATUS.get(status) or (OVERLOADED if status >= 500 else REJECTED if status >= 400 else MODEL)
    if status == 429:
        return _at_429(complaint)
    if status == 401:
        return by_status
    known = next((_OF_KIND[kind] for kind in complaint.kinds if kind in _OF_KIND), None)
    if known is not None:
        # Groq calls a request that is too large for its limits `rate_limit_exceeded`.
        return by_status if status == 413 and known is LIMITED else known
    if status in _SPEAKS or status >= 500:
        for meaning, pattern in _PHRASES:
            if pattern.search(complaint.message) and (status < 500 or meaning is CONTEXT):
                return meaning
    return by_status


def _at_429(complaint: Complaint) -> Meaning:
    known = next((_OF_KIND[kind] for kind in complaint.kinds if _OF_KIND.get(kind) is MONEY), None)
    if known is not None or _MONEY_AT_429.search(complaint.message):
        return MONEY
    return TOO_MUCH_AT_ONCE if _TOO_MUCH.search(complaint.message) else LIMITED
