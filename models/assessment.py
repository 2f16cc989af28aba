"""How good an LLM a request needs: a pure estimate from its words, in microseconds.

    required quality = domain's own + 0.4 * complexity, at most 1

The domain is told by marks (a code fence, an equation) and words; complexity, from 0 to 1, by length, by words that
ask for reasoning, and by the shape of the conversation and the answer. It is an estimate: it needs no second LLM, and
an LLM's name in the request overrides it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Domain = Literal["code", "maths", "creative", "factual", "general"]

REQUIRED: dict[Domain, float] = {"code": 0.5, "maths": 0.5, "creative": 0.35, "general": 0.25, "factual": 0.15}
"""The quality that the simplest request of a domain needs."""

COMPLEXITY_WEIGHT = 0.4
_READ_CHARS = 400
_LONG_CHARS = 8000
_LONG_ANSWER_TOKENS = 1024
_MANY_MESSAGES = 5

_CODE_MARKS = ("```", "def ", "();", "#include", "SELECT ", "</", "=>", "Traceback")
_EQUATION = re.compile(r"\d\s*[-+*/^=]\s*\d|\\(?:frac|sum|int)\b|[a-z]\s*\^\s*\d")
_TO_SPACES = str.maketrans(dict.fromkeys(".,;:!?()[]{}<>\"'`*#/\\|=+-_\n\t", " "))


def _words(text: str) -> frozenset[str]:
    return frozenset(text.lower().translate(_TO_SPACES).split())


_WORDS: dict[Domain, frozenset[str]] = {
    "code": _words(
        """python javascript typescript java rust golang sql regex function class method compile compiler code
        debug bug refactor api html css bash algorithm script unittest exception stacktrace"""
    ),
    "maths": _words(
        """solve equation integral derivative prove proof theorem matrix probability calculate compute algebra
        geometry calculus sum equals percent polynomial prime"""
    ),
    "creative": _words(
        """story poem write novel lyrics haiku imagine fiction character slogan essay dialogue creative song
        limerick screenplay"""
    ),
    "factual": _words("who when where what which capital define definition name year country list"),
}
_REASONING = _words(
    """analyse analyze compare contrast evaluate explain why justify derive design plan optimise optimize critique
    step steps reason reasoning tradeoffs detailed thorough comprehensive architecture strategy"""
)


@dataclass(frozen=True, slots=True)
class Assessment:
    """What a request is about, how hard it looks (0 to 1), and the quality (0 to 1) that it needs."""

    domain: Domain
    complexity: float
    required_quality: float


def assess(texts: Sequence[str], max_tokens: int, *, structured: bool = False) -> Assessment:
    """Assess a conversation by its last message; of a long one, its two ends are read.

    ``structured``: the answer must follow a schema.
    """
    last = texts[-1]
    sample = last if len(last) <= 2 * _READ_CHARS else f"{last[:_READ_CHARS]} {last[-_READ_CHARS:]}"
    words = _words(sample)
    domain = _domain(sample, words)
    complexity = min(
        1.0,
        0.4 * min(1.0, sum(map(len, texts)) / _LONG_CHARS)
        + 0.15 * min(4, len(words & _REASONING))
        + (0.1 if structured else 0.0)
        + (0.1 if max_tokens > _LONG_ANSWER_TOKENS else 0.0)
        + (0.1 if len(texts) >= _MANY_MESSAGES else 0.0),
    )
    required = min(1.0, REQUIRED[domain] + COMPLEXITY_WEIGHT * complexity)
    return Assessment(domain, round(complexity, 3), round(required, 3))


def _domain(sample: str, words: frozenset[str]) -> Domain:
    """The domain with the most signs; of equals, the more demanding one."""
    signs: dict[Domain, int] = {domain: len(words & known) for domain, known in _WORDS.items()}
    signs["code"] += 2 * any(mark in sample for mark in _CODE_MARKS)
    signs["maths"] += 2 * (_EQUATION.search(sample) is not None)
    best = max(signs, key=signs.__getitem__)
    return best if signs[best] else "general"
