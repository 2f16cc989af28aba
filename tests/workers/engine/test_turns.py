"""Messages reach models whose templates refuse a system turn, or two turns of one role in a row."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workers.engine.local_models import smollm_path
from workers.engine.model import Model
from workers.engine.turns import join_turns, shapes

SYSTEM = {"role": "system", "content": "Be brief."}
ONE, TWO = {"role": "user", "content": "One."}, {"role": "user", "content": "Two."}
SAID = {"role": "assistant", "content": "Said."}

_BODY = "{{ '<' + m['role'] + '>' + m['content'] + '\\n' }}"
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + _BODY + "{% endfor %}"
)
ALTERNATE = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}" + _BODY + "{% endfor %}"
)
IGNORES_SYSTEM = "{% for m in messages %}{% if m['role'] != 'system' %}" + _BODY + "{% endif %}{% endfor %}"
SLIPS = "{% for m in messages %}{{ m['content'] + (1 if m['role'] == 'system' else '') }}{% endfor %}"
AS_IT_IS = "{% for m in messages %}" + _BODY + "{% endfor %}"


@pytest.fixture
def open_model() -> Iterator[object]:
    made: list[Model] = []

    def open_with(template: str) -> Model:
        made.append(Model.load(Path(smollm_path()), chat_template=template))
        return made[-1]

    yield open_with
    for model in made:
        model.close()


@pytest.mark.parametrize(
    ("template", "messages", "prompt"),
    [
        pytest.param(AS_IT_IS, [SYSTEM, ONE, TWO], "<system>Be brief.\n<user>One.\n<user>Two.\n", id="as it is"),
        # vllm-project/vllm#6862, EricLBuehler/mistral.rs#506: Gemma's "System role not supported"
        pytest.param(NO_SYSTEM, [SYSTEM, ONE], "<user>Be brief.\n\nOne.\n", id="no system turn"),
        pytest.param(NO_SYSTEM, [SYSTEM, ONE, SAID, TWO], "<user>Be brief.\n\nOne.\n<assistant>Said.\n<user>Two.\n"),
        pytest.param(NO_SYSTEM, [SYSTEM], "<user>Be brief.\n", id="a system turn alone"),
        # Mistral's "Conversation roles must alternate"
        pytest.param(ALTERNATE, [ONE, TWO], "<user>One.\n\nTwo.\n", id="two user turns in a row"),
        pytest.param(
            ALTERNATE, [SYSTEM, ONE, TWO, SAID, TWO], "<user>Be brief.\n\nOne.\n\nTwo.\n<assistant>Said.\n<user>Two.\n"
        ),
        pytest.param(ALTERNATE, [ONE, SAID, SAID, TWO], "<user>One.\n<assistant>Said.\n\nSaid.\n<user>Two.\n"),
        pytest.param(IGNORES_SYSTEM, [SYSTEM, ONE], "<user>Be brief.\n\nOne.\n", id="left out without a word"),
        pytest.param(SLIPS, [SYSTEM, ONE], "Be brief.\n\nOne.", id="a slip of the template"),
        pytest.param(ALTERNATE, [{**ONE, "content": ""}, TWO], "<user>Two.\n", id="an empty content"),
    ],
)
def test_the_text_of_every_turn_reaches_the_model(
    open_model: object, template: str, messages: list[dict[str, str]], prompt: str
) -> None:
    model: Model = open_model(template)  # type: ignore[operator]
    assert b"".join(map(model.piece, model.prompt(messages))).decode() == prompt


def test_what_no_shape_mends_is_refused_with_the_template_s_sentence(open_model: object) -> None:
    model: Model = open_model(ALTERNATE)  # type: ignore[operator]
    with pytest.raises(ValueError, match="refuses the messages: Conversation roles must alternate"):
        model.prompt([SAID, ONE])


def test_messages_that_need_no_other_shape_have_one() -> None:
    messages = [ONE, SAID, TWO]
    assert list(shapes(messages)) == [messages]
    assert join_turns([]) == []
