"""What every engine promises, for every choice on the shelf."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing

import pytest

from tests.engines.conftest import ask, gguf_file, wait_until
from tunesmith.core.errors import DataError, ServiceError
from tunesmith.engines import EngineConfig
from tunesmith.engines.auto import Auto
from tunesmith.engines.contract import Piece, Reply, Request, Sampling, complete, complete_many
from tunesmith.engines.echo import Echo
from tunesmith.engines.llama_cpp import LlamaCpp
from tunesmith.engines.remote import Remote
from tunesmith.engines.transformers import Transformers

KINDS = ["echo", "transformers", "llama_cpp", "remote"]
LONG = ask("Tell a long story. " + " ".join(f"w{n}" for n in range(20)), max_tokens=200)


@pytest.fixture(params=KINDS)
def opened(request, slow_model, echo_server):
    """(a function that opens the engine, a function that says how many requests it holds)."""
    if request.param == "echo":
        return lambda: Echo(delay_seconds=0.03).open("echo"), lambda engine: engine.running
    if request.param == "transformers":
        config = Transformers(precision="fp32", threads=1)
        return lambda: config.open(str(slow_model)), lambda engine: engine.busy_rows
    if request.param == "llama_cpp":
        config = LlamaCpp(threads=1, slots=2, context=512)
        return lambda: config.open(str(gguf_file())), lambda engine: engine.busy_slots()
    address, server_engine = echo_server
    return lambda: Remote(address=address).open(""), lambda engine: server_engine.running


def test_the_shelf_is_complete():
    kinds = {config.model_fields["kind"].default for config in (Auto, Transformers, LlamaCpp, Remote, Echo)}
    assert kinds == {"auto", *KINDS}
    assert str(EngineConfig).count("engines.") == len(kinds)


def test_a_stream_ends_with_one_last_piece_that_has_the_counts(opened):
    async def run() -> list[Piece]:
        engine = opened[0]()
        try:
            return [piece async for piece in engine.stream(LONG)]
        finally:
            await engine.close()

    *pieces, last = asyncio.run(run())
    assert all(piece.finish is None for piece in pieces)
    assert last.finish in {"stop", "length"}
    assert last.completion_tokens > 1
    assert last.prompt_tokens > 1
    assert all(piece.text for piece in pieces)


def test_many_answers_come_in_the_order_of_their_questions(opened):
    requests = [ask(f"question number {n} " + "x" * n, max_tokens=4 + n) for n in range(4)]
    counted: list[int] = []
    together = complete_many(opened[0], requests, done=counted.append)
    alone = [complete_many(opened[0], [request], at_once=1)[0] for request in requests]
    assert [reply.text for reply in together] == [reply.text for reply in alone]
    assert counted == [1] * 4


def test_max_tokens_and_stop_strings_end_an_answer(opened):
    async def run() -> tuple[Reply, Reply, Reply]:
        engine = opened[0]()
        try:
            whole = await complete(engine, ask("one two three four five six", max_tokens=12))
            short = await complete(engine, ask("one two three four five six", max_tokens=2))
            stop = whole.text[3:6]
            stopped = await complete(engine, ask("one two three four five six", max_tokens=12, stop=(stop,)))
        finally:
            await engine.close()
        assert stopped.text == whole.text[: whole.text.find(stop)]
        return whole, short, stopped

    whole, short, stopped = asyncio.run(run())
    assert short.finish == "length"
    assert short.completion_tokens == 2
    assert whole.text.startswith(short.text.rstrip("\ufffd"))
    assert stopped.finish == "stop"


def test_plain_text_is_continued_without_the_template(opened):
    async def run() -> tuple[Reply, Reply]:
        engine = opened[0]()
        try:
            plain = Request(prompt="one two three", sampling=Sampling(max_tokens=4))
            return await complete(engine, plain), await complete(engine, ask("one two three", max_tokens=4))
        finally:
            await engine.close()

    plain, chat = asyncio.run(run())
    assert plain.completion_tokens >= 1
    assert plain.prompt_tokens <= chat.prompt_tokens


@pytest.mark.parametrize("pieces_first", [0, 2])
def test_closing_a_stream_frees_the_engine_within_a_second(opened, pieces_first):
    async def run() -> float:
        engine = opened[0]()
        try:
            await complete(engine, ask("warm up", max_tokens=1))
            started = asyncio.Event()

            async def read() -> None:
                async with aclosing(engine.stream(LONG)) as pieces:
                    if not pieces_first:
                        started.set()
                    count = 0
                    async for _ in pieces:
                        count += 1
                        if count == pieces_first:
                            started.set()

            task = asyncio.create_task(read())
            await asyncio.wait_for(started.wait(), 20)
            await wait_until(lambda: opened[1](engine) > 0, 5)
            task.cancel()
            left = time.monotonic()
            await wait_until(lambda: opened[1](engine) == 0, 5)
            return time.monotonic() - left
        finally:
            await engine.close()

    assert asyncio.run(run()) < 1


def test_a_closed_engine_says_so_and_closes_twice(opened):
    async def run() -> None:
        engine = opened[0]()
        assert await engine.alive()
        await engine.close()
        await engine.close()
        if engine.name in {"transformers", "llama_cpp"}:
            assert not await engine.alive()
            with pytest.raises(ServiceError):
                await complete(engine, ask("anybody there?"))

    asyncio.run(run())


@pytest.mark.parametrize("kind", ["transformers", "llama_cpp"])
def test_a_question_longer_than_the_context_is_refused(kind, tiny_model):
    config = (
        Transformers(precision="fp32", context=64, threads=1)
        if kind == "transformers"
        else LlamaCpp(context=64, threads=1)
    )
    model = str(tiny_model if kind == "transformers" else gguf_file())
    with pytest.raises(DataError, match=r"\d+"):
        complete_many(lambda: config.open(model), [ask("far too long " * 100)])
