"""What every engine does: messages in, text out in pieces. Knows no HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal, Protocol

from tunesmith.core.examples import Message

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens; temperature 0 is greedy."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """A conversation to continue (through the model's chat template) or, where `prompt` is set, plain text."""

    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer. The last piece has `finish` and the token counts; its text may be empty."""

    text: str
    finish: Finish | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """A whole answer."""

    text: str
    finish: Finish
    prompt_tokens: int
    completion_tokens: int


class Engine(Protocol):
    """A loaded model. Closing the generator of `stream` frees what the request held, at once."""

    name: str
    model: str
    at_once: int
    """How many requests it answers side by side; more of them wait inside."""

    def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Answer one request piece by piece. Raises DataError for a request it cannot take, ServiceError when dead."""
        ...

    async def alive(self) -> bool:
        """Whether requests can be answered now."""
        ...

    async def close(self) -> None:
        """Free the model; may be called twice."""
        ...


async def complete(engine: Engine, request: Request) -> Reply:
    """The whole answer to one request. Cancelling the caller frees what the request held."""
    texts: list[str] = []
    async with aclosing(engine.stream(request)) as pieces:
        async for piece in pieces:
            texts.append(piece.text)
            if piece.finish:
                return Reply("".join(texts), piece.finish, piece.prompt_tokens, piece.completion_tokens)
    raise AssertionError(f"{engine.name} ended a stream without its last piece")


def complete_many(
    open_engine: Callable[[], Engine],
    requests: Sequence[Request],
    *,
    at_once: int | None = None,
    done: Callable[[int], object] | None = None,
) -> list[Reply]:
    """Open an engine, answer all requests (in their order, `at_once` in flight), close it.

    `done` is called with 1 after each answer. The first error ends all. Must not be called from a running event loop.
    """

    async def run() -> list[Reply]:
        engine = open_engine()
        gate = asyncio.Semaphore(at_once or engine.at_once)

        async def one(request: Request) -> Reply:
            async with gate:
                reply = await complete(engine, request)
            if done:
                done(1)
            return reply

        tasks = [asyncio.create_task(one(request)) for request in requests]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await engine.close()

    return asyncio.run(run())
