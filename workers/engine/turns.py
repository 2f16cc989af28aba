"""The messages of a request in the shapes that chat templates take. Pure.

Templates differ in what they refuse: a system turn (Gemma, early Mistral), two turns of one role in a row. The request
is fine all the same, so its text is told in a shape that the template takes.
"""

from collections.abc import Iterator

Messages = list[dict[str, str]]

_BETWEEN = "\n\n"


def shapes(messages: Messages) -> Iterator[Messages]:
    """The messages as they are; with turns of one role in a row as one; with the system's text before the user's."""
    yield messages
    joined = join_turns(messages)
    if joined != messages:
        yield joined
    folded = join_turns(fold_system(messages))
    if folded != joined:
        yield folded


def join_turns(messages: Messages) -> Messages:
    """Turns of the same role in a row as one turn, with a blank line between their texts."""
    joined: Messages = []
    for message in messages:
        last = joined[-1] if joined else None
        if last is not None and last["role"] == message["role"]:
            texts = [text for text in (last["content"], message["content"]) if text]
            joined[-1] = {**last, "content": _BETWEEN.join(texts)}
        else:
            joined.append(message)
    return joined


def fold_system(messages: Messages) -> Messages:
    """Each system turn as a user's turn."""
    return [{**message, "role": "user"} if message["role"] == "system" else message for message in messages]


def lacks_system(messages: Messages, prompt: str) -> bool:
    """Whether a template has left the system's text out of a prompt without a word."""
    texts = (message["content"].strip() for message in messages if message["role"] == "system")
    return any(text not in prompt for text in texts)
