"""Who may be answered now, who waits, and who is sent away. Knows no HTTP and no engine."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from tunesmith.core.config import Config
from tunesmith.core.errors import ServiceError


class Limits(Config):
    """What one server takes on; more is refused with a clear answer instead of piling up."""

    running: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Answers generated at the same time; null takes what the engine answers side by side."""
    waiting: Annotated[int, Field(ge=0, le=100_000)] = 64
    """Requests that may wait for their turn; one more gets 429."""
    waiting_characters: Annotated[int, Field(ge=1)] = 1_000_000
    """Characters of all waiting requests together; more gets 429."""
    waiting_seconds: Annotated[float, Field(gt=0)] = 120.0
    """Longest wait for a turn; then 429."""
    answer_tokens: Annotated[int, Field(ge=1)] = 1024
    """Most tokens of one answer, and what a request gets that names no max_tokens."""
    answer_seconds: Annotated[float, Field(gt=0)] = 600.0
    """Longest time for one answer; then it is broken off with an error."""
    body_bytes: Annotated[int, Field(ge=1024)] = 1 << 20
    """Largest request body."""
    body_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Longest time for a request body to arrive."""
    stop_seconds: Annotated[float, Field(ge=0)] = 30.0
    """After the first SIGTERM or Ctrl-C: longest time for running answers to end."""


class Busy(ServiceError):
    """The queue is full; `retry_seconds` is when it may be worth trying again."""

    http_status = 429

    def __init__(self, what: str, retry_seconds: int) -> None:
        super().__init__("server", what, do=f"Try again in {retry_seconds} s")
        self.retry_seconds = retry_seconds


@dataclass(eq=False)
class _Waiter:
    """A request in the queue."""

    weight: int
    characters: int
    turn: asyncio.Future[None]


class Admission:
    """A number of places and a bounded queue in front of them, first come first served."""

    def __init__(self, limits: Limits, places: int) -> None:
        self._limits, self.places = limits, places
        self.running = 0
        """Places taken now."""
        self.answered = 0
        """Requests that got a place and have left it."""
        self._queue: deque[_Waiter] = deque()
        self._mean_seconds = 1.0
        self._draining = False
        self.empty = asyncio.Event()
        """Set while no place is taken and nobody waits."""
        self.empty.set()

    @property
    def waiting(self) -> int:
        """Requests in the queue now."""
        return len(self._queue)

    @property
    def draining(self) -> bool:
        """Whether new requests are refused because the server is about to end."""
        return self._draining

    def drain(self) -> None:
        """Refuse new requests from now on; those that wait keep their turn."""
        self._draining = True

    @asynccontextmanager
    async def place(self, answers: int, characters: int) -> AsyncIterator[None]:
        """Hold the places of a request for `answers` answers; leaving, also by cancellation, frees them at once.

        Raises Busy when the queue is full or the turn does not come in time, ServiceError while draining.
        """
        weight = min(answers, self.places)
        await self._enter(weight, characters)
        started = time.monotonic()
        try:
            yield
        finally:
            self._mean_seconds += 0.2 * (time.monotonic() - started - self._mean_seconds)
            self.answered += 1
            self._free(weight)

    async def _enter(self, weight: int, characters: int) -> None:
        if self._draining:
            raise ServiceError("server", "is stopping and takes no new requests")
        if not self._queue and self.running + weight <= self.places:
            self._take(weight)
            return
        held = sum(waiter.characters for waiter in self._queue)
        if len(self._queue) >= self._limits.waiting or held + characters > self._limits.waiting_characters:
            raise Busy("is busy and its queue is full", self._retry_seconds())
        waiter = _Waiter(weight, characters, asyncio.get_running_loop().create_future())
        self._queue.append(waiter)
        try:
            async with asyncio.timeout(self._limits.waiting_seconds):
                await waiter.turn
        except BaseException as error:
            if waiter in self._queue:
                self._queue.remove(waiter)
                self._next()
            else:
                self._free(weight)  # the turn came in the same moment
            if isinstance(error, TimeoutError):
                raise Busy("had no time for this request", self._retry_seconds()) from None
            raise

    def _take(self, weight: int) -> None:
        self.running += weight
        self.empty.clear()

    def _free(self, weight: int) -> None:
        self.running -= weight
        self._next()

    def _next(self) -> None:
        while self._queue and self.running + self._queue[0].weight <= self.places:
            waiter = self._queue.popleft()
            self._take(waiter.weight)
            if not waiter.turn.done():  # else it is being cancelled, and gives the place back when it notices
                waiter.turn.set_result(None)
        if not self.running and not self._queue:
            self.empty.set()

    def _retry_seconds(self) -> int:
        ahead = (len(self._queue) + 1) * self._mean_seconds / self.places
        return min(60, max(1, math.ceil(ahead)))
