"""What a program with OpenAI's own client does with Headrace, unmodified, on the newest client and on 1.x.

    python tests/openai_client.py BASE_URL API_KEY      (with any version of `openai`, and nothing else)

The catalogue has an LLM `echo`, which repeats the prompt, `slow`, which takes a minute, `broken`, which refuses, and
`vectors`, which makes embeddings.
"""

import io
import json
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import openai

USER: Final = "user"
Line = dict[str, Any]  # Any: JSON


def main(base_url: str, api_key: str) -> None:
    """Run everything, and say so."""
    client = openai.OpenAI(base_url=base_url, api_key=api_key)
    for step in STEPS:
        step(client)
        print("ok", step.__name__, flush=True)
    print(f"ok: openai {openai.__version__}")


def lists_models(client: openai.OpenAI) -> None:
    """Models are listed and read."""
    assert {"echo", "auto"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("echo").owned_by == "mock"


def chats(client: openai.OpenAI) -> None:
    """A chat completion is answered."""
    answer = client.chat.completions.create(
        model="echo", messages=[{"role": USER, "content": "one two three"}], max_completion_tokens=20, temperature=0
    )
    assert answer.id.startswith("chatcmpl-")
    assert answer.choices[0].message.content == "one two three"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "echo"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0
    raw = client.chat.completions.with_raw_response.create(model="echo", messages=[{"role": USER, "content": "x"}])
    assert raw.headers["x-headrace-job-id"].startswith("job_")


def sends_answers_back(client: openai.OpenAI) -> None:
    """The client's own message is taken as history, and so is what it may add to a request that changes nothing."""
    history: Any = [{"role": USER, "content": "one", "name": "bob"}]  # Any: the client's union of message types
    for _ in range(2):
        answer = client.chat.completions.create(model="echo", messages=history)
        history += [answer.choices[0].message, {"role": USER, "content": [{"type": "text", "text": "two"}]}]
    parsed = client.chat.completions.create(
        model="echo",
        messages=[*history, history[1].model_dump(), {"role": USER, "content": '{"a": 1}'}],
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
        extra_body={"tools": [], "stream_options": {"include_usage": None}, "top_k": 3},
        n=1,
        logprobs=False,
        parallel_tool_calls=False,
        store=True,
        service_tier="auto",
        user="bob",
    )
    assert parsed.choices[0].message.content == '{"a": 1}'


def streams(client: openai.OpenAI) -> None:
    """A chat completion comes in pieces, and at last what it used."""
    chunks = list(
        client.chat.completions.create(
            model="echo",
            messages=[{"role": USER, "content": "one two three four"}],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    said = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(said) == "one two three four"
    assert len([piece for piece in said if piece]) > 1
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert not chunks[-1].choices
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 0


def embeds(client: openai.OpenAI) -> None:
    """Texts become vectors, the same whatever their encoding on the way."""
    answer = client.embeddings.create(model="vectors", input=["one", "two"])
    assert [entry.index for entry in answer.data] == [0, 1]
    assert len(answer.data[0].embedding) == 8
    plain = client.embeddings.create(model="vectors", input="one", encoding_format="float").data[0].embedding
    assert all(abs(a - b) < 1e-6 for a, b in zip(plain, answer.data[0].embedding, strict=True))


def keeps_files(client: openai.OpenAI) -> None:
    """A file is uploaded, listed, read and deleted."""
    content = b'{"a": 1}\n' * 300_000
    file = client.files.create(file=("large.jsonl", content), purpose="batch")
    assert client.files.wait_for_processing(file.id).status == "processed"
    assert file.bytes == len(content)
    assert client.files.content(file.id).read() == content
    assert file.id in {listed.id for listed in client.files.list(limit=1)}
    assert client.files.retrieve(file.id).filename == "large.jsonl"
    assert client.files.delete(file.id).deleted
    try:
        client.files.retrieve(file.id)
    except openai.NotFoundError:
        return
    raise AssertionError("a deleted file is still there")


def runs_batches(client: openai.OpenAI) -> None:
    """A batch of chat completions and one of embeddings run; what failed is in the error file."""
    chat = [request(f"r{number}", "echo", f"row {number}") for number in range(20)]
    foreign = request("foreign", "echo", "x")
    foreign["body"]["colour"] = "red"
    batch = _run(client, "/v1/chat/completions", [foreign, *chat, request("bad", "broken", "x")])
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (22, 20, 2)
    answers = {line["custom_id"]: line["response"]["body"] for line in lines(client, batch.output_file_id)}
    said = {custom_id: body["choices"][0]["message"]["content"] for custom_id, body in answers.items()}
    assert said == {f"r{number}": f"row {number}" for number in range(20)}
    refused, error = lines(client, batch.error_file_id)
    assert (refused["custom_id"], refused["response"]["status_code"]) == ("foreign", 422)
    assert refused["response"]["body"]["error"]["param"] == "colour"
    assert error["custom_id"] == "bad"
    assert error["response"]["status_code"] == 400
    assert error["response"]["body"]["error"]["code"] == "provider_rejected"
    size = len(client.files.content(batch.output_file_id).read())
    _until(lambda: client.files.retrieve(batch.output_file_id).bytes == size)
    vectors = [
        {**request(f"v{number}", "", ""), "url": "/v1/embeddings", "body": {"model": "vectors", "input": f"t{number}"}}
        for number in range(3)
    ]
    batch = _run(client, "/v1/embeddings", vectors)
    found = lines(client, batch.output_file_id)
    assert [len(line["response"]["body"]["data"][0]["embedding"]) for line in found] == [8, 8, 8]
    assert batch.id in {listed.id for listed in client.batches.list(limit=1)}


def cancels_a_batch(client: openai.OpenAI) -> None:
    """A batch is cancelled; its rows are in the error file as not run. A file with problems makes a failed batch."""
    file = client.files.create(file=_jsonl([request(f"s{n}", "slow", "x") for n in range(20)]), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={"of": "tests"},
    )
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    batch = _wait(client, batch.id)
    assert (batch.status, batch.metadata) == ("cancelled", {"of": "tests"})
    assert {line["error"]["code"] for line in lines(client, batch.error_file_id)} == {"batch_cancelled"}
    wrong = [request("twice", "echo", "x"), request("twice", "echo", "x"), {"custom_id": "no body"}]
    batch = _run(client, "/v1/chat/completions", wrong)
    assert batch.status == "failed"
    assert batch.errors is not None
    assert {error.line for error in batch.errors.data or ()} == {2, 3}


def maps_errors(client: openai.OpenAI) -> None:
    """Refusals are the client's own exceptions."""
    hello: Any = [{"role": USER, "content": "hello"}]  # Any: the client's union of message types
    expected: list[tuple[type[openai.APIStatusError], Any]] = [  # Any: a lambda
        (openai.NotFoundError, lambda: client.chat.completions.create(model="none", messages=hello)),
        (openai.BadRequestError, lambda: client.chat.completions.create(model="broken", messages=hello)),
        (
            openai.UnprocessableEntityError,
            lambda: client.chat.completions.create(model="echo", messages=hello, temperature=9),
        ),
        (openai.NotFoundError, lambda: client.batches.retrieve("batch_" + "0" * 32)),
        (openai.NotFoundError, lambda: client.embeddings.create(model="echo", input="x")),
        (openai.AuthenticationError, client.with_options(api_key="hr_wrong").models.list),
    ]
    for kind, call in expected:
        try:
            call()
        except kind as error:
            found = error.body
        else:
            found = None
        assert found, f"no {kind.__name__}"


def request(custom_id: str, model: str, prompt: str) -> Line:
    """A line of a batch's input."""
    body = {"model": model, "messages": [{"role": USER, "content": prompt}], "max_tokens": 20}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def lines(client: openai.OpenAI, file_id: str | None) -> list[Line]:
    """The lines of an output or error file."""
    assert file_id is not None
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


def _jsonl(requests: list[Line]) -> io.BytesIO:
    file = io.BytesIO("\n".join(map(json.dumps, requests)).encode())
    file.name = "requests.jsonl"
    return file


def _run(client: openai.OpenAI, endpoint: Any, requests: list[Line]) -> Any:  # Any: the client's Batch and literals
    file = client.files.create(file=_jsonl(requests), purpose="batch")
    return _wait(client, client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h").id)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, condition
        time.sleep(0.1)


def _wait(client: openai.OpenAI, batch_id: str) -> Any:  # Any: the client's Batch
    batches = [client.batches.retrieve(batch_id)]

    def has_ended() -> bool:
        batches.append(client.batches.retrieve(batch_id))
        return batches[-1].status in ("completed", "failed", "expired", "cancelled")

    _until(has_ended)
    return batches[-1]


STEPS = (
    lists_models,
    chats,
    sends_answers_back,
    streams,
    embeds,
    keeps_files,
    runs_batches,
    cancels_a_batch,
    maps_errors,
)


if __name__ == "__main__":
    main(*sys.argv[1:])
