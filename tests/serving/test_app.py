"""The OpenAI API as the official client and the bytes on the wire see it."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import openai
import pytest

from tests.serving.conftest import Running, running, wait_until
from tunesmith.engines.echo import Echo

HELLO = [{"role": "user", "content": "alpha beta gamma delta"}]


def events(server: Running, path: str, body: dict) -> list[str]:
    """The data of all events of a stream, as they are on the wire."""
    with httpx2.stream(
        "POST", server.address + path, json={"model": "tiny", **body, "stream": True}, trust_env=False
    ) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        text = response.read().decode()
    assert text.endswith("\n\n")
    parts = text.split("\n\n")[:-1]
    assert all(part.startswith("data: ") and "\n" not in part for part in parts)
    return [part.removeprefix("data: ") for part in parts]


def test_silence_is_filled_with_comments(monkeypatch):
    monkeypatch.setattr("tunesmith.serving.answers.KEEP_ALIVE_SECONDS", 0.05)
    body = {"model": "tiny", "messages": HELLO, "stream": True}
    with running(Echo(delay_seconds=0.3).open("tiny")) as server:
        text = post(server, body).text
        said = [
            chunk.choices[0].delta.content for chunk in server.client().chat.completions.create(**body) if chunk.choices
        ]
    assert text.count(": keep-alive\n\n") > 8
    assert text.endswith("data: [DONE]\n\n")
    assert "".join(part or "" for part in said) == "alpha beta gamma delta"


def test_a_client_that_leaves_in_the_silence_frees_its_place(monkeypatch):
    monkeypatch.setattr("tunesmith.serving.answers.KEEP_ALIVE_SECONDS", 0.05)
    with running(Echo(delay_seconds=30).open("tiny")) as server:
        url = server.address + "/v1/chat/completions"
        body = {"model": "tiny", "messages": HELLO, "stream": True}
        with httpx2.stream("POST", url, json=body, trust_env=False) as response:
            pieces = response.iter_raw()  # forgotten, it would close the connection
            assert next(pieces) == b": keep-alive\n\n"
            wait_until(lambda: server.engine.running == 1)
        wait_until(lambda: server.engine.running == 0)


def post(server: Running, body: dict, path: str = "/v1/chat/completions", **headers: str) -> httpx2.Response:
    return httpx2.post(server.address + path, json=body, headers=headers, trust_env=False)


def test_the_openai_client_without_streaming(echo):
    made = echo.client().chat.completions.create(model="tiny", messages=HELLO)
    assert made.choices[0].message.content == "alpha beta gamma delta"
    assert made.choices[0].finish_reason == "stop"
    assert (made.usage.prompt_tokens, made.usage.completion_tokens, made.usage.total_tokens) == (4, 4, 8)
    assert made.object == "chat.completion"
    assert made.model == "tiny"


def test_the_openai_client_with_streaming(echo):
    stream = echo.client().chat.completions.create(model="tiny", messages=HELLO, stream=True)
    chunks = list(stream)
    assert [c.choices[0].delta.content for c in chunks[1:-1]] == ["alpha", " beta", " gamma", " delta"]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert len({c.id for c in chunks}) == 1


def test_both_ways_give_the_same_answer_of_a_real_model(tiny):
    client = tiny.client()
    wishes = {"model": "tiny", "messages": HELLO, "max_tokens": 40, "temperature": 0.8, "seed": 7}
    whole = client.chat.completions.create(**wishes).choices[0]
    chunks = list(client.chat.completions.create(**wishes, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.message.content
    assert whole.message.content
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason


def test_the_order_of_events_with_usage(echo):
    wish = {"messages": HELLO, "max_tokens": 2, "stream_options": {"include_usage": True}}
    *parts, done = events(echo, "/v1/chat/completions", wish)
    assert done == "[DONE]"
    chunks = [json.loads(part) for part in parts]
    assert [chunk["choices"][0]["delta"] if chunk["choices"] else None for chunk in chunks] == [
        {"role": "assistant", "content": ""}, {"content": "alpha"}, {"content": " beta"}, {}, None,
    ]  # fmt: skip
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None, None, None, "length"]
    assert [chunk["usage"] for chunk in chunks] == [None] * 4 + [
        {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}
    ]
    assert "usage" not in json.loads(events(echo, "/v1/chat/completions", {"messages": HELLO})[0])


def test_plain_completions(echo):
    client = echo.client()
    made = client.completions.create(model="tiny", prompt="one two three", max_tokens=2)
    assert (made.choices[0].text, made.choices[0].finish_reason, made.object) == (
        "one two",
        "length",
        "text_completion",
    )
    chunks = list(client.completions.create(model="tiny", prompt=["one two"], stream=True))
    assert "".join(c.choices[0].text for c in chunks) == "one two"
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_stop_strings_across_pieces(echo):
    client = echo.client()
    stops = {"stop": ["ta gam", "never"]}
    whole = client.chat.completions.create(model="tiny", messages=HELLO, **stops)
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("alpha be", "stop")
    chunks = list(client.chat.completions.create(model="tiny", messages=HELLO, stream=True, stop="ta gam"))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "alpha be"


def test_n_answers(tiny):
    client = tiny.client()
    wishes = {"model": "tiny", "messages": HELLO, "max_tokens": 12, "temperature": 1.0, "seed": 3, "n": 2}
    whole = client.chat.completions.create(**wishes)
    assert [choice.index for choice in whole.choices] == [0, 1]
    first, second = (choice.message.content for choice in whole.choices)
    assert first != second
    assert whole.usage.completion_tokens > 12
    texts = ["", ""]
    ends = []
    for chunk in client.chat.completions.create(**wishes, stream=True):
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        ends += [choice.index] if choice.finish_reason else []
    assert texts == [first, second]
    assert sorted(ends) == [0, 1]


def test_sixteen_clients_at_once_are_all_answered(tiny):
    """Together they also take less time than one after the other would: the engine batches."""

    def one(number: int) -> str:
        made = tiny.client().chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": f"client {number}"}], max_tokens=32
        )
        return made.choices[0].message.content

    alone = [one(number) for number in range(16)]
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(one, range(16)))
    assert together == alone
    assert tiny.admission.running == 0


def test_health_answers_while_the_engine_works(tiny):
    done = threading.Event()

    def work() -> None:
        tiny.client().chat.completions.create(model="tiny", messages=HELLO, max_tokens=300)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    waits = []
    while not done.is_set():
        started = time.monotonic()
        assert httpx2.get(f"{tiny.address}/health/live", trust_env=False).status_code == 200
        waits.append(time.monotonic() - started)
    thread.join()
    assert len(waits) > 2


def test_models_and_health(echo):
    client = echo.client()
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "tunesmith"
    with pytest.raises(openai.NotFoundError, match="known: tiny"):
        client.models.retrieve("other/one")
    ready = httpx2.get(f"{echo.address}/health/ready", trust_env=False)
    assert (ready.status_code, ready.json()["status"], ready.json()["running"]) == (200, "ready", 0)


@pytest.mark.parametrize(
    ("wish", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logprobs": True}, "logprobs"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"frequency_penalty": -1}, "frequency_penalty"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"top_k": 5}, "top_k"),
        ({"n": 9}, "n"),
        ({"n": 0}, "n"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": "x" * 201}, "stop"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 4096}, "max_tokens"),
        ({"max_completion_tokens": 4096}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]},
            "messages.0.content",
        ),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [{"id": "1"}]}]}, "messages.0.tool_calls"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ],
)
def test_what_is_not_supported_is_refused_and_named(echo, wish, param):
    response = post(echo, {"model": "tiny", "messages": HELLO, **wish})
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["param"] or "").startswith(param)
    assert error["type"] == "invalid_request_error"
    assert response.headers["x-request-id"]


def test_numbers_that_are_none(echo):
    for value in ("NaN", "Infinity", "1e999"):
        body = '{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "temperature": ' + value + "}"
        response = httpx2.post(
            f"{echo.address}/v1/chat/completions",
            content=body,
            headers={"content-type": "application/json"},
            trust_env=False,
        )
        assert response.status_code == 400, value


def test_fields_that_change_nothing_are_taken(echo):
    harmless = {
        "user": "u1", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "seed": 5, "n": None, "stop": None,
        "tools": [], "tool_choice": "auto", "logprobs": False, "response_format": {"type": "text"}, "logit_bias": {},
        "presence_penalty": 0, "frequency_penalty": 0.0, "parallel_tool_calls": True, "top_p": 1, "max_tokens": None,
    }  # fmt: skip
    assert post(echo, {"model": "tiny", "messages": HELLO, **harmless}).status_code == 200


def test_an_answer_of_the_client_can_be_sent_back(echo):
    client = echo.client()
    first = client.chat.completions.create(model="tiny", messages=HELLO).choices[0].message
    again = client.chat.completions.create(
        model="tiny",
        messages=[
            *HELLO,
            first,
            {"role": "user", "content": [{"type": "text", "text": "and "}, {"type": "text", "text": "now"}]},
        ],
    )
    assert again.choices[0].message.content == "and now"


def test_another_model_name_is_not_found(echo):
    with pytest.raises(openai.NotFoundError) as caught:
        echo.client().chat.completions.create(model="gpt-4", messages=HELLO)
    assert caught.value.body["code"] == "model_not_found"
    assert "known: tiny" in caught.value.body["message"]


def test_a_prompt_longer_than_the_context_is_a_bad_request_streamed_or_not(tiny):
    long = [{"role": "user", "content": "x" * 600}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="tokens"):
            tiny.client().chat.completions.create(model="tiny", messages=long, stream=stream)
    assert tiny.admission.running == 0


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/v1/chat/completions", 405), ("POST", "/v1/embeddings", 404)],
)
def test_routes_that_are_none_answer_with_an_error_body(echo, method, path, status):
    response = httpx2.request(method, echo.address + path, trust_env=False)
    assert response.status_code == status
    assert response.json()["error"]["message"]


def test_json_that_is_none(echo):
    for content in (b"{", b"[]", b"null", b"\xff\xfe"):
        response = httpx2.post(
            f"{echo.address}/v1/chat/completions",
            content=content,
            headers={"content-type": "application/json"},
            trust_env=False,
        )
        assert response.status_code == 400, content
        assert response.json()["error"]["type"] == "invalid_request_error"


def test_the_temperature_of_requests_that_name_none_is_the_servers():
    seen = []

    class Spy(type(Echo().open())):
        async def stream(self, request):
            seen.append(request.sampling)
            async for piece in super().stream(request):
                yield piece

    with running(Spy(Echo(), "tiny"), temperature=0.7) as server:
        server.client().chat.completions.create(model="tiny", messages=HELLO)
        server.client().chat.completions.create(
            model="tiny", messages=HELLO, temperature=0.0, max_completion_tokens=3, seed=-1
        )
    assert (seen[0].temperature, seen[0].max_tokens, seen[0].seed) == (0.7, 1024, None)
    assert (seen[1].temperature, seen[1].max_tokens, seen[1].seed) == (0.0, 3, 2**32 - 1)


def test_openapi_names_every_route(echo):
    schema = httpx2.get(f"{echo.address}/openapi.json", trust_env=False).json()
    assert set(schema["paths"]) == {
        "/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{name}", "/health/live", "/health/ready",
    }  # fmt: skip
    assert "messages" in schema["components"]["schemas"]["ChatRequest"]["required"]
