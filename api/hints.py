"""What to send instead: for requests that reach no handler, and for keys that are none.

No answer depends on more than the request's own method, path and headers, and none repeats a key.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fastapi.routing import APIRoute

from api.bodies import shorten

MOST_SEGMENTS = 16
MOST_CHARACTERS = 512
"""Longer paths are nobody's mistake and are not looked at."""

_BASE_URL = "The base_url of an OpenAI client ends in `/v1`, once."
_ANYWHERE = ("HEAD", "OPTIONS")
KEY_FORM = "Send your API key as `Authorization: Bearer hr_...`"
OTHER_HEADERS = ("x-api-key", "api-key", "apikey", "x-goog-api-key", "openai-api-key", "x-auth-token")
OTHER_PARAMETERS = ("api_key", "api-key", "key", "token", "access_token")
_CHAT = "POST /v1/chat/completions"
_EVERYTHING = (
    "OpenAI's endpoints here are /v1/chat/completions, /v1/embeddings, /v1/models, /v1/files and /v1/batches;"
    " GET /openapi.json lists all paths."
)
_QUOTES = ('"', "'", "`", "\u201c", "\u2018")
_PLACEHOLDERS = frozenset(
    {"empty", "none", "null", "undefined", "nan", "x", "xxx", "dummy", "fake", "test", "key", "not-needed", "no-key"}
    | {"token", "your-api-key", "your_api_key", "lm-studio", "ollama", "sk-no-key-required", "anything", "123"}
)


@dataclass(frozen=True, slots=True)
class Foreign:
    """An endpoint that clients ask for and that is not here: whose it is, and what to do."""

    method: str
    path: str
    of: str
    instead: str

    @property
    def pattern(self) -> re.Pattern[str]:
        """What its paths look like; a part in braces stands for any text without a slash, ``{*}`` for any text."""
        parts = re.split(r"(\{[^}]*\})", self.path)
        found = {"{*}": ".+"}
        return re.compile("".join(found.get(p, "[^/]+") if p[:1] == "{" else re.escape(p) for p in parts))


_TEXT_ONLY = "Headrace makes text and embeddings only"
_CONVERSATION = f"{_CHAT} takes the whole conversation in `messages`"
_PROMPT = f"{_CHAT} takes the prompt as a message"
_COMPATIBLE = "Choose the client's provider for OpenAI-compatible servers"
FOREIGN: Sequence[Foreign] = (
    Foreign("POST", "/v1/completions", "OpenAI's text completions", _PROMPT),
    Foreign("POST", "/v1/responses", "OpenAI's Responses API", f"{_CHAT} answers at once; POST /v1/jobs can be polled"),
    Foreign(
        "GET", "/v1/responses/{id}", "OpenAI's Responses API", "POST /v1/jobs makes a job, GET /v1/jobs/{id} reads it"
    ),
    Foreign("POST", "/v1/engines/{engine}/{*}", "OpenAI's engines", f"{_CHAT} takes `model` in its body"),
    Foreign("POST", "/v1/edits", "OpenAI's edits", f"{_CHAT} takes the instruction as a message"),
    Foreign("POST", "/v1/moderations", "OpenAI's moderation", _TEXT_ONLY),
    Foreign("POST", "/v1/images/{what}", "OpenAI's images", _TEXT_ONLY),
    Foreign("POST", "/v1/audio/{what}", "OpenAI's audio", _TEXT_ONLY),
    Foreign("POST", "/v1/videos", "OpenAI's videos", _TEXT_ONLY),
    Foreign("POST", "/v1/assistants", "OpenAI's assistants", _CONVERSATION),
    Foreign("POST", "/v1/threads", "OpenAI's assistants", _CONVERSATION),
    Foreign("POST", "/v1/threads/{*}", "OpenAI's assistants", _CONVERSATION),
    Foreign("POST", "/v1/fine_tuning/jobs", "OpenAI's fine-tuning", "Models are what the operator's catalogue names"),
    Foreign("POST", "/v1/uploads", "OpenAI's uploads in parts", "POST /v1/files takes a file in one piece"),
    Foreign("GET", "/v1/realtime", "OpenAI's realtime sessions", f"{_CHAT} with `stream` sends text as it is made"),
    Foreign(
        "POST",
        "/openai/deployments/{deployment}/{*}",
        "Azure's deployments",
        f"{_CHAT} takes `model` in its body; use the client for OpenAI, not the one for Azure",
    ),
    Foreign("POST", "/v1/messages", "Anthropic's messages", f"{_CHAT} takes the conversation in OpenAI's form"),
    Foreign("POST", "/v1/messages/count_tokens", "Anthropic's messages", "An answer's `usage` counts its tokens"),
    Foreign("POST", "/v1/complete", "Anthropic's text completions", _PROMPT),
    Foreign("POST", "/{version}/models/{model}:{call}", "Gemini's API", f"{_CHAT} takes `model` in its body"),
    Foreign("POST", "/api/chat", "Ollama's API", f"{_COMPATIBLE}: {_CHAT}"),
    Foreign("POST", "/api/generate", "Ollama's API", f"{_COMPATIBLE}: {_PROMPT}"),
    Foreign("POST", "/api/embed", "Ollama's API", f"{_COMPATIBLE}: POST /v1/embeddings"),
    Foreign("POST", "/api/embeddings", "Ollama's API", f"{_COMPATIBLE}: POST /v1/embeddings"),
    Foreign("GET", "/api/tags", "Ollama's API", f"{_COMPATIBLE}: GET /v1/models"),
    Foreign("POST", "/api/show", "Ollama's API", f"{_COMPATIBLE}: GET /v1/models tells context windows"),
    Foreign("GET", "/api/version", "Ollama's API", f"{_COMPATIBLE}; GET /openapi.json tells Headrace's version"),
    Foreign("POST", "/completion", "llama-server's own API", _PROMPT),
    Foreign("GET", "/props", "llama-server's own API", "GET /v1/models tells context windows"),
    Foreign("POST", "/tokenize", "llama-server's and vLLM's own API", "An answer's `usage` counts its tokens"),
    Foreign("POST", "/generate", "TGI's own API", _PROMPT),
    Foreign("POST", "/v1/rerank", "Cohere's and Jina's reranking", "POST /v1/embeddings gives vectors to compare"),
)
_PATTERNS = [(foreign.pattern, foreign) for foreign in FOREIGN]


class Paths:
    """Which paths there are, and what can be done at each."""

    def __init__(self, routes: Iterable[object]) -> None:
        self._routes = [route for route in routes if isinstance(route, APIRoute)]

    def methods(self, path: str) -> list[str]:
        """The methods of a path, in order; none where there is nothing."""
        found = {method for route in self._routes if route.path_regex.match(path) for method in (route.methods or ())}
        return sorted(found | ({"HEAD"} if "GET" in found else set()) | ({"OPTIONS"} if found else set()))

    def not_found(self, method: str, path: str) -> str:
        """What to say where there is nothing at a path."""
        nothing = f"There is nothing at {shorten(path)}"
        if len(path) > MOST_CHARACTERS:
            return f"{nothing}. {_EVERYTHING}"
        segments = [segment for segment in path.split("/") if segment]
        tidy = "/" + "/".join(segments)
        if tidy != path and self.methods(tidy):
            return f"{nothing}; the path is {shorten(tidy)}, without the other slashes."
        for pattern, foreign in _PATTERNS:
            if pattern.fullmatch(tidy):
                return f"{nothing}, a path of {foreign.of}. {foreign.instead}."
        near = self._nearest(segments[:MOST_SEGMENTS])
        if near is None:
            return f"{nothing}. {_EVERYTHING}"
        taken = [name for name in self.methods(near) if name not in _ANYWHERE]
        hint = f"{nothing}; it is {method if method in taken else ' or '.join(taken)} {shorten(near)}."
        return f"{hint} {_BASE_URL}" if near.startswith("/v1/") else hint

    def _nearest(self, segments: list[str]) -> str | None:
        """The path that a client probably means: the longest end of its own that is here, with or without ``/v1``."""
        for given in (segments, [segment.lower() for segment in segments]):
            for start in range(len(given)):
                rest = "/" + "/".join(given[start:])
                for path in (rest, f"/v1{rest}"):
                    if self.methods(path):
                        return path
        return None


def not_allowed(method: str, path: str, methods: Sequence[str]) -> str:
    """What to say where a path takes other methods."""
    taken = [name for name in methods if name not in _ANYWHERE]
    return f"{method} is not possible at {shorten(path)}; it takes {' and '.join(taken) or 'nothing'}."


def missing_key(headers: Mapping[str, str], parameters: Mapping[str, str]) -> str:
    """What to say where there is no ``Authorization: Bearer <key>``."""
    given = headers.get("authorization", "").strip()
    scheme = given.partition(" ")[0]
    if given.startswith("hr_"):
        return f"{KEY_FORM}: the word `Bearer` and a space are missing before the key."
    if scheme.lower() == "bearer":
        return f"{KEY_FORM}: there is no key after `Bearer`; is the variable that holds it set?"
    if scheme.lower() == "basic":
        return f"{KEY_FORM}, not as a user and a password (Basic)."
    if given:
        return f"{KEY_FORM}, not with another scheme than `Bearer`."
    if (name := next((name for name in OTHER_HEADERS if name in headers), None)) is not None:
        return f"{KEY_FORM}: it came in the header `{name}`."
    if (name := next((name for name in OTHER_PARAMETERS if name in parameters), None)) is not None:
        return f"{KEY_FORM}: it came in the address (`?{name}=`), where logs would keep it."
    return f"{KEY_FORM}."


def wrong_key(key: str) -> str:
    """What to say of a key that is none of this service, without repeating it."""
    if re.match(r"bearer\s", key, re.IGNORECASE):
        return f"{KEY_FORM}: `Bearer` is there twice; give the client the key alone."
    if key[:1] in _QUOTES:
        return f"{KEY_FORM}: there are quotation marks around the key."
    if key[:1] in "$%<{[":
        return f"{KEY_FORM}: a placeholder was sent, not the key that should replace it."
    if key.lower() in _PLACEHOLDERS:
        return f"{KEY_FORM}: this is what servers without keys are sent. `headrace keys create` makes a key."
    if not key.startswith("hr_"):
        what = "of another service" if re.match(r"sk-|gsk_|xai-|AIza|hf_|pplx-|r8_", key) else "of none that is known"
        return f"The API key is {what}: keys of Headrace begin with `hr_`. `headrace keys create` makes one."
    if re.search(r"\s", key):
        return "The API key has a space or a line break in it: was it copied from two lines?"
    return "The API key is unknown, revoked or expired."
