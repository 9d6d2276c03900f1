"""The client is gone: the place and the engine are free within a second (R6), and the queue is bounded (R5)."""

from __future__ import annotations

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from tests.serving.conftest import Running, running, wait_until
from tunesmith.engines.echo import Echo
from tunesmith.engines.llama_cpp import LlamaCpp
from tunesmith.engines.transformers import Transformers

WORDS = " ".join(["word"] * 10)  # few, so that reading the prompt takes no time on a busy machine


def connect(server: Running, *, stream: bool, words: str = WORDS, **wish: object) -> socket.socket:
    """A client that has sent its request and has not read anything."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": words}], "stream": stream, **wish}
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    client = socket.create_connection(("127.0.0.1", server.port))
    client.sendall(head.encode() + content)
    return client


@pytest.fixture(params=["echo", "transformers", "llama_cpp"])
def server(request, slow_model):
    if request.param == "echo":
        engine = Echo(delay_seconds=0.2).open("tiny")
        busy = lambda: engine.running  # noqa: E731
    elif request.param == "transformers":
        engine = Transformers(precision="fp32", threads=1, rows=2).open(str(slow_model))
        busy = lambda: engine.busy_rows  # noqa: E731
    else:
        from tunesmith.models import embedded

        engine = LlamaCpp(threads=1, slots=2, context=512).open(str(embedded._gguf()))
        busy = engine.busy_slots
    with running(engine, running=1) as made:
        made.busy = busy
        yield made


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("early", [True, False], ids=["before the first token", "after it"])
def test_killing_a_client_frees_its_place_and_the_engine(server, stream, early):
    client = connect(server, stream=stream, max_tokens=400)
    wait_until(lambda: server.admission.running == 1 and server.busy() == 1)
    if not early and stream:
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
    client.close()
    assert wait_until(lambda: server.admission.running == 0) < 1
    assert wait_until(lambda: server.busy() == 0) < 1
    said = server.client().chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hi"}], max_tokens=1
    )
    assert said.usage.completion_tokens == 1


def test_a_client_that_leaves_the_queue_is_forgotten(slow_echo):
    running_now = [connect(slow_echo, stream=True) for _ in range(2)]
    wait_until(lambda: slow_echo.admission.running == 2)
    waiting = connect(slow_echo, stream=False)
    wait_until(lambda: slow_echo.admission.waiting == 1)
    waiting.close()
    assert wait_until(lambda: slow_echo.admission.waiting == 0) < 1
    for client in running_now:
        client.close()
    wait_until(lambda: slow_echo.admission.running == 0)
    assert slow_echo.engine.running == 0


def test_a_full_queue_answers_429_with_when_to_come_back(slow_echo):
    clients = [connect(slow_echo, stream=stream) for stream in (True, False)]
    wait_until(lambda: slow_echo.admission.running == 2)
    clients.append(connect(slow_echo, stream=True))
    wait_until(lambda: slow_echo.admission.waiting == 1)
    for stream in (True, False):
        with pytest.raises(openai.RateLimitError) as caught:
            slow_echo.client().chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "x"}], stream=stream
            )
        assert caught.value.body["code"] == "queue_full"
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
    for client in clients:
        client.close()
    wait_until(lambda: slow_echo.admission.running == 0 and slow_echo.admission.waiting == 0)


def test_the_queue_is_bounded_by_characters_too(slow_echo):
    clients = [connect(slow_echo, stream=True) for _ in range(2)]
    wait_until(lambda: slow_echo.admission.running == 2)
    with pytest.raises(openai.RateLimitError):
        slow_echo.client().chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x" * 2001}])
    for client in clients:
        client.close()
    wait_until(lambda: slow_echo.admission.running == 0)


def test_who_waits_is_answered_in_turn(slow_echo):
    def one(number: int) -> str:
        said = slow_echo.client().chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": f"client {number}"}]
        )
        return said.choices[0].message.content

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(one, range(3))) == ["client 0", "client 1", "client 2"]


def test_an_answer_that_takes_too_long_ends_with_an_error():
    with running(Echo(delay_seconds=0.05).open("tiny"), answer_seconds=0.3) as server:
        with pytest.raises(openai.InternalServerError, match=r"after 0\.3 s"):
            server.client().chat.completions.create(model="tiny", messages=[{"role": "user", "content": WORDS}])
        stream = server.client().chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": WORDS}], stream=True
        )
        with pytest.raises(openai.APIError, match=r"after 0\.3 s"):
            list(stream)
        assert server.engine.running == 0


def test_an_engine_that_dies_makes_the_server_unready_and_nobody_hangs(slow_model):
    import asyncio

    import httpx2

    engine = Transformers(precision="fp32", threads=1).open(str(slow_model))
    with running(engine) as server:
        failed = []

        def ask() -> None:
            try:
                server.client().chat.completions.create(
                    model="tiny", messages=[{"role": "user", "content": "x"}], max_tokens=400
                )
            except openai.APIStatusError as error:
                failed.append(error.status_code)

        thread = threading.Thread(target=ask)
        thread.start()
        wait_until(lambda: engine.busy_rows == 1)
        asyncio.run(engine.close())
        thread.join(5)
        assert failed == [503]
        ready = httpx2.get(f"{server.address}/health/ready", trust_env=False)
        assert (ready.status_code, ready.json()["status"]) == (503, "engine dead")
