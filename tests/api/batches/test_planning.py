"""Templates, and planning rows: each costs and fits as the same job alone would."""

from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.auth import Caller
from api.batches.forms import read_form
from api.batches.intake import read_prompts
from api.batches.planning import Marks, Planner, distinct_sizes
from api.batches.problems import Problems
from api.batches.records import Dialect, Group
from api.batches.rows import BatchDraft
from api.batches.templates import TemplateProblem, compile_template
from api.schemas.requests import JobRequest
from api.submission import plan_job
from models.catalog import load_catalog
from models.errors import ContextLengthExceeded, ModelNotFound, ValidationFailed
from models.routing import Router
from tests.api.conftest import CATALOG

COLUMNS = ["id", "text", "other"]
LLMS = load_catalog(CATALOG)
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40)


def planner(cells: list[list[str]], problems: Problems | None = None, **fields: str) -> tuple[Planner, Problems]:
    problems = problems or Problems()
    form = read_form({"prompt": "Say {{text}}", **fields})
    group = Group(cells, list(range(2, len(cells) + 2)))
    made = Planner(form, read_prompts(form, COLUMNS, problems), group, LLMS, Router(LLMS), problems)
    return made, problems


@pytest.mark.parametrize(
    ("template", "rendered"),
    [
        ("a {{text}} b", "a T b"),
        ("{{ text }}{{other}}{{text}}", "TOT"),
        ('{"x": {{{text}}}}', '{"x": {T}}'),
        ("{{{{text}} and {{{{{{text}}", "{{text}} and {{T"),
        ("no column", "no column"),
        ("{{with a space}}", "S"),
        ("{% for x in y %}{text}{{text}}", "{% for x in y %}{text}T"),
    ],
)
def test_a_template_shows_columns_and_does_nothing_else(template: str, rendered: str) -> None:
    compiled = compile_template(template, ["text", "other", "with a space"])
    assert compiled.render(["T", "O", "S"]) == rendered
    parts = compiled.as_stored()
    assert rendered == "".join(str(part.get("text", "TOS"[int(part.get("column", 0))])) for part in parts)


def test_the_cells_of_a_row_are_never_templates_themselves() -> None:
    assert compile_template("{{text}}", ["text", "x"]).render(["{{x}}", "secret"]) == "{{x}}"


@pytest.mark.parametrize("template", ["{{nothing}}", "{{", "a {{text", "{{text}", "{{}}", "{{text.x}}"])
def test_what_is_no_column_is_said_at_once(template: str) -> None:
    with pytest.raises(TemplateProblem):
        compile_template(template, ["text"])


@given(
    texts=st.lists(TEXTS, min_size=1, max_size=5),
    system=st.none() | TEXTS.filter(lambda text: "{{" not in text and text != ""),
    max_tokens=st.integers(1, 900),
    form=st.sampled_from(["", '{"type": "json_object"}']),
)
def test_a_row_reserves_what_the_same_job_alone_would(
    texts: list[str], system: str | None, max_tokens: int, form: str
) -> None:
    fields = {"model": "large", "max_tokens": str(max_tokens), "response_format": form, "system": system or ""}
    rows = [["1", text, ""] for text in texts]
    made, problems = planner(rows, None, **fields)
    made.plan(Group(rows, list(range(len(rows)))), None)
    messages = [{"role": "system", "content": system}] if system else []
    alone = Decimal(0)
    for text in texts:
        request: dict[str, Any] = {"messages": [*messages, {"role": "user", "content": f"Say {text}"}]}
        request |= {"model": "large", "max_tokens": max_tokens}
        if form:
            request["response_format"] = {"type": "json_object"}
        caller = Caller(UUID(int=1), UUID(int=2), frozenset())
        alone += plan_job(JobRequest.model_validate(request), caller, LLMS, None)["reserved_usd"]
    assert made.totals.reserved == int(alone.scaleb(6))
    assert made.totals.prompt_bytes == sum(len(f"Say {text}{system or ''}".encode()) for text in texts)
    blank = sum(not text.strip() for text in texts)
    assert problems.total == blank


def test_what_certainly_fits_no_llm_of_the_route_is_named_and_nothing_else() -> None:
    rows = [["1", "x" * (128 * 900 - 4), ""], ["2", "x" * (128 * 900), ""], ["3", "x", ""]]
    made, problems = planner(rows, model="alone", max_tokens="100")
    assert made.plan(Group(rows, [2, 3, 4]), None) is None
    (problem,) = problems.as_error().problems
    assert problem.line == 3
    assert "at least 901 tokens" in problem.message


def test_a_batch_that_can_fit_no_llm_or_names_none_is_refused_at_once() -> None:
    with pytest.raises(ContextLengthExceeded):
        planner([["1", "x", ""]], model="alone", max_tokens="1000")
    with pytest.raises(ModelNotFound):
        planner([["1", "x", ""]], model="nothing")


def test_a_prompt_is_empty_when_all_that_it_shows_is() -> None:
    rows = [["1", "", "x"], ["2", " \n", ""], ["3", "", ""], ["4", "x", ""]]
    made, problems = planner(rows, prompt="{{text}}{{other}}")
    made.plan(Group(rows, [2, 3, 4, 5]), None)
    assert [problem.line for problem in problems.as_error().problems] == [3, 4]


def test_rows_without_anything_are_passed_over() -> None:
    rows = [["", "", ""], ["1", "x", ""], ["", "", ""]]
    made, problems = planner(rows)
    made.plan(Group(rows, [2, 3, 4]), None)
    assert made.totals.rows == 1
    assert not problems


def test_repeated_ids_are_found_however_far_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.batches.planning._PART", 100)
    marks, problems = Marks(), Problems()
    ids = [f"id{number}" for number in range(1000)]
    ids[700] = ids[900] = ids[3]
    ids[999] = ids[5]
    for start in range(0, 1000, 250):
        marks.take(ids[start : start + 250], range(start + 2, start + 252))
    marks.note_repeated(problems)
    told = [(problem.line, problem.message.rpartition(" ")[2]) for problem in problems.as_error().problems]
    assert told == [(702, "5."), (902, "5."), (1001, "7.")]


def test_equal_requests_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.batches.planning._PART", 2)
    rows = [[str(number), text, ""] for number, text in enumerate(["a", "bb", "a", "ccc", "bb", "a"])]
    made, _ = planner(rows, dedupe="true")
    made.plan(Group(rows, [2, 3, 4, 5, 6, 7]), None)
    assert sorted(distinct_sizes(made.totals)) == [5, 6, 7]


def test_a_draft_has_the_route_and_the_shared_request_and_no_prompt() -> None:
    made, _ = planner([["1", "x", ""]], model="tiny", system="Be {{{{brief", temperature="0.5", priority="low")
    draft = BatchDraft(UUID(int=1), UUID(int=2), "/v1/chat/completions", "24h", 86_400)
    made.complete(draft, COLUMNS, Dialect())
    assert draft.request == {
        "max_tokens": 256,
        "temperature": 0.5,
        "messages": [{"role": "system", "content": "Be {{brief"}],
    }
    assert draft.template == [{"text": "Say "}, {"column": 1}]
    assert [(way["route"], way["tier"], way["queue"]) for way in draft.routes] == [(["tiny", "wide"], "small", "small")]
    assert (draft.model, draft.priority) == ("tiny", 2)


def test_everything_that_is_wrong_with_a_form_is_said_together() -> None:
    wrong = {
        "max_tokens": "many",
        "temperature": "9",
        "stop": "[1]",
        "seed": "1.5",
        "response_format": "{",
        "metadata": "[1]",
        "completion_window": "1y",
        "max_parallel": "0",
        "dedupe": "maybe",
        "delimiter": "ab",
        "format": "ods",
        "colour": "red",
        "max_cost_usd": "much",
        "priority": "urgent",
    }
    with pytest.raises(ValidationFailed) as caught:
        read_form(wrong)
    assert {problem.field.partition(".")[0] for problem in caught.value.problems} == set(wrong)
