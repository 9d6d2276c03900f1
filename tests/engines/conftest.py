"""Requests in one line, a GGUF file, and a server to be remote from."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tunesmith.core.examples import Message
from tunesmith.engines.contract import Request, Sampling


def ask(question: str, **sampling: Any) -> Request:
    """A conversation of one question."""
    return Request((Message("user", question),), sampling=Sampling(**sampling))


def gguf_file() -> Path:
    """The GGUF file that comes with the embedded model."""
    from tunesmith.models import embedded

    return embedded._gguf()


async def wait_until(is_so: Callable[[], bool], seconds: float) -> None:
    """Look again and again, with the event loop running, until something holds."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.01)


@pytest.fixture(scope="session")
def echo_server() -> Iterator[tuple[str, Any]]:
    """The address of a server with the echo engine (a pause before every word), and that engine."""
    from tunesmith.engines.echo import Echo
    from tunesmith.serving.app import Serving, make_app
    from tunesmith.serving.server import bind, in_background

    engine = Echo(delay_seconds=0.03).open("parrot")

    def make() -> Any:
        serving = Serving(engine, "parrot")
        return make_app(serving), serving

    with in_background(make, bind("127.0.0.1", 0)) as address:
        yield address, engine
