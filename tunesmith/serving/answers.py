"""From a request to its answer, whole or streamed; stops at once when the client has gone. Knows no routes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi.responses import JSONResponse, Response

from tunesmith.core.errors import ServiceError, TunesmithError
from tunesmith.engines.contract import Engine, Piece, Request, complete
from tunesmith.serving.protocol import Writer, error_body

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from starlette.types import Receive, Scope, Send

T = TypeVar("T")


class ClientGone(Exception):
    """The client closed the connection."""


class Answering:
    """Everything one answer needs: the engine, the requests (n of them), how to write it, and its place."""

    def __init__(self, engine: Engine, requests: Sequence[Request], writer: Writer, bounds: Bounds) -> None:
        self._engine, self._requests, self._writer, self._bounds = engine, requests, writer, bounds

    async def whole(self, receive: Receive) -> Response:
        """The answer in one piece. A client that leaves stops the engine at once."""
        try:
            return JSONResponse(await _while_there(receive, self._bounds, self._complete()))
        except ClientGone:
            return Response(status_code=499)

    async def _complete(self) -> dict[str, Any]:
        async with self._bounds.place, asyncio.TaskGroup() as group:
            tasks = [group.create_task(complete(self._engine, request)) for request in self._requests]
        return self._writer.whole([task.result() for task in tasks])

    def streamed(self) -> Response:
        """The answer as server-sent events."""
        return EventStream(self._events(), self._bounds)

    async def _events(self) -> AsyncGenerator[dict[str, Any], None]:
        ends: list[Piece] = []
        opened: set[int] = set()
        async with self._bounds.place, aclosing(_merged(self._engine, self._requests)) as pieces:
            async for index, piece in pieces:
                if index not in opened:
                    opened.add(index)
                    if opening := self._writer.opening(index):
                        yield opening
                for chunk in self._writer.chunks(index, piece):
                    yield chunk
                if piece.finish:
                    ends.append(piece)
        if closing := self._writer.closing(ends):
            yield closing


class Bounds:
    """What ends an answer early: its time, the server's end. `place` is the context that holds its place."""

    def __init__(self, place: AbstractAsyncContextManager[None], seconds: float, closing: asyncio.Event) -> None:
        self.place, self.seconds, self.closing = place, seconds, closing


KEEP_ALIVE_SECONDS = 15.0
"""Silence after which a comment is sent, so that no proxy between takes the connection for dead."""
_END = object()


class EventStream(Response):
    """Server-sent events. An error before anything was sent is an HTTP error, a later one an event with `error`."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[dict[str, Any], None], bounds: Bounds) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events, self._bounds, self._is_open = events, bounds, False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI
        """Send the events while the client listens. The only reader of `receive` from here on."""
        try:
            await _while_there(receive, self._bounds, self._send_all(send))
        except ClientGone:
            return
        except TunesmithError as error:
            if not self._is_open:
                raise
            await self._write(send, json.dumps(error_body(str(error), error.http_status), ensure_ascii=False))
            await send({"type": "http.response.body", "body": b""})

    async def _send_all(self, send: Send) -> None:
        async with aclosing(_with_pauses(self._events)) as events:
            async for event in events:
                if not self._is_open:
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    self._is_open = True
                if event is None:
                    await send({"type": "http.response.body", "body": b": keep-alive\n\n", "more_body": True})
                else:
                    await self._write(send, json.dumps(event, ensure_ascii=False))
        await self._write(send, "[DONE]")
        await send({"type": "http.response.body", "body": b""})

    async def _write(self, send: Send, data: str) -> None:
        await send({"type": "http.response.body", "body": f"data: {data}\n\n".encode(), "more_body": True})


async def _next(events: AsyncGenerator[dict[str, Any], None]) -> Any:
    try:
        return await anext(events)
    except StopAsyncIteration:
        return _END


async def _with_pauses(events: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[dict[str, Any] | None, None]:
    """The events, and None for every KEEP_ALIVE_SECONDS in which none came."""
    coming: asyncio.Task[Any] | None = None
    async with aclosing(events):
        try:
            while True:
                coming = asyncio.create_task(_next(events))
                while not (await asyncio.wait({coming}, timeout=KEEP_ALIVE_SECONDS))[0]:
                    yield None
                event = coming.result()
                if event is _END:
                    return
                yield event
        finally:
            if coming:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)


async def _while_there(receive: Receive, bounds: Bounds, work: Coroutine[Any, Any, T]) -> T:
    """Do the work; stop it when the client leaves (ClientGone), its time is over or the server ends (ServiceError)."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnect(receive))
    closing = asyncio.create_task(bounds.closing.wait())
    tasks: list[asyncio.Task[Any]] = [working, leaving, closing]
    try:
        await asyncio.wait(tasks, timeout=bounds.seconds, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return _only_error(working)
        if leaving.done():
            raise ClientGone
        if closing.done():
            raise ServiceError("server", "is stopping and broke this answer off")
        raise ServiceError("server", f"broke this answer off after {bounds.seconds:g} s")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _only_error(task: asyncio.Task[T]) -> T:
    """The result of a task; of a group of errors (n answers that failed alike) the first."""
    error = task.exception()
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if error:
        raise error
    return task.result()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _merged(engine: Engine, requests: Sequence[Request]) -> AsyncGenerator[tuple[int, Piece], None]:
    """(number, piece) of all answers, as they come. Closing it closes all of them."""
    if len(requests) == 1:
        async with aclosing(engine.stream(requests[0])) as pieces:
            async for piece in pieces:
                yield 0, piece
        return
    async with _pumps(engine, requests) as (queue, tasks):
        left = len(tasks)
        while left:
            index, piece = await queue.get()
            if piece is None:
                left -= 1
                await tasks[index]  # raises what ended it
            else:
                yield index, piece


@asynccontextmanager
async def _pumps(
    engine: Engine, requests: Sequence[Request]
) -> AsyncIterator[tuple[asyncio.Queue[tuple[int, Piece | None]], list[asyncio.Task[None]]]]:
    """A task for every request that puts its pieces into one queue, and None when it ends."""
    queue: asyncio.Queue[tuple[int, Piece | None]] = asyncio.Queue()

    async def pump(index: int, request: Request) -> None:
        try:
            async with aclosing(engine.stream(request)) as pieces:
                async for piece in pieces:
                    queue.put_nowait((index, piece))
        finally:
            queue.put_nowait((index, None))

    tasks = [asyncio.create_task(pump(index, request)) for index, request in enumerate(requests)]
    try:
        yield queue, tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
