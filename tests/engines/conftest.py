"""Requests in one line, a GGUF file, and a server to be remote from."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import write_tiny_model
from tunesmith.core.examples import Message
from tunesmith.engines.contract import Request, Sampling


def ask(question: str, **sampling: Any) -> Request:
    """A conversation of one question."""
    return Request((Message("user", question),), sampling=Sampling(**sampling))


def gguf_file() -> Path:
    """The GGUF file that comes with the embedded model."""
    from tunesmith.models import embedded

    return embedded._gguf()


def write_lively_model(folder: Path, *, layers: int = 2) -> Path:
    """A random model whose attention is sharp, so that a wrong position or mask changes what it says."""
    import torch
    from transformers import LlamaForCausalLM

    write_tiny_model(folder, layers=layers)
    model = LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".self_attn." in name or ".mlp." in name:
                weight.mul_(12)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def lively_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a two-layer model with sharp attention."""
    return write_lively_model(tmp_path_factory.mktemp("models") / "lively")


@pytest.fixture(scope="session")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny model with so many layers that a long answer takes seconds."""
    return write_tiny_model(tmp_path_factory.mktemp("models") / "slow", layers=40)


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
