"""How many tokens a prompt may have, known without a tokenizer.

Every LLM that Headrace calls splits text by byte-level BPE or by a SentencePiece model with byte fallback: a
token is never less than one byte of UTF-8, which bounds a prompt from above. No vocabulary in use has a token
of more than 128 bytes, which bounds it from below. Both bounds are pure functions of the text, so the API can
price and refuse a request that only a worker could count exactly.
"""

from collections.abc import Iterable

MESSAGE_OVERHEAD = 16
"""Tokens that a chat template puts around one message: role markers, separators, line ends."""

REQUEST_OVERHEAD = 128
"""Tokens that a chat template adds once: a default system prompt, the opening of the answer."""

REPAIR_OVERHEAD = 8192
"""Tokens, besides the request and the answer, of asking an LLM to correct the form of its answer: at most 8
problems of 200 characters, and the demand (:mod:`workers.structured`)."""

LONGEST_TOKEN_BYTES = 128
"""The longest token of the vocabularies in use, in bytes (a run of spaces, in OpenAI's o200k)."""


def most_tokens(texts: Iterable[str]) -> int:
    """More tokens than a prompt of these messages can have, chat template included."""
    sizes = [len(text.encode()) for text in texts]
    return sum(sizes) + MESSAGE_OVERHEAD * len(sizes) + REQUEST_OVERHEAD


def fewest_tokens(texts: Iterable[str]) -> int:
    """Fewer tokens than, or as many as, a prompt of these messages has.

    Control characters count as well, though a vocabulary may have no token for them.
    """
    return sum(-(-len(text.encode()) // LONGEST_TOKEN_BYTES) for text in texts)
