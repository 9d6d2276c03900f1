"""Real servers on loopback ports, with the echo engine or a two-layer model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.conftest import write_tiny_model
from tunesmith.engines.contract import Engine
from tunesmith.engines.echo import Echo
from tunesmith.engines.transformers import Transformers
from tunesmith.serving.admission import Limits
from tunesmith.serving.app import Serving, make_app
from tunesmith.serving.server import bind, in_background


class Running:
    """A server that runs: its address, what it serves, and clients for it."""

    def __init__(self, address: str, serving: Serving) -> None:
        self.address, self.serving, self.admission = address, serving, serving.admission
        self.engine: Any = serving.engine

    def client(self, key: str = "none") -> openai.OpenAI:
        """The official client; every failure is shown at once."""
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key=key, max_retries=0, timeout=60)

    @property
    def port(self) -> int:
        """Its port."""
        return int(self.address.rpartition(":")[2])


@contextmanager
def running(engine: Engine, *, key: str | None = None, temperature: float = 0.0, **limits: Any) -> Iterator[Running]:
    """A server with this engine on a free port, until the end of the block."""
    serving = Serving(engine, "tiny", Limits(**limits), temperature)
    with in_background(lambda: (make_app(serving, key=key), serving), bind("127.0.0.1", 0)) as address:
        yield Running(address, serving)


def wait_until(is_so: Callable[[], bool], seconds: float = 5.0) -> float:
    """Look again and again until something holds; the seconds it took."""
    started = time.monotonic()
    while not is_so():
        assert time.monotonic() - started < seconds, "waited in vain"
        time.sleep(0.005)
    return time.monotonic() - started


@pytest.fixture(scope="session")
def echo() -> Iterator[Running]:
    """The echo engine without pauses."""
    with running(Echo().open("tiny")) as server:
        yield server


@pytest.fixture(scope="session")
def slow_echo() -> Iterator[Running]:
    """The echo engine with a pause before every word, two places, one may wait."""
    with running(Echo(delay_seconds=0.2).open("tiny"), running=2, waiting=1, waiting_characters=2000) as server:
        yield server


@pytest.fixture(scope="session")
def tiny(tiny_model: Any) -> Iterator[Running]:
    """A random two-layer model in the transformers engine."""
    with running(Transformers(precision="fp32", threads=1).open(str(tiny_model))) as server:
        yield server


@pytest.fixture(scope="session")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model with so many layers that a long answer takes seconds."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "slow", layers=40)


def run_async(work: Any) -> Any:
    """Run a coroutine."""
    return asyncio.run(work)
