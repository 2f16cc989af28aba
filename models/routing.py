"""From a request to the LLMs that may answer it: pure rules over the catalogue and what is known of its LLMs.

``auto`` and a tier's name choose; an LLM's name is obeyed. Among the LLMs whose context window holds the request, whose
circuit breaker is closed and whose quality suffices, the one with the best score wins:

    score   = sum of weight * part / sum of the weights      (weights: the catalogue's, by strategy)
    cost    = 1 - log(1 + price) / log(1 + dearest price)    price: a quarter output, three quarters input
    speed   = 1 / (1 + seconds for 256 tokens / 5)           0.5 when nothing was measured
    quality = the catalogue's
    reliability = 1 - failures / (attempts + 5)

When none suffices, the best there is are compared instead; when none is free of a flaw, the flaw is passed over and
named in the reason. The table of scores is made once for each look at the metrics, so a decision costs microseconds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log1p
from typing import Any

from models.assessment import Assessment, assess
from models.catalog import AUTO, Catalog, Weights
from models.errors import ModelNotFound

REFERENCE_TOKENS = 256
MOST_CANDIDATES = 8
MOST_NAMES = 8
"""Names of models that a refusal tells."""
_HALF_SPEED_S = 5.0
_UNKNOWN_SPEED = 0.5
_CAUTION = 5
_BYTES_PER_TOKEN = 3
_SHOWN_CHARACTERS = 64


@dataclass(frozen=True, slots=True)
class Vitals:
    """What is known of an LLM from its last minutes; times in seconds, None where nothing was measured.

    ``refusal``: why its provider refused the latest attempt, where that is the operator's to mend: key, money, model.
    """

    attempts: int = 0
    failures: int = 0
    latency_s: float | None = None
    time_to_first_token_s: float | None = None
    tokens_per_s: float | None = None
    breaker_open: bool = False
    refusal: str | None = None

    @property
    def error_rate(self) -> float:
        return self.failures / self.attempts if self.attempts else 0.0

    @property
    def reference_s(self) -> float | None:
        """Seconds that an answer of 256 tokens takes."""
        if self.tokens_per_s:
            return (self.time_to_first_token_s or 0.0) + REFERENCE_TOKENS / self.tokens_per_s
        return self.latency_s


@dataclass(frozen=True, slots=True)
class Candidate:
    """An LLM that was considered: its score, and in words what spoke for or against it."""

    llm: str
    score: float
    why: str

    def as_wire(self) -> dict[str, Any]:
        """``{"model", "score", "why"}``."""
        return {"model": self.llm, "score": self.score, "why": self.why}


@dataclass(frozen=True, slots=True)
class Route:
    """The LLMs of a job in the order they are tried, and why: the chosen one, then its fallbacks."""

    llms: tuple[str, ...]
    strategy: str = "explicit"
    reason: str = "asked for by name"
    candidates: tuple[Candidate, ...] = ()

    @property
    def chosen(self) -> str:
        return self.llms[0]

    def as_wire(self) -> dict[str, Any]:
        """``{"strategy", "reason", "candidates"}``, the best candidates first."""
        candidates = [candidate.as_wire() for candidate in self.candidates]
        return {"strategy": self.strategy, "reason": self.reason, "candidates": candidates}


@dataclass(frozen=True, slots=True)
class Ask:
    """What routing looks at in a request."""

    model: str
    fallbacks: Sequence[str] | None
    texts: Sequence[str]
    max_tokens: int
    structured: bool = False

    @property
    def likely_tokens(self) -> int:
        """Tokens that prompt and answer may come to: three bytes each is more than usual in any language."""
        return self.max_tokens + sum(len(text.encode()) for text in self.texts) // _BYTES_PER_TOKEN


@dataclass(frozen=True, slots=True)
class _Entry:
    candidate: Candidate
    quality: float
    context_window: int
    breaker_open: bool


class Router:
    """Routes requests by one look at the LLMs' vitals; made anew for the next look."""

    def __init__(self, catalog: Catalog, vitals: Mapping[str, Vitals] | None = None) -> None:
        self._catalog = catalog
        self._strategy = catalog.routing.strategy
        entries = {entry.candidate.llm: entry for entry in _scored(catalog, vitals or {})}
        best_first = sorted(entries.values(), key=lambda entry: -entry.candidate.score)
        self._scopes = {name: [e for e in best_first if e.candidate.llm in llms] for name, llms in _scopes(catalog)}
        choosers = [AUTO, *catalog.tiers]
        self._talking = [name for name, llm in catalog.llms.items() if not llm.embeddings]
        self._names = [*(name for name in choosers if self._scopes[name]), *self._talking]

    def route(self, ask: Ask) -> Route:
        """The route of a request; raises ModelNotFound for a name the catalogue does not have."""
        if ask.model in self._catalog.llms:
            if self._catalog.llms[ask.model].embeddings:
                raise ModelNotFound(f"{ask.model!r} makes embeddings and no text.", param="model")
            return Route(self._with_fallbacks(ask.model, ask.fallbacks))
        scope = self._scopes.get(ask.model)
        if not scope:
            raise no_such_model("LLM or tier", ask.model, self._names)
        if len(scope) == 1:
            only = scope[0].candidate
            return self._decided(only.llm, ask, "the only LLM to choose from", scope)
        return self._choose(ask, scope)

    def embedder(self, model: str) -> Route:
        """The route of a request for vectors: one LLM, since vectors of different LLMs cannot be compared.

        Raises ModelNotFound for a name that stands for no LLM that makes embeddings.
        """
        llms = self._catalog.llms
        names = [model] if model in llms else [n for n, llm in llms.items() if model in (llm.tier, AUTO)]
        chosen = next((name for name in names if llms[name].embeddings), None)
        if chosen is None:
            embedders = [name for name, llm in llms.items() if llm.embeddings]
            raise no_such_model("model that makes embeddings", model, embedders)
        return Route((chosen,))

    def _choose(self, ask: Ask, scope: list[_Entry]) -> Route:
        needed = assess(ask.texts, ask.max_tokens, structured=ask.structured)
        fitting, cramped = _fitting(scope, ask.likely_tokens)
        usable = [entry for entry in fitting if not entry.breaker_open]
        left = usable or fitting
        sufficient = [entry for entry in left if entry.quality >= needed.required_quality]
        if sufficient:
            chosen, verdict = sufficient[0], "the best score of those good enough"
        else:
            best = max(entry.quality for entry in left)
            chosen = next(entry for entry in left if entry.quality == best)
            verdict = "none is good enough; the best there is"
        reason = f"{_in_words(needed)}; {verdict}"
        if cramped:
            reason += "; no context window is surely large enough, the largest is taken"
        if not usable:
            reason += "; every circuit breaker is open, so the job will wait"
        return self._decided(chosen.candidate.llm, ask, reason, scope, _judge(ask.likely_tokens, needed))

    def _decided(
        self,
        llm: str,
        ask: Ask,
        reason: str,
        scope: list[_Entry],
        why: Callable[[_Entry], str] = lambda entry: entry.candidate.why,
    ) -> Route:
        shown = sorted(scope, key=lambda entry: entry.candidate.llm != llm)[:MOST_CANDIDATES]
        candidates = tuple(Candidate(e.candidate.llm, e.candidate.score, why(e)) for e in shown)
        return Route(self._with_fallbacks(llm, ask.fallbacks), self._strategy, reason, candidates)

    def _with_fallbacks(self, chosen: str, fallbacks: Sequence[str] | None) -> tuple[str, ...]:
        names = self._catalog.llms[chosen].fallbacks if fallbacks is None else fallbacks
        for name in names:
            if name not in self._catalog.llms or self._catalog.llms[name].embeddings:
                raise no_such_model("LLM to fall back to", name, self._talking, param="fallbacks")
        return tuple(dict.fromkeys((chosen, *names)))


def no_such_model(kind: str, name: str, known: Sequence[str], *, param: str = "model") -> ModelNotFound:
    """The refusal of a name that the catalogue does not have: it tells what there is, ``MOST_NAMES`` at most, and what
    is the same but for capitals or what stands before a slash."""
    said = f"There is no {kind} {name[:_SHOWN_CHARACTERS]!r}"
    if not known:
        return ModelNotFound(f"{said}; the catalogue has none.", param=param)
    shown = ", ".join(known[:MOST_NAMES])
    more = f" and {len(known) - MOST_NAMES} more (GET /v1/models)" if len(known) > MOST_NAMES else ""
    last = _last_part(name)
    like = next((each for each in known if _last_part(each) == last), None)
    meant = "" if like is None else f" Did you mean {like!r}?"
    return ModelNotFound(f"{said}; there are {shown}{more}.{meant}", param=param)


def score(weights: Weights, *, cost: float, speed: float, quality: float, reliability: float) -> float:
    """The weighted mean of the parts, each from 0 to 1."""
    weighed = weights.cost * cost + weights.speed * speed + weights.quality * quality
    return round((weighed + weights.reliability * reliability) / weights.total, 4)


def speed_of(vitals: Vitals) -> float:
    """From 0 (slow) to 1 (instant)."""
    seconds = vitals.reference_s
    return _UNKNOWN_SPEED if seconds is None else 1 / (1 + seconds / _HALF_SPEED_S)


def reliability_of(vitals: Vitals) -> float:
    """From 0 (always fails) to 1; few attempts say little."""
    return 1 - vitals.failures / (vitals.attempts + _CAUTION)


def _last_part(name: str) -> str:
    """``gpt-x`` of ``OpenAI/GPT-X``."""
    return name.rpartition("/")[2].lower()


def _scopes(catalog: Catalog) -> list[tuple[str, set[str]]]:
    talking = {name for name, llm in catalog.llms.items() if not llm.embeddings}
    tiers = {tier: talking.intersection(catalog.llms_of_tier(tier)) for tier in catalog.tiers}
    default = catalog.default
    auto = talking if default is None else tiers.get(default, {default})
    return [*tiers.items(), (AUTO, auto)]


def _scored(catalog: Catalog, vitals: Mapping[str, Vitals]) -> list[_Entry]:
    prices = {name: float(3 * llm.input_price + llm.output_price) / 4 for name, llm in catalog.llms.items()}
    dearest = log1p(max(prices.values()))
    weights = catalog.routing.weights_in_use
    entries = []
    for name, llm in catalog.llms.items():
        known = vitals.get(name, Vitals())
        parts = {
            "cost": 1 - log1p(prices[name]) / dearest if dearest else 1.0,
            "speed": speed_of(known),
            "quality": llm.quality,
            "reliability": reliability_of(known),
        }
        why = ", ".join(f"{part} {value:.2f}" for part, value in parts.items())
        candidate = Candidate(name, score(weights, **parts), why)
        entries.append(_Entry(candidate, llm.quality, llm.context_window, known.breaker_open))
    return entries


def _fitting(scope: list[_Entry], tokens: int) -> tuple[list[_Entry], bool]:
    """The LLMs whose window holds so many tokens; else those with the largest window, and True."""
    fitting = [entry for entry in scope if entry.context_window >= tokens]
    if fitting:
        return fitting, False
    largest = max(entry.context_window for entry in scope)
    return [entry for entry in scope if entry.context_window == largest], True


def _judge(tokens: int, needed: Assessment) -> Callable[[_Entry], str]:
    def why(entry: _Entry) -> str:
        if entry.context_window < tokens:
            return f"context window {entry.context_window} too small for about {tokens} tokens"
        if entry.breaker_open:
            return "circuit breaker open"
        if entry.quality < needed.required_quality:
            return f"quality {entry.quality:g} below {needed.required_quality:g}"
        return entry.candidate.why

    return why


def _in_words(needed: Assessment) -> str:
    return f"{needed.domain}, complexity {needed.complexity:g}, needs quality {needed.required_quality:g}"
