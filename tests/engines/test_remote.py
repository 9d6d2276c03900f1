"""A real server of ours, and small ones that misbehave as real ones do."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.engines.conftest import ask
from tunesmith.core.errors import DataError, ServiceError, UsageError
from tunesmith.engines.auto import Auto
from tunesmith.engines.contract import Reply, complete, complete_many
from tunesmith.engines.remote import Remote


@contextmanager
def raw_server(answer: bytes) -> Iterator[str]:
    """Answers one connection with these bytes, then closes it."""
    listener = socket.create_server(("127.0.0.1", 0))

    def work() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):  # the client may have enough before the end
            connection.recv(65536)
            connection.sendall(answer)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        thread.join(5)
        listener.close()


def stream_of(*events: str) -> bytes:
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
    return (head + "".join(f"{event}\n\n" for event in events)).encode()


def reply_of(answer: bytes) -> Reply:
    with raw_server(answer) as address:
        return complete_many(lambda: Remote(address=address).open("m"), [ask("x")])[0]


def delta(text: str, finish: str | None = None) -> str:
    return "data: " + json.dumps(
        {"choices": [{"delta": {"content": text}, "finish_reason": finish}]}, ensure_ascii=False
    )


def test_the_model_is_the_first_the_server_lists(echo_server):
    engine = Auto().open(echo_server[0] + "/v1/")
    assert (engine.name, engine.model) == ("remote", "parrot")


def test_line_separators_inside_json_do_not_break_an_event():
    tricky = "a\u2028b\u0085c\x0bd"
    assert reply_of(stream_of(": comment", delta(tricky), delta("", "length"), "data: [DONE]")).text == tricky


def test_usage_may_come_with_the_end_after_it_or_never():
    usage = '"usage": {"prompt_tokens": 3, "completion_tokens": 4}'
    after = stream_of(delta("a"), delta("", "stop"), 'data: {"choices": [], ' + usage + "}", "data: [DONE]")
    with_end = stream_of(
        delta("a"), 'data: {"choices": [{"delta": {}, "finish_reason": "stop"}], ' + usage + "}", "data: [DONE]"
    )
    never = stream_of(delta("a"), delta("", "stop"), "data: [DONE]")
    assert reply_of(after) == reply_of(with_end) == Reply("a", "stop", 3, 4)
    assert reply_of(never) == Reply("a", "stop", 0, 0)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (stream_of(delta("half an ans")), "before it was whole"),
        (stream_of(delta("a"), 'data: {"error": {"message": "out of memory"}}'), "out of memory"),
        (stream_of("data: {not json"), "not JSON"),
        (b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\n\r\noops", "HTTP 500"),
        (b"HTTP/1.1 429 Too Many\r\nContent-Length: 0\r\n\r\n", "cannot answer now"),
        (b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n", "refuses the key"),
        (b"", "does not answer"),
        (stream_of("data: " + "x" * (1 << 21)), "longer than 1 MiB"),
    ],
)
def test_a_server_that_fails_is_a_service_error_in_one_line(answer, said):
    with pytest.raises(ServiceError, match=said) as caught:
        reply_of(answer)
    assert "\n" not in str(caught.value)


def test_a_request_the_server_refuses_is_a_data_error_with_its_words():
    body = b'{"error": {"message": "temperature: too hot"}}'
    refusal = b"HTTP/1.1 400 Bad\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with pytest.raises(DataError, match="temperature: too hot"):
        reply_of(refusal)


def test_nobody_there():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ServiceError, match=f"127.0.0.1:{port}: does not answer"):
        Auto().open(f"http://127.0.0.1:{port}")

    async def run() -> None:
        engine = Remote(address=f"http://127.0.0.1:{port}").open("m")
        assert not await engine.alive()
        with pytest.raises(ServiceError, match="Is the server running there"):
            await complete(engine, ask("x"))

    asyncio.run(run())


def test_addresses_and_keys_that_cannot_be(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(UsageError, match="must be an http address"):
        Remote(address="127.0.0.1:8000").open()
    with pytest.raises(UsageError, match="environment variable is not set. Got MY_KEY"):
        Remote(address="http://127.0.0.1:1", key_variable="MY_KEY").open()


def test_the_key_is_sent_and_proxies_do_not_stand_before_this_machine(monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret-1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    seen: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def work() -> None:
        connection, _ = listener.accept()
        with connection:
            seen.append(connection.recv(65536))
            connection.sendall(stream_of(delta("hi", "stop"), "data: [DONE]"))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    config = Remote(address=f"http://127.0.0.1:{listener.getsockname()[1]}", key_variable="MY_KEY")
    assert complete_many(lambda: config.open("m"), [ask("x")])[0].text == "hi"
    thread.join(5)
    listener.close()
    assert b"authorization: bearer secret-1" in seen[0].lower()
    assert "secret-1" not in str(config)
