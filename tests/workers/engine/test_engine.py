"""The engine on the real small model: many generations at once, each as if it were alone."""

import json
import random
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError
from time import monotonic, sleep

import pytest

from models.catalog import load_catalog
from models.errors import FailureCode
from models.sources import resolve_source
from workers.engine.engine import Engine, EngineOptions
from workers.engine.errors import EngineError
from workers.engine.grammar import grammar_for
from workers.engine.model import Model
from workers.engine.sampling import GREEDY, Sampling, fold_seed
from workers.engine.sequence import Completion, Ticket, Work

ANSWER_S = 120
OPTIONS = EngineOptions(parallel=8, cells=2048, context_window=512, threads=2)


def open_model() -> Model:
    return Model.load(resolve_source(load_catalog().llms["smollm2-135m"].source or ""))


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine(open_model(), OPTIONS)
    yield engine
    engine.close()


@pytest.fixture(autouse=True)
def nothing_leaks(engine: Engine) -> Iterator[None]:
    yield
    engine.forget()
    assert (engine.stats.cells_used, engine.stats.sequences_kept) == (0, 0)
    assert (engine.stats.sequences_running, engine.jobs) == (0, 0)
    assert not any(engine._context.length(sequence) for sequence in range(OPTIONS.parallel + 4))


def chat(engine: Engine, text: str) -> list[int]:
    return engine.model.prompt([{"role": "user", "content": text}])


def ask(engine: Engine, text: str, max_tokens: int = 16, **options: object) -> Work:
    return Work(chat(engine, text), max_tokens, **{"sampling": GREEDY, **options})  # type: ignore[arg-type]


def result(ticket: Ticket) -> Completion:
    return ticket.future.result(ANSWER_S)


def refusal(ticket: Ticket) -> EngineError:
    error = ticket.future.exception(ANSWER_S)
    assert isinstance(error, EngineError)
    return error


def test_pieces_of_text_add_up_to_the_answer_and_to_its_tokens(engine: Engine) -> None:
    pieces: list[str] = []
    ticket = engine.submit(ask(engine, "Write a sentence about the café in Zürich. 😀", 24), pieces.append)
    completion = result(ticket)
    assert len(pieces) > 2
    assert "".join(pieces) == completion.text
    assert completion.text == b"".join(map(engine.model.piece, completion.tokens)).decode(errors="replace")
    assert ticket.output_tokens == len(completion.tokens) <= 24
    assert ticket.first_token_at is not None


def test_max_tokens_and_the_window_end_an_answer_with_length(engine: Engine) -> None:
    short = result(engine.submit(ask(engine, "Tell me a long story.", 5, ignore_eos=True)))
    assert (short.finish_reason, len(short.tokens)) == ("length", 5)
    prompt = chat(engine, "word " * 450)
    to_the_end = result(engine.submit(Work(prompt, 10_000, GREEDY, ignore_eos=True)))
    assert (to_the_end.finish_reason, len(to_the_end.tokens)) == ("length", 512 - len(prompt))


def test_a_stop_string_across_tokens_ends_the_answer_and_is_not_in_it(engine: Engine) -> None:
    whole = result(engine.submit(ask(engine, "Count from one to ten.", 24, ignore_eos=True))).text
    stop = whole[9:15]  # across the borders of tokens
    cut = result(engine.submit(ask(engine, "Count from one to ten.", 24, stop=(stop, "never"), ignore_eos=True)))
    assert (cut.finish_reason, cut.text) == ("stop", whole.partition(stop)[0])


def test_a_shared_beginning_is_computed_once_and_changes_nothing(engine: Engine) -> None:
    system = "You are a helpful clerk who sorts letters by their subject and answers in one word. " * 5
    prompts = [
        engine.model.prompt([{"role": "system", "content": system}, {"role": "user", "content": f"Letter {n}"}])
        for n in range(6)
    ]
    alone = []
    for prompt in prompts:
        engine.forget()
        alone.append(result(engine.submit(Work(prompt, 6, GREEDY))).tokens)
    engine.forget()
    before = engine.stats.prompt_tokens
    tickets = [engine.submit(Work(prompt, 6, GREEDY)) for prompt in prompts]
    together = [result(ticket).tokens for ticket in tickets]
    shared = [ticket.cached_tokens for ticket in tickets]
    assert shared[0] == 0
    assert min(shared[1:]) > 80
    assert engine.stats.prompt_tokens - before == sum(map(len, prompts)) - sum(shared)
    assert sum(ours == theirs for ours, theirs in zip(together, alone, strict=True)) >= 5  # one may part at a tie


def test_a_conversation_shares_its_earlier_turns_with_their_answers(engine: Engine) -> None:
    first = [{"role": "user", "content": "Name a colour."}]
    answer = result(engine.submit(Work(engine.model.prompt(first), 8, GREEDY)))
    turns = [*first, {"role": "assistant", "content": answer.text}, {"role": "user", "content": "Another."}]
    ticket = engine.submit(Work(engine.model.prompt(turns), 4, GREEDY))
    result(ticket)
    assert ticket.cached_tokens >= len(engine.model.prompt(first)) + len(answer.tokens) - 2


def test_a_seed_makes_the_same_answer_again_and_another_seed_another(engine: Engine) -> None:
    def say(seed: int) -> tuple[int, ...]:
        engine.forget()
        work = ask(engine, "Tell me something.", 16, sampling=Sampling(temperature=1.5, top_k=0, seed=seed))
        return result(engine.submit(work)).tokens

    first = say(7)
    assert say(7) == first
    assert say(8) != first
    assert say(-(2**63)) == say(-(2**63))


def test_penalties_keep_an_answer_from_repeating_itself(engine: Engine) -> None:
    work = ask(engine, "Say la la la la la la.", 48, ignore_eos=True)
    plain = result(engine.submit(work)).tokens
    penalized = Sampling(temperature=0, repeat_penalty=1.5, frequency_penalty=1.0, presence_penalty=1.0)
    varied = result(engine.submit(Work(work.prompt, 48, penalized, ignore_eos=True))).tokens
    assert len(set(varied)) > len(set(plain))


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_a_schema_is_kept_to_at_any_temperature(engine: Engine, temperature: float) -> None:
    grammar = grammar_for({"type": "json_schema", "json_schema": {"name": "p", "schema": SCHEMA}})
    works = [
        ask(engine, f"Invent person {n}.", 96, grammar=grammar, sampling=Sampling(temperature, seed=n))
        for n in range(6)
    ]
    tickets = [engine.submit(work) for work in works]
    answers = [result(ticket) for ticket in tickets]
    whole = [json.loads(answer.text) for answer in answers if answer.finish_reason == "stop"]
    assert len(whole) >= 4  # a number may go on until max_tokens
    assert all(person.keys() == {"name", "age"} and isinstance(person["age"], int) for person in whole)


@pytest.mark.parametrize(
    ("work", "code", "says"),
    [
        (Work([1] * 512, 5), FailureCode.CONTEXT_LENGTH_EXCEEDED, "the prompt has 512 tokens, the context window 512"),
        (Work([], 5), FailureCode.PROVIDER_REJECTED, "empty"),
        (Work([1, 10**6], 5), FailureCode.PROVIDER_REJECTED, "lacks"),
        (Work([1, -1], 5), FailureCode.PROVIDER_REJECTED, "lacks"),
        (Work([1], 5, grammar="root ::= ("), FailureCode.PROVIDER_REJECTED, "grammar is not valid"),
        (Work([1], 5, grammar="root ::= root"), FailureCode.PROVIDER_REJECTED, "grammar is not valid"),
    ],
)
def test_what_cannot_be_done_is_refused_at_once(engine: Engine, work: Work, code: FailureCode, says: str) -> None:
    with pytest.raises(EngineError, match=says) as caught:
        engine.submit(work)
    assert caught.value.code is code


def test_a_cancelled_one_ends_at_the_next_step_running_or_waiting(engine: Engine) -> None:
    tickets = [engine.submit(ask(engine, f"Count to a million, {n}.", 400, ignore_eos=True)) for n in range(12)]
    while tickets[0].first_token_at is None:
        sleep(0.005)
    for ticket in tickets:
        ticket.cancel()
    began_at = monotonic()
    for ticket in tickets:
        assert isinstance(ticket.future.exception(ANSWER_S), CancelledError)
    assert monotonic() - began_at < 10
    assert tickets[0].output_tokens > 0
    assert tickets[-1].output_tokens == 0


def test_more_orders_than_places_are_all_served(engine: Engine) -> None:
    tickets = [engine.submit(ask(engine, f"{n}: say hello", 3 + n % 5, ignore_eos=True)) for n in range(40)]
    assert [len(result(ticket).tokens) for ticket in tickets] == [3 + n % 5 for n in range(40)]


def test_orders_larger_than_the_free_cells_wait_for_them(engine: Engine) -> None:
    chance = random.Random(5)
    prompts = [[chance.randrange(1000, 40000) for _ in range(480)] for _ in range(8)]  # 4 of 512 fill the cache
    tickets = [engine.submit(Work(prompt, 32, GREEDY, ignore_eos=True)) for prompt in prompts]
    most = 0
    while not all(ticket.future.done() for ticket in tickets):
        most = max(most, engine.stats.sequences_running)
        sleep(0.02)
    assert [len(result(ticket).tokens) for ticket in tickets] == [32] * 8
    assert 2 <= most <= 4


def test_many_threads_may_submit(engine: Engine) -> None:
    prompt = chat(engine, "Say hello.")
    answers: list[tuple[int, ...]] = []

    def run() -> None:
        answers.extend(result(engine.submit(Work(prompt, 3, GREEDY, ignore_eos=True))).tokens for _ in range(4))

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(ANSWER_S)
    assert len(answers) == 24
    assert len(set(answers)) <= 2  # one, or two at a tie


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, -1, -(2**63)])
def test_a_seed_gives_the_same_answer_again_when_the_job_is_alone(engine: Engine, seed: int) -> None:
    """Whatever was computed before, and whatever of it is kept."""
    work = ask(engine, f"Tell me a story about the number {seed}.", 40, sampling=Sampling(temperature=1.2, seed=seed))
    first = result(engine.submit(work))
    result(engine.submit(ask(engine, "Something else.", 12)))
    assert result(engine.submit(work)).tokens == first.tokens
    assert result(engine.submit(work)).tokens == first.tokens


def test_seeds_that_differ_stay_apart_in_32_bits() -> None:
    seeds = [0, 1, 2**31, 2**32 - 2, 2**32 - 1, 2**32, 2**32 + 1, 2**63 - 1, -1, -2, -(2**63)]
    folded = [fold_seed(seed) for seed in seeds]
    assert len(set(folded)) == len(seeds)
    assert folded[:4] == seeds[:4]
    assert all(0 <= seed < 2**32 - 1 for seed in folded)
