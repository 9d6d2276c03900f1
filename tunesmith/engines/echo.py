"""Says the last user message back, word by word: an engine for tests that needs no model."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from typing import Annotated, Literal

from pydantic import Field

from tunesmith.core.config import Config
from tunesmith.engines.contract import Finish, Piece, Request
from tunesmith.engines.pieces import StopCutter
from tunesmith.models.load import Found


class Echo(Config):
    """Say the last user message back; for tests and for trying clients."""

    kind: Literal["echo"] = "echo"
    delay_seconds: Annotated[float, Field(ge=0, le=60)] = 0.0
    """Pause before every word."""
    at_once: Annotated[int, Field(ge=1, le=1024)] = 64
    """Requests answered side by side."""

    def open(self, model: str | Found = "echo") -> EchoEngine:
        """Open it; `model` is only its name."""
        return EchoEngine(self, model if isinstance(model, str) else model.name)


class EchoEngine:
    """Counts every word as a token; `running` is the number of requests it holds."""

    name = "echo"

    def __init__(self, config: Echo, model: str) -> None:
        self.model, self.at_once, self.running = model, config.at_once, 0
        self._delay = config.delay_seconds

    async def stream(self, request: Request) -> AsyncGenerator[Piece, None]:
        """Answer one request; sampling other than max_tokens and stop changes nothing."""
        said = [message.content for message in request.messages if message.role == "user"]
        text = request.prompt if request.prompt is not None else said[-1] if said else ""
        words = re.findall(r"\s*\S+", text)
        limit = request.sampling.max_tokens
        finish: Finish = "length" if len(words) > limit else "stop"
        cutter, count = StopCutter(request.sampling.stop), 0
        self.running += 1
        try:
            for word in words[:limit]:
                await asyncio.sleep(self._delay)
                count += 1
                if safe := cutter.take(word):
                    yield Piece(safe)
                if cutter.stopped:
                    finish = "stop"
                    break
            yield Piece(cutter.rest(), finish, len(text.split()), count)
        finally:
            self.running -= 1

    async def alive(self) -> bool:
        """Always."""
        return True

    async def close(self) -> None:
        """Nothing to free."""
