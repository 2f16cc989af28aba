"""An answer in a form is whole however few tokens it may take; what cannot hold any answer is refused."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest

from models.errors import FailureCode
from tests.workers.engine.grammars import takes, vocabulary
from tests.workers.engine.local_models import smollm_path
from tests.workers.engine.random_schemas import random_schema
from workers.engine.ending import Ending
from workers.engine.engine import Engine, EngineOptions
from workers.engine.errors import EngineError
from workers.engine.gbnf_reader import read_grammar
from workers.engine.grammar import json_grammar, object_grammar
from workers.engine.grammar_states import GrammarStates, State
from workers.engine.model import Model
from workers.engine.sampling import GREEDY, Sampling
from workers.engine.schema_grammar import convert_schema
from workers.engine.sequence import Completion, Work

ANSWER_S = 120

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "hobbies": {"type": "array", "items": {"type": "string"}},
        "age": {"type": "integer"},
    },
    "required": ["name", "hobbies", "age"],
}
TREE = {
    "$defs": {
        "Node": {
            "type": "object",
            "properties": {
                "name": {"type": "string"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}},
            },
            "required": ["name", "children"],
        }
    },
    "$ref": "#/$defs/Node",
}
SCHEMAS: dict[str, Any] = {  # Any: JSON Schemas
    "person": PERSON,
    "tree": TREE,
    "list": {"type": "array", "items": {"type": "number"}, "minItems": 2},
    "text of a length": {"type": "string", "minLength": 12},
    "characters of several bytes": {
        "type": "object",
        "properties": {"ключ😀": {"type": "string"}},
        "required": ["ключ😀"],
    },
    "enumeration": {"enum": ["a rather long way to say no", "yes"]},
    "pattern": {"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}$"},
    "anything": {},
}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine(Model.load(smollm_path()), EngineOptions(parallel=8, cells=2048, context_window=512, threads=2))
    yield engine
    engine.close()


def grammar_of(schema: Any) -> str:  # Any: a JSON Schema
    grammar = convert_schema(schema)
    assert grammar is not None
    return grammar.text


def follow(grammar: str) -> Ending:
    pieces = vocabulary().pieces
    return Ending(GrammarStates(read_grammar(grammar), pieces), pieces, vocabulary().piece)


def shortest(grammar: str) -> list[int]:
    ending, tokens = follow(grammar), []
    while not ending.may_end:
        tokens.append(ending.next_token())
        ending.advance(tokens[-1])
    return tokens


def text_of(tokens: list[int]) -> str:
    return b"".join(map(vocabulary().piece, tokens)).decode()


def ask(engine: Engine, grammar: str, max_tokens: int, sampling: Sampling = GREEDY) -> Work:
    prompt = engine.model.prompt([{"role": "user", "content": "Describe a person who lives in Zürich, as JSON."}])
    return Work(prompt, max_tokens, sampling, grammar=grammar)


@pytest.mark.parametrize("name", SCHEMAS)
def test_with_few_tokens_more_than_the_shortest_answer_every_answer_is_whole(engine: Engine, name: str) -> None:
    grammar, check = grammar_of(SCHEMAS[name]), jsonschema_rs.validator_for(SCHEMAS[name])
    fewest = follow(grammar).fewest
    works = [ask(engine, grammar, fewest + more) for more in (0, 1, 2, 5)]
    works += [ask(engine, grammar, fewest + more, Sampling(temperature=1.5, seed=more)) for more in (0, 1, 3, 9)]
    for ticket, work in [(engine.submit(work), work) for work in works]:
        done: Completion = ticket.future.result(ANSWER_S)
        assert done.finish_reason == "stop", done
        assert len(done.tokens) <= work.max_tokens
        assert check.is_valid(json.loads(done.text)), done


def test_what_cannot_hold_the_shortest_answer_is_refused_before_it_runs(engine: Engine) -> None:
    grammar = grammar_of(PERSON)
    fewest = follow(grammar).fewest
    steps = engine.stats.steps
    with pytest.raises(EngineError, match=f"max_tokens: the shortest .* takes {fewest} tokens, got {fewest - 1}") as no:
        engine.submit(ask(engine, grammar, fewest - 1))
    assert no.value.code is FailureCode.PROVIDER_REJECTED
    long = grammar_of({"type": "array", "items": PERSON, "minItems": 60})
    with pytest.raises(EngineError, match=r"takes .* tokens; the context window leaves") as no:
        engine.submit(ask(engine, long, 100_000))
    assert no.value.code is FailureCode.CONTEXT_LENGTH_EXCEEDED
    assert engine.stats.steps == steps


def test_an_answer_that_cannot_go_on_ends_without_another_step(engine: Engine) -> None:
    grammar = grammar_of({"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]})
    done: Completion = engine.submit(ask(engine, grammar, 50)).future.result(ANSWER_S)
    assert done.finish_reason == "stop"
    assert text_of(list(done.tokens)) == done.text
    json.loads(done.text)


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_shortest_answer_follows_its_schema(name: str) -> None:
    grammar = grammar_of(SCHEMAS[name])
    tokens = shortest(grammar)
    assert len(tokens) == follow(grammar).fewest
    assert takes(grammar, text_of(tokens))
    assert jsonschema_rs.validator_for(SCHEMAS[name]).is_valid(json.loads(text_of(tokens)))


def test_the_states_of_a_grammar_are_those_of_llama_cpp() -> None:
    """Texts of many random schemas, and the same with a character changed, are taken by both or by neither."""
    texts = ["{}", "[1, 2]", '{"a": 1, "b": [true]}', '"x"', "12", "-0.5e3", "null", '{"é": "\\u00e9\\n"}']
    compared = 0
    for seed in range(60):
        grammar = convert_schema(random_schema(seed))
        assert grammar is not None
        states = GrammarStates(read_grammar(grammar.text), vocabulary().pieces)
        own = states.shortest(states.start)
        for text in (*texts, own, own[:-1], own + " ", own.replace("0", "7"), own.replace("a", "b")):
            state: State | None = states.start
            for char in text:
                state = states.after(state, char) if state is not None else None
            assert (state is not None and state.ends) == takes(grammar.text, text), (seed, text)
            compared += 1
    assert compared > 500


def test_a_character_may_be_cut_between_tokens() -> None:
    """Where a character's bytes are tokens of their own, its end is known from each byte on."""
    grammar = grammar_of({"enum": ["é€😀"]})
    ending = follow(grammar)
    pieces = vocabulary().pieces
    for byte in '"é€😀'.encode():
        token = pieces.split(bytes([byte]))
        assert token is not None
        before = ending.fewest
        assert ending.fits(token[0], 30)
        assert not ending.fits(pieces.split(b"z")[0], 30)  # type: ignore[index]  # there is one
        ending.advance(token[0])
        assert ending.fewest <= before + 3
    assert ending.fewest == 1


@pytest.mark.parametrize("grammar", [json_grammar().text, object_grammar().text])
def test_grammars_of_any_json_are_followed(grammar: str) -> None:
    assert takes(grammar, text_of(shortest(grammar)))


@pytest.mark.parametrize("text", ["root ::= (", "root ::= nowhere", "a b", 'root ::= "x" root', "root ::= [", "@"])
def test_what_is_no_grammar_or_has_no_end_is_not_followed(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # whatever it says
        GrammarStates(read_grammar(text), vocabulary().pieces)
