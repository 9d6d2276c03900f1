"""The GGUF file that comes with the embedded model, in llama.cpp."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing

import pytest

from tests.engines.conftest import ask, gguf_file, wait_until
from tunesmith.core.errors import DataError, ModelError, ServiceError
from tunesmith.core.examples import Message
from tunesmith.engines.contract import Request, Sampling, complete
from tunesmith.engines.llama_cpp import LlamaCpp
from tunesmith.models.load import Found


@pytest.fixture(scope="module")
def engine():
    opened = LlamaCpp(threads=1, slots=2, context=256).open(str(gguf_file()))
    yield opened
    asyncio.run(opened.close())


def test_special_tokens_are_read_as_such_and_none_is_added(engine):
    assert engine.token_ids("<|im_start|>user") == [1, 4093]
    assert engine.token_ids("") == []


def test_the_template_of_the_file_renders_with_the_beginning_of_the_answer(engine):
    text = engine.render(
        [Message("system", "Be brief."), Message("user", "hi"), Message("assistant", "yes?"), Message("user", "ok")]
    )
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\nyes?<|im_end|>\n<|im_start|>user\nok<|im_end|>\n<|im_start|>assistant\n"
    )
    with pytest.raises(DataError, match="must not be empty"):
        engine.render([])


def test_a_seed_repeats_an_answer_and_another_changes_it(engine):
    async def run() -> list[str]:
        drawn = [ask("Tell a story", max_tokens=12, temperature=1.0, top_p=0.95, seed=seed) for seed in (1, 1, 2)]
        return [(await complete(engine, request)).text for request in drawn]

    first, again, other = asyncio.run(run())
    assert first == again != other


def test_context_is_what_was_asked_for_each_slot(engine):
    assert engine.context == 256
    assert engine.at_once == 2


def test_others_on_this_machine_need_the_key(engine):
    from tunesmith.engines.remote import Upstream

    with pytest.raises(ServiceError, match="refuses the key"):
        Upstream(engine._upstream.address, "guess").ask("POST", "/tokenize", {"content": "x"})


def test_a_prompt_is_not_read_to_its_end_for_a_client_that_left_while_another_slot_talks():
    """llama.cpp by itself looks for the client only when nothing else has happened for a second."""

    async def run() -> tuple[float, float]:
        engine = LlamaCpp(threads=1, slots=2, context=1024, reuse_prompt=False).open(str(gguf_file()))
        long = ask(" ".join(f"{n}" for n in range(200)), max_tokens=1)
        try:
            started = time.monotonic()
            await complete(engine, long)
            reading = time.monotonic() - started
            async with aclosing(engine.stream(ask("Tell a long story", max_tokens=900))) as talker:
                await anext(talker)
                listening = asyncio.create_task(_listen(talker))
                leaver = asyncio.create_task(complete(engine, long))
                await wait_until(lambda: engine.busy_slots() == 2, 10)
                leaver.cancel()
                started = time.monotonic()
                await wait_until(lambda: engine.busy_slots() == 1, 60)
                freed = time.monotonic() - started
                listening.cancel()
                await asyncio.gather(leaver, listening, return_exceptions=True)
        finally:
            await engine.close()
        return reading, freed

    reading, freed = asyncio.run(run())
    assert freed < reading / 2


async def _listen(pieces) -> None:
    async for _ in pieces:
        pass


def test_what_is_no_gguf_file_is_refused_in_one_line(tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelError, match=r"broken\.gguf: cannot be loaded by llama\.cpp"):
        LlamaCpp().open(str(broken))
    with pytest.raises(ModelError, match="has no GGUF file"):
        LlamaCpp().open(Found("mine", tmp_path))


def test_without_a_chat_template_none_is_guessed(tmp_path):
    import subprocess
    import sys
    from pathlib import Path

    bare = tmp_path / "bare.gguf"
    tool = Path(sys.executable).with_name("gguf-new-metadata")
    words = [tool, "--force", "--remove-metadata", "tokenizer.chat_template", gguf_file(), bare]
    subprocess.run(words, check=True, capture_output=True)

    async def run() -> str:
        opened = LlamaCpp(threads=1, slots=1, context=128).open(Found("bare", tmp_path, gguf=bare))
        try:
            with pytest.raises(DataError, match="its GGUF file has no chat template"):
                await complete(opened, ask("hi"))
            return (await complete(opened, Request((), prompt="The capital of France is", sampling=Sampling(4)))).text
        finally:
            await opened.close()

    assert "Paris" in asyncio.run(run())
