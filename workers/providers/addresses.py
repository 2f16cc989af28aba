"""Where an LLM is, from the ``base_url`` of its entry: a base to which an endpoint's path is added, before its query.

==================================================  =====================================================
``https://api.openai.com/v1``, with or without ``/``  as it is
``.../v1/chat/completions``, ``.../v1/messages``      without the endpoint
``.../openai/deployments/NAME?api-version=V``         as it is (Azure)
``https://NAME.openai.azure.com?api-version=V``       ``/openai/deployments/MODEL`` is added (Azure)
==================================================  =====================================================
"""

from urllib.parse import SplitResult, parse_qs, quote, urlsplit, urlunsplit

from models.errors import ConfigurationError

_ENDPOINTS = ("/chat/completions", "/completions", "/embeddings")
_AZURE_HOSTS = (".azure.com", ".azure.us", ".azure.cn", ".azure-api.net")


def openai_base(url: str, model: str | None) -> str:
    """The base of an OpenAI-compatible server; raises ConfigurationError."""
    parts = _split(url)
    path = _without(parts.path, _ENDPOINTS)
    if "api-version" in parse_qs(parts.query) and path in {"", "/openai"} and model:
        path = f"/openai/deployments/{quote(model, safe='')}"
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def anthropic_base(url: str) -> str:
    """The base of the Messages API, to which ``/v1/messages`` is added; raises ConfigurationError."""
    parts = _split(url)
    path = _without(parts.path, ("/messages",)).removesuffix("/v1")
    return urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def is_azure(url: str) -> bool:
    """Whether a base takes its key as Azure does: in ``api-key``."""
    parts = _split(url)
    host = parts.hostname or ""
    if host.endswith(_AZURE_HOSTS):
        return True
    return "/openai/deployments/" in parts.path or "api-version" in parse_qs(parts.query)


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError as error:
        raise ConfigurationError(f"base_url is no URL: {error}") from None


def _without(path: str, endpoints: tuple[str, ...]) -> str:
    path = path.rstrip("/")
    endpoint = next((endpoint for endpoint in endpoints if path.endswith(endpoint)), "")
    return path.removesuffix(endpoint).rstrip("/")
