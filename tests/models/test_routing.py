"""Routing: what a request needs, which LLM it gets, and why."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.assessment import assess
from models.catalog import STRATEGIES, Catalog, Strategy, Weights
from models.errors import ModelNotFound
from models.routing import Ask, Route, Router, Vitals, reliability_of, score, speed_of

HARD = "Prove step by step, and explain why, that the integral of a polynomial is a polynomial; compare the proofs."
EASY = "What is the capital of France?"


def llm(tier: str, quality: float, price: str, window: int = 8000, **fields: object) -> dict[str, object]:
    prices = {"input_price": price, "output_price": str(2 * Decimal(price))}
    return {"tier": tier, "provider": "mock", "context_window": window, "quality": quality, **prices, **fields}


def catalog(strategy: Strategy = "balanced", **changes: object) -> Catalog:
    tiers = {name: {"queue": name, "pool": "remote"} for name in ("small", "large")}
    llms = {
        "tiny": llm("small", 0.2, "0", window=1000, fallbacks=["mid"]),
        "mid": llm("small", 0.5, "1"),
        "grand": llm("large", 0.95, "20", window=100_000),
    }
    return Catalog.model_validate({"tiers": tiers, "llms": llms, "routing": {"strategy": strategy}} | changes)


def ask(prompt: str, model: str = "auto", max_tokens: int = 100, fallbacks: list[str] | None = None) -> Ask:
    return Ask(model, fallbacks, [prompt], max_tokens)


def route(prompt: str, strategy: Strategy = "balanced", vitals: dict[str, Vitals] | None = None) -> Route:
    return Router(catalog(strategy), vitals).route(ask(prompt))


@pytest.mark.parametrize(
    ("prompt", "domain"),
    [
        ("Write a poem about the sea", "creative"),
        ("Refactor this Python function: def f(x): return x", "code"),
        ("```\nx\n```", "code"),
        ("Solve 3x + 4 = 10", "maths"),
        ("12 * 7 = ?", "maths"),
        (EASY, "factual"),
        ("Hello there", "general"),
        ("", "general"),
    ],
)
def test_the_domain_of_a_request_is_told(prompt: str, domain: str) -> None:
    assert assess([prompt], 100).domain == domain


def test_reasoning_length_structure_and_dialogue_make_a_request_harder() -> None:
    plain = assess(["Tell me about rivers"], 100).complexity
    assert assess(["Analyse and compare rivers"], 100).complexity > plain
    assert assess(["Tell me about rivers " * 200], 100).complexity > plain
    assert assess(["Tell me about rivers"], 5000).complexity > plain
    assert assess(["Tell me about rivers"], 100, structured=True).complexity > plain
    assert assess(["hi"] * 5 + ["Tell me about rivers"], 100).complexity > plain


@given(st.lists(st.text(), min_size=1, max_size=8), st.integers(1, 10**6), st.booleans())
def test_every_request_can_be_assessed(texts: list[str], max_tokens: int, structured: bool) -> None:
    needed = assess(texts, max_tokens, structured=structured)
    assert 0 <= needed.complexity <= 1
    assert 0 < needed.required_quality <= 1


@pytest.mark.parametrize(
    ("prompt", "strategy", "chosen"),
    [
        (EASY, "balanced", "tiny"),
        (EASY, "cost", "tiny"),
        (EASY, "quality", "grand"),
        (HARD, "balanced", "grand"),
        ("Refactor this function", "cost", "mid"),
        ("Refactor this function", "quality", "grand"),
    ],
)
def test_auto_takes_the_best_of_the_llms_that_are_good_enough(prompt: str, strategy: Strategy, chosen: str) -> None:
    decision = route(prompt, strategy)
    assert (decision.chosen, decision.strategy) == (chosen, strategy)
    assert decision.candidates[0].llm == chosen
    assert {candidate.llm for candidate in decision.candidates} == {"tiny", "mid", "grand"}


def test_under_speed_the_measured_fastest_wins() -> None:
    vitals = {"mid": Vitals(10, 0, tokens_per_s=200.0), "grand": Vitals(10, 0, tokens_per_s=20.0)}
    assert route("Refactor this function", "speed", vitals).chosen == "mid"
    vitals = {"mid": Vitals(10, 0, tokens_per_s=20.0), "grand": Vitals(10, 0, tokens_per_s=200.0)}
    assert route("Refactor this function", "speed", vitals).chosen == "grand"


def test_an_unreliable_llm_loses_to_its_equal() -> None:
    twins = {name: llm("small", 0.9, "1") for name in ("first", "second")}
    for failing, chosen in (("first", "second"), ("second", "first")):
        router = Router(catalog(llms=twins), {failing: Vitals(100, 60)})
        assert router.route(ask(EASY)).chosen == chosen


def test_an_open_breaker_is_routed_round_and_named() -> None:
    decision = route(EASY, "cost", {"tiny": Vitals(breaker_open=True)})
    assert decision.chosen == "mid"
    assert {candidate.llm: candidate.why for candidate in decision.candidates}["tiny"] == "circuit breaker open"


def test_when_every_breaker_is_open_the_reason_says_so() -> None:
    decision = route(EASY, "cost", {name: Vitals(breaker_open=True) for name in ("tiny", "mid", "grand")})
    assert decision.chosen == "tiny"
    assert "every circuit breaker is open" in decision.reason


def test_a_window_that_is_too_small_is_passed_over() -> None:
    decision = route("word " * 2000, "cost")
    assert decision.chosen == "mid"
    assert "too small" in {candidate.llm: candidate.why for candidate in decision.candidates}["tiny"]


def test_without_a_window_that_is_large_enough_the_largest_is_taken() -> None:
    decision = route("word " * 100_000, "cost")
    assert decision.chosen == "grand"
    assert "the largest is taken" in decision.reason


def test_without_a_good_enough_llm_the_best_is_taken() -> None:
    decision = Router(catalog()).route(ask(HARD, "small"))
    assert decision.chosen == "mid"
    assert "none is good enough" in decision.reason


@pytest.mark.parametrize(
    ("model", "fallbacks", "llms"),
    [
        ("tiny", None, ("tiny", "mid")),
        ("grand", ["tiny", "grand"], ("grand", "tiny")),
        ("tiny", [], ("tiny",)),
        ("large", None, ("grand",)),
    ],
)
def test_a_name_is_obeyed_and_fallbacks_default_to_the_catalogues(
    model: str, fallbacks: list[str] | None, llms: tuple[str, ...]
) -> None:
    open_all = {name: Vitals(breaker_open=True) for name in ("tiny", "mid", "grand")}
    assert Router(catalog(), open_all).route(ask(HARD, model, fallbacks=fallbacks)).llms == llms


@pytest.mark.parametrize(("model", "fallbacks"), [("c", None), ("tiny", ["c"]), ("", None)])
def test_an_unknown_model_is_refused(model: str, fallbacks: list[str] | None) -> None:
    with pytest.raises(ModelNotFound):
        Router(catalog()).route(ask(EASY, model, fallbacks=fallbacks))


@pytest.mark.parametrize(("default", "chosen"), [("small", "mid"), ("tiny", "tiny"), ("grand", "grand")])
def test_default_restricts_auto(default: str, chosen: str) -> None:
    assert Router(catalog(default=default)).route(ask(HARD)).chosen == chosen


def test_weights_of_the_catalogue_replace_the_strategys() -> None:
    routing = {"strategy": "balanced", "weights": {"balanced": {"quality": 1}}}
    assert Router(catalog(routing=routing)).route(ask(EASY)).chosen == "grand"


@given(*[st.floats(0, 1)] * 4, st.sampled_from(list(STRATEGIES.values())))
def test_a_score_is_between_0_and_1(cost: float, speed: float, quality: float, reliability: float, of: Weights) -> None:
    assert 0 <= score(of, cost=cost, speed=speed, quality=quality, reliability=reliability) <= 1


def test_parts_of_a_score() -> None:
    assert speed_of(Vitals()) == 0.5
    assert speed_of(Vitals(latency_s=5)) == 0.5
    assert speed_of(Vitals(tokens_per_s=256, time_to_first_token_s=4)) == 0.5
    assert reliability_of(Vitals()) == 1
    assert reliability_of(Vitals(attempts=1, failures=1)) == pytest.approx(5 / 6)
